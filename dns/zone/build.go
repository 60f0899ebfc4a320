package zone

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/miekg/dns"
)

// builder collects RRs and compiles them to a Zone.
type builder struct {
	*report
	apex []byte // the zone's name in lower case

	nodes   []Node // RRsets are filled in at the end
	parents []uint32
	named   []bool   // an RR gave the node's owner name: it is no empty non-terminal
	hashes  []uint64 // of the nodes' names
	last    uint32   // the node of the last RR
	slots   slots    // of nodes, grown as needed
	records []record
	files   []string
	file    int    // the last one, in files
	block   []byte // what is left of the current block of keep
}

// record is one RR on its way to the zone.
type record struct {
	node  uint32
	line  uint32
	ttl   uint32
	rtype uint16
	file  uint16 // in files
	rdata []byte
}

func newBuilder(rep *report, origin []byte) *builder {
	b := &builder{report: rep, apex: AppendLower(nil, origin), files: []string{""}}
	b.grow(16)
	b.node(b.apex, origin)
	return b
}

// grow makes room for n nodes.
func (b *builder) grow(n int) {
	b.slots = newSlots(n)
	for i, h := range b.hashes {
		b.slots.insert(h, i)
	}
}

// node returns the node of the name that is owner in lower case, and makes it and the empty
// non-terminals above it where they are missing. The name is not outside the zone.
func (b *builder) node(name, owner []byte) uint32 {
	h := hash(name)
	if n := b.slots.search(h, func(i int) bool { return sameName(b.nodes[i].Owner, name) }); n >= 0 {
		return uint32(n)
	}
	var parent uint32
	if len(name) > len(b.apex) {
		cut := 1 + name[0]
		parent = b.node(name[cut:], owner[cut:])
	}
	if len(b.nodes)*3/2+1 >= len(b.slots) {
		b.grow(2 * len(b.nodes))
	}
	b.nodes = append(b.nodes, Node{Owner: b.keep(owner), Service: -1, cut: -1})
	b.parents = append(b.parents, parent)
	b.named = append(b.named, false)
	b.hashes = append(b.hashes, h)
	b.slots.insert(h, len(b.nodes)-1)
	return uint32(len(b.nodes) - 1)
}

// keep copies what outlives the call.
func (b *builder) keep(s []byte) []byte {
	if len(s) > len(b.block) {
		b.block = make([]byte, max(len(s), min(1<<20, 512+32*len(b.records))))
	}
	kept := b.block[:len(s):len(s)]
	copy(kept, s)
	b.block = b.block[len(s):]
	return kept
}

// add takes one RR in wire form, and returns its owner name to keep.
func (b *builder) add(owner []byte, rtype uint16, ttl uint32, rdata []byte, file string, line int) []byte {
	n := b.last
	if !b.named[n] || !bytes.Equal(b.nodes[n].Owner, owner) {
		var low [MaxName]byte
		name := AppendLower(low[:0], owner)
		if !under(name, b.apex) {
			b.warn(file, line, "%s %s: outside the zone %s, ignored", ToString(owner), dns.Type(rtype), ToString(b.apex))
			return bytes.Clone(owner)
		}
		n = b.node(name, owner)
		b.last = n
	}
	if !b.named[n] {
		b.named[n] = true
		copy(b.nodes[n].Owner, owner)
	}
	if b.files[b.file] != file {
		if b.file = slices.Index(b.files, file); b.file < 0 {
			b.file = len(b.files)
			b.files = append(b.files, file)
		}
	}
	b.records = append(b.records, record{
		node: n, line: uint32(line), ttl: ttl, rtype: rtype, file: uint16(b.file), rdata: b.keep(rdata),
	})
	return b.nodes[n].Owner
}

// faultAt reports a fault of an RR: its place and owner name come before the reason.
func (b *builder) faultAt(r *record, format string, args ...any) {
	b.fault(b.files[r.file], int(r.line), "%s: %s", ToString(b.nodes[r.node].Owner), fmt.Sprintf(format, args...))
}

// warnAt is faultAt for a warning.
func (b *builder) warnAt(r *record, format string, args ...any) {
	b.warn(b.files[r.file], int(r.line), "%s: %s", ToString(b.nodes[r.node].Owner), fmt.Sprintf(format, args...))
}

// build compiles the zone and checks it. What it returns is of use only without faults.
func (b *builder) build(file string) *Zone {
	b.sort()
	b.judge()
	z := b.layout()
	b.cuts(z)
	b.check(z, file)
	return z
}

// sort orders the records by node and type, and else as they were read.
func (b *builder) sort() {
	ends := make([]uint32, len(b.nodes)+1)
	for i := range b.records {
		ends[b.records[i].node+1]++
	}
	for i := 1; i < len(ends); i++ {
		ends[i] += ends[i-1]
	}
	sorted := make([]record, len(b.records))
	for _, r := range b.records {
		sorted[ends[r.node]] = r
		ends[r.node]++
	}
	b.records = sorted
	for rest := sorted; len(rest) > 0; {
		n := run(rest, func(r *record) bool { return r.node == rest[0].node })
		slices.SortStableFunc(rest[:n], func(a, b record) int { return cmp.Compare(a.rtype, b.rtype) })
		rest = rest[n:]
	}
}

// run returns how many records at the start of rs are like the first.
func run(rs []record, like func(*record) bool) int {
	n := 1
	for n < len(rs) && like(&rs[n]) {
		n++
	}
	return n
}

