package ctl

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/admin"
	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/gslb/store"
	"github.com/meridian-gslb/meridian/tracing"
)

var queryTrace = tracing.TraceID{0: 0xaa, 15: 1}

// serveDNS answers every A question with 127.0.0.1 and remembers the trace of it.
func serveDNS(t *testing.T, m *tracing.Memory, rcode int) netip.AddrPort {
	t.Helper()
	return serveTracingDNS(t, m, rcode, false)
}

// serveTracingDNS is serveDNS which tells the trace's id to those who ask for it.
func serveTracingDNS(t *testing.T, m *tracing.Memory, rcode int, tell bool) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg)
		r.SetRcode(q, rcode)
		client := "none"
		if opt := q.IsEdns0(); opt != nil {
			r.SetEdns0(1232, false)
			for _, o := range opt.Option {
				if l, ok := o.(*dns.EDNS0_LOCAL); ok && l.Code == tracing.EDNSTraceParent && len(l.Data) == 0 && tell {
					r.IsEdns0().Option = append(r.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: l.Code, Data: tracing.AppendTraceParent(nil, queryTrace, tracing.SpanID{1})})
				}
				if s, ok := o.(*dns.EDNS0_SUBNET); ok {
					addr, _ := netip.AddrFromSlice(s.Address)
					client = netip.PrefixFrom(addr.Unmap(), int(s.SourceNetmask)).String()
					back := *s
					back.SourceScope = 20
					r.IsEdns0().Option = append(r.IsEdns0().Option, &back)
				}
			}
		}
		if rcode == dns.RcodeSuccess {
			r.Answer = append(r.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30}, A: net.IPv4(127, 0, 0, 1)})
		}
		now := time.Now()
		name := strings.TrimSuffix(q.Question[0].Name, ".")
		m.Add(
			tracing.Span{TraceID: queryTrace, SpanID: tracing.SpanID{1}, Name: tracing.SpanQuery, Kind: tracing.KindServer, Service: "gslbd", Start: now, End: now.Add(time.Millisecond),
				Attributes: map[string]any{tracing.AttrQuestionName: name, tracing.AttrQuestionType: "A", tracing.AttrClientPrefix: client}},
			tracing.Span{TraceID: queryTrace, SpanID: tracing.SpanID{2}, ParentID: tracing.SpanID{1}, Name: tracing.SpanDecide, Service: "gslbd", Start: now, End: now.Add(time.Millisecond),
				Attributes: map[string]any{tracing.AttrPool: "gfe-eu", tracing.AttrReason: "policy"}},
		)
		w.WriteMsg(r)
	})}
	served := make(chan error, 1)
	go func() { served <- srv.ActivateAndServe() }()
	t.Cleanup(func() { conn.Close(); <-served })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// serveHTTP answers as a proxy does that reports its span, a child of the request's.
func serveHTTP(t *testing.T, m *tracing.Memory) netip.AddrPort {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(r.Header.Get("Traceparent"), "-")
		var parent tracing.SpanID
		id, err := tracing.ParseTraceID(parts[1])
		if err != nil || len(parts) != 4 || parent.UnmarshalText([]byte(parts[2])) != nil || parts[0] != "00" || parts[3] != "01" || r.Host != "www.example.com" {
			t.Errorf("traceparent %q, host %q", r.Header.Get("Traceparent"), r.Host)
			return
		}
		now := time.Now()
		m.Add(tracing.Span{TraceID: id, SpanID: tracing.SpanID{9}, ParentID: parent, Name: "GET /shop", Kind: tracing.KindServer, Service: "gfe", Start: now, End: now.Add(time.Millisecond)})
	}))
	t.Cleanup(srv.Close)
	return netip.MustParseAddrPort(srv.Listener.Addr().String())
}

// traceNode returns the admin API of a node with that DNS and that proxy.
func traceNode(t *testing.T, m *tracing.Memory, dnsAddr, proxy netip.AddrPort) http.Handler {
	t.Helper()
	return receivingNode(t, m, nil, dnsAddr, proxy)
}

