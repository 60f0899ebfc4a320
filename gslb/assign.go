package gslb

import (
	"slices"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// Assign returns where the proxies of that pool send requests next, from the same health,
// weights and drains as the answers of DNS; nil for a pool without an upstream. The policy
// is that of the upstream with the pool's own site as the client's place; what it would
// share stickily the proxies share request by request, so select does not cut it.
func (s *Snapshot) Assign(pool *Pool) []Hop { return s.AssignTo(pool, config.DefaultUpstream) }

// AssignTo is Assign for the upstream of that name of the pool's proxies; nil where the pool
// has none of that name.
func (s *Snapshot) AssignTo(pool *Pool, upstream string) []Hop {
	steering := pool.upstreams[upstream]
	if steering == nil {
		return nil
	}
	c := newContest(steering)
	c.at(&pool.at)
	open := c.decide().reason == ReasonAllDown
	var order []int
	for i, st := range c.standings {
		if !st.out && (open || !st.down) {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, c.compare)
	hops := make([]Hop, 0, len(order))
	for n, i := range order {
		cand := &c.candidates[i]
		h := Hop{Pool: cand.pool.Name, Site: cand.pool.Site, Weight: cand.weight}
		if n > 0 {
			h.Priority = hops[n-1].Priority
			if c.compare(order[n-1], i) != 0 {
				h.Priority++
			}
		}
		list := cand.pool.view(c.shape.strict).up.index
		if open {
			list = cand.pool.open.index
		}
		for _, e := range list {
			h.Endpoints = append(h.Endpoints, cand.pool.Endpoints[e])
		}
		hops = append(hops, h)
	}
	return hops
}
