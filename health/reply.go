package health

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"sync"

	"golang.org/x/net/http/httpguts"
)

const (
	maxHeader  = 64 << 10 // octets of status lines and headers that a probe reads
	maxBody    = 64 << 10 // octets of the body that a probe reads; the rest is not waited for
	maxFraming = 2 * maxBody
	maxLine    = 1 << 10 // octets of a line that are looked at
)

// reply is the answer to one request over HTTP/1.1 (RFC 9112), read as it comes, in parts of any
// size. Whatever a server sends, no more is held of it than maxLine octets of the line that has
// begun, and of the body what the probe wants of its first maxBody octets.
type reply struct {
	probe *httpProbe // whose request it answers; set by borrowReply

	part   replyPart
	room   int        // octets that the header may still have, then the framing of chunks
	begun  []byte     // the line that has begun, at most maxLine octets of it
	last   replyField // of the field before, which may go on in the next line
	status int
	minor  int   // version 1.minor
	length int64 // by Content-Length; -1: none
	chunks bool
	alive  bool // the server says, or by its version means, that it keeps the connection
	closes bool // the server says, or the reply makes it so, that the connection ends after it

	left int64  // octets of the body or its chunk; -1: until the connection ends
	size int    // octets of the body so far
	body []byte // of these what the probe wants, at most maxBody
	more bool   // there were octets after the end
}

// replyPart is what comes next of a reply.
type replyPart uint8

const (
	partStatus replyPart = iota
	partField
	partBody
	partChunkSize
	partChunk
	partChunkEnd
	partTrailer
	partNone // it is whole, or enough for a judgement
)

// replyField is a field that says how the body is framed or what becomes of the connection.
type replyField uint8

const (
	fieldNone replyField = iota
	fieldOther
	fieldConnection
	fieldLength
	fieldEncoding
)

var replies = sync.Pool{New: func() any { return new(reply) }}

// borrowReply returns a reply to p's request of which nothing has come, until giveBack.
func borrowReply(p *httpProbe) *reply {
	r := replies.Get().(*reply)
	r.reset(p, maxHeader)
	return r
}

// reset makes r one of which nothing has come, and whose header has so much room.
func (r *reply) reset(p *httpProbe, room int) {
	*r = reply{probe: p, room: room, length: -1, begun: r.begun[:0], body: r.body[:0]}
}

func giveBack(r *reply) {
	if r.probe = nil; cap(r.body) > maxLine {
		r.body = nil // few probes look at a body
	}
	replies.Put(r)
}

// untouched reports whether nothing came yet.
func (r *reply) untouched() bool { return r.room == maxHeader }

// goesOn reports whether the connection is for another request after r, which is whole.
func (r *reply) goesOn() bool {
	return r.part == partNone && !r.closes && !r.more && r.status >= 200 && (r.minor > 0 || r.alive)
}

// feed takes in what came. done says that there is enough to judge; its errors are the server's.
func (r *reply) feed(b []byte) (done bool, err error) {
	for r.part != partNone {
		if r.part == partBody || r.part == partChunk {
			if len(b) == 0 {
				return false, nil
			}
			b = b[r.take(b):]
			continue
		}
		line, rest, ok := r.line(b)
		switch b = rest; {
		case r.room < 0 && r.part <= partField:
			return false, fmt.Errorf("header over %d octets", maxHeader)
		case r.room < 0:
			return false, fmt.Errorf("framing of chunks over %d octets", maxFraming)
		case !ok:
			return false, nil
		}
		if err := r.read(line); err != nil {
			return false, err
		}
	}
	r.more = len(b) > 0
	return true, nil
}

// end takes in what ended the connection after all that came. It returns nil if that makes r
// whole, or what it means otherwise.
func (r *reply) end(err error) error {
	switch {
	case err != io.EOF:
		return err
	case r.part == partBody && r.left < 0:
		r.part = partNone
		return nil
	}
	return io.ErrUnexpectedEOF
}

// take takes in octets of the body that b begins with, and returns how many.
func (r *reply) take(b []byte) int {
	n := len(b)
	if r.left >= 0 {
		n = int(min(int64(n), r.left))
		r.left -= int64(n)
	}
	if r.probe.looks {
		r.body = append(r.body, b[:min(n, maxBody-len(r.body))]...)
	}
	switch r.size += n; {
	case r.size > maxBody:
		r.part, r.closes = partNone, true
	case r.left == 0 && r.part == partChunk:
		r.part = partChunkEnd
	case r.left == 0:
		r.part = partNone
	}
	return n
}

// line returns the line that b ends, with what ends it unless it is cut at maxLine, and the rest
// of b; or false if b ends no line. The line is valid until the next call.
func (r *reply) line(b []byte) (line, rest []byte, ok bool) {
	end := bytes.IndexByte(b, '\n') + 1
	if ok = end > 0; ok {
		b, rest = b[:end], b[end:]
	}
	r.room -= len(b)
	if ok && len(r.begun) == 0 {
		return b[:min(len(b), maxLine)], rest, true
	}
	line = append(r.begun, b[:min(len(b), maxLine-len(r.begun))]...)
	if r.begun = line; ok {
		r.begun = line[:0]
	}
	return line, rest, ok
}

