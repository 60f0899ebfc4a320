package health

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// dropCause says why a gossip message, or a part of one, was dropped.
type dropCause uint8

const (
	dropVersion   dropCause = iota // of another version of the format
	dropMalformed                  // not of the format
	dropOversize                   // over a bound of the format
	dropFull                       // the table has no room
	dropRefused                    // from a stranger: wrong key, wrong label, or none
	dropQueue                      // to send: too many wait
	dropSend                       // to send: the system refused
	dropConflict                   // from another node with our name, or of two with one name
	dropUnsigned                   // by no node whose key is known
	dropForged                     // with a signature that is not its node's
	dropFlood                      // more than a node says
	numDropCauses
)

var dropNames = [numDropCauses]string{"version", "malformed", "oversize", "full", "refused", "queue", "send", "conflict", "unsigned", "forged", "flood"}

// stats are a monitor's counters; all atomic.
type stats struct {
	probes    [numClasses]atomic.Uint64
	retries   atomic.Uint64
	late      atomic.Uint64
	gossipIn  atomic.Uint64
	gossipOut atomic.Uint64
	repeated  atomic.Uint64
	dropped   [numDropCauses]atomic.Uint64
	flips     atomic.Uint64
}

// Stats are counters since the start of a monitor.
type Stats struct {
	Probes        map[string]uint64 `json:"probes"`        // results by class
	Retries       uint64            `json:"retries"`       // failures that were tried again at once
	Late          uint64            `json:"late"`          // probes that started over an interval late: too many under way
	GossipIn      uint64            `json:"gossipIn"`      // messages from peers
	GossipOut     uint64            `json:"gossipOut"`     // messages to peers, but broadcasts
	Repeated      uint64            `json:"repeated"`      // messages no newer than what was known: repeated on the way, or by somebody
	GossipDropped map[string]uint64 `json:"gossipDropped"` // by cause: version, malformed, oversize, full, refused, queue, send, conflict, unsigned, forged, flood
	Flips         uint64            `json:"flips"`         // changes of verdicts
	Targets       int               `json:"targets"`       // endpoints probed
	Abstains      bool              `json:"abstains"`      // this node is not believed now, by itself or others: see Member.Abstains
	Held          int               `json:"held"`          // endpoints that the votes call down and a guard keeps up
	Suppressed    int               `json:"suppressed"`    // endpoints that are kept out because they flap
	Members       int               `json:"members"`       // nodes of the membership, with this one
}

func (s *stats) read() Stats {
	out := Stats{
		Probes: make(map[string]uint64, numClasses), GossipDropped: make(map[string]uint64, numDropCauses),
		Retries: s.retries.Load(), Late: s.late.Load(), Flips: s.flips.Load(),
		GossipIn: s.gossipIn.Load(), GossipOut: s.gossipOut.Load(), Repeated: s.repeated.Load(),
	}
	for c := range s.probes {
		out.Probes[Class(c).String()] = s.probes[c].Load()
	}
	for c := range s.dropped {
		out.GossipDropped[dropNames[c]] = s.dropped[c].Load()
	}
	return out
}

// seldom lets one event pass a minute. The zero value is ready.
type seldom struct{ last atomic.Int64 }

func (s *seldom) pass() bool {
	now, last := time.Now().UnixNano(), s.last.Load()
	return (last == 0 || now-last >= int64(time.Minute)) && s.last.CompareAndSwap(last, now)
}

// discardIfNil returns l, or a logger that logs nothing.
func discardIfNil(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
