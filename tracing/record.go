// Package tracing follows a query from its arrival to the answer, and the HTTP request that
// it leads to, without ever blocking the path: a worker writes a fixed-size record into its
// own single-producer ring; one goroutine drains the rings, samples, encodes OTLP and
// exports over its own connection. A full ring or a slow collector drops and counts.
//
// tracing is a leaf: it imports nothing of Meridian's, is fed with plain facts and alone
// knows OpenTelemetry on the hot side.
package tracing

// Query is the record of one answered query. It holds no pointer, so that a ring of them is
// nothing to the garbage collector.
type Query struct {
	Start    int64  // wall clock, ns since 1970, when the batch that held the query was read
	Parsed   uint32 // ns after Start when the question was understood
	Decided  uint32 // ns after Start when the decision was there; 0: not a steered service
	End      uint32 // ns after Start when the answer was written
	Revision uint64 // of the snapshot that decided
	Service  int32  // index of the service in that snapshot; -1: none
	Pool     int32  // index of the pool in that snapshot; -1: none
	Outcome  uint32 // gslb.Decision.Outcome
	Reason   uint8  // gslb.Reason
	Rcode    uint8
	Qtype    uint16
	TTL      uint32   // seconds
	Client   [16]byte // address as netip.Addr.As16
	Source   uint8    // source prefix length of ECS, or all bits
	Scope    uint8
	HasECS   bool
	TCP      bool
	V6       bool     // Client is IPv6
	Resolver [16]byte // the address that asked
	Answers  uint8    // RRs in the answer section
	NameLen  uint8
	Name     [255]byte // qname in wire form, as asked
}
