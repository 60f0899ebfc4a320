package config

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	glob "path"
	"reflect"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // windows name time zones, also on hosts without a database of them
)

// Stage is one step of a policy. In YAML a bare name, or a mapping of one name to its
// settings. Exactly one field is set.
type Stage struct {
	Fence    *FenceStage    `json:"fence,omitempty"`
	Health   *HealthStage   `json:"health,omitempty"`
	Failover *FailoverStage `json:"failover,omitempty"`
	Nearest  *NearestStage  `json:"nearest,omitempty"`
	RTT      *RTTStage      `json:"rtt,omitempty"`
	Trickle  *TrickleStage  `json:"trickle,omitempty"`
	Shed     *ShedStage     `json:"shed,omitempty"`
	Capacity *CapacityStage `json:"capacity,omitempty"`
	Weighted *WeightedStage `json:"weighted,omitempty"`
	Sticky   *StickyStage   `json:"sticky,omitempty"`
	Select   *SelectStage   `json:"select,omitempty"`
	Match    *MatchStage    `json:"match,omitempty"`
	Chain    *ChainStage    `json:"chain,omitempty"`
}

// Name returns the name of the stage as YAML has it; "" when no field is set.
func (s Stage) Name() string {
	if set := s.set(); len(set) > 0 {
		return set[0]
	}
	return ""
}

// set returns the names of the fields that are set, in the order of Stage.
func (s Stage) set() (names []string) {
	for _, f := range []struct {
		name string
		is   bool
	}{
		{"fence", s.Fence != nil}, {"health", s.Health != nil}, {"failover", s.Failover != nil}, {"nearest", s.Nearest != nil},
		{"rtt", s.RTT != nil}, {"trickle", s.Trickle != nil}, {"shed", s.Shed != nil}, {"capacity", s.Capacity != nil},
		{"weighted", s.Weighted != nil}, {"sticky", s.Sticky != nil}, {"select", s.Select != nil}, {"match", s.Match != nil},
		{"chain", s.Chain != nil},
	} {
		if f.is {
			names = append(names, f.name)
		}
	}
	return names
}

// Chain is a named policy, for stages chain and match to use.
type Chain struct {
	Policy []Stage `json:"policy"`
}

// Condition is what a client must be to match. A field that is not given matches all; of the
// values of a field one must match. The zero Condition matches everybody.
type Condition struct {
	Continent   []string       `json:"continent,omitempty"`   // two letters: EU
	Country     []string       `json:"country,omitempty"`     // ISO 3166-1 alpha-2: DE
	Subdivision []string       `json:"subdivision,omitempty"` // ISO 3166-2: US-CA
	ASN         []int          `json:"asn,omitempty"`
	Prefix      []netip.Prefix `json:"prefix,omitempty"` // the longest prefix of all the policy names decides nothing: containment does
	Site        []string       `json:"site,omitempty"`   // of the geo override that holds the client
	Name        []string       `json:"name,omitempty"`   // globs over the service's name
	Time        *Window        `json:"time,omitempty"`
}

// Window is a part of every week. A window whose end is not after its start ends on the
// next day.
type Window struct {
	Days []string `json:"days,omitempty"` // mon, tue, wed, thu, fri, sat, sun; default all
	From string   `json:"from,omitempty"` // HH:MM; default 00:00
	To   string   `json:"to,omitempty"`   // HH:MM, not itself in the window; default 24:00
	Zone string   `json:"zone,omitempty"` // of the time zone database; default UTC
}

// FenceStage keeps clients to pools, and pools from clients. What it drops for a client is
// never answered to it, even when all else is down. In YAML also a list of its rules.
type FenceStage struct {
	Rules  []FenceRule `json:"rules,omitempty"`
	Within string      `json:"within,omitempty"` // country or continent: a pool serves only clients where its site is
}

// FenceRule is for the clients that When matches. Exactly one of Allow and Deny is set.
type FenceRule struct {
	When  Condition `json:"when,omitzero"`
	Allow []string  `json:"allow,omitempty"` // only these: names or globs of pools, or site:NAME
	Deny  []string  `json:"deny,omitempty"`  // all but these
}

