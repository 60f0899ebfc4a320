package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// ample is a timeout that only a hang reaches, also on a loaded machine.
const ample = 20 * time.Second

// target returns the target of a probe at addr.
func target(addr netip.AddrPort, p config.Probe) Target {
	objects := &config.Objects{
		Probes: map[string]config.Probe{"p": p},
		Pools: map[string]config.Pool{"gfe": {Probe: "p", Endpoints: []config.Endpoint{{
			Address: addr.Addr(), Probe: &config.Target{Address: addr.Addr(), Port: addr.Port()},
		}}}},
	}
	return Targets(objects)[0]
}

func listen(t *testing.T) (net.Listener, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort()
}

// talk serves each connection with f.
func talk(t *testing.T, f func(c *net.TCPConn)) netip.AddrPort {
	l, addr := listen(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f(c.(*net.TCPConn))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return addr
}

// closedPort returns an address on which nothing listens.
func closedPort(t *testing.T) netip.AddrPort {
	l, addr := listen(t)
	_ = l.Close()
	return addr
}

// probeOnce returns the result of a probe. One that a knocker makes, too, is to have the same by it.
func probeOnce(t *testing.T, x Target, roots *x509.CertPool) Result {
	t.Helper()
	p := NewProber(ProberOptions{RootCAs: roots})
	probe, h := p.prepare(x)
	if h != nil {
		defer h.release()
	}
	r := probe(t.Context())
	if h != nil && h.plain() && !x.Probe.Invert {
		if _, k := knockOnce(t, x); k.Class != r.Class || k.Detail != r.Detail && r.Class != Timeout || k.Latency <= 0 {
			t.Errorf("by the knocker: %+v, want %+v", k, r)
		}
	}
	return r
}

// knockOnce returns a prober that kept no connections, and what it reported first.
func knockOnce(t *testing.T, x Target) (*Prober, Result) {
	t.Helper()
	first := make(chan Result, 1)
	take := func(r Result) {
		select {
		case first <- r:
		default:
		}
	}
	p := NewProber(ProberOptions{Report: func(_ Target, r Result, _ State) { take(r) }, Fault: func(_ Target, r Result) { take(r) }})
	p.kept.limit = 0
	p.SetTargets([]Target{x})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done }()
	select {
	case r := <-first:
		return p, r
	case <-time.After(patience):
		t.Fatal("no result")
		return nil, Result{}
	}
}

func serverAddr(s *httptest.Server) netip.AddrPort {
	return s.Listener.Addr().(*net.TCPAddr).AddrPort()
}

// TestProbeHTTPReuse counts the connections of many probes.
func TestProbeHTTPReuse(t *testing.T) {
	var opened, open atomic.Int32
	var bad atomic.Bool
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if bad.Load() {
			w.WriteHeader(503)
		}
		_, _ = w.Write([]byte("ok"))
	}))
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		switch st {
		case http.StateNew:
			opened.Add(1)
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	p := NewProber(ProberOptions{})
	prepare := func(reuse int) (func() Class, func()) {
		probe, h := p.prepare(target(serverAddr(s), config.Probe{
			HTTP: &config.HTTPProbe{Reuse: reuse}, Interval: config.Duration(ample), Timeout: config.Duration(ample)}))
		return func() Class { return probe(t.Context()).Class }, h.release
	}
	expect := func(what string, probe func() Class, n int, class Class, connections int32) {
		t.Helper()
		opened.Store(0)
		for i := range n {
			if got := probe(); got != class {
				t.Fatalf("%s: probe %d: got %v, want %v", what, i, got, class)
			}
		}
		if got := opened.Load(); got != connections {
			t.Errorf("%s: %d probes opened %d connections, want %d", what, n, got, connections)
		}
	}
	probe, release := prepare(0)
	expect("by default", probe, 25, OK, 3)
	s.CloseClientConnections()
	expect("after the server hung up", probe, 1, OK, 1)
	bad.Store(true)
	expect("failing", probe, 3, WrongStatus, 2) // the first over what was kept
	bad.Store(false)
	expect("well again", probe, 3, OK, 1)
	own, _ := prepare(1)
	expect("each its own", own, 3, OK, 3)
	if got := p.kept.n.Load(); got != 1 {
		t.Errorf("%d connections are kept, want 1", got)
	}
	release()
	if got := p.kept.n.Load(); got != 0 {
		t.Errorf("%d connections are kept after all, want none", got)
	}
	p.kept.limit = 1
	first, one := prepare(0)
	second, two := prepare(0)
	expect("while there is room", first, 5, OK, 1)
	expect("when there is none", second, 5, OK, 5)
	one()
	expect("when there is again", second, 5, OK, 1)
	two()
	eventually(t, "no connection is open", func() bool { return open.Load() == 0 })
}

func TestProbeHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "ok %s", r.Host) })
	mux.HandleFunc("/down", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	mux.HandleFunc("/gone", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/healthz", 302) })
	mux.HandleFunc("/empty", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) })
	mux.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(103)
		w.WriteHeader(200)
	})
	mux.HandleFunc("/asked", func(w http.ResponseWriter, r *http.Request) {
		if got := fmt.Sprint(r.Method, " ", r.Host, " ", r.URL.RawQuery, " ", r.Header.Get("X-Check")); got != "HEAD www.example.com a=b connection:"+r.Header.Get("Connection") {
			http.Error(w, got, 400)
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	for _, tc := range []struct {
		name   string
		probe  config.HTTPProbe
		class  Class
		detail string
	}{
		{"ok", config.HTTPProbe{Path: "/healthz"}, OK, ""},
		{"wrong status", config.HTTPProbe{Path: "/down"}, WrongStatus, "status 503, expected 200"},
		{"not found", config.HTTPProbe{}, WrongStatus, "status 404, expected 200"},
		{"a redirect is not followed", config.HTTPProbe{Path: "/gone"}, WrongStatus, "status 302, expected 200"},
		{"a redirect is expected", config.HTTPProbe{Path: "/gone", Expect: []config.Statuses{"301", "302"}}, OK, ""},
		{"none of several", config.HTTPProbe{Path: "/down", Expect: []config.Statuses{"200", "204"}}, WrongStatus, "status 503, expected 200 or 204"},
		{"no body", config.HTTPProbe{Path: "/empty", Expect: []config.Statuses{"200", "204"}}, OK, ""},
		{"a body past the bound", config.HTTPProbe{Path: "/large"}, OK, ""},
		{"an interim response", config.HTTPProbe{Path: "/early"}, OK, ""},
		{"method, host, query and headers", config.HTTPProbe{Path: "/asked?a=b", Method: "HEAD", Host: "www.example.com", Headers: map[string]string{"x-check": "connection:"}}, OK, ""},
		{"a connection of its own", config.HTTPProbe{Path: "/asked?a=b", Method: "HEAD", Host: "www.example.com", Reuse: 1, Headers: map[string]string{"x-check": "connection:close"}}, OK, ""},
		{"host among the headers", config.HTTPProbe{Path: "/asked?a=b", Method: "HEAD", Headers: map[string]string{"x-check": "connection:", "host": "www.example.com"}}, OK, ""},
		{"a path that is none", config.HTTPProbe{Path: "no slash"}, Local, `path "no slash"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := probeOnce(t, target(serverAddr(s), config.Probe{HTTP: &tc.probe, Interval: config.Duration(ample), Timeout: config.Duration(ample)}), nil)
			if r.Class != tc.class || !strings.HasPrefix(r.Detail, tc.detail) || tc.detail == "" && r.Detail != "" {
				t.Errorf("got %v %q, want %v %q", r.Class, r.Detail, tc.class, tc.detail)
			}
			if tc.class != Local && (r.Latency <= 0 || r.Latency > ample) {
				t.Errorf("got latency %v", r.Latency)
			}
		})
	}
}

func TestProbeHTTPFaults(t *testing.T) {
	request := func(c *net.TCPConn) { _, _ = http.ReadRequest(bufio.NewReader(c)) }
	say := func(s string) func(*net.TCPConn) {
		return func(c *net.TCPConn) { request(c); _, _ = io.WriteString(c, s) }
	}
	hang := func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) } // until the probe gives up
	short := config.Duration(50 * time.Millisecond)
	for _, tc := range []struct {
		name    string
		addr    netip.AddrPort
		tls     bool
		timeout config.Duration
		class   Class
		detail  string
	}{
		{"nobody listens", closedPort(t), false, 0, Refused, "connection refused"},
		{"silence", talk(t, hang), false, short, Timeout, "no answer within "},
		{"silence in the handshake", talk(t, hang), true, short, Timeout, "no answer within "},
		{"the body never ends", talk(t, func(c *net.TCPConn) {
			say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")(c)
			hang(c)
		}), false, short, Timeout, "no answer within "},
		{"closed without an answer", talk(t, request), false, 0, Reset, "unexpected EOF"},
		{"closed within the header", talk(t, say("HTTP/1.1 200 OK\r\nA: ")), false, 0, Reset, "unexpected EOF"},
		{"closed within the body", talk(t, say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")), false, 0, Reset, "unexpected EOF"},
		{"reset", talk(t, func(c *net.TCPConn) { request(c); _ = c.SetLinger(0) }), false, 0, Reset, "connection reset by peer"},
		{"not HTTP", talk(t, say("220 mail.example.com ESMTP\r\n\r\n")), false, 0, Protocol, "malformed HTTP"},
		{"an endless header", talk(t, func(c *net.TCPConn) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for i := 0; i < 1<<20; i++ {
				if _, err := io.WriteString(c, "A: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n"); err != nil {
					return
				}
			}
		}), false, 0, Protocol, "header over 65536 octets"},
		{"not TLS", talk(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "220 mail.example.com ESMTP\r\n\r\n"); hang(c) }), true, 0, TLSFault, "tls: first record does not look like a TLS handshake"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.timeout == 0 {
				tc.timeout = config.Duration(ample)
			}
			r := probeOnce(t, target(tc.addr, config.Probe{HTTP: &config.HTTPProbe{TLS: tc.tls}, Interval: config.Duration(ample), Timeout: tc.timeout}), nil)
			if r.Class != tc.class || !strings.Contains(r.Detail, tc.detail) {
				t.Errorf("got %v %q, want %v %q", r.Class, r.Detail, tc.class, tc.detail)
			}
		})
	}
}

func TestProbeTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.TLS.ServerName)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS() // its certificate is for example.com, 127.0.0.1 and ::1
	t.Cleanup(s.Close)
	mutual := httptest.NewUnstartedServer(http.NotFoundHandler())
	mutual.Config.ErrorLog = log.New(io.Discard, "", 0)
	mutual.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	mutual.StartTLS()
	t.Cleanup(mutual.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	roots.AddCert(mutual.Certificate())
	for _, tc := range []struct {
		name   string
		server *httptest.Server
		probe  config.HTTPProbe
		roots  *x509.CertPool
		class  Class
		detail string
	}{
		{"by address", s, config.HTTPProbe{}, roots, OK, ""},
		{"by host", s, config.HTTPProbe{Host: "example.com"}, roots, OK, ""},
		{"by server name", s, config.HTTPProbe{Host: "other.test", ServerName: "example.com"}, roots, OK, ""},
		{"another name", s, config.HTTPProbe{Host: "other.test"}, roots, TLSFault, "not other.test"},
		{"another name, unchecked", s, config.HTTPProbe{Host: "other.test", SkipVerify: true}, roots, OK, ""},
		{"unknown authority", s, config.HTTPProbe{}, x509.NewCertPool(), TLSFault, "unknown authority"},
		{"unknown authority, unchecked", s, config.HTTPProbe{SkipVerify: true}, x509.NewCertPool(), OK, ""},
		{"wants a certificate of ours", mutual, config.HTTPProbe{}, roots, TLSFault, "certificate required"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.probe.TLS = true
			r := probeOnce(t, target(serverAddr(tc.server), config.Probe{HTTP: &tc.probe, Interval: config.Duration(ample), Timeout: config.Duration(ample)}), tc.roots)
			if r.Class != tc.class || !strings.Contains(r.Detail, tc.detail) {
				t.Errorf("got %v %q, want %v %q", r.Class, r.Detail, tc.class, tc.detail)
			}
		})
	}
}

func TestProbeTCP(t *testing.T) {
	_, open := listen(t)
	probe := config.Probe{TCP: &config.TCPProbe{}, Interval: config.Duration(ample), Timeout: config.Duration(ample)}
	for _, tc := range []struct {
		name  string
		addr  netip.AddrPort
		class Class
	}{
		{"accepts", open, OK},
		{"refuses", closedPort(t), Refused},
		{"no such route", netip.MustParseAddrPort("[fe80::1]:80"), Local}, // link-local without a link
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := probeOnce(t, target(tc.addr, probe), nil)
			if tc.class == Local && (r.Class == Unreachable || r.Detail == "invalid argument") {
				return // what the system says depends on its links
			}
			if r.Class != tc.class {
				t.Errorf("got %v %q, want %v", r.Class, r.Detail, tc.class)
			}
		})
	}
}

// TestProbeEndsWithContext wants a hanging probe to end when its target is removed.
func TestProbeEndsWithContext(t *testing.T) {
	reached := make(chan struct{})
	addr := talk(t, func(c *net.TCPConn) { close(reached); _, _ = io.Copy(io.Discard, c) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan Result, 1)
	x := target(addr, config.Probe{HTTP: &config.HTTPProbe{}, Interval: config.Duration(time.Hour), Timeout: config.Duration(time.Hour)})
	probe, _ := NewProber(ProberOptions{}).prepare(x)
	go func() { done <- probe(ctx) }()
	<-reached
	cancel()
	<-done // or the test times out
}

func TestClassify(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want Class
	}{
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, Refused},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, Reset},
		{fmt.Errorf("read: %w", io.EOF), Reset},
		{&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}, Unreachable},
		{&net.OpError{Op: "dial", Err: syscall.ENETUNREACH}, Local}, // this node has no route, such as one without IPv6
		{&net.OpError{Op: "dial", Err: syscall.EHOSTDOWN}, Unreachable},
		{&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}, Timeout},
		{context.DeadlineExceeded, Timeout},
		{&net.OpError{Op: "dial", Err: syscall.EMFILE}, Local},
		{&net.OpError{Op: "dial", Err: syscall.EADDRNOTAVAIL}, Local},
		{&net.OpError{Op: "remote error", Err: tls.AlertError(40)}, TLSFault},
		{io.ErrNoProgress, Protocol},
	} {
		if got := classify(tc.err, Protocol); got != tc.want {
			t.Errorf("classify(%v) = %v, want %v", tc.err, got, tc.want)
		}
	}
}

func TestClassString(t *testing.T) {
	if got := WrongStatus.String() + " " + Local.String() + " " + Class(77).String(); got != "status local class 77" {
		t.Errorf("got %q", got)
	}
}

func idOf(n int) gslb.EndpointID {
	return gslb.EndpointID{Pool: "gfe", Addr: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})}
}
