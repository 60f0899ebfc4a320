package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/gslb/store"
	"github.com/meridian-gslb/meridian/health"
	"github.com/meridian-gslb/meridian/tracing"
)

var at = time.Date(2026, 1, 2, 13, 50, 0, 0, time.UTC)

const example = `
sites:
  eu-west: {lat: 50.11, lon: 8.68}
  us-east: {lat: 38.95, lon: -77.45}
zones:
- name: example.com
  records: |
    $ORIGIN example.com.
    @ 60 IN SOA ns1 host 1 2 3 4 5
    @ 60 IN NS ns1
    ns1 60 IN A 192.0.2.53
    shop 60 IN CNAME www
probes:
  open: {tcp: {port: 443}}
pools:
  gfe-eu: {site: eu-west, port: 443, probe: open, endpoints: [{address: 192.0.2.11}, {address: "2001:db8:2::11"}], upstream: fe-eu}
  gfe-us: {site: us-east, probe: open, endpoints: [{address: 192.0.2.1}, {address: 192.0.2.2}]}
  fe-eu: {site: eu-west, probe: open, endpoints: [{address: 192.0.2.101, port: 8080}]}
services:
  www.example.com: {ttl: 30s, pools: {gfe-eu: {}, gfe-us: {}}, policy: [health, {failover: [gfe-eu, gfe-us]}]}
  api.example.com: {pools: {gfe-us: {}}}
`

func exampleObjects(t testing.TB) *config.Objects {
	t.Helper()
	o, err := config.ParseObjects("example", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// node is a node behind an admin server: a snapshot that follows its objects, and a store
// in memory.
type node struct {
	admin    *Server
	snapshot atomic.Pointer[gslb.Snapshot]

	mu      sync.Mutex
	view    store.View
	status  store.Status
	refuse  error // what Apply answers
	applied []store.Change
}

func (n *node) Run(context.Context, func(store.View)) error { panic("not for admin to run") }

func (n *node) Status() store.Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status
}

func (n *node) Confirm() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status.Held = ""
}

func (n *node) Apply(_ context.Context, c store.Change) (int64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.applied = append(n.applied, c)
	if n.refuse != nil {
		return 0, n.refuse
	}
	if c.At < n.view.Revision {
		return 0, &store.ConflictError{Key: store.Key{Kind: "pools", Name: "x"}, Revision: n.view.Revision, At: c.At}
	}
	next := config.Merge(n.view.Objects, c.Put)
	for _, k := range c.Delete {
		next.Delete(k.Kind, k.Name)
	}
	n.view = store.View{Revision: n.view.Revision + 1, Objects: next}
	return n.view.Revision, n.buildLocked(nil)
}

func (n *node) buildLocked(verdicts map[gslb.EndpointID]gslb.Verdict) error {
	prev := n.snapshot.Load()
	in := gslb.Inputs{Revision: 1, Objects: n.view.Objects, Verdicts: verdicts, Now: at}
	if prev != nil {
		in.Revision = prev.Revision + 1
	}
	s, err := gslb.Build(prev, in)
	if err != nil {
		return err
	}
	n.snapshot.Store(s)
	n.admin.Updated()
	return nil
}

func (n *node) set(t testing.TB, verdicts map[gslb.EndpointID]gslb.Verdict) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.buildLocked(verdicts); err != nil {
		t.Fatal(err)
	}
}

func (n *node) changes() []store.Change {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.applied
}

// newNode returns a node with the example's objects at revision 7 of its store. change may
// change its options.
func newNode(t testing.TB, change func(*Options)) *node {
	t.Helper()
	n := &node{view: store.View{Revision: 7, Objects: exampleObjects(t)}, status: store.Status{Mode: store.ModeEmbedded, Connected: true, Revision: 7}}
	o := Options{
		Addr:     "127.0.0.1:0",
		Node:     api.Node{Name: "ns1", Site: "eu-west", Version: "v0.1.0", Started: at.Add(-time.Hour)},
		Snapshot: n.snapshot.Load,
		View:     func() store.View { n.mu.Lock(); defer n.mu.Unlock(); return n.view },
		Store:    n,
		Now:      func() time.Time { return at },
	}
	if change != nil {
		change(&o)
	}
	n.admin = New(o)
	n.set(t, nil)
	return n
}

// call sends one request to the handler as if it came to a loopback address.
func (n *node) call(method, target, body string, header ...string) *httptest.ResponseRecorder {
	return n.callAt("127.0.0.1:8053", method, target, body, header...)
}

func (n *node) callAt(local, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "127.0.0.1:8053"
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		} else {
			r.Header.Set(header[i], header[i+1])
		}
	}
	addr := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(local))
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, addr))
	w := httptest.NewRecorder()
	n.admin.Handler().ServeHTTP(w, r)
	return w
}

func decodeTo[T any](t testing.TB, w *httptest.ResponseRecorder) T {
	t.Helper()
	var v T
	if w.Code/100 != 2 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	return v
}

// row is one request and what must come back.
type requestRow struct {
	name, method, target, body string
	status                     int
	want                       string // in the body
}

func runRows(t *testing.T, n *node, rows []requestRow) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			w := n.call(r.method, r.target, r.body)
			if w.Code != r.status || !strings.Contains(w.Body.String(), r.want) {
				t.Errorf("%s %s: got %d %s; want %d with %q", r.method, r.target, w.Code, w.Body, r.status, r.want)
			}
			if w.Code >= 400 {
				var p api.Problem
				if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Error == "" {
					t.Errorf("%s %s: %q is no problem", r.method, r.target, w.Body)
				}
			}
		})
	}
}

func TestPaths(t *testing.T) {
	n := newNode(t, nil)
	runRows(t, n, []requestRow{
		{"unknown path", "GET", "/nowhere", "", 404, `no path \"/nowhere\"`},
		{"unknown api", "GET", "/api/v1/statsu", "", 404, "the API is under /api/v1/"},
		{"write to a read", "POST", "/api/v1/status", "{}", 405, "use GET"},
		{"read of a write", "GET", "/api/v1/apply", "", 405, "use POST"},
		{"delete", "DELETE", "/api/v1/objects/pools", "", 405, "use GET"},
		{"head", "HEAD", "/api/v1/status", "", 200, ""},
		{"healthz", "GET", "/healthz", "", 200, "ok"},
		{"readyz", "GET", "/readyz", "", 200, "ready"},
		{"no traces", "GET", "/api/v1/traces", "", 404, "keeps no traces"},
		{"no counters", "GET", "/api/v1/top", "", 404, "counts no queries"},
		{"no receiver", "POST", "/v1/traces", "{}", 404, "no path"},
	})
	if got := n.call("POST", "/api/v1/status", "{}").Header().Get("Allow"); got != "GET" {
		t.Errorf("Allow: got %q, want GET", got)
	}
}

