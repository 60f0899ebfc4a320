// Package geo places addresses: it reads MaxMind databases and prefix overrides into one
// immutable Map, and answers with the place and with the scope of that answer.
//
// A Table is the same for any value that depends on the place alone: it partitions the
// address space into the largest prefixes that each have one value, which is what an
// answer's scope (RFC 7871) should be.
package geo

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Place is where an address is, as well as the databases know. Empty fields are unknown.
type Place struct {
	Lat         float64 `json:"lat,omitempty"` // degrees; meaningful only if Located
	Lon         float64 `json:"lon,omitempty"`
	Located     bool    `json:"located,omitempty"`
	Continent   string  `json:"continent,omitempty"`   // two letters
	Country     string  `json:"country,omitempty"`     // ISO 3166-1 alpha-2
	Subdivision string  `json:"subdivision,omitempty"` // ISO 3166-2 without the country
	City        string  `json:"city,omitempty"`        // English name
	ASN         uint32  `json:"asn,omitempty"`
	Site        string  `json:"site,omitempty"` // set by an override that names a site
}

// Map is a partition of the IPv4 and IPv6 space into prefixes, each with one Place. It is
// immutable and safe for concurrent use.
type Map struct {
	places    []Place // distinct; places[0] is the place of what nobody knows
	table     Table   // its values index places
	databases []Database

	summing sync.Once // fills digest when it is asked for
	digest  string
}

// Database describes a file that a Map was read from.
type Database struct {
	Path     string    `json:"path"`
	Type     string    `json:"type"`     // as the file says: "GeoLite2-City"
	Built    time.Time `json:"built"`    // when its maker made it
	Networks int       `json:"networks"` // prefixes with data, IPv4 and IPv6
}

// Lookup returns the place of addr and the scope of that answer: how many leading bits of
// addr it depended on, 0..32 for IPv4 and 0..128 for IPv6. Every address that shares those
// bits is at the same place (RFC 7871, section 7.2.1). An IPv4-mapped address is looked up
// as IPv4. An address outside the map is at the zero Place, with a scope just long enough
// to say so. Lookup does not allocate. The place belongs to the map.
//
// A 6to4 address (RFC 3056) and one of NAT64's well-known prefix (RFC 6052) are where the
// IPv4 address inside them is; their scope counts IPv6 bits.
func (m *Map) Lookup(addr netip.Addr) (p *Place, scope uint8) {
	i, scope := m.table.Lookup(addr)
	return &m.places[i], scope
}

// Places returns the distinct places of the map; the first is the zero Place, of what
// nobody knows. The slice belongs to the map.
func (m *Map) Places() []Place { return m.places }

// Databases returns what the map was read from. The slice belongs to the map.
func (m *Map) Databases() []Database { return m.databases }

// Digest returns a hash of what m says of addresses, in hex: maps with equal ones place every
// address alike. A nil map has one too. It takes time in proportion to the map, once.
func (m *Map) Digest() string {
	if m == nil {
		m = &Map{places: []Place{{}}}
	}
	m.summing.Do(func() {
		h := sha256.New()
		for _, p := range m.places {
			fmt.Fprintf(h, "%q\n", fmt.Sprint(p))
		}
		for _, s := range []*space{&m.table.v4, &m.table.v6} {
			for _, part := range []any{s.hi, s.lo, s.value, s.bits} {
				if err := binary.Write(h, binary.BigEndian, part); err != nil {
					panic(err) // a hash takes all, and these are of fixed size
				}
			}
		}
		m.digest = hex.EncodeToString(h.Sum(nil)[:16])
	})
	return m.digest
}

// Len returns the number of prefixes that the map tells apart in each family.
func (m *Map) Len() (v4, v6 int) { return m.table.Len() }

// All yields every prefix of the map with the index of its place in Places, IPv4 first and
// in the order of addresses. Neighbours with one place come as the prefix that holds both.
// The IPv6 ranges that embed IPv4 are left out: they repeat the IPv4 part.
func (m *Map) All() iter.Seq2[netip.Prefix, uint32] { return m.table.All() }

// Override places a prefix by hand. The longest override that holds an address beats the
// databases, but for the ASN, which they still know best when Place.ASN is zero.
type Override struct {
	Prefix netip.Prefix
	Place  Place
}

// world is what one Map is made of, before it is one: per source a partition of each
// family, or nil where there is no such source.
type world struct {
	city, asn, override layers
	cities              []Place // values of city
	overrides           []Place // values of override; overrides[0] stands for none
}

// layers are the partitions of both families by one source.
type layers struct{ v4, v6 []leaf }

// compile lays the sources over each other and keeps the distinct places.
func (w *world) compile() *Map {
	m := &Map{}
	seen := make(map[Place]uint32)
	intern := func(p Place) uint32 {
		i, ok := seen[p]
		if !ok {
			i = uint32(len(m.places))
			seen[p] = i
			m.places = append(m.places, p)
		}
		return i
	}
	intern(Place{})

	known := make(map[[2]uint32]uint32) // (city, ASN) to place
	base := func(city, asn uint32) uint32 {
		i, ok := known[[2]uint32{city, asn}]
		if !ok {
			p := w.cities[city]
			p.ASN = asn
			i = intern(p)
			known[[2]uint32{city, asn}] = i
		}
		return i
	}
	beat := func(place, override uint32) uint32 {
		if override == 0 {
			return place
		}
		p := w.overrides[override]
		if p.ASN == 0 {
			p.ASN = m.places[place].ASN
		}
		return intern(p)
	}
	family := func(city, asn, override []leaf) []leaf {
		return overlay(overlay(city, asn, base), override, beat)
	}
	v4 := family(w.city.v4, w.asn.v4, w.override.v4)
	v6 := family(w.city.v6, w.asn.v6, w.override.v6)
	v6 = overlay(v6, paint(holes), func(place, hole uint32) uint32 {
		if hole != 0 {
			return embedded
		}
		return place
	})
	m.drop(v4, v6)
	m.table.fill(v4, v6)
	return m
}

// drop forgets the places that no prefix of those families has any more, for an override hid
// them all, and renumbers the others.
func (m *Map) drop(families ...[]leaf) {
	const unused = embedded
	move := slices.Repeat([]uint32{unused}, len(m.places))
	move[0] = 0
	for _, leaves := range families {
		for _, l := range leaves {
			if l.value != embedded {
				move[l.value] = 0
			}
		}
	}
	kept := m.places[:0]
	for i, p := range m.places {
		if move[i] != unused {
			move[i] = uint32(len(kept))
			kept = append(kept, p)
		}
	}
	m.places = slices.Clip(kept)
	for _, leaves := range families {
		for i, l := range leaves {
			if l.value != embedded {
				leaves[i].value = move[l.value]
			}
		}
	}
}
