package tracing

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxTraceSpans = 1024 // of one trace; further ones are counted and let go
	entryOverhead = 128  // octets that an entry costs beside its content
	traceOverhead = 256  // and a trace beside its entries
	maxOrigins    = 256  // resources remembered, to be shared by their spans,

	maxOriginOctets = 4 << 10 // if they are no longer
)

// Memory keeps the last traces that a node made or received, so that they can be looked at
// without a collector. It is bounded by traces and by octets, and forgets the trace that it
// saw first. Spans are kept as encoded and read only when someone looks. It is safe for
// concurrent use.
type Memory struct {
	maxTraces, maxOctets int

	mu sync.Mutex // guards what follows; held to copy references, never to decode
	// len(traces) = count <= maxTraces, octets <= maxOctets
	traces    map[TraceID]*remembered
	order     []*remembered // a ring: the oldest at first, count of them
	first     int
	count     int
	octets    int
	evicted   uint64
	forgotten uint64
	origins   map[string]*origin // by content
}

// remembered is a trace.
type remembered struct {
	id      TraceID
	entries []entry
	first   [1]entry // where entries begins: most traces have one
	spans   int
	octets  int
}

// entry is what arrived of a trace at once.
type entry struct {
	origin *origin
	spans  []byte // as fields of ScopeSpans; never changed
}

// origin is the resource of spans, shared by them.
type origin struct {
	service string
	attrs   map[string]any
	octets  int // as encoded
}

// MemoryStats are the counters of a Memory.
type MemoryStats struct {
	Traces    int    // held now
	Octets    int    // that they take, about
	Evicted   uint64 // traces forgotten for newer ones
	Forgotten uint64 // spans not kept: of a trace with too many, or larger than all of the memory
}

// NewMemory returns a memory of that many traces and octets; with zero or fewer of either it
// keeps nothing.
func NewMemory(traces, octets int) *Memory {
	return &Memory{
		maxTraces: max(traces, 0),
		maxOctets: octets,
		traces:    make(map[TraceID]*remembered),
		order:     make([]*remembered, max(traces, 0)),
		origins:   make(map[string]*origin),
	}
}

// Add remembers spans. Their Resource, with service.name set to their Service, is kept.
func (m *Memory) Add(spans ...Span) {
	for i := range spans {
		s := &spans[i]
		attrs := maps.Clone(s.Resource)
		if attrs == nil {
			attrs = make(map[string]any)
		}
		if s.Service != "" {
			attrs[AttrServiceName] = s.Service
		}
		m.add(m.origin(appendResource(nil, attrs)), s.TraceID, appendSpan(nil, s), 1)
	}
}

// addRequest remembers every span of a valid ExportTraceServiceRequest.
func (m *Memory) addRequest(request []byte) error {
	return walkRequest(request, func(resource []byte) (func([]byte) error, error) {
		o := m.origin(resource)
		return func(span []byte) error {
			s, err := decodeSpan(span)
			if err != nil {
				return err
			}
			m.add(o, s.TraceID, appendBytes(nil, scopeSpansSpans, span), 1)
			return nil
		}, nil
	})
}

// add remembers n spans of a trace, encoded as fields of ScopeSpans, which it copies.
func (m *Memory) add(from *origin, id TraceID, spans []byte, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	// Entries pay for their resource as if it were not shared: an upper bound is enough.
	cost := len(spans) + from.octets + entryOverhead
	if m.maxTraces == 0 || cost+traceOverhead > m.maxOctets {
		m.forgotten += uint64(n)
		return
	}
	t, known := m.traces[id]
	if known && t.spans+n > maxTraceSpans {
		m.forgotten += uint64(n)
		return
	}
	for m.octets+cost+traceOverhead > m.maxOctets || !known && m.count == m.maxTraces {
		if t == m.evict() { // it may have been the oldest
			t, known = nil, false
		}
	}
	if !known {
		t = &remembered{id: id, octets: traceOverhead}
		t.entries = t.first[:0]
		m.octets += traceOverhead
		m.traces[id] = t
		m.order[(m.first+m.count)%len(m.order)] = t
		m.count++
	}
	t.entries = append(t.entries, entry{from, bytes.Clone(spans)})
	t.spans += n
	t.octets += cost
	m.octets += cost
}

