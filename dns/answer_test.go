package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/tracing"
)

var resolver = netip.MustParseAddr("192.0.2.53")

// packet builds a message from its parts: numbers are octets, strings are as they are.
func packet(parts ...any) []byte {
	var b []byte
	for _, part := range parts {
		switch p := part.(type) {
		case int:
			b = append(b, byte(p))
		case string:
			b = append(b, p...)
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

// header returns a header with those flags and counts.
func header(flags, questions, answers, authorities, additionals uint16) []byte {
	b := []byte{0x12, 0x67}
	for _, v := range []uint16{flags, questions, answers, authorities, additionals} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

// optRR returns an OPT of 1232 octets with those options in wire form.
func optRR(options ...any) []byte {
	rdata := packet(options...)
	return packet(0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, binary.BigEndian.AppendUint16(nil, uint16(len(rdata))), rdata)
}

// ecsWire returns a client subnet option.
func ecsWire(family, source, scope int, addr ...int) []byte {
	b := packet(0, optionECS, 0, 4+len(addr), 0, family, source, scope)
	for _, octet := range addr {
		b = append(b, byte(octet))
	}
	return b
}

// TestMalformed sends what no well-behaved client sends. Each row names the rule.
func TestMalformed(t *testing.T) {
	const www = "\x03www\x07example\x03com\x00"
	const in = "\x00\x01\x00\x01" // type A, class IN
	question := packet(www, in)
	label63 := "\x3f" + strings.Repeat("x", 63)
	long := strings.Repeat(label63, 3) // 192 octets
	none := -1
	tests := []struct {
		name  string // RFC and section
		pkt   []byte
		rcode int  // none: silence
		echo  bool // the question comes back
		opt   bool // an OPT comes back
	}{
		{"1035 4.1.1: shorter than a header", header(0, 1, 0, 0, 0)[:11], none, false, false},
		{"1035 4.1.1: nothing", nil, none, false, false},
		{"1035 4.1.1: a response", packet(header(flagQR, 1, 0, 0, 0), question), none, false, false},
		{"1035 4.1.1: a response with an error", header(flagQR|rcodeFormErr, 0, 0, 0, 0), none, false, false},
		{"1035 4.1.1: opcode IQUERY", packet(header(1<<11, 1, 0, 0, 0), question), rcodeNotImplemented, true, false},
		{"1035 4.1.1: opcode STATUS", header(2<<11, 0, 0, 0, 0), rcodeNotImplemented, false, false},
		{"1996 3.7: opcode NOTIFY", packet(header(4<<11, 1, 0, 0, 0), question), rcodeNotImplemented, true, false},
		{"2136 2.2: opcode UPDATE", packet(header(5<<11, 1, 0, 0, 0), question), rcodeNotImplemented, true, false},
		{"8490 5.4: opcode DSO", header(6<<11, 0, 0, 0, 0), rcodeNotImplemented, false, false},
		{"1035 4.1.1: opcode 15", packet(header(15<<11, 1, 0, 0, 0), question), rcodeNotImplemented, true, false},
		{"6891 6.1.1: opcode UPDATE with OPT", packet(header(5<<11, 1, 0, 0, 1), question, optRR()), rcodeNotImplemented, true, true},
		{"1996 3.7: NOTIFY with its SOA and OPT", packet(header(4<<11, 1, 1, 0, 1), question, 0xC0, 12, in, 0, 0, 0, 0, 0, 0, optRR()), rcodeNotImplemented, true, true},
		{"6891 6.1.3: opcode 15 with version 1", packet(header(15<<11, 1, 0, 0, 1), question, 0, 0, 41, 4, 0xd0, 0, 1, 0, 0, 0, 0), rcodeBadVers, true, true},
		{"1035 4.1.1: opcode 15 and a name without end", packet(header(15<<11, 1, 0, 0, 0), "\x03www"), rcodeNotImplemented, false, false},
		{"9619 4: no question", header(0, 0, 0, 0, 0), rcodeFormErr, false, false},
		{"9619 4: no question, and an OPT", packet(header(0, 0, 0, 0, 1), optRR()), rcodeFormErr, false, false},
		{"7873 5.4: no question, but a cookie, of which this server has none", packet(header(0, 0, 0, 0, 1), optRR(0, optionCookie, 0, 8, "cookies!")), rcodeFormErr, false, false},
		{"7873 5.4: no question, a cookie and version 1", packet(header(0, 0, 0, 0, 1), 0, 0, 41, 4, 0xd0, 0, 1, 0, 0, 0, 12, 0, optionCookie, 0, 8, "cookies!"), rcodeFormErr, false, false},
		{"7873 5.2.2: no question, and a cookie too short", packet(header(0, 0, 0, 0, 1), optRR(0, optionCookie, 0, 7, "cookies")), rcodeFormErr, false, false},
		{"7873 5.4: no question, a cookie and octets after it", packet(header(0, 0, 0, 0, 1), optRR(0, optionCookie, 0, 8, "cookies!"), 0), rcodeFormErr, false, false},
		{"9619 4: two questions", packet(header(0, 2, 0, 0, 0), question, question), rcodeFormErr, false, false},
		{"9619 4: 65535 questions", packet(header(0, 65535, 0, 0, 0), question), rcodeFormErr, false, false},
		{"1035 4.1.2: no name", header(0, 1, 0, 0, 0), rcodeFormErr, false, false},
		{"1035 4.1.2: name without end", packet(header(0, 1, 0, 0, 0), "\x03www"), rcodeFormErr, false, false},
		{"1035 4.1.2: label beyond the packet", packet(header(0, 1, 0, 0, 0), "\x3fwww", 0, in), rcodeFormErr, false, false},
		{"1035 4.1.2: no type", packet(header(0, 1, 0, 0, 0), www), rcodeFormErr, false, false},
		{"1035 4.1.2: half a class", packet(header(0, 1, 0, 0, 0), www, 0, 1, 0), rcodeFormErr, false, false},
		{"1035 4.1.4: question points to itself", packet(header(0, 1, 0, 0, 0), 0xC0, 12, in), rcodeFormErr, false, false},
		{"1035 4.1.4: question points forward", packet(header(0, 1, 0, 0, 0), 0xC0, 18, in, www), rcodeFormErr, false, false},
		{"1035 4.1.4: question points into the header", packet(header(0, 1, 0, 0, 0), 0xC0, 8, in), rcodeFormErr, false, false},
		{"1035 4.1.4: label then pointer", packet(header(0, 1, 0, 0, 0), 3, "www", 0xC0, 12, in), rcodeFormErr, false, false},
		{"6891 5: extended label", packet(header(0, 1, 0, 0, 0), 0x41, "x", 0, in), rcodeFormErr, false, false},
		{"1035 2.3.4: label of 64 octets", packet(header(0, 1, 0, 0, 0), 64, strings.Repeat("x", 64), 0, in), rcodeFormErr, false, false},
		{"1035 2.3.4: name of 255 octets", packet(header(0, 1, 0, 0, 0), long, 61, strings.Repeat("y", 61), 0, in), rcodeRefused, true, false},
		{"1035 2.3.4: name of 256 octets", packet(header(0, 1, 0, 0, 0), long, 62, strings.Repeat("y", 62), 0, in), rcodeFormErr, false, false},
		{"1035 2.3.4: name of 320 octets", packet(header(0, 1, 0, 0, 0), strings.Repeat(label63, 5), 0, in), rcodeFormErr, false, false},
		{"1035 4.1: octets after the question", packet(header(0, 1, 0, 0, 0), question, 0), rcodeFormErr, true, false},
		{"1035 4.1: octets after OPT", packet(header(0, 1, 0, 0, 1), question, optRR(), 0), rcodeFormErr, true, false},
		{"1035 4.1.1: an RR that is not there", packet(header(0, 1, 0, 0, 1), question), rcodeFormErr, true, false},
		{"1035 4.1.1: 65535 RRs that are not there", packet(header(0, 1, 65535, 65535, 65535), question), rcodeFormErr, true, false},
		{"1035 4.1.3: RR cut short", packet(header(0, 1, 1, 0, 0), question, www, 0, 1, 0, 1), rcodeFormErr, true, false},
		{"1035 4.1.3: rdata cut short", packet(header(0, 1, 1, 0, 0), question, www, in, 0, 0, 0, 0, 0, 4, 192, 0), rcodeFormErr, true, false},
		{"1035 4.1.4: owner points to itself", packet(header(0, 1, 1, 0, 0), question, 0xC0, 33, in, 0, 0, 0, 0, 0, 0), rcodeFormErr, true, false},
		{"1035 4.1.3: an answer in a query is skipped", packet(header(0, 1, 1, 0, 0), question, 0xC0, 12, in, 0, 0, 0, 0, 0, 4, 192, 0, 2, 1), rcodeNoError, true, false},
		{"8945 5.1: a TSIG without a key of ours is skipped", packet(header(0, 1, 0, 0, 1), question, "\x01k\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x00"), rcodeNoError, true, false},
		{"6891 6.1.1: two OPT", packet(header(0, 1, 0, 0, 2), question, optRR(), optRR()), rcodeFormErr, true, false},
		{"6891 6.1.1: OPT in the answer section", packet(header(0, 1, 1, 0, 0), question, optRR()), rcodeFormErr, true, false},
		{"6891 6.1.1: OPT in the authority section", packet(header(0, 1, 0, 1, 0), question, optRR()), rcodeFormErr, true, false},
		{"6891 6.1.2: OPT not at the root", packet(header(0, 1, 0, 0, 1), question, "\x01x\x00", optRR()[1:]), rcodeFormErr, true, false},
		{"6891 6.1.2: OPT at a pointer to a root", packet(header(0, 1, 0, 0, 1), question, 0xC0, 28, optRR()[1:]), rcodeFormErr, true, false},
		{"6891 6.1.2: OPT cut short", packet(header(0, 1, 0, 0, 1), question, optRR()[:7]), rcodeFormErr, true, false},
		{"6891 6.1.2: options cut short", packet(header(0, 1, 0, 0, 1), question, 0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 9, 1), rcodeFormErr, true, false},
		{"6891 6.1.2: option header cut short", packet(header(0, 1, 0, 0, 1), question, optRR(0, 3, 0)), rcodeFormErr, true, true},
		{"6891 6.1.2: option longer than OPT", packet(header(0, 1, 0, 0, 1), question, optRR(0, 3, 0, 9, 1)), rcodeFormErr, true, true},
		{"6891 6.1.1: a question for OPT", packet(header(0, 1, 0, 0, 0), www, 0, 41, 0, 1), rcodeFormErr, true, false},
		{"6891 6.1.3: version 1", packet(header(0, 1, 0, 0, 1), question, 0, 0, 41, 4, 0xd0, 0, 1, 0, 0, 0, 0), rcodeBadVers, true, true},
		{"6891 6.1.3: version 255, and options that only it knows", packet(header(0, 1, 0, 0, 1), question, 0, 0, 41, 4, 0xd0, 0, 255, 0, 0, 0, 1, 7), rcodeBadVers, true, true},
		{"6891 6.1.3: an extended rcode in a query is ignored", packet(header(0, 1, 0, 0, 1), question, 0, 0, 41, 4, 0xd0, 9, 0, 0, 0, 0, 0), rcodeNoError, true, true},
		{"7871 7.2.1: unknown family", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(3, 24, 0, 192, 0, 2))), rcodeFormErr, true, true},
		{"7871 7.2.1: unknown family with /0", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(3, 0, 0))), rcodeFormErr, true, true},
		{"7871 7.2.1: no family with an address", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(0, 24, 0, 192, 0, 2))), rcodeFormErr, true, true},
		{"7871 6: source prefix over 32", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(1, 33, 0, 192, 0, 2, 0, 0))), rcodeFormErr, true, true},
		{"7871 6: source prefix over 128", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(2, 129, 0, make([]int, 17)...))), rcodeFormErr, true, true},
		{"7871 6: scope in a query", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(1, 24, 24, 192, 0, 2))), rcodeFormErr, true, true},
		{"7871 6: too few octets", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(1, 24, 0, 192, 0))), rcodeFormErr, true, true},
		{"7871 6: too many octets", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(1, 24, 0, 192, 0, 2, 0))), rcodeFormErr, true, true},
		{"7871 6: an address with /0", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(1, 0, 0, 0))), rcodeFormErr, true, true},
		{"7871 6: bits beyond the prefix", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(1, 23, 0, 192, 0, 3))), rcodeFormErr, true, true},
		{"7871 6: a prefix within an octet", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(1, 23, 0, 192, 0, 2))), rcodeNoError, true, true},
		{"7871 6: shorter than its fields", packet(header(0, 1, 0, 0, 1), question, optRR(0, optionECS, 0, 3, 0, 1, 0)), rcodeFormErr, true, true},
		{"7871 6: two of them", packet(header(0, 1, 0, 0, 1), question, optRR(ecsWire(1, 8, 0, 10), ecsWire(1, 8, 0, 10))), rcodeFormErr, true, true},
		{"1035 3.2.4: class CH", packet(header(0, 1, 0, 0, 0), www, 0, 1, 0, 3), rcodeRefused, true, false},
		{"1035 3.2.5: class ANY", packet(header(0, 1, 0, 0, 0), www, 0, 1, 0, 255), rcodeRefused, true, false},
		{"6895 3.1: type 0", packet(header(0, 1, 0, 0, 0), www, 0, 0, 0, 1), rcodeFormErr, true, false},
		{"6895 3.1: type TSIG", packet(header(0, 1, 0, 0, 0), www, 0, 250, 0, 1), rcodeNotImplemented, true, false},
		{"5936 4.2: AXFR", packet(header(0, 1, 0, 0, 0), www, 0, 252, 0, 1), rcodeRefused, true, false},
	}
	d := loadWorld(t).data(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, path := range []string{"fast", "full"} {
				reply := onPath(testAnswerer(t), d, path, slices.Clone(tt.pkt))
				if tt.rcode == none {
					if reply != nil {
						t.Errorf("%s path: got %x, want silence", path, reply)
					}
					continue
				}
				if reply == nil {
					t.Fatalf("%s path: got silence, want %s", path, rcodeNames[tt.rcode])
				}
				m := unpack(t, reply)
				if m.Rcode != tt.rcode || len(m.Question) == 1 != tt.echo || (m.IsEdns0() != nil) != tt.opt {
					t.Errorf("%s path: got %s, question %t, OPT %t; want %s, %t, %t", path,
						rcodeNames[m.Rcode], len(m.Question) == 1, m.IsEdns0() != nil, rcodeNames[tt.rcode], tt.echo, tt.opt)
				}
				if m.Rcode != rcodeNoError && len(reply) > len(tt.pkt) {
					t.Errorf("%s path: got a reply of %d octets to %d", path, len(reply), len(tt.pkt))
				}
				if !m.Response || m.Opcode != int(be16(tt.pkt[2:])&opcodeMask>>11) || m.Id != be16(tt.pkt) {
					t.Errorf("%s path: got header %v, want id and opcode of the query and QR", path, m.MsgHdr)
				}
			}
		})
	}
}

