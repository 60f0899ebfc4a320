package node

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meridian-gslb/meridian/admin"
	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/dns"
	"github.com/meridian-gslb/meridian/gslb/store"
	"github.com/meridian-gslb/meridian/health"
	"github.com/meridian-gslb/meridian/tracing"
	"github.com/meridian-gslb/meridian/xds"
)

// adminOptions shows the running node to the admin API.
func (n *Node) adminOptions() admin.Options {
	nc := n.opts.File.Node
	return admin.Options{
		Addr: nc.EffectiveAdmin().String(),
		Node: api.Node{
			Name: nc.Name, Site: nc.Site, Version: n.opts.Version, Started: time.Now(), DNS: nc.DNS,
		},
		Token:    nc.AdminToken,
		Log:      n.log,
		Snapshot: n.Snapshot,
		Ready:    n.serves,
		At:       n.build.archive.At,
		Recent:   n.dns.Recent,
		View: func() store.View {
			if v := n.build.lastView(); v != nil {
				return *v
			}
			return store.View{} // unlike a store without objects
		},
		Check:       xds.Check,
		Store:       n.store,
		Health:      n.health.Views,
		Members:     n.members,
		Counters:    n.counters,
		Traces:      n.traces.Memory(),
		Wrap:        n.cold.requests,
		OTLP:        n.traces.Receiver(),
		Degraded:    func() []string { return slices.Concat(n.build.faults(), n.xds.faults(), n.partFaults()) },
		HealthStats: n.health.Stats,
		TraceStats:  n.traces.Stats,
		Extra:       n.xds.handlers(n.opts.Extra),
		Metrics:     []prometheus.Collector{n.xds, n.rtts},
		RTTs:        n.rtts.status,
		OnRTTs:      n.rtts.report,
	}
}

// serves says whether queries are answered from any zone.
func (n *Node) serves() (ok bool, reason string) {
	switch d := n.data.Load(); {
	case d == nil:
		return false, "nothing to serve yet"
	case len(d.Zones.Zones()) == 0:
		return false, "no zone is served"
	}
	return true, ""
}

// partFaults says in a sentence each what the parts of the node miss.
func (n *Node) partFaults() []string {
	nc := n.opts.File.Node
	spans := n.traces.Stats()
	faults := partFaults(n.places.Err(), spans, nc.OTLP.Endpoint, nc.Gossip.Join, n.health.Members())
	for _, sink := range []tracing.SinkStats{spans.Log.Lines, spans.Log.Dnstap} {
		if sink.Fault != "" {
			faults = append(faults, "decisions are not written down: "+sink.Fault)
		}
	}
	return append(faults, n.names.faults()...)
}

func partFaults(places error, spans tracing.Stats, collector string, join []string, members []health.Member) (faults []string) {
	if places != nil {
		faults = append(faults, fmt.Sprintf("geo databases refused, the old ones stay: %v", places))
	}
	if refused := spans.Dropped[tracing.DropRefused]; collector != "" && refused > 0 && spans.Exported == 0 {
		faults = append(faults, fmt.Sprintf("the collector %s has refused all %d spans so far", collector, refused))
	}
	if len(join) > 0 && !slices.ContainsFunc(members, func(m health.Member) bool { return m.State == "alive" }) {
		faults = append(faults, fmt.Sprintf("gossip: no peer answers at %s; is the key the same?", strings.Join(join, ", ")))
	}
	return faults
}

// members are the nodes of the gossip, this one included.
func (n *Node) members() []api.Member {
	var out []api.Member
	for _, m := range n.health.Members() {
		out = append(out, api.Member{
			Name: m.Name, Site: m.Site, Addr: m.Address, State: m.State, Role: m.Role, Plan: m.Info, Abstains: m.Abstains, Key: m.Key,
		})
	}
	return out
}

// counters are what the DNS server has counted.
func (n *Node) counters() api.Counters { return countersOf(n.dns.Stats()) }

// countersOf puts s as the API has it: what is empty is there, and empty.
func countersOf(s dns.Stats) api.Counters {
	c := api.Counters{
		Time:       time.Now(),
		Queries:    s.UDP + s.TCP,
		Transports: map[string]uint64{"udp": s.UDP, "tcp": s.TCP},
		Rcodes:     s.Rcodes,
		Outcomes:   s.Outcomes,
		Reasons:    s.Reasons,
		Dropped:    map[string]uint64{"not-a-query": s.Dropped, "unsent": s.Unsent, "limited": s.Limited},
		Events: map[string]uint64{
			"full-path": s.Full, "truncated": s.Truncated, "malformed": s.Malformed, "panics": s.Panics,
			"tcp-accepted": s.TCPAccepted, "tcp-evicted": s.TCPEvicted, "tcp-refused": s.TCPRefused,
		},
		Answers: []api.Answers{},
	}
	for _, p := range s.Pools {
		c.Answers = append(c.Answers, api.Answers{Service: p.Service, Pool: p.Pool, Reason: p.Reason, Count: p.Decisions})
	}
	return c
}
