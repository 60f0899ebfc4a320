package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
)

const (
	// rttEvery is how often the round-trip time of one connection is looked at, at most.
	rttEvery = 10 * time.Second

	// maxPrefixes bounds the client prefixes that are remembered between two reports.
	maxPrefixes = 4096
)

// passive gathers the round-trip times that the kernel measures on the connections of users
// (TCP_INFO), by client prefix, between two reports.
type passive struct {
	mu   sync.Mutex
	sums map[netip.Prefix]sum
}

type sum struct {
	ms float64
	n  int
}

// userConn is a connection of a user, in the contexts of its requests.
type userConn struct {
	conn net.Conn
	next atomic.Int64 // when to look again: Unix time in ns
}

type userConnKey struct{}

// withConn returns ctx with the connection that its requests come by.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return context.WithValue(ctx, userConnKey{}, &userConn{conn: c})
}

// look takes the round-trip time of the connection that r came by, unless that was done a moment
// ago.
func (p *passive) look(r *http.Request, now time.Time) {
	c, ok := r.Context().Value(userConnKey{}).(*userConn)
	if !ok {
		return
	}
	next := c.next.Load()
	if now.UnixNano() < next || !c.next.CompareAndSwap(next, now.Add(rttEvery).UnixNano()) {
		return
	}
	rtt, ok := tcpRTT(c.conn)
	if !ok {
		return
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return
	}
	addr := from.Addr().Unmap()
	client, ok := gslb.RTTPrefix(netip.PrefixFrom(addr, addr.BitLen()))
	if !ok {
		return
	}
	p.add(client, sum{float64(rtt) / float64(time.Millisecond), 1})
}

// add adds to the sum of a client prefix, if there is room for it.
func (p *passive) add(client netip.Prefix, x sum) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, known := p.sums[client]
	if !known && len(p.sums) >= maxPrefixes {
		return
	}
	if p.sums == nil {
		p.sums = make(map[netip.Prefix]sum)
	}
	p.sums[client] = sum{s.ms + x.ms, s.n + x.n}
}

// take returns at most as many means as a report holds, those of most samples first, and forgets
// them. What is over stays for the next report.
func (p *passive) take() []api.RTTSample {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]api.RTTSample, 0, len(p.sums))
	for client, s := range p.sums {
		out = append(out, api.RTTSample{Client: client, Millis: s.ms / float64(s.n), Samples: s.n})
	}
	slices.SortFunc(out, func(a, b api.RTTSample) int {
		if a.Samples != b.Samples {
			return b.Samples - a.Samples
		}
		return a.Client.Addr().Compare(b.Client.Addr())
	})
	out = out[:min(len(out), api.MaxRTTs)]
	for _, s := range out {
		delete(p.sums, s.Client)
	}
	return out
}

// put gives back what a report that failed held.
func (p *passive) put(samples []api.RTTSample) {
	for _, s := range samples {
		p.add(s.Client, sum{s.Millis * float64(s.Samples), s.Samples})
	}
}
