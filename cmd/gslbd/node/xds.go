package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/health"
	"github.com/meridian-gslb/meridian/tracing"
	"github.com/meridian-gslb/meridian/xds"
)

// proxies is the node's config server with what feeds it: every snapshot, the certificates
// in their folder, and the load that the proxies report.
type proxies struct {
	n      *Node
	c      config.XDS
	server *xds.Server   // serves only where c says so; on every node it knows the load of the fleet
	kick   chan struct{} // there is a new offer
	grew   chan struct{} // the load of some proxy has grown
	latest atomic.Pointer[offer]
	load   atomic.Pointer[map[string]float64] // by pool, for the engine; nil: nobody reports
	damped map[string]*damper                 // by pool that sheds; only feed
	spills atomic.Pointer[[]api.Spill]        // what is over its capacity now
	untold atomic.Int64                       // flows whose load did not fit into what other nodes are told
}

// offer is a snapshot with the objects that it was built from.
type offer struct {
	snapshot *gslb.Snapshot
	objects  *config.Objects
}

// How often the load, and the folder of certificates, are looked at.
const (
	loadEvery    = time.Second
	growthEvery  = 100 * time.Millisecond // at most, whether a load that grows is over a capacity
	growthShare  = 20                     // and for at most this part of the time, however many proxies report
	secretsEvery = 10 * time.Second
)

func newProxies(n *Node, c config.XDS) *proxies {
	p := &proxies{n: n, c: c, kick: make(chan struct{}, 1), grew: make(chan struct{}, 1)}
	p.server = xds.New(xds.Options{
		Addr: c.Listen.String(), TLS: xds.TLS{Cert: c.TLS.Cert, Key: c.TLS.Key, CA: c.TLS.CA},
		Report: loadEvery, Log: n.log,
		Grew: func() {
			select {
			case p.grew <- struct{}{}:
			default:
			}
		},
		Services: n.traces.ReceiverGRPC, // to which the proxies' tracers export
	})
	return p
}

// serves reports whether the node has a config server.
func (p *proxies) serves() bool { return p.c.Listen.IsValid() }

// listen binds the address, if there is one.
func (p *proxies) listen() error {
	if !p.serves() {
		return nil
	}
	return p.server.Listen()
}

// offer takes the newest snapshot. It does not block.
func (p *proxies) offer(s *gslb.Snapshot, o *config.Objects) {
	p.latest.Store(&offer{s, o})
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// run serves proxies until ctx ends, if the node has a config server, and follows the load of
// the fleet.
func (p *proxies) run(ctx context.Context) error {
	if !p.serves() {
		p.feed(ctx)
		return nil
	}
	feeding := make(chan struct{})
	go func() {
		defer close(feeding)
		p.feed(ctx)
	}()
	err := p.server.Run(ctx)
	<-feeding
	return err
}

// feed makes a world of every snapshot, and again when the load or the certificates changed,
// until ctx ends.
func (p *proxies) feed(ctx context.Context) {
	tick := time.NewTicker(loadEvery)
	defer tick.Stop()
	var read time.Time
	var secrets map[string]xds.Secret
	var loads []xds.PoolLoad
	var looked time.Time      // at the load
	var took time.Duration    // to look, and to make what came of it
	var soon <-chan time.Time // when to look for what has grown
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
		case <-p.grew:
			if soon == nil {
				soon = time.After(max(growthEvery, growthShare*took) - time.Since(looked))
			}
			continue
		case <-soon:
			soon, looked = nil, time.Now()
			if o := p.latest.Load(); o == nil || !outgrown(o.objects, loads, p.server.PoolLoads()) {
				took = time.Since(looked)
				continue
			}
		case <-tick.C:
			p.share()
			if len(loads) == 0 && len(p.server.PoolLoads()) == 0 && time.Since(read) < secretsEvery {
				continue
			}
		}
		o := p.latest.Load()
		if o == nil || !p.serves() && !o.objects.UsesLoad() {
			continue
		}
		if read.IsZero() || time.Since(read) >= secretsEvery {
			next, faults := xds.ReadSecrets(p.c.Certificates)
			p.n.build.report("certificates", "the last good ones stay", errors.Join(faults...))
			secrets = keepGood(secrets, next)
			read = time.Now()
		}
		looked = time.Now()
		loads = p.server.PoolLoads()
		start, before := looked, p.server.World()
		w := xds.Build(before, xds.Inputs{Snapshot: o.snapshot, Objects: o.objects, Secrets: secrets, Loads: loads})
		if old := p.server.World(); old == nil || !slices.EqualFunc(old.Faults, w.Faults, func(a, b error) bool { return a.Error() == b.Error() }) {
			p.n.build.report("configuration of proxies", "their last good one stays", errors.Join(w.Faults...))
		}
		p.tellEngine(o.objects, loads, w.Pressure)
		p.noteSpills(o.objects, w)
		p.server.Set(w)
		took = time.Since(looked)
		if before == nil || before.Revision != w.Revision {
			p.n.cold.did("xds.push", start, attribute.Int64(tracing.AttrRevision, int64(w.Revision)))
		}
	}
}

