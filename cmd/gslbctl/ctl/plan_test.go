package ctl

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
)

// TestPlan reads plans and their exit codes.
func TestPlan(t *testing.T) {
	good := api.Plan{Revision: 12, Plan: gslb.Plan{
		Samples: 4096, Moved: 0.3125, Moves: []gslb.Move{{From: "gfe-eu", To: "gfe-uk", Share: 0.3125}},
		Pools: []gslb.PoolShift{{Pool: "gfe-eu", Before: 0.3125, Load: 0.62}, {Pool: "gfe-uk", Before: 0.1, After: 0.4125, Load: 0.2, Expected: 0.825}},
		Km:    [2]float64{412, 980}, Far: [2]float64{1204, 2409}, RTT: [2]float64{18.2, 31}, Scope: [2]float64{18.2, 17.9}, Entries: [2]int{812, 790},
	}}
	over := good
	over.Pools = []gslb.PoolShift{{Pool: "gfe-uk", Before: 0.1, After: 0.4, Load: 0.4, Expected: 1.65, Over: true}}
	tests := []struct {
		name  string
		args  []string
		reply api.Plan
		asked string
		code  int
		want  []string
	}{
		{"a drain", []string{"plan", "--drain", "gfe-eu"}, good, "if=pool.gfe-eu%3Ddrain", 0, []string{
			"of 4096 decisions 31.2 % would go to another pool", "gfe-eu  gfe-uk  31.2 %", "62 → 0 %", "20 → 82 %", "░░░░░░░░░", "███▓▓▓▓▓▓▓▓▓",
			"412 → 980 km", "18.2 → 31.0 ms", "18.2 → 17.9 bits", "812 → 790 cache entries",
		}},
		{"too much moved", []string{"plan", "--if", "site.eu=down", "--max-moved", "0.3"}, good, "if=site.eu%3Ddown", 1, nil},
		{"over its capacity", []string{"plan", "--drain", "gfe-eu"}, over, "", 1, []string{"40 → 165 % over its capacity"}},
		{"no answer", []string{"plan", "--drain", "gfe-eu"}, api.Plan{Plan: gslb.Plan{Samples: 5, Empty: 2}}, "", 1, []string{"2 decisions would have no answer any more"}},
		{"a service gone", []string{"plan", "--drain", "gfe-eu"}, api.Plan{Gone: []string{"www.example.com"}}, "", 1, []string{"not steered any more: www.example.com", "no decision was made lately"}},
		{"no endpoint left", []string{"plan", "--drain", "gfe-eu"}, api.Plan{Refused: "refused without force: services.w: none"}, "", 1, []string{"refused without force: services.w: none"}},
		{"nothing to try", []string{"plan"}, good, "", 2, nil},
		{"more than all", []string{"plan", "--drain", "gfe-eu", "--max-moved", "30"}, good, "", 2, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked := ""
			node := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = r.Method + " " + r.URL.Path + "?" + r.URL.RawQuery
				json.NewEncoder(w).Encode(tt.reply)
			})
			stdout, stderr, code := run(t, node, "", tt.args...)
			if code != tt.code || !strings.Contains(asked, tt.asked) {
				t.Errorf("exit code %d after %s; want %d after %s\n%s", code, asked, tt.code, tt.asked, stderr)
			}
			for _, want := range tt.want {
				if !strings.Contains(stdout, want) {
					t.Errorf("want %q in\n%s", want, stdout)
				}
			}
		})
	}
}
