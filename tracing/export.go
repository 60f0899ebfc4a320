package tracing

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
)

// Why spans, or with DropRingFull queries, were dropped.
const (
	DropRingFull    = "ring_full"   // the drain did not keep up with a worker
	DropQueueFull   = "queue_full"  // the collector did not keep up with the drain
	DropTooLarge    = "too_large"   // more than the collector takes at once, or than the queue holds
	DropRefused     = "refused"     // the collector will never take it: 3xx, 4xx, 500
	DropUnavailable = "unavailable" // it said so (429, 502, 503, 504) until the retries ended
	DropTimeout     = "timeout"     // no answer in time, until the retries ended
	DropUnreachable = "unreachable" // no connection, or a broken one, until the retries ended
	DropPartial     = "partial"     // rejected in an otherwise accepted request
	DropShutdown    = "shutdown"    // still there when the grace of a shutdown had passed
)

var dropCauses = []string{
	DropRingFull, DropQueueFull, DropTooLarge, DropRefused, DropUnavailable,
	DropTimeout, DropUnreachable, DropPartial, DropShutdown,
}

const (
	firstBackoff  = 250 * time.Millisecond
	maxBackoff    = 5 * time.Second
	maxRetryAfter = 30 * time.Second // a collector's wish is followed up to that
	maxResponse   = 64 << 10         // octets of a response that are read
	maxQueued     = 1024             // requests in the queue, however small
)

// batch is one request to the collector.
type batch struct {
	body     []byte
	spans    int
	kind     string // Content-Type
	encoding string // Content-Encoding of body
	reuse    *lent  // body may be used again once nobody reads it any more; nil: it may not
}

// lent counts the readers of a batch's body that may still read. A transport may for a while after it
// has the response; see http.RoundTripper.
type lent struct{ readers atomic.Int32 }

// lentReader reads a body until it is closed. HTTP/2 may close it in the middle of a read, and read on.
type lentReader struct {
	from   *lent
	mu     sync.Mutex // guards what follows
	left   bytes.Reader
	closed bool
}

func (r *lentReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return r.left.Read(p)
}

func (r *lentReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.closed = true
		r.from.readers.Add(-1)
	}
	return nil
}

// reader returns a further reader of b's body.
func (b *batch) reader() (io.ReadCloser, error) {
	if b.reuse == nil {
		return io.NopCloser(bytes.NewReader(b.body)), nil
	}
	b.reuse.readers.Add(1)
	r := &lentReader{from: b.reuse}
	r.left.Reset(b.body)
	return r, nil
}

// exporter sends batches to one OTLP endpoint, HTTP or gRPC, over a connection of its own, one
// after the other. Whoever puts a batch never waits for it.
type exporter struct {
	url      string
	grpc     bool
	gzip     bool
	timeout  time.Duration // of one attempt
	retryFor time.Duration // from the first attempt at a batch to the last
	capacity int           // octets in the queue
	header   map[string]string
	client   *http.Client
	conn     *grpc.ClientConn // instead of client, with grpc; only run
	log      *slog.Logger
	wake     chan struct{} // holds one token while the queue may have changed
	failing  bool          // only run: the last attempt failed, and that was logged
	spare    chan []byte   // the memory of the last batch

	mu sync.Mutex // guards what follows; held for moments only, never during a call-out
	// queued = exported + pending + the sum of dropped, always
	queue    []batch
	octets   int  // in queue
	closed   bool // nothing more is taken
	queued   uint64
	pending  uint64 // in queue or under way
	exported uint64
	retries  uint64
	dropped  map[string]uint64
}

func newExporter(o *Options) *exporter {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxConnsPerHost = 1
	transport.MaxIdleConnsPerHost = 1
	transport.DisableCompression = true
	transport.MaxResponseHeaderBytes = maxResponse
	to := o.Endpoint
	if !isGRPC(to) {
		to = strings.TrimSuffix(to, "/") + "/v1/traces"
	}
	return &exporter{
		url:      to,
		grpc:     isGRPC(to),
		gzip:     o.Gzip,
		timeout:  o.Timeout,
		retryFor: o.RetryFor,
		capacity: o.Queue,
		header:   o.Headers,
		client: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		log:     o.Logger,
		wake:    make(chan struct{}, 1),
		spare:   make(chan []byte, 1),
		dropped: make(map[string]uint64),
	}
}

