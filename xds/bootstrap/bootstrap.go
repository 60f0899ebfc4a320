// Package bootstrap writes what a new proxy must know before it can ask the config server.
package bootstrap

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// What a bootstrap names, and the config server counts on.
const (
	Cluster = "gslb_xds" // of the config servers
	Runtime = "gslb"     // the layer of runtime keys that the config server fills (RTDS)
)

// Proxy is one proxy as it must know itself: who it is, and whom to ask.
type Proxy struct {
	ID      string   // of the proxy, unique in its pool
	Pool    string   // whose proxy it is
	Site    string   // of the pool
	Region  string   // of the site
	Servers []string // host:port of config servers: the first that answers is asked
	Admin   string   // host:port of Envoy's own admin interface; empty: none

	Cert, Key string // PEM files, for config servers with TLS: the certificate is for the name of the pool
	CA        string // PEM file: who signs the config servers' certificates; empty: no TLS
	SDS       string // file with what Secret returns, by which Envoy takes up a renewed certificate; empty: it reads it once
	Name      string // that the config servers' certificates hold; default the host of the first
}

// EdgePool returns the pool at site whose proxies users reach first: one with an upstream
// that is nobody's upstream. Where there is none, or more than one, it says so.
func EdgePool(o *config.Objects, site string) (string, error) {
	inner := map[string]bool{}
	for _, name := range o.Names("pools") {
		for _, u := range o.Pools[name].Upstreams() {
			for to := range u.Pools {
				inner[to] = true
			}
		}
	}
	var found []string
	for _, name := range o.Names("pools") {
		p := o.Pools[name]
		if p.Site == site && !inner[name] && (p.Upstream != nil || p.Proxy != nil) {
			found = append(found, name)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", fmt.Errorf("site %s: %d pools have proxies: %s; expected --pool with one of them", site, len(found), strings.Join(found, ", "))
	}
	if _, ok := o.Sites[site]; !ok {
		return "", fmt.Errorf("site %q: no such site; expected one of %s", site, strings.Join(o.Names("sites"), ", "))
	}
	return "", fmt.Errorf("site %s: no pool with an upstream; expected one whose proxies users reach", site)
}

// check names what is missing.
func (b Proxy) check() error {
	switch {
	case b.ID == "" || b.Pool == "" || len(b.Servers) == 0:
		return fmt.Errorf("bootstrap of %q in pool %q with %d config servers: expected all of them", b.ID, b.Pool, len(b.Servers))
	case (b.Cert == "") != (b.Key == ""):
		return fmt.Errorf("certificate %q with key %q: expected both, or none", b.Cert, b.Key)
	case b.CA == "" && (b.Cert != "" || b.Name != "" || b.SDS != ""):
		return errors.New("no CA: expected who signs the config servers' certificates, without which there is no TLS")
	}
	return nil
}

// YAML returns the bootstrap file of an Envoy. Its error names what is missing.
func (b Proxy) YAML() (string, error) {
	if err := b.check(); err != nil {
		return "", err
	}
	var out strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&out, format, args...) }
	p("# The bootstrap of Envoy %s, a proxy of pool %s: all else it asks of the config server.\n", b.ID, b.Pool)
	p("#   envoy -c THIS-FILE\n")
	p("node:\n  id: %q\n  cluster: %q\n  locality: {region: %q, zone: %q, sub_zone: %q}\n", b.ID, b.Pool, cmp.Or(b.Region, b.Site), b.Site, b.Pool)
	p(`dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{envoy_grpc: {cluster_name: gslb_xds}}]
  cds_config: {resource_api_version: V3, ads: {}}
  lds_config: {resource_api_version: V3, ads: {}}
cluster_manager:
  load_stats_config:
    api_type: GRPC
    transport_api_version: V3
    grpc_services: [{envoy_grpc: {cluster_name: gslb_xds}}]
`)
	// What is not there in time is done without: runtime keys only tune.
	p(`layered_runtime:
  layers:
  - name: %[1]s
    rtds_layer: {name: %[1]s, rtds_config: {resource_api_version: V3, initial_fetch_timeout: 5s, ads: {}}}
  - {name: admin, admin_layer: {}}
`, Runtime)
	if b.Admin != "" {
		host, port, err := splitHostPort(b.Admin)
		if err != nil {
			return "", fmt.Errorf("admin: %w", err)
		}
		p("admin: {address: {socket_address: {address: %q, port_value: %d}}}\n", host, port)
	}
	var hosts []string
	var first string
	static := true
	for i, s := range b.Servers {
		host, port, err := splitHostPort(s)
		if err != nil {
			return "", fmt.Errorf("config server: %w", err)
		}
		if i == 0 {
			first = host
		}
		static = static && net.ParseIP(host) != nil
		// The order is the preference: each has a priority of its own.
		hosts = append(hosts, fmt.Sprintf(`      - priority: %d
        lb_endpoints: [{endpoint: {address: {socket_address: {address: %q, port_value: %d}}}}]
`, i, host, port))
	}
	discovery := "STRICT_DNS"
	if static {
		discovery = "STATIC"
	}
	p(`static_resources:
  clusters:
  - name: gslb_xds
    type: %s
    connect_timeout: 2s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options: {connection_keepalive: {interval: 10s, timeout: 5s}}
    upstream_connection_options: {tcp_keepalive: {keepalive_time: 60}}
    health_checks:
    - {timeout: 2s, interval: 5s, no_traffic_interval: 5s, unhealthy_threshold: 2, healthy_threshold: 1, tcp_health_check: {}}
    load_assignment:
      cluster_name: gslb_xds
      endpoints:
%s`, discovery, strings.Join(hosts, ""))
	if b.CA != "" {
		p(`    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: %[1]q
        common_tls_context:
          alpn_protocols: [h2]
          validation_context:
            trusted_ca: {filename: %[2]q}
            match_typed_subject_alt_names: [{san_type: %[3]s, matcher: {exact: %[1]q}}]
`, cmp.Or(b.Name, first), b.CA, sanType(cmp.Or(b.Name, first)))
		switch {
		case b.Cert == "":
		case b.SDS != "":
			p("          tls_certificate_sds_secret_configs: [{name: %s, sds_config: {resource_api_version: V3, path_config_source: {path: %q}}}]\n", secretName, b.SDS)
		default:
			p("          tls_certificates: [{certificate_chain: {filename: %q}, private_key: {filename: %q}}]\n", b.Cert, b.Key)
		}
	}
	return out.String(), nil
}