func TestExtra(t *testing.T) {
	n := newNode(t, func(o *Options) {
		o.Extra = map[string]http.Handler{"/api/v1/demo/": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "demo "+r.URL.Path) })}
	})
	if got := n.call("POST", "/api/v1/demo/stop?name=gfe-eu", "").Body.String(); got != "demo /api/v1/demo/stop" {
		t.Errorf("got %q", got)
	}
	if got := n.call("POST", "/api/v1/demo/stop", "", "Origin", "https://evil.example").Code; got != 403 {
		t.Errorf("a write from another site: got %d, want 403", got)
	}
}

func TestNotReady(t *testing.T) {
	n := &node{}
	n.admin = New(Options{Snapshot: n.snapshot.Load})
	runRows(t, n, []requestRow{
		{"alive all the same", "GET", "/healthz", "", 200, "ok"},
		{"readyz", "GET", "/readyz", "", 503, "nothing to serve yet"},
		{"status", "GET", "/api/v1/status", "", 200, `"state": "not ready"`},
		{"explain", "GET", "/api/v1/explain?name=x&client=::1", "", 503, "nothing to serve yet"},
		{"objects", "GET", "/api/v1/objects", "", 503, "not ready"},
		{"drain", "POST", "/api/v1/pools/x/drain", `{"author":"ann"}`, 503, "not ready"},
		{"assignments", "GET", "/api/v1/assignments/x", "", 503, "not ready"},
		{"metrics", "GET", "/metrics", "", 200, "meridian_ready 0"},
		{"health", "GET", "/api/v1/health", "", 200, `"endpoints": []`},
	})
}

func TestGuard(t *testing.T) {
	const drain = `{"author":"ann"}`
	rows := []struct {
		name, local, token string
		target             string
		header             []string
		status             int
		want               string
	}{
		{"loopback without a token", "127.0.0.1:8053", "", "", nil, 200, ""},
		{"localhost", "127.0.0.1:8053", "", "", []string{"Host", "localhost:8053"}, 200, ""},
		{"loopback of IPv6", "[::1]:8053", "", "", []string{"Host", "[::1]:8053"}, 200, ""},
		{"rebound name", "127.0.0.1:8053", "", "", []string{"Host", "evil.example:8053"}, 403, "host"},
		{"localhost in a name", "127.0.0.1:8053", "", "", []string{"Host", "localhost.evil.example"}, 403, "host"},
		{"cross-site fetch", "127.0.0.1:8053", "", "", []string{"Sec-Fetch-Site", "cross-site"}, 403, "another site"},
		{"same-site is not same-origin", "127.0.0.1:8053", "", "", []string{"Sec-Fetch-Site", "same-site"}, 403, "another site"},
		{"foreign origin of an old browser", "127.0.0.1:8053", "", "", []string{"Origin", "https://evil.example"}, 403, "another site"},
		{"own origin", "127.0.0.1:8053", "", "", []string{"Origin", "http://127.0.0.1:8053"}, 200, ""},
		{"form", "127.0.0.1:8053", "", "", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "content type"},
		{"text", "127.0.0.1:8053", "", "", []string{"Content-Type", "text/plain"}, 415, "content type"},
		{"off loopback without a token", "192.0.2.53:8053", "", "", nil, 403, "adminToken"},
		{"token missing", "192.0.2.53:8053", "s3cret", "", nil, 401, "MERIDIAN_TOKEN"},
		{"token wrong", "192.0.2.53:8053", "s3cret", "", []string{"Authorization", "Bearer s3cre"}, 401, "MERIDIAN_TOKEN"},
		{"token as basic", "192.0.2.53:8053", "s3cret", "", []string{"Authorization", "Basic s3cret"}, 401, "MERIDIAN_TOKEN"},
		{"token right", "192.0.2.53:8053", "s3cret", "", []string{"Authorization", "Bearer s3cret", "Host", "ns1.example.net"}, 200, ""},
		{"token on loopback too", "127.0.0.1:8053", "s3cret", "", nil, 401, "MERIDIAN_TOKEN"},
		{"spans need no token", "192.0.2.53:8053", "s3cret", "/v1/traces", nil, 200, ""},
		{"spans from a page", "127.0.0.1:8053", "", "/v1/traces", []string{"Origin", "https://evil.example"}, 403, "another site"},
		{"load needs the token", "192.0.2.53:8053", "s3cret", "/api/v1/load", nil, 401, "MERIDIAN_TOKEN"},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			n := newNode(t, func(o *Options) {
				o.Token = r.token
				o.OTLP = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
			})
			target := r.target
			if target == "" {
				target = "/api/v1/pools/gfe-eu/drain"
			}
			w := n.callAt(r.local, "POST", target, drain, r.header...)
			if w.Code != r.status || !strings.Contains(w.Body.String(), r.want) {
				t.Errorf("got %d %s; want %d with %q", w.Code, w.Body, r.status, r.want)
			}
			if wrote := len(n.changes()) > 0; wrote != (r.status == 200 && r.target == "") {
				t.Errorf("wrote: %v", wrote)
			}
		})
	}
	n := newNode(t, nil)
	if got := n.call("GET", "/api/v1/objects", "", "Host", "evil.example").Code; got != 403 {
		t.Errorf("reading by a rebound name: got %d, want 403", got)
	}
	if got := n.call("GET", "/metrics", "", "Host", "ns1.example.net").Code; got != 200 {
		t.Errorf("scraping by a name: got %d, want 200", got)
	}
	if got := n.callAt("192.0.2.53:8053", "GET", "/api/v1/objects", "", "Host", "ns1.example.net").Code; got != 200 {
		t.Errorf("reading by name off loopback: got %d, want 200", got)
	}
}