// put takes the batch, which it owns from then on, or drops and counts it. It never waits.
func (e *exporter) put(b batch) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := uint64(b.spans)
	e.queued += n
	switch {
	case e.closed:
		e.dropped[DropShutdown] += n
		return
	case len(b.body) > e.capacity:
		e.dropped[DropTooLarge] += n
		return
	case e.octets+len(b.body) > e.capacity || len(e.queue) >= maxQueued:
		e.dropped[DropQueueFull] += n
		return
	}
	e.queue = append(e.queue, b)
	e.octets += len(b.body)
	e.pending += n
	e.notify()
}

// memory returns memory for a batch of about n octets: that of one that was sent, whose octets are in
// the caches still, or new one. Its length is 0.
func (e *exporter) memory(n int) []byte {
	select {
	case b := <-e.spare:
		if cap(b) >= n {
			return b
		}
	default:
	}
	return make([]byte, 0, n+n/4)
}

// close lets run return once the queue is empty.
func (e *exporter) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	e.notify()
}

func (e *exporter) notify() {
	select {
	case e.wake <- struct{}{}:
	default: // run has not yet seen the last token
	}
}

// next waits for a batch. It returns false when there will be none, or ctx has ended.
func (e *exporter) next(ctx context.Context) (batch, bool) {
	for ctx.Err() == nil {
		e.mu.Lock()
		if len(e.queue) > 0 {
			b := e.queue[0]
			e.queue[0] = batch{} // let go of the body
			e.queue = e.queue[1:]
			e.octets -= len(b.body)
			e.mu.Unlock()
			return b, true
		}
		closed := e.closed
		e.mu.Unlock()
		if closed {
			return batch{}, false
		}
		select {
		case <-e.wake:
		case <-ctx.Done():
		}
	}
	return batch{}, false
}

