package tracing

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// This file is OTLP on the wire (opentelemetry-proto 1.11): an encoder that appends to one
// buffer without reflection or intermediate objects, and the decoder of what the node keeps
// and receives. Fields are named message and field, with the numbers of the .proto files.
const (
	requestResourceSpans = 1 // collector.trace.v1.ExportTraceServiceRequest

	responsePartialSuccess = 1 // collector.trace.v1.ExportTraceServiceResponse
	partialRejectedSpans   = 1
	partialErrorMessage    = 2

	resourceSpansResource   = 1 // trace.v1.ResourceSpans
	resourceSpansScopeSpans = 2
	resourceAttributes      = 1 // resource.v1.Resource

	scopeSpansScope     = 1 // trace.v1.ScopeSpans
	scopeSpansSpans     = 2
	scopeSpansSchemaURL = 3
	scopeName           = 1 // common.v1.InstrumentationScope
	scopeVersion        = 2

	spanTraceID    = 1 // trace.v1.Span
	spanSpanID     = 2
	spanParentID   = 4
	spanName       = 5
	spanKind       = 6
	spanStart      = 7
	spanEnd        = 8
	spanAttributes = 9
	spanEvents     = 11
	spanLinks      = 13
	spanStatus     = 15
	spanFlags      = 16

	statusMessage = 2
	statusCode    = 3

	eventTime       = 1
	eventName       = 2
	eventAttributes = 3

	linkTraceID    = 1
	linkSpanID     = 2
	linkAttributes = 4

	keyValueKey   = 1 // common.v1.KeyValue
	keyValueValue = 2

	anyString = 1 // common.v1.AnyValue
	anyBool   = 2
	anyInt    = 3
	anyDouble = 4
	anyArray  = 5
	anyList   = 6
	anyBytes  = 7
	listItems = 1 // common.v1.ArrayValue and KeyValueList
)

// flagsSampled are the flags of every span of ours: sampled, and known to have no parent from
// another process (SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK without IS_REMOTE).
const flagsSampled = 0x101

// flagsRemote are those of a span whose parent is of another process, which adds IS_REMOTE.
const flagsRemote = 0x301

// open starts a nested message and returns the mark that shut needs. One octet is set aside
// for its length.
func open(b []byte, field protowire.Number) ([]byte, int) {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = append(b, 0)
	return b, len(b)
}

// shut ends the nested message that began at mark: it writes the length, and moves the message
// along if that takes more than the one octet set aside.
func shut(b []byte, mark int) []byte {
	n := len(b) - mark
	if more := protowire.SizeVarint(uint64(n)) - 1; more > 0 {
		b = append(b, make([]byte, more)...)
		copy(b[mark+more:], b[mark:mark+n])
	}
	binary.PutUvarint(b[mark-1:], uint64(n))
	return b
}

