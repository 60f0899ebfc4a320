package gslb

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

const nearestThree = "pools: {us: {}, eu: {}, ap: {}}, policy: [health, nearest, select: {answers: 2}]"

// TestBuildShares checks what a new snapshot shares with the last: a table is compiled
// again only when what it depends on has changed.
func TestBuildShares(t *testing.T) {
	base := testInputs(t, nearestThree+"}\n  x.example: {pools: {us2: {}, eu: {}, ap: {}}, ttl: 9s}\n  y.example: {pools: {uk: {}, us: {}}", "", "", "")
	first := mustBuild(t, nil, base)
	if a, b := first.Service("w.example").routing, first.Service("x.example").routing; a != b {
		t.Error("two services with like pools have two tables, want one")
	}
	tests := []struct {
		name    string
		change  func(in *Inputs)
		changed string // services with a new table
	}{
		{"nothing", func(*Inputs) {}, ""},
		{"an endpoint of two", func(in *Inputs) { in.Verdicts[id("eu/10.2.0.1")] = Down }, ""},
		{"a whole pool", func(in *Inputs) { in.Verdicts[id("us2/10.4.0.1")] = Down }, "x.example"},
		{"a pool of two services", func(in *Inputs) { in.Verdicts[id("ap/10.3.0.1")], in.Verdicts[id("ap/10.3.0.2")] = Down, Down }, "w.example x.example"},
		{"a pool is degraded", func(in *Inputs) { in.Verdicts[id("uk/10.5.0.1")] = Down }, "y.example"},
		{"about to change", func(in *Inputs) { in.Flipping[id("uk/10.5.0.1")] = true }, ""},
		{"another map", func(in *Inputs) { in.Geo = testMap(t) }, "w.example x.example y.example"},
		{"a site that moved", func(in *Inputs) {
			o := *in.Objects
			o.Sites = map[string]config.Site{}
			for name, s := range in.Objects.Sites {
				o.Sites[name] = s
			}
			o.Sites["uk"] = config.Site{Lat: 53, Lon: -2}
			in.Objects = &o
		}, "w.example x.example y.example"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := testInputs(t, nearestThree, "", "", "")
			in.Objects, in.Geo = base.Objects, base.Geo
			tt.change(&in)
			next := mustBuild(t, first, in)
			var changed []string
			for _, svc := range next.Services {
				if svc.routing != first.Service(svc.Name).routing {
					changed = append(changed, svc.Name)
				}
			}
			if got := strings.Join(changed, " "); got != tt.changed {
				t.Errorf("new tables for %q, want %q", got, tt.changed)
			}
		})
	}
}

func id(text string) EndpointID {
	pool, addr, _ := strings.Cut(text, "/")
	return EndpointID{pool, netip.MustParseAddr(addr)}
}

// TestBuildFromAnyPredecessor checks that what a snapshot says does not depend on what it was
// built after, whatever changed: verdicts, what is about to flip, loads, plans, measurements, names,
// objects, or nothing but the time.
func TestBuildFromAnyPredecessor(t *testing.T) {
	kept := 0
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(9, seed))
		in, prefixes := randomInputs(rng)
		for in.Geo == nil || len(in.Objects.Pools) < 4 {
			in, prefixes = randomInputs(rng)
		}
		manyServices(rng, in.Objects)
		in.Since, in.FlipAt, in.Names = map[EndpointID]time.Time{}, map[EndpointID]time.Time{}, map[string][]netip.Addr{}
		var prev *Snapshot
		for round := range 40 {
			in.Revision++
			change(rng, &in, prev)
			after, alone := mustBuild(t, prev, in), mustBuild(t, nil, in)
			if !after.Next.Equal(alone.Next) {
				t.Fatalf("seed %d, round %d: next is due at %s, built alone %s", seed, round, after.Next, alone.Next)
			}
			if prev != nil {
				for i, svc := range prev.Services {
					if svc == after.Services[i] {
						kept++
					}
				}
			}
			prev = after
			sameSnapshots(t, fmt.Sprintf("seed %d, round %d", seed, round), after, alone, corners(prefixes))
		}
	}
	if kept < 100 {
		t.Errorf("services were kept %d times, want more", kept)
	}
}

