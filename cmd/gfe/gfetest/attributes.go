package gfetest

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/meridian-gslb/meridian/tracing"
)

// attributesDoc is docs/tracing.md from a package three folders down.
const attributesDoc = "../../../docs/tracing.md"

var (
	tableRow  = regexp.MustCompile("(?m)^\\| `([a-z0-9_.]+)` \\|")
	attribute = regexp.MustCompile("`([a-z0-9_]+(?:\\.[a-z0-9_]+)+)`")
)

// Attributes returns the names of the attributes that the documentation says spans have: those of its
// table, and those of the text below.
func Attributes(t *testing.T) (table, text map[string]bool) {
	t.Helper()
	doc, err := os.ReadFile(attributesDoc)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "\n## Attributes\n")
	rest, _, _ = strings.Cut(rest, "\n## ")
	rows, below, ok := strings.Cut(rest, "<!-- end of attributes -->")
	if !ok {
		t.Fatalf("%s: no table of attributes", attributesDoc)
	}
	set := func(matches [][]string) map[string]bool {
		names := make(map[string]bool)
		for _, m := range matches {
			names[m[1]] = true
		}
		return names
	}
	return set(tableRow.FindAllStringSubmatch(rows, -1)), set(attribute.FindAllStringSubmatch(below, -1))
}

// Sent adds the names of all attributes of spans to names, of their resources, links and events
// as well, each with the span that has it.
func Sent(names map[string]string, spans ...tracing.Span) {
	for _, s := range spans {
		of := []map[string]any{s.Attributes, s.Resource}
		for _, l := range s.Links {
			of = append(of, l.Attributes)
		}
		for _, attrs := range of {
			for name := range attrs {
				names[name] = s.Service + " " + s.Name
			}
		}
	}
}
