package dns

import (
	"encoding/binary"
	"net/netip"

	"github.com/meridian-gslb/meridian/gslb"
)

// Sizes of RFC 1035, section 2.3.4, and RFC 6891, section 6.2.3, in octets.
const (
	headerLen  = 12
	maxLabel   = 63
	maxName    = 255
	minUDP     = 512
	maxMessage = 65535
)

// The flags of the header's second word (RFC 1035, section 4.1.1).
const (
	flagQR     = 1 << 15
	opcodeMask = 15 << 11
	flagAA     = 1 << 10
	flagTC     = 1 << 9
	flagRD     = 1 << 8
)

// The rcodes that we send. Those above 15 need EDNS.
const (
	rcodeNoError        = 0
	rcodeFormErr        = 1
	rcodeServFail       = 2
	rcodeNameError      = 3
	rcodeNotImplemented = 4
	rcodeRefused        = 5
	rcodeYXDomain       = 6
	rcodeNotAuth        = 9
	rcodeBadVers        = 16
)

// The RR types whose meaning matters here.
const (
	typeA     uint16 = 1
	typeNS    uint16 = 2
	typeCNAME uint16 = 5
	typeSOA   uint16 = 6
	typePTR   uint16 = 12
	typeMINFO uint16 = 14
	typeMX    uint16 = 15
	typeTXT   uint16 = 16
	typeAAAA  uint16 = 28
	typeSRV   uint16 = 33
	typeDNAME uint16 = 39
	typeOPT   uint16 = 41
	typeSVCB  uint16 = 64
	typeHTTPS uint16 = 65
	typeTKEY  uint16 = 249 // the first of the types that are not data (RFC 6895, section 3.1)
	typeIXFR  uint16 = 251
	typeAXFR  uint16 = 252
	typeANY   uint16 = 255
)

const (
	classIN = 1
	classCH = 3
)

// admission is what became of a packet when it was read.
type admission uint8

const (
	silent     admission = iota // not a query, or not even a header: never answered
	refused                     // answered with the reply's rcode and no data
	wellFormed                  // to be resolved
	forCookie                   // no question, but for a server cookie
	unusual                     // for the full path
)

// query is a query as it was read. Its slices point into the packet.
type query struct {
	from netip.Addr // the resolver's address
	tcp  bool

	known bool // the address is the client's: over TCP, or by a cookie

	id     uint16
	flags  uint16
	qtype  uint16
	qclass uint16
	name   []byte        // qname in wire form, as asked
	lower  [maxName]byte // the same in lower case
	edns   edns
	told   []byte // data of the TRACEPARENT option to answer with; nil: none
	signed bool   // it has a TSIG; only on the full path
}

// at returns where owner, a part of the question's name, stands in a message, for a pointer
// to it. The root needs no pointer: 0.
func (q *query) at(owner []byte) uint16 {
	if len(owner) <= 1 {
		return 0
	}
	return uint16(headerLen + len(q.name) - len(owner))
}

// client returns who the decision is for: the client of the ECS option if the query carries
// one that says anything, else the resolver.
func (q *query) client() (c gslb.Client, fromECS bool) {
	if e := &q.edns.ecs; e.source > 0 {
		return gslb.Client{Addr: e.addr, Source: e.prefix}, true
	}
	return gslb.Client{Addr: q.from, Source: uint8(q.from.BitLen())}, false
}

