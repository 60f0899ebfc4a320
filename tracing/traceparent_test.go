package tracing

import (
	"bytes"
	"strings"
	"testing"
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
