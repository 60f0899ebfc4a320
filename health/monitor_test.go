package health

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
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

// patience is how long a test with real sockets waits for what a quiet machine does in a
// second or less.
const patience = time.Minute

// checkLeaks fails t if goroutines that the test started are there after its clean-up.
// Memberlist's own end a while after its shutdown.
func checkLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		left := func() string {
			buf := make([]byte, 1<<20)
			var out []string
			for i, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				waits := strings.Contains(g, "testing.(*T).Parallel(") // its turn comes later
				if i > 0 && !waits && !strings.Contains(g, "health.TestMain(") && (strings.Contains(g, "/meridian/health.") || strings.Contains(g, "hashicorp/memberlist.")) {
					out = append(out, g)
				}
			}
			return strings.Join(out, "\n\n")
		}
		for end := time.Now().Add(patience); ; {
			switch stacks := left(); {
			case stacks == "":
				return
			case time.Now().After(end):
				t.Errorf("goroutines left:\n%s", stacks)
				return
			}
			poll()
		}
	})
}

// poll waits a moment between two looks at what gives no sign.
func poll() { <-time.After(5 * time.Millisecond) }

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); poll() {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// lockedBuffer collects a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// runMonitor runs a monitor until the test ends or the function is called.
func runMonitor(t *testing.T, m *Monitor) (stop func()) {
	t.Helper()
	if err := m.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Run returned %v, want %v", err, context.Canceled)
		}
	})
	t.Cleanup(stop)
	return stop
}

func key(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }

func loopback(key string, join ...string) config.Gossip {
	return config.Gossip{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Join: join, Key: key}
}

// fleet runs n monitors that know each other, over sockets.
func fleet(t *testing.T, n int, targets []Target) (monitors []*Monitor, stops []func()) {
	t.Helper()
	checkLeaks(t)
	for i := range n {
		g := loopback(key('k'))
		if i > 0 {
			g.Join = []string{monitors[0].GossipAddr().String()}
		}
		m := New(Options{Node: fmt.Sprintf("ns%d", i), Site: "site", Gossip: g})
		m.SetTargets(targets)
		m.SetInfo(fmt.Sprintf("plan %d", i))
		stops = append(stops, runMonitor(t, m))
		monitors = append(monitors, m)
	}
	eventually(t, "all nodes hear all", func() bool {
		return !slices.ContainsFunc(monitors, func(m *Monitor) bool { return freshVotes(m) != n })
	})
	return monitors, stops
}

func freshVotes(m *Monitor) (n int) {
	for _, v := range m.Views()[0].Vantages {
		if v.Fresh {
			n++
		}
	}
	return n
}

// await waits until m's verdict of id is v, by the sign that m gives.
func await(t *testing.T, m *Monitor, id gslb.EndpointID, v gslb.Verdict) {
	t.Helper()
	limit := time.After(patience)
	for m.Verdicts()[id] != v {
		select {
		case <-m.Changed():
		case <-limit:
			t.Fatalf("%s: %v is not %s within %v: %+v", m.o.Node, id, verdictName(v), patience, m.Views())
		}
	}
}

func fastProbe(addr netip.AddrPort) Target {
	return target(addr, config.Probe{HTTP: &config.HTTPProbe{}, Interval: config.Duration(200 * time.Millisecond), Timeout: config.Duration(200 * time.Millisecond)})
}

