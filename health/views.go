package health

import (
	"cmp"
	"crypto/ed25519"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
)

// Member is a node that this one knows, for people.
type Member struct {
	Name     string        `json:"name"`
	Site     string        `json:"site"`
	Role     string        `json:"role,omitempty"`
	Address  string        `json:"address,omitempty"` // of its gossip; empty for one known by hearsay
	State    string        `json:"state"`             // self; alive; silent: a member that is not heard; gone: dead, left or unreachable
	Info     string        `json:"info,omitempty"`    // what it said with SetInfo
	Heard    time.Duration `json:"heard"`             // since it last said anything, by this node's clock
	Observed int           `json:"observed"`          // endpoints that it says something of
	Abstains bool          `json:"abstains"`          // it is not believed: cut off, or most of what it tests fails
	Key      string        `json:"key,omitempty"`     // of this node: its public key, in base64
}

// Members returns the nodes that this one knows, ordered by name, itself included.
func (m *Monitor) Members() []Member {
	byName := make(map[string]*Member)
	if m.gossip != nil {
		for _, p := range m.gossip.members() {
			site, role := readMeta(p.Meta)
			byName[p.Name] = &Member{Name: p.Name, Site: site, Role: role, Address: p.Address(), State: "silent"}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	doubts := m.doubtsLocked(now)
	for name, v := range m.table.nodes {
		p := byName[name]
		if p == nil {
			p = &Member{Name: name, State: "gone"}
			byName[name] = p
		}
		p.Site = cmp.Or(p.Site, v.heading.Site)
		p.Info, p.Observed = v.heading.Info, len(v.observed)
		p.Heard = max(0, now.Sub(v.heading.At))
		if m.table.alive(v, now) {
			p.State = "alive"
		}
		p.Abstains = doubts[name]
	}
	self := Member{Name: m.o.Node, Site: m.o.Site, Role: m.o.Role, Info: m.self.Info, State: "self"}
	if p := byName[m.o.Node]; p != nil {
		self.Observed, self.Abstains = p.Observed, p.Abstains
	}
	if m.o.Key != nil {
		self.Key = base64.StdEncoding.EncodeToString(m.o.Key.Public().(ed25519.PublicKey))
	}
	if m.listening && m.gossip != nil {
		if addr, ok := m.gossip.address(); ok {
			self.Address = addr.String()
		}
	}
	byName[m.o.Node] = &self
	members := make([]Member, 0, len(byName))
	for _, p := range byName {
		members = append(members, *p)
	}
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return members
}

// Views returns what is known of every target, and of every endpoint whose verdict is derived,
// ordered by pool and address: the verdict that is served and why, and what each vantage says,
// fresh or not, ordered by node.
func (m *Monitor) Views() []View {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, names := time.Now(), m.table.Names()
	if m.public == nil {
		m.settleLocked(now)
	}
	regions := make(map[gslb.EndpointID]map[string]string)
	m.dissentLocked(func(region string, id gslb.EndpointID, v gslb.Verdict) {
		if regions[id] == nil {
			regions[id] = make(map[string]string)
		}
		regions[id][region] = verdictName(v)
	})
	doubts := m.doubtsLocked(now)
	views := make([]View, 0, len(m.targets))
	for id, t := range m.targets {
		j := m.judged[id]
		view := View{Pool: id.Pool, Endpoint: id.Addr, Verdict: verdictName(j.Verdict), Unknown: j.Silent || j.Unsure, Since: j.since, Why: j.Why(), Fault: m.faults[id], Vantages: []Vantage{}}
		view.Regions = regions[id]
		rule := ruleOf(t.Probe.Quorum)
		for _, name := range names {
			v := m.table.nodes[name]
			o, ok := v.observed[id]
			if !ok || o.Silent {
				continue
			}
			said := Vantage{
				Node: name, Site: v.heading.Site, Up: o.Up, Class: o.Class.String(), Detail: o.Detail, Latency: o.Latency, Score: o.Score,
				Age: max(0, now.Sub(o.At)), Fresh: m.table.fresh(v, o, paceOf(&t.Probe, m.prober.isIdle(id.Pool)), now), Abstains: doubts[name],
			}
			said.Counts = said.Fresh && !said.Abstains && !rule.monitors(&Vote{Node: name, Site: said.Site})
			if s := o.seen; s != nil {
				said.Since, said.Trend = s.since, s.latencies()
			}
			view.Vantages = append(view.Vantages, said)
		}
		views = append(views, view)
	}
	if m.guard != nil {
		views = m.guard.annotate(views)
	}
	slices.SortFunc(views, func(a, b View) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), a.Endpoint.Compare(b.Endpoint))
	})
	return views
}

// Stats returns the counters since the start.
func (m *Monitor) Stats() Stats {
	s := m.stats.read()
	s.Members = 1
	if m.gossip != nil {
		s.Members += m.gossip.size()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Targets = len(m.targets)
	s.Abstains = m.doubtsLocked(time.Now())[m.o.Node]
	if m.guard != nil {
		for _, e := range m.guard.ends {
			if e.verdict == gslb.Up && e.raw == gslb.Down {
				s.Held++
			}
			if e.verdict == gslb.Down && e.raw == gslb.Up && e.damp.suppressed {
				s.Suppressed++
			}
		}
	}
	return s
}

func verdictName(v gslb.Verdict) string {
	switch v {
	case gslb.Up:
		return "up"
	case gslb.Down:
		return "down"
	default:
		return "unknown"
	}
}
