package dns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestCountersApart checks the layout that lets workers scale: what two workers write is never on
// one cache line, nor on two that are fetched together.
func TestCountersApart(t *testing.T) {
	all := make([]counters, 3)
	for i := range all[1:] {
		end := uintptr(unsafe.Pointer(&all[i].mu)) + unsafe.Sizeof(all[i].mu) + unsafe.Sizeof(all[i].retired)
		next := uintptr(unsafe.Pointer(&all[i+1].queries))
		if next-end < cacheLine {
			t.Errorf("%d octets between what workers %d and %d write, want %d", next-end, i, i+1, cacheLine)
		}
	}
}

// TestWorkersApart has workers that one goroutine made side by side answer in turn, and checks that
// no cache line, nor a pair of them that is fetched together, holds what two of them write for a
// query. There are so many of them that what is small and not kept apart does end up on one.
func TestWorkersApart(t *testing.T) {
	d := loadWorld(t).data(t)
	keys, err := newCookieKeys(nil)
	if err != nil {
		t.Fatal(err)
	}
	var workers [32]*answerer
	all := make([]counters, len(workers))
	for i := range workers {
		a := newAnswerer(&all[i], nil, DefaultMaxUDP, func(any, []byte) {})
		a.start, a.cookies, a.limiter = time.Now(), newPointer(keys), newLimiter(Limits{Rate: 1e6}, len(workers))
		workers[i] = a
	}
	buf := make([]byte, maxUDPBuffer)
	queries := hotQueries(t)
	for _, query := range append(slices.Collect(maps.Values(queries)), queries["Steered"]) {
		for _, a := range workers {
			for range recentEvery {
				a.serve(d, query, netip.MustParseAddr("10.0.0.1"), false, buf)
			}
			a.tally.publish()
		}
	}
	type block struct {
		worker int
		what   string
	}
	lines := make(map[uintptr]block)
	for i, a := range workers {
		note := func(what string, start unsafe.Pointer, size uintptr) {
			for line := uintptr(start) / cacheLine; line <= (uintptr(start)+size-1)/cacheLine; line++ {
				if other, there := lines[line]; there && other.worker != i {
					t.Errorf("%s of worker %d is beside %s of worker %d", what, i, other.what, other.worker)
				}
				lines[line] = block{i, what}
			}
		}
		note("answerer", unsafe.Pointer(a), unsafe.Offsetof(a.target)+unsafe.Sizeof(a.target))
		note("tally", unsafe.Pointer(a.tally), unsafe.Offsetof(a.tally.nDecided)+unsafe.Sizeof(a.tally.nDecided))
		note("options", unsafe.Pointer(unsafe.SliceData(a.opts)), uintptr(cap(a.opts)))
		note("names", unsafe.Pointer(unsafe.SliceData(a.r.names)), uintptr(cap(a.r.names)))
		note("rdata", unsafe.Pointer(unsafe.SliceData(a.r.rdatas)), uintptr(cap(a.r.rdatas))*unsafe.Sizeof(a.r.rdatas[:1][0]))
		note("addresses", unsafe.Pointer(unsafe.SliceData(a.r.addrs)), uintptr(cap(a.r.addrs))*unsafe.Sizeof(netip.Addr{}))
		note("limiter", unsafe.Pointer(a.limiter), unsafe.Offsetof(a.limiter.slots))
		note("counters", unsafe.Pointer(&a.counters.queries), unsafe.Offsetof(a.counters.recent)+unsafe.Sizeof(a.counters.recent)-unsafe.Offsetof(a.counters.queries))
		rows := a.counters.pools.Load().rows
		found := 0
		for j := range rows {
			if row := rows[j].Load(); row != nil {
				note("row of counters", unsafe.Pointer(unsafe.SliceData(*row)), uintptr(len(*row))*8)
				found++
			}
		}
		if found == 0 || len(a.opts) == 0 {
			t.Fatalf("worker %d: %d rows of counters and %d octets of options, want some", i, found, len(a.opts))
		}
	}
}

// BenchmarkWorkers answers a steered A on 1, 2, 4 and 8 workers at once, each with its own answerer
// as the server has it, and beside it with counters that all share. As long as there are cores, the
// time of an answer stays what it is for one worker; beyond, cpu-ns/answer stays, and the wall clock
// grows. What sharing a line costs is seen beside it.
func BenchmarkWorkers(b *testing.B) {
	d := loadWorld(b).data(b)
	keys, err := newCookieKeys(nil)
	if err != nil {
		b.Fatal(err)
	}
	query := hotQueries(b)["Steered"]
	for _, workers := range []int{1, 2, 4, 8} {
		for _, counting := range []string{"apart", "shared"} {
			b.Run(fmt.Sprintf("%d/%s", workers, counting), func(b *testing.B) {
				all := make([]counters, workers)
				zone := newQuarantine()
				cookies := newPointer(keys)
				end := cpuTime(unix.RUSAGE_SELF)
				var wg sync.WaitGroup
				for i := range workers {
					c := &all[i]
					if counting == "shared" {
						c = &all[0]
					}
					wg.Go(func() {
						a := newAnswerer(c, nil, DefaultMaxUDP, func(any, []byte) {})
						a.start, a.cookies, a.quarantine = time.Now(), cookies, zone
						a.limiter = newLimiter(Limits{Rate: 1e6}, workers)
						buf := make([]byte, maxUDPBuffer)
						from := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
						for range b.N {
							a.serve(d, query, from, false, buf)
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(end().Nanoseconds())/float64(b.N*workers), "cpu-ns/answer")
			})
		}
	}
}
