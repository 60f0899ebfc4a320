// Command tracing measures what it costs to trace queries, and what a collector of spans can
// do to the answers. It runs the real DNS server in a process of its own, asks it with
// testdata/bench/load, and prints Markdown:
//
//   - pipelines: ways from the workers to the goroutine that encodes and exports, side by side;
//   - connection: spans on the connection of something else, or on their own;
//   - collectors: what each kind of ill will does to the time of an answer.
//
// Every variant is measured in turn, round after round, so that what else the machine does
// hits all of them alike; the tables show medians.
//
//	go run ./testdata/bench/tracing -rounds 3 -time 2s -out testdata/bench/results/tracing.md
//
// It runs on Linux, on loopback, and ends what it started.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	var o options
	var s serveOptions
	flag.StringVar(&s.pipeline, "serve", "", "serve with that `PIPELINE` until standard input ends; for the command's own use")
	flag.Float64Var(&s.sample, "sample", 0, "with -serve: share of queries that become spans")
	s.sockets, s.window = 16, 4
	flag.IntVar(&s.workers, "workers", 1, "with -serve: workers")
	flag.StringVar(&s.endpoint, "endpoint", "", "with -serve: `URL` of the collector")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each variant is measured")
	flag.DurationVar(&o.time, "time", 2*time.Second, "how long each time")
	flag.StringVar(&o.out, "out", "", "`FILE` to write the tables to (default standard output)")
	flag.StringVar(&o.only, "only", "", "only the `TABLE` pipelines, connection or collectors")
	flag.Parse()
	var err error
	if s.pipeline != "" {
		err = serve(s)
	} else {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tracing:", err)
		os.Exit(1)
	}
}

type options struct {
	rounds int
	time   time.Duration
	out    string
	only   string
}

// bench is one run of the command.
type bench struct {
	options
	self, load string // programs
	out        *bytes.Buffer
}

func run(o options) error {
	dir, err := os.MkdirTemp("", "tracing-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{options: o, load: filepath.Join(dir, "load"), out: new(bytes.Buffer)}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if out, err := exec.Command("go", "build", "-o", b.load, "./testdata/bench/load").CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./testdata/bench/load, from the repository's top: %w: %s", err, out)
	}
	fmt.Fprintf(b.out, "# The cost of tracing\n\nWritten by `go run ./testdata/bench/tracing`; medians of %d rounds of %v, all variants in turn in each round.\n"+
		"Machine: %d cores, %s/%s, %s; load at the beginning %s.\n", o.rounds, o.time, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), loadAverage())
	for _, table := range []struct {
		name string
		run  func() error
	}{{"pipelines", b.pipelines}, {"connection", b.connection}, {"collectors", b.collectors}} {
		if o.only != "" && o.only != table.name {
			continue
		}
		if err := table.run(); err != nil {
			return fmt.Errorf("%s: %w", table.name, err)
		}
	}
	fmt.Fprintf(b.out, "\nLoad at the end %s.\n", loadAverage())
	if o.out == "" {
		_, err = os.Stdout.Write(b.out.Bytes())
		return err
	}
	return os.WriteFile(o.out, b.out.Bytes(), 0o644)
}

func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(b))[:min(3, len(strings.Fields(string(b))))], " ")
}

// figures are what one measurement gives.
type figures struct {
	qps, cpu, answered, p50, p99 float64 // cpu and times in µs
	spans                        float64 // a query
	unrecorded, lost             float64 // shares of queries, and of spans
}

