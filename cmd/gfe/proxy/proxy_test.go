package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
	"github.com/meridian-gslb/meridian/cmd/gfe/serve"
	"github.com/meridian-gslb/meridian/gslb"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// feed is a source that a test holds in its hand.
type feed struct {
	assignments chan Assignment
	broken      chan error
	taken       chan struct{} // after each assignment

	mu      sync.Mutex
	reports []api.Load // guarded by mu
	refuse  bool       // guarded by mu
}

func newFeed() *feed {
	return &feed{assignments: make(chan Assignment), broken: make(chan error), taken: make(chan struct{})}
}

func (f *feed) Follow(ctx context.Context, pool string, update func(Assignment)) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-f.broken:
			return err
		case a := <-f.assignments:
			update(a)
			f.taken <- struct{}{}
		}
	}
}

// set hands a over and returns when it is in use.
func (f *feed) set(a Assignment) {
	f.assignments <- a
	<-f.taken
}

func (f *feed) Report(_ context.Context, l api.Load) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse {
		return errors.New("not now")
	}
	f.reports = append(f.reports, l)
	return nil
}

// start runs a proxy of pool gfe-eu until the test ends.
func start(t *testing.T, c Config) (p *Proxy, base string) {
	t.Helper()
	c.Pool, c.Name, c.Site = "gfe-eu", "gfe-eu-1", "eu-west"
	if c.Listen == nil {
		c.Listen = []string{"127.0.0.1:0"}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	run(t, p.Run)
	return p, "http://" + p.Addrs()[0].String()
}

// run runs until the test ends, and waits.
func run(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// upstream answers with handler and returns the assignment of it alone.
func upstream(t *testing.T, handler http.HandlerFunc) (gslb.Endpoint, Assignment) {
	t.Helper()
	e := at(netip.MustParseAddrPort(server(t, handler).Listener.Addr().String()))
	return e, to(1, e)
}

func at(a netip.AddrPort) gslb.Endpoint {
	return gslb.Endpoint{Addr: a.Addr(), Port: a.Port(), Weight: 1}
}

func to(revision uint64, endpoints ...gslb.Endpoint) Assignment {
	return Assignment{Revision: revision, Plan: "ab", Hops: []gslb.Hop{{Pool: "fe-eu", Site: "eu-west", Weight: 1, Endpoints: endpoints}}}
}

// answer is a response whose body was read.
type answer struct {
	*http.Response
	body string
}

func client(t *testing.T) *http.Client {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func do(t *testing.T, c *http.Client, method, url string, body io.Reader, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: body: %v", method, url, err)
	}
	return answer{res, string(b)}
}

func get(t *testing.T, url string, headers ...string) answer {
	t.Helper()
	return do(t, client(t), http.MethodGet, url, nil, headers...)
}

// check compares what was answered.
func check(t *testing.T, a answer, status int, contains ...string) {
	t.Helper()
	if a.StatusCode != status {
		t.Errorf("status: got %d, want %d (body %q)", a.StatusCode, status, a.body)
	}
	for _, c := range contains {
		if !strings.Contains(a.body, c) {
			t.Errorf("body: got %q, want %q in it", a.body, c)
		}
	}
}

func TestRequestAsTheUpstreamSeesIt(t *testing.T) {
	gfetest.Leaks(t)
	seen := make(chan *http.Request, 1)
	_, a := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		h := w.Header()
		h.Set("X-Gslb-Pool", "liar")
		h.Set("X-Gslb-Other", "liar")
		h.Set("X-Request-Id", "liar")
		h.Set("X-Own", "kept")
		h.Set("Connection", "X-Hop")
		h.Set("X-Hop", "1")
		fmt.Fprint(w, "hello")
	})
	f := newFeed()
	_, base := start(t, Config{Source: f})
	f.set(a)
	got := get(t, base+"/a%2Fb?x=1;y=%zz",
		"Host", "ignored", "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "https", "Forwarded", "for=6.6.6.6",
		"X-Gslb-Pool", "forged", "X-Gslb-Else", "forged", "Connection", "X-Drop, close", "X-Drop", "1", "Via", "1.0 before",
		"X-Request-Id", "mine-1", "X-Own", "kept", "TE", "trailers")
	check(t, got, http.StatusOK, "hello")
	r := <-seen
	for name, want := range map[string][]string{
		"X-Forwarded-For":   {"127.0.0.1"},
		"X-Forwarded-Proto": {"http"},
		"X-Forwarded-Host":  {strings.TrimPrefix(base, "http://")},
		"Forwarded":         nil,
		"X-Gslb-Pool":       {"gfe-eu"},
		"X-Gslb-Site":       {"eu-west"},
		"X-Gslb-Else":       nil,
		"X-Drop":            nil,
		"Via":               {"1.0 before", "1.1 gfe-eu-1"},
		"X-Request-Id":      {"mine-1"},
		"X-Own":             {"kept"},
	} {
		if !slices.Equal(r.Header.Values(name), want) {
			t.Errorf("request %s: got %q, want %q", name, r.Header.Values(name), want)
		}
	}
	if got, want := r.RequestURI, "/a%2Fb?x=1;y=%zz"; got != want {
		t.Errorf("request target: got %s, want %s", got, want)
	}
	if got, want := "http://"+r.Host, base; got != want {
		t.Errorf("host: got %s, want %s", got, want)
	}
	for name, want := range map[string][]string{
		"X-Gslb-Pool":  {"gfe-eu"},
		"X-Gslb-Site":  {"eu-west"},
		"X-Gslb-Other": nil,
		"X-Request-Id": {"mine-1"},
		"X-Own":        {"kept"},
		"X-Hop":        nil,
		"Via":          {"1.1 gfe-eu-1"},
	} {
		if !slices.Equal(got.Header.Values(name), want) {
			t.Errorf("answer %s: got %q, want %q", name, got.Header.Values(name), want)
		}
	}
}

