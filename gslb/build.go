package gslb

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// minTTL is the floor in seconds to which an unsettled answer's TTL is halved: shorter ones
// are ignored by many resolvers.
const minTTL = 5

// Build compiles in to a snapshot. prev, which may be nil, is the snapshot that it
// replaces: what did not change is shared with it. Build fails only on what config.Validate
// would have refused, and names it.
func Build(prev *Snapshot, in Inputs) (*Snapshot, error) {
	if in.Objects == nil {
		in.Objects = &config.Objects{}
	}
	if prev == nil {
		prev = &Snapshot{}
	}
	plan := prev.Plan
	if in.Objects != prev.in.Objects {
		var err error
		if plan, err = digest(in.Objects); err != nil {
			return nil, err
		}
	}
	b := builder{in: in, prev: prev, s: &Snapshot{
		Revision: in.Revision, Plan: plan, Geo: in.Geo, in: in,
		worlds: make(map[string]*world), routings: make(map[string]*routing), refined: make(map[string]*routing),
	}}
	b.pools()
	b.services()
	if len(b.faults) > 0 {
		return nil, errors.Join(b.faults...)
	}
	b.routings()
	parallel(len(b.s.Services), func(i int) {
		if svc := b.s.Services[i]; svc.outcomes == nil {
			b.outcomes(svc, in.Objects.Services[svc.Name])
		}
	})
	return b.s, nil
}

// parallel calls f with 0..n-1, as many at a time as there are cores, and returns when all
// calls have.
func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// digest returns the first 12 hex digits of the SHA-256 of the objects' JSON, whose maps
// are ordered by key.
func digest(o *config.Objects) (string, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("objects: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:6]), nil
}

// builder is the state of one Build. What is under mu is for the goroutines of parallel.
type builder struct {
	in   Inputs
	prev *Snapshot
	s    *Snapshot

	mu     sync.Mutex // also over s.Next and s.refined
	making map[string]func() *routing
	faults []error
}

func (b *builder) fail(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, fmt.Errorf(format, args...))
}

// due makes the next snapshot due at t, if nothing is before.
func (b *builder) due(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.s.Next.IsZero() || t.Before(b.s.Next) {
		b.s.Next = t
	}
}

// pools compiles the pools and the states of operators that hold now, but for the pools that
// are as they were.
func (b *builder) pools() {
	b.states()
	names := slices.Sorted(maps.Keys(b.in.Objects.Pools))
	kept := b.keptPools()
	b.s.Pools = make([]*Pool, len(names))
	for i, name := range names {
		if b.s.Pools[i] = kept[name]; kept[name] == nil {
			b.s.Pools[i] = b.pool(name, i, "")
		}
	}
	for _, p := range b.s.Pools {
		if kept[p.Name] == nil {
			b.upstream(p)
		}
	}
}

// pool compiles one pool as a service sees it; "" is what they see that no state sets apart.
func (b *builder) pool(name string, index int, service string) *Pool {
	c := b.in.Objects.Pools[name]
	p := &Pool{
		Name: name, Index: index, Site: c.Site, Hostname: c.Hostname, Port: c.Port, Capacity: c.Capacity, AnswerIDs: c.AnswerIDs,
		minHealth: c.EffectiveMinHealth(), ramp: 1,
	}
	site, ok := b.in.Objects.Sites[c.Site]
	if !ok {
		b.fail("pool %s: site %q: no such site", name, c.Site)
	}
	p.at = locusOf(c.Site, site)
	own := b.statesOf(p, c.Endpoints, service)
	ramps := make([]float64, len(c.Endpoints))
	for j, e := range c.Endpoints {
		ramps[j] = b.endpoint(p, &c, e, own)
	}
	p.Drained = own.whole().drain != nil
	if len(c.Endpoints) == 0 && c.Hostname != "" {
		p.settleName(own.whole().force, b.in.Names[c.Hostname])
	} else {
		p.settle(c.Endpoints, ramps, b.in.Since)
	}
	p.annotate(own, b.in.Now)
	return p
}

