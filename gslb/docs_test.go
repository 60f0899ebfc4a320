package gslb

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
)

var update = flag.Bool("update", false, "rewrite the answers in docs/policies.md")

// docsPlaces is the table of docs/policies.md.
var docsPlaces = map[string]geo.Place{
	"198.18.0.0/24":   {Located: true, Lat: 40.7, Lon: -74.0, City: "New York", Subdivision: "NY", Country: "US", Continent: "NA", ASN: 64500},
	"198.18.1.0/24":   {Located: true, Lat: 50.1, Lon: 8.7, City: "Frankfurt", Subdivision: "HE", Country: "DE", Continent: "EU"},
	"198.18.2.0/24":   {Located: true, Lat: 48.9, Lon: 2.4, City: "Paris", Country: "FR", Continent: "EU"},
	"198.18.3.0/24":   {Located: true, Lat: 1.3, Lon: 103.8, City: "Singapore", Country: "SG", Continent: "AS"},
	"198.18.4.0/24":   {Located: true, Lat: 37.8, Lon: -122.4, City: "San Francisco", Subdivision: "CA", Country: "US", Continent: "NA", ASN: 64501},
	"2001:db8:1::/48": {Located: true, Lat: 50.1, Lon: 8.7, City: "Frankfurt", Subdivision: "HE", Country: "DE", Continent: "EU"},
}

// TestPolicyDocs runs every example of docs/policies.md: a block of yaml is a service (with
// chains and states beside it), and in the block after it each line that asks is followed by
// the answer.
func TestPolicyDocs(t *testing.T) {
	const path = "../docs/policies.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var g geo.Config
	for p, place := range docsPlaces {
		g.Overrides = append(g.Overrides, geo.Override{Prefix: netip.MustParsePrefix(p), Place: place})
		if !strings.Contains(string(text), "| "+p+" |") {
			t.Errorf("%s does not stand in the table of %s", p, path)
		}
	}
	m, err := geo.Open(g)
	if err != nil {
		t.Fatal(err)
	}
	var world, section string
	var objects *config.Objects
	lines := strings.Split(string(text), "\n")
	asked := 0
	for i := 0; i < len(lines); i++ {
		if strings.HasPrefix(lines[i], "#") {
			section = strings.TrimLeft(lines[i], "# ")
		}
		if !strings.HasPrefix(lines[i], "```") {
			continue
		}
		kind, start := lines[i][3:], i+1
		for i++; lines[i] != "```"; i++ {
		}
		block := lines[start:i]
		switch kind {
		case "yaml world":
			world = strings.Join(block, "\n")
		case "yaml":
			objects = docsObjects(t, section, world, block)
		case "":
			for j := 0; j+1 < len(block); j += 2 {
				asked++
				want := "=> " + docsAnswer(t, objects, m, block[j])
				if block[j+1] != want && !*update {
					t.Errorf("%s:%d: %s\ngot  %s\nwant %s", path, start+j+2, block[j], want, block[j+1])
				}
				lines[start+j+1] = want
			}
		}
	}
	if asked < 60 {
		t.Errorf("%d questions, want all", asked)
	}
	if *update {
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// docsObjects returns the world with a service www.example.com of those lines; chains and
// states stand beside the service.
func docsObjects(t *testing.T, section, world string, block []string) *config.Objects {
	t.Helper()
	service, beside := []string{}, []string{}
	into := &service
	for _, l := range block {
		if !strings.HasPrefix(l, " ") {
			into = &service
			if strings.HasPrefix(l, "chains:") || strings.HasPrefix(l, "states:") {
				into = &beside
			}
		}
		if into == &service {
			l = "    " + l
		}
		*into = append(*into, l)
	}
	yaml := world + "\nservices:\n  www.example.com:\n" + strings.Join(service, "\n") + "\n" + strings.Join(beside, "\n")
	o, err := config.ParseObjects(section, []byte(yaml))
	if err == nil {
		err = config.Validate(o)
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", section, err, yaml)
	}
	return o
}

// docsAnswer answers a question: a client, and what is not as it should be.
func docsAnswer(t *testing.T, o *config.Objects, m *geo.Map, question string) string {
	t.Helper()
	words := strings.Fields(question)
	in := Inputs{
		Revision: 1, Objects: o, Geo: m, Now: now, Verdicts: map[EndpointID]Verdict{}, Flipping: map[EndpointID]bool{}, FlipAt: map[EndpointID]time.Time{},
		Regional: map[string]map[EndpointID]Verdict{}, Since: map[EndpointID]time.Time{}, Load: map[string]float64{},
	}
	number := func(s string) float64 {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	span := func(s string) time.Duration {
		v, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	rows := map[RTTKey]RTT{}
	args := map[string][]string{}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		args[key] = strings.Split(value, ",")
	}
	for _, at := range args["at"] {
		v, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		in.Now = v
	}
	each := func(pool string, f func(EndpointID)) {
		name, addr, one := strings.Cut(pool, "/")
		for _, e := range o.Pools[name].Endpoints {
			if !one || e.Address.String() == addr {
				f(EndpointID{name, e.Address})
			}
		}
	}
	for name := range o.Pools {
		each(name, func(id EndpointID) { in.Verdicts[id] = Up })
	}
	for _, pool := range args["down"] {
		each(pool, func(id EndpointID) { in.Verdicts[id] = Down })
	}
	for _, d := range args["seen-down"] { // REGION:POOL
		region, pool, _ := strings.Cut(d, ":")
		if in.Regional[region] == nil {
			in.Regional[region] = map[EndpointID]Verdict{}
		}
		each(pool, func(id EndpointID) { in.Regional[region][id] = Down })
	}
	for _, f := range args["flip"] {
		pool, in1, known := strings.Cut(f, ":")
		each(pool, func(id EndpointID) {
			in.Flipping[id] = true
			if known {
				in.FlipAt[id] = in.Now.Add(span(in1))
			}
		})
	}
	for _, s := range args["since"] {
		pool, ago, _ := strings.Cut(s, ":")
		each(pool, func(id EndpointID) { in.Since[id] = in.Now.Add(span(ago)) })
	}
	for _, l := range args["load"] {
		pool, v, _ := strings.Cut(l, ":")
		in.Load[pool] = number(v)
	}
	for _, r := range args["rtt"] {
		f := strings.Split(r, ":")
		rows[RTTKey{netip.MustParsePrefix(f[0]), f[1]}] = RTT{Millis: number(f[2]), Samples: 10, At: in.Now}
	}
	in.RTT = NewRTTTable(rows)
	for k := range args {
		if !slices.Contains([]string{"at", "down", "seen-down", "flip", "since", "load", "rtt"}, k) {
			t.Fatalf("%s: no such word in %v", k, slices.Collect(maps.Keys(args)))
		}
	}
	s := mustBuild(t, nil, in)
	svc := s.Services[0]
	c := client(words[0])
	var d Decision
	s.Decide(svc, c, &d)
	checkExplains(t, s, svc, c)
	out := d.line()
	for i, target := range d.Targets {
		out += fmt.Sprintf(" %d:%s", i+1, target.Pool.Name)
	}
	return out
}
