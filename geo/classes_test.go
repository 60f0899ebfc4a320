package geo

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
)

// TestClasses compares a map laid over prefixes with both asked one after the other, and
// the scope with its halves: what is one class must be of one place and one mark.
func TestClasses(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	random := func() netip.Prefix { return randomPrefix(rng) }
	for round := range 200 {
		var c Config
		seen := map[netip.Prefix]bool{}
		for range rng.IntN(12) {
			if p := random(); !seen[p] {
				seen[p] = true
				c.Overrides = append(c.Overrides, Override{p, Place{Site: string(rune('a' + rng.IntN(3)))}})
			}
		}
		m, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		var marks []netip.Prefix
		clear(seen)
		for range rng.IntN(12) {
			if p := random(); !seen[p] {
				seen[p] = true
				marks = append(marks, p)
			}
		}
		if rng.IntN(8) == 0 {
			m = nil
		}
		classes := NewClasses(m, marks)
		values := make([]uint32, len(classes.All()))
		for i := range values {
			values[i] = uint32(i)
		}
		table := classes.Compile(values, nil)
		obvious := func(a netip.Addr) (place Place, mark int32) {
			if m != nil {
				p, _ := m.Lookup(a)
				place = *p
			}
			b := a.As16()
			switch {
			case a.Is4():
			case b[0] == 0x20 && b[1] == 2:
				a = netip.AddrFrom4([4]byte(b[2:6]))
			case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
				a = netip.AddrFrom4([4]byte(b[12:]))
			}
			mark = -1
			for i, p := range marks {
				if p.Contains(a) && (mark < 0 || p.Bits() > marks[mark].Bits()) {
					mark = int32(i)
				}
			}
			return place, mark
		}
		for range 100 {
			a := random().Addr()
			if rng.IntN(3) == 0 {
				b := a.AsSlice()
				b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
				a, _ = netip.AddrFromSlice(b)
			}
			if a.Is4In6() {
				continue
			}
			v, scope := table.Lookup(a)
			got := classes.All()[v]
			place, mark := obvious(a)
			var gotPlace Place
			if m != nil {
				gotPlace = m.Places()[got.Place]
			}
			if gotPlace != place || got.Mark != mark {
				t.Fatalf("round %d: %s is %+v with mark %d; want %+v, %d of %v", round, a, gotPlace, got.Mark, place, mark, marks)
			}
			inside := netip.PrefixFrom(a, int(scope)).Masked()
			for _, p := range append(marks, random()) {
				if b := p.Addr(); inside.Contains(b) {
					if bp, bm := obvious(b); bp != place || bm != mark {
						t.Fatalf("round %d: %s has scope %d, but %s inside is another", round, a, scope, b)
					}
				}
			}
		}
	}
}

// randomPrefix returns one of few prefixes, so that they nest, outside what embeds IPv4.
func randomPrefix(rng *rand.Rand) netip.Prefix {
	if rng.IntN(2) == 0 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(rng.IntN(4) * 64), byte(rng.IntN(2)), 0, byte(rng.IntN(2))}), rng.IntN(33)).Masked()
	}
	b := [16]byte{0x20, byte(rng.IntN(4)), byte(rng.IntN(2))}
	for {
		if p := netip.PrefixFrom(netip.AddrFrom16(b), rng.IntN(65)).Masked(); p.Bits() < 16 || b[1] != 2 {
			return p
		}
	}
}

// TestRecompile changes few and many values, again and again: a table that is patched is the
// one that is compiled.
func TestRecompile(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 4))
	for round := range 300 {
		var c Config
		seen := map[netip.Prefix]bool{}
		for i := range rng.IntN(60) {
			if p := randomPrefix(rng); !seen[p] {
				seen[p] = true
				c.Overrides = append(c.Overrides, Override{p, Place{ASN: uint32(1 + i%20)}})
			}
		}
		m, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		classes := NewClasses(m, nil)
		values := make([]uint32, len(classes.All()))
		last := classes.Compile(values, nil)
		for step := range 12 {
			old := slices.Clone(values)
			for range 1 + rng.IntN(1+len(values)>>(step%4)) {
				values[rng.IntN(len(values))] = uint32(rng.IntN(4))
			}
			var kinds []uint32
			if rng.IntN(2) == 0 {
				kinds = []uint32{0, 1, uint32(rng.IntN(3)), uint32(rng.IntN(2))}
			}
			want := classes.Compile(values, kinds)
			got := classes.Recompile(last, old, values, kinds)
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("round %d, step %d: from %v to %v, kinds %v:\ngot  %+v\nwant %+v", round, step, old, values, kinds, got, want)
			}
			if kinds != nil {
				if again := classes.Compile(values, nil).Rescope(kinds); !reflect.DeepEqual(again, want) {
					t.Fatalf("round %d, step %d: %v by %v:\ngot  %+v\nwant %+v", round, step, values, kinds, again, want)
				}
			}
			last = got
		}
	}
}
