package gslb

import (
	"maps"
	"math"

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

// world is a map as the stages see it. It is immutable.
type world struct {
	geo   *geo.Map
	sites map[string]config.Site
	spots []spot // by place of geo
}

// newWorld returns the world of m, or old if that is the same.
func newWorld(old *world, m *geo.Map, sites map[string]config.Site) *world {
	if old != nil && old.geo == m && maps.Equal(old.sites, sites) {
		return old
	}
	w := &world{geo: m, sites: sites, spots: make([]spot, len(m.Places()))}
	for i, p := range m.Places() {
		w.spots[i] = spotOf(&p, sites)
	}
	return w
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
