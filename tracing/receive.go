package tracing

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	protobufType = "application/x-protobuf"
	jsonType     = "application/json"

	maxRequest   = 4 << 20 // octets of a request, as sent and again unpacked
	maxJSON      = 1 << 20 // octets of one in JSON, unpacked: read, it takes a hundred times that
	maxReceiving = 32      // requests that are read at once, over HTTP and again over gRPC,
	maxOfPeer    = 8       // and of those from one address, or one IPv6 /64

	maxReading  = 10 * time.Second // until a request over gRPC has come; over HTTP the server says
	undisturbed = time.Second      // that any request has to come before another may have its place
)

// Receiver returns the handler of POST /v1/traces (OTLP/HTTP, protobuf and JSON, plain or
// gzip, at most 4 MiB), to which proxies and the services behind them export. Their spans go
// into the node's memory and, as they came, to the collector if there is one. A request is
// taken as a whole or refused as a whole, with the reason; that the collector is behind does
// not concern the sender and is counted here. With Options.Linker it is a relay that adds the
// link to the decision which led to a request, where that is beyond doubt.
//
// What senders have it hold is bounded: of more than 32 requests at once, or 8 of one address, the
// rest is told to come back, and JSON, which may be 1 MiB, is read one request at a time. Whoever
// is slow keeps nobody out, from however many addresses: see turnstile.
func (r *Recorder) Receiver() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		kind, _, _ := mime.ParseMediaType(req.Header.Get("Content-Type"))
		in, err := r.receiving.enter(peerOf(req.RemoteAddr), func() {
			http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) // what is read fails at once
		})
		if err != nil {
			(&fault{http.StatusServiceUnavailable, err}).write(w, kind)
			return
		}
		defer r.receiving.leave(in)
		forward, err := strconv.ParseBool(cmp.Or(req.URL.Query().Get("forward"), "true"))
		if err != nil {
			badRequest(fmt.Errorf("forward=%q: want true or false", req.URL.Query().Get("forward"))).write(w, kind)
			return
		}
		sent, message, fault := r.readRequest(w, req, kind, in)
		if fault == nil {
			var n int
			switch n, fault = checkRequest(message); {
			case fault != nil:
			case forward:
				r.accept(message, batch{body: sent, spans: n, kind: kind, encoding: req.Header.Get("Content-Encoding")})
			default:
				r.remember(message, n)
			}
		}
		if fault != nil {
			fault.write(w, kind)
			return
		}
		w.Header().Set("Content-Type", kind)
		if kind == jsonType {
			io.WriteString(w, "{}")
		} // an ExportTraceServiceResponse without fields is empty
	})
}

// ReceiverGRPC registers OTLP/gRPC's TraceService on g: Receiver for those who speak that, with
// the same rules, and a bound of its own. Export is declared as a stream, of one request, as
// gRPC reads a unary one whole before anybody can say that there are too many.
func (r *Recorder) ReceiverGRPC(g grpc.ServiceRegistrar) {
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: traceService,
		HandlerType: (*any)(nil),
		Streams:     []grpc.StreamDesc{{StreamName: "Export", Handler: r.export}},
	}, r)
}

// export takes one call. The request is read as a message without fields, which keeps all of
// its octets as unknown ones, in their order: they are passed on as they came.
func (r *Recorder) export(_ any, stream grpc.ServerStream) error {
	var sender netip.Addr
	if p, ok := peer.FromContext(stream.Context()); ok {
		sender = peerOf(p.Addr.String())
	}
	in, err := r.receivingGRPC.enter(sender, func() {})
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	defer r.receivingGRPC.leave(in)
	var request emptypb.Empty
	read := make(chan error, 1)
	go func() { read <- stream.RecvMsg(&request) }() // ends with the stream, which ends with this call
	late := time.NewTimer(r.patience)
	defer late.Stop()
	select {
	case err := <-read:
		if err != nil {
			return err
		}
	case <-in.lost:
	case <-late.C:
		return status.Errorf(codes.DeadlineExceeded, "no whole request within %v", r.patience)
	}
	if !r.receivingGRPC.keep(in) {
		return status.Error(codes.Unavailable, errBusy.Error())
	}
	message := request.ProtoReflect().GetUnknown()
	if len(message) > maxRequest {
		return status.Error(codes.InvalidArgument, errTooLarge.Error())
	}
	n, fault := checkRequest(message)
	if fault != nil {
		return status.Error(codes.InvalidArgument, fault.err.Error())
	}
	r.accept(message, batch{body: message, spans: n, kind: protobufType})
	return stream.SendMsg(&emptypb.Empty{}) // as an ExportTraceServiceResponse without fields is
}

