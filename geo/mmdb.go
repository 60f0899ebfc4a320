package geo

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/oschwald/geoip2-golang/v2"
	"github.com/oschwald/maxminddb-golang/v2"
)

// Config says what a Map is made of. Every part is optional.
type Config struct {
	City      string // path of a MaxMind City, Enterprise or Country database
	ASN       string // path of a MaxMind ASN or ISP database
	Overrides []Override
}

// Open reads the files of c, whole, and returns the map. Its error names every file or
// override at fault and what was expected.
func Open(c Config) (*Map, error) {
	w := world{cities: []Place{{}}, overrides: []Place{{}}}
	none := paint(nil)
	w.city, w.asn, w.override = layers{none, none}, layers{none, none}, layers{none, none}

	var databases []Database
	var faults []error
	read := func(path, want string, types []string, into *layers, record func(maxminddb.Result) (uint32, error)) {
		if path == "" {
			return
		}
		l, d, err := readFile(path, want, types, record)
		if err != nil {
			faults = append(faults, fmt.Errorf("geo: %s: %w", path, err))
			return
		}
		*into = l
		databases = append(databases, d)
	}
	read(c.City, "City or Country", []string{"City", "Country", "Enterprise"}, &w.city, func(r maxminddb.Result) (uint32, error) {
		p, err := placeOf(r)
		w.cities = append(w.cities, p)
		return uint32(len(w.cities) - 1), err
	})
	read(c.ASN, "ASN", []string{"ASN", "ISP"}, &w.asn, func(r maxminddb.Result) (uint32, error) {
		var a geoip2.ASN
		err := r.Decode(&a)
		return uint32(a.AutonomousSystemNumber), err
	})
	faults = append(faults, w.setOverrides(c.Overrides)...)
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	m := w.compile()
	m.databases = databases
	return m, nil
}

// setOverrides checks the overrides and paints them.
func (w *world) setOverrides(overrides []Override) (faults []error) {
	var v4, v6 []leaf
	seen := make(map[netip.Prefix]bool, len(overrides))
	for _, o := range overrides {
		if err := checkOverride(o, seen); err != nil {
			faults = append(faults, fmt.Errorf("geo: override %s: %w", o.Prefix, err))
			continue
		}
		seen[o.Prefix] = true
		l := leafOf(o.Prefix, uint32(len(w.overrides)))
		w.overrides = append(w.overrides, o.Place)
		if o.Prefix.Addr().Is4() {
			v4 = append(v4, l)
		} else {
			v6 = append(v6, l)
		}
	}
	w.override = layers{paint(v4), paint(v6)}
	return faults
}

func checkOverride(o Override, seen map[netip.Prefix]bool) error {
	switch {
	case !o.Prefix.IsValid():
		return errors.New("expected a prefix such as 192.0.2.0/24")
	case o.Prefix != o.Prefix.Masked():
		return fmt.Errorf("bits are set past its length, expected %s", o.Prefix.Masked())
	case seen[o.Prefix]:
		return errors.New("is given twice")
	case o.Place.Located && !onEarth(o.Place.Lat, o.Place.Lon):
		return fmt.Errorf("lat %v, lon %v: expected -90..90 and -180..180", o.Place.Lat, o.Place.Lon)
	}
	l := leafOf(o.Prefix, 0)
	if slices.ContainsFunc(holes, func(h leaf) bool { return o.Prefix.Addr().Is6() && h.holds(l) }) || o.Prefix.Addr().Is4In6() && l.bits >= 96 {
		return errors.New("these addresses embed IPv4 and are placed by it; expected the IPv4 prefix")
	}
	return nil
}