// read takes in a line.
func (r *reply) read(line []byte) error {
	text, whole := bytes.CutSuffix(line, []byte("\n"))
	text, crlf := bytes.CutSuffix(text, []byte("\r"))
	switch r.part {
	case partStatus:
		return r.readStatus(text)
	case partField:
		if len(text) == 0 {
			r.endHeader()
			return nil
		}
		return r.readField(text, whole)
	case partChunkSize:
		size, _, _ := bytes.Cut(text, []byte(";")) // extensions are for those who know them
		n, err := strconv.ParseUint(string(bytes.TrimRight(size, " \t")), 16, 63)
		if err != nil || whole && !crlf {
			return fmt.Errorf("malformed chunk size %q", clip(string(text), 32))
		}
		if r.left, r.part = int64(n), partChunk; n == 0 {
			r.part = partTrailer
		}
	case partChunkEnd:
		if len(text) != 0 || !crlf {
			return fmt.Errorf("malformed end of a chunk %q", clip(string(text), 32))
		}
		r.part = partChunkSize
	case partTrailer:
		if len(text) == 0 {
			r.part = partNone
		}
	}
	return nil
}

// readStatus reads a status line (RFC 9112 s4).
func (r *reply) readStatus(text []byte) error {
	version, status, ok := bytes.Cut(text, []byte(" "))
	if !ok {
		return fmt.Errorf("malformed HTTP response %q", clip(string(text), 64))
	}
	digit := func(b byte) bool { return '0' <= b && b <= '9' }
	code, _, _ := bytes.Cut(bytes.TrimLeft(status, " "), []byte(" "))
	switch {
	case len(code) != 3 || !digit(code[0]) || !digit(code[1]) || !digit(code[2]):
		return fmt.Errorf("malformed HTTP status code %q", clip(string(code), 64))
	case len(version) != 8 || string(version[:5]) != "HTTP/" || !digit(version[5]) || version[6] != '.' || !digit(version[7]):
		return fmt.Errorf("malformed HTTP version %q", clip(string(version), 64))
	}
	r.status = int(code[0]-'0')*100 + int(code[1]-'0')*10 + int(code[2]-'0')
	r.minor = int(version[7] - '0')
	switch major := version[5]; {
	case major == '0':
		r.minor, r.closes = 0, true
	case major > '1':
		r.minor = 1
	}
	r.part = partField
	return nil
}

// readField reads a line of the header (RFC 9112 s5). whole says that it was not cut.
func (r *reply) readField(text []byte, whole bool) error {
	malformed := func() error { return fmt.Errorf("malformed header line %q", clip(string(text), 64)) }
	if text[0] == ' ' || text[0] == '\t' { // the field before goes on, as it should not (s5.2)
		switch r.last {
		case fieldNone, fieldLength, fieldEncoding:
			return malformed()
		case fieldConnection:
			r.readConnection(text)
		}
		return nil
	}
	key, value, ok := bytes.Cut(text, []byte(":"))
	if !ok || len(key) == 0 {
		return malformed()
	}
	for _, c := range key {
		if c != ' ' && !httpguts.IsTokenRune(rune(c)) {
			return malformed()
		}
	}
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return malformed()
		}
	}
	value = bytes.Trim(value, " \t")
	is := func(name string) bool { return len(key) == len(name) && bytes.EqualFold(key, []byte(name)) }
	switch r.last = fieldOther; {
	case is("Connection"):
		r.last = fieldConnection
		r.readConnection(value)
		r.closes = r.closes || !whole
	case is("Content-Length"):
		r.last = fieldLength
		n, err := strconv.ParseUint(string(value), 10, 63)
		if err != nil || !whole || r.length >= 0 && int64(n) != r.length {
			return fmt.Errorf("bad Content-Length %q", clip(string(value), 64))
		}
		r.length = int64(n)
	case is("Transfer-Encoding") && r.minor > 0:
		r.last = fieldEncoding
		if r.chunks || !whole || !bytes.EqualFold(value, []byte("chunked")) {
			return fmt.Errorf("unsupported transfer encoding %q", clip(string(value), 64))
		}
		r.chunks = true
	}
	return nil
}

// readConnection reads a list of what becomes of the connection (RFC 9112 s9.3).
func (r *reply) readConnection(list []byte) {
	for option := range bytes.SplitSeq(list, []byte(",")) {
		option = bytes.Trim(option, " \t")
		r.closes = r.closes || bytes.EqualFold(option, []byte("close"))
		r.alive = r.alive || bytes.EqualFold(option, []byte("keep-alive"))
	}
}

// endHeader looks for what follows the header (RFC 9112 s6.3).
func (r *reply) endHeader() {
	switch {
	case r.status/100 == 1 && r.status != 101: // interim: another response follows (RFC 9110 s15.2)
		r.reset(r.probe, r.room)
	case !expects(r.probe.conf.Expect, r.status), r.probe.conf.Method == "HEAD", r.status == 101, r.status == 204, r.status == 304:
		r.part = partNone
	case r.chunks:
		r.part, r.room, r.closes = partChunkSize, maxFraming, r.closes || r.length >= 0
	case r.length == 0:
		r.part = partNone
	default:
		r.part, r.left = partBody, r.length
		r.closes = r.closes || r.length < 0
	}
}
