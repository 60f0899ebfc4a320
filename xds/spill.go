package xds

import (
	"cmp"
	"maps"
	"math"
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

// shares are the parts of a flow by pool, 0..1: they add up to 1.
type shares map[string]float64

// noise is by how much a share must change to be told to proxies.
const noise = 0.02

type flowKey struct{ pool, upstream string }

// flow is the demand of one pool's proxies on one upstream.
type flow struct {
	groups  []group
	near    bool               // of the pools of a region it uses those that are nearest, as far as all are loaded alike
	demand  float64            // requests per second
	left    float64            // of demand: not yet placed
	placed  map[string]float64 // requests per second by pool
	over    float64            // of demand: what was left when every pool was full
	spilled bool               // pools that the policy prefers were full
	shares  shares             // what proxies are told; nil: the groups as they are
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
		if f.spilled {
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

// newSpill places the load of in. before are the shares that proxies were told last.
func newSpill(in Inputs, before map[flowKey]shares) *spill {
	s := &spill{flows: map[flowKey]*flow{}}
	demand := map[flowKey]float64{}
	for _, l := range in.Loads {
		demand[flowKey{l.From, l.Upstream}] += l.Rate
	}
	free := map[string]float64{} // by pool with a capacity: what is not yet given away
	for _, p := range in.Snapshot.Pools {
		for name, u := range in.Objects.Pools[p.Name].Upstreams() {
			key := flowKey{p.Name, name}
			f := &flow{
				groups: groups(&in, p, name, &u), near: u.KeepsNear(),
				demand: demand[key], left: demand[key], placed: map[string]float64{},
			}
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
	if len(in.Loads) == 0 {
		return s
	}
	s.pour(free)
	for _, f := range s.flows {
		f.spilled = f.asked() && !f.fits()
	}
	s.keepNear()
	for key, f := range s.flows {
		if f.asked() && !f.fits() {
			f.shares = f.share().steady(before[key], f.groups[0])
		}
		f.spilled = f.spilled && (f.shares != nil || f.over > tiny)
	}
	return s
}

// told returns the shares of every flow that is not as the policy alone would have it.
func (s *spill) told() map[flowKey]shares {
	out := map[flowKey]shares{}
	for key, f := range s.flows {
		if f.shares != nil {
			out[key] = f.shares
		}
	}
	return out
}

// pressure returns by pool of proxies how much of the capacity of the pools that its upstreams
// prefer is asked for, by all proxies together as if nothing were full; of several upstreams
// the most.
func (s *spill) pressure() map[string]float64 {
	wanted := map[string]float64{} // requests per second by pool
	for _, f := range s.flows {
		if f.asked() {
			for pool, share := range f.groups[0].shares() {
				wanted[pool] += f.demand * share
			}
		}
	}
	out := map[string]float64{}
	for key, f := range s.flows {
		if !f.asked() {
			continue
		}
		used, shares := 0.0, f.groups[0].shares()
		for _, t := range f.groups[0].targets {
			if t.capacity <= 0 {
				used = 0
				break
			}
			used += shares[t.hop.Pool] * wanted[t.hop.Pool] / t.capacity
		}
		if used > 0 {
			out[key.pool] = max(out[key.pool], used)
		}
	}
	return out
}

// asked reports whether there is anything to place, and where.
func (f *flow) asked() bool { return len(f.groups) > 0 && f.demand > tiny }

// share returns the parts of f. What no pool has room for is shared like the rest: all are
// over their capacity alike.
func (f *flow) share() shares {
	total := f.demand - f.over
	if total <= tiny {
		return nil
	}
	out := make(shares, len(f.placed))
	for pool, rate := range f.placed {
		out[pool] = rate / total
	}
	return out
}

// steady returns before where s differs from it by noise only, so that it is not told. What
// the policy has, g, is what was told where before is nil.
func (s shares) steady(before shares, g group) shares {
	was := before
	if was == nil {
		was = g.shares()
	}
	for _, of := range []shares{s, was} {
		for pool := range of {
			if math.Abs(s[pool]-was[pool]) > noise {
				return s
			}
		}
	}
	return before
}

// shares returns the parts that the weights of g say.
func (g *group) shares() shares {
	out, sum := make(shares, len(g.targets)), 0.0
	for _, w := range g.weights {
		sum += w
	}
	for i, t := range g.targets {
		out[t.hop.Pool] = g.weights[i] / sum
	}
	return out
}

// pour places the demand of all flows: each asks its pools in its own order, and pools that
// are asked for more than they have left give to all who ask in proportion.
func (s *spill) pour(free map[string]float64) {
	keys := slices.SortedFunc(maps.Keys(s.flows), compareKeys)
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

// keepNear lets the flows that use the pools of one region exchange what they were given:
// each pool is asked for as much as before, and so all are loaded alike, but by the flows that
// it is nearest to.
func (s *spill) keepNear() {
	type user struct {
		f    *flow
		g    *group
		left float64
	}
	regions := map[string][]user{} // by the pools of the group: who uses the same can exchange them
	for _, key := range slices.SortedFunc(maps.Keys(s.flows), compareKeys) {
		f := s.flows[key]
		if !f.near || !f.asked() {
			continue
		}
		for i := range f.groups {
			g := &f.groups[i]
			if len(g.targets) > 1 {
				regions[g.pools()] = append(regions[g.pools()], user{f: f, g: g})
			}
		}
	}
	for _, users := range regions {
		room := map[string]float64{} // by pool: what is exchanged
		for i := range users {
			u := &users[i]
			for _, t := range u.g.targets {
				rate := u.f.placed[t.hop.Pool]
				u.left += rate
				room[t.hop.Pool] += rate
				delete(u.f.placed, t.hop.Pool)
			}
		}
		for rank := range users[0].g.targets { // each asks its nearest first
			asked := map[string]float64{}
			for _, u := range users {
				asked[u.g.targets[rank].hop.Pool] += u.left
			}
			given := map[string]float64{}
			for i := range users {
				u := &users[i]
				pool := u.g.targets[rank].hop.Pool
				if u.left <= tiny {
					continue
				}
				rate := u.left * min(1, room[pool]/asked[pool])
				u.left -= rate
				u.f.placed[pool] += rate
				given[pool] += rate
			}
			for pool, rate := range given {
				room[pool] -= rate
			}
		}
	}
}

// pools names the pools of g, whatever their order.
func (g *group) pools() string {
	var names []string
	for _, t := range g.targets {
		names = append(names, t.hop.Pool)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func compareKeys(a, b flowKey) int {
	return cmp.Or(strings.Compare(a.pool, b.pool), strings.Compare(a.upstream, b.upstream))
}

// plan returns where the proxies of pool send the requests of an upstream: as the groups
// are, or with the pools that take a share of the demand first.
func (s *spill) plan(pool *gslb.Pool, upstream string) plan {
	f := s.flows[flowKey{pool.Name, upstream}]
	if f == nil {
		return plan{}
	}
	out := plan{groups: f.groups}
	if f.asked() { // where the upstream sheds what is over, proxies drop it before they choose
		out.drop = f.over / f.demand
	}
	if f.shares == nil {
		return out
	}
	var first group
	var rest []group
	for _, g := range f.groups {
		var others group
		for i, t := range g.targets {
			if share := f.shares[t.hop.Pool]; share >= 1.0/weightSum {
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
	if len(first.targets) > 0 {
		out.groups = append([]group{first}, rest...)
	}
	return out
}

// fits reports whether the first group takes all in its own proportions.
func (f *flow) fits() bool {
	for pool, share := range f.groups[0].shares() {
		if math.Abs(share*f.demand-f.placed[pool]) > share*f.demand/weightSum {
			return false
		}
	}
	return true
}
