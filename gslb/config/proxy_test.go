package config

import (
	"strings"
	"testing"
)

// proxyFile is a file with one pool whose keys are extra, and what it needs.
func proxyFile(node, extra string) string {
	return `node: {name: n, site: s, dns: ["127.0.0.1:0"]` + node + `}
sites: {s: {lat: 0, lon: 0}}
pools:
  be: {site: s, endpoints: [{address: 192.0.2.1}]}
  gfe: {site: s, port: 80, endpoints: [{address: 192.0.2.2}]` + extra + `}
`
}

func TestProxyFaults(t *testing.T) {
	up := ", upstream: {pools: {be: }"
	tests := []struct {
		name, node, extra, want string
	}{
		{"nothing", "", "", ""},
		{"mode", "", up + ", mode: spray}", `pools.gfe.upstream.mode: "spray"; expected one of waterfall-by-region, waterfall-by-zone, spray-to-region, spray-to-world`},
		{"mode and policy", "", up + ", mode: spray-to-world, policy: [health, weighted]}", "policy: orders pools beside mode spray-to-world"},
		{"mode and nearest", "", up + ", mode: spray-to-world, policy: [health, nearest]}", ""},
		{"lbPolicy", "", up + ", lbPolicy: least}", `pools.gfe.upstream.lbPolicy: "least"`},
		{"connect timeout", "", up + ", connectTimeout: 2m}", "connectTimeout: 2m0s; expected 1ms to 1m0s"},
		{"circuit breakers", "", up + ", circuitBreakers: {maxRequests: -1}}", "circuitBreakers.maxRequests: -1"},
		{"outlier detection", "", up + ", outlierDetection: {maxEjectionPercent: 101}}", "maxEjectionPercent: 101; expected 1 to 100"},
		{"no connections", "", up + ", circuitBreakers: {maxConnections: 0}}", "maxConnections: 0; expected more, or no value for the default"},
		{"interval that Envoy takes for none", "", up + ", outlierDetection: {interval: 10us}}", "interval: 10µs; expected 1ms to 1h0m0s"},
		{"tls without ca", "", up + ", tls: {sni: be.test}}", "tls.ca: no value"},
		{"ca is a path", "", up + ", tls: {ca: ../ca}}", `tls.ca: "../ca"; expected the name of a file`},
		{"metric", "", up + `, lrsReportEndpointMetrics: ["a b"]}`, `lrsReportEndpointMetrics[0]: "a b"`},
		{"out of band", "", up + ", oobReportingPeriod: 10ms}", "oobReportingPeriod: 10ms; expected 1s to 1h0m0s"},
		{"no listen", "", ", port: 0, proxy: {}", "given twice"},
		{"listen without port", "", `, proxy: {listen: "127.0.0.1:0"}`, "proxy.listen: 127.0.0.1:0; expected an address and a port"},
		{"downstream tls", "", ", proxy: {tls: {}}", "proxy.tls.certificate: no value"},
		{"reserved name", "", ", proxy: {upstreams: {upstream: be}}", "proxy.upstreams.upstream: the name of the pool's own upstream"},
		{"dangling pool", "", ", proxy: {upstreams: {api: nope}}", "proxy.upstreams.api.pools.nope: no such pool"},
		{"loop", "", ", proxy: {upstreams: {api: gfe}}", "proxy.upstreams.api: requests would go in a loop: gfe > gfe"},
		{"route without upstream", "", ", proxy: {routes: [{}]}", `routes[0].upstream: no such upstream "upstream"; there is none`},
		{"redirect needs none", "", ", proxy: {routes: [{httpsRedirect: true}]}", ""},
		{"route to unknown", "", ", proxy: {upstreams: {api: be}, routes: [{upstream: app}]}", `no such upstream "app"; expected api`},
		{"domain", "", ", upstream: be, proxy: {routes: [{domains: [\"a b\"]}]}", `domains[0]: "a b"`},
		{"wildcards", "", `, upstream: be, proxy: {routes: [{domains: ["*", "*.a.test", a.test]}]}`, ""},
		{"two matches", "", ", upstream: be, proxy: {routes: [{match: {prefix: /a, path: /b}}]}", "expected one of prefix, path and safeRegex"},
		{"regex", "", `, upstream: be, proxy: {routes: [{match: {safeRegex: "("}}]}`, "expected RE2"},
		{"path", "", `, upstream: be, proxy: {routes: [{match: {path: a}}]}`, `match.path: "a"; expected /`},
		{"retry", "", ", upstream: be, proxy: {routes: [{retryPolicy: {}}]}", "retryPolicy.retryOn: no value"},
		{"timeout", "", ", upstream: be, proxy: {routes: [{timeout: -1s}]}", "timeout: -1s; expected 1ms to 24h0m0s"},
		{"retry after nothing that there is", "", ", upstream: be, proxy: {routes: [{retryPolicy: {retryOn: [5xx, conect-failure]}}]}", `retryOn[1]: "conect-failure"; expected one of 5xx, gateway-error`},
		{"retry after all that there is", "", ", upstream: be, proxy: {routes: [{retryPolicy: {retryOn: [" + strings.Join(RetryConditions, ", ") + "]}}]}", ""},
		{"no retries", "", ", upstream: be, proxy: {routes: [{retryPolicy: {retryOn: [5xx], numRetries: 0}}]}", "numRetries: 0; expected more, or no value for the default"},
		{"no timeout", "", ", upstream: be, proxy: {routes: [{timeout: 0s}]}", "timeout: 0; expected more, or no value for the default"},
		{"timeout that Envoy takes for none", "", ", upstream: be, proxy: {routes: [{timeout: 500us}]}", "timeout: 500µs; expected 1ms to 24h0m0s"},
		{"query in a path", "", `, upstream: be, proxy: {routes: [{match: {prefix: "/a?b"}}]}`, `match.prefix: "/a?b"; expected / and no spaces, ? or #`},
		{"rewrite", "", `, upstream: be, proxy: {routes: [{match: {prefix: /a}, prefixRewrite: "/b c"}]}`, `prefixRewrite: "/b c"; expected / and no spaces, ? or #`},
		{"redirect and upstream", "", ", upstream: be, proxy: {routes: [{httpsRedirect: true, upstream: upstream}]}", "routes[0].upstream: given beside httpsRedirect"},
		{"redirect and timeout", "", ", upstream: be, proxy: {routes: [{httpsRedirect: true, timeout: 1s}]}", "routes[0].timeout: given beside httpsRedirect"},
		{"a cluster of the proxy's own", "", ", proxy: {upstreams: {gslb_xds: be}}", "proxy.upstreams.gslb_xds: the proxies have clusters of their own"},
		{"tracing", "", ", proxy: {tracing: {}}", ""},
		{"tracing, every word", "", `, proxy: {tracing: {collector: "grpcs://otel.test:4317", tls: {ca: otel}, serviceName: edge, clientSampling: 0, randomSampling: 0.5, overallSampling: 100, maxCacheSize: 9, flushInterval: 10ms, minFlushSpans: 1}}`, ""},
		{"collector without port", "", ", proxy: {tracing: {collector: http://otel.test}}", `tracing.collector: "http://otel.test"; expected a scheme, a host and a port`},
		{"collector's scheme", "", ", proxy: {tracing: {collector: otel.test:4317}}", `tracing.collector: "otel.test:4317"`},
		{"collector's path", "", ", proxy: {tracing: {collector: http://otel.test:4318/v1/traces}}", "expected a scheme, a host and a port"},
		{"collector's tls", "", ", proxy: {tracing: {collector: https://otel.test:4318}}", "tracing.tls: no value; expected who signs"},
		{"tls without collector", "", ", proxy: {tracing: {tls: {ca: otel}}}", "tracing.tls: given without an https:// or grpcs:// collector"},
		{"service name", "", `, proxy: {tracing: {serviceName: "a b"}}`, `tracing.serviceName: "a b"`},
		{"sampling", "", ", proxy: {tracing: {randomSampling: 101}}", "tracing.randomSampling: 101; expected 0 to 100"},
		{"flush interval", "", ", proxy: {tracing: {flushInterval: 1ms}}", "tracing.flushInterval: 1ms; expected 10ms to 1h0m0s"},
		{"xds without listen", `, xds: {certificates: certs}`, "", "node.xds.listen: no value"},
		{"xds off loopback", `, xds: {listen: "192.0.2.9:18000"}`, "", "node.xds.tls.ca: no value"},
		{"xds port taken", `, admin: "127.0.0.1:9", xds: {listen: "127.0.0.1:9"}`, "", "127.0.0.1:9 is already node.admin"},
		{"xds", `, xds: {listen: "192.0.2.9:18000", tls: {cert: a, key: b, ca: c}, certificates: d}`, "", ""},
		{"raw list", "", up + ", envoy: [1]}", "upstream.envoy: found a list; expected a mapping"},
		{"raw null", "", up + ", envoy: {a: {b: }}}", "envoy.a.b: no value"},
		{"raw infinity", "", up + ", envoy: {a: .inf}}", "expected a number that JSON can hold"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("gslb.yaml", []byte(proxyFile(tt.node, tt.extra)))
			switch {
			case err == nil && tt.want != "":
				t.Errorf("no fault, want %q", tt.want)
			case err != nil && (tt.want == "" || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("fault %v, want %q", err, tt.want)
			}
		})
	}
}

