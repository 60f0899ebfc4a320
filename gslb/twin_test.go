package gslb

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// obvious decides as the documentation of the policies says, straight from the
// configuration, one step after the other. Only the draws are the engine's.
func obvious(in Inputs, name string, addr netip.Addr) (pool string, reason Reason, v4, v6 []netip.Addr) {
	svc := in.Objects.Services[name]
	place := geo.Place{}
	if in.Geo != nil {
		p, _ := in.Geo.Lookup(addr)
		place = *p
	}
	key := (&Service{seed: seed("service", name), sticky4: uint8(svc.Sticky.WithDefaults().IPv4), sticky6: uint8(svc.Sticky.WithDefaults().IPv6)}).key(addr)

	hasHealth := slices.ContainsFunc(svc.EffectivePolicy(), func(s config.Stage) bool { return s.Health != nil })
	var tiers [9][]string // pools that may be chosen now, the better ones first
	var perfect, everyone []string
	for pool, ref := range svc.Pools {
		x := look(in, pool)
		if ref.EffectiveWeight() == 0 || x.total == 0 {
			continue
		}
		everyone = append(everyone, pool)
		if !ref.Standby {
			perfect = append(perfect, pool)
		}
		if hasHealth && x.up == 0 {
			continue
		}
		tier := 0
		if hasHealth && float64(x.usable)/float64(x.total) < in.Objects.Pools[pool].EffectiveMinHealth() {
			tier++
		}
		if ref.Standby {
			tier += 2
		}
		if x.drained || x.up > 0 && x.usable == 0 {
			tier += 4
		}
		tiers[tier] = append(tiers[tier], pool)
	}
	answers := func(pools []string, open bool) (string, []netip.Addr, []netip.Addr) {
		pool := byDraw(pools, key, func(p string) (uint64, float64) {
			return seed("pool", p), float64(svc.Pools[p].EffectiveWeight())
		})[0]
		v4, v6 := endpointsOf(in, svc, pool, key, open)
		return pool, v4, v6
	}
	for tier, pools := range tiers {
		if len(pools) == 0 {
			continue
		}
		best := bestGroup(in, svc, place, pools)
		pool, v4, v6 = answers(best, false)
		switch {
		case tier >= 4:
			return pool, ReasonDrained, v4, v6
		case tier >= 2:
			return pool, ReasonStandby, v4, v6
		case tier == 1:
			return pool, ReasonDegraded, v4, v6
		}
		want := bestGroup(in, svc, place, perfect)
		alone := len(best) == 1 && len(want) > 1
		wanted, _, _ := answers(want, false)
		if alone || !slices.Contains(want, pool) || wanted != pool {
			return pool, ReasonFailover, v4, v6
		}
		return pool, ReasonPolicy, v4, v6
	}
	switch svc.AllDown.EffectiveMode() {
	case "servfail":
		return "", ReasonServfail, nil, nil
	case "fallback":
		for _, text := range svc.AllDown.Fallback {
			if a := netip.MustParseAddr(text); a.Is4() {
				v4 = append(v4, a)
			} else {
				v6 = append(v6, a)
			}
		}
		return "", ReasonFallback, v4, v6
	}
	var open [16][]string
	for _, pool := range everyone {
		x := look(in, pool)
		tier := 0
		if svc.Pools[pool].Standby {
			tier += 2
		}
		if x.drained || x.up > 0 && x.usable == 0 {
			tier += 4
		}
		if x.free == 0 {
			tier += 8
		}
		open[tier] = append(open[tier], pool)
	}
	for _, pools := range open {
		if len(pools) > 0 {
			pool, v4, v6 = answers(bestGroup(in, svc, place, pools), true)
			return pool, ReasonAllDown, v4, v6
		}
	}
	return "", ReasonServfail, nil, nil
}

// sight is what there is to see of a pool: endpoint weights, by what they could be used for.
type sight struct {
	total, up, usable, free int // of all; not down; not down or drained; not forced down
	drained                 bool
}