// accept remembers a checked request, given as protobuf, and passes it on as it came.
func (r *Recorder) accept(message []byte, b batch) {
	message, changed := r.remember(message, b.spans)
	if r.exporter == nil || b.spans == 0 {
		return
	}
	if changed || r.exporter.grpc { // which knows neither JSON nor octets that are compressed already
		b = batch{body: message, spans: b.spans, kind: protobufType}
	}
	r.exporter.put(b)
}

// remember keeps the spans of a checked request in memory, and returns the request with the links to
// what led to them, if changed.
func (r *Recorder) remember(message []byte, spans int) (linked []byte, changed bool) {
	r.received.Add(uint64(spans))
	if r.options.Linker != nil {
		if r.options.Ledger != nil {
			r.settle() // the answer that led to a request may be in a ring yet
		}
		message, changed = r.options.Linker.relay(message)
	}
	r.memory.addRequest(message) // was checked
	return message, changed
}

// fault is why a request was refused.
type fault struct {
	status int
	err    error
}

func badRequest(err error) *fault { return &fault{http.StatusBadRequest, err} }

var (
	errTooLarge = fmt.Errorf("request of more than %d octets", maxRequest)
	errBusy     = fmt.Errorf("%d requests are being read: come back in a second", maxReceiving)
	errYourself = fmt.Errorf("%d requests of this address are being read: come back in a second", maxOfPeer)
)

// turnstile bounds the requests that are being read at once, of all and of each peer, and shares
// the places out fairly: where none is left, whoever has fewer takes one of whoever has most, the
// one held longest; and of the peers that have as many, one held for longer than undisturbed. So
// slow senders, from however many addresses, cost an honest one that second at most. The zero
// turnstile is empty. It is safe for concurrent use.
type turnstile struct {
	mu sync.Mutex // guards what follows
	in int        // the sum of of
	of map[netip.Addr][]*place
}

// place is what a request has while it is being read.
type place struct {
	peer  netip.Addr
	since time.Time
	lost  chan struct{} // closed when another has got the place
	stop  func()        // called then, and never once the request has left; nil: it keeps the place, as it has been read
}

// enter gives a request of peer a place, or says why not. If it loses that while it is read, stop is
// called, which must not block.
func (t *turnstile) enter(peer netip.Addr, stop func()) (*place, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &place{peer: peer, since: time.Now(), lost: make(chan struct{}), stop: stop}
	switch mine := len(t.of[peer]); {
	case mine >= maxOfPeer:
		return nil, errYourself
	case t.in >= maxReceiving:
		longest := t.longest()
		if longest == nil || len(t.of[longest.peer]) <= mine+1 && p.since.Sub(longest.since) < undisturbed {
			return nil, errBusy
		}
		t.drop(longest)
		close(longest.lost)
		longest.stop()
	}
	if t.of == nil {
		t.of = make(map[netip.Addr][]*place)
	}
	t.in++
	t.of[peer] = append(t.of[peer], p)
	return p, nil
}

// longest returns the place, of those that may be lost, that is to be lost first: of the peers that
// have most of them, the one held longest; nil if all have been read.
func (t *turnstile) longest() (first *place) {
	for peer, places := range t.of {
		i := slices.IndexFunc(places, func(p *place) bool { return p.stop != nil }) // they are in the order of since
		if i < 0 {
			continue
		}
		if first == nil || cmp.Or(cmp.Compare(len(t.of[first.peer]), len(t.of[peer])), places[i].since.Compare(first.since)) < 0 {
			first = places[i]
		}
	}
	return first
}

// keep tells that the request of p has been read, and reports whether it has its place still: if so
// it keeps that until it leaves.
func (t *turnstile) keep(p *place) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.stop = nil
	select {
	case <-p.lost:
		return false
	default:
		return true
	}
}

// leave lets another in.
func (t *turnstile) leave(p *place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(p)
}

// drop takes p's place away, if it has that still.
func (t *turnstile) drop(p *place) {
	places := t.of[p.peer]
	i := slices.Index(places, p)
	if i < 0 {
		return
	}
	t.in--
	if t.of[p.peer] = slices.Delete(places, i, i+1); len(places) == 1 {
		delete(t.of, p.peer)
	}
}

// peerOf returns who sends from an address with a port: of IPv6 the /64, of which one host may
// have every address. It is the zero Addr for what is no address.
func peerOf(addrPort string) netip.Addr {
	from, _ := netip.ParseAddrPort(addrPort)
	addr := from.Addr().Unmap().WithZone("")
	if addr.Is6() {
		network, _ := addr.Prefix(64) // fails only for more bits than there are
		return network.Addr()
	}
	return addr
}

