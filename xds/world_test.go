package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
)

// fleet is a GFE pool at eu-1 with frontends everywhere.
func fleet(upstream, more string) string {
	return sites + `
pools:
  gfe: {site: eu-1, port: 8080, endpoints: [{address: 192.0.2.1}], upstream: ` + upstream + `}
  fe-eu1: {site: eu-1, port: 81, probe: accept, capacity: 100, endpoints: [{address: 10.1.0.1}, {address: 10.1.0.2, weight: 3}]}
  fe-eu2: {site: eu-2, port: 81, probe: accept, capacity: 300, endpoints: [{address: 10.2.0.1}, {address: 10.2.0.2}]}
  fe-us: {site: us, port: 81, probe: accept, capacity: 400, endpoints: [{address: 10.3.0.1}, {address: 10.3.0.2}]}
  fe-ap: {site: ap, port: 81, probe: accept, capacity: 200, endpoints: [{address: 10.4.0.1}]}
` + more
}

// assignmentText writes an assignment as one line: by priority, the pools with their weights
// and the endpoints that are not healthy.
func assignmentText(c *endpoint.ClusterLoadAssignment) string {
	var out []string
	for _, l := range c.Endpoints {
		s := fmt.Sprintf("%d:%s×%d", l.Priority, l.Locality.SubZone, l.LoadBalancingWeight.GetValue())
		for _, e := range l.LbEndpoints {
			if e.HealthStatus != 1 {
				s += fmt.Sprintf(" %s=%s", e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress(), strings.ToLower(e.HealthStatus.String()))
			}
		}
		out = append(out, s)
	}
	for _, d := range c.Policy.GetDropOverloads() {
		out = append(out, fmt.Sprintf("drop %s %d", d.Category, d.DropPercentage.Numerator))
	}
	return strings.Join(out, ", ")
}

