package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
)

// pair is a certificate in files of its own.
type pair struct {
	cert, key string
	trust     *x509.CertPool
}

func newPair(t *testing.T, name string) pair {
	t.Helper()
	cert, key, trust := gfetest.Certificate(t, name)
	return pair{cert, key, trust}
}

// put replaces a file by a copy of another, as who rotates certificates does.
func put(t *testing.T, file, with string) {
	t.Helper()
	b, err := os.ReadFile(with)
	if err == nil {
		err = os.WriteFile(file+".next", b, 0o600)
	}
	if err == nil {
		err = os.Rename(file+".next", file)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestRotation renews both sides of a connection while they run: each connection has what the
// files hold by then, half of a rotation changes nothing, and what is wrong is logged once.
func TestRotation(t *testing.T) {
	server, client := newPair(t, "server"), newPair(t, "client")
	dir := t.TempDir()
	serverCert, serverKey := filepath.Join(dir, "s.crt"), filepath.Join(dir, "s.key")
	clientCert, clientKey, ca := filepath.Join(dir, "c.crt"), filepath.Join(dir, "c.key"), filepath.Join(dir, "ca")
	for file, with := range map[string]string{
		serverCert: server.cert, serverKey: server.key, ca: server.cert, clientCert: client.cert, clientKey: client.key,
	} {
		put(t, file, with)
	}
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	theirs, err := Read(serverCert, serverKey, "", logger)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := Read(clientCert, clientKey, ca, logger)
	if err != nil {
		t.Fatal(err)
	}
	creds := Client(ours).Clone()

	// connect returns whom each side sees.
	connect := func() (string, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		seen := make(chan string, 1)
		go func() {
			defer close(seen)
			raw, err := l.Accept()
			if err != nil {
				return
			}
			c := tls.Server(raw, &tls.Config{GetCertificate: theirs.Certificate, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"h2"}})
			defer c.Close()
			if c.Handshake() == nil {
				seen <- c.ConnectionState().PeerCertificates[0].DNSNames[0]
				io.Copy(io.Discard, c)
			}
		}()
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		c, _, err := creds.ClientHandshake(t.Context(), "server", raw)
		if err != nil {
			return "", err
		}
		defer c.Close()
		return <-seen, nil
	}
	want := func(what, name string) {
		t.Helper()
		if got, err := connect(); got != name || err != nil {
			t.Errorf("%s: the server sees %q, %v, want %q", what, got, err, name)
		}
	}
	want("at first", "client")
	want("again", "client")

	next := newPair(t, "renewed")
	put(t, clientCert, next.cert)
	want("half of a rotation", "client")
	want("still half", "client")
	if n := strings.Count(log.String(), "the one before stays"); n != 1 || !strings.Contains(log.String(), clientCert) {
		t.Errorf("the log has %d lines on the half, want 1 with %s:\n%s", n, clientCert, &log)
	}
	put(t, clientKey, next.key)
	want("the client's renewed", "renewed")

	renewed := newPair(t, "server")
	put(t, serverCert, renewed.cert)
	put(t, serverKey, renewed.key)
	if got, err := connect(); err == nil {
		t.Errorf("the server's is of a CA that is not trusted: connected as %q", got)
	}
	put(t, ca, renewed.cert)
	want("the new CA", "renewed")
	if err := os.Remove(ca); err != nil {
		t.Fatal(err)
	}
	want("no CA any more", "renewed")
}

// TestUnchanged reads files once, and again when one was written in place with the same size.
func TestUnchanged(t *testing.T) {
	p := newPair(t, "a")
	old := time.Now().Add(-time.Hour)
	for _, f := range []string{p.cert, p.key} {
		if err := os.Chtimes(f, old, old); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Read(p.cert, p.key, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	first, err := f.Now()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.Now(); err != nil || again != first {
		t.Errorf("read again without a change: %v", err)
	}
	b, err := os.ReadFile(p.cert)
	if err == nil {
		err = os.WriteFile(p.cert, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.Now(); err != nil || again == first {
		t.Errorf("not read again after it was written: %v", err)
	}
}

// TestRefused names what is wrong with files from the start.
func TestRefused(t *testing.T) {
	p, other := newPair(t, "a"), newPair(t, "b")
	for i, tt := range []struct{ cert, key, ca, want string }{
		{p.cert, "", "", "certificate " + p.cert + " with key "},
		{p.cert, other.key, "", "does not match"},
		{p.key, p.key, "", p.key},
		{"", "", p.key, "ca " + p.key + ": no certificate in it"},
		{"", "", p.cert + ".none", p.cert + ".none"},
	} {
		if _, err := Read(tt.cert, tt.key, tt.ca, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Error(fmt.Sprint(i), err, "want", tt.want)
		}
	}
}
