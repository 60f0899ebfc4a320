package geo

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
)

// Table gives every address one value. It holds, for each family, the partition into the
// largest prefixes that have a single value, so that the scope of a lookup is the shortest
// there is. Values may be of one class, and then the scope is that of the class: a resolver
// may reuse an answer wherever it is the same, whatever the reason for it. A table is
// immutable and safe for concurrent use.
type Table struct{ v4, v6 space }

// embedded is the value of the IPv6 ranges that embed an IPv4 address: look that up.
const embedded = ^uint32(0)

// holes are the IPv6 ranges whose addresses are looked up by the IPv4 address inside them.
// Such a prefix says by its length where the address starts. IPv4-mapped addresses are not
// among them: they are IPv4 on the way in, and no IPv6 client has one.
var holes = []leaf{
	{key{hi: 0x0064_ff9b_0000_0000}, 96, 1}, // 64:ff9b::/96, NAT64: RFC 6052, section 2.1
	{key{hi: 0x2002_0000_0000_0000}, 16, 1}, // 2002::/16, 6to4: RFC 3056, section 2
}

// Lookup returns the value of addr and the scope of that answer: the length of the largest
// prefix around addr in which every address has a value of that class, 0..32 for IPv4 and
// 0..128 for IPv6. An IPv4-mapped address is looked up as IPv4, in IPv4 bits; a scope of IPv6 bits
// never speaks of those. Lookup does not allocate.
func (t *Table) Lookup(addr netip.Addr) (value uint32, scope uint8) {
	if addr.Is4() || addr.Is4In6() {
		a := addr.As4()
		return t.v4.lookup(binary.BigEndian.Uint32(a[:]))
	}
	a := addr.As16()
	hi, lo := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	i := t.v6.find(hi, lo)
	if value = t.v6.value[i]; value != embedded {
		return value, t.v6.scope[i]
	}
	length, v4 := t.v6.bits[i], lo
	if length == 16 {
		v4 = hi >> 16
	}
	value, scope = t.v4.lookup(uint32(v4))
	if scope == 0 { // all of IPv4 is of one class, and so may be more around this range
		return value, t.v6.scope[i]
	}
	return value, length + scope
}

// Len returns the number of prefixes of each family.
func (t *Table) Len() (v4, v6 int) { return len(t.v4.hi), len(t.v6.hi) }

// All yields every prefix with its value, IPv4 first and in the order of addresses. The
// IPv6 ranges that embed IPv4 are left out: they repeat the IPv4 part.
func (t *Table) All() iter.Seq2[netip.Prefix, uint32] {
	return func(yield func(netip.Prefix, uint32) bool) {
		for i, hi := range t.v4.hi {
			var a [4]byte
			binary.BigEndian.PutUint32(a[:], uint32(hi>>32))
			if !yield(netip.PrefixFrom(netip.AddrFrom4(a), int(t.v4.bits[i])), t.v4.value[i]) {
				return
			}
		}
		for i, hi := range t.v6.hi {
			if t.v6.value[i] == embedded {
				continue
			}
			var a [16]byte
			binary.BigEndian.PutUint64(a[:8], hi)
			binary.BigEndian.PutUint64(a[8:], t.v6.lo[i])
			if !yield(netip.PrefixFrom(netip.AddrFrom16(a), int(t.v6.bits[i])), t.v6.value[i]) {
				return
			}
		}
	}
}

// Compile returns the table of value over m. value maps an index of m.Places to anything
// but 2^32-1, and is called once for each of them, in order; neighbours with equal values
// become one prefix. class, which may be nil, maps values to classes.
func Compile(m *Map, value func(place uint32) uint32, class func(value uint32) uint32) *Table {
	values := make([]uint32, len(m.places))
	most := uint32(0)
	for i := range values {
		values[i] = value(uint32(i))
		most = max(most, values[i])
	}
	if class == nil {
		return m.table.remap(values)
	}
	classes := make([]uint32, most+1)
	for i := range classes {
		classes[i] = class(uint32(i))
	}
	return m.table.classed(values, classes)
}

// remap returns the table of values[v] wherever t has v.
func (t *Table) remap(values []uint32) *Table {
	out := t.merged(values)
	out.v4.finish(false)
	out.v6.finish(true)
	return out
}

// merged returns the partitions of remap, in which nothing can be looked up.
func (t *Table) merged(values []uint32) *Table {
	out := new(Table)
	out.v4.remap(&t.v4, values, embedded)
	out.v6.remap(&t.v6, values, out.whole())
	return out
}