// receivingNode is traceNode with something that takes spans.
func receivingNode(t *testing.T, m *tracing.Memory, otlp http.Handler, dnsAddr, proxy netip.AddrPort) http.Handler {
	t.Helper()
	o := &config.Objects{
		Sites: map[string]config.Site{"eu-west": {Lat: 50, Lon: 8}},
		Pools: map[string]config.Pool{"gfe-eu": {Site: "eu-west", Port: proxy.Port(), Endpoints: []config.Endpoint{{Address: addr("127.0.0.1")}}}},
		Services: map[string]config.Service{
			"www.example.com": {Steering: config.Steering{Pools: map[string]config.PoolRef{"gfe-eu": {}}}},
		},
	}
	s, err := gslb.Build(nil, gslb.Inputs{Revision: 1, Objects: o, Now: at})
	if err != nil {
		t.Fatal(err)
	}
	return admin.New(admin.Options{
		Node:     api.Node{Name: "ns1", DNS: []netip.AddrPort{dnsAddr}},
		Snapshot: func() *gslb.Snapshot { return s },
		View:     func() store.View { return store.View{Revision: 1, Objects: o} },
		Traces:   m,
		OTLP:     otlp,
	}).Handler()
}

// TestTraceByTheToldID: the trace is the one that the node named, even if another one of the
// same question and client came since.
func TestTraceByTheToldID(t *testing.T) {
	m := tracing.NewMemory(100, 1<<20)
	node := traceNode(t, m, serveTracingDNS(t, m, dns.RcodeSuccess, true), serveHTTP(t, m))
	later := time.Now().Add(time.Hour)
	m.Add(tracing.Span{TraceID: tracing.TraceID{7}, SpanID: tracing.SpanID{7}, Name: tracing.SpanQuery, Kind: tracing.KindServer, Service: "gslbd", Start: later, End: later,
		Attributes: map[string]any{tracing.AttrQuestionName: "www.example.com", tracing.AttrQuestionType: "A", tracing.AttrClientPrefix: "198.51.100.0/24"}})
	stdout, stderr, code := run(t, node, "", "trace", "www.example.com", "--client", "198.51.100.7", "--no-request")
	if code != ExitOK || !strings.Contains(stdout, queryTrace.String()) {
		t.Errorf("exit %d: %s\n%s\nwant trace %v", code, stderr, stdout, queryTrace)
	}
}

