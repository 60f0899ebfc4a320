package tracing

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

const jsonRequest = `{"resourceSpans":[{
	"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},
	"scopeSpans":[{"scope":{"name":"s"},"spans":[{
		"traceId":"0102030405060708090A0b0c0d0e0f10","spanId":"0102030405060708","parentSpanId":"","name":"GET /","kind":2,"flags":257,
		"startTimeUnixNano":"1700000000000000000","endTimeUnixNano":1700000000001000000,
		"attributes":[{"key":"traceId","value":{"stringValue":"not hex"}},{"key":"n","value":{"intValue":"9007199254740993"}},
			{"key":"a","value":{"arrayValue":{"values":[{"boolValue":true},{"doubleValue":0.5}]}}}],
		"links":[{"traceId":"000102030405060708090a0b0c0d0e0f","spanId":"0000000000000001"}],
		"status":{"code":2,"message":"oops"},"someday":{"unknown":[1]}}]}]}]}`

func protobufRequest() []byte {
	s := fullSpan()
	return appendRequest(nil, appendResource(nil, map[string]any{AttrServiceName: "gfe"}), "", appendSpan(nil, &s))
}

func TestReceiver(t *testing.T) {
	good := protobufRequest()
	badID := appendRequest(nil, nil, "", appendBytes(nil, scopeSpansSpans, appendBytes(nil, spanTraceID, "short")))
	mixed := append(bytes.Clone(good), badID...)
	for _, tc := range []struct {
		name                   string
		method, kind, encoding string
		body                   []byte
		status                 int
		says                   string // in the response
		spans                  int    // remembered and passed on
	}{
		{"protobuf", "POST", protobufType, "", good, 200, "", 1},
		{"protobuf, gzip", "POST", protobufType, "gzip", compress(good), 200, "", 1},
		{"json", "POST", jsonType, "", []byte(jsonRequest), 200, "{}", 1},
		{"json with parameters, gzip", "POST", "application/json; charset=utf-8", "gzip", compress([]byte(jsonRequest)), 200, "{}", 1},
		{"empty", "POST", protobufType, "", nil, 200, "", 0},
		{"empty json", "POST", jsonType, "", []byte("{}"), 200, "{}", 0},
		{"get", "GET", protobufType, "", nil, 405, "method GET: want POST", 0},
		{"text", "POST", "text/plain", "", good, 415, `content type "text/plain": want application/x-protobuf`, 0},
		{"no type", "POST", "", "", good, 415, `content type ""`, 0},
		{"brotli", "POST", protobufType, "br", good, 415, `content encoding "br": want gzip`, 0},
		{"not protobuf", "POST", protobufType, "", []byte("hello"), 400, "export request: ", 0},
		{"bad id", "POST", protobufType, "", badID, 400, "resource_spans[0]: scope_spans[0]: spans[0]: trace_id of 5 octets: want 16", 0},
		{"one bad of two", "POST", protobufType, "", mixed, 400, "resource_spans[1]", 0},
		{"cut off", "POST", protobufType, "", good[:len(good)-1], 400, "not a protobuf message", 0},
		{"not gzip", "POST", protobufType, "gzip", good, 400, "gzip: ", 0},
		{"not json", "POST", jsonType, "", []byte("{"), 400, `json: `, 0},
		{"json of another form", "POST", jsonType, "", []byte(`{"resourceSpans":5}`), 400, "json: ", 0},
		{"json id in base64", "POST", jsonType, "", []byte(strings.Replace(jsonRequest, "0102030405060708\"", "AQIDBA==\"", 1)), 400, `json: spanId \"AQIDBA==\": want hex digits`, 0},
		{"json id is a number", "POST", jsonType, "", []byte(`{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":7}]}]}]}`), 400, "traceId", 0},
		{"too large", "POST", protobufType, "", make([]byte, maxRequest+1), 413, "more than 4194304 octets", 0},
		{"too large for json", "POST", jsonType, "", append([]byte(jsonRequest), make([]byte, maxJSON)...), 413, "more than 1048576 octets of JSON", 0},
		{"bomb", "POST", protobufType, "gzip", compress(make([]byte, 20<<20)), 413, "more than 4194304 octets", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := New(Options{Endpoint: "http://collector", Logger: quiet()})
			req := httptest.NewRequest(tc.method, "/v1/traces", bytes.NewReader(tc.body))
			if tc.kind != "" {
				req.Header.Set("Content-Type", tc.kind)
			}
			if tc.encoding != "" {
				req.Header.Set("Content-Encoding", tc.encoding)
			}
			w := httptest.NewRecorder()
			r.Receiver().ServeHTTP(w, req)
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.says) {
				t.Errorf("status %d, %q, want %d, %q", w.Code, w.Body, tc.status, tc.says)
			}
			if got := len(r.Memory().Traces(Filter{})); got != tc.spans {
				t.Errorf("%d traces remembered, want %d", got, tc.spans)
			}
			s := r.Stats()
			if s.Received != uint64(tc.spans) || s.Queued != uint64(tc.spans) || len(r.exporter.queue) != tc.spans {
				t.Errorf("%d received, %d for the collector, want %d", s.Received, s.Queued, tc.spans)
			}
			for _, b := range r.exporter.queue { // exactly as it came
				if !bytes.Equal(b.body, tc.body) || !strings.HasPrefix(tc.kind, b.kind) || b.encoding != tc.encoding {
					t.Errorf("passed on %d octets of %q, %q, want %d of %q, %q", len(b.body), b.kind, b.encoding, len(tc.body), tc.kind, tc.encoding)
				}
			}
		})
	}
}

