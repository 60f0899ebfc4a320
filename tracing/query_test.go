package tracing

import (
	"encoding/binary"
	"net/netip"
	"testing"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/google/go-cmp/cmp"
)

func describeAll(*Query) Facts {
	return Facts{
		Service: "www.example.com", Pool: "gfe-eu", Reason: "failover",
		Answers: []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8:2::11")},
		Place: Place{Continent: "EU", Country: "DE", Subdivision: "HE", City: "Frankfurt am Main", ASN: 64500,
			Site: "eu-west", Lat: 50.11, Lon: 8.68, Located: true, Scope: 18},
		Candidates: []string{"gfe-eu", "gfe-us"},
		Rejected:   []Rejection{{"gfe-ap", "0 of 2 endpoints healthy"}, {"gfe-de", "drained by ann: upgrade"}},
		Plan:       "1f2e",
	}
}

// A query with everything becomes three spans; the generated code reads every field of them.
func TestAppendQuery(t *testing.T) {
	var q Query
	fillQuery(&q)
	q.Reason, q.Rcode, q.TCP = 1, 2, true
	trace := TraceID{1, 15: 9}
	facts := describeAll(&q)
	b, n := newSpanMaker("ns1", nil).appendQuery(nil, &q, trace, SpanID{7}, SampledReason, &facts)
	got := official(t, appendRequest(nil, nil, "", b)).ResourceSpans[0].ScopeSpans[0].Spans
	if n != 3 || len(got) != 3 {
		t.Fatalf("%d spans, said to be %d, want 3", len(got), n)
	}
	ids := map[string]bool{string(got[0].SpanId): true, string(got[1].SpanId): true, string(got[2].SpanId): true}
	if len(ids) != 3 {
		t.Errorf("span ids %v: want three different ones", ids)
	}
	start := uint64(q.Start)
	want := []*tracepb.Span{{
		TraceId: trace[:], SpanId: got[0].SpanId, Name: "dns.query", Kind: tracepb.Span_SPAN_KIND_SERVER, Flags: 0x101,
		StartTimeUnixNano: start, EndTimeUnixNano: start + 41_000,
		Attributes: officialAttrs(map[string]any{
			"dns.question.name": "www.example.com", "dns.question.type": "A",
			"server.address": "ns1", "network.transport": "tcp", "network.type": "ipv4",
			"client.address": "198.51.100.0", "gslb.client.prefix": "198.51.100.0/24", "gslb.client.ecs": true,
			"gslb.resolver": "192.0.2.53", "dns.response_code": "SERVFAIL", "error.type": "SERVFAIL",
			"gslb.answers": 2, "dns.answers": []string{"192.0.2.11", "2001:db8:2::11"},
			"gslb.scope": 20, "gslb.ttl": 30, "gslb.sampled_by": "reason",
		}),
		Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR},
	}, {
		TraceId: trace[:], SpanId: got[1].SpanId, ParentSpanId: got[0].SpanId, Name: "geo.lookup",
		Kind: tracepb.Span_SPAN_KIND_INTERNAL, Flags: 0x101,
		StartTimeUnixNano: start + 10_000, EndTimeUnixNano: start + 10_000,
		Attributes: officialAttrs(map[string]any{
			"client.address": "198.51.100.0", "geo.continent.code": "EU", "geo.country.iso_code": "DE", "geo.region.iso_code": "DE-HE",
			"geo.locality.name": "Frankfurt am Main", "geo.location.lat": 50.11, "geo.location.lon": 8.68,
			"gslb.client.asn": 64500, "gslb.client.site": "eu-west", "gslb.scope": 18,
		}),
	}, {
		TraceId: trace[:], SpanId: got[2].SpanId, ParentSpanId: got[0].SpanId, Name: "gslb.decide",
		Kind: tracepb.Span_SPAN_KIND_INTERNAL, Flags: 0x101,
		StartTimeUnixNano: start + 10_000, EndTimeUnixNano: start + 22_000,
		Attributes: officialAttrs(map[string]any{
			"gslb.service": "www.example.com", "gslb.pool": "gfe-eu", "gslb.reason": "failover",
			"gslb.candidates": []string{"gfe-eu", "gfe-us"},
			"gslb.rejected":   []string{"gfe-ap: 0 of 2 endpoints healthy", "gfe-de: drained by ann: upgrade"},
			"gslb.scope":      20, "gslb.revision": 42, "gslb.plan": "1f2e",
		}),
	}}
	if d := cmp.Diff(want, got, protocmp.Transform(), anyOrder); d != "" {
		t.Errorf("spans differ (-want +got):\n%s", d)
	}
}

