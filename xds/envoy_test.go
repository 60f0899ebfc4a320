package xds

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/xds/bootstrap"
)

// backend is an HTTP server on loopback that says its name.
type backend struct {
	name string
	addr string // host:port
	hits atomic.Int64

	server *http.Server
}

// runBackend serves on host, port 0 for any, until the test ends or stop is called.
func runBackend(t testing.TB, name, listen string, handler http.HandlerFunc) *backend {
	t.Helper()
	return runBackendTLS(t, name, listen, nil, handler)
}

// runBackendTLS is runBackend with TLS, unless c is nil.
func runBackendTLS(t testing.TB, name, listen string, c *tls.Config, handler http.HandlerFunc) *backend {
	t.Helper()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if c != nil {
		l = tls.NewListener(l, c)
	}
	b := &backend{name: name, addr: addr}
	b.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.hits.Add(1)
		w.Header().Set("X-Backend", name)
		if handler != nil {
			handler(w, r)
			return
		}
		fmt.Fprintln(w, name)
	})}
	done := make(chan struct{})
	go func() { b.server.Serve(l); close(done) }()
	t.Cleanup(func() { b.server.Close(); <-done })
	return b
}

// host and port of a backend.
func (b *backend) split() (host, port string) {
	host, port, _ = net.SplitHostPort(b.addr)
	return host, port
}

// endpointYAML is the backend as an endpoint of a pool.
func (b *backend) endpointYAML() string {
	host, port := b.split()
	return fmt.Sprintf("{address: %s, port: %s}", host, port)
}

// get does one request and returns the backend that answered, or what went wrong.
func get(client *http.Client, url, host string) (string, error) {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return "", err
	}
	req.Host = host
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	if res.StatusCode != 200 {
		return "", fmt.Errorf("%s: %s", res.Status, strings.TrimSpace(string(body)))
	}
	return res.Header.Get("X-Backend"), nil
}

// answered waits until url is answered by one of those backends.
func answered(t testing.TB, url, host string, want ...string) {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	eventually(t, 30*time.Second, func() string {
		got, err := get(client, url, host)
		for _, w := range want {
			if err == nil && got == w {
				return ""
			}
		}
		return fmt.Sprintf("%s answers %q, %v; want %v", url, got, err, want)
	})
}

// configDump reads one of Envoy's admin pages.
func (p *envoyProcess) page(t testing.TB, path string) string {
	t.Helper()
	res, err := http.Get(p.Admin + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// stat returns one of Envoy's counters or gauges; 0 when there is none.
func (p *envoyProcess) stat(t testing.TB, name string) int {
	t.Helper()
	var out struct {
		Stats []struct {
			Name  string
			Value int
		}
	}
	if err := json.Unmarshal([]byte(p.page(t, "/stats?format=json&filter=^"+name+"$")), &out); err != nil {
		t.Fatal(err)
	}
	for _, s := range out.Stats {
		if s.Name == name {
			return s.Value
		}
	}
	return 0
}

// load sends requests from some workers until stop is called, which lets at least 200 go out
// and returns how many did, and what failed.
func load(t testing.TB, url string, workers int) (stop func() (sent int, failed []string)) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed []string
	var sent atomic.Int64
	end := make(chan struct{})
	for range workers {
		wg.Go(func() {
			client := &http.Client{Timeout: 10 * time.Second}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-end:
					return
				default:
				}
				sent.Add(1)
				if _, err := get(client, url, ""); err != nil {
					mu.Lock()
					failed = append(failed, time.Now().Format("05.000 ")+err.Error())
					mu.Unlock()
				}
				time.Sleep(2 * time.Millisecond) // so that the machine's other work goes on
			}
		})
	}
	once := sync.OnceFunc(func() { close(end); wg.Wait() })
	t.Cleanup(once)
	return func() (int, []string) {
		eventually(t, 60*time.Second, func() string {
			if n := sent.Load(); n < 200 {
				return fmt.Sprintf("%d requests went out, too few to say anything", n)
			}
			return ""
		})
		once()
		return int(sent.Load()), failed
	}
}

