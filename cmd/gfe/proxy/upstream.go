package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/meridian-gslb/meridian/cmd/gfe/serve"
	"github.com/meridian-gslb/meridian/tracing"
)

// UpstreamConfig describes the way from a pool to the next one. Zero durations mean their
// defaults.
type UpstreamConfig struct {
	Pool   string // whose assignments are followed
	Source Source

	Connect time.Duration // to an endpoint, TLS not included; default 2 s
	Header  time.Duration // from the request's end to the header of the answer; default 15 s
	Eject   time.Duration // for which an endpoint that refused a connection is avoided; default 5 s
	H2C     bool          // speak HTTP/2 with prior knowledge to endpoints, rather than HTTP/1.1

	Tracer trace.TracerProvider // default none
	Log    *slog.Logger         // default slog.Default()
}

// The defaults of UpstreamConfig.
const (
	defaultConnect = 2 * time.Second
	defaultHeader  = 15 * time.Second
	defaultEject   = 5 * time.Second
)

// How long Run waits before it follows a broken source again: doubling, with jitter.
const (
	minBackoff = 200 * time.Millisecond
	maxBackoff = 10 * time.Second
)

// measureEvery is how often rates are measured.
const measureEvery = 2 * time.Second

// Upstream is the way from a pool to the next one: an http.RoundTripper that chooses an
// endpoint by the assignment of its pool. The host of a request's URL is not looked at.
// It is safe for concurrent use.
type Upstream struct {
	// Set at construction.
	c         UpstreamConfig
	tracer    trace.Tracer
	transport *http.Transport

	table  atomic.Pointer[table]
	source atomic.Pointer[sourceState]

	mu    sync.Mutex
	peers map[peerID]*peer // guarded by mu; those assigned, and those with requests in progress
	pools map[string]*pool // guarded by mu; never shrinks: its names are those of the configuration

	oob outOfBand // of the goroutine of Run alone
}

// table is what requests are sent by: immutable but for the counters of its peers.
type table struct {
	Assignment
	slots []slot
}

// pool is the load of one upstream pool, with the peers that it has no more.
type pool struct {
	name, site string
	counts
	rate rate
	said said
}

// sourceState says how the source is: err is nil while it is followed and has spoken.
type sourceState struct{ err error }

// errNoAssignment is how a source is that has not spoken yet.
var errNoAssignment = errors.New("no assignment yet")

// NewUpstream checks c and returns an upstream that knows no endpoint until Run does.
func NewUpstream(c UpstreamConfig) (*Upstream, error) {
	if c.Pool == "" {
		return nil, errors.New("upstream: no pool to follow")
	}
	if c.Source == nil {
		return nil, fmt.Errorf("upstream of pool %s: no source of assignments", c.Pool)
	}
	c.Connect = cmp.Or(c.Connect, defaultConnect)
	c.Header = cmp.Or(c.Header, defaultHeader)
	c.Eject = cmp.Or(c.Eject, defaultEject)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	u := &Upstream{c: c, tracer: serve.Tracer(c.Tracer), peers: map[peerID]*peer{}, pools: map[string]*pool{}}
	u.table.Store(&table{})
	u.source.Store(&sourceState{errNoAssignment})
	protocols := new(http.Protocols)
	if c.H2C {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP1(true)
	}
	u.transport = &http.Transport{
		DialContext:           (&net.Dialer{Timeout: c.Connect, KeepAlive: 30 * time.Second}).DialContext,
		ResponseHeaderTimeout: c.Header,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       90 * time.Second,
		DisableCompression:    true, // a proxy passes on what it is given
		Protocols:             protocols,
	}
	return u, nil
}

