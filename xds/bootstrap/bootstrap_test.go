package bootstrap

import (
	"encoding/json"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/meridian-gslb/meridian/gslb/config"
)

func TestYAML(t *testing.T) {
	full := Proxy{ID: "gfe-1", Pool: "gfe-eu", Site: "eu-west", Region: "eu", Servers: []string{"192.0.2.1:18000", "[2001:db8::1]:18000"},
		Admin: "127.0.0.1:9901", CA: "/ca.pem", Cert: "/gfe.crt", Key: "/gfe.key", Name: "xds.example.com"}
	tests := []struct {
		name    string
		change  func(*Proxy)
		want    []string // in the text
		without []string
		fault   string
	}{
		{"full", func(*Proxy) {}, []string{`cluster: "gfe-eu"`, `region: "eu", zone: "eu-west", sub_zone: "gfe-eu"`, "DELTA_GRPC", "load_stats_config", "type: STATIC", `filename: "/gfe.key"`, "san_type: DNS", "port_value: 9901"}, nil, ""},
		{"plain text", func(p *Proxy) { p.CA, p.Cert, p.Key, p.Name = "", "", "", "" }, nil, []string{"UpstreamTlsContext"}, ""},
		{"no admin", func(p *Proxy) { p.Admin = "" }, nil, []string{"admin:"}, ""},
		{"names", func(p *Proxy) { p.Servers = []string{"xds.example.com:18000"} }, []string{"type: STRICT_DNS"}, nil, ""},
		{"the server's address is its name", func(p *Proxy) { p.Name = "" }, []string{"san_type: IP_ADDRESS", `sni: "192.0.2.1"`}, nil, ""},
		{"a site is its own region", func(p *Proxy) { p.Region = "" }, []string{`region: "eu-west"`}, nil, ""},
		{"no server", func(p *Proxy) { p.Servers = nil }, nil, nil, "0 config servers"},
		{"no pool", func(p *Proxy) { p.Pool = "" }, nil, nil, `in pool ""`},
		{"a certificate that is watched", func(p *Proxy) { p.SDS = "/sds.yaml" }, []string{`path: "/sds.yaml"`, `trusted_ca: {filename: "/ca.pem"}`}, []string{"/gfe.key"}, ""},
		{"a certificate without a key", func(p *Proxy) { p.Key = "" }, nil, nil, `certificate "/gfe.crt" with key "": expected both`},
		{"a certificate in plain text", func(p *Proxy) { p.CA = "" }, nil, nil, "no CA: expected who signs"},
		{"not a server", func(p *Proxy) { p.Servers = []string{"xds"} }, nil, nil, `config server: "xds": expected host:port`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := full
			tt.change(&p)
			text, err := p.YAML()
			if tt.fault != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fault) {
					t.Errorf("error %v, want %q", err, tt.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var v map[string]any
			if err := yaml.Unmarshal([]byte(text), &v); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			for _, w := range tt.want {
				if !strings.Contains(text, w) {
					t.Errorf("no %q in\n%s", w, text)
				}
			}
			for _, w := range tt.without {
				if strings.Contains(text, w) {
					t.Errorf("%q in\n%s", w, text)
				}
			}
		})
	}
}

func TestGRPC(t *testing.T) {
	text, err := Proxy{ID: "fe-1", Pool: "fe", Site: "s", Servers: []string{"127.0.0.1:18000"}, CA: "/ca.pem", Cert: "/c", Key: "/k"}.GRPC()
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Node    struct{ ID, Cluster string }
		Servers []struct {
			URI string `json:"server_uri"`
		} `json:"xds_servers"`
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil || v.Node.Cluster != "fe" || v.Servers[0].URI != "127.0.0.1:18000" {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestEdgePool(t *testing.T) {
	o, err := config.ParseObjects("t.yaml", []byte(`
sites: {eu: {lat: 1, lon: 1}, us: {lat: 2, lon: 2}, ap: {lat: 3, lon: 3}}
pools:
  gfe: {site: eu, endpoints: [{address: 192.0.2.1}], upstream: fe}
  fe: {site: eu, endpoints: [{address: 192.0.2.2}], upstream: be}
  be: {site: eu, endpoints: [{address: 192.0.2.3}]}
  one: {site: us, endpoints: [{address: 192.0.2.4}], upstream: fe}
  two: {site: us, endpoints: [{address: 192.0.2.5}], upstream: fe}
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ site, want, fault string }{
		{"eu", "gfe", ""},
		{"us", "", "2 pools have proxies: one, two; expected --pool"},
		{"ap", "", "no pool with an upstream"},
		{"xx", "", "no such site; expected one of ap, eu, us"},
	} {
		got, err := EdgePool(o, tt.site)
		if got != tt.want || (err == nil) != (tt.fault == "") || err != nil && !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("site %s: %q, %v; want %q, %q", tt.site, got, err, tt.want, tt.fault)
		}
	}
}
