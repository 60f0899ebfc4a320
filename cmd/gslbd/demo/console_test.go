package demo

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBannerCounts: the banner has as many things to try as it says, each with a note.
func TestBannerCounts(t *testing.T) {
	var out output
	newConsole(&out).banner(defaultPorts, false)
	_, rest, ok := strings.Cut(out.String(), "Five things to try")
	if !ok {
		t.Fatalf("got %q, want five things to try", out.String())
	}
	things, _, _ := strings.Cut(rest, "\nBreak something")
	if got := strings.Count(things, "\n      "); got != 5 {
		t.Errorf("got %d things, want 5:\n%s", got, things)
	}
	for _, r := range regions {
		if !strings.Contains(things, "+subnet="+r.client.String()) {
			t.Errorf("got %s, want a query from %s", things, r.client)
		}
	}
}

// TestKeysOfAnother: a terminal whose foreground is not ours is neither read nor set.
func TestKeysOfAnother(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatalf("missing: a pseudoterminal: %v", err)
		}
		t.Skipf("missing: a pseudoterminal: %v", err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	restore, ok := keys(tty, func(byte) {})
	defer restore()
	after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil || ok || *after != *before {
		t.Errorf("got keys %v, %v, settings %+v, want none and %+v", ok, err, after, before)
	}
}
