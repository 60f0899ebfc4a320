package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
	"github.com/meridian-gslb/meridian/cmd/gfe/proxy"
)

var quiet = slog.New(slog.DiscardHandler)

func config(name string, tp trace.TracerProvider) Config {
	return Config{Name: name, Site: "eu-west", Listen: []string{"127.0.0.1:0"}, Tracer: tp, Log: quiet}
}

// start runs s until the test ends or stop is called, and returns its address.
func start(t *testing.T, s service, err error) (addr netip.AddrPort, stop func()) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return s.Addrs()[0], stop
}

func startDatabase(t *testing.T, path string, tp trace.TracerProvider) (string, func()) {
	t.Helper()
	d, err := NewDatabase(config("db-1", tp), path)
	addr, stop := start(t, d, err)
	return "http://" + addr.String(), stop
}

func startBackend(t *testing.T, database string, tp trace.TracerProvider) string {
	t.Helper()
	b, err := NewBackend(config("be-1", tp), database)
	addr, _ := start(t, b, err)
	return addr.String()
}

func startFrontend(t *testing.T, backend string, tp trace.TracerProvider) string {
	t.Helper()
	f, err := NewFrontend(config("fe-1", tp), "fe-eu", static(t, "be-eu", backend))
	addr, _ := start(t, f, err)
	gfetest.Eventually(t, "the frontend knows its backends", func() bool { return f.up.Ready() == nil })
	return "http://" + addr.String()
}

