package health

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// fleetNodes and fleetTime are what TestFleetSlowNodes simulates. The command for
// testdata/bench/results/health.md is
//
//	go test ./health -run TestFleetSlowNodes -v -timeout 4h -fleet.nodes 1000 -fleet.time 1h
var (
	fleetNodes = flag.Int("fleet.nodes", map[bool]int{false: 60, true: 20}[raceEnabled], "nodes that TestFleetSlowNodes simulates")
	fleetSeed  = flag.Uint64("fleet.seed", 5, "seed of TestFleetSlowNodes and TestFleetDeaths")
	fleetTime  = flag.Duration("fleet.time", map[bool]time.Duration{false: 4 * time.Minute, true: time.Minute}[raceEnabled], "virtual time of TestFleetSlowNodes")
)

const (
	fleetTick     = 5 * time.Millisecond
	fleetInterval = 5 * time.Second
	fleetWheel    = 1 << 11 // ticks: 10 s
	fleetLanes    = 8       // more than cores, which are shared with others
)

// hugePages lets so much of the heap be of huge pages, where the system knows how to: a large fleet is
// read all over the place, and of small pages a processor knows too few at a time.
var hugePages = func(octets int) {}

// bigFleet is many nodes with everything of theirs but their shells. What a node knows, says, hears,
// tests and judges is its Monitor's work; one loop over virtual time calls it, in place of
// sockets, timers and a goroutine for each packet, which cost ten times as much as the node's
// own work. Membership is what it is at the start. Memberlist's part is played by gossip and exchange.
//
// The nodes are in lanes, each of which has a goroutine in every tick: whatever a node does
// arrives in a later tick, so that no two nodes meet within one but to exchange states, which
// waits for the end of the tick. Which lane is first makes no difference.
type bigFleet struct {
	tick  int
	wheel [fleetWheel][fleetLanes][fleetLanes][]happening // what happens in a tick, by whose doing and to whom, in order
	nodes []*fleetNode
	meet  [fleetLanes][]*fleetNode   // those that exchange states at the end of this tick
	told  func(n *fleetNode, v View) // of what n calls down and is not

	delay, jitter time.Duration // of packets
	loss          float64
	probing       bool
	dead          map[gslb.EndpointID]bool // what is down for all
}

type fleetNode struct {
	*Monitor
	number int32
	rng    *rand.Rand
	states map[gslb.EndpointID]State // of what it tests

	slow  bool // it has bad times
	turns int  // the tick in which one begins or ends
	bad   int  // percent of what it tests that fails for it; 0: it has no bad time now
	until int  // the tick up to which it does nothing
	held  int  // happenings that wait for that

	packets int    // that arrived
	falls   int    // probes' verdicts that turned down
	flips   uint64 // of its verdicts that were looked at
	turned  flipCount
}

// flipCount is a log that counts how often the verdict of an endpoint turned.
type flipCount map[netip.Addr]int

func (c flipCount) Enabled(_ context.Context, l slog.Level) bool { return l == slog.LevelInfo }
func (c flipCount) WithAttrs([]slog.Attr) slog.Handler           { return c }
func (c flipCount) WithGroup(string) slog.Handler                { return c }
func (c flipCount) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if addr, ok := a.Value.Any().(netip.Addr); ok {
			c[addr]++
		}
		return true
	})
	return nil
}

// happening is something that happens to a node.
type happening struct {
	packet []byte
	id     *gslb.EndpointID // that is tested
	node   int32
	kind   uint8
}

const (
	aBeat uint8 = iota
	aPacket
	aProbe
	aGossip // memberlist's every 100 ms
	aPause  // a slow node does nothing for a while
)

// newBigFleet returns a fleet of which every node is a member for every other.
func newBigFleet(nodes int, seed uint64) *bigFleet {
	f := new(bigFleet)
	var all []memberlist.Node
	for i := range nodes {
		all = append(all, memberlist.Node{Name: fmt.Sprintf("ns%d", i), Addr: net.IPv4(10, 0, 0, 0), Port: uint16(i)})
	}
	slices.SortFunc(all, func(a, b memberlist.Node) int { return strings.Compare(a.Name, b.Name) })
	for i := range nodes {
		n := &fleetNode{number: int32(i), rng: rand.New(rand.NewPCG(seed, uint64(i))), states: make(map[gslb.EndpointID]State), turned: make(flipCount)}
		n.Monitor = New(Options{Node: fmt.Sprintf("ns%d", i), Site: fmt.Sprintf("site%d", i%3), Transport: new(memTransport), Logger: slog.New(n.turned),
			probe: func(context.Context, Target) Result { panic("no prober runs") }})
		for _, p := range all {
			if p.Name != n.o.Node {
				n.gossip.peers[p.Name] = p
			}
		}
		n.gossip.post = func(to *memberlist.Node, message []byte) error {
			f.send(n, int32(to.Port), message) // its number
			return nil
		}
		f.nodes = append(f.nodes, n)
		f.after(n, n.upTo(heartbeat), happening{kind: aBeat})
		f.after(n, n.upTo(100*time.Millisecond), happening{kind: aGossip})
	}
	return f
}

