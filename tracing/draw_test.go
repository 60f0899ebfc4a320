package tracing

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"
)

// TestFit checks that an id says of itself what was drawn, at every ratio, and is left alone
// where nothing was.
func TestFit(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, ratio := range []float64{0, 1e-9, 0.01, 0.5, 1} {
		s := newSampler(ratio, time.Second, 0)
		for range 1000 {
			var lower [8]byte
			for i := range lower {
				lower[i] = byte(random.Uint32())
			}
			if got := s.fit(lower, notAsked); got != lower {
				t.Fatalf("ratio %g: got %x of an id that nobody drew for, want %x", ratio, got, lower)
			}
			if ratio > 0 && !s.byRatio(s.fit(lower, drawn)) {
				t.Fatalf("ratio %g: %x was drawn, and its id %x is not sampled", ratio, lower, s.fit(lower, drawn))
			}
			if ratio < 1 && s.byRatio(s.fit(lower, notDrawn)) {
				t.Fatalf("ratio %g: %x was not drawn, and its id %x is sampled", ratio, lower, s.fit(lower, notDrawn))
			}
		}
	}
}

// TestDraw samples ahead and checks that the share is the ratio, and that the recorder makes
// spans of exactly what was drawn.
func TestDraw(t *testing.T) {
	const queries = 100_000
	r := New(Options{Sample: 0.1, Interesting: -1, Plain: -1, RingSize: queries})
	w := r.Worker(0)
	drew, rest := 0, 0
	for range queries {
		drawn := false
		if rest--; rest < 0 {
			drawn, rest = w.Draw()
		}
		if drawn {
			drew++
			q := w.Begin(drawn)
			q.Service, q.Pool = -1, -1
			w.Commit()
		}
	}
	if share := float64(drew) / queries; share < 0.095 || share > 0.105 {
		t.Errorf("drew %.4f of the queries, want 0.1", share)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = r.Run(ctx) // drains once
	if s := r.Stats(); s.Sampled[SampledRatio] != uint64(drew) || s.Drained != uint64(drew) {
		t.Errorf("sampled %d of %d records, drew %d", s.Sampled[SampledRatio], s.Drained, drew)
	}
}

// TestKinds records kinds of decisions of a few hundred services and pools again and again: in an epoch
// each is new once, but for a few that have no room.
func TestKinds(t *testing.T) {
	for _, tc := range []struct{ services, pools, most int32 }{{1, 1, 1}, {1, 100, 104}, {16, 8, 136}, {40, 12, 960}, {60, 3, 360}, {400, 1, 800}} {
		a := new(ahead)
		for epoch := uint32(1); epoch < 4; epoch++ {
			fresh := int32(0)
			for range 10 {
				for service := range tc.services {
					for pool := range tc.pools {
						if !a.again(service, 7*service%5+pool, epoch) {
							fresh++
						}
					}
				}
			}
			if kinds := tc.services * tc.pools; fresh < kinds || fresh > tc.most {
				t.Errorf("%d services with %d pools: %d of %d kinds were new in epoch %d, want at most %d", tc.services, tc.pools, fresh, kinds, epoch, tc.most)
			}
		}
	}
}

// TestPlain checks that the memory takes so many of the queries that only the ratio selected, that nothing else is
// made into spans where no collector wants them, and everything where one does.
func TestPlain(t *testing.T) {
	for _, tc := range []struct {
		endpoint             string
		plain                int
		drawn, made, sampled uint64
		remembered           int
	}{
		{"", 10, 10, 10, 10, 10},
		{"", -1, 1000, 1000, 1000, 500},
		{"http://collector", 10, 1000, 1000, 1000, 10},
		{"http://collector", -1, 1000, 1000, 1000, 500},
	} {
		r := New(Options{Sample: 1, Endpoint: tc.endpoint, Plain: tc.plain, Interesting: -1, Memory: 500, Logger: quiet()})
		w := r.Worker(0)
		drawn := uint64(0)
		for range 1000 {
			if now, _ := w.Draw(); now {
				drawn++
				fillQuery(w.Begin(now))
				w.next.Decided = 0 // one span, and no first of its kind
				w.Commit()
			}
		}
		r.drain(time.Unix(1000, 0))
		s := r.Stats()
		if drawn != tc.drawn || s.Made != tc.made || s.Sampled[SampledRatio] != tc.sampled || r.Memory().Stats().Traces != tc.remembered {
			t.Errorf("endpoint %q, %d plain a second: drew %d, made %d spans of %d queries, remember %d, want %d, %d, %d, %d", tc.endpoint, tc.plain,
				drawn, s.Made, s.Sampled[SampledRatio], r.Memory().Stats().Traces, tc.drawn, tc.made, tc.sampled, tc.remembered)
		}
	}
}

// TestNotable checks what is worth a record though it was not drawn.
func TestNotable(t *testing.T) {
	w := New(Options{Interesting: 20}).Worker(0) // 2 of fences and overrides, and 40 of the unusual
	for _, step := range []struct {
		what          string
		service, pool int32
		reason, flags uint8
		rcode         uint8
		want          bool
	}{
		{"static", -1, -1, reasonPolicy, 0, 0, false},
		{"static, refused", -1, -1, reasonPolicy, 0, 5, false},
		{"SERVFAIL", -1, -1, reasonPolicy, 0, rcodeServfail, true},
		{"the first of a kind", 3, 5, reasonPolicy, 0, 0, true},
		{"the second of it", 3, 5, reasonPolicy, 0, 0, false},
		{"another pool", 3, 6, reasonPolicy, 0, 0, true},
		{"another service", 4, 5, reasonPolicy, 0, 0, true},
		{"a failover", 3, 5, 1, 0, 0, true},
		{"a failover again", 3, 5, 1, 0, 0, true},
		{"a fence", 3, 5, reasonPolicy, flagFenced, 0, true},
		{"an override", 3, 5, reasonPolicy, flagOverride, 0, true},
		{"more of them than become spans", 3, 5, reasonPolicy, flagFenced, 0, false},
		{"but of another kind", 3, 7, reasonPolicy, flagFenced, 0, true},
	} {
		if got := w.Notable(step.service, step.pool, step.reason, step.flags, step.rcode); got != step.want {
			t.Errorf("%s: got %t, want %t", step.what, got, step.want)
		}
	}
	recorded := 0
	for range 1000 { // an outage
		if w.Notable(3, 5, 1, 0, 0) {
			recorded++
		}
	}
	if recorded != 40-3 {
		t.Errorf("of 1000 failovers more %d are recorded, want what is left of 40", recorded)
	}
	w.ahead.epoch.Add(1)
	if !w.Notable(3, 5, 1, 0, 0) {
		t.Error("a failover in the next epoch: got false, want true")
	}
	if !w.Notable(3, 5, reasonPolicy, 0, 0) {
		t.Error("the first of a kind in the next epoch: got false, want true")
	}
	if !w.Notable(3, 5, reasonPolicy, flagFenced, 0) {
		t.Error("a fence in the next epoch: got false, want true")
	}
	if n := testing.AllocsPerRun(100, func() { w.Draw(); w.Notable(1, 2, 0, flagFenced, 0) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
