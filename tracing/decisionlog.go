package tracing

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DecisionLog writes decisions down, one by one: as lines of JSON, as dnstap messages, or both.
// It is fed by the Recorder, out of the workers' rings, and never waits: what a sink has no room
// for is dropped and counted.
type DecisionLog struct {
	// Set at construction.
	node, site, version string
	log                 *slog.Logger

	bound atomic.Uint64 // as the sampler's, for the workers
	wires atomic.Bool   // packets are wanted

	feed    sync.Mutex    // held while a decision is offered to the sinks, which does not wait, and while they are swapped
	current decisionSinks // guarded by feed; written with mu held as well

	mu      sync.Mutex // held while the configuration is replaced
	running bool
	ended   bool
	writers sync.WaitGroup

	taken, filtered atomic.Uint64
	lines, dnstap   sinkCounts
}

// DecisionLogConfig says what is written, and where. It may change while all runs.
type DecisionLogConfig struct {
	Sample   float64  // share of the decisions that are looked at, 0..1
	Services []string // globs (path.Match) over the name; without any, all are written
	Pools    []string // likewise; a decision for no pool has the name ""
	Reasons  []string // as written in full; likewise
	File     string   // of lines of JSON: "stdout", a path, or "" for none
	Dnstap   string   // "unix:" and the path of a socket, "file:" and that of a file, or "" for none
}

// DecisionLogStats are exact counters since the start.
type DecisionLogStats struct {
	Taken    uint64 // decisions that were sampled
	Filtered uint64 // of them, those that no filter lets through
	Lines    SinkStats
	Dnstap   SinkStats
}

// SinkStats are the counters of one place that decisions are written to.
type SinkStats struct {
	Written uint64
	Dropped map[string]uint64 // by one of the Drop constants; every one of a sink is there
	Fault   string            // why nothing is written now
}

// Why a decision was not written down, beside DropQueueFull.
const (
	DropWriteFailed  = "write_failed" // the file or the connection took no more
	DropNotConnected = "unconnected"  // nobody listens at the socket
)

// decisionQueue is how many decisions wait for a sink.
const decisionQueue = 4096

// sinkCounts count what becomes of decisions at a sink.
type sinkCounts struct {
	written, full, failed, unconnected atomic.Uint64
	fault                              atomic.Pointer[string]
}

func (c *sinkCounts) stats() SinkStats {
	s := SinkStats{Written: c.written.Load(), Dropped: map[string]uint64{
		DropQueueFull: c.full.Load(), DropWriteFailed: c.failed.Load(), DropNotConnected: c.unconnected.Load(),
	}}
	if fault := c.fault.Load(); fault != nil {
		s.Fault = *fault
	}
	return s
}

// wrong remembers why nothing is written; nil takes it back. It tells whether that is new.
func (c *sinkCounts) wrong(err error) (news bool) {
	if err == nil {
		return c.fault.Swap(nil) != nil
	}
	text := err.Error()
	old := c.fault.Swap(&text)
	return old == nil || *old != text
}

// NewDecisionLog returns a log that writes nothing until it is configured. Nothing runs before
// Run.
func NewDecisionLog(node, site, version string, log *slog.Logger) *DecisionLog {
	if log == nil {
		log = slog.Default()
	}
	return &DecisionLog{node: node, site: site, version: version, log: log}
}

// decisionSinks are what a configuration comes to. A sink that is nil is not wanted.
type decisionSinks struct {
	config DecisionLogConfig
	lines  *sink
	dnstap *sink
}

// sink is a queue and who writes what is in it.
type sink struct {
	counts *sinkCounts
	queue  chan *decision
	run    func(queue <-chan *decision) // until the queue is closed
	file   *os.File                     // of dnstap, where it is one
}

// offer puts d into the queue if there is room.
func (s *sink) offer(d *decision) {
	if s == nil {
		return
	}
	select {
	case s.queue <- d:
	default:
		s.counts.full.Add(1)
	}
}

// decision is a record with the names behind it, and the packets if they were kept.
type decision struct {
	q            Query
	facts        Facts
	sample       float64
	query, reply []byte // in wire form; empty: not kept
}

