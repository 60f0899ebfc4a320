package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meridian-gslb/meridian/tracing"
)

// The defaults of Options.
const (
	DefaultMaxUDP        = 1232    // octets: fits every path without fragments (DNS flag day 2020)
	DefaultReceiveBuffer = 4 << 20 // octets
	DefaultTCPIdle       = 10 * time.Second
	DefaultTCPConns      = 1024
	DefaultTCPPerClient  = 256
)

// Options are a server's settings. Addrs and Data are required.
type Options struct {
	// Addrs are served over UDP and TCP. Port 0 is any free port, the same for both. A
	// wildcard address answers from whatever address it was asked at.
	Addrs []netip.AddrPort

	// Data is what queries are answered from; the server only loads it. While it is nil,
	// every query is REFUSED.
	Data *atomic.Pointer[Data]

	// Workers is the number of UDP workers per address; default GOMAXPROCS.
	Workers int

	// Trace returns what takes the records of a worker's queries, or nil for none. It is
	// called once for each of the numbers from 0 to TraceWorkers()-1; nil records nothing.
	Trace func(worker int) TraceWorker

	// With Trace: Parents reads the TRACEPARENT options of queries, and Answers makes the ids
	// that the answers of pools which want that carry. Nil is none.
	Parents *tracing.Parents
	Answers *tracing.AnswerIDs

	Logger *slog.Logger // default slog.Default()

	Identity Identity
	Limits   Limits // of replies over UDP

	// CookieSecrets are of 16 octets each: the first makes DNS Cookies, all check them (RFC 9018,
	// section 5). All servers of an address need the same. Without any, a random one is used.
	CookieSecrets [][]byte

	// Explainers may ask why an answer is what it is; by default nobody.
	Explainers Explainers

	MaxUDP        int // octets of the longest reply over UDP, 512..4096; default DefaultMaxUDP
	ReceiveBuffer int // octets of each UDP socket's queue; default DefaultReceiveBuffer, and what the kernel allows

	TCPIdle      time.Duration // until a connection without a whole query, or that does not take its replies, is closed; default DefaultTCPIdle
	TCPConns     int           // connections at once; the longest idle makes way for a new one; default DefaultTCPConns
	TCPPerClient int           // connections at once of one address, or one IPv6 /64; default DefaultTCPPerClient
}

// Server is an authoritative DNS server.
type Server struct {
	opts        Options
	addrs       []netip.AddrPort
	udp         []*udpWorker
	udpCounters []counters
	tcp         tcpServer
	cookies     atomic.Pointer[cookieKeys]
	explainers  atomic.Pointer[Explainers]
	quarantine  *quarantine
	lastPanic   atomic.Int64 // when a panic was logged last, Unix time in seconds
}

// New returns a server. It starts nothing and opens nothing.
func New(opts Options) *Server {
	defaultTo(&opts.Workers, runtime.GOMAXPROCS(0))
	defaultTo(&opts.MaxUDP, DefaultMaxUDP)
	opts.MaxUDP = min(max(opts.MaxUDP, minUDP), maxUDPBuffer)
	defaultTo(&opts.ReceiveBuffer, DefaultReceiveBuffer)
	defaultTo(&opts.TCPIdle, DefaultTCPIdle)
	defaultTo(&opts.TCPConns, DefaultTCPConns)
	defaultTo(&opts.TCPPerClient, DefaultTCPPerClient)
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	s := &Server{opts: opts, udpCounters: make([]counters, len(opts.Addrs)*opts.queues()), quarantine: newQuarantine()}
	keys, err := newCookieKeys(opts.CookieSecrets)
	if err != nil {
		panic(fmt.Sprintf("dns: %v", err)) // who calls has checked them
	}
	s.cookies.Store(keys)
	s.SetExplainers(opts.Explainers)
	s.tcp.init(s)
	return s
}

func defaultTo[T int | time.Duration](v *T, value T) {
	if *v <= 0 {
		*v = value
	}
}

// SetCookieSecrets replaces Options.CookieSecrets while the server runs: put a new secret second
// on every server, then first, then drop the old one (RFC 9018, section 5).
func (s *Server) SetCookieSecrets(secrets [][]byte) error {
	keys, err := newCookieKeys(secrets)
	if err == nil {
		s.cookies.Store(keys)
	}
	return err
}

// SetExplainers replaces Options.Explainers while the server runs.
func (s *Server) SetExplainers(e Explainers) { s.explainers.Store(&e) }

// queues returns how many UDP sockets an address has: one for each worker, and one more if some
// clients have a queue of their own.
func (o *Options) queues() int {
	if ownQueue && len(o.Limits.Allow) > 0 {
		return o.Workers + 1
	}
	return o.Workers
}

// TraceWorkers returns how many workers Trace is asked for: those of UDP, and one that all of TCP
// shares.
func (o Options) TraceWorkers() int {
	defaultTo(&o.Workers, runtime.GOMAXPROCS(0))
	return len(o.Addrs)*o.queues() + 1
}

// tracer returns the tracer of a worker, or nil.
func (s *Server) tracer(worker int) TraceWorker {
	if s.opts.Trace == nil {
		return nil
	}
	return s.opts.Trace(worker)
}

