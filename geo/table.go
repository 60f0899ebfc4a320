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
	{key{hi: nat64High}, 96, 1},     // 64:ff9b::/96: RFC 6052, section 2.1
	{key{hi: sixToFourHigh}, 16, 1}, // 2002::/16: RFC 3056, section 2
}

// The first 64 bits of those ranges.
const (
	nat64High     = 0x0064_ff9b_0000_0000
	sixToFourHigh = 0x2002_0000_0000_0000
)

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
	value, around := t.v6.lookup6(key{hi, lo})
	if value != embedded {
		return value, around
	}
	v4, before, _ := embeddedIn(hi, lo)
	value, scope = t.v4.lookup(v4)
	if scope == 0 { // all of IPv4 is of one class, and so may be more around this range
		return value, around
	}
	return value, before + scope
}

// Embedded returns the IPv4 address inside an IPv6 address of NAT64's well-known prefix or of 6to4,
// by which it is looked up, and how many bits of addr stand before it. For any other address ok is
// false, and before is how many bits of addr tell so.
func Embedded(addr netip.Addr) (v4 netip.Addr, before uint8, ok bool) {
	a := addr.As16()
	inside, before, ok := embeddedIn(binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:]))
	if ok {
		var octets [4]byte
		binary.BigEndian.PutUint32(octets[:], inside)
		v4 = netip.AddrFrom4(octets)
	}
	return v4, before, ok
}

// embeddedIn is Embedded over the halves of an address.
func embeddedIn(hi, lo uint64) (v4 uint32, before uint8, ok bool) {
	switch {
	case hi == nat64High && lo>>32 == 0:
		return uint32(lo), 96, true
	case hi>>48 == sixToFourHigh>>48:
		return uint32(hi >> 16), 16, true
	case hi == nat64High:
		return 0, 64 + uint8(bits.LeadingZeros64(lo)) + 1, false
	}
	return 0, uint8(max(bits.LeadingZeros64(hi^nat64High), bits.LeadingZeros64(hi^sixToFourHigh))) + 1, false
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
	var classes []uint32
	if class != nil {
		classes = make([]uint32, most+1)
		for i := range classes {
			classes[i] = class(uint32(i))
		}
	}
	return m.table.merged(values).scoped(classes)
}

// merged returns the partitions of values[v] wherever t has v; nothing can be looked up in
// them yet.
func (t *Table) merged(values []uint32) *Table {
	out := new(Table)
	out.v4.remap(&t.v4, values, embedded)
	out.v6.remap(&t.v6, values, out.whole())
	return out
}

// patched is merged, where last is the table under other values, and changed says of which
// the new one differs.
func (t *Table) patched(last *Table, changed []bool, values []uint32) *Table {
	out := new(Table)
	out.v4.patch(&t.v4, &last.v4, changed, values, embedded, false)
	hole := out.whole()
	out.v6.patch(&t.v6, &last.v6, changed, values, hole, hole != last.whole())
	return out
}

// scoped makes t, which merged or patched made, one for lookups, with the scopes of the
// classes of values; nil is that each is of its own.
func (t *Table) scoped(classes []uint32) *Table {
	t.v4.exact()
	t.v6.exact()
	for v, c := range classes {
		if c != uint32(v) { // else the scopes are the prefixes'
			t.widen(classes)
			break
		}
	}
	t.v4.search(false)
	t.v6.search(true)
	return t
}

// Rescope returns a table with the values of t, whose scopes are those of the classes of
// values: classes[v] is the class of the value v.
func (t *Table) Rescope(classes []uint32) *Table {
	out := *t // what is where stays shared
	out.widen(classes)
	out.v4.pack()
	out.v6.plant()
	return &out
}

// widen gives the prefixes of t the scopes of the classes of values.
func (t *Table) widen(classes []uint32) {
	hole := embedded // as whole has it
	if t.v4.widen(classes, embedded) {
		hole = classes[t.v4.value[0]]
	}
	t.v6.widen(classes, hole)
}

