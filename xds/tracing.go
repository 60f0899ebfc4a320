package xds

import (
	"bytes"
	"cmp"
	"net"
	"net/url"
	"slices"
	"strconv"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	trace "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	detectors "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/resource_detectors/v3"
	runtime "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	metadata "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	tags "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/tracing"
	"github.com/meridian-gslb/meridian/xds/bootstrap"
)

// collectorCluster is the cluster of a collector of the pool's own.
const collectorCluster = "gslb_collector"

// metadataFilter is the name below which endpoints say what the engine knows of them.
const metadataFilter = "gslb"

// What tracing is by default. Envoy's own defaults are every request, and an export for every
// five spans.
const (
	defaultServiceName = "gfe"
	defaultRandom      = 1.0 // per cent
	defaultCache       = 4096
	defaultFlush       = time.Second
	defaultMinFlush    = 128

	exportTimeout = 2 * time.Second // of one export; what is not taken by then is lost
)

// tracer makes the tracing of a listener; nil for none.
func (b *builder) tracer() *hcm.HttpConnectionManager_Tracing {
	t := b.tracing()
	if t == nil {
		return nil
	}
	otel := &trace.OpenTelemetryConfig{
		ServiceName:       cmp.Or(t.ServiceName, defaultServiceName),
		MaxCacheSize:      wrapperspb.UInt32(uint32(cmp.Or(t.MaxCacheSize, defaultCache))),
		ResourceDetectors: []*core.TypedExtensionConfig{staticResource(tracing.AttrSite, b.pool.Site)},
	}
	to, http := bootstrap.Cluster, false
	if t.Collector != "" {
		u, _ := url.Parse(t.Collector) // was checked
		to, http = collectorCluster, u.Scheme == "http" || u.Scheme == "https"
	}
	if http {
		otel.HttpService = &core.HttpService{HttpUri: &core.HttpUri{
			Uri:              t.Collector + "/v1/traces",
			HttpUpstreamType: &core.HttpUri_Cluster{Cluster: to},
			Timeout:          durationpb.New(exportTimeout),
		}}
	} else {
		otel.GrpcService = &core.GrpcService{
			TargetSpecifier: &core.GrpcService_EnvoyGrpc_{EnvoyGrpc: &core.GrpcService_EnvoyGrpc{ClusterName: to}},
			Timeout:         durationpb.New(exportTimeout),
		}
	}
	random := defaultRandom
	if t.RandomSampling != nil {
		random = *t.RandomSampling
	}
	return &hcm.HttpConnectionManager_Tracing{
		ClientSampling:    percent(t.ClientSampling),
		RandomSampling:    percent(&random),
		OverallSampling:   percent(t.OverallSampling),
		SpawnUpstreamSpan: wrapperspb.Bool(true),
		CustomTags:        b.tags(),
		// The conventions' name of a span whose route is not known.
		Operation:         "%REQ(:METHOD)%",
		UpstreamOperation: "%REQ(:METHOD)%",
		// The query string stays out: it may hold what no trace should. The path is a tag.
		MaxPathTagLength: wrapperspb.UInt32(0),
		Provider: &trace.Tracing_Http{
			Name:       otelTracer,
			ConfigType: &trace.Tracing_Http_TypedConfig{TypedConfig: anyOf(otel)},
		},
	}
}

// tracing returns how the proxies of the pool trace; nil: they do not.
func (b *builder) tracing() *config.ProxyTracing {
	if b.config.Proxy == nil {
		return nil
	}
	return b.config.Proxy.Tracing
}

