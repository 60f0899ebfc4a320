package health

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// keyOf returns the key of a node by its name: the same each time.
func keyOf(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

// keyedPools are pools with the keys of nodes.
func keyedPools(nodes ...string) *config.Objects {
	o := threePools(config.Probe{TCP: &config.TCPProbe{Port: 1}, Interval: config.Duration(time.Second)}, nil)
	o.Nodes = make(map[string]config.NodeKey)
	for _, n := range nodes {
		o.Nodes[n] = config.NodeKey{Key: base64.StdEncoding.EncodeToString(keyOf(n).Public().(ed25519.PublicKey))}
	}
	return o
}

func TestBundleRoundTrip(t *testing.T) {
	var packets [][]byte
	var b []byte
	for i := range 50 {
		e := seal(keyOf("a"), bytes.Repeat([]byte{byte(i)}, i*40))
		e.age = time.Duration(i) * time.Second
		p := e.append(nil)
		packets = append(packets, p)
		var ok bool
		if b, ok = appendBundle(b, p, maxState); !ok {
			t.Fatal("no room")
		}
		got, err := openEnvelope(p)
		if err != nil || got.age != e.age || !bytes.Equal(got.message, e.message) || !got.signedBy(keyOf("a").Public().(ed25519.PublicKey)) {
			t.Errorf("got %+v, %v", got, err)
		}
		if got.message = append([]byte("x"), got.message...); got.signedBy(keyOf("a").Public().(ed25519.PublicKey)) {
			t.Error("another message has the same signature")
		}
	}
	got, err := openBundle(b)
	if err != nil || !reflect.DeepEqual(got, packets) {
		t.Errorf("got %d packets, %v", len(got), err)
	}
	if _, ok := appendBundle(b, packets[1], len(b)+10); ok {
		t.Error("a packet over the limit was taken")
	}
	want := []known{{"ns1", Version{7, 8}, time.Minute}, {"ns2", Version{9, 1}, 0}}
	node, all, err := openDigest(appendDigest(nil, "ns9", want))
	if node != "ns9" || !reflect.DeepEqual(all, want) || err != nil {
		t.Errorf("got %q, %v, %v", node, all, err)
	}
}

// marks returns each of b's marks, also those that say nothing.
func (b *Bits) marks() []byte {
	marks := make([]byte, b.Count)
	for at, m := range b.all(b.First + b.Count) {
		marks[at-b.First] = m
	}
	return marks
}

func TestBitsRoundTrip(t *testing.T) {
	for _, n := range []int{1, 2, 3, 1000, 5001} {
		r := sampleReport(0)
		marks := make([]byte, n)
		for i := range marks {
			if rand.IntN(4) > 0 {
				marks[i] = markKnown | byte(rand.IntN(4))<<1
			}
		}
		var got []byte
		messages := encodeBits(&r, marks, epoch, maxPacket)
		for _, m := range messages {
			if len(m) > maxPacket {
				t.Errorf("%d targets: a message of %d octets, want at most %d", n, len(m), maxPacket)
			}
			back, err := decodeMessage(m, epoch)
			if err != nil || back.Bits.First != len(got) || back.Heading != r.Heading {
				t.Fatalf("%d targets: got %+v, %v", n, back, err)
			}
			got = append(got, back.Bits.marks()...)
		}
		if !bytes.Equal(got, marks) {
			t.Errorf("%d targets: got %v, want %v", n, got, marks)
		}
		// The same size whatever is said.
		calm := encodeBits(&r, bytes.Repeat([]byte{markKnown | markUp}, n), epoch, maxPacket)
		if len(calm) != len(messages) || len(calm[0]) != len(messages[0]) {
			t.Errorf("%d targets: %d messages of %d octets in calm, %d of %d in storm", n, len(calm), len(calm[0]), len(messages), len(messages[0]))
		}
	}
}

// TestBitsBesideReports wants bitmaps and reports to say the same in any order.
func TestBitsBesideReports(t *testing.T) {
	list := []gslb.EndpointID{idA, idB, idC}
	for range 300 {
		var reports []Report
		for seq := range uint64(8) {
			v := Version{1, seq + 1}
			r := Report{Node: "ns1", Heading: Heading{Version: v, At: epoch}}
			up := rand.IntN(2) == 0
			if rand.IntN(2) == 0 {
				r.Observations = []Observation{{ID: idA, Version: v, Told: v, Up: up, Class: Class(rand.IntN(3)), At: epoch}}
			} else {
				r.Bits = &Bits{Count: 3, Octets: []byte{markOf(&Observation{Up: up}) | markKnown<<4, 0}}
				r.Observations = r.observations(list, nil)
				r.Bits = nil
			}
			reports = append(reports, r)
		}
		var want, got Table
		for _, r := range reports {
			want.Merge(r)
		}
		rand.Shuffle(len(reports), func(i, j int) { reports[i], reports[j] = reports[j], reports[i] })
		for _, r := range slices.Concat(reports, reports) {
			got.Merge(r)
		}
		if !reflect.DeepEqual(got, want) || got.Digest(epoch) != want.Digest(epoch) {
			t.Fatalf("got %+v\nwant %+v", got, want)
		}
	}
}

// TestHearBitmaps lets a monitor hear words of a node of which some are lost, late or repeated,
// and flips between them. Whenever it has heard the last word whole, it wants the table to hold
// what that says, fresh, and nothing else.
func TestHearBitmaps(t *testing.T) {
	m := New(Options{Node: "ns1", Site: "a"})
	m.SetTargets(fakeTargets(9))
	list := m.lists.byHash[m.self.List]
	says := make([]byte, len(list)) // of each target
	heading := Heading{Version: Version{Epoch: 1}, Site: "b", List: m.self.List}
	hear := func(message []byte) {
		e := seal(nil, message)
		m.hear(e.append(nil))
	}
	kinds := []byte{0, 0, 0, markKnown, markKnown | markUp, markKnown | markUp | markFlipping}
	var held [][]byte // messages that come late, if ever
	confirmed := 0
	for range 3000 {
		heading.Version.Seq++
		r := Report{Node: "ns2", Heading: heading}
		change := rand.IntN(2) == 0
		at := rand.IntN(len(list))
		if change {
			says[at] = kinds[rand.IntN(len(kinds))]
		}
		var word [][]byte
		if mark := says[at]; change && mark != 0 && rand.IntN(2) == 0 { // told at once
			o := Observation{ID: list[at], Version: heading.Version, Told: heading.Version, Up: mark&markUp != 0, Flipping: mark&markFlipping != 0}
			r.Observations = []Observation{o}
			word = encodeReport(&r, time.Now(), maxPacket)
		} else {
			head := len(appendHeading(nil, &r, time.Now())) + 2 + 2*binary.MaxVarintLen32
			word = encodeBits(&r, says, time.Now(), head+2+rand.IntN(3)*2) // pages of four targets or more
		}
		if len(held) > 0 && rand.IntN(3) == 0 {
			i := len(held) - 1 - rand.IntN(min(2, len(held)))
			hear(held[i])
			held = slices.Delete(held, i, i+1)
		}
		whole := word[0][1] == kindBits
		for _, message := range word {
			switch rand.IntN(6) {
			case 0:
				held = append(held, message)
				whole = false
			case 1:
				hear(message)
				held = append(held, message)
			default:
				hear(message)
			}
		}
		v := m.table.nodes["ns2"]
		if v == nil {
			continue
		}
		v.room = budget{}
		if !whole {
			continue
		}
		for i, id := range list {
			o, ok := v.observed[id]
			if ok && !o.Silent {
				if got := markOf(&o.Observation); got != says[i] || o.Version != heading.Version {
					t.Fatalf("word %d: %v is %#x in %v, want %#x", heading.Version.Seq, id, got, o.Version, says[i])
				}
				confirmed++
			} else if says[i] != 0 {
				t.Fatalf("word %d: nothing of %v, want %#x", heading.Version.Seq, id, says[i])
			}
		}
	}
	if s := m.Stats(); confirmed == 0 || s.GossipDropped["malformed"]+s.GossipDropped["flood"] > 0 {
		t.Errorf("%d votes were looked at, %v dropped", confirmed, s.GossipDropped)
	}
}

// TestAssign lets nodes of a site come and go, and wants of each what a count from the start says.
func TestAssign(t *testing.T) {
	m := New(Options{Node: "ns50", Site: "a"})
	targets := fakeTargets(40)
	for i := range targets {
		targets[i].Probe.Vantages = i % 4 // 0: all
	}
	m.SetTargets(targets)
	var peers []string
	for range 200 {
		if i := rand.IntN(100); i != 50 {
			name := fmt.Sprintf("ns%02d", i)
			if at, ok := slices.BinarySearch(peers, name); ok {
				peers = slices.Delete(slices.Clone(peers), at, at+1)
			} else {
				peers = slices.Insert(slices.Clone(peers), at, name)
			}
		}
		m.reassign = rand.IntN(20) == 0
		var got, want []gslb.EndpointID
		for _, x := range m.assignLocked(peers) {
			got = append(got, x.ID)
		}
		for _, x := range targets {
			before := 0
			for _, p := range peers {
				if own, w := rendezvous("ns50", x.ID), rendezvous(p, x.ID); w > own {
					before++
				}
			}
			if k := x.Probe.Vantages; k == 0 || k > len(peers) || before < k {
				want = append(want, x.ID)
			}
		}
		slices.SortFunc(want, compareID)
		if !slices.Equal(got, want) {
			t.Fatalf("among %v: got %v, want %v", peers, got, want)
		}
	}
}

// TestHearForged gives a monitor that knows the keys of nodes what their owners did not sign,
// what is repeated, and more than anybody says.
func TestHearForged(t *testing.T) {
	synctest.Test(t, testHearForged) // time stands still while the flood comes
}

func testHearForged(t *testing.T) {
	var log strings.Builder
	m := New(Options{Node: "ns1", Site: "a", Key: keyOf("ns1"), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	m.Configure(keyedPools("ns1", "ns2", "ns3"))
	say := func(node string, seq uint64, key ed25519.PrivateKey) []byte {
		v := Version{5, seq}
		r := Report{Node: node, Heading: Heading{Version: v, At: time.Now()}, Observations: []Observation{
			{ID: gslb.EndpointID{Pool: "a", Addr: addrOfPool(0, 1)}, Version: v, At: time.Now()}}}
		e := seal(key, encodeReport(&r, time.Now(), maxPacket)[0])
		return e.append(nil)
	}
	for _, tc := range []struct {
		name    string
		packet  []byte
		dropped string
	}{
		{"not signed", say("ns2", 1, nil), "forged"},
		{"signed by another node", say("ns2", 1, keyOf("ns3")), "forged"},
		{"a node that nobody knows", say("ns4", 1, keyOf("ns4")), "unsigned"},
		{"changed on the way", append(say("ns2", 1, keyOf("ns2")), 0), "malformed"},
	} {
		before := m.Stats().GossipDropped[tc.dropped]
		m.hear(tc.packet)
		if got := m.Stats().GossipDropped[tc.dropped]; got != before+1 || len(m.table.Names()) != 0 {
			t.Errorf("%s: %d dropped as %s, want %d; nodes %v", tc.name, got, tc.dropped, before+1, m.table.Names())
		}
	}
	if got := log.String(); strings.Count(got, "not believed") != 1 || !strings.Contains(got, "peer=ns2") {
		t.Errorf("logged %q, want one warning that names ns2", got)
	}
	first := say("ns2", 9, keyOf("ns2"))
	m.hear(first)
	m.hear(say("ns2", 10, keyOf("ns2")))
	heard := m.table.nodes["ns2"].heading
	m.hear(first)
	if s := m.Stats(); s.Repeated != 1 || m.table.nodes["ns2"].heading != heard {
		t.Errorf("a replay: %d repeated, heading %+v, want 1 and %+v", s.Repeated, m.table.nodes["ns2"].heading, heard)
	}
	m.table.nodes["ns2"].room.spent = messageBurst - 5 // most of a burst: each signature takes its time
	for range 20 {
		m.hear(first)
	}
	if got := m.Stats().GossipDropped["flood"]; got != 15 {
		t.Errorf("a flood: %d dropped, want 15", got)
	}
}

// TestBudget wants a whole burst let through, then what the rate allows.
func TestBudget(t *testing.T) {
	var b budget
	now := time.Now()
	took := func(n int) (taken int) {
		for range n {
			if b.take(now, messageRate, messageBurst) {
				taken++
			}
		}
		return taken
	}
	if got := took(messageBurst + 100); got != messageBurst {
		t.Errorf("at once: %d taken, want %d", got, messageBurst)
	}
	now = now.Add(time.Second / 2)
	if got := took(messageRate); got != messageRate/2 {
		t.Errorf("half a second later: %d taken, want %d", got, messageRate/2)
	}
	now = now.Add(time.Hour)
	if got := took(2 * messageBurst); got != messageBurst {
		t.Errorf("an hour later: %d taken, want %d", got, messageBurst)
	}
}

// TestSimSigned runs a fleet whose words are signed, with one node that has the gossip's key
// but no other, and one that has stolen a name.
func TestSimSigned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.net.delay = 20 * time.Millisecond
		o := keyedPools("ns0", "ns1", "ns2")
		node := func(i int, key string) *simNode {
			return w.runWith(i, nil, func(o *Options) { o.Key = keyOf(key) }, func(m *Monitor) { m.Configure(o) })
		}
		for i := range 3 {
			w.nodes = append(w.nodes, node(i, fmt.Sprintf("ns%d", i)))
		}
		honest := w.nodes
		w.until(15*time.Second, "all hear all", func() bool { return w.nodes[0].votes() == "+ns0 +ns1 +ns2" })
		for i := range 3 {
			w.kill(gslb.EndpointID{Pool: "a", Addr: addrOfPool(0, 1)}, func(node int) bool { return node >= 3 })
			w.nodes = append(w.nodes, node(3+i, "evil"))
		}
		defer w.stop()
		time.Sleep(30 * time.Second)
		for _, n := range honest {
			if s := n.Stats(); n.votes() != "+ns0 +ns1 +ns2" || s.Flips != 0 || s.GossipDropped["unsigned"] == 0 {
				t.Errorf("ns%d counts %s, %d flips, %v", n.number, n.votes(), s.Flips, s.GossipDropped)
			}
		}
	})
}

