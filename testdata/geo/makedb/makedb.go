// Package makedb makes MaxMind City databases for the demo, for tests and for benchmarks.
package makedb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// Epoch is the build time that every database made here carries, in seconds since 1970, so
// that the same input makes the same bytes.
const Epoch = 1_767_225_600 // 2026-01-01

// DefaultType is the database type unless another is asked for.
const DefaultType = "Meridian-City"

// City is a place as a City database describes it.
type City struct {
	Name, Subdivision, Country, Continent string
	Lat, Lon                              float64
}

// Network is a network with its place.
type Network struct {
	Prefix netip.Prefix
	City   City
}

// Read reads a table: lines of network, city, subdivision, country, continent, latitude,
// longitude, separated by commas. Blank lines and those that start with # are left out.
// Its error names the line, what stands there and what was expected, for every fault.
func Read(r io.Reader) ([]Network, error) {
	c := csv.NewReader(bufio.NewReader(r))
	c.Comment, c.TrimLeadingSpace, c.FieldsPerRecord, c.ReuseRecord = '#', true, 7, true
	var networks []Network
	var faults []error
	for {
		f, err := c.Read()
		if err == io.EOF {
			return networks, errors.Join(faults...)
		}
		if err != nil {
			return nil, errors.Join(append(faults, err)...)
		}
		line, _ := c.FieldPos(0)
		n, err := parse(f)
		if err != nil {
			faults = append(faults, fmt.Errorf("line %d: %w", line, err))
			continue
		}
		networks = append(networks, n)
	}
}

func parse(f []string) (Network, error) {
	p, err := netip.ParsePrefix(f[0])
	if err != nil || p != p.Masked() {
		return Network{}, fmt.Errorf("network %q: expected a prefix such as 192.0.2.0/24", f[0])
	}
	lat, err := strconv.ParseFloat(f[5], 64)
	if err != nil || !(math.Abs(lat) <= 90) {
		return Network{}, fmt.Errorf("latitude %q: expected -90..90", f[5])
	}
	lon, err := strconv.ParseFloat(f[6], 64)
	if err != nil || !(math.Abs(lon) <= 180) {
		return Network{}, fmt.Errorf("longitude %q: expected -180..180", f[6])
	}
	return Network{p, City{Name: f[1], Subdivision: f[2], Country: f[3], Continent: f[4], Lat: lat, Lon: lon}}, nil
}

// Write writes a City database of that type with those networks. It holds reserved networks
// as well, and aliases of IPv4 in IPv6 as MaxMind's own have them.
func Write(w io.Writer, databaseType string, networks []Network) error {
	t, err := mmdbwriter.New(mmdbwriter.Options{
		BuildEpoch:              Epoch,
		DatabaseType:            databaseType,
		Description:             map[string]string{"en": "made for tests"},
		Languages:               []string{"en"},
		RecordSize:              28,
		IncludeReservedNetworks: true,
		KeyGenerator:            &byID{},
	})
	if err != nil {
		return err
	}
	records := make(map[City]mmdbtype.DataType)
	for _, n := range networks {
		r, ok := records[n.City]
		if !ok {
			r = n.City.record(uint32(len(records) + 1))
			records[n.City] = r
		}
		addr := n.Prefix.Addr().AsSlice()
		ip := &net.IPNet{IP: addr, Mask: net.CIDRMask(n.Prefix.Bits(), 8*len(addr))}
		if err := t.Insert(ip, r); err != nil {
			return fmt.Errorf("network %s: %w", n.Prefix, err)
		}
	}
	_, err = t.WriteTo(w)
	return err
}

// byID tells records apart by the id that record gave them, which is far cheaper than the
// hash of all they hold.
type byID struct{ key [4]byte }

func (g *byID) Key(v mmdbtype.DataType) ([]byte, error) {
	id := v.(mmdbtype.Map)["city"].(mmdbtype.Map)["geoname_id"].(mmdbtype.Uint32)
	binary.BigEndian.PutUint32(g.key[:], uint32(id))
	return g.key[:], nil
}

