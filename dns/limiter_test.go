package dns

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
)

// flood counts what becomes of n replies a second to addresses that next returns, over so long.
func flood(t *limiter, perSecond int, for_ time.Duration, next func(i int) netip.Addr) (sent, truncated, dropped int) {
	start := time.Unix(1_700_000_000, 0)
	for i := range int(for_.Seconds() * float64(perSecond)) {
		switch t.take(next(i), start.Add(time.Duration(i)*time.Second/time.Duration(perSecond))) {
		case send:
			sent++
		case truncate:
			truncated++
		case drop:
			dropped++
		}
	}
	return sent, truncated, dropped
}

// TestLimiter floods prefixes of every width for ten seconds; what is sent is the rate of the
// width that is full, and the burst once.
func TestLimiter(t *testing.T) {
	v4 := func(format string, n int) func(i int) netip.Addr {
		return func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, i%n)) }
	}
	for _, tt := range []struct {
		name   string
		limits Limits
		next   func(i int) netip.Addr
		rate   float64 // that passes
	}{
		{"one address", Limits{Rate: 20}, v4("192.0.2.%d", 1), 20},
		{"a /24", Limits{Rate: 20}, v4("192.0.2.%d", 250), 20 * 32},
		{"a /20", Limits{Rate: 2}, func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i % 16), byte(i / 16)}) }, 2 * 256},
		{"an IPv6 /128", Limits{Rate: 20}, v4("2001:db8::%x", 1), 20},
		{"an IPv6 /64", Limits{Rate: 20}, v4("2001:db8::%x", 5000), 20 * 2},
		{"an IPv6 /56", Limits{Rate: 20}, v4("2001:db8:0:%x::1", 250), 20 * 3},
		{"an IPv6 /48", Limits{Rate: 20}, v4("2001:db8:0:%x::1", 60000), 20 * 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const seconds = 10
			sent, truncated, dropped := flood(newLimiter(tt.limits, 1), 5000, seconds*time.Second, tt.next)
			want := tt.rate * (seconds + 2.5)
			if got := float64(sent); got < want*0.9 || got > want*1.1 {
				t.Errorf("sent %d, want about %.0f", sent, want)
			}
			if truncated != 5000*seconds-sent || dropped != 0 {
				t.Errorf("truncated %d, dropped %d, want all others truncated", truncated, dropped)
			}
		})
	}
	one := v4("192.0.2.%d", 1)
	if _, truncated, dropped := flood(newLimiter(Limits{Rate: 1, Slip: 2}, 1), 1000, time.Second, one); truncated < dropped-1 || truncated > dropped+1 {
		t.Errorf("slip 2: truncated %d, dropped %d, want every other", truncated, dropped)
	}
	if _, truncated, _ := flood(newLimiter(Limits{Rate: 1, Slip: -1}, 1), 1000, time.Second, one); truncated != 0 {
		t.Errorf("no slip: truncated %d, want none", truncated)
	}
	allow := Limits{Rate: 1, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	if sent, _, _ := flood(newLimiter(allow, 1), 1000, time.Second, one); sent != 1000 {
		t.Errorf("allowed: sent %d, want all 1000", sent)
	}
	if sent, _, _ := flood(newLimiter(Limits{Rate: 40}, 4), 1000, 10*time.Second, one); sent < 120 || sent > 130 {
		t.Errorf("one of four workers: sent %d, want its share of 125", sent)
	}
}

