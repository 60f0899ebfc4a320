package tracing

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// grpcCollector is a real OTLP/gRPC collector on loopback, of the generated code.
type grpcCollector struct {
	coltracepb.UnimplementedTraceServiceServer
	export  func(context.Context, *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error)
	smaller atomic.Bool // a message was compressed
}

func (c *grpcCollector) Export(ctx context.Context, r *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	return c.export(ctx, r)
}

func (c *grpcCollector) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (c *grpcCollector) HandleRPC(_ context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok && in.CompressedLength < in.Length {
		c.smaller.Store(true)
	}
}
func (c *grpcCollector) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return ctx
}
func (c *grpcCollector) HandleConn(context.Context, stats.ConnStats) {}

// serveGRPC serves what register adds until the test ends, and returns the address.
func serveGRPC(t *testing.T, register func(*grpc.Server), options ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(options...)
	register(s)
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

// serve serves c until the test ends, and returns its endpoint.
func (c *grpcCollector) serve(t *testing.T) string {
	t.Helper()
	return "grpc://" + serveGRPC(t, func(s *grpc.Server) { coltracepb.RegisterTraceServiceServer(s, c) }, grpc.StatsHandler(c))
}

// exportOne runs a recorder for one query and one received request, until it has exported or
// dropped both, and returns its counters.
func exportOne(t *testing.T, o Options) Stats {
	t.Helper()
	o.Sample, o.Describe, o.Logger, o.Linger = 1, describeAll, quiet(), time.Millisecond
	r := New(o)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- r.Run(ctx) }()
	fillQuery(begin(r.Worker(0)))
	r.Worker(0).Commit()

	span := fullSpan()
	body := compress(appendRequest(nil, nil, "", appendSpan(nil, &span)))
	req := httptest.NewRequest(http.MethodPost, "/v1/traces", bytes.NewReader(body))
	req.Header.Set("Content-Type", protobufType)
	req.Header.Set("Content-Encoding", "gzip")
	resp := httptest.NewRecorder()
	r.Receiver().ServeHTTP(resp, req)
	if resp.Code != http.StatusOK {
		t.Fatalf("status %d %s, want 200", resp.Code, resp.Body)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for s := r.Stats(); s.Queued < 4 || s.Pending > 0; s = r.Stats() {
		<-tick.C
	}
	cancel()
	if err := <-ran; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v, want %v", err, context.Canceled)
	}
	check(t, r.Stats())
	return r.Stats()
}

// What goes over gRPC, compressed or not, is what the generated code reads, with the headers.
func TestExportOverGRPC(t *testing.T) {
	for _, gzip := range []bool{false, true} {
		var spans atomic.Int64
		var token atomic.Value
		c := &grpcCollector{export: func(ctx context.Context, r *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			token.Store(append(md.Get("x-token"), "")[0])
			for _, rs := range r.ResourceSpans {
				for _, ss := range rs.ScopeSpans {
					spans.Add(int64(len(ss.Spans)))
				}
			}
			return &coltracepb.ExportTraceServiceResponse{}, nil
		}}
		s := exportOne(t, Options{Endpoint: c.serve(t), Gzip: gzip, Headers: map[string]string{"X-Token": "secret"}})
		if spans.Load() != 4 || s.Exported != 4 || token.Load() != "secret" || c.smaller.Load() != gzip {
			t.Errorf("gzip %v: %d spans came, %d said to be exported, token %v, compressed %v; want 4, 4, secret, %v",
				gzip, spans.Load(), s.Exported, token.Load(), c.smaller.Load(), gzip)
		}
	}
}

func TestGRPCCollectors(t *testing.T) {
	fail := func(code codes.Code, details ...*errdetails.RetryInfo) func(context.Context, *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
		return func(context.Context, *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
			s := status.New(code, "no")
			for _, d := range details {
				s, _ = s.WithDetails(d)
			}
			return nil, s.Err()
		}
	}
	soon := &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Millisecond)}
	for _, tc := range []struct {
		name    string
		export  func(context.Context, *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error)
		cause   string
		dropped uint64
		retries bool
	}{
		{"refusing", fail(codes.InvalidArgument), DropRefused, 4, false},
		{"unimplemented", fail(codes.Unimplemented), DropRefused, 4, false},
		{"away", fail(codes.Unavailable), DropUnavailable, 4, true},
		{"full", fail(codes.ResourceExhausted), DropRefused, 4, false},
		{"full for now", fail(codes.ResourceExhausted, soon), DropUnavailable, 4, true},
		{"hanging", func(ctx context.Context, _ *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, DropTimeout, 4, true},
		{"rejecting more than there is", func(context.Context, *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
			return &coltracepb.ExportTraceServiceResponse{PartialSuccess: &coltracepb.ExportTracePartialSuccess{RejectedSpans: 1 << 40}}, nil
		}, DropPartial, 4, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := Options{Endpoint: (&grpcCollector{export: tc.export}).serve(t), Timeout: time.Minute, RetryFor: 2 * time.Second}
			if tc.cause == DropTimeout {
				o.Timeout = 50 * time.Millisecond
			}
			s := exportOne(t, o)
			if s.Dropped[tc.cause] != tc.dropped || s.Exported != 4-tc.dropped || (s.Retries > 0) != tc.retries {
				t.Errorf("dropped %v, exported %d, retries %d, want %d by %s, the rest, some: %v",
					s.Dropped, s.Exported, s.Retries, tc.dropped, tc.cause, tc.retries)
			}
		})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s := exportOne(t, Options{Endpoint: "grpc://" + l.Addr().String(), Timeout: time.Second, RetryFor: 300 * time.Millisecond})
	if s.Dropped[DropUnreachable] != 4 {
		t.Errorf("nobody there: dropped %v, want 4 unreachable", s.Dropped)
	}
}

func TestJudgeStatus(t *testing.T) {
	// https://opentelemetry.io/docs/specs/otlp/#failures
	retryable := map[codes.Code]bool{codes.Canceled: true, codes.DeadlineExceeded: true, codes.Aborted: true,
		codes.OutOfRange: true, codes.Unavailable: true, codes.DataLoss: true}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		if v := judgeStatus(status.New(code, ""), true); v.retry != retryable[code] || v.cause == "" {
			t.Errorf("%v: retry %v, cause %q, want retry %v and a cause", code, v.retry, v.cause, retryable[code])
		}
	}
	with, err := status.New(codes.ResourceExhausted, "").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(7 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	if v := judgeStatus(with, true); !v.retry || v.after != 7*time.Second {
		t.Errorf("told to wait 7 s: %+v, want a retry then", v)
	}
}

func TestOctets(t *testing.T) {
	in, err := octets{}.Marshal([]byte("abc"))
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	if err := (octets{}).Unmarshal(in, &out); err != nil || string(out) != "abc" {
		t.Errorf("%q, %v, want abc", out, err)
	}
	if _, err := (octets{}).Marshal(proto.Message(nil)); err == nil {
		t.Error("a message was taken, want octets only")
	}
}
