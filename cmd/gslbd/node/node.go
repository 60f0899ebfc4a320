// Package node wires one gslbd: the store, the places, the probes and the gossip feed one
// builder, which compiles them to what the DNS server and the admin API answer from. It
// holds no decision of its own.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/meridian-gslb/meridian/admin"
	"github.com/meridian-gslb/meridian/dns"
	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/gslb/store"
	"github.com/meridian-gslb/meridian/health"
	"github.com/meridian-gslb/meridian/tracing"
)

// Options are what a node is made of.
type Options struct {
	File    *config.File            // valid
	Path    string                  // the file's own path, followed for changes; empty: never reloaded
	Reload  <-chan os.Signal        // read Path again, changed or not
	Version string                  // of the program, for people
	Log     *slog.Logger            // nil: slog.Default
	Extra   map[string]http.Handler // further handlers of the admin API, by path prefix
	Workers int                     // UDP workers per address; 0: one per core
	Zones   Zones                   // of File, as Load read them; the node takes them over. Nil: they are read anew
}

// Node is one running gslbd. Make one with New, then call Listen and Run.
type Node struct {
	opts Options
	log  *slog.Logger

	file      atomic.Pointer[config.File] // as read last
	data      atomic.Pointer[dns.Data]    // what queries are answered from; nil until something is known
	ready     chan struct{}               // closed once queries are answered
	places    *geo.Source
	store     *store.Client
	health    *health.Monitor
	dns       *dns.Server
	traces    *tracing.Recorder
	decisions *tracing.DecisionLog
	linker    *tracing.Linker // nil: no answer has an id
	cold      coldPaths
	admin     *admin.Server
	build     *builder
	xds       *proxies
	rtts      *rtts
	names     *names

	listening bool
}

// New puts a node together and reads its databases. It binds and starts nothing.
func New(opts Options) (*Node, error) {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.Workers == 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}
	nc := opts.File.Node
	n := &Node{opts: opts, log: opts.Log.With("node", nc.Name), ready: make(chan struct{})}
	n.cold.init()
	n.file.Store(opts.File)
	if nc.Data != "" {
		if err := os.MkdirAll(nc.Data, 0o700); err != nil {
			return nil, fmt.Errorf("node.data: %w", err)
		}
	}
	var err error
	if n.places, err = geo.NewSource(geoConfig(opts.File), n.log); err != nil {
		return nil, err
	}
	n.store, err = store.Open(store.Options{
		Etcd: nc.Etcd,
		Data: nc.Data,
		Base: &opts.File.Objects,
		Log:  n.log,
	})
	if err != nil {
		return nil, err
	}
	ho, err := n.healthOptions()
	if err != nil {
		return nil, err
	}
	n.health = health.New(ho)
	n.build = newBuilder(n, nc.History.WithDefaults(), opts.Zones)
	follow, err := newFollowing(nc.Tracing)
	if err != nil {
		return nil, fmt.Errorf("node.tracing: %w", err)
	}
	n.linker = follow.linker
	n.decisions = tracing.NewDecisionLog(nc.Name, nc.Site, opts.Version, n.log)
	if err := n.decisions.Configure(decisionLog(nc.Decisions)); err != nil {
		return nil, fmt.Errorf("node.decisionLog: %w", err)
	}
	serve := dns.Options{
		Addrs:   nc.DNS,
		Workers: opts.Workers,
		Data:    &n.data,
		Trace:   func(i int) dns.TraceWorker { return n.traces.Worker(i) },
		Parents: follow.parents,
		Answers: follow.answers,
		Logger:  n.log,

		Identity:      dns.Identity{ID: nc.Serve.ID, Version: nc.Serve.Version},
		Limits:        dns.Limits(nc.Serve.Limits),
		CookieSecrets: nc.Serve.Secrets(),
		Explainers:    explainers(nc.Serve.Explain),
	}
	n.traces = tracing.New(tracing.Options{
		Endpoint: nc.OTLP.Endpoint,
		Gzip:     nc.OTLP.Gzip,
		Grace:    flushTime,
		Headers:  nc.OTLP.Headers,
		Sample:   nc.OTLP.EffectiveSample(),
		Node:     nc.Name,
		Site:     nc.Site,
		Version:  opts.Version,
		Describe: n.build.describe,
		Brief:    n.build.brief,
		Workers:  serve.TraceWorkers(),
		Logger:   n.log,
		Parents:  follow.parents,
		Answers:  follow.answers,
		Linker:   follow.linker,
		Ledger:   follow.ledger,
		Log:      n.decisions,
	})
	n.dns = dns.New(serve)
	n.xds = newProxies(n, nc.XDS)
	n.rtts = newRTTs(n, nc.RTT)
	n.names = newNames(n, nc.Resolvers)
	n.admin = admin.New(n.adminOptions())
	return n, nil
}

// explainers are those who may ask over DNS why an answer is what it is.
func explainers(c config.Explain) dns.Explainers {
	e := dns.Explainers{Allow: c.Allow}
	if e.Allow == nil {
		e.Allow = tracing.Loopback
	}
	for _, k := range c.Keys {
		e.Keys = append(e.Keys, dns.TSIGKey{Name: k.Name, Algorithm: k.EffectiveAlgorithm(), Secret: k.Secret})
	}
	return e
}

