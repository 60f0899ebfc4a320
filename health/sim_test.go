package health

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// world is a fleet in a bubble of virtual time: what is true of each endpoint for each node,
// and the nodes.
type world struct {
	t     *testing.T
	net   memNet
	nodes []*simNode
	odd   int // the node that alike found to differ last

	mu   sync.Mutex
	down map[gslb.EndpointID]func(node int) bool // guarded by mu; nil is up for all
}

type simNode struct {
	*Monitor
	number int
	stop   func()
}

// run starts node i, which probes the targets and knows the first three nodes as seeds.
func (w *world) run(i int, targets []Target, change func(*Monitor)) *simNode {
	return w.runWith(i, targets, nil, change)
}

func (w *world) runWith(i int, targets []Target, option func(*Options), change func(*Monitor)) *simNode {
	o := Options{
		Node: fmt.Sprintf("ns%d", i), Site: fmt.Sprintf("site%d", i%3), Transport: w.net.join(i),
		Gossip: config.Gossip{Join: []string{"10.0.0.0:7946", "10.0.0.1:7946", "10.0.0.2:7946"}, Key: "MDEyMzQ1Njc4OWFiY2RlZg=="},
	}
	o.probe = func(_ context.Context, t Target) Result {
		time.Sleep(2 * time.Millisecond)
		w.mu.Lock()
		defer w.mu.Unlock()
		if down := w.down[t.ID]; down != nil && down(i) {
			return Result{Class: Refused, Latency: time.Millisecond, Detail: "connection refused"}
		}
		return Result{Latency: time.Millisecond}
	}
	if option != nil {
		option(&o)
	}
	m := New(o)
	if change != nil {
		change(m)
	}
	if targets != nil {
		m.SetTargets(targets)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	return &simNode{m, i, func() {
		cancel()
		if err := <-done; err != context.Canceled {
			w.t.Errorf("ns%d: Run returned %v", i, err)
		}
	}}
}

func (w *world) start(nodes, endpoints int) {
	for i := range nodes {
		w.nodes = append(w.nodes, w.run(i, fakeTargets(endpoints), nil))
	}
}

func (w *world) stop() {
	for _, n := range w.nodes {
		n.stop()
	}
	time.Sleep(time.Minute) // memberlist's time-outs run on, and time ends with the test
}

// kill sets for which nodes an endpoint is down; nil brings it back.
func (w *world) kill(id gslb.EndpointID, down func(node int) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down == nil {
		w.down = make(map[gslb.EndpointID]func(int) bool)
	}
	w.down[id] = down
}

func everywhere(int) bool { return true }

// until waits for f to hold, and returns how long it took; it fails after limit.
func (w *world) until(limit time.Duration, what string, f func() bool) time.Duration {
	w.t.Helper()
	begin := time.Now()
	for !f() {
		if time.Since(begin) > limit {
			w.t.Fatalf("not within %v: %s\n%s", limit, what, w.dump())
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(begin)
}

// agreed reports whether the nodes' verdict of id is v.
func (w *world) agreed(id gslb.EndpointID, v gslb.Verdict, nodes ...*simNode) bool {
	if nodes == nil {
		nodes = w.nodes
	}
	return !slices.ContainsFunc(nodes, func(n *simNode) bool { return n.Verdicts()[id] != v })
}

// votes returns the fresh votes that n counts for its first target: "+ns0 -ns2".
func (n *simNode) votes() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	first := slices.MinFunc(slices.Collect(maps.Keys(n.targets)), compareID)
	votes, _ := n.table.Votes(first, time.Duration(n.targets[first].Probe.Interval), time.Now())
	slices.SortFunc(votes, func(a, b Vote) int { return strings.Compare(a.Node, b.Node) })
	var out []string
	for _, v := range votes {
		out = append(out, map[bool]string{true: "+", false: "-"}[v.Up]+v.Node)
	}
	return strings.Join(out, " ")
}

func (w *world) dump() string {
	var b strings.Builder
	for _, n := range w.nodes {
		fmt.Fprintf(&b, "ns%d: %v, votes %s, %+v\n", n.number, n.Views()[0].Verdict, n.votes(), n.Stats())
	}
	return b.String()
}

// TestSimFlip kills an endpoint and brings it back, over good and bad networks: every node
// is to say so in time, and nothing else is to flip.
func TestSimFlip(t *testing.T) {
	t.Parallel()
	many := map[bool]int{false: 20, true: 8}[raceEnabled]
	for _, tc := range []struct {
		nodes int
		loss  float64
		delay time.Duration
	}{
		{1, 0, 0}, {2, 0, 20 * time.Millisecond}, {3, 0, 20 * time.Millisecond}, {3, 0.2, 150 * time.Millisecond},
		{many, 0, 20 * time.Millisecond}, {many, 0.05, 80 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("%d nodes, loss %v, delay %v", tc.nodes, tc.loss, tc.delay), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const endpoints = 6
				w := &world{t: t}
				w.net.loss, w.net.delay = tc.loss, tc.delay
				w.start(tc.nodes, endpoints)
				defer w.stop()
				w.until(20*time.Second, "all nodes hear all", func() bool {
					return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return strings.Count(n.votes(), "+ns") != tc.nodes })
				})
				id := idOf(0)
				w.kill(id, everywhere)
				// fall × interval + timeout + 1 s
				down := w.until(4400*time.Millisecond, "down everywhere", func() bool { return w.agreed(id, gslb.Down) })
				w.until(5*time.Second, "all vote down", func() bool {
					return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return strings.Count(n.votes(), "-ns") != tc.nodes })
				})
				w.kill(id, nil)
				up := w.until(4400*time.Millisecond, "up everywhere", func() bool { return w.agreed(id, gslb.Up) })
				w.net.set(func() { w.net.bytes, w.net.count = 0, 0 })
				const idle = 10
				time.Sleep(idle * time.Second)
				for _, n := range w.nodes {
					if s := n.Stats(); s.Flips != 2 {
						t.Errorf("ns%d: %d flips, want 2: %+v", n.number, s.Flips, s)
					}
				}
				w.net.set(func() {
					t.Logf("down on all after %v, up after %v; idle %.1f packets/s, %.0f octets/s a node", down, up,
						float64(w.net.count)/idle/float64(tc.nodes), float64(w.net.bytes)/idle/float64(tc.nodes))
				})
			})
		})
	}
}

