package gslb

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// text shows an explanation as a person would read it.
func (e *Explanation) text() string {
	var b strings.Builder
	for _, s := range e.Stages {
		fmt.Fprintf(&b, "%s:", s.Stage)
		for _, k := range s.Kept {
			fmt.Fprintf(&b, " %s", k.Pool)
			if k.Note != "" {
				fmt.Fprintf(&b, " (%s)", k.Note)
			}
		}
		for _, l := range s.Lost {
			fmt.Fprintf(&b, "\n  - %s (%s)", l.Pool, l.Note)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%s %s %s scope=%d ttl=%d\n", e.Client, e.Pool, e.Reason, e.Scope, e.TTL)
	return b.String()
}

// TestExplain reads whole explanations.
func TestExplain(t *testing.T) {
	tests := []struct {
		name, service, states, down, client, want string
	}{
		{
			"drained and degraded", "pools: {us: {}, eu: {}, ap: {weight: 0}, uk: {}, us2: {standby: true}}, policy: [health, nearest, select: {answers: 1}]",
			"states:\n  s: {pool: eu, state: drain, author: ann, reason: kernel upgrade, until: 2026-01-05T14:00:00Z}\n", "uk/10.5.0.1 us/10.1.0.1", "198.51.100.0/24", `
pools: us uk us2 (standby) eu (drained by ann: kernel upgrade, until 14:00Z)
  - ap (weight 0: never)
health: us (2 of 3 endpoints healthy) uk (1 of 2 endpoints healthy, degraded: 33 % of its weight usable) us2 (1 of 1 endpoints healthy) eu (3 of 3 endpoints healthy)
nearest: us (6204 km) uk (640 km) us2 (6204 km) eu (2 km)
select: us (1 of 1 IPv4, 1 of 1 IPv6)
  - uk (degraded: after those that are not)
  - us2 (standby: only when nothing else is left)
  - eu (drained: after all others)
198.51.100.0/24 us failover scope=0 ttl=30
`},
		{
			"a share", "pools: {us: {}, eu: {weight: 3}, ap: {}}, policy: [health, failover: [[us, eu]], weighted]",
			"", "", "192.0.2.0/24", `
pools: ap eu us
health: ap (2 of 2 endpoints healthy) eu (3 of 3 endpoints healthy) us (3 of 3 endpoints healthy)
failover: eu (rank 1 of 1) us (rank 1 of 1) ap (not named: last)
weighted: eu (weight 3 of 4) us (weight 1 of 4) ap (weight 1 of 1)
select: eu (2 of 2 IPv4, 1 of 1 IPv6)
  - us (equal to eu, which has this client's share)
  - ap (behind eu)
192.0.2.0/24 eu policy scope=24 ttl=30
`},
		{
			"all down", "pools: {us: {}, eu: {}}, policy: [health, nearest]",
			"states:\n  s: {pool: eu, endpoint: 10.2.0.1, state: down, author: bob, until: 2026-02-01T00:00:00Z}\n", "us eu", "198.51.100.7", `
pools: eu (10.2.0.1 forced down by bob, until 2026-02-01 00:00Z) us
health:
  - eu (0 of 3 endpoints healthy)
  - us (0 of 3 endpoints healthy)
nearest:
allDown: eu (open: answered as if healthy) us (open: answered as if healthy)
select: eu (1 of 1 IPv4, 1 of 1 IPv6)
  - us (behind eu)
198.51.100.7/32 eu all-down scope=24 ttl=15
`},
		{
			"fallback, of an unknown place", "pools: {us: {}}, policy: [nearest, health], allDown: {fallback: [sorry.example]}",
			"", "us", "100.64.0.1", `
pools: us
nearest: us (the client's place is not known)
health:
  - us (0 of 3 endpoints healthy)
select:
100.64.0.1/32  fallback scope=0 ttl=15
`},
		{
			"several in one answer", "pools: {us: {}, eu: {}, ap: {}}, policy: [failover: [us, eu, ap], select: {answers: 3, pools: 2}]",
			"", "", "192.0.2.0/24", `
pools: ap eu us
failover: us (rank 1 of 3) eu (rank 2 of 3) ap (rank 3 of 3)
select: us (first of those in the answer, 3 IPv4 and 2 IPv6 together) eu (in the answer behind us)
  - ap (behind us)
192.0.2.0/24 us policy scope=24 ttl=30
`},
		{
			"not of those who trickle", "pools: {us: {}, eu: {standby: true}}, policy: [trickle: {to: [eu], share: 0.05}]",
			"", "", "192.0.2.0/24", `
pools: us eu (standby)
trickle: us eu (gets 5 % of all clients)
select: us (2 of 2 IPv4, 1 of 1 IPv6)
  - eu (trickle: gets 5 % of all clients, and not this one)
192.0.2.0/24 us policy scope=24 ttl=30
`},
		{
			"not of those who are let through", "pools: {us: {}, eu: {}}, policy: [failover: [eu], capacity: {shares: {eu: 0.05}}]",
			"", "", "192.0.2.0/24", `
pools: eu us
failover: eu (rank 1 of 1) us (not named: last)
capacity: eu (share of the configuration, takes 5 % of its clients) us (no share set)
select: us (2 of 2 IPv4, 1 of 1 IPv6)
  - eu (capacity: takes 5 % of its clients, and not this one)
192.0.2.0/24 us overflow scope=24 ttl=30
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := mustBuild(t, nil, testInputs(t, tt.service, tt.states, tt.down, ""))
			e := s.Explain(s.Service("w.example"), client(tt.client))
			if got, want := e.text(), strings.TrimPrefix(tt.want, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if e.Service != "w.example" || e.Revision != 7 || e.Plan != s.Plan {
				t.Errorf("service %s, revision %d, plan %s; want those of the snapshot", e.Service, e.Revision, e.Plan)
			}
		})
	}
}

// TestExplainApex wants no CNAME told of where none can stand.
func TestExplainApex(t *testing.T) {
	in := testInputs(t, "pools: {away: {}}, policy: [health]}\n  v.example: {pools: {away: {}}, policy: [health]", "zones: [{name: w.example, records: x}, {name: example, records: x}]\npools: {away: {site: us, hostname: www.example.net}}\n", "", "")
	s := mustBuild(t, nil, in)
	for name, want := range map[string]string{"w.example": "04 answer: away by policy: those of www.example.net", "v.example": "04 answer: away by policy: CNAME www.example.net"} {
		lines := s.Explain(s.Service(name), client(newYork)).Lines()
		if !slices.Contains(lines, want) {
			t.Errorf("%s: got %q, want %q", name, lines, want)
		}
	}
}

// TestExplainRegion wants it said where a pool is down from.
func TestExplainRegion(t *testing.T) {
	in := testInputs(t, "pools: {us: {}, eu: {}}, policy: [{health: {by: region}}, nearest]", "", "", "")
	in.Regional = map[string]map[EndpointID]Verdict{"eu": {}}
	for _, e := range in.Objects.Pools["eu"].Endpoints {
		in.Regional["eu"][EndpointID{"eu", e.Address}] = Down
	}
	s := mustBuild(t, nil, in)
	want := `pools: eu us
health: us (3 of 3 endpoints healthy)
  - eu (0 of 3 endpoints healthy as seen from eu)
nearest: us (6204 km)
select: us (2 of 2 IPv4, 1 of 1 IPv6)
198.51.100.0/24 us failover scope=26 ttl=30
`
	if got := s.Explain(s.Service("w.example"), client("198.51.100.0/24")).text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
