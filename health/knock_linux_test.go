package health

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// fullPort returns an address of loopback that answers nobody: its queue is full.
func fullPort(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	c, err := net.Dial("tcp", addr.String()) // takes the one place there is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return addr
}

// openPorts returns addresses of both families, if there are, that accept and hang up.
func openPorts(t *testing.T) (open []netip.AddrPort) {
	t.Helper()
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Logf("without %s: %v", at, err)
			continue
		}
		t.Cleanup(func() { _ = l.Close() })
		open = append(open, l.Addr().(*net.TCPAddr).AddrPort())
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
	}
	return open
}

// openFiles returns how many files this process has open.
func openFiles(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestKnock knocks at what listens, refuses and says nothing, many at once and one after
// another over the same lines, and wants the right answers and nothing left behind.
func TestKnock(t *testing.T) {
	open, closed, full := openPorts(t), closedPort(t), fullPort(t)
	const each, rounds = 200, 5
	before := openFiles(t)
	answers := make(chan answer, (len(open)+2)*each)
	k, err := newKnocker(answers, new(budgeted))
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(k.run)
	for range rounds {
		under := make(map[*job]netip.AddrPort)
		begin := func(addr netip.AddrPort, limit time.Duration) *knock {
			j := new(job)
			j.knock = newKnock(addr, nil, j)
			under[j] = addr
			k.start(j.knock, limit)
			return j.knock
		}
		for range each {
			for _, addr := range open {
				begin(addr, ample)
			}
			begin(closed, ample)
		}
		begin(full, 50*time.Millisecond)
		given := begin(full, time.Hour)
		k.giveUp(given)
		for want := len(under); want > 0; want-- {
			a := <-answers
			addr, ok := under[a.job]
			delete(under, a.job)
			right := a.err == nil
			switch {
			case !ok:
				t.Error("an answer that nobody waits for")
			case addr == closed:
				right = errors.Is(a.err, syscall.ECONNREFUSED)
			case a.job.knock == given:
				right = a.err == context.Canceled
			case addr == full:
				right = classify(a.err, Protocol) == Timeout && a.took >= 50*time.Millisecond
			}
			if !right {
				t.Fatalf("%v: got %v after %v", addr, a.err, a.took)
			}
		}
	}
	k.mu.Lock()
	if busy := len(k.lines) - len(k.spare[unix.AF_INET]) - len(k.spare[unix.AF_INET6]); busy != 0 || len(k.under) != 0 || len(k.spare[unix.AF_INET]) == 0 || len(k.spare[unix.AF_INET]) > k.maxSpare {
		t.Errorf("%d lines of %d are busy, %d spare", busy, len(k.lines), len(k.spare[unix.AF_INET]))
	}
	k.mu.Unlock()
	k.close()
	running.Wait()
	j := new(job)
	k.start(newKnock(closed, nil, j), ample) // too late: nothing comes of it
	eventually(t, "all is closed", func() bool { return openFiles(t) <= before })
}

// TestProberKnocks runs a prober over what listens, refuses, says nothing and goes, and wants
// the states of each, the second try, and what is removed to end at once.
func TestProberKnocks(t *testing.T) {
	open, closed, full := openPorts(t), closedPort(t), fullPort(t)
	before := openFiles(t)
	type seen struct {
		class Class
		state State
	}
	var mu sync.Mutex
	last, attempts := make(map[gslb.EndpointID]seen), make(map[gslb.EndpointID]int)
	p := NewProber(ProberOptions{
		Report: func(x Target, r Result, s State) {
			mu.Lock()
			defer mu.Unlock()
			last[x.ID] = seen{r.Class, s}
		},
		attempted: func(x Target, _ time.Time, _ Result) {
			mu.Lock()
			defer mu.Unlock()
			attempts[x.ID]++
		},
	})
	at := func(n int, addr netip.AddrPort, timeout time.Duration) Target {
		x := target(addr, config.Probe{TCP: &config.TCPProbe{}})
		x.ID = idOf(n)
		x.Probe.Interval, x.Probe.Timeout = config.Duration(time.Second), config.Duration(timeout)
		return x
	}
	inverted := at(3, closed, time.Second)
	inverted.Probe.Invert = true
	hung := at(4, full, time.Hour)
	hung.Probe.Interval = config.Duration(time.Hour)
	targets := []Target{at(0, closed, time.Second/4), at(1, full, time.Second/4), inverted, hung}
	for i, addr := range open {
		targets = append(targets, at(5+i, addr, time.Second))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	p.SetTargets(targets)
	is := func(n int, c Class, v gslb.Verdict) bool {
		mu.Lock()
		defer mu.Unlock()
		return last[idOf(n)].class == c && last[idOf(n)].state.Verdict == v
	}
	eventually(t, "each has its verdict", func() bool {
		good := is(0, Refused, gslb.Down) && is(1, Timeout, gslb.Down) && is(3, OK, gslb.Up)
		for i := range open {
			good = good && is(5+i, OK, gslb.Up)
		}
		return good
	})
	mu.Lock()
	if attempts[idOf(0)] < 2 || attempts[idOf(1)] < 2 {
		t.Errorf("%v attempts, want the first failure tried again", attempts)
	}
	mu.Unlock()
	flying := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.inFlight
	}
	p.SetTargets([]Target{hung})
	eventually(t, "what is removed ends", func() bool { return flying() == 1 })
	p.SetTargets(nil)
	eventually(t, "what hangs ends", func() bool { return flying() == 0 })
	if _, ok := last[idOf(4)]; ok {
		t.Error("what never ended was reported")
	}
	p.SetTargets(targets)
	eventually(t, "what hangs is under way again", func() bool { return flying() > 0 })
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("Run returned %v", err)
	}
	eventually(t, "all is closed", func() bool { return openFiles(t) <= before })
}

