package gslb

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// obvious decides as the documentation of the policies says, straight from the
// configuration, one step after the other. Only the draws are the engine's.
func obvious(in Inputs, name string, addr netip.Addr) (pool string, reason Reason, v4, v6 []netip.Addr, targets []string) {
	w := newWitness(in, name, addr)
	best := w.choose()
	pool, reason, targets = best.pool, best.reason, w.targets(best)
	switch {
	case pool != "":
		v4, v6 = w.answers(best)
	case reason == ReasonFallback:
		for _, text := range w.svc.AllDown.Fallback {
			if a := netip.MustParseAddr(text); a.Is4() {
				v4 = append(v4, a)
			} else {
				v6 = append(v6, a)
			}
		}
	}
	return pool, reason, v4, v6, targets
}

// witness is one client of one service.
type witness struct {
	in    Inputs
	name  string
	svc   config.Service
	addr  netip.Addr // the IPv4 address inside, where there is one
	place geo.Place
	path  []config.Stage // the stages that this client meets, chains and matches resolved
	key   uint64
}

func newWitness(in Inputs, name string, addr netip.Addr) *witness {
	w := &witness{in: in, name: name, svc: in.Objects.Services[name], addr: addr}
	if in.Geo != nil {
		p, _ := in.Geo.Lookup(addr)
		w.place = *p
	}
	if site, ok := in.Objects.Sites[w.place.Site]; ok {
		if w.place.Country == "" {
			w.place.Country, w.place.City = site.Country, site.City
			_, w.place.Subdivision, _ = strings.Cut(site.Subdivision, "-")
		}
		if w.place.Continent == "" {
			w.place.Continent = site.Continent
		}
		w.place.Lat, w.place.Lon, w.place.Located = site.Lat, site.Lon, true
	}
	switch b := addr.As16(); {
	case addr.Is4():
	case addr.Is4In6():
		w.addr = addr.Unmap()
	case b[0] == 0x20 && b[1] == 0x02:
		w.addr = netip.AddrFrom4([4]byte(b[2:6]))
	case netip.MustParsePrefix("64:ff9b::/96").Contains(addr):
		w.addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	w.walk(w.svc.EffectivePolicy())
	length := w.svc.Sticky.WithDefaults()
	for _, s := range w.path {
		if s.Sticky != nil {
			length = s.Sticky.WithDefaults()
		}
	}
	bits := length.IPv6
	if w.addr.Is4() {
		bits = length.IPv4
	}
	w.key = mix(prefix64(netip.PrefixFrom(w.addr, bits).Masked().Addr()) ^ seed("service", name))
	return w
}

// walk adds stages to the path.
func (w *witness) walk(stages []config.Stage) {
	for _, s := range stages {
		switch {
		case s.Chain != nil:
			w.walk(w.in.Objects.Chains[string(*s.Chain)].Policy)
		case s.Match != nil:
			then := s.Match.Else
			for _, c := range s.Match.Cases {
				if w.is(c.If) {
					then = c.Then
					break
				}
			}
			w.walk(then)
		default:
			w.path = append(w.path, s)
		}
	}
}

// is reports whether the client matches.
func (w *witness) is(c config.Condition) bool {
	if c.Time != nil {
		if in, _ := c.Time.Holds(w.in.Now); !in {
			return false
		}
	}
	if len(c.Name) > 0 && !slices.ContainsFunc(c.Name, func(g string) bool { return matches(g, w.name) }) {
		return false
	}
	if len(c.Prefix) > 0 && !slices.ContainsFunc(c.Prefix, func(p netip.Prefix) bool { return p.Contains(w.addr) }) {
		return false
	}
	one := func(list []string, v string) bool { return len(list) == 0 || slices.Contains(list, v) }
	return one(c.Continent, w.place.Continent) && one(c.Country, w.place.Country) && one(c.Site, w.place.Site) &&
		one(c.Subdivision, w.place.Country+"-"+w.place.Subdivision) && (len(c.ASN) == 0 || slices.Contains(c.ASN, int(w.place.ASN)))
}

// verdict is what a witness says of one pool.
type verdictOf struct {
	out, down bool
	tier      int // 1 degraded, 2 standby, 4 drained
	takes     float64
	admits    bool // this client
	to        []int
}

func (w *witness) judge(pool string) (v verdictOf) {
	x := look(w.in, pool)
	ref := w.svc.Pools[pool]
	v.out = ref.EffectiveWeight() == 0 || x.total == 0
	if ref.Standby {
		v.tier += 2
	}
	if x.drained || x.up > 0 && x.usable == 0 {
		v.tier += 4
	}
	v.takes, v.admits = 1, true
	limit := func(name string, share float64) {
		if share < 1 {
			v.takes = min(v.takes, share)
			v.admits = v.admits && mix(w.key^seed("gate", name, pool)) < threshold(share)
		}
	}
	site := w.in.Objects.Sites[w.in.Objects.Pools[pool].Site]
	degraded := false
	for i, s := range w.path {
		switch {
		case s.Fence != nil:
			v.out = v.out || s.Fence.Within == "country" && (w.place.Country == "" || w.place.Country != site.Country) ||
				s.Fence.Within == "continent" && (w.place.Continent == "" || w.place.Continent != site.Continent)
			for _, r := range s.Fence.Rules {
				if w.is(r.When) {
					v.out = v.out || len(r.Allow) > 0 && !w.listed(r.Allow, pool) || w.listed(r.Deny, pool)
				}
			}
		case s.Health != nil:
			x := x
			if s.Health.By == "region" {
				x = look(w.regional(), pool)
			}
			up, usable := x.up, x.usable
			if s.Health.Unknown == "down" {
				up, usable = x.sureUp, x.sure
			}
			v.down = v.down || up == 0 || s.Health.Threshold != nil && float64(up)/float64(x.total) < *s.Health.Threshold
			if s.Health.Unknown == "degraded" {
				usable = x.sure
			}
			least := w.in.Objects.Pools[pool].EffectiveMinHealth()
			if s.Health.MinHealthy != nil {
				least = *s.Health.MinHealthy
			}
			degraded = degraded || float64(usable)/float64(x.total) < least
		case s.Trickle != nil:
			if slices.Contains(s.Trickle.To, pool) && (s.Trickle.Share == 1 || mix(w.key^seed("gate", "trickle", "")) < threshold(s.Trickle.Share)) && s.Trickle.Share > 0 {
				v.to = append(v.to, i)
			}
		case s.Shed != nil:
			if load, ok := w.in.Load[pool]; ok {
				limit("shed", math.Round(64*min(1, max(0, (s.Shed.High-load)/(s.Shed.High-s.Shed.Low))))/64)
			}
		case s.Capacity != nil:
			share, ok := w.in.Shares[w.name][pool]
			if !ok {
				share, ok = s.Capacity.Shares[pool]
			}
			if ok {
				limit("capacity", share)
			}
		}
	}
	if degraded {
		v.tier++
	}
	return v
}

// regional is the world as the vantages of the client's region see it: that of its site, or of
// the site that is nearest to it.
func (w *witness) regional() Inputs {
	site, ok := w.place.Site, false
	if _, ok = w.in.Objects.Sites[site]; !ok && w.place.Located {
		least := math.Inf(1)
		for _, name := range slices.Sorted(maps.Keys(w.in.Objects.Sites)) {
			s := w.in.Objects.Sites[name]
			if km := haversine(w.place.Lat, w.place.Lon, s.Lat, s.Lon); km < least-1e-6 {
				least, site, ok = km, name, true
			}
		}
	}
	in := w.in
	if !ok {
		return in
	}
	in.Verdicts = maps.Clone(in.Verdicts)
	for id, v := range in.Regional[cmp.Or(in.Objects.Sites[site].Region, site)] {
		if v == Down {
			in.Verdicts[id] = v
		}
	}
	return in
}

func (w *witness) listed(list []string, pool string) bool {
	return slices.ContainsFunc(list, func(g string) bool {
		return matches(g, pool) || g == "site:"+w.in.Objects.Pools[pool].Site
	})
}

// candidateOf is the choice of a witness: the pool, and all that stood in its group and after.
type candidateOf struct {
	pool   string
	reason Reason
	order  []string // the pools that would follow, the chosen first
	group  int      // how many of order stand in the group of the first
	open   bool
}

func (w *witness) choose() candidateOf {
	judged := map[string]verdictOf{}
	var names []string
	for pool := range w.svc.Pools {
		judged[pool] = w.judge(pool)
		names = append(names, pool)
	}
	slices.Sort(names)
	var perfect []string
	var tiers [16][]string
	for _, pool := range names {
		v := judged[pool]
		if v.out {
			continue
		}
		if !w.svc.Pools[pool].Standby {
			perfect = append(perfect, pool)
		}
		if !v.down {
			tiers[v.tier] = append(tiers[v.tier], pool)
		}
	}
	base, open := ReasonPolicy, false
	if slices.IndexFunc(tiers[:], func(l []string) bool { return len(l) > 0 }) < 0 {
		switch w.svc.AllDown.EffectiveMode() {
		case "servfail":
			return candidateOf{reason: ReasonServfail}
		case "fallback":
			return candidateOf{reason: ReasonFallback}
		}
		base, open = ReasonAllDown, true
		for _, pool := range names {
			v := judged[pool]
			tier := v.tier &^ 1
			if look(w.in, pool).free == 0 {
				tier += 8
			}
			if !v.out {
				tiers[tier] = append(tiers[tier], pool)
			}
		}
	}
	var groups [][]string
	var first int // tier of the first group
	for tier, pools := range tiers {
		if len(pools) > 0 && len(groups) == 0 {
			first = tier
		}
		if len(groups) > 0 && tier&4 > first&4 {
			continue
		}
		for len(pools) > 0 {
			best := w.best(pools)
			groups = append(groups, best)
			pools = slices.DeleteFunc(slices.Clone(pools), func(p string) bool { return slices.Contains(best, p) })
		}
	}
	if len(groups) == 0 {
		return candidateOf{reason: ReasonServfail}
	}
	switch {
	case open:
	case first >= 4:
		base = ReasonDrained
	case first >= 2:
		base = ReasonStandby
	case first == 1:
		base = ReasonDegraded
	}
	weigh := func(p string) (uint64, float64) { return seed("pool", p), float64(w.svc.Pools[p].EffectiveWeight()) }
	admitted := func(pools []string) []string {
		return byDraw(slices.DeleteFunc(slices.Clone(pools), func(p string) bool { return !judged[p].admits }), w.key, weigh)
	}
	c := candidateOf{reason: base, open: open}
	if !open {
		for i := range w.path {
			to := admitted(slices.DeleteFunc(slices.Clone(names), func(p string) bool {
				v := judged[p]
				return v.out || v.down || v.tier&^2 != 0 || !slices.Contains(v.to, i)
			}))
			if len(to) > 0 {
				c.pool, c.reason = to[0], ReasonTrickle
				break
			}
		}
	}
	for g, pools := range groups {
		list := admitted(pools)
		if len(list) > 0 && c.pool == "" {
			c.pool = list[0]
			if g > 0 && !open {
				c.reason = ReasonOverflow
			}
		}
		c.order = append(c.order, list...)
	}
	if !slices.ContainsFunc(slices.Concat(groups...), func(p string) bool { return judged[p].takes > 0 }) { // nobody takes any client
		c.order = byDraw(groups[0], w.key, weigh)
	}
	if c.pool == "" { // nobody takes it, so the first must
		c.pool = byDraw(groups[0], w.key, weigh)[0]
	}
	for _, pools := range groups {
		if slices.Contains(pools, c.pool) {
			c.group = len(admitted(pools))
			if !slices.Contains(admitted(pools), c.pool) {
				c.group++
			}
		}
	}
	if c.reason == ReasonTrickle {
		c.group = 1
	}
	if slices.Contains(groups[0], c.pool) && c.reason == ReasonPolicy {
		want := w.best(perfect)
		alone := len(groups[0]) == 1 && len(want) > 1
		lost := slices.DeleteFunc(slices.Clone(want), func(p string) bool { return slices.Contains(groups[0], p) })
		limited := slices.DeleteFunc(slices.Clone(groups[0]), func(p string) bool { return judged[p].admits })
		if len(admitted(groups[0])) == 0 { // all of them take nobody, and so the first must
			limited = nil
		}
		first := byDraw(slices.Concat(lost, limited, []string{c.pool}), w.key, weigh)[0]
		switch {
		case alone || !slices.Contains(want, c.pool) || slices.Contains(lost, first):
			c.reason = ReasonFailover
		case first != c.pool:
			c.reason = ReasonOverflow
		}
	}
	return c
}

// targets are the pools of the service's answers in HTTPS: the chosen one, then those after it that
// have a name.
func (w *witness) targets(c candidateOf) (pools []string) {
	if w.svc.HTTPS == nil || c.pool == "" {
		return nil
	}
	pools = []string{c.pool}
	for _, p := range c.order {
		if p != c.pool && w.in.Objects.Pools[p].Hostname != "" && len(pools) < w.svc.HTTPS.Pools {
			pools = append(pools, p)
		}
	}
	return pools
}

// answers are what a choice is answered with.
func (w *witness) answers(c candidateOf) (v4, v6 []netip.Addr) {
	sel := config.SelectStage{Answers: MaxAnswers}
	strict, mode := false, ""
	for _, s := range w.path {
		if s.Select != nil {
			sel = *s.Select
		}
		if s.Weighted != nil {
			mode = s.Weighted.Answers
		}
		strict = strict || s.Health != nil && s.Health.Unknown == "down"
	}
	if sel.Pools > 1 || mode == "several" || strings.HasPrefix(mode, "grouped") {
		return nil, nil // TestSelection says what these are
	}
	n := sel.Answers
	if sel.PerSite > 0 {
		n = min(n, sel.PerSite)
	}
	v4, v6 = endpointsOf(w.in, c.pool, w.key, n, c.open, strict)
	return v4, v6
}

// sight is what there is to see of a pool: endpoint weights, by what they could be used for.
type sight struct {
	total, up, usable, free int // of all; not down; not down or drained; not forced down
	sureUp, sure            int // known to be up; and not drained
	drained                 bool
}

func look(in Inputs, pool string) (x sight) {
	x.drained = stateOf(in, pool, netip.Addr{}, "drain")
	for _, e := range in.Objects.Pools[pool].Endpoints {
		w := e.EffectiveWeight()
		down, forced := isDown(in, pool, e.Address)
		x.total += w
		if !down {
			x.up += w
			if !stateOf(in, pool, e.Address, "drain") {
				x.usable += w
			}
		}
		if !down && !unknown(in, pool, e.Address) {
			x.sureUp += w
			if !stateOf(in, pool, e.Address, "drain") {
				x.sure += w
			}
		}
		if !down || !forced {
			x.free += w
		}
	}
	return x
}

// stateOf reports whether an operator has put a target into that state now.
func stateOf(in Inputs, pool string, addr netip.Addr, state string) bool {
	for _, s := range in.Objects.States {
		if s.Pool == pool && s.Endpoint == addr && s.State == state && (s.Until.IsZero() || s.Until.After(in.Now)) {
			return true
		}
	}
	return false
}

// unknown reports whether nothing is known of an endpoint that probes or operators might.
func unknown(in Inputs, pool string, addr netip.Addr) bool {
	_, forced := isDown(in, pool, addr)
	return !forced && in.Objects.Pools[pool].Probe != "" && in.Verdicts[EndpointID{pool, addr}] == Unknown
}

func isDown(in Inputs, pool string, addr netip.Addr) (down, forced bool) {
	for _, target := range []netip.Addr{addr, {}} {
		if stateOf(in, pool, target, "down") {
			return true, true
		}
		if stateOf(in, pool, target, "up") {
			return false, true
		}
	}
	return in.Objects.Pools[pool].Probe != "" && in.Verdicts[EndpointID{pool, addr}] == Down, false
}

// best returns the pools that the ordering stages put first and leave equal.
func (w *witness) best(pools []string) []string {
	if len(pools) == 0 {
		return nil
	}
	in := w.in
	siteOf := func(pool string) config.Site { return in.Objects.Sites[in.Objects.Pools[pool].Site] }
	km := func(pool string) float64 {
		return haversine(w.place.Lat, w.place.Lon, siteOf(pool).Lat, siteOf(pool).Lon)
	}
	bias := func(v, percent float64) float64 {
		if percent < 0 {
			return v / (1 + percent/100)
		}
		return v * (1 - percent/100)
	}
	keep := func(value func(pool string) float64) {
		least := math.Inf(1)
		for _, p := range pools {
			least = min(least, value(p))
		}
		pools = slices.DeleteFunc(slices.Clone(pools), func(p string) bool { return value(p) != least })
	}
	for _, stage := range w.path {
		switch {
		case stage.Weighted != nil || stage.Sticky != nil:
			return pools
		case stage.Failover != nil:
			keep(func(pool string) float64 {
				for i, group := range stage.Failover.Order {
					if slices.Contains(group, pool) {
						return float64(i)
					}
				}
				return math.Inf(1)
			})
		case stage.RTT != nil:
			row := w.measured(stage.RTT.Effective())
			if row == nil {
				continue
			}
			least := math.Inf(1)
			for pool := range w.svc.Pools {
				if v, ok := row[pool]; ok && !w.judge(pool).out {
					least = min(least, v)
				}
			}
			keep(func(pool string) float64 {
				switch v, ok := row[pool]; {
				case !ok:
					return math.Inf(1)
				case v <= least+stage.RTT.Within:
					return least
				default:
					return v
				}
			})
		case stage.Nearest != nil:
			if len(stage.Nearest.Affinity) > 0 {
				keep(func(pool string) float64 { return w.shares(stage.Nearest.Affinity, siteOf(pool)) })
			}
			row := map[string]float64{}
			if stage.Nearest.By == "rtt" {
				row = w.measured(config.RTTStage{}.Effective())
			}
			keep(func(pool string) float64 {
				percent := stage.Nearest.Bias[pool]
				v, ok := row[pool]
				switch {
				case ok:
					return bias(v, percent)
				case !w.place.Located && stage.Nearest.By == "rtt":
					return math.Inf(1)
				case !w.place.Located:
					return 0
				case stage.Nearest.By == "rtt":
					return bias(msPerKM*km(pool), percent)
				}
				return bias(km(pool), percent)
			})
		}
	}
	return pools
}

// measured returns the RTTs that count for the longest prefix around the client that has
// any.
func (w *witness) measured(s config.RTTStage) map[string]float64 {
	var rows map[string]float64
	bits := -1
	if w.in.RTT == nil {
		return nil
	}
	for k, v := range w.in.RTT.rows {
		_, mine := w.svc.Pools[k.Pool]
		if !mine || v.Samples < s.MinSamples || !v.At.Add(s.MaxAge.Std()).After(w.in.Now) || !k.Prefix.Contains(w.addr) {
			continue
		}
		if k.Prefix.Bits() > bits {
			bits, rows = k.Prefix.Bits(), map[string]float64{}
		}
		if k.Prefix.Bits() == bits {
			rows[k.Pool] = v.Millis
		}
	}
	return rows
}

// shares returns how small the smallest of levels is that a site shares with the client.
func (w *witness) shares(levels []string, s config.Site) float64 {
	_, sub, _ := strings.Cut(s.Subdivision, "-")
	country := s.Country != "" && s.Country == w.place.Country
	for i, l := range []struct {
		name string
		same bool
	}{
		{"city", country && s.City != "" && s.City == w.place.City},
		{"subdivision", country && sub != "" && sub == w.place.Subdivision},
		{"country", country},
		{"continent", s.Continent != "" && s.Continent == w.place.Continent},
	} {
		if l.same && slices.Contains(levels, l.name) {
			return float64(i)
		}
	}
	return 4
}

// haversine returns the great-circle distance in km by the textbook's formula.
func haversine(lat1, lon1, lat2, lon2 float64) float64 {
	const rad = math.Pi / 180
	sin2 := func(x float64) float64 { s := math.Sin(x * rad / 2); return s * s }
	a := sin2(lat2-lat1) + math.Cos(lat1*rad)*math.Cos(lat2*rad)*sin2(lon2-lon1)
	return 2 * 6371.0088 * math.Asin(math.Sqrt(min(1, a)))
}

// byDraw orders names by their draws for a client.
func byDraw[E any](list []E, key uint64, of func(E) (seed uint64, weight float64)) []E {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b E) int {
		sa, wa := of(a)
		sb, wb := of(b)
		return cmp.Compare(draw(key, sa, 1/wa), draw(key, sb, 1/wb))
	})
	return list
}