// Admits reports whether the clients of r may have a pool of that name and site.
func (r FenceRule) Admits(pool, site string) bool {
	means := func(g string) bool {
		if name, ok := strings.CutPrefix(g, "site:"); ok {
			return name == site
		}
		ok, _ := glob.Match(g, pool)
		return ok
	}
	if len(r.Deny) > 0 {
		return !slices.ContainsFunc(r.Deny, means)
	}
	return slices.ContainsFunc(r.Allow, means)
}

// HealthStage drops pools without a healthy endpoint and ranks degraded ones last.
type HealthStage struct {
	Threshold  *float64 `json:"threshold,omitempty"`  // share of endpoint weight, 0..1: a pool below it is dropped; default 0, of which only nothing is short
	MinHealthy *float64 `json:"minHealthy,omitempty"` // in place of every pool's own
	Unknown    string   `json:"unknown,omitempty"`    // what an endpoint of which nothing is known counts as: up (default), degraded or down
	By         string   `json:"by,omitempty"`         // fleet (default), or region: a pool is also down, or degraded, for the clients of a region whose own vantages see it so
}

// FailoverStage orders pools by rank. In YAML a list of names, or of lists of names that
// share a rank. Pools of the steering that it does not name rank last.
type FailoverStage struct {
	Order [][]string `json:"order"` // up to MaxRanks
}

// MaxRanks is how many ranks a failover stage may have.
const MaxRanks = 256

// NearestStage orders pools by great-circle distance from the client to the pool's site.
type NearestStage struct {
	Bias     map[string]float64 `json:"bias,omitempty"`     // by pool, -99..99 %: above 0 draws clients from farther away, below 0 fewer
	Affinity []string           `json:"affinity,omitempty"` // levels that go before distance, from city, subdivision, country, continent: a pool that shares a smaller one with the client goes first
	By       string             `json:"by,omitempty"`       // distance (default), or rtt: measured where it was, else estimated by distance
}

// RTTStage orders pools by the round-trip time measured between them and the client's
// prefix. Pools without a measurement that counts go after those with one, and a client
// without any leaves all equal.
type RTTStage struct {
	MinSamples int      `json:"minSamples,omitempty"` // that make a measurement count; default 3
	MaxAge     Duration `json:"maxAge,omitempty"`     // of its last sample; default 24 h
	Within     float64  `json:"within,omitempty"`     // ms: pools no farther than this behind the best equal it; default 0
}

// TrickleStage sends a share of the clients to pools that would otherwise get none.
type TrickleStage struct {
	To    []string `json:"to"`    // pools of the steering, standby or not
	Share float64  `json:"share"` // of the clients, 0..1; 1 sends all
}

// ShedStage makes a pool hand on its clients as its load grows: none up to Low, all from High
// on, and in proportion between them.
type ShedStage struct {
	Low  float64 `json:"low"` // shares of its capacity
	High float64 `json:"high"`
}

// Keeps returns the share of its clients that a pool keeps at that load, 0..1.
func (s *ShedStage) Keeps(load float64) float64 {
	return min(1, max(0, (s.High-load)/(s.High-s.Low)))
}

// CapacityStage lets a pool take only a share of the clients that would be its own. The
// others go where they would without it.
type CapacityStage struct {
	Shares map[string]float64 `json:"shares,omitempty"` // by pool, 0..1; a plan that the engine is given goes before them
}

// WeightedStage picks among the pools of the best rank by weight, sticky by rendezvous
// hashing on the source prefix.
type WeightedStage struct {
	Answers string `json:"answers,omitempty"` // single (default), several, grouped-single or grouped-multi
}

// StickyStage is WeightedStage with prefix lengths of its own.
type StickyStage struct {
	Sticky `json:",inline"`
}

// SelectStage cuts the answer to a number of endpoints.
type SelectStage struct {
	Answers int    `json:"answers"`           // 1..16 of each family
	Pools   int    `json:"pools,omitempty"`   // from that many of the best pools, 1..16; default 1
	PerSite int    `json:"perSite,omitempty"` // endpoints of one site at most; 0 is any number
	Order   string `json:"order,omitempty"`   // draw (default): best for this client first; listed: as the pool lists them
}

