package tracing

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// story is a query and the request that it led to: a linked trace through three services to
// the database, of which one try fails.
func story() []Span {
	us := func(d int) time.Time { return time.Unix(1_700_000_000, 0).Add(time.Duration(d) * time.Microsecond) }
	dns, web := id(1), id(2)
	dns[0], web[0] = 0x4b, 0x0a
	node := map[string]any{AttrServiceName: "gslbd", AttrServiceInstance: "ns1"}
	in := func(service, instance string) map[string]any {
		return map[string]any{AttrServiceName: service, AttrServiceInstance: instance}
	}
	return []Span{
		{TraceID: dns, SpanID: sid(1), Name: SpanQuery, Kind: KindServer, Service: "gslbd", Resource: node, Start: us(0), End: us(41),
			Attributes: map[string]any{AttrQuestionName: "www.example.com", AttrQuestionType: "A", AttrServerAddress: "ns1",
				AttrTransport: "udp", AttrClientAddress: "198.51.100.0", AttrClientPrefix: "198.51.100.0/24", AttrECS: true,
				AttrResolver: "192.0.2.53", AttrResponseCode: "NOERROR", AttrAnswerCount: int64(2), AttrScope: int64(20), AttrTTL: int64(30),
				AttrAnswers: []any{"192.0.2.11", "192.0.2.12"}, AttrSampledBy: SampledReason}},
		{TraceID: dns, SpanID: sid(2), ParentID: sid(1), Name: SpanLookup, Kind: KindInternal, Service: "gslbd", Resource: node, Start: us(10), End: us(10),
			Attributes: map[string]any{AttrCountry: "DE", AttrLocality: "Frankfurt am Main", AttrClientASN: int64(64500), AttrScope: int64(18)}},
		{TraceID: dns, SpanID: sid(3), ParentID: sid(1), Name: SpanDecide, Kind: KindInternal, Service: "gslbd", Resource: node, Start: us(10), End: us(22),
			Attributes: map[string]any{AttrService: "www.example.com", AttrPool: "gfe-us", AttrReason: "failover", AttrScope: int64(20),
				AttrCandidates: []any{"gfe-us", "gfe-ap"}, AttrRevision: int64(42), AttrPlan: "1f2e3d",
				AttrRejected: []any{"gfe-eu: 0 of 2 endpoints healthy", "gfe-de: drained by ann: upgrade, until 14:00Z"}}},
		{TraceID: web, SpanID: sid(1), Name: "GET", Kind: KindServer, Service: "gfe", Resource: in("gfe", "gfe-us-1"), Start: us(2_000), End: us(14_400),
			Links:      []Link{{TraceID: dns, SpanID: sid(3)}},
			Attributes: map[string]any{"url.path": "/cart", "http.response.status_code": int64(200)}},
		{TraceID: web, SpanID: sid(2), ParentID: sid(1), Name: "GET /cart", Kind: KindServer, Service: "frontend", Resource: in("frontend", "us-east"), Start: us(3_000), End: us(14_000),
			Attributes: map[string]any{"url.path": "/cart", "http.response.status_code": int64(200)}},
		{TraceID: web, SpanID: sid(3), ParentID: sid(2), Name: "cart.load", Kind: KindServer, Service: "backend", Resource: in("backend", "us-east"), Start: us(3_500), End: us(6_000),
			Status: Status{Code: StatusError, Message: "connection reset\x1b[2J"}, Events: []Event{{Time: us(4_000), Name: "retry"}}},
		{TraceID: web, SpanID: sid(4), ParentID: sid(2), Name: "cart.load", Kind: KindServer, Service: "backend", Resource: in("backend", "us-east"), Start: us(6_500), End: us(13_500)},
		{TraceID: web, SpanID: sid(5), ParentID: sid(4), Name: "db.get", Kind: KindClient, Service: "backend", Resource: in("backend", "us-east"), Start: us(7_000), End: us(13_000),
			Attributes: map[string]any{"db.system.name": "sqlite", "db.query.text": "SELECT item, count FROM cart WHERE user = ? ORDER BY added", AttrServerAddress: "cart.db"}},
	}
}

func TestTreeGolden(t *testing.T) {
	// The same after a trip through JSON, as gslbctl has it.
	b, err := json.Marshal(story())
	if err != nil {
		t.Fatal(err)
	}
	var remote []Span
	if err := json.Unmarshal(b, &remote); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		file    string
		spans   []Span
		options TreeOptions
	}{
		{"tree.txt", story(), TreeOptions{}},
		{"tree.txt", remote, TreeOptions{}},
		{"tree-query.txt", story()[:3], TreeOptions{Width: 120}},
		{"tree-narrow.txt", story(), TreeOptions{Width: 60}},
		{"tree-all.txt", story()[:3], TreeOptions{All: true}},
		{"tree-color.txt", story(), TreeOptions{Color: true}},
	} {
		got := strings.Join(Tree(tc.spans, tc.options), "\n") + "\n"
		path := filepath.Join("testdata", tc.file)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s, %+v:\n%s\nwant:\n%s", tc.file, tc.options, got, want)
		}
	}
}

