package tracing

import (
	"encoding/hex"
	"fmt"
	"time"
)

// TraceID identifies a trace. Its text is 32 hex digits. The zero TraceID is invalid.
type TraceID [16]byte

// SpanID identifies a span in a trace. Its text is 16 hex digits. The zero SpanID stands for
// no span.
type SpanID [8]byte

// ParseTraceID reads 32 hex digits.
func ParseTraceID(s string) (TraceID, error) {
	var id TraceID
	err := id.UnmarshalText([]byte(s))
	return id, err
}

func (id TraceID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is the invalid TraceID.
func (id TraceID) IsZero() bool { return id == TraceID{} }

// MarshalText returns 32 hex digits.
func (id TraceID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText reads 32 hex digits that are not all zero.
func (id *TraceID) UnmarshalText(text []byte) error {
	if err := unhex(id[:], text, "trace id"); err != nil {
		return err
	}
	if id.IsZero() {
		return fmt.Errorf("trace id %q: want one that is not all zero", text)
	}
	return nil
}

func (id SpanID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id stands for no span.
func (id SpanID) IsZero() bool { return id == SpanID{} }

// MarshalText returns 16 hex digits.
func (id SpanID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText reads 16 hex digits.
func (id *SpanID) UnmarshalText(text []byte) error { return unhex(id[:], text, "span id") }

func unhex(dst, text []byte, what string) error {
	if len(text) != 2*len(dst) {
		return fmt.Errorf("%s %q: want %d hex digits", what, text, 2*len(dst))
	}
	if _, err := hex.Decode(dst, text); err != nil {
		return fmt.Errorf("%s %q: want %d hex digits", what, text, 2*len(dst))
	}
	return nil
}

// Kind is the role of a span, with the numbers of opentelemetry.proto.trace.v1.Span.SpanKind.
type Kind uint8

// The kinds.
const (
	KindUnspecified Kind = iota
	KindInternal
	KindServer
	KindClient
	KindProducer
	KindConsumer
)

var kindNames = [...]string{"unspecified", "internal", "server", "client", "producer", "consumer"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return kindNames[KindUnspecified]
}

// MarshalText returns the kind's name in lower case.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a kind's name.
func (k *Kind) UnmarshalText(text []byte) error { return enum(k, text, kindNames[:], "span kind") }

// StatusCode says whether a span's work succeeded, with the numbers of
// opentelemetry.proto.trace.v1.Status.StatusCode.
type StatusCode uint8

// The status codes.
const (
	StatusUnset StatusCode = iota
	StatusOK
	StatusError
)

var statusNames = [...]string{"unset", "ok", "error"}

func (c StatusCode) String() string {
	if int(c) < len(statusNames) {
		return statusNames[c]
	}
	return statusNames[StatusUnset]
}

// MarshalText returns the code's name in lower case.
func (c StatusCode) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a code's name.
func (c *StatusCode) UnmarshalText(text []byte) error {
	return enum(c, text, statusNames[:], "status code")
}

func enum[T ~uint8](v *T, text []byte, names []string, what string) error {
	for i, name := range names {
		if string(text) == name {
			*v = T(i)
			return nil
		}
	}
	return fmt.Errorf("%s %q: want one of %q", what, text, names)
}

// Status is a span's outcome.
type Status struct {
	Code    StatusCode `json:"code"`
	Message string     `json:"message,omitempty"`
}

// Span is one finished span, for people and for JSON. Attribute values are string, bool,
// int64, float64, []byte, []any and map[string]any of the same; after a trip through JSON,
// numbers are float64 and octets are base64.
type Span struct {
	TraceID    TraceID        `json:"traceId"`
	SpanID     SpanID         `json:"spanId"`
	ParentID   SpanID         `json:"parentId,omitzero"` // zero: a root
	Name       string         `json:"name"`
	Kind       Kind           `json:"kind"`
	Service    string         `json:"service"`            // service.name of the resource
	Resource   map[string]any `json:"resource,omitempty"` // shared with other spans: not to be changed
	Start      time.Time      `json:"start"`
	End        time.Time      `json:"end"`
	Attributes map[string]any `json:"attributes,omitempty"`
	Status     Status         `json:"status,omitzero"`
	Links      []Link         `json:"links,omitempty"`
	Events     []Event        `json:"events,omitempty"`
}

// Link ties a span to one in another trace that led to it.
type Link struct {
	TraceID    TraceID        `json:"traceId"`
	SpanID     SpanID         `json:"spanId"`
	Attributes map[string]any `json:"attributes,omitempty"`
}

// Event is something that happened during a span.
type Event struct {
	Time       time.Time      `json:"time"`
	Name       string         `json:"name"`
	Attributes map[string]any `json:"attributes,omitempty"`
}