// TestLimiterUnderSpoofing floods from random addresses, more than there are slots: a resolver that
// asks at its own pace still gets its answers, and nothing grows.
func TestLimiterUnderSpoofing(t *testing.T) {
	l := newLimiter(Limits{Rate: 50}, 1)
	good := netip.MustParseAddr("203.0.113.53")
	start, answered, asked := time.Unix(1_700_000_000, 0), 0, 0
	allocs := testing.AllocsPerRun(1, func() { // runs it twice
		for i := range 300_000 {
			now := start.Add(time.Duration(i) * 10 * time.Microsecond)
			x := uint32(i) * 2654435761
			l.take(netip.AddrFrom4([4]byte{byte(x >> 24), byte(x >> 16), byte(x >> 8), byte(x)}), now)
			if i%5000 == 0 { // 20 a second
				asked++
				if l.take(good, now) == send {
					answered++
				}
			}
		}
	})
	if answered*100 < asked*99 || allocs != 0 {
		t.Errorf("answered %d of %d with %v allocations, want 99 %% and none", answered, asked, allocs)
	}
}

// TestLimited checks on both paths what a client over the limit gets, and who is not limited.
func TestLimited(t *testing.T) {
	d := loadWorld(t).data(t)
	keys, err := newCookieKeys(nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	cookie := keys.append(nil, []byte("12345678"), resolver, uint32(now.Unix()))
	for _, tt := range []struct {
		name  string
		query []byte
		tcp   bool
		tc    bool
	}{
		{"without a cookie", ask(t, "www.example.com", "A"), false, true},
		{"what is refused counts as well", ask(t, "example.org", "A"), false, true},
		{"with a client cookie alone", ask(t, "www.example.com", "A", withOption(optionCookie, cookie[:8])), false, true},
		{"with a wrong one", ask(t, "www.example.com", "A", withOption(optionCookie, append(bytes.Clone(cookie[:23]), ^cookie[23]))), false, true},
		{"with a good one", ask(t, "www.example.com", "A", withOption(optionCookie, cookie)), false, false},
		{"over TCP", ask(t, "www.example.com", "A"), true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := testAnswerer(t)
			a.start, a.cookies = now, newPointer(keys)
			a.limiter = newLimiter(Limits{Rate: 1, Burst: 1}, 1)
			buf := make([]byte, maxMessage)
			a.serve(d, tt.query, resolver, tt.tcp, buf)
			m := unpack(t, a.serve(d, tt.query, resolver, tt.tcp, buf))
			if m.Truncated != tt.tc || tt.tc && len(m.Answer)+len(m.Ns) > 0 {
				t.Errorf("the second reply: got %v, want TC %t", m, tt.tc)
			}
			if n := a.counters.limited.Load(); n != 0 != tt.tc {
				t.Errorf("counted %d as limited", n)
			}
		})
	}
}

// TestAmplify checks that a reply without a cookie is bounded by its query, and with one is not.
func TestAmplify(t *testing.T) {
	d := loadWorld(t).data(t)
	keys, _ := newCookieKeys(nil)
	now := time.Unix(1_700_000_000, 0)
	cookie := keys.append(nil, []byte("12345678"), resolver, uint32(now.Unix()))
	for _, tt := range []struct {
		name, qtype string
		option      []byte
		factor      int
		tc          bool
	}{
		{"many.example.com", "MX", nil, 0, false},
		{"many.example.com", "MX", nil, 3, true},
		{"many.example.com", "MX", cookie[:8], 3, true},
		{"many.example.com", "MX", cookie, 3, false},
		{"www.example.com", "A", nil, 3, false},
		{"www.example.com", "A", nil, 1, true},
	} {
		a := testAnswerer(t)
		a.start, a.cookies, a.amplify = now, newPointer(keys), tt.factor
		query := ask(t, tt.name, tt.qtype, withOPT(1232))
		if tt.option != nil {
			query = ask(t, tt.name, tt.qtype, withOption(optionCookie, tt.option))
		}
		reply := a.serve(d, query, resolver, false, make([]byte, maxUDPBuffer))
		m := unpack(t, reply)
		if m.Truncated != tt.tc || tt.tc && len(reply) > max(tt.factor, 1)*len(query)+16 {
			t.Errorf("%s, option %x, factor %d: got %d octets to %d, %v; want TC %t", tt.name, tt.option, tt.factor, len(reply), len(query), m, tt.tc)
		}
	}
}

