// Package demo runs three regions in one process on loopback addresses: in each a node
// (DNS, vantage, gossip), two GFE proxies, a frontend and a backend; one etcd and one
// database for all. Every part is the real one.
package demo

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/meridian-gslb/meridian/cmd/gfe/proxy"
	"github.com/meridian-gslb/meridian/cmd/gslbd/app"
	"github.com/meridian-gslb/meridian/cmd/gslbd/node"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/gslb/store"
	demogeo "github.com/meridian-gslb/meridian/testdata/geo"
	"github.com/meridian-gslb/meridian/tracing"
)

var defaultPorts = ports{dns: 5300, admin: 8053, gossip: 7946, xds: 18000, http: 8080}

// Main is the command "gslbd demo". It returns the exit code.
func Main(ctx context.Context, args []string, version string, stdout, stderr io.Writer) int {
	p := defaultPorts
	flags := flag.NewFlagSet("gslbd demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&p.dns, "dns-port", p.dns, "`port` of DNS on 127.0.0.1, .2 and .3, UDP and TCP")
	flags.IntVar(&p.admin, "admin-port", p.admin, "`port` of the admin API on the same addresses")
	flags.IntVar(&p.gossip, "gossip-port", p.gossip, "`port` of the gossip on the same addresses, UDP and TCP")
	flags.IntVar(&p.xds, "xds-port", p.xds, "`port` of the config servers of the proxies on the same addresses")
	flags.IntVar(&p.http, "http-port", p.http, "`port` of the GFE proxies; frontends, backends and the database take the three after it")
	level := flags.String("log-level", "error", "debug, info, warn or error: what the parts log to standard error")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	var lv slog.Level
	err := p.valid()
	if flags.NArg() > 0 {
		err = fmt.Errorf("unexpected %q", flags.Arg(0))
	} else if lv.UnmarshalText([]byte(*level)) != nil {
		err = fmt.Errorf("--log-level %q: expected debug, info, warn or error", *level)
	}
	if err != nil {
		fmt.Fprintf(stderr, "gslbd demo: %v\n", err)
		return 2
	}
	d := &Demo{
		ports:   p,
		version: version,
		console: newConsole(stdout),

		capacity: defaultCapacity,
		log:      slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: lv})),
	}
	if err := p.free(); err != nil {
		fmt.Fprintf(stderr, "gslbd demo: %v\n", err)
		return 1
	}
	signal.Ignore(unix.SIGTTIN, unix.SIGTTOU) // in the background it runs on, without keys
	if err := d.run(ctx); err != nil {
		fmt.Fprintf(stderr, "gslbd demo: %v\n", err)
		return 1
	}
	return 0
}

// valid says which flag is out of range, or takes what another one has.
func (p ports) valid() error {
	taken := map[int]string{}
	for _, f := range []struct {
		flag              string
		port, first, most int // port follows from first, the flag's value, which may be most
	}{
		{"dns-port", p.dns, p.dns, 65535}, {"admin-port", p.admin, p.admin, 65535},
		{"gossip-port", p.gossip, p.gossip, 65535}, {"xds-port", p.xds, p.xds, 65535}, {"http-port", p.database(), p.http, 65532},
	} {
		if f.first < 1 || f.first > f.most {
			return fmt.Errorf("--%s %d: expected 1 to %d", f.flag, f.first, f.most)
		}
		if other, ok := taken[f.port]; ok {
			return fmt.Errorf("--%s %d: port %d is also that of --%s; expected another", f.flag, f.first, f.port, other)
		}
		taken[f.port] = f.flag
	}
	return nil
}

