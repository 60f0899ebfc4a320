package admin

import (
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/tracing"
)

// metrics serves the node's metrics from a registry of its own.
func (s *Server) metrics() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collector{s},
	)
	r.MustRegister(s.o.Metrics...)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorLog:            promLog{s},
		MaxRequestsInFlight: 4,
		Timeout:             writeTimeout / 2,
	})
}

// promLog hands the exporter's complaints to the node's log.
type promLog struct{ s *Server }

// Println logs v.
func (l promLog) Println(v ...any) { l.s.o.Log.Warn("metrics", "fault", v) }

// metric is one family: its description and its type, declared once.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func gauge(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("meridian_"+name, help, labels, nil), prometheus.GaugeValue}
}

func counter(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("meridian_"+name+"_total", help, labels, nil), prometheus.CounterValue}
}

// The metrics of a node. Labels are bounded by the configuration, never by what is asked.
var (
	mInfo     = gauge("build_info", "1; which node and version this is.", "node", "site", "version")
	mReady    = gauge("ready", "1 while the node answers for its services.")
	mDegraded = gauge("degraded_reasons", "How many faults the status names; 0 is well.")
	mRevision = gauge("snapshot_revision", "Revision of the snapshot that answers.")
	mPlan     = gauge("plan_info", "1; the hash of the objects that answer. Nodes that agree on it serve the same plan.", "plan")

	mPoolHealthy  = gauge("pool_healthy_ratio", "Share of a pool's endpoint weight that is usable.", "pool", "site")
	mPoolDegraded = gauge("pool_degraded", "1 while a pool is under its minHealthy.", "pool", "site")
	mPoolDrained  = gauge("pool_drained", "1 while a pool is drained.", "pool", "site")
	mEndpointUp   = gauge("endpoint_up", "1 for the verdict up, 0 for down, -1 for unknown.", "pool", "endpoint")

	mQueries   = counter("dns_queries", "Queries by transport.", "transport")
	mResponses = counter("dns_responses", "Responses by rcode.", "rcode")
	mReasons   = counter("dns_decisions", "Decisions by reason.", "reason")
	mOutcomes  = counter("dns_outcomes", "Queries that were resolved, by what that ended in.", "outcome")
	mDropped   = counter("dns_dropped", "Queries without a response, by cause.", "cause")
	mEvents    = counter("dns_events", "What else happened to queries and connections.", "event")
	mAnswers   = counter("dns_answers", "Decisions by service, pool and reason; without a service: of what is gone, or too many to be named.", "service", "pool", "reason")

	mStoreConnected = gauge("store_connected", "1 while the store is reached.")
	mStoreRevision  = gauge("store_revision", "Revision of the store that the objects were read at.")
	mStoreHeld      = gauge("store_held", "1 while what the store holds waits for a confirmation.")
	mStoreFaults    = gauge("store_faults", "Objects of the store that did not validate.")
	mProbes         = counter("health_probes", "Results of probes by class.", "class")
	mLate           = counter("health_probes_late", "Probes that started over an interval late: too many under way.")
	mFlips          = counter("health_flips", "Changes of verdicts.")
	mTargets        = gauge("health_targets", "Endpoints that are probed.")
	mGossip         = counter("gossip_messages", "Messages of the gossip by direction, without broadcasts.", "direction")
	mGossipDropped  = counter("gossip_dropped", "Messages of the gossip that were dropped, by cause.", "cause")
	mRecorded       = counter("trace_queries_recorded", "Queries that workers recorded.")
	mSampled        = counter("trace_queries_sampled", "Queries that were made into spans, by why.", "by")
	mSpansReceived  = counter("trace_spans_received", "Spans that other processes sent here.")
	mSpansExported  = counter("trace_spans_exported", "Spans that the collector took.")
	mSpansPending   = gauge("trace_spans_pending", "Spans that wait for the collector.")
	mTraceDropped   = counter("trace_dropped", "Queries and spans that were dropped rather than waited for, by cause.", "cause")
	mLogTaken       = counter("decision_log_sampled", "Decisions that the decision log looked at.")
	mLogFiltered    = counter("decision_log_filtered", "Of them, those that its filters kept out.")
	mLogWritten     = counter("decision_log_written", "Decisions that were written down, by where: lines or dnstap.", "sink")
	mLogDropped     = counter("decision_log_dropped", "Decisions that were dropped rather than waited for, by where and cause.", "sink", "cause")
	mTraceParents   = counter("trace_parents", "Queries with an EDNS TRACEPARENT option, by what became of it: taken, malformed, refused.", "result")
	mLinks          = counter("trace_links", "Requests of proxies, by how they were linked to decisions: exact, guessed, unsure, stale, forged; the last three are not.", "result")
	mMembers        = gauge("gossip_members", "Members of the gossip by state.", "state")
	mOtherPlan      = gauge("gossip_member_other_plan", "1 for a member that serves another plan than this node.", "member")
	mAbstains       = gauge("health_abstains", "1 while what this node finds is not believed.")
	mHeld           = gauge("health_held", "Endpoints that the votes call down and a guard keeps up.")
	mSuppressed     = gauge("health_suppressed", "Endpoints that are kept out because they flap.")
	mRepeated       = counter("gossip_repeated", "Messages of the gossip that were no newer than what was known.")
	mLoadProxies    = gauge("load_proxies", "Proxies that report their load.", "pool")
	mStreams        = gauge("admin_streams", "Streams open on the admin API.")
)