func appendBytes[S ~string | ~[]byte](b []byte, field protowire.Number, v S) []byte {
	if field < oneOctet>>3 && len(v) < oneOctet {
		return append(append(b, octetTag(field, protowire.BytesType), byte(len(v))), v...)
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

func appendFixed64(b []byte, field protowire.Number, v uint64) []byte {
	b = protowire.AppendTag(b, field, protowire.Fixed64Type)
	return protowire.AppendFixed64(b, v)
}

// oneOctet bounds the varints that take one octet. Nearly all lengths and tags do, and are
// written as they are: encoding is most of what a sampled query costs.
const oneOctet = 1 << 7

// octetTag is the tag of a field below 16.
func octetTag(field protowire.Number, t protowire.Type) byte { return byte(field)<<3 | byte(t) }

// shortAttr appends an attribute up to its AnyValue, of which n octets follow, if both
// lengths take one octet; false if not, and then b is as it was.
func shortAttr(b []byte, field protowire.Number, key string, n int) ([]byte, bool) {
	const tagAndLen = 2
	pair := tagAndLen + len(key) + tagAndLen + n
	if pair >= oneOctet {
		return b, false
	}
	b = append(b, octetTag(field, protowire.BytesType), byte(pair), octetTag(keyValueKey, protowire.BytesType), byte(len(key)))
	b = append(b, key...)
	return append(b, octetTag(keyValueValue, protowire.BytesType), byte(n)), true
}

// openAttr starts the KeyValue of an attribute in field and in it the AnyValue; shutAttr ends
// both. They must pair.
func openAttr(b []byte, field protowire.Number, key string) (_ []byte, pair, value int) {
	b, pair = open(b, field)
	b = appendBytes(b, keyValueKey, key)
	b, value = open(b, keyValueValue)
	return b, pair, value
}

func shutAttr(b []byte, pair, value int) []byte { return shut(shut(b, value), pair) }

func attrString[S ~string | ~[]byte](b []byte, field protowire.Number, key string, v S) []byte {
	if b, ok := shortAttr(b, field, key, 2+len(v)); ok {
		return append(append(b, octetTag(anyString, protowire.BytesType), byte(len(v))), v...)
	}
	b, pair, value := openAttr(b, field, key)
	b = appendBytes(b, anyString, v)
	return shutAttr(b, pair, value)
}

func attrInt(b []byte, field protowire.Number, key string, v int64) []byte {
	if v >= 0 && v < oneOctet {
		if b, ok := shortAttr(b, field, key, 2); ok {
			return append(b, octetTag(anyInt, protowire.VarintType), byte(v))
		}
	}
	b, pair, value := openAttr(b, field, key)
	b = appendVarint(b, anyInt, uint64(v))
	return shutAttr(b, pair, value)
}

func attrBool(b []byte, field protowire.Number, key string, v bool) []byte {
	if b, ok := shortAttr(b, field, key, 2); ok {
		return append(b, octetTag(anyBool, protowire.VarintType), byte(protowire.EncodeBool(v)))
	}
	b, pair, value := openAttr(b, field, key)
	b = appendVarint(b, anyBool, protowire.EncodeBool(v))
	return shutAttr(b, pair, value)
}

func attrDouble(b []byte, field protowire.Number, key string, v float64) []byte {
	b, pair, value := openAttr(b, field, key)
	b = appendFixed64(b, anyDouble, math.Float64bits(v))
	return shutAttr(b, pair, value)
}

func attrStrings(b []byte, field protowire.Number, key string, v []string) []byte {
	b, pair, value := openAttr(b, field, key)
	b, array := open(b, anyArray)
	for _, s := range v {
		b = appendItem(b, s)
	}
	b = shut(b, array)
	return shutAttr(b, pair, value)
}

// appendItem appends a string as an item of an ArrayValue.
func appendItem[S ~string | ~[]byte](b []byte, v S) []byte {
	b, item := open(b, listItems)
	b = appendBytes(b, anyString, v)
	return shut(b, item)
}

// appendAttrs appends the attributes in the order of their keys.
func appendAttrs(b []byte, field protowire.Number, attrs map[string]any) []byte {
	for _, key := range slices.Sorted(maps.Keys(attrs)) {
		var pair, value int
		b, pair, value = openAttr(b, field, key)
		b = appendAny(b, attrs[key])
		b = shutAttr(b, pair, value)
	}
	return b
}

// appendAny appends the content of an AnyValue. A value of a type that OTLP does not have is
// sent as its text; nil is the empty value.
func appendAny(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return b
	case string:
		return appendBytes(b, anyString, v)
	case bool:
		return appendVarint(b, anyBool, protowire.EncodeBool(v))
	case int:
		return appendVarint(b, anyInt, uint64(v))
	case int64:
		return appendVarint(b, anyInt, uint64(v))
	case float64:
		return appendFixed64(b, anyDouble, math.Float64bits(v))
	case []byte:
		return appendBytes(b, anyBytes, v)
	case []string:
		return appendArray(b, v)
	case []any:
		return appendArray(b, v)
	case map[string]any:
		b, list := open(b, anyList)
		b = appendAttrs(b, listItems, v)
		return shut(b, list)
	}
	return appendBytes(b, anyString, fmt.Sprint(v))
}

func appendArray[T any](b []byte, items []T) []byte {
	b, array := open(b, anyArray)
	for _, v := range items {
		var item int
		b, item = open(b, listItems)
		b = appendAny(b, v)
		b = shut(b, item)
	}
	return shut(b, array)
}

// openSpan starts a span in ScopeSpans; its mark is for shut. Times are ns since 1970; a zero
// parent is left out.
func openSpan(b []byte, trace TraceID, id, parent SpanID, name string, kind Kind, start, end int64, flags uint32) ([]byte, int) {
	b, mark := open(b, scopeSpansSpans)
	b = appendBytes(b, spanTraceID, trace[:])
	b = appendBytes(b, spanSpanID, id[:])
	if !parent.IsZero() {
		b = appendBytes(b, spanParentID, parent[:])
	}
	b = appendBytes(b, spanName, name)
	b = appendVarint(b, spanKind, uint64(kind))
	b = appendFixed64(b, spanStart, uint64(start))
	b = appendFixed64(b, spanEnd, uint64(end))
	b = protowire.AppendTag(b, spanFlags, protowire.Fixed32Type)
	return protowire.AppendFixed32(b, flags), mark
}

func appendStatus(b []byte, code StatusCode, message string) []byte {
	b, mark := open(b, spanStatus)
	if message != "" {
		b = appendBytes(b, statusMessage, message)
	}
	b = appendVarint(b, statusCode, uint64(code))
	return shut(b, mark)
}

// appendSpan appends s as a field of ScopeSpans, without its resource.
func appendSpan(b []byte, s *Span) []byte {
	b, mark := openSpan(b, s.TraceID, s.SpanID, s.ParentID, s.Name, s.Kind, s.Start.UnixNano(), s.End.UnixNano(), flagsSampled)
	b = appendAttrs(b, spanAttributes, s.Attributes)
	for _, e := range s.Events {
		var m int
		b, m = open(b, spanEvents)
		b = appendFixed64(b, eventTime, uint64(e.Time.UnixNano()))
		b = appendBytes(b, eventName, e.Name)
		b = appendAttrs(b, eventAttributes, e.Attributes)
		b = shut(b, m)
	}
	for i := range s.Links {
		b = appendLink(b, &s.Links[i])
	}
	if s.Status != (Status{}) {
		b = appendStatus(b, s.Status.Code, s.Status.Message)
	}
	return shut(b, mark)
}

// appendLink appends l as a field of Span.
func appendLink(b []byte, l *Link) []byte {
	b, mark := open(b, spanLinks)
	b = appendBytes(b, linkTraceID, l.TraceID[:])
	b = appendBytes(b, linkSpanID, l.SpanID[:])
	b = appendAttrs(b, linkAttributes, l.Attributes)
	return shut(b, mark)
}

// appendResource appends the content of a Resource.
func appendResource(b []byte, attrs map[string]any) []byte {
	return appendAttrs(b, resourceAttributes, attrs)
}

// appendRequest appends an ExportTraceServiceRequest of one resource (its content) and spans
// (as fields of ScopeSpans).
func appendRequest(b []byte, resource []byte, version string, spans []byte) []byte {
	return append(appendHead(b, resource, version, len(spans)), spans...)
}

// appendHead appends what an ExportTraceServiceRequest has before its spans, of which n octets
// follow.
func appendHead(b []byte, resource []byte, version string, n int) []byte {
	origin := appendBytes(nil, resourceSpansResource, resource)
	scope := appendBytes(nil, scopeName, "github.com/meridian-gslb/meridian/tracing")
	if version != "" {
		scope = appendBytes(scope, scopeVersion, version)
	}
	scoped := appendBytes(nil, scopeSpansScope, scope)
	scoped = appendBytes(scoped, scopeSpansSchemaURL, SchemaURL)
	inner := len(scoped) + n

	b = protowire.AppendTag(b, requestResourceSpans, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(origin)+protowire.SizeTag(resourceSpansScopeSpans)+protowire.SizeBytes(inner)))
	b = append(b, origin...)
	b = protowire.AppendTag(b, resourceSpansScopeSpans, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(inner))
	return append(b, scoped...)
}

