package health

import (
	"context"
	"math"
	"net/netip"
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

// script is a network that the test decides.
type script struct {
	mu     sync.Mutex
	starts map[gslb.EndpointID][]time.Time
	answer func(n int, id gslb.EndpointID) (Class, time.Duration) // of the n-th probe of id, from 0
	flying atomic.Int64
	most   atomic.Int64
}

func (s *script) probe(ctx context.Context, t Target) Result {
	if n := s.flying.Add(1); n > s.most.Load() {
		s.most.Store(n) // only the scheduler's own goroutines race here, and a test of the bound takes the final value
	}
	defer s.flying.Add(-1)
	s.mu.Lock()
	if s.starts == nil {
		s.starts = make(map[gslb.EndpointID][]time.Time)
	}
	n := len(s.starts[t.ID])
	s.starts[t.ID] = append(s.starts[t.ID], time.Now())
	s.mu.Unlock()
	class, takes := s.answer(n, t.ID)
	if takes == 0 { // without a timer that is due when it is set: see memNet
		return Result{Class: class}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(t.Probe.Timeout))
	defer cancel()
	select {
	case <-ctx.Done():
		return Result{Class: Timeout}
	case <-time.After(takes):
		return Result{Class: class, Latency: takes}
	}
}

func (s *script) of(id gslb.EndpointID) []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.starts[id])
}

func fakeTarget(n int) Target {
	return Target{ID: idOf(n), Addr: netip.AddrPortFrom(idOf(n).Addr, 80), Probe: config.Probe{
		TCP: &config.TCPProbe{Port: 80}, Interval: config.Duration(time.Second), Timeout: config.Duration(400 * time.Millisecond),
		Jitter: new(0.1), Rise: 2, Fall: 3,
	}}
}

func fakeTargets(n int) []Target {
	var out []Target
	for i := range n {
		out = append(out, fakeTarget(i))
	}
	return out
}

type reported struct {
	id    gslb.EndpointID
	class Class
	state State
	at    time.Time
}

// runProber runs a prober in a bubble and returns what it reports, and what ends it and
// returns the error of Run.
func runProber(t *testing.T, s *script, o ProberOptions) (*Prober, func() []reported, func() error) {
	var mu sync.Mutex
	var reports []reported
	if s != nil {
		o.probe = s.probe
	}
	o.Report = func(x Target, r Result, st State) {
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, reported{x.ID, r.Class, st, time.Now()})
	}
	p := NewProber(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	return p, func() []reported {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(reports)
		}, func() error {
			cancel()
			return <-done
		}
}

func always(c Class) func(int, gslb.EndpointID) (Class, time.Duration) {
	return func(int, gslb.EndpointID) (Class, time.Duration) { return c, 5 * time.Millisecond }
}

// TestProberCadence wants the first probe soon, none later than the interval, and no herd.
func TestProberCadence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const targets = 600
		s := &script{answer: always(OK)}
		p, _, stop := runProber(t, s, ProberOptions{})
		begin := time.Now()
		p.SetTargets(fakeTargets(targets))
		time.Sleep(20 * time.Second)
		if err := stop(); err != context.Canceled {
			t.Errorf("Run returned %v", err)
		}
		tenths := make(map[int]int) // starts by tenth of the 11th second
		for i := range targets {
			starts := s.of(idOf(i))
			if first := starts[0].Sub(begin); first > time.Second {
				t.Fatalf("target %d was first probed after %v, want a second at most", i, first)
			}
			for n := 1; n < len(starts); n++ {
				if gap := starts[n].Sub(starts[n-1]); gap > time.Second || n > 1 && gap < 900*time.Millisecond-2*batch {
					t.Fatalf("target %d: probe %d came %v after the last, want 0.9 s to 1 s", i, n, gap)
				}
			}
			for _, at := range starts {
				if d := at.Sub(begin); d >= 10*time.Second && d < 11*time.Second {
					tenths[int(d/(100*time.Millisecond))]++
				}
			}
		}
		for tenth, n := range tenths {
			if n > targets/5 { // a tenth is expected to hold 60 ± 8
				t.Errorf("%d of %d probes started in tenth %d, want them spread", n, targets, tenth)
			}
		}
	})
}

