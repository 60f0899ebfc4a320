package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
)

// Assignment is where the proxies of one pool send requests next.
type Assignment struct {
	Revision  uint64     `json:"revision"` // of the snapshot that says so; 0: not from one
	Plan      string     `json:"plan,omitempty"`
	Hops      []gslb.Hop `json:"hops"` // none: the pool has no upstream
	OutOfBand OutOfBand  `json:"-"`    // how the endpoints are asked for their load
}

// Source says where the proxies of a pool send requests next.
type Source interface {
	// Follow hands each assignment of pool to update, the present one first, until ctx ends
	// or the source breaks, and returns why. Calls of update come one at a time, none after
	// Follow returned, and what was handed over is not changed any more. Whoever called
	// follows again after a while.
	Follow(ctx context.Context, pool string, update func(Assignment)) error
}

// Reporter is a Source that takes load reports.
type Reporter interface {
	// Report hands over what a proxy did since its last report that was taken.
	Report(ctx context.Context, load api.Load) error
}

// Func is a source in this process.
type Func func(ctx context.Context, pool string, update func(Assignment)) error

// Follow calls f.
func (f Func) Follow(ctx context.Context, pool string, update func(Assignment)) error {
	return f(ctx, pool, update)
}

// HTTP is the admin API of a node as a source, and as a Reporter. It is safe for concurrent
// use.
type HTTP struct {
	client    *api.Client
	transport *http.Transport
	silence   time.Duration // that ends a stream
}

// NewHTTP returns the admin API at base, such as http://127.0.0.1:8053, as a source. The
// token is sent as a bearer token unless it is empty.
func NewHTTP(base, token string) (*HTTP, error) {
	client, err := api.NewClient(base, token)
	if err != nil {
		return nil, err
	}
	h := &HTTP{
		client: client,
		transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
			TLSHandshakeTimeout:   3 * time.Second,
			ResponseHeaderTimeout: 10 * time.Second,
			IdleConnTimeout:       time.Minute,
		},
		silence: 2*api.Heartbeat + time.Second,
	}
	client.HTTP = &http.Client{Transport: h.transport}
	return h, nil
}

// errSilent ends a stream that said nothing for two heartbeats.
var errSilent = errors.New("the node is silent: not a word for two heartbeats")

// Follow reads the stream of pool's assignments. A line that is not a valid assignment ends
// it, so that what was served before stays.
func (h *HTTP) Follow(ctx context.Context, pool string, update func(Assignment)) error {
	defer h.transport.CloseIdleConnections()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(h.silence, func() { cancel(errSilent) })
	defer silence.Stop()
	err := h.client.FollowAssignments(ctx, pool, func(in *api.Assignment) error {
		silence.Reset(h.silence)
		if in.Heartbeat {
			return nil
		}
		a, err := read(in, pool)
		if err == nil {
			update(a)
		}
		return err
	})
	if errors.Is(context.Cause(ctx), errSilent) {
		return errSilent
	}
	return err
}

// Report posts load to the node.
func (h *HTTP) Report(ctx context.Context, load api.Load) error {
	return h.client.Report(ctx, load)
}

// Limits of what an assignment may be.
const (
	maxEndpoints = 65536
	maxWeight    = 1 << 20
)

// read checks an assignment from outside.
func read(in *api.Assignment, pool string) (Assignment, error) {
	if in.Pool != pool {
		return Assignment{}, fmt.Errorf("assignment of pool %q: asked for %q", in.Pool, pool)
	}
	a := Assignment{Revision: in.Revision, Plan: in.Plan}
	total := 0
	for _, h := range in.Hops {
		hop, err := readHop(h)
		if total += len(hop.Endpoints); err == nil && total > maxEndpoints {
			err = fmt.Errorf("over %d endpoints", maxEndpoints)
		}
		if err != nil {
			return Assignment{}, fmt.Errorf("assignment at revision %d: %w", in.Revision, err)
		}
		a.Hops = append(a.Hops, hop)
	}
	return a, nil
}