// onPath answers pkt from the resolver on the fast or the full path, under the limits of UDP.
func onPath(a *answerer, d *Data, path string, pkt []byte) []byte {
	buf := make([]byte, maxUDPBuffer)
	if path == "fast" {
		return a.serve(d, pkt, resolver, false, buf)
	}
	a.q.from, a.q.tcp = resolver, false
	return a.answerFull(d, pkt, buf)
}

// FuzzPacket feeds both paths with anything. They never panic, answer queries alone and within
// the limits, say the same, and what they say is a message.
func FuzzPacket(f *testing.F) {
	for _, name := range []string{"www.example.com", "alias2.example.com", "nowhere.example.com", "deep.sub.example.com", "big.example.com", "many.example.com", "host.old.example.com", "wWw.ExAmPlE.cOm", "example.org", "."} {
		for _, qtype := range []string{"A", "AAAA", "TXT", "MX", "NS", "SOA", "ANY", "HTTPS", "DS", "AXFR"} {
			f.Add(ask(f, name, qtype))
			f.Add(ask(f, name, qtype, withECS("198.51.100.0/24")))
		}
	}
	for _, option := range []miekg.EDNS0{ // what dig, kdig and resolvers send
		&miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: "24a5ac1223344556"},
		&miekg.EDNS0_NSID{Code: miekg.EDNS0NSID},
		&miekg.EDNS0_TCP_KEEPALIVE{Code: miekg.EDNS0TCPKEEPALIVE},
		&miekg.EDNS0_PADDING{Padding: make([]byte, 100)},
		&miekg.EDNS0_EXPIRE{Code: miekg.EDNS0EXPIRE, Empty: true},
		&miekg.EDNS0_LOCAL{Code: 65500, Data: make([]byte, 27)},
		ecsOption(netip.MustParsePrefix("2001:db8:2::/56")),
	} {
		f.Add(ask(f, "www.example.com", "AAAA", withOPT(4096, option), func(m *miekg.Msg) { m.AuthenticatedData = true }))
	}
	f.Add(ask(f, "example.com", "IXFR", func(m *miekg.Msg) { m.SetIxfr("example.com.", 1, "ns1.", "hostmaster.") }))
	f.Add(ask(f, "example.com", "SOA", func(m *miekg.Msg) { m.SetNotify("example.com.") }))
	f.Add(ask(f, "example.com", "SOA", func(m *miekg.Msg) { m.SetTsig("key.", miekg.HmacSHA256, 300, 1) }))
	f.Add(packet(header(0, 0, 0, 0, 1), optRR(0, optionCookie, 0, 8, "cookies!")))
	f.Add(packet(header(0, 1, 0, 0, 2), "\x03www\x07example\x03com\x00\x00\x01\x00\x01", optRR(), optRR(ecsWire(1, 33, 0))))

	for _, name := range []string{"version.bind", "id.server"} {
		f.Add(ask(f, name, "TXT", func(m *miekg.Msg) { m.Question[0].Qclass = miekg.ClassCHAOS }))
	}
	for _, name := range []string{"edge.example.com", "shop.example.com", "post.example.com", "flat.example"} {
		f.Add(ask(f, name, "HTTPS", withECS("198.51.100.0/24")))
		f.Add(ask(f, name, "MX", withECS("2001:db8:2::/56")))
	}
	d := loadWorld(f).data(f)
	keys, err := newCookieKeys(nil)
	if err != nil {
		f.Fatal(err)
	}
	cookies := newPointer(keys)
	f.Fuzz(func(t *testing.T, pkt []byte) {
		if len(pkt) > maxUDPBuffer {
			return
		}
		fast, full := testAnswerer(t), testAnswerer(t)
		for _, a := range []*answerer{fast, full} {
			a.identity, a.cookies, a.quarantine, a.amplify = Identity{"ns1", "1"}, cookies, newQuarantine(), 10
		}
		before := slices.Clone(pkt)
		reply := onPath(fast, d, "fast", pkt)
		if slow := onPath(full, d, "full", pkt); !bytes.Equal(reply, slow) {
			t.Fatalf("query %x\ngot  %x on the fast path\nand  %x on the full path", pkt, reply, slow)
		}
		if !bytes.Equal(pkt, before) {
			t.Fatalf("query %x was changed to %x", before, pkt)
		}
		isQuery := len(pkt) >= headerLen && pkt[2]&0x80 == 0
		if !isQuery && reply != nil || isQuery && reply == nil {
			t.Fatalf("query %x: got %x", pkt, reply)
		}
		if reply == nil {
			return
		}
		m := new(miekg.Msg)
		if err := m.Unpack(reply); err != nil {
			t.Fatalf("query %x: got %x: %v", pkt, reply, err)
		}
		if len(reply) > fast.limit() || m.Rcode == rcodeFormErr && len(reply) > len(pkt) {
			t.Fatalf("query %x of %d octets: got a reply of %d, %s", pkt, len(pkt), len(reply), rcodeNames[m.Rcode])
		}
		if len(m.Question) == 1 && !bytes.HasPrefix(pkt[headerLen:], reply[headerLen:][:len(fast.q.name)+4]) {
			t.Fatalf("query %x: got question %x", pkt, reply[headerLen:][:len(fast.q.name)+4])
		}
	})
}