// rrsets yields the records RRset by RRset.
func (b *builder) rrsets(yield func([]record) bool) {
	for rest := b.records; len(rest) > 0; {
		n := run(rest, func(r *record) bool { return r.node == rest[0].node && r.rtype == rest[0].rtype })
		if !yield(rest[:n:n]) {
			return
		}
		rest = rest[n:]
	}
}

// judge drops RRs given twice, gives each RRset its lowest TTL, and reports both.
func (b *builder) judge() {
	kept := b.records[:0] // overwrites what was read already
	for set := range b.rrsets {
		ttl, other := set[0].ttl, 0
		for i := range set {
			if set[i].ttl != set[0].ttl && other == 0 {
				other = i
			}
			ttl = min(ttl, set[i].ttl)
		}
		if other > 0 {
			b.warnAt(&set[other], "the TTLs of the %s RRset differ, the lowest, %d, is taken (RFC 2181, section 5.2)", dns.Type(set[0].rtype), ttl)
		}
		var seen map[string]bool
		if len(set) > 8 {
			seen = make(map[string]bool, len(set))
		}
		first, size := len(kept), 0
		for _, r := range set {
			if duplicate(kept[first:], seen, &r) {
				b.warnAt(&r, "the same %s is there already, ignored", dns.Type(r.rtype))
				continue
			}
			r.ttl = ttl
			size += rrOverhead + len(r.rdata)
			kept = append(kept, r)
		}
		if size > maxRRset {
			b.warnAt(&kept[first], "the %s RRset needs %d octets: no DNS message can hold it", dns.Type(kept[first].rtype), size)
		}
	}
	b.records = kept
}

const (
	rrOverhead = 2 + 10                                        // octets of an RR beside rdata: a compressed owner, TYPE, CLASS, TTL, RDLENGTH
	maxRRset   = math.MaxUint16 - headerSize - MaxName - 2 - 2 // octets of RRs beside the longest question
	headerSize = 12
)

// duplicate tells whether r is among set. A set of many has its rdata in seen.
func duplicate(set []record, seen map[string]bool, r *record) bool {
	key := canonical(r)
	if seen != nil {
		there := seen[string(key)]
		seen[string(key)] = true
		return there
	}
	return slices.ContainsFunc(set, func(s record) bool { return bytes.Equal(canonical(&s), key) })
}

// canonical returns rdata as it compares: names of the types of RFC 1035 and SRV in lower case
// (RFC 4034, section 6.2).
func canonical(r *record) []byte {
	target := rdataTarget(r.rtype, r.rdata)
	if target == nil {
		return r.rdata
	}
	return AppendLower(bytes.Clone(r.rdata[:len(r.rdata)-len(target)]), target)
}

// rdataTarget returns the name that ends the rdata of that type; nil where none does.
func rdataTarget(rtype uint16, rdata []byte) []byte {
	skip := 0
	switch rtype {
	case dns.TypeNS, dns.TypeCNAME, dns.TypePTR, dns.TypeDNAME:
	case dns.TypeMX:
		skip = 2
	case dns.TypeSRV:
		skip = 6
	default:
		return nil
	}
	return rdata[skip:]
}

// layout makes the zone's blocks, each of its exact size.
func (b *builder) layout() *Zone {
	octets, sets := 0, 0
	for i := range b.nodes {
		octets += len(b.nodes[i].Owner)
	}
	for set := range b.rrsets {
		sets++
		for i := range set {
			octets += len(set[i].rdata)
		}
	}
	var (
		nodes  = slices.Clone(b.nodes)
		arena  = make([]byte, 0, octets)
		rrsets = make([]RRset, 0, sets)
		rdata  = make([][]byte, 0, len(b.records))
	)
	put := func(s []byte) []byte {
		arena = append(arena, s...)
		return arena[len(arena)-len(s) : len(arena) : len(arena)]
	}
	rest := b.records
	for i := range nodes {
		nodes[i].Owner = put(nodes[i].Owner)
		first := len(rrsets)
		for len(rest) > 0 && rest[0].node == uint32(i) {
			start, head := len(rdata), rest[0]
			for len(rest) > 0 && rest[0].node == uint32(i) && rest[0].rtype == head.rtype {
				rdata = append(rdata, put(rest[0].rdata))
				rest = rest[1:]
			}
			rrsets = append(rrsets, RRset{Type: head.rtype, TTL: head.ttl, RData: rdata[start:len(rdata):len(rdata)]})
		}
		if len(rrsets) > first {
			nodes[i].RRsets = rrsets[first:len(rrsets):len(rrsets)]
		}
	}
	z := &Zone{Origin: nodes[0].Owner, names: newIndex(nodes, b.hashes), labels: countLabels(b.apex), rrsets: len(rrsets), rrs: len(rdata)}
	apex := &z.names.nodes[0]
	z.SOA, z.NS = apex.RRset(dns.TypeSOA), apex.RRset(dns.TypeNS)
	if z.SOA != nil {
		soa := z.SOA.RData[0]
		z.NegTTL = min(z.SOA.TTL, binary.BigEndian.Uint32(soa[len(soa)-4:]))
	}
	return z
}

// cuts marks where the zone's authority ends. A node comes after its parent.
func (b *builder) cuts(z *Zone) {
	nodes := z.names.nodes
	for i := range nodes {
		n := &nodes[i]
		if i != 0 {
			n.cut = nodes[b.parents[i]].cut
		}
		if n.cut < 0 && (i != 0 && n.RRset(dns.TypeNS) != nil || n.RRset(dns.TypeDNAME) != nil) {
			n.cut = int32(i)
		}
	}
}
