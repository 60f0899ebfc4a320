package xds

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

// TestEnvoyTakesLoadOffTrailers calls a gRPC server, which says its load after its answer,
// through an Envoy: the load reports have it, the user does not see it.
func TestEnvoyTakesLoadOffTrailers(t *testing.T) {
	envoyBinary(t)
	s := serve(t, Options{})
	be := runGRPC(t, "127.0.0.2")
	port := freePort(t)
	text := sites + fmt.Sprintf(`
pools:
  gfe: {site: eu-1, port: %d, endpoints: [{address: 127.0.0.1}], upstream: {pools: {be: }, http2: true}, proxy: {listen: "127.0.0.1:%[1]d"}}
  be: {site: eu-1, endpoints: [%s]}
`, port, be.yaml())
	s.Set(world(t, nil, text, state{}))
	runEnvoy(t, gfeBootstrap(s))
	cc, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", port), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	check := func() (md metadata.MD, err error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err = healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Trailer(&md), grpc.WaitForReady(true))
		return md, err
	}
	eventually(t, patience, func() string {
		md, err := check()
		if err != nil {
			return err.Error()
		}
		for name := range md {
			if strings.HasPrefix(name, "endpoint-load-metrics") {
				t.Fatalf("trailer %s reached the user", name)
			}
		}
		for _, l := range s.Loads() {
			if l.To == "be" && near(l.Metrics["cpu_utilization"], 0.25) {
				return ""
			}
		}
		return fmt.Sprintf("loads %+v; want what the server says of itself", s.Loads())
	})
}