// TestNothingKnown asks a server that has no configuration: REFUSED, never a name error.
func TestNothingKnown(t *testing.T) {
	for name, d := range map[string]*Data{"no data": nil, "no zones": {Snapshot: new(gslb.Snapshot)}, "no snapshot": {Zones: loadWorld(t).zones}} {
		for _, path := range []string{"fast", "full"} {
			m := unpack(t, onPath(testAnswerer(t), d, path, ask(t, "www.example.com", "A")))
			if m.Rcode != rcodeRefused || m.Authoritative {
				t.Errorf("%s, %s path: got %s, AA %t; want REFUSED without AA", name, path, rcodeNames[m.Rcode], m.Authoritative)
			}
		}
	}
}

// TestPanic answers out of data that break the builder's promises: the service is in no
// snapshot. The query gets SERVFAIL and the next one its answer.
func TestPanic(t *testing.T) {
	d := loadWorld(t).data(t)
	broken := &Data{Snapshot: new(gslb.Snapshot), Zones: d.Zones}
	var packets [][]byte
	a := newAnswerer(new(counters), nil, DefaultMaxUDP, func(_ any, packet []byte) { packets = append(packets, packet) })
	query := ask(t, "www.example.com", "A", withECS("198.51.100.0/24"))
	a.port = 4711
	for _, tcp := range []bool{false, true} {
		m := unpack(t, a.serve(broken, query, resolver, tcp, make([]byte, maxUDPBuffer)))
		if m.Rcode != rcodeServFail || m.Id != 4711 || !m.Response {
			t.Errorf("got %s, id %d; want SERVFAIL, id 4711", rcodeNames[m.Rcode], m.Id)
		}
		m = unpack(t, a.serve(d, query, resolver, tcp, make([]byte, maxUDPBuffer)))
		if m.Rcode != rcodeNoError || len(m.Answer) != 1 {
			t.Errorf("afterwards: got %v, want one address", m)
		}
	}
	if a.port != 4711 {
		t.Errorf("afterwards the client's port is %d, of a connection that goes on", a.port)
	}
	if len(packets) != 2 || !bytes.Equal(packets[0], query) || a.counters.panics.Load() != 2 {
		t.Errorf("got %d packets reported and %d counted, want the query twice", len(packets), a.counters.panics.Load())
	}
}

