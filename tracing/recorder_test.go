package tracing

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestNextPause(t *testing.T) {
	for _, tc := range []struct {
		name string
		last time.Duration
		most int
		want time.Duration
	}{
		{"idle", time.Millisecond, 0, maxSleep},
		{"few", 20 * time.Millisecond, 10, maxSleep},
		{"a quarter full", 8 * time.Millisecond, 1024, 8 * time.Millisecond},
		{"half full", 8 * time.Millisecond, 2048, 4 * time.Millisecond},
		{"full", 20 * time.Millisecond, 4096, 5 * time.Millisecond},
		{"full at once", time.Millisecond, 4096, minSleep},
	} {
		if got := nextPause(tc.last, maxSleep, tc.most, 4096); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// Only what is interesting is worth the engine's reasons.
func TestBrief(t *testing.T) {
	brief := 0
	r := New(Options{Sample: 1, Describe: describeAll, Brief: func(*Query) Facts { brief++; return Facts{Service: "brief"} }})
	for _, tc := range []struct {
		name   string
		change func(*Query)
		brief  bool
	}{
		{"the first of its kind", func(*Query) {}, false},
		{"the second", func(*Query) {}, true},
		{"a failover", func(q *Query) { q.Reason = 1 }, false},
		{"asked for", func(q *Query) { q.Asked = AskTrace }, false},
	} {
		before := brief
		var q Query
		fillQuery(&q)
		tc.change(&q)
		r.take(&q, time.Unix(1000, 0))
		if got := brief > before; got != tc.brief {
			t.Errorf("%s: brief %v, want %v", tc.name, got, tc.brief)
		}
	}
}

// Without a collector the node remembers what was sampled, and counts nothing as dropped.
func TestMemoryOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{Workers: 2, Sample: 0, Node: "ns1", Describe: describeAll})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- r.Run(ctx) }()
		for i := range 2 {
			for range 3 {
				q := begin(r.Worker(i))
				fillQuery(q)
				q.Pool = int32(i)
				r.Worker(i).Commit()
			}
		}
		time.Sleep(maxSleep)
		synctest.Wait()
		s := r.Stats()
		check(t, s)
		if s.Drained != 6 || s.Sampled[SampledFirst] != 2 || s.Made != 6 || s.Queued != 0 {
			t.Errorf("%+v, want 6 drained, of which 2 were the first of their kind, and 6 spans", s)
		}
		traces := r.Memory().Traces(Filter{})
		if len(traces) != 2 || traces[0].Title != "dns.query www.example.com A" || traces[0].Spans != 3 {
			t.Fatalf("remembered %+v, want two queries of three spans", traces)
		}
		spans := r.Memory().Trace(traces[0].TraceID)
		if len(spans) != 3 || spans[0].Resource[AttrServiceInstance] != "ns1" || spans[0].Service != "gslbd" {
			t.Errorf("spans %+v, want three of gslbd ns1", spans)
		}
		cancel()
		<-ran
	})
}

// A batch leaves when it has lingered, though it is not full.
func TestLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{Sample: 1, Endpoint: "http://collector", Linger: 500 * time.Millisecond, Logger: quiet()})
		start := time.Now()
		var sent time.Duration
		r.exporter.client.Transport = roundTrip(func(req *http.Request) (*http.Response, error) {
			sent = time.Since(start)
			return answer(200, nil, "")(req)
		})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- r.Run(ctx) }()
		fillQuery(begin(r.Worker(0)))
		r.Worker(0).Commit()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if sent < 500*time.Millisecond || sent > 600*time.Millisecond {
			t.Errorf("sent after %v, want about 500ms", sent)
		}
		cancel()
		<-ran
	})
}

// What the drain does with a query that is not sampled costs no allocation; one that is, and
// is not remembered, costs none beside what Describe does, but for the text of its name.
func TestDrainAllocs(t *testing.T) {
	now := time.Unix(1000, 0)
	var q Query
	fillQuery(&q)
	for _, tc := range []struct {
		name   string
		sample float64
		want   float64
	}{
		{"not sampled", 0, 0},
		{"sampled", 1, 2}, // dns.UnpackDomainName: its buffer and the string
	} {
		r := New(Options{Sample: tc.sample, Interesting: -1, Memory: -1})
		r.take(&q, now) // buffers grow once
		got := testing.AllocsPerRun(500, func() { r.take(&q, now) })
		if got > tc.want {
			t.Errorf("%s: %v allocations, want at most %v", tc.name, got, tc.want)
		}
	}
}

// A plain record becomes no spans, whatever the sampler would say of it, but the ledger has it.
func TestPlainRecords(t *testing.T) {
	ledger := NewLedger(4)
	r := New(Options{Sample: 1, Ledger: ledger})
	for _, plain := range []bool{true, false} {
		q := begin(r.Worker(0))
		*q = *answered(1, time.Unix(1_700_000_000, 0), 30, "", "192.0.2.11")
		q.Plain = plain
		r.Worker(0).Commit()
	}
	r.drain(time.Now())
	if s := r.Stats(); s.Drained != 2 || s.Sampled[SampledRatio] != 1 || s.Ledger.Answers != 2 {
		t.Errorf("%+v, want one of two records sampled, and both in the ledger", s)
	}
}