// TestSimKeyRotation changes the key of a fleet while it runs: nobody stops hearing anybody.
func TestSimKeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.start(3, 1)
		defer w.stop()
		all := func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.votes() != "+ns0 +ns1 +ns2" })
		}
		w.until(15*time.Second, "all hear all", all)
		old, fresh := "MDEyMzQ1Njc4OWFiY2RlZg==", key('n')
		for _, step := range []struct {
			key  string
			more []string
		}{{old, []string{fresh}}, {fresh, []string{old}}, {fresh, nil}} {
			for _, n := range w.nodes {
				if err := n.SetGossipKeys(step.key, step.more); err != nil {
					t.Fatal(err)
				}
				for range 20 {
					time.Sleep(time.Second)
					if !all() {
						t.Fatalf("in step %+v: %s", step, w.dump())
					}
				}
			}
		}
		for _, n := range w.nodes {
			if got := n.Stats().GossipDropped["refused"]; got != 0 {
				t.Errorf("%d refused, want none", got)
			}
		}
		if err := w.nodes[0].SetGossipKeys("", nil); err == nil {
			t.Error("a gossip without its key, want an error")
		}
	})
}

// TestSimVantages wants k vantages per site for each endpoint, work that is shared, and the
// loss of a node to move only its own.
func TestSimVantages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.net.delay = 20 * time.Millisecond
		const nodes, endpoints, k = 12, 24, 2 // four nodes in each of three sites
		targets := fakeTargets(endpoints)
		for i := range targets {
			targets[i].Probe.Vantages = k
		}
		for i := range nodes {
			w.nodes = append(w.nodes, w.run(i, targets, nil))
		}
		defer func() { w.stop() }()
		votes := func(n *simNode) (out map[string]string) {
			out = make(map[string]string)
			for _, v := range n.Views() {
				for _, s := range v.Vantages {
					if s.Fresh {
						out[v.Endpoint.String()] += s.Node + " "
					}
				}
			}
			return out
		}
		settled := func(want int) func() bool {
			return func() bool {
				for _, n := range w.nodes {
					for _, v := range n.Views() {
						sites := make(map[string]int)
						for _, s := range v.Vantages {
							if s.Fresh {
								sites[s.Site]++
							}
						}
						for _, n := range sites {
							if n != want {
								return false
							}
						}
						if len(sites) != 3 {
							return false
						}
					}
				}
				return true
			}
		}
		w.until(40*time.Second, "two vantages in each site", settled(k))
		for _, n := range w.nodes {
			if mine := len(n.assigned); mine < endpoints*k/4/2 || mine > endpoints*k/4*2 {
				t.Errorf("ns%d probes %d of %d, want about %d", n.number, mine, endpoints, endpoints*k/4)
			}
		}
		before := votes(w.nodes[0])
		lost := w.nodes[11]
		lost.stop()
		w.nodes = w.nodes[:11]
		w.until(30*time.Second, "two vantages in each site again", settled(k))
		moved := 0
		for id, now := range votes(w.nodes[0]) {
			for node := range strings.FieldsSeq(before[id]) {
				if node != "ns11" && !strings.Contains(now, node+" ") {
					t.Errorf("%s: %s no longer probes it, and was not lost: %s, then %s", id, node, before[id], now)
				}
			}
			if before[id] != now {
				moved++
			}
		}
		if moved != len(lost.assigned) {
			t.Errorf("%d endpoints moved, want the %d of the lost node", moved, len(lost.assigned))
		}
		w.kill(idOf(7), everywhere)
		w.until(5*time.Second, "down everywhere", func() bool { return w.agreed(idOf(7), gslb.Down) })
	})
}

