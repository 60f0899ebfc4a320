package dns

import (
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/dns/zone"
	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// needs skips a test whose need is missing, unless everything is to be run.
func needs(t *testing.T, there bool, what string) {
	t.Helper()
	if there {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatalf("missing: %s", what)
	}
	t.Skipf("missing: %s", what)
}

// world is what tests are answered from: testdata/dialogues/world.yaml, or a text like it.
type world struct {
	file  *config.File
	geo   *geo.Map
	zones *zone.Set
	down  map[gslb.EndpointID]gslb.Verdict
	load  map[string]float64
	rtt   *gslb.RTTTable
	prev  *gslb.Snapshot
}

// worldTime is when the world is asked.
var worldTime = time.Unix(1_700_000_000, 0)

// loadWorld reads the dialogues' world.
func loadWorld(tb testing.TB) *world {
	tb.Helper()
	return parseWorld(tb, readWorld(tb))
}

// readWorld returns the text of the dialogues' world.
func readWorld(tb testing.TB) string {
	tb.Helper()
	text, err := os.ReadFile("../testdata/dialogues/world.yaml")
	if err != nil {
		tb.Fatal(err)
	}
	return string(text)
}

func parseWorld(tb testing.TB, text string) *world {
	tb.Helper()
	file, err := config.Parse("world.yaml", []byte(text))
	if err != nil {
		tb.Fatalf("world: %v", err)
	}
	var overrides []geo.Override
	for _, o := range file.Node.Geo.Overrides {
		place := geo.Place{Located: true, Site: o.Site, Country: o.Country, Continent: o.Continent}
		if site := file.Sites[o.Site]; o.Site != "" {
			place.Lat, place.Lon = site.Lat, site.Lon
		} else {
			place.Lat, place.Lon = *o.Lat, *o.Lon
		}
		overrides = append(overrides, geo.Override{Prefix: o.Prefix, Place: place})
	}
	m, err := geo.Open(geo.Config{Overrides: overrides})
	if err != nil {
		tb.Fatalf("world: %v", err)
	}
	var zones []*zone.Zone
	for name, z := range file.Zones {
		zone, _, err := zone.Parse(strings.NewReader(z.Records), name, name)
		if err != nil {
			tb.Fatalf("world: %v", err)
		}
		zones = append(zones, zone)
	}
	set, err := zone.NewSet(zones, nil)
	if err != nil {
		tb.Fatalf("world: %v", err)
	}
	return &world{file: file, geo: m, zones: set, down: make(map[gslb.EndpointID]gslb.Verdict)}
}

// data builds the Data of the world as it is now.
func (w *world) data(tb testing.TB) *Data {
	tb.Helper()
	in := gslb.Inputs{Revision: 1, Objects: &w.file.Objects, Geo: w.geo, Verdicts: maps.Clone(w.down), Load: w.load, RTT: w.rtt, Now: worldTime}
	if w.prev != nil {
		in.Revision = w.prev.Revision + 1
	}
	s, err := gslb.Build(w.prev, in)
	if err != nil {
		tb.Fatalf("world: %v", err)
	}
	w.prev = s
	services := make(map[string]int32)
	for _, service := range s.Services {
		services[service.Name] = int32(service.Index)
	}
	zones, err := w.zones.WithServices(services)
	if err != nil {
		tb.Fatalf("world: %v", err)
	}
	return &Data{Snapshot: s, Zones: zones}
}

// fail marks an endpoint down.
func (w *world) fail(pool, addr string) {
	w.down[gslb.EndpointID{Pool: pool, Addr: netip.MustParseAddr(addr)}] = gslb.Down
}

// testAnswerer returns an answerer whose panics fail the test.
func testAnswerer(tb testing.TB) *answerer {
	return newAnswerer(new(counters), nil, DefaultMaxUDP, func(reason any, packet []byte) {
		tb.Errorf("panic %v answering %x", reason, packet)
	})
}

// ask returns the wire form of a query, which change may alter before.
func ask(tb testing.TB, name, qtype string, change ...func(*miekg.Msg)) []byte {
	tb.Helper()
	m := new(miekg.Msg)
	m.Id = 4711
	m.Question = []miekg.Question{{Name: miekg.Fqdn(name), Qtype: typeNumber(tb, qtype), Qclass: miekg.ClassINET}}
	for _, f := range change {
		f(m)
	}
	pkt, err := m.Pack()
	if err != nil {
		tb.Fatalf("query %s %s: %v", name, qtype, err)
	}
	return pkt
}

func typeNumber(tb testing.TB, s string) uint16 {
	tb.Helper()
	if t, ok := miekg.StringToType[s]; ok {
		return t
	}
	if digits, ok := strings.CutPrefix(s, "TYPE"); ok {
		n := uint16(0)
		for _, c := range digits {
			n = n*10 + uint16(c-'0')
		}
		return n
	}
	tb.Fatalf("query type %q: unknown", s)
	return 0
}

// withOPT adds an OPT of that size with those options.
func withOPT(size uint16, options ...miekg.EDNS0) func(*miekg.Msg) {
	return func(m *miekg.Msg) {
		m.SetEdns0(size, false)
		m.IsEdns0().Option = options
	}
}

// withECS adds an OPT with a client subnet.
func withECS(prefix string) func(*miekg.Msg) {
	return withOPT(1232, ecsOption(netip.MustParsePrefix(prefix)))
}

// ecsOption returns the client subnet option of p as it is, also if p is IPv4-mapped.
func ecsOption(p netip.Prefix) miekg.EDNS0 {
	raw := []byte{0, familyIPv4, byte(p.Bits()), 0}
	if p.Addr().Is6() {
		raw[1] = familyIPv6
	}
	return &miekg.EDNS0_LOCAL{Code: optionECS, Data: append(raw, p.Addr().AsSlice()[:(p.Bits()+7)/8]...)}
}

// unpack reads a reply, all of it.
func unpack(tb testing.TB, pkt []byte) *miekg.Msg {
	tb.Helper()
	m := new(miekg.Msg)
	if err := m.Unpack(pkt); err != nil {
		tb.Fatalf("reply %x: %v", pkt, err)
	}
	if again, err := repack(m, len(pkt)); err != nil || again > len(pkt) {
		tb.Fatalf("reply %x: has %d octets, of which %d are a message (%v)", pkt, len(pkt), again, err)
	}
	return m
}

// repack returns how many octets m has uncompressed, or size if that is less.
func repack(m *miekg.Msg, size int) (int, error) {
	pkt, err := m.Pack()
	return min(len(pkt), size), err
}