// endpoint adds e to p, with what probes and operators say of it: an operator beats
// probes, and what an operator said of one endpoint beats what was said of its pool. It
// returns how much of its weight e has, 0..1, for it may have come back just now.
func (b *builder) endpoint(p *Pool, c *config.Pool, e config.Endpoint, own poolStates) (ramp float64) {
	id := EndpointID{p.Name, e.Address}
	out := Endpoint{Addr: e.Address, Port: c.EndpointPort(e), Weight: e.EffectiveWeight(), Verdict: b.in.Verdicts[id]}
	ramp = 1
	if c.Probe == "" {
		out.Verdict = Up
	} else {
		out.Verdict, ramp = b.delayed(p, out.Verdict, b.in.Since[id], c.Delay)
	}
	mine := own[e.Address]
	force := mine.force
	if force == nil {
		force = own.whole().force
	}
	if force != nil {
		out.Forced = true
		ramp = 1
		out.Verdict = Up
		if force.State == "down" {
			out.Verdict = Down
		}
	}
	out.Drained = mine.drain != nil
	if b.in.Flipping[id] && !out.Forced && out.Weight > 0 {
		p.flipping = true
		if at := b.in.FlipAt[id]; !at.IsZero() && (p.flipAt.IsZero() || at.Before(p.flipAt)) {
			p.flipAt = at
		}
	}
	p.Endpoints = append(p.Endpoints, out)
	return ramp
}

// rampSteps is in how many steps a pool comes back.
const rampSteps = 10

// delayed returns what counts of a verdict on an endpoint of p that stands since then, and how
// far the endpoint is back.
func (b *builder) delayed(p *Pool, v Verdict, since time.Time, d config.Returning) (Verdict, float64) {
	if since.IsZero() || v == Unknown {
		return v, 1
	}
	wait := d.Failover.Std()
	if v == Up {
		wait = d.Failback.Std()
	}
	if end := since.Add(wait); end.After(b.in.Now) {
		b.ending(p, end)
		if v == Up {
			return Down, 1
		}
		return Up, 1
	}
	if v != Up || d.Ramp == 0 {
		return v, 1
	}
	step := d.Ramp.Std() / rampSteps
	n := int(b.in.Now.Sub(since.Add(wait)) / step) // steps that have passed
	if n >= rampSteps-1 {
		return v, 1
	}
	b.stepping(p, since.Add(wait+time.Duration(n+1)*step))
	return v, float64(n+1) / rampSteps
}

// The views of a pool: an unknown verdict counts as up, or as down.
const (
	loose = iota
	sure
)

// view is the state of a pool under one of them.
type view struct {
	healthy float64   // share of endpoint weight that is usable, 0..1
	alive   float64   // and of what is not down, drained or not
	down    bool      // no endpoint that has a weight is healthy
	retired bool      // what is healthy is drained, the pool or every such endpoint
	up      endpoints // to answer with
	note    string    // for people
}

// view returns that under which an unknown verdict counts as down, or as up.
func (p *Pool) view(strict bool) *view {
	if strict {
		return &p.views[sure]
	}
	return &p.views[loose]
}

// settle derives the state of the pool from its endpoints.
func (p *Pool) settle(config []config.Endpoint, ramps []float64, since map[EndpointID]time.Time) {
	var open, held, all []int // endpoints: not forced down, those of them that are drained, all
	for i, e := range p.Endpoints {
		if e.Weight == 0 {
			continue
		}
		all = append(all, i)
		switch {
		case e.Forced && e.Verdict == Down:
		case e.Drained:
			held = append(held, i)
		default:
			open = append(open, i)
		}
	}
	p.none = len(all) == 0
	p.shut = len(open)+len(held) == 0
	open = first(open, held, all)
	p.open = p.list(open, config, ramps)
	for k := range p.views {
		p.views[k].settle(p, k == sure, open, config, ramps)
	}
	v := &p.views[loose]
	p.Healthy, p.Degraded = v.healthy, v.healthy < p.minHealth
	if v.down && !p.none {
		p.settleLast(open, config, ramps, since)
	} else if len(v.up.index) > 0 {
		p.ramp = 0 // that of the endpoint that is back for longest
		for _, i := range v.up.index {
			p.ramp = max(p.ramp, ramps[i])
		}
	}
}

