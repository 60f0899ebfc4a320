package gslb

import (
	"cmp"
	"encoding/binary"
	"math"
)

// contest is one evaluation of a steering: scratch, used for one client's place after the
// other. What the engine compiles and what it explains both come from here.
type contest struct {
	*steering
	standings []standing  // of the candidates
	order     [][]float64 // by slot of stage, then by candidate: smaller goes first

	admitted []standing // the standings before any client's place was read
	ties     []uint16   // scratch of decide
	lost     []uint16
}

// standing is what the stages say of one candidate.
type standing struct {
	out  bool // never chosen, not even when all is down
	down bool // chosen only when all is down
	tier tier
}

// tier demotes a candidate below every one with a smaller tier, whatever the policy's order
// says: standby pools come only when nothing else is left, and drained ones after those.
type tier uint8

const (
	tierDegraded tier = 1 << iota
	tierStandby
	tierDrained
	tierShut // among what is down: forced so by an operator
)

// newContest starts a contest: candidates are admitted, and judged by all stages that do
// not read the client's place.
func newContest(s *steering) *contest {
	c := s.contest()
	for i := range s.stages {
		if st := &s.stages[i]; !st.local {
			st.judge(c, st.slot, nil)
		}
	}
	c.admitted = append(c.admitted, c.standings...)
	return c
}

// contest returns a contest that no stage has judged: only what weights and operators say.
func (s *steering) contest() *contest {
	n := len(s.candidates)
	c := &contest{steering: s, standings: make([]standing, n), order: make([][]float64, s.slots)}
	for i := range c.order {
		c.order[i] = make([]float64, n)
	}
	for i, cand := range s.candidates {
		st := &c.standings[i]
		st.out = cand.weight == 0 || cand.pool.none
		if cand.standby {
			st.tier |= tierStandby
		}
		if cand.pool.Drained || cand.pool.retired {
			st.tier |= tierDrained
		}
	}
	return c
}

// at judges the candidates for a client at that spot.
func (c *contest) at(s *spot) {
	copy(c.standings, c.admitted)
	for i := range c.stages {
		if st := &c.stages[i]; st.local {
			st.judge(c, st.slot, s)
		}
	}
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
	reason Reason   // ReasonAllDown when all is down, whatever the service does then
	best   []uint16 // who share the clients; empty: nobody, when all is down
	lost   []uint16 // who would share them too, by order, but are down or demoted
}

// decide ends the contest for the spot of the last call of at. Its result is valid until
// the next call.
func (c *contest) decide() choice {
	c.ties, c.lost = c.ties[:0], c.lost[:0]
	for i := range c.standings {
		if s := c.standings[i]; !s.out && !s.down {
			c.enter(i)
		}
	}
	if len(c.ties) == 0 {
		if !c.failOpen {
			return choice{ReasonAllDown, nil, nil}
		}
		return c.open()
	}
	best := int(c.ties[0])
	switch t := c.standings[best].tier; {
	case t&tierDrained != 0:
		return choice{ReasonDrained, c.ties, nil}
	case t&tierStandby != 0:
		return choice{ReasonStandby, c.ties, nil}
	case t&tierDegraded != 0:
		return choice{ReasonDegraded, c.ties, nil}
	}
	for i := range c.standings {
		if s := c.standings[i]; !s.out && s.tier&tierStandby == 0 && (s.down || s.tier != 0) {
			switch d := c.compareOrder(i, best); {
			case d < 0:
				return choice{ReasonFailover, c.ties, nil}
			case d == 0:
				c.lost = append(c.lost, uint16(i))
			}
		}
	}
	if len(c.lost) > 0 && len(c.ties) == 1 {
		return choice{ReasonFailover, c.ties, nil} // all of their clients move to it
	}
	return choice{ReasonPolicy, c.ties, c.lost}
}

// open decides when every candidate is down: as if none were, but a pool that an operator
// forced down is the last.
func (c *contest) open() choice {
	for i := range c.standings {
		s := &c.standings[i]
		s.tier &^= tierDegraded
		if c.candidates[i].pool.shut {
			s.tier |= tierShut
		}
		if !s.out {
			c.enter(i)
		}
	}
	return choice{ReasonAllDown, c.ties, nil}
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

// appendAnswer appends octets by which two choices are equal if they lead to the same
// answers for every client.
func (ch choice) appendAnswer(b []byte) []byte {
	b = append(b, flags(ch.reason == ReasonAllDown))
	for _, i := range ch.best {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

// append appends octets by which two choices are equal if they are the same.
func (ch choice) append(b []byte) []byte {
	b = append(b, byte(ch.reason), byte(len(ch.lost)>>8), byte(len(ch.lost)))
	for _, i := range ch.lost {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return ch.appendAnswer(b)
}

// key returns all that a contest of s depends on, but for the client, as octets. Steerings
// with equal keys make equal choices at every place.
func (s *steering) key() string {
	b := binary.BigEndian.AppendUint16([]byte{flags(s.failOpen)}, uint16(len(s.candidates)))
	for _, c := range s.candidates {
		p := c.pool
		b = append(b, flags(c.weight == 0, c.standby, p.none, p.down, p.Degraded, p.Drained, p.retired, p.shut))
		for _, f := range []float64{p.site.x, p.site.y, p.site.z} {
			b = binary.BigEndian.AppendUint64(b, math.Float64bits(f))
		}
	}
	for _, st := range s.stages {
		b = append(b, st.name...)
		b = append(b, flags(st.local, st.order))
		b = append(b, st.plan...)
		b = append(b, '\n')
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
