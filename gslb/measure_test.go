package gslb

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
)

func TestRTTPrefix(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"198.51.100.7/32", "198.51.100.0/24"},
		{"198.51.0.0/20", "198.51.0.0/20"},
		{"2001:db8:1:2::3/128", "2001:db8:1::/48"},
		{"2001:db8::/32", "2001:db8::/32"},
		{"::ffff:198.51.100.7/128", "198.51.100.0/24"},
		{"64:ff9b::198.51.100.7/128", "198.51.100.0/24"}, {"64:ff9b::198.51.0.0/116", "198.51.0.0/20"}, {"2002:c633:6407:1::1/128", "198.51.100.0/24"},
		{"64:ff9b::/96", ""}, {"64:ff9b::/56", ""}, {"2002::/16", ""},
		{"0.0.0.0/0", ""}, {"::/0", ""}, {"224.0.0.1/32", ""}, {"ff02::1/128", ""}, {"0.0.0.0/8", ""}, {"::ffff:0.0.0.0/96", ""},
	} {
		got, ok := RTTPrefix(netip.MustParsePrefix(tt.in))
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("%s: got %s, %v; want %q", tt.in, got, ok, tt.want)
		}
	}
	if _, ok := RTTPrefix(netip.Prefix{}); ok {
		t.Error("the zero prefix is a client")
	}
}

func rttKey(i int) RTTKey {
	return RTTKey{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), "p"}
}

// TestRTTsBounded: rows never exceed the bound, the oldest go first, and a row that goes on being
// heard of stays.
func TestRTTsBounded(t *testing.T) {
	r := NewRTTs(100)
	for i := range 5000 {
		at := now.Add(time.Duration(i) * time.Second)
		r.Observe(rttKey(0), 10, 1, at)
		r.Observe(rttKey(i+1), 20, 1, at)
		if r.Len() > 100 {
			t.Fatalf("%d rows", r.Len())
		}
	}
	rows := r.Rows()
	if v := rows[rttKey(0)]; v.Samples != 5000 || math.Abs(v.Millis-10) > 1e-9 {
		t.Errorf("the row that is heard of all the time: %+v", v)
	}
	if _, ok := rows[rttKey(5000)]; !ok {
		t.Error("the newest row is gone")
	}
	r.Expire(now.Add(4990*time.Second), func(string) bool { return true })
	if n := r.Len(); n != 11 { // 4991..5000, of the times 4990..4999, and the first
		t.Errorf("%d rows are left, want 11", n)
	}
	r.Expire(time.Time{}, func(string) bool { return false })
	if r.Len() != 0 {
		t.Error("rows of a pool that is gone are left")
	}
}

// TestRTTsObserve: a batch counts for its samples; what is no time counts for nothing.
func TestRTTsObserve(t *testing.T) {
	r := NewRTTs(10)
	for _, ms := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		r.Observe(rttKey(1), ms, 1, now)
	}
	r.Observe(rttKey(1), 5, 0, now)
	if r.Len() != 0 {
		t.Errorf("rows %v, want none", r.Rows())
	}
	r.Observe(rttKey(1), 80, 1, now)
	r.Observe(rttKey(1), 160, 2, now)
	if v := r.Rows()[rttKey(1)]; v.Samples != 3 || v.Millis != 98.75 { // 80, 90, 98.75
		t.Errorf("%+v, want 98.75 ms of 3 samples", v)
	}
	r.Observe(rttKey(1), 20, 1_000_000, now)
	if v := r.Rows()[rttKey(1)]; v.Samples != 1_000_003 || v.Millis < 20 || v.Millis > 35 {
		t.Errorf("%+v, want a million samples more, and some of what was before", v)
	}
}

