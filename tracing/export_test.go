package tracing

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// roundTrip is a collector without a network.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// answer is a collector that always says the same.
func answer(status int, header map[string]string, body string) roundTrip {
	return func(req *http.Request) (*http.Response, error) {
		io.Copy(io.Discard, req.Body)
		h := make(http.Header)
		for k, v := range header {
			h.Set(k, v)
		}
		return &http.Response{StatusCode: status, Status: http.StatusText(status), Header: h, Body: io.NopCloser(strings.NewReader(body))}, nil
	}
}

// hang is a collector that never answers.
func hang(req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	return nil, req.Context().Err()
}

func rejecting(n int64) string {
	b, _ := proto.Marshal(&coltracepb.ExportTraceServiceResponse{
		PartialSuccess: &coltracepb.ExportTracePartialSuccess{RejectedSpans: n, ErrorMessage: "no"}})
	return string(b)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// Collectors of every kind of ill will: the worker is never kept waiting, the drain goes on,
// and every record and span is accounted for.
func TestCollectors(t *testing.T) {
	pb := map[string]string{"Content-Type": protobufType}
	for _, tc := range []struct {
		name      string
		collector roundTrip
		exported  bool   // everything that was not dropped
		cause     string // of a drop that there must be; "": there must be none
		retries   bool
	}{
		{"good", answer(200, pb, ""), true, "", false},
		{"slow", func(req *http.Request) (*http.Response, error) {
			time.Sleep(9 * time.Second)
			return answer(200, pb, "")(req)
		}, true, DropQueueFull, false},
		{"hanging", hang, false, DropTimeout, true},
		{"refusing", func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") }, false, DropUnreachable, true},
		{"bad request", answer(400, nil, "no"), false, DropRefused, false},
		{"redirecting", answer(307, map[string]string{"Location": "http://elsewhere/"}, ""), false, DropRefused, false},
		{"broken", answer(500, nil, ""), false, DropRefused, false},
		{"too large", answer(413, nil, ""), false, DropTooLarge, false},
		{"busy", answer(429, map[string]string{"Retry-After": "7"}, ""), false, DropUnavailable, true},
		{"away for a century", answer(503, map[string]string{"Retry-After": "3155760000"}, ""), false, DropUnavailable, false},
		{"rejecting some", answer(200, pb, rejecting(1)), true, DropPartial, false},
		{"rejecting more than there is", answer(200, pb, rejecting(1<<40)), false, DropPartial, false},
		{"rejecting less than nothing", answer(200, pb, rejecting(-5)), true, "", false},
		{"rejecting in JSON", answer(200, map[string]string{"Content-Type": "application/json; charset=utf-8"}, `{"partialSuccess":{"rejectedSpans":"1"},"x":1}`), true, DropPartial, false},
		{"babbling", answer(200, pb, "\xff\xff\xff"), true, "", false},
		{"talking for ever", answer(200, pb, strings.Repeat("x", 10*maxResponse)), true, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := New(Options{RingSize: 64, Sample: 1, Endpoint: "http://collector:4318/", Queue: 64 << 10, Describe: describeAll, Logger: quiet()})
				r.exporter.client.Transport = tc.collector
				ctx, cancel := context.WithCancel(t.Context())
				ran := make(chan error)
				go func() { ran <- r.Run(ctx) }()

				// A worker's time stands still: should it wait for anything, the clock tells.
				w, start := r.Worker(0), time.Now()
				var recorded, full uint64
				for range 600 {
					before := time.Now()
					for range 4 {
						recorded++
						if q := begin(w); q != nil {
							fillQuery(q)
							w.Commit()
						} else {
							full++
						}
					}
					if waited := time.Since(before); waited != 0 {
						t.Fatalf("the worker waited %v, want 0", waited)
					}
					time.Sleep(100 * time.Millisecond)
					check(t, r.Stats())
				}
				if took := time.Since(start); took != time.Minute {
					t.Errorf("took %v, want 1m", took)
				}
				cancel()
				if err := <-ran; !errors.Is(err, context.Canceled) {
					t.Errorf("Run: %v, want %v", err, context.Canceled)
				}
				s := r.Stats()
				check(t, s)
				if s.Recorded != recorded || s.Dropped[DropRingFull] != full || full != 0 {
					t.Errorf("recorded %d, ring full %d, want %d, %d = 0", s.Recorded, s.Dropped[DropRingFull], recorded, full)
				}
				if s.Drained != recorded || s.Sampled[SampledRatio] != recorded || s.Made != 3*recorded || s.Queued != s.Made || s.Pending != 0 || s.Waiting != 0 {
					t.Errorf("not everything went its way: %+v", s)
				}
				if got := s.Exported > 0; got != tc.exported {
					t.Errorf("exported %d, want some: %v", s.Exported, tc.exported)
				}
				if got := s.Retries > 0; got != tc.retries {
					t.Errorf("retries %d, want some: %v", s.Retries, tc.retries)
				}
				if tc.cause == "" && s.Exported != s.Queued || tc.cause != "" && s.Dropped[tc.cause] == 0 {
					t.Errorf("exported %d of %d, dropped %v, want cause %q", s.Exported, s.Queued, s.Dropped, tc.cause)
				}
			})
		})
	}
}