// endpointsOf returns what a pool is answered with.
func endpointsOf(in Inputs, pool string, key uint64, n int, open, strict bool) (v4, v6 []netip.Addr) {
	var usable, drained, free, freeDrained, all []config.Endpoint
	for _, e := range in.Objects.Pools[pool].Endpoints {
		if e.EffectiveWeight() == 0 {
			continue
		}
		down, forced := isDown(in, pool, e.Address)
		off := stateOf(in, pool, e.Address, "drain")
		all = append(all, e)
		healthy := !down && !(strict && unknown(in, pool, e.Address))
		if healthy && !off {
			usable = append(usable, e)
		}
		if healthy && off {
			drained = append(drained, e)
		}
		if !(down && forced) && !off {
			free = append(free, e)
		}
		if !(down && forced) && off {
			freeDrained = append(freeDrained, e)
		}
	}
	lists := [][]config.Endpoint{usable, drained, free, freeDrained, all}
	if open {
		lists = lists[2:]
	}
	for _, l := range lists {
		if len(l) == 0 {
			continue
		}
		for _, is4 := range []bool{true, false} {
			var family []config.Endpoint
			for _, e := range l {
				if e.Address.Is4() == is4 {
					family = append(family, e)
				}
			}
			if len(family) > n {
				family = byDraw(family, key, func(e config.Endpoint) (uint64, float64) {
					return seed("endpoint", pool, e.Address.String()), float64(e.EffectiveWeight())
				})[:n]
			}
			for _, e := range family {
				if is4 {
					v4 = append(v4, e.Address)
				} else {
					v6 = append(v6, e.Address)
				}
			}
		}
		return v4, v6
	}
	return nil, nil
}