// outgrown reports whether a pool is asked for more than its capacity, and for more than by
// before, the loads of the last world: less and the same can wait.
func outgrown(o *config.Objects, before, now []xds.PoolLoad) bool {
	was := asked(before)
	for pool, rate := range asked(now) {
		if c := o.Pools[pool].Capacity; c > 0 && rate > c && rate > was[pool]*(1+growth) {
			return true
		}
	}
	return false
}

// growth is by how much a load must grow to be more than it was.
const growth = 0.02

// asked returns the requests per second that each pool is asked for.
func asked(loads []xds.PoolLoad) map[string]float64 {
	sums := map[string]float64{}
	for _, l := range loads {
		sums[l.To] += l.Rate
	}
	return sums
}

// loadStep is the step in which the engine sees load: a change within one is noise to it.
const loadStep = 0.05

// share exchanges the load that is reported here with what other nodes hear. It goes by gossip
// rather than by the store: it is news of the last second, and must come through while etcd
// does not.
func (p *proxies) share() {
	note, left := p.server.Share(health.MaxNote)
	p.untold.Store(int64(left))
	p.n.health.SetNote(note)
	var told []xds.Told
	for _, n := range p.n.health.Notes() {
		told = append(told, xds.Told(n))
	}
	p.server.Hear(told)
}

// tellEngine hands the engine the load of each pool, 1 for its capacity, and asks for a
// snapshot when that has changed for a stage that reads it.
func (p *proxies) tellEngine(o *config.Objects, loads []xds.PoolLoad, pressure map[string]float64) {
	if !o.UsesLoad() {
		p.load.Store(nil)
		return
	}
	now := shares(o, loads, pressure)
	p.settle(o, now)
	if old := p.load.Swap(&now); old == nil && len(now) > 0 || old != nil && !maps.Equal(*old, now) {
		p.n.build.wake()
	}
}

// settle puts in place of the load of each pool the one to shed by; of pools that nobody hands on
// from, the load in whole steps.
func (p *proxies) settle(o *config.Objects, load map[string]float64) {
	damped := map[string]*damper{}
	for pool, l := range load {
		stages, ttl := shedding(o, pool)
		if stages == nil {
			load[pool] = math.Round(l/loadStep) * loadStep
			continue
		}
		d := p.damped[pool]
		if d == nil {
			d = &damper{}
		}
		damped[pool] = d
		load[pool] = d.settle(l, func(load float64) float64 {
			sum := 0.0
			for _, s := range stages {
				if s == nil {
					sum++
				} else {
					sum += s.Keeps(load)
				}
			}
			return sum / float64(len(stages))
		}, ttl, time.Now())
	}
	p.damped = damped
}

// shedding returns by which stage each service hands on users of a pool, nil for one that does
// not, and how long the longest of their answers is good for. It is nil where none does.
func shedding(o *config.Objects, pool string) (stages []*config.ShedStage, ttl time.Duration) {
	sheds := false
	for _, name := range o.Names("services") {
		s := o.Services[name]
		if _, ok := s.Pools[pool]; !ok {
			continue
		}
		stage := o.Shed(name)
		stages = append(stages, stage)
		if stage != nil {
			sheds, ttl = true, max(ttl, s.EffectiveTTL())
		}
	}
	if !sheds {
		return nil, 0
	}
	return stages, ttl
}