// ring is a TraceWorker with room for some records.
type ring struct {
	picky   bool // nothing is drawn
	all     bool // but everything recorded
	room    int
	flags   uint8 // of the last decision asked about
	slot    tracing.Query
	records []tracing.Query
}

func (r *ring) All() bool { return r.all }

func (r *ring) Draw() (drawn bool, rest int) { return !r.picky, 0 }

func (r *ring) Changed() bool { return false }

func (r *ring) Notable(service, _ int32, reason, flags, rcode uint8) bool {
	r.flags = flags
	return service >= 0 || reason != 0 || rcode != rcodeNoError
}

func (r *ring) Begin(bool) *tracing.Query {
	if len(r.records) == r.room {
		return nil
	}
	r.slot = tracing.Query{}
	return &r.slot
}

func (r *ring) Keep(query, reply []byte) {}

func (r *ring) Commit() { r.records = append(r.records, r.slot) }

// TestTrace checks what is recorded of a query, and that a full ring stops nothing.
func TestTrace(t *testing.T) {
	d := loadWorld(t).data(t)
	tracer := &ring{room: 2}
	a := newAnswerer(new(counters), tracer, DefaultMaxUDP, func(reason any, _ []byte) { t.Errorf("panic: %v", reason) })
	a.begin(time.Now())
	for _, query := range [][]byte{
		ask(t, "WWW.example.com", "A", withECS("198.51.100.0/24")),
		ask(t, "nowhere.example.com", "TXT"),
		ask(t, "www.example.com", "A"), // for which there is no room
		header(flagQR, 0, 0, 0, 0),     // which is no query
	} {
		a.serve(d, query, resolver, false, make([]byte, maxUDPBuffer))
	}
	if len(tracer.records) != 2 {
		t.Fatalf("got %d records, want 2", len(tracer.records))
	}
	eu := d.Snapshot.Pool("eu").Index
	www := d.Snapshot.Service("www.example.com").Index
	for i, want := range []tracing.Query{
		{
			Revision: 1, Service: int32(www), Pool: int32(eu), Flags: uint8(gslb.Overridden), Qtype: typeA, TTL: 30, Answers: 1, Scope: 25,
			Client: netip.MustParseAddr("198.51.100.0").As16(), Source: 24, HasECS: true, Resolver: resolver.As16(), NameLen: 17,
		},
		{
			Revision: 1, Service: -1, Pool: -1, Qtype: miekg.TypeTXT, Rcode: rcodeNameError,
			Client: resolver.As16(), Source: 32, Resolver: resolver.As16(), NameLen: 21,
		},
	} {
		got := tracer.records[i]
		if got.Start != a.start.UnixNano() || got.End == 0 || got.Parsed > got.End || (got.Decided != 0) != (want.Service >= 0) {
			t.Errorf("record %d: got times %d +%d +%d +%d, want them in order", i, got.Start, got.Parsed, got.Decided, got.End)
		}
		if name := string(got.Name[:got.NameLen]); name != [...]string{"\x03WWW\x07example\x03com\x00", "\x07nowhere\x07example\x03com\x00"}[i] {
			t.Errorf("record %d: got name %q", i, name)
		}
		got.Start, got.Parsed, got.Decided, got.End, got.Name = 0, 0, 0, 0, [255]byte{}
		if got != want {
			t.Errorf("record %d: got  %+v\nwant %+v", i, got, want)
		}
	}
}

