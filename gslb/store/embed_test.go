package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

// TestEmbedEnds: the server leaves no goroutine behind.
func TestEmbedEnds(t *testing.T) {
	const what = "go.etcd.io/"
	before := len(leftover(what, 0))
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(world...)
	e.stop()
	if left := leftover(what, before); len(left) > before {
		t.Errorf("%d goroutines of etcd left, want %d:\n%s", len(left), before, strings.Join(left, "\n\n"))
	}
}

func TestEmbedTakesItsFolder(t *testing.T) {
	dir := t.TempDir()
	startEtcd(t, dir, socket(t))
	second, err := NewEmbed(dir, socket(t), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second server on one folder: %v", err)
	}
}

func TestEmbedOnLoopback(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	busy, err := NewEmbed(t.TempDir(), "http://"+addr, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := busy.Run(t.Context()); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("on a busy port: %v, want an error that names %s", err, addr)
	}
	l.Close()
	e := startEtcd(t, t.TempDir(), "http://"+addr)
	e.put(world...)
}

// TestDamagedEtcd: etcd would end the process over damaged data. The node goes on from its
// own snapshot and says so.
func TestDamagedEtcd(t *testing.T) {
	for _, pattern := range []string{"wal/*.wal", "snap/db"} {
		t.Run(pattern, func(t *testing.T) {
			o := Options{Etcd: config.Etcd{Embedded: true}, Data: t.TempDir()}
			r := start(t, o, nil)
			r.view("nothing yet", func(View) bool { return true })
			if _, err := r.Apply(t.Context(), Change{Put: objects(t, "sites: {eu: {lat: 1, lon: 1}}")}); err != nil {
				t.Fatal(err)
			}
			r.view("site eu", func(v View) bool { return len(v.Objects.Sites) == 1 })
			r.stop()

			files, err := filepath.Glob(filepath.Join(o.Data, "etcd/member-data/member", pattern))
			if err != nil || len(files) == 0 {
				t.Fatalf("no %s: %v", pattern, err)
			}
			for _, file := range files {
				if err := os.WriteFile(file, []byte(strings.Repeat("damaged ", 10000)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r = start(t, o, nil)
			r.view("site eu from disk", func(v View) bool { return len(v.Objects.Sites) == 1 })
			s := r.status("an error", func(s Status) bool { return strings.Contains(s.Error, "embedded etcd") })
			if !s.FromDisk || s.Connected {
				t.Errorf("status %+v", s)
			}
			t.Log(s.Error)
		})
	}
}

func TestNewEmbedRefuses(t *testing.T) {
	for _, tt := range []struct{ name, dir, listen string }{
		{"no folder", "", ""}, {"scheme", "x", "ftp://127.0.0.1:1"}, {"not a URL", "x", "::"},
	} {
		if _, err := NewEmbed(tt.dir, tt.listen, testLog(t)); err == nil {
			t.Errorf("%s: no error", tt.name)
		}
	}
	if _, err := Open(Options{Etcd: config.Etcd{Embedded: true}}); err == nil {
		t.Error("embedded without a data folder: no error")
	}
	if _, err := Open(Options{Etcd: config.Etcd{Embedded: true, Endpoints: []string{"x:1"}}, Data: "x"}); err == nil {
		t.Error("embedded and external: no error")
	}
}

func TestSocketPath(t *testing.T) {
	if got := socketPath("/var/lib/meridian/etcd"); got != "/var/lib/meridian/etcd/etcd.sock" {
		t.Errorf("got %s", got)
	}
	long := "/" + strings.Repeat("long/", 30)
	a, b := socketPath(long+"a"), socketPath(long+"b")
	if a == b || len(a) > 104 || filepath.Dir(a) != filepath.Clean(os.TempDir()) {
		t.Errorf("got %s and %s, want two short paths", a, b)
	}
}

// TestTLS follows an etcd that asks for certificates.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	files := certificate(t, dir)
	e, err := NewEmbed(filepath.Join(dir, "etcd"), "unix://"+filepath.Join(dir, "s"), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	c := e.config()
	c.ListenClientUrls = []url.URL{{Scheme: "https", Host: "127.0.0.1:0"}}
	c.AdvertiseClientUrls = c.ListenClientUrls
	c.ClientTLSInfo = transport.TLSInfo{CertFile: files.Cert, KeyFile: files.Key, TrustedCAFile: files.CA, ClientCertAuth: true}
	server, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { e.muted.Store(true); server.Close() }()
	<-server.Server.ReadyNotify()
	endpoint := "https://" + server.Clients[0].Addr().String()

	r := start(t, Options{Etcd: config.Etcd{Endpoints: []string{endpoint}, TLS: files}}, nil)
	r.view("an empty store", func(View) bool { return true })
	if _, err := r.Apply(t.Context(), Change{Put: objects(t, "sites: {eu: {lat: 1, lon: 1}}")}); err != nil {
		t.Error(err)
	}
	r.stop()

	strange := start(t, Options{Etcd: config.Etcd{Endpoints: []string{endpoint}, TLS: config.TLSFiles{CA: files.CA}}}, func(tm *timing) { tm.timeout = 300 * time.Millisecond })
	strange.status("an error without a certificate", func(s Status) bool { return s.Error != "" })
	if v, ok := strange.Latest(); ok {
		t.Errorf("view %+v without a certificate", v)
	}
	strange.stop()
}

func TestTLSFiles(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []config.TLSFiles{{CA: filepath.Join(dir, "absent")}, {CA: junk}, {Cert: junk, Key: junk}} {
		if _, err := tlsConfig(f); err == nil || !strings.Contains(err.Error(), "etcd tls") {
			t.Errorf("%+v: %v, want an error that names the file", f, err)
		}
		if _, err := dial(context.Background(), config.Etcd{TLS: f}, []string{"https://127.0.0.1:1"}); err == nil {
			t.Errorf("dial with %+v: no error", f)
		}
	}
}

// certificate writes a certificate that signs itself, for 127.0.0.1 and for clients.
func certificate(t *testing.T, dir string) config.TLSFiles {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	cert := write("cert.pem", "CERTIFICATE", der)
	return config.TLSFiles{CA: cert, Cert: cert, Key: write("key.pem", "PRIVATE KEY", keyDER)}
}