// randomInputs returns a random configuration with one service "w", its state, and the
// prefixes of its geography.
func randomInputs(rng *rand.Rand) (in Inputs, prefixes []netip.Prefix) {
	o := &config.Objects{
		Sites: map[string]config.Site{}, Pools: map[string]config.Pool{}, Services: map[string]config.Service{}, States: map[string]config.State{},
		Probes: map[string]config.Probe{"t": {TCP: &config.TCPProbe{Port: 80}}},
	}
	in = Inputs{Revision: 1, Objects: o, Verdicts: map[EndpointID]Verdict{}, Flipping: map[EndpointID]bool{}, Now: now,
		Regional: map[string]map[EndpointID]Verdict{"s0": {}, "r": {}, "nowhere": {}}}
	for i := range 4 {
		o.Sites[fmt.Sprint("s", i)] = config.Site{
			Lat: float64(rng.IntN(160) - 80), Lon: float64(rng.IntN(360) - 180),
			Continent: []string{"", "EU", "NA"}[rng.IntN(3)], Country: []string{"", "DE", "US"}[rng.IntN(3)],
			Subdivision: []string{"", "DE-BE", "US-CA"}[rng.IntN(3)], City: []string{"", "Berlin"}[rng.IntN(2)],
			Region: []string{"", "r"}[i%2],
		}
	}
	o.Sites["s4"] = o.Sites["s0"]
	weight := func() *int {
		w := []int{0, 1, 1, 2, 5}[rng.IntN(5)]
		return &w
	}
	var names []string
	for i := range 1 + rng.IntN(6) {
		name := fmt.Sprint("p", i)
		names = append(names, name)
		p := config.Pool{Site: fmt.Sprint("s", rng.IntN(5)), Probe: []string{"", "t", "t"}[rng.IntN(3)]}
		sick := rng.IntN(3)
		for j := range 1 + rng.IntN(5) {
			addr := netip.AddrFrom4([4]byte{10, byte(i), 0, byte(j)})
			if rng.IntN(4) == 0 {
				addr = netip.AddrFrom16([16]byte{0xfd, byte(i), 15: byte(j)})
			}
			p.Endpoints = append(p.Endpoints, config.Endpoint{Address: addr, Weight: weight()})
			v := Verdict(rng.IntN(2))
			if rng.IntN(3) < sick {
				v = Down
			}
			in.Verdicts[EndpointID{name, addr}] = v
			if from := in.Regional[[]string{"s0", "r", "nowhere"}[rng.IntN(3)]]; p.Probe != "" && rng.IntN(2) == 0 {
				from[EndpointID{name, addr}] = Verdict(1 + rng.IntN(2))
			}
			if rng.IntN(8) == 0 {
				key := fmt.Sprint("e", i, ".", j)
				o.States[key] = config.State{Pool: name, Endpoint: addr, State: []string{"drain", "down", "up"}[rng.IntN(3)], Author: "ann"}
			}
		}
		if rng.IntN(2) == 0 {
			p.Hostname = name + ".example"
		}
		o.Pools[name] = p
		if rng.IntN(6) == 0 {
			until := []time.Time{{}, now, now.Add(time.Hour)}[rng.IntN(3)]
			o.States[name] = config.State{Pool: name, State: []string{"drain", "down", "up"}[rng.IntN(3)], Author: "bob", Until: until}
		}
	}
	svc := config.Service{Steering: config.Steering{Pools: map[string]config.PoolRef{}}}
	for _, name := range names {
		svc.Pools[name] = config.PoolRef{Weight: weight(), Standby: rng.IntN(5) == 0}
	}
	o.Chains = map[string]config.Chain{}
	svc.Policy = randomPolicy(rng, names, o.Chains)
	in.Load, in.Shares, in.RTT = randomLoad(rng, names)
	svc.AllDown = []config.AllDown{{}, {Mode: "open"}, {Mode: "servfail"}, {Mode: "fallback", Fallback: []string{"10.99.0.1", "fd99::1"}}}[rng.IntN(4)]
	if rng.IntN(2) == 0 {
		svc.HTTPS = &config.HTTPS{Pools: 1 + rng.IntN(3)}
	}
	if rng.IntN(3) == 0 {
		svc.Sticky = config.Sticky{IPv4: 8 + rng.IntN(25), IPv6: 16 + rng.IntN(49)}
	}
	o.Services["w"] = svc

	var g geo.Config
	seen := map[netip.Prefix]bool{}
	for range rng.IntN(30) {
		b := [16]byte{0x20, 0x01, byte(rng.IntN(2)), byte(rng.IntN(4)), byte(rng.IntN(4))}
		p := netip.PrefixFrom(netip.AddrFrom16(b), rng.IntN(60)).Masked()
		if rng.IntN(2) == 0 {
			p = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(64 * rng.IntN(4)), byte(rng.IntN(3)), byte(rng.IntN(3)), byte(rng.IntN(3))}), rng.IntN(33)).Masked()
		}
		if seen[p] {
			continue
		}
		seen[p] = true
		prefixes = append(prefixes, p)
		place := geo.Place{
			Located: rng.IntN(4) > 0, Lat: float64(rng.IntN(160) - 80), Lon: float64(rng.IntN(360)-180) + 0.5,
			Continent: []string{"", "EU", "NA"}[rng.IntN(3)], Country: []string{"", "DE", "US"}[rng.IntN(3)],
			Subdivision: []string{"", "BE", "CA"}[rng.IntN(3)], City: []string{"", "Berlin"}[rng.IntN(2)], ASN: uint32(rng.IntN(3)),
		}
		if rng.IntN(4) == 0 {
			place = geo.Place{Site: fmt.Sprint("s", rng.IntN(7))}
		}
		g.Overrides = append(g.Overrides, geo.Override{Prefix: p, Place: place})
	}
	m, err := geo.Open(g)
	if err != nil {
		panic(err)
	}
	if rng.IntN(10) > 0 {
		in.Geo = m
	}
	return in, prefixes
}

