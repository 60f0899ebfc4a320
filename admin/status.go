package admin

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/gslb/store"
	"github.com/meridian-gslb/meridian/health"
)

// snapshot returns what answers now. Where there is nothing yet that is answered here, and
// ok is false.
func (s *Server) snapshot(w http.ResponseWriter) (snap *gslb.Snapshot, ok bool) {
	if snap = s.o.Snapshot(); snap == nil {
		_, reason := s.o.Ready()
		fail(w, http.StatusServiceUnavailable, "not ready: "+reason, "the node has no valid configuration yet; see its log")
		return nil, false
	}
	return snap, true
}

// status answers how the node is.
func (s *Server) status(w http.ResponseWriter, _ *http.Request) { reply(w, s.statusNow()) }

// statusNow judges the node: not ready, degraded with its reasons, or ok.
func (s *Server) statusNow() *api.Status {
	st := &api.Status{
		Node:     s.o.Node,
		Time:     s.o.Now(),
		State:    api.StateOK,
		Services: []api.Service{},
		Pools:    []api.Pool{},
		Store:    s.storeStatus(),
	}
	if s.o.Members != nil {
		st.Members = s.o.Members()
	}
	if s.o.Counters != nil {
		c := s.o.Counters()
		if c.Answers == nil {
			c.Answers = []api.Answers{} // a list for those who read JSON, not null
		}
		st.Traffic = &c
	}
	if snap := s.o.Snapshot(); snap != nil {
		objects := s.o.View().Objects
		st.Revision, st.Plan = snap.Revision, snap.Plan
		st.Services = services(snap)
		st.Pools = pools(snap, objects)
	}
	st.Reasons = troubles(st)
	if s.o.Degraded != nil {
		st.Reasons = append(st.Reasons, s.o.Degraded()...)
	}
	if len(st.Reasons) > 0 {
		st.State = api.StateDegraded
	}
	if ok, reason := s.o.Ready(); !ok {
		st.State = api.StateNotReady
		st.Reasons = append([]string{reason}, st.Reasons...)
	}
	return st
}

// troubles says in a sentence each what someone should look at. A drain is no trouble: it
// was meant.
func troubles(st *api.Status) []string {
	var out []string
	usable := map[string]bool{}
	for _, p := range st.Pools {
		usable[p.Name] = p.Healthy > 0 && !p.Drained
		switch {
		case p.Drained:
		case p.Healthy == 0:
			out = append(out, fmt.Sprintf("pool %s: no endpoint is healthy", p.Name))
		case p.Degraded:
			out = append(out, fmt.Sprintf("pool %s: degraded, %.0f %% healthy", p.Name, p.Healthy*100))
		}
	}
	for _, svc := range st.Services {
		if !slices.ContainsFunc(svc.Pools, func(p string) bool { return usable[p] }) {
			out = append(out, fmt.Sprintf("service %s: no usable pool is left", svc.Name))
		}
	}
	if so := st.Store; so != nil {
		if !so.Connected && so.Mode != store.ModeFile {
			out = append(out, "store: "+cmp.Or(so.Error, "not connected")+"; answering from the last known objects")
		}
		if so.Held != "" {
			out = append(out, "store: held: "+so.Held)
		}
		if so.DiskError != "" {
			out = append(out, "store: snapshot on disk: "+so.DiskError)
		}
		for _, f := range so.Faults {
			out = append(out, "store: "+f)
		}
	}
	for _, m := range st.Members {
		if m.State == "silent" || m.State == "gone" {
			out = append(out, fmt.Sprintf("member %s: %s", m.Name, m.State))
		}
		if m.Abstains {
			out = append(out, fmt.Sprintf("member %s: what it finds is not believed: it is cut off, or most of what it tests fails", m.Name))
		}
		if otherPlan(st, &m) {
			out = append(out, fmt.Sprintf("member %s: serves plan %s, this node %s", m.Name, m.Plan, st.Plan))
		}
	}
	return out
}

// otherPlan reports whether m serves another plan than this node.
func otherPlan(st *api.Status, m *api.Member) bool {
	return m.State == "alive" && m.Plan != "" && st.Plan != "" && m.Plan != st.Plan
}

// storeStatus says how the store is; nil without one.
func (s *Server) storeStatus() *api.Store {
	if s.o.Store == nil {
		return nil
	}
	st := s.o.Store.Status()
	return &api.Store{
		Mode:        st.Mode,
		Connected:   st.Connected,
		Revision:    st.Revision,
		FromDisk:    st.FromDisk,
		LastChange:  st.LastChange,
		LastContact: st.LastContact,
		Held:        st.Held,
		Error:       st.Error,
		DiskError:   st.DiskError,
		Faults:      st.Faults,
	}
}

// services returns the services of snap, with the pools that they may choose.
func services(snap *gslb.Snapshot) []api.Service {
	out := make([]api.Service, 0, len(snap.Services))
	for _, svc := range snap.Services {
		a := api.Service{Name: svc.Name, Pools: []string{}}
		for _, p := range svc.Pools {
			a.Pools = append(a.Pools, p.Name)
		}
		out = append(out, a)
	}
	return out
}

