package node

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// TestNeedRestart: what a reload applies needs no restart, and neither does what is put back.
func TestNeedRestart(t *testing.T) {
	running := config.Node{Name: "a", Site: "eu", Gossip: config.Gossip{Key: "k", Join: []string{"b:1"}}}
	for _, tt := range []struct {
		name   string
		change func(*config.Node)
		want   []string
	}{
		{"nothing", func(*config.Node) {}, nil},
		{"databases, cookies and keys", func(n *config.Node) { n.Geo.City, n.Serve.Cookies, n.Gossip.Key = "x", []string{"y"}, "z" }, nil},
		{"who may ask why", func(n *config.Node) { n.Serve.Explain.Allow = []netip.Prefix{} }, nil},
		{"site and peers", func(n *config.Node) { n.Site, n.Gossip.Join = "us", nil }, []string{"node.site", "node.gossip"}},
		{"version that is told", func(n *config.Node) { n.Serve.Version = "1" }, []string{"node.serve"}},
	} {
		now := running
		tt.change(&now)
		if got := needRestart(running, now); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestReloadKeepsPlaces: a reload reads the databases again only if it names others. Of those that run
// a new file which is no good is told by who follows them, and is no reason to refuse the rest.
func TestReloadKeepsPlaces(t *testing.T) {
	dir := t.TempDir()
	path, city := filepath.Join(dir, "gslb.yaml"), filepath.Join(dir, "city.mmdb")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	database, err := os.ReadFile("../../../testdata/geo/demo.mmdb")
	if err != nil {
		t.Fatal(err)
	}
	write(city, string(database))
	text := `node: {name: a, site: s, data: ` + filepath.Join(dir, "data") + `, dns: ["127.0.0.1:0"], geo: {city: city.mmdb}}
sites: {s: {lat: 50.1, lon: 8.7}}
zones: [{name: example.com, records: "@ 60 SOA ns. h. 1 2 3 4 5\n@ 60 NS ns.\n"}]
pools: {p: {site: s, endpoints: [{address: 192.0.2.1}]}}
services: {www.example.com: {ttl: 30s, pools: {p: {}}}}
`
	write(path, text)
	f, err := config.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hup := make(chan os.Signal)
	n := runNode(t, Options{File: f, Path: path, Reload: hup})
	write(city, "no database")
	write(path, strings.Replace(text, "ttl: 30s", "ttl: 40s", 1))
	hup <- syscall.SIGHUP
	eventually(t, "another TTL", func() bool {
		return n.file.Load().Objects.Services["www.example.com"].EffectiveTTL() == 40*time.Second
	})
	write(path, strings.Replace(text, "city: city.mmdb", "city: city.mmdb, overrides: [{prefix: 192.0.2.0/24, site: s}]", 1))
	hup <- syscall.SIGHUP
	eventually(t, "a fault of the database", func() bool {
		return slices.ContainsFunc(n.build.faults(), func(s string) bool {
			return strings.Contains(s, "configuration "+path) && strings.Contains(s, "city.mmdb")
		})
	})
}