// TestMonitorsSockets kills an endpoint of three nodes that gossip over real sockets, and one
// of the nodes.
func TestMonitorsSockets(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(s.Close)
	_, steady := listen(t)
	x := fastProbe(serverAddr(s))
	other := target(steady, config.Probe{TCP: &config.TCPProbe{}})
	other.ID.Pool = "other"
	monitors, stops := fleet(t, 3, []Target{x, other})
	for _, m := range monitors {
		<-m.FirstRound()
		await(t, m, x.ID, gslb.Up)
	}

	died := time.Now()
	s.Close()
	for _, m := range monitors {
		await(t, m, x.ID, gslb.Down)
	}
	t.Logf("down on all nodes after %v: fall 3, interval and timeout 200 ms", time.Since(died))
	eventually(t, "all three say down", func() bool {
		return !slices.ContainsFunc(monitors[1].Views()[0].Vantages, func(v Vantage) bool { return v.Up || !v.Fresh })
	})
	view := monitors[1].Views()[0]
	if view.Pool != "gfe" || view.Endpoint != x.ID.Addr || view.Verdict != "down" || view.Since.Before(died) || len(view.Vantages) != 3 {
		t.Errorf("got %+v", view)
	}
	for _, v := range view.Vantages {
		if v.Class != "refused" || v.Detail != "connection refused" || v.Site != "site" {
			t.Errorf("got vantage %+v", v)
		}
	}

	if got := monitors[0].Members(); len(got) != 3 || got[0].State != "self" || got[2].State != "alive" || got[2].Info != "plan 2" || got[2].Site != "site" || got[2].Role != "full" {
		t.Errorf("got %+v", got)
	}
	stops[2]()
	for _, m := range monitors[:2] {
		eventually(t, "the node that left no longer counts", func() bool { return freshVotes(m) == 2 })
	}
	st := monitors[0].Stats()
	if st.Targets != 2 || st.Members != 2 || st.Flips != 1 || st.GossipIn == 0 || st.GossipOut == 0 || st.Probes["ok"] == 0 || st.Probes["refused"] == 0 {
		t.Errorf("got %+v", st)
	}
	for cause, n := range st.GossipDropped {
		if n != 0 {
			t.Errorf("%d messages dropped for %s, want none", n, cause)
		}
	}
}

// TestMonitorsDetection measures how long it takes from the death of an endpoint until no
// node serves it, five times. What it wants is generous, since it shares the machine.
func TestMonitorsDetection(t *testing.T) {
	const fall, interval, timeout = 3, 200 * time.Millisecond, 100 * time.Millisecond
	l, addr := listen(t)
	x := target(addr, config.Probe{TCP: &config.TCPProbe{}, Interval: config.Duration(interval), Timeout: config.Duration(timeout), Fall: fall})
	monitors, _ := fleet(t, 3, []Target{x})
	var took []time.Duration
	for range 5 {
		for _, m := range monitors {
			await(t, m, x.ID, gslb.Up)
		}
		died := time.Now()
		_ = l.Close()
		for _, m := range monitors {
			await(t, m, x.ID, gslb.Down)
		}
		took = append(took, time.Since(died))
		var err error
		if l, err = net.Listen("tcp", addr.String()); err != nil {
			t.Fatal(err)
		}
	}
	_ = l.Close()
	slices.Sort(took)
	bound := fall*interval + timeout + time.Second
	t.Logf("fall %d, interval %v, timeout %v: median %v, longest %v, bound %v", fall, interval, timeout, took[2], took[4], bound)
	if took[2] > bound+5*time.Second {
		t.Errorf("median %v, want at most %v on a quiet machine", took[2], bound)
	}
}

