package tracing

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// The OpenTelemetry SDK serves the paths where 5 µs a span do not matter: HTTP services,
// configuration, probes, pushes. Nothing here touches the SDK's global state.

// Propagator carries the trace context between processes: W3C traceparent, tracestate and
// baggage.
func Propagator() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}

// sdkLinger is how long a span of the SDK waits for others: people wait for it.
const sdkLinger = time.Second

// SDK returns a provider whose spans are batched and sent to the OTLP/HTTP collector at the
// base URL endpoint (/v1/traces is appended), for instance a node's Receiver. It samples the
// share sample, 0..1, of the traces that begin here, and those that were sampled before. With
// an empty endpoint it records nothing. shutdown sends what is left and ends the provider's
// goroutines.
func SDK(ctx context.Context, service, endpoint string, sample float64, attrs ...attribute.KeyValue) (provider trace.TracerProvider, shutdown func(context.Context) error, err error) {
	if endpoint == "" {
		return noop.NewTracerProvider(), func(context.Context) error { return nil }, nil
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(strings.TrimSuffix(endpoint, "/")+"/v1/traces"))
	if err != nil {
		return nil, nil, fmt.Errorf("spans of %s to %s: %w", service, endpoint, err)
	}
	p := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter, sdktrace.WithBatchTimeout(sdkLinger)),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(sample))),
		sdktrace.WithResource(newResource(service, attrs)),
	)
	return p, p.Shutdown, nil
}

// SDKInto is SDK without a network: every span is sampled, and in m as soon as it has ended.
func SDKInto(m *Memory, service string, attrs ...attribute.KeyValue) (provider trace.TracerProvider, shutdown func(context.Context) error) {
	p := sdktrace.NewTracerProvider(
		sdktrace.WithSyncer(otlptrace.NewUnstarted(uploader(func(message []byte, _ int) error { return m.addRequest(message) }))),
		sdktrace.WithResource(newResource(service, attrs)),
	)
	return p, p.Shutdown
}

// Provider returns a provider for the daemon's own cold paths. Its spans, of which all are
// sampled, have the resource of the queries' spans, and go into the memory and to the
// collector like them. shutdown sends what is left: call it before the context of Run ends.
func (r *Recorder) Provider() (provider trace.TracerProvider, shutdown func(context.Context) error) {
	upload := func(message []byte, spans int) error {
		r.accept(message, batch{body: message, spans: spans, kind: protobufType})
		return nil
	}
	var attrs []attribute.KeyValue
	for key, value := range r.options.resource() {
		attrs = append(attrs, attribute.String(key, value.(string)))
	}
	p := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(otlptrace.NewUnstarted(uploader(upload)), sdktrace.WithBatchTimeout(sdkLinger)),
		sdktrace.WithResource(newResource(serviceName, attrs)),
	)
	return p, p.Shutdown
}

// newResource is the resource of service with attrs; it does not ask the environment.
func newResource(service string, attrs []attribute.KeyValue) *resource.Resource {
	return resource.NewWithAttributes(SchemaURL, append(slices.Clip(attrs), attribute.String(AttrServiceName, service))...)
}

// uploader is an otlptrace.Client that hands over each export as an encoded
// ExportTraceServiceRequest and its number of spans.
type uploader func(message []byte, spans int) error

func (uploader) Start(context.Context) error { return nil }
func (uploader) Stop(context.Context) error  { return nil }

func (u uploader) UploadTraces(_ context.Context, rs []*tracepb.ResourceSpans) error {
	message, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: rs})
	if err != nil {
		return fmt.Errorf("encode spans: %w", err)
	}
	n := 0
	for _, r := range rs {
		for _, s := range r.ScopeSpans {
			n += len(s.Spans)
		}
	}
	return u(message, n)
}
