//go:build linux

package dns

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestZonemaster has the registries' checker look at our zones by a root of our own. What it finds
// must be of the test's making: one server, on loopback.
func TestZonemaster(t *testing.T) {
	path, err := exec.LookPath("zonemaster-cli")
	needs(t, err == nil, "zonemaster-cli")
	in := newInternet(t)
	file := filepath.Join(t.TempDir(), "hints")
	if err := os.WriteFile(file, []byte(hints(in)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, z := range []string{"example.com", "example.net"} {
		before := in.asked()
		out, err := exec.CommandContext(t.Context(), path, "--hints", file, "--no-ipv6", "--no-progress", "--level", "WARNING", z).CombinedOutput()
		if err != nil || in.asked() < before+10 {
			t.Fatalf("%s: %v, %d queries came\n%s", z, err, in.asked()-before, out)
		}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) < 2 || f[1] != "WARNING" && f[1] != "ERROR" && f[1] != "CRITICAL" {
				continue
			}
			ours := true
			for _, of := range []string{"'Loopback'", "without PTR configured", "Lower limit set to 2"} {
				ours = ours && !strings.Contains(line, of)
			}
			if ours {
				t.Errorf("%s: %s", z, strings.TrimSpace(line))
			}
		}
	}
}
