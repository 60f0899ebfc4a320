package gslb

import (
	"net/netip"
	"slices"

	"github.com/meridian-gslb/meridian/geo"
)

// routing is what a steering chooses for every client: an index of choices by place. It
// names candidates by number and knows nothing of their endpoints, weights or names, so
// that a snapshot whose pools are up or down as before has the same, and services with like
// pools share one.
type routing struct {
	key     string // of the steerings that it is for; "" with one choice for everybody
	world   *world
	table   *geo.Table // to an index of choices; nil: always the first
	choices []choice
	values  []uint32 // by class of world: the index of its choice
	kinds   []uint32 // by choice: the first with the same answers
	rough   bool     // choices that differ may have the same answers, as the services see it
	whole   *routing // what it refines; itself if nothing
}

// newRouting compiles a steering that does not read the client's place, or that has no world
// to find it in: it has one choice for everybody.
func newRouting(s *steering) *routing {
	c := newContest(s)
	c.at(&nowhereLocus)
	r := &routing{choices: []choice{c.decide().clone()}}
	r.whole = r
	return r
}

// tally is what a contest ends with at some classes of a world.
type tally struct {
	classes []uint32
	choices []choice
	codes   []string // of choices: equal ones are the same choice
	values  []uint32 // by place in classes: the index of its choice
}

// newTally holds the contest of s at those classes of w.
func newTally(s *steering, w *world, classes []uint32) *tally {
	t := &tally{classes: classes, values: make([]uint32, len(classes))}
	var code []byte
	index := make(map[string]uint32) // of choices
	c := newContest(s)
	for n, k := range classes {
		at := w.locus(w.classes.All()[k])
		c.at(&at)
		ch := c.decide()
		code = ch.append(code[:0])
		i, ok := index[string(code)]
		if !ok {
			i = uint32(len(t.choices))
			t.codes = append(t.codes, string(code))
			index[t.codes[i]] = i
			t.choices = append(t.choices, ch.clone())
		}
		t.values[n] = i
	}
	return t
}

// unsure returns the classes at which s may choose otherwise than was, whose routing r is; that
// is all of them, or with a nil r.
func (r *routing) unsure(was, s *steering, w *world) []uint32 {
	all := make([]uint32, len(w.classes.All()))
	for i := range all {
		all[i] = uint32(i)
	}
	if r == nil {
		return all
	}
	stale := r.stale(newContest(was), newContest(s))
	if stale == nil {
		return all
	}
	return slices.DeleteFunc(all, func(k uint32) bool { return !stale[r.values[k]] })
}

// stale reports which choices of r, that of the contest before, may be others in the contest
// after, where candidates have only become better or worse; else nil.
//
// One that is worse takes part in nothing but the choices that it is picked in: it did not
// beat their picks before, and now cannot. One that is better was behind whoever is picked by
// the policy, or it would have been missed there.
func (r *routing) stale(before, after *contest) []bool {
	if !before.alike(after) {
		return nil
	}
	stale := make([]bool, len(r.choices))
	for n, ch := range r.choices {
		stale[n] = ch.reason == ReasonAllDown // whose order has more to it
	}
	single := max(int(after.base.pools), after.targets) <= 1
	trickles := slices.ContainsFunc(after.stages, func(st stage) bool { return st.name == "trickle" })
	for i := range after.admitted {
		was, is := before.admitted[i], after.admitted[i]
		if was == is || was.down && is.down {
			continue
		}
		worse := is.down || !was.down && is.tier > was.tier
		const health = tierDegraded | tierDrained
		was.down, was.tier, is.down, is.tier = false, was.tier&^health, false, is.tier&^health
		if was != is {
			return nil
		}
		for n, ch := range r.choices {
			of := func(p pick) bool { return p.i == uint16(i) }
			whole := func(p pick) bool { return p.group == ch.main && p.limits == 0 }
			switch {
			case slices.Contains(ch.lost, uint16(i)):
				stale[n] = true
			case worse:
				stale[n] = stale[n] || slices.ContainsFunc(ch.picks, of)
			case ch.reason != ReasonPolicy, trickles, !single, ch.shape.pools > 1, !slices.ContainsFunc(ch.picks, whole):
				stale[n] = true
			}
		}
	}
	return stale
}

