package xds

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/peer"
)

// conns are the connections that are open, by the address of the other side. A stream whose
// client takes nothing can only be ended with its connection: what is queued for it would wait
// for the client's window even after the call has returned.
type conns struct {
	net.Listener

	mu   sync.Mutex
	open map[string]*accepted // guarded by mu
}

type accepted struct {
	net.Conn
	of *conns
}

// Accept implements net.Listener.
func (l *conns) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &accepted{raw, l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[c.RemoteAddr().String()] = c
	return c, nil
}

// Close implements net.Conn.
func (c *accepted) Close() error {
	c.of.mu.Lock()
	if at := c.RemoteAddr().String(); c.of.open[at] == c {
		delete(c.of.open, at)
	}
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// closeAfter closes the connection of the call that ctx is of, after a call of tell, unless stop
// is called within d.
func (l *conns) closeAfter(ctx context.Context, d time.Duration, tell func()) (stop func() bool) {
	return time.AfterFunc(d, func() {
		tell()
		p, ok := peer.FromContext(ctx)
		if !ok {
			return
		}
		l.mu.Lock()
		c := l.open[p.Addr.String()]
		l.mu.Unlock()
		if c != nil {
			c.Close()
		}
	}).Stop
}
