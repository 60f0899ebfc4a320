package xds

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	loadstats "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/meridian-gslb/meridian/xds/certs"
)

// Limits of one server, and of one connection.
const (
	maxStreams  = 8192 // of all clients, of either service
	maxConns    = 2 * maxStreams
	maxPerConn  = 128             // calls at once over one connection
	maxHello    = time.Minute     // until a connection has shown its certificate, and a stream who it is
	maxIdle     = 5 * time.Minute // of a connection without a call
	maxHeaders  = 64 << 10        // octets
	maxMessage  = 4 << 20         // octets of a request
	maxReason   = 2048            // octets of why a client refused a response
	maxHeld     = 256 << 20       // octets of the names that all clients ask for: over that, those who ask for most are ended
	bufferSize  = 8 << 10         // octets that are read and written at once, of each connection
	window      = 64 << 10        // octets that a client may send before they are read: of each stream, and not growing with its speed
	keepaliveAt = 20 * time.Second
)

// DefaultSendTimeout is how long a client may take nothing of what it is sent: 2 minutes are
// 70 kbit/s for a megabyte.
const DefaultSendTimeout = 2 * time.Minute

// DefaultCoalesce is the shortest time between two pushes to one client that changes cause.
const DefaultCoalesce = 50 * time.Millisecond

// Options configure a Server. The zero value listens nowhere, for tests.
type Options struct {
	Addr     string        // host:port for gRPC
	TLS      TLS           // zero: plain text
	Coalesce time.Duration // default DefaultCoalesce; negative: none
	Report   time.Duration // between two load reports of a client; default 1 s
	Log      *slog.Logger  // default discards

	SendTimeout time.Duration // after which the connection of a client that takes nothing is closed; default DefaultSendTimeout

	// Grew is called when the load of a proxy has grown, so that a new world need not wait;
	// nil: nobody is. It must not block.
	Grew func()

	// Services registers further services on the same address, for whoever may connect; nil: none.
	Services func(grpc.ServiceRegistrar)

	Now func() time.Time
}

// TLS names PEM files. A rotation needs no restart: connections are taken with what the files
// hold then.
type TLS struct {
	Cert, Key string
	CA        string // clients must show a certificate of it, for the DNS name that is their pool's
}

// Server hands worlds to proxies and takes their load. It is safe for concurrent use.
type Server struct {
	// Set at construction.
	o     Options
	log   *slog.Logger
	loads *loads
	most  int64 // maxHeld

	world atomic.Pointer[World]
	conns conns
	seq   atomic.Uint64 // numbers clients
	held  atomic.Int64  // octets, by the sessions of all clients

	mu       sync.Mutex
	listener net.Listener
	clients  map[*client]struct{} // guarded by mu

	heardMu sync.Mutex
	heard   map[string]heard // guarded by heardMu: the last word of each other node

	pushes, rejections, stuck atomic.Uint64
	reporting                 atomic.Int64 // streams of load reports
}

// New returns a server that knows no world yet: its clients keep what they have.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Coalesce = cmp.Or(o.Coalesce, DefaultCoalesce)
	o.Report = cmp.Or(o.Report, time.Second)
	o.SendTimeout = cmp.Or(o.SendTimeout, DefaultSendTimeout)
	return &Server{
		o: o, log: o.Log, most: maxHeld, conns: conns{open: map[string]*accepted{}}, clients: map[*client]struct{}{}, loads: newLoads(o.Report),
	}
}

// Set puts w in place of the world before. Clients are told what changed for them.
func (s *Server) Set(w *World) {
	s.world.Store(w)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		select {
		case c.kick <- struct{}{}:
		default: // it looks at the newest world in a moment anyway
		}
	}
}

// World returns what is handed out; nil before the first Set.
func (s *Server) World() *World { return s.world.Load() }

// Listen binds the address, so that a busy one is known before anything runs.
func (s *Server) Listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", s.o.Addr)
	if err != nil {
		return fmt.Errorf("xds: %w", err)
	}
	s.listener = l
	return nil
}

// Addr returns the address that is listened on, or nil before Listen.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}

