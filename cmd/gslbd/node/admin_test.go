package node

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/meridian-gslb/meridian/dns"
)

// TestCountersOf: a server that was asked nothing has empty lists, which pages go through.
func TestCountersOf(t *testing.T) {
	s := dns.Stats{Rcodes: map[string]uint64{}, Outcomes: map[string]uint64{}, Reasons: map[string]uint64{}}
	got, err := json.Marshal(countersOf(s))
	if err != nil || strings.Contains(string(got), "null") || !strings.Contains(string(got), `"answers":[]`) {
		t.Errorf("got %s, %v; want empty answers and no null", got, err)
	}
	s.Pools = []dns.PoolCount{{Service: "www.test", Pool: "a", Decisions: 7}}
	if a := countersOf(s).Answers; len(a) != 1 || a[0].Service != "www.test" || a[0].Pool != "a" || a[0].Count != 7 {
		t.Errorf("answers: got %+v, want 7 of www.test from a", a)
	}
}
