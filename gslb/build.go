package gslb

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
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
	plan, err := digest(in.Objects)
	if err != nil {
		return nil, err
	}
	if prev == nil {
		prev = &Snapshot{}
	}
	b := builder{in: in, prev: prev, s: &Snapshot{Revision: in.Revision, Plan: plan, Geo: in.Geo, routings: make(map[string]*routing)}}
	b.pools()
	for _, p := range b.s.Pools {
		b.upstream(p)
	}
	for _, name := range slices.Sorted(maps.Keys(in.Objects.Services)) {
		b.service(name, in.Objects.Services[name])
	}
	if len(b.faults) > 0 {
		return nil, errors.Join(b.faults...)
	}
	return b.s, nil
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

// builder is the state of one Build.
type builder struct {
	in     Inputs
	prev   *Snapshot
	s      *Snapshot
	ends   map[string]time.Time // when the first state of a pool, or of an endpoint of it, ends
	faults []error
}

func (b *builder) fail(format string, args ...any) {
	b.faults = append(b.faults, fmt.Errorf(format, args...))
}

// due makes the next snapshot due at t, if nothing is before.
func (b *builder) due(t time.Time) {
	if b.s.Next.IsZero() || t.Before(b.s.Next) {
		b.s.Next = t
	}
}

// pools compiles the pools and the states of operators that hold now.
func (b *builder) pools() {
	states := b.states()
	for i, name := range slices.Sorted(maps.Keys(b.in.Objects.Pools)) {
		c := b.in.Objects.Pools[name]
		p := &Pool{Name: name, Index: i, Site: c.Site, AnswerIDs: c.AnswerIDs}
		site, ok := b.in.Objects.Sites[c.Site]
		if !ok {
			b.fail("pool %s: site %q: no such site", name, c.Site)
		}
		p.site = spotAt(site.Lat, site.Lon)
		own := states[name]
		for _, e := range c.Endpoints {
			b.endpoint(p, &c, e, own)
		}
		p.Drained = own.whole().drain != nil
		p.settle(c.EffectiveMinHealth())
		p.annotate(own, b.in.Now)
		b.s.Pools = append(b.s.Pools, p)
	}
}

// endpoint adds e to p, with what probes and operators say of it: an operator beats
// probes, and what an operator said of one endpoint beats what was said of its pool.
func (b *builder) endpoint(p *Pool, c *config.Pool, e config.Endpoint, own poolStates) {
	id := EndpointID{p.Name, e.Address}
	out := Endpoint{Addr: e.Address, Port: c.EndpointPort(e), Weight: e.EffectiveWeight(), Verdict: b.in.Verdicts[id]}
	if c.Probe == "" {
		out.Verdict = Up
	}
	mine := own[e.Address]
	force := mine.force
	if force == nil {
		force = own.whole().force
	}
	if force != nil {
		out.Forced = true
		out.Verdict = Up
		if force.State == "down" {
			out.Verdict = Down
		}
	}
	out.Drained = mine.drain != nil
	if b.in.Flipping[id] && !out.Forced && out.Weight > 0 {
		p.flipping = true
	}
	p.Endpoints = append(p.Endpoints, out)
}