func static(t *testing.T, pool, hostport string) proxy.Source {
	t.Helper()
	s, err := proxy.Static(pool, hostport)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask sends a request and returns its status and body.
func ask(t *testing.T, method, url string, headers ...string) (int, string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
	defer c.CloseIdleConnections()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func check(t *testing.T, method, url string, status int, contains string, headers ...string) {
	t.Helper()
	gotStatus, body := ask(t, method, url, headers...)
	if gotStatus != status || !strings.Contains(body, contains) {
		t.Errorf("%s %s: got %d %q, want %d and %q", method, url, gotStatus, body, status, contains)
	}
}

// TestVisits goes from the page to the file and back.
func TestVisits(t *testing.T) {
	gfetest.Leaks(t)
	path := filepath.Join(t.TempDir(), "new", "app.db")
	database, stop := startDatabase(t, path, nil)
	frontend := startFrontend(t, startBackend(t, database, nil), nil)

	check(t, "GET", frontend+"/", 200, "visit 1\n  frontend  fe-1 (eu-west)\n  backend   be-1 (eu-west)\n  database  db-1 (eu-west)\n")
	check(t, "GET", frontend+"/", 200, "visit 2\n  gfe       gfe-eu (eu-west)\n", proxy.HeaderPool, "gfe-eu", proxy.HeaderSite, "eu-west")
	check(t, "HEAD", frontend+"/", 200, "") // looks, and does not visit
	check(t, "GET", frontend+"/favicon.ico", 404, "")
	check(t, "GET", frontend+"/", 200, "<h1>Visit 3</h1>", "Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
	check(t, "GET", frontend+"/", 200, "&lt;b&gt;", "Accept", "text/html", proxy.HeaderPool, "<b>")
	_, body := ask(t, "GET", frontend+"/", "Accept", "application/json")
	var p Page
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.Visit != 5 || p.Backend != (Instance{"be-1", "eu-west"}) {
		t.Errorf("JSON: got %+v, %v of %s", p, err, body)
	}

	stop()
	db, err := bbolt.Open(path, 0, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if db.NoSync {
		t.Error("the file is written without fsync")
	}
	err = db.View(func(tx *bbolt.Tx) error {
		if got, err := decode(tx.Bucket(counters).Get([]byte(visits))); got != 5 || err != nil {
			t.Errorf("in the file: got %d, %v; want 5", got, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestBackendAPI(t *testing.T) {
	gfetest.Leaks(t)
	path := filepath.Join(t.TempDir(), "app.db")
	database, stop := startDatabase(t, path, nil)
	backend := "http://" + startBackend(t, database, nil)
	check(t, "GET", backend+"/visits", 200, `{"visits":0,`)
	check(t, "POST", backend+"/visit", 200, `{"visits":1,`)
	check(t, "GET", backend+"/visit", 200, `{"visits":2,`)
	check(t, "GET", backend+"/visits", 200, `{"visits":2,"backend":{"name":"be-1","site":"eu-west"},"database":{"name":"db-1","site":"eu-west"}}`)
	check(t, "DELETE", backend+"/visit", 405, "")
	stop()
	check(t, "GET", backend+"/visits", 502, `"error":"database: `)
	database, _ = startDatabase(t, path, nil) // elsewhere, the same file
	backend = "http://" + startBackend(t, database, nil)
	check(t, "GET", backend+"/visits", 200, `{"visits":2,`)
}

func TestDatabaseAPI(t *testing.T) {
	gfetest.Leaks(t)
	database, _ := startDatabase(t, filepath.Join(t.TempDir(), "app.db"), nil)
	check(t, "GET", database+"/counters/a", 200, `{"name":"a","value":0,"database":{"name":"db-1","site":"eu-west"}}`)
	check(t, "POST", database+"/counters/a", 200, `"value":1`)
	check(t, "POST", database+"/counters/b", 200, `"value":1`)
	check(t, "GET", database+"/counters/A", 400, `counter \"A\": expected 1 to 64 of a-z`)
	check(t, "GET", database+"/counters/"+strings.Repeat("a", 65), 400, "expected 1 to 64")
	check(t, "DELETE", database+"/counters/a", 405, "")
	check(t, "GET", database+"/healthz", 200, "ok")

	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				check(t, "POST", database+"/counters/many", 200, "")
			}
		})
	}
	wg.Wait()
	check(t, "GET", database+"/counters/many", 200, `"value":40`)
}

func TestDatabaseFile(t *testing.T) {
	if _, err := NewDatabase(config("db", nil), ""); err == nil {
		t.Error("without a path: got no error")
	}
	path := filepath.Join(t.TempDir(), "app.db")
	first, err := NewDatabase(config("db", nil), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Listen(); err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := NewDatabase(config("db", nil), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Listen(); !errors.Is(err, bbolterrors.ErrTimeout) || !strings.Contains(err.Error(), path) {
		t.Errorf("a file that is open: got %v, want a timeout with the path", err)
	}

	err = first.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(counters).Put([]byte("bad"), []byte("xyz")) })
	if err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"GET", "POST"} {
		w := httptest.NewRecorder()
		do := map[string]func(string) (uint64, error){"GET": first.read, "POST": first.increment}[method]
		r := httptest.NewRequest(method, "/counters/bad", nil)
		r.SetPathValue("name", "bad")
		first.answer(do)(w, r)
		if w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "counter bad: value of 3 octets: expected 8") {
			t.Errorf("%s of a broken value: got %d %s", method, w.Code, w.Body)
		}
	}
}

func TestFailures(t *testing.T) {
	gfetest.Leaks(t)
	refusing, _ := gfetest.Refusing(t)
	hanging := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(hanging.Close)
	b, err := NewBackend(config("be-1", nil), hanging.URL)
	if err != nil {
		t.Fatal(err)
	}
	b.timeout = 20 * time.Millisecond
	slow, _ := start(t, b, nil)
	nonsense := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>") }))
	t.Cleanup(nonsense.Close)

	check(t, "GET", "http://"+slow.String()+"/visits", 504, "the database took too long")
	for _, test := range []struct {
		name, backend string
		status        int
		want          string
	}{
		{"refused", refusing.String(), 502, "upstream pool be-eu failed: connection refused"},
		{"the database hangs", slow.String(), 502, "backend: status 504: the database took too long"},
		{"the database refuses", startBackend(t, "http://"+refusing.String(), nil), 502, "backend: status 502: database: "},
		{"nonsense", strings.TrimPrefix(nonsense.URL, "http://"), 502, "backend: invalid character"},
	} {
		t.Run(test.name, func(t *testing.T) {
			gfetest.Leaks(t)
			frontend := startFrontend(t, test.backend, nil)
			check(t, "GET", frontend+"/", test.status, "frontend fe-1 (eu-west): "+test.want)
			check(t, "GET", frontend+"/", test.status, `{"error":"`+test.want, "Accept", "application/json")
		})
	}

	t.Run("no backend", func(t *testing.T) {
		gfetest.Leaks(t)
		none := proxy.Func(func(ctx context.Context, pool string, update func(proxy.Assignment)) error {
			update(proxy.Assignment{Revision: 3})
			<-ctx.Done()
			return ctx.Err()
		})
		f, err := NewFrontend(config("fe-1", nil), "fe-eu", none)
		addr, _ := start(t, f, err)
		gfetest.Eventually(t, "the frontend was told", func() bool { return f.up.Ready() == nil })
		check(t, "GET", "http://"+addr.String()+"/", 503, "no upstream for pool fe-eu: the plan at revision 3 gives it none")
	})
}

// TestHealthBeforeTheFirstAssignment: a frontend that does not know its backends yet is not
// to be sent users.
func TestHealthBeforeTheFirstAssignment(t *testing.T) {
	gfetest.Leaks(t)
	tell := make(chan struct{})
	source := proxy.Func(func(ctx context.Context, pool string, update func(proxy.Assignment)) error {
		select {
		case <-tell:
			update(proxy.Assignment{Revision: 1})
		case <-ctx.Done():
		}
		<-ctx.Done()
		return ctx.Err()
	})
	f, err := NewFrontend(config("fe-1", nil), "fe-eu", source)
	addr, _ := start(t, f, err)
	check(t, "GET", "http://"+addr.String()+"/healthz", 503, "no assignment yet")
	close(tell)
	gfetest.Eventually(t, "the health check passes", func() bool {
		status, _ := ask(t, "GET", "http://"+addr.String()+"/healthz")
		return status == 200
	})
}

// TestTrace follows one user's trace through the proxy to the database.
func TestTrace(t *testing.T) {
	gfetest.Leaks(t)
	out := tracetest.NewInMemoryExporter()
	tp := sdktrace.NewTracerProvider(sdktrace.WithSyncer(out))
	database, _ := startDatabase(t, filepath.Join(t.TempDir(), "app.db"), tp)
	frontend := startFrontend(t, startBackend(t, database, tp), tp)
	gfe, err := proxy.New(proxy.Config{Pool: "gfe-eu", Site: "eu-west", Source: static(t, "fe-eu", strings.TrimPrefix(frontend, "http://")),
		Listen: []string{"127.0.0.1:0"}, Tracer: tp, Log: quiet})
	addr, _ := start(t, gfe, err)
	gfetest.Eventually(t, "the proxy knows its frontends", func() bool { return gfe.Upstream().Ready() == nil })

	const traceID, user = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	check(t, "GET", "http://"+addr.String()+"/", 200, "visit 1\n  gfe       gfe-eu (eu-west)\n", "Traceparent", "00-"+traceID+"-"+user+"-01")
	const spans = 7
	gfetest.Eventually(t, "every span ends", func() bool { return len(out.GetSpans()) == spans })
	children := map[string]tracetest.SpanStub{} // by parent
	for _, s := range out.GetSpans() {
		if got := s.SpanContext.TraceID().String(); got != traceID {
			t.Errorf("%s: got trace %s, want %s", s.Name, got, traceID)
		}
		children[s.Parent.SpanID().String()] = s
	}
	at := user
	for _, want := range []struct {
		name string
		kind trace.SpanKind
	}{
		{"GET", trace.SpanKindServer}, {"GET", trace.SpanKindClient}, // the proxy
		{"GET /", trace.SpanKindServer}, {"POST", trace.SpanKindClient}, // the frontend
		{"POST /visit", trace.SpanKindServer}, {"db.query", trace.SpanKindClient}, // the backend
		{"POST /counters/{name}", trace.SpanKindServer}, // the database
	} {
		s, ok := children[at]
		if !ok {
			t.Fatalf("no child of %s: want %q", at, want.name)
		}
		if s.Name != want.name || s.SpanKind != want.kind {
			t.Errorf("child of %s: got %q (%v), want %q (%v)", at, s.Name, s.SpanKind, want.name, want.kind)
		}
		if s.Name == "db.query" {
			set := attribute.NewSet(s.Attributes...)
			for key, want := range map[attribute.Key]string{"db.system.name": "bbolt", "db.operation.name": "increment", "db.collection.name": "counters", "db.query.text": "increment visits"} {
				if v, _ := set.Value(key); v.String() != want {
					t.Errorf("%s: got %q, want %q", key, v.String(), want)
				}
			}
		}
		at = s.SpanContext.SpanID().String()
	}
	_, body := ask(t, "GET", "http://"+addr.String()+"/")
	if !regexp.MustCompile(`  trace     [0-9a-f]{32}\n`).MatchString(body) {
		t.Errorf("page: got %q, want a trace id on it", body)
	}
}

// TestProcesses runs the three commands as gslbd does.
func TestProcesses(t *testing.T) {
	gfetest.Leaks(t)
	launch := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		out, in := io.Pipe()
		var errs bytes.Buffer
		ended := make(chan int, 1)
		go func() {
			code := Main(ctx, args, in, &errs)
			in.Close()
			ended <- code
		}()
		t.Cleanup(func() {
			cancel()
			if code := <-ended; code != 0 {
				t.Errorf("%v: exit code %d, want 0", args, code)
			}
		})
		ready, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, &errs)
		}
		m := regexp.MustCompile(`^(\w+) (\S+) ready on \[(.*)\]\n$`).FindStringSubmatch(ready)
		if m == nil || m[1] != args[0] {
			t.Fatalf("%v: ready line %q", args, ready)
		}
		return m[3]
	}
	database := launch("database", "--listen", "127.0.0.1:0", "--file", filepath.Join(t.TempDir(), "app.db"))
	backend := launch("backend", "--listen", "127.0.0.1:0", "--database", "http://"+database, "--name", "be-1", "--site", "eu-west")
	frontend := launch("frontend", "--listen", "127.0.0.1:0", "--backend", "http://"+backend)
	gfetest.Eventually(t, "the frontend knows its backend", func() bool {
		status, _ := ask(t, "GET", "http://"+frontend+"/healthz")
		return status == 200
	})
	check(t, "GET", "http://"+frontend+"/", 200, "visit 1\n")
}