// Configure takes a new configuration. Files are opened, or opened anew where the name leads to
// another file by now, so that they can be rotated; on an error all stays as it was.
func (l *DecisionLog) Configure(c DecisionLogConfig) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return errors.New("decision log: it has ended")
	}
	old, next := l.current, decisionSinks{config: c}
	var err error
	if next.lines, err = l.openLines(c.File, &old); err != nil {
		return fmt.Errorf("decision log: %w", err)
	}
	if next.dnstap, err = l.openDnstap(c.Dnstap, &old); err != nil {
		if next.lines != old.lines {
			l.end(next.lines)
		}
		return fmt.Errorf("decision log: %w", err)
	}
	l.bound.Store(0)
	if next.lines != nil || next.dnstap != nil {
		l.bound.Store(uint64(min(max(c.Sample, 0), 1) * (1 << 63)))
	}
	l.wires.Store(next.dnstap != nil)
	l.swap(next)
	for _, pair := range [][2]*sink{{old.lines, next.lines}, {old.dnstap, next.dnstap}} {
		if was, is := pair[0], pair[1]; was != is {
			l.end(was)
			if l.running {
				l.begin(is)
			}
		}
	}
	return nil
}

// swap replaces the sinks: nothing is offered to the old ones any more.
func (l *DecisionLog) swap(next decisionSinks) {
	l.feed.Lock()
	defer l.feed.Unlock()
	l.current = next
}

// begin starts the writer of a sink, if there is one.
func (l *DecisionLog) begin(s *sink) {
	if s != nil {
		l.writers.Go(func() { s.run(s.queue) })
	}
}

// end has the writer of a sink that is not fed end, once it has written what waits.
func (l *DecisionLog) end(s *sink) {
	if s == nil {
		return
	}
	if close(s.queue); !l.running { // it has no writer yet, and a file to be closed
		s.run(s.queue)
	}
}

// Run writes until ctx ends and what the recorder has offered by then is written. End the recorder
// first.
func (l *DecisionLog) Run(ctx context.Context) error {
	l.mu.Lock()
	l.running = true
	l.begin(l.current.lines)
	l.begin(l.current.dnstap)
	l.mu.Unlock()
	<-ctx.Done()
	l.mu.Lock()
	last := l.current
	l.swap(decisionSinks{})
	l.bound.Store(0)
	l.ended = true
	l.end(last.lines)
	l.end(last.dnstap)
	l.mu.Unlock()
	l.writers.Wait()
	return context.Cause(ctx)
}

// Stats returns the counters. It may be called at any time.
func (l *DecisionLog) Stats() DecisionLogStats {
	return DecisionLogStats{Taken: l.taken.Load(), Filtered: l.filtered.Load(), Lines: l.lines.stats(), Dnstap: l.dnstap.stats()}
}

// take offers a record that was sampled to the sinks, if the filters want it. Only the recorder's
// drain calls it.
func (l *DecisionLog) take(q *Query, query, reply []byte, describe func(*Query) Facts) {
	if q.Decided == 0 {
		return
	}
	l.feed.Lock()
	defer l.feed.Unlock()
	s := &l.current
	if s.lines == nil && s.dnstap == nil {
		return
	}
	l.taken.Add(1)
	facts := describe(q)
	c := &s.config
	if facts.Service == "" || !matches(c.Services, facts.Service) || !matches(c.Pools, facts.Pool) || !matches(c.Reasons, facts.Reason) {
		l.filtered.Add(1)
		return
	}
	d := &decision{q: *q, facts: facts, sample: c.Sample}
	if s.dnstap != nil {
		d.query, d.reply = append(d.query, query...), append(d.reply, reply...)
	}
	s.lines.offer(d)
	s.dnstap.offer(d)
}

// matches tells whether one of globs, if there are any, is name.
func matches(globs []string, name string) bool {
	for _, g := range globs {
		if ok, _ := path.Match(g, name); ok {
			return true
		}
	}
	return len(globs) == 0
}

