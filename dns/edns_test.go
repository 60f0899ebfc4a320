package dns

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

// TestEDNSCompliance is what ISC's EDNS compliance test asks of a server (ednscomp.isc.org), by
// the names that it has for its queries; all are for the SOA of a zone of ours.
func TestEDNSCompliance(t *testing.T) {
	const unknown = 100
	opt := func(size uint16, version uint8, flags uint32, options ...miekg.EDNS0) func(*miekg.Msg) {
		return func(m *miekg.Msg) {
			m.SetEdns0(size, false)
			o := m.IsEdns0()
			o.Hdr.Ttl = uint32(version)<<16 | flags
			o.Option = options
		}
	}
	local := func(code uint16, data string) miekg.EDNS0 {
		raw, _ := hex.DecodeString(data)
		return &miekg.EDNS0_LOCAL{Code: code, Data: raw}
	}
	noOption := []uint16{}
	tests := []struct {
		name    string
		query   func(*miekg.Msg)
		tcp     bool
		rcode   int
		opt     bool
		do      bool
		options []uint16 // that come back
	}{
		{"dns: plain DNS", func(*miekg.Msg) {}, false, rcodeNoError, false, false, nil},
		{"aa: no recursion, no AD", func(m *miekg.Msg) { m.RecursionDesired = true }, false, rcodeNoError, false, false, nil},
		{"ad: AD in a query", func(m *miekg.Msg) { m.AuthenticatedData = true }, false, rcodeNoError, false, false, nil},
		{"cd: CD in a query", func(m *miekg.Msg) { m.CheckingDisabled = true }, false, rcodeNoError, false, false, nil},
		{"zflag: the header's Z", func(m *miekg.Msg) { m.Zero = true }, false, rcodeNoError, false, false, nil},
		{"edns", opt(4096, 0, 0), false, rcodeNoError, true, false, noOption},
		{"edns1: an unknown version", opt(4096, 1, 0), false, rcodeBadVers, true, false, noOption},
		{"edns@512: a size of 512", opt(512, 0, 0), false, rcodeNoError, true, false, noOption},
		{"a size below 512", opt(0, 0, 0), false, rcodeNoError, true, false, noOption},
		{"ednsopt: an unknown option", opt(4096, 0, 0, local(unknown, "")), false, rcodeNoError, true, false, noOption},
		{"edns1opt: both", opt(4096, 1, 0, local(unknown, "")), false, rcodeBadVers, true, false, noOption},
		{"do", opt(4096, 0, flagDO), false, rcodeNoError, true, true, noOption},
		{"edns1do", opt(4096, 1, flagDO), false, rcodeBadVers, true, true, noOption},
		{"ednsflags: an unknown flag", opt(4096, 0, 0x40), false, rcodeNoError, true, false, noOption},
		{"ednsflags: all of them", opt(4096, 0, 0x7fff), false, rcodeNoError, true, false, noOption},
		{"edns1flags", opt(4096, 1, 0x40), false, rcodeBadVers, true, false, noOption},
		{"optlist: what resolvers send", opt(4096, 0, 0, local(optionNSID, ""), ecsOption(netip.MustParsePrefix("0.0.0.0/0")), local(9, ""), local(optionCookie, "0102030405060708")),
			false, rcodeNoError, true, false, []uint16{optionECS, optionNSID, optionCookie}},
		{"ednsnsid", opt(4096, 0, 0, local(optionNSID, "")), false, rcodeNoError, true, false, []uint16{optionNSID}},
		{"ednscookie", opt(4096, 0, 0, local(optionCookie, "0102030405060708")), false, rcodeNoError, true, false, []uint16{optionCookie}},
		{"a cookie of 9 octets", opt(4096, 0, 0, local(optionCookie, "010203040506070809")), false, rcodeFormErr, true, false, noOption},
		{"a cookie of 41 octets", opt(4096, 0, 0, local(optionCookie, strings.Repeat("01", 41))), false, rcodeFormErr, true, false, noOption},
		{"ednsexpire, which a primary need not answer", opt(4096, 0, 0, local(9, "")), false, rcodeNoError, true, false, noOption},
		{"ednssubnet", opt(4096, 0, 0, ecsOption(netip.MustParsePrefix("192.0.2.0/24"))), false, rcodeNoError, true, false, []uint16{optionECS}},
		{"padding is for encrypted transports", opt(4096, 0, 0, local(12, "0000")), false, rcodeNoError, true, false, noOption},
		{"keepalive over UDP: RFC 7828, section 3.2.1", opt(4096, 0, 0, local(optionKeepalive, "")), false, rcodeNoError, true, false, noOption},
		{"edns@512tcp", opt(512, 0, 0), true, rcodeNoError, true, false, noOption},
		{"dnstcp", func(*miekg.Msg) {}, true, rcodeNoError, false, false, nil},
		{"edns1 over TCP", opt(4096, 1, 0), true, rcodeBadVers, true, false, noOption},
		{"keepalive over TCP", opt(4096, 0, 0, local(optionKeepalive, "")), true, rcodeNoError, true, false, []uint16{optionKeepalive}},
	}
	d := loadWorld(t).data(t)
	keys, err := newCookieKeys(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, path := range []string{"fast", "full"} {
				a := testAnswerer(t)
				a.start = time.Unix(1_700_000_000, 0)
				a.identity, a.keepalive = Identity{ID: "ns1"}, 100
				a.cookies = newPointer(keys)
				buf, pkt := make([]byte, maxMessage), ask(t, "example.com", "SOA", tt.query)
				var reply []byte
				if a.q.from, a.q.tcp = resolver, tt.tcp; path == "fast" {
					reply = a.serve(d, pkt, resolver, tt.tcp, buf)
				} else {
					reply = a.answerFull(d, pkt, buf)
				}
				m := unpack(t, reply)
				o := m.IsEdns0()
				if m.Rcode != tt.rcode || (o != nil) != tt.opt || m.Zero || m.AuthenticatedData || m.CheckingDisabled || m.RecursionAvailable {
					t.Fatalf("%s path: got %v\nwant %s, OPT %t, and Z, AD, CD and RA clear", path, m, rcodeNames[tt.rcode], tt.opt)
				}
				if hasSOA := len(m.Answer) == 1; hasSOA != (tt.rcode == rcodeNoError) || hasSOA && !m.Authoritative {
					t.Errorf("%s path: got %v, want an authoritative SOA with NOERROR alone", path, m)
				}
				if o == nil {
					continue
				}
				var options []uint16
				for _, option := range o.Option {
					options = append(options, option.Option())
				}
				if o.Version() != 0 || o.Hdr.Ttl&0x7fff != 0 || o.Do() != tt.do || !slices.Equal(options, tt.options) {
					t.Errorf("%s path: got version %d, flags %#x and options %v, want 0, DO %t alone and %v", path, o.Version(), o.Hdr.Ttl&0xffff, options, tt.do, tt.options)
				}
			}
		})
	}
}