func TestRequestID(t *testing.T) {
	for _, test := range []struct {
		name, from string
		kept       bool
	}{
		{"fit", "a-Z_0.9:/+=", true},
		{"none", "", false},
		{"long", strings.Repeat("x", maxRequestID+1), false},
		{"just not long", strings.Repeat("x", maxRequestID), true},
		{"spaces", "a b", false},
		{"octets", "a\x80", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := requestID(test.from)
			if (got == test.from) != test.kept || !test.kept && len(got) != 32 {
				t.Errorf("of %q: got %q, want it kept: %v", test.from, got, test.kept)
			}
		})
	}
}

func TestNoUpstream(t *testing.T) {
	gfetest.Leaks(t)
	f := newFeed()
	p, base := start(t, Config{Source: f})
	check(t, get(t, base+"/"), http.StatusServiceUnavailable, "no upstream for pool gfe-eu: no assignment yet")
	check(t, get(t, base+"/healthz"), http.StatusServiceUnavailable, "no assignment yet")

	f.broken <- errors.New("config server on fire")
	gfetest.Eventually(t, "the source's error is known", func() bool { return p.Load().Source == "config server on fire" })
	for _, path := range []string{"/", "/healthz"} { // the fault of a source may name an inside address
		public := get(t, base+path)
		check(t, public, http.StatusServiceUnavailable, "nobody says now where requests go")
		if strings.Contains(public.body, "on fire") {
			t.Errorf("%s: got %q; want no words of the source", path, public.body)
		}
	}

	f.set(Assignment{Revision: 4})
	got := get(t, base+"/", "Accept", "text/html,*/*")
	check(t, got, http.StatusServiceUnavailable, "<!doctype html>", "no upstream for pool gfe-eu: the plan at revision 4 gives it none")
	for name, want := range map[string]string{"Retry-After": "2", "Cache-Control": "no-store", "Content-Type": "text/html; charset=utf-8", HeaderPool: "gfe-eu"} {
		if got := got.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	check(t, get(t, base+"/healthz"), http.StatusOK, "ok") // there is truly none: no fault of this proxy

	none := endpoint(1, 0)
	f.set(to(5, none))
	check(t, get(t, base+"/"), http.StatusServiceUnavailable, "every endpoint has weight 0 at revision 5")
}

func TestRefusedIsTriedElsewhere(t *testing.T) {
	gfetest.Leaks(t)
	refusing, _ := gfetest.Refusing(t)
	good, _ := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.Method, b)
	})
	f := newFeed()
	p, base := start(t, Config{Source: f, Eject: time.Nanosecond}) // ejected for no longer than the request, so that each may meet it
	f.set(to(1, at(refusing), good))
	for n := 0; p.Load().Endpoints[endpointIndex(p, refusing)].Error < 5; n++ {
		check(t, get(t, base+"/"), http.StatusOK, "GET ")
		check(t, do(t, client(t), http.MethodPost, base+"/", strings.NewReader("the body")), http.StatusOK, "POST the body")
		if n > 1000 {
			t.Fatal("the endpoint that refuses was never tried")
		}
	}
	load := p.Load()
	if got := load.Requests; got.Error != 0 || got.InProgress != 0 {
		t.Errorf("requests of users: got %+v, want no error and none in progress", got)
	}
}

