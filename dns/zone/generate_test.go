package zone

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// generates are $GENERATE entries of the zone example.com and the RRs that they make, or why they are
// refused; and where BIND says otherwise, why that is.
var generates = []struct{ line, want, differs string }{
	{"1-2 a$ A 192.0.2.$", "a1 A 192.0.2.1, a2 A 192.0.2.2", ""},
	{"0-255/100 $ PTR h$.example.net.", "0 PTR h0.example.net., 100 PTR h100.example.net., 200 PTR h200.example.net.", ""},
	{"1-2/5 a$ A 192.0.2.$", "a1 A 192.0.2.1", ""},
	{"01-+2/01 a$ A 192.0.2.$", "a1 A 192.0.2.1, a2 A 192.0.2.2", ""},
	{"2147483646-2147483647 a$ TXT x", `a2147483646 TXT "x", a2147483647 TXT "x"`, ""},
	{"1-1 @ MX \"10 m$\"", "@ MX 10 m1.example.com.", ""},
	{"1-1 *.a$ A 192.0.2.$", "*.a1 A 192.0.2.1", ""},
	{"1-1 a$.example.org. A 192.0.2.1", "", ""}, // out of the zone: a warning

	{"1-1 a$ 60 A 192.0.2.1", "a1 60 A 192.0.2.1", ""},
	{"1-1 a$ 1h IN A 192.0.2.1", "a1 3600 A 192.0.2.1", ""},
	{"1-1 a$ in 60 a 192.0.2.1 ; comment", "a1 60 A 192.0.2.1", ""},
	{"1-1 a$ 60 IN 60 A 192.0.2.1", "refused: 60", ""},
	{"1-1 a$ IN IN A 192.0.2.1", "refused: IN", ""},
	{"1-1 a$ CH A 192.0.2.1", "refused: expected IN", ""},
	{"1-1 a$ 4294967296 A 192.0.2.1", "refused: 4294967296", ""},
	{"1-1 a$ NOPE 192.0.2.1", "refused: NOPE", ""},
	{"1-1 a$ AXFR x", "refused: ", ""},
	{"1-1 a$ TYPE65280 \"\\# 1 0$\"", "a1 TYPE65280 \\# 1 01", ""},

	{"1-1 a$ TXT \"x $\"", `a1 TXT "x" "1"`, ""},
	{"1-1 a$ TXT \"\\\"x $\\\" y\"", `a1 TXT "x 1" "y"`, ""},
	{"1-1 a$ TXT \"x;$\"", `a1 TXT "x"`, ""}, // what the quotes held is read as if it stood in the zone
	{"1-1 a$ TXT \"\"", "refused: rdata", ""},
	{"1-1 a$ TXT x\\065$", `a1 TXT "xA1"`, ""},
	{"1-1 a$ TXT x\\99$", `refused: escape "\\991"`, ""},
	{"1-1 a$ MX 10 m$", "a1 MX 10 m1.example.com.", "it wants quotes around rdata of several words"},
	{"1-1 a$ TXT \"x $\" \"y\"", `a1 TXT "x 1" "y"`, "it wants quotes around rdata of several words"},
	{"1-1 a$ TXT ( x )", `a1 TXT "x"`, "it wants quotes around rdata of several words"},
	{"1-1 a$ TXT x )", "refused: parenthesis", ""},
	{"1-1 \"a$\" TXT x", "refused: ", ""},

	{"1-1 a$$ TXT $$", `a$ TXT "$"`, ""},
	{"1-1 a\\$$ TXT \\$$", `a$1 TXT "$1"`, ""},
	{"1-1 $$TTL TXT \\\\$", `$TTL TXT "\\1"`, ""},
	{"1-1 a{$} TXT }$", `a{1} TXT "}1"`, ""},
	{"1-1 a$$$ TXT $-$", `a$1 TXT "1-1"`, ""},

	{"1-1 a${0} TXT \"${1} ${-1} ${-3}\"", `a1 TXT "2" "0" "-2"`, ""},
	{"9-9 a${1,4} TXT \"${+1,+2} ${-12,4}\"", `a0010 TXT "10" "-003"`, ""},
	{"10-10 a${0,4,d} TXT \"${0,0,o} ${0,4,o} ${0,4,x} ${0,4,X}\"", `a0010 TXT "12" "0012" "000a" "000A"`, ""},
	{"1-1 a TXT \"${-2,0,x} ${-2,0,o}\"", `a TXT "ffffffff" "37777777777"`, ""},
	{"256-256 a${0,0,n} TXT \"${2,0,N} ${11,1,N} ${11,4,n} ${11,5,n} ${11,6,n} ${11,7,n}\"", `a0.0.1 TXT "2.0.1" "B.0.1" "b.0.1" "b.0.1" "b.0.1." "b.0.1.0"`, ""},
	{"1-1 a${0,8,n} TXT x", "", ""}, // a dot at the end: out of the zone
	{"18-18 ${0,7,n} PTR h${0,3,d}.example.net.", "2.1.0.0 PTR h018.example.net.", ""},
	{"1-1 ${0,63} TXT x", strings.Repeat("0", 62) + `1 TXT "x"`, ""},
	{"1-1 ${0,64} TXT x", "refused: ", ""},
	{"1-1 a TXT ${0,127}", `a TXT "` + strings.Repeat("0", 126) + `1"`, ""},
	{"1-1 a TXT ${0,128}", "refused: expected a width of 0 to 127", ""},
	{"1-1 a${0,-1} TXT x", "refused: expected a width", ""},
	{"1-1 a${0,} TXT x", "refused: expected a width", ""},
	{"1-1 a${0,,d} TXT x", "refused: expected a width", ""},
	{"1-1 a${0,4,} TXT x", "refused: expected ${OFFSET}", ""},
	{"1-1 a${,4} TXT x", "refused: expected ${OFFSET}", ""},
	{"1-1 a${} TXT x", "refused: expected ${OFFSET}", ""},
	{"1-1 a${0x1} TXT x", "refused: expected ${OFFSET}", ""},
	{"1-1 a${0,1,b} TXT x", "refused: expected ${OFFSET}", ""},
	{"1-1 a${0,1,dd} TXT x", "refused: expected ${OFFSET}", ""},
	{"1-1 a${0,1,d,1} TXT x", "refused: expected ${OFFSET}", ""},
	{"1-1 a${0 TXT x", "refused: closing brace", ""},
	{"1-1 a${2147483647} TXT x", "refused: 2147483648 is over 2^31-1", ""},

	{"1-2147483648 a$ TXT x", "refused: range", ""},
	{"1 a$ TXT x", "refused: range", ""},
	{"2-1 a$ TXT x", "refused: range", ""},
	{"-1-1 a$ TXT x", "refused: range", ""},
	{"1--1 a$ TXT x", "refused: range", ""},
	{"1-2/0 a$ TXT x", "refused: range", ""},
	{"1-2/ a$ TXT x", "refused: range", ""},
	{"1-2/-1 a$ TXT x", "refused: range", ""},
	{"0x1-2 a$ TXT x", "refused: range", ""},
	{"1-2x a$ TXT x", "refused: range", "it does not read what follows a number"},
	{"1-2/1/1 a$ TXT x", "refused: range", "it does not read what follows a number"},
	{"1-1 a$ TXT", "refused: expected a range, an owner name, a type and its rdata", ""},
	{"1-1 a$ IN TXT", "refused: expected a range, an owner name, a type and its rdata", ""},
	{"1-1", "refused: expected a range, an owner name, a type and its rdata", ""},
	{"", "refused: expected a range, an owner name, a type and its rdata", ""},
}

