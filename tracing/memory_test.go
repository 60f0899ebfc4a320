package tracing

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func id(n int) (t TraceID) {
	binary.BigEndian.PutUint64(t[8:], uint64(n))
	return t
}

func sid(n int) (s SpanID) {
	binary.BigEndian.PutUint64(s[:], uint64(n))
	return s
}

func plainSpan(trace, span int) Span {
	return Span{TraceID: id(trace), SpanID: sid(span), Name: "work", Service: "test", Start: time.Unix(int64(trace), 0), End: time.Unix(int64(trace), 1)}
}

func TestMemoryForgetsTheOldest(t *testing.T) {
	m := NewMemory(3, 1<<20)
	for i := 1; i <= 5; i++ {
		m.Add(plainSpan(i, 1))
	}
	m.Add(plainSpan(3, 2)) // a later span makes a trace no younger
	m.Add(plainSpan(6, 1))
	var got []TraceID
	for _, s := range m.Traces(Filter{}) {
		got = append(got, s.TraceID)
	}
	if want := []TraceID{id(6), id(5), id(4)}; !slices.Equal(got, want) {
		t.Errorf("remembered %v, want %v", got, want)
	}
	if got := m.Trace(id(3)); got != nil {
		t.Errorf("trace 3: %v, want none", got)
	}
	if s := m.Stats(); s.Traces != 3 || s.Evicted != 3 || s.Forgotten != 0 {
		t.Errorf("stats %+v, want 3 traces, 3 evicted", s)
	}
}

// Random spans: the bounds hold at every step, and the octets are those of what is held.
func TestMemoryIsBounded(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	m := NewMemory(10, 8000)
	for i := range 5000 {
		s := plainSpan(1+random.IntN(15), i+1)
		s.Attributes = map[string]any{"filler": strings.Repeat("x", random.IntN(1000))}
		if random.IntN(100) == 0 {
			s.Attributes["filler"] = strings.Repeat("x", 9000)
		}
		m.Add(s)
		octets := 0
		for _, t := range m.traces {
			octets += traceOverhead
			for _, e := range t.entries {
				octets += len(e.spans)
			}
		}
		if m.count > 10 || m.count != len(m.traces) || m.octets > 8000 || octets > m.octets {
			t.Fatalf("step %d: %d (%d) traces of %d octets (%d at least), want at most 10 and 8000", i, m.count, len(m.traces), m.octets, octets)
		}
	}
	if s := m.Stats(); s.Evicted == 0 || s.Forgotten == 0 || s.Traces == 0 {
		t.Errorf("stats %+v: want some of each", s)
	}
}

func TestMemoryBoundsATrace(t *testing.T) {
	m := NewMemory(10, 1<<24)
	for i := range maxTraceSpans + 5 {
		m.Add(plainSpan(1, i+1))
	}
	if got := len(m.Trace(id(1))); got != maxTraceSpans || m.Stats().Forgotten != 5 {
		t.Errorf("%d spans, %d forgotten, want %d, 5", got, m.Stats().Forgotten, maxTraceSpans)
	}
}

func TestNoMemory(t *testing.T) {
	for _, m := range []*Memory{NewMemory(0, 1<<20), NewMemory(-1, 1<<20), NewMemory(5, 0)} {
		m.Add(plainSpan(1, 1))
		if got := m.Traces(Filter{}); got != nil || m.Stats().Forgotten != 1 {
			t.Errorf("remembered %v, %+v, want nothing", got, m.Stats())
		}
	}
}

// A span that came twice counts once, as it came last; children follow their parents.
func TestTraceOrder(t *testing.T) {
	at := time.Unix(1, 0)
	m := NewMemory(1, 1<<20)
	child := Span{TraceID: id(1), SpanID: sid(2), ParentID: sid(1), Name: "child", Start: at, End: at}
	m.Add(child)
	m.Add(Span{TraceID: id(1), SpanID: sid(1), Name: "root", Start: at, End: at})
	child.Name = "child again"
	m.Add(child)
	m.Add(Span{TraceID: id(1), SpanID: sid(3), ParentID: sid(1), Name: "early", Start: at.Add(-1), End: at})
	var got []string
	for _, s := range m.Trace(id(1)) {
		got = append(got, s.Name)
	}
	if want := []string{"early", "root", "child again"}; !slices.Equal(got, want) {
		t.Errorf("spans %q, want %q", got, want)
	}
}

