package ctl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb"
)

// explainCommand shows why a client is sent where.
func (a *app) explainCommand() *cobra.Command {
	var client, qtype, at string
	var terms []string
	c := &cobra.Command{
		Use:   "explain NAME --client ADDR[/LEN]",
		Short: "Show why a client is sent where it is sent",
		Long: "Show why a client is sent where it is sent: its place, each stage of the policy with the pools\nthat it kept and those that it lost, and the answer. No query is sent.\n\n" +
			"--if asks about a state that is not, and may be given several times:\n" +
			"  pool.gfe-eu=down                          or up, drain, auto\n" +
			"  endpoint.gfe-eu/192.0.2.11=down           one address of a pool\n" +
			"  site.eu-west=drain                        every pool there\n" +
			"  load.gfe-eu=0.9                           share of its capacity that is in use\n" +
			"  weight.www.example.com/gfe-eu=3           in one service\n" +
			"  capacity.www.example.com/gfe-eu=0.5       share of its clients that it takes\n" +
			"  time=2026-01-31T14:00:00Z                 for states that end, and time windows",
		Example: "  gslbctl explain www.example.com --client 198.51.100.7\n  gslbctl explain www.example.com --client 2001:db8:2::/48 --type AAAA\n" +
			"  gslbctl explain www.example.com --client 198.51.100.7 --if pool.gfe-eu=down --if load.gfe-us=0.95\n" +
			"  gslbctl explain www.example.com --client 198.51.100.7 --at 1042 -o json",
		Args: args("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			if client == "" {
				return &exitError{code: ExitUsage, err: fmt.Errorf("explain: --client is missing"), hint: "give the address of a user, or the prefix that a resolver sends: --client 198.51.100.7"}
			}
			e, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Explanation, error) {
				return c.ExplainIf(ctx, args[0], client, qtype, at, terms)
			})
			if err != nil {
				return err
			}
			return a.show(e, func() { printExplanation(a.out, a.style, e, terms) })
		},
		ValidArgsFunction: a.complete(completeServices),
	}
	c.Flags().StringVarP(&client, "client", "c", "", "address of a client, or prefix as in an ECS option")
	c.Flags().StringVarP(&qtype, "type", "t", "", "A or AAAA; both when left out")
	c.Flags().StringVar(&at, "at", "", "revision or ID of a past snapshot; the present one when left out")
	c.Flags().StringArrayVar(&terms, "if", nil, "explain as if this held: pool.gfe-eu=down, load.gfe-eu=0.9, time=2026-01-31T14:00:00Z …")
	_ = c.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{"A", "AAAA"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// printExplanation writes e for people, in about 90 columns:
//
//	www.example.com for 198.51.100.0/24
//	revision 12, snapshot s90b3c81f25ad, plan 3f9ac01d22b1
//
//	place    Frankfurt, DE, EU  50.11° N 8.68° E
//
//	health   ✓ gfe-eu  2 of 2 endpoints healthy
//	         ✗ gfe-us  0 of 2 endpoints healthy
//	nearest  1 gfe-eu  12 km
//
//	answer   gfe-eu    policy: the first choice of the policy
//	         A         192.0.2.11
//
// terms are what was supposed.
func printExplanation(w io.Writer, s style, e *api.Explanation, terms []string) {
	fmt.Fprintf(w, "%s for %s\n", s.paint(bold, clean(e.Service)), s.paint(bold, clientText(e.Client)))
	if len(terms) > 0 {
		fmt.Fprintln(w, s.paint(yellow, "as if "+clean(strings.Join(terms, ", "))))
	}
	fmt.Fprintln(w, s.paint(dim, fmt.Sprintf("revision %d, snapshot %s, plan %s", e.Revision, e.Snapshot, shortPlan(e.Plan))))
	fmt.Fprintln(w)

	var stages []cell3
	for _, st := range e.Stages {
		stages = append(stages, stageRows(st)...)
	}
	answer := answerRows(e)
	t := table{least: leastWidths(append(stages, answer...), "place")}
	t.add(cell{"place", cyan}, cell{text: placeText(&e.Place)})
	t.write(w, s)
	for _, rows := range [][]cell3{stages, answer} {
		fmt.Fprintln(w)
		t.rows = nil
		for _, r := range rows {
			t.add(r[:]...)
		}
		t.write(w, s)
	}
}

// cell3 is one row of an explanation: what it is of, its subject, and what is said of it.
type cell3 [3]cell

// leastWidths are widths of the first two columns that hold all of rows and label.
func leastWidths(rows []cell3, label string) []int {
	least := []int{utf8.RuneCountInString(label), 0}
	for _, r := range rows {
		for i := range least {
			least[i] = max(least[i], utf8.RuneCountInString(r[i].text))
		}
	}
	return least
}

// stageRows are the rows of one stage: what it kept, in order, then what it dropped. What it
// demoted is among the kept, with why.
func stageRows(st gslb.StageTrace) []cell3 {
	var rows []cell3
	add := func(mark, colour string, c gslb.CandidateTrace) {
		r := cell3{{}, {mark + " " + c.Pool, colour}, {text: c.Note}}
		if len(rows) == 0 {
			r[0] = cell{st.Stage, cyan}
		}
		rows = append(rows, r)
	}
	if st.Note != "" { // what it found of the client, not of the pools
		return []cell3{{{st.Stage, cyan}, {}, {text: st.Note}}}
	}
	lost := map[string]gslb.CandidateTrace{}
	for _, c := range st.Lost {
		lost[c.Pool] = c
	}
	for i, c := range st.Kept {
		demoted, ok := lost[c.Pool]
		switch {
		case ok:
			add("↓", yellow, demoted)
			delete(lost, c.Pool)
		case st.Stage == "pools" && c.Note != "":
			add("!", yellow, c) // admitted with a remark: drained, standby
		case ranked(st.Stage):
			add(fmt.Sprint(i+1), green, c)
		default:
			add("✓", green, c)
		}
	}
	for _, c := range st.Lost {
		if _, ok := lost[c.Pool]; !ok {
			continue
		}
		if st.Stage == "select" {
			add("·", dim, c) // good enough, but not the best
		} else {
			add("✗", red, c)
		}
	}
	if len(rows) == 0 {
		rows = append(rows, cell3{{st.Stage, cyan}, {"nothing left", red}})
	}
	return rows
}

// ranked tells whether the order of what a stage keeps is its point.
func ranked(stage string) bool {
	switch stage {
	case "failover", "nearest", "affinity", "rtt", "weighted", "sticky":
		return true
	}
	return false
}

// answerRows are the rows of what is answered.
func answerRows(e *api.Explanation) []cell3 {
	rows := []cell3{{{"answer", cyan}, {cmp.Or(e.Pool, "no pool"), bold}, {reasonText(e.Reason), reasonColour(e.Reason)}}}
	add := func(what, text string) { rows = append(rows, cell3{{}, {text: what}, {text: text}}) }
	for _, addr := range e.Answers {
		if addr.Is6() {
			add("AAAA", addr.String())
		} else {
			add("A", addr.String())
		}
	}
	switch {
	case e.Flat:
		add("A, AAAA", "those of "+e.CNAME+": an apex cannot be an alias")
	case e.CNAME != "":
		add("CNAME", e.CNAME)
	}
	if len(e.Targets) > 0 {
		add("targets", strings.Join(e.Targets, ", then "))
	}
	if len(e.Answers) == 0 && e.CNAME == "" && e.Reason != "servfail" {
		add("none", "no endpoint of this family: NODATA")
	}
	add("TTL", fmt.Sprintf("%d s", e.TTL))
	add("scope", scopeText(e.Client.Addr(), e.Scope))
	return rows
}

// clientText is a client as people name it: an address without its full length.
func clientText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// placeText says where a client is.
func placeText(p *geo.Place) string {
	var names []string
	for _, n := range []string{p.City, p.Country, p.Continent} {
		if n != "" {
			names = append(names, n)
		}
	}
	parts := []string{}
	if len(names) > 0 {
		parts = append(parts, strings.Join(names, ", "))
	}
	if p.Located {
		parts = append(parts, degrees(p.Lat, "N", "S")+" "+degrees(p.Lon, "E", "W"))
	}
	if p.ASN != 0 {
		parts = append(parts, fmt.Sprintf("AS%d", p.ASN))
	}
	if p.Site != "" {
		parts = append(parts, "set to site "+p.Site)
	}
	if len(parts) == 0 {
		return "unknown: no database or override holds this address"
	}
	return strings.Join(parts, "  ")
}

// degrees writes a coordinate with the letter of its half.
func degrees(v float64, positive, negative string) string {
	if v < 0 {
		return fmt.Sprintf("%.2f° %s", -v, negative)
	}
	return fmt.Sprintf("%.2f° %s", v, positive)
}

// reasons says what the engine's reasons mean.
var reasons = map[string]string{
	"policy":   "the first choice of the policy",
	"trickle":  "this client is of the share that goes elsewhere",
	"overflow": "the first choice takes only a share of its clients, and not this one",
	"failover": "the first choice was down or drained",
	"degraded": "every pool left is under its minHealthy",
	"standby":  "only standby pools were left",
	"drained":  "only drained pools were left",
	"all-down": "nothing was left, so health is ignored (fail open)",
	"fallback": "nothing was left: the service's fallback",
	"servfail": "nothing was left, and the service wants SERVFAIL or its fences leave this client no pool",
}

func reasonText(reason string) string {
	if text, ok := reasons[reason]; ok {
		return reason + ": " + text
	}
	return reason
}

func reasonColour(reason string) string {
	switch reason {
	case "policy", "trickle":
		return green
	case "overflow", "failover", "degraded", "standby", "drained":
		return yellow
	}
	return red
}

// scopeText says for whom the answer holds.
func scopeText(client netip.Addr, scope uint8) string {
	if scope == 0 {
		return "/0: the same answer for everyone"
	}
	p, err := client.Prefix(int(scope))
	if err != nil {
		return fmt.Sprintf("/%d", scope)
	}
	return fmt.Sprintf("/%d: the same answer for all of %s", scope, p)
}
