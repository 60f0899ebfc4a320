package health

import "github.com/meridian-gslb/meridian/gslb"

// Vote is what one fresh vantage says of an endpoint.
type Vote struct {
	Node     string
	Site     string
	Up       bool
	Flipping bool // it may say the opposite soon
}

// Judge returns the verdict of the votes, and whether it would change if every vantage that
// may be about to change its mind did.
//
// Down needs more than half: a false "up" costs some clients a retry, a false "down" takes
// capacity from all. So of two vantages both must say it, of three two; an even split is up.
// Without any vote the last verdict stays: silence is no evidence. Judge depends on nothing
// but its arguments, and not on the order of votes, so that nodes with the same table agree.
func Judge(last gslb.Verdict, votes []Vote) (verdict gslb.Verdict, flipping bool) {
	down, later := 0, 0
	for _, v := range votes {
		if !v.Up {
			down++
		}
		if v.Up == v.Flipping { // what it says after the flip, if there is one, is down
			later++
		}
	}
	verdict = majority(last, down, len(votes))
	return verdict, majority(last, later, len(votes)) != verdict
}

func majority(last gslb.Verdict, down, of int) gslb.Verdict {
	switch {
	case of == 0:
		return last
	case 2*down > of:
		return gslb.Down
	default:
		return gslb.Up
	}
}
