package tracing

import (
	"context"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options configure a Recorder. Zero values mean the defaults named.
type Options struct {
	Workers  int     // rings: one for each goroutine that answers queries; default 1
	RingSize int     // records in a ring, rounded up to a power of two; default 4096
	Sample   float64 // share of all queries that become spans, 0..1

	Slow        time.Duration // a query that took longer is interesting; default 5 ms
	Interesting int           // interesting queries a second that become spans beyond Sample, and a tenth as many of fences and overrides; default 100, negative for none
	Plain       int           // queries a second that Sample alone selects and the memory takes; without an Endpoint no others become spans; default 100, negative for all

	Endpoint string            // http:// or https:// base URL of an OTLP/HTTP collector, /v1/traces is appended; grpc:// or grpcs://host:port of an OTLP/gRPC one; empty: memory only
	Headers  map[string]string // of every request to it
	Gzip     bool              // compress requests: less traffic for more CPU
	Timeout  time.Duration     // of one attempt; default 10 s
	RetryFor time.Duration     // how long a batch is retried; default 30 s
	Linger   time.Duration     // how long a batch waits to fill up; default 1 s
	Queue    int               // octets of batches that wait for the collector; default 8 MiB
	Grace    time.Duration     // for the last batches after Run's context ended; default 3 s

	Node    string // this node's name: service.instance.id and server.address
	Site    string // gslb.site
	Version string // service.version

	// Describe names what a query's indices stand for. It is called by the goroutine of Run,
	// for sampled queries only, and must not keep the Query. Nil: the spans go without.
	Describe func(*Query) Facts

	// Brief is Describe for queries that only the ratio sampled and that the policy's first choice
	// decided, of which there are most: without Candidates and Rejected, and as cheap as can
	// be. What it returns is good until it is called again. Nil: Describe.
	Brief func(*Query) Facts

	// Answers are the ids that the fleet's answers carry; nil: none do. Linker then finds the
	// decision that led to a request in the spans that the Receiver takes, and adds the link;
	// nil: they are left as they are. Ledger, if not nil, is told of every answer with an id.
	Answers *AnswerIDs
	Linker  *Linker
	Ledger  *Ledger
	Parents *Parents // for its counters; nil: nobody may ask for traces

	Log *DecisionLog // is told of the decisions that it samples; nil: none

	// Sources are further queues of records, drained with the rings by the same goroutine.
	Sources []Source

	Memory       int // traces that the node itself remembers; default 1024, negative for none
	MemoryOctets int // and their size; default 16 MiB

	Logger *slog.Logger // default slog.Default
}

// Source is a queue of records.
type Source interface {
	// Drain calls f with each record that it holds, and returns their number. It does not
	// wait. The record belongs to f until it returns.
	Drain(f func(*Query)) int
}

// serviceName is the service.name of the daemon's spans.
const serviceName = "gslbd"

const (
	batchOctets = 256 << 10 // a batch is sent when it is as large,
	batchSpans  = 1024      // or has as many spans
	minSleep    = time.Millisecond
	maxSleep    = 20 * time.Millisecond
	// lightSleep is maxSleep where few queries are recorded: each look costs as much as several
	// of them, for what it has to fetch into the caches.
	lightSleep = 100 * time.Millisecond
)

func (o Options) withDefaults() Options {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	wait := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	o.Workers = max(o.Workers, 1)
	def(&o.RingSize, defaultRing)
	def(&o.Interesting, 100)
	def(&o.Plain, 100)
	def(&o.Queue, 8<<20)
	def(&o.Memory, 1024)
	def(&o.MemoryOctets, 16<<20)
	wait(&o.Slow, 5*time.Millisecond)
	wait(&o.Timeout, 10*time.Second)
	wait(&o.RetryFor, 30*time.Second)
	wait(&o.Linger, time.Second)
	wait(&o.Grace, 3*time.Second)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// resource is what every span of this node says of its origin.
func (o *Options) resource() map[string]any {
	attrs := map[string]any{AttrServiceName: serviceName}
	for key, value := range map[string]string{
		AttrServiceInstance: o.Node, AttrServiceVersion: o.Version, AttrSite: o.Site,
	} {
		if value != "" {
			attrs[key] = value
		}
	}
	return attrs
}

// Recorder takes the records of the workers, makes spans of some, remembers them and exports
// them.
type Recorder struct {
	options  Options
	workers  []*Worker
	memory   *Memory
	exporter *exporter // nil: memory only
	resource []byte    // content of the Resource of every span
	origin   *origin   // the same, for the memory

	// Only the goroutine of Run.
	signer  *Signer      // nil: no answer has an id
	signed  []netip.Addr // of sign
	sampler *sampler
	maker   *spanMaker
	plain   bucket // of what Sample alone selects, for the memory
	spans   []byte // of the batch that fills up: room for what a request has before its spans, and then these
	room    int    // octets
	inBatch int    // spans
	born    time.Time
	epoch   time.Time // when the workers' epoch began

	// Written by the goroutine of Run alone.
	sampled [len(sampledBy)]atomic.Uint64
	limited atomic.Uint64
	made    atomic.Uint64
	// Of the receiver.
	received      atomic.Uint64
	receiving     turnstile          // of requests that are being read over HTTP,
	receivingGRPC turnstile          // and over gRPC
	patience      time.Duration      // maxReading
	readingJSON   chan struct{}      // holds something while one request is read
	asked         chan chan struct{} // whom to tell once the rings have been drained
}

var sampledBy = [...]string{SampledRatio, SampledParent, SampledReason, SampledServfail, SampledSlow, SampledFence, SampledOverride, SampledFirst}

// New returns a Recorder; nothing runs before Run.
func New(o Options) *Recorder {
	o = o.withDefaults()
	r := &Recorder{
		options:  o,
		memory:   NewMemory(o.Memory, o.MemoryOctets),
		resource: appendResource(nil, o.resource()),
		sampler:  newSampler(o.Sample, o.Slow, float64(max(o.Interesting, 0))),
		maker:    newSpanMaker(o.Node, o.Describe),
		plain:    fullBucket(float64(o.Plain)),

		patience:    maxReading,
		readingJSON: make(chan struct{}, 1),
		asked:       make(chan chan struct{}),
	}
	r.room = len(appendHead(nil, r.resource, o.Version, math.MaxInt32))
	r.spans = make([]byte, r.room)
	r.origin = r.memory.origin(r.resource)
	plain := uint64(math.MaxUint64)
	if o.Endpoint == "" && o.Plain >= 0 {
		plain = uint64(o.Plain)
	}
	for range o.Workers {
		w := newWorker(o.RingSize)
		w.ahead.init(r.sampler, o.Ledger != nil, plain, o.Log)
		if o.Log != nil {
			w.wire = make([]packets, len(w.lines))
		}
		r.workers = append(r.workers, w)
	}
	if o.Answers != nil {
		r.signer = o.Answers.Signer()
	}
	if o.Endpoint != "" {
		r.exporter = newExporter(&r.options)
	}
	return r
}

// Worker returns ring i, 0 <= i < Options.Workers, for the one goroutine that fills it.
func (r *Recorder) Worker(i int) *Worker { return r.workers[i] }

// Memory returns the node's memory of the last traces.
func (r *Recorder) Memory() *Memory { return r.memory }

// Run drains the rings and exports until ctx ends. Then it drains them once more, gives the
// collector Options.Grace to take what is left, and returns the cause of ctx once its last
// goroutine has ended. Run is called once.
func (r *Recorder) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	exporting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if r.exporter != nil {
		wg.Go(func() { r.exporter.run(exporting) })
	}

	r.drainUntil(ctx)

	if r.exporter != nil {
		r.exporter.close()
		defer time.AfterFunc(r.options.Grace, cancel).Stop()
	}
	wg.Wait()
	return context.Cause(ctx)
}

// drainUntil drains until ctx ends, then a last time.
func (r *Recorder) drainUntil(ctx context.Context) {
	pause := maxSleep
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		var asked chan struct{}
		select {
		case <-ctx.Done():
			r.drain(time.Now())
			r.flush()
			return
		case asked = <-r.asked:
		case <-timer.C:
		}
		most := r.drain(time.Now())
		if asked != nil {
			close(asked)
			continue // the pause goes on
		}
		pause = nextPause(pause, r.longest(), most, len(r.workers[0].lines))
		timer.Reset(pause)
	}
}

