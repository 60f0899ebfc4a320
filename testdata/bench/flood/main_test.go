package main

import (
	"testing"
	"time"
)

// TestFloods is the command in a short form: floods bounded in number, and resolvers that wait
// longer than a busy machine stalls.
func TestFloods(t *testing.T) {
	const packets = 30_000
	rows, err := measure(options{each: 1500 * time.Millisecond, most: packets, patience: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := judge(rows); err != nil {
		t.Error(err)
	}
	for i, r := range rows {
		if floods[i].name != "none" && r.sent == 0 || r.sent > packets+batch+connectors {
			t.Errorf("%s: got %d sent", r.flood, r.sent)
		}
	}
	t.Log("\n" + report(options{}, rows))
}

// TestJudge gives what must be found at fault.
func TestJudge(t *testing.T) {
	good := score{100, 99, 99}
	of := func(memory int64, scores ...score) row { return row{memory: memory, resolvers: [3]score(scores)} }
	for _, tt := range []struct {
		name  string
		row   row
		fault bool
	}{
		{"as it should be", of(50<<20, good, good, good), false},
		{"others need a second try", of(50<<20, good, score{100, 50, 99}, score{100, 50, 100}), false},
		{"the listed one needs one", of(50<<20, score{100, 98, 100}, good, good), true},
		{"lost to the one with a cookie", of(50<<20, good, score{100, 98, 98}, good), true},
		{"nobody asked over TCP", of(50<<20, good, good, score{}), true},
		{"memory", of(200<<20, good, good, good), true},
	} {
		if err := judge([]row{of(50<<20, good, good, good), tt.row}); (err != nil) != tt.fault {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
}
