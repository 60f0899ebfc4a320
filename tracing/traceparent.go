package tracing

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
)

// EDNSTraceParent is the code of the EDNS option that carries a trace context (RFC 6891 leaves
// 65001 to 65534 to local use; this one is PowerDNS's, draft-edns-otel-trace-ids).
const EDNSTraceParent = 65500

// TraceParent is the trace context of a query, as its sender gave it.
type TraceParent struct {
	TraceID TraceID // zero: the sender has none, and asks us to trace and to tell ours
	Parent  SpanID  // zero: none
	Sampled bool
}

// ParseTraceParent reads the data of an EDNS TRACEPARENT option in any of the forms in use:
//
//	 0 octets  empty: "trace this and tell me the id"
//	18 octets  version 0, reserved, trace id
//	26 octets  version 0, reserved, trace id, span id
//	27 octets  version 0, reserved, trace id, span id, flags
//	29 octets  version 0, field 0 trace id, field 1 span id, field 2 flags (W3C binary)
//
// It returns false for anything else; such an option is ignored. The forms without flags mean
// sampled, as they are only sent to be traced. A span id of zero is none.
func ParseTraceParent(data []byte) (TraceParent, bool) {
	var p TraceParent
	if len(data) == 0 {
		return TraceParent{Sampled: true}, true
	}
	if data[0] != 0 {
		return TraceParent{}, false
	}
	flags := byte(1)
	switch len(data) {
	case 18, 26, 27:
		copy(p.TraceID[:], data[2:18])
		copy(p.Parent[:], data[18:]) // at most 8
		if len(data) == 27 {
			flags = data[26]
		}
	case 29:
		if data[1] != 0 || data[18] != 1 || data[27] != 2 {
			return TraceParent{}, false
		}
		copy(p.TraceID[:], data[2:18])
		copy(p.Parent[:], data[19:27])
		flags = data[28]
	default:
		return TraceParent{}, false
	}
	p.Sampled = flags&1 != 0
	return p, !p.TraceID.IsZero()
}

// TraceParentLen is the length of the option that AppendTraceParent writes, in octets.
const TraceParentLen = 27

// AppendTraceParent appends the data of a TRACEPARENT option in the form of 27 octets, sampled.
func AppendTraceParent(b []byte, trace TraceID, span SpanID) []byte {
	b = append(b, 0, 0)
	b = append(b, trace[:]...)
	b = append(b, span[:]...)
	return append(b, 1)
}

// Request is what a query's TRACEPARENT option comes to.
type Request struct {
	Ask    Ask
	Trace  TraceID // of the sender, or drawn for one that has none
	Span   SpanID  // drawn for the query's own span, where the sender is to be told
	Parent SpanID
	Tell   bool // the sender asked for the ids: answer with AppendTraceParent of Trace and Span
}

// Record writes r into the record of its query.
func (r *Request) Record(q *Query) {
	q.Asked, q.Trace, q.Span, q.Parent = r.Ask, r.Trace, r.Span, r.Parent
}

// Parents reads the TRACEPARENT options of queries, from those who may ask us to trace. It is
// safe for concurrent use and neither locks nor allocates.
type Parents struct {
	allow []netip.Prefix

	taken, malformed, refused atomic.Uint64
}

// Loopback is whom Parents listens to where nobody said otherwise.
var Loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// NewParents returns a reader of options from the prefixes in allow.
func NewParents(allow []netip.Prefix) *Parents {
	return &Parents{allow: slices.Clone(allow)}
}

// Read returns what the option with that data, in a query from that address, asks for. It is
// the zero Request, and counted, if the option is malformed or its sender may not ask: such a
// query is answered as if it had no option.
func (p *Parents) Read(from netip.Addr, data []byte) Request {
	from = from.Unmap()
	if !slices.ContainsFunc(p.allow, func(a netip.Prefix) bool { return a.Contains(from) }) {
		p.refused.Add(1)
		return Request{}
	}
	parent, ok := ParseTraceParent(data)
	if !ok {
		p.malformed.Add(1)
		return Request{}
	}
	p.taken.Add(1)
	r := Request{Ask: AskNone, Trace: parent.TraceID, Parent: parent.Parent}
	if parent.Sampled {
		r.Ask = AskTrace
	}
	if r.Trace.IsZero() {
		binary.BigEndian.PutUint64(r.Trace[:8], rand.Uint64())
		binary.BigEndian.PutUint64(r.Trace[8:], rand.Uint64()|1) // never zero
		binary.BigEndian.PutUint64(r.Span[:], rand.Uint64()|1)
		r.Tell = true
	}
	return r
}

// ParentStats are the exact counters of a Parents: queries with a TRACEPARENT option.
type ParentStats struct {
	Taken     uint64 // read, and followed
	Malformed uint64 // ignored, as it has none of the known forms
	Refused   uint64 // ignored, as its sender may not ask
}

// Stats returns the counters.
func (p *Parents) Stats() ParentStats {
	return ParentStats{Taken: p.taken.Load(), Malformed: p.malformed.Load(), Refused: p.refused.Load()}
}