// shares returns the load of pools: of a pool of endpoints the share of its
// capacity that all proxies ask of it; of a pool of proxies the share of its own that they send
// on, or the pressure on the pools behind it, whichever is more: users are as badly off where
// the frontends are full as where the proxies are.
func shares(o *config.Objects, loads []xds.PoolLoad, pressure map[string]float64) map[string]float64 {
	in, out := map[string]float64{}, map[string]float64{}
	for _, l := range loads {
		in[l.To] += l.Rate
		out[l.From] += l.Rate
	}
	now := map[string]float64{}
	for pool, v := range pressure {
		now[pool] = v
	}
	for _, rates := range []map[string]float64{in, out} {
		for pool, rate := range rates {
			if c := o.Pools[pool].Capacity; c > 0 {
				now[pool] = max(now[pool], rate/c)
			}
		}
	}
	return now
}

// engineLoad is what the engine is told of load; nil for nothing.
func (p *proxies) engineLoad() map[string]float64 {
	if l := p.load.Load(); l != nil {
		return *l
	}
	return nil
}

// noteSpills keeps what is over its capacity in w, with what the answers of DNS do about it,
// and logs each when it begins and when it ends.
func (p *proxies) noteSpills(o *config.Objects, w *xds.World) {
	was := map[[2]string]api.Spill{}
	if old := p.spills.Load(); old != nil {
		for _, s := range *old {
			was[[2]string{s.From, s.Upstream}] = s
		}
	}
	now := make([]api.Spill, 0, len(w.Spills))
	for _, s := range w.Spills {
		e := api.Spill{
			From: s.From, Site: o.Pools[s.From].Site, Since: time.Now(), Revision: w.Revision, Upstream: s.Upstream,
			Demand: s.Demand, Placed: s.Placed, Over: s.Over, Load: w.Pressure[s.From], DNS: p.sheds(o, s.From),
		}
		k := [2]string{s.From, s.Upstream}
		if old, known := was[k]; known {
			e.Since = old.Since
		} else {
			p.n.log.Warn("a site is over its capacity: requests go to the next pools now, users as their answers of DNS expire", "site", e.Site,
				"pool", e.From, "upstream", e.Upstream, "revision", e.Revision, "demand", e.Demand, "placed", e.Placed, "over", e.Over, "load", e.Load, "dns", e.DNS)
		}
		delete(was, k)
		now = append(now, e)
	}
	for _, e := range was {
		p.n.log.Info("a site is within its capacity again", "site", e.Site, "pool", e.From, "upstream", e.Upstream, "revision", w.Revision,
			"after", time.Since(e.Since).Round(time.Millisecond), "dns", p.sheds(o, e.From))
	}
	p.spills.Store(&now)
}

// sheds says what the answers of DNS do under the load of a pool, ordered by service.
func (p *proxies) sheds(o *config.Objects, pool string) []api.Shed {
	out := []api.Shed{}
	for _, name := range o.Names("services") {
		s := o.Services[name]
		if _, ok := s.Pools[pool]; !ok {
			continue
		}
		if shed := o.Shed(name); shed != nil {
			out = append(out, api.Shed{Service: name, Keeps: shed.Keeps(p.engineLoad()[pool]), TTL: s.EffectiveTTL().Seconds()})
		}
	}
	return out
}

// Overloads returns what is over its capacity now: of each what becomes of requests, and of the
// answers of DNS.
func (n *Node) Overloads() []api.Spill { return n.xds.over() }

// over are the overloads of now.
func (p *proxies) over() []api.Spill {
	if s := p.spills.Load(); s != nil {
		return *s
	}
	return nil
}

// keepGood returns next, with the parts of old that next lacks: half of a rotation, or a
// folder that cannot be read, takes no certificate away.
func keepGood(old, next map[string]xds.Secret) map[string]xds.Secret {
	out := maps.Clone(next)
	if out == nil {
		out = map[string]xds.Secret{}
	}
	for name, o := range old {
		s := out[name]
		if s.Cert == nil || s.Key == nil {
			s.Cert, s.Key = o.Cert, o.Key
		}
		if s.CA == nil {
			s.CA = o.CA
		}
		out[name] = s
	}
	return out
}

