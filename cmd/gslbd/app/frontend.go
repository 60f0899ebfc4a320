package app

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/meridian-gslb/meridian/cmd/gfe/proxy"
	"github.com/meridian-gslb/meridian/cmd/gfe/serve"
)

// Page is what a frontend says of a visit: the way that it took, and its number.
type Page struct {
	Visit    uint64   `json:"visit"`
	GFE      Instance `json:"gfe"` // the pool of the proxy, as it named itself; empty without one
	Frontend Instance `json:"frontend"`
	Backend  Instance `json:"backend"`
	Database Instance `json:"database"`
	Trace    string   `json:"trace,omitempty"` // id of the request's trace
}

// backendTimeout bounds one request to a backend.
const backendTimeout = 8 * time.Second

// Frontend renders a page for each visit: HTML for browsers, JSON for those who accept that,
// else text. Only GET / is a visit. Make it with NewFrontend, then Listen, then Run.
type Frontend struct {
	// Set at construction.
	*serve.Server
	c      Config
	self   Instance
	up     *proxy.Upstream
	client *http.Client
}

// NewFrontend returns a frontend of pool, whose backends are those that source assigns to
// that pool.
func NewFrontend(c Config, pool string, source proxy.Source) (*Frontend, error) {
	up, err := proxy.NewUpstream(proxy.UpstreamConfig{Pool: pool, Source: source, Tracer: c.Tracer, Log: c.Log})
	if err != nil {
		return nil, fmt.Errorf("frontend: %w", err)
	}
	f := &Frontend{up: up, client: &http.Client{Transport: up}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", f.page)
	f.Server, err = c.server("frontend", mux, func(context.Context) error { return up.Ready() })
	f.c, f.self = c, Instance{c.Name, c.Site}
	return f, err
}

// Run serves until ctx ends and drains.
func (f *Frontend) Run(ctx context.Context) error {
	back, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { f.up.Run(back) }) // until the last request has ended
	return f.Server.Run(ctx)
}

// page answers a visit.
func (f *Frontend) page(w http.ResponseWriter, r *http.Request) {
	method, path := http.MethodPost, "/visit"
	if r.Method == http.MethodHead { // looks, and does not visit
		method, path = http.MethodGet, "/visits"
	}
	v, err := f.ask(r.Context(), method, path)
	if err != nil {
		f.fail(w, r, err)
		return
	}
	p := Page{
		Visit:    v.Visits,
		GFE:      Instance{r.Header.Get(proxy.HeaderPool), r.Header.Get(proxy.HeaderSite)},
		Frontend: f.self, Backend: v.Backend, Database: v.Database,
	}
	if sc := trace.SpanContextFromContext(r.Context()); sc.HasTraceID() {
		p.Trace = sc.TraceID().String()
	}
	f.render(w, r, p)
}

// ask asks a backend.
func (f *Frontend) ask(ctx context.Context, method, path string) (v Visits, err error) {
	ctx, cancel := context.WithTimeout(ctx, backendTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://backend"+path, nil) // the upstream chooses the host
	if err != nil {
		return v, err
	}
	res, err := f.client.Do(req)
	if err != nil {
		return v, err
	}
	if err := readJSON(res, &v); err != nil {
		return v, fmt.Errorf("backend: %w", err)
	}
	return v, nil
}

// fail answers a visit that no backend took.
func (f *Frontend) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, words := http.StatusBadGateway, err.Error()
	var e *proxy.Error
	if errors.As(err, &e) {
		status, words = e.Status(), e.Public()
	}
	f.c.Log.Debug("visit failed", "frontend", f.self.Name, "err", err)
	if accepts(r, "application/json") {
		reply(w, status, problem{words})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprintf(w, "frontend %s: %s\n", f.self, words)
}

//go:embed page.html
var pageHTML string

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// render writes p in the form that the client likes.
func (f *Frontend) render(w http.ResponseWriter, r *http.Request, p Page) {
	w.Header().Add("Vary", "Accept")
	switch {
	case accepts(r, "text/html"):
		var b bytes.Buffer
		if err := pageTemplate.Execute(&b, p); err != nil {
			panic(fmt.Sprintf("app: the page does not render: %v", err)) // ours, always
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		w.Header().Set("Cache-Control", "no-store")
		w.Write(b.Bytes())
	case accepts(r, "application/json"):
		reply(w, http.StatusOK, p)
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprint(w, p.text())
	}
}

// text is the page for a terminal.
func (p Page) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "visit %d\n", p.Visit)
	for _, hop := range []struct {
		service string
		at      Instance
	}{{"gfe", p.GFE}, {"frontend", p.Frontend}, {"backend", p.Backend}, {"database", p.Database}} {
		if hop.at.Name != "" {
			fmt.Fprintf(&b, "  %-9s %s\n", hop.service, hop.at)
		}
	}
	if p.Trace != "" {
		fmt.Fprintf(&b, "  %-9s %s\n", "trace", p.Trace)
	}
	return b.String()
}

// accepts reports whether the client names that media type.
func accepts(r *http.Request, media string) bool {
	return strings.Contains(strings.Join(r.Header.Values("Accept"), ","), media)
}
