package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/meridian-gslb/meridian/cmd/gfe/serve"
)

// visits is the counter of the database that backends keep.
const visits = "visits"

// databaseTimeout bounds one operation on the database.
const databaseTimeout = 5 * time.Second

// Visits is what a backend answers.
type Visits struct {
	Visits   uint64   `json:"visits"` // so far, with this one if it was one
	Backend  Instance `json:"backend"`
	Database Instance `json:"database"`
}

// Backend is the application's logic, as JSON over HTTP:
//
//	GET      /visits   how many visits there were
//	POST|GET /visit    one more
//
// Make it with NewBackend, then Listen, then Run.
type Backend struct {
	// Set at construction.
	*serve.Server
	self     Instance
	database *url.URL
	tracer   trace.Tracer
	client   *http.Client
	timeout  time.Duration
}

// NewBackend returns a backend of the database at that URL.
func NewBackend(c Config, database string) (*Backend, error) {
	u, err := url.Parse(database)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("backend: database %q: expected http://host:port", database)
	}
	b := &Backend{
		database: u,
		tracer:   serve.Tracer(c.Tracer),
		timeout:  databaseTimeout,
		client:   &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute}},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /visits", b.answer(http.MethodGet))
	mux.HandleFunc("GET /visit", b.answer(http.MethodPost))
	mux.HandleFunc("POST /visit", b.answer(http.MethodPost))
	b.Server, err = c.server("backend", mux, func(context.Context) error { return nil })
	b.self = Instance{c.Name, c.Site}
	return b, err
}

// Run serves until ctx ends and drains.
func (b *Backend) Run(ctx context.Context) error {
	defer b.client.CloseIdleConnections()
	return b.Server.Run(ctx)
}

// answer serves one operation on the counter of visits.
func (b *Backend) answer(method string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, err := b.query(r.Context(), method)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			reply(w, http.StatusGatewayTimeout, problem{"the database took too long"})
		case err != nil:
			reply(w, http.StatusBadGateway, problem{err.Error()})
		default:
			reply(w, http.StatusOK, Visits{c.Value, b.self, c.Database})
		}
	}
}

// query asks the database, as a span of its own.
func (b *Backend) query(ctx context.Context, method string) (c Counter, err error) {
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	ctx, span := b.tracer.Start(ctx, "db.query", trace.WithSpanKind(trace.SpanKindClient))
	defer func() {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}()
	if span.IsRecording() {
		operation := "get"
		if method == http.MethodPost {
			operation = "increment"
		}
		span.SetAttributes(
			semconv.DBSystemNameKey.String("bbolt"),
			semconv.DBOperationName(operation),
			semconv.DBCollectionName("counters"),
			attribute.String("db.query.text", operation+" "+visits),
			semconv.ServerAddress(b.database.Hostname()),
		)
		if port, err := strconv.Atoi(b.database.Port()); err == nil {
			span.SetAttributes(semconv.ServerPort(port))
		}
	}

	req, err := http.NewRequestWithContext(ctx, method, b.database.JoinPath("counters", visits).String(), nil)
	if err != nil {
		return c, err // not of a URL that was parsed
	}
	serve.Inject(ctx, req.Header)
	res, err := b.client.Do(req)
	if err != nil {
		return c, fmt.Errorf("database: %w", err)
	}
	if err := readJSON(res, &c); err != nil {
		return c, fmt.Errorf("database: %w", err)
	}
	return c, nil
}

// readJSON reads the answer of another service into v, and closes it. An answer that is not
// a success is an error with what the service said.
func readJSON(res *http.Response, v any) error {
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		var p problem
		if json.Unmarshal(b, &p) != nil || p.Error == "" {
			p.Error = http.StatusText(res.StatusCode)
		}
		return fmt.Errorf("status %d: %s", res.StatusCode, p.Error)
	}
	return json.Unmarshal(b, v)
}