// TestKnockHears asks servers that answer in parts, at length or oddly, and wants of the prober
// what it says of them over a connection of its own, by a knock where that can hear it.
func TestKnockHears(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n"
	long := strings.Repeat("x", maxBody-1)
	for _, tc := range []struct {
		name     string
		parts    []string
		contains string
		class    Class
	}{
		{"at once", []string{head + "\r\nabcdef"}, "abcdef", OK},
		{"in parts", []string{head[:9], head[9:] + "\r\nabc", "def"}, "abcdef", OK},
		{"another body", []string{head + "\r\nabc", "deg"}, "abcdef", WrongBody},
		{"until it hangs up", []string{"HTTP/1.0 200 OK\r\n\r\nabc", "def"}, "abcdef", OK},
		{"chunks", []string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "3\r\ndef\r\n0\r\n\r\n"}, "abcdef", OK},
		{"a status is enough", []string{"HTTP/1.1 503 No\r\nContent-Length: 99999\r\n\r\n"}, "", WrongStatus},
		{"an interim answer", []string{"HTTP/1.1 103 Early Hints\r\n\r\n", head + "\r\nabcdef"}, "abcdef", OK},
		{"less than it says", []string{head + "\r\nabc"}, "", Reset},
		{"nonsense", []string{"SSH-2.0-x\r\n\r\n"}, "", Protocol},
		{"at length", []string{"HTTP/1.1 200 OK\r\n\r\n" + long + "y"}, "y", OK},
		{"longer than what is read", []string{"HTTP/1.1 200 OK\r\n\r\n" + long + "y", "z"}, "z", WrongBody},
		{"a long header", []string{head + "A: " + long[:maxHeader-100] + "\r\n\r\nabcdef"}, "abcdef", OK},
		{"too long a header", []string{head + "A: " + long + "\r\n\r\nabcdef"}, "abcdef", Protocol},
		{"chunks of nothing", []string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+long+"\r\na\r\n", 3)}, "abcdef", Protocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := talk(t, func(c *net.TCPConn) {
				_, _ = http.ReadRequest(bufio.NewReader(c))
				for i, part := range tc.parts {
					if i > 0 {
						time.Sleep(5 * time.Millisecond) // most likely it comes by itself
					}
					_, _ = c.Write([]byte(part))
				}
			})
			x := target(addr, config.Probe{HTTP: &config.HTTPProbe{Contains: tc.contains}, Interval: config.Duration(ample), Timeout: config.Duration(ample)})
			p, r := knockOnce(t, x)
			if j := p.jobs[x.ID]; r.Class != tc.class || !j.flight.knock {
				t.Errorf("got %+v, want %v; by a knock: %v", r, tc.class, j.flight.knock)
			}
			if own := probeOnce(t, x, nil); own.Class != r.Class || own.Detail != r.Detail {
				t.Errorf("over its own connection %+v, want %+v", own, r)
			}
		})
	}
}

