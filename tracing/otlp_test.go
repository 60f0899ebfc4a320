package tracing

import (
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/google/go-cmp/cmp"
)

// official decodes a request with the generated code of OpenTelemetry.
func official(t testing.TB, request []byte) *coltracepb.ExportTraceServiceRequest {
	t.Helper()
	var req coltracepb.ExportTraceServiceRequest
	if err := proto.Unmarshal(request, &req); err != nil {
		t.Fatalf("proto.Unmarshal: %v", err)
	}
	return &req
}

// officialAny is the generated code's form of an attribute value.
func officialAny(v any) *commonpb.AnyValue {
	switch v := v.(type) {
	case string:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v}}
	case bool:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: v}}
	case int:
		return officialAny(int64(v))
	case int64:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: v}}
	case float64:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: v}}
	case []byte:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_BytesValue{BytesValue: v}}
	case []string:
		a := &commonpb.ArrayValue{}
		for _, s := range v {
			a.Values = append(a.Values, officialAny(s))
		}
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: a}}
	case []any:
		a := &commonpb.ArrayValue{}
		for _, s := range v {
			a.Values = append(a.Values, officialAny(s))
		}
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: a}}
	case map[string]any:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_KvlistValue{KvlistValue: &commonpb.KeyValueList{Values: officialAttrs(v)}}}
	case nil:
		return &commonpb.AnyValue{}
	}
	panic("no such value")
}

func officialAttrs(attrs map[string]any) []*commonpb.KeyValue {
	var out []*commonpb.KeyValue
	for key, v := range attrs {
		out = append(out, &commonpb.KeyValue{Key: key, Value: officialAny(v)})
	}
	return out
}

// anyOrder compares attributes without regard to their order.
var anyOrder = protocmp.SortRepeated(func(a, b *commonpb.KeyValue) bool { return a.Key < b.Key })

// fullSpan has every field and every type of attribute.
func fullSpan() Span {
	at := time.Unix(1_700_000_000, 123_456_789).UTC()
	return Span{
		TraceID: TraceID{1, 2, 15: 16}, SpanID: SpanID{1, 7: 8}, ParentID: SpanID{9},
		Name: "GET /", Kind: KindServer, Service: "gfe",
		Start: at, End: at.Add(1500 * time.Microsecond),
		Attributes: map[string]any{
			"empty": "", "string": "zürich", "long": strings.Repeat("x", 70_000),
			"true": true, "false": false,
			"int": int64(-1), "zero": int64(0), "big": int64(math.MaxInt64), "small": int64(math.MinInt64),
			"double": 3.25, "nought": 0.0, "octets": []byte{0, 255},
			"array": []any{"a", int64(2), true, 1.5, []any{"nested"}}, "none": []any{},
			"list": map[string]any{"k": "v", "deep": map[string]any{"n": int64(1)}},
			"nil":  nil,
		},
		Status: Status{Code: StatusError, Message: "broken pipe"},
		Links:  []Link{{TraceID: TraceID{7}, SpanID: SpanID{8}, Attributes: map[string]any{"gslb.link": "exact"}}},
		Events: []Event{{Time: at.Add(time.Millisecond), Name: "retry", Attributes: map[string]any{"n": int64(2)}}, {Time: at, Name: ""}},
	}
}

func TestEncodeAgreesWithOfficial(t *testing.T) {
	s := fullSpan()
	attrs := map[string]any{AttrServiceName: "gslbd", AttrServiceInstance: "ns1"}
	got := official(t, appendRequest(nil, appendResource(nil, attrs), "v1", appendSpan(nil, &s)))
	want := &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: officialAttrs(attrs)},
		ScopeSpans: []*tracepb.ScopeSpans{{
			Scope:     &commonpb.InstrumentationScope{Name: "github.com/meridian-gslb/meridian/tracing", Version: "v1"},
			SchemaUrl: SchemaURL,
			Spans: []*tracepb.Span{{
				TraceId: s.TraceID[:], SpanId: s.SpanID[:], ParentSpanId: s.ParentID[:],
				Name: s.Name, Kind: tracepb.Span_SPAN_KIND_SERVER, Flags: 0x101,
				StartTimeUnixNano: uint64(s.Start.UnixNano()), EndTimeUnixNano: uint64(s.End.UnixNano()),
				Attributes: officialAttrs(s.Attributes),
				Status:     &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "broken pipe"},
				Links: []*tracepb.Span_Link{{
					TraceId: s.Links[0].TraceID[:], SpanId: s.Links[0].SpanID[:], Attributes: officialAttrs(s.Links[0].Attributes),
				}},
				Events: []*tracepb.Span_Event{
					{TimeUnixNano: uint64(s.Events[0].Time.UnixNano()), Name: "retry", Attributes: officialAttrs(s.Events[0].Attributes)},
					{TimeUnixNano: uint64(s.Events[1].Time.UnixNano())},
				},
			}},
		}},
	}}}
	if d := cmp.Diff(want, got, protocmp.Transform(), anyOrder); d != "" {
		t.Errorf("request differs (-want +got):\n%s", d)
	}
}

