// Package proxy is the GFE: a reverse proxy at the edge that is told by the GSLB where to
// send requests next, tells it the load that it sees, and traces what it does.
//
// Where to is the business of a Source: the admin API of a node today. The way itself is an
// Upstream, an http.RoundTripper that services behind the proxy use as well.
package proxy

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/meridian-gslb/meridian/cmd/gfe/serve"
	"github.com/meridian-gslb/meridian/tracing"
)

// Config describes a proxy. Zero durations mean their defaults.
type Config struct {
	Pool   string // that the proxy belongs to
	Name   string // of the proxy, unique in its pool; default Pool
	Site   string // of the proxy; may be empty
	Source Source // of the pool's assignments; a Reporter is told the load

	Listen    []string // as serve.Config
	Cert, Key string
	Lame      time.Duration
	Grace     time.Duration

	Connect time.Duration // as UpstreamConfig
	Header  time.Duration
	Eject   time.Duration
	H2C     bool

	Report time.Duration // between two reports of load; default what Source asks for, or 2 s

	Tracer trace.TracerProvider // default none
	Linker *tracing.Linker      // to the answers that led to requests; nil: they are not linked
	Log    *slog.Logger         // default slog.Default()
}

const defaultReport = 2 * time.Second

// The headers by which a request says the way that it took.
const (
	HeaderPool      = "X-Gslb-Pool" // the pool whose proxy took the user's request; to the user and to the upstream
	HeaderSite      = "X-Gslb-Site" // of that proxy
	headerRequestID = "X-Request-Id"
)

// Statz is the path of the proxy's own load, as JSON, for clients on loopback and private
// networks. Others are proxied like everything else.
const Statz = "/statz"

// Proxy is one GFE. Make it with New, then Listen, then Run.
type Proxy struct {
	// Set at construction.
	c        Config
	started  time.Time
	up       *Upstream
	reverse  *httputil.ReverseProxy
	server   *serve.Server
	requests counts
	rate     rate
	rtts     passive
}

