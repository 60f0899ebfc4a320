package tracing

import (
	"math"
	"net/netip"
	"testing"
	"time"
)

// answered is a record of an A answer.
func answered(id AnswerID, at time.Time, ttl uint32, client string, addrs ...string) *Query {
	q := &Query{Decision: id, Start: at.UnixNano(), TTL: ttl}
	if client != "" {
		p := netip.MustParsePrefix(client)
		q.HasECS, q.Source, q.V6, q.Client = true, uint8(p.Bits()), p.Addr().Is6(), p.Addr().As16()
	}
	for _, a := range addrs {
		q.Given[q.GivenLen] = netip.MustParseAddr(a).As4()
		q.GivenLen++
	}
	return q
}

func TestLedgerFind(t *testing.T) {
	now := time.Unix(1_700_000_000, 0).UTC()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	const vip, user = "192.0.2.11", "198.51.100.7"
	for _, tc := range []struct {
		name   string
		given  []*Query
		want   Guess
		wanted bool
	}{
		{"nothing", nil, Guess{}, false},
		{"one, for the client's own prefix", []*Query{answered(1, ago(time.Second), 30, "198.51.100.0/24", vip)},
			Guess{1, ago(time.Second), 1.0 / 2}, true},
		{"for another prefix", []*Query{answered(1, ago(time.Second), 30, "203.0.113.0/24", vip)}, Guess{}, false},
		{"another address", []*Query{answered(1, ago(time.Second), 30, "198.51.100.0/24", "192.0.2.12")}, Guess{}, false},
		{"no longer good", []*Query{answered(1, ago(36*time.Second), 30, "198.51.100.0/24", vip)}, Guess{}, false},
		{"just still good", []*Query{answered(1, ago(35*time.Second), 30, "198.51.100.0/24", vip)},
			Guess{1, ago(35 * time.Second), 1.0 / 2}, true},
		{"given later", []*Query{answered(1, now.Add(1), 30, "198.51.100.0/24", vip)}, Guess{}, false},
		{"of two addresses", []*Query{answered(1, ago(1), 30, "198.51.100.0/24", "192.0.2.12", vip)}, Guess{1, ago(1), 1.0 / 2}, true},
		{"three of the same", []*Query{
			answered(1, ago(3), 30, "198.51.100.0/24", vip), answered(1, ago(2), 30, "198.51.0.0/16", vip), answered(1, ago(1), 30, "", vip),
		}, Guess{1, ago(1), 3.0 / 4}, true},
		{"nobody named the client", []*Query{answered(1, ago(2), 30, "", vip), answered(2, ago(1), 30, "", vip), answered(2, ago(3), 30, "", vip)},
			Guess{2, ago(1), 2.0 / 4}, true},
		{"who named the client comes first", []*Query{
			answered(1, ago(9), 30, "198.51.100.0/24", vip), answered(2, ago(2), 30, "", vip), answered(2, ago(1), 30, "", vip),
		}, Guess{1, ago(9), 1.0 / 4}, true},
		{"an IPv6 client names no IPv4 prefix", []*Query{answered(1, ago(1), 30, "2001:db8::/56", vip)}, Guess{1, ago(1), 1.0 / 2}, true},
		{"of equals, the last", []*Query{answered(1, ago(2), 30, "", vip), answered(2, ago(1), 30, "", vip)}, Guess{2, ago(1), 1.0 / 3}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := NewLedger(16)
			for _, q := range tc.given {
				l.add(q)
			}
			got, ok := l.Find(netip.MustParseAddr(vip), netip.MustParseAddr(user), now)
			if ok != tc.wanted || got.ID != tc.want.ID || !got.At.Equal(tc.want.At) || math.Abs(got.Confidence-tc.want.Confidence) > 1e-9 {
				t.Errorf("%+v, %v, want %+v, %v", got, ok, tc.want, tc.wanted)
			}
		})
	}
}

// The ledger holds so many answers of an address, the last ones, and so many addresses.
func TestLedgerIsBounded(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	l := NewLedger(8)
	for i := range 100 {
		l.add(answered(AnswerID(i+1), now.Add(time.Duration(i)), 30, "", "192.0.2.11"))
	}
	if s := l.Stats(); s != (LedgerStats{Addresses: 1, Answers: 8, Evicted: 92}) {
		t.Errorf("%+v, want the last 8 of 100 answers", s)
	}
	if g, ok := l.Find(netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("198.51.100.7"), now.Add(time.Second)); !ok || g.ID != 100 {
		t.Errorf("%+v, %v, want the last answer", g, ok)
	}
	for i := range maxGivenAddrs {
		l.add(answered(1, now, 30, "", netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String()))
	}
	if s := l.Stats(); s.Addresses != maxGivenAddrs || s.Ignored != 1 {
		t.Errorf("%+v, want %d addresses and one ignored", s, maxGivenAddrs)
	}
	for _, pair := range [][2]string{{"2001:db8::1", "198.51.100.7"}, {"192.0.2.11", "2001:db8::1"}} {
		if _, ok := l.Find(netip.MustParseAddr(pair[0]), netip.MustParseAddr(pair[1]), now); ok {
			t.Errorf("%v: found, want nothing but IPv4", pair)
		}
	}
}

// BenchmarkLedgerAdd is what the drain pays for an answer with an id.
func BenchmarkLedgerAdd(b *testing.B) {
	l, q := NewLedger(4096), answered(1, time.Now(), 30, "198.51.100.0/24", "192.0.2.11", "192.0.2.12")
	b.ReportAllocs()
	for b.Loop() {
		l.add(q)
	}
}

// BenchmarkLedgerFind is the worst case: all that an address can have is good.
func BenchmarkLedgerFind(b *testing.B) {
	l, now := NewLedger(4096), time.Now()
	for i := range 4096 {
		l.add(answered(AnswerID(i%16+1), now, 3000, "198.51.100.0/24", "192.0.2.11"))
	}
	addr, client := netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("198.51.100.7")
	for b.Loop() {
		l.Find(addr, client, now)
	}
}
