package tracing

import (
	"math/bits"
	"sync/atomic"
	"unsafe"
)

// defaultRing is the number of records a worker's ring holds: 20 ms, the longest sleep of
// the drain, at 200,000 queries a second.
const defaultRing = 4096

// cacheLine keeps what the producer writes and what the consumer writes apart. It is twice
// the 64 octets of a line, as x86 prefetches lines in pairs.
const cacheLine = 128

// releaseEvery is how many records the consumer takes before it gives their slots back: often
// enough that a full ring has room soon, seldom enough that the shared line stays put.
const releaseEvery = 64

// The ring is written and read in memory that is not in the cache, so that its octets are what
// recording costs: side by side, they come and go as a stream. It keeps a record in three parts,
// each in an array of its own: the line, which is all of a plain record, the body, and the tail of
// those that are long.
const (
	lineSize = 64
	bodySize = 2 * lineSize
	tailSize = int(unsafe.Sizeof(Query{})) - lineSize - bodySize
)

type (
	lineOctets [lineSize]byte
	bodyOctets [bodySize]byte
	tailOctets [tailSize]byte
)

// line, body and rest are the octets of q: it holds no pointer.
func (q *Query) line() *lineOctets { return (*lineOctets)(unsafe.Pointer(q)) }
func (q *Query) body() *bodyOctets { return (*bodyOctets)(unsafe.Add(unsafe.Pointer(q), lineSize)) }
func (q *Query) rest() *tailOctets {
	return (*tailOctets)(unsafe.Add(unsafe.Pointer(q), lineSize+bodySize))
}

// long tells whether q has more than line and body hold: a long name, or the trace of its sender.
func (q *Query) long() bool {
	return int(q.NameLen) > lineSize+bodySize-int(unsafe.Offsetof(q.Name)) || q.Asked != AskNothing
}

// Worker is the ring of records of one worker of the DNS server: exactly one goroutine at a
// time calls Begin and Commit, and the recorder's drain is the only reader. It never waits,
// locks or allocates.
//
// Invariant: head <= tail <= head + len(lines), with head and tail counting records since the
// start, so that the parts of record i are at i mod len(lines).
type Worker struct {
	lines  []lineOctets // length is a power of two
	bodies []bodyOctets // as many
	tails  []tailOctets // as many
	mask   uint64

	_ [cacheLine]byte
	// Written by the producer alone.
	tail atomic.Uint64 // records committed
	full atomic.Uint64 // records dropped because the ring was full
	seen uint64        // head, when the producer last looked; never ahead of it
	open bool          // between Begin and Commit
	next Query         // what Begin returns
	wire []packets     // as many, of records that the decision log wants; nil: there is none
	ahead

	_ [cacheLine]byte
	// Written by the consumer alone.
	head  atomic.Uint64 // records drained
	taken Query         // what is drained

	_ [cacheLine]byte
}

// newWorker returns a ring of at least size records, rounded up to a power of two.
func newWorker(size int) *Worker {
	n := 1 << bits.Len(uint(max(size, 2)-1))
	return &Worker{lines: make([]lineOctets, n), bodies: make([]bodyOctets, n), tails: make([]tailOctets, n), mask: uint64(n - 1)}
}

// Begin returns the next record, of a query that Draw drew or did not, to be filled in and handed over with Commit.
// All fields are zero but Name and Given, of which what is past NameLen and
// GivenLen means nothing. Trace, Span and Parent go with an Asked that is not AskNothing, and a Plain record has none of what
// comes after it. It returns nil if the
// ring is full: the record is dropped and counted. A second Begin without a Commit starts the
// same record over.
func (w *Worker) Begin(queryDrawn bool) *Query {
	tail := w.tail.Load()
	if tail-w.seen > w.mask {
		w.seen = w.head.Load()
		if tail-w.seen > w.mask {
			w.full.Store(w.full.Load() + 1) // the producer is the only writer: no read-modify-write is needed
			return nil
		}
	}
	w.open = true
	q := &w.next
	if !q.Plain { // of the record before: a plain one has nothing else
		q.resetBody()
	}
	q.resetLine()
	q.Drawn = notDrawn
	if queryDrawn {
		if w.ahead.traced {
			q.Drawn = drawn
		}
		if q.Logged = w.ahead.logged; q.Logged {
			w.wire[tail&w.mask].n = 0
		}
	}
	return q
}

