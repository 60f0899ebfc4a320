package dns

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/tracing"
)

// BenchmarkTracedShare is what tracing adds to the CPU time of a query over a real socket. The
// variants take turns within milliseconds, in an order drawn anew each round: 512 queries of each,
// after a batch that warms the caches up. What a variant costs the worker more than no tracing does
// in the same round, the mean of two, is one sample; their median is told with its 95 % interval. The
// difference of the second, "off again", to the first is what the method makes up.
//
// To that comes, by runs of one variant alone, what its drain uses, which has a thread of its own here,
// and for "1%" the exporter: what all other threads but the sink's do more than without tracing, in runs
// without the network, as it wakes them up for other reasons. "all" records every query, for a ledger
// that has no use for them, and samples none.
//
//	go test -pgo="$PWD/cmd/gslbd/default.pgo" ./dns -run '^$' -bench TracedShare -benchtime 3000x
func BenchmarkTracedShare(b *testing.B) {
	endpoint, sink := threadSink(b)
	w, _ := testWorker(b)
	client := rawClient(b, w.socket.local)
	pkts := [][]byte{ask(b, "www.example.com", "A", withECS("198.51.100.0/24")), ask(b, "www.example.com", "A", withECS("192.0.2.0/24"))}

	type variant struct {
		name  string
		trace *tracing.Options // nil: none
		a     *answerer
		drain int       // its drain's thread
		cost  []float64 // of the worker, ns a query, by round
	}
	variants := []*variant{{name: "off"}, {name: "off again"},
		{name: "1%", trace: &tracing.Options{Interesting: -1, Sample: 0.01, Endpoint: endpoint}},
		{name: "all", trace: &tracing.Options{Interesting: -1, Ledger: tracing.NewLedger(1)}}}
	for _, v := range variants {
		v.a = testAnswerer(b)
		if v.trace == nil {
			continue
		}
		v.trace.Logger, v.trace.RingSize = slog.New(slog.DiscardHandler), 1<<13
		s, again := w.data.Load().Snapshot, new(gslb.Decision)
		v.trace.Brief = func(q *tracing.Query) tracing.Facts { return DescribeBriefly(s, q, again) }
		r := tracing.New(*v.trace)
		v.a.traceBy(r.Worker(0))
		ctx, cancel := context.WithCancel(b.Context())
		ran, thread := make(chan error), make(chan int)
		go func() {
			runtime.LockOSThread()
			thread <- unix.Gettid()
			ran <- r.Run(ctx)
		}()
		v.drain = <-thread
		defer func() {
			cancel()
			<-ran
			if s := r.Stats(); s.Dropped[tracing.DropRingFull]*1000 > s.Recorded {
				b.Logf("%s: %d of %d records lost: too much else goes on here", v.name, s.Dropped[tracing.DropRingFull], s.Recorded)
			}
		}()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	buf := make([]byte, maxUDPBuffer)
	answerBatch := func() (spent time.Duration) {
		for i := range batch {
			if _, err := unix.Write(client, pkts[i&1]); err != nil {
				b.Fatal(err)
			}
		}
		start := threadTime(b, 0)
		for replies := 0; replies < batch; replies += w.replies {
			if err := w.socket.read(w.receive); err != nil {
				b.Fatal(err)
			}
			w.answer()
		}
		spent = threadTime(b, 0) - start
		for range batch {
			if _, err := unix.Read(client, buf); err != nil {
				b.Fatal(err)
			}
		}
		return spent
	}
	const linger = 1200 * time.Millisecond // more than a batch of spans waits to fill up
	const batches = 16
	for b.Loop() {
		for _, k := range rand.Perm(len(variants)) {
			w.a = variants[k].a
			answerBatch()
			var spent time.Duration
			for range batches {
				spent += answerBatch()
			}
			variants[k].cost = append(variants[k].cost, float64(spent)/(batches*batch))
		}
	}

	runs, queries := 5, 1<<18
	if b.N < 100 { // no measurement
		runs, queries = 1, 1<<12
	}
	drain := func(v *variant) float64 {
		w.a = v.a
		start := threadTime(b, v.drain)
		for range queries / batch {
			answerBatch()
		}
		time.Sleep(linger)
		return float64(threadTime(b, v.drain)-start) / float64(queries)
	}
	others := func(v *variant) float64 {
		known := func() time.Duration {
			t := threadTime(b, 0) + threadTime(b, sink)
			for _, v := range variants {
				if v.trace != nil {
					t += threadTime(b, v.drain)
				}
			}
			return t
		}
		data, from := w.data.Load(), netip.MustParseAddr("192.0.2.53")
		process, start := cpuTime(unix.RUSAGE_SELF), known()
		for i := range 4 * queries {
			if i%batch == 0 {
				v.a.begin(time.Now())
			}
			v.a.serve(data, pkts[i&1], from, false, buf)
		}
		time.Sleep(linger)
		return float64(process()-(known()-start)) / float64(4*queries)
	}
	off := median(variants[0].cost)
	b.ReportMetric(off, "off-ns/query")
	for _, v := range variants[1:] {
		var more []float64
		for i := range v.cost {
			base := variants[0].cost[i]
			if v.trace != nil {
				base = (base + variants[1].cost[i]) / 2
			}
			more = append(more, v.cost[i]-base)
		}
		mid, within := medianInterval(more)
		b.Logf("%-9s worker %+.0f ± %.0f ns", v.name, mid, within)
		if v.trace != nil {
			var drains, rest []float64
			for range runs {
				drains = append(drains, drain(v))
				if v.trace.Endpoint != "" {
					rest = append(rest, others(v)-others(variants[0]))
				}
			}
			b.Logf("%-9s drain %.0f of %.0f, others %.0f of %.0f ns", v.name, median(drains), drains, median(rest), rest)
			mid += median(drains) + median(rest)
		}
		b.Logf("%-9s %+.0f ± %.0f ns of %.0f: %+.1f ± %.1f %%", v.name, mid, within, off, 100*mid/off, 100*within/off)
		b.ReportMetric(100*mid/off, strings.ReplaceAll(v.name, " ", "-")+"-more-%")
	}
}

func median(v []float64) float64 {
	m, _ := medianInterval(v)
	return m
}

// medianInterval returns the median of v, and half the length of its 95 % interval by order statistics.
func medianInterval(v []float64) (mid, within float64) {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0, 0
	}
	n := float64(len(v))
	at := func(x float64) float64 { return v[int(min(max(x, 0), n-1))] }
	return at(n / 2), (at(n/2+0.98*math.Sqrt(n)) - at(n/2-0.98*math.Sqrt(n))) / 2
}