// measure runs one variant for a while.
func (b *bench) measure(s serveOptions) (f figures, err error) {
	cmd := exec.Command(b.self, "-serve", s.pipeline, "-sample", fmt.Sprint(s.sample), "-workers", strconv.Itoa(s.workers), "-endpoint", s.endpoint)
	cmd.Env = append(os.Environ(), "GOMAXPROCS="+strconv.Itoa(max(s.workers, runtime.NumCPU())))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return f, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return f, err
	}
	if err := cmd.Start(); err != nil {
		return f, err
	}
	defer cmd.Wait()
	defer in.Close()
	lines := bufio.NewReader(out)
	addr, err := lines.ReadString('\n')
	if err != nil {
		return f, fmt.Errorf("serve %s: %w", s.pipeline, err)
	}
	report, err := exec.Command(b.load, "-server", strings.TrimSpace(addr), "-pid", strconv.Itoa(cmd.Process.Pid), "-names", "www.example.com",
		"-sockets", strconv.Itoa(s.sockets), "-window", strconv.Itoa(s.window), "-warm", "300ms", "-time", b.time.String(), "-tsv").Output()
	if err != nil {
		return f, fmt.Errorf("load: %w", err)
	}
	values := strings.Fields(string(report))
	if len(values) < 7 {
		return f, fmt.Errorf("load printed %q", report)
	}
	for i, v := range map[int]*float64{0: &f.qps, 1: &f.cpu, 2: &f.answered, 5: &f.p50, 6: &f.p99} {
		if *v, err = strconv.ParseFloat(values[i], 64); err != nil {
			return f, err
		}
	}
	in.Close()
	last, _ := lines.ReadString('\n')
	_, err = fmt.Sscan(last, &f.spans, &f.unrecorded, &f.lost)
	return f, err
}

// rounds measures each of variants in every round, and returns the figures by variant.
func (b *bench) measureAll(variants []serveOptions) ([][]figures, error) {
	out := make([][]figures, len(variants))
	for round := range b.rounds {
		for i, v := range variants {
			if v.pipeline == "" {
				continue
			}
			f, err := b.measure(v)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(os.Stderr, "round %d: %+v: %+v\n", round+1, v, f)
			out[i] = append(out[i], f)
		}
	}
	return out, nil
}

func median(fs []figures, of func(figures) float64) float64 {
	var v []float64
	for _, f := range fs {
		v = append(v, of(f))
	}
	slices.Sort(v)
	if len(v) == 0 {
		return 0
	}
	return v[len(v)/2]
}

