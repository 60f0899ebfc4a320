package serve

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// scope names these spans' instrumentation.
const scope = "github.com/meridian-gslb/meridian/cmd/gfe"

// Health is the path of every service's health check. It is not traced: probes would drown
// the requests.
const Health = "/healthz"

var traceContext propagation.TraceContext // W3C Trace Context, level 1

// Tracer returns the tracer of tp for these spans. A nil tp records nothing, and still passes
// a caller's trace context on.
func Tracer(tp trace.TracerProvider) trace.Tracer {
	if tp == nil {
		tp = noop.NewTracerProvider()
	}
	return tp.Tracer(scope)
}

// Inject writes the trace context of ctx into h.
func Inject(ctx context.Context, h http.Header) {
	traceContext.Inject(ctx, propagation.HeaderCarrier(h))
}

// Trace returns h with a server span around each request, child of the caller's W3C trace
// context. The span follows the semantic conventions of HTTP; h adds to it through
// trace.SpanFromContext.
func Trace(tp trace.TracerProvider, h http.Handler) http.Handler {
	tracer := Tracer(tp)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == Health {
			h.ServeHTTP(w, r)
			return
		}
		ctx := traceContext.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := tracer.Start(ctx, r.Method, trace.WithSpanKind(trace.SpanKindServer))
		if !span.IsRecording() {
			h.ServeHTTP(w, r.WithContext(ctx))
			span.End()
			return
		}
		span.SetAttributes(serverAttributes(r)...)
		sw := &statusWriter{ResponseWriter: w}
		r = r.WithContext(ctx)
		defer func() {
			broken := recover() // goes on below: net/http closes the connection
			if sw.status == 0 && broken == nil {
				sw.status = http.StatusOK
			}
			if sw.status != 0 {
				span.SetAttributes(semconv.HTTPResponseStatusCode(sw.status))
			}
			switch {
			case broken == http.ErrAbortHandler: // as a proxy does whose client or backend went away
				fail(span, "the response was broken off", "abort")
			case broken != nil:
				fail(span, "the handler panicked", "panic")
			case sw.status >= 500:
				fail(span, http.StatusText(sw.status), strconv.Itoa(sw.status))
			}
			if r.Pattern != "" { // the mux below wrote it into r
				_, route, ok := strings.Cut(r.Pattern, " ")
				if !ok {
					route = r.Pattern
				}
				route = strings.TrimSuffix(route, "{$}") // the end of a path, in the words of the mux alone
				span.SetName(r.Method + " " + route)
				span.SetAttributes(semconv.HTTPRoute(route))
			}
			span.End()
			if broken != nil {
				panic(broken)
			}
		}()
		h.ServeHTTP(sw, r)
	})
}

// fail gives span the status of an error, and its error.type.
func fail(span trace.Span, description, errorType string) {
	span.SetStatus(codes.Error, description)
	span.SetAttributes(semconv.ErrorTypeKey.String(errorType))
}

// serverAttributes describes a request as its server sees it. The query string stays out:
// it may hold what no trace should.
func serverAttributes(r *http.Request) []attribute.KeyValue {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	host, port := r.Host, ""
	if h, p, err := net.SplitHostPort(r.Host); err == nil {
		host, port = h, p
	}
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	a := []attribute.KeyValue{
		semconv.HTTPRequestMethodKey.String(r.Method),
		semconv.URLScheme(scheme),
		semconv.URLPath(r.URL.Path),
		semconv.ServerAddress(host),
		semconv.ClientAddress(client),
		semconv.NetworkProtocolVersion(strings.TrimPrefix(strings.TrimSuffix(r.Proto, ".0"), "HTTP/")),
	}
	if n, err := strconv.Atoi(port); err == nil {
		a = append(a, semconv.ServerPort(n))
	}
	if ua := r.UserAgent(); ua != "" {
		a = append(a, semconv.UserAgentOriginal(ua))
	}
	return a
}

// statusWriter remembers the status that was sent.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) { // not 100 Continue, 103 Early Hints
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach what w does not have itself.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