func look(in Inputs, pool string) (x sight) {
	x.drained = stateOf(in, pool, netip.Addr{}, "drain")
	for _, e := range in.Objects.Pools[pool].Endpoints {
		w := e.EffectiveWeight()
		down, forced := isDown(in, pool, e.Address)
		x.total += w
		if !down {
			x.up += w
			if !stateOf(in, pool, e.Address, "drain") {
				x.usable += w
			}
		}
		if !down || !forced {
			x.free += w
		}
	}
	return x
}

// stateOf reports whether an operator has put a target into that state now.
func stateOf(in Inputs, pool string, addr netip.Addr, state string) bool {
	for _, s := range in.Objects.States {
		if s.Pool == pool && s.Endpoint == addr && s.State == state && (s.Until.IsZero() || s.Until.After(in.Now)) {
			return true
		}
	}
	return false
}

func isDown(in Inputs, pool string, addr netip.Addr) (down, forced bool) {
	for _, target := range []netip.Addr{addr, {}} {
		if stateOf(in, pool, target, "down") {
			return true, true
		}
		if stateOf(in, pool, target, "up") {
			return false, true
		}
	}
	return in.Objects.Pools[pool].Probe != "" && in.Verdicts[EndpointID{pool, addr}] == Down, false
}

// bestGroup returns the pools that the ordering stages put first and leave equal.
func bestGroup(in Inputs, svc config.Service, place geo.Place, pools []string) []string {
	if len(pools) == 0 {
		return nil
	}
	for _, stage := range svc.EffectivePolicy() {
		var value func(pool string) float64
		switch {
		case stage.Weighted != nil:
			return pools
		case stage.Failover != nil:
			value = func(pool string) float64 {
				for i, group := range stage.Failover.Order {
					if slices.Contains(group, pool) {
						return float64(i)
					}
				}
				return math.Inf(1)
			}
		case stage.Nearest != nil:
			lat, lon, ok := place.Lat, place.Lon, place.Located
			if site, named := in.Objects.Sites[place.Site]; named {
				lat, lon, ok = site.Lat, site.Lon, true
			}
			value = func(pool string) float64 {
				if !ok {
					return 0
				}
				site := in.Objects.Sites[in.Objects.Pools[pool].Site]
				return haversine(lat, lon, site.Lat, site.Lon)
			}
		default:
			continue
		}
		least := math.Inf(1)
		for _, p := range pools {
			least = min(least, value(p))
		}
		var kept []string
		for _, p := range pools {
			if value(p) == least {
				kept = append(kept, p)
			}
		}
		pools = kept
	}
	return pools
}

// haversine returns the great-circle distance in km by the textbook's formula.
func haversine(lat1, lon1, lat2, lon2 float64) float64 {
	const rad = math.Pi / 180
	sin2 := func(x float64) float64 { s := math.Sin(x * rad / 2); return s * s }
	a := sin2(lat2-lat1) + math.Cos(lat1*rad)*math.Cos(lat2*rad)*sin2(lon2-lon1)
	return 2 * 6371.0088 * math.Asin(math.Sqrt(min(1, a)))
}

// byDraw orders names by their draws for a client.
func byDraw[E any](list []E, key uint64, of func(E) (seed uint64, weight float64)) []E {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b E) int {
		sa, wa := of(a)
		sb, wb := of(b)
		return cmp.Compare(draw(key, sa, 1/wa), draw(key, sb, 1/wb))
	})
	return list
}

