package gslb

import (
	"fmt"
	"slices"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// steering is a compiled list of pools with the policy that chooses among them.
type steering struct {
	candidates []candidate // ordered by name
	stages     []stage
	slots      int  // how many stages order
	local      bool // a stage reads where the client is
	answers    int  // most endpoints of a family in one answer, 1..MaxAnswers
	failOpen   bool // when all is down, choose as if nothing were
}

// candidate is a pool in a steering.
type candidate struct {
	pool    *Pool
	weight  int // 0 is never
	standby bool
}

// stage is one step of a policy, compiled for one steering. What it reads of a client is
// in the spot alone; what it reads of a candidate must be in steering.key.
//
// A stage drops, demotes or orders candidates, each for itself and without a look at what
// other stages said. So the judgements may be made in any order, and those that do not read
// the spot once for all clients. What the order of a policy says is whose ordering goes
// first: a later stage orders only what the earlier ones left equal.
type stage struct {
	name  string
	local bool // judge reads the spot
	order bool // judge fills the slot of contest.order
	slot  int
	plan  string // the settings that judge reads; "" if there are none
	judge func(c *contest, slot int, at *spot)
	note  func(c *contest, i int, at *spot) string // the figure behind the judgement of candidate i
}

// compile fills s.stages from a policy. The candidates are there.
func (s *steering) compile(policy []config.Stage) error {
	s.answers = MaxAnswers
	shared := false
	for i, p := range policy {
		if p.Select != nil {
			if s.answers = p.Select.Answers; s.answers < 1 || s.answers > MaxAnswers {
				return fmt.Errorf("stage %d: select: answers %d: expected 1..%d", i+1, s.answers, MaxAnswers)
			}
			continue
		}
		st, ok := s.stage(p)
		if !ok {
			return fmt.Errorf("stage %d: no kind; expected health, failover, nearest, weighted or select", i+1)
		}
		shared = shared || p.Weighted != nil
		if shared && st.order { // what weighted shares is not ordered any more
			st.local, st.order, st.judge, st.note = false, false, judgeNothing, noteShared
		}
		if st.order {
			st.slot = s.slots
			s.slots++
		}
		s.local = s.local || st.local
		s.stages = append(s.stages, st)
	}
	return nil
}

// stage compiles one stage other than select.
func (s *steering) stage(p config.Stage) (st stage, ok bool) {
	switch {
	case p.Health != nil:
		return healthStage(), true
	case p.Failover != nil:
		return failoverStage(p.Failover.Order, s.candidates), true
	case p.Nearest != nil:
		return nearestStage(), true
	case p.Weighted != nil:
		return weightedStage(), true
	}
	return stage{}, false
}

// healthStage drops pools without a healthy endpoint and demotes degraded ones.
func healthStage() stage {
	return stage{
		name: "health",
		judge: func(c *contest, _ int, _ *spot) {
			for i := range c.standings {
				p := c.candidates[i].pool
				if p.down {
					c.standings[i].down = true
				}
				if p.Degraded {
					c.standings[i].tier |= tierDegraded
				}
			}
		},
		note: func(c *contest, i int, _ *spot) string { return c.candidates[i].pool.notes.health },
	}
}

// failoverStage orders pools by the group that names them; those that no group names are
// last.
func failoverStage(groups [][]string, candidates []candidate) stage {
	ranks := make([]float64, len(candidates))
	for i, c := range candidates {
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
		judge: func(c *contest, slot int, _ *spot) { copy(c.order[slot], ranks) },
		note: func(_ *contest, i int, _ *spot) string {
			if int(ranks[i]) == len(groups) {
				return "not named: last"
			}
			return fmt.Sprintf("rank %d of %d", int(ranks[i])+1, len(groups))
		},
	}
}

// nearestStage orders pools by the great-circle distance from the client to their site. For
// a client whose place nobody knows all are equal.
func nearestStage() stage {
	return stage{
		name:  "nearest",
		local: true,
		order: true,
		judge: func(c *contest, slot int, at *spot) {
			keys := c.order[slot]
			if !at.known {
				clear(keys)
				return
			}
			for i := range keys {
				keys[i] = -at.cos(&c.candidates[i].pool.site)
			}
		},
		note: func(c *contest, i int, at *spot) string {
			if !at.known {
				return "the client's place is not known"
			}
			return fmt.Sprintf("%.0f km", at.km(&c.candidates[i].pool.site))
		},
	}
}

// weightedStage ends the ordering: pools that are equal so far are shared by weight.
func weightedStage() stage {
	return stage{name: "weighted", judge: judgeNothing, note: noteShared}
}

func judgeNothing(*contest, int, *spot) {}

func noteShared(c *contest, i int, _ *spot) string {
	total := 0
	for j := range c.candidates {
		if !c.standings[j].out && !c.standings[j].down && c.compare(i, j) == 0 {
			total += c.candidates[j].weight
		}
	}
	return fmt.Sprintf("weight %d of %d", c.candidates[i].weight, total)
}
