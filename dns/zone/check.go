package zone

import (
	"bytes"

	"github.com/miekg/dns"
)

// check reports what is wrong with a zone as a whole.
func (b *builder) check(z *Zone, file string) {
	if z.SOA == nil {
		b.fault(file, 0, "no SOA at the apex, %s: expected one", ToString(b.apex))
	}
	if z.NS == nil {
		b.fault(file, 0, "no NS at the apex, %s: expected at least one", ToString(b.apex))
	}
	glue := b.glue(z)
	for rest := b.records; len(rest) > 0; {
		n := run(rest, func(r *record) bool { return r.node == rest[0].node })
		b.checkNode(z, rest[:n], glue)
		rest = rest[n:]
	}
}

// glue returns the nodes below zone cuts that an NS of the zone names: their addresses are
// what a referral has to add.
func (b *builder) glue(z *Zone) map[*Node]bool {
	glue := make(map[*Node]bool)
	var low [MaxName]byte
	for i := range b.records {
		if r := &b.records[i]; r.rtype == dns.TypeNS && r.node != 0 {
			if n := z.find(AppendLower(low[:0], r.rdata)); n != nil && n.cut >= 0 {
				glue[n] = true
			}
		}
	}
	return glue
}

// find returns the node of a name in lower case, or nil.
func (z *Zone) find(name []byte) *Node { return z.names.find(hash(name), name) }

// checkNode reports what is wrong with the RRs of one node.
func (b *builder) checkNode(z *Zone, rs []record, glue map[*Node]bool) {
	n := &z.names.nodes[rs[0].node]
	apex := rs[0].node == 0
	owner := ToString(n.Owner)
	cut, delegation := z.cutOf(n)
	for i := range rs {
		r := &rs[i]
		file, line := b.at(r)
		switch r.rtype {
		case dns.TypeSOA:
			if !apex {
				b.fault(file, line, "%s: an SOA below the apex, %s", owner, ToString(b.apex))
			}
		case dns.TypeNS, dns.TypeDNAME:
			if isWildcard(n.Owner) {
				b.fault(file, line, "%s: %s at a wildcard has no meaning (RFC 4592, sections 4.2 and 4.4)", owner, dns.Type(r.rtype))
			}
		case dns.TypeDS:
			if apex || n.RRset(dns.TypeNS) == nil {
				b.warn(file, line, "%s: DS where there is no delegation", owner)
			}
		}
		if first := r; i == 0 || rs[i-1].rtype != r.rtype {
			b.checkAlone(owner, rs, first)
		} else if single(r.rtype) {
			_, other := b.at(&rs[i-1])
			b.fault(file, line, "%s: a second %s, the other is at line %d: expected one", owner, dns.Type(r.rtype), other)
		}
		switch {
		case cut == nil || cut == n && !delegation || inReferral(n, cut, r.rtype, glue):
			b.checkTarget(z, owner, r)
		case delegation:
			b.warn(file, line, "%s: %s is hidden by the zone cut at %s and is no glue", owner, dns.Type(r.rtype), ToString(cut.Owner))
		default:
			b.warn(file, line, "%s: %s is hidden by the DNAME at %s", owner, dns.Type(r.rtype), ToString(cut.Owner))
		}
	}
}

// single tells whether an RRset of that type has one RR at most.
func single(rtype uint16) bool {
	return rtype == dns.TypeSOA || rtype == dns.TypeCNAME || rtype == dns.TypeDNAME
}

// inReferral tells whether RRs of that type, at or below cut, are what the parent's side of
// a zone cut is there for.
func inReferral(n, cut *Node, rtype uint16, glue map[*Node]bool) bool {
	switch rtype {
	case dns.TypeA, dns.TypeAAAA:
		return glue[n]
	case dns.TypeNS, dns.TypeDS, dns.TypeNSEC, dns.TypeRRSIG:
		return n == cut
	}
	return false
}

// checkAlone reports an RRset whose first RR is r for what else is at its owner name.
func (b *builder) checkAlone(owner string, rs []record, r *record) {
	for i := range rs {
		other := &rs[i]
		if i > 0 && rs[i-1].rtype == other.rtype {
			continue
		}
		file, line := b.at(r)
		_, otherLine := b.at(other)
		switch {
		case r.rtype == dns.TypeCNAME && !besideCNAME(other.rtype):
			b.fault(file, line, "%s: CNAME beside %s of line %d (RFC 2181, section 10.1)", owner, dns.Type(other.rtype), otherLine)
		case r.rtype == dns.TypeDNAME && other.rtype == dns.TypeNS && r.node != 0:
			b.fault(file, line, "%s: DNAME beside the delegation of line %d (RFC 6672, section 2.3)", owner, otherLine)
		}
	}
}

// besideCNAME tells whether a type may share an owner name with a CNAME: itself and what
// DNSSEC adds (RFC 4035, section 2.5).
func besideCNAME(rtype uint16) bool {
	switch rtype {
	case dns.TypeCNAME, dns.TypeRRSIG, dns.TypeNSEC, dns.TypeKEY, dns.TypeSIG, dns.TypeNXT:
		return true
	}
	return false
}

// checkTarget reports a host that r names, that this zone should know, and that has no
// address: for an NS glue, where it is below the delegation.
func (b *builder) checkTarget(z *Zone, owner string, r *record) {
	if r.rtype != dns.TypeNS && r.rtype != dns.TypeMX {
		return // an SRV's host is often a service, which the zone does not know
	}
	host := AppendLower(nil, rdataTarget(r.rtype, r.rdata))
	if len(host) == 1 || !under(host, b.apex) { // "." is "none" (RFC 7505)
		return
	}
	file, line := b.at(r)
	name, rtype := ToString(host), dns.Type(r.rtype)
	n, wildcard, delegated := z.lookup(host)
	switch {
	case n != nil && n.RRset(dns.TypeCNAME) != nil:
		b.warn(file, line, "%s: %s %s is an alias (RFC 2181, section 10.3)", owner, rtype, name)
	case n != nil && (n.RRset(dns.TypeA) != nil || n.RRset(dns.TypeAAAA) != nil):
	case r.rtype == dns.TypeNS && r.node != 0 && under(host, AppendLower(nil, z.names.nodes[r.node].Owner)):
		b.warn(file, line, "%s: NS %s is below its own delegation and has no glue here (RFC 1034, section 4.2.1)", owner, name)
	case delegated || wildcard && n == nil:
		// The address is the child zone's, or not in this zone.
	default:
		b.warn(file, line, "%s: %s %s has no address in this zone", owner, rtype, name)
	}
}

// lookup returns the node that answers for host: its own, or the wildcard's that covers it;
// whether it was covered, and whether host is at or below a zone cut or a DNAME.
func (z *Zone) lookup(host []byte) (n *Node, wildcard, delegated bool) {
	if n = z.find(host); n != nil {
		return n, false, n.cut >= 0
	}
	encloser, above := host, (*Node)(nil)
	for above == nil {
		encloser = encloser[1+encloser[0]:]
		above = z.find(encloser)
	}
	if above.cut >= 0 {
		return nil, false, true
	}
	n = z.find(append([]byte("\x01*"), bytes.Clone(encloser)...))
	return n, n != nil, false
}
