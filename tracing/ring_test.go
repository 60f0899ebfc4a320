package tracing

import (
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"unsafe"
)

func TestRingSize(t *testing.T) {
	for _, tc := range []struct{ size, want int }{{0, 2}, {1, 2}, {2, 2}, {3, 4}, {4, 4}, {4096, 4096}, {4097, 8192}} {
		if got := len(newWorker(tc.size).lines); got != tc.want {
			t.Errorf("newWorker(%d): %d slots, want %d", tc.size, got, tc.want)
		}
	}
}

// begin draws and begins, where all queries are drawn or none.
func begin(w *Worker) *Query {
	drawn, _ := w.Draw()
	return w.Begin(drawn)
}

// A ring agrees with a plain slice, whatever the order of puts and drains.
func TestRingTwin(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	w := newWorker(8)
	var twin []int64
	var full, put uint64
	for step := range int64(100_000) {
		switch random.IntN(10) {
		default:
			q := begin(w)
			if got, want := q != nil, len(twin) < 8; got != want {
				t.Fatalf("step %d: Begin has a slot: %v, want %v", step, got, want)
			}
			if q == nil {
				full++
				continue
			}
			put++
			q.Start = step
			w.Commit()
			twin = append(twin, step)
		case 0: // begun and given up
			if q := begin(w); q == nil {
				full++
			} else {
				q.Start = -1
			}
		case 1:
			var got []int64
			w.drain(func(q *Query, _ *packets) { got = append(got, q.Start) })
			if !slices.Equal(got, twin) {
				t.Fatalf("step %d: drained %v, want %v", step, got, twin)
			}
			twin = nil
		}
	}
	if w.full.Load() != full || w.tail.Load() != put {
		t.Errorf("counted %d dropped, %d recorded, want %d, %d", w.full.Load(), w.tail.Load(), full, put)
	}
}

// One producer and one consumer at full speed: records arrive in order, whole, and every one
// is either drained or counted as dropped.
func TestRingStress(t *testing.T) {
	const records = 300_000
	w := newWorker(64)
	finished := make(chan uint64)
	go func() {
		var dropped uint64
		for i := range uint64(records) {
			q := begin(w)
			if q == nil {
				dropped++
				if dropped%64 == 0 {
					runtime.Gosched() // let the consumer run on one core
				}
				continue
			}
			q.Revision, q.Start, q.TTL = i, int64(i), uint32(i)
			q.NameLen, q.Name[254] = 255, byte(i)
			w.Commit()
		}
		finished <- dropped
	}()

	next, drained := uint64(0), uint64(0)
	take := func(q *Query, _ *packets) {
		if q.Revision < next || uint64(q.Start) != q.Revision || uint64(q.TTL) != q.Revision || q.Name[254] != byte(q.Revision) {
			t.Fatalf("record %d, %d, %d, %d: want one whole record of at least %d", q.Revision, q.Start, q.TTL, q.Name[254], next)
		}
		next = q.Revision + 1
		drained++
	}
	for {
		select {
		case dropped := <-finished:
			w.drain(take)
			if drained+dropped != records || w.full.Load() != dropped || w.head.Load() != drained {
				t.Errorf("drained %d + dropped %d (counted %d, %d), want %d", drained, dropped, w.head.Load(), w.full.Load(), records)
			}
			if drained == 0 {
				t.Error("nothing was drained")
			}
			return
		default:
			if w.drain(take) == 0 {
				runtime.Gosched()
			}
		}
	}
}

// Begin clears every field but Name and Given, also those that are added one day.
func TestBeginClears(t *testing.T) {
	w := newWorker(2)
	q := begin(w)
	v := reflect.ValueOf(q).Elem()
	for i := range v.NumField() {
		fill(v.Field(i))
	}
	q.Plain = false
	begin(w)
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; name != "Name" && name != "Given" && name != "Drawn" && !v.Field(i).IsZero() {
			t.Errorf("field %s after Begin: %v, want zero", name, v.Field(i))
		}
	}
}

