package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"golang.org/x/sys/unix"
)

// The objects are few and small: etcd's write-ahead log takes its space in pieces of 8 MB
// rather than 64. It is a variable of the whole process, so it is set before anything runs.
func init() { wal.SegmentSizeBytes = 8 << 20 }

// Embed is an etcd server of one member in this process. It asks nobody for a password, and
// so listens on a unix socket or on loopback only; there is no listener for peers.
type Embed struct {
	dir    string
	listen url.URL
	log    *slog.Logger
	ready  chan struct{}
	muted  atomic.Bool // on the way down: etcd calls its own listeners' end an error
	fatal  chan string // one slot: why etcd gave up
}

// ErrBroken says that an embedded etcd gave up: its data is damaged, or its disk failed.
// It is not started again in this process, which may hold parts of it.
var ErrBroken = errors.New("embedded etcd gave up; see to its data folder and start again")

// NewEmbed returns an etcd that keeps its data in dir, which is made when it is absent.
// listen is the client URL to serve (http://127.0.0.1:2379, unix:///run/x/etcd.sock); ""
// is a unix socket in dir. Nothing is started.
func NewEmbed(dir, listen string, log *slog.Logger) (*Embed, error) {
	if dir == "" {
		return nil, errors.New("embedded etcd: no data folder")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("embedded etcd: %w", err)
	}
	if listen == "" {
		listen = "unix://" + socketPath(dir)
	}
	u, err := url.Parse(listen)
	if err != nil || u.Scheme != "http" && u.Scheme != "unix" {
		return nil, fmt.Errorf("embedded etcd: listen %q: expected http://127.0.0.1:PORT or unix:///PATH", listen)
	}
	return &Embed{dir: dir, listen: *u, log: log, ready: make(chan struct{}), fatal: make(chan string, 1)}, nil
}

// socketPath returns where the socket for the data in dir lies: in dir, or, when that is
// longer than a socket's address may be (sun_path holds 108 octets), in the folder for
// temporary files under a name made from dir.
func socketPath(dir string) string {
	if p := filepath.Join(dir, "etcd.sock"); len(p) < 104 {
		return p
	}
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(os.TempDir(), fmt.Sprintf("meridian-%x.sock", sum[:8]))
}

// Endpoint returns the URL for clients.
func (e *Embed) Endpoint() string { return e.listen.String() }

// Ready is closed once the server answers.
func (e *Embed) Ready() <-chan struct{} { return e.ready }

// Run starts the server and serves until ctx ends; then it returns nil, after the last
// goroutine of the server. Any other end is an error. Run an Embed once.
func (e *Embed) Run(ctx context.Context) error {
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return fmt.Errorf("embedded etcd: %w", err)
	}
	unlock, err := lockDir(e.dir)
	if err != nil {
		return fmt.Errorf("embedded etcd: %w", err)
	}
	defer unlock()

	server, err := e.start()
	if err != nil {
		return fmt.Errorf("embedded etcd in %s on %s: %w", e.dir, e.Endpoint(), err)
	}
	select {
	case <-server.Server.ReadyNotify():
		close(e.ready)
		err = e.serve(ctx, server)
	case <-ctx.Done():
	case why := <-e.fatal:
		err = fmt.Errorf("%w: %s", ErrBroken, why)
	case err = <-server.Err():
	}
	e.muted.Store(true)
	if errors.Is(err, ErrBroken) {
		return err // to close what is half gone could hang
	}
	server.Close()
	return err
}

// start starts the server on a goroutine that etcd may end.
func (e *Embed) start() (*embed.Etcd, error) {
	type result struct {
		server *embed.Etcd
		err    error
	}
	started := make(chan result, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				select {
				case why := <-e.fatal: // what led to it
					r = why
				default:
				}
				started <- result{nil, fmt.Errorf("%w: %v", ErrBroken, r)}
			}
		}()
		server, err := embed.StartEtcd(e.config())
		started <- result{server, err}
	}()
	select {
	case r := <-started:
		return r.server, r.err
	case why := <-e.fatal:
		return nil, fmt.Errorf("%w: %s", ErrBroken, why)
	}
}

// serve waits for the end of a server that is ready; nil when it is ctx's.
func (e *Embed) serve(ctx context.Context, server *embed.Etcd) error {
	select {
	case <-ctx.Done():
		return nil
	case why := <-e.fatal:
		return fmt.Errorf("%w: %s", ErrBroken, why)
	case <-server.Server.StopNotify():
		return errors.New("embedded etcd: it stopped by itself")
	case err := <-server.Err():
		return fmt.Errorf("embedded etcd: %w", err)
	}
}

func (e *Embed) config() *embed.Config {
	c := embed.NewConfig()
	c.Name = "meridian"
	c.Dir = filepath.Join(e.dir, "member-data")
	c.ListenClientUrls = []url.URL{e.listen}
	c.AdvertiseClientUrls = []url.URL{e.listen}
	// One member has no peers. It needs a peer URL for its identity and never dials it.
	c.ListenPeerUrls = nil
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	c.AdvertisePeerUrls = []url.URL{peer}
	c.InitialCluster = c.Name + "=" + peer.String()
	// A new cluster gets an identity of its own: one that was wiped is not taken for the
	// one before it. A cluster that is there keeps its own.
	c.InitialClusterToken = rand.Text()
	// Nothing to wait for: a leader in some 15 ms rather than a second.
	c.TickMs, c.ElectionMs = 10, 100
	c.QuotaBackendBytes = 256 << 20
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, "1h"
	c.MaxTxnOps = maxTxnOps
	c.MaxRequestBytes = maxRequest
	c.EnableGRPCGateway = false
	c.WarningApplyDuration = time.Second // slow disks are not news
	c.LogLevel = "warn"
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(quietZap(e.log, &e.muted, func(why string) {
		select {
		case e.fatal <- why:
		default: // the first reason is the one that counts
		}
	}))
	return c
}

// What one transaction may hold on the embedded server.
const (
	maxTxnOps  = 4096
	maxRequest = 10 << 20 // octets
)

// lockDir takes dir for this process until unlock is called or the process ends.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: in use by another process: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
