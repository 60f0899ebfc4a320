package gslb

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/meridian-gslb/meridian/geo"
)

// routing is what a steering chooses for every client: an index of choices by place. It
// names candidates by number and knows nothing of their endpoints, weights or names, so
// that a snapshot whose pools are up or down as before has the same, and services with like
// pools share one.
type routing struct {
	world   *world
	table   *geo.Table // to an index of choices; nil: always the first
	choices []choice
	values  []uint32 // by class of world: the index of its choice
	kinds   []uint32 // by choice: the first with the same answers
	rough   bool     // choices that differ may have the same answers, as the services see it
}

// newRouting compiles s over w. A steering that does not read the client's place, or that
// has no world to find it in, has one choice for everybody.
func newRouting(s *steering, w *world) *routing {
	r := &routing{world: w}
	var code []byte
	index := make(map[string]uint32) // of choices
	c := newContest(s)
	add := func(at *locus) uint32 {
		c.at(at)
		ch := c.decide()
		code = ch.append(code[:0])
		i, ok := index[string(code)]
		if !ok {
			i = uint32(len(r.choices))
			index[string(code)] = i
			r.choices = append(r.choices, ch.clone())
		}
		return i
	}
	if !s.local || w == nil {
		add(&nowhereLocus)
		return r
	}
	first := make(map[string]uint32) // choices that are the first with their answer
	class := func(i uint32) uint32 {
		code = r.choices[i].appendAnswer(code[:0])
		f, ok := first[string(code)]
		if !ok {
			f = i
			first[string(code)] = i
		}
		return f
	}
	values := make([]uint32, len(w.classes.All()))
	for i, k := range w.classes.All() {
		at := w.locus(k)
		values[i] = add(&at)
	}
	r.values = values
	for i := range r.choices {
		r.kinds = append(r.kinds, class(uint32(i)))
	}
	r.table = w.classes.Compile(values, func(v uint32) uint32 { return r.kinds[v] })
	r.rough = slices.ContainsFunc(r.choices, func(ch choice) bool {
		return ch.reason == ReasonAllDown || ch.shape != shape{} || slices.ContainsFunc(ch.picks, func(p pick) bool { return p.limits != 0 })
	})
	return r
}

// refine returns r for one service, whose outcomes say which of the choices have the same
// answers: then more addresses share a scope. Services that agree share it by known.
func (r *routing) refine(outcomes []outcome, svc *Service, known map[string]*routing) *routing {
	first := make(map[string]uint32)
	kinds := make([]uint32, len(outcomes))
	for i := range outcomes {
		k := outcomes[i].signature(svc)
		f, ok := first[k]
		if !ok {
			f = uint32(i)
			first[k] = f
		}
		kinds[i] = f
	}
	if slices.Equal(kinds, r.kinds) {
		return r
	}
	key := fmt.Sprintf("%p %v", r, kinds)
	if own := known[key]; own != nil {
		return own
	}
	own := *r
	known[key] = &own
	own.kinds = kinds
	own.table = r.world.classes.Compile(r.values, func(v uint32) uint32 { return kinds[v] })
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