// TestMonitorStranger wants what does not hold the key to change nothing, be counted, and be
// logged once.
func TestMonitorStranger(t *testing.T) {
	checkLeaks(t)
	_, open := listen(t)
	x := target(open, config.Probe{TCP: &config.TCPProbe{}, Interval: config.Duration(200 * time.Millisecond)})
	log := new(lockedBuffer)
	m := New(Options{Node: "ns1", Site: "site", Gossip: loopback(key('k')), Logger: slog.New(slog.NewTextHandler(log, nil))})
	m.SetTargets([]Target{x})
	runMonitor(t, m)
	await(t, m, x.ID, gslb.Up)

	liar := func(name string, g config.Gossip) func() {
		g.Join = []string{m.GossipAddr().String()}
		s := New(Options{Node: name, Gossip: g, probe: func(context.Context, Target) Result { return Result{Class: Refused} }})
		s.SetTargets([]Target{x})
		return runMonitor(t, s)
	}
	before := m.Stats().GossipDropped["refused"]
	for _, g := range []config.Gossip{loopback(key('x')), loopback("")} {
		stop := liar("ns2", g)
		eventually(t, "the stranger is refused", func() bool { return m.Stats().GossipDropped["refused"] > before })
		stop()
		before = m.Stats().GossipDropped["refused"]
	}
	c, err := net.Dial("udp", m.GossipAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for _, junk := range []string{"x", "\xf4\x08meridianxxxx", "\xf4", strings.Repeat("\x00", 1200)} {
		_, _ = c.Write([]byte(junk))
	}
	eventually(t, "junk is refused", func() bool { return m.Stats().GossipDropped["refused"] >= before+4 })

	if got := m.Members(); len(got) != 1 {
		t.Errorf("got members %+v, want this node alone", got)
	}
	if v := m.Views()[0]; v.Verdict != "up" || len(v.Vantages) != 1 {
		t.Errorf("got %+v, want up by this node alone", v)
	}
	if got := strings.Count(log.String(), "gossip from a stranger refused"); got != 1 {
		t.Errorf("logged %d times, want once:\n%s", got, log)
	}
}

// TestMonitorHearsJunk gives a monitor what only a holder of the key can send.
func TestMonitorHearsJunk(t *testing.T) {
	m := New(Options{Node: "ns1", Gossip: loopback("")})
	m.SetTargets([]Target{fakeTarget(0)})
	r := sampleReport(3)
	r.Node = "ns2"
	good := m.sealAll(encodeReport(&r, time.Now(), maxPacket))[0]
	later := bytes.Clone(good)
	later[0]++
	for _, tc := range []struct {
		cause   string
		message []byte
	}{
		{"version", later},
		{"malformed", good[:len(good)-1]},
		{"malformed", nil},
		{"oversize", append(bytes.Clone(good), make([]byte, maxMessage)...)},
		{"oversize", append([]byte{wireBundle}, make([]byte, 10<<20)...)},
	} {
		before := m.Stats().GossipDropped[tc.cause]
		m.hear(tc.message)
		if got := m.Stats().GossipDropped[tc.cause]; got != before+1 {
			t.Errorf("%s: counted %d, want %d", tc.cause, got, before+1)
		}
		if n := len(m.table.Names()); n != 0 {
			t.Errorf("%s: the table has %d nodes, want none", tc.cause, n)
		}
	}
	m.hear(good)
	if got := m.table.Names(); len(got) != 1 || m.Stats().GossipIn != 6 {
		t.Errorf("after a good one: nodes %v, %d heard", got, m.Stats().GossipIn)
	}
	for range 1000 { // each asks for all that it says it lacks
		m.hear(appendDigest(nil, "ns3", nil))
	}
	if flood := m.Stats().GossipDropped["flood"]; flood < 1000-2*catchBurst || len(m.owed) > maxOwed {
		t.Errorf("of 1000 digests at once %d dropped and %d to be answered, want most and %d", flood, len(m.owed), maxOwed)
	}
}

func TestMonitorListenErrors(t *testing.T) {
	l, busy := listen(t)
	defer func() { _ = l.Close() }()
	checkLeaks(t)
	for _, tc := range []struct {
		name string
		o    Options
		want string
	}{
		{"no name", Options{}, `node.name "": expected 1 to 128 octets`},
		{"long site", Options{Node: "n", Site: strings.Repeat("s", 129)}, "node.site "},
		{"busy port", Options{Node: "n", Gossip: config.Gossip{Listen: busy}}, "gossip.listen " + busy.String() + ": "},
		{"not base64", Options{Node: "n", Gossip: config.Gossip{Listen: busy, Key: "&"}}, "gossip.key: illegal base64"},
		{"short key", Options{Node: "n", Gossip: config.Gossip{Listen: busy, Key: "a2V5"}}, "gossip.key: 3 octets, expected 16, 24 or 32"},
		{"nothing to advertise", Options{Node: "n", Gossip: config.Gossip{Listen: netip.MustParseAddrPort("[::]:0")}}, "gossip.listen [::]:0: expected gossip.advertise"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := New(tc.o).Listen(); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("Listen: got %v, want %s", err, tc.want)
			}
			if err := New(tc.o).Run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("Run: got %v, want %s", err, tc.want)
			}
		})
	}
}

