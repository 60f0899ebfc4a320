package dns

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/tracing"
)

// BenchmarkTraced is the path of a query without its system calls, with and without tracing, in
// processor time of the whole process: worker, drain, encoder, the memory, exporter, and the
// collector's side but for "unsent". What a row has more than "off" is what tracing costs a query;
// "all" records every query, for a ledger that has no use for them.
func BenchmarkTraced(b *testing.B) {
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer sink.Close()
	d := loadWorld(b).data(b)
	pkts := [][]byte{ask(b, "www.example.com", "A", withECS("198.51.100.0/24")), ask(b, "www.example.com", "A", withECS("192.0.2.0/24"))}
	from := netip.MustParseAddr("192.0.2.53")
	for _, tc := range []struct {
		name    string
		options *tracing.Options
	}{
		{"off", nil},
		{"none", &tracing.Options{Interesting: -1}},
		{"sample=0.01,unsent", &tracing.Options{Interesting: -1, Sample: 0.01}},
		{"sample=0.01", &tracing.Options{Interesting: -1, Sample: 0.01}},
		{"all,sample=0", &tracing.Options{Interesting: -1, Ledger: tracing.NewLedger(1)}},
		{"all,sample=0.01", &tracing.Options{Interesting: -1, Sample: 0.01, Ledger: tracing.NewLedger(1)}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			a := testAnswerer(b)
			stop := func() {}
			if tc.options != nil {
				o := *tc.options
				if !strings.HasSuffix(tc.name, "unsent") {
					o.Endpoint = sink.URL
				}
				o.Logger, o.RingSize = slog.New(slog.DiscardHandler), 1<<13 // a burst of this loop is longer than one of the network
				r := tracing.New(o)
				a.traceBy(r.Worker(0))
				ctx, cancel := context.WithCancel(b.Context())
				ran := make(chan error)
				go func() { ran <- r.Run(ctx) }()
				stop = func() { cancel(); <-ran }
			}
			buf := make([]byte, maxUDPBuffer)
			before := processTime(b)
			for i := 0; b.Loop(); i++ {
				if i%16 == 0 && a.trace != nil { // a batch
					a.begin(time.Now())
				}
				a.serve(d, pkts[i&1], from, false, buf)
			}
			stop()
			b.ReportMetric(float64(processTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

func processTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
