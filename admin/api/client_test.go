package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestNewClient(t *testing.T) {
	rows := []struct{ server, want, err string }{
		{"http://127.0.0.1:8053", "http://127.0.0.1:8053", ""},
		{"127.0.0.1:8053", "http://127.0.0.1:8053", ""},
		{"https://ns1.example.net/", "https://ns1.example.net", ""},
		{"http://ns1/prefix/", "http://ns1/prefix", ""},
		{"ftp://ns1", "", "expected http://host:port"},
		{"http://", "", "expected http://host:port"},
		{"http://user:pass@ns1", "", "expected http://host:port"},
		{"http://ns1?x=1", "", "expected http://host:port"},
		{"http://ns1:port", "", "invalid port"},
		{"", "", "expected http://host:port"},
	}
	for _, r := range rows {
		c, err := NewClient(r.server, "")
		switch {
		case r.err != "":
			if err == nil || !strings.Contains(err.Error(), r.err) {
				t.Errorf("%q: got %v, want an error with %q", r.server, err, r.err)
			}
		case err != nil || c.Server != r.want:
			t.Errorf("%q: got %v, %v; want %s", r.server, c, err, r.want)
		}
	}
}

// TestAnswers holds how a client reads answers that are not what it hoped for.
func TestAnswers(t *testing.T) {
	rows := []struct {
		name, body string
		status     int
		want       string
		isError    bool // an *Error with that status
	}{
		{"problem", `{"error":"no pool \"x\"","hint":"there is none"}`, 404, `no pool "x"`, true},
		{"problem without JSON", "<html>", 502, "answered 502 Bad Gateway", true},
		{"empty problem", "", 500, "answered 500", true},
		{"JSON without an error", "{}", 400, "answered 400", true},
		{"not JSON", "<html>", 200, "not what a Meridian node sends", false},
		{"cut", `{"node":`, 200, "not what a Meridian node sends", false},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(r.status)
				io.WriteString(w, r.body)
			}))
			defer srv.Close()
			c, _ := NewClient(srv.URL, "")
			_, err := c.Status(t.Context())
			if err == nil || !strings.Contains(err.Error(), r.want) {
				t.Fatalf("got %v, want %q", err, r.want)
			}
			e, ok := errors.AsType[*Error](err)
			if ok != r.isError || ok && e.Status != r.status {
				t.Errorf("got %#v; want an *Error: %v", err, r.isError)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hangs.Close()
	rows := []struct{ name, server, want string }{
		{"refused", closed.URL, "connection refused"},
		{"hangs", hangs.URL, "no answer in time"},
		{"no such host", "http://nothing.invalid:1", "no such host"},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			patience := 5 * time.Second // for a resolver
			if r.name == "hangs" {
				patience = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c, _ := NewClient(r.server, "")
			_, err := c.Status(ctx)
			u, ok := errors.AsType[*Unreachable](err)
			if !ok || u.Server != r.server {
				t.Fatalf("got %v; want unreachable", err)
			}
			if r.name != "no such host" && !strings.Contains(err.Error(), r.want) { // a resolver may fail in other words
				t.Errorf("got %v, want %q", err, r.want)
			}
		})
	}
}

// TestFollow holds how a stream ends: by the caller, by its context, by the node, and by what
// is no line of it.
func TestFollow(t *testing.T) {
	stop := errors.New("stop")
	rows := []struct {
		name, body string
		each       func(n int) error
		lines      int
		check      func(error) bool
	}{
		{"by the caller", "{}\n{}\n{}\n", func(n int) error {
			if n == 2 {
				return stop
			}
			return nil
		}, 2, func(err error) bool { return err == stop }},
		{"by the node", "{}\n{\"revision\":2}\n", func(int) error { return nil }, 2, func(err error) bool {
			_, ok := errors.AsType[*Unreachable](err)
			return ok && errors.Is(err, io.ErrUnexpectedEOF)
		}},
		{"by nonsense", "{}\nnonsense\n", func(int) error { return nil }, 1, func(err error) bool { return strings.Contains(err.Error(), "not what a Meridian node sends") }},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, r.body) }))
			defer srv.Close()
			c, _ := NewClient(srv.URL, "")
			n := 0
			err := c.FollowAssignments(t.Context(), "gfe-eu", func(*Assignment) error { n++; return r.each(n) })
			if err == nil || !r.check(err) || n != r.lines {
				t.Errorf("got %v after %d lines, want %d", err, n, r.lines)
			}
		})
	}
	t.Run("by its context", func(t *testing.T) {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "{}\n")
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}))
		defer srv.Close()
		c, _ := NewClient(srv.URL, "")
		ctx, cancel := context.WithCancelCause(t.Context())
		err := c.FollowTop(ctx, time.Second, func(*Counters) error { cancel(stop); return nil })
		if err != stop {
			t.Errorf("got %v, want the cause of the context", err)
		}
	})
}
