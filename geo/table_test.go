package geo_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/meridian-gslb/meridian/geo"
)

// twin is a Map as slow and obvious as can be: a list of prefixes, of which the longest
// that holds an address says its place. Values are what Compile is given.
type twin struct {
	overrides []geo.Override
	value     func(site string) uint32
}

// embedding ranges are placed by the IPv4 address inside them.
var (
	mapped = netip.MustParsePrefix("::ffff:0:0/96")
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4 = netip.MustParsePrefix("2002::/16")
)

func (w twin) at(a netip.Addr) uint32 {
	if b := a.As16(); a.Is6() {
		switch {
		case nat64.Contains(a):
			a = netip.AddrFrom4([4]byte(b[12:]))
		case sixTo4.Contains(a):
			a = netip.AddrFrom4([4]byte(b[2:6]))
		}
	}
	a = a.Unmap()
	site, longest := "", -1
	for _, o := range w.overrides {
		if o.Prefix.Contains(a) && o.Prefix.Bits() > longest {
			site, longest = o.Place.Site, o.Prefix.Bits()
		}
	}
	return w.value(site)
}

// corners returns the addresses within p at which the twin's value may change: the first
// address of p and of every prefix, and the one past each, also as embedded in IPv6. A
// value that all of these share is that of all of p.
func (w twin) corners(p netip.Prefix) []netip.Addr {
	var out []netip.Addr
	add := func(a netip.Addr) {
		if a.IsValid() && p.Contains(a) && !a.Is4In6() {
			out = append(out, a)
		}
	}
	add(p.Masked().Addr())
	edges := func(q netip.Prefix) {
		add(q.Addr())
		add(after(q))
	}
	for _, h := range []netip.Prefix{nat64, sixTo4} {
		edges(h)
	}
	for _, o := range w.overrides {
		edges(o.Prefix)
		if o.Prefix.Addr().Is4() && p.Addr().Is6() {
			edges(embed(nat64, o.Prefix))
			edges(embed(sixTo4, o.Prefix))
		}
	}
	return out
}

// uniform reports whether every address of p has the value v.
func (w twin) uniform(p netip.Prefix, v uint32) bool {
	for _, a := range w.corners(p) {
		if w.at(a) != v {
			return false
		}
	}
	return true
}

// after returns the first address past p, or the zero Addr.
func after(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last.Next()
}

// embed returns the IPv6 prefix in hole that embeds p.
func embed(hole, p netip.Prefix) netip.Prefix {
	b, v4 := hole.Addr().As16(), p.Addr().As4()
	copy(b[hole.Bits()/8:], v4[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), hole.Bits()+p.Bits())
}

// randomPrefix returns a prefix of either family that likely nests in or neighbours others.
func randomPrefix(rng *rand.Rand) netip.Prefix {
	length := func(most int) int {
		if rng.IntN(8) == 0 {
			return most - rng.IntN(3)
		}
		return rng.IntN(most + 1)
	}
	if rng.IntN(2) == 0 {
		b := [4]byte{192, 0, 2, 0}
		for i := range b {
			if rng.IntN(3) == 0 {
				b[i] = byte(rng.Uint32() & rng.Uint32())
			}
		}
		return netip.PrefixFrom(netip.AddrFrom4(b), length(32)).Masked()
	}
	b := netip.MustParseAddr([]string{"2001:db8::", "2001:db8:0:1::", "2002::", "64:ff9b::", "::", "2003::"}[rng.IntN(6)]).As16()
	for range rng.IntN(5) {
		b[rng.IntN(16)] = byte(rng.Uint32() & rng.Uint32())
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), length(128)).Masked()
}

