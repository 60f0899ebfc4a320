package config

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
)

// Serve says how the node answers DNS: what it says of itself, and how much to whom.
type Serve struct {
	ID      string   `json:"id,omitempty"`      // told to NSID (RFC 5001) and CH TXT id.server; default none
	Version string   `json:"version,omitempty"` // told to CH TXT version.bind; default none
	Cookies []string `json:"cookies,omitempty"` // secrets of DNS Cookies (RFC 9018), 32 hex digits; the first makes them, all check; the same on every node of an address. Default one of the node's own
	Limits  Limits   `json:"limits,omitzero"`
	Explain Explain  `json:"explain,omitzero"`
}

// Explain says who may ask over DNS why an answer is what it is. The zero value is loopback.
type Explain struct {
	Allow []netip.Prefix `json:"allow,omitempty"` // by address; default loopback, [] nobody
	Keys  []TSIGKey      `json:"keys,omitempty"`  // or by TSIG, from anywhere
}

// TSIGKey is a key that signs queries (RFC 8945).
type TSIGKey struct {
	Name      string `json:"name"`
	Algorithm string `json:"algorithm,omitempty"` // hmac-sha256 (default), hmac-sha384, hmac-sha512, hmac-sha224 or hmac-sha1
	Secret    string `json:"secret"`              // base64 of 16 to 64 octets
}

// EffectiveAlgorithm returns the algorithm.
func (k TSIGKey) EffectiveAlgorithm() string { return cmp.Or(k.Algorithm, "hmac-sha256") }

// tsigAlgorithms are those of a TSIGKey.
var tsigAlgorithms = []string{"hmac-sha256", "hmac-sha384", "hmac-sha512", "hmac-sha224", "hmac-sha1"}

// Limits bound the replies over UDP to clients that did not prove their address by a cookie.
type Limits struct {
	Rate    float64        `json:"rate,omitempty"`    // replies a second to an address; wider prefixes have a multiple; default no limit
	Burst   float64        `json:"burst,omitempty"`   // replies at once; default 2.5 × rate
	Slip    int            `json:"slip,omitempty"`    // every so manieth reply over the limit is sent truncated; default 1, -1 for none
	Allow   []netip.Prefix `json:"allow,omitempty"`   // who is never limited, and has a queue of its own
	Amplify int            `json:"amplify,omitempty"` // most octets of a reply for one of its query; default no bound
}

// Secrets returns the secrets of DNS Cookies; those that are not in hex are left out, as Validate
// refuses them.
func (s Serve) Secrets() (secrets [][]byte) {
	for _, text := range s.Cookies {
		if b, err := hex.DecodeString(text); err == nil {
			secrets = append(secrets, b)
		}
	}
	return secrets
}

func (c *checker) serve(p path, s Serve) {
	for key, text := range map[string]string{"id": s.ID, "version": s.Version} {
		if len(text) > 255 {
			c.fail(p.at(key), "%d octets; expected at most 255", len(text))
		}
	}
	for i, text := range s.Cookies {
		if b, err := hex.DecodeString(text); err != nil || len(b) != 16 {
			c.fail(p.at("cookies").item(i), "expected 16 octets in hex; \"openssl rand -hex 16\" makes one")
		}
	}
	c.explain(p.at("explain"), s.Explain)
	p = p.at("limits")
	between(c, p.at("rate"), s.Limits.Rate, 0, 1e6)
	between(c, p.at("burst"), s.Limits.Burst, 0, 1e7)
	between(c, p.at("slip"), s.Limits.Slip, -1, 100)
	between(c, p.at("amplify"), s.Limits.Amplify, 0, 1000)
	for i, a := range s.Limits.Allow {
		if a != a.Masked() {
			c.fail(p.at("allow").item(i), "%s: bits beyond the prefix; expected %s", a, a.Masked())
		}
	}
}

func (c *checker) explain(p path, e Explain) {
	for i, a := range e.Allow {
		if a != a.Masked() {
			c.fail(p.at("allow").item(i), "%s: bits beyond the prefix; expected %s", a, a.Masked())
		}
	}
	names := map[string]bool{}
	for i, k := range e.Keys {
		at := p.at("keys").item(i)
		switch name := CanonicalName(k.Name); {
		case k.Name == "":
			c.missing(at.at("name"), "no value; expected the name of the key")
		case checkDomain(name) != "":
			c.fail(at.at("name"), "%q: %s", k.Name, checkDomain(name))
		case names[name]:
			c.fail(at.at("name"), "%q is there twice", k.Name)
		default:
			names[name] = true
		}
		if !slices.Contains(tsigAlgorithms, k.EffectiveAlgorithm()) {
			c.fail(at.at("algorithm"), "%q; expected %s", k.Algorithm, strings.Join(tsigAlgorithms, ", "))
		}
		if b, err := base64.StdEncoding.DecodeString(k.Secret); err != nil || len(b) < 16 || len(b) > 64 {
			c.fail(at.at("secret"), "expected 16 to 64 octets in base64; \"openssl rand -base64 32\" makes one")
		}
	}
}
