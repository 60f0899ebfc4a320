// Package certs keeps a certificate, its key and a CA that stand in PEM files, and reads them
// again when the files have changed, so that a rotation needs no restart on either side of TLS.
package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// settled is how old a file must be for a look at its facts to say that it has not changed:
// what is written twice within the grain of a file's time looks the same.
const settled = 2 * time.Second

// Files are PEM files with what they held when they were last of use. What cannot be read, or
// does not fit together, as in the middle of a rotation, changes nothing: what was good stays,
// and the log says so. It is safe for concurrent use.
type Files struct {
	// Set at construction.
	cert, key, ca string
	log           *slog.Logger

	mu    sync.Mutex
	seen  []fs.FileInfo // guarded by mu, as what is below: of the files that are good; nil: they are to be read
	good  *Material
	fault string // told last
}

// Material is what files hold. It is immutable.
type Material struct {
	Pair *tls.Certificate // nil: no certificate is named
	CA   *x509.CertPool   // nil: no CA is named
}

// Read reads PEM files: a certificate with its key, and a CA; an empty name is no file. An error
// says which of them is not as expected.
func Read(cert, key, ca string, log *slog.Logger) (*Files, error) {
	f := &Files{cert: cert, key: key, ca: ca, log: log}
	_, err := f.Now()
	return f, err
}

// Now returns what the files hold. It looks at their times and sizes, and reads them only when
// those have changed. It fails only where they were never good.
func (f *Files) Now() (*Material, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen, err := f.look()
	if err == nil && f.seen != nil && slices.EqualFunc(seen, f.seen, same) {
		return f.good, nil
	}
	var m *Material
	if err == nil {
		m, err = f.read()
	}
	if err == nil {
		f.good, f.seen, f.fault = m, seen, ""
		return m, nil
	}
	f.seen = nil
	if f.good == nil {
		return nil, err
	}
	if text := err.Error(); text != f.fault {
		f.fault = text
		f.log.Error("a certificate cannot be read again: the one before stays in use", "error", text)
	}
	return f.good, nil
}

// look returns the facts of the files.
func (f *Files) look() ([]fs.FileInfo, error) {
	var seen []fs.FileInfo
	for _, name := range []string{f.cert, f.key, f.ca} {
		if name == "" {
			continue
		}
		info, err := os.Stat(name)
		if err != nil {
			return nil, f.fail(name == f.ca, err)
		}
		seen = append(seen, info)
	}
	return seen, nil
}

// same reports whether a file is for certain what it was.
func same(now, before fs.FileInfo) bool {
	return os.SameFile(now, before) && now.Size() == before.Size() && now.ModTime().Equal(before.ModTime()) &&
		time.Since(now.ModTime()) > settled
}

// read reads the files.
func (f *Files) read() (*Material, error) {
	m := &Material{}
	if f.cert != "" || f.key != "" {
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return nil, f.fail(false, err)
		}
		m.Pair = &pair
	}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, f.fail(true, err)
		}
		m.CA = x509.NewCertPool()
		if !m.CA.AppendCertsFromPEM(pem) {
			return nil, f.fail(true, errors.New("no certificate in it; expected PEM"))
		}
	}
	return m, nil
}

// fail says which of the files err is about.
func (f *Files) fail(ca bool, err error) error {
	if ca {
		return fmt.Errorf("tls: ca %s: %w", f.ca, err)
	}
	return fmt.Errorf("tls: certificate %s with key %s: %w", f.cert, f.key, err)
}

// errNoPair is the fault of who listens with TLS without a certificate.
var errNoPair = errors.New("tls: no certificate is named")

// Server returns how a connection is taken, with what the files hold now: where a CA is named, of
// those who show a certificate of it.
func (f *Files) Server(protocols ...string) (*tls.Config, error) {
	m, err := f.Now()
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, Certificates: m.certificates()}
	if m.CA != nil {
		c.ClientCAs, c.ClientAuth = m.CA, tls.RequireAndVerifyClientCert
	}
	return c, nil
}

// certificates are those to show.
func (m *Material) certificates() []tls.Certificate {
	if m.Pair == nil {
		return nil
	}
	return []tls.Certificate{*m.Pair}
}

// Certificate is for tls.Config.GetCertificate.
func (f *Files) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	m, err := f.Now()
	if err == nil && m.Pair == nil {
		err = errNoPair
	}
	if err != nil {
		return nil, err
	}
	return m.Pair, nil
}

// Client returns how gRPC clients connect to who has a certificate of the CA in files, and show
// their own: each connection with what the files hold then.
func Client(files *Files) credentials.TransportCredentials {
	return client{credentials.NewTLS(nil), files}
}

type client struct {
	credentials.TransportCredentials // for all but the handshake

	files *Files
}

// ClientHandshake implements credentials.TransportCredentials.
func (c client) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	m, err := c.files.Now()
	if err != nil {
		return nil, nil, err
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: m.CA, Certificates: m.certificates()}
	return credentials.NewTLS(t).ClientHandshake(ctx, authority, conn)
}

// Clone implements credentials.TransportCredentials.
func (c client) Clone() credentials.TransportCredentials {
	return client{c.TransportCredentials.Clone(), c.files}
}
