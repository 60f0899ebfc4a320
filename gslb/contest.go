package gslb

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
)

// contest is one evaluation of a steering: scratch, used for one client's place after the
// other. What the engine compiles and what it explains both come from here.
type contest struct {
	*steering
	standings []standing  // of the candidates
	order     [][]float64 // by slot of stage, then by candidate: smaller goes first
	taken     []int       // by match: the case of this client
	shape     shape
	pinned    bool // the policy reads where clients are, and an override of the map names the site of this one

	admitted []standing // the standings before any client was read
	common   shape      // and the shape
	ties     []uint16   // scratch of decide
	lost     []uint16
	rest     []uint16
	picks    []pick
}

// standing is what the stages say of one candidate.
type standing struct {
	out     bool // never chosen, not even when all is down
	fenced  bool // and that by a fence alone
	down    bool // chosen only when all is down
	tier    tier
	limits  uint32 // that let it take only a share of its clients
	trickle uint32 // limits by which it goes before all others
}

// tier demotes a candidate below every one with a smaller tier, whatever the policy's order
// says: standby pools come only when nothing else is left, and drained ones after those.
type tier uint8

const (
	tierDegraded tier = 1 << iota
	tierStandby
	tierDrained
	tierStale // among what is down: not what was healthy until last
	tierShut  // among what is down: forced so by an operator
)

// newContest starts a contest: candidates are admitted, and judged by all stages that do
// not depend on the client.
func newContest(s *steering) *contest {
	c := s.contest()
	for i := range s.stages {
		if st := &s.stages[i]; st.fixed {
			st.judge(c, st.slot, &nowhereLocus)
		}
	}
	c.admitted = append(c.admitted, c.standings...)
	c.common = c.shape
	return c
}

// contest returns a contest that no stage has judged: only what weights and operators say.
func (s *steering) contest() *contest {
	n := len(s.candidates)
	c := &contest{steering: s, standings: make([]standing, n), order: make([][]float64, s.slots), taken: make([]int, s.matches)}
	for i := range c.order {
		c.order[i] = make([]float64, n)
	}
	for i, cand := range s.candidates {
		st := &c.standings[i]
		st.out = cand.weight == 0 || cand.pool.none
		if cand.standby {
			st.tier |= tierStandby
		}
		if cand.pool.Drained || cand.pool.views[loose].retired {
			st.tier |= tierDrained
		}
		if cand.pool.ramp < 1 {
			st.limits |= 1 << slowStart
		}
	}
	return c
}

// alike reports whether two contests of newContest, over the same world, are judged alike but for
// what stands of the candidates before any client is read.
func (c *contest) alike(o *contest) bool {
	a, b := c.steering, o.steering
	if a.failOpen != b.failOpen || a.lastGood != b.lastGood || a.targets != b.targets || a.base.pools != b.base.pools || c.common != o.common ||
		len(a.candidates) != len(b.candidates) || len(a.stages) != len(b.stages) {
		return false
	}
	for i := range a.candidates {
		if x, y := a.candidates[i].pool, b.candidates[i].pool; x.Name != y.Name || x.at.spot != y.at.spot || a.named(i) != b.named(i) || a.partial(i) != b.partial(i) {
			return false
		}
	}
	for i := range a.stages {
		x, y := &a.stages[i], &b.stages[i]
		if x.name != y.name || x.local != y.local || x.order != y.order || x.fixed != y.fixed || !slices.Equal(x.guards, y.guards) || !x.fixed && x.plan != y.plan {
			return false
		}
		if x.fixed && x.order && !slices.Equal(c.order[x.slot], o.order[y.slot]) {
			return false
		}
	}
	return true
}

// at judges the candidates for a client there.
func (c *contest) at(l *locus) {
	copy(c.standings, c.admitted)
	c.shape = c.common
	c.pinned = c.local && l.place.Site != ""
	for i := range c.stages {
		st := &c.stages[i]
		if st.fixed {
			continue
		}
		if c.judges(st) {
			st.judge(c, st.slot, l)
		} else if st.order {
			clear(c.order[st.slot])
		}
	}
}

// judges reports whether st is in the case of this client, and orders it still.
func (c *contest) judges(st *stage) bool {
	for _, g := range st.guards {
		if c.taken[g.match] != g.branch {
			return false
		}
	}
	return !st.order || !c.shape.splitted
}

// compare orders candidates by tier, then by the stages that order, first to last.
func (c *contest) compare(i, j int) int {
	if d := cmp.Compare(c.standings[i].tier, c.standings[j].tier); d != 0 {
		return d
	}
	return c.compareOrder(i, j)
}

func (c *contest) compareOrder(i, j int) int {
	for _, keys := range c.order {
		if a, b := keys[i], keys[j]; a != b {
			if a < b {
				return -1
			}
			return 1
		}
	}
	return 0
}

// choice is what a contest ends with, in terms of candidates alone, so that services with
// like candidates can share it.
type choice struct {
	reason Reason // ReasonAllDown when all is down, whatever the service does then
	shape  shape
	flags  Flags
	main   uint8    // the group that the order puts first: those before it trickle
	picks  []pick   // who share the clients, best group first; empty: nobody, when all is down
	lost   []uint16 // who would share them with the main group, but are down or demoted
}