func endpointIndex(p *Proxy, a netip.AddrPort) int {
	return slices.IndexFunc(p.Load().Endpoints, func(l PeerLoad) bool { return l.Addr == a })
}

func TestRefusedEverywhere(t *testing.T) {
	gfetest.Leaks(t)
	one, _ := gfetest.Refusing(t)
	two, _ := gfetest.Refusing(t)
	three, _ := gfetest.Refusing(t)
	f := newFeed()
	p, base := start(t, Config{Source: f})
	f.set(to(1, at(one), at(two), at(three)))
	got := get(t, base+"/")
	check(t, got, http.StatusBadGateway, "upstream pool fe-eu failed: connection refused")
	if strings.Contains(got.body, "127.0.0.1") {
		t.Errorf("the page names addresses of the inside: %q", got.body)
	}
	var tries uint64
	for _, e := range p.Load().Endpoints {
		tries += e.Error
	}
	if tries != attempts {
		t.Errorf("endpoints tried: got %d, want %d", tries, attempts)
	}
}

func TestEjectedComesBack(t *testing.T) {
	gfetest.Leaks(t)
	refusing, listen := gfetest.Refusing(t)
	spare, _ := upstream(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "spare") })
	f := newFeed()
	p, base := start(t, Config{Source: f, Eject: 50 * time.Millisecond})
	a := to(1, at(refusing))
	a.Hops = append(a.Hops, gslb.Hop{Pool: "fe-us", Site: "us-east", Weight: 1, Priority: 1, Endpoints: []gslb.Endpoint{spare}})
	f.set(a)

	check(t, get(t, base+"/"), http.StatusOK, "spare")
	if e := p.Load().Endpoints[endpointIndex(p, refusing)]; e.Error != 1 {
		t.Errorf("the endpoint that refuses: got %+v, want one error", e)
	}

	back := &httptest.Server{Listener: listen(), Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "back") })}}
	back.Start()
	t.Cleanup(back.Close)
	gfetest.Eventually(t, "the first choice answers again", func() bool {
		a := get(t, base+"/")
		check(t, a, http.StatusOK)
		return a.body == "back"
	})
}

func TestTimeouts(t *testing.T) {
	gfetest.Leaks(t)
	_, a := upstream(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	f := newFeed()
	p, base := start(t, Config{Source: f, Header: 20 * time.Millisecond})
	f.set(a)
	check(t, get(t, base+"/"), http.StatusGatewayTimeout, "upstream pool fe-eu timed out")
	if got := p.Load().Pools[0]; got.Error != 1 || got.InProgress != 0 {
		t.Errorf("load: got %+v, want one error and nothing in progress", got)
	}
}

func TestUpstreamBreaks(t *testing.T) {
	gfetest.Leaks(t)
	_, a := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/half" {
			w.Header().Set("Content-Length", "200000")
			io.WriteString(w, strings.Repeat("x", 100000))
			http.NewResponseController(w).Flush()
		}
		panic(http.ErrAbortHandler)
	})
	f := newFeed()
	p, base := start(t, Config{Source: f})
	f.set(a)
	check(t, do(t, client(t), http.MethodPost, base+"/", strings.NewReader("x")), http.StatusBadGateway, "upstream pool fe-eu failed: the connection broke")

	res, err := client(t).Get(base + "/half")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	res.Body.Close()
	if len(b) >= 200000 || err == nil {
		t.Errorf("body: got %d octets and error %v, want less than all and an error", len(b), err)
	}
	gfetest.Eventually(t, "both are counted as errors", func() bool { return p.Load().Pools[0].Error == 2 })
}

