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
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// defaultMaxInFlight bounds the probes under way, and so the file descriptors they hold: 10,000
// a second, of which every fifth hangs for two seconds, still have room. A quarter of the files
// that this process may open is the limit, too.
func defaultMaxInFlight() int { return int(min(4096, max(64, maxFiles()/4))) }

// ProberOptions are the settings of a Prober.
type ProberOptions struct {
	// Report takes each result with the state that it led to. It is called from many
	// goroutines, but for one target in the order of its results. It must not block.
	Report func(t Target, r Result, s State)
	// Fault, if not nil, takes the results of class Local, which say nothing of the target. It is
	// called as Report is.
	Fault func(t Target, r Result)

	MaxInFlight int            // probes under way at once; default 4096, or less by the limit of open files
	RootCAs     *x509.CertPool // that certificates are checked against; nil is the system's
	Exec        string         // folder of the programs that exec probes may run; empty: none
	Logger      *slog.Logger   // nil logs nothing

	stats     *stats
	probe     func(context.Context, Target) Result // in place of the network, for tests
	attempted func(Target, time.Time, Result)      // as Options.Attempted
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
	spare    int                              // guarded by mu: goroutines that wait, or soon will, for a duty
	duties   chan duty                        // for them; never full
	restored map[gslb.EndpointID]gslb.Verdict // guarded by mu; see Restore
	programs int                              // guarded by mu: exec probes in flight
	stalled  []turn                           // guarded by mu: exec probes that were due and found no room, the first to go on first
	pools    map[string]*poolPace             // guarded by mu
	idle     map[string]bool                  // guarded by mu: pools that nobody asks for

	files   tlsFiles
	imports imports
	knocker *knocker       // set by Run; nil: all probes are made in the same way
	kept    budgeted       // connections that HTTP probes keep
	matches *regexp.Regexp // guarded by mu: the last that was compiled, since neighbours have the same
}

// poolPace is how fast the endpoints of a pool answer this vantage.
type poolPace struct {
	jobs   []*job
	median time.Duration // of the jobs' latencies; 0 while fewer than three are known
	at     time.Time     // when it was taken
}

// job is one target's place in the schedule.
type job struct {
	target Target                       // set at construction
	probe  func(context.Context) Result // set at construction; ends within the target's timeout

	knock  *knock     // set at construction: how a knocker makes the probe; nil: it cannot
	http   *httpProbe // set at construction: whose probe it is; may be nil
	flight flight     // of a knock; only for those who have it under way

	// guarded by Prober.mu
	state  State
	probed bool // once
	pace   pace
	waits  bool               // in Prober.queue: it is not in flight or stalled
	gone   bool               // the target was removed or replaced
	cancel context.CancelFunc // ends the probe in flight; nil when there is none, or a knock
}

// flight is a probe in flight.
type flight struct {
	job   *job
	state State // that job was in
	start time.Time
	again bool // it is tried a second time
	knock bool // by the knocker
}

// errEnded is the error of a knock over a connection that was kept, and that the server had ended:
// that is its right, and no result.
var errEnded = errors.New("the connection had ended")

// answer is what came of a knock. Its error is one of the system or of the reply, or errEnded, or
// context.DeadlineExceeded, or context.Canceled if it was given up. Of one that asks something and
// has no error, the knock has the reply until it is told to go.
type answer struct {
	job   *job
	start time.Time
	took  time.Duration
	err   error
}

