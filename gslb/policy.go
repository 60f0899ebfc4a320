package gslb

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// steering is a compiled list of pools with the policy that chooses among them.
type steering struct {
	candidates []candidate // ordered by name
	stages     []stage
	marks      []netip.Prefix // that stages name, sorted, each once
	slots      int            // how many orders the stages fill
	matches    int
	local      bool        // a stage reads who the client is
	limits     [][]float64 // by limit, then by candidate: the share of its clients that it takes, 0..1
	tickets    []string    // by limit: what it is, for people
	changes    []time.Time // when the time alone changes the policy
	base       shape       // what a select sets for all clients
	targets    int         // into how many pools the answers of other types go
	failOpen   bool        // when all is down, choose as if nothing were
	lastGood   bool        // and what was healthy until last
	reads      reading     // beside the pools
}

// candidate is a pool in a steering.
type candidate struct {
	pool    *Pool
	weight  int // 0 is never
	standby bool
}

// shape says how an answer is made of the pools that are chosen.
type shape struct {
	mode     mode
	answers  uint8 // most endpoints of a family, 1..MaxAnswers; 0: this and the next three are those of steering.base
	pools    uint8 // the best so many pools, 1..MaxAnswers
	perSite  uint8 // most endpoints of one site; 0 is any number
	listed   bool  // endpoints stand as the pool lists them
	strict   bool  // an endpoint of which nothing is known counts as down
	sticky4  uint8 // bits that are hashed; 0: the service's
	sticky6  uint8
	splitted bool // weighted has ended the ordering
}

// mode is how weighted answers.
type mode uint8

const (
	single        mode = iota // one pool
	several                   // all pools that share the best rank
	groupedSingle             // one pool, and of it one failure domain
	groupedMulti              // one pool, and of it an endpoint of each failure domain
)

var modeNames = []string{single: "single", several: "several", groupedSingle: "grouped-single", groupedMulti: "grouped-multi"}

// stage is one step of a policy, compiled for one steering. What it reads of a client is in
// the locus alone; what it reads of a candidate must be in steering.key.
//
// A stage drops, demotes, limits or orders candidates, each for itself and without a look at
// what other stages said. So those that do not read the client judge once for all. What the
// order of a policy says is whose ordering goes first: a later stage orders only what the
// earlier ones left equal.
type stage struct {
	name   string
	guards []guard // cases of matches that it stands in, from the outside in
	local  bool    // judge reads the client
	order  bool    // judge fills the slot of contest.order
	fixed  bool    // judges once, before any client
	shapes bool    // sets contest.shape: of such stages the last counts
	slot   int
	plan   string // the settings that judge reads; "" if there are none
	judge  func(c *contest, slot int, at *locus)
	note   func(c *contest, i int, at *locus) string // the figure behind the judgement of candidate i
}

// guard is a case of a match: its stages judge the clients of that case.
type guard struct{ match, branch int }

// slowStart is the limit of slow start, which no stage sets.
const slowStart = 0

// maxLimits is how many limits a policy may have: as many as a word has bits.
const maxLimits = 1 + config.MaxLimits

// compiler compiles one policy.
type compiler struct {
	*steering
	env     *environment
	guards  []guard
	split   bool // weighted stands before, for every client
	maybe   bool // weighted stands before, for some clients
	shaped  bool // a stage before shapes the answers of some clients
	chains  []string
	flagged map[netip.Prefix]bool
}

// environment is what a policy depends on beside its pools: plain values of Inputs.
type environment struct {
	chains map[string]config.Chain
	name   string // of the service or the pool
	now    time.Time
	load   map[string]float64
	shares map[string]float64 // of the service, by pool
	rtt    *RTTTable
	sites  map[string]config.Site
	seen   map[string]map[EndpointID]Verdict // Inputs.Regional
}

// compile fills s.stages from a policy. The candidates are there.
func (s *steering) compile(policy []config.Stage, env *environment) error {
	s.base = shape{answers: MaxAnswers, pools: 1}
	k := &compiler{steering: s, env: env, flagged: make(map[netip.Prefix]bool)}
	ramps := make([]float64, len(s.candidates))
	for i, c := range s.candidates {
		ramps[i] = c.pool.ramp
	}
	s.limits, s.tickets = [][]float64{ramps}, []string{"slow start"}
	if err := k.policy(policy); err != nil {
		return err
	}
	for p := range k.flagged {
		s.marks = append(s.marks, p)
	}
	slices.SortFunc(s.marks, func(a, b netip.Prefix) int {
		if d := a.Addr().Compare(b.Addr()); d != 0 {
			return d
		}
		return a.Bits() - b.Bits()
	})
	return nil
}

// policy compiles stages one after the other.
func (k *compiler) policy(stages []config.Stage) error {
	for i, p := range stages {
		if err := k.stage(p); err != nil {
			return fmt.Errorf("stage %d: %w", i+1, err)
		}
	}
	return nil
}

