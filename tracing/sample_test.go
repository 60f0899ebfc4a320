package tracing

import (
	"math/rand/v2"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// The ratio is that of the SDK, trace by trace.
func TestByRatioAgreesWithSDK(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	for _, ratio := range []float64{0, 0.001, 0.01, 0.5, 0.999, 1} {
		s, sdk := newSampler(ratio, time.Second, 0), sdktrace.TraceIDRatioBased(ratio)
		sampled := 0
		for range 20_000 {
			var id TraceID
			random.Read(id[:])
			want := sdk.ShouldSample(sdktrace.SamplingParameters{TraceID: [16]byte(id)}).Decision == sdktrace.RecordAndSample
			got := s.byRatio([8]byte(id[8:]))
			if got != want {
				t.Fatalf("ratio %v, trace %v: sampled %v, want %v", ratio, id, got, want)
			}
			if got {
				sampled++
			}
		}
		if low, high := 20_000*ratio*0.9-10, 20_000*ratio*1.1+10; float64(sampled) < low || float64(sampled) > high {
			t.Errorf("ratio %v: %d of 20000 sampled, want %v to %v", ratio, sampled, low, high)
		}
	}
}

var (
	never  = [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff} // sampled by no ratio below 1
	always = [8]byte{}                                               // sampled by every ratio above 0
)

func TestJudge(t *testing.T) {
	plain := Query{Service: 1, Pool: 2, Decided: 1, End: 1000}
	with := func(f func(*Query)) Query { q := plain; f(&q); return q }
	for _, tc := range []struct {
		name  string
		ratio float64
		lower [8]byte
		known bool // plain was sampled before
		query Query
		want  string
	}{
		{"plain", 0.5, never, true, plain, ""},
		{"by ratio", 0.5, always, true, plain, SampledRatio},
		{"everything", 1, never, true, plain, SampledRatio},
		{"nothing", 0, always, true, plain, ""},
		{"failover", 0, always, true, with(func(q *Query) { q.Reason = 1 }), SampledReason},
		{"servfail", 0, always, true, with(func(q *Query) { q.Rcode = 2; q.Reason = 6 }), SampledServfail},
		{"refused", 0, always, true, with(func(q *Query) { q.Rcode = 5 }), ""},
		{"slow", 0, always, true, with(func(q *Query) { q.End = 5_000_001 }), SampledSlow},
		{"a fence", 0, always, true, with(func(q *Query) { q.Flags = flagFenced }), SampledFence},
		{"an override", 0, always, true, with(func(q *Query) { q.Flags = flagOverride }), SampledOverride},
		{"both", 0, always, true, with(func(q *Query) { q.Flags = flagFenced | flagOverride }), SampledFence},
		{"a fence, and a failover", 0, always, true, with(func(q *Query) { q.Flags = flagFenced; q.Reason = 3 }), SampledReason},
		{"a fence, by ratio", 0.5, always, true, with(func(q *Query) { q.Flags = flagFenced }), SampledRatio},
		{"not slow", 0, always, true, with(func(q *Query) { q.End = 5_000_000 }), ""},
		{"first", 0, always, false, plain, SampledFirst},
		{"another pool", 0, always, true, with(func(q *Query) { q.Pool = 3 }), SampledFirst},
		{"another service", 0, always, true, with(func(q *Query) { q.Service = 0 }), SampledFirst},
		{"not steered", 0, always, false, with(func(q *Query) { q.Service = -1 }), ""},
		{"asked for", 0, never, true, with(func(q *Query) { q.Asked = AskTrace }), SampledParent},
		{"asked for, and a failover", 0, never, true, with(func(q *Query) { q.Asked = AskTrace; q.Reason = 1 }), SampledParent},
		{"not asked for", 1, always, true, with(func(q *Query) { q.Asked = AskNone }), ""},
		{"not asked for, but a failover", 1, always, true, with(func(q *Query) { q.Asked = AskNone; q.Reason = 1 }), SampledReason},
		{"another answer id", 0, always, true, with(func(q *Query) { q.Decision = 7 }), SampledFirst},
		{"no decision", 0, always, false, with(func(q *Query) { q.Decided = 0 }), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSampler(tc.ratio, 5*time.Millisecond, 10)
			now := time.Unix(1000, 0)
			if tc.known {
				s.isFirst(&plain, now)
				s.kinds[kindOf(&plain)] = struct{}{}
			}
			if got, _, limited := s.judge(&tc.query, tc.lower, now); got != tc.want || limited {
				t.Errorf("judge: %q, limited %v, want %q, false", got, limited, tc.want)
			}
		})
	}
}

// An outage, in which every query is interesting, gives so many spans a second and no more.
func TestInterestingIsLimited(t *testing.T) {
	s := newSampler(0, time.Second, 10)
	now := time.Unix(1000, 0)
	outage := Query{Service: -1, Rcode: 2}
	sampled, limited := 0, 0
	for range 5 * 1000 { // five seconds, a query a millisecond
		now = now.Add(time.Millisecond)
		by, _, late := s.judge(&outage, never, now)
		if by != "" {
			sampled++
		}
		if late {
			limited++
		}
	}
	if sampled < 58 || sampled > 60 || limited != 5000-sampled { // 10 at once, then 10 a second
		t.Errorf("%d sampled, %d limited of 5000, want about 59 and the rest", sampled, limited)
	}
	if by, _, _ := s.judge(&outage, never, now.Add(-time.Hour)); by != "" {
		t.Error("a clock that went back gave a token")
	}
	none := newSampler(0, time.Second, 0)
	if by, _, late := none.judge(&outage, never, now); by != "" || !late {
		t.Errorf("with a rate of zero: %q, limited %v, want none, limited", by, late)
	}
}

// A fence that decides every query takes a tenth of the rate, and nothing from a failover.
func TestStandingIsLimited(t *testing.T) {
	s := newSampler(0, time.Second, 20)
	now := time.Unix(1000, 0)
	fenced := Query{Decided: 1, Flags: flagFenced}
	failover := Query{Decided: 1, Reason: 3}
	got := map[string]int{}
	limited := 0
	for i := range 5 * 1000 { // five seconds, a query a millisecond, and a failover every 100
		now = now.Add(time.Millisecond)
		by, _, late := s.judge(&fenced, never, now)
		got[by]++
		if late {
			limited++
		}
		if i%100 == 0 {
			by, _, _ := s.judge(&failover, never, now)
			got[by]++
		}
	}
	// Of the fence the first of its kind, 2 at once, then 2 a second.
	if n := got[SampledFence]; n < 12 || n > 13 || limited != 5000-n || got[SampledReason] != 50 {
		t.Errorf("sampled %v, limited %d; want about 13 of the fence, the rest of its 5000 limited, and 50 failovers", got, limited)
	}
}

// A kind that the rate kept out is not taken for known; all are forgotten after a minute.
func TestFirstOfAKind(t *testing.T) {
	s := newSampler(0, time.Second, 1)
	now := time.Unix(1000, 0)
	a, b := Query{Decided: 1, Pool: 1}, Query{Decided: 1, Pool: 2}
	for _, step := range []struct {
		name string
		q    *Query
		at   time.Duration
		want string
	}{
		{"a is first", &a, 0, SampledFirst},
		{"a is known", &a, 0, ""},
		{"b is too much", &b, 0, ""},
		{"b is first later", &b, time.Second, SampledFirst},
		{"b is known", &b, 30 * time.Second, ""},
		{"b is first again", &b, time.Minute, SampledFirst},
	} {
		if got, _, _ := s.judge(step.q, never, now.Add(step.at)); got != step.want {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
	}
}
