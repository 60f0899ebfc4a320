package config

import (
	"encoding/hex"
	"net/netip"
)

// Serve says how the node answers DNS: what it says of itself, and how much to whom.
type Serve struct {
	ID      string   `json:"id,omitempty"`      // told to NSID (RFC 5001) and CH TXT id.server; default none
	Version string   `json:"version,omitempty"` // told to CH TXT version.bind; default none
	Cookies []string `json:"cookies,omitempty"` // secrets of DNS Cookies (RFC 9018), 32 hex digits; the first makes them, all check; the same on every node of an address. Default one of the node's own
	Limits  Limits   `json:"limits,omitzero"`
}

// Limits bound the replies over UDP to clients that did not prove their address by a cookie.
type Limits struct {
	Rate    float64        `json:"rate,omitempty"`    // replies a second to an address; wider prefixes have a multiple; default no limit
	Burst   float64        `json:"burst,omitempty"`   // replies at once; default 2.5 × rate
	Slip    int            `json:"slip,omitempty"`    // every so manieth reply over the limit is sent truncated; default 1, -1 for none
	Allow   []netip.Prefix `json:"allow,omitempty"`   // who is never limited
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
