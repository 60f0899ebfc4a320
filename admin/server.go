// Package admin serves the operator's side of a node over HTTP: the JSON API under
// /api/v1/, metrics, readiness, the OTLP receiver and one status page.
//
// It reads the running node through the functions of Options, and changes it only through
// the store. Package api holds the values that travel and a client.
//
//	GET  /                                one page for people
//	GET  /healthz /readyz /metrics        for machines
//	POST /v1/traces                       OTLP over HTTP
//	GET  /api/v1/status
//	GET  /api/v1/explain?name=&client=&type=&at=&if=
//	POST /api/v1/plan?if=&prune=    objects in YAML: what they would change for decisions that were made
//	GET  /api/v1/objects[/kind[/name]]
//	DELETE /api/v1/objects/{kind}/{name}?dryRun=&force=&author=
//	POST /api/v1/apply?dryRun=&force=&prune=&author=&at=
//	POST /api/v1/store/confirm
//	POST /api/v1/pools/{pool}/drain|undrain|weight
//	GET  /api/v1/health?pool=
//	GET  /api/v1/traces?name=&client=&limit=    /api/v1/traces/{id}
//	GET  /api/v1/top?stream=1&interval=1s       counters; NDJSON with stream
//	GET  /api/v1/assignments/{pool}             NDJSON, where a pool's proxies send requests
//	GET,POST /api/v1/load                       what proxies report
//	GET,POST /api/v1/rtt                        round-trip times of users, as anybody reports them
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/gslb/store"
	"github.com/meridian-gslb/meridian/health"
	"github.com/meridian-gslb/meridian/tracing"
)

// Limits that keep a node answering DNS whatever its admin address meets.
const (
	maxStreams    = 1024             // streams open at once
	maxLoads      = 4096             // proxies whose last load is kept
	loadAge       = time.Minute      // a proxy that has been silent this long is forgotten
	headerTimeout = 5 * time.Second  // to read a request's header
	readTimeout   = 30 * time.Second // to read a request
	writeTimeout  = 30 * time.Second // to write an answer, or one line of a stream
	idleTimeout   = 2 * time.Minute
	drainTimeout  = 5 * time.Second // for requests under way when Run ends
)

// Options are the parts of a node that the API shows and changes. Only Addr and Snapshot are
// required. The functions are called for each request, from many goroutines at once; what
// they return is read and not kept.
type Options struct {
	Addr  string // to listen on, host:port; port 0 lets the system choose
	Node  api.Node
	Token string // bearer token of changes; without one they are taken on loopback only
	Log   *slog.Logger

	Snapshot func() *gslb.Snapshot                     // what answers; nil: nothing yet
	At       func(name string) (*gslb.Snapshot, error) // a past snapshot by revision or ID, nil when it is not kept; nil: none is
	Recent   func() []gslb.Sample                      // decisions that were made, to try changes on; nil: none are kept
	View     func() store.View                         // the objects that it was made of
	Check    func(before, next *config.Objects) error  // what else is wrong with a change than its validation finds; nil: nothing
	Store    store.Store                               // nil: the objects are in a file, and changes are refused
	Health   func() []health.View                      // ordered by pool, then address
	Members  func() []api.Member                       // of the gossip, this node included
	Counters func() api.Counters                       // of the DNS server
	Traces   Traces                                    // nil: no trace is kept
	OTLP     http.Handler                              // POST /v1/traces
	OnLoad   func(api.Load)                            // every valid load report; it must not block
	RTTs     func() api.RTTs                           // what is known of round-trip times; nil: nothing
	OnRTTs   func(pool string, r []api.RTTSample)      // valid reports of them; it must not block
	Ready    func() (ok bool, reason string)           // default: once there is a snapshot
	Degraded func() []string                           // faults that the API cannot see itself: a sentence each
	Wrap     func(http.Handler) http.Handler           // put around every request that was let in: a span, say
	Extra    map[string]http.Handler                   // by pattern of http.ServeMux, such as "/api/v1/demo/"
	Metrics  []prometheus.Collector                    // registered beside our own

	HealthStats func() health.Stats                     // for metrics
	TraceStats  func() tracing.Stats                    // for metrics
	Now         func() time.Time                        // default time.Now
	Listen      func(addr string) (net.Listener, error) // default TCP
}

// Server is the admin server of one node.
type Server struct {
	// Set at construction.
	o       Options
	handler http.Handler
	loads   *loads
	done    chan struct{} // closed when Run ends: streams end with it

	mu       sync.Mutex
	listener net.Listener
	updated  chan struct{} // closed and replaced by Updated

	streams atomic.Int32
}

// New returns a server that listens nowhere yet. It panics where a collector of o.Metrics
// cannot be registered: a bug of the caller.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.View == nil {
		o.View = func() store.View { return store.View{} }
	}
	if o.Ready == nil {
		o.Ready = func() (bool, string) { return o.Snapshot() != nil, "nothing to serve yet" }
	}
	if o.Listen == nil {
		o.Listen = func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }
	}
	s := &Server{
		o:       o,
		loads:   newLoads(maxLoads, loadAge),
		done:    make(chan struct{}),
		updated: make(chan struct{}),
	}
	s.handler = s.routes()
	return s
}

