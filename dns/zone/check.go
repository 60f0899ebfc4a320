package zone

import "github.com/miekg/dns"

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
	cut, delegation := z.cutOf(n)
	for i := range rs {
		r := &rs[i]
		b.checkOwner(n, r)
		switch {
		case i == 0 || rs[i-1].rtype != r.rtype:
			b.checkBeside(rs, r)
		case single(r.rtype):
			b.faultAt(r, "a second %s, beside that of line %d: expected one", dns.Type(r.rtype), rs[i-1].line)
		}
		switch {
		case cut == nil || cut == n && !delegation || inReferral(n, cut, r.rtype, glue):
			b.checkTarget(z, r)
		case delegation:
			b.warnAt(r, "%s is hidden by the zone cut at %s and is no glue", dns.Type(r.rtype), ToString(cut.Owner))
		default:
			b.warnAt(r, "%s is hidden by the DNAME at %s", dns.Type(r.rtype), ToString(cut.Owner))
		}
	}
}

// checkOwner reports an RR whose type does not belong at its owner name.
func (b *builder) checkOwner(n *Node, r *record) {
	apex := r.node == 0
	switch r.rtype {
	case dns.TypeSOA:
		if !apex {
			b.faultAt(r, "SOA below the apex, %s", ToString(b.apex))
		}
	case dns.TypeNS, dns.TypeDNAME:
		if isWildcard(n.Owner) {
			b.faultAt(r, "%s at a wildcard, which has no meaning (RFC 4592, sections 4.2 and 4.4)", dns.Type(r.rtype))
		}
	case dns.TypeDS:
		if apex {
			b.faultAt(r, "DS at the apex: it belongs to the parent zone (RFC 4035, section 2.4)")
		} else if n.RRset(dns.TypeNS) == nil {
			b.warnAt(r, "DS where there is no delegation")
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
	case dns.TypeCNAME, dns.TypeDNAME:
		return n == cut // a fault: checkBeside
	}
	return false
}

// checkBeside reports the RRset of rs whose first RR is r for what else is at its owner name.
func (b *builder) checkBeside(rs []record, r *record) {
	for i := range rs {
		other := &rs[i]
		switch {
		case i > 0 && rs[i-1].rtype == other.rtype:
		case r.rtype == dns.TypeCNAME && !besideCNAME(other.rtype):
			b.faultAt(r, "CNAME beside the %s of line %d (RFC 2181, section 10.1)", dns.Type(other.rtype), other.line)
		case r.rtype == dns.TypeDNAME && other.rtype == dns.TypeNS && r.node != 0:
			b.faultAt(r, "DNAME beside the delegation of line %d (RFC 6672, section 2.3)", other.line)
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

// checkTarget reports a host that r names, that this zone should know, and that is an alias or has
// no address: for an NS glue, where it is below the delegation.
func (b *builder) checkTarget(z *Zone, r *record) {
	if r.rtype != dns.TypeNS && r.rtype != dns.TypeMX && r.rtype != dns.TypeSRV {
		return
	}
	var low [MaxName]byte
	host := AppendLower(low[:0], rdataTarget(r.rtype, r.rdata))
	if len(host) == 1 || !under(host, b.apex) { // "." is "none" (RFC 7505)
		return
	}
	n, delegated := z.lookup(host)
	switch {
	case n != nil && n.RRset(dns.TypeCNAME) != nil:
		b.warnAt(r, "%s %s is an alias (%s)", dns.Type(r.rtype), ToString(host), noAlias[r.rtype])
	case r.rtype == dns.TypeSRV: // its host is often a service, which the zone does not know
	case n != nil && (n.RRset(dns.TypeA) != nil || n.RRset(dns.TypeAAAA) != nil):
	case r.rtype == dns.TypeNS && r.node != 0 && under(host, AppendLower(nil, b.nodes[r.node].Owner)):
		b.warnAt(r, "NS %s is below its own delegation and has no glue here (RFC 1034, section 4.2.1)", ToString(host))
	case !delegated: // the address would be in the child zone
		before := len(b.warnings)
		b.warnAt(r, "%s %s has no address in this zone", dns.Type(r.rtype), ToString(host))
		for i := range b.warnings[before:] {
			b.warnings[before+i].Host = ToString(host)
		}
	}
}

// noAlias is what says that the host of such an RR is none.
var noAlias = map[uint16]string{dns.TypeNS: "RFC 2181, section 10.3", dns.TypeMX: "RFC 2181, section 10.3", dns.TypeSRV: "RFC 2782"}

// lookup returns the node that answers for host, its own or the wildcard's that covers it,
// and whether host is at or below a zone cut or below a DNAME.
func (z *Zone) lookup(host []byte) (n *Node, delegated bool) {
	if n = z.find(host); n != nil {
		return n, n.cut >= 0
	}
	encloser := z.encloser(host)
	if encloser.cut >= 0 {
		return nil, true
	}
	source := AppendLower([]byte("\x01*"), encloser.Owner)
	return z.find(source), false
}
