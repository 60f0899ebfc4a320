package health

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// The tests of this file run nodes as processes in network namespaces of their own, joined by
// a bridge in one more, where the endpoints are. They need root, iproute2 and sch_netem.

var netns = flag.Bool("netns", false, "run the tests that need root, network namespaces and a minute")

const nodeEnv = "MERIDIAN_TEST_NODE"

// nodeConf is what a node's process is told.
type nodeConf struct {
	Number int
	Key    string
	Sites  int           // over which nodes are spread; 0: each node is one
	Clock  time.Duration // by which the node's clock is wrong
	Signs  bool          // nodes sign
	Seed   string        // of the key that it signs with, in place of its own
	Lies   bool          // it says down of the first endpoint
}

// nodeSays is what it says of itself five times a second.
type nodeSays struct {
	Verdicts string // a sign each endpoint: + - ?
	Votes    string // of the first endpoint
	Abstains bool
	Flips    uint64
	Refused  uint64
	Unsigned uint64 // words of those that have no key
	Forged   uint64 // and of those that sign with another
}

const (
	lanEndpoints = 4
	lanNodes     = 7 // that have a key
)

func lanTargets() []Target {
	var out []Target
	for i := range lanEndpoints {
		x := Target{ID: gslb.EndpointID{Pool: "gfe", Addr: netip.AddrFrom4([4]byte{10, 99, 0, byte(200 + i)})}}
		x.Addr = netip.AddrPortFrom(x.ID.Addr, 8080)
		x.Probe = config.Probe{TCP: &config.TCPProbe{Port: 8080}, Interval: config.Duration(time.Second), Timeout: config.Duration(800 * time.Millisecond),
			Jitter: new(0.1), Rise: 2, Fall: 3}
		out = append(out, x)
	}
	return out
}

// runNode is the process of a node: it ends with its input.
func runNode(text string) {
	var c nodeConf
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		panic(err)
	}
	listen := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 99, 0, byte(1 + c.Number)}), 7946)
	name := fmt.Sprintf("ns%d", c.Number)
	o := Options{Node: name, Site: fmt.Sprintf("site%d", c.Number%cmp.Or(c.Sites, 256)),
		Gossip: config.Gossip{Listen: listen, Key: c.Key, Join: []string{"10.99.0.1:7946", "10.99.0.2:7946"}}}
	if c.Signs {
		o.Key = keyOf(cmp.Or(c.Seed, name))
	}
	m := New(o)
	m.self.Version.Epoch += uint64(c.Clock.Microseconds()) // all that is ever read of the clock on the wall
	if c.Signs {
		m.keys = make(map[string]ed25519.PublicKey)
		for i := range lanNodes {
			listed := fmt.Sprintf("ns%d", i)
			m.keys[listed] = keyOf(listed).Public().(ed25519.PublicKey)
		}
	}
	targets := lanTargets()
	if c.Lies {
		targets[0].Addr = netip.AddrPortFrom(targets[0].Addr.Addr(), 1)
	}
	m.SetTargets(targets)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }()
	for out := json.NewEncoder(os.Stdout); ; {
		select {
		case <-done:
			return
		case <-time.After(200 * time.Millisecond):
		}
		var s nodeSays
		for _, v := range m.Views() {
			s.Verdicts += map[string]string{"up": "+", "down": "-", "unknown": "?"}[v.Verdict]
		}
		s.Votes = (&simNode{Monitor: m}).votes()
		st := m.Stats()
		s.Abstains, s.Flips, s.Refused = st.Abstains, st.Flips, st.GossipDropped["refused"]
		s.Unsigned, s.Forged = st.GossipDropped["unsigned"], st.GossipDropped["forged"]
		_ = out.Encode(s)
	}
}

// lans counts the LANs of this process, so that each has a name of its own.
var lans atomic.Int32

// lan is the bridge and what hangs on it.
type lan struct {
	t      *testing.T // of the step that runs
	outer  *testing.T
	prefix string
	ends   [lanEndpoints]*process
}

// process is a helper in a namespace.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser

	mu   sync.Mutex
	last nodeSays // guarded by mu
	at   time.Time
	over chan struct{}
	once sync.Once
}

func (p *process) says() (nodeSays, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last, time.Since(p.at)
}

// stop ends the process, once.
func (p *process) stop() {
	p.once.Do(func() {
		_ = p.in.Close()
		<-p.over
		_ = p.cmd.Wait()
	})
}

// run runs a command, and fails the test with its output.
func (l *lan) run(words ...string) {
	l.t.Helper()
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s: %v: %s", strings.Join(words, " "), err, out)
	}
}