// collector reads the node at each scrape: nothing is counted twice, nothing goes stale.
type collector struct{ s *Server }

// Describe sends nothing: which families there are depends on the parts of the node.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the state of the node.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	send := func(m metric, v float64, labels ...string) {
		for i, l := range labels {
			labels[i] = strings.ToValidUTF8(l, "�")
		}
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, labels...)
	}
	st := c.s.statusNow()
	send(mInfo, 1, st.Node.Name, st.Node.Site, st.Node.Version)
	send(mReady, number(st.State != api.StateNotReady))
	send(mDegraded, float64(len(st.Reasons)))
	send(mRevision, float64(st.Revision))
	if st.Plan != "" {
		send(mPlan, 1, st.Plan)
	}
	for _, p := range st.Pools {
		send(mPoolHealthy, p.Healthy, p.Name, p.Site)
		send(mPoolDegraded, number(p.Degraded), p.Name, p.Site)
		send(mPoolDrained, number(p.Drained), p.Name, p.Site)
		for _, e := range p.Endpoints {
			send(mEndpointUp, map[string]float64{"up": 1, "down": 0, "unknown": -1}[e.Verdict], p.Name, e.Addr.String())
		}
	}
	if t := st.Traffic; t != nil {
		for _, family := range []struct {
			metric
			counts map[string]uint64
		}{{mQueries, t.Transports}, {mResponses, t.Rcodes}, {mOutcomes, t.Outcomes}, {mReasons, t.Reasons}, {mDropped, t.Dropped}, {mEvents, t.Events}} {
			for label, n := range family.counts {
				send(family.metric, float64(n), label)
			}
		}
		for _, a := range t.Answers {
			send(mAnswers, float64(a.Count), a.Service, a.Pool, a.Reason)
		}
	}
	if st.Store != nil {
		send(mStoreConnected, number(st.Store.Connected))
		send(mStoreRevision, float64(st.Store.Revision))
		send(mStoreHeld, number(st.Store.Held != ""))
		send(mStoreFaults, float64(len(st.Store.Faults)))
	}
	if c.s.o.HealthStats != nil {
		h := c.s.o.HealthStats()
		for class, n := range h.Probes {
			send(mProbes, float64(n), class)
		}
		for cause, n := range h.GossipDropped {
			send(mGossipDropped, float64(n), cause)
		}
		send(mLate, float64(h.Late))
		send(mFlips, float64(h.Flips))
		send(mTargets, float64(h.Targets))
		send(mAbstains, number(h.Abstains))
		send(mHeld, float64(h.Held))
		send(mSuppressed, float64(h.Suppressed))
		send(mRepeated, float64(h.Repeated))
		send(mGossip, float64(h.GossipIn), "in")
		send(mGossip, float64(h.GossipOut), "out")
	}
	if c.s.o.TraceStats != nil {
		t := c.s.o.TraceStats()
		send(mRecorded, float64(t.Recorded))
		for by, n := range t.Sampled {
			send(mSampled, float64(n), by)
		}
		send(mSpansReceived, float64(t.Received))
		send(mSpansExported, float64(t.Exported))
		send(mSpansPending, float64(t.Pending))
		for cause, n := range t.Dropped {
			send(mTraceDropped, float64(n), cause)
		}
		send(mLogTaken, float64(t.Log.Taken))
		send(mLogFiltered, float64(t.Log.Filtered))
		for sink, s := range map[string]tracing.SinkStats{"lines": t.Log.Lines, "dnstap": t.Log.Dnstap} {
			send(mLogWritten, float64(s.Written), sink)
			for cause, n := range s.Dropped {
				send(mLogDropped, float64(n), sink, cause)
			}
		}
		send(mTraceParents, float64(t.Parents.Taken), "taken")
		send(mTraceParents, float64(t.Parents.Malformed), "malformed")
		send(mTraceParents, float64(t.Parents.Refused), "refused")
		send(mLinks, float64(t.Links.Exact), "exact")
		send(mLinks, float64(t.Links.Guessed), "guessed")
		send(mLinks, float64(t.Links.Unsure), "unsure")
		send(mLinks, float64(t.Links.Stale), "stale")
		send(mLinks, float64(t.Links.Forged), "forged")
	}
	members := map[string]int{}
	for _, m := range st.Members {
		members[m.State]++
		if otherPlan(st, &m) {
			send(mOtherPlan, 1, m.Name)
		}
	}
	for state, n := range members {
		send(mMembers, float64(n), state)
	}
	proxies := map[string]int{}
	for _, l := range c.s.loads.list(c.s.o.Now()) {
		proxies[l.Pool]++
	}
	for pool, n := range proxies {
		send(mLoadProxies, float64(n), pool)
	}
	send(mStreams, float64(c.s.streams.Load()))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
