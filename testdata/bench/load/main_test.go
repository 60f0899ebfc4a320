package main

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestQuery(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, test := range []struct {
		name   string
		family int
		bits   uint8
	}{{"no subnet", 0, 0}, {"IPv4", 4, 24}, {"IPv6", 6, 56}} {
		t.Run(test.name, func(t *testing.T) {
			seen := map[string]bool{}
			for range 1000 {
				q, err := query("s1.example.com", dns.TypeA, test.family)
				if err != nil {
					t.Fatal(err)
				}
				subnet(q, test.family, random)
				var m dns.Msg
				if err := m.Unpack(q); err != nil {
					t.Fatalf("%x: %v", q, err)
				}
				if got := m.Question[0]; got.Name != "s1.example.com." || got.Qtype != dns.TypeA || got.Qclass != dns.ClassINET {
					t.Fatalf("question: got %v", got)
				}
				opt := m.IsEdns0()
				if opt == nil || opt.UDPSize() != 1232 || len(opt.Option) != min(test.family, 1) {
					t.Fatalf("OPT: got %v", opt)
				}
				if test.family == 0 {
					return
				}
				s := opt.Option[0].(*dns.EDNS0_SUBNET)
				a, _ := netip.AddrFromSlice(s.Address)
				a = a.Unmap()
				if s.SourceNetmask != test.bits || a.Is4() != (test.family == 4) || !a.IsGlobalUnicast() || a.IsPrivate() {
					t.Fatalf("subnet: got %v", s)
				}
				seen[s.String()] = true
			}
			if len(seen) < 990 {
				t.Errorf("of 1000 subnets: got %d distinct", len(seen))
			}
		})
	}
	if _, err := query("a..b", dns.TypeA, 0); err == nil {
		t.Error("an empty label: got no error")
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	for n := 1; n <= 1000; n++ {
		h.add(time.Duration(n) * time.Microsecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond} {
		if got := h.quantile(q); got < want || got > want+want/7 {
			t.Errorf("quantile %v: got %v, want %v and at most an eighth more", q, got, want)
		}
	}
	if got := new(histogram).quantile(0.5); got != 0 {
		t.Errorf("of nothing: got %v, want 0", got)
	}
}

// TestMeasure runs against a server that leaves every fourth query without an answer, and
// gives every other answer without a record.
func TestMeasure(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-ended })
	go func() {
		defer close(ended)
		b := make([]byte, 512)
		for n := 0; ; n++ {
			size, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if n%4 == 3 {
				continue
			}
			b[2] |= 0x80
			b[7] = byte(n % 2)
			conn.WriteTo(b[:size], from)
		}
	}()
	o := options{
		server: netip.MustParseAddrPort(conn.LocalAddr().String()), pid: os.Getpid(), names: []string{"a.example", "b.example"}, qtype: dns.TypeA,
		ecs: 4, sockets: 2, window: 4, time: 3 * lostIn, check: true,
	}
	r, err := measure(o)
	if err != nil {
		t.Fatal(err)
	}
	if r.answered == 0 || r.lost == 0 || r.wrong == 0 || r.wrong >= r.answered || r.latency.quantile(0.5) == 0 {
		t.Errorf("got %d answered, %d wrong, %d lost, p50 %v; want some of each", r.answered, r.wrong, r.lost, r.latency.quantile(0.5))
	}
	o.rate, o.check, o.time = 2000, false, time.Second
	if r, err = measure(o); err != nil {
		t.Fatal(err)
	}
	if n := r.answered + r.lost; n > 2000+uint64(o.sockets*o.window) {
		t.Errorf("at most 2000 a second: got %d", n)
	}
}

func TestRefuses(t *testing.T) {
	for _, test := range []struct {
		o                 options
		server, name, err string
	}{
		{options{window: 1, sockets: 1, time: 1}, "nowhere", "a", "-server"},
		{options{window: 0, sockets: 1, time: 1}, "127.0.0.1:1", "a", "-window 1..256"},
		{options{window: 1, sockets: 1, time: 1, ecs: 5}, "127.0.0.1:1", "a", "-ecs 5"},
		{options{window: 1, sockets: 1, time: time.Minute}, "127.0.0.1:1", "a..b", "label"},
	} {
		if err := start(test.o, test.server, test.name, 1, false); err == nil || !strings.Contains(err.Error(), test.err) {
			t.Errorf("%+v: got %v, want %q", test.o, err, test.err)
		}
	}
}