// Run serves until ctx ends, and returns once the last stream has ended. Clients keep what
// they were told.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(); err != nil {
		return err
	}
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage), grpc.WaitForHandlers(true),
		grpc.MaxConcurrentStreams(maxPerConn), grpc.MaxHeaderListSize(maxHeaders), grpc.ConnectionTimeout(maxHello),
		grpc.ReadBufferSize(bufferSize), grpc.WriteBufferSize(bufferSize), grpc.SharedWriteBuffer(true),
		grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(window),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveAt, Timeout: keepaliveAt / 2, MaxConnectionIdle: maxIdle}),
	}
	if t := s.o.TLS; t != (TLS{}) {
		files, err := certs.Read(t.Cert, t.Key, t.CA, s.log)
		if err != nil {
			return fmt.Errorf("xds: %w", err)
		}
		opts = append(opts, grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion:         tls.VersionTLS12,
			NextProtos:         []string{"h2"},
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return files.Server("h2") },
		})))
	}
	g := grpc.NewServer(opts...)
	s.Register(g)
	if s.o.Services != nil {
		s.o.Services(g)
	}
	failed := make(chan error, 1)
	s.conns.Listener = netutil.LimitListener(s.listener, maxConns)
	go func() { failed <- g.Serve(&s.conns) }()
	select {
	case err := <-failed:
		return fmt.Errorf("xds: %w", err)
	case <-ctx.Done():
	}
	g.Stop()
	<-failed
	return nil
}

// Register adds the services of s to g: for callers with a gRPC server of their own.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)
	loadstats.RegisterLoadReportingServiceServer(g, s)
}

// client is one stream of ADS.
type client struct {
	s    *Server
	ctx  context.Context // of the stream
	kick chan struct{}   // there may be a new world
	send func(t Type, v *View, u update, version, nonce string) error

	// Only the goroutine of the stream.
	pool    string // node.cluster; empty until the client has said who it is
	session session
	held    int                 // octets of session that are counted in s.held
	pushed  time.Time           // when a change was sent last
	warned  [numTypes]time.Time // when a refusal was logged last

	mu     sync.Mutex
	status ClientStatus // guarded by mu: for people
}

// incoming is a request, or the end of them.
type incoming[T any] struct {
	req T
	err error
}

// DeltaAggregatedResources serves the incremental protocol: what Envoy is configured with.
func (s *Server) DeltaAggregatedResources(st discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	c := s.newClient(st.Context(), "delta")
	c.send = func(t Type, _ *View, u update, version, nonce string) error {
		return st.Send(c.session.deltaResponse(t, u, version, nonce))
	}
	return run(c, st.Recv, (*discovery.DeltaDiscoveryRequest).GetNode, c.session.deltaRequest)
}

// StreamAggregatedResources serves the state-of-the-world protocol: what gRPC clients speak.
func (s *Server) StreamAggregatedResources(st discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	c := s.newClient(st.Context(), "sotw")
	c.session.sotw = true
	c.send = func(t Type, v *View, u update, version, nonce string) error {
		return st.Send(c.session.sotwResponse(v, t, u, version, nonce))
	}
	return run(c, st.Recv, (*discovery.DiscoveryRequest).GetNode, c.session.sotwRequest)
}

func (s *Server) newClient(ctx context.Context, protocol string) *client {
	c := &client{s: s, ctx: ctx, kick: make(chan struct{}, 1)}
	c.status = ClientStatus{Protocol: protocol, Connected: s.o.Now(), seq: s.seq.Add(1)}
	if p, ok := peer.FromContext(ctx); ok {
		c.status.Addr = p.Addr.String()
	}
	return c
}