// TestTraceIDAlsoDrawsLinks: of one trace, what it is linked to is drawn as well, and the page
// of the node has the same lines.
func TestTraceIDAlsoDrawsLinks(t *testing.T) {
	m := tracing.NewMemory(100, 1<<20)
	node := traceNode(t, m, serveDNS(t, m, dns.RcodeSuccess), serveHTTP(t, m))
	start := time.Unix(1_700_000_000, 0)
	m.Add(tracing.Span{TraceID: queryTrace, SpanID: tracing.SpanID{1}, Name: tracing.SpanQuery, Kind: tracing.KindServer, Service: "gslbd", Start: start, End: start.Add(time.Millisecond),
		Attributes: map[string]any{tracing.AttrQuestionName: "www.example.com"}},
		tracing.Span{TraceID: tracing.TraceID{5}, SpanID: tracing.SpanID{5}, Name: "GET /", Kind: tracing.KindServer, Service: "gfe", Start: start.Add(time.Second), End: start.Add(2 * time.Second),
			Links: []tracing.Link{{TraceID: queryTrace, SpanID: tracing.SpanID{1}, Attributes: map[string]any{tracing.AttrConfidence: 1.0, tracing.AttrLinkedBy: "address"}}}})
	stdout, stderr, code := run(t, node, "", "trace", queryTrace.String())
	if code != ExitOK || !strings.Contains(stdout, "⇢ GET /") || !strings.Contains(stdout, "linked by address, confidence 1.00") {
		t.Fatalf("exit %d: %s\n%s\nwant the request that links to the query", code, stderr, stdout)
	}
	resp := httptest.NewRecorder()
	node.ServeHTTP(resp, httptest.NewRequest(http.MethodGet, "/api/v1/traces/"+queryTrace.String(), nil))
	var trace api.Trace
	if err := json.Unmarshal(resp.Body.Bytes(), &trace); err != nil {
		t.Fatal(err)
	}
	want := tracing.Tree(append(trace.Spans, trace.Linked...), tracing.TreeOptions{Width: 120})
	if got := strings.Join(trace.Tree, "\n"); got != strings.Join(want, "\n") || !strings.Contains(got, "⇢ GET /") {
		t.Errorf("the page's tree:\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// TestTraceAlso: of a trace whose spans are with several nodes, all are drawn, each once.
func TestTraceAlso(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	span := func(id, parent byte, name string) tracing.Span {
		return tracing.Span{TraceID: queryTrace, SpanID: tracing.SpanID{id}, ParentID: tracing.SpanID{parent}, Name: name, Kind: tracing.KindServer, Service: name, Start: start, End: start.Add(time.Second)}
	}
	nodeOf := func(spans ...tracing.Span) http.Handler {
		m := tracing.NewMemory(100, 1<<20)
		m.Add(spans...)
		return traceNode(t, m, serveDNS(t, m, dns.RcodeSuccess), serveHTTP(t, m))
	}
	here := nodeOf(span(1, 0, "frontend"), span(2, 1, "backend"))
	there := httptest.NewServer(nodeOf(span(2, 1, "backend"), span(3, 2, "database")))
	defer there.Close()
	gone := httptest.NewServer(nil)
	gone.Close()

	asked := make(chan struct{})
	last := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(asked) }))
	defer last.Close()
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-asked:
			http.Error(w, "too slow", http.StatusTeapot)
		case <-r.Context().Done():
		}
	}))
	defer slow.Close()
	refused := "nothing from " + gone.URL + ": cannot reach " + gone.URL + ": connection refused"

	for _, r := range []struct {
		name, args string
		node       http.Handler
		code       int
		want       []string
	}{
		{"both", "--also " + there.URL, here, ExitOK, []string{"3 services, 3 spans"}},
		{"one that does not know it", "--also " + there.URL, nodeOf(), ExitOK, []string{"2 services, 2 spans", ": no trace " + queryTrace.String()}},
		{"one that is gone", "--also " + gone.URL + "," + there.URL, here, ExitOK, []string{"3 services, 3 spans", refused}},
		{"one that answers after the next", "--also " + slow.URL + "," + last.URL, here, ExitOK, []string{"2 services, 2 spans", "nothing from " + slow.URL, "418 I'm a teapot"}},
		{"nobody knows it", "--also " + gone.URL, nodeOf(), ExitError, []string{"gslbctl: no trace", refused}},
		{"no address", "--also ftp://x", here, ExitUsage, []string{"--also"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			stdout, stderr, code := run(t, r.node, "", append([]string{"trace", queryTrace.String()}, strings.Fields(r.args)...)...)
			for _, want := range r.want {
				if code != r.code || !strings.Contains(stdout+stderr, want) {
					t.Errorf("exit %d: %s\n%s\nwant %d and %q", code, stderr, stdout, r.code, want)
				}
			}
			if strings.Contains(stdout, "nothing from") || r.name == "both" && stderr != "" {
				t.Errorf("stdout %q, stderr %q; want the tree alone, and nothing said of a node that has its spans", stdout, stderr)
			}
		})
	}
	t.Run("as json", func(t *testing.T) {
		stdout, _, code := run(t, here, "", "trace", queryTrace.String(), "--also", gone.URL+","+there.URL, "-o", "json")
		var got gathered
		if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != ExitOK {
			t.Fatalf("exit %d, %v: %s", code, err, stdout)
		}
		if len(got.Missing) != 1 || got.Missing[0].Server != gone.URL || !strings.Contains(got.Missing[0].Error, "connection refused") {
			t.Errorf("missing %+v, want %s, which refuses connections", got.Missing, gone.URL)
		}
		if len(got.Spans) != 3 || got.Tree != nil || got.Rows != nil {
			t.Errorf("%d spans, %d lines, %d rows; want 3 spans and no drawing, as the nodes' own lack some", len(got.Spans), len(got.Tree), len(got.Rows))
		}
	})
}

