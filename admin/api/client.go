package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxReply bounds what a client reads of one answer that is not a stream: the objects of a
// large fleet with every zone in place.
const maxReply = 256 << 20

// maxLine bounds one line of a stream.
const maxLine = 16 << 20

// Client talks to the admin API of one node. It is safe for concurrent use. Every method
// takes as long as its context lets it, and returns an *Error for an answer that is not a
// success, an *Unreachable where there was none.
type Client struct {
	Server string       // base URL: http://127.0.0.1:8053
	Token  string       // bearer token for changes; empty: none
	HTTP   *http.Client // nil: http.DefaultClient
}

// NewClient returns a client of the node at server, a base URL; without a scheme it is
// http://. It connects to nothing.
func NewClient(server, token string) (*Client, error) {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", server, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("server %q: expected http://host:port or https://host:port", server)
	}
	return &Client{Server: strings.TrimRight(u.String(), "/"), Token: token}, nil
}

// Error is an answer of the node that is not a success.
type Error struct {
	Status int // HTTP status
	Problem
}

// Error returns what is wrong; the hint and the faults are beside it.
func (e *Error) Error() string { return e.Problem.Error }

// Unreachable says that no answer came from Server.
type Unreachable struct {
	Server string
	Err    error
}

// Error names the server and the cause in a few words.
func (e *Unreachable) Error() string {
	return fmt.Sprintf("cannot reach %s: %s", e.Server, cause(e.Err))
}

// Unwrap returns the cause.
func (e *Unreachable) Unwrap() error { return e.Err }

// cause says err without the layers that repeat the address.
func cause(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	var u *url.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &dns):
		return "no such host " + dns.Name
	case errors.As(err, &op) && op.Err != nil:
		return op.Err.Error()
	case errors.As(err, &u):
		return u.Err.Error()
	}
	return err.Error()
}

// Status returns how the node is.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return get[Status](ctx, c, "/api/v1/status", nil)
}

// Explain returns the decision for client (an address or a prefix) on the service name, and
// all that led to it. qtype is A, AAAA or empty for both.
func (c *Client) Explain(ctx context.Context, name, client, qtype string) (*Explanation, error) {
	return c.ExplainIf(ctx, name, client, qtype, "", nil)
}

// ExplainIf is Explain by a past snapshot, named by its revision or its ID ("" is the present
// one), as it would be if terms held: see gslb.Snapshot.WhatIf.
func (c *Client) ExplainIf(ctx context.Context, name, client, qtype, at string, terms []string) (*Explanation, error) {
	q := query("name", name, "client", client, "type", qtype, "at", at)
	if len(terms) > 0 {
		q["if"] = terms
	}
	return get[Explanation](ctx, c, "/api/v1/explain", q)
}

// Objects returns every object that the node serves.
func (c *Client) Objects(ctx context.Context) (*Objects, error) {
	return get[Objects](ctx, c, "/api/v1/objects", nil)
}

// Object returns one object, or every object of a kind by name when name is empty, as JSON.
func (c *Client) Object(ctx context.Context, kind, name string) (json.RawMessage, error) {
	path := "/api/v1/objects/" + url.PathEscape(kind)
	if name != "" {
		path += "/" + url.PathEscape(name)
	}
	v, err := get[json.RawMessage](ctx, c, path, nil)
	if err != nil {
		return nil, err
	}
	return *v, nil
}

// Apply hands objects in YAML or JSON to the node, which checks them as a whole and writes
// all of them or none.
func (c *Client) Apply(ctx context.Context, objects []byte, o ApplyOptions) (*Applied, error) {
	q := query("author", o.Author)
	for key, on := range map[string]bool{"dryRun": o.DryRun, "prune": o.Prune, "force": o.Force} {
		if on {
			q.Set(key, "1")
		}
	}
	if o.At != 0 {
		q.Set("at", strconv.FormatInt(o.At, 10))
	}
	return call[Applied](ctx, c, http.MethodPost, "/api/v1/apply", q, "application/yaml", objects)
}

// Delete takes one object out of the store. Of o, Author, Force and DryRun count.
func (c *Client) Delete(ctx context.Context, kind, name string, o ApplyOptions) (*Applied, error) {
	q := query("author", o.Author)
	for key, on := range map[string]bool{"dryRun": o.DryRun, "force": o.Force} {
		if on {
			q.Set(key, "1")
		}
	}
	return call[Applied](ctx, c, http.MethodDelete, "/api/v1/objects/"+url.PathEscape(kind)+"/"+url.PathEscape(name), q, "", nil)
}

// Confirm takes what the store holds although the node held it back: see Store.Held.
func (c *Client) Confirm(ctx context.Context) error {
	_, err := post[struct{}](ctx, c, "/api/v1/store/confirm", struct{}{})
	return err
}

// Drain takes a pool, or one endpoint of it, out of new answers.
func (c *Client) Drain(ctx context.Context, pool string, r DrainRequest) (*Applied, error) {
	return post[Applied](ctx, c, poolPath(pool, "drain"), r)
}

// Undrain takes a drain back.
func (c *Client) Undrain(ctx context.Context, pool string, r DrainRequest) (*Applied, error) {
	return post[Applied](ctx, c, poolPath(pool, "undrain"), r)
}

// Weight sets the weight of a pool in its services.
func (c *Client) Weight(ctx context.Context, pool string, r WeightRequest) (*Applied, error) {
	return post[Applied](ctx, c, poolPath(pool, "weight"), r)
}