// threadSink runs a collector on a thread of its own, and returns its URL and thread. It ends with the
// test's exporter, which hangs up.
func threadSink(tb testing.TB) (url string, tid int) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	thread := make(chan int)
	go func() {
		runtime.LockOSThread()
		thread <- unix.Gettid()
		conn, err := l.Accept()
		if err != nil {
			return
		}
		f, err := conn.(*net.TCPConn).File() // of which Go's poller does not know
		conn.Close()
		if err != nil {
			return
		}
		defer f.Close()
		unix.SetNonblock(int(f.Fd()), false)
		for in := bufio.NewReaderSize(f, 64<<10); ; {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			io.WriteString(f, "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
		}
	}()
	return "http://" + l.Addr().String(), <-thread
}

// rawClient returns a socket connected to an address that Go's poller does not know: its waking up would
// be in the time of whoever sends to it.
func rawClient(tb testing.TB, to netip.AddrPort) (fd int) {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		tb.Cleanup(func() { unix.Close(fd) })
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	}
	if err != nil {
		tb.Fatal(err)
	}
	return fd
}

// threadTime returns the CPU time of a thread of this process; 0 is the one that asks.
func threadTime(tb testing.TB, tid int) time.Duration {
	clock := int32(unix.CLOCK_THREAD_CPUTIME_ID)
	if tid != 0 {
		clock = ^int32(tid)<<3 | 6 // CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED, as pthread_getcpuclockid(3)
	}
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(t.Nano())
}
