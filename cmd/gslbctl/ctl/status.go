package ctl

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/health"
)

// statusCommand shows how the node is.
func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the node is",
		Long:  "Show how the node is. The exit code is 0 when all is well, 4 when the node is degraded or not ready.",
		Args:  args(),
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Status, error) { return c.Status(ctx) })
			if err != nil {
				return err
			}
			if err := a.show(st, func() { a.printStatus(st) }); err != nil {
				return err
			}
			if st.State != api.StateOK {
				return &exitError{code: ExitNotOK}
			}
			return nil
		},
	}
}

func (a *app) printStatus(st *api.Status) {
	s := a.style
	facts := table{}
	fact := func(name, text, colour string) { facts.add(cell{name, dim}, cell{text, colour}) }
	node := st.Node.Name + "  " + st.Node.Site
	if st.Node.Version != "" {
		node += "  " + st.Node.Version
	}
	if !st.Node.Started.IsZero() {
		node += "  up " + age(st.Time.Sub(st.Node.Started))
	}
	fact("node", node, bold)
	fact("state", st.State, stateColour(st.State))
	for _, r := range st.Reasons {
		fact("", "! "+r, stateColour(st.State))
	}
	if st.Revision != 0 {
		fact("snapshot", fmt.Sprintf("revision %d, plan %s", st.Revision, shortPlan(st.Plan)), plain)
	}
	if text, colour := storeText(st); text != "" {
		fact("store", text, colour)
	}
	var addrs []string
	for _, ap := range st.Node.DNS {
		addrs = append(addrs, ap.String())
	}
	dns := strings.Join(addrs, " ")
	if t := st.Traffic; t != nil {
		dropped := uint64(0)
		for _, n := range t.Dropped {
			dropped += n
		}
		dns += fmt.Sprintf("  %s queries, %s dropped", number(t.Queries), number(dropped))
	}
	if dns != "" {
		fact("dns", dns, plain)
	}
	if len(st.Members) > 0 {
		var names []string
		for _, m := range st.Members {
			name := m.Name
			if m.State != "alive" && m.State != "self" {
				name += " (" + m.State + ")"
			}
			names = append(names, name)
		}
		fact("members", strings.Join(names, "  "), plain)
	}
	facts.write(a.out, s)
	if len(st.Pools) > 0 {
		fmt.Fprintln(a.out)
		a.printPools(st, nil)
	}
	if len(st.Services) > 0 {
		fmt.Fprintln(a.out)
		services := table{head: []string{"SERVICE", "POOLS"}}
		for _, svc := range st.Services {
			services.add(row(svc.Name, strings.Join(svc.Pools, "  "))...)
		}
		services.write(a.out, s)
	}
}

// storeText says how the store is, in a line.
func storeText(st *api.Status) (text, colour string) {
	so := st.Store
	switch {
	case so == nil || so.Mode == "file":
		return "none: the configuration file is all there is", plain
	case so.Held != "":
		return "held: " + so.Held + "; gslbctl confirm takes it", yellow
	case !so.Connected:
		text = fmt.Sprintf("%s etcd not connected, answering from revision %d", so.Mode, so.Revision)
		if so.FromDisk {
			text += " of the disk"
		}
		if !so.LastContact.IsZero() {
			text += ", heard " + age(st.Time.Sub(so.LastContact)) + " ago"
		}
		return text, yellow
	case len(so.Faults) > 0:
		return fmt.Sprintf("%s etcd, revision %d, %s left out", so.Mode, so.Revision, count(len(so.Faults), "object")), yellow
	}
	return fmt.Sprintf("%s etcd, revision %d", so.Mode, so.Revision), plain
}

// shortPlan is enough of a plan's hash to compare by eye.
func shortPlan(plan string) string { return plan[:min(len(plan), 12)] }

func stateColour(state string) string {
	switch state {
	case api.StateOK:
		return green
	case api.StateDegraded:
		return yellow
	}
	return red
}

// printPools writes the table of pools. weights, which may be nil, says for each pool its
// weight in its services.
func (a *app) printPools(st *api.Status, weights map[string]string) {
	t := table{head: []string{"POOL", "SITE", ">HEALTHY", "ENDPOINTS", "STATE"}}
	if weights != nil {
		t.head = []string{"POOL", "SITE", ">HEALTHY", "ENDPOINTS", "WEIGHTS", "STATE"}
	}
	for _, p := range st.Pools {
		state, colour := poolState(&p, st.Time)
		up := 0
		for _, e := range p.Endpoints {
			if e.Verdict != "down" && !e.Drained {
				up++
			}
		}
		cells := row(p.Name, p.Site, fmt.Sprintf("%.0f %%", p.Healthy*100), fmt.Sprintf("%d of %d", up, len(p.Endpoints)))
		if weights != nil {
			cells = append(cells, cell{text: weights[p.Name]})
		}
		t.add(append(cells, cell{state, colour})...)
	}
	t.write(a.out, a.style)
}