// TestMonitorClose wants a monitor that listens but never runs to leave nothing.
func TestMonitorClose(t *testing.T) {
	checkLeaks(t)
	m := New(Options{Node: "n", Gossip: loopback("")})
	if m.GossipAddr().IsValid() {
		t.Error("an address before Listen")
	}
	if err := m.Listen(); err != nil {
		t.Fatal(err)
	}
	if err := m.Listen(); err != nil {
		t.Errorf("a second Listen: %v", err)
	}
	addr := m.GossipAddr()
	if addr.Port() == 0 {
		t.Errorf("got address %v", addr)
	}
	for _, network := range []string{"udp", "tcp"} { // somebody is early
		c, err := net.Dial(network, addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = c.Write([]byte("hello"))
	}
	m.Close()
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	_ = l.Close()
}

// TestGossipBeat wants every peer of a large fleet to hear each node once a period.
func TestGossipBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network memNet
		g := newGossip("self", "", "", config.Gossip{}, network.join(0), discardIfNil(nil), new(stats))
		g.hear, g.state, g.lost = func([]byte) {}, func(bool) []byte { return nil }, func(string) {}
		if err := g.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		const peers, messages = 300, 3
		var transports []*memTransport
		for i := range peers {
			transports = append(transports, network.join(i+1))
			(*events)(g).put(&memberlist.Node{Name: fmt.Sprint("ns", i), Addr: transports[i].addr.IP, Port: 7946})
		}
		beats := int(g.period(messages) / heartbeat)
		if want := 4; beats != want { // 900 packets of 256
			t.Errorf("got a period of %d beats, want %d", beats, want)
		}
		for range beats {
			before := g.stats.gossipOut.Load()
			g.beat(make([][]byte, messages))
			if sent := g.stats.gossipOut.Load() - before; sent > sendBudget {
				t.Errorf("a beat of %d packets, want at most %d", sent, sendBudget)
			}
		}
		time.Sleep(time.Second)
		for i, tr := range transports {
			if got := len(tr.packets); got < messages {
				t.Errorf("peer %d got %d packets, want %d", i, got, messages)
			}
		}
		g.stop()
		time.Sleep(time.Minute)
	})
}

func TestLogBridge(t *testing.T) {
	out := new(lockedBuffer)
	s := new(stats)
	b := &logBridge{log: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})), stats: s}
	for range 100 {
		_, _ = b.Write([]byte("[DEBUG] memberlist: Stream connection from=127.0.0.1:1\n"))
		_, _ = b.Write([]byte("[ERR] memberlist: Decrypt packet failed: No installed keys could decrypt the message from=127.0.0.1:1\n"))
		_, _ = b.Write([]byte("[DEBUG] memberlist: failed to join 127.0.0.1:1: remote error: No installed keys could decrypt the message\n"))
	}
	if got := s.dropped[dropRefused].Load(); got != 100 {
		t.Errorf("%d refused, want 100", got)
	}
	if got := strings.Count(out.String(), "level=WARN"); got != 1 {
		t.Errorf("%d warnings, want 1", got)
	}
	if got := strings.Count(out.String(), "level=DEBUG"); got < maxLinesASecond || got > 5*maxLinesASecond {
		t.Errorf("%d lines of debug, want about %d a second", got, maxLinesASecond)
	}
}

// BenchmarkBeat is what a node does once a second for itself in a fleet of a thousand, of which
// each tests three of 300 endpoints; the packets that it sends go nowhere.
func BenchmarkBeat(b *testing.B) {
	m := New(Options{Node: "ns0", Site: "site0"})
	targets := fakeTargets(300)
	for i := range targets {
		targets[i].Probe.Vantages = 3
	}
	m.SetTargets(targets)
	now, list := time.Now(), m.self.List
	for i := range 1000 {
		v := Version{1, 1}
		r := Report{Node: fmt.Sprintf("ns%d", i+1), Heading: Heading{Version: v, Site: fmt.Sprintf("site%d", i%3), Period: time.Minute, List: list, At: now}}
		if i%20 == 0 {
			r.Heading.Failing = 100
		}
		for k := range 3 {
			r.Observations = append(r.Observations, Observation{ID: targets[(3*i+k)%300].ID, Version: v, Up: true, At: now})
		}
		m.table.Merge(r)
	}
	m.age()
	b.ReportAllocs()
	for b.Loop() {
		m.age()
		m.beat()
	}
}
