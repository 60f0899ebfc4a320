package health

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/http2"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// pki is a certification authority in a folder.
type pki struct {
	dir  string
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{dir: t.TempDir(), pool: x509.NewCertPool()}
	var der []byte
	der, p.key = p.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, 24*time.Hour)
	var err error
	if p.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	p.pool.AddCert(p.ca)
	p.write(t, "ca.pem", "CERTIFICATE", der)
	return p
}

func (p *pki) sign(t *testing.T, c *x509.Certificate, lasts time.Duration) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(lasts)
	parent, signer := p.ca, p.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

func (p *pki) write(t *testing.T, name, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// leaf returns a certificate for www.example.com, and writes it to NAME.pem and NAME-key.pem.
func (p *pki) leaf(t *testing.T, name string, lasts time.Duration) tls.Certificate {
	t.Helper()
	der, key := p.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{"www.example.com"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, lasts)
	p.write(t, name+".pem", "CERTIFICATE", der)
	k, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, name+"-key.pem", "EC PRIVATE KEY", k)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (p *pki) files(ca, name string) config.TLSFiles {
	f := config.TLSFiles{}
	if ca != "" {
		f.CA = filepath.Join(p.dir, ca)
	}
	if name != "" {
		f.Cert, f.Key = filepath.Join(p.dir, name+".pem"), filepath.Join(p.dir, name+"-key.pem")
	}
	return f
}

func wants(t *testing.T, r Result, class Class, detail string) {
	t.Helper()
	if r.Class != class || !strings.Contains(r.Detail, detail) || class == OK && r.Detail != "" || r.Class != Local && r.Latency <= 0 {
		t.Errorf("got %v %q in %v, want %v %q", r.Class, r.Detail, r.Latency, class, detail)
	}
}

func TestProbeHTTPBody(t *testing.T) {
	bodies := map[string]string{
		"/ok": "all is well", "/json": `{"status":"pass","n":3,"ok":true,"none":null,"checks":[{"status":"warn"}],"deep":{"a":[1]},"db.main":{"up\\now":"yes"}}`,
		"/late": strings.Repeat(".", maxBody) + "well", "/last": strings.Repeat(".", maxBody-4) + "well", "/big": `{"a":"` + strings.Repeat(".", maxBody) + `"}`,
	}
	for _, h2 := range []bool{false, true} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if want := map[bool]int{false: 1, true: 2}[h2]; r.ProtoMajor != want {
				http.Error(w, r.Proto, 505)
			}
			_, _ = io.WriteString(w, bodies[r.URL.Path])
		}))
		s.EnableHTTP2 = h2
		s.StartTLS()
		defer s.Close()
		roots := x509.NewCertPool()
		roots.AddCert(s.Certificate())
		for _, tc := range []struct {
			name   string
			probe  config.HTTPProbe
			class  Class
			detail string
		}{
			{"substring", config.HTTPProbe{Path: "/ok", Contains: "is"}, OK, ""},
			{"no substring", config.HTTPProbe{Path: "/ok", Contains: "Well"}, WrongBody, `body without "Well"`},
			{"at the end of what is read", config.HTTPProbe{Path: "/last", Contains: "well"}, OK, ""},
			{"after what is read", config.HTTPProbe{Path: "/late", Contains: "well"}, WrongBody, "without"},
			{"regexp", config.HTTPProbe{Path: "/ok", Matches: "^all .*l$"}, OK, ""},
			{"no match", config.HTTPProbe{Path: "/ok", Matches: "^well"}, WrongBody, "does not match"},
			{"JSON value", config.HTTPProbe{Path: "/json", JSON: &config.JSONExpect{Path: "status", Equals: "pass"}}, OK, ""},
			{"JSON number", config.HTTPProbe{Path: "/json", JSON: &config.JSONExpect{Path: "n", Equals: "3"}}, OK, ""},
			{"JSON item", config.HTTPProbe{Path: "/json", JSON: &config.JSONExpect{Path: "checks.0.status", Equals: "pass"}}, WrongBody, "checks.0.status is warn, expected pass"},
			{"JSON key with a dot", config.HTTPProbe{Path: "/json", JSON: &config.JSONExpect{Path: `db\.main.up\\now`, Equals: "yes"}}, OK, ""},
			{"JSON truth", config.HTTPProbe{Path: "/json", JSON: &config.JSONExpect{Path: "ok"}}, OK, ""},
			{"JSON null", config.HTTPProbe{Path: "/json", JSON: &config.JSONExpect{Path: "none"}}, WrongBody, "none is null"},
			{"JSON object as text", config.HTTPProbe{Path: "/json", JSON: &config.JSONExpect{Path: "deep", Equals: `{"a":[1]}`}}, OK, ""},
			{"no such key", config.HTTPProbe{Path: "/json", JSON: &config.JSONExpect{Path: "checks.1.status"}}, WrongBody, `no item "1" of 1`},
			{"key of a text", config.HTTPProbe{Path: "/json", JSON: &config.JSONExpect{Path: "status.a"}}, WrongBody, "nothing in"},
			{"not JSON", config.HTTPProbe{Path: "/ok", JSON: &config.JSONExpect{Path: "a"}}, WrongBody, "not JSON"},
			{"JSON too large", config.HTTPProbe{Path: "/big", JSON: &config.JSONExpect{Path: "a"}}, WrongBody, "over 65536"},
			{"a range", config.HTTPProbe{Path: "/ok", Expect: []config.Statuses{"100-199", "200-299"}}, OK, ""},
			{"outside of the ranges", config.HTTPProbe{Path: "/ok", Expect: []config.Statuses{"300-399", "201"}}, WrongStatus, "status 200, expected 300-399 or 201"},
		} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %v", tc.name, h2), func(t *testing.T) {
				tc.probe.TLS, tc.probe.HTTP2, tc.probe.ServerName = true, h2, "example.com"
				wants(t, probeOnce(t, target(serverAddr(s), config.Probe{HTTP: &tc.probe}), roots), tc.class, tc.detail)
			})
		}
	}
}