// TestIdentity asks the server who it is.
func TestIdentity(t *testing.T) {
	d := loadWorld(t).data(t)
	told := Identity{ID: "ns1.fra", Version: "Meridian 1"}
	chaos := func(m *miekg.Msg) { m.Question[0].Qclass = miekg.ClassCHAOS }
	for _, tt := range []struct {
		name, qtype string
		identity    Identity
		want        string // of the TXT; empty: REFUSED
	}{
		{"version.bind", "TXT", told, "Meridian 1"},
		{"VERSION.BIND", "TXT", told, "Meridian 1"},
		{"version.server", "TXT", told, "Meridian 1"},
		{"id.server", "TXT", told, "ns1.fra"},
		{"hostname.bind", "TXT", told, "ns1.fra"},
		{"hostname.bind", "ANY", told, "ns1.fra"},
		{"hostname.bind", "A", told, ""},
		{"authors.bind", "TXT", told, ""},
		{"example.com", "SOA", told, ""},
		{"version.bind", "TXT", Identity{ID: "ns1.fra"}, ""},
		{"id.server", "TXT", Identity{}, ""},
	} {
		for _, path := range []string{"fast", "full"} {
			a := testAnswerer(t)
			a.identity = tt.identity
			m := unpack(t, onPath(a, d, path, ask(t, tt.name, tt.qtype, chaos)))
			got := ""
			if len(m.Answer) == 1 && m.Answer[0].Header().Class == miekg.ClassCHAOS {
				got = strings.Join(m.Answer[0].(*miekg.TXT).Txt, "")
			}
			if got != tt.want || (m.Rcode == rcodeRefused) != (tt.want == "") {
				t.Errorf("%s %s of %+v on the %s path: got %v, want %q", tt.name, tt.qtype, tt.identity, path, m, tt.want)
			}
		}
	}
}