// manyServices adds to the service "w" others over some of its pools, and to pools upstreams,
// delays and states that end.
func manyServices(rng *rand.Rand, o *config.Objects) {
	names := slices.Sorted(maps.Keys(o.Pools))
	timed := rng.IntN(2) == 0 // what ends by the clock is compiled anew each time
	for i := range 6 {
		some := config.Steering{Pools: map[string]config.PoolRef{}}
		for _, name := range names {
			if rng.IntN(3) == 0 {
				some.Pools[name] = config.PoolRef{Standby: rng.IntN(5) == 0}
			}
		}
		if len(some.Pools) == 0 {
			some.Pools[names[0]] = config.PoolRef{}
		}
		some.Policy = randomPolicy(rng, slices.Sorted(maps.Keys(some.Pools)), o.Chains)
		o.Services[fmt.Sprint("w", i)] = config.Service{Steering: some, TTL: config.Duration(time.Minute), HTTPS: &config.HTTPS{Pools: 1 + i%2}}
	}
	for i, name := range names {
		p := o.Pools[name]
		if timed {
			p.Delay = config.Returning{Failover: config.Duration(i%2) * config.Duration(20*time.Second), Failback: config.Duration(i%3) * config.Duration(20*time.Second), Ramp: config.Duration(i%2) * config.Duration(time.Minute)}
		}
		if i%2 == 1 {
			up := &config.Upstream{Steering: config.Steering{Pools: map[string]config.PoolRef{names[i-1]: {}}}}
			if i > 1 {
				up.Pools[names[i-2]] = config.PoolRef{}
			}
			p.Upstream = up
		}
		o.Pools[name] = p
	}
	o.Pools["alias"] = config.Pool{Site: "s0", Hostname: "cdn.example.net"}
	o.Zones = map[string]config.Zone{"w0": {Name: "w0"}}
	o.Services["w0"].Pools["alias"] = config.PoolRef{}
	if !timed {
		maps.DeleteFunc(o.States, func(_ string, st config.State) bool { return !st.Until.IsZero() })
		return
	}
	o.States["later"] = config.State{Pool: names[len(names)-1], State: "drain", Author: "ann", Until: now.Add(5 * time.Minute)}
	o.States["apart"] = config.State{Match: "w1/" + names[1], State: "down", Author: "ann", Until: now.Add(3 * time.Minute)}
}

// change changes one thing or two. Inputs keep their maps, so it changes copies.
func change(rng *rand.Rand, in *Inputs, prev *Snapshot) {
	endpoint := func() (id EndpointID) {
		all := slices.SortedFunc(maps.Keys(in.Verdicts), func(a, b EndpointID) int {
			return cmp.Or(cmp.Compare(a.Pool, b.Pool), a.Addr.Compare(b.Addr))
		})
		return all[rng.IntN(len(all))]
	}
	for range 1 + rng.IntN(2) {
		switch rng.IntN(10) {
		case 0, 1, 2, 3:
			next := maps.Clone(in.Verdicts)
			for range 1 + rng.IntN(3) {
				next[endpoint()] = Verdict(rng.IntN(3))
			}
			in.Verdicts, in.Since = next, Turned(prev, next, in.Now)
		case 4:
			in.Flipping, in.FlipAt = maps.Clone(in.Flipping), maps.Clone(in.FlipAt)
			id := endpoint()
			in.Flipping[id], in.FlipAt[id] = !in.Flipping[id], in.Now.Add(10*time.Second)
		case 5:
			in.Now = in.Now.Add(time.Duration(rng.IntN(10)) * time.Second)
		case 6:
			in.Load = maps.Clone(in.Load)
			in.Load[endpoint().Pool] = 1.2 * rng.Float64()
		case 7:
			in.Shares = map[string]map[string]float64{"w": {endpoint().Pool: rng.Float64()}, "w2": {endpoint().Pool: rng.Float64()}}
		case 8:
			in.RTT = NewRTTTable(map[RTTKey]RTT{{netip.PrefixFrom(netip.AddrFrom4([4]byte{64}), 2), endpoint().Pool}: {Millis: 5, Samples: 9, At: in.Now}})
			in.Regional = map[string]map[EndpointID]Verdict{"s1": {endpoint(): Down, endpoint(): Down}}
			in.Names = map[string][]netip.Addr{"cdn.example.net": {netip.AddrFrom4([4]byte{10, 50, 0, byte(rng.IntN(3))})}}
		case 9:
			in.Objects = in.Objects.Clone()
			if rng.IntN(2) == 0 {
				in.Objects.States["now"] = config.State{Pool: endpoint().Pool, State: "drain", Author: "ann"}
			} else {
				delete(in.Objects.States, "now")
			}
		}
	}
}