func TestProbeHTTP2WithoutTLS(t *testing.T) {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	protocols.SetHTTP1(true)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200 + r.ProtoMajor) }))
	s.Config.Protocols = &protocols
	s.Start()
	defer s.Close()
	wants(t, probeOnce(t, target(serverAddr(s), config.Probe{HTTP: &config.HTTPProbe{HTTP2: true, Expect: []config.Statuses{"202"}}}), nil), OK, "")
	old := talk(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") })
	r := probeOnce(t, target(old, config.Probe{HTTP: &config.HTTPProbe{HTTP2: true}}), nil)
	if r.Class != Protocol && r.Class != Reset {
		t.Errorf("a server of HTTP/1.1: got %v %q, want protocol", r.Class, r.Detail)
	}
}

func TestProbeCertificates(t *testing.T) {
	p := newPKI(t)
	serve := func(cert tls.Certificate, clients *x509.CertPool) netip.AddrPort {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: clients,
			ClientAuth: map[bool]tls.ClientAuthType{false: tls.NoClientCert, true: tls.RequireAndVerifyClientCert}[clients != nil]})
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.NotFoundHandler()}
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close(); <-done })
		return l.Addr().(*net.TCPAddr).AddrPort()
	}
	good, old := serve(p.leaf(t, "good", 10*24*time.Hour+time.Hour), nil), serve(p.leaf(t, "old", -time.Minute), nil)
	strict := serve(p.leaf(t, "strict", time.Hour), p.pool)
	p.leaf(t, "client", time.Hour)
	plain := talk(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "220 hello\r\n") })
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		addr   netip.AddrPort
		probe  config.TLSProbe
		roots  *x509.CertPool
		class  Class
		detail string
	}{
		{"chain and name", good, config.TLSProbe{ServerName: "www.example.com"}, p.pool, OK, ""},
		{"root of a file", good, config.TLSProbe{ServerName: "www.example.com", Files: p.files("ca.pem", "")}, x509.NewCertPool(), OK, ""},
		{"unknown root", good, config.TLSProbe{ServerName: "www.example.com"}, x509.NewCertPool(), TLSFault, "unknown authority"},
		{"wrong name", good, config.TLSProbe{ServerName: "api.example.com"}, p.pool, TLSFault, "not api.example.com"},
		{"days enough", good, config.TLSProbe{ServerName: "www.example.com", Days: 10}, p.pool, OK, ""},
		{"too few days", good, config.TLSProbe{ServerName: "www.example.com", Days: 14}, p.pool, TLSFault, "10 days left, expected 14"},
		{"expired", old, config.TLSProbe{ServerName: "www.example.com"}, p.pool, TLSFault, "expired"},
		{"expired and not verified", old, config.TLSProbe{SkipVerify: true}, p.pool, TLSFault, "expired on"},
		{"not TLS", plain, config.TLSProbe{}, p.pool, TLSFault, ""},
		{"a pipe in place of a file", good, config.TLSProbe{Files: config.TLSFiles{CA: pipe}}, p.pool, Local, "not a regular file"},
		{"files are missing", good, config.TLSProbe{Files: p.files("gone.pem", "")}, p.pool, Local, "gone.pem"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wants(t, probeOnce(t, target(tc.addr, config.Probe{TLS: &tc.probe}), tc.roots), tc.class, tc.detail)
		})
	}
	for _, tc := range []struct {
		client string
		class  Class
	}{{"client", WrongStatus}, {"", TLSFault}} { // the handler says 404: it was let in
		probe := &config.HTTPProbe{TLS: true, ServerName: "www.example.com", Files: p.files("ca.pem", tc.client)}
		if r := probeOnce(t, target(strict, config.Probe{HTTP: probe}), nil); r.Class != tc.class {
			t.Errorf("client certificate %q: got %v %q, want %v", tc.client, r.Class, r.Detail, tc.class)
		}
	}
}