// settle waits until every record that was committed when it was called has been drained, or for
// as long as that may take, in case that nobody drains.
func (r *Recorder) settle() {
	patience := time.NewTimer(2 * maxSleep)
	defer patience.Stop()
	done := make(chan struct{})
	select {
	case r.asked <- done:
	case <-patience.C:
		return
	}
	<-done // a drain is not interrupted
}

// longest returns how long the drain may sleep: until a ring would be full if the worker had as
// much to do as it can from now on.
func (r *Recorder) longest() time.Duration {
	share := r.sampler.bound
	if r.options.Log != nil {
		share = max(share, r.options.Log.bound.Load())
	}
	if r.options.Ledger != nil || len(r.options.Sources) > 0 || share > 1<<63/20 {
		return maxSleep
	}
	return lightSleep
}

// nextPause returns how long to sleep, longest at most, so that the fullest ring, which took most
// records in the last pause, is about a quarter full at the next drain.
func nextPause(last, longest time.Duration, most, size int) time.Duration {
	if most == 0 {
		return longest
	}
	ideal := time.Duration(float64(last) * float64(size) / 4 / float64(most))
	return min(max(ideal, minSleep), longest)
}

// drain empties every ring once and returns the most records that one had.
func (r *Recorder) drain(now time.Time) (most int) {
	for _, w := range r.workers {
		most = max(most, w.drain(func(q *Query, p *packets) {
			if q.Logged {
				query, reply := p.kept()
				r.options.Log.take(q, query, reply, r.describe(q))
			}
			r.take(q, now)
		}))
	}
	if now.Sub(r.epoch) >= time.Second {
		r.epoch = now
		for _, w := range r.workers {
			w.ahead.epoch.Add(1)
		}
	}
	for _, s := range r.options.Sources {
		most = max(most, s.Drain(func(q *Query) { r.take(q, now) }))
	}
	if r.inBatch > 0 && now.Sub(r.born) >= r.options.Linger {
		r.flush()
	}
	return most
}

