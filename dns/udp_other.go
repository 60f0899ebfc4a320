//go:build !linux

package dns

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	maxUDPBuffer = 4096
	drainTime    = time.Second
	ownQueue     = false
)

func (w *udpWorker) chooseQueue(int, []netip.Prefix) error { return nil }

// udpWorker answers the queries of one socket, one by one: the portable twin of the Linux
// worker, to develop with. All workers of an address share its first one's socket.
type udpWorker struct {
	addr netip.AddrPort
	conn *net.UDPConn
	data *atomic.Pointer[Data]
	a    *answerer
}

func newUDPWorker(addr netip.AddrPort, data *atomic.Pointer[Data], a *answerer, receiveBuffer int) (*udpWorker, error) {
	conn, err := net.ListenUDP(network("udp", addr), net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(receiveBuffer) // a larger queue is welcome, not needed
	a.local = addr
	return &udpWorker{addr: addr, conn: conn, data: data, a: a}, nil
}

func (w *udpWorker) run(ctx context.Context) error {
	in, out := make([]byte, maxUDPBuffer), make([]byte, maxUDPBuffer)
	for {
		n, from, err := w.conn.ReadFromUDPAddrPort(in)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		w.a.begin(time.Now())
		w.a.counters.queries.Add(1)
		w.a.port = from.Port()
		reply := w.a.serve(w.data.Load(), in[:n], from.Addr().Unmap().WithZone(""), false, out)
		w.a.tally.publish()
		if reply != nil {
			if _, err := w.conn.WriteToUDPAddrPort(reply, from); err != nil {
				w.a.counters.unsent.Add(1)
			}
		}
	}
}

// stop makes run end once the queue is empty or drainTime is over.
func (w *udpWorker) stop() {
	_ = w.conn.SetReadDeadline(time.Now().Add(drainTime / 10)) // fails only on a closed socket
}

func (w *udpWorker) close() { w.conn.Close() }