// TestExtendedErrors checks that errors with a reason say it to who has EDNS, and only them.
func TestExtendedErrors(t *testing.T) {
	w := loadWorld(t)
	w.fail("us4", "192.0.2.4")
	d := w.data(t)
	for _, tt := range []struct {
		name string
		d    *Data
		code uint16
	}{
		{"example.org", d, miekg.ExtendedErrorCodeNotAuthoritative},
		{"www.example.com", nil, miekg.ExtendedErrorCodeNotReady},
		{"shut.example.com", d, miekg.ExtendedErrorCodeOther},
		{"loop1.example.com", d, miekg.ExtendedErrorCodeOther},
	} {
		m := unpack(t, onPath(testAnswerer(t), tt.d, "fast", ask(t, tt.name, "A", withOPT(1232))))
		if o := m.IsEdns0(); len(o.Option) != 1 || o.Option[0].(*miekg.EDNS0_EDE).InfoCode != tt.code {
			t.Errorf("%s: got %v, want the extended error %d", tt.name, m, tt.code)
		}
		if m := unpack(t, onPath(testAnswerer(t), tt.d, "fast", ask(t, tt.name, "A"))); m.IsEdns0() != nil {
			t.Errorf("%s without EDNS: got %v", tt.name, m)
		}
	}
}

// TestOptionsFit checks that options never make a reply longer than the client takes.
func TestOptionsFit(t *testing.T) {
	d := loadWorld(t).data(t)
	a := testAnswerer(t)
	a.identity.ID = strings.Repeat("n", 255)
	keys, _ := newCookieKeys(nil)
	a.cookies = newPointer(keys)
	for size := uint16(512); size < 1232; size += 7 {
		query := ask(t, "big.example.com", "TXT", withOPT(size, &miekg.EDNS0_NSID{Code: miekg.EDNS0NSID}, &miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: "0102030405060708"}))
		reply := a.serve(d, query, resolver, false, make([]byte, maxUDPBuffer))
		if m := unpack(t, reply); len(reply) > int(size) || len(m.IsEdns0().Option) != 2 || len(m.Answer) > 0 == m.Truncated {
			t.Fatalf("size %d: got %d octets, %v", size, len(reply), m)
		}
	}
}

func newPointer[T any](v *T) *atomic.Pointer[T] {
	p := new(atomic.Pointer[T])
	p.Store(v)
	return p
}

// TestCookieAlone asks for a server cookie without a question: RFC 7873, section 5.4.
func TestCookieAlone(t *testing.T) {
	keys, err := newCookieKeys(nil)
	if err != nil {
		t.Fatal(err)
	}
	query := packet(header(0, 0, 0, 0, 1), optRR(0, optionCookie, 0, clientCookieLen, "cookies!"))
	for _, path := range []string{"fast", "full"} {
		a := testAnswerer(t)
		a.cookies = newPointer(keys)
		m := unpack(t, onPath(a, loadWorld(t).data(t), path, query))
		if m.Rcode != rcodeNoError || len(m.Question)+len(m.Answer)+len(m.Ns) > 0 || m.IsEdns0() == nil || len(m.IsEdns0().Option) != 1 {
			t.Fatalf("%s path: got %v, want NOERROR and an OPT with a cookie alone", path, m)
		}
		cookie, _ := hex.DecodeString(m.IsEdns0().Option[0].(*miekg.EDNS0_COOKIE).Cookie)
		if !keys.valid(cookie, resolver, uint32(a.start.Unix())) {
			t.Errorf("%s path: got cookie %x, which is not valid", path, cookie)
		}
	}
}