// settle fills v from the endpoints of p; open are those to answer with when none is healthy.
func (v *view) settle(p *Pool, strict bool, open []int, config []config.Endpoint, ramps []float64) {
	fit, idle := v.count(p, strict, nil)
	v.up = p.list(first(fit, idle, open), config, ramps)
}

// count fills v but for what to answer with, from the endpoints of p and, unless an operator
// forced them, from those that are seen down. It returns which are healthy, and which are but
// are drained.
func (v *view) count(p *Pool, strict bool, seen map[EndpointID]Verdict) (fit, idle []int) {
	total, usable, alive, up, counted := 0, 0, 0, 0, 0
	for i, e := range p.Endpoints {
		if e.Weight == 0 {
			continue
		}
		total += e.Weight
		counted++
		if e.Verdict == Down || strict && e.Verdict == Unknown || !e.Forced && seen[EndpointID{p.Name, e.Addr}] == Down {
			continue
		}
		up++
		alive += e.Weight
		if e.Drained {
			idle = append(idle, i)
			continue
		}
		fit = append(fit, i)
		usable += e.Weight
	}
	v.down = len(fit)+len(idle) == 0
	v.retired = len(fit) == 0 && len(idle) > 0
	if total > 0 {
		v.healthy, v.alive = float64(usable)/float64(total), float64(alive)/float64(total)
	}
	v.note = fmt.Sprintf("%d of %d endpoints healthy", up, counted)
	return fit, idle
}

// lastGoodSpan is how long before the last healthy endpoint went down the others must have
// gone to count as known good no more.
const lastGoodSpan = time.Minute

// settleLast finds what was healthy until last in a pool that is down.
func (p *Pool) settleLast(open []int, config []config.Endpoint, ramps []float64, since map[EndpointID]time.Time) {
	at := func(i int) time.Time { return since[EndpointID{p.Name, p.Endpoints[i].Addr}] }
	for _, i := range open {
		if t := at(i); t.After(p.downAt) {
			p.downAt = t
		}
	}
	var last []int
	for _, i := range open {
		if p.downAt.Sub(at(i)) <= lastGoodSpan {
			last = append(last, i)
		}
	}
	p.last = p.list(last, config, ramps)
}

// settleName makes p a pool that is a name: healthy unless an operator says otherwise.
// addrs is what the name resolves to.
func (p *Pool) settleName(force *config.State, addrs []netip.Addr) {
	down := force != nil && force.State == "down"
	note := "a name, not probed"
	if down {
		note = "a name, forced down"
	}
	healthy := 1.0
	if down {
		healthy = 0
	}
	for k := range p.views {
		p.views[k] = view{healthy: healthy, alive: healthy, down: down, note: note}
	}
	p.shut, p.Healthy, p.Degraded = down, healthy, down
	for _, a := range addrs {
		l := &p.flat.v6
		if a.Is4() {
			l = &p.flat.v4
		}
		l.addrs = append(l.addrs, a)
		l.means, l.even = append(l.means, 1), true
		l.seeds = append(l.seeds, seed("endpoint", p.Name, a.String()))
		l.domains = append(l.domains, uint16(len(p.flat.domains)))
		p.flat.domains = append(p.flat.domains, domain{a.String(), seed("domain", p.Name, a.String()), 1})
	}
}

// first returns the first of lists that is not empty.
func first(lists ...[]int) []int {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}