// sameSnapshots checks that two snapshots say the same: of every service to clients at those
// addresses, and to every pool's proxies.
func sameSnapshots(t *testing.T, where string, got, want *Snapshot, at []netip.Addr) {
	t.Helper()
	text := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for i, svc := range got.Services {
		other := want.Services[i]
		if svc.Name != other.Name || svc.Index != other.Index || svc.V4 != other.V4 || svc.V6 != other.V6 || svc.Names != other.Names {
			t.Fatalf("%s: service %s %d %v %v, want %s %d %v %v", where, svc.Name, svc.Index, svc.V4, svc.V6, other.Name, other.Index, other.V4, other.V6)
		}
		for n, a := range at {
			var x, y Decision
			c := Client{a, uint8(a.BitLen())}
			got.Decide(svc, c, &x)
			want.Decide(other, c, &y)
			if x.line() != y.line() || x.Flags != y.Flags {
				t.Fatalf("%s: %s: %s: %s, flags %d, want %s, flags %d", where, svc.Name, a, x.line(), x.Flags, y.line(), y.Flags)
			}
			if n%32 == 0 {
				if x, y := text(got.Explain(svc, c)), text(want.Explain(other, c)); x != y {
					t.Fatalf("%s: %s: %s: %s\nwant %s", where, svc.Name, a, x, y)
				}
			}
		}
	}
	for i, p := range got.Pools {
		if x, y := text(p), text(want.Pools[i]); x != y {
			t.Fatalf("%s: pool %s\nwant %s", where, x, y)
		}
		if x, y := text(got.Assign(p)), text(want.Assign(want.Pools[i])); x != y {
			t.Fatalf("%s: proxies of %s are sent to %s\nwant %s", where, p.Name, x, y)
		}
	}
}

// TestNext follows the end of a state as a node does, building whenever a snapshot is due:
// no answer is remembered past the end by more than the second that a TTL is at least.
func TestNext(t *testing.T) {
	for _, left := range []time.Duration{time.Second / 2, time.Second, 3 * time.Second, 29 * time.Second, 30 * time.Second, 31 * time.Second, time.Hour} {
		t.Run(left.String(), func(t *testing.T) {
			end := now.Add(left)
			in := testInputs(t, nearestThree, "states:\n  s: {pool: eu, state: drain, author: ann, until: "+end.Format(time.RFC3339Nano)+"}\n", "", "")
			builds := 0
			var d Decision
			for s := mustBuild(t, nil, in); !s.Next.IsZero(); s = mustBuild(t, s, in) {
				if builds++; builds > 20 {
					t.Fatalf("still due at %s after %d snapshots; the state ends at %s", s.Next, builds, end)
				}
				if !s.Next.After(in.Now) || s.Next.After(end) {
					t.Fatalf("built at %s: next is due at %s, want after that and not after %s", in.Now, s.Next, end)
				}
				s.Decide(s.Service("w.example"), client(frankfurt), &d)
				late := s.Next.Add(time.Duration(d.TTL) * time.Second).Sub(end) // of the last answer that s gives
				if late > time.Second || d.Pool.Name != "us" {
					t.Fatalf("built at %s: %s, valid until %s after the end", in.Now, d.line(), late)
				}
				in.Now = s.Next
			}
			if !in.Now.Equal(end) {
				t.Errorf("nothing is due after %s, want until %s", in.Now, end)
			}
			s := mustBuild(t, nil, in)
			s.Decide(s.Service("w.example"), client(frankfurt), &d)
			if want := "eu policy scope=26 ttl=30 10.2.0.1,10.2.0.2,fd00:2::1"; d.line() != want {
				t.Errorf("at the end: %s, want %s", d.line(), want)
			}
		})
	}
}

