package xds

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	loadstats "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// Bounds of what a proxy may claim. What is beyond them is capped or ignored, and named.
const (
	maxRate       = 1e6       // requests per second that one proxy sends to one pool
	maxInProgress = 1_000_000 // of one proxy, to one pool
	maxInterval   = time.Hour // of one report
	minInterval   = 10 * time.Millisecond
	maxMetrics    = 32  // of ORCA, of one proxy for one pool
	maxMetric     = 1e9 // mean of an ORCA metric
)

// StreamLoadStats takes the load reports of one proxy (LRS).
func (s *Server) StreamLoadStats(st loadstats.LoadReportingService_StreamLoadStatsServer) error {
	named := s.conns.closeAfter(st.Context(), maxHello, func() { s.log.Debug("a stream of load reports does not say whose they are: its connection is closed") })
	first, err := st.Recv()
	named()
	if err != nil {
		return err
	}
	node := first.GetNode()
	if node.GetCluster() == "" || node.GetId() == "" {
		return status.Error(codes.InvalidArgument, "the first report has no node; expected node.id, and node.cluster, the pool of the proxy")
	}
	if err := authorise(st.Context(), node.GetCluster()); err != nil {
		return err
	}
	defer s.reporting.Add(-1)
	if s.reporting.Add(1) > maxReporters {
		return status.Errorf(codes.ResourceExhausted, "%d proxies report already; expected fewer: try another node", maxReporters)
	}
	r := s.loads.join(clip(node.GetCluster()), clip(node.GetId()), s.o.Now())
	defer s.loads.lose(r)
	if err := st.Send(&loadstats.LoadStatsResponse{
		SendAllClusters:       true,
		LoadReportingInterval: durationpb.New(s.o.Report),
	}); err != nil {
		return err
	}
	if len(first.GetClusterStats()) > 0 {
		s.report(r, first.GetClusterStats())
	}
	for {
		req, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.report(r, req.GetClusterStats())
	}
}

// report takes one report: what it names has that load, and what it does not name has none.
func (s *Server) report(r *reporter, list []*endpoint.ClusterStats) {
	objects := &config.Objects{}
	if w := s.world.Load(); w != nil && w.objects != nil {
		objects = w.objects
	}
	samples, faults := readReport(list, objects, r.pool)
	if s.loads.take(r, samples, faults, s.o.Now()) && s.o.Grew != nil {
		s.o.Grew()
	}
	for _, f := range faults {
		s.log.Debug("load report", "proxy", r.id, "pool", r.pool, "fault", f)
	}
}

// sampleKey names what a proxy reports on: requests by one upstream to one pool, in one
// priority.
type sampleKey struct {
	upstream, to string
	priority     uint32
}

// sample is the load of one key over one interval.
type sample struct {
	rate, errors float64 // per second
	dropped      float64 // per second; of the upstream, counted at the first of its keys
	inProgress   float64
	seconds      float64
	metrics      map[string]float64 // means of what endpoints say of themselves (ORCA)
}

