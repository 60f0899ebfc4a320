package health

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// The defaults of damping and of a service's guard.
const (
	defaultSuppress = 3.0
	defaultHalfLife = 5 * time.Minute
	defaultHold     = 30 * time.Minute
	defaultVelocity = 0.34 // a third
	defaultWindow   = 5 * time.Minute
	defaultPanic    = 0.5
)

// guard turns what the votes say to what is served. It keeps out what flaps, takes away only
// so much at once unless everybody agrees, and derives what is calculated. It is not safe for
// concurrent use.
type guard struct {
	pools    map[string]*guardedPool
	services []*guardedService
	ends     map[gslb.EndpointID]*guarded // every endpoint of pools
}

// guarded is one endpoint.
type guarded struct {
	verdict gslb.Verdict // that is served
	raw     gslb.Verdict // that the votes gave last
	why     string       // when verdict is not raw: held, suppressed, or what it is derived from
	share   float64      // of its pool's weight
	fell    time.Time    // when it was taken away; zero when it is not
	blocked bool         // a pool that its pool depends on is down
	damp    damping
}

// guardedPool is one pool.
type guardedPool struct {
	ends     []gslb.EndpointID
	services []*guardedService
	derived  *config.CalculatedProbe // the verdict of every endpoint is calculated; nil: by votes, or none
	invert   bool
	needs    []string // pools that it depends on
	probed   bool     // false: always up
	damping  config.Damping
}

// guardedService is one service: the pools it may answer with and their shares of its capacity.
type guardedService struct {
	name     string
	share    map[string]float64 // by pool; sums up to 1
	velocity float64
	window   time.Duration
	panic    float64

	lost, recent float64 // shares of the capacity that are down, and those that fell within the window; see weigh
}

// damping is how much an endpoint flaps.
type damping struct {
	penalty    float64
	at         time.Time // of penalty
	fall       time.Time // the last one
	suppressed bool
}

// newGuard returns the guard of objects, which knows of old what it has in common with it.
func newGuard(o *config.Objects, old *guard) *guard {
	g := &guard{pools: make(map[string]*guardedPool), ends: make(map[gslb.EndpointID]*guarded)}
	for name, p := range o.Pools {
		probe := o.Probes[p.Probe]
		gp := &guardedPool{needs: p.DependsOn, probed: p.Probe != "", invert: probe.Invert}
		if k := probe.Calculated; k != nil && len(k.Pools) > 0 {
			gp.derived = k
		}
		if probe.Damping != nil {
			gp.damping = *probe.Damping
		}
		total := 0
		for _, e := range p.Endpoints {
			total += e.EffectiveWeight()
		}
		for _, e := range p.Endpoints {
			id := gslb.EndpointID{Pool: name, Addr: e.Address}
			end := new(guarded)
			if old != nil && old.ends[id] != nil {
				*end = *old.ends[id]
			}
			end.share = float64(e.EffectiveWeight()) / float64(max(1, total))
			gp.ends = append(gp.ends, id)
			g.ends[id] = end
		}
		g.pools[name] = gp
	}
	for _, name := range o.Names("services") {
		g.service(name, o.Services[name], o.Pools)
	}
	return g
}

// service adds the guard of one service.
func (g *guard) service(name string, s config.Service, pools map[string]config.Pool) {
	gs := &guardedService{name: name, share: make(map[string]float64), velocity: defaultVelocity, window: defaultWindow, panic: defaultPanic}
	if c := s.Guard; c != nil {
		if c.Velocity != nil {
			gs.velocity = *c.Velocity
		}
		if c.Window != 0 {
			gs.window = time.Duration(c.Window)
		}
		if c.Panic != nil {
			gs.panic = *c.Panic
		}
	}
	declared := true
	for pool := range s.Pools {
		declared = declared && pools[pool].Capacity > 0
	}
	total := 0.0
	for pool, ref := range s.Pools {
		if g.pools[pool] == nil || ref.EffectiveWeight() == 0 {
			continue
		}
		gs.share[pool] = 1
		if declared {
			gs.share[pool] = pools[pool].Capacity
		}
		total += gs.share[pool]
	}
	for pool := range gs.share {
		gs.share[pool] /= total
		g.pools[pool].services = append(g.pools[pool].services, gs)
	}
	g.services = append(g.services, gs)
}

// vote is what the votes say of an endpoint now.
type vote struct {
	verdict   gslb.Verdict
	unanimous bool
}

