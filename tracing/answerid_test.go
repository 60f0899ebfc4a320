package tracing

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

func testIDs(t testing.TB, keys ...string) *AnswerIDs {
	t.Helper()
	var octets [][]byte
	for _, k := range keys {
		octets = append(octets, []byte(k))
	}
	ids, err := NewAnswerIDs(time.Minute, octets...)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

const (
	keyA = "0123456789abcdef"
	keyB = "fedcba9876543210fedcba9876543210"
)

func TestNewAnswerIDsRefuses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		epoch time.Duration
		keys  [][]byte
	}{
		{"no key", time.Minute, nil},
		{"short key", time.Minute, [][]byte{[]byte("short")}},
		{"no epoch", 0, [][]byte{[]byte(keyA)}},
		{"long epoch", 2 * time.Hour, [][]byte{[]byte(keyA)}},
		{"half seconds", 1500 * time.Millisecond, [][]byte{[]byte(keyA)}},
	} {
		if _, err := NewAnswerIDs(tc.epoch, tc.keys...); err == nil {
			t.Errorf("%s: taken, want an error", tc.name)
		}
	}
}

// Who gets the same answer in the same epoch gets the same address; anything else differs.
func TestAnswerIDIsACohort(t *testing.T) {
	s := testIDs(t, keyA).Signer()
	at := time.Unix(1_700_000_040, 0) // an epoch begins at 1_700_000_040
	base := s.ID(at, "www.example.com", "gfe-eu", "1f2e", 0)
	if again := testIDs(t, keyA).ID(at.Add(59*time.Second), "www.example.com", "gfe-eu", "1f2e", 0); again != base {
		t.Errorf("another node, 59 s later: %v, want %v", again, base)
	}
	for name, other := range map[string]AnswerID{
		"the next epoch": s.ID(at.Add(time.Minute), "www.example.com", "gfe-eu", "1f2e", 0),
		"service":        s.ID(at, "api.example.com", "gfe-eu", "1f2e", 0),
		"pool":           s.ID(at, "www.example.com", "gfe-us", "1f2e", 0),
		"plan":           s.ID(at, "www.example.com", "gfe-eu", "1f2f", 0),
		"reason":         s.ID(at, "www.example.com", "gfe-eu", "1f2e", 1),
		"shifted names":  s.ID(at, "www.example.comg", "fe-eu", "1f2e", 0),
	} {
		if other == base || other == 0 {
			t.Errorf("%s: %v, want another id than %v", name, other, base)
		}
	}
	net, other := netip.MustParseAddr("2001:db8:2:1::11"), netip.MustParseAddr("2001:db8:2:2::11")
	a := s.Addr(base, net)
	if a.Next() == a || !netip.PrefixFrom(net, 64).Masked().Contains(a) || a == net {
		t.Errorf("address %v, want another one of the /64 of %v", a, net)
	}
	x, y := a.As16(), s.Addr(base, other).As16()
	if [8]byte(x[8:]) == [8]byte(y[8:]) {
		t.Error("the suffix is the same in another /64, want its MAC to differ")
	}
}

func TestAnswerIDRoundTrip(t *testing.T) {
	s := testIDs(t, keyA).Signer()
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var b [16]byte
		copy(b[:], []byte{0x20, 0x01, 0x0d, 0xb8, byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32())})
		at := time.Unix(int64(random.Uint32()), 0)
		id := s.ID(at, "www.example.com", "pool", "plan", uint8(random.Uint32()))
		addr := s.Addr(id, netip.AddrFrom16(b))
		got, key, v := s.Read(addr)
		if got != id || key != 0 || v != Genuine {
			t.Fatalf("%v carries %v, %v, want %v", addr, got, v, id)
		}
		if since := s.since(id, at); since.After(at) || at.Sub(since) >= time.Minute {
			t.Fatalf("epoch of %v since %v, want within the minute before", at, since)
		}
		// Any one bit that changes makes it a forgery, or, all of the id gone, no id.
		bit := random.IntN(128)
		c := addr.As16()
		c[bit/8] ^= 1 << (bit % 8)
		if _, _, v := s.Read(netip.AddrFrom16(c)); v == Genuine {
			t.Fatalf("%v with bit %d changed is genuine, want a forgery", addr, bit)
		}
	}
}