// TestSimNodeDies wants the vote of a node that no longer speaks to stop counting, and to
// count again when it speaks.
func TestSimNodeDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.net.delay = 20 * time.Millisecond
		id := idOf(0)
		w.kill(id, func(node int) bool { return node > 0 })
		w.start(3, 1)
		defer w.stop()
		w.until(15*time.Second, "two of three say down", func() bool { return w.agreed(id, gslb.Down) })

		const third = "10.0.0.2:7946"
		w.net.set(func() { w.net.cut = func(from, to string) bool { return from == third || to == third } })
		took := w.until(8*time.Second, "one of two says up", func() bool { return w.agreed(id, gslb.Up, w.nodes[0], w.nodes[1]) })
		if took < 3*time.Second {
			t.Errorf("the vote was gone after %v, want it to outlive lost heartbeats", took)
		}
		if got, want := w.nodes[0].votes(), "+ns0 -ns1"; got != want {
			t.Errorf("ns0 counts %s, want %s", got, want)
		}
		time.Sleep(time.Minute) // memberlist has forgotten the dead
		if !w.agreed(id, gslb.Down, w.nodes[2]) {
			t.Error("the node that is cut off changed its own verdict, want what it sees")
		}
		w.net.set(func() { w.net.cut = nil })
		w.until(70*time.Second, "all three count again", func() bool { return w.agreed(id, gslb.Down) && w.nodes[0].votes() == "+ns0 -ns1 -ns2" })
	})
}

// TestSimLeave wants the vote of a node that leaves to stop counting at once.
func TestSimLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.start(3, 1)
		w.until(15*time.Second, "all hear all", func() bool { return w.nodes[0].votes() == "+ns0 +ns1 +ns2" })
		w.nodes[2].stop()
		w.nodes = w.nodes[:2]
		defer w.stop()
		w.until(2*time.Second, "two are left", func() bool { return w.nodes[0].votes() == "+ns0 +ns1" && w.nodes[1].votes() == "+ns0 +ns1" })
	})
}