func TestStatus(t *testing.T) {
	gfeUS := map[gslb.EndpointID]gslb.Verdict{
		{Pool: "gfe-us", Addr: netip.MustParseAddr("192.0.2.1")}: gslb.Down,
		{Pool: "gfe-us", Addr: netip.MustParseAddr("192.0.2.2")}: gslb.Down,
	}
	rows := []struct {
		name    string
		set     func(*testing.T, *node)
		state   string
		reasons []string
	}{
		{"all well", nil, api.StateOK, nil},
		{"a pool is down", func(t *testing.T, n *node) { n.set(t, gfeUS) }, api.StateDegraded,
			[]string{"pool gfe-us: no endpoint is healthy", "service api.example.com: no usable pool is left"}},
		{"a drain is meant", func(t *testing.T, n *node) { n.call("POST", "/api/v1/pools/gfe-eu/drain", `{"author":"ann"}`) }, api.StateOK, nil},
		{"store gone", func(_ *testing.T, n *node) {
			n.status = store.Status{Mode: store.ModeExternal, Error: "no leader", Faults: []string{"pools/x: bad"}}
		}, api.StateDegraded, []string{"store: no leader; answering from the last known objects", "store: pools/x: bad"}},
		{"store held", func(_ *testing.T, n *node) { n.status.Held = "went back" }, api.StateDegraded, []string{"store: held: went back"}},
		{"file only", func(_ *testing.T, n *node) { n.status = store.Status{Mode: store.ModeFile} }, api.StateOK, nil},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			n := newNode(t, nil)
			if r.set != nil {
				r.set(t, n)
			}
			st := decodeTo[api.Status](t, n.call("GET", "/api/v1/status", ""))
			if st.State != r.state || strings.Join(st.Reasons, "|") != strings.Join(r.reasons, "|") {
				t.Errorf("got %s %q, want %s %q", st.State, st.Reasons, r.state, r.reasons)
			}
		})
	}

	n := newNode(t, func(o *Options) {
		o.Degraded = func() []string { return []string{"geo: file is gone"} }
		o.Members = func() []api.Member {
			return []api.Member{{Name: "ns1", State: "self"}, {Name: "ns2", State: "alive"}, {Name: "ns3", State: "silent"}}
		}
		o.Counters = func() api.Counters { return api.Counters{Queries: 5} }
	})
	n.call("POST", "/api/v1/pools/gfe-eu/drain", `{"author":"ann","reason":"upgrade","until":"2026-01-02T14:00:00Z"}`)
	st := decodeTo[api.Status](t, n.call("GET", "/api/v1/status", ""))
	if want := []string{"member ns3: silent", "geo: file is gone"}; strings.Join(st.Reasons, "|") != strings.Join(want, "|") {
		t.Errorf("reasons: got %q, want %q", st.Reasons, want)
	}
	if len(st.Pools) != 3 || st.Pools[1].Name != "gfe-eu" || !st.Pools[1].Drained || st.Pools[1].Drain == nil || st.Pools[1].Drain.Author != "ann" || st.Pools[1].Drain.Reason != "upgrade" {
		t.Errorf("pools: got %+v; want gfe-eu second, drained by ann for an upgrade", st.Pools)
	}
	if len(st.Services) != 2 || st.Services[1].Name != "www.example.com" || strings.Join(st.Services[1].Pools, " ") != "gfe-eu gfe-us" {
		t.Errorf("services: got %+v", st.Services)
	}
	if st.Traffic == nil || st.Traffic.Queries != 5 || st.Revision != 2 || st.Store == nil || st.Store.Revision != 7 {
		t.Errorf("got traffic %+v, revision %d, store %+v", st.Traffic, st.Revision, st.Store)
	}
}

