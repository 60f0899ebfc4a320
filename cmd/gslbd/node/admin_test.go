package node

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/meridian-gslb/meridian/dns"
	"github.com/meridian-gslb/meridian/dns/zone"
	"github.com/meridian-gslb/meridian/health"
	"github.com/meridian-gslb/meridian/tracing"
)

// TestCountersOf: a server that was asked nothing has empty lists, which pages go through.
func TestCountersOf(t *testing.T) {
	s := dns.Stats{Rcodes: map[string]uint64{}, Outcomes: map[string]uint64{}, Reasons: map[string]uint64{}}
	got, err := json.Marshal(countersOf(s))
	if err != nil || strings.Contains(string(got), "null") || !strings.Contains(string(got), `"answers":[]`) {
		t.Errorf("got %s, %v; want empty answers and no null", got, err)
	}
	s.Pools = []dns.PoolCount{{Service: "www.test", Pool: "a", Reason: "failover", Decisions: 7}}
	if a := countersOf(s).Answers; len(a) != 1 || a[0].Service != "www.test" || a[0].Pool != "a" || a[0].Reason != "failover" || a[0].Count != 7 {
		t.Errorf("answers: got %+v, want 7 of www.test from a", a)
	}
}

// TestServes: a node is ready once it answers from a zone, and as long as it does.
func TestServes(t *testing.T) {
	z, _, err := zone.Parse(strings.NewReader("@ 60 SOA ns.invalid. h 1 2 3 4 5\n@ 60 NS ns.invalid.\n"), "", "example.com")
	if err != nil {
		t.Fatal(err)
	}
	set := func(zones ...*zone.Zone) *dns.Data {
		s, err := zone.NewSet(zones, nil)
		if err != nil {
			t.Fatal(err)
		}
		return &dns.Data{Zones: s}
	}
	for _, tt := range []struct {
		name   string
		data   *dns.Data
		ok     bool
		reason string
	}{
		{"nothing", nil, false, "nothing to serve yet"},
		{"no zone", set(), false, "no zone is served"},
		{"a zone", set(z), true, ""},
	} {
		n := new(Node)
		n.data.Store(tt.data)
		if ok, reason := n.serves(); ok != tt.ok || reason != tt.reason {
			t.Errorf("%s: got %v, %q, want %v, %q", tt.name, ok, reason, tt.ok, tt.reason)
		}
	}
}

func TestPartFaults(t *testing.T) {
	self, peer := health.Member{Name: "a", State: "self"}, health.Member{Name: "b", State: "alive"}
	gone := health.Member{Name: "b", State: "gone"}
	refused := tracing.Stats{Dropped: map[string]uint64{tracing.DropRefused: 3}}
	taken := refused
	taken.Exported = 1
	join := []string{"127.0.0.1:7946"}
	for _, tt := range []struct {
		name      string
		places    error
		spans     tracing.Stats
		collector string
		join      []string
		members   []health.Member
		want      string // in the only fault; empty: none
	}{
		{"well", nil, taken, "http://c", join, []health.Member{self, peer}, ""},
		{"alone, as meant", nil, tracing.Stats{}, "", nil, []health.Member{self}, ""},
		{"databases", errors.New("city.mmdb: cut short"), taken, "", nil, nil, "city.mmdb: cut short"},
		{"collector", nil, refused, "http://c", nil, nil, "http://c has refused all 3 spans"},
		{"gossip", nil, taken, "", join, []health.Member{self, gone}, "no peer answers at 127.0.0.1:7946; is the key the same?"},
	} {
		got := partFaults(tt.places, tt.spans, tt.collector, tt.join, tt.members)
		if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
