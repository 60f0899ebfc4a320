package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/tracing"
)

// Describe turns a record's indices into names, with the engine's reasons: it asks s, the
// snapshot that decided, to explain itself. It returns no facts where nothing was steered.
func Describe(s *gslb.Snapshot, q *tracing.Query) tracing.Facts {
	c, ok := recorded(s, q)
	if !ok {
		return tracing.Facts{}
	}
	e := s.Explain(s.Services[q.Service], c)
	f := tracing.Facts{Service: e.Service, Pool: e.Pool, Reason: e.Reason, Plan: e.Plan, Place: placeOf(s, c.Addr)}
	v6 := slices.IndexFunc(e.Answers, netip.Addr.Is6)
	if v6 < 0 {
		v6 = len(e.Answers)
	}
	f.Answers = answered(q.Qtype, e.Answers[:v6], e.Answers[v6:])
	for i, st := range e.Stages {
		kept := make([]string, len(st.Kept))
		for i, c := range st.Kept {
			kept[i] = strings.TrimSpace(c.Pool + " " + c.Note)
		}
		if i > 0 { // the first are the pools that there are
			f.Stages = append(f.Stages, st.Stage+": "+strings.Join(kept, ", "))
		}
		if st.Stage != "select" { // which takes what it wants of the best
			f.Candidates = nil
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

// DescribeBriefly is Describe without the engine's reasons, of which an ordinary decision has none
// that the policy does not tell: it only decides again, into d, which the facts are good for.
func DescribeBriefly(s *gslb.Snapshot, q *tracing.Query, d *gslb.Decision) tracing.Facts {
	c, ok := recorded(s, q)
	if !ok {
		return tracing.Facts{}
	}
	s.DecideFor(families(q.Qtype), s.Services[q.Service], c, d)
	f := tracing.Facts{Service: d.Service.Name, Reason: d.Reason.String(), Plan: s.Plan, Place: placeOf(s, c.Addr)}
	if d.Pool != nil {
		f.Pool = d.Pool.Name
	}
	f.Answers = answered(q.Qtype, d.V4, d.V6)
	return f
}

// answered returns which of the addresses decided on an answer to qtype holds: those of its family; of
// one family for ANY, as answer.go has it; or all.
func answered(qtype uint16, v4, v6 []netip.Addr) []netip.Addr {
	switch {
	case qtype == typeA, qtype == typeANY && len(v4) > 0:
		return v4
	case qtype == typeAAAA, qtype == typeANY:
		return v6
	}
	return slices.Concat(v4, v6)
}

// recorded returns for whom a record was decided; false if nothing was steered.
func recorded(s *gslb.Snapshot, q *tracing.Query) (gslb.Client, bool) {
	if q.Service < 0 || int(q.Service) >= len(s.Services) {
		return gslb.Client{}, false
	}
	addr := netip.AddrFrom16(q.Client)
	if !q.V6 {
		addr = addr.Unmap()
	}
	return gslb.Client{Addr: addr, Source: q.Source}, true
}

// placeOf is where s says that addr is.
func placeOf(s *gslb.Snapshot, addr netip.Addr) tracing.Place {
	if s.Geo == nil {
		return tracing.Place{}
	}
	p, scope := s.Geo.Lookup(addr)
	return tracing.Place{
		Continent: p.Continent, Country: p.Country, Subdivision: p.Subdivision, City: p.City, ASN: p.ASN,
		Site: p.Site, Lat: p.Lat, Lon: p.Lon, Located: p.Located, Scope: scope,
	}
}
