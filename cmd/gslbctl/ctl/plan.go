package ctl

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// planCommand shows what a change would do to the users of late.
func (a *app) planCommand() *cobra.Command {
	f := applyFlags{}
	var drains, terms []string
	most := 1.0
	c := &cobra.Command{
		Use:   "plan [-f FILE] [--drain POOL] [--if TERM]",
		Short: "Show what a change would do to the traffic, without making it",
		Long: `Try a change on the decisions that the node made lately, and show how many users would be moved
from where to where, which pools would pass their capacity, how far users would be from their pool,
and what resolvers would keep. Nothing is written. The exit code is 1 when a pool would pass its
capacity, users would be left without an answer, apply would refuse it without force, or more than
--max-moved would be moved.`,
		Example: "  gslbctl plan -f change.yaml\n  gslbctl plan --drain gfe-eu --max-moved 0.3\n  gslbctl plan --if site.eu-west=down",
		Args:    args(),
		RunE: func(c *cobra.Command, _ []string) error {
			if !(0 <= most && most <= 1) {
				return usage("plan: --max-moved %v: expected 0 to 1", most)
			}
			for _, pool := range drains {
				terms = append(terms, "pool."+pool+"=drain")
			}
			var o *config.Objects
			var data []byte
			if c.Flags().Changed("file") {
				var err error
				if o, data, err = a.objects(&f); err != nil {
					return err
				}
			} else if len(terms) == 0 {
				return &exitError{code: ExitUsage, err: fmt.Errorf("plan: nothing to try"), hint: "give -f FILE, --drain POOL or --if TERM"}
			}
			p, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Plan, error) {
				return c.Plan(ctx, data, terms, f.Prune)
			})
			if err != nil {
				return located(o, err)
			}
			if err := a.show(p, func() { a.printPlan(p) }); err != nil {
				return err
			}
			if planFails(p, most) {
				return &exitError{code: ExitError}
			}
			return nil
		},
	}
	f.register(c)
	c.Flags().StringArrayVar(&drains, "drain", nil, "as if this pool were drained")
	c.Flags().StringArrayVar(&terms, "if", nil, "as if this held: see explain --if")
	c.Flags().Float64Var(&most, "max-moved", 1, "share of the users that may be moved, 0 to 1")
	_ = c.RegisterFlagCompletionFunc("drain", a.complete(completePools))
	return c
}

// planFails reports whether a plan is one to stop at.
func planFails(p *api.Plan, most float64) bool {
	for _, pool := range p.Pools {
		if pool.Over {
			return true
		}
	}
	return p.Empty > 0 || len(p.Gone) > 0 || p.Refused != "" || p.Moved > most
}

// planBar is how many columns a share of 1 takes.
const planBar = 30

// printPlan writes a plan for people:
//
//	of 4096 decisions 31.2 % would go to another pool
//
//	FROM     TO       SHARE
//	gfe-eu   gfe-uk   31.2 %
//
//	POOL     BEFORE  AFTER   LOAD           █ stays ▓ comes ░ goes
//	gfe-eu   31.2 %  0.0 %   0.62 → 0.00    ░░░░░░░░░
//	gfe-uk   10.0 %  41.2 %  0.40 → 1.65 !  ███▓▓▓▓▓▓▓▓▓
//
//	distance  412 → 980 km in the mean, 1204 → 2409 km at the 95th percentile
//	RTT       18.2 → 31.0 ms in the mean, where it is measured
//	scope     18.2 → 17.9 bits in the mean, 812 → 790 cache entries
func (a *app) printPlan(p *api.Plan) {
	if p.Samples == 0 {
		fmt.Fprintln(a.out, "no decision was made lately that this could be tried on")
	} else {
		fmt.Fprintf(a.out, "of %d decisions %s would go to another pool\n", p.Samples, a.style.paint(bold, percent(p.Moved)))
	}
	if len(p.Moves) > 0 {
		fmt.Fprintln(a.out)
		t := table{head: []string{"FROM", "TO", ">SHARE"}}
		for _, m := range p.Moves {
			t.add(row(cmp.Or(clean(m.From), "nothing"), cmp.Or(clean(m.To), "nothing"), percent(m.Share))...)
		}
		t.write(a.out, a.style)
	}
	if len(p.Pools) > 0 {
		fmt.Fprintln(a.out)
		t := table{head: []string{"POOL", ">BEFORE", ">AFTER", "LOAD", "█ STAYS ▓ COMES ░ GOES"}}
		for _, s := range p.Pools {
			load, colour := "", ""
			if s.Load > 0 || s.Expected > 0 {
				load = fmt.Sprintf("%.0f → %.0f %%", 100*s.Load, 100*s.Expected)
			}
			if s.Over {
				load, colour = load+" over its capacity", red
			}
			t.add(cell{text: clean(s.Pool)}, cell{text: percent(s.Before)}, cell{text: percent(s.After)}, cell{load, colour}, cell{text: shiftBar(s.Before, s.After)})
		}
		t.write(a.out, a.style)
	}
	if p.Samples > 0 {
		fmt.Fprintln(a.out)
		fmt.Fprintf(a.out, "distance  %.0f → %.0f km in the mean, %.0f → %.0f km at the 95th percentile\n", p.Km[0], p.Km[1], p.Far[0], p.Far[1])
		if p.RTT != [2]float64{} {
			fmt.Fprintf(a.out, "RTT       %.1f → %.1f ms in the mean, where it is measured\n", p.RTT[0], p.RTT[1])
		}
		fmt.Fprintf(a.out, "scope     %.1f → %.1f bits in the mean, %d → %d cache entries\n", p.Scope[0], p.Scope[1], p.Entries[0], p.Entries[1])
	}
	if p.Empty > 0 {
		fmt.Fprintln(a.out, a.style.paint(red, fmt.Sprintf("%d decisions would have no answer any more", p.Empty)))
	}
	if len(p.Gone) > 0 {
		fmt.Fprintln(a.out, a.style.paint(red, "not steered any more: "+clean(strings.Join(p.Gone, ", "))))
	}
	if p.Refused != "" {
		fmt.Fprintln(a.out, a.style.paint(red, clean(p.Refused)))
	}
}

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

// shiftBar draws two shares over each other: what stays is full, what goes light, what comes dark.
func shiftBar(before, after float64) string {
	columns := func(share float64) int { return int(math.Round(planBar * min(1, max(0, share)))) }
	b, n := columns(before), columns(after)
	return strings.Repeat("█", min(b, n)) + strings.Repeat("▓", max(0, n-b)) + strings.Repeat("░", max(0, b-n))
}
