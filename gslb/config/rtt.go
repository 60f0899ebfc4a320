package config

import (
	"net/netip"
	"time"
)

// NodeRTT says where round-trip times of users come from, beside the reports of proxies, which
// are always taken. They count where a policy asks for them.
type NodeRTT struct {
	Rows   int      `json:"rows,omitempty"`   // client prefixes × pools that are kept of each source; default 16384
	Expire Duration `json:"expire,omitempty"` // what was not heard of for so long is forgotten; default 24h
	Probes bool     `json:"probes,omitempty"` // a probe's latency counts for the clients near its site of whom nothing better is known
	Beacon Beacon   `json:"beacon,omitzero"`
}

// Beacon is a listener of its own that takes what browsers measured. The zero value is none.
type Beacon struct {
	Listen netip.AddrPort `json:"listen,omitzero"`
	Rate   float64        `json:"rate,omitempty"`  // reports a second that are taken, of everybody; default 100
	Trust  []netip.Prefix `json:"trust,omitempty"` // who may report for other clients: collectors of your own; default nobody
}

// The defaults of NodeRTT, and its bounds.
const (
	defaultRTTRows   = 16384
	maxRTTRows       = 1 << 18
	defaultRTTExpire = 24 * time.Hour
	maxRTTExpire     = 7 * 24 * time.Hour
	defaultBeacons   = 100
	maxBeaconRate    = 10000
)

// Effective returns r with the defaults in place.
func (r NodeRTT) Effective() NodeRTT {
	if r.Rows == 0 {
		r.Rows = defaultRTTRows
	}
	if r.Expire == 0 {
		r.Expire = Duration(defaultRTTExpire)
	}
	if r.Beacon.Rate == 0 {
		r.Beacon.Rate = defaultBeacons
	}
	return r
}

func (c *checker) rtt(p path, r NodeRTT) {
	r = r.Effective()
	between(c, p.at("rows"), r.Rows, 16, maxRTTRows)
	if e := r.Expire.Std(); e < time.Minute || e > maxRTTExpire {
		c.fail(p.at("expire"), "%s; expected 1m to %s", e, maxRTTExpire)
	}
	between(c, p.at("beacon").at("rate"), r.Beacon.Rate, 1, maxBeaconRate)
	for i, a := range r.Beacon.Trust {
		if a != a.Masked() {
			c.fail(p.at("beacon").at("trust").item(i), "%s: bits beyond the prefix; expected %s", a, a.Masked())
		}
	}
	if !r.Beacon.Listen.IsValid() && len(r.Beacon.Trust) > 0 {
		c.missing(p.at("beacon").at("listen"), "no value; expected the address to take reports on")
	}
}

// UsesRTT reports whether a stage of o asks for measured round-trip times, and the shortest time
// after which one does not count them any more.
func (o *Objects) UsesRTT() (maxAge time.Duration, used bool) {
	o.eachStage(func(s *Stage) {
		age := RTTStage{}.Effective().MaxAge.Std()
		switch {
		case s.RTT != nil:
			age = s.RTT.Effective().MaxAge.Std()
		case s.Nearest == nil || s.Nearest.By != "rtt":
			return
		}
		if !used || age < maxAge {
			maxAge = age
		}
		used = true
	})
	return maxAge, used
}

// eachStage calls f with every stage of every policy in o.
func (o *Objects) eachStage(f func(*Stage)) {
	for _, c := range o.Chains {
		eachStage(c.Policy, f)
	}
	for _, s := range o.Services {
		eachStage(s.Policy, f)
	}
	for _, p := range o.Pools {
		for _, u := range p.Upstreams() {
			eachStage(u.Policy, f)
		}
	}
}

func eachStage(stages []Stage, f func(*Stage)) {
	for i := range stages {
		f(&stages[i])
		if m := stages[i].Match; m != nil {
			for _, c := range m.Cases {
				eachStage(c.Then, f)
			}
			eachStage(m.Else, f)
		}
	}
}
