package health

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// fileAge is how long certificates that were read from files are used before the files are
// looked at again: a renewed one is in use soon after.
const fileAge = time.Minute

// maxPEM is how many octets of a file of certificates are read: all roots there are fit in it.
const maxPEM = 8 << 20

// tlsFiles keeps the certificates of files. Its methods are safe for concurrent use.
type tlsFiles struct {
	mu   sync.Mutex
	read map[config.TLSFiles]*tlsFile // guarded by mu
}

// tlsFile is what was in the files of one config.TLSFiles.
type tlsFile struct {
	at    time.Time
	certs []tls.Certificate
	roots *x509.CertPool // nil: no ca
	err   error
}

func (f *tlsFiles) of(files config.TLSFiles) *tlsFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	if had := f.read[files]; had != nil && time.Since(had.at) < fileAge {
		return had
	}
	if f.read == nil {
		f.read = make(map[config.TLSFiles]*tlsFile)
	}
	out := &tlsFile{at: time.Now()}
	if files.CA != "" {
		pem, _, err := readFile(files.CA, maxPEM)
		out.roots = x509.NewCertPool()
		if err == nil && !out.roots.AppendCertsFromPEM(pem) {
			err = fmt.Errorf("%s: no certificate", files.CA)
		}
		out.err = err
	}
	if files.Cert != "" {
		cert, _, err := readFile(files.Cert, maxPEM)
		key, _, err2 := readFile(files.Key, maxPEM)
		var pair tls.Certificate
		if err = errors.Join(err, err2); err == nil {
			if pair, err = tls.X509KeyPair(cert, key); err != nil {
				err = fmt.Errorf("%s: %w", files.Cert, err)
			}
		}
		out.certs, out.err = []tls.Certificate{pair}, errors.Join(out.err, err)
	}
	f.read[files] = out
	return out
}

// tlsClient makes TLS connections for one target.
type tlsClient struct {
	conf  *tls.Config
	files config.TLSFiles
	store *tlsFiles
}

func (p *Prober) tlsClient(name string, skip bool, files config.TLSFiles, alpn ...string) *tlsClient {
	return &tlsClient{
		conf: &tls.Config{
			ServerName:         name,
			RootCAs:            p.o.RootCAs,
			InsecureSkipVerify: skip, //nolint:gosec // asked for by the operator, off by default
			NextProtos:         alpn,
		},
		files: files, store: &p.files,
	}
}

// errFiles says that this node's own files are at fault.
type errFiles struct{ error }

// client makes c a TLS connection.
func (t *tlsClient) client(ctx context.Context, c net.Conn) (*tls.Conn, error) {
	conf := t.conf
	if t.files != (config.TLSFiles{}) {
		f := t.store.of(t.files)
		if f.err != nil {
			return nil, errFiles{f.err}
		}
		conf = conf.Clone()
		conf.Certificates = f.certs
		if f.roots != nil {
			conf.RootCAs = f.roots
		}
	}
	secure := tls.Client(c, conf)
	return secure, secure.HandshakeContext(ctx)
}

// tlsFailure returns the result of a handshake that began at start and failed.
func tlsFailure(start time.Time, err error) Result {
	if own := (errFiles{}); errors.As(err, &own) {
		return Result{Class: Local, Latency: time.Since(start), Detail: printable(own.Error(), maxDetail)}
	}
	r := failure(start, err, TLSFault)
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired && r.Class == TLSFault {
		r.Detail = lasts(invalid.Cert)
	}
	return r
}

// lasts says of a certificate that does not hold now when it does.
func lasts(cert *x509.Certificate) string {
	if time.Now().Before(cert.NotBefore) {
		return printable(fmt.Sprintf("%s holds from %s", cert.Subject, cert.NotBefore.UTC().Format(time.DateOnly)), maxDetail)
	}
	return printable(fmt.Sprintf("%s expired on %s", cert.Subject, cert.NotAfter.UTC().Format(time.DateOnly)), maxDetail)
}

// probeTLS returns the probe of t's certificates: chain and name by the handshake, and the
// days that each of them still lasts.
func (p *Prober) probeTLS(t Target) func(context.Context) Result {
	conf := t.Probe.TLS
	client := p.tlsClient(conf.ServerName, conf.SkipVerify, conf.Files)
	return func(ctx context.Context) Result {
		start := time.Now()
		c, err := connect(ctx, "tcp", t)
		if err != nil {
			return failure(start, err, Protocol)
		}
		defer func() { _ = c.Close() }()
		secure, err := client.client(ctx, c)
		if err != nil {
			return tlsFailure(start, err)
		}
		latency := time.Since(start)
		for _, cert := range secure.ConnectionState().PeerCertificates {
			left := time.Until(cert.NotAfter)
			switch days := int(left / (24 * time.Hour)); {
			case left <= 0:
				return Result{Class: TLSFault, Latency: latency, Detail: lasts(cert)}
			case days < conf.Days:
				return Result{Class: TLSFault, Latency: latency,
					Detail: printable(fmt.Sprintf("%d days left, expected %d: %s", days, conf.Days, cert.Subject), maxDetail)}
			}
		}
		return Result{Latency: latency}
	}
}
