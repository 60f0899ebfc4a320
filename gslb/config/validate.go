package config

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Validate checks o as a whole: every object by itself, every reference, and that no two
// say something different of the same thing. The error joins every Fault. What passes may
// be served; whether it answers anything is for Unanswerable.
func Validate(o *Objects) error {
	if o == nil {
		return nil
	}
	return o.check(true).err()
}

// Unanswerable returns a Fault for every service of o that no pool could ever answer: its
// pools have no endpoint, all weights are 0, or a fence keeps everybody from the others. A file
// with one is refused; a change that makes one needs force. o must be valid.
func Unanswerable(o *Objects) []Fault {
	c := checker{o: o, refs: true}
	for _, name := range o.Names("services") {
		p := path{"services", name}
		st := o.Services[name].Steering
		pools := slices.DeleteFunc(sortedPools(st), func(pool string) bool {
			return st.Pools[pool].EffectiveWeight() == 0 || !o.Pools[pool].answers()
		})
		switch {
		case len(st.Pools) == 0: // a fault already
		case len(pools) == 0:
			c.fail(p.at("pools"), "no endpoint could ever answer; expected a pool with a weight over 0 and an endpoint with a weight over 0")
		case !slices.ContainsFunc(pools, func(pool string) bool { return o.open(st.Policy, pool) }):
			c.fail(p.at("policy"), "no pool could ever answer: fences for everybody leave none; expected one that they leave")
		}
	}
	return Faults(c.faults.err())
}

// open reports whether fences for everybody in a policy, and in the chains that always stand in
// it, leave a pool.
func (o *Objects) open(policy []Stage, pool string) bool {
	for _, s := range policy {
		switch {
		case s.Fence != nil:
			for _, r := range s.Fence.Rules {
				if r.When.IsZero() && !r.Admits(pool, o.Pools[pool].Site) {
					return false
				}
			}
		case s.Chain != nil && !o.open(o.Chains[string(*s.Chain)].Policy, pool):
			return false
		}
	}
	return true
}

// answers reports whether p has an endpoint that may be answered with.
func (p Pool) answers() bool {
	return p.Hostname != "" && len(p.Endpoints) == 0 || slices.ContainsFunc(p.Endpoints, func(e Endpoint) bool { return e.EffectiveWeight() > 0 })
}