// TestKnockKeeps lets servers do what they may with a connection that is kept: each probe is to
// succeed, over as many connections as it takes, and nothing is to be left.
func TestKnockKeeps(t *testing.T) {
	const good = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	plain := func(c net.Conn, _ int) bool { _, err := io.WriteString(c, good); return err == nil }
	for _, tc := range []struct {
		name   string
		answer func(c net.Conn, nth int) bool // the nth request over c; false hangs up
		each   int                            // requests over a connection
		limit  int64                          // of connections that are kept
	}{
		{"as often as by default", plain, defaultReuse, 9},
		{"without room", plain, 1, 0},
		{"it closes, as it said", func(c net.Conn, _ int) bool {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
			return false
		}, 1, 9},
		{"it closes after an answer", func(c net.Conn, _ int) bool { _, _ = io.WriteString(c, good); return false }, 1, 9},
		{"it closes at the third request", func(c net.Conn, nth int) bool { return nth < 3 && plain(c, nth) }, 3, 9},
		{"it resets at the third request", func(c net.Conn, nth int) bool {
			if nth == 3 {
				_ = c.(*net.TCPConn).SetLinger(0)
			}
			return nth < 3 && plain(c, nth)
		}, 3, 9},
		{"it says more than it should", func(c net.Conn, nth int) bool { _, err := io.WriteString(c, good+"!"); return err == nil }, 1, 9},
		{"chunks in parts", func(c net.Conn, nth int) bool {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n")
			_, err := io.WriteString(c, "ok\r\n0\r\n\r\n")
			return err == nil
		}, defaultReuse, 9},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := openFiles(t)
			var opened, asked atomic.Int64
			l, addr := listen(t)
			var serving sync.WaitGroup
			defer serving.Wait()
			defer func() { _ = l.Close() }()
			serving.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					opened.Add(1)
					serving.Go(func() {
						defer func() { _ = c.Close() }()
						r := bufio.NewReader(c)
						for nth := 1; ; nth++ {
							if _, err := http.ReadRequest(r); err != nil {
								return
							}
							if asked.Add(1); !tc.answer(c, nth) {
								return
							}
						}
					})
				}
			})
			counters := new(stats)
			p := NewProber(ProberOptions{stats: counters, Report: func(_ Target, r Result, _ State) {
				if r.Class != OK || r.Latency <= 0 {
					t.Errorf("got %+v", r)
				}
			}})
			p.kept.limit = tc.limit
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- p.Run(ctx) }()
			x := target(addr, config.Probe{HTTP: &config.HTTPProbe{Contains: "ok"}, Interval: config.Duration(10 * time.Millisecond), Timeout: config.Duration(ample)})
			x.Probe.Interval, x.Probe.Timeout = config.Duration(10*time.Millisecond), config.Duration(ample)
			p.SetTargets([]Target{x})
			eventually(t, "thirty probes", func() bool { return counters.probes[OK].Load() >= 30 })
			p.SetTargets(nil)
			eventually(t, "nothing is kept", func() bool {
				p.mu.Lock()
				defer p.mu.Unlock()
				return p.inFlight == 0 && p.kept.n.Load() == 0
			})
			if n, want := opened.Load(), (asked.Load()+int64(tc.each)-1)/int64(tc.each); n < want || tc.each > 1 && n > want+1 {
				t.Errorf("%d requests over %d connections, want %d", asked.Load(), n, want)
			}
			if n := counters.retries.Load(); n != 0 {
				t.Errorf("%d failures were tried again, want none to be one", n)
			}
			cancel()
			<-done
			_ = l.Close()
			eventually(t, "all is closed", func() bool { return openFiles(t) <= before })
		})
	}
}