// NewProber returns a Prober without targets.
func NewProber(o ProberOptions) *Prober {
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = defaultMaxInFlight()
	}
	o.Logger = discardIfNil(o.Logger)
	if o.stats == nil {
		o.stats = new(stats)
	}
	return &Prober{o: o, wake: make(chan struct{}, 1), jobs: make(map[gslb.EndpointID]*job), kept: budgeted{limit: maxKept()},
		duties: make(chan duty, o.MaxInFlight)}
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
		j := &job{target: t}
		j.probe, j.http = p.prepare(t)
		switch tcp := t.Probe.TCP; {
		case p.o.probe != nil:
		case tcp != nil && tcp.Send == "" && tcp.Expect == "":
			j.knock = newKnock(t.Addr, nil, j)
		case j.http != nil && j.http.plain():
			j.knock = newKnock(t.Addr, j.http, j)
		}
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
	p.queue.sweep()
	p.pools = make(map[string]*poolPace)
	for _, j := range p.jobs {
		if pool := j.target.ID.Pool; p.pools[pool] == nil {
			p.pools[pool] = &poolPace{jobs: []*job{j}}
		} else {
			p.pools[pool].jobs = append(p.pools[pool].jobs, j)
		}
	}
	// A few start at once; many share the first second.
	now, spread := time.Now(), min(time.Second, time.Duration(len(fresh))*2*time.Millisecond)
	for _, j := range fresh {
		p.queue.put(j, now.Add(time.Duration(rand.Float64()*float64(spread))))
	}
}

func (p *Prober) dropLocked(j *job) {
	if j.gone = true; j.waits {
		p.closeLocked(j)
	}
	switch {
	case j.cancel != nil:
		j.cancel()
	case j.knock != nil && p.knocker != nil:
		p.knocker.giveUp(j.knock)
	}
}

// closeLocked closes what j's probe keeps. No probe of j is in flight.
func (p *Prober) closeLocked(j *job) {
	if j.http != nil {
		j.http.release()
	}
	if j.knock != nil && p.knocker != nil {
		p.knocker.release(j.knock)
	}
}

// prepare returns the probe of t, which ends within its timeout, and whose it is if it is one over
// HTTP, which may keep a connection between its runs.
func (p *Prober) prepare(t Target) (probe func(context.Context) Result, h *httpProbe) {
	if p.o.probe != nil {
		return func(ctx context.Context) Result { return p.o.probe(ctx, t) }, nil
	}
	var kind func(context.Context) Result
	if t.Probe.HTTP != nil {
		h = p.newHTTPProbe(t)
		h.kept = &p.kept
		kind = inverted(t, h.run)
	} else {
		kind = p.kind(t)
	}
	limit := time.Duration(t.Probe.Timeout)
	return func(ctx context.Context) Result {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return kind(ctx)
	}, h
}

// kind returns the probe of t by its kind, the opposite of it if that is wanted.
func (p *Prober) kind(t Target) func(context.Context) Result { return inverted(t, p.plain(t)) }

// inverted returns probe, or the opposite of it if t wants that.
func inverted(t Target, probe func(context.Context) Result) func(context.Context) Result {
	if !t.Probe.Invert {
		return probe
	}
	return func(ctx context.Context) Result { return invert(probe(ctx)) }
}

func (p *Prober) plain(t Target) func(context.Context) Result {
	speak := func(network string, say dialogue) func(context.Context) Result {
		return func(ctx context.Context) Result { return converse(ctx, network, t, say) }
	}
	switch c := t.Probe; {
	case c.HTTP != nil:
		return p.newHTTPProbe(t).run
	case c.TCP != nil && c.TCP.Send == "" && c.TCP.Expect == "":
		return speak("tcp", func(net.Conn) (Class, string, error) { return OK, "", nil })
	case c.TCP != nil:
		return speak("tcp", sendExpect(c.TCP.Send, c.TCP.Expect, false))
	case c.TLS != nil:
		return p.probeTLS(t)
	case c.GRPC != nil:
		return p.probeGRPC(t)
	case c.DNS != nil:
		return func(ctx context.Context) Result { return probeDNS(ctx, t) }
	case c.ICMP != nil:
		return func(ctx context.Context) Result { return probeICMP(ctx, t) }
	case c.UDP != nil:
		return speak("udp", sendExpect(c.UDP.Send, c.UDP.Expect, true))
	case c.Postgres != nil:
		return speak("tcp", talkPostgres(c.Postgres.User, c.Postgres.Database))
	case c.MySQL != nil:
		return speak("tcp", talkMySQL(c.MySQL.User))
	case c.Redis != nil:
		return speak("tcp", talkRedis(c.Redis.Password))
	case c.Exec != nil:
		return func(ctx context.Context) Result { return probeExec(ctx, p.o.Exec, t) }
	case c.Import != nil:
		return func(ctx context.Context) Result { return p.imports.probeImport(ctx, t) }
	case c.Calculated != nil && len(t.Of) > 0:
		return p.probeAll(t)
	default:
		return func(context.Context) Result {
			return Result{Class: Local, Detail: "a probe of no known kind"}
		}
	}
}

