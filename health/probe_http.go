package health

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"github.com/meridian-gslb/meridian/gslb/config"
)

const (
	maxHeader = 64 << 10 // octets of status line and header that a probe reads
	maxBody   = 64 << 10 // octets of the body that a probe reads; the rest is not waited for
)

// httpProbe sends one HTTP request over a connection of its own and judges the answer. It
// writes and reads through the codecs of net/http and x/net/http2 but not their clients,
// whose pool, redirects and proxies a probe must not have.
type httpProbe struct {
	target  Target
	request *http.Request  // nil with err
	tls     *tlsClient     // nil without TLS
	matches *regexp.Regexp // nil: anything does
	err     error          // why there is no request
}

// newHTTPProbe returns the probe of t, whose probe has every default filled in.
func (p *Prober) newHTTPProbe(t Target) *httpProbe {
	h, pr := t.Probe.HTTP, &httpProbe{target: t}
	u, err := url.ParseRequestURI(h.Path)
	if err != nil {
		pr.err = fmt.Errorf("path %q: %w", h.Path, err)
		return pr
	}
	if h.Matches != "" {
		if pr.matches, pr.err = regexp.Compile(h.Matches); pr.err != nil {
			return pr
		}
	}
	u.Scheme, u.Host = "http", h.Host
	header := http.Header{"User-Agent": {"meridian-health"}, "Accept": {"*/*"}}
	for k, v := range h.Headers {
		header.Set(k, v)
	}
	pr.request = &http.Request{
		Method: h.Method, URL: u, Host: h.Host, Header: header, Close: true,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if host := header.Get("Host"); host != "" { // net/http leaves the field out of the header
		pr.request.Host = host
	}
	if h.TLS {
		u.Scheme = "https"
		alpn := "http/1.1"
		if h.HTTP2 {
			alpn = http2.NextProtoTLS
		}
		pr.tls = p.tlsClient(h.ServerName, h.SkipVerify, h.Files, alpn)
	}
	return pr
}

// run makes one probe.
func (p *httpProbe) run(ctx context.Context) Result {
	if p.err != nil {
		return Result{Class: Local, Detail: p.err.Error()}
	}
	start := time.Now()
	c, err := connect(ctx, "tcp", p.target)
	if err != nil {
		return failure(start, err, Protocol)
	}
	defer func() { _ = c.Close() }()
	if p.tls != nil {
		secure, err := p.tls.client(ctx, c)
		if err != nil {
			return tlsFailure(start, err)
		}
		c = secure
	}
	if p.target.Probe.HTTP.HTTP2 {
		resp, err := roundTrip2(c, p.request.WithContext(ctx))
		if err != nil {
			return failure(start, err, Protocol)
		}
		defer func() { _ = resp.Body.Close() }()
		return p.judge(start, resp, resp.Body)
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
	in.N = 2*maxBody + int64(maxBody) // with the framing of chunks
	return p.judge(start, resp, resp.Body)
}

// roundTrip2 sends req over c by HTTP/2 (RFC 9113). What it starts ends with c.
func roundTrip2(c net.Conn, req *http.Request) (*http.Response, error) {
	t := &http2.Transport{AllowHTTP: true, DisableCompression: true, MaxHeaderListSize: maxHeader}
	h2, err := t.NewClientConn(c)
	if err != nil {
		return nil, err
	}
	req.Close = false // says something else in HTTP/2
	return h2.RoundTrip(req)
}

// judge compares the response to what the probe expects.
func (p *httpProbe) judge(start time.Time, resp *http.Response, body io.Reader) Result {
	h := p.target.Probe.HTTP
	if !expects(h.Expect, resp.StatusCode) {
		return Result{Class: WrongStatus, Latency: time.Since(start),
			Detail: fmt.Sprintf("status %d, expected %s", resp.StatusCode, alternatives(h.Expect))}
	}
	var buf bytes.Buffer
	into := io.Discard
	if h.Contains != "" || h.JSON != nil || p.matches != nil {
		into = &buf
	}
	n, err := io.Copy(into, io.LimitReader(body, maxBody+1))
	if err != nil && n <= maxBody {
		return failure(start, err, Protocol)
	}
	r := Result{Latency: time.Since(start)}
	text := buf.Bytes()[:min(buf.Len(), maxBody)]
	wrong := func(format string, args ...any) Result {
		r.Class, r.Detail = WrongBody, printable(fmt.Sprintf(format, args...), maxDetail)
		return r
	}
	switch {
	case h.Contains != "" && !bytes.Contains(text, []byte(h.Contains)):
		return wrong("body without %q", h.Contains)
	case p.matches != nil && !p.matches.Match(text):
		return wrong("body does not match %q", h.Matches)
	case h.JSON != nil && n > maxBody:
		return wrong("JSON over %d octets", maxBody)
	case h.JSON != nil:
		if err := checkJSON(text, h.JSON); err != nil {
			return wrong("%v", err)
		}
	}
	return r
}

// checkJSON says what is wrong with the value that e expects of text.
func checkJSON(text []byte, e *config.JSONExpect) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return errors.New("body is not JSON")
	}
	for key := range strings.SplitSeq(e.Path, ".") {
		switch x := v.(type) {
		case map[string]any:
			inner, ok := x[key]
			if !ok {
				return fmt.Errorf("%s: no %q", e.Path, key)
			}
			v = inner
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(x) {
				return fmt.Errorf("%s: no item %q of %d", e.Path, key, len(x))
			}
			v = x[i]
		default:
			return fmt.Errorf("%s: nothing in %q", e.Path, key)
		}
	}
	got := fmt.Sprint(v)
	switch x := v.(type) {
	case nil:
		got = "null"
	case map[string]any, []any:
		b, _ := json.Marshal(x) // what was decoded encodes
		got = string(b)
	}
	if e.Equals == "" && (got == "null" || got == "false") || e.Equals != "" && got != e.Equals {
		want := e.Equals
		if want == "" {
			want = "a value that is not null or false"
		}
		return fmt.Errorf("%s is %s, expected %s", e.Path, clip(got, 32), want)
	}
	return nil
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

func expects(ranges []config.Statuses, status int) bool {
	for _, s := range ranges {
		if lo, hi, ok := s.Range(); ok && lo <= status && status <= hi {
			return true
		}
	}
	return false
}

// alternatives writes statuses for people: "200", "200 or 300-399".
func alternatives(ranges []config.Statuses) string {
	texts := make([]string, len(ranges))
	for i, s := range ranges {
		texts[i] = string(s)
	}
	return strings.Join(texts, " or ")
}
