package health

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/meridian-gslb/meridian/gslb"
)

const (
	// staleFactor is how many intervals without news make an observation stale: two may be
	// lost on the way.
	staleFactor = 3
	// staleFloor is the least age that is stale, so that short intervals outlive the pace of
	// gossip: four of five lost heartbeats.
	staleFloor = 5 * time.Second
	// forgetAfter is the silence after which a node is forgotten. It is long, since a version
	// that was forgotten could be replayed.
	forgetAfter = 10 * time.Minute
	// maxInterval is the longest that a probe may have.
	maxInterval = time.Hour

	maxNodes     = 1024    // vantages in a table
	maxRegisters = 1 << 18 // observations in a table, some 50 MiB
)

// Version orders what one node wrote: by its life, then by a counter within it. Only the
// node itself makes new versions.
type Version struct {
	Epoch uint64 // of the node's life; grows with each
	Seq   uint64
}

// Compare returns -1, 0 or 1 as v is older than, the same as or newer than w.
func (v Version) Compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Epoch, w.Epoch), cmp.Compare(v.Seq, w.Seq))
}

// Observation is what one node found at one endpoint: two registers that the node alone
// writes. One is its vote, which bitmaps repeat; the other is the result behind it, for people.
type Observation struct {
	ID       gslb.EndpointID
	Version  Version   // of the vote
	At       time.Time // when the vote was made or confirmed, by the clock of who holds it
	Up       bool      // after rise and fall
	Flipping bool      // Up may be about to change
	Silent   bool      // it says nothing of the endpoint any more

	Class   Class
	Score   uint8   // 0..100
	Told    Version // of the result; zero when none was told yet
	Latency time.Duration
	Detail  string
}

