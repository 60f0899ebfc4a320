package health

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
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
	k, err := newKnocker(answers)
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
	if busy := len(k.lines) - len(k.spare[unix.AF_INET]) - len(k.spare[unix.AF_INET6]); busy != 0 || len(k.spare[unix.AF_INET]) == 0 || len(k.spare[unix.AF_INET]) > maxSpareLines {
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
	long := strings.Repeat("x", maxHeard)
	for _, tc := range []struct {
		name     string
		parts    []string
		contains string
		class    Class
		long     bool // for a knock
	}{
		{"at once", []string{head + "\r\nabcdef"}, "abcdef", OK, false},
		{"in parts", []string{head[:9], head[9:] + "\r\nabc", "def"}, "abcdef", OK, false},
		{"another body", []string{head + "\r\nabc", "deg"}, "abcdef", WrongBody, false},
		{"until it hangs up", []string{"HTTP/1.0 200 OK\r\n\r\nabc", "def"}, "abcdef", OK, false},
		{"chunks", []string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "3\r\ndef\r\n0\r\n\r\n"}, "abcdef", OK, false},
		{"a status is enough", []string{"HTTP/1.1 503 No\r\nContent-Length: 99999\r\n\r\n"}, "", WrongStatus, false},
		{"an interim answer", []string{"HTTP/1.1 103 Early Hints\r\n\r\n", head + "\r\nabcdef"}, "abcdef", OK, false},
		{"less than it says", []string{head + "\r\nabc"}, "", Reset, false},
		{"nonsense", []string{"SSH-2.0-x\r\n\r\n"}, "", Protocol, false},
		{"at length", []string{"HTTP/1.1 200 OK\r\n\r\n" + long + "y"}, "y", OK, true},
		{"a long header", []string{head + "A: " + long + "\r\n\r\nabcdef"}, "abcdef", OK, true},
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
			if r.Class != tc.class {
				t.Errorf("got %+v, want %v", r, tc.class)
			}
			if j := p.jobs[x.ID]; j.long != tc.long || j.flight.knock != true {
				t.Errorf("long: %v, by a knock: %v, want %v and that a knock began it", j.long, j.flight.knock, tc.long)
			}
			if own := probeOnce(t, x, nil); own.Class != r.Class || own.Detail != r.Detail {
				t.Errorf("over its own connection %+v, want %+v", own, r)
			}
		})
	}
}
