package health

import (
	"fmt"
	"iter"
	"slices"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// Vote is what one fresh vantage says of an endpoint.
type Vote struct {
	Node     string
	Site     string
	Up       bool
	Flipping bool // it may say the opposite soon
	Abstains bool // it is not believed: something is wrong where it stands
	CutOff   bool // it is not only that most of what it tests fails: it says nothing of anything
}

// Rule says how many votes it takes to call an endpoint down.
type Rule struct {
	Share         float64  // more than this share of the votes that count, 0 <= Share < 1
	Min           int      // at least so many, if so many count
	Sites         int      // in at least so many sites, if votes of so many count
	MustBeHealthy []string // nodes or sites whose single word is enough
	MonitorOnly   []string // nodes or sites that do not count
}

// The defaults of a rule.
const (
	defaultShare = 0.5
	defaultMin   = 2
	defaultSites = 2
)

var defaultRule = Rule{Share: defaultShare, Min: defaultMin, Sites: defaultSites}

// ruleOf returns the rule of q with its defaults; q may be nil.
func ruleOf(q *config.Quorum) Rule {
	r := defaultRule
	if q == nil {
		return r
	}
	if q.Share != nil {
		r.Share = *q.Share
	}
	if q.Min != 0 {
		r.Min = q.Min
	}
	if q.Sites != 0 {
		r.Sites = q.Sites
	}
	r.MustBeHealthy, r.MonitorOnly = q.MustBeHealthy, q.MonitorOnly
	return r
}

// monitors reports whether v only looks, and has no say.
func (r *Rule) monitors(v *Vote) bool {
	return slices.Contains(r.MonitorOnly, v.Node) || slices.Contains(r.MonitorOnly, v.Site)
}

// must reports whether v alone can bring an endpoint down.
func (r *Rule) must(v *Vote) bool {
	return slices.Contains(r.MustBeHealthy, v.Node) || slices.Contains(r.MustBeHealthy, v.Site)
}

// Judgement is what the votes say of an endpoint.
type Judgement struct {
	Verdict   gslb.Verdict
	Flipping  bool // it would change if every vantage that may be about to change its mind did
	Silent    bool // no vote counts: Verdict is the last one
	Unsure    bool // down by the votes of those that abstain alone: Verdict is the last one
	Agreed    bool // none of those that test it is believed by itself, but all say down
	Unanimous bool // every vote that counts says the same
	Down, Of  int  // votes that say down, of those that count
	Sites     int  // in which somebody says down
	Must      bool // one that must be healthy says down
}

// Why says j in words.
func (j Judgement) Why() string {
	switch {
	case j.Silent:
		return "no vantage that counts speaks: the last verdict stays"
	case j.Must:
		return fmt.Sprintf("one that must be healthy says down, with %d of %d vantages", j.Down, j.Of)
	case j.Agreed:
		return fmt.Sprintf("all of %d vantages say down, in %d sites, though most of what each tests fails", j.Down, j.Sites)
	case j.Unsure:
		return fmt.Sprintf("%d of %d vantages say down, and more that are not believed now: the last verdict stays", j.Down, j.Of)
	case j.Of == 1 && j.Down == 0:
		return "the only vantage that counts says up"
	case j.Of == 1:
		return "the only vantage that counts says down"
	case j.Down == 0:
		return fmt.Sprintf("all of %d vantages say up", j.Of)
	}
	if j.Sites == 1 {
		return fmt.Sprintf("%d of %d vantages say down, in 1 site", j.Down, j.Of)
	}
	return fmt.Sprintf("%d of %d vantages say down, in %d sites", j.Down, j.Of, j.Sites)
}

// Judge returns what the votes say by rule r.
//
// Down needs more than a share of the votes that count, at least a number of them, and in
// several sites if there are vantages in several: a false "up" costs some clients a retry, a
// false "down" takes capacity from all. Up needs only that down does not have as many: of two
// vantages both must say down, of three two; an even split is up. Without any vote the last
// verdict stays: silence is no evidence. What is down stays so, too, as long as it were down if
// those that abstain were believed: when much fails at once, vantages that found it so begin to
// abstain one by one, until they are so many that all are believed again. And where nodes share the
// work, all that test an endpoint may be such, while most of the fleet is well: what they all call
// down, in two sites or as many as are asked for, is down, for one site may be cut off. Judge depends on nothing but its arguments, and
// not on the order of votes, so that nodes with the same table agree.
func Judge(r Rule, last gslb.Verdict, votes []Vote) Judgement {
	j := r.judge(last, votes, false)
	j.Flipping = r.judge(j.Verdict, votes, true).Verdict != j.Verdict
	return j
}

// judge judges the votes, or with later those that there are once all who may flip have.
func (r *Rule) judge(last gslb.Verdict, votes []Vote, later bool) Judgement {
	var counted, all count
	for i := range votes {
		if v := &votes[i]; !v.Abstains {
			counted.add(r, v, later)
		}
	}
	j := counted.judge(r, last)
	if j.Of == len(votes) || j.Of > 0 && (last != gslb.Down || j.Verdict != gslb.Up) {
		return j
	}
	cutOff := false
	for i := range votes {
		all.add(r, &votes[i], later)
		cutOff = cutOff || votes[i].CutOff
	}
	switch a := all.judge(r, last); {
	case j.Of > 0 && a.Verdict == gslb.Down:
		j.Verdict, j.Unsure, j.Unanimous = last, true, false
	case j.Of == 0 && !cutOff && a.Down == a.Of && a.Of >= r.Min && a.Sites >= max(2, r.Sites):
		j, j.Agreed, j.Unanimous = a, true, false
	}
	return j
}

// count counts votes one by one.
type count struct {
	j                Judgement
	sites, downSites [8]string // beyond these it makes no difference
	all              int       // of sites
}

func (c *count) add(r *Rule, v *Vote, later bool) {
	if r.monitors(v) {
		return
	}
	c.j.Of++
	c.all = addSite(&c.sites, c.all, v.Site)
	if v.Up != (later && v.Flipping) {
		return
	}
	c.j.Down++
	c.j.Sites = addSite(&c.downSites, c.j.Sites, v.Site)
	c.j.Must = c.j.Must || !v.Abstains && r.must(v)
}

func (c *count) judge(r *Rule, last gslb.Verdict) Judgement {
	j := c.j
	j.Unanimous = j.Down == 0 || j.Down == j.Of
	switch enough := float64(j.Down) > r.Share*float64(j.Of) && j.Down >= min(r.Min, j.Of) && j.Sites >= min(r.Sites, c.all); {
	case j.Of == 0:
		j.Verdict, j.Silent = last, true
	case j.Down > 0 && (enough || j.Must):
		j.Verdict = gslb.Down
	default:
		j.Verdict = gslb.Up
	}
	return j
}

// addSite adds site to the first n of sites, if there is room, and returns how many there are.
func addSite(sites *[8]string, n int, site string) int {
	if n == len(sites) || slices.Contains(sites[:n], site) {
		return n
	}
	sites[n] = site
	return n + 1
}

// mostFails is the percentage of what a vantage tests over which it is it that is doubted.
const mostFails = 50

// doubtful returns which of the vantages that are alive are not to be believed: those that
// say so themselves, and those for which more than half of everything fails. If the latter
// are a quorum it is the world that fails, and they are believed.
func doubtful(alive iter.Seq[Doubt]) map[string]bool {
	var abstain, fail []string
	others := 0
	for d := range alive {
		switch {
		case d.Abstains:
			abstain = append(abstain, d.Node)
		case d.Failing > mostFails:
			fail = append(fail, d.Node)
		default:
			others++
		}
	}
	if len(fail) > others && worldFails(alive) { // those that are no more than the others are no quorum
		fail = nil
	}
	if len(abstain)+len(fail) == 0 {
		return nil
	}
	out := make(map[string]bool, len(abstain)+len(fail))
	for _, node := range abstain {
		out[node] = true
	}
	for _, node := range fail {
		out[node] = true
	}
	return out
}

// worldFails reports whether those for which more than half of everything fails are a quorum.
func worldFails(alive iter.Seq[Doubt]) bool {
	var c count
	for d := range alive {
		if !d.Abstains {
			c.add(&defaultRule, &Vote{Node: d.Node, Site: d.Site, Up: d.Failing <= mostFails}, false)
		}
	}
	return c.judge(&defaultRule, gslb.Up).Verdict == gslb.Down
}

// Doubt is what a vantage says of itself.
type Doubt struct {
	Node, Site string
	Failing    uint8 // percent of all that it tests
	Abstains   bool  // it knows that it is cut off
}
