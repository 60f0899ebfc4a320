package node

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meridian-gslb/meridian/admin"
	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/health"
)

// rttEvery is how often what was measured is looked through for what a new snapshot is worth.
const rttEvery = 5 * time.Second

// maxNear bounds the prefixes of clients that probes speak for.
const maxNear = 4096

// rtts gathers round-trip times between users and pools: what proxies report of their
// connections, what browsers report to the beacon, and what probes find for clients nearby. They
// are of this node alone.
type rtts struct {
	n      *Node
	c      config.NodeRTT
	beacon *admin.Beacon // nil: none

	table atomic.Pointer[gslb.RTTTable] // for the next snapshot; nil: nothing is known, or nobody asks

	mu               sync.Mutex
	proxies, beacons *gslb.RTTs
	near             map[gslb.RTTKey]gslb.RTT // by probes
	used             bool
	samples          uint64 // of proxies, since the start
}

func newRTTs(n *Node, c config.NodeRTT) *rtts {
	c = c.Effective()
	r := &rtts{n: n, c: c, proxies: gslb.NewRTTs(c.Rows), beacons: gslb.NewRTTs(c.Rows)}
	if c.Beacon.Listen.IsValid() {
		r.beacon = admin.NewBeacon(admin.BeaconOptions{
			Addr: c.Beacon.Listen.String(), Rate: c.Beacon.Rate, Trust: c.Beacon.Trust, Log: n.log,
			Pool:    r.isPool,
			Observe: func(client netip.Prefix, pool string, ms float64) { r.observe(r.beacons, client, pool, ms, 1) },
		})
	}
	return r
}

// listen binds the beacon, if there is one.
func (r *rtts) listen() error {
	if r.beacon == nil {
		return nil
	}
	return r.beacon.Listen()
}

// serve serves the beacon, if there is one, until ctx ends.
func (r *rtts) serve(ctx context.Context) error {
	if r.beacon == nil {
		<-ctx.Done()
		return nil
	}
	return r.beacon.Run(ctx)
}

func (r *rtts) isPool(name string) bool {
	s := r.n.Snapshot()
	return s != nil && s.Pool(name) != nil
}

func (r *rtts) observe(into *gslb.RTTs, client netip.Prefix, pool string, ms float64, samples int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	into.Observe(gslb.RTTKey{Prefix: client, Pool: pool}, ms, samples, time.Now())
}

// report takes what a proxy of pool, or a collector, measured.
func (r *rtts) report(pool string, reported []api.RTTSample) {
	for _, x := range reported {
		if client, ok := gslb.RTTPrefix(x.Client); ok {
			r.observe(r.proxies, client, pool, x.Millis, x.Samples)
			r.mu.Lock()
			r.samples += uint64(x.Samples)
			r.mu.Unlock()
		}
	}
}

// run looks every while through what was measured, until ctx ends.
func (r *rtts) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rttEvery):
		}
		if v := r.n.build.lastView(); v != nil {
			r.gather(v.Objects, time.Now())
		}
	}
}

// gather forgets what is old, and hands the rest to the next snapshot where a stage asks for it
// and it says something new.
func (r *rtts) gather(o *config.Objects, now time.Time) {
	maxAge, used := o.UsesRTT()
	var near map[gslb.RTTKey]gslb.RTT
	if used && r.c.Probes {
		near = gslb.NearRTTs(probedRTTs(o, r.n.health.Views()), o.Sites, r.n.places.Current(), clientsOf(r.n.dns.Recent()), now, r.c.Rows)
	}
	r.mu.Lock()
	since := now.Add(-r.c.Expire.Std())
	isPool := func(name string) bool { _, ok := o.Pools[name]; return ok }
	r.proxies.Expire(since, isPool)
	r.beacons.Expire(since, isPool)
	r.near, r.used = near, used
	rows := gslb.MergeRTTs(near, r.proxies.Rows(), r.beacons.Rows())
	r.mu.Unlock()

	old := r.table.Load()
	if !used {
		rows = nil
	}
	if next := gslb.NewRTTTable(gslb.Settled(rows, maxAge)); !next.Same(old) {
		r.table.Store(next)
		r.n.build.wake()
	}
}

