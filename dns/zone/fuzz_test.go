package zone

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/dns"
)

// FuzzParse reads anything as a zone. What loads holds together: every RR is found again at
// its name, or is hidden by a cut or a DNAME.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob(zones + "/*/*.zone")
	if err != nil || len(files) == 0 {
		f.Fatal("no zones for seeds", err)
	}
	for _, file := range append(files, zones+"/example.com.zone") {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, "example.com")
	}
	f.Add([]byte("@ 1 SOA . . 1 2 3 4 5\nns"), "example.com")
	f.Add([]byte(". 1 SOA . . 1 2 3 4 5\n. NS .\ncom NS .\n"), ".")
	f.Fuzz(func(t *testing.T, text []byte, origin string) {
		z, warnings, err := parse(bytes.NewReader(text), "", origin, limits{entry: 4096, rrs: 1000, include: 2, files: 10})
		if (z == nil) != (err != nil) {
			t.Fatalf("zone is nil: %v, error: %v; want exactly one of them", z == nil, err)
		}
		if len(warnings) > maxReported+1 {
			t.Fatalf("got %d warnings, want at most %d", len(warnings), maxReported+1)
		}
		if err != nil {
			if n := len(err.(interface{ Unwrap() []error }).Unwrap()); n > maxReported+1 {
				t.Fatalf("got %d faults, want at most %d", n, maxReported+1)
			}
			return
		}
		set, err := NewSet([]*Zone{z}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for n := range z.All() {
			name := AppendLower(nil, n.Owner)
			for i := range n.RRsets {
				rrset := &n.RRsets[i]
				var r Result
				set.Resolve(name, rrset.Type, &r)
				if r.Zone != z || r.Wildcard || n.cut < 0 && (r.Outcome != Hit || r.RRset != rrset) {
					t.Fatalf("%s %s: got %s", ToString(name), dns.Type(rrset.Type), describe(&r))
				}
				for _, rdata := range rrset.RData {
					h := dns.RR_Header{Name: ".", Rrtype: rrset.Type, Class: dns.ClassINET, Rdlength: uint16(len(rdata))}
					if _, _, err := dns.UnpackRRWithHeader(h, rdata, 0); err != nil {
						t.Fatalf("%s %s: rdata %x: %v", ToString(name), dns.Type(rrset.Type), rdata, err)
					}
				}
			}
			if len(name) <= MaxName-2 {
				var r Result
				set.Resolve(append([]byte{1, 0}, name...), dns.TypeA, &r)
				if r.Outcome == NotOurs {
					t.Fatalf("below %s: not ours", ToString(name))
				}
			}
			set.Node(name)
		}
	})
}

// FuzzNames holds that a name survives the way through its presentation form.
func FuzzNames(f *testing.F) {
	f.Add(`a\.b\000.example.com.`)
	f.Add(".")
	f.Add(`\\\@.`)
	f.Fuzz(func(t *testing.T, text string) {
		name, err := FromString(text)
		if err != nil {
			return
		}
		if len(name) < 1 || len(name) > MaxName || nameLen(name) != len(name) {
			t.Fatalf("FromString(%q): got %q, no name", text, name)
		}
		if again, err := FromString(ToString(name)); err != nil || !bytes.Equal(again, name) {
			t.Fatalf("%q: got %q, %v back, want %q", text, again, err, name)
		}
	})
}