// list returns those endpoints of p by family.
func (p *Pool) list(index []int, config []config.Endpoint, ramps []float64) endpoints {
	l := endpoints{index: index}
	for _, i := range index {
		e := &p.Endpoints[i]
		a := &l.v6
		if e.Addr.Is4() {
			a = &l.v4
		}
		name := config[i].Domain
		if name == "" {
			name = e.Addr.String()
		}
		k := slices.IndexFunc(l.domains, func(d domain) bool { return d.name == name })
		if k < 0 {
			k = len(l.domains)
			l.domains = append(l.domains, domain{name: name, seed: seed("domain", p.Name, name)})
		}
		weight := float64(e.Weight) * ramps[i]
		l.domains[k].mean += weight
		a.domains = append(a.domains, uint16(k))
		a.addrs = append(a.addrs, e.Addr)
		a.even = len(a.means) == 0 || a.even && a.means[0] == 1/weight
		a.means = append(a.means, 1/weight)
		a.seeds = append(a.seeds, seed("endpoint", p.Name, e.Addr.String()))
	}
	for k := range l.domains {
		l.domains[k].mean = 1 / l.domains[k].mean
	}
	l.v4.addrs, l.v6.addrs = slices.Clip(l.v4.addrs), slices.Clip(l.v6.addrs)
	return l
}

// steering compiles a list of pools with a policy; where says whose it is, for faults, and
// name what match stages compare with. was, which may be nil, is what the same objects compiled to
// before. seen returns a pool as the steering sees it.
func (b *builder) steering(where, name string, c config.Steering, s steering, was *steering, seen func(*Pool) *Pool) steering {
	var names []string
	if was != nil {
		s.candidates = slices.Clone(was.candidates)
		for i, c := range s.candidates {
			s.candidates[i].pool = seen(b.s.Pools[c.pool.Index])
		}
	} else {
		names = slices.Sorted(maps.Keys(c.Pools))
	}
	for _, name := range names {
		p := b.s.Pool(name)
		if p == nil {
			b.fail("%s: pool %q: no such pool", where, name)
			continue
		}
		ref := c.Pools[name]
		s.candidates = append(s.candidates, candidate{seen(p), ref.EffectiveWeight(), ref.Standby})
	}
	env := &environment{
		chains: b.in.Objects.Chains, name: name, now: b.in.Now, load: b.in.Load, shares: b.in.Shares[name], rtt: b.in.RTT,
		sites: b.in.Objects.Sites, seen: b.in.Regional,
	}
	if err := s.compile(c.EffectivePolicy(), env); err != nil {
		b.fail("%s: policy: %w", where, err)
	}
	return s
}

// upstream compiles where the proxies of p send requests next.
func (b *builder) upstream(p *Pool) {
	all := b.in.Objects.Pools[p.Name].Upstreams()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		where := "pool " + p.Name + ": upstream"
		if name != config.DefaultUpstream {
			where += " " + name
		}
		s := b.steering(where, p.Name, all[name].Steering, steering{failOpen: true}, nil, func(p *Pool) *Pool { return p })
		for _, t := range s.changes {
			b.due(t)
		}
		if p.upstreams == nil {
			p.upstreams = map[string]*steering{}
		}
		p.upstreams[name] = &s
	}
}

// services compiles the steerings of the services, but for those that are as they were.
func (b *builder) services() {
	names := slices.Sorted(maps.Keys(b.in.Objects.Services))
	b.s.Services = make([]*Service, len(names))
	good := len(b.faults)
	parallel(len(names), func(i int) {
		if svc := b.keptService(i, names[i]); svc != nil {
			b.s.Services[i] = svc
			return
		}
		b.s.Services[i] = b.service(names[i], i, b.in.Objects.Services[names[i]])
	})
	slices.SortFunc(b.faults[good:], func(x, y error) int { return strings.Compare(x.Error(), y.Error()) })
}

