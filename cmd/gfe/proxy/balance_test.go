package proxy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
)

var now = time.Unix(1_700_000_000, 0)

// peersByID makes the peers of a test, as Upstream.assign does.
func peersByID() (func(pool, site string, addr netip.AddrPort) *peer, map[string]*peer) {
	peers := map[string]*peer{}
	return func(name, site string, addr netip.AddrPort) *peer {
		id := name + "/" + addr.Addr().String()
		if peers[id] == nil {
			peers[id] = &peer{pool: &pool{name: name, site: site}, addr: addr}
		}
		return peers[id]
	}, peers
}

func hop(pool string, priority, weight int, endpoints ...gslb.Endpoint) gslb.Hop {
	return gslb.Hop{Pool: pool, Priority: priority, Weight: weight, Endpoints: endpoints}
}

func endpoint(n byte, weight int) gslb.Endpoint {
	return gslb.Endpoint{Addr: netip.AddrFrom4([4]byte{192, 0, 2, n}), Port: 8080, Weight: weight}
}

func down(e gslb.Endpoint) gslb.Endpoint    { e.Verdict = gslb.Down; return e }
func drained(e gslb.Endpoint) gslb.Endpoint { e.Drained = true; return e }

func id(p *peer) string { return p.pool.name + "/" + p.addr.Addr().String() }

// shares runs choose many times and returns the share of each peer.
func shares(slots []slot, skip *peer) map[string]float64 {
	const n = 20_000
	random := rand.New(rand.NewPCG(1, 2))
	got := map[string]float64{}
	for range n {
		if p := choose(slots, skip, now, random.Float64); p != nil {
			got[id(p)] += 1.0 / n
		}
	}
	return got
}

func TestChoose(t *testing.T) {
	for _, test := range []struct {
		name    string
		hops    []gslb.Hop
		ejected []string
		busy    map[string]uint64 // requests in progress
		skip    string
		want    map[string]float64
	}{
		{"nothing", nil, nil, nil, "", nil},
		{"one", []gslb.Hop{hop("a", 0, 1, endpoint(1, 1))}, nil, nil, "", map[string]float64{"a/192.0.2.1": 1}},
		{"weight 0 is never", []gslb.Hop{hop("a", 0, 0, endpoint(1, 1)), hop("b", 0, 1, endpoint(2, 0))}, nil, nil, "", nil},
		{"weights of endpoints", []gslb.Hop{hop("a", 0, 1, endpoint(1, 1), endpoint(2, 3))}, nil, nil, "",
			map[string]float64{"a/192.0.2.1": 0.25, "a/192.0.2.2": 0.75}},
		{"pools share by weight, whatever their size", []gslb.Hop{hop("a", 0, 1, endpoint(1, 1)), hop("b", 0, 1, endpoint(2, 5), endpoint(3, 5))}, nil, nil, "",
			map[string]float64{"a/192.0.2.1": 0.5, "b/192.0.2.2": 0.25, "b/192.0.2.3": 0.25}},
		{"the best priority takes all", []gslb.Hop{hop("a", 1, 9, endpoint(1, 9)), hop("b", 0, 1, endpoint(2, 1))}, nil, nil, "",
			map[string]float64{"b/192.0.2.2": 1}},
		{"down goes to the next priority", []gslb.Hop{hop("a", 0, 1, down(endpoint(1, 1))), hop("b", 1, 1, endpoint(2, 1))}, nil, nil, "",
			map[string]float64{"b/192.0.2.2": 1}},
		{"ejected goes to the next priority", []gslb.Hop{hop("a", 0, 1, endpoint(1, 1)), hop("b", 1, 1, endpoint(2, 1))}, []string{"a/192.0.2.1"}, nil, "",
			map[string]float64{"b/192.0.2.2": 1}},
		{"all ejected: by priority again", []gslb.Hop{hop("a", 0, 1, endpoint(1, 1)), hop("b", 1, 1, endpoint(2, 1))}, []string{"a/192.0.2.1", "b/192.0.2.2"}, nil, "",
			map[string]float64{"a/192.0.2.1": 1}},
		{"ejected before drained", []gslb.Hop{hop("a", 0, 1, drained(endpoint(1, 1)), endpoint(2, 1))}, []string{"a/192.0.2.2"}, nil, "",
			map[string]float64{"a/192.0.2.2": 1}},
		{"drained before down", []gslb.Hop{hop("a", 0, 1, down(endpoint(1, 1))), hop("b", 1, 1, drained(endpoint(2, 1)))}, nil, nil, "",
			map[string]float64{"b/192.0.2.2": 1}},
		{"all down: open", []gslb.Hop{hop("a", 0, 1, down(endpoint(1, 1)), down(endpoint(2, 1)))}, nil, nil, "",
			map[string]float64{"a/192.0.2.1": 0.5, "a/192.0.2.2": 0.5}},
		{"skip leaves the other", []gslb.Hop{hop("a", 0, 1, endpoint(1, 1), endpoint(2, 1))}, nil, nil, "a/192.0.2.1",
			map[string]float64{"a/192.0.2.2": 1}},
		{"skip leaves nothing", []gslb.Hop{hop("a", 0, 1, endpoint(1, 1))}, nil, nil, "a/192.0.2.1", nil},
		{"of two the less busy", []gslb.Hop{hop("a", 0, 1, endpoint(1, 1), endpoint(2, 1))}, nil, map[string]uint64{"a/192.0.2.1": 1}, "",
			map[string]float64{"a/192.0.2.1": 0.25, "a/192.0.2.2": 0.75}}, // both picks must be the busy one
		{"busy is by weight", []gslb.Hop{hop("a", 0, 1, endpoint(1, 1), endpoint(2, 4))}, nil, map[string]uint64{"a/192.0.2.1": 1, "a/192.0.2.2": 4}, "",
			map[string]float64{"a/192.0.2.1": 0.2, "a/192.0.2.2": 0.8}},
	} {
		t.Run(test.name, func(t *testing.T) {
			peerOf, peers := peersByID()
			s := slots(Assignment{Hops: test.hops}, peerOf)
			for _, id := range test.ejected {
				peers[id].ejected.Store(now.UnixNano() + 1)
			}
			for id, n := range test.busy {
				peers[id].issued.Add(n)
			}
			got := shares(s, peers[test.skip])
			for id := range peers {
				if math.Abs(got[id]-test.want[id]) > 0.02 {
					t.Errorf("share of %s: got %.3f, want %.3f", id, got[id], test.want[id])
				}
			}
			if len(got) != len(test.want) {
				t.Errorf("chosen: got %v, want %v", got, test.want)
			}
		})
	}
}

