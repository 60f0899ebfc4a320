package health

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// threePools is a service of pools a, b and c with two endpoints each, all probed alike.
func threePools(probe config.Probe, g *config.Guard) *config.Objects {
	o := &config.Objects{
		Sites: map[string]config.Site{"s": {}}, Probes: map[string]config.Probe{"p": probe}, Pools: map[string]config.Pool{},
		Services: map[string]config.Service{"www.test": {Steering: config.Steering{Pools: map[string]config.PoolRef{"a": {}, "b": {}, "c": {}}}, Guard: g}},
	}
	for i, name := range []string{"a", "b", "c"} {
		o.Pools[name] = config.Pool{Site: "s", Probe: "p", Endpoints: []config.Endpoint{{Address: addrOfPool(i, 1)}, {Address: addrOfPool(i, 2)}}}
	}
	return o
}

func addrOfPool(pool, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(10*pool + n)})
}

// guardWorld drives a guard by hand.
type guardWorld struct {
	g     *guard
	now   time.Time
	votes map[gslb.EndpointID]vote
}

func newGuardWorld(o *config.Objects) *guardWorld {
	w := &guardWorld{g: newGuard(o, nil), now: epoch, votes: make(map[gslb.EndpointID]vote)}
	for id := range w.g.ends {
		w.votes[id] = vote{gslb.Up, true}
	}
	w.settle(0)
	return w
}

func (w *guardWorld) settle(wait time.Duration) {
	w.now = w.now.Add(wait)
	w.g.settle(func(id gslb.EndpointID) vote { return w.votes[id] }, w.now)
}

// say sets the votes of endpoints such as "a1": - all say down, m most do, + up.
func (w *guardWorld) say(text string) {
	for f := range strings.FieldsSeq(text) {
		id := gslb.EndpointID{Pool: f[:1], Addr: addrOfPool(int(f[0]-'a'), int(f[1]-'0'))}
		w.votes[id] = map[byte]vote{'-': {gslb.Down, true}, 'm': {gslb.Down, false}, '+': {gslb.Up, true}}[f[2]]
	}
	w.settle(time.Second)
}

// down returns what is not served.
func (w *guardWorld) down() string {
	var out []string
	for _, pool := range sortedKeys(w.g.pools) {
		for i, id := range w.g.pools[pool].ends {
			if w.g.ends[id].verdict == gslb.Down {
				out = append(out, fmt.Sprintf("%s%d", pool, i+1))
			}
		}
	}
	return strings.Join(out, " ")
}

func (w *guardWorld) want(t *testing.T, what, want string) {
	t.Helper()
	if got := w.down(); got != want {
		t.Errorf("%s: down %q, want %q", what, got, want)
	}
}

func TestGuardVelocity(t *testing.T) {
	w := newGuardWorld(threePools(config.Probe{TCP: &config.TCPProbe{}}, nil))
	w.say("a1m a2m")
	w.want(t, "a third by most", "a1 a2")
	w.say("b1m")
	w.want(t, "more than a third by most", "a1 a2")
	if id := w.g.pools["b"].ends[0]; !strings.HasPrefix(w.g.ends[id].why, "held up: www.test would lose 50 % of its capacity in 5m0s") {
		t.Errorf("got why %q", w.g.ends[id].why)
	}
	w.say("b1-")
	w.want(t, "more than a third by all", "a1 a2 b1")
	w.say("c1m")
	w.settle(10 * time.Minute)
	w.want(t, "the window is over, but half would not be left", "a1 a2 b1")
	if id := w.g.pools["c"].ends[0]; !strings.Contains(w.g.ends[id].why, "would have 33 % of its capacity left") {
		t.Errorf("got why %q", w.g.ends[id].why)
	}
	w.say("c1- c2- b2-")
	w.want(t, "everything, by all", "a1 a2 b1 b2 c1 c2")
	w.say("a1+ a2+ b1+ b2+ c1+ c2+")
	w.want(t, "up is never held", "")

	off, all := 0.0, 1.0
	w = newGuardWorld(threePools(config.Probe{TCP: &config.TCPProbe{}}, &config.Guard{Velocity: &all, Panic: &off}))
	w.say("a1m a2m b1m b2m c1m c2m")
	w.want(t, "no guard", "a1 a2 b1 b2 c1 c2")

	o := threePools(config.Probe{TCP: &config.TCPProbe{}}, nil)
	for name, capacity := range map[string]float64{"a": 10, "b": 10, "c": 80} {
		p := o.Pools[name]
		p.Capacity = capacity
		o.Pools[name] = p
	}
	w = newGuardWorld(o)
	w.say("a1m a2m b1m b2m c1m")
	w.want(t, "by declared capacity", "a1 a2 b1 b2")
}

// TestGuardPanicRandom wants no run of events to leave less than half without everybody.
func TestGuardPanicRandom(t *testing.T) {
	for range 200 {
		w := newGuardWorld(threePools(config.Probe{TCP: &config.TCPProbe{}, Damping: &config.Damping{Off: true}}, nil))
		for range 60 {
			w.say(fmt.Sprintf("%c%d%c", 'a'+rand.IntN(3), 1+rand.IntN(2), "mm+"[rand.IntN(3)]))
			w.settle(time.Duration(rand.IntN(120)) * time.Second)
			if left := 6 - len(strings.Fields(w.down())); left < 3 {
				t.Fatalf("%d of 6 left, want at least half", left)
			}
		}
	}
}