// classed returns the table of values, whose scopes are those of the classes of values.
func (t *Table) classed(values, classes []uint32) *Table {
	out := t.merged(values)
	wide := out.merged(classes)
	out.v4.exact(false)
	out.v6.exact(true)
	out.v4.widen(&wide.v4)
	out.v6.widen(&wide.v6)
	out.v4.search(false)
	out.v6.search(true)
	return out
}

// fill makes the table of two complete partitions; v6 has the value embedded in holes.
func (t *Table) fill(v4, v6 []leaf) {
	t.v4.grow(len(v4))
	for _, l := range v4 {
		t.v4.push(l.at, l.bits, l.value)
	}
	t.v4.finish(false)
	whole := t.whole()
	t.v6.grow(len(v6))
	for _, l := range v6 {
		if l.value == embedded {
			l.value = whole
		}
		t.v6.push(l.at, l.bits, l.value)
	}
	t.v6.finish(true)
}

// whole returns the value that all of IPv4 has, or embedded if there is more than one. The
// ranges that embed IPv4 are thus like any other when IPv4 knows a single value; and when
// it knows more, no prefix that holds such a range can be uniform.
func (t *Table) whole() uint32 {
	if len(t.v4.hi) == 1 {
		return t.v4.value[0]
	}
	return embedded
}

// key is an address, left-aligned in 128 bits: an IPv4 address is the upper half of hi.
type key struct{ hi, lo uint64 }

// space is a partition of one family's addresses into prefixes, in the order of addresses:
// 0 <= i < len(hi) is the prefix of length bits[i] that starts at (hi[i], lo[i]). Siblings
// never have the same value, so every prefix is as large as it can be.
//
// A lookup takes the leading bits of an address to index, which leaves few prefixes, and
// searches those by halves.
type space struct {
	hi, lo []uint64 // lo is nil for IPv4
	value  []uint32
	bits   []uint8
	scope  []uint8 // scope[i] <= bits[i]: how long the prefix around it is that has one class

	shift uint8    // what is left of hi after it selects an entry of index
	index []uint32 // index[p]: the last prefix that starts at or before the first address whose leading bits are p

	// Of IPv4 alone, where most lookups are: what a lookup reads of each prefix in one place,
	// so that it waits for memory twice, for index and for the starts it compares.
	starts   []start
	verdicts []verdict // distinct
}

// start is where an IPv4 prefix starts, and the index of what a lookup in it says.
type start struct{ addr, verdict uint32 }

// verdict is what a lookup says.
type verdict struct {
	value uint32
	scope uint8
}

// maxIndexBits bounds the index to 256 KiB; more would not fit the cache of a core.
const maxIndexBits = 16

// find returns the index of the prefix that holds an address.
func (s *space) find(hi, lo uint64) uint32 {
	p := hi >> s.shift
	i, j := s.index[p], s.index[p+1]
	for i < j { // the prefix is in [i, j]
		m := (i + j + 1) / 2
		if h := s.hi[m]; h < hi || h == hi && (s.lo == nil || s.lo[m] <= lo) {
			i = m
		} else {
			j = m - 1
		}
	}
	return i
}

// lookup returns value and scope of the prefix that holds an IPv4 address.
func (s *space) lookup(addr uint32) (value uint32, scope uint8) {
	p := addr >> (s.shift - 32)
	i, n := s.index[p], s.index[p+1]-s.index[p] // the prefix is in [i, i+n]
	for n > 0 {
		half := (n + 1) / 2
		if s.starts[i+half].addr <= addr {
			i += half
		}
		n -= half
	}
	v := &s.verdicts[s.starts[i].verdict]
	return v.value, v.scope
}

// pack fills starts and verdicts, once the scopes are known.
func (s *space) pack() {
	most := uint32(0)
	for _, v := range s.value {
		if v != embedded {
			most = max(most, v)
		}
	}
	seen := make([]uint32, (uint64(most)+1)*scopes) // by value and scope: 1 + index in verdicts
	s.starts = make([]start, len(s.hi))
	s.verdicts = s.verdicts[:0:0]
	for i, hi := range s.hi {
		v := verdict{s.value[i], s.scope[i]}
		j := &seen[uint64(v.value)*scopes+uint64(v.scope)]
		if *j == 0 {
			s.verdicts = append(s.verdicts, v)
			*j = uint32(len(s.verdicts))
		}
		s.starts[i] = start{uint32(hi >> 32), *j - 1}
	}
}

// scopes is how many scopes an IPv4 prefix may have: 0..32.
const scopes = 33