// generateHead makes a zone of one $GENERATE.
const generateHead = "$TTL 300\n@ SOA ns1.example.net. hostmaster 1 2h 15m 2w 5m\n@ NS ns1.example.net.\n"

// TestGenerate compares what each $GENERATE makes with what is wanted.
func TestGenerate(t *testing.T) {
	for _, tt := range generates {
		z, _, err := Parse(strings.NewReader(generateHead+"$GENERATE "+tt.line+"\n"), "", "example.com")
		if reason, refused := strings.CutPrefix(tt.want, "refused: "); refused {
			if err == nil || !strings.HasPrefix(err.Error(), "line 4: ") || !strings.Contains(err.Error(), reason) {
				t.Errorf("%s: got %v, want a fault of line 4 with %q", tt.line, err, reason)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: got %v, want %s", tt.line, err, tt.want)
			continue
		}
		got := rrsOf(t, z)[2:] // after SOA and NS
		var want []string
		for rr := range strings.SplitSeq(tt.want, ", ") {
			if rr != "" {
				want = append(want, rr)
			}
		}
		short := strings.NewReplacer(".example.com. ", " ", "example.com. ", "@ ", "300 IN ", "", " IN ", " ", "300 CLASS1 ", "", `\$`, "$")
		for i, rr := range got {
			got[i] = short.Replace(rr)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", tt.line, got, want)
		}
	}
}

// TestGenerateNamed compares the same with named-checkzone.
func TestGenerateNamed(t *testing.T) {
	named := need(t, "named-checkzone")
	file := filepath.Join(t.TempDir(), "zone")
	for _, tt := range generates {
		text := generateHead + "$GENERATE " + tt.line + "\n"
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		z, _, err := Parse(strings.NewReader(text), "", "example.com")
		out, namedErr := exec.Command(named, "-q", "-D", "-k", "ignore", "-o", "-", "example.com", file).Output()
		if exit := new(exec.ExitError); namedErr != nil && !errors.As(namedErr, &exit) {
			t.Fatal(namedErr)
		}
		if differs := (err == nil) != (namedErr == nil); differs != (tt.differs != "") {
			t.Errorf("%s: got %v, named-checkzone: %v; differs on purpose: %q", tt.line, err, namedErr, tt.differs)
			continue
		}
		if err != nil || namedErr != nil {
			continue
		}
		got, want := canonicalRRs(t, strings.Join(rrsOf(t, z), "\n")), canonicalRRs(t, string(out))
		if !slices.Equal(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.line, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}