// take samples one query and makes its spans.
func (r *Recorder) take(q *Query, now time.Time) {
	if r.options.Ledger != nil && q.GivenLen > 0 {
		r.options.Ledger.add(q)
	}
	if q.Plain {
		return
	}
	lower := [8]byte(q.Trace[8:])
	if q.Trace.IsZero() {
		lower = r.sampler.fit(r.maker.lower(), q.Drawn)
	}
	by, first, limited := r.sampler.judge(q, lower, now)
	if limited {
		r.limited.Add(1)
	}
	if by == "" {
		return
	}
	plain := by == SampledRatio && !first
	remember := !plain || r.options.Plain < 0 || r.plain.take(now)
	if !remember && r.exporter == nil {
		r.limited.Add(1)
		return
	}
	r.sampled[slices.Index(sampledBy[:], by)].Add(1)

	if r.inBatch == 0 {
		r.born = now
	}
	trace, root := q.Trace, q.Span
	if trace.IsZero() {
		trace = r.maker.traceID(lower)
	}
	if root.IsZero() {
		root = r.maker.spanID()
	}
	describe := r.maker.describe
	if (by == SampledRatio || by == SampledSlow) && !first { // the engine's reasons say nothing of either
		describe = r.describe(q)
	}
	facts := describe(q)
	if q.Decision != 0 && r.signer != nil {
		facts.Answers = r.sign(q.Decision, facts.Answers)
	}
	from := len(r.spans)
	var n int
	r.spans, n = r.maker.appendQuery(r.spans, q, trace, root, by, &facts)
	r.keep(trace, from, n, remember)
	if first && q.Decision != 0 && r.signer != nil {
		from = len(r.spans)
		cohort, span := r.signer.Context(q.Decision, 0)
		r.spans = r.maker.appendCohort(r.spans, q, cohort, span, &Link{TraceID: trace, SpanID: root}, &facts)
		r.keep(cohort, from, 1, true)
	}
	if len(r.spans)-r.room >= batchOctets || r.inBatch >= batchSpans {
		r.flush()
	}
}