// randomPolicy returns a policy of up to eight stages, some of them in cases and chains.
func randomPolicy(rng *rand.Rand, pools []string, chains map[string]config.Chain) []config.Stage {
	stages := randomStages(rng, pools)
	for depth := range 2 {
		if rng.IntN(3) > 0 {
			continue
		}
		var m config.MatchStage
		for range 1 + rng.IntN(2) {
			m.Cases = append(m.Cases, config.MatchCase{If: randomCondition(rng, true), Then: randomStages(rng, pools)})
		}
		m.Else = randomStages(rng, pools)
		if rng.IntN(2) == 0 {
			name := fmt.Sprint("chain", depth)
			chains[name] = config.Chain{Policy: stages}
			call := config.ChainStage(name)
			m.Else = []config.Stage{{Chain: &call}}
			stages = nil
		}
		stages = slices.Insert(stages, rng.IntN(len(stages)+1), config.Stage{Match: &m})
	}
	return stages
}

func randomCondition(rng *rand.Rand, dynamic bool) (c config.Condition) {
	switch rng.IntN(8) {
	case 0:
		c.Country = []string{"DE"}
	case 1:
		c.Continent = []string{"EU", "AS"}
	case 2:
		c.Subdivision = []string{"DE-BE"}
	case 3:
		c.ASN = []int{1}
	case 4:
		c.Site = []string{"s1", "s2"}
	case 5, 6:
		b := [16]byte{0x20, 0x01, byte(rng.IntN(2)), byte(rng.IntN(4))}
		c.Prefix = []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom16(b), 32).Masked(),
			netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(64 * rng.IntN(4)), byte(rng.IntN(3))}), 1+rng.IntN(18)).Masked(),
		}
	case 7:
		if dynamic {
			c.Time = &config.Window{Days: []string{[]string{"mon", "tue"}[rng.IntN(2)]}}
			c.Name = [][]string{nil, {"w*"}, {"x"}}[rng.IntN(3)]
		}
	}
	return c
}

