package tracing

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// TreeOptions say how Tree draws.
type TreeOptions struct {
	Width int  // columns of the terminal; default 100, at least 60
	Color bool // with ANSI colours
	All   bool // every attribute instead of those that matter
}

// Tree draws spans, of one trace or of several that are linked, as lines for a terminal: one
// tree for each root, with the time of each span on the scale of its trace, what it was about
// and what went wrong. A root that links to a span which is there is drawn below that one. A
// span whose parent is missing is a root. Octets that a terminal would obey are not let
// through.
func Tree(spans []Span, o TreeOptions) []string {
	if len(spans) == 0 {
		return nil
	}
	if o.Width == 0 {
		o.Width = 100
	}
	t := tree{TreeOptions: o, scales: make(map[TraceID]scale)}
	t.Width = max(t.Width, 60)
	roots := forest(spans, true)
	for i := range spans {
		t.scales[spans[i].TraceID] = t.scales[spans[i].TraceID].with(&spans[i])
	}
	for _, root := range roots {
		t.measure(root, 0)
	}
	// What the titles and services leave is for the scale; they give way if that is too little.
	t.name = min(t.name, t.Width-columnGaps-durationWidth-min(t.service, 16)-minScale)
	t.service = min(t.service, max(8, t.Width-columnGaps-durationWidth-t.name-minScale))
	t.scale = min(t.Width-columnGaps-durationWidth-t.name-t.service, maxScale)

	t.header(spans)
	for _, root := range roots {
		t.emit("")
		t.draw(root, "", "", "")
	}
	return t.lines
}

const (
	columnGaps    = 6 // two before the service, two around the scale and its two borders
	durationWidth = 11
	minScale      = 8
	maxScale      = 40
)

// tree is a drawing under way.
type tree struct {
	TreeOptions
	scales               map[TraceID]scale
	name, service, scale int // columns
	lines                []string
}

// scale is the time that a trace spans.
type scale struct{ start, end time.Time }

func (s scale) with(span *Span) scale {
	if s.start.IsZero() || span.Start.Before(s.start) {
		s.start = span.Start
	}
	if span.End.After(s.end) {
		s.end = span.End
	}
	return s
}

// node is a span and what it caused.
type node struct {
	span     *Span
	children []*node // by start
	linked   bool    // child of another trace's span, by a link
	placed   bool    // has a parent in the forest
}

func (n *node) walk(f func(*node)) {
	f(n)
	for _, c := range n.children {
		c.walk(f)
	}
}

// forest arranges spans below their parents, and with links the roots below what they link
// to. Every span is in it once, also if parents form a circle; roots and children are ordered
// by start, and spans of the same start by their place in spans.
func forest(spans []Span, links bool) []*node {
	type key struct {
		trace TraceID
		span  SpanID
	}
	nodes := make([]*node, len(spans))
	byID := make(map[key]*node, len(spans))
	for i := range spans {
		nodes[i] = &node{span: &spans[i]}
		byID[key{spans[i].TraceID, spans[i].SpanID}] = nodes[i]
	}
	adopt := func(parent, child *node) bool {
		if parent == nil || parent == child || below(child, parent) {
			return false
		}
		parent.children = append(parent.children, child)
		child.placed = true
		return true
	}
	for _, n := range nodes {
		adopt(byID[key{n.span.TraceID, n.span.ParentID}], n)
	}
	if links {
		for _, n := range nodes {
			for _, l := range n.span.Links {
				if !n.placed && adopt(byID[key{l.TraceID, l.SpanID}], n) {
					n.linked = true
				}
			}
		}
	}
	byStart := func(a, b *node) int { return a.span.Start.Compare(b.span.Start) }
	var roots []*node
	for _, n := range nodes {
		slices.SortStableFunc(n.children, byStart)
		if !n.placed {
			roots = append(roots, n)
		}
	}
	slices.SortStableFunc(roots, byStart)
	return roots
}

// below reports whether n is in the tree of root.
func below(root, n *node) bool {
	return slices.ContainsFunc(root.children, func(c *node) bool { return c == n || below(c, n) })
}

// measure finds the width of the columns.
func (t *tree) measure(n *node, depth int) {
	t.name = max(t.name, 3*depth+columns(title(n.span)))
	t.service = max(t.service, columns(serviceText(n.span)))
	for _, c := range n.children {
		t.measure(c, depth+1)
	}
}

