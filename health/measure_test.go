package health

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// The measurements of testdata/bench/results/health.md. They take minutes and a quiet machine,
// so that each runs only when it is asked for:
//
//	go test ./health -run TestMeasureProbes -v -measure.endpoints 50000
//	go test ./health -run TestMeasureDetection -v -measure.trials 50
var (
	measureEndpoints = flag.Int("measure.endpoints", 500, "endpoints that TestMeasureProbes probes every 5 s")
	measureTrials    = flag.Int("measure.trials", 1, "deaths of endpoints that TestMeasureDetection measures")
	measureProfile   = flag.String("measure.profile", "", "folder for profiles of the CPU, and of what is held, while TestMeasureProbes measures")
)

const helperEnv = "MERIDIAN_TEST_RESPONDER"

// TestMain runs the test binary as the server of the measurements where it is told to be one.
func TestMain(m *testing.M) {
	if listen := os.Getenv(helperEnv); listen != "" {
		respond(listen)
		return
	}
	if node := os.Getenv(nodeEnv); node != "" {
		runNode(node)
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// respond answers HTTP there until its input ends, and says which on its output.
func respond(listen string) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(l.Addr())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				buf := make([]byte, 1024) // a request comes in one piece
				for {
					if n, err := c.Read(buf); n == 0 || err != nil {
						return
					}
					if _, err := c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")); err != nil {
						return
					}
				}
			}()
		}
	}()
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
}

// cpu returns what this process has used.
func cpu(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// resident returns the resident set of this process in MiB.
func resident(t *testing.T) float64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(b)) {
		var kb float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kb); err == nil {
			return kb / 1024
		}
	}
	return 0
}

