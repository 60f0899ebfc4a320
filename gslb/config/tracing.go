package config

import (
	"encoding/base64"
	"net/netip"
	"time"
)

// Tracing says who may have a query traced, and how answers are tied to the requests that come
// of them.
type Tracing struct {
	Allow     []netip.Prefix `json:"allow,omitempty"` // whose TRACEPARENT options (EDNS 65500) are followed; default loopback
	AnswerIDs AnswerIDs      `json:"answerIds,omitzero"`
}

// AnswerIDs configures the ids that answers of pools with answerIds carry. Every node, and every
// proxy that links by itself, has the same keys and epoch. Without keys no answer has an id.
type AnswerIDs struct {
	Keys   []string `json:"keys,omitempty"`   // base64 of 16, 24 or 32 octets; the first signs, all are believed
	Epoch  Duration `json:"epoch,omitempty"`  // how long an id lasts: whole seconds, 1 s to 1 h; default 1 m
	Ledger int      `json:"ledger,omitempty"` // answers remembered of each IPv4 address, to guess at links; default none
}

// maxLedger bounds the answers remembered of an address: 40 octets each.
const maxLedger = 1 << 20

// EffectiveEpoch returns the length of an epoch.
func (a AnswerIDs) EffectiveEpoch() time.Duration {
	if a.Epoch == 0 {
		return time.Minute
	}
	return time.Duration(a.Epoch)
}

// Octets returns the keys; those that are not base64 are left out, as Validate refuses them.
func (a AnswerIDs) Octets() (keys [][]byte) {
	for _, k := range a.Keys {
		if b, err := base64.StdEncoding.DecodeString(k); err == nil {
			keys = append(keys, b)
		}
	}
	return keys
}

func (c *checker) tracing(p path, t Tracing) {
	for i, a := range t.Allow {
		if a != a.Masked() {
			c.fail(p.at("allow").item(i), "%s: bits beyond the prefix; expected %s", a, a.Masked())
		}
	}
	p = p.at("answerIds")
	for i, k := range t.AnswerIDs.Keys {
		b, err := base64.StdEncoding.DecodeString(k)
		if n := len(b); err != nil || n != 16 && n != 24 && n != 32 {
			c.fail(p.at("keys").item(i), "expected 16, 24 or 32 octets in base64; \"openssl rand -base64 16\" makes one")
		}
	}
	if e := t.AnswerIDs.EffectiveEpoch(); e < time.Second || e > time.Hour || e%time.Second != 0 {
		c.fail(p.at("epoch"), "%s; expected whole seconds, 1s to 1h", e)
	}
	between(c, p.at("ledger"), t.AnswerIDs.Ledger, 0, maxLedger)
	if t.AnswerIDs.Ledger > 0 && len(t.AnswerIDs.Keys) == 0 {
		c.missing(p.at("keys"), "no value; expected a key, since there is a ledger")
	}
}
