package tracing

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestParseTraceParent(t *testing.T) {
	trace := "\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10"
	span := "\x11\x12\x13\x14\x15\x16\x17\x18"
	full := TraceParent{TraceID: TraceID([]byte(trace)), Parent: SpanID([]byte(span)), Sampled: true}
	rootless := TraceParent{TraceID: full.TraceID, Sampled: true}
	unsampled := TraceParent{TraceID: full.TraceID, Parent: full.Parent}
	for _, tc := range []struct {
		name, data string
		want       TraceParent
		ok         bool
	}{
		{"empty", "", TraceParent{Sampled: true}, true},
		{"18 octets", "\x00\x00" + trace, rootless, true},
		{"18 octets, reserved is anything", "\x00\x07" + trace, rootless, true},
		{"26 octets", "\x00\x00" + trace + span, full, true},
		{"26 octets, no span", "\x00\x00" + trace + "\x00\x00\x00\x00\x00\x00\x00\x00", rootless, true},
		{"27 octets", "\x00\x00" + trace + span + "\x01", full, true},
		{"27 octets, not sampled", "\x00\x00" + trace + span + "\x00", unsampled, true},
		{"27 octets, other flags", "\x00\x00" + trace + span + "\xfe", unsampled, true},
		{"29 octets", "\x00\x00" + trace + "\x01" + span + "\x02\x01", full, true},
		{"29 octets, not sampled", "\x00\x00" + trace + "\x01" + span + "\x02\x00", unsampled, true},
		{"29 octets, fields in another order", "\x00\x01" + trace + "\x00" + span + "\x02\x01", TraceParent{}, false},
		{"29 octets, no flags field", "\x00\x00" + trace + "\x01" + span + "\x03\x01", TraceParent{}, false},
		{"version 1", "\x01\x00" + trace, TraceParent{}, false},
		{"trace id zero", "\x00\x00" + strings.Repeat("\x00", 16), TraceParent{}, false},
		{"17 octets", "\x00" + trace, TraceParent{}, false},
		{"28 octets", "\x00\x00" + trace + span + "\x01\x01", TraceParent{}, false},
		{"one octet", "\x00", TraceParent{}, false},
	} {
		got, ok := ParseTraceParent([]byte(tc.data))
		if ok != tc.ok || ok && got != tc.want {
			t.Errorf("%s: %+v, %v, want %+v, %v", tc.name, got, ok, tc.want, tc.ok)
		}
	}
}

func FuzzParseTraceParent(f *testing.F) {
	for _, n := range []int{0, 1, 17, 18, 26, 27, 28, 29, 30} {
		data := bytes.Repeat([]byte{1}, n)
		if n > 1 {
			data[0], data[1] = 0, 0
		}
		if n == 29 {
			data[27] = 2
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, ok := ParseTraceParent(data)
		if !ok {
			return
		}
		if len(data) == 0 {
			if !p.TraceID.IsZero() || !p.Sampled {
				t.Errorf("empty: %+v, want a request to trace", p)
			}
			return
		}
		if p.TraceID.IsZero() || !bytes.Contains(data, p.TraceID[:]) || !p.Parent.IsZero() && !bytes.Contains(data, p.Parent[:]) {
			t.Errorf("%x: %+v, want ids that stand there", data, p)
		}
	})
}

func TestParents(t *testing.T) {
	trace := TraceID{1, 15: 2}
	full := AppendTraceParent(nil, trace, SpanID{3})
	unsampled := append([]byte(nil), full...)
	unsampled[26] = 0
	for _, tc := range []struct {
		name, from string
		data       []byte
		want       Request
		counted    ParentStats
	}{
		{"followed", "127.0.0.1", full, Request{Ask: AskTrace, Trace: trace, Parent: SpanID{3}}, ParentStats{Taken: 1}},
		{"mapped sender", "::ffff:127.0.0.1", full, Request{Ask: AskTrace, Trace: trace, Parent: SpanID{3}}, ParentStats{Taken: 1}},
		{"not sampled", "::1", unsampled, Request{Ask: AskNone, Trace: trace, Parent: SpanID{3}}, ParentStats{Taken: 1}},
		{"malformed", "127.0.0.1", full[:19], Request{}, ParentStats{Malformed: 1}},
		{"may not ask", "192.0.2.1", full, Request{}, ParentStats{Refused: 1}},
		{"may not ask, empty", "2001:db8::1", nil, Request{}, ParentStats{Refused: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := NewParents(Loopback)
			got := p.Read(netip.MustParseAddr(tc.from), tc.data)
			if got != tc.want || p.Stats() != tc.counted {
				t.Errorf("%+v, counted %+v, want %+v, %+v", got, p.Stats(), tc.want, tc.counted)
			}
		})
	}
	p, from := NewParents(Loopback), netip.MustParseAddr("127.0.0.1")
	a, b := p.Read(from, nil), p.Read(from, nil)
	if !a.Tell || a.Ask != AskTrace || a.Trace.IsZero() || a.Span.IsZero() || a.Trace == b.Trace || a.Span == b.Span {
		t.Errorf("empty options give %+v and %+v, want ids of their own, to be told", a, b)
	}
	if back, ok := ParseTraceParent(AppendTraceParent(nil, a.Trace, a.Span)); !ok || back != (TraceParent{a.Trace, a.Span, true}) {
		t.Errorf("what is told reads %+v, %v, want the same ids", back, ok)
	}
	if n := testing.AllocsPerRun(100, func() { p.Read(from, full); p.Read(from, nil) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// A query with a parent becomes a child of it, in its trace, sampled because it was asked for.
func TestParentInSpans(t *testing.T) {
	r := New(Options{Interesting: -1, Describe: describeAll})
	w := r.Worker(0)
	q := begin(w)
	fillQuery(q)
	req := Request{Ask: AskTrace, Trace: TraceID{9, 15: 9}, Parent: SpanID{8}}
	req.Record(q)
	w.Commit()
	q = begin(w) // its sender was told the ids
	fillQuery(q)
	told := Request{Ask: AskTrace, Trace: TraceID{5}, Span: SpanID{6}, Tell: true}
	told.Record(q)
	w.Commit()
	r.drain(time.Now())

	spans := r.Memory().Trace(TraceID{9, 15: 9})
	if len(spans) != 3 || spans[0].Name != SpanQuery || spans[0].ParentID != (SpanID{8}) || spans[0].Attributes[AttrSampledBy] != SampledParent {
		t.Errorf("spans %+v, want dns.query below the sender's span", spans)
	}
	got := official(t, appendRequest(nil, nil, "", r.spans[r.room:])).ResourceSpans[0].ScopeSpans[0].Spans[0]
	if !bytes.Equal(got.ParentSpanId, []byte{8, 0, 0, 0, 0, 0, 0, 0}) || got.Flags != 0x301 {
		t.Errorf("parent %x, flags %#x, want the sender's, and that it is remote", got.ParentSpanId, got.Flags)
	}
	spans = r.Memory().Trace(TraceID{5})
	if len(spans) != 3 || spans[0].SpanID != (SpanID{6}) || !spans[0].ParentID.IsZero() {
		t.Errorf("spans %+v, want a root with the id that was told", spans)
	}
	if n := r.Stats().Sampled[SampledParent]; n != 2 {
		t.Errorf("%d sampled for their sender, want 2", n)
	}
}
