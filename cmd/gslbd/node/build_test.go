package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// TestZonesOfLoad starts from the zones that Load read: they are taken over as they are, but for
// those whose file, or a part of it, is another by then; and nothing of them is kept.
func TestZonesOfLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		later := time.Now().Add(time.Duration(len(text)) * time.Second) // another stamp, whatever the clock's grain
		if err := os.Chtimes(path, later, later); err != nil {
			t.Fatal(err)
		}
	}
	const head = "$TTL 60\n@ SOA ns h 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n"
	for _, name := range []string{"kept", "changed", "parts"} {
		write(name+".zone", head)
	}
	write("parts.zone", head+"$INCLUDE part\n")
	write("part", "www A 192.0.2.2\n")
	write("gslb.yaml", `
node: {name: n, site: s, data: data, dns: ["127.0.0.1:0"]}
sites: {s: {lat: 1, lon: 1}}
zones:
  - {name: kept.example, file: kept.zone}
  - {name: changed.example, file: changed.zone}
  - {name: parts.example, file: parts.zone}
  - {name: inline.example, records: "@ 60 SOA ns h 1 2 3 4 5\n@ 60 NS ns\nns 60 A 192.0.2.1\n@ 60 MX 1 www\n@ 60 MX 2 none\n"}
pools: {p: {site: s, endpoints: [{address: 192.0.2.9}]}}
services: {www.inline.example: {pools: {p: {}}}}
`)
	f, zones, warnings, err := Load(filepath.Join(dir, "gslb.yaml"))
	// www is a service, which has addresses; none has none.
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "MX none.inline.example") || len(zones) != 4 {
		t.Fatalf("Load: got %d zones, %v, %v", len(zones), warnings, err)
	}
	early := make(Zones)
	for name, r := range zones {
		early[name] = r
	}
	write("changed.zone", head+"new A 192.0.2.3\n")
	write("part", "www A 192.0.2.2\nmore A 192.0.2.4\n")
	b := newBuilder(&Node{log: slog.New(slog.DiscardHandler)}, config.History{}.WithDefaults(), early)
	if err := b.readZones(&f.Objects, false); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		same bool
		rrs  int
	}{"kept.example": {true, 3}, "inline.example": {true, 5}, "changed.example": {false, 4}, "parts.example": {false, 5}} {
		z := b.zones[name]
		if z == nil {
			t.Fatalf("%s: not there", name)
		}
		if _, _, rrs := z.Size(); (z == zones[name].zone) != want.same || rrs != want.rrs {
			t.Errorf("%s: got %d RRs, the zone of Load %t; want %d, %t", name, rrs, z == zones[name].zone, want.rrs, want.same)
		}
	}
	if len(early) != 0 || len(b.set.Zones()) != 4 || len(b.wrong) != 0 {
		t.Errorf("got %d readings left, %d zones, faults %v; want none, 4, none", len(early), len(b.set.Zones()), b.wrong)
	}
}
