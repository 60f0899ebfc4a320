package xds

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/meridian-gslb/meridian/gslb"
)

// A large deployment of one edge pool.
const (
	benchClients   = 300
	benchClusters  = 200
	benchEndpoints = 20
)

// benchText is a pool with that many upstreams, each a pool of its own.
func benchText(clusters, endpoints int) string {
	var b strings.Builder
	b.WriteString(sites + "pools:\n  gfe:\n    site: eu-1\n    port: 80\n    endpoints: [{address: 192.0.2.1}]\n    proxy:\n      upstreams:\n")
	for i := range clusters {
		fmt.Fprintf(&b, "        u%03d: p%03d\n", i, i)
	}
	for i := range clusters {
		fmt.Fprintf(&b, "  p%03d: {site: eu-1, probe: accept, port: 81, endpoints: [", i)
		for j := range endpoints {
			fmt.Fprintf(&b, "{address: 10.%d.%d.%d}, ", i/256, i%256, j+1)
		}
		b.WriteString("]}\n")
	}
	return b.String()
}

// benchWorlds returns how to make worlds quickly: the n-th has one endpoint of the first
// pool down when n is odd.
func benchWorlds(b testing.TB, clusters, endpoints int) func(n int) *World {
	o := objects(b, benchText(clusters, endpoints))
	verdicts := map[gslb.EndpointID]gslb.Verdict{}
	for _, p := range o.Names("pools") {
		for _, e := range o.Pools[p].Endpoints {
			verdicts[gslb.EndpointID{Pool: p, Addr: e.Address}] = gslb.Up
		}
	}
	flip := gslb.EndpointID{Pool: "p000", Addr: o.Pools["p000"].Endpoints[0].Address}
	var s *gslb.Snapshot
	var w *World
	return func(n int) *World {
		verdicts[flip] = gslb.Up
		if n%2 == 1 {
			verdicts[flip] = gslb.Down
		}
		var err error
		if s, err = gslb.Build(s, gslb.Inputs{Revision: uint64(n + 1), Objects: o, Verdicts: maps.Clone(verdicts), Now: time.Unix(1e9, 0)}); err != nil {
			b.Fatal(err)
		}
		w = Build(w, Inputs{Snapshot: s, Objects: o})
		return w
	}
}

// BenchmarkBuild makes the world of a large deployment after one flip of health.
func BenchmarkBuild(b *testing.B) {
	next := benchWorlds(b, benchClusters, benchEndpoints)
	next(0)
	n := 0
	for b.Loop() {
		n++
		next(n)
	}
}

// cpu returns the processor time of this process.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchClient follows all clusters and endpoints of gfe over one connection, and says on
// acked each time that it has acknowledged endpoints.
func benchClient(ctx context.Context, addr, id string, names []string, ready func(), acked func()) error {
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithReadBufferSize(bufferSize), grpc.WithWriteBufferSize(bufferSize), grpc.WithSharedWriteBuffer(true))
	if err != nil {
		return err
	}
	defer cc.Close()
	st, err := discovery.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	node := &core.Node{Id: id, Cluster: "gfe", UserAgentName: "envoy"}
	if err := st.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: Clusters.URL()}); err != nil {
		return err
	}
	if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: Endpoints.URL(), ResourceNamesSubscribe: names}); err != nil {
		return err
	}
	seen := 0
	for {
		res, err := st.Recv()
		if err != nil {
			return err
		}
		if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: res.TypeUrl, ResponseNonce: res.Nonce}); err != nil {
			return err
		}
		if seen++; seen == 2 {
			ready()
		} else if seen > 2 {
			acked()
		}
	}
}

// clientsOf, in the environment, has the test program be clients of the server at that address.
const clientsOf = "XDS_BENCH_CLIENTS"

func TestMain(m *testing.M) {
	if addr := os.Getenv(clientsOf); addr != "" {
		if err := followAll(addr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// followAll runs the clients of a benchmark until standard input ends. The input is a line of their
// number and one of the names they subscribe to; the output is a line when all are ready, and one each
// time that all have acknowledged endpoints.
func followAll(addr string) error {
	var clients int
	in := bufio.NewReader(os.Stdin)
	if _, err := fmt.Fscanln(in, &clients); err != nil {
		return err
	}
	line, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	names := strings.Fields(line)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	var said atomic.Int64 // ready, and acknowledgements
	tell := func() {
		if said.Add(1)%int64(clients) == 0 {
			fmt.Println()
		}
	}
	failed := make(chan error, clients)
	for i := range clients {
		go func() { failed <- benchClient(ctx, addr, fmt.Sprint("gfe-", i), names, tell, tell) }()
	}
	err = <-failed
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// BenchmarkPush flips the health of one endpoint for 300 proxies that follow 200 clusters of
// 20 endpoints each: every proxy is sent one assignment. It reports the time to the last
// acknowledgement, the server's processor time of a push and memory of a client: the clients are
// another process.
func BenchmarkPush(b *testing.B) { benchPush(b, benchClients, benchClusters, benchEndpoints) }

func benchPush(b *testing.B, clients, clusters, endpoints int) (worst time.Duration, perPush time.Duration) {
	s := serve(b, Options{Coalesce: time.Millisecond})
	next := benchWorlds(b, clusters, endpoints)
	w := next(0)
	s.Set(w)
	names := w.View("gfe").Names(Envoy, Endpoints)
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	peers := exec.Command(os.Args[0])
	peers.Env = append(os.Environ(), clientsOf+"="+s.Addr().String())
	peers.Stderr = os.Stderr
	in, err := peers.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := peers.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := peers.Start(); err != nil {
		b.Fatal(err)
	}
	defer peers.Wait()
	defer in.Close()
	if _, err := fmt.Fprintf(in, "%d\n%s\n", clients, strings.Join(names, " ")); err != nil {
		b.Fatal(err)
	}
	lines := bufio.NewReader(out)
	told := func() { // by all clients
		if _, err := lines.ReadString('\n'); err != nil {
			b.Fatal(err)
		}
	}
	told()
	var after runtime.MemStats
	for range 3 { // what is pooled goes with the second
		runtime.GC()
	}
	runtime.ReadMemStats(&after)
	perClient := float64(after.HeapAlloc+after.StackInuse-before.HeapAlloc-before.StackInuse) / float64(clients) / 1024

	var took []time.Duration
	var spent time.Duration
	n := 0
	for b.Loop() {
		n++
		b.StopTimer()
		w := next(n)
		used := cpu()
		b.StartTimer()
		start := time.Now()
		s.Set(w)
		told()
		took = append(took, time.Since(start))
		spent += cpu() - used
	}
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	perPush = spent / time.Duration(n*clients)
	b.ReportMetric(float64(p99.Microseconds())/1000, "p99-ms/flip")
	b.ReportMetric(float64(perPush.Nanoseconds())/1000, "cpu-µs/push")
	b.ReportMetric(perClient, "KiB/client")
	return took[len(took)-1], perPush
}