// What the collector has from elsewhere is remembered alone.
func TestReceiverKeepsForItself(t *testing.T) {
	for query, want := range map[string]struct{ status, remembered, queued int }{
		"":               {200, 1, 1},
		"?forward=true":  {200, 1, 1},
		"?forward=false": {200, 1, 0},
		"?forward=no":    {400, 0, 0},
	} {
		r := New(Options{Endpoint: "http://collector", Logger: quiet()})
		req := httptest.NewRequest("POST", "/v1/traces"+query, bytes.NewReader(protobufRequest()))
		req.Header.Set("Content-Type", protobufType)
		w := httptest.NewRecorder()
		r.Receiver().ServeHTTP(w, req)
		if remembered, queued := len(r.Memory().Traces(Filter{})), len(r.exporter.queue); w.Code != want.status || remembered != want.remembered || queued != want.queued {
			t.Errorf("%s: status %d, %d remembered, %d for the collector; want %v", query, w.Code, remembered, queued, want)
		}
	}
}

// A resource is read once for all of its spans, however large it is: a request costs what its
// octets do.
func TestReceiverReadsResourcesOnce(t *testing.T) {
	attrs := map[string]any{AttrServiceName: strings.Repeat("x", maxOriginOctets)}
	var spans []byte
	for i := range 3 {
		s := fullSpan()
		s.TraceID[0] = byte(i + 1)
		spans = appendSpan(spans, &s)
	}
	message := appendRequest(nil, appendResource(nil, attrs), "", spans)
	resources := 0
	if err := walkRequest(message, func([]byte) (func([]byte) error, error) {
		resources++
		return func([]byte) error { return nil }, nil
	}); err != nil || resources != 1 {
		t.Errorf("%d resources read, %v, want one for three spans", resources, err)
	}
	m := NewMemory(8, 1<<20)
	if err := m.addRequest(message); err != nil || m.count != 3 {
		t.Fatalf("%d traces, %v, want 3", m.count, err)
	}
	if first := m.order[0].entries[0].origin; m.order[1].entries[0].origin != first || m.order[2].entries[0].origin != first {
		t.Error("spans of one request do not share their resource")
	}
}

// Beyond so many requests at once senders are told to come back, by what OTLP lets them retry, and
// who is slow is told so once others want its place.
func TestReceiverIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{})
		slow := r.sendSlowly(maxReceiving, func(i int) string { return fmt.Sprintf("192.0.2.%d:1234", 100+i) })
		post := func() *httptest.ResponseRecorder { return r.post("192.0.2.1:1234", jsonType, strings.NewReader("{}")) }
		if w := post(); w.Code != 503 || w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), `"code":14`) {
			t.Errorf("status %d, %v, %q, want 503, Retry-After and code 14", w.Code, w.Header(), w.Body)
		}
		time.Sleep(undisturbed)
		for range 3 {
			if w := post(); w.Code != 200 {
				t.Errorf("later: status %d, %q, want 200", w.Code, w.Body)
			}
		}
		codes := slow.end()
		if codes[503] != 1 || codes[200] != maxReceiving-1 {
			t.Errorf("slow requests ended with %v, want one with 503, whose place the others had in turn, and the rest with 200", codes)
		}
		if r.receiving.in != 0 || len(r.receiving.of) != 0 {
			t.Errorf("in the end %d requests are being read, of %v", r.receiving.in, r.receiving.of)
		}
	})
}

