package node

import (
	"net/netip"
	"slices"
	"testing"

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
