package dns

import (
	"encoding/binary"
	"net/netip"

	"github.com/meridian-gslb/meridian/dns/zone"
	"github.com/meridian-gslb/meridian/gslb"
)

// What goes along with an answer: addresses of the names that it leads to (RFC 1034, section
// 4.3.2, step 6), and the hints of SVCB and HTTPS (RFC 9460).

// addReferral adds the NS RRset of a zone cut and the glue that is known. Glue at or below
// the cut must not be left out without TC (RFC 9471, section 3.1); other glue may.
func (a *answerer) addReferral(d *Data, owner []byte) {
	cut := a.res.Node.Owner
	a.addRRset(inAuthority, ending(owner, cut), a.res.RRset)
	for _, ns := range a.res.RRset.RData {
		a.addAddresses(d, ns, !below(ns, cut))
	}
}

// addTargets adds the addresses of the names that the RRs of rrset, found at owner, lead to
// (RFC 1035, sections 3.3.9 and 3.3.11; RFC 2782; RFC 9460, section 4.1).
func (a *answerer) addTargets(d *Data, owner []byte, rrset *zone.RRset) {
	switch rrset.Type {
	case typeNS:
		for _, rdata := range rrset.RData {
			a.addAddresses(d, rdata, true)
		}
	case typeMX:
		for _, rdata := range rrset.RData {
			a.addAddresses(d, rdata[2:], true)
		}
	case typeSRV:
		for _, rdata := range rrset.RData {
			a.addAddresses(d, rdata[6:], true)
		}
	case typeSVCB, typeHTTPS:
		for _, rdata := range rrset.RData {
			target, alias := svcbTarget(rdata, owner)
			if target == nil {
				continue
			}
			if alias { // one link of it: the client follows the rest
				a.addAliased(d, target, rrset.Type)
			}
			a.addAddresses(d, target, true)
		}
	}
}

// addAliased adds what the target of an alias has of that type: the RRs of its zone, or those of the
// service that is there, decided for the same client as the answer.
func (a *answerer) addAliased(d *Data, target []byte, rtype uint16) {
	n, r := d.Zones.Node(target), &a.r
	if n == nil || r.n == maxSets || r.holds(rtype, target) {
		return
	}
	if set := n.RRset(rtype); set != nil {
		s := r.add(inAdditional, target, rtype, set.TTL)
		s.rrset, s.optional = set, true
		a.hint(d, s, n.Service)
		return
	}
	if n.Service < 0 || !answersTargets(d.Snapshot.Services[n.Service], rtype) {
		return
	}
	v4, v6, ttl := a.along(d, n.Service)
	if rdatas := a.targets(&a.second, target, rtype, v4, v6); len(rdatas) > 0 {
		s := r.add(inAdditional, target, rtype, ttl)
		s.rdata, s.optional = rdatas, true
	}
}

// addAddresses adds the A and AAAA RRsets of name, once: those of the zones, or those of the
// service that is there, decided for the same client as the answer.
func (a *answerer) addAddresses(d *Data, name []byte, optional bool) {
	n := d.Zones.Node(name)
	if n == nil {
		return
	}
	if n.Service >= 0 {
		a.addSteeredAddresses(d, name, n.Service)
		return
	}
	for _, rrset := range [...]*zone.RRset{n.RRset(typeA), n.RRset(typeAAAA)} {
		if rrset == nil || a.r.n == maxSets || a.r.holds(rrset.Type, name) {
			continue
		}
		s := a.r.add(inAdditional, name, rrset.Type, rrset.TTL)
		s.rrset, s.optional = rrset, optional
	}
}

// addSteeredAddresses adds what the service at name answers to this client, once. It counts as
// no decision: nobody asked for it, and many throw it away.
func (a *answerer) addSteeredAddresses(d *Data, name []byte, service int32) {
	for i := range a.r.sets[:a.r.n] {
		if s := &a.r.sets[i]; s.addrs != nil && equalFold(s.owner, name) {
			return
		}
	}
	v4, v6, ttl := a.along(d, service)
	for _, addrs := range [...][]netip.Addr{v4, v6} {
		if len(addrs) == 0 || a.r.n == maxSets {
			continue
		}
		rtype := typeA
		if addrs[0].Is6() {
			rtype = typeAAAA
		}
		s := a.r.add(inAdditional, name, rtype, ttl)
		s.addrs, s.optional = addrs, true
	}
}