// A query of a static name is one span; nothing that is not known is said.
func TestAppendQueryStatic(t *testing.T) {
	var q Query
	fillQuery(&q)
	q.Decided, q.Service, q.Pool, q.HasECS = 0, -1, -1, false
	q.Client, q.Resolver, q.V6 = [16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: 1}, [16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: 1}, true
	q.Source, q.Qtype, q.Rcode = 128, 28, 3
	b, n := newSpanMaker("", nil).appendQuery(nil, &q, TraceID{1}, SpanID{7}, SampledRatio, &Facts{})
	got := official(t, appendRequest(nil, nil, "", b)).ResourceSpans[0].ScopeSpans[0].Spans
	if n != 1 || len(got) != 1 {
		t.Fatalf("%d spans, said to be %d, want 1", len(got), n)
	}
	want := &tracepb.Span{Attributes: officialAttrs(map[string]any{
		"dns.question.name": "www.example.com", "dns.question.type": "AAAA", "network.transport": "udp", "network.type": "ipv6",
		"client.address": "2001:db8::1", "gslb.client.prefix": "2001:db8::1/128", "gslb.client.ecs": false,
		"gslb.resolver": "2001:db8::1", "dns.response_code": "NXDOMAIN", "gslb.answers": 2,
		"gslb.scope": 20, "gslb.ttl": 30, "gslb.sampled_by": "ratio",
	})}
	if d := cmp.Diff(want, &tracepb.Span{Attributes: got[0].Attributes}, protocmp.Transform(), anyOrder); d != "" || got[0].Status != nil {
		t.Errorf("status %v, attributes differ (-want +got):\n%s", got[0].Status, d)
	}
}

func TestNameText(t *testing.T) {
	for _, tc := range []struct{ name, wire, want string }{
		{"usual", "\x03www\x07example\x03com\x00", "www.example.com"},
		{"case kept", "\x03wWw\x00", "wWw"},
		{"root", "\x00", "."},
		{"dot and space in a label", "\x03a.b\x03a b\x00", `a\.b.a\ b`},
		{"octets", "\x02\x00\xff\x00", `\000\255`},
		{"empty", "", "(malformed)"},
		{"cut off", "\x05ab", "(malformed)"},
		{"pointer", "\xc0\x00", "(malformed)"},
	} {
		var q Query
		q.NameLen = uint8(copy(q.Name[:], tc.wire))
		if got := string(newSpanMaker("", nil).name(&q)); got != tc.want || got != nameText(&q) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestMnemonics(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{typeText(1), "A"}, {typeText(65), "HTTPS"}, {typeText(65280), "TYPE65280"},
		{rcodeText(0), "NOERROR"}, {rcodeText(5), "REFUSED"}, {rcodeText(200), "RCODE200"},
	} {
		if tc.got != tc.want {
			t.Errorf("%q, want %q", tc.got, tc.want)
		}
	}
}

func TestIDsAreDrawn(t *testing.T) {
	m := newSpanMaker("", nil)
	seen := make(map[TraceID]bool)
	for range 1000 {
		lower := m.lower()
		id := m.traceID(lower)
		if id.IsZero() || seen[id] || [8]byte(id[8:]) != lower {
			t.Fatalf("trace id %v from %x: zero, seen, or not of that half", id, lower)
		}
		seen[id] = true
	}
	if binary.BigEndian.Uint64(m.traceID([8]byte{}).lowerHalf()) != 0 {
		t.Error("the half was not kept")
	}
}

func (id TraceID) lowerHalf() []byte { return id[8:] }

// Names that the conventions have are spelt like theirs.
func TestAttributeNames(t *testing.T) {
	if SchemaURL != semconv.SchemaURL {
		t.Errorf("schema %s, want %s", SchemaURL, semconv.SchemaURL)
	}
	for ours, theirs := range map[string]string{
		AttrServiceName: string(semconv.ServiceNameKey), AttrServiceInstance: string(semconv.ServiceInstanceIDKey),
		AttrServiceVersion: string(semconv.ServiceVersionKey), AttrQuestionName: string(semconv.DNSQuestionNameKey),
		AttrAnswers: string(semconv.DNSAnswersKey), AttrServerAddress: string(semconv.ServerAddressKey),
		AttrTransport: string(semconv.NetworkTransportKey), AttrNetworkType: string(semconv.NetworkTypeKey),
		AttrClientAddress: string(semconv.ClientAddressKey), AttrErrorType: string(semconv.ErrorTypeKey),
		AttrContinent: string(semconv.GeoContinentCodeKey), AttrCountry: string(semconv.GeoCountryISOCodeKey),
		AttrRegion: string(semconv.GeoRegionISOCodeKey), AttrLocality: string(semconv.GeoLocalityNameKey),
		AttrLat: string(semconv.GeoLocationLatKey), AttrLon: string(semconv.GeoLocationLonKey),
	} {
		if ours != theirs {
			t.Errorf("attribute %q, want %q", ours, theirs)
		}
	}
}