// pick is a candidate in a choice: its group shares the clients that its limits let through
// and that no group before took.
type pick struct {
	limits uint32
	i      uint16
	group  uint8
}

// maxGroups bounds the groups of a choice. Who is farther down is never reached in practice.
const maxGroups = 64

// decide ends the contest for the client of the last call of at. Its result is valid until
// the next call.
func (c *contest) decide() choice {
	c.ties, c.lost, c.picks = c.ties[:0], c.lost[:0], c.picks[:0]
	for i := range c.standings {
		if s := c.standings[i]; !s.out && !s.down {
			c.enter(i)
		}
	}
	if len(c.ties) == 0 {
		if !c.failOpen {
			return choice{reason: ReasonAllDown, shape: c.shape, flags: c.flags()}
		}
		c.open()
		return c.end(ReasonAllDown)
	}
	best := int(c.ties[0])
	switch t := c.standings[best].tier; {
	case t&tierDrained != 0:
		return c.end(ReasonDrained)
	case t&tierStandby != 0:
		return c.end(ReasonStandby)
	case t&tierDegraded != 0:
		return c.end(ReasonDegraded)
	}
	for i := range c.standings {
		if s := c.standings[i]; !s.out && s.tier&tierStandby == 0 && (s.down || s.tier != 0) {
			switch d := c.compareOrder(i, best); {
			case d < 0:
				c.lost = c.lost[:0]
				return c.end(ReasonFailover)
			case d == 0:
				c.lost = append(c.lost, uint16(i))
			}
		}
	}
	if len(c.lost) > 0 && len(c.ties) == 1 {
		c.lost = c.lost[:0]
		return c.end(ReasonFailover) // all of their clients move to it
	}
	return c.end(ReasonPolicy)
}

// end makes a choice of the ties, of those that trickle before them, and of those that
// follow as far as clients may get.
func (c *contest) end(reason Reason) choice {
	ch := choice{reason: reason, shape: c.shape, flags: c.flags(), lost: c.lost}
	if reason != ReasonAllDown {
		ch.main = c.trickle()
	}
	pools := c.shape.pools
	if c.shape.answers == 0 {
		pools = c.base.pools
	}
	r := reach{pools: int(pools), named: c.targets - 1}
	for _, p := range c.picks { // who trickles may come again, after the pool of another client
		if !r.own && c.standings[p.i].limits == 0 && c.named(int(p.i)) {
			r.own = true
			r.named++
		}
	}
	for _, i := range c.ties {
		c.picks = append(c.picks, pick{c.standings[i].limits, i, ch.main})
		c.count(&r, i, true)
	}
	if len(c.ties) > 0 && !r.done() && len(c.ties) < len(c.standings) {
		c.follow(ch.main, r, reason == ReasonAllDown)
	}
	ch.picks = c.picks
	return ch
}

// reach is how far the picks have to go yet.
type reach struct {
	whole bool // one of the picks takes all that comes
	own   bool // one that counts in named may be the client's own pool, which does not come after itself
	pools int  // more candidates that take all that comes
	named int  // more of them that have a name of their own
}

func (r *reach) done() bool { return r.pools <= 0 && r.named <= 0 }

// count takes pick i off what r wants; first says that clients may get no farther than its group.
func (c *contest) count(r *reach, i uint16, first bool) {
	if c.standings[i].limits != 0 {
		return
	}
	r.whole = true
	r.pools--
	switch {
	case !c.named(int(i)):
	case first && !r.own:
		r.own = true
	default:
		r.named--
	}
}

// trickle picks those that go before all others for a share of the clients, and returns the
// group that comes next.
func (c *contest) trickle() (group uint8) {
	all := uint32(0)
	for i := range c.standings {
		all |= c.standings[i].trickle
	}
	for ; all != 0; all &= all - 1 {
		bit := all & -all
		n := len(c.picks)
		for i := range c.standings {
			if s := &c.standings[i]; s.trickle&bit != 0 && !s.out && !s.down && s.tier&^tierStandby == 0 {
				c.picks = append(c.picks, pick{s.limits | bit, uint16(i), group})
			}
		}
		if len(c.picks) > n {
			group++
		}
	}
	return group
}

// follow picks the groups after the main one, as far as r says: clients get no farther than the
// first that takes all that comes, and behind the pools of an answer come but those with a name.
func (c *contest) follow(group uint8, r reach, open bool) {
	c.rest = c.rest[:0]
	best := int(c.ties[0])
	for i := range c.standings {
		if s := c.standings[i]; !s.out && (open || !s.down) && c.compare(i, best) > 0 &&
			s.tier&tierDrained <= c.standings[best].tier&tierDrained {
			c.rest = append(c.rest, uint16(i))
		}
	}
	slices.SortStableFunc(c.rest, func(a, b uint16) int { return c.compare(int(a), int(b)) })
	for len(c.rest) > 0 && !r.done() && group < maxGroups {
		n := 1
		for n < len(c.rest) && c.compare(int(c.rest[n]), int(c.rest[0])) == 0 {
			n++
		}
		before, first, all := len(c.picks), !r.whole, r.pools > 0
		for _, i := range c.rest[:n] {
			if all || c.named(int(i)) {
				c.picks = append(c.picks, pick{c.standings[i].limits, i, group + 1})
				c.count(&r, i, first)
			}
		}
		if len(c.picks) > before {
			group++
		}
		c.rest = c.rest[n:]
	}
}