func TestProcessRefuses(t *testing.T) {
	for _, test := range []struct{ name, args, want string }{
		{"no address", "database --file x", `required flag(s) "listen" not set`},
		{"no file", "database --listen 127.0.0.1:0", `required flag(s) "file" not set`},
		{"no database", "backend --listen 127.0.0.1:0", `required flag(s) "database" not set`},
		{"database", "backend --listen 127.0.0.1:0 --database 127.0.0.1:1", `database "127.0.0.1:1": expected http://host:port`},
		{"no backend", "frontend --listen 127.0.0.1:0", "expected either --backend, or --admin with --pool"},
		{"both", "frontend --listen 127.0.0.1:0 --backend 127.0.0.1:1 --admin http://127.0.0.1:1", "expected either"},
		{"no pool", "frontend --listen 127.0.0.1:0 --admin http://127.0.0.1:1", "--admin needs --pool"},
		{"admin", "frontend --listen 127.0.0.1:0 --admin ftp://x --pool p", `server "ftp://x"`},
		{"backend", "frontend --listen 127.0.0.1:0 --backend x", `endpoint "x": expected host:port`},
		{"listen", "frontend --listen x --backend 127.0.0.1:1", `listen "x"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			var errs bytes.Buffer
			if code := Main(t.Context(), strings.Fields(test.args), io.Discard, &errs); code != 1 {
				t.Errorf("exit code: got %d, want 1", code)
			}
			if !strings.Contains(errs.String(), test.want) {
				t.Errorf("got %q, want %q", &errs, test.want)
			}
		})
	}
}

// TestUsage: words that are no service are not a fault of one.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"nobody"}, {"--listen", "127.0.0.1:0"}} {
		var out, errs strings.Builder
		if code := Main(t.Context(), args, &out, &errs); code != 2 || len(args) == 1 && !strings.Contains(errs.String(), `unknown command "nobody"`) || !strings.Contains(errs.String(), "frontend|backend|database") {
			t.Errorf("%q: got %d and %q, want 2 and the services", args, code, errs.String())
		}
	}
}