func TestExplain(t *testing.T) {
	n := newNode(t, nil)
	runRows(t, n, []requestRow{
		{"no name", "GET", "/api/v1/explain?client=192.0.2.1", "", 400, "name is missing"},
		{"no client", "GET", "/api/v1/explain?name=www.example.com", "", 400, "client is missing"},
		{"bad client", "GET", "/api/v1/explain?name=www.example.com&client=1.2.3", "", 400, "neither an address nor a prefix"},
		{"zone", "GET", "/api/v1/explain?name=www.example.com&client=fe80::1%25eth0", "", 400, "zone"},
		{"bad type", "GET", "/api/v1/explain?name=www.example.com&client=192.0.2.1&type=MX", "", 400, "give A or AAAA"},
		{"unknown", "GET", "/api/v1/explain?name=ww.example.com&client=192.0.2.1", "", 404, `did you mean \"www.example.com\"?`},
		{"case and dot", "GET", "/api/v1/explain?name=WWW.Example.COM.&client=192.0.2.1", "", 200, `"pool": "gfe-eu"`},
		{"prefix", "GET", "/api/v1/explain?name=www.example.com&client=198.51.100.7/24", "", 200, `"client": "198.51.100.0/24"`},
		{"mapped", "GET", "/api/v1/explain?name=www.example.com&client=::ffff:198.51.100.7", "", 200, `"client": "198.51.100.7/32"`},
	})
	for qtype, want := range map[string]string{"": "192.0.2.11 2001:db8:2::11", "A": "192.0.2.11", "aaaa": "2001:db8:2::11"} {
		e := decodeTo[api.Explanation](t, n.call("GET", "/api/v1/explain?name=www.example.com&client=192.0.2.1&type="+qtype, ""))
		var got []string
		for _, a := range e.Answers {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != want || e.TTL != 30 || e.Reason != "policy" {
			t.Errorf("type %q: got %v, TTL %d, %s; want %s, 30, policy", qtype, got, e.TTL, e.Reason, want)
		}
	}
}

func TestObjects(t *testing.T) {
	n := newNode(t, nil)
	runRows(t, n, []requestRow{
		{"kind", "GET", "/api/v1/objects/sites", "", 200, `"eu-west"`},
		{"singular", "GET", "/api/v1/objects/pool/gfe-eu", "", 200, `"site": "eu-west"`},
		{"service by any case", "GET", "/api/v1/objects/services/WWW.example.com.", "", 200, `"ttl": "30s"`},
		{"kind without objects", "GET", "/api/v1/objects/states", "", 200, "{}"},
		{"no such kind", "GET", "/api/v1/objects/poolz", "", 404, `did you mean \"pools\"?`},
		{"no such object", "GET", "/api/v1/objects/pools/gfe-ue", "", 404, `did you mean \"gfe-eu\"?`},
		{"nothing close", "GET", "/api/v1/objects/sites/mars", "", 404, "there are: eu-west, us-east"},
		{"none at all", "GET", "/api/v1/objects/states/x", "", 404, "there is none"},
	})
	o := decodeTo[api.Objects](t, n.call("GET", "/api/v1/objects", ""))
	if diff := config.Diff(n.view.Objects, o.Objects); o.Revision != 7 || len(diff) != 0 {
		t.Errorf("got revision %d and differences %v; want 7 and none", o.Revision, diff)
	}
}

func TestApply(t *testing.T) {
	const west = "sites: {us-west: {lat: 45.6, lon: -121.2}}\n"
	rows := []struct {
		name, query, body string
		refuse            error
		status            int
		want              string
		wrote             int
	}{
		{"dry run", "?dryRun=1", west, nil, 200, `"revision": 7`, 0},
		{"dry run of what takes force", "?dryRun=1", "services: {www.example.com: {pools: {gfe-eu: {weight: 0}}}}", nil, 200, `"refused": "refused without force: services.www.example.com.pools: no endpoint could ever answer`, 0},
		{"dry run with force", "?dryRun=1&force=1", "services: {www.example.com: {pools: {gfe-eu: {weight: 0}}}}", nil, 200, "]\n}", 0},
		{"write", "?author=ann", west, nil, 200, `"revision": 8`, 1},
		{"write of what is there", "?author=ann", "sites: {eu-west: {lat: 50.11, lon: 8.68}}", nil, 200, `"diff": []`, 0},
		{"json", "?author=ann", `{"sites":{"us-west":{"lat":45.6,"lon":-121.2}}}`, nil, 200, `"op": "add"`, 1},
		{"node section is left out", "?author=ann", "node: {name: x}\n" + west, nil, 200, `"revision": 8`, 1},
		{"no author", "", west, nil, 400, "author is missing", 0},
		{"author of two lines", "?author=a%0ab", west, nil, 400, "one line", 0},
		{"bad flag", "?author=ann&force=maybe", west, nil, 400, `force=\"maybe\"`, 0},
		{"bad revision", "?author=ann&at=-1", west, nil, 400, `at=\"-1\"`, 0},
		{"old revision", "?author=ann&at=6", west, nil, 409, "made for revision 6", 1},
		{"empty", "?author=ann", "", nil, 200, `"diff": []`, 0},
		{"not yaml", "?author=ann", "sites: [", nil, 422, "fault", 0},
		{"unknown key and bad value", "?author=ann", "sties: {}\nsites: {x: {lat: 95, lon: 0}}\n", nil, 422, "2 faults", 0},
		{"dangling", "?author=ann", "pools: {p: {site: mars, endpoints: [{address: 192.0.2.1}]}}", nil, 422, "pools.p.site: no such site; expected one of eu-west", 0},
		{"file of the caller", "?author=ann", "zones: [{name: example.net, file: /etc/passwd}]", nil, 422, "expected its text in records", 0},
		{"conflict", "?author=ann", west, &store.ConflictError{Key: store.Key{Kind: "sites", Name: "us-west"}, Revision: 9, Author: "bob", At: 7}, 409, "by bob at revision 9", 1},
		{"guarded", "?author=ann", west, fmt.Errorf("service x: %w", store.ErrGuard), 409, "--force", 1},
		{"held", "?author=ann", west, store.ErrHeld, 409, "gslbctl confirm", 1},
		{"read only", "?author=ann", west, store.ErrReadOnly, 409, "change the file", 1},
		{"unavailable", "?author=ann", west, fmt.Errorf("%w: no leader", store.ErrUnavailable), 503, "no leader", 1},
		{"too slow", "?author=ann", west, context.DeadlineExceeded, 504, "look before", 1},
		{"gone meanwhile", "?author=ann", west, store.ErrNotFound, 404, "no such object", 1},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			n := newNode(t, nil)
			n.refuse = r.refuse
			w := n.call("POST", "/api/v1/apply"+r.query, r.body, "Content-Type", "application/yaml")
			if w.Code != r.status || !strings.Contains(w.Body.String(), r.want) {
				t.Errorf("got %d %s; want %d with %q", w.Code, w.Body, r.status, r.want)
			}
			if got := len(n.changes()); got != r.wrote {
				t.Errorf("%d transactions, want %d", got, r.wrote)
			}
		})
	}

	t.Run("guard and flags", func(t *testing.T) {
		n := newNode(t, nil)
		n.call("POST", "/api/v1/apply?author=ann&force=1&at=9", west, "Content-Type", "application/yaml")
		c := n.changes()[0]
		if c.Author != "ann" || !c.Force || c.At != 9 || len(c.Delete) != 0 || c.Put.Len() != 1 {
			t.Errorf("got %+v; want one object by ann, forced, at 9", c)
		}
		n = newNode(t, nil)
		n.call("POST", "/api/v1/apply?author=ann", west, "Content-Type", "application/yaml")
		if c := n.changes()[0]; c.Force || c.At != 7 {
			t.Errorf("got %+v; want the guard of the revision that was compared", c)
		}
	})
	t.Run("from the file into the store", func(t *testing.T) {
		n := newNode(t, nil)
		text, err := config.MarshalYAML(n.view.Objects)
		if err != nil {
			t.Fatal(err)
		}
		n.view.Stored = &config.Objects{} // all that is served is in the node's file
		for _, r := range []struct {
			query string
			wrote int
		}{{"?dryRun=1", 0}, {"?author=ann", 1}} {
			a := decodeTo[api.Applied](t, n.call("POST", "/api/v1/apply"+r.query, string(text), "Content-Type", "application/yaml"))
			if len(a.Diff) != n.view.Objects.Len() || a.Diff[0].Op != config.OpAdd {
				t.Errorf("%s: got %d changes, the first %+v; want each of %d objects added", r.query, len(a.Diff), a.Diff[0], n.view.Objects.Len())
			}
			if got := n.changes(); len(got) != r.wrote || r.wrote > 0 && got[0].Put.Len() != n.view.Objects.Len() {
				t.Errorf("%s: got %d transactions, want %d with every object", r.query, len(got), r.wrote)
			}
		}
	})
	t.Run("prune", func(t *testing.T) {
		n := newNode(t, nil)
		n.call("POST", "/api/v1/pools/gfe-us/drain", `{"author":"ann"}`)
		keep, err := config.ParseObjects("example", []byte(strings.Replace(example, "  api.example.com: {pools: {gfe-us: {}}}\n", "", 1)))
		if err != nil {
			t.Fatal(err)
		}
		text, err := config.MarshalYAML(keep)
		if err != nil {
			t.Fatal(err)
		}
		a := decodeTo[api.Applied](t, n.call("POST", "/api/v1/apply?author=ann&prune=1", string(text), "Content-Type", "application/yaml"))
		if len(a.Diff) != 1 || a.Diff[0].Op != config.OpDelete || a.Diff[0].Name != "api.example.com" {
			t.Errorf("got %+v; want the one service deleted and the state kept", a.Diff)
		}
		if c := n.changes()[1]; len(c.Delete) != 1 || c.Delete[0] != (store.Key{Kind: "services", Name: "api.example.com"}) {
			t.Errorf("deleted %v", c.Delete)
		}
	})
	t.Run("too large", func(t *testing.T) {
		n := newNode(t, nil)
		w := n.call("POST", "/api/v1/apply?author=ann", strings.Repeat("#", api.MaxApply+1), "Content-Type", "application/yaml")
		if w.Code != 413 {
			t.Errorf("got %d, want 413", w.Code)
		}
	})
	t.Run("no store", func(t *testing.T) {
		n := newNode(t, func(o *Options) { o.Store = nil })
		w := n.call("POST", "/api/v1/apply?author=ann", west, "Content-Type", "application/yaml")
		if w.Code != 409 || !strings.Contains(w.Body.String(), "change the file") {
			t.Errorf("got %d %s; want 409", w.Code, w.Body)
		}
		if w := n.call("POST", "/api/v1/apply?dryRun", west, "Content-Type", "application/yaml"); w.Code != 200 {
			t.Errorf("dry run: got %d %s; want 200", w.Code, w.Body)
		}
	})
}