// TestQuarantine makes a query panic and checks that the next like it is refused for a minute, and
// that others are not.
func TestQuarantine(t *testing.T) {
	good := loadWorld(t).data(t)
	bad := &Data{Zones: good.Zones}
	var logged int
	a := newAnswerer(new(counters), nil, DefaultMaxUDP, func(any, []byte) { logged++ })
	a.start, a.quarantine = time.Unix(1_700_000_000, 0), newQuarantine()
	rcode := func(d *Data, query []byte) string {
		t.Helper()
		return rcodeNames[unpack(t, a.serve(d, query, resolver, false, make([]byte, maxUDPBuffer))).Rcode]
	}
	bad.Snapshot = &gslb.Snapshot{} // without services: www's index leads nowhere
	for _, step := range []struct {
		what  string
		later time.Duration
		d     *Data
		query []byte
		want  string
	}{
		{"the query of death", 0, bad, ask(t, "www.example.com", "A"), "SERVFAIL"},
		{"again", time.Second, good, ask(t, "www.example.com", "A"), "REFUSED"},
		{"in another case, with EDNS", time.Second, good, ask(t, "WWW.example.com", "A", withECS("192.0.2.0/24")), "REFUSED"},
		{"another type", 0, good, ask(t, "www.example.com", "AAAA"), "NOERROR"},
		{"another name", 0, good, ask(t, "four.example.com", "A"), "NOERROR"},
		{"a minute later", quarantineFor, good, ask(t, "www.example.com", "A"), "NOERROR"},
	} {
		a.start = a.start.Add(step.later)
		if got := rcode(step.d, step.query); got != step.want {
			t.Errorf("%s: got %s, want %s", step.what, got, step.want)
		}
	}
	if n := a.quarantine.n.Load(); n != 0 || logged != 1 {
		t.Errorf("%d patterns left and %d panics logged, want 0 and 1", n, logged)
	}
	for i := range 2 * maxQuarantined { // its memory is bounded
		rcode(bad, ask(t, strings.Repeat("x", i%50+1)+fmt.Sprint(i)+".tenant.example.com", "A"))
	}
	if n := a.quarantine.n.Load(); n > maxQuarantined {
		t.Errorf("%d patterns are remembered, want at most %d", n, maxQuarantined)
	}
}

// TestRobustAllocations asserts that what guards the path does not allocate.
func TestRobustAllocations(t *testing.T) {
	d := loadWorld(t).data(t)
	keys, _ := newCookieKeys(nil)
	cookies := new(atomic.Pointer[cookieKeys])
	cookies.Store(keys)
	a := testAnswerer(t)
	a.start, a.cookies, a.limiter, a.amplify, a.quarantine = time.Now(), cookies, newLimiter(Limits{Rate: 1}, 1), 5, newQuarantine()
	a.identity = Identity{ID: "ns1", Version: "1"}
	buf := make([]byte, maxUDPBuffer)
	cookie := keys.append(nil, []byte("12345678"), resolver, uint32(a.start.Unix()))
	for name, query := range map[string][]byte{
		"plain":  ask(t, "www.example.com", "A", withECS("198.51.100.0/24")),
		"cookie": ask(t, "www.example.com", "A", withOption(optionCookie, cookie)),
		"new":    ask(t, "www.example.com", "A", withOption(optionCookie, cookie[:8])),
		"HTTPS":  ask(t, "edge.example.com", "HTTPS", withOption(optionCookie, cookie)),
		"MX":     ask(t, "post.example.com", "MX", withOption(optionCookie, cookie)),
		"error":  ask(t, "example.org", "A", withOption(optionCookie, cookie)),
	} {
		a.serve(d, query, resolver, false, buf) // memory that is kept
		if n := testing.AllocsPerRun(100, func() { a.serve(d, query, resolver, false, buf) }); n != 0 {
			t.Errorf("%s: got %v allocations, want 0", name, n)
		}
	}
}
