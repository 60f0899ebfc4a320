package tracing

import (
	crand "crypto/rand"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Facts are the names behind the indices of a Query, and what the engine knows of its
// decision. Whatever is empty is left out of the spans.
type Facts struct {
	Service    string
	Pool       string
	Reason     string
	Answers    []netip.Addr // answered
	Place      Place
	Candidates []string    // the pools left, best first
	Stages     []string    // "stage: pool note, …", what each stage of the policy kept, best first
	Rejected   []Rejection // the pools that were not, and why
	Plan       string      // content hash of the configuration
}

// Place is where the client is.
type Place struct {
	Continent   string // two letters
	Country     string // ISO 3166-1 alpha-2
	Subdivision string // ISO 3166-2 without the country
	City        string
	ASN         uint32
	Site        string  // that an override pins it to
	Lat, Lon    float64 // degrees; meaningful only if Located
	Located     bool
	Scope       uint8 // bits of the address that the place depends on
}

// Rejection is a pool that a decision passed over.
type Rejection struct {
	Pool   string
	Reason string
}

// spanMaker turns queries into encoded spans. One goroutine uses it.
type spanMaker struct {
	server   string // server.address
	describe func(*Query) Facts
	random   *rand.ChaCha8
	scratch  []byte
}

func newSpanMaker(server string, describe func(*Query) Facts) *spanMaker {
	var seed [32]byte
	crand.Read(seed[:]) // never fails
	if describe == nil {
		describe = func(*Query) Facts { return Facts{} }
	}
	return &spanMaker{server: server, describe: describe, random: rand.NewChaCha8(seed)}
}

// lower draws the second half of a trace id, from which the sampler decides.
func (m *spanMaker) lower() (half [8]byte) {
	m.random.Read(half[:]) // never fails
	return half
}

// traceID draws the first half of the trace id that ends in lower.
func (m *spanMaker) traceID(lower [8]byte) (id TraceID) {
	m.random.Read(id[:8])
	copy(id[8:], lower[:])
	if id.IsZero() {
		id[0] = 1
	}
	return id
}

func (m *spanMaker) spanID() (id SpanID) {
	m.random.Read(id[:])
	if id.IsZero() {
		id[0] = 1
	}
	return id
}

// appendQuery appends the spans of q as fields of ScopeSpans and returns their number: one, or
// three if a decision was made. root is the id of the first.
func (m *spanMaker) appendQuery(b []byte, q *Query, trace TraceID, root SpanID, by string, facts *Facts) ([]byte, int) {
	client := netip.AddrFrom16(q.Client).Unmap()
	flags := uint32(flagsSampled)
	if !q.Parent.IsZero() {
		flags = flagsRemote
	}
	b, mark := openSpan(b, trace, root, q.Parent, SpanQuery, KindServer, q.Start, q.Start+int64(q.End), flags)
	b = m.appendQuestion(b, q, client)
	b = m.appendAnswer(b, q, facts)
	b = attrString(b, spanAttributes, AttrSampledBy, by)
	if q.Rcode == rcodeServfail {
		b = attrString(b, spanAttributes, AttrErrorType, rcodeText(q.Rcode))
		b = appendStatus(b, StatusError, "")
	}
	b = shut(b, mark)
	if q.Decided == 0 {
		return b, 1
	}

	// The engine looks the client up while it decides and does not time that by itself: the
	// span of the lookup marks its place, without a length.
	parsed := q.Start + int64(q.Parsed)
	b, mark = openSpan(b, trace, m.spanID(), root, SpanLookup, KindInternal, parsed, parsed, flagsSampled)
	b = m.appendPlace(b, &facts.Place, client)
	b = shut(b, mark)

	b, mark = openSpan(b, trace, m.spanID(), root, SpanDecide, KindInternal, parsed, q.Start+int64(q.Decided), flagsSampled)
	b = m.appendDecision(b, q, facts)
	b = attrInt(b, spanAttributes, AttrScope, int64(q.Scope))
	return shut(b, mark), 3
}

// appendCohort appends the one span that tells of q's answer id, as a field of ScopeSpans, with
// a link to the query that it was first met in.
func (m *spanMaker) appendCohort(b []byte, q *Query, trace TraceID, id SpanID, first *Link, facts *Facts) []byte {
	b, mark := openSpan(b, trace, id, SpanID{}, SpanDecision, KindInternal,
		q.Start+int64(q.Parsed), q.Start+int64(q.Decided), flagsSampled)
	b = attrString(b, spanAttributes, AttrQuestionName, m.name(q))
	b = m.appendDecision(b, q, facts)
	if m.server != "" {
		b = attrString(b, spanAttributes, AttrServerAddress, m.server)
	}
	b = appendLink(b, first)
	return shut(b, mark)
}

// appendQuestion appends who asked what, and how.
func (m *spanMaker) appendQuestion(b []byte, q *Query, client netip.Addr) []byte {
	resolver := netip.AddrFrom16(q.Resolver).Unmap()
	transport, network := "udp", "ipv4"
	if q.TCP {
		transport = "tcp"
	}
	if resolver.Is6() {
		network = "ipv6"
	}
	b = attrString(b, spanAttributes, AttrQuestionName, m.name(q))
	b = attrString(b, spanAttributes, AttrQuestionType, typeText(q.Qtype))
	if m.server != "" {
		b = attrString(b, spanAttributes, AttrServerAddress, m.server)
	}
	b = attrString(b, spanAttributes, AttrTransport, transport)
	b = attrString(b, spanAttributes, AttrNetworkType, network)
	b = m.attrAddr(b, AttrClientAddress, client)

	m.scratch = client.AppendTo(m.scratch[:0])
	m.scratch = append(m.scratch, '/')
	m.scratch = strconv.AppendUint(m.scratch, uint64(q.Source), 10)
	b = attrString(b, spanAttributes, AttrClientPrefix, m.scratch)
	b = attrBool(b, spanAttributes, AttrECS, q.HasECS)
	return m.attrAddr(b, AttrResolver, resolver)
}

// appendAnswer appends what was answered.
func (m *spanMaker) appendAnswer(b []byte, q *Query, facts *Facts) []byte {
	b = attrString(b, spanAttributes, AttrResponseCode, rcodeText(q.Rcode))
	b = attrInt(b, spanAttributes, AttrAnswerCount, int64(q.Answers))
	if len(facts.Answers) > 0 {
		b = m.attrAddrs(b, AttrAnswers, facts.Answers)
	}
	b = attrInt(b, spanAttributes, AttrScope, int64(q.Scope))
	return attrInt(b, spanAttributes, AttrTTL, int64(q.TTL))
}

func (m *spanMaker) appendPlace(b []byte, p *Place, client netip.Addr) []byte {
	b = m.attrAddr(b, AttrClientAddress, client)
	b = attrKnown(b, AttrContinent, p.Continent)
	b = attrKnown(b, AttrCountry, p.Country)
	if p.Country != "" && p.Subdivision != "" {
		b = attrString(b, spanAttributes, AttrRegion, p.Country+"-"+p.Subdivision)
	}
	b = attrKnown(b, AttrLocality, p.City)
	if p.Located {
		b = attrDouble(b, spanAttributes, AttrLat, p.Lat)
		b = attrDouble(b, spanAttributes, AttrLon, p.Lon)
	}
	if p.ASN != 0 {
		b = attrInt(b, spanAttributes, AttrClientASN, int64(p.ASN))
	}
	b = attrKnown(b, AttrClientSite, p.Site)
	return attrInt(b, spanAttributes, AttrScope, int64(p.Scope))
}

func (m *spanMaker) appendDecision(b []byte, q *Query, facts *Facts) []byte {
	b = attrKnown(b, AttrService, facts.Service)
	b = attrKnown(b, AttrPool, facts.Pool)
	b = attrKnown(b, AttrReason, facts.Reason)
	if len(facts.Candidates) > 0 {
		b = attrStrings(b, spanAttributes, AttrCandidates, facts.Candidates)
	}
	if len(facts.Stages) > 0 {
		b = attrStrings(b, spanAttributes, AttrStages, facts.Stages)
	}
	if len(facts.Rejected) > 0 {
		rejected := make([]string, len(facts.Rejected))
		for i, r := range facts.Rejected {
			rejected[i] = r.Pool + ": " + r.Reason
		}
		b = attrStrings(b, spanAttributes, AttrRejected, rejected)
	}
	b = attrInt(b, spanAttributes, AttrRevision, int64(q.Revision))
	b = attrKnown(b, AttrPlan, facts.Plan)
	if q.Decision != 0 {
		b = attrString(b, spanAttributes, AttrDecisionID, q.Decision.String())
	}
	return b
}

func (m *spanMaker) attrAddr(b []byte, key string, addr netip.Addr) []byte {
	m.scratch = addr.AppendTo(m.scratch[:0])
	return attrString(b, spanAttributes, key, m.scratch)
}

func (m *spanMaker) attrAddrs(b []byte, key string, addrs []netip.Addr) []byte {
	b, pair, value := openAttr(b, spanAttributes, key)
	b, array := open(b, anyArray)
	for _, addr := range addrs {
		m.scratch = addr.AppendTo(m.scratch[:0])
		b = appendItem(b, m.scratch)
	}
	b = shut(b, array)
	return shutAttr(b, pair, value)
}

// attrKnown appends the attribute unless its value is empty.
func attrKnown(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	return attrString(b, spanAttributes, key, value)
}

// name is nameText, without the parser for names that need no escapes: nearly all. It is good
// until the maker is used again.
func (m *spanMaker) name(q *Query) []byte {
	m.scratch = m.scratch[:0]
	for rest := q.Name[:q.NameLen]; len(rest) > 0 && rest[0] != 0; {
		n := int(rest[0])
		if n >= len(rest) {
			return []byte(nameText(q))
		}
		for _, c := range rest[1 : 1+n] {
			if plain := c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'; !plain {
				return []byte(nameText(q))
			}
		}
		m.scratch = append(append(m.scratch, rest[1:1+n]...), '.')
		if rest = rest[1+n:]; len(rest) == 1 && rest[0] == 0 {
			return m.scratch[:len(m.scratch)-1]
		}
	}
	return []byte(nameText(q))
}

// nameText is the qname in presentation form (RFC 1035, section 5.1) without the trailing dot;
// the root is ".". A record whose name does not parse says so.
func nameText(q *Query) string {
	name, _, err := dns.UnpackDomainName(q.Name[:q.NameLen], 0)
	if err != nil {
		return "(malformed)"
	}
	if name == "." {
		return name
	}
	return strings.TrimSuffix(name, ".")
}

// typeText is the mnemonic of a type, or TYPE and its number (RFC 3597, section 5).
func typeText(t uint16) string { return dns.Type(t).String() }

// rcodeText is the mnemonic of a response code, or RCODE and its number.
func rcodeText(rcode uint8) string {
	if s, ok := dns.RcodeToString[int(rcode)]; ok {
		return s
	}
	return "RCODE" + strconv.Itoa(int(rcode))
}