// TestPlan checks that the digest is of the objects alone.
func TestPlan(t *testing.T) {
	in := testInputs(t, nearestThree, "", "", "")
	a := mustBuild(t, nil, in)
	in.Revision, in.Now, in.Geo, in.Verdicts = 99, now.Add(time.Hour), nil, nil
	b := mustBuild(t, a, in)
	c := mustBuild(t, nil, testInputs(t, nearestThree+", ttl: 31s", "", "", ""))
	if a.Plan != b.Plan || a.Plan == c.Plan || len(a.Plan) != 12 {
		t.Errorf("plans %s, %s and, with another TTL, %s; want two equal ones of 12 digits and another", a.Plan, b.Plan, c.Plan)
	}
	if a.Revision != 7 || b.Revision != 99 {
		t.Errorf("revisions %d and %d, want those asked for", a.Revision, b.Revision)
	}
}

// TestBuildFaults gives Build what config.Validate refuses.
func TestBuildFaults(t *testing.T) {
	in := Inputs{Objects: &config.Objects{
		Sites: map[string]config.Site{"us": {}},
		Pools: map[string]config.Pool{
			"a": {Site: "us"}, "b": {Site: "nowhere"},
			"c": {Site: "us", Upstream: &config.Upstream{Steering: config.Steering{Pools: map[string]config.PoolRef{"none": {}}}}},
		},
		Services: map[string]config.Service{
			"s1": {Steering: config.Steering{Pools: map[string]config.PoolRef{"a": {}}, Policy: []config.Stage{{}}}},
			"s2": {Steering: config.Steering{Pools: map[string]config.PoolRef{"a": {}}, Policy: []config.Stage{{Select: &config.SelectStage{Answers: 17}}}}},
		},
		States: map[string]config.State{"x": {Pool: "a", State: "sleepy"}},
	}}
	s, err := Build(nil, in)
	if err == nil {
		t.Fatalf("Build = %+v, want an error", s)
	}
	for _, want := range []string{
		`pool b: site "nowhere": no such site`,
		`pool c: upstream: pool "none": no such pool`,
		"service s1: policy: stage 1: no kind; expected fence, health, failover, nearest, rtt, trickle, shed, capacity, weighted, sticky, select, match or chain",
		"service s2: policy: stage 1: select: answers 17: expected 1..16",
		`state x: state "sleepy": expected drain, down, up or auto`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Build: %v\nwant it to say %s", err, want)
		}
	}
}

// TestBuildOfNothing checks the smallest snapshots.
func TestBuildOfNothing(t *testing.T) {
	for _, o := range []*config.Objects{nil, {}} {
		s := mustBuild(t, nil, Inputs{Objects: o})
		if s.Service("w.example") != nil || s.Pool("us") != nil || !s.Next.IsZero() {
			t.Errorf("Build of nothing = %+v", s)
		}
	}
	in := testInputs(t, nearestThree, "", "", "")
	in.Geo = nil
	s := mustBuild(t, nil, in)
	var d Decision
	if s.Decide(s.Service("w.example"), client(frankfurt), &d); d.Pool == nil || d.Scope != 24 {
		t.Errorf("without geography: %s; want a share of all pools at scope 24", d.line())
	}
}

// TestSnapshotNames checks order, indexes and lookups.
func TestSnapshotNames(t *testing.T) {
	s := mustBuild(t, nil, testInputs(t, nearestThree+"}\n  a.example: {pools: {eu: {}}}\n  z.example: {pools: {eu: {}}", "", "", ""))
	for i, svc := range s.Services {
		if svc.Index != i || s.Service(svc.Name) != svc || i > 0 && s.Services[i-1].Name >= svc.Name {
			t.Errorf("service %d is %s with index %d, found as %v", i, svc.Name, svc.Index, s.Service(svc.Name))
		}
	}
	for i, p := range s.Pools {
		if p.Index != i || s.Pool(p.Name) != p || i > 0 && s.Pools[i-1].Name >= p.Name {
			t.Errorf("pool %d is %s with index %d, found as %v", i, p.Name, p.Index, s.Pool(p.Name))
		}
	}
	if got := fmt.Sprint(len(s.Services), len(s.Pools), s.Service("b.example"), s.Pool("")); got != "3 7 <nil> <nil>" {
		t.Errorf("got %s, want 3 services, 7 pools and nothing of other names", got)
	}
}