// Health returns what the node knows of the endpoints of pool, or of all when it is empty.
func (c *Client) Health(ctx context.Context, pool string) (*Health, error) {
	return get[Health](ctx, c, "/api/v1/health", query("pool", pool))
}

// Traces returns the last traces that match f, the newest first.
func (c *Client) Traces(ctx context.Context, f TraceFilter) (*Traces, error) {
	q := query("name", f.Name, "client", f.Client)
	if !f.Since.IsZero() {
		q.Set("since", f.Since.Format(time.RFC3339Nano))
	}
	if f.Limit != 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	return get[Traces](ctx, c, "/api/v1/traces", q)
}

// Trace returns one trace.
func (c *Client) Trace(ctx context.Context, id string) (*Trace, error) {
	return get[Trace](ctx, c, "/api/v1/traces/"+url.PathEscape(id), nil)
}

// Export hands spans to the node, as an ExportTraceServiceRequest in protobuf. It remembers them, and,
// if forward is set, passes them on to its collector.
func (c *Client) Export(ctx context.Context, request []byte, forward bool) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/v1/traces", query("forward", strconv.FormatBool(forward)), "application/x-protobuf", request)
	return err
}

// Top returns the counters of the node once.
func (c *Client) Top(ctx context.Context) (*Counters, error) {
	return get[Counters](ctx, c, "/api/v1/top", nil)
}

// FollowTop hands the counters to each, every interval (rounded by the node to 200 ms..1 h),
// until each or ctx ends it. It returns the error of each as it is.
func (c *Client) FollowTop(ctx context.Context, interval time.Duration, each func(*Counters) error) error {
	return follow(ctx, c, "/api/v1/top", query("stream", "1", "interval", interval.String()), each)
}

// FollowAssignments hands each assignment of pool to each, the present one at once, until
// each or ctx ends it or the connection breaks; heartbeats too, so that a caller can tell a
// silent node from a quiet one. It returns the error of each as it is.
func (c *Client) FollowAssignments(ctx context.Context, pool string, each func(*Assignment) error) error {
	return follow(ctx, c, "/api/v1/assignments/"+url.PathEscape(pool), nil, each)
}

// Report hands the load of a proxy to the node.
func (c *Client) Report(ctx context.Context, l Load) error {
	_, err := post[struct{}](ctx, c, "/api/v1/load", l)
	return err
}

// Loads returns the last report of each proxy.
func (c *Client) Loads(ctx context.Context) (*Loads, error) {
	return get[Loads](ctx, c, "/api/v1/load", nil)
}

// Demo asks the demo that runs in the node to do op (stop, start) to name.
func (c *Client) Demo(ctx context.Context, op, name string) (json.RawMessage, error) {
	v, err := call[json.RawMessage](ctx, c, http.MethodPost, "/api/v1/demo/"+url.PathEscape(op), query("name", name), "", nil)
	if err != nil {
		return nil, err
	}
	return *v, nil
}

func poolPath(pool, op string) string {
	return "/api/v1/pools/" + url.PathEscape(pool) + "/" + op
}

// query returns the pairs whose value is not empty.
func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

func get[T any](ctx context.Context, c *Client, path string, q url.Values) (*T, error) {
	return call[T](ctx, c, http.MethodGet, path, q, "", nil)
}

func post[T any](ctx context.Context, c *Client, path string, body any) (*T, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return call[T](ctx, c, http.MethodPost, path, nil, "application/json", b)
}

// call does one request and reads its JSON answer into a new T.
func call[T any](ctx context.Context, c *Client, method, path string, q url.Values, contentType string, body []byte) (*T, error) {
	res, err := c.send(ctx, method, path, q, contentType, body)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	v := new(T)
	err = json.NewDecoder(io.LimitReader(res.Body, maxReply)).Decode(v)
	if errors.Is(err, io.EOF) { // no content
		return v, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s%s: the answer is not what a Meridian node sends: %w", c.Server, path, err)
	}
	return v, nil
}

// follow reads a stream of lines of JSON.
func follow[T any](ctx context.Context, c *Client, path string, q url.Values, each func(*T) error) error {
	res, err := c.send(ctx, http.MethodGet, path, q, "", nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		v := new(T)
		if err := json.Unmarshal(lines.Bytes(), v); err != nil {
			return fmt.Errorf("%s%s: the stream is not what a Meridian node sends: %w", c.Server, path, err)
		}
		if err := each(v); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err = lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF // the node closed a stream that has no end
	}
	return &Unreachable{Server: c.Server, Err: err}
}

// send does one request. The body of the response, a success, is the caller's to close.
func (c *Client) send(ctx context.Context, method, path string, q url.Values, contentType string, body []byte) (*http.Response, error) {
	target := c.Server + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return nil, err
		}
		return nil, &Unreachable{Server: c.Server, Err: err}
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, problem(res)
}

// problem reads the Problem of an answer; one that holds none is described by its status.
func problem(res *http.Response) *Error {
	e := &Error{Status: res.StatusCode}
	b, _ := io.ReadAll(io.LimitReader(res.Body, MaxBody))
	if json.Unmarshal(b, &e.Problem) != nil || e.Problem.Error == "" {
		e.Problem = Problem{
			Error: fmt.Sprintf("%s answered %s", res.Request.URL, res.Status),
			Hint:  "is that the admin address of a Meridian node?",
		}
	}
	return e
}
