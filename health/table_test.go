package health

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
)

var (
	idA = gslb.EndpointID{Pool: "gfe-eu", Addr: netip.MustParseAddr("192.0.2.1")}
	idB = gslb.EndpointID{Pool: "gfe-eu", Addr: netip.MustParseAddr("2001:db8::1")}
	idC = gslb.EndpointID{Pool: "gfe-us", Addr: netip.MustParseAddr("192.0.2.1")}

	epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// randomObservation draws from few values, so that versions collide, also with other values.
func randomObservation(id gslb.EndpointID) Observation {
	return Observation{
		ID: id, Version: Version{uint64(rand.IntN(3)), uint64(rand.IntN(3))},
		Told: Version{uint64(rand.IntN(3)), uint64(rand.IntN(3))},
		Up:   rand.IntN(2) == 0, Flipping: rand.IntN(2) == 0, Class: Class(rand.IntN(3)),
		Latency: time.Duration(rand.IntN(2)), Detail: []string{"", "x"}[rand.IntN(2)],
		At: epoch.Add(time.Duration(rand.IntN(3)) * time.Second),
	}
}

func randomHeading() Heading {
	return Heading{
		Version: Version{uint64(rand.IntN(3)), uint64(rand.IntN(3))},
		Site:    []string{"", "eu"}[rand.IntN(2)], Info: []string{"", "plan"}[rand.IntN(2)],
		Period: time.Duration(rand.IntN(2)), Leaving: rand.IntN(2) == 0, Failing: uint8(rand.IntN(2)), Abstains: rand.IntN(2) == 0, At: epoch.Add(time.Duration(rand.IntN(3)) * time.Second),
	}
}

func TestJoinLaws(t *testing.T) {
	for range 20000 {
		a, b, c := randomObservation(idA), randomObservation(idA), randomObservation(idA)
		checkLaws(t, a, b, c, Observation.join)
		checkLaws(t, randomHeading(), randomHeading(), randomHeading(), Heading.join)
	}
}

// checkLaws wants join to be commutative, associative and idempotent.
func checkLaws[T comparable](t *testing.T, a, b, c T, join func(T, T) T) {
	t.Helper()
	if ab, ba := join(a, b), join(b, a); ab != ba {
		t.Fatalf("join(a, b) = %+v\njoin(b, a) = %+v\na = %+v\nb = %+v", ab, ba, a, b)
	}
	if l, r := join(join(a, b), c), join(a, join(b, c)); l != r {
		t.Fatalf("join(join(a, b), c) = %+v\njoin(a, join(b, c)) = %+v\na = %+v\nb = %+v\nc = %+v", l, r, a, b, c)
	}
	if aa := join(a, a); aa != a {
		t.Fatalf("join(a, a) = %+v\na = %+v", aa, a)
	}
}

// TestTableOrder merges the same reports in many orders, some twice, some in parts.
func TestTableOrder(t *testing.T) {
	for range 300 {
		var reports []Report
		for range 12 {
			r := Report{Node: fmt.Sprintf("ns%d", rand.IntN(3)), Heading: randomHeading()}
			for _, id := range []gslb.EndpointID{idA, idB, idC} {
				if rand.IntN(2) == 0 {
					r.Observations = append(r.Observations, randomObservation(id))
				}
			}
			reports = append(reports, r)
		}
		var want Table
		for _, r := range reports {
			want.Merge(r)
		}
		for range 5 {
			shuffled := slices.Concat(reports, reports[:rand.IntN(len(reports))])
			for _, r := range reports {
				for _, o := range r.Observations {
					shuffled = append(shuffled, Report{Node: r.Node, Heading: r.Heading, Observations: []Observation{o}})
				}
			}
			rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			var got Table
			for _, r := range shuffled {
				got.Merge(r)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("in another order: got %+v, want %+v", got, want)
			}
		}
	}
}

func TestTableMergeChanges(t *testing.T) {
	var table Table
	say := func(seq uint64, up, flipping bool) []Change {
		v := Version{1, seq}
		changed, refused := table.Merge(Report{Node: "ns1", Heading: Heading{Version: v},
			Observations: []Observation{{ID: idA, Version: v, Up: up, Flipping: flipping}}})
		if refused != 0 {
			t.Errorf("seq %d: %d refused, want none", seq, refused)
		}
		return changed
	}
	for _, tc := range []struct {
		name         string
		seq          uint64
		up, flipping bool
		want         []Change
	}{
		{"new", 1, true, false, []Change{{idA, false}}},
		{"the same again", 1, true, false, nil},
		{"refreshed", 2, true, false, nil},
		{"in a failing run", 3, true, true, []Change{{idA, false}}},
		{"flipped", 4, false, false, []Change{{idA, true}}},
		{"an older one arrives late", 2, true, false, nil},
		{"back", 5, true, false, []Change{{idA, true}}},
	} {
		if got := say(tc.seq, tc.up, tc.flipping); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestTableVotes(t *testing.T) {
	const interval = 4 * time.Second // stale after 12 s
	at := func(d time.Duration) time.Time { return epoch.Add(d) }
	report := func(seq uint64, heard, made time.Duration, period time.Duration) Report {
		v := Version{1, seq}
		return Report{Node: "ns1", Heading: Heading{Version: v, Site: "eu", Period: period, At: at(heard)},
			Observations: []Observation{{ID: idA, Version: v, Up: true, At: at(made)}}}
	}
	for _, tc := range []struct {
		name    string
		reports []Report
		gone    int // after so many reports membership loses the node; -1 never
		now     time.Duration
		want    int
	}{
		{"nothing", nil, -1, 0, 0},
		{"fresh", []Report{report(1, 0, 0, 0)}, -1, time.Second, 1},
		{"node silent within the floor", []Report{report(1, 0, 0, 0)}, -1, staleFloor, 1},
		{"node silent for too long", []Report{report(1, 0, 0, 0)}, -1, staleFloor + 1, 0},
		{"node that promised less", []Report{report(1, 0, 0, 4*time.Second)}, -1, staleFloor + 1, 1},
		{"node speaks, probe hangs", []Report{report(1, 0, 0, 0), {Node: "ns1", Heading: Heading{Version: Version{1, 2}, At: at(12 * time.Second)}}}, -1, 12 * time.Second, 1},
		{"node speaks, probe hangs too long", []Report{report(1, 0, 0, 0), {Node: "ns1", Heading: Heading{Version: Version{1, 2}, At: at(12 * time.Second)}}}, -1, 12*time.Second + 1, 0},
		{"repeated later is no younger", []Report{report(1, 0, 0, 0), report(1, 9*time.Second, 9*time.Second, 0)}, -1, 9 * time.Second, 0},
		{"dead", []Report{report(1, 0, 0, 0)}, 1, time.Second, 0},
		{"dead and repeated by others", []Report{report(2, 0, 0, 0), report(1, 0, 0, 0), report(2, 0, 0, 0)}, 1, time.Second, 0},
		{"left", []Report{report(1, 0, 0, 0), {Node: "ns1", Heading: Heading{Version: Version{1, 3}, Leaving: true}}, report(2, 0, 0, 0)}, -1, 0, 0},
		{"left and back", []Report{{Node: "ns1", Heading: Heading{Version: Version{0, 3}, Leaving: true}}, report(1, 0, 0, 0)}, -1, 0, 1},
		{"dead and heard again", []Report{report(1, 0, 0, 0), report(2, time.Second, time.Second, 0)}, 1, time.Second, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var table Table
			for i, r := range tc.reports {
				table.Merge(r)
				if i+1 == tc.gone {
					table.Gone("ns1")
				}
			}
			votes, _ := table.Votes(idA, interval, at(tc.now))
			if len(votes) != tc.want {
				t.Errorf("got %+v, want %d votes", votes, tc.want)
			}
			if tc.want == 1 && (votes[0] != Vote{Node: "ns1", Site: "eu", Up: true}) && len(tc.reports) == 1 {
				t.Errorf("got %+v", votes[0])
			}
		})
	}
}

func TestTableBounds(t *testing.T) {
	var table Table
	for i := range maxNodes + 10 {
		table.Merge(Report{Node: fmt.Sprint(i), Heading: Heading{At: epoch}})
	}
	if got := len(table.Names()); got != maxNodes {
		t.Errorf("got %d nodes, want %d", got, maxNodes)
	}
	if _, refused := table.Merge(Report{Node: "one more", Observations: make([]Observation, 3)}); refused != 3 {
		t.Errorf("got %d refused, want 3", refused)
	}

	table = Table{}
	r := Report{Node: "ns1", Heading: Heading{At: epoch}}
	for i := range maxRegisters + 5 {
		id := gslb.EndpointID{Pool: "p", Addr: netip.AddrFrom4([4]byte{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)})}
		r.Observations = append(r.Observations, Observation{ID: id, At: epoch})
	}
	if changed, refused := table.Merge(r); refused != 5 || len(changed) != maxRegisters {
		t.Errorf("got %d changed, %d refused, want %d and 5", len(changed), refused, maxRegisters)
	}
	table.Remove("ns1", r.Observations[0].ID)
	if _, refused := table.Merge(Report{Node: "ns1", Observations: r.Observations[maxRegisters:]}); refused != 4 {
		t.Errorf("after one was removed: got %d refused, want 4", refused)
	}
	table.Forget(epoch.Add(forgetAfter + 1))
	if got := len(table.Names()); got != 0 || table.registers != 0 {
		t.Errorf("after long silence: %d nodes, %d registers left, want none", got, table.registers)
	}
}

// TestReport wants what a table says of a node to be the same table elsewhere.
func TestReport(t *testing.T) {
	var table Table
	table.Merge(Report{Node: "ns1", Heading: Heading{Version: Version{2, 9}, At: epoch}, Observations: []Observation{
		{ID: idB, Version: Version{2, 3}, Up: true}, {ID: idA, Version: Version{2, 9}}, {ID: idC, Version: Version{1, 70}},
	}})
	var ids []gslb.EndpointID
	for _, o := range table.Report("ns1").Observations {
		ids = append(ids, o.ID)
	}
	if want := []gslb.EndpointID{idA, idB}; !slices.Equal(ids, want) { // idC is of an earlier life
		t.Errorf("got %v, want %v", ids, want)
	}
	if r := table.Report("ns1", idB); len(r.Observations) != 1 || !r.Observations[0].Up {
		t.Errorf("one endpoint: got %+v", r)
	}
	if r := table.Report("ns2"); len(r.Observations) != 0 || r.Node != "ns2" {
		t.Errorf("of an unknown node: got %+v", r)
	}
}
