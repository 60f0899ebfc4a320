package run

import (
	"os"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		name string
		ds   []time.Duration
		want time.Duration
	}{
		{"one", []time.Duration{3}, 3},
		{"odd", []time.Duration{9, 1, 5}, 5},
		{"even", []time.Duration{8, 2, 4, 100}, 6},
	} {
		if got := Median(tt.ds); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestUsage(t *testing.T) {
	before, _, err := Usage(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for { // until it shows
		cpu, rss, err := Usage(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if rss < 1<<20 {
			t.Fatalf("resident: got %d octets, want some megabytes", rss)
		}
		if cpu > before {
			break
		}
	}
	if _, _, err := Usage(1 << 30); err == nil {
		t.Error("a process that is not there: got no error")
	}
}
