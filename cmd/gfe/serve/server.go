// Package serve is what every HTTP service of Meridian's request path shares: listening in
// the clear (HTTP/1.1 and HTTP/2 with prior knowledge) and with TLS, draining, and the spans
// of a request as it passes from one service to the next.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meridian-gslb/meridian/xds/certs"
)

// Config describes a server. Zero durations mean their defaults, negative ones none.
type Config struct {
	Name    string // in logs
	Handler http.Handler

	// Listen are host:port addresses; port 0 takes a free one. A leading http:// or https://
	// says which of the two it speaks; without either it is TLS when Cert is set.
	Listen    []string
	Cert, Key string // PEM files; what is written to them later is taken up

	Lame  time.Duration // after ctx ended: still serve, but say so in the health check; default none
	Grace time.Duration // after that: how long requests under way may take; default 10 s

	ConnContext func(ctx context.Context, c net.Conn) context.Context // of http.Server; nil: none

	Log *slog.Logger // default slog.Default()
}

// Limits of what a client may make a server hold.
const (
	headerTimeout  = 10 * time.Second // to send a request's header
	idleTimeout    = 2 * time.Minute  // of a kept connection
	maxHeaderBytes = 64 << 10
	defaultGrace   = 10 * time.Second
)

// Server serves one handler on several addresses. Make it with New, then Listen, then Run.
type Server struct {
	// Set at construction.
	c    Config
	http *http.Server

	// Set by Listen, used by Run.
	listeners []net.Listener
	addrs     []netip.AddrPort

	draining atomic.Bool
	sleep    func(time.Duration) // time.Sleep, but in tests
}

// New checks c and returns a server that does not listen yet. It reads the certificate.
func New(c Config) (*Server, error) {
	if (c.Cert == "") != (c.Key == "") {
		return nil, fmt.Errorf("%s: a certificate needs its key and a key its certificate: got certificate %q and key %q", c.Name, c.Cert, c.Key)
	}
	if len(c.Listen) == 0 {
		return nil, fmt.Errorf("%s: no address to listen on", c.Name)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
	s := &Server{c: c, sleep: time.Sleep}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		ConnContext:       c.ConnContext,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug), // a client's bad handshake is the client's
	}
	if c.Cert != "" {
		files, err := certs.Read(c.Cert, c.Key, "", c.Log)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
		s.http.TLSConfig = &tls.Config{
			GetCertificate: files.Certificate,
			MinVersion:     tls.VersionTLS12,
			NextProtos:     []string{"h2", "http/1.1"},
		}
	}
	for _, l := range c.Listen {
		if _, secure := s.split(l); secure && c.Cert == "" {
			return nil, fmt.Errorf("%s: listen %q: TLS needs a certificate and a key", c.Name, l)
		}
	}
	return s, nil
}

// split takes the scheme off an address to listen on and says whether it speaks TLS.
func (s *Server) split(listen string) (hostport string, secure bool) {
	if rest, ok := strings.CutPrefix(listen, "https://"); ok {
		return rest, true
	}
	if rest, ok := strings.CutPrefix(listen, "http://"); ok {
		return rest, false
	}
	return listen, s.c.Cert != ""
}

// Listen binds every address, or none of them. Connections wait until Run serves them.
func (s *Server) Listen() error {
	for _, l := range s.c.Listen {
		hostport, secure := s.split(l)
		ln, err := net.Listen("tcp", hostport)
		if err != nil {
			s.closeListeners()
			return fmt.Errorf("%s: listen %q: %w", s.c.Name, l, err)
		}
		s.addrs = append(s.addrs, ln.Addr().(*net.TCPAddr).AddrPort())
		if secure {
			ln = tls.NewListener(ln, s.http.TLSConfig)
		}
		s.listeners = append(s.listeners, ln)
	}
	return nil
}

func (s *Server) closeListeners() {
	for _, ln := range s.listeners {
		ln.Close() // nothing was accepted from it
	}
	s.listeners, s.addrs = nil, nil
}

// Addrs returns the addresses bound, in the order of Config.Listen; nil before Listen.
func (s *Server) Addrs() []netip.AddrPort { return s.addrs }

// Close gives up addresses that were bound when Run will not follow.
func (s *Server) Close() { s.closeListeners() }

// Draining reports whether Run was told to end: the health check should fail, so that
// nobody is sent here any more.
func (s *Server) Draining() bool { return s.draining.Load() }

// Run serves until ctx ends, then drains: for Config.Lame it serves on with Draining set,
// then it takes no more connections and gives the requests under way Config.Grace to end. It
// returns nil after a drain, and an error when an address failed or requests had to be cut
// off. No goroutine of the server is left then.
func (s *Server) Run(ctx context.Context) error {
	if s.listeners == nil {
		return fmt.Errorf("%s: run before listen", s.c.Name)
	}
	var wg sync.WaitGroup
	failed := make(chan error, len(s.listeners))
	for _, ln := range s.listeners {
		wg.Go(func() {
			if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("%s: serve %s: %w", s.c.Name, ln.Addr(), err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	err = errors.Join(err, s.drain(err == nil))
	wg.Wait()
	return err
}

func (s *Server) drain(lame bool) error {
	s.draining.Store(true)
	if lame && s.c.Lame > 0 {
		s.sleep(s.c.Lame) // a fixed pause that nothing may cut short but the end of the process
	}
	ctx, cancel := context.WithTimeout(context.Background(), max(0, s.c.Grace))
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		s.http.Close() // the requests that took too long; there is nothing to do about an error
		return fmt.Errorf("%s: requests were cut off after %v", s.c.Name, s.c.Grace)
	}
	return nil
}

// OnDrain has f called when Run stops taking connections: what ends answers that have no end
// of their own.
func (s *Server) OnDrain(f func()) { s.http.RegisterOnShutdown(f) }

// serve asks HTTP/1.1 clients to connect elsewhere next time once the server drains; HTTP/2
// has GOAWAY for it.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if s.Draining() && r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
	s.c.Handler.ServeHTTP(w, r)
}