// randomAddr returns an address near those prefixes.
func randomAddr(rng *rand.Rand, w twin) netip.Addr {
	p := randomPrefix(rng)
	if len(w.overrides) > 0 && rng.IntN(4) > 0 {
		p = w.overrides[rng.IntN(len(w.overrides))].Prefix
		if p.Addr().Is4() && rng.IntN(4) == 0 {
			p = embed([]netip.Prefix{nat64, sixTo4}[rng.IntN(2)], p)
		}
	}
	a := p.Addr()
	switch next := after(p); {
	case rng.IntN(3) == 0 && next.IsValid():
		a = next
	case rng.IntN(2) == 0 && a.Prev().IsValid():
		a = a.Prev()
	}
	b := a.AsSlice()
	if i := rng.IntN(len(b) * 8); rng.IntN(2) == 0 {
		b[i/8] ^= 0x80 >> (i % 8)
	}
	a, _ = netip.AddrFromSlice(b)
	return a
}

func inHole(p netip.Prefix) bool {
	for _, h := range []netip.Prefix{mapped, nat64, sixTo4} {
		if h.Bits() <= p.Bits() && h.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// TestTableAgreesWithTwin compares values and scopes with the twin over random nested
// prefixes: no address within the scope has another value, and one bit less has one.
func TestTableAgreesWithTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 11))
	for round := range 400 {
		w := twin{}
		seen := map[netip.Prefix]bool{}
		for i := range rng.IntN(40) {
			p := randomPrefix(rng)
			if seen[p] || inHole(p) {
				continue
			}
			seen[p] = true
			w.overrides = append(w.overrides, geo.Override{Prefix: p, Place: geo.Place{Site: fmt.Sprint("s", i%6)}})
		}
		m, err := geo.Open(geo.Config{Overrides: w.overrides})
		if err != nil {
			t.Fatal(err)
		}
		classes := uint32(1 + rng.IntN(4))
		w.value = func(site string) uint32 {
			if site == "" {
				return 0
			}
			return uint32(site[1]-'0') % classes
		}
		table := geo.Compile(m, func(place uint32) uint32 { return w.value(m.Places()[place].Site) }, nil)
		checkAgainst(t, rng, m, w, table)

		// The same places under values that are finer than their classes.
		classes = max(classes, 2)
		fine := geo.Compile(m, func(place uint32) uint32 { return 2*place + w.value(m.Places()[place].Site)%2 }, func(v uint32) uint32 { return v % 2 })
		wide := w
		wide.value = func(site string) uint32 { return w.value(site) % 2 }
		for range 60 {
			a := randomAddr(rng, w)
			v, scope := fine.Lookup(a)
			if v%2 != wide.at(a) {
				t.Fatalf("round %d: fine.Lookup(%s) = %d, want class %d", round, a, v, wide.at(a))
			}
			if place, _ := m.Lookup(a); m.Places()[v/2] != *place {
				t.Fatalf("round %d: fine.Lookup(%s) = %d: place %+v, want %+v", round, a, v, m.Places()[v/2], *place)
			}
			wide.checkScope(t, a, v%2, scope)
		}
		checkAll(t, m)
	}
}

// checkAgainst compares a table with the twin.
func checkAgainst(t *testing.T, rng *rand.Rand, m *geo.Map, w twin, table *geo.Table) {
	t.Helper()
	for range 60 {
		a := randomAddr(rng, w)
		got, scope := table.Lookup(a)
		if want := w.at(a); got != want {
			t.Fatalf("%v: Lookup(%s) = %d, want %d", w.overrides, a, got, want)
		}
		if p, placeScope := m.Lookup(a); w.value(p.Site) != got || placeScope < scope {
			t.Fatalf("Map.Lookup(%s) = %q, %d; the table says %d, %d", a, p.Site, placeScope, got, scope)
		}
		w.checkScope(t, a, got, scope)
	}
}

