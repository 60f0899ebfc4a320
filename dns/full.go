package dns

import (
	"bytes"
	"encoding/hex"

	miekg "github.com/miekg/dns"
)

// answerFull is answer for what the fast path leaves: queries that are no plain question. It reads names and writes messages with miekg/dns, allocates, and
// shares what a reply says (resolve) and what an option means (edns.go) with the fast path.
func (a *answerer) answerFull(d *Data, pkt, buf []byte) []byte {
	a.r.reset()
	a.signed = nil
	a.counters.full.Add(1)
	how := a.q.readFull(pkt, &a.r)
	if a.explainers != nil && how == wellFormed {
		if a.q.signed && len(a.explainers.Load().Keys) > 0 {
			how = a.verify(pkt)
		}
		a.r.explain = a.q.asksWhy() && (a.signed != nil || a.mayAskWhy())
	}
	if !a.respond(d, pkt, how) {
		return nil
	}
	if a.r.explain {
		a.explainAnswer(d)
	}
	a.putOptions()
	return a.writeFull(buf, a.limit())
}

// readFull parses pkt, and judges it as read does. RRs that a query should not have are
// skipped over, after a look at their framing.
func (q *query) readFull(pkt []byte, r *reply) admission {
	if len(pkt) < headerLen {
		return silent
	}
	q.id, q.flags = be16(pkt), be16(pkt[2:])
	q.edns, q.signed = edns{}, false
	if q.flags&flagQR != 0 {
		return silent
	}
	r.rcode = q.fault() // until all of it was understood
	if be16(pkt[4:]) != 1 {
		return q.readBare(pkt)
	}
	name, off, err := miekg.UnpackDomainName(pkt, headerLen)
	if err != nil || len(pkt)-off < 4 {
		return refused
	}
	wire, err := wireName(name)
	if err != nil || !bytes.Equal(wire, pkt[headerLen:off]) { // compressed, with nothing to point to
		return refused
	}
	q.name = pkt[headerLen:off:off]
	lower(q.lower[:], q.name)
	q.qtype, q.qclass = be16(pkt[off:]), be16(pkt[off+2:])
	off += 4
	r.echo = true

	additional := int(be16(pkt[6:])) + int(be16(pkt[8:])) // the first RR that is
	for i := range additional + int(be16(pkt[10:])) {
		start := off
		if _, off, err = miekg.UnpackDomainName(pkt, off); err != nil || len(pkt)-off < 10 {
			return refused
		}
		if be16(pkt[off:]) == typeOPT {
			if i < additional || q.edns.present { // RFC 6891, section 6.1.1
				return refused
			}
			if off = q.edns.read(pkt, start); off == 0 {
				return refused
			}
			continue
		}
		q.signed = q.signed || be16(pkt[off:]) == miekg.TypeTSIG
		rdlen := int(be16(pkt[off+8:]))
		off += 10
		if len(pkt)-off < rdlen {
			return refused
		}
		off += rdlen
	}
	if off != len(pkt) {
		return refused
	}
	r.rcode, r.opt = rcodeNoError, q.edns.present
	return q.admit(r)
}

// writeFull writes the reply, of at most limit octets, under the rules of write: into buf if it
// has the room that miekg/dns wants.
func (a *answerer) writeFull(buf []byte, limit int) []byte {
	q, r := &a.q, &a.r
	msg := miekg.Msg{Compress: true}
	msg.Id, msg.Response, msg.Rcode = q.id, true, r.rcode
	msg.Opcode = int(q.flags & opcodeMask >> 11)
	msg.Authoritative, msg.RecursionDesired = r.aa, q.flags&flagRD != 0
	if r.echo {
		msg.Question = []miekg.Question{{Name: textName(q.name), Qtype: q.qtype, Qclass: q.qclass}}
	}
	var rrs [maxSets][]miekg.RR
	for i := range r.sets[:r.n] {
		rrs[i] = r.sets[i].rrs(q.qclass)
	}
	for n := r.n; ; n-- { // the most sets that fit
		msg.Answer, msg.Ns, msg.Extra = nil, nil, nil
		for i := range n {
			in := [...]*[]miekg.RR{inAnswer: &msg.Answer, inAuthority: &msg.Ns, inAdditional: &msg.Extra}[r.sets[i].section]
			*in = append(*in, rrs[i]...)
		}
		if r.opt {
			msg.Extra = append(msg.Extra, q.opt(a.opts, a.maxUDP))
		}
		msg.Truncated = r.tc
		var out []byte
		var err error
		if a.signed != nil {
			out, err = a.signed.sign(&msg)
		} else {
			out, err = msg.PackBuffer(buf)
		}
		if err != nil {
			panic(err) // names and rdata come from a zone that was read: what we hold cannot be packed
		}
		if len(out) <= limit || n <= 0 { // a signature alone may be longer than the limit
			r.answers = len(msg.Answer)
			a.tally.countReply(r)
			return out
		}
		if r.brief != "" { // goes before anything else: RFC 8914, section 3
			r.brief = ""
			a.putOptions()
			n++
			continue
		}
		if !r.sets[n-1].optional {
			r.cut(q.tcp)
			msg.Rcode, msg.Authoritative, n = r.rcode, r.aa, 1 // the question alone, next
		}
	}
}

// rrs returns the RRs of s.
func (s *set) rrs(class uint16) (rrs []miekg.RR) {
	h := miekg.RR_Header{Name: textName(s.owner), Rrtype: s.rtype, Class: class, Ttl: s.ttl}
	switch {
	case s.addrs != nil:
		for _, addr := range s.addrs {
			rrs = append(rrs, rr(h, addr.AsSlice()))
		}
	case s.target != nil:
		rrs = append(rrs, rr(h, s.target))
	default:
		for _, rdata := range s.rdatas() {
			rrs = append(rrs, rr(h, rdata))
		}
	}
	return rrs
}

// rr returns the RR of that rdata. What miekg/dns does not understand is sent as it is.
func rr(h miekg.RR_Header, rdata []byte) miekg.RR {
	h.Rdlength = uint16(len(rdata))
	if rr, _, err := miekg.UnpackRRWithHeader(h, rdata, 0); err == nil {
		return rr
	}
	return &miekg.RFC3597{Hdr: h, Rdata: hex.EncodeToString(rdata)}
}

// opt returns the OPT that putOPT writes.
func (q *query) opt(opts []byte, maxUDP int) *miekg.OPT {
	opt := &miekg.OPT{Hdr: miekg.RR_Header{Name: ".", Rrtype: miekg.TypeOPT}}
	opt.SetUDPSize(uint16(maxUDP))
	opt.SetDo(q.edns.do)
	for b := opts; len(b) > 0; {
		l := 4 + int(be16(b[2:]))
		opt.Option = append(opt.Option, &miekg.EDNS0_LOCAL{Code: be16(b), Data: bytes.Clone(b[4:l])})
		b = b[l:]
	}
	return opt
}

// textName returns the name at the start of wire as miekg/dns writes names.
func textName(wire []byte) string {
	name, _, err := miekg.UnpackDomainName(wire, 0)
	if err != nil {
		panic(err) // our names are valid by construction
	}
	return name
}

// wireName is the way back.
func wireName(name string) ([]byte, error) {
	wire := make([]byte, maxName)
	n, err := miekg.PackDomainName(name, wire, 0, nil, false)
	if err != nil {
		return nil, err
	}
	if name == "." { // which miekg/dns leaves to its caller's zeroed buffer
		n = 1
	}
	return wire[:n], nil
}
