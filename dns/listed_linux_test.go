package dns

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
)

// TestChoice runs the program that chooses a queue over packets from everywhere, and compares with
// what a reader of the list would say.
func TestChoice(t *testing.T) {
	const workers = 3
	listed := []netip.Prefix{
		netip.MustParsePrefix("192.0.2.53/32"), netip.MustParsePrefix("198.51.100.0/25"), netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("2001:db8:1::/48"), netip.MustParsePrefix("2001:db8:2::53/128"), netip.MustParsePrefix("2001:db8:3:40::/58"), netip.MustParsePrefix("2400::/12"),
	}
	for _, text := range []string{
		"192.0.2.53", "192.0.2.52", "192.0.3.53", "198.51.100.0", "198.51.100.127", "198.51.100.128", "10.255.255.255", "11.0.0.0", "0.0.0.0", "255.255.255.255",
		"2001:db8:1::", "2001:db8:1:ffff:ffff:ffff:ffff:ffff", "2001:db8:2::53", "2001:db8:2::54", "2001:db8:2:1::53", "2001:db9:2::53", "2001:db8:3:40::1", "2001:db8:3:7f::1",
		"2001:db8:3:80::1", "2001:db8:3:3f::1", "2400::", "240f:ffff::1", "2410::", "::",
	} {
		addr := netip.MustParseAddr(text)
		program := relocated(choice(workers, addr.Is4(), listed))
		vm, err := bpf.NewVM(program)
		if err != nil {
			t.Fatal(err)
		}
		want := false
		for _, p := range listed {
			want = want || p.Contains(addr)
		}
		seen := make(map[int]bool)
		for port := range uint16(300) {
			got, err := vm.Run(packetFrom(addr, port))
			if err != nil {
				t.Fatal(err)
			}
			if (got == workers) != want || got > workers {
				t.Fatalf("%s, port %d: got queue %d of %d, listed %t", addr, port, got, workers, want)
			}
			seen[got] = true
		}
		if !want && len(seen) != workers {
			t.Errorf("%s: 300 ports went to %d queues of %d", addr, len(seen), workers)
		}
	}
	var many []netip.Prefix
	for i := range 5000 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	if n := len(choice(workers, true, many)); n > maxChoice {
		t.Errorf("5000 prefixes: got %d instructions, the kernel takes %d", n, maxChoice)
	}
	everybody, err := bpf.NewVM(relocated(choice(workers, true, []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")})))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := everybody.Run(packetFrom(resolver, 53)); got != workers {
		t.Errorf("0.0.0.0/0: got queue %d, want %d", got, workers)
	}
}

// relocated returns the program for a packet that begins with its network header, as the
// interpreter of tests knows no other.
func relocated(program []bpf.Instruction) []bpf.Instruction {
	for i := range program {
		if load, ok := program[i].(bpf.LoadAbsolute); ok {
			load.Off -= networkHeader
			program[i] = load
		}
	}
	return program
}

// packetFrom returns the headers of a packet from there.
func packetFrom(addr netip.Addr, port uint16) []byte {
	b := make([]byte, 48)
	at, ports := 12, 20
	if addr.Is6() {
		at, ports = 8, 40
	}
	copy(b[at:], addr.AsSlice())
	b[ports], b[ports+1] = byte(port>>8), byte(port)
	return b
}

// TestListedQueue fills the queues of the workers before the server reads the first packet: what a
// listed client asks after that is answered all the same, and what others ask is lost.
func TestListedQueue(t *testing.T) {
	for _, network := range loopback {
		listed, other := "127.0.0.53", "127.0.0.99"
		if network.Addr().Is6() {
			listed, other = "::1", "" // the one address that there is
		}
		t.Run(network.Addr().String(), func(t *testing.T) {
			s := prepare(t, Options{Addrs: []netip.AddrPort{network}, ReceiveBuffer: 64 << 10, Limits: Limits{Rate: 1, Allow: []netip.Prefix{
				netip.MustParsePrefix("127.0.0.53/32"), netip.MustParsePrefix("::1/128")}}})
			dial := func(from string) *net.UDPConn {
				c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, net.UDPAddrFromAddrPort(s.Addrs()[0]))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				return c
			}
			query := ask(t, "www.example.com", "A")
			if other != "" {
				for range 8 { // ports
					flood := dial(other)
					for range 1000 { // far beyond the room there is
						if _, err := flood.Write(query); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			const asked = 50
			c := dial(listed)
			for range asked {
				if _, err := c.Write(query); err != nil {
					t.Fatal(err)
				}
			}
			s.run()
			s.stop(t) // once what was received is answered
			if got := answers(t, c); got != asked {
				t.Errorf("a listed client got %d answers of %d", got, asked)
			}
			own := s.udpCounters[len(s.udpCounters)-1].queries.Load()
			if n := s.Stats().UDP; own != asked || other != "" && (n <= asked || n >= 8000) {
				t.Errorf("the queue of the listed had %d queries, all queues %d; want %d, and those that had room", own, n, asked)
			}
			t.Log(fmt.Sprint(s.Stats().UDP, " of ", 8000+asked, " queries found room"))
		})
	}
}