// endpointsOf returns what a pool is answered with.
func endpointsOf(in Inputs, svc config.Service, pool string, key uint64, open bool) (v4, v6 []netip.Addr) {
	n := MaxAnswers
	for _, stage := range svc.EffectivePolicy() {
		if stage.Select != nil {
			n = stage.Select.Answers
		}
	}
	var usable, drained, free, freeDrained, all []config.Endpoint
	for _, e := range in.Objects.Pools[pool].Endpoints {
		if e.EffectiveWeight() == 0 {
			continue
		}
		down, forced := isDown(in, pool, e.Address)
		off := stateOf(in, pool, e.Address, "drain")
		all = append(all, e)
		if !down && !off {
			usable = append(usable, e)
		}
		if !down && off {
			drained = append(drained, e)
		}
		if !(down && forced) && !off {
			free = append(free, e)
		}
		if !(down && forced) && off {
			freeDrained = append(freeDrained, e)
		}
	}
	lists := [][]config.Endpoint{usable, drained, free, freeDrained, all}
	if open {
		lists = lists[2:]
	}
	for _, l := range lists {
		if len(l) == 0 {
			continue
		}
		for _, is4 := range []bool{true, false} {
			var family []config.Endpoint
			for _, e := range l {
				if e.Address.Is4() == is4 {
					family = append(family, e)
				}
			}
			if len(family) > n {
				family = byDraw(family, key, func(e config.Endpoint) (uint64, float64) {
					return seed("endpoint", pool, e.Address.String()), float64(e.EffectiveWeight())
				})[:n]
			}
			for _, e := range family {
				if is4 {
					v4 = append(v4, e.Address)
				} else {
					v6 = append(v6, e.Address)
				}
			}
		}
		return v4, v6
	}
	return nil, nil
}

// randomInputs returns a random configuration with one service "w", its state, and the
// prefixes of its geography.
func randomInputs(rng *rand.Rand) (in Inputs, prefixes []netip.Prefix) {
	o := &config.Objects{
		Sites: map[string]config.Site{}, Pools: map[string]config.Pool{}, Services: map[string]config.Service{}, States: map[string]config.State{},
		Probes: map[string]config.Probe{"t": {TCP: &config.TCPProbe{Port: 80}}},
	}
	in = Inputs{Revision: 1, Objects: o, Verdicts: map[EndpointID]Verdict{}, Flipping: map[EndpointID]bool{}, Now: now}
	for i := range 4 {
		o.Sites[fmt.Sprint("s", i)] = config.Site{Lat: float64(rng.IntN(160) - 80), Lon: float64(rng.IntN(360) - 180)}
	}
	o.Sites["s4"] = o.Sites["s0"]
	weight := func() *int {
		w := []int{0, 1, 1, 2, 5}[rng.IntN(5)]
		return &w
	}
	var names []string
	for i := range 1 + rng.IntN(6) {
		name := fmt.Sprint("p", i)
		names = append(names, name)
		p := config.Pool{Site: fmt.Sprint("s", rng.IntN(5)), Probe: []string{"", "t", "t"}[rng.IntN(3)]}
		sick := rng.IntN(3)
		for j := range 1 + rng.IntN(5) {
			addr := netip.AddrFrom4([4]byte{10, byte(i), 0, byte(j)})
			if rng.IntN(4) == 0 {
				addr = netip.AddrFrom16([16]byte{0xfd, byte(i), 15: byte(j)})
			}
			p.Endpoints = append(p.Endpoints, config.Endpoint{Address: addr, Weight: weight()})
			v := Verdict(rng.IntN(2))
			if rng.IntN(3) < sick {
				v = Down
			}
			in.Verdicts[EndpointID{name, addr}] = v
			if rng.IntN(8) == 0 {
				key := fmt.Sprint("e", i, ".", j)
				o.States[key] = config.State{Pool: name, Endpoint: addr, State: []string{"drain", "down", "up"}[rng.IntN(3)], Author: "ann"}
			}
		}
		o.Pools[name] = p
		if rng.IntN(6) == 0 {
			until := []time.Time{{}, now, now.Add(time.Hour)}[rng.IntN(3)]
			o.States[name] = config.State{Pool: name, State: []string{"drain", "down", "up"}[rng.IntN(3)], Author: "bob", Until: until}
		}
	}
	svc := config.Service{Steering: config.Steering{Pools: map[string]config.PoolRef{}}}
	for _, name := range names {
		svc.Pools[name] = config.PoolRef{Weight: weight(), Standby: rng.IntN(5) == 0}
	}
	svc.Policy = randomPolicy(rng, names)
	svc.AllDown = []config.AllDown{{}, {Mode: "open"}, {Mode: "servfail"}, {Mode: "fallback", Fallback: []string{"10.99.0.1", "fd99::1"}}}[rng.IntN(4)]
	if rng.IntN(3) == 0 {
		svc.Sticky = config.Sticky{IPv4: 8 + rng.IntN(25), IPv6: 16 + rng.IntN(49)}
	}
	o.Services["w"] = svc

	var g geo.Config
	seen := map[netip.Prefix]bool{}
	for range rng.IntN(30) {
		b := [16]byte{0x20, 0x01, byte(rng.IntN(2)), byte(rng.IntN(4)), byte(rng.IntN(4))}
		p := netip.PrefixFrom(netip.AddrFrom16(b), rng.IntN(60)).Masked()
		if rng.IntN(2) == 0 {
			p = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(64 * rng.IntN(4)), byte(rng.IntN(3)), byte(rng.IntN(3)), byte(rng.IntN(3))}), rng.IntN(33)).Masked()
		}
		if seen[p] {
			continue
		}
		seen[p] = true
		prefixes = append(prefixes, p)
		place := geo.Place{Located: rng.IntN(4) > 0, Lat: float64(rng.IntN(160) - 80), Lon: float64(rng.IntN(360)-180) + 0.5}
		if rng.IntN(4) == 0 {
			place = geo.Place{Site: fmt.Sprint("s", rng.IntN(7))}
		}
		g.Overrides = append(g.Overrides, geo.Override{Prefix: p, Place: place})
	}
	m, err := geo.Open(g)
	if err != nil {
		panic(err)
	}
	if rng.IntN(10) > 0 {
		in.Geo = m
	}
	return in, prefixes
}

