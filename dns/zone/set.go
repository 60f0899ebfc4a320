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
	origins map[string]int32 // lower-case wire form, to zones
	zones   []served         // ordered by name in canonical order of Zone.Name
	depths  []int            // numbers of labels that the origins have, most first
}

// served is a zone and the services in it.
type served struct {
	zone     *Zone
	services *index // nodes that a service is at, and the empty non-terminals above them; nil: none
	depth    int    // most labels of any name
}

// NewSet puts zones and services together. services are indices by owner name in
// presentation form, lower case and without a trailing dot; the first label may be "*".
//
// A service answers A and AAAA at its name; other types are answered from the zone. The
// error joins every fault: two zones of one name, a service outside every zone or below a
// zone cut or a DNAME, one whose name has an A, AAAA or CNAME in the zone.
func NewSet(zones []*Zone, services map[string]int32) (*Set, error) {
	s := &Set{origins: make(map[string]int32, len(zones)), zones: make([]served, 0, len(zones))}
	var faults []error
	for _, z := range zones {
		key := string(AppendLower(nil, z.Origin))
		if _, there := s.origins[key]; there {
			faults = append(faults, fmt.Errorf("zone %s: there are two of that name", z.Name()))
			continue
		}
		s.origins[key] = int32(len(s.zones))
		s.zones = append(s.zones, served{zone: z, depth: z.names.depth})
		if !slices.Contains(s.depths, z.labels) {
			s.depths = append(s.depths, z.labels)
		}
	}
	slices.SortFunc(s.depths, func(a, b int) int { return cmp.Compare(b, a) })
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return s.WithServices(services)
}

// WithServices returns s with other services, as NewSet would. It shares everything else
// with s, and so costs little however large the zones are.
func (s *Set) WithServices(services map[string]int32) (*Set, error) {
	next := &Set{origins: s.origins, zones: slices.Clone(s.zones), depths: s.depths}
	for i := range next.zones {
		z := &next.zones[i]
		z.services, z.depth = nil, z.zone.names.depth
	}
	var faults []error
	placed := make(map[int32][]Node) // by zone
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
		next.zones[i].overlay(nodes)
	}
	return next, nil
}

// place returns the node of a service and the zone that it is in.
func (s *Set) place(owner string, service int32) (zone int32, n Node, err error) {
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
	z := s.zones[i].zone
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

// overlay lays the nodes of services over the zone, and the empty non-terminals that they
// make.
func (sv *served) overlay(nodes []Node) {
	there := make(map[string]bool, len(nodes))
	for i := range nodes {
		there[string(AppendLower(nil, nodes[i].Owner))] = true
	}
	for i := range nodes { // not those that are appended
		name := AppendLower(nil, nodes[i].Owner)
		for owner := nodes[i].Owner; countLabels(name) > sv.zone.labels+1; {
			owner, name = owner[1+owner[0]:], name[1+name[0]:]
			if there[string(name)] || sv.zone.find(name) != nil {
				break
			}
			there[string(name)] = true
			nodes = append(nodes, Node{Owner: owner, Service: -1, cut: -1})
		}
	}
	x := newIndex(nodes)
	sv.services = &x
	sv.depth = max(sv.depth, x.depth)
}

// Zones returns the zones of s, in the order that NewSet had.
func (s *Set) Zones() []*Zone {
	zones := make([]*Zone, len(s.zones))
	for i := range s.zones {
		zones[i] = s.zones[i].zone
	}
	return zones
}

// FindZone returns the closest zone at or above name (wire form, letters in lower case), or
// nil. It does not allocate.
func (s *Set) FindZone(name []byte) *Zone {
	var off offsets
	if i := s.enclosing(name, &off, labels(name, &off)); i >= 0 {
		return s.zones[i].zone
	}
	return nil
}