// read parses pkt in place. With refused, the reply's rcode says why; echo and opt are set in
// the reply as soon as the question and the OPT were understood.
func (q *query) read(pkt []byte, r *reply) admission {
	if len(pkt) < headerLen {
		return silent
	}
	q.id, q.flags = be16(pkt), be16(pkt[2:])
	q.edns = edns{}
	if q.flags&flagQR != 0 { // never answer an answer
		return silent
	}
	fault := q.fault()
	if be16(pkt[4:]) != 1 { // RFC 9619
		r.rcode = fault
		return q.readBare(pkt)
	}
	off := q.readName(pkt)
	if off == 0 || len(pkt)-off < 4 {
		r.rcode = fault
		return refused
	}
	q.qtype, q.qclass = be16(pkt[off:]), be16(pkt[off+2:])
	off += 4
	r.echo = true
	if be32(pkt[6:]) != 0 { // RRs in answer or authority: no plain query
		return unusual
	}
	switch be16(pkt[10:]) {
	case 0:
	case 1:
		if rest := pkt[off:]; len(rest) > 0 && rest[0] != 0 || len(rest) >= 3 && be16(rest[1:]) != typeOPT {
			return unusual
		}
		off = q.edns.read(pkt, off)
		if off == 0 {
			r.rcode = fault
			return refused
		}
		r.opt = true
	default:
		return unusual
	}
	if off != len(pkt) {
		r.opt, r.rcode = false, fault
		return refused
	}
	return q.admit(r)
}

// readBare judges a query that has not one question: it may have none, and an OPT with a COOKIE
// alone (RFC 7873, section 5.4).
func (q *query) readBare(pkt []byte) admission {
	if q.flags&opcodeMask != 0 || be32(pkt[4:]) != 0 || be32(pkt[8:]) != 1 || // counts: 0, 0, 0 and 1
		len(pkt) < headerLen+3 || be16(pkt[headerLen+1:]) != typeOPT {
		return refused
	}
	if q.edns.read(pkt, headerLen) != len(pkt) || q.edns.version != 0 || q.edns.bad || q.edns.cookie == nil {
		q.edns = edns{}
		return refused
	}
	return forCookie
}

// fault returns the rcode of a query whose framing is not sound. Of another opcode than QUERY it
// need not be as we know it.
func (q *query) fault() int {
	if q.flags&opcodeMask != 0 {
		return rcodeNotImplemented
	}
	return rcodeFormErr
}

// admit judges a query whose framing is sound.
func (q *query) admit(r *reply) admission {
	switch {
	case q.edns.version != 0: // RFC 6891, section 6.1.3
		r.rcode = rcodeBadVers
		return refused
	case q.flags&opcodeMask != 0: // after the version, so that its OPT is answered: section 6.1.1
		r.rcode = rcodeNotImplemented
		return refused
	case q.edns.bad:
		r.rcode = rcodeFormErr
		return refused
	case q.qtype == typeOPT || q.qtype == 0: // no question can be about these: RFC 6891, section 6.1.1; RFC 6895, section 3.1
		r.rcode = rcodeFormErr
		return refused
	case q.qclass != classIN && q.qclass != classCH:
		r.rcode = rcodeRefused
		return refused
	case q.qtype == typeIXFR || q.qtype == typeAXFR: // transfers are not served
		r.rcode = rcodeRefused
		return refused
	case q.qtype >= typeTKEY && q.qtype < typeANY: // TKEY, TSIG, MAILB, MAILA
		r.rcode = rcodeNotImplemented
		return refused
	}
	return wellFormed
}

// readName reads the name that follows the header, and returns where it ends, or 0 if it is
// malformed. The first name of a message has nothing to point to, so that compression is
// malformed too.
func (q *query) readName(pkt []byte) (end int) {
	in := pkt[headerLen:]
	in = in[:min(len(in), maxName)]
	out := q.lower[:len(in)]
	for i := 0; i < len(in); {
		l := int(in[i])
		out[i] = in[i]
		i++
		if l == 0 {
			q.name = in[:i:i]
			return headerLen + i
		}
		if l > maxLabel || l > len(in)-i {
			return 0
		}
		for _, c := range in[i : i+l] {
			out[i] = toLower(c)
			i++
		}
	}
	return 0
}

// message is a reply being written.
type message struct {
	buf   []byte
	n     int // octets written
	limit int // that may be written
	class uint16

	// The names written so far that a pointer may lead to (RFC 1035, section 4.1.4): where,
	// and how many octets they have uncompressed. A full table only compresses less.
	question []byte // its names join the table when a first name is looked for
	names    int
	where    [128]uint16
	octets   [128]uint8
}

func (m *message) reset(buf []byte, limit int) {
	m.buf, m.n, m.limit, m.names, m.question = buf, headerLen, limit, 0, nil
}

