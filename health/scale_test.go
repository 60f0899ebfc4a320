package health

import (
	"context"
	"flag"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// simNodes is how large a fleet TestSimScale simulates: at each commit 100 nodes, and fewer
// with the race detector, under which each of their 13,000 packets a second takes ten times as
// long. The command for the table in testdata/bench/results/health.md is
//
//	go test ./health -run 'TestSimScale' -v -timeout 4h -sim.nodes 1000
var simNodes = flag.Int("sim.nodes", map[bool]int{false: 100, true: 25}[raceEnabled], "nodes that TestSimScale simulates")

// scale starts a fleet over time, as an operator does, with few targets that all probe.
func scale(w *world, nodes, endpoints int) {
	targets := fakeTargets(endpoints)
	for i := range targets {
		targets[i].Probe.Interval = config.Duration(time.Second / 2)
	}
	for i := range nodes {
		w.nodes = append(w.nodes, w.run(i, targets, nil))
		time.Sleep(20 * time.Millisecond)
	}
}

// alike reports whether every node has the same table.
func (w *world) alike() bool {
	digest := func(n *simNode) uint64 {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.table.Digest(time.Now())
	}
	first := digest(w.nodes[0])
	return !slices.ContainsFunc(w.nodes[1:], func(n *simNode) bool { return digest(n) != first })
}

// known returns how many nodes have heard that the first node says down of id.
func (w *world) known(id gslb.EndpointID) (n int) {
	for _, s := range w.nodes {
		s.mu.Lock()
		if v := s.table.nodes["ns0"]; v != nil && !v.observed[id].Up && v.observed[id].ID == id {
			n++
		}
		s.mu.Unlock()
	}
	return n
}

// TestSimScale measures how a large fleet gets to know of a flip, what it says in calm, what it
// calls down when packets are lost, and how it heals.
func TestSimScale(t *testing.T) {
	nodes := *simNodes
	if nodes <= 100 { // larger fleets need the memory
		defer debug.SetGCPercent(debug.SetGCPercent(400))
	}
	synctest.Test(t, func(t *testing.T) {
		const endpoints = 2
		w := &world{t: t}
		w.net.delay = 20 * time.Millisecond
		scale(w, nodes, endpoints)
		defer w.stop()
		peers := func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.gossip.size() != nodes-1 })
		}
		t.Logf("%d nodes: every node knows every node after %v", nodes, w.until(2*time.Minute, "all know all", peers))
		w.until(time.Minute, "one table", w.alike)

		// One vantage's word, until all have heard it.
		for _, loss := range []float64{0, 0.05} {
			w.net.set(func() { w.net.loss = loss })
			w.kill(idOf(0), func(node int) bool { return node == 0 })
			w.until(10*time.Second, "the first node says down", func() bool { return w.known(idOf(0)) > 0 })
			begin := time.Now()
			var most, all time.Duration
			for all == 0 && time.Since(begin) < 15*time.Second {
				time.Sleep(5 * time.Millisecond)
				k := w.known(idOf(0))
				if most == 0 && 100*k >= 99*nodes {
					most = time.Since(begin)
				}
				if k == nodes {
					all = time.Since(begin)
				}
			}
			t.Logf("loss %.0f %%: a flip is known to 99 %% of nodes after %v, to all after %v", 100*loss, most, all)
			if most == 0 || most > 750*time.Millisecond {
				t.Errorf("known to 99 %% after %v, want 750ms", most)
			}
			if all == 0 || loss == 0 && all > 2*time.Second {
				t.Errorf("known to all after %v: lost", all)
			}
			w.kill(idOf(0), nil)
			w.until(15*time.Second, "the first node says up", func() bool { return w.known(idOf(0)) == 0 })
		}

		// In calm, and with losses nothing is called down.
		calm := time.Second
		if nodes > 100 {
			calm = 5 * time.Second
		}
		for _, loss := range []float64{0, 0.01, 0.05, 0.20} {
			w.net.set(func() { w.net.loss, w.net.bytes, w.net.count = loss, 0, 0 })
			time.Sleep(calm)
			w.net.set(func() {
				t.Logf("loss %.0f %%: %.1f packets and %.0f octets a node and second", 100*loss,
					float64(w.net.count)/calm.Seconds()/float64(nodes), float64(w.net.bytes)/calm.Seconds()/float64(nodes))
			})
		}
		w.net.set(func() { w.net.loss = 0 })

		// Half from half, and healed.
		half := fmt.Sprintf("10.0.%d.%d:7946", nodes/2>>8, nodes/2&0xff)
		number := func(addr string) int {
			var a, b int
			if _, err := fmt.Sscanf(addr, "10.0.%d.%d:7946", &a, &b); err != nil {
				panic(err)
			}
			return a<<8 | b
		}
		middle := number(half)
		w.net.set(func() {
			w.net.cut = func(from, to string) bool { return (number(from) < middle) != (number(to) < middle) }
		})
		apart := 6 * time.Second
		if nodes > 100 {
			apart = time.Minute
		}
		time.Sleep(apart)
		w.net.set(func() { w.net.cut = nil })
		took := w.until(2*time.Minute, "equal digests", func() bool {
			return w.known(idOf(0)) == 0 && len(w.nodes[0].table.Doubts(time.Now())) == nodes && w.alike()
		})
		t.Logf("half from half for %v: equal digests %v after it healed", apart, took)
		period := w.nodes[0].gossip.period(1)
		if took > 2*period+time.Second {
			t.Errorf("equal digests after %v, want two rounds of %v", took, period)
		}
		flips := uint64(0)
		for _, n := range w.nodes {
			flips += n.Stats().Flips
		}
		t.Logf("false verdicts: %d", flips)
		if flips != 0 {
			t.Errorf("%d false verdicts, want none", flips)
		}
	})
}

// TestSimSlowNodes runs a fleet for long, of which a tenth are slow: their packets come late,
// and their probes fail now and then. Nothing is to be called down.
func TestSimSlowNodes(t *testing.T) {
	const nodes, endpoints = 20, 3
	long := 2 * time.Minute
	if *simNodes > 100 {
		long = time.Hour
	}
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.net.delay = 20 * time.Millisecond
		var mu sync.Mutex
		turn := 0
		for i := range nodes {
			w.nodes = append(w.nodes, w.runWith(i, fakeTargets(endpoints), func(o *Options) {
				if i%10 != 0 {
					return
				}
				healthy := o.probe
				o.probe = func(ctx context.Context, x Target) Result {
					mu.Lock()
					turn++
					slow := turn/20%2 == 0
					mu.Unlock()
					if slow {
						return Result{Class: Timeout}
					}
					return healthy(ctx, x)
				}
			}, nil))
		}
		defer w.stop()
		time.Sleep(10 * time.Second) // until all hear all: one that is alone believes itself
		before := make(map[int]uint64)
		for _, n := range w.nodes {
			before[n.number] = n.Stats().Flips
		}
		time.Sleep(long)
		for _, n := range w.nodes {
			if s := n.Stats(); s.Flips != before[n.number] {
				t.Errorf("ns%d: %d flips in %v, want none", n.number, s.Flips-before[n.number], long)
			}
		}
	})
}