func TestReadAddress(t *testing.T) {
	s := testIDs(t, keyA).Signer()
	ours := s.Addr(s.ID(time.Unix(1_700_000_000, 0), "www", "pool", "plan", 0), netip.MustParseAddr("2001:db8::"))
	for _, tc := range []struct {
		name, addr string
		want       Authenticity
	}{
		{"ours", ours.String(), Genuine},
		{"plain address of the /64", "2001:db8::11", Plain},
		{"guessed", "2001:db8::1234:5678:9abc:def0", Forged},
		{"cohort 0", "2001:db8::1234:0000:0000:0001", Forged},
		{"IPv4", "192.0.2.1", Plain},
		{"mapped IPv4", "::ffff:192.0.2.1", Plain},
		{"loopback", "::1", Plain},
		{"link-local", "fe80::1234:5678:9abc:def0", Plain},
	} {
		if _, _, got := s.Read(netip.MustParseAddr(tc.addr)); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	if _, _, got := s.Read(netip.Addr{}); got != Plain {
		t.Errorf("no address: %v, want plain", got)
	}
	if _, _, got := testIDs(t, keyB).Signer().Read(ours); got != Forged {
		t.Errorf("under another key: %v, want forged", got)
	}
}

// A key is changed by putting the new one first: what the old one signed is believed until it
// is taken out, and leads to the span that the old one named.
func TestKeyChange(t *testing.T) {
	old, both := testIDs(t, keyA).Signer(), testIDs(t, keyB, keyA).Signer()
	id := old.ID(time.Unix(1_700_000_000, 0), "www", "pool", "plan", 0)
	addr := old.Addr(id, netip.MustParseAddr("2001:db8::"))
	got, key, v := both.Read(addr)
	if got != id || v != Genuine {
		t.Fatalf("under both keys: %v, %v, want %v", got, v, id)
	}
	wantTrace, wantSpan := old.Context(id, 0)
	if trace, span := both.Context(id, key); trace != wantTrace || span != wantSpan {
		t.Errorf("leads to %v %v, want %v %v", trace, span, wantTrace, wantSpan)
	}
	if trace, _ := both.Context(id, 0); trace == wantTrace {
		t.Error("the new key names the old key's span")
	}
}

// Of random suffixes, as a scanner would try them, none passes: one in 16 million would.
func TestForgeriesAreRefused(t *testing.T) {
	s := testIDs(t, keyA).Signer()
	random := rand.New(rand.NewPCG(3, 4))
	const tries = 100_000
	passed := 0
	for range tries {
		b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
		for i := 8; i < 16; i++ {
			b[i] = byte(random.Uint32())
		}
		if _, _, v := s.Read(netip.AddrFrom16(b)); v == Genuine {
			passed++
		}
	}
	if passed > 2 {
		t.Errorf("%d of %d random suffixes pass, want none", passed, tries)
	}
}

func TestSignerDoesNotAllocate(t *testing.T) {
	s, at, addr := testIDs(t, keyA).Signer(), time.Now(), netip.MustParseAddr("2001:db8::")
	if n := testing.AllocsPerRun(100, func() {
		signed := s.Addr(s.ID(at, "www.example.com", "gfe-eu", "1f2e", 0), addr)
		id, key, _ := s.Read(signed)
		s.Context(id, key)
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func FuzzReadAddress(f *testing.F) {
	s := testIDs(f, keyA, keyB).Signer()
	seed := s.Addr(s.ID(time.Unix(1_700_000_000, 0), "www", "pool", "plan", 0), netip.MustParseAddr("2001:db8::")).As16()
	f.Add(seed[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		addr, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		id, key, v := s.Read(addr)
		if v != Genuine {
			if id != 0 {
				t.Errorf("%v: id %v of an address that is not genuine", addr, id)
			}
			return
		}
		if one := (&Signer{AnswerIDs: &AnswerIDs{length: s.length, keys: s.keys[key:]}}); one.Addr(id, addr) != addr {
			t.Errorf("%v: made again from %v it is %v", addr, id, one.Addr(id, addr))
		}
	})
}

// BenchmarkAnswerID is the id of an answer and one address with it.
func BenchmarkAnswerID(b *testing.B) {
	s, at, addr := testIDs(b, keyA).Signer(), time.Now(), netip.MustParseAddr("2001:db8::")
	b.ReportAllocs()
	for b.Loop() {
		s.Addr(s.ID(at, "www.example.com", "gfe-eu", "1f2e3d4c", 0), addr)
	}
}
