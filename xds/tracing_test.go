package xds

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	trace "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	detectors "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/resource_detectors/v3"
	runtime "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	tags "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	"google.golang.org/protobuf/proto"

	"github.com/meridian-gslb/meridian/tracing"
	"github.com/meridian-gslb/meridian/xds/bootstrap"
)

// traced is a pool of proxies with that tracing.
func traced(tracing string) string {
	return sites + `
pools:
  gfe: {site: eu-1, port: 8080, endpoints: [{address: 192.0.2.1}], upstream: [fe], proxy: {` + tracing + `}}
  fe: {site: eu-1, port: 80, probe: accept, endpoints: [{address: 10.1.0.1}, {address: 10.1.0.2}]}
`
}

func TestTracer(t *testing.T) {
	ca := map[string]Secret{"otel": {CA: testCert(t, "otel").Cert}}
	tests := []struct {
		name, tracing string
		random        float64
		service       string
		to            string // the cluster
		uri           string // of an exporter over HTTP
		flush, spans  float64
		socket        string // of the collector's cluster
	}{
		{"the defaults", "tracing: {}", 1, "gfe", "gslb_xds", "", 1000, 128, ""},
		{"every word", "tracing: {serviceName: edge, randomSampling: 0, overallSampling: 50, clientSampling: 0, maxCacheSize: 10, flushInterval: 250ms, minFlushSpans: 7}",
			0, "edge", "gslb_xds", "", 250, 7, ""},
		{"a collector over HTTP", `tracing: {collector: "http://192.0.2.9:4318"}`, 1, "gfe", "gslb_collector", "http://192.0.2.9:4318/v1/traces", 1000, 128, "plain"},
		{"a collector over gRPC, with TLS", `tracing: {collector: "grpcs://otel.example.com:4317", tls: {ca: otel}}`, 1, "gfe", "gslb_collector", "", 1000, 128, "tls"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := world(t, nil, traced(tt.tracing), state{secrets: ca})
			l := message(t, w, "gfe", Envoy, Listeners, "ingress", &listener.Listener{})
			var m hcm.HttpConnectionManager
			var otel trace.OpenTelemetryConfig
			if err := l.FilterChains[0].Filters[0].GetTypedConfig().UnmarshalTo(&m); err != nil {
				t.Fatal(err)
			}
			if err := m.Tracing.Provider.GetTypedConfig().UnmarshalTo(&otel); err != nil {
				t.Fatal(err)
			}
			if got := m.Tracing.RandomSampling.GetValue(); got != tt.random {
				t.Errorf("random sampling %v, want %v", got, tt.random)
			}
			if otel.ServiceName != tt.service {
				t.Errorf("service %q, want %q", otel.ServiceName, tt.service)
			}
			to := otel.GetGrpcService().GetEnvoyGrpc().GetClusterName()
			if http := otel.GetHttpService().GetHttpUri(); http != nil {
				to = http.GetCluster()
				if http.Uri != tt.uri {
					t.Errorf("exports to %s, want %s", http.Uri, tt.uri)
				}
			}
			if to != tt.to {
				t.Errorf("exports to cluster %s, want %s", to, tt.to)
			}
			layer := message(t, w, "gfe", Envoy, Runtimes, bootstrap.Runtime, &runtime.Runtime{}).Layer.Fields
			if got := layer["tracing.opentelemetry.flush_interval_ms"].GetNumberValue(); got != tt.flush {
				t.Errorf("flush interval %v ms, want %v", got, tt.flush)
			}
			if got := layer["tracing.opentelemetry.min_flush_spans"].GetNumberValue(); got != tt.spans {
				t.Errorf("flushes at %v spans, want %v", got, tt.spans)
			}
			if tt.socket == "" {
				if r := w.View("gfe").Resource(Envoy, Clusters, collectorCluster); r != nil {
					t.Errorf("cluster %v, want none", r)
				}
				return
			}
			c := message(t, w, "gfe", Envoy, Clusters, collectorCluster, &cluster.Cluster{})
			if (c.TransportSocket != nil) != (tt.socket == "tls") {
				t.Errorf("cluster %v, want it %s", c, tt.socket)
			}
		})
	}
}

