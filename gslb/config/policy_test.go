package config

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestPolicyFaults gives each stage, chain, state and form what it must refuse.
func TestPolicyFaults(t *testing.T) {
	const base = `
sites: {eu: {lat: 1, lon: 1}}
zones: [{name: example.com, records: "@ SOA a b 1 1 1 1 1"}]
pools: {a: {site: eu, endpoints: [{address: 10.0.0.1}]}, b: {site: eu, endpoints: [{address: 10.0.0.2}]}, c: {site: eu, hostname: c.example.net}}
`
	policy := func(p string) string {
		return base + "services: {w.example.com: {pools: {a: {}, b: {}, c: {}}, policy: [" + p + "]}}\n"
	}
	tests := []struct{ name, yaml, want string }{
		{"fence of a stranger", policy("fence: [{when: {country: [DE]}, allow: [x]}]"), `rules[0].allow[0]: "x" is no pool of this steering`},
		{"fence both ways", policy("fence: [{allow: [a], deny: [b]}]"), "expected exactly one of allow and deny"},
		{"fence by time", policy("fence: [{when: {time: {}}, deny: [b]}]"), "expected them in a match"},
		{"fence of nothing", policy("fence: {}"), "expected rules, or within"},
		{"fence needs settings", policy("fence"), "fence needs settings"},
		{"country", policy("fence: [{when: {country: [Germany]}, deny: [b]}]"), "two capital letters"},
		{"subdivision", policy("fence: [{when: {subdivision: [CA]}, deny: [b]}]"), "US-CA"},
		{"continent", policy("match: [{if: {continent: [Europe]}, then: []}]"), "expected one of AF"},
		{"prefix with bits", policy("match: [{if: {prefix: [10.0.0.1/8]}, then: []}]"), "expected 10.0.0.0/8"},
		{"prefix within 6to4", policy("match: [{if: {prefix: ['2002:a00::/24']}, then: []}]"), "expected the IPv4 prefix inside it"},
		{"ASN", policy("match: [{if: {asn: [0]}, then: []}]"), "expected 1 to"},
		{"health", policy("health: {threshold: 2}"), "expected 0 to 1"},
		{"health, unknown", policy("health: {unknown: maybe}"), "expected one of up, degraded, down"},
		{"bias", policy("nearest: {bias: {a: 100}}"), "expected -99 to 99"},
		{"bias of a stranger", policy("nearest: {bias: {x: 1}}"), "no pool of this steering"},
		{"affinity", policy("nearest: {affinity: [planet]}"), "expected one of city"},
		{"affinity twice", policy("nearest: {affinity: [city, city]}"), "given twice"},
		{"rtt", policy("rtt: {maxAge: 1s}"), "expected 1m0s to"},
		{"trickle", policy("trickle: {to: [x], share: 0.1}"), "no pool of this steering"},
		{"trickle share", policy("trickle: {to: [a], share: 1.1}"), "expected 0 to 1"},
		{"shed", policy("shed: {low: 1, high: 0.5}"), "expected more than low"},
		{"capacity", policy("capacity: {shares: {a: -1}}"), "expected 0 to 1"},
		{"weighted", policy("weighted: {answers: many}"), "expected one of single"},
		{"sticky", policy("sticky: {ipv4: 4}"), "expected 8 to 32"},
		{"select", policy("select: {answers: 1, perSite: 99}"), "expected 0 to 16"},
		{"select order", policy("select: {answers: 1, order: up}"), "expected one of draw, listed"},
		{"twice", policy("health, health"), "health is already stage [0]"},
		{"in a case", policy("match: [{if: {}, then: [health, health]}]"), "health is already stage [0]"},
		{"no such chain", policy("chain: x"), "no such chain"},
		{"a zone of time", policy("match: [{if: {time: {zone: Mars}}, then: []}]"), "expected a time zone such as"},
		{"an hour", policy("match: [{if: {time: {from: '8:00'}}, then: []}]"), "expected HH:MM"},
		{"a day", policy("match: [{if: {time: {days: [monday]}}, then: []}]"), "expected one of sun"},
		{"chain loop", base + "chains: {p: [{chain: q}], q: [{match: [{if: {}, then: p}]}]}", "the chain comes back to itself: p > q > p"},
		{"chain to itself", base + "chains: {p: [{chain: p}]}", "the chain comes back to itself: p > p"},
		{"chains that double", base + "chains: {" + doubled(15) + "}", "chains.c3.policy: more than 10000 stages with those of the chains that it names"},
		{"a policy of long chains", policy("chain: c0, chain: c0") + "chains: {" + doubled(11) + "}", "services.w.example.com.policy: more than 10000 stages"},
		{"too many limits", policy("chain: q, chain: q") + "chains: {q: [" + strings.Repeat("trickle: {to: [a], share: 0.1}, ", 16) + "nearest]}", "services.w.example.com.policy: more than 31 stages of shed, capacity and trickle"},
		{"a chain of too many limits", policy("chain: q") + "chains: {q: [" + strings.Repeat("{match: [{if: {country: [DE]}, then: [capacity: {shares: {a: 0.5}}]}]}, ", 32) + "nearest]}", "chains.q.policy: more than 31 stages of shed, capacity and trickle"},
		{"chain of nothing", base + "chains: {p: []}", "expected stages"},
		{"chain of a stranger", base + "chains: {p: [{failover: [x]}]}", "no such pool"},
		{"a list of no countries", policy("fence: [{when: {country: []}, deny: [b]}]"), "when.country: empty, which would be everybody"},
		{"no TTL", base + "services: {w.example.com: {pools: {a: {}}, ttl: 0s}}", "ttl: 0; expected more"},
		{"no min TTL", base + "services: {w.example.com: {pools: {a: {}}, minTTL: 0s}}", "minTTL: 0; expected more"},
		{"no fallback", base + "services: {w.example.com: {pools: {a: {}}, allDown: {fallback: []}}}", "allDown.fallback: no value; expected addresses"},
		{"257 ranks", policy("failover: [" + strings.Repeat("a, ", 256) + "a]"), "257 ranks; expected at most 256"},
		{"a state of both kinds", base + "states: {s: {match: '*/a', pool: a, state: up, author: x}}", "given beside pool and endpoint"},
		{"a glob of four", base + "states: {s: {match: 'a/b/c/d', state: up, author: x}}", "expected globs service/pool/endpoint"},
		{"a glob", base + "states: {s: {match: '[', state: up, author: x}}", "expected a glob"},
		{"delay", base + "pools: {d: {site: eu, delay: {ramp: 1ms}}}", "given twice"},
		{"min TTL", base + "services: {w.example.com: {pools: {a: {}}, ttl: 5s, minTTL: 6s}}", "expected 1s to 5s"},
		{"https", base + "services: {w.example.com: {pools: {a: {}}, https: {pools: 9}}}", "expected 0 to 8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, err := ParseObjects("x.yaml", []byte(tt.yaml))
			if err == nil {
				err = Validate(o)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v; want %s", err, tt.want)
			}
		})
	}
	o, err := ParseObjects("x.yaml", []byte(policy("health, match: [{if: {name: ['*.com']}, then: p}]")+"chains: {p: [nearest, {chain: q}], q: [weighted]}"))
	if err == nil {
		err = Validate(o)
	}
	if err != nil {
		t.Errorf("a good policy: %v", err)
	}
}