// Of those who want more than there is, everybody has as many places, and the slowest request goes first.
func TestTurnstile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ts turnstile
		lost := ""
		enter := func(peer byte, name string) (*place, error) {
			return ts.enter(netip.AddrFrom4([4]byte{192, 0, 2, peer}), func() { lost += name + " " })
		}
		var places []*place
		for i := range maxReceiving { // four peers that have eight each
			p, err := enter(byte(i/maxOfPeer), string('a'+byte(i/maxOfPeer))+strconv.Itoa(i%maxOfPeer))
			if err != nil {
				t.Fatal(err)
			}
			places = append(places, p)
			time.Sleep(time.Millisecond)
		}
		if _, err := enter(3, "d8"); err != errYourself {
			t.Errorf("a ninth of one peer: %v, want %v", err, errYourself)
		}
		if !ts.keep(places[0]) || !ts.keep(places[9]) { // a0 and b1 have been read
			t.Error("a place is lost that nobody wanted")
		}
		for i, want := range []string{"a1 ", "b0 ", "c0 ", "d0 ", "a2 ", "b2 ", ""} { // then seven would be one more than six
			lost = ""
			if _, err := enter(9, "e"); lost != want || (err != nil) != (want == "") {
				t.Errorf("newcomer %d: %v, and %q lost its place, want %q", i, err, lost, want)
			}
		}
		if ts.keep(places[1]) {
			t.Error("a1 has its place still")
		}
		lost = ""
		time.Sleep(undisturbed)
		if _, err := enter(9, "e"); err != nil || lost != "c1 " {
			t.Errorf("a second later: %v, and %q lost its place, want \"c1 \"", err, lost)
		}
		for _, of := range ts.of {
			for _, p := range slices.Clone(of) {
				ts.keep(p)
			}
		}
		time.Sleep(undisturbed)
		if _, err := enter(10, "f"); err != errBusy {
			t.Errorf("where all have been read: %v, want %v", err, errBusy)
		}
		for _, p := range places { // some of which have no place any more
			ts.leave(p)
		}
		if ts.in != 7 || len(ts.of) != 1 {
			t.Errorf("%d are in, of %d peers, want the seven newcomers", ts.in, len(ts.of))
		}
	})
}

// post hands in a request from an address, and returns the response.
func (r *Recorder) post(from, kind string, body io.Reader) *httptest.ResponseRecorder {
	req := httptest.NewRequest("POST", "/v1/traces", body)
	req.RemoteAddr = from
	req.Header.Set("Content-Type", kind)
	w := httptest.NewRecorder()
	r.Receiver().ServeHTTP(w, req)
	return w
}

// slowSenders are requests whose bodies do not come.
type slowSenders struct {
	bodies []*io.PipeWriter
	codes  chan int
}

// slowWriter ends the reading of a body as a connection does.
type slowWriter struct {
	*httptest.ResponseRecorder
	body *io.PipeReader
}

func (w slowWriter) SetReadDeadline(time.Time) error {
	return w.body.CloseWithError(os.ErrDeadlineExceeded)
}

// sendSlowly begins so many requests. It returns once all are being read.
func (r *Recorder) sendSlowly(n int, from func(i int) string) slowSenders {
	s := slowSenders{codes: make(chan int)}
	for i := range n {
		body, w := io.Pipe()
		s.bodies = append(s.bodies, w)
		req := httptest.NewRequest("POST", "/v1/traces", body)
		req.RemoteAddr = from(i)
		req.Header.Set("Content-Type", protobufType)
		go func() {
			answer := slowWriter{httptest.NewRecorder(), body}
			r.Receiver().ServeHTTP(answer, req)
			s.codes <- answer.Code
		}()
		r.receiving.await(i + 1)
	}
	return s
}