// A pool that does not trace has no tracer, and an Envoy that starts there no reason to wait.
func TestNoTracer(t *testing.T) {
	w := world(t, nil, traced("listen: 0.0.0.0:80"), state{})
	l := message(t, w, "gfe", Envoy, Listeners, "ingress", &listener.Listener{})
	var m hcm.HttpConnectionManager
	if err := l.FilterChains[0].Filters[0].GetTypedConfig().UnmarshalTo(&m); err != nil || m.Tracing != nil {
		t.Errorf("tracing %v, %v; want none", m.Tracing, err)
	}
	if layer := message(t, w, "gfe", Envoy, Runtimes, bootstrap.Runtime, &runtime.Runtime{}).Layer; len(layer.Fields) > 0 {
		t.Errorf("runtime layer %v, want an empty one", layer)
	}
}

// An Envoy that does not know tags of a format finds another type in each, whatever raw fields
// the pool has; one that knows them reads the format.
func TestOlderTags(t *testing.T) {
	for _, raw := range []string{"", ", envoy: {httpConnectionManager: {server_name: gfe}, listener: {enable_reuse_port: false}}"} {
		w := world(t, nil, traced("tracing: {}"+raw), state{})
		l := new(listener.Listener)
		if err := (&session{id: "gfe-1"}).told(Listeners, w.View("gfe").Resource(Envoy, Listeners, "ingress")).UnmarshalTo(l); err != nil {
			t.Fatal(err)
		}
		config := l.FilterChains[0].Filters[0].GetTypedConfig()
		var m hcm.HttpConnectionManager
		if err := config.UnmarshalTo(&m); err != nil {
			t.Fatal(err)
		}
		formats := 0
		for _, tag := range m.Tracing.CustomTags {
			format := tag.GetValue()
			if format == "" {
				continue
			}
			formats++
			kind := tag.ValueType
			olderTag(tag)
			wire, err := proto.Marshal(tag)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(config.Value, wire) {
				t.Errorf("%s is sent as a format alone", tag.Tag)
			}
			var now tags.CustomTag
			if err := proto.Unmarshal(wire, &now); err != nil || now.GetValue() != format || now.ValueType != kind {
				t.Errorf("%s is read as %v, %v; want the format %s", tag.Tag, &now, err, format)
			}
			tag.ProtoReflect().SetUnknown(nil)
			if err := tag.ValidateAll(); err != nil || tag.GetValue() != "" {
				t.Errorf("%s to an Envoy without formats: %v, %v; want another type", tag.Tag, tag, err)
			}
		}
		if formats == 0 || m.Tracing.CustomTags[0].Tag != tracing.AttrVIP {
			t.Errorf("%d tags of a format in %v", formats, m.Tracing)
		}
	}
}

