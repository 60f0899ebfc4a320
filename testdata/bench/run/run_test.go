package run

import (
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
