package health

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// The defaults of a probe, as its fields declare them.
const (
	defaultInterval = 5 * time.Second
	defaultTimeout  = 2 * time.Second
	defaultJitter   = 0.1
	defaultRise     = 2
	defaultFall     = 3
	defaultReuse    = 10
)

// Targets returns what the probes of valid objects have to test, ordered by ID, with every
// default filled in. An endpoint of a pool without a probe, or with one that is calculated
// from pools, is no target.
func Targets(objects *config.Objects) []Target {
	var targets []Target
	for name, pool := range objects.Pools {
		probe, ok := objects.Probes[pool.Probe]
		if !ok || probe.Calculated != nil && len(probe.Calculated.Probes) == 0 {
			continue
		}
		for _, e := range pool.Endpoints {
			t, ok := newTarget(name, pool, e, probe)
			if k := probe.Calculated; k != nil {
				for _, of := range k.Probes {
					one, fine := newTarget(name, pool, e, objects.Probes[of])
					one.Probe.Timeout = t.Probe.Timeout
					t.Of, ok = append(t.Of, one), ok && fine
				}
			}
			if ok {
				targets = append(targets, t)
			}
		}
	}
	slices.SortFunc(targets, func(a, b Target) int { return compareID(a.ID, b.ID) })
	return targets
}

// newTarget returns the target of one endpoint; false if there is no port to probe.
func newTarget(pool string, p config.Pool, e config.Endpoint, probe config.Probe) (Target, bool) {
	t := Target{ID: gslb.EndpointID{Pool: pool, Addr: e.Address}, Probe: probe, Addr: p.ProbeAddr(probe, e)}
	port := t.Addr.Port()
	switch {
	case probe.HTTP != nil:
		known := uint16(80) // what the scheme is known by
		if probe.HTTP.TLS {
			known = 443
		}
		t.Probe.HTTP = fillHTTP(*probe.HTTP, e.Address, port, known)
	case probe.TCP != nil:
		tcp := *probe.TCP
		tcp.Port, t.Probe.TCP = port, &tcp
	case probe.TLS != nil:
		tls := *probe.TLS
		tls.ServerName = cmp.Or(tls.ServerName, e.Address.String())
		t.Probe.TLS = &tls
	case probe.GRPC != nil:
		grpc := *probe.GRPC
		grpc.ServerName = cmp.Or(grpc.ServerName, e.Address.String())
		t.Probe.GRPC = &grpc
	case probe.DNS != nil:
		d := *probe.DNS
		d.Type, d.Rcode = cmp.Or(d.Type, "A"), cmp.Or(d.Rcode, "NOERROR")
		t.Probe.DNS = &d
	case probe.Postgres != nil:
		pg := *probe.Postgres
		pg.User, pg.Database = cmp.Or(pg.User, "meridian"), cmp.Or(pg.Database, "postgres")
		t.Probe.Postgres = &pg
	}
	t.Probe.Interval = cmp.Or(probe.Interval, config.Duration(defaultInterval))
	t.Probe.Timeout = min(cmp.Or(probe.Timeout, config.Duration(defaultTimeout)), t.Probe.Interval)
	t.Probe.Rise = cmp.Or(probe.Rise, defaultRise)
	t.Probe.Fall = cmp.Or(probe.Fall, defaultFall)
	if probe.Jitter == nil {
		t.Probe.Jitter = new(float64(defaultJitter))
	}
	return t, port != 0 || !probe.PortRequired()
}

// fillHTTP returns h with its defaults for an endpoint. known is the scheme's own port,
// which the Host field leaves out.
func fillHTTP(h config.HTTPProbe, addr netip.Addr, port, known uint16) *config.HTTPProbe {
	h.Port = port
	if h.Host == "" {
		h.Host = addr.String()
		switch {
		case port != known:
			h.Host = net.JoinHostPort(h.Host, strconv.Itoa(int(port)))
		case addr.Is6():
			h.Host = "[" + h.Host + "]"
		}
		if h.ServerName == "" {
			h.ServerName = addr.String()
		}
	}
	if h.ServerName == "" {
		h.ServerName = h.Host
		if host, _, err := net.SplitHostPort(h.Host); err == nil {
			h.ServerName = host
		}
	}
	h.Path = cmp.Or(h.Path, "/")
	h.Method = cmp.Or(h.Method, "GET")
	h.Reuse = cmp.Or(h.Reuse, defaultReuse)
	if len(h.Expect) == 0 {
		h.Expect = []config.Statuses{"200"}
	}
	return &h
}

// compareID orders endpoints by pool, then address.
func compareID(a, b gslb.EndpointID) int {
	return cmp.Or(cmp.Compare(a.Pool, b.Pool), a.Addr.Compare(b.Addr))
}
