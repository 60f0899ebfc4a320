package health

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/net/http2"
)

// The codes of gRPC that health answers with, and their names.
var grpcCodes = map[int]string{
	0: "OK", 1: "CANCELLED", 2: "UNKNOWN", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND: no such service", 7: "PERMISSION_DENIED",
	8: "RESOURCE_EXHAUSTED", 12: "UNIMPLEMENTED: no health service", 13: "INTERNAL", 14: "UNAVAILABLE", 16: "UNAUTHENTICATED",
}

var grpcServing = []string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}

// probeGRPC returns the probe of t by grpc.health.v1.Health/Check (the health checking
// protocol of gRPC, over HTTP/2 as PROTOCOL-HTTP2.md says). One message of one field each way
// needs no more of gRPC than this.
func (p *Prober) probeGRPC(t Target) func(context.Context) Result {
	g := t.Probe.GRPC
	var client *tlsClient
	u := &url.URL{Scheme: "http", Host: net.JoinHostPort(g.ServerName, strconv.Itoa(int(t.Addr.Port()))), Path: "/grpc.health.v1.Health/Check"}
	if g.TLS {
		u.Scheme = "https"
		client = p.tlsClient(g.ServerName, g.SkipVerify, g.Files, http2.NextProtoTLS)
	}
	message := appendHealthRequest(nil, g.Service)
	return func(ctx context.Context) Result {
		start := time.Now()
		c, err := connect(ctx, "tcp", t)
		if err != nil {
			return failure(start, err, Protocol)
		}
		defer func() { _ = c.Close() }()
		if client != nil {
			secure, err := client.client(ctx, c)
			if err != nil {
				return tlsFailure(start, err)
			}
			c = secure
		}
		req := (&http.Request{
			Method: http.MethodPost, URL: u, Host: u.Host, ContentLength: int64(len(message)), Body: io.NopCloser(bytes.NewReader(message)),
			Header: http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"meridian-health"}},
		}).WithContext(ctx)
		resp, err := roundTrip2(c, req)
		if err != nil {
			return failure(start, err, Protocol)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
		if err != nil {
			return failure(start, err, Protocol)
		}
		class, detail := judgeGRPC(resp, body)
		return Result{Class: class, Latency: time.Since(start), Detail: printable(detail, maxDetail)}
	}
}

// appendHealthRequest appends a HealthCheckRequest in its frame: service is field 1.
func appendHealthRequest(b []byte, service string) []byte {
	var m []byte
	if service != "" {
		m = binary.AppendUvarint(append(m, 1<<3|2), uint64(len(service)))
		m = append(m, service...)
	}
	b = append(b, 0) // not compressed
	b = binary.BigEndian.AppendUint32(b, uint32(len(m)))
	return append(b, m...)
}

// judgeGRPC reads a HealthCheckResponse: status is field 1, and 1 of it is SERVING.
func judgeGRPC(resp *http.Response, body []byte) (Class, string) {
	status := resp.Trailer.Get("Grpc-Status")
	if status == "" {
		status = resp.Header.Get("Grpc-Status")
	}
	code, err := strconv.Atoi(status)
	switch {
	case resp.StatusCode != http.StatusOK:
		return Protocol, fmt.Sprintf("status %d, expected 200 of a gRPC server", resp.StatusCode)
	case err != nil:
		return Protocol, "no grpc-status: not a gRPC server"
	case code != 0:
		name := grpcCodes[code]
		if name == "" {
			name = "code " + strconv.Itoa(code)
		}
		return WrongStatus, name
	case len(body) < 5 || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:5])) != len(body)-5:
		return Protocol, "no health message"
	}
	serving := uint64(0) // proto3 leaves a zero out
	if m := body[5:]; len(m) > 0 {
		v, n := binary.Uvarint(m[1:])
		if m[0] != 1<<3 || n <= 0 {
			return Protocol, "no health status in the message"
		}
		serving = v
	}
	switch {
	case serving == 1:
		return OK, ""
	case serving < uint64(len(grpcServing)):
		return WrongStatus, grpcServing[serving]
	}
	return WrongStatus, fmt.Sprintf("health status %d", serving)
}
