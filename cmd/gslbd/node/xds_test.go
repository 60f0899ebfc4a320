package node

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	loadstats "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/xds"
)

const proxiesConfig = `
node:
  name: n1
  site: s
  dns: ["127.0.0.1:0"]
  admin: "127.0.0.1:0"
  xds: {listen: "127.0.0.1:0"}
sites: {s: {lat: 0, lon: 0}}
zones: [{name: example.com, records: "@ 60 SOA ns. h. 1 2 3 4 5\n@ 60 NS ns.\n"}]
pools:
  gfe: {site: s, port: 80, endpoints: [{address: 127.0.0.1}], upstream: fe}
  fe: {site: s, capacity: 10, endpoints: [{address: 127.0.0.2, port: 81}]}
`

// TestNodeServesProxies asks a running node's config server, and sees itself in the status.
func TestNodeServesProxies(t *testing.T) {
	n := runNode(t, Options{File: parse(t, proxiesConfig)})
	cc, err := grpc.NewClient(n.XDSAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	limit, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	st, err := discovery.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(limit)
	if err != nil {
		t.Fatal(err)
	}
	send := func(req *discovery.DeltaDiscoveryRequest) *discovery.DeltaDiscoveryResponse {
		t.Helper()
		if err := st.Send(req); err != nil {
			t.Fatal(err)
		}
		res, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	res := send(&discovery.DeltaDiscoveryRequest{
		Node: &core.Node{Id: "gfe-1", Cluster: "gfe", UserAgentName: "envoy"}, TypeUrl: xds.Endpoints.URL(), ResourceNamesSubscribe: []string{"upstream@gfe"},
	})
	var cla endpoint.ClusterLoadAssignment
	if err := res.Resources[0].Resource.UnmarshalTo(&cla); err != nil || len(cla.Endpoints) != 1 || cla.Endpoints[0].Locality.SubZone != "fe" {
		t.Fatalf("endpoints %v, %v; want those of pool fe", &cla, err)
	}
	if s := n.Snapshot(); !strings.HasPrefix(res.SystemVersionInfo, fmt.Sprintf("%d plan %s", s.Revision, s.Plan)) {
		t.Errorf("version %q, want revision %d and plan %s of the snapshot", res.SystemVersionInfo, s.Revision, s.Plan)
	}
	client, err := api.NewClient(n.AdminAddr().String(), "")
	if err != nil {
		t.Fatal(err)
	}
	refuse := &discovery.DeltaDiscoveryRequest{TypeUrl: xds.Endpoints.URL(), ResponseNonce: res.Nonce, ErrorDetail: &status.Status{Message: "too many"}}
	if err := st.Send(refuse); err != nil {
		t.Fatal(err)
	}
	for {
		got, err := client.Proxies(limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Proxies) == 1 && got.Proxies[0].ID == "gfe-1" && len(got.Proxies[0].Types) == 1 && got.Proxies[0].Types[0].Rejected != nil {
			break
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
	st2, err := client.Status(limit)
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(st2.Reasons, "\n"); !strings.Contains(text, "proxy gfe-1 of pool gfe refused its endpoints and keeps the last good ones: too many") {
		t.Errorf("reasons %q: want the refusal", text)
	}
	page, err := http.Get("http://" + n.AdminAddr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer page.Body.Close()
	text, err := io.ReadAll(page.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`meridian_xds_proxies{pool="gfe",protocol="delta"} 1`, "meridian_xds_rejections_total 1", `meridian_xds_proxies_behind{pool="gfe"} 1`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
}

func TestKeepGood(t *testing.T) {
	a := xds.Secret{Cert: []byte("c1"), Key: []byte("k1"), CA: []byte("ca1")}
	got := keepGood(map[string]xds.Secret{"www": a, "gone": a}, map[string]xds.Secret{"www": {CA: []byte("ca2")}})
	if w := got["www"]; string(w.Cert) != "c1" || string(w.CA) != "ca2" {
		t.Errorf("www %s, %s; want the old pair and the new ca", w.Cert, w.CA)
	}
	if string(got["gone"].Cert) != "c1" {
		t.Error("a certificate that is gone was taken away")
	}
	if len(keepGood(nil, nil)) != 0 {
		t.Error("something of nothing")
	}
}

// TestCheckProxies wants the check of a file to find what proxies cannot be told.
func TestCheckProxies(t *testing.T) {
	for _, tt := range []struct{ name, upstream, want string }{
		{"good", "{pools: {fe: }, envoy: {per_connection_buffer_limit_bytes: 1024}}", ""},
		{"raw field", "{pools: {fe: }, envoy: {no_such: 1}}", `pools.gfe: upstream upstream: envoy:`},
		{"certificate", "{pools: {fe: }, tls: {ca: fe}}", `ca "fe": expected fe.ca in node.xds.certificates`},
	} {
		file := filepath.Join(t.TempDir(), "n1.yaml")
		if err := os.WriteFile(file, []byte(strings.Replace(proxiesConfig, "upstream: fe", "upstream: "+tt.upstream, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Check(file)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestShares(t *testing.T) {
	f, err := config.Parse("n1.yaml", []byte(proxiesConfig))
	if err != nil {
		t.Fatal(err)
	}
	got := shares(&f.Objects, []xds.PoolLoad{{From: "gfe", Upstream: "upstream", To: "fe", Rate: 4}, {From: "other", Upstream: "upstream", To: "fe", Rate: 5.1}}, nil)
	if len(got) != 1 || math.Abs(got["fe"]-0.91) > 1e-9 {
		t.Errorf("shares %v, want 0.91 of fe, and nothing of pools without a capacity", got)
	}
	p := &proxies{}
	if p.settle(&f.Objects, got); math.Abs(got["fe"]-0.9) > 1e-9 || len(p.damped) != 0 {
		t.Errorf("settled %v, want whole steps, since no service sheds", got)
	}
}

// TestOutgrown says which growth is worth a world before the next tick.
func TestOutgrown(t *testing.T) {
	f, err := config.Parse("n1.yaml", []byte(proxiesConfig))
	if err != nil {
		t.Fatal(err)
	}
	fe := func(rates ...float64) (out []xds.PoolLoad) {
		for i, r := range rates {
			out = append(out, xds.PoolLoad{From: fmt.Sprint(i), Upstream: "upstream", To: "fe", Rate: r})
		}
		return out
	}
	for _, tt := range []struct {
		name        string
		before, now []xds.PoolLoad
		want        bool
	}{
		{"over its capacity", fe(9), fe(10.1), true},
		{"by all together", fe(5, 4), fe(5, 6), true},
		{"within it", fe(2), fe(9), false},
		{"over it as before", fe(12), fe(12.1), false},
		{"over it and more", fe(12), fe(13), true},
		{"over it and less", fe(20), fe(12), false},
		{"at first", nil, fe(11), true},
		{"without a capacity", nil, []xds.PoolLoad{{To: "gfe", Rate: 1e6}}, false},
	} {
		if got := outgrown(&f.Objects, tt.before, tt.now); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestLoadReachesEveryNode reports to one node, by LRS, twice of what a frontend has capacity
// for: another node, which has no config server, hands on users by it, and both say so.
func TestLoadReachesEveryNode(t *testing.T) {
	text := func(name, join, xds string) string {
		return fmt.Sprintf(`
node: {name: %s, site: s, dns: ["127.0.0.1:0"], admin: "127.0.0.1:0", gossip: {listen: "127.0.0.1:0", join: [%s]}, geo: {overrides: [{prefix: 10.0.0.0/8, site: s}]}%s}
sites: {s: {lat: 0, lon: 0}, far: {lat: 50, lon: 50}}
zones: [{name: example.com, records: "@ 60 SOA ns. h. 1 2 3 4 5\n@ 60 NS ns.\n"}]
pools:
  gfe: {site: s, port: 80, endpoints: [{address: 127.0.0.1}], upstream: [fe, fe-far]}
  gfe-far: {site: far, port: 80, endpoints: [{address: 127.0.0.9}], upstream: [fe-far]}
  fe: {site: s, capacity: 10, endpoints: [{address: 127.0.0.2, port: 81}]}
  fe-far: {site: far, capacity: 1000, endpoints: [{address: 127.0.0.3, port: 81}]}
services:
  www.example.com: {ttl: 1s, pools: {gfe: {}, gfe-far: {}}, policy: [health, {shed: {low: 1, high: 3}}, nearest]}
`, name, join, xds)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	start := func(text string) *Node { return runNode(t, Options{File: parse(t, text)}) }
	a := start(text("a", "", `, xds: {listen: "127.0.0.1:0"}`))
	b := start(text("b", fmt.Sprintf("%q", a.health.GossipAddr()), ""))
	cc, err := grpc.NewClient(a.XDSAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	st, err := loadstats.NewLoadReportingServiceClient(cc).StreamLoadStats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	report := &loadstats.LoadStatsRequest{Node: &core.Node{Id: "gfe-1", Cluster: "gfe"}, ClusterStats: []*endpoint.ClusterStats{{
		ClusterName: "upstream", LoadReportInterval: durationpb.New(time.Second),
		UpstreamLocalityStats: []*endpoint.UpstreamLocalityStats{{Locality: &core.Locality{Region: "s", Zone: "s", SubZone: "fe"}, TotalIssuedRequests: 20}},
	}}}
	for {
		if err := st.Send(report); err != nil {
			t.Fatal(err)
		}
		missing := ""
		for _, n := range []*Node{a, b} {
			s := n.xds.status()
			switch reasons := strings.Join(n.xds.faults(), "\n"); {
			case len(s.Spills) != 1 || s.Spills[0].Site != "s" || len(s.Spills[0].DNS) != 1:
				missing = fmt.Sprintf("spills %+v", s.Spills)
			case math.Abs(s.Spills[0].DNS[0].Keeps-0.5) > 0.09 || s.Spills[0].DNS[0].TTL != 1: // twice, between 1 and 3, since none of those who are handed on comes away
				missing = fmt.Sprintf("DNS %+v", s.Spills[0].DNS)
			case math.Abs(s.Spills[0].Placed["fe"]-10) > 1 || math.Abs(s.Spills[0].Placed["fe-far"]-10) > 2:
				missing = fmt.Sprintf("placed %+v", s.Spills[0].Placed)
			case !strings.Contains(reasons, "site s is over its capacity") || !strings.Contains(reasons, fmt.Sprintf("www.example.com leaves it %.0f %% of its clients", 100*s.Spills[0].DNS[0].Keeps)):
				missing = fmt.Sprintf("reasons %q", reasons)
			default:
				moved := 0
				for i := range 200 {
					e := n.Snapshot().Explain(n.Snapshot().Service("www.example.com"), gslb.Client{Addr: netip.AddrFrom4([4]byte{10, 0, byte(i), 1}), Source: 32})
					if e.Pool == "gfe-far" {
						moved++
					}
				}
				if moved < 60 || moved > 140 { // half, within five standard deviations
					missing = fmt.Sprintf("of 200 users %d are sent to the far site, want half", moved)
				}
			}
		}
		if missing == "" {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after two minutes: %s", missing)
		case <-time.After(250 * time.Millisecond): // between two reports
		}
	}
}