func TestPools(t *testing.T) {
	until := `{"author":"ann","reason":"upgrade","until":"2026-01-02T14:00:00Z"}`
	n := newNode(t, nil)
	runRows(t, n, []requestRow{
		{"unknown pool", "POST", "/api/v1/pools/gfe-ue/drain", until, 404, `did you mean \"gfe-eu\"?`},
		{"unknown endpoint", "POST", "/api/v1/pools/gfe-eu/drain", `{"author":"ann","endpoint":"192.0.2.12"}`, 404, `did you mean \"192.0.2.11\"?`},
		{"no author", "POST", "/api/v1/pools/gfe-eu/drain", `{}`, 400, "author is missing"},
		{"unknown key", "POST", "/api/v1/pools/gfe-eu/drain", `{"author":"ann","for":"10m"}`, 400, `unknown field \"for\"`},
		{"two values", "POST", "/api/v1/pools/gfe-eu/drain", until + until, 400, "follows"},
		{"not json", "POST", "/api/v1/pools/gfe-eu/drain", `author: ann`, 400, "the body is not"},
		{"past", "POST", "/api/v1/pools/gfe-eu/drain", `{"author":"ann","until":"2026-01-02T13:00:00Z"}`, 400, "is over"},
		{"escape in a reason", "POST", "/api/v1/pools/gfe-eu/drain", `{"author":"ann","reason":"\u001b[2J"}`, 400, "one line"},
		{"long reason", "POST", "/api/v1/pools/gfe-eu/drain", `{"author":"ann","reason":"` + strings.Repeat("x", 513) + `"}`, 400, "up to 512"},
		{"large body", "POST", "/api/v1/pools/gfe-eu/drain", strings.Repeat(" ", api.MaxBody+1), 413, "octets"},
		{"no weight", "POST", "/api/v1/pools/gfe-eu/weight", `{"author":"ann"}`, 400, "0..65535"},
		{"weight over", "POST", "/api/v1/pools/gfe-eu/weight", `{"author":"ann","weight":65536}`, 400, "0..65535"},
		{"unknown service", "POST", "/api/v1/pools/gfe-eu/weight", `{"author":"ann","weight":1,"service":"ww.example.com"}`, 404, `did you mean \"www.example.com\"?`},
		{"service without the pool", "POST", "/api/v1/pools/gfe-eu/weight", `{"author":"ann","weight":1,"service":"api.example.com"}`, 409, "does not name pool"},
		{"pool of no service", "POST", "/api/v1/pools/fe-eu/weight", `{"author":"ann","weight":1}`, 409, "no service names pool fe-eu"},
	})
	if len(n.changes()) != 0 {
		t.Fatalf("wrote %v", n.changes())
	}

	a := decodeTo[api.Applied](t, n.call("POST", "/api/v1/pools/gfe-eu/drain", until))
	want := config.State{Pool: "gfe-eu", State: "drain", Author: "ann", Reason: "upgrade", Since: at, Until: at.Add(10 * time.Minute)}
	if got := n.view.Objects.States["gfe-eu"]; got != want || a.Revision != 8 || len(a.Diff) != 1 {
		t.Errorf("drained: got %+v, revision %d, %d differences; want %+v, 8, 1", got, a.Revision, len(a.Diff), want)
	}
	e := decodeTo[api.Explanation](t, n.call("GET", "/api/v1/explain?name=www.example.com&client=192.0.2.1", ""))
	if e.Pool != "gfe-us" || e.Reason != "failover" {
		t.Errorf("after the drain: got %s, %s; want gfe-us, failover", e.Pool, e.Reason)
	}
	decodeTo[api.Applied](t, n.call("POST", "/api/v1/pools/gfe-eu/drain", `{"author":"bob","endpoint":"192.0.2.11"}`))
	if _, ok := n.view.Objects.States[config.StateName("gfe-eu", netip.MustParseAddr("192.0.2.11"))]; !ok {
		t.Errorf("states: got %v; want one of the endpoint", n.view.Objects.States)
	}
	for range 2 { // the second finds nothing to do
		decodeTo[api.Applied](t, n.call("POST", "/api/v1/pools/gfe-eu/undrain", `{"author":"ann"}`))
	}
	decodeTo[api.Applied](t, n.call("POST", "/api/v1/pools/gfe-eu/undrain", `{"author":"ann","endpoint":"192.0.2.11"}`))
	if len(n.view.Objects.States) != 0 || n.view.Revision != 11 {
		t.Errorf("undrained: got %v at revision %d; want none at 11", n.view.Objects.States, n.view.Revision)
	}

	before := n.view.Objects
	a = decodeTo[api.Applied](t, n.call("POST", "/api/v1/pools/gfe-us/weight", `{"author":"ann","weight":5}`))
	if len(a.Diff) != 2 {
		t.Errorf("weight in every service: got %d differences, want 2", len(a.Diff))
	}
	for _, name := range []string{"www.example.com", "api.example.com"} {
		if got := n.view.Objects.Services[name].Pools["gfe-us"].EffectiveWeight(); got != 5 {
			t.Errorf("%s: got weight %d, want 5", name, got)
		}
		if got := before.Services[name].Pools["gfe-us"].Weight; got != nil {
			t.Errorf("%s: the objects that were served changed: %d", name, *got)
		}
	}
	decodeTo[api.Applied](t, n.call("POST", "/api/v1/pools/gfe-us/weight", `{"author":"ann","weight":0,"service":"WWW.example.com."}`))
	if got := n.view.Objects.Services["api.example.com"].Pools["gfe-us"].EffectiveWeight(); got != 5 {
		t.Errorf("another service: got weight %d, want 5", got)
	}

	forced := config.Merge(n.view.Objects, &config.Objects{States: map[string]config.State{"gfe-us": {Pool: "gfe-us", State: "down", Author: "bob"}}})
	n.view.Objects = forced
	for _, op := range []string{"drain", "undrain"} {
		if w := n.call("POST", "/api/v1/pools/gfe-us/"+op, `{"author":"ann"}`); w.Code != 409 || !strings.Contains(w.Body.String(), "forced down by bob") {
			t.Errorf("%s of a forced pool: got %d %s; want 409", op, w.Code, w.Body)
		}
	}
}

