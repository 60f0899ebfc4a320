package dns

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meridian-gslb/meridian/tracing"
)

// BenchmarkTracedShare is what tracing adds to the CPU time of a query over a real socket: of the
// worker's thread between two batches, and of every thread that is not it (drain, exporter, and the
// collector's side as well). The variants take turns, 4,096 queries each a round, so that what else
// the machine does hits them alike; lower quartiles are compared, which that hits least.
//
//	go test ./dns -run '^$' -bench TracedShare -benchtime 400x
func BenchmarkTracedShare(b *testing.B) {
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer sink.Close()
	w, client := testWorker(b)
	client.SetDeadline(time.Now().Add(time.Hour))
	pkts := [][]byte{ask(b, "www.example.com", "A", withECS("198.51.100.0/24")), ask(b, "www.example.com", "A", withECS("192.0.2.0/24"))}

	names := []string{"off", "1%", "all"}
	answerers := []*answerer{w.a, testAnswerer(b), testAnswerer(b)}
	for i, a := range answerers[1:] {
		r := tracing.New(tracing.Options{Interesting: -1, Sample: []float64{0.01, 0}[i], Endpoint: sink.URL, RingSize: 1 << 13, Logger: slog.New(slog.DiscardHandler)})
		a.trace = r.Worker(0)
		if names[i+1] == "all" {
			a.trace = allOf{r.Worker(0)}
		}
		ctx, cancel := context.WithCancel(b.Context())
		ran := make(chan error)
		go func() { ran <- r.Run(ctx) }()
		defer func() { cancel(); <-ran }()
	}
	// As on the one core of a worker. With more, a thread that waits for the network wakes for every
	// packet of a client in the same process.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf := make([]byte, maxUDPBuffer)
	const queries = 1 << 12
	cost := func(a *answerer) float64 { // ns a query
		w.a = a
		var worker time.Duration
		process, thread := cpuTime(unix.RUSAGE_SELF), cpuTime(unix.RUSAGE_THREAD)
		for range queries / batch {
			for i := range batch {
				if _, err := client.Write(pkts[i&1]); err != nil {
					b.Fatal(err)
				}
			}
			spent := cpuTime(unix.RUSAGE_THREAD)
			for replies := 0; replies < batch; replies += w.replies {
				if err := w.socket.read(w.receive); err != nil {
					b.Fatal(err)
				}
				w.answer()
			}
			worker += spent()
			for range batch {
				if _, err := client.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		}
		time.Sleep(30 * time.Millisecond) // for the drain
		others := process() - thread()
		return float64(worker+max(others, 0)) / queries
	}
	of := make([][]float64, len(names))
	for round := 0; b.Loop(); round++ {
		for k := range names {
			k = (k + round) % len(names)
			of[k] = append(of[k], cost(answerers[k]))
		}
	}
	for k, name := range names {
		slices.Sort(of[k])
		off, on := of[0][len(of[0])/4], of[k][len(of[k])/4]
		if k == 0 {
			b.ReportMetric(off, "off-ns/query")
		} else {
			b.ReportMetric(100*(on/off-1), name+"-more-%")
		}
	}
}
