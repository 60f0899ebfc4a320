// Package zone reads RFC 1035 master files and resolves names in them as RFC 1034, section
// 4.3.2, step 3 says. Zones are immutable.
//
// Names are in uncompressed wire form everywhere (RFC 1035, section 3.1), 1..255 octets.
package zone

import (
	"encoding/binary"
	"iter"

	"github.com/miekg/dns"
)

// RRset is every RR of one type at one owner name (RFC 2181, section 5). It is immutable.
type RRset struct {
	Type  uint16
	TTL   uint32   // seconds, 0..2^31-1 (RFC 2181, section 8)
	RData [][]byte // uncompressed wire form, one per RR, in the order of the file
}

// Node is one owner name of a zone, or an empty non-terminal.
type Node struct {
	Owner   []byte  // wire form, with the case of the file
	RRsets  []RRset // ordered by type
	Service int32   // index of the steered service at this name; -1: none
	cut     int32   // node at or above this one that ends the zone's authority: a zone cut or a DNAME; -1: none
}

// RRset returns the RRset of that type at n, or nil.
func (n *Node) RRset(rrtype uint16) *RRset {
	for i := range n.RRsets {
		if n.RRsets[i].Type == rrtype {
			return &n.RRsets[i]
		}
	}
	return nil
}

// Zone is one zone. It is made by Parse, immutable, and safe for concurrent use.
//
// Its memory is a few large blocks: every owner name and all rdata lie in one, the Nodes,
// RRsets and slices of rdata that view it in one each.
type Zone struct {
	Origin []byte // wire form
	SOA    *RRset
	NS     *RRset
	NegTTL uint32 // RFC 2308, section 5: the lesser of the SOA's TTL and its MINIMUM

	names  index // nodes[0] is the apex; a node's parent comes before it
	labels int   // of Origin
	rrsets int
	rrs    int
}

// Name returns the zone's name in presentation form: lower case, no trailing dot; "." is
// the root zone.
func (z *Zone) Name() string { return ToString(AppendLower(nil, z.Origin)) }

// Serial returns the serial number of the SOA.
func (z *Zone) Serial() uint32 {
	soa := z.SOA.RData[0]
	return binary.BigEndian.Uint32(soa[len(soa)-20:]) // five 32-bit fields end the SOA: RFC 1035, section 3.3.13
}

// Size returns how many names (empty non-terminals included), RRsets and RRs z has.
func (z *Zone) Size() (names, rrsets, rrs int) { return len(z.names.nodes), z.rrsets, z.rrs }

// All yields every node of z: the apex first, a name's ancestors always before it, and
// else in the order of the file.
func (z *Zone) All() iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		for i := range z.names.nodes {
			if !yield(&z.names.nodes[i]) {
				return
			}
		}
	}
}

// cutOf returns the node that ends the zone's authority at n, or nil, and whether it is a
// zone cut; it is else the owner of a DNAME.
func (z *Zone) cutOf(n *Node) (cut *Node, delegation bool) {
	if n.cut < 0 {
		return nil, false
	}
	cut = &z.names.nodes[n.cut]
	return cut, n.cut != 0 && cut.RRset(dns.TypeNS) != nil
}
