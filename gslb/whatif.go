package gslb

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// WhatIf returns the snapshot that s would be if terms held. It has the revision of s. A term
// is one of
//
//	pool.gfe-eu=down                 or up, drain, auto: as if an operator said so
//	endpoint.gfe-eu/192.0.2.11=down
//	site.eu-west=drain               every pool there
//	load.gfe-eu=0.9                  share of its capacity
//	weight.www.example.com/gfe-eu=3
//	capacity.www.example.com/gfe-eu=0.5
//	time=2026-01-31T14:00:00Z
//
// What names nothing of s, or says what cannot be, is an error that names the term.
func (s *Snapshot) WhatIf(terms ...string) (*Snapshot, error) {
	in := s.in
	in.Objects = in.Objects.Clone()
	in.Load, in.Shares = maps.Clone(in.Load), maps.Clone(in.Shares)
	if in.Load == nil {
		in.Load = map[string]float64{}
	}
	if in.Shares == nil {
		in.Shares = map[string]map[string]float64{}
	}
	if in.Objects.States == nil {
		in.Objects.States = map[string]config.State{}
	}
	for _, t := range terms {
		if err := suppose(&in, t); err != nil {
			return nil, fmt.Errorf("if %s: %w", t, err)
		}
	}
	return Build(s, in)
}

// With returns the snapshot that s would be with other objects, which are valid. It has the
// revision of s.
func (s *Snapshot) With(o *config.Objects) (*Snapshot, error) {
	in := s.in
	in.Objects = o
	return Build(s, in)
}

// suppose changes in as a term says. in.Objects, in.Load and in.Shares are its own.
func suppose(in *Inputs, term string) error {
	subject, value, ok := strings.Cut(term, "=")
	kind, name, _ := strings.Cut(subject, ".")
	if !ok {
		return fmt.Errorf("no value; expected a term such as pool.gfe-eu=down")
	}
	o := in.Objects
	pool := func(name string) error {
		if _, ok := o.Pools[name]; !ok {
			return fmt.Errorf("pool %q: no such pool", name)
		}
		return nil
	}
	state := func(pool string, addr netip.Addr) error {
		switch value {
		case "down", "up", "drain":
		case "auto":
		default:
			return fmt.Errorf("%q: expected down, up, drain or auto", value)
		}
		last := 0 // of states that name their target; of equal ones the last by name counts
		for _, st := range o.States {
			last = max(last, st.Order)
		}
		o.States[fmt.Sprintf("~if/%04d", len(o.States))] = config.State{Pool: pool, Endpoint: addr, State: value, Author: "if", Order: min(last, math.MaxInt-1) + 1}
		return nil
	}
	number := func(least, most float64) (float64, error) {
		v, err := strconv.ParseFloat(value, 64)
		if err != nil || !(v >= least && v <= most) {
			if most == math.MaxFloat64 {
				return 0, fmt.Errorf("%q: expected a number from %v on", value, least)
			}
			return 0, fmt.Errorf("%q: expected a number from %v to %v", value, least, most)
		}
		return v, nil
	}
	ofService := func() (service, pool string, err error) {
		service, pool, ok := strings.Cut(name, "/")
		svc, known := o.Services[service]
		switch _, in := svc.Pools[pool]; {
		case !ok:
			err = fmt.Errorf("%q: expected SERVICE/POOL", name)
		case !known:
			err = fmt.Errorf("service %q: no such service", service)
		case !in:
			err = fmt.Errorf("pool %q: not of service %s", pool, service)
		}
		return service, pool, err
	}
	switch kind {
	case "pool":
		if err := pool(name); err != nil {
			return err
		}
		return state(name, netip.Addr{})
	case "endpoint":
		p, text, _ := strings.Cut(name, "/")
		if err := pool(p); err != nil {
			return err
		}
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("%q: expected POOL/ADDRESS", name)
		}
		for _, e := range o.Pools[p].Endpoints {
			if e.Address == addr {
				return state(p, e.Address)
			}
		}
		return fmt.Errorf("endpoint %q: not of pool %s", text, p)
	case "site":
		if _, ok := o.Sites[name]; !ok {
			return fmt.Errorf("site %q: no such site", name)
		}
		for p, c := range o.Pools {
			if c.Site == name {
				if err := state(p, netip.Addr{}); err != nil {
					return err
				}
			}
		}
		return nil
	case "load":
		if err := pool(name); err != nil {
			return err
		}
		v, err := number(0, math.MaxFloat64)
		in.Load[name] = v
		return err
	case "weight":
		service, p, err := ofService()
		if err != nil {
			return err
		}
		w, err := strconv.Atoi(value)
		if err != nil || w < 0 || w > math.MaxUint16 {
			return fmt.Errorf("%q: expected a whole number, 0 to %d", value, math.MaxUint16)
		}
		svc := o.Services[service]
		svc.Pools = maps.Clone(svc.Pools)
		ref := svc.Pools[p]
		ref.Weight = &w
		svc.Pools[p] = ref
		return o.Put("services", service, svc)
	case "capacity":
		service, p, err := ofService()
		if err != nil {
			return err
		}
		v, err := number(0, 1)
		shares := maps.Clone(in.Shares[service])
		if shares == nil {
			shares = map[string]float64{}
		}
		shares[p] = v
		in.Shares[service] = shares
		return err
	case "time":
		t, err := time.Parse(time.RFC3339, value)
		if err != nil {
			return fmt.Errorf("%q: expected a time such as 2026-01-31T14:00:00Z", value)
		}
		in.Now = t
		return nil
	}
	return fmt.Errorf("%q: expected pool, endpoint, site, load, weight, capacity or time", kind)
}

// Objects returns the objects that s was made of. They belong to s.
func (s *Snapshot) Objects() *config.Objects { return s.in.Objects }
