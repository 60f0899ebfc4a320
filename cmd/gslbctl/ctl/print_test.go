package ctl

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

func TestTable(t *testing.T) {
	tab := table{head: []string{"NAME", ">N", "TEXT"}}
	tab.add(row("ä", "1", "last")...)
	tab.add(cell{"longer", red}, cell{text: "1234"}, cell{text: "x\x1b[31my\nz"})
	tab.add(row("", "7", "")...)
	rows := []struct {
		name string
		s    style
		want string
	}{
		{"plain", style{}, "" +
			"NAME       N  TEXT\n" +
			"ä          1  last\n" +
			"longer  1234  x\\x1b[31my z\n" +
			"           7\n"},
		{"colour", style{colour: true}, "" +
			"\x1b[2mNAME\x1b[0m       \x1b[2mN\x1b[0m  \x1b[2mTEXT\x1b[0m\n" +
			"ä          1  last\n" +
			"\x1b[31mlonger\x1b[0m  1234  x\\x1b[31my z\n" +
			"           7\n"},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			var b bytes.Buffer
			tab.write(&b, r.s)
			if b.String() != r.want {
				t.Errorf("got\n%q\nwant\n%q", b.String(), r.want)
			}
		})
	}
}

func TestFigures(t *testing.T) {
	rows := []struct{ got, want string }{
		{age(0), "0s"},
		{age(-time.Hour), "0s"},
		{age(59*time.Second + 400*time.Millisecond), "59s"},
		{age(192 * time.Second), "3m12s"},
		{age(2*time.Hour + 5*time.Minute), "2h05m"},
		{age(76 * time.Hour), "3d4h"},
		{short(0), "0 ms"},
		{short(150 * time.Microsecond), "0.15 ms"},
		{short(12345 * time.Microsecond), "12.3 ms"},
		{short(999600 * time.Microsecond), "1000 ms"},
		{short(2 * time.Second), "2.0 s"},
		{number(0), "0"},
		{number(999), "999"},
		{number(1234567), "1,234,567"},
		{count(1, "pool"), "1 pool"},
		{count(2, "pool"), "2 pools"},
		{bar(0, 8), ""},
		{bar(1, 4), "████"},
		{bar(0.53125, 4), "██▏"},
		{clock(at, at), "13:50Z"},
		{clock(at.Add(time.Second), at), "13:50:01Z"},
		{clock(at.AddDate(0, 0, 1), at), "2026-01-03 13:50Z"},
	}
	for _, r := range rows {
		if r.got != r.want {
			t.Errorf("got %q, want %q", r.got, r.want)
		}
	}
}

// TestLineDiffProperty patches random texts with their difference: what is kept or taken
// out is the old text, what is kept or put in is the new one.
func TestLineDiffProperty(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	text := func() []string {
		out := make([]string, r.IntN(12))
		for i := range out {
			out[i] = string(rune('a' + r.IntN(4)))
		}
		return out
	}
	for range 2000 {
		a, b := text(), text()
		var was, is []string
		for _, l := range lineDiff(a, b, 100) {
			if l == "@" { // only equal texts have nothing near a change
				was, is = a, a
				break
			}
			if l[0] != '+' {
				was = append(was, l[2:])
			}
			if l[0] != '-' {
				is = append(is, l[2:])
			}
		}
		if strings.Join(was, "") != strings.Join(a, "") || strings.Join(is, "") != strings.Join(b, "") {
			t.Fatalf("difference of %q and %q: %q", a, b, lineDiff(a, b, 100))
		}
	}
}

func TestLineDiff(t *testing.T) {
	a := strings.Split("1 2 3 4 5 6 7 8 9", " ")
	b := strings.Split("1 2 3 4 five 6 7 8 9", " ")
	got := strings.Join(lineDiff(a, b, 1), "\n")
	want := "@\n  4\n- 5\n+ five\n  6\n@"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestWeights checks the column of weights, which must not grow with the services.
func TestWeights(t *testing.T) {
	o := &config.Objects{Pools: map[string]config.Pool{"p": {}, "unused": {}}, Services: map[string]config.Service{}}
	for i, want := range []string{"0", "s0 0, s1 1", "s0 0, s1 1, s2 2", "s0 0, s1 1, … 2 more", "s0 0, s1 1, … 3 more"} {
		o.Services[fmt.Sprint("s", i)] = config.Service{Steering: config.Steering{Pools: map[string]config.PoolRef{"p": {Weight: &i}}}}
		if got := weights(o); got["p"] != want || got["unused"] != "" {
			t.Errorf("%d services: %q, want %q", i+1, got, want)
		}
	}
}
