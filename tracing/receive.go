package tracing

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"regexp"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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
	maxReceiving = 32      // requests that are read at once, over HTTP and again over gRPC

	maxReading = 10 * time.Second // until a request over gRPC has come; over HTTP the server says
)

// Receiver returns the handler of POST /v1/traces (OTLP/HTTP, protobuf and JSON, plain or
// gzip, at most 4 MiB), to which proxies and the services behind them export. Their spans go
// into the node's memory and, as they came, to the collector if there is one. A request is
// taken as a whole or refused as a whole, with the reason; that the collector is behind does
// not concern the sender and is counted here. With Options.Linker it is a relay that adds the
// link to the decision which led to a request, where that is beyond doubt.
//
// What senders have it hold is bounded: of more than 32 requests at once the rest is told to come
// back, and JSON, which may be 1 MiB, is read one request at a time.
func (r *Recorder) Receiver() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		kind, _, _ := mime.ParseMediaType(req.Header.Get("Content-Type"))
		select {
		case r.receiving <- struct{}{}:
			defer func() { <-r.receiving }()
		default:
			errBusy.write(w, kind)
			return
		}
		sent, message, fault := r.readRequest(w, req, kind)
		if fault == nil {
			var n int
			if n, fault = checkRequest(message); fault == nil {
				r.accept(message, batch{body: sent, spans: n, kind: kind, encoding: req.Header.Get("Content-Encoding")})
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
// the same rules, and 32 requests of its own. Export is declared as a stream, of one request, as
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
	select {
	case r.receivingGRPC <- struct{}{}:
		defer func() { <-r.receivingGRPC }()
	default:
		return status.Error(codes.Unavailable, errBusy.err.Error())
	}
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
	case <-late.C:
		return status.Errorf(codes.DeadlineExceeded, "no whole request within %v", r.patience)
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
	r.received.Add(uint64(b.spans))
	if r.options.Linker != nil {
		if r.options.Ledger != nil {
			r.settle() // the answer that led to a request may be in a ring yet
		}
		if linked, changed := r.options.Linker.relay(message); changed {
			message = linked
			b = batch{body: linked, spans: b.spans, kind: protobufType}
		}
	}
	r.memory.addRequest(message) // was checked
	if r.exporter != nil && b.spans > 0 {
		if r.exporter.grpc { // which knows neither JSON nor octets that are compressed already
			b = batch{body: message, spans: b.spans, kind: protobufType}
		}
		r.exporter.put(b)
	}
}

// fault is why a request was refused.
type fault struct {
	status int
	err    error
}

func badRequest(err error) *fault { return &fault{http.StatusBadRequest, err} }

var (
	errTooLarge = fmt.Errorf("request of more than %d octets", maxRequest)
	errBusy     = &fault{http.StatusServiceUnavailable, fmt.Errorf("%d requests are being read: come back in a second", maxReceiving)}
)

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

// readRequest returns the body as it was sent and as a protobuf message.
func (r *Recorder) readRequest(w http.ResponseWriter, req *http.Request, kind string) (sent, message []byte, _ *fault) {
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return nil, nil, &fault{http.StatusMethodNotAllowed, fmt.Errorf("method %s: want POST", req.Method)}
	}
	if kind != protobufType && kind != jsonType {
		return nil, nil, &fault{http.StatusUnsupportedMediaType,
			fmt.Errorf("content type %q: want %s or %s", req.Header.Get("Content-Type"), protobufType, jsonType)}
	}
	sent, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxRequest))
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
		r.readingJSON.Lock()
		defer r.readingJSON.Unlock()
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
