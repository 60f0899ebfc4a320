package admin

import (
	"net/netip"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
)

// TestPlanAndSupposed asks for past snapshots, for states that are not, and for what changes
// would do to decisions that were made.
func TestPlanAndSupposed(t *testing.T) {
	past := gslb.NewArchive(10, time.Hour)
	client := gslb.Client{Addr: netip.MustParseAddr("192.0.2.1"), Source: 32}
	n := newNode(t, func(o *Options) {
		o.At = past.At
		o.Recent = func() []gslb.Sample { return []gslb.Sample{{Service: "www.example.com", Client: client}} }
	})
	const explain = "/api/v1/explain?name=www.example.com&client=192.0.2.1"
	was := n.call("GET", explain, "").Body.String()
	first := n.snapshot.Load()
	past.Put(first)
	n.set(t, nil)
	if got := n.call("GET", explain+"&at=1", "").Body.String(); got != was {
		t.Errorf("at 1: got\n%s\nwant what it said then\n%s", got, was)
	}
	if got := n.call("GET", explain+"&at="+first.ID(), "").Body.String(); got != was {
		t.Errorf("at %s: got\n%s\nwant what it said then\n%s", first.ID(), got, was)
	}
	runRows(t, n, []requestRow{
		{"a revision that is gone", "GET", explain + "&at=99", "", 404, "snapshot 99 is not kept"},
		{"no revision", "GET", explain + "&at=x", "", 400, "give the revision of a snapshot"},
		{"if", "GET", explain + "&if=pool.gfe-eu%3Ddown", "", 200, `"pool": "gfe-us"`},
		{"if nothing", "GET", explain + "&if=pool.gfe-ue%3Ddown", "", 400, "no such pool"},
		{"a plan with a fault", "POST", "/api/v1/plan", "pools: {gfe-eu: {site: mars}}", 422, "no such site"},
	})
	p := decodeTo[api.Plan](t, n.call("POST", "/api/v1/plan?if=pool.gfe-eu%3Ddrain", ""))
	if p.Samples != 1 || p.Moved != 1 || len(p.Moves) != 1 || p.Moves[0].To != "gfe-us" || len(p.Diff) != 1 || len(n.changes()) != 0 {
		t.Errorf("a drain: %+v; want the one decision moved to gfe-us, and nothing written", p)
	}
	p = decodeTo[api.Plan](t, n.call("POST", "/api/v1/plan", "services: {www.example.com: {pools: {gfe-us: {}}}}"))
	if p.Moved != 1 || len(p.Diff) != 1 || p.Diff[0].Name != "www.example.com" {
		t.Errorf("another service: %+v; want the one decision moved", p)
	}
}