// ExportRequest returns spans as an ExportTraceServiceRequest, each with its Resource, in which
// service.name is its Service: what a Receiver takes as application/x-protobuf.
func ExportRequest(spans ...Span) []byte {
	var b []byte
	for i := range spans {
		attrs := maps.Clone(spans[i].Resource)
		if attrs == nil {
			attrs = make(map[string]any)
		}
		attrs[AttrServiceName] = spans[i].Service
		b = appendRequest(b, appendResource(nil, attrs), "", appendSpan(nil, &spans[i]))
	}
	return b
}

// field is one field of a message: Value of a varint or fixed field, Bytes of one with a
// length.
type field struct {
	Num   protowire.Number
	Type  protowire.Type
	Value uint64
	Bytes []byte // part of the message
}

var errWire = errors.New("not a protobuf message")

// fields calls f with each field of message b, in order; groups are skipped, as OTLP has none.
func fields(b []byte, f func(field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", errWire, protowire.ParseError(n))
		}
		b = b[n:]
		fd := field{Num: num, Type: typ}
		switch typ {
		case protowire.VarintType:
			fd.Value, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(b)
			fd.Value = uint64(v)
		case protowire.Fixed64Type:
			fd.Value, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			fd.Bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return fmt.Errorf("%w: field %d: %w", errWire, num, protowire.ParseError(n))
		}
		b = b[n:]
		if typ == protowire.StartGroupType || typ == protowire.EndGroupType {
			continue
		}
		if err := f(fd); err != nil {
			return err
		}
	}
	return nil
}

