package tracing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	dnstap "github.com/dnstap/golang-dnstap"
	framestream "github.com/farsightsec/golang-framestream"
	"google.golang.org/protobuf/proto"
)

const (
	tapTimeout = 2 * time.Second // to connect, and for each write and the handshakes
	tapRetry   = time.Second     // between two attempts to connect
)

// openDnstap returns the sink of dnstap messages, that of old if it leads to the same place.
func (l *DecisionLog) openDnstap(place string, old *decisionSinks) (*sink, error) {
	network, path := places(place)
	t := &tap{l: l, path: path}
	switch network {
	case "":
		return nil, nil
	case "unix":
		if old.dnstap != nil && old.config.Dnstap == place {
			return old.dnstap, nil
		}
		t.connect = t.dial
	case "file":
		if old.dnstap != nil && old.config.Dnstap == place && sameFile(path, old.dnstap) {
			return old.dnstap, nil
		}
		// A stream has one beginning, so that nothing can be appended to an old one.
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Size() > 0 {
			if err := os.Rename(path, path+".1"); err != nil {
				return nil, err
			}
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
		if err != nil {
			return nil, err
		}
		if err := t.open(f, false); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		t.connect = func() error { return errors.New("the file took no more") }
		return &sink{counts: &l.dnstap, queue: make(chan *decision, decisionQueue), run: t.run, file: f}, nil
	default:
		return nil, fmt.Errorf("dnstap %q: expected unix:/path or file:/path", place)
	}
	return &sink{counts: &l.dnstap, queue: make(chan *decision, decisionQueue), run: t.run}, nil
}

// sameFile tells whether path still is the file that s writes to.
func sameFile(path string, s *sink) bool {
	was, err := s.file.Stat()
	is, err2 := os.Stat(path)
	return err == nil && err2 == nil && os.SameFile(was, is)
}

// tap writes decisions as dnstap messages in Frame Streams. One goroutine uses it.
type tap struct {
	l       *DecisionLog
	path    string
	connect func() error

	out    io.Closer           // nil: not connected
	frames *framestream.Writer // on out
	tried  time.Time           // when connect was tried last
	unsent uint64              // frames that are not flushed
	b      []byte
}

// dial connects to the socket.
func (t *tap) dial() error {
	c, err := net.DialTimeout("unix", t.path, tapTimeout)
	if err != nil {
		return err
	}
	if err := t.open(c, true); err != nil {
		c.Close()
		return fmt.Errorf("%s: %w", t.path, err)
	}
	return nil
}

// open begins a stream on out.
func (t *tap) open(out io.WriteCloser, handshake bool) error {
	w, err := framestream.NewWriter(out, &framestream.WriterOptions{
		ContentTypes: [][]byte{dnstap.FSContentType}, Bidirectional: handshake, Timeout: tapTimeout,
	})
	if err == nil {
		t.out, t.frames = out, w
	}
	return err
}

// run writes what comes until the queue is closed. While nobody listens it drops and counts, and
// looks again every second.
func (t *tap) run(queue <-chan *decision) {
	c := &t.l.dnstap
	for d := range queue {
		if t.out == nil {
			if time.Since(t.tried) < tapRetry {
				c.unconnected.Add(1)
				continue
			}
			err := t.connect()
			t.tried = time.Now()
			if c.wrong(err) {
				t.l.log.Warn("dnstap", "place", t.path, "err", err)
			}
			if err != nil {
				c.unconnected.Add(1)
				continue
			}
		}
		if err := t.write(d, len(queue) == 0); err != nil {
			c.failed.Add(t.unsent)
			c.wrong(err)
			t.l.log.Warn("dnstap", "place", t.path, "err", err)
			t.out.Close()
			t.out, t.unsent = nil, 0
		}
	}
	if t.out == nil {
		return
	}
	if err := t.frames.Close(); err != nil { // STOP, and the reader's FINISH
		t.l.log.Debug("dnstap: the end of the stream", "place", t.path, "err", err)
	}
	t.out.Close()
}

// write writes d, and with flush all that came before.
func (t *tap) write(d *decision, flush bool) error {
	t.unsent++
	b, err := proto.MarshalOptions{}.MarshalAppend(t.b[:0], t.l.message(d))
	if err != nil {
		return err
	}
	t.b = b
	if _, err = t.frames.WriteFrame(b); err != nil || !flush {
		return err
	}
	if err = t.frames.Flush(); err == nil {
		t.l.dnstap.written.Add(t.unsent)
		t.unsent = 0
	}
	return err
}

// message returns d as a dnstap message: AUTH_RESPONSE with both packets, and in extra what the
// lines say of the decision, in JSON.
func (l *DecisionLog) message(d *decision) *dnstap.Dnstap {
	q := &d.q
	m := &dnstap.Message{Type: dnstap.Message_AUTH_RESPONSE.Enum(), QueryMessage: d.query, ResponseMessage: d.reply}
	resolver := netip.AddrFrom16(q.Resolver).Unmap()
	m.SocketFamily = dnstap.SocketFamily_INET.Enum()
	if resolver.Is6() {
		m.SocketFamily = dnstap.SocketFamily_INET6.Enum()
	}
	m.SocketProtocol = dnstap.SocketProtocol_UDP.Enum()
	if q.TCP {
		m.SocketProtocol = dnstap.SocketProtocol_TCP.Enum()
	}
	m.QueryAddress, m.QueryPort = resolver.AsSlice(), proto.Uint32(uint32(q.ResolverPort))
	if server := netip.AddrFrom16(q.Server).Unmap(); !server.IsUnspecified() {
		m.ResponseAddress = server.AsSlice()
	}
	m.ResponsePort = proto.Uint32(uint32(q.ServerPort))
	m.QueryTimeSec, m.QueryTimeNsec = tapTime(q.Start)
	m.ResponseTimeSec, m.ResponseTimeNsec = tapTime(q.Start + int64(q.End))
	return &dnstap.Dnstap{
		Type: dnstap.Dnstap_MESSAGE.Enum(), Message: m,
		Identity: []byte(l.node), Version: []byte("meridian " + l.version), Extra: d.extra(),
	}
}

func tapTime(ns int64) (*uint64, *uint32) {
	return proto.Uint64(uint64(ns / 1e9)), proto.Uint32(uint32(ns % 1e9))
}

// extra returns the attributes of d as a JSON object.
func (d *decision) extra() []byte {
	var b bytes.Buffer
	h := slog.NewJSONHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
			return slog.Attr{} // the message has the time
		}
		return a
	}})
	r := slog.NewRecord(time.Time{}, slog.LevelInfo, "", 0)
	r.AddAttrs(d.attrs()...)
	if err := h.Handle(context.Background(), r); err != nil {
		return nil // a buffer does not fail
	}
	return bytes.TrimSpace(b.Bytes())
}
