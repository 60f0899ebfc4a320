package xds

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	envoytls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// Secret is what the files of one name hold, in PEM. A part that there is no file of is nil.
type Secret struct {
	Cert, Key []byte // NAME.crt, the chain with the leaf first; NAME.key
	CA        []byte // NAME.ca
}

// ReadSecrets reads the folder that node.xds.certificates names. A certificate that does not
// fit its key is left out and is a fault: half of a rotation is never served.
func ReadSecrets(dir string) (map[string]Secret, []error) {
	out := map[string]Secret{}
	if dir == "" {
		return out, nil
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, []error{fmt.Errorf("certificates: %w", err)}
	}
	var faults []error
	for _, f := range files {
		ext := filepath.Ext(f.Name())
		if ext != ".crt" && ext != ".key" && ext != ".ca" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			faults = append(faults, fmt.Errorf("certificates: %w", err))
			continue
		}
		name := strings.TrimSuffix(f.Name(), ext)
		s := out[name]
		switch ext {
		case ".crt":
			s.Cert = data
		case ".key":
			s.Key = data
		case ".ca":
			s.CA = data
		}
		out[name] = s
	}
	for _, name := range slices.Sorted(maps.Keys(out)) {
		s := out[name]
		if s.Cert == nil && s.Key == nil {
			continue
		}
		if _, err := tls.X509KeyPair(s.Cert, s.Key); err != nil {
			faults = append(faults, fmt.Errorf("certificates: %s: %w", filepath.Join(dir, name+".crt"), err))
			s.Cert, s.Key = nil, nil
			out[name] = s
		}
	}
	return out, faults
}

func sameSecrets(a, b map[string]Secret) bool {
	return maps.EqualFunc(a, b, func(x, y Secret) bool {
		return bytes.Equal(x.Cert, y.Cert) && bytes.Equal(x.Key, y.Key) && bytes.Equal(x.CA, y.CA)
	})
}

// caName is the name of the resource that holds the CA of that name.
func caName(name string) string { return name + ".ca" }

// tlsContext is what both sides of TLS have in common. peer, which may be empty, is the name
// that the other side's certificate must hold.
func tlsContext(certificate, ca, peer string, alpn ...string) *envoytls.CommonTlsContext {
	c := &envoytls.CommonTlsContext{AlpnProtocols: alpn}
	if certificate != "" {
		c.TlsCertificateSdsSecretConfigs = []*envoytls.SdsSecretConfig{{Name: certificate, SdsConfig: ads()}}
	}
	if ca == "" {
		return c
	}
	trusted := &envoytls.SdsSecretConfig{Name: caName(ca), SdsConfig: ads()}
	if peer == "" {
		c.ValidationContextType = &envoytls.CommonTlsContext_ValidationContextSdsSecretConfig{ValidationContextSdsSecretConfig: trusted}
		return c
	}
	c.ValidationContextType = &envoytls.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &envoytls.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: &envoytls.CertificateValidationContext{
				MatchTypedSubjectAltNames: []*envoytls.SubjectAltNameMatcher{{
					SanType: envoytls.SubjectAltNameMatcher_DNS,
					Matcher: &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Exact{Exact: peer}},
				}},
			},
			ValidationContextSdsSecretConfig: trusted,
		},
	}
	return c
}

// secrets makes the certificates that this pool's proxies name, and no other.
func (b *builder) secrets(upstreams map[string]config.Upstream) ([]made, error) {
	certs, cas := map[string]bool{}, map[string]bool{}
	want := func(cert, ca string) {
		certs[cert], cas[ca] = cert != "", ca != ""
	}
	for _, u := range upstreams {
		if u.TLS != nil {
			want(u.TLS.Certificate, u.TLS.CA)
		}
	}
	if t := b.tracing(); t != nil && t.TLS != nil {
		want(t.TLS.Certificate, t.TLS.CA)
	}
	if p := b.config.Proxy; p != nil && p.TLS != nil {
		want(p.TLS.Certificate, p.TLS.ClientCA)
	}
	var out []made
	for _, name := range slices.Sorted(maps.Keys(certs)) {
		s := b.in.Secrets[name]
		switch {
		case !certs[name]:
		case s.Cert == nil:
			return nil, fmt.Errorf("certificate %q: expected %s.crt and %s.key in node.xds.certificates", name, name, name)
		default:
			out = append(out, made{name: name, msg: &envoytls.Secret{Name: name, Type: &envoytls.Secret_TlsCertificate{
				TlsCertificate: &envoytls.TlsCertificate{CertificateChain: inline(s.Cert), PrivateKey: inline(s.Key)},
			}}})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cas)) {
		s := b.in.Secrets[name]
		switch {
		case !cas[name]:
		case s.CA == nil:
			return nil, fmt.Errorf("ca %q: expected %s.ca in node.xds.certificates", name, name)
		default:
			out = append(out, made{name: caName(name), msg: &envoytls.Secret{Name: caName(name), Type: &envoytls.Secret_ValidationContext{
				ValidationContext: &envoytls.CertificateValidationContext{TrustedCa: inline(s.CA)},
			}}})
		}
	}
	return out, nil
}

func inline(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}
