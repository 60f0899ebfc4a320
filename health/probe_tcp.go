package health

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"time"
)

// A dialogue is what a probe says on a connection, and its judgement of the answer. An error is
// the connection's, and has the class Protocol unless the system caused it.
type dialogue func(c net.Conn) (class Class, detail string, err error)

// converse connects to t and talks.
func converse(ctx context.Context, network string, t Target, say dialogue) Result {
	start := time.Now()
	c, err := connect(ctx, network, t)
	if err != nil {
		return failure(start, err, Protocol)
	}
	defer func() { _ = c.Close() }()
	class, detail, err := say(c)
	if err != nil {
		return failure(start, err, Protocol)
	}
	return Result{Class: class, Latency: time.Since(start), Detail: printable(detail, maxDetail)}
}

// sendExpect returns the dialogue of TCP and UDP probes: what is sent, and the expression that
// the first 64 KiB of the answer match. With neither an accepted connection will do.
func sendExpect(send, expect string, anyAnswer bool) dialogue {
	re, err := regexp.Compile(expect)
	if err != nil {
		return func(net.Conn) (Class, string, error) { return Local, err.Error(), nil }
	}
	return func(c net.Conn) (Class, string, error) {
		if send != "" {
			if _, err := c.Write([]byte(send)); err != nil {
				return 0, "", err
			}
		}
		if expect == "" && !anyAnswer {
			return OK, "", nil
		}
		var got []byte
		for buf := make([]byte, 4096); ; {
			n, err := c.Read(buf)
			got = append(got, buf[:min(n, maxBody-len(got))]...)
			switch {
			case n > 0 && re.Match(got):
				return OK, "", nil
			case len(got) == maxBody, err != nil && len(got) > 0:
				return WrongBody, fmt.Sprintf("answer %q does not match %q", clip(string(got), 32), expect), nil
			case err != nil:
				return 0, "", err
			}
		}
	}
}

// talkPostgres sends a startup message (PostgreSQL documentation, section 55.2.1). A server
// that asks for a password, or refuses the user, is alive; one that is starting, stopping or
// full is not. One that lets the user in without a password may still say so.
func talkPostgres(user, database string) dialogue {
	m := binary.BigEndian.AppendUint32(make([]byte, 4), 3<<16) // protocol 3.0
	for _, s := range []string{"user", user, "database", database, "application_name", "meridian-health"} {
		m = append(append(m, s...), 0)
	}
	m = append(m, 0)
	binary.BigEndian.PutUint32(m, uint32(len(m)))
	return func(c net.Conn) (Class, string, error) {
		if _, err := c.Write(m); err != nil {
			return 0, "", err
		}
		r := bufio.NewReader(io.LimitReader(c, maxHeader))
		kind, body, err := readPostgres(r)
		for in := false; err == nil && kind != 'E'; kind, body, err = readPostgres(r) { // ErrorResponse
			switch {
			case kind == 'R' && len(body) >= 4 && binary.BigEndian.Uint32(body) == 0: // AuthenticationOk
				in = true
			case kind == 'R', in && kind == 'Z': // it asks for a password; ReadyForQuery
				_, _ = c.Write([]byte{'X', 0, 0, 0, 4}) // Terminate
				return OK, "", nil
			case !in:
				return Protocol, fmt.Sprintf("message %q, expected a request to authenticate", kind), nil
			}
		}
		if err != nil {
			return 0, "", err
		}
		code, text := "", ""
		for f := range bytes.SplitSeq(body, []byte{0}) {
			switch {
			case len(f) > 0 && f[0] == 'C':
				code = string(f[1:])
			case len(f) > 0 && f[0] == 'M':
				text = string(f[1:])
			}
		}
		switch {
		case len(code) == 5 && (code[:2] == "28" || code == "3D000"): // who asks is refused, by a server that works
			return OK, "", nil
		}
		return WrongStatus, code + ": " + text, nil
	}
}

func readPostgres(r io.Reader) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size < 4 || size > 32<<10 {
		return 0, nil, errors.New("not a PostgreSQL server")
	}
	body = make([]byte, size-4)
	_, err = io.ReadFull(r, body)
	return head[0], body, err
}

