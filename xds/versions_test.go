package xds

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryEnvoy runs every test with an Envoy again with each Envoy that ENVOYS lists, as
// PATH lists folders: other versions than ENVOY's.
func TestEveryEnvoy(t *testing.T) {
	list := filepath.SplitList(os.Getenv("ENVOYS"))
	if len(list) == 0 {
		need(t, "no list of Envoys: set ENVOYS to the paths of other versions' binaries")
	}
	for _, binary := range list {
		version, err := exec.Command(binary, "--version").Output()
		if err != nil {
			t.Errorf("%s: %v", binary, err)
			continue
		}
		t.Run(regexp.MustCompile(`\d+\.\d+\.\d+/`).FindString(string(version)), func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^(TestEnvoy|TestExample)", "-test.v", "-test.timeout=10m")
			cmd.Env = append(os.Environ(), "ENVOY="+binary, "ENVOYS=")
			out, err := cmd.CombinedOutput()
			passed, skipped := strings.Count(string(out), "\n--- PASS"), strings.Count(string(out), "\n--- SKIP")
			if err != nil || skipped > 0 || passed == 0 {
				t.Errorf("%d passed, %d skipped, %v:\n%s", passed, skipped, err, tail(string(out), 8000))
			}
			t.Logf("%d tests passed", passed)
		})
	}
}