// TestProxyRoundTrip writes and reads what proxies are told: as YAML, and as the store does.
func TestProxyRoundTrip(t *testing.T) {
	f, err := ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	pool := f.Pools["gfe-eu"]
	if got := pool.Proxy.Envoy.Listener["per_connection_buffer_limit_bytes"]; got != 32768.0 {
		t.Errorf("raw number %v (%T), want 32768 as JSON has it", got, got)
	}
	text, err := MarshalYAML(&Objects{Pools: map[string]Pool{"gfe-eu": pool}})
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseObjects("back.yaml", text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if !Equal(back.Pools["gfe-eu"], pool) {
		t.Errorf("through YAML: %+v, want %+v", back.Pools["gfe-eu"], pool)
	}
	data, err := MarshalObject(pool)
	if err != nil {
		t.Fatal(err)
	}
	var into Objects
	if err := DecodeObject("pools", "gfe-eu", data, &into); err != nil {
		t.Fatal(err)
	}
	if !Equal(into.Pools["gfe-eu"], pool) {
		t.Errorf("through the store: %+v, want %+v", into.Pools["gfe-eu"], pool)
	}
}

func TestUpstreams(t *testing.T) {
	up := Upstream{Steering: Steering{Pools: map[string]PoolRef{"be": {}}}}
	api := Upstream{Mode: SprayToWorld}
	p := Pool{Upstream: &up, Proxy: &Proxy{Upstreams: map[string]Upstream{"api": api}}}
	all := p.Upstreams()
	if len(all) != 2 || all[DefaultUpstream].Pools == nil || all["api"].Mode != SprayToWorld {
		t.Errorf("upstreams %v, want upstream and api", all)
	}
	all["x"] = up
	if len(p.Proxy.Upstreams) != 1 {
		t.Error("the map returned is the pool's own")
	}
	if got := (Site{}).EffectiveRegion("eu-west"); got != "eu-west" {
		t.Errorf("region %q, want the site's own name", got)
	}
}

func TestUsesLoad(t *testing.T) {
	for text, want := range map[string]bool{
		"services: {x.test: {pools: {a: }, policy: [health, nearest]}}":                                                                                 false,
		"services: {x.test: {pools: {a: }, policy: [health, {shed: {low: 0.7, high: 0.9}}]}}":                                                           true,
		"pools: {a: {site: s, upstream: {pools: {b: }, policy: [{shed: {low: 0.7, high: 0.9}}]}}}":                                                      true,
		"chains: {c: [{shed: {low: 0.7, high: 0.9}}]}":                                                                                                  true,
		"services: {x.test: {pools: {a: }, policy: [{match: {cases: [{if: {country: [DE]}, then: [nearest]}], else: [{shed: {low: 0.7, high: 1}}]}}]}}": true,
	} {
		o, err := ParseObjects("t.yaml", []byte(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got := o.UsesLoad(); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}