// The capabilities of a MySQL client that has no password (MySQL internals, capability flags).
const mysqlCapabilities = 1<<9 | 1<<15 | 1<<19 // PROTOCOL_41, SECURE_CONNECTION, PLUGIN_AUTH

// mysqlDenials are the errors of a server that works and does not let the user in: with a
// password, without one (as MariaDB says it), and to no database.
var mysqlDenials = []uint16{1045, 1698, 1044}

// talkMySQL reads the greeting (MySQL internals, Protocol::HandshakeV10), and logs in when
// there is a user.
func talkMySQL(user string) dialogue {
	return func(c net.Conn) (Class, string, error) {
		r := bufio.NewReader(io.LimitReader(c, maxHeader))
		m, seq, err := readMySQL(r)
		switch {
		case err != nil:
			return 0, "", err
		case len(m) > 3 && m[0] == 0xff:
			return WrongStatus, mysqlError(m), nil
		case len(m) < 2 || m[0] != 10:
			return Protocol, "not a MySQL server", nil
		case user == "":
			return OK, "", nil
		}
		login := binary.LittleEndian.AppendUint32(nil, mysqlCapabilities)
		login = binary.LittleEndian.AppendUint32(login, 1<<24-1)
		login = append(append(login, 45), make([]byte, 23)...) // utf8mb4
		login = append(append(login, user...), 0, 0)           // no password
		login = append(append(login, "mysql_native_password"...), 0)
		if err := writeMySQL(c, seq+1, login); err != nil {
			return 0, "", err
		}
		if m, seq, err = readMySQL(r); err != nil {
			return 0, "", err
		}
		if len(m) > 0 && m[0] == 0xfe { // another way to authenticate: with no password too
			if err := writeMySQL(c, seq+1, nil); err != nil {
				return 0, "", err
			}
			if m, _, err = readMySQL(r); err != nil {
				return 0, "", err
			}
		}
		switch {
		case len(m) > 3 && m[0] == 0xff && !slices.Contains(mysqlDenials, binary.LittleEndian.Uint16(m[1:])):
			return WrongStatus, mysqlError(m), nil
		case len(m) == 0:
			return Protocol, "an empty answer to the login", nil
		}
		_ = writeMySQL(c, 0, []byte{1}) // COM_QUIT
		return OK, "", nil
	}
}

func readMySQL(r io.Reader) (m []byte, seq byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, err
	}
	size := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
	if size > 16<<10 {
		return nil, 0, errors.New("not a MySQL server")
	}
	m = make([]byte, size)
	_, err = io.ReadFull(r, m)
	return m, head[3], err
}

func writeMySQL(w io.Writer, seq byte, m []byte) error {
	_, err := w.Write(append([]byte{byte(len(m)), byte(len(m) >> 8), byte(len(m) >> 16), seq}, m...))
	return err
}

func mysqlError(m []byte) string {
	text := string(m[3:])
	if len(text) > 6 && text[0] == '#' { // SQLSTATE
		text = text[6:]
	}
	return fmt.Sprintf("error %d: %s", binary.LittleEndian.Uint16(m[1:]), text)
}

// talkRedis sends PING (RESP), after the password if there is one. A server that asks for a
// password is alive; one that loads its data or has lost its master is not.
func talkRedis(password string) dialogue {
	return func(c net.Conn) (Class, string, error) {
		r := bufio.NewReader(io.LimitReader(c, 4096))
		say := func(words ...string) (string, error) {
			b := fmt.Appendf(nil, "*%d\r\n", len(words))
			for _, w := range words {
				b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(w), w)
			}
			if _, err := c.Write(b); err != nil {
				return "", err
			}
			line, err := r.ReadString('\n')
			if err != nil {
				return "", err
			}
			return string(bytes.TrimRight([]byte(line), "\r\n")), nil
		}
		if password != "" {
			line, err := say("AUTH", password)
			if err != nil || line != "+OK" {
				return WrongStatus, line, err
			}
		}
		line, err := say("PING")
		switch {
		case err != nil:
			return 0, "", err
		case line == "+PONG", len(line) >= 7 && line[:7] == "-NOAUTH":
			return OK, "", nil
		case line != "" && line[0] == '-':
			return WrongStatus, line[1:], nil
		}
		return Protocol, "not a Redis server: " + line, nil
	}
}
