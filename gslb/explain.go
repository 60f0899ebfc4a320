package gslb

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
)

// Explain returns the decision for c on svc and everything that led to it. Its outcome is
// that of Decide, always. It allocates and is for people.
func (s *Snapshot) Explain(svc *Service, c Client) *Explanation {
	var d Decision
	s.Decide(svc, c, &d)
	addr := c.Addr.Unmap()
	e := &Explanation{
		Service: svc.Name, Revision: s.Revision, Plan: s.Plan, Snapshot: s.ID(),
		Reason: d.Reason.String(), Answers: slices.Concat(d.V4, d.V6), CNAME: d.Fallback, TTL: d.TTL, Scope: d.Scope,
	}
	if _, apex := s.in.Objects.Zones[svc.Name]; apex {
		e.Flat = d.Fallback != ""
	}
	if e.Answers == nil {
		e.Answers = []netip.Addr{}
	}
	if p, err := addr.Prefix(min(int(c.Source), addr.BitLen())); err == nil {
		e.Client = p
	}
	at := nowhereLocus
	if s.Geo != nil {
		p, _ := s.Geo.Lookup(addr)
		e.Place = *p
	}
	if w := svc.routing.world; w != nil {
		at = w.find(addr)
	} else if s.Geo != nil {
		at.place = &e.Place
	}
	for i := range d.Targets {
		e.Targets = append(e.Targets, d.Targets[i].Pool.Name)
	}
	if d.Pool != nil {
		e.Pool = d.Pool.Name
	}
	key, _ := svc.outcomes[d.Outcome].hash(svc, addr)
	e.Stages = svc.trace(&d, &at, key)
	return e
}

// trace runs the contest again for a client, and writes down what each stage did.
func (svc *Service) trace(d *Decision, at *locus, key uint64) []StageTrace {
	c := svc.steering.contest()
	t := tracer{contest: c, key: key, gone: make([]bool, len(c.candidates))}
	t.stage("pools", t.admission)
	for i := range c.stages {
		st := &c.stages[i]
		if !c.judges(st) {
			continue
		}
		st.judge(c, st.slot, at)
		if st.name == "match" {
			t.stage(st.name, func(int) string { return "" })
			t.traces[len(t.traces)-1].Note = st.note(c, 0, at)
			continue
		}
		t.stage(st.name, func(i int) string { return st.note(c, i, at) })
	}
	if svc.outcomes[d.Outcome].reason == ReasonAllDown {
		c.ties = c.ties[:0]
		c.open()
		for i, s := range c.standings {
			c.standings[i].down, t.gone[i] = false, s.out
		}
		note := "open: answered as if healthy"
		if c.lastGood {
			note = "last known good"
		}
		t.stage("allDown", func(i int) string {
			if p := c.candidates[i].pool; c.lastGood && !p.downAt.IsZero() {
				return note + ": healthy until " + p.downAt.UTC().Format("15:04:05Z")
			}
			return note
		})
	}
	t.end(d)
	return t.traces
}

// tracer writes down a contest for one client.
type tracer struct {
	*contest
	key    uint64
	gone   []bool // candidates that were dropped before
	traces []StageTrace
}

// stage writes down the candidates that are left, in order, and those that are newly gone.
func (t *tracer) stage(name string, note func(i int) string) {
	tr := StageTrace{Stage: name, Kept: []CandidateTrace{}}
	for _, i := range t.ranked() {
		line := CandidateTrace{t.candidates[i].pool.Name, note(i)}
		if s := t.standings[i]; !s.out && !s.down {
			tr.Kept = append(tr.Kept, line)
		} else if !t.gone[i] {
			t.gone[i] = true
			tr.Lost = append(tr.Lost, line)
		}
	}
	t.traces = append(t.traces, tr)
}

// ranked returns the candidates in the order so far; where stages leave them equal, in
// that of the client's draws.
func (t *tracer) ranked() []int {
	order := make([]int, len(t.candidates))
	draws := make([]float64, len(t.candidates))
	for i, c := range t.candidates {
		order[i] = i
		draws[i] = draw(t.key, seed("pool", c.pool.Name), 1/float64(c.weight))
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Or(t.compare(i, j), cmp.Compare(draws[i], draws[j])) })
	return order
}

