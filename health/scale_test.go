package health

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
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
		w.nodes = append(w.nodes, w.runWith(i, targets, func(o *Options) {
			if nodes > 300 { // an eighth of the time goes to encryption
				o.Gossip.Key = ""
			}
		}, nil))
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
	for range w.nodes { // from the one that differed last on: most calls end there
		if digest(w.nodes[w.odd]) != first {
			return false
		}
		w.odd = (w.odd + 1) % len(w.nodes)
	}
	return true
}

// alive returns how many nodes n hears, itself included.
func (n *simNode) alive() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.table.Alive(time.Now()))
}

// known returns how many nodes have heard that the first node says down of id.
func (w *world) known(id gslb.EndpointID) (n int) {
	for _, s := range w.nodes {
		s.mu.Lock()
		if v := s.table.nodes["ns0"]; v != nil && v.observed[id] != nil && !v.observed[id].Up {
			n++
		}
		s.mu.Unlock()
	}
	return n
}

// TestSimScale measures how a large fleet gets to know of a flip, what it says in calm, what it
// calls down when packets are lost, and how it heals.
func TestSimScale(t *testing.T) {
	t.Parallel()
	// A large fleet lives shorter, and in less memory: every node has a table of every other.
	nodes, calm, apart := *simNodes, time.Second, 6*time.Second
	switch {
	case nodes <= 100:
		defer debug.SetGCPercent(debug.SetGCPercent(400))
	case nodes <= 300:
		calm, apart = 5*time.Second, time.Minute
		defer debug.SetGCPercent(debug.SetGCPercent(200))
	default:
		calm, apart = 2*time.Second, 30*time.Second
		defer debug.SetGCPercent(debug.SetGCPercent(400))
		defer debug.SetMemoryLimit(debug.SetMemoryLimit(9 << 30))
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
		time.Sleep(apart)
		w.net.set(func() { w.net.cut = nil })
		took := w.until(2*time.Minute, "equal digests", func() bool {
			return w.known(idOf(0)) == 0 && w.nodes[0].alive() == nodes && w.alike()
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
	t.Parallel()
	const nodes, endpoints = 20, 3
	long := map[bool]time.Duration{false: 2 * time.Minute, true: 30 * time.Second}[raceEnabled]
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

// simSoak is how long TestSimSoak lets faults happen. A week, as docs/faults.md has it, is
//
//	go test ./health -run TestSimSoak -v -timeout 4h -sim.soak 168h
var simSoak = flag.Duration("sim.soak", map[bool]time.Duration{false: 20 * time.Minute, true: 2 * time.Minute}[raceEnabled], "virtual time of TestSimSoak")

// TestSimSoak lets everything happen to six nodes in three sites, at random and at once: losses
// and delays, partitions of any kind, one-way cuts, restarts with the clock set back, and
// endpoints that die and return. No node is ever to call down what is up, and once nothing has
// changed for a while every node that believes itself is to say what is true.
func TestSimSoak(t *testing.T) {
	t.Parallel()
	const nodes, endpoints = 6, 6
	const settled = 40 * time.Second // detection, and a partition's healing
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, uint64(*simSoak)))
		w := &world{t: t}
		w.start(nodes, endpoints)
		defer func() { w.stop() }()
		time.Sleep(20 * time.Second)
		begin, calm := time.Now(), time.Now() // calm: nothing happened since
		turned := make([]time.Time, endpoints)
		dead := -1 // the endpoint that is down
		was := make([]map[gslb.EndpointID]gslb.Verdict, nodes)
		events := make(map[string]int)
		checks := 0
		check := func() {
			for i, n := range w.nodes {
				verdicts := n.Verdicts()
				for e := range endpoints {
					id := idOf(e)
					if e != dead && verdicts[id] == gslb.Down && was[i] != nil && was[i][id] == gslb.Up && time.Since(turned[e]) > 10*time.Second {
						t.Fatalf("after %v, %v: ns%d turned %v down, which is up since %v\n%s", time.Since(begin), events, i, id, turned[e].Sub(begin), w.dump())
					}
					want := gslb.Up
					if e == dead {
						want = gslb.Down
					}
					if time.Since(calm) > settled && !n.Stats().Abstains {
						checks++
						if verdicts[id] != want {
							t.Fatalf("after %v, %v: ns%d says %v of %v, which is %v since %v\n%s", time.Since(begin), events, i, verdicts[id], id, want, turned[e].Sub(begin), w.dump())
						}
					}
				}
				was[i] = verdicts
			}
		}
		number := func(addr string) (n int) {
			if _, err := fmt.Sscanf(addr, "10.0.0.%d:7946", &n); err != nil {
				panic(err)
			}
			return n
		}
		happen := map[string]func(){
			"loss":  func() { w.net.set(func() { w.net.loss = []float64{0, 0.01, 0.05, 0.2}[rng.IntN(4)] }) },
			"delay": func() { w.net.set(func() { w.net.delay = time.Duration(rng.IntN(150)) * time.Millisecond }) },
			"partition": func() {
				side := rng.Uint32()
				w.net.set(func() { w.net.cut = func(from, to string) bool { return (side>>number(from)^side>>number(to))&1 != 0 } })
			},
			"one-way cut": func() {
				a, b := rng.IntN(nodes), rng.IntN(nodes)
				w.net.set(func() { w.net.cut = func(from, to string) bool { return number(from) == a && number(to) == b } })
			},
			"healing": func() { w.net.set(func() { w.net.cut = nil }) },
			"restart": func() {
				i, back := rng.IntN(nodes), uint64(rng.IntN(2)*24*3600*1e6)
				w.nodes[i].stop()
				time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
				w.nodes[i] = w.run(i, fakeTargets(endpoints), func(m *Monitor) { m.self.Version.Epoch -= back })
				was[i] = nil
			},
			"death or return": func() {
				if e := rng.IntN(endpoints); dead >= 0 {
					w.kill(idOf(dead), nil)
					turned[dead], dead = time.Now(), -1
				} else {
					w.kill(idOf(e), everywhere)
					turned[e], dead = time.Now(), e
				}
			},
		}
		kinds := slices.Sorted(maps.Keys(happen))
		for time.Since(begin) < *simSoak {
			kind := kinds[rng.IntN(len(kinds))]
			events[kind]++
			happen[kind]()
			calm = time.Now()
			for range 5 + rng.IntN(90) {
				time.Sleep(time.Second)
				check()
			}
		}
		w.net.set(func() { w.net.cut, w.net.loss = nil, 0 })
		took := w.until(2*time.Minute, "all know the same in the end", func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.alive() != nodes }) && w.alike()
		})
		t.Logf("%v: %v; %d checks of what is true; all alike %v after the end", *simSoak, events, checks, took)
		if checks == 0 {
			t.Error("nothing was ever settled")
		}
	})
}
