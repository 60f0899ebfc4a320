package dns

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/meridian-gslb/meridian/dns/zone"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/tracing"
)

// The path of a query, top to bottom: serve → answer → read (wire.go) → resolve → write.
// The full path (full.go) differs in how it reads and writes the octets, and in nothing else.

const (
	// maxChain bounds the CNAMEs followed in one answer. BIND and Knot stop near it too;
	// a chain that long is a mistake.
	maxChain = 16

	// maxSets bounds the RRsets of one reply: a CNAME and a DNAME for each link of the longest
	// chain and the end of it, and so much additional data, of which the rest is left out.
	maxSets = 2*(maxChain+1) + 2 + 28
)

// section is a section of a message (RFC 1035, section 4.1) after the question.
type section uint8

const (
	inAnswer section = iota
	inAuthority
	inAdditional
	sections
)

// set is one RRset of a reply. Its RRs are those of rrset, or one for each of addrs, or the
// one CNAME that leads to target.
type set struct {
	section  section
	optional bool   // additional data that may be left out without TC (RFC 2181, section 9)
	rtype    uint16 // of rrset or of addrs
	at       uint16 // where owner stands in the question, from the start of the message; 0: nowhere
	ttl      uint32
	owner    []byte // wire form, in the case to be sent
	rrset    *zone.RRset
	addrs    []netip.Addr
	target   []byte
}

// reply is what is said, before it is octets.
type reply struct {
	rcode    int  // extended: OPT carries the upper eight bits (RFC 6891, section 6.1.3)
	aa       bool // the answer is authoritative
	echo     bool // the question was understood and is repeated
	opt      bool // EDNS was understood and is answered
	tc       bool
	scope    uint8 // RFC 7871; only ever lengthened
	followed bool  // a CNAME: names are no longer parts of the question's
	resolved bool
	outcome  zone.Outcome // where the path ended; with resolved
	decided  bool
	answers  int // RRs in the answer section, as written
	n        int
	sets     [maxSets]set
	names    []byte // the targets of CNAMEs that no zone holds; keeps its memory
}

// reset readies r for the next query, and lets go of what the last one held of its Data.
func (r *reply) reset() {
	clear(r.sets[:r.n])
	r.rcode, r.aa, r.echo, r.opt, r.tc, r.scope, r.n = rcodeNoError, false, false, false, false, 0, 0
	r.followed, r.resolved, r.decided, r.answers, r.names = false, false, false, 0, r.names[:0]
}

// add returns a new set of r. There is room for it, unless it is additional data.
func (r *reply) add(sec section, owner []byte, rtype uint16, ttl uint32) *set {
	s := &r.sets[r.n]
	s.section, s.owner, s.rtype, s.ttl = sec, owner, rtype, ttl
	r.n++
	return s
}

// holds tells whether rrset is in r already, at any name.
func (r *reply) holds(rrset *zone.RRset) bool {
	for i := range r.sets[:r.n] {
		if r.sets[i].rrset == rrset {
			return true
		}
	}
	return false
}

// answerer answers queries one after the other, with memory of its own that it reuses. One
// goroutine at a time may use it.
type answerer struct {
	counters *counters
	trace    TraceWorker // nil: queries are not recorded
	panicked func(reason any, packet []byte)
	maxUDP   int
	follow   follower

	start  time.Time // when the batch that holds the query was read; only with trace
	last   uint32    // ns after start when the clock was read last; only with trace
	unread uint8     // queries since then
	q      query
	r      reply
	res    zone.Result
	d      gslb.Decision
	m      message
	target [maxName]byte // the name that a CNAME led to, in lower case
}

// newAnswerer returns an answerer that counts in c.
func newAnswerer(c *counters, trace TraceWorker, maxUDP int, panicked func(reason any, packet []byte)) *answerer {
	return &answerer{
		counters: c, trace: trace, maxUDP: maxUDP, panicked: panicked,
		r: reply{names: make([]byte, 0, (maxChain+2)*maxName)},
	}
}

