package config

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestFaultsOfRepeated: an object that is given twice hides no fault of either, and a count of
// nothing is one.
func TestFaultsOfRepeated(t *testing.T) {
	const text = `node: {name: ns1, site: eu, dns: ["127.0.0.1:5300"]}
sites:
  eu: {lat: 50, lon: 8}
  eu: {lat: 500, colour: red}
probes:
  a: {tcp: {}, rise: 0}
  b: {tcp: {}, fall: 0}
  c: {tcp: {}, fall: -1}
  d: {tcp: {}, vantages: 0}
zones: [{name: example.com, records: "@ SOA a b 1 2 3 4 5"}]
`
	want := []string{
		`x.yaml:4: sites.eu: given twice; first on line 3`,
		`x.yaml:4: sites.eu.colour: unknown key`,
		`x.yaml:4: sites.eu.lat: 500; expected -90 to 90`,
		`x.yaml:6: probes.a.rise: 0; expected 1 to 100`,
		`x.yaml:7: probes.b.fall: 0; expected 1 to 100`,
		`x.yaml:8: probes.c.fall: -1; expected 1 to 100`,
	}
	_, err := Parse("x.yaml", []byte(text))
	var got []string
	for _, f := range Faults(err) {
		got = append(got, f.Error())
	}
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestDefaultAdmin: a node without an address of its API has one, which is taken like any other.
func TestDefaultAdmin(t *testing.T) {
	const head = "sites: {eu: {lat: 50, lon: 8}}\n"
	f, err := Parse("x.yaml", []byte(head+`node: {name: ns1, site: eu, dns: ["127.0.0.1:5300"]}`))
	if want := netip.MustParseAddrPort("127.0.0.1:8053"); err != nil || f.Node.EffectiveAdmin() != want {
		t.Errorf("got %v, want no error and the API on %v", err, want)
	}
	_, err = Parse("x.yaml", []byte(head+`node: {name: ns1, site: eu, dns: ["127.0.0.1:8053"]}`))
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:8053 is already node.dns[0]") {
		t.Errorf("got %v, want that the address is taken", err)
	}
}
