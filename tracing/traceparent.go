package tracing

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
