package gslb

import (
	"math"
	"testing"
	"time"
)

// TestObserve follows an average: the first sample is taken as it is, each later one moves it
// by an eighth, and what is no time does not count.
func TestObserve(t *testing.T) {
	var r RTT
	for i, step := range []struct {
		ms      float64
		want    float64
		samples int
		at      time.Duration
	}{{80, 80, 1, 0}, {160, 90, 2, 1}, {math.NaN(), 90, 2, 1}, {-1, 90, 2, 1}, {math.Inf(1), 90, 2, 1}, {10, 80, 3, 5}} {
		r = r.Observe(step.ms, now.Add(time.Duration(i)*time.Second))
		if r.Millis != step.want || r.Samples != step.samples || r.At.Sub(now) != step.at*time.Second {
			t.Errorf("step %d, %v ms: %+v; want %v ms of %d samples, the last after %d s", i, step.ms, r, step.want, step.samples, step.at)
		}
	}
	if r = r.Observe(80, now); !r.At.Equal(now.Add(5 * time.Second)) {
		t.Errorf("a late sample moved the time back to %s", r.At)
	}
}
