package health

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// reach is what this node's reference targets say of its own network.
type reach uint8

const (
	reachUnknown reach = iota // none are configured, or not yet looked
	reachGood                 // at least half of them answer
	reachBad                  // most do not, twice in a row
)

const (
	referenceEvery   = 2 * time.Second
	referenceTimeout = time.Second
)

// watchReferences looks at the reference targets until ctx ends.
func (m *Monitor) watchReferences(ctx context.Context) {
	for bad := 0; ; {
		if m.referencesAnswer(ctx) {
			bad = 0
		} else {
			bad++
		}
		m.mu.Lock()
		was := m.refs
		switch {
		case ctx.Err() != nil:
		case bad == 0:
			m.refs = reachGood
		case bad >= 2:
			m.refs = reachBad
		}
		if m.refs != was {
			m.doubtAt = time.Time{}
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(referenceEvery):
		}
	}
}

// referencesAnswer reports whether at least half of the references accept a connection.
func (m *Monitor) referencesAnswer(ctx context.Context) bool {
	dial := m.o.reference
	if dial == nil {
		dial = func(ctx context.Context, hostPort string) error {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", hostPort)
			if err == nil {
				_ = c.Close()
			}
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, referenceTimeout)
	defer cancel()
	errs := make([]error, len(m.o.References))
	var wg sync.WaitGroup
	for i, r := range m.o.References {
		wg.Go(func() { errs[i] = dial(ctx, r) })
	}
	wg.Wait()
	good := 0
	for _, err := range errs {
		if err == nil {
			good++
		}
	}
	return 2*good >= len(errs)
}

// cutOffLocked reports whether this node knows that it is no witness: its references fail, or
// it has lost most of its peers and no reference says that its network works all the same.
func (m *Monitor) cutOffLocked(now time.Time) bool {
	m.lookLocked(now)
	return m.refs == reachBad || m.apart
}

// doubtsLocked returns the vantages that are not believed at now.
func (m *Monitor) doubtsLocked(now time.Time) map[string]bool {
	m.lookLocked(now)
	return m.doubts
}

// stopped is after how long without a look a node was stopped: each beat looks.
const stopped = 3 * heartbeat

// lookLocked looks at all nodes: whether this one is on the smaller side of a partition, as far
// as it can tell, and which are not believed. It does so once a beat, in which time alone may
// have changed that, and when something is said that may.
func (m *Monitor) lookLocked(now time.Time) {
	if age := now.Sub(m.doubtAt); age >= 0 && age < heartbeat {
		return
	}
	if !m.lookedAt.IsZero() && now.Sub(m.lookedAt) > stopped { // the silence is its own: it did not listen
		m.deafUntil = now.Add(m.self.Period + heartbeat)
	}
	m.doubtAt, m.lookedAt = now, now
	m.apart = m.gossip != nil && (m.refs != reachGood && m.table.Lost(now) || now.Before(m.deafUntil))
	own := Doubt{Node: m.o.Node, Failing: m.self.Failing, Abstains: m.refs == reachBad || m.apart} // as it says with its next word
	m.doubts = doubtful(m.table.Doubts(own, now))
	if m.apart { // those that are left with this node are the smaller part, too, and so is who is heard next
		m.doubts = make(map[string]bool, len(m.table.order))
		for i := range m.table.order {
			m.doubts[m.table.order[i].name] = true
		}
	}
}

// countLocked counts which share of what this node tests fails.
func (m *Monitor) countLocked(now time.Time) {
	v := m.table.nodes[m.o.Node]
	if v == nil {
		return
	}
	m.counted, m.recount = now, false
	m.tested, m.failing = 0, 0
	for id, o := range v.observed {
		if t, ok := m.targets[id]; ok && now.Sub(o.At) <= max(staleFloor, staleFactor*time.Duration(t.Probe.Interval)) {
			m.tested++
			if !o.Up {
				m.failing++
			}
		}
	}
	m.failLocked()
}

// failLocked says of this node what share of what it tests fails. One endpoint that fails says
// nothing of this node: where nodes share the work it may be all that it tests.
func (m *Monitor) failLocked() {
	share := uint8(0)
	if m.failing > 1 {
		share = uint8((100*m.failing + m.tested - 1) / m.tested)
	}
	if (share > mostFails) != (m.self.Failing > mostFails) {
		m.doubtAt = time.Time{}
	}
	m.self.Failing = share
}

// tallyLocked counts one more result of this node, until all are counted again.
func (m *Monitor) tallyLocked(id gslb.EndpointID, up bool) {
	was, had := true, false
	if v := m.table.nodes[m.o.Node]; v != nil {
		if o, ok := v.observed[id]; ok {
			was, had = o.Up, true
		}
	}
	if !had {
		m.tested++
	}
	switch {
	case was && !up:
		m.failing++
	case !was && up:
		m.failing--
	}
	m.failing = max(0, min(m.failing, m.tested))
	m.failLocked()
}

// regionalLocked returns what the votes of each region say, where not all votes are what the
// verdict is. Within a region no second site is asked for.
func (m *Monitor) regionalLocked(rule Rule, verdict gslb.Verdict, votes []Vote) map[string]vote {
	mixed := false
	for i := range votes {
		mixed = mixed || votes[i].Up != (verdict == gslb.Up)
	}
	if !mixed || len(m.regions) == 0 { // most of the time
		return nil
	}
	by := make(map[string][]Vote)
	for _, v := range votes {
		if region, ok := m.regions[v.Site]; ok {
			by[region] = append(by[region], v)
		}
	}
	rule.Sites = 1
	out := make(map[string]vote, len(by))
	for region, votes := range by {
		j := Judge(rule, verdict, votes)
		out[region] = vote{verdict: j.Verdict, unanimous: j.Unanimous && !j.Silent}
	}
	return out
}

// dissentLocked calls f with what is served to the clients of a region, where that is not what
// is served to all: what its own vantages say, guarded as that is where a policy asks for it.
func (m *Monitor) dissentLocked(f func(region string, id gslb.EndpointID, v gslb.Verdict)) {
	if m.regional == nil {
		for id, j := range m.judged {
			for region, v := range j.regions {
				if v.verdict != j.Verdict {
					f(region, id, v.verdict)
				}
			}
		}
		return
	}
	for region, g := range m.regional {
		for id, e := range g.ends {
			if g.serves(id) && e.verdict != m.guard.ends[id].verdict {
				f(region, id, e.verdict)
			}
		}
	}
}

// settleLocked lets the guards take in what the votes say. It reports whether anything changed.
func (m *Monitor) settleLocked(now time.Time) (changed bool) {
	if m.guard != nil {
		changed = m.guard.settle(m.voteLocked, now)
	}
	for region, g := range m.regional {
		if g.settle(func(id gslb.EndpointID) vote {
			if v, ok := m.judged[id].regions[region]; ok {
				return v
			}
			return m.voteLocked(id)
		}, now) {
			changed = true
		}
	}
	return changed
}

// regionalGuards returns the guard of each region, if a policy asks for what its vantages say.
func regionalGuards(o *config.Objects, regions map[string]string, old map[string]*guard) map[string]*guard {
	if !o.UsesRegions() {
		return nil
	}
	guards := make(map[string]*guard)
	for _, region := range regions {
		if guards[region] == nil {
			guards[region] = newGuard(o, old[region])
		}
	}
	return guards
}

// voteLocked is what the guard asks.
func (m *Monitor) voteLocked(id gslb.EndpointID) vote {
	j, ok := m.judged[id]
	if !ok {
		return vote{}
	}
	return vote{verdict: j.Verdict, unanimous: j.Unanimous && !j.Silent}
}

// trendLength is how many latencies of a vantage are kept for people.
const trendLength = 24

// seen is what this node remembers of another's word beside the word itself.
type seen struct {
	since time.Time // it says the same
	trend [trendLength]uint32
	next  int
}

// seeLocked remembers a latency that v told of a target, in microseconds, and when the word changed.
func (m *Monitor) seeLocked(v *vantage, id gslb.EndpointID, now time.Time, latency time.Duration) {
	o := v.observed[id]
	if o == nil {
		return
	}
	if o.seen == nil {
		if _, ok := m.targets[id]; !ok {
			return // so that it is bounded as targets are
		}
		o.seen = &seen{since: now}
	}
	s := o.seen
	us := uint32(max(1, min(latency.Microseconds(), 1<<31)))
	if o.Class != OK {
		us = 0
	}
	s.trend[s.next%trendLength] = us
	s.next++
}

// turnLocked remembers that v says something else from now of what flipped.
func (m *Monitor) turnLocked(v *vantage, changed []Change, now time.Time) {
	for _, c := range changed {
		if o := v.observed[c.ID]; c.Flip && o != nil && o.seen != nil {
			o.seen.since = now
		}
	}
}

// latencies returns the trend, oldest first.
func (s *seen) latencies() []time.Duration {
	var out []time.Duration
	for i := max(0, s.next-trendLength); i < s.next; i++ {
		out = append(out, time.Duration(s.trend[i%trendLength])*time.Microsecond)
	}
	return out
}
