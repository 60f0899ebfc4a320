package gslb

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// TestArchive repeats past decisions after the world has gone on: an explanation has the bytes
// that it had then, by revision and by ID.
func TestArchive(t *testing.T) {
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(21, seed))
		in, prefixes := randomInputs(rng)
		for in.Geo == nil || len(in.Objects.Pools) < 3 {
			in, prefixes = randomInputs(rng)
		}
		manyServices(rng, in.Objects)
		in.Since, in.FlipAt, in.Names = map[EndpointID]time.Time{}, map[EndpointID]time.Time{}, map[string][]netip.Addr{}
		at := corners(prefixes)
		explain := func(s *Snapshot, asks *rand.Rand) (text string) {
			for range 12 {
				a := at[asks.IntN(len(at))]
				b, err := json.Marshal(s.Explain(s.Services[asks.IntN(len(s.Services))], Client{a, uint8(a.BitLen())}))
				if err != nil {
					t.Fatal(err)
				}
				text += string(b) + "\n"
			}
			return text
		}
		const count = 60
		a := NewArchive(count, 24*time.Hour)
		var s *Snapshot
		said, latest := map[uint64]string{}, map[string]uint64{}
		for range 100 {
			in.Revision += 1 + rng.Uint64N(2)
			change(rng, &in, s)
			s = mustBuild(t, s, in)
			a.Put(s)
			said[s.Revision], latest[s.ID()] = explain(s, rand.New(rand.NewPCG(1, s.Revision))), s.Revision
		}
		n, first := a.Span()
		if n != count || a.Live(first) != nil || a.Live(s.Revision) != s {
			t.Errorf("%d snapshots from revision %d are kept, want %d, the last alone whole", n, first, count)
		}
		for revision, want := range said {
			past, err := a.At(fmt.Sprint(revision))
			if err != nil {
				t.Fatal(err)
			}
			if revision < first {
				if past != nil {
					t.Fatalf("revision %d is still kept, the first should be %d", revision, first)
				}
				continue
			}
			if got := explain(past, rand.New(rand.NewPCG(1, revision))); got != want {
				t.Fatalf("seed %d: revision %d of %d explains\n%swant\n%s", seed, revision, s.Revision, got, want)
			}
			by, err := a.At(past.ID())
			if err != nil || by.Revision != latest[past.ID()] {
				t.Fatalf("%s is revision %d, want %d: %v", past.ID(), by.Revision, latest[past.ID()], err)
			}
		}
		in.Revision++
		in.Now = in.Now.Add(23 * time.Hour)
		a.Put(mustBuild(t, s, in))
		in.Revision++
		in.Now = in.Now.Add(2 * time.Hour)
		a.Put(mustBuild(t, s, in))
		if n, first := a.Span(); n != 2 || first != in.Revision-1 {
			t.Errorf("%d snapshots from %d are kept a day later, want the last two", n, first)
		}
		if past, err := a.At("s000000000000"); past != nil || err != nil {
			t.Errorf("an ID that nobody has: %v, %v; want nothing", past, err)
		}
	}
}

// TestID checks what has the same address: all that decides alike, and nothing else.
func TestID(t *testing.T) {
	base := testInputs(t, nearestThree, "", "", "")
	first := mustBuild(t, nil, base)
	for _, tt := range []struct {
		name   string
		change func(in *Inputs)
		same   bool
	}{
		{"a later revision", func(in *Inputs) { in.Revision++ }, true},
		{"a later time", func(in *Inputs) { in.Now = in.Now.Add(time.Hour) }, true},
		{"a load that no policy reads", func(in *Inputs) { in.Load = map[string]float64{"eu": 0.5} }, true},
		{"when verdicts turned, which nobody waits for", func(in *Inputs) { in.Since = map[EndpointID]time.Time{id("eu/10.2.0.1"): now} }, true},
		{"the same places from other files", func(in *Inputs) { in.Geo = testMap(t) }, true},
		{"a verdict", func(in *Inputs) { in.Verdicts[id("eu/10.2.0.1")] = Down }, false},
		{"one about to flip", func(in *Inputs) { in.Flipping[id("eu/10.2.0.1")] = true }, false},
		{"no places", func(in *Inputs) { in.Geo = nil }, false},
		{"other objects", func(in *Inputs) { in.Objects = testInputs(t, nearestThree+", ttl: 9s", "", "", "").Objects }, false},
	} {
		in := testInputs(t, nearestThree, "", "", "")
		in.Objects, in.Geo = base.Objects, base.Geo
		tt.change(&in)
		if got := mustBuild(t, first, in).ID(); (got == first.ID()) != tt.same {
			t.Errorf("%s: %s after %s, want the same: %v", tt.name, got, first.ID(), tt.same)
		}
	}
}
