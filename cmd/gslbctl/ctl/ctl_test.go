package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/health"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var at = time.Date(2026, 1, 2, 13, 50, 0, 0, time.UTC)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// fakeNode answers the paths of answers with their values as JSON, and everything else with
// 404. It records what is written.
type fakeNode struct {
	answers map[string]any // by "METHOD path"
	status  map[string]int // by the same; default 200
	writes  []string       // "METHOD path?query body"
}

func (n *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := r.Method + " " + r.URL.Path
	if r.Method != http.MethodGet {
		b, _ := io.ReadAll(r.Body)
		n.writes = append(n.writes, key+"?"+r.URL.RawQuery+" "+string(b))
	}
	v, ok := n.answers[key]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		v = api.Problem{Error: "no path"}
	} else if code := n.status[key]; code != 0 {
		w.WriteHeader(code)
	}
	if applied, ok := v.(api.Applied); ok {
		applied.DryRun = r.URL.Query().Has("dryRun")
		v = applied
	}
	if lines, ok := v.([]api.Counters); ok {
		for _, l := range lines {
			json.NewEncoder(w).Encode(l)
		}
		return
	}
	json.NewEncoder(w).Encode(v)
}

// run runs gslbctl against node at the time at, and returns what it wrote and its exit code.
func run(t *testing.T, node http.Handler, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	srv := httptest.NewServer(node)
	defer srv.Close()
	t.Setenv("MERIDIAN_SERVER", srv.URL)
	t.Setenv("MERIDIAN_TOKEN", "")
	t.Setenv("USER", "ann")
	var out, errs bytes.Buffer
	a := newApp(strings.NewReader(stdin), &out, &errs)
	a.now = func() time.Time { return at }
	code = a.run(t.Context(), args)
	return out.String(), strings.ReplaceAll(errs.String(), srv.URL, "SERVER"), code
}