// putQuestion repeats the question octet by octet: case is kept.
func (m *message) putQuestion(q *query) {
	m.question = q.name
	m.n += copy(m.buf[m.n:], q.name)
	m.put16(q.qtype)
	m.put16(q.qclass)
}

// putSet writes s and tells how many RRs it has; fits is false when the limit stopped it.
func (m *message) putSet(s *set) (rrs int, fits bool) {
	switch {
	case s.addrs != nil:
		for _, addr := range s.addrs {
			rdlen := addr.BitLen() / 8
			if !m.putRR(s, rdlen) || !m.room(rdlen) {
				return 0, false
			}
			if addr.Is4() {
				octets := addr.As4()
				m.n += copy(m.buf[m.n:], octets[:])
			} else {
				octets := addr.As16()
				m.n += copy(m.buf[m.n:], octets[:])
			}
		}
		return len(s.addrs), true
	case s.target != nil:
		return 1, m.putRData(s, s.target)
	default:
		rdatas := s.rdatas()
		for _, rdata := range rdatas {
			if !m.putRData(s, rdata) {
				return 0, false
			}
		}
		return len(rdatas), true
	}
}

// putRData writes an RR of s with that rdata. Names in it are compressed only in the types
// of RFC 1035 (RFC 3597, section 4).
func (m *message) putRData(s *set, rdata []byte) bool {
	if !m.putRR(s, 0) {
		return false
	}
	start := m.n
	skip, names, compress := rdataNames(s.rtype)
	if !m.put(rdata[:skip]) {
		return false
	}
	rdata = rdata[skip:]
	for range names {
		l := nameLen(rdata)
		if !m.putName(rdata[:l], compress) {
			return false
		}
		rdata = rdata[l:]
	}
	if !m.put(rdata) {
		return false
	}
	binary.BigEndian.PutUint16(m.buf[start-2:], uint16(m.n-start))
	return true
}

// rdataNames tells where an RR of that type holds names: how many octets come before them,
// how many names there are, and whether they may be compressed. The names of the types that
// may not are still worth pointing to.
func rdataNames(rtype uint16) (skip, names int, compress bool) {
	switch rtype {
	case typeNS, 3, 4, typeCNAME, 7, 8, 9, typePTR:
		return 0, 1, true
	case typeSOA, typeMINFO:
		return 0, 2, true
	case typeMX:
		return 2, 1, true
	case typeSRV:
		return 6, 1, false
	case typeDNAME:
		return 0, 1, false
	case typeSVCB, typeHTTPS:
		return 2, 1, false
	}
	return 0, 0, false
}

// putRR writes the head of an RR of s.
func (m *message) putRR(s *set, rdlen int) bool {
	if s.at != 0 {
		if !m.room(12) {
			return false
		}
		m.put16(0xC000 | s.at)
	} else if !m.putName(s.owner, true) || !m.room(10) {
		return false
	}
	b := m.buf[m.n : m.n+10]
	binary.BigEndian.PutUint16(b, s.rtype)
	binary.BigEndian.PutUint16(b[2:], m.class)
	binary.BigEndian.PutUint32(b[4:], s.ttl)
	binary.BigEndian.PutUint16(b[8:], uint16(rdlen))
	m.n += 10
	return true
}

// putName writes name, from its longest part that was written before as a pointer if it may
// be compressed, and remembers the rest. Parts are the same only if their case is.
func (m *message) putName(name []byte, compress bool) bool {
	if m.question != nil {
		m.learn(m.question, headerLen)
		m.question = nil
	}
	for i := 0; name[i] != 0; i += 1 + int(name[i]) {
		at := m.find(name[i:])
		if at != 0 && compress {
			if !m.room(i + 2) {
				return false
			}
			m.learnNew(name, i)
			m.n += copy(m.buf[m.n:], name[:i])
			m.put16(0xC000 | at)
			return true
		}
	}
	if !m.room(len(name)) {
		return false
	}
	m.learnNew(name, len(name)-1)
	m.n += copy(m.buf[m.n:], name)
	return true
}