// joinRouting makes the routing over w of tallies. last, which may be nil, is a routing over the
// same world: what did not change is taken from it, and all that no tally is of.
func joinRouting(w *world, tallies []*tally, last *routing) *routing {
	r := &routing{world: w}
	r.whole = r
	r.number(tallies, last)
	first := make(map[string]uint32) // choices that are the first with their answer
	var code []byte
	for i, ch := range r.choices {
		code = ch.appendAnswer(code[:0])
		f, ok := first[string(code)]
		if !ok {
			f = uint32(i)
			first[string(code)] = f
		}
		r.kinds = append(r.kinds, f)
	}
	if last != nil {
		r.table = w.classes.Recompile(last.table, last.values, r.values, r.kinds)
	} else {
		r.table = w.classes.Compile(r.values, r.kinds)
	}
	r.rough = slices.ContainsFunc(r.choices, func(ch choice) bool {
		return ch.reason == ReasonAllDown || ch.shape != shape{} || slices.ContainsFunc(ch.picks, func(p pick) bool { return p.limits != 0 })
	})
	return r
}

// number fills choices and values. A choice that last has too keeps its number, and numbers that
// nobody uses any more go to new ones.
func (r *routing) number(tallies []*tally, last *routing) {
	index := make(map[string]uint32) // of choices, by code
	if last != nil {
		r.choices, r.values = slices.Clone(last.choices), slices.Clone(last.values)
		var code []byte
		for i, ch := range last.choices {
			code = ch.append(code[:0])
			index[string(code)] = uint32(i)
		}
	} else {
		r.values = make([]uint32, len(r.world.classes.All()))
	}
	const open = ^uint32(0)
	for _, t := range tallies {
		for i, k := range t.classes {
			r.values[k] = open
			if n, ok := index[t.codes[t.values[i]]]; ok {
				r.values[k] = n
			}
		}
	}
	used := make([]bool, len(r.choices))
	for _, v := range r.values {
		if v != open {
			used[v] = true
		}
	}
	free := 0
	for _, t := range tallies {
		for i, k := range t.classes {
			if r.values[k] != open {
				continue
			}
			code := t.codes[t.values[i]]
			n, ok := index[code]
			if !ok {
				for free < len(used) && used[free] {
					free++
				}
				n = uint32(free)
				if free == len(used) {
					r.choices, used = append(r.choices, choice{}), append(used, false)
				}
				index[code], r.choices[n], used[n] = n, t.choices[t.values[i]], true
			}
			r.values[k] = n
		}
	}
	for len(used) > 0 && !used[len(used)-1] {
		r.choices, used = r.choices[:len(used)-1], used[:len(used)-1]
	}
	for n := range used {
		if !used[n] { // between others: nobody's, so that it is as one of those
			r.choices[n] = r.choices[len(r.choices)-1]
		}
	}
}

// kindsOf returns by which of its choices the services that agree with svc, whose outcomes are
// there, can be answered alike: the first with the same answers.
func kindsOf(svc *Service) []uint32 {
	first := make(map[string]uint32)
	kinds := make([]uint32, len(svc.outcomes))
	for i := range svc.outcomes {
		k := svc.outcomes[i].signature(svc)
		f, ok := first[k]
		if !ok {
			f = uint32(i)
			first[k] = f
		}
		kinds[i] = f
	}
	return kinds
}

// refine returns r with other kinds: then more addresses share a scope.
func (r *routing) refine(kinds []uint32) *routing {
	own := *r
	own.kinds = kinds
	own.table = r.table.Rescope(kinds)
	return &own
}

// Placed tells whether it matters to the decision where a client is.
func (svc *Service) Placed() bool {
	_, scope := svc.routing.lookup(netip.IPv6Unspecified()) // IPv6 has ranges that embed all of IPv4
	return scope > 0
}

// lookup returns the index of the choice for addr, and how many of its leading bits said so.
func (r *routing) lookup(addr netip.Addr) (i uint32, scope uint8) {
	if r.table == nil {
		return 0, 0
	}
	return r.table.Lookup(addr)
}

// Touch reads what Decide reads of the map for a client at addr. Called for many clients at once, it
// has their waits for memory overlap.
//
//go:noinline
func (svc *Service) Touch(addr netip.Addr) (uint32, uint8) { return svc.routing.lookup(addr) }
