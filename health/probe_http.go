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
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/meridian-gslb/meridian/gslb/config"
)

const (
	maxHeader = 64 << 10 // octets of status line and header that a probe reads
	maxBody   = 64 << 10 // octets of the body that a probe reads; the rest is not waited for
)

// httpProbe sends one HTTP request and judges the answer. It writes and reads through the
// codecs of net/http and x/net/http2 but not their clients, whose pool, redirects and proxies
// a probe must not have. It is for one probe at a time.
//
// Over HTTP/1.1 the connection of a success serves the next probes too, since to open it is
// most of their cost on both sides. Now and then, and after every failure, a probe opens a new
// one: a server that answers who is connected already and accepts nobody else is found then.
type httpProbe struct {
	// set at construction
	target  Target
	request *http.Request  // nil with err
	wire    []byte         // request, over HTTP/1.1
	tls     *tlsClient     // nil without TLS
	matches *regexp.Regexp // nil: anything does
	err     error          // why there is no request
	kept    *budgeted      // room for connections; nil keeps none

	conn *httpConn // for the next probe; nil: it opens one
}

// httpConn is a connection for several probes.
type httpConn struct {
	net.Conn
	uses int
}

// budgeted counts what there may be a limited number of. It is safe for concurrent use.
type budgeted struct {
	limit int64 // set at construction
	n     atomic.Int64
}

func (b *budgeted) take() bool {
	if b.n.Add(1) > b.limit {
		b.n.Add(-1)
		return false
	}
	return true
}

func (b *budgeted) give() { b.n.Add(-1) }

func (b *budgeted) room() bool { return b.n.Load() < b.limit }

// maxFiles returns how many files this process may open; 0 if that is not known.
func maxFiles() int64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int64(min(limit.Cur, 1<<20))
}

// maxKept returns how many connections probes may keep: half of the files that this process
// may open, since others need some too.
func maxKept() int64 { return min(maxFiles()/2, 1<<16) }

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
		Method: h.Method, URL: u, Host: h.Host, Header: header, Close: h.Reuse <= 1,
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
	var wire bytes.Buffer
	pr.err = pr.request.Write(&wire)
	pr.wire = wire.Bytes()
	return pr
}

// plain reports whether the probe is one over HTTP/1.1 without TLS.
func (p *httpProbe) plain() bool {
	return p.err == nil && p.tls == nil && !p.target.Probe.HTTP.HTTP2
}

// reuses reports whether the probe keeps connections if there is room.
func (p *httpProbe) reuses() bool { return p.target.Probe.HTTP.Reuse > 1 }

// heard judges what was heard within took of the answer to the request. end is what followed it;
// with nil, more may follow, and more says that it takes more to judge.
func (p *httpProbe) heard(text []byte, end error, took time.Duration) (r Result, more bool) {
	in := &soFar{text: text, end: end}
	reader := borrowReader(in)
	defer giveBack(reader)
	resp, err := readResponse(reader, p.request)
	if err == nil {
		defer func() { _ = resp.Body.Close() }()
		r, _ = p.judge(time.Now(), resp, resp.Body)
	}
	if in.short {
		return Result{}, true
	}
	if err != nil {
		return failed(took, err, Protocol), false
	}
	r.Latency = took
	return r, false
}

// soFar reads text and what followed it. short says that a reader asked for more than there is.
type soFar struct {
	text  []byte
	end   error
	short bool
}

var errShort = errors.New("more is to come")

func (s *soFar) Read(b []byte) (int, error) {
	n := copy(b, s.text)
	s.text = s.text[n:]
	switch {
	case n > 0 || len(b) == 0:
		return n, nil
	case s.end == nil:
		s.short = true
		return 0, errShort
	}
	return 0, s.end
}

// run makes one probe.
func (p *httpProbe) run(ctx context.Context) Result {
	if p.err != nil {
		return Result{Class: Local, Detail: p.err.Error()}
	}
	if c := p.conn; c != nil {
		p.conn = nil
		if r, ended := p.ask(ctx, time.Now(), c); !ended {
			return r
		}
	}
	start := time.Now()
	c, err := dial(ctx, "tcp", p.target)
	if err != nil {
		return failure(start, err, Protocol)
	}
	if p.tls != nil {
		secure, err := p.tls.client(ctx, c)
		if err != nil {
			_ = c.Close()
			return tlsFailure(start, err)
		}
		c = secure
	}
	if p.target.Probe.HTTP.HTTP2 {
		c := bind(ctx, c)
		defer func() { _ = c.Close() }()
		resp, err := roundTrip2(c, p.request.WithContext(ctx))
		if err != nil {
			return failure(start, err, Protocol)
		}
		defer func() { _ = resp.Body.Close() }()
		r, _ := p.judge(start, resp, resp.Body)
		return r
	}
	r, _ := p.ask(ctx, start, &httpConn{Conn: c})
	return r
}