// doubled returns n chains that each name the next one twice, and one of two stages.
func doubled(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "c%d: [{chain: c%d}, {chain: c%[2]d}], ", i, i+1)
	}
	return b.String() + fmt.Sprintf("c%d: [health, nearest]", n)
}

// TestWindow asks windows at their edges, over midnight and over changes of the clock.
func TestWindow(t *testing.T) {
	office := Window{Days: []string{"mon", "tue", "wed", "thu", "fri"}, From: "08:00", To: "18:00"}
	night := Window{Days: []string{"sat"}, From: "22:00", To: "06:00"}
	berlin := Window{From: "02:30", To: "03:30", Zone: "Europe/Berlin"}
	tests := []struct {
		name  string
		w     Window
		at    string
		in    bool
		until string
	}{
		{"before", office, "2026-01-05T07:59:59Z", false, "2026-01-05T08:00:00Z"},
		{"the first moment", office, "2026-01-05T08:00:00Z", true, "2026-01-05T18:00:00Z"},
		{"the end is not in it", office, "2026-01-05T18:00:00Z", false, "2026-01-06T08:00:00Z"},
		{"over the weekend", office, "2026-01-09T18:00:00Z", false, "2026-01-12T08:00:00Z"},
		{"over midnight", night, "2026-01-11T05:00:00Z", true, "2026-01-11T06:00:00Z"},
		{"the night before is another day", night, "2026-01-10T05:00:00Z", false, "2026-01-10T22:00:00Z"},
		{"all days run on", Window{}, "2026-01-05T12:00:00Z", true, ""},
		{"a day that the clock moves on", berlin, "2026-03-29T00:00:00Z", false, "2026-03-29T01:30:00Z"},
		{"in another zone", Window{From: "08:00", To: "09:00", Zone: "Asia/Tokyo"}, "2026-01-05T23:30:00Z", true, "2026-01-06T00:00:00Z"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			at, err := time.Parse(time.RFC3339, tt.at)
			if err != nil {
				t.Fatal(err)
			}
			in, until := tt.w.Holds(at)
			if got := until.UTC().Format(time.RFC3339); in != tt.in || tt.until != "" && got != tt.until {
				t.Errorf("%v until %s; want %v until %s", in, got, tt.in, tt.until)
			}
			if !until.After(at) {
				t.Errorf("until %s, not after %s", until, at)
			}
		})
	}
}
