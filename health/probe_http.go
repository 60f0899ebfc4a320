package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	maxHeader = 64 << 10 // octets of status line and header that a probe reads
	maxBody   = 64 << 10 // octets of the body that a probe reads; the rest is not waited for
)

// httpProbe sends one HTTP/1.1 request over a connection of its own and judges the answer.
// It writes and reads through net/http's codec but not its client, whose pool, redirects,
// proxies and goroutines a probe must not have.
type httpProbe struct {
	target  Target
	request *http.Request // nil with err
	tls     *tls.Config   // nil without TLS
	err     error         // why there is no request
}

// newHTTPProbe returns the probe of t, whose probe has every default filled in.
func newHTTPProbe(t Target, roots *x509.CertPool) *httpProbe {
	h, p := t.Probe.HTTP, &httpProbe{target: t}
	u, err := url.ParseRequestURI(h.Path)
	if err != nil {
		p.err = fmt.Errorf("path %q: %w", h.Path, err)
		return p
	}
	u.Scheme, u.Host = "http", h.Host
	header := http.Header{"User-Agent": {"meridian-health"}, "Accept": {"*/*"}}
	for k, v := range h.Headers {
		header.Set(k, v)
	}
	p.request = &http.Request{
		Method: h.Method, URL: u, Host: h.Host, Header: header, Close: true,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if host := header.Get("Host"); host != "" { // net/http leaves the field out of the header
		p.request.Host = host
	}
	if h.TLS {
		u.Scheme = "https"
		p.tls = &tls.Config{
			ServerName:         h.ServerName,
			RootCAs:            roots,
			InsecureSkipVerify: h.SkipVerify, //nolint:gosec // asked for by the operator, off by default
			NextProtos:         []string{"http/1.1"},
		}
	}
	return p
}

// run makes one probe.
func (p *httpProbe) run(ctx context.Context) Result {
	if p.err != nil {
		return Result{Class: Local, Detail: p.err.Error()}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(p.target.Probe.Timeout))
	defer cancel()
	start := time.Now()
	c, err := connect(ctx, p.target)
	if err != nil {
		return failure(start, err, Protocol)
	}
	defer func() { _ = c.Close() }()
	if p.tls != nil {
		secure := tls.Client(c, p.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return failure(start, err, TLSFault)
		}
		c = secure
	}
	if err := p.request.Write(c); err != nil {
		return failure(start, err, Protocol)
	}

	in := &io.LimitedReader{R: c, N: maxHeader}
	resp, err := readResponse(bufio.NewReader(in), p.request)
	switch {
	case err != nil && in.N <= 0:
		return Result{Class: Protocol, Latency: time.Since(start), Detail: fmt.Sprintf("header over %d octets", maxHeader)}
	case err != nil:
		return failure(start, err, Protocol)
	}
	defer func() { _ = resp.Body.Close() }()
	if expect := p.target.Probe.HTTP.Expect; !slices.Contains(expect, resp.StatusCode) {
		return Result{Class: WrongStatus, Latency: time.Since(start),
			Detail: fmt.Sprintf("status %d, expected %s", resp.StatusCode, alternatives(expect))}
	}
	in.N = 2 * maxBody // with the framing of chunks
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody)); err != nil && in.N > 0 {
		return failure(start, err, Protocol)
	}
	return Result{Latency: time.Since(start)}
}

// readResponse reads the final response to req: interim ones are skipped (RFC 9110 s15.2).
func readResponse(r *bufio.Reader, req *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(r, req)
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
}

// alternatives writes statuses for people: "200", "200 or 204".
func alternatives(statuses []int) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(statuses), "[]"), " ", " or ")
}