// The queries of the allocation tests and of the benchmarks.
// TestTraceAhead checks that what nothing speaks for is not recorded, and that of a batch that
// takes long all that follows is.
func TestTraceAhead(t *testing.T) {
	d := loadWorld(t).data(t)
	tracer := &ring{picky: true, room: 100}
	a := newAnswerer(new(counters), tracer, DefaultMaxUDP, func(reason any, _ []byte) { t.Errorf("panic: %v", reason) })
	serve := func(name string) int {
		before := len(tracer.records)
		a.serve(d, ask(t, name, "A"), resolver, false, make([]byte, maxUDPBuffer))
		return len(tracer.records) - before
	}
	var got []int
	var flags []uint8
	for _, name := range []string{"www.example.com", "nowhere.example.com", "mail.example.com"} {
		a.begin(time.Now()) // so that a slow machine makes none of them late
		tracer.flags = 0
		got = append(got, serve(name))
		flags = append(flags, tracer.flags)
	}
	if want := []uint8{uint8(gslb.Overridden), 0, 0}; !slices.Equal(flags, want) {
		t.Errorf("asked with flags %v, want %v: the client is pinned to a site", flags, want)
	}
	if !slices.Equal(got, []int{1, 0, 0}) {
		t.Errorf("got %d records of a decision, a name error and plain data, want 1, 0 and 0", got)
	}
	a.begin(time.Now().Add(-2 * slow))
	n := 0
	for range 2 * clockEvery {
		n += serve("mail.example.com")
	}
	if n <= clockEvery || n == 2*clockEvery {
		t.Errorf("got %d records of %d late queries, want all but the first few", n, 2*clockEvery)
	}
}