// Run probes the targets until ctx ends, and returns once the last probe has.
func (p *Prober) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer p.rest()
	if p.o.probe == nil {
		answers := make(chan answer, p.o.MaxInFlight) // never full
		k, err := newKnocker(answers, &p.kept)
		if err != nil {
			p.o.Logger.Warn("TCP and HTTP probes take more CPU: no epoll", "error", err)
		} else {
			p.setKnocker(k)
			var knocking sync.WaitGroup
			defer knocking.Wait()
			defer k.close()
			knocking.Go(func() { defer close(answers); k.run() })
			knocking.Go(func() { // not in run, whose clock is not to wait for those who judge
				for a := range answers {
					p.answered(ctx, a)
				}
			})
		}
	}
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait, knocks := p.launch(ctx, &wg)
		for _, j := range knocks {
			p.knocker.start(j.knock, time.Duration(j.target.Probe.Timeout))
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		case <-p.wake:
		}
	}
}

func (p *Prober) setKnocker(k *knocker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.knocker = k
}

// rest closes what probes keep, once none is in flight.
func (p *Prober) rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, j := range p.jobs {
		p.closeLocked(j)
	}
}

// batch is how early a probe may start, so that many start with one wake-up.
const batch = time.Millisecond

// launch starts the probes that are due, as far as the bound allows, and returns how long
// to wait for the next, and those that the knocker is to start.
func (p *Prober) launch(ctx context.Context, wg *sync.WaitGroup) (wait time.Duration, knocks []*job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for len(p.queue) > 0 && p.inFlight < p.o.MaxInFlight {
		j, due := p.queue[0].job, p.queue[0].due
		if wait := due.Sub(now) - batch; wait > 0 {
			return max(wait, batch), knocks
		}
		if j.target.Probe.Exec != nil {
			if p.programs >= maxPrograms { // its turn comes when a program ends
				p.queue.drop()
				p.stalled = append(p.stalled, turn{due, j})
				continue
			}
			p.programs++
		}
		if now.Sub(due) > time.Duration(j.target.Probe.Interval) {
			p.o.stats.late.Add(1)
		}
		p.queue.drop()
		p.inFlight++
		f := flight{job: j, state: j.state, start: now}
		if j.knock != nil && p.knocker != nil {
			f.knock = true
			j.flight = f
			knocks = append(knocks, j)
			continue
		}
		d := duty{flight: f}
		d.ctx, d.cancel = context.WithCancel(ctx)
		j.cancel = d.cancel
		if p.spare > 0 {
			p.spare--
			p.duties <- d
		} else {
			wg.Go(func() { p.work(ctx, d) })
		}
	}
	return time.Hour, knocks // a change of the queue or an ending probe wakes Run
}

// duty is one probe to be made.
type duty struct {
	flight
	ctx    context.Context
	cancel context.CancelFunc
}

// work makes one probe, and others until ctx ends: a goroutine that stays need not grow its
// stack for each.
func (p *Prober) work(ctx context.Context, d duty) {
	for {
		p.run(d)
		d.cancel()
		select {
		case d = <-p.duties:
		case <-ctx.Done():
			return
		}
	}
}

// run makes one probe.
func (p *Prober) run(d duty) {
	r := p.attempt(d.ctx, d.job)
	if d.ctx.Err() == nil && p.doubts(&d.flight, r) {
		r = p.attempt(d.ctx, d.job)
	}
	p.finish(d.flight, r, d.ctx.Err() != nil)
}

