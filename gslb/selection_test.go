package gslb

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestSelection checks answers that are made of several pools or failure domains, for many
// clients: how many of what, never one twice, and as often as weights say.
func TestSelection(t *testing.T) {
	const domains = "}\npools:\n  big: {site: us, endpoints: [{address: 10.8.0.1, domain: a}, {address: 10.8.0.2, domain: a}, {address: 10.8.0.3, domain: b, weight: 2}, {address: 'fd00:8::1', domain: b}]}\n"
	tests := []struct {
		name, service string
		pools         map[string][2]int // least and most IPv4 addresses of each pool in an answer
		total         [2]int
	}{
		{"several", "pools: {us: {}, eu: {}, ap: {}}, policy: [health, weighted: {answers: several}]", map[string][2]int{"us": {2, 2}, "eu": {2, 2}, "ap": {2, 2}}, [2]int{6, 6}},
		{"several, cut", "pools: {us: {}, eu: {}, ap: {}}, policy: [health, weighted: {answers: several}, select: {answers: 2}]", map[string][2]int{"us": {0, 1}, "eu": {0, 1}, "ap": {0, 1}}, [2]int{2, 2}},
		{"one per site", "pools: {us: {}, us2: {}, eu: {}}, policy: [health, weighted: {answers: several}, select: {answers: 4, perSite: 1}]", map[string][2]int{"eu": {1, 1}, "us": {0, 1}, "us2": {0, 1}}, [2]int{2, 2}},
		{"two pools in order", "pools: {us: {}, eu: {}, ap: {}}, policy: [health, failover: [ap, eu, us], select: {answers: 3, pools: 2}]", map[string][2]int{"ap": {2, 2}, "eu": {1, 1}, "us": {0, 0}}, [2]int{3, 3}},
		{"one domain", "pools: {big: {}}, policy: [health, weighted: {answers: grouped-single}]" + domains, map[string][2]int{"big": {1, 2}}, [2]int{1, 2}},
		{"each domain", "pools: {big: {}}, policy: [health, weighted: {answers: grouped-multi}]" + domains, map[string][2]int{"big": {2, 2}}, [2]int{2, 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			service, beside := tt.service, ""
			if i := len(service) - len(domains); i > 0 && service[i:] == domains {
				service, beside = service[:i], domains[len("}\npools:\n"):]
				beside = "pools:\n" + beside
			}
			s := mustBuild(t, nil, testInputs(t, service, beside, "", ""))
			svc := s.Service("w.example")
			owner := map[netip.Addr]string{}
			for _, p := range s.Pools {
				for _, e := range p.Endpoints {
					owner[e.Addr] = p.Name
				}
			}
			var d, again Decision
			counts := map[string]int{}
			const clients = 3000
			for i := range clients {
				c := Client{netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 9}), 32}
				s.Decide(svc, c, &d)
				got := map[string]int{}
				for j, a := range d.V4 {
					got[owner[a]]++
					if slices.Contains(d.V4[:j], a) {
						t.Fatalf("%s: %s twice", c.Addr, a)
					}
				}
				if owner[d.V4[0]] != d.Pool.Name || len(d.V4) < tt.total[0] || len(d.V4) > tt.total[1] {
					t.Fatalf("%s: %s; want %v answers, those of the pool first", c.Addr, d.line(), tt.total)
				}
				if len(d.V6) == 0 && len(d.Pool.view(false).up.v6.addrs) > 0 {
					t.Fatalf("%s: %s; want an IPv6 address, too", c.Addr, d.line())
				}
				for p, want := range tt.pools {
					if got[p] < want[0] || got[p] > want[1] {
						t.Fatalf("%s: %d addresses of %s in %s; want %v", c.Addr, got[p], p, d.line(), want)
					}
				}
				s.Decide(svc, Client{c.Addr.Next(), 32}, &again)
				if again.line() != d.line() {
					t.Fatalf("%s: %s, its neighbour %s; want the same", c.Addr, d.line(), again.line())
				}
				counts[d.V4[0].String()]++
			}
			if tt.name == "one domain" {
				if n := counts["10.8.0.3"]; n < clients*5/10 || n > clients*7/10 { // domain b has 3 of 5
					t.Errorf("domain b for %d of %d clients, want three fifths", n, clients)
				}
			}
			asks := client(newYork)
			if n := testing.AllocsPerRun(100, func() { s.Decide(svc, asks, &d) }); n != 0 {
				t.Errorf("%v allocations, want 0", n)
			}
		})
	}
}