func randomPolicy(rng *rand.Rand, pools []string) []config.Stage {
	stages := []config.Stage{{Health: &config.HealthStage{}}, {Nearest: &config.NearestStage{}}, {Weighted: &config.WeightedStage{}}}
	f := &config.FailoverStage{}
	for _, p := range pools {
		if i := rng.IntN(4); i < 3 {
			for len(f.Order) <= i {
				f.Order = append(f.Order, nil)
			}
			f.Order[i] = append(f.Order[i], p)
		}
	}
	stages = append(stages, config.Stage{Failover: f}, config.Stage{Select: &config.SelectStage{Answers: 1 + rng.IntN(3)}})
	rng.Shuffle(len(stages), func(i, j int) { stages[i], stages[j] = stages[j], stages[i] })
	stages = stages[:rng.IntN(len(stages)+1)]
	if rng.IntN(2) == 0 && len(stages) > 0 && !slices.ContainsFunc(stages, func(s config.Stage) bool { return s.Health != nil }) {
		stages = append([]config.Stage{{Health: &config.HealthStage{}}}, stages...)
	}
	return stages
}

// corners returns the addresses at which a decision may change with the place.
func corners(prefixes []netip.Prefix) (out []netip.Addr) {
	add := func(p netip.Prefix) {
		out = append(out, p.Addr())
		b := p.Addr().AsSlice()
		for i := p.Bits(); i < len(b)*8; i++ {
			b[i/8] |= 0x80 >> (i % 8)
		}
		last, _ := netip.AddrFromSlice(b)
		out = append(out, last)
		if next := last.Next(); next.IsValid() {
			out = append(out, next)
		}
	}
	for _, hole := range []string{"64:ff9b::/96", "2002::/16"} {
		h := netip.MustParsePrefix(hole)
		add(h)
		for _, p := range prefixes {
			if p.Addr().Is4() {
				b, v4 := h.Addr().As16(), p.Addr().As4()
				copy(b[h.Bits()/8:], v4[:])
				add(netip.PrefixFrom(netip.AddrFrom16(b), h.Bits()+p.Bits()))
			}
		}
	}
	for _, p := range append(prefixes, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")) {
		add(p)
	}
	return out
}