// check tests what Stats promises.
func check(t *testing.T, s Stats) {
	t.Helper()
	if s.Recorded != s.Drained+s.Waiting+s.Dropped[DropRingFull] {
		t.Errorf("recorded %d, want drained %d + waiting %d + ring full %d", s.Recorded, s.Drained, s.Waiting, s.Dropped[DropRingFull])
	}
	sum := s.Exported + s.Pending
	for cause, n := range s.Dropped {
		if cause != DropRingFull {
			sum += n
		}
	}
	if s.Queued != sum {
		t.Errorf("queued %d, want exported %d + pending %d + dropped %v = %d", s.Queued, s.Exported, s.Pending, s.Dropped, sum)
	}
	if got := slices.Sorted(maps.Keys(s.Dropped)); len(got) != len(dropCauses) {
		t.Errorf("dropped for %q, want all of %q", got, dropCauses)
	}
}

// What a collector asks for is followed, and what was busy comes through later.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var times []time.Duration
		var bodies []string
		start := time.Now()
		replies := []roundTrip{
			answer(429, map[string]string{"Retry-After": "3"}, ""),
			answer(503, map[string]string{"Retry-After": start.Add(8 * time.Second).UTC().Format(http.TimeFormat)}, ""),
			answer(502, nil, ""),
			answer(200, nil, ""),
		}
		e := exporterFor(t, Options{}, func(req *http.Request) (*http.Response, error) {
			times = append(times, time.Since(start).Round(time.Second))
			body, _ := io.ReadAll(req.Body)
			bodies = append(bodies, string(body))
			reply := replies[0]
			replies = replies[1:]
			return reply(req)
		})
		e.put(batch{body: []byte("b"), spans: 5, kind: protobufType})
		time.Sleep(time.Minute)
		synctest.Wait()
		s := e.stats()
		if want := []time.Duration{0, 3 * time.Second, 8 * time.Second}; len(times) != 4 || !slices.Equal(times[:3], want) {
			t.Errorf("attempts at %v, want at %v and one soon after", times, want)
		}
		if !slices.Equal(bodies, []string{"b", "b", "b", "b"}) {
			t.Errorf("bodies %q, want the same four times", bodies)
		}
		if s.Exported != 5 || s.Retries != 3 || s.Pending != 0 {
			t.Errorf("%+v, want 5 exported after 3 retries", s)
		}
	})
}

// exporterFor runs an exporter in the bubble until the test ends.
func exporterFor(t *testing.T, o Options, collector roundTrip) *exporter {
	o.Endpoint, o.Logger = "http://collector:4318", quiet()
	o = o.withDefaults()
	e := newExporter(&o)
	e.client.Transport = collector
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { e.run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	return e
}

func (e *exporter) stats() Stats {
	s := Stats{Dropped: make(map[string]uint64)}
	e.addTo(&s)
	return s
}

// The memory of a batch is used again only when nobody can read it any more: a transport may after it
// has the response, also in several attempts.
func TestMemoryAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open []io.Closer
		var status atomic.Int32
		status.Store(200)
		e := exporterFor(t, Options{}, func(req *http.Request) (*http.Response, error) {
			open = append(open, req.Body)
			return answer(int(status.Load()), nil, "")(req)
		})
		send := func() []byte {
			body := e.memory(100)[:100]
			e.put(batch{body: body, spans: 1, kind: protobufType, reuse: new(lent)})
			synctest.Wait()
			return body
		}
		first := send()
		if again := e.memory(100); cap(again) > 0 && &again[:1][0] == &first[0] {
			t.Error("a body that is still read is used again")
		}
		open[0].Close()
		open[0].Close()
		status.Store(503)
		second := send()
		open[1].Close()
		status.Store(200)
		time.Sleep(time.Minute)
		synctest.Wait()
		if again := e.memory(100); &again[:1][0] == &second[0] {
			t.Error("a body is used again while the second attempt's reader is open")
		}
		for _, c := range open {
			c.Close()
		}
		third := send()
		open[3].Close()
		if again := e.memory(100); &again[:1][0] == &third[0] {
			t.Error("a body that was read when its batch was over is used again") // whoever closes late says so to nobody
		}
		e.client.Transport = roundTrip(func(req *http.Request) (*http.Response, error) {
			req.Body.Close()
			return answer(200, nil, "")(req)
		})
		fourth := send()
		if again := e.memory(100); &again[:1][0] != &fourth[0] || len(again) != 0 {
			t.Error("a body that nobody reads any more is not used again")
		}
		send()
		if more := e.memory(1000); cap(more) < 1000 {
			t.Errorf("got memory for %d octets, want 1000", cap(more))
		}
	})
}

