package zone

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/dns"
)

// taken is what a parser made of an entry: the RR, and what the next entry takes from it.
func (p *parser) taken(c *context) string {
	s := fmt.Sprintf("%d RRs, ttl %d, owner %q, lost %v, %v, %v\n", p.read, c.ttl, ToString(c.owner), c.lost, p.faults, p.warnings)
	for i := range p.builder.records {
		r := &p.builder.records[i]
		s += fmt.Sprintf("%s line %d: %s %d %x\n", ToString(p.builder.nodes[r.node].Owner), r.line, dns.Type(r.rtype), r.ttl, r.rdata)
	}
	return s
}

// checkPlain reads an entry by plain and, if that takes it, by rrs, and wants the same of both.
func checkPlain(t *testing.T, text []byte, origin string, explicit bool) (took bool) {
	t.Helper()
	base, err := FromString(origin)
	if err != nil {
		return false
	}
	owner, _ := FromString("last." + origin)
	wire := wires.Get().(*[wireSize]byte)
	defer wires.Put(wire)
	var got [2]string
	for i, way := range [...]string{"plain", "rrs"} {
		rep := new(report)
		p := &parser{report: rep, limits: defaultLimits, builder: newBuilder(rep, []byte("\x07example\x03com\x00")), included: map[string]fs.FileInfo{}, wire: wire[:]}
		c := &context{origin: dns.Fqdn(origin), base: base, owner: owner, ttl: 300, explicit: explicit}
		switch {
		case way == "plain":
			if took = p.plain(text, "f", 7, c); !took {
				if p.read+len(p.builder.records)+len(p.faults)+len(p.warnings) > 0 || c.ttl != 300 || !bytes.Equal(c.owner, owner) {
					t.Errorf("%q was left alone, and yet: %s", text, p.taken(c))
				}
				return false
			}
		case isBlank(text[0]):
			p.rrs("f", 7, c, 0, []byte(dns.Fqdn(ToString(owner))), text)
		default:
			p.rrs("f", 7, c, 0, text)
		}
		got[i] = p.taken(c)
	}
	if got[0] != got[1] {
		t.Errorf("%q\ngot %swant %s", text, got[0], got[1])
	}
	return true
}

func TestPlain(t *testing.T) {
	for _, tt := range []struct {
		text string
		want bool // taken
	}{
		{"www A 192.0.2.1\n", true},
		{"www\t300 IN A 192.0.2.1 ; why\r\n", true},
		{"WWW in 4294 a 192.0.2.1;why", true},
		{" AAAA 2001:db8::192.0.2.1\n", true},
		{"www.example.com. NS @\n", true},
		{"@ 0 MX 10 mail.example.net.\n", true},
		{"* DNAME .\n", true},
		{"_sip._tcp SRV 0 65535 5060 a@b\n", true},
		{"t TXT \"one; (two)\" three \"\x80\"\n", true},
		{"10 PTR x\n", true},
		{"example.org. A 192.0.2.1\n", true}, // outside the zone
		{"www A 192.0.2.256\n", false},
		{"www A 192.0.02.1\n", false},
		{"www A 192.0.2\n", false},
		{"www A 192.0.2.1.\n", false},
		{"www A 192.0.2.1 x\n", false},
		{"www A ( 192.0.2.1 )\n", false},
		{"www A\n", false},
		{"www A \\# 4 c0000201\n", false},
		{"www AAAA fe80::1%1\n", false},
		{"www AAAA 192.0.2.1\n", false},
		{"w\\119w A 192.0.2.1\n", false},
		{"www..x A 192.0.2.1\n", false},
		{".www A 192.0.2.1\n", false},
		{"www 1h A 192.0.2.1\n", false},
		{"www 2147483648 A 192.0.2.1\n", false},
		{"www 1 2 A 192.0.2.1\n", false},
		{"www IN IN A 192.0.2.1\n", false},
		{"www CH A 192.0.2.1\n", false},
		{"www MX mail\n", false},
		{"www MX 65536 mail\n", false},
		{"t TXT \"a\\\"b\"\n", false},
		{"t TXT \"\"\n", false},
		{"t TXT \"a\"b\n", false},
		{"t TXT\n", false},
		{"www CAA 0 issue \"ca\"\n", false},
		{"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa A 192.0.2.1\n", false},
	} {
		if took := checkPlain(t, []byte(tt.text), "example.com", true); took != tt.want {
			t.Errorf("%q: taken: %v, want %v", tt.text, took, tt.want)
		}
	}
}

// FuzzPlain holds that plain means what rrs means, and does nothing when it leaves an entry to it.
func FuzzPlain(f *testing.F) {
	files, err := filepath.Glob(zones + "/checks/*.zone")
	if err != nil || len(files) == 0 {
		f.Fatal("no zones for seeds", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, "example.com", true)
	}
	f.Add([]byte("\t300 IN TXT \"a;b\" c ;d\r\n10 SRV 1 2 3 @\n"), "sub.example.com.", false)
	f.Add([]byte("@ MX 1 a\nb NS .\n"), ".", false)
	f.Fuzz(func(t *testing.T, text []byte, origin string, explicit bool) {
		var e splitter
		sc := bufio.NewScanner(bytes.NewReader(text))
		sc.Split(e.split)
		for sc.Scan() {
			if entry := sc.Bytes(); len(entry) > 0 && len(bytes.TrimSpace(entry)) > 0 && entry[0] != '$' && e.open == 0 {
				checkPlain(t, entry, origin, explicit)
			}
		}
	})
}
