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
	table   *geo.Table // to an index of choices; nil: always the first
	choices []choice
}

// newRouting compiles s over w. A steering that does not read the client's place, or that
// has no world to find it in, has one choice for everybody.
func newRouting(s *steering, w *world) *routing {
	r := &routing{}
	var code []byte
	index := make(map[string]uint32) // of choices
	c := newContest(s)
	add := func(at *spot) uint32 {
		c.at(at)
		ch := c.decide()
		code = ch.append(code[:0])
		i, ok := index[string(code)]
		if !ok {
			i = uint32(len(r.choices))
			index[string(code)] = i
			r.choices = append(r.choices, choice{ch.reason, slices.Clone(ch.best), slices.Clone(ch.lost)})
		}
		return i
	}
	if !s.local || w == nil {
		add(&spot{})
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
	r.table = geo.Compile(w.geo, func(place uint32) uint32 { return add(&w.spots[place]) }, class)
	return r
}

// lookup returns the index of the choice for addr, and how many of its leading bits said so.
func (r *routing) lookup(addr netip.Addr) (i uint32, scope uint8) {
	if r.table == nil {
		return 0, 0
	}
	return r.table.Lookup(addr)
}