// MatchStage goes on with the chain of the first case that the client matches, or with Else,
// and after that with what follows it in the policy.
type MatchStage struct {
	Cases []MatchCase `json:"cases"`
	Else  []Stage     `json:"else,omitempty"`
}

// MatchCase is one case of a match. In YAML, then and else are also the name of a chain.
type MatchCase struct {
	If   Condition `json:"if"`
	Then []Stage   `json:"then"`
}

// ChainStage is the name of a chain, whose stages stand in its place.
type ChainStage string

// Effective returns s with every default filled in.
func (s RTTStage) Effective() RTTStage {
	if s.MinSamples == 0 {
		s.MinSamples = 3
	}
	if s.MaxAge == 0 {
		s.MaxAge = Duration(24 * time.Hour)
	}
	return s
}

// IsZero reports whether c matches everybody.
func (c Condition) IsZero() bool {
	return len(c.Continent)+len(c.Country)+len(c.Subdivision)+len(c.ASN)+len(c.Prefix)+len(c.Site)+len(c.Name) == 0 && c.Time == nil
}

// weekdays are the days of a Window, as time.Weekday counts them.
var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// Holds reports whether t is in w, and when that changes next.
func (w *Window) Holds(t time.Time) (in bool, until time.Time) {
	loc, err := time.LoadLocation(w.Zone)
	if err != nil {
		loc = time.UTC // Validate refused it
	}
	t = t.In(loc)
	from, to := minutes(w.From, 0), minutes(w.To, 24*60)
	if to <= from {
		to += 24 * 60
	}
	day := func(i int) time.Time { return time.Date(t.Year(), t.Month(), t.Day()+i, 0, 0, 0, 0, loc) }
	at := func(i, minute int) time.Time {
		d := day(i)
		return time.Date(d.Year(), d.Month(), d.Day(), 0, minute, 0, 0, loc)
	}
	for i := -1; i <= 8; i++ {
		if len(w.Days) > 0 && !slices.Contains(w.Days, weekdays[day(i).Weekday()]) {
			continue
		}
		start, end := at(i, from), at(i, to)
		switch {
		case !t.Before(end):
		case t.Before(start):
			if !in {
				return false, start
			}
			if start.After(until) {
				return true, until
			}
			until = end
		default:
			in, until = true, end
		}
	}
	return in, until
}

// minutes reads HH:MM; -1 when it is none.
func minutes(s string, missing int) int {
	if s == "" {
		return missing
	}
	var h, m int
	if len(s) != 5 || s[2] != ':' {
		return -1
	}
	if _, err := fmt.Sscanf(s, "%02d:%02d", &h, &m); err != nil || h < 0 || m < 0 || m > 59 || h*60+m > 24*60 {
		return -1
	}
	return h*60 + m
}

// policy checks the stages at p. pools are those of the steering, or nil in a chain, which is
// for any.
func (c *checker) policy(p path, stages []Stage, pools []string) {
	first := map[string]int{}
	for i, s := range stages {
		at := p.item(i)
		set := s.set()
		if len(set) != 1 {
			c.missing(at, "expected exactly one stage")
			continue
		}
		name := set[0]
		switch name {
		case "fence", "trickle", "match", "chain": // may stand more than once
		default:
			if j, ok := first[name]; ok {
				c.fail(at, "%s is already stage [%d]", name, j)
			}
		}
		first[name] = i
		c.stage(at.at(name), s, pools)
	}
}

