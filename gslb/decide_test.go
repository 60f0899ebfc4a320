package gslb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const (
	newYork   = "192.0.2.1"
	frankfurt = "198.51.100.1"
	singapore = "203.0.113.1"
	nowhere   = "100.64.0.1"
)

// TestDecide asks for one client each: how the stages, states and failures that stand in a
// row come out.
func TestDecide(t *testing.T) {
	const (
		three   = "pools: {us: {}, eu: {}, ap: {}}"
		nearest = three + ", policy: [health, nearest]"
	)
	state := func(what string) string { return "states:\n  s1: {" + what + ", author: ann}\n" }
	tests := []struct {
		name    string
		service string
		states  string
		down    string
		flip    string
		client  string
		want    string
	}{
		// nearest
		{"nearest to New York", nearest, "", "", "", newYork, "us policy scope=24 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"nearest to Frankfurt", nearest, "", "", "", frankfurt, "eu policy scope=26 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"nearest by IPv6", nearest, "", "", "", "2001:db8:2::/56", "eu policy scope=48 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"a pool without IPv6 answers nothing there", nearest, "", "", "", singapore, "ap policy scope=24 ttl=30 10.3.0.1,10.3.0.2"},
		{"an override that names a site", nearest, "", "", "", "198.51.100.65", "ap policy scope=26 ttl=30 10.3.0.1,10.3.0.2"},
		{"the default policy", three, "", "", "", newYork, "us policy scope=24 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"6to4 is where its IPv4 is", nearest, "", "", "", "2002:c000:201::1", "us policy scope=40 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"IPv4-mapped is IPv4", nearest, "", "", "", "::ffff:192.0.2.1", "us policy scope=24 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},

		// nearest × health
		{"the nearest is down", nearest, "", "eu", "", frankfurt, "us failover scope=26 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"health after nearest says the same", three + ", policy: [nearest, health]", "", "eu", "", frankfurt, "us failover scope=26 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"another's pool is down", nearest, "", "ap", "", frankfurt, "eu policy scope=24 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"one endpoint is down", nearest, "", "eu/10.2.0.1", "", frankfurt, "eu policy scope=26 ttl=30 10.2.0.2,fd00:2::1"},
		{"without health a dead pool is answered", three + ", policy: [nearest]", "", "eu", "", frankfurt, "eu policy scope=26 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"without health dead endpoints are not", three + ", policy: [nearest]", "", "eu/10.2.0.1", "", frankfurt, "eu policy scope=26 ttl=30 10.2.0.2,fd00:2::1"},
		{"degraded goes after all others", "pools: {uk: {}, us: {}}, policy: [health, nearest]", "", "uk/10.5.0.1", "", frankfurt, "us failover scope=0 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"all that is left is degraded", "pools: {uk: {}, us: {}}, policy: [health, nearest]", "", "us uk/10.5.0.1", "", frankfurt, "uk degraded scope=0 ttl=15 10.5.0.2"},
		{"two degraded, the nearer", "pools: {uk: {}, us: {}}, policy: [health, nearest]", "", "us/10.1.0.1 us/10.1.0.2 uk/10.5.0.1", "", newYork, "us degraded scope=24 ttl=15 fd00:1::1"},
		{"an endpoint without weight is not missed", "pools: {uk: {}, us: {}}, policy: [health, nearest]", "", "uk/10.5.0.3", "", frankfurt, "uk policy scope=24 ttl=30 10.5.0.1,10.5.0.2"},
		{"without a probe all is healthy", "pools: {unprobed: {}, us: {}}, policy: [health, nearest]", "", "unprobed", "", singapore, "unprobed policy scope=24 ttl=30 10.7.0.1"},

		// failover
		{"first rank", three + ", policy: [health, failover: [ap, eu, us]]", "", "", "", newYork, "ap policy scope=0 ttl=30 10.3.0.1,10.3.0.2"},
		{"second rank", three + ", policy: [health, failover: [ap, eu, us]]", "", "ap", "", newYork, "eu failover scope=0 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"the unnamed are last", three + ", policy: [health, failover: [ap, eu]]", "", "ap eu", "", newYork, "us failover scope=0 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"nearest within a rank", three + ", policy: [health, failover: [[us, eu], ap], nearest]", "", "", "", frankfurt, "eu policy scope=24 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"nearest within a rank, not beyond", three + ", policy: [health, failover: [[us, eu], ap], nearest]", "", "eu", "", frankfurt, "us failover scope=0 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"failover breaks a tie of nearest", "pools: {us: {}, us2: {}, eu: {}}, policy: [health, nearest, failover: [us2, us]]", "", "", "", newYork, "us2 policy scope=6 ttl=30 10.4.0.1"},
		{"failover breaks a tie of nearest, first down", "pools: {us: {}, us2: {}, eu: {}}, policy: [health, nearest, failover: [us2, us]]", "", "us2", "", newYork, "us failover scope=6 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},

		// weights and standby
		{"weight 0 is never", "pools: {us: {weight: 0}, eu: {}}, policy: [health, nearest]", "", "eu", "", newYork, "eu all-down scope=0 ttl=15 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"endpoints without weight are never", "pools: {idle: {}, eu: {}}, policy: [health, nearest]", "", "", "", newYork, "eu policy scope=0 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"standby is not for now", "pools: {us: {standby: true}, eu: {}}, policy: [health, nearest]", "", "", "", newYork, "eu policy scope=0 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"standby when nothing is left", "pools: {us: {standby: true}, eu: {}}, policy: [health, nearest]", "", "eu", "", newYork, "us standby scope=0 ttl=15 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"standby not for what is degraded", "pools: {us: {standby: true}, uk: {}}, policy: [health, nearest]", "", "uk/10.5.0.1", "", newYork, "uk degraded scope=0 ttl=15 10.5.0.2"},
		{"standby when the rest is drained", "pools: {us: {standby: true}, eu: {}}, policy: [health, nearest]", state("pool: eu, state: drain"), "", "", newYork, "us standby scope=0 ttl=15 10.1.0.1,10.1.0.2,fd00:1::1"},

		// states of operators
		{"drained pool", nearest, state("pool: eu, state: drain"), "", "", frankfurt, "us failover scope=26 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"drained endpoint", nearest, state("pool: eu, endpoint: 10.2.0.1, state: drain"), "", "", frankfurt, "eu policy scope=26 ttl=30 10.2.0.2,fd00:2::1"},
		{"all that is left is drained", nearest, state("pool: eu, state: drain"), "us ap", "", frankfurt, "eu drained scope=0 ttl=15 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"drained beats down when all is", nearest, state("pool: eu, state: drain"), "us eu ap", "", frankfurt, "us all-down scope=26 ttl=15 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"every endpoint is drained", "pools: {us2: {}, eu: {}}", state("pool: us2, endpoint: 10.4.0.1, state: drain"), "", "", newYork, "eu failover scope=0 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"what is healthy is drained, and answered alone", "pools: {eu: {}}", state("pool: eu, endpoint: 10.2.0.1, state: drain"), "eu/10.2.0.2 eu/fd00:2::1", "", newYork, "eu drained scope=0 ttl=15 10.2.0.1"},
		{"forced down", nearest, state("pool: eu, state: down"), "", "", frankfurt, "us failover scope=26 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"forced up", nearest, state("pool: eu, state: up"), "eu", "", frankfurt, "eu policy scope=26 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"an endpoint's state beats its pool's", nearest, "states:\n  a: {pool: eu, state: up, author: ann}\n  b: {pool: eu, endpoint: 10.2.0.1, state: down, author: ann}\n", "eu", "", frankfurt, "eu policy scope=26 ttl=30 10.2.0.2,fd00:2::1"},
		{"a state that has ended", nearest, state("pool: eu, state: drain, until: 2026-01-05T12:00:00Z"), "", "", frankfurt, "eu policy scope=26 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"a state that ends late", nearest, state("pool: eu, state: drain, until: 2026-01-05T12:00:31Z"), "", "", frankfurt, "us failover scope=26 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"a state that ends soon", nearest, state("pool: eu, state: drain, until: 2026-01-05T12:00:20Z"), "", "", frankfurt, "us failover scope=26 ttl=10 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"a state that ends at once", nearest, state("pool: eu, state: drain, until: 2026-01-05T12:00:01Z"), "", "", frankfurt, "us failover scope=26 ttl=1 10.1.0.1,10.1.0.2,fd00:1::1"},

		// all down
		{"open by policy order", nearest, "", "us eu ap", "", frankfurt, "eu all-down scope=26 ttl=15 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"open, the forced down last", nearest, state("pool: eu, state: down"), "us ap", "", frankfurt, "us all-down scope=26 ttl=15 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"open, without the endpoint forced down", nearest, state("pool: eu, endpoint: 10.2.0.1, state: down"), "us eu ap", "", frankfurt, "eu all-down scope=26 ttl=15 10.2.0.2,fd00:2::1"},
		{"open, standby after the others", "pools: {us: {standby: true}, eu: {}}, policy: [health, nearest]", "", "us eu", "", newYork, "eu all-down scope=0 ttl=15 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"servfail", nearest + ", allDown: servfail", "", "us eu ap", "", frankfurt, "- servfail scope=0 ttl=15"},
		{"fallback to addresses", nearest + ", allDown: {fallback: [10.9.0.1, 'fd00:9::1']}", "", "us eu ap", "", frankfurt, "- fallback scope=0 ttl=15 10.9.0.1,fd00:9::1"},
		{"fallback to a name", nearest + ", allDown: {fallback: [sorry.example]}", "", "us eu ap", "", frankfurt, "- fallback scope=0 ttl=15 cname=sorry.example"},
		{"nothing could ever answer", "pools: {idle: {}}", "", "", "", newYork, "- servfail scope=0 ttl=15"},

		// TTL
		{"its own TTL", nearest + ", ttl: 2m", "", "", "", newYork, "us policy scope=24 ttl=120 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"an endpoint is about to change", nearest, "", "", "us/10.1.0.2", newYork, "us policy scope=24 ttl=15 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"elsewhere an endpoint is about to change", nearest, "", "", "ap", newYork, "us policy scope=24 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"the first choice is about to return", nearest, "", "us", "us", newYork, "eu failover scope=24 ttl=15 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"what no probe decides is not about to change", nearest, state("pool: us, state: up"), "", "us", newYork, "us policy scope=24 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"a short TTL is not lengthened", nearest + ", ttl: 3s", "", "", "us", newYork, "us policy scope=24 ttl=3 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"nor halved below the floor", nearest + ", ttl: 8s", "", "", "us", newYork, "us policy scope=24 ttl=5 10.1.0.1,10.1.0.2,fd00:1::1"},

		// what does not depend on the client
		{"one pool", "pools: {eu: {}}", "", "", "", newYork, "eu policy scope=0 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"equally near for everybody", "pools: {us: {}, us2: {standby: true}}", "", "", "", newYork, "us policy scope=0 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"select more than there are", "pools: {eu: {}}, policy: [health, select: {answers: 2}]", "", "", "", newYork, "eu policy scope=0 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"select as many as are healthy", "pools: {eu: {}}, policy: [health, select: {answers: 1}]", "", "eu/10.2.0.2", "", newYork, "eu policy scope=0 ttl=30 10.2.0.1,fd00:2::1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := mustBuild(t, nil, testInputs(t, tt.service, tt.states, tt.down, tt.flip))
			svc := s.Service("w.example")
			var d Decision
			s.Decide(svc, client(tt.client), &d)
			if got := d.line(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			checkExplains(t, s, svc, client(tt.client))
		})
	}
}

// TestSharedAmong checks who shares the clients, and that only a split lengthens the scope.
func TestSharedAmong(t *testing.T) {
	tests := []struct {
		name    string
		service string
		down    string
		client  string // its first 16 bits
		want    string // pools that clients reach
		reasons string
		scope   uint8
	}{
		{"weighted among all", "pools: {us: {}, eu: {weight: 3}, ap: {weight: 0}}, policy: [health, weighted]", "", "100.64", "eu us", "policy", 24},
		{"sticky at another length", "pools: {us: {}, eu: {}}, policy: [weighted], sticky: {ipv4: 20}", "", "100.64", "eu us", "policy", 20},
		{"weighted in the best rank", "pools: {us: {}, eu: {}, ap: {}}, policy: [health, failover: [[us, eu], ap], weighted]", "", "100.64", "eu us", "policy", 24},
		{"weighted in the best rank that is left", "pools: {us: {}, eu: {}, ap: {}}, policy: [health, failover: [[us, eu], ap], weighted]", "us", "100.64", "eu", "failover", 0},
		{"weighted in the second rank", "pools: {us: {}, us2: {}, ap: {}, eu: {}}, policy: [health, failover: [ap, [us, us2, eu]], weighted]", "ap", "100.64", "eu us us2", "failover", 24},
		{"some of a rank are left", "pools: {us: {}, us2: {}, eu: {}}, policy: [health, weighted]", "eu", "100.64", "us us2", "failover policy", 24},
		{"an unknown place is equally near to all", "pools: {us: {}, eu: {}}, policy: [health, nearest]", "", "100.64", "eu us", "policy", 24},
		{"two pools at one site", "pools: {us: {}, us2: {}, eu: {}}, policy: [health, nearest]", "", "192.0", "eu us us2", "policy", 24},
		{"weighted ends the ordering", "pools: {us: {}, eu: {}}, policy: [weighted, failover: [eu, us]]", "", "100.64", "eu us", "policy", 24},
		{"a trickle to the only one that is left", "pools: {us: {}, eu: {}}, policy: [health, trickle: {to: [eu], share: 0.5}, failover: [us, eu]]", "us", "100.64", "eu", "failover trickle", 0},
		{"all down, open to all of them", "pools: {us: {}, eu: {}}, policy: [health, weighted]", "us eu", "100.64", "eu us", "all-down", 24},
		{"all down, ap forced and so not", "pools: {us: {}, eu: {}, ap: {}}, policy: [health, weighted]", "us eu ap", "100.64", "ap eu us", "all-down", 24},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := mustBuild(t, nil, testInputs(t, tt.service, "", tt.down, ""))
			svc := s.Service("w.example")
			pools, reasons := map[string]bool{}, map[string]bool{}
			var d Decision
			for i := range 256 {
				b := netip.MustParseAddr(tt.client + ".0.1").As4()
				b[2] = byte(i)
				c := Client{netip.AddrFrom4(b), 32}
				s.Decide(svc, c, &d)
				pools[d.Pool.Name], reasons[d.Reason.String()] = true, true
				if d.Scope != tt.scope {
					t.Fatalf("%s: %s; want scope %d", c.Addr, d.line(), tt.scope)
				}
				checkExplains(t, s, svc, c)
			}
			if got := keys(pools); got != tt.want {
				t.Errorf("clients reach %q, want %q", got, tt.want)
			}
			if got := keys(reasons); got != tt.reasons {
				t.Errorf("reasons %q, want %q", got, tt.reasons)
			}
		})
	}
}

// TestFlags asks what else than its order decided, and checks that saying so splits no scope.
func TestFlags(t *testing.T) {
	const (
		nearest = "pools: {us: {}, eu: {}, ap: {}}, policy: [health, nearest]"
		fence   = "pools: {us: {}, eu: {}, ap: {}}, policy: [health, fence: [{when: {prefix: [198.51.100.0/26]}, deny: [eu]}], nearest]"
		standby = "pools: {us: {}, eu: {standby: true}}, policy: [health, fence: [{deny: [eu]}], nearest]"
		ranked  = "pools: {us: {}, eu: {}, ap: {}}, policy: [health, fence: [{when: {prefix: [198.51.100.0/26]}, deny: [eu]}], failover: [ap, eu, us]]"
	)
	state := func(what string) string { return "states:\n  s1: {" + what + ", author: ann}\n" }
	tests := []struct {
		name, service, states, down, client string
		want                                Flags
		reason                              Reason
	}{
		{"plain", nearest, "", "", frankfurt, 0, ReasonPolicy},
		{"a failover", nearest, "", "eu", frankfurt, 0, ReasonFailover},
		{"a fence drops the nearest", fence, "", "", frankfurt, Fenced, ReasonPolicy},
		{"a fence drops the nearest, which is down", fence, "", "eu", frankfurt, Fenced, ReasonPolicy},
		{"a fence drops what is farther", fence, "", "us", "198.51.100.65", Overridden, ReasonPolicy},
		{"a fence for others", fence, "", "", newYork, 0, ReasonPolicy},
		{"a fence drops what is behind by rank", ranked, "", "", frankfurt, 0, ReasonPolicy},
		{"a fence drops what would be next by rank", ranked, "", "ap", frankfurt, Fenced, ReasonFailover},
		{"a fence drops a standby", standby, "", "", frankfurt, 0, ReasonPolicy},
		{"all are dropped", "pools: {eu: {}}, policy: [health, fence: [{deny: [eu]}]], allDown: servfail", "", "", frankfurt, Fenced, ReasonServfail},
		{"forced up", nearest, state("pool: eu, state: up"), "eu", frankfurt, Overridden, ReasonPolicy},
		{"an endpoint drained", nearest, state("pool: eu, endpoint: 10.2.0.1, state: drain"), "", frankfurt, Overridden, ReasonPolicy},
		{"an endpoint forced down by a glob", nearest, state("match: \"*/e*/10.2.0.1\", state: down"), "", frankfurt, Overridden, ReasonPolicy},
		{"a glob over other services", nearest, state("match: \"v.example/e*\", state: up"), "", frankfurt, 0, ReasonPolicy},
		{"a state of a pool elsewhere", nearest, state("pool: us, state: up"), "", frankfurt, 0, ReasonPolicy},
		{"drained: passed over", nearest, state("pool: eu, state: drain"), "", frankfurt, 0, ReasonFailover},
		{"pinned to a site", nearest, "", "", "198.51.100.65", Overridden, ReasonPolicy},
		{"pinned, but nobody asks where", "pools: {us: {}, eu: {}}, policy: [health, failover: [us, eu]]", "", "", "198.51.100.65", 0, ReasonPolicy},
		{"one of several pools answered with", "pools: {us: {}, eu: {}}, policy: [health, failover: [us, eu], select: {answers: 8, pools: 2}]", state("pool: eu, state: up"), "", newYork, Overridden, ReasonPolicy},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := mustBuild(t, nil, testInputs(t, tt.service, tt.states, tt.down, ""))
			var d Decision
			s.Decide(s.Service("w.example"), client(tt.client), &d)
			if d.Flags != tt.want || d.Reason != tt.reason {
				t.Errorf("%s: got flags %b, %s; want %b, %s", d.line(), d.Flags, d.Reason, tt.want, tt.reason)
			}
		})
	}
	s := mustBuild(t, nil, testInputs(t, "pools: {us: {}, eu: {}}, policy: [match: [{if: {prefix: [192.0.2.0/25]}, then: [fence: [{deny: [us]}], failover: [us, eu]]}], failover: [eu, us]]", "", "", ""))
	for client, want := range map[netip.Addr]Flags{netip.MustParseAddr("192.0.2.1"): Fenced, netip.MustParseAddr("192.0.2.129"): 0} {
		var d Decision
		s.Decide(s.Service("w.example"), Client{client, 32}, &d)
		if d.Pool.Name != "eu" || d.Flags != want || d.Scope != 0 {
			t.Errorf("%s: got %s, flags %b; want eu, flags %b, with scope 0 for all are answered alike", client, d.line(), d.Flags, want)
		}
	}
}

// TestManyCases has two services that differ in which of 300 cases of a match does something.
func TestManyCases(t *testing.T) {
	policy := func(busy int) string {
		var b strings.Builder
		b.WriteString("pools: {us: {}, eu: {}}, policy: [match: [")
		for i := range 300 {
			then := ""
			if i == busy {
				then = "failover: [us, eu]"
			}
			fmt.Fprintf(&b, "{if: {prefix: [10.%d.%d.0/24]}, then: [%s]}, ", i/100, i%100, then)
		}
		return b.String() + "], failover: [eu, us]]"
	}
	in := testInputs(t, policy(0)+"}\n  v.example: {"+policy(256), "", "", "")
	s := mustBuild(t, nil, in)
	for _, tt := range []struct{ service, client, want string }{
		{"w.example", "10.0.0.1", "us"}, {"w.example", "10.2.56.1", "eu"}, {"v.example", "10.0.0.1", "eu"}, {"v.example", "10.2.56.1", "us"},
	} {
		var d Decision
		s.Decide(s.Service(tt.service), client(tt.client), &d)
		if d.Pool.Name != tt.want {
			t.Errorf("%s for %s: got %s, want %s", tt.service, tt.client, d.line(), tt.want)
		}
	}
}

// TestSelect checks a selection of endpoints: by family, spread by weight, sticky.
func TestSelect(t *testing.T) {
	o := "pools: {us: {}, eu: {}, big: {}}, policy: [health, failover: [big], select: {answers: 2}]}\n" +
		"pools:\n  big: {site: us, endpoints: [{address: 10.8.0.1}, {address: 10.8.0.2, weight: 3}, {address: 10.8.0.3}, {address: 10.8.0.4, weight: 0}, {address: 'fd00:8::1'}]"
	s := mustBuild(t, nil, testInputs(t, o, "", "", ""))
	svc := s.Service("w.example")
	first := map[string]int{}
	var d, again Decision
	const clients = 10_000
	for i := range clients {
		c := Client{netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 9}), 32}
		s.Decide(svc, c, &d)
		if len(d.V4) != 2 || d.V4[0] == d.V4[1] || len(d.V6) != 1 || d.Scope != 24 {
			t.Fatalf("%s: %s; want 2 different of IPv4, the one of IPv6 and scope 24", c.Addr, d.line())
		}
		s.Decide(svc, Client{c.Addr.Next(), 32}, &again)
		if again.V4[0] != d.V4[0] || again.V4[1] != d.V4[1] {
			t.Fatalf("%s: %v, its neighbour %v; want the same", c.Addr, d.V4, again.V4)
		}
		first[d.V4[0].String()]++
	}
	want := map[string]float64{"10.8.0.1": 0.2, "10.8.0.2": 0.6, "10.8.0.3": 0.2}
	for addr, share := range want {
		if got := float64(first[addr]) / clients; got < share-0.02 || got > share+0.02 {
			t.Errorf("%s is first for %.3f of the clients, want %.3f", addr, got, share)
		}
	}
	if first["10.8.0.4"] != 0 {
		t.Error("an endpoint of weight 0 was answered")
	}
}

// TestMaxAnswers checks that no answer is longer than a decision has room for.
func TestMaxAnswers(t *testing.T) {
	var list []string
	for i := range 40 {
		list = append(list, "{address: "+netip.AddrFrom4([4]byte{10, 8, 0, byte(i + 1)}).String()+"}")
	}
	s := mustBuild(t, nil, testInputs(t, "pools: {big: {}}}\npools:\n  big: {site: us, endpoints: ["+strings.Join(list, ", ")+"]", "", "", ""))
	var d Decision
	s.Decide(s.Service("w.example"), client(newYork), &d)
	if len(d.V4) != MaxAnswers || d.Scope != 24 {
		t.Errorf("%d answers, scope %d; want %d and 24", len(d.V4), d.Scope, MaxAnswers)
	}
}

// checkExplains checks that Explain says what Decide says, and that the last stage keeps
// the chosen pool, and behind it those that are in the answer, too.
func checkExplains(t *testing.T, s *Snapshot, svc *Service, c Client) {
	t.Helper()
	var d Decision
	s.Decide(svc, c, &d)
	e := s.Explain(svc, c)
	x := Decision{Service: svc, Pool: s.Pool(e.Pool), Reason: d.Reason, Scope: e.Scope, TTL: e.TTL, Fallback: e.CNAME, V4: e.Answers}
	if got, want := x.line(), d.line(); got != want || e.Reason != d.Reason.String() {
		t.Fatalf("Explain(%v): %s %s; Decide: %s", c, e.Reason, got, want)
	}
	last := e.Stages[len(e.Stages)-1]
	if d.Pool == nil {
		if len(last.Kept) != 0 {
			t.Fatalf("Explain(%v): %+v; want no pool, for Decide says %s", c, e.Stages, d.line())
		}
		return
	}
	if len(last.Kept) == 0 || last.Kept[0].Pool != d.Pool.Name {
		t.Fatalf("Explain(%v): %+v; want %s at the end", c, e.Stages, d.Pool.Name)
	}
	kept := map[string]bool{}
	for i, k := range last.Kept {
		if kept[k.Pool] = true; i > 0 && !s.Pool(k.Pool).answersIn(&d) {
			t.Fatalf("Explain(%v): %+v; %s has no address in %s", c, e.Stages, k.Pool, d.line())
		}
	}
	if len(svc.steering.limits) > 1 || d.Reason == ReasonOverflow {
		return // the order is not all that decides
	}
	if n := len(e.Stages); e.Stages[n-2].Kept[0].Pool != d.Pool.Name {
		t.Fatalf("Explain(%v): %+v; want %s first after the last stage", c, e.Stages, d.Pool.Name)
	}
	for _, p := range svc.Pools {
		if reason := lost(e, p.Name); !kept[p.Name] && reason == "" {
			t.Fatalf("Explain(%v): %+v: no word of why not %s", c, e.Stages, p.Name)
		}
	}
}

// lost returns why a pool was not chosen.
func lost(e *Explanation, pool string) string {
	for _, s := range e.Stages {
		for _, l := range s.Lost {
			if l.Pool == pool {
				return s.Stage + ": " + l.Note
			}
		}
	}
	return ""
}

func keys(m map[string]bool) string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