// free says which flag must change when a port that the demo needs is taken.
func (p ports) free() error {
	var flags []string
	first, more := map[string]error{}, map[string]int{} // by flag: what is in its way, and how often again
	try := func(flag string, addr netip.Addr, port int, udp bool) {
		a := netip.AddrPortFrom(addr, uint16(port)).String()
		l, err := net.Listen("tcp", a)
		if err == nil {
			l.Close()
			if udp {
				var c net.PacketConn
				if c, err = net.ListenPacket("udp", a); err == nil {
					c.Close()
				}
			}
		}
		if err != nil {
			if first[flag] != nil {
				more[flag]++
				return
			}
			flags = append(flags, flag)
			first[flag] = fmt.Errorf("%s cannot be used: %w; choose another with --%s", a, errors.Unwrap(err), flag)
		}
	}
	for _, r := range regions {
		try("dns-port", r.node(), p.dns, true)
		try("admin-port", r.node(), p.admin, false)
		try("gossip-port", r.node(), p.gossip, true)
		try("xds-port", r.node(), p.xds, false)
		for i := range 2 {
			try("http-port", r.gfe(i), p.http, false)
		}
		try("http-port", r.frontend(), p.frontend(), false)
		try("http-port", r.backend(), p.backend(), false)
	}
	try("http-port", host, p.database(), false)
	var faults []error
	for _, flag := range flags {
		err := first[flag]
		if n := more[flag]; n > 0 {
			err = fmt.Errorf("%w (and %d more of its addresses)", err, n)
		}
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// Demo is a running demo.
type Demo struct {
	ports   ports
	version string
	console *console
	log     *slog.Logger

	etcd  *store.Embed
	nodes []*node.Node
	gfes  map[string]*gfePool // by pool
	db    *app.Database
	apps  []runner // frontends and backends

	flushes []func(context.Context) error // of the tracer providers, and of the proxies' config servers

	capacity    float64        // of each frontend, requests per second
	overloading atomic.Bool    // one overload at a time
	background  sync.WaitGroup // what was begun by hand
}

// runner is a part that serves until its context ends.
type runner interface {
	Listen() error
	Run(ctx context.Context) error
}

// run puts everything up, and everything down again when ctx ends.
func (d *Demo) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dir, err := os.MkdirTemp("", "meridian-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	d.console.say("starting etcd, three nodes, six proxies, the application and its database …")
	defer d.flush()
	if err := d.prepare(ctx, dir); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}

	// What others need ends after them: first the proxies, whose last spans go to a node; then
	// the nodes; then the application and etcd.
	over, stopOver := context.WithCancel(context.WithoutCancel(ctx))
	under, stopUnder := context.WithCancel(context.WithoutCancel(ctx))
	var upper, lower sync.WaitGroup
	var mu sync.Mutex
	var faults []error
	start := func(wg *sync.WaitGroup, ctx context.Context, r interface{ Run(context.Context) error }) {
		wg.Go(func() {
			if err := r.Run(ctx); err != nil && ctx.Err() == nil {
				mu.Lock()
				faults = append(faults, err)
				mu.Unlock()
				cancel(err)
			}
		})
	}
	start(&lower, under, d.etcd)
	start(&lower, under, d.db)
	for _, a := range d.apps {
		start(&lower, under, a)
	}
	err = d.share(ctx)
	if err == nil {
		changed := make(chan struct{}, len(d.nodes))
		for i, n := range d.nodes {
			n.Changed(func(s *gslb.Snapshot) {
				if i == 0 {
					d.console.watch(s)
				}
				select {
				case changed <- struct{}{}:
				default:
				}
			})
			start(&upper, over, n)
		}
		for _, r := range regions {
			err = errors.Join(err, d.gfes[r.pool("gfe")].start(ctx))
		}
		if err == nil {
			err = d.settled(ctx, changed)
		}
	}
	switch {
	case ctx.Err() != nil:
		err = nil // it was ended before it was up, or a part failed, which faults tells
	case err != nil:
		cancel(err)
	default:
		restore, isTerminal := keys(os.Stdin, d.key(ctx, cancel))
		d.console.banner(d.ports, isTerminal)
		<-ctx.Done()
		restore()
		d.console.quiet()
		d.console.say("ending …")
	}
	d.background.Wait()
	for _, g := range d.gfes {
		g.stop()
	}
	d.flush()
	stopOver()
	upper.Wait()
	stopUnder()
	lower.Wait()
	return errors.Join(append(faults, err)...)
}

// tracer returns the tracer provider of one service of one region. All send their spans to
// the first node, so that it has whole traces.
func (d *Demo) tracer(ctx context.Context, service, site string) (trace.TracerProvider, error) {
	endpoint := fmt.Sprintf("http://%s:%d", host, d.ports.admin)
	tp, flush, err := tracing.SDK(ctx, service, endpoint, 1, attribute.String(tracing.AttrSite, site))
	if err == nil {
		d.flushes = append(d.flushes, flush)
	}
	return tp, err
}

// flush ends the tracer providers, which send what they still have.
func (d *Demo) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for _, f := range d.flushes {
		wg.Go(func() { f(ctx) })
	}
	wg.Wait()
	d.flushes = nil
}

