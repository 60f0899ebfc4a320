package xds

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/meridian-gslb/meridian/gslb"
)

// PoolLoad is what proxies of one pool ask of another, by one upstream.
type PoolLoad struct {
	From     string  // pool of the proxies
	Upstream string  // name of the upstream
	To       string  // pool of the endpoints
	Rate     float64 // requests per second, over all proxies of From that report here
}

// spill says where requests go when a pool is asked for more than its capacity: to the next
// pools in the order of each viewpoint, all viewpoints together.
//
// It works from the demand, which is what all pools of an upstream are asked for together
// and so does not depend on how it is shared now. That makes it a waterfall without a
// feedback loop: the same demand always gives the same shares, and nothing oscillates.
type spill struct {
	flows map[flowKey]*flow
}

type flowKey struct{ pool, upstream string }

// flow is the demand of one pool's proxies on one upstream.
type flow struct {
	groups []group
	demand float64            // requests per second
	left   float64            // of demand: not yet placed
	placed map[string]float64 // requests per second by pool
	over   float64            // of demand: what was left when every pool was full
}

// Spill says that the proxies of one pool ask an upstream for more than the pools that they
// prefer have capacity for.
type Spill struct {
	From     string             // pool of the proxies
	Upstream string             // name of the upstream
	Demand   float64            // requests per second
	Placed   map[string]float64 // of them, by pool
	Over     float64            // of them, what no pool has capacity for
}

// spills returns the flows that are not served as the policy alone would have it, in order.
func (s *spill) spills() []Spill {
	var out []Spill
	for k, f := range s.flows {
		if len(f.groups) > 0 && f.demand > tiny && !f.fits() {
			out = append(out, Spill{From: k.pool, Upstream: k.upstream, Demand: f.demand, Placed: f.placed, Over: f.over})
		}
	}
	slices.SortFunc(out, func(a, b Spill) int {
		return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.Upstream, b.Upstream))
	})
	return out
}

// plan is where the requests of one flow go.
type plan struct {
	groups []group
	drop   float64 // share of the requests that no pool has capacity for, 0..1
}

func newSpill(in Inputs) *spill {
	s := &spill{flows: map[flowKey]*flow{}}
	demand := map[flowKey]float64{}
	for _, l := range in.Loads {
		demand[flowKey{l.From, l.Upstream}] += l.Rate
	}
	free := map[string]float64{} // by pool with a capacity: what is not yet given away
	for _, p := range in.Snapshot.Pools {
		for name, u := range in.Objects.Pools[p.Name].Upstreams() {
			key := flowKey{p.Name, name}
			f := &flow{groups: groups(&in, p, name, &u), demand: demand[key], left: demand[key], placed: map[string]float64{}}
			s.flows[key] = f
			for _, g := range f.groups {
				for _, t := range g.targets {
					if t.capacity > 0 {
						free[t.hop.Pool] = t.capacity
					}
				}
			}
		}
	}
	if len(in.Loads) > 0 && len(free) > 0 {
		s.pour(free)
	}
	return s
}

// pour places the demand of all flows: each asks its pools in its own order, and pools that
// are asked for more than they have left give to all who ask in proportion.
func (s *spill) pour(free map[string]float64) {
	keys := slices.SortedFunc(maps.Keys(s.flows), func(a, b flowKey) int {
		return cmp.Or(strings.Compare(a.pool, b.pool), strings.Compare(a.upstream, b.upstream))
	})
	deepest := 0
	for _, f := range s.flows {
		deepest = max(deepest, len(f.groups))
	}
	for depth := range deepest {
		// Within a group, what a full pool refuses is asked of the others: as many rounds as
		// there may be pools to fill up.
		for range maxRounds {
			if !s.round(keys, depth, free) {
				break
			}
		}
	}
	for _, f := range s.flows {
		f.over = f.left
	}
}

// maxRounds bounds how often a group asks again. What is left then goes to the next group.
const maxRounds = 8

// round lets every flow ask its group of that depth once, and says whether anything moved
// and something is left.
func (s *spill) round(keys []flowKey, depth int, free map[string]float64) bool {
	type ask struct {
		f    *flow
		pool string
		rate float64
	}
	var asks []ask
	total := map[string]float64{}
	for _, k := range keys {
		f := s.flows[k]
		if f.left <= tiny || depth >= len(f.groups) {
			continue
		}
		g, sum := f.groups[depth], 0.0
		for i, t := range g.targets {
			if t.room(free) {
				sum += g.weights[i]
			}
		}
		for i, t := range g.targets {
			if t.room(free) {
				rate := f.left * g.weights[i] / sum
				asks = append(asks, ask{f, t.hop.Pool, rate})
				total[t.hop.Pool] += rate
			}
		}
	}
	left := false
	for _, a := range asks {
		given := a.rate
		if room, limited := free[a.pool]; limited && total[a.pool] > room {
			given *= room / total[a.pool]
			left = true
		}
		a.f.left -= given
		a.f.placed[a.pool] += given
	}
	for pool, rate := range total {
		if room, limited := free[pool]; limited {
			free[pool] = max(0, room-rate)
		}
	}
	return left
}

// tiny is a rate that is nothing, in requests per second.
const tiny = 1e-6

// room says whether the target can take more. One without a declared capacity always can.
func (t *target) room(free map[string]float64) bool {
	room, limited := free[t.hop.Pool]
	return !limited || room > tiny
}

// plan returns where the proxies of pool send the requests of an upstream: as the groups
// are, or with the pools that take a share of the demand first.
func (s *spill) plan(pool *gslb.Pool, upstream string) plan {
	f := s.flows[flowKey{pool.Name, upstream}]
	if f == nil {
		return plan{}
	}
	if len(f.groups) == 0 || f.demand <= tiny || f.fits() {
		return plan{groups: f.groups}
	}
	// What no pool has room for is shared like the capacity: all are over it alike. Where
	// the upstream sheds it, proxies drop it before they choose.
	placed := maps.Clone(f.placed)
	if f.over > tiny {
		total := 0.0
		for _, rate := range placed {
			total += rate
		}
		if total <= tiny {
			return plan{groups: f.groups, drop: f.over / f.demand}
		}
		for p := range placed {
			placed[p] *= f.demand / total
		}
	}
	var first group
	out := plan{drop: f.over / f.demand}
	var rest []group
	for _, g := range f.groups {
		var others group
		for i, t := range g.targets {
			if share := placed[t.hop.Pool] / f.demand; share >= 1.0/weightSum {
				first.targets = append(first.targets, t)
				first.weights = append(first.weights, share)
			} else {
				others.targets = append(others.targets, t)
				others.weights = append(others.weights, g.weights[i])
			}
		}
		if len(others.targets) > 0 {
			rest = append(rest, others)
		}
	}
	out.groups = append([]group{first}, rest...)
	return out
}

// fits reports whether the first group takes all in its own proportions.
func (f *flow) fits() bool {
	g, sum := f.groups[0], 0.0
	for _, w := range g.weights {
		sum += w
	}
	for i, t := range g.targets {
		want := f.demand * g.weights[i] / sum
		if d := want - f.placed[t.hop.Pool]; d > want/weightSum || d < -want/weightSum {
			return false
		}
	}
	return true
}
