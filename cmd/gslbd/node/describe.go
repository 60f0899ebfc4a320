package node

import (
	"net/netip"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/tracing"
)

// describe turns a record's indices into names, with the engine's reasons: it asks the
// snapshot that decided to explain itself. Only sampled records come here.
func (b *builder) describe(q *tracing.Query) tracing.Facts {
	s := b.snapshot(q.Revision)
	if s == nil || q.Service < 0 || int(q.Service) >= len(s.Services) {
		return tracing.Facts{}
	}
	addr := netip.AddrFrom16(q.Client)
	if !q.V6 {
		addr = addr.Unmap()
	}
	e := s.Explain(s.Services[q.Service], gslb.Client{Addr: addr, Source: q.Source})
	_, scope := s.Geo.Lookup(addr)
	p := e.Place
	f := tracing.Facts{Service: e.Service, Pool: e.Pool, Reason: e.Reason, Plan: e.Plan, Place: tracing.Place{
		Continent: p.Continent, Country: p.Country, Subdivision: p.Subdivision, City: p.City, ASN: p.ASN,
		Site: p.Site, Lat: p.Lat, Lon: p.Lon, Located: p.Located, Scope: scope,
	}}
	for _, a := range e.Answers {
		f.Answers = append(f.Answers, a.String())
	}
	for i, st := range e.Stages {
		if i == 0 {
			for _, c := range st.Kept {
				f.Candidates = append(f.Candidates, c.Pool)
			}
		}
		for _, c := range st.Lost {
			f.Rejected = append(f.Rejected, tracing.Rejection{Pool: c.Pool, Reason: st.Stage + ": " + c.Note})
		}
	}
	return f
}
