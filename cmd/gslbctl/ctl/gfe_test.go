package ctl

import (
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb/config"
)

func gfeNode(t *testing.T, st api.Proxies) *fakeNode {
	t.Helper()
	o, err := config.ParseObjects("t.yaml", []byte(`
sites: {eu-west: {lat: 1, lon: 1, region: eu}, us-east: {lat: 2, lon: 2}}
pools:
  gfe-eu: {site: eu-west, port: 80, endpoints: [{address: 192.0.2.1}], upstream: fe-eu}
  fe-eu: {site: eu-west, endpoints: [{address: 192.0.2.2}]}
  gfe-us: {site: us-east, port: 80, endpoints: [{address: 192.0.2.3}], upstream: fe-eu}
  gfe2-us: {site: us-east, port: 80, endpoints: [{address: 192.0.2.4}], upstream: fe-eu}
`))
	if err != nil {
		t.Fatal(err)
	}
	return &fakeNode{answers: map[string]any{"GET /api/v1/objects": api.Objects{Objects: o}, "GET " + api.ProxiesPath: st}}
}

func TestGFEBootstrap(t *testing.T) {
	node := gfeNode(t, api.Proxies{Listen: "127.0.0.1:18000"})
	without := gfeNode(t, api.Proxies{})
	tests := []struct {
		name string
		node *fakeNode
		args string
		code int
		want []string // of what is printed, or of the fault
	}{
		{"by site", node, "--site eu-west --id one", 0, []string{`id: "one"`, `cluster: "gfe-eu"`, `locality: {region: "eu", zone: "eu-west", sub_zone: "gfe-eu"}`, `address: "127.0.0.1", port_value: 18000`}},
		{"by pool", node, "--pool gfe2-us --id one", 0, []string{`cluster: "gfe2-us"`, `zone: "us-east"`}},
		{"other servers", without, "--site eu-west --server-address 192.0.2.9:1,192.0.2.8:2", 0, []string{`"192.0.2.9", port_value: 1`, `"192.0.2.8", port_value: 2`}},
		{"with certificates", node, "--site eu-west --ca /ca --cert /c --key /k", 0, []string{`filename: "/ca"`, `filename: "/k"`}},
		{"of gRPC", node, "--pool gfe-eu --grpc", 0, []string{`"server_uri": "127.0.0.1:18000"`}},
		{"nowhere", node, "", ExitUsage, []string{"--site or --pool is missing"}},
		{"two pools", node, "--site us-east", 1, []string{"2 pools have proxies: gfe-us, gfe2-us; expected --pool"}},
		{"no such site", node, "--site mars", 1, []string{`site "mars": no such site; expected one of eu-west, us-east`}},
		{"no such pool", node, "--pool mars", 1, []string{`pool "mars": no such pool`}},
		{"another site's pool", node, "--pool gfe-us --site eu-west", 1, []string{"pool gfe-us is at site us-east"}},
		{"no upstream", node, "--pool fe-eu", 1, []string{"pool fe-eu has no upstream"}},
		{"no config server", without, "--site eu-west", 1, []string{"the node has no config server; set node.xds.listen"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, errs, code := run(t, tt.node, "", append([]string{"gfe", "bootstrap"}, strings.Fields(tt.args)...)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, errs)
			}
			for _, w := range tt.want {
				if !strings.Contains(out+errs, w) {
					t.Errorf("no %q in\n%s%s", w, out, errs)
				}
			}
		})
	}
}

func TestGFEList(t *testing.T) {
	refused := []api.ProxyResource{{Type: "clusters", Rejected: &api.Rejection{Version: "8-aa", Reason: "no such filter", At: at}}}
	st := api.Proxies{
		Listen: "127.0.0.1:18000", Revision: 8,
		Proxies: []api.Proxy{
			{ID: "gfe-1", Pool: "gfe-eu", Site: "eu-west", Agent: "envoy", Version: "1.40.0", Revision: 8, Rate: 120.25, Connected: at.Add(-time.Hour)},
			{ID: "gfe-2", Pool: "gfe-eu", Site: "eu-west", Agent: "envoy", Version: "1.40.0", Revision: 7, Behind: true, Types: refused},
			{ID: "gfe-3", Pool: "gfe-eu", Site: "eu-west", Revision: 7, Behind: true},
			{ID: "lost", Pool: "mars", Unknown: true},
		},
		Loads:  []api.PoolLoad{{From: "gfe-eu", Upstream: "upstream", To: "fe-eu", Site: "eu-west", Proxies: 2, Frozen: 1, Rate: 120.25, Capacity: 500, Age: 1.25}},
		Spills: []api.Spill{{From: "gfe-eu", Site: "eu-west", DNS: []api.Shed{{Service: "www.example.com", Keeps: 0.75, TTL: 10}}, Upstream: "upstream", Demand: 700, Placed: map[string]float64{"fe-us": 100, "fe-eu": 500}, Over: 100}},
		Faults: []api.LoadFault{{Proxy: "gfe-2", Pool: "gfe-eu", What: "upstream: interval 0s", Last: at}},
	}
	out, errs, code := run(t, gfeNode(t, st), "", "gfe", "list")
	want := `PROXY  POOL    SITE     AGENT         REVISION  REQ/S  STATE
gfe-1  gfe-eu  eu-west  envoy 1.40.0         8  120.2  current
gfe-2  gfe-eu  eu-west  envoy 1.40.0         7    0.0  refused
gfe-3  gfe-eu  eu-west                       7    0.0  on its way
lost   mars                                  0    0.0  no such pool: it is told nothing
! gfe-2 refused clusters at version 8-aa and keeps the last good ones: no such filter

FROM    UPSTREAM  TO     SITE     REQ/S  CAPACITY  ERR/S  DROP/S  OPEN       PROXIES   AGE
gfe-eu  upstream  fe-eu  eu-west  120.2       500    0.0     0.0     0  2 (1 silent)  1.2s
! site eu-west is over its capacity: proxies of gfe-eu ask for 700 requests a second, which go to fe-eu 500, fe-us 100, 100 of them beyond what all have capacity for; DNS: www.example.com leaves it 75 % of its clients, within a TTL of 10 s
! load reports of gfe-2 of gfe-eu: upstream: interval 0s
`
	if code != 0 || out != want {
		t.Errorf("exit code %d\ngot\n%s%s\nwant\n%s", code, out, errs, want)
	}
	for _, tt := range []struct {
		st   api.Proxies
		want string
	}{
		{api.Proxies{}, "the node has no config server"},
		{api.Proxies{Listen: "127.0.0.1:18000"}, "no proxy is connected to 127.0.0.1:18000"},
	} {
		if out, _, _ := run(t, gfeNode(t, tt.st), "", "gfe", "list"); !strings.Contains(out, tt.want) {
			t.Errorf("got %q, want %q", out, tt.want)
		}
	}
}
