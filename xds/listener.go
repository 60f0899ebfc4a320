package xds

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	mutation "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	headermutation "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	previoushosts "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// The names of what an Envoy listens with.
const (
	listenerName = "ingress"
	routesName   = "routes"
)

// HealthPath is answered by the proxies themselves: for the probes of their own pool.
const HealthPath = "/healthz"

// The headers by which a request says the way that it took: to the user and to the upstream.
const (
	headerPool = "x-gslb-pool"
	headerSite = "x-gslb-site"
)

// orcaHeaders are how endpoints say their own load (ORCA). They are for proxies only.
var orcaHeaders = []string{"endpoint-load-metrics", "endpoint-load-metrics-bin"}

// ingress makes the listener of a pool's Envoys, and its routes. A pool whose address is not
// known has none: its proxies have listeners of their own.
func (b *builder) ingress(upstreams map[string]config.Upstream) (listeners, routes []made, err error) {
	p := cmp.Or(b.config.Proxy, &config.Proxy{})
	listen := p.Listen
	if !listen.IsValid() {
		listen = netip.AddrPortFrom(netip.IPv6Unspecified(), b.config.Port)
	}
	if listen.Port() == 0 {
		return nil, nil, nil
	}
	raw := cmp.Or(p.Envoy, &config.ProxyRaw{})
	m := &hcm.HttpConnectionManager{
		StatPrefix:     b.pool.Name,
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: routesName}},
		HttpFilters:    append([]*hcm.HttpFilter{noLoadInTrailers()}, httpFilters()...),
		// What follows is Envoy's advice for edge proxies.
		UseRemoteAddress:             wrapperspb.Bool(true),
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcm.HttpConnectionManager_UNESCAPE_AND_REDIRECT,
		CommonHttpProtocolOptions: &core.HttpProtocolOptions{
			IdleTimeout:                  durationpb.New(time.Hour),
			HeadersWithUnderscoresAction: core.HttpProtocolOptions_REJECT_REQUEST,
		},
		Http2ProtocolOptions: &core.Http2ProtocolOptions{
			MaxConcurrentStreams:        wrapperspb.UInt32(100),
			InitialStreamWindowSize:     wrapperspb.UInt32(64 << 10),
			InitialConnectionWindowSize: wrapperspb.UInt32(1 << 20),
		},
		RequestHeadersTimeout: durationpb.New(30 * time.Second),
		Tracing:               b.tracer(),
		UpgradeConfigs:        []*hcm.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
	}
	if err := mergeRaw(m, raw.HTTP, "proxy.envoy.httpConnectionManager"); err != nil {
		return nil, nil, err
	}
	l := &listener.Listener{
		Name:                          listenerName,
		Address:                       address(listen.Addr().String(), uint32(listen.Port())),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(32 << 10),
		FilterChains: []*listener.FilterChain{{
			Filters: []*listener.Filter{{
				Name:       "envoy.filters.network.http_connection_manager",
				ConfigType: &listener.Filter_TypedConfig{TypedConfig: anyOf(m)},
			}},
		}},
	}
	if listen.Addr() == netip.IPv6Unspecified() {
		l.Address.GetSocketAddress().Ipv4Compat = true
	}
	if t := p.TLS; t != nil {
		l.FilterChains[0].TransportSocket = &core.TransportSocket{
			Name: "envoy.transport_sockets.tls",
			ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: anyOf(&tls.DownstreamTlsContext{
				CommonTlsContext:         tlsContext(t.Certificate, t.ClientCA, "", "h2", "http/1.1"),
				RequireClientCertificate: wrapperspb.Bool(t.ClientCA != ""),
			})},
		}
	}
	if err := mergeRaw(l, raw.Listener, "proxy.envoy.listener"); err != nil {
		return nil, nil, err
	}
	if err := olderTags(l); err != nil {
		return nil, nil, fmt.Errorf("proxy.envoy.listener: %w", err)
	}
	l.Name = listenerName
	r, err := b.routes(p.Routes, upstreams)
	if err != nil {
		return nil, nil, err
	}
	return []made{{name: listenerName, msg: l}}, []made{{name: routesName, msg: r}}, nil
}

func httpFilters() []*hcm.HttpFilter {
	return []*hcm.HttpFilter{{
		Name:       "envoy.filters.http.router",
		ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: anyOf(&router.Router{})},
	}}
}

// noLoadInTrailers takes off trailers what routes take off headers: gRPC servers say their load
// there. The router has read it by then.
func noLoadInTrailers() *hcm.HttpFilter {
	var off []*mutation.HeaderMutation
	for _, name := range orcaHeaders {
		off = append(off, &mutation.HeaderMutation{Action: &mutation.HeaderMutation_Remove{Remove: name}})
	}
	return &hcm.HttpFilter{
		Name: "envoy.filters.http.header_mutation",
		ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: anyOf(&headermutation.HeaderMutation{
			Mutations: &headermutation.Mutations{ResponseTrailersMutations: off},
		})},
	}
}

