package dns

import (
	"sync"

	"github.com/meridian-gslb/meridian/gslb"
)

// How many decisions a worker keeps, for a change to be tried on.
const (
	recentSize   = 4096
	recentWindow = 1 << 18 // decisions from which those are drawn
	recentEvery  = 32      // one in so many decisions of an answerer is offered, and its first: a power of two
)

// recent is a picture of the latest decisions of one worker.
type recent struct {
	mu sync.Mutex // held while a decision is offered, and while the samples are read
	r  gslb.Reservoir
	on bool // a decision was offered: r is made
}

// offer makes a decision one that may be kept. It does not wait: while samples are read it
// forgets the decision.
func (r *recent) offer(service string, c gslb.Client) {
	if !r.mu.TryLock() {
		return
	}
	defer r.mu.Unlock()
	if !r.on {
		r.r, r.on = *gslb.NewReservoir(recentSize, recentWindow/recentEvery), true
	}
	r.r.Add(service, c)
}

func (r *recent) samples() []gslb.Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.r.Samples()
}

// Recent returns a fair sample of the latest decisions, some thousands of each worker.
func (s *Server) Recent() []gslb.Sample {
	out := s.tcp.counters.recent.samples()
	for i := range s.udpCounters {
		out = append(out, s.udpCounters[i].recent.samples()...)
	}
	return out
}