// service compiles the steering of a service.
func (b *builder) service(name string, index int, c config.Service) *Service {
	sticky := c.Sticky.WithDefaults()
	svc := &Service{
		Name: name, Index: index, seed: seed("service", name),
		sticky4: uint8(sticky.IPv4), sticky6: uint8(sticky.IPv6),
		HTTPS: c.HTTPS, SRV: c.SRV,
	}
	mode := c.AllDown.EffectiveMode()
	empty := steering{failOpen: mode == "open" || mode == "last", lastGood: mode == "last", targets: c.Targets()}
	var was *steering
	if b.alike() {
		was = &b.prev.Services[index].steering
	}
	svc.steering = b.steering("service "+name, name, c.Steering, empty, was, func(p *Pool) *Pool { return b.seenBy(name, p) })
	for _, cand := range svc.steering.candidates {
		svc.Pools = append(svc.Pools, cand.pool)
	}
	return svc
}

// seenBy returns p as the service of that name sees it: p itself, unless a state is for some
// services only.
func (b *builder) seenBy(service string, p *Pool) *Pool {
	if !b.apart(service, p.Name) {
		return p
	}
	own := b.pool(p.Name, p.Index, service)
	own.upstreams = p.upstreams
	return own
}

// outcomes derives what the routing of a service leads to.
func (b *builder) outcomes(svc *Service, c config.Service) {
	floor := b.floor(c)
	ttl := b.ttl(svc, c.EffectiveTTL(), floor)
	_, apex := b.in.Objects.Zones[svc.Name]
	svc.outcomes = make([]outcome, 0, len(svc.routing.choices))
	for _, ch := range svc.routing.choices {
		o := svc.outcome(ch, c.AllDown, apex)
		o.ttl = ttl
		if svc.unsettled(&o) {
			o.ttl = min(ttl, max(floor, svc.soon(&o, b.in.Now, ttl)))
		}
		svc.outcomes = append(svc.outcomes, o)
		svc.V4, svc.V6, svc.Names = svc.V4 || len(o.v4) > 0, svc.V6 || len(o.v6) > 0, svc.Names || o.fallback != ""
		for _, sh := range o.shares {
			svc.V4, svc.V6 = svc.V4 || len(sh.list.v4.addrs) > 0, svc.V6 || len(sh.list.v6.addrs) > 0
			svc.Names = svc.Names || sh.host != ""
		}
	}
	svc.V4, svc.V6 = svc.V4 || svc.Names, svc.V6 || svc.Names
	if svc.routing.rough {
		svc.routing = b.refined(svc.routing, kindsOf(svc))
	}
}

// refined returns r with those kinds, which services that agree share; the last snapshot's if
// it had it.
func (b *builder) refined(r *routing, kinds []uint32) *routing {
	if slices.Equal(kinds, r.kinds) {
		return r
	}
	key := fmt.Sprintf("%p %v", r, kinds) // whoever has the routing keeps r alive, and its address
	b.mu.Lock()
	make := b.making[key]
	if make == nil {
		make = sync.OnceValue(func() *routing {
			if own := b.prev.refined[key]; own != nil {
				return own
			}
			return r.refine(kinds)
		})
		if b.making == nil {
			b.making = map[string]func() *routing{}
		}
		b.making[key] = make
	}
	b.mu.Unlock()
	own := make()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.s.refined[key] = own
	return own
}

// maxSpare is how many routings are kept that no service uses: what fails comes back, and
// then the last routings are right again.
const maxSpare = 8

// tallied is how many classes of a world are tallied at a time.
const tallied = 2048

