package dns

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

var (
	askLocally = Explainers{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}
	askSigned  = Explainers{Keys: []TSIGKey{{Name: "ops.example.com", Algorithm: "hmac-sha256", Secret: "c2l4dGVlbiBvY3RldHMhIQ=="}}}
)

// withWhy adds the option that asks for the reason.
func withWhy(m *miekg.Msg) {
	if m.IsEdns0() == nil {
		m.SetEdns0(1232, false)
	}
	m.IsEdns0().Option = append(m.IsEdns0().Option, &miekg.EDNS0_LOCAL{Code: optionExplain})
}

// texts returns the TXT RRs of a reply, each as one string.
func texts(m *miekg.Msg) (lines []string) {
	for _, rr := range m.Answer {
		if txt, ok := rr.(*miekg.TXT); ok {
			lines = append(lines, strings.Join(txt.Txt, ""))
		}
	}
	return lines
}

// extra returns the extra texts of the Extended DNS Errors of a reply.
func extra(m *miekg.Msg) (all []string) {
	for _, o := range m.IsEdns0().Option {
		if e, ok := o.(*miekg.EDNS0_EDE); ok {
			all = append(all, fmt.Sprintf("%d %s", e.InfoCode, e.ExtraText))
		}
	}
	return all
}

const whyWWW = `00 www.example.com for 198.51.100.0/24: 50.11,8.68 site eu
01 pools: us, eu
02 health: us (3 of 3 endpoints healthy), eu (2 of 2 endpoints healthy)
03 nearest: eu (0 km), us (6203 km)
04 select: eu (1 of 1 IPv4, 1 of 1 IPv6)
04 select lost: us (behind eu)
05 answer: eu by policy: 198.51.100.1, 2001:db8:2::1
06 ttl 30, scope 25, revision 1, plan `

// TestExplainName asks over UDP and TCP, in any case, for a service, an alias of one and what is
// none. Nothing of it counts as a decision.
func TestExplainName(t *testing.T) {
	s := serve(t, Options{Explainers: askLocally})
	for _, addr := range s.Addrs() {
		for _, network := range []string{"udp", "tcp"} {
			m := exchange(t, network, addr, ask(t, "_Explain.WWW.example.com", "TXT", withECS("198.51.100.0/24")))
			got := strings.Join(texts(m), "\n")
			if !strings.HasPrefix(got, whyWWW) || !m.Authoritative || m.Truncated {
				t.Errorf("%s %s: got\n%s\nwant\n%s", network, addr, m, whyWWW)
			}
			if h := m.Answer[0].Header(); h.Ttl != 0 || h.Name != "_Explain.WWW.example.com." {
				t.Errorf("%s %s: got %s, want TTL 0 and the name as it was asked", network, addr, h)
			}
			if ecs, ok := m.IsEdns0().Option[0].(*miekg.EDNS0_SUBNET); !ok || ecs.SourceScope != 24 {
				t.Errorf("%s %s: got %v, want scope 24: the figures are of this prefix", network, addr, m.IsEdns0())
			}
		}
	}
	udp := s.Addrs()[0]
	m := exchange(t, "udp", udp, ask(t, "_explain.x.app.example.com", "TXT", withOPT(1232)))
	if got := texts(m); len(got) < 4 || !strings.HasPrefix(got[0], "00 *.app.example.com for 127.0.0.1/32: place unknown") {
		t.Errorf("a wildcard, for the resolver: got %s", m)
	}
	m = exchange(t, "udp", udp, ask(t, "_explain.ns1.example.com", "TXT"))
	if m.Rcode != miekg.RcodeNameError || len(m.Answer) != 0 {
		t.Errorf("what is no service: got %s, want NXDOMAIN", m)
	}
	s.stop(t)
	if st := s.Stats(); len(st.Pools) != 0 || st.Panics != 0 {
		t.Errorf("got %+v, want no decision and no panic", st)
	}
}