func TestProberRetry(t *testing.T) {
	for _, tc := range []struct {
		name    string
		initial gslb.Verdict
		takes   time.Duration
		timeout time.Duration
		answer  string // of probes one after another: + or -; the last repeats
		results string // what is reported, the first few
		retries uint64
	}{
		{"one lost packet is no result", gslb.Up, 0, 400 * time.Millisecond, "-+", "++", 1},
		{"also when nothing is known", gslb.Unknown, 0, 400 * time.Millisecond, "-+", "++", 1},
		{"a confirmed failure is one result", gslb.Up, 0, 400 * time.Millisecond, "-", "---", 1},
		{"a run is not tried again", gslb.Up, 0, 400 * time.Millisecond, "--+", "-+", 1},
		{"what is down is not tried again", gslb.Down, 0, 400 * time.Millisecond, "-", "---", 0},
		{"no time left", gslb.Up, 650 * time.Millisecond, 700 * time.Millisecond, "-+", "-+", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{answer: func(n int, _ gslb.EndpointID) (Class, time.Duration) {
					if tc.answer[min(n, len(tc.answer)-1)] == '+' {
						return OK, tc.takes
					}
					return Refused, tc.takes
				}}
				counters := new(stats)
				p, reports, stop := runProber(t, s, ProberOptions{stats: counters})
				p.Restore(map[gslb.EndpointID]gslb.Verdict{idOf(0): tc.initial})
				x := fakeTarget(0)
				x.Probe.Timeout = config.Duration(tc.timeout)
				p.SetTargets([]Target{x})
				time.Sleep(3500 * time.Millisecond)
				_ = stop()
				got := ""
				for _, r := range reports() {
					got += map[bool]string{true: "+", false: "-"}[r.class == OK]
				}
				if len(got) < len(tc.results) || got[:len(tc.results)] != tc.results {
					t.Errorf("got results %s, want %s first", got, tc.results)
				}
				if n := counters.retries.Load(); n != tc.retries && tc.answer != "-" || tc.answer == "-" && n < tc.retries {
					t.Errorf("got %d retries, want %d", n, tc.retries)
				}
			})
		})
	}
}

// TestProberDetection wants a dead endpoint down within fall intervals and a timeout, for
// every way to die and every moment of it.
func TestProberDetection(t *testing.T) {
	for _, timeout := range []time.Duration{200 * time.Millisecond, 400 * time.Millisecond, time.Second} {
		for _, takes := range []time.Duration{0, math.MaxInt64} { // refuses, hangs
			synctest.Test(t, func(t *testing.T) {
				var dead atomic.Bool
				s := &script{answer: func(int, gslb.EndpointID) (Class, time.Duration) {
					if dead.Load() {
						return Refused, takes
					}
					return OK, 0
				}}
				p, reports, stop := runProber(t, s, ProberOptions{})
				var targets []Target
				for _, x := range fakeTargets(50) {
					x.Probe.Timeout = config.Duration(timeout)
					targets = append(targets, x)
				}
				p.SetTargets(targets)
				time.Sleep(5 * time.Second)
				dead.Store(true)
				died := time.Now()
				time.Sleep(6 * time.Second)
				_ = stop()
				down := make(map[gslb.EndpointID]time.Duration)
				for _, r := range reports() {
					if _, ok := down[r.id]; !ok && r.state.Verdict == gslb.Down {
						down[r.id] = r.at.Sub(died)
					}
				}
				bound := 3*time.Second + timeout
				for _, x := range targets {
					if d, ok := down[x.ID]; !ok || d > bound {
						t.Errorf("timeout %v, takes %v: %v is down after %v, want at most %v", timeout, takes, x.ID, d, bound)
					}
				}
			})
		}
	}
}

func TestProberSetTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: func(n int, id gslb.EndpointID) (Class, time.Duration) {
			if id == idOf(2) {
				return OK, math.MaxInt64 // hangs
			}
			return Refused, 0
		}}
		p, reports, stop := runProber(t, s, ProberOptions{})
		defer func() { _ = stop() }()
		hour := fakeTarget(2)
		hour.Probe.Interval, hour.Probe.Timeout = config.Duration(time.Hour), config.Duration(time.Hour)
		p.Restore(map[gslb.EndpointID]gslb.Verdict{idOf(0): gslb.Up, idOf(1): gslb.Up})
		p.SetTargets([]Target{fakeTarget(0), fakeTarget(1), hour, fakeTarget(0)})
		time.Sleep(50 * time.Millisecond) // each has failed once
		state := func(id gslb.EndpointID) State {
			p.mu.Lock()
			defer p.mu.Unlock()
			if j := p.jobs[id]; j != nil {
				return j.state
			}
			return State{}
		}
		kept := state(idOf(0))
		if kept.Verdict != gslb.Up || kept.Run == 0 {
			t.Fatalf("got %+v, want up in a failing run", kept)
		}
		if got := s.flying.Load(); got != 1 {
			t.Fatalf("%d probes hang, want 1", got)
		}

		// One stays, one has another address, one goes, one comes.
		moved := fakeTarget(1)
		moved.Addr = netip.MustParseAddrPort("10.9.9.9:80")
		p.SetTargets([]Target{fakeTarget(0), moved, fakeTarget(3)})
		if got := state(idOf(0)); got != kept {
			t.Errorf("the one that stays: got %+v, want %+v", got, kept)
		}
		if got, want := state(idOf(1)), (State{Verdict: gslb.Up}); got != want {
			t.Errorf("the one that moved: got %+v, want %+v", got, want)
		}
		synctest.Wait()
		if got := s.flying.Load(); got != 0 {
			t.Errorf("%d probes of a removed target still hang, want none", got)
		}
		before := len(s.of(idOf(0)))
		time.Sleep(10 * time.Second)
		if got := len(s.of(idOf(2))); got != 1 {
			t.Errorf("the removed one was probed %d times, want once", got)
		}
		if got := len(s.of(idOf(3))); got < 10 {
			t.Errorf("the new one was probed %d times in 10 s, want 10 or more", got)
		}
		if got := len(s.of(idOf(0))) - before; got < 10 || got > 12 {
			t.Errorf("the one that stays was probed %d times in 10 s, want 10 or 11", got)
		}
		for _, r := range reports() {
			if r.id == idOf(2) {
				t.Errorf("the removed one was reported: %+v", r)
			}
		}
		p.SetTargets(nil)
		before = len(reports())
		time.Sleep(5 * time.Second)
		if got := len(reports()); got != before {
			t.Errorf("%d results without targets, want none", got-before)
		}
	})
}

