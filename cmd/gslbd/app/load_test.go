package app

import (
	"context"
	"testing"

	orcadata "github.com/cncf/xds/go/xds/data/orca/v3"
	orcaservice "github.com/cncf/xds/go/xds/service/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
)

// TestLoadService asks a backend for its load at the address of its requests, and has it drain
// while it is asked.
func TestLoadService(t *testing.T) {
	gfetest.Leaks(t)
	b, err := NewBackend(config("be-1", nil), "http://127.0.0.1:1")
	addr, stop := start(t, b, err)
	conn, err := grpc.NewClient(addr.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ask := func(ctx context.Context) (grpc.ServerStreamingClient[orcadata.OrcaLoadReport], float64) {
		st, err := orcaservice.NewOpenRcaServiceClient(conn).StreamCoreMetrics(ctx, &orcaservice.OrcaLoadReportRequest{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return st, r.GetCpuUtilization()
	}
	gfetest.Eventually(t, "it says the CPU time that this test uses", func() bool {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, v := ask(ctx)
		if v < 0 || v > 1.5 {
			t.Fatalf("utilization %v; expected 0 to 1", v)
		}
		return v > 0
	})
	st, _ := ask(t.Context())
	stop() // fails the test when the stream has to be cut off
	if _, err := st.Recv(); err == nil {
		t.Error("the stream goes on after the backend has drained")
	}
}