func TestProbeGRPC(t *testing.T) {
	statuses := map[string]string{"": "\x08\x01", "up": "\x08\x01", "down": "\x08\x02", "zero": "", "odd": "\x08\x09", "bad": "\x10\x01"}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		name := ""
		if len(body) > 7 {
			name = string(body[7:])
		}
		m, ok := statuses[name]
		switch {
		case r.URL.Path != "/grpc.health.v1.Health/Check" || r.Header.Get("Te") != "trailers":
			w.Header().Set("Grpc-Status", "12")
		case name == "web":
			w.WriteHeader(502)
		case !ok:
			w.Header().Set("Grpc-Status", "5")
		default:
			_, _ = w.Write(append([]byte{0, 0, 0, 0, byte(len(m))}, m...))
			w.Header().Set("Grpc-Status", "0")
		}
	})
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	for _, tc := range []struct {
		service, detail string
		class           Class
	}{
		{"", "", OK}, {"up", "", OK}, {"down", "NOT_SERVING", WrongStatus}, {"zero", "UNKNOWN", WrongStatus}, {"odd", "health status 9", WrongStatus},
		{"bad", "no health status", Protocol}, {"gone", "NOT_FOUND", WrongStatus}, {"web", "status 502", Protocol},
	} {
		g := &config.GRPCProbe{TLS: true, ServerName: "example.com", Service: tc.service}
		wants(t, probeOnce(t, target(serverAddr(s), config.Probe{GRPC: g}), roots), tc.class, tc.detail)
	}
	// Without TLS, by x/net's own server.
	addr := talk(t, func(c *net.TCPConn) { (&http2.Server{}).ServeConn(c, &http2.ServeConnOpts{Handler: h}) })
	wants(t, probeOnce(t, target(addr, config.Probe{GRPC: &config.GRPCProbe{Service: "up"}}), nil), OK, "")
}