// gfeBootstrap is a GFE of pool gfe that asks these servers.
func gfeBootstrap(servers ...*Server) bootstrap.Proxy {
	b := bootstrap.Proxy{ID: "gfe-1", Pool: "gfe", Site: "eu-1", Region: "eu"}
	for _, s := range servers {
		b.Servers = append(b.Servers, s.Addr().String())
	}
	return b
}

// gfeWorld is a GFE pool that listens on port, with one frontend pool per region.
func gfeWorld(port int, eu, us []*backend, more string) string {
	list := func(bs []*backend) string {
		var out []string
		for _, b := range bs {
			out = append(out, b.endpointYAML())
		}
		return strings.Join(out, ", ")
	}
	return sites + fmt.Sprintf(`
pools:
  gfe: {site: eu-1, port: %d, endpoints: [{address: 127.0.0.1}], upstream: {pools: {fe-eu: {}, fe-us: {}}%s}, proxy: {listen: "127.0.0.1:%d"}}
  fe-eu: {site: eu-1, probe: accept, endpoints: [%s]}
  fe-us: {site: us, probe: accept, endpoints: [%s]}
`, port, more, port, list(eu), list(us))
}

// TestEnvoyServes starts an Envoy from our bootstrap: it serves, moves with the health of
// its upstream, strips ORCA headers, and is seen with its version and revision.
func TestEnvoyServes(t *testing.T) {
	s := serve(t, Options{})
	orca := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Endpoint-Load-Metrics", "TEXT cpu_utilization=0.5,application_utilization=0.7")
	}
	eu, us := runBackend(t, "eu", "127.0.0.1:0", orca), runBackend(t, "us", "127.0.0.1:0", nil)
	port := freePort(t)
	text := gfeWorld(port, []*backend{eu}, []*backend{us}, "")
	w := world(t, nil, text, state{})
	s.Set(w)
	e := runEnvoy(t, gfeBootstrap(s))
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	answered(t, url, "", "eu")

	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	for _, h := range orcaHeaders {
		if v := res.Header.Get(h); v != "" {
			t.Errorf("header %s: %q reached the user", h, v)
		}
	}
	if got := res.Header.Get(headerPool); got != "gfe" {
		t.Errorf("header %s: %q, want gfe", headerPool, got)
	}
	eventually(t, 20*time.Second, func() string {
		for _, l := range s.Loads() {
			if l.To == "fe-eu" && l.Rate > 0 && near(l.Metrics["cpu_utilization"], 0.5) && near(l.Metrics["application_utilization"], 0.7) {
				return ""
			}
		}
		if _, err := get(http.DefaultClient, url, ""); err != nil {
			return err.Error()
		}
		return fmt.Sprintf("loads %+v; want some on fe-eu, with the ORCA report", s.Loads())
	})
	host, _ := eu.split()
	w = world(t, w, text, state{down: []string{"fe-eu/" + host}})
	s.Set(w)
	answered(t, url, "", "us")
	eventually(t, 10*time.Second, func() string {
		c := s.Clients()
		if len(c) == 1 && c[0].ID == "gfe-1" && c[0].Pool == "gfe" && c[0].Agent == "envoy" && c[0].Version != "" && c[0].Revision == w.Revision && !c[0].Behind {
			return ""
		}
		return fmt.Sprintf("clients %+v; want gfe-1 at revision %d", c, w.Revision)
	})
	// Envoy shows the version of all but endpoints.
	dump := e.page(t, "/config_dump")
	for typ, name := range map[Type]string{Clusters: "upstream", Listeners: "ingress", Routes: "routes"} {
		if v := w.View("gfe").Resource(Envoy, typ, name).Version; !strings.Contains(dump, v) {
			t.Errorf("%s: the config dump does not name version %s", typ, v)
		}
	}
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-6 }