// TestExplainTypes: to who may ask, the name is there for every type (RFC 8020), and holds TXT alone; to
// others it is not there at all.
func TestExplainTypes(t *testing.T) {
	d := loadWorld(t).data(t)
	a := testAnswerer(t)
	a.explain(Explainers{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	other := netip.MustParseAddr("203.0.113.9")
	for _, tt := range []struct {
		name, qtype string
		from        netip.Addr
		rcode, txts int
	}{
		{"_explain.www.example.com", "TXT", resolver, miekg.RcodeSuccess, 8},
		{"_explain.www.example.com", "ANY", resolver, miekg.RcodeSuccess, 8}, // a subset of what is there: RFC 8482, section 4.1
		{"_explain.www.example.com", "A", resolver, miekg.RcodeSuccess, 0},
		{"_explain.alias.example.com", "NS", resolver, miekg.RcodeSuccess, 0},
		{"_explain.ns1.example.com", "TXT", resolver, miekg.RcodeNameError, 0}, // no service
		{"_explain.ns1.example.com", "A", resolver, miekg.RcodeNameError, 0},
		{"x._explain.www.example.com", "A", resolver, miekg.RcodeNameError, 0},
		{"_explain.www.example.com", "TXT", other, miekg.RcodeNameError, 0},
		{"_explain.www.example.com", "A", other, miekg.RcodeNameError, 0},
	} {
		m := unpack(t, a.serve(d, ask(t, tt.name, tt.qtype), tt.from, true, make([]byte, maxMessage)))
		if m.Rcode != tt.rcode || len(texts(m)) != tt.txts || len(m.Answer) != tt.txts || tt.txts == 0 && len(m.Ns) != 1 {
			t.Errorf("%s %s: got %s, want %s and %d TXT", tt.name, tt.qtype, m, miekg.RcodeToString[tt.rcode], tt.txts)
		} else if tt.rcode == miekg.RcodeSuccess && tt.txts == 0 && m.Ns[0].Header().Ttl != 0 {
			t.Errorf("%s %s: got %s, want an SOA that nobody keeps", tt.name, tt.qtype, m.Ns[0])
		}
	}
}

// TestExplainAlias: an alias is followed to its service.
func TestExplainAlias(t *testing.T) {
	text := readWorld(t)
	text = strings.Replace(text, "      ns1       A     192.0.2.53\n", "      ns1       A     192.0.2.53\n      short     CNAME www\n", 1)
	d := parseWorld(t, text).data(t)
	a := testAnswerer(t)
	a.explain(Explainers{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	reply := a.serve(d, ask(t, "_explain.short.example.com", "TXT"), resolver, true, make([]byte, maxMessage))
	got := texts(unpack(t, reply))
	if len(got) < 3 || got[0] != "00 short.example.com. is an alias of www.example.com." || !strings.HasPrefix(got[1], "00 www.example.com for ") {
		t.Errorf("got %q", got)
	}
}

// TestExplainOthers: who may not ask gets what a server says that has none of it, and goes the
// same way.
func TestExplainOthers(t *testing.T) {
	d := loadWorld(t).data(t)
	without, with := testAnswerer(t), testAnswerer(t)
	with.explain(Explainers{Allow: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, Keys: askSigned.Keys})
	buf1, buf2 := make([]byte, maxUDPBuffer), make([]byte, maxUDPBuffer)
	for _, pkt := range [][]byte{
		ask(t, "_explain.www.example.com", "TXT", withECS("203.0.113.0/24")),
		ask(t, "_explain.www.example.com", "TXT"),
		ask(t, "_explain.www.example.com", "A"),
		ask(t, "www.example.com", "A", withWhy),
	} {
		want := without.serve(d, pkt, resolver, false, buf1)
		got := with.serve(d, pkt, resolver, false, buf2)
		if !bytes.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", unpack(t, got), unpack(t, want))
		}
	}
	if n := with.counters.full.Load(); n != 0 {
		t.Errorf("%d of them took the full path, want none", n)
	}
}

// TestExplainLarge: what is longer than 1232 octets goes over TCP, and there it is whole.
func TestExplainLarge(t *testing.T) {
	var b strings.Builder
	b.WriteString("node: {name: n, site: us, dns: [\"127.0.0.1:0\"]}\nsites: {us: {lat: 40, lon: -74}}\npools:\n")
	var refs []string
	for i := range 100 {
		fmt.Fprintf(&b, "  a-pool-with-a-long-name-%03d: {site: us, endpoints: [{address: 192.0.2.%d}]}\n", i, i+1)
		refs = append(refs, fmt.Sprintf("a-pool-with-a-long-name-%03d: {}", i))
	}
	fmt.Fprintf(&b, "services: {www.example.com: {pools: {%s}}}\nzones: [{name: example.com, records: \"@ 60 SOA ns. h. 1 2 3 4 5\\n@ 60 NS ns.\\n\"}]\n", strings.Join(refs, ", "))
	d := parseWorld(t, b.String()).data(t)
	a := testAnswerer(t)
	a.explain(Explainers{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	pkt := ask(t, "_explain.www.example.com", "TXT", withOPT(4096))
	udp := a.serve(d, pkt, resolver, false, make([]byte, maxUDPBuffer))
	if m := unpack(t, udp); !m.Truncated || len(m.Answer) != 0 || len(udp) > DefaultMaxUDP {
		t.Errorf("over UDP: got %d octets, %s; want TC", len(udp), m)
	}
	m := unpack(t, a.serve(d, pkt, resolver, true, make([]byte, maxMessage)))
	got := texts(m)
	if m.Truncated || m.Rcode != miekg.RcodeSuccess || len(got) < 20 || !strings.Contains(got[len(got)-1], "ttl 30, scope 24, revision 1") {
		t.Fatalf("over TCP: got %d lines, %v", len(got), m.MsgHdr)
	}
	for _, line := range got {
		if len(line) > 255 {
			t.Errorf("a line of %d octets: %q", len(line), line)
		}
	}
	if all := strings.Join(got, "\n"); strings.Count(all, "(behind ")+strings.Count(all, "(equal to ") != 99 {
		t.Errorf("got %s\nwant each of the 99 losers", all)
	}
}

// TestExplainAnswer: the option has the reason come along with the answer, in what room there is.
func TestExplainAnswer(t *testing.T) {
	s := serve(t, Options{Explainers: askLocally})
	udp := s.Addrs()[0]
	m := exchange(t, "udp", udp, ask(t, "www.example.com", "A", withECS("198.51.100.0/24"), withWhy))
	want := "0 eu by policy; ttl 30, scope 25, revision 1, plan "
	if got := extra(m); len(got) != 1 || !strings.HasPrefix(got[0], want) || !strings.HasSuffix(got[0], "; select lost: us (behind eu)") {
		t.Errorf("got %q, want %q and who lost", got, want)
	}
	if len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), "198.51.100.1") {
		t.Errorf("got %s, want the answer too", m)
	}
	if got := extra(exchange(t, "udp", udp, ask(t, "ns1.example.com", "A", withWhy))); len(got) != 1 || got[0] != "0 nothing was decided: hit" {
		t.Errorf("what is not steered: got %q", got)
	}
	if got := extra(exchange(t, "udp", udp, ask(t, "www.example.org", "A", withWhy))); len(got) != 2 || got[0] != "20 " {
		t.Errorf("not ours: got %q, want the error of the answer first", got)
	}
	// 6 TXT RRs take 716 octets: with the reason they do not fit into 720, without it they do.
	m = exchange(t, "udp", udp, ask(t, "big.example.com", "TXT", withOPT(720), withWhy))
	if m.Truncated || len(m.Answer) != 6 || len(extra(m)) != 0 {
		t.Errorf("no room: got %v, %q; want the answer without the reason", m.MsgHdr, extra(m))
	}
	if m = exchange(t, "udp", udp, ask(t, "www.example.com", "A", withECS("198.51.100.0/24"))); len(extra(m)) != 0 {
		t.Errorf("not asked for: got %q", extra(m))
	}
	s.stop(t)
}

// TestExplainSigned: a key is as good as an address, and the reply is signed; what is not in order
// is refused as RFC 8945 has it.
func TestExplainSigned(t *testing.T) {
	s := serve(t, Options{Explainers: askSigned})
	secrets := func(name, secret string) map[string]string { return map[string]string{name: secret} }
	const good = "c2l4dGVlbiBvY3RldHMhIQ=="
	long := strings.Repeat(strings.Repeat("k", 60)+".", 4)
	for _, tt := range []struct {
		name, key, secret, algorithm string
		at                           time.Duration
		qname                        string
		network                      string
		err                          uint16 // of the TSIG
	}{
		{"good", "ops.example.com.", good, miekg.HmacSHA256, 0, "", "udp", 0},
		{"over TCP", "ops.example.com.", good, miekg.HmacSHA256, 0, "", "tcp", 0},
		{"in upper case", "OPS.example.com.", good, miekg.HmacSHA256, 0, "", "udp", 0},
		{"of no key", "other.example.com.", good, miekg.HmacSHA256, 0, "", "udp", miekg.RcodeBadKey},
		{"of another algorithm", "ops.example.com.", good, miekg.HmacSHA512, 0, "", "udp", miekg.RcodeBadKey},
		{"of another secret", "ops.example.com.", "YW5vdGhlciBzZWNyZXQhIQ==", miekg.HmacSHA256, 0, "", "udp", miekg.RcodeBadSig},
		{"of an hour ago", "ops.example.com.", good, miekg.HmacSHA256, -time.Hour, "", "udp", miekg.RcodeBadTime},
		{"with names of full length", long, good, miekg.HmacSHA512, 0, "_explain." + long, "udp", miekg.RcodeBadKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := new(miekg.Msg)
			q.SetQuestion(cmp.Or(tt.qname, "_explain.www.example.com."), miekg.TypeTXT)
			if tt.err == 0 {
				q.SetEdns0(1232, false)
			}
			q.SetTsig(tt.key, tt.algorithm, 300, time.Now().Add(tt.at).Unix())
			c := &miekg.Client{Net: tt.network, Timeout: patience, UDPSize: maxUDPBuffer, TsigSecret: secrets(tt.key, tt.secret)}
			m, _, err := c.Exchange(q, s.Addrs()[0].String())
			if m == nil {
				t.Fatal(err)
			}
			sig := m.IsTsig()
			if sig == nil || sig.Error != tt.err {
				t.Fatalf("got %s, want a TSIG with the error %d", m, tt.err)
			}
			switch {
			case tt.err == 0:
				if err != nil || m.Rcode != miekg.RcodeSuccess || len(texts(m)) < 7 {
					t.Errorf("got %v, %s; want an explanation and a good signature", err, m)
				}
			case m.Rcode != miekg.RcodeNotAuth || len(m.Answer) != 0:
				t.Errorf("got %s, want NOTAUTH and nothing else", m)
			case tt.err == miekg.RcodeBadTime:
				if sig.MACSize == 0 || sig.OtherLen != 6 {
					t.Errorf("got %s, want it signed, with our time", sig)
				}
			case sig.MACSize != 0:
				t.Errorf("got %s, want it unsigned", sig)
			}
		})
	}
	// Without a signature nothing is told, and a signed query for something else is just answered.
	if m := exchange(t, "udp", s.Addrs()[0], ask(t, "_explain.www.example.com", "TXT")); m.Rcode != miekg.RcodeNameError {
		t.Errorf("unsigned: got %s, want NXDOMAIN", m)
	}
	q := new(miekg.Msg)
	q.SetQuestion("www.example.com.", miekg.TypeA)
	q.SetTsig("ops.example.com.", miekg.HmacSHA256, 300, time.Now().Unix())
	c := &miekg.Client{Timeout: patience, TsigSecret: secrets("ops.example.com.", good)}
	if m, _, err := c.Exchange(q, s.Addrs()[0].String()); err != nil || len(m.Answer) == 0 || m.IsTsig() == nil {
		t.Errorf("signed A: got %v, %v; want an answer that is signed", m, err)
	}
	// A TSIG that is not last is malformed.
	q = new(miekg.Msg)
	q.SetQuestion("www.example.com.", miekg.TypeA)
	q.SetTsig("ops.example.com.", miekg.HmacSHA256, 300, time.Now().Unix())
	signed, _, err := miekg.TsigGenerate(q, good, "", false)
	if err != nil {
		t.Fatal(err)
	}
	var m miekg.Msg
	if err := m.Unpack(signed); err != nil {
		t.Fatal(err)
	}
	m.SetEdns0(1232, false) // after the TSIG
	pkt, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if m := exchange(t, "udp", s.Addrs()[0], pkt); m.Rcode != miekg.RcodeFormatError {
		t.Errorf("TSIG before OPT: got %s, want FORMERR", m)
	}
	s.stop(t)
	if st := s.Stats(); st.Panics != 0 {
		t.Errorf("%d panics", st.Panics)
	}
}

// TestSetExplainers: who may ask changes while the server runs.
func TestSetExplainers(t *testing.T) {
	s := serve(t, Options{})
	defer s.stop(t)
	query := ask(t, "_explain.www.example.com", "TXT", withECS("198.51.100.0/24"))
	if m := exchange(t, "udp", s.Addrs()[0], query); m.Rcode != miekg.RcodeNameError {
		t.Errorf("nobody may ask: got %s", m)
	}
	s.SetExplainers(askLocally)
	if m := exchange(t, "udp", s.Addrs()[0], query); len(texts(m)) < 7 {
		t.Errorf("loopback may ask: got %s", m)
	}
}

// TestExplainDig asks as an operator would.
func TestExplainDig(t *testing.T) {
	_, err := exec.LookPath("dig")
	needs(t, !errors.Is(err, exec.ErrNotFound), "dig")
	s := serve(t, Options{Explainers: Explainers{Allow: askLocally.Allow, Keys: askSigned.Keys}})
	defer s.stop(t)
	at := []string{"@" + s.Addrs()[0].Addr().String(), "-p", fmt.Sprint(s.Addrs()[0].Port()), "+tries=3", "+subnet=198.51.100.0/24"}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"TXT", "_explain.www.example.com", "+short"}, `"04 select lost: us (behind eu)"`},
		{[]string{"TXT", "_explain.www.example.com", "-y", "hmac-sha256:ops.example.com:c2l4dGVlbiBvY3RldHMhIQ=="}, "ops.example.com.	0	ANY	TSIG	hmac-sha256. "},
		{[]string{"A", "www.example.com", "+ednsopt=65501"}, "; EDE: 0 (Other): (eu by policy; ttl 30, scope 25, revision 1, plan "},
	} {
		out, err := exec.Command("dig", append(slices.Clone(at), tt.args...)...).CombinedOutput()
		text := strings.Join(strings.Fields(string(out)), " ")
		if err != nil || !strings.Contains(text, strings.Join(strings.Fields(tt.want), " ")) || strings.Contains(text, "could not be validated") {
			t.Errorf("dig %s: %v\n%s\nwant %s", strings.Join(tt.args, " "), err, out, tt.want)
		}
	}
}

// explain sets who may ask a.
func (a *answerer) explain(e Explainers) {
	s := new(Server)
	s.SetExplainers(e)
	a.explainers = &s.explainers
}