// serve returns the reply to pkt, which came from the resolver at from, out of d; nil is
// silence. The reply is in buf, which has room for a reply over UDP, or in memory of its own. A
// query whose answer panics gets SERVFAIL, and takes nothing else down with it.
func (a *answerer) serve(d *Data, pkt []byte, from netip.Addr, tcp bool, buf []byte) (reply []byte) {
	defer func() {
		if reason := recover(); reason != nil {
			reply = a.recovered(reason, pkt, buf)
		}
	}()
	if a.trace == nil {
		return a.answer(d, pkt, from, tcp, buf)
	}
	drawn := a.trace.Draw()
	if drawn {
		a.clock()
	}
	reply = a.answer(d, pkt, from, tcp, buf)
	if a.r.echo && (drawn || a.notable()) {
		a.record(d)
	}
	return reply
}

// answer is serve without a net. On UDP it neither blocks, locks, logs nor allocates, but for
// queries of the full path.
func (a *answerer) answer(d *Data, pkt []byte, from netip.Addr, tcp bool, buf []byte) []byte {
	a.q.from, a.q.tcp, a.q.told = from, tcp, nil
	a.r.reset()
	a.follow.reset()
	full := tcp
	if !full {
		switch a.q.read(pkt, &a.r) {
		case silent:
			a.counters.dropped.Add(1)
			return nil
		case wellFormed:
			a.resolve(d)
		case unusual:
			full = true
		case refused: // with the rcode that read set
		}
	}
	if full {
		return a.answerFull(d, pkt, buf)
	}
	return a.write(buf[:min(len(buf), a.limit())])
}

// limit returns how many octets the reply may have: what the client can take and what we
// want to send over UDP (RFC 6891, section 6.2.5); everything that a length prefix can say
// over TCP.
func (a *answerer) limit() int {
	switch {
	case a.q.tcp:
		return maxMessage
	case a.q.edns.present:
		return min(max(int(a.q.edns.size), minUDP), a.maxUDP)
	default:
		return minUDP
	}
}

// resolve fills the reply to a query that was understood: RFC 1034, section 4.3.2, over all
// zones. A CNAME inside our zones is followed, and the rcode is that of its end (RFC 6604,
// section 3).
func (a *answerer) resolve(d *Data) {
	q, r := &a.q, &a.r
	a.follow.ask(q)
	if d == nil || d.Zones == nil || d.Snapshot == nil { // nothing is known, so nothing is denied
		r.rcode, r.resolved, r.outcome = rcodeRefused, true, zone.NotOurs
		return
	}
	r.resolved = true
	name, owner := q.lower[:len(q.name)], q.name // the same name, for looking up and for sending
	for link := range maxChain + 1 {
		d.Zones.Resolve(name, q.qtype, &a.res)
		r.outcome = a.res.Outcome
		if link == 0 { // AA speaks of the first owner name: RFC 1035, section 4.1.1
			r.aa = r.outcome != zone.NotOurs && r.outcome != zone.Referral
		} else if a.looped(owner) {
			return
		}
		switch a.outcome() {
		case zone.NotOurs:
			if link == 0 {
				r.rcode = rcodeRefused
			}
			return
		case zone.Hit:
			a.addRRset(inAnswer, owner, a.res.RRset)
			if q.qtype != typeANY { // which gets as little as can be: RFC 8482
				a.addTargets(d.Zones, a.res.RRset)
			}
			return
		case zone.Alias:
			a.addRRset(inAnswer, owner, a.res.RRset)
			owner = a.res.RRset.RData[0]
		case zone.Redirect:
			if owner = a.addRedirect(owner); owner == nil {
				r.rcode = rcodeYXDomain
				return
			}
		case zone.Steered:
			if owner = a.addSteered(d, owner); owner == nil {
				return
			}
		case zone.Referral:
			a.addReferral(d.Zones, owner)
			return
		case zone.NoData:
			a.addSOA(owner) // RFC 2308, section 2.2
			return
		case zone.NameError:
			r.rcode = rcodeNameError
			a.addSOA(owner) // RFC 2308, section 2.1
			return
		}
		r.followed = true
		name = a.target[:lower(a.target[:], owner)]
	}
}