// record returns c in the shape of a City database; id is unique in the database.
func (c City) record(id uint32) mmdbtype.Map {
	m := mmdbtype.Map{
		"city":      mmdbtype.Map{"geoname_id": mmdbtype.Uint32(id), "names": mmdbtype.Map{"en": mmdbtype.String(c.Name)}},
		"continent": mmdbtype.Map{"code": mmdbtype.String(c.Continent)},
		"country":   mmdbtype.Map{"iso_code": mmdbtype.String(c.Country)},
		"location": mmdbtype.Map{
			"accuracy_radius": mmdbtype.Uint16(20),
			"latitude":        mmdbtype.Float64(c.Lat),
			"longitude":       mmdbtype.Float64(c.Lon),
		},
	}
	if c.Subdivision != "" {
		m["subdivisions"] = mmdbtype.Slice{mmdbtype.Map{"iso_code": mmdbtype.String(c.Subdivision)}}
	}
	return m
}

// FromTable makes the database of a table as Read reads it.
func FromTable(r io.Reader) ([]byte, error) {
	networks, err := Read(r)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = Write(&b, DefaultType, networks)
	return b.Bytes(), err
}

// country is a country of the synthetic world: where its cities lie, how far around (in
// degrees), and its share of the address space.
type country struct {
	code, continent  string
	lat, lon, spread float64
	share            float64
}

var countries = []country{
	{"US", "NA", 39, -95, 14, 30}, {"CN", "AS", 33, 111, 10, 12}, {"JP", "AS", 36, 138, 4, 7}, {"GB", "EU", 53, -2, 2, 4},
	{"DE", "EU", 51, 10, 3, 5}, {"KR", "AS", 36.5, 127.8, 1.5, 4}, {"BR", "SA", -18, -48, 9, 4}, {"FR", "EU", 47, 2.5, 3, 4},
	{"CA", "NA", 48, -90, 15, 3}, {"IT", "EU", 43, 12, 3, 2.5}, {"AU", "OC", -31, 146, 7, 2}, {"NL", "EU", 52, 5, 1, 2},
	{"RU", "EU", 56, 45, 12, 2}, {"IN", "AS", 21, 78, 7, 2.5}, {"TW", "AS", 24, 121, 1, 1.5}, {"ES", "EU", 40, -3.5, 3, 1.5},
	{"SE", "EU", 59.5, 16, 3, 1.2}, {"MX", "NA", 21, -101, 5, 1.2}, {"ZA", "AF", -29, 25, 4, 1}, {"PL", "EU", 52, 19, 2.5, 1},
	{"VN", "AS", 16, 107, 4, 0.7}, {"AR", "SA", -34, -62, 5, 0.8}, {"CO", "SA", 5, -74, 3, 0.6}, {"EG", "AF", 29, 31, 2, 0.6},
	{"ID", "AS", -5, 110, 6, 0.7}, {"TR", "AS", 39.5, 33, 4, 0.7}, {"NG", "AF", 8, 7, 3, 0.4}, {"SG", "AS", 1.35, 103.8, 0.1, 0.6},
	{"AE", "AS", 24.5, 54.5, 1, 0.4}, {"KE", "AF", -1, 37, 2, 0.3}, {"NZ", "OC", -40, 175, 3, 0.4}, {"CL", "SA", -33, -71, 4, 0.4},
}

// citiesPerShare makes 30,000 cities of the whole world, about as many as have more than
// 15,000 people.
const citiesPerShare = 300

