package config

import (
	"net/netip"
	"time"
)

// The defaults of the model, for those who print or document them.
const (
	DefaultTTL       = 30 * time.Second
	DefaultInterval  = 5 * time.Second
	DefaultTimeout   = 2 * time.Second
	DefaultJitter    = 0.1
	DefaultRise      = 2
	DefaultFall      = 3
	DefaultMinHealth = 0.5
	DefaultSample    = 0.01
)

// WithDefaults returns p with every default filled in, except an HTTP probe's port and host,
// which depend on the endpoint (see Pool.ProbeAddr). It shares nothing that it changed with p.
func (p Probe) WithDefaults() Probe {
	if p.Interval == 0 {
		p.Interval = Duration(DefaultInterval)
	}
	if p.Timeout == 0 {
		p.Timeout = min(Duration(DefaultTimeout), p.Interval)
	}
	if p.Jitter == nil {
		j := DefaultJitter
		p.Jitter = &j
	}
	if p.Rise == 0 {
		p.Rise = DefaultRise
	}
	if p.Fall == 0 {
		p.Fall = DefaultFall
	}
	if p.HTTP != nil {
		h := *p.HTTP
		if h.Path == "" {
			h.Path = "/"
		}
		if h.Method == "" {
			h.Method = "GET"
		}
		if len(h.Expect) == 0 {
			h.Expect = []Statuses{"200"}
		}
		p.HTTP = &h
	}
	return p
}

// EffectiveAdmin returns the address of the HTTP API.
func (n Node) EffectiveAdmin() netip.AddrPort {
	if !n.Admin.IsValid() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 8053)
	}
	return n.Admin
}

// EffectiveTTL returns the TTL that s is answered with at most.
func (s Service) EffectiveTTL() time.Duration {
	if s.TTL == 0 {
		return DefaultTTL
	}
	return time.Duration(s.TTL)
}

// WithDefaults returns s with every default filled in.
func (s Sticky) WithDefaults() Sticky {
	if s.IPv4 == 0 {
		s.IPv4 = 24
	}
	if s.IPv6 == 0 {
		s.IPv6 = 56
	}
	return s
}

// EffectivePolicy returns the stages of s in order; the caller must not change them.
func (s Steering) EffectivePolicy() []Stage {
	if len(s.Policy) == 0 {
		return defaultPolicy
	}
	return s.Policy
}

var defaultPolicy = []Stage{{Health: &HealthStage{}}, {Nearest: &NearestStage{}}}

// EffectiveWeight returns the weight of r, 0..65535.
func (r PoolRef) EffectiveWeight() int { return weight(r.Weight) }

// EffectiveWeight returns the weight of e, 0..65535.
func (e Endpoint) EffectiveWeight() int { return weight(e.Weight) }

func weight(w *int) int {
	if w == nil {
		return 1
	}
	return *w
}

// EffectiveMode returns "open", "servfail" or "fallback".
func (a AllDown) EffectiveMode() string {
	if a.Mode == "" {
		return "open"
	}
	return a.Mode
}

// EffectiveSample returns the share of plain decisions to export, 0..1.
func (o OTLP) EffectiveSample() float64 {
	if o.Sample == nil {
		return DefaultSample
	}
	return *o.Sample
}

// EffectiveMinHealth returns the share of endpoint weight, 0..1, below which p is degraded.
func (p Pool) EffectiveMinHealth() float64 {
	if p.MinHealth == nil {
		return DefaultMinHealth
	}
	return *p.MinHealth
}

// EndpointPort returns the port of e in p for proxies and probes; 0 when none is declared.
func (p Pool) EndpointPort(e Endpoint) uint16 {
	if e.Port != 0 {
		return e.Port
	}
	return p.Port
}

// ProbeAddr returns where probe tests e of p. The address is the target's, else the one
// served. The port is the target's, else the probe's, the endpoint's, the pool's, else the
// one that the probe's protocol is known by; 0 for a probe that has none, which Validate
// refuses where it needs one. A database's or a name server's probe has its own port, and
// leaves that of the endpoint to what is served there.
func (p Pool) ProbeAddr(probe Probe, e Endpoint) netip.AddrPort {
	addr, port := e.Address, uint16(0)
	if e.Probe != nil {
		if e.Probe.Address.IsValid() {
			addr = e.Probe.Address
		}
		port = e.Probe.Port
	}
	own := probe.port()
	if port == 0 {
		port = own.set
	}
	if port == 0 && !own.apart {
		port = p.EndpointPort(e)
	}
	if port == 0 {
		port = own.known
	}
	return netip.AddrPortFrom(addr, port)
}