// routings gives every service its routing: one of this snapshot's or the last's that is
// equal, else one that is compiled now, by all cores.
func (b *builder) routings() {
	type job struct {
		key      string
		steering *steering
		world    *world
		last     *routing // what it may take from
		classes  []uint32 // at which a contest is held
		tallies  []*tally
		routing  *routing
	}
	type piece struct{ job, tally int }
	var jobs []*job
	var pieces []piece
	todo := make(map[string]*job)
	waits := make(map[*Service]*job)
	for _, svc := range b.s.Services {
		s := &svc.steering
		if svc.routing != nil { // kept
			if whole := svc.routing.whole; whole.world != nil {
				b.s.routings[whole.key], b.s.worlds[whole.world.key] = whole, whole.world
				if svc.routing != whole {
					b.refined(whole, svc.routing.kinds)
				}
			}
			continue
		}
		if !s.local || b.in.Geo == nil && len(s.marks) == 0 {
			svc.routing = newRouting(s)
			continue
		}
		w := b.world(s.marks)
		key := s.key()
		if r := b.s.routings[key]; r != nil {
			svc.routing = r
			continue
		}
		r := b.prev.routings[key]
		if r == nil {
			r = b.prev.spare[key]
		}
		if r != nil && r.world == w {
			svc.routing, b.s.routings[key] = r, r
			continue
		}
		j := todo[key]
		if j == nil {
			j = &job{key: key, steering: s, world: w}
			if was := b.prev.Service(svc.Name); was != nil && was.routing.world == w {
				j.last = was.routing.whole
				j.classes = j.last.unsure(&was.steering, s, w)
			} else {
				j.classes = j.last.unsure(nil, s, w)
			}
			j.tallies = make([]*tally, (len(j.classes)+tallied-1)/tallied)
			for i := range j.tallies {
				pieces = append(pieces, piece{len(jobs), i})
			}
			todo[key] = j
			jobs = append(jobs, j)
		}
		waits[svc] = j
	}
	parallel(len(pieces), func(i int) {
		j, n := jobs[pieces[i].job], pieces[i].tally
		j.tallies[n] = newTally(j.steering, j.world, j.classes[n*tallied:min(len(j.classes), (n+1)*tallied)])
	})
	parallel(len(jobs), func(i int) {
		j := jobs[i]
		j.routing = joinRouting(j.world, j.tallies, j.last)
		j.routing.key = j.key
	})
	for key, j := range todo {
		b.s.routings[key] = j.routing
	}
	b.s.spare = make(map[string]*routing)
	for _, from := range []map[string]*routing{b.prev.routings, b.prev.spare} {
		for key, r := range from {
			if b.s.routings[key] == nil && r.world == b.s.worlds[r.world.key] && len(b.s.spare) < maxSpare {
				b.s.spare[key] = r
			}
		}
	}
	for svc, j := range waits {
		svc.routing = j.routing
	}
}

// world returns the world under those prefixes, the last snapshot's if nothing has changed.
func (b *builder) world(marks []netip.Prefix) *world {
	key := strings.Join(texts(marks), " ")
	if w := b.s.worlds[key]; w != nil {
		return w
	}
	w := b.prev.worlds[key]
	if w == nil || !w.same(b.in.Geo, b.in.Objects.Sites) {
		var like *world
		for _, o := range b.s.worlds {
			like = o
			break
		}
		w = newWorld(like, b.in.Geo, b.in.Objects.Sites, marks)
		w.key = key
	}
	b.s.worlds[key] = w
	return w
}

