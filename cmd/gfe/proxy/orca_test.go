package proxy

import (
	"context"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	orcadata "github.com/cncf/xds/go/xds/data/orca/v3"
	orcaservice "github.com/cncf/xds/go/xds/service/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/orca"

	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/xds"
)

// grpcServer serves what register adds, on loopback until the test ends.
func grpcServer(t *testing.T, register func(*grpc.Server)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	register(g)
	run(t, func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, g.Stop)
		defer stop()
		return g.Serve(ln)
	})
	return netip.MustParseAddrPort(ln.Addr().String())
}

// TestOutOfBand has a config server tell the period, a gRPC server tell its load, and the load
// arrive at the config server, without a request. A changed configuration ends it.
func TestOutOfBand(t *testing.T) {
	gfetest.Leaks(t)
	recorder := orca.NewServerMetricsRecorder()
	recorder.SetCPUUtilization(0.5)
	recorder.SetNamedUtilization("disk", 0.25)
	backend := grpcServer(t, func(g *grpc.Server) {
		if err := orca.Register(g, orca.ServiceOptions{ServerMetricsProvider: recorder}); err != nil {
			t.Fatal(err)
		}
	})
	const with = ", oobReportingPeriod: 2s"
	text := `
sites: {eu: {lat: 50, lon: 8}}
pools:
  gfe-eu:
    site: eu
    port: 80
    endpoints: [{address: 192.0.2.1}]
    upstream: {pools: {fe-eu: {}}, lrsReportEndpointMetrics: [cpu_utilization, utilization.disk]` + with + `}
  fe-eu: {site: eu, port: ` + strconv.Itoa(int(backend.Port())) + `, endpoints: [{address: 127.0.0.1}]}
`
	server := xds.New(xds.Options{Addr: "127.0.0.1:0", Report: time.Second})
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	run(t, server.Run)
	w := adsWorld(t, nil, 5, text)
	server.Set(w)
	a, err := NewADS(ADSConfig{Server: server.Addr().String(), Creds: insecure.NewCredentials(), Name: "gfe-eu-1", Site: "eu"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	p, _ := start(t, Config{Source: a, Report: 50 * time.Millisecond})
	want := map[string]float64{"cpu_utilization": 0.5, "utilization.disk": 0.25}
	gfetest.Eventually(t, "the load arrives at the config server", func() bool {
		l := server.Loads()
		return len(l) == 1 && l[0].To == "fe-eu" && maps.Equal(l[0].Metrics, want)
	})
	server.Set(adsWorld(t, w, 6, strings.Replace(text, with, "", 1)))
	gfetest.Eventually(t, "nobody is asked any more", func() bool {
		l := p.Load()
		return len(l.Pools) == 1 && l.Pools[0].Metrics == nil
	})
}

// teller is an endpoint that says what the test wants; nil ends the stream.
type teller struct {
	orcaservice.UnimplementedOpenRcaServiceServer
	periods chan time.Duration // asked for
	say     chan *orcadata.OrcaLoadReport
	gone    chan struct{} // a stream ended from the other side
}

func (o *teller) StreamCoreMetrics(r *orcaservice.OrcaLoadReportRequest, st grpc.ServerStreamingServer[orcadata.OrcaLoadReport]) error {
	o.periods <- r.GetReportInterval().AsDuration()
	for {
		select {
		case m := <-o.say:
			if m == nil {
				return nil
			}
			if err := st.Send(m); err != nil {
				return err
			}
		case <-st.Context().Done():
			o.gone <- struct{}{}
			return nil
		}
	}
}

func newTeller(t *testing.T) (*teller, gslb.Endpoint) {
	o := &teller{periods: make(chan time.Duration, 8), say: make(chan *orcadata.OrcaLoadReport), gone: make(chan struct{}, 8)}
	return o, at(grpcServer(t, func(g *grpc.Server) { orcaservice.RegisterOpenRcaServiceServer(g, o) }))
}

func cpu(v float64) *orcadata.OrcaLoadReport { return &orcadata.OrcaLoadReport{CpuUtilization: v} }

// TestOutOfBandStreams: the mean is over the endpoints that say something; a broken stream is
// opened again and an endpoint that leaves is left alone; one without the service serves on.
func TestOutOfBandStreams(t *testing.T) {
	gfetest.Leaks(t)
	one, e1 := newTeller(t)
	two, e2 := newTeller(t)
	mute, _ := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Endpoint-Load-Metrics", "TEXT cpu_utilization=0.5")
		w.Header().Set("Endpoint-Load-Metrics-Bin", "CQAAAAAAAOA/")
	})
	f := newFeed()
	p, base := start(t, Config{Source: f})
	assign := func(revision uint64, es ...gslb.Endpoint) {
		a := to(revision, es...)
		a.OutOfBand = OutOfBand{5 * time.Second, []string{"cpu_utilization"}}
		f.set(a)
	}
	want := func(why string, v float64) {
		t.Helper()
		gfetest.Eventually(t, why, func() bool {
			got, known := p.Load().Pools[0].Metrics["cpu_utilization"]
			return got == v && known == (v != 0)
		})
	}
	assign(1, e1, e2, mute)
	for _, o := range []*teller{one, two} {
		if d := <-o.periods; d != 5*time.Second {
			t.Errorf("asked for a report every %v, want 5s", d)
		}
	}
	one.say <- cpu(0.25)
	want("one endpoint speaks", 0.25)
	two.say <- cpu(0.75)
	want("the mean of two", 0.5)
	two.say <- cpu(math.NaN())
	want("nonsense is left out", 0.25)
	one.say <- nil
	want("what is not renewed is not known", 0)
	<-one.periods // asked again
	one.say <- cpu(0.125)
	want("it speaks again", 0.125)

	assign(2, e2, mute)
	<-one.gone
	want("the endpoint has left", 0)
	two.say <- cpu(1)
	want("the other goes on", 1)

	assign(3, mute)
	<-two.gone
	a := get(t, base+"/")
	check(t, a, http.StatusOK)
	for _, h := range []string{headerORCA, headerORCABin} {
		if v := a.Header.Get(h); v != "" {
			t.Errorf("the user sees %s: %s", h, v)
		}
	}
}