// settle derives the state of the pool from its endpoints.
func (p *Pool) settle(minHealth float64) {
	total, usable := 0, 0
	var fit, idle, open, held, all []int // endpoints: healthy, healthy but drained; not forced down, those drained; all
	for i, e := range p.Endpoints {
		if e.Weight == 0 {
			continue
		}
		total += e.Weight
		all = append(all, i)
		switch {
		case e.Verdict == Down:
		case e.Drained:
			idle = append(idle, i)
		default:
			fit = append(fit, i)
			usable += e.Weight
		}
		switch {
		case e.Forced && e.Verdict == Down:
		case e.Drained:
			held = append(held, i)
		default:
			open = append(open, i)
		}
	}
	p.none = len(all) == 0
	p.down = len(fit)+len(idle) == 0
	p.retired = len(fit) == 0 && len(idle) > 0
	p.shut = len(open)+len(held) == 0
	if total > 0 {
		p.Healthy = float64(usable) / float64(total)
	}
	p.Degraded = p.Healthy < minHealth
	open = first(open, held, all)
	p.up, p.open = p.list(first(fit, idle, open)), p.list(open)
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
func (p *Pool) list(index []int) endpoints {
	l := endpoints{index: index}
	for _, i := range index {
		e := &p.Endpoints[i]
		a := &l.v6
		if e.Addr.Is4() {
			a = &l.v4
		}
		a.addrs = append(a.addrs, e.Addr)
		a.means = append(a.means, 1/float64(e.Weight))
		a.seeds = append(a.seeds, seed("endpoint", p.Name, e.Addr.String()))
	}
	l.v4.addrs, l.v6.addrs = slices.Clip(l.v4.addrs), slices.Clip(l.v6.addrs)
	return l
}

// steering compiles a list of pools with a policy; where says whose it is, for faults.
func (b *builder) steering(where string, c config.Steering, failOpen bool) steering {
	s := steering{failOpen: failOpen}
	for _, name := range slices.Sorted(maps.Keys(c.Pools)) {
		p := b.s.Pool(name)
		if p == nil {
			b.fail("%s: pool %q: no such pool", where, name)
			continue
		}
		ref := c.Pools[name]
		s.candidates = append(s.candidates, candidate{p, ref.EffectiveWeight(), ref.Standby})
	}
	if err := s.compile(c.EffectivePolicy()); err != nil {
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
		s := b.steering(where, all[name].Steering, true)
		if p.upstreams == nil {
			p.upstreams = map[string]*steering{}
		}
		p.upstreams[name] = &s
	}
}

// service compiles a service.
func (b *builder) service(name string, c config.Service) {
	sticky := c.Sticky.WithDefaults()
	svc := &Service{
		Name: name, Index: len(b.s.Services), seed: seed("service", name),
		sticky4: uint8(sticky.IPv4), sticky6: uint8(sticky.IPv6),
	}
	svc.steering = b.steering("service "+name, c.Steering, c.AllDown.EffectiveMode() == "open")
	for _, cand := range svc.steering.candidates {
		svc.Pools = append(svc.Pools, cand.pool)
	}
	b.s.Services = append(b.s.Services, svc)
	if len(b.faults) > 0 {
		return
	}
	svc.routing = b.routing(&svc.steering)
	ttl := b.ttl(svc, c.EffectiveTTL())
	for _, ch := range svc.routing.choices {
		o := svc.outcome(ch, c.AllDown)
		o.ttl = ttl
		if svc.unsettled(&o) {
			o.ttl = min(ttl, max(minTTL, ttl/2))
		}
		svc.outcomes = append(svc.outcomes, o)
	}
}

// routing returns the routing of s, from this snapshot or the last where one has it.
func (b *builder) routing(s *steering) *routing {
	if !s.local || b.in.Geo == nil {
		return newRouting(s, nil)
	}
	if b.s.world == nil {
		b.s.world = newWorld(b.prev.world, b.in.Geo, b.in.Objects.Sites)
	}
	key := s.key()
	r := b.s.routings[key]
	if r == nil && b.s.world == b.prev.world {
		r = b.prev.routings[key]
	}
	if r == nil {
		r = newRouting(s, b.s.world)
	}
	b.s.routings[key] = r
	return r
}

// outcome returns what ch means for the service.
func (svc *Service) outcome(ch choice, allDown config.AllDown) outcome {
	o := outcome{reason: ch.reason}
	if ch.reason == ReasonAllDown {
		switch {
		case allDown.EffectiveMode() == "fallback":
			o.fallBack(allDown.Fallback)
			return o
		case len(ch.best) == 0: // servfail, or nothing that could ever answer
			o.reason = ReasonServfail
			return o
		}
	}
	add := func(i uint16, lost bool) {
		c := &svc.steering.candidates[i]
		list := &c.pool.up
		if ch.reason == ReasonAllDown {
			list = &c.pool.open
		}
		o.shares = append(o.shares, share{c.pool, list, 1 / float64(c.weight), seed("pool", c.pool.Name), lost})
	}
	for _, i := range ch.best {
		add(i, false)
	}
	for _, i := range ch.lost {
		add(i, true)
	}
	return o
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

// ttl returns the TTL of the service in seconds: full, or what is safe before the first of
// its pools' states ends.
func (b *builder) ttl(svc *Service, full time.Duration) uint32 {
	ttl := max(time.Second, full.Truncate(time.Second))
	for _, p := range svc.Pools {
		if end, ok := b.ends[p.Name]; ok {
			t, wait := untilEnd(ttl, end.Sub(b.in.Now))
			ttl = min(ttl, t)
			b.due(b.in.Now.Add(wait))
		}
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