func (n *fleetNode) lane() int { return int(n.number) % fleetLanes }

// upTo returns a random time of less than d.
func (n *fleetNode) upTo(d time.Duration) time.Duration { return time.Duration(n.rng.Int64N(int64(d))) }

// after lets h happen to n in d, by the tick, and within a turn of the wheel.
func (f *bigFleet) after(n *fleetNode, d time.Duration, h happening) {
	h.node = n.number
	f.put(n, d, h)
}

// put is after for what n does to h's node.
func (f *bigFleet) put(n *fleetNode, d time.Duration, h happening) {
	at := (f.tick + min(fleetWheel-1, max(1, int(d/fleetTick)))) % fleetWheel
	slot := &f.wheel[at][n.lane()][h.node%fleetLanes]
	*slot = append(*slot, h)
}

func (f *bigFleet) send(from *fleetNode, to int32, packet []byte) {
	if f.loss > 0 && from.rng.Float64() < f.loss {
		return
	}
	f.put(from, f.delay+from.upTo(f.jitter), happening{kind: aPacket, node: to, packet: packet})
}

// run lets time pass.
func (f *bigFleet) run(d time.Duration) {
	for end := f.tick + int(d/fleetTick); f.tick < end; {
		f.tick++
		time.Sleep(fleetTick)
		f.lanes(f.turn)
		for lane := range fleetLanes {
			for _, n := range f.meet[lane] {
				f.exchange(n)
				f.woken(n)
			}
			f.meet[lane] = f.meet[lane][:0]
		}
	}
}

// lanes calls do for every lane, at once, and waits for all.
func (f *bigFleet) lanes(do func(lane int)) {
	var all sync.WaitGroup
	for lane := range fleetLanes {
		all.Go(func() { do(lane) })
	}
	all.Wait()
}

// turn lets happen what is to happen to the nodes of a lane in this tick.
func (f *bigFleet) turn(lane int) {
	for from := range fleetLanes {
		slot := &f.wheel[f.tick%fleetWheel][from][lane]
		for _, h := range *slot { // nothing is put off by a whole turn, so that none is added meanwhile
			f.happen(f.nodes[h.node], h)
		}
		clear(*slot)
		*slot = (*slot)[:0]
	}
}

func (f *bigFleet) happen(n *fleetNode, h happening) {
	if n.until > f.tick { // what comes meanwhile waits, as in a socket's buffer, and there is an end to that
		if n.held++; h.kind != aPacket || n.held <= 4096 {
			f.after(n, time.Duration(n.until-f.tick)*fleetTick, h)
		}
		return
	}
	n.held = 0
	switch h.kind {
	case aPacket:
		n.packets++
		n.hear(h.packet)
	case aBeat:
		n.age()
		n.beat()
		f.after(n, heartbeat-n.upTo(heartbeat/10), h)
		f.assigned(n)
		if n.rng.IntN(60) == 0 {
			f.meet[n.lane()] = append(f.meet[n.lane()], n)
		}
		f.mood(n)
	case aProbe:
		f.probe(n, h)
	case aGossip:
		f.gossip(n)
		f.after(n, 100*time.Millisecond, h)
	case aPause:
		if n.bad > 0 {
			pause := 200*time.Millisecond + n.upTo(3800*time.Millisecond)
			n.until = f.tick + int(pause/fleetTick)
			f.after(n, pause+n.upTo(time.Second), h)
		}
	}
	f.woken(n)
}

// woken lets n say what is new, and looks at what it calls down.
func (f *bigFleet) woken(n *fleetNode) {
	select {
	case <-n.wake:
	default:
		return
	}
	n.speak()
	if flips := n.stats.flips.Load(); flips != n.flips {
		n.flips = flips
		for _, v := range n.Views() {
			if v.Verdict == "down" && !f.dead[gslb.EndpointID{Pool: v.Pool, Addr: v.Endpoint}] && f.told != nil {
				f.told(n, v)
			}
		}
	}
}