// TestTracePlain checks what is recorded of queries that nobody drew where all are: the decisions
// exactly, the others plainly.
func TestTracePlain(t *testing.T) {
	d := loadWorld(t).data(t)
	tracer := &ring{picky: true, all: true, room: 100}
	a := newAnswerer(new(counters), tracer, DefaultMaxUDP, func(reason any, _ []byte) { t.Errorf("panic: %v", reason) })
	for range 2 * clockEvery {
		a.begin(time.Now())
		a.serve(d, ask(t, "mail.example.com", "A"), resolver, false, make([]byte, maxUDPBuffer))
		a.begin(time.Now())
		a.serve(d, ask(t, "www.example.com", "A"), resolver, false, make([]byte, maxUDPBuffer))
	}
	if len(tracer.records) != 100 {
		t.Fatalf("%d records, want all that there is room for", len(tracer.records))
	}
	for i, q := range tracer.records {
		if steered := i%2 == 1; q.Plain == steered || q.Decided > 0 != steered {
			t.Fatalf("record %d: plain %v, decided after %d ns, want the decisions exact and the others plain", i, q.Plain, q.Decided)
		}
	}
}

func hotQueries(tb testing.TB) map[string][]byte {
	return map[string][]byte{
		"Steered":    ask(tb, "www.example.com", "A", withECS("198.51.100.0/24")),
		"Steered6":   ask(tb, "www.example.com", "AAAA", withECS("2001:db8:2::/56")),
		"Static":     ask(tb, "ns1.example.com", "A"),
		"NXDOMAIN":   ask(tb, "nowhere.example.com", "A", withOPT(1232)),
		"NODATA":     ask(tb, "ns1.example.com", "TXT", withOPT(1232)),
		"Referral":   ask(tb, "www.sub.example.com", "A", withOPT(1232)),
		"CNAME":      ask(tb, "alias2.example.com", "A", withECS("198.51.100.0/24")),
		"Wildcard":   ask(tb, "any.wild.example.com", "A"),
		"MX":         ask(tb, "example.com", "MX", withOPT(1232)),
		"DNAME":      ask(tb, "host.old.example.com", "A"),
		"Truncated":  ask(tb, "big.example.com", "TXT"),
		"NotOurs":    ask(tb, "example.org", "A", withOPT(1232)),
		"Malformed":  packet(header(0, 1, 0, 0, 0), "\x3fx"),
		"NotAQuery":  header(flagQR, 0, 0, 0, 0),
		"TwoServers": ask(tb, "example.com", "NS", withOPT(4096)),
	}
}