// evict forgets the oldest trace, and returns it.
func (m *Memory) evict() *remembered {
	t := m.order[m.first]
	m.octets -= t.octets
	delete(m.traces, t.id)
	m.order[m.first] = nil
	m.first = (m.first + 1) % len(m.order)
	m.count--
	m.evicted++
	return t
}

// origin returns the resource of that content, the same one each time while it is remembered.
func (m *Memory) origin(content []byte) *origin {
	m.mu.Lock()
	o, known := m.origins[string(content)]
	m.mu.Unlock()
	if known {
		return o
	}
	attrs, _ := decodeResource(content) // what can be read of it
	o = &origin{attrs: attrs, octets: len(content)}
	o.service, _ = attrs[AttrServiceName].(string)
	if len(content) > maxOriginOctets {
		return o
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.origins) >= maxOrigins {
		clear(m.origins)
	}
	m.origins[string(content)] = o
	return o
}

// Stats returns the counters.
func (m *Memory) Stats() MemoryStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return MemoryStats{Traces: m.count, Octets: m.octets, Evicted: m.evicted, Forgotten: m.forgotten}
}

// Trace returns the spans of a trace in the order of their start, parents before children that
// start at the same moment; nil if it is not remembered.
func (m *Memory) Trace(id TraceID) []Span {
	m.mu.Lock()
	var entries []entry
	if t := m.traces[id]; t != nil {
		entries = slices.Clip(t.entries) // entries are only ever appended
	}
	m.mu.Unlock()
	if entries == nil {
		return nil
	}
	return decodeEntries(entries)
}

// maxLinked bounds the traces that one is told in connection with.
const maxLinked = 64

// Linked returns the spans of the traces that a span of id's links to, or that link to one of
// them, and so on: what led to it and what came of it. It is without the spans of id itself, trace
// by trace, and of no more than 64 traces.
func (m *Memory) Linked(id TraceID) []Span {
	m.mu.Lock()
	entries := make(map[TraceID][]entry, m.count)
	order := make([]TraceID, 0, m.count)
	for i := range m.count {
		t := m.order[(m.first+i)%len(m.order)]
		order = append(order, t.id)
		entries[t.id] = slices.Clip(t.entries)
	}
	m.mu.Unlock()

	spans := make(map[TraceID][]Span, len(order))
	next := make(map[TraceID][]TraceID) // both ways
	for _, t := range order {
		spans[t] = decodeEntries(entries[t])
		for _, s := range spans[t] {
			for _, l := range s.Links {
				if l.TraceID != t {
					next[t] = append(next[t], l.TraceID)
					next[l.TraceID] = append(next[l.TraceID], t)
				}
			}
		}
	}
	var out []Span
	seen := map[TraceID]bool{id: true}
	for queue := []TraceID{id}; len(queue) > 0; queue = queue[1:] {
		for _, t := range next[queue[0]] {
			if !seen[t] && len(seen) <= maxLinked {
				seen[t] = true
				queue = append(queue, t)
				out = append(out, spans[t]...)
			}
		}
	}
	return out
}

// decodeEntries reads the spans of one trace. One that was sent twice counts once, as it came
// last.
func decodeEntries(entries []entry) []Span {
	var spans []Span
	seen := make(map[SpanID]int)
	for _, e := range entries {
		walkSpans(e.spans, func(b []byte) error { // was checked when it was added
			s, err := decodeSpan(b)
			if err != nil {
				return nil
			}
			s.Service, s.Resource = e.origin.service, e.origin.attrs
			if i, again := seen[s.SpanID]; again {
				spans[i] = s
				return nil
			}
			seen[s.SpanID] = len(spans)
			spans = append(spans, s)
			return nil
		})
	}
	slices.SortStableFunc(spans, func(a, b Span) int { return a.Start.Compare(b.Start) })
	return parentsFirst(spans)
}

