package gslb

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// now is when the tests take place.
var now = time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)

// testPools are the sites and pools of the tests: three regions, of which the third speaks
// no IPv6, a second pool in the first, and some of odd shapes.
const testPools = `
sites:
  us: {lat: 40.71, lon: -74.00}
  eu: {lat: 50.11, lon: 8.68}
  ap: {lat: 1.35, lon: 103.82}
  uk: {lat: 51.51, lon: -0.13}
probes:
  web: {tcp: {port: 80}}
pools:
  us: {site: us, probe: web, endpoints: [{address: 10.1.0.1}, {address: 10.1.0.2}, {address: "fd00:1::1"}]}
  us2: {site: us, probe: web, endpoints: [{address: 10.4.0.1}]}
  eu: {site: eu, probe: web, endpoints: [{address: 10.2.0.1}, {address: 10.2.0.2}, {address: "fd00:2::1"}]}
  ap: {site: ap, probe: web, endpoints: [{address: 10.3.0.1}, {address: 10.3.0.2}]}
  uk: {site: uk, probe: web, minHealthy: 0.7, endpoints: [{address: 10.5.0.1, weight: 2}, {address: 10.5.0.2}, {address: 10.5.0.3, weight: 0}]}
  idle: {site: us, endpoints: [{address: 10.6.0.1, weight: 0}]}
  unprobed: {site: ap, endpoints: [{address: 10.7.0.1}]}
`

// testPlaces are where the clients of the tests are.
var testPlaces = map[string]geo.Place{
	"192.0.2.0/24":     {Located: true, Lat: 40.7, Lon: -74.0, City: "New York"},
	"198.51.100.0/24":  {Located: true, Lat: 50.1, Lon: 8.7, City: "Frankfurt"},
	"198.51.100.64/26": {Site: "ap"},
	"203.0.113.0/24":   {Located: true, Lat: 1.3, Lon: 103.8, City: "Singapore"},
	"2001:db8:1::/48":  {Located: true, Lat: 40.7, Lon: -74.0, City: "New York"},
	"2001:db8:2::/48":  {Located: true, Lat: 50.1, Lon: 8.7, City: "Frankfurt"},
	"2001:db8:3::/48":  {Located: true, Lat: 1.3, Lon: 103.8, City: "Singapore"},
}

func testMap(t testing.TB) *geo.Map {
	t.Helper()
	var c geo.Config
	for prefix, place := range testPlaces {
		c.Overrides = append(c.Overrides, geo.Override{Prefix: netip.MustParsePrefix(prefix), Place: place})
	}
	m, err := geo.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// testObjects returns the test's pools with that YAML beside them.
func testObjects(t testing.TB, yaml string) *config.Objects {
	t.Helper()
	base, err := config.ParseObjects("pools", []byte(testPools))
	if err != nil {
		t.Fatal(err)
	}
	more, err := config.ParseObjects("test", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	o := config.Merge(base, more)
	if err := config.Validate(o); err != nil && !strings.Contains(err.Error(), "zone") { // the services of the tests are in no zone
		t.Fatal(err)
	}
	return o
}

// testInputs returns inputs for a service w with those settings, in which the endpoints
// named by down are down and those named by flip are about to change: "eu" is all of a
// pool, "eu/10.2.0.1" one.
func testInputs(t testing.TB, service, states, down, flip string) Inputs {
	t.Helper()
	o := testObjects(t, "services:\n  w.example: {"+service+"}\n"+states)
	in := Inputs{Revision: 7, Objects: o, Geo: testMap(t), Verdicts: map[EndpointID]Verdict{}, Flipping: map[EndpointID]bool{}, Now: now}
	for name, p := range o.Pools {
		for _, e := range p.Endpoints {
			id := EndpointID{name, e.Address}
			in.Verdicts[id] = Up
			if named(down, id) {
				in.Verdicts[id] = Down
			}
			in.Flipping[id] = named(flip, id)
		}
	}
	return in
}

func named(list string, id EndpointID) bool {
	for _, n := range strings.Fields(list) {
		if n == id.Pool || n == id.Pool+"/"+id.Addr.String() {
			return true
		}
	}
	return false
}

func mustBuild(t testing.TB, prev *Snapshot, in Inputs) *Snapshot {
	t.Helper()
	s, err := Build(prev, in)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// client reads "192.0.2.1" or, with a source prefix, "192.0.2.0/24".
func client(text string) Client {
	if p, err := netip.ParsePrefix(text); err == nil {
		return Client{p.Addr(), uint8(p.Bits())}
	}
	a := netip.MustParseAddr(text)
	return Client{a, uint8(a.BitLen())}
}

// String shows a decision in a line.
func (d *Decision) line() string {
	pool := "-"
	if d.Pool != nil {
		pool = d.Pool.Name
	}
	var answers []string
	for _, a := range append(append([]netip.Addr{}, d.V4...), d.V6...) {
		answers = append(answers, a.String())
	}
	s := fmt.Sprintf("%s %s scope=%d ttl=%d %s", pool, d.Reason, d.Scope, d.TTL, strings.Join(answers, ","))
	if d.Fallback != "" {
		s += "cname=" + d.Fallback
	}
	return strings.TrimSpace(s)
}
