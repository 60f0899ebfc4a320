package tracing

import (
	"net/netip"
	"sync"
	"time"
)

// Ledger remembers which IPv4 addresses were given to whom and when, to tell which decision a
// request may have come from: an IPv4 address has no room for an id. It holds a bounded number
// of answers of each of a bounded number of addresses, the last ones. It is safe for
// concurrent use.
type Ledger struct {
	perAddr int

	mu      sync.Mutex // guards what follows; held for one addition, or one look at one address
	byAddr  map[[4]byte]*givenRing
	evicted uint64 // answers that were still good when a newer one took their place
	ignored uint64 // answers of addresses beyond maxGivenAddrs
}

// maxGivenAddrs bounds the addresses of a ledger: those of a fleet's proxies.
const maxGivenAddrs = 1024

// maxLate is how long after an answer's TTL a request is still taken to come from it: what
// a resolver, a stub and a browser round up.
const maxLate = 5 * time.Second

// given is one answer.
type given struct {
	id     AnswerID
	at     int64 // ns since 1970
	until  int64
	client [4]byte // of the ECS option; meaningful with bits
	bits   uint8   // source prefix length; 0: whom the resolver asked for is not known
}

// givenRing holds the last answers of one address; its memory grows with use.
type givenRing struct {
	last []given
	next int // where the next one goes once it is full
}

// NewLedger returns a ledger of that many answers per address, each of which takes 40 octets.
func NewLedger(perAddr int) *Ledger {
	return &Ledger{perAddr: max(perAddr, 1), byAddr: make(map[[4]byte]*givenRing)}
}

// add remembers the addresses that q was answered with.
func (l *Ledger) add(q *Query) {
	g := given{id: q.Decision, at: q.Start, until: q.Start + (int64(q.TTL)*int64(time.Second) + int64(maxLate))}
	if q.HasECS && !q.V6 {
		copy(g.client[:], q.Client[12:])
		g.bits = q.Source
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, addr := range q.Given[:q.GivenLen] {
		r := l.byAddr[addr]
		if r == nil {
			if len(l.byAddr) >= maxGivenAddrs {
				l.ignored++
				continue
			}
			r = new(givenRing)
			l.byAddr[addr] = r
		}
		if len(r.last) < l.perAddr {
			r.last = append(r.last, g)
			continue
		}
		if r.last[r.next].until > g.at {
			l.evicted++
		}
		r.last[r.next] = g
		r.next = (r.next + 1) % len(r.last)
	}
}

// Guess is what the ledger thinks a request came from.
type Guess struct {
	ID         AnswerID
	At         time.Time // of the last answer with that id that the client may have had
	Confidence float64   // 0 < Confidence < 1
}

// Find returns the decision that most probably led client to addr at a moment, and how sure
// that is; false if no answer can have.
//
// Of the answers with addr that were good at that moment, the client may have had those to
// resolvers that named a prefix it is in, and those to resolvers that named none. If n of them
// are of the decision that is most frequent (among the first sort if there are any), and m are of
// others, the confidence is n / (n + m + 1): never certainty, as one more answer that
// another name server gave, or none at all, is always possible.
func (l *Ledger) Find(addr, client netip.Addr, at time.Time) (Guess, bool) {
	addr, client = addr.Unmap(), client.Unmap()
	if !addr.Is4() || !client.Is4() {
		return Guess{}, false
	}
	now := at.UnixNano()
	type tally struct {
		named, all int
		last       int64
	}
	tallies := make(map[AnswerID]tally)
	total := 0

	l.mu.Lock()
	if r := l.byAddr[addr.As4()]; r != nil {
		for i := range r.last {
			g := &r.last[i]
			if now < g.at || now > g.until {
				continue
			}
			named := false
			if g.bits > 0 {
				p, _ := netip.AddrFrom4(g.client).Prefix(int(g.bits))
				if named = p.Contains(client); !named {
					continue
				}
			}
			t := tallies[g.id]
			t.all++
			if named {
				t.named++
			}
			t.last = max(t.last, g.at)
			tallies[g.id] = t
			total++
		}
	}
	l.mu.Unlock()

	var best tally
	var id AnswerID
	for i, t := range tallies {
		better := t.named > best.named
		if t.named == best.named {
			better = t.all > best.all || t.all == best.all && (t.last > best.last || t.last == best.last && i > id)
		}
		if better {
			best, id = t, i
		}
	}
	if total == 0 {
		return Guess{}, false
	}
	return Guess{ID: id, At: time.Unix(0, best.last).UTC(), Confidence: float64(best.all) / float64(total+1)}, true
}

// LedgerStats are the counters of a Ledger.
type LedgerStats struct {
	Addresses, Answers int    // held now
	Evicted            uint64 // answers forgotten while they were good: guesses are then less sure than they say
	Ignored            uint64 // answers of too many addresses
}

// Stats returns the counters.
func (l *Ledger) Stats() LedgerStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := LedgerStats{Addresses: len(l.byAddr), Evicted: l.evicted, Ignored: l.ignored}
	for _, r := range l.byAddr {
		s.Answers += len(r.last)
	}
	return s
}
