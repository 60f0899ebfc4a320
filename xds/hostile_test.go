package xds

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	loadstats "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// The tests of this file are clients that mean harm, or are broken: what the server keeps of
// them is bounded, and the others are served.

// kept returns how much of the heap is in use, in octets.
func kept() int {
	runtime.GC()
	runtime.GC() // what pools hold goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestLargeWordsAreNotKept connects clients with nodes and refusals of megabytes.
func TestLargeWordsAreNotKept(t *testing.T) {
	s := serve(t, Options{})
	s.Set(world(t, nil, three(1, ""), state{}))
	const clients, size = 12, 2 << 20
	var streams []*deltaStream
	before := kept()
	func() {
		c := dial(t, s, "gfe")
		for i := range clients {
			c.node = &core.Node{Id: "i" + strings.Repeat("d", size/2), Cluster: "gfe", UserAgentName: "envoy", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
				fmt.Sprint(i): structpb.NewStringValue(strings.Repeat("m", size/2)),
			}}}
			d := c.delta()
			d.subscribe(Endpoints, "a@gfe")
			res := d.receive(Endpoints)
			d.send(Endpoints, &discovery.DeltaDiscoveryRequest{ResponseNonce: res.Nonce, ErrorDetail: &rpcstatus.Status{Message: strings.Repeat("é", size/2)}})
			d.subscribe(Clusters, "a")
			d.next(Clusters) // so that it has read what came before
			streams = append(streams, d)
		}
		c.node = nil
	}()
	if grown := kept() - before; grown > clients*size/4 {
		t.Errorf("%d clients, each with %d MiB of node and as much of reasons, keep %d MiB", clients, size>>20, grown>>20)
	}
	for _, c := range s.Clients() {
		for _, ts := range c.Types {
			if r := ts.Rejected; r != nil && (len(r.Reason) > maxReason || len(r.Reason) < maxReason-2 || strings.Trim(r.Reason, "é") != "") {
				t.Fatalf("a reason of %d octets, want %d: %.80q", len(r.Reason), maxReason, r.Reason)
			}
		}
	}
	runtime.KeepAlive(streams)
}

// TestNamesAreBounded asks for more names than a server keeps, over many streams: those who
// ask for most are told, all others are served.
func TestNamesAreBounded(t *testing.T) {
	s := New(Options{Addr: "127.0.0.1:0"})
	s.most = 4 << 20
	start(t, s)
	s.Set(world(t, nil, three(1, ""), state{}))
	c := dial(t, s, "gfe")
	var refused error
	for i := range 100 {
		d := c.delta()
		names := make([]string, 1000)
		for j := range names {
			names[j] = fmt.Sprintf("%d.%d.%s", i, j, strings.Repeat("n", 500))
		}
		d.subscribe(Endpoints, names...)
		if _, refused = d.st.Recv(); refused != nil {
			break
		}
	}
	if status.Code(refused) != codes.ResourceExhausted || !strings.Contains(refused.Error(), "expected fewer") {
		t.Fatalf("error %v, want one that says that there are too many names", refused)
	}
	other := dial(t, s, "gfe").delta()
	other.subscribe(Endpoints, "a@gfe", "upstream@gfe")
	expect(t, "another", deltaText(other.next(Endpoints)), "a@gfe upstream@gfe")
	c.close()
	other.close()
	eventually(t, patience, func() string {
		if n := s.held.Load(); n != 0 || len(s.Clients()) > 0 {
			return fmt.Sprintf("%d octets are counted when all have gone", n)
		}
		return ""
	})
}

// TestNamesAreCounted drives sessions at random: what is counted is what is kept.
func TestNamesAreCounted(t *testing.T) {
	v := world(t, nil, three(1, ""), state{}).View("gfe")
	for seed := range 100 {
		r := newRand(uint64(seed))
		s := &session{sotw: seed%2 == 1}
		pick := func() (out []string) {
			for range r.IntN(4) {
				out = append(out, strings.Repeat("n", 1+r.IntN(5)))
			}
			return out
		}
		for range 30 {
			if s.sotw {
				s.sotwRequest(&discovery.DiscoveryRequest{TypeUrl: Endpoints.URL(), ResourceNames: pick()}, time.Time{})
			} else {
				s.deltaRequest(&discovery.DeltaDiscoveryRequest{TypeUrl: Endpoints.URL(), ResourceNamesSubscribe: pick(), ResourceNamesUnsubscribe: pick()}, time.Time{})
			}
			if u := s.pending(v, Endpoints); !u.empty() {
				s.record(Endpoints, u, "v")
			}
			want := 0
			for n := range s.watches[Endpoints].names {
				want += len(n) + nameCost
			}
			if got := s.octets(); got != want {
				t.Fatalf("seed %d: %d octets, want %d", seed, got, want)
			}
		}
	}
}

