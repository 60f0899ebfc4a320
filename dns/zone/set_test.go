package zone

import (
	"os"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestNewSetFaults(t *testing.T) {
	z := mustParse(t, "example.com", `
a A 192.0.2.1
aaaa AAAA 2001:db8::1
Alias CNAME a
sub NS ns.sub
ns.sub A 192.0.2.2
old DNAME new
`)
	_, err := NewSet([]*Zone{z}, map[string]int32{
		"a.example.com": 0, "aaaa.example.com": 1, "alias.example.com": 2, "sub.example.com": 3, "ns.sub.example.com": 4,
		"x.sub.example.com": 5, "x.old.example.com": 6, "example.org": 7, "..": 8, "": 9, "fine.example.com": 10,
		"example.com": 11, "old.example.com": 12,
	})
	if err == nil {
		t.Fatal("got no error")
	}
	want := `service name "": empty, expected a domain name
service name "..": expected labels of 1..63 octets and at most 255 octets in all
service a.example.com: zone example.com has A at a.example.com: a name is steered or static
service aaaa.example.com: zone example.com has AAAA at aaaa.example.com: a name is steered or static
service alias.example.com: zone example.com has CNAME at Alias.example.com: a name is steered or static
service example.org: in no zone that is served
service ns.sub.example.com: zone example.com ends at the zone cut sub.example.com
service sub.example.com: zone example.com ends at the zone cut sub.example.com
service x.old.example.com: zone example.com ends at the DNAME old.example.com
service x.sub.example.com: zone example.com ends at the zone cut sub.example.com`
	if got := err.Error(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	_, err = NewSet([]*Zone{z, mustParse(t, "EXAMPLE.com", ""), mustParse(t, "example.org", "")}, nil)
	if want := "zone example.com: there are two of that name"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestEmptySet(t *testing.T) {
	s := mustSet(t, nil, nil)
	var r Result
	if s.Resolve([]byte{0}, dns.TypeA, &r); r.Outcome != NotOurs || len(s.Zones()) != 0 {
		t.Errorf("got %v and %d zones, want not ours and none", r.Outcome, len(s.Zones()))
	}
}

// TestWithServices sees that the old set stays as it was, and that no zone is copied.
func TestWithServices(t *testing.T) {
	z := mustParse(t, "example.com", "www TXT x\n")
	before := mustSet(t, []*Zone{z}, map[string]int32{"www.example.com": 0})
	after, err := before.WithServices(map[string]int32{"new.example.com": 0})
	if err != nil {
		t.Fatal(err)
	}
	ask(t, before, []question{
		{"www.example.com", "A", "steered zone=example.com node=www.example.com service=0"},
		{"new.example.com", "A", "name error zone=example.com"},
	})
	ask(t, after, []question{
		{"www.example.com", "A", "nodata zone=example.com node=www.example.com"},
		{"new.example.com", "A", "steered zone=example.com node=new.example.com service=0"},
	})
	if before.Zones()[0] != z || after.Zones()[0] != z || after.FindZone(wire(t, "x.example.com")) != z {
		t.Error("got another zone, want the same")
	}
	if _, err := before.WithServices(map[string]int32{"example.org": 0}); err == nil {
		t.Error("a service outside every zone: got no error")
	}
}

func TestFindZone(t *testing.T) {
	s := mustSet(t, []*Zone{mustParse(t, "example.com", ""), mustParse(t, "a.b.example.com", ""), mustParse(t, "net", "")}, nil)
	for name, want := range map[string]string{
		"example.com": "example.com", "x.example.com": "example.com", "b.example.com": "example.com", "a.b.example.com": "a.b.example.com",
		"x.a.b.example.com": "a.b.example.com", "x.net": "net", "com": "", ".": "",
	} {
		got := ""
		if z := s.FindZone(wire(t, name)); z != nil {
			got = z.Name()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// TestExample reads the zone that the example configuration has.
func TestExample(t *testing.T) {
	f, err := os.Open(zones + "/example.com.zone")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, warnings, err := Parse(f, f.Name(), "example.com")
	if err != nil || len(warnings) > 0 {
		t.Fatalf("got %v, warnings %v; want neither", err, warnings)
	}
	ask(t, mustSet(t, []*Zone{z}, map[string]int32{"www.example.com": 0}), []question{
		{"www.example.com", "A", "steered zone=example.com node=www.example.com service=0"},
		{"shop.example.com", "A", "alias zone=example.com node=shop.example.com rrset=CNAME"},
		{"x.lab.example.com", "A", "referral zone=example.com node=lab.example.com rrset=NS"},
		{"host3.example.com", "A", "hit zone=example.com node=host3.example.com rrset=A"},
		{"any.pages.example.com", "A", "hit zone=example.com node=*.pages.example.com rrset=A wildcard"},
		{"a.old.example.com", "TXT", "redirect zone=example.com node=old.example.com rrset=DNAME"},
	})
}

func TestNames(t *testing.T) {
	for _, tt := range []struct{ text, wire, back string }{
		{".", "\x00", "."},
		{"com", "\x03com\x00", "com"},
		{"Example.COM.", "\x07Example\x03COM\x00", "Example.COM"},
		{`a\.b.c`, "\x03a.b\x01c\x00", `a\.b.c`},
		{`\000\255\032\\`, "\x04\x00\xff \\\x00", `\000\255\ \\`},
		{`\@x`, "\x02@x\x00", `\@x`},
	} {
		got, err := FromString(tt.text)
		if err != nil || string(got) != tt.wire {
			t.Errorf("FromString(%q): got %q, %v; want %q", tt.text, got, err, tt.wire)
		}
		if back := ToString(got); back != tt.back {
			t.Errorf("ToString(%q): got %q, want %q", got, back, tt.back)
		}
	}
	for _, text := range []string{"", "..", ".a", "a..b", strings.Repeat("a", 64), strings.Repeat("a.", 128)} {
		if got, err := FromString(text); err == nil {
			t.Errorf("FromString(%q): got %q, want an error", text, got)
		}
	}
	if got, want := string(AppendLower([]byte("A"), []byte("\x03WwW\x02\xc0Z\x00"))), "A\x03www\x02\xc0z\x00"; got != want {
		t.Errorf("AppendLower: got %q, want %q", got, want)
	}
	if got, want := ToString([]byte("\x05abc")), "0x05616263"; got != want {
		t.Errorf("ToString of what is no name: got %q, want %q", got, want)
	}
}