func randomStages(rng *rand.Rand, pools []string) []config.Stage {
	share := func() float64 { return []float64{0, 0.3, 0.7, 1}[rng.IntN(4)] }
	pool := func() string { return pools[rng.IntN(len(pools))] }
	f := &config.FailoverStage{}
	for _, p := range pools {
		if i := rng.IntN(4); i < 3 {
			for len(f.Order) <= i {
				f.Order = append(f.Order, nil)
			}
			f.Order[i] = append(f.Order[i], p)
		}
	}
	fence := &config.FenceStage{Rules: []config.FenceRule{{When: randomCondition(rng, false)}}}
	if rng.IntN(2) == 0 {
		fence.Rules[0].Allow = []string{pool(), "site:s1"}
	} else {
		fence.Rules[0].Deny = []string{pool()}
	}
	if rng.IntN(4) == 0 {
		fence.Within = []string{"country", "continent"}[rng.IntN(2)]
	}
	h := &config.HealthStage{Unknown: []string{"", "up", "degraded", "down"}[rng.IntN(4)], By: []string{"", "region"}[rng.IntN(2)]}
	if rng.IntN(3) == 0 {
		v := share()
		h.Threshold = &v
	}
	if rng.IntN(3) == 0 {
		v := share()
		h.MinHealthy = &v
	}
	nearest := &config.NearestStage{By: []string{"", "rtt"}[rng.IntN(2)]}
	if rng.IntN(2) == 0 {
		nearest.Affinity = []string{"continent", []string{"city", "subdivision", "country"}[rng.IntN(3)]}
	}
	if rng.IntN(2) == 0 {
		nearest.Bias = map[string]float64{pool(): float64(rng.IntN(180) - 90)}
	}
	stages := []config.Stage{
		{Health: &config.HealthStage{}}, {Nearest: &config.NearestStage{}}, {Weighted: &config.WeightedStage{}}, {Failover: f},
		{Select: &config.SelectStage{Answers: 1 + rng.IntN(3), PerSite: rng.IntN(3), Order: "draw"}}, {Health: h}, {Nearest: nearest}, {Fence: fence},
		{RTT: &config.RTTStage{Within: float64(rng.IntN(20))}}, {Trickle: &config.TrickleStage{To: []string{pool(), pool()}, Share: share()}},
		{Shed: &config.ShedStage{Low: 0.5, High: 1}}, {Capacity: &config.CapacityStage{Shares: map[string]float64{pool(): share()}}},
		{Sticky: &config.StickyStage{Sticky: config.Sticky{IPv4: 8 + rng.IntN(25), IPv6: 16 + rng.IntN(49)}}},
	}
	rng.Shuffle(len(stages), func(i, j int) { stages[i], stages[j] = stages[j], stages[i] })
	stages = stages[:rng.IntN(7)]
	if rng.IntN(2) == 0 && len(stages) > 0 && !slices.ContainsFunc(stages, func(s config.Stage) bool { return s.Health != nil }) {
		stages = append([]config.Stage{{Health: &config.HealthStage{}}}, stages...)
	}
	return stages
}