// admission says what the configuration and operators make of candidate i.
func (t *tracer) admission(i int) string {
	c := &t.candidates[i]
	switch {
	case c.weight == 0:
		return "weight 0: never"
	case c.pool.none:
		return "no endpoint has a weight: never"
	case c.pool.notes.state != "" && c.standby:
		return "standby, " + c.pool.notes.state
	case c.pool.notes.state != "":
		return c.pool.notes.state
	case c.standby:
		return "standby"
	}
	return ""
}

// end writes down the choice among the pools that are left, and of its endpoints.
func (t *tracer) end(d *Decision) {
	tr := StageTrace{Stage: "select", Kept: []CandidateTrace{}}
	for _, i := range t.ranked() {
		p := t.candidates[i].pool
		switch s := t.standings[i]; {
		case p == d.Pool:
			tr.Kept = slices.Insert(tr.Kept, 0, CandidateTrace{p.Name, t.selection(d)})
		case d.Pool != nil && p.answersIn(d):
			tr.Kept = append(tr.Kept, CandidateTrace{p.Name, "in the answer behind " + d.Pool.Name})
		case s.out || s.down:
		case d.Pool == nil:
			tr.Lost = append(tr.Lost, CandidateTrace{p.Name, d.Reason.String()})
		default:
			tr.Lost = append(tr.Lost, CandidateTrace{p.Name, t.behind(i, d)})
		}
	}
	t.traces = append(t.traces, tr)
}

// answersIn reports whether endpoints of p are among the answers of d.
func (p *Pool) answersIn(d *Decision) bool {
	return slices.ContainsFunc(p.Endpoints, func(e Endpoint) bool { return slices.Contains(d.V4, e.Addr) || slices.Contains(d.V6, e.Addr) })
}

// selection says how many of the chosen pool's endpoints are answered, or what else.
func (t *tracer) selection(d *Decision) string {
	o := &d.Service.outcomes[d.Outcome]
	i := slices.IndexFunc(o.shares, func(sh share) bool { return sh.pool == d.Pool })
	l := o.shares[i].list
	switch {
	case d.Fallback != "":
		return "the name " + d.Fallback
	case o.shape.mode == groupedSingle || o.shape.mode == groupedMulti:
		return fmt.Sprintf("%d IPv4 and %d IPv6 of %d failure domains", len(d.V4), len(d.V6), len(l.domains))
	case o.merged:
		return fmt.Sprintf("first of those in the answer, %d IPv4 and %d IPv6 together", len(d.V4), len(d.V6))
	}
	return fmt.Sprintf("%d of %d IPv4, %d of %d IPv6", len(d.V4), len(l.v4.addrs), len(d.V6), len(l.v6.addrs))
}

// behind says why candidate i is not first but that pool is.
func (t *tracer) behind(i int, d *Decision) string {
	first := d.Pool
	j := slices.IndexFunc(t.candidates, func(c candidate) bool { return c.pool == first })
	switch over := t.standings[i].tier &^ t.standings[j].tier; {
	case d.Reason == ReasonTrickle:
		return "this client is of the share that trickles to " + first.Name
	case t.shuts(i) != "" && t.compare(i, j) <= 0:
		return t.shuts(i) + " of its clients, and not this one"
	case t.standings[i].trickle != 0 && over&^tierStandby == 0:
		share := t.limits[bits.TrailingZeros32(t.standings[i].trickle)][i]
		return fmt.Sprintf("trickle: gets %.3g %% of all clients, and not this one", 100*share)
	case t.compare(i, j) == 0:
		return "equal to " + first.Name + ", which has this client's share"
	case over&tierShut != 0:
		return "forced down: after all others"
	case over&tierDrained != 0:
		return "drained: after all others"
	case over&tierStandby != 0:
		return "standby: only when nothing else is left"
	case over&tierDegraded != 0:
		return "degraded: after those that are not"
	}
	return "behind " + first.Name
}

// shuts returns the first limit that keeps candidate i from the client, with the share of its
// clients that it takes: "slow start: takes 20 %"; "" is none.
func (t *tracer) shuts(i int) string {
	for _, g := range t.gates(uint16(i), t.standings[i].limits) {
		if mix(t.key^g.seed) >= g.below {
			return fmt.Sprintf("%s: takes %.3g %%", t.tickets[g.limit], 100*t.limits[g.limit][i])
		}
	}
	return ""
}