func (c *checker) stage(p path, s Stage, pools []string) {
	switch {
	case s.Fence != nil:
		c.fence(p, s.Fence, pools)
	case s.Health != nil:
		if s.Health.Threshold != nil {
			between(c, p.at("threshold"), *s.Health.Threshold, 0, 1)
		}
		if s.Health.MinHealthy != nil {
			between(c, p.at("minHealthy"), *s.Health.MinHealthy, 0, 1)
		}
		c.oneOf(p.at("unknown"), s.Health.Unknown, "up", "degraded", "down")
		c.oneOf(p.at("by"), s.Health.By, "fleet", "region")
	case s.Failover != nil:
		c.failover(p, s.Failover.Order, pools)
	case s.Nearest != nil:
		for _, name := range slices.Sorted(maps.Keys(s.Nearest.Bias)) {
			c.member(p.at("bias").at(name), name, pools)
			between(c, p.at("bias").at(name), s.Nearest.Bias[name], -99, 99)
		}
		for i, level := range s.Nearest.Affinity {
			c.oneOf(p.at("affinity").item(i), level, "city", "subdivision", "country", "continent")
			if slices.Index(s.Nearest.Affinity, level) < i {
				c.fail(p.at("affinity").item(i), "%s is given twice", level)
			}
		}
		c.oneOf(p.at("by"), s.Nearest.By, "distance", "rtt")
	case s.RTT != nil:
		if s.RTT.MinSamples != 0 {
			between(c, p.at("minSamples"), s.RTT.MinSamples, 1, 1_000_000)
		}
		if s.RTT.MaxAge != 0 {
			c.span(p.at("maxAge"), s.RTT.MaxAge, time.Minute, 30*24*time.Hour)
		}
		between(c, p.at("within"), s.RTT.Within, 0, 10_000)
	case s.Trickle != nil:
		if len(s.Trickle.To) == 0 {
			c.missing(p.at("to"), "no value; expected pools")
		}
		for i, name := range s.Trickle.To {
			c.member(p.at("to").item(i), name, pools)
		}
		between(c, p.at("share"), s.Trickle.Share, 0, 1)
	case s.Shed != nil:
		between(c, p.at("low"), s.Shed.Low, 0, 100)
		if !(s.Shed.High > s.Shed.Low && s.Shed.High <= 100) {
			c.fail(p.at("high"), "%v; expected more than low, %v, and at most 100", s.Shed.High, s.Shed.Low)
		}
	case s.Capacity != nil:
		for _, name := range slices.Sorted(maps.Keys(s.Capacity.Shares)) {
			c.member(p.at("shares").at(name), name, pools)
			between(c, p.at("shares").at(name), s.Capacity.Shares[name], 0, 1)
		}
	case s.Weighted != nil:
		c.oneOf(p.at("answers"), s.Weighted.Answers, "single", "several", "grouped-single", "grouped-multi")
	case s.Sticky != nil:
		c.sticky(p, s.Sticky.Sticky)
	case s.Select != nil:
		between(c, p.at("answers"), s.Select.Answers, 1, 16)
		if s.Select.Pools != 0 {
			between(c, p.at("pools"), s.Select.Pools, 1, 16)
		}
		between(c, p.at("perSite"), s.Select.PerSite, 0, 16)
		c.oneOf(p.at("order"), s.Select.Order, "draw", "listed")
	case s.Match != nil:
		if len(s.Match.Cases) == 0 {
			c.missing(p.at("cases"), "no value; expected at least one case")
		}
		for i, k := range s.Match.Cases {
			at := p.at("cases").item(i)
			c.condition(at.at("if"), k.If, true)
			c.policy(at.at("then"), k.Then, pools)
		}
		c.policy(p.at("else"), s.Match.Else, pools)
	case s.Chain != nil:
		c.ref(p, "chains", string(*s.Chain))
	}
}

// oneOf checks a word; the empty one is the default.
func (c *checker) oneOf(p path, v string, words ...string) {
	if v != "" && !slices.Contains(words, v) {
		c.fail(p, "%q; %s", v, expected(words))
	}
}

// member checks that a pool is one of the steering. A chain is for steerings that it does
// not know, so that there a name must only be some pool's.
func (c *checker) member(p path, name string, pools []string) {
	switch {
	case pools == nil:
		c.ref(p, "pools", name)
	case !slices.Contains(pools, name):
		c.fail(p, "%q is no pool of this steering; %s", name, expected(pools))
	}
}

func (c *checker) sticky(p path, s Sticky) {
	if s.IPv4 != 0 {
		between(c, p.at("ipv4"), s.IPv4, 8, 32)
	}
	if s.IPv6 != 0 {
		between(c, p.at("ipv6"), s.IPv6, 16, 64)
	}
}