func TestMergeRTTs(t *testing.T) {
	a := map[RTTKey]RTT{rttKey(1): {10, 3, now}, rttKey(2): {50, 1, now}}
	b := map[RTTKey]RTT{rttKey(1): {20, 1, now.Add(time.Second)}, rttKey(4): {1, 0, now}}
	weak := map[RTTKey]RTT{rttKey(1): {99, 100, now}, rttKey(3): {30, 5, now}}
	got := MergeRTTs(weak, a, b)
	want := map[RTTKey]RTT{rttKey(1): {12.5, 4, now.Add(time.Second)}, rttKey(2): {50, 1, now}, rttKey(3): {30, 5, now}}
	if fmt.Sprint(got) != fmt.Sprint(want) || a[rttKey(1)].Millis != 10 {
		t.Errorf("got %v, want %v", got, want)
	}
	if again := MergeRTTs(weak, b, a); fmt.Sprint(again) != fmt.Sprint(want) {
		t.Errorf("in another order: got %v, want %v", again, want)
	}
}

// TestSettled: what hardly changed is the same, and what did is not.
func TestSettled(t *testing.T) {
	at := now.Truncate(24 * time.Hour).Add(time.Hour)
	table := func(ms float64, n int, at time.Time) *RTTTable {
		return NewRTTTable(Settled(map[RTTKey]RTT{rttKey(1): {ms, n, at}}, 16*time.Hour))
	}
	base := table(42.2, 5000, at)
	for _, tt := range []struct {
		name string
		t    *RTTTable
		same bool
	}{
		{"a little slower, later", table(42.4, 6000, at.Add(time.Minute)), true},
		{"slower", table(43, 5000, at), false},
		{"an hour later", table(42.2, 5000, at.Add(time.Hour)), false},
		{"fewer", table(42.2, 10, at), false},
		{"none", NewRTTTable(nil), false},
	} {
		if got := base.Same(tt.t); got != tt.same {
			t.Errorf("%s: same %v, want %v", tt.name, got, tt.same)
		}
	}
	var none *RTTTable
	if !none.Same(NewRTTTable(nil)) || none.Same(base) || table(0.01, 1, at).rows[rttKey(1)].Millis != 0.1 {
		t.Error("the edges")
	}
}

// TestNearRTTs: clients have what the site near them measured, or the one that they are pinned to,
// and those far from all nothing.
func TestNearRTTs(t *testing.T) {
	sites := map[string]config.Site{"fra": {Lat: 50.11, Lon: 8.68}, "ams": {Lat: 52.37, Lon: 4.9}, "nyc": {Lat: 40.71, Lon: -74.01}}
	place := func(prefix string, lat, lon float64, site string) geo.Override {
		return geo.Override{Prefix: netip.MustParsePrefix(prefix), Place: geo.Place{Lat: lat, Lon: lon, Located: true, Site: site}}
	}
	m, err := geo.Open(geo.Config{Overrides: []geo.Override{
		place("198.51.100.0/24", 50, 8, ""), place("203.0.113.0/24", 52, 5, ""), place("192.0.2.0/24", 35, 139, ""), place("10.0.0.0/8", 35, 139, "nyc"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	probed := []ProbedRTT{{"fra", "eu", 2, 20}, {"fra", "us", 90, 0}, {"ams", "eu", 8, 20}, {"nyc", "eu", 85, 5}, {"gone", "eu", 1, 5}, {"ams", "us", 0, 5}}
	var clients []netip.Prefix
	for _, p := range []string{"198.51.100.0/24", "203.0.113.0/24", "192.0.2.0/24", "10.1.2.0/24", "100.64.0.0/24"} {
		clients = append(clients, netip.MustParsePrefix(p))
	}
	key := func(i int, pool string) RTTKey { return RTTKey{clients[i], pool} }
	want := map[RTTKey]RTT{key(0, "eu"): {2, 20, now}, key(0, "us"): {90, 1, now}, key(1, "eu"): {8, 20, now}, key(3, "eu"): {85, 5, now}}
	if got := NearRTTs(probed, sites, m, clients, now, 100); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := NearRTTs(probed, sites, m, clients, now, 3); len(got) != 3 {
		t.Errorf("got %d rows, want the bound, 3", len(got))
	}
	if got := NearRTTs(probed, sites, nil, clients, now, 3); len(got) != 0 {
		t.Errorf("without places: got %v", got)
	}
}