// describe returns what describes a record that nothing but chance selected: in full only where
// the policy's first choice was not what was decided.
func (r *Recorder) describe(q *Query) func(*Query) Facts {
	if q.Reason == reasonPolicy && r.options.Brief != nil {
		return r.options.Brief
	}
	return r.maker.describe
}

// sign returns answers with id in the IPv6 ones: what was answered, rather than what is configured.
// The result is good until the next call.
func (r *Recorder) sign(id AnswerID, answers []netip.Addr) []netip.Addr {
	r.signed = r.signed[:0]
	for _, addr := range answers {
		if addr.Is6() && !addr.Is4In6() {
			addr = r.signer.Addr(id, addr)
		}
		r.signed = append(r.signed, addr)
	}
	return r.signed
}

// keep counts the n spans of a trace that were just made, from that place on, and remembers them.
func (r *Recorder) keep(trace TraceID, from, n int, remember bool) {
	r.made.Add(uint64(n))
	if remember {
		r.memory.add(r.origin, trace, r.spans[from:], n)
	}
	r.inBatch += n
}

// flush hands the batch to the exporter, in the memory that it was made in, and starts another.
func (r *Recorder) flush() {
	if r.exporter == nil || r.inBatch == 0 {
		r.spans, r.inBatch = r.spans[:r.room], 0
		return
	}
	n := len(r.spans) - r.room
	head := appendHead(nil, r.resource, r.options.Version, n)
	from := r.room - len(head)
	copy(r.spans[from:], head)
	b := batch{body: r.spans[from:], spans: r.inBatch, kind: protobufType}
	if !r.exporter.grpc {
		b.reuse = new(lent)
	}
	r.exporter.put(b)
	r.spans, r.inBatch = r.exporter.memory(r.room + n)[:r.room], 0
}

// Stats are exact counters since the start. At any moment
//
//	Recorded = Drained + Waiting + Dropped[DropRingFull]
//	Queued   = Exported + Pending + the other Dropped
//
// and, without the received spans that were not forwarded, Queued and the batch that fills up
// come to Made + Received.
type Stats struct {
	Recorded uint64 // queries that workers began to record
	Drained  uint64 // queries that the drain has seen
	Waiting  uint64 // queries in the rings

	Sampled map[string]uint64 // queries made into spans, by one of the Sampled constants; every one is there
	Limited uint64            // recorded queries that are no spans, being beyond Options.Interesting or Options.Plain
	Made    uint64            // spans made of sampled queries

	Received uint64 // spans that other processes sent here
	Queued   uint64 // spans for the collector
	Pending  uint64 // spans that wait for it
	Exported uint64 // spans that it took
	Retries  uint64 // further attempts at a batch

	Dropped map[string]uint64 // by one of the Drop constants; every one is there

	Parents ParentStats
	Links   LinkStats // of the spans received
	Ledger  LedgerStats
	Log     DecisionLogStats
}

// Stats returns the counters. It may be called at any time.
func (r *Recorder) Stats() Stats {
	s := Stats{
		Sampled:  make(map[string]uint64, len(sampledBy)),
		Limited:  r.limited.Load(),
		Made:     r.made.Load(),
		Received: r.received.Load(),
		Dropped:  make(map[string]uint64, len(dropCauses)),
	}
	for _, cause := range dropCauses {
		s.Dropped[cause] = 0
	}
	if r.options.Parents != nil {
		s.Parents = r.options.Parents.Stats()
	}
	if r.options.Linker != nil {
		s.Links = r.options.Linker.Stats()
	}
	if r.options.Log != nil {
		s.Log = r.options.Log.Stats()
	}
	if r.options.Ledger != nil {
		s.Ledger = r.options.Ledger.Stats()
	}
	for i, by := range sampledBy {
		s.Sampled[by] = r.sampled[i].Load()
	}
	if r.exporter != nil {
		r.exporter.addTo(&s)
	}
	for _, w := range r.workers {
		// head first: it never passes a tail read later.
		head, tail, full := w.head.Load(), w.tail.Load(), w.full.Load()
		s.Drained += head
		s.Waiting += tail - head
		s.Recorded += tail + full
		s.Dropped[DropRingFull] += full
	}
	return s
}