// TestDecideAgreesWithTwin compares random configurations, geographies and states with the
// twin, and each scope with brute force: no corner inside decides differently, and one bit
// less has one that does, unless the split itself is why.
func TestDecideAgreesWithTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 5))
	seen := map[Reason]int{}
	var prev *Snapshot
	for round := range 600 {
		in, prefixes := randomInputs(rng)
		if prev != nil && rng.IntN(2) == 0 {
			prev = nil
		}
		s := mustBuild(t, prev, in)
		prev = s
		svc := s.Service("w")
		at := corners(prefixes)
		decide := func(a netip.Addr) (d Decision, line string) {
			s.Decide(svc, Client{a, uint8(a.BitLen())}, &d)
			line = fmt.Sprint(d.V4, d.V6, d.Fallback)
			for _, sh := range svc.outcomes[d.Outcome].shares {
				if !sh.lost { // a split is another decision, even where the draw falls on the same pool
					line += " " + sh.pool.Name
				}
			}
			return d, line
		}
		for range 40 {
			a := at[rng.IntN(len(at))]
			if rng.IntN(4) == 0 {
				b := a.AsSlice()
				b[rng.IntN(len(b))] ^= byte(1 << rng.IntN(8))
				a, _ = netip.AddrFromSlice(b)
			}
			if a.Is4In6() {
				continue
			}
			d, line := decide(a)
			seen[d.Reason]++
			pool, reason, v4, v6 := obvious(in, "w", a)
			want := Decision{Pool: s.Pool(pool), Reason: reason, Scope: d.Scope, TTL: d.TTL, V4: v4, V6: v6}
			if got := d.line(); got != want.line() {
				t.Fatalf("round %d: %s: got %s\nwant %s\nservice %+v\nstates %+v", round, a, got, want.line(), in.Objects.Services["w"], in.Objects.States)
			}
			checkExplains(t, s, svc, Client{a, uint8(a.BitLen())})

			inside := netip.PrefixFrom(a, int(d.Scope)).Masked()
			differs := func(p netip.Prefix) (netip.Addr, bool) {
				for _, c := range append(at, p.Addr()) {
					if p.Contains(c) && !c.Is4In6() {
						if _, l := decide(c); l != line {
							return c, true
						}
					}
				}
				return netip.Addr{}, false
			}
			if c, ok := differs(inside); ok {
				t.Fatalf("round %d: %s: %s, but %s inside the scope: %s\nservice %+v", round, a, d.line(), c, func() string { d, _ := decide(c); return d.line() }(), in.Objects.Services["w"])
			}
			if split := len(svc.outcomes[d.Outcome].shares) > 1 || d.Pool != nil && cut(&d, svc); d.Scope == 0 || split && d.Scope == svc.sticky(a) {
				continue
			}
			if _, ok := differs(netip.PrefixFrom(a, int(d.Scope)-1).Masked()); !ok {
				t.Fatalf("round %d: %s: %s, but scope %d would do\nservice %+v", round, a, d.line(), d.Scope-1, in.Objects.Services["w"])
			}
		}
	}
	for r := ReasonPolicy; r <= ReasonServfail; r++ {
		if seen[r] == 0 {
			t.Errorf("no decision with reason %s among %v", r, seen)
		}
	}
}

// cut reports whether d is a selection of its pool's endpoints.
func cut(d *Decision, svc *Service) bool {
	sh := svc.outcomes[d.Outcome].shares[0]
	return len(d.V4) < len(sh.list.v4.addrs) || len(d.V6) < len(sh.list.v6.addrs)
}
