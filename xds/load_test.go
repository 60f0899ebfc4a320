package xds

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	loadstats "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// stats is a report on one cluster.
func stats(cluster string, interval time.Duration, localities ...*endpoint.UpstreamLocalityStats) *endpoint.ClusterStats {
	return &endpoint.ClusterStats{ClusterName: cluster, LoadReportInterval: durationpb.New(interval), UpstreamLocalityStats: localities}
}

func issued(pool string, n uint64) *endpoint.UpstreamLocalityStats {
	return &endpoint.UpstreamLocalityStats{Locality: &core.Locality{Region: "eu", Zone: "eu-1", SubZone: pool}, TotalIssuedRequests: n, TotalSuccessfulRequests: n}
}

func placed(region, zone, pool string) *endpoint.UpstreamLocalityStats {
	l := issued(pool, 100)
	l.Locality.Region, l.Locality.Zone = region, zone
	return l
}

// reportObjects are a pool gfe with that upstream, which is pool fe at site eu-1 of region eu.
func reportObjects(upstream string) *config.Objects {
	return &config.Objects{
		Sites: map[string]config.Site{"eu-1": {Region: "eu"}},
		Pools: map[string]config.Pool{
			"gfe": {Proxy: &config.Proxy{Upstreams: map[string]config.Upstream{upstream: {Steering: config.Steering{Pools: map[string]config.PoolRef{"fe": {}}}}}}},
			"fe":  {Site: "eu-1"},
		},
	}
}

// TestReports reads reports as they come from outside.
func TestReports(t *testing.T) {
	up := reportObjects("upstream")
	with := func(f func(*endpoint.UpstreamLocalityStats)) *endpoint.UpstreamLocalityStats {
		l := issued("fe", 100)
		f(l)
		return l
	}
	metric := func(n uint64, total float64) *endpoint.UpstreamLocalityStats {
		return with(func(l *endpoint.UpstreamLocalityStats) {
			l.LoadMetricStats = []*endpoint.EndpointLoadMetricStats{{MetricName: "m", NumRequestsFinishedWithMetric: n, TotalMetricValue: total}}
		})
	}
	tests := []struct {
		name        string
		report      *endpoint.ClusterStats
		rate, other float64 // other: of what the case is about
		fault       string
	}{
		{"plain", stats("upstream", 2*time.Second, issued("fe", 100)), 50, 0, ""},
		{"a pool twice", stats("upstream", time.Second, issued("fe", 100), issued("fe", 50)), 150, 0, ""},
		{"no traffic", stats("upstream", time.Second), 0, 0, ""},
		{"of the proxy's own", stats("gslb_xds", time.Second, issued("fe", 100)), 0, 0, ""},
		{"another's locality", stats("upstream", time.Second, issued("be", 100)), 0, 0, `upstream: locality "eu"/"eu-1"/"be" is of no pool of it`},
		{"another's site", stats("upstream", time.Second, placed("us", "us", "fe")), 0, 0, `upstream: locality "us"/"us"/"fe": expected "eu"/"eu-1"/"fe", where pool fe is`},
		{"another's region", stats("upstream", time.Second, placed("us", "eu-1", "fe")), 0, 0, `locality "us"/"eu-1"/"fe": expected "eu"/"eu-1"/"fe"`},
		{"no zone", stats("upstream", time.Second, placed("eu", "", "fe")), 0, 0, `locality "eu"/""/"fe": expected "eu"/"eu-1"/"fe"`},
		{"pool alone", stats("upstream", time.Second, placed("", "", "fe")), 0, 0, `locality ""/""/"fe": expected "eu"/"eu-1"/"fe"`},
		{"its own beside another's", stats("upstream", time.Second, placed("us", "us", "fe"), issued("fe", 7)), 7, 0, `locality "us"/"us"/"fe"`},
		{"no locality", stats("upstream", time.Second, &endpoint.UpstreamLocalityStats{TotalIssuedRequests: 5}), 0, 0, `locality ""/""/"" is of no pool`},
		{"absurd rate", stats("upstream", time.Second, issued("fe", math.MaxUint64)), maxRate, 0, "issued 18446744073709551615 in 1s: capped to 1000000"},
		{"absurd in sum", stats("upstream", time.Second, issued("fe", maxRate-1), issued("fe", 2), issued("fe", 7)), maxRate, 0, "issued 7 in 1s: capped to 1000000"},
		{"metrics of both", stats("upstream", time.Second, metric(4, 2), issued("fe", 1)), 101, 0.5, ""},
		{"absurd in progress", stats("upstream", time.Second, with(func(l *endpoint.UpstreamLocalityStats) { l.TotalRequestsInProgress = 1 << 60 })), 100, 0, "in progress 1152921504606846976 in 1s: capped"},
		{"absurd priority", stats("upstream", time.Second, with(func(l *endpoint.UpstreamLocalityStats) { l.Priority = 4e9 })), 100, 0, "priority 4000000000: expected below 1"},
		{"no interval", stats("upstream", 0, issued("fe", 100)), 0, 0, "interval 0s: expected 10ms to 1h0m0s"},
		{"negative interval", stats("upstream", -time.Second, issued("fe", 100)), 0, 0, "interval -1s"},
		{"broken interval", &endpoint.ClusterStats{ClusterName: "upstream", LoadReportInterval: &durationpb.Duration{Seconds: 1, Nanos: -5}, UpstreamLocalityStats: []*endpoint.UpstreamLocalityStats{issued("fe", 1)}}, 0, 0, "interval"},
		{"metric", stats("upstream", time.Second, metric(4, 2)), 100, 0.5, ""},
		{"metric that is no number", stats("upstream", time.Second, metric(4, math.NaN())), 100, 0, `metric "m" NaN: expected 0 to 1e+09`},
		{"negative metric", stats("upstream", time.Second, metric(4, -8)), 100, 0, `metric "m" -2`},
		{"infinite metric", stats("upstream", time.Second, metric(4, math.Inf(1))), 100, 0, `metric "m" +Inf`},
		{"metric of no request", stats("upstream", time.Second, metric(0, 8)), 100, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			samples, faults := readReport([]*endpoint.ClusterStats{tt.report}, up, "gfe")
			s := samples[sampleKey{"upstream", "fe", 0}]
			if s.rate != tt.rate || s.metrics["m"] != tt.other {
				t.Errorf("rate %v and metric %v, want %v and %v", s.rate, s.metrics["m"], tt.rate, tt.other)
			}
			if got := strings.Join(faults, "; "); (tt.fault == "") != (got == "") || !strings.Contains(got, tt.fault) {
				t.Errorf("faults %q, want %q", got, tt.fault)
			}
		})
	}
}