// TestTraceMadeSaysWhoIsMissing: of a request whose spans are with several nodes, the one that
// cannot be asked is named.
func TestTraceMadeSaysWhoIsMissing(t *testing.T) {
	m := tracing.NewMemory(100, 1<<20)
	node := traceNode(t, m, serveDNS(t, m, dns.RcodeSuccess), serveHTTP(t, m))
	gone := httptest.NewServer(nil)
	gone.Close()
	args := []string{"trace", "www.example.com", "--client", "198.51.100.7", "--also", gone.URL}
	stdout, stderr, code := run(t, node, "", args...)
	if code != ExitOK || !strings.Contains(stdout, "3 services, 4 spans") || !strings.Contains(stderr, "nothing from "+gone.URL) {
		t.Errorf("exit %d: %s\n%s\nwant the tree, and %s named", code, stderr, stdout, gone.URL)
	}
	stdout, _, _ = run(t, node, "", append(args, "-o", "json")...)
	var got madeTrace
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || len(got.Missing) != 1 || got.Missing[0].Server != gone.URL {
		t.Errorf("%v: missing %+v, want %s", err, got.Missing, gone.URL)
	}
}

// TestTraceAlsoHangs: a further node that does not answer costs nothing of what the others know.
func TestTraceAlsoHangs(t *testing.T) {
	m := tracing.NewMemory(100, 1<<20)
	node := traceNode(t, m, serveDNS(t, m, dns.RcodeSuccess), serveHTTP(t, m))
	hanging, err := net.Listen("tcp", "127.0.0.1:0") // connections are taken by the kernel, and that is all
	if err != nil {
		t.Fatal(err)
	}
	defer hanging.Close()
	url := "http://" + hanging.Addr().String()
	stdout, stderr, code := run(t, node, "", "trace", "www.example.com", "--client", "198.51.100.7", "--also", url)
	if code != ExitOK || !strings.Contains(stdout, "3 services, 4 spans") || !strings.Contains(stderr, "nothing from "+url) || strings.Count(stderr, "nothing from") != 1 {
		t.Errorf("exit %d: %s\n%s\nwant the tree of the node, and %s named", code, stderr, stdout, url)
	}
}

// TestTraceRequestPort: the request goes to the port of the pool that the answer is of, also where the
// answer has an id in place of the endpoint's last 64 bits.
func TestTraceRequestPort(t *testing.T) {
	o := &config.Objects{
		Pools: map[string]config.Pool{
			"ids":   {Port: 8080, AnswerIDs: true, Endpoints: []config.Endpoint{{Address: addr("192.0.2.1")}, {Address: addr("2001:db8:1::11")}}},
			"plain": {Port: 8081, Endpoints: []config.Endpoint{{Address: addr("2001:db8:2::11")}}},
		},
		Services: map[string]config.Service{"www.example.com": {Steering: config.Steering{Pools: map[string]config.PoolRef{"ids": {}, "plain": {}}}}},
	}
	for answer, want := range map[string]uint16{
		"192.0.2.1": 8080, "192.0.2.2": 80, "2001:db8:1::11": 8080, "2001:db8:1:0:8f15:33f8:5fef:d9d": 8080, "2001:db8:1:1::11": 80,
		"2001:db8:2::11": 8081, "2001:db8:2::12": 80,
	} {
		m := &madeTrace{Question: "WWW.example.com", Answers: []netip.Addr{addr(answer)}}
		if got := portOf(o, m, 80); got != want {
			t.Errorf("a request to %s goes to port %d, want %d", answer, got, want)
		}
	}
}

// TestTraceIsOnThePage: the node is told of the request, and of what only another node remembers of
// it, and draws the same as the command.
func TestTraceIsOnThePage(t *testing.T) {
	for name, far := range map[string]*tracing.Memory{"of one node": nil, "of two nodes": tracing.NewMemory(100, 1<<20)} {
		t.Run(name, func(t *testing.T) { traceIsOnThePage(t, far) })
	}
}