// settle takes in what the votes say, of the endpoints that are probed, and decides what is
// served at now. It reports whether anything changed.
func (g *guard) settle(votes func(gslb.EndpointID) vote, now time.Time) (changed bool) {
	before := make(map[gslb.EndpointID]gslb.Verdict, len(g.ends))
	// Suppressed first, so that what is held knows what is left.
	var falling []gslb.EndpointID
	for _, name := range sortedKeys(g.pools) {
		p := g.pools[name]
		for _, id := range p.ends {
			e := g.ends[id]
			before[id] = e.verdict
			if p.derived != nil || !p.probed {
				continue
			}
			v := votes(id)
			e.damp.take(&p.damping, e.raw, v.verdict, now)
			e.raw, e.why = v.verdict, ""
			switch {
			case v.verdict == gslb.Down && e.verdict != gslb.Down && e.verdict != gslb.Unknown:
				falling = append(falling, id)
			case v.verdict == gslb.Up && e.damp.suppressed:
				if e.verdict != gslb.Down {
					e.fell = now
				}
				e.verdict, e.why = gslb.Down, "kept out: it flaps"
			case v.verdict == gslb.Up && e.blocked: // until derive says that it no longer is
			default:
				e.set(v.verdict, now)
			}
		}
	}
	if len(falling) > 0 {
		g.weigh(now)
	}
	for _, id := range falling {
		e := g.ends[id]
		if why := g.hold(id, votes(id).unanimous, now); why != "" {
			e.why = why
			continue
		}
		e.set(gslb.Down, now)
		for _, s := range g.pools[id.Pool].services {
			g.lose(s, id, now)
		}
	}
	g.derive(now)
	if g.refill() {
		g.derive(now)
	}
	for id, e := range g.ends {
		changed = changed || e.verdict != before[id]
	}
	return changed
}

func (e *guarded) set(v gslb.Verdict, now time.Time) {
	if v == gslb.Down && e.verdict != gslb.Down {
		e.fell = now
	}
	if v != gslb.Down {
		e.fell = time.Time{}
	}
	e.verdict = v
}

// take counts a fall, and lets the penalty decay.
func (d *damping) take(c *config.Damping, was, is gslb.Verdict, now time.Time) {
	if c.Off {
		*d = damping{}
		return
	}
	suppress, half, hold := c.Suppress, time.Duration(c.HalfLife), time.Duration(c.Hold)
	if suppress == 0 {
		suppress = defaultSuppress
	}
	if half == 0 {
		half = defaultHalfLife
	}
	if hold == 0 {
		hold = defaultHold
	}
	fell := was == gslb.Up && is == gslb.Down
	if d.penalty == 0 && !fell {
		return
	}
	d.penalty *= math.Exp2(-float64(now.Sub(d.at)) / float64(half))
	d.at = now
	if fell {
		d.penalty++
		d.fall = now
	}
	switch {
	case d.penalty > suppress:
		d.suppressed = true
	case d.penalty < suppress/2:
		d.suppressed = false
	}
	if now.Sub(d.fall) >= hold {
		*d = damping{}
	}
	if d.penalty < 0.01 {
		d.penalty = 0
	}
}

// hold says why an endpoint that the votes call down is not taken away; "" when it is. Each
// service that it serves must bear the loss: of a share in the window, and above panic. What
// everybody says is borne.
func (g *guard) hold(id gslb.EndpointID, unanimous bool, now time.Time) string {
	if unanimous {
		return ""
	}
	const slack = 1e-9 // of sums of shares
	for _, s := range g.pools[id.Pool].services {
		own := s.share[id.Pool] * g.ends[id].share
		switch {
		case s.recent+own > s.velocity+slack:
			return fmt.Sprintf("held up: %s would lose %.0f %% of its capacity in %v, and not every vantage agrees", s.name, 100*(s.recent+own), s.window)
		case 1-s.lost-own < s.panic-slack:
			return fmt.Sprintf("held up: %s would have %.0f %% of its capacity left, and not every vantage agrees", s.name, 100*max(0, 1-s.lost-own))
		}
	}
	return ""
}

// weigh adds up what each service has lost.
func (g *guard) weigh(now time.Time) {
	for _, s := range g.services {
		s.lost, s.recent = 0, 0
		for pool := range s.share {
			for _, id := range g.pools[pool].ends {
				if g.ends[id].verdict == gslb.Down {
					g.lose(s, id, now)
				}
			}
		}
	}
}

