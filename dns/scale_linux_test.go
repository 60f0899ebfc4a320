package dns

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"
	"unsafe"
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

// BenchmarkWorkers answers a steered A on 1, 2, 4 and 8 workers at once, each with its own answerer
// as the server has it. As long as there are cores, the time of an answer stays what it is for one
// worker; beyond, ns/answer stays, and the wall clock grows.
func BenchmarkWorkers(b *testing.B) {
	d := loadWorld(b).data(b)
	keys, err := newCookieKeys(nil)
	if err != nil {
		b.Fatal(err)
	}
	query := hotQueries(b)["Steered"]
	for _, workers := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) {
			all := make([]counters, workers)
			zone := newQuarantine()
			cookies := newPointer(keys)
			end := cpuTime()
			var wg sync.WaitGroup
			for i := range workers {
				wg.Go(func() {
					a := newAnswerer(&all[i], nil, DefaultMaxUDP, func(any, []byte) {})
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
