package dns

import (
	"math/bits"

	"github.com/meridian-gslb/meridian/gslb"
)

const (
	// tallyKinds is how many kinds of decisions a tally has room for: a power of two. Of two that have
	// the same place the one makes way for the other.
	tallyKinds = 256

	// publishAfter is how many replies a worker may count before it publishes them, however busy it is.
	publishAfter = 1024
)

// tally is what an answerer has counted and not yet published: numbers that it alone reads and writes.
// To add to a counter that others read takes a locked instruction, which waits until all that was
// written before, the reply among it, is in the cache; a tally needs one for many queries.
type tally struct {
	counters *counters // that it is published to
	n        int       // replies since it was

	replies  [replyKinds]uint32
	replied  [replyKinds]uint8 // the kinds of which there are some: the first nReplied
	nReplied int

	snapshot *gslb.Snapshot // whose indices the kinds have
	kinds    [tallyKinds]decisionCount
	decided  [tallyKinds]uint8 // the places of those of which there are some: the first nDecided
	nDecided int

	_ [cacheLine]byte // another worker's memory may come next
}

// decisionKind is what a tally counts decisions by: service, reason, flags and pool, the latter as in a
// row of a poolTable.
type decisionKind uint64

func kindOf(s *gslb.Snapshot, d *gslb.Decision) decisionKind {
	pool := len(s.Pools)
	if d.Pool != nil {
		pool = d.Pool.Index
	}
	return decisionKind(uint64(d.Service.Index)<<40 | uint64(d.Reason)<<32 | uint64(d.Flags)<<24 | uint64(pool))
}

func (k decisionKind) service() int        { return int(k >> 40) }
func (k decisionKind) reason() gslb.Reason { return gslb.Reason(k >> 32) }
func (k decisionKind) pool() int           { return int(k & (1<<24 - 1)) }

// place returns where a tally keeps k.
func (k decisionKind) place() int {
	return int(uint64(k) * 0x9E3779B97F4A7C15 >> (64 - bits.Len(tallyKinds-1))) // Fibonacci hashing
}

// decisionCount counts the decisions of a kind.
type decisionCount struct {
	kind  decisionKind
	n     uint32
	plain uint32 // the second, since 1970, in which the tracer last said that one of them is not notable
}

// countReply counts a reply.
func (t *tally) countReply(r *reply) {
	kind := replyKind(r)
	if t.replies[kind] == 0 {
		t.replied[t.nReplied] = uint8(kind)
		t.nReplied++
	}
	t.replies[kind]++
	t.n++
	if r.tc {
		t.counters.truncated.Add(1)
	}
}

// countDecision counts a decision out of s. The count that it returns is good until the next call.
func (t *tally) countDecision(s *gslb.Snapshot, d *gslb.Decision) *decisionCount {
	if t.snapshot != s {
		t.publish()
		t.snapshot = s
		clear(t.kinds[:])
	}
	kind := kindOf(s, d)
	place := kind.place()
	c := &t.kinds[place]
	if c.n == 0 {
		t.decided[t.nDecided] = uint8(place)
		t.nDecided++
	}
	if c.kind != kind {
		if c.n > 0 {
			t.counters.add(s, c.kind, c.n)
		}
		*c = decisionCount{kind: kind}
	}
	c.n++
	return c
}

// publish adds what was counted to the counters that others read.
func (t *tally) publish() {
	for _, kind := range t.replied[:t.nReplied] {
		t.counters.replies[kind].Add(uint64(t.replies[kind]))
		t.replies[kind] = 0
	}
	for _, place := range t.decided[:t.nDecided] {
		c := &t.kinds[place]
		t.counters.add(t.snapshot, c.kind, c.n)
		c.n = 0
	}
	t.n, t.nReplied, t.nDecided = 0, 0, 0
}