// Synthetic returns n networks of a random world, always the same for a seed: four in five
// are IPv4 of length 12 to 24 that tile the unicast space, the others IPv6 of length 32 to
// 48. Most networks are in the country of their neighbours, as they are on Earth, and no
// two siblings are at one place, so that a database holds n of them.
func Synthetic(n int, seed uint64) []Network {
	s := world{rng: rand.New(rand.NewPCG(seed, 0x6d657269))}
	for i, c := range countries {
		s.total += c.share
		for range int(c.share * citiesPerShare) {
			s.cities = append(s.cities, s.city(c))
			s.of = append(s.of, i)
		}
	}
	s.bounds()
	var v4, v6 []netip.Prefix
	for a := 1; a < 224; a++ {
		if a == 10 || a == 127 {
			continue
		}
		for b := 0; b < 256; b += 16 {
			v4 = append(v4, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(a), byte(b)}), 12))
		}
	}
	for _, top := range []uint16{0x2400, 0x2401, 0x2402, 0x2404, 0x2406, 0x2600, 0x2602, 0x2604, 0x2606, 0x2607, 0x2800, 0x2a00, 0x2a01, 0x2a02, 0x2a03, 0x2a06, 0x2c0f} {
		for range 64 {
			a := [16]byte{byte(top >> 8), byte(top), byte(s.rng.IntN(256)), byte(s.rng.IntN(256))}
			v6 = append(v6, netip.PrefixFrom(netip.AddrFrom16(a), 32))
		}
	}
	return append(s.tile(v4, n-n/5, 24), s.tile(distinct(v6), n/5, 48)...)
}

// world is the state of one making.
type world struct {
	rng        *rand.Rand
	total      float64
	cities     []City
	of         []int // country of each city
	begin, end []int // cities of each country
}

func (w *world) city(c country) City {
	clamp := func(v, limit float64) float64 { return math.Round(10000*max(-limit, min(limit, v))) / 10000 }
	return City{
		Name: c.code + "-" + strconv.Itoa(len(w.cities)), Subdivision: strconv.Itoa(w.rng.IntN(20)), Country: c.code, Continent: c.continent,
		Lat: clamp(c.lat+w.rng.NormFloat64()*c.spread/2, 89), Lon: clamp(c.lon+w.rng.NormFloat64()*c.spread/2, 179),
	}
}

func (w *world) bounds() {
	w.begin, w.end = make([]int, len(countries)), make([]int, len(countries))
	for i, c := range w.of {
		if w.end[c] == 0 {
			w.begin[c] = i
		}
		w.end[c] = i + 1
	}
}

// near returns a city other than that one: of the same country, or once in eight of any.
func (w *world) near(city int) int {
	for {
		next := w.rng.IntN(len(w.cities))
		if c := w.of[city]; w.rng.IntN(8) > 0 {
			next = w.begin[c] + w.rng.IntN(w.end[c]-w.begin[c])
		}
		if next != city {
			return next
		}
	}
}

// tile splits random prefixes, none of length longest, until there are n. Of each split one
// half stays where it was.
func (w *world) tile(prefixes []netip.Prefix, n, longest int) []Network {
	type tile struct {
		prefix netip.Prefix
		city   int
	}
	tiles := make([]tile, 0, n)
	for _, p := range prefixes {
		tiles = append(tiles, tile{p, w.rng.IntN(len(w.cities))})
	}
	for len(tiles) < n {
		i := w.rng.IntN(len(tiles))
		t := tiles[i]
		if t.prefix.Bits() == longest {
			continue
		}
		left, right := halves(t.prefix)
		other := w.near(t.city)
		if w.rng.IntN(2) == 0 {
			tiles[i], t = tile{left, t.city}, tile{right, other}
		} else {
			tiles[i], t = tile{left, other}, tile{right, t.city}
		}
		tiles = append(tiles, t)
	}
	networks := make([]Network, len(tiles))
	for i, t := range tiles {
		networks[i] = Network{t.prefix, w.cities[t.city]}
	}
	return networks
}

func halves(p netip.Prefix) (left, right netip.Prefix) {
	n := p.Bits()
	b := p.Addr().AsSlice()
	b[n/8] |= 0x80 >> (n % 8)
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), n+1), netip.PrefixFrom(a, n+1)
}

func distinct(prefixes []netip.Prefix) (out []netip.Prefix) {
	seen := make(map[netip.Prefix]bool)
	for _, p := range prefixes {
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}