// end lets the bodies come, and returns how many requests ended with which status.
func (s slowSenders) end() map[int]int {
	codes := map[int]int{}
	for _, w := range s.bodies {
		w.Close()
	}
	for range s.bodies {
		codes[<-s.codes]++
	}
	return codes
}

// await waits until so many requests are in.
func (t *turnstile) await(want int) {
	for {
		t.mu.Lock()
		in := t.in
		t.mu.Unlock()
		if in == want {
			return
		}
		runtime.Gosched()
	}
}

// One address cannot keep others from handing in their spans, nor can one host with an IPv6 network.
func TestReceiverIsBoundedByPeer(t *testing.T) {
	for _, slow := range []string{"192.0.2.1:%d", "[2001:db8::%d]:1234", "[::ffff:192.0.2.1]:%d"} {
		r := New(Options{})
		senders := r.sendSlowly(maxOfPeer, func(i int) string { return fmt.Sprintf(slow, i+1) })
		for from, want := range map[string]int{fmt.Sprintf(slow, 99): 503, "192.0.2.2:1234": 200, "[2001:db8:0:1::1]:1234": 200} {
			if w := r.post(from, jsonType, strings.NewReader("{}")); w.Code != want {
				t.Errorf("beside %d slow requests of %s, %s: status %d, %q, want %d", maxOfPeer, slow, from, w.Code, w.Body, want)
			}
		}
		senders.end()
	}
}

// As many addresses as fill all places keep nobody out either: on a real connection the reading of a
// request ends at once when another gets its place.
func TestReceiverSharesItsPlaces(t *testing.T) {
	r := New(Options{})
	server := httptest.NewServer(r.Receiver())
	defer server.Close()
	var hostile []*bufio.Reader
	for i := range maxReceiving {
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i/maxOfPeer))}}).Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(conn, "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: 1000\r\n\r\n\n", protobufType)
		hostile = append(hostile, bufio.NewReader(conn))
		r.receiving.await(i + 1)
	}
	res, err := http.Post(server.URL, jsonType, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("an honest sender meanwhile: %s, want 200", res.Status)
	}
	first, err := http.ReadResponse(hostile[0], nil)
	if err != nil || first.StatusCode != 503 || first.Header.Get("Retry-After") != "1" {
		t.Errorf("who was slow for longest: %v, %v, want 503, to come back in a second", first, err)
	}
}

// A refusal is a google.rpc.Status in the sender's encoding.
func TestReceiverFault(t *testing.T) {
	r := New(Options{})
	post := func(kind string) *httptest.ResponseRecorder {
		return r.post("192.0.2.1:1234", kind, strings.NewReader("\xff"))
	}
	w := post(jsonType)
	var status struct {
		Code    int
		Message string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &status); err != nil || status.Code != 3 || status.Message == "" {
		t.Errorf("json: %q, %v, want a status of code 3", w.Body, err)
	}
	w = post(protobufType)
	code, message := uint64(0), ""
	err := fields(w.Body.Bytes(), func(f field) error {
		switch f.Num {
		case 1:
			code = f.Value
		case 2:
			message = string(f.Bytes)
		}
		return nil
	})
	if err != nil || code != 3 || !strings.Contains(message, "not a protobuf message") {
		t.Errorf("protobuf: code %d, message %q, %v, want 3 and the reason", code, message, err)
	}
}

func TestReceiverReadsJSON(t *testing.T) {
	r := New(Options{})
	req := httptest.NewRequest("POST", "/v1/traces", strings.NewReader(jsonRequest))
	req.Header.Set("Content-Type", jsonType)
	r.Receiver().ServeHTTP(httptest.NewRecorder(), req)
	trace, _ := ParseTraceID("0102030405060708090a0b0c0d0e0f10")
	spans := r.Memory().Trace(trace)
	if len(spans) != 1 {
		t.Fatalf("%d spans, want 1", len(spans))
	}
	s := spans[0]
	got := fmt.Sprint(s.Service, s.Name, s.Kind, s.SpanID, s.ParentID.IsZero(), s.End.Sub(s.Start), s.Attributes, s.Status, s.Links)
	want := "shopGET /server0102030405060708true1ms map[a:[true 0.5] n:9007199254740993 traceId:not hex] {error oops} [{000102030405060708090a0b0c0d0e0f 0000000000000001 map[]}]"
	if strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("span\n got %s\nwant %s", got, want)
	}
}