// Run follows the assignments until ctx ends. While the source is broken the last assignment
// stays.
func (u *Upstream) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer u.transport.CloseIdleConnections()
	defer wg.Wait()
	wg.Go(func() { u.measure(ctx) })
	defer u.oob.follow(u, OutOfBand{}, nil)

	backoff := minBackoff
	for {
		err := u.c.Source.Follow(ctx, u.c.Pool, u.follow(&backoff))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			err = errors.New("the source ended")
		}
		if u.source.Swap(&sourceState{err}).err == nil {
			u.c.Log.Warn("assignments stopped; the last one stays", "pool", u.c.Pool, "revision", u.table.Load().Revision, "err", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(backoff/2 + rand.N(backoff)):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// follow returns what takes the assignments of one stream. Within a stream the revision only
// grows; a new stream may start lower, since it may come from another node or from one that
// lost its state.
func (u *Upstream) follow(backoff *time.Duration) func(Assignment) {
	var heard bool
	var revision uint64
	return func(a Assignment) {
		*backoff = minBackoff
		if heard && a.Revision < revision {
			u.c.Log.Warn("assignment refused: older than the one before", "pool", u.c.Pool, "revision", a.Revision, "before", revision)
			return
		}
		heard, revision = true, a.Revision
		u.assign(a)
		if u.source.Swap(&sourceState{}).err != nil {
			u.c.Log.Info("assignments follow", "pool", u.c.Pool, "revision", a.Revision)
		}
	}
}

// assign puts a in place of the assignment before. Only the goroutine of Run calls it.
func (u *Upstream) assign(a Assignment) {
	named := map[*peer]bool{}
	defer func() { u.oob.follow(u, a.OutOfBand, named) }()
	u.mu.Lock()
	defer u.mu.Unlock()
	t := &table{Assignment: a}
	t.slots = slots(a, func(name, site string, addr netip.AddrPort) *peer {
		id := peerID{name, addr}
		p := u.peers[id]
		if p == nil || p.pool.site != site {
			p = &peer{pool: u.poolLocked(name, site), addr: addr}
			u.peers[id] = p
		}
		named[p] = true
		return p
	})
	maps.DeleteFunc(u.peers, func(_ peerID, p *peer) bool { return !named[p] && p.inProgress() == 0 })
	u.table.Store(t)
}

// poolLocked returns the load of a pool. One that moved to another site starts again, since
// its load is that of another locality.
func (u *Upstream) poolLocked(name, site string) *pool {
	p := u.pools[name]
	if p == nil || p.site != site {
		p = &pool{name: name, site: site}
		u.pools[name] = p
	}
	return p
}

// measure keeps the rates until ctx ends.
func (u *Upstream) measure(ctx context.Context) {
	tick := time.NewTicker(measureEvery)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			u.mu.Lock()
			for _, p := range u.peers {
				p.rate.measure(p.issued.Load(), now.Sub(last))
			}
			for _, p := range u.pools {
				p.rate.measure(p.issued.Load(), now.Sub(last))
			}
			u.mu.Unlock()
			last = now
		}
	}
}

// Assignment returns the assignment in use.
func (u *Upstream) Assignment() Assignment { return u.table.Load().Assignment }

// Ready returns nil when u knows an endpoint, or when its source is followed and says that
// there is none; else why not.
func (u *Upstream) Ready() error {
	if len(u.table.Load().slots) > 0 {
		return nil
	}
	return u.sourceError()
}

// sourceError is a fault of the source, which names where it is.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// sourceError returns why the source is not followed; nil when it is.
func (u *Upstream) sourceError() error {
	switch err := u.source.Load().err; err {
	case nil, errNoAssignment:
		return err
	default:
		return &sourceError{err}
	}
}

// Reason is why a request got no answer from an upstream.
type Reason uint8

// The reasons.
const (
	NoUpstream Reason = iota // there is no endpoint to ask
	Refused                  // no connection to any endpoint that was tried: nothing was sent
	Broken                   // the connection broke before the answer
	TimedOut                 // connecting or answering took too long
)

// Error is a request that no upstream answered.
type Error struct {
	Reason Reason
	Pool   string         // the upstream's; with NoUpstream the pool that has none
	Addr   netip.AddrPort // the endpoint asked last; zero with NoUpstream
	Err    error
}

// Error names the endpoint; Public does not.
func (e *Error) Error() string {
	if e.Reason == NoUpstream {
		return fmt.Sprintf("no upstream for pool %s: %v", e.Pool, e.Err)
	}
	return fmt.Sprintf("upstream %s of pool %s: %v", e.Addr, e.Pool, e.Err)
}

// Public says what happened in words for users, without addresses.
func (e *Error) Public() string {
	switch e.Reason {
	case NoUpstream:
		return fmt.Sprintf("no upstream for pool %s: %s", e.Pool, publicCause(e.Err))
	case TimedOut:
		return fmt.Sprintf("upstream pool %s timed out", e.Pool)
	}
	why := "the connection broke before an answer came"
	switch {
	case errors.Is(e.Err, syscall.ECONNREFUSED):
		why = "connection refused"
	case errors.Is(e.Err, syscall.EHOSTUNREACH), errors.Is(e.Err, syscall.ENETUNREACH):
		why = "unreachable"
	case errors.Is(e.Err, syscall.ECONNRESET):
		why = "connection reset"
	}
	return fmt.Sprintf("upstream pool %s failed: %s", e.Pool, why)
}