// A body that was closed, as HTTP/2 closes it under who reads it, has lent its memory to nobody any more.
func TestClosedBody(t *testing.T) {
	b := batch{body: []byte("the batch"), reuse: new(lent)}
	r, err := b.reader()
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 3)
	if n, err := r.Read(p); n != 3 || err != nil || string(p) != "the" {
		t.Fatalf("read %d octets, %q: %v", n, p, err)
	}
	r.Close()
	if n, err := r.Read(p); n != 0 || !errors.Is(err, http.ErrBodyReadAfterClose) || b.reuse.readers.Load() != 0 {
		t.Errorf("read %d octets of a closed body: %v; %d readers left", n, err, b.reuse.readers.Load())
	}
}

// The queue holds so many octets; what a collector that hangs leaves in memory is bounded.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := exporterFor(t, Options{Queue: 100}, hang)
		e.put(batch{body: make([]byte, 60), spans: 1}) // under way, no longer in the queue
		synctest.Wait()
		for _, n := range []int{60, 50, 40, 101, 1} {
			e.put(batch{body: make([]byte, n), spans: 10})
		}
		s := e.stats()
		if s.Queued != 51 || s.Pending != 21 || s.Dropped[DropQueueFull] != 20 || s.Dropped[DropTooLarge] != 10 || e.octets != 100 {
			t.Errorf("%+v and %d octets, want 51 queued, 21 pending, 20 queue_full, 10 too_large, 100 octets", s, e.octets)
		}
		for range 2 * maxQueued {
			e.put(batch{spans: 1})
		}
		if len(e.queue) > maxQueued {
			t.Errorf("%d batches queued, want at most %d", len(e.queue), maxQueued)
		}
	})
}

// A shutdown gives a collector that hangs its grace and no more; after it, nothing is taken.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{Sample: 1, Endpoint: "http://collector", Grace: 2 * time.Second, Logger: quiet()})
		r.exporter.client.Transport = roundTrip(hang)
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- r.Run(ctx) }()
		fillQuery(begin(r.Worker(0)))
		r.Worker(0).Commit()
		cancel()
		start := time.Now()
		<-ran
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("Run took %v to return, want 2s", took)
		}
		r.exporter.put(batch{spans: 7})
		s := r.Stats()
		check(t, s)
		if s.Dropped[DropShutdown] != 3+7 || s.Pending != 0 {
			t.Errorf("dropped %v, pending %d, want 10 for the shutdown", s.Dropped, s.Pending)
		}
	})
}

// The log tells once that a collector fails and once that it is well again.
func TestExportLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		replies := []roundTrip{answer(200, nil, ""), answer(400, nil, "a"), answer(400, nil, "b"), answer(200, nil, ""), answer(200, nil, "")}
		e := exporterFor(t, Options{}, func(req *http.Request) (*http.Response, error) {
			reply := replies[0]
			replies = replies[1:]
			return reply(req)
		})
		e.log = slog.New(slog.NewTextHandler(&out, nil))
		for range len(replies) {
			e.put(batch{spans: 1})
			synctest.Wait()
		}
		if got, want := strings.Count(out.String(), "level=WARN"), 1; got != want {
			t.Errorf("%d warnings, want %d:\n%s", got, want, &out)
		}
		if got, want := strings.Count(out.String(), "level=INFO"), 1; got != want {
			t.Errorf("%d notices, want %d:\n%s", got, want, &out)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		field string
		want  time.Duration
	}{
		{"", 0}, {"0", 0}, {"120", 2 * time.Minute}, {"-1", 0}, {"soon", 0}, {"99999999999999999999", 0},
		{"Fri, 02 Jan 2026 03:04:15 GMT", 10 * time.Second}, {"Fri, 02 Jan 2026 03:04:00 GMT", 0},
	} {
		if got := retryAfter(tc.field, now); got != tc.want {
			t.Errorf("retryAfter(%q): %v, want %v", tc.field, got, tc.want)
		}
	}
}