// packets are a query and its reply, one after the other. They keep their memory.
type packets struct {
	b     []byte
	query int // octets of b
	n     int // octets of b; 0: they were not kept
}

// maxPackets bounds what is kept of one query and its reply, in octets: what goes over UDP.
const maxPackets = 8 << 10

// Keep keeps the packets of the record that Begin returned, if the decision log wants them. Of
// what is longer than any that goes over UDP the reply is left out.
func (w *Worker) Keep(query, reply []byte) {
	tail := w.tail.Load()
	if !w.next.Logged || !w.log.wires.Load() {
		return
	}
	p := &w.wire[tail&w.mask]
	p.b = append(p.b[:0], query...)
	if p.query = len(query); p.query+len(reply) <= maxPackets {
		p.b = append(p.b, reply...)
	}
	p.n = len(p.b)
}

// kept returns the packets of a record, or nil.
func (p *packets) kept() (query, reply []byte) {
	if p.n == 0 {
		return nil, nil
	}
	return p.b[:p.query], p.b[p.query:p.n]
}

// Commit hands the record of the last Begin to the drain; it must not be touched afterwards.
func (w *Worker) Commit() {
	if !w.open {
		panic("tracing: Commit without a record from Begin")
	}
	w.open = false
	tail, q := w.tail.Load(), &w.next
	at := tail & w.mask
	w.lines[at] = *q.line()
	if !q.Plain {
		w.bodies[at] = *q.body()
		if q.long() {
			w.tails[at] = *q.rest()
		}
	}
	w.tail.Store(tail + 1)
}

// drain calls f with each record committed when it was called, in order, and returns their
// number. The record, and the packets of one that is logged, belong to f until it returns. Only the consumer calls drain.
func (w *Worker) drain(f func(q *Query, p *packets)) int {
	head, tail := w.head.Load(), w.tail.Load()
	n := int(tail - head)
	for ; head != tail; head++ {
		if head%releaseEvery == 0 {
			w.head.Store(head)
		}
		at, q := head&w.mask, &w.taken
		*q.line() = w.lines[at]
		if !q.Plain {
			*q.body() = w.bodies[at]
			if q.long() {
				*q.rest() = w.tails[at]
			} else {
				q.Trace, q.Span, q.Parent = TraceID{}, SpanID{}, SpanID{}
			}
		}
		var p *packets
		if q.Logged {
			p = &w.wire[at]
		}
		f(q, p)
	}
	w.head.Store(head)
	return n
}

// resetLine and resetBody zero every field but Name and Given. Field by field, as clearing the 255 octets of the name
// would cost more than everything else that the hot side does.
func (q *Query) resetLine() {
	q.Start, q.Decision, q.Client = 0, 0, [16]byte{}
	q.TTL, q.Source, q.GivenLen, q.HasECS, q.V6 = 0, 0, 0, false, false
	q.Plain, q.Drawn, q.Logged, q.Asked, q.Reason, q.Rcode, q.Qtype = false, notAsked, false, AskNothing, 0, 0, 0
}

func (q *Query) resetBody() {
	if q.Asked != AskNothing { // otherwise they are zero
		q.Trace, q.Span, q.Parent = TraceID{}, SpanID{}, SpanID{}
	}
	q.Parsed, q.Decided, q.End, q.Service, q.Pool = 0, 0, 0, 0, 0
	q.Scope, q.TCP, q.Answers, q.NameLen, q.Revision = 0, false, 0, 0, 0
	q.Resolver, q.Server, q.ResolverPort, q.ServerPort, q.Flags = [16]byte{}, [16]byte{}, 0, 0, 0
}