func TestClientGoesAway(t *testing.T) {
	gfetest.Leaks(t)
	arrived := make(chan struct{})
	_, a := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})
	f := newFeed()
	p, base := start(t, Config{Source: f})
	f.set(a)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-arrived; cancel() }()
	if _, err := client(t).Do(req); !errors.Is(err, context.Canceled) {
		t.Errorf("client: got %v, want its own cancellation", err)
	}
	gfetest.Eventually(t, "the request is over", func() bool { l := p.Load(); return l.Requests.Success == 1 && l.Pools[0].Success == 1 })
	if l := p.Load(); l.Requests.Error != 0 || l.Pools[0].Error != 0 {
		t.Errorf("errors: got %d and %d, want none: it was nobody's failure", l.Requests.Error, l.Pools[0].Error)
	}
}

// adminAPI is the stream of assignments of a node, on an address that outlives it.
type adminAPI struct{ *httptest.Server }

func startAdmin(t *testing.T, ln net.Listener, revision uint64, e gslb.Endpoint) *adminAPI {
	t.Helper()
	n := &adminAPI{}
	n.Server = &httptest.Server{Listener: ln, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"pool": "gfe-eu", "revision": revision, "hops": to(revision, e).Hops})
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})}}
	n.Start()
	return n
}

func (n *adminAPI) stop() {
	n.CloseClientConnections()
	n.Close()
}

func TestConfigServerGone(t *testing.T) {
	gfetest.Leaks(t)
	e, _ := upstream(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	where := ln.Addr().String()
	node := startAdmin(t, ln, 7, e)
	source, err := NewHTTP("http://"+where, "")
	if err != nil {
		t.Fatal(err)
	}
	p, base := start(t, Config{Source: source})
	gfetest.Eventually(t, "the first assignment", func() bool { return p.Load().Revision == 7 })
	check(t, get(t, base+"/"), http.StatusOK, "ok")

	node.stop()
	gfetest.Eventually(t, "the loss is known", func() bool { return p.Load().Source != "ok" })
	check(t, get(t, base+"/"), http.StatusOK, "ok")
	check(t, get(t, base+"/healthz"), http.StatusOK, "ok")
	if got := p.Load(); got.Revision != 7 {
		t.Errorf("revision: got %d, want 7: the last assignment stays", got.Revision)
	}

	ln, err = net.Listen("tcp", where)
	if err != nil {
		t.Fatal(err)
	}
	node = startAdmin(t, ln, 3, e) // another stream may start lower
	t.Cleanup(node.stop)
	gfetest.Eventually(t, "the node's new assignment", func() bool { l := p.Load(); return l.Source == "ok" && l.Revision == 3 })
}

func TestOlderAssignmentIsRefused(t *testing.T) {
	gfetest.Leaks(t)
	f := newFeed()
	p, _ := start(t, Config{Source: f})
	for _, step := range []struct{ send, want uint64 }{{5, 5}, {4, 5}, {5, 5}, {6, 6}} {
		f.set(Assignment{Revision: step.send})
		if got := p.Load().Revision; got != step.want {
			t.Errorf("after revision %d: got %d in use, want %d", step.send, got, step.want)
		}
	}
	f.broken <- errors.New("broken")
	f.set(Assignment{Revision: 2})
	if got := p.Load().Revision; got != 2 {
		t.Errorf("after a new stream: got revision %d in use, want 2", got)
	}
}

func TestEndpointsThatLeave(t *testing.T) {
	gfetest.Leaks(t)
	hold, arrived := make(chan struct{}), make(chan struct{})
	slow, _ := upstream(t, func(w http.ResponseWriter, r *http.Request) { close(arrived); <-hold; fmt.Fprint(w, "slow") })
	fast, _ := upstream(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "fast") })
	f := newFeed()
	p, base := start(t, Config{Source: f})
	f.set(to(1, slow))
	answered := make(chan answer, 1)
	go func() { answered <- get(t, base+"/") }()
	<-arrived
	f.set(to(2, fast)) // the endpoint is gone from the plan while its request is under way
	check(t, get(t, base+"/"), http.StatusOK, "fast")
	if got := len(p.Load().Endpoints); got != 2 {
		t.Errorf("endpoints while one is still asked: got %d, want 2", got)
	}
	close(hold)
	check(t, <-answered, http.StatusOK, "slow")
	f.set(to(3, fast))
	l := p.Load()
	if len(l.Endpoints) != 1 || l.Pools[0].Success != 2 {
		t.Errorf("after it: got %d endpoints and %+v, want 1, and both requests in the pool's load", len(l.Endpoints), l.Pools)
	}
}