// TestProberBound wants few probes in flight though all hang, each to have its turn, and the
// delay counted.
func TestProberBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: func(int, gslb.EndpointID) (Class, time.Duration) { return OK, math.MaxInt64 }}
		counters := new(stats)
		p, _, stop := runProber(t, s, ProberOptions{MaxInFlight: 4, stats: counters})
		p.SetTargets(fakeTargets(40))
		time.Sleep(20 * time.Second)
		_ = stop()
		if got := s.most.Load(); got != 4 {
			t.Errorf("%d probes at once, want 4", got)
		}
		for i := range 40 {
			if got := len(s.of(idOf(i))); got < 3 { // 200 turns of 40
				t.Errorf("target %d was probed %d times, want 3 or more", i, got)
			}
		}
		if counters.late.Load() == 0 {
			t.Error("no probe was counted as late")
		}
	})
}

// TestProberManyHang wants a fifth that hangs to delay nobody else.
func TestProberManyHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: func(_ int, id gslb.EndpointID) (Class, time.Duration) {
			if id.Addr.As16()[15]%5 == 0 {
				return OK, math.MaxInt64
			}
			return OK, 5 * time.Millisecond
		}}
		counters := new(stats)
		p, _, stop := runProber(t, s, ProberOptions{stats: counters})
		var targets []Target
		for _, x := range fakeTargets(4000) {
			x.Probe.Timeout = config.Duration(900 * time.Millisecond)
			targets = append(targets, x)
		}
		p.SetTargets(targets)
		time.Sleep(5 * time.Second)
		_ = stop()
		if late := counters.late.Load(); late != 0 {
			t.Errorf("%d probes started late, want none", late)
		}
		if got := counters.probes[Timeout].Load(); got < 2000 {
			t.Errorf("%d timeouts, want a fifth of some 20000 results", got)
		}
	})
}

// TestProberOverrun wants a timeout that comes far too late to be this node's own fault: it was
// stopped, or had no CPU.
func TestProberOverrun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var late atomic.Int64
		var faults atomic.Int64
		p, reports, stop := runProber(t, nil, ProberOptions{Fault: func(_ Target, r Result) {
			if !strings.Contains(r.Detail, "a timeout of 500ms took 1.1s") {
				t.Errorf("fault %q", r.Detail)
			}
			faults.Add(1)
		}, probe: func(context.Context, Target) Result {
			time.Sleep(500*time.Millisecond + time.Duration(late.Load()))
			return Result{Class: Timeout}
		}})
		targets := fakeTargets(1)
		targets[0].Probe.Timeout = config.Duration(500 * time.Millisecond)
		p.SetTargets(targets)
		time.Sleep(5 * time.Second)
		if len(reports()) == 0 || faults.Load() != 0 {
			t.Errorf("in time: %d reports and %d faults, want some and none", len(reports()), faults.Load())
		}
		late.Store(int64(600 * time.Millisecond))
		time.Sleep(2 * time.Second) // what is under way ends
		before := len(reports())
		time.Sleep(5 * time.Second)
		if len(reports()) != before || faults.Load() == 0 {
			t.Errorf("late: %d reports and %d faults, want none and some", len(reports())-before, faults.Load())
		}
		_ = stop()
	})
}

// TestProberLocal wants our own faults and bugs to say nothing of the endpoint.
func TestProberLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: func(n int, id gslb.EndpointID) (Class, time.Duration) {
			switch {
			case n == 0:
				return OK, 0
			case id == idOf(1):
				panic("a bug")
			default:
				return Local, 0
			}
		}}
		counters := new(stats)
		p, reports, stop := runProber(t, s, ProberOptions{stats: counters})
		p.SetTargets(fakeTargets(2))
		time.Sleep(5 * time.Second)
		_ = stop()
		if got := len(reports()); got != 2 {
			t.Errorf("got %d reports, want the first two: %+v", got, reports())
		}
		if got := counters.probes[Local].Load(); got < 8 {
			t.Errorf("%d local faults counted, want 8 or more", got)
		}
		if s.flying.Load() != 0 {
			t.Errorf("%d probes in flight after Run", s.flying.Load())
		}
	})
}