// Each proxy is told who it is, for the resource of its spans, in what is the same for all but for
// that; what the configuration says of itself wins. Nobody else's listener is touched.
func TestTracerNamesTheProxy(t *testing.T) {
	w := world(t, nil, traced("tracing: {}"), state{})
	r := w.View("gfe").Resource(Envoy, Listeners, "ingress")
	tracer := func(id string) *trace.OpenTelemetryConfig {
		t.Helper()
		var l listener.Listener
		m, otel := new(hcm.HttpConnectionManager), new(trace.OpenTelemetryConfig)
		if err := (&session{id: id}).told(Listeners, r).UnmarshalTo(&l); err != nil {
			t.Fatal(err)
		}
		if err := l.FilterChains[0].Filters[0].GetTypedConfig().UnmarshalTo(m); err != nil {
			t.Fatal(err)
		}
		if err := m.Tracing.Provider.GetTypedConfig().UnmarshalTo(otel); err != nil {
			t.Fatal(err)
		}
		return otel
	}
	resource := func(otel *trace.OpenTelemetryConfig) string { // as Envoy merges it
		out := map[string]string{}
		for _, d := range otel.ResourceDetectors {
			var c detectors.StaticConfigResourceDetectorConfig
			if err := d.GetTypedConfig().UnmarshalTo(&c); err != nil {
				t.Fatal(err)
			}
			maps.Copy(out, c.Attributes)
		}
		return fmt.Sprint(out)
	}
	for _, id := range []string{"gfe-1", "gfe-2"} {
		otel := tracer(id)
		expect(t, "the resource of "+id, resource(otel), "map[gslb.site:eu-1 service.instance.id:"+id+"]")
		common := tracer("")
		otel.ResourceDetectors = otel.ResourceDetectors[1:]
		if !proto.Equal(otel, common) {
			t.Errorf("the tracer of %s is %v; want, but for its name, %v", id, otel, common)
		}
	}
	s := session{id: "gfe-1"}
	u := update{resources: []*Resource{r}}
	if got := s.deltaResponse(Listeners, u, "1", "1").Resources[0]; got.Version != r.Version || !proto.Equal(got.Resource, s.told(Listeners, r)) {
		t.Errorf("told version %s, want that of all, %s, and the proxy's own listener", got.Version, r.Version)
	}
	grpc := session{id: "gfe-1", client: GRPC}
	for name, same := range map[string]bool{
		"a proxy without a name": (&session{}).told(Listeners, r) == r.any,
		"a gRPC client":          grpc.told(Listeners, r) == r.any,
		"another type":           s.told(Routes, r) == r.any,
	} {
		if !same {
			t.Errorf("%s is told something of its own", name)
		}
	}
	quiet := world(t, nil, traced("listen: 0.0.0.0:80"), state{}).View("gfe").Resource(Envoy, Listeners, "ingress")
	if s.told(Listeners, quiet) != quiet.any {
		t.Error("a proxy that does not trace is told something of its own")
	}

	own := `tracing: {}, envoy: {httpConnectionManager: {tracing: {provider: {name: envoy.tracers.opentelemetry, typed_config: {
  "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, resource_detectors: [{name: envoy.tracers.opentelemetry.resource_detectors.static_config,
  typed_config: {"@type": type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig, attributes: {service.instance.id: mine}}}]}}}}}`
	r = world(t, nil, traced(own), state{}).View("gfe").Resource(Envoy, Listeners, "ingress")
	otel := tracer("gfe-1")
	if got := resource(otel); !strings.Contains(got, "service.instance.id:mine") {
		t.Errorf("the resource is %s; want the configuration's own service.instance.id", got)
	}
}

// What endpoints say of the revision is that of the snapshot that brought the assignment: a
// later one with the same assignment sends nothing.
func TestRevisionOfAssignment(t *testing.T) {
	revision := func(w *World) string {
		cla := message(t, w, "gfe", Envoy, Endpoints, "upstream@gfe", &endpoint.ClusterLoadAssignment{})
		var got []string
		for _, l := range cla.Endpoints {
			for _, e := range l.LbEndpoints {
				f := e.GetMetadata().GetFilterMetadata()[metadataFilter].GetFields()
				got = append(got, f[keyPool].GetStringValue()+" "+f[keyRevision].GetStringValue())
			}
		}
		return strings.Join(got, ", ")
	}
	text := traced("tracing: {}")
	a := world(t, nil, text, state{revision: 41})
	expect(t, "at first", revision(a), "fe 41, fe 41")
	b := world(t, a, text, state{revision: 42})
	if b.View("gfe").Resource(Envoy, Endpoints, "upstream@gfe") != a.View("gfe").Resource(Envoy, Endpoints, "upstream@gfe") {
		t.Error("the same assignment in a new revision is another resource")
	}
	c := world(t, b, text, state{revision: 43, down: []string{"fe/10.1.0.2"}})
	expect(t, "after a change", revision(c), "fe 43, fe 43")
	d := world(t, c, traced("listen: 0.0.0.0:8080"), state{revision: 44, down: []string{"fe/10.1.0.2"}})
	expect(t, "without tracing", revision(d), " ,  ")
	other := world(t, nil, text, state{revision: 99, down: []string{"fe/10.1.0.2"}})
	if x, y := c.View("gfe").Resource(Envoy, Endpoints, "upstream@gfe").Version, other.View("gfe").Resource(Envoy, Endpoints, "upstream@gfe").Version; hash(x) != hash(y) {
		t.Errorf("versions %s and %s: want the same hash from every node", x, y)
	}
}

