package dns

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// quarantineFor is how long queries like one whose answer panicked are refused.
	quarantineFor = time.Minute

	// maxQuarantined bounds the patterns that are remembered; the next ones panic again, and cost
	// a SERVFAIL each.
	maxQuarantined = 1024
)

// quarantine remembers queries of death. All workers share one; while it is empty, as it is
// unless we have a bug, it is one load of a line that nobody writes.
type quarantine struct {
	n    atomic.Int32
	seed maphash.Seed

	mu    sync.Mutex
	until map[uint64]time.Time // by pattern
}

func newQuarantine() *quarantine {
	return &quarantine{seed: maphash.MakeSeed(), until: make(map[uint64]time.Time)}
}

// patterns returns what a query is known by: all of its packet but the id, and the question,
// whatever its case and whatever stands behind it. The second is 0 if there was no question.
func (z *quarantine) patterns(q *query, echo bool, pkt []byte) (packet, question uint64) {
	packet = maphash.Bytes(z.seed, pkt[min(2, len(pkt)):]) | 1
	if echo {
		var h maphash.Hash
		h.SetSeed(z.seed)
		_, _ = h.Write(q.lower[:len(q.name)])
		_, _ = h.Write([]byte{byte(q.qtype >> 8), byte(q.qtype), byte(q.qclass >> 8), byte(q.qclass)})
		question = h.Sum64() | 1
	}
	return packet, question
}

// add has queries like this one refused until a minute from now. It tells whether one was not
// known yet.
func (z *quarantine) add(q *query, echo bool, pkt []byte, now time.Time) bool {
	packet, question := z.patterns(q, echo, pkt)
	z.mu.Lock()
	defer z.mu.Unlock()
	z.expireLocked(now)
	fresh := false
	for _, p := range [...]uint64{packet, question} {
		if _, known := z.until[p]; p != 0 && !known && len(z.until) < maxQuarantined {
			z.until[p], fresh = now.Add(quarantineFor), true
		}
	}
	z.n.Store(int32(len(z.until)))
	return fresh
}

// holds tells whether queries like this one are refused.
func (z *quarantine) holds(q *query, echo bool, pkt []byte, now time.Time) bool {
	if z == nil || z.n.Load() == 0 {
		return false
	}
	packet, question := z.patterns(q, echo, pkt)
	z.mu.Lock()
	defer z.mu.Unlock()
	z.expireLocked(now)
	z.n.Store(int32(len(z.until)))
	return z.until[packet] != (time.Time{}) || question != 0 && z.until[question] != (time.Time{})
}

func (z *quarantine) expireLocked(now time.Time) {
	for p, until := range z.until {
		if now.After(until) {
			delete(z.until, p)
		}
	}
}