// run serves one stream: requests come in, what the client lacks goes out.
func run[T any](c *client, recv func() (T, error), nodeOf func(T) *core.Node, take func(T, time.Time)) error {
	s, ctx := c.s, c.ctx
	if !s.enter(c) {
		return status.Errorf(codes.ResourceExhausted, "%d clients are connected already; expected fewer: try another node", maxStreams)
	}
	defer s.leave(c)
	requests := make(chan incoming[T])
	go func() { // ends with the stream, which ends with this call
		for {
			req, err := recv()
			select {
			case requests <- incoming[T]{req, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	hello := time.NewTimer(maxHello)
	defer hello.Stop()
	var later <-chan time.Time // when changes may be sent that came too soon after the last
	for {
		changed := false
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-hello.C:
			return status.Errorf(codes.DeadlineExceeded, "no request in %v; expected one with node.id and node.cluster", maxHello)
		case m := <-requests:
			if errors.Is(m.err, io.EOF) {
				return nil
			}
			if m.err != nil {
				return m.err
			}
			if n := nodeOf(m.req); n != nil && c.pool == "" {
				if err := c.identify(ctx, n); err != nil {
					return err
				}
				hello.Stop()
			}
			if c.pool == "" {
				return status.Error(codes.InvalidArgument, "the first request has no node; expected node.id and node.cluster, the pool of the proxy")
			}
			take(m.req, s.o.Now())
			if err := c.account(); err != nil {
				return err
			}
		case <-c.kick:
			changed = true
		case <-later:
			later, changed = nil, true
		}
		if c.pool == "" {
			continue
		}
		if changed {
			if wait := s.o.Coalesce - s.o.Now().Sub(c.pushed); wait > 0 {
				if later == nil {
					later = time.After(wait)
				}
				continue
			}
			c.pushed = s.o.Now()
		}
		if err := c.flush(); err != nil {
			return err
		}
	}
}

// identify notes whose stream this is. A client with a certificate must be of the pool that
// it names.
func (c *client) identify(ctx context.Context, n *core.Node) error {
	if n.GetCluster() == "" {
		return status.Error(codes.InvalidArgument, "node.cluster is empty; expected the pool of the proxy")
	}
	if err := authorise(ctx, n.GetCluster()); err != nil {
		return err
	}
	c.pool, c.session.id = strings.Clone(n.GetCluster()), clip(n.GetId())
	if strings.HasPrefix(strings.ToLower(n.GetUserAgentName()), "grpc") {
		c.session.client = GRPC
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.ID, c.status.Pool = c.session.id, clip(n.GetCluster())
	c.status.Site = clip(n.GetLocality().GetZone())
	c.status.Agent = clip(n.GetUserAgentName())
	if v := n.GetUserAgentBuildVersion().GetVersion(); v != nil {
		c.status.Version = fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
	} else {
		c.status.Version = clip(n.GetUserAgentVersion())
	}
	return nil
}

// authorise checks that the certificate of the connection, if it has one, is for that pool.
func authorise(ctx context.Context, pool string) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil
	}
	if names := info.State.VerifiedChains[0][0].DNSNames; !slices.Contains(names, pool) {
		return status.Errorf(codes.PermissionDenied, "the certificate is for %q; expected the pool %q among its DNS names", names, clip(pool))
	}
	return nil
}

// clip copies text from outside for people, of a length fit for a line. It is valid UTF-8.
func clip(s string) string { return clipTo(s, 256) }

func clipTo(s string, most int) string {
	return strings.ToValidUTF8(strings.Clone(s[:min(len(s), most)]), "")
}

// account keeps what all clients have the server remember within its bound. When that is
// reached, clients that hold more than their share of it are ended.
func (c *client) account() error {
	now := c.session.octets()
	sum := c.s.held.Add(int64(now - c.held))
	c.held = now
	if sum > c.s.most && int64(now) > c.s.most/maxStreams {
		return status.Errorf(codes.ResourceExhausted, "the names of %d octets that this client asks for, with those of others, are more than this node keeps; expected fewer", now)
	}
	return nil
}

// flush sends what the client lacks of the newest world, of each type whose last response
// was answered.
func (c *client) flush() error {
	w := c.s.world.Load()
	var v *View
	if w != nil {
		v = w.View(c.pool)
	}
	if v == nil {
		c.note(nil, nil) // a pool that we do not know, now: its proxies keep what they have
		return nil
	}
	for t := range numTypes {
		if c.session.watches[t].waiting {
			continue
		}
		u := c.session.pending(v, t)
		if u.empty() {
			continue
		}
		version := w.version
		if c.session.sotw {
			version = v.sets[c.session.client][t].version
		}
		nonce := c.session.record(t, u, version)
		c.s.pushes.Add(1) // first: who has the response finds it counted
		stop := c.s.conns.closeAfter(c.ctx, c.s.o.SendTimeout, func() { c.tellStuck(t) })
		err := c.send(t, v, u, version, nonce)
		stop()
		if err != nil {
			return err
		}
	}
	c.note(w, v)
	return nil
}

// tellStuck says that the client takes nothing of what it is sent, the newest of which is of
// type t.
func (c *client) tellStuck(t Type) {
	c.s.stuck.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s.log.Warn("a proxy takes nothing of what it is sent: its connection is closed, and it keeps what it had",
		"proxy", c.status.ID, "pool", c.status.Pool, "address", c.status.Addr, "type", t, "after", c.s.o.SendTimeout)
}

func (s *Server) enter(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.clients) >= maxStreams {
		return false
	}
	s.clients[c] = struct{}{}
	return true
}

func (s *Server) leave(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c)
	s.held.Add(int64(-c.held))
}

func nonceText(n uint64) string { return strconv.FormatUint(n, 10) }
