package gslb

import (
	"cmp"
	"maps"
	"net/netip"
	glob "path"
	"slices"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// poolStates are what operators set on a pool and its endpoints, by address; the zero Addr
// is the whole pool.
type poolStates map[netip.Addr]targetStates

func (s poolStates) whole() targetStates { return s[netip.Addr{}] }

// targetStates are what operators set on one pool or endpoint.
type targetStates struct {
	drain *config.State
	force *config.State // up or down
}

// orderedState is a state that holds now, as globs over service, pool and endpoint.
type orderedState struct {
	config.State
	globs [3]string
	exact bool // it names its pool or endpoint, and goes before every glob
}

// states collects the states that hold now in their order, the strongest last, and notes
// when they end.
func (b *builder) states() {
	for _, name := range slices.Sorted(maps.Keys(b.in.Objects.States)) {
		st := orderedState{State: b.in.Objects.States[name], globs: [3]string{"*", "*", "*"}}
		if !st.Until.IsZero() {
			if !st.Until.After(b.in.Now) {
				continue
			}
			b.due(st.Until)
		}
		if !slices.Contains([]string{"drain", "down", "up", "auto"}, st.State.State) {
			b.fail("state %s: state %q: expected drain, down, up or auto", name, st.State.State)
		}
		if st.exact = st.Match == ""; st.exact {
			st.globs[1] = st.Pool
			if st.Endpoint.IsValid() {
				st.globs[2] = st.Endpoint.String()
			}
		} else {
			copy(st.globs[:], strings.Split(st.Match, "/"))
		}
		b.s.states = append(b.s.states, st)
	}
	slices.SortStableFunc(b.s.states, func(x, y orderedState) int {
		return cmp.Or(compareBool(x.exact, y.exact), cmp.Compare(x.Order, y.Order))
	})
}

func compareBool(x, y bool) int {
	switch {
	case x == y:
		return 0
	case y:
		return -1
	}
	return 1
}

// ending notes that what holds of p ends at that time.
func (b *builder) ending(p *Pool, end time.Time) {
	b.due(end)
	if p.ends.IsZero() || end.Before(p.ends) {
		p.ends = end
	}
}

// stepping notes when the next step of the slow start of p comes.
func (b *builder) stepping(p *Pool, at time.Time) {
	b.due(at)
	if p.steps.IsZero() || at.Before(p.steps) {
		p.steps = at
	}
}

// apart reports whether a state is for some services only, and of them for this one and this
// pool.
func (b *builder) apart(service, pool string) bool {
	return slices.ContainsFunc(b.s.states, func(st orderedState) bool {
		return st.globs[0] != "*" && matches(st.globs[0], service) && st.means(pool)
	})
}

// means reports whether st is about that pool.
func (st *orderedState) means(pool string) bool {
	if st.exact {
		return st.Pool == pool
	}
	return matches(st.globs[1], pool)
}

func matches(g, name string) bool {
	ok, _ := glob.Match(g, name)
	return ok
}

// statesOf returns what operators set on p, as that service sees it. A later state takes
// the place of an earlier one, as far as both mean the same endpoints.
func (b *builder) statesOf(p *Pool, endpoints []config.Endpoint, service string) poolStates {
	own := make(poolStates)
	for i := range b.s.states {
		st := &b.s.states[i]
		if !st.means(p.Name) || st.globs[0] != "*" && (service == "" || !matches(st.globs[0], service)) {
			continue
		}
		if !st.Until.IsZero() {
			b.ending(p, st.Until)
		}
		if st.globs[2] == "*" {
			if !st.exact { // a glob over all endpoints is over each of them
				for addr := range own {
					own.set(addr, &st.State, true)
				}
			}
			own.set(netip.Addr{}, &st.State, false)
			continue
		}
		for _, e := range endpoints {
			if st.exact && st.Endpoint == e.Address || !st.exact && matches(st.globs[2], e.Address.String()) {
				own.set(e.Address, &st.State, false)
			}
		}
	}
	return own
}

// set puts a target into a state, or only takes it out of what that state replaces.
func (s poolStates) set(addr netip.Addr, st *config.State, clear bool) {
	t := s[addr]
	into := st
	if clear {
		into = nil
	}
	switch st.State {
	case "drain":
		t.drain = into
	case "auto":
		t = targetStates{}
	default:
		t.force = into
	}
	s[addr] = t
}

// poolNotes say what is the matter with a pool, for people.
type poolNotes struct {
	state string // what operators set: "drained by ann: upgrade, until 14:00Z"
}

// annotate fills p.notes.
func (p *Pool) annotate(own poolStates, now time.Time) {
	var states []string
	add := func(what string, t targetStates) {
		if t.drain != nil {
			states = append(states, what+stateNote("drained", t.drain, now))
		}
		if t.force != nil {
			states = append(states, what+stateNote("forced "+t.force.State, t.force, now))
		}
	}
	add("", own.whole())
	for _, e := range p.Endpoints {
		add(e.Addr.String()+" ", own[e.Addr])
	}
	p.notes.state = strings.Join(states, "; ")
}

// stateNote says who set a state, why, and until when.
func stateNote(what string, st *config.State, now time.Time) string {
	s := what
	if st.Author != "" {
		s += " by " + st.Author
	}
	if st.Reason != "" {
		s += ": " + st.Reason
	}
	if !st.Until.IsZero() {
		layout := "2006-01-02 15:04Z"
		if st.Until.Sub(now) < 24*time.Hour {
			layout = "15:04Z"
		}
		s += ", until " + st.Until.UTC().Format(layout)
	}
	return s
}

// Turned returns when each verdict last turned from up to down or back, for Inputs.Since:
// what prev, which may be nil, knew, and now for those that turned since. An endpoint whose
// verdict was never the opposite is not in it, so that nothing is held back at a start.
func Turned(prev *Snapshot, verdicts map[EndpointID]Verdict, now time.Time) map[EndpointID]time.Time {
	out := make(map[EndpointID]time.Time)
	if prev == nil {
		return out
	}
	for id, v := range verdicts {
		was := prev.in.Verdicts[id]
		if v == Up && was == Down || v == Down && was == Up {
			out[id] = now
		} else if t, ok := prev.in.Since[id]; ok && v != Unknown {
			out[id] = t
		}
	}
	return out
}
