package health

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// take feeds a reply text in parts of n octets, and then the end of the connection. rest says that
// the reply was enough before all of text came.
func take(r *reply, text []byte, n int) (rest bool, err error) {
	for len(text) > 0 {
		part := text[:min(n, len(text))]
		text = text[len(part):]
		switch done, err := r.feed(part); {
		case err != nil:
			return false, err
		case done:
			return len(text) > 0 || r.more, nil
		}
	}
	return false, r.end(io.EOF)
}

func asks(method string) *httpProbe {
	return &httpProbe{conf: &config.HTTPProbe{Method: method, Expect: []config.Statuses{"100-599"}}, looks: true}
}

// TestReply reads replies whole and an octet at a time.
func TestReply(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	long := strings.Repeat("x", maxHeader)
	for _, tc := range []struct {
		name, text string
		status     int
		body       string
		goesOn     bool
		err        string
	}{
		{"by length", ok + "Content-Length: 3\r\n\r\nabc", 200, "abc", true, ""},
		{"by length, twice", ok + "Content-Length: 3\r\ncontent-length: 3\r\n\r\nabc", 200, "abc", true, ""},
		{"of no length", ok + "Content-Length: 0\r\n\r\n", 200, "", true, ""},
		{"until the end", ok + "\r\nabc", 200, "abc", false, ""},
		{"chunks", ok + "Transfer-Encoding: Chunked\r\n\r\n2;a=b\r\nab\r\n01 \r\nc\r\n0\r\nA: b\r\n\r\n", 200, "abc", true, ""},
		{"chunks and a length", ok + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n1\r\na\r\n0\r\n\r\n", 200, "a", false, ""},
		{"chunks of HTTP/1.0 are none", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0", 200, "0", false, ""},
		{"interim", "HTTP/1.1 103 Hints\r\nConnection: close\r\nContent-Length: 9\r\n\r\n" + ok + "Content-Length: 1\r\n\r\na", 200, "a", true, ""},
		{"another protocol", "HTTP/1.1 101 Switching\r\n\r\nabc", 101, "", false, ""},
		{"no content", "HTTP/1.1 204 No\r\nContent-Length: 9\r\n\r\n", 204, "", true, ""},
		{"bare line feeds", "HTTP/1.1 200\nContent-Length: 1\n\na", 200, "a", true, ""},
		{"no reason", "HTTP/1.1 200 \nContent-Length: 1\n\na", 200, "a", true, ""},
		{"it closes", ok + "Connection: a, Close\r\nContent-Length: 1\r\n\r\na", 200, "a", false, ""},
		{"too long a list to know", ok + "Connection: a," + long[:maxLine] + "\r\nContent-Length: 1\r\n\r\na", 200, "a", false, ""},
		{"a field that goes on", ok + "Connection: a,\r\n close\r\nContent-Length: 1\r\n\r\na", 200, "a", false, ""},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", 200, "a", false, ""},
		{"HTTP/1.0 that keeps", "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\na", 200, "a", true, ""},
		{"more than its length", ok + "Content-Length: 1\r\n\r\nab", 200, "a", false, ""},
		{"a long field", ok + "A: " + long[:maxHeader-99] + "\r\nContent-Length: 1\r\n\r\na", 200, "a", true, ""},
		{"a long body", ok + "\r\n" + long + "yz", 200, long, false, ""},

		{"nothing", "", 0, "", false, "unexpected EOF"},
		{"less than its length", ok + "Content-Length: 3\r\n\r\nab", 0, "", false, "unexpected EOF"},
		{"less than its chunks", ok + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", 0, "", false, "unexpected EOF"},
		{"another language", "SSH-2.0-x\r\n", 0, "", false, `malformed HTTP response "SSH-2.0-x"`},
		{"another language of words", "220 mail.example.com\r\n", 0, "", false, `malformed HTTP status code "mail.example.com"`},
		{"another version", "HTTP/one 200 OK\r\n", 0, "", false, `malformed HTTP version "HTTP/one"`},
		{"no field", ok + "abc\r\n", 0, "", false, `malformed header line "abc"`},
		{"a field of no name", ok + ": abc\r\n", 0, "", false, `malformed header line ": abc"`},
		{"a bell", ok + "A: \a\r\n", 0, "", false, `malformed header line "A: \a"`},
		{"a field that begins with nothing", ok + " a: b\r\n", 0, "", false, `malformed header line " a: b"`},
		{"a length that goes on", ok + "Content-Length: 1\r\n 2\r\n", 0, "", false, `malformed header line " 2"`},
		{"two lengths", ok + "Content-Length: 1\r\nContent-Length: 2\r\n", 0, "", false, `bad Content-Length "2"`},
		{"less than nothing", ok + "Content-Length: -1\r\n", 0, "", false, `bad Content-Length "-1"`},
		{"a length over all", ok + "Content-Length: 9223372036854775808\r\n", 0, "", false, `bad Content-Length`},
		{"a long length", ok + "Content-Length: " + strings.Repeat("0", maxLine) + "1\r\n", 0, "", false, `bad Content-Length`},
		{"what is not known", ok + "Transfer-Encoding: gzip, chunked\r\n", 0, "", false, `unsupported transfer encoding "gzip, chunked"`},
		{"chunks twice", ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 0, "", false, `unsupported transfer encoding`},
		{"a chunk of x", ok + "Transfer-Encoding: chunked\r\n\r\nx\r\n", 0, "", false, `malformed chunk size "x"`},
		{"a chunk over all", ok + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", 0, "", false, `malformed chunk size "ffffffffffffffff"`},
		{"a chunk of less than it says", ok + "Transfer-Encoding: chunked\r\n\r\n3\r\nab\r\n0\r\n\r\n", 0, "", false, `malformed end of a chunk`},
		{"header without end", ok + strings.Repeat("A: b\r\n", maxHeader/6), 0, "", false, "header over 65536 octets"},
		{"line without end", long + "x", 0, "", false, "header over 65536 octets"},
		{"interim without end", strings.Repeat("HTTP/1.1 100 Go on\r\n\r\n", maxHeader/22+1), 0, "", false, "header over 65536 octets"},
		{"chunks of air", ok + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+long[:999]+"\r\na\r\n", 200), 0, "", false, "framing of chunks over 131072 octets"},
		{"trailer without end", ok + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("A: b\r\n", maxFraming/6+1), 0, "", false, "framing of chunks over 131072 octets"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, n := range []int{1, 2, 7, 1 << 20} {
				r := borrowReply(asks("GET"))
				_, err := take(r, []byte(tc.text), n)
				switch {
				case tc.err != "":
					if err == nil || !strings.HasPrefix(err.Error(), tc.err) {
						t.Errorf("in parts of %d: got error %v, want %s", n, err, tc.err)
					}
				case err != nil || r.status != tc.status || string(r.body) != tc.body || r.size < len(tc.body):
					t.Errorf("in parts of %d: got %d %q and error %v, want %d %q", n, r.status, clip(string(r.body), 40), err, tc.status, clip(tc.body, 40))
				case n > len(tc.text) && r.goesOn() != tc.goesOn:
					t.Errorf("it goes on: %v, want %v", r.goesOn(), tc.goesOn)
				}
				if cap(r.begun) > 2*maxLine || len(r.body) > maxBody {
					t.Errorf("in parts of %d: %d octets held of a line, and %d of the body", n, cap(r.begun), len(r.body))
				}
				giveBack(r)
			}
		})
	}
}

// TestReplyHoldsLittle wants what a server says without end, and a probe does not look at, to be
// held by nobody, and an ordinary reply to cost no allocation.
func TestReplyHoldsLittle(t *testing.T) {
	p := asks("GET")
	p.looks = false
	r := borrowReply(p)
	text := []byte("HTTP/1.1 200 OK\r\nContent-Length: 60000\r\nA: " + strings.Repeat("x", 60000) + "\r\n\r\n" + strings.Repeat("y", 60000))
	if _, err := take(r, text, 1000); err != nil || r.size != 60000 || len(r.body) != 0 || cap(r.body) > maxLine || cap(r.begun) > 2*maxLine {
		t.Errorf("error %v, body of %d; %d octets held of it and %d of a line", err, r.size, cap(r.body), cap(r.begun))
	}
	short := []byte("HTTP/1.1 200 OK\r\nServer: a\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
	allocs := testing.AllocsPerRun(100, func() {
		r.reset(p, maxHeader)
		if done, err := r.feed(short); !done || err != nil || !r.goesOn() {
			t.Fatal(done, err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations a reply", allocs)
	}
}

// FuzzReply compares with net/http, which takes in a little more: obsolete folding of the fields
// that matter, and signs in a status.
func FuzzReply(f *testing.F) {
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabcd",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 503 No\n\nabc", "SSH-2.0-x\r\n\r\n",
	} {
		f.Add([]byte(text), 3, false)
	}
	f.Fuzz(func(t *testing.T, text []byte, n int, head bool) {
		method := map[bool]string{false: "GET", true: "HEAD"}[head]
		r, whole := borrowReply(asks(method)), borrowReply(asks(method))
		defer giveBack(r)
		defer giveBack(whole)
		rest, err := take(r, text, max(1, n))
		rest2, err2 := take(whole, text, len(text)+1)
		if (err == nil) != (err2 == nil) || err == nil && (r.status != whole.status || !bytes.Equal(r.body, whole.body) || rest != rest2) {
			t.Fatalf("%q in parts of %d: %d %q, error %v; at once %d %q, error %v", text, n, r.status, r.body, err, whole.status, whole.body, err2)
		}
		if bytes.Contains(text, []byte("\n ")) || bytes.Contains(text, []byte("\n\t")) || bytes.Contains(text, []byte("Trailer")) ||
			bytes.Contains(text, []byte(" +")) || bytes.Contains(text, []byte(" -")) {
			return
		}
		status, body, goesOn, want := read(text, method)
		switch {
		case (err == nil) != (want == nil):
			t.Fatalf("%q: got error %v, net/http %v", text, err, want)
		case err == nil && (status != r.status || !bytes.Equal(body, r.body)):
			t.Fatalf("%q: got %d %q, net/http %d %q", text, r.status, r.body, status, body)
		case err == nil && whole.goesOn() && !goesOn:
			t.Fatalf("%q: goes on, not so with net/http", text)
		}
	})
}

// read is what net/http reads.
func read(text []byte, method string) (status int, body []byte, goesOn bool, err error) {
	in := bufio.NewReader(bytes.NewReader(text))
	for {
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return 0, nil, false, err
		}
		if resp.StatusCode/100 == 1 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		if status := resp.StatusCode; status > 599 || status < 100 {
			return status, nil, false, nil // a status is enough
		}
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, body, !resp.Close && in.Buffered() == 0, err
	}
}