// Received spans reach the collector unchanged, beside those of the node.
func TestRelay(t *testing.T) {
	var bodies [][]byte
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		if req.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				t.Error(err)
				return
			}
			b, _ = io.ReadAll(z)
		}
		bodies = append(bodies, b)
	}))
	r := New(Options{Endpoint: collector.URL, Logger: quiet()})
	sent := protobufRequest()
	for _, body := range [][]byte{sent, compress(sent)} {
		req := httptest.NewRequest("POST", "/v1/traces", bytes.NewReader(body))
		req.Header.Set("Content-Type", protobufType)
		if len(body) != len(sent) {
			req.Header.Set("Content-Encoding", "gzip")
		}
		r.Receiver().ServeHTTP(httptest.NewRecorder(), req)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Run(ctx)
	collector.Close()
	if len(bodies) != 2 || !bytes.Equal(bodies[0], sent) || !bytes.Equal(bodies[1], sent) {
		t.Errorf("%d requests arrived, want two, each as it was sent", len(bodies))
	}
	s := r.Stats()
	check(t, s)
	if s.Exported != 2 {
		t.Errorf("exported %d, want 2", s.Exported)
	}
}

func FuzzReceiver(f *testing.F) {
	f.Add([]byte(jsonRequest), true, false)
	small := Span{TraceID: id(1), SpanID: sid(1), Name: "x"}
	request := appendRequest(nil, nil, "", appendSpan(nil, &small))
	f.Add(request, false, false)
	f.Add(compress(request), false, true)
	f.Add(protowire.AppendTag(nil, 1, protowire.EndGroupType), false, false)
	f.Fuzz(func(t *testing.T, body []byte, isJSON, isGzip bool) {
		r := New(Options{Endpoint: "http://collector", Logger: quiet()})
		req := httptest.NewRequest("POST", "/v1/traces", bytes.NewReader(body))
		req.Header.Set("Content-Type", protobufType)
		if isJSON {
			req.Header.Set("Content-Type", jsonType)
		}
		if isGzip {
			req.Header.Set("Content-Encoding", "gzip")
		}
		w := httptest.NewRecorder()
		r.Receiver().ServeHTTP(w, req)
		s, m := r.Stats(), r.Memory().Stats()
		switch w.Code {
		case 200:
			if s.Received > 0 && m.Traces == 0 && m.Forgotten == 0 {
				t.Errorf("%d spans received, none remembered", s.Received)
			}
			for _, trace := range r.Memory().Traces(Filter{}) {
				spans := r.Memory().Trace(trace.TraceID)
				if _, err := json.Marshal(spans); err != nil {
					t.Error(err)
				}
				Tree(spans, TreeOptions{All: true})
			}
		case 400, 413:
			if s.Received != 0 || m.Traces != 0 {
				t.Errorf("refused, but %d received and %d remembered", s.Received, m.Traces)
			}
		default:
			t.Errorf("status %d, want 200, 400 or 413", w.Code)
		}
	})
}

