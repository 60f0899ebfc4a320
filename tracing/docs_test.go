package tracing

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

const (
	docs       = "../docs/tracing.md"
	tableBegin = "<!-- attributes: written by go test ./tracing -run TestAttributesInDocs -update -->\n"
	tableEnd   = "<!-- end of attributes -->\n"
)

// The table of attributes in the documentation is that of attributes.go, word for word.
func TestAttributesInDocs(t *testing.T) {
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), tableBegin)
	got, after, ended := strings.Cut(rest, tableEnd)
	if !ok || !ended {
		t.Fatalf("%s: no %q … %q", docs, tableBegin, tableEnd)
	}
	want := attributeTable(t)
	if got == want {
		return
	}
	if *update {
		if err := os.WriteFile(docs, []byte(before+tableBegin+want+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s has\n%s\nwant, of attributes.go,\n%s", docs, got, want)
}

// attributeTable makes the table of the constants named Attr… and their comments, of which each
// begins with the type and a colon.
func attributeTable(t *testing.T) string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "attributes.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	table := "\n| attribute | type | what it says |\n|---|---|---|\n"
	rows := 0
	for _, decl := range file.Decls {
		group, ok := decl.(*ast.GenDecl)
		if !ok || group.Tok != token.CONST {
			continue
		}
		for _, spec := range group.Specs {
			v := spec.(*ast.ValueSpec)
			if !strings.HasPrefix(v.Names[0].Name, "Attr") {
				continue
			}
			name, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			typ, words, ok := strings.Cut(strings.TrimSpace(v.Comment.Text()), ": ")
			if !ok {
				t.Errorf("%s: comment %q: want its type and a colon", v.Names[0].Name, v.Comment.Text())
			}
			table += fmt.Sprintf("| `%s` | %s | %s |\n", name, typ, words)
			rows++
		}
	}
	if rows < 40 {
		t.Errorf("%d attributes, want all of them", rows)
	}
	return table + "\n"
}
