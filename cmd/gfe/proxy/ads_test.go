package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	eds "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/xds"
)

const adsObjects = `
sites: {eu: {lat: 50, lon: 8}, us: {lat: 39, lon: -77}}
probes: {accept: {tcp: {}}}
pools:
  gfe: {site: eu, port: 80, endpoints: [{address: 192.0.2.1}], upstream: [fe-eu, fe-us]}
  fe-eu: {site: eu, port: 81, probe: accept, endpoints: [{address: 10.0.0.1}, {address: 10.0.0.2, weight: 2}, {address: 10.0.0.3}]}
  fe-us: {site: us, port: 82, endpoints: [{address: "2001:db8::1"}]}
  fe-none: {site: us, port: 82, endpoints: [{address: "2001:db8::2"}]}
`

// adsWorld is what the config server says, with those endpoints of fe-eu down.
func adsWorld(t *testing.T, prev *xds.World, revision uint64, text string, down ...string) *xds.World {
	t.Helper()
	o, err := config.ParseObjects("t.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	in := gslb.Inputs{Revision: revision, Objects: o, Verdicts: map[gslb.EndpointID]gslb.Verdict{}, Now: time.Now()}
	for _, d := range down {
		in.Verdicts[gslb.EndpointID{Pool: "fe-eu", Addr: netip.MustParseAddr(d)}] = gslb.Down
	}
	s, err := gslb.Build(nil, in)
	if err != nil {
		t.Fatal(err)
	}
	return xds.Build(prev, xds.Inputs{Snapshot: s, Objects: o})
}

func adsText(a Assignment) string {
	var out []string
	for _, h := range a.Hops {
		s := fmt.Sprintf("%d:%s@%s×%d", h.Priority, h.Pool, h.Site, h.Weight)
		for _, e := range h.Endpoints {
			s += fmt.Sprintf(" %s×%d", netip.AddrPortFrom(e.Addr, e.Port), e.Weight)
			if e.Verdict == gslb.Down {
				s += "-down"
			}
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

// TestADS follows a real config server: the assignment, a change, another node with an older
// revision; and reports load to it.
func TestADS(t *testing.T) {
	gfetest.Leaks(t)
	server := xds.New(xds.Options{Addr: "127.0.0.1:0", Report: time.Second})
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Run(ctx) }()
	a, err := NewADS(ADSConfig{Server: server.Addr().String(), Creds: insecure.NewCredentials(), Name: "gfe-1", Site: "eu"})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan Assignment, 8)
	followed := make(chan error, 1)
	go func() { followed <- a.Follow(ctx, "gfe", func(x Assignment) { got <- x }) }()
	want := func(revision uint64, text string) {
		t.Helper()
		select {
		case x := <-got:
			if x.Revision != revision || adsText(x) != text || x.Plan == "" {
				t.Errorf("revision %d of plan %q: %s\nwant %d: %s", x.Revision, x.Plan, adsText(x), revision, text)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no assignment; want revision %d: %s", revision, text)
		}
	}
	w := adsWorld(t, nil, 5, adsObjects)
	server.Set(w)
	want(5, "0:fe-eu@eu×1000 10.0.0.1:81×1 10.0.0.2:81×2 10.0.0.3:81×1, 1:fe-us@us×1000 [2001:db8::1]:82×1")
	if c := server.Clients(); len(c) != 1 || c[0].Agent != "meridian-gfe" || c[0].Version == "" {
		t.Errorf("clients %+v: want one that says what it is, and of which version", c)
	}
	w = adsWorld(t, w, 6, adsObjects, "10.0.0.3")
	server.Set(w)
	want(6, "0:fe-eu@eu×1000 10.0.0.1:81×1 10.0.0.2:81×2 10.0.0.3:81×1-down, 1:fe-us@us×1000 [2001:db8::1]:82×1")
	server.Set(adsWorld(t, w, 7, strings.Replace(adsObjects, ", upstream: [fe-eu, fe-us]", ", proxy: {upstreams: {other: fe-us}}", 1)))
	want(7, "")

	if err := a.Report(ctx, api.Load{Proxy: "gfe-1", Pool: "gfe", Seconds: 2, Upstreams: []api.UpstreamLoad{{Pool: "fe-eu", Requests: 100, Errors: 3, InFlight: 2}}}); err != nil {
		t.Fatal(err)
	}
	server.Set(w) // with the upstream again: loads are those of upstreams that there are
	if err := a.Report(ctx, api.Load{Proxy: "gfe-1", Pool: "gfe", Seconds: 2, Upstreams: []api.UpstreamLoad{{Pool: "fe-eu", Requests: 100, Errors: 3, InFlight: 2}}}); err != nil {
		t.Fatal(err)
	}
	gfetest.Eventually(t, "the load arrives", func() bool {
		l := server.Loads()
		return len(l) == 1 && l[0].To == "fe-eu" && l[0].Rate == 50 && l[0].Errors == 1.5 && l[0].InProgress == 2
	})
	if f := server.LoadFaults(); len(f) != 0 {
		t.Errorf("faults %+v: want none of a proxy that says where the pools are as it was told", f)
	}
	if got := a.Every(); got != time.Second {
		t.Errorf("asked to report every %v, want what the server asked for, 1 s", got)
	}
	cancel()
	if err := <-followed; err == nil {
		t.Error("following ended without a reason")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	gfetest.Eventually(t, "a broken stream is an error", func() bool {
		return a.Report(t.Context(), api.Load{Pool: "gfe", Seconds: 1}) != nil
	})
	a.Close()
}

// asking is a source that asks for a report every 300 ms, once it has had one.
type asking struct {
	Source
	reports []float64 // seconds that each was of
}

func (a *asking) Report(_ context.Context, load api.Load) error {
	a.reports = append(a.reports, load.Seconds)
	return nil
}

func (a *asking) Every() time.Duration {
	if len(a.reports) == 0 {
		return 0
	}
	return 300 * time.Millisecond
}

// TestReportsWhenAsked reports in the interval that the source asks for, and in its own where
// it was given one.
func TestReportsWhenAsked(t *testing.T) {
	for _, tt := range []struct {
		report time.Duration
		want   []float64
	}{{0, []float64{2, 0.3, 0.3}}, {2 * time.Second, []float64{2}}} {
		synctest.Test(t, func(t *testing.T) {
			a := &asking{Source: Func(nil)}
			p, err := New(Config{Pool: "gfe", Source: a, Report: tt.report, Listen: []string{"127.0.0.1:0"}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2700*time.Millisecond)
			defer cancel()
			p.report(ctx)
			if !reflect.DeepEqual(a.reports, tt.want) {
				t.Errorf("with interval %v: reports of %v seconds, want %v", tt.report, a.reports, tt.want)
			}
		})
	}
}

// TestReadAssignment refuses what no config server of ours says.
func TestReadAssignment(t *testing.T) {
	at := func(host string, port uint32) *eds.LbEndpoint {
		return &eds.LbEndpoint{HostIdentifier: &eds.LbEndpoint_Endpoint{Endpoint: &eds.Endpoint{Address: &core.Address{
			Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: port}}},
		}}}}
	}
	locality := func(pool string, weight uint32, es ...*eds.LbEndpoint) *eds.ClusterLoadAssignment {
		return &eds.ClusterLoadAssignment{Endpoints: []*eds.LocalityLbEndpoints{{
			Locality: &core.Locality{SubZone: pool}, LoadBalancingWeight: wrapperspb.UInt32(weight), LbEndpoints: es,
		}}}
	}
	draining := at("192.0.2.1", 80)
	draining.HealthStatus = core.HealthStatus_DRAINING
	heavy := at("192.0.2.1", 80)
	heavy.LoadBalancingWeight = wrapperspb.UInt32(1 << 31)
	for _, tt := range []struct {
		name  string
		in    *eds.ClusterLoadAssignment
		fault string
	}{
		{"nothing", &eds.ClusterLoadAssignment{}, ""},
		{"draining", locality("fe", 1, draining), ""},
		{"no pool", locality("", 1), "expected the name of a pool"},
		{"name for an address", locality("fe", 1, at("fe.test", 80)), `endpoint "fe.test" port 80`},
		{"port", locality("fe", 1, at("192.0.2.1", 70000)), "port 70000"},
		{"weight", locality("fe", 1<<31), "weight 2147483648"},
		{"weight of an endpoint", locality("fe", 1, heavy), "endpoint 192.0.2.1: weight 2147483648"},
	} {
		a, err := readAssignment(tt.in)
		if (err == nil) != (tt.fault == "") || err != nil && !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.fault)
		}
		if tt.name == "draining" && (len(a.Hops) != 1 || !a.Hops[0].Endpoints[0].Drained) {
			t.Errorf("%s: %+v", tt.name, a)
		}
	}
	if got, want := readVersion("12 plan ab"), (Assignment{Revision: 12, Plan: "ab"}); !reflect.DeepEqual(got, want) {
		t.Errorf("version %+v, want %+v", got, want)
	}
}