func TestAssignments(t *testing.T) {
	load := func(rate float64) []PoolLoad {
		return []PoolLoad{{From: "gfe", Upstream: "upstream", To: "fe-eu1", Rate: rate}}
	}
	all := "pools: {fe-eu1: {}, fe-eu2: {}, fe-us: {}, fe-ap: {}}"
	tests := []struct {
		name, upstream, more string
		st                   state
		want                 string
	}{
		{"one pool", "fe-us", "", state{}, "0:fe-us×1000"},
		{"by region: the region shares by capacity", "{" + all + "}", "", state{}, "0:fe-eu1×250, 0:fe-eu2×750, 1:fe-us×1000, 2:fe-ap×1000"},
		{"by region, named", "{" + all + ", mode: waterfall-by-region}", "", state{}, "0:fe-eu1×250, 0:fe-eu2×750, 1:fe-us×1000, 2:fe-ap×1000"},
		{"by zone", "{" + all + ", mode: waterfall-by-zone}", "", state{}, "0:fe-eu1×1000, 1:fe-eu2×1000, 2:fe-us×1000, 3:fe-ap×1000"},
		{"spray to region", "{" + all + ", mode: spray-to-region}", "", state{}, "0:fe-eu1×250, 0:fe-eu2×750, 1:fe-us×1000, 2:fe-ap×1000"},
		{"spray to world", "{" + all + ", mode: spray-to-world}", "", state{}, "0:fe-eu1×100, 0:fe-eu2×300, 0:fe-us×400, 0:fe-ap×200"},
		{"spray by weight and capacity", "{pools: {fe-us: {weight: 1}, fe-ap: {weight: 2}}, mode: spray-to-world}", "", state{}, "0:fe-us×500, 0:fe-ap×500"},
		{"standby is not sprayed to", "{pools: {fe-eu1: {}, fe-us: {standby: true}}, mode: spray-to-world}", "", state{}, "0:fe-eu1×1000, 1:fe-us×1000"},
		{"failover is the policy's", "{pools: {fe-eu1: {}, fe-eu2: {}, fe-us: {}}, policy: [health, {failover: [fe-us, fe-eu2, fe-eu1]}]}", "", state{}, "0:fe-us×1000, 1:fe-eu2×1000, 2:fe-eu1×1000"},
		{"weighted is the policy's", "{pools: {fe-eu1: {weight: 3}, fe-us: {}}, policy: [health, weighted]}", "", state{}, "0:fe-eu1×750, 0:fe-us×250"},
		{"an endpoint is down", "[fe-us, fe-ap]", "", state{down: []string{"fe-us/10.3.0.1"}}, "0:fe-us×1000 10.3.0.1=unhealthy, 1:fe-ap×1000"},
		{"a pool is down", "[fe-us, fe-ap]", "", state{down: []string{"fe-us/10.3.0.1", "fe-us/10.3.0.2"}}, "0:fe-ap×1000"},
		{"all is down: open", "[fe-us]", "", state{down: []string{"fe-us/10.3.0.1", "fe-us/10.3.0.2"}}, "0:fe-us×1000"},
		{"an endpoint is drained", "[fe-us, fe-ap]", "states:\n  s: {pool: fe-us, endpoint: 10.3.0.1, state: drain, author: ann}\n", state{}, "0:fe-us×1000 10.3.0.1=draining, 1:fe-ap×1000"},
		{"a pool is drained", "[fe-us, fe-ap]", "states:\n  s: {pool: fe-us, state: drain, author: ann}\n", state{}, "0:fe-ap×1000, 1:fe-us×1000"},
		{"a drained region", "{" + all + "}", "states:\n  s: {pool: fe-eu1, state: drain, author: ann}\n  t: {pool: fe-eu2, state: drain, author: ann}\n", state{}, "0:fe-us×1000, 1:fe-ap×1000, 2:fe-eu1×250, 2:fe-eu2×750"},
		{"degraded is last", "{" + all + ", mode: spray-to-world}", "", state{down: []string{"fe-eu1/10.1.0.2"}}, "0:fe-eu2×333, 0:fe-us×444, 0:fe-ap×222, 1:fe-eu1×1000 10.1.0.2=unhealthy"},

		{"load within capacity", "[fe-eu1, fe-us]", "", state{loads: load(100)}, "0:fe-eu1×1000, 1:fe-us×1000"},
		{"twice the capacity spills half", "[fe-eu1, fe-us]", "", state{loads: load(200)}, "0:fe-eu1×500, 0:fe-us×500"},
		{"a region fills up together", "{" + all + "}", "", state{loads: load(800)}, "0:fe-eu1×125, 0:fe-eu2×375, 0:fe-us×500, 1:fe-ap×1000"},
		{"by zone, the next zone takes the rest", "{" + all + ", mode: waterfall-by-zone}", "", state{loads: load(200)}, "0:fe-eu1×500, 0:fe-eu2×500, 1:fe-us×1000, 2:fe-ap×1000"},
		{"half of the capacity is down", "[fe-us, fe-ap]", "", state{loads: load(400), down: []string{"fe-us/10.3.0.1"}}, "0:fe-us×500 10.3.0.1=unhealthy, 0:fe-ap×500"},
		{"over all capacity, all are over it alike", "[fe-eu1, fe-us]", "", state{loads: load(1000)}, "0:fe-eu1×200, 0:fe-us×800"},
		{"over all capacity, shed", "{pools: {fe-eu1: {}, fe-us: {}}, dropOverloads: true}", "", state{loads: load(1000)}, "0:fe-eu1×200, 0:fe-us×800, drop gslb-overload 50"},
		{"load of an upstream that is gone", "[fe-eu1, fe-us]", "", state{loads: []PoolLoad{{From: "gone", Upstream: "upstream", To: "fe-eu1", Rate: 1e6}}}, "0:fe-eu1×1000, 1:fe-us×1000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := world(t, nil, fleet(tt.upstream, tt.more), tt.st)
			cla := message(t, w, "gfe", Envoy, Endpoints, "upstream@gfe", &endpoint.ClusterLoadAssignment{})
			if err := cla.ValidateAll(); err != nil {
				t.Error(err)
			}
			if got := assignmentText(cla); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestViewpoints checks that proxies at two sites see the same pools in their own order, and
// that load from both fills one pool together.
func TestViewpoints(t *testing.T) {
	text := fleet("[fe-eu1, fe-us]", "  gfe-us: {site: us, port: 8080, endpoints: [{address: 192.0.2.2}], upstream: [fe-eu1, fe-us]}\n")
	got := func(st state) string {
		w := world(t, nil, text, st)
		return assignmentText(message(t, w, "gfe", Envoy, Endpoints, "upstream@gfe", &endpoint.ClusterLoadAssignment{})) + " | " +
			assignmentText(message(t, w, "gfe-us", Envoy, Endpoints, "upstream@gfe-us", &endpoint.ClusterLoadAssignment{}))
	}
	for _, tt := range []struct{ name, got, want string }{
		{"without load", got(state{}), "0:fe-eu1×1000, 1:fe-us×1000 | 0:fe-us×1000, 1:fe-eu1×1000"},
		{"the other's own users go first", got(state{loads: []PoolLoad{{"gfe", "upstream", "fe-eu1", 200}, {"gfe-us", "upstream", "fe-us", 350}}}),
			"0:fe-eu1×667, 0:fe-us×333 | 0:fe-us×1000, 1:fe-eu1×1000"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, tt.got, tt.want)
		}
	}
}

// TestSpills says what spills, and that nothing does while there is room.
func TestSpills(t *testing.T) {
	at := func(rate float64) []Spill {
		return world(t, nil, fleet("[fe-eu1, fe-us]", ""), state{loads: []PoolLoad{{"gfe", "upstream", "fe-eu1", rate}}}).Spills
	}
	if got := at(90); len(got) != 0 {
		t.Errorf("within capacity: %+v, want none", got)
	}
	got := at(150)
	if len(got) != 1 || got[0].From != "gfe" || got[0].Upstream != "upstream" || got[0].Demand != 150 || !near(got[0].Placed["fe-eu1"], 100) || !near(got[0].Placed["fe-us"], 50) || got[0].Over > tiny {
		t.Errorf("half over: %+v", got)
	}
	if got := at(600); len(got) != 1 || !near(got[0].Over, 100) {
		t.Errorf("over all: %+v, want 100 over", got)
	}
}

// TestSpillConserves checks over many demands that shares add up, that no pool is over its
// capacity while another that is asked has room, and that more demand never moves traffic
// back.
func TestSpillConserves(t *testing.T) {
	o := fleet("{pools: {fe-eu1: {}, fe-eu2: {}, fe-us: {}, fe-ap: {}}, mode: waterfall-by-zone}", "")
	capacity := map[string]float64{"fe-eu1": 100, "fe-eu2": 300, "fe-us": 400, "fe-ap": 200}
	home := 2.0
	for demand := 50.0; demand <= 1500; demand += 50 {
		w := world(t, nil, o, state{loads: []PoolLoad{{"gfe", "upstream", "fe-eu1", demand}}})
		cla := message(t, w, "gfe", Envoy, Endpoints, "upstream@gfe", &endpoint.ClusterLoadAssignment{})
		sum := 0.0
		for _, l := range cla.Endpoints {
			if l.Priority > 0 {
				continue
			}
			share := float64(l.LoadBalancingWeight.GetValue()) / weightSum
			sum += share
			if rate := share * demand; demand <= 1000 && rate > capacity[l.Locality.SubZone]*1.01 {
				t.Errorf("demand %v: %s gets %v, over its capacity", demand, l.Locality.SubZone, rate)
			}
			if l.Locality.SubZone == "fe-eu1" {
				if share > home {
					t.Errorf("demand %v: the nearest pool's share grew to %v from %v", demand, share, home)
				}
				home = share
			}
		}
		if sum < 0.99 || sum > 1.01 {
			t.Errorf("demand %v: shares add up to %v, want 1", demand, sum)
		}
	}
}

// TestWorldSharesWhatDidNotChange checks the versions: what is the same keeps its version,
// and names the revision that brought it.
func TestWorldSharesWhatDidNotChange(t *testing.T) {
	text := fleet("[fe-us, fe-ap]", "")
	a := world(t, nil, text, state{revision: 7})
	b := world(t, a, text, state{revision: 8, down: []string{"fe-us/10.3.0.1"}})
	c := world(t, b, text, state{revision: 9})
	restarted := world(t, nil, text, state{revision: 1000})
	version := func(w *World, typ Type, name string) string { return w.View("gfe").Resource(Envoy, typ, name).Version }
	for _, typ := range []Type{Clusters, Listeners, Routes} {
		for _, name := range a.View("gfe").Names(Envoy, typ) {
			if va, vb := version(a, typ, name), version(b, typ, name); va != vb || !strings.HasPrefix(va, "7-") {
				t.Errorf("%s %s: versions %s and %s, want the same of revision 7", typ, name, va, vb)
			}
			if va, vr := version(a, typ, name), version(restarted, typ, name); hash(va) != hash(vr) {
				t.Errorf("%s %s: after a restart %s, want the hash of %s", typ, name, vr, va)
			}
		}
	}
	eds := "upstream@gfe"
	if va, vb, vc := version(a, Endpoints, eds), version(b, Endpoints, eds), version(c, Endpoints, eds); hash(va) == hash(vb) || hash(va) != hash(vc) || !strings.HasPrefix(vb, "8-") || !strings.HasPrefix(vc, "9-") {
		t.Errorf("endpoints: versions %s, %s, %s: want a change at 8 and back at 9", va, vb, vc)
	}
}

// TestEveryResourceIsValid runs the validators of the protocol over a configuration with
// every key.
func TestEveryResourceIsValid(t *testing.T) {
	text := sites + `
pools:
  gfe:
    site: eu-1
    port: 8080
    endpoints: [{address: 192.0.2.1}]
    upstream:
      pools: {fe-us: {}, fe-ap: {}}
      connectTimeout: 250ms
      lbPolicy: RING_HASH
      http2: true
      circuitBreakers: {maxConnections: 10, maxPendingRequests: 20, maxRequests: 30, maxRetries: 4}
      outlierDetection: {consecutive5xx: 7, consecutiveGatewayFailure: 3, interval: 2s, baseEjectionTime: 5s, maxEjectionPercent: 20}
      tls: {sni: fe.example.com, ca: fe, certificate: gfe}
      lrsReportEndpointMetrics: [named_metrics.queue]
      oobReportingPeriod: 10s
      envoy: {perConnectionBufferLimitBytes: 4096, common_lb_config: {close_connections_on_host_set_change: true}}
    proxy:
      listen: 127.0.0.1:8443
      tls: {certificate: www, clientCA: users}
      upstreams: {api: fe-ap}
      tracing: {collector: "https://otel.example.com:4318", tls: {ca: fe}, clientSampling: 1, overallSampling: 50}
      routes:
        - {domains: [a.example.com], match: {path: /x}, upstream: api, timeout: 3s, idleTimeout: 9s, retryPolicy: {retryOn: [5xx, reset], numRetries: 3, perTryTimeout: 1s}}
        - {domains: ["*.example.com"], match: {safeRegex: "/v[0-9]+"}, prefixRewrite: ""}
        - {match: {prefix: /old}, prefixRewrite: /new, envoy: {route: {retry_policy: {num_retries: 9}}}}
        - {domains: [plain.example.com], httpsRedirect: true}
      envoy: {httpConnectionManager: {server_name: gfe}, listener: {enable_reuse_port: false}}
  fe-us: {site: us, endpoints: [{address: 10.3.0.1}]}
  fe-ap: {site: ap, endpoints: [{address: "2001:db8::1"}]}
`
	pair := testCert(t, "gfe")
	w := world(t, nil, text, state{secrets: map[string]Secret{
		"gfe": pair, "www": pair, "fe": {CA: pair.Cert}, "users": {CA: pair.Cert}, "other": pair,
	}})
	v := w.View("gfe")
	for c := range numClients {
		for typ := range numTypes {
			for _, name := range v.Names(c, typ) {
				m, err := v.Resource(c, typ, name).Marshalled().UnmarshalNew()
				if err != nil {
					t.Errorf("%s %s: %v", typ, name, err)
					continue
				}
				if err := m.(interface{ ValidateAll() error }).ValidateAll(); err != nil {
					t.Errorf("%s %s: %v", typ, name, err)
				}
			}
		}
	}
	if got, want := v.Names(Envoy, Secrets), []string{"fe.ca", "gfe", "users.ca", "www"}; !slices.Equal(got, want) {
		t.Errorf("secrets %v, want %v: those that the pool names, and no other", got, want)
	}
	c := message(t, w, "gfe", Envoy, Clusters, "upstream", &cluster.Cluster{})
	if got := c.PerConnectionBufferLimitBytes.GetValue(); got != 4096 {
		t.Errorf("raw field: %d, want 4096", got)
	}
	if lb := c.CommonLbConfig; !lb.CloseConnectionsOnHostSetChange || lb.HealthyPanicThreshold == nil {
		t.Errorf("common_lb_config %v: want the raw field merged into what was there", lb)
	}
	rc := message(t, w, "gfe", Envoy, Routes, "routes", &route.RouteConfiguration{})
	paths := map[string][]string{}
	for _, vh := range rc.VirtualHosts {
		for _, r := range vh.Routes {
			m := r.Match
			paths[vh.Domains[0]] = append(paths[vh.Domains[0]], m.GetPath()+m.GetPrefix()+m.GetSafeRegex().GetRegex())
		}
	}
	want := map[string][]string{
		"*":                 {"/healthz", "/old", "/"},
		"*.example.com":     {"/healthz", "/v[0-9]+", "/old", "/"},
		"a.example.com":     {"/healthz", "/x", "/v[0-9]+", "/old", "/"},
		"plain.example.com": {"/healthz", "/v[0-9]+", "/old", "/", "/"},
	}
	if !maps.EqualFunc(paths, want, slices.Equal) {
		t.Errorf("routes %v\nwant   %v", paths, want)
	}
	l := message(t, w, "gfe", Envoy, Listeners, "ingress", &listener.Listener{})
	if l.EnableReusePort.GetValue() || l.EnableReusePort == nil || l.FilterChains[0].TransportSocket == nil {
		t.Errorf("listener %v: want the raw field and TLS", l)
	}
	api := message(t, w, "gfe", GRPC, Listeners, "api", &listener.Listener{})
	if api.ApiListener == nil {
		t.Error("a gRPC client's listener is no API listener")
	}
}

// TestFaultsKeepTheLastGood checks that what cannot be said to proxies is a fault for as long
// as it is configured, and that what the pool's proxies have stays, while health goes on.
func TestFaultsKeepTheLastGood(t *testing.T) {
	good := fleet("[fe-us], proxy: {upstreams: {gone: fe-ap}}", "")
	tests := []struct{ name, upstream, want string }{
		{"unknown field", "{pools: {fe-us: }, envoy: {no_such: 1}}", `pool gfe: upstream upstream: envoy: unknown field "no_such"`},
		{"wrong type", "{pools: {fe-us: }, envoy: {connect_timeout: {a: b}}}", "pool gfe: upstream upstream: envoy:"},
		{"invalid value", "{pools: {fe-us: }, envoy: {connect_timeout: -1s}}", "ConnectTimeout"},
		{"unknown type", `{pools: {fe-us: }, envoy: {transport_socket: {name: x, typed_config: {"@type": type.googleapis.com/x.Y}}}}`, "x.Y"},
		{"missing certificate", "{pools: {fe-us: }, tls: {ca: fe, certificate: gfe}}", `certificate "gfe": expected gfe.crt and gfe.key`},
		{"missing ca", "{pools: {fe-us: }, tls: {ca: fe}}", `ca "fe": expected fe.ca`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := world(t, nil, good, state{})
			b := tryWorld(t, a, fleet(tt.upstream, ""), state{})
			if len(b.Faults) != 1 || !strings.Contains(b.Faults[0].Error(), tt.want) {
				t.Fatalf("faults %v, want one with %q", b.Faults, tt.want)
			}
			for _, c := range []Client{Envoy, GRPC} {
				for typ := range numTypes {
					if x, y := a.View("gfe").sets[c][typ], b.View("gfe").sets[c][typ]; !maps.Equal(x.byName, y.byName) || x.version != y.version {
						t.Errorf("the last good %s are gone: %v, %v before", typ, y.names, x.names)
					}
				}
			}
			down := tryWorld(t, b, fleet(tt.upstream, ""), state{down: []string{"fe-us/10.3.0.1"}})
			if len(down.Faults) != 1 {
				t.Errorf("a snapshot later: faults %v, want the same", down.Faults)
			}
			got := assignmentText(message(t, down, "gfe", Envoy, Endpoints, "upstream@gfe", &endpoint.ClusterLoadAssignment{}))
			if want := "0:fe-us×1000 10.3.0.1=unhealthy"; got != want {
				t.Errorf("health stood still: %s, want %s", got, want)
			}
			message(t, down, "gfe", Envoy, Endpoints, "gone@gfe", &endpoint.ClusterLoadAssignment{})
			if w := world(t, down, fleet("[fe-us]", ""), state{}); w.View("gfe").Resource(Envoy, Clusters, "gone") != nil {
				t.Error("mended, and still of before")
			}
			if first := tryWorld(t, nil, fleet(tt.upstream, ""), state{}); first.View("gfe") != nil || len(first.Faults) != 1 {
				t.Errorf("without a good one before: view %v, want none", first.View("gfe"))
			}
		})
	}
}

// TestCheck wants a change that brings raw fields which Envoy has not, or would refuse, to be
// refused where it is written; but none that leaves those alone which are there.
func TestCheck(t *testing.T) {
	good := objects(t, fleet("[fe-us]", ""))
	for name, tt := range map[string]struct{ pool, want string }{
		"nothing raw":    {"[fe-us]", ""},
		"a certificate":  {"{pools: {fe-us: }, tls: {ca: fe, certificate: gfe}}", ""}, // of each node's own
		"good":           {"{pools: {fe-us: }, envoy: {connect_timeout: 1s}}", ""},
		"cluster":        {"{pools: {fe-us: }, envoy: {no_such: 1}}", `pool gfe: upstream upstream: envoy: unknown field "no_such"`},
		"route":          {"[fe-us], proxy: {routes: [{}, {envoy: {route: {timeout: soon}}}]}", "pool gfe: proxy.routes[1].envoy: "},
		"listener":       {"[fe-us], proxy: {envoy: {listener: {nope: 1}}}", "pool gfe: proxy.envoy.listener: "},
		"http":           {"[fe-us], proxy: {envoy: {httpConnectionManager: {stat_prefix: 1}}}", "pool gfe: proxy.envoy.httpConnectionManager: "},
		"further, twice": {"[fe-us], proxy: {upstreams: {x: {pools: {fe-us: }, envoy: {a: 1}}, y: {pools: {fe-us: }, envoy: {b: 1}}}}", `upstream y: envoy: unknown field "b"`},
	} {
		next := objects(t, fleet(tt.pool, ""))
		err := Check(good, next)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if err := Check(next, objects(t, fleet(tt.pool, "")+"# another reason to write\n")); err != nil {
			t.Errorf("%s: %v, of what is there already", name, err)
		}
	}
}

// TestRawClusters checks what a cluster waits for, and that it keeps its name, whatever raw
// fields say.
func TestRawClusters(t *testing.T) {
	for raw, want := range map[string]string{
		"{}":           "upstream@gfe",
		"{name: mine}": "upstream@gfe",
		"{eds_cluster_config: {service_name: other}}":            "other",
		"{type: STRICT_DNS, load_assignment: {cluster_name: x}}": "",
	} {
		w := world(t, nil, fleet("{pools: {fe-us: }, envoy: "+raw+"}", ""), state{})
		r := w.View("gfe").Resource(Envoy, Clusters, "upstream")
		if c := message(t, w, "gfe", Envoy, Clusters, "upstream", &cluster.Cluster{}); r.needs != want || c.Name != "upstream" {
			t.Errorf("%s: cluster %q waits for %q, want upstream and %q", raw, c.Name, r.needs, want)
		}
	}
}

// TestClusterHoldsNoHealth checks that a cluster stays the same, octet for octet, whatever
// is up, drained or loaded: Envoy would warm it anew (P7).
func TestClusterHoldsNoHealth(t *testing.T) {
	text := fleet("[fe-eu1, fe-us]", "")
	a := world(t, nil, text, state{})
	for name, b := range map[string]*World{
		"down":  world(t, nil, text, state{revision: 99, down: []string{"fe-us/10.3.0.1"}}),
		"drain": world(t, nil, text+"states:\n  s: {pool: fe-us, state: drain, author: ann}\n", state{revision: 98}),
		"load":  world(t, nil, text, state{revision: 97, loads: []PoolLoad{{"gfe", "upstream", "fe-eu1", 1000}}}),
	} {
		for _, c := range []Client{Envoy, GRPC} {
			x, y := a.View("gfe").Resource(c, Clusters, "upstream"), b.View("gfe").Resource(c, Clusters, "upstream")
			if !proto.Equal(x.Marshalled(), y.Marshalled()) {
				t.Errorf("%s: the cluster changed", name)
			}
		}
	}
}