// The helpers for single types write what appendAny writes.
func TestAttrHelpers(t *testing.T) {
	for _, tc := range []struct {
		name string
		got  []byte
		want any
	}{
		{"string", attrString(nil, spanAttributes, "k", "v"), "v"},
		{"octets as a string", attrString(nil, spanAttributes, "k", []byte("v")), "v"},
		{"int", attrInt(nil, spanAttributes, "k", -5), int64(-5)},
		{"bool", attrBool(nil, spanAttributes, "k", true), true},
		{"double", attrDouble(nil, spanAttributes, "k", -0.5), -0.5},
		{"strings", attrStrings(nil, spanAttributes, "k", []string{"", "b", strings.Repeat("c", 300)}), []string{"", "b", strings.Repeat("c", 300)}},
		{"int of Go", appendAttrs(nil, spanAttributes, map[string]any{"k": 7}), int64(7)},
		{"strings of Go", appendAttrs(nil, spanAttributes, map[string]any{"k": []string{"a"}}), []any{"a"}},
		{"another type", appendAttrs(nil, spanAttributes, map[string]any{"k": time.Second}), "1s"},
	} {
		if want := appendAttrs(nil, spanAttributes, map[string]any{"k": tc.want}); string(tc.got) != string(want) {
			t.Errorf("%s: %x, want %x", tc.name, tc.got, want)
		}
	}
}

// What is encoded decodes to itself, and survives JSON.
func TestSpanRoundTrip(t *testing.T) {
	want := fullSpan()
	m := NewMemory(1, 1<<20)
	m.Add(want)
	got := m.Trace(want.TraceID)
	if len(got) != 1 {
		t.Fatalf("%d spans, want 1", len(got))
	}
	want.Resource = map[string]any{AttrServiceName: "gfe"}
	if d := cmp.Diff(want, got[0]); d != "" {
		t.Errorf("span differs (-want +got):\n%s", d)
	}
	b, err := json.Marshal(got[0])
	if err != nil {
		t.Fatal(err)
	}
	var again Span
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatalf("%v in %.300s", err, b)
	}
	again.Attributes, want.Attributes = nil, nil // numbers lose their type
	for i := range want.Links {
		again.Links[i].Attributes, want.Links[i].Attributes = nil, nil
	}
	for i := range want.Events {
		again.Events[i].Attributes, want.Events[i].Attributes = nil, nil
	}
	if d := cmp.Diff(want, again); d != "" {
		t.Errorf("span after JSON differs (-want +got):\n%s", d)
	}
}

func TestDecodeSpanRefuses(t *testing.T) {
	ids := appendBytes(appendBytes(nil, spanTraceID, make([]byte, 15)), spanSpanID, []byte("12345678"))
	good := slices.Clip(appendBytes(appendBytes(nil, spanTraceID, []byte("0123456789abcdef")), spanSpanID, []byte("12345678")))
	deep := appendBytes(nil, anyString, "x")
	for range maxDepth + 1 {
		deep = appendBytes(nil, anyArray, appendBytes(nil, listItems, deep))
	}
	for _, tc := range []struct {
		name string
		span []byte
		want string // in the error; "": none
	}{
		{"good", good, ""},
		{"unknown fields", appendVarint(good, 99, 1), ""},
		{"known field of another type", appendVarint(good, spanName, 1), ""},
		{"empty parent", appendBytes(good, spanParentID, ""), ""},
		{"empty", nil, "trace_id: want 16 octets"},
		{"short trace id", ids, "trace_id of 15 octets: want 16"},
		{"zero trace id", appendBytes(good, spanTraceID, make([]byte, 16)), "trace_id: want 16 octets that are not all zero"},
		{"zero span id", appendBytes(good, spanSpanID, make([]byte, 8)), "span_id: want 8 octets that are not all zero"},
		{"long parent", appendBytes(good, spanParentID, "123456789"), "parent_span_id of 9 octets: want 8"},
		{"short link", appendBytes(good, spanLinks, appendBytes(nil, linkTraceID, "1")), "link trace_id of 1 octets"},
		{"cut off", good[:len(good)-1], "not a protobuf message"},
		{"no tag", []byte{0xff}, "not a protobuf message"},
		{"deep", appendBytes(good, spanAttributes, appendBytes(appendBytes(nil, keyValueKey, "k"), keyValueValue, deep)), "nested more than 16 deep"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := decodeSpan(tc.span)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("decodeSpan: %v, want %q", err, tc.want)
			}
		})
	}
}