func TestProbeDialogues(t *testing.T) {
	serve := func(greeting string, answers map[string]string) netip.AddrPort {
		return talk(t, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, greeting)
			for buf := make([]byte, 4096); ; {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				for has, answer := range answers {
					if strings.Contains(string(buf[:n]), has) {
						_, _ = io.WriteString(c, answer)
						if answer == "" {
							return
						}
					}
				}
			}
		})
	}
	pgError := func(code string) string {
		m := "SFATAL\x00C" + code + "\x00Mno reason\x00\x00"
		return "E\x00\x00\x00" + string(rune(len(m)+4)) + m
	}
	const pgTrusts = "R\x00\x00\x00\x08\x00\x00\x00\x00"
	mysql := func(seq byte, m string) string { return string([]byte{byte(len(m)), 0, 0, seq}) + m }
	greeting := mysql(0, "\x0a8.4.0\x00"+strings.Repeat("x", 40))
	for _, tc := range []struct {
		name   string
		probe  config.Probe
		addr   netip.AddrPort
		class  Class
		detail string
	}{
		{"TCP: answer", config.Probe{TCP: &config.TCPProbe{Send: "hi\n", Expect: "^hel+o"}}, serve("", map[string]string{"hi": "hello"}), OK, ""},
		{"TCP: greeting", config.Probe{TCP: &config.TCPProbe{Expect: "^220 "}}, serve("220 mail\r\n", nil), OK, ""},
		{"TCP: another answer", config.Probe{TCP: &config.TCPProbe{Expect: "^220 "}}, serve("554 no\r\n", nil), WrongBody, `answer "554 no`},
		{"TCP: silence", config.Probe{TCP: &config.TCPProbe{Expect: "."}}, serve("", nil), Timeout, ""},
		{"TCP: hangs up", config.Probe{TCP: &config.TCPProbe{Send: "hi", Expect: "."}}, serve("", map[string]string{"hi": ""}), Reset, ""},
		{"PostgreSQL wants a password", config.Probe{Postgres: &config.PostgresProbe{User: "u", Database: "d"}}, serve("", map[string]string{"\x00\x03\x00\x00user\x00u\x00database\x00d\x00": "R\x00\x00\x00\x08\x00\x00\x00\x05"}), OK, ""},
		{"PostgreSQL refuses the user", config.Probe{Postgres: &config.PostgresProbe{}}, serve("", map[string]string{"user": pgError("28000")}), OK, ""},
		{"PostgreSQL knows no such database", config.Probe{Postgres: &config.PostgresProbe{}}, serve("", map[string]string{"user": pgError("3D000")}), OK, ""},
		{"PostgreSQL starts", config.Probe{Postgres: &config.PostgresProbe{}}, serve("", map[string]string{"user": pgError("57P03")}), WrongStatus, "57P03: no reason"},
		{"PostgreSQL is full", config.Probe{Postgres: &config.PostgresProbe{}}, serve("", map[string]string{"user": pgError("53300")}), WrongStatus, "53300"},
		{"PostgreSQL lets the user in", config.Probe{Postgres: &config.PostgresProbe{}}, serve("", map[string]string{"user": pgTrusts + "S\x00\x00\x00\x08a\x00b\x00Z\x00\x00\x00\x05I"}), OK, ""},
		{"PostgreSQL lets the user in and is full", config.Probe{Postgres: &config.PostgresProbe{}}, serve("", map[string]string{"user": pgTrusts + pgError("53300")}), WrongStatus, "53300"},
		{"not PostgreSQL", config.Probe{Postgres: &config.PostgresProbe{}}, serve("HTTP/1.1 400\r\n", nil), Protocol, "not a PostgreSQL"},
		{"MySQL greets", config.Probe{MySQL: &config.MySQLProbe{}}, serve(greeting, nil), OK, ""},
		{"MySQL is full", config.Probe{MySQL: &config.MySQLProbe{}}, serve(mysql(0, "\xff\x10\x04Too many connections"), nil), WrongStatus, "error 1040: Too many"},
		{"MySQL login", config.Probe{MySQL: &config.MySQLProbe{User: "probe"}}, serve(greeting, map[string]string{"probe": mysql(2, "\x00\x00\x00\x02\x00\x00\x00")}), OK, ""},
		{"MySQL login, another method", config.Probe{MySQL: &config.MySQLProbe{User: "probe"}}, serve(greeting, map[string]string{"probe": mysql(2, "\xfecaching_sha2_password\x00x"), "\x00\x00\x00\x03": mysql(4, "\x00\x00")}), OK, ""},
		{"MySQL login refused", config.Probe{MySQL: &config.MySQLProbe{User: "probe"}}, serve(greeting, map[string]string{"probe": mysql(2, "\xff\x15\x04#28000Access denied")}), OK, ""},
		{"MySQL login refused, as MariaDB does", config.Probe{MySQL: &config.MySQLProbe{User: "probe"}}, serve(greeting, map[string]string{"probe": mysql(2, "\xff\xa2\x06#28000Access denied")}), OK, ""},
		{"MySQL login fails", config.Probe{MySQL: &config.MySQLProbe{User: "probe"}}, serve(greeting, map[string]string{"probe": mysql(2, "\xff\x69\x04#HY000Host is blocked")}), WrongStatus, "error 1129: Host is blocked"},
		{"not MySQL", config.Probe{MySQL: &config.MySQLProbe{}}, serve("SSH-2.0-OpenSSH\r\n", nil), Protocol, "not a MySQL"},
		{"Redis", config.Probe{Redis: &config.RedisProbe{}}, serve("", map[string]string{"*1\r\n$4\r\nPING\r\n": "+PONG\r\n"}), OK, ""},
		{"Redis with a password", config.Probe{Redis: &config.RedisProbe{Password: "p w"}}, serve("", map[string]string{"$4\r\nAUTH\r\n$3\r\np w\r\n": "+OK\r\n", "PING": "+PONG\r\n"}), OK, ""},
		{"Redis, wrong password", config.Probe{Redis: &config.RedisProbe{Password: "x"}}, serve("", map[string]string{"AUTH": "-WRONGPASS no\r\n"}), WrongStatus, "WRONGPASS"},
		{"Redis wants a password", config.Probe{Redis: &config.RedisProbe{}}, serve("", map[string]string{"PING": "-NOAUTH Authentication required.\r\n"}), OK, ""},
		{"Redis loads", config.Probe{Redis: &config.RedisProbe{}}, serve("", map[string]string{"PING": "-LOADING dataset\r\n"}), WrongStatus, "LOADING"},
		{"not Redis", config.Probe{Redis: &config.RedisProbe{}}, serve("", map[string]string{"PING": "HTTP/1.1 400\r\n"}), Protocol, "not a Redis"},
		{"inverted success", config.Probe{TCP: &config.TCPProbe{}, Invert: true}, serve("", nil), WrongStatus, "inverted"},
		{"inverted failure", config.Probe{TCP: &config.TCPProbe{Expect: "^220 "}, Invert: true}, serve("554 no\r\n", nil), OK, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := target(tc.addr, tc.probe)
			if tc.class == Timeout {
				x.Probe.Timeout = config.Duration(50 * time.Millisecond)
			}
			wants(t, probeOnce(t, x, nil), tc.class, tc.detail)
		})
	}
}

