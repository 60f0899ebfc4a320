package health

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
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
}

// nodeSays is what it says of itself five times a second.
type nodeSays struct {
	Verdicts string // a sign each endpoint: + - ?
	Votes    string // of the first endpoint
	Abstains bool
	Flips    uint64
	Refused  uint64
}

const lanEndpoints = 4

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
	m := New(Options{Node: fmt.Sprintf("ns%d", c.Number), Site: fmt.Sprintf("site%d", c.Number),
		Gossip: config.Gossip{Listen: listen, Key: c.Key, Join: []string{"10.99.0.1:7946", "10.99.0.2:7946"}}})
	m.SetTargets(lanTargets())
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
		_ = out.Encode(s)
	}
}

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
	l := &lan{t: t, outer: t, prefix: fmt.Sprintf("mrd%d", os.Getpid()%10000)}
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

func (l *lan) node(i int, key string) *process {
	b, err := json.Marshal(nodeConf{Number: i, Key: key})
	if err != nil {
		l.t.Fatal(err)
	}
	p := l.start(l.ns(i), nodeEnv, string(b))
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

// stays wants what f wants of every node, all the time.
func (l *lan) stays(span time.Duration, what string, some []*process, f func(nodeSays) bool) {
	l.t.Helper()
	for end := time.Now().Add(span); time.Now().Before(end); poll() {
		for _, p := range some {
			if s, _ := p.says(); !f(s) {
				l.t.Fatalf("%s: %+v", what, s)
			}
		}
	}
}

func saying(want string) func(nodeSays) bool {
	return func(s nodeSays) bool { return s.Verdicts == want }
}

// TestNamespaces puts three real nodes through what networks do, one thing after another: what
// is up stays up for all, and what dies is down for those who are not cut off.
func TestNamespaces(t *testing.T) {
	if !*netns && os.Getenv("REQUIRE_ALL") != "1" {
		t.Skip("takes most of a minute: asked for with -netns, or REQUIRE_ALL=1")
	}
	l := newLAN(t, 4)
	stopped := 8 * time.Second
	if *netns {
		stopped = time.Minute
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
	steps := []struct {
		name string
		do   func(t *testing.T)
	}{
		{"loss and delay", func(t *testing.T) {
			for i := range nodes {
				netem(t, i, "delay", "60ms", "10ms", "loss", "5%")
			}
			l.stays(10*time.Second, "a false verdict", nodes, saying("++++"))
		}},
		{"one-way loss", func(t *testing.T) { // what the third says to peers is lost; it hears them
			for _, peer := range []string{"10.99.0.1", "10.99.0.2"} {
				l.run("ip", "-n", l.ns(2), "route", "add", "blackhole", peer+"/32")
			}
			l.stays(12*time.Second, "a false verdict", nodes, saying("++++"))
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
	for _, s := range steps {
		if !t.Run(s.name, func(t *testing.T) { l.t = t; s.do(t) }) {
			break
		}
		l.t = t
	}
}
