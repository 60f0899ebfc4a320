package node

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/health"
	"github.com/meridian-gslb/meridian/tracing"
)

// following is what ties queries to the traces that they belong to, and requests to the answers
// that they came of, as the configuration wants it.
type following struct {
	parents *tracing.Parents
	answers *tracing.AnswerIDs // nil: no answer has an id
	linker  *tracing.Linker    // nil likewise
	ledger  *tracing.Ledger    // nil: IPv4 is not guessed at
}

func newFollowing(c config.Tracing) (following, error) {
	allow := c.Allow
	if allow == nil {
		allow = tracing.Loopback
	}
	f := following{parents: tracing.NewParents(allow)}
	if len(c.AnswerIDs.Keys) == 0 {
		return f, nil
	}
	var err error
	if f.answers, err = tracing.NewAnswerIDs(c.AnswerIDs.EffectiveEpoch(), c.AnswerIDs.Octets()...); err != nil {
		return f, err
	}
	if c.AnswerIDs.Ledger > 0 {
		f.ledger = tracing.NewLedger(c.AnswerIDs.Ledger)
	}
	f.linker = tracing.NewLinker(f.answers, f.ledger)
	return f, nil
}

// coldPaths are the spans of the node's own work, beside those of queries: what it read,
// built and was told. It begins with Run, and until then there are none.
type coldPaths struct {
	tracer  trace.Tracer // set before what uses it runs
	results sync.Map     // probed → health.Class, of the last attempt
}

func (c *coldPaths) init() { c.tracer = noop.NewTracerProvider().Tracer("") }

const coldScope = "github.com/meridian-gslb/meridian/cmd/gslbd/node"

// flushTime bounds how long the last of these spans may take to reach the recorder.
const flushTime = time.Second

// begin lets spans be recorded until the function that it returns is called.
func (c *coldPaths) begin(r *tracing.Recorder) (end func()) {
	provider, shutdown := r.Provider()
	c.tracer = provider.Tracer(coldScope)
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), flushTime)
		defer cancel()
		_ = shutdown(ctx) // what is lost then is counted by the exporter
	}
}

// work starts a span; the function that it returns ends it, with what went wrong.
func (c *coldPaths) work(name string, attrs ...attribute.KeyValue) (trace.Span, func(error)) {
	_, span := c.tracer.Start(context.Background(), name, trace.WithAttributes(attrs...))
	return span, func(err error) { endSpan(span, err) }
}

// did records work that is done.
func (c *coldPaths) did(name string, start time.Time, attrs ...attribute.KeyValue) {
	_, span := c.tracer.Start(context.Background(), name, trace.WithTimestamp(start), trace.WithAttributes(attrs...))
	span.End()
}

// probed is what an attempt is about: an endpoint may be tested in several ways.
type probed struct {
	endpoint gslb.EndpointID
	at       netip.AddrPort
}

// probed records an attempt of a probe that came to something else than the one before: what
// goes on as it was would drown everything.
func (c *coldPaths) probed(t health.Target, start time.Time, r health.Result) {
	last, known := c.results.Swap(probed{t.ID, t.Addr}, r.Class)
	if known && last == r.Class {
		return
	}
	_, span := c.tracer.Start(context.Background(), "health.probe", trace.WithTimestamp(start), trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String(tracing.AttrPool, t.ID.Pool), attribute.String("server.address", t.Addr.Addr().String()),
			attribute.Int("server.port", int(t.Addr.Port())), attribute.String(tracing.AttrProbeResult, r.Class.String())))
	if r.Class != health.OK {
		span.SetStatus(codes.Error, r.Detail)
	}
	span.End()
}

func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// requests returns h with a span around each request that changes something. Load reports
// and spans come all the time, and have none.
func (c *coldPaths) requests(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		change := strings.HasPrefix(r.URL.Path, "/api/v1/") && r.URL.Path != "/api/v1/load" &&
			r.Method != http.MethodGet && r.Method != http.MethodHead
		if !change {
			h.ServeHTTP(w, r)
			return
		}
		ctx, span := c.tracer.Start(r.Context(), "admin "+r.Method, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
			attribute.String("http.request.method", r.Method), attribute.String("url.path", r.URL.Path)))
		sw := &statusOf{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			span.SetAttributes(attribute.Int("http.response.status_code", sw.status))
			if sw.status >= http.StatusInternalServerError {
				span.SetStatus(codes.Error, http.StatusText(sw.status))
			}
			span.End()
		}()
		h.ServeHTTP(sw, r.WithContext(ctx))
	})
}

// statusOf remembers the status of a response.
type statusOf struct {
	http.ResponseWriter
	status int
}

func (s *statusOf) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach what s does not have itself.
func (s *statusOf) Unwrap() http.ResponseWriter { return s.ResponseWriter }
