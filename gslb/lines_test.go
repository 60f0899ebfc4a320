package gslb

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestLines: whatever an explanation holds, its lines are short, valid and of one line each, and
// hold every pool.
func TestLines(t *testing.T) {
	e := &Explanation{Service: strings.Repeat("a.", 120) + "example", Reason: "policy", Stages: []StageTrace{
		{Stage: "match", Note: strings.Repeat("é", 300)},
		{Stage: "health", Kept: []CandidateTrace{}},
		{Stage: "pools", Lost: []CandidateTrace{{"x", "drained by ann:\nupgrade \xff"}}},
	}}
	for i := range 40 {
		e.Stages[2].Kept = append(e.Stages[2].Kept, CandidateTrace{Pool: fmt.Sprintf("pool-%02d", i), Note: "2 of 2 endpoints healthy"})
	}
	lines := e.Lines()
	all := strings.Join(lines, "\n")
	for _, l := range append(lines, e.Brief(100)) {
		if len(l) > maxLine || !utf8.ValidString(l) || strings.ContainsAny(l, "\n\r\t") {
			t.Errorf("line of %d octets: %q", len(l), l)
		}
	}
	for i := range 40 {
		if want := fmt.Sprintf("pool-%02d (2 of 2 endpoints healthy)", i); strings.Count(all, want) != 1 {
			t.Errorf("%s is not there once, in\n%s", want, all)
		}
	}
	for _, want := range []string{"\n02 health: none\n", "\n03 pools lost: x (drained by ann: upgrade ?)\n", "\n04 answer: no pool by policy: none\n"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if got := e.Brief(60); len(got) != 60 || !strings.HasSuffix(got, "...") || !strings.HasPrefix(got, "no pool by policy; ttl 0, scope 0, revision 0") {
		t.Errorf("brief: %q", got)
	}
}
