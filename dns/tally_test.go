package dns

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/meridian-gslb/meridian/gslb"
)

// TestTally counts decisions of more kinds than a tally has room for, and replies, out of two snapshots of one
// configuration in turn, and publishes now and then: nothing is lost, and nothing counted twice.
func TestTally(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	snapshots := make([]*gslb.Snapshot, 2)
	for i := range snapshots {
		s := &gslb.Snapshot{}
		for j := range 20 {
			s.Pools = append(s.Pools, &gslb.Pool{Name: string(rune('a' + j)), Index: j})
		}
		for j := range 30 {
			s.Services = append(s.Services, &gslb.Service{Name: string(rune('A' + j)), Index: j})
		}
		snapshots[i] = s
	}
	c := new(counters)
	counted := &tally{counters: c}
	want, rcodes := make(map[poolKey]uint64), make(map[string]uint64)
	for step := range 50_000 {
		s := snapshots[step/1000%2]
		d := &gslb.Decision{Service: s.Services[random.IntN(30)], Reason: gslb.Reason(random.IntN(reasons)), Flags: gslb.Flags(random.IntN(4))}
		key := poolKey{service: d.Service.Name, reason: d.Reason}
		if pool := random.IntN(21); pool < 20 {
			d.Pool = s.Pools[pool]
			key.pool = d.Pool.Name
		}
		if k := counted.countDecision(s, d); k.kind != kindOf(s, d) || k.n == 0 {
			t.Fatalf("step %d: got the count %+v", step, *k)
		}
		want[key]++
		r := &reply{rcode: random.IntN(rcodeNotImplemented + 1), resolved: step%3 == 0}
		counted.countReply(r)
		rcodes[rcodeNames[r.rcode]]++
		if random.IntN(publishAfter/4) == 0 {
			counted.publish()
			if counted.n != 0 {
				t.Fatalf("%d replies left after they were published", counted.n)
			}
		}
	}
	counted.publish()
	got, stats := make(map[poolKey]uint64), Stats{Rcodes: make(map[string]uint64), Outcomes: make(map[string]uint64), Reasons: make(map[string]uint64)}
	c.addTo(&stats, got)
	if !maps.Equal(got, want) {
		t.Errorf("published %d kinds of decisions, counted %d, or not as often", len(got), len(want))
	}
	for rcode, n := range stats.Rcodes {
		if n != rcodes[rcode] {
			t.Errorf("published %d %s, counted %d", n, rcode, rcodes[rcode])
		}
	}
}

// TestTalliesTogether has goroutines count into the same counters, as those of TCP do, out of two
// snapshots with other services: each replaces the table of the other, and nothing is lost.
func TestTalliesTogether(t *testing.T) {
	const goroutines, each = 4, 3000
	snapshots := make([]*gslb.Snapshot, 2)
	for i := range snapshots {
		snapshots[i] = &gslb.Snapshot{}
		for j := range 100 {
			snapshots[i].Services = append(snapshots[i].Services, &gslb.Service{Name: fmt.Sprintf("%d-%d", i, j), Index: j})
		}
	}
	c := &counters{shared: true}
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			s := snapshots[i%2]
			counted := &tally{counters: c}
			for j := range each {
				counted.countDecision(s, &gslb.Decision{Service: s.Services[j%len(s.Services)]})
				counted.publish()
			}
		})
	}
	wg.Wait()
	pools, sum := make(map[poolKey]uint64), uint64(0)
	c.addTo(&Stats{Rcodes: map[string]uint64{}, Outcomes: map[string]uint64{}, Reasons: map[string]uint64{}}, pools)
	for _, n := range pools {
		sum += n
	}
	if sum != goroutines*each {
		t.Errorf("published %d decisions, counted %d", sum, goroutines*each)
	}
}