// TestKnockIdle wants a connection that is kept to be closed, and its place given back, as soon as
// the server ends it or speaks unasked, and when its target goes.
func TestKnockIdle(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(p *Prober, c net.Conn)
	}{
		{"it hangs up", func(_ *Prober, c net.Conn) { _ = c.Close() }},
		{"it closes its side", func(_ *Prober, c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() }},
		{"it resets", func(_ *Prober, c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); _ = c.Close() }},
		{"it speaks", func(_ *Prober, c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 408 Too late\r\n\r\n") }},
		{"its target goes", func(p *Prober, _ net.Conn) { p.SetTargets(nil) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			accepted, gone := make(chan net.Conn, 1), make(chan struct{})
			addr := talk(t, func(c *net.TCPConn) {
				defer close(gone)
				r := bufio.NewReader(c)
				_, _ = http.ReadRequest(r)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				accepted <- c
				_, _ = r.ReadByte() // until the prober closes it, or the test
			})
			p := NewProber(ProberOptions{Report: func(Target, Result, State) {}})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- p.Run(ctx) }()
			defer func() { cancel(); <-done }()
			x := target(addr, config.Probe{HTTP: &config.HTTPProbe{}})
			x.Probe.Interval, x.Probe.Timeout, x.Probe.Jitter = config.Duration(time.Hour), config.Duration(ample), new(float64)
			p.SetTargets([]Target{x})
			c := <-accepted
			eventually(t, "it is kept", func() bool {
				p.mu.Lock()
				defer p.mu.Unlock()
				return p.inFlight == 0 && p.kept.n.Load() == 1
			})
			tc.end(p, c)
			eventually(t, "it is kept no more", func() bool { return p.kept.n.Load() == 0 })
			<-gone
		})
	}
}

// TestKnockHangs wants a server that stops answering over a connection that is kept to have the
// class of that, after its timeout, and to be asked again over a new one.
func TestKnockHangs(t *testing.T) {
	var hangs atomic.Bool
	addr := talk(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			if hangs.Load() {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
				continue
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	results := make(chan Result, 1000)
	p := NewProber(ProberOptions{Report: func(_ Target, r Result, _ State) { results <- r }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done }()
	x := target(addr, config.Probe{HTTP: &config.HTTPProbe{}})
	x.Probe.Interval, x.Probe.Timeout = config.Duration(time.Second), config.Duration(time.Second/2)
	p.SetTargets([]Target{x})
	until := func(c Class) {
		t.Helper()
		for deadline := time.After(patience); ; {
			select {
			case r := <-results:
				if r.Class == c {
					return
				}
			case <-deadline:
				t.Fatalf("no result of class %v", c)
			}
		}
	}
	until(OK)
	hangs.Store(true)
	until(Timeout)
	if n := p.kept.n.Load(); n != 0 {
		t.Errorf("%d connections are kept, want none", n)
	}
	hangs.Store(false)
	until(OK)
}

// TestKnockPanics: what panics while a reply is read is an error of that probe alone.
func TestKnockPanics(t *testing.T) {
	r := &reply{part: partBody, left: 1} // to no probe's request
	_, err := new(knocker).feed(r, []byte("x"))
	e, ok := err.(*panicked)
	if !ok || !strings.Contains(err.Error(), "nil pointer") {
		t.Fatalf("got %v, want the panic as an error", err)
	}
	var logged strings.Builder
	p := &Prober{o: ProberOptions{Logger: slog.New(slog.NewTextHandler(&logged, nil))}}
	if got := p.survived(&job{target: Target{ID: gslb.EndpointID{Pool: "eu"}}}, e); got.Class != Local || !strings.Contains(logged.String(), "pool=eu") {
		t.Errorf("got %+v, logged %q", got, logged.String())
	}
}
