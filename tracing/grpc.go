package tracing

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// OTLP/gRPC has one service with one method.
const (
	traceService = "opentelemetry.proto.collector.trace.v1.TraceService"
	exportMethod = "/" + traceService + "/Export"
)

// The schemes of OTLP/gRPC, in the clear and with TLS.
const (
	schemeGRPC  = "grpc"
	schemeGRPCS = "grpcs"
)

// isGRPC reports whether endpoint asks for OTLP/gRPC.
func isGRPC(endpoint string) bool {
	scheme, _, _ := strings.Cut(endpoint, "://")
	return scheme == schemeGRPC || scheme == schemeGRPCS
}

// dial returns the connection of an exporter to endpoint. It is made at the first call, and
// again whenever it broke.
func dial(endpoint string) (*grpc.ClientConn, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	host := u.Host
	if u.Port() == "" {
		host += ":4317" // IANA's opentelemetry
	}
	creds := insecure.NewCredentials()
	if u.Scheme == schemeGRPCS {
		creds = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	again := backoff.DefaultConfig
	again.BaseDelay, again.MaxDelay = firstBackoff, maxBackoff
	return grpc.NewClient("passthrough:///"+host,
		grpc.WithTransportCredentials(creds),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // deliver does that, and counts
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: maxBackoff}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(octets{})),
		grpc.WithMaxHeaderListSize(maxResponse),
		grpc.WithUserAgent("meridian"))
}

// call makes one attempt over gRPC.
func (e *exporter) call(ctx context.Context, b batch) verdict {
	attempt, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	for key, value := range e.header {
		attempt = metadata.AppendToOutgoingContext(attempt, key, value)
	}
	var from peer.Peer
	options := []grpc.CallOption{grpc.Peer(&from)}
	if e.gzip {
		options = append(options, grpc.UseCompressor(gzip.Name))
	}
	var response []byte
	err := e.conn.Invoke(attempt, exportMethod, b.body, &response, options...)
	if err == nil {
		return accepted(protobufType, response)
	}
	if ctx.Err() != nil {
		return verdict{cause: DropShutdown, err: err}
	}
	return judgeStatus(status.Convert(err), from.Addr != nil)
}

// judgeStatus judges a failed call by the OTLP specification's table of codes. reached tells
// that there was a connection.
func judgeStatus(s *status.Status, reached bool) verdict {
	v := verdict{cause: DropRefused, err: s.Err()}
	var after time.Duration
	told := false
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			told, after = true, info.GetRetryDelay().AsDuration()
		}
	}
	switch s.Code() {
	case codes.DeadlineExceeded:
		v.cause, v.retry = DropTimeout, true
	case codes.Unavailable:
		v.cause, v.retry, v.after = DropUnreachable, true, after
		if reached {
			v.cause = DropUnavailable
		}
	case codes.Canceled, codes.Aborted, codes.OutOfRange, codes.DataLoss:
		v.cause, v.retry, v.after = DropUnavailable, true, after
	case codes.ResourceExhausted:
		if told { // otherwise it will never have room
			v.cause, v.retry, v.after = DropUnavailable, true, after
		}
	}
	return v
}

// octets is the codec of messages that are encoded already: []byte, and *[]byte to read into.
type octets struct{}

func (octets) Name() string { return "proto" }

func (octets) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("message of type %T: want []byte", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (octets) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return errors.New("want *[]byte to read into")
	}
	*b = data.Materialize()
	return nil
}
