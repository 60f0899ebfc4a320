package geo_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/meridian-gslb/meridian/geo"
	demogeo "github.com/meridian-gslb/meridian/testdata/geo"
	"github.com/meridian-gslb/meridian/testdata/geo/makedb"
)

// TestDemoIsMadeFromTable checks that the database in the repository is what mkmmdb makes
// of the table beside it.
func TestDemoIsMadeFromTable(t *testing.T) {
	want, err := makedb.FromTable(strings.NewReader(demogeo.Table))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(demogeo.City, want) {
		t.Errorf("testdata/geo/demo.mmdb: %d octets, not the %d that its table makes: run the command in demo.csv", len(demogeo.City), len(want))
	}
}

func TestLookupDemo(t *testing.T) {
	m := openDemo(t, geo.Override{Prefix: netip.MustParsePrefix("198.51.100.64/26"), Place: geo.Place{Site: "lab"}})
	tests := []struct {
		name, addr, city, site string
		scope                  uint8
	}{
		{"the demo's New York", "192.0.2.53", "New York", "", 24},
		{"its neighbours are unknown", "192.0.3.1", "", "", 24},
		{"the demo's Singapore", "203.0.113.255", "Singapore", "", 24},
		{"overridden", "198.51.100.65", "", "lab", 26},
		{"beside the override", "198.51.100.1", "Frankfurt", "", 26},
		{"past the override", "198.51.100.128", "Frankfurt", "", 25},
		{"far from all networks", "8.8.8.8", "", "", 1},
		{"of mixed length", "198.18.41.1", "Warsaw", "", 22},
		{"IPv6", "2001:db8:2::1", "Frankfurt", "", 48},
		{"IPv6 in a wider network", "2001:db8:3f:ffff::1", "Tokyo", "", 44},
		{"IPv6 outside", "2a00::1", "", "", 5},
		{"IPv4-mapped is IPv4", "::ffff:192.0.2.53", "New York", "", 24},
		{"6to4 is where its IPv4 is", "2002:c000:235::1", "New York", "", 16 + 24},
		{"NAT64 is where its IPv4 is", "64:ff9b::203.0.113.9", "Singapore", "", 96 + 24},
		{"Teredo says nothing of its client", "2001:0:c000:235::1", "", "", 31},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, scope := m.Lookup(netip.MustParseAddr(tt.addr))
			if p.City != tt.city || p.Site != tt.site || scope != tt.scope {
				t.Errorf("Lookup(%s) = city %q, site %q, scope %d; want %q, %q, %d", tt.addr, p.City, p.Site, scope, tt.city, tt.site, tt.scope)
			}
		})
	}
}

// TestLookupReadsTheWholeRecord reads every network of the demo and compares it with the
// table.
func TestLookupReadsTheWholeRecord(t *testing.T) {
	m := openDemo(t)
	networks, err := makedb.Read(strings.NewReader(demogeo.Table))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		c := n.City
		want := geo.Place{Lat: c.Lat, Lon: c.Lon, Located: true, Continent: c.Continent, Country: c.Country, Subdivision: c.Subdivision, City: c.Name}
		if got, _ := m.Lookup(n.Prefix.Addr()); *got != want {
			t.Errorf("Lookup(%s) = %+v, want %+v", n.Prefix.Addr(), *got, want)
		}
	}
	if d := m.Databases(); len(d) != 1 || d[0].Type != makedb.DefaultType || d[0].Networks != len(networks) || d[0].Built.Unix() != makedb.Epoch {
		t.Errorf("Databases() = %+v, want one of type %s with %d networks", d, makedb.DefaultType, len(networks))
	}
}

// TestOverrideHidesPlaces covers the first networks of the demo wholly, so that nobody is in their
// cities any more, and finds all others where they were.
func TestOverrideHidesPlaces(t *testing.T) {
	networks, err := makedb.Read(strings.NewReader(demogeo.Table))
	if err != nil {
		t.Fatal(err)
	}
	var overrides []geo.Override
	hidden := make(map[string]bool)
	for _, n := range networks[:3] {
		hidden[n.City.Name] = true
	}
	for _, n := range networks {
		if hidden[n.City.Name] {
			overrides = append(overrides, geo.Override{Prefix: n.Prefix, Place: geo.Place{Site: "lab"}})
		}
	}
	m := openDemo(t, overrides...)
	for _, n := range networks {
		want := geo.Place{City: n.City.Name}
		if hidden[n.City.Name] {
			want = geo.Place{Site: "lab"}
		}
		if got, _ := m.Lookup(n.Prefix.Addr()); got.City != want.City || got.Site != want.Site {
			t.Errorf("Lookup(%s) = city %q, site %q; want %q, %q", n.Prefix.Addr(), got.City, got.Site, want.City, want.Site)
		}
	}
	for _, p := range m.Places() {
		if hidden[p.City] {
			t.Errorf("%s is a place still", p.City)
		}
	}
}