// Handler serves the API without a listener: for tests, and for a node within a node.
func (s *Server) Handler() http.Handler { return s.handler }

// Updated tells the streams that Options.Snapshot has a new snapshot. Without it they notice
// one at the next heartbeat.
func (s *Server) Updated() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.updated)
	s.updated = make(chan struct{})
}

// next returns a channel that is closed at the next call of Updated.
func (s *Server) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.updated
}

// Listen binds the address, so that a busy port is known before anything runs. Run does it
// where the caller did not.
func (s *Server) Listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		return nil
	}
	l, err := s.o.Listen(s.o.Addr)
	if err != nil {
		return fmt.Errorf("admin: listen on %s: %w", s.o.Addr, bindCause(err))
	}
	s.listener = l
	return nil
}

// bindCause drops the layers of err that repeat the address.
func bindCause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return op.Err
	}
	return err
}

// Addr returns the address that is listened on, or nil before Listen.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}

// Run serves until ctx ends, ends streams, waits a few seconds for requests under way and
// returns once the last goroutine that it started has. It runs once.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(); err != nil {
		return err
	}
	var active sync.WaitGroup // requests under way
	h := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			active.Add(1)
			defer active.Done()
			s.handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- h.Serve(s.listener) }()

	select {
	case err := <-failed:
		close(s.done)
		return fmt.Errorf("admin: %w", err)
	case <-ctx.Done():
	}
	close(s.done)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if h.Shutdown(grace) != nil {
		h.Close() // ends the contexts of the requests that are left
	}
	active.Wait()
	<-failed
	return context.Cause(ctx)
}

// routes builds the tree of handlers.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, m methods) { mux.Handle(pattern, m) }

	handle("/{$}", methods{"GET": s.page})
	handle("/healthz", methods{"GET": s.healthz})
	handle("/readyz", methods{"GET": s.readyz})
	handle("/metrics", methods{"GET": s.metrics().ServeHTTP})
	if s.o.OTLP != nil {
		handle("/v1/traces", methods{"POST": s.otlp})
	}

	handle("/api/v1/status", methods{"GET": s.status})
	handle("/api/v1/explain", methods{"GET": s.explain})
	handle("/api/v1/objects", methods{"GET": s.objects})
	handle("/api/v1/objects/{kind}", methods{"GET": s.objectsOfKind})
	handle("/api/v1/objects/{kind}/{name}", methods{"GET": s.object, "DELETE": s.deleteObject})
	handle("/api/v1/plan", methods{"POST": s.plan})
	handle("/api/v1/apply", methods{"POST": s.apply})
	handle("/api/v1/store/confirm", methods{"POST": s.confirm})
	handle("/api/v1/pools/{pool}/drain", methods{"POST": s.drain})
	handle("/api/v1/pools/{pool}/undrain", methods{"POST": s.undrain})
	handle("/api/v1/pools/{pool}/weight", methods{"POST": s.weight})
	handle("/api/v1/health", methods{"GET": s.health})
	handle("/api/v1/traces", methods{"GET": s.traces})
	handle("/api/v1/traces/{id}", methods{"GET": s.trace})
	handle("/api/v1/top", methods{"GET": s.top})
	handle("/api/v1/assignments/{pool}", methods{"GET": s.assignments})
	handle(api.RTTPath, methods{"GET": s.showRTTs, "POST": s.reportRTTs})
	handle("/api/v1/load", methods{"GET": s.showLoads, "POST": s.load})
	for pattern, h := range s.o.Extra {
		mux.Handle(pattern, h)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, fmt.Sprintf("no path %q", r.URL.Path), "the API is under /api/v1/: status, explain, objects, health, top, traces")
	})
	if s.o.Wrap != nil {
		return s.guard(s.o.Wrap(mux))
	}
	return s.guard(mux)
}

// methods serves one path, by method; GET serves HEAD too.
type methods map[string]http.HandlerFunc

// ServeHTTP answers 405 with Allow for a method that is not there (RFC 9110, section 15.5.6).
func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if h, ok := m[method]; ok {
		h(w, r)
		return
	}
	var allow []string
	for _, method := range []string{"GET", "POST", "DELETE"} {
		if _, ok := m[method]; ok {
			allow = append(allow, method)
		}
	}
	w.Header().Set("Allow", strings.Join(allow, ", "))
	fail(w, http.StatusMethodNotAllowed, fmt.Sprintf("method %s is not for %s", r.Method, r.URL.Path), "use "+strings.Join(allow, " or "))
}

// healthz says that the process lives: a reason to restart it when it does not.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}

// readyz says whether the node answers for its services: a reason to send it queries.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if ok, reason := s.o.Ready(); !ok {
		fail(w, http.StatusServiceUnavailable, "not ready: "+reason, "")
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ready")
}
