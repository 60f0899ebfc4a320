package health

import (
	"container/heap"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
)

// defaultMaxInFlight bounds the probes under way, and so the file descriptors they hold. At
// a usual 5 ms a probe it is far from being reached by 50,000 endpoints every 5 s; it is
// there for the day when everything hangs until its timeout.
const defaultMaxInFlight = 512

// ProberOptions are the settings of a Prober.
type ProberOptions struct {
	// Report takes each result with the state that it led to. It is called from many
	// goroutines, but for one target in the order of its results. It must not block.
	Report func(t Target, r Result, s State)

	MaxInFlight int            // probes under way at once; default 512
	RootCAs     *x509.CertPool // that certificates are checked against; nil is the system's
	Logger      *slog.Logger   // nil logs nothing

	stats *stats
	probe func(context.Context, Target) Result // in place of the network, for tests
}

// Prober tests targets, each at its interval, and keeps their states. Its methods are safe
// for concurrent use.
//
// The interval is counted from start to start and is the longest that passes: jitter only
// shortens it. A failure that would begin a run is tried again at once, if the try can end
// before the next probe is due, and the second result stands for both: one lost packet is
// no result. So an endpoint that dies is down after at most fall intervals and a timeout.
type Prober struct {
	o    ProberOptions
	wake chan struct{} // capacity 1: the queue changed

	mu       sync.Mutex
	jobs     map[gslb.EndpointID]*job         // guarded by mu
	queue    jobQueue                         // guarded by mu: the jobs not in flight, by due time
	inFlight int                              // guarded by mu
	restored map[gslb.EndpointID]gslb.Verdict // guarded by mu; see Restore
}

// job is one target's place in the schedule.
type job struct {
	target Target                       // set at construction
	probe  func(context.Context) Result // set at construction; ends within the target's timeout

	// guarded by Prober.mu
	state  State
	probed bool // once
	due    time.Time
	index  int                // in Prober.queue; -1 in flight or gone
	gone   bool               // the target was removed or replaced
	cancel context.CancelFunc // ends the probe in flight; nil when there is none
}

// NewProber returns a Prober without targets.
func NewProber(o ProberOptions) *Prober {
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = defaultMaxInFlight
	}
	o.Logger = discardIfNil(o.Logger)
	if o.stats == nil {
		o.stats = new(stats)
	}
	return &Prober{o: o, wake: make(chan struct{}, 1), jobs: make(map[gslb.EndpointID]*job)}
}

// Restore gives the verdicts that targets new after it start with, from an earlier life of
// this node. Where there is none the first result decides.
func (p *Prober) Restore(last map[gslb.EndpointID]gslb.Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.restored = maps.Clone(last)
}

// SetTargets replaces the targets. One that is there already keeps its state and its place
// in the schedule; one with new settings keeps its verdict and is probed anew; probes of
// removed ones end. New targets are first probed within a second, less when they are few,
// and then spread over their interval. Of targets with the same ID the first counts.
func (p *Prober) SetTargets(targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer nudge(p.wake)

	keep := make(map[gslb.EndpointID]bool, len(targets))
	var fresh []*job
	for _, t := range targets {
		if keep[t.ID] {
			continue
		}
		keep[t.ID] = true
		old := p.jobs[t.ID]
		if old != nil && reflect.DeepEqual(old.target, t) {
			continue
		}
		j := &job{target: t, probe: p.prepare(t), index: -1}
		j.state.Verdict = p.restored[t.ID]
		if old != nil {
			j.state.Verdict = old.state.Verdict
			p.dropLocked(old)
		}
		p.jobs[t.ID] = j
		fresh = append(fresh, j)
	}
	for id, j := range p.jobs {
		if !keep[id] {
			p.dropLocked(j)
			delete(p.jobs, id)
		}
	}
	// A few start at once; many share the first second.
	now, spread := time.Now(), min(time.Second, time.Duration(len(fresh))*2*time.Millisecond)
	for _, j := range fresh {
		j.due = now.Add(time.Duration(rand.Float64() * float64(spread)))
		heap.Push(&p.queue, j)
	}
}

func (p *Prober) dropLocked(j *job) {
	j.gone = true
	if j.index >= 0 {
		heap.Remove(&p.queue, j.index)
	}
	if j.cancel != nil {
		j.cancel()
	}
}

// prepare returns the probe of t.
func (p *Prober) prepare(t Target) func(context.Context) Result {
	switch {
	case p.o.probe != nil:
		return func(ctx context.Context) Result { return p.o.probe(ctx, t) }
	case t.Probe.HTTP != nil:
		return newHTTPProbe(t, p.o.RootCAs).run
	case t.Probe.TCP != nil:
		return func(ctx context.Context) Result { return probeTCP(ctx, t) }
	default:
		return func(context.Context) Result {
			return Result{Class: Local, Detail: "a probe of no known kind"}
		}
	}
}

// Run probes the targets until ctx ends, and returns once the last probe has.
func (p *Prober) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(p.launch(ctx, &wg))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		case <-p.wake:
		}
	}
}