// TestSimPartition cuts a fleet in two and heals it: nothing flips, and all count again.
func TestSimPartition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.net.delay = 30 * time.Millisecond
		w.start(6, 3)
		defer w.stop()
		all := func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return strings.Count(n.votes(), "+ns") != 6 })
		}
		w.until(15*time.Second, "all hear all", all)
		// Words may come by way of a seed before who said them is a member, and a side without a
		// seed is made of members that know each other.
		w.until(15*time.Second, "all are members of all", func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.gossip.size() != 5 })
		})
		side := func(addr string) bool { return addr >= "10.0.0.3" }
		w.net.set(func() { w.net.cut = func(from, to string) bool { return side(from) != side(to) } })
		time.Sleep(2 * time.Minute)
		if got, want := w.nodes[0].votes()+" | "+w.nodes[5].votes(), "+ns0 +ns1 +ns2 | +ns3 +ns4 +ns5"; got != want {
			t.Errorf("in the partition they count %s, want %s", got, want)
		}
		w.net.set(func() { w.net.cut = nil })
		took := w.until(80*time.Second, "all hear all again", all)
		t.Logf("healed after %v", took)
		for _, n := range w.nodes {
			if s := n.Stats(); s.Flips != 0 {
				t.Errorf("ns%d: %d flips, want none", n.number, s.Flips)
			}
		}
	})
}

// TestSimOneWay wants a flip to reach a node that its vantage cannot.
func TestSimOneWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.net.delay = 20 * time.Millisecond
		w.start(4, 2)
		defer w.stop()
		w.until(15*time.Second, "all hear all", func() bool { return w.nodes[1].votes() == "+ns0 +ns1 +ns2 +ns3" })
		w.net.set(func() {
			w.net.cut = func(from, to string) bool { return from == "10.0.0.0:7946" && to == "10.0.0.1:7946" }
		})
		w.kill(idOf(0), everywhere)
		w.until(4400*time.Millisecond, "down everywhere", func() bool { return w.agreed(idOf(0), gslb.Down) })
		w.until(time.Second, "ns1 has heard of ns0's flip", func() bool {
			return slices.ContainsFunc(w.nodes[1].Views()[0].Vantages, func(v Vantage) bool { return v.Node == "ns0" && !v.Up })
		})
		time.Sleep(time.Minute)
		if !w.agreed(idOf(0), gslb.Down) || !w.agreed(idOf(1), gslb.Up) {
			t.Errorf("verdicts changed:\n%s", w.dump())
		}
	})
}

// TestSimRestart wants a node's new life to count, also when its clock was set back.
func TestSimRestart(t *testing.T) {
	for _, back := range []uint64{0, 24 * 3600 * 1e6} {
		synctest.Test(t, func(t *testing.T) {
			w := &world{t: t}
			id := idOf(0)
			w.start(3, 1)
			defer func() { w.stop() }()
			w.until(15*time.Second, "all hear all", func() bool { return w.nodes[0].votes() == "+ns0 +ns1 +ns2" })
			w.nodes[2].stop()
			w.kill(id, func(node int) bool { return node == 2 })
			time.Sleep(time.Second)
			w.nodes[2] = w.run(2, fakeTargets(1), func(m *Monitor) { m.self.Version.Epoch -= back })
			took := w.until(10*time.Second, "its new vote counts", func() bool {
				return w.nodes[0].votes() == "+ns0 +ns1 -ns2" && w.nodes[1].votes() == "+ns0 +ns1 -ns2" && w.nodes[2].votes() == "+ns0 +ns1 -ns2"
			})
			if conflicts := w.nodes[2].Stats().GossipDropped["conflict"]; (conflicts > 0) != (back > 0) {
				t.Errorf("clock back by %d: %d conflicts", back, conflicts)
			}
			t.Logf("counted after %v", took)
		})
	}
}

