package health

import (
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// State is what this node believes of an endpoint after rise and fall. The zero value is
// Unknown, before any result. In every state that Next returns
//
//	Up:      0 <= Run < fall
//	Down:    0 <= Run < rise
//	Unknown: Run == 0
type State struct {
	Verdict gslb.Verdict
	Run     int     // results in a row that contradict Verdict
	Level   float64 // of the counter of brown-outs, 0..its limit; 0 without one
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

// NextOf returns the state after one more result by all the rules of a probe: rise and fall,
// and the counter of brown-outs. A full counter brings the endpoint down whatever the run of
// failures, and until it is half drained no run of successes brings it up: otherwise an
// endpoint that fails every second probe would be up and down all the time.
func (s State) NextOf(ok bool, p *config.Probe) State {
	n := s.Next(ok, p.Rise, p.Fall)
	b := p.Brownout
	if b == nil {
		return n
	}
	limit, drain := float64(b.Limit), b.Drain
	if drain == 0 {
		drain = defaultDrain
	}
	if n.Level = min(limit, s.Level+1); ok {
		n.Level = max(0, s.Level-drain)
	}
	switch {
	case n.Verdict == gslb.Up && n.Level >= limit:
		n.Verdict, n.Run = gslb.Down, 0
	case s.Verdict == gslb.Down && n.Verdict == gslb.Up && n.Level > limit/2:
		n.Verdict, n.Run = gslb.Down, max(0, p.Rise-1)
	}
	return n
}

// defaultDrain lets a counter of brown-outs bear a fifth of failures.
const defaultDrain = 0.25