// decisionLog is what decisions are written down by.
func decisionLog(c config.DecisionLog) tracing.DecisionLogConfig {
	return tracing.DecisionLogConfig{
		Sample: c.EffectiveSample(), Services: c.Services, Pools: c.Pools, Reasons: c.Reasons, File: c.File, Dnstap: c.Dnstap,
	}
}

// Listen binds every address of the node, so that a busy one is known before anything runs.
func (n *Node) Listen() error {
	if err := n.dns.Listen(); err != nil {
		return err
	}
	if err := n.health.Listen(); err != nil {
		return err
	}
	if err := n.admin.Listen(); err != nil {
		return err
	}
	if err := n.xds.listen(); err != nil {
		return err
	}
	if err := n.rtts.listen(); err != nil {
		return err
	}
	n.listening = true
	return nil
}

// Run serves until ctx ends; then it drains, stops everything that it started and returns
// nil. It fails when a part of the node cannot go on.
func (n *Node) Run(ctx context.Context) error {
	if !n.listening {
		if err := n.Listen(); err != nil {
			return err
		}
	}
	// Two circles: what answers users stops first, and drains; what feeds it stops after.
	outer, stopOuter := context.WithCancelCause(context.WithoutCancel(ctx))
	inner, stopInner := context.WithCancelCause(outer)
	stop := context.AfterFunc(ctx, func() { stopInner(context.Cause(ctx)) })
	defer stop()

	end, stopEnd := context.WithCancel(context.WithoutCancel(ctx)) // what the others write into
	defer stopEnd()

	var front, back, last sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	run := func(wg *sync.WaitGroup, ctx context.Context, name string, f func(context.Context) error) {
		wg.Go(func() {
			err := f(ctx)
			if err == nil || ctx.Err() != nil {
				return
			}
			mu.Lock()
			failed = append(failed, fmt.Errorf("%s: %w", name, err))
			mu.Unlock()
			stopInner(err)
		})
	}
	flush := n.cold.begin(n.traces)
	run(&back, outer, "geo", n.places.Run)
	run(&back, outer, "store", func(ctx context.Context) error { return n.store.Run(ctx, n.build.view) })
	run(&back, outer, "health", n.health.Run)
	run(&back, outer, "demand", n.watchDemand)
	run(&back, outer, "tracing", n.traces.Run)
	run(&last, end, "decisions", n.decisions.Run)
	run(&back, outer, "build", n.build.run)
	if n.opts.Path != "" {
		run(&back, outer, "reload", n.follow)
	}
	run(&back, outer, "xds", n.xds.run)
	run(&back, outer, "rtt", n.rtts.run)
	run(&back, outer, "names", n.names.run)
	run(&front, inner, "dns", n.dns.Run)
	run(&front, inner, "admin", n.admin.Run)
	run(&front, inner, "beacon", n.rtts.serve)

	<-inner.Done()
	front.Wait()
	flush()
	stopOuter(errors.New("the node stops"))
	back.Wait()
	stopEnd()
	last.Wait()
	stopInner(nil)
	return errors.Join(failed...)
}

// Ready is closed once queries are answered.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Snapshot returns the snapshot that queries are answered from; nil before the first.
func (n *Node) Snapshot() *gslb.Snapshot {
	if d := n.data.Load(); d != nil {
		return d.Snapshot
	}
	return nil
}

// DNSAddrs returns the addresses that DNS is bound to, after Listen.
func (n *Node) DNSAddrs() []netip.AddrPort { return n.dns.Addrs() }

// AdminAddr returns the address that the admin API is bound to, after Listen.
func (n *Node) AdminAddr() net.Addr { return n.admin.Addr() }

// XDSAddr returns the address that the config server is bound to, after Listen; nil without
// one.
func (n *Node) XDSAddr() net.Addr { return n.xds.server.Addr() }

// Store returns the node's store.
func (n *Node) Store() *store.Client { return n.store }

// Changed is called with every new snapshot, one at a time. Set it before Run.
func (n *Node) Changed(f func(*gslb.Snapshot)) { n.build.changed = f }

// geoConfig resolves the sites that overrides name.
func geoConfig(f *config.File) geo.Config {
	c := geo.Config{City: f.Node.Geo.City, ASN: f.Node.Geo.ASN}
	for _, o := range f.Node.Geo.Overrides {
		_, sub, _ := strings.Cut(o.Subdivision, "-")
		p := geo.Place{Country: o.Country, Subdivision: sub, Continent: o.Continent, City: o.City, ASN: uint32(o.ASN), Site: o.Site}
		if s, ok := f.Objects.Sites[o.Site]; ok {
			p.Lat, p.Lon, p.Located = s.Lat, s.Lon, true
			if p.Continent == "" {
				p.Continent = s.Continent
			}
			if p.Country == "" {
				p.Country = s.Country
			}
		}
		if o.Lat != nil && o.Lon != nil {
			p.Lat, p.Lon, p.Located = *o.Lat, *o.Lon, true
		}
		c.Overrides = append(c.Overrides, geo.Override{Prefix: o.Prefix, Place: p})
	}
	return c
}

// statePath is where the node keeps what it believed last; empty without a data folder.
func (n *Node) statePath() string {
	if n.opts.File.Node.Data == "" {
		return ""
	}
	return filepath.Join(n.opts.File.Node.Data, "state.json")
}