func TestDelete(t *testing.T) {
	n := newNode(t, nil)
	runRows(t, n, []requestRow{
		{"unknown", "DELETE", "/api/v1/objects/pools/gfe-ue?author=ann", "", 404, `did you mean \"gfe-eu\"?`},
		{"no author", "DELETE", "/api/v1/objects/services/api.example.com", "", 400, "author is missing"},
		{"in use", "DELETE", "/api/v1/objects/pools/gfe-eu?author=ann", "", 422, "no such pool"},
		{"dry run", "DELETE", "/api/v1/objects/services/api.example.com?dryRun=1", "", 200, `"dryRun": true`},
	})
	if len(n.changes()) != 0 {
		t.Fatalf("wrote %v", n.changes())
	}

	// A forced state comes and goes. Given again without its stamps it is the same.
	const down = `{"states":{"gfe-eu":{"pool":"gfe-eu","state":"down","author":"me"}}}`
	decodeTo[api.Applied](t, n.call("POST", "/api/v1/apply?author=ann", down))
	st := n.view.Objects.States["gfe-eu"]
	st.Since = at
	n.view.Objects.States["gfe-eu"] = st // as the store stamps it
	if again := decodeTo[api.Applied](t, n.call("POST", "/api/v1/apply?author=ann", down)); len(again.Diff) != 0 {
		t.Errorf("given again: got %+v; want no difference", again.Diff)
	}
	if other := decodeTo[api.Applied](t, n.call("POST", "/api/v1/apply?dryRun=1", strings.Replace(down, "down", "up", 1))); len(other.Diff) != 1 {
		t.Errorf("given otherwise: got %+v; want one difference", other.Diff)
	}
	decodeTo[api.Applied](t, n.call("DELETE", "/api/v1/objects/state/gfe-eu?author=ann", ""))
	if got := n.view.Objects.States; len(got) != 0 {
		t.Errorf("states: got %v; want none", got)
	}

	// What cannot be read in etcd is not served, and can be deleted all the same.
	n.view.Faults = []string{"/meridian/v1/pools/bad: not YAML (left out)"}
	before := len(n.changes())
	n.call("DELETE", "/api/v1/objects/pools/bad?author=ann", "")
	if c := n.changes()[before:]; len(c) != 1 || len(c[0].Delete) != 1 || c[0].Delete[0] != (store.Key{Kind: "pools", Name: "bad"}) {
		t.Errorf("changes %+v; want the deletion of pools/bad", c)
	}
}

// TestApplyIsChecked refuses, by a dry run as well, what only the node itself knows to be wrong.
func TestApplyIsChecked(t *testing.T) {
	n := newNode(t, func(o *Options) {
		o.Check = func(before, next *config.Objects) error {
			if len(before.Sites) == len(next.Sites) {
				return nil
			}
			return errors.New("no further site is wanted")
		}
	})
	for _, query := range []string{"author=ann", "dryRun=1"} {
		if w := n.call("POST", "/api/v1/apply?"+query, "sites: {us-west: {lat: 45.6, lon: -121.2}}\n"); w.Code != 422 || !strings.Contains(w.Body.String(), "no further site is wanted") {
			t.Errorf("%s: %d %s; want 422 with the reason", query, w.Code, w.Body)
		}
	}
	if w := n.call("POST", "/api/v1/apply?author=ann", "sites: {eu-west: {lat: 51, lon: 8}}\n"); w.Code != 200 {
		t.Errorf("another change: %d %s", w.Code, w.Body)
	}
}