// TestRecent checks how many decisions are kept for plans: one in so many, and the first.
func TestRecent(t *testing.T) {
	d, c := loadWorld(t).data(t), &counters{}
	a := newAnswerer(c, nil, DefaultMaxUDP, func(any, []byte) {})
	query, buf := ask(t, "www.example.com", "A", withECS("198.51.100.0/24")), make([]byte, maxUDPBuffer)
	for made := 1; made <= 3*recentEvery; made++ {
		a.serve(d, query, netip.MustParseAddr("10.0.0.1"), false, buf)
		if got, want := len(c.recent.samples()), (made+recentEvery-1)/recentEvery; got != want {
			t.Fatalf("%d samples of %d decisions, want %d", got, made, want)
		}
	}
}

// TestAllocations asserts that no answer over UDP allocates, with a tracer or without.
func TestAllocations(t *testing.T) {
	d := loadWorld(t).data(t)
	buf := make([]byte, maxUDPBuffer)
	for name, query := range hotQueries(t) {
		for _, tracer := range []TraceWorker{nil, &still{}} {
			a := testAnswerer(t)
			a.traceBy(tracer)
			a.begin(time.Now())
			allocs := testing.AllocsPerRun(100, func() { a.serve(d, query, resolver, false, buf) })
			if allocs != 0 {
				t.Errorf("%s, tracer %t: got %v allocations, want 0", name, tracer != nil, allocs)
			}
		}
	}
}

