package tracing

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/google/go-cmp/cmp"
)

// serverSpan is a span of a request that a proxy took at vip.
func serverSpan(vip, client string, at time.Time) *tracepb.Span {
	return &tracepb.Span{
		TraceId: bytes.Repeat([]byte{1}, 16), SpanId: bytes.Repeat([]byte{2}, 8), Name: "ingress", Kind: tracepb.Span_SPAN_KIND_SERVER,
		StartTimeUnixNano: uint64(at.UnixNano()), EndTimeUnixNano: uint64(at.UnixNano()) + 5, TraceState: "a=b", DroppedAttributesCount: 3,
		Attributes: officialAttrs(map[string]any{AttrVIP: vip, "peer.address": client}),
	}
}

// exportOf is a request of spans, with a field that this code does not know.
func exportOf(t testing.TB, spans ...*tracepb.Span) []byte {
	t.Helper()
	b, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{
		{SchemaUrl: "first"},
		{ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans, SchemaUrl: "x"}, {}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return appendVarint(b, 4711, 42)
}

func TestRelayAddsLinks(t *testing.T) {
	at := time.Unix(1_700_000_050, 0) // 10 s into its epoch
	ids := testIDs(t, keyA)
	s := ids.Signer()
	id := s.ID(at, "www.example.com", "gfe-eu", "1f2e", 0)
	genuine := s.Addr(id, netip.MustParseAddr("2001:db8:2::")).String()
	trace, span := s.Context(id, 0)
	change := func(f func(*tracepb.Span)) *tracepb.Span {
		s := serverSpan(genuine, "2001:db8::7", at)
		f(s)
		return s
	}
	for _, tc := range []struct {
		name string
		span *tracepb.Span
		want LinkStats
	}{
		{"address", serverSpan(genuine, "2001:db8::7", at), LinkStats{Exact: 1}},
		{"address and port", serverSpan("["+genuine+"]:443", "", at), LinkStats{Exact: 1}},
		{"brackets", serverSpan("["+genuine+"]", "", at), LinkStats{Exact: 1}},
		{"forged", serverSpan("2001:db8:2:0:1234:5678:9abc:def0", "", at), LinkStats{Forged: 1}},
		{"of another network", serverSpan("2001:db8:3:"+genuine[len("2001:db8:2:"):], "", at), LinkStats{Forged: 1}},
		{"plain", serverSpan("2001:db8:2::11", "", at), LinkStats{}},
		{"no address", serverSpan("-", "", at), LinkStats{}},
		{"a client's span", change(func(s *tracepb.Span) { s.Kind = tracepb.Span_SPAN_KIND_CLIENT }), LinkStats{}},
		{"has a link", change(func(s *tracepb.Span) {
			s.Links = []*tracepb.Span_Link{{TraceId: bytes.Repeat([]byte{7}, 16), SpanId: bytes.Repeat([]byte{8}, 8)}}
		}), LinkStats{}},
		{"no vip", change(func(s *tracepb.Span) { s.Attributes = nil }), LinkStats{}},
		{"guessed", serverSpan("192.0.2.11", "198.51.100.7:4711", at), LinkStats{Guessed: 1}},
		{"unsure", serverSpan("192.0.2.12", "198.51.100.7", at), LinkStats{Unsure: 1}},
		{"unknown", serverSpan("192.0.2.13", "198.51.100.7", at), LinkStats{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ledger := NewLedger(16)
			ledger.add(answered(id, at.Add(-4*time.Second), 30, "198.51.100.0/24", "192.0.2.11"))
			ledger.add(answered(id, at.Add(-4*time.Second), 30, "", "192.0.2.12"))
			ledger.add(answered(id+1, at.Add(-3*time.Second), 30, "", "192.0.2.12"))
			l := NewLinker(ids, ledger)
			other := serverSpan("-", "", at)
			request := exportOf(t, other, tc.span)
			got, changed := l.relay(request)
			if s := l.Stats(); s != tc.want {
				t.Errorf("counted %+v, want %+v", s, tc.want)
			}
			if linked := tc.want.Exact+tc.want.Guessed > 0; changed != linked {
				t.Fatalf("changed %v, want %v", changed, linked)
			}
			if !changed {
				if !bytes.Equal(got, request) {
					t.Error("the request is another one, want it untouched")
				}
				return
			}
			age, confidence, by := 10.0, 1.0, "address"
			if tc.want.Guessed > 0 {
				age, confidence, by = 4, 0.5, "ledger"
			}
			want := proto.CloneOf(tc.span)
			want.Attributes = append(want.Attributes, officialAttrs(map[string]any{AttrAnswerAge: age, AttrDecisionID: id.String()})...)
			want.Links = []*tracepb.Span_Link{{TraceId: trace[:], SpanId: span[:],
				Attributes: officialAttrs(map[string]any{AttrConfidence: confidence, AttrLinkedBy: by})}}
			var whole, expected coltracepb.ExportTraceServiceRequest
			if err := proto.Unmarshal(got, &whole); err != nil {
				t.Fatal(err)
			}
			if err := proto.Unmarshal(exportOf(t, other, want), &expected); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&expected, &whole, protocmp.Transform(), anyOrder); d != "" {
				t.Errorf("relayed differs (-want +got):\n%s", d)
			}
		})
	}
}

