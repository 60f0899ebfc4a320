package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/meridian-gslb/meridian/dns"
	"github.com/meridian-gslb/meridian/dns/zone"
	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/tracing"
)

type serveOptions struct {
	pipeline string
	sample   float64
	workers  int
	endpoint string

	sockets, window int // of the client
}

// pipelineNames are the ways that are compared. All but the last end in the same encoder and
// exporter.
//
// "ring" is what the server does: a worker samples ahead, and records what may become spans. The
// others record every query, and sample at the drain.
var pipelineNames = []string{"ring", "ring, all recorded", "per-worker mutex", "shared mutex", "shared channel", "SDK"}

// room is how many records a worker's share of a queue holds, as the ring has it.
const room = 4096

// serve answers DNS until standard input ends; then it says how many spans it made a query, and
// what share of the records, and of the spans, it lost.
func serve(o serveOptions) error {
	data, err := world()
	if err != nil {
		return err
	}
	quiet := slog.New(slog.DiscardHandler)
	to := tracing.Options{Workers: o.workers + 1, Sample: o.sample, Interesting: -1, Endpoint: o.endpoint, Node: "ns1", Site: "eu-west",
		Describe: describe(data.Load().Snapshot), Brief: brief(data.Load().Snapshot), Grace: 200 * time.Millisecond, Logger: quiet}
	var recorder *tracing.Recorder
	var queues []*queue
	var sdk *sdkPipeline
	worker := func(i int) dns.TraceWorker { return recorder.Worker(i) }
	switch o.pipeline {
	case "none":
		worker = nil
	case "ring":
	case "ring, all recorded":
		to.Ledger = tracing.NewLedger(1) // which has no use for them
	case "per-worker mutex":
		for range o.workers + 1 {
			q := newQueue(room)
			queues = append(queues, q)
			to.Sources = append(to.Sources, q)
		}
		worker = func(i int) dns.TraceWorker { return &handle{to: queues[i].put} }
	case "shared mutex":
		q := newQueue(room * (o.workers + 1))
		queues, to.Sources = append(queues, q), append(to.Sources, q)
		worker = func(int) dns.TraceWorker { return &handle{to: q.put} }
	case "shared channel":
		c := &channel{c: make(chan tracing.Query, room*(o.workers+1))}
		to.Sources = append(to.Sources, c)
		queues = append(queues, &c.queue)
		worker = func(int) dns.TraceWorker { return &handle{to: c.put} }
	case "SDK":
		if sdk, err = newSDK(o); err != nil {
			return err
		}
		worker = func(int) dns.TraceWorker { return &handle{to: sdk.put} }
	default:
		return fmt.Errorf("no pipeline %q", o.pipeline)
	}
	recorder = tracing.New(to)
	s := dns.New(dns.Options{Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Workers: o.workers, Data: data, Trace: worker, Logger: quiet})
	if err := s.Listen(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	failed := make(chan error, 2)
	wg.Go(func() {
		if err := s.Run(ctx); !errors.Is(err, context.Canceled) {
			failed <- err
		}
	})
	if worker != nil && sdk == nil {
		wg.Go(func() { recorder.Run(ctx) })
	}
	fmt.Println(s.Addrs()[0])
	io.Copy(io.Discard, os.Stdin)
	cancel()
	wg.Wait()
	st := recorder.Stats()
	queries := float64(max(s.Stats().UDP, 1))
	made, unrecorded, lost := float64(st.Made), float64(st.Dropped[tracing.DropRingFull]), float64(0)
	for cause, n := range st.Dropped {
		if cause != tracing.DropRingFull {
			lost += float64(n)
		}
	}
	for _, q := range queues {
		unrecorded += float64(q.full.Load())
	}
	if sdk != nil {
		made, lost = sdk.end()
	}
	fmt.Println(made/queries, unrecorded/queries, lost/max(made, 1))
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// handle is a worker's end of a queue that takes whole records.
type handle struct {
	record tracing.Query
	to     func(*tracing.Query)
}

func (h *handle) Keep(_, _ []byte) {}

func (h *handle) Begin(bool) *tracing.Query {
	name := h.record.Name // the one field that Begin need not clear, as the ring does not
	h.record = tracing.Query{Name: name}
	return &h.record
}
func (h *handle) Commit() { h.to(&h.record) }

// All, Draw, Changed and Notable want every query recorded exactly.
func (h *handle) All() bool                                      { return true }
func (h *handle) Draw() (drawn bool, rest int)                   { return true, 0 }
func (h *handle) Changed() bool                                  { return false }
func (h *handle) Notable(int32, int32, uint8, uint8, uint8) bool { return true }

// queue is a buffer under a mutex, swapped by the drain.
type queue struct {
	mu          sync.Mutex
	last, spare []tracing.Query
	full        atomic.Uint64
}

func newQueue(size int) *queue {
	return &queue{last: make([]tracing.Query, 0, size), spare: make([]tracing.Query, 0, size)}
}

func (q *queue) put(r *tracing.Query) {
	q.mu.Lock()
	if len(q.last) == cap(q.last) {
		q.mu.Unlock()
		q.full.Add(1)
		return
	}
	q.last = append(q.last, *r)
	q.mu.Unlock()
}

// Drain implements tracing.Source.
func (q *queue) Drain(f func(*tracing.Query)) int {
	q.mu.Lock()
	q.last, q.spare = q.spare[:0], q.last
	q.mu.Unlock()
	for i := range q.spare {
		f(&q.spare[i])
	}
	return len(q.spare)
}

// channel is a Go channel of records.
type channel struct {
	queue
	c chan tracing.Query
}

func (c *channel) put(r *tracing.Query) {
	select {
	case c.c <- *r:
	default:
		c.full.Add(1)
	}
}

// Drain implements tracing.Source.
func (c *channel) Drain(f func(*tracing.Query)) (n int) {
	for {
		select {
		case r := <-c.c:
			f(&r)
			n++
		default:
			return n
		}
	}
}

// sdkPipeline makes one span of the OpenTelemetry SDK a query, with its batch processor and its
// exporter, both as they come.
type sdkPipeline struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	made     atomic.Uint64
	sent     atomic.Uint64
}

func newSDK(o serveOptions) (*sdkPipeline, error) {
	exporter, err := otlptracehttp.New(context.Background(), otlptracehttp.WithEndpointURL(o.endpoint+"/v1/traces"))
	if err != nil {
		return nil, err
	}
	p := new(sdkPipeline)
	p.provider = sdktrace.NewTracerProvider(sdktrace.WithBatcher(&countingExporter{exporter, &p.sent}),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(o.sample))))
	p.tracer = p.provider.Tracer("bench")
	return p, nil
}

