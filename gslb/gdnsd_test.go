package gslb

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/testdata/geo/makedb"
)

// TestSweepBesideGdnsd asks for all of IPv4 as a resolver that caches by scope would, and
// gdnsd for the same sites and database: the answers are the same (but on the line between
// two sites), and what is kept for them. gdnsd ignores databases for special networks.
func TestSweepBesideGdnsd(t *testing.T) {
	const bin = "gdnsd_geoip_test" // of Debian's package gdnsd
	if _, err := exec.LookPath(bin); err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(err)
		}
		t.Skipf("%v: Debian's package gdnsd has it", err)
	}
	dir := t.TempDir()
	for _, d := range []string{"geoip", "run", "state", "zones"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	db := filepath.Join(dir, "geoip", "city.mmdb")
	f, err := os.Create(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := makedb.Write(f, makedb.DefaultType, makedb.Synthetic(20_000, 1)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config"), fmt.Appendf(nil, `
options => { listen => [ 127.0.0.1 ], run_dir => %s/run, state_dir => %s/state }
plugins => { geoip => {
  maps => { m => { geoip2_db => city.mmdb, datacenters => [us, eu, ap], auto_dc_limit => 1,
    auto_dc_coords => { us => [40.71, -74.00], eu => [50.11, 8.68], ap => [1.35, 103.82] } } }
  resources => { r => { map => m, dcmap => { us => 192.0.2.1, eu => 192.0.2.2, ap => 192.0.2.3 } } } } }
`, dir, dir), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("stdbuf", "-oL", bin, "-c", dir) // it answers line by line, whoever reads
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	answer := regexp.MustCompile(`m => [0-9.]+/(\d+) => ([a-z]+)`)
	gdnsd := func(a netip.Addr) (dc string, scope int) {
		if _, err := fmt.Fprintf(in, "m %s\n", a); err != nil {
			t.Fatal(err)
		}
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatalf("%s: %v", bin, err)
			}
			if m := answer.FindStringSubmatch(line); m != nil {
				fmt.Sscan(m[1], &scope)
				return m[2], scope
			}
		}
	}

	// gdnsd has an order for those of whom no place is known, and so must we: a split costs entries.
	inputs := testInputs(t, "pools: {us: {}, eu: {}, ap: {}}, policy: [health, nearest, failover: [us, eu, ap]]", "", "", "")
	if inputs.Geo, err = geo.Open(geo.Config{City: db}); err != nil {
		t.Fatal(err)
	}
	s := mustBuild(t, nil, inputs)
	svc := s.Service("w.example")
	var d Decision
	sweep := func(ask func(netip.Addr) int) (entries, bits int) {
		for a := netip.IPv4Unspecified(); a.IsValid(); entries++ {
			scope := ask(a)
			bits += scope
			b := a.As4()
			for i := scope; i < 32; i++ {
				b[i/8] |= 0x80 >> (i % 8)
			}
			a = netip.AddrFrom4(b).Next()
			if a.Is6() || a == netip.IPv4Unspecified() {
				break
			}
		}
		return entries, bits
	}
	differ, total := 0, 0
	ours, oursBits := sweep(func(a netip.Addr) int {
		s.Decide(svc, Client{a, 32}, &d)
		if place, _ := inputs.Geo.Lookup(a); place.Located {
			total++
			if dc, _ := gdnsd(a); dc != d.Pool.Name {
				differ++
			}
		}
		return int(d.Scope)
	})
	theirs, theirsBits := sweep(func(a netip.Addr) int { _, scope := gdnsd(a); return scope })
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil && !strings.Contains(err.Error(), "exit status") {
		t.Fatal(err)
	}
	t.Logf("a sweep of IPv4: ours %d entries of %.2f bits in the mean; gdnsd %d of %.2f; %d of %d answers differ",
		ours, float64(oursBits)/float64(ours), theirs, float64(theirsBits)/float64(theirs), differ, total)
	if differ > total/50 {
		t.Errorf("%d of %d answers differ from gdnsd's", differ, total)
	}
	if ours > theirs*105/100 {
		t.Errorf("%d entries, gdnsd %d; want no more", ours, theirs)
	}
}
