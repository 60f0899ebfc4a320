package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/meridian-gslb/meridian/tracing"
)

const (
	// maxTCPQuery is the longest query that is read from a connection, in octets. A longer one
	// is nothing that we serve.
	maxTCPQuery = 4096

	// writeSize is how many octets of replies are gathered for one write.
	writeSize = 16 << 10
)

// tcpServer serves DNS over TCP as RFC 7766 wants it: queries may be pipelined, and are
// answered in order; idle connections are closed. What a connection can hold is bounded: one
// buffer for reading and, while it is answered, one for writing.
type tcpServer struct {
	listeners []*net.TCPListener
	data      *atomic.Pointer[Data]
	idle      time.Duration
	most      int // connections
	perClient int // connections
	counters  counters
	answerers sync.Pool // of *tcpAnswerer
	replies   sync.Pool // of *[]byte

	accepted, evicted, refused atomic.Uint64
	end                        atomic.Int64 // when replies must be taken by because the server stops: Unix time in ns; 0: it does not

	mu      sync.Mutex
	conns   map[*tcpConn]struct{}
	clients map[netip.Prefix]int // connections
}

func (t *tcpServer) init(s *Server) {
	t.data, t.idle, t.most, t.perClient = s.opts.Data, s.opts.TCPIdle, s.opts.TCPConns, s.opts.TCPPerClient
	t.counters.shared = true
	t.conns, t.clients = make(map[*tcpConn]struct{}), make(map[netip.Prefix]int)
	var trace TraceWorker
	if inner := s.tracer(len(s.udpCounters)); inner != nil {
		trace = &sharedTrace{inner: inner}
	}
	t.answerers.New = func() any {
		return &tcpAnswerer{answerer: s.answerer(&t.counters, trace)}
	}
	t.replies.New = func() any { return new([]byte) }
}

// tcpAnswerer is an answerer with room for a reply.
type tcpAnswerer struct {
	*answerer
	buf [maxMessage]byte
}

// sharedTrace lets goroutines share a TraceWorker: who began commits, and others wait.
type sharedTrace struct {
	mu    sync.Mutex
	inner TraceWorker
	rest  int // records until inner is to draw again
}

// All, Draw, Changed and Notable want every query recorded exactly: what is drawn is so of the next record, and
// which that will be is known in Begin.
func (t *sharedTrace) All() bool { return true }

func (t *sharedTrace) Draw() (drawn bool, rest int) { return true, 0 }

func (t *sharedTrace) Changed() bool { return false }

func (t *sharedTrace) Notable(int32, int32, uint8, uint8, uint8) bool { return true }

func (t *sharedTrace) Begin(bool) *tracing.Query {
	t.mu.Lock()
	drawn := false
	if t.rest--; t.inner.Changed() || t.rest < 0 {
		drawn, t.rest = t.inner.Draw()
	}
	q := t.inner.Begin(drawn)
	if q == nil {
		t.mu.Unlock()
	}
	return q
}

func (t *sharedTrace) Keep(query, reply []byte) { t.inner.Keep(query, reply) }

func (t *sharedTrace) Commit() {
	t.inner.Commit()
	t.mu.Unlock()
}

// run accepts and serves connections until ctx ends, and then answers what they hold.
func (t *tcpServer) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	failed := make(chan error, len(t.listeners))
	for _, ln := range t.listeners {
		wg.Go(func() {
			if err := t.accept(ln, &wg); err != nil {
				failed <- err
			}
		})
	}
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	t.stop()
	return err
}

// stop has every connection answer what it holds and end, by drainTime at the latest.
func (t *tcpServer) stop() {
	now := time.Now()
	t.end.Store(now.Add(drainTime).UnixNano())
	for _, ln := range t.listeners {
		ln.Close()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		_ = c.conn.SetReadDeadline(now) // fails only on a closed connection
		_ = c.conn.SetWriteDeadline(now.Add(drainTime))
	}
}

// accept serves the connections of ln until it is closed.
func (t *tcpServer) accept(ln *net.TCPListener, wg *sync.WaitGroup) error {
	for {
		conn, err := ln.AcceptTCP()
		switch {
		case err == nil:
		case errors.Is(err, net.ErrClosed):
			return nil
		case temporary(err): // out of descriptors or memory: others may be closed soon
			t.evict()
			time.Sleep(10 * time.Millisecond)
			continue
		default:
			return err
		}
		t.accepted.Add(1)
		remote, local := conn.RemoteAddr().(*net.TCPAddr).AddrPort(), conn.LocalAddr().(*net.TCPAddr).AddrPort()
		c := &tcpConn{t: t, conn: conn, from: remote.Addr().Unmap().WithZone(""), port: remote.Port(), local: local}
		if !t.join(c) {
			t.refused.Add(1)
			conn.Close()
			continue
		}
		wg.Go(c.run)
	}
}

// temporary tells whether accepting may work again.
func temporary(err error) bool {
	ne, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err)
	return ok && ne.Temporary()
}

// join takes c in unless its client has its fill, and makes room for it.
func (t *tcpServer) join(c *tcpConn) bool {
	c.client = clientOf(c.from)
	c.touch()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.clients[c.client] >= t.perClient {
		return false
	}
	if len(t.conns) >= t.most {
		t.evictLocked()
	}
	t.conns[c] = struct{}{}
	t.clients[c.client]++
	return true
}