// push appends the next prefix in the order of addresses. As long as it is the right
// sibling of the prefix before it, with the same value, both become their parent; as what
// stands before is already merged, what comes out has no equal siblings.
func (s *space) push(at key, length uint8, value uint32) {
	for n := len(s.hi) - 1; n >= 0 && length > 0 && s.bits[n] == length && s.value[n] == value && at.bit(length-1); n-- {
		at = key{s.hi[n], s.lo[n]}
		length--
		s.hi, s.lo, s.value, s.bits = s.hi[:n], s.lo[:n], s.value[:n], s.bits[:n]
	}
	s.hi = append(s.hi, at.hi)
	s.lo = append(s.lo, at.lo)
	s.value = append(s.value, value)
	s.bits = append(s.bits, length)
}

// remap fills s with the partition of from under new values; hole is the new value of
// embedded.
func (s *space) remap(from *space, values []uint32, hole uint32) {
	deep := from.lo != nil
	s.grow(len(from.hi))
	var lo uint64
	for i, hi := range from.hi {
		if deep {
			lo = from.lo[i]
		}
		v := hole
		if old := from.value[i]; old != embedded {
			v = values[old]
		}
		s.push(key{hi, lo}, from.bits[i], v)
	}
	if !deep {
		s.lo = nil
	}
}

// grow makes room for n prefixes.
func (s *space) grow(n int) {
	s.hi, s.lo = make([]uint64, 0, n), make([]uint64, 0, n)
	s.value, s.bits = make([]uint32, 0, n), make([]uint8, 0, n)
}

// widen sets the scope of each prefix to the length of the prefix of wide that holds it.
func (s *space) widen(wide *space) {
	s.scope = make([]uint8, len(s.bits))
	w := 0
	for i := range s.hi {
		if w+1 < len(wide.hi) && (wide.hi[w+1] < s.hi[i] || wide.hi[w+1] == s.hi[i] && (s.lo == nil || wide.lo[w+1] <= s.lo[i])) {
			w++ // prefixes of wide are made of whole ones of s, so that none is passed over
		}
		s.scope[i] = wide.bits[w]
	}
}

// finish ends the pushing. deep says that prefixes may be longer than 64 bits.
func (s *space) finish(deep bool) {
	s.exact(deep)
	s.search(deep)
}

// exact gives back spare memory.
func (s *space) exact(deep bool) {
	s.hi, s.value, s.bits = exact(s.hi), exact(s.value), exact(s.bits)
	s.scope = s.bits
	if deep {
		s.lo = exact(s.lo)
	} else {
		s.lo = nil
	}
}

// search builds what a lookup needs.
func (s *space) search(deep bool) {
	n := min(maxIndexBits, bits.Len(uint(len(s.hi)-1)))
	s.shift = uint8(64 - n)
	s.index = make([]uint32, 1<<n+1)
	last := 0
	for p := range 1 << n {
		first := uint64(p) << s.shift
		for last+1 < len(s.hi) && (s.hi[last+1] < first || s.hi[last+1] == first && (!deep || s.lo[last+1] == 0)) {
			last++
		}
		s.index[p] = uint32(last)
	}
	s.index[1<<n] = uint32(len(s.hi) - 1)
	if !deep {
		s.pack()
	}
}

// exact returns a copy of s without spare capacity.
func exact[E any](s []E) []E { return slices.Clip(slices.Clone(s)) }

// bit reports the bit at position i, counted from the left.
func (k key) bit(i uint8) bool {
	if i < 64 {
		return k.hi>>(63-i)&1 == 1
	}
	return k.lo>>(127-i)&1 == 1
}

// mask returns k with all but its first n bits cleared.
func (k key) mask(n uint8) key {
	if n <= 64 {
		return key{k.hi &^ (^uint64(0) >> n), 0}
	}
	return key{k.hi, k.lo &^ (^uint64(0) >> (n - 64))}
}

// set returns k with the bit at position i set, counted from the left.
func (k key) set(i uint8) key {
	if i < 64 {
		k.hi |= 1 << (63 - i)
	} else {
		k.lo |= 1 << (127 - i)
	}
	return k
}

// last returns the last address of the prefix of length n that starts at k.
func (k key) last(n uint8) key {
	if n <= 64 {
		return key{k.hi | ^uint64(0)>>n, ^uint64(0)}
	}
	return key{k.hi, k.lo | ^uint64(0)>>(n-64)}
}

// compare orders keys as addresses.
func (k key) compare(o key) int {
	switch {
	case k == o:
		return 0
	case k.hi < o.hi || k.hi == o.hi && k.lo < o.lo:
		return -1
	}
	return 1
}
