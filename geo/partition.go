package geo

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

// leaf is a prefix with a value. In a partition, leaves are in the order of addresses, do
// not overlap and leave nothing out.
type leaf struct {
	at    key // every bit past bits is zero
	bits  uint8
	value uint32
}

// leafOf returns p, an IPv4 or IPv6 prefix, as a leaf.
func leafOf(p netip.Prefix, value uint32) leaf {
	return leaf{keyOf(p.Addr()), uint8(p.Bits()), value}.masked()
}

func (l leaf) masked() leaf {
	l.at = l.at.mask(l.bits)
	return l
}

func keyOf(addr netip.Addr) key {
	if addr.Is4() {
		a := addr.As4()
		return key{hi: uint64(binary.BigEndian.Uint32(a[:])) << 32}
	}
	a := addr.As16()
	return key{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])}
}

// holds reports whether o lies within l.
func (l leaf) holds(o leaf) bool { return l.bits <= o.bits && o.at.mask(l.bits) == l.at }

// paint returns the partition in which every address has the value of the longest mark
// that holds it, or zero. Of equal prefixes the last wins. marks are sorted in place.
func paint(marks []leaf) []leaf {
	marks = slices.Clone(marks)
	slices.SortStableFunc(marks, func(a, b leaf) int {
		return cmp.Or(a.at.compare(b.at), cmp.Compare(a.bits, b.bits))
	})
	out := make([]leaf, 0, 2*len(marks)+1)
	var cover func(l leaf)
	cover = func(l leaf) { // paints l from the marks that are left; those before l are used up
		for len(marks) > 0 && marks[0].at == l.at && marks[0].bits == l.bits {
			l.value = marks[0].value
			marks = marks[1:]
		}
		if len(marks) == 0 || !l.holds(marks[0]) {
			out = append(out, l)
			return
		}
		cover(leaf{l.at, l.bits + 1, l.value})
		cover(leaf{l.at.set(l.bits), l.bits + 1, l.value})
	}
	cover(leaf{})
	return out
}

// overlay returns the common refinement of two partitions: each of its prefixes is one of
// a or of b, and its value is what combine makes of the values that both have there. It is
// called once for each prefix.
func overlay(a, b []leaf, combine func(a, b uint32) uint32) []leaf {
	out := make([]leaf, 0, max(len(a), len(b)))
	for len(a) > 0 {
		x, y := a[0], b[0] // both hold the next address, so one holds the other
		fine := x
		if y.bits > x.bits {
			fine = y
		}
		out = append(out, leaf{fine.at, fine.bits, combine(x.value, y.value)})
		end := fine.at.last(fine.bits)
		if x.at.last(x.bits) == end {
			a = a[1:]
		}
		if y.at.last(y.bits) == end {
			b = b[1:]
		}
	}
	return out
}
