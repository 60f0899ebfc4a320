package node

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/tracing"
)

// describe turns a record's indices into names, with the engine's reasons: it asks the
// snapshot that decided to explain itself. Only sampled records come here.
func (b *builder) describe(q *tracing.Query) tracing.Facts {
	s, c := b.recorded(q)
	if s == nil {
		return tracing.Facts{}
	}
	e := s.Explain(s.Services[q.Service], c)
	f := tracing.Facts{Service: e.Service, Pool: e.Pool, Reason: e.Reason, Plan: e.Plan, Place: placeOf(s, c.Addr)}
	f.Answers = answered(q.Qtype, e.Answers)
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

// brief is describe without the engine's reasons, of which an ordinary decision has none that
// the policy does not tell: it only decides again. Only the goroutine of the recorder calls it.
func (b *builder) brief(q *tracing.Query) tracing.Facts {
	s, c := b.recorded(q)
	if s == nil {
		return tracing.Facts{}
	}
	d := &b.again
	s.Decide(s.Services[q.Service], c, d)
	f := tracing.Facts{Service: d.Service.Name, Reason: d.Reason.String(), Plan: s.Plan, Place: placeOf(s, c.Addr)}
	if d.Pool != nil {
		f.Pool = d.Pool.Name
	}
	f.Answers = answered(q.Qtype, d.V4, d.V6)
	return f
}

// answered returns which of the addresses decided on an answer to qtype holds.
func answered(qtype uint16, decided ...[]netip.Addr) (answers []string) {
	for _, addrs := range decided {
		for _, a := range addrs {
			if qtype == dns.TypeA && !a.Is4() || qtype == dns.TypeAAAA && a.Is4() {
				continue
			}
			answers = append(answers, a.String())
		}
	}
	return answers
}

// recorded returns the snapshot that decided a record, and for whom; nil if it is gone, or
// nothing was steered.
func (b *builder) recorded(q *tracing.Query) (*gslb.Snapshot, gslb.Client) {
	s := b.archive.Live(q.Revision)
	if s == nil || q.Service < 0 || int(q.Service) >= len(s.Services) {
		return nil, gslb.Client{}
	}
	addr := netip.AddrFrom16(q.Client)
	if !q.V6 {
		addr = addr.Unmap()
	}
	return s, gslb.Client{Addr: addr, Source: q.Source}
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