// randomLoad returns loads, shares of a plan and measurements of some pools.
func randomLoad(rng *rand.Rand, pools []string) (load map[string]float64, shares map[string]map[string]float64, rtt *RTTTable) {
	load, shares = map[string]float64{}, map[string]map[string]float64{"w": {}}
	rows := map[RTTKey]RTT{}
	for _, p := range pools {
		if rng.IntN(2) == 0 {
			load[p] = 1.2 * rng.Float64()
		}
		if rng.IntN(6) == 0 {
			shares["w"][p] = rng.Float64()
		}
		for range rng.IntN(4) {
			b := [16]byte{0x20, 0x01, byte(rng.IntN(2)), byte(rng.IntN(4))}
			k := RTTKey{netip.PrefixFrom(netip.AddrFrom16(b), 24+rng.IntN(9)).Masked(), p}
			if rng.IntN(2) == 0 {
				k.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(64 * rng.IntN(4)), byte(rng.IntN(3))}), 1+rng.IntN(18)).Masked()
			}
			rows[k] = RTT{Millis: float64(1 + rng.IntN(50)), Samples: 1 + rng.IntN(8), At: now.Add(-time.Duration(rng.IntN(30)) * time.Hour)}
		}
	}
	return load, shares, NewRTTTable(rows)
}