// TestSimFirstRound wants a node to be ready when it knows of every target, by itself or by
// peers, and after ten seconds in any case.
func TestSimFirstRound(t *testing.T) {
	closed := func(n *simNode) bool {
		select {
		case <-n.FirstRound():
			return true
		default:
			return false
		}
	}
	blind := func(m *Monitor) { // cannot probe: nothing but Local faults
		m.prober.o.probe = func(context.Context, Target) Result { return Result{Class: Local} }
	}
	for _, tc := range []struct {
		name     string
		peers    int
		targets  int
		change   func(*Monitor)
		min, max time.Duration
		want     gslb.Verdict
	}{
		{"alone", 0, 50, nil, 2 * time.Millisecond, time.Second, gslb.Up},
		{"nothing to probe", 0, 0, nil, 0, 100 * time.Millisecond, gslb.Unknown},
		{"alone and blind", 0, 1, blind, firstRoundLimit, firstRoundLimit + 100*time.Millisecond, gslb.Unknown},
		{"blind among peers", 2, 1, blind, 0, 3 * time.Second, gslb.Up},
		{"blind with a last known verdict", 0, 1, func(m *Monitor) {
			blind(m)
			m.Restore(map[gslb.EndpointID]gslb.Verdict{idOf(0): gslb.Down})
		}, firstRoundLimit, firstRoundLimit + 100*time.Millisecond, gslb.Down},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{t: t}
				w.start(tc.peers, tc.targets)
				defer func() { w.stop() }()
				time.Sleep(15 * time.Second)
				n := w.run(9, fakeTargets(tc.targets), tc.change)
				w.nodes = append(w.nodes, n)
				began := time.Now()
				<-n.FirstRound()
				if took := time.Since(began); took < tc.min || took > tc.max {
					t.Errorf("ready after %v, want %v to %v", took, tc.min, tc.max)
				}
				if got := n.Verdicts()[idOf(0)]; got != tc.want {
					t.Errorf("got %v, want %v", got, tc.want)
				}
				if !closed(n) {
					t.Error("the channel is not closed")
				}
			})
		})
	}
}

// TestSimFault wants a node to say why its own probe says nothing, until it says something.
func TestSimFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		var blind atomic.Bool
		w.nodes = append(w.nodes, w.runWith(0, fakeTargets(2), func(o *Options) {
			o.probe = func(_ context.Context, x Target) Result {
				if blind.Load() && x.ID == idOf(0) {
					return Result{Class: Local, Detail: "no route"}
				}
				return Result{}
			}
		}, nil))
		defer w.stop()
		fault := func(want string) func() bool {
			return func() bool { v := w.nodes[0].Views(); return v[0].Fault == want && v[1].Fault == "" }
		}
		w.until(5*time.Second, "both are up", func() bool { return w.agreed(idOf(0), gslb.Up) && w.agreed(idOf(1), gslb.Up) })
		blind.Store(true)
		w.until(2*time.Second, "the fault is told", fault("no route"))
		time.Sleep(20 * time.Second) // what it said is stale
		if v := w.nodes[0].Views()[0]; v.Verdict != "up" || !v.Unknown {
			t.Errorf("got %+v, want the last verdict and that it is unknown", v)
		}
		blind.Store(false)
		w.until(2*time.Second, "the fault is over", fault(""))
		blind.Store(true)
		w.until(2*time.Second, "the fault is told again", fault("no route"))
		w.nodes[0].SetTargets(fakeTargets(1)[1:])
		w.nodes[0].SetTargets(fakeTargets(2))
		if !fault("")() {
			t.Error("the fault outlives its target")
		}
	})
}

// TestSimFlipping wants a verdict's coming change told before it comes, on every node.
func TestSimFlipping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.net.delay = 20 * time.Millisecond
		w.start(3, 2)
		defer w.stop()
		w.until(15*time.Second, "all hear all", func() bool { return w.nodes[0].votes() == "+ns0 +ns1 +ns2" })
		id := idOf(0)
		w.kill(id, func(node int) bool { return node == 0 })
		time.Sleep(2500 * time.Millisecond)
		if w.nodes[0].Flipping()[id] || w.nodes[1].Flipping()[id] {
			t.Error("one of three fails: flipping, want not")
		}
		w.kill(id, everywhere)
		for _, n := range w.nodes {
			w.until(1200*time.Millisecond, "flipping", func() bool { return n.Flipping()[id] })
			if n.Verdicts()[id] != gslb.Up {
				t.Errorf("ns%d says down before flipping", n.number)
			}
			if n.Flipping()[idOf(1)] {
				t.Errorf("ns%d: another endpoint is flipping", n.number)
			}
		}
		w.until(4*time.Second, "down", func() bool { return w.agreed(id, gslb.Down) })
		w.until(4*time.Second, "settled", func() bool { return !w.nodes[0].Flipping()[id] && !w.nodes[2].Flipping()[id] })
	})
}

