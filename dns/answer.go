package dns

import (
	"bytes"
	"net/netip"
	"sync/atomic"
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
	rdata    [][]byte // in the place of rrset's, if not nil
	addrs    []netip.Addr
	target   []byte
}

// rdatas returns the rdata of s, unless that is addrs or target.
func (s *set) rdatas() [][]byte {
	if s.rdata != nil {
		return s.rdata
	}
	return s.rrset.RData
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
	why      reason
	explain  bool   // who asks may be told why
	brief    string // why the answer is what it is, beside it; empty: not asked for

	// What no zone holds; they keep their memory.
	names  []byte // targets of CNAMEs, rdata
	rdatas [][]byte
	addrs  []netip.Addr
}

// reset readies r for the next query, and lets go of what the last one held of its Data.
func (r *reply) reset() {
	clear(r.sets[:r.n])
	r.rcode, r.aa, r.echo, r.opt, r.tc, r.scope, r.n = rcodeNoError, false, false, false, false, 0, 0
	r.followed, r.resolved, r.decided, r.answers, r.why = false, false, false, 0, noReason
	r.explain, r.brief = false, ""
	r.names, r.rdatas, r.addrs = r.names[:0], r.rdatas[:0], r.addrs[:0]
}

// add returns a new set of r. There is room for it, unless it is additional data.
func (r *reply) add(sec section, owner []byte, rtype uint16, ttl uint32) *set {
	s := &r.sets[r.n]
	s.section, s.owner, s.rtype, s.ttl = sec, owner, rtype, ttl
	r.n++
	return s
}

// holds tells whether r has RRs of that type at owner already.
func (r *reply) holds(rtype uint16, owner []byte) bool {
	for i := range r.sets[:r.n] {
		if s := &r.sets[i]; s.rtype == rtype && equalFold(s.owner, owner) {
			return true
		}
	}
	return false
}

// settings are what an answerer has of its server.
type settings struct {
	counters *counters
	tally    *tally      // of what is counted for every query
	trace    TraceWorker // nil: queries are not recorded
	all      bool        // every query is
	panicked func(reason any, packet []byte)
	local    netip.AddrPort // that is asked, for records; unspecified: not known
	maxUDP   int
	follow   follower

	identity   Identity
	keepalive  uint16                      // units of 100 ms: the idle timeout of TCP (RFC 7828)
	cookies    *atomic.Pointer[cookieKeys] // nil: COOKIE is an option like any other that we do not know
	limiter    *limiter                    // nil: no limit
	amplify    int                         // 0: no bound
	quarantine *quarantine                 // nil: nothing is refused for having panicked
	explainers *atomic.Pointer[Explainers] // nil: nobody may ask why
}

// answerer answers queries one after the other, with memory of its own that it reuses. One
// goroutine at a time may use it.
type answerer struct {
	settings

	port   uint16         // that the query came from, for records
	start  time.Time      // when the batch that holds the query was read
	nano   int64          // start, ns since 1970
	epoch  uint32         // and in seconds
	last   uint32         // ns after start when the clock was read last; only with trace
	rest   int            // queries until trace is to draw again
	unread uint8          // queries since the clock was read
	made   uint8          // decisions, modulo 256
	kind   *decisionCount // of the decision
	q      query
	r      reply
	res    zone.Result
	d      gslb.Decision
	second gslb.Decision // on services that the answer leads to
	opts   []byte        // options of the reply's OPT; keeps its memory
	signed *signature    // of the reply; only on the full path, nil: none
	size   int           // octets of the query
	m      message
	target [maxName]byte // the name that a CNAME led to, in lower case

	_ [cacheLine]byte // another worker's memory may come next
}

// newAnswerer returns an answerer that counts in c.
func newAnswerer(c *counters, trace TraceWorker, maxUDP int, panicked func(reason any, packet []byte)) *answerer {
	a := &answerer{settings: settings{counters: c, tally: &tally{counters: c}, maxUDP: maxUDP, panicked: panicked}}
	a.traceBy(trace)
	a.room()
	return a
}