// Over real sockets: the path, the headers, one connection for all, and bytes that the
// generated code reads.
func TestExportOverHTTP(t *testing.T) {
	for _, zip := range []bool{false, true} {
		var mu sync.Mutex
		connections := make(map[string]bool)
		names := make(map[string]int)
		collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			connections[req.RemoteAddr] = true
			var body io.Reader = req.Body
			if req.Header.Get("Content-Encoding") == "gzip" {
				z, err := gzip.NewReader(req.Body)
				if err != nil {
					t.Error(err)
					return
				}
				body = z
			} else if zip {
				t.Error("the request is not gzip")
			}
			b, err := io.ReadAll(body)
			if err != nil {
				t.Error(err)
			}
			if req.URL.Path != "/otlp/v1/traces" || req.Header.Get("Content-Type") != protobufType || req.Header.Get("X-Tenant") != "t1" {
				t.Errorf("%s, %v: want /otlp/v1/traces, protobuf, tenant t1", req.URL.Path, req.Header)
			}
			for _, rs := range official(t, b).ResourceSpans {
				for _, kv := range rs.Resource.Attributes {
					names[kv.Key+"="+kv.Value.GetStringValue()]++
				}
				for _, s := range rs.ScopeSpans[0].Spans {
					names[s.Name]++
				}
			}
		}))
		r := New(Options{Sample: 1, Endpoint: collector.URL + "/otlp", Headers: map[string]string{"X-Tenant": "t1"}, Gzip: zip,
			Node: "ns1", Site: "eu-west", Version: "v1", Logger: quiet(), RingSize: 2048, Grace: time.Minute})
		const queries = 1500 // five batches by their number of spans
		for range queries {
			fillQuery(begin(r.Worker(0)))
			r.Worker(0).Commit()
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // one drain, and out
		r.Run(ctx)
		collector.Close()
		s := r.Stats()
		check(t, s)
		if s.Exported != 3*queries {
			t.Errorf("gzip %v: exported %d, want %d: %+v", zip, s.Exported, 3*queries, s)
		}
		if len(connections) != 1 {
			t.Errorf("gzip %v: %d connections, want 1", zip, len(connections))
		}
		for _, name := range []string{SpanQuery, SpanLookup, SpanDecide} {
			if names[name] != queries {
				t.Errorf("gzip %v: %d spans %s arrived, want %d", zip, names[name], name, queries)
			}
		}
		for _, attr := range []string{"service.name=gslbd", "service.instance.id=ns1", "service.version=v1", "gslb.site=eu-west"} {
			if names[attr] != 5 {
				t.Errorf("gzip %v: %d resources with %s, want 5", zip, names[attr], attr)
			}
		}
	}
}

// Nobody listens: the spans are dropped as unreachable, the node remembers them all the same.
func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	r := New(Options{Sample: 1, Endpoint: "http://" + l.Addr().String(), RetryFor: time.Nanosecond, Grace: time.Minute, Logger: quiet()})
	fillQuery(begin(r.Worker(0)))
	r.Worker(0).Commit()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Run(ctx)
	s := r.Stats()
	check(t, s)
	if s.Dropped[DropUnreachable] != 3 || r.Memory().Stats().Traces != 1 {
		t.Errorf("dropped %v, %d traces remembered, want 3 unreachable, 1", s.Dropped, r.Memory().Stats().Traces)
	}
}

// What a collector says goes into the log, and no more of it than is read there.
func TestReportIsBounded(t *testing.T) {
	var log strings.Builder
	r := New(Options{Endpoint: "grpc://collector:4317", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	long := strings.Repeat("x", 3<<20)
	r.exporter.report(t.Context(), accepted(protobufType, appendBytes(nil, 1, appendBytes(appendVarint(nil, 1, 7), 2, long))))
	r.exporter.report(t.Context(), verdict{})
	r.exporter.report(t.Context(), judgeStatus(status.New(codes.Internal, long), true))
	if n := strings.Count(log.String(), "level=WARN"); n != 2 || log.Len() > 3000 || !strings.Contains(log.String(), "7 spans rejected") {
		t.Errorf("%d warnings in %d octets, want 2 in a few hundred: %.300s", n, log.Len(), log.String())
	}
}