// TestSimTargets wants verdicts, own observations and the first round to follow the targets.
func TestSimTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.start(2, 2)
		defer w.stop()
		w.until(15*time.Second, "all hear all", func() bool { return w.nodes[0].votes() == "+ns0 +ns1" && w.nodes[1].votes() == "+ns0 +ns1" })
		n := w.nodes[0]
		for len(n.Changed()) > 0 {
			<-n.Changed()
		}
		n.SetTargets(fakeTargets(1))
		select {
		case <-n.Changed():
		default:
			t.Error("Changed is silent after a target was removed")
		}
		if v := n.Verdicts(); len(v) != 1 || v[idOf(0)] != gslb.Up {
			t.Errorf("got %v, want one up", v)
		}
		time.Sleep(20 * time.Second)
		for _, v := range w.nodes[1].Views()[1].Vantages {
			if v.Node == "ns0" && v.Fresh {
				t.Errorf("the other node still counts %+v", v)
			}
		}
		// What a peer knows already is known at once.
		n.SetTargets(fakeTargets(2))
		if got := n.Verdicts()[idOf(1)]; got != gslb.Up {
			t.Errorf("got %v for a target that the peer probes, want up", got)
		}
	})
}

// TestSimCutOff cuts a site off from the endpoints and from its peers: it is not believed, and
// believes nothing new itself. Then the world really fails, and everybody says so.
func TestSimCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const endpoints = 6
		w := &world{t: t}
		w.net.delay = 20 * time.Millisecond
		w.start(6, endpoints) // two nodes in each of three sites
		defer w.stop()
		all := func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return strings.Count(n.votes(), "+ns") != 6 })
		}
		w.until(15*time.Second, "all hear all", all)
		site0 := func(node int) bool { return node%3 == 0 }
		for i := range endpoints {
			w.kill(idOf(i), site0)
		}
		time.Sleep(10 * time.Second)
		for _, n := range w.nodes {
			if got := n.Stats().Abstains; got != site0(n.number) {
				t.Errorf("ns%d abstains: %v, want %v", n.number, got, site0(n.number))
			}
		}
		cut := func(addr string) bool { return addr == "10.0.0.0:7946" || addr == "10.0.0.3:7946" }
		w.net.set(func() { w.net.cut = func(from, to string) bool { return cut(from) != cut(to) } })
		time.Sleep(2 * time.Minute)
		w.net.set(func() { w.net.cut = nil })
		w.until(80*time.Second, "all hear all again", func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return strings.Count(n.votes(), "ns") != 6 })
		})
		for _, n := range w.nodes {
			if s := n.Stats(); s.Flips != 0 {
				t.Errorf("ns%d: %d flips, want none", n.number, s.Flips)
			}
		}
		for i := range endpoints {
			w.kill(idOf(i), everywhere)
		}
		for i := range endpoints {
			w.until(5*time.Second, "down for everybody", func() bool { return w.agreed(idOf(i), gslb.Down) })
		}
	})
}

// TestSimReferences wants a node whose references fail to abstain, and one whose references
// answer to go on alone.
func TestSimReferences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		var bad atomic.Bool
		for i := range 3 {
			w.nodes = append(w.nodes, w.runWith(i, fakeTargets(3), func(o *Options) {
				o.References = []string{"a:1", "b:1", "c:1"}
				o.reference = func(_ context.Context, r string) error {
					if i == 0 && bad.Load() && r != "c:1" {
						return errors.New("no answer")
					}
					return nil
				}
			}, nil))
		}
		defer w.stop()
		w.until(15*time.Second, "all hear all", func() bool { return w.nodes[0].votes() == "+ns0 +ns1 +ns2" })
		bad.Store(true)
		w.until(10*time.Second, "it abstains, for everybody", func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.Views()[0].Vantages[0].Counts })
		})
		bad.Store(false)
		w.until(10*time.Second, "it counts again", func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return !n.Views()[0].Vantages[0].Counts })
		})
		w.net.set(func() { w.net.cut = func(from, to string) bool { return true } })
		time.Sleep(10 * time.Second)
		w.kill(idOf(0), everywhere)
		w.until(5*time.Second, "each by itself", func() bool { return w.agreed(idOf(0), gslb.Down) })
	})
}

