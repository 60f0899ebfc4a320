package health

import "github.com/meridian-gslb/meridian/gslb"

// State is what this node believes of an endpoint after rise and fall. The zero value is
// Unknown, before any result. In every state that Next returns
//
//	Up:      0 <= Run < fall
//	Down:    0 <= Run < rise
//	Unknown: Run == 0
type State struct {
	Verdict gslb.Verdict
	Run     int // results in a row that contradict Verdict
}

// Next returns the state after one more result. rise successes in a row bring an endpoint
// up, fall failures bring it down; a result that agrees with the verdict ends the run
// against it. From Unknown the first result decides, since it contradicts nothing: an
// endpoint that is dead when a node starts is not served for fall intervals first. A rise
// or fall under 1 counts as 1.
func (s State) Next(ok bool, rise, fall int) State {
	verdict, need := gslb.Down, fall
	if ok {
		verdict, need = gslb.Up, rise
	}
	switch {
	case s.Verdict == gslb.Unknown, s.Verdict == verdict, s.Run+1 >= need:
		return State{Verdict: verdict}
	default:
		return State{Verdict: s.Verdict, Run: s.Run + 1}
	}
}

// Flipping reports whether the verdict may be about to change: the last result contradicted
// it. With a rise or fall of 1 it is never known beforehand.
func (s State) Flipping() bool { return s.Run > 0 }