// extra is the median, over the rounds, of what a variant costs more than base does in the same
// round, in µs a query.
func extra(base, fs []figures) float64 {
	var v []float64
	for i := range fs {
		v = append(v, fs[i].cpu-base[i].cpu)
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func cpuOf(f figures) float64 { return f.cpu }

// pipelines compares ways from the workers to the one who encodes and exports.
func (b *bench) pipelines() error {
	collector, stop := startCollector("good")
	defer stop()
	workers := []int{1, 2}
	if n := max(4, runtime.NumCPU()); n > 2 {
		workers = append(workers, n)
	}
	var variants []serveOptions
	for _, w := range workers {
		variants = append(variants, serveOptions{pipeline: "none", workers: w, sockets: 16, window: 4})
		for _, sample := range []float64{0.01, 1} {
			for _, p := range pipelineNames {
				variants = append(variants, serveOptions{pipeline: p, sample: sample, workers: w, endpoint: collector, sockets: 16, window: 4})
			}
		}
	}
	all, err := b.measureAll(variants)
	if err != nil {
		return err
	}
	fmt.Fprint(b.out, "\n## Batching without locks\n\nCPU is user and system time of the server's process, collector's side excluded; "+
		"\"more\" is against no tracing in the same round.\n\n"+
		"| workers | pipeline | sampled | CPU µs/query | more, ns/query | more, % | more, ns/span | p50 µs | p99 µs | queries/s | lost % |\n"+
		"|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	var base []figures
	for i, v := range variants {
		f := all[i]
		lost := 100 * median(f, func(f figures) float64 { return f.unrecorded + (1-f.unrecorded)*f.lost })
		line := []string{strconv.Itoa(v.workers), v.pipeline, "–", fmt.Sprintf("%.2f", median(f, cpuOf)), "–", "–", "–"}
		if v.pipeline == "none" {
			base = f
		} else {
			more := extra(base, f)
			line[2] = fmt.Sprintf("%g %%", 100*v.sample)
			line[4] = fmt.Sprintf("%.0f", 1000*more)
			line[5] = fmt.Sprintf("%.1f", 100*more/median(base, cpuOf))
			if spans := median(f, func(f figures) float64 { return f.spans }); v.sample == 1 && spans > 0 {
				line[6] = fmt.Sprintf("%.0f", 1000*more/spans)
			}
		}
		line = append(line, fmt.Sprintf("%.0f", median(f, func(f figures) float64 { return f.p50 })), fmt.Sprintf("%.0f", median(f, func(f figures) float64 { return f.p99 })),
			fmt.Sprintf("%.0f", median(f, func(f figures) float64 { return f.qps })), fmt.Sprintf("%.1f", lost))
		fmt.Fprintf(b.out, "| %s |\n", strings.Join(line, " | "))
	}
	return nil
}

// collectors shows the answers' time beside collectors of every kind.
func (b *bench) collectors() error {
	kinds := []string{"good", "slow", "hanging", "refusing", "lying", "babbling", "nobody"}
	// Few queries under way, so that their time is not that of a queue.
	variants := []serveOptions{{pipeline: "none", workers: 1, sockets: 4, window: 1},
		{pipeline: "ring", sample: 0.05, workers: 1, sockets: 4, window: 1}}
	for _, kind := range kinds {
		endpoint, stop := startCollector(kind)
		defer stop()
		variants = append(variants, serveOptions{pipeline: "ring", sample: 0.05, workers: 1, endpoint: endpoint, sockets: 4, window: 1})
	}
	all, err := b.measureAll(variants)
	if err != nil {
		return err
	}
	fmt.Fprint(b.out, "\n## Collectors\n\nOne worker, ring, 5 % of queries sampled, four queries under way. Spans are lost and counted; answers are neither late nor missing.\n\n"+
		"| collector | answered % | p50 µs | p99 µs | queries/s | CPU µs/query | lost % of spans |\n|---|--:|--:|--:|--:|--:|--:|\n")
	for i := range variants {
		kind := append([]string{"no tracing", "none: memory only"}, kinds...)[i]
		f := all[i]
		fmt.Fprintf(b.out, "| %s | %.2f | %.0f | %.0f | %.0f | %.2f | %.1f |\n", kind, median(f, func(f figures) float64 { return f.answered }),
			median(f, func(f figures) float64 { return f.p50 }), median(f, func(f figures) float64 { return f.p99 }),
			median(f, func(f figures) float64 { return f.qps }), median(f, cpuOf), 100*median(f, func(f figures) float64 { return f.lost }))
	}
	return nil
}

// startCollector runs a collector of that kind on loopback and returns its URL.
func startCollector(kind string) (url string, stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err) // loopback has a free port
	}
	url = "http://" + l.Addr().String()
	if kind == "nobody" {
		l.Close()
		return url, func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch kind {
		case "hanging": // reads nothing and says nothing
			select {
			case <-r.Context().Done():
			case <-ctx.Done():
			}
			return
		case "slow":
			for buf := make([]byte, 4<<10); ; {
				if _, err := r.Body.Read(buf); err != nil {
					break
				}
				select {
				case <-time.After(10 * time.Millisecond):
				case <-ctx.Done():
					return
				}
			}
		default:
			io.Copy(io.Discard, r.Body)
		}
		switch kind {
		case "refusing":
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		case "lying": // takes all, and says that it took nothing
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"partialSuccess":{"rejectedSpans":"9223372036854775807","errorMessage":"no"}}`)
		case "babbling":
			w.Header().Set("Content-Type", "application/x-protobuf")
			w.Write(bytes.Repeat([]byte{0xff}, 1<<20))
		default:
			w.Header().Set("Content-Type", "application/x-protobuf")
		}
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "collector:", err)
		}
	}()
	return url, func() { cancel(); s.Close(); <-done }
}