// pools returns the pools of snap, with who drained them and why.
func pools(snap *gslb.Snapshot, objects *config.Objects) []api.Pool {
	out := make([]api.Pool, 0, len(snap.Pools))
	for _, p := range snap.Pools {
		a := api.Pool{
			Name:      p.Name,
			Site:      p.Site,
			Healthy:   p.Healthy,
			Degraded:  p.Degraded,
			Drained:   p.Drained,
			Endpoints: endpoints(p.Endpoints),
		}
		if p.Drained && objects != nil {
			a.Drain = drainOf(objects, p.Name)
		}
		out = append(out, a)
	}
	return out
}

// drainOf returns the state that drains the whole pool, or nil.
func drainOf(objects *config.Objects, pool string) *api.Drain {
	for _, st := range objects.States {
		if st.Pool == pool && st.Endpoint == (netip.Addr{}) && st.State == stateDrain {
			return &api.Drain{State: st.State, Author: st.Author, Reason: st.Reason, Since: st.Since, Until: st.Until}
		}
	}
	return nil
}

// endpoints are the engine's endpoints as they travel.
func endpoints(in []gslb.Endpoint) []api.Endpoint {
	out := make([]api.Endpoint, 0, len(in))
	for _, e := range in {
		out = append(out, api.Endpoint{
			Addr:    e.Addr,
			Port:    e.Port,
			Weight:  e.Weight,
			Verdict: e.Verdict.String(),
			Drained: e.Drained,
			Forced:  e.Forced,
		})
	}
	return out
}

// explain answers why a client is sent where.
func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	snap, ok := s.supposed(w, q)
	if !ok {
		return
	}
	if q.Get("name") == "" {
		fail(w, http.StatusBadRequest, "name is missing", "give name=www.example.com&client=198.51.100.7")
		return
	}
	svc := snap.Service(ownerName(q.Get("name")))
	if svc == nil {
		name := ownerName(q.Get("name"))
		if target := aliasOf(snap.Objects(), name); target != "" {
			fail(w, http.StatusNotFound, fmt.Sprintf("%s is an alias (CNAME) of %s", name, target), "ask for "+target)
			return
		}
		unknown(w, "service", q.Get("name"), serviceNames(snap))
		return
	}
	client, err := parseClient(q.Get("client"))
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error(), "give client=198.51.100.7, or a prefix as a resolver sends it: client=198.51.100.0/24")
		return
	}
	out := api.Explanation{Explanation: *snap.Explain(svc, client), Type: strings.ToUpper(q.Get("type"))}
	switch out.Type {
	case "":
	case "A", "AAAA":
		out.Answers = slices.DeleteFunc(slices.Clone(out.Answers), func(a netip.Addr) bool {
			return a.Is4() != (out.Type == "A")
		})
	default:
		fail(w, http.StatusBadRequest, fmt.Sprintf("type %q", q.Get("type")), "give A or AAAA: other types are not steered")
		return
	}
	reply(w, out)
}

// aliasOf returns what name is a CNAME to in a zone of o; "" where it is none.
func aliasOf(o *config.Objects, name string) string {
	if o == nil {
		return ""
	}
	for _, zone := range o.Zones {
		if !dns.IsSubDomain(dns.Fqdn(zone.Name), dns.Fqdn(name)) {
			continue
		}
		records := dns.NewZoneParser(strings.NewReader(zone.Records), dns.Fqdn(zone.Name), "")
		for rr, ok := records.Next(); ok; rr, ok = records.Next() {
			if alias, is := rr.(*dns.CNAME); is && ownerName(alias.Hdr.Name) == name {
				return ownerName(alias.Target)
			}
		}
	}
	return ""
}

// ownerName is name as the engine spells it: lower case, no trailing dot.
func ownerName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func serviceNames(snap *gslb.Snapshot) []string {
	out := make([]string, 0, len(snap.Services))
	for _, svc := range snap.Services {
		out = append(out, svc.Name)
	}
	return out
}

func poolNames(snap *gslb.Snapshot) []string {
	out := make([]string, 0, len(snap.Pools))
	for _, p := range snap.Pools {
		out = append(out, p.Name)
	}
	return out
}

// parseClient reads an address, or a prefix as an ECS option carries it.
func parseClient(text string) (gslb.Client, error) {
	if text == "" {
		return gslb.Client{}, fmt.Errorf("client is missing")
	}
	addr, err := netip.ParseAddr(text)
	bits := -1
	if err != nil {
		p, perr := netip.ParsePrefix(text)
		if perr != nil {
			return gslb.Client{}, fmt.Errorf("client %q is neither an address nor a prefix", text)
		}
		addr, bits = p.Masked().Addr(), p.Bits()
	}
	if addr.Is4In6() {
		addr, bits = addr.Unmap(), max(bits-96, -1)
	}
	if addr.Zone() != "" {
		return gslb.Client{}, fmt.Errorf("client %q has a zone", text)
	}
	if bits < 0 {
		bits = addr.BitLen()
	}
	return gslb.Client{Addr: addr, Source: uint8(bits)}, nil
}

// health answers what is known of the endpoints of a pool, or of all.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	out := api.Health{Endpoints: []health.View{}}
	pool := r.URL.Query().Get("pool")
	if pool != "" {
		snap, ok := s.snapshot(w)
		if !ok {
			return
		}
		if snap.Pool(pool) == nil {
			unknown(w, "pool", pool, poolNames(snap))
			return
		}
	}
	if s.o.Health != nil {
		for _, v := range s.o.Health() {
			if pool == "" || v.Pool == pool {
				out.Endpoints = append(out.Endpoints, v)
			}
		}
	}
	if s.o.Members != nil {
		out.Members = s.o.Members()
	}
	reply(w, out)
}
