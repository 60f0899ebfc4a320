package tracing

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// MinConfidence is the least certainty with which a request is linked to a decision.
const MinConfidence = 0.5

// Cause is the decision that led to a request.
type Cause struct {
	ID         AnswerID
	TraceID    TraceID
	SpanID     SpanID
	Age        time.Duration // of the answer when it was used, at most: epochs are coarse
	Confidence float64       // 1: the address says so, and is not older than its answer can be
	by         string        // address or ledger
}

// maxKept is how long past its TTL an answer is still taken to be in use: by resolvers, runtimes and
// browsers that keep what they should not, and by connections that stay open.
const maxKept = 5 * time.Minute

// DefaultLinkTTL is the longest TTL of a linker's answers unless SetTTL says otherwise.
const DefaultLinkTTL = 5 * time.Minute

// Linker tells which decision a request came from, by the address that it was sent to. It is
// safe for concurrent use.
type Linker struct {
	ids    *AnswerIDs
	ledger *Ledger // nil: IPv4 is not guessed at

	ttl atomic.Int64 // the longest of the answers, ns

	exact, guessed, unsure, stale, forged atomic.Uint64
}

// NewLinker returns a linker for the ids of a fleet, and for IPv4 by ledger, which may be nil.
func NewLinker(ids *AnswerIDs, ledger *Ledger) *Linker {
	l := &Linker{ids: ids, ledger: ledger}
	l.SetTTL(DefaultLinkTTL)
	return l
}

// SetTTL sets the longest TTL with which an address that carries an id is answered.
func (l *Linker) SetTTL(ttl time.Duration) { l.ttl.Store(int64(ttl)) }

// Cause returns the decision that sent client to local at a moment; false if local says
// nothing, or nothing that can be trusted. An id is good for whoever has the address, so that it
// can be used long after its answer: past its epoch, the longest TTL and maxKept, the
// confidence is what part of the age these make up, and where that is under MinConfidence there is
// no link.
func (l *Linker) Cause(local, client netip.Addr, at time.Time) (Cause, bool) {
	s := l.ids.Signer()
	local = local.Unmap()
	if local.Is4() {
		if l.ledger == nil {
			return Cause{}, false
		}
		g, ok := l.ledger.Find(local, client, at)
		if !ok || g.Confidence < MinConfidence {
			if ok {
				l.unsure.Add(1)
			}
			return Cause{}, false
		}
		l.guessed.Add(1)
		c := Cause{ID: g.ID, Age: at.Sub(g.At).Truncate(time.Millisecond), Confidence: g.Confidence, by: linkedByLedger}
		c.TraceID, c.SpanID = s.Context(g.ID, 0)
		return c, true
	}
	id, key, v := s.Read(local)
	if v != Genuine {
		if v == Forged {
			l.forged.Add(1)
		}
		return Cause{}, false
	}
	c := Cause{ID: id, Age: max(0, at.Sub(l.ids.since(id, at))).Truncate(time.Millisecond), Confidence: 1, by: linkedByAddress}
	if good := l.ids.length + time.Duration(l.ttl.Load()) + maxKept; c.Age > good {
		c.Confidence = good.Seconds() / c.Age.Seconds()
	}
	if c.Confidence < MinConfidence {
		l.stale.Add(1)
		return Cause{}, false
	}
	l.exact.Add(1)
	c.TraceID, c.SpanID = s.Context(id, key)
	return c, true
}

// LinkStats are the exact counters of a Linker: requests, by what was found out.
type LinkStats struct {
	Exact   uint64 `json:"exact"`   // linked by the address
	Guessed uint64 `json:"guessed"` // linked by the ledger
	Unsure  uint64 `json:"unsure"`  // not linked: no guess was good enough
	Stale   uint64 `json:"stale"`   // not linked: the address was answered too long ago
	Forged  uint64 `json:"forged"`  // not linked: the address was made by no key of ours
}

// Stats returns the counters.
func (l *Linker) Stats() LinkStats {
	return LinkStats{Exact: l.exact.Load(), Guessed: l.guessed.Load(), Unsure: l.unsure.Load(), Stale: l.stale.Load(), Forged: l.forged.Load()}
}
