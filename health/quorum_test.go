package health

import (
	"math/rand/v2"
	"testing"

	"github.com/meridian-gslb/meridian/gslb"
)

// votesOf reads votes: + up, - down, p up but flipping, m down but flipping.
func votesOf(s string) []Vote {
	var votes []Vote
	for _, r := range s {
		votes = append(votes, Vote{Up: r == '+' || r == 'p', Flipping: r == 'p' || r == 'm'})
	}
	return votes
}

func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		name     string
		last     gslb.Verdict
		votes    string
		want     gslb.Verdict
		flipping bool
	}{
		{"silence keeps unknown", gslb.Unknown, "", gslb.Unknown, false},
		{"silence keeps up", gslb.Up, "", gslb.Up, false},
		{"silence keeps down", gslb.Down, "", gslb.Down, false},
		{"alone up", gslb.Down, "+", gslb.Up, false},
		{"alone down", gslb.Up, "-", gslb.Down, false},
		{"alone failing", gslb.Up, "p", gslb.Up, true},
		{"alone recovering", gslb.Down, "m", gslb.Down, true},
		{"of two one is not enough", gslb.Up, "+-", gslb.Up, false},
		{"of two one is enough for up", gslb.Down, "+-", gslb.Up, false},
		{"of two both", gslb.Up, "--", gslb.Down, false},
		{"of two the second fails", gslb.Up, "p-", gslb.Up, true},
		{"of two one fails", gslb.Up, "+p", gslb.Up, false},
		{"of three one", gslb.Up, "++-", gslb.Up, false},
		{"of three two", gslb.Up, "+--", gslb.Down, false},
		{"of three one down, one failing", gslb.Up, "+p-", gslb.Up, true},
		{"of three one recovers", gslb.Down, "+-m", gslb.Down, true},
		{"two that swap change nothing", gslb.Down, "pm-", gslb.Down, false},
		{"an even four", gslb.Down, "++--", gslb.Up, false},
		{"three of four", gslb.Up, "+---", gslb.Down, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, flipping := Judge(tc.last, votesOf(tc.votes))
			if got != tc.want || flipping != tc.flipping {
				t.Errorf("Judge(%v, %q) = %v, %v, want %v, %v", tc.last, tc.votes, got, flipping, tc.want, tc.flipping)
			}
		})
	}
}

// TestJudgeTwin pairs off up with down and sees what is left; the order must not matter.
func TestJudgeTwin(t *testing.T) {
	for range 2000 {
		votes := make([]Vote, rand.IntN(9))
		for i := range votes {
			votes[i] = Vote{Up: rand.IntN(2) == 0, Flipping: rand.IntN(4) == 0}
		}
		last := gslb.Verdict(rand.IntN(3))
		got, flipping := Judge(last, votes)
		later := make([]Vote, len(votes))
		for i, v := range votes {
			later[i] = Vote{Up: v.Up != v.Flipping}
		}
		want := slowJudge(last, votes)
		if wantFlipping := slowJudge(last, later) != want; got != want || flipping != wantFlipping {
			t.Fatalf("Judge(%v, %+v) = %v, %v, want %v, %v", last, votes, got, flipping, want, wantFlipping)
		}
		rand.Shuffle(len(votes), func(i, j int) { votes[i], votes[j] = votes[j], votes[i] })
		if again, _ := Judge(last, votes); again != got {
			t.Fatalf("Judge(%v, %+v) = %v, in another order %v", last, votes, again, got)
		}
	}
}

func slowJudge(last gslb.Verdict, votes []Vote) gslb.Verdict {
	balance := 0
	for _, v := range votes {
		if v.Up {
			balance++
		} else {
			balance--
		}
	}
	switch {
	case len(votes) == 0:
		return last
	case balance < 0:
		return gslb.Down
	}
	return gslb.Up
}