// outcome returns what ch means for the service; apex says that its name cannot be an alias
// (RFC 1034, section 3.6.2), so that hostnames are answered by their addresses.
func (svc *Service) outcome(ch choice, allDown config.AllDown, apex bool) outcome {
	o := outcome{reason: ch.reason, shape: ch.shape, main: ch.main, flags: ch.flags}
	if b := &svc.steering.base; o.shape.answers == 0 {
		o.shape.answers, o.shape.pools, o.shape.perSite, o.shape.listed = b.answers, b.pools, b.perSite, b.listed
	}
	if ch.reason == ReasonAllDown {
		switch {
		case allDown.EffectiveMode() == "fallback":
			o.fallBack(allDown.Fallback)
			return o
		case len(ch.picks) == 0: // servfail, or nothing that could ever answer
			o.reason = ReasonServfail
			return o
		}
	}
	o.shares = make([]share, 0, len(ch.picks)+len(ch.lost))
	add := func(p pick, lost bool) {
		c := &svc.steering.candidates[p.i]
		list := &c.pool.view(ch.shape.strict).up
		if ch.reason == ReasonAllDown {
			list = &c.pool.open
			if svc.steering.lastGood && len(c.pool.last.index) > 0 {
				list = &c.pool.last
			}
		}
		sh := share{
			pool: c.pool, list: list, mean: 1 / float64(c.weight), seed: seed("pool", c.pool.Name),
			gates: svc.steering.gates(p.i, p.limits), group: p.group, reason: ch.reason, lost: lost,
		}
		if c.pool.notes.state != "" {
			sh.flags = Overridden
		}
		switch {
		case ch.reason == ReasonAllDown:
		case lost:
			sh.reason = ReasonFailover
		case p.group < ch.main:
			sh.reason = ReasonTrickle
		case p.group > ch.main:
			sh.reason = ReasonOverflow
		}
		if c.pool.Hostname != "" && len(c.pool.Endpoints) == 0 {
			if sh.list = &c.pool.flat; !apex || len(c.pool.flat.v4.addrs)+len(c.pool.flat.v6.addrs) == 0 { // a name that is not known yet may be one of ours
				sh.host = c.pool.Hostname
			}
		}
		o.shares = append(o.shares, sh)
	}
	late := len(ch.picks) // the first pick after the main group
	for i, p := range ch.picks {
		if p.group > ch.main {
			late = i
			break
		}
		add(p, false)
	}
	for _, i := range ch.lost {
		add(pick{0, i, ch.main}, true)
	}
	for _, p := range ch.picks[late:] {
		add(p, false)
	}
	o.settle(svc.steering.targets)
	return o
}

// settle drops the shares of o that get no client, and derives from the others whether draws
// decide among them.
func (o *outcome) settle(targets int) {
	s := &o.shape
	o.merged = s.mode != single || s.pools > 1
	if s.perSite > 0 && !o.merged {
		s.answers, s.perSite = min(s.answers, s.perSite), 0
	}
	whole := func(sh share) bool { return len(sh.gates) == 0 && !sh.lost }
	shut := func(sh share) bool { return slices.ContainsFunc(sh.gates, func(g gate) bool { return g.below == 0 }) }
	switch {
	case slices.ContainsFunc(o.shares, whole):
		open := slices.ContainsFunc(o.shares, func(sh share) bool { return sh.group == o.main && !sh.lost && !shut(sh) })
		for i := range o.shares { // who shuts all out of the main group loses its clients to the others
			if sh := &o.shares[i]; open && o.reason == ReasonPolicy && sh.group == o.main && shut(*sh) {
				sh.lost, sh.reason, sh.gates = true, ReasonOverflow, nil
			}
		}
		o.shares = slices.DeleteFunc(o.shares, shut)
	case !slices.ContainsFunc(o.shares, func(sh share) bool { return !sh.lost && !shut(sh) }): // nobody takes a client, so the first choice must
		o.shares = slices.DeleteFunc(o.shares, func(sh share) bool { return sh.group != o.main })
		for i := range o.shares {
			o.shares[i].gates = nil
		}
	}
	live, done := 0, false
	for i := 0; i < len(o.shares); i++ {
		if i > 0 && o.shares[i].group != o.shares[i-1].group {
			if done && s.pools <= 1 { // nobody gets farther: what follows another has a name, or is no use
				own := o.shares[:i]
				o.shares = append(own, slices.DeleteFunc(o.shares[i:], func(sh share) bool {
					return targets <= 1 || sh.pool.Hostname == "" || !slices.ContainsFunc(own, func(o share) bool { return o.pool != sh.pool })
				})...)
				if i == len(o.shares) {
					break
				}
			}
			live = 0
		}
		sh := &o.shares[i]
		if sh.lost {
			o.hashed = true
			continue
		}
		live++
		done = done || len(sh.gates) == 0
		if live > 1 || len(sh.gates) > 0 {
			o.split = true
		}
		o.hashed = o.hashed || o.split
	}
	o.split = o.split && !o.sole()
}