// fill makes the table of two complete partitions; v6 has the value embedded in holes.
func (t *Table) fill(v4, v6 []leaf) {
	t.v4.grow(len(v4), false)
	for _, l := range v4 {
		t.v4.push(l.at, l.bits, l.value)
	}
	whole := t.whole()
	t.v6.grow(len(v6), true)
	for _, l := range v6 {
		if l.value == embedded {
			l.value = whole
		}
		t.v6.push(l.at, l.bits, l.value)
	}
	t.scoped(nil)
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
// What a lookup reads of each prefix lies in one row, so that the last thing that it waits for memory
// for is the rows that it compares.
type space struct {
	hi, lo []uint64 // lo is nil for IPv4
	value  []uint32
	bits   []uint8
	scope  []uint8 // scope[i] <= bits[i]: how long the prefix around it is that has one class

	// IPv4: the leading bits of an address leave some rows of index. A row is where a prefix starts,
	// without those bits, which leave their room for the index of a verdict; nil where it is not
	// enough.
	lead     uint8    // how many bits
	index    []uint32 // by them: how many prefixes start before the first such address
	rows     []uint32
	verdicts []verdict // distinct

	// IPv6, of which what is in use has a few leading bits: a tree over the rows. Its last level is
	// every few-th row, a level above that every few-th of it.
	levels [][]key
	rows6  []row6
}

// verdict is what a lookup says.
type verdict struct {
	value uint32
	scope uint8
}

// row6 is the start of a prefix, and what a lookup in it says.
type row6 struct {
	key
	verdict
}

const (
	// maxLead bounds the index to 256 KiB; more would not fit the cache of a core.
	maxLead = 16
	// few rows are compared one by one: as no comparison waits for the one before, memory answers
	// all at once.
	few = 16
)

// lookup returns value and scope of the prefix that holds an IPv4 address.
func (s *space) lookup(addr uint32) (value uint32, scope uint8) {
	p, room := addr>>(32-s.lead), uint32(1)<<s.lead-1
	i, j := s.index[p], s.index[p+1] // the last of these that is not after addr is it, or the one before them
	if s.rows == nil {
		for i < j {
			if m := (i + j) / 2; uint32(s.hi[m]>>32) <= addr {
				i = m + 1
			} else {
				j = m
			}
		}
		return s.value[i-1], s.scope[i-1]
	}
	row := uint64(addr<<s.lead | room)
	for j-i > few*few {
		if m := (i + j) / 2; uint64(s.rows[m]) <= row {
			i = m + 1
		} else {
			j = m
		}
	}
	// Every few-th, then those between, without a branch, which would be foretold wrongly half of
	// the time.
	for k := i + few; k < j; k += few {
		i += uint32((uint64(s.rows[k])-row-1)>>63) * few
	}
	for _, r := range s.rows[i:min(i+few, j)] {
		i += uint32((uint64(r) - row - 1) >> 63)
	}
	v := &s.verdicts[s.rows[i-1]&room]
	return v.value, v.scope
}

// lookup6 returns value and scope of the prefix that holds an IPv6 address.
func (s *space) lookup6(at key) (value uint32, scope uint8) {
	i := 0
	for _, nodes := range s.levels {
		nodes = nodes[i:min(i+few, len(nodes))]
		for k := range nodes {
			i += nodes[k].reached(at)
		}
		i = (i - 1) * few
	}
	rows := s.rows6[i:min(i+few, len(s.rows6))]
	for k := range rows {
		i += rows[k].reached(at)
	}
	r := &s.rows6[i-1]
	return r.value, r.scope
}

// reached returns 1 if k is not after an address, else 0. It has no branch.
func (k *key) reached(at key) int {
	_, borrow := bits.Sub64(at.lo, k.lo, 0)
	_, borrow = bits.Sub64(at.hi, k.hi, borrow)
	return int(1 - borrow)
}

// plant fills rows6 and levels, once the scopes are known.
func (s *space) plant() {
	s.rows6 = make([]row6, len(s.hi))
	for i := range s.rows6 {
		s.rows6[i] = row6{s.at(i), verdict{s.value[i], s.scope[i]}}
	}
	s.levels = nil
	for step := few; step < len(s.hi); step *= few {
		nodes := make([]key, 0, len(s.hi)/step+1)
		for i := 0; i < len(s.hi); i += step {
			nodes = append(nodes, s.at(i))
		}
		s.levels = append(s.levels, nodes)
	}
	slices.Reverse(s.levels)
}

// pack fills the rows of IPv4, once the scopes are known.
func (s *space) pack() {
	s.rows, s.verdicts = nil, nil
	most := uint32(0)
	for _, v := range s.value {
		if v != embedded {
			most = max(most, v)
		}
	}
	seen := make([]uint32, (uint64(most)+1)*scopes) // by value and scope: 1 + index in verdicts
	rows := make([]uint32, len(s.hi))
	var verdicts []verdict
	for i, hi := range s.hi {
		v := verdict{s.value[i], s.scope[i]}
		j := &seen[uint64(v.value)*scopes+uint64(v.scope)]
		if *j == 0 {
			if len(verdicts) == 1<<s.lead {
				return
			}
			verdicts = append(verdicts, v)
			*j = uint32(len(verdicts))
		}
		rows[i] = uint32(hi>>32)<<s.lead | (*j - 1)
	}
	s.rows, s.verdicts = rows, verdicts
}

// scopes is how many scopes an IPv4 prefix may have: 0..32.
const scopes = 33

// push appends the next prefix in the order of addresses. As long as it is the right
// sibling of the prefix before it, with the same value, both become their parent; as what
// stands before is already merged, what comes out has no equal siblings.
func (s *space) push(at key, length uint8, value uint32) {
	n := len(s.hi)
	for ; n > 0 && length > 0 && s.bits[n-1] == length && s.value[n-1] == value && at.bit(length-1); n-- {
		at = s.at(n - 1)
		length--
	}
	s.hi, s.value, s.bits = append(s.hi[:n], at.hi), append(s.value[:n], value), append(s.bits[:n], length)
	if s.lo != nil {
		s.lo = append(s.lo[:n], at.lo)
	}
}

// at returns where prefix i starts.
func (s *space) at(i int) key {
	if s.lo == nil {
		return key{hi: s.hi[i]}
	}
	return key{s.hi[i], s.lo[i]}
}

// remap fills s with the partition of from under new values; hole is the new value of
// embedded.
func (s *space) remap(from *space, values []uint32, hole uint32) {
	s.grow(len(from.hi), from.lo != nil)
	s.lay(from, 0, len(from.hi), values, hole)
}

// lay pushes the prefixes of from in [i, j) under new values; hole is that of embedded.
func (s *space) lay(from *space, i, j int, values []uint32, hole uint32) {
	for ; i < j; i++ {
		v := hole
		if old := from.value[i]; old != embedded {
			v = values[old]
		}
		s.push(from.at(i), from.bits[i], v)
	}
}

// patch fills s as remap would. last is the partition of from under other values; of those
// whose new value is another, changed says so, and moved that of embedded. What has none of
// them is copied as it lies.
func (s *space) patch(from, last *space, changed []bool, values []uint32, hole uint32, moved bool) {
	s.grow(len(last.hi)+len(last.hi)/16+8, from.lo != nil)
	next := 0 // the first prefix of last that is not done
	for i := 0; i < len(from.hi); i++ {
		if v := from.value[i]; v == embedded && !moved || v != embedded && !changed[v] {
			continue
		}
		q := last.holding(from.at(i), next)
		s.copy(last, next, q)
		next = q + 1
		first := i // of the prefixes that were one, and now may not be
		for first > 0 && last.at(q).compare(from.at(first-1)) <= 0 {
			first--
		}
		for i+1 < len(from.hi) && (next == len(last.hi) || from.at(i+1).compare(last.at(next)) < 0) {
			i++
		}
		s.lay(from, first, i+1, values, hole)
	}
	s.copy(last, next, len(last.hi))
}

// holding returns the index of the prefix that holds an address, which is not before i.
func (s *space) holding(at key, i int) int {
	step := 1
	for i+step < len(s.hi) && s.at(i+step).compare(at) <= 0 {
		i += step
		step *= 2
	}
	for ; step > 0; step /= 2 {
		if i+step < len(s.hi) && s.at(i+step).compare(at) <= 0 {
			i += step
		}
	}
	return i
}

// copy pushes the prefixes of from in [i, j). Among them no siblings are equal, so only the
// first ones can become one with what stands before; from the first that does not, none can.
func (s *space) copy(from *space, i, j int) {
	for alone := false; i < j && !alone; i++ {
		n := len(s.hi)
		s.push(from.at(i), from.bits[i], from.value[i])
		alone = len(s.hi) > n
	}
	s.hi, s.value, s.bits = append(s.hi, from.hi[i:j]...), append(s.value, from.value[i:j]...), append(s.bits, from.bits[i:j]...)
	if s.lo != nil {
		s.lo = append(s.lo, from.lo[i:j]...)
	}
}

// grow makes room for n prefixes; deep says that they may be longer than 64 bits.
func (s *space) grow(n int, deep bool) {
	s.hi, s.value, s.bits = make([]uint64, 0, n), make([]uint32, 0, n), make([]uint8, 0, n)
	if deep {
		s.lo = make([]uint64, 0, n)
	}
}

// widen sets the scope of each prefix to the length of the largest around it that has one class,
// and reports whether all have. hole is the class of embedded.
func (s *space) widen(classes []uint32, hole uint32) (one bool) {
	class := func(i uint32) uint32 {
		if v := s.value[i]; v != embedded {
			return classes[v]
		}
		return hole
	}
	// As push does, but what is as large as it can be so far is known by its first prefix alone,
	// whose scope is its length.
	s.scope = make([]uint8, len(s.bits))
	firsts := make([]uint32, 0, len(s.bits))
	for i, length := range s.bits {
		first, c := uint32(i), class(uint32(i))
		n := len(firsts)
		for ; n > 0 && length > 0; n-- {
			left := firsts[n-1]
			if s.scope[left] != length || class(left) != c || !s.at(int(first)).bit(length-1) {
				break
			}
			first = left
			length--
		}
		firsts = append(firsts[:n], first)
		s.scope[first] = length
	}
	for n, first := range firsts {
		end := len(s.scope)
		if n+1 < len(firsts) {
			end = int(firsts[n+1])
		}
		for i := int(first) + 1; i < end; i++ {
			s.scope[i] = s.scope[first]
		}
	}
	return len(firsts) == 1
}

// exact gives back spare memory.
func (s *space) exact() {
	s.hi, s.lo, s.value, s.bits = exact(s.hi), exact(s.lo), exact(s.value), exact(s.bits)
	s.scope = s.bits
}

// search builds what a lookup needs.
func (s *space) search(deep bool) {
	if deep {
		s.plant()
		return
	}
	s.lead = uint8(min(maxLead, bits.Len(uint(len(s.hi)-1))))
	s.index = make([]uint32, 1<<s.lead+1)
	p := uint64(0) // index is done up to it
	for i, hi := range s.hi {
		for ; p <= hi>>(64-s.lead); p++ {
			s.index[p] = uint32(i)
		}
	}
	for ; p < uint64(len(s.index)); p++ {
		s.index[p] = uint32(len(s.hi))
	}
	s.pack()
}

// exact returns s, or a copy of it if much of its capacity is spare; nil stays nil.
func exact[E any](s []E) []E {
	if cap(s)-len(s) > len(s)/8 {
		s = slices.Clone(s)
	}
	return slices.Clip(s)
}

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
