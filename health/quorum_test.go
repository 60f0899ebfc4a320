package health

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
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
			j := Judge(defaultRule, tc.last, votesOf(tc.votes))
			got, flipping := j.Verdict, j.Flipping
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
			votes[i] = Vote{Up: rand.IntN(2) == 0, Flipping: rand.IntN(4) == 0, Abstains: rand.IntN(4) == 0}
		}
		last := gslb.Verdict(rand.IntN(3))
		j := Judge(defaultRule, last, votes)
		got, flipping := j.Verdict, j.Flipping
		later := make([]Vote, len(votes))
		for i, v := range votes {
			later[i] = Vote{Up: v.Up != v.Flipping, Abstains: v.Abstains}
		}
		want := slowJudge(last, votes)
		if wantFlipping := slowJudge(want, later) != want; got != want || flipping != wantFlipping {
			t.Fatalf("Judge(%v, %+v) = %v, %v, want %v, %v", last, votes, got, flipping, want, wantFlipping)
		}
		rand.Shuffle(len(votes), func(i, j int) { votes[i], votes[j] = votes[j], votes[i] })
		if again := Judge(defaultRule, last, votes); again != j {
			t.Fatalf("Judge(%v, %+v) = %v, in another order %v", last, votes, again, got)
		}
	}
}

func slowJudge(last gslb.Verdict, votes []Vote) gslb.Verdict {
	balance, all, of := 0, 0, 0
	for _, v := range votes {
		one := -1
		if v.Up {
			one = 1
		}
		all += one
		if !v.Abstains {
			balance += one
			of++
		}
	}
	switch {
	case of == 0, last == gslb.Down && all < 0:
		return last
	case balance < 0:
		return gslb.Down
	}
	return gslb.Up
}

func TestRules(t *testing.T) {
	// Votes are by node a, b, c … in site 1, 2 or 3: "a1+" says up; "!" after it abstains.
	read := func(text string) (votes []Vote) {
		for w := range strings.FieldsSeq(text) {
			votes = append(votes, Vote{Node: w[:1], Site: w[1:2], Up: w[2] == '+', Abstains: strings.HasSuffix(w, "!"), CutOff: strings.HasSuffix(w, "!")})
		}
		return votes
	}
	low := 0.2
	for _, tc := range []struct {
		name  string
		rule  config.Quorum
		votes string
		want  gslb.Verdict
		all   bool // unanimous
	}{
		{"two sites", config.Quorum{}, "a1- b2- c3+", gslb.Down, false},
		{"a majority in one site of two", config.Quorum{}, "a1- b1- c1- d2+", gslb.Up, false},
		{"one site is all there is", config.Quorum{}, "a1- b1- c1+", gslb.Down, false},
		{"one site is enough where it is told so", config.Quorum{Sites: 1}, "a1- b1- c1- d2+", gslb.Down, false},
		{"abstention leaves one site", config.Quorum{}, "a1- b1- c1+ d2+!", gslb.Down, false},
		{"those who abstain have no say", config.Quorum{}, "a1-! b2-! c3+", gslb.Up, true},
		{"all abstain", config.Quorum{}, "a1-! b2-!", gslb.Unknown, true},
		{"a fifth is enough", config.Quorum{Share: &low}, "a1- b2- c3+ d3+ e3+", gslb.Down, false},
		{"but two", config.Quorum{Share: &low}, "a1- b2+ c3+ d3+", gslb.Up, false},
		{"at least three", config.Quorum{Min: 3}, "a1- b2- c3+", gslb.Up, false},
		{"at least three of two", config.Quorum{Min: 3}, "a1- b2-", gslb.Down, true},
		{"must be healthy", config.Quorum{MustBeHealthy: []string{"a"}}, "a1- b2+ c3+", gslb.Down, false},
		{"a site must be healthy", config.Quorum{MustBeHealthy: []string{"1"}}, "a1- b2+ c3+", gslb.Down, false},
		{"must be healthy, but abstains", config.Quorum{MustBeHealthy: []string{"a"}}, "a1-! b2+ c3+", gslb.Up, true},
		{"monitor only", config.Quorum{MonitorOnly: []string{"a", "2"}}, "a1- b2- c3+ d3+", gslb.Up, true},
		{"nobody else", config.Quorum{MonitorOnly: []string{"a", "2"}}, "a1- b2-", gslb.Unknown, true},
	} {
		j := Judge(ruleOf(&tc.rule), gslb.Unknown, read(tc.votes))
		if j.Verdict != tc.want || j.Unanimous != tc.all || j.Silent != (tc.want == gslb.Unknown) || j.Why() == "" {
			t.Errorf("%s: got %+v, want %v", tc.name, j, tc.want)
		}
	}
}

