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
	Confidence float64       // 1: the address says so
}

// Linker tells which decision a request came from, by the address that it was sent to. It is
// safe for concurrent use.
type Linker struct {
	ids    *AnswerIDs
	ledger *Ledger // nil: IPv4 is not guessed at

	exact, guessed, unsure, forged atomic.Uint64
}

// NewLinker returns a linker for the ids of a fleet, and for IPv4 by ledger, which may be nil.
func NewLinker(ids *AnswerIDs, ledger *Ledger) *Linker { return &Linker{ids: ids, ledger: ledger} }

// Cause returns the decision that sent client to local at a moment; false if local says
// nothing, or nothing that can be trusted.
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
		c := Cause{ID: g.ID, Age: at.Sub(g.At).Truncate(time.Millisecond), Confidence: g.Confidence}
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
	l.exact.Add(1)
	c := Cause{ID: id, Age: max(0, at.Sub(l.ids.since(id, at))).Truncate(time.Millisecond), Confidence: 1}
	c.TraceID, c.SpanID = s.Context(id, key)
	return c, true
}

// LinkStats are the exact counters of a Linker: requests, by what was found out.
type LinkStats struct {
	Exact   uint64 `json:"exact"`   // linked by the address
	Guessed uint64 `json:"guessed"` // linked by the ledger
	Unsure  uint64 `json:"unsure"`  // not linked: no guess was good enough
	Forged  uint64 `json:"forged"`  // not linked: the address was made by no key of ours
}

// Stats returns the counters.
func (l *Linker) Stats() LinkStats {
	return LinkStats{Exact: l.exact.Load(), Guessed: l.guessed.Load(), Unsure: l.unsure.Load(), Forged: l.forged.Load()}
}