// traceIsOnThePage has the proxy report to far, if there is one.
func traceIsOnThePage(t *testing.T, far *tracing.Memory) {
	r := tracing.New(tracing.Options{})
	m := r.Memory()
	reports := cmp.Or(far, m)
	answers := serveDNS(t, m, dns.RcodeSuccess)
	proxy := serveHTTP(t, reports)
	node := receivingNode(t, m, r.Receiver(), answers, proxy)
	args := []string{"trace", "www.example.com", "--client", "198.51.100.7", "-o", "json"}
	if far != nil {
		there := httptest.NewServer(traceNode(t, far, answers, proxy))
		defer there.Close()
		args = append(args, "--also", there.URL)
	}
	stdout, stderr, code := run(t, node, "", args...)
	if code != ExitOK {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	var made struct{ Spans []tracing.Span }
	if err := json.Unmarshal([]byte(stdout), &made); err != nil {
		t.Fatal(err)
	}
	resp := httptest.NewRecorder()
	node.ServeHTTP(resp, httptest.NewRequest(http.MethodGet, "/api/v1/traces/"+queryTrace.String(), nil))
	var trace api.Trace
	if err := json.Unmarshal(resp.Body.Bytes(), &trace); err != nil {
		t.Fatal(err)
	}
	want := strings.Join(tracing.Tree(made.Spans, tracing.TreeOptions{Width: 120}), "\n")
	if got := strings.Join(trace.Tree, "\n"); got != want || !strings.Contains(got, "gslbctl") {
		t.Errorf("the page's tree:\n%s\nwant that of the command:\n%s", got, want)
	}
	if len(trace.Rows) != len(made.Spans) || !trace.Rows[2].Linked || trace.Rows[2].Service != "gslbctl" || trace.Rows[3].Depth != 2 {
		t.Errorf("rows %+v, want a line for each of %d spans", trace.Rows, len(made.Spans))
	}
}

// TestTrace makes a trace: a real query and a real request, both drawn as one tree.
func TestTrace(t *testing.T) {
	m := tracing.NewMemory(100, 1<<20)
	node := traceNode(t, m, serveDNS(t, m, dns.RcodeSuccess), serveHTTP(t, m))

	stdout, stderr, code := run(t, node, "", "trace", "www.example.com", "--client", "198.51.100.7", "--path", "/shop")
	if code != ExitOK {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	last := -1
	for _, want := range []string{
		"www.example.com for 198.51.100.0/24 from 127.0.0.1:", "127.0.0.1, TTL 30 s, scope /20\n",
		"GET http://127.0.0.1:", "/shop: 200 OK\n",
		"1 trace linked", "3 services, 4 spans",
		"dns.query www.example.com A", "gslb.decide gfe-eu (policy)", "⇢ GET", "GET /shop",
	} {
		i := strings.Index(stdout, want)
		if i < 0 || i < last {
			t.Errorf("no %q in its place in\n%s", want, stdout)
		}
		last = max(last, i)
	}

	t.Run("as json", func(t *testing.T) {
		stdout, stderr, code := run(t, node, "", "trace", "www.example.com", "--client", "198.51.100.0/24", "--no-request", "-o", "json")
		var got madeTrace
		if code != ExitOK || json.Unmarshal([]byte(stdout), &got) != nil {
			t.Fatalf("exit %d: %s%s", code, stdout, stderr)
		}
		if len(got.Spans) != 2 || len(got.Traces) != 1 || got.TTL != 30 || got.Scope == nil || *got.Scope != 20 || got.URL != "" {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("one by its id", func(t *testing.T) {
		stdout, stderr, code := run(t, node, "", "trace", queryTrace.String())
		if code != ExitOK || !strings.Contains(stdout, "dns.query www.example.com A") {
			t.Errorf("exit %d: %s%s", code, stdout, stderr)
		}
	})
	t.Run("the list", func(t *testing.T) {
		stdout, stderr, code := run(t, node, "", "trace", "--client", "198.51.100.7")
		if code != ExitOK || !strings.Contains(stdout, queryTrace.String()) || strings.Count(stdout, "\n") != 2 {
			t.Errorf("exit %d: %s%s", code, stdout, stderr)
		}
	})
	t.Run("an empty list", func(t *testing.T) {
		stdout, _, code := run(t, node, "", "trace", "--client", "203.0.113.7")
		if code != ExitOK || !strings.Contains(stdout, "remembers no such trace yet") {
			t.Errorf("exit %d: %s", code, stdout)
		}
	})
}

// TestTraceFaults holds what is said where a part of the way is missing.
func TestTraceFaults(t *testing.T) {
	m := tracing.NewMemory(100, 1<<20)
	closed := httptest.NewServer(nil)
	refused := netip.MustParseAddrPort(closed.Listener.Addr().String())
	closed.Close()
	good := serveDNS(t, m, dns.RcodeSuccess)

	rows := []struct {
		name   string
		dns    netip.AddrPort
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"no client", good, "trace www.example.com", ExitUsage, "", "--client is missing"},
		{"also, for the list", good, "trace --also http://127.0.0.1:1", ExitUsage, "", "--also: expected a trace id, or a name without --no-request"},
		{"also, without a request", good, "trace www.example.com --client 192.0.2.1 --no-request --also http://127.0.0.1:1", ExitUsage, "", "--also: expected a trace id, or a name without --no-request"},
		{"bad client", good, "trace www.example.com --client x", ExitUsage, "", `--client "x"`},
		{"bad type", good, "trace www.example.com --client 192.0.2.1 --type MX", ExitUsage, "", "expected A or AAAA"},
		{"not a name", good, "trace a..b --client 192.0.2.1", ExitUsage, "", "neither a trace id nor a domain name"},
		{"unknown id", good, "trace ffffffffffffffffffffffffffffffff", ExitError, "", "no trace ffff"},
		{"no DNS", refused, "trace www.example.com --client 192.0.2.1", ExitError, "", "set --dns"},
		{"name error", serveDNS(t, m, dns.RcodeNameError), "trace www.example.com --client 192.0.2.1", ExitOK, "NXDOMAIN without an address", ""},
		{"not traced", serveDNS(t, tracing.NewMemory(1, 1<<20), dns.RcodeSuccess), "trace www.example.com --client 203.0.113.1", ExitOK, "remembers no span of the query: it traces on demand only for those in its node.tracing.allow", ""},
		{"proxy is down", good, "trace www.example.com --client 192.0.2.1", ExitOK, "connection refused", ""},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			stdout, stderr, code := run(t, traceNode(t, m, r.dns, refused), "", strings.Fields(r.args)...)
			if code != r.code || !strings.Contains(stdout, r.stdout) || !strings.Contains(stderr, r.stderr) {
				t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q", code, stdout, stderr, r.code, r.stdout, r.stderr)
			}
		})
	}
}

func TestDNSServer(t *testing.T) {
	a := newApp(nil, &bytes.Buffer{}, &bytes.Buffer{})
	a.server = "http://192.0.2.53:8053"
	rows := []struct{ given, node, want string }{
		{"", "127.0.0.1:5300", "127.0.0.1:5300"},
		{"", "0.0.0.0:53", "192.0.2.53:53"},
		{"", "[::]:53", "192.0.2.53:53"},
		{"ns1.example.net", "127.0.0.1:5300", "ns1.example.net:53"},
		{"2001:db8::53", "127.0.0.1:5300", "[2001:db8::53]:53"},
		{"[2001:db8::53]:5300", "127.0.0.1:5300", "[2001:db8::53]:5300"},
	}
	for _, r := range rows {
		st := &api.Status{Node: api.Node{DNS: []netip.AddrPort{netip.MustParseAddrPort(r.node)}}}
		if got, err := a.dnsServer(r.given, st); err != nil || got != r.want {
			t.Errorf("%q, %s: got %q, %v; want %q", r.given, r.node, got, err, r.want)
		}
	}
	if _, err := a.dnsServer("", &api.Status{}); err == nil {
		t.Error("a status without DNS: got no error")
	}
}
