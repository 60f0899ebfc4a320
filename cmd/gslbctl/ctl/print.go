package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

// style colours text, or does not.
type style struct {
	colour   bool
	terminal bool
	width    int // columns of the terminal; 0: unknown
	height   int
}

// The colours, as SGR parameters (ECMA-48, section 8.3.117).
const (
	plain  = ""
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

// styleFor is colourful on a terminal, unless NO_COLOR (no-color.org) or a dumb TERM says no.
func styleFor(w io.Writer) style {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return style{}
	}
	s := style{terminal: os.Getenv("TERM") != "dumb"}
	s.colour = s.terminal && os.Getenv("NO_COLOR") == ""
	if width, height, err := term.GetSize(int(f.Fd())); err == nil {
		s.width, s.height = width, height
	}
	return s
}

// paint returns text in a colour.
func (s style) paint(colour, text string) string {
	if !s.colour || colour == plain || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// clean makes text from elsewhere safe for a terminal: control characters, escapes among
// them, become their Go escapes. Line ends stay.
func clean(text string) string {
	bad := func(r rune) bool { return r != '\n' && (unicode.IsControl(r) || r == utf8.RuneError) }
	if !strings.ContainsFunc(text, bad) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if bad(r) {
			fmt.Fprintf(&b, "\\x%02x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// cell is one field of a table.
type cell struct {
	text   string
	colour string
}

// row makes cells without colours.
func row(texts ...string) []cell {
	out := make([]cell, len(texts))
	for i, t := range texts {
		out[i].text = t
	}
	return out
}

// table aligns rows in columns, two spaces apart. A heading that starts with > makes its
// column flush right. Without headings there is no first line.
type table struct {
	indent string
	head   []string
	rows   [][]cell
	least  []int // least widths of the first columns
}

// add appends a row.
func (t *table) add(cells ...cell) { t.rows = append(t.rows, cells) }

// write writes the table.
func (t *table) write(w io.Writer, s style) {
	rows := t.rows
	right := make([]bool, len(t.head))
	if len(t.head) > 0 {
		head := make([]cell, len(t.head))
		for i, h := range t.head {
			text, flush := strings.CutPrefix(h, ">")
			head[i], right[i] = cell{text, dim}, flush
		}
		if strings.TrimLeft(strings.Join(t.head, ""), ">") != "" {
			rows = append([][]cell{head}, rows...)
		}
	}
	widths := slices.Clone(t.least)
	for _, r := range rows {
		for i := range r {
			r[i].text = clean(strings.ReplaceAll(r[i].text, "\n", " "))
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i].text))
		}
	}
	for _, r := range rows {
		var b strings.Builder
		b.WriteString(t.indent)
		pad := 0 // spaces owed: none are left at the end of a line
		for i, c := range r {
			space := widths[i] - utf8.RuneCountInString(c.text)
			if i < len(right) && right[i] {
				pad, space = pad+space, 0
			}
			if c.text != "" {
				b.WriteString(strings.Repeat(" ", pad))
				b.WriteString(s.paint(c.colour, c.text))
				pad = 0
			}
			pad += space + 2
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// show writes v as --output says: as JSON, as YAML, or as people describes it.
func (a *app) show(v any, people func()) error {
	switch a.output {
	case "json":
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s\n", b)
	case "yaml":
		text, err := yamlOf(v)
		if err != nil {
			return err
		}
		fmt.Fprint(a.out, text)
	default:
		people()
	}
	return nil
}

// yamlOf writes what v is in JSON as YAML, with the keys in the order of the JSON.
func yamlOf(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	var n yaml.Node
	if err := yaml.Unmarshal(b, &n); err != nil {
		return "", err
	}
	block(&n)
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(&n); err != nil {
		return "", err
	}
	return out.String(), e.Close()
}

// block turns JSON's flow style to YAML's block style, and quotes only where needed.
func block(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" && strings.Contains(n.Value, "\n") {
		n.Style = yaml.LiteralStyle
	}
	if len(n.Content) == 0 && (n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode) {
		n.Style = yaml.FlowStyle
	}
	for _, c := range n.Content {
		block(c)
	}
}

// count writes n with its noun: 1 pool, 2 pools.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// number writes n in groups of three: 12,345.
func number(n uint64) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// age writes a duration in at most two units: 45s, 3m12s, 2h05m, 3d4h.
func age(d time.Duration) string {
	d = max(d, 0).Round(time.Second)
	day := 24 * time.Hour
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}

// short writes a duration with three digits: 0.15 ms, 12.3 ms, 2.00 s.
func short(d time.Duration) string {
	switch {
	case d <= 0:
		return "0 ms"
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.3g ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// clock writes a time of today as 14:00Z, with its seconds where it has some, and any other
// with its date.
func clock(t, now time.Time) string {
	t, now = t.UTC(), now.UTC()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		if t.Second() == 0 {
			return t.Format("15:04Z")
		}
		return t.Format("15:04:05Z")
	}
	return t.Format("2006-01-02 15:04Z")
}