func (c *checker) fence(p path, f *FenceStage, pools []string) {
	c.oneOf(p.at("within"), f.Within, "country", "continent")
	if len(f.Rules) == 0 && f.Within == "" {
		c.missing(p.at("rules"), "no value; expected rules, or within")
	}
	for i, r := range f.Rules {
		at := p.at("rules").item(i)
		c.condition(at.at("when"), r.When, false)
		if (len(r.Allow) == 0) == (len(r.Deny) == 0) {
			c.missing(at.at("allow"), "expected exactly one of allow and deny")
		}
		for k, list := range map[string][]string{"allow": r.Allow, "deny": r.Deny} {
			for j, g := range list {
				c.fenced(at.at(k).item(j), g, pools)
			}
		}
	}
}

// fenced checks the name of a pool, a glob of names, or site:NAME.
func (c *checker) fenced(p path, g string, pools []string) {
	if site, ok := strings.CutPrefix(g, "site:"); ok {
		c.ref(p, "sites", site)
		return
	}
	if _, err := glob.Match(g, ""); err != nil {
		c.fail(p, "%q; expected a pool, a glob such as gfe-*, or site:NAME", g)
		return
	}
	if pools != nil && !slices.ContainsFunc(pools, func(name string) bool { ok, _ := glob.Match(g, name); return ok }) {
		c.fail(p, "%q is no pool of this steering; %s", g, expected(pools))
	}
}

// hidden are the IPv6 prefixes whose addresses count as the IPv4 address inside them.
var hidden = []netip.Prefix{netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("::ffff:0:0/96")}

// condition checks k; dynamic says whether it may depend on the name and the time.
func (c *checker) condition(p path, k Condition, dynamic bool) {
	for _, list := range []struct {
		key string
		n   int
	}{
		{"continent", len(k.Continent)}, {"country", len(k.Country)}, {"subdivision", len(k.Subdivision)}, {"asn", len(k.ASN)},
		{"prefix", len(k.Prefix)}, {"site", len(k.Site)}, {"name", len(k.Name)},
	} {
		if list.n == 0 && c.written(p.at(list.key)) {
			c.fail(p.at(list.key), "empty, which would be everybody; expected a value, or no %s", list.key)
		}
	}
	for i, s := range k.Continent {
		c.oneOf(p.at("continent").item(i), s, "AF", "AN", "AS", "EU", "NA", "OC", "SA")
	}
	for i, s := range k.Country {
		if s == "" {
			c.missing(p.at("country").item(i), "no value; expected a country")
		}
		c.country(p.at("country").item(i), s)
	}
	for i, s := range k.Subdivision {
		country, sub, ok := strings.Cut(s, "-")
		if !ok || len(country) != 2 || len(sub) < 1 || len(sub) > 3 || strings.ToUpper(s) != s {
			c.fail(p.at("subdivision").item(i), "%q; expected a code of ISO 3166-2 such as US-CA", s)
		}
	}
	for i, n := range k.ASN {
		between(c, p.at("asn").item(i), n, 1, math.MaxUint32)
	}
	for i, pre := range k.Prefix {
		at := p.at("prefix").item(i)
		if pre != pre.Masked() {
			c.fail(at, "%s; expected %s", pre, pre.Masked())
		}
		for _, h := range hidden {
			if h.Contains(pre.Addr()) && pre.Bits() >= h.Bits() {
				c.fail(at, "%s; expected the IPv4 prefix inside it: such clients count as theirs", pre)
			}
		}
	}
	for i, s := range k.Site {
		c.ref(p.at("site").item(i), "sites", s)
	}
	if !dynamic && (len(k.Name) > 0 || k.Time != nil) {
		c.fail(p, "a fence does not depend on name and time; expected them in a match")
	}
	for i, g := range k.Name {
		if _, err := glob.Match(g, ""); err != nil || g == "" {
			c.fail(p.at("name").item(i), "%q; expected a glob such as *.example.com", g)
		}
	}
	if w := k.Time; w != nil {
		at := p.at("time")
		for i, d := range w.Days {
			c.oneOf(at.at("days").item(i), d, weekdays...)
		}
		if minutes(w.From, 0) < 0 || w.From == "24:00" {
			c.fail(at.at("from"), "%q; expected HH:MM", w.From)
		}
		if minutes(w.To, 24*60) < 0 {
			c.fail(at.at("to"), "%q; expected HH:MM", w.To)
		}
		if _, err := time.LoadLocation(w.Zone); err != nil || w.Zone == "Local" {
			c.fail(at.at("zone"), "%q; expected a time zone such as Europe/Berlin", w.Zone)
		}
	}
}

