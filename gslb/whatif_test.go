package gslb

import (
	"math"
	"net/netip"
	"strings"
	"testing"
)

// TestWhatIf asks what would be, and checks that nothing is.
func TestWhatIf(t *testing.T) {
	const drained = "states:\n  s: {pool: eu, state: drain, author: ann}\n"
	tests := []struct{ name, states, terms, want string }{
		{"nothing", "", "", "eu policy scope=26 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"a pool down", "", "pool.eu=down", "us failover scope=26 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"an endpoint down", "", "endpoint.eu/10.2.0.1=down", "eu policy scope=26 ttl=30 10.2.0.2,fd00:2::1"},
		{"a pool drained", "", "pool.eu=drain", "us failover scope=26 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"a drain taken back", drained, "pool.eu=auto", "eu policy scope=26 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"a drain taken back that has an order and a late name", "states:\n  über: {pool: eu, state: drain, order: 7, author: ann}\n", "pool.eu=auto", "eu policy scope=26 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"an endpoint by another spelling", "", "endpoint.eu/FD00:2:0::1=down", "eu policy scope=26 ttl=30 10.2.0.1,10.2.0.2"},
		{"two sites", "", "site.eu=down site.us=drain", "ap failover scope=0 ttl=30 10.3.0.1,10.3.0.2"},
		{"the last term counts", "", "pool.eu=down pool.eu=up", "eu policy scope=26 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"weight 0", "", "weight.w.example/eu=0", "us policy scope=26 ttl=30 10.1.0.1,10.1.0.2,fd00:1::1"},
		{"a time", "states:\n  s: {pool: eu, state: drain, author: ann, until: 2026-01-05T13:00:00Z}\n", "time=2026-01-05T13:00:00Z", "eu policy scope=26 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"},
		{"unknown pool", "", "pool.x=down", `if pool.x=down: pool "x": no such pool`},
		{"unknown endpoint", "", "endpoint.eu/10.9.9.9=down", "not of pool eu"},
		{"no endpoint", "", "endpoint.eu/first=down", `"eu/first": expected POOL/ADDRESS`},
		{"a broken weight", "", "weight.w.example/eu=0.5", `"0.5": expected a whole number, 0 to 65535`},
		{"unknown state", "", "pool.eu=asleep", "expected down, up, drain or auto"},
		{"unknown kind", "", "zone.x=1", "expected pool, endpoint"},
		{"no value", "", "pool.eu", "expected a term such as"},
		{"a wrong number", "", "load.eu=much", "expected a number from 0 on"},
		{"a pool of another service", "", "weight.w.example/uk=1", "not of service w.example"},
		{"a wrong time", "", "time=noon", "expected a time"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := mustBuild(t, nil, testInputs(t, "pools: {us: {}, eu: {}, ap: {}}, policy: [health, {shed: {low: 0.5, high: 1}}, nearest]", tt.states, "", ""))
			var before, d Decision
			s.Decide(s.Service("w.example"), client(frankfurt), &before)
			was := before.line()
			next, err := s.WhatIf(strings.Fields(tt.terms)...)
			got := ""
			if err != nil {
				got = err.Error()
				if !strings.Contains(got, tt.want) {
					t.Errorf("got %s; want %s", got, tt.want)
				}
			} else {
				next.Decide(next.Service("w.example"), client(frankfurt), &d)
				if got = d.line(); got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
			}
			s.Decide(s.Service("w.example"), client(frankfurt), &d)
			if d.line() != was {
				t.Errorf("the snapshot itself now decides %s, before %s", d.line(), was)
			}
		})
	}
	s := mustBuild(t, nil, testInputs(t, "pools: {us: {}, eu: {}}, policy: [health, {shed: {low: 0.5, high: 1}}, nearest]", "", "", ""))
	next, err := s.WhatIf("load.eu=2")
	if err != nil {
		t.Fatal(err)
	}
	var d Decision
	if next.Decide(next.Service("w.example"), client(frankfurt), &d); d.Pool.Name != "us" || d.Reason != ReasonOverflow {
		t.Errorf("with eu at 200 %%: %s; want us by overflow", d.line())
	}
}

// TestCompare tries changes on decisions of which every figure is known.
func TestCompare(t *testing.T) {
	in := testInputs(t, "pools: {us: {}, eu: {}, ap: {}}, policy: [health, nearest]", "", "", "")
	in.Load = map[string]float64{"eu": 0.6, "us": 0.7}
	rows := map[RTTKey]RTT{}
	for _, m := range []struct {
		prefix, pool string
		ms           float64
	}{{"198.51.0.0/16", "eu", 500}, {"198.51.100.0/24", "eu", 10}, {"198.51.100.0/24", "us", 90}, {"192.0.2.0/24", "us", 20}} {
		rows[RTTKey{netip.MustParsePrefix(m.prefix), m.pool}] = RTT{Millis: m.ms, Samples: 9, At: now}
	}
	in.RTT = NewRTTTable(rows)
	s := mustBuild(t, nil, in)
	var samples []Sample
	for i := range 10 {
		from := []string{"198.51.100.1", "192.0.2.1"}[i%2]
		samples = append(samples, Sample{"w.example", client(from)})
	}
	samples = append(samples, Sample{"gone.example", client("192.0.2.1")})
	after, err := s.WhatIf("pool.eu=drain")
	if err != nil {
		t.Fatal(err)
	}
	p := Compare(s, after, samples)
	if p.Samples != 10 || p.Moved != 0.5 || p.Empty != 0 || len(p.Moves) != 1 || p.Moves[0] != (Move{"eu", "us", 0.5}) {
		t.Errorf("got %+v; want half of 10 samples moved from eu to us", p)
	}
	want := []PoolShift{{"eu", 0.5, 0, 0.6, 0, false}, {"us", 0.5, 1, 0.7, 1.4, true}}
	if len(p.Pools) != 2 || p.Pools[0] != want[0] || math.Abs(p.Pools[1].Expected-1.4) > 1e-9 || !p.Pools[1].Over {
		t.Errorf("pools %+v; want %+v", p.Pools, want)
	}
	if p.Km[0] > 10 || p.Km[1] < 3000 || p.Far[1] < 6000 || p.Entries != [2]int{2, 2} || p.Scope != [2]float64{25, 25} {
		t.Errorf("km %v, far %v, entries %v, scope %v; want 1 and 3103 km, 6204 at the 95th percentile, two prefixes each", p.Km, p.Far, p.Entries, p.Scope)
	}
	if p.RTT != [2]float64{15, 55} {
		t.Errorf("RTT %v; want 15 and 55 ms: the longest prefix that was measured counts", p.RTT)
	}
	after, err = s.WhatIf("pool.eu=drain", "load.us=0.9")
	if err != nil {
		t.Fatal(err)
	}
	if p := Compare(s, after, samples); len(p.Pools) != 2 || p.Pools[1].Load != 0.9 || math.Abs(p.Pools[1].Expected-1.8) > 1e-9 {
		t.Errorf("pools %+v; want twice the load that is supposed of us", p.Pools)
	}
	few := []Sample{samples[0], samples[1]} // eu, us
	if p := Compare(s, after, few); p.Far[1] < 6000 {
		t.Errorf("far %v of two users, one of whom is moved; want 6204 at the 95th percentile", p.Far)
	}
	if p := Compare(s, s, samples); p.Moved != 0 || len(p.Moves) != 0 {
		t.Errorf("nothing changed: %+v", p)
	}
	inside := []Sample{{"w.example", client("64:ff9b::198.51.100.1")}, {"w.example", client("2002:c000:201::1")}}
	if p := Compare(s, after, inside); p.RTT != [2]float64{15, 55} {
		t.Errorf("RTT %v of clients of NAT64 and 6to4; want 15 and 55 ms, as of the IPv4 clients inside", p.RTT)
	}
	if p := Compare(s, s, nil); p.Samples != 0 {
		t.Errorf("of no samples: %+v", p)
	}
}

// TestReservoir checks that every decision of a window is as likely to be kept as any other,
// that old windows go, and that adding does not allocate.
func TestReservoir(t *testing.T) {
	const size, window = 100, 10_000
	counts := make([]int, 10)
	r := NewReservoir(size, window)
	for range 50 {
		for i := range window {
			r.Add("w", Client{Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})})
		}
		for _, s := range r.Samples() {
			b := s.Client.Addr.As4()
			counts[(int(b[2])<<8|int(b[3]))*10/window]++
		}
	}
	for i, n := range counts {
		if n < 400 || n > 600 { // 500 ± 4.5 standard deviations
			t.Errorf("tenth %d of the window was kept %d times, want about 500: %v", i, n, counts)
		}
	}
	r.Add("next", Client{})
	if got := r.Samples(); len(got) != size || got[0].Service != "next" {
		t.Errorf("%d samples, the first %+v; want %d, the first of the new window", len(got), got[0], size)
	}
	if n := testing.AllocsPerRun(1000, func() { r.Add("w", Client{}) }); n != 0 {
		t.Errorf("Add: %v allocations, want 0", n)
	}
}
