package tracing

import (
	"math/bits"
	"sync/atomic"
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

// Worker is the ring of records of one worker of the DNS server: exactly one goroutine at a
// time calls Begin and Commit, and the recorder's drain is the only reader. It never waits,
// locks or allocates.
//
// Invariant: head <= tail <= head + len(slots), with head and tail counting records since the
// start, so that record i is in slot i mod len(slots).
type Worker struct {
	slots []Query // length is a power of two
	mask  uint64

	_ [cacheLine]byte
	// Written by the producer alone.
	tail atomic.Uint64 // records committed
	full atomic.Uint64 // records dropped because the ring was full
	seen uint64        // head, when the producer last looked; never ahead of it
	open bool          // between Begin and Commit
	ahead

	_ [cacheLine]byte
	// Written by the consumer alone.
	head atomic.Uint64 // records drained

	_ [cacheLine]byte
}

// newWorker returns a ring of at least size records, rounded up to a power of two.
func newWorker(size int) *Worker {
	n := 1 << bits.Len(uint(max(size, 2)-1))
	return &Worker{slots: make([]Query, n), mask: uint64(n - 1)}
}

// Begin returns the next slot of the ring, to be filled in place and handed over with Commit.
// All fields are zero but Name and Given, of which what is past NameLen and
// GivenLen means nothing. It returns nil if the
// ring is full: the record is dropped and counted. A second Begin without a Commit starts the
// same record over.
func (w *Worker) Begin() *Query {
	tail := w.tail.Load()
	if tail-w.seen > w.mask {
		w.seen = w.head.Load()
		if tail-w.seen > w.mask {
			w.full.Store(w.full.Load() + 1) // the producer is the only writer: no read-modify-write is needed
			return nil
		}
	}
	w.open = true
	q := &w.slots[tail&w.mask]
	q.reset()
	q.Drawn = w.ahead.last
	return q
}

// Commit hands the record of the last Begin to the drain; it must not be touched afterwards.
func (w *Worker) Commit() {
	if !w.open {
		panic("tracing: Commit without a record from Begin")
	}
	w.open = false
	w.ahead.last = notAsked
	w.tail.Store(w.tail.Load() + 1)
}

// drain calls f with each record committed when it was called, in order, and returns their
// number. The record belongs to f until it returns. Only the consumer calls drain.
func (w *Worker) drain(f func(*Query)) int {
	head, tail := w.head.Load(), w.tail.Load()
	n := int(tail - head)
	for ; head != tail; head++ {
		if head%releaseEvery == 0 {
			w.head.Store(head)
		}
		f(&w.slots[head&w.mask])
	}
	w.head.Store(head)
	return n
}

// reset zeroes every field but Name and Given. Field by field, as clearing the 255 octets of the name
// would cost more than everything else that the hot side does.
func (q *Query) reset() {
	q.Start, q.Parsed, q.Decided, q.End = 0, 0, 0, 0
	q.Revision, q.Service, q.Pool, q.Outcome = 0, 0, 0, 0
	q.Reason, q.Rcode, q.Qtype, q.TTL = 0, 0, 0, 0
	q.Client, q.Source, q.Scope = [16]byte{}, 0, 0
	q.HasECS, q.TCP, q.V6 = false, false, false
	q.Resolver, q.Answers, q.NameLen = [16]byte{}, 0, 0
	q.Asked, q.Trace, q.Span, q.Parent = AskNothing, TraceID{}, SpanID{}, SpanID{}
	q.Decision, q.GivenLen = 0, 0
	q.Drawn = notAsked
}
