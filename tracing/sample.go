package tracing

import (
	"encoding/binary"
	"math"
	"time"
)

// Why a query was sampled: the values of gslb.sampled_by. Only those of SampledRatio are a
// fair picture of all queries.
const (
	SampledRatio    = "ratio"    // by its trace id
	SampledParent   = "parent"   // its sender asked for it (EDNS TRACEPARENT)
	SampledReason   = "reason"   // a decision that the policy's first choice did not make
	SampledServfail = "servfail" // answered SERVFAIL
	SampledSlow     = "slow"     // answered late
	SampledFence    = "fence"    // a fence dropped a pool that the policy's order puts no later than the one answered with
	SampledOverride = "override" // the pool is in an operator's state, or an override of the map pinned the client to a site
	SampledFirst    = "first"    // the first in a minute of its service, pool, reason and answer id
)

const (
	rcodeServfail = 2           // RFC 1035, section 4.1.1
	reasonPolicy  = 0           // gslb.ReasonPolicy: nothing out of the ordinary
	flagFenced    = 1           // gslb.Fenced
	flagOverride  = 2           // gslb.Overridden
	kindsFor      = time.Minute // for how long a kind of decision is remembered
	maxKinds      = 1 << 14     // how many kinds are; beyond, none counts as a first
)

// sampler says which queries become spans: a ratio of all, and the interesting ones, of which
// only so many a second that an outage, which makes every query interesting, is no flood. It
// has no clock. One goroutine uses it.
type sampler struct {
	bound uint64        // of the upper 63 bits of the second half of a trace id
	slow  time.Duration // a query that took longer is interesting
	kinds map[kind]struct{}
	since time.Time // when kinds was empty

	interesting bucket
	standing    bucket // of fences and overrides: they may speak for every query for good, and push nothing out
}

// bucket holds tokens, of which rate come every second up to rate of them.
type bucket struct {
	rate   float64
	tokens float64   // 0 <= tokens <= rate
	filled time.Time // when tokens was brought up to date
}

func fullBucket(rate float64) bucket { return bucket{rate: rate, tokens: rate} }

// standingRate returns how many decisions of fences and overrides a second become spans where so
// many interesting queries do.
func standingRate(interesting float64) float64 { return math.Ceil(interesting / 10) }

// kind is what makes a decision like another. Its indices may mean something else in another
// snapshot; then a kind is taken for new, or for known up to a minute too long.
type kind struct {
	service, pool int32
	reason        uint8
	decision      AnswerID
}

// newSampler returns a sampler of ratio, 0..1, of all queries.
func newSampler(ratio float64, slow time.Duration, perSecond float64) *sampler {
	return &sampler{
		bound:       uint64(min(max(ratio, 0), 1) * (1 << 63)),
		slow:        slow,
		kinds:       make(map[kind]struct{}),
		interesting: fullBucket(perSecond),
		standing:    fullBucket(standingRate(perSecond)),
	}
}

// byRatio reports whether the trace of that id is sampled, by the rule of the OpenTelemetry
// SDKs (TraceIDRatioBased), so that every service of a trace agrees.
func (s *sampler) byRatio(lower [8]byte) bool {
	return binary.BigEndian.Uint64(lower[:])>>1 < s.bound
}

// judge says why the query is sampled, or "" if it is not. lower is the second half of its
// trace id; first tells that it is the first sampled one of its kind, and limited that only
// the rate kept an interesting query out. A sender that does not sample its own trace gets no
// span of a plain query, as W3C Trace Context wants; what is interesting to us stays so.
func (s *sampler) judge(q *Query, lower [8]byte, now time.Time) (by string, first, limited bool) {
	first = s.isFirst(q, now)
	switch {
	case q.Asked == AskTrace:
		by = SampledParent
	case q.Asked == AskNothing && s.byRatio(lower): // see fit
		by = SampledRatio
	case q.Rcode == rcodeServfail:
		by = SampledServfail
	case q.Reason != reasonPolicy:
		by = SampledReason
	case time.Duration(q.End) > s.slow:
		by = SampledSlow
	case q.Flags&flagFenced != 0:
		by = SampledFence
	case q.Flags&flagOverride != 0:
		by = SampledOverride
	case first:
		by = SampledFirst
	default:
		return "", false, false
	}
	from := &s.interesting
	if !first && (by == SampledFence || by == SampledOverride) {
		from = &s.standing
	}
	if by != SampledRatio && by != SampledParent && !from.take(now) {
		return "", false, true
	}
	if first {
		s.kinds[kindOf(q)] = struct{}{}
	}
	return by, first, false
}

func kindOf(q *Query) kind { return kind{q.Service, q.Pool, q.Reason, q.Decision} }

// isFirst reports whether no decision of that kind was sampled in this minute.
func (s *sampler) isFirst(q *Query, now time.Time) bool {
	if q.Service < 0 || q.Decided == 0 {
		return false
	}
	if now.Sub(s.since) >= kindsFor {
		clear(s.kinds)
		s.since = now
	}
	_, known := s.kinds[kindOf(q)]
	return !known && len(s.kinds) < maxKinds
}

// take takes one token.
func (b *bucket) take(now time.Time) bool {
	if b.filled.IsZero() {
		b.filled = now
	}
	b.tokens = math.Min(b.rate, b.tokens+b.rate*max(0, now.Sub(b.filled).Seconds()))
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