// stage compiles one stage.
func (k *compiler) stage(p config.Stage) error {
	switch {
	case p.Fence != nil:
		k.add(k.fence(p.Fence))
	case p.Health != nil:
		k.add(k.health(p.Health))
	case p.Failover != nil:
		k.add(k.failover(p.Failover.Order))
	case p.Nearest != nil:
		k.nearest(p.Nearest)
	case p.RTT != nil:
		k.add(k.rtt(p.RTT.Effective()))
	case p.Trickle != nil:
		return k.trickle(p.Trickle)
	case p.Shed != nil:
		shares, notes := k.shed(p.Shed)
		return k.limit("shed", shares, notes)
	case p.Capacity != nil:
		shares, notes := k.capacity(p.Capacity)
		return k.limit("capacity", shares, notes)
	case p.Weighted != nil:
		m := slices.Index(modeNames, p.Weighted.Answers)
		if p.Weighted.Answers == "" {
			m = int(single)
		}
		if m < 0 {
			return fmt.Errorf("weighted: answers %q: no such mode", p.Weighted.Answers)
		}
		k.weighted("weighted", func(s *shape) { s.mode = mode(m) })
	case p.Sticky != nil:
		st := p.Sticky.WithDefaults()
		k.weighted("sticky", func(s *shape) { s.sticky4, s.sticky6 = uint8(st.IPv4), uint8(st.IPv6) })
	case p.Select != nil:
		return k.selection(p.Select)
	case p.Match != nil:
		return k.match(p.Match)
	case p.Chain != nil:
		return k.chain(string(*p.Chain))
	default:
		return fmt.Errorf("no kind; expected fence, health, failover, nearest, rtt, trickle, shed, capacity, weighted, sticky, select, match or chain")
	}
	return nil
}

// add adds a stage in the case that is being compiled.
func (k *compiler) add(st stage) {
	st.guards = slices.Clone(k.guards)
	if st.order {
		if k.split { // what weighted shares is not ordered any more
			st.local, st.order, st.judge, st.note = false, false, judgeNothing, noteShared
		} else {
			st.slot = k.slots
			k.slots++
		}
	}
	st.fixed = !st.local && len(st.guards) == 0 && !(k.maybe && st.order) && !(k.shaped && st.shapes)
	k.shaped = k.shaped || st.shapes && len(st.guards) > 0
	k.local = k.local || st.local
	k.stages = append(k.stages, st)
}

// mark makes prefixes ones that a client's locus tells apart.
func (k *compiler) mark(prefixes ...netip.Prefix) {
	for _, p := range prefixes {
		k.flagged[p.Masked()] = true
	}
}

// chain compiles a named chain in its place.
func (k *compiler) chain(name string) error {
	c, ok := k.env.chains[name]
	if !ok {
		return fmt.Errorf("chain %q: no such chain", name)
	}
	if slices.Contains(k.chains, name) {
		return fmt.Errorf("chain %q: comes back to itself", name)
	}
	k.chains = append(k.chains, name)
	err := k.policy(c.Policy)
	k.chains = k.chains[:len(k.chains)-1]
	if err != nil {
		return fmt.Errorf("chain %s: %w", name, err)
	}
	return nil
}

// match compiles the cases that may hold now for this name. One that does not depend on the
// client ends them.
func (k *compiler) match(m *config.MatchStage) error {
	type branch struct {
		condition
		then []config.Stage
	}
	var branches []branch
	open := true // the cases so far leave clients over
	plan := ""
	for _, c := range m.Cases {
		may, until := static(c.If, k.env.name, k.env.now)
		if !until.IsZero() {
			k.changes = append(k.changes, until)
		}
		if !may || !open {
			continue
		}
		b := branch{condition{c.If}, c.Then}
		branches = append(branches, b)
		plan += describe(c.If) + ";"
		open = b.local()
		k.mark(c.If.Prefix...)
	}
	if open {
		branches = append(branches, branch{then: m.Else})
	}
	id := k.matches
	k.matches++
	k.add(stage{
		name: "match", local: len(branches) > 1, plan: plan,
		judge: func(c *contest, _ int, at *locus) {
			c.taken[id] = len(branches) - 1
			for i := range branches {
				if branches[i].holds(at) {
					c.taken[id] = i
					return
				}
			}
		},
		note: func(c *contest, i int, at *locus) string {
			b := &branches[c.taken[id]]
			if b.Condition.IsZero() {
				return "else"
			}
			return describe(b.Condition)
		},
	})
	if len(branches) == 1 {
		return k.policy(branches[0].then)
	}
	outer, split, maybe := k.guards, k.split, k.maybe
	all := true
	for i, b := range branches {
		k.guards = append(slices.Clip(outer), guard{id, i})
		k.split, k.maybe = split, maybe
		if err := k.policy(b.then); err != nil {
			return err
		}
		all = all && k.split
		maybe = maybe || k.maybe || k.split
	}
	k.guards, k.split, k.maybe = outer, split || all, maybe
	return nil
}

