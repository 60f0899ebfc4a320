// Package app is the application behind Meridian's proxies in its demo: a frontend that
// renders a page, a backend that knows what a visit is, and a database that counts them in a
// file. A user's request goes through all three, and so does its trace.
//
// Each is a value to run in a process among others, and a command of its own.
package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/meridian-gslb/meridian/cmd/gfe/serve"
)

// Config is what every service of the application has.
type Config struct {
	Name   string // of this instance; default the service's
	Site   string // of this instance; may be empty
	Listen []string
	Lame   time.Duration // as serve.Config
	Grace  time.Duration
	Tracer trace.TracerProvider // default none
	Log    *slog.Logger         // default slog.Default()
}

// server returns the server of a service. The mux gets its health check: check returns nil
// while the service can do its work. Beside it, proxies may ask for the load (ORCA).
func (c *Config) server(service string, mux *http.ServeMux, check func(context.Context) error) (*serve.Server, error) {
	if c.Name == "" {
		c.Name = service
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	var s *serve.Server
	mux.HandleFunc("GET "+serve.Health, func(w http.ResponseWriter, r *http.Request) {
		status, words := http.StatusOK, "ok"
		if err := check(r.Context()); err != nil {
			status, words = http.StatusServiceUnavailable, err.Error()
		}
		if s.Draining() {
			status, words = http.StatusServiceUnavailable, "draining"
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		fmt.Fprintln(w, words)
	})
	traced, loads := serve.Trace(c.Tracer, mux), loadService()
	s, err := serve.New(serve.Config{
		Name: service + " " + c.Name,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 && strings.HasPrefix(r.URL.Path, loadPath) {
				loads.ServeHTTP(w, r)
				return
			}
			traced.ServeHTTP(w, r)
		}),
		Listen: c.Listen, Lame: c.Lame, Grace: c.Grace, Log: c.Log,
	})
	if err != nil {
		return nil, err
	}
	s.OnDrain(loads.Stop)
	return s, nil
}

// Instance says which instance of a service answered.
type Instance struct {
	Name string `json:"name"`
	Site string `json:"site,omitempty"`
}

// String is the instance's name with its site.
func (i Instance) String() string {
	if i.Site == "" {
		return i.Name
	}
	return i.Name + " (" + i.Site + ")"
}

// problem is the body of every answer that is not a success.
type problem struct {
	Error string `json:"error"`
}

// maxBody bounds the octets read of any answer between services.
const maxBody = 64 << 10

// reply answers with v as JSON that nobody may keep.
func reply(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		panic(fmt.Sprintf("app: a value that is not JSON: %v", err)) // ours, always
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}