// header says what is drawn.
func (t *tree) header(spans []Span) {
	var ids []TraceID
	var services []string
	var whole scale
	for i := range spans {
		s := &spans[i]
		if !slices.Contains(ids, s.TraceID) {
			ids = append(ids, s.TraceID)
		}
		if !slices.Contains(services, s.Service) {
			services = append(services, s.Service)
		}
		whole = whole.with(s)
	}
	line := "trace " + t.bold(ids[0].String())
	if len(ids) > 1 {
		line += fmt.Sprintf(" and %s linked", count(len(ids)-1, "trace"))
	}
	t.emit(fmt.Sprintf("%s  %s, %s, %s, %s", line, count(len(services), "service"), count(len(spans), "span"),
		durationText(whole.end.Sub(whole.start)), whole.start.UTC().Format("2006-01-02 15:04:05.000Z")))
}

// draw draws n and all below it. first leads its own line, rest those of its notes and
// children.
func (t *tree) draw(n *node, first, rest, mark string) {
	s := n.span
	label := fit(mark+title(s), t.name-columns(first))
	pad := strings.Repeat(" ", max(0, t.name-columns(first)-columns(label)))
	service := fit(serviceText(s), t.service)
	line := t.dim(first) + t.tint(n, t.bold(label)) + pad + "  " +
		t.dim(service+strings.Repeat(" ", t.service-columns(service))) + " " + t.bar(s)
	if d := s.End.Sub(s.Start); d > 0 {
		line += fmt.Sprintf("%*s", durationWidth, durationText(d))
	}
	t.emit(line)

	stem := rest + "   "
	if len(n.children) > 0 {
		stem = rest + "│  "
	}
	for _, note := range t.notes(s) {
		t.wrap(stem, note)
	}
	for i, c := range n.children {
		mark := ""
		if c.linked {
			mark = "⇢ "
		}
		if i == len(n.children)-1 {
			t.draw(c, rest+"└─ ", rest+"   ", mark)
		} else {
			t.draw(c, rest+"├─ ", rest+"│  ", mark)
		}
	}
}

// bar places s on the scale of its trace.
func (t *tree) bar(s *Span) string {
	whole := t.scales[s.TraceID]
	total := float64(max(1, whole.end.Sub(whole.start)))
	cell := func(at time.Time) int {
		return min(max(0, int(float64(t.scale)*float64(at.Sub(whole.start))/total)), t.scale-1)
	}
	from, to := cell(s.Start), cell(s.End.Add(-1))
	glyph := "█"
	if !s.End.After(s.Start) {
		from, to, glyph = cell(s.Start), cell(s.Start), "╵"
	}
	to = max(from, to)
	return t.dim("│") + strings.Repeat(" ", from) + t.colored(s, strings.Repeat(glyph, to-from+1)) +
		strings.Repeat(" ", t.scale-1-to) + t.dim("│")
}

// note is one line below a span: figures that belong together, or what went wrong.
type note struct {
	parts []string
	alarm bool
}

// shown are the attributes that are worth a place in the notes of a span, and how: the words
// before and after the value.
var shown = []struct{ key, before, after string }{
	{AttrResponseCode, "", ""},
	{AttrClientPrefix, "client ", ""},
	{AttrResolver, "resolver ", ""},
	{AttrClientASN, "AS", ""},
	{AttrClientSite, "pinned to ", ""},
	{AttrScope, "scope /", ""},
	{AttrTTL, "ttl ", " s"},
	{AttrTransport, "", ""},
	{AttrAnswers, "answers ", ""},
	{AttrCandidates, "candidates ", ""},
	{AttrRevision, "revision ", ""},
	{AttrPlan, "plan ", ""},
	{AttrVIP, "at ", ""},
	{AttrDecisionID, "answer id ", ""},
	{AttrAnswerAge, "answer up to ", " s old"},
	{AttrCause, "because of ", ""},
	{AttrSampledBy, "sampled by ", ""},
	{"http.response.status_code", "status ", ""},
	{"server.address", "to ", ""},
	{"db.system.name", "", ""},
	{"db.query.text", "", ""},
}