// limit adds a stage by which each candidate takes only a share of its clients.
func (k *compiler) limit(name string, shares []float64, notes []string) error {
	id := len(k.limits)
	if id == maxLimits {
		return fmt.Errorf("%s: expected at most %d stages that limit", name, maxLimits-1)
	}
	k.limits, k.tickets = append(k.limits, shares), append(k.tickets, name)
	k.add(stage{
		name: name, plan: fmt.Sprint(id),
		judge: func(c *contest, _ int, _ *locus) {
			for i, share := range shares {
				if share < 1 {
					c.standings[i].limits |= 1 << id
				}
			}
		},
		note: func(_ *contest, i int, _ *locus) string {
			n := notes[i]
			if shares[i] < 1 {
				n += fmt.Sprintf(", takes %.0f %% of its clients", 100*shares[i])
			}
			return n
		},
	})
	return nil
}

// partial returns which limits of candidate i are under 1: what a routing depends on.
func (s *steering) partial(i int) (b uint32) {
	for id, shares := range s.limits {
		if shares[i] < 1 {
			b |= 1 << id
		}
	}
	return b
}

// named reports whether candidate i may come after another in answers that name several pools: it
// has a name of its own.
func (s *steering) named(i int) bool {
	return s.targets > 1 && s.candidates[i].pool.Hostname != ""
}

// gates returns what keeps some of its clients from candidate i, under a set of limits.
func (s *steering) gates(i uint16, limits uint32) (gates []gate) {
	for ; limits != 0; limits &= limits - 1 {
		id := bits.TrailingZeros32(limits)
		if share := s.limits[id][i]; share < 1 {
			owner := s.candidates[i].pool.Name
			if s.tickets[id] == "trickle" {
				owner = "" // its pools have one share together
			}
			gates = append(gates, gate{seed("gate", s.tickets[id], owner), threshold(share), id})
		}
	}
	return gates
}

// threshold returns the number under which a share of all 64-bit numbers lies.
func threshold(share float64) uint64 {
	if share <= 0 {
		return 0
	}
	return uint64(share * (1 << 63) * 2)
}

// weighted adds a stage that ends the ordering: pools that are equal so far are shared.
func (k *compiler) weighted(name string, set func(*shape)) {
	var s shape
	set(&s)
	dynamic := len(k.guards) > 0 // for all clients, k.split says it
	k.add(stage{
		name: name, plan: fmt.Sprint(s), shapes: true,
		judge: func(c *contest, _ int, _ *locus) { set(&c.shape); c.shape.splitted = c.shape.splitted || dynamic },
		note:  noteShared,
	})
	k.split, k.maybe = true, k.maybe || dynamic
}

// selection adds a stage that cuts the answer.
func (k *compiler) selection(p *config.SelectStage) error {
	if p.Answers < 1 || p.Answers > MaxAnswers {
		return fmt.Errorf("select: answers %d: expected 1..%d", p.Answers, MaxAnswers)
	}
	set := func(s *shape) {
		s.answers, s.pools, s.perSite, s.listed = uint8(p.Answers), uint8(max(1, p.Pools)), uint8(p.PerSite), p.Order == "listed"
	}
	if len(k.guards) == 0 && !k.shaped { // the last stage of Explain says it for all
		set(&k.base)
		return nil
	}
	k.add(stage{
		name: "select", plan: fmt.Sprint(*p), shapes: true,
		judge: func(c *contest, _ int, _ *locus) { set(&c.shape) },
		note:  func(*contest, int, *locus) string { return "" },
	})
	return nil
}

// trickle adds a stage that sends a share of the clients to some pools first.
func (k *compiler) trickle(p *config.TrickleStage) error {
	if p.Share == 0 {
		return nil
	}
	shares := make([]float64, len(k.candidates))
	to := make([]bool, len(k.candidates))
	for i, c := range k.candidates {
		shares[i] = 1
		if to[i] = slices.Contains(p.To, c.pool.Name); to[i] {
			shares[i] = p.Share
		}
	}
	id := len(k.limits)
	if id == maxLimits {
		return fmt.Errorf("trickle: expected at most %d stages that limit", maxLimits-1)
	}
	k.limits, k.tickets = append(k.limits, shares), append(k.tickets, "trickle")
	k.add(stage{
		name: "trickle", plan: fmt.Sprint(id, to, p.Share == 1),
		judge: func(c *contest, _ int, _ *locus) {
			for i := range to {
				if to[i] {
					c.standings[i].trickle |= 1 << id
				}
			}
		},
		note: func(_ *contest, i int, _ *locus) string {
			if to[i] {
				return fmt.Sprintf("gets %.4g %% of all clients", 100*p.Share)
			}
			return ""
		},
	})
	return nil
}

func judgeNothing(*contest, int, *locus) {}

func noteShared(c *contest, i int, _ *locus) string {
	total := 0
	for j := range c.candidates {
		if !c.standings[j].out && !c.standings[j].down && c.compare(i, j) == 0 {
			total += c.candidates[j].weight
		}
	}
	return fmt.Sprintf("weight %d of %d", c.candidates[i].weight, total)
}
