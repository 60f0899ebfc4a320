package dns

import (
	"net/netip"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/tracing"
)

// EDNS options.
const (
	optionNSID      = 3                       // RFC 5001
	optionECS       = 8                       // RFC 7871
	optionCookie    = 10                      // RFC 7873
	optionKeepalive = 11                      // RFC 7828
	optionError     = 15                      // RFC 8914
	optionTrace     = tracing.EDNSTraceParent // draft-edns-otel-trace-ids
)

// Address families of RFC 7871, section 6, from IANA's Address Family Numbers.
const (
	familyNone = 0 // reserved; dig sends it with source 0 to ask for no ECS at all
	familyIPv4 = 1
	familyIPv6 = 2
)

const flagDO = 1 << 15 // of the OPT's TTL field, lower half (RFC 3225)

// edns is the OPT of a query.
type edns struct {
	present bool
	bad     bool // an option that we know is malformed
	size    uint16
	version uint8
	do      bool

	explain   bool // the reason of the answer is asked for
	keepalive bool // over TCP: the idle timeout is asked for
	ecs       ecs
	nsid      bool
	cookie    []byte // data of the COOKIE option, in the packet: 8 or 16..40 octets; nil: there is none
	trace     []byte // data of the first TRACEPARENT option, in the packet; nil: there is none
}

// ecs is the client subnet of a query.
type ecs struct {
	raw    []byte     // the option's data, in the packet; nil: there is none
	addr   netip.Addr // never IPv4-mapped; with source > 0
	source uint8      // source prefix length as asked; 0: the client does not want to be known
	prefix uint8      // source prefix length in bits of addr
	mapped bool       // addr was asked for as an IPv4-mapped IPv6 address
}

// read parses the OPT RR at off (RFC 6891, section 6.1.2) and returns where it ends, or 0 if
// its framing is malformed. Options of a version that we do not know are left alone.
func (e *edns) read(pkt []byte, off int) (end int) {
	if len(pkt)-off < 11 || pkt[off] != 0 {
		return 0
	}
	rr := pkt[off:]
	rdlen := int(be16(rr[9:]))
	if len(rr)-11 < rdlen {
		return 0
	}
	*e = edns{present: true, size: be16(rr[3:]), version: rr[6], do: be16(rr[7:])&flagDO != 0}
	if e.version == 0 {
		e.readOptions(rr[11 : 11+rdlen])
	}
	return off + 11 + rdlen
}

// readOptions reads the options that we know. Others are ignored (RFC 6891, section 6.1.2).
func (e *edns) readOptions(b []byte) {
	for len(b) > 0 {
		if len(b) < 4 {
			e.bad = true
			return
		}
		code, l := be16(b), int(be16(b[2:]))
		if l > len(b)-4 {
			e.bad = true
			return
		}
		if code == optionECS && (e.ecs.raw != nil || !e.ecs.read(b[4:4+l:4+l])) {
			e.ecs, e.bad = ecs{}, true
			return
		}
		switch data := b[4 : 4+l : 4+l]; code {
		case optionTrace:
			if e.trace == nil {
				e.trace = data
			}
		case optionCookie:
			if l != clientCookieLen && (l < 16 || l > 40) { // RFC 7873, section 5.2.2
				e.ecs, e.cookie, e.bad = ecs{}, nil, true
				return
			}
			if e.cookie == nil {
				e.cookie = data
			}
		case optionExplain:
			e.explain = true
		case optionNSID:
			e.nsid = true
		case optionKeepalive:
			e.keepalive = true
		}
		b = b[4+l:]
	}
}

// read parses the data of an ECS option; what RFC 7871, section 7.2.1, has the server refuse
// with FORMERR is false: an unknown family, a scope, more or fewer octets than the source
// prefix needs, and bits beyond it.
func (c *ecs) read(b []byte) bool {
	if len(b) < 4 || b[3] != 0 {
		return false
	}
	family, source, addr := be16(b), b[2], b[4:]
	bits := 0
	switch family {
	case familyNone:
	case familyIPv4:
		bits = 32
	case familyIPv6:
		bits = 128
	default:
		return false
	}
	if int(source) > bits || len(addr) != (int(source)+7)/8 {
		return false
	}
	if rest := source % 8; rest != 0 && addr[len(addr)-1]<<rest != 0 {
		return false
	}
	c.raw, c.source, c.prefix = b, source, source
	switch {
	case source == 0:
	case family == familyIPv4:
		var octets [4]byte
		copy(octets[:], addr)
		c.addr = netip.AddrFrom4(octets)
	default:
		var octets [16]byte
		copy(octets[:], addr)
		c.addr = netip.AddrFrom16(octets)
		if c.addr.Is4In6() { // all 96 bits of the prefix are there, so source >= 96
			c.addr, c.prefix, c.mapped = c.addr.Unmap(), source-96, true
		}
	}
	return true
}

// lastOptionECS returns the address of an IPv4 ECS option of a /24, the usual one, where pkt ends
// like that.
func lastOptionECS(pkt []byte) (addr netip.Addr, ok bool) {
	if len(pkt) < headerLen+11 {
		return addr, false
	}
	tail := (*[11]byte)(pkt[len(pkt)-11:]) // code, length, family, source, scope, address
	if be32(tail[:]) != optionECS<<16|7 || be32(tail[4:]) != familyIPv4<<16|24<<8 {
		return addr, false
	}
	return netip.AddrFrom4([4]byte{tail[8], tail[9], tail[10]}), true
}

// scope returns the scope prefix length to answer for d, a decision for addr.
func (c *ecs) scope(d *gslb.Decision) uint8 {
	if c.mapped && (d.Scope > 0 || d.Service.Placed()) { // what holds for all of IPv4 need not hold beside it
		return 96 + min(d.Scope, 32)
	}
	return d.Scope
}