// outcome returns where the name led. ANY at a name that has nothing but a service gets the
// service's A RRs: a minimal answer of RFC 8482, section 4.1.
func (a *answerer) outcome() zone.Outcome {
	if a.q.qtype == typeANY && a.res.Outcome == zone.NoData && a.res.Node != nil && a.res.Node.Service >= 0 {
		a.r.outcome = zone.Steered
	}
	return a.r.outcome
}

// add adds a set at owner, a part of the question's name until a CNAME was followed.
func (a *answerer) add(sec section, owner []byte, rtype uint16, ttl uint32) *set {
	s := a.r.add(sec, owner, rtype, ttl)
	if !a.r.followed {
		s.at = a.q.at(owner)
	}
	return s
}

func (a *answerer) addRRset(sec section, owner []byte, rrset *zone.RRset) {
	a.add(sec, owner, rrset.Type, rrset.TTL).rrset = rrset
}

// addCNAME adds a CNAME that no zone holds, and returns its target.
func (a *answerer) addCNAME(owner []byte, ttl uint32, target []byte) []byte {
	a.add(inAnswer, owner, typeCNAME, ttl).target = target
	return target
}

// ending returns ancestor, which is at or above name, in the case of name: the reply repeats the
// question's case, and names compress well.
func ending(name, ancestor []byte) []byte { return name[len(name)-len(ancestor):] }

// looped tells whether the chain has been at owner before.
func (a *answerer) looped(owner []byte) bool {
	for i := range a.r.sets[:a.r.n] {
		if equalFold(a.r.sets[i].owner, owner) {
			return true
		}
	}
	return false
}

// addSteered decides for the client, and adds the addresses at owner. It returns the name
// that a fallback leads to, if it leads to a name.
func (a *answerer) addSteered(d *Data, owner []byte) (fallback []byte) {
	q, r := &a.q, &a.r
	client, fromECS := q.client()
	d.Snapshot.Decide(d.Snapshot.Services[a.res.Node.Service], client, &a.d)
	r.decided = true
	a.counters.decided(d.Snapshot, &a.d)
	if fromECS { // a decision by the resolver's own address says nothing of others: scope 0
		r.scope = max(r.scope, q.edns.ecs.scope(a.d.Scope))
	}
	if a.d.Reason == gslb.ReasonServfail {
		r.rcode, r.aa = rcodeServFail, false
		return nil
	}
	if a.d.Fallback != "" {
		start := len(r.names)
		r.names = appendText(r.names, a.d.Fallback)
		return a.addCNAME(owner, a.d.TTL, r.names[start:])
	}
	rtype, addrs := typeA, a.d.V4
	if q.qtype == typeAAAA || q.qtype == typeANY && len(addrs) == 0 {
		rtype, addrs = typeAAAA, a.d.V6
	}
	if len(addrs) == 0 { // one pool answers for both families, also with none of one
		r.outcome = zone.NoData
		a.addSOA(owner)
		return nil
	}
	a.add(inAnswer, owner, rtype, a.d.TTL).addrs = a.follow.identify(d.Snapshot, &a.d, addrs, a.start)
	return nil
}