func TestHTTP2(t *testing.T) {
	gfetest.Leaks(t)
	cert, key, trust := gfetest.Certificate(t)
	handler := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Proto, " ", r.Header.Get("X-Forwarded-Proto"), " ", r.Header.Get("Via"))
	}
	h1, _ := upstream(t, handler)
	clear := new(http.Protocols)
	clear.SetUnencryptedHTTP2(true)
	only2 := httptest.NewUnstartedServer(http.HandlerFunc(handler))
	only2.Config.Protocols = clear
	only2.Start()
	t.Cleanup(only2.Close)
	h2 := at(netip.MustParseAddrPort(only2.Listener.Addr().String()))

	secure := new(http.Protocols)
	secure.SetHTTP2(true)
	old := new(http.Protocols)
	old.SetHTTP1(true)
	for _, test := range []struct {
		name      string
		protocols *http.Protocols
		listener  int
		up        gslb.Endpoint
		h2c       bool
		proto     string
		body      string
	}{
		{"h2c in, HTTP/1.1 out", clear, 0, h1, false, "HTTP/2.0", "HTTP/1.1 http 2 gfe-eu-1"},
		{"TLS h2 in, HTTP/1.1 out", secure, 1, h1, false, "HTTP/2.0", "HTTP/1.1 https 2 gfe-eu-1"},
		{"TLS HTTP/1.1 in, h2c out", old, 1, h2, true, "HTTP/1.1", "HTTP/2.0 https 1.1 gfe-eu-1"},
		{"h2c in and out", clear, 0, h2, true, "HTTP/2.0", "HTTP/2.0 http 2 gfe-eu-1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFeed()
			p, _ := start(t, Config{Source: f, Listen: []string{"http://127.0.0.1:0", "127.0.0.1:0"}, Cert: cert, Key: key, H2C: test.h2c})
			f.set(to(1, test.up))
			c := &http.Client{Transport: &http.Transport{Protocols: test.protocols, TLSClientConfig: &tls.Config{RootCAs: trust}}}
			t.Cleanup(c.CloseIdleConnections)
			scheme := []string{"http://", "https://"}[test.listener]
			got := do(t, c, http.MethodGet, scheme+p.Addrs()[test.listener].String()+"/", nil)
			check(t, got, http.StatusOK, test.body)
			if got.Proto != test.proto {
				t.Errorf("protocol: got %s, want %s", got.Proto, test.proto)
			}
		})
	}
}