// sole reports whether every client gets the same pool, whichever of its shares it takes.
func (o *outcome) sole() bool {
	var only *Pool
	for i := range o.shares {
		if sh := &o.shares[i]; !sh.lost {
			if only != nil && sh.pool != only {
				return false
			}
			only = sh.pool
		}
	}
	return true
}

// fallBack makes o the answer of a service's fallback: addresses, or one name.
func (o *outcome) fallBack(to []string) {
	o.reason = ReasonFallback
	for _, text := range to {
		addr, err := netip.ParseAddr(text)
		switch {
		case err != nil:
			o.fallback = text
		case addr.Is4():
			o.v4 = append(o.v4, addr)
		default:
			o.v6 = append(o.v6, addr)
		}
	}
	o.v4, o.v6 = slices.Clip(o.v4), slices.Clip(o.v6)
}

// unsettled reports whether o is likely to change soon: the verdict of an endpoint of its
// pools is about to, or of a pool that was passed over for it; or it is what is left when
// much is down.
func (svc *Service) unsettled(o *outcome) bool {
	if o.reason >= ReasonDegraded {
		return true
	}
	if slices.ContainsFunc(o.shares, func(sh share) bool { return sh.pool.flipping }) {
		return true
	}
	return o.reason != ReasonPolicy && slices.ContainsFunc(svc.Pools, func(p *Pool) bool { return p.flipping })
}

// soon returns the TTL in seconds of an answer that is unsettled: until the first verdict
// may flip, where that is known, else half.
func (svc *Service) soon(o *outcome, now time.Time, ttl uint32) uint32 {
	var at time.Time
	for _, p := range svc.Pools {
		if p.flipping && p.flipAt.IsZero() {
			return ttl / 2
		}
		if p.flipping && (at.IsZero() || p.flipAt.Before(at)) {
			at = p.flipAt
		}
	}
	if at.IsZero() {
		return ttl / 2
	}
	left := uint32(max(0, at.Sub(now)/time.Second))
	if o.reason >= ReasonDegraded {
		left = min(left, ttl/2)
	}
	return left
}

// floor returns the TTL in seconds that no shortening goes below, but for the end of a state
// that is known.
func (b *builder) floor(c config.Service) uint32 {
	if c.MinTTL > 0 {
		return uint32(c.MinTTL.Std() / time.Second)
	}
	return minTTL
}

// ttl returns the TTL of the service in seconds: full, or what is safe before the first of
// its pools' states ends, or its policy changes by the clock. A step of a slow start moves a
// tenth of a pool's clients, and is not worth a TTL below the floor.
func (b *builder) ttl(svc *Service, full time.Duration, floor uint32) uint32 {
	ttl := max(time.Second, full.Truncate(time.Second))
	all := ttl
	until := func(end time.Time) {
		if end.After(b.in.Now) {
			t, wait := untilEnd(all, end.Sub(b.in.Now))
			ttl = min(ttl, t)
			b.due(b.in.Now.Add(wait))
		}
	}
	for _, p := range svc.Pools {
		if !p.ends.IsZero() {
			until(p.ends)
		}
		if !p.steps.IsZero() {
			left := p.steps.Sub(b.in.Now).Truncate(time.Second)
			ttl = min(ttl, max(time.Duration(floor)*time.Second, left))
		}
	}
	for _, end := range svc.steering.changes {
		b.due(end)
		until(end)
	}
	return uint32(ttl / time.Second)
}

// untilEnd returns the TTL for answers that change in left, and when to ask again: answers
// given until then must be forgotten in time. A TTL is at least a second. 0 < left.
func untilEnd(full, left time.Duration) (ttl, wait time.Duration) {
	if left > full {
		return full, left - full
	}
	ttl = max(time.Second, (left / 2).Truncate(time.Second))
	if wait = left - ttl; wait <= 0 {
		wait = left
	}
	return ttl, wait
}
