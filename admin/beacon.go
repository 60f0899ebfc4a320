package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"

	"github.com/meridian-gslb/meridian/gslb"
)

// BeaconPath is where browsers report.
const BeaconPath = "/rtt"

// BeaconOptions are what a Beacon is made of. All but Trust and Log are required.
type BeaconOptions struct {
	Addr  string         // to listen on, host:port
	Rate  float64        // reports a second that are taken, of everybody together
	Trust []netip.Prefix // who may name another client than itself: proxies and collectors of our own

	Pool    func(name string) bool                             // whether there is such a pool
	Observe func(client netip.Prefix, pool string, ms float64) // every report that is taken; it must not block
	Log     *slog.Logger
}

// Beacon takes the round-trip times that users' browsers measure themselves:
//
//	GET or POST /rtt?pool=gfe-eu&ms=42.5     the client is who asks
//	… &client=198.51.100.7                   from BeaconOptions.Trust
//
// Anybody can send what they like, so that little is believed: one report a second of a prefix, and
// no more of all together than Rate. What is over it is answered 429.
type Beacon struct {
	o        BeaconOptions
	listener net.Listener

	taken, refused atomic.Uint64

	mu     sync.Mutex
	second int64                     // Unix time
	heard  map[netip.Prefix]struct{} // in that second
}

// NewBeacon returns a beacon that listens nowhere yet.
func NewBeacon(o BeaconOptions) *Beacon {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Beacon{o: o, heard: make(map[netip.Prefix]struct{})}
}

// Listen binds the address.
func (b *Beacon) Listen() (err error) {
	if b.listener, err = net.Listen("tcp", b.o.Addr); err != nil {
		return fmt.Errorf("beacon: listen on %s: %w", b.o.Addr, bindCause(err))
	}
	return nil
}

// Addr returns the address that is listened on, after Listen.
func (b *Beacon) Addr() net.Addr { return b.listener.Addr() }

// Run serves until ctx ends.
func (b *Beacon) Run(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle(BeaconPath, b)
	h := &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: headerTimeout, IdleTimeout: headerTimeout,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(b.o.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() {
		failed <- h.Serve(netutil.LimitListener(b.listener, maxBeacons))
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("beacon: %w", err)
	case <-ctx.Done():
	}
	h.Close() // a report under way is no loss
	<-failed
	return context.Cause(ctx)
}

// maxBeacons bounds the connections of browsers at once; further ones wait.
const maxBeacons = 1024

// Stats returns how many reports were taken and refused.
func (b *Beacon) Stats() (taken, refused uint64) { return b.taken.Load(), b.refused.Load() }

// ServeHTTP takes one report. Pages of any origin may send it, and learn nothing from the answer.
func (b *Beacon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Cache-Control", "no-store")
	switch r.Method {
	case http.MethodGet, http.MethodPost:
	case http.MethodOptions:
		h.Set("Access-Control-Allow-Methods", "GET, POST")
		h.Set("Access-Control-Allow-Headers", "Content-Type")
		h.Set("Access-Control-Max-Age", "86400")
		w.WriteHeader(http.StatusNoContent)
		return
	default:
		h.Set("Allow", "GET, POST, OPTIONS")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	_, _ = io.CopyN(io.Discard, r.Body, 4<<10) // what sendBeacon may put there says nothing
	client, pool, ms, err := b.read(r)
	if err != nil {
		b.refused.Add(1)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !b.admit(client, time.Now()) {
		b.refused.Add(1)
		h.Set("Retry-After", "60")
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	b.taken.Add(1)
	b.o.Observe(client, pool, ms)
	w.WriteHeader(http.StatusNoContent)
}

// read returns what a request reports, or what is wrong with it.
func (b *Beacon) read(r *http.Request) (client netip.Prefix, pool string, ms float64, err error) {
	q := r.URL.Query()
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return client, "", 0, errors.New("who asks is not known")
	}
	addr := from.Addr().Unmap().WithZone("")
	if text := q.Get("client"); text != "" {
		if !slices.ContainsFunc(b.o.Trust, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return client, "", 0, errors.New("client: only who is trusted may name another")
		}
		if addr, err = netip.ParseAddr(text); err != nil {
			return client, "", 0, errors.New("client: expected an address")
		}
		addr = addr.Unmap().WithZone("")
	}
	client, ok := gslb.RTTPrefix(netip.PrefixFrom(addr, addr.BitLen()))
	if !ok {
		return client, "", 0, errors.New("client: expected the address of a client")
	}
	if pool = q.Get("pool"); !b.o.Pool(pool) {
		return client, "", 0, errors.New("pool: there is none of that name")
	}
	if ms, err = strconv.ParseFloat(q.Get("ms"), 64); err != nil || !(ms > 0 && ms <= maxRTT) {
		return client, "", 0, fmt.Errorf("ms: expected milliseconds over 0, up to %d", maxRTT)
	}
	return client, pool, ms, nil
}

// admit tells whether another report of client is taken in this second.
func (b *Beacon) admit(client netip.Prefix, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if second := now.Unix(); second != b.second {
		b.second = second
		clear(b.heard)
	}
	if _, heard := b.heard[client]; heard || float64(len(b.heard)) >= b.o.Rate {
		return false
	}
	b.heard[client] = struct{}{}
	return true
}
