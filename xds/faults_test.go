package xds

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/xds/bootstrap"
)

// The tests of this file run a real Envoy through the faults that config servers are known
// to have, and through what happens to config servers. Where they send load, no request may
// fail.

// relay passes connections on to a server, and can be cut, slowed or led elsewhere: what
// Envoy keeps talking to while servers come and go.
type relay struct {
	l     net.Listener
	wg    sync.WaitGroup
	mu    sync.Mutex
	to    string        // guarded by mu; empty: refuse
	delay time.Duration // guarded by mu: of each piece that the server says
	conns map[net.Conn]bool
}

func newRelay(t testing.TB, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l, to: to, conns: map[net.Conn]bool{}}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.pass(c) })
		}
	})
	t.Cleanup(func() { l.Close(); r.lead("", 0); r.wg.Wait() })
	return r
}

// lead cuts what is open and passes what comes on to another server.
func (r *relay) lead(to string, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to, r.delay = to, delay
	for c := range r.conns {
		c.Close()
	}
}

func (r *relay) keep(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = true
}

func (r *relay) pass(c net.Conn) {
	defer c.Close()
	r.mu.Lock()
	to, delay := r.to, r.delay
	r.mu.Unlock()
	if to == "" {
		return
	}
	s, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer s.Close()
	r.keep(c)
	r.keep(s)
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(s, c); s.Close() })
	buf := make([]byte, 1024)
	for {
		n, err := s.Read(buf)
		if n > 0 {
			if delay > 0 {
				time.Sleep(delay) // the slowness is what is tested
			}
			if _, err := c.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	c.Close()
	wg.Wait()
}

// current waits until some client of s has all of w.
func current(t testing.TB, s *Server, w *World) {
	t.Helper()
	eventually(t, 40*time.Second, func() string {
		cs := s.Clients()
		for _, c := range cs {
			if c.Revision == w.Revision && !c.Behind {
				return ""
			}
		}
		return fmt.Sprintf("no client at revision %d: %+v", w.Revision, cs)
	})
}

// currentOf waits until the client of that name has all of w.
func currentOf(t testing.TB, s *Server, w *World, id string) {
	t.Helper()
	eventually(t, 40*time.Second, func() string {
		cs := s.Clients()
		for _, c := range cs {
			if c.ID == id && c.Revision == w.Revision && !c.Behind {
				return ""
			}
		}
		return fmt.Sprintf("%s is not at revision %d: %+v", id, w.Revision, cs)
	})
}

// noneFailed ends the load and wants that no request failed.
func noneFailed(t testing.TB, stop func() (int, []string)) {
	t.Helper()
	sent, failed := stop()
	if len(failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %s", len(failed), sent, failed[0])
	}
	t.Logf("%d requests, %d failed", sent, len(failed))
}

// avoided waits until b is asked for nothing while others answer 200 requests: by then every
// thread of the proxy that gets requests knows.
func avoided(t testing.TB, b *backend, others ...*backend) {
	t.Helper()
	sum := func() (n int64) {
		for _, o := range others {
			n += o.hits.Load()
		}
		return n
	}
	hits, from := b.hits.Load(), sum()
	eventually(t, patience, func() string {
		if n := b.hits.Load(); n != hits {
			hits, from = n, sum()
			return b.name + " still gets requests"
		}
		if n := sum() - from; n < 200 {
			return fmt.Sprintf("%d requests went to others, too few to say anything", n)
		}
		return ""
	})
}

// TestEnvoyKeepsServing sends load through an Envoy while its config server goes, comes back
// without a past, is slow, is led by an older configuration, and moves to another node.
func TestEnvoyKeepsServing(t *testing.T) {
	envoyBinary(t)
	a := New(Options{Addr: "127.0.0.1:0"})
	stopA := start(t, a)
	eu1, eu2, us := runBackend(t, "eu1", "127.0.0.2:0", nil), runBackend(t, "eu2", "127.0.0.3:0", nil), runBackend(t, "us", "127.0.0.4:0", nil)
	port := freePort(t)
	eu := []*backend{eu1, eu2}
	old := gfeWorld(port, eu, []*backend{us}, "")
	newer := gfeWorld(port, eu, []*backend{us}, ", connectTimeout: 3s, mode: spray-to-world")
	w := world(t, nil, old, state{revision: 10})
	a.Set(w)
	r := newRelay(t, a.Addr().String())
	e := runEnvoy(t, bootstrap.Proxy{ID: "gfe-1", Pool: "gfe", Site: "eu-1", Servers: []string{r.l.Addr().String()}})
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	answered(t, url, "", "eu1", "eu2")
	stop := load(t, url, 4)

	t.Log("a change of the cluster")
	w = world(t, w, newer, state{})
	a.Set(w)
	current(t, a, w)
	answered(t, url, "", "us")

	t.Log("the server is gone")
	stopA()
	r.lead("", 0)
	hits := us.hits.Load()
	eventually(t, 20*time.Second, func() string {
		if us.hits.Load() < hits+50 {
			return "no traffic while the server is gone"
		}
		return ""
	})

	t.Log("it is back, without a past, and with an older configuration")
	b := serve(t, Options{})
	back := world(t, nil, old, state{revision: 3})
	b.Set(back)
	r.lead(b.Addr().String(), 0)
	current(t, b, back)
	avoided(t, us, eu1, eu2)

	t.Log("it is slow")
	r.lead(b.Addr().String(), 300*time.Millisecond)
	slow := world(t, back, newer, state{})
	b.Set(slow)
	current(t, b, slow)
	answered(t, url, "", "us") // it has all of it before the way there is cut

	t.Log("it knows nothing yet")
	c := serve(t, Options{})
	r.lead(c.Addr().String(), 0)
	eventually(t, 40*time.Second, func() string {
		if len(c.Clients()) == 0 {
			return "not connected"
		}
		return ""
	})
	answered(t, url, "", "us")
	c.Set(world(t, nil, old, state{revision: 1}))
	current(t, c, c.World())
	noneFailed(t, stop)
	if n := e.stat(t, "cluster_manager.cds.update_rejected"); n != 0 {
		t.Errorf("%d rejected", n)
	}
}

// TestEnvoyRollingReplacement replaces the frontends one by one, as an operator would: drain,
// wait, stop, start a new one elsewhere, probe it, take it in.
func TestEnvoyRollingReplacement(t *testing.T) {
	envoyBinary(t)
	s := serve(t, Options{})
	us := runBackend(t, "us", "127.0.0.9:0", nil)
	port := freePort(t)
	var eu []*backend
	for i := range 3 {
		eu = append(eu, runBackend(t, fmt.Sprintf("old%d", i), fmt.Sprintf("127.0.0.%d:0", i+2), nil))
	}
	var w *World
	set := func(states ...string) {
		text := gfeWorld(port, eu, []*backend{us}, "")
		if len(states) > 0 {
			text += "states:\n" + strings.Join(states, "")
		}
		w = world(t, w, text, state{})
		s.Set(w)
	}
	set()
	runEnvoy(t, gfeBootstrap(s))
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	answered(t, url, "", "old0", "old1", "old2")
	stop := load(t, url, 4)
	for i := range eu {
		host, _ := eu[i].split()
		set(fmt.Sprintf("  x: {pool: fe-eu, endpoint: %s, state: drain, author: ann}\n", host))
		current(t, s, w)
		var others []*backend
		for j := range eu {
			if j != i {
				others = append(others, eu[j])
			}
		}
		avoided(t, eu[i], others...)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		if err := eu[i].server.Shutdown(ctx); err != nil {
			t.Errorf("frontend %d: %v", i, err)
		}
		cancel()
		eu[i] = runBackend(t, fmt.Sprintf("new%d", i), fmt.Sprintf("127.0.0.%d:0", i+12), nil)
		set()
		current(t, s, w)
		answered(t, url, "", eu[i].name)
	}
	noneFailed(t, stop)
	if n := us.hits.Load(); n != 0 {
		t.Errorf("%d requests left the region", n)
	}
}

// TestEnvoyWarming tries P1, P2, P3, P5 and P7 with a real Envoy, in both variants of the
// protocol: a cluster whose endpoints do not exist, and one that changes, are warm without
// Envoy's own timeout of 15 s, which it counts; health changes warm nothing; and one that asks
// for less than before is told what becomes of the rest, also by a server without a past.
func TestEnvoyWarming(t *testing.T) { inVariants(t, envoyWarming) }

func envoyWarming(t *testing.T, variant func(string) string) {
	envoyBinary(t)
	s := New(Options{Addr: "127.0.0.1:0"})
	stop := start(t, s)
	r := newRelay(t, s.Addr().String())
	eu, us := runBackend(t, "eu", "127.0.0.2:0", nil), runBackend(t, "us", "127.0.0.3:0", nil)
	port := freePort(t)
	plain := gfeWorld(port, []*backend{eu}, []*backend{us}, "")
	// The raw field leads a second cluster to endpoints that there are not.
	text := strings.Replace(plain, "proxy: {", `proxy: {upstreams: {other: fe-us, nobody: {pools: {fe-eu: }, envoy: {eds_cluster_config: {service_name: nobody}}}}, `, 1)
	w := world(t, nil, text, state{})
	s.Set(w)
	started := time.Now()
	b := gfeBootstrap()
	b.Servers = []string{r.l.Addr().String()}
	e := runEnvoy(t, b, variant)
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	answered(t, url, "", "eu")
	warm := func(modified int) {
		t.Helper()
		eventually(t, 12*time.Second, func() string {
			if e.stat(t, "cluster_manager.cluster_modified") < modified {
				return "the change has not arrived"
			}
			if n := e.stat(t, "cluster_manager.warming_clusters"); n != 0 {
				return fmt.Sprintf("%d clusters are warming", n)
			}
			return ""
		})
	}
	warm(0)
	t.Logf("warm %v after the start", time.Since(started).Round(time.Millisecond))

	updates := e.stat(t, "cluster_manager.cluster_modified")
	host, _ := eu.split()
	flip := func(text string) {
		t.Helper()
		w = world(t, w, text, state{down: []string{"fe-eu/" + host}})
		s.Set(w)
		answered(t, url, "", "us")
		w = world(t, w, text, state{})
		s.Set(w)
		answered(t, url, "", "eu")
	}
	flip(text)
	if n := e.stat(t, "cluster_manager.cluster_modified"); n != updates { // P7
		t.Errorf("health alone modified %d clusters, want none", n-updates)
	}

	changed := time.Now()
	text = strings.Replace(text, "{fe-eu: {}, fe-us: {}}", "{fe-eu: {}, fe-us: {}}, connectTimeout: 4s", 1)
	w = world(t, w, text, state{})
	s.Set(w)
	warm(updates + 1) // P2
	t.Logf("a changed cluster is warm %v after the change", time.Since(changed).Round(time.Millisecond))
	answered(t, url, "", "eu")
	for _, name := range []string{"upstream", "nobody"} { // P3
		if n := e.stat(t, "cluster."+name+".init_fetch_timeout"); n != 0 {
			t.Errorf("cluster %s: %d fetches timed out", name, n)
		}
	}

	w = world(t, w, plain, state{}) // it asks for one name of three from now on
	s.Set(w)
	eventually(t, patience, func() string {
		if n := e.stat(t, "cluster_manager.active_clusters"); n != 2 { // with that of the config server
			return fmt.Sprintf("%d clusters are left, want 2", n)
		}
		return ""
	})
	flip(plain) // P1

	stop()
	s = serve(t, Options{})
	w = world(t, nil, plain, state{revision: w.Revision}) // nothing has changed, as far as it knows
	s.Set(w)
	r.lead(s.Addr().String(), 0)
	current(t, s, w)
	flip(plain) // P5
}

// TestEnvoyInACrowd tries P4 and P6 with a real Envoy: beside clients that read nothing and
// acknowledge nothing it follows a row of changes to the last, and what does not concern it
// is not sent to it.
func TestEnvoyInACrowd(t *testing.T) {
	envoyBinary(t)
	s := serve(t, Options{})
	eu, us := runBackend(t, "eu", "127.0.0.2:0", nil), runBackend(t, "us", "127.0.0.3:0", nil)
	port := freePort(t)
	text := gfeWorld(port, []*backend{eu}, []*backend{us}, "") + "  other: {site: us, port: 80, endpoints: [{address: 192.0.2.9}], upstream: fe-us}\n"
	w := world(t, nil, text, state{})
	s.Set(w)
	crowd(t, s, "gfe")
	runEnvoy(t, gfeBootstrap(s))
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	answered(t, url, "", "eu")
	host, _ := eu.split()
	for i := range 100 { // all types change, again and again
		w = world(t, w, strings.Replace(text, "{fe-eu: {}, fe-us: {}}", fmt.Sprintf("{fe-eu: {}, fe-us: {}}, connectTimeout: %ds", i%7+1), 1), state{down: []string{"fe-eu/" + host}[i%2:]})
		s.Set(w)
	}
	w = world(t, w, text, state{down: []string{"fe-eu/" + host}})
	s.Set(w)
	currentOf(t, s, w, "gfe-1")
	answered(t, url, "", "us")
	before := s.Stats().Pushes
	w = world(t, w, strings.Replace(text, "upstream: fe-us", "upstream: [fe-us, fe-eu]", 1), state{down: []string{"fe-eu/" + host}})
	s.Set(w)
	currentOf(t, s, w, "gfe-1")
	if n := s.Stats().Pushes - before; n != 0 {
		t.Errorf("%d responses were sent for a change of another pool", n)
	}
}

// TestEnvoyRejects gives Envoy what it refuses: it serves on, and the status says why.
func TestEnvoyRejects(t *testing.T) {
	envoyBinary(t)
	s := serve(t, Options{})
	eu, us := runBackend(t, "eu", "127.0.0.2:0", nil), runBackend(t, "us", "127.0.0.3:0", nil)
	port := freePort(t)
	text := gfeWorld(port, []*backend{eu}, []*backend{us}, "")
	w := world(t, nil, text, state{})
	s.Set(w)
	runEnvoy(t, gfeBootstrap(s))
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	answered(t, url, "", "eu")
	stop := load(t, url, 2)
	// Valid for the protocol, not for Envoy.
	bad := world(t, w, gfeWorld(port, []*backend{eu}, []*backend{us}, ", envoy: {lb_policy: CLUSTER_PROVIDED}"), state{})
	s.Set(bad)
	eventually(t, 20*time.Second, func() string {
		for _, c := range s.Clients() {
			for _, ts := range c.Types {
				if ts.Rejected != nil && strings.Contains(ts.Rejected.Reason, "cluster provided LB") && c.Behind {
					return ""
				}
			}
		}
		return fmt.Sprintf("clients %+v; want a rejection", s.Clients())
	})
	good := world(t, bad, text, state{})
	s.Set(good)
	current(t, s, good)
	noneFailed(t, stop)
}

// TestEnvoyMTLS connects an Envoy by certificates, and refuses one whose certificate is for
// another pool.
func TestEnvoyMTLS(t *testing.T) {
	envoyBinary(t)
	dir := t.TempDir()
	cert, key := writeCert(t, dir, "server", testCert(t, "xds.test"))
	gfeCert, gfeKey := writeCert(t, dir, "gfe", testCert(t, "gfe"))
	otherCert, otherKey := writeCert(t, dir, "other", testCert(t, "other"))
	ca := concat(t, dir, "clients.ca", gfeCert, otherCert)
	s := serve(t, Options{TLS: TLS{Cert: cert, Key: key, CA: ca}})
	eu, us := runBackend(t, "eu", "127.0.0.2:0", nil), runBackend(t, "us", "127.0.0.3:0", nil)
	port := freePort(t)
	www := testCert(t, "www.test")
	text := gfeWorld(port, []*backend{eu}, []*backend{us}, "")
	text = strings.Replace(text, "proxy: {", "proxy: {tls: {certificate: www}, ", 1)
	s.Set(world(t, nil, text, state{secrets: map[string]Secret{"www": www}}))
	b := gfeBootstrap(s)
	b.CA, b.Name = cert, "xds.test"
	b.Cert, b.Key = otherCert, otherKey
	b.ID = "stranger"
	stranger := runEnvoy(t, b)
	b.Cert, b.Key = gfeCert, gfeKey
	b.ID = "gfe-1"
	runEnvoy(t, b)
	url := fmt.Sprintf("https://127.0.0.1:%d/", port)
	client := tlsClient(t, www, "www.test")
	eventually(t, 30*time.Second, func() string {
		if got, err := get(client, url, ""); got != "eu" {
			return fmt.Sprintf("%q, %v; want eu over TLS with the certificate of SDS", got, err)
		}
		return ""
	})
	eventually(t, 20*time.Second, func() string {
		if stranger.stat(t, "cluster.gslb_xds.upstream_rq_total") == 0 {
			return "the stranger has not asked"
		}
		return ""
	})
	for _, c := range s.Clients() {
		if c.ID == "stranger" {
			t.Errorf("the stranger is served: %+v", c)
		}
	}
	if n := stranger.stat(t, "listener_manager.total_listeners_active"); n != 0 {
		t.Errorf("the stranger has %d listeners, want none", n)
	}

	next := testCert(t, "www.test") // a rotation
	s.Set(world(t, s.World(), text, state{secrets: map[string]Secret{"www": next}}))
	client = tlsClient(t, next, "www.test")
	eventually(t, 20*time.Second, func() string {
		if got, err := get(client, url, ""); got != "eu" {
			return fmt.Sprintf("after the rotation: %q, %v", got, err)
		}
		return ""
	})
}

// TestEnvoyRenewsItsCertificate has an Envoy connect by a certificate that is moved into the place
// of another while it runs, to a config server that trusts only that by then.
func TestEnvoyRenewsItsCertificate(t *testing.T) {
	envoyBinary(t)
	dir := t.TempDir()
	cert, key := writeCert(t, dir, "server", testCert(t, "xds.test"))
	gfeCert, gfeKey := writeCert(t, dir, "gfe", testCert(t, "gfe"))
	o := Options{TLS: TLS{Cert: cert, Key: key, CA: concat(t, dir, "clients.ca", gfeCert)}, Addr: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	b := bootstrap.Proxy{
		ID: "gfe-1", Pool: "gfe", Site: "eu-1", Region: "eu", Servers: []string{o.Addr},
		CA: cert, Name: "xds.test", Cert: gfeCert, Key: gfeKey, SDS: filepath.Join(dir, "sds.yaml"),
	}
	text, err := b.Secret()
	if err == nil {
		err = os.WriteFile(b.SDS, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	connected := func(s *Server) {
		t.Helper()
		eventually(t, patience, func() string {
			if list := s.Clients(); len(list) != 1 || list[0].ID != "gfe-1" {
				return fmt.Sprintf("clients %+v, want the Envoy", list)
			}
			return ""
		})
	}
	w := world(t, nil, three(1, ""), state{})
	s := New(o)
	stop := start(t, s)
	s.Set(w)
	runEnvoy(t, b)
	connected(s)

	next := filepath.Join(dir, "next")
	if err := os.Mkdir(next, 0o700); err != nil {
		t.Fatal(err)
	}
	nextCert, nextKey := writeCert(t, next, "gfe", testCert(t, "gfe"))
	o.TLS.CA = concat(t, next, "clients.ca", nextCert)
	for from, to := range map[string]string{nextCert: gfeCert, nextKey: gfeKey} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	s = serve(t, o)
	s.Set(w)
	connected(s)
}
