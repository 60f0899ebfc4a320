package health

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// needed returns how many of n must be healthy.
func needed(need string, n int) int {
	switch need {
	case "", "all":
		return n
	case "any":
		return 1
	case "quorum":
		return n/2 + 1
	}
	k, _ := strconv.Atoi(need) // valid by the configuration
	return min(max(1, k), n)
}

// probeAll returns the probe that runs those of t.Of at once, and needs so many of them.
func (p *Prober) probeAll(t Target) func(context.Context) Result {
	probes := make([]func(context.Context) Result, len(t.Of))
	for i, of := range t.Of {
		probes[i] = p.kind(of)
	}
	need := needed(t.Probe.Calculated.Need, len(probes))
	return func(ctx context.Context) Result {
		start := time.Now()
		results := make([]Result, len(probes))
		var wg sync.WaitGroup
		for i, probe := range probes {
			wg.Go(func() { results[i] = probe(ctx) })
		}
		wg.Wait()
		return combine(results, need, time.Since(start))
	}
}

// combine returns the result of several: OK when so many are; Local when they might be, if
// this node could tell; else the first failure.
func combine(results []Result, need int, latency time.Duration) Result {
	ok, local := 0, 0
	var first *Result
	for i := range results {
		switch r := &results[i]; {
		case r.Class == OK:
			ok++
		case r.Class == Local:
			local++
			if first == nil {
				first = r
			}
		default:
			if first == nil || first.Class == Local {
				first = r
			}
		}
	}
	switch {
	case ok >= need:
		return Result{Latency: latency}
	case ok+local >= need:
		return Result{Class: Local, Latency: latency, Detail: first.Detail}
	}
	return Result{Class: first.Class, Latency: latency,
		Detail: clip(fmt.Sprintf("%d of %d, expected %d: %s", ok, len(results), need, first.Detail), maxDetail)}
}

// invert returns the opposite of r. A fault of this node has none.
func invert(r Result) Result {
	switch r.Class {
	case Local:
		return r
	case OK:
		return Result{Class: WrongStatus, Latency: r.Latency, Detail: "inverted: the probe succeeds"}
	}
	return Result{Latency: r.Latency}
}