// secretName is the name of what Secret returns.
const secretName = "gslb_certificate"

// Secret returns the file from which an Envoy reads its certificate (SDS): it watches the files
// that it names, and takes up what is moved into their place.
func (b Proxy) Secret() (string, error) {
	if err := b.check(); err != nil {
		return "", err
	}
	if b.Cert == "" {
		return "", errors.New("no certificate: expected that of the proxy, and its key")
	}
	return fmt.Sprintf(`# The certificate of an Envoy towards the config servers. Move a renewed one, and its key, into their place (mv).
resources:
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: %s
  tls_certificate: {certificate_chain: {filename: %q}, private_key: {filename: %q}}
`, secretName, b.Cert, b.Key), nil
}

func sanType(name string) string {
	if net.ParseIP(name) != nil {
		return "IP_ADDRESS"
	}
	return "DNS"
}

// GRPC returns the bootstrap of a gRPC client, as GRPC_XDS_BOOTSTRAP names it. Its targets
// are xds:///NAME, for the name of an upstream of the pool: xds:///upstream for the pool's
// own.
func (b Proxy) GRPC() (string, error) {
	if err := b.check(); err != nil {
		return "", err
	}
	creds := `{"type": "insecure"}`
	if b.CA != "" {
		creds = fmt.Sprintf(`{"type": "tls", "config": {"ca_certificate_file": %q, "certificate_file": %q, "private_key_file": %q}}`, b.CA, b.Cert, b.Key)
	}
	var servers []string
	for _, s := range b.Servers {
		if _, _, err := splitHostPort(s); err != nil {
			return "", fmt.Errorf("config server: %w", err)
		}
		servers = append(servers, fmt.Sprintf(`{"server_uri": %q, "channel_creds": [%s], "server_features": ["xds_v3"]}`, s, creds))
	}
	return fmt.Sprintf(`{
  "node": {"id": %q, "cluster": %q, "locality": {"region": %q, "zone": %q, "sub_zone": %q}},
  "xds_servers": [%s]
}
`, b.ID, b.Pool, cmp.Or(b.Region, b.Site), b.Site, b.Pool, strings.Join(servers, ", ")), nil
}

func splitHostPort(s string) (string, int, error) {
	host, port, err := net.SplitHostPort(s)
	n, nerr := strconv.ParseUint(port, 10, 16)
	if err != nil || nerr != nil || n == 0 || host == "" {
		return "", 0, fmt.Errorf("%q: expected host:port", s)
	}
	return host, int(n), nil
}
