package xds

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/xds/bootstrap"
)

// modeTests say what each mode does with the same load: two pools of proxies in one region,
// of which the first asks for thrice as much as the other, and a frontend pool at every site.
var modeTests = []struct {
	mode, one, two string             // assignments of the first pool and of the other
	first, second  map[string]float64 // the same as parts of a hundred requests, as Envoy does
}{
	{
		config.WaterfallByZone,
		"0:fe-eu1×1000, 1:fe-eu2×1000, 2:fe-us×1000, 3:fe-ap×1000",
		"0:fe-eu2×1000, 1:fe-eu1×1000, 2:fe-us×1000, 3:fe-ap×1000",
		map[string]float64{"fe-eu1": 100}, map[string]float64{"fe-eu2": 100},
	}, {
		// 200 requests a second for each of the region's pools: all of the smaller demand at
		// home, and of the larger one what is left.
		config.WaterfallByRegion,
		"0:fe-eu1×667, 0:fe-eu2×333, 1:fe-us×1000, 2:fe-ap×1000",
		"0:fe-eu2×1000, 1:fe-eu1×1000, 2:fe-us×1000, 3:fe-ap×1000",
		map[string]float64{"fe-eu1": 66.7, "fe-eu2": 33.3}, map[string]float64{"fe-eu2": 100},
	}, {
		config.SprayToRegion,
		"0:fe-eu1×500, 0:fe-eu2×500, 1:fe-us×1000, 2:fe-ap×1000",
		"0:fe-eu2×500, 0:fe-eu1×500, 1:fe-us×1000, 2:fe-ap×1000",
		map[string]float64{"fe-eu1": 50, "fe-eu2": 50}, map[string]float64{"fe-eu1": 50, "fe-eu2": 50},
	}, {
		config.SprayToWorld,
		"0:fe-eu1×250, 0:fe-eu2×250, 0:fe-us×250, 0:fe-ap×250",
		"0:fe-eu2×250, 0:fe-eu1×250, 0:fe-us×250, 0:fe-ap×250",
		map[string]float64{"fe-eu1": 25, "fe-eu2": 25, "fe-us": 25, "fe-ap": 25},
		map[string]float64{"fe-eu1": 25, "fe-eu2": 25, "fe-us": 25, "fe-ap": 25},
	},
}

// modeFleet is what modeTests are about. The endpoints are those of fe-eu1, fe-eu2, fe-us and
// fe-ap.
func modeFleet(mode string, portOne, portTwo int, endpoints ...string) string {
	up := "{pools: {fe-eu1: {}, fe-eu2: {}, fe-us: {}, fe-ap: {}}, mode: " + mode + "}"
	text := sites + fmt.Sprintf(`
pools:
  gfe-1: {site: eu-1, port: %[1]d, endpoints: [{address: 127.0.0.1}], upstream: %[3]s, proxy: {listen: "127.0.0.1:%[1]d"}}
  gfe-2: {site: eu-2, port: %[2]d, endpoints: [{address: 127.0.0.1}], upstream: %[3]s, proxy: {listen: "127.0.0.1:%[2]d"}}
`, portOne, portTwo, up)
	for i, site := range []string{"eu-1", "eu-2", "us", "ap"} {
		text += fmt.Sprintf("  fe-%s: {site: %s, probe: accept, port: 83, capacity: 1000, endpoints: [%s]}\n", strings.ReplaceAll(site, "-", ""), site, endpoints[i])
	}
	return text
}

// modeLoads is what the two pools ask for.
func modeLoads(one, two float64) []PoolLoad {
	return []PoolLoad{{"gfe-1", "upstream", "fe-eu1", one}, {"gfe-2", "upstream", "fe-eu2", two}}
}

func (w *World) assignmentText(t testing.TB, pool string) string {
	return assignmentText(message(t, w, pool, Envoy, Endpoints, "upstream@"+pool, &endpoint.ClusterLoadAssignment{}))
}