// answered takes what came of a knock: run for the probes of the knocker.
func (p *Prober) answered(ctx context.Context, a answer) {
	f, over := &a.job.flight, a.err == context.Canceled
	r := Result{Latency: a.took}
	switch h := a.job.http; {
	case a.err == errEnded: // over a new one, in what is left of the time
		p.knocker.start(a.job.knock, time.Duration(a.job.target.Probe.Timeout)-a.took)
		return
	case a.err != nil:
		r = failed(a.took, a.err, Protocol)
		if e, ok := a.err.(*panicked); ok {
			r = p.survived(a.job, e)
		}
	case h != nil:
		r = p.judge(a)
		over = p.knocker.forget(a.job.knock, r.Class == OK)
	}
	if a.job.target.Probe.Invert {
		r = invert(r)
	}
	if !over {
		r = p.count(a.job, a.start, a.took, r)
		if ctx.Err() == nil && p.doubts(f, r) {
			p.knocker.start(a.job.knock, time.Duration(a.job.target.Probe.Timeout))
			return
		}
	}
	p.finish(*f, r, over)
}

// judge judges the reply that a knock heard.
func (p *Prober) judge(a answer) (r Result) {
	defer p.survive(a.job, &r)
	reply := a.job.knock.reply
	r.Latency = a.took
	r.Class, r.Detail = a.job.http.judge(reply.status, reply.body, reply.size)
	return r
}

// doubts reports whether r is to be tried again at once, and counts that: it would begin a run
// of failures, and there is time.
func (p *Prober) doubts(f *flight, r Result) bool {
	interval, timeout := time.Duration(f.job.target.Probe.Interval), time.Duration(f.job.target.Probe.Timeout)
	if f.again || r.Class == OK || f.state.Verdict == gslb.Down || f.state.Run != 0 || time.Since(f.start)+timeout > interval {
		return false
	}
	f.again = true
	p.o.stats.retries.Add(1)
	return true
}