// TestUnsure: what is down stays down while those that abstain would make it so, and it takes none
// of them to bring anything down.
func TestUnsure(t *testing.T) {
	for _, tc := range []struct {
		votes  string // + up, - down, x down and abstains, * up and abstains
		want   gslb.Verdict
		unsure bool
	}{
		{"+-x", gslb.Down, true},
		{"+xx", gslb.Down, true},
		{"++x", gslb.Up, false},
		{"++-x", gslb.Up, false},
		{"+-*", gslb.Up, false},
		{"--*", gslb.Down, false},
		{"-+***", gslb.Up, false},
		{"xx", gslb.Down, false}, // silence
	} {
		var votes []Vote
		for i, r := range tc.votes {
			votes = append(votes, Vote{Node: fmt.Sprint(i), Site: fmt.Sprint(i), Up: r == '+' || r == '*', Abstains: r == 'x' || r == '*'})
		}
		j := Judge(defaultRule, gslb.Down, votes)
		if j.Verdict != tc.want || j.Unsure != tc.unsure || j.Unsure && j.Unanimous {
			t.Errorf("%s, down before: got %+v, want %v, unsure %v", tc.votes, j, tc.want, tc.unsure)
		}
		if j := Judge(defaultRule, gslb.Up, votes); j.Unsure || tc.unsure && j.Verdict != gslb.Up {
			t.Errorf("%s, up before: got %+v, want what those say that count", tc.votes, j)
		}
	}
	// All that test it are doubted for what else fails for them.
	fails := func(sites string) (votes []Vote) {
		for i, r := range sites {
			votes = append(votes, Vote{Node: fmt.Sprint(i), Site: string(r), Abstains: true})
		}
		return votes
	}
	with := func(votes []Vote, more Vote) []Vote { return append(votes, more) }
	for _, tc := range []struct {
		name  string
		votes []Vote
		want  gslb.Verdict
	}{
		{"in two sites", fails("ab"), gslb.Down},
		{"in one", fails("aa"), gslb.Up},
		{"alone", fails("a"), gslb.Up},
		{"one of them says up", with(fails("ab"), Vote{Site: "c", Up: true, Abstains: true}), gslb.Up},
		{"one is cut off", with(fails("ab"), Vote{Site: "c", Abstains: true, CutOff: true}), gslb.Up},
		{"one that is believed says up", with(fails("ab"), Vote{Site: "c", Up: true}), gslb.Up},
	} {
		j := Judge(Rule{Share: defaultShare, Min: 1, Sites: 1}, gslb.Up, tc.votes)
		if j.Verdict != tc.want || j.Agreed != (tc.want == gslb.Down) || j.Agreed && (j.Silent || j.Unanimous) {
			t.Errorf("all are doubted, %s: got %+v, want %v", tc.name, j, tc.want)
		}
	}
	must := Rule{Share: defaultShare, Min: 1, Sites: 1, MustBeHealthy: []string{"a"}}
	if j := Judge(must, gslb.Down, []Vote{{Node: "a", Abstains: true}, {Node: "b", Up: true}, {Node: "c", Up: true}}); j.Verdict != gslb.Up {
		t.Errorf("one that must be healthy abstains: got %+v, want up", j)
	}
}

func TestDoubtful(t *testing.T) {
	for _, tc := range []struct {
		name  string
		nodes string // node, site, percent; ! abstains by itself
		want  string
	}{
		{"none", "a1:0 b2:50 c3:10", ""},
		{"one sees much fail", "a1:80 b2:0 c3:10", "a"},
		{"most see much fail", "a1:80 b2:51 c3:10", ""},
		{"most, but all in one site", "a1:80 b1:90 c2:0", "ab"},
		{"alone", "a1:100", ""},
		{"one of two", "a1:100 b2:0", "a"},
		{"cut off", "a1:0! b2:0 c3:0", "a"},
		{"cut off and much fails", "a1:100! b2:100 c3:100", "a"},
	} {
		var alive []Doubt
		for w := range strings.FieldsSeq(tc.nodes) {
			d := Doubt{Node: w[:1], Site: w[1:2], Abstains: strings.HasSuffix(w, "!")}
			if _, err := fmt.Sscanf(strings.TrimSuffix(w[3:], "!"), "%d", &d.Failing); err != nil {
				t.Fatal(err)
			}
			alive = append(alive, d)
		}
		if got := strings.Join(slices.Sorted(maps.Keys(doubtful(slices.Values(alive)))), ""); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}