// prepare makes every part and binds its addresses.
func (d *Demo) prepare(ctx context.Context, dir string) error {
	city := filepath.Join(dir, "city.mmdb")
	if err := os.WriteFile(city, demogeo.City, 0o600); err != nil {
		return err
	}
	var err error
	if d.etcd, err = store.NewEmbed(filepath.Join(dir, "etcd"), "", d.log); err != nil {
		return err
	}
	at := func(addr netip.Addr, port int) string {
		return netip.AddrPortFrom(addr, uint16(port)).String()
	}
	config := func(service, name, site string, addr netip.Addr, port int) (app.Config, error) {
		tp, err := d.tracer(ctx, service, site)
		return app.Config{Name: name, Site: site, Listen: []string{at(addr, port)}, Tracer: tp, Log: d.log}, err
	}
	dbConfig, err := config("database", "db", regions[0].name, host, d.ports.database())
	if err != nil {
		return err
	}
	d.db, err = app.NewDatabase(dbConfig, filepath.Join(dir, "visits.db"))
	if err != nil {
		return err
	}
	if err := d.db.Listen(); err != nil {
		return err
	}
	d.gfes = map[string]*gfePool{}
	for _, r := range regions {
		source, err := proxy.NewHTTP("http://"+at(r.node(), d.ports.admin), "")
		if err != nil {
			return err
		}
		feConfig, err := config("frontend", r.pool("fe"), r.name, r.frontend(), d.ports.frontend())
		if err != nil {
			return err
		}
		fe, err := app.NewFrontend(feConfig, r.pool("fe"), source)
		if err != nil {
			return err
		}
		beConfig, err := config("backend", r.pool("be"), r.name, r.backend(), d.ports.backend())
		if err != nil {
			return err
		}
		be, err := app.NewBackend(beConfig, "http://"+at(host, d.ports.database()))
		if err != nil {
			return err
		}
		tp, err := d.tracer(ctx, "gfe", r.name)
		if err != nil {
			return err
		}
		d.apps = append(d.apps, fe, be)
		g := &gfePool{demo: d}
		for i := range 2 {
			name := fmt.Sprintf("%s-%d", r.pool("gfe"), i+1)
			ads, err := proxy.NewADS(proxy.ADSConfig{
				Server: at(r.node(), d.ports.xds), Creds: insecure.NewCredentials(), Name: name, Site: r.name, Also: source,
			})
			if err != nil {
				return err
			}
			d.flushes = append(d.flushes, func(context.Context) error { return ads.Close() })
			g.configs = append(g.configs, proxy.Config{
				Pool: r.pool("gfe"), Name: name, Site: r.name, Source: ads,
				Listen: []string{at(r.gfe(i), d.ports.http)}, Tracer: tp, Log: d.log,
			})
		}
		d.gfes[r.pool("gfe")] = g

		n, err := d.node(ctx, r, dir, city)
		if err != nil {
			return err
		}
		d.nodes = append(d.nodes, n)
	}
	for _, a := range d.apps {
		if err := a.Listen(); err != nil {
			return err
		}
	}
	return nil
}

// node makes the region's gslbd from the configuration file that it would have.
func (d *Demo) node(ctx context.Context, r region, dir, city string) (*node.Node, error) {
	text := nodeConfig(r, d.ports, filepath.Join(dir, r.name), d.etcd.Endpoint(), city)
	f, err := config.Parse(r.name+".yaml", []byte(text))
	if err != nil {
		return nil, err
	}
	n, err := node.New(node.Options{
		File: f, Version: d.version, Log: d.log,
		Extra: map[string]http.Handler{"/api/v1/demo/": d.handler(ctx)},
	})
	if err != nil {
		return nil, err
	}
	return n, n.Listen()
}