func exampleStatus() *api.Status {
	return &api.Status{
		Node:     api.Node{Name: "ns1", Site: "eu-west", Version: "v0.1.0", Started: at.Add(-192 * time.Second), DNS: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:5300")}},
		Time:     at,
		State:    api.StateDegraded,
		Reasons:  []string{"pool gfe-us: no endpoint is healthy"},
		Revision: 12,
		Plan:     "3f9ac01d22b1e7c0aa",
		Store:    &api.Store{Mode: "embedded", Connected: true, Revision: 44},
		Services: []api.Service{{Name: "www.example.com", Pools: []string{"gfe-ap", "gfe-eu", "gfe-us"}}},
		Pools: []api.Pool{
			{Name: "gfe-ap", Site: "ap-southeast", Healthy: 1, Endpoints: []api.Endpoint{{Addr: addr("192.0.2.21"), Weight: 1, Verdict: "up"}, {Addr: addr("192.0.2.22"), Weight: 1, Verdict: "up"}}},
			{Name: "gfe-eu", Site: "eu-west", Healthy: 1, Drained: true, Drain: &api.Drain{State: "drain", Author: "ann", Reason: "kernel upgrade", Until: at.Add(10 * time.Minute)}, Endpoints: []api.Endpoint{{Addr: addr("192.0.2.11"), Weight: 1, Verdict: "up"}}},
			{Name: "gfe-us", Site: "us-east", Healthy: 0, Degraded: true, Endpoints: []api.Endpoint{{Addr: addr("192.0.2.1"), Weight: 1, Verdict: "down"}, {Addr: addr("192.0.2.2"), Weight: 1, Verdict: "down"}}},
		},
		Members: []api.Member{{Name: "ns1", Site: "eu-west", State: "self"}, {Name: "ns2", Site: "us-east", State: "alive"}, {Name: "ns3", Site: "ap-southeast", State: "silent"}},
		Traffic: &api.Counters{Time: at, Queries: 1234567, Dropped: map[string]uint64{"unsent": 2}},
	}
}

func exampleObjects() *config.Objects {
	fifty := 50
	return &config.Objects{
		Sites: map[string]config.Site{"eu-west": {Lat: 50.11, Lon: 8.68}, "us-east": {Lat: 38.95, Lon: -77.45}},
		Pools: map[string]config.Pool{
			"gfe-ap": {Site: "ap-southeast", Endpoints: []config.Endpoint{{Address: addr("192.0.2.21")}, {Address: addr("192.0.2.22")}}},
			"gfe-eu": {Site: "eu-west", Endpoints: []config.Endpoint{{Address: addr("192.0.2.11")}}},
			"gfe-us": {Site: "us-east", Endpoints: []config.Endpoint{{Address: addr("192.0.2.1")}, {Address: addr("192.0.2.2")}}},
		},
		Services: map[string]config.Service{
			"www.example.com": {Steering: config.Steering{Pools: map[string]config.PoolRef{"gfe-ap": {Standby: true}, "gfe-eu": {Weight: &fifty}, "gfe-us": {}}}},
			"api.example.com": {Steering: config.Steering{Pools: map[string]config.PoolRef{"gfe-eu": {Weight: &fifty}, "gfe-us": {Weight: &fifty}}}},
		},
	}
}

func exampleExplanation() *api.Explanation {
	return &api.Explanation{Explanation: gslb.Explanation{
		Service:  "www.example.com",
		Client:   netip.MustParsePrefix("198.51.100.0/24"),
		Revision: 12,
		Plan:     "3f9ac01d22b1e7c0aa",
		Snapshot: "s90b3c81f25ad",
		Place:    geo.Place{Lat: 50.11, Lon: 8.68, Located: true, Continent: "EU", Country: "DE", City: "Frankfurt am Main", ASN: 64500},
		Stages: []gslb.StageTrace{
			{Stage: "pools",
				Kept: []gslb.CandidateTrace{{Pool: "gfe-ap"}, {Pool: "gfe-us"}, {Pool: "gfe-eu", Note: "drained by ann: kernel upgrade, until 14:00Z"}},
				Lost: []gslb.CandidateTrace{{Pool: "gfe-old", Note: "weight 0: never"}}},
			{Stage: "health",
				Kept: []gslb.CandidateTrace{{Pool: "gfe-us", Note: "2 of 2 endpoints healthy"}, {Pool: "gfe-ap", Note: "1 of 2 endpoints healthy, degraded"}, {Pool: "gfe-eu", Note: "1 of 1 endpoints healthy"}},
				Lost: []gslb.CandidateTrace{{Pool: "gfe-sa", Note: "0 of 2 endpoints healthy"}, {Pool: "gfe-ap", Note: "degraded: 50 % healthy, minHealthy 60 %"}}},
			{Stage: "nearest", Kept: []gslb.CandidateTrace{{Pool: "gfe-us", Note: "6520 km"}, {Pool: "gfe-ap", Note: "10252 km"}, {Pool: "gfe-eu", Note: "12 km"}}},
			{Stage: "empty"},
			{Stage: "select", Kept: []gslb.CandidateTrace{{Pool: "gfe-us", Note: "1 of 1 IPv4, 1 of 1 IPv6"}}, Lost: []gslb.CandidateTrace{{Pool: "gfe-eu", Note: "drained: after all others"}}},
		},
		Pool:    "gfe-us",
		Reason:  "failover",
		Answers: []netip.Addr{addr("192.0.2.1"), addr("2001:db8:1::1")},
		TTL:     30,
		Scope:   24,
	}}
}

func exampleHealth() *api.Health {
	return &api.Health{Endpoints: []health.View{
		{Pool: "gfe-eu", Endpoint: addr("192.0.2.11"), Verdict: "down", Since: at.Add(-3 * time.Minute), Why: "the only vantage that counts says down", Regions: map[string]string{"americas": "up"}, Vantages: []health.Vantage{
			{Since: at.Add(-190 * time.Second), Trend: []time.Duration{1e6, 8e6, 4e6, 0}, Node: "ns1", Site: "eu-west", Class: "refused", Detail: "dial 192.0.2.11:443", Age: 2 * time.Second, Fresh: true},
			{Node: "ns2", Site: "us-east", Up: true, Class: "ok", Latency: 12300 * time.Microsecond, Age: 45 * time.Second},
			{Node: "ns3", Site: "us-east", Class: "ok", Latency: 9 * time.Millisecond, Age: time.Second, Fresh: true},
			{Node: "ns4", Site: "us-east", Up: true, Class: "timeout", Detail: "no answer within 900ms", Age: time.Second, Fresh: true},
		}},
		{Pool: "gfe-us", Endpoint: addr("2001:db8:1::1"), Verdict: "unknown", Fault: "network is unreachable"},
	}}
}

// exampleNode answers every read with the examples.
func exampleNode() *fakeNode {
	o := exampleObjects()
	return &fakeNode{status: map[string]int{}, answers: map[string]any{
		"GET /api/v1/status":               exampleStatus(),
		"GET /api/v1/explain":              exampleExplanation(),
		"GET /api/v1/objects":              api.Objects{Revision: 44, Objects: o},
		"GET /api/v1/objects/pools":        o.Pools,
		"GET /api/v1/objects/pools/gfe-eu": o.Pools["gfe-eu"],
		"GET /api/v1/health":               exampleHealth(),
		"GET /api/v1/top": []api.Counters{
			{Time: at, Queries: 1000, Answers: []api.Answers{{Service: "www.example.com", Pool: "gfe-eu", Reason: "policy", Count: 600}, {Service: "www.example.com", Pool: "gfe-us", Reason: "policy", Count: 400}}},
			{Time: at.Add(2 * time.Second), Queries: 1400, Dropped: map[string]uint64{"unsent": 1}, Answers: []api.Answers{{Service: "www.example.com", Pool: "", Reason: "fallback", Count: 2}, {Service: "www.example.com", Pool: "gfe-eu", Reason: "policy", Count: 600}, {Service: "www.example.com", Pool: "gfe-us", Reason: "failover", Count: 100}, {Service: "www.example.com", Pool: "gfe-us", Reason: "policy", Count: 698}}},
			{Time: at.Add(3 * time.Second), Queries: 100, Answers: []api.Answers{{Service: "www.example.com", Pool: "gfe-eu", Reason: "policy", Count: 100}}},
		},
		"POST /api/v1/pools/gfe-eu/drain":   api.Applied{Revision: 45, Diff: []config.Change{{Kind: "states", Name: "gfe-eu", Op: "add"}}},
		"POST /api/v1/pools/gfe-eu/undrain": api.Applied{Revision: 46, Diff: []config.Change{{Kind: "states", Name: "gfe-eu", Op: "delete"}}},
		"POST /api/v1/pools/gfe-us/undrain": api.Applied{Revision: 46, Diff: []config.Change{}},
		"POST /api/v1/pools/gfe-eu/weight":  api.Applied{Revision: 47, Diff: []config.Change{{Kind: "services", Name: "api.example.com", Op: "change"}, {Kind: "services", Name: "www.example.com", Op: "change"}}},
		"POST /api/v1/apply": api.Applied{Revision: 44, Diff: []config.Change{
			{Kind: "sites", Name: "us-west", Op: "add", After: config.Site{Lat: 45.6, Lon: -121.2}},
			{Kind: "pools", Name: "gfe-eu", Op: "change", Before: exampleObjects().Pools["gfe-eu"], After: config.Pool{Site: "eu-west", Capacity: 50000, Endpoints: []config.Endpoint{{Address: addr("192.0.2.12")}}}},
			{Kind: "states", Name: "gfe-us", Op: "delete", Before: config.State{Pool: "gfe-us", State: "drain", Author: "bob", Since: at}},
		}},
		"DELETE /api/v1/objects/states/gfe-eu": api.Applied{Revision: 48, Diff: []config.Change{{Kind: "states", Name: "gfe-eu", Op: "delete", Before: config.State{Pool: "gfe-eu", State: "down", Author: "bob", Since: at}}}},
		"POST /api/v1/store/confirm":           struct{}{},
		"POST /api/v1/demo/stop":               map[string]string{"message": "gfe-eu is stopped: 2 proxies; start it again with gslbctl demo start gfe-eu"},
	}}
}

// TestGolden compares what each command writes with testdata/<name>.golden.
func TestGolden(t *testing.T) {
	file := filepath.Join(t.TempDir(), "objects.yaml")
	if err := os.WriteFile(file, []byte("sites:\n  us-west: {lat: 45.6, lon: -121.2}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rows := []struct {
		name string
		args string
		code int
	}{
		{"status", "status", ExitNotOK},
		{"status-json", "status -o json", ExitNotOK},
		{"explain", "explain www.example.com --client 198.51.100.0/24", ExitOK},
		{"explain-if", "explain www.example.com --client 198.51.100.0/24 --if pool.gfe-eu=down --if load.gfe-us=0.9", ExitOK},
		{"explain-yaml", "explain www.example.com --client 198.51.100.0/24 -o yaml", ExitOK},
		{"pool-list", "pool list", ExitOK},
		{"pool-drain", "pool drain gfe-eu --reason upgrade --for 10m", ExitOK},
		{"pool-undrain", "pool undrain gfe-eu", ExitOK},
		{"pool-undrain-nothing", "pool undrain gfe-us", ExitOK},
		{"pool-weight", "pool weight gfe-eu 50", ExitOK},
		{"get-all", "get all", ExitOK},
		{"get-kind", "get pools", ExitOK},
		{"get-one", "get pool gfe-eu", ExitOK},
		{"get-one-json", "get pool gfe-eu -o json", ExitOK},
		{"diff", "diff -f " + file, ExitError},
		{"apply-dry-run", "apply --dry-run -f " + file, ExitOK},
		{"apply", "apply -f " + file, ExitOK},
		{"health", "health", ExitOK},
		{"top", "top --count 2", ExitOK},
		{"top-json", "top --count 1 -o json", ExitOK},
		{"delete", "delete state gfe-eu", ExitOK},
		{"confirm", "confirm", ExitOK},
		{"demo-stop", "demo stop gfe-eu", ExitOK},
		{"help", "--help", ExitOK},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			stdout, stderr, code := run(t, exampleNode(), "", strings.Fields(r.args)...)
			if code != r.code || stderr != "" {
				t.Fatalf("gslbctl %s: exit %d, stderr %q; want exit %d and nothing", r.args, code, stderr, r.code)
			}
			golden := filepath.Join("testdata", r.name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(stdout), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if stdout != string(want) {
				t.Errorf("gslbctl %s: got\n%s\nwant\n%s", r.args, stdout, want)
			}
			if strings.Contains(stdout, "\x1b") {
				t.Errorf("gslbctl %s: escapes without a terminal: %q", r.args, stdout)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	refused := exampleNode()
	refused.status["POST /api/v1/apply"] = http.StatusUnprocessableEntity
	refused.answers["POST /api/v1/apply"] = api.Problem{Error: "the configuration has 2 faults", Hint: "nothing was written", Faults: []string{"body:1: sites.eu.lat: bad", "body:3: pools.p: worse", "body:7: pools: lost", "gslb.yaml:4: pools.q: old"}}
	refused.status["POST /api/v1/plan"], refused.answers["POST /api/v1/plan"] = refused.status["POST /api/v1/apply"], refused.answers["POST /api/v1/apply"]
	guarded := exampleNode()
	guarded.answers["POST /api/v1/apply"] = api.Applied{DryRun: true, Diff: []config.Change{{Kind: "sites", Name: "eu", Op: config.OpDelete}}, Refused: "refused without force: services.w: none"}
	notReady := exampleNode()
	notReady.answers["GET /api/v1/status"] = api.Status{State: api.StateNotReady, Reasons: []string{"first probe round"}}
	hostile := exampleNode()
	hostile.status["GET /api/v1/explain"] = http.StatusNotFound
	hostile.answers["GET /api/v1/explain"] = api.Problem{Error: "no service \x1b[2J", Hint: `did you mean "www.example.com"?`}
	stranger := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<html>hello</html>")
	})

	rows := []struct {
		name  string
		node  http.Handler
		stdin string
		args  string
		code  int
		want  string // in stderr
	}{
		{"unknown command", exampleNode(), "", "statsu", ExitUsage, `no command "statsu" in gslbctl; did you mean "status"?`},
		{"unknown subcommand", exampleNode(), "", "pool drian", ExitUsage, `no command "drian" in gslbctl pool; did you mean "drain"?`},
		{"unknown flag", exampleNode(), "", "status --wat", ExitUsage, "unknown flag: --wat"},
		{"bad output", exampleNode(), "", "status -o xml", ExitUsage, `--output "xml": expected table, json, yaml`},
		{"missing argument", exampleNode(), "", "pool drain", ExitUsage, "gslbctl pool drain: POOL is missing; usage:"},
		{"too many arguments", exampleNode(), "", "status now", ExitUsage, `"now" is one argument too many`},
		{"explain without client", exampleNode(), "", "explain www.example.com", ExitUsage, "--client is missing; give the address"},
		{"weight out of range", exampleNode(), "", "pool weight gfe-eu 70000", ExitUsage, `weight "70000": expected 0..65535`},
		{"bad endpoint", exampleNode(), "", "pool drain gfe-eu --endpoint x", ExitUsage, `--endpoint "x": expected an address`},
		{"bad until", exampleNode(), "", "pool drain gfe-eu --until noon", ExitUsage, `--until "noon": expected 15:04`},
		{"for and until", exampleNode(), "", "pool drain gfe-eu --until 15:00 --for 1h", ExitUsage, "--for and --until say the same twice"},
		{"bad server", exampleNode(), "", "status --server ftp://x", ExitUsage, `server "ftp://x": expected http://host:port`},
		{"kind", exampleNode(), "", "get poools", ExitUsage, `no kind "poools"; there are: sites`},
		{"kind to delete", exampleNode(), "", "delete all x", ExitUsage, `no kind "all"; there are: sites`},
		{"apply without file", exampleNode(), "", "apply", ExitUsage, "-f FILE is missing"},
		{"apply of faults", exampleNode(), "sites: {eu: {lat: 95, lon: 0}}\nwhat: 1\n", "apply -f -", ExitError, "stdin has 2 faults"},
		{"apply refused", refused, "sites:\n  eu: {lat: 5, lon: 0}\n", "apply -f -", ExitError, "the configuration has 2 faults\n  stdin:2: sites.eu.lat: bad\n  body:3: pools.p: worse\n  body:7: pools: lost\n  gslb.yaml:4: pools.q: old\nnothing was written"},
		{"diff refused", refused, "sites:\n  eu: {lat: 5, lon: 0}\n", "diff -f -", ExitError, "  stdin:2: sites.eu.lat: bad\n"},
		{"plan refused", refused, "pools:\n  p:\n    site: eu\n", "plan -f -", ExitError, "  stdin:2: pools.p: worse\n"},
		{"dry run of what takes force", guarded, "sites: {eu: {lat: 5, lon: 0}}\n", "apply --dry-run -f -", ExitError, "refused without force: services.w: none; if that is meant, say so: --force"},
		{"file that is not there", exampleNode(), "", "apply -f /nonexistent.yaml", ExitError, "/nonexistent.yaml: no such file"},
		{"hostile text", hostile, "", "explain www --client ::1", ExitError, `no service \x1b[2J; did you mean "www.example.com"?`},
		{"not a node", stranger, "", "status", ExitError, "not what a Meridian node sends"},
		{"no demo", exampleNode(), "", "demo start gfe-eu", ExitError, "this node is no demo; start one with gslbd demo"},
		{"not ready", notReady, "", "status", ExitNotOK, ""},
		{"top interval", exampleNode(), "", "top --interval 1ms", ExitUsage, "--interval 1ms: expected 200ms..1h"},
		{"top ends early", exampleNode(), "", "top --count 9", ExitUnreachable, "cannot reach SERVER"},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			_, stderr, code := run(t, r.node, r.stdin, strings.Fields(r.args)...)
			if code != r.code || !strings.Contains(stderr, r.want) {
				t.Errorf("gslbctl %s: exit %d, stderr %q; want exit %d and %q", r.args, code, stderr, r.code, r.want)
			}
			if strings.Contains(stderr, "\x1b") {
				t.Errorf("gslbctl %s: a raw escape in %q", r.args, stderr)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	srv := httptest.NewServer(exampleNode())
	srv.Close() // its port refuses from now on
	var out, errs bytes.Buffer
	code := Run([]string{"status", "--server", srv.URL}, nil, &out, &errs)
	want := "gslbctl: cannot reach " + srv.URL + ": connection refused; is gslbd running? set --server or MERIDIAN_SERVER\n"
	if code != ExitUnreachable || errs.String() != want {
		t.Errorf("got exit %d, %q; want %d, %q", code, errs.String(), ExitUnreachable, want)
	}
}

// TestRequests holds what the commands send.
func TestRequests(t *testing.T) {
	rows := []struct {
		args string
		want []string
	}{
		{"pool drain gfe-eu --reason upgrade --for 10m", []string{`POST /api/v1/pools/gfe-eu/drain? {"author":"ann","reason":"upgrade","until":"2026-01-02T14:00:00Z"}`}},
		{"pool drain gfe-eu --until 13:00 --author bob --force", []string{`POST /api/v1/pools/gfe-eu/drain? {"author":"bob","until":"2026-01-03T13:00:00Z","force":true}`}},
		{"pool drain gfe-eu --endpoint 192.0.2.11", []string{`POST /api/v1/pools/gfe-eu/drain? {"author":"ann","endpoint":"192.0.2.11"}`}},
		{"pool weight gfe-eu 0 --service www.example.com", []string{`POST /api/v1/pools/gfe-eu/weight? {"author":"ann","weight":0,"service":"www.example.com"}`}},
		{"apply -f - --force --prune", []string{
			"POST /api/v1/apply?author=ann&dryRun=1&force=1&prune=1 {sites: {eu: {lat: 5, lon: 0}}}\n",
			"POST /api/v1/plan?prune=1 {sites: {eu: {lat: 5, lon: 0}}}\n",
			"POST /api/v1/apply?at=44&author=ann&force=1&prune=1 {sites: {eu: {lat: 5, lon: 0}}}\n",
		}},
		{"delete state gfe-eu --force", []string{"DELETE /api/v1/objects/states/gfe-eu?author=ann&force=1 "}},
		{"demo stop gfe-eu", []string{"POST /api/v1/demo/stop?name=gfe-eu "}},
	}
	for _, r := range rows {
		t.Run(r.args, func(t *testing.T) {
			node := exampleNode()
			_, stderr, code := run(t, node, "node: {name: left-out}\nsites: {eu: {lat: 5, lon: 0}}\n", strings.Fields(r.args)...)
			if code != ExitOK {
				t.Fatalf("exit %d: %s", code, stderr)
			}
			if got, want := strings.Join(node.writes, "\n"), strings.Join(r.want, "\n"); got != want {
				t.Errorf("sent\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestZoneFiles checks that apply sends what zone files hold.
func TestZoneFiles(t *testing.T) {
	dir := t.TempDir()
	zone := "$ORIGIN example.com.\n@ 60 IN SOA ns1 host 1 2 3 4 5\n@ 60 IN NS ns1\n"
	for name, text := range map[string]string{"gslb.yaml": "zones:\n- {name: example.com, file: example.com.zone}\n", "example.com.zone": zone} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	node := exampleNode()
	if _, stderr, code := run(t, node, "", "apply", "--dry-run", "-f", filepath.Join(dir, "gslb.yaml")); code != ExitOK {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if len(node.writes) != 2 { // what would differ, and what that would do to the users
		t.Fatalf("%d requests, want 2", len(node.writes))
	}
	_, body, _ := strings.Cut(node.writes[0], "dryRun=1 ")
	o, err := config.ParseObjects("sent", []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if got := o.Zones["example.com"]; got.Records != zone || got.File != "" {
		t.Errorf("sent %+v; want the records in place", got)
	}
}

// TestTerminal holds what a terminal gets: colours, and top in its place on one screen.
func TestTerminal(t *testing.T) {
	srv := httptest.NewServer(exampleNode())
	defer srv.Close()
	var out, errs bytes.Buffer
	a := newApp(nil, &out, &errs)
	a.style = style{colour: true, terminal: true, width: 80, height: 5}
	if code := a.run(t.Context(), []string{"top", "--count", "2", "--server", srv.URL}); code != ExitOK {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	screens := strings.Split(out.String(), "\x1b[H")
	if len(screens) != 3 || screens[0] != "" {
		t.Fatalf("%d screens in %q, want 2", len(screens)-1, out.String())
	}
	if first := screens[1]; strings.Count(first, "\n") != 4 || strings.Count(first, "\x1b[K\n") != 4 || !strings.HasSuffix(first, "\x1b[J") || !strings.Contains(first, "\x1b[1m200.0\x1b[0m q/s") {
		t.Errorf("got %q; want four lines, each cleared to its end", first)
	}

	out.Reset()
	a = newApp(nil, &out, &errs)
	a.style = style{colour: true}
	if code := a.run(t.Context(), []string{"explain", "www.example.com", "-c", "198.51.100.7", "--server", srv.URL}); code != ExitOK {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	for _, want := range []string{"\x1b[36mhealth\x1b[0m", "\x1b[32m✓ gfe-us\x1b[0m", "\x1b[31m✗ gfe-sa\x1b[0m", "\x1b[33m↓ gfe-ap\x1b[0m", "\x1b[33m! gfe-eu\x1b[0m", "\x1b[31mnothing left\x1b[0m", "\x1b[33mfailover:"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}

// TestBrokenPipe holds that a reader that goes away is an error, not a success.
func TestBrokenPipe(t *testing.T) {
	srv := httptest.NewServer(exampleNode())
	defer srv.Close()
	r, w := io.Pipe()
	r.Close()
	var errs bytes.Buffer
	if code := Run([]string{"pool", "list", "--server", srv.URL}, nil, w, &errs); code != ExitError {
		t.Errorf("exit %d, %q; want %d", code, errs.String(), ExitError)
	}
}

// TestInterrupted holds that ^C ends top as it should and is no success of anything else.
func TestInterrupted(t *testing.T) {
	srv := httptest.NewServer(exampleNode())
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for args, want := range map[string]int{"top": ExitOK, "status": ExitError} {
		var out, errs bytes.Buffer
		if code := RunContext(ctx, []string{args, "--server", srv.URL}, nil, &out, &errs); code != want {
			t.Errorf("%s: exit %d, %q; want %d", args, code, errs.String(), want)
		}
	}
}

func TestCompletion(t *testing.T) {
	rows := []struct{ args, want string }{
		{"pool drain gfe", "gfe-ap\ngfe-eu\ngfe-us\n"},
		{"explain www", "www.example.com\n"},
		{"get p", "pools\nprobes\n"},
		{"get pool gfe-e", "gfe-eu\n"},
	}
	for _, r := range rows {
		t.Run(r.args, func(t *testing.T) {
			stdout, _, code := run(t, exampleNode(), "", append([]string{"__complete"}, strings.Fields(r.args)...)...)
			for name := range strings.Lines(r.want) {
				if !strings.Contains(stdout, name) {
					t.Errorf("exit %d, got %q, want %q in it", code, stdout, name)
				}
			}
		})
	}
}

// TestStageRowsNote: what a stage found of the client is told, and not its pools again.
func TestStageRowsNote(t *testing.T) {
	st := gslb.StageTrace{Stage: "match", Note: "case 1: country DE", Kept: []gslb.CandidateTrace{{Pool: "gfe-eu"}}}
	if rows := stageRows(st); len(rows) != 1 || rows[0][0].text != "match" || rows[0][2].text != st.Note {
		t.Errorf("got %v, want one row with the note", rows)
	}
}