// TestApplyOverFaults: etcd holds other than what is served, since that is not valid. A file of
// what is served differs from it.
func TestApplyOverFaults(t *testing.T) {
	n := newNode(t, nil)
	n.view.Stored = n.view.Objects.Clone()
	n.view.Stored.Pools["gfe-eu"] = config.Pool{Site: "nowhere"} // refers to nothing
	n.view.Stored.Delete("pools", "gfe-us")                      // cannot be read
	n.view.Stored.Pools["bad"] = config.Pool{Site: "nowhere"}    // is left out
	text, err := config.MarshalYAML(n.view.Objects)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct{ query, want string }{
		{"dryRun=1", "change pools/gfe-eu, add pools/gfe-us"},
		{"dryRun=1&prune=1", "delete pools/bad, change pools/gfe-eu, add pools/gfe-us"},
	} {
		done := decodeTo[api.Applied](t, n.call("POST", "/api/v1/apply?"+r.query, string(text)))
		var got []string
		for _, d := range done.Diff {
			got = append(got, d.Op+" "+d.Kind+"/"+d.Name)
		}
		if g := strings.Join(got, ", "); g != r.want {
			t.Errorf("%s: got %s; want %s", r.query, g, r.want)
		}
	}
}

func TestConfirm(t *testing.T) {
	n := newNode(t, nil)
	if w := n.call("POST", "/api/v1/store/confirm", "{}"); w.Code != 409 {
		t.Errorf("nothing held: got %d, want 409", w.Code)
	}
	n.status.Held = "went back"
	if w := n.call("POST", "/api/v1/store/confirm", "{}"); w.Code != 204 || n.status.Held != "" {
		t.Errorf("got %d, held %q; want 204 and confirmed", w.Code, n.status.Held)
	}
	n = newNode(t, func(o *Options) { o.Store = nil })
	if w := n.call("POST", "/api/v1/store/confirm", "{}"); w.Code != 409 {
		t.Errorf("no store: got %d, want 409", w.Code)
	}
}

func TestHealth(t *testing.T) {
	n := newNode(t, func(o *Options) {
		o.Health = func() []health.View {
			return []health.View{{Pool: "gfe-eu", Endpoint: netip.MustParseAddr("192.0.2.11"), Verdict: "up"}, {Pool: "gfe-us", Endpoint: netip.MustParseAddr("192.0.2.1"), Verdict: "down"}}
		}
		o.Members = func() []api.Member { return []api.Member{{Name: "ns1", State: "self"}} }
	})
	if h := decodeTo[api.Health](t, n.call("GET", "/api/v1/health", "")); len(h.Endpoints) != 2 || len(h.Members) != 1 {
		t.Errorf("all: got %+v", h)
	}
	if h := decodeTo[api.Health](t, n.call("GET", "/api/v1/health?pool=gfe-us", "")); len(h.Endpoints) != 1 || h.Endpoints[0].Verdict != "down" {
		t.Errorf("gfe-us: got %+v", h)
	}
	if w := n.call("GET", "/api/v1/health?pool=gfe", ""); w.Code != 404 {
		t.Errorf("unknown pool: got %d, want 404", w.Code)
	}
}

func TestTraces(t *testing.T) {
	m := tracing.NewMemory(10, 1<<20)
	for i, client := range []string{"198.51.100.0/24", "192.0.2.0/24", "198.51.100.0/24"} {
		m.Add(tracing.Span{
			TraceID: tracing.TraceID{15: byte(i + 1)}, SpanID: tracing.SpanID{1}, Name: tracing.SpanQuery, Service: "gslbd",
			Start: at.Add(time.Duration(i) * time.Second), End: at.Add(time.Duration(i)*time.Second + time.Millisecond),
			Attributes: map[string]any{tracing.AttrQuestionName: "www.example.com", tracing.AttrClientPrefix: client},
		})
	}
	n := newNode(t, func(o *Options) { o.Traces = m })
	for query, want := range map[string]int{
		"": 3, "?limit=2": 2, "?client=198.51.100.7": 2, "?client=198.51.100.0/24&limit=1": 1, "?client=203.0.113.1": 0,
		"?name=WWW.example.com.": 3, "?name=other": 0, "?since=2026-01-02T13:50:01Z": 2, "?slower=1s": 0, "?errors=1": 0,
	} {
		if got := decodeTo[api.Traces](t, n.call("GET", "/api/v1/traces"+query, "")); got.Traces == nil || len(got.Traces) != want {
			t.Errorf("%s: got %d traces, want %d", query, len(got.Traces), want)
		}
	}
	runRows(t, n, []requestRow{
		{"one", "GET", "/api/v1/traces/00000000000000000000000000000002", "", 200, `"192.0.2.0/24"`},
		{"unknown", "GET", "/api/v1/traces/000000000000000000000000000000ff", "", 404, "no trace 000000000000000000000000000000ff"},
		{"no id", "GET", "/api/v1/traces/xyz", "", 400, "xyz"},
		{"limit", "GET", "/api/v1/traces?limit=0", "", 400, `limit=\"0\"`},
		{"client", "GET", "/api/v1/traces?client=x", "", 400, `client=\"x\"`},
		{"since", "GET", "/api/v1/traces?since=yesterday", "", 400, `since=\"yesterday\"`},
		{"slower", "GET", "/api/v1/traces?slower=fast", "", 400, `slower=\"fast\"`},
		{"errors", "GET", "/api/v1/traces?errors=many", "", 400, `errors=\"many\"`},
	})
}