// poolState says the state of a pool in words.
func poolState(p *api.Pool, now time.Time) (text, colour string) {
	switch {
	case p.Drained:
		return drainText("drained", p.Drain, now), yellow
	case p.Healthy == 0:
		return "down", red
	case p.Degraded:
		return "degraded", yellow
	}
	drained := 0
	for _, e := range p.Endpoints {
		if e.Drained {
			drained++
		}
	}
	if drained > 0 {
		return "ok, " + count(drained, "endpoint") + " drained", green
	}
	return "ok", green
}

// drainText says who drained, why and for how long.
func drainText(word string, d *api.Drain, now time.Time) string {
	if d == nil {
		return word
	}
	text := word + " by " + d.Author
	if d.Reason != "" {
		text += ": " + d.Reason
	}
	if !d.Until.IsZero() {
		text += fmt.Sprintf(", until %s (%s left)", clock(d.Until, now), age(d.Until.Sub(now)))
	}
	return text
}

// healthCommand shows what the vantages say.
func (a *app) healthCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "health [POOL]",
		Short:             "Show what each vantage says of each endpoint",
		Args:              args("[POOL]"),
		ValidArgsFunction: a.complete(completePools),
		RunE: func(c *cobra.Command, args []string) error {
			pool := strings.Join(args, "")
			h, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Health, error) { return c.Health(ctx, pool) })
			if err != nil {
				return err
			}
			return a.show(h, func() { a.printHealth(h) })
		},
	}
}

func (a *app) printHealth(h *api.Health) {
	if len(h.Endpoints) == 0 {
		fmt.Fprintln(a.out, "no endpoint is probed; one without a probe counts as healthy")
		return
	}
	now := a.now()
	t := table{head: []string{"POOL", "ENDPOINT", "VERDICT", "VANTAGE", "SITE", "RESULT", "SINCE", ">LATENCY", "TREND", "HEARD"}}
	for _, v := range h.Endpoints {
		colour := map[string]string{"up": green, "down": red}[v.Verdict]
		verdict := v.Verdict
		if v.Unknown {
			verdict += "?"
		}
		if !v.Since.IsZero() {
			verdict += " " + age(now.Sub(v.Since))
		}
		first := []cell{{text: v.Pool}, {text: v.Endpoint.String()}, {verdict, colour}}
		if len(v.Vantages) == 0 {
			why := "no vantage has spoken yet"
			if v.Why != "" {
				why = v.Why
			}
			t.add(append(first, cell{}, cell{}, cell{why, dim})...)
			first = row("", "", "")
		}
		for _, n := range v.Vantages {
			result, colour := "✓ "+n.Class, green
			if !n.Up {
				result, colour = "✗ "+n.Class, red
			}
			if n.Detail != "" {
				result += ": " + n.Detail
			}
			// What it says stands until "rise" or "fall" results in a row are against it.
			if good := n.Class == health.OK.String(); good != n.Up && n.Class != health.Local.String() {
				result, colour = result+", not yet "+map[bool]string{true: "up", false: "down"}[good], yellow
			}
			latency := ""
			if n.Latency > 0 {
				latency = short(n.Latency)
			}
			heard := age(n.Age) + " ago"
			switch {
			case !n.Fresh:
				heard += ", stale"
				colour = dim
			case n.Abstains:
				heard += ", abstains"
				colour = dim
			}
			since := ""
			if !n.Since.IsZero() {
				since = age(now.Sub(n.Since))
			}
			t.add(append(first, cell{text: n.Node}, cell{text: n.Site}, cell{result, colour}, cell{text: since}, cell{text: latency}, cell{text: spark(n.Trend)}, cell{text: heard})...)
			first = row("", "", "")
		}
		if len(v.Vantages) > 0 && v.Why != "" {
			t.add(append(first, cell{}, cell{}, cell{v.Why, dim})...)
		}
		if v.Fault != "" {
			t.add(append(first, cell{}, cell{}, cell{"? this node cannot tell: " + v.Fault, yellow})...)
		}
		for _, region := range slices.Sorted(maps.Keys(v.Regions)) {
			t.add(cell{}, cell{}, cell{}, cell{}, cell{}, cell{v.Regions[region] + " as seen from " + region, yellow})
		}
	}
	t.write(a.out, a.style)
}

// spark draws durations as a line of bars, the longest as a full one; 0, a failure, as a cross.
func spark(trend []time.Duration) string {
	const bars = "▁▂▃▄▅▆▇█"
	top := slices.Max(append([]time.Duration{1}, trend...))
	var b strings.Builder
	for _, d := range trend {
		if d == 0 {
			b.WriteRune('×')
			continue
		}
		b.WriteRune([]rune(bars)[int(7*d/top)])
	}
	return b.String()
}