func TestProbeUDP(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, 100); ; {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if string(buf[:n]) != "quiet" {
				_, _ = c.WriteTo([]byte("re: "+string(buf[:n])), from)
			}
		}
	}()
	addr := c.LocalAddr().(*net.UDPAddr).AddrPort()
	probe := func(send, expect string) Result {
		x := target(addr, config.Probe{UDP: &config.UDPProbe{Send: send, Expect: expect}})
		if send == "quiet" {
			x.Probe.Timeout = config.Duration(50 * time.Millisecond)
		}
		return probeOnce(t, x, nil)
	}
	wants(t, probe("hi", ""), OK, "")
	wants(t, probe("hi", "^re: hi$"), OK, "")
	wants(t, probe("quiet", ""), Timeout, "no answer")
	_ = c.Close()
	<-done
	wants(t, probe("hi", ""), Refused, "")
}

func TestProbeDNS(t *testing.T) {
	s := &dns.Server{Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		switch {
		case q.Question[0].Name == "gone.test.":
			m.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			rr, _ := dns.NewRR("www.test. 60 A 192.0.2.1")
			m.Answer = append(m.Answer, rr)
		case q.Question[0].Qtype == dns.TypeAAAA:
			rr, _ := dns.NewRR("www.test. 60 AAAA 2001:db8::1")
			m.Answer = append(m.Answer, rr)
		case q.Question[0].Qtype == dns.TypeMX:
			rr, _ := dns.NewRR("www.test. 60 MX 10 mail.test.")
			m.Answer = append(m.Answer, rr)
		}
		_ = w.WriteMsg(m)
	})}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.PacketConn = pc
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	t.Cleanup(func() { _ = s.Shutdown(); <-done; _ = pc.Close() })
	for _, tc := range []struct {
		probe  config.DNSProbe
		class  Class
		detail string
	}{
		{config.DNSProbe{Name: "www.test", Type: "A", Rcode: "NOERROR"}, OK, ""},
		{config.DNSProbe{Name: "www.test", Type: "A", Rcode: "NOERROR", Answer: "192.0.2.1"}, OK, ""},
		{config.DNSProbe{Name: "www.test", Type: "A", Rcode: "NOERROR", Answer: "192.0.2.2"}, WrongBody, "answer 192.0.2.1, expected 192.0.2.2"},
		{config.DNSProbe{Name: "www.test", Type: "TXT", Rcode: "NOERROR", Answer: "x"}, WrongBody, "answer no record"},
		{config.DNSProbe{Name: "www.test", Type: "AAAA", Rcode: "NOERROR", Answer: "2001:DB8:0::1"}, OK, ""},
		{config.DNSProbe{Name: "www.test", Type: "MX", Rcode: "NOERROR", Answer: "10 mail.test"}, OK, ""},
		{config.DNSProbe{Name: "www.test", Type: "MX", Rcode: "NOERROR", Answer: "20 mail.test"}, WrongBody, "answer 10 mail.test., expected 20 mail.test"},
		{config.DNSProbe{Name: "gone.test", Type: "A", Rcode: "NXDOMAIN"}, OK, ""},
		{config.DNSProbe{Name: "gone.test", Type: "A", Rcode: "NOERROR"}, WrongStatus, "rcode NXDOMAIN, expected NOERROR"},
		{config.DNSProbe{Name: "a.test", Type: "NOTYPE", Rcode: "NOERROR"}, Local, "NOTYPE"},
	} {
		wants(t, probeOnce(t, target(pc.LocalAddr().(*net.UDPAddr).AddrPort(), config.Probe{DNS: &tc.probe}), nil), tc.class, tc.detail)
	}
}

func TestProbeICMP(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		r := probeOnce(t, target(netip.AddrPortFrom(netip.MustParseAddr(addr), 0), config.Probe{ICMP: &config.ICMPProbe{}}), nil)
		if r.Class == Local && os.Getenv("REQUIRE_ALL") != "1" {
			t.Skipf("%s: %s", addr, r.Detail)
		}
		wants(t, r, OK, "")
	}
}