// tags are what a span of a proxy says beside what Envoy's own do, in the words of our other
// spans.
func (b *builder) tags() []*tags.CustomTag {
	value := func(tag, format string) *tags.CustomTag {
		return &tags.CustomTag{Tag: tag, Type: &tags.CustomTag_Value{Value: format}}
	}
	host := func(tag, key string) *tags.CustomTag {
		return &tags.CustomTag{Tag: tag, Type: &tags.CustomTag_Metadata_{Metadata: &tags.CustomTag_Metadata{
			Kind: &metadata.MetadataKind{Kind: &metadata.MetadataKind_Host_{Host: &metadata.MetadataKind_Host{}}},
			MetadataKey: &metadata.MetadataKey{
				Key:  metadataFilter,
				Path: []*metadata.MetadataKey_PathSegment{{Segment: &metadata.MetadataKey_PathSegment_Key{Key: key}}},
			},
		}}}
	}
	number := func(t *tags.CustomTag) *tags.CustomTag {
		t.ValueType = tags.CustomTag_INT // to an Envoy that does not know it: a string
		return t
	}
	return []*tags.CustomTag{
		value(tracing.AttrVIP, "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"),
		value(tracing.AttrClientAddress, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
		value("http.request.method", "%REQ(:METHOD)%"),
		value("url.scheme", "%REQ(:SCHEME)%"),
		value("url.path", "%PATH(NQ)%"),
		number(value("http.response.status_code", "%RESPONSE_CODE%")),
		{Tag: tracing.AttrPool, Type: &tags.CustomTag_Literal_{Literal: &tags.CustomTag_Literal{Value: b.pool.Name}}},
		host(tracing.AttrUpstreamPool, keyPool),
		number(host(tracing.AttrRevision, keyRevision)),
	}
}

// olderTags has every tag of a format in the HTTP connection managers of l say first, in the
// same oneof, a tag that is never there: an Envoy below 1.37 does not know formats and would
// refuse a tag without a type, others take the last of a oneof that is on the wire
// (protobuf.dev, Encoding, "Last One Wins"). To be called when nothing else changes l: what
// reads and writes it again keeps the format alone.
func olderTags(l *listener.Listener) error {
	return finishTracers(l, func(*trace.OpenTelemetryConfig) {})
}

// finishTracers has change see the OpenTelemetry tracer of each HTTP connection manager of l, and
// does as olderTags says.
func finishTracers(l *listener.Listener, change func(*trace.OpenTelemetryConfig)) error {
	for _, chain := range l.FilterChains {
		for _, f := range chain.Filters {
			var m hcm.HttpConnectionManager
			if !f.GetTypedConfig().MessageIs(&m) {
				continue
			}
			if err := f.GetTypedConfig().UnmarshalTo(&m); err != nil {
				return err
			}
			var otel trace.OpenTelemetryConfig
			if p := m.GetTracing().GetProvider(); p.GetTypedConfig().MessageIs(&otel) {
				if err := p.GetTypedConfig().UnmarshalTo(&otel); err != nil {
					return err
				}
				change(&otel)
				p.ConfigType = &trace.Tracing_Http_TypedConfig{TypedConfig: anyOf(&otel)}
			}
			for _, t := range m.GetTracing().GetCustomTags() {
				olderTag(t)
			}
			f.ConfigType = &listener.Filter_TypedConfig{TypedConfig: anyOf(&m)}
		}
	}
	return nil
}

// told returns r, of type t, as the client of s is told it. A pool's resources say the same to all of
// its proxies but for this: which one it is, in the resource of the spans that it exports. Envoy has
// no resource detector that knows that, so each gets a listener that names it, under the
// version of what all are told. What the configuration says of service.instance.id comes later, and
// wins.
func (s *session) told(t Type, r *Resource) *anypb.Any {
	if t != Listeners || s.client != Envoy || s.id == "" || !bytes.Contains(r.any.GetValue(), []byte(otelTracer)) {
		return r.any
	}
	var l listener.Listener
	err := r.any.UnmarshalTo(&l)
	if err == nil {
		err = finishTracers(&l, func(c *trace.OpenTelemetryConfig) {
			c.ResourceDetectors = slices.Insert(c.ResourceDetectors, 0, staticResource(tracing.AttrServiceInstance, s.id))
		})
	}
	if err != nil {
		return r.any // cannot be: it was made here
	}
	return anyOf(&l)
}

// otelTracer is the name of Envoy's OpenTelemetry tracer.
const otelTracer = "envoy.tracers.opentelemetry"

// staticResource makes the detector of one attribute of the resource.
func staticResource(key, value string) *core.TypedExtensionConfig {
	return &core.TypedExtensionConfig{
		Name:        "envoy.tracers.opentelemetry.resource_detectors.static_config",
		TypedConfig: anyOf(&detectors.StaticConfigResourceDetectorConfig{Attributes: map[string]string{key: value}}),
	}
}

// olderTag does so with one tag. The format becomes a field that is unknown to the message,
// since a message holds one type alone; those are written last.
func olderTag(t *tags.CustomTag) {
	v, ok := t.Type.(*tags.CustomTag_Value)
	if !ok {
		return
	}
	number := t.ProtoReflect().Descriptor().Fields().ByName("value").Number()
	wire := protowire.AppendTag(t.ProtoReflect().GetUnknown(), number, protowire.BytesType)
	t.ProtoReflect().SetUnknown(protowire.AppendString(wire, v.Value))
	t.Type = &tags.CustomTag_Metadata_{Metadata: &tags.CustomTag_Metadata{
		Kind: &metadata.MetadataKind{Kind: &metadata.MetadataKind_Request_{Request: &metadata.MetadataKind_Request{}}},
		MetadataKey: &metadata.MetadataKey{
			Key:  metadataFilter,
			Path: []*metadata.MetadataKey_PathSegment{{Segment: &metadata.MetadataKey_PathSegment_Key{Key: keyNone}}},
		},
	}}
}

// keyNone is below metadataFilter in no metadata.
const keyNone = "none"

// What endpoints say, below metadataFilter. Values are strings: Envoy writes large numbers as
// powers of ten.
const (
	keyPool     = "pool"
	keyRevision = "revision" // of the snapshot that brought the assignment
)

// describe has every endpoint of an assignment say its pool, which the sub-zone names, and the
// revision.
func describe(cla *endpoint.ClusterLoadAssignment, revision uint64) {
	for _, l := range cla.Endpoints {
		m := &core.Metadata{FilterMetadata: map[string]*structpb.Struct{metadataFilter: {Fields: map[string]*structpb.Value{
			keyPool:     structpb.NewStringValue(l.Locality.SubZone),
			keyRevision: structpb.NewStringValue(strconv.FormatUint(revision, 10)),
		}}}}
		for _, e := range l.LbEndpoints {
			e.Metadata = m
		}
	}
}

// collector makes the cluster of the collector that the pool names; nil for none.
func (b *builder) collector() *cluster.Cluster {
	t := b.tracing()
	if t == nil || t.Collector == "" {
		return nil
	}
	u, _ := url.Parse(t.Collector) // was checked
	port, _ := strconv.ParseUint(u.Port(), 10, 16)
	c := &cluster.Cluster{
		Name:                 collectorCluster,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STRICT_DNS},
		ConnectTimeout:       durationpb.New(defaultConnectTimeout),
		LoadAssignment: &endpoint.ClusterLoadAssignment{
			ClusterName: collectorCluster,
			Endpoints: []*endpoint.LocalityLbEndpoints{{LbEndpoints: []*endpoint.LbEndpoint{{
				HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: address(u.Hostname(), uint32(port))}},
			}}}},
		},
	}
	if net.ParseIP(u.Hostname()) != nil {
		c.ClusterDiscoveryType = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}
	}
	alpn := "http/1.1"
	if u.Scheme == "grpc" || u.Scheme == "grpcs" {
		alpn = "h2"
		c.TypedExtensionProtocolOptions = http2()
	}
	if t.TLS != nil {
		c.TransportSocket = upstreamTLS(t.TLS, cmp.Or(t.TLS.SNI, u.Hostname()), alpn)
	}
	return c
}

// runtimeLayer makes the runtime keys of the pool's proxies. It is there even if it is empty:
// an Envoy asks for it before all else, and waits.
func (b *builder) runtimeLayer() *runtime.Runtime {
	layer := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	if t := b.tracing(); t != nil {
		every := cmp.Or(time.Duration(t.FlushInterval), defaultFlush)
		layer.Fields["tracing.opentelemetry.flush_interval_ms"] = structpb.NewNumberValue(float64(every.Milliseconds()))
		layer.Fields["tracing.opentelemetry.min_flush_spans"] = structpb.NewNumberValue(float64(cmp.Or(t.MinFlushSpans, defaultMinFlush)))
	}
	return &runtime.Runtime{Name: bootstrap.Runtime, Layer: layer}
}

// percent returns nil, Envoy's default, for nil.
func percent(v *float64) *envoytype.Percent {
	if v == nil {
		return nil
	}
	return &envoytype.Percent{Value: *v}
}