// maxStages bounds a policy with the stages of its chains in their place. Chains of which each
// names the next one twice would otherwise be a policy without end.
const maxStages = 10_000

// MaxLimits bounds the stages of a policy by which pools take only a share of their clients: as
// many as a word has bits, but one that the engine needs for slow start.
const MaxLimits = 31

// limits reports whether s is one of them.
func (s *Stage) limits() bool {
	return s.Shed != nil || s.Capacity != nil || s.Trickle != nil && s.Trickle.Share > 0
}

// size is how many stages a policy has, and how many of them limit.
type size struct{ stages, limits int }

// plus adds sizes, none of them beyond what is too many.
func (s size) plus(o size) size {
	return size{min(s.stages+o.stages, maxStages+1), min(s.limits+o.limits, MaxLimits+1)}
}

// most returns the greater of each.
func (s size) most(o size) size {
	return size{max(s.stages, o.stages), max(s.limits, o.limits)}
}

// count returns the size of a policy, with the stages in its matches, and the chains that it
// names.
func count(stages []Stage) (n size, chains []string) {
	n.stages = len(stages)
	inside := func(stages []Stage) {
		m, names := count(stages)
		n, chains = n.plus(m), append(chains, names...)
	}
	for _, s := range stages {
		if s.limits() {
			n.limits++
		}
		if s.Chain != nil {
			chains = append(chains, string(*s.Chain))
		}
		if s.Match != nil {
			for _, k := range s.Match.Cases {
				inside(k.Then)
			}
			inside(s.Match.Else)
		}
	}
	return n, chains
}

// chains finds chains that come back to themselves, each loop once, at its first chain by
// name; and policies that are too long with the stages of their chains.
func (c *checker) chains() {
	open := size{stages: -1}   // on the way from the root to here
	sizes := map[string]size{} // by chain: with the chains that it names
	var way []string
	var visit func(name string) size
	// length is the size of a policy at p. What is too long for a chain in it is told there.
	length := func(p path, stages []Stage) size {
		n, names := count(stages)
		var told size
		for _, name := range names {
			size := visit(name)
			n, told = n.plus(size), size.most(told)
		}
		if n.stages > maxStages && told.stages <= maxStages {
			c.fail(p, "more than %d stages with those of the chains that it names; expected fewer", maxStages)
		}
		if n.limits > MaxLimits && told.limits <= MaxLimits {
			c.fail(p, "more than %d stages of shed, capacity and trickle with those of its matches and chains; expected fewer", MaxLimits)
		}
		return n
	}
	visit = func(name string) size {
		n, seen := sizes[name]
		switch {
		case n == open:
			i := slices.Index(way, name)
			c.fail(path{"chains", name}, "the chain comes back to itself: %s", strings.Join(append(slices.Clone(way[i:]), name), " > "))
			return size{}
		case seen:
			return n
		}
		sizes[name], way = open, append(way, name)
		n = length(path{"chains", name, "policy"}, c.o.Chains[name].Policy)
		sizes[name], way = n, way[:len(way)-1]
		return n
	}
	for _, name := range c.o.Names("chains") {
		visit(name)
	}
	for _, name := range c.o.Names("services") {
		length(path{"services", name, "policy"}, c.o.Services[name].Policy)
	}
	for _, name := range c.o.Names("pools") {
		all := c.o.Pools[name].Upstreams()
		for _, up := range slices.Sorted(maps.Keys(all)) {
			length(upstreamPath(name, up).at("policy"), all[up].Policy)
		}
	}
}