// addRedirect adds the DNAME above owner and the CNAME that it makes of it (RFC 6672, section
// 3.1), and returns the name that owner now is: the DNAME's target in the place of the DNAME's
// owner. It is nil if that is too long for a name.
func (a *answerer) addRedirect(owner []byte) []byte {
	r, dname := &a.r, a.res.RRset
	if !r.holds(dname) {
		a.addRRset(inAnswer, ending(owner, a.res.Node.Owner), dname)
	}
	prefix, target := owner[:len(owner)-len(a.res.Node.Owner)], dname.RData[0]
	if len(prefix)+len(target) > maxName {
		return nil
	}
	start := len(r.names)
	r.names = append(append(r.names, prefix...), target...)
	return a.addCNAME(owner, dname.TTL, r.names[start:])
}

// addSOA adds the SOA of the zone that denies, to be cached for as long as RFC 2308, section
// 5, allows.
func (a *answerer) addSOA(owner []byte) {
	z := a.res.Zone
	a.add(inAuthority, ending(owner, z.Origin), typeSOA, z.NegTTL).rrset = z.SOA
}

// addReferral adds the NS RRset of a zone cut and the glue that is known. Glue at or below
// the cut must not be left out without TC (RFC 9471, section 3.1); other glue may.
func (a *answerer) addReferral(zones *zone.Set, owner []byte) {
	cut := a.res.Node.Owner
	a.addRRset(inAuthority, ending(owner, cut), a.res.RRset)
	for _, ns := range a.res.RRset.RData {
		a.addAddresses(zones, ns, !below(ns, cut))
	}
}

// addTargets adds the addresses of the names that the RRs of rrset lead to (RFC 1035,
// sections 3.3.9 and 3.3.11; RFC 2782).
func (a *answerer) addTargets(zones *zone.Set, rrset *zone.RRset) {
	skip := 0
	switch rrset.Type {
	case typeNS:
	case typeMX:
		skip = 2
	case typeSRV:
		skip = 6
	default:
		return
	}
	for _, rdata := range rrset.RData {
		a.addAddresses(zones, rdata[skip:], true)
	}
}

// addAddresses adds the A and AAAA RRsets of name, once.
func (a *answerer) addAddresses(zones *zone.Set, name []byte, optional bool) {
	v4, v6 := zones.Addresses(name)
	for _, rrset := range [...]*zone.RRset{v4, v6} {
		if rrset == nil || a.r.n == maxSets || a.r.holds(rrset) {
			continue
		}
		s := a.r.add(inAdditional, name, rrset.Type, rrset.TTL)
		s.rrset, s.optional = rrset, optional
	}
}

// write writes the reply into buf, whose length is the limit: header, question, the sets that
// fit, OPT. An RRset is never split; when one that is required does not fit, the reply is cut
// down to the question with TC (RFC 2181, section 9).
func (a *answerer) write(buf []byte) []byte {
	q, r, m := &a.q, &a.r, &a.m
	m.reset(buf, len(buf)-q.optLen(r.opt))
	if r.echo {
		m.putQuestion(q)
	}
	question := m.n
	var counts [sections]int
	for i := range r.sets[:r.n] {
		s := &r.sets[i]
		before := m.n
		rrs, fits := m.putSet(s)
		if !fits {
			m.n = before
			if s.optional {
				break
			}
			r.tc, m.n, counts = true, question, [sections]int{}
			break
		}
		counts[s.section] += rrs
	}
	r.answers = counts[inAnswer]
	m.limit = len(buf)
	if r.opt {
		m.putOPT(q, r, a.maxUDP)
		counts[inAdditional]++
	}
	m.putHeader(q, r, counts)
	a.counters.replied(r)
	return buf[:m.n]
}

// recovered answers SERVFAIL to a query whose answer panicked.
func (a *answerer) recovered(reason any, pkt, buf []byte) []byte {
	a.counters.panics.Add(1)
	a.panicked(reason, pkt)
	// What the panic left behind is not to be trusted.
	start, follow := a.start, a.follow
	*a = *newAnswerer(a.counters, a.trace, a.maxUDP, a.panicked)
	a.start, a.follow = start, follow
	if len(pkt) < headerLen || be16(pkt[2:])&flagQR != 0 {
		return nil
	}
	a.q.id, a.q.flags = be16(pkt), be16(pkt[2:])
	a.r.rcode = rcodeServFail
	return a.write(buf[:headerLen])
}

