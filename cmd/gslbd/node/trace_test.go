package node

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"go.opentelemetry.io/otel/attribute"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/tracing"
)

// exampleZone is the part of a configuration that has the zone of the services.
const exampleZone = `zones:
  - name: example.com
    records: |
      @ 60 IN SOA ns hostmaster 1 60 60 60 60
      @ 60 IN NS ns
      ns 60 IN A 192.0.2.53
`

const traceConfig = `
node:
  name: ns1
  site: eu
  dns: ["127.0.0.1:0"]
  admin: 127.0.0.1:0
  xds: {listen: 127.0.0.1:0}
  otlp: {sample: 0}
  tracing: {answerIds: {keys: [%q]}}
sites: {eu: {lat: 50, lon: 8}}
` + exampleZone + `probes: {closed: {tcp: {port: 1}, interval: 200ms}}
pools:
  other: {site: eu, probe: closed, endpoints: [{address: 127.0.0.1}]}
  gfe-eu: {site: eu, answerIds: true, endpoints: [{address: "2001:db8:2::11"}]}
services:
  other.example.com: {ttl: 60s, pools: {other: {}}, policy: [health]}
  www.example.com: {ttl: 30s, pools: {gfe-eu: {}}, policy: [health]}
`

// A running node from end to end: dig's span leads to ours, the answer's address to the
// decision, a proxy's span comes back with a link to it, and the admin API tells the whole.
// What the node did itself is there as well.
func TestTracingEndToEnd(t *testing.T) {
	key := []byte("sixteen octets!!")
	text := fmt.Sprintf(traceConfig, base64.StdEncoding.EncodeToString(key))
	n, path := runFile(t, text)

	// The query, below a span of the resolver's.
	parent := tracing.TraceParent{TraceID: tracing.TraceID{1, 15: 1}, Parent: tracing.SpanID{2}}
	q := new(dns.Msg)
	q.SetQuestion("www.example.com.", dns.TypeAAAA)
	q.SetEdns0(1232, false)
	q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: tracing.EDNSTraceParent, Data: tracing.AppendTraceParent(nil, parent.TraceID, parent.Parent)})
	r, err := dns.Exchange(q, n.DNSAddrs()[0].String())
	if err != nil || len(r.Answer) != 1 {
		t.Fatalf("%v, %v, want one answer", r, err)
	}
	vip, _ := netip.AddrFromSlice(r.Answer[0].(*dns.AAAA).AAAA)
	ids, err := tracing.NewAnswerIDs(tracing.DefaultEpoch, key)
	if err != nil {
		t.Fatal(err)
	}
	signer := ids.Signer()
	id, _, genuine := signer.Read(vip)
	if genuine != tracing.Genuine {
		t.Fatalf("answer %v: carries no id of ours", vip)
	}

	// The request, of which a proxy without the key exports the span.
	base := "http://" + n.AdminAddr().String()
	provider, shutdown, err := tracing.SDK(t.Context(), "gfe", base, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, span := provider.Tracer("gfe").Start(t.Context(), "GET /", trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String(tracing.AttrVIP, vip.String())))
	span.End()
	if err := shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	request := span.(sdktrace.ReadOnlySpan).SpanContext().TraceID()

	var got api.Trace
	eventually(t, "the query, the decision and the request", func() bool {
		resp, err := http.Get(base + "/api/v1/traces/" + parent.TraceID.String())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got = api.Trace{}
		return json.NewDecoder(resp.Body).Decode(&got) == nil && len(got.Spans) == 3 && len(got.Linked) == 2
	})
	if answers := fmt.Sprint(got.Spans[0].Attributes[tracing.AttrAnswers]); answers != "["+vip.String()+"]" {
		t.Errorf("answers %s, want [%v], as it was given", answers, vip)
	}
	if got.Spans[0].ParentID != parent.Parent || got.Spans[0].Attributes[tracing.AttrSampledBy] != tracing.SampledParent {
		t.Errorf("query %+v, want a child of the resolver's span", got.Spans[0])
	}
	decision, linked := got.Linked[0], got.Linked[1]
	if decision.Name != tracing.SpanDecision || decision.Attributes[tracing.AttrDecisionID] != id.String() {
		t.Errorf("decision %+v, want that of answer id %v", decision, id)
	}
	if linked.TraceID != tracing.TraceID(request) || len(linked.Links) != 1 || linked.Links[0].SpanID != decision.SpanID || linked.Attributes[tracing.AttrAnswerAge] == nil {
		t.Errorf("request %+v, want a link to the decision and the answer's age", linked)
	}
	if tree := strings.Join(got.Tree, "\n"); !strings.Contains(tree, "⇢ gslb.decision gfe-eu") || !strings.Contains(tree, "⇢ GET /") {
		t.Errorf("tree\n%s\nwant the decision below the query, and the request below the decision", tree)
	}

	// The node's own work: it built, it was told to read again, it was asked to change.
	if err := os.WriteFile(path, []byte(strings.Replace(text, "ttl: 30s", "ttl: 20s", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	n.reload(false)
	resp, err := http.Post(base+"/api/v1/apply", "application/json", bytes.NewReader([]byte("{}")))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	want := map[string]bool{"gslb.build": true, "config.reload": true, "admin POST": true, "health.probe": true, "xds.push": true}
	eventually(t, "the spans of the node's work", func() bool {
		for _, s := range n.traces.Memory().Traces(tracing.Filter{Service: "gslbd"}) {
			delete(want, s.Name)
		}
		return len(want) == 0
	})
}

const attributesConfig = `
node:
  name: ns1
  site: eu
  dns: ["127.0.0.1:0"]
  admin: 127.0.0.1:0
  xds: {listen: 127.0.0.1:0}
  otlp: {sample: 1}
  tracing: {answerIds: {keys: [%q]}}
  geo:
    city: %q
    overrides: [{prefix: 203.0.113.0/24, site: us}]
sites: {eu: {lat: 50, lon: 8}, us: {lat: 40, lon: -74}}
` + exampleZone + `probes: {closed: {tcp: {port: 1}, interval: 200ms}}
pools:
  down: {site: eu, probe: closed, endpoints: [{address: 127.0.0.1}]}
  gfe-eu: {site: eu, answerIds: true, endpoints: [{address: "2001:db8:2::11"}]}
  gfe-us: {site: us, answerIds: true, endpoints: [{address: "2001:db8:3::11"}]}
services:
  none.example.com: {pools: {down: {}}, policy: [health], allDown: servfail}
  www.example.com: {pools: {down: {}, gfe-eu: {}, gfe-us: {}}, policy: [health, nearest]}
`

// What the documentation says that spans have is what they have. Of the names in its table those that
// other tests see sent are the exception.
func TestAttributesAreDocumented(t *testing.T) {
	key := []byte("sixteen octets!!")
	city, err := filepath.Abs("../../../testdata/geo/demo.mmdb")
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(attributesConfig, base64.StdEncoding.EncodeToString(key), city)
	n, path := runFile(t, config)
	ask := func(name, subnet string) *dns.Msg {
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeAAAA)
		q.SetEdns0(1232, false)
		q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.ParseIP(subnet)})
		r, err := dns.Exchange(q, n.DNSAddrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	eventually(t, "the pool that is down", func() bool { return ask("none.example.com.", "192.0.2.0").Rcode == dns.RcodeServerFailure })
	ask("www.example.com.", "203.0.113.0") // pinned to a site
	r := ask("www.example.com.", "198.51.100.0")
	if len(r.Answer) != 1 {
		t.Fatalf("%v, want one answer", r)
	}
	base := "http://" + n.AdminAddr().String()
	provider, shutdown, err := tracing.SDK(t.Context(), "gfe", base, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, span := provider.Tracer("gfe").Start(t.Context(), "GET /", trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String(tracing.AttrVIP, r.Answer[0].(*dns.AAAA).AAAA.String())))
	span.End()
	if err := shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(config, "lat: 50", "lat: 51", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	n.reload(false)

	table, text := gfetest.Attributes(t)
	missing := func(sent map[string]string) (names []string) {
		for name := range table {
			if sent[name] == "" {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	}
	want := []string{
		tracing.AttrClientASN,      // wants a database of them
		tracing.AttrUpstreamPool,   // of a proxy, see the test of the demo
		tracing.AttrUpstreamSite,   // likewise
		tracing.AttrServiceVersion, // of a program that was built
	}
	slices.Sort(want)
	sent := make(map[string]string)
	defer func() {
		if t.Failed() {
			t.Logf("documented, and not sent: %v", missing(sent))
		}
	}()
	eventually(t, "spans with all the rest", func() bool {
		for _, s := range n.traces.Memory().Traces(tracing.Filter{}) {
			gfetest.Sent(sent, n.traces.Memory().Trace(s.TraceID)...)
		}
		return len(missing(sent)) <= len(want)
	})
	if got := missing(sent); !slices.Equal(got, want) {
		t.Errorf("not sent are %v, want %v", got, want)
	}
	for name, span := range sent {
		if !table[name] && !text[name] {
			t.Errorf("%s of span %q: not documented", name, span)
		}
	}
}

// runFile runs a node with the configuration text until the test ends; path is where that is
// written.
func runFile(t *testing.T, text string) (n *Node, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "gslb.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := config.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return runNode(t, Options{File: file, Path: path}), path
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not after a minute", what)
		}
	}
}
