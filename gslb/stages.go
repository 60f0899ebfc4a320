package gslb

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// fence drops pools for clients that they may not serve.
func (k *compiler) fence(f *config.FenceStage) stage {
	type rule struct {
		condition
		lost []bool // by candidate
		deny bool
	}
	rules := make([]rule, len(f.Rules))
	plan := f.Within
	for i, r := range f.Rules {
		rules[i] = rule{condition{r.When}, make([]bool, len(k.candidates)), len(r.Deny) > 0}
		for j, c := range k.candidates {
			rules[i].lost[j] = !r.Admits(c.pool.Name, c.pool.Site)
		}
		plan += fmt.Sprint(describe(r.When), rules[i].lost)
		k.mark(r.When.Prefix...)
	}
	if f.Within != "" {
		for _, c := range k.candidates {
			plan += c.pool.at.place.Country + c.pool.at.place.Continent + ","
		}
	}
	// why returns what keeps candidate i from the client; "" is nothing.
	why := func(c *contest, i int, at *locus) string {
		place := c.candidates[i].pool.at.place
		switch {
		case f.Within == "country" && (at.place.Country == "" || at.place.Country != place.Country):
			return "not in the client's country"
		case f.Within == "continent" && (at.place.Continent == "" || at.place.Continent != place.Continent):
			return "not on the client's continent"
		}
		for j := range rules {
			if r := &rules[j]; r.lost[i] && r.holds(at) {
				if r.deny {
					return "denied to " + describe(r.Condition)
				}
				return "not among those allowed to " + describe(r.Condition)
			}
		}
		return ""
	}
	local := f.Within != "" || slices.ContainsFunc(rules, func(r rule) bool { return r.local() })
	return stage{
		name: "fence", local: local, plan: plan,
		judge: func(c *contest, _ int, at *locus) {
			for i := range c.standings {
				if !c.standings[i].out && why(c, i, at) != "" {
					c.standings[i].out, c.standings[i].fenced = true, true
				}
			}
		},
		note: why,
	}
}

// health drops pools without a healthy endpoint, or with too few, and demotes degraded ones:
// for everybody, and by region for those clients as well whose vantages see them so.
func (k *compiler) health(h *config.HealthStage) stage {
	strict := h.Unknown == "down"
	all := k.fitness(h, "")
	plan := fmt.Sprint(all, strict)
	var by map[string]*fitness // the regions that see something else
	var around *regions
	if h.By == "region" {
		k.reads |= readsRegions
		for _, region := range slices.Sorted(maps.Keys(k.env.seen)) {
			f := k.fitness(h, region)
			if slices.Equal(f.down, all.down) && slices.Equal(f.degraded, all.degraded) {
				continue
			}
			if by == nil {
				by, around = make(map[string]*fitness), newRegions(k.env.sites)
				plan += fmt.Sprint(*around)
			}
			by[region] = f
			plan += fmt.Sprint(region, f)
		}
	}
	as := func(at *locus) *fitness {
		if by != nil {
			if f := by[around.of(at)]; f != nil {
				return f
			}
		}
		return all
	}
	return stage{
		name: "health", local: by != nil, plan: plan,
		judge: func(c *contest, _ int, at *locus) {
			c.shape.strict = c.shape.strict || strict
			f := as(at)
			for i := range c.standings {
				if f.down[i] {
					c.standings[i].down = true
				}
				if f.degraded[i] {
					c.standings[i].tier |= tierDegraded
				}
			}
		},
		note: func(c *contest, i int, at *locus) string { return as(at).notes[i] },
	}
}

// fitness is what a health stage finds of each candidate.
type fitness struct {
	down, degraded []bool
	notes          []string
}

// String returns one digit for each candidate: what health says of it.
func (f *fitness) String() string {
	b := make([]byte, len(f.down))
	for i := range b {
		b[i] = '0' + flags(f.down[i], f.degraded[i])
	}
	return string(b)
}

// fitness judges the candidates as all vantages see them, or those of a region.
func (k *compiler) fitness(h *config.HealthStage, region string) *fitness {
	n := len(k.candidates)
	f := &fitness{make([]bool, n), make([]bool, n), make([]string, n)}
	for i, c := range k.candidates {
		views, from := c.pool.views, ""
		if seen := k.env.seen[region]; slices.ContainsFunc(c.pool.Endpoints, func(e Endpoint) bool { return seen[EndpointID{c.pool.Name, e.Addr}] == Down }) {
			from = " as seen from " + region
			views[loose].count(c.pool, false, seen)
			views[sure].count(c.pool, true, seen)
		}
		v := &views[loose]
		if h.Unknown == "down" {
			v = &views[sure]
		}
		f.down[i], f.notes[i] = v.down, v.note+from
		if t := h.Threshold; t != nil && !v.down && v.alive < *t {
			f.down[i] = true
			f.notes[i] += fmt.Sprintf(", under the threshold of %.0f %%", 100**t)
		}
		share := v.healthy
		if h.Unknown == "degraded" {
			share = views[sure].healthy
		}
		least := c.pool.minHealth
		if h.MinHealthy != nil {
			least = *h.MinHealthy
		}
		if f.degraded[i] = share < least; f.degraded[i] && !f.down[i] {
			f.notes[i] += fmt.Sprintf(", degraded: %.0f %% of its weight usable", 100*share)
		}
	}
	return f
}