// An address can be used long after it was answered: by who keeps it, and by who found it in a log. Up
// to its epoch, the TTL and five minutes the link is sure, past them less and less, and past twice that
// there is none. A clock that lags behind the name server's makes no answer of today one of the last
// time around.
func TestLinksOfOldAnswers(t *testing.T) {
	ids := testIDs(t, keyA) // of a minute
	s := ids.Signer()
	answered := time.Unix(1_700_000_040, 0) // when an epoch begins
	addr := s.Addr(s.ID(answered, "www.example.com", "gfe-eu", "1f2e", 0), netip.MustParseAddr("2001:db8:2::"))
	l := NewLinker(ids, nil)
	l.SetTTL(4 * time.Minute) // so that ten are beyond doubt
	for _, tc := range []struct {
		after      time.Duration
		confidence float64 // 0: not linked
		age        time.Duration
	}{
		{0, 1, 0},
		{10 * time.Minute, 1, 10 * time.Minute},
		{16 * time.Minute, 0.625, 16 * time.Minute},
		{20 * time.Minute, 0.5, 20 * time.Minute},
		{20*time.Minute + time.Second, 0, 0},
		{44 * 24 * time.Hour, 0, 0},
		{-time.Second, 1, 0}, // a clock that is behind
		{-time.Minute, 1, 0},
		{-2 * time.Minute, 0, 0},
	} {
		before := l.Stats()
		c, ok := l.Cause(addr, netip.Addr{}, answered.Add(tc.after))
		if ok != (tc.confidence > 0) || c.Confidence != tc.confidence || c.Age != tc.age || ok && c.Link().Attributes[AttrLinkedBy] != "address" {
			t.Errorf("after %v: %+v, linked %v, want confidence %v at an age of %v", tc.after, c, ok, tc.confidence, tc.age)
		}
		want := LinkStats{Exact: before.Exact, Stale: before.Stale + 1}
		if ok {
			want = LinkStats{Exact: before.Exact + 1, Stale: before.Stale}
		}
		if got := l.Stats(); got != want {
			t.Errorf("after %v: counted %+v, want %+v", tc.after, got, want)
		}
	}
}