// walkRequest calls of with the content of each Resource of an ExportTraceServiceRequest, and
// what that returned with every span of that resource, as the content of a Span. Both are parts
// of request. It checks the framing only.
func walkRequest(request []byte, of func(resource []byte) (func(span []byte) error, error)) error {
	at := 0
	return fields(request, func(fd field) error {
		if fd.Num != requestResourceSpans || fd.Type != protowire.BytesType {
			return nil
		}
		if err := walkResourceSpans(fd.Bytes, of); err != nil {
			return fmt.Errorf("resource_spans[%d]: %w", at, err)
		}
		at++
		return nil
	})
}

func walkResourceSpans(b []byte, of func(resource []byte) (func(span []byte) error, error)) error {
	var resource []byte // may stand behind the spans
	err := fields(b, func(fd field) error {
		if fd.Num == resourceSpansResource && fd.Type == protowire.BytesType {
			resource = fd.Bytes
		}
		return nil
	})
	if err != nil {
		return err
	}
	f, err := of(resource)
	if err != nil {
		return err
	}
	scope := 0
	return fields(b, func(fd field) error {
		if fd.Num != resourceSpansScopeSpans || fd.Type != protowire.BytesType {
			return nil
		}
		if err := walkSpans(fd.Bytes, f); err != nil {
			return fmt.Errorf("scope_spans[%d]: %w", scope, err)
		}
		scope++
		return nil
	})
}

// walkSpans calls f with the content of every span of a ScopeSpans.
func walkSpans(b []byte, f func(span []byte) error) error {
	at := 0
	return fields(b, func(fd field) error {
		if fd.Num != scopeSpansSpans || fd.Type != protowire.BytesType {
			return nil
		}
		if err := f(fd.Bytes); err != nil {
			return fmt.Errorf("spans[%d]: %w", at, err)
		}
		at++
		return nil
	})
}

