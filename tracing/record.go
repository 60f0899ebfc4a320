// Package tracing follows a query from its arrival to the answer, and the HTTP request that
// it leads to, without ever blocking the path: a worker writes a fixed-size record into its
// own single-producer ring; one goroutine drains the rings, samples, encodes OTLP and
// exports over its own connection. A full ring or a slow collector drops and counts.
//
// tracing is a leaf: it imports nothing of Meridian's, is fed with plain facts and alone
// knows OpenTelemetry on the hot side.
package tracing

// maxGiven is how many of the answered IPv4 addresses a record remembers.
const maxGiven = 4

// Query is the record of one answered query. It holds no pointer, so that a ring of them is
// nothing to the garbage collector.
//
// Its order is that in which a ring keeps it, see Worker: the first 64 octets are all that the
// drain looks at in a plain record, and the first 192 all that most queries need, with names of up
// to 56 octets.
type Query struct {
	Start    int64             // wall clock, ns since 1970, when the batch that held the query was read
	Decision AnswerID          // that the answered addresses carry, or that stands for them; 0: none
	Client   [16]byte          // address as netip.Addr.As16
	Given    [maxGiven][4]byte // the first of the IPv4 addresses answered, only with Decision
	TTL      uint32            // seconds
	Source   uint8             // source prefix length of ECS, or all bits
	GivenLen uint8             // of Given
	HasECS   bool
	V6       bool  // Client is IPv6
	Plain    bool  // neither drawn nor notable: it becomes no spans, and has only the fields up to Qtype
	Drawn    draw  // what the worker drew for it; Begin fills it in
	Logged   bool  // the worker drew it for the decision log; Begin fills it in
	Asked    Ask   // what the sender wants, of an EDNS TRACEPARENT option
	Reason   uint8 // gslb.Reason
	Rcode    uint8
	Qtype    uint16

	// Of a plain record what follows is zero.

	Parsed   uint32 // ns after Start when the question was understood
	Decided  uint32 // ns after Start when the decision was there; 0: not a steered service
	End      uint32 // ns after Start when the answer was written
	Service  int32  // index of the service in that snapshot; -1: none
	Pool     int32  // index of the pool in that snapshot; -1: none
	Scope    uint8
	TCP      bool
	Answers  uint8 // RRs in the answer section
	NameLen  uint8
	Revision uint64   // of the snapshot that decided
	Resolver [16]byte // the address that asked
	Server   [16]byte // the address that was asked; zero or unspecified: not known

	ResolverPort, ServerPort uint16

	Flags uint8 // gslb.Flags

	Name [255]byte // qname in wire form, as asked

	Trace  TraceID // that the query belongs to; zero: one is drawn for it
	Span   SpanID  // of the query's own span, where the sender was told; zero: one is drawn
	Parent SpanID  // the sender's span; zero: none
}

// Ask is what the sender of a query wants of tracing.
type Ask uint8

// What a sender may want.
const (
	AskNothing Ask = iota // it did not say
	AskTrace              // a span, below its own if it named one
	AskNone               // none of the plain sort: its own trace is not sampled
)
