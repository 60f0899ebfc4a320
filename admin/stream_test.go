package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
)

var feDown = map[gslb.EndpointID]gslb.Verdict{{Pool: "fe-eu", Addr: netip.MustParseAddr("192.0.2.101")}: gslb.Down}

// linesWriter is a response whose lines can be read while it is written.
type linesWriter struct {
	httptest.ResponseRecorder
	mu sync.Mutex
	b  strings.Builder
}

func (w *linesWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *linesWriter) Header() http.Header { return http.Header{} }
func (w *linesWriter) Flush()              {}

// take returns the lines since the last call.
func (w *linesWriter) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.b.Reset()
	return strings.Split(strings.TrimSuffix(w.b.String(), "\n"), "\n")
}

// TestAssignments follows a pool in fake time: a line at once, a heartbeat every ten
// seconds, a line for each change, a heartbeat for a snapshot that changes nothing here.
func TestAssignments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var w linesWriter
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			n.admin.Handler().ServeHTTP(&w, httptest.NewRequest("GET", "http://127.0.0.1/api/v1/assignments/gfe-eu", nil).WithContext(ctx))
		}()
		expect := func(what string, check func(api.Assignment) bool) {
			t.Helper()
			synctest.Wait()
			lines := w.take()
			var a api.Assignment
			if len(lines) != 1 || json.Unmarshal([]byte(lines[0]), &a) != nil || !check(a) {
				t.Fatalf("%s: got %q", what, lines)
			}
		}
		expect("at once", func(a api.Assignment) bool {
			return !a.Heartbeat && a.Pool == "gfe-eu" && a.Revision == 1 && len(a.Hops) == 1 && a.Hops[0].Pool == "fe-eu" &&
				len(a.Hops[0].Endpoints) == 1 && a.Hops[0].Endpoints[0].Port == 8080 && a.Hops[0].Endpoints[0].Verdict == "unknown"
		})
		time.Sleep(api.Heartbeat)
		expect("heartbeat", func(a api.Assignment) bool { return a.Heartbeat && a.Revision == 1 && a.Hops == nil })
		n.set(t, feDown)
		expect("change", func(a api.Assignment) bool {
			return !a.Heartbeat && a.Revision == 2 && len(a.Hops) == 1 && a.Hops[0].Endpoints[0].Verdict == "down"
		})
		n.set(t, feDown)
		expect("snapshot without a change", func(a api.Assignment) bool { return a.Heartbeat && a.Revision == 3 })
		if got := n.admin.streams.Load(); got != 1 {
			t.Errorf("%d streams open, want 1", got)
		}
		cancel()
		<-ended
		if got := n.admin.streams.Load(); got != 0 {
			t.Errorf("%d streams open after the client went, want 0", got)
		}
	})
}

// TestAssignmentsNotTold holds what a node does that never calls Updated: the next heartbeat
// finds the new snapshot.
func TestAssignmentsNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var w linesWriter
		go n.admin.Handler().ServeHTTP(&w, httptest.NewRequest("GET", "http://127.0.0.1/api/v1/assignments/gfe-eu", nil).WithContext(ctx))
		synctest.Wait()
		w.take()
		s, err := gslb.Build(n.snapshot.Load(), gslb.Inputs{Revision: 2, Objects: n.view.Objects, Verdicts: feDown, Now: at})
		if err != nil {
			t.Fatal(err)
		}
		n.snapshot.Store(s)
		time.Sleep(api.Heartbeat)
		synctest.Wait()
		if lines := w.take(); len(lines) != 1 || !strings.Contains(lines[0], `"revision":2`) || !strings.Contains(lines[0], `"down"`) {
			t.Errorf("got %q; want the new assignment", lines)
		}
		cancel()
		synctest.Wait()
	})
}

func TestTopStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var queries uint64
		n := newNode(t, func(o *Options) {
			o.Counters = func() api.Counters { queries++; return api.Counters{Time: time.Now(), Queries: queries} }
		})
		ctx, cancel := context.WithCancel(t.Context())
		var w linesWriter
		go n.admin.Handler().ServeHTTP(&w, httptest.NewRequest("GET", "http://127.0.0.1/api/v1/top?stream=1&interval=500ms", nil).WithContext(ctx))
		time.Sleep(1600 * time.Millisecond)
		synctest.Wait()
		if got := len(w.take()); got != 4 {
			t.Errorf("%d lines in 1.6 s, want 4", got)
		}
		cancel()
		synctest.Wait()
	})
}

func TestInterval(t *testing.T) {
	rows := []struct {
		text string
		want time.Duration
		ok   bool
	}{
		{"", time.Second, true}, {"2s", 2 * time.Second, true}, {"1ns", 200 * time.Millisecond, true}, {"9999h", time.Hour, true},
		{"0", 0, false}, {"-1s", 0, false}, {"fast", 0, false},
	}
	for _, r := range rows {
		if got, err := interval(r.text); got != r.want || (err == nil) != r.ok {
			t.Errorf("%q: got %v, %v; want %v", r.text, got, err, r.want)
		}
	}
}

// TestStreamsBounded opens as many streams as there may be, and one more.
func TestStreamsBounded(t *testing.T) {
	n := newNode(t, nil)
	n.admin.streams.Store(maxStreams)
	w := n.call("GET", "/api/v1/assignments/gfe-eu", "")
	if w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("got %d %s; want 503 with Retry-After", w.Code, w.Body)
	}
	if got := n.admin.streams.Load(); got != maxStreams {
		t.Errorf("%d streams counted, want %d", got, maxStreams)
	}
}

// TestRun serves over a real socket: the client and the server agree, a stream ends with the
// server, and Run returns.
func TestRun(t *testing.T) {
	n := newNode(t, nil)
	if err := n.admin.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- n.admin.Run(ctx) }()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c, err := api.NewClient(n.admin.Addr().String(), "")
	if err != nil {
		t.Fatal(err)
	}
	c.HTTP = &http.Client{Transport: transport}
	st, err := c.Status(t.Context())
	if err != nil || st.Node.Name != "ns1" {
		t.Fatalf("status: %+v, %v", st, err)
	}
	if _, err := c.Drain(t.Context(), "gfe-ue", api.DrainRequest{Author: "ann"}); err == nil || err.(*api.Error).Status != 404 || err.(*api.Error).Hint == "" {
		t.Errorf("drain of an unknown pool: %v; want 404 with a hint", err)
	}
	reason := errors.New("enough")
	err = c.FollowAssignments(t.Context(), "gfe-eu", func(a *api.Assignment) error {
		switch a.Revision {
		case 1:
			n.set(t, feDown)
		case 2:
			cancel(reason)
		}
		return nil
	})
	var gone *api.Unreachable
	if !errors.As(err, &gone) {
		t.Errorf("the stream ended with %v; want unreachable", err)
	}
	if err := <-ran; err != reason {
		t.Errorf("Run returned %v, want %v", err, reason)
	}
	if got := n.admin.streams.Load(); got != 0 {
		t.Errorf("%d streams after Run returned, want 0", got)
	}
	if conn, err := net.Dial("tcp", n.admin.Addr().String()); err == nil {
		conn.Close()
		t.Error("the address still accepts after Run returned")
	}
}

func TestListenBusy(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := New(Options{Addr: taken.Addr().String(), Snapshot: func() *gslb.Snapshot { return nil }})
	want := "admin: listen on " + taken.Addr().String() + ": bind: address already in use"
	if err := s.Run(t.Context()); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if s.Addr() != nil {
		t.Errorf("Addr: got %v, want nil", s.Addr())
	}
}

// TestLargeHeader holds that a header over the bound is refused.
func TestLargeHeader(t *testing.T) {
	n := newNode(t, nil)
	if err := n.admin.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- n.admin.Run(ctx) }()
	defer func() { cancel(); <-ran }()
	conn, err := net.Dial("tcp", n.admin.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: "+strings.Repeat("x", 128<<10)+"\r\n\r\n")
	line, _ := bufio.NewReader(conn).ReadString('\n')
	if !strings.Contains(line, "431") {
		t.Errorf("a header over the bound: got %q, want 431", line)
	}
}