func TestProbeExec(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"ok": "exit 0", "fail": "echo no $MERIDIAN_POOL $MERIDIAN_ADDRESS $MERIDIAN_PORT $1; exit 2", "hang": "sleep 60 & sleep 60",
		"loud": "yes", "child": "sleep 60 & exit 0",
		"group":   "timeout 4912 sleep 4912 & sleep 60", // timeout(1) makes a process group
		"escape":  "setsid sleep 4911 &\n(setsid sh -c 'sleep 4911 & sleep 4911' &)\nexec env -i setsid sleep 4911 &\nwait; sleep 60",
		"escaped": "setsid sh -c 'sleep 4911 & sleep 4911' & exit 0",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	relative, err := filepath.Rel(here, dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		command string
		folder  string
		class   Class
		detail  string
	}{
		{"ok", dir, OK, ""}, {"fail", dir, WrongStatus, "no gfe 127.0.0.1 80 arg"}, {"hang", dir, Timeout, "no end within"},
		{"loud", dir, Protocol, "output over"}, {"child", dir, OK, ""}, {"gone", dir, Local, "no such file"},
		{"../" + filepath.Base(dir) + "/ok", dir, OK, ""}, {"ok", "", Local, "node.health.exec"}, {"ok", relative, OK, ""},
		{"group", dir, Timeout, "no end within"}, {"escape", dir, Timeout, "no end within"}, {"escaped", dir, OK, ""},
	} {
		x := target(netip.MustParseAddrPort("127.0.0.1:80"), config.Probe{Exec: &config.ExecProbe{Command: tc.command, Args: []string{"arg"}}})
		x.ID.Pool, x.Probe.Timeout = "gfe", config.Duration(20*time.Second)
		if tc.class == Timeout {
			x.Probe.Timeout = config.Duration(200 * time.Millisecond)
		}
		probe, _ := NewProber(ProberOptions{Exec: tc.folder}).prepare(x)
		r := probe(t.Context())
		t.Logf("%s: %v", tc.command, r)
		wants(t, r, tc.class, tc.detail)
		if left := children(); len(left) != 0 {
			t.Errorf("%s left processes %v behind", tc.command, left)
		}
	}
}

// TestProgramsAreBounded wants exec probes to leave room for others, and all to have a turn.
func TestProgramsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int64
		turns := make(map[gslb.EndpointID]bool)
		reports := make(chan gslb.EndpointID, 1000)
		p := NewProber(ProberOptions{
			Report: func(x Target, _ Result, _ State) { reports <- x.ID },
			probe: func(_ context.Context, x Target) Result {
				if x.Probe.Exec == nil {
					return Result{}
				}
				n := running.Add(1)
				most.Store(max(most.Load(), n))
				time.Sleep(300 * time.Millisecond)
				running.Add(-1)
				return Result{}
			},
		})
		targets := fakeTargets(41)
		for i := range targets[:40] {
			targets[i].Probe.TCP, targets[i].Probe.Exec = nil, &config.ExecProbe{Command: "x"}
		}
		p.SetTargets(targets)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(5 * time.Second)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		close(reports)
		other := 0
		for id := range reports {
			turns[id] = true
			if id == targets[40].ID {
				other++
			}
		}
		if most.Load() != maxPrograms || len(turns) != 41 || other < 4 {
			t.Errorf("%d programs at once, %d targets had a turn, the other %d; want %d, 41 and 4 or more", most.Load(), len(turns), other, maxPrograms)
		}
	})
}

func TestProbeImport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "verdicts")
	write := func(text string, age time.Duration) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	body := ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if body == "" {
			http.Redirect(w, httptest.NewRequest("GET", "/", nil), "/x", 302)
		}
		_, _ = io.WriteString(w, body)
	}))
	defer s.Close()
	for _, tc := range []struct {
		name, text string
		age        time.Duration
		class      Class
		detail     string
	}{
		{"up", "# who\n192.0.2.1 down\nGFE/192.0.2.1 up\n", 0, OK, ""},
		{"down by address", "192.0.2.1 down # maintenance\n", 0, WrongStatus, "outside verdict"},
		{"JSON", `{"gfe/192.0.2.1": "down"}`, 0, WrongStatus, "outside verdict"},
		{"not named", "192.0.2.9 down", 0, Local, "not among"},
		{"a word too many", "192.0.2.1 down now", 0, Local, "line 1: 3 words"},
		{"neither up nor down", "192.0.2.1 sideways", 0, Local, "expected up or down"},
		{"broken JSON", `{"gfe`, 0, Local, "outside verdicts"},
		{"too old", "192.0.2.1 up", time.Hour, Local, "1h0m0s old"},
	} {
		x := Target{ID: gslb.EndpointID{Pool: "gfe", Addr: netip.MustParseAddr("192.0.2.1")},
			Probe: config.Probe{Import: &config.ImportProbe{File: file}, Interval: config.Duration(time.Minute), Timeout: config.Duration(10 * time.Second)}}
		write(tc.text, tc.age)
		wants(t, probeOnce(t, x, nil), tc.class, tc.detail)
		if tc.age == 0 {
			body = tc.text
			x.Probe.Import = &config.ImportProbe{URL: s.URL}
			wants(t, probeOnce(t, x, nil), tc.class, tc.detail)
		}
	}
	body = ""
	x := Target{Probe: config.Probe{Import: &config.ImportProbe{URL: s.URL}, Interval: config.Duration(time.Minute), Timeout: config.Duration(10 * time.Second)}}
	wants(t, probeOnce(t, x, nil), Local, "status 302")
	x.Probe.Import = &config.ImportProbe{File: file + ".gone"}
	wants(t, probeOnce(t, x, nil), Local, "no such file")
	pipe := file + ".pipe"
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	x.Probe.Import = &config.ImportProbe{File: pipe} // that nobody writes to
	wants(t, probeOnce(t, x, nil), Local, "not a regular file")
}

