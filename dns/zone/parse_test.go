package zone

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

var update = flag.Bool("update", false, "rewrite what the zones in testdata/zones/checks expect")

const zones = "../../testdata/zones"

// need skips a test that needs a program which is not installed; with REQUIRE_ALL=1 that fails.
func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if path, err = exec.LookPath("/usr/sbin/" + program); err == nil {
		return path
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatalf("%s is not installed", program)
	}
	t.Skipf("%s is not installed", program)
	return ""
}

// verdict returns what Parse says of a zone, as the zones in testdata/zones/checks have it:
// a line for each fault and warning, in order of their lines.
func verdict(warnings []Warning, err error) string {
	var list []*Fault
	for _, w := range warnings {
		list = append(list, &Fault{w.File, w.Line, "warning: " + w.Reason})
	}
	if err != nil {
		for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
			f := *e.(*Fault)
			f.Reason = "fault: " + f.Reason
			list = append(list, &f)
		}
	}
	slices.SortStableFunc(list, func(a, b *Fault) int { return a.Line - b.Line })
	var b strings.Builder
	for _, f := range list {
		fmt.Fprintf(&b, ";! %s\n", strings.ReplaceAll(f.Error(), zones+"/checks/", ""))
	}
	if err == nil {
		fmt.Fprintf(&b, ";! loads\n")
	} else {
		fmt.Fprintf(&b, ";! refused\n")
	}
	return b.String()
}

// rrsOf returns the RRs of z in presentation form.
func rrsOf(t *testing.T, z *Zone) []string {
	t.Helper()
	var list []string
	for n := range z.All() {
		for _, set := range n.RRsets {
			for _, rdata := range set.RData {
				h := dns.RR_Header{Name: dns.Fqdn(ToString(n.Owner)), Rrtype: set.Type, Class: dns.ClassINET, Ttl: set.TTL, Rdlength: uint16(len(rdata))}
				rr, _, err := dns.UnpackRRWithHeader(h, rdata, 0)
				if err != nil {
					t.Fatalf("%s: %v", h.Name, err)
				}
				list = append(list, strings.ReplaceAll(rr.String(), "\t", " "))
			}
		}
	}
	return list
}

