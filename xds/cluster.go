package xds

import (
	"cmp"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamhttp "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// defaultConnectTimeout bounds the connection to an endpoint: frontends are at most half
// the world away.
const defaultConnectTimeout = time.Second

// reportedMetrics are what of ORCA reports (see lrs_report_endpoint_metrics) goes into load
// reports unless the upstream says otherwise. Named metrics come from backends and are
// unbounded, so that they must be asked for.
var reportedMetrics = []string{"cpu_utilization", "application_utilization"}

// ads is the source "where this came from, over the same stream".
func ads() *core.ConfigSource {
	return &core.ConfigSource{
		ResourceApiVersion:    core.ApiVersion_V3,
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
	}
}

// anyOf packs m; it cannot fail for the messages of this package.
func anyOf(m proto.Message) *anypb.Any {
	a := &anypb.Any{}
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic("xds: " + err.Error())
	}
	return a
}

// cluster makes the cluster of an upstream. Nothing in it changes with health or load: a
// changed cluster is warmed anew by Envoy.
func (b *builder) cluster(name string, u config.Upstream, client Client) (*cluster.Cluster, error) {
	c := &cluster.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{ServiceName: b.service(name), EdsConfig: ads()},
		ConnectTimeout:       durationpb.New(cmp.Or(time.Duration(u.ConnectTimeout), defaultConnectTimeout)),
		LbPolicy:             cluster.Cluster_LbPolicy(cluster.Cluster_LbPolicy_value[cmp.Or(u.LBPolicy, "LEAST_REQUEST")]),
		CommonLbConfig: &cluster.Cluster_CommonLbConfig{
			// Whether there is enough health left is decided by the engine, for the whole
			// fleet at once: a proxy must not spread again what was drained.
			HealthyPanicThreshold: &envoytype.Percent{Value: 0},
			LocalityConfigSpecifier: &cluster.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
				LocalityWeightedLbConfig: &cluster.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
			},
			// Envoy holds changes of health back for a second by default; ours are coalesced
			// already.
			UpdateMergeWindow: durationpb.New(0),
		},
		CircuitBreakers:          circuitBreakers(u.CircuitBreakers),
		OutlierDetection:         outlierDetection(u.OutlierDetection),
		LrsReportEndpointMetrics: u.LoadMetrics,
	}
	if len(c.LrsReportEndpointMetrics) == 0 {
		c.LrsReportEndpointMetrics = reportedMetrics
	}
	if client == GRPC { // which takes its load server from the cluster, and TLS from its own code
		c.LrsServer = &core.ConfigSource{ConfigSourceSpecifier: &core.ConfigSource_Self{Self: &core.SelfConfigSource{}}}
		if c.LbPolicy != cluster.Cluster_RING_HASH {
			c.LbPolicy = cluster.Cluster_ROUND_ROBIN // the only other one that heeds the weights of localities there
		}
		return c, nil
	}
	if u.OOBPeriod > 0 {
		c.Metadata = &core.Metadata{FilterMetadata: map[string]*structpb.Struct{metadataFilter: {Fields: map[string]*structpb.Value{
			keyOutOfBand: structpb.NewStringValue(time.Duration(u.OOBPeriod).String()),
		}}}}
	}
	if u.HTTP2 {
		c.TypedExtensionProtocolOptions = http2()
	}
	if t := u.TLS; t != nil {
		alpn := "http/1.1"
		if u.HTTP2 {
			alpn = "h2"
		}
		c.TransportSocket = upstreamTLS(t, t.SNI, alpn)
	}
	err := mergeRaw(c, u.Envoy, "upstream "+name+": envoy")
	c.Name = name // by which routes and load reports have it
	if c.GetType() != cluster.Cluster_EDS {
		c.EdsClusterConfig = nil // raw fields have it find its endpoints otherwise; Envoy takes no cluster with both
	}
	return c, err
}

// needs returns the name of the endpoints that c waits for; empty: it asks for none.
func needs(c *cluster.Cluster) string {
	if c.EdsClusterConfig == nil {
		return ""
	}
	return cmp.Or(c.EdsClusterConfig.ServiceName, c.Name)
}

// keyOutOfBand is what a cluster says below metadataFilter. Envoy has no word for it: reports
// out of band (client_side_weighted_round_robin) are for its choice between endpoints there,
// not for load reports.
const keyOutOfBand = "oob_reporting_period"

// OutOfBandPeriod returns how often the endpoints of a cluster of ours are to be asked for
// ORCA reports out of band; 0: never.
func OutOfBandPeriod(c *cluster.Cluster) time.Duration {
	v := c.GetMetadata().GetFilterMetadata()[metadataFilter].GetFields()[keyOutOfBand]
	d, err := time.ParseDuration(v.GetStringValue())
	if err != nil || d < time.Second {
		return 0
	}
	return d
}

// http2 are the options of a cluster whose endpoints speak HTTP/2.
func http2() map[string]*anypb.Any {
	return map[string]*anypb.Any{
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": anyOf(&upstreamhttp.HttpProtocolOptions{
			UpstreamProtocolOptions: &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig_{
				ExplicitHttpConfig: &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig{
					ProtocolConfig: &upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
						Http2ProtocolOptions: &core.Http2ProtocolOptions{},
					},
				},
			},
		}),
	}
}

// upstreamTLS is TLS to endpoints whose certificate holds peer; empty: any name.
func upstreamTLS(t *config.UpstreamTLS, peer, alpn string) *core.TransportSocket {
	return &core.TransportSocket{
		Name: "envoy.transport_sockets.tls",
		ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: anyOf(&tls.UpstreamTlsContext{
			Sni:              peer,
			CommonTlsContext: tlsContext(t.Certificate, t.CA, peer, alpn),
		})},
	}
}

func circuitBreakers(c *config.CircuitBreakers) *cluster.CircuitBreakers {
	if c == nil {
		return nil
	}
	return &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{{
		MaxConnections:     number(c.MaxConnections),
		MaxPendingRequests: number(c.MaxPendingRequests),
		MaxRequests:        number(c.MaxRequests),
		MaxRetries:         number(c.MaxRetries),
	}}}
}

func outlierDetection(o *config.OutlierDetection) *cluster.OutlierDetection {
	if o == nil {
		return nil
	}
	return &cluster.OutlierDetection{
		Consecutive_5Xx:                    number(o.Consecutive5xx),
		ConsecutiveGatewayFailure:          number(o.ConsecutiveGatewayFailure),
		EnforcingConsecutiveGatewayFailure: enforced(o.ConsecutiveGatewayFailure),
		Interval:                           duration(o.Interval),
		BaseEjectionTime:                   duration(o.BaseEjectionTime),
		MaxEjectionPercent:                 number(o.MaxEjectionPercent),
	}
}

// enforced turns on what Envoy only counts by default, where the configuration names it.
func enforced(n int) *wrapperspb.UInt32Value {
	if n == 0 {
		return nil
	}
	return wrapperspb.UInt32(100)
}

// number returns nil, Envoy's default, for 0.
func number(n int) *wrapperspb.UInt32Value {
	if n == 0 {
		return nil
	}
	return wrapperspb.UInt32(uint32(n))
}

// duration returns nil, Envoy's default, for 0.
func duration(d config.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(time.Duration(d))
}