// TestDropsAreDemand counts what proxies drop once, however they name where the rest went.
func TestDropsAreDemand(t *testing.T) {
	up := reportObjects("upstream")
	for name, localities := range map[string][]*endpoint.UpstreamLocalityStats{
		"with a pool": {issued("fe", 10)}, "a pool twice": {issued("fe", 4), issued("fe", 6)}, "all dropped": nil, "with what is not believed": {issued("be", 10)},
	} {
		report := stats("upstream", 2*time.Second, localities...)
		report.TotalDroppedRequests = 30
		samples, _ := readReport([]*endpoint.ClusterStats{report}, up, "gfe")
		sum := 0.0
		for _, s := range samples {
			sum += s.dropped
		}
		if sum != 15 {
			t.Errorf("%s: %v dropped a second, want 15", name, sum)
		}
	}
}

// TestDedicatedMetrics reads ORCA's own fields, where gRPC clients put them.
func TestDedicatedMetrics(t *testing.T) {
	l := issued("fe", 1)
	l.CpuUtilization = &endpoint.UnnamedEndpointLoadMetricStats{NumRequestsFinishedWithMetric: 10, TotalMetricValue: 3}
	got := readMetrics(l, func(f string, a ...any) { t.Errorf(f, a...) })
	if got["cpu_utilization"] != 0.3 {
		t.Errorf("metrics %v, want cpu_utilization 0.3", got)
	}
}