// write sends the fault as a google.rpc.Status, as OTLP wants, in the request's own encoding,
// or as text if that is unknown.
func (f *fault) write(w http.ResponseWriter, kind string) {
	code := uint64(codes.InvalidArgument)
	if f.status == http.StatusServiceUnavailable {
		code = uint64(codes.Unavailable)
		w.Header().Set("Retry-After", "1")
	}
	switch kind {
	case protobufType:
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(f.status)
		w.Write(appendBytes(appendVarint(nil, 1, code), 2, f.err.Error()))
	case jsonType:
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(f.status)
		json.NewEncoder(w).Encode(struct {
			Code    uint64 `json:"code"`
			Message string `json:"message"`
		}{code, f.err.Error()})
	default:
		http.Error(w, f.err.Error(), f.status)
	}
}

// readRequest returns the body as it was sent and as a protobuf message, unless another gets its
// place in the meantime.
func (r *Recorder) readRequest(w http.ResponseWriter, req *http.Request, kind string, in *place) (sent, message []byte, _ *fault) {
	busy := &fault{http.StatusServiceUnavailable, errBusy}
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return nil, nil, &fault{http.StatusMethodNotAllowed, fmt.Errorf("method %s: want POST", req.Method)}
	}
	if kind != protobufType && kind != jsonType {
		return nil, nil, &fault{http.StatusUnsupportedMediaType,
			fmt.Errorf("content type %q: want %s or %s", req.Header.Get("Content-Type"), protobufType, jsonType)}
	}
	sent, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxRequest))
	if kind == jsonType && err == nil {
		select { // one after another, while others may have its place
		case r.readingJSON <- struct{}{}:
			defer func() { <-r.readingJSON }()
		case <-in.lost:
		}
	}
	if !r.receiving.keep(in) {
		return nil, nil, busy
	}
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return nil, nil, &fault{http.StatusRequestEntityTooLarge, errTooLarge}
	} else if err != nil {
		return nil, nil, badRequest(fmt.Errorf("body: %w", err))
	}
	message = sent
	switch encoding := req.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
	case "gzip":
		if message, err = decompress(sent); errors.Is(err, errTooLarge) {
			return nil, nil, &fault{http.StatusRequestEntityTooLarge, err}
		} else if err != nil {
			return nil, nil, badRequest(fmt.Errorf("gzip: %w", err))
		}
	default:
		return nil, nil, &fault{http.StatusUnsupportedMediaType, fmt.Errorf("content encoding %q: want gzip or none", encoding)}
	}
	if kind == jsonType {
		if len(message) > maxJSON {
			return nil, nil, &fault{http.StatusRequestEntityTooLarge, fmt.Errorf("request of more than %d octets of JSON: send less at once, or protobuf", maxJSON)}
		}
		if message, err = fromJSON(message); err != nil {
			return nil, nil, badRequest(err)
		}
	}
	return sent, message, nil
}

func decompress(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(z, maxRequest+1))
	if err == nil && len(out) > maxRequest {
		err = errTooLarge
	}
	return out, err
}

// checkRequest counts the spans of an ExportTraceServiceRequest, of which every one must be
// readable.
func checkRequest(message []byte) (spans int, _ *fault) {
	check := func(span []byte) error {
		spans++
		_, err := decodeSpan(span)
		return err
	}
	err := walkRequest(message, func(resource []byte) (func([]byte) error, error) {
		if _, err := decodeResource(resource); err != nil {
			return nil, fmt.Errorf("resource: %w", err)
		}
		return check, nil
	})
	if err != nil {
		return 0, badRequest(fmt.Errorf("export request: %w", err))
	}
	return spans, nil
}

// jsonID is an id in OTLP's JSON with the name of its field. A string cannot hold it, as quotes in
// there are escaped.
var jsonID = regexp.MustCompile(`"(traceId|spanId|parentSpanId)"\s*:\s*"([^"]*)"`)

// fromJSON turns a request in OTLP's JSON into protobuf. That JSON is protobuf's own but for
// the ids, which are hex there and base64 here.
func fromJSON(b []byte) ([]byte, error) {
	var bad error
	b = jsonID.ReplaceAllFunc(b, func(field []byte) []byte {
		m := jsonID.FindSubmatch(field)
		id, err := hex.DecodeString(string(m[2]))
		if err != nil && bad == nil {
			bad = fmt.Errorf("json: %s %q: want hex digits", m[1], m[2])
		}
		return fmt.Appendf(nil, `"%s":"%s"`, m[1], base64.StdEncoding.EncodeToString(id))
	})
	if bad != nil {
		return nil, bad
	}
	var req coltracepb.ExportTraceServiceRequest
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, &req); err != nil {
		return nil, fmt.Errorf("json: %w", err)
	}
	return proto.Marshal(&req)
}