// What comes over gRPC is remembered and passed on octet by octet, what cannot be read is
// refused.
func TestReceiverGRPC(t *testing.T) {
	var passed atomic.Value
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		passed.Store(body)
	}))
	defer collector.Close()
	r := New(Options{Endpoint: collector.URL, Logger: quiet()})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- r.Run(ctx) }()
	defer func() { cancel(); <-ran }()

	conn, err := dial("grpc://" + serveGRPC(t, func(g *grpc.Server) { r.ReceiverGRPC(g) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	span := fullSpan()
	body := appendRequest(nil, nil, "", appendSpan(nil, &span))
	body = appendBytes(body, 99, []byte("what a later version of the protocol has")) // unknown here
	var response []byte
	if err := conn.Invoke(t.Context(), exportMethod, body, &response); err != nil || len(response) > 0 {
		t.Fatalf("response %x, %v; want an empty one", response, err)
	}
	if n := len(r.Memory().Trace(span.TraceID)); n != 1 {
		t.Errorf("%d spans are remembered, want 1", n)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for passed.Load() == nil {
		<-tick.C
	}
	if !bytes.Equal(passed.Load().([]byte), body) {
		t.Errorf("passed on %x, want it as it came: %x", passed.Load(), body)
	}
	for name, bad := range map[string][]byte{
		"no message":    {0xff},
		"a broken span": appendRequest(nil, nil, "", appendBytes(nil, scopeSpansSpans, []byte{0xff})),
	} {
		err := conn.Invoke(t.Context(), exportMethod, bad, &response)
		if code := status.Code(err); code != codes.InvalidArgument && code != codes.Internal {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
	if s := r.Stats(); s.Received != 1 {
		t.Errorf("%d spans received, want 1", s.Received)
	}
}

// rawHTTP2 is a connection of a client that sends what it likes.
type rawHTTP2 struct {
	*http2.Framer
	net.Conn
}

// dialHTTP2 connects to addr from 127.0.0.host.
func dialHTTP2(t *testing.T, host byte, addr string) rawHTTP2 {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, host)}}).Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	fr := http2.NewFramer(conn, conn)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	io.WriteString(conn, http2.ClientPreface)
	fr.WriteSettings()
	return rawHTTP2{fr, conn}
}

// begin opens a call of Export that announces 4 MiB and sends one octet of them.
func (c rawHTTP2) begin(t *testing.T, stream uint32) {
	t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", exportMethod}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	if err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteData(stream, false, []byte{0, 0, maxRequest >> 16, 0, 0, 0x0a}); err != nil {
		t.Fatal(err)
	}
}

// refusal returns the grpc-status of the next call that the server ends.
func (c rawHTTP2) refusal(t *testing.T) string {
	t.Helper()
	for {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatalf("no call was ended: %v", err)
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok && h.StreamEnded() {
			for _, field := range h.RegularFields() {
				if field.Name == "grpc-status" {
					return field.Value
				}
			}
		}
	}
}

// Of calls of one address that never end, over one connection or several, so many are read at once
// and no more: the rest is told to come back; the honest, from elsewhere, is not; and none is waited
// for forever.
func TestReceiverGRPCIsBounded(t *testing.T) {
	r := New(Options{})
	r.patience = time.Hour
	addr := serveGRPC(t, func(g *grpc.Server) { r.ReceiverGRPC(g) })
	hostile := []rawHTTP2{dialHTTP2(t, 2, addr), dialHTTP2(t, 2, addr)}
	for i := range maxOfPeer {
		hostile[i%2].begin(t, uint32(1+2*i))
	}
	r.receivingGRPC.await(maxOfPeer)
	for i := range 10 {
		hostile[0].begin(t, uint32(1001+2*i))
		if code := hostile[0].refusal(t); code != "14" {
			t.Fatalf("one call more is ended with %s, want 14, unavailable", code)
		}
	}
	conn, err := dial("grpc://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var response []byte
	if err := conn.Invoke(t.Context(), exportMethod, protobufRequest(), &response); err != nil {
		t.Errorf("an honest sender from another address meanwhile: %v", err)
	}
	for host := range byte(3) { // as many addresses as fill all places
		c := dialHTTP2(t, 3+host, addr)
		hostile = append(hostile, c)
		for i := range maxOfPeer {
			c.begin(t, uint32(1+2*i))
		}
	}
	r.receivingGRPC.await(maxReceiving)
	if err := conn.Invoke(t.Context(), exportMethod, protobufRequest(), &response); err != nil {
		t.Errorf("an honest sender when all places are taken: %v", err)
	}
	r.receivingGRPC.await(maxReceiving - 1)
	for _, c := range hostile {
		c.Close()
	}
	r.receivingGRPC.await(0)
	if err := conn.Invoke(t.Context(), exportMethod, protobufRequest(), &response); err != nil || r.Stats().Received != 3 {
		t.Errorf("an honest sender later: %v, %d spans received, want 3", err, r.Stats().Received)
	}

	r = New(Options{})
	r.patience = time.Millisecond
	slow := dialHTTP2(t, 2, serveGRPC(t, func(g *grpc.Server) { r.ReceiverGRPC(g) }))
	slow.begin(t, 1)
	if code := slow.refusal(t); code != "4" {
		t.Errorf("a call that does not go on is ended with %s, want 4, deadline exceeded", code)
	}
}
