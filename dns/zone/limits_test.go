package zone

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
)

// TestLimits meets each bound of a zone, and sees that what is just inside it is read.
func TestLimits(t *testing.T) {
	const head = "$TTL 300\n@ SOA ns1.example.net. hostmaster 1 2h 15m 2w 5m\n@ NS ns1.example.net.\n" // three lines, two RRs
	lim := limits{entry: 200, rrs: 10, include: 2, files: 3}
	dir := t.TempDir()
	for name, text := range map[string]string{"empty": "", "deep1": "$INCLUDE deep2\n", "deep2": "$INCLUDE empty\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "zone")
	for _, tt := range []struct{ name, text, want string }{
		{"rrs", "$GENERATE 1-8 a$ A 192.0.2.1\n", ""},
		{"too many rrs", "a A 192.0.2.1\n$GENERATE 1-60000 a$ A 192.0.2.1\nb A 192.0.2\n", "zone:5: more than 10 RRs"},
		{"too many rrs outside", "$GENERATE 1-60000 a$.example.org. A 192.0.2.1\n", "zone:4: more than 10 RRs"},
		{"entry", "a TXT ( " + strings.Repeat("x ", 90) + "\n)\n", ""},
		{"entry too long", "a TXT ( " + strings.Repeat("x ", 100) + "\n)\n", "zone:4: an entry of more than 200 octets; is a parenthesis left open?"},
		{"include", "$INCLUDE deep2\n$INCLUDE empty\n", ""},
		{"include too deep", "$INCLUDE deep1\n", dir + "/deep2:1: $INCLUDE \"empty\": more than 2 files deep"},
		{"too many files", strings.Repeat("$INCLUDE empty\n", 4), "zone:7: $INCLUDE \"empty\": more than 3 files in all"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := parse(strings.NewReader(head+tt.text), file, "example.com", lim)
			want := tt.want
			if strings.HasPrefix(want, "zone:") {
				want = dir + "/" + want
			}
			if got := fmt.Sprint(err); got != want && !(err == nil && want == "") {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
	t.Run("faults", func(t *testing.T) {
		_, warnings, err := Parse(strings.NewReader(head+strings.Repeat("x.org. A 192.0.2.1\na A 192.0.2\n", 500)), "", "example.com")
		if n := len(err.(interface{ Unwrap() []error }).Unwrap()); n != maxReported+1 || len(warnings) > maxReported+1 {
			t.Errorf("got %d faults and %d warnings, want %d and no more than that", n, len(warnings), maxReported+1)
		}
	})
	t.Run("generate too much", func(t *testing.T) {
		_, _, err := Parse(strings.NewReader(head+"$GENERATE 0-2147483647 a$ A 192.0.2.1\n"), "", "example.com")
		if want := `line 4: $GENERATE: range "0-2147483647" of 2147483648 numbers: expected at most 1048576`; fmt.Sprint(err) != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})
	t.Run("generate", func(t *testing.T) {
		_, _, err := Parse(strings.NewReader(head+"$GENERATE 1-2 a$ TXT "+strings.Repeat("x ", maxGenerate/2)+"\n"), "", "example.com")
		if err == nil || !strings.HasPrefix(err.Error(), "line 4: $GENERATE: expected") {
			t.Errorf("got %v, want a fault in line 4", err)
		}
	})
}

// TestUnreadable sees that what the reader says is told, with the line.
func TestUnreadable(t *testing.T) {
	broken := errors.New("the disk is gone")
	r := io.MultiReader(strings.NewReader("$TTL 300\n@ NS ns\n"), iotest.ErrReader(broken))
	_, _, err := Parse(r, "x.zone", "example.com")
	if want := "x.zone:3: the disk is gone"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s among the faults", err, want)
	}
	_, _, err = Parse(strings.NewReader(""), "x.zone", "a..b")
	if want := `x.zone: zone's name "a..b": expected labels of 1..63 octets and at most 255 octets in all`; fmt.Sprint(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestIncludeLinks sees that a symbolic link does not lead out of the folder, and that a zone
// without a file includes nothing.
func TestIncludeLinks(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("a A 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	const text = "$TTL 300\n@ SOA ns.invalid. h 1 2 3 4 5\n@ NS ns.invalid.\n$INCLUDE link\n"
	for file, want := range map[string]string{
		filepath.Join(dir, "zone"): dir + "/zone:4: $INCLUDE \"link\": path escapes from parent; expected a file in " + dir,
		"":                         `line 4: $INCLUDE "link": a zone that is not a file has no folder to include from`,
	} {
		_, _, err := Parse(strings.NewReader(text), file, "example.com")
		if got := fmt.Sprint(err); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// TestPipes sees that nobody waits for somebody to write into what is no file.
func TestPipes(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{pipe, dir} {
		if _, err := ReadFile(file); fmt.Sprint(err) != file+": expected a regular file" {
			t.Errorf("ReadFile(%s): got %v", file, err)
		}
	}
	_, _, err := Parse(strings.NewReader("$TTL 300\n@ SOA ns.invalid. h 1 2 3 4 5\n@ NS ns.invalid.\n$INCLUDE pipe\n"), filepath.Join(dir, "zone"), "example.com")
	if want := dir + `/zone:4: $INCLUDE "pipe": expected a regular file`; fmt.Sprint(err) != want {
		t.Errorf("$INCLUDE: got %v, want %s", err, want)
	}
}

// TestHeap holds the memory of a large zone: at most 250 octets of heap an RRset, and in few
// objects, whatever the number of names.
func TestHeap(t *testing.T) {
	text := bigZone(100_000)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC() // the scratch of pools goes with the second
	runtime.ReadMemStats(&before)
	z, _, err := Parse(bytes.NewReader(text), "", "example.com")
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	_, sets, _ := z.Size()
	if got := float64(after.HeapAlloc-before.HeapAlloc) / float64(sets); got > 200 {
		t.Errorf("got %.0f octets of heap an RRset, want at most 200", got)
	}
	if got := int64(after.HeapObjects) - int64(before.HeapObjects); got > 100 {
		t.Errorf("got %d more objects on the heap, want at most 100", got)
	}
	runtime.KeepAlive(text)
}

// TestParseFiles: what $INCLUDE named is known, also what is not there and with a fault.
func TestParseFiles(t *testing.T) {
	dir := t.TempDir()
	there, missing := filepath.Join(dir, "there"), filepath.Join(dir, "missing")
	if err := os.WriteFile(there, []byte("a TXT b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const text = "$TTL 300\n@ SOA ns.invalid. h 1 2 3 4 5\n@ NS ns.invalid.\n$INCLUDE there\n"
	for _, more := range []string{"", "$INCLUDE missing\n"} {
		z, files, _, err := ParseFiles(strings.NewReader(text+more), filepath.Join(dir, "zone"), "example.com")
		if (err != nil) != (more != "") || (z == nil) != (err != nil) {
			t.Errorf("with %q: got %v, %v; want a zone, or else an error", more, z, err)
		}
		if info := files[there]; info == nil || info.Size() != 8 {
			t.Errorf("with %q: got %v of the file that is there, want 8 octets", more, info)
		}
		if info, ok := files[missing]; info != nil || ok != (more != "") {
			t.Errorf("with %q: got %v, %v of the missing file, want nil if it is named", more, info, ok)
		}
	}
}
