package gslb

import (
	"maps"
	"math"
	"net/netip"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// earthRadius is the mean radius in km (IUGG).
const earthRadius = 6371.0088

// spot is a point on Earth as a unit vector, or no known point: the zero spot.
type spot struct {
	x, y, z float64
	known   bool
}

// spotAt returns the spot at those degrees.
func spotAt(lat, lon float64) spot {
	sinLat, cosLat := math.Sincos(lat * math.Pi / 180)
	sinLon, cosLon := math.Sincos(lon * math.Pi / 180)
	return spot{cosLat * cosLon, cosLat * sinLon, sinLat, true}
}

// cos returns the cosine of the angle between two known spots, which falls as they are
// farther apart. Products are rounded before they are added, so that every architecture
// finds the same.
func (s *spot) cos(o *spot) float64 {
	return float64(s.x*o.x) + float64(s.y*o.y) + float64(s.z*o.z)
}

// km returns the great-circle distance between two known spots. Half the chord keeps its
// precision for spots that are close.
func (s *spot) km(o *spot) float64 {
	x, y, z := s.x-o.x, s.y-o.y, s.z-o.z
	return 2 * earthRadius * math.Asin(min(1, math.Sqrt(x*x+y*y+z*z)/2))
}

// world is a map as the stages of a policy see it, laid over the prefixes that the policy
// names. It is immutable.
type world struct {
	geo     *geo.Map
	sites   map[string]config.Site
	places  []geo.Place // of geo, with what the site of each adds
	spots   []spot      // by place
	key     string      // of the snapshot's worlds
	marks   []netip.Prefix
	classes *geo.Classes
}

// newWorld returns the world of m, which may be nil, under those prefixes. like, which may be
// nil, is a world of the same map and sites.
func newWorld(like *world, m *geo.Map, sites map[string]config.Site, marks []netip.Prefix) *world {
	w := &world{geo: m, sites: sites, marks: marks, classes: geo.NewClasses(m, marks)}
	if like != nil {
		w.places, w.spots = like.places, like.spots
		return w
	}
	places := []geo.Place{{}}
	if m != nil {
		places = m.Places()
	}
	w.places, w.spots = make([]geo.Place, len(places)), make([]spot, len(places))
	for i, p := range places {
		w.places[i] = settled(p, sites)
		w.spots[i] = spotOf(&p, sites)
	}
	return w
}

// same reports whether w is of that map and those sites.
func (w *world) same(m *geo.Map, sites map[string]config.Site) bool {
	return w.geo == m && maps.Equal(w.sites, sites)
}

// locus returns that of a class.
func (w *world) locus(c geo.Class) locus {
	l := locus{spot: w.spots[c.Place], place: &w.places[c.Place]}
	if c.Mark >= 0 {
		l.prefix = w.marks[c.Mark]
	}
	return l
}

// find returns the locus of an address.
func (w *world) find(addr netip.Addr) locus {
	i, _ := w.classes.Lookup(addr)
	return w.locus(w.classes.All()[i])
}

// settled returns p with what is known of its site.
func settled(p geo.Place, sites map[string]config.Site) geo.Place {
	s, ok := sites[p.Site]
	if !ok {
		return p
	}
	l := locusOf(p.Site, s)
	if p.Country == "" {
		p.Country, p.Subdivision, p.City = l.place.Country, l.place.Subdivision, l.place.City
	}
	if p.Continent == "" {
		p.Continent = l.place.Continent
	}
	return p
}

// spotOf returns where p is: at its site if that has one, else at its coordinates.
func spotOf(p *geo.Place, sites map[string]config.Site) spot {
	if s, ok := sites[p.Site]; ok {
		return spotAt(s.Lat, s.Lon)
	}
	if p.Located {
		return spotAt(p.Lat, p.Lon)
	}
	return spot{}
}