func readHop(in api.Hop) (gslb.Hop, error) {
	if in.Pool == "" {
		return gslb.Hop{}, errors.New("hop without a pool")
	}
	if in.Weight < 0 || in.Weight > maxWeight {
		return gslb.Hop{}, fmt.Errorf("pool %s: weight %d: expected 0..%d", in.Pool, in.Weight, maxWeight)
	}
	hop := gslb.Hop{Pool: in.Pool, Site: in.Site, Weight: in.Weight, Priority: in.Priority}
	for _, e := range in.Endpoints {
		var verdict gslb.Verdict
		if err := verdict.UnmarshalText([]byte(e.Verdict)); err != nil {
			return gslb.Hop{}, fmt.Errorf("pool %s: endpoint %s: %w", in.Pool, e.Addr, err)
		}
		if !e.Addr.IsValid() {
			return gslb.Hop{}, fmt.Errorf("pool %s: endpoint without an address", in.Pool)
		}
		if e.Weight < 0 || e.Weight > maxWeight {
			return gslb.Hop{}, fmt.Errorf("pool %s: endpoint %s: weight %d: expected 0..%d", in.Pool, e.Addr, e.Weight, maxWeight)
		}
		hop.Endpoints = append(hop.Endpoints, gslb.Endpoint{
			Addr: e.Addr, Port: e.Port, Weight: e.Weight, Verdict: verdict, Drained: e.Drained, Forced: e.Forced,
		})
	}
	return hop, nil
}

// resolveEvery is how often Static looks names up again.
const resolveEvery = 10 * time.Second

// Static returns a source that assigns every pool to the same endpoints, each host:port with
// a port of 1 or more, under the name upstream. Hosts that are names are looked up again
// every 10 s; one that does not resolve keeps its last addresses.
func Static(upstream string, hostports ...string) (Source, error) {
	if len(hostports) == 0 {
		return nil, fmt.Errorf("pool %s: no endpoint", upstream)
	}
	var targets []target
	for _, hp := range hostports {
		host, port, err := net.SplitHostPort(hp)
		if err != nil {
			return nil, fmt.Errorf("pool %s: endpoint %q: expected host:port: %w", upstream, hp, err)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || host == "" {
			return nil, fmt.Errorf("pool %s: endpoint %q: expected host:port", upstream, hp)
		}
		targets = append(targets, target{host: host, port: uint16(n)})
	}
	return &static{pool: upstream, targets: targets}, nil
}

type static struct {
	pool    string
	targets []target
}

type target struct {
	host string
	port uint16
}

func (s *static) Follow(ctx context.Context, _ string, update func(Assignment)) error {
	last := make([][]netip.Addr, len(s.targets))
	for first := true; ; first = false {
		changed, named := false, false
		var failed error
		for i, t := range s.targets {
			addrs, err := lookup(ctx, t.host)
			if err != nil {
				failed = err
				continue
			}
			named = named || len(addrs) != 1 || addrs[0].String() != t.host
			if !slices.Equal(addrs, last[i]) {
				last[i], changed = addrs, true
			}
		}
		if first && !changed {
			return fmt.Errorf("pool %s: %w", s.pool, failed)
		}
		if changed {
			update(s.assignment(last))
		}
		if !named && failed == nil {
			<-ctx.Done() // addresses do not change
			return context.Cause(ctx)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(resolveEvery):
		}
	}
}

func (s *static) assignment(addrs [][]netip.Addr) Assignment {
	hop := gslb.Hop{Pool: s.pool, Weight: 1}
	for i, t := range s.targets {
		for _, a := range addrs[i] {
			hop.Endpoints = append(hop.Endpoints, gslb.Endpoint{Addr: a, Port: t.port, Weight: 1})
		}
	}
	return Assignment{Hops: []gslb.Hop{hop}}
}

// lookup returns the addresses of host, ordered.
func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), err
}