// What JSON cannot hold does not come out of the decoder.
func TestDecodedIsJSON(t *testing.T) {
	s := Span{TraceID: TraceID{1}, SpanID: SpanID{1}, Name: "a\xffb", Kind: 200,
		Attributes: map[string]any{"nan": math.NaN(), "inf": math.Inf(-1), "bad\xfe": "\xff"}}
	b := appendSpan(nil, &s)
	var got Span
	if err := walkSpans(b, func(b []byte) (err error) { got, err = decodeSpan(b); return err }); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"nan": "NaN", "inf": "-Inf", "bad\uFFFD": "\uFFFD"}
	if !reflect.DeepEqual(got.Attributes, want) || got.Name != "a\uFFFDb" {
		t.Errorf("decoded %q %v, want %q %v", got.Name, got.Attributes, "a\uFFFDb", want)
	}
	if _, err := json.Marshal(got); err != nil {
		t.Error(err)
	}
}

func TestDecodePartial(t *testing.T) {
	b, err := proto.Marshal(&coltracepb.ExportTraceServiceResponse{
		PartialSuccess: &coltracepb.ExportTracePartialSuccess{RejectedSpans: 3, ErrorMessage: "quota"}})
	if err != nil {
		t.Fatal(err)
	}
	if n, m, err := decodePartial(b); n != 3 || m != "quota" || err != nil {
		t.Errorf("decodePartial: %d, %q, %v, want 3, quota", n, m, err)
	}
	if n, _, err := decodePartial(nil); n != 0 || err != nil {
		t.Errorf("decodePartial of nothing: %d, %v, want 0", n, err)
	}
}

// Whatever the generated code reads, ours reads alike.
func FuzzDecode(f *testing.F) {
	s := fullSpan()
	s.Attributes["long"] = "short"
	f.Add(appendRequest(nil, appendResource(nil, map[string]any{AttrServiceName: "gslbd"}), "v1", appendSpan(nil, &s)))
	f.Add(appendBytes(nil, requestResourceSpans, appendBytes(nil, resourceSpansScopeSpans, appendBytes(nil, scopeSpansSpans, ""))))
	f.Add([]byte{0x0a, 0x02, 0x12, 0x00})
	f.Add(protowire.AppendTag(nil, 5, protowire.StartGroupType))
	f.Fuzz(func(t *testing.T, b []byte) {
		checkRequest(b) // of anything, without a panic
		var req coltracepb.ExportTraceServiceRequest
		if (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, &req) != nil {
			return // ours may be more liberal, of UTF-8 for instance
		}
		// The generated code merges what stands twice; its own output has it once.
		canonical, err := proto.Marshal(&req)
		if err != nil {
			return
		}
		i := 0
		var spans []*tracepb.Span
		var origins []*resourcepb.Resource
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					spans, origins = append(spans, s), append(origins, rs.Resource)
				}
			}
		}
		var resource []byte
		walkSpan := func(span []byte) error {
			want := spans[i]
			attrs, err := decodeResource(resource)
			if err == nil && len(attrs) > len(origins[i].GetAttributes()) {
				t.Errorf("span %d: %d resource attributes, want at most %d", i, len(attrs), len(origins[i].GetAttributes()))
			}
			i++
			got, err := decodeSpan(span)
			if err != nil {
				return nil
			}
			if string(got.TraceID[:]) != string(want.TraceId) || string(got.SpanID[:]) != string(want.SpanId) ||
				got.Name != want.Name || len(got.Events) != len(want.Events) || len(got.Links) != len(want.Links) ||
				got.Status.Message != want.GetStatus().GetMessage() || !got.Start.Equal(unixNano(want.StartTimeUnixNano)) {
				t.Errorf("span %d: %+v, want %v", i-1, got, want)
			}
			for _, kv := range want.Attributes {
				if _, ok := got.Attributes[kv.Key]; !ok {
					t.Errorf("span %d: no attribute %q", i-1, kv.Key)
				}
			}
			return nil
		}
		walkRequest(canonical, func(of []byte) (func([]byte) error, error) {
			resource = of
			return walkSpan, nil
		})
		if i != len(spans) {
			t.Errorf("%d spans, want %d", i, len(spans))
		}
	})
}