// regions tell of what region a client is: that of its site, else of the site nearest to it.
type regions struct {
	bySite map[string]string
	spots  []spot   // of the sites, by name
	names  []string // the region of each
}

func newRegions(sites map[string]config.Site) *regions {
	r := &regions{bySite: make(map[string]string, len(sites))}
	for _, name := range slices.Sorted(maps.Keys(sites)) {
		s := sites[name]
		r.bySite[name] = s.EffectiveRegion(name)
		r.spots, r.names = append(r.spots, spotAt(s.Lat, s.Lon)), append(r.names, r.bySite[name])
	}
	return r
}

// of returns the region of a client there; "" if nobody knows where that is.
func (r *regions) of(at *locus) string {
	if region, ok := r.bySite[at.place.Site]; ok || !at.known || len(r.spots) == 0 {
		return region
	}
	best := 0
	for i := range r.spots {
		if at.cos(&r.spots[i]) > at.cos(&r.spots[best]) {
			best = i
		}
	}
	return r.names[best]
}

// failover orders pools by the group that names them; those that no group names are last.
func (k *compiler) failover(groups [][]string) stage {
	ranks := make([]float64, len(k.candidates))
	for i, c := range k.candidates {
		g := slices.IndexFunc(groups, func(names []string) bool { return slices.Contains(names, c.pool.Name) })
		if g < 0 {
			g = len(groups)
		}
		ranks[i] = float64(g)
	}
	return stage{
		name:  "failover",
		order: true,
		plan:  fmt.Sprint(ranks),
		judge: func(c *contest, slot int, _ *locus) { copy(c.order[slot], ranks) },
		note: func(_ *contest, i int, _ *locus) string {
			if int(ranks[i]) == len(groups) {
				return "not named: last"
			}
			return fmt.Sprintf("rank %d of %d", int(ranks[i])+1, len(groups))
		},
	}
}

// nearest adds stages that order pools by what of their place they share with the client,
// then by distance, or by the time that packets take. For a client whose place nobody knows
// all are equal.
func (k *compiler) nearest(n *config.NearestStage) {
	if len(n.Affinity) > 0 {
		k.add(k.affinity(n.Affinity))
	}
	if n.By == "rtt" {
		k.add(k.estimated(n.Bias))
		return
	}
	if len(n.Bias) == 0 {
		k.add(stage{
			name: "nearest", local: true, order: true,
			judge: func(c *contest, slot int, at *locus) {
				keys := c.order[slot]
				if !at.known {
					clear(keys)
					return
				}
				for i := range keys {
					keys[i] = -at.cos(&c.candidates[i].pool.at.spot)
				}
			},
			note: noteDistance,
		})
		return
	}
	bias := k.biases(n.Bias)
	k.add(stage{
		name: "nearest", local: true, order: true, plan: fmt.Sprint(bias),
		judge: func(c *contest, slot int, at *locus) {
			keys := c.order[slot]
			if !at.known {
				clear(keys)
				return
			}
			for i := range keys {
				keys[i] = biased(at.km(&c.candidates[i].pool.at.spot), bias[i])
			}
		},
		note: func(c *contest, i int, at *locus) string {
			if bias[i] == 0 || !at.known {
				return noteDistance(c, i, at)
			}
			km := at.km(&c.candidates[i].pool.at.spot)
			return fmt.Sprintf("%.0f km, as if %.0f for its bias of %+.4g %%", km, biased(km, bias[i]), bias[i])
		},
	})
}

func noteDistance(c *contest, i int, at *locus) string {
	if !at.known {
		return "the client's place is not known"
	}
	return fmt.Sprintf("%.0f km", at.km(&c.candidates[i].pool.at.spot))
}

// biases returns the bias of each candidate in percent.
func (k *compiler) biases(by map[string]float64) []float64 {
	out := make([]float64, len(k.candidates))
	for i, c := range k.candidates {
		out[i] = by[c.pool.Name]
	}
	return out
}

// biased returns a distance under a bias in percent, -99..99: above 0 it shrinks, so that the
// pool draws clients from farther away, and below 0 it grows.
func biased(distance, percent float64) float64 {
	if percent >= 0 {
		return distance * (1 - percent/100)
	}
	return distance / (1 + percent/100)
}