func TestEjectionEnds(t *testing.T) {
	peerOf, peers := peersByID()
	s := slots(Assignment{Hops: []gslb.Hop{hop("a", 0, 1, endpoint(1, 1)), hop("b", 1, 1, endpoint(2, 1))}}, peerOf)
	peers["a/192.0.2.1"].ejected.Store(now.Add(time.Second).UnixNano())
	for _, test := range []struct {
		after time.Duration
		want  string
	}{{0, "b/192.0.2.2"}, {time.Second - 1, "b/192.0.2.2"}, {time.Second, "a/192.0.2.1"}} {
		if got := id(choose(s, nil, now.Add(test.after), rand.Float64)); got != test.want {
			t.Errorf("after %v: got %s, want %s", test.after, got, test.want)
		}
	}
}

// TestChooseStaysInTheBestGroup compares choose with an obvious twin: sort by class, then by
// priority, and look at the first.
func TestChooseStaysInTheBestGroup(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		var a Assignment
		for h := range random.IntN(4) {
			hp := hop(fmt.Sprint("pool", h), random.IntN(3), random.IntN(3))
			for e := range random.IntN(4) {
				x := endpoint(byte(e), random.IntN(3))
				x.Drained = random.IntN(4) == 0
				x.Verdict = gslb.Verdict(random.IntN(3))
				hp.Endpoints = append(hp.Endpoints, x)
			}
			a.Hops = append(a.Hops, hp)
		}
		peerOf, _ := peersByID()
		s := slots(a, peerOf)
		var skip *peer
		for i := range s {
			if random.IntN(3) == 0 {
				s[i].ejected.Store(math.MaxInt64)
			}
			if random.IntN(5) == 0 {
				skip = s[i].peer
			}
		}
		// The twin.
		best := [2]int{math.MaxInt, math.MaxInt}
		want := map[*peer]bool{}
		for _, x := range s {
			if x.peer == skip {
				continue
			}
			rank := [2]int{int(x.classAt(now.UnixNano())), x.priority}
			if rank[0] < best[0] || rank[0] == best[0] && rank[1] < best[1] {
				best, want = rank, map[*peer]bool{}
			}
			if rank == best {
				want[x.peer] = true
			}
		}
		got := choose(s, skip, now, random.Float64)
		if (got == nil) != (len(want) == 0) || got != nil && !want[got] {
			t.Fatalf("assignment %+v: got %v, want one of %d", a, got, len(want))
		}
	}
}

func TestChooseDoesNotAllocate(t *testing.T) {
	peerOf, _ := peersByID()
	s := slots(Assignment{Hops: []gslb.Hop{hop("a", 0, 1, endpoint(1, 1), endpoint(2, 3)), hop("b", 1, 1, endpoint(3, 1))}}, peerOf)
	if got := testing.AllocsPerRun(100, func() { choose(s, nil, now, rand.Float64) }); got != 0 {
		t.Errorf("allocations: got %v, want 0", got)
	}
}

func BenchmarkChoose(b *testing.B) {
	peerOf, _ := peersByID()
	var a Assignment
	for p := range 3 {
		h := hop(fmt.Sprint("pool", p), p, 1)
		for n := range 20 {
			h.Endpoints = append(h.Endpoints, endpoint(byte(n), 1+n%3))
		}
		a.Hops = append(a.Hops, h)
	}
	s := slots(a, peerOf)
	b.ReportAllocs()
	for b.Loop() {
		choose(s, nil, now, rand.Float64)
	}
}
