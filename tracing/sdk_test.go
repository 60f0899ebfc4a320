package tracing

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// A service exports through the SDK to its node, whose memory then has its spans.
func TestSDKToReceiver(t *testing.T) {
	r := New(Options{})
	node := httptest.NewServer(r.Receiver())
	defer node.Close()
	provider, shutdown, err := SDK(t.Context(), "frontend", node.URL, 1, attribute.String(AttrSite, "eu-west"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, parent := provider.Tracer("t").Start(t.Context(), "GET /", trace.WithSpanKind(trace.SpanKindServer))
	_, child := provider.Tracer("t").Start(ctx, "db.get", trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attribute.Int("n", 3)))
	child.SetStatus(codes.Error, "no such key")
	child.AddEvent("retry")
	child.End()
	parent.End()
	if err := shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	spans := r.Memory().Trace(TraceID(parent.SpanContext().TraceID()))
	if len(spans) != 2 {
		t.Fatalf("%d spans, want 2", len(spans))
	}
	got := fmt.Sprint(spans[0].Name, spans[0].Kind, spans[0].Service, spans[0].Resource[AttrSite], spans[1].Name, spans[1].Kind,
		spans[1].ParentID == spans[0].SpanID, spans[1].Attributes, spans[1].Status, spans[1].Events[0].Name)
	want := fmt.Sprint("GET /", KindServer, "frontend", "eu-west", "db.get", KindClient, true, map[string]any{"n": int64(3)}, Status{StatusError, "no such key"}, "retry")
	if got != want {
		t.Errorf("spans %s, want %s", got, want)
	}
}

func TestSDKSampling(t *testing.T) {
	parent := func(flags trace.TraceFlags) context.Context {
		return trace.ContextWithRemoteSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: flags, Remote: true}))
	}
	for _, tc := range []struct {
		name   string
		sample float64
		parent context.Context
		want   bool
	}{
		{"all", 1, context.Background(), true},
		{"none", 0, context.Background(), false},
		{"none, but the parent is", 0, parent(trace.FlagsSampled), true},
		{"all, but the parent is not", 1, parent(0), false},
	} {
		provider, shutdown, err := SDK(t.Context(), "t", "http://127.0.0.1:1", tc.sample)
		if err != nil {
			t.Fatal(err)
		}
		_, span := provider.Tracer("t").Start(tc.parent, "s") // not ended: nothing to export
		if got := span.SpanContext().IsSampled(); got != tc.want {
			t.Errorf("%s: sampled %v, want %v", tc.name, got, tc.want)
		}
		if err := shutdown(t.Context()); err != nil {
			t.Errorf("%s: shutdown: %v", tc.name, err)
		}
	}
}

func TestSDKWithoutEndpoint(t *testing.T) {
	provider, shutdown, err := SDK(t.Context(), "t", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, span := provider.Tracer("t").Start(t.Context(), "s"); span.IsRecording() {
		t.Error("the span is recorded, want none")
	}
	if err := shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSDKInto(t *testing.T) {
	m := NewMemory(10, 1<<20)
	provider, shutdown := SDKInto(m, "gfe", attribute.String(AttrServiceInstance, "gfe-eu-1"))
	_, span := provider.Tracer("t").Start(t.Context(), "GET /")
	span.End()
	spans := m.Trace(TraceID(span.SpanContext().TraceID())) // at once
	if len(spans) != 1 || spans[0].Service != "gfe" || spans[0].Resource[AttrServiceInstance] != "gfe-eu-1" {
		t.Errorf("spans %+v, want one of gfe gfe-eu-1", spans)
	}
	if err := shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// The daemon's cold paths write the same resource as its queries.
func TestProvider(t *testing.T) {
	r := New(Options{Sample: 1, Node: "ns1", Site: "eu-west", Version: "v1", Endpoint: "http://collector", Logger: quiet()})
	provider, shutdown := r.Provider()
	_, span := provider.Tracer("t").Start(t.Context(), "config.apply")
	span.End()
	if err := shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	var q Query
	fillQuery(&q)
	r.take(&q, time.Unix(1, 0))
	traces := r.Memory().Traces(Filter{})
	if len(traces) != 2 {
		t.Fatalf("%d traces, want 2", len(traces))
	}
	query, cold := r.Memory().Trace(traces[0].TraceID), r.Memory().Trace(traces[1].TraceID)
	if got, want := fmt.Sprint(cold[0].Resource), fmt.Sprint(query[0].Resource); got != want || cold[0].Name != "config.apply" {
		t.Errorf("%s with resource %s, want config.apply with %s", cold[0].Name, got, want)
	}
	if s := r.Stats(); s.Queued != 1 || s.Received != 1 {
		t.Errorf("queued %d, received %d, want 1, 1", s.Queued, s.Received)
	}
}

func TestPropagator(t *testing.T) {
	header := http.Header{"Traceparent": {"00-0102030405060708090a0b0c0d0e0f10-0102030405060708-01"}, "Baggage": {"k=v"}}
	ctx := Propagator().Extract(t.Context(), propagation.HeaderCarrier(header))
	if got := trace.SpanContextFromContext(ctx); got.TraceID().String() != "0102030405060708090a0b0c0d0e0f10" || !got.IsSampled() {
		t.Errorf("context %+v, want that of the header", got)
	}
	out := make(http.Header)
	Propagator().Inject(ctx, propagation.HeaderCarrier(out))
	if out.Get("Traceparent") != header["Traceparent"][0] || out.Get("Baggage") != "k=v" {
		t.Errorf("injected %v, want %v", out, header)
	}
}
