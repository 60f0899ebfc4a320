package health

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// memNet is a network in memory that can lose, delay and cut. Unlike memberlist's mock it
// never blocks a sender.
type memNet struct {
	mu    sync.Mutex
	nodes map[string]*memTransport   // guarded by mu, by address
	loss  float64                    // guarded by mu: share of packets
	delay time.Duration              // guarded by mu: one way
	cut   func(from, to string) bool // guarded by mu; nil cuts nothing
	bytes int                        // guarded by mu: carried, of packets
	count int                        // guarded by mu: packets carried
}

type memTransport struct {
	net     *memNet
	addr    *net.UDPAddr
	packets chan *memberlist.Packet
	streams chan net.Conn
}

var _ memberlist.NodeAwareTransport = (*memTransport)(nil)

// join returns the transport of a node, by number.
func (n *memNet) join(number int) *memTransport {
	t := &memTransport{net: n, addr: &net.UDPAddr{IP: net.IPv4(10, 0, byte(number>>8), byte(number)).To4(), Port: 7946},
		packets: make(chan *memberlist.Packet, 4096), streams: make(chan net.Conn, 64)}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes == nil {
		n.nodes = make(map[string]*memTransport)
	}
	n.nodes[t.addr.String()] = t
	return t
}

// set changes the network under its lock.
func (n *memNet) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// way returns where a packet or stream to addr arrives, if it does.
func (t *memTransport) way(addr string) (*memTransport, time.Duration) {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	to := t.net.nodes[addr]
	if t.net.nodes[t.addr.String()] != t || to == nil || t.net.cut != nil && t.net.cut(t.addr.String(), addr) {
		return nil, 0
	}
	return to, t.net.delay
}

func (t *memTransport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.IP, t.addr.Port, nil
}

func (t *memTransport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, delay := t.way(addr)
	t.net.mu.Lock()
	lost := rand.Float64() < t.net.loss
	t.net.bytes += len(b)
	t.net.count++
	t.net.mu.Unlock()
	now := time.Now()
	if to == nil || lost {
		return now, nil
	}
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: t.addr}
	// Never at once: a bubble's timer that is due when it is set runs on the runtime's own stack,
	// where starting a goroutine crashes Go 1.26's race detector now and then.
	time.AfterFunc(max(delay, 1), func() {
		p.Timestamp = time.Now()
		select {
		case to.packets <- p:
		default: // a full socket buffer
		}
	})
	return now, nil
}

func (t *memTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

func (t *memTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, delay := t.way(addr)
	if to == nil {
		time.Sleep(timeout)
		return nil, fmt.Errorf("dial %s: %w", addr, os.ErrDeadlineExceeded)
	}
	time.Sleep(2 * delay)
	here, there := net.Pipe()
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	if t.net.nodes[addr] != to {
		return nil, fmt.Errorf("dial %s: shut down meanwhile", addr)
	}
	select {
	case to.streams <- pipeConn{there, t.addr}:
		return pipeConn{here, to.addr}, nil
	default:
		return nil, fmt.Errorf("dial %s: backlog full", addr)
	}
}

func (t *memTransport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

func (t *memTransport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *memTransport) StreamCh() <-chan net.Conn           { return t.streams }

func (t *memTransport) Shutdown() error {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	if t.net.nodes[t.addr.String()] == t {
		delete(t.net.nodes, t.addr.String())
	}
	for len(t.streams) > 0 { // nobody accepts them any more, and a pipe has no buffer
		_ = (<-t.streams).Close()
	}
	return nil
}

// pipeConn is a pipe with the address of a node at its other end.
type pipeConn struct {
	net.Conn
	remote net.Addr
}

func (c pipeConn) RemoteAddr() net.Addr { return c.remote }