// New checks c and returns a proxy that neither listens nor runs.
func New(c Config) (*Proxy, error) {
	if c.Pool == "" {
		return nil, errors.New("gfe: no pool: expected the name of the pool that this proxy belongs to")
	}
	c.Name = cmp.Or(c.Name, c.Pool)
	if i := strings.IndexFunc(c.Name, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", r) }); i >= 0 {
		return nil, fmt.Errorf("gfe %q: a name may hold letters, digits and !#$%%&'*+-.^_`|~ only", c.Name)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	up, err := NewUpstream(UpstreamConfig{
		Pool: c.Pool, Source: c.Source,
		Connect: c.Connect, Header: c.Header, Eject: c.Eject, H2C: c.H2C,
		Tracer: c.Tracer, Log: c.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("gfe %s: %w", c.Name, err)
	}
	p := &Proxy{c: c, started: time.Now(), up: up}
	p.reverse = &httputil.ReverseProxy{
		Rewrite:        p.rewrite,
		Transport:      up,
		ModifyResponse: p.modifyResponse,
		ErrorHandler:   p.fail,
		ErrorLog:       slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug), // of answers that broke half way
	}
	p.server, err = serve.New(serve.Config{
		Name: "gfe " + c.Name, Handler: serve.Trace(c.Tracer, p), ConnContext: withConn,
		Listen: c.Listen, Cert: c.Cert, Key: c.Key, Lame: c.Lame, Grace: c.Grace, Log: c.Log,
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Listen binds the addresses. Connections wait until Run.
func (p *Proxy) Listen() error { return p.server.Listen() }

// Addrs returns the addresses bound.
func (p *Proxy) Addrs() []netip.AddrPort { return p.server.Addrs() }

// Close gives up addresses that were bound when Run will not follow.
func (p *Proxy) Close() { p.server.Close() }

// Run serves until ctx ends, then drains and returns. Assignments are followed until the
// last request has ended.
func (p *Proxy) Run(ctx context.Context) error {
	back, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { p.up.Run(back) })
	wg.Go(func() { p.report(back) })
	return p.server.Run(ctx)
}

// report measures the rate of requests, and tells the load to a source that takes it.
func (p *Proxy) report(ctx context.Context) {
	to, _ := p.c.Source.(Reporter)
	asks, _ := p.c.Source.(interface{ Every() time.Duration })
	every := cmp.Or(p.c.Report, defaultReport)
	tick := time.NewTicker(every)
	defer tick.Stop()
	taken, takenAt, measured := p.Load(), time.Now(), time.Now()
	var failing bool
	for {
		var now time.Time
		select {
		case <-ctx.Done():
			return
		case now = <-tick.C:
		}
		p.rate.measure(p.requests.issued.Load(), now.Sub(measured))
		measured = now
		if to == nil {
			continue
		}
		load := p.Load()
		limit, cancel := context.WithTimeout(ctx, every)
		report := since(taken, load, now.Sub(takenAt))
		report.RTTs = p.rtts.take()
		err := to.Report(limit, report)
		cancel()
		if err == nil {
			taken, takenAt = load, now
		} else {
			p.rtts.put(report.RTTs)
		}
		if (err != nil) != failing && ctx.Err() == nil { // once a change, not once a report
			failing = err != nil
			p.c.Log.Info("load reports", "taken", !failing, "err", err)
		}
		if asks != nil && p.c.Report == 0 {
			if asked := cmp.Or(asks.Every(), defaultReport); asked != every {
				every = asked
				tick.Reset(every)
			}
		}
	}
}

// ServeHTTP answers one request.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == serve.Health:
		p.health(w)
		return
	case r.URL.Path == Statz && local(r.RemoteAddr):
		reply(w, http.StatusOK, p.Load())
		return
	}
	id := requestID(r.Header.Get(headerRequestID))
	r.Header.Set(headerRequestID, id)
	h := w.Header()
	h.Set(headerRequestID, id)
	h.Set(HeaderPool, p.c.Pool)
	if p.c.Site != "" {
		h.Set(HeaderSite, p.c.Site)
	}
	span := trace.SpanFromContext(r.Context())
	span.SetAttributes(attribute.String(tracing.AttrPool, p.c.Pool))
	p.link(span, r)

	sw := &outcome{ResponseWriter: w}
	p.requests.issued.Add(1)
	defer func() {
		p.requests.done(sw.ok())
		p.rtts.look(r, time.Now())
	}()
	switch {
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		p.page(sw, r, http.StatusMethodNotAllowed, r.Method+" is not for a gateway")
	case p.passed(r.Header):
		p.page(sw, r, http.StatusLoopDetected, "the request was here before: the upstreams of the pools make a loop")
	default:
		p.reverse.ServeHTTP(sw, r)
	}
}

// via is the proxy's part of Via (RFC 9110, section 7.6.3) for a message that came by that
// protocol.
func (p *Proxy) via(major, minor int) string {
	if major >= 2 {
		return fmt.Sprintf("%d %s", major, p.c.Name)
	}
	return fmt.Sprintf("%d.%d %s", major, minor, p.c.Name)
}

// passed reports whether a request went through this proxy before.
func (p *Proxy) passed(h http.Header) bool {
	for _, line := range h.Values("Via") {
		for by := range strings.SplitSeq(line, ",") {
			if f := strings.Fields(by); len(f) >= 2 && f[1] == p.c.Name {
				return true
			}
		}
	}
	return false
}

// rewrite makes the request to the upstream. ReverseProxy has taken the hop-by-hop headers
// off it, and what the client said in Forwarded and X-Forwarded-*: at the edge nobody else
// knows better.
func (p *Proxy) rewrite(r *httputil.ProxyRequest) {
	r.SetXForwarded()
	r.Out.URL.RawQuery = r.In.URL.RawQuery // as it came, also what net/url does not like
	h := r.Out.Header
	for name := range h {
		if strings.HasPrefix(name, "X-Gslb-") {
			delete(h, name)
		}
	}
	h.Set(HeaderPool, p.c.Pool)
	if p.c.Site != "" {
		h.Set(HeaderSite, p.c.Site)
	}
	h.Add("Via", p.via(r.In.ProtoMajor, r.In.ProtoMinor))
}

// modifyResponse takes off the answer what the proxy says itself.
func (p *Proxy) modifyResponse(res *http.Response) error {
	for name := range res.Header {
		if strings.HasPrefix(name, "X-Gslb-") {
			delete(res.Header, name)
		}
	}
	delete(res.Header, headerRequestID)
	res.Header.Add("Via", p.via(res.ProtoMajor, res.ProtoMinor))
	return nil
}

// fail answers a request that no upstream answered.
func (p *Proxy) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *Error
	switch {
	case errors.As(err, &e):
		trace.SpanFromContext(r.Context()).RecordError(e)
		p.c.Log.Debug("request failed", "pool", p.c.Pool, "id", r.Header.Get(headerRequestID), "err", e)
		if e.Reason == NoUpstream {
			w.Header().Set("Retry-After", "2")
		}
		p.page(w, r, e.Status(), e.Public())
	case r.Context().Err() != nil:
		w.WriteHeader(statusClientClosed) // nobody reads it; it is for the span and the counters
	default:
		p.page(w, r, http.StatusBadGateway, "the upstream's answer was not understood")
	}
}

