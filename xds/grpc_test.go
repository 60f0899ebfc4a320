package xds

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	grpcxds "google.golang.org/grpc/xds"

	"github.com/meridian-gslb/meridian/xds/bootstrap"
)

// The tests of this file run a real gRPC client, proxyless, against the server.

// grpcBackend is a gRPC server on loopback that says its load (ORCA).
type grpcBackend struct {
	addr string
}

func runGRPC(t testing.TB, host string) *grpcBackend {
	t.Helper()
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(orca.CallMetricsServerOption(nil), grpc.ChainUnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if r := orca.CallMetricsRecorderFromContext(ctx); r != nil {
				r.SetCPUUtilization(0.25)
			}
			return handler(ctx, req)
		}))
	healthpb.RegisterHealthServer(g, health.NewServer())
	done := make(chan struct{})
	go func() { g.Serve(l); close(done) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return &grpcBackend{addr: l.Addr().String()}
}

func (b *grpcBackend) yaml() string {
	host, port, _ := net.SplitHostPort(b.addr)
	return fmt.Sprintf("{address: %s, port: %s}", host, port)
}

// grpcClient dials xds:///target with the bootstrap of pool fe.
func grpcClient(t testing.TB, target string, servers ...string) *grpc.ClientConn {
	t.Helper()
	text, err := bootstrap.Proxy{ID: "fe-1", Pool: "fe", Site: "eu-1", Servers: servers}.GRPC()
	if err != nil {
		t.Fatal(err)
	}
	r, err := grpcxds.NewXDSResolverWithConfigForTesting([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	cc, err := grpc.NewClient("xds:///"+target, grpc.WithResolvers(r), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

// call does one call and returns the address that answered.
func call(cc *grpc.ClientConn) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var p peer.Peer
	_, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(&p), grpc.WaitForReady(true))
	if err != nil {
		return "", err
	}
	return p.Addr.String(), nil
}

// calls does n calls and counts who answered.
func calls(t testing.TB, cc *grpc.ClientConn, n int) map[string]int {
	t.Helper()
	out := map[string]int{}
	for range n {
		addr, err := call(cc)
		if err != nil {
			t.Fatal(err)
		}
		out[addr]++
	}
	return out
}

func grpcFleet(eu, us *grpcBackend, upstream string) string {
	return sites + fmt.Sprintf(`
pools:
  fe: {site: eu-1, port: 80, endpoints: [{address: 192.0.2.1}], upstream: %s, proxy: {upstreams: {api: be-us}}}
  be-eu: {site: eu-1, probe: accept, capacity: 300, endpoints: [%s]}
  be-us: {site: us, probe: accept, capacity: 100, endpoints: [%s]}
`, upstream, eu.yaml(), us.yaml())
}

// TestGRPC runs a proxyless client through what a fleet does: the nearest pool, failover and
// back, weights, a second target over the same stream (P1), a target that there is not (P3),
// and load reports with ORCA.
func TestGRPC(t *testing.T) {
	s := serve(t, Options{Report: 200 * time.Millisecond})
	eu, us := runGRPC(t, "127.0.0.2"), runGRPC(t, "127.0.0.3")
	text := grpcFleet(eu, us, "[be-eu, be-us]")
	w := world(t, nil, text, state{})
	s.Set(w)
	cc := grpcClient(t, "upstream", s.Addr().String())
	// What there is not is told to the client at once, but it believes it after 15 s only, as
	// its specification says (gRFC A53).
	nobody := make(chan error, 1)
	missing := grpcClient(t, "nobody", s.Addr().String())
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		_, err := healthpb.NewHealthClient(missing).Check(ctx, &healthpb.HealthCheckRequest{})
		nobody <- err
	}()
	if got := calls(t, cc, 20); got[eu.addr] != 20 {
		t.Errorf("calls %v, want all at %s", got, eu.addr)
	}
	to := func(want string) {
		t.Helper()
		eventually(t, 20*time.Second, func() string {
			if got, err := call(cc); err != nil || got != want {
				return fmt.Sprintf("%s answers, %v; want %s", got, err, want)
			}
			return ""
		})
	}
	w = world(t, w, text, state{down: []string{"be-eu/127.0.0.2"}})
	s.Set(w)
	to(us.addr)
	w = world(t, w, text, state{})
	s.Set(w)
	to(eu.addr)

	second := grpcClient(t, "api", s.Addr().String())
	if got := calls(t, second, 5); got[us.addr] != 5 {
		t.Errorf("the second target: calls %v, want all at %s", got, us.addr)
	}
	text = grpcFleet(eu, us, "{pools: {be-eu: {}, be-us: {}}, mode: spray-to-world}")
	w = world(t, w, text, state{})
	s.Set(w)
	eventually(t, 30*time.Second, func() string {
		got := calls(t, cc, 400)
		if n := got[us.addr]; n > 60 && n < 140 {
			return ""
		}
		return fmt.Sprintf("calls %v; want a quarter at %s", got, us.addr)
	})
	w = world(t, w, strings.Replace(text, "mode: spray-to-world", "mode: spray-to-world, outlierDetection: {consecutive5xx: 3}", 1), state{})
	s.Set(w) // the cluster changes, its endpoints do not (P2)
	eventually(t, 20*time.Second, func() string {
		for _, c := range s.Clients() {
			if c.Revision == w.Revision && c.Protocol == "sotw" && strings.HasPrefix(c.Agent, "gRPC") {
				return ""
			}
		}
		return fmt.Sprintf("clients %+v; want revision %d", s.Clients(), w.Revision)
	})
	calls(t, cc, 20)
	eventually(t, 20*time.Second, func() string {
		for _, l := range s.Loads() {
			if l.To == "be-us" && l.Rate > 0 && near(l.Metrics["cpu_utilization"], 0.25) {
				return ""
			}
		}
		calls(t, cc, 20)
		return fmt.Sprintf("loads %+v; want some at be-us with the ORCA report", s.Loads())
	})
	if err := <-nobody; status.Code(err) != codes.Unavailable {
		t.Errorf("a target that there is not: %v; want it unavailable", err)
	}
	for _, c := range s.Clients() {
		for _, ts := range c.Types {
			if ts.Rejected != nil {
				t.Errorf("%s rejected %s: %s", c.ID, ts.Type, ts.Rejected.Reason)
			}
		}
	}
}

// TestGRPCRestart calls on while the server is replaced by one without a past (P5), whose
// configuration differs.
func TestGRPCRestart(t *testing.T) {
	a := New(Options{Addr: "127.0.0.1:0"})
	stop := start(t, a)
	eu, us := runGRPC(t, "127.0.0.2"), runGRPC(t, "127.0.0.3")
	a.Set(world(t, nil, grpcFleet(eu, us, "[be-eu, be-us]"), state{revision: 4}))
	r := newRelay(t, a.Addr().String())
	cc := grpcClient(t, "upstream", r.l.Addr().String())
	calls(t, cc, 5)
	var wg sync.WaitGroup
	var failed error
	end := make(chan struct{})
	n := 0
	wg.Go(func() {
		for failed == nil {
			select {
			case <-end:
				return
			default:
			}
			_, failed = call(cc)
			n++
		}
	})
	stop()
	r.lead("", 0)
	b := serve(t, Options{})
	b.Set(world(t, nil, grpcFleet(eu, us, "be-us"), state{revision: 4}))
	r.lead(b.Addr().String(), 0)
	eventually(t, 40*time.Second, func() string {
		if got, err := call(cc); err != nil || got != us.addr {
			return fmt.Sprintf("%s answers, %v; want %s", got, err, us.addr)
		}
		return ""
	})
	close(end)
	wg.Wait()
	if failed != nil {
		t.Errorf("after %d calls one failed: %v", n, failed)
	}
}

// TestGRPCInACrowd tries P4 and P6 with a proxyless client: beside clients that read nothing
// and acknowledge nothing it follows a row of changes to the last, and what it has not asked
// for is not sent to it.
func TestGRPCInACrowd(t *testing.T) {
	s := serve(t, Options{})
	eu, us := runGRPC(t, "127.0.0.2"), runGRPC(t, "127.0.0.3")
	text := grpcFleet(eu, us, "[be-eu, be-us]")
	w := world(t, nil, text, state{})
	s.Set(w)
	crowd(t, s, "fe")
	cc := grpcClient(t, "upstream", s.Addr().String())
	calls(t, cc, 5)
	down := state{down: []string{"be-eu/127.0.0.2"}}
	for i := range 100 {
		st := state{}
		if i%2 == 0 {
			st = down
		}
		w = world(t, w, grpcFleet(eu, us, fmt.Sprintf("{pools: {be-eu: {}, be-us: {}}, outlierDetection: {consecutive5xx: %d}}", i%7+1)), st)
		s.Set(w)
	}
	w = world(t, w, text, down)
	s.Set(w)
	currentOf(t, s, w, "fe-1")
	eventually(t, patience, func() string { // what it has taken it uses a moment later
		if got := calls(t, cc, 20); got[us.addr] != 20 {
			return fmt.Sprintf("calls %v, want all at %s", got, us.addr)
		}
		return ""
	})
	before := s.Stats().Pushes
	w = world(t, w, strings.Replace(text, "api: be-us", "api: be-eu", 1), down) // another target's
	s.Set(w)
	currentOf(t, s, w, "fe-1")
	if n := s.Stats().Pushes - before; n != 0 {
		t.Errorf("%d responses were sent for a target that it does not use", n)
	}
}