// answerer returns an answerer with the server's settings.
func (s *Server) answerer(c *counters, trace TraceWorker) *answerer {
	a := newAnswerer(c, trace, s.opts.MaxUDP, s.panicked)
	a.identity, a.cookies, a.quarantine, a.amplify = s.opts.Identity, &s.cookies, s.quarantine, s.opts.Limits.Amplify
	a.explainers = &s.explainers
	a.keepalive = uint16(min(s.opts.TCPIdle/(100*time.Millisecond), 1<<16-1))
	if trace != nil { // without it the time is not known, and nobody would hear of what was asked
		a.follow = newFollower(s.opts.Parents, s.opts.Answers)
	}
	return a
}

// Listen binds every address. Its error names the address that could not be bound; then
// nothing stays open. Run calls it if it was not called before.
func (s *Server) Listen() error {
	for _, addr := range s.opts.Addrs {
		if err := s.listen(addr); err != nil {
			s.close()
			s.addrs = nil
			return fmt.Errorf("dns %s: %w", addr, cause(err))
		}
	}
	return nil
}

// cause strips what net says around the system's error: the address is named already.
func cause(err error) error {
	if sys, ok := errors.AsType[*os.SyscallError](err); ok {
		return sys.Err
	}
	return err
}

// portTries bounds the search for a port that is free for both protocols.
const portTries = 16

func (s *Server) listen(addr netip.AddrPort) error {
	for try := 1; ; try++ {
		// TCP first: its socket does not share the port, and so finds out whether somebody
		// has it already, be it another server of ours.
		ln, err := net.ListenTCP(network("tcp", addr), net.TCPAddrFromAddrPort(addr))
		if err != nil {
			return err
		}
		bound := netip.AddrPortFrom(addr.Addr(), uint16(ln.Addr().(*net.TCPAddr).Port))
		workers, err := s.listenUDP(bound)
		if err != nil {
			ln.Close()
			if addr.Port() == 0 && try < portTries {
				continue
			}
			return err
		}
		s.tcp.listeners = append(s.tcp.listeners, ln)
		s.udp = append(s.udp, workers...)
		s.addrs = append(s.addrs, bound)
		return nil
	}
}

// listenUDP opens the sockets of all workers of an address.
func (s *Server) listenUDP(addr netip.AddrPort) (workers []*udpWorker, err error) {
	defer func() {
		if err != nil {
			for _, w := range workers {
				w.close()
			}
			workers = nil
		}
	}()
	for range s.opts.queues() {
		id := len(s.udp) + len(workers)
		a := s.answerer(&s.udpCounters[id], s.tracer(id))
		if len(workers) < s.opts.Workers { // beyond them are those who are never limited
			a.limiter = newLimiter(s.opts.Limits, s.opts.Workers)
		}
		w, err := newUDPWorker(addr, s.opts.Data, a, s.opts.ReceiveBuffer)
		if err != nil {
			return workers, err
		}
		workers = append(workers, w)
	}
	if len(workers) > s.opts.Workers {
		return workers, workers[0].chooseQueue(s.opts.Workers, s.opts.Limits.Allow)
	}
	return workers, nil
}

// network returns the name of the address's own family, so that [::] and 0.0.0.0 can be served
// side by side.
func network(proto string, addr netip.AddrPort) string {
	if addr.Addr().Is4() {
		return proto + "4"
	}
	return proto + "6"
}

func (s *Server) close() {
	for _, w := range s.udp {
		w.close()
	}
	for _, ln := range s.tcp.listeners {
		ln.Close()
	}
	s.udp, s.tcp.listeners = nil, nil
}

// Addrs returns the bound addresses in the order of Options.Addrs, once Listen was called.
func (s *Server) Addrs() []netip.AddrPort { return s.addrs }

// Run serves until ctx ends. Then it answers what has been received already, on UDP and on open
// TCP connections, within a second, closes everything and returns the cause of ctx's end, once its last
// goroutine has ended. An error before that is from Listen, or from a socket that failed.
func (s *Server) Run(ctx context.Context) error {
	if s.addrs == nil {
		if err := s.Listen(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, w := range s.udp {
		wg.Go(func() {
			if err := w.run(ctx); err != nil {
				cancel(fmt.Errorf("dns %s: udp: %w", w.addr, err))
			}
		})
	}
	wg.Go(func() {
		if err := s.tcp.run(ctx); err != nil {
			cancel(fmt.Errorf("dns: tcp: %w", err))
		}
	})
	<-ctx.Done()
	for _, w := range s.udp {
		w.stop()
	}
	wg.Wait()
	s.close()
	return context.Cause(ctx)
}

// panicked logs a panic with the packet that caused it, once a second at most: the counter
// tells of the others.
func (s *Server) panicked(reason any, packet []byte) {
	now := time.Now().Unix()
	if last := s.lastPanic.Load(); last == now || !s.lastPanic.CompareAndSwap(last, now) {
		return
	}
	stack := make([]byte, 4<<10)
	stack = stack[:runtime.Stack(stack, false)]
	s.opts.Logger.Error("query panicked, answered SERVFAIL",
		"reason", reason, "packet", strconv.QuoteToASCII(string(packet)), "stack", string(stack))
}
