// Package meridian holds nothing but the test of how its packages may know each other.
package meridian

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/meridian-gslb/meridian"

// mayImport says which packages of ours a package may import: imports point one way, from
// cmd over what speaks to the world (dns, xds, admin, health, the store) to the engine, and
// from there to geo. A name that ends in / stands for all below it. A package that is not
// here has no place in the house yet.
var mayImport = map[string][]string{
	"geo":         {},
	"gslb/config": {},
	"gslb":        {"geo", "gslb/config"},
	"gslb/store":  {"gslb", "gslb/config"},
	"health":      {"gslb", "gslb/config"},
	"tracing":     {}, // a leaf that the others feed with plain facts
	"dns/zone":    {},
	"dns/":        {"dns/", "gslb", "gslb/config", "tracing"},
	"xds/":        {"xds/", "gslb", "gslb/config", "tracing"},
	"admin/":      {"admin/", "geo", "gslb", "gslb/config", "gslb/store", "health", "tracing"},
	"cmd/":        {"admin/", "cmd/", "dns/", "geo", "gslb", "gslb/config", "gslb/store", "health", "testdata/geo", "tracing", "xds/"},
	"testdata/":   {"admin/", "dns/", "geo", "gslb", "gslb/config", "testdata/"}, // its commands are clients like any other
}

// knowTelemetry are the packages that may import OpenTelemetry: tracing for the path of a
// query, and the demo's proxies and services, whose requests are no such path.
var knowTelemetry = []string{"tracing", "cmd/"}

// noSockets are the packages whose decisions need none, and what they must not even reach.
var noSockets = map[string][]string{
	"gslb":        {"net/http", "google.golang.org/grpc", "go.etcd.io/etcd/client/v3"},
	"gslb/config": {"net/http", "google.golang.org/grpc", "go.etcd.io/etcd/client/v3"},
	"geo":         {"net/http", "google.golang.org/grpc", "go.etcd.io/etcd/client/v3"},
	"dns/zone":    {"net/http", "google.golang.org/grpc", "go.etcd.io/etcd/client/v3"},
}

// pkg is a package as go list tells it.
type pkg struct {
	ImportPath string
	Imports    []string // direct
	Deps       []string // all
	Module     *struct{ Path string }
}

// packages returns every package of ours and what these need, by its path in the module or,
// of others, its import path.
func packages(t *testing.T) (ours []pkg) {
	t.Helper()
	watch(t)
	out, err := exec.Command("go", "list", "-pgo=off", "-deps", "-json=ImportPath,Imports,Deps,Module", "./...").Output() // with a profile, packages are listed twice
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		if p.Module != nil && p.Module.Path == module {
			ours = append(ours, p)
		}
	}
	if len(ours) < 10 {
		t.Fatalf("go list: got %d packages of %s, want more", len(ours), module)
	}
	return ours
}

// watch opens every folder of the module, so that the go command runs this test anew, and
// does not take an earlier result for it, when a file in one has changed.
func watch(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != "." {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// rel is path within the module; "" for other modules' and the root.
func rel(path string) string {
	r, _ := strings.CutPrefix(path, module+"/")
	if r == path {
		return ""
	}
	return r
}

// in says whether pattern is name, or ends in / and name is at it or below.
func in(name, pattern string) bool {
	dir, ok := strings.CutSuffix(pattern, "/")
	return name == dir || ok && strings.HasPrefix(name, pattern)
}

// rule returns what the package of that name may import: the longest pattern goes first.
func rule(name string) (allowed []string, ok bool) {
	longest := ""
	for pattern := range mayImport {
		if in(name, pattern) && len(strings.TrimSuffix(pattern, "/")) >= len(strings.TrimSuffix(longest, "/")) {
			longest = pattern
		}
	}
	return mayImport[longest], longest != ""
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		name := rel(p.ImportPath)
		if name == "" {
			continue // this test's own
		}
		allowed, ok := rule(name)
		if !ok {
			t.Errorf("%s: has no place among the folders of the house; expected one of %q", name, slices.Sorted(maps.Keys(mayImport)))
			continue
		}
		for _, path := range p.Imports {
			if other := rel(path); other != "" && !slices.ContainsFunc(allowed, func(pattern string) bool { return in(other, pattern) }) {
				t.Errorf("%s: imports %s; expected none but %q", name, other, allowed)
			}
			if strings.HasPrefix(path, "go.opentelemetry.io/") && !slices.ContainsFunc(knowTelemetry, func(pattern string) bool { return in(name, pattern) }) {
				t.Errorf("%s: imports %s; expected that of %q alone", name, path, knowTelemetry)
			}
		}
		for _, path := range noSockets[name] {
			if slices.Contains(p.Deps, path) {
				t.Errorf("%s: needs %s; expected a package without sockets", name, path)
			}
		}
	}
}

// TestRule: the rules say of single imports what they are meant to.
func TestRule(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{"gslb", "geo", true},
		{"geo", "gslb", false},
		{"gslb", "tracing", false},
		{"gslb", "health", false},
		{"gslb", "gslb/store", false},
		{"gslb/store", "gslb/config", true},
		{"health", "gslb", true},
		{"tracing", "gslb", false},
		{"dns", "dns/zone", true},
		{"dns/zone", "dns", false},
		{"dns", "geo", false},
		{"dns/dnssec", "dns/zone", true},
		{"dns", "cmd/gslbd", false},
		{"admin/api", "dns", false},
		{"cmd/gslbd/node", "dns", true},
	} {
		allowed, ok := rule(tt.from)
		if got := ok && slices.ContainsFunc(allowed, func(pattern string) bool { return in(tt.to, pattern) }); got != tt.want {
			t.Errorf("%s imports %s: got allowed %v, want %v", tt.from, tt.to, got, tt.want)
		}
	}
	if _, ok := rule("util"); ok {
		t.Error("a folder util has a rule, want none")
	}
}