// publicCause is err in words for users: those of a source may name inside addresses.
func publicCause(err error) string {
	if _, ok := errors.AsType[*sourceError](err); ok {
		return "nobody says now where requests go"
	}
	return err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Status is the status that a proxy answers with (RFC 9110, section 15.6).
func (e *Error) Status() int {
	switch e.Reason {
	case NoUpstream:
		return http.StatusServiceUnavailable
	case TimedOut:
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// attempts is how many endpoints a request may try: one more only, and only when the first
// took no connection, so that nothing is ever sent twice.
const attempts = 2

// RoundTrip sends req to an endpoint of the best pool and returns its answer. An endpoint
// that takes no connection is avoided for a while and another one is tried, once. Errors
// are an *Error, or the context's when the caller gave up. The span of ctx is told where
// the request went.
func (u *Upstream) RoundTrip(req *http.Request) (*http.Response, error) {
	t := u.table.Load()
	body := holdBody(req)
	defer body.release()
	parent := trace.SpanFromContext(req.Context())
	parent.SetAttributes(attribute.Int64(tracing.AttrRevision, int64(t.Revision)))

	var last *peer
	var failure *Error
	for n := range attempts {
		p := choose(t.slots, last, time.Now(), rand.Float64)
		if p == nil {
			break // failure says why, unless this was the first
		}
		last = p
		parent.SetAttributes(attribute.String(tracing.AttrUpstreamPool, p.pool.name), attribute.String(tracing.AttrUpstreamSite, p.pool.site))
		res, connected, err := u.send(req, body, p, n)
		if err == nil {
			return res, nil
		}
		if ctx := req.Context(); ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, ctx.Err() // the caller went away: nobody's failure
		}
		failure = failureOf(p, connected, err)
		if connected || req.Context().Err() != nil {
			break
		}
		p.ejected.Store(time.Now().Add(u.c.Eject).UnixNano())
		u.c.Log.Warn("upstream ejected", "pool", p.pool.name, "endpoint", p.addr, "for", u.c.Eject, "err", err)
		if body.touched() {
			break
		}
	}
	if failure == nil {
		failure = &Error{Reason: NoUpstream, Pool: u.c.Pool, Err: u.whyNone()}
	}
	return nil, failure
}

// whyNone says why there is nothing to choose from.
func (u *Upstream) whyNone() error {
	if err := u.sourceError(); err != nil {
		return err
	}
	t := u.table.Load()
	if len(t.Hops) == 0 {
		return fmt.Errorf("the plan at revision %d gives it none", t.Revision)
	}
	return fmt.Errorf("every endpoint has weight 0 at revision %d", t.Revision)
}

func failureOf(p *peer, connected bool, err error) *Error {
	e := &Error{Reason: Broken, Pool: p.pool.name, Addr: p.addr, Err: err}
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, os.ErrDeadlineExceeded):
		e.Reason = TimedOut
	case !connected:
		e.Reason = Refused
	}
	return e
}

// send makes one attempt at p, as a client span. It says whether there was a connection.
func (u *Upstream) send(req *http.Request, body *heldBody, p *peer, resend int) (res *http.Response, connected bool, err error) {
	ctx, span := u.tracer.Start(req.Context(), req.Method, trace.WithSpanKind(trace.SpanKindClient))
	if span.IsRecording() {
		span.SetAttributes(
			semconv.HTTPRequestMethodKey.String(req.Method),
			semconv.ServerAddress(p.addr.Addr().String()),
			semconv.ServerPort(int(p.addr.Port())),
			semconv.URLFull("http://"+p.addr.String()+req.URL.EscapedPath()), // no query: it may hold what no trace should
			attribute.String(tracing.AttrUpstreamPool, p.pool.name),
		)
		if resend > 0 {
			span.SetAttributes(semconv.HTTPRequestResendCount(resend))
		}
	}
	var got atomic.Bool
	out := req.Clone(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { got.Store(true) },
	}))
	out.URL.Scheme, out.URL.Host = "http", p.addr.String()
	out.Body = body.attempt()
	serve.Inject(ctx, out.Header)

	p.issued.Add(1)
	p.pool.issued.Add(1)
	finish := func(ok bool) {
		ok = ok || errors.Is(ctx.Err(), context.Canceled) // the caller went away: nobody's failure
		p.done(ok)
		p.pool.done(ok)
		span.End()
	}
	res, err = u.transport.RoundTrip(out)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
		finish(false)
		return nil, got.Load(), err
	}
	span.SetAttributes(semconv.HTTPResponseStatusCode(res.StatusCode))
	ok := res.StatusCode < 500
	if !ok {
		span.SetStatus(codes.Error, http.StatusText(res.StatusCode))
	}
	metrics := u.table.Load().OutOfBand.Metrics // that load reports are to have, whatever way they come
	p.pool.said.take(res.Header, metrics)
	p.pool.said.take(res.Trailer, metrics) // which has but names as yet
	res.Body = watchBody(res.Body, ok, func(ok bool) {
		p.pool.said.take(res.Trailer, metrics)
		finish(ok)
	})
	return res, true, nil
}