// checkScope checks that no address within the scope has another value, and that one bit
// less has one.
func (w twin) checkScope(t *testing.T, a netip.Addr, got uint32, scope uint8) {
	t.Helper()
	a = a.Unmap()
	if p := netip.PrefixFrom(a, int(scope)).Masked(); !w.uniform(p, got) {
		t.Fatalf("%v: Lookup(%s) = %d, scope %d: but %s has other values", w.overrides, a, got, scope, p)
	}
	if scope == 0 {
		return
	}
	if shorter := netip.PrefixFrom(a, int(scope)-1).Masked(); w.uniform(shorter, got) {
		t.Fatalf("%v: Lookup(%s) = %d, scope %d: but all of %s has that value", w.overrides, a, got, scope, shorter)
	}
}

// checkAll checks that the prefixes of m are in order, do not overlap and look up as
// themselves.
func checkAll(t *testing.T, m *geo.Map) {
	t.Helper()
	var before netip.Prefix
	for p, place := range m.All() {
		if before.IsValid() && before.Addr().BitLen() == p.Addr().BitLen() && (before.Overlaps(p) || p.Addr().Less(before.Addr())) {
			t.Fatalf("All: %s after %s", p, before)
		}
		before = p
		if p.Addr().Is4In6() {
			continue // looked up as IPv4
		}
		if got, scope := m.Lookup(p.Addr()); got != &m.Places()[place] || int(scope) != p.Bits() {
			t.Fatalf("All: %s at place %d; Lookup says %+v, scope %d", p, place, *got, scope)
		}
	}
}

// TestEmbedded checks what stands inside addresses, and how many bits of the others say that nothing
// does.
func TestEmbedded(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 20_000 {
		hole := []netip.Prefix{nat64, sixTo4}[rng.IntN(2)]
		a := embed(hole, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(rng.Uint32()), 2, byte(rng.Uint32())}), 32)).Addr()
		v4, before, ok := geo.Embedded(a)
		if !ok || int(before) != hole.Bits() || embed(hole, netip.PrefixFrom(v4, 32)).Addr() != a {
			t.Fatalf("Embedded(%s) = %s, %d, %t; want what was put there after %d bits", a, v4, before, ok, hole.Bits())
		}
		b := a.As16()
		bit := rng.IntN(hole.Bits())
		b[bit/8] ^= 0x80 >> (bit % 8)
		a = netip.AddrFrom16(b)
		_, before, ok = geo.Embedded(a)
		beside := func(bits int) bool {
			p := netip.PrefixFrom(a, bits).Masked()
			return !p.Overlaps(nat64) && !p.Overlaps(sixTo4)
		}
		if ok || !beside(int(before)) || beside(int(before)-1) {
			t.Fatalf("Embedded(%s) = %d, %t; want false, and the bits that it takes to say so", a, before, ok)
		}
	}
}

// TestCompileUniform checks that what does not depend on the place has scope 0, in the
// ranges that embed IPv4 too.
func TestCompileUniform(t *testing.T) {
	m := openDemo(t)
	table := geo.Compile(m, func(uint32) uint32 { return 5 }, nil)
	for _, addr := range []string{"192.0.2.1", "2001:db8:1::1", "2002:c000:201::", "64:ff9b::1", "::", "::ffff:192.0.2.1"} {
		if v, scope := table.Lookup(netip.MustParseAddr(addr)); v != 5 || scope != 0 {
			t.Errorf("Lookup(%s) = %d, %d; want 5, 0", addr, v, scope)
		}
	}
	if v4, v6 := table.Len(); v4 != 1 || v6 != 1 {
		t.Errorf("Len() = %d, %d; want 1, 1", v4, v6)
	}
}

// TestCompileCallsOncePerPlace checks the bargain that makes compiling cheap.
func TestCompileCallsOncePerPlace(t *testing.T) {
	m := openDemo(t)
	calls := map[uint32]int{}
	geo.Compile(m, func(place uint32) uint32 { calls[place]++; return place }, nil)
	for i := range m.Places() {
		if calls[uint32(i)] != 1 {
			t.Errorf("place %d: value called %d times, want once", i, calls[uint32(i)])
		}
	}
}