// open lets every candidate enter when all are down: as if none were, but a pool that an
// operator forced down is the last.
func (c *contest) open() {
	for i := range c.standings {
		s := &c.standings[i]
		s.tier &^= tierDegraded
		p := c.candidates[i].pool
		if c.lastGood && c.stale(i) {
			s.tier |= tierStale
		}
		if p.shut {
			s.tier |= tierShut
		}
		if !s.out {
			c.enter(i)
		}
	}
}

// stale reports whether another candidate was healthy for longer than i by more than a
// minute.
func (c *contest) stale(i int) bool {
	own := c.candidates[i].pool.downAt
	for j, o := range c.candidates {
		if !c.standings[j].out && !o.pool.shut && o.pool.downAt.Sub(own) > lastGoodSpan {
			return true
		}
	}
	return false
}

// flags returns what else than the order made the choice. It reads nothing that routing.stale
// lets change: the ties and the order, and not what health says of who was dropped.
func (c *contest) flags() (f Flags) {
	if c.pinned {
		f |= Overridden
	}
	for i := range c.standings {
		s := &c.standings[i]
		if !s.fenced {
			continue
		}
		if len(c.ties) == 0 {
			return f | Fenced
		}
		best := int(c.ties[0])
		if s.tier&tierStandby <= c.standings[best].tier&tierStandby && c.compareOrder(i, best) <= 0 {
			return f | Fenced
		}
	}
	return f
}

// enter makes candidate i one of the ties if it equals them, and the only one if it beats
// them.
func (c *contest) enter(i int) {
	if len(c.ties) > 0 {
		d := c.compare(i, int(c.ties[0]))
		if d > 0 {
			return
		}
		if d < 0 {
			c.ties = c.ties[:0]
		}
	}
	c.ties = append(c.ties, uint16(i))
}

// clone returns a choice of its own memory.
func (ch choice) clone() choice {
	ch.picks, ch.lost = slices.Clone(ch.picks), slices.Clone(ch.lost)
	return ch
}

// appendAnswer appends octets by which two choices are equal if they lead to the same
// answers for every client.
func (ch choice) appendAnswer(b []byte) []byte {
	s := ch.shape
	b = append(b, flags(ch.reason == ReasonAllDown, s.listed, s.strict), byte(s.mode), s.answers, s.pools, s.perSite, s.sticky4, s.sticky6)
	for _, p := range ch.picks {
		b = binary.BigEndian.AppendUint16(b, p.i)
		b = append(b, p.group)
		b = binary.BigEndian.AppendUint32(b, p.limits)
	}
	return b
}

// append appends octets by which two choices are equal if they are the same.
func (ch choice) append(b []byte) []byte {
	b = append(b, byte(ch.reason), byte(ch.flags), ch.main, byte(len(ch.lost)>>8), byte(len(ch.lost)))
	for _, i := range ch.lost {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return ch.appendAnswer(b)
}

// key returns all that a contest of s depends on, but for the client, as octets. Steerings
// with equal keys make equal choices at every place.
func (s *steering) key() string {
	b := binary.BigEndian.AppendUint16([]byte{flags(s.failOpen, s.lastGood), byte(s.targets)}, uint16(len(s.candidates)))
	b = append(b, s.base.pools)
	dead := s.lastGood && !slices.ContainsFunc(s.candidates, func(c candidate) bool { return !c.pool.views[loose].down })
	for i, c := range s.candidates {
		p := c.pool
		b = append(b, flags(c.weight == 0, c.standby, p.none, p.Drained, p.views[loose].retired, p.shut, s.named(i)))
		b = binary.BigEndian.AppendUint32(b, s.partial(i))
		for _, f := range []float64{p.at.x, p.at.y, p.at.z} {
			b = binary.BigEndian.AppendUint64(b, math.Float64bits(f))
		}
		if dead {
			b = binary.BigEndian.AppendUint64(b, uint64(p.downAt.Unix()))
		}
	}
	for _, st := range s.stages {
		b = append(b, st.name...)
		b = append(b, flags(st.local, st.order, st.fixed))
		b = binary.AppendUvarint(b, uint64(len(st.guards)))
		for _, g := range st.guards {
			b = binary.AppendUvarint(b, uint64(g.match))
			b = binary.AppendUvarint(b, uint64(g.branch))
		}
		b = append(b, st.plan...)
		b = append(b, '\n')
	}
	for _, p := range s.marks {
		b, _ = p.AppendText(b)
		b = append(b, ' ')
	}
	return string(b)
}

// flags packs up to eight booleans.
func flags(of ...bool) (b byte) {
	for i, f := range of {
		if f {
			b |= 1 << i
		}
	}
	return b
}