// statusClientClosed is what nginx calls it when the client went away before the answer.
const statusClientClosed = 499

// page answers with a few words, as HTML for those who ask for it.
func (p *Proxy) page(w http.ResponseWriter, r *http.Request, status int, words string) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	title := fmt.Sprintf("%d %s", status, http.StatusText(status))
	id := r.Header.Get(headerRequestID)
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		h.Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<!doctype html><title>%s</title><h1>%[1]s</h1><p>%s</p><p><small>%s, request %s</small></p>\n",
			title, html.EscapeString(words), html.EscapeString(p.c.Pool), html.EscapeString(id))
		return
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, "%s\n%s\nrequest %s\n", title, words, id)
}

// health answers 200 while the proxy serves and has somewhere to send requests, or is told
// truly that there is nowhere: that is then not the fault of this proxy, and taking every
// proxy out would help nobody.
func (p *Proxy) health(w http.ResponseWriter) {
	status, words := http.StatusOK, "ok"
	if err := p.up.Ready(); err != nil {
		status, words = http.StatusServiceUnavailable, "no upstream: "+publicCause(err)
	}
	if p.server.Draining() {
		status, words = http.StatusServiceUnavailable, "draining"
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintln(w, words)
}

// Load returns what the proxy has done.
func (p *Proxy) Load() Load {
	a := p.up.Assignment()
	l := Load{
		Pool: p.c.Pool, Proxy: p.c.Name, Site: p.c.Site, Since: p.started,
		Revision: a.Revision, Plan: a.Plan, Source: "ok", Draining: p.server.Draining(),
		Requests: figures(&p.requests, &p.rate),
	}
	if err := p.up.source.Load().err; err != nil {
		l.Source = err.Error()
	}
	if p.c.Linker != nil {
		links := p.c.Linker.Stats()
		l.Links = &links
	}
	l.Pools, l.Endpoints = p.up.load()
	return l
}

// Upstream returns the way to the pool's upstream.
func (p *Proxy) Upstream() *Upstream { return p.up }

// local reports whether a client is on this host or on a private network.
func local(remote string) bool {
	a, err := netip.ParseAddrPort(remote)
	addr := a.Addr().Unmap()
	return err == nil && (addr.IsLoopback() || addr.IsPrivate())
}

// maxRequestID bounds the id that a client may choose.
const maxRequestID = 128

// requestID returns the id that the client chose if it is fit for logs and headers, or a new
// one of 128 random bits.
func requestID(from string) string {
	fit := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("-_.:/+=", r)
	}
	if from != "" && len(from) <= maxRequestID && strings.IndexFunc(from, func(r rune) bool { return !fit(r) }) < 0 {
		return from
	}
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// outcome remembers whether an answer was a failure.
type outcome struct {
	http.ResponseWriter
	status int
}

func (o *outcome) WriteHeader(status int) {
	o.status = status // the last one counts: those before were interim
	o.ResponseWriter.WriteHeader(status)
}

// ok reports whether the answer was none of 5xx.
func (o *outcome) ok() bool { return o.status < 500 }

// Unwrap lets http.ResponseController reach what o does not have itself.
func (o *outcome) Unwrap() http.ResponseWriter { return o.ResponseWriter }

// reply answers with v as JSON.
func reply(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		panic(fmt.Sprintf("proxy: a value that is not JSON: %v", err)) // ours, always
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}