// TestEndlessRefusals refuses whatever comes and asks again at once: it is in the status, not
// a flood of the log.
func TestEndlessRefusals(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	now := time.Unix(1e9, 0)
	s := serve(t, Options{Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, nil))})
	s.Set(world(t, nil, three(1, ""), state{}))
	d := dial(t, s, "gfe").delta()
	d.subscribe(Endpoints, "a@gfe")
	const n = 300
	for i := range n {
		res := d.receive(Endpoints)
		d.send(Endpoints, &discovery.DeltaDiscoveryRequest{
			ResponseNonce: res.Nonce, ErrorDetail: &rpcstatus.Status{Message: fmt.Sprintf("refusal %d", i)}, ResourceNamesSubscribe: []string{"a@gfe"},
		})
	}
	d.receive(Endpoints)
	eventually(t, 10*time.Second, func() string { // the last is counted after the answer to it
		if got := s.Stats().Rejections; got != n {
			return fmt.Sprintf("%d refusals are counted, want %d", got, n)
		}
		return ""
	})
	mu.Lock()
	defer mu.Unlock()
	if lines := strings.Count(log.String(), "\n"); lines != 1 {
		t.Errorf("%d lines of log for %d refusals in one moment, want 1", lines, n)
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

// TestStuckReaders connects proxies that ask for more than a window and take none of it. The
// server keeps a bounded part of it for each, however much changes, and serves another all the
// while; when they have taken nothing for a time their connections are closed, and they are named.
func TestStuckReaders(t *testing.T) {
	const clients, endpoints = 16, 3000
	text := func(weight int) string {
		list := make([]string, endpoints)
		for i := range list {
			list[i] = fmt.Sprintf("{address: 10.1.%d.%d}", i/256, i%256)
		}
		small := fmt.Sprintf("{address: 10.0.0.1, weight: %d}", weight)
		return strings.Replace(three(weight, ""), small, small+", "+strings.Join(list, ", "), 1)
	}
	names := []string{"a@gfe", "b@gfe", "upstream@gfe"}
	// stuck connects those who take nothing.
	stuck := func(t *testing.T, s *Server) {
		for i := range clients {
			cc, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStaticStreamWindowSize(window))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cc.Close() })
			st, err := discovery.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(t.Context())
			for _, req := range []*discovery.DeltaDiscoveryRequest{
				{Node: &core.Node{Id: fmt.Sprintf("stuck-%d", i), Cluster: "gfe"}, TypeUrl: Endpoints.URL(), ResourceNamesSubscribe: names},
				{TypeUrl: Clusters.URL()}, {TypeUrl: Listeners.URL()},
			} {
				if err == nil {
					err = st.Send(req)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	w := world(t, nil, text(1), state{})
	size := 0
	for _, n := range names {
		size += len(w.View("gfe").Resource(Envoy, Endpoints, n).Marshalled().Value)
	}
	t.Run("held", func(t *testing.T) {
		s := serve(t, Options{Coalesce: -1})
		s.Set(w)
		before := kept()
		stuck(t, s)
		other := dial(t, s, "gfe").delta()
		other.subscribe(Endpoints, "a@gfe")
		other.next(Endpoints)
		eventually(t, patience, func() string {
			if n := s.Stats().Pushes; n < 2*clients+1 { // a second is on its way to each, so that the first is queued
				return fmt.Sprintf("%d responses are sent", n)
			}
			return ""
		})
		// One response is queued for each, in a buffer of gRPC's: those of a message up to 1 MiB
		// are of that size.
		queued := kept()
		if grown, most := queued-before, clients<<20*5/4; grown > most {
			t.Errorf("%d clients that take nothing of %d KiB keep %d KiB, want at most %d", clients, size>>10, grown>>10, most>>10)
		}
		for i := range 2 {
			w = world(t, w, text(2+i), state{})
			s.Set(w)
			got := other.next(Endpoints).Resources[0].Version
			expect(t, "the other's", got, w.View("gfe").Resource(Envoy, Endpoints, "a@gfe").Version)
		}
		if grown, most := kept()-queued, clients<<20/2; grown > most {
			t.Errorf("after two changes they keep %d KiB more, want at most %d: a world more, but nothing for each", grown>>10, most>>10)
		}
	})
	t.Run("dropped", func(t *testing.T) {
		var mu sync.Mutex
		var log bytes.Buffer
		s := serve(t, Options{Coalesce: -1, SendTimeout: 3 * time.Second, Log: slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, nil))})
		s.Set(w)
		other := dial(t, s, "gfe").delta()
		other.subscribe(Clusters)
		other.next(Clusters)
		stuck(t, s)
		eventually(t, patience, func() string {
			if n, list := s.Stats().Stuck, s.Clients(); n != clients || len(list) != 1 || list[0].ID != "test" {
				return fmt.Sprintf("%d of %d are dropped; connected %+v", n, clients, list)
			}
			return ""
		})
		mu.Lock()
		for i := range clients {
			if name := fmt.Sprintf("proxy=stuck-%d pool=gfe", i); strings.Count(log.String(), name) != 1 {
				t.Errorf("the log has not one line with %q:\n%s", name, &log)
			}
		}
		mu.Unlock()
		s.conns.mu.Lock()
		if n := len(s.conns.open); n != 1 {
			t.Errorf("%d connections are open, want the other's", n)
		}
		s.conns.mu.Unlock()
		s.Set(world(t, w, text(5)+"\n", state{}))
		other.subscribe(Endpoints, "a@gfe")
		other.next(Endpoints)
	})
}