// decodeSpan reads the content of a Span. A trace id that is not 16 octets or a span id that is
// not 8, or either all zero, is an error; what it does not know it skips.
func decodeSpan(b []byte) (Span, error) {
	var s Span
	var start, end uint64
	err := fields(b, func(fd field) error {
		switch (wire{fd.Num, fd.Type}) {
		case wire{spanTraceID, protowire.BytesType}:
			return decodeID(s.TraceID[:], fd.Bytes, "trace_id")
		case wire{spanSpanID, protowire.BytesType}:
			return decodeID(s.SpanID[:], fd.Bytes, "span_id")
		case wire{spanParentID, protowire.BytesType}:
			if len(fd.Bytes) == 0 {
				return nil
			}
			return decodeID(s.ParentID[:], fd.Bytes, "parent_span_id")
		case wire{spanName, protowire.BytesType}:
			s.Name = text(fd.Bytes)
		case wire{spanKind, protowire.VarintType}:
			s.Kind = Kind(min(fd.Value, 255))
		case wire{spanStart, protowire.Fixed64Type}:
			start = fd.Value
		case wire{spanEnd, protowire.Fixed64Type}:
			end = fd.Value
		case wire{spanAttributes, protowire.BytesType}:
			return decodeAttr(&s.Attributes, fd.Bytes, maxDepth)
		case wire{spanEvents, protowire.BytesType}:
			e, err := decodeEvent(fd.Bytes)
			s.Events = append(s.Events, e)
			return err
		case wire{spanLinks, protowire.BytesType}:
			l, err := decodeLink(fd.Bytes)
			s.Links = append(s.Links, l)
			return err
		case wire{spanStatus, protowire.BytesType}:
			return decodeStatus(&s.Status, fd.Bytes)
		}
		return nil
	})
	switch {
	case err != nil:
		return s, err
	case s.TraceID.IsZero():
		return s, errors.New("trace_id: want 16 octets that are not all zero")
	case s.SpanID.IsZero():
		return s, errors.New("span_id: want 8 octets that are not all zero")
	}
	s.Start, s.End = unixNano(start), unixNano(end)
	return s, nil
}

// wire is a field and its type on the wire: a known field of another type is skipped like an
// unknown one.
type wire struct {
	num protowire.Number
	typ protowire.Type
}

// maxDepth bounds attribute values nested in one another.
const maxDepth = 16

func decodeID(dst, v []byte, name string) error {
	if len(v) != len(dst) {
		return fmt.Errorf("%s of %d octets: want %d", name, len(v), len(dst))
	}
	copy(dst, v)
	return nil
}

func decodeEvent(b []byte) (Event, error) {
	var e Event
	var at uint64
	err := fields(b, func(fd field) error {
		switch (wire{fd.Num, fd.Type}) {
		case wire{eventTime, protowire.Fixed64Type}:
			at = fd.Value
		case wire{eventName, protowire.BytesType}:
			e.Name = text(fd.Bytes)
		case wire{eventAttributes, protowire.BytesType}:
			return decodeAttr(&e.Attributes, fd.Bytes, maxDepth)
		}
		return nil
	})
	e.Time = unixNano(at)
	return e, err
}

func decodeLink(b []byte) (Link, error) {
	var l Link
	err := fields(b, func(fd field) error {
		switch (wire{fd.Num, fd.Type}) {
		case wire{linkTraceID, protowire.BytesType}:
			return decodeID(l.TraceID[:], fd.Bytes, "link trace_id")
		case wire{linkSpanID, protowire.BytesType}:
			return decodeID(l.SpanID[:], fd.Bytes, "link span_id")
		case wire{linkAttributes, protowire.BytesType}:
			return decodeAttr(&l.Attributes, fd.Bytes, maxDepth)
		}
		return nil
	})
	return l, err
}

func decodeStatus(s *Status, b []byte) error {
	return fields(b, func(fd field) error {
		switch (wire{fd.Num, fd.Type}) {
		case wire{statusMessage, protowire.BytesType}:
			s.Message = text(fd.Bytes)
		case wire{statusCode, protowire.VarintType}:
			s.Code = StatusCode(min(fd.Value, 255))
		}
		return nil
	})
}

