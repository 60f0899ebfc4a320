package config

import (
	"strings"
	"testing"
	"time"
)

func TestServe(t *testing.T) {
	const good = "node: {name: a, site: s, dns: [\"127.0.0.1:0\"], serve: {id: ns1, cookies: [e5e973e5a6b2a43f48e7dc849e37bfcf], limits: {rate: 50, slip: -1, allow: [192.0.2.0/24], amplify: 8}}}\nsites: {s: {}}\n"
	f, err := Parse("a.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if s := f.Node.Serve; s.ID != "ns1" || len(s.Secrets()) != 1 || s.Secrets()[0][0] != 0xe5 || s.Limits.Rate != 50 || s.Limits.Slip != -1 || s.Limits.Amplify != 8 {
		t.Errorf("got %+v", s)
	}
	for _, tt := range []struct{ from, to, want string }{
		{"e5e973", "e5e9", "expected 16 octets in hex"},
		{"e5e973", "zzzzzz", "expected 16 octets in hex"},
		{"rate: 50", "rate: -50", "rate"},
		{"slip: -1", "slip: -2", "slip"},
		{"192.0.2.0/24", "192.0.2.1/24", "bits beyond the prefix"},
		{"id: ns1", "id: " + strings.Repeat("n", 256), "expected at most 255"},
	} {
		if _, err := Parse("a.yaml", []byte(strings.Replace(good, tt.from, tt.to, 1))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.to, err, tt.want)
		}
	}
}

func TestExplainConfig(t *testing.T) {
	const good = "node: {name: a, site: s, dns: [\"127.0.0.1:0\"], serve: {explain: {allow: [], keys: [{name: ops.example.com, secret: c2l4dGVlbiBvY3RldHMhIQ==}]}}}\nsites: {s: {}}\n"
	f, err := Parse("a.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if e := f.Node.Serve.Explain; e.Allow == nil || len(e.Allow) != 0 || len(e.Keys) != 1 || e.Keys[0].EffectiveAlgorithm() != "hmac-sha256" {
		t.Errorf("got %+v, want nobody by address and a key of hmac-sha256", e)
	}
	for _, tt := range []struct{ from, to, want string }{
		{"allow: []", "allow: [192.0.2.1/24]", "bits beyond the prefix"},
		{"name: ops.example.com", "name: \"\"", "expected the name of the key"},
		{"name: ops.example.com", "name: ops..example", "ops..example"},
		{"secret: c2l4dGVlbiBvY3RldHMhIQ==", "secret: c2hvcnQ=", "expected 16 to 64 octets in base64"},
		{"secret: c2l4dGVlbiBvY3RldHMhIQ==", "secret: ..", "expected 16 to 64 octets in base64"},
		{"name: ops.example.com,", "name: ops.example.com, algorithm: hmac-md5,", "expected hmac-sha256, hmac-sha384"},
		{"keys: [", "keys: [{name: OPS.example.com, secret: c2l4dGVlbiBvY3RldHMhIQ==}, ", "is there twice"},
	} {
		if _, err := Parse("a.yaml", []byte(strings.Replace(good, tt.from, tt.to, 1))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.to, err, tt.want)
		}
	}
}

func TestDecisionLogConfig(t *testing.T) {
	const good = "node: {name: a, site: s, dns: [\"127.0.0.1:0\"], decisionLog: {file: d.log, dnstap: \"unix:d.sock\", sample: 0.5, services: [\"*.example.com\"], pools: [p], reasons: [failover]}}\nsites: {s: {}}\n"
	f, err := Parse("a.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if l := f.Node.Decisions; l.EffectiveSample() != 0.5 || len(l.Services) != 1 || (DecisionLog{}).EffectiveSample() != 1 {
		t.Errorf("got %+v", l)
	}
	f.resolve("/etc/meridian")
	if l := f.Node.Decisions; l.File != "/etc/meridian/d.log" || l.Dnstap != "unix:/etc/meridian/d.sock" {
		t.Errorf("files: got %+v, want them in the folder of the configuration", l)
	}
	for _, tt := range []struct{ from, to, want string }{
		{"sample: 0.5", "sample: 2", "sample"},
		{"unix:d.sock", "tcp:d.sock", "expected unix:/path or file:/path"},
		{"unix:d.sock", "unix:", "expected unix:/path or file:/path"},
		{"*.example.com", "[", "expected a glob"},
		{"reasons: [failover]", "reasons: [fail]", "expected one of policy, trickle"},
		{"file: d.log, dnstap: \"unix:d.sock\", ", "", "expected where to write"},
	} {
		if _, err := Parse("a.yaml", []byte(strings.Replace(good, tt.from, tt.to, 1))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.to, err, tt.want)
		}
	}
}

func TestRTTConfig(t *testing.T) {
	const good = "node: {name: a, site: s, dns: [\"127.0.0.1:0\"], rtt: {rows: 100, expire: 2h, probes: true, beacon: {listen: \"127.0.0.1:8054\", rate: 10, trust: [10.0.0.0/8]}}}\nsites: {s: {}}\n"
	f, err := Parse("a.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if r := f.Node.RTT.Effective(); r.Rows != 100 || r.Expire.Std() != 2*time.Hour || !r.Probes || r.Beacon.Rate != 10 {
		t.Errorf("got %+v", r)
	}
	if r := (NodeRTT{}).Effective(); r.Rows != 16384 || r.Expire.Std() != 24*time.Hour || r.Probes || r.Beacon.Listen.IsValid() || r.Beacon.Rate != 100 {
		t.Errorf("defaults: got %+v", r)
	}
	for _, tt := range []struct{ from, to, want string }{
		{"rows: 100", "rows: 1", "rows"},
		{"expire: 2h", "expire: 1s", "expected 1m to"},
		{"rate: 10", "rate: -1", "rate"},
		{"10.0.0.0/8", "10.0.0.1/8", "bits beyond the prefix"},
		{"listen: \"127.0.0.1:8054\", ", "", "expected the address to take reports on"},
		{"127.0.0.1:8054", "127.0.0.1:8053", "is already"},
	} {
		if _, err := Parse("a.yaml", []byte(strings.Replace(good, tt.from, tt.to, 1))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.to, err, tt.want)
		}
	}
}

func TestUsesRTT(t *testing.T) {
	for text, want := range map[string]time.Duration{ // 0: it does not
		"services: {x.test: {pools: {a: }, policy: [health, nearest]}}":                                            0,
		"services: {x.test: {pools: {a: }, policy: [health, {nearest: {by: rtt}}]}}":                               24 * time.Hour,
		"services: {x.test: {pools: {a: }, policy: [{rtt: {maxAge: 2h}}]}, y.test: {pools: {a: }, policy: [rtt]}}": 2 * time.Hour,
		"pools: {a: {site: s, upstream: {pools: {b: }, policy: [{rtt: {maxAge: 3h}}]}}}":                           3 * time.Hour,
		"chains: {c: [{match: {cases: [{if: {country: [DE]}, then: [{rtt: {maxAge: 90m}}]}], else: [nearest]}}]}":  90 * time.Minute,
		"chains: {c: [{match: {cases: [{if: {country: [DE]}, then: [nearest]}], else: [{rtt: {maxAge: 1h}}]}}]}":   time.Hour,
	} {
		o, err := ParseObjects("t.yaml", []byte(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got, used := o.UsesRTT(); got != want || used != (want > 0) {
			t.Errorf("%s: %v, %v; want %v", text, got, used, want)
		}
	}
}