func TestMetrics(t *testing.T) {
	n := newNode(t, func(o *Options) {
		o.Counters = func() api.Counters {
			return api.Counters{
				Transports: map[string]uint64{"udp": 10, "tcp": 2}, Rcodes: map[string]uint64{"NOERROR": 11}, Reasons: map[string]uint64{"policy": 9},
				Dropped: map[string]uint64{"unsent": 1}, Answers: []api.Answers{{Service: "www.example.com", Pool: "gfe-eu", Reason: "policy", Count: 9}},
			}
		}
		o.HealthStats = func() health.Stats { return health.Stats{Probes: map[string]uint64{"ok": 4}, Flips: 2, Targets: 3} }
		o.TraceStats = func() tracing.Stats {
			return tracing.Stats{Recorded: 8, Dropped: map[string]uint64{tracing.DropRingFull: 1}}
		}
		o.Members = func() []api.Member { return []api.Member{{Name: "ns1", State: "self"}} }
	})
	n.set(t, map[gslb.EndpointID]gslb.Verdict{{Pool: "gfe-us", Addr: netip.MustParseAddr("192.0.2.1")}: gslb.Down})
	n.call("POST", "/api/v1/load", `{"proxy":"p1","pool":"gfe-eu","seconds":1}`)
	w := n.call("GET", "/metrics", "")
	if w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	for _, want := range []string{
		`meridian_build_info{node="ns1",site="eu-west",version="v0.1.0"} 1`,
		"meridian_ready 1",
		"meridian_snapshot_revision 2",
		`meridian_pool_healthy_ratio{pool="gfe-us",site="us-east"} 0.5`,
		`meridian_endpoint_up{endpoint="192.0.2.1",pool="gfe-us"} 0`,
		`meridian_endpoint_up{endpoint="192.0.2.2",pool="gfe-us"} -1`,
		`meridian_dns_queries_total{transport="udp"} 10`,
		`meridian_dns_responses_total{rcode="NOERROR"} 11`,
		`meridian_dns_decisions_total{reason="policy"} 9`,
		`meridian_dns_dropped_total{cause="unsent"} 1`,
		`meridian_dns_answers_total{pool="gfe-eu",reason="policy",service="www.example.com"} 9`,
		"meridian_store_connected 1",
		`meridian_health_probes_total{class="ok"} 4`,
		"meridian_health_flips_total 2",
		"meridian_trace_queries_recorded_total 8",
		`meridian_trace_dropped_total{cause="` + tracing.DropRingFull + `"} 1`,
		`meridian_gossip_members{state="self"} 1`,
		`meridian_load_proxies{pool="gfe-eu"} 1`,
		"go_goroutines",
	} {
		if !strings.Contains(w.Body.String(), "\n"+want) {
			t.Errorf("no line %s", want)
		}
	}
}

func TestPage(t *testing.T) {
	n := newNode(t, nil)
	w := n.call("GET", "/", "")
	page, policy := w.Body.String(), w.Header().Get("Content-Security-Policy")
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
		t.Fatalf("got %d %s", w.Code, w.Header())
	}
	for _, tag := range []string{"script", "style"} {
		if strings.Count(page, "<"+tag+">") != 1 || !strings.Contains(policy, pageHash(tag)) {
			t.Errorf("%s: the policy %q must hold the hash of the page's only one", tag, policy)
		}
	}
	for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://", "style=", "onclick="} {
		if strings.Contains(page, bad) {
			t.Errorf("the page holds %q: text must stay text, and nothing comes from elsewhere", bad)
		}
	}
}

// TestNoNulls: lists are lists also where they are empty.
func TestNoNulls(t *testing.T) {
	n := newNode(t, func(o *Options) { o.Counters = func() api.Counters { return api.Counters{Time: at} } })
	if got := n.call("GET", "/api/v1/status", "").Body.String(); !strings.Contains(got, `"answers": []`) {
		t.Errorf("got %s; want an empty list of answers", got)
	}
}

func TestExplainAlias(t *testing.T) {
	runRows(t, newNode(t, nil), []requestRow{
		{"alias", "GET", "/api/v1/explain?name=Shop.example.com.&client=192.0.2.1", "", 404, "shop.example.com is an alias (CNAME) of www.example.com"},
		{"no alias", "GET", "/api/v1/explain?name=ns1.example.com&client=192.0.2.1", "", 404, "no service"},
	})
}

func TestOTLP(t *testing.T) {
	var got bytes.Buffer
	n := newNode(t, func(o *Options) {
		o.OTLP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(&got, r.Body)
			if err != nil {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
			}
		})
	})
	if w := n.call("POST", "/v1/traces", "spans", "Content-Type", "application/x-protobuf"); w.Code != 200 || got.String() != "spans" {
		t.Errorf("got %d, handed on %q", w.Code, got.String())
	}
	if w := n.call("POST", "/v1/traces", strings.Repeat("x", api.MaxOTLP+1), "Content-Type", "application/x-protobuf"); w.Code != 413 {
		t.Errorf("over the bound: got %d, want 413", w.Code)
	}
}

// TestSuggest compares distance with its definition, and holds what is suggested.
func TestSuggest(t *testing.T) {
	var slow func(a, b string) int
	slow = func(a, b string) int {
		if a == "" || b == "" {
			return len(a) + len(b)
		}
		least := min(slow(a[1:], b), slow(a, b[1:]), slow(a[1:], b[1:])) + 1
		if a[0] == b[0] {
			least = min(least, slow(a[1:], b[1:]))
		}
		if len(a) > 1 && len(b) > 1 && a[0] == b[1] && a[1] == b[0] {
			least = min(least, 1+slow(a[2:], b[2:]))
		}
		return least
	}
	words := []string{"", "a", "ab", "ba", "abc", "gfe", "gf-eu", "gf-ue", "fg-eu"}
	for _, a := range words {
		for _, b := range words {
			if got, want := distance(a, b), slow(a, b); got != want {
				t.Errorf("distance(%q, %q): got %d, want %d", a, b, got, want)
			}
		}
	}
	rows := []struct {
		name, known, want string
	}{
		{"gfe-ue", "gfe-eu gfe-us", "gfe-eu"},
		{"gfe", "gfe-eu gfe-us", ""},
		{"gfe", "gfe-eu backend", "gfe-eu"},
		{"www", "www.example.com", "www.example.com"},
		{"mars", "eu-west us-east", ""},
		{"x", "", ""},
		{"", "gfe-eu", ""},
	}
	for _, r := range rows {
		if got := suggest(r.name, strings.Fields(r.known)); got != r.want {
			t.Errorf("suggest(%q, %s): got %q, want %q", r.name, r.known, got, r.want)
		}
	}
}

func FuzzParseClient(f *testing.F) {
	for _, s := range []string{"192.0.2.1", "192.0.2.0/24", "::ffff:192.0.2.1", "::ffff:192.0.2.0/120", "::/0", "::ffff:0:0/90", "fe80::1%eth0", "0.0.0.0/0", "/", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseClient(text)
		if err != nil {
			return
		}
		if !c.Addr.IsValid() || c.Addr.Is4In6() || c.Addr.Zone() != "" || int(c.Source) > c.Addr.BitLen() {
			t.Errorf("%q: got %+v", text, c)
		}
	})
}
