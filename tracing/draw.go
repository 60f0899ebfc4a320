package tracing

import (
	"encoding/binary"
	"math"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
)

// A worker samples ahead: of queries that nobody will see it then writes no record, which spares the
// cache of its core the ring and the drain a look at each. By Draw it learns which of the next queries
// is drawn; of the others it asks by Notable. The recorder has the last word on what was
// notable. What is recorded for the ledger alone it marks as Plain. Records of other Sources are drawn for by the recorder.

// draw says what a worker drew of a record.
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
	random *rand.Rand
	due    bool    // the query that Draw is called for is drawn
	share  uint64  // of the queries that are drawn, as bound, when scale was computed
	scale  float64 // 1 / ln(1 - share)
	traced bool    // what was drawn last is so for a trace,
	logged bool    // and for the decision log
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
	a.bound, a.all, a.log, a.random = s.bound, all, log, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	a.plain.most = plain
	a.unusual.most = 2 * uint64(s.interesting.rate) // what a full bucket and a second more can let through
	a.flagged.most = uint64(s.standing.rate)
	a.epoch.Store(1)
}

// All tells whether every query is to be recorded.
func (w *Worker) All() bool { return w.ahead.all }

// maxGap is the longest that Draw looks ahead, in queries.
const maxGap = 4096

// Draw tells whether the next query is drawn, by the ratio or by that of the decision log, and that of
// the rest after it none is; then it is to be called again. Only the producer calls it.
func (w *Worker) Draw() (drawn bool, rest int) {
	a := &w.ahead
	if !a.due {
		var gap int
		if gap, a.due = a.gap(); gap > 0 {
			return false, gap - 1
		}
	}
	a.due = false
	// What is traced by the ratio is among what is logged, or the other way round.
	x, _ := bits.Mul64(a.random.Uint64(), a.wanted())
	a.traced = x < a.bound && a.plain.take(a.epoch.Load())
	a.logged = a.log != nil && x < a.log.bound.Load()
	return a.traced || a.logged, 0
}

// Changed tells whether the share of queries that are drawn is another than when Draw looked ahead. What it
// said of the rest is void then: it is to be called for the next query. Only the producer calls Changed.
func (w *Worker) Changed() bool {
	a := &w.ahead
	if a.share == a.wanted() {
		return false
	}
	a.due = false
	return true
}

// wanted returns the share of queries to be drawn, as bound.
func (a *ahead) wanted() uint64 {
	if a.log != nil {
		return max(a.bound, a.log.bound.Load())
	}
	return a.bound
}

// gap draws how many queries are not drawn, and whether the one after them is: the numbers are
// distributed as if each query had been drawn for (geometric distribution), also where it ends at maxGap.
func (a *ahead) gap() (n int, due bool) {
	if share := a.wanted(); share != a.share {
		a.share, a.scale = share, 1/math.Log1p(-float64(share)/(1<<63))
	}
	if a.share == 0 {
		return maxGap, false
	}
	if n := math.Log(1-a.random.Float64()) * a.scale; n < maxGap {
		return int(n), true
	}
	return maxGap, false
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