// faults are what proxies refused, a sentence each.
func (p *proxies) faults() []string {
	var out []string
	for _, c := range p.server.Clients() {
		for _, t := range c.Types {
			if t.Rejected != nil {
				out = append(out, fmt.Sprintf("proxy %s of pool %s refused its %s and keeps the last good ones: %s", c.ID, c.Pool, t.Type, t.Rejected.Reason))
			}
		}
	}
	for _, s := range p.over() {
		out = append(out, s.String())
	}
	if n := p.untold.Load(); n > 0 {
		out = append(out, fmt.Sprintf("the load of %d flows, the smallest, does not fit into what other nodes are told", n))
	}
	return out
}

// status is what the node knows of its proxies.
func (p *proxies) status() api.Proxies {
	out := api.Proxies{Proxies: []api.Proxy{}, Loads: []api.PoolLoad{}}
	if a := p.server.Addr(); a != nil {
		out.Listen = a.String()
	}
	var objects *config.Objects
	if o := p.latest.Load(); o != nil {
		objects = o.objects
	}
	if w := p.server.World(); w != nil {
		out.Revision = w.Revision
	}
	out.Spills = p.over()
	for _, c := range p.server.Clients() {
		x := api.Proxy{
			ID: c.ID, Pool: c.Pool, Site: c.Site, Addr: c.Addr, Agent: c.Agent, Version: c.Version, Protocol: c.Protocol,
			Connected: c.Connected, Revision: c.Revision, Behind: c.Behind, Unknown: c.Unknown, Rate: c.Rate,
		}
		for _, t := range c.Types {
			r := api.ProxyResource{Type: t.Type, Resources: t.Resources, Sent: t.Sent, Acked: t.Acked}
			if t.Rejected != nil {
				rejected := api.Rejection(*t.Rejected)
				r.Rejected = &rejected
			}
			x.Types = append(x.Types, r)
		}
		out.Proxies = append(out.Proxies, x)
	}
	for _, l := range p.server.Loads() {
		x := api.PoolLoad{
			From: l.From, Upstream: l.Upstream, To: l.To, Site: l.Site, Proxies: l.Proxies, Frozen: l.Frozen, Nodes: l.Nodes,
			Rate: l.Rate, Errors: l.Errors, Dropped: l.Dropped, InProgress: l.InProgress, Metrics: l.Metrics, Age: l.Age.Seconds(),
		}
		if objects != nil {
			x.Capacity = objects.Pools[l.To].Capacity
		}
		out.Loads = append(out.Loads, x)
	}
	for _, f := range p.server.LoadFaults() {
		out.Faults = append(out.Faults, api.LoadFault(f))
	}
	return out
}

// checkProxies reports what of f cannot be said to proxies: raw fields that Envoy has not,
// certificates that there are not.
func checkProxies(f *config.File, s *gslb.Snapshot) error {
	if !f.Node.XDS.Listen.IsValid() {
		return nil
	}
	secrets, faults := xds.ReadSecrets(f.Node.XDS.Certificates)
	w := xds.Build(nil, xds.Inputs{Snapshot: s, Objects: &f.Objects, Secrets: secrets})
	return errors.Join(append(faults, w.Faults...)...)
}

// handlers are what the admin API serves of the config server.
func (p *proxies) handlers(extra map[string]http.Handler) map[string]http.Handler {
	out := maps.Clone(extra)
	if out == nil {
		out = map[string]http.Handler{}
	}
	out["GET "+api.ProxiesPath] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		json.NewEncoder(w).Encode(p.status()) // a client that has gone needs no answer
	})
	return out
}