// TestLoads follows averages over time: absent is zero, lost is frozen, gone is forgotten.
func TestLoads(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newLoads(time.Second)
	key := sampleKey{"upstream", "fe", 0}
	rate := func() float64 {
		sum := 0.0
		for _, x := range l.list(now) {
			sum += x.Rate
		}
		return sum
	}
	near := func(what string, want, within float64) {
		t.Helper()
		if got := rate(); math.Abs(got-want) > within {
			t.Errorf("%s: rate %v, want %v ± %v", what, got, want, within)
		}
	}
	r := l.join("gfe", "one", now)
	report := func(r *reporter, rate float64) {
		now = now.Add(time.Second)
		l.take(r, map[sampleKey]sample{key: {rate: rate, seconds: 1}}, nil, now)
	}
	report(r, 100)
	near("the first report counts in full", 100, 1e-9)
	report(r, 100)
	near("steady", 100, 1e-9)
	report(r, 120)
	near("what chance explains is seen by two thirds", 112.6, 1)
	report(r, 200)
	near("what it does not, at once", 200, 1e-9)
	for range 20 {
		report(r, 200)
	}
	near("and then as a whole", 200, 1)

	now = now.Add(time.Second)
	l.take(r, nil, nil, now)
	near("absent is zero, on the way", 200*math.Exp(-1/3.0), 2)

	before := rate()
	l.lose(r)
	now = now.Add(30 * time.Second)
	near("lost is frozen", before, 1e-9)
	if list := l.list(now); list[0].Frozen != 1 || list[0].Age < 30*time.Second {
		t.Errorf("loads %+v, want one frozen, 30 s old", list)
	}
	again := l.join("gfe", "one", now)
	near("back, with what it had", before, 1e-9)
	for range 20 {
		report(again, 50)
	}
	near("back", 50, 1)
	l.take(r, map[sampleKey]sample{key: {rate: 1e6, seconds: 1}}, nil, now)
	near("the old stream has no say", 50, 1)
	if f := l.faults(); len(f) != 1 || f[0].Proxy != "one" || !strings.Contains(f[0].What, "same node.id") {
		t.Errorf("faults %+v, want one that names the proxy that two streams are of", f)
	}

	other := l.join("gfe", "two", now)
	report(other, 30)
	near("two proxies add up", 80, 1)
	if list := l.list(now); len(list) != 1 || list[0].Proxies != 2 {
		t.Errorf("loads %+v, want one pool with two proxies", list)
	}
	l.lose(again)
	l.lose(other)
	now = now.Add(forgetAfter + time.Second)
	near("gone is forgotten", 0, 0)
}

// TestUntimelyReports names a proxy that reports in another interval than it was asked for, but
// not for one that was late, and takes its load all the same.
func TestUntimelyReports(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newLoads(time.Second)
	key := sampleKey{"upstream", "fe", 0}
	r := l.join("gfe", "one", now)
	report := func(seconds float64) {
		now = now.Add(time.Duration(seconds * float64(time.Second)))
		l.take(r, map[sampleKey]sample{key: {rate: 50, seconds: seconds}}, nil, now)
	}
	for range 5 {
		report(1)
		report(10)
		report(10)
		report(1.3)
	}
	if f := l.faults(); len(f) != 0 {
		t.Errorf("late now and then: faults %+v, want none", f)
	}
	for _, seconds := range []float64{9.5, 10, 10.5, 10} {
		report(seconds)
	}
	if f := l.faults(); len(f) != 1 || f[0].Proxy != "one" || f[0].What != "reports every 8s, about: expected every 1s, as it was asked to" {
		t.Errorf("faults %+v, want one that names the interval", f)
	}
	if got := l.list(now); len(got) != 1 || math.Abs(got[0].Rate-50) > 1e-6 {
		t.Errorf("loads %+v, want the 50 a second that it reports", got)
	}
}

// TestLoadIsBounded checks what stays of a proxy that says ever new nonsense.
func TestLoadIsBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newLoads(time.Second)
	r := l.join("gfe", "one", now)
	for i := range 1000 {
		now = now.Add(time.Second)
		l.take(r, map[sampleKey]sample{{"u", "p", 0}: {rate: 1, seconds: 1, metrics: map[string]float64{fmt.Sprint(i): 1}}}, []string{fmt.Sprintf("fault %d", i)}, now)
	}
	if n := len(l.faults()); n != maxFaulty {
		t.Errorf("%d faults are kept, want %d", n, maxFaulty)
	}
	if n := len(l.list(now)[0].Metrics); n > maxMetrics {
		t.Errorf("%d metrics are kept, want at most %d", n, maxMetrics)
	}
	for i := range maxReporters + 10 {
		l.join("gfe", fmt.Sprint(i), now)
	}
	if n := len(l.reporters); n > maxReporters {
		t.Errorf("%d proxies are kept, want at most %d", n, maxReporters)
	}
}