// traceBy has trace take the records of a's queries; nil: nothing does.
func (a *answerer) traceBy(trace TraceWorker) { a.trace, a.all = trace, trace != nil && trace.All() }

// room makes the memory that a and its reply keep, so large that it shares no cache line.
func (a *answerer) room() {
	a.opts = make([]byte, 0, 4*cacheLine)
	a.r.names = make([]byte, 0, (maxChain+2)*maxName)
	a.r.rdatas, a.r.addrs = make([][]byte, 0, 2*gslb.MaxAnswers), make([]netip.Addr, 0, 2*gslb.MaxAnswers)
}

// begin begins a batch that was read at that time.
func (a *answerer) begin(at time.Time) {
	a.start, a.nano, a.last = at, at.UnixNano(), 0
	a.epoch = uint32(a.nano / int64(time.Second))
	if a.trace != nil && a.trace.Changed() {
		a.rest = 0
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
	drawn := false
	if a.rest--; a.rest < 0 {
		if drawn, a.rest = a.trace.Draw(); drawn && a.unread > 0 { // otherwise the query before read it, at its end
			a.clock()
		}
	}
	reply = a.answer(d, pkt, from, tcp, buf)
	if !a.r.echo {
		return reply
	}
	if exact := drawn || a.notable(); exact || a.all {
		a.record(d, pkt, reply, drawn, exact)
	}
	return reply
}

// answer is serve without a net. Over UDP it neither blocks, locks, logs nor allocates, but for queries
// of the full path.
func (a *answerer) answer(d *Data, pkt []byte, from netip.Addr, tcp bool, buf []byte) []byte {
	a.q.from, a.q.tcp, a.q.told = from, tcp, nil
	a.r.reset()
	a.follow.reset()
	how := a.q.read(pkt, &a.r)
	if how == unusual || how == wellFormed && a.q.asksWhy() && a.mayAskWhy() {
		return a.answerFull(d, pkt, buf)
	}
	if !a.respond(d, pkt, how) {
		return nil
	}
	a.putOptions()
	return a.write(buf[:min(len(buf), a.limit())])
}

// respond fills the reply to a packet that was read, unless it gets none.
func (a *answerer) respond(d *Data, pkt []byte, how admission) bool {
	q, r := &a.q, &a.r
	if how == silent {
		a.counters.dropped.Add(1)
		return false
	}
	a.size = len(pkt)
	q.known = q.tcp || q.edns.cookie != nil && a.cookies != nil &&
		a.cookies.Load().valid(q.edns.cookie, q.from, uint32(a.start.Unix()))
	if a.limiter != nil && !q.known {
		switch a.limiter.take(q.from, a.start) {
		case drop:
			a.counters.limited.Add(1)
			return false
		case truncate:
			a.counters.limited.Add(1)
			r.tc = true
			return true
		case send:
		}
	}
	switch how {
	case forCookie:
		if a.cookies != nil {
			r.rcode, r.opt = rcodeNoError, true
		}
		return true
	case refused: // with the rcode that reading it set
		return true
	}
	if a.quarantine.holds(q, r.echo, pkt, a.start) {
		r.rcode, r.why = rcodeRefused, whyQuarantined
		return true
	}
	a.resolve(d)
	return true
}

// limit returns how many octets the reply may have: what the client can take and what we
// want to send over UDP (RFC 6891, section 6.2.5); everything that a length prefix can say
// over TCP.
func (a *answerer) limit() int {
	n := minUDP
	switch {
	case a.q.tcp:
		return maxMessage
	case a.q.edns.present:
		n = min(max(int(a.q.edns.size), minUDP), a.maxUDP)
	}
	if a.amplify > 0 && !a.q.known {
		n = min(n, max(a.amplify*a.size, headerLen+len(a.q.name)+4+a.optLen()))
	}
	return n
}

// resolve fills the reply to a query that was understood: RFC 1034, section 4.3.2, over all
// zones. A CNAME inside our zones is followed, and the rcode is that of its end (RFC 6604,
// section 3).
func (a *answerer) resolve(d *Data) {
	q, r := &a.q, &a.r
	a.follow.ask(q)
	if d == nil || d.Zones == nil || d.Snapshot == nil { // nothing is known, so nothing is denied
		r.rcode, r.resolved, r.outcome, r.why = rcodeRefused, true, zone.NotOurs, whyNotReady
		return
	}
	if q.qclass != classIN {
		a.identify()
		return
	}
	if r.explain && a.explainName(d) {
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
			r.why = whyLoop
			return
		}
		switch a.outcome(d) {
		case zone.NotOurs:
			if link == 0 {
				r.rcode, r.why = rcodeRefused, whyNotOurs
			}
			return
		case zone.Hit:
			s := a.addRRset(inAnswer, owner, a.res.RRset)
			if s.rtype == typeHTTPS || s.rtype == typeSVCB {
				a.hint(d, s, a.res.Node.Service)
			}
			if q.qtype != typeANY { // which gets as little as can be: RFC 8482
				a.addTargets(d, owner, a.res.RRset)
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
			if q.qtype == typeCNAME { // which the one that it made is
				return
			}
		case zone.Steered:
			if owner = a.addSteered(d, owner); owner == nil {
				return
			}
		case zone.Referral:
			a.addReferral(d, owner)
			return
		case zone.NoData:
			a.addSOA(owner, maxTTL) // RFC 2308, section 2.2
			return
		case zone.NameError:
			if link == 0 && r.explain && a.hasExplanation(d) {
				r.outcome = zone.NoData
				a.addSOA(owner, 0)
				return
			}
			r.rcode = rcodeNameError
			a.addSOA(owner, maxTTL) // RFC 2308, section 2.1
			return
		}
		r.followed = true
		name = a.target[:lower(a.target[:], owner)]
	}
}

// outcome returns where the name led. ANY at a name that has nothing but a service gets the
// service's A RRs: a minimal answer of RFC 8482, section 4.1. SVCB, HTTPS and SRV are the
// service's if it has them and the zone does not. Where some clients get a name, the CNAME to it
// is there for every type (RFC 1034, section 3.6.2).
func (a *answerer) outcome(d *Data) zone.Outcome {
	if n := a.res.Node; a.res.Outcome == zone.NoData && n != nil && n.Service >= 0 {
		service := d.Snapshot.Services[n.Service]
		if a.q.qtype == typeANY || answersTargets(service, a.q.qtype) || service.Names && len(n.RRsets) == 0 {
			a.r.outcome = zone.Steered
		}
	}
	return a.r.outcome
}

// answersTargets tells whether qtype is one by which the service names its pools.
func answersTargets(s *gslb.Service, qtype uint16) bool {
	switch qtype {
	case typeSVCB, typeHTTPS:
		return s.HTTPS != nil
	case typeSRV:
		return s.SRV != nil
	}
	return false
}

// add adds a set at owner, a part of the question's name until a CNAME was followed.
func (a *answerer) add(sec section, owner []byte, rtype uint16, ttl uint32) *set {
	s := a.r.add(sec, owner, rtype, ttl)
	if !a.r.followed {
		s.at = a.q.at(owner)
	}
	return s
}

func (a *answerer) addRRset(sec section, owner []byte, rrset *zone.RRset) *set {
	s := a.add(sec, owner, rrset.Type, rrset.TTL)
	s.rrset = rrset
	return s
}

// addCNAME adds a CNAME that no zone holds, and returns its target.
func (a *answerer) addCNAME(owner []byte, ttl uint32, target []byte) []byte {
	a.add(inAnswer, owner, typeCNAME, ttl).target = target
	return target
}

// identify answers CH TXT version.bind and the like, if that is wanted. No other class is
// served.
func (a *answerer) identify() {
	q, r := &a.q, &a.r
	text := ""
	if q.qclass == classCH && (q.qtype == typeTXT || q.qtype == typeANY) {
		switch string(q.lower[:len(q.name)]) {
		case "\x07version\x04bind\x00", "\x07version\x06server\x00":
			text = a.identity.Version
		case "\x02id\x06server\x00", "\x08hostname\x04bind\x00": // RFC 4892
			text = a.identity.ID
		}
	}
	if text == "" {
		r.rcode = rcodeRefused
		return
	}
	at := len(r.names)
	r.names = append(append(r.names, byte(len(text))), text...)
	r.rdatas = append(r.rdatas, r.names[at:])
	r.aa = true
	a.add(inAnswer, q.name, typeTXT, 0).rdata = r.rdatas
}

// ending returns ancestor, which is at or above name, in the case of name: the reply repeats the
// question's case, and names compress well.
func ending(name, ancestor []byte) []byte { return name[len(name)-len(ancestor):] }

// looped tells whether the chain has been at owner before: a DNAME there was only passed.
func (a *answerer) looped(owner []byte) bool {
	for i := range a.r.sets[:a.r.n] {
		if s := &a.r.sets[i]; s.rtype == typeCNAME && equalFold(s.owner, owner) {
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
	d.Snapshot.DecideFor(families(q.qtype), d.Snapshot.Services[a.res.Node.Service], client, &a.d)
	r.decided = true
	a.kind = a.tally.countDecision(d.Snapshot, &a.d)
	if a.made++; a.made%recentEvery == 1 { // the first as well, for who has few
		a.counters.recent.offer(a.d.Service.Name, client)
	}
	before := r.scope
	if fromECS { // a decision by the resolver's own address says nothing of others: scope 0
		r.scope = max(r.scope, q.edns.ecs.scope(&a.d))
	}
	if a.d.Reason == gslb.ReasonServfail {
		r.rcode, r.aa, r.why = rcodeServFail, false, whyAllDown
		return nil
	}
	if answersTargets(a.d.Service, q.qtype) {
		a.addSteeredTargets(d, owner)
		return nil
	}
	if a.d.Fallback != "" {
		start := len(r.names)
		r.names = appendText(r.names, a.d.Fallback)
		if len(a.res.Node.RRsets) > 0 { // where a CNAME cannot stand: RFC 1034, section 3.6.2
			a.flatten(d, owner, r.names[start:])
			return nil
		}
		target := a.addCNAME(owner, a.d.TTL, r.names[start:])
		if q.qtype == typeCNAME {
			return nil
		}
		return target
	}
	rtype, addrs := typeA, a.d.V4
	if q.qtype == typeAAAA || q.qtype == typeANY && len(addrs) == 0 {
		rtype, addrs = typeAAAA, a.d.V6
	} else if q.qtype != typeA && q.qtype != typeANY { // the client gets no name
		rtype, addrs = q.qtype, nil
	}
	if len(addrs) == 0 { // one pool answers for both families, also with none of one
		if service := a.d.Service; rtype == typeA && !service.V4 || rtype == typeAAAA && !service.V6 {
			r.scope = before // nobody gets any
		}
		r.outcome = zone.NoData
		a.addSOA(owner, a.d.TTL)
		return nil
	}
	a.add(inAnswer, owner, rtype, a.d.TTL).addrs = a.follow.identify(d.Snapshot, &a.d, addrs, a.start)
	return nil
}

// families returns those of the addresses that an answer to qtype may hold.
func families(qtype uint16) gslb.Families {
	switch qtype {
	case typeA:
		return gslb.IPv4
	case typeAAAA:
		return gslb.IPv6
	}
	return gslb.IPv4 | gslb.IPv6 // hints, glue, whichever there is
}

// flatten adds the addresses that target, a name in our zones, leads to, at owner, as if they were
// its own. What lies elsewhere is looked up beforehand and part of the decision, or it is not known.
func (a *answerer) flatten(d *Data, owner, target []byte) {
	r, qtype, ttl := &a.r, a.q.qtype, a.d.TTL
	if qtype == typeANY {
		qtype = typeA
	}
	for range maxChain {
		n := d.Zones.Node(target)
		if n == nil {
			break
		}
		if n.Service >= 0 {
			addrs, v6, along := a.along(d, n.Service)
			ttl = min(ttl, along)
			if a.second.Fallback != "" {
				start := len(r.names)
				r.names = appendText(r.names, a.second.Fallback)
				target = r.names[start:]
				continue
			}
			if qtype == typeAAAA {
				addrs = v6
			}
			if len(addrs) > 0 {
				a.add(inAnswer, owner, qtype, ttl).addrs = addrs
				return
			}
		} else if cname := n.RRset(typeCNAME); cname != nil {
			target, ttl = cname.RData[0], min(ttl, cname.TTL)
			continue
		} else if rrset := n.RRset(qtype); rrset != nil {
			a.add(inAnswer, owner, qtype, min(rrset.TTL, ttl)).rrset = rrset
			return
		}
		r.outcome = zone.NoData
		a.addSOA(owner, ttl)
		return
	}
	r.rcode, r.aa, r.why = rcodeServFail, false, whyFlatten
}

// addRedirect adds the DNAME above owner and the CNAME that it makes of it (RFC 6672, section
// 3.1), and returns the name that owner now is: the DNAME's target in the place of the DNAME's
// owner. It is nil if that is too long for a name.
func (a *answerer) addRedirect(owner []byte) []byte {
	r, dname := &a.r, a.res.RRset
	if at := ending(owner, a.res.Node.Owner); !r.holds(typeDNAME, at) {
		a.addRRset(inAnswer, at, dname)
	}
	prefix, target := owner[:len(owner)-len(a.res.Node.Owner)], dname.RData[0]
	if len(prefix)+len(target) > maxName {
		return nil
	}
	start := len(r.names)
	r.names = append(append(r.names, prefix...), target...)
	return a.addCNAME(owner, dname.TTL, r.names[start:])
}

// maxTTL is as long as anything may be cached (RFC 2181, section 8).
const maxTTL = 1<<31 - 1

// addSOA adds the SOA of the zone that denies, to be cached for as long as RFC 2308, section
// 5, allows, but for ttl at most: what a decision denies holds no longer than what it grants.
func (a *answerer) addSOA(owner []byte, ttl uint32) {
	z := a.res.Zone
	a.add(inAuthority, ending(owner, z.Origin), typeSOA, min(z.NegTTL, ttl)).rrset = z.SOA
}

// write writes the reply into buf, whose length is the limit: header, question, the sets that
// fit, OPT. An RRset is never split; when one that is required does not fit, the reply is cut
// down to the question with TC (RFC 2181, section 9).
func (a *answerer) write(buf []byte) []byte {
	q, r, m := &a.q, &a.r, &a.m
	m.reset(buf, len(buf)-a.optLen())
	m.class = classIN
	if q.qclass == classCH {
		m.class = classCH
	}
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
			r.cut(q.tcp)
			m.n, counts = question, [sections]int{}
			break
		}
		counts[s.section] += rrs
	}
	r.answers = counts[inAnswer]
	m.limit = len(buf)
	if r.opt {
		a.putOPT()
		counts[inAdditional]++
	}
	m.putHeader(q, r, counts)
	a.tally.countReply(r)
	return buf[:m.n]
}

// cut says that an RRset has no room: TC has the client ask over TCP, where nothing has more, and
// SERVFAIL is the end.
func (r *reply) cut(tcp bool) {
	if r.tc = !tcp; tcp {
		r.rcode, r.aa = rcodeServFail, false
	}
}

// recovered answers SERVFAIL to a query whose answer panicked.
func (a *answerer) recovered(reason any, pkt, buf []byte) []byte {
	a.counters.panics.Add(1)
	a.panicked(reason, pkt)
	if a.quarantine != nil && len(pkt) >= headerLen && be16(pkt[2:])&flagQR == 0 {
		a.quarantine.add(&a.q, a.r.echo, pkt, a.start)
	}
	// What the panic left behind is not to be trusted.
	*a = answerer{settings: a.settings, port: a.port, start: a.start, nano: a.nano, epoch: a.epoch}
	a.room()
	if len(pkt) < headerLen || be16(pkt[2:])&flagQR != 0 {
		return nil
	}
	a.q.id, a.q.flags = be16(pkt), be16(pkt[2:])
	a.r.rcode = rcodeServFail
	return a.write(buf[:headerLen])
}

// clockEvery is after how many queries the clock is read, which costs as much as parsing one.
const clockEvery = 32

// slow is the time since the batch was read after which every query is worth a record.
const slow = 5 * time.Millisecond

// clock reads the clock.
func (a *answerer) clock() {
	a.last, a.unread = uint32(min(time.Since(a.start), time.Duration(1<<32-1))), 0
}

// notable tells whether a query that was not drawn is worth a record: by its rcode, by what was
// decided, or because it is late. For the last the clock is read every clockEvery queries. What the
// tracer once has enough of, it has for a second.
func (a *answerer) notable() bool {
	if a.unread++; a.unread >= clockEvery {
		a.clock()
	}
	if time.Duration(a.last) > slow || a.follow.asked.Ask != tracing.AskNothing {
		return true
	}
	failed := a.r.rcode == rcodeServFail
	if !failed && (!a.r.decided || a.kind.plain == a.epoch) {
		return false
	}
	service, pool, reason, flags := a.decision()
	notable := a.trace.Notable(service, pool, uint8(reason), uint8(flags), uint8(min(a.r.rcode, 255)))
	if !notable && !failed {
		a.kind.plain = a.epoch
	}
	return notable
}

// decision returns what was decided, as indices, or -1.
func (a *answerer) decision() (service, pool int32, reason gslb.Reason, flags gslb.Flags) {
	if !a.r.decided {
		return -1, -1, 0, 0
	}
	if a.d.Pool == nil {
		return int32(a.d.Service.Index), -1, a.d.Reason, a.d.Flags
	}
	return int32(a.d.Service.Index), int32(a.d.Pool.Index), a.d.Reason, a.d.Flags
}

// record writes the query's record for the tracer: an exact one, or the little that a plain one has. As
// far as the first knows, the query was parsed when the clock was read before it.
func (a *answerer) record(d *Data, pkt, reply []byte, drawn, exact bool) {
	t := a.trace.Begin(drawn)
	if t == nil {
		return
	}
	q, r := &a.q, &a.r
	client, fromECS := q.client()
	t.Start, t.Plain = a.nano, !exact
	t.Client, t.Source, t.V6, t.HasECS = client.Addr.As16(), client.Source, client.Addr.Is6(), fromECS
	t.Rcode, t.Qtype = uint8(min(r.rcode, 255)), q.qtype
	if r.decided {
		t.Reason, t.TTL = uint8(a.d.Reason), a.d.TTL
	}
	a.follow.record(t, r)
	if !exact {
		a.trace.Commit()
		return
	}
	t.Parsed = a.last
	a.clock()
	if t.End = a.last; r.decided {
		t.Decided = max(a.last, 1)
	}
	if d != nil && d.Snapshot != nil {
		t.Revision = d.Snapshot.Revision
	}
	service, pool, _, flags := a.decision()
	t.Service, t.Pool, t.Flags = service, pool, uint8(flags)
	t.Scope, t.TCP, t.Answers = r.scope, q.tcp, uint8(min(r.answers, 255))
	t.Resolver, t.ResolverPort = q.from.As16(), a.port
	t.Server, t.ServerPort = a.local.Addr().As16(), a.local.Port()
	t.NameLen = uint8(copy(t.Name[:], q.name))
	a.trace.Keep(pkt, reply)
	a.trace.Commit()
}

// TraceWorker takes the records of one worker's queries, from one goroutine at a time.
type TraceWorker interface {
	// All tells whether every query is to be recorded, once and for all.
	All() bool
	// Draw tells whether the next query is drawn, to be recorded exactly: with times of its own, as it
	// will be seen. After it so many more are not drawn, and then Draw is to be called again.
	Draw() (drawn bool, rest int)
	// Changed tells, before a batch, that what Draw said of the rest is void: it is to be called for the
	// next query.
	Changed() bool
	// Notable tells whether a query that was not drawn is to be recorded exactly all the same, by its
	// rcode or by what was decided: indices as in tracing.Query. Of what is not, nothing like it is in the
	// same second.
	Notable(service, pool int32, reason, flags, rcode uint8) bool
	// Begin returns the record to fill, zero but for Name, of a query that was drawn or was not; nil when
	// there is no room.
	Begin(drawn bool) *tracing.Query
	// Keep keeps the packets of the record that Begin returned, if they are wanted. They are
	// copied.
	Keep(query, reply []byte)
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
