package admin

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"net/http"
	"strings"
)

//go:embed index.html
var pageHTML []byte

// page serves the status page.
func (s *Server) page(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", pagePolicy)
	w.Write(pageHTML)
}

// pagePolicy allows the page its own script and style by their hashes, calls to this node,
// and nothing else (CSP Level 3).
var pagePolicy = "default-src 'none'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" +
	"; script-src '" + pageHash("script") + "'; style-src '" + pageHash("style") + "'"

// pageHash returns the CSP hash of the text between the page's only <tag> and </tag>.
func pageHash(tag string) string {
	_, rest, _ := strings.Cut(string(pageHTML), "<"+tag+">")
	text, _, _ := strings.Cut(rest, "</"+tag+">")
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