// TestOverrideKeepsASN joins a second database and an override.
func TestOverrideKeepsASN(t *testing.T) {
	dir := t.TempDir()
	city, asn := filepath.Join(dir, "city.mmdb"), filepath.Join(dir, "asn.mmdb")
	write(t, city, demogeo.City)
	write(t, asn, asnDatabase(t, map[string]uint32{"192.0.0.0/16": 64500, "192.0.2.128/25": 64501}))
	m, err := geo.Open(geo.Config{City: city, ASN: asn, Overrides: []geo.Override{
		{Prefix: netip.MustParsePrefix("192.0.2.192/26"), Place: geo.Place{Site: "lab"}},
		{Prefix: netip.MustParsePrefix("192.0.2.255/32"), Place: geo.Place{Site: "lab", ASN: 64502}},
		{Prefix: netip.MustParsePrefix("2001:db8:1::1/128"), Place: geo.Place{Country: "CH", Lat: 47, Lon: 8, Located: true}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ny := geo.Place{Lat: 40.7128, Lon: -74.006, Located: true, Continent: "NA", Country: "US", Subdivision: "NY", City: "New York"}
	with := func(p geo.Place, asn uint32) geo.Place { p.ASN = asn; return p }
	tests := []struct {
		addr  string
		place geo.Place
		scope uint8
	}{
		{"192.0.1.1", geo.Place{ASN: 64500}, 23},
		{"192.0.2.1", with(ny, 64500), 25},
		{"192.0.2.129", with(ny, 64501), 26},
		{"192.0.2.193", geo.Place{Site: "lab", ASN: 64501}, 27},
		{"192.0.2.255", geo.Place{Site: "lab", ASN: 64502}, 32},
		{"2001:db8:1::", ny, 128},
		{"2001:db8:1::1", geo.Place{Country: "CH", Lat: 47, Lon: 8, Located: true}, 128},
		{"2001:db8:1::2", ny, 127},
	}
	for _, tt := range tests {
		got, scope := m.Lookup(netip.MustParseAddr(tt.addr))
		if *got != tt.place || scope != tt.scope {
			t.Errorf("Lookup(%s) = %+v, %d; want %+v, %d", tt.addr, *got, scope, tt.place, tt.scope)
		}
	}
	if got := m.Places()[0]; got != (geo.Place{}) {
		t.Errorf("Places()[0] = %+v, want the place of what nobody knows", got)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		write(t, path, b)
		return path
	}
	demo, asn := file("demo.mmdb", demogeo.City), file("asn.mmdb", asnDatabase(t, map[string]uint32{"192.0.2.0/24": 64500}))
	pipe := filepath.Join(dir, "pipe") // into which nobody writes
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	override := func(prefix string, p geo.Place) geo.Config {
		return geo.Config{Overrides: []geo.Override{{Prefix: netip.MustParsePrefix(prefix), Place: p}}}
	}
	twice := override("192.0.2.0/24", geo.Place{})
	twice.Overrides = append(twice.Overrides, twice.Overrides[0])
	tests := []struct {
		name   string
		config geo.Config
		want   []string
	}{
		{"missing", geo.Config{City: filepath.Join(dir, "none.mmdb")}, []string{"none.mmdb", "expected a MaxMind City or Country database", "no such file"}},
		{"a folder", geo.Config{City: dir}, []string{dir, "expected a MaxMind City or Country database", "no regular file"}},
		{"a pipe", geo.Config{City: pipe}, []string{pipe, "expected a MaxMind City or Country database", "no regular file"}},
		{"empty", geo.Config{City: file("empty.mmdb", nil)}, []string{"empty.mmdb", "expected a MaxMind City or Country database"}},
		{"text", geo.Config{City: file("text.mmdb", []byte("hello"))}, []string{"text.mmdb", "this is none or is cut short"}},
		{"its tail is missing", geo.Config{City: file("cut.mmdb", demogeo.City[:len(demogeo.City)/2])}, []string{"cut.mmdb", "cut short"}},
		{"its head is missing", geo.Config{City: file("head.mmdb", demogeo.City[900:])}, []string{"head.mmdb", "corrupt MaxMind City or Country database"}},
		{"of another kind", geo.Config{City: asn}, []string{"asn.mmdb", "expected a MaxMind City or Country database", `"Meridian-ASN"`}},
		{"both at fault", geo.Config{City: asn, ASN: demo}, []string{"asn.mmdb", "demo.mmdb", "expected a MaxMind ASN database", `"Meridian-City"`}},
		{"override with bits past its length", override("192.0.2.1/24", geo.Place{}), []string{"192.0.2.1/24", "expected 192.0.2.0/24"}},
		{"override given twice", twice, []string{"192.0.2.0/24", "twice"}},
		{"override off Earth", override("192.0.2.0/24", geo.Place{Located: true, Lat: 91}), []string{"lat 91", "expected -90..90"}},
		{"override inside 6to4", override("2002:c000:200::/40", geo.Place{}), []string{"2002:c000:200::/40", "expected the IPv4 prefix"}},
		{"override of IPv4-mapped addresses", override("::ffff:192.0.2.0/120", geo.Place{}), []string{"expected the IPv4 prefix"}},
		{"override without prefix", geo.Config{Overrides: make([]geo.Override, 1)}, []string{"expected a prefix"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := geo.Open(tt.config)
			if err == nil {
				t.Fatalf("Open = %v, want an error", m)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Open: %q, want it to say %q", err, want)
				}
			}
		})
	}
}

// TestOpenCutOrDamaged opens the demo cut at every length and with random octets changed:
// it may be an error, but never a panic.
func TestOpenCutOrDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "city.mmdb")
	for n := 0; n < len(demogeo.City); n += 7 {
		write(t, path, demogeo.City[:n])
		if _, err := geo.Open(geo.Config{City: path}); err == nil {
			t.Errorf("Open of the first %d of %d octets: no error", n, len(demogeo.City))
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	faults := 0
	for range 500 {
		b := bytes.Clone(demogeo.City)
		for range 1 + rng.IntN(8) {
			b[rng.IntN(len(b))] = byte(rng.Uint32())
		}
		write(t, path, b)
		if _, err := geo.Open(geo.Config{City: path}); err != nil {
			faults++
		}
	}
	if faults == 0 {
		t.Error("500 damaged databases and not one error")
	}
}

// FuzzOpen opens arbitrary files; what opens must answer.
func FuzzOpen(f *testing.F) {
	f.Add(demogeo.City)
	f.Add(demogeo.City[:len(demogeo.City)-10])
	path := filepath.Join(f.TempDir(), "city.mmdb")
	f.Fuzz(func(t *testing.T, b []byte) {
		write(t, path, b)
		m, err := geo.Open(geo.Config{City: path})
		if err != nil {
			return
		}
		for _, addr := range []string{"0.0.0.0", "192.0.2.1", "255.255.255.255", "::", "2002:c000:235::1", "2001:db8::", "ffff::"} {
			a := netip.MustParseAddr(addr)
			if p, scope := m.Lookup(a); p == nil || int(scope) > a.BitLen() {
				t.Errorf("Lookup(%s) = %v, scope %d", a, p, scope)
			}
		}
	})
}

func TestLookupDoesNotAllocate(t *testing.T) {
	m := openDemo(t)
	for _, addr := range []string{"192.0.2.1", "2001:db8:1::1", "::ffff:192.0.2.1", "2002:c000:201::", "64:ff9b::1"} {
		a := netip.MustParseAddr(addr)
		if n := testing.AllocsPerRun(100, func() { m.Lookup(a) }); n != 0 {
			t.Errorf("Lookup(%s): %v allocations, want 0", a, n)
		}
	}
}

func openDemo(t testing.TB, overrides ...geo.Override) *geo.Map {
	t.Helper()
	path := filepath.Join(t.TempDir(), "demo.mmdb")
	write(t, path, demogeo.City)
	m, err := geo.Open(geo.Config{City: path, Overrides: overrides})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// openSynthetic opens a random world of n networks.
func openSynthetic(b *testing.B, n int) (*geo.Map, string) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "city.mmdb")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := makedb.Write(f, makedb.DefaultType, makedb.Synthetic(n, 1)); err != nil {
		b.Fatal(err)
	}
	m, err := geo.Open(geo.Config{City: path})
	if err != nil {
		b.Fatal(err)
	}
	return m, path
}

// BenchmarkOpen loads a city database of 450,000 networks.
func BenchmarkOpen(b *testing.B) {
	_, path := openSynthetic(b, 450_000)
	for b.Loop() {
		if _, err := geo.Open(geo.Config{City: path}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLookup finds random addresses in 450,000 networks: best the same one again,
// worst a new one each time.
func BenchmarkLookup(b *testing.B) {
	m, _ := openSynthetic(b, 450_000)
	rng := rand.New(rand.NewPCG(1, 2))
	var v4, v6 []netip.Addr
	for p := range m.All() {
		switch {
		case p.Addr().Is4() && len(v4) < 1<<19:
			v4 = append(v4, p.Addr())
		case p.Addr().Is6() && p.Bits() > 16:
			v6 = append(v6, p.Addr())
		}
	}
	shuffle := func(a []netip.Addr) { rng.Shuffle(len(a), func(i, j int) { a[i], a[j] = a[j], a[i] }) }
	shuffle(v4)
	shuffle(v6)
	for name, addrs := range map[string][]netip.Addr{"v4/random": v4, "v6/random": v6, "v4/same": v4[:1], "v6/same": v6[:1]} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				m.Lookup(addrs[i])
				if i++; i == len(addrs) {
					i = 0
				}
			}
		})
	}
}

// BenchmarkCompile makes the table of a value that a quarter of the places has.
func BenchmarkCompile(b *testing.B) {
	m, _ := openSynthetic(b, 450_000)
	b.ReportAllocs()
	for b.Loop() {
		geo.Compile(m, func(place uint32) uint32 { return place % 4 }, nil)
	}
}