// notes are the lines below s.
func (t *tree) notes(s *Span) []note {
	var figures, rest note
	if t.All {
		for _, key := range slices.Sorted(maps.Keys(s.Attributes)) {
			if key != AttrRejected && key != AttrStages {
				figures.parts = append(figures.parts, clean(key)+"="+valueText(s.Attributes[key]))
			}
		}
	} else {
		for _, a := range shown {
			v, ok := s.Attributes[a.key]
			if !ok || a.key == AttrServerAddress && (s.Kind != KindClient || strings.Contains(title(s), valueText(v))) || a.key == AttrTransport && s.Name != SpanQuery {
				continue
			}
			if a.key == AttrScope && s.Name == SpanDecide {
				continue // dns.query has it
			}
			figures.parts = append(figures.parts, a.before+valueText(v)+a.after)
		}
	}
	out := []note{figures}
	if stages, ok := s.Attributes[AttrStages].([]any); ok {
		for _, v := range stages {
			out = append(out, note{parts: []string{valueText(v)}})
		}
	}
	if rejected, ok := s.Attributes[AttrRejected].([]any); ok {
		for _, v := range rejected {
			out = append(out, note{parts: []string{"rejected " + valueText(v)}})
		}
	}
	for _, e := range s.Events {
		rest.parts = append(rest.parts, fmt.Sprintf("%s at +%s", clean(e.Name), durationText(e.Time.Sub(s.Start))))
	}
	out = append(out, rest)
	for _, l := range s.Links {
		if c, ok := l.Attributes[AttrConfidence].(float64); ok {
			out = append(out, note{parts: []string{fmt.Sprintf("linked by %s, confidence %.2f", stringOf(l.Attributes, AttrLinkedBy), c)}})
		}
	}
	if s.Status.Code == StatusError {
		what := cmp.Or(s.Status.Message, stringOf(s.Attributes, AttrErrorType), "failed")
		out = append(out, note{parts: []string{"error: " + clean(what)}, alarm: true})
	}
	return slices.DeleteFunc(out, func(n note) bool { return len(n.parts) == 0 })
}

// maxNoteLines is how many lines one part of a note takes at most: a value may be as long as its service likes.
const maxNoteLines = 8

// wrap emits the parts of a note in as many lines as they need. One that is longer than a line goes on
// in the next, further in.
func (t *tree) wrap(stem string, n note) {
	room := t.Width - columns(stem)
	line := ""
	flush := func() {
		shown := fit(line, room)
		if n.alarm {
			shown = t.red(shown)
		} else {
			shown = t.dim(shown)
		}
		t.emit(t.dim(stem) + shown)
		line = ""
	}
	for _, part := range n.parts {
		if line != "" && columns(line)+3+columns(part) > room {
			flush()
		}
		if line != "" {
			line += " · "
		}
		line += part
		for lines := 1; lines < maxNoteLines && columns(line) > room; lines++ {
			head, rest := breakAt(line, room)
			if rest == "" {
				break
			}
			line = head
			flush()
			line = "  " + rest
		}
	}
	flush()
}

// breakAt parts s at the last space that leaves at most width columns before it, one after a comma if
// that leaves more than half of them; without one, rest is "".
func breakAt(s string, width int) (head, rest string) {
	begin := len(s) - len(strings.TrimLeft(s, " ")) // an indent is no place to break
	at, column := -1, 0
	list := false // at comes after a comma in the second half
	for i, r := range s {
		if column > width {
			break
		}
		if comma := i > 0 && s[i-1] == ',' && 2*column > width; r == ' ' && i > begin && (comma || !list) {
			at, list = i, comma
		}
		column++
	}
	if at < 0 {
		return s, ""
	}
	return s[:at], strings.TrimLeft(s[at:], " ")
}

// Row is a span as a line of a tree, for others to draw.
type Row struct {
	Depth    int      `json:"depth"`            // 0: a root
	Linked   bool     `json:"linked,omitempty"` // below a span of another trace, by a link
	TraceID  TraceID  `json:"traceId"`
	Title    string   `json:"title"`   // its name and what it was about
	Service  string   `json:"service"` // and which instance of it
	From     float64  `json:"from"`    // 0..1, when it began on the scale of its trace,
	To       float64  `json:"to"`      // and when it ended
	Duration string   `json:"duration,omitempty"`
	Notes    []string `json:"notes,omitempty"`
	Error    string   `json:"error,omitempty"` // what went wrong
}