var readers = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// borrowReader returns a reader of in, until giveBack.
func borrowReader(in io.Reader) *bufio.Reader {
	reader := readers.Get().(*bufio.Reader)
	reader.Reset(in)
	return reader
}

func giveBack(reader *bufio.Reader) {
	reader.Reset(nil)
	readers.Put(reader)
}

// ask sends the request over c and judges the answer. The connection is kept for the next
// probe, or closed. ended says that there is no answer, for the server had ended a connection
// that was kept: that is its right, and no result.
func (p *httpProbe) ask(ctx context.Context, start time.Time, c *httpConn) (r Result, ended bool) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	keep := false
	defer func() {
		if stop() && keep && p.keeps(c) {
			p.conn = c
			return
		}
		p.drop(c)
	}()
	c.uses++
	in := &io.LimitedReader{R: c, N: maxHeader}
	fail := func(err error) (Result, bool) {
		r := failure(start, err, Protocol)
		return r, c.uses > 1 && in.N == maxHeader && r.Class == Reset && ctx.Err() == nil
	}
	if _, err := c.Write(p.wire); err != nil {
		return fail(err)
	}
	reader := borrowReader(in)
	defer giveBack(reader)
	resp, err := readResponse(reader, p.request)
	switch {
	case err != nil && in.N <= 0:
		return Result{Class: Protocol, Latency: time.Since(start), Detail: fmt.Sprintf("header over %d octets", maxHeader)}, false
	case err != nil:
		return fail(err)
	}
	defer func() { _ = resp.Body.Close() }()
	in.N = 2*maxBody + int64(maxBody) // with the framing of chunks
	r, whole := p.judge(start, resp, resp.Body)
	keep = whole && !resp.Close && resp.StatusCode >= 200 && reader.Buffered() == 0
	return r, false
}

// keeps reports whether c is for more probes, and then has room.
func (p *httpProbe) keeps(c *httpConn) bool {
	return p.kept != nil && c.uses < p.target.Probe.HTTP.Reuse && (c.uses > 1 || p.kept.take())
}

// drop closes c.
func (p *httpProbe) drop(c *httpConn) {
	if c.uses > 1 { // it was kept
		p.kept.give()
	}
	_ = c.Close()
}

// release closes what is kept. No probe is under way.
func (p *httpProbe) release() {
	if p.conn != nil {
		p.kept.give()
		_ = p.conn.Close()
		p.conn = nil
	}
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

// judge compares the response to what the probe expects. whole says that it is as expected
// and was read to its end.
func (p *httpProbe) judge(start time.Time, resp *http.Response, body io.Reader) (r Result, whole bool) {
	h := p.target.Probe.HTTP
	if !expects(h.Expect, resp.StatusCode) {
		return Result{Class: WrongStatus, Latency: time.Since(start),
			Detail: fmt.Sprintf("status %d, expected %s", resp.StatusCode, alternatives(h.Expect))}, false
	}
	var buf bytes.Buffer
	into := io.Discard
	if h.Contains != "" || h.JSON != nil || p.matches != nil {
		into = &buf
	}
	n, err := io.Copy(into, io.LimitReader(body, maxBody+1))
	if err != nil && n <= maxBody {
		return failure(start, err, Protocol), false
	}
	r = Result{Latency: time.Since(start)}
	text := buf.Bytes()[:min(buf.Len(), maxBody)]
	wrong := func(format string, args ...any) (Result, bool) {
		r.Class, r.Detail = WrongBody, printable(fmt.Sprintf(format, args...), maxDetail)
		return r, false
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
	return r, n <= maxBody
}

// checkJSON says what is wrong with the value that e expects of text.
func checkJSON(text []byte, e *config.JSONExpect) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return errors.New("body is not JSON")
	}
	for _, key := range e.Keys() {
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
