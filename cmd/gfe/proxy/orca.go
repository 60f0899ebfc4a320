package proxy

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	orcadata "github.com/cncf/xds/go/xds/data/orca/v3"
	orcaservice "github.com/cncf/xds/go/xds/service/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// OutOfBand says how endpoints are asked for their load beside requests (ORCA,
// xds.service.orca.v3.OpenRcaService). The zero value is not at all.
type OutOfBand struct {
	Every   time.Duration // between two reports; endpoints may say it less often
	Metrics []string      // of the reports, in the words of lrs_report_endpoint_metrics
}

func (o OutOfBand) equal(p OutOfBand) bool {
	return o.Every == p.Every && strings.Join(o.Metrics, " ") == strings.Join(p.Metrics, " ")
}

// Bounds of what endpoints may say, and of what a proxy asks.
const (
	maxOutOfBand  = 1024 // streams
	maxMetrics    = 32   // of one endpoint
	maxMetric     = 1e9
	maxMetricName = 256
	maxReport     = 64 << 10         // octets
	slowestReport = 30 * time.Second // what servers of gRPC Go allow at most
)

// How long to wait before an endpoint is asked again: doubling, with jitter. One that does not
// know the service is asked again only to find that it was replaced.
const (
	minReask = time.Second
	maxReask = 2 * time.Minute
)

// outOfBand is one stream of reports for each endpoint of an assignment. Only the goroutine
// that assigns uses it.
type outOfBand struct {
	of      OutOfBand
	streams map[*peer]oobStream
}

type oobStream struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// follow ends the streams of peers that named does not hold, and opens those that are missing.
// Over maxOutOfBand endpoints some are not asked.
func (b *outOfBand) follow(u *Upstream, of OutOfBand, named map[*peer]bool) {
	var over []oobStream
	for p, s := range b.streams {
		if !named[p] || !of.equal(b.of) {
			s.cancel()
			over = append(over, s)
			delete(b.streams, p)
		}
	}
	for _, s := range over { // so that no two streams write to one peer
		<-s.done
	}
	b.of = of
	if of.Every <= 0 {
		return
	}
	if b.streams == nil {
		b.streams = map[*peer]oobStream{}
	}
	for p := range named {
		if b.streams[p].done != nil {
			continue
		}
		if len(b.streams) == maxOutOfBand {
			u.c.Log.Warn("too many endpoints to ask all for their load", "pool", u.c.Pool, "endpoints", len(named), "asked", maxOutOfBand)
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		s := oobStream{cancel, make(chan struct{})}
		b.streams[p] = s
		go func() {
			defer close(s.done)
			u.ask(ctx, p, of)
		}()
	}
}

// ask keeps what p says of itself until ctx ends.
func (u *Upstream) ask(ctx context.Context, p *peer, of OutOfBand) {
	defer p.metrics.Store(nil)
	conn, err := grpc.NewClient("passthrough:///"+p.addr.String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // as requests go
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReport)), grpc.WithNoProxy())
	if err != nil {
		u.c.Log.Warn("endpoint cannot be asked for its load", "pool", p.pool.name, "endpoint", p.addr, "err", err)
		return
	}
	defer conn.Close()
	backoff := minReask
	for last := codes.OK; ; {
		err := u.listen(ctx, conn, p, of, func() { backoff, last = minReask, codes.OK })
		p.metrics.Store(nil) // what is not renewed is not known
		if ctx.Err() != nil {
			return
		}
		code := status.Code(err)
		level := slog.LevelDebug // of what health checks say as well
		if code == codes.Unimplemented {
			backoff, level = maxReask, slog.LevelInfo
		}
		if code != last { // once a change
			u.c.Log.Log(ctx, level, "endpoint does not tell its load", "pool", p.pool.name, "endpoint", p.addr, "err", err)
			last = code
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff/2 + rand.N(backoff)):
		}
		backoff = min(2*backoff, maxReask)
	}
}

// listen reads one stream of reports until it breaks or is silent for three periods, and
// calls heard with each.
func (u *Upstream) listen(ctx context.Context, conn *grpc.ClientConn, p *peer, of OutOfBand, heard func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	patience := 3 * max(of.Every, slowestReport)
	silence := time.AfterFunc(patience, cancel)
	defer silence.Stop()
	st, err := orcaservice.NewOpenRcaServiceClient(conn).StreamCoreMetrics(ctx, &orcaservice.OrcaLoadReportRequest{
		ReportInterval: durationpb.New(of.Every),
	})
	if err != nil {
		return err
	}
	for {
		report, err := st.Recv()
		if err != nil {
			return err
		}
		silence.Reset(patience)
		heard()
		m := readReport(report, of.Metrics)
		p.metrics.Store(&m)
	}
}

// readReport returns the metrics of a report that have one of those names: a field, or
// named_metrics.x and utilization.x of the entry x of one, named_metrics.* of all. What is no
// number from 0 to maxMetric is left out, as are fields of 0: they say nothing.
func readReport(r *orcadata.OrcaLoadReport, names []string) map[string]float64 {
	out := map[string]float64{}
	add := func(name string, v float64) {
		if v >= 0 && v <= maxMetric && len(name) <= maxMetricName && len(out) < maxMetrics { // NaN is outside
			out[name] = v
		}
	}
	for _, name := range names {
		field, key, entry := strings.Cut(name, ".")
		one, entries := metric(r, field)
		switch {
		case one != nil && !entry && *one != 0:
			add(name, *one)
		case entries != nil && entry && key == "*":
			for k, v := range *entries {
				add(field+"."+k, v)
			}
		case entries != nil && entry:
			if v, ok := (*entries)[key]; ok {
				add(name, v)
			}
		}
	}
	return out
}

// metric returns where r has the metric of that name: a number, or entries of a map; nil and nil
// if ORCA knows none of it.
func metric(r *orcadata.OrcaLoadReport, field string) (one *float64, entries *map[string]float64) {
	switch field {
	case "cpu_utilization":
		return &r.CpuUtilization, nil
	case "mem_utilization":
		return &r.MemUtilization, nil
	case "application_utilization":
		return &r.ApplicationUtilization, nil
	case "rps_fractional":
		return &r.RpsFractional, nil
	case "eps":
		return &r.Eps, nil
	case "utilization":
		return nil, &r.Utilization
	case "named_metrics":
		return nil, &r.NamedMetrics
	}
	return nil, nil
}

// means returns the means of what peers say of themselves, by pool and metric: over the
// endpoints that say it, however many requests each has.
func means(peers map[peerID]*peer) map[*pool]map[string]float64 {
	sums := map[*pool]map[string]tally{}
	for _, p := range peers {
		said := p.metrics.Load()
		if said == nil {
			continue
		}
		of := sums[p.pool]
		if of == nil {
			of = map[string]tally{}
			sums[p.pool] = of
		}
		for name, v := range *said {
			if s, known := of[name]; known || len(of) < maxMetrics {
				of[name] = tally{s.total + v, s.n + 1}
			}
		}
	}
	out := map[*pool]map[string]float64{}
	for p, of := range sums {
		out[p] = map[string]float64{}
		for name, s := range of {
			out[p][name] = s.total / s.n
		}
	}
	return out
}