// Rows are the lines that Tree draws for spans, in their order.
func Rows(spans []Span) []Row {
	t := tree{scales: make(map[TraceID]scale)}
	for i := range spans {
		t.scales[spans[i].TraceID] = t.scales[spans[i].TraceID].with(&spans[i])
	}
	var rows []Row
	var add func(n *node, depth int)
	add = func(n *node, depth int) {
		s, whole := n.span, t.scales[n.span.TraceID]
		total := float64(max(1, whole.end.Sub(whole.start)))
		r := Row{Depth: depth, Linked: n.linked, TraceID: s.TraceID, Title: title(s), Service: serviceText(s),
			From: float64(s.Start.Sub(whole.start)) / total, To: float64(s.End.Sub(whole.start)) / total}
		if d := s.End.Sub(s.Start); d > 0 {
			r.Duration = durationText(d)
		}
		for _, note := range t.notes(s) {
			if text := strings.Join(note.parts, " · "); note.alarm {
				r.Error = text
			} else {
				r.Notes = append(r.Notes, text)
			}
		}
		rows = append(rows, r)
		for _, c := range n.children {
			add(c, depth+1)
		}
	}
	for _, root := range forest(spans, true) {
		add(root, 0)
	}
	return rows
}

func (t *tree) emit(line string) { t.lines = append(t.lines, strings.TrimRight(line, " ")) }

// title is a span's name and what it was about.
func title(s *Span) string {
	about := ""
	switch s.Name {
	case SpanQuery:
		about = strings.TrimSpace(stringOf(s.Attributes, AttrQuestionName) + " " + stringOf(s.Attributes, AttrQuestionType))
	case SpanLookup:
		place := []string{stringOf(s.Attributes, AttrLocality), stringOf(s.Attributes, AttrCountry)}
		place = slices.DeleteFunc(place, func(s string) bool { return s == "" })
		about = cmp.Or(strings.Join(place, ", "), stringOf(s.Attributes, AttrClientSite), "(unknown)")
	case SpanDecide, SpanDecision:
		about = cmp.Or(stringOf(s.Attributes, AttrPool), "(none)")
		if reason := stringOf(s.Attributes, AttrReason); reason != "" {
			about += " (" + reason + ")"
		}
	default:
		path := cmp.Or(stringOf(s.Attributes, "url.path"), strings.TrimPrefix(stringOf(s.Attributes, "url.full"), "http://"))
		if !strings.Contains(s.Name, path) {
			about = path
		}
	}
	return clean(strings.TrimSpace(s.Name + " " + about))
}

// serviceText is the service of a span and which instance of it. An Envoy that others configured says
// that in a tag of each span alone, node_id: it has no resource detector that knows it.
func serviceText(s *Span) string {
	instance := cmp.Or(stringOf(s.Resource, AttrServiceInstance), stringOf(s.Attributes, "node_id"))
	return clean(strings.TrimSpace(s.Service + " " + instance))
}

func stringOf(attrs map[string]any, key string) string {
	v, _ := attrs[key].(string)
	return v
}

// valueText is an attribute's value for people.
func valueText(v any) string {
	switch v := v.(type) {
	case string:
		return clean(v)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64) // JSON's integers are of that type
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = valueText(v[i])
		}
		return strings.Join(parts, ", ")
	case map[string]any:
		b, _ := json.Marshal(v)
		return clean(string(b))
	}
	return clean(fmt.Sprint(v))
}

// durationText is d in milliseconds, or in seconds from one second on.
func durationText(d time.Duration) string {
	if d >= time.Second {
		return fmt.Sprintf("%.3f s", d.Seconds())
	}
	return fmt.Sprintf("%.3f ms", float64(d)/float64(time.Millisecond))
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// clean replaces what is not printable, so that no span can steer the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

// columns is the width of s, of printable runes, on a terminal; wide runes count one.
func columns(s string) int { return utf8.RuneCountInString(s) }

// fit cuts s to width columns.
func fit(s string, width int) string {
	if columns(s) <= width {
		return s
	}
	if width < 1 {
		return ""
	}
	return string([]rune(s)[:width-1]) + "…"
}

func (t *tree) bold(s string) string { return t.ansi("1", s) }
func (t *tree) dim(s string) string  { return t.ansi("2", s) }
func (t *tree) red(s string) string  { return t.ansi("31", s) }

// tint makes the label of a failed span red.
func (t *tree) tint(n *node, s string) string {
	if n.span.Status.Code == StatusError {
		return t.red(s)
	}
	return s
}

// colored gives s the colour of the span's service: always the same one.
func (t *tree) colored(s *Span, text string) string {
	if s.Status.Code == StatusError {
		return t.red(text)
	}
	sum := 0
	for _, b := range []byte(s.Service) {
		sum += int(b)
	}
	return t.ansi([]string{"32", "33", "34", "35", "36"}[sum%5], text)
}

func (t *tree) ansi(code, s string) string {
	if !t.Color || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}
