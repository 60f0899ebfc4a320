package node

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// TestShedSettles runs users against a stage: each asks again as its answer expires, and is
// handed on or not by what is told then. With the damper their share comes to rest whatever the
// overload and the stage; told the load itself, a narrow stage has all of them come and go.
func TestShedSettles(t *testing.T) {
	const ttl, late = 10, 3 // seconds, in steps of one; how old the load is that is seen
	// The load that is seen is an average over some seconds, as load reports are.
	// run returns the lowest and the highest load of the last of ten minutes. Answers live for
	// lives seconds.
	run := func(demand float64, stage config.ShedStage, lives int, damped bool) (lo, hi float64) {
		now := time.Unix(1e9, 0)
		var d damper
		given := make([]float64, lives) // share of the users who asked in each second, by second, that are kept
		for i := range given {
			given[i] = 1
		}
		lo = math.Inf(1)
		seen, past := demand, make([]float64, late)
		for i := range past {
			past[i] = demand
		}
		for second := range 600 {
			load := 0.0
			for _, kept := range given {
				load += demand * kept / float64(lives)
			}
			old := past[second%late]
			past[second%late] = load
			seen += (old - seen) * (1 - math.Exp(-1.0/3))
			told := seen
			if damped {
				told = d.settle(seen, stage.Keeps, ttl*time.Second, now)
			}
			given[second%lives] = stage.Keeps(told)
			if now = now.Add(time.Second); second >= 540 {
				lo, hi = min(lo, load), max(hi, load)
			}
		}
		return lo, hi
	}
	narrow := config.ShedStage{Low: 0.9, High: 1}
	if lo, hi := run(2, narrow, ttl, false); hi-lo < 0.5 {
		t.Errorf("without the damper the load stays within %.2f and %.2f: the test shows nothing", lo, hi)
	}
	for _, stage := range []config.ShedStage{narrow, {Low: 0.8, High: 1}, {Low: 0.99, High: 1}, {Low: 1, High: 3}} {
		for _, demand := range []float64{0.5, 1.1, 1.5, 2, 5} {
			for _, lives := range []int{ttl / 2, ttl, 2 * ttl} { // resolvers that keep answers longer, or users that ask more often
				want := agree(demand, stage.Keeps)
				lo, hi := run(demand, stage, lives, true)
				if within := 0.05*demand + 0.02; lo < want-within || hi > want+within {
					t.Errorf("demand %.1f, shed from %v to %v, answers of %d s: load %.2f to %.2f, want %.2f ± %.2f", demand, stage.Low, stage.High, lives, lo, hi, want, within)
				}
			}
		}
	}
}

// TestAgree wants the load at which what is kept of a demand is that load.
func TestAgree(t *testing.T) {
	stage := config.ShedStage{Low: 0.8, High: 1}
	for demand, want := range map[float64]float64{0: 0, 0.5: 0.5, 0.8: 0.8, 1.5: 15.0 / 17, 1e6: 1} {
		if got := agree(demand, stage.Keeps); math.Abs(got-want) > 1e-4 {
			t.Error(fmt.Sprint(demand), got, want)
		}
	}
	if got := agree(3, func(float64) float64 { return 1 }); got != 3 {
		t.Errorf("nobody is handed on: %v, want all", got)
	}
}
