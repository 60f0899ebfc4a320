package store

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestMain fails when a goroutine of this package outlives the tests.
func TestMain(m *testing.M) {
	code := m.Run()
	left := leftover("meridian/gslb/store.", 0)
	if len(left) != 0 && code == 0 {
		fmt.Fprintf(os.Stderr, "goroutines left:\n%s\n", strings.Join(left, "\n\n"))
		code = 1
	}
	os.Exit(code)
}

// leftover returns the goroutines with what in their stack, once no more than that many are
// left or they have had time to go.
func leftover(what string, allowed int) (left []string) {
	buf := make([]byte, 4<<20)
	for range 100 {
		left = nil
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			// An etcd that gave up (TestDamagedEtcd) keeps the goroutine that started it.
			if strings.Contains(g, what) && !strings.Contains(g, "leftover") && !strings.Contains(g, "(*Embed).start") {
				left = append(left, g)
			}
		}
		if len(left) <= allowed {
			break
		}
		time.Sleep(50 * time.Millisecond) // goroutines of closed connections are on their way out
	}
	return left
}

// patience is how long a test waits for what must come; only failures wait so long.
const patience = 9 * time.Second

// etcd is a server under test: stopped, started, and asked by a client of its own.
type etcd struct {
	t      *testing.T
	dir    string
	listen string
	raw    *clientv3.Client
	stop   func()
}

// startEtcd starts a server on dir and a unix socket.
func startEtcd(t *testing.T, dir, listen string) *etcd {
	t.Helper()
	e := &etcd{t: t, dir: dir, listen: listen}
	server, err := NewEmbed(dir, listen, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	select {
	case <-server.Ready():
	case err := <-ended:
		cancel()
		t.Fatalf("etcd did not start: %v", err)
	}
	e.raw, err = dial(context.Background(), config.Etcd{}, []string{listen})
	if err != nil {
		t.Fatal(err)
	}
	e.stop = sync.OnceFunc(func() {
		e.raw.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("etcd ended with %v", err)
		}
	})
	t.Cleanup(e.stop)
	return e
}

// put writes values by etcd key below config.Root in one transaction; "" deletes.
func (e *etcd) put(kvs ...string) (rev int64) {
	e.t.Helper()
	var ops []clientv3.Op
	for i := 0; i < len(kvs); i += 2 {
		if kvs[i+1] == "" {
			ops = append(ops, clientv3.OpDelete(config.Root+kvs[i]))
		} else {
			ops = append(ops, clientv3.OpPut(config.Root+kvs[i], kvs[i+1]))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := e.raw.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		e.t.Fatal(err)
	}
	return r.Header.Revision
}

// world is a small valid configuration in etcd's form.
var world = []string{
	"sites/eu", `{"lat":50,"lon":8}`,
	"zones/example.com", `{"name":"example.com","records":"@ SOA"}`,
	"pools/a", `{"site":"eu","endpoints":[{"address":"192.0.2.1"}]}`,
	"pools/b", `{"site":"eu","endpoints":[{"address":"192.0.2.2"}]}`,
	"services/www.example.com", `{"pools":{"a":{},"b":{}}}`,
}

// fastTiming reacts within a test's patience.
var fastTiming = timing{
	coalesce: 5 * time.Millisecond, progress: 200 * time.Millisecond, silence: 30 * time.Second,
	relist: time.Hour, timeout: 2 * time.Second, settle: 2 * time.Second, grace: time.Hour, hold: 50 * time.Millisecond,
	backoffMin: 10 * time.Millisecond, backoffMax: 200 * time.Millisecond, save: time.Minute,
}

// running is a Client whose Run goes on, and the views that it handed on.
type running struct {
	*Client
	t     *testing.T
	mu    sync.Mutex
	views []View
	news  chan struct{}
	stop  func()
}

func start(t *testing.T, o Options, change func(*timing)) *running {
	t.Helper()
	if o.Log == nil {
		o.Log = testLog(t)
	}
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	c.timing = fastTiming
	if change != nil {
		change(&c.timing)
	}
	return run(t, c)
}

// run runs c until the test ends.
func run(t *testing.T, c *Client) *running {
	t.Helper()
	r := &running{Client: c, t: t, news: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- c.Run(ctx, func(v View) {
			r.mu.Lock()
			r.views = append(r.views, v)
			r.mu.Unlock()
			poke(r.news)
		})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// count returns how many views were handed on.
func (r *running) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.views)
}

// view waits for a view that ok accepts, among those not yet looked at first.
func (r *running) view(what string, ok func(View) bool) View {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		for len(r.views) > 0 {
			v := r.views[0]
			r.views = r.views[1:]
			if ok(v) {
				r.mu.Unlock()
				return v
			}
		}
		r.mu.Unlock()
		select {
		case <-r.news:
		case <-deadline:
			last, _ := r.Latest()
			r.t.Fatalf("no view with %s; the last: %+v, status %+v", what, last, r.Status())
		}
	}
}

// status waits for a status that ok accepts. Statuses have no events, so it polls.
func (r *running) status(what string, ok func(Status) bool) Status {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		s := r.Status()
		if ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("no status with %s: %+v", what, s)
		}
		time.Sleep(time.Millisecond)
	}
}

func hasPool(name string) func(View) bool {
	return func(v View) bool { _, ok := v.Objects.Pools[name]; return ok }
}

func names(v View, kind string) string { return strings.Join(v.Objects.Names(kind), " ") }

// external returns options for the server at listen.
func external(listen, data string) Options {
	return Options{Etcd: config.Etcd{Endpoints: []string{listen}}, Data: data}
}

// socket returns the URL of a unix socket in a new folder.
func socket(t *testing.T) string {
	dir, err := os.MkdirTemp("", "m") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return "unix://" + filepath.Join(dir, "s")
}

// testLog logs to t.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(&testWriter{t: t}, nil))
}

type testWriter struct{ t *testing.T }

func (w *testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

// relay passes connections on to a unix socket, and can stop passing what goes through: a
// partition, as no end of a connection notices it.
type relay struct {
	listen net.Listener
	mu     sync.Mutex
	frozen bool
	conns  []net.Conn
	wg     sync.WaitGroup
}

func newRelay(t *testing.T, from, to string) *relay {
	l, err := net.Listen("unix", strings.TrimPrefix(from, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listen: l}
	r.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", strings.TrimPrefix(to, "unix://"))
			if err != nil {
				in.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, in, out)
			r.mu.Unlock()
			r.wg.Go(func() { r.pass(in, out) })
			r.wg.Go(func() { r.pass(out, in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		for _, c := range r.conns {
			c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

func (r *relay) pass(from, to net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	lost := false // a stream that lost octets stays lost
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		r.mu.Lock()
		lost = lost || r.frozen
		r.mu.Unlock()
		if !lost {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
}

func (r *relay) freeze(on bool) {
	r.mu.Lock()
	r.frozen = on
	r.mu.Unlock()
}