// assigned lets n test what is new to it.
func (f *bigFleet) assigned(n *fleetNode) {
	for _, t := range n.Monitor.assigned {
		if _, ok := n.states[t.ID]; !ok && f.probing {
			n.states[t.ID] = State{}
			f.after(n, n.upTo(fleetInterval), happening{kind: aProbe, id: &t.ID})
		}
	}
}

// test lets so many vantages of each site, or 0 for all, test so many targets, until all are heard.
func (f *bigFleet) test(n, vantages int) []Target {
	targets := fakeTargets(n)
	for i := range targets {
		p := &targets[i].Probe
		p.Vantages, p.Interval, p.Timeout, p.Rise, p.Fall = vantages, config.Duration(fleetInterval), config.Duration(2*time.Second), 2, 3
	}
	f.lanes(func(lane int) {
		for i := lane; i < len(f.nodes); i += fleetLanes {
			f.nodes[i].SetTargets(targets)
		}
	})
	f.run(10 * time.Second)
	f.probing = true
	f.run(20 * time.Second)
	return targets
}

// probe lets n test an endpoint, if it is still n's to test.
func (f *bigFleet) probe(n *fleetNode, h happening) {
	id := *h.id
	if !slices.ContainsFunc(n.Monitor.assigned, func(t Target) bool { return t.ID == id }) {
		delete(n.states, id)
		return
	}
	r := Result{Latency: time.Millisecond}
	if f.dead[id] || n.bad > 0 && int(rendezvous(fmt.Sprint(n.number, n.turns), id)%100) < n.bad {
		r = Result{Class: Timeout, Latency: 2 * time.Second, Detail: "no answer within 2s"}
	}
	t, was := n.targets[id], n.states[id]
	now := was.NextOf(r.Class == OK, &t.Probe)
	if was.Verdict == gslb.Up && now.Verdict == gslb.Down {
		n.falls++
	}
	n.states[id] = now
	n.observe(t, r, now)
	f.after(n, fleetInterval-n.upTo(fleetInterval/10), h)
}

// gossip does what memberlist does with broadcasts.
func (f *bigFleet) gossip(n *fleetNode) {
	for range 4 {
		if n.Monitor.gossip.queue.NumQueued() == 0 {
			return
		}
		to := int32(n.rng.IntN(len(f.nodes)))
		for _, b := range n.Monitor.gossip.queue.GetBroadcasts(3, 1400) {
			if to != n.number {
				f.send(n, to, b)
			}
		}
	}
}

// exchange does what memberlist does with states, which each node does once a minute as in a fleet
// of a thousand.
func (f *bigFleet) exchange(n *fleetNode) {
	if peer := f.nodes[n.rng.IntN(len(f.nodes))]; peer != n && peer.until <= f.tick {
		mine, theirs := n.state(false), peer.state(false)
		peer.hear(mine)
		n.hear(theirs)
	}
}

// mood begins and ends the bad times of a slow node, of one to five minutes each.
func (f *bigFleet) mood(n *fleetNode) {
	if f.tick < n.turns || !n.slow && n.bad == 0 {
		return
	}
	first := n.turns == 0
	n.turns = f.tick + int((time.Minute+n.upTo(4*time.Minute))/fleetTick)
	if n.bad > 0 || !n.slow {
		n.bad = 0
		return
	}
	n.bad = 30 + n.rng.IntN(71)
	if first { // so that even a short run has something
		n.bad = 100
	}
	f.after(n, 0, happening{kind: aPause})
}

// says lets m hear of node, which is in a site of its own, that of targets it finds up those with a +
// in marks and down those with a -.
func says(m *Monitor, node string, seq uint64, targets []Target, marks string) {
	r := Report{Node: node, Heading: Heading{Version: Version{1, seq}, Site: node, Period: heartbeat, At: time.Now()}}
	for i, mark := range marks {
		r.Observations = append(r.Observations, Observation{ID: targets[i].ID, Version: r.Heading.Version, Up: mark == '+', At: time.Now()})
	}
	for _, b := range encodeReport(&r, time.Now(), maxPacket) {
		e := seal(nil, b)
		m.hear(e.append(nil))
	}
}

// finds lets m find of its targets what marks say, likewise.
func finds(m *Monitor, targets []Target, marks string) {
	for i, mark := range marks {
		if mark == '+' {
			m.observe(targets[i], Result{}, State{Verdict: gslb.Up})
		} else {
			m.observe(targets[i], Result{Class: Refused}, State{Verdict: gslb.Down})
		}
	}
}