// TestLogTurnedUp: a decision log that begins to want decisions gets them from the next batch on, however far
// ahead a worker has looked, over UDP as over TCP.
func TestLogTurnedUp(t *testing.T) {
	d := loadWorld(t).data(t)
	query, buf := ask(t, "www.example.com", "A"), make([]byte, maxUDPBuffer)
	for _, tcp := range []bool{false, true} {
		quiet := slog.New(slog.DiscardHandler)
		log := tracing.NewDecisionLog("ns1", "eu", "1", quiet)
		recorder := tracing.New(tracing.Options{Log: log, Memory: -1, Logger: quiet})
		a := testAnswerer(t)
		a.traceBy(recorder.Worker(0))
		if tcp {
			a.traceBy(&sharedTrace{inner: recorder.Worker(0)})
		}
		for _, sample := range []float64{0, 1, 0, 1} {
			if err := log.Configure(tracing.DecisionLogConfig{Sample: sample, File: filepath.Join(t.TempDir(), "log")}); err != nil {
				t.Fatal(err)
			}
			a.begin(time.Now())
			for range 10 {
				a.serve(d, query, netip.MustParseAddr("192.0.2.53"), tcp, buf)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_ = recorder.Run(ctx) // drains once
		_ = log.Run(ctx)      // closes its file
		if taken := log.Stats().Taken; taken != 20 {
			t.Errorf("TCP %t: %d decisions were logged, want the 20 since the log was turned up", tcp, taken)
		}
	}
}

// still is a TraceWorker with room for one record, over and over.
type still struct{ slot tracing.Query }

func (s *still) All() bool                                      { return true }
func (s *still) Draw() (drawn bool, rest int)                   { return true, 0 }
func (s *still) Changed() bool                                  { return false }
func (s *still) Notable(int32, int32, uint8, uint8, uint8) bool { return true }

func (s *still) Begin(bool) *tracing.Query { return &s.slot }
func (s *still) Keep(_, _ []byte)          {}
func (s *still) Commit()                   {}

func benchmarkAnswer(b *testing.B, name string, tracer TraceWorker) {
	d := loadWorld(b).data(b)
	query := hotQueries(b)[name]
	a := testAnswerer(b)
	a.traceBy(tracer)
	a.begin(time.Now())
	buf := make([]byte, maxUDPBuffer)
	b.ReportAllocs()
	for b.Loop() {
		a.serve(d, query, resolver, false, buf)
	}
}

func BenchmarkAnswerSteered(b *testing.B)  { benchmarkAnswer(b, "Steered", nil) }
func BenchmarkAnswerTraced(b *testing.B)   { benchmarkAnswer(b, "Steered", &still{}) }
func BenchmarkAnswerStatic(b *testing.B)   { benchmarkAnswer(b, "Static", nil) }
func BenchmarkAnswerNXDOMAIN(b *testing.B) { benchmarkAnswer(b, "NXDOMAIN", nil) }
func BenchmarkAnswerReferral(b *testing.B) { benchmarkAnswer(b, "Referral", nil) }

// BenchmarkAnswerParallel shows what workers cost each other: with one worker for each
// processor, the time per query falls with their number.
func BenchmarkAnswerParallel(b *testing.B) {
	d := loadWorld(b).data(b)
	query := hotQueries(b)["Steered"]
	b.RunParallel(func(pb *testing.PB) {
		a := testAnswerer(b)
		buf := make([]byte, maxUDPBuffer)
		for pb.Next() {
			a.serve(d, query, resolver, false, buf)
		}
	})
}

func BenchmarkAnswerFull(b *testing.B) {
	d := loadWorld(b).data(b)
	query := hotQueries(b)["Steered"]
	a := testAnswerer(b)
	buf := make([]byte, maxUDPBuffer)
	b.ReportAllocs()
	for b.Loop() {
		a.serve(d, query, resolver, true, buf)
	}
}