// along decides for the client on a service that the answer only leads to. The scope covers
// all of a reply. No addresses are none, or a name in their place.
func (a *answerer) along(d *Data, service int32) (v4, v6 []netip.Addr, ttl uint32) {
	client, fromECS := a.q.client()
	d.Snapshot.Decide(d.Snapshot.Services[service], client, &a.second)
	if fromECS {
		a.r.scope = max(a.r.scope, a.q.edns.ecs.scope(&a.second))
	}
	if a.second.Fallback != "" {
		return nil, nil, a.second.TTL
	}
	id := a.follow.id // the answer's own
	v4, v6 = a.r.keep(a.second.V4), a.r.keep(a.follow.identify(d.Snapshot, &a.second, a.second.V6, a.start))
	a.follow.id = id
	return v4, v6, a.second.TTL
}

// keep returns a copy of addrs that stays until the next query: the decision that they are of
// may be made anew.
func (r *reply) keep(addrs []netip.Addr) []netip.Addr {
	start := len(r.addrs)
	r.addrs = append(r.addrs, addrs...)
	return r.addrs[start:len(r.addrs):len(r.addrs)]
}

// Keys of SVCB parameters (RFC 9460, section 14.3.2).
const (
	svcbALPN     = 1
	svcbPort     = 3
	svcbIPv4Hint = 4
	svcbIPv6Hint = 6
)

// svcbTarget returns where the RR of SVCB or HTTPS at owner leads, and whether it is in alias
// mode. A target of "." is owner in service mode, and nothing in alias mode (RFC 9460, section
// 2.5): nil.
func svcbTarget(rdata, owner []byte) (target []byte, alias bool) {
	alias = be16(rdata) == 0
	target = rdata[2:][:nameLen(rdata[2:])]
	if len(target) == 1 {
		if target = owner; alias {
			target = nil
		}
	}
	return target, alias
}

// addSteeredTargets adds the RRs of SVCB, HTTPS or SRV of the service that was decided on, and the
// addresses of the names that they lead to.
func (a *answerer) addSteeredTargets(d *Data, owner []byte) {
	qtype := a.q.qtype
	rdatas := a.targets(&a.d, owner, qtype, a.d.V4, a.follow.identify(d.Snapshot, &a.d, a.d.V6, a.start))
	if len(rdatas) == 0 {
		a.r.outcome = zone.NoData
		a.addSOA(owner, a.d.TTL)
		return
	}
	a.add(inAnswer, owner, qtype, a.d.TTL).rdata = rdatas
	for _, rdata := range rdatas {
		target := rdata[6:]
		if qtype != typeSRV {
			target, _ = svcbTarget(rdata, owner)
		}
		a.addAddresses(d, target, true)
	}
}

// targets returns the rdata of SVCB, HTTPS or SRV at owner by a decision on the service there: its
// pools, best first, with growing SvcPriority (RFC 9460, section 2.4.1) or priority (RFC 2782). v4
// and v6 are what A and AAAA answer: the hints of the pool that these name.
func (a *answerer) targets(by *gslb.Decision, owner []byte, rtype uint16, v4, v6 []netip.Addr) [][]byte {
	r, start := &a.r, len(a.r.rdatas)
	service, most := by.Service, 0
	if rtype == typeSRV {
		most = service.SRV.Pools
	} else {
		most = service.HTTPS.Pools
	}
	if most == 0 {
		most = defaultTargets
	}
	for i := range by.Targets[:min(most, len(by.Targets))] {
		t := &by.Targets[i]
		at := len(r.names)
		r.names = binary.BigEndian.AppendUint16(r.names, t.Priority)
		if rtype == typeSRV {
			port := service.SRV.Port
			if port == 0 {
				port = t.Port
			}
			r.names = binary.BigEndian.AppendUint16(append(r.names, 0, 0), port)
			if t.Name == "" {
				r.names = append(r.names, owner...)
			} else {
				r.names = appendText(r.names, t.Name)
			}
		} else {
			hints4, hints6 := t.V4, t.V6
			if t.Pool == by.Pool {
				hints4, hints6 = v4, v6
			}
			r.names = appendText(r.names, t.Name)
			r.names = appendParams(r.names, service.HTTPS.ALPN, service.HTTPS.Port, hints4, hints6)
		}
		r.rdatas = append(r.rdatas, r.names[at:len(r.names):len(r.names)])
	}
	return r.rdatas[start:len(r.rdatas):len(r.rdatas)]
}