// corners returns the addresses at which a decision may change with the place.
func corners(prefixes []netip.Prefix) (out []netip.Addr) {
	add := func(p netip.Prefix) {
		out = append(out, p.Addr())
		b := p.Addr().AsSlice()
		for i := p.Bits(); i < len(b)*8; i++ {
			b[i/8] |= 0x80 >> (i % 8)
		}
		last, _ := netip.AddrFromSlice(b)
		out = append(out, last)
		if next := last.Next(); next.IsValid() {
			out = append(out, next)
		}
	}
	for _, hole := range []string{"64:ff9b::/96", "2002::/16"} {
		h := netip.MustParsePrefix(hole)
		add(h)
		for _, p := range prefixes {
			if p.Addr().Is4() {
				b, v4 := h.Addr().As16(), p.Addr().As4()
				copy(b[h.Bits()/8:], v4[:])
				add(netip.PrefixFrom(netip.AddrFrom16(b), h.Bits()+p.Bits()))
			}
		}
	}
	for _, p := range append(prefixes, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")) {
		add(p)
	}
	return out
}

// obviousLine is what the twin decides, in one line.
func obviousLine(in Inputs, addr netip.Addr) string {
	pool, reason, v4, v6, targets := obvious(in, "w", addr)
	return fmt.Sprint(pool, reason, v4, v6, targets)
}

// TestDecideAgreesWithTwin compares random configurations, geographies and states with the
// twin, and each scope with brute force: no corner inside decides differently, and one bit
// less has one that does. Every two kinds of stages meet in some
// policy, in either order. The flag -seeds runs it so often,
// each time from another seed.
func TestDecideAgreesWithTwin(t *testing.T) {
	for i := range *seeds {
		t.Run(fmt.Sprint("seed=", i), func(t *testing.T) {
			agreeWithTwin(t, rand.New(rand.NewPCG(3+uint64(i), 5)))
		})
	}
}

var seeds = flag.Int("seeds", 1, "how often random configurations are compared with the twin, with a seed each")

func agreeWithTwin(t *testing.T, rng *rand.Rand) {
	seen := map[Reason]int{}
	pairs := map[[2]string]bool{} // of stages, in the order in which they stand
	var prev *Snapshot
	for round := range 600 {
		in, prefixes := randomInputs(rng)
		kinds := stageKinds(in.Objects, in.Objects.Services["w"].Policy)
		for i, first := range kinds {
			for _, second := range kinds[i+1:] {
				pairs[[2]string{first, second}] = true
			}
		}
		if prev != nil && rng.IntN(2) == 0 {
			prev = nil
		}
		s := mustBuild(t, prev, in)
		prev = s
		svc := s.Service("w")
		at := corners(append(prefixes, svc.steering.marks...))
		decide := func(a netip.Addr) (d Decision, line string) {
			s.Decide(svc, Client{a, uint8(a.BitLen())}, &d)
			line = fmt.Sprint(d.V4, d.V6, d.Fallback)
			for _, target := range d.Targets {
				line += fmt.Sprint(" ", target.Name, target.V4, target.V6)
			}
			o := &svc.outcomes[d.Outcome]
			if drawn := len(o.shares) > 0 && (o.split || cut(&d)); drawn {
				// Another draw is another decision, even where this client is drawn the same.
				key, _ := o.hash(svc, a.Unmap())
				_, length4 := o.hash(svc, netip.IPv4Unspecified())
				_, length6 := o.hash(svc, netip.IPv6Unspecified())
				line += fmt.Sprint(" ", key, length4, length6)
				for i, sh := range o.shares {
					if !sh.lost {
						line += fmt.Sprint(" ", sh.pool.Name, sh.list.index, sh.gates, i > 0 && sh.group != o.shares[i-1].group)
					}
				}
				line += fmt.Sprint(o.shape.answers, o.shape.mode)
			}
			return d, line
		}
		for range 40 {
			a := at[rng.IntN(len(at))]
			if rng.IntN(4) == 0 {
				b := a.AsSlice()
				b[rng.IntN(len(b))] ^= byte(1 << rng.IntN(8))
				a, _ = netip.AddrFromSlice(b)
			}
			a = a.Unmap()
			d, line := decide(a)
			if a.Is4() { // the same client, written as IPv6
				m := netip.AddrFrom16(a.As16())
				if got, l := decide(m); l != line || got.Scope != d.Scope || got.line() != d.line() {
					t.Fatalf("round %d: %s: got %s, want that of %s: %s\n%s", round, m, got.line(), a, d.line(), yamlOf(in))
				}
				got, want := s.Explain(svc, Client{m, 128}), s.Explain(svc, Client{a, 32})
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("round %d: %s: explained as\n%+v\nwant that of %s\n%+v\n%s", round, m, got, a, want, yamlOf(in))
				}
				if got, want := obviousLine(in, m), obviousLine(in, a); got != want {
					t.Fatalf("round %d: the twin decides %s for %s, and %s for %s", round, got, m, want, a)
				}
			}
			seen[d.Reason]++
			pool, reason, v4, v6, targets := obvious(in, "w", a)
			if svc.outcomes[d.Outcome].merged {
				v4, v6 = d.V4, d.V6
			}
			want := Decision{Pool: s.Pool(pool), Reason: reason, Scope: d.Scope, TTL: d.TTL, V4: v4, V6: v6}
			if got := d.line(); got != want.line() {
				t.Fatalf("round %d: %s: got %s\nwant %s\nservice %s\n%+v", round, a, got, want.line(), yamlOf(in), s.Explain(svc, Client{a, uint8(a.BitLen())}))
			}
			if got := targetsOf(&d); !slices.Equal(got, targets) {
				t.Fatalf("round %d: %s: %s with targets %v, want %v\n%s", round, a, d.line(), got, targets, yamlOf(in))
			}
			checkExplains(t, s, svc, Client{a, uint8(a.BitLen())})
			checkFamilies(t, s, svc, Client{a, uint8(a.BitLen())}, &d)

			inside := netip.PrefixFrom(a, int(d.Scope)).Masked()
			differs := func(p netip.Prefix) (netip.Addr, bool) {
				for _, c := range append(at, p.Addr()) {
					if p.Contains(c) && !c.Is4In6() {
						if _, l := decide(c); l != line {
							return c, true
						}
					}
				}
				return netip.Addr{}, false
			}
			if c, ok := differs(inside); ok {
				t.Fatalf("round %d: %s: %s, but %s inside the scope: %s\n%s", round, a, d.line(), c, func() string { d, _ := decide(c); return d.line() }(), yamlOf(in))
			}
			if d.Scope == 0 {
				continue
			}
			if f := flipped(a, d.Scope-1); !f.Is4In6() {
				if _, l := decide(f); l != line {
					continue
				}
			}
			if _, ok := differs(netip.PrefixFrom(a, int(d.Scope)-1).Masked()); !ok {
				t.Fatalf("round %d: %s: %s, but scope %d would do\n%s", round, a, d.line(), d.Scope-1, yamlOf(in))
			}
		}
	}
	for r := ReasonPolicy; r <= ReasonServfail; r++ {
		if seen[r] == 0 {
			t.Errorf("no decision with reason %s among %v", r, seen)
		}
	}
	kinds := reflect.TypeFor[config.Stage]()
	for i := range kinds.NumField() {
		for j := range kinds.NumField() {
			if a, b := kinds.Field(i).Name, kinds.Field(j).Name; i != j && !pairs[[2]string{a, b}] {
				t.Errorf("no policy has %s before %s", a, b)
			}
		}
	}
}

