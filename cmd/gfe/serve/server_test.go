package serve

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
)

// TestLame: between the word to end and the end the server serves on, says that it drains,
// and asks kept connections to go.
func TestLame(t *testing.T) {
	gfetest.Leaks(t)
	var s *Server
	s, err := New(Config{Name: "test", Listen: []string{"127.0.0.1:0"}, Lame: time.Hour, Grace: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, s.Draining()) })})
	if err != nil {
		t.Fatal(err)
	}
	lame, enough := make(chan time.Duration), make(chan struct{})
	s.sleep = func(d time.Duration) { lame <- d; <-enough }
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()

	c := &http.Client{Transport: &http.Transport{}}
	defer c.CloseIdleConnections()
	get := func() (body string, closes bool) {
		res, err := c.Get("http://" + s.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return string(b), res.Close
	}
	if body, closes := get(); body != "false" || closes {
		t.Errorf("serving: draining %s and close %v, want neither", body, closes)
	}
	cancel()
	if got := <-lame; got != time.Hour {
		t.Errorf("lame for: got %v, want 1h", got)
	}
	if body, closes := get(); body != "true" || !closes {
		t.Errorf("lame: draining %s and close %v, want both", body, closes)
	}
	close(enough)
	if err := <-ended; err != nil {
		t.Errorf("run: got %v, want nil", err)
	}
	if conn, err := net.Dial("tcp", s.Addrs()[0].String()); err == nil {
		conn.Close()
		t.Error("after Run: a connection was taken")
	}
}

func TestRunBeforeListen(t *testing.T) {
	s, err := New(Config{Name: "test", Listen: []string{"127.0.0.1:0"}, Handler: http.NotFoundHandler()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "run before listen") {
		t.Errorf("got %v, want that it does not listen", err)
	}
}

// TestListenerFails: a server that cannot serve any more says so rather than wait.
func TestListenerFails(t *testing.T) {
	gfetest.Leaks(t)
	s, err := New(Config{Name: "test", Listen: []string{"127.0.0.1:0", "127.0.0.1:0"}, Handler: http.NotFoundHandler()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	s.listeners[1].Close()
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), s.Addrs()[1].String()) {
		t.Errorf("got %v, want the address that failed", err)
	}
}

func TestTraceSpans(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /counters/{name}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "1") })
	mux.HandleFunc("GET /{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /late", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusBadGateway)
	})
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("a bug") })
	mux.HandleFunc("GET /abort", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "half")
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("GET "+Health, func(http.ResponseWriter, *http.Request) {})
	for _, test := range []struct {
		path, name, route, status string
		code                      codes.Code
		err                       string // error.type
	}{
		{"/counters/visits?x=1", "GET /counters/{name}", "/counters/{name}", "200", codes.Unset, ""},
		{"/", "GET /", "/", "200", codes.Unset, ""},
		{"/late", "GET /late", "/late", "502", codes.Error, "502"},
		{"/panic", "GET /panic", "/panic", "", codes.Error, "panic"}, // nothing was sent
		{"/abort", "GET /abort", "/abort", "200", codes.Error, "abort"},
		{"/nowhere", "GET", "", "404", codes.Unset, ""},
		{Health, "", "", "", codes.Unset, ""},
	} {
		t.Run(test.path, func(t *testing.T) {
			out := tracetest.NewInMemoryExporter()
			h := Trace(sdktrace.NewTracerProvider(sdktrace.WithSyncer(out)), mux)
			func() {
				defer func() {
					if broken := recover(); (broken != nil) != (test.err == "panic" || test.err == "abort") {
						t.Errorf("the server gets panic %v", broken)
					}
				}()
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "https://www.example.com:8443"+test.path, nil))
			}()
			spans := out.GetSpans()
			if test.name == "" {
				if len(spans) != 0 {
					t.Errorf("got %d spans, want none", len(spans))
				}
				return
			}
			if len(spans) != 1 {
				t.Fatalf("got %d spans, want 1", len(spans))
			}
			s := spans[0]
			if s.Name != test.name || s.Status.Code != test.code {
				t.Errorf("got %q with status %v, want %q with %v", s.Name, s.Status.Code, test.name, test.code)
			}
			set := attribute.NewSet(s.Attributes...)
			for key, want := range map[string]string{
				"http.response.status_code": test.status, "http.route": test.route, "error.type": test.err,
				"server.address": "www.example.com", "server.port": "8443", "url.scheme": "https", "network.protocol.version": "1.1",
			} {
				v, _ := set.Value(attribute.Key(key))
				if v.String() != want && !(want == "" && v.Type() == attribute.EMPTY) {
					t.Errorf("%s: got %q, want %q", key, v.String(), want)
				}
			}
		})
	}
}