// finish reports r, unless the probe is over before its end, and puts the job back in the queue.
func (p *Prober) finish(f flight, r Result, over bool) {
	j := f.job
	switch {
	case over:
	case r.Class != Local:
		r = p.judgePace(j, r)
		f.state = f.state.NextOf(r.Class == OK, &j.target.Probe)
		p.o.Report(j.target, r, f.state)
	case p.o.Fault != nil:
		p.o.Fault(j.target, r)
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inFlight == p.o.MaxInFlight { // others may wait for this one to end
		defer nudge(p.wake)
	}
	p.inFlight--
	if !f.knock {
		p.spare++
	}
	if j.target.Probe.Exec != nil {
		p.programs--
		p.resumeLocked()
	}
	j.cancel = nil
	if j.gone {
		p.closeLocked(j)
		return
	}
	j.state = f.state
	due := f.start.Add(p.pause(j))
	j.probed = true
	p.queue.put(j, due)
	if p.queue[0].job == j {
		nudge(p.wake)
	}
}

// resumeLocked puts the exec probe that waits longest back in the queue, now that there is room.
func (p *Prober) resumeLocked() {
	for len(p.stalled) > 0 {
		j, due := p.stalled[0].job, p.stalled[0].due
		p.stalled = p.stalled[1:]
		if j.gone {
			p.closeLocked(j)
			continue
		}
		p.queue.put(j, due) // first of its kind: none was due before it
		nudge(p.wake)
		return
	}
}

// pause returns how long after a probe's start the next one of j starts.
func (p *Prober) pause(j *job) time.Duration {
	share := 1.0 // after the first probe anywhere in the interval, so that targets spread
	if j.probed && j.target.Probe.Jitter != nil {
		share = *j.target.Probe.Jitter
	}
	return time.Duration((1 - share*rand.Float64()) * float64(paceOf(&j.target.Probe, p.idle[j.target.ID.Pool])))
}

// paceOf returns the interval of a probe, longer when nobody asks for its pool.
func paceOf(c *config.Probe, idle bool) time.Duration {
	if idle && c.Idle > 1 {
		return min(maxInterval, time.Duration(c.Idle*float64(c.Interval)))
	}
	return time.Duration(c.Interval)
}

func (p *Prober) isIdle(pool string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.idle[pool]
}

// SetIdle says which pools nobody asks for: their probes may go slower. One that is asked
// for again is probed at once.
func (p *Prober) SetIdle(idle map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer nudge(p.wake)
	awake := maps.Clone(p.idle)
	maps.DeleteFunc(awake, func(pool string, _ bool) bool { return idle[pool] })
	if len(awake) > 0 {
		now := time.Now()
		for i, t := range p.queue {
			if c := &t.job.target.Probe; awake[t.job.target.ID.Pool] && c.Idle > 1 && t.due.After(now) {
				p.queue[i].due = now.Add(time.Duration(rand.Float64() * float64(min(time.Second, time.Duration(c.Interval)))))
			}
		}
		heap.Init(&p.queue)
	}
	p.idle = maps.Clone(idle)
}

// pace is how an endpoint answers this vantage: means that a result in eight moves by half.
type pace struct {
	latency time.Duration // 0: no success yet
	errors  float64       // share of failures, 0..1
}

// judgePace takes in a result, and makes a success that is too slow a failure.
func (p *Prober) judgePace(j *job, r Result) Result {
	const weight = 1.0 / 8
	slow := j.target.Probe.Slow
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Class == OK {
		if j.pace.latency == 0 {
			j.pace.latency = r.Latency
		}
		j.pace.latency += time.Duration(weight * float64(r.Latency-j.pace.latency))
	}
	if slow != nil && r.Class == OK {
		limit := time.Duration(slow.Latency)
		if m := p.medianLocked(j); slow.Relative > 0 && m > 0 {
			if rel := time.Duration(slow.Relative * float64(m)); limit == 0 || rel < limit {
				limit = rel
			}
		}
		if limit > 0 && r.Latency >= limit {
			r.Class = Slow
			r.Detail = fmt.Sprintf("%v, expected under %v", r.Latency.Round(10*time.Microsecond), limit.Round(10*time.Microsecond))
		}
	}
	failed := 0.0
	if r.Class != OK {
		failed = 1
	}
	j.pace.errors += weight * (failed - j.pace.errors)
	r.Score = j.pace.score(p.medianLocked(j))
	return r
}

// score rates an endpoint from 100, no failure and no slower than its pool's median, to 0.
func (p pace) score(median time.Duration) uint8 {
	s := 100 * (1 - p.errors)
	if median > 0 && p.latency > median {
		s *= float64(median) / float64(p.latency)
	}
	return uint8(max(0, min(100, s)))
}

// medianLocked returns the median latency of the pool of j, taken anew twice an interval and at most
// once a second.
func (p *Prober) medianLocked(j *job) time.Duration {
	pool := p.pools[j.target.ID.Pool]
	if pool == nil {
		return 0
	}
	if now := time.Now(); now.Sub(pool.at) >= max(time.Second, time.Duration(j.target.Probe.Interval)/2) {
		pool.at = now
		var all []time.Duration
		for _, j := range pool.jobs {
			if j.pace.latency > 0 {
				all = append(all, j.pace.latency)
			}
		}
		pool.median = 0
		if len(all) >= 3 {
			slices.Sort(all)
			pool.median = all[(len(all)-1)/2]
		}
	}
	return pool.median
}

// overrun is how late a timeout may come, at least, before it says more of this node than of
// the endpoint: for a node that was stopped, or is short of CPU, everything is too late.
const overrun = 500 * time.Millisecond

// attempt runs j's probe once.
func (p *Prober) attempt(ctx context.Context, j *job) Result {
	start := time.Now()
	r := func() (r Result) {
		defer p.survive(j, &r)
		return j.probe(ctx)
	}()
	if ctx.Err() == nil {
		r = p.count(j, start, time.Since(start), r)
	}
	return r
}

// panicked is a panic where an error is told.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprint("panic: ", p.value) }

// survive, deferred, ends a panic in j's probe with the result r.
func (p *Prober) survive(j *job, r *Result) {
	if v := recover(); v != nil {
		*r = p.survived(j, &panicked{v, debug.Stack()})
	}
}

// survived is the result of j's probe when it panicked. That is a bug of ours, but no reason for the
// node to stop answering: it is logged, and says nothing of the endpoint.
func (p *Prober) survived(j *job, e *panicked) Result {
	p.o.Logger.Error("probe panicked", "pool", j.target.ID.Pool, "endpoint", j.target.ID.Addr, "panic", e.value, "stack", string(e.stack))
	return Result{Class: Local, Detail: "panic"}
}

// count counts the result of an attempt that began at start, and returns what it says after all.
func (p *Prober) count(j *job, start time.Time, took time.Duration, r Result) Result {
	if limit := time.Duration(j.target.Probe.Timeout); r.Class == Timeout && took > limit+max(limit/2, overrun) {
		r.Class, r.Detail = Local, fmt.Sprintf("this node was stopped or has no CPU left: a timeout of %v took %v", limit, took.Round(time.Millisecond))
	}
	p.o.stats.probes[r.Class].Add(1)
	if p.o.attempted != nil {
		p.o.attempted(j.target, start, r)
	}
	return r
}

// nudge leaves a token in a channel of capacity 1.
func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// turn is when a job is due.
type turn struct {
	due time.Time
	job *job
}

// jobQueue is a heap of jobs by due time. It does not look into them: 50,000 are more than a cache
// holds.
type jobQueue []turn

// put adds j.
func (q *jobQueue) put(j *job, due time.Time) {
	j.waits = true
	*q = append(*q, turn{due, j})
	heap.Fix(q, len(*q)-1)
}

// drop removes the first.
func (q *jobQueue) drop() {
	(*q)[0].job.waits = false
	heap.Pop(q)
}

// sweep removes those that are gone.
func (q *jobQueue) sweep() {
	*q = slices.DeleteFunc(*q, func(t turn) bool { return t.job.gone })
	heap.Init(q)
}

func (q jobQueue) Len() int           { return len(q) }
func (q jobQueue) Less(a, b int) bool { return q[a].due.Before(q[b].due) }
func (q jobQueue) Swap(a, b int)      { q[a], q[b] = q[b], q[a] }
func (q *jobQueue) Push(any)          {} // for heap.Interface; see put
func (q *jobQueue) Pop() any {
	last := len(*q) - 1
	(*q)[last] = turn{}
	*q = (*q)[:last]
	return nil
}

// connect opens a connection to t over "tcp" or "udp" that fails whatever is done on it once ctx ends. The
// caller closes it.
func connect(ctx context.Context, network string, t Target) (net.Conn, error) {
	c, err := dial(ctx, network, t.Addr)
	if err != nil {
		return nil, err
	}
	return bind(ctx, c), nil
}

// dial is connect for a connection that outlives ctx.
func dial(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: false}, KeepAlive: -1}
	return d.DialContext(ctx, network, addr.String())
}

// bind lets whatever is done on c fail once ctx ends, until c is closed.
func bind(ctx context.Context, c net.Conn) net.Conn {
	return &boundConn{Conn: c, stop: context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })}
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
	return failed(time.Since(start), err, otherwise)
}

// failed is failure for a probe that took so long.
func failed(took time.Duration, err error, otherwise Class) Result {
	r := Result{Class: classify(err, otherwise), Latency: took, Detail: detail(err)}
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
	case is(syscall.EHOSTUNREACH, syscall.EHOSTDOWN, syscall.EACCES, syscall.EPERM):
		return Unreachable
	case is(syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT):
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
