package tracing

import (
	"context"
	"runtime"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
)

// cpu is the processor time of this process, all of its goroutines included.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure runs f b.N times and reports the processor time of each, with whatever f left to
// other goroutines.
func measure(b *testing.B, f func(), finish func()) {
	b.ReportAllocs()
	runtime.GC()
	before := cpu()
	for b.Loop() {
		f()
	}
	finish()
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
}

// BenchmarkRecord is the cost of tracing a query: the worker's, and with the drain's and the
// garbage collector's in cpu-ns/op. Best case: not sampled. Worst case: all sampled, encoded
// and remembered.
func BenchmarkRecord(b *testing.B) {
	for _, tc := range []struct {
		name    string
		options Options
	}{
		{"ring,sample=0", Options{Interesting: -1}},
		{"ring,sample=0.01", Options{Interesting: -1, Sample: 0.01}},
		{"ring,sample=1,memory=off", Options{Interesting: -1, Sample: 1, Memory: -1}},
		{"ring,sample=1", Options{Interesting: -1, Sample: 1}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			r := New(tc.options)
			w := r.Worker(0)
			now := time.Now()
			n := 0
			// The drain runs in the worker's place every 1024 records, so that none is lost and
			// its cost shows.
			measure(b, func() {
				fillQuery(begin(w))
				w.Commit()
				if n++; n%1024 == 0 {
					r.drain(now)
				}
			}, func() { r.drain(now) })
			if s := r.Stats(); s.Dropped[DropRingFull] != 0 || s.Drained != s.Recorded {
				b.Errorf("%+v: want every record drained", s)
			}
		})
	}
}

// BenchmarkSDK is the same with the OpenTelemetry SDK: one span of the attributes of a query,
// its batch processor and the encoding to OTLP, which is then thrown away.
func BenchmarkSDK(b *testing.B) {
	discard := otlptrace.NewUnstarted(uploader(func([]byte, int) error { return nil }))
	for _, tc := range []struct {
		name    string
		sampler sdktrace.Sampler
	}{
		{"sample=0", sdktrace.NeverSample()},
		{"sample=0.01", sdktrace.TraceIDRatioBased(0.01)},
		{"sample=1", sdktrace.AlwaysSample()},
	} {
		b.Run(tc.name, func(b *testing.B) {
			p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(discard, sdktrace.WithBlocking()), sdktrace.WithSampler(tc.sampler))
			tracer, ctx := p.Tracer("bench"), context.Background()
			measure(b, func() {
				_, span := tracer.Start(ctx, SpanQuery, trace.WithSpanKind(trace.SpanKindServer))
				if span.IsRecording() {
					span.SetAttributes(
						attribute.String(AttrQuestionName, "www.example.com"), attribute.String(AttrQuestionType, "A"),
						attribute.String(AttrTransport, "udp"), attribute.String(AttrNetworkType, "ipv4"),
						attribute.String(AttrClientAddress, "198.51.100.0"), attribute.String(AttrClientPrefix, "198.51.100.0/24"),
						attribute.Bool(AttrECS, true), attribute.String(AttrResolver, "192.0.2.53"),
						attribute.String(AttrResponseCode, "NOERROR"), attribute.Int(AttrAnswerCount, 2),
						attribute.Int(AttrScope, 20), attribute.Int(AttrTTL, 30), attribute.String(AttrSampledBy, SampledRatio),
					)
				}
				span.End()
			}, func() { p.Shutdown(ctx) })
		})
	}
}

// BenchmarkEncode is one query to its three spans as OTLP bytes, beside the generated code
// given the same spans ready made.
func BenchmarkEncode(b *testing.B) {
	var q Query
	fillQuery(&q)
	facts := describeAll(&q)
	m := newSpanMaker("ns1", func(*Query) Facts { return facts })
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		buf := make([]byte, 0, 4096)
		for b.Loop() {
			m.appendQuery(buf, &q, TraceID{1}, SpanID{7}, SampledRatio, &facts)
		}
	})
	b.Run("generated", func(b *testing.B) {
		b.ReportAllocs()
		bytes, _ := m.appendQuery(nil, &q, TraceID{1}, SpanID{7}, SampledRatio, &facts)
		spans := &tracepb.ScopeSpans{}
		if err := proto.Unmarshal(bytes, spans); err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 0, 4096)
		for b.Loop() {
			proto.MarshalOptions{}.MarshalAppend(buf, spans)
		}
	})
}

// BenchmarkMemoryTraces is a listing of a full memory, while which the drain does not wait.
func BenchmarkMemoryTraces(b *testing.B) {
	r := New(Options{Sample: 1, Describe: describeAll})
	var q Query
	fillQuery(&q)
	for range 1024 {
		r.take(&q, time.Now())
	}
	for b.Loop() {
		if got := len(r.memory.Traces(Filter{Limit: 50})); got != 50 {
			b.Fatalf("%d traces, want 50", got)
		}
	}
}