// parentsFirst moves spans behind their parents and keeps the order otherwise.
func parentsFirst(spans []Span) []Span {
	out := make([]Span, 0, len(spans))
	for _, n := range forest(spans, false) {
		n.walk(func(n *node) { out = append(out, *n.span) })
	}
	slices.SortStableFunc(out, func(a, b Span) int { return a.Start.Compare(b.Start) })
	return out
}

// Filter selects traces. Every field that is set must match.
type Filter struct {
	Name    string        // dns.question.name of a span, in any case, with or without the trailing dot
	Service string        // service.name of a span
	Pool    string        // gslb.pool of a span
	Reason  string        // gslb.reason of a span
	Slower  time.Duration // the trace took longer
	Errors  bool          // a span has the status error
	Since   time.Time     // the trace started then or later
	Limit   int           // at most as many, the newest; 0: all
}

// Summary is a trace in one line.
type Summary struct {
	TraceID  TraceID       `json:"traceId"`
	Name     string        `json:"name"`  // of the first root span
	Title    string        `json:"title"` // the same with what it was about: "dns.query www.example.com A"
	Services []string      `json:"services"`
	Start    time.Time     `json:"start"`
	Duration time.Duration `json:"duration"` // ns, from the first start to the last end
	Spans    int           `json:"spans"`
	Error    bool          `json:"error,omitempty"`
	Question string        `json:"question,omitempty"` // dns.question.name
	Type     string        `json:"type,omitempty"`     // dns.question.type
	Client   string        `json:"client,omitempty"`   // gslb.client.prefix
	Pool     string        `json:"pool,omitempty"`     // gslb.pool
	Reason   string        `json:"reason,omitempty"`   // gslb.reason
}

// Traces returns the traces that match f, the newest first.
func (m *Memory) Traces(f Filter) []Summary {
	type snapshot struct {
		id      TraceID
		entries []entry
	}
	m.mu.Lock()
	all := make([]snapshot, 0, m.count)
	for i := m.count - 1; i >= 0; i-- {
		t := m.order[(m.first+i)%len(m.order)]
		all = append(all, snapshot{t.id, slices.Clip(t.entries)})
	}
	m.mu.Unlock()

	var out []Summary
	for _, t := range all {
		if f.Limit > 0 && len(out) == f.Limit {
			break
		}
		spans := decodeEntries(t.entries)
		if len(spans) == 0 {
			continue
		}
		if s := summarize(t.id, spans); f.match(&s) {
			out = append(out, s)
		}
	}
	return out
}

// summarize makes the summary of spans, of which there is at least one, ordered as by Trace.
func summarize(id TraceID, spans []Span) Summary {
	root := forest(spans, false)[0].span
	s := Summary{TraceID: id, Name: root.Name, Title: title(root), Start: spans[0].Start, Spans: len(spans)}
	end := spans[0].End
	for i := range spans {
		span := &spans[i]
		if span.End.After(end) {
			end = span.End
		}
		if !slices.Contains(s.Services, span.Service) {
			s.Services = append(s.Services, span.Service)
		}
		s.Error = s.Error || span.Status.Code == StatusError
		first := func(dst *string, key string) {
			if v, ok := span.Attributes[key].(string); ok && *dst == "" {
				*dst = v
			}
		}
		first(&s.Question, AttrQuestionName)
		first(&s.Type, AttrQuestionType)
		first(&s.Client, AttrClientPrefix)
		first(&s.Pool, AttrPool)
		first(&s.Reason, AttrReason)
	}
	s.Duration = max(0, end.Sub(s.Start))
	return s
}

func (f *Filter) match(s *Summary) bool {
	return (f.Name == "" || strings.EqualFold(strings.TrimSuffix(f.Name, "."), s.Question)) &&
		(f.Service == "" || slices.Contains(s.Services, f.Service)) &&
		(f.Pool == "" || f.Pool == s.Pool) &&
		(f.Reason == "" || f.Reason == s.Reason) &&
		(f.Slower == 0 || s.Duration > f.Slower) &&
		(!f.Errors || s.Error) &&
		!s.Start.Before(f.Since)
}