// A note that is longer than a line is told whole, but for what is beyond measure.
func TestTreeWraps(t *testing.T) {
	health := "health: gfe-eu 2 of 2 endpoints healthy, gfe-ap 2 of 2 endpoints healthy, gfe-us 2 of 2 endpoints healthy"
	span := func(stages ...any) []Span {
		return []Span{{TraceID: id(1), SpanID: sid(1), Name: "gslb.decide", Service: "gslbd", Attributes: map[string]any{AttrStages: stages}}}
	}
	for _, tc := range []struct {
		stage string
		want  []string
	}{
		{health, []string{
			"   health: gfe-eu 2 of 2 endpoints healthy,",
			"     gfe-ap 2 of 2 endpoints healthy,",
			"     gfe-us 2 of 2 endpoints healthy",
		}},
		{"one, of many words and without another comma where the line is to break", []string{
			"   one, of many words and without another comma where the",
			"     line is to break",
		}},
		{strings.Repeat("x", 57), []string{"   " + strings.Repeat("x", 57)}},
		{strings.Repeat("x", 58), []string{"   " + strings.Repeat("x", 56) + "…"}},
		{"answers " + strings.Repeat("x", 56), []string{"   answers", "     " + strings.Repeat("x", 54) + "…"}},
		{"", []string{""}},
	} {
		lines := Tree(span(tc.stage), TreeOptions{Width: 60})
		if got := lines[len(lines)-len(tc.want):]; !slices.Equal(got, tc.want) {
			t.Errorf("%q:\n%s\nwant:\n%s", tc.stage, strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
		}
	}
	if lines := Tree(span(strings.Repeat("word ", 10_000)), TreeOptions{Width: 60}); len(lines) > 3+maxNoteLines {
		t.Errorf("an endless note: %d lines, want at most %d", len(lines), 3+maxNoteLines)
	}
}

// No span can steer the terminal, and no line is wider than it.
func TestTreeIsContained(t *testing.T) {
	spans := story()
	for i := range spans {
		spans[i].Name += "\x1b]0;owned\a\r\n" + strings.Repeat("ü", 200)
		spans[i].Service += "\x1b[31m\u202e"
		spans[i].Attributes = map[string]any{"http.response.status_code": "\x1b[2J", AttrRejected: []any{"a\nb"}, "m": map[string]any{"\x1b": 1}}
		spans[i].Events = []Event{{Name: "\x9b2J"}}
	}
	for _, o := range []TreeOptions{{}, {All: true}, {Width: 1}, {Width: 200}} {
		width := max(o.Width, 60)
		if o.Width == 0 {
			width = 100
		}
		for i, line := range Tree(spans, o) {
			if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x202e }) {
				t.Errorf("%+v: %q has a control character", o, line)
			}
			if i > 0 && columns(line) > width { // the first has the id and the totals
				t.Errorf("%+v: %q has %d columns, want at most %d", o, line, columns(line), width)
			}
		}
	}
}

// Spans without their parent, with parents in a circle, with themselves as parent: every one
// is drawn once.
func TestForest(t *testing.T) {
	span := func(n, parent int) Span { return Span{TraceID: id(1), SpanID: sid(n), ParentID: sid(parent)} }
	for _, tc := range []struct {
		name  string
		spans []Span
		want  string
	}{
		{"none", nil, ""},
		{"chain, children first", []Span{span(3, 2), span(2, 1), span(1, 0)}, "1(2(3))"},
		{"orphan", []Span{span(1, 0), span(2, 9)}, "1 2"},
		{"itself", []Span{span(1, 1)}, "1"},
		{"circle", []Span{span(1, 2), span(2, 3), span(3, 1)}, "3(2(1))"},
		{"siblings", []Span{span(1, 0), span(2, 1), span(3, 1)}, "1(2 3)"},
	} {
		if got := shape(forest(tc.spans, true)); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	linked := span(1, 0)
	linked.TraceID, linked.Links = id(2), []Link{{TraceID: id(9)}, {TraceID: id(1), SpanID: sid(1)}}
	back := span(1, 0)
	back.Links = []Link{{TraceID: id(2), SpanID: sid(1)}} // a circle of links
	spans := []Span{linked, back}
	if got, want := shape(forest(spans, true)), "1(1)"; got != want {
		t.Errorf("linked: %s, want %s", got, want)
	}
	if got, want := shape(forest(spans, false)), "1 1"; got != want {
		t.Errorf("links not followed: %s, want %s", got, want)
	}
}

func shape(nodes []*node) string {
	var parts []string
	for _, n := range nodes {
		s := string('0' + n.span.SpanID[7])
		if len(n.children) > 0 {
			s += "(" + shape(n.children) + ")"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, " ")
}

func TestTreeOfNothing(t *testing.T) {
	if got := Tree(nil, TreeOptions{}); got != nil {
		t.Errorf("lines %q, want none", got)
	}
}