// lose adds one endpoint to what s has lost.
func (g *guard) lose(s *guardedService, id gslb.EndpointID, now time.Time) {
	e := g.ends[id]
	own := s.share[id.Pool] * e.share
	s.lost += own
	if !e.fell.IsZero() && now.Sub(e.fell) < s.window {
		s.recent += own
	}
}

// refill lets what is kept out for flapping in again where a service, or a pool of none, would
// have nothing left without it. It reports whether it did, and follows derive: what is not
// probed is up, or down with what it depends on.
func (g *guard) refill() (released bool) {
	release := func(pools []string) {
		var kept []*guarded
		for _, name := range pools {
			p := g.pools[name]
			for _, id := range p.ends {
				e := g.ends[id]
				if e.verdict != gslb.Down {
					return
				}
				if e.raw == gslb.Up && e.damp.suppressed && !e.blocked {
					kept = append(kept, e)
				}
			}
		}
		for _, e := range kept {
			e.verdict, e.why, e.fell = gslb.Up, "it flaps, but nothing else is left", time.Time{}
			released = true
		}
	}
	for _, s := range g.services {
		release(sortedKeys(s.share))
	}
	for _, name := range sortedKeys(g.pools) {
		if len(g.pools[name].services) == 0 {
			release([]string{name})
		}
	}
	return released
}

// derive sets what is calculated from pools, and what depends on them.
func (g *guard) derive(now time.Time) {
	done := make(map[string]bool)
	var visit func(name string)
	visit = func(name string) {
		p := g.pools[name]
		if p == nil || done[name] {
			return
		}
		done[name] = true
		for _, next := range p.needs {
			visit(next)
		}
		verdict, why := gslb.Up, "" // of what is not probed
		if p.derived != nil {
			up := 0
			for _, child := range p.derived.Pools {
				pool, _, _ := strings.Cut(child, "/")
				visit(pool)
				if g.up(child) {
					up++
				}
			}
			if (up >= needed(p.derived.Need, len(p.derived.Pools))) == p.invert {
				verdict = gslb.Down
			}
			why = fmt.Sprintf("calculated: %d of %d are up", up, len(p.derived.Pools))
		}
		own := p.derived == nil && p.probed
		down := slices.IndexFunc(p.needs, func(next string) bool { return g.pools[next] != nil && !g.up(next) })
		for _, id := range p.ends {
			e := g.ends[id]
			if !own {
				e.raw = verdict
			}
			switch {
			case down >= 0:
				e.set(gslb.Down, now)
				e.why = "depends on pool " + p.needs[down] + ", which is down"
			case !own:
				e.set(verdict, now)
				e.why = why
			case e.blocked && !e.damp.suppressed:
				e.set(e.raw, now)
			}
			e.blocked = down >= 0
		}
	}
	for _, name := range sortedKeys(g.pools) {
		visit(name)
	}
}

// up reports whether a pool, or an endpoint as POOL/ADDRESS, is up: unknown counts as up.
func (g *guard) up(name string) bool {
	pool, addr, one := strings.Cut(name, "/")
	p := g.pools[pool]
	return p != nil && slices.ContainsFunc(p.ends, func(id gslb.EndpointID) bool {
		return (!one || id.Addr.String() == addr) && g.ends[id].verdict != gslb.Down
	})
}

// annotate says in views what is served and why it is not what the votes say, and adds what is
// derived.
func (g *guard) annotate(views []View) []View {
	seen := make(map[gslb.EndpointID]bool, len(views))
	for i := range views {
		v := &views[i]
		id := gslb.EndpointID{Pool: v.Pool, Addr: v.Endpoint}
		seen[id] = true
		if e := g.ends[id]; e != nil {
			v.Verdict = verdictName(e.verdict)
			if e.why != "" {
				v.Why = e.why + "; " + v.Why
			}
		}
	}
	for id, e := range g.ends {
		if !seen[id] && g.serves(id) {
			views = append(views, View{Pool: id.Pool, Endpoint: id.Addr, Verdict: verdictName(e.verdict), Since: e.fell, Why: e.why, Vantages: []Vantage{}})
		}
	}
	return views
}

// serves reports whether the verdict of id is for others to know: it is probed, or derived.
func (g *guard) serves(id gslb.EndpointID) bool {
	p := g.pools[id.Pool]
	return p != nil && (p.probed || len(p.needs) > 0)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