// launch starts the probes that are due, as far as the bound allows, and returns how long
// to wait for the next.
func (p *Prober) launch(ctx context.Context, wg *sync.WaitGroup) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for len(p.queue) > 0 && p.inFlight < p.o.MaxInFlight {
		j := p.queue[0]
		if wait := j.due.Sub(now); wait > 0 {
			return wait
		}
		if now.Sub(j.due) > time.Duration(j.target.Probe.Interval) {
			p.o.stats.late.Add(1)
		}
		heap.Pop(&p.queue)
		p.inFlight++
		jobCtx, cancel := context.WithCancel(ctx)
		j.cancel = cancel
		state := j.state
		wg.Go(func() {
			defer cancel()
			p.run(jobCtx, j, state, now)
		})
	}
	return time.Hour // a change of the queue or an ending probe wakes Run
}

// run makes one probe of j, which started in the state given, and puts j back in the queue.
func (p *Prober) run(ctx context.Context, j *job, state State, start time.Time) {
	r := p.attempt(ctx, j)
	interval, timeout := time.Duration(j.target.Probe.Interval), time.Duration(j.target.Probe.Timeout)
	if ctx.Err() == nil && r.Class != OK && state.Verdict != gslb.Down && state.Run == 0 && time.Since(start)+timeout <= interval {
		p.o.stats.retries.Add(1)
		r = p.attempt(ctx, j)
	}
	if ctx.Err() == nil && r.Class != Local {
		state = state.Next(r.Class == OK, j.target.Probe.Rise, j.target.Probe.Fall)
		p.o.Report(j.target, r, state)
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	defer nudge(p.wake)
	p.inFlight--
	j.cancel = nil
	if j.gone {
		return
	}
	j.state = state
	j.due = start.Add(p.pause(j))
	j.probed = true
	heap.Push(&p.queue, j)
}

// pause returns how long after a probe's start the next one of j starts.
func (p *Prober) pause(j *job) time.Duration {
	share := 1.0 // after the first probe anywhere in the interval, so that targets spread
	if j.probed && j.target.Probe.Jitter != nil {
		share = *j.target.Probe.Jitter
	}
	return time.Duration((1 - share*rand.Float64()) * float64(j.target.Probe.Interval))
}

// attempt runs j's probe once. A panic in it is a bug of ours, but no reason for the node to
// stop answering: it is logged, and says nothing of the endpoint.
func (p *Prober) attempt(ctx context.Context, j *job) (r Result) {
	defer func() {
		if v := recover(); v != nil {
			p.o.Logger.Error("probe panicked", "pool", j.target.ID.Pool, "endpoint", j.target.ID.Addr, "panic", v, "stack", string(debug.Stack()))
			r = Result{Class: Local, Detail: "panic"}
		}
		if ctx.Err() == nil {
			p.o.stats.probes[r.Class].Add(1)
		}
	}()
	return j.probe(ctx)
}

// nudge leaves a token in a channel of capacity 1.
func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// jobQueue is a heap of jobs by due time.
type jobQueue []*job

func (q jobQueue) Len() int           { return len(q) }
func (q jobQueue) Less(a, b int) bool { return q[a].due.Before(q[b].due) }
func (q jobQueue) Swap(a, b int) {
	q[a], q[b] = q[b], q[a]
	q[a].index, q[b].index = a, b
}
func (q *jobQueue) Push(x any) {
	j := x.(*job)
	j.index = len(*q)
	*q = append(*q, j)
}
func (q *jobQueue) Pop() any {
	last := len(*q) - 1
	j := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	j.index = -1
	return j
}

// connect opens a connection to t that fails whatever is done on it once ctx ends. The
// caller closes it.
func connect(ctx context.Context, t Target) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: false}, KeepAlive: -1}
	c, err := d.DialContext(ctx, "tcp", t.Addr.String())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return &boundConn{Conn: c, stop: stop}, nil
}

// boundConn is a connection that watches a context until it is closed.
type boundConn struct {
	net.Conn
	stop func() bool
}

func (c *boundConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// failure returns the result of a probe that began at start and ended in err. otherwise is
// its class if the system did not cause err.
func failure(start time.Time, err error, otherwise Class) Result {
	r := Result{Class: classify(err, otherwise), Latency: time.Since(start), Detail: detail(err)}
	if r.Class == Timeout {
		r.Detail = fmt.Sprintf("no answer within %v", r.Latency.Round(time.Millisecond))
	}
	return r
}

// classify returns the class of err, or otherwise.
func classify(err error, otherwise Class) Class {
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	var timeout net.Error
	var op *net.OpError
	switch {
	case is(syscall.ECONNREFUSED):
		return Refused
	case is(syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, io.EOF, io.ErrUnexpectedEOF):
		return Reset
	case is(syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN, syscall.EACCES, syscall.EPERM):
		return Unreachable
	case is(syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT):
		return Local
	case is(context.DeadlineExceeded, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return Timeout
	case errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"): // a TLS alert
		return TLSFault
	}
	return otherwise
}

// detail returns what people need to know of err: its cause without the addresses, which
// they know.
func detail(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		var sys syscall.Errno
		if errors.As(op.Err, &sys) {
			return sys.Error()
		}
	}
	return printable(strings.TrimPrefix(err.Error(), "tls: failed to verify certificate: "), maxDetail)
}
