package tracing

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
)

// A worker may sample ahead: of queries that nobody will see it then writes no record, which
// spares the cache of its core the ring and the drain a look at each. It calls Draw before a
// query and, unless that drew it, Notable after it; the recorder has the last word on what was
// notable. What is recorded for the ledger alone it marks as Plain. A record begun without Draw is drawn for by the recorder.

// draw says what a worker's Draw said of a record.
type draw uint8

const (
	notAsked draw = iota
	drawn
	notDrawn
)

// A worker remembers which kinds of decisions it recorded in kindRows rows of kindsInRow, a line of the
// cache each. The kinds of a service and of as many pools, one after the other, share a row.
const (
	kindRows   = 128
	kindsInRow = 8
)

// ahead is a worker's part of the sampling.
type ahead struct {
	bound  uint64       // as the sampler's
	all    bool         // every record is wanted, whether it becomes spans or not
	log    *DecisionLog // nil: none
	logged bool         // the query is drawn for it
	random uint64
	last   draw
	kinds  [kindRows][kindsInRow]recorded
	plain  quota // of drawn ones that the ratio alone selects

	unusual quota // of decisions that the policy's first choice did not make, and of SERVFAIL
	flagged quota // of decisions with flags

	epoch atomic.Uint32 // counted by the consumer, about once a second: by then, a kind is worth another record
}

// recorded is a kind of decision that was recorded in an epoch: the low 24 bits of service and pool, and
// 16 of the epoch. What differs above only counts as the same, which may cost a record of a second.
type recorded uint64

func recordedIn(service, pool int32, epoch uint32) recorded {
	return recorded(uint64(uint32(service))<<40 | uint64(uint32(pool)&(1<<24-1))<<16 | uint64(uint16(epoch)))
}

// again remembers a kind of decision in an epoch, and reports whether it had been already.
func (a *ahead) again(service, pool int32, epoch uint32) bool {
	kind := recordedIn(service, pool, epoch)
	row := &a.kinds[(uint32(service)*0x9E3779B1^uint32(pool)/kindsInRow*0x85EBCA77)>>(32-7)]
	place := &row[uint32(pool)%kindsInRow]
	if *place == kind {
		return true
	}
	for i := range row {
		if row[i] == kind {
			return true
		}
		if uint16(row[i]) != uint16(epoch) { // it says nothing any more
			place = &row[i]
		}
	}
	*place = kind
	return false
}

// quota is so many records in an epoch.
type quota struct {
	most  uint64
	taken uint64 // in the epoch since
	since uint32
}

// take reports whether another is worth a record in that epoch.
func (q *quota) take(epoch uint32) bool {
	if q.since != epoch {
		q.since, q.taken = epoch, 0
	}
	if q.taken >= q.most {
		return false
	}
	q.taken++
	return true
}

// init readies a for s.
func (a *ahead) init(s *sampler, all bool, plain uint64, log *DecisionLog) {
	a.bound, a.all, a.log, a.random = s.bound, all, log, rand.Uint64()
	a.plain.most = plain
	a.unusual.most = 2 * uint64(s.interesting.rate) // what a full bucket and a second more can let through
	a.flagged.most = uint64(s.standing.rate)
	a.epoch.Store(1)
}

// Draw tells whether the next query is to be recorded, and whether exactly: it is sampled by the
// ratio, or by that of the decision log. Only the producer calls it.
func (w *Worker) Draw() (record, exact bool) {
	a := &w.ahead
	a.next()
	a.last = notDrawn
	if a.random>>1 < a.bound && a.plain.take(a.epoch.Load()) {
		a.last = drawn
	}
	exact = a.last == drawn || a.logged
	return exact || a.all, exact
}

// next draws a number for the next query, and by it whether the decision log wants it: what is
// traced by the ratio is among what is logged, or the other way round.
func (a *ahead) next() {
	a.random = a.random*6364136223846793005 + 1442695040888963407 // Knuth's MMIX; its upper bits are good
	a.logged = a.log != nil && a.random>>1 < a.log.bound.Load()
}

// drawLog draws for the decision log where Draw was not called.
func (a *ahead) drawLog() {
	if a.last == notAsked {
		a.next()
	}
}

// Notable tells whether a query that was not drawn may become spans by its rcode or by what was
// decided; service and pool are indices as in Query, or -1. Of a kind of decision that is nothing
// out of the ordinary, one a second is. What is may be so of every query, in an outage or for good,
// so that in a second no more of it is than could become spans. Only the producer calls it.
func (w *Worker) Notable(service, pool int32, reason, flags, rcode uint8) bool {
	a := &w.ahead
	epoch := a.epoch.Load()
	if (reason != reasonPolicy || rcode == rcodeServfail) && a.unusual.take(epoch) {
		return true
	}
	if service < 0 {
		return false
	}
	if flags != 0 && a.flagged.take(epoch) {
		return true
	}
	return !a.again(service, pool, epoch)
}

// fit moves the second half of a trace id to where the sampler's ratio samples it, or to where
// it does not, so that every service of the trace agrees with what was drawn.
func (s *sampler) fit(lower [8]byte, d draw) [8]byte {
	x := binary.BigEndian.Uint64(lower[:])
	switch d {
	case drawn:
		hi, _ := bits.Mul64(x, s.bound)
		x = hi<<1 | x&1
	case notDrawn:
		hi, _ := bits.Mul64(x, 1<<63-s.bound)
		x = (s.bound+hi)<<1 | x&1
	}
	binary.BigEndian.PutUint64(lower[:], x)
	return lower
}