// run exports until close was called and the queue is empty, or ctx ends; what is left then
// is dropped and counted.
func (e *exporter) run(ctx context.Context) {
	defer e.client.CloseIdleConnections()
	if e.grpc {
		conn, err := dial(e.url)
		if err != nil { // the endpoint was checked: every batch fails alike, and is counted
			e.log.Error("span export", "endpoint", e.url, "err", err)
		} else {
			e.conn = conn
			defer conn.Close() // fails only if it was closed before
		}
	}
	for {
		b, ok := e.next(ctx)
		if !ok {
			break
		}
		e.settle(b.spans, e.deliver(ctx, b))
		if b.reuse != nil && b.reuse.readers.Load() == 0 {
			select {
			case e.spare <- b.body[:0]:
			default:
			}
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for _, b := range e.queue {
		e.pending -= uint64(b.spans)
		e.dropped[DropShutdown] += uint64(b.spans)
	}
	e.queue, e.octets = nil, 0
}

// settle counts what became of a batch.
func (e *exporter) settle(spans int, v verdict) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, rejected := uint64(spans), uint64(0)
	switch {
	case v.cause == DropPartial:
		rejected = min(n, uint64(max(v.rejected, 0))) // a collector may claim anything
	case v.cause != "":
		rejected = n
	}
	e.pending -= n
	e.exported += n - rejected
	if rejected > 0 {
		e.dropped[v.cause] += rejected
	}
}

// verdict is what an attempt came to.
type verdict struct {
	cause    string        // why spans were dropped; "": none were
	rejected int64         // with DropPartial, how many the collector claims
	retry    bool          // whether it may go better later
	after    time.Duration // how long the collector wants to be left alone
	err      error         // for the log
}

// deliver posts b until it is settled or retryFor has passed.
func (e *exporter) deliver(ctx context.Context, b batch) verdict {
	if e.gzip && b.encoding == "" && !e.grpc { // which compresses by itself
		b.body, b.encoding = compress(b.body), "gzip"
	}
	until := time.Now().Add(e.retryFor)
	for backoff := firstBackoff; ; backoff = min(2*backoff, maxBackoff) {
		v := e.attempt(ctx, b)
		e.report(ctx, v)
		if !v.retry {
			return v
		}
		// Half of the pause is random, so that a fleet does not come back in step.
		pause := max(min(v.after, maxRetryAfter), backoff/2+rand.N(backoff/2))
		if !sleep(ctx, pause) {
			return verdict{cause: DropShutdown}
		}
		if !time.Now().Before(until) {
			return v
		}
		e.mu.Lock()
		e.retries++
		e.mu.Unlock()
	}
}

// attempt makes one attempt.
func (e *exporter) attempt(ctx context.Context, b batch) verdict {
	switch {
	case !e.grpc:
		return e.post(ctx, b)
	case e.conn == nil:
		return verdict{cause: DropUnreachable, err: fmt.Errorf("endpoint %s: want grpc://host:port", e.url)}
	default:
		return e.call(ctx, b)
	}
}

// post makes one attempt over HTTP.
func (e *exporter) post(ctx context.Context, b batch) verdict {
	attempt, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(attempt, http.MethodPost, e.url, nil)
	if err != nil {
		return verdict{cause: DropRefused, err: err}
	}
	req.ContentLength, req.GetBody = int64(len(b.body)), b.reader
	req.Body, _ = b.reader() // it does not fail
	for key, value := range e.header {
		req.Header.Set(key, value)
	}
	req.Header.Set("Content-Type", b.kind)
	if b.encoding != "" {
		req.Header.Set("Content-Encoding", b.encoding)
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return lost(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if resp.StatusCode/100 == 2 {
		// The request was accepted, even if the rest of the response is not to be had.
		return accepted(resp.Header.Get("Content-Type"), body)
	}
	if err != nil {
		return lost(ctx, err)
	}
	return e.denied(resp, body)
}

// lost judges an attempt without a response.
func lost(ctx context.Context, err error) verdict {
	if ctx.Err() != nil {
		return verdict{cause: DropShutdown, err: err}
	}
	if timeout := net.Error(nil); errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return verdict{cause: DropTimeout, retry: true, err: err}
	}
	return verdict{cause: DropUnreachable, retry: true, err: err}
}

// accepted judges the response to an accepted request, which may yet reject some spans. One
// that cannot be read rejects none.
func accepted(kind string, body []byte) verdict {
	var rejected int64
	var message string
	if strings.HasPrefix(kind, jsonType) {
		var resp coltracepb.ExportTraceServiceResponse
		if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, &resp) == nil {
			rejected, message = resp.GetPartialSuccess().GetRejectedSpans(), resp.GetPartialSuccess().GetErrorMessage()
		}
	} else if n, m, err := decodePartial(body); err == nil {
		rejected, message = n, m
	}
	if rejected <= 0 {
		return verdict{}
	}
	return verdict{cause: DropPartial, rejected: rejected, err: fmt.Errorf("%d spans rejected: %.200q", rejected, message)}
}

// denied judges a response that is not of class 2xx, by the OTLP specification's table of
// what may be retried.
func (e *exporter) denied(resp *http.Response, body []byte) verdict {
	v := verdict{
		cause: DropRefused,
		err:   fmt.Errorf("post %s: status %s: %.200q", e.url, resp.Status, body),
	}
	switch resp.StatusCode {
	case http.StatusRequestEntityTooLarge:
		v.cause = DropTooLarge
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		v.cause, v.retry = DropUnavailable, true
		v.after = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	return v
}

// retryAfter reads a Retry-After field (RFC 9110, section 10.2.3): seconds or a date. It
// returns 0 for what it cannot read.
func retryAfter(field string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(field, 10, 32); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(field); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// report logs when the collector begins to fail and when it is well again, not every attempt.
func (e *exporter) report(ctx context.Context, v verdict) {
	failing := v.cause != ""
	if ctx.Err() != nil || failing == e.failing {
		return
	}
	e.failing = failing
	if failing {
		e.log.Warn("span export fails; answers are not affected", "endpoint", e.url, "cause", v.cause, "err", fmt.Sprintf("%.500s", v.err))
	} else {
		e.log.Info("span export works again", "endpoint", e.url)
	}
}

// addTo adds the exporter's counters to s, all as of one moment.
func (e *exporter) addTo(s *Stats) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Queued, s.Pending, s.Exported, s.Retries = e.queued, e.pending, e.exported, e.retries
	maps.Copy(s.Dropped, e.dropped)
}

// sleep returns true after d, or false as soon as ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func compress(b []byte) []byte {
	var out bytes.Buffer
	w, _ := gzip.NewWriterLevel(&out, gzip.BestSpeed) // fails only on an unknown level
	w.Write(b)                                        // a bytes.Buffer takes everything
	w.Close()
	return out.Bytes()
}