// TestTargetsReachNamedPools checks that pools without a name take no place of those that have one,
// in answers that name several pools.
func TestTargetsReachNamedPools(t *testing.T) {
	const pools = "pools:\n  n1: {site: us, hostname: n1.example, endpoints: [{address: 10.8.0.1}]}\n  n2: {site: us, hostname: n2.example, endpoints: [{address: 10.8.0.2}]}\n"
	tests := []struct {
		service string
		want    []string
	}{
		{"pools: {us: {}, eu: {}, n1: {}}, policy: [health, failover: [us, eu, n1]], https: {pools: 2}", []string{"us", "n1"}},
		{"pools: {n1: {}, us: {}, eu: {}, n2: {}}, policy: [health, failover: [n1, us, eu, n2]], https: {pools: 2}", []string{"n1", "n2"}},
		{"pools: {us: {}, eu: {}, n1: {}, n2: {}}, policy: [health, failover: [us, [eu, n2], n1]], srv: {port: 443, pools: 3}", []string{"us", "n2", "n1"}},
		{"pools: {us: {}, n1: {}, n2: {}}, policy: [health, trickle: {to: [n1], share: 1}, failover: [us, n1, n2]], https: {pools: 2}", []string{"n1", "n2"}},
	}
	for _, tt := range tests {
		s := mustBuild(t, nil, testInputs(t, tt.service, pools, "", ""))
		var d Decision
		s.Decide(s.Service("w.example"), client("192.0.2.1"), &d)
		if got := targetsOf(&d); !slices.Equal(got, tt.want) {
			t.Errorf("{%s}: %v, want %v", tt.service, got, tt.want)
		}
	}
}

// TestWeightedOverflow checks that the clients whom a pool hands on under its load go by overflow, and
// the others by policy, whether it keeps some of them or none.
func TestWeightedOverflow(t *testing.T) {
	in := testInputs(t, "pools: {us: {}, eu: {}}, policy: [health, {shed: {low: 0.5, high: 1}}, weighted]", "", "", "")
	free := mustBuild(t, nil, in)
	for _, load := range []float64{0.75, 1} {
		in.Load = map[string]float64{"us": load}
		s := mustBuild(t, nil, in)
		var was, is Decision
		moved := 0
		for i := range 2000 {
			c := Client{netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 9}), 32}
			free.Decide(free.Service("w.example"), c, &was)
			s.Decide(s.Service("w.example"), c, &is)
			want := ReasonPolicy
			if was.Pool.Name != is.Pool.Name {
				want = ReasonOverflow
				moved++
			}
			if is.Reason != want {
				t.Fatalf("load %v: %s: %s, without load %s; want %s", load, c.Addr, is.line(), was.line(), want)
			}
		}
		if moved == 0 || moved == 2000 {
			t.Errorf("load %v: %d clients moved", load, moved)
		}
	}
}

// TestRankAsOffered chooses the best of random answers, of equal weights and others, by comparing all
// with all and one after the other.
func TestRankAsOffered(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 2000 {
		var a answers
		a.even = rng.IntN(2) == 0
		for i := range 1 + rng.IntN(maxRanked) {
			a.seeds = append(a.seeds, rng.Uint64())
			a.means = append(a.means, 1/float64(1+rng.IntN(4)))
			if a.even {
				a.means[i] = a.means[0]
			}
		}
		n, key := 1+rng.IntN(len(a.seeds)), rng.Uint64()
		var got, want best
		got.rank(n, &a, key)
		for i, seed := range a.seeds {
			want.offer(n, int32(i), draw(key, seed, a.means[i]))
		}
		if g, w := got.index[:got.found], want.index[:want.found]; !slices.Equal(g, w) {
			t.Fatalf("of means %v, the %d best are %v, want %v", a.means, n, g, w)
		}
	}
}