// readReport reads a report from outside, of a proxy of that pool. Clusters that are none of
// its upstreams are left out. Each fault names what was not believed.
func readReport(list []*endpoint.ClusterStats, o *config.Objects, pool string) (map[sampleKey]sample, []string) {
	out := map[sampleKey]sample{}
	upstreams := o.Pools[pool].Upstreams()
	var faults []string
	fault := func(format string, args ...any) {
		if len(faults) < 8 {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	for _, cs := range list {
		u, ok := upstreams[cs.GetClusterName()]
		if !ok {
			continue // of the proxy's own: the config server itself, say
		}
		name := cs.GetClusterName()
		interval := cs.GetLoadReportInterval().AsDuration()
		if cs.GetLoadReportInterval().CheckValid() != nil || interval < minInterval || interval > maxInterval {
			fault("%s: interval %v: expected %v to %v", name, interval, minInterval, maxInterval)
			continue
		}
		seconds := interval.Seconds()
		// more returns have and n more of the interval, in a unit of per seconds.
		more := func(what string, have float64, n uint64, per, most float64) float64 {
			if v := have + float64(n)/per; v <= most {
				return v
			}
			fault("%s: %s %d in %v: capped to %.0f", name, what, n, interval, most*per)
			return most
		}
		dropped := more("dropped", 0, cs.GetTotalDroppedRequests(), seconds, maxRate)
		for _, l := range cs.GetUpstreamLocalityStats() {
			to := l.GetLocality().GetSubZone()
			if _, ok := u.Pools[to]; !ok {
				fault("%s: locality %s is of no pool of it", name, localityText(l.GetLocality()))
				continue
			}
			if at, want := l.GetLocality(), localityOf(o, to); at.GetRegion() != want.Region || at.GetZone() != want.Zone {
				fault("%s: locality %s: expected %s, where pool %s is", name, localityText(l.GetLocality()), localityText(want), to)
				continue
			}
			priority, pools := l.GetPriority(), uint32(len(u.Pools))
			if priority >= pools {
				fault("%s: pool %s: priority %d: expected below %d, the number of its pools", name, to, priority, pools)
				priority = pools - 1
			}
			key := sampleKey{name, to, priority}
			sm := out[key] // one that is named before: both count
			sm.seconds = seconds
			sm.rate = more("issued", sm.rate, l.GetTotalIssuedRequests(), seconds, maxRate)
			sm.errors = more("errors", sm.errors, l.GetTotalErrorRequests(), seconds, maxRate)
			sm.inProgress = more("in progress", sm.inProgress, l.GetTotalRequestsInProgress(), 1, maxInProgress)
			sm.dropped, dropped = min(sm.dropped+dropped, maxRate), 0
			if sm.metrics == nil {
				sm.metrics = map[string]float64{}
			}
			maps.Copy(sm.metrics, readMetrics(l, func(format string, args ...any) { fault("%s: pool %s: "+format, append([]any{name, to}, args...)...) }))
			out[key] = sm
		}
		if dropped > 0 && len(u.Pools) > 0 { // all was dropped, or what names the rest is not believed: demand all the same
			key := sampleKey{upstream: name, to: slices.Min(slices.Collect(maps.Keys(u.Pools)))}
			sm := out[key]
			sm.seconds, sm.dropped = seconds, min(sm.dropped+dropped, maxRate)
			out[key] = sm
		}
	}
	return out, faults
}

// readMetrics returns the means of what endpoints said of themselves, by name.
func readMetrics(l *endpoint.UpstreamLocalityStats, fault func(string, ...any)) map[string]float64 {
	out := map[string]float64{}
	add := func(name string, n uint64, total float64) {
		mean := total / float64(max(n, 1))
		switch {
		case n == 0:
		case !(mean >= 0 && mean <= maxMetric): // NaN is outside
			fault("metric %.64q %v: expected 0 to %g", name, mean, float64(maxMetric))
		case len(out) >= maxMetrics:
			fault("over %d metrics", maxMetrics)
		default:
			out[clip(name)] = mean
		}
	}
	for _, m := range l.GetLoadMetricStats() {
		add(m.GetMetricName(), m.GetNumRequestsFinishedWithMetric(), m.GetTotalMetricValue())
	}
	for name, m := range map[string]*endpoint.UnnamedEndpointLoadMetricStats{
		"cpu_utilization": l.GetCpuUtilization(), "mem_utilization": l.GetMemUtilization(), "application_utilization": l.GetApplicationUtilization(),
	} {
		if m != nil {
			add(name, m.GetNumRequestsFinishedWithMetric(), m.GetTotalMetricValue())
		}
	}
	return out
}

func localityText(l *core.Locality) string {
	return clip(fmt.Sprintf("%q/%q/%q", l.GetRegion(), l.GetZone(), l.GetSubZone()))
}