// TestLoadStream reports over the wire, and sees the assignment spill.
func TestLoadStream(t *testing.T) {
	var grown atomic.Int64
	s := serve(t, Options{Report: 100 * time.Millisecond, Grew: func() { grown.Add(1) }})
	text := fleet("[fe-eu1, fe-us]", "")
	w := world(t, nil, text, state{})
	s.Set(w)
	cc, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	st, err := loadstats.NewLoadReportingServiceClient(cc).StreamLoadStats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(node *core.Node, list ...*endpoint.ClusterStats) {
		t.Helper()
		if err := st.Send(&loadstats.LoadStatsRequest{Node: node, ClusterStats: list}); err != nil {
			t.Fatal(err)
		}
	}
	send(&core.Node{Id: "one", Cluster: "gfe"})
	res := within(t, "the first answer", st.Recv)
	if !res.SendAllClusters || res.LoadReportingInterval.AsDuration() != 100*time.Millisecond {
		t.Errorf("answer %v: want all clusters, every 100 ms", res)
	}
	send(nil, stats("upstream", time.Second, issued("fe-eu1", 200), issued("nobody", 7)))
	eventually(t, 10*time.Second, func() string {
		if l := s.PoolLoads(); len(l) != 1 || l[0] != (PoolLoad{"gfe", "upstream", "fe-eu1", 200}) {
			return fmt.Sprintf("loads %+v", l)
		}
		return ""
	})
	eventually(t, patience, func() string {
		if n := grown.Load(); n != 1 {
			return fmt.Sprintf("growth was told %d times, want once", n)
		}
		return ""
	})
	if l := s.Loads(); l[0].Site != "eu-1" || l[0].Frozen != 0 {
		t.Errorf("loads %+v: want site eu-1, none frozen", l)
	}
	if f := s.LoadFaults(); len(f) != 1 || f[0].Proxy != "one" || !strings.Contains(f[0].What, "nobody") {
		t.Errorf("faults %+v: want one that names the locality", f)
	}
	w = world(t, w, text, state{loads: s.PoolLoads()})
	expect(t, "with the load", assignmentText(message(t, w, "gfe", Envoy, Endpoints, "upstream@gfe", &endpoint.ClusterLoadAssignment{})), "0:fe-eu1×500, 0:fe-us×500")
	cancel()
	eventually(t, 10*time.Second, func() string {
		if l := s.Loads(); len(l) != 1 || l[0].Frozen != 1 || l[0].Rate != 200 {
			return fmt.Sprintf("loads %+v; want it frozen", l)
		}
		return ""
	})
}

// FuzzReport reads any numbers: what comes out is finite and within bounds.
func FuzzReport(f *testing.F) {
	f.Add(uint64(1), uint64(2), int64(1e9), 0.5, uint64(3))
	f.Add(uint64(math.MaxUint64), uint64(math.MaxUint64), int64(-1), math.NaN(), uint64(0))
	up := reportObjects("u")
	f.Fuzz(func(t *testing.T, n, errs uint64, ns int64, total float64, finished uint64) {
		l := issued("fe", n)
		l.TotalErrorRequests, l.TotalRequestsInProgress = errs, errs
		l.LoadMetricStats = []*endpoint.EndpointLoadMetricStats{{MetricName: "m", NumRequestsFinishedWithMetric: finished, TotalMetricValue: total}}
		cs := stats("u", time.Duration(ns), l)
		cs.TotalDroppedRequests = n
		samples, _ := readReport([]*endpoint.ClusterStats{cs}, up, "gfe")
		a := &average{}
		for _, s := range samples {
			a.add(s)
		}
		for what, v := range map[string]float64{"rate": a.rate, "errors": a.errors, "dropped": a.dropped} {
			if !(v >= 0 && v <= maxRate*1.0001) {
				t.Errorf("%s %v, want 0 to %g", what, v, maxRate)
			}
		}
		if m, ok := a.metrics["m"]; ok && !(m >= 0 && m <= maxMetric) {
			t.Errorf("metric %v", m)
		}
	})
}
