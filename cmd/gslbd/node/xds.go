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
	"github.com/meridian-gslb/meridian/tracing"
	"github.com/meridian-gslb/meridian/xds"
)

// proxies is the node's config server with what feeds it: every snapshot, the certificates
// in their folder, and the load that the proxies report.
type proxies struct {
	n      *Node
	c      config.XDS
	server *xds.Server // nil: the node has none
	kick   chan struct{}
	latest atomic.Pointer[offer]
	load   atomic.Pointer[map[string]float64] // by pool, for the engine; nil: nobody reports
}

// offer is a snapshot with the objects that it was built from.
type offer struct {
	snapshot *gslb.Snapshot
	objects  *config.Objects
}

// How often the load, and the folder of certificates, are looked at.
const (
	loadEvery    = time.Second
	secretsEvery = 10 * time.Second
)

func newProxies(n *Node, c config.XDS) *proxies {
	p := &proxies{n: n, c: c, kick: make(chan struct{}, 1)}
	if c.Listen.IsValid() {
		p.server = xds.New(xds.Options{
			Addr: c.Listen.String(), TLS: xds.TLS{Cert: c.TLS.Cert, Key: c.TLS.Key, CA: c.TLS.CA},
			Report: loadEvery, Log: n.log,
			Services: n.traces.ReceiverGRPC, // to which the proxies' tracers export
		})
	}
	return p
}

