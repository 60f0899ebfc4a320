package health

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// httpProbe sends one HTTP request and judges the answer. It goes without the clients of net/http
// and x/net/http2, whose pool, redirects and proxies a probe must not have: over HTTP/1.1 it has
// its request ready in octets, and reads the reply as far as it takes to judge it. Without TLS a
// knocker does that, where there is one. It is for one probe at a time.
//
// Over HTTP/1.1 the connection of a success serves the next probes too, since to open it is
// most of their cost on both sides. Now and then, and after every failure, a probe opens a new
// one: a server that answers who is connected already and accepts nobody else is found then.
type httpProbe struct {
	// set at construction
	addr    netip.AddrPort
	conf    *config.HTTPProbe
	request *http.Request  // over HTTP/2; nil otherwise
	wire    []byte         // the request over HTTP/1.1
	looks   bool           // at the body of the answer
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
	h := t.Probe.HTTP
	pr := &httpProbe{addr: t.Addr, conf: h, looks: h.Contains != "" || h.Matches != "" || h.JSON != nil}
	u, err := url.ParseRequestURI(h.Path)
	if err != nil {
		pr.err = fmt.Errorf("path %q: %w", h.Path, err)
		return pr
	}
	if h.Matches != "" {
		if p.matches == nil || p.matches.String() != h.Matches {
			if p.matches, pr.err = regexp.Compile(h.Matches); pr.err != nil {
				return pr
			}
		}
		pr.matches = p.matches
	}
	u.Scheme, u.Host = "http", h.Host
	header := http.Header{"User-Agent": {"meridian-health"}, "Accept": {"*/*"}}
	for k, v := range h.Headers {
		header.Set(k, v)
	}
	request := &http.Request{
		Method: h.Method, URL: u, Host: h.Host, Header: header, Close: h.Reuse <= 1,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if host := header.Get("Host"); host != "" { // net/http leaves the field out of the header
		request.Host = host
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
	if pr.err = request.Write(&wire); h.HTTP2 {
		pr.request = request
	} else {
		pr.wire = bytes.Clone(wire.Bytes()) // without the room to grow
	}
	return pr
}

// plain reports whether the probe is one over HTTP/1.1 without TLS.
func (p *httpProbe) plain() bool { return p.err == nil && p.tls == nil && !p.conf.HTTP2 }

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
	c, err := dial(ctx, "tcp", p.addr)
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
	if p.conf.HTTP2 {
		return p.ask2(ctx, start, c)
	}
	r, _ := p.ask(ctx, start, &httpConn{Conn: c})
	return r
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
	reply := borrowReply(p)
	defer giveBack(reply)
	fail := func(err error) (Result, bool) {
		r := failure(start, err, Protocol)
		return r, c.uses > 1 && reply.untouched() && r.Class == Reset && ctx.Err() == nil
	}
	if _, err := c.Write(p.wire); err != nil {
		return fail(err)
	}
	buf := make([]byte, 2048)
	for done := false; !done; {
		n, ended := c.Read(buf)
		var err error
		if done, err = reply.feed(buf[:n]); !done && err == nil && ended != nil {
			err, done = reply.end(ended), true
		}
		if err != nil {
			return fail(err)
		}
	}
	r = Result{Latency: time.Since(start)}
	r.Class, r.Detail = p.judge(reply.status, reply.body, reply.size)
	keep = r.Class == OK && reply.goesOn()
	return r, false
}

// keeps reports whether c is for more probes, and then has room.
func (p *httpProbe) keeps(c *httpConn) bool {
	return p.kept != nil && c.uses < p.conf.Reuse && (c.uses > 1 || p.kept.take())
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

// ask2 is ask over HTTP/2, for which each probe has a connection of its own.
func (p *httpProbe) ask2(ctx context.Context, start time.Time, c net.Conn) Result {
	c = bind(ctx, c)
	defer func() { _ = c.Close() }()
	resp, err := roundTrip2(c, p.request.WithContext(ctx))
	if err != nil {
		return failure(start, err, Protocol)
	}
	defer func() { _ = resp.Body.Close() }()
	var body []byte
	if expects(p.conf.Expect, resp.StatusCode) {
		if body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody+1)); err != nil && len(body) <= maxBody {
			return failure(start, err, Protocol)
		}
	}
	r := Result{Latency: time.Since(start)}
	r.Class, r.Detail = p.judge(resp.StatusCode, body[:min(len(body), maxBody)], len(body))
	return r
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

// judge compares an answer to what the probe expects. Of a body of size octets, or more if that
// is over maxBody, text has what the probe looks at.
func (p *httpProbe) judge(status int, text []byte, size int) (class Class, detail string) {
	h := p.conf
	wrong := func(format string, args ...any) (Class, string) {
		return WrongBody, printable(fmt.Sprintf(format, args...), maxDetail)
	}
	switch {
	case !expects(h.Expect, status):
		return WrongStatus, fmt.Sprintf("status %d, expected %s", status, alternatives(h.Expect))
	case h.Contains != "" && !bytes.Contains(text, []byte(h.Contains)):
		return wrong("body without %q", h.Contains)
	case p.matches != nil && !p.matches.Match(text):
		return wrong("body does not match %q", h.Matches)
	case h.JSON != nil && size > maxBody:
		return wrong("JSON over %d octets", maxBody)
	case h.JSON != nil:
		if err := checkJSON(text, h.JSON); err != nil {
			return wrong("%v", err)
		}
	}
	return OK, ""
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
