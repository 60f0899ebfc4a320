package node

import (
	"bytes"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/health"
)

const rttConfig = `
node:
  name: n1
  site: s
  dns: ["127.0.0.1:0"]
  admin: "127.0.0.1:0"
  rtt: {beacon: {listen: "127.0.0.1:0", rate: 50, trust: [127.0.0.0/8]}}
sites: {s: {lat: 0, lon: 0}}
zones: [{name: example.com, records: "@ 60 SOA ns. h. 1 2 3 4 5\n@ 60 NS ns.\n"}]
pools: {a: {site: s, endpoints: [{address: 192.0.2.1}]}, b: {site: s, endpoints: [{address: 192.0.2.2}]}}
services: {www.example.com: {pools: {a: {}, b: {weight: 1}}, policy: [health, {rtt: {minSamples: 2}}, {failover: [a, b]}]}}
`

// TestNodeSteersByRTT: what proxies and browsers report moves the answers for the clients that it
// is of, and for no others.
func TestNodeSteersByRTT(t *testing.T) {
	n := runNode(t, Options{File: parse(t, rttConfig)})
	answer := func(subnet string) string {
		t.Helper()
		q := new(miekg.Msg)
		q.SetQuestion("www.example.com.", miekg.TypeA)
		q.SetEdns0(1232, false)
		p := netip.MustParsePrefix(subnet)
		q.IsEdns0().Option = append(q.IsEdns0().Option, &miekg.EDNS0_SUBNET{Code: miekg.EDNS0SUBNET, Family: 1, SourceNetmask: uint8(p.Bits()), Address: p.Addr().AsSlice()})
		m, _, err := (&miekg.Client{Timeout: patience}).Exchange(q, n.DNSAddrs()[0].String())
		if err != nil || len(m.Answer) == 0 {
			t.Fatalf("%s: %v, %v", subnet, m, err)
		}
		return m.Answer[0].(*miekg.A).A.String()
	}
	if got := answer("198.51.100.0/24"); got != "192.0.2.1" {
		t.Fatalf("before anything is known: got %s", got)
	}
	base := "http://" + n.AdminAddr().String()
	post := func(path, body string, status int) {
		t.Helper()
		r, err := http.Post(base+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text := new(bytes.Buffer)
		text.ReadFrom(r.Body)
		if r.StatusCode != status {
			t.Errorf("%s %s: status %d, want %d: %s", path, body, r.StatusCode, status, text)
		}
	}
	// A proxy of b, in its load report, and a collector for a.
	post("/api/v1/load", `{"proxy":"p1","pool":"b","seconds":5,"requests":3,"errors":0,"inFlight":0,"rtts":[{"client":"198.51.100.0/24","ms":12.5,"samples":3}]}`, http.StatusNoContent)
	post(api.RTTPath, `{"pool":"a","rtts":[{"client":"198.51.100.7/32","ms":80,"samples":2}]}`, http.StatusNoContent)
	for _, bad := range []string{
		`{"pool":"no","rtts":[]}`, `{"pool":"a","rtts":[{"client":"0.0.0.0/0","ms":80,"samples":2}]}`,
		`{"pool":"a","rtts":[{"client":"198.51.100.0/24","ms":0,"samples":2}]}`, `{"pool":"a","rtts":[{"client":"198.51.100.0/24","ms":1,"samples":0}]}`,
	} {
		status := http.StatusBadRequest
		if strings.Contains(bad, `"no"`) {
			status = http.StatusNotFound
		}
		post(api.RTTPath, bad, status)
	}
	// Browsers of 203.0.113.0/24 find b faster; two samples count, and one each second is taken.
	beacon := "http://" + n.rtts.beacon.Addr().String() + "/rtt"
	for _, pool := range []string{"a", "b"} {
		ms := map[string]string{"a": "90", "b": "20"}[pool]
		for taken := 0; taken < 2; {
			r, err := http.Post(beacon+"?client=203.0.113.9&pool="+pool+"&ms="+ms, "text/plain", strings.NewReader("ping"))
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			switch r.StatusCode {
			case http.StatusNoContent:
				taken++
			case http.StatusTooManyRequests:
				time.Sleep(50 * time.Millisecond) // until the next second
			default:
				t.Fatalf("beacon: status %d", r.StatusCode)
			}
		}
	}
	waitFor(t, "the answers to follow", func() bool {
		return answer("198.51.100.0/24") == "192.0.2.2" && answer("203.0.113.0/24") == "192.0.2.2"
	})
	if got := answer("192.0.2.0/24"); got != "192.0.2.1" {
		t.Errorf("another client: got %s", got)
	}
	client, err := api.NewClient(base, "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := client.RTTs(t.Context())
	if err != nil || !got.Used || len(got.Rows) != 4 || got.Seen.Proxies != 5 || got.Seen.Beacons != 4 {
		t.Fatalf("got %+v, %v; want four rows", got, err)
	}
	if r := got.Rows[1]; r.Client.String() != "198.51.100.0/24" || r.Pool != "b" || r.Millis != 12.5 || r.Samples != 3 || r.Source != "proxies" {
		t.Errorf("row %+v", r)
	}
	page := get(t, base+"/metrics")
	for _, want := range []string{`meridian_rtt_rows{source="proxies"} 2`, `meridian_rtt_samples_total{source="beacons"} 4`} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
}

// TestProbedRTTs: of each site and pool the fastest endpoint counts, by its median, as one round
// trip; what is down, old or not believed does not.
func TestProbedRTTs(t *testing.T) {
	o := &config.Objects{
		Probes: map[string]config.Probe{"web": {HTTP: &config.HTTPProbe{TLS: true}}, "sh": {Exec: &config.ExecProbe{}}},
		Pools:  map[string]config.Pool{"eu": {Probe: "web"}, "x": {Probe: "sh"}, "none": {}},
	}
	ms := time.Millisecond
	up := func(site string, trend ...time.Duration) health.Vantage {
		return health.Vantage{Site: site, Up: true, Fresh: true, Latency: 3 * ms, Trend: trend}
	}
	late, down, odd := up("fra", ms), up("fra", ms), up("fra", ms)
	late.Fresh, down.Up, odd.Abstains = false, false, true
	views := []health.View{
		{Pool: "eu", Vantages: []health.Vantage{up("fra", 90*ms, 0, 30*ms, 33*ms), up("nyc", 300*ms), late, down, odd}},
		{Pool: "eu", Vantages: []health.Vantage{up("fra", 60*ms, 60*ms), up("nyc")}},
		{Pool: "x", Vantages: []health.Vantage{up("fra", ms)}},
		{Pool: "none", Vantages: []health.Vantage{up("fra", ms)}},
	}
	want := []gslb.ProbedRTT{{Site: "fra", Pool: "eu", Millis: 11, Samples: 3}, {Site: "nyc", Pool: "eu", Millis: 1, Samples: 1}}
	if got := probedRTTs(o, views); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
