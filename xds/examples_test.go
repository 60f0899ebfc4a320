package xds

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/xds/bootstrap"
)

// example is testdata/envoy/<name>.yaml, run by a real Envoy with a backend behind every
// endpoint of its pools. Addresses are moved to free ports of loopback.
type example struct {
	t    testing.TB
	text string
	s    *Server
	w    *World
	at   string // where the Envoy listens
	pool string

	secrets map[string]Secret
}

func runExample(t *testing.T, name, pool, listen string, backends []*backend, was []string, secrets map[string]Secret) *example {
	t.Helper()
	envoyBinary(t)
	data, err := os.ReadFile(filepath.Join("..", "testdata", "envoy", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	e := &example{t: t, pool: pool, at: fmt.Sprintf("127.0.0.1:%d", freePort(t)), s: serve(t, Options{}), secrets: secrets}
	e.text = strings.Replace(string(data), "listen: "+listen, fmt.Sprintf("listen: %q", e.at), 1)
	for i, b := range backends {
		host, port := b.split()
		if !strings.Contains(e.text, "{address: "+was[i]+"}") {
			t.Fatalf("%s.yaml has no endpoint %s", name, was[i])
		}
		e.text = strings.Replace(e.text, "{address: "+was[i]+"}", fmt.Sprintf("{address: %s, port: %s}", host, port), 1)
	}
	e.set(state{})
	runEnvoy(t, bootstrap.Proxy{ID: name, Pool: pool, Site: "eu-west", Servers: []string{e.s.Addr().String()}})
	eventually(t, 30*time.Second, func() string {
		c, err := net.Dial("tcp", e.at)
		if err != nil {
			return err.Error()
		}
		c.Close()
		return ""
	})
	return e
}

func (e *example) set(st state) {
	e.t.Helper()
	st.secrets = e.secrets
	e.w = world(e.t, e.w, e.text, st)
	e.s.Set(e.w)
}

// want wants that a request is answered by one of those backends, soon.
func (e *example) want(host, path string, backends ...string) {
	e.t.Helper()
	answered(e.t, "http://"+e.at+path, host, backends...)
}

// refused wants a status.
func (e *example) refused(host, path string, status int) {
	e.t.Helper()
	eventually(e.t, 20*time.Second, func() string {
		req, err := http.NewRequest("GET", "http://"+e.at+path, nil)
		if err != nil {
			return err.Error()
		}
		req.Host = host
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err.Error()
		}
		res.Body.Close()
		if res.StatusCode != status {
			return fmt.Sprintf("%s%s: %s, want %d", host, path, res.Status, status)
		}
		return ""
	})
}

// echo answers with the path and a header that came.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Path", r.URL.Path)
	fmt.Fprintf(w, "%s %s", r.Host, r.Header.Get(headerPool))
}

func TestExampleIngress(t *testing.T) {
	eu, us, static := runBackend(t, "eu", "127.0.0.2:0", echo), runBackend(t, "us", "127.0.0.3:0", echo), runBackend(t, "static", "127.0.0.4:0", echo)
	e := runExample(t, "ingress", "gfe-eu", "127.0.0.1:8080", []*backend{eu, us, static}, []string{"127.0.2.21", "127.0.1.21", "127.0.2.22"}, nil)
	e.want("shop.example.com", "/cart", "eu")
	e.want("shop.example.com", "/static/logo.png", "static")
	e.want("other.example.com", "/", "eu")
	e.refused("shop.example.com", HealthPath, 200)
	res, err := http.Get("http://" + e.at + "/x")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if !strings.HasSuffix(string(body), " gfe-eu") || res.Header.Get(headerPool) != "gfe-eu" {
		t.Errorf("the upstream saw %q, the user %q; want the pool gfe-eu", body, res.Header.Get(headerPool))
	}
	e.set(state{down: []string{"fe-eu/127.0.0.2"}})
	e.want("shop.example.com", "/cart", "us")
	e.set(state{})
	e.want("shop.example.com", "/cart", "eu")
	eu.server.Close() // before any probe sees it: the retry finds nobody else in the pool, Envoy says so
	e.refused("shop.example.com", "/cart", 503)
}