// routes makes the routes of a pool's Envoys: a virtual host for every domain that a route
// names, with the routes that may match there in the order of the configuration.
func (b *builder) routes(list []config.Route, upstreams map[string]config.Upstream) (*route.RouteConfiguration, error) {
	rc := &route.RouteConfiguration{
		Name:                            routesName,
		IgnorePortInHostMatching:        true,
		MostSpecificHeaderMutationsWins: true,
		RequestHeadersToAdd:             b.way(),
		ResponseHeadersToAdd:            b.way(),
		ResponseHeadersToRemove:         orcaHeaders,
	}
	compiled := make([]*route.Route, len(list))
	domains := []string{"*"}
	for i, r := range list {
		var err error
		if compiled[i], err = envoyRoute(r, fmt.Sprintf("proxy.routes[%d]", i)); err != nil {
			return nil, err
		}
		domains = append(domains, r.Domains...)
	}
	slices.Sort(domains)
	for _, d := range slices.Compact(domains) {
		vh := &route.VirtualHost{Name: d, Domains: []string{d}, Routes: []*route.Route{healthRoute()}}
		for i, r := range list {
			if covers(r.Domains, d) {
				vh.Routes = append(vh.Routes, compiled[i])
			}
		}
		if _, ok := upstreams[config.DefaultUpstream]; ok {
			r, err := envoyRoute(config.Route{}, "")
			if err != nil {
				return nil, err
			}
			vh.Routes = append(vh.Routes, r)
		}
		rc.VirtualHosts = append(rc.VirtualHosts, vh)
	}
	return rc, nil
}

// covers reports whether a route with these domains may match a host of virtual host d.
func covers(domains []string, d string) bool {
	if len(domains) == 0 {
		return true
	}
	for _, have := range domains {
		suffix, wild := strings.CutPrefix(have, "*")
		if have == d || wild && strings.HasSuffix(d, suffix) && d != suffix {
			return true
		}
	}
	return false
}

// way are the headers that say which pool took a request.
func (b *builder) way() []*core.HeaderValueOption {
	set := func(k, v string) *core.HeaderValueOption {
		return &core.HeaderValueOption{
			Header:       &core.HeaderValue{Key: k, Value: v},
			AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}
	}
	return []*core.HeaderValueOption{set(headerPool, b.pool.Name), set(headerSite, b.pool.Site)}
}

func healthRoute() *route.Route {
	return &route.Route{
		Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Path{Path: HealthPath}},
		Action: &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{
			Status: 200, Body: &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: "ok\n"}},
		}},
	}
}

// defaultRetry tries once more where no endpoint can have begun with the request.
var defaultRetry = config.RetryPolicy{RetryOn: []string{"connect-failure", "refused-stream", "reset-before-request"}}

func envoyRoute(r config.Route, where string) (*route.Route, error) {
	out := &route.Route{Match: &route.RouteMatch{}}
	switch m := r.Match; {
	case m.Path != "":
		out.Match.PathSpecifier = &route.RouteMatch_Path{Path: m.Path}
	case m.SafeRegex != "":
		out.Match.PathSpecifier = &route.RouteMatch_SafeRegex{SafeRegex: &matcher.RegexMatcher{Regex: m.SafeRegex}}
	default:
		out.Match.PathSpecifier = &route.RouteMatch_Prefix{Prefix: cmp.Or(m.Prefix, "/")}
	}
	if r.HTTPSRedirect {
		out.Action = &route.Route_Redirect{Redirect: &route.RedirectAction{
			SchemeRewriteSpecifier: &route.RedirectAction_HttpsRedirect{HttpsRedirect: true},
		}}
	} else {
		out.Action = &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier:            &route.RouteAction_Cluster{Cluster: cmp.Or(r.Upstream, config.DefaultUpstream)},
			ClusterNotFoundResponseCode: route.RouteAction_SERVICE_UNAVAILABLE,
			PrefixRewrite:               r.PrefixRewrite,
			Timeout:                     duration(r.Timeout),
			IdleTimeout:                 duration(r.IdleTimeout),
			RetryPolicy:                 retryPolicy(cmp.Or(r.RetryPolicy, &defaultRetry)),
		}}
	}
	return out, mergeRaw(out, r.Envoy, where+".envoy")
}

// hostSelections is how often a retry draws for an endpoint that has not failed it. Of two of
// which one refuses connections, LEAST_REQUEST likes that one, since it has nothing to do: it is
// drawn three times of four while the other works. So the retry of one request in ten thousand
// meets it again; with 5 draws it would be one in four.
const hostSelections = 32

func retryPolicy(r *config.RetryPolicy) *route.RetryPolicy {
	return &route.RetryPolicy{
		RetryOn:       strings.Join(r.RetryOn, ","),
		NumRetries:    number(r.NumRetries),
		PerTryTimeout: duration(r.PerTryTimeout),
		// Rather another endpoint than the one that just failed.
		RetryHostPredicate: []*route.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: anyOf(&previoushosts.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: hostSelections,
	}
}

// apiListener makes what a gRPC client reads for the target xds:///<upstream>.
func apiListener(upstream string) *listener.Listener {
	return &listener.Listener{
		Name: upstream,
		ApiListener: &listener.ApiListener{ApiListener: anyOf(&hcm.HttpConnectionManager{
			RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: upstream}},
			HttpFilters:    httpFilters(),
		})},
	}
}

func apiRoutes(upstream string) *route.RouteConfiguration {
	return &route.RouteConfiguration{
		Name: upstream,
		VirtualHosts: []*route.VirtualHost{{
			Name: upstream, Domains: []string{"*"},
			Routes: []*route.Route{{
				Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: ""}},
				Action: &route.Route_Route{Route: &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: upstream}}},
			}},
		}},
	}
}