// TestProbeImportHangs wants a source that never answers to hold up no other probe beyond its
// own time.
func TestProbeImportHangs(t *testing.T) {
	asked := make(chan struct{}, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer s.Close()
	conf := config.ImportProbe{URL: s.URL}
	x := Target{Probe: config.Probe{Import: &conf, Interval: config.Duration(time.Minute), Timeout: config.Duration(time.Minute)}}
	p := NewProber(ProberOptions{})
	first, _ := p.prepare(x)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan Result, 1)
	go func() { done <- first(ctx) }()
	<-asked
	x.Probe.Timeout = config.Duration(10 * time.Millisecond)
	second, _ := p.prepare(x)
	wants(t, second(t.Context()), Local, "still being read")
	cancel()
	<-done
}

// TestProbeImportHangsLater wants what is known of a source to be told at once while one waits
// for it to answer again.
func TestProbeImportHangsLater(t *testing.T) {
	asked, hang := make(chan struct{}, 1), false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hang {
			asked <- struct{}{}
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, "192.0.2.1 down\n")
	}))
	defer s.Close()
	x := Target{ID: gslb.EndpointID{Pool: "gfe", Addr: netip.MustParseAddr("192.0.2.1")}, Probe: config.Probe{
		Import: &config.ImportProbe{URL: s.URL, MaxAge: config.Duration(time.Hour)}, Interval: 2, Timeout: config.Duration(time.Hour)}}
	p := NewProber(ProberOptions{})
	probe, _ := p.prepare(x)
	wants(t, probe(t.Context()), WrongStatus, "outside verdict")
	hang = true
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan Result, 1)
	go func() { done <- probe(ctx) }()
	<-asked
	for range 100 {
		wants(t, probe(t.Context()), WrongStatus, "outside verdict")
	}
	cancel()
	wants(t, <-done, WrongStatus, "outside verdict")
}

// TestImportFuture wants a file of the future to grow old like any other.
func TestImportFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "verdicts")
		if err := errors.Join(os.WriteFile(file, []byte("192.0.2.1 up"), 0o600), os.Chtimes(file, time.Time{}, time.Now().Add(24*time.Hour))); err != nil {
			t.Fatal(err)
		}
		x := Target{ID: gslb.EndpointID{Addr: netip.MustParseAddr("192.0.2.1")}, Probe: config.Probe{Import: &config.ImportProbe{File: file},
			Interval: config.Duration(5 * time.Second), Timeout: config.Duration(time.Second)}}
		probe, _ := NewProber(ProberOptions{}).prepare(x)
		for range 10 {
			if r := probe(t.Context()); r.Class != OK {
				t.Errorf("got %v %q, want ok", r.Class, r.Detail)
			}
			time.Sleep(5 * time.Second)
		}
		time.Sleep(5 * time.Second)
		wants(t, probe(t.Context()), Local, "55s old")
	})
}