func TestDrain(t *testing.T) {
	gfetest.Leaks(t)
	hold, arrived := make(chan struct{}), make(chan struct{})
	_, a := upstream(t, func(w http.ResponseWriter, r *http.Request) { close(arrived); <-hold; fmt.Fprint(w, "done") })
	f := newFeed()
	p, err := New(Config{Pool: "gfe-eu", Source: f, Listen: []string{"127.0.0.1:0"}, Grace: time.Minute, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	base := "http://" + p.Addrs()[0].String()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	f.set(a)
	answered := make(chan answer, 1)
	go func() { answered <- get(t, base+"/") }()
	<-arrived

	cancel()
	gfetest.Eventually(t, "new connections are refused", func() bool {
		conn, err := net.Dial("tcp", p.Addrs()[0].String())
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "draining") {
		t.Errorf("health while draining: got %d %q, want 503 draining", w.Code, w.Body)
	}
	select {
	case err := <-ended:
		t.Fatalf("ended with a request under way: %v", err)
	default:
	}
	close(hold)
	check(t, <-answered, http.StatusOK, "done")
	if err := <-ended; err != nil {
		t.Errorf("run: got %v, want nil", err)
	}
}

func TestGraceEnds(t *testing.T) {
	gfetest.Leaks(t)
	arrived := make(chan struct{})
	_, a := upstream(t, func(w http.ResponseWriter, r *http.Request) { close(arrived); <-r.Context().Done() })
	f := newFeed()
	p, err := New(Config{Pool: "gfe-eu", Source: f, Listen: []string{"127.0.0.1:0"}, Grace: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	f.set(a)
	go func() { <-arrived; cancel() }()
	if _, err := client(t).Get("http://" + p.Addrs()[0].String()); err == nil {
		t.Error("a request that outlives the grace: got an answer, want it cut off")
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "cut off after 1ms") {
		t.Errorf("run: got %v, want that requests were cut off", err)
	}
}

func TestUpgrade(t *testing.T) {
	gfetest.Leaks(t)
	_, a := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, _ := rw.ReadString('\n')
		fmt.Fprint(conn, "echo ", line)
	})
	f := newFeed()
	p, _ := start(t, Config{Source: f})
	f.set(a)
	conn, err := net.Dial("tcp", p.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("answer: got %v, %v; want 101", res, err)
	}
	fmt.Fprint(conn, "hello\n")
	if got, err := r.ReadString('\n'); got != "echo hello\n" {
		t.Errorf("through the upgraded connection: got %q, %v; want echo hello", got, err)
	}
	gfetest.Eventually(t, "it is over", func() bool { return p.Load().Pools[0].Success == 1 })
}

func TestRefusedRequests(t *testing.T) {
	f := newFeed()
	p, err := New(Config{Pool: "gfe-eu", Name: "me", Source: f, Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, method, via string
		want              int
	}{
		{"loop", "GET", "1.1 other, 1.1 me", http.StatusLoopDetected},
		{"no loop", "GET", "1.1 other, 1.1 me2", http.StatusServiceUnavailable},
		{"CONNECT", "CONNECT", "", http.StatusMethodNotAllowed},
		{"TRACE", "TRACE", "", http.StatusMethodNotAllowed},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(test.method, "http://x/", nil)
			r.Header.Set("Via", test.via)
			w := httptest.NewRecorder()
			p.ServeHTTP(w, r)
			if w.Code != test.want {
				t.Errorf("status: got %d, want %d (%s)", w.Code, test.want, w.Body)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	gfetest.Leaks(t)
	_, a := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	f := newFeed()
	f.refuse = true
	p, base := start(t, Config{Source: f, Report: 10 * time.Millisecond})
	f.set(a)
	for range 3 {
		check(t, get(t, base+"/"), http.StatusOK)
	}
	check(t, get(t, base+"/bad"), http.StatusInternalServerError)
	gfetest.Eventually(t, "requests end", func() bool { l := p.Load(); return l.Requests.InProgress == 0 && l.Pools[0].InProgress == 0 })

	var statz Load
	got := get(t, base+Statz)
	if err := json.Unmarshal([]byte(got.body), &statz); err != nil {
		t.Fatalf("%s: %v in %s", Statz, err, got.body)
	}
	want := Figures{Issued: 4, Success: 3, Error: 1}
	for name, f := range map[string]Figures{"requests": statz.Requests, "pool": statz.Pools[0].Figures, "endpoint": statz.Endpoints[0].Figures} {
		f.RPS = 0
		if f != want {
			t.Errorf("%s: got %+v, want %+v", name, f, want)
		}
	}
	if statz.Pool != "gfe-eu" || statz.Revision != 1 || statz.Source != "ok" || statz.Pools[0].Site != "eu-west" {
		t.Errorf("load: got %+v", statz)
	}

	// What refused reports held goes into the first one that is taken.
	f.mu.Lock()
	f.refuse = false
	f.mu.Unlock()
	sum := api.Load{Upstreams: []api.UpstreamLoad{{}}}
	gfetest.Eventually(t, "the reports hold every request once", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, l := range f.reports {
			if l.Proxy != "gfe-eu-1" || l.Pool != "gfe-eu" || l.Seconds <= 0 {
				t.Errorf("report: got %+v", l)
			}
			sum.Requests += l.Requests
			sum.Errors += l.Errors
			for _, u := range l.Upstreams {
				sum.Upstreams[0].Requests += u.Requests
				sum.Upstreams[0].Errors += u.Errors
			}
		}
		f.reports = nil
		return sum.Requests == 4
	})
	if sum.Errors != 1 || sum.Upstreams[0].Requests != 4 || sum.Upstreams[0].Errors != 1 {
		t.Errorf("reports together: got %+v, want 4 requests with 1 error, the same upstream", sum)
	}
}

func TestStatzIsForTheInside(t *testing.T) {
	p, err := New(Config{Pool: "gfe-eu", Source: newFeed(), Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		remote string
		want   int
	}{
		{"127.0.0.1:1", http.StatusOK}, {"[::1]:1", http.StatusOK}, {"10.1.2.3:1", http.StatusOK}, {"[fd00::1]:1", http.StatusOK},
		{"192.0.2.1:1", http.StatusServiceUnavailable}, {"[2001:db8::1]:1", http.StatusServiceUnavailable}, {"", http.StatusServiceUnavailable},
	} {
		r := httptest.NewRequest(http.MethodGet, Statz, nil)
		r.RemoteAddr = test.remote
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code != test.want {
			t.Errorf("from %q: got %d, want %d", test.remote, w.Code, test.want)
		}
	}
}

func TestRate(t *testing.T) {
	var r rate
	r.measure(10, 2*time.Second)
	r.measure(40, 2*time.Second)
	if got := r.value(); got != 15 {
		t.Errorf("30 in 2 s: got %v a second, want 15", got)
	}
}

// spans is a provider whose spans a test reads.
func spans() (*sdktrace.TracerProvider, *tracetest.InMemoryExporter) {
	out := tracetest.NewInMemoryExporter()
	return sdktrace.NewTracerProvider(sdktrace.WithSyncer(out), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample()))), out
}

func TestTrace(t *testing.T) {
	gfetest.Leaks(t)
	const traceID, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	seen := make(chan string, 1)
	good, _ := upstream(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header.Get("Traceparent") })
	refusing, _ := gfetest.Refusing(t)
	tp, out := spans()
	f := newFeed()
	_, base := start(t, Config{Source: f, Tracer: tp})
	a := to(42, at(refusing))
	a.Hops = append(a.Hops, gslb.Hop{Pool: "fe-us", Site: "us-east", Weight: 1, Priority: 1, Endpoints: []gslb.Endpoint{good}})
	f.set(a)
	check(t, get(t, base+"/x?secret=1", "Traceparent", "00-"+traceID+"-"+parent+"-01"), http.StatusOK)
	get(t, base+serve.Health) // not traced

	gfetest.Eventually(t, "three spans", func() bool { return len(out.GetSpans()) == 3 })
	byKind := map[trace.SpanKind][]tracetest.SpanStub{}
	for _, s := range out.GetSpans() {
		byKind[s.SpanKind] = append(byKind[s.SpanKind], s)
		if got := s.SpanContext.TraceID().String(); got != traceID {
			t.Errorf("%s: trace %s, want %s", s.Name, got, traceID)
		}
		for _, a := range s.Attributes {
			if strings.Contains(a.Value.String(), "secret") {
				t.Errorf("%s: attribute %s holds the query string: %s", s.Name, a.Key, a.Value.String())
			}
		}
	}
	if len(byKind[trace.SpanKindServer]) != 1 || len(byKind[trace.SpanKindClient]) != 2 {
		t.Fatalf("spans: got %d of servers and %d of clients, want 1 and 2", len(byKind[trace.SpanKindServer]), len(byKind[trace.SpanKindClient]))
	}
	user := byKind[trace.SpanKindServer][0]
	if got := user.Parent.SpanID().String(); got != parent {
		t.Errorf("parent of the server's span: got %s, want the user's %s", got, parent)
	}
	want := map[string]string{
		"gslb.pool": "gfe-eu", "gslb.upstream.pool": "fe-us", "gslb.upstream.site": "us-east", "gslb.revision": "42",
		"http.request.method": "GET", "url.path": "/x", "http.response.status_code": "200", "client.address": "127.0.0.1",
	}
	checkAttributes(t, user, want)
	first, second := byKind[trace.SpanKindClient][0], byKind[trace.SpanKindClient][1]
	checkAttributes(t, first, map[string]string{"gslb.upstream.pool": "fe-eu", "server.port": fmt.Sprint(refusing.Port())})
	checkAttributes(t, second, map[string]string{"gslb.upstream.pool": "fe-us", "http.request.resend_count": "1", "http.response.status_code": "200"})
	for _, s := range byKind[trace.SpanKindClient] {
		if s.Parent.SpanID() != user.SpanContext.SpanID() {
			t.Errorf("parent of a client's span: got %s, want the server's %s", s.Parent.SpanID(), user.SpanContext.SpanID())
		}
	}
	if got, want := <-seen, "00-"+traceID+"-"+second.SpanContext.SpanID().String()+"-01"; got != want {
		t.Errorf("traceparent at the upstream: got %s, want %s", got, want)
	}
}

func checkAttributes(t *testing.T, s tracetest.SpanStub, want map[string]string) {
	t.Helper()
	got := attribute.NewSet(s.Attributes...)
	for key, value := range want {
		if v, _ := got.Value(attribute.Key(key)); v.String() != value {
			t.Errorf("%s %s: got %q, want %q", s.Name, key, v.String(), value)
		}
	}
}

// TestTraceContextPassesWithoutTracer: a proxy that records nothing does not cut traces.
func TestTraceContextPassesWithoutTracer(t *testing.T) {
	gfetest.Leaks(t)
	seen := make(chan string, 1)
	_, a := upstream(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header.Get("Traceparent") })
	f := newFeed()
	_, base := start(t, Config{Source: f})
	f.set(a)
	const context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	get(t, base+"/", "Traceparent", context)
	if got := <-seen; got != context {
		t.Errorf("traceparent: got %s, want %s", got, context)
	}
}

func TestNew(t *testing.T) {
	f := newFeed()
	for _, test := range []struct {
		name string
		c    Config
		want string
	}{
		{"no pool", Config{Source: f}, "gfe: no pool"},
		{"no source", Config{Pool: "p", Listen: []string{":0"}}, "no source of assignments"},
		{"no address", Config{Pool: "p", Source: f}, "no address to listen on"},
		{"name", Config{Pool: "p", Name: "a b", Source: f}, "a name may hold"},
		{"certificate", Config{Pool: "p", Source: f, Listen: []string{":0"}, Cert: "x"}, "needs its key"},
		{"files", Config{Pool: "p", Source: f, Listen: []string{":0"}, Cert: "/nowhere/x", Key: "/nowhere/y"}, "certificate /nowhere/x with key /nowhere/y"},
		{"TLS without", Config{Pool: "p", Source: f, Listen: []string{"https://127.0.0.1:0"}}, "TLS needs a certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := New(test.c); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	p, err := New(Config{Pool: "p", Source: f, Listen: []string{"127.0.0.1:0", "127.0.0.1:99999"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(); err == nil || !strings.Contains(err.Error(), `listen "127.0.0.1:99999"`) {
		t.Errorf("a bad address: got %v, want it named", err)
	}
	if p.Addrs() != nil {
		t.Errorf("after it: got %v bound, want none", p.Addrs())
	}
}

func TestLogsOnceAChange(t *testing.T) {
	gfetest.Leaks(t)
	var log bytes.Buffer
	f := newFeed()
	u, err := NewUpstream(UpstreamConfig{Pool: "gfe-eu", Source: f, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, u.Run)
	f.set(Assignment{Revision: 1})
	f.set(Assignment{Revision: 2})
	f.broken <- errors.New("gone")
	f.broken <- errors.New("gone")
	f.set(Assignment{Revision: 3})
	stop()
	if got, want := strings.Count(log.String(), "\n"), 3; got != want {
		t.Errorf("lines: got %d, want %d (follow, stopped, follow):\n%s", got, want, &log)
	}
}