// TestStopped stops a node that finds an endpoint down by itself. When it goes on it hears some of
// the others before those who say up, and is to take that silence for its own.
func TestStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{Node: "ns1", Site: "a", Transport: new(memTransport)})
		targets := fakeTargets(3)
		m.SetTargets(targets)
		seq := uint64(0)
		witnesses, others := []string{"ns2", "ns3"}, []string{"ns4", "ns5", "ns6", "ns7"}
		hearOthers := func() {
			seq++
			for _, n := range others {
				says(m, n, seq, targets, "")
			}
		}
		beat := func() {
			finds(m, targets, "-++")
			hearOthers()
			for _, n := range witnesses {
				says(m, n, seq, targets, "+")
			}
			m.age()
			time.Sleep(heartbeat)
		}
		for range 5 {
			beat()
		}
		flips := m.Stats().Flips
		if v := m.Views()[0]; v.Verdict != "up" || v.Why != "1 of 3 vantages say down, in 1 site" {
			t.Fatalf("got %+v, want up by two of three", v)
		}
		time.Sleep(staleFloor + 1) // nothing happens here
		hearOthers()
		finds(m, targets, "-")
		m.age()
		if v := m.Views()[0]; v.Verdict != "up" || !v.Unknown || !m.Stats().Abstains {
			t.Errorf("when it goes on: %+v, abstains %v, want the last verdict", v, m.Stats().Abstains)
		}
		for range 8 { // until what it tests itself is counted anew, too
			beat()
		}
		if v, s := m.Views()[0], m.Stats(); v.Verdict != "up" || v.Unknown || s.Abstains || s.Flips != flips {
			t.Errorf("after a while: %+v, %d flips, want up by two of three and %d", v, s.Flips, flips)
		}
	})
}

// TestDoubtsItself: a node for which most begins to fail is not believed by itself either, from the
// very result that says so.
func TestDoubtsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{Node: "ns1", Site: "a", Transport: new(memTransport)})
		targets := fakeTargets(3)
		m.SetTargets(targets)
		found, seq := "-++", uint64(0)
		beat := func() {
			finds(m, targets, found)
			seq++
			for n, marks := range map[string]string{"ns2": "+++", "ns3": "+++", "ns4": "+-+", "ns5": "+-+"} {
				says(m, n, seq, targets, marks)
			}
			m.age()
			time.Sleep(heartbeat)
		}
		for range 5 {
			beat()
		}
		flips := m.Stats().Flips
		if v := m.Views()[1]; v.Verdict != "up" || m.Stats().Abstains {
			t.Fatalf("one of three fails here: %+v, abstains %v, want up and not", v, m.Stats().Abstains)
		}
		time.Sleep(heartbeat / 2)
		found = "--+"
		finds(m, targets, found)
		if v := m.Views()[1]; v.Verdict != "up" || !m.Stats().Abstains {
			t.Errorf("two of three fail here: %+v, abstains %v, want up by the others, and that", v, m.Stats().Abstains)
		}
		beat()
		if v, s := m.Views()[1], m.Stats(); v.Verdict != "up" || s.Flips != flips {
			t.Errorf("a beat later: %+v, %d flips, want up and %d", v, s.Flips, flips)
		}
	})
}