// TestCookieVectors are the examples of RFC 9018, appendix A.
func TestCookieVectors(t *testing.T) {
	const secret = "e5e973e5a6b2a43f48e7dc849e37bfcf"
	for _, tt := range []struct {
		name    string
		secrets []string
		from    string
		asked   string
		now     uint32
		valid   bool
		want    string
	}{
		{"A.1: a new server cookie", []string{secret}, "198.51.100.100", "2464c4abcf10c957", 1559731985, false, "2464c4abcf10c957010000005cf79f111f8130c3eee29480"},
		{"A.2: the same client, later", []string{secret}, "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559734385, true, "2464c4abcf10c957010000005cf7a871d4a564a1442aca77"},
		{"A.3: older than an hour", []string{secret}, "203.0.113.203", "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", 1559734700, false, "fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e"},
		{"A.3, when it was young: reserved octets that are not 0", []string{secret}, "203.0.113.203", "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", 1559727985, true, ""},
		{"A.4: IPv6, and a secret that is new", []string{"445536bcd2513298075a5d379663c962", "dd3bdf9344b678b185a6f5cb60fca715"}, "2001:db8:220:1:59de:d0f4:8769:82b8",
			"22681ab97d52c298010000005cf7c57926556bd0934c72f8", 1559741961, true, "22681ab97d52c298010000005cf7c609a6bb79d16625507a"},
		{"young: as it was", []string{secret}, "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559731985 + cookieRenew - 1, true, "2464c4abcf10c957010000005cf79f111f8130c3eee29480"},
		{"another address", []string{secret}, "198.51.100.101", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559731985, false, ""},
		{"another client cookie", []string{secret}, "198.51.100.100", "2464c4abcf10c958010000005cf79f111f8130c3eee29480", 1559731985, false, ""},
		{"an hour old", []string{secret}, "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559731985 + cookieAge, true, ""},
		{"older", []string{secret}, "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559731985 + cookieAge + 1, false, ""},
		{"five minutes ahead", []string{secret}, "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559731985 - cookieAhead, true, ""},
		{"further ahead", []string{secret}, "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559731985 - cookieAhead - 1, false, ""},
		{"another version", []string{secret}, "198.51.100.100", "2464c4abcf10c957020000005cf79f111f8130c3eee29480", 1559731985, false, ""},
		{"another length", []string{secret}, "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3", 1559731985, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var secrets [][]byte
			for _, s := range tt.secrets {
				raw, _ := hex.DecodeString(s)
				secrets = append(secrets, raw)
			}
			keys, err := newCookieKeys(secrets)
			if err != nil {
				t.Fatal(err)
			}
			asked, _ := hex.DecodeString(tt.asked)
			from := netip.MustParseAddr(tt.from)
			if got := keys.valid(asked, from, tt.now); got != tt.valid {
				t.Errorf("valid: got %t, want %t", got, tt.valid)
			}
			got := keys.append(nil, asked, from, tt.now)
			if want, _ := hex.DecodeString(tt.want); tt.want != "" && !bytes.Equal(got, want) {
				t.Errorf("got %x, want %x", got, want)
			}
			if !keys.valid(got, from, tt.now) {
				t.Errorf("got %x, which is not valid itself", got)
			}
		})
	}
	if _, err := newCookieKeys([][]byte{make([]byte, 15)}); err == nil {
		t.Error("a secret of 15 octets: no error")
	}
}
