package zone

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// mustParse reads a zone without faults; $TTL, SOA, NS and ns's address come before text.
func mustParse(t testing.TB, origin, text string) *Zone {
	t.Helper()
	z, _, err := Parse(strings.NewReader("$TTL 300\n@ SOA ns hostmaster 1 2h 15m 2w 60\n@ NS ns\nns A 192.0.2.53\n"+text), "", origin)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func mustSet(t testing.TB, zones []*Zone, services map[string]int32) *Set {
	t.Helper()
	s, err := NewSet(zones, services)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wire(t testing.TB, name string) []byte {
	t.Helper()
	w, err := FromString(name)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// describe says what a Result holds: outcome, zone, node, RRset, service and wildcard.
func describe(r *Result) string {
	s := r.Outcome.String()
	if r.Zone != nil {
		s += " zone=" + r.Zone.Name()
	}
	if r.Node != nil {
		s += " node=" + ToString(r.Node.Owner)
	}
	if r.RRset != nil {
		s += " rrset=" + dns.Type(r.RRset.Type).String()
	}
	if r.Outcome == Steered {
		s += fmt.Sprintf(" service=%d", r.Node.Service)
	}
	if r.Wildcard {
		s += " wildcard"
	}
	return s
}

type question struct {
	name, qtype, want string
}

func ask(t *testing.T, s *Set, questions []question) {
	t.Helper()
	for _, q := range questions {
		t.Run(q.name+" "+q.qtype, func(t *testing.T) {
			r := Result{Outcome: Hit, Wildcard: true, RRset: new(RRset)} // must not be left over
			s.Resolve(wire(t, q.name), dns.StringToType[q.qtype], &r)
			if got := describe(&r); got != q.want {
				t.Errorf("got  %s\nwant %s", got, q.want)
			}
		})
	}
}

// TestRFC4592 holds the example of RFC 4592, section 2.2.1, with every answer that it gives.
func TestRFC4592(t *testing.T) {
	z := mustParse(t, "example", `
@ NS ns.example.com.
@ NS ns.example.net.
* TXT "this is a wildcard"
* MX 10 host1.example.
sub.* TXT "this is not a wildcard"
host1 A 192.0.2.1
_ssh._tcp.host1 SRV 0 0 22 host1
_ssh._tcp.host2 SRV 0 0 22 host2
subdel NS ns.example.com.
subdel NS ns.example.net.
`)
	ask(t, mustSet(t, []*Zone{z}, nil), []question{
		// "The following responses would be synthesized from one of the wildcards"
		{"host3.example", "MX", "hit zone=example node=*.example rrset=MX wildcard"},
		{"host3.example", "A", "nodata zone=example node=*.example wildcard"},
		{"foo.bar.example", "TXT", "hit zone=example node=*.example rrset=TXT wildcard"},
		// "The following responses would not be synthesized from any of the wildcards"
		{"host1.example", "MX", "nodata zone=example node=host1.example"},
		{"sub.*.example", "MX", "nodata zone=example node=sub.*.example"},
		{"_telnet._tcp.host1.example", "SRV", "name error zone=example"},
		{"host.subdel.example", "A", "referral zone=example node=subdel.example rrset=NS"},
		{"ghost.*.example", "MX", "name error zone=example"},
		// section 2.2.2 and 2.2.3: empty non-terminals
		{"_tcp.host1.example", "A", "nodata zone=example node=_tcp.host1.example"},
		{"host2.example", "A", "nodata zone=example node=host2.example"},
		{"x.host2.example", "TXT", "name error zone=example"},
		// section 2.3: a wildcard asked for by its name is a name like any other
		{"*.example", "TXT", "hit zone=example node=*.example rrset=TXT"},
		{"*.example", "A", "nodata zone=example node=*.example"},
		// section 4.3: a wildcard does not apply where there is a cut
		{"subdel.example", "TXT", "referral zone=example node=subdel.example rrset=NS"},
	})
}

// TestRFC1034 holds the examples of RFC 1034, section 6.2, for its root zone and its EDU zone,
// as server C.ISI.EDU has both.
func TestRFC1034(t *testing.T) {
	parse := func(origin, text string) *Zone {
		z, _, err := Parse(strings.NewReader(text), "", origin)
		if err != nil {
			t.Fatal(err)
		}
		return z
	}
	root := parse(".", `
$TTL 1d
. SOA SRI-NIC.ARPA. HOSTMASTER.SRI-NIC.ARPA. 870611 1800 300 604800 86400
  NS A.ISI.EDU.
  NS C.ISI.EDU.
  NS SRI-NIC.ARPA.
MIL. NS SRI-NIC.ARPA.
     NS A.ISI.EDU.
EDU. NS SRI-NIC.ARPA.
     NS C.ISI.EDU.
SRI-NIC.ARPA. A 26.0.0.73
              A 10.0.0.51
              MX 0 SRI-NIC.ARPA.
              HINFO DEC-2060 TOPS20
ACC.ARPA. A 26.6.0.65
          HINFO PDP-11/70 UNIX
          MX 10 ACC.ARPA.
USC-ISIC.ARPA. CNAME C.ISI.EDU.
73.0.0.26.IN-ADDR.ARPA. PTR SRI-NIC.ARPA.
A.ISI.EDU. A 26.3.0.103
C.ISI.EDU. A 10.0.0.52
`)
	edu := parse("EDU", `
$TTL 1d
EDU. SOA SRI-NIC.ARPA. HOSTMASTER.SRI-NIC.ARPA. 870729 1800 300 604800 86400
     NS SRI-NIC.ARPA.
     NS C.ISI.EDU.
UCI 172800 NS ICS.UCI
    172800 NS ROME.UCI
ICS.UCI 172800 A 192.5.19.1
ROME.UCI 172800 A 192.5.19.31
ISI 172800 NS VAXA.ISI
    172800 NS A.ISI
    172800 NS VENERA.ISI.EDU.
VAXA.ISI 172800 A 10.2.0.27
VENERA.ISI.EDU. 172800 A 10.1.0.52
A.ISI 172800 A 26.3.0.103
`)
	t.Run("root", func(t *testing.T) {
		ask(t, mustSet(t, []*Zone{root}, nil), []question{
			{"sri-nic.arpa", "A", "hit zone=. node=SRI-NIC.ARPA rrset=A"},            // 6.2.1
			{"sri-nic.arpa", "ANY", "hit zone=. node=SRI-NIC.ARPA rrset=A"},          // 6.2.2
			{"sri-nic.arpa", "MX", "hit zone=. node=SRI-NIC.ARPA rrset=MX"},          // 6.2.3
			{"sri-nic.arpa", "NS", "nodata zone=. node=SRI-NIC.ARPA"},                // 6.2.4
			{"sir-nic.arpa", "A", "name error zone=."},                               // 6.2.5
			{"brl.mil", "A", "referral zone=. node=MIL rrset=NS"},                    // 6.2.6
			{"usc-isic.arpa", "A", "alias zone=. node=USC-ISIC.ARPA rrset=CNAME"},    // 6.2.7
			{"usc-isic.arpa", "CNAME", "hit zone=. node=USC-ISIC.ARPA rrset=CNAME"},  // 6.2.8
			{"usc-isic.arpa", "ANY", "hit zone=. node=USC-ISIC.ARPA rrset=CNAME"},    //
			{".", "NS", "hit zone=. node=. rrset=NS"},                                // the root itself
			{".", "A", "nodata zone=. node=."},                                       //
			{".", "DS", "nodata zone=. node=."},                                      // nothing is above it
			{"com", "A", "name error zone=."},                                        // a single label
			{"edu", "A", "referral zone=. node=EDU rrset=NS"},                        //
			{"edu", "DS", "nodata zone=. node=EDU"},                                  // the parent's side
			{"arpa", "A", "nodata zone=. node=ARPA"},                                 // empty non-terminals
			{"0.0.26.in-addr.arpa", "PTR", "nodata zone=. node=0.0.26.IN-ADDR.ARPA"}, //
		})
	})
	t.Run("root and edu", func(t *testing.T) {
		ask(t, mustSet(t, []*Zone{root, edu}, nil), []question{
			{"edu", "SOA", "hit zone=edu node=EDU rrset=SOA"},
			{"edu", "DS", "nodata zone=. node=EDU"},
			{"c.isi.edu", "A", "referral zone=edu node=ISI.EDU rrset=NS"},
			{"isi.edu", "DS", "nodata zone=edu node=ISI.EDU"},
			{"x.isi.edu", "DS", "referral zone=edu node=ISI.EDU rrset=NS"},
			{"mit.edu", "A", "name error zone=edu"},
			{"mil", "A", "referral zone=. node=MIL rrset=NS"},
		})
	})
	t.Run("edu", func(t *testing.T) {
		ask(t, mustSet(t, []*Zone{edu}, nil), []question{
			{"edu", "DS", "nodata zone=edu node=EDU"},
			{"mil", "A", "not ours"},
			{".", "NS", "not ours"},
			{"xedu", "A", "not ours"},
		})
	})
}

func TestResolve(t *testing.T) {
	parent := mustParse(t, "example.com", `
@ DNSKEY 257 3 8 AAAA
alias CNAME www
*.alias-all CNAME www
Mixed.Case TXT x
both A 192.0.2.1
both AAAA 2001:db8::1
both HTTPS 1 .
child NS ns.child
child DS 1 8 2 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff
ns.child A 192.0.2.54
*.child TXT hidden
other NS ns.child
old DNAME new
old TXT x
x.old A 192.0.2.1
*.wild A 192.0.2.2
a.b.wild A 192.0.2.3
sub.*.wild TXT x
\000\255\.b TXT binary
`)
	child := mustParse(t, "child.example.com", "www A 192.0.2.60\n")
	apexDNAME := mustParse(t, "moved.example", "@ DNAME example.com.\n@ TXT x\n")
	services := map[string]int32{
		"www.example.com": 0, "child.example.com": 1, "*.svc.example.com": 2, "deep.er.example.com": 3,
		"old.example.com": 4, "a.wild.example.com": 5, "x.y.child.example.com": 6, "ent.example.com": 7, "a.ent.example.com": 8,
	}
	s := mustSet(t, []*Zone{child, parent, apexDNAME}, services)
	ask(t, s, []question{
		// aliases
		{"alias.example.com", "A", "alias zone=example.com node=alias.example.com rrset=CNAME"},
		{"alias.example.com", "CNAME", "hit zone=example.com node=alias.example.com rrset=CNAME"},
		{"alias.example.com", "ANY", "hit zone=example.com node=alias.example.com rrset=CNAME"},
		{"x.alias-all.example.com", "A", "alias zone=example.com node=*.alias-all.example.com rrset=CNAME wildcard"},
		{"x.alias-all.example.com", "CNAME", "hit zone=example.com node=*.alias-all.example.com rrset=CNAME wildcard"},
		{"x.alias.example.com", "A", "name error zone=example.com"},
		// types and case
		{"mixed.case.example.com", "TXT", "hit zone=example.com node=Mixed.Case.example.com rrset=TXT"},
		{"case.example.com", "TXT", "nodata zone=example.com node=Case.example.com"},
		{"both.example.com", "HTTPS", "hit zone=example.com node=both.example.com rrset=HTTPS"},
		{"both.example.com", "ANY", "hit zone=example.com node=both.example.com rrset=A"},
		{"both.example.com", "MX", "nodata zone=example.com node=both.example.com"},
		{`\000\255\.b.example.com`, "TXT", `hit zone=example.com node=\000\255\.b.example.com rrset=TXT`},
		{`\000\254\.b.example.com`, "TXT", "name error zone=example.com"},
		{"b.example.com", "TXT", "name error zone=example.com"}, // the dot is in the label
		// cuts, with the child served as well
		{"child.example.com", "NS", "hit zone=child.example.com node=child.example.com rrset=NS"},
		{"child.example.com", "DS", "hit zone=example.com node=child.example.com rrset=DS"},
		{"child.example.com", "DNSKEY", "nodata zone=child.example.com node=child.example.com"},
		{"www.child.example.com", "A", "hit zone=child.example.com node=www.child.example.com rrset=A"},
		{"ns.child.example.com", "A", "hit zone=child.example.com node=ns.child.example.com rrset=A"},
		{"nope.child.example.com", "TXT", "name error zone=child.example.com"}, // *.child is the parent's
		// cuts, with the child elsewhere
		{"other.example.com", "A", "referral zone=example.com node=other.example.com rrset=NS"},
		{"other.example.com", "NS", "referral zone=example.com node=other.example.com rrset=NS"},
		{"other.example.com", "ANY", "referral zone=example.com node=other.example.com rrset=NS"},
		{"other.example.com", "DS", "nodata zone=example.com node=other.example.com"},
		{"a.b.other.example.com", "A", "referral zone=example.com node=other.example.com rrset=NS"},
		{"a.b.other.example.com", "DS", "referral zone=example.com node=other.example.com rrset=NS"},
		// DNAME
		{"old.example.com", "TXT", "hit zone=example.com node=old.example.com rrset=TXT"},
		{"old.example.com", "DNAME", "hit zone=example.com node=old.example.com rrset=DNAME"},
		{"old.example.com", "A", "steered zone=example.com node=old.example.com service=4"},
		{"x.old.example.com", "A", "redirect zone=example.com node=old.example.com rrset=DNAME"},
		{"y.z.old.example.com", "DNAME", "redirect zone=example.com node=old.example.com rrset=DNAME"},
		{"moved.example", "TXT", "hit zone=moved.example node=moved.example rrset=TXT"},
		{"moved.example", "A", "nodata zone=moved.example node=moved.example"},
		{"ns.moved.example", "A", "redirect zone=moved.example node=moved.example rrset=DNAME"},
		{"x.moved.example", "A", "redirect zone=moved.example node=moved.example rrset=DNAME"},
		// wildcards
		{"x.wild.example.com", "A", "hit zone=example.com node=*.wild.example.com rrset=A wildcard"},
		{"x.y.wild.example.com", "A", "hit zone=example.com node=*.wild.example.com rrset=A wildcard"},
		{"wild.example.com", "A", "nodata zone=example.com node=wild.example.com"},
		{"b.wild.example.com", "A", "nodata zone=example.com node=b.wild.example.com"},
		{"x.b.wild.example.com", "A", "name error zone=example.com"},
		{"sub.*.wild.example.com", "TXT", "hit zone=example.com node=sub.*.wild.example.com rrset=TXT"},
		{"sub.x.wild.example.com", "TXT", "nodata zone=example.com node=*.wild.example.com wildcard"},
		// services
		{"www.example.com", "A", "steered zone=example.com node=www.example.com service=0"},
		{"www.example.com", "AAAA", "steered zone=example.com node=www.example.com service=0"},
		{"www.example.com", "TXT", "nodata zone=example.com node=www.example.com"},
		{"www.example.com", "ANY", "nodata zone=example.com node=www.example.com"},
		{"x.www.example.com", "A", "name error zone=example.com"},
		{"child.example.com", "A", "steered zone=child.example.com node=child.example.com service=1"},
		{"child.example.com", "ANY", "hit zone=child.example.com node=child.example.com rrset=NS"},
		{"child.example.com", "SOA", "hit zone=child.example.com node=child.example.com rrset=SOA"},
		{"x.svc.example.com", "A", "steered zone=example.com node=*.svc.example.com service=2 wildcard"},
		{"x.y.svc.example.com", "AAAA", "steered zone=example.com node=*.svc.example.com service=2 wildcard"},
		{"x.svc.example.com", "MX", "nodata zone=example.com node=*.svc.example.com wildcard"},
		{"svc.example.com", "A", "nodata zone=example.com node=svc.example.com"},
		{"deep.er.example.com", "A", "steered zone=example.com node=deep.er.example.com service=3"},
		{"er.example.com", "A", "nodata zone=example.com node=er.example.com"},
		{"x.er.example.com", "A", "name error zone=example.com"},
		{"a.wild.example.com", "A", "steered zone=example.com node=a.wild.example.com service=5"},
		{"a.wild.example.com", "TXT", "nodata zone=example.com node=a.wild.example.com"},
		{"x.a.wild.example.com", "A", "name error zone=example.com"}, // the service blocks the wildcard
		{"y.child.example.com", "A", "nodata zone=child.example.com node=y.child.example.com"},
		{"ent.example.com", "A", "steered zone=example.com node=ent.example.com service=7"},
		{"a.ent.example.com", "A", "steered zone=example.com node=a.ent.example.com service=8"},
		// outside
		{"com", "A", "not ours"},
		{"example.org", "A", "not ours"},
		{"notexample.com", "A", "not ours"},
		{"example.com.net", "A", "not ours"},
	})
}

// TestLongNames resolves names of 255 octets and of 127 labels, there and not there.
func TestLongNames(t *testing.T) {
	many := strings.Repeat("y.", 120) // of 125 labels with the wildcard's and the origin's
	long := strings.Repeat(strings.Repeat("a", 63)+".", 3)
	z := mustParse(t, "example.com", "*."+many+"example.com. TXT deep\n"+long+strings.Repeat("d", 49)+" A 192.0.2.1\n")
	s := mustSet(t, []*Zone{z}, nil)
	for _, tt := range []struct {
		name   string
		octets int
		want   Outcome
	}{
		{long + strings.Repeat("d", 49) + ".example.com", 255, Hit},
		{long + strings.Repeat("e", 49) + ".example.com", 255, NameError},
		{"x." + many + "example.com", 255, NoData},
		{"z." + many + "example.com", 255, NoData},
		{strings.Repeat("z.", 121) + "example.com", 255, NameError},
		{strings.Repeat("z.", 126) + "z", 255, NotOurs},
		{many + "example.com", 253, NoData},
	} {
		name := wire(t, tt.name)
		if len(name) != tt.octets {
			t.Fatalf("%s has %d octets, want %d", tt.name, len(name), tt.octets)
		}
		var r Result
		if s.Resolve(name, dns.TypeA, &r); r.Outcome != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, r.Outcome, tt.want)
		}
	}
}

func TestNode(t *testing.T) {
	parent := mustParse(t, "example.com", `
both A 192.0.2.1
both A 192.0.2.2
both AAAA 2001:db8::1
sub NS ns.sub
ns.sub A 192.0.2.3
child NS ns.child
ns.child A 192.0.2.4
*.wild A 192.0.2.5
old DNAME new
`)
	child := mustParse(t, "child.example.com", "")
	s := mustSet(t, []*Zone{parent, child}, map[string]int32{"www.example.com": 0})
	for _, tt := range []struct {
		name    string
		a, aaaa int
	}{
		{"both.example.com", 2, 1},
		{"BOTH.Example.com", 2, 1},
		{"ns.sub.example.com", 1, 0},   // glue
		{"ns.child.example.com", 1, 0}, // the child's own
		{"x.wild.example.com", 1, 0},   // of the wildcard
		{"x.sub.example.com", 0, 0},    // below a cut
		{"www.example.com", 0, 0},      // steered
		{"x.old.example.com", 0, 0},    // below a DNAME
		{"nope.example.com", 0, 0},
		{"example.org", 0, 0},
		{".", 0, 0},
	} {
		n := s.Node(wire(t, tt.name))
		count := func(rrtype uint16) int {
			if n == nil || n.RRset(rrtype) == nil {
				return 0
			}
			return len(n.RRset(rrtype).RData)
		}
		if a, aaaa := count(dns.TypeA), count(dns.TypeAAAA); a != tt.a || aaaa != tt.aaaa {
			t.Errorf("%s: got %d A and %d AAAA, want %d and %d", tt.name, a, aaaa, tt.a, tt.aaaa)
		}
	}
	if n := s.Node(wire(t, "ns.child.example.com")); n.RRset(dns.TypeA).RData[0][3] != 53 {
		t.Errorf("ns.child.example.com: got the parent's glue %v, want the child's address", n.RRset(dns.TypeA).RData[0])
	}
	if n := s.Node(wire(t, "www.example.com")); n == nil || n.Service != 0 {
		t.Errorf("www.example.com: got %+v, want the node of service 0", n)
	}
}

func TestZone(t *testing.T) {
	z := mustParse(t, "Example.COM", "a.b TXT x\n")
	if got, want := z.Name(), "example.com"; got != want {
		t.Errorf("name: got %q, want %q", got, want)
	}
	if got, want := z.Serial(), uint32(1); got != want {
		t.Errorf("serial: got %d, want %d", got, want)
	}
	if got, want := z.NegTTL, uint32(60); got != want {
		t.Errorf("negative TTL: got %d, want the SOA's MINIMUM, %d", got, want)
	}
	if z.SOA.Type != dns.TypeSOA || z.NS.Type != dns.TypeNS {
		t.Errorf("got SOA %v and NS %v", z.SOA, z.NS)
	}
	if names, sets, rrs := z.Size(); names != 4 || sets != 4 || rrs != 4 { // @ ns b a.b
		t.Errorf("size: got %d names, %d RRsets, %d RRs; want 4 each", names, sets, rrs)
	}
	short, _, err := Parse(strings.NewReader("@ 30 SOA ns h 1 2 3 4 60\n@ 30 NS ns.example.net.\n"), "", "example.com")
	if err != nil || short.NegTTL != 30 {
		t.Errorf("negative TTL: got %d, %v; want the SOA's TTL, 30", short.NegTTL, err)
	}
}

// TestAllocations holds what the path of a query relies on: no outcome allocates.
func TestAllocations(t *testing.T) {
	z := mustParse(t, "example.com", "a A 192.0.2.1\nUPPER A 192.0.2.1\nc CNAME a\nsub NS ns.sub\nns.sub A 192.0.2.1\nold DNAME new\n*.w TXT x\n")
	s := mustSet(t, []*Zone{z, mustParse(t, ".", "")}, map[string]int32{"www.example.com": 0, "*.x.y.example.com": 1})
	for _, name := range []string{
		"a.example.com", "upper.example.com", "c.example.com", "ns.sub.example.com", "x.old.example.com", "x.w.example.com",
		"www.example.com", "a.x.y.example.com", "nope.example.com", "q.r.s.t.u.v.example.com", "org", ".",
	} {
		w := wire(t, name)
		var r Result
		if n := testing.AllocsPerRun(100, func() { s.Resolve(w, dns.TypeA, &r) }); n != 0 {
			t.Errorf("Resolve %s (%v): got %v allocations, want 0", name, r.Outcome, n)
		}
		if n := testing.AllocsPerRun(100, func() { s.Node(w); s.FindZone(w) }); n != 0 {
			t.Errorf("Addresses and FindZone %s: got %v allocations, want 0", name, n)
		}
	}
}