// defaultTargets is how many pools SVCB, HTTPS and SRV name by default, as the engine has it.
const defaultTargets = 2

// appendParams appends parameters of SVCB in the order of their keys (RFC 9460, section 2.2);
// what is empty or 0 is left out.
func appendParams(b []byte, alpn []string, port uint16, v4, v6 []netip.Addr) []byte {
	if len(alpn) > 0 {
		b = binary.BigEndian.AppendUint16(b, svcbALPN)
		at := len(b)
		b = append(b, 0, 0)
		for _, protocol := range alpn {
			b = append(append(b, byte(len(protocol))), protocol...)
		}
		binary.BigEndian.PutUint16(b[at:], uint16(len(b)-at-2))
	}
	if port != 0 {
		b = binary.BigEndian.AppendUint16(append(b, 0, svcbPort, 0, 2), port)
	}
	if len(v4) > 0 {
		b = appendHint(b, svcbIPv4Hint, v4)
	}
	if len(v6) > 0 {
		b = appendHint(b, svcbIPv6Hint, v6)
	}
	return b
}

// hint gives s, an RRset of SVCB or HTTPS, the hints that agree with what its targets' services
// answer to this client as A and AAAA. Hints of the zone stay where no service is the target.
// own is the service at s's owner, or -1.
func (a *answerer) hint(d *Data, s *set, own int32) {
	r := &a.r
	start := len(r.rdatas)
	for i, rdata := range s.rrset.RData {
		target, alias := svcbTarget(rdata, s.owner)
		if target == nil || alias {
			continue
		}
		service := int32(-1)
		if len(target) == len(s.owner) && equalFold(target, s.owner) {
			service = own
		} else if n := d.Zones.Node(target); n != nil {
			service = n.Service
		}
		if service < 0 {
			continue
		}
		v4, v6, ttl := a.along(d, service)
		if len(r.rdatas) == start {
			r.rdatas = append(r.rdatas, s.rrset.RData...)
		}
		at := len(r.names)
		r.names = appendHints(r.names, rdata, v4, v6)
		r.rdatas[start+i] = r.names[at:len(r.names):len(r.names)]
		s.ttl = min(s.ttl, ttl)
	}
	if len(r.rdatas) > start {
		s.rdata = r.rdatas[start:len(r.rdatas):len(r.rdatas)]
	}
}

// appendHints appends rdata of SVCB or HTTPS with these hints in the place of its own. Keys
// stay in their order (RFC 9460, section 2.2). An empty list is no hint.
func appendHints(b, rdata []byte, v4, v6 []netip.Addr) []byte {
	params := 2 + nameLen(rdata[2:])
	b = append(b, rdata[:params]...)
	done4, done6 := len(v4) == 0, len(v6) == 0
	before := func(key uint16) {
		if !done4 && key > svcbIPv4Hint {
			b, done4 = appendHint(b, svcbIPv4Hint, v4), true
		}
		if !done6 && key > svcbIPv6Hint {
			b, done6 = appendHint(b, svcbIPv6Hint, v6), true
		}
	}
	for p := rdata[params:]; len(p) >= 4; {
		key, l := be16(p), 4+int(be16(p[2:]))
		if key != svcbIPv4Hint && key != svcbIPv6Hint {
			before(key)
			b = append(b, p[:l]...)
		}
		p = p[l:]
	}
	before(1<<16 - 1)
	return b
}

func appendHint(b []byte, key uint16, addrs []netip.Addr) []byte {
	b = binary.BigEndian.AppendUint16(b, key)
	b = binary.BigEndian.AppendUint16(b, uint16(len(addrs)*addrs[0].BitLen()/8))
	for _, addr := range addrs {
		if addr.Is4() {
			octets := addr.As4()
			b = append(b, octets[:]...)
		} else {
			octets := addr.As16()
			b = append(b, octets[:]...)
		}
	}
	return b
}