// HTTPS says how a service answers SVCB and HTTPS (RFC 9460): the pool that A and AAAA
// choose first, and those that would follow it with growing SvcPriority, so that a client
// fails over by itself before the TTL ends. Only pools with a hostname can follow.
type HTTPS struct {
	Pools int      `json:"pools,omitempty"` // 1..8; default 2
	ALPN  []string `json:"alpn,omitempty"`  // such as h2 and h3
	Port  uint16   `json:"port,omitempty"`  // default that of the scheme, 443
}

// SRV says how a service answers SRV (RFC 2782): the same pools, with growing priority.
type SRV struct {
	Pools int    `json:"pools,omitempty"` // 1..8; default 2
	Port  uint16 `json:"port,omitempty"`  // default the pool's
}

// Returning says how soon an endpoint whose verdict changed leaves and comes back.
type Returning struct {
	Failover Duration `json:"failover,omitempty"` // how long it must have been down to count as down; default 0
	Failback Duration `json:"failback,omitempty"` // how long it must have been up to count as up again; default 0
	Ramp     Duration `json:"ramp,omitempty"`     // over which its pool's share then grows from a tenth to all (slow start); default 0
}

// returning checks what a pool says of changes, and its name.
func (c *checker) returning(p path, pool Pool) {
	for _, d := range []struct {
		key string
		d   Duration
	}{{"failover", pool.Delay.Failover}, {"failback", pool.Delay.Failback}, {"ramp", pool.Delay.Ramp}} {
		if d.d != 0 {
			c.span(p.at("delay").at(d.key), d.d, time.Second, 24*time.Hour)
		}
	}
	if pool.Hostname != "" {
		c.domain(p.at("hostname"), pool.Hostname)
	}
}

// forms checks how a service is answered in other types than A and AAAA, and its TTLs.
func (c *checker) forms(p path, s Service) {
	if given(c, p.at("minTTL"), s.MinTTL) {
		c.span(p.at("minTTL"), s.MinTTL, time.Second, s.EffectiveTTL())
		if time.Duration(s.MinTTL)%time.Second != 0 {
			c.fail(p.at("minTTL"), "%v; expected whole seconds", s.MinTTL)
		}
	}
	if s.HTTPS != nil {
		between(c, p.at("https").at("pools"), s.HTTPS.Pools, 0, 8)
		for i, a := range s.HTTPS.ALPN {
			if a == "" || len(a) > 255 || strings.ContainsFunc(a, isSpaceOrControl) {
				c.fail(p.at("https").at("alpn").item(i), "%q; expected a protocol such as h2", a)
			}
		}
	}
	if s.SRV != nil {
		between(c, p.at("srv").at("pools"), s.SRV.Pools, 0, 8)
	}
}

// Targets returns in how many pools the answers of s in other types go: 0 for none.
func (s Service) Targets() int {
	n := 0
	for _, f := range []struct {
		on    bool
		pools int
	}{{s.HTTPS != nil, deref(s.HTTPS).Pools}, {s.SRV != nil, deref(s.SRV).Pools}} {
		if f.on && f.pools == 0 {
			f.pools = 2
		}
		n = max(n, f.pools)
	}
	return n
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// match checks the glob of a state: service/pool/endpoint, of which the last parts may be
// left out.
func (c *checker) match(p path, s State) {
	parts := strings.Split(s.Match, "/")
	if len(parts) > 3 || slices.Contains(parts, "") {
		c.fail(p, "%q; expected globs service/pool/endpoint, of which the last may be left out", s.Match)
	}
	for _, g := range parts {
		if _, err := glob.Match(g, ""); err != nil {
			c.fail(p, "%q; expected a glob, in which * and ? stand for any characters", g)
		}
	}
	if s.Pool != "" || s.Endpoint.IsValid() {
		c.fail(p, "given beside pool and endpoint; expected one of them")
	}
}

// bare reports whether the name of s alone says what it does.
func (s Stage) bare() bool {
	v := reflect.ValueOf(s)
	for i := range v.NumField() {
		if f := v.Field(i); !f.IsNil() {
			return bareStage(f) == "" && f.Elem().IsZero()
		}
	}
	return false
}