// profile starts what measure.profile asks for, until stop.
func profile(t *testing.T, kind string) (stop func()) {
	if *measureProfile == "" {
		return func() {}
	}
	create := func(name string) *os.File {
		f, err := os.Create(filepath.Join(*measureProfile, strings.ReplaceAll(kind, " ", "-")+name))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	f := create(".cpu")
	if err := pprof.StartCPUProfile(f); err != nil {
		t.Fatal(err)
	}
	return func() {
		pprof.StopCPUProfile()
		runtime.GC()
		heap := create(".heap")
		if err := errors.Join(pprof.WriteHeapProfile(heap), heap.Close(), f.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestMeasureProbes probes many endpoints every 5 s, as one node of a fleet of one does.
func TestMeasureProbes(t *testing.T) {
	server := exec.CommandContext(t.Context(), os.Args[0])
	server.Env = append(os.Environ(), helperEnv+"=127.0.0.1:0")
	in, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = server.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netip.ParseAddrPort(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	// What the kernel takes of it, with next to nothing around: the floor.
	floor := func(name string, f func() error) {
		n := *measureEndpoints
		before := cpu(t)
		for range n {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("floor, %s: %.1f µs", name, (cpu(t)-before).Seconds()*1e6/float64(n))
	}
	floor("socket, connect, close", func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
			unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}), unix.Close(fd))
	})
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	request, answer := []byte("GET / HTTP/1.1\r\n\r\n"), make([]byte, 1024)
	floor("write and read on a connection", func() error {
		_, err := c.Write(request)
		_, err2 := c.Read(answer)
		return errors.Join(err, err2)
	})
	every := 5 * time.Second
	few := min(*measureEndpoints, int(maxKept()))
	for _, k := range []struct {
		kind      string
		probe     config.Probe
		endpoints int
		interval  time.Duration
	}{
		{"tcp", config.Probe{TCP: &config.TCPProbe{}}, *measureEndpoints, every},
		{"http", config.Probe{HTTP: &config.HTTPProbe{Path: "/healthz"}}, *measureEndpoints, every},
		// The two ways of it: no connection can be kept, and each can, as many as there may be, at the same rate.
		{"http anew", config.Probe{HTTP: &config.HTTPProbe{Path: "/healthz", Reuse: 1}}, *measureEndpoints, every},
		{"http kept", config.Probe{HTTP: &config.HTTPProbe{Path: "/healthz"}}, few, every * time.Duration(few) / time.Duration(*measureEndpoints)},
	} {
		t.Run(k.kind, func(t *testing.T) {
			runtime.GC()
			kind, p := k.kind, k.probe
			var targets []Target
			for i := range k.endpoints {
				x := target(addr, p)
				x.ID = gslb.EndpointID{Pool: fmt.Sprintf("pool-%d", i/100), Addr: idOf(i).Addr}
				x.Probe.Interval, x.Probe.Timeout = config.Duration(k.interval), config.Duration(k.interval/2)
				targets = append(targets, x)
			}
			m := New(Options{Node: "ns1", Site: "a"})
			m.SetTargets(targets)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- m.Run(ctx) }()
			<-m.FirstRound()
			const settle, span = 6 * time.Second, 10 * time.Second
			if *measureEndpoints > 1000 {
				time.Sleep(settle)
			}
			stop := profile(t, k.kind)
			before, began := cpu(t), time.Now()
			was := m.Stats()
			wait := span
			if *measureEndpoints <= 1000 {
				wait = time.Second
			}
			time.Sleep(wait)
			used, took := cpu(t)-before, time.Since(began)
			s := m.Stats()
			held := resident(t)
			stop()
			done2 := uint64(0)
			for class, n := range s.Probes {
				done2 += n - was.Probes[class]
			}
			t.Logf("%s: %d endpoints every %v: %.0f probes/s, %.0f %% of one core, %.0f µs a probe, %.0f MiB resident, %d late, results %v", kind, k.endpoints, k.interval,
				float64(done2)/took.Seconds(), 100*used.Seconds()/took.Seconds(), used.Seconds()*1e6/float64(max(1, done2)), held, s.Late-was.Late, s.Probes)
			if s.Probes["ok"] == 0 {
				t.Error("no probe succeeds")
			}
			cancel()
			<-done
		})
	}
}

// TestMeasureDetection kills endpoints of three nodes in three sites that probe every second,
// and measures until no node serves them.
func TestMeasureDetection(t *testing.T) {
	trials := *measureTrials
	checkLeaks(t)
	type end struct {
		id   gslb.EndpointID
		addr netip.AddrPort
		l    net.Listener
	}
	var ends []end
	var targets []Target
	for i := range 2*trials + 10 { // most of everything stays up
		l, addr := listen(t)
		x := target(addr, config.Probe{TCP: &config.TCPProbe{}})
		x.ID = gslb.EndpointID{Pool: fmt.Sprintf("pool-%d", i), Addr: addr.Addr()}
		x.Probe.Interval, x.Probe.Timeout, x.Probe.Fall, x.Probe.Jitter = config.Duration(time.Second), config.Duration(800*time.Millisecond), 3, new(0.1)
		ends, targets = append(ends, end{x.ID, addr, l}), append(targets, x)
	}
	var monitors []*Monitor
	for i := range 3 {
		g := loopback(key('k'))
		if i > 0 {
			g.Join = []string{monitors[0].GossipAddr().String()}
		}
		m := New(Options{Node: fmt.Sprintf("ns%d", i), Site: fmt.Sprintf("site%d", i), Gossip: g})
		m.SetTargets(targets)
		runMonitor(t, m)
		monitors = append(monitors, m)
	}
	eventually(t, "all nodes hear all", func() bool {
		return !slices.ContainsFunc(monitors, func(m *Monitor) bool { return freshVotes(m) != 3 })
	})
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	for i := range trials {
		time.Sleep(time.Duration(rand.IntN(800)) * time.Millisecond) // any phase
		wg.Go(func() {
			died := time.Now()
			_ = ends[i].l.Close()
			for slices.ContainsFunc(monitors, func(m *Monitor) bool { return m.Verdicts()[ends[i].id] != gslb.Down }) {
				if time.Since(died) > patience {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(died))
		})
	}
	wg.Wait()
	slices.Sort(took)
	if len(took) != trials {
		t.Fatalf("%d of %d were noticed", len(took), trials)
	}
	t.Logf("%d trials, three sites, 1 s probes, fall 3: median %v, p99 %v", trials,
		took[trials/2].Round(10*time.Millisecond), took[min(trials-1, trials*99/100)].Round(10*time.Millisecond))
}