func TestFilter(t *testing.T) {
	m := NewMemory(10, 1<<20)
	query := func(trace int, name, pool, reason string, d time.Duration) {
		start := time.Unix(int64(trace), 0)
		m.Add(Span{TraceID: id(trace), SpanID: sid(1), Name: SpanQuery, Service: "gslbd", Start: start, End: start.Add(d),
			Attributes: map[string]any{AttrQuestionName: name, AttrQuestionType: "A", AttrClientPrefix: "192.0.2.0/24"}})
		m.Add(Span{TraceID: id(trace), SpanID: sid(2), ParentID: sid(1), Name: SpanDecide, Service: "gslbd", Start: start, End: start,
			Attributes: map[string]any{AttrPool: pool, AttrReason: reason}})
	}
	query(1, "www.example.com", "eu", "policy", time.Millisecond)
	query(2, "WWW.example.com", "us", "failover", 3*time.Millisecond)
	query(3, "api.example.com", "eu", "policy", time.Millisecond)
	failed := plainSpan(4, 1)
	failed.Service, failed.Status.Code = "gfe", StatusError
	m.Add(failed)

	for _, tc := range []struct {
		name   string
		filter Filter
		want   []int
	}{
		{"all", Filter{}, []int{4, 3, 2, 1}},
		{"newest", Filter{Limit: 2}, []int{4, 3}},
		{"by name", Filter{Name: "www.example.com."}, []int{2, 1}},
		{"by name, newest", Filter{Name: "www.example.com", Limit: 1}, []int{2}},
		{"by service", Filter{Service: "gfe"}, []int{4}},
		{"by pool", Filter{Pool: "eu"}, []int{3, 1}},
		{"by reason", Filter{Reason: "failover"}, []int{2}},
		{"slow", Filter{Slower: 2 * time.Millisecond}, []int{2}},
		{"failed", Filter{Errors: true}, []int{4}},
		{"recent", Filter{Since: time.Unix(3, 0)}, []int{4, 3}},
		{"both", Filter{Name: "www.example.com", Pool: "eu"}, []int{1}},
		{"none", Filter{Name: "nowhere"}, nil},
	} {
		var got []int
		for _, s := range m.Traces(tc.filter) {
			got = append(got, int(s.TraceID[15]))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	got := fmt.Sprintf("%+v", m.Traces(Filter{Reason: "failover"})[0])
	want := fmt.Sprintf("%+v", Summary{TraceID: id(2), Name: SpanQuery, Title: "dns.query WWW.example.com A", Services: []string{"gslbd"},
		Start: time.Unix(2, 0).UTC(), Duration: 3 * time.Millisecond, Spans: 2,
		Question: "WWW.example.com", Type: "A", Client: "192.0.2.0/24", Pool: "us", Reason: "failover"})
	if got != want {
		t.Errorf("summary\n got %s\nwant %s", got, want)
	}
}

// Readers see whole traces while writers add and evict.
func TestMemoryConcurrently(t *testing.T) {
	m := NewMemory(8, 1<<20)
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := range 300 {
				m.Add(plainSpan(w*1000+i+1, 1), plainSpan(w*1000+i+1, 2))
			}
		})
	}
	for range 100 {
		for _, s := range m.Traces(Filter{}) {
			for _, span := range m.Trace(s.TraceID) {
				if span.Name != "work" || span.Service != "test" || span.TraceID != s.TraceID {
					t.Errorf("span %+v of trace %v, want one of its own", span, s.TraceID)
				}
			}
		}
	}
	wg.Wait()
	if got := len(m.Traces(Filter{})); got != 8 {
		t.Errorf("%d traces, want 8", got)
	}
}

func TestParseTraceID(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"0102030405060708090a0b0c0d0e0f10", ""},
		{"0102030405060708090A0B0C0D0E0F10", ""},
		{"01", "want 32 hex digits"},
		{"0102030405060708090a0b0c0d0e0f1g", "want 32 hex digits"},
		{"00000000000000000000000000000000", "want one that is not all zero"},
	} {
		got, err := ParseTraceID(tc.in)
		if tc.want == "" {
			if err != nil || !strings.EqualFold(got.String(), tc.in) {
				t.Errorf("%q: %v, %v, want itself", tc.in, got, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %q", tc.in, err, tc.want)
		}
	}
}

// What is linked is found from any end of the links.
func TestMemoryLinked(t *testing.T) {
	m := NewMemory(10, 1<<20)
	at := time.Unix(1_700_000_000, 0)
	span := func(trace byte, links ...byte) Span {
		s := Span{TraceID: TraceID{trace}, SpanID: SpanID{trace}, Name: string('a' + rune(trace)), Start: at, End: at}
		for _, l := range links {
			s.Links = append(s.Links, Link{TraceID: TraceID{l}, SpanID: SpanID{l}})
		}
		return s
	}
	// query 1 ← decision 2 ← requests 3 and 4; 5 stands alone; 6 links to what is forgotten.
	m.Add(span(1), span(2, 1), span(3, 2), span(4, 2, 4), span(5), span(6, 9))
	for _, tc := range []struct {
		of   byte
		want string
	}{{1, "cde"}, {2, "bde"}, {3, "cbe"}, {4, "cbd"}, {5, ""}, {6, ""}, {9, "g"}} {
		got := ""
		for _, s := range m.Linked(TraceID{tc.of}) {
			got += s.Name
		}
		if got != tc.want {
			t.Errorf("linked to %d: %q, want %q", tc.of, got, tc.want)
		}
	}
}