// learn remembers name and its parts, written at that place.
func (m *message) learn(name []byte, at int) {
	for i := 0; name[i] != 0 && m.names < len(m.where) && at+i < 0x4000; i += 1 + int(name[i]) {
		m.where[m.names], m.octets[m.names] = uint16(at+i), uint8(len(name)-i)
		m.names++
	}
}

// learnNew remembers the parts of name, about to be written, that begin before end and are
// not known yet.
func (m *message) learnNew(name []byte, end int) {
	for i := 0; i < end && m.names < len(m.where) && m.n+i < 0x4000; i += 1 + int(name[i]) {
		if m.find(name[i:]) == 0 {
			m.where[m.names], m.octets[m.names] = uint16(m.n+i), uint8(len(name)-i)
			m.names++
		}
	}
}

// find returns where name was written, or 0.
func (m *message) find(name []byte) uint16 {
	for i, octets := range m.octets[:m.names] {
		if int(octets) == len(name) && m.same(int(m.where[i]), name) {
			return m.where[i]
		}
	}
	return 0
}

// same tells whether the name written at that place is name. It follows our own pointers,
// which only lead backwards.
func (m *message) same(at int, name []byte) bool {
	for {
		l := int(m.buf[at])
		if l >= 0xC0 {
			at = int(be16(m.buf[at:]) & 0x3FFF)
			continue
		}
		if int(name[0]) != l {
			return false
		}
		if l == 0 {
			return true
		}
		if string(m.buf[at+1:at+1+l]) != string(name[1:1+l]) {
			return false
		}
		at, name = at+1+l, name[1+l:]
	}
}

// putHeader writes the header of the reply to q: RD is copied, RA is never set (RFC 1035,
// section 4.1.1), and AD and CD are clear (RFC 4035, section 3.1.6).
func (m *message) putHeader(q *query, r *reply, counts [sections]int) {
	flags := flagQR | q.flags&(opcodeMask|flagRD) | uint16(r.rcode&15)
	if r.aa {
		flags |= flagAA
	}
	if r.tc {
		flags |= flagTC
	}
	questions := uint16(0)
	if r.echo {
		questions = 1
	}
	b := m.buf[:headerLen]
	binary.BigEndian.PutUint16(b, q.id)
	binary.BigEndian.PutUint16(b[2:], flags)
	binary.BigEndian.PutUint16(b[4:], questions)
	binary.BigEndian.PutUint16(b[6:], uint16(counts[inAnswer]))
	binary.BigEndian.PutUint16(b[8:], uint16(counts[inAuthority]))
	binary.BigEndian.PutUint16(b[10:], uint16(counts[inAdditional]))
}

func (m *message) room(n int) bool { return m.n+n <= m.limit }

func (m *message) put(b []byte) bool {
	if !m.room(len(b)) {
		return false
	}
	m.n += copy(m.buf[m.n:], b)
	return true
}

func (m *message) put16(v uint16) {
	binary.BigEndian.PutUint16(m.buf[m.n:], v)
	m.n += 2
}

func be16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

func toLower(c byte) byte {
	if c-'A' < 26 {
		c |= 0x20
	}
	return c
}

// lower writes the name at the start of wire, which is in uncompressed wire form, to dst in
// lower case, and returns its length.
func lower(dst, wire []byte) int {
	l := nameLen(wire)
	for i, c := range wire[:l] {
		dst[i] = toLower(c)
	}
	return l
}

// nameLen returns the length of the uncompressed name at the start of wire.
func nameLen(wire []byte) int {
	i := 0
	for wire[i] != 0 {
		i += 1 + int(wire[i])
	}
	return i + 1
}

// appendText appends the wire form of a name without escapes, such as the configuration's:
// labels of 1..63 octets between dots. A trailing dot may be there.
func appendText(dst []byte, text string) []byte {
	start := 0
	for i := 0; i <= len(text); i++ {
		if i == len(text) || text[i] == '.' {
			if i > start {
				dst = append(dst, byte(i-start))
				dst = append(dst, text[start:i]...)
			}
			start = i + 1
		}
	}
	return append(dst, 0)
}