// affinity orders pools by the smallest of the levels that they share with the client.
func (k *compiler) affinity(levels []string) stage {
	plan := fmt.Sprint(levels)
	for _, c := range k.candidates {
		p := c.pool.at.place
		plan += strings.Join([]string{p.City, p.Subdivision, p.Country, p.Continent}, "/") + ","
	}
	ordered := slices.DeleteFunc([]string{"city", "subdivision", "country", "continent"}, func(l string) bool { return !slices.Contains(levels, l) })
	shared := func(c *contest, i int, at *locus) int {
		a, b := at.place, c.candidates[i].pool.at.place
		for n, level := range ordered {
			same := a.Continent == b.Continent && a.Continent != ""
			if level != "continent" {
				same = a.Country == b.Country && a.Country != ""
			}
			switch level {
			case "subdivision":
				same = same && a.Subdivision == b.Subdivision && a.Subdivision != ""
			case "city":
				same = same && a.City == b.City && a.City != ""
			}
			if same {
				return n
			}
		}
		return len(ordered)
	}
	return stage{
		name: "affinity", local: true, order: true, plan: plan,
		judge: func(c *contest, slot int, at *locus) {
			for i := range c.candidates {
				c.order[slot][i] = float64(shared(c, i, at))
			}
		},
		note: func(c *contest, i int, at *locus) string {
			if n := shared(c, i, at); n < len(ordered) {
				return "the same " + ordered[n]
			}
			return "elsewhere"
		},
	}
}

// measured returns the RTTs that count, and makes their prefixes marks.
func (k *compiler) measured(p config.RTTStage) *rttRows {
	k.reads |= readsRTT
	rows, until := k.env.rtt.count(k.candidates, p.MinSamples, p.MaxAge.Std(), k.env.now)
	if !until.IsZero() {
		k.changes = append(k.changes, until)
	}
	for prefix := range rows.rows {
		k.mark(prefix)
	}
	return &rows
}

// rtt orders pools by the round-trip time measured for the client's prefix.
func (k *compiler) rtt(p config.RTTStage) stage {
	rows := k.measured(p)
	return stage{
		name: "rtt", local: len(rows.rows) > 0, order: true, plan: fmt.Sprint(p.Within, rows.digest),
		judge: func(c *contest, slot int, at *locus) {
			keys := c.order[slot]
			row := rows.at(at)
			if row == nil {
				clear(keys)
				return
			}
			copy(keys, row)
			best := math.Inf(1)
			for i := range keys {
				if s := &c.standings[i]; !s.out {
					best = min(best, keys[i])
				}
			}
			for i := range keys {
				if keys[i] <= best+p.Within {
					keys[i] = best
				}
			}
		},
		note: func(_ *contest, i int, at *locus) string {
			switch row := rows.at(at); {
			case row == nil:
				return "not measured for this client"
			case math.IsInf(row[i], 1):
				return "not measured: after those that are"
			default:
				return fmt.Sprintf("%.1f ms measured", row[i])
			}
		},
	}
}

// estimated orders pools by the RTT where it was measured, else by what the distance makes
// of it.
func (k *compiler) estimated(by map[string]float64) stage {
	rows := k.measured(config.RTTStage{}.Effective())
	bias := k.biases(by)
	ms := func(c *contest, i int, at *locus) (float64, string) {
		if row := rows.at(at); row != nil && !math.IsInf(row[i], 1) {
			return biased(row[i], bias[i]), "measured"
		}
		if !at.known {
			return math.Inf(1), ""
		}
		return biased(msPerKM*at.km(&c.candidates[i].pool.at.spot), bias[i]), "estimated by distance"
	}
	return stage{
		name: "nearest", local: true, order: true, plan: fmt.Sprint("rtt", bias, rows.digest),
		judge: func(c *contest, slot int, at *locus) {
			for i := range c.candidates {
				c.order[slot][i], _ = ms(c, i, at)
			}
		},
		note: func(c *contest, i int, at *locus) string {
			v, how := ms(c, i, at)
			if how == "" {
				return "the client's place is not known"
			}
			return fmt.Sprintf("%.1f ms %s", v, how)
		},
	}
}

// loadStep is the grain of shares that follow load, so that not every report changes answers.
const loadStep = 1.0 / 64

// shed returns what each candidate keeps of its clients under its load.
func (k *compiler) shed(p *config.ShedStage) (shares []float64, notes []string) {
	k.reads |= readsLoad
	for _, c := range k.candidates {
		load, ok := k.env.load[c.pool.Name]
		share := p.Keeps(load)
		note := fmt.Sprintf("load %.0f %%", 100*load)
		if !ok {
			share, note = 1, "load not known"
		}
		shares = append(shares, math.Round(share/loadStep)*loadStep)
		notes = append(notes, note)
	}
	return shares, notes
}

// capacity returns what each candidate may take of its clients: what the plan says, else the
// configuration.
func (k *compiler) capacity(p *config.CapacityStage) (shares []float64, notes []string) {
	k.reads |= readsShares
	for _, c := range k.candidates {
		share, note := 1.0, "no share set"
		if v, ok := p.Shares[c.pool.Name]; ok {
			share, note = v, "share of the configuration"
		}
		if v, ok := k.env.shares[c.pool.Name]; ok && v >= 0 {
			share, note = min(1, v), "share of the plan"
		}
		shares, notes = append(shares, share), append(notes, note)
	}
	return shares, notes
}