// TestPoolState checks what a pool says of itself.
func TestPoolState(t *testing.T) {
	s := mustBuild(t, nil, testInputs(t, nearestThree, "states:\n  a: {pool: us, state: drain, author: ann}\n  b: {pool: ap, endpoint: 10.3.0.1, state: up, author: ann}\n", "ap uk/10.5.0.1", ""))
	tests := []struct {
		pool     string
		healthy  float64
		degraded bool
		drained  bool
		first    Endpoint
	}{
		{"us", 1, false, true, Endpoint{Addr: netip.MustParseAddr("10.1.0.1"), Weight: 1, Verdict: Up}},
		{"ap", 0.5, false, false, Endpoint{Addr: netip.MustParseAddr("10.3.0.1"), Weight: 1, Verdict: Up, Forced: true}},
		{"uk", 1.0 / 3, true, false, Endpoint{Addr: netip.MustParseAddr("10.5.0.1"), Weight: 2, Verdict: Down}},
		{"idle", 0, true, false, Endpoint{Addr: netip.MustParseAddr("10.6.0.1"), Verdict: Up}},
	}
	for _, tt := range tests {
		p := s.Pool(tt.pool)
		if p.Healthy != tt.healthy || p.Degraded != tt.degraded || p.Drained != tt.drained || p.Endpoints[0] != tt.first {
			t.Errorf("pool %s: healthy %v, degraded %v, drained %v, %+v; want %+v", p.Name, p.Healthy, p.Degraded, p.Drained, p.Endpoints[0], tt)
		}
	}
}

// TestDecideDoesNotAllocate covers each kind of answer: none of them may allocate.
func TestDecideDoesNotAllocate(t *testing.T) {
	for _, service := range []string{
		nearestThree,
		"pools: {us: {}, eu: {}, ap: {}}, policy: [health, weighted]",
		"pools: {us: {}}, policy: [select: {answers: 1}]",
		"pools: {us: {}, eu: {}}, policy: [health, shed: {low: 0, high: 1}, trickle: {to: [us], share: 0.3}, capacity: {shares: {eu: 0.5}}, nearest, select: {answers: 1}], https: {pools: 2}",
		"pools: {us: {}, eu: {}}, policy: [fence: [{when: {prefix: [198.51.100.0/25]}, deny: [us]}], match: [{if: {prefix: [192.0.0.0/8]}, then: [sticky: {ipv4: 16}]}], nearest]",
		"pools: {idle: {}}",
		"pools: {idle: {}}, allDown: {fallback: [sorry.example]}",
	} {
		s := mustBuild(t, nil, testInputs(t, service, "", "", ""))
		svc := s.Service("w.example")
		for _, c := range []string{frankfurt, nowhere, "2001:db8:3::1", "2002:c000:201::1"} {
			c := client(c)
			var d Decision
			if n := testing.AllocsPerRun(100, func() { s.Decide(svc, c, &d) }); n != 0 {
				t.Errorf("{%s}: Decide for %s: %v allocations, want 0", service, c.Addr, n)
			}
		}
	}
}

// TestTurned follows verdicts over snapshots.
func TestTurned(t *testing.T) {
	in := testInputs(t, nearestThree, "", "", "")
	eu := id("eu/10.2.0.1")
	var s *Snapshot
	for i, step := range []struct {
		verdict Verdict
		want    time.Duration // after now; <0: not turned
	}{{Unknown, -1}, {Up, -1}, {Up, -1}, {Down, 3 * time.Minute}, {Down, 3 * time.Minute}, {Up, 5 * time.Minute}, {Unknown, -1}} {
		in.Now = now.Add(time.Duration(i) * time.Minute)
		in.Verdicts = map[EndpointID]Verdict{eu: step.verdict}
		in.Since = Turned(s, in.Verdicts, in.Now)
		at, ok := in.Since[eu]
		if ok != (step.want >= 0) || ok && at.Sub(now) != step.want {
			t.Errorf("step %d, %s: turned %v %v, want %v", i, step.verdict, ok, at.Sub(now), step.want)
		}
		s = mustBuild(t, s, in)
	}
}
