package health

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

func TestTargets(t *testing.T) {
	addr := netip.MustParseAddr
	for _, tc := range []struct {
		name     string
		probe    config.Probe
		pool     config.Pool
		endpoint config.Endpoint
		wantAddr string // empty: no target
		wantHost string
		wantSNI  string
	}{
		{"http by its own port", config.Probe{HTTP: &config.HTTPProbe{}}, config.Pool{}, config.Endpoint{Address: addr("192.0.2.1")}, "192.0.2.1:80", "192.0.2.1", "192.0.2.1"},
		{"https by its own port, IPv6", config.Probe{HTTP: &config.HTTPProbe{TLS: true}}, config.Pool{}, config.Endpoint{Address: addr("2001:db8::1")}, "[2001:db8::1]:443", "[2001:db8::1]", "2001:db8::1"},
		{"the pool's port", config.Probe{HTTP: &config.HTTPProbe{}}, config.Pool{Port: 8080}, config.Endpoint{Address: addr("192.0.2.1")}, "192.0.2.1:8080", "192.0.2.1:8080", "192.0.2.1"},
		{"the endpoint's port", config.Probe{HTTP: &config.HTTPProbe{}}, config.Pool{Port: 8080}, config.Endpoint{Address: addr("2001:db8::1"), Port: 8081}, "[2001:db8::1]:8081", "[2001:db8::1]:8081", "2001:db8::1"},
		{"the probe's port", config.Probe{HTTP: &config.HTTPProbe{Port: 9}}, config.Pool{Port: 8080}, config.Endpoint{Address: addr("192.0.2.1"), Port: 8081}, "192.0.2.1:9", "192.0.2.1:9", "192.0.2.1"},
		{"another target", config.Probe{HTTP: &config.HTTPProbe{Port: 9}}, config.Pool{}, config.Endpoint{Address: addr("192.0.2.1"), Probe: &config.Target{Address: addr("10.0.0.1"), Port: 7}}, "10.0.0.1:7", "192.0.2.1:7", "192.0.2.1"},
		{"another target's address alone", config.Probe{TCP: &config.TCPProbe{Port: 9}}, config.Pool{}, config.Endpoint{Address: addr("192.0.2.1"), Probe: &config.Target{Address: addr("10.0.0.1")}}, "10.0.0.1:9", "", ""},
		{"a host", config.Probe{HTTP: &config.HTTPProbe{TLS: true, Host: "www.example.com:8443"}}, config.Pool{}, config.Endpoint{Address: addr("192.0.2.1")}, "192.0.2.1:443", "www.example.com:8443", "www.example.com"},
		{"a host and a server name", config.Probe{HTTP: &config.HTTPProbe{TLS: true, Host: "www.example.com", ServerName: "edge.example.com"}}, config.Pool{}, config.Endpoint{Address: addr("192.0.2.1")}, "192.0.2.1:443", "www.example.com", "edge.example.com"},
		{"tcp by the pool's port", config.Probe{TCP: &config.TCPProbe{}}, config.Pool{Port: 25}, config.Endpoint{Address: addr("192.0.2.1")}, "192.0.2.1:25", "", ""},
		{"tcp without a port", config.Probe{TCP: &config.TCPProbe{}}, config.Pool{}, config.Endpoint{Address: addr("192.0.2.1")}, "", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.pool.Probe, tc.pool.Endpoints = "p", []config.Endpoint{tc.endpoint}
			targets := Targets(&config.Objects{Probes: map[string]config.Probe{"p": tc.probe}, Pools: map[string]config.Pool{"gfe": tc.pool}})
			if tc.wantAddr == "" {
				if len(targets) != 0 {
					t.Errorf("got %+v, want none", targets)
				}
				return
			}
			if len(targets) != 1 {
				t.Fatalf("got %+v, want one", targets)
			}
			got := targets[0]
			if got.Addr.String() != tc.wantAddr || got.ID.Pool != "gfe" || got.ID.Addr != tc.endpoint.Address {
				t.Errorf("got %v at %v, want it at %v", got.ID, got.Addr, tc.wantAddr)
			}
			if h := got.Probe.HTTP; h != nil {
				if h.Host != tc.wantHost || h.ServerName != tc.wantSNI || h.Path != "/" || h.Method != "GET" || len(h.Expect) != 1 || h.Expect[0] != "200" {
					t.Errorf("got %+v, want host %q, server name %q and the defaults", h, tc.wantHost, tc.wantSNI)
				}
			}
			if p := got.Probe; time.Duration(p.Interval) != defaultInterval || time.Duration(p.Timeout) != defaultTimeout || *p.Jitter != defaultJitter || p.Rise != defaultRise || p.Fall != defaultFall {
				t.Errorf("got %+v, want the defaults", p)
			}
		})
	}
}

// TestTargetsOfMany wants pools without probes left out, order, and the objects untouched.
func TestTargetsOfMany(t *testing.T) {
	objects := &config.Objects{
		Probes: map[string]config.Probe{"fast": {TCP: &config.TCPProbe{Port: 1}, Interval: config.Duration(time.Second), Rise: 1, Fall: 1}},
		Pools: map[string]config.Pool{
			"b": {Probe: "fast", Endpoints: []config.Endpoint{{Address: idB.Addr}, {Address: idA.Addr}}},
			"a": {Probe: "fast", Endpoints: []config.Endpoint{{Address: idA.Addr}}},
			"c": {Endpoints: []config.Endpoint{{Address: idA.Addr}}},
		},
	}
	before, _ := json.Marshal(objects)
	targets := Targets(objects)
	if after, _ := json.Marshal(objects); string(after) != string(before) {
		t.Errorf("the objects became %s, want %s", after, before)
	}
	var got []string
	for _, x := range targets {
		got = append(got, x.ID.Pool+" "+x.ID.Addr.String())
		if time.Duration(x.Probe.Timeout) != time.Second {
			t.Errorf("got timeout %v, want the interval", x.Probe.Timeout)
		}
	}
	want := []string{"a 192.0.2.1", "b 192.0.2.1", "b 2001:db8::1"}
	if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("got %v, want %v", got, want)
	}
}
