package demo

import (
	"fmt"
	"net/netip"
	"strings"
)

// region is one of the demo's places, with all that runs there. Each region has a block of
// loopback addresses: 127.0.<block>.0/24.
type region struct {
	name     string // the site
	short    string // as in gfe-eu
	city     string // where its sample client sits
	block    int
	lat, lon float64
	country  string
	client   netip.Prefix // the sample client
	clientV6 netip.Prefix
	users    netip.Addr    // of the first of 40 networks of /24 nearby: whose users overload it
	served   [2]netip.Addr // the IPv6 addresses answered: documentation addresses, nobody listens there
}

// regions are New York, Frankfurt and Singapore.
var regions = []region{
	{
		name: "us-east", short: "us", city: "New York", block: 1, lat: 38.95, lon: -77.45, country: "US",
		users:  netip.MustParseAddr("198.18.48.0"), // Toronto, San Francisco
		client: netip.MustParsePrefix("192.0.2.0/24"), clientV6: netip.MustParsePrefix("2001:db8:1::/48"),
		served: [2]netip.Addr{netip.MustParseAddr("2001:db8:1::11"), netip.MustParseAddr("2001:db8:1::12")},
	},
	{
		name: "eu-west", short: "eu", city: "Frankfurt", block: 2, lat: 50.11, lon: 8.68, country: "DE",
		users:  netip.MustParseAddr("198.18.0.0"), // London, Paris, Madrid
		client: netip.MustParsePrefix("198.51.100.0/24"), clientV6: netip.MustParsePrefix("2001:db8:2::/48"),
		served: [2]netip.Addr{netip.MustParseAddr("2001:db8:2::11"), netip.MustParseAddr("2001:db8:2::12")},
	},
	{
		name: "ap-southeast", short: "ap", city: "Singapore", block: 3, lat: 1.35, lon: 103.82, country: "SG",
		users:  netip.MustParseAddr("198.19.0.0"), // Mumbai
		client: netip.MustParsePrefix("203.0.113.0/24"), clientV6: netip.MustParsePrefix("2001:db8:3::/48"),
		served: [2]netip.Addr{netip.MustParseAddr("2001:db8:3::11"), netip.MustParseAddr("2001:db8:3::12")},
	},
}

// node is the address of the region's gslbd: 127.0.0.1, .2 and .3.
func (r region) node() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, byte(r.block)}) }

// gfe is the address of the region's proxy i, 0 or 1.
func (r region) gfe(i int) netip.Addr { return r.addr(11 + i) }

// holds reports whether addr is one of the region's proxies.
func (r region) holds(addr netip.Addr) bool { return addr == r.gfe(0) || addr == r.gfe(1) }

func (r region) frontend() netip.Addr { return r.addr(21) }
func (r region) backend() netip.Addr  { return r.addr(31) }

func (r region) addr(host int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 0, byte(r.block), byte(host)})
}

func (r region) pool(tier string) string { return tier + "-" + r.short }

// host is where what no region owns listens: the database.
var host = netip.MustParseAddr("127.0.0.1")

// ports are the ports of the demo, the same on every address.
type ports struct {
	dns, admin, gossip, xds, http int // http is the GFEs'; frontends, backends and the database take the three after it
}

func (p ports) frontend() int { return p.http + 1 }
func (p ports) backend() int  { return p.http + 2 }
func (p ports) database() int { return p.http + 3 }

// nodeConfig is the configuration file of the region's gslbd: itself, and nothing that is
// shared, which is in etcd.
func nodeConfig(r region, p ports, dir, etcd, city string) string {
	var join []string
	for _, o := range regions {
		if o.name != r.name {
			join = append(join, fmt.Sprintf("%q", netip.AddrPortFrom(o.node(), uint16(p.gossip)).String()))
		}
	}
	return fmt.Sprintf(`node:
  name: ns-%s
  site: %s
  data: %q
  dns: ["%s:%d"]
  admin: "%s:%d"
  gossip: {listen: "%s:%d", join: [%s]}
  xds: {listen: "%s:%d"}
  etcd: {endpoints: [%q]}
  geo: {city: %q}
  otlp: {sample: 1}
`, r.short, r.name, dir, r.node(), p.dns, r.node(), p.admin, r.node(), p.gossip, strings.Join(join, ", "),
		r.node(), p.xds, etcd, city)
}

// defaultCapacity is what each frontend of the demo is said to take, in requests per second:
// little, so that it can be overloaded on any machine.
const defaultCapacity = 50

// sharedConfig is what all nodes share: what "gslbctl apply" would put into etcd.
func sharedConfig(p ports, capacity float64) string {
	var b strings.Builder
	b.WriteString("sites:\n")
	for _, r := range regions {
		fmt.Fprintf(&b, "  %s: {lat: %g, lon: %g, country: %s}\n", r.name, r.lat, r.lon, r.country)
	}
	fmt.Fprintf(&b, `
zones:
  - name: example.com
    records: |
      $TTL 300
      @    IN SOA ns-us hostmaster 1 3600 600 604800 60
      @    IN NS  ns-us
      @    IN NS  ns-eu
      @    IN NS  ns-ap
      @    IN MX  10 mail
      @    IN TXT "Meridian's demo"
`)
	for _, r := range regions {
		fmt.Fprintf(&b, "      ns-%s IN A %s\n", r.short, r.node())
	}
	b.WriteString(`      mail IN A 127.0.0.1
      shop IN CNAME www

probes:
  http: {http: {path: /healthz}, interval: 1s, timeout: 800ms, rise: 2, fall: 2}

pools:
`)
	names := func(tier string) string {
		var s []string
		for _, r := range regions {
			s = append(s, r.pool(tier))
		}
		return strings.Join(s, ", ")
	}
	for _, r := range regions {
		fmt.Fprintf(&b, "  %s:\n    site: %s\n    capacity: 1000\n    probe: http\n    port: %d\n    upstream: [%s]\n    endpoints:\n",
			r.pool("gfe"), r.name, p.http, names("fe"))
		for i := range 2 {
			fmt.Fprintf(&b, "      - {address: %s}\n", r.gfe(i))
		}
		for i := range 2 {
			fmt.Fprintf(&b, "      - {address: %q, probe: {address: %s, port: %d}}\n", r.served[i], r.gfe(i), p.http)
		}
		fmt.Fprintf(&b, "  %s: {site: %s, capacity: %g, probe: http, port: %d, upstream: [%s], endpoints: [{address: %s}]}\n",
			r.pool("fe"), r.name, capacity, p.frontend(), names("be"), r.frontend())
		fmt.Fprintf(&b, "  %s: {site: %s, probe: http, port: %d, endpoints: [{address: %s}]}\n",
			r.pool("be"), r.name, p.backend(), r.backend())
	}
	b.WriteString(`
services:
  www.example.com:
    ttl: 10s
    pools: {gfe-us: {}, gfe-eu: {}, gfe-ap: {}}
    policy: [health, {shed: {low: 1, high: 4}}, nearest, {select: {answers: 2}}]
  split.example.com:
    ttl: 10s
    pools: {gfe-us: {weight: 3}, gfe-eu: {weight: 1}}
    policy: [health, weighted]
  primary.example.com:
    ttl: 10s
    pools: {gfe-eu: {}, gfe-us: {}, gfe-ap: {standby: true}}
    policy: [health, {failover: [gfe-eu, gfe-us]}]
`)
	return b.String()
}
