package geo

import (
	"net/netip"
)

// Class is what a policy may know of a client: its place, and the longest of the prefixes
// that the policy names around it.
type Class struct {
	Place uint32 // index in Map.Places
	Mark  int32  // index of a prefix; -1: none of them holds the client
}

// Classes is a Map laid over a list of prefixes: a partition of the address space into
// prefixes that each have one Class. It is immutable and safe for concurrent use.
type Classes struct {
	table *Table // its values index all
	all   []Class
}

// NewClasses lays m, which may be nil for a map that knows nothing, over prefixes. Each
// prefix is masked and stands there once; none lies within the ranges that embed IPv4, whose
// addresses count as the one inside them.
func NewClasses(m *Map, prefixes []netip.Prefix) *Classes {
	if m == nil {
		m = &Map{places: []Place{{}}}
		m.table.fill([]leaf{{}}, []leaf{{}})
	}
	c := &Classes{}
	if len(prefixes) == 0 {
		c.table = &m.table
		c.all = make([]Class, len(m.places))
		for i := range c.all {
			c.all[i] = Class{uint32(i), -1}
		}
		return c
	}
	var marks layers
	for i, p := range prefixes {
		l := leafOf(p, uint32(i+1))
		if p.Addr().Is4() {
			marks.v4 = append(marks.v4, l)
		} else {
			marks.v6 = append(marks.v6, l)
		}
	}
	seen := make(map[Class]uint32)
	join := func(place, mark uint32) uint32 {
		if place == embedded {
			return embedded
		}
		k := Class{place, int32(mark) - 1}
		i, ok := seen[k]
		if !ok {
			i = uint32(len(c.all))
			seen[k] = i
			c.all = append(c.all, k)
		}
		return i
	}
	v4 := overlay(m.table.v4.leaves(), paint(marks.v4), join)
	v6 := overlay(m.table.v6.leaves(), paint(holes), func(place, hole uint32) uint32 {
		if hole != 0 {
			return embedded
		}
		return place
	})
	v6 = overlay(v6, paint(marks.v6), join)
	c.table = new(Table)
	c.table.fill(v4, v6)
	return c
}

// All returns every class. The slice belongs to c.
func (c *Classes) All() []Class { return c.all }

// Lookup returns the index of the class of addr, and the scope of that answer as Table.Lookup
// has it.
func (c *Classes) Lookup(addr netip.Addr) (class uint32, scope uint8) { return c.table.Lookup(addr) }

// Compile returns the table of values over c. values maps an index of c.All to anything but
// 2^32-1; neighbours with equal values become one prefix. kinds maps values to those whose
// answers are the same, see Table; nil is each to itself.
func (c *Classes) Compile(values, kinds []uint32) *Table {
	return c.table.merged(values).scoped(kinds)
}

// Recompile is Compile, where last is the table that Compile made of the values old, whatever
// the kinds were: what did not change is copied from it, which takes less time.
func (c *Classes) Recompile(last *Table, old, values, kinds []uint32) *Table {
	changed := make([]bool, len(values))
	for i, v := range values {
		changed[i] = v != old[i]
	}
	return c.table.patched(last, changed, values).scoped(kinds)
}

// leaves returns s as a partition.
func (s *space) leaves() []leaf {
	out := make([]leaf, len(s.hi))
	for i, hi := range s.hi {
		out[i] = leaf{key{hi: hi}, s.bits[i], s.value[i]}
		if s.lo != nil {
			out[i].at.lo = s.lo[i]
		}
	}
	return out
}