// listen binds the address, if there is one.
func (p *proxies) listen() error {
	if p.server == nil {
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

// run serves proxies until ctx ends, if the node has a config server.
func (p *proxies) run(ctx context.Context) error {
	if p.server == nil {
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
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
		case <-tick.C:
			if len(loads) == 0 && len(p.server.PoolLoads()) == 0 && time.Since(read) < secretsEvery {
				continue
			}
		}
		o := p.latest.Load()
		if o == nil {
			continue
		}
		if read.IsZero() || time.Since(read) >= secretsEvery {
			next, faults := xds.ReadSecrets(p.c.Certificates)
			p.n.build.report("certificates", "the last good ones stay", errors.Join(faults...))
			secrets = keepGood(secrets, next)
			read = time.Now()
		}
		loads = p.server.PoolLoads()
		p.tellEngine(o.objects, loads)
		start, before := time.Now(), p.server.World()
		w := xds.Build(before, xds.Inputs{Snapshot: o.snapshot, Objects: o.objects, Secrets: secrets, Loads: loads})
		if old := p.server.World(); old == nil || !slices.EqualFunc(old.Faults, w.Faults, func(a, b error) bool { return a.Error() == b.Error() }) {
			p.n.build.report("configuration of proxies", "their last good one stays", errors.Join(w.Faults...))
		}
		p.sayWhatSpills(p.server.World(), w)
		p.server.Set(w)
		if before == nil || before.Revision != w.Revision {
			p.n.cold.did("xds.push", start, attribute.Int64(tracing.AttrRevision, int64(w.Revision)))
		}
	}
}

// loadStep is the step in which the engine sees load: a change within one is noise to it.
const loadStep = 0.05

// tellEngine hands the engine the share of each pool's capacity that is in use, and asks for
// a snapshot when that has changed for a stage that reads it.
func (p *proxies) tellEngine(o *config.Objects, loads []xds.PoolLoad) {
	if !o.UsesLoad() {
		p.load.Store(nil)
		return
	}
	now := shares(o, loads)
	if old := p.load.Swap(&now); old == nil && len(now) > 0 || old != nil && !maps.Equal(*old, now) {
		p.n.build.wake()
	}
}

// shares returns, by pool with a capacity, the share of it that is in use, in whole steps: of
// a pool of endpoints what all proxies ask of it, of a pool of proxies what they send on.
func shares(o *config.Objects, loads []xds.PoolLoad) map[string]float64 {
	in, out := map[string]float64{}, map[string]float64{}
	for _, l := range loads {
		in[l.To] += l.Rate
		out[l.From] += l.Rate
	}
	now := map[string]float64{}
	for _, rates := range []map[string]float64{in, out} {
		for pool, rate := range rates {
			if c := o.Pools[pool].Capacity; c > 0 {
				now[pool] = max(now[pool], math.Round(rate/c/loadStep)*loadStep)
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

// sayWhatSpills logs where load over a pool's capacity begins to go elsewhere, and ends to.
func (p *proxies) sayWhatSpills(old, now *xds.World) {
	was := map[[2]string]bool{}
	if old != nil {
		for _, s := range old.Spills {
			was[[2]string{s.From, s.Upstream}] = true
		}
	}
	for _, s := range now.Spills {
		k := [2]string{s.From, s.Upstream}
		if !was[k] {
			p.n.log.Warn("load is over capacity and goes to the next pools", "from", s.From, "upstream", s.Upstream,
				"revision", now.Revision, "demand", s.Demand, "placed", s.Placed, "over", s.Over)
		}
		delete(was, k)
	}
	for k := range was {
		p.n.log.Info("load is within capacity again", "from", k[0], "upstream", k[1], "revision", now.Revision)
	}
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
	if p.server == nil {
		return nil
	}
	var out []string
	for _, c := range p.server.Clients() {
		for _, t := range c.Types {
			if t.Rejected != nil {
				out = append(out, fmt.Sprintf("proxy %s of pool %s refused its %s and keeps the last good ones: %s", c.ID, c.Pool, t.Type, t.Rejected.Reason))
			}
		}
	}
	if w := p.server.World(); w != nil {
		for _, s := range w.Spills {
			if s.Over > s.Demand/100 {
				out = append(out, fmt.Sprintf("proxies of pool %s: upstream %s is asked for %.0f requests a second, %.0f more than its pools have capacity for", s.From, s.Upstream, s.Demand, s.Over))
			}
		}
	}
	return out
}

// status is what the node knows of its proxies.
func (p *proxies) status() api.Proxies {
	out := api.Proxies{Proxies: []api.Proxy{}, Loads: []api.PoolLoad{}}
	if p.server == nil {
		return out
	}
	if a := p.server.Addr(); a != nil {
		out.Listen = a.String()
	}
	var objects *config.Objects
	if o := p.latest.Load(); o != nil {
		objects = o.objects
	}
	if w := p.server.World(); w != nil {
		out.Revision = w.Revision
		for _, s := range w.Spills {
			out.Spills = append(out.Spills, api.Spill(s))
		}
	}
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
			From: l.From, Upstream: l.Upstream, To: l.To, Site: l.Site, Proxies: l.Proxies, Frozen: l.Frozen,
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
	descReports    = proxyDesc("load_reports_total", "Load reports of proxies.")
	descIgnored    = proxyDesc("load_ignored_total", "Parts of load reports that were not believed.")
	descRate       = proxyDesc("load_requests_per_second", "Requests that the proxies of a pool send to another, in the average.", "from", "upstream", "to")
	descErrors     = proxyDesc("load_errors_per_second", "Of them, those that failed.", "from", "upstream", "to")
	descDropped    = proxyDesc("load_dropped_per_second", "Requests that proxies shed because every pool was full.", "from", "upstream", "to")
	descInProgress = proxyDesc("load_in_progress", "Requests in progress.", "from", "upstream", "to")
	descAge        = proxyDesc("load_age_seconds", "Age of the oldest report in the load.", "from", "upstream", "to")
	descEndpoint   = proxyDesc("load_endpoint_metric", "What endpoints say of themselves (ORCA), in the average over requests.", "from", "upstream", "to", "metric")
)

func proxyDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("meridian_"+name, help, labels, nil)
}

// Describe sends nothing: what there is depends on the configuration.
func (p *proxies) Describe(chan<- *prometheus.Desc) {}

// Collect sends the state of the config server.
func (p *proxies) Collect(ch chan<- prometheus.Metric) {
	if p.server == nil {
		return
	}
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	st, counts := p.status(), p.server.Stats()
	send(descRevision, prometheus.GaugeValue, float64(st.Revision))
	send(descPushes, prometheus.CounterValue, float64(counts.Pushes))
	send(descRejections, prometheus.CounterValue, float64(counts.Rejections))
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
	for _, l := range st.Loads {
		for d, v := range map[*prometheus.Desc]float64{descRate: l.Rate, descErrors: l.Errors, descDropped: l.Dropped, descInProgress: l.InProgress, descAge: l.Age} {
			send(d, prometheus.GaugeValue, v, l.From, l.Upstream, l.To)
		}
		for _, name := range slices.SortedFunc(maps.Keys(l.Metrics), cmp.Compare[string]) {
			send(descEndpoint, prometheus.GaugeValue, l.Metrics[name], l.From, l.Upstream, l.To, strings.ToValidUTF8(name, "�"))
		}
	}
}
