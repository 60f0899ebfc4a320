package zone

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/miekg/dns"
)

// Set is every zone that is served, with the steered services in their places. It is
// immutable and safe for concurrent use.
type Set struct {
	zones    []*Zone
	slots    slots    // of zones, by origin
	depths   []int    // numbers of labels that the origins have, most first
	services []*index // by zone: nodes that a service is at, and the empty non-terminals above them; nil: none
}

// NewSet puts zones and services together. services are indices by owner name in
// presentation form, lower case and without a trailing dot; the first label may be "*".
//
// A service answers A and AAAA at its name; other types are answered from the zone. The
// error joins every fault: two zones of one name, a service outside every zone or below a
// zone cut or a DNAME, one whose name has an A, AAAA or CNAME in the zone.
func NewSet(zones []*Zone, services map[string]int32) (*Set, error) {
	s := &Set{zones: slices.Clone(zones), slots: newSlots(len(zones)), services: make([]*index, len(zones))}
	var faults []error
	var low [MaxName]byte
	for i, z := range zones {
		origin := AppendLower(low[:0], z.Origin)
		h := hash(origin)
		if s.zone(h, origin) >= 0 {
			faults = append(faults, fmt.Errorf("zone %s: there are two of that name", z.Name()))
		}
		s.slots.insert(h, i)
		if !slices.Contains(s.depths, z.labels) {
			s.depths = append(s.depths, z.labels)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	slices.SortFunc(s.depths, func(a, b int) int { return cmp.Compare(b, a) })
	return s.WithServices(services)
}

// WithServices returns s with other services, as NewSet would. It shares everything else
// with s, and so costs little however large the zones are.
func (s *Set) WithServices(services map[string]int32) (*Set, error) {
	next := *s
	next.services = make([]*index, len(s.zones))
	var faults []error
	placed := make(map[int][]Node) // by zone
	for _, owner := range slices.Sorted(maps.Keys(services)) {
		zone, n, err := next.place(owner, services[owner])
		if err != nil {
			faults = append(faults, err)
			continue
		}
		placed[zone] = append(placed[zone], n)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	for i, nodes := range placed {
		next.services[i] = overlay(s.zones[i], nodes)
	}
	return &next, nil
}

// place returns the node of a service and the zone that it is in.
func (s *Set) place(owner string, service int32) (zone int, n Node, err error) {
	name, err := FromString(owner)
	if err != nil {
		return 0, Node{}, fmt.Errorf("service %w", err)
	}
	low := AppendLower(nil, name)
	var off offsets
	i := s.enclosing(low, &off, labels(low, &off))
	if i < 0 {
		return 0, Node{}, fmt.Errorf("service %s: in no zone that is served", owner)
	}
	z := s.zones[i]
	n = Node{Owner: name, Service: service, cut: -1}
	static := z.find(low)
	closest := static
	if static == nil {
		closest = z.encloser(low)
	}
	if cut, delegation := z.cutOf(closest); delegation {
		return 0, Node{}, fmt.Errorf("service %s: zone %s ends at the zone cut %s", owner, z.Name(), ToString(cut.Owner))
	} else if cut != nil && cut != static {
		return 0, Node{}, fmt.Errorf("service %s: zone %s ends at the DNAME %s", owner, z.Name(), ToString(cut.Owner))
	}
	if static == nil {
		return i, n, nil
	}
	for _, t := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeCNAME} {
		if static.RRset(t) != nil {
			return 0, Node{}, fmt.Errorf("service %s: zone %s has %s at %s: a name is steered or static", owner, z.Name(), dns.Type(t), ToString(static.Owner))
		}
	}
	n.Owner, n.RRsets, n.cut = static.Owner, static.RRsets, static.cut
	return i, n, nil
}

// encloser returns the closest encloser of a name below the apex that is not in z.
func (z *Zone) encloser(name []byte) *Node {
	for {
		name = name[1+name[0]:]
		if n := z.find(name); n != nil {
			return n
		}
	}
}

// overlay indexes the nodes of the services in z, and the empty non-terminals that they make.
func overlay(z *Zone, nodes []Node) *index {
	there := make(map[string]bool, len(nodes))
	for i := range nodes {
		there[string(AppendLower(nil, nodes[i].Owner))] = true
	}
	for i := range nodes { // not those that are appended
		name := AppendLower(nil, nodes[i].Owner)
		for owner := nodes[i].Owner; len(name) > len(z.Origin); {
			owner, name = owner[1+owner[0]:], name[1+name[0]:]
			if there[string(name)] || z.find(name) != nil {
				break // and so is every name above it
			}
			there[string(name)] = true
			nodes = append(nodes, Node{Owner: owner, Service: -1, cut: -1})
		}
	}
	hashes := make([]uint64, len(nodes))
	for i := range nodes {
		hashes[i] = hash(AppendLower(nil, nodes[i].Owner))
	}
	x := newIndex(nodes, hashes)
	return &x
}

// Zones returns the zones of s, in the order that NewSet had.
func (s *Set) Zones() []*Zone { return slices.Clone(s.zones) }

// FindZone returns the closest zone at or above name (wire form, letters in lower case), or
// nil. It does not allocate.
func (s *Set) FindZone(name []byte) *Zone {
	var off offsets
	if i := s.enclosing(name, &off, labels(name, &off)); i >= 0 {
		return s.zones[i]
	}
	return nil
}

// enclosing returns the number of the closest zone at or above a name of n labels, or -1.
func (s *Set) enclosing(name []byte, off *offsets, n int) int { return s.above(name, off, n, n) }

// above is enclosing for zones of at most most labels.
func (s *Set) above(name []byte, off *offsets, n, most int) int {
	for _, d := range s.depths {
		if d > most {
			continue
		}
		origin := name[off[n-d]:]
		if i := s.zone(hash(origin), origin); i >= 0 {
			return i
		}
	}
	return -1
}

// zone returns the number of the zone of that name in lower case and its hash, or -1.
func (s *Set) zone(h uint64, name []byte) int {
	return s.slots.search(h, func(i int) bool { return sameName(s.zones[i].Origin, name) })
}