// TestSimRoles wants a node that only answers to probe nothing and to know all.
func TestSimRoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		for i := range 3 {
			role := map[int]string{0: config.RoleFull, 1: config.RoleProber, 2: config.RoleAnswer}[i]
			w.nodes = append(w.nodes, w.runWith(i, fakeTargets(3), func(o *Options) { o.Role = role }, nil))
		}
		defer w.stop()
		w.until(15*time.Second, "two vantages", func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.votes() != "+ns0 +ns1" })
		})
		<-w.nodes[2].FirstRound()
		w.kill(idOf(0), everywhere)
		w.until(5*time.Second, "down everywhere", func() bool { return w.agreed(idOf(0), gslb.Down) })
		if s := w.nodes[2].Stats(); s.Probes["ok"] != 0 {
			t.Errorf("the node that only answers has probed: %+v", s)
		}
	})
}

// TestSimConstantWork wants the same octets on the wire in calm and when everything is down.
func TestSimConstantWork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		const endpoints, span = 60, 24
		w.start(6, endpoints)
		defer w.stop()
		w.until(40*time.Second, "all hear all", func() bool { return strings.Count(w.nodes[5].votes(), "+ns") == 6 })
		measure := func() float64 {
			time.Sleep(15 * time.Second)
			var octets int
			w.net.set(func() { w.net.bytes = 0 })
			time.Sleep(span * time.Second)
			w.net.set(func() { octets = w.net.bytes })
			return float64(octets) / span / 6
		}
		calm := measure()
		for i := range endpoints {
			w.kill(idOf(i), everywhere)
		}
		storm := measure()
		t.Logf("%d endpoints, 6 nodes: %.0f octets/s a node when all is up, %.0f when all is down", endpoints, calm, storm)
		if storm > 1.5*calm { // the page of results carries details
			t.Errorf("%.0f octets/s a node, then %.0f", calm, storm)
		}
	})
}

func TestRendezvousShares(t *testing.T) {
	counts := make(map[string]int)
	for i := range 3000 {
		id := gslb.EndpointID{Pool: "p", Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}
		best := slices.MaxFunc([]string{"ns1", "ns2", "ns3"}, func(a, b string) int {
			if rendezvous(a, id) < rendezvous(b, id) {
				return -1
			}
			return 1
		})
		counts[best]++
	}
	for n, c := range counts {
		if c < 850 || c > 1150 {
			t.Errorf("%s has %d of 3000, want about 1000: %v", n, c, counts)
		}
	}
}