func TestReadReport(t *testing.T) {
	many := map[string]float64{}
	for i := range 2 * maxMetrics {
		many[strconv.Itoa(i)] = 1
	}
	r := &orcadata.OrcaLoadReport{
		CpuUtilization: 1.5, MemUtilization: -1, ApplicationUtilization: math.Inf(1), RpsFractional: 9, Eps: math.NaN(),
		Utilization:  map[string]float64{"disk": 0.5, "bad": 2e9},
		NamedMetrics: map[string]float64{"a.b": 0},
	}
	type m = map[string]float64
	for _, tt := range []struct {
		names string
		want  m
	}{
		{"", m{}},
		{"cpu_utilization rps_fractional", m{"cpu_utilization": 1.5, "rps_fractional": 9}},
		{"mem_utilization application_utilization eps", m{}},
		{"utilization.disk utilization.bad utilization.none utilization", m{"utilization.disk": 0.5}},
		{"utilization.* named_metrics.*", m{"utilization.disk": 0.5, "named_metrics.a.b": 0}},
		{"named_metrics.a.b unknown unknown.x request_cost.*", m{"named_metrics.a.b": 0}},
	} {
		if got := readReport(r, strings.Fields(tt.names)); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %v, want %v", tt.names, got, tt.want)
		}
	}
	if got := readReport(&orcadata.OrcaLoadReport{NamedMetrics: many}, []string{"named_metrics.*"}); len(got) != maxMetrics {
		t.Errorf("%d metrics kept, want %d", len(got), maxMetrics)
	}
}

// TestOutOfBandIsBounded: of more endpoints than may be asked, some are not.
func TestOutOfBandIsBounded(t *testing.T) {
	gfetest.Leaks(t)
	u, err := NewUpstream(UpstreamConfig{Pool: "gfe", Source: newFeed(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	dead, _ := gfetest.Refusing(t)
	named := map[*peer]bool{}
	for range maxOutOfBand + 5 {
		named[&peer{pool: &pool{name: "fe"}, addr: dead}] = true
	}
	var b outOfBand
	b.follow(u, OutOfBand{Every: time.Second}, named)
	if len(b.streams) != maxOutOfBand {
		t.Errorf("%d streams, want %d", len(b.streams), maxOutOfBand)
	}
	b.follow(u, OutOfBand{}, nil)
	if len(b.streams) != 0 {
		t.Errorf("%d streams are left", len(b.streams))
	}
}