// share puts the objects into etcd, as "gslbctl apply" would.
func (d *Demo) share(ctx context.Context) error {
	select {
	case <-d.etcd.Ready():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	objects, err := config.ParseObjects("demo.yaml", []byte(sharedConfig(d.ports, d.capacity)))
	if err != nil {
		return err
	}
	s, err := store.Open(store.Options{Etcd: config.Etcd{Endpoints: []string{d.etcd.Endpoint()}}, Log: d.log})
	if err != nil {
		return err
	}
	seed, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	first := make(chan struct{})
	seen := sync.OnceFunc(func() { close(first) })
	wg.Go(func() { s.Run(seed, func(store.View) { seen() }) })
	select {
	case <-first: // it follows etcd, and so can write to it
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	_, err = s.Apply(ctx, store.Change{Put: objects, Author: "demo"})
	return err
}

// settled waits until every node answers, and sends each sample client to its own region.
func (d *Demo) settled(ctx context.Context, changed <-chan struct{}) error {
	limit := time.After(30 * time.Second)
	for !d.atHome() {
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit:
			return errors.New("the answers have not settled after 30 s; --log-level info says why")
		}
	}
	// The proxies are told a moment later, and only if something changes for them.
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !d.proxiesAtHome() {
		select {
		case <-look.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit:
			return errors.New("the proxies have not settled after 30 s; --log-level info says why")
		}
	}
	return nil
}

// proxiesAtHome reports whether every proxy sends requests to its own region.
func (d *Demo) proxiesAtHome() bool {
	for _, r := range regions {
		g := d.gfes[r.pool("gfe")]
		g.mu.Lock()
		proxies := g.proxies
		g.mu.Unlock()
		for _, p := range proxies {
			if hops := p.Upstream().Assignment().Hops; len(hops) == 0 || hops[0].Pool != r.pool("fe") {
				return false
			}
		}
	}
	return true
}

// atHome says whether every node finds all healthy and sends each sample client to its own
// region.
func (d *Demo) atHome() bool {
	for _, n := range d.nodes {
		s := n.Snapshot()
		if s == nil {
			return false
		}
		if slices.ContainsFunc(s.Pools, func(p *gslb.Pool) bool { return p.Healthy < 1 }) {
			return false
		}
		for _, r := range regions {
			if e := sampleDecision(s, r); e.Pool != r.pool("gfe") || e.Reason != gslb.ReasonPolicy.String() {
				return false
			}
		}
	}
	return true
}

// key returns what a key on the terminal does.
func (d *Demo) key(ctx context.Context, cancel context.CancelCauseFunc) func(byte) {
	return func(k byte) {
		switch {
		case k >= '1' && int(k-'1') < len(regions):
			if err := d.gfes[regions[k-'1'].pool("gfe")].toggle(ctx); err != nil {
				d.console.say("%v", err)
			}
		case k == 'q' || k == 3:
			cancel(context.Canceled)
		}
	}
}

// handler serves /api/v1/demo/: what "gslbctl demo stop|start|overload NAME" asks for. What it starts
// ends with ctx.
func (d *Demo) handler(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	act := func(f func(*gfePool) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			name := r.FormValue("name")
			w.Header().Set("Content-Type", "application/json")
			g, ok := d.gfes[name]
			if !ok {
				var names []string
				for _, r := range regions {
					names = append(names, r.pool("gfe"))
				}
				w.WriteHeader(http.StatusNotFound)
				fmt.Fprintf(w, `{"error": %q, "hint": %q}`+"\n", fmt.Sprintf("no GFE pool %q in the demo", name), "one of "+strings.Join(names, ", "))
				return
			}
			if err := f(g); err != nil {
				w.WriteHeader(http.StatusConflict)
				fmt.Fprintf(w, `{"error": %q}`+"\n", err)
				return
			}
			fmt.Fprintf(w, `{"name": %q}`+"\n", name)
		}
	}
	mux.HandleFunc("POST /api/v1/demo/stop", act(func(g *gfePool) error { return g.stop() }))
	mux.HandleFunc("POST /api/v1/demo/overload", d.serveOverload(ctx))
	mux.HandleFunc("POST /api/v1/demo/start", act(func(g *gfePool) error { return g.start(ctx) }))
	return mux
}

// gfePool is the two proxies of one region, which can be stopped and started.
type gfePool struct {
	demo    *Demo
	configs []proxy.Config

	mu      sync.Mutex
	cancel  context.CancelFunc // nil: stopped
	proxies []*proxy.Proxy     // that run, or ran last
	wg      sync.WaitGroup
}

func (g *gfePool) name() string { return g.configs[0].Pool }

// start runs the proxies until stop or the end of ctx. It does nothing while they run, and
// fails once ctx has ended.
func (g *gfePool) start(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cancel != nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: the demo ends: %w", g.name(), err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var proxies []*proxy.Proxy
	for _, c := range g.configs {
		p, err := proxy.New(c)
		if err == nil {
			err = p.Listen()
		}
		if err != nil {
			cancel()
			for _, p := range proxies {
				p.Close()
			}
			return err
		}
		proxies = append(proxies, p)
	}
	g.cancel, g.proxies = cancel, proxies
	for _, p := range proxies {
		g.wg.Go(func() {
			if err := p.Run(ctx); err != nil && ctx.Err() == nil {
				g.demo.console.say("%s: %v", g.name(), err)
			}
		})
	}
	g.demo.console.event("%s runs", g.name())
	return nil
}

// stop ends the proxies and returns when they have.
func (g *gfePool) stop() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cancel == nil {
		return nil
	}
	g.cancel()
	g.wg.Wait()
	g.cancel = nil
	g.demo.console.event("%s stopped", g.name())
	return nil
}

func (g *gfePool) toggle(ctx context.Context) error {
	g.mu.Lock()
	running := g.cancel != nil
	g.mu.Unlock()
	if running {
		return g.stop()
	}
	return g.start(ctx)
}