// flipped returns addr with another bit.
func flipped(addr netip.Addr, bit uint8) netip.Addr {
	b := addr.AsSlice()
	b[bit/8] ^= 0x80 >> (bit % 8)
	out, _ := netip.AddrFromSlice(b)
	return out
}

// checkFamilies checks that who wants one family is told what d, the decision for c, says of it, and
// the same of all else.
func checkFamilies(t *testing.T, s *Snapshot, svc *Service, c Client, d *Decision) {
	t.Helper()
	for _, want := range []Families{IPv4, IPv6, 0} {
		var one Decision
		s.DecideFor(want, svc, c, &one)
		if want&IPv4 != 0 && !slices.Equal(one.V4, d.V4) || want&IPv6 != 0 && !slices.Equal(one.V6, d.V6) {
			t.Fatalf("%s: family %d alone has %s; want what both have: %s", c.Addr, want, one.line(), d.line())
		}
		both := one
		both.V4, both.V6 = d.V4, d.V6
		if got, all := both.line(), d.line(); got != all || one.Flags != d.Flags || one.Outcome != d.Outcome || !slices.Equal(targetsOf(&one), targetsOf(d)) {
			t.Fatalf("%s: family %d alone is decided as %s; want %s", c.Addr, want, got, all)
		}
	}
}

// stageKinds returns the kinds of stages in their order, those of cases and chains where they
// stand.
func stageKinds(o *config.Objects, stages []config.Stage) (kinds []string) {
	for _, s := range stages {
		v := reflect.ValueOf(s)
		for i := range v.NumField() {
			if !v.Field(i).IsNil() {
				kinds = append(kinds, v.Type().Field(i).Name)
			}
		}
		if s.Chain != nil {
			kinds = append(kinds, stageKinds(o, o.Chains[string(*s.Chain)].Policy)...)
		}
		if s.Match != nil {
			for _, c := range s.Match.Cases {
				kinds = append(kinds, stageKinds(o, c.Then)...)
			}
			kinds = append(kinds, stageKinds(o, s.Match.Else)...)
		}
	}
	return kinds
}

func yamlOf(in Inputs) string {
	b, err := config.MarshalYAML(in.Objects)
	return fmt.Sprintf("%s %v\nload %v shares %v", b, err, in.Load, in.Shares)
}

// targetsOf returns the pools that d names in HTTPS, best first.
func targetsOf(d *Decision) (pools []string) {
	for i := range d.Targets {
		pools = append(pools, d.Targets[i].Pool.Name)
	}
	return pools
}

// cut reports whether d is a selection of its pool's endpoints.
func cut(d *Decision) bool {
	o := &d.Service.outcomes[d.Outcome]
	i := slices.IndexFunc(o.shares, func(sh share) bool { return sh.pool == d.Pool && !sh.lost })
	l := o.shares[i].list
	return o.merged || len(d.V4) < len(l.v4.addrs) || len(d.V6) < len(l.v6.addrs)
}