type countingExporter struct {
	sdktrace.SpanExporter
	n *atomic.Uint64
}

func (c *countingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := c.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		c.n.Add(uint64(len(spans)))
	}
	return err
}

func (p *sdkPipeline) put(q *tracing.Query) {
	_, span := p.tracer.Start(context.Background(), tracing.SpanQuery, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(time.Unix(0, q.Start)))
	if span.IsRecording() {
		p.made.Add(1)
		client := netip.AddrFrom16(q.Client).Unmap()
		span.SetAttributes(
			attribute.String(tracing.AttrQuestionName, "www.example.com"), attribute.Int(tracing.AttrQuestionType, int(q.Qtype)),
			attribute.String(tracing.AttrTransport, "udp"), attribute.String(tracing.AttrClientAddress, client.String()),
			attribute.String(tracing.AttrClientPrefix, netip.PrefixFrom(client, int(q.Source)).String()), attribute.Bool(tracing.AttrECS, q.HasECS),
			attribute.String(tracing.AttrResolver, netip.AddrFrom16(q.Resolver).Unmap().String()), attribute.String(tracing.AttrResponseCode, "NOERROR"),
			attribute.Int(tracing.AttrAnswerCount, int(q.Answers)), attribute.Int(tracing.AttrScope, int(q.Scope)), attribute.Int(tracing.AttrTTL, int(q.TTL)),
		)
	}
	span.End(trace.WithTimestamp(time.Unix(0, q.Start+int64(q.End))))
}

// end returns how many spans were made, and how many of them did not arrive.
func (p *sdkPipeline) end() (made, lost float64) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	p.provider.Shutdown(ctx)
	made = float64(p.made.Load())
	return made, made - float64(p.sent.Load())
}

// describe says what a record stands for.
func describe(s *gslb.Snapshot) func(*tracing.Query) tracing.Facts {
	return func(q *tracing.Query) tracing.Facts { return dns.Describe(s, q) }
}

// brief is describe for what is nothing out of the ordinary.
func brief(s *gslb.Snapshot) func(*tracing.Query) tracing.Facts {
	d := new(gslb.Decision)
	return func(q *tracing.Query) tracing.Facts { return dns.DescribeBriefly(s, q, d) }
}

// world is eight sites with a pool each, nearest by distance, and clients everywhere.
func world() (*atomic.Pointer[dns.Data], error) {
	var text strings.Builder
	text.WriteString("node: {name: ns1, site: s0, data: unused, dns: [\"127.0.0.1:0\"]}\nsites:\n")
	for i := range 8 {
		fmt.Fprintf(&text, "  s%d: {lat: %d, lon: %d}\n", i, 10*i-35, 40*i-140)
	}
	text.WriteString("pools:\n")
	for i := range 8 {
		fmt.Fprintf(&text, "  p%d: {site: s%d, endpoints: [{address: 192.0.2.%d}]}\n", i, i, i+1)
	}
	text.WriteString("services:\n  www.example.com: {ttl: 30s, pools: {p0: {}, p1: {}, p2: {}, p3: {}, p4: {}, p5: {}, p6: {}, p7: {}}, policy: [health, nearest]}\n")
	text.WriteString("zones:\n  - name: example.com\n    records: |\n      @ 60 IN SOA ns hostmaster 1 60 60 60 60\n      @ 60 IN NS ns\n      ns 60 IN A 192.0.2.53\n")
	f, err := config.Parse("bench.yaml", []byte(text.String()))
	if err != nil {
		return nil, err
	}
	var overrides []geo.Override
	for i := range 256 {
		site := fmt.Sprintf("s%d", i%8)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(i)}), 8)
		overrides = append(overrides, geo.Override{Prefix: p, Place: geo.Place{Lat: f.Sites[site].Lat, Lon: f.Sites[site].Lon, Located: true}})
	}
	m, err := geo.Open(geo.Config{Overrides: overrides})
	if err != nil {
		return nil, err
	}
	s, err := gslb.Build(nil, gslb.Inputs{Revision: 1, Objects: &f.Objects, Geo: m, Now: time.Now()})
	if err != nil {
		return nil, err
	}
	z, _, err := zone.Parse(strings.NewReader(f.Zones["example.com"].Records), "bench", "example.com")
	if err != nil {
		return nil, err
	}
	set, err := zone.NewSet([]*zone.Zone{z}, map[string]int32{"www.example.com": 0})
	if err != nil {
		return nil, err
	}
	data := new(atomic.Pointer[dns.Data])
	data.Store(&dns.Data{Snapshot: s, Zones: set})
	return data, nil
}