// TestReportersAreBounded opens more streams of load reports than are taken.
func TestReportersAreBounded(t *testing.T) {
	s := serve(t, Options{})
	s.reporting.Store(maxReporters - 1) // as if so many were connected
	cc, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	open := func(id string) error {
		st, err := loadstats.NewLoadReportingServiceClient(cc).StreamLoadStats(context.Background())
		if err == nil {
			err = st.Send(&loadstats.LoadStatsRequest{Node: &core.Node{Id: id, Cluster: "gfe"}})
		}
		if err == nil {
			_, err = st.Recv()
		}
		return err
	}
	if err := open("last"); err != nil {
		t.Errorf("the last that there is room for: %v", err)
	}
	if err := open("over"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more: %v, want it refused", err)
	}
}

// TestWhoMayAsk connects with certificates that are right, another pool's, expired, of nobody
// and none: only the first is told anything, and only what is its pool's. A certificate that is
// trusted later is taken without a restart.
func TestWhoMayAsk(t *testing.T) {
	dir := t.TempDir()
	server := testCert(t, "xds.test")
	cert, key := writeCert(t, dir, "server", server)
	gfe, other := testCert(t, "gfe"), testCert(t, "other")
	expired, late := certUntil(t, time.Now().Add(-time.Minute), "gfe"), testCert(t, "gfe")
	ca := filepath.Join(dir, "clients.ca")
	trust := func(certs ...Secret) {
		var all []byte
		for _, c := range certs {
			all = append(all, c.Cert...)
		}
		if err := os.WriteFile(ca, all, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	trust(gfe, other, expired)
	s := serve(t, Options{TLS: TLS{Cert: cert, Key: key, CA: ca}})
	s.Set(world(t, nil, three(1, ""), state{}))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(server.Cert)
	// ask returns how a client with that certificate fares that says that it is of pool.
	ask := func(t *testing.T, c *Secret, pool string) (ads, lrs error) {
		t.Helper()
		conf := &tls.Config{RootCAs: roots, ServerName: "xds.test"}
		if c != nil {
			pair, err := tls.X509KeyPair(c.Cert, c.Key)
			if err != nil {
				t.Fatal(err)
			}
			conf.Certificates = []tls.Certificate{pair}
		}
		cc, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(conf)))
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		node := &core.Node{Id: "one", Cluster: pool}
		st, ads := discovery.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(ctx)
		if ads == nil {
			st.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: Clusters.URL()}) // Recv says what was wrong
			_, ads = st.Recv()
		}
		reports, lrs := loadstats.NewLoadReportingServiceClient(cc).StreamLoadStats(ctx)
		if lrs == nil {
			reports.Send(&loadstats.LoadStatsRequest{Node: node})
			_, lrs = reports.Recv()
		}
		return ads, lrs
	}
	for _, tt := range []struct {
		name string
		cert *Secret
		pool string
		want codes.Code
	}{
		{"its own", &gfe, "gfe", codes.OK},
		{"another pool's resources", &other, "gfe", codes.PermissionDenied},
		{"expired", &expired, "gfe", codes.Unavailable},
		{"of nobody that is trusted", &late, "gfe", codes.Unavailable},
		{"none", nil, "gfe", codes.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for what, err := range func() map[string]error { a, l := ask(t, tt.cert, tt.pool); return map[string]error{"ads": a, "lrs": l} }() {
				if status.Code(err) != tt.want {
					t.Errorf("%s: %v, want %v", what, err, tt.want)
				}
			}
		})
	}
	trust(gfe, late)
	if ads, lrs := ask(t, &late, "gfe"); ads != nil || lrs != nil {
		t.Errorf("trusted by now: %v, %v", ads, lrs)
	}
}
