package gslb

import (
	"maps"
	"slices"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// What changes most often is a verdict. Then most pools and services are what they were in the
// last snapshot, and are taken from it.

// reading is what a policy reads beside its pools and the client.
type reading uint8

const (
	readsLoad reading = 1 << iota
	readsShares
	readsRTT
	readsRegions
)

// alike reports whether the last snapshot is of the same objects, places and states of
// operators: what it holds may be kept.
func (b *builder) alike() bool {
	return b.prev.in.Objects == b.in.Objects && b.prev.in.Geo == b.in.Geo && !b.in.Now.Before(b.prev.in.Now) &&
		!slices.ContainsFunc(b.prev.states, func(st orderedState) bool { return !st.Until.IsZero() && !st.Until.After(b.in.Now) })
}

// keptPools returns the pools of the last snapshot that compile to the same again.
func (b *builder) keptPools() map[string]*Pool {
	kept := make(map[string]*Pool)
	if !b.alike() {
		return kept
	}
	for _, p := range b.prev.Pools {
		c := b.in.Objects.Pools[p.Name]
		if p.ends.IsZero() && p.steps.IsZero() && !p.flipping && slices.Equal(b.prev.in.Names[c.Hostname], b.in.Names[c.Hostname]) && b.settled(p.Name, c.Endpoints) {
			kept[p.Name] = p
		}
	}
	for again := true; again; { // a pool is another when one that its proxies send to is
		again = false
		for name, p := range kept {
			for _, s := range p.upstreams {
				if !b.keeps(s, p.Name, func(q *Pool) bool { return kept[q.Name] == q }) {
					delete(kept, name)
					again = true
					break
				}
			}
		}
	}
	return kept
}

// settled reports whether the same is known of endpoints as in the last snapshot.
func (b *builder) settled(pool string, endpoints []config.Endpoint) bool {
	for _, e := range endpoints {
		id := EndpointID{pool, e.Address}
		was := &b.prev.in
		if was.Verdicts[id] != b.in.Verdicts[id] || was.Flipping[id] != b.in.Flipping[id] ||
			!was.Since[id].Equal(b.in.Since[id]) || !was.FlipAt[id].Equal(b.in.FlipAt[id]) {
			return false
		}
	}
	return true
}

// keeps reports whether s, of the service or the pool of that name in the last snapshot,
// compiles to the same again; kept says so of its pools.
func (b *builder) keeps(s *steering, name string, kept func(*Pool) bool) bool {
	if len(s.changes) > 0 || s.reads&readsRTT != 0 && b.prev.in.RTT != b.in.RTT ||
		s.reads&readsRegions != 0 && !maps.EqualFunc(b.prev.in.Regional, b.in.Regional, maps.Equal) {
		return false
	}
	for _, c := range s.candidates {
		if !kept(c.pool) || s.reads&readsLoad != 0 && !sameValue(b.prev.in.Load, b.in.Load, c.pool.Name) ||
			s.reads&readsShares != 0 && !sameValue(b.prev.in.Shares[name], b.in.Shares[name], c.pool.Name) {
			return false
		}
	}
	return true
}

func sameValue(a, b map[string]float64, key string) bool {
	x, in := a[key]
	y, too := b[key]
	return x == y && in == too
}

// keptService returns the service of that name in the last snapshot if it is the same in this
// one, whose pools are there; else nil.
func (b *builder) keptService(index int, name string) *Service {
	if !b.alike() {
		return nil
	}
	svc := b.prev.Services[index]
	if svc.Name != name || !b.keeps(&svc.steering, name, func(p *Pool) bool { return b.s.Pools[p.Index] == p }) {
		return nil
	}
	return svc
}