func TestExampleSidecar(t *testing.T) {
	one, two, us := runBackend(t, "one", "127.0.0.2:0", echo), runBackend(t, "two", "127.0.0.3:0", echo), runBackend(t, "us", "127.0.0.4:0", echo)
	e := runExample(t, "sidecar", "fe-eu", "127.0.0.1:9001", []*backend{one, two, us}, []string{"127.0.2.31", "127.0.2.32", "127.0.1.31"}, nil)
	e.want("", "/orders", "one")
	e.want("", "/orders", "two")
	one.server.Close() // the sidecar tries the other, long before a probe sees it
	stop := load(t, "http://"+e.at+"/orders", 2)
	noneFailed(t, stop)
	e.set(state{down: []string{"be-eu/127.0.0.2", "be-eu/127.0.0.3"}})
	e.want("", "/orders", "us")
}

func TestExampleInternal(t *testing.T) {
	eu, us, users := runBackend(t, "eu", "127.0.0.2:0", echo), runBackend(t, "us", "127.0.0.3:0", echo), runBackend(t, "users", "127.0.0.4:0", echo)
	e := runExample(t, "internal", "ilb-eu", "127.0.0.1:9002", []*backend{eu, us, users}, []string{"127.0.2.41", "127.0.1.41", "127.0.2.42"}, nil)
	e.want("orders.internal", "/", "eu")
	e.want("orders.internal", "/", "us")
	e.want("users.internal", "/", "users")
	e.want("a.users.internal:9002", "/", "users")
	e.refused("nobody.internal", "/", 404)
	before := [2]int64{eu.hits.Load(), us.hits.Load()}
	for range 400 {
		if _, err := get(http.DefaultClient, "http://"+e.at+"/", "orders.internal"); err != nil {
			t.Fatal(err)
		}
	}
	// A quarter by capacity: within five standard deviations.
	if n := eu.hits.Load() - before[0]; n < 55 || n > 145 {
		t.Errorf("%d of 400 requests went to eu and %d to us, want a quarter", n, us.hits.Load()-before[1])
	}
}

func TestExampleEgress(t *testing.T) {
	cert := testCert(t, "api.partner.example")
	pair, err := tls.X509KeyPair(cert.Cert, cert.Key)
	if err != nil {
		t.Fatal(err)
	}
	var seen http.Header
	partner := runBackendTLS(t, "partner", "127.0.0.2:0", &tls.Config{Certificates: []tls.Certificate{pair}}, func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Clone()
		echo(w, r)
	})
	e := runExample(t, "egress", "egress-eu", "127.0.0.1:9003", []*backend{partner}, []string{"127.0.9.1"}, map[string]Secret{"partner": {CA: cert.Cert}})
	e.want("api.partner.example", "/v1/prices", "partner")
	if seen.Get(headerPool) != "" || seen.Get("Cookie") != "" {
		t.Errorf("the partner saw %v; want none of our headers", seen)
	}
	e.refused("api.partner.example", "/admin", 404)
	e.refused("evil.example", "/v1/prices", 404)
	// Envoy goes on using connections that were verified before; the partner keeps none from here on.
	partner.server.SetKeepAlivesEnabled(false)
	other := testCert(t, "api.partner.example") // whoever else claims the name
	e.secrets = map[string]Secret{"partner": {CA: other.Cert}}
	e.set(state{})
	e.refused("api.partner.example", "/v1/prices", 503)
}

// TestExamplesAreListed keeps a test for every example.
func TestExamplesAreListed(t *testing.T) {
	files, err := filepath.Glob("../testdata/envoy/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".yaml"))
	}
	if want := []string{"egress", "ingress", "internal", "sidecar"}; !slices.Equal(names, want) {
		t.Errorf("examples %v, tested are %v", names, want)
	}
}