func FuzzParseImport(f *testing.F) {
	f.Add([]byte("a/192.0.2.1 up\n#\n"))
	f.Add([]byte(`{"a": "down"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseImport(b)
		for name, v := range m {
			if err != nil || v != "up" && v != "down" || name != strings.ToLower(name) {
				t.Errorf("%q: %q, %v", name, v, err)
			}
		}
	})
}

func TestCombine(t *testing.T) {
	classes := map[byte]Class{'+': OK, '-': Refused, '?': Local}
	for _, tc := range []struct {
		need, results string
		want          Class
	}{
		{"all", "+++", OK}, {"", "++-", Refused}, {"all", "+?+", Local}, {"all", "-?+", Refused},
		{"any", "--+", OK}, {"any", "--?", Local}, {"any", "---", Refused}, {"quorum", "++--", Refused}, {"quorum", "++-", OK}, {"quorum", "+?--", Refused},
		{"2", "++--", OK}, {"2", "+---", Refused}, {"9", "++", OK},
	} {
		var results []Result
		for i := range len(tc.results) {
			results = append(results, Result{Class: classes[tc.results[i]], Detail: "why"})
		}
		got := combine(results, needed(tc.need, len(results)), time.Millisecond)
		if got.Class != tc.want || (got.Class != OK) != strings.Contains(got.Detail, "why") {
			t.Errorf("%s of %s: got %v %q, want %v", tc.need, tc.results, got.Class, got.Detail, tc.want)
		}
	}
}

func TestProbeCalculatedFromProbes(t *testing.T) {
	open, shut := talk(t, func(*net.TCPConn) {}), closedPort(t)
	o := &config.Objects{
		Probes: map[string]config.Probe{
			"open": {TCP: &config.TCPProbe{Port: open.Port()}}, "shut": {TCP: &config.TCPProbe{Port: shut.Port()}},
			"all": {Calculated: &config.CalculatedProbe{Probes: []string{"open", "shut"}}},
			"any": {Calculated: &config.CalculatedProbe{Probes: []string{"open", "shut"}, Need: "any"}},
			"not": {Calculated: &config.CalculatedProbe{Probes: []string{"shut"}}, Invert: true},
		},
	}
	for name, want := range map[string]Class{"all": Refused, "any": OK, "not": OK} {
		o.Pools = map[string]config.Pool{"a": {Probe: name, Endpoints: []config.Endpoint{{Address: open.Addr()}}}}
		targets := Targets(o)
		if len(targets) != 1 {
			t.Fatalf("%s: %d targets, want 1", name, len(targets))
		}
		if r := probeOnce(t, targets[0], nil); r.Class != want {
			t.Errorf("%s: got %v %q, want %v", name, r.Class, r.Detail, want)
		}
	}
}

func TestStateBrownout(t *testing.T) {
	p := &config.Probe{Rise: 2, Fall: 3, Brownout: &config.Brownout{Limit: 3, Drain: 0.5}}
	for _, tc := range []struct {
		name, results string
		want          gslb.Verdict
	}{
		{"every second fails", "+-+-+-+-+-+", gslb.Down},
		{"every fourth fails", strings.Repeat("+++-", 50), gslb.Up},
		{"a run is down sooner", "+---", gslb.Down},
		{"two successes are not enough", "+-+-+-+-+-++", gslb.Down},
		{"half drained", "+-+-+-+-+-++++", gslb.Up},
	} {
		s := State{}
		for i := range len(tc.results) {
			s = s.NextOf(tc.results[i] == '+', p)
			need := map[gslb.Verdict]int{gslb.Up: p.Fall, gslb.Down: p.Rise}[s.Verdict]
			if s.Run < 0 || s.Run >= need || s.Level < 0 || s.Level > 3 {
				t.Fatalf("%s: after %s %+v: out of its bounds", tc.name, tc.results[:i+1], s)
			}
		}
		if s.Verdict != tc.want {
			t.Errorf("%s: got %v at %v, want %v", tc.name, s.Verdict, s.Level, tc.want)
		}
	}
}

// TestSlow wants what is too late, by the clock or beside its pool, to be a failure.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		latency := map[gslb.EndpointID]time.Duration{idOf(0): 10 * time.Millisecond, idOf(1): 12 * time.Millisecond, idOf(2): 11 * time.Millisecond, idOf(3): 90 * time.Millisecond, idOf(4): 20 * time.Millisecond}
		last := make(map[gslb.EndpointID]Result)
		states := make(map[gslb.EndpointID]gslb.Verdict)
		var mu = make(chan struct{}, 1)
		p := NewProber(ProberOptions{
			Report: func(x Target, r Result, s State) {
				mu <- struct{}{}
				last[x.ID], states[x.ID] = r, s.Verdict
				<-mu
			},
			probe: func(_ context.Context, x Target) Result { return Result{Latency: latency[x.ID]} },
		})
		targets := fakeTargets(5)
		for i := range targets {
			targets[i].Probe.Slow = &config.Slow{Relative: 5, Latency: config.Duration(time.Second)}
		}
		p.SetTargets(targets)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(20 * time.Second)
		cancel()
		<-done
		for id, want := range map[gslb.EndpointID]gslb.Verdict{idOf(0): gslb.Up, idOf(3): gslb.Down, idOf(4): gslb.Up} {
			if states[id] != want {
				t.Errorf("%v: got %v by %+v, want %v", id.Addr, states[id], last[id], want)
			}
		}
		if r := last[idOf(3)]; r.Class != Slow || !strings.Contains(r.Detail, "expected under") || r.Score > 30 || last[idOf(0)].Score < 90 {
			t.Errorf("slow: got %+v, fast: got %+v", r, last[idOf(0)])
		}
	})
}

// TestIdle wants what nobody asks for to be probed seldom, and at once when it is asked for.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		p := NewProber(ProberOptions{Report: func(Target, Result, State) { n.Add(1) }, probe: func(context.Context, Target) Result { return Result{} }})
		targets := fakeTargets(1)
		targets[0].Probe.Idle = 10
		p.SetTargets(targets)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		count := func(d time.Duration) int {
			synctest.Wait()
			n.Store(0)
			time.Sleep(d)
			synctest.Wait()
			return int(n.Load())
		}
		time.Sleep(5 * time.Second)
		p.SetIdle(map[string]bool{"gfe": true})
		time.Sleep(2 * time.Second)
		if got := count(100 * time.Second); got < 9 || got > 12 {
			t.Errorf("%d probes in 100 s while idle, want about 10", got)
		}
		p.SetIdle(nil)
		if got := count(2 * time.Second); got < 2 {
			t.Errorf("%d probes in 2 s after it is asked for, want 2 or 3", got)
		}
		cancel()
		<-done
	})
}