// A real Envoy exports to its config server, keeps its listener while its flush settings
// change, and traces a request whose client asks for it whatever its own sampling.
func TestEnvoyTracer(t *testing.T) {
	recorder := tracing.New(tracing.Options{})
	s := serve(t, Options{Services: recorder.ReceiverGRPC})
	fe := runBackend(t, "fe", "127.0.0.1:0", nil)
	port := freePort(t)
	text := func(tracing string) string {
		return sites + fmt.Sprintf(`
pools:
  gfe: {site: eu-1, port: %d, endpoints: [{address: 127.0.0.1}], upstream: [fe], proxy: {listen: "127.0.0.1:%d", tracing: {%s}}}
  fe: {site: eu-1, endpoints: [%s]}
`, port, port, tracing, fe.endpointYAML())
	}
	w := world(t, nil, text("randomSampling: 0, flushInterval: 20ms"), state{})
	s.Set(w)
	e := runEnvoy(t, gfeBootstrap(s))
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	answered(t, url, "", "fe")

	before := e.stat(t, "listener_manager.listener_modified")
	s.Set(world(t, w, text("randomSampling: 0, flushInterval: 30ms, minFlushSpans: 3"), state{}))
	eventually(t, 20*time.Second, func() string {
		if page := e.page(t, "/runtime"); !strings.Contains(page, `"30"`) || !strings.Contains(page, `"3"`) {
			return "runtime " + page
		}
		return ""
	})
	if after := e.stat(t, "listener_manager.listener_modified"); after != before {
		t.Errorf("the listener was changed %d times, for flush settings", after-before)
	}

	const trace = "0af7651916cd43dd8448eb211c80319c"
	for _, asked := range []bool{false, true} {
		req, err := http.NewRequest("GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if asked {
			req.Header.Set("Traceparent", "00-"+trace+"-b7ad6b7169203331-01")
			req.Header.Set("X-Client-Trace-Id", trace)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	id, _ := tracing.ParseTraceID(trace)
	eventually(t, 30*time.Second, func() string {
		spans := recorder.Memory().Trace(id)
		if len(spans) == 2 { // of the request, and of the one to the endpoint
			for _, s := range spans {
				if s.Resource[tracing.AttrServiceInstance] != "gfe-1" || s.Resource[tracing.AttrSite] != "eu-1" {
					t.Errorf("the resource of span %s is %v; want service.instance.id gfe-1 and gslb.site eu-1", s.Name, s.Resource)
				}
			}
			return ""
		}
		return fmt.Sprintf("%d spans of the caller's trace: %+v", len(spans), spans)
	})
	if n := len(recorder.Memory().Traces(tracing.Filter{})); n != 1 {
		t.Errorf("%d traces, want the caller's alone: nothing is sampled at random", n)
	}
}

// The tracer of a real Envoy exports over HTTP to a collector of the pool's own.
func TestEnvoyCollector(t *testing.T) {
	var mu sync.Mutex
	var paths []string
	recorder := tracing.New(tracing.Options{})
	receiver := recorder.Receiver()
	collector := runBackend(t, "collector", "127.0.0.1:0", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		paths = append(paths, r.URL.Path)
		mu.Unlock()
		receiver.ServeHTTP(w, r)
	})
	s := serve(t, Options{})
	fe := runBackend(t, "fe", "127.0.0.1:0", nil)
	port := freePort(t)
	s.Set(world(t, nil, sites+fmt.Sprintf(`
pools:
  gfe: {site: eu-1, port: %d, endpoints: [{address: 127.0.0.1}], upstream: [fe], proxy: {listen: "127.0.0.1:%d", tracing: {collector: "http://%s", randomSampling: 100, flushInterval: 20ms}}}
  fe: {site: eu-1, endpoints: [%s]}
`, port, port, collector.addr, fe.endpointYAML()), state{}))
	runEnvoy(t, gfeBootstrap(s))
	answered(t, fmt.Sprintf("http://127.0.0.1:%d/", port), "", "fe")
	eventually(t, 30*time.Second, func() string {
		if len(recorder.Memory().Traces(tracing.Filter{Service: "gfe"})) > 0 {
			return ""
		}
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprintf("no trace; requests for %v", paths)
	})
}

// The cluster and the runtime layer that our resources name are in the bootstrap.
func TestBootstrapHasWhatTracersName(t *testing.T) {
	b := bootstrap.Proxy{ID: "x", Pool: "gfe", Site: "eu-1", Servers: []string{"192.0.2.1:18000"}}
	text, err := b.YAML()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"- name: " + bootstrap.Cluster + "\n", "rtds_layer: {name: " + bootstrap.Runtime + ","} {
		if !strings.Contains(text, want) {
			t.Errorf("bootstrap has no %q:\n%s", want, text)
		}
	}
}
