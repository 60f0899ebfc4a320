package ctl

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meridian-gslb/meridian/admin/api"
)

// errDone ends a stream that has shown what it was asked for.
var errDone = errors.New("done")

// topCommand shows live rates.
func (a *app) topCommand() *cobra.Command {
	var interval time.Duration
	var n int
	c := &cobra.Command{
		Use:   "top",
		Short: "Show live queries per second by pool",
		Long:  "Show live queries per second by service and pool, until ^C. On a terminal the table stays in its\nplace; elsewhere each interval adds lines.",
		Args:  args(),
		RunE: func(c *cobra.Command, _ []string) error {
			if interval < 200*time.Millisecond || interval > time.Hour {
				return usage("--interval %s: expected 200ms..1h", interval)
			}
			if n < 0 {
				return usage("--count %d: expected 0 (until ^C) or more", n)
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			var last *api.Counters
			shown := 0
			err = client.FollowTop(c.Context(), interval, func(now *api.Counters) error {
				before := last
				last = now
				if before == nil {
					return nil
				}
				if err := a.printRates(rates(before, now)); err != nil {
					return err
				}
				if shown++; shown == n || a.out.err != nil {
					return errDone
				}
				return nil
			})
			if errors.Is(err, errDone) || errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
	c.Flags().DurationVarP(&interval, "interval", "i", time.Second, "time between two samples, 200ms..1h")
	c.Flags().IntVarP(&n, "count", "n", 0, "end after so many samples; 0: until ^C")
	return c
}

// Rates are two readings of the counters as rates per second.
type Rates struct {
	Time    time.Time  `json:"time"`
	Seconds float64    `json:"seconds"` // between the two readings
	Queries float64    `json:"queries"` // per second
	Dropped float64    `json:"dropped"` // per second
	Pools   []PoolRate `json:"pools"`   // busiest first
}

// PoolRate is the rate of one service's decisions for one pool, and of those among them that were
// not simply the policy's first choice.
type PoolRate struct {
	Service string  `json:"service"`
	Pool    string  `json:"pool"`
	Rate    float64 `json:"rate"`  // decisions per second
	Share   float64 `json:"share"` // of the service's, 0..1

	Reasons map[string]float64 `json:"reasons,omitempty"` // decisions per second by reason, but for policy
}

// rates is what happened from a to b. A counter that fell (the node started again) counts
// from zero.
func rates(a, b *api.Counters) *Rates {
	seconds := b.Time.Sub(a.Time).Seconds()
	if seconds <= 0 {
		seconds = 1
	}
	per := func(was, is uint64) float64 {
		if is < was {
			was = 0
		}
		return float64(is-was) / seconds
	}
	sum := func(m map[string]uint64) (n uint64) {
		for _, v := range m {
			n += v
		}
		return n
	}
	r := &Rates{Time: b.Time, Seconds: seconds, Queries: per(a.Queries, b.Queries), Dropped: per(sum(a.Dropped), sum(b.Dropped)), Pools: []PoolRate{}}
	was := map[api.Answers]uint64{}
	name := func(x api.Answers) api.Answers { x.Count = 0; return x }
	for _, x := range a.Answers {
		was[name(x)] = x.Count
	}
	total := map[string]float64{}
	for _, x := range b.Answers { // ordered by service and pool
		if n := len(r.Pools); n == 0 || r.Pools[n-1].Service != x.Service || r.Pools[n-1].Pool != x.Pool {
			r.Pools = append(r.Pools, PoolRate{Service: x.Service, Pool: x.Pool})
		}
		p, rate := &r.Pools[len(r.Pools)-1], per(was[name(x)], x.Count)
		p.Rate += rate
		total[x.Service] += rate
		if rate > 0 && x.Reason != "" && x.Reason != "policy" {
			if p.Reasons == nil {
				p.Reasons = map[string]float64{}
			}
			p.Reasons[x.Reason] += rate
		}
	}
	for i := range r.Pools {
		if t := total[r.Pools[i].Service]; t > 0 {
			r.Pools[i].Share = r.Pools[i].Rate / t
		}
	}
	slices.SortStableFunc(r.Pools, func(x, y PoolRate) int {
		return cmp.Or(cmp.Compare(y.Rate, x.Rate), cmp.Compare(x.Service, y.Service), cmp.Compare(x.Pool, y.Pool))
	})
	return r
}

// printRates shows one sample: in place on a terminal, as lines elsewhere.
func (a *app) printRates(r *Rates) error {
	if a.output != "table" || !a.style.terminal {
		return a.show(r, func() { printRateLines(a.out, r) })
	}
	var b bytes.Buffer
	printRateTable(&b, a.style, r)
	lines := strings.SplitAfter(b.String(), "\n")
	if h := a.style.height; h > 1 && len(lines) > h {
		lines = lines[:h-1]
	}
	// Home, the lines each cleared to its end, then what is left of the screen (ECMA-48).
	fmt.Fprint(a.out, "\x1b[H", strings.ReplaceAll(strings.Join(lines, ""), "\n", "\x1b[K\n"), "\x1b[J")
	return nil
}

func printRateLines(w io.Writer, r *Rates) {
	at := r.Time.Format("15:04:05")
	fmt.Fprintf(w, "%s  total  %.1f q/s  %.1f dropped/s\n", at, r.Queries, r.Dropped)
	t := table{head: []string{"", "", "", ">", ">", ""}}
	for _, p := range r.Pools {
		t.add(row(at, p.Service, cmp.Or(p.Pool, "(none)"), fmt.Sprintf("%.1f q/s", p.Rate), fmt.Sprintf("%.1f %%", p.Share*100), p.why())...)
	}
	t.write(w, style{})
}

func printRateTable(w io.Writer, s style, r *Rates) {
	fmt.Fprintf(w, "%s  %s q/s, %.1f dropped/s\n\n", r.Time.Format("15:04:05"), s.paint(bold, fmt.Sprintf("%.1f", r.Queries)), r.Dropped)
	t := table{head: []string{"SERVICE", "POOL", ">Q/S", ">SHARE", "", ""}}
	for _, p := range r.Pools {
		t.add(cell{text: p.Service}, cell{text: cmp.Or(p.Pool, "(none)")}, cell{text: fmt.Sprintf("%.1f", p.Rate)},
			cell{text: fmt.Sprintf("%.1f %%", p.Share*100)}, cell{bar(p.Share, 24), green}, cell{p.why(), yellow})
	}
	t.write(w, s)
}

// why says which part of the decisions was not the policy's first choice, and for what reasons.
func (p *PoolRate) why() string {
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(p.Reasons)) {
		parts = append(parts, fmt.Sprintf("%s %.0f %%", reason, p.Reasons[reason]/p.Rate*100))
	}
	return strings.Join(parts, ", ")
}

// bar draws a share, 0..1, in at most width columns with an eighth's precision.
func bar(share float64, width int) string {
	eighths := int(share*float64(width*8) + 0.5)
	text := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		text += string([]rune(" ▏▎▍▌▋▊▉")[rest])
	}
	return text
}