// clockEvery is after how many queries the clock is read, which costs as much as parsing one.
const clockEvery = 8

// slow is the time since the batch was read after which every query is worth a record.
const slow = 5 * time.Millisecond

// clock reads the clock.
func (a *answerer) clock() {
	a.last, a.unread = uint32(min(time.Since(a.start), time.Duration(1<<32-1))), 0
}

// notable tells whether a query that was not drawn is worth a record: by its rcode, by what was
// decided, or because it is late. For the last the clock is read every clockEvery queries.
func (a *answerer) notable() bool {
	if a.unread++; a.unread >= clockEvery {
		a.clock()
	}
	if time.Duration(a.last) > slow || a.follow.asked.Ask != tracing.AskNothing {
		return true
	}
	service, pool, reason := a.decision()
	return a.trace.Notable(service, pool, uint8(reason), uint8(min(a.r.rcode, 255)))
}

// decision returns what was decided, as indices, or -1.
func (a *answerer) decision() (service, pool int32, reason gslb.Reason) {
	if !a.r.decided {
		return -1, -1, 0
	}
	if a.d.Pool == nil {
		return int32(a.d.Service.Index), -1, a.d.Reason
	}
	return int32(a.d.Service.Index), int32(a.d.Pool.Index), a.d.Reason
}

// record writes the query's record for the tracer. As far as that knows, a query was parsed
// when the clock was read before it.
func (a *answerer) record(d *Data) {
	t := a.trace.Begin()
	if t == nil {
		return
	}
	parsed := a.last
	a.clock()
	q, r := &a.q, &a.r
	t.Start, t.Parsed, t.End = a.start.UnixNano(), parsed, a.last
	if d != nil && d.Snapshot != nil {
		t.Revision = d.Snapshot.Revision
	}
	client, fromECS := q.client()
	t.Client, t.Source, t.V6, t.HasECS = client.Addr.As16(), client.Source, client.Addr.Is6(), fromECS
	t.Resolver, t.TCP = q.from.As16(), q.tcp
	t.Rcode, t.Qtype, t.Scope, t.Answers = uint8(min(r.rcode, 255)), q.qtype, r.scope, uint8(min(r.answers, 255))
	var reason gslb.Reason
	t.Service, t.Pool, reason = a.decision()
	t.Reason = uint8(reason)
	if r.decided {
		t.Decided, t.Outcome, t.TTL = a.last, a.d.Outcome, a.d.TTL
	}
	a.follow.record(t, r)
	t.NameLen = uint8(copy(t.Name[:], q.name))
	a.trace.Commit()
}

// TraceWorker takes the records of one worker's queries, from one goroutine at a time.
type TraceWorker interface {
	// Draw tells whether the next query is to be recorded.
	Draw() bool
	// Notable tells whether a query that was not drawn is to be recorded all the same, by its
	// rcode or by what was decided: indices as in tracing.Query.
	Notable(service, pool int32, reason, rcode uint8) bool
	// Begin returns the record to fill, zero but for Name, or nil when there is no room.
	Begin() *tracing.Query
	// Commit hands on the record that Begin returned.
	Commit()
}

// below tells whether name is ancestor or below it. Both are in wire form, in any case.
func below(name, ancestor []byte) bool {
	for len(name) > len(ancestor) {
		name = name[1+int(name[0]):]
	}
	return len(name) == len(ancestor) && equalFold(name, ancestor)
}

// equalFold tells whether two names in wire form are the same (RFC 4343). The octets of
// lengths are below 64, so that folding letters leaves them alone.
func equalFold(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	if bytes.Equal(a, b) {
		return true
	}
	for i := range a {
		if toLower(a[i]) != toLower(b[i]) {
			return false
		}
	}
	return true
}