// The metrics of the config server.
var (
	descProxies    = proxyDesc("xds_proxies", "Proxies that are connected to the config server.", "pool", "protocol")
	descBehind     = proxyDesc("xds_proxies_behind", "Of them, those that something is on its way to, or that refused something.", "pool")
	descRevision   = proxyDesc("xds_revision", "Revision of the snapshot that proxies are handed.")
	descPushes     = proxyDesc("xds_responses_total", "Responses sent to proxies.")
	descRejections = proxyDesc("xds_rejections_total", "Responses that proxies refused.")
	descStuck      = proxyDesc("xds_stuck_total", "Connections that were closed because a proxy took nothing of what it was sent.")
	descReports    = proxyDesc("load_reports_total", "Load reports of proxies.")
	descIgnored    = proxyDesc("load_ignored_total", "Parts of load reports that were not believed.")
	descRate       = proxyDesc("load_requests_per_second", "Requests that the proxies of a pool send to another, in the average.", "from", "upstream", "to")
	descErrors     = proxyDesc("load_errors_per_second", "Of them, those that failed.", "from", "upstream", "to")
	descDropped    = proxyDesc("load_dropped_per_second", "Requests that proxies shed because every pool was full.", "from", "upstream", "to")
	descInProgress = proxyDesc("load_in_progress", "Requests in progress.", "from", "upstream", "to")
	descAge        = proxyDesc("load_age_seconds", "Age of the oldest report in the load.", "from", "upstream", "to")
	descOver       = proxyDesc("overload_requests_per_second", "Requests of an upstream whose preferred pools are over their capacity, by where they go; to none: what no pool has capacity for.", "from", "upstream", "to")
	descKeeps      = proxyDesc("overload_dns_share", "Share of its clients that a pool keeps in the answers of a service, while it is over its capacity.", "from", "service")
	descEndpoint   = proxyDesc("load_endpoint_metric", "What endpoints say of themselves (ORCA), in the average over requests.", "from", "upstream", "to", "metric")
)

func proxyDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("meridian_"+name, help, labels, nil)
}

// Describe sends nothing: what there is depends on the configuration.
func (p *proxies) Describe(chan<- *prometheus.Desc) {}

// Collect sends the state of the config server.
func (p *proxies) Collect(ch chan<- prometheus.Metric) {
	if !p.serves() && p.server.World() == nil {
		return
	}
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	st, counts := p.status(), p.server.Stats()
	send(descRevision, prometheus.GaugeValue, float64(st.Revision))
	send(descPushes, prometheus.CounterValue, float64(counts.Pushes))
	send(descRejections, prometheus.CounterValue, float64(counts.Rejections))
	send(descStuck, prometheus.CounterValue, float64(counts.Stuck))
	send(descReports, prometheus.CounterValue, float64(counts.Reports))
	send(descIgnored, prometheus.CounterValue, float64(counts.Ignored))
	type key struct{ pool, protocol string }
	connected, behind := map[key]float64{}, map[string]float64{}
	for _, x := range st.Proxies {
		pool := x.Pool
		if x.Unknown {
			pool = "" // labels are bounded by the configuration
		}
		connected[key{pool, x.Protocol}]++
		if behind[pool] += 0; x.Behind {
			behind[pool]++
		}
	}
	for k, n := range connected {
		send(descProxies, prometheus.GaugeValue, n, k.pool, k.protocol)
	}
	for pool, n := range behind {
		send(descBehind, prometheus.GaugeValue, n, pool)
	}
	keeps := map[[2]string]float64{}
	for _, s := range st.Spills {
		for to, rate := range s.Placed {
			send(descOver, prometheus.GaugeValue, rate, s.From, s.Upstream, to)
		}
		send(descOver, prometheus.GaugeValue, s.Over, s.From, s.Upstream, "")
		for _, d := range s.DNS {
			keeps[[2]string{s.From, d.Service}] = d.Keeps
		}
	}
	for k, v := range keeps {
		send(descKeeps, prometheus.GaugeValue, v, k[0], k[1])
	}
	for _, l := range st.Loads {
		for d, v := range map[*prometheus.Desc]float64{descRate: l.Rate, descErrors: l.Errors, descDropped: l.Dropped, descInProgress: l.InProgress, descAge: l.Age} {
			send(d, prometheus.GaugeValue, v, l.From, l.Upstream, l.To)
		}
		for _, name := range slices.SortedFunc(maps.Keys(l.Metrics), cmp.Compare[string]) {
			send(descEndpoint, prometheus.GaugeValue, l.Metrics[name], l.From, l.Upstream, l.To, strings.ToValidUTF8(name, "�"))
		}
	}
}