// TestModes wants the assignments of each mode, and that how the modes share a region makes
// no difference to its pools.
func TestModes(t *testing.T) {
	at := []string{"{address: 10.1.0.1}", "{address: 10.2.0.1}", "{address: 10.3.0.1}", "{address: 10.4.0.1}"}
	for _, tt := range modeTests {
		t.Run(tt.mode, func(t *testing.T) {
			w := world(t, nil, modeFleet(tt.mode, 81, 82, at...), state{loads: modeLoads(300, 100)})
			expect(t, "gfe-1", w.assignmentText(t, "gfe-1"), tt.one)
			expect(t, "gfe-2", w.assignmentText(t, "gfe-2"), tt.two)
			if len(w.Spills) != 0 {
				t.Errorf("spills %+v, want none: all is within capacity", w.Spills)
			}
		})
	}
	t.Run("by region, without load", func(t *testing.T) { // nobody knows yet what would load the pools alike
		w := world(t, nil, modeFleet(config.WaterfallByRegion, 81, 82, at...), state{})
		expect(t, "gfe-1", w.assignmentText(t, "gfe-1"), modeTests[2].one)
	})
	t.Run("by region, over its capacity", func(t *testing.T) {
		w := world(t, nil, modeFleet(config.WaterfallByRegion, 81, 82, at...), state{loads: modeLoads(2500, 500)})
		// 2,000 fit, to each its part: 1,667 and 333; the rest goes to the next region.
		expect(t, "gfe-1", w.assignmentText(t, "gfe-1"), "0:fe-eu1×400, 0:fe-eu2×267, 0:fe-us×333, 1:fe-ap×1000")
		expect(t, "gfe-2", w.assignmentText(t, "gfe-2"), "0:fe-eu2×667, 0:fe-us×333, 1:fe-eu1×1000, 2:fe-ap×1000")
		if len(w.Spills) != 2 {
			t.Errorf("spills %+v, want one of each pool", w.Spills)
		}
	})
}

// TestNoiseIsNotTold lets the demand wander: proxies are told only what matters, and all that
// does.
func TestNoiseIsNotTold(t *testing.T) {
	at := []string{"{address: 10.1.0.1}", "{address: 10.2.0.1}", "{address: 10.3.0.1}", "{address: 10.4.0.1}"}
	text := modeFleet(config.WaterfallByZone, 81, 82, at...)
	var w *World
	told := func(one float64) string {
		w = world(t, w, text, state{loads: modeLoads(one, 0)})
		return w.assignmentText(t, "gfe-1")
	}
	for _, tt := range []struct {
		what   string
		demand float64
		want   string
	}{
		{"at the capacity", 1000, "0:fe-eu1×1000, 1:fe-eu2×1000, 2:fe-us×1000, 3:fe-ap×1000"},
		{"over it by noise", 1015, "0:fe-eu1×1000, 1:fe-eu2×1000, 2:fe-us×1000, 3:fe-ap×1000"},
		{"over it", 1250, "0:fe-eu1×800, 0:fe-eu2×200, 1:fe-us×1000, 2:fe-ap×1000"},
		{"noise", 1270, "0:fe-eu1×800, 0:fe-eu2×200, 1:fe-us×1000, 2:fe-ap×1000"},
		{"more", 1600, "0:fe-eu1×625, 0:fe-eu2×375, 1:fe-us×1000, 2:fe-ap×1000"},
		{"a little over", 1010, "0:fe-eu1×990, 0:fe-eu2×10, 1:fe-us×1000, 2:fe-ap×1000"},
		{"within again", 995, "0:fe-eu1×1000, 1:fe-eu2×1000, 2:fe-us×1000, 3:fe-ap×1000"},
	} {
		expect(t, tt.what, told(tt.demand), tt.want)
	}
}

// TestEnvoyModes runs a real Envoy in each of the two pools, and counts where their requests
// go in each mode.
func TestEnvoyModes(t *testing.T) {
	envoyBinary(t)
	s := serve(t, Options{})
	var at []string
	for i, name := range []string{"fe-eu1", "fe-eu2", "fe-us", "fe-ap"} {
		at = append(at, runBackend(t, name, fmt.Sprintf("127.0.0.%d:0", i+2), nil).endpointYAML())
	}
	ports := []int{freePort(t), freePort(t)}
	var w *World
	set := func(mode string) {
		w = world(t, w, modeFleet(mode, ports[0], ports[1], at...), state{loads: modeLoads(300, 100)})
		s.Set(w)
	}
	set(modeTests[0].mode)
	for i, site := range []string{"eu-1", "eu-2"} {
		pool := fmt.Sprintf("gfe-%d", i+1)
		runEnvoy(t, bootstrap.Proxy{ID: pool, Pool: pool, Site: site, Region: "eu", Servers: []string{s.Addr().String()}})
	}
	for _, tt := range modeTests {
		set(tt.mode)
		for i, want := range []map[string]float64{tt.first, tt.second} {
			client := &http.Client{Timeout: 10 * time.Second}
			url := fmt.Sprintf("http://127.0.0.1:%d/", ports[i])
			// A round is true to the weights once the Envoy's thread has them; before that it is
			// not, and another is counted.
			eventually(t, 60*time.Second, func() string {
				const n = 200
				got := map[string]int{}
				for range n {
					name, err := get(client, url, "")
					if err != nil {
						return err.Error()
					}
					got[name]++
				}
				for _, name := range []string{"fe-eu1", "fe-eu2", "fe-us", "fe-ap"} {
					part := float64(got[name]) / n * 100
					if want[name] == 0 && part > 0 || part < want[name]-10 || part > want[name]+10 {
						return fmt.Sprintf("%s: of %d requests of proxy %d went %v; want %v of a hundred", tt.mode, n, i+1, got, want)
					}
				}
				return ""
			})
			client.CloseIdleConnections()
		}
	}
}