// TestChecks reads each zone of testdata/zones/checks and compares every fault and warning
// with those written at its end, and so the RRs of those that load.
func TestChecks(t *testing.T) {
	files, err := filepath.Glob(zones + "/checks/*.zone")
	if err != nil || len(files) == 0 {
		t.Fatal("no zones to check", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".zone"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			z, warnings, err := Parse(bytes.NewReader(text), file, "example.com")
			if (z == nil) != (err != nil) {
				t.Errorf("zone is nil: %v, error: %v; want exactly one of them", z == nil, err)
			}
			var body, want strings.Builder
			for line := range strings.Lines(string(text)) {
				if strings.HasPrefix(line, ";! ") && !strings.Contains(line, " differs: ") {
					want.WriteString(line)
				} else {
					body.WriteString(line)
				}
			}
			got := verdict(warnings, err)
			if z != nil {
				for _, rr := range rrsOf(t, z) {
					got += ";! " + rr + "\n"
				}
			}
			if got == want.String() {
				return
			}
			if !*update {
				t.Errorf("got\n%swant\n%s", got, &want)
				return
			}
			if err := os.WriteFile(file, []byte(body.String()+got), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// eachZone runs a test of each zone of testdata/zones, sound or not, with its text.
func eachZone(t *testing.T, test func(t *testing.T, file string, text []byte)) {
	t.Helper()
	files, err := filepath.Glob(zones + "/checks/*.zone")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, zones+"/example.com.zone") {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".zone"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			test(t, file, text)
		})
	}
}

// TestNamedCheckzone compares the verdict on each zone of testdata/zones with that of BIND's
// named-checkzone, and the RRs of those that load. Where they differ on purpose, the zone
// says why.
func TestNamedCheckzone(t *testing.T) {
	named := need(t, "named-checkzone")
	eachZone(t, func(t *testing.T, file string, text []byte) {
		z, _, err := Parse(bytes.NewReader(text), file, "example.com")
		cmd := exec.Command(named, "-q", "-D", "-o", "-", "example.com", filepath.Base(file))
		cmd.Dir = filepath.Dir(file)
		out, namedErr := cmd.Output()
		if exit := new(exec.ExitError); namedErr != nil && !errors.As(namedErr, &exit) {
			t.Fatal(namedErr)
		}
		differs := bytes.Contains(text, []byte("\n;! named-checkzone differs: "))
		if differs != ((err == nil) != (namedErr == nil)) {
			t.Errorf("differs on purpose: %v; here: %v; named-checkzone: %v\n%s", differs, err, namedErr, out)
		}
		if err != nil || namedErr != nil {
			return
		}
		got := canonicalRRs(t, strings.Join(rrsOf(t, z), "\n"))
		want := canonicalRRs(t, string(out))
		if bytes.Contains(text, []byte("(RFC 2181, section 5.2)")) {
			got, want = withoutTTL(got), withoutTTL(want) // BIND takes the first, we the lowest
		}
		if !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestKzonecheck compares the verdict on each zone of testdata/zones with that of Knot's kzonecheck,
// which tells no warnings from faults: what it finds is one of them here, and what is a fault here it
// finds. Where they differ on purpose, the zone says why. A zone that loads is checked without
// $GENERATE, which kzonecheck does not know.
func TestKzonecheck(t *testing.T) {
	kzonecheck := need(t, "kzonecheck")
	eachZone(t, func(t *testing.T, file string, text []byte) {
		z, warnings, err := Parse(bytes.NewReader(text), file, "example.com")
		checked := filepath.Join(t.TempDir(), "zone")
		body := string(text)
		if z != nil {
			body = "\n" + strings.Join(rrsOf(t, z), "\n") + "\n"
			body = strings.NewReplacer("\n$", "\n\\$", " CLASS1 ", " IN ").Replace(body) // as Knot reads them
		}
		if err := os.WriteFile(checked, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
		out, knotErr := exec.Command(kzonecheck, "-v", "-o", "example.com", checked).CombinedOutput()
		if exit := new(exec.ExitError); knotErr != nil && !errors.As(knotErr, &exit) {
			t.Fatal(knotErr)
		}
		agree := knotErr == nil && err == nil || knotErr != nil && (err != nil || len(warnings) > 0)
		if differs := bytes.Contains(text, []byte("\n;! kzonecheck differs: ")); differs == agree {
			t.Errorf("differs on purpose: %v; here: %v, %v; kzonecheck: %v\n%s", differs, err, warnings, knotErr, out)
		}
	})
}

// canonicalRRs reads RRs as dns.ZoneParser alone does and returns them in presentation form,
// names in lower case, sorted.
func canonicalRRs(t *testing.T, text string) []string {
	t.Helper()
	var list []string
	zp := dns.NewZoneParser(strings.NewReader(text), ".", "")
	for rr, ok := zp.Next(); ok; rr, ok = zp.Next() {
		list = append(list, strings.ReplaceAll(strings.ToLower(rr.String()), `\$`, "$")) // which BIND escapes
	}
	if err := zp.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// withoutTTL drops the second field of each.
func withoutTTL(list []string) []string {
	for i, s := range list {
		f := strings.SplitN(s, "\t", 3)
		list[i] = f[0] + "\t" + f[2]
	}
	return list
}

// TestOwnerAloneAtEnd: the zones in testdata/zones/checks all end with a line's end, and this needs none.
func TestOwnerAloneAtEnd(t *testing.T) {
	for _, last := range []string{"ns", "mx", "a"} {
		text := "@ 60 SOA ns h 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n" + last
		_, _, err := parse(strings.NewReader(text), "", "example.com", limits{entry: 4096, rrs: 1000})
		if err == nil || !strings.Contains(err.Error(), "4: expected rdata: end of line") {
			t.Errorf("%q at the end: got %v, want a fault in line 4", last, err)
		}
	}
}