// A relayed request goes to the memory and to the collector with its link, and what the drain
// makes of the answer is the span that it links to.
// TestRelayGuessesAreBounded sends more spans than are guessed at: those past the bound go on as they are.
func TestRelayGuessesAreBounded(t *testing.T) {
	at := time.Unix(1_700_000_050, 0)
	ids := testIDs(t, keyA)
	ledger := NewLedger(16)
	ledger.add(answered(ids.Signer().ID(at, "www.example.com", "gfe-eu", "1f2e", 0), at.Add(-time.Second), 30, "198.51.100.0/24", "192.0.2.11"))
	l := NewLinker(ids, ledger)
	spans := make([]*tracepb.Span, maxGuesses+10)
	for i := range spans {
		spans[i] = serverSpan("192.0.2.11", "198.51.100.7", at)
	}
	if _, changed := l.relay(exportOf(t, spans...)); !changed {
		t.Error("no span was linked")
	}
	if got, want := l.Stats(), (LinkStats{Guessed: maxGuesses, Unsure: 10}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

func TestRelayEndToEnd(t *testing.T) {
	ids := testIDs(t, keyA)
	ledger := NewLedger(16)
	r := New(Options{Interesting: 10, Describe: describeAll, Answers: ids, Ledger: ledger, Linker: NewLinker(ids, ledger)})
	signer := ids.Signer()
	at := time.Unix(1_700_000_000, 0)
	id := signer.ID(at, "www.example.com", "gfe-eu", "1f2e", 1)
	for range 2 { // the second one is of a known kind
		q := begin(r.Worker(0))
		fillQuery(q)
		q.Decision = id
		r.Worker(0).Commit()
	}
	r.drain(at)

	vip := signer.Addr(id, netip.MustParseAddr("2001:db8:2::"))
	req := httptest.NewRequest(http.MethodPost, "/v1/traces", bytes.NewReader(exportOf(t, serverSpan(vip.String(), "", at.Add(time.Second)))))
	req.Header.Set("Content-Type", protobufType)
	resp := httptest.NewRecorder()
	r.Receiver().ServeHTTP(resp, req)
	if resp.Code != http.StatusOK {
		t.Fatalf("status %d %s, want 200", resp.Code, resp.Body)
	}
	request := r.Memory().Trace(TraceID(bytes.Repeat([]byte{1}, 16)))
	if len(request) != 1 || len(request[0].Links) != 1 {
		t.Fatalf("request %+v, want one span with one link", request)
	}
	decision := r.Memory().Trace(request[0].Links[0].TraceID)
	if len(decision) != 1 || decision[0].SpanID != request[0].Links[0].SpanID || decision[0].Name != SpanDecision ||
		decision[0].Attributes[AttrDecisionID] != id.String() || decision[0].Attributes[AttrPool] != "gfe-eu" || len(decision[0].Links) != 1 {
		t.Fatalf("decision %+v, want the span that the request links to", decision)
	}
	query := r.Memory().Trace(decision[0].Links[0].TraceID)
	if len(query) != 3 || query[0].SpanID != decision[0].Links[0].SpanID || query[2].Attributes[AttrDecisionID] != id.String() {
		t.Errorf("query %+v, want the one that the decision links to", query)
	}
	if s := r.Stats(); s.Links.Exact != 1 || s.Made != 4 || s.Sampled[SampledFirst] != 1 {
		t.Errorf("%+v, want one link, and four spans of one query", s)
	}
}

func FuzzRelay(f *testing.F) {
	ids := testIDs(f, keyA)
	s := ids.Signer()
	at := time.Unix(1_700_000_000, 0)
	vip := s.Addr(s.ID(at, "www", "pool", "plan", 0), netip.MustParseAddr("2001:db8::"))
	f.Add(exportOf(f, serverSpan(vip.String(), "192.0.2.1", at), serverSpan("-", "", at)))
	f.Fuzz(func(t *testing.T, request []byte) {
		if _, fault := checkRequest(request); fault != nil {
			return
		}
		before := bytes.Clone(request)
		got, _ := NewLinker(ids, NewLedger(4)).relay(request)
		if !bytes.Equal(request, before) {
			t.Error("the request was written to")
		}
		want, _ := checkRequest(before)
		if n, fault := checkRequest(got); fault != nil || n != want {
			t.Errorf("relayed: %d spans, %v, want %d and no fault", n, fault, want)
		}
	})
}

// BenchmarkRelay is a request of 100 spans, all of them linked.
func BenchmarkRelay(b *testing.B) {
	ids := testIDs(b, keyA)
	s := ids.Signer()
	at := time.Unix(1_700_000_000, 0)
	vip := s.Addr(s.ID(at, "www", "pool", "plan", 0), netip.MustParseAddr("2001:db8::")).String()
	var spans []*tracepb.Span
	for range 100 {
		spans = append(spans, serverSpan(vip, "192.0.2.1", at))
	}
	request, l := exportOf(b, spans...), NewLinker(ids, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, changed := l.relay(request); !changed {
			b.Fatal("nothing was linked")
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/span")
}

// A request whose span arrives before the answer that it came of was drained is linked all the
// same: the ledger is brought up to date first.
func TestRelayWaitsForTheLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := testIDs(t, keyA)
		ledger := NewLedger(16)
		r := New(Options{Answers: ids, Ledger: ledger, Linker: NewLinker(ids, ledger), Logger: quiet()})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- r.Run(ctx) }()
		synctest.Wait() // asleep until the next drain

		now := time.Now()
		q := begin(r.Worker(0))
		*q = *answered(ids.Signer().ID(now, "www.example.com", "gfe-eu", "1f2e", 0), now, 30, "", "192.0.2.11")
		r.Worker(0).Commit()
		request := exportOf(t, serverSpan("192.0.2.11", "198.51.100.7", now))
		r.accept(request, batch{body: request, spans: 1, kind: protobufType})
		if s := r.Stats().Links; s.Guessed != 1 {
			t.Errorf("counted %+v, want a link by the ledger", s)
		}
		if waited := time.Since(now); waited >= maxSleep {
			t.Errorf("waited %v, want less than until the next drain", waited)
		}
		cancel()
		<-ran

		now = time.Now()
		r.accept(request, batch{body: request, spans: 1, kind: protobufType}) // nobody drains any more
		if waited := time.Since(now); waited > 2*maxSleep {
			t.Errorf("after the end it waited %v", waited)
		}
	})
}