// heldBody is the body of a request that may be tried twice: as long as it is held, closing
// an attempt's reader does not close it.
type heldBody struct {
	body io.ReadCloser // nil: none

	mu   sync.Mutex
	held bool // guarded by mu
	shut bool // guarded by mu: an attempt closed it
	read atomic.Bool
}

func holdBody(req *http.Request) *heldBody {
	h := &heldBody{held: true}
	if req.Body != nil && req.Body != http.NoBody {
		h.body = req.Body
	}
	return h
}

// attempt returns the body for one attempt.
func (h *heldBody) attempt() io.ReadCloser {
	if h.body == nil {
		return http.NoBody
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shut = false
	return (*attemptBody)(h)
}

// touched reports whether an attempt has read of the body: there is no second one then.
func (h *heldBody) touched() bool { return h.read.Load() }

// release hands the body to the attempt that was the last: it is closed when that one
// closes it.
func (h *heldBody) release() {
	if h.body == nil {
		return
	}
	h.mu.Lock()
	h.held = false
	shut := h.shut
	h.mu.Unlock()
	if shut {
		h.body.Close()
	}
}

// attemptBody is a heldBody as its attempts see it.
type attemptBody heldBody

func (a *attemptBody) Read(b []byte) (int, error) {
	a.read.Store(true)
	return a.body.Read(b)
}

func (a *attemptBody) Close() error {
	a.mu.Lock()
	a.shut = true
	held := a.held
	a.mu.Unlock()
	if held {
		return nil
	}
	return a.body.Close()
}

// watchBody returns body, telling finish once when it ends: ok with its end, not ok when it
// breaks. Closed early by the caller counts as ok: the endpoint did its part.
func watchBody(body io.ReadCloser, ok bool, finish func(bool)) io.ReadCloser {
	w := &watchedBody{ReadCloser: body, ok: ok, finish: finish}
	if rw, is := body.(io.ReadWriteCloser); is { // an upgraded connection
		return struct {
			*watchedBody
			io.Writer
		}{w, rw}
	}
	return w
}

type watchedBody struct {
	io.ReadCloser
	ok     bool // the status was no error
	once   sync.Once
	finish func(bool)
}

func (w *watchedBody) end(ok bool) { w.once.Do(func() { w.finish(ok) }) }

func (w *watchedBody) Read(b []byte) (int, error) {
	n, err := w.ReadCloser.Read(b)
	if err == io.EOF {
		w.end(w.ok)
	} else if err != nil {
		w.end(false)
	}
	return n, err
}

func (w *watchedBody) Close() error {
	w.end(w.ok)
	return w.ReadCloser.Close()
}

// load returns the load of every pool and peer.
func (u *Upstream) load() (pools []PoolLoad, peers []PeerLoad) {
	now := time.Now().UnixNano()
	u.mu.Lock()
	defer u.mu.Unlock()
	pools, peers = []PoolLoad{}, []PeerLoad{}
	metrics := means(u.peers)
	for _, p := range u.pools {
		pools = append(pools, PoolLoad{Pool: p.name, Site: p.site, Metrics: metrics[p], Figures: figures(&p.counts, &p.rate), said: p.said.all()})
	}
	for _, p := range u.peers {
		peers = append(peers, PeerLoad{Pool: p.pool.name, Site: p.pool.site, Addr: p.addr, Ejected: p.ejected.Load() > now, Figures: figures(&p.counts, &p.rate)})
	}
	slices.SortFunc(pools, func(a, b PoolLoad) int { return cmp.Compare(a.Pool, b.Pool) })
	slices.SortFunc(peers, func(a, b PeerLoad) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), a.Addr.Compare(b.Addr))
	})
	return pools, peers
}