func (l *lan) ns(n int) string { return fmt.Sprintf("%sn%d", l.prefix, n) }

// port is the bridge's side of node n.
func (l *lan) port(n int) string { return fmt.Sprintf("p%d", n) }

func newLAN(t *testing.T, nodes int) *lan {
	t.Helper()
	need := func(why string) {
		t.Helper()
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	if os.Geteuid() != 0 {
		need("not root: no network namespaces")
	}
	l := &lan{t: t, outer: t, prefix: fmt.Sprintf("mrd%d%c", os.Getpid()%10000, 'a'+lans.Add(1))}
	bridge := l.prefix + "b"
	if out, err := exec.Command("ip", "netns", "add", bridge).CombinedOutput(); err != nil {
		need(fmt.Sprintf("no network namespaces: %v: %s", err, out))
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", bridge).Run() })
	in := func(words ...string) []string { return append([]string{"ip", "-n", bridge}, words...) }
	if out, err := exec.Command("ip", "-n", bridge, "link", "add", "br0", "type", "bridge").CombinedOutput(); err != nil {
		need(fmt.Sprintf("no bridge: %v: %s", err, out))
	}
	l.run(in("link", "set", "br0", "up")...)
	l.run(in("link", "set", "lo", "up")...)
	for i := range lanEndpoints {
		l.run(in("addr", "add", fmt.Sprintf("10.99.0.%d/24", 200+i), "dev", "br0")...)
	}
	for i := range nodes {
		ns := l.ns(i)
		l.run("ip", "netns", "add", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		l.run(in("link", "add", l.port(i), "type", "veth", "peer", "name", "eth0", "netns", ns)...)
		l.run(in("link", "set", l.port(i), "master", "br0", "up")...)
		l.run("ip", "-n", ns, "addr", "add", fmt.Sprintf("10.99.0.%d/24", 1+i), "dev", "eth0")
		l.run("ip", "-n", ns, "link", "set", "eth0", "up")
		l.run("ip", "-n", ns, "link", "set", "lo", "up")
	}
	for i := range l.ends {
		l.endpoint(i)
	}
	return l
}

// start runs this test binary in a namespace, with what it is told in an environment variable.
func (l *lan) start(ns, env, value string) *process {
	l.t.Helper()
	p := &process{cmd: exec.Command("ip", "netns", "exec", ns, os.Args[0]), over: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env+"="+value)
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		l.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() {
		defer close(p.over)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var s nodeSays
			if json.Unmarshal(lines.Bytes(), &s) == nil {
				p.mu.Lock()
				p.last, p.at = s, time.Now()
				p.mu.Unlock()
			}
		}
	}()
	return p
}

// endpoint brings endpoint i up.
func (l *lan) endpoint(i int) {
	p := l.start(l.prefix+"b", helperEnv, fmt.Sprintf("10.99.0.%d:8080", 200+i))
	l.ends[i] = p
	l.outer.Cleanup(p.stop)
}

func (l *lan) node(i int, key string) *process { return l.nodeWith(nodeConf{Number: i, Key: key}) }

func (l *lan) nodeWith(c nodeConf) *process {
	b, err := json.Marshal(c)
	if err != nil {
		l.t.Fatal(err)
	}
	p := l.start(l.ns(c.Number), nodeEnv, string(b))
	l.outer.Cleanup(p.stop)
	return p
}

// until waits until every node of some says what f wants.
func (l *lan) until(limit time.Duration, what string, some []*process, f func(nodeSays) bool) {
	l.t.Helper()
	for end := time.Now().Add(limit); ; poll() {
		ok := true
		var says []string
		for _, p := range some {
			s, age := p.says()
			ok = ok && age < 2*time.Second && f(s)
			says = append(says, fmt.Sprintf("%+v", s))
		}
		if ok {
			return
		}
		if time.Now().After(end) {
			l.t.Fatalf("not within %v: %s\n%s", limit, what, strings.Join(says, "\n"))
		}
	}
}

// stays wants what f wants of every node, all the time, and that each still speaks in the end.
func (l *lan) stays(span time.Duration, what string, some []*process, f func(nodeSays) bool) {
	l.t.Helper()
	began := time.Now()
	look := func() (silent int) {
		for _, p := range some {
			s, age := p.says()
			if !f(s) {
				l.t.Fatalf("%s: %+v", what, s)
			}
			if age >= time.Since(began)/2 {
				silent++
			}
		}
		return silent
	}
	for ; time.Since(began) < span; poll() {
		look()
	}
	for ; look() > 0; poll() {
		if time.Since(began) > span+patience {
			l.t.Fatalf("%d of %d nodes are silent", look(), len(some))
		}
	}
}

func saying(want string) func(nodeSays) bool {
	return func(s nodeSays) bool { return s.Verdicts == want }
}

// TestNamespaces puts three real nodes through what networks do, one thing after another: what
// is up stays up for all, and what dies is down for those who are not cut off.
func TestNamespaces(t *testing.T) {
	needNetns(t)
	t.Parallel() // it waits more than it works
	l := newLAN(t, 4)
	stopped, losing, oneWay := 8*time.Second, 5*time.Second, 8*time.Second
	if *netns {
		stopped, losing, oneWay = time.Minute, 30*time.Second, 30*time.Second
	}
	var nodes []*process
	for i := range 3 {
		nodes = append(nodes, l.node(i, key('k')))
	}
	all := func(s nodeSays) bool { return s.Verdicts == "++++" && strings.Count(s.Votes, "+ns") == 3 }
	l.until(patience, "all hear all", nodes, all)

	netem := func(t *testing.T, n int, words ...string) {
		t.Helper()
		args := append([]string{"netns", "exec", l.ns(n), "tc", "qdisc", "replace", "dev", "eth0", "root", "netem"}, words...)
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			// A kernel without sch_netem cannot delay, but every one can lose.
			t.Logf("loss without delay: %s", bytes.TrimSpace(out))
			l.run("ip", "netns", "exec", l.ns(n), "iptables", "-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability", "0.05", "-j", "DROP")
			t.Cleanup(func() { _ = exec.Command("ip", "netns", "exec", l.ns(n), "iptables", "-F", "INPUT").Run() })
			return
		}
		t.Cleanup(func() {
			_ = exec.Command("ip", "netns", "exec", l.ns(n), "tc", "qdisc", "del", "dev", "eth0", "root").Run()
		})
	}
	steps := []step{
		{"loss and delay", func(t *testing.T) {
			for i := range nodes {
				netem(t, i, "delay", "60ms", "10ms", "loss", "5%")
			}
			l.stays(losing, "a false verdict", nodes, saying("++++"))
		}},
		{"one-way loss", func(t *testing.T) { // what the third says to peers is lost; it hears them
			for _, peer := range []string{"10.99.0.1", "10.99.0.2"} {
				l.run("ip", "-n", l.ns(2), "route", "add", "blackhole", peer+"/32")
			}
			l.stays(oneWay, "a false verdict", nodes, saying("++++"))
			for _, peer := range []string{"10.99.0.1", "10.99.0.2"} {
				l.run("ip", "-n", l.ns(2), "route", "del", "blackhole", peer+"/32")
			}
			l.until(patience, "all hear all", nodes, all)
		}},
		{"partition 2/1", func(t *testing.T) {
			l.run("ip", "-n", l.prefix+"b", "link", "set", l.port(2), "down")
			l.until(patience, "the one abstains", nodes[2:], func(s nodeSays) bool { return s.Abstains })
			l.ends[3].stop()
			l.until(patience, "the two see what dies", nodes[:2], saying("+++-"))
			l.stays(3*time.Second, "the one changed its mind", nodes[2:], saying("++++"))
			l.run("ip", "-n", l.prefix+"b", "link", "set", l.port(2), "up")
			l.until(patience, "healed", nodes, saying("+++-"))
			l.endpoint(3)
			l.until(patience, "all hear all", nodes, all)
		}},
		{"SIGSTOP", func(t *testing.T) {
			pid := nodes[1].cmd.Process.Pid // ip execs the node
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
			others := []*process{nodes[0], nodes[2]}
			l.stays(stopped, "a false verdict", others, saying("++++"))
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			l.until(patience, "all hear all", nodes, all)
			l.stays(3*time.Second, "a false verdict", nodes, saying("++++"))
		}},
		{"wrong key", func(t *testing.T) {
			stranger := l.node(3, key('x'))
			defer stranger.stop()
			l.stays(4*time.Second, "the stranger counts", nodes, func(s nodeSays) bool { return !strings.Contains(s.Votes, "ns3") && s.Verdicts == "++++" })
			l.until(patience, "the stranger is refused", nodes[:1], func(s nodeSays) bool { return s.Refused > 0 })
		}},
		{"rolling restart", func(t *testing.T) {
			for i := range nodes {
				nodes[i].stop()
				var left []*process
				for j := range nodes {
					if j != i {
						left = append(left, nodes[j])
					}
				}
				l.stays(2*time.Second, "a false verdict", left, saying("++++"))
				nodes[i] = l.node(i, key('k'))
				l.until(patience, "all hear all", nodes, all)
			}
		}},
	}
	l.steps(steps)
}

func needNetns(t *testing.T) {
	if !*netns && os.Getenv("REQUIRE_ALL") != "1" {
		t.Skip("takes most of a minute: asked for with -netns, or REQUIRE_ALL=1")
	}
}

// step is one thing that happens to a LAN.
type step struct {
	name string
	do   func(t *testing.T)
}

// steps lets one thing happen after another, until one fails.
func (l *lan) steps(steps []step) {
	for _, s := range steps {
		if !l.outer.Run(s.name, func(t *testing.T) { l.t = t; s.do(t) }) {
			break
		}
		l.t = l.outer
	}
}

// TestNamespacesSix does as TestNamespaces with six nodes that sign, two in each of three sites,
// one of them a day ahead and another a day behind.
func TestNamespacesSix(t *testing.T) {
	needNetns(t)
	t.Parallel()
	l := newLAN(t, lanNodes)
	apart := 8 * time.Second
	if *netns {
		apart = time.Minute
	}
	const day = 24 * time.Hour
	conf := func(i int) nodeConf { return nodeConf{Number: i, Key: key('k'), Sites: 3, Signs: true} }
	var nodes []*process
	for i := range lanNodes - 1 {
		c := conf(i)
		c.Clock = []time.Duration{day, -day, 0}[min(i, 2)]
		nodes = append(nodes, l.nodeWith(c))
	}
	all := func(s nodeSays) bool { return s.Verdicts == "++++" && strings.Count(s.Votes, "+ns") == len(nodes) }
	l.until(patience, "all hear all", nodes, all)
	l.steps([]step{
		{"wrong clocks", func(*testing.T) {
			l.ends[3].stop()
			l.until(patience, "everybody sees what dies", nodes, saying("+++-"))
			l.endpoint(3)
			l.until(patience, "everybody sees it again", nodes, all)
		}},
		{"a clock set right", func(*testing.T) { // peers know of a life in the future
			nodes[0].stop()
			nodes[0] = l.nodeWith(conf(0))
			l.until(patience, "all hear all", nodes, all)
			l.stays(2*time.Second, "a false verdict", nodes, saying("++++"))
		}},
		{"partition 3/3", func(*testing.T) {
			split := func(verb string) {
				for i := range nodes {
					for j := range nodes {
						if (i < 3) != (j < 3) {
							l.run("ip", "-n", l.ns(i), "route", verb, "blackhole", fmt.Sprintf("10.99.0.%d/32", 1+j))
						}
					}
				}
			}
			split("add")
			half := func(from, to int) func(nodeSays) bool {
				var want []string
				for i := from; i < to; i++ {
					want = append(want, fmt.Sprintf("+ns%d", i))
				}
				return func(s nodeSays) bool { return s.Votes == strings.Join(want, " ") }
			}
			l.until(patience, "one half hears itself alone", nodes[:3], half(0, 3))
			l.until(patience, "so does the other", nodes[3:], half(3, 6))
			l.stays(apart, "a false verdict", nodes, saying("++++"))
			l.ends[3].stop()
			l.until(patience, "both see what dies", nodes, saying("+++-"))
			split("del")
			l.until(patience, "healed", nodes, func(s nodeSays) bool { return strings.Count(s.Votes, "+ns") == len(nodes) && s.Verdicts == "+++-" })
			l.endpoint(3)
			l.until(patience, "all hear all", nodes, all)
		}},
		{"stolen keys", func(*testing.T) {
			thief := conf(6) // of the gossip's key: what it signs with is its own
			thief.Seed, thief.Lies = "thief", true
			p := l.nodeWith(thief)
			l.until(patience, "the thief is heard and not believed", nodes, func(s nodeSays) bool { return s.Unsigned+s.Forged > 0 })
			l.stays(3*time.Second, "the thief counts", nodes, func(s nodeSays) bool { return !strings.Contains(s.Votes, "ns6") && s.Verdicts == "++++" })
			p.stop()
			thief.Seed = "" // of a node's key as well
			p = l.nodeWith(thief)
			l.until(patience, "the thief has a vote", nodes, func(s nodeSays) bool { return strings.Contains(s.Votes, "-ns6") })
			l.stays(3*time.Second, "a single vote decides", nodes, saying("++++"))
			p.stop()
		}},
		{"rolling restart", func(*testing.T) {
			for i := range nodes {
				nodes[i].stop()
				left := slices.Delete(slices.Clone(nodes), i, i+1)
				l.stays(time.Second, "a false verdict", left, saying("++++"))
				nodes[i] = l.nodeWith(conf(i))
				l.until(patience, "it hears all", nodes[i:i+1], all)
			}
			l.until(patience, "all hear all", nodes, all)
		}},
	})
}