func sortedPools(st Steering) []string {
	names := make([]string, 0, len(st.Pools))
	for n := range st.Pools {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// checker collects what is wrong with objects.
type checker struct {
	o      *Objects
	refs   bool    // whether references are checked
	places *places // of what is not an object: the node
	faults faultList
}

// check returns the faults of o; without refs only those that each object has by itself.
func (o *Objects) check(refs bool) faultList {
	c := checker{o: o, refs: refs}
	for _, name := range o.Names("sites") {
		c.site(path{"sites", name}, o.Sites[name])
	}
	for _, name := range o.Names("zones") {
		c.zone(path{"zones", name}, name, o.Zones[name])
	}
	for _, name := range o.Names("probes") {
		c.probe(path{"probes", name}, o.Probes[name])
	}
	for _, name := range o.Names("pools") {
		c.pool(path{"pools", name}, o.Pools[name])
	}
	for _, name := range o.Names("chains") {
		c.name(path{"chains", name})
		if len(o.Chains[name].Policy) == 0 {
			c.missing(path{"chains", name, "policy"}, "no value; expected stages")
		}
		c.policy(path{"chains", name, "policy"}, o.Chains[name].Policy, nil)
	}
	for _, name := range o.Names("services") {
		c.service(path{"services", name}, name, o.Services[name])
	}
	for _, name := range o.Names("nodes") {
		c.nodeKey(path{"nodes", name}, o.Nodes[name])
	}
	seen := map[string]string{}
	for _, name := range o.Names("states") {
		c.state(path{"states", name}, name, o.States[name], seen)
	}
	if refs {
		c.upstreamLoops()
		c.chains()
		c.healthLoops()
	}
	return c.faults
}

// place returns where p stands.
func (c *checker) place(p path) (file string, line int) { return c.text(p).find(p) }

// text returns the places of the text that p was read from; nil if there is none.
func (c *checker) text(p path) *places {
	if len(p) >= 2 && c.o != nil {
		if pl := c.o.places[objectKey{p[0], p[1]}]; pl != nil {
			return pl
		}
	}
	return c.places
}

// written tells whether there is a value at p in the text that it was read from.
func (c *checker) written(p path) bool {
	pl := c.text(p)
	return pl != nil && pl.lines[p.key()] != 0
}

func (c *checker) add(p path, absent bool, format string, args ...any) {
	file, line := c.place(p)
	c.faults.add(fault{Fault: Fault{File: file, Line: line, Msg: fmt.Sprintf(format, args...)}, path: p, absent: absent})
}

// fail records what is wrong with the value at p.
func (c *checker) fail(p path, format string, args ...any) { c.add(p, false, format, args...) }

// missing records that there is no value at p.
func (c *checker) missing(p path, format string, args ...any) { c.add(p, true, format, args...) }

// name checks the name of an object that is not a domain name.
func (c *checker) name(p path) {
	if msg := checkName(p[len(p)-1]); msg != "" {
		c.fail(p, "%s", msg)
	}
}

// domain checks that s is a domain name as the objects hold it.
func (c *checker) domain(p path, s string) bool {
	msg := checkDomain(s)
	if msg != "" {
		c.fail(p, "%s", msg)
	}
	return msg == ""
}

// ref checks that an object of that kind is there.
func (c *checker) ref(p path, kind, name string) {
	if !c.refs {
		return
	}
	if _, ok := c.o.Object(kind, name); !ok {
		c.fail(p, "no such %s; %s", strings.TrimSuffix(kind, "s"), expected(c.o.Names(kind)))
	}
}

// between checks lo <= v <= hi for numbers that are not 0 for "default".
func between[T int | float64](c *checker, p path, v, lo, hi T) {
	if !(lo <= v && v <= hi) { // NaN is outside
		c.fail(p, "%v; expected %v to %v", v, lo, hi)
	}
}

// given checks a number whose zero is what it is when it is not written.
func given[T int | Duration](c *checker, p path, v T) bool {
	if v == 0 && c.written(p) {
		c.fail(p, "0; expected more, or no value for the default")
	}
	return v != 0
}

// span checks a duration.
func (c *checker) span(p path, d Duration, lo, hi time.Duration) {
	if v := time.Duration(d); v < lo || v > hi {
		c.fail(p, "%v; expected %v to %v", v, lo, hi)
	}
}

func (c *checker) site(p path, s Site) {
	c.name(p)
	between(c, p.at("lat"), s.Lat, -90, 90)
	between(c, p.at("lon"), s.Lon, -180, 180)
	continents := []string{"AF", "AN", "AS", "EU", "NA", "OC", "SA"}
	if s.Continent != "" && !slices.Contains(continents, s.Continent) {
		c.fail(p.at("continent"), "%q; %s", s.Continent, expected(continents))
	}
	c.country(p.at("country"), s.Country)
	if msg := checkName(s.Region); s.Region != "" && msg != "" {
		c.fail(p.at("region"), "%s", msg)
	}
}

func (c *checker) country(p path, s string) {
	if s != "" && (len(s) != 2 || s[0] < 'A' || s[0] > 'Z' || s[1] < 'A' || s[1] > 'Z') {
		c.fail(p, "%q; expected two capital letters (ISO 3166-1 alpha-2)", s)
	}
}

func (c *checker) zone(p path, name string, z Zone) {
	switch {
	case z.Name != name:
		c.fail(p.at("name"), "%q; expected %s, the name that the zone is kept under", z.Name, name)
	default:
		c.domain(p, name)
	}
	switch {
	case z.File == "" && z.Records == "":
		c.missing(p.at("file"), "no records; expected file or records")
	case z.File != "" && z.Records != "":
		c.fail(p.at("records"), "given beside file; expected one of them")
	}
}

func isSpaceOrControl(r rune) bool { return r <= ' ' || r == 0x7f }

// isToken reports whether s is a token of RFC 9110, section 5.6.2.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r > 0x7e || !isAlnum(byte(r)) && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

func (c *checker) pool(p path, pool Pool) {
	c.name(p)
	if pool.Site == "" {
		c.missing(p.at("site"), "no value; expected the name of a site")
	} else {
		c.ref(p.at("site"), "sites", pool.Site)
	}
	if pool.Capacity < 0 || math.IsNaN(pool.Capacity) || math.IsInf(pool.Capacity, 0) {
		c.fail(p.at("capacity"), "%v; expected requests per second, or 0 for not declared", pool.Capacity)
	}
	if pool.Probe != "" {
		c.ref(p.at("probe"), "probes", pool.Probe)
	}
	if pool.MinHealth != nil {
		between(c, p.at("minHealthy"), *pool.MinHealth, 0, 1)
	}
	probe := c.o.Probes[pool.Probe]
	first := map[netip.Addr]int{}
	for i, e := range pool.Endpoints {
		at := p.at("endpoints").item(i)
		if c.address(at.at("address"), e.Address) {
			if j, ok := first[e.Address]; ok {
				c.fail(at.at("address"), "%s is already endpoint [%d]", e.Address, j)
			} else {
				first[e.Address] = i
			}
		}
		if e.Weight != nil {
			between(c, at.at("weight"), *e.Weight, 0, math.MaxUint16)
		}
		if e.Probe != nil {
			c.address(at.at("probe").at("address"), e.Probe.Address)
		}
		if need := probe.port(); need.required && pool.ProbeAddr(probe, e).Port() == 0 {
			c.missing(at.at("port"), "no port to probe; expected one here, in the pool or in probe %s", pool.Probe)
		}
	}
	c.dependencies(p, pool)
	c.returning(p, pool)
	if pool.Upstream != nil {
		c.upstream(p.at("upstream"), *pool.Upstream)
	}
	if pool.Proxy != nil {
		c.proxy(p.at("proxy"), pool)
	}
}

// address checks an address that is served or probed.
func (c *checker) address(p path, a netip.Addr) bool {
	switch {
	case !a.IsValid():
		c.missing(p, "no value; expected an IP address")
	case a.Is4In6():
		c.fail(p, "%s; expected %s", a, a.Unmap())
	case a.Zone() != "":
		c.fail(p, "%s; expected an address without a zone", a)
	case a.IsUnspecified() || a.IsMulticast():
		c.fail(p, "%s; expected the address of one host", a)
	default:
		return true
	}
	return false
}

func (c *checker) service(p path, name string, s Service) {
	if c.domain(p, name) && c.refs && !c.o.inZone(name) {
		c.fail(p, "in no zone of the configuration; %s", expected(c.o.Names("zones")))
	}
	c.steering(p, s.Steering)
	if given(c, p.at("ttl"), s.TTL) {
		c.span(p.at("ttl"), s.TTL, time.Second, 24*time.Hour)
		if time.Duration(s.TTL)%time.Second != 0 {
			c.fail(p.at("ttl"), "%v; expected whole seconds", s.TTL)
		}
	}
	c.sticky(p.at("sticky"), s.Sticky)
	c.forms(p, s)
	c.allDown(p.at("allDown"), name, s.AllDown)
	if s.Guard != nil {
		c.guard(p.at("guard"), *s.Guard)
	}
}

// inZone reports whether a canonical name lies in a zone of o.
func (o *Objects) inZone(name string) bool {
	for {
		if _, ok := o.Zones[name]; ok {
			return true
		}
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			_, ok := o.Zones["."]
			return ok
		}
		name = parent
	}
}

func (c *checker) allDown(p path, service string, a AllDown) {
	modes := []string{"open", "last", "servfail", "fallback"}
	if a.Mode != "" && !slices.Contains(modes, a.Mode) {
		c.fail(p.at("mode"), "%q; %s", a.Mode, expected(modes))
		return
	}
	fallback := p.at("fallback")
	if a.Mode != "fallback" {
		if len(a.Fallback) > 0 {
			c.fail(fallback, "given with mode %s; expected it with mode fallback only", a.EffectiveMode())
		}
		return
	}
	if len(a.Fallback) == 0 {
		c.missing(fallback, "no value; expected addresses, or exactly one name")
		return
	}
	names := 0
	seen := map[netip.Addr]bool{}
	for i, s := range a.Fallback {
		addr, err := netip.ParseAddr(s)
		switch {
		case err == nil && seen[addr]:
			c.fail(fallback.item(i), "%s is given twice", addr)
		case err == nil:
			seen[addr] = true
			c.address(fallback.item(i), addr)
		default:
			names++
			if c.domain(fallback.item(i), CanonicalName(s)) && CanonicalName(s) == service {
				c.fail(fallback.item(i), "the service itself; expected another name")
			}
		}
	}
	if names > 1 || names == 1 && len(a.Fallback) > 1 {
		c.fail(fallback, "%d names and %d addresses; expected addresses, or exactly one name", names, len(a.Fallback)-names)
	}
}

// steering checks the pools and the policy of a service or an upstream at p.
func (c *checker) steering(p path, st Steering) {
	pools := p.at("pools")
	names := sortedPools(st)
	if len(names) == 0 {
		c.missing(pools, "no value; expected at least one pool")
	}
	standby := 0
	for _, name := range names {
		ref := st.Pools[name]
		c.ref(pools.at(name), "pools", name)
		if ref.Weight != nil {
			between(c, pools.at(name).at("weight"), *ref.Weight, 0, math.MaxUint16)
		}
		if ref.Standby {
			standby++
		}
	}
	if standby > 0 && standby == len(names) {
		c.fail(pools, "every pool is standby; expected one that is not")
	}
	c.policy(p.at("policy"), st.Policy, names)
}

// failover checks that the ranks name pools of the steering, each once.
func (c *checker) failover(p path, order [][]string, pools []string) {
	if full := p.at("order"); c.written(full) {
		p = full
	}
	if len(order) == 0 {
		c.missing(p, "no value; expected the pools in order")
	}
	if len(order) > MaxRanks {
		c.fail(p, "%d ranks; expected at most %d", len(order), MaxRanks)
	}
	seen := map[string]bool{}
	for i, rank := range order {
		if len(rank) == 0 {
			c.fail(p.item(i), "empty; expected the name of a pool, or a list of names")
		}
		for j, name := range rank {
			at := p.item(i)
			if len(rank) > 1 {
				at = at.item(j)
			}
			switch {
			case pools != nil && !slices.Contains(pools, name):
				c.fail(at, "%q is no pool of this steering; %s", name, expected(pools))
			case seen[name]:
				c.fail(at, "%s is ranked twice", name)
			case pools == nil:
				c.ref(at, "pools", name)
			}
			seen[name] = true
		}
	}
}

// upstreamLoops finds pools whose requests would come back to them. Each loop is reported
// once, at its first pool by name.
func (c *checker) upstreamLoops() {
	const (
		fresh = iota
		open  // on the way from the root to here
		done
	)
	mark := map[string]int{}
	var way []string
	var visit func(name string)
	visit = func(name string) {
		mark[name] = open
		way = append(way, name)
		all := c.o.Pools[name].Upstreams()
		for _, up := range slices.Sorted(maps.Keys(all)) {
			for _, next := range sortedPools(all[up].Steering) {
				switch {
				case mark[next] == open:
					loop := append(slices.Clone(way[slices.Index(way, next):]), next)
					c.fail(upstreamPath(name, up), "requests would go in a loop: %s", strings.Join(loop, " > "))
				case mark[next] == fresh:
					if _, ok := c.o.Pools[next]; ok {
						visit(next)
					}
				}
			}
		}
		way = way[:len(way)-1]
		mark[name] = done
	}
	for _, name := range c.o.Names("pools") {
		if mark[name] == fresh {
			visit(name)
		}
	}
}

func (c *checker) state(p path, name string, s State, seen map[string]string) {
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, isSpaceOrControl) {
		c.fail(p, "expected a name of 1 to 255 octets without spaces")
	}
	at := name
	if s.Match != "" {
		c.match(p.at("match"), s)
	} else if s.Pool == "" {
		c.missing(p.at("pool"), "no value; expected the name of a pool")
	} else if msg := checkName(s.Pool); msg != "" {
		c.fail(p.at("pool"), "%s", msg)
	} else {
		c.ref(p.at("pool"), "pools", s.Pool)
		at = StateName(s.Pool, s.Endpoint)
		if other, ok := seen[at]; ok {
			c.fail(p, "on the same as states.%s: %s; expected one state on it", other, at)
		}
		seen[at] = name
	}
	if pool, ok := c.o.Pools[s.Pool]; ok && c.refs && s.Endpoint.IsValid() &&
		!slices.ContainsFunc(pool.Endpoints, func(e Endpoint) bool { return e.Address == s.Endpoint }) {
		var addrs []string
		for _, e := range pool.Endpoints {
			addrs = append(addrs, e.Address.String())
		}
		c.fail(p.at("endpoint"), "%s is no endpoint of pool %s; %s", s.Endpoint, s.Pool, expected(addrs))
	}
	states := []string{"drain", "down", "up", "auto"}
	switch {
	case s.State == "":
		c.missing(p.at("state"), "no value; %s", expected(states))
	case !slices.Contains(states, s.State):
		c.fail(p.at("state"), "%q; %s", s.State, expected(states))
	}
	if s.Author == "" {
		c.missing(p.at("author"), "no value; expected who set it")
	}
	if !s.Until.IsZero() && !s.Since.IsZero() && !s.Until.After(s.Since) {
		c.fail(p.at("until"), "%s; expected a time after since, %s", s.Until.Format(time.RFC3339), s.Since.Format(time.RFC3339))
	}
}
