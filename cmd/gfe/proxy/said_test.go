package proxy

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	orcadata "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/protobuf/proto"

	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
)

// said64 is a report as gRPC servers send it.
func said64(t testing.TB, r *orcadata.OrcaLoadReport) string {
	b, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawStdEncoding.EncodeToString(b)
}

// TestLoadInAnswers has endpoints say their load in headers and in trailers, announced or not:
// the next report has the mean over requests, the user sees nothing of it.
func TestLoadInAnswers(t *testing.T) {
	half, full := said64(t, &orcadata.OrcaLoadReport{CpuUtilization: 0.5}), said64(t, &orcadata.OrcaLoadReport{CpuUtilization: 1, Utilization: map[string]float64{"disk": 0.25}})
	clear := new(http.Protocols)
	clear.SetUnencryptedHTTP2(true)
	for _, tt := range []struct {
		name string
		h2   bool
		say  func(w http.ResponseWriter, n string)
		want map[string]float64
	}{
		{"text", false, func(w http.ResponseWriter, n string) {
			w.Header().Set(headerORCA, "TEXT cpu_utilization="+map[string]string{"0": "0.5", "1": "1"}[n]+", utilization.disk=0.25")
		}, map[string]float64{"cpu_utilization": 0.75, "utilization.disk": 0.25}},
		{"json", false, func(w http.ResponseWriter, n string) {
			w.Header().Set(headerORCA, `JSON {"cpu_utilization": 0.5, "never_heard_of": 1}`)
		}, map[string]float64{"cpu_utilization": 0.5}},
		{"binary", false, func(w http.ResponseWriter, n string) {
			w.Header().Set(headerORCABin, map[string]string{"0": half, "1": full}[n])
		}, map[string]float64{"cpu_utilization": 0.75, "utilization.disk": 0.25}},
		{"an announced trailer", false, func(w http.ResponseWriter, n string) {
			w.Header().Set("Trailer", headerORCABin+", X-Sum")
			fmt.Fprint(w, "body")
			w.Header().Set(headerORCABin, full)
			w.Header().Set("X-Sum", "1")
		}, map[string]float64{"cpu_utilization": 1, "utilization.disk": 0.25}},
		{"a trailer of HTTP/2", true, func(w http.ResponseWriter, n string) {
			fmt.Fprint(w, "body")
			w.Header().Set(http.TrailerPrefix+headerORCABin, half)
			w.Header().Set(http.TrailerPrefix+"X-Sum", "1")
		}, map[string]float64{"cpu_utilization": 0.5}},
		{"one that says nothing half of the time", false, func(w http.ResponseWriter, n string) {
			if n == "0" {
				w.Header().Set(headerORCABin, half)
			}
		}, map[string]float64{"cpu_utilization": 0.5}},
		{"nonsense", false, func(w http.ResponseWriter, n string) {
			w.Header().Set(headerORCA, map[string]string{"0": "TEXT cpu_utilization=NaN", "1": "TEXT cpu_utilization=-1,utilization.disk=x"}[n])
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			gfetest.Leaks(t)
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { tt.say(w, r.URL.Query().Get("n")) }))
			if tt.h2 {
				s.Config.Protocols = clear
			}
			s.Start()
			t.Cleanup(s.Close)
			f := newFeed()
			p, base := start(t, Config{Source: f, H2C: tt.h2, Listen: []string{"http://127.0.0.1:0"}, Report: time.Hour})
			a := to(1, at(netip.MustParseAddrPort(s.Listener.Addr().String())))
			a.OutOfBand.Metrics = []string{"cpu_utilization", "utilization.*"}
			f.set(a)
			c := &http.Client{Transport: &http.Transport{}}
			if tt.h2 {
				c.Transport = &http.Transport{Protocols: clear}
			}
			t.Cleanup(c.CloseIdleConnections)
			before := p.Load()
			for n := range 2 {
				got := do(t, c, http.MethodGet, fmt.Sprintf("%s/?n=%d", base, n), nil)
				check(t, got, http.StatusOK)
				for _, h := range []http.Header{got.Header, got.Trailer} {
					for name := range h {
						if strings.HasPrefix(name, headerORCA) {
							t.Errorf("the user sees %s: %q", name, h[name])
						}
					}
				}
				if strings.Contains(tt.name, "trailer") && got.Trailer.Get("X-Sum") != "1" {
					t.Errorf("another trailer is gone as well: %v", got.Trailer)
				}
			}
			gfetest.Eventually(t, "both requests have ended", func() bool { return p.Load().Requests.InProgress == 0 })
			now := p.Load()
			if got := since(before, now, time.Second).Upstreams[0].Metrics; !maps.Equal(got, tt.want) {
				t.Errorf("reported %v, want %v", got, tt.want)
			}
			if got := since(now, p.Load(), time.Second).Upstreams[0].Metrics; got != nil {
				t.Errorf("reported again without a request: %v", got)
			}
		})
	}
}

// FuzzParseReport reads anything as a report: nothing but numbers within bounds comes of it.
func FuzzParseReport(f *testing.F) {
	f.Add("TEXT cpu_utilization=0.5,named_metrics.x=1", "")
	f.Add(`JSON {"utilization": {"disk": 0.1}}`, "")
	f.Add("BIN CQAAAAAAAOA/", "CQAAAAAAAOA/=")
	f.Fuzz(func(t *testing.T, text, bin string) {
		r := takeReport(http.Header{headerORCA: {text}, headerORCABin: {bin}})
		if r == nil {
			return
		}
		for name, v := range readReport(r, []string{"cpu_utilization", "eps", "utilization.*", "named_metrics.*"}) {
			if !(v >= 0 && v <= maxMetric) {
				t.Errorf("%s is %v", name, v)
			}
		}
	})
}