// TestFleetSlowNodes runs a fleet for long, of which a tenth are slow: for minutes they do
// nothing for up to four seconds at a time, what they send and hear comes late, and a third to all
// of what they test fails by time-out for them. Nothing is to be called down by anybody, until something dies.
func TestFleetSlowNodes(t *testing.T) {
	t.Parallel()
	nodes := *fleetNodes
	if nodes > 300 { // every node has a table of every other
		defer debug.SetGCPercent(debug.SetGCPercent(200))
		defer debug.SetMemoryLimit(debug.SetMemoryLimit(13 << 30))
		hugePages(nodes * nodes * 8 << 10)
	}
	synctest.Test(t, func(t *testing.T) {
		f := newBigFleet(nodes, *fleetSeed)
		f.delay, f.jitter, f.loss = 20*time.Millisecond, 10*time.Millisecond, 0.01
		f.told = func(n *fleetNode, v View) { t.Logf("%v: ns%d: %+v", time.Duration(f.tick)*fleetTick, n.number, v) }
		count := func() (packets, falls int, flips uint64) {
			for _, n := range f.nodes {
				packets, falls, flips = packets+n.packets, falls+n.falls, flips+n.stats.flips.Load()
			}
			return packets, falls, flips
		}
		f.run(10 * time.Second) // until all hear all: one that is alone tests everything
		targets := f.test(nodes*3/10, 3)
		tests := 0
		for _, n := range f.nodes {
			tests += len(n.Monitor.assigned)
			for _, x := range targets {
				if got := n.Verdicts()[x.ID]; got != gslb.Up {
					t.Fatalf("ns%d: %v of %v before anything is slow, want up", n.number, got, x.ID)
				}
			}
		}
		slow := 0
		for _, i := range rand.New(rand.NewPCG(*fleetSeed, 0)).Perm(nodes) {
			if n := f.nodes[i]; slow < max(1, nodes/10) && len(n.Monitor.assigned) > 0 {
				n.slow = true
				slow++
			}
		}
		before, _, _ := count()
		for left := *fleetTime; left > 0; left -= time.Minute {
			spent := cpu(t)
			f.run(min(left, time.Minute))
			if nodes > 300 {
				_, falls, flips := count()
				t.Logf("%v left; this minute took %v of CPU; an endpoint was down for one that tests it %d times, false verdicts: %d", left, cpu(t)-spent, falls, flips)
			}
		}
		packets, falls, flips := count()
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		t.Logf("%d nodes, %d of them slow, %d endpoints that %.1f test: in %v %d times an endpoint was down for one that tests it, %.1f packets a node and second, false verdicts: %d; %d MiB",
			nodes, slow, len(targets), float64(tests)/float64(len(targets)), *fleetTime, falls, float64(packets-before)/fleetTime.Seconds()/float64(nodes), flips, memory.Sys>>20)
		if flips != 0 {
			t.Errorf("%d false verdicts, want none", flips)
		}
		if falls == 0 {
			t.Error("no slow node ever found anything down: the test shows nothing")
		}
		for _, n := range f.nodes {
			n.slow, n.turns = false, 0
		}
		f.run(30 * time.Second)
		if n := f.die(t, targets[:1], targets); n > 0 {
			t.Errorf("%d nodes' verdicts of what died turned more than once, want none", n)
		}
	})
}

// die lets some of all endpoints die. Every node is to call down each of those, and nothing else at any
// time. It returns how many of the nodes' verdicts turned more than once.
func (f *bigFleet) die(t *testing.T, some, all []Target) (unsteady int) {
	t.Helper()
	for _, n := range f.nodes {
		clear(n.turned)
	}
	f.dead = make(map[gslb.EndpointID]bool)
	for _, x := range some {
		f.dead[x.ID] = true
	}
	f.run(35 * time.Second)
	for _, n := range f.nodes {
		for _, x := range all {
			want, flips := gslb.Up, n.turned[x.ID.Addr]
			if f.dead[x.ID] {
				want = gslb.Down
			}
			if got := n.Verdicts()[x.ID]; got != want || (flips > 0) != f.dead[x.ID] {
				t.Errorf("ns%d: %v of %v, by %d flips, want %v", n.number, got, x.ID.Addr, flips, want)
			}
			if flips > 1 {
				unsteady++
			}
		}
	}
	return unsteady
}

// TestFleetDeaths lets a part of all endpoints die and come back.
func TestFleetDeaths(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		nodes, vantages, targets, die int
		steady                        bool // no verdict may turn twice; where most of everything fails that can be
	}{
		{30, 3, 1, 1, true}, // all that some test, and most test nothing
		{30, 3, 3, 1, true},
		{30, 3, 9, 5, false},
		{30, 1, 30, 12, false}, // all three that test one may see most of what they test fail
		{9, 0, 20, 15, false},
	} {
		t.Run(fmt.Sprintf("%d of %d", tc.die, tc.targets), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newBigFleet(tc.nodes, *fleetSeed)
				f.delay, f.jitter, f.loss = 20*time.Millisecond, 10*time.Millisecond, 0.01
				f.run(10 * time.Second)
				targets := f.test(tc.targets, tc.vantages)
				unsteady := f.die(t, targets[:tc.die], targets)
				t.Logf("%d of %d verdicts turned more than once", unsteady, tc.nodes*tc.die)
				if tc.steady && unsteady > 0 {
					t.Errorf("%d verdicts turned more than once, want none", unsteady)
				}
				f.dead = nil
				f.run(35 * time.Second)
				for _, n := range f.nodes {
					for _, x := range targets {
						if got := n.Verdicts()[x.ID]; got != gslb.Up {
							t.Errorf("ns%d: %v of %v when all is back, want up", n.number, got, x.ID.Addr)
						}
					}
				}
			})
		})
	}
}