func fill(v reflect.Value) {
	switch {
	case v.Kind() == reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i))
		}
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.CanInt():
		v.SetInt(1)
	case v.CanUint():
		v.SetUint(1)
	default:
		panic("a Query holds neither pointers nor structures: " + v.Type().String())
	}
}

func TestCommitWithoutBegin(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setup func(*Worker)
	}{
		{"fresh", func(*Worker) {}},
		{"twice", func(w *Worker) { begin(w); w.Commit() }},
		{"full", func(w *Worker) { begin(w); w.Commit(); begin(w); w.Commit(); begin(w) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorker(2)
			tc.setup(w)
			defer func() {
				if recover() == nil {
					t.Error("Commit returned, want a panic")
				}
			}()
			w.Commit()
		})
	}
}

func TestRecordAllocs(t *testing.T) {
	w := newWorker(64)
	got := testing.AllocsPerRun(1000, func() {
		if q := begin(w); q != nil {
			fillQuery(q)
			w.Commit()
		} else {
			w.drain(func(*Query, *packets) {})
		}
	})
	if got != 0 {
		t.Errorf("recording: %v allocations, want 0", got)
	}
}

// fillQuery writes a typical record: a steered A query with ECS.
func fillQuery(q *Query) {
	q.Start, q.Parsed, q.Decided, q.End = 1_700_000_000_000_000_000, 10_000, 22_000, 41_000
	q.Revision, q.Service, q.Pool = 42, 3, 1
	q.Qtype, q.TTL = 1, 30
	q.Client = [16]byte{10: 0xff, 11: 0xff, 12: 198, 13: 51, 14: 100}
	q.Source, q.Scope, q.HasECS = 24, 20, true
	q.Resolver = [16]byte{10: 0xff, 11: 0xff, 12: 192, 13: 0, 14: 2, 15: 53}
	q.Answers = 2
	q.NameLen = uint8(copy(q.Name[:], "\x03www\x07example\x03com\x00"))
}

// The drain reads one line of 64 octets of a plain record, and a typical record is in its cell.
func TestRecordLayout(t *testing.T) {
	var q Query
	if plain, name, end := unsafe.Offsetof(q.Parsed), unsafe.Offsetof(q.Name), unsafe.Sizeof(q); plain != lineSize || name > lineSize+bodySize-48 || int(end) > lineSize+bodySize+tailSize {
		t.Errorf("of a plain record %d octets, the name at %d, the end at %d: want 64, room for a name, and nothing lost", plain, name, end)
	}
}

// What goes into a ring comes out of it, whatever was in its place before: every field of a
// record that has all of them, names of every length, and of a plain record what the drain uses.
func TestRingKeeps(t *testing.T) {
	w := newWorker(2)
	random := rand.New(rand.NewPCG(3, 4))
	for step := range 2000 {
		var want Query
		v := reflect.ValueOf(&want).Elem()
		for i := range v.NumField() {
			fill(v.Field(i))
		}
		want.Asked = Ask(random.IntN(3))
		want.NameLen = uint8(random.IntN(256))
		want.Plain = want.Asked == AskNothing && random.IntN(2) == 0
		want.Logged, want.Drawn = false, notDrawn
		if want.Asked == AskNothing {
			want.Trace, want.Span, want.Parent = TraceID{}, SpanID{}, SpanID{}
		}
		for i := range want.Name[:want.NameLen] {
			want.Name[i] = byte(random.Uint32())
		}
		*begin(w) = want
		w.Commit()
		w.drain(func(q *Query, _ *packets) {
			got := *q
			copy(got.Name[got.NameLen:], want.Name[want.NameLen:]) // means nothing
			if got.Plain {
				got = want
				*got.line() = *q.line()
			}
			if got != want {
				t.Fatalf("step %d: got %+v, want %+v", step, got, want)
			}
		})
	}
}
