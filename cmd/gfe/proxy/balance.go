package proxy

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
)

// counts is what was asked of something and how it went. The rule at every moment:
// issued >= success + errors, and the difference is in progress.
type counts struct {
	issued  atomic.Uint64
	success atomic.Uint64
	errors  atomic.Uint64
}

func (c *counts) inProgress() uint64 {
	done := c.success.Load() + c.errors.Load() // read before issued, which is never behind them
	return c.issued.Load() - done
}

func (c *counts) done(ok bool) {
	if ok {
		c.success.Add(1)
	} else {
		c.errors.Add(1)
	}
}

// peer is one endpoint of one upstream pool, with what this proxy knows of it. It outlives
// the assignments that name it.
type peer struct {
	pool *pool
	addr netip.AddrPort

	counts
	rate    rate
	ejected atomic.Int64                       // until when, ns since 1970; past: not ejected
	metrics atomic.Pointer[map[string]float64] // what it says of itself, out of band; nil: nothing
}

// peerID names a peer: one address in two pools is two peers.
type peerID struct {
	pool string
	addr netip.AddrPort
}

// slot is a peer as one assignment sees it.
type slot struct {
	*peer
	priority int
	class    uint8   // how willing the plan is to use it
	weight   float64 // the pool's weight, times the endpoint's share of the endpoints of its class and pool; over 0
}

// The classes of slots, best first. A worse one is used only when no better one is left in
// any priority: requests go out, whatever the plan believes, before they are refused.
const (
	classUsable uint8 = iota
	classEjected
	classDrained
	classDown
)

// defaultPort is that of endpoints without one.
const defaultPort = 80

// slots lists what of a may ever be used. peerOf finds or makes the peer of an endpoint.
// Weight 0 is never.
func slots(a Assignment, peerOf func(pool, site string, addr netip.AddrPort) *peer) []slot {
	var out []slot
	for _, hop := range a.Hops {
		if hop.Weight <= 0 {
			continue
		}
		var sums [classDown + 1]float64 // of endpoint weights, by class
		first := len(out)
		for _, e := range hop.Endpoints {
			if e.Weight <= 0 || !e.Addr.IsValid() {
				continue
			}
			port := e.Port
			if port == 0 {
				port = defaultPort
			}
			s := slot{
				peer:     peerOf(hop.Pool, hop.Site, netip.AddrPortFrom(e.Addr, port)),
				priority: hop.Priority,
				class:    classOf(e),
				weight:   float64(e.Weight),
			}
			sums[s.class] += s.weight
			out = append(out, s)
		}
		for i := first; i < len(out); i++ {
			out[i].weight *= float64(hop.Weight) / sums[out[i].class]
		}
	}
	return out
}

func classOf(e gslb.Endpoint) uint8 {
	switch {
	case e.Verdict == gslb.Down:
		return classDown
	case e.Drained:
		return classDrained
	}
	return classUsable
}

// choose picks where a request goes, or nil when there is nothing but skip. Of the slots
// other than skip it takes the best class, of that the lowest priority, of these two at
// random by weight, and of the two the one with fewer requests in progress for its weight.
// random returns numbers in [0,1). choose does not allocate.
func choose(slots []slot, skip *peer, now time.Time, random func() float64) *peer {
	best, priority, sum := classDown+1, 0, 0.0
	ns := now.UnixNano()
	for i := range slots {
		s := &slots[i]
		if s.peer == skip {
			continue
		}
		class := s.classAt(ns)
		if class > best || class == best && s.priority > priority {
			continue
		}
		if class < best || s.priority < priority {
			best, priority, sum = class, s.priority, 0
		}
		sum += s.weight
	}
	if sum == 0 {
		return nil
	}
	pick := func(at float64) (chosen *slot) {
		for i := range slots {
			s := &slots[i]
			if s.peer == skip || s.priority != priority || s.classAt(ns) != best {
				continue
			}
			chosen = s
			if at -= s.weight; at < 0 {
				break
			}
		}
		return chosen
	}
	a, b := pick(random()*sum), pick(random()*sum)
	if float64(a.inProgress())*b.weight > float64(b.inProgress())*a.weight {
		return b.peer
	}
	return a.peer
}

// classAt is the slot's class with this proxy's own experience.
func (s *slot) classAt(ns int64) uint8 {
	if s.class == classUsable && s.ejected.Load() > ns {
		return classEjected
	}
	return s.class
}