// readFile reads one database whole. want names the kind that is expected, and types the
// words of which its type must have one. record turns the record of a network to a value; it
// is called once for each distinct record.
func readFile(path, want string, types []string, record func(maxminddb.Result) (uint32, error)) (layers, Database, error) {
	// The file is read rather than mapped: a mapped one that is cut short while it is
	// read ends the process.
	b, err := readRegular(path)
	if err != nil {
		return layers{}, Database{}, fmt.Errorf("expected a MaxMind %s database: %w", want, err)
	}
	r, err := maxminddb.OpenBytes(b)
	if err != nil {
		return layers{}, Database{}, fmt.Errorf("expected a MaxMind %s database, this is none or is cut short: %w", want, err)
	}
	defer r.Close()
	if !hasWord(r.Metadata.DatabaseType, types) {
		return layers{}, Database{}, fmt.Errorf("expected a MaxMind %s database, this is of type %q", want, r.Metadata.DatabaseType)
	}
	v4, v6, err := walk(r, record)
	if err != nil {
		return layers{}, Database{}, fmt.Errorf("corrupt MaxMind %s database: %w", want, err)
	}
	d := Database{
		Path: path, Type: r.Metadata.DatabaseType,
		Built:    time.Unix(int64(r.Metadata.BuildEpoch), 0).UTC(),
		Networks: len(v4) + len(v6),
	}
	return layers{paint(v4), paint(v6)}, d, nil
}

// readRegular reads a regular file; of what is none, such as a pipe, the reading may never end.
func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Unwrap(err) // the path is told already
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("this is no regular file"))
	}
	var b bytes.Buffer
	b.Grow(int(info.Size()) + bytes.MinRead)
	_, err = b.ReadFrom(f)
	return b.Bytes(), err
}

func hasWord(s string, words []string) bool {
	for _, w := range words {
		if strings.Contains(s, w) {
			return true
		}
	}
	return false
}

// walk returns the networks of r that have data. A record that many networks share is
// read once.
func walk(r *maxminddb.Reader, record func(maxminddb.Result) (uint32, error)) (v4, v6 []leaf, err error) {
	values := make(map[uintptr]uint32) // by the record's offset
	for n := range r.Networks() {
		if err := n.Err(); err != nil {
			return nil, nil, err
		}
		v, ok := values[n.Offset()]
		if !ok {
			if v, err = record(n); err != nil {
				return nil, nil, fmt.Errorf("network %s: %w", n.Prefix(), err)
			}
			values[n.Offset()] = v
		}
		if l := leafOf(n.Prefix(), v); n.Prefix().Addr().Is4() {
			v4 = append(v4, l)
		} else {
			v6 = append(v6, l)
		}
	}
	return v4, v6, nil
}

// city is the part of geoip2.City that steering reads; the rest of a record, mostly names
// in eight languages, takes three times as long to read.
type city struct {
	Continent struct {
		Code string `maxminddb:"code"`
	} `maxminddb:"continent"`
	Country struct {
		ISOCode string `maxminddb:"iso_code"`
	} `maxminddb:"country"`
	Registered struct {
		ISOCode string `maxminddb:"iso_code"`
	} `maxminddb:"registered_country"`
	Subdivisions []struct {
		ISOCode string `maxminddb:"iso_code"`
	} `maxminddb:"subdivisions"`
	City struct {
		Names struct {
			English string `maxminddb:"en"`
		} `maxminddb:"names"`
	} `maxminddb:"city"`
	Location struct {
		Latitude  *float64 `maxminddb:"latitude"`
		Longitude *float64 `maxminddb:"longitude"`
	} `maxminddb:"location"`
}

// placeOf reads a record of a City or Country database. Coordinates that are not on Earth
// are as good as none.
func placeOf(r maxminddb.Result) (Place, error) {
	var c city
	if err := r.Decode(&c); err != nil {
		return Place{}, err
	}
	p := Place{Continent: c.Continent.Code, Country: c.Country.ISOCode, City: c.City.Names.English}
	if p.Country == "" {
		p.Country = c.Registered.ISOCode
	}
	if len(c.Subdivisions) > 0 {
		p.Subdivision = c.Subdivisions[0].ISOCode
	}
	if lat, lon := c.Location.Latitude, c.Location.Longitude; lat != nil && lon != nil && onEarth(*lat, *lon) {
		p.Lat, p.Lon, p.Located = *lat, *lon, true
	}
	return p, nil
}

func onEarth(lat, lon float64) bool { return math.Abs(lat) <= 90 && math.Abs(lon) <= 180 }
