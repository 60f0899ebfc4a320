package gslb

import (
	"fmt"
	"strings"
	"testing"
)

// TestAssign checks where the proxies of a pool at eu send requests next.
func TestAssign(t *testing.T) {
	tests := []struct {
		name, upstream, states, down, want string
	}{
		{"a name", "us", "", "", "0:us×1[10.1.0.1 10.1.0.2 fd00:1::1]"},
		{"names, the nearest first", "[us, ap, eu]", "", "", "0:eu×1[10.2.0.1 10.2.0.2 fd00:2::1] 1:us×1[10.1.0.1 10.1.0.2 fd00:1::1] 2:ap×1[10.3.0.1 10.3.0.2]"},
		{"the nearest is down", "[us, ap, eu]", "", "eu", "0:us×1[10.1.0.1 10.1.0.2 fd00:1::1] 1:ap×1[10.3.0.1 10.3.0.2]"},
		{"only healthy endpoints", "[us]", "", "us/10.1.0.1", "0:us×1[10.1.0.2 fd00:1::1]"},
		{"one site is one group", "{pools: {us: {weight: 2}, us2: {}, eu: {weight: 0}}}", "", "", "0:us×2[10.1.0.1 10.1.0.2 fd00:1::1] 0:us2×1[10.4.0.1]"},
		{"shared by weight", "{pools: {us: {weight: 2}, ap: {}}, policy: [health, weighted]}", "", "", "0:ap×1[10.3.0.1 10.3.0.2] 0:us×2[10.1.0.1 10.1.0.2 fd00:1::1]"},
		{"standby is last", "{pools: {eu: {standby: true}, us: {}}}", "", "", "0:us×1[10.1.0.1 10.1.0.2 fd00:1::1] 1:eu×1[10.2.0.1 10.2.0.2 fd00:2::1]"},
		{"drained is last", "[eu, us]", "states:\n  s: {pool: eu, state: drain, author: ann}\n", "", "0:us×1[10.1.0.1 10.1.0.2 fd00:1::1] 1:eu×1[10.2.0.1 10.2.0.2 fd00:2::1]"},
		{"degraded is after what is not", "[uk, us]", "", "uk/10.5.0.1", "0:us×1[10.1.0.1 10.1.0.2 fd00:1::1] 1:uk×1[10.5.0.2]"},
		{"all down is open", "[us2, eu]", "", "us2 eu", "0:eu×1[10.2.0.1 10.2.0.2 fd00:2::1] 1:us2×1[10.4.0.1]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := testInputs(t, "pools: {us: {}}}\npools:\n  from: {site: eu, endpoints: [{address: 10.9.0.1}], upstream: "+tt.upstream, tt.states, tt.down, "")
			s := mustBuild(t, nil, in)
			var got []string
			for _, h := range s.Assign(s.Pool("from")) {
				var addrs []string
				for _, e := range h.Endpoints {
					addrs = append(addrs, e.Addr.String())
				}
				got = append(got, fmt.Sprintf("%d:%s×%d%v", h.Priority, h.Pool, h.Weight, addrs))
				if h.Site != s.Pool(h.Pool).Site {
					t.Errorf("hop %s: site %s, want %s", h.Pool, h.Site, s.Pool(h.Pool).Site)
				}
			}
			if got := strings.Join(got, " "); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if hops := s.Assign(s.Pool("us")); hops != nil {
				t.Errorf("a pool without an upstream: %v, want none", hops)
			}
		})
	}
}

// TestAssignTo chooses among the upstreams of a pool by name.
func TestAssignTo(t *testing.T) {
	in := testInputs(t, "pools: {us: {}}}\npools:\n  from: {site: eu, port: 80, endpoints: [{address: 10.9.0.1}], upstream: us, proxy: {upstreams: {api: eu}}", "", "", "")
	s := mustBuild(t, nil, in)
	for upstream, want := range map[string]string{"upstream": "us", "api": "eu", "none": ""} {
		got := ""
		for _, h := range s.AssignTo(s.Pool("from"), upstream) {
			got += h.Pool
		}
		if got != want {
			t.Errorf("upstream %s leads to %q, want %q", upstream, got, want)
		}
	}
}