// join returns the newer of two values of each register. It is commutative, associative and
// idempotent. Of one version there is only one value, unless two nodes share a name; then
// any fixed order will do. Of two times that one version was made the earlier is nearer the
// truth, since a way through the network only makes it later: so nothing repeated is young.
func (o Observation) join(p Observation) Observation {
	vote := &o
	switch c := o.Version.Compare(p.Version); {
	case c < 0:
		vote = &p
	case c == 0:
		if p.compareVote(o) > 0 {
			vote = &p
		}
		vote.At = earlier(o.At, p.At)
	}
	result := &o
	if c := o.Told.Compare(p.Told); c < 0 || c == 0 && p.compareResult(o) > 0 {
		result = &p
	}
	return Observation{ID: o.ID, Version: vote.Version, Up: vote.Up, Flipping: vote.Flipping, Silent: vote.Silent, At: vote.At,
		Told: result.Told, Class: result.Class, Latency: result.Latency, Score: result.Score, Detail: result.Detail}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (o Observation) compareVote(p Observation) int {
	return cmp.Or(compareBool(o.Up, p.Up), compareBool(o.Flipping, p.Flipping), compareBool(o.Silent, p.Silent))
}

func (o Observation) compareResult(p Observation) int {
	return cmp.Or(cmp.Compare(o.Class, p.Class), cmp.Compare(o.Latency, p.Latency), cmp.Compare(o.Score, p.Score), cmp.Compare(o.Detail, p.Detail))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}

// Heading is what a node says of itself with everything that it says: a register too.
type Heading struct {
	Version Version
	Site    string
	Info    string        // for people and for comparison between nodes, such as the plan it serves
	Period  time.Duration // at most this passes between two words of the node to each other node
	Leaving bool          // its last word: it no longer counts
	// What it says of itself as a vantage.
	Failing  uint8     // percent of what it tests that fails for it
	Abstains bool      // it knows that it is cut off
	Blind    bool      // it tests nothing: it only answers
	List     uint64    // which list of targets its bitmaps are of; see listOf
	At       time.Time // when it was said, by the clock of who holds it
}

// join is to Heading what it is to Observation.
func (h Heading) join(i Heading) Heading {
	switch c := h.Version.Compare(i.Version); {
	case c > 0:
		return h
	case c < 0:
		return i
	}
	at := h.At
	if i.At.Before(at) {
		at = i.At
	}
	if cmp.Or(cmp.Compare(i.Site, h.Site), cmp.Compare(i.Info, h.Info), cmp.Compare(i.Period, h.Period), compareBool(i.Leaving, h.Leaving),
		cmp.Compare(i.Failing, h.Failing), compareBool(i.Abstains, h.Abstains), compareBool(i.Blind, h.Blind), cmp.Compare(i.List, h.List)) > 0 {
		h = i
	}
	h.At = at
	return h
}

// patience is how long h's node may be silent and still be believed.
func (h Heading) patience() time.Duration {
	return max(staleFloor, staleFactor*h.Period)
}

// Report is one node's observations, all or some, with its heading.
type Report struct {
	Node         string
	Heading      Heading
	Observations []Observation
	Bits         *Bits // in place of Observations
	Part         *Part // likewise: of the node's note
}

// Table is everything that is known of all nodes' observations. The order and the number of
// times in which reports are merged make no difference to it. It is not safe for concurrent
// use. The zero value is empty.
type Table struct {
	nodes     map[string]*vantage
	order     []standing                  // of each of nodes, by name: order[v.place].of is v
	voters    map[gslb.EndpointID][]voter // who has an observation of it, by name
	registers int                         // observations of all nodes
}

// vantage is one node in a table.
type vantage struct {
	name     string
	place    int // in the table's order
	heading  Heading
	gone     Version // what was said up to here no longer counts: the node died or left after it
	room     budget  // for messages that it signed
	pages    []page  // the last of its bitmaps, by their first target
	observed map[gslb.EndpointID]*register
	notes    notes
}

// standing is what each beat asks of every vantage, all of them side by side: the vantages of a
// large fleet take more memory than any cache has. It follows from the vantage; see stand.
type standing struct {
	of                       *vantage
	name, site               string
	at                       time.Duration // when it was heard, by uptime
	patience                 time.Duration // for how long that counts; 0: not at all, since it left or membership lost it
	list                     uint64
	failing                  uint8
	leaving, abstains, blind bool
	counted, doubted         bool // Turned's: it was alive and not in doubt when that looked last; it is in doubt while that looks
}

// stand brings v's standing up to date. Whoever changes v's heading, or what is gone, calls it.
func (t *Table) stand(v *vantage) {
	h, s := &v.heading, &t.order[v.place]
	s.site, s.at, s.list, s.failing, s.leaving, s.abstains, s.blind = h.Site, uptime(h.At), h.List, h.Failing, h.Leaving, h.Abstains, h.Blind
	if s.patience = h.patience(); h.Leaving || h.Version.Compare(v.gone) <= 0 {
		s.patience = 0
	}
}

// enlist gives v a place in the order.
func (t *Table) enlist(v *vantage) {
	i, _ := slices.BinarySearchFunc(t.order, v.name, func(s standing, name string) int { return strings.Compare(s.name, name) })
	t.order = slices.Insert(t.order, i, standing{of: v, name: v.name})
	t.renumber(i)
	t.stand(v)
}

// strike takes v's place away.
func (t *Table) strike(v *vantage) {
	t.order = slices.Delete(t.order, v.place, v.place+1)
	t.renumber(v.place)
}

// renumber tells the vantages from i on their places.
func (t *Table) renumber(i int) {
	for ; i < len(t.order); i++ {
		t.order[i].of.place = i
	}
}

// started is when this process did. What is reckoned from it is cheap to compare.
var started = time.Now()

// uptime is what at is reckoned from started, or before it.
func uptime(at time.Time) time.Duration { return max(at.Sub(started), math.MinInt64/2) }

// alive reports whether the vantage is heard at that uptime: not too long ago, since membership
// last lost it, and not with its last word.
func (s *standing) alive(now time.Duration) bool { return s.patience > 0 && now-s.at <= s.patience }

// alive is that of v's standing.
func (t *Table) alive(v *vantage, now time.Time) bool { return t.order[v.place].alive(uptime(now)) }

// fresh reports whether v's observation o of an endpoint that is probed every interval still
// counts at now.
func (t *Table) fresh(v *vantage, o *register, interval time.Duration, now time.Time) bool {
	return t.alive(v, now) && now.Sub(o.At) <= t.order[v.place].lasts(interval)
}

// lasts is how old what the vantage says of an endpoint that is probed every interval may be.
func (s *standing) lasts(interval time.Duration) time.Duration {
	return max(staleFactor*interval, s.patience)
}

// register is what a vantage says of an endpoint, and what is remembered of its word beside that.
type register struct {
	Observation
	seen *seen // nil: nothing; see Monitor.seeLocked
}

// voter is a vantage and what it says of an endpoint.
type voter struct {
	*vantage
	said *register
}

func compareVoter(v voter, name string) int { return strings.Compare(v.name, name) }

// page is one bitmap as it was signed.
type page struct {
	first   int // of its targets in the list
	version Version
	list    uint64
	settled bool        // the table has taken in all of it, and no other vote of the node since
	stands  []*register // if settled: those that its marks say
	sealed  envelope    // as it came; shared, so never changed
	count   int         // of its marks
	octets  []byte      // these at the end of it
	at      time.Time   // when it was heard, less the age
}

// Change is an observation that is new, or whose Up or Flipping is.
type Change struct {
	ID   gslb.EndpointID
	Flip bool // it was known, and Up turned
}

// Merge takes in a report. It returns what it changed, and how many observations the table
// had no room for.
func (t *Table) Merge(r Report) (changed []Change, refused int) {
	v := t.nodes[r.Node]
	if v == nil {
		if len(t.nodes) >= maxNodes {
			return nil, max(1, len(r.Observations))
		}
		if t.nodes == nil {
			t.nodes, t.voters = make(map[string]*vantage), make(map[gslb.EndpointID][]voter)
		}
		v = &vantage{name: r.Node, heading: r.Heading, observed: make(map[gslb.EndpointID]*register)}
		v.heading.Site = unique.Make(r.Heading.Site).Value()
		t.nodes[r.Node] = v
		t.enlist(v)
	}
	t.hear(v, r.Heading)
	for _, o := range r.Observations {
		kept, had := v.observed[o.ID]
		var old Observation
		if !had {
			if o.Silent {
				continue // nothing is nothing new
			}
			if t.registers >= maxRegisters {
				refused++
				continue
			}
			t.registers++
			kept = new(register)
			v.observed[o.ID] = kept
			i, _ := slices.BinarySearchFunc(t.voters[o.ID], v.name, compareVoter)
			t.voters[o.ID] = slices.Insert(t.voters[o.ID], i, voter{v, kept})
		} else {
			old = kept.Observation
			o = old.join(o)
		}
		kept.Observation = o
		if !had || old.Up != o.Up || old.Flipping != o.Flipping || old.Silent != o.Silent {
			changed = append(changed, Change{ID: o.ID, Flip: had && !old.Silent && !o.Silent && old.Up != o.Up})
		}
	}
	return changed, refused
}

// confirm is Merge and keep for a bitmap that says what the kept one before it says, and so changes
// nothing but how fresh the votes are. It reports whether it is one; if not, it is to be merged.
// A bitmap is mostly that.
func (t *Table) confirm(v *vantage, r *Report, e *envelope, now time.Time) bool {
	p, h := v.page(r.Bits.First), &r.Heading
	if p == nil || !p.settled || p.list != h.List || p.version.Epoch != h.Version.Epoch || p.version.Seq >= h.Version.Seq ||
		p.count != r.Bits.Count || !bytes.Equal(p.octets, r.Bits.Octets) {
		return false
	}
	for _, o := range p.stands {
		if o.Version.Compare(h.Version) < 0 {
			o.Version, o.At = h.Version, h.At
		}
	}
	t.hear(v, *h)
	p.take(r, e, h.Version == v.heading.Version, now)
	return true
}

// hear joins what v says of itself.
func (t *Table) hear(v *vantage, h Heading) {
	if h.Site == v.heading.Site { // one copy of each name: to compare all with all others' is a part of every beat
		h.Site = v.heading.Site
	} else {
		h.Site = unique.Make(h.Site).Value()
	}
	v.heading = v.heading.join(h)
	t.stand(v)
}

// Gone says that membership has lost a node: what is known of it no longer counts, until it
// is heard to say something new.
func (t *Table) Gone(node string) {
	if v := t.nodes[node]; v != nil && v.gone.Compare(v.heading.Version) < 0 {
		v.gone = v.heading.Version
		t.stand(v)
	}
}

// Remove forgets node's observation of id.
func (t *Table) Remove(node string, id gslb.EndpointID) {
	if v := t.nodes[node]; v != nil {
		if _, ok := v.observed[id]; ok {
			t.removed(v, id)
			delete(v.observed, id)
			v.unsettle()
		}
	}
}

// removed keeps count of an observation that is about to go.
func (t *Table) removed(v *vantage, id gslb.EndpointID) {
	t.registers--
	i, _ := slices.BinarySearchFunc(t.voters[id], v.name, compareVoter)
	if t.voters[id] = slices.Delete(t.voters[id], i, i+1); len(t.voters[id]) == 0 {
		delete(t.voters, id)
	}
}

// Digest returns a hash of the votes of the nodes that are heard at now: two tables with the
// same digest give the same verdicts.
func (t *Table) Digest(now time.Time) uint64 {
	h := fnv.New64a()
	var b []byte
	for i := range t.order {
		v := t.order[i].of
		if !t.alive(v, now) {
			continue
		}
		b = binary.BigEndian.AppendUint64(append(append(b[:0], v.name...), 0), v.heading.Version.Epoch)
		for _, id := range slices.SortedFunc(maps.Keys(v.observed), compareID) {
			if o := v.observed[id]; !o.Silent && o.Version.Epoch == v.heading.Version.Epoch {
				addr := id.Addr.As16()
				b = append(append(append(b, id.Pool...), 0), addr[:]...)
				b = append(b, byte(compareBool(o.Up, false)))
			}
		}
		_, _ = h.Write(b)
	}
	return h.Sum64()
}

// Forget drops nodes that were silent for long, and observations that no interval can keep
// fresh any more.
func (t *Table) Forget(now time.Time) {
	for name, v := range t.nodes {
		if now.Sub(v.heading.At) > forgetAfter {
			for id := range v.observed {
				t.removed(v, id)
			}
			t.strike(v)
			delete(t.nodes, name)
			continue
		}
		for id, o := range v.observed {
			if now.Sub(o.At) > staleFactor*maxInterval {
				t.Remove(name, id)
			}
		}
	}
}

// Names returns the nodes of the table in order.
func (t *Table) Names() []string {
	names := make([]string, len(t.order))
	for i := range t.order {
		names[i] = t.order[i].name
	}
	return names
}

// Report returns what the table holds of node: of the endpoints given, or of all without
// any, ordered by ID. Observations of earlier lives than the last one heard of are left out.
func (t *Table) Report(node string, ids ...gslb.EndpointID) Report {
	r := Report{Node: node}
	v := t.nodes[node]
	if v == nil {
		return r
	}
	r.Heading = v.heading
	if len(ids) == 0 {
		ids = slices.Collect(maps.Keys(v.observed))
	}
	r.Observations = make([]Observation, 0, len(ids))
	for _, id := range ids {
		if o, ok := v.observed[id]; ok && o.Version.Epoch == v.heading.Version.Epoch && o.Version.Seq <= v.heading.Version.Seq {
			r.Observations = append(r.Observations, o.Observation)
		}
	}
	slices.SortFunc(r.Observations, func(a, b Observation) int { return compareID(a.ID, b.ID) })
	return r
}

// Doubts yields what the vantages that are heard at now say of themselves, but own's node what own says.
func (t *Table) Doubts(own Doubt, now time.Time) iter.Seq[Doubt] {
	return func(yield func(Doubt) bool) {
		self, up := t.nodes[own.Node], uptime(now)
		for i := range t.order {
			s := &t.order[i]
			if s.blind || !s.alive(up) {
				continue
			}
			d := Doubt{Node: s.name, Site: s.site, Failing: s.failing, Abstains: s.abstains}
			if s.of == self {
				d.Failing, d.Abstains = own.Failing, own.Abstains
			}
			if !yield(d) {
				return
			}
		}
	}
}

// Lost reports whether more of the nodes that are known are not heard than are: those that
// left are not missed, and those that were silent for long are forgotten.
func (t *Table) Lost(now time.Time) bool {
	heard, known, up := 0, 0, uptime(now)
	for i := range t.order {
		s := &t.order[i]
		if s.leaving || up-s.at > forgetAfter {
			continue
		}
		known++
		if s.alive(up) {
			heard++
		}
	}
	return 2*heard < known
}

// Votes returns the fresh observations of id, which is probed every interval. Their order
// says nothing. As long as the same nodes are alive and none says something else, they stay
// the same until at least the time that comes with them.
func (t *Table) Votes(id gslb.EndpointID, interval time.Duration, now time.Time) (votes []Vote, until time.Time) {
	up, left := uptime(now), maxInterval
	for _, v := range t.voters[id] {
		o, s := v.said, &t.order[v.place]
		if o.Silent || !s.alive(up) {
			continue
		}
		age := up - uptime(o.At)
		if age > s.lasts(interval) {
			left = 0 // whoever confirms it gives it back
			continue
		}
		left = max(0, min(left, max(staleFactor*interval, staleFloor)-age)) // or later: a node may promise less
		votes = append(votes, Vote{Node: s.name, Site: s.site, Up: o.Up, Flipping: o.Flipping, CutOff: s.abstains})
	}
	return votes, now.Add(left)
}

// Alive returns the nodes that are heard at now, in order.
func (t *Table) Alive(now time.Time) []string {
	var names []string
	for i := range t.order {
		if s := &t.order[i]; s.alive(uptime(now)) {
			names = append(names, s.name)
		}
	}
	return names
}

// Turned returns the endpoints of which a vantage says something that is heard at now and not in
// doubt, and was not when Turned was called last, or the other way round.
func (t *Table) Turned(doubts map[string]bool, now time.Time) map[gslb.EndpointID]bool {
	due, up := make(map[gslb.EndpointID]bool), uptime(now)
	for name := range doubts {
		if v := t.nodes[name]; v != nil {
			t.order[v.place].doubted = true
		}
	}
	for i := range t.order {
		s := &t.order[i]
		counts := s.alive(up) && !s.doubted
		s.doubted = false
		if counts != s.counted {
			s.counted = counts
			for id := range s.of.observed {
				due[id] = true
			}
		}
	}
	return due
}
