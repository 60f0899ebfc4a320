package health

import (
	"math/rand/v2"
	"testing"

	"github.com/meridian-gslb/meridian/gslb"
)

func TestStateNext(t *testing.T) {
	const rise, fall = 2, 3
	for _, tc := range []struct {
		name    string
		from    State
		results string // + success, - failure
		want    State
	}{
		{"nothing known, nothing said", State{}, "", State{}},
		{"first success decides", State{}, "+", State{Verdict: gslb.Up, Run: 0}},
		{"first failure decides", State{}, "-", State{Verdict: gslb.Down, Run: 0}},
		{"one failure is a run", State{Verdict: gslb.Up, Run: 0}, "-", State{Verdict: gslb.Up, Run: 1}},
		{"one short of fall", State{Verdict: gslb.Up, Run: 0}, "--", State{Verdict: gslb.Up, Run: 2}},
		{"fall", State{Verdict: gslb.Up, Run: 0}, "---", State{Verdict: gslb.Down, Run: 0}},
		{"success ends the run", State{Verdict: gslb.Up, Run: 0}, "--+", State{Verdict: gslb.Up, Run: 0}},
		{"runs do not add up", State{Verdict: gslb.Up, Run: 0}, "--+--", State{Verdict: gslb.Up, Run: 2}},
		{"one success is a run", State{Verdict: gslb.Down, Run: 0}, "+", State{Verdict: gslb.Down, Run: 1}},
		{"rise", State{Verdict: gslb.Down, Run: 0}, "++", State{Verdict: gslb.Up, Run: 0}},
		{"failure ends the rise", State{Verdict: gslb.Down, Run: 0}, "+-+", State{Verdict: gslb.Down, Run: 1}},
		{"down and back", State{Verdict: gslb.Up, Run: 0}, "---++", State{Verdict: gslb.Up, Run: 0}},
		{"fall was lowered during a run", State{Verdict: gslb.Up, Run: 7}, "-", State{Verdict: gslb.Down, Run: 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tc.from
			for _, r := range tc.results {
				s = s.Next(r == '+', rise, fall)
			}
			if s != tc.want {
				t.Errorf("after %q: got %+v, want %+v", tc.results, s, tc.want)
			}
			if got, want := s.Flipping(), tc.want.Run > 0; got != want {
				t.Errorf("after %q: flipping is %v, want %v", tc.results, got, want)
			}
		})
	}
}

// TestStateTwin compares the machine with a look at the whole history: the verdict is that of
// the last time a run was long enough.
func TestStateTwin(t *testing.T) {
	for range 200 {
		rise, fall := rand.IntN(4), 1+rand.IntN(4) // a rise of 0 counts as 1
		var s State
		var history []bool
		for range 60 {
			history = append(history, rand.IntN(3) > 0)
			s = s.Next(history[len(history)-1], rise, fall)
			if got, want := s, slowState(history, max(rise, 1), fall); got != want {
				t.Fatalf("rise %d, fall %d, after %v: got %+v, want %+v", rise, fall, history, got, want)
			}
			if bound := map[gslb.Verdict]int{gslb.Up: fall, gslb.Down: max(rise, 1)}[s.Verdict]; s.Run < 0 || s.Run >= bound {
				t.Fatalf("run %d is not within 0..%d", s.Run, bound-1)
			}
		}
	}
}

func slowState(history []bool, rise, fall int) State {
	verdict := history[0]
	run := 0
	for i := range history {
		for run = 0; run <= i && history[i-run] != verdict; run++ {
		}
		if need := map[bool]int{true: fall, false: rise}[verdict]; run >= need {
			verdict, run = !verdict, 0
		}
	}
	return State{Verdict: map[bool]gslb.Verdict{true: gslb.Up, false: gslb.Down}[verdict], Run: run}
}