// decodeResource reads the content of a Resource.
func decodeResource(b []byte) (map[string]any, error) {
	var attrs map[string]any
	err := fields(b, func(fd field) error {
		if fd.Num == resourceAttributes && fd.Type == protowire.BytesType {
			return decodeAttr(&attrs, fd.Bytes, maxDepth)
		}
		return nil
	})
	return attrs, err
}

// decodeAttr reads the content of a KeyValue into attrs, which it makes when needed.
func decodeAttr(attrs *map[string]any, b []byte, depth int) error {
	var key string
	var value any
	err := fields(b, func(fd field) (err error) {
		switch (wire{fd.Num, fd.Type}) {
		case wire{keyValueKey, protowire.BytesType}:
			key = text(fd.Bytes)
		case wire{keyValueValue, protowire.BytesType}:
			value, err = decodeAny(fd.Bytes, depth)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("attribute %q: %w", key, err)
	}
	if *attrs == nil {
		*attrs = make(map[string]any)
	}
	(*attrs)[key] = value
	return nil
}

// decodeAny reads the content of an AnyValue; the empty one is nil.
func decodeAny(b []byte, depth int) (v any, err error) {
	if depth == 0 {
		return nil, fmt.Errorf("a value nested more than %d deep", maxDepth)
	}
	err = fields(b, func(fd field) error {
		switch (wire{fd.Num, fd.Type}) {
		case wire{anyString, protowire.BytesType}:
			v = text(fd.Bytes)
		case wire{anyBool, protowire.VarintType}:
			v = protowire.DecodeBool(fd.Value)
		case wire{anyInt, protowire.VarintType}:
			v = int64(fd.Value)
		case wire{anyDouble, protowire.Fixed64Type}:
			v = number(math.Float64frombits(fd.Value))
		case wire{anyBytes, protowire.BytesType}:
			v = bytes.Clone(fd.Bytes)
		case wire{anyArray, protowire.BytesType}:
			items := []any{}
			err := fields(fd.Bytes, func(fd field) error {
				if fd.Num != listItems || fd.Type != protowire.BytesType {
					return nil
				}
				item, err := decodeAny(fd.Bytes, depth-1)
				items = append(items, item)
				return err
			})
			v = items
			return err
		case wire{anyList, protowire.BytesType}:
			list := map[string]any{}
			err := fields(fd.Bytes, func(fd field) error {
				if fd.Num != listItems || fd.Type != protowire.BytesType {
					return nil
				}
				return decodeAttr(&list, fd.Bytes, depth-1)
			})
			v = list
			return err
		}
		return nil
	})
	return v, err
}

// decodePartial reads an ExportTraceServiceResponse: how many spans the collector says that it
// rejected, and why.
func decodePartial(b []byte) (rejected int64, message string, err error) {
	err = fields(b, func(fd field) error {
		if fd.Num != responsePartialSuccess || fd.Type != protowire.BytesType {
			return nil
		}
		return fields(fd.Bytes, func(fd field) error {
			switch (wire{fd.Num, fd.Type}) {
			case wire{partialRejectedSpans, protowire.VarintType}:
				rejected = int64(fd.Value)
			case wire{partialErrorMessage, protowire.BytesType}:
				message = text(fd.Bytes)
			}
			return nil
		})
	})
	return rejected, message, err
}

// number is f, or its text if it is one of those that JSON does not have.
func number(f float64) any {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return fmt.Sprint(f)
	}
	return f
}

// text is v as a string of valid UTF-8, which JSON and terminals want.
func text(v []byte) string { return strings.ToValidUTF8(string(v), "\uFFFD") }

// unixNano is the time of an OTLP timestamp; those past the year 2262 are cut off there.
func unixNano(v uint64) time.Time { return time.Unix(0, int64(min(v, math.MaxInt64))).UTC() }
