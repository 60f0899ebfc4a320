package gslb

import (
	"net/netip"
	"slices"
	"strings"
)

// Service returns the service of that owner name (lower case, no trailing dot), or nil.
func (s *Snapshot) Service(name string) *Service {
	i, ok := slices.BinarySearchFunc(s.Services, name, func(v *Service, name string) int { return strings.Compare(v.Name, name) })
	if !ok {
		return nil
	}
	return s.Services[i]
}

// Pool returns the pool of that name, or nil.
func (s *Snapshot) Pool(name string) *Pool {
	i, ok := slices.BinarySearchFunc(s.Pools, name, func(v *Pool, name string) int { return strings.Compare(v.Name, name) })
	if !ok {
		return nil
	}
	return s.Pools[i]
}

// outcome is what a choice means for one service in one snapshot.
type outcome struct {
	reason   Reason
	ttl      uint32  // seconds
	shares   []share // empty with ReasonFallback and ReasonServfail
	v4, v6   []netip.Addr
	fallback string
}

// share is a pool that some of an outcome's clients are sent to, or would be.
type share struct {
	pool *Pool
	list *endpoints // of pool: what to answer with
	mean float64    // of its draws: 1/weight
	seed uint64
	lost bool // down or demoted: its clients go to the others
}

// endpoints are what a pool is answered with, by family.
type endpoints struct {
	index  []int // in Pool.Endpoints
	v4, v6 answers
}

// answers are addresses of one family, in the order of the configuration.
type answers struct {
	addrs []netip.Addr
	means []float64 // of their draws: 1/weight
	seeds []uint64
}

// Decide fills d with the decision for c on svc, a service of s. It does not allocate.
func (s *Snapshot) Decide(svc *Service, c Client, d *Decision) {
	addr := c.Addr.Unmap()
	i, scope := svc.routing.lookup(addr)
	o := &svc.outcomes[i]
	d.Service, d.Outcome, d.Scope, d.TTL, d.Reason = svc, i, scope, o.ttl, o.reason
	if len(o.shares) == 0 {
		d.Pool, d.V4, d.V6, d.Fallback = nil, o.v4, o.v6, o.fallback
		return
	}
	d.Fallback = ""
	sh := &o.shares[0]
	sticky := svc.sticky(addr)
	var key uint64
	if len(o.shares) > 1 {
		key = svc.key(addr)
		var moved bool
		if sh, moved = pick(o.shares, key); moved && d.Reason == ReasonPolicy {
			d.Reason = ReasonFailover
		}
		d.Scope = max(d.Scope, sticky)
	}
	d.Pool, d.V4, d.V6 = sh.pool, sh.list.v4.addrs, sh.list.v6.addrs
	n := svc.steering.answers
	if len(d.V4) <= n && len(d.V6) <= n {
		return
	}
	if key == 0 {
		key = svc.key(addr)
	}
	d.V4, d.V6 = sh.list.v4.top(n, key, &d.buf[0]), sh.list.v6.top(n, key, &d.buf[1])
	d.Scope = max(d.Scope, sticky)
}

// pick returns the share of the client with that key, and whether it would have another if
// none were lost.
func pick(shares []share, key uint64) (mine *share, moved bool) {
	var best, first float64 // draws: of the best share that is not lost, and of the best
	for i := range shares {
		sh := &shares[i]
		d := draw(key, sh.seed, sh.mean)
		if i == 0 || d < first {
			first, moved = d, sh.lost
		}
		if !sh.lost && (mine == nil || d < best) {
			best, mine = d, sh
		}
	}
	return mine, moved
}

// top returns n of the answers, chosen by weight for the client with that key, best first,
// in buf; or all of them if there are no more than n.
func (a *answers) top(n int, key uint64, buf *[MaxAnswers]netip.Addr) []netip.Addr {
	if len(a.addrs) <= n {
		return a.addrs
	}
	var draws [MaxAnswers]float64 // of buf, ascending
	found := 0
	for i, addr := range a.addrs {
		d := draw(key, a.seeds[i], a.means[i])
		at := found
		for at > 0 && d < draws[at-1] {
			at--
		}
		if at == n {
			continue
		}
		found = min(found+1, n)
		copy(draws[at+1:found], draws[at:])
		copy(buf[at+1:found], buf[at:])
		draws[at], buf[at] = d, addr
	}
	return buf[:found]
}