// openLines returns the sink of lines, that of old if it is the same file.
func (l *DecisionLog) openLines(file string, old *decisionSinks) (*sink, error) {
	if file == "" {
		return nil, nil
	}
	if old.lines != nil && old.config.File == file && file == "stdout" {
		return old.lines, nil
	}
	w := io.WriteCloser(os.Stdout)
	if file != "stdout" {
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, err
		}
		w = f
	}
	return &sink{counts: &l.lines, queue: make(chan *decision, decisionQueue), run: func(queue <-chan *decision) {
		l.writeLines(w, queue)
		if file != "stdout" {
			w.Close() // what could be written was flushed
		}
	}}, nil
}

// writeLines writes what comes, until the queue is closed. A batch is flushed when nothing waits.
func (l *DecisionLog) writeLines(w io.Writer, queue <-chan *decision) {
	out := bufio.NewWriterSize(w, 64<<10)
	h := slog.NewJSONHandler(out, nil)
	waiting := uint64(0) // lines that are not flushed
	for d := range queue {
		err := h.Handle(context.Background(), l.line(d))
		if waiting++; err == nil && len(queue) == 0 {
			err = out.Flush()
		}
		switch {
		case err != nil: // a full disk may have room again
			l.lines.failed.Add(waiting)
			if l.lines.wrong(err) {
				l.log.Error("decisions are not written down", "err", err)
			}
			out.Reset(w)
			waiting = 0
		case out.Buffered() == 0:
			l.lines.written.Add(waiting)
			l.lines.wrong(nil)
			waiting = 0
		}
	}
}

// line returns the line of d, with the time of the query.
func (l *DecisionLog) line(d *decision) slog.Record {
	r := slog.NewRecord(time.Unix(0, d.q.Start).UTC(), slog.LevelInfo, "decision", 0)
	r.AddAttrs(slog.String("node", l.node))
	r.AddAttrs(d.attrs()...)
	return r
}

// attrs are what is written of d, the same in lines and in the extra field of dnstap.
func (d *decision) attrs() []slog.Attr {
	q, f := &d.q, &d.facts
	transport := "udp"
	if q.TCP {
		transport = "tcp"
	}
	attrs := []slog.Attr{
		slog.String("service", f.Service), slog.String("name", nameText(q)), slog.String("type", typeText(q.Qtype)),
		slog.String("client", clientText(q)), slog.Bool("ecs", q.HasECS),
		slog.String("resolver", netip.AddrFrom16(q.Resolver).Unmap().String()), slog.String("transport", transport),
		slog.String("pool", f.Pool), slog.String("reason", f.Reason), slog.String("rcode", rcodeText(q.Rcode)),
		slog.Any("answers", append([]netip.Addr{}, f.Answers...)), slog.Uint64("ttl", uint64(q.TTL)), slog.Uint64("scope", uint64(q.Scope)),
		slog.Uint64("revision", q.Revision), slog.String("plan", f.Plan), slog.Float64("micros", float64(q.End)/1e3), slog.Float64("sample", d.sample),
	}
	known := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	known("country", f.Place.Country)
	known("city", f.Place.City)
	if f.Place.ASN != 0 {
		attrs = append(attrs, slog.Uint64("asn", uint64(f.Place.ASN)))
	}
	if len(f.Rejected) > 0 {
		rejected := make([]string, len(f.Rejected))
		for i, r := range f.Rejected {
			rejected[i] = r.Pool + ": " + r.Reason
		}
		attrs = append(attrs, slog.Any("rejected", rejected))
	}
	if !q.Trace.IsZero() {
		known("trace", q.Trace.String())
	}
	if q.Decision != 0 {
		known("decision", q.Decision.String())
	}
	return attrs
}

// clientText is the client as far as it is known.
func clientText(q *Query) string {
	addr := netip.AddrFrom16(q.Client)
	if !q.V6 {
		addr = addr.Unmap()
	}
	p, err := addr.Prefix(min(int(q.Source), addr.BitLen()))
	if err != nil {
		return addr.String()
	}
	return p.String()
}

// places splits "unix:/run/x" into its parts.
func places(dnstap string) (network, path string) {
	network, path, _ = strings.Cut(dnstap, ":")
	return network, path
}
