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
)

// Targets returns what the probes of valid objects have to test, ordered by ID, with every
// default filled in. An endpoint of a pool without a probe is no target.
func Targets(objects *config.Objects) []Target {
	var targets []Target
	for name, pool := range objects.Pools {
		probe, ok := objects.Probes[pool.Probe]
		if !ok {
			continue
		}
		for _, e := range pool.Endpoints {
			if t, ok := newTarget(name, pool, e, probe); ok {
				targets = append(targets, t)
			}
		}
	}
	slices.SortFunc(targets, func(a, b Target) int { return compareID(a.ID, b.ID) })
	return targets
}

// newTarget returns the target of one endpoint; false if there is no port to probe.
func newTarget(pool string, p config.Pool, e config.Endpoint, probe config.Probe) (Target, bool) {
	t := Target{ID: gslb.EndpointID{Pool: pool, Addr: e.Address}, Probe: probe}
	addr := e.Address
	var own, known uint16 // where this one endpoint is probed; what the probe's protocol is known by
	if e.Probe != nil {
		own = e.Probe.Port
		if e.Probe.Address.IsValid() {
			addr = e.Probe.Address
		}
	}
	var port uint16
	switch {
	case probe.HTTP != nil:
		known = 80
		if probe.HTTP.TLS {
			known = 443
		}
		port = cmp.Or(own, probe.HTTP.Port, e.Port, p.Port, known)
		t.Probe.HTTP = fillHTTP(*probe.HTTP, e.Address, port, known)
	case probe.TCP != nil:
		port = cmp.Or(own, probe.TCP.Port, e.Port, p.Port)
		t.Probe.TCP = &config.TCPProbe{Port: port}
	}
	t.Addr = netip.AddrPortFrom(addr, port)

	t.Probe.Interval = cmp.Or(probe.Interval, config.Duration(defaultInterval))
	t.Probe.Timeout = min(cmp.Or(probe.Timeout, config.Duration(defaultTimeout)), t.Probe.Interval)
	t.Probe.Rise = cmp.Or(probe.Rise, defaultRise)
	t.Probe.Fall = cmp.Or(probe.Fall, defaultFall)
	if probe.Jitter == nil {
		t.Probe.Jitter = new(float64(defaultJitter))
	}
	return t, port != 0
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
	if len(h.Expect) == 0 {
		h.Expect = []int{200}
	}
	return &h
}

// compareID orders endpoints by pool, then address.
func compareID(a, b gslb.EndpointID) int {
	return cmp.Or(cmp.Compare(a.Pool, b.Pool), a.Addr.Compare(b.Addr))
}
