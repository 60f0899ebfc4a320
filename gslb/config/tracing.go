package config

import (
	"encoding/base64"
	"net/netip"
	"net/url"
	"strings"
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
const maxLedger = 1 << 16

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

// ProxyTracing lets the proxies of a pool trace requests with Envoy's OpenTelemetry tracer.
// The zero value traces 1 % of them.
type ProxyTracing struct {
	Collector       string       `json:"collector,omitempty"`       // http://, https://, grpc:// or grpcs:// host:port, as the proxies reach it; default the config servers, who link requests to decisions
	TLS             *UpstreamTLS `json:"tls,omitempty"`             // of an https:// or grpcs:// collector
	ServiceName     string       `json:"serviceName,omitempty"`     // default gfe
	ClientSampling  *float64     `json:"clientSampling,omitempty"`  // per cent of the requests with an x-client-trace-id; default 100
	RandomSampling  *float64     `json:"randomSampling,omitempty"`  // per cent of the others; default 1
	OverallSampling *float64     `json:"overallSampling,omitempty"` // per cent, of what the others let through; default 100
	MaxCacheSize    int          `json:"maxCacheSize,omitempty"`    // spans that each worker of a proxy holds; default 4096
	FlushInterval   Duration     `json:"flushInterval,omitempty"`   // a worker exports so often (runtime tracing.opentelemetry.flush_interval_ms), default 1 s,
	MinFlushSpans   int          `json:"minFlushSpans,omitempty"`   // or when it has as many spans (runtime tracing.opentelemetry.min_flush_spans), default 128
}

// proxyTracing checks the tracing of a pool's proxies at p.
func (c *checker) proxyTracing(p path, t ProxyTracing) {
	secure := strings.HasPrefix(t.Collector, "https://") || strings.HasPrefix(t.Collector, "grpcs://")
	if t.Collector != "" {
		at := p.at("collector")
		if msg := checkURL(t.Collector, "http", "https", "grpc", "grpcs"); msg != "" {
			c.fail(at, "%q: %s", t.Collector, msg)
		} else if u, err := url.Parse(t.Collector); err != nil || u.Port() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
			c.fail(at, "%q; expected a scheme, a host and a port", t.Collector)
		}
	}
	switch {
	case t.TLS != nil && !secure:
		c.fail(p.at("tls"), "given without an https:// or grpcs:// collector")
	case t.TLS != nil:
		c.upstreamTLS(p.at("tls"), t.TLS)
	case secure:
		c.missing(p.at("tls"), "no value; expected who signs the collector's certificate: %s", t.Collector)
	}
	if strings.ContainsFunc(t.ServiceName, isSpaceOrControl) {
		c.fail(p.at("serviceName"), "%q; expected no spaces or control characters", t.ServiceName)
	}
	for _, f := range []struct {
		name string
		v    *float64
	}{{"clientSampling", t.ClientSampling}, {"randomSampling", t.RandomSampling}, {"overallSampling", t.OverallSampling}} {
		if f.v != nil {
			between(c, p.at(f.name), *f.v, 0, 100)
		}
	}
	between(c, p.at("maxCacheSize"), t.MaxCacheSize, 0, 1<<20)
	between(c, p.at("minFlushSpans"), t.MinFlushSpans, 0, 1<<20)
	if t.FlushInterval != 0 {
		c.span(p.at("flushInterval"), t.FlushInterval, 10*time.Millisecond, time.Hour)
	}
}
