package config

import (
	"cmp"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// What proxies are told beside where to send requests. Each word is Envoy's own, in the
// spelling of its JSON, and means what Envoy's documentation says.

// XDS configures the config server for proxies: ADS and LRS over gRPC. The zero value is
// none.
type XDS struct {
	Listen       netip.AddrPort `json:"listen,omitzero"`
	TLS          TLSFiles       `json:"tls,omitzero"`           // cert and key of the server; ca: clients must show a certificate of it
	Certificates string         `json:"certificates,omitempty"` // folder of NAME.crt, NAME.key and NAME.ca: what pools name, for SDS
}

// Upstream steers the proxies of a pool to the next pool on a request's way: a cluster, in
// Envoy's words. In YAML one pool's name or a list of names is short for pools with weight 1.
type Upstream struct {
	Steering         `json:",inline"`
	Mode             string            `json:"mode,omitempty"`           // one of Modes; default waterfall-by-region
	ConnectTimeout   Duration          `json:"connectTimeout,omitempty"` // default 1 s
	LBPolicy         string            `json:"lbPolicy,omitempty"`       // one of LBPolicies, within a locality; default LEAST_REQUEST
	HTTP2            bool              `json:"http2,omitempty"`          // speak HTTP/2 to endpoints, rather than HTTP/1.1
	CircuitBreakers  *CircuitBreakers  `json:"circuitBreakers,omitempty"`
	OutlierDetection *OutlierDetection `json:"outlierDetection,omitempty"`
	TLS              *UpstreamTLS      `json:"tls,omitempty"`
	LoadMetrics      []string          `json:"lrsReportEndpointMetrics,omitempty"` // of ORCA reports; default cpu_utilization and application_utilization
	OOBPeriod        Duration          `json:"oobReportingPeriod,omitempty"`       // at which gfe asks endpoints for ORCA reports out of band; default never
	DropOverloads    bool              `json:"dropOverloads,omitempty"`            // let proxies drop what all pools together have no capacity for
	Envoy            Raw               `json:"envoy,omitempty"`                    // merged into the Cluster
}

// The modes of an upstream: how far the traffic of one pool of proxies is spread over the
// pools that its policy leaves. What is over a capacity goes on to what comes next, in each.
const (
	// WaterfallByRegion fills the nearest region, whose pools are loaded alike, by weight and
	// capacity; then the next region. As far as that allows, each proxy uses the pools of the
	// region that are nearest to it.
	WaterfallByRegion = "waterfall-by-region"
	// WaterfallByZone fills the nearest site, then the other sites of its region, then the next
	// region.
	WaterfallByZone = "waterfall-by-zone"
	// SprayToRegion fills the nearest region and then the next, as WaterfallByRegion does, but
	// every proxy spreads over all pools of the region, by weight and capacity.
	SprayToRegion = "spray-to-region"
	// SprayToWorld spreads over every pool, by weight and capacity.
	SprayToWorld = "spray-to-world"
)

// Modes are the modes of an upstream.
var Modes = []string{WaterfallByRegion, WaterfallByZone, SprayToRegion, SprayToWorld}

// LBPolicies are Envoy's load balancing policies within a locality.
var LBPolicies = []string{"LEAST_REQUEST", "ROUND_ROBIN", "RANDOM", "RING_HASH", "MAGLEV"}

// CircuitBreakers bound what one proxy does to an upstream at once (envoy
// config.cluster.v3.CircuitBreakers.Thresholds). 0 is Envoy's default: 1024, for retries 3.
type CircuitBreakers struct {
	MaxConnections     int `json:"maxConnections,omitempty"`
	MaxPendingRequests int `json:"maxPendingRequests,omitempty"`
	MaxRequests        int `json:"maxRequests,omitempty"`
	MaxRetries         int `json:"maxRetries,omitempty"`
}

// OutlierDetection lets a proxy avoid endpoints that fail it (envoy
// config.cluster.v3.OutlierDetection). 0 is Envoy's default.
type OutlierDetection struct {
	Consecutive5xx            int      `json:"consecutive5xx,omitempty"`            // 5
	ConsecutiveGatewayFailure int      `json:"consecutiveGatewayFailure,omitempty"` // 5, not enforced
	Interval                  Duration `json:"interval,omitempty"`                  // 10 s
	BaseEjectionTime          Duration `json:"baseEjectionTime,omitempty"`          // 30 s
	MaxEjectionPercent        int      `json:"maxEjectionPercent,omitempty"`        // 10
}

// UpstreamTLS lets proxies speak TLS to endpoints. Names are of files in
// node.xds.certificates.
type UpstreamTLS struct {
	SNI         string `json:"sni,omitempty"`         // and the name that the certificate must hold
	CA          string `json:"ca,omitempty"`          // NAME.ca: who signs the endpoints' certificates
	Certificate string `json:"certificate,omitempty"` // NAME.crt and NAME.key: what the proxy shows
}

// Proxy is what the proxies of a pool are told beside their upstream.
type Proxy struct {
	Listen    netip.AddrPort      `json:"listen,omitzero"`     // default [::] and the pool's port
	TLS       *DownstreamTLS      `json:"tls,omitempty"`       // to users
	Upstreams map[string]Upstream `json:"upstreams,omitempty"` // further ones, for routes; "upstream" is the pool's own
	Routes    []Route             `json:"routes,omitempty"`    // in order: the first that matches. What none matches goes to the pool's upstream
	Tracing   *ProxyTracing       `json:"tracing,omitempty"`   // default none
	Envoy     *ProxyRaw           `json:"envoy,omitempty"`
}

// DownstreamTLS lets proxies speak TLS to users. Names are of files in
// node.xds.certificates.
type DownstreamTLS struct {
	Certificate string `json:"certificate"`        // NAME.crt and NAME.key
	ClientCA    string `json:"clientCA,omitempty"` // NAME.ca: users must show a certificate of it
}

// Route says what happens to some requests (envoy config.route.v3.Route, with the domains
// of its virtual host).
type Route struct {
	Domains       []string     `json:"domains,omitempty"` // hosts: www.example.com, *.example.com; default every one
	Match         RouteMatch   `json:"match,omitzero"`    // default every path
	Upstream      string       `json:"upstream,omitempty"`
	PrefixRewrite string       `json:"prefixRewrite,omitempty"`
	HTTPSRedirect bool         `json:"httpsRedirect,omitempty"` // send users to https://, rather than requests to the upstream
	Timeout       Duration     `json:"timeout,omitempty"`       // of the whole answer; default 15 s
	IdleTimeout   Duration     `json:"idleTimeout,omitempty"`   // of a stream without a byte; default 5 min
	RetryPolicy   *RetryPolicy `json:"retryPolicy,omitempty"`   // default: once, where no connection or stream came to be
	Envoy         Raw          `json:"envoy,omitempty"`         // merged into the Route
}

// RouteMatch selects requests by their path. At most one field is set.
type RouteMatch struct {
	Prefix    string `json:"prefix,omitempty"`
	Path      string `json:"path,omitempty"`
	SafeRegex string `json:"safeRegex,omitempty"` // RE2, of the whole path
}

// RetryPolicy says when a proxy tries again (envoy config.route.v3.RetryPolicy).
type RetryPolicy struct {
	RetryOn       []string `json:"retryOn"`                 // such as connect-failure, refused-stream, reset, 5xx, gateway-error, unavailable
	NumRetries    int      `json:"numRetries,omitempty"`    // default 1
	PerTryTimeout Duration `json:"perTryTimeout,omitempty"` // default that of the route
}

// RetryConditions are what Envoy may try again after: those of requests, then those of gRPC.
var RetryConditions = []string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx",
	"refused-stream", "retriable-status-codes", "retriable-headers", "http3-post-connect-failure",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

// ProxyRaw holds raw fields of what the proxies of a pool are told.
type ProxyRaw struct {
	Listener Raw `json:"listener,omitempty"`              // merged into the Listener
	HTTP     Raw `json:"httpConnectionManager,omitempty"` // merged into its HttpConnectionManager
}

// Raw is a part of one of Envoy's messages in its JSON form: it is merged into what Meridian
// makes, mapping by mapping; other values replace. It is the way to what has no word here.
type Raw map[string]any

// Upstreams returns every upstream of p by name; that of the pool itself is "upstream". The
// caller may change the map.
func (p Pool) Upstreams() map[string]Upstream {
	all := map[string]Upstream{}
	if p.Proxy != nil {
		maps.Copy(all, p.Proxy.Upstreams)
	}
	if p.Upstream != nil {
		all[DefaultUpstream] = *p.Upstream
	}
	return all
}

// upstreamPath is where the upstream of that name of a pool stands.
func upstreamPath(pool, name string) path {
	if name == DefaultUpstream {
		return path{"pools", pool, "upstream"}
	}
	return path{"pools", pool, "proxy", "upstreams", name}
}

// DefaultUpstream is the name of a pool's own upstream.
const DefaultUpstream = "upstream"

// ownClusters begins the names of clusters that proxies have beside upstreams: that of the config
// server in their bootstrap, that of a collector of spans.
const ownClusters = "gslb_"

// EffectiveRegion returns the region of the site of that name.
func (s Site) EffectiveRegion(name string) string { return cmp.Or(s.Region, name) }

// modal are the stages that leave the order of pools to their distance.
var modal = []string{"health", "nearest", "fence", "select"}

// ByDistance reports whether the policy leaves the order of pools to their distance, so that
// a mode may arrange them. Otherwise they are used in the order of the policy.
func (u Upstream) ByDistance() bool {
	return !slices.ContainsFunc(u.Policy, func(s Stage) bool { return !slices.Contains(modal, s.Name()) })
}

// KeepsNear reports whether the proxies of a region share its pools by distance.
func (u Upstream) KeepsNear() bool {
	return u.ByDistance() && (u.Mode == "" || u.Mode == WaterfallByRegion)
}

// UsesLoad reports whether a stage of o asks how much of a pool's capacity is in use.
func (o *Objects) UsesLoad() (uses bool) {
	o.eachStage(func(s *Stage) { uses = uses || s.Shed != nil })
	return uses
}

// Shed returns the stage by which a service hands on clients under load: the first of its
// policy, its chains and its cases included; nil when it has none.
func (o *Objects) Shed(service string) *ShedStage { return o.shed(o.Services[service].Policy, 8) }

func (o *Objects) shed(stages []Stage, depth int) *ShedStage {
	if depth == 0 { // a chain of chains that is valid is not so deep
		return nil
	}
	for _, s := range stages {
		var found *ShedStage
		switch {
		case s.Shed != nil:
			found = s.Shed
		case s.Chain != nil:
			found = o.shed(o.Chains[string(*s.Chain)].Policy, depth-1)
		case s.Match != nil:
			for _, c := range s.Match.Cases {
				if found == nil {
					found = o.shed(c.Then, depth-1)
				}
			}
			if found == nil {
				found = o.shed(s.Match.Else, depth-1)
			}
		}
		if found != nil {
			return found
		}
	}
	return nil
}

// isDefault reports whether u says nothing but its steering.
func (u Upstream) isDefault() bool {
	u.Steering = Steering{}
	return reflect.ValueOf(u).IsZero()
}

// raw reads any mapping: what is in it is for the proxy's own words to judge.
func (d *decoder) raw(n *yaml.Node, into *Raw, p path) {
	if !d.isMapping(n, p, "a mapping") {
		return
	}
	*into = Raw(d.rawMapping(n, p))
}

func (d *decoder) rawMapping(n *yaml.Node, p path) map[string]any {
	out := map[string]any{}
	for _, e := range d.pairs(n, p) {
		out[e.key] = d.rawValue(e.value, p.at(e.key))
	}
	return out
}

// rawValue reads a value of any type as encoding/json would: what goes to the store and
// comes back is the same.
func (d *decoder) rawValue(n *yaml.Node, p path) any {
	if n = d.enter(n, p); n == nil {
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		return d.rawMapping(n, p)
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, c := range n.Content {
			list[i] = d.rawValue(c, p.item(i))
		}
		return list
	}
	switch n.Tag {
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err == nil {
			switch v := v.(type) {
			case bool:
				return v
			case int:
				if f := float64(v); int(f) == v {
					return f
				}
			case float64:
				if v-v == 0 { // finite
					return v
				}
			}
		}
		d.fail(n, p, "found %s; expected a number that JSON can hold", describe(n))
		return nil
	case "!!null":
		d.fail(n, p, "no value; expected one")
		return nil
	}
	return n.Value
}

// xds checks the config server of this node.
func (c *checker) xds(p path, x XDS) {
	if !x.Listen.IsValid() {
		if (x != XDS{}) {
			c.missing(p.at("listen"), "no value; expected an address to serve proxies on, such as 127.0.0.1:18000")
		}
		return
	}
	if (x.TLS.Cert == "") != (x.TLS.Key == "") {
		c.fail(p.at("tls"), "expected cert and key together")
	}
	if x.TLS.CA != "" && x.TLS.Cert == "" {
		c.missing(p.at("tls").at("cert"), "no value; expected the server's certificate, since clients must show theirs")
	}
	if !x.Listen.Addr().IsLoopback() && x.TLS.CA == "" {
		c.missing(p.at("tls").at("ca"), "no value; expected who signs the proxies' certificates, since xds is not on loopback: %s", x.Listen)
	}
}

// upstream checks an upstream at p.
func (c *checker) upstream(p path, u Upstream) {
	c.steering(p, u.Steering)
	oneOf(c, p.at("mode"), u.Mode, Modes)
	if u.Mode != "" && u.Mode != WaterfallByRegion && !u.ByDistance() {
		c.fail(p.at("policy"), "orders pools beside mode %s, which does; expected stages of %s, or no mode", u.Mode, strings.Join(modal, ", "))
	}
	oneOf(c, p.at("lbPolicy"), u.LBPolicy, LBPolicies)
	c.timeout(p.at("connectTimeout"), u.ConnectTimeout, time.Minute)
	if cb := u.CircuitBreakers; cb != nil {
		at := p.at("circuitBreakers")
		for _, f := range []struct {
			name string
			v    int
		}{{"maxConnections", cb.MaxConnections}, {"maxPendingRequests", cb.MaxPendingRequests}, {"maxRequests", cb.MaxRequests}, {"maxRetries", cb.MaxRetries}} {
			number(c, at.at(f.name), f.v, 1<<30)
		}
	}
	if o := u.OutlierDetection; o != nil {
		at := p.at("outlierDetection")
		number(c, at.at("consecutive5xx"), o.Consecutive5xx, 1<<20)
		number(c, at.at("consecutiveGatewayFailure"), o.ConsecutiveGatewayFailure, 1<<20)
		number(c, at.at("maxEjectionPercent"), o.MaxEjectionPercent, 100)
		c.timeout(at.at("interval"), o.Interval, time.Hour)
		c.timeout(at.at("baseEjectionTime"), o.BaseEjectionTime, time.Hour)
	}
	if u.TLS != nil {
		c.upstreamTLS(p.at("tls"), u.TLS)
	}
	if given(c, p.at("oobReportingPeriod"), u.OOBPeriod) {
		c.span(p.at("oobReportingPeriod"), u.OOBPeriod, time.Second, time.Hour)
	}
	for i, m := range u.LoadMetrics {
		if m == "" || strings.ContainsFunc(m, isSpaceOrControl) {
			c.fail(p.at("lrsReportEndpointMetrics").item(i), "%q; expected a metric such as cpu_utilization or named_metrics.queue", m)
		}
	}
}

// urlPath checks the path of a request, or its begin.
func (c *checker) urlPath(p path, v string) {
	if v[0] != '/' || strings.ContainsAny(v, "?#") || strings.ContainsFunc(v, isSpaceOrControl) {
		c.fail(p, "%q; expected / and no spaces, ? or #", v)
	}
}

// timeout checks a duration of Envoy's, which counts milliseconds. Its 0 means never there, but
// our objects have it for what is not written: it is said by raw fields.
func (c *checker) timeout(p path, d Duration, most time.Duration) {
	if given(c, p, d) {
		c.span(p, d, time.Millisecond, most)
	}
}

// number checks a number of Envoy's, whose 0 is something else than its default.
func number(c *checker, p path, v, most int) {
	if given(c, p, v) {
		between(c, p, v, 1, most)
	}
}

func (c *checker) upstreamTLS(p path, t *UpstreamTLS) {
	if t.SNI != "" {
		c.domain(p.at("sni"), t.SNI)
	}
	if t.CA == "" {
		c.missing(p.at("ca"), "no value; expected who signs the endpoints' certificates")
	}
	c.secret(p.at("ca"), t.CA)
	c.secret(p.at("certificate"), t.Certificate)
}

func oneOf(c *checker, p path, v string, names []string) {
	if v != "" && !slices.Contains(names, v) {
		c.fail(p, "%q; %s", v, expected(names))
	}
}

// secret checks the name of a file in node.xds.certificates.
func (c *checker) secret(p path, name string) {
	if name == "" {
		return
	}
	if msg := checkName(name); msg != "" || filepath.Base(name) != name {
		c.fail(p, "%q; expected the name of a file in node.xds.certificates, without its ending", name)
	}
}

// proxy checks what the proxies of a pool are told.
func (c *checker) proxy(p path, pool Pool) {
	px := pool.Proxy
	if a := px.Listen; a.IsValid() && (a.Port() == 0 || a.Addr().Is4In6() || a.Addr().IsMulticast()) {
		c.fail(p.at("listen"), "%s; expected an address and a port such as 0.0.0.0:8080", a)
	}
	if !px.Listen.IsValid() && pool.Port == 0 {
		c.missing(p.at("listen"), "no value; expected where its proxies listen, here or as the pool's port")
	}
	if t := px.TLS; t != nil {
		if t.Certificate == "" {
			c.missing(p.at("tls").at("certificate"), "no value; expected the name of a certificate")
		}
		c.secret(p.at("tls").at("certificate"), t.Certificate)
		c.secret(p.at("tls").at("clientCA"), t.ClientCA)
	}
	if px.Tracing != nil {
		c.proxyTracing(p.at("tracing"), *px.Tracing)
	}
	for _, name := range slices.Sorted(maps.Keys(px.Upstreams)) {
		at := p.at("upstreams").at(name)
		c.name(at)
		switch {
		case name == DefaultUpstream:
			c.fail(at, "the name of the pool's own upstream; expected another")
		case strings.HasPrefix(name, ownClusters):
			c.fail(at, "the proxies have clusters of their own whose names begin with %s; expected another", ownClusters)
		}
		c.upstream(at, px.Upstreams[name])
	}
	all := pool.Upstreams()
	for i, r := range px.Routes {
		c.route(p.at("routes").item(i), r, all)
	}
}

func (c *checker) route(p path, r Route, upstreams map[string]Upstream) {
	for i, d := range r.Domains {
		name := strings.TrimPrefix(d, "*.")
		if d != "*" && (CanonicalName(name) != name || checkDomain(name) != "") {
			c.fail(p.at("domains").item(i), "%q; expected a host name, *.example.com or *", d)
		}
	}
	set := 0
	for _, m := range []struct{ name, v string }{{"prefix", r.Match.Prefix}, {"path", r.Match.Path}, {"safeRegex", r.Match.SafeRegex}} {
		at := p.at("match").at(m.name)
		switch {
		case m.v == "":
			continue
		case m.name == "safeRegex":
			if _, err := regexp.Compile(m.v); err != nil {
				c.fail(at, "%v; expected RE2", err)
			}
		default:
			c.urlPath(at, m.v)
		}
		set++
	}
	if set > 1 {
		c.fail(p.at("match"), "expected one of prefix, path and safeRegex")
	}
	name := cmp.Or(r.Upstream, DefaultUpstream)
	if _, ok := upstreams[name]; !ok && (!r.HTTPSRedirect || r.Upstream != "") {
		c.missing(p.at("upstream"), "no such upstream %q; %s", name, expected(slices.Sorted(maps.Keys(upstreams))))
	}
	if r.PrefixRewrite != "" {
		c.urlPath(p.at("prefixRewrite"), r.PrefixRewrite)
	}
	if r.HTTPSRedirect {
		for _, word := range []struct {
			name  string
			given bool
		}{
			{"upstream", r.Upstream != ""}, {"prefixRewrite", r.PrefixRewrite != ""}, {"timeout", r.Timeout != 0},
			{"idleTimeout", r.IdleTimeout != 0}, {"retryPolicy", r.RetryPolicy != nil},
		} {
			if word.given {
				c.fail(p.at(word.name), "given beside httpsRedirect, which sends no request on; expected one of the two")
			}
		}
	}
	c.timeout(p.at("timeout"), r.Timeout, 24*time.Hour)
	c.timeout(p.at("idleTimeout"), r.IdleTimeout, 24*time.Hour)
	if rp := r.RetryPolicy; rp != nil {
		at := p.at("retryPolicy")
		if len(rp.RetryOn) == 0 {
			c.missing(at.at("retryOn"), "no value; expected conditions such as connect-failure")
		}
		for i, on := range rp.RetryOn {
			if !slices.Contains(RetryConditions, on) { // Envoy goes on without what it does not know
				c.fail(at.at("retryOn").item(i), "%q; %s", on, expected(RetryConditions))
			}
		}
		number(c, at.at("numRetries"), rp.NumRetries, 100)
		c.timeout(at.at("perTryTimeout"), rp.PerTryTimeout, 24*time.Hour)
	}
}