// TestSimRegionGuarded wants what a region's own vantages say to be guarded like what all say,
// where a policy asks for it.
func TestSimRegionGuarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		o := threePools(config.Probe{TCP: &config.TCPProbe{Port: 1}, Interval: config.Duration(time.Second)}, nil)
		o.Sites = map[string]config.Site{"site0": {Region: "asia"}, "site1": {Region: "europe"}, "site2": {Region: "europe"}}
		s := o.Services["www.test"]
		s.Policy = []config.Stage{{Health: &config.HealthStage{By: "region"}}}
		o.Services["www.test"] = s
		for i := range 9 {
			w.nodes = append(w.nodes, w.run(i, nil, func(m *Monitor) { m.Configure(o) }))
		}
		defer w.stop()
		w.until(15*time.Second, "all hear all", func() bool { return strings.Count(w.nodes[1].votes(), "+ns") == 9 })
		ids := []gslb.EndpointID{{Pool: "a", Addr: addrOfPool(0, 1)}, {Pool: "a", Addr: addrOfPool(0, 2)}, {Pool: "b", Addr: addrOfPool(1, 1)}}
		two := func(node int) bool { return node == 0 || node == 3 } // of Asia's three
		for _, id := range ids {
			w.kill(id, two)
			time.Sleep(10 * time.Second) // one after another, as every node knows
		}
		for _, n := range w.nodes {
			if r := n.Regional()["asia"]; len(r) != 2 || r[ids[0]] != gslb.Down || r[ids[1]] != gslb.Down || len(n.Regional()) != 1 {
				t.Errorf("ns%d: two of three vantages say down of half: %v, want a third down", n.number, n.Regional())
			}
		}
		w.kill(ids[2], func(node int) bool { return node%3 == 0 })
		w.until(10*time.Second, "down as all of Asia says", func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.Regional()["asia"][ids[2]] != gslb.Down })
		})
		for range 4 { // it flaps
			w.kill(ids[0], nil)
			time.Sleep(6 * time.Second)
			w.kill(ids[0], two)
			time.Sleep(6 * time.Second)
		}
		w.kill(ids[0], nil)
		time.Sleep(10 * time.Second)
		if n := w.nodes[1]; n.Regional()["asia"][ids[0]] != gslb.Down || n.Verdicts()[ids[0]] != gslb.Up || n.Views()[0].Regions["asia"] != "down" {
			t.Errorf("it flaps for Asia: %v, and %v for all, want down and up", n.Regional(), n.Verdicts()[ids[0]])
		}
	})
}

// TestSimRegion wants a verdict for those for whom alone an endpoint is down.
func TestSimRegion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		o := threePools(config.Probe{TCP: &config.TCPProbe{Port: 1}, Interval: config.Duration(time.Second)}, nil)
		o.Sites = map[string]config.Site{"site0": {Region: "asia"}, "site1": {Region: "europe"}, "site2": {Region: "europe"}}
		for i := range 6 {
			w.nodes = append(w.nodes, w.run(i, nil, func(m *Monitor) { m.Configure(o) }))
		}
		defer w.stop()
		w.until(15*time.Second, "all hear all", func() bool { return strings.Count(w.nodes[1].votes(), "+ns") == 6 })
		id := gslb.EndpointID{Pool: "a", Addr: addrOfPool(0, 1)}
		w.kill(id, func(node int) bool { return node%3 == 0 })
		w.until(10*time.Second, "down as seen from Asia", func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.Regional()["asia"][id] != gslb.Down })
		})
		for _, n := range w.nodes {
			if r := n.Regional(); len(r) != 1 || len(r["asia"]) != 1 || n.Verdicts()[id] != gslb.Up || n.Views()[0].Regions["asia"] != "down" {
				t.Errorf("ns%d: %v, and %v for all", n.number, r, n.Verdicts()[id])
			}
		}
		w.kill(id, nil)
		w.until(10*time.Second, "up again", func() bool { return len(w.nodes[1].Regional()) == 0 })
	})
}