func TestGuardDamping(t *testing.T) {
	w := newGuardWorld(threePools(config.Probe{TCP: &config.TCPProbe{}}, nil))
	changes := 0
	last := ""
	flap := func(ends string, every time.Duration, n int) {
		for range n {
			for _, sign := range "-+" {
				var say []string
				for e := range strings.FieldsSeq(ends) {
					say = append(say, e+string(sign))
				}
				w.say(strings.Join(say, " "))
				if d := w.down(); d != last {
					last = d
					changes++
				}
				w.settle(every / 2)
			}
		}
	}
	flap("a1", 30*time.Second, 4)
	w.want(t, "four falls in two minutes, and up again", "a1")
	changes = 0
	flap("a1", time.Minute, 60)
	if changes > 2 {
		t.Errorf("%d changes in an hour of flapping, want at most 2", changes)
	}
	w.settle(29 * time.Minute)
	w.settle(3 * time.Minute)
	w.want(t, "half an hour of calm", "")

	// It never empties what a service has.
	flap("a1 a2 b1 b2 c1 c2", 30*time.Second, 6)
	w.want(t, "everything flaps", "")
	w.say("a1-")
	w.want(t, "and what is down is down", "a1")

	w = newGuardWorld(threePools(config.Probe{TCP: &config.TCPProbe{}, Damping: &config.Damping{Off: true}}, nil))
	flap("a1", 30*time.Second, 10)
	w.want(t, "no damping", "")
}

func TestGuardDerived(t *testing.T) {
	o := threePools(config.Probe{TCP: &config.TCPProbe{}}, nil)
	end := func(n byte) []config.Endpoint {
		return []config.Endpoint{{Address: netip.AddrFrom4([4]byte{198, 51, 100, n})}}
	}
	for name, need := range map[string]string{"all": "all", "any": "any", "most": "quorum", "two": "2"} {
		o.Probes[name] = config.Probe{Calculated: &config.CalculatedProbe{Pools: []string{"a", "b", "c/192.0.2.21"}, Need: need}}
		o.Pools["x-"+name] = config.Pool{Probe: name, Endpoints: end(1)}
	}
	o.Probes["not"] = config.Probe{Calculated: &config.CalculatedProbe{Pools: []string{"a"}}, Invert: true}
	o.Pools["x-not"] = config.Pool{Probe: "not", Endpoints: end(2)}
	o.Pools["y"] = config.Pool{DependsOn: []string{"z"}, Endpoints: end(3)}
	o.Pools["z"] = config.Pool{Probe: "p", DependsOn: []string{"x-any"}, Endpoints: end(4)}
	w := newGuardWorld(o)
	w.want(t, "all is up", "x-not1")
	w.say("a1-")
	w.want(t, "a pool is up while one is", "a1 x-not1")
	w.say("a2-")
	w.want(t, "one of three is down", "a1 a2 x-all1")
	w.say("c1-")
	w.want(t, "two of three are down", "a1 a2 c1 x-all1 x-most1 x-two1")
	w.say("b1- b2-")
	w.want(t, "three of three are down", "a1 a2 b1 b2 c1 x-all1 x-any1 x-most1 x-two1 y1 z1")
	if why := w.g.ends[w.g.pools["y"].ends[0]].why; why != "depends on pool z, which is down" {
		t.Errorf("got why %q", why)
	}
	w.say("a1+ a2+ b1+ b2+ c1+")
	w.want(t, "all is up again", "x-not1")

	// What is derived is told; what is not probed is not.
	if !w.g.serves(w.g.pools["y"].ends[0]) || !w.g.serves(w.g.pools["x-all"].ends[0]) {
		t.Error("derived endpoints are not served")
	}
}

// TestGuardDependent wants what is down with what it depends on to count as lost, but not as lost
// anew all the time.
func TestGuardDependent(t *testing.T) {
	o := threePools(config.Probe{TCP: &config.TCPProbe{}}, nil)
	c := o.Pools["c"]
	c.DependsOn = []string{"d"}
	o.Pools["c"] = c
	o.Pools["d"] = config.Pool{Probe: "p", Endpoints: []config.Endpoint{{Address: addrOfPool(3, 1)}}}
	w := newGuardWorld(o)
	w.say("d1-")
	w.want(t, "c depends on d", "c1 c2 d1")
	w.say("a1m")
	w.want(t, "a third was lost just now", "c1 c2 d1")
	w.settle(6 * time.Minute)
	w.want(t, "and no more is, after the window", "a1 c1 c2 d1")
	w.say("a2m")
	w.want(t, "a third would be left", "a1 c1 c2 d1")
	w.say("d1+ c1-")
	w.want(t, "d is back, and what fell meanwhile stays down", "a1 c1")

	// What flaps is let in where what is left depends on what is down.
	o = threePools(config.Probe{TCP: &config.TCPProbe{}}, nil)
	for _, name := range []string{"b", "c"} {
		p := o.Pools[name]
		p.Probe, p.DependsOn = "", []string{"d"}
		o.Pools[name] = p
	}
	o.Pools["d"] = config.Pool{Probe: "p", Endpoints: []config.Endpoint{{Address: addrOfPool(3, 1)}}}
	w = newGuardWorld(o)
	for range 4 {
		w.say("a1- a2-")
		w.say("a1+ a2+")
	}
	w.want(t, "what flaps is kept out", "a1 a2")
	w.say("d1-")
	w.want(t, "but for nothing else left", "b1 b2 c1 c2 d1")
}

// TestGuardKeeps wants a new configuration to know what the old one knew.
func TestGuardKeeps(t *testing.T) {
	o := threePools(config.Probe{TCP: &config.TCPProbe{}}, nil)
	w := newGuardWorld(o)
	w.say("a1m a2m")
	w.g = newGuard(o, w.g)
	w.say("b1m")
	w.want(t, "a third is gone already", "a1 a2")
}