// evict closes the connection that is idle for longest.
func (t *tcpServer) evict() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.evictLocked()
}

func (t *tcpServer) evictLocked() {
	var oldest *tcpConn
	for c := range t.conns {
		if oldest == nil || c.last.Load() < oldest.last.Load() {
			oldest = c
		}
	}
	if oldest != nil {
		t.evicted.Add(1)
		t.leaveLocked(oldest)
		oldest.conn.Close()
	}
}

func (t *tcpServer) leave(c *tcpConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leaveLocked(c)
}

func (t *tcpServer) leaveLocked(c *tcpConn) {
	if _, there := t.conns[c]; !there {
		return
	}
	delete(t.conns, c)
	if t.clients[c.client]--; t.clients[c.client] == 0 {
		delete(t.clients, c.client)
	}
}

// open returns how many connections there are.
func (t *tcpServer) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.conns)
}

// clientOf returns what counts as one client: an IPv4 address, or an IPv6 /64, as whoever has
// one address of it has all.
func clientOf(addr netip.Addr) netip.Prefix {
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // valid for every address
	return p
}

// tcpConn is one connection.
type tcpConn struct {
	t      *tcpServer
	conn   *net.TCPConn
	from   netip.Addr
	client netip.Prefix
	local  netip.AddrPort
	port   uint16       // of the client
	last   atomic.Int64 // when its last query was whole: Unix time in ns
	in     [2 + maxTCPQuery]byte
}

func (c *tcpConn) touch() { c.last.Store(time.Now().UnixNano()) }

// await sets how long the next whole query may take to come. What comes of it in between does
// not extend that, so that a slow client cannot hold the connection.
func (c *tcpConn) await() {
	_ = c.conn.SetReadDeadline(time.Now().Add(c.t.idle)) // fails only on a closed connection
	if c.t.end.Load() != 0 {                             // since a moment ago: stop's deadline was overwritten
		_ = c.conn.SetReadDeadline(time.Now())
	}
}

// read reads what there is, and waits for it unless the server stops.
func (c *tcpConn) read(b []byte) (n int, err error) {
	n, err = c.conn.Read(b)
	end := c.t.end.Load()
	if n > 0 || end == 0 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().UnixNano() > end {
		return n, err
	}
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) { n, err = syscall.Read(int(fd), b) }) // does not block
	return max(n, 0), errors.Join(cerr, err)
}

// run answers the connection's queries until it ends, falls idle or breaks the protocol.
func (c *tcpConn) run() {
	defer c.t.leave(c)
	defer c.conn.Close()
	n := 0 // octets in c.in
	for {
		c.await()
		for !whole(c.in[:n]) {
			if n >= 2 && int(be16(c.in[:])) > maxTCPQuery {
				c.t.counters.dropped.Add(1)
				return
			}
			read, err := c.read(c.in[n:])
			if read == 0 || err != nil {
				return
			}
			n += read
		}
		c.touch()
		used, ok := c.answer(c.in[:n])
		if !ok {
			return
		}
		n = copy(c.in[:], c.in[used:n])
		runtime.Gosched() // this client may have sent much more, and others wait for their first answer
	}
}

// whole tells whether b begins with a whole message.
func whole(b []byte) bool { return len(b) >= 2 && len(b)-2 >= int(be16(b)) }

// answer answers the whole messages that in begins with, with as few writes as writeSize
// allows, and returns how many octets of in they were. It is not ok when the connection is of
// no more use. While it waits for the client to take replies, it holds these and nothing else.
func (c *tcpConn) answer(in []byte) (used int, ok bool) {
	out := c.t.replies.Get().(*[]byte)
	defer c.t.replies.Put(out)
	for ok = true; ok && whole(in[used:]); {
		*out = (*out)[:0]
		used, ok = c.gather(in, used, out)
		ok = c.write(*out) && ok
	}
	return used, ok
}

// gather appends replies to the whole messages of in[used:] to out until it holds writeSize. It
// is not ok when one has none: who sends what is no query is no client.
func (c *tcpConn) gather(in []byte, used int, out *[]byte) (int, bool) {
	a := c.t.answerers.Get().(*tcpAnswerer)
	a.local, a.port = c.local, c.port
	defer c.t.answerers.Put(a)
	defer a.tally.publish()
	data := c.t.data.Load()
	for len(*out) < writeSize && whole(in[used:]) {
		query := in[used+2:][:be16(in[used:])]
		used += 2 + len(query)
		c.t.counters.queries.Add(1)
		a.begin(time.Now())
		reply := a.serve(data, query, c.from, true, a.buf[:])
		if reply == nil {
			return used, false
		}
		*out = append(binary.BigEndian.AppendUint16(*out, uint16(len(reply))), reply...)
	}
	return used, true
}

// write sends replies, within the idle time.
func (c *tcpConn) write(b []byte) bool {
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.t.idle)) // fails only on a closed connection
	if end := c.t.end.Load(); end != 0 {
		_ = c.conn.SetWriteDeadline(time.Unix(0, end))
	}
	_, err := c.conn.Write(b)
	return err == nil
}