// probedRTTs returns what probes find of each pool from each site: of its fastest endpoint, the
// median of the last latencies, as one round trip.
func probedRTTs(o *config.Objects, views []health.View) []gslb.ProbedRTT {
	type key struct{ site, pool string }
	best := map[key]gslb.ProbedRTT{}
	for _, v := range views {
		trips := roundTrips(o.Probes[o.Pools[v.Pool].Probe])
		for _, x := range v.Vantages {
			if !x.Fresh || !x.Up || x.Abstains || trips == 0 {
				continue
			}
			took := slices.DeleteFunc(slices.Clone(x.Trend), func(d time.Duration) bool { return d <= 0 })
			if len(took) == 0 {
				took = []time.Duration{x.Latency}
			}
			slices.Sort(took)
			ms := float64(took[len(took)/2]) / float64(time.Millisecond) / trips
			k := key{x.Site, v.Pool}
			if old, ok := best[k]; ms > 0 && (!ok || ms < old.Millis) {
				best[k] = gslb.ProbedRTT{Site: x.Site, Pool: v.Pool, Millis: ms, Samples: len(took)}
			}
		}
	}
	return slices.SortedFunc(maps.Values(best), func(a, b gslb.ProbedRTT) int {
		return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Pool, b.Pool))
	})
}

// roundTrips is how many round trips a probe of that kind takes: to connect, for TLS 1.3, and for
// the question and the answer. 0 is a kind that says nothing of the path.
func roundTrips(p config.Probe) float64 {
	tls := func(on bool) float64 {
		if on {
			return 1
		}
		return 0
	}
	switch {
	case p.ICMP != nil, p.UDP != nil, p.DNS != nil && !p.DNS.TCP:
		return 1
	case p.TCP != nil:
		return 1 + tls(p.TCP.Expect != "")
	case p.TLS != nil, p.DNS != nil, p.Redis != nil:
		return 2
	case p.HTTP != nil:
		return 2 + tls(p.HTTP.TLS)
	case p.GRPC != nil:
		return 3 + tls(p.GRPC.TLS)
	}
	return 0
}

// clientsOf returns the prefixes that decisions were made for lately, at most maxNear.
func clientsOf(samples []gslb.Sample) []netip.Prefix {
	seen := map[netip.Prefix]bool{}
	var out []netip.Prefix
	for _, s := range samples {
		p, ok := gslb.RTTPrefix(netip.PrefixFrom(s.Client.Addr, int(s.Client.Source)))
		if ok && !seen[p] && len(out) < maxNear {
			seen[p] = true
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return out
}

// status returns what is known, by source.
func (r *rtts) status() api.RTTs {
	r.mu.Lock()
	sources := []struct {
		name string
		rows map[gslb.RTTKey]gslb.RTT
	}{{"proxies", r.proxies.Rows()}, {"beacons", r.beacons.Rows()}, {"probes", maps.Clone(r.near)}}
	out := api.RTTs{Used: r.used, Rows: []api.RTTRow{}, Seen: api.RTTSources{Proxies: r.samples}}
	r.mu.Unlock()
	if r.beacon != nil {
		out.Seen.Beacons, out.Seen.Refused = r.beacon.Stats()
	}
	for _, s := range sources {
		for k, v := range s.rows {
			out.Rows = append(out.Rows, api.RTTRow{Client: k.Prefix, Pool: k.Pool, Millis: v.Millis, Samples: v.Samples, Last: v.At, Source: s.name})
		}
	}
	slices.SortFunc(out.Rows, func(a, b api.RTTRow) int {
		return cmp.Or(a.Client.Addr().Compare(b.Client.Addr()), cmp.Compare(a.Client.Bits(), b.Client.Bits()), cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Source, b.Source))
	})
	return out
}

var (
	descRTTRows    = prometheus.NewDesc("meridian_rtt_rows", "Round-trip times that are known, of a client prefix and a pool each, by source.", []string{"source"}, nil)
	descRTTSamples = prometheus.NewDesc("meridian_rtt_samples_total", "Samples that were taken, by source.", []string{"source"}, nil)
	descRTTRefused = prometheus.NewDesc("meridian_rtt_beacons_refused_total", "Reports of browsers that were not taken: over the rate, or no sense in them.", nil, nil)
)

// Describe sends nothing: the families are as they come.
func (r *rtts) Describe(chan<- *prometheus.Desc) {}

// Collect sends how much is known.
func (r *rtts) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	rows := map[string]int{"proxies": r.proxies.Len(), "beacons": r.beacons.Len(), "probes": len(r.near)}
	samples := r.samples
	r.mu.Unlock()
	var taken, refused uint64
	if r.beacon != nil {
		taken, refused = r.beacon.Stats()
	}
	for source, n := range rows {
		ch <- prometheus.MustNewConstMetric(descRTTRows, prometheus.GaugeValue, float64(n), source)
	}
	ch <- prometheus.MustNewConstMetric(descRTTSamples, prometheus.CounterValue, float64(samples), "proxies")
	ch <- prometheus.MustNewConstMetric(descRTTSamples, prometheus.CounterValue, float64(taken), "beacons")
	ch <- prometheus.MustNewConstMetric(descRTTRefused, prometheus.CounterValue, float64(refused))
}
