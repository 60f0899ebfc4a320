package health

import (
	"cmp"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"hash/fnv"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

const (
	// messageRate and messageBurst bound what is taken of one node: more than any node says,
	// also when all that it tests changes at once.
	messageRate  = 2 * sendBudget
	messageBurst = 16 * sendBudget
	// catchRate and catchBurst bound the digests that are answered in a second, each with up to
	// sendBudget packets. Who gets no answer asks another node soon, and hears heartbeats.
	catchRate  = 8
	catchBurst = 64
	// digestSlack is how much longer ago a peer may have heard of a node before it is sent
	// what this node has: no less than words are on their way.
	digestSlack = 3 * time.Second
	// resultsEvery is in how many words of a node one carries results beside the bitmap.
	resultsEvery = 4
	// maxLists is how many lists of targets are kept, so that a change of the configuration
	// does not make nodes that take it over at different times deaf to each other.
	maxLists = 4
)

// budget is a bucket of tokens. The zero value is full.
type budget struct {
	spent float64
	at    time.Time
}

// take takes one token, if there is one: rate of them come in a second, up to burst.
func (b *budget) take(now time.Time, rate, burst float64) bool {
	b.spent = max(0, b.spent-rate*now.Sub(b.at).Seconds())
	b.at = now
	if b.spent+1 > burst {
		return false
	}
	b.spent++
	return true
}

// lists are the lists of targets that bitmaps may be of.
type lists struct {
	byHash map[uint64][]gslb.EndpointID
	order  []uint64 // oldest first
}

// add makes the targets' list known and returns its hash.
func (l *lists) add(targets map[gslb.EndpointID]Target) uint64 {
	ids := slices.SortedFunc(maps.Keys(targets), compareID)
	hash := listOf(ids)
	if l.byHash == nil {
		l.byHash = make(map[uint64][]gslb.EndpointID)
	}
	if i := slices.Index(l.order, hash); i >= 0 {
		l.order = slices.Delete(l.order, i, i+1)
	}
	l.byHash[hash] = ids
	if l.order = append(l.order, hash); len(l.order) > maxLists {
		delete(l.byHash, l.order[0])
		l.order = l.order[1:]
	}
	return hash
}

// hear takes a packet of a peer. It keeps b, which nobody may change any more.
func (m *Monitor) hear(b []byte) {
	now := time.Now()
	m.stats.gossipIn.Add(1)
	m.drop(m.hearPacket(b, now, true))
}

// drop counts what was not taken.
func (m *Monitor) drop(err error) {
	if err != nil {
		cause := causeOf(err)
		m.stats.dropped[cause].Add(1)
		m.log.Debug("gossip message dropped", "cause", dropNames[cause], "error", err)
	}
}

func (m *Monitor) hearPacket(b []byte, now time.Time, outer bool) error {
	switch {
	case len(b) == 0:
		return errTruncated
	case b[0] == wireBundle && outer:
		packets, err := openBundle(b)
		for _, p := range packets {
			if err == nil {
				m.drop(m.hearPacket(slices.Clone(p), now, false)) // what is kept of one is not to hold them all
			}
		}
		return err
	case b[0] == wireDigest:
		node, all, err := openDigest(b)
		if err == nil {
			err = m.catchUp(node, all, now)
		}
		return err
	}
	e, err := openEnvelope(b)
	if err != nil {
		return err
	}
	r, err := decodeMessage(e.message, now.Add(-e.age))
	if err != nil {
		return err
	}
	if err := m.verify(r.Node, &e); err != nil {
		if m.untrusted.pass() {
			m.log.Warn("what a node says is not believed", "peer", printable(r.Node, maxName), "cause", err)
		}
		return err
	}
	return m.take(r, e, now)
}

var (
	errUnsigned = errors.New("not signed by a node that is known")
	errForged   = errors.New("signature is not the node's")
	errFlood    = errors.New("more than a node says")
)

// verify checks that node wrote e, once the keys of nodes are known.
func (m *Monitor) verify(node string, e *envelope) error {
	m.mu.Lock()
	all, key := len(m.keys), m.keys[node]
	m.mu.Unlock()
	switch {
	case all == 0:
		return nil
	case key == nil:
		return errUnsigned
	case !e.signedBy(key):
		return errForged
	}
	return nil
}

// take merges one report, and passes on a flip that it is about.
func (m *Monitor) take(r Report, e envelope, now time.Time) error {
	m.mu.Lock()
	if r.Node == m.o.Node {
		m.supersedeLocked(r.Heading.Version, now)
		m.mu.Unlock()
		return nil
	}
	v, before := m.table.nodes[r.Node], Heading{Leaving: true}
	if v != nil {
		if !v.room.take(now, messageRate, messageBurst) {
			m.mu.Unlock()
			return errFlood
		}
		if before = v.heading; r.Heading.Version.Compare(before.Version) <= 0 {
			m.stats.repeated.Add(1)
		}
	}
	relay := len(r.Observations) == 1
	var changed []Change
	refused := 0
	confirmed := r.Bits != nil && v != nil && m.table.confirm(v, &r, &e, now)
	if !confirmed {
		if r.Bits != nil {
			var had map[gslb.EndpointID]*register
			if v != nil {
				had = v.observed
			}
			r.Observations = r.observations(m.lists.byHash[r.Heading.List], had)
		}
		changed, refused = m.table.Merge(r)
		m.stats.dropped[dropFull].Add(uint64(refused))
	}
	if v == nil { // unless there was no room
		v = m.table.nodes[r.Node]
	}
	if v != nil {
		if len(changed) > 0 {
			v.unsettle()
		}
		switch {
		case confirmed:
		case r.Part != nil:
			v.notes.take(r.Heading.Version, r.Part)
		case r.Bits != nil:
			list, known := m.lists.byHash[r.Heading.List]
			settled := known && refused == 0 && r.Heading.Version == v.heading.Version
			v.keep(&r, &e, list, settled, now)
		default:
			for _, o := range r.Observations {
				m.seeLocked(v, o.ID, now, o.Latency)
			}
		}
		m.turnLocked(v, changed, now)
	}
	if h := headingOf(v); (h.Failing > mostFails) != (before.Failing > mostFails) || h.Abstains != before.Abstains || h.Leaving != before.Leaving || h.Blind != before.Blind {
		m.doubtAt = time.Time{}
	}
	if len(changed) > 0 {
		m.judgeLocked(now, m.pressingLocked(r.Node, changed))
	}
	m.mu.Unlock()
	if m.gossip != nil {
		m.gossip.heard(r.Node)
	}
	if relay && len(changed) == 1 && changed[0].Flip && m.gossip != nil {
		m.gossip.broadcast(r.Node, changed[0].ID, e.append(nil))
	}
	return nil
}

// pressingLocked returns the targets of changes of node that may turn what is judged. The
// others, votes that agree with what holds, wait for the next beat: there is one of each pair
// of nodes when a fleet starts, and to judge is to count all of them.
func (m *Monitor) pressingLocked(node string, changed []Change) iter.Seq[gslb.EndpointID] {
	return func(yield func(gslb.EndpointID) bool) {
		for _, c := range changed {
			j, ok := m.judged[c.ID]
			if !ok {
				continue
			}
			o := m.table.nodes[node].observed[c.ID]
			if j.known && !j.Flipping && !o.Flipping && len(j.regions) == 0 && o.Up == (j.Verdict == gslb.Up) {
				j.until = time.Time{}
				m.judged[c.ID] = j
			} else if !yield(c.ID) {
				return
			}
		}
	}
}

// headingOf returns what v says of itself; the zero Heading of one that is not known.
func headingOf(v *vantage) Heading {
	if v == nil {
		return Heading{}
	}
	return v.heading
}

// page returns the bitmap that is kept of the targets from first on; nil without one.
func (v *vantage) page(first int) *page {
	i, ok := slices.BinarySearchFunc(v.pages, first, comparePage)
	if !ok {
		return nil
	}
	return &v.pages[i]
}

func comparePage(p page, first int) int { return cmp.Compare(p.first, first) }

// keep remembers a bitmap of the targets in list, to pass it on and to know it again. settled says
// that the table has taken in all of it, and nothing later.
func (v *vantage) keep(r *Report, e *envelope, list []gslb.EndpointID, settled bool, now time.Time) {
	p := v.page(r.Bits.First)
	switch {
	case p == nil && len(v.pages) >= maxPages, p != nil && p.version.Compare(r.Heading.Version) >= 0:
		return
	case p == nil || p.list != r.Heading.List:
		v.pages = slices.DeleteFunc(v.pages, func(p page) bool { return p.list != r.Heading.List })
		i, ok := slices.BinarySearchFunc(v.pages, r.Bits.First, comparePage)
		if !ok {
			v.pages = slices.Insert(v.pages, i, page{first: r.Bits.First, list: r.Heading.List})
		}
		p = &v.pages[i]
	}
	p.stands = p.stands[:0]
	if settled {
		for at := range r.Bits.all(len(list)) {
			if o := v.observed[list[at]]; o != nil {
				p.stands = append(p.stands, o)
			}
		}
	}
	p.take(r, e, settled, now)
}

// take makes p the bitmap that came in e.
func (p *page) take(r *Report, e *envelope, settled bool, now time.Time) {
	p.version, p.settled, p.sealed, p.at = r.Heading.Version, settled, *e, now.Add(-e.age)
	p.count, p.octets = r.Bits.Count, r.Bits.Octets
}

// unsettle says that a vote of v is another now, for which a bitmap that was kept need not stand.
func (v *vantage) unsettle() {
	for i := range v.pages {
		v.pages[i].settled = false
	}
}

// packets returns the bitmaps that are kept of v, with their age at now.
func (v *vantage) packets(now time.Time) [][]byte {
	var out [][]byte
	for i := range v.pages {
		e := v.pages[i].sealed
		e.age = now.Sub(v.pages[i].at)
		out = append(out, e.append(nil))
	}
	return out
}

// ownLocked returns this node's whole word: its bitmaps, and its results, all or a page of
// them in turn.
func (m *Monitor) ownLocked(now time.Time, all bool) [][]byte {
	report := m.table.Report(m.o.Node)
	list := m.lists.byHash[m.self.List]
	marks := make([]byte, len(list))
	results := report.Observations
	i := 0
	for at, id := range list {
		for i < len(results) && compareID(results[i].ID, id) < 0 {
			i++
		}
		if i < len(results) && results[i].ID == id && !results[i].Silent && m.currentLocked(results[i], now) {
			marks[at] = markOf(&results[i])
		}
	}
	messages := encodeBits(&report, marks, now, maxPacket)
	m.words++
	switch {
	case !all && m.words%resultsEvery != 0 && len(messages) > 0: // results are for people: now and then will do
	case all, len(results) == 0:
		messages = append(messages, encodeReport(&report, now, maxPacket)...)
	default:
		if m.told >= len(results) {
			m.told = 0
		}
		report.Observations = results[m.told:]
		var b []byte
		b, rest := appendReport([]byte{wireVersion, kindReport}, &report, report.Observations, now, maxPacket)
		m.told = len(results) - len(rest)
		messages = append(messages, b)
	}
	return m.sealAll(messages)
}

// currentLocked reports whether this node still stands by its own observation.
func (m *Monitor) currentLocked(o Observation, now time.Time) bool {
	t, ok := m.targets[o.ID]
	return ok && now.Sub(o.At) <= max(staleFloor, staleFactor*paceOf(&t.Probe, m.prober.isIdle(o.ID.Pool)))
}

// sealAll signs messages of this node.
func (m *Monitor) sealAll(messages [][]byte) [][]byte {
	for i, b := range messages {
		e := seal(m.o.Key, b)
		messages[i] = e.append(nil)
	}
	return messages
}

// agreedLocked reports whether every node that is heard has the same list of targets, so that
// bitmaps say all.
func (m *Monitor) agreedLocked(now time.Time) bool {
	up := uptime(now)
	for i := range m.table.order {
		if s := &m.table.order[i]; s.list != m.self.List && s.name != m.o.Node && s.alive(up) {
			return false
		}
	}
	return true
}

// state returns what this node says to one that it exchanges states with: all that it knows
// when that one joins, else its own word, and which words of others it has.
func (m *Monitor) state(join bool) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.sayLocked(now)
	packets := m.ownLocked(now, join || !m.agreedLocked(now))
	has := []known{{node: m.o.Node, version: m.self.Version}}
	for i := range m.table.order {
		v := m.table.order[i].of
		if v.name == m.o.Node || !m.table.alive(v, now) {
			continue
		}
		has = append(has, known{v.name, v.heading.Version, now.Sub(v.heading.At)})
		if join {
			packets = append(packets, v.packets(now)...)
		}
	}
	var b []byte
	b, _ = appendBundle(b, appendDigest(nil, m.o.Node, has), maxState/2)
	for _, p := range packets {
		var ok bool
		if b, ok = appendBundle(b, p, maxState/2); !ok {
			break // what matters most came first
		}
	}
	return b
}

// catchUp sends a peer the bitmaps that this node has and it, by what it says, lacks.
func (m *Monitor) catchUp(peer string, has []known, now time.Time) error {
	if m.gossip == nil {
		return nil
	}
	ages := make(map[string]time.Duration, len(has))
	var own Version // of the peer
	for _, k := range has {
		ages[k.node] = k.age
		if k.node == peer {
			own = k.version
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.catching.take(now, catchRate, catchBurst) {
		return errFlood
	}
	var packets [][]byte
	for i := range m.table.order {
		v := m.table.order[i].of
		name := v.name
		switch {
		case name == peer && own.Compare(v.heading.Version) < 0 && own.Epoch != v.heading.Version.Epoch:
			packets = append(packets, v.packets(now)...) // of a later life than its own: it must hear of it
			continue
		case name == m.o.Node || name == peer || !m.table.alive(v, now) || len(packets) >= sendBudget:
			continue
		}
		if age, ok := ages[name]; !ok || age > now.Sub(v.heading.At)+digestSlack {
			packets = append(packets, v.packets(now)...)
		}
	}
	if len(packets) > 0 && len(m.owed) < maxOwed { // the loop sends them: this may be heard before the membership is there
		m.owed = append(m.owed, owed{peer, packets[:min(len(packets), sendBudget)], now.Add(owedFor)})
		nudge(m.wake)
	}
	return nil
}

// owed are packets that a peer lacks.
type owed struct {
	peer    string
	packets [][]byte
	until   time.Time // who is no peer by then asks again
}

const (
	maxOwed = 16              // peers that wait for what they lack; others ask again
	owedFor = 5 * time.Second // a node that is back may be no member yet: memberlist asks it first
)

// pay sends peers what they lack.
func (m *Monitor) pay() {
	m.mu.Lock()
	debts := m.owed
	m.owed = nil
	m.mu.Unlock()
	for _, o := range debts {
		if m.gossip.sendTo(o.peer, o.packets) || time.Now().After(o.until) {
			continue
		}
		m.mu.Lock()
		m.owed = append(m.owed, o)
		m.mu.Unlock()
	}
}

// keysOf returns the keys of nodes; o is valid.
func keysOf(o *config.Objects) map[string]ed25519.PublicKey {
	keys := make(map[string]ed25519.PublicKey, len(o.Nodes))
	for name, n := range o.Nodes {
		if b, err := base64.StdEncoding.DecodeString(n.Key); err == nil && len(b) == ed25519.PublicKeySize {
			keys[name] = b
		}
	}
	return keys
}

// colleaguesLocked returns the other nodes of this node's site that probe and are heard, by name.
func (m *Monitor) colleaguesLocked(now time.Time) []string {
	names, self, up := make([]string, 0, len(m.colleagues)+1), m.table.nodes[m.o.Node], uptime(now)
	for i := range m.table.order {
		if s := &m.table.order[i]; s.of != self && s.site == m.o.Site && !s.blind && s.alive(up) {
			names = append(names, s.name)
		}
	}
	return names
}

// assignLocked returns the targets that this node probes: of those that say how many vantages
// of a site they want, the ones that it is among the first for. peers are the others of the
// site, by name. Each pair of node and target has its own weight (rendezvous hashing), so that
// the loss of a node moves only what was its own.
func (m *Monitor) assignLocked(peers []string) []Target {
	if m.o.Role == config.RoleAnswer {
		return nil
	}
	if m.reassign {
		m.ranks, m.colleagues = make(map[gslb.EndpointID]int), nil
	}
	changed := slices.Collect(differ(peers, m.colleagues))
	for id, t := range m.targets {
		if t.Probe.Vantages == 0 || len(changed) == 0 {
			continue
		}
		own, rank := rendezvous(m.o.Node, id), m.ranks[id]
		for _, p := range changed {
			if w := rendezvous(p, id); w < own || w == own && p > m.o.Node {
				continue
			}
			if _, came := slices.BinarySearch(peers, p); came {
				rank++
			} else {
				rank--
			}
		}
		m.ranks[id] = rank
	}
	m.colleagues = peers
	out := make([]Target, 0, len(m.assigned))
	for _, t := range m.targets {
		if t.Probe.Vantages == 0 || t.Probe.Vantages > len(peers) || m.ranks[t.ID] < t.Probe.Vantages {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b Target) int { return compareID(a.ID, b.ID) })
	return out
}

// differ returns what only one of a and b has, both of which are in order.
func differ(a, b []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for len(a) > 0 || len(b) > 0 {
			one := &a // that has the lesser
			switch {
			case len(a) > 0 && len(b) > 0 && a[0] == b[0]:
				a, b = a[1:], b[1:]
				continue
			case len(a) == 0 || len(b) > 0 && b[0] < a[0]:
				one = &b
			}
			if !yield((*one)[0]) {
				return
			}
			*one = (*one)[1:]
		}
	}
}

// rendezvous returns the weight of a node for an endpoint.
func rendezvous(node string, id gslb.EndpointID) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(node))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(id.Pool))
	a := id.Addr.As16()
	_, _ = h.Write(a[:])
	x := h.Sum64() // FNV alone leaves neighbours alike: a finalizer mixes (splitmix64)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// assign gives the prober what is this node's now.
func (m *Monitor) assign() {
	m.setting.Lock()
	defer m.setting.Unlock()
	m.mu.Lock()
	now := time.Now()
	if !m.reassign && !m.shared {
		m.mu.Unlock()
		return
	}
	peers := m.colleaguesLocked(now)
	if !m.reassign && slices.Equal(peers, m.colleagues) {
		m.mu.Unlock()
		return
	}
	mine := m.assignLocked(peers)
	same := m.assigned != nil && len(mine) == len(m.assigned)
	for i := 0; same && i < len(mine); i++ {
		same = mine[i].ID == m.assigned[i].ID
	}
	if same && !m.reassign {
		m.mu.Unlock()
		return
	}
	keep := make(map[gslb.EndpointID]bool, len(mine))
	for _, t := range mine {
		keep[t.ID] = true
	}
	for _, t := range m.assigned {
		if !keep[t.ID] {
			m.table.Remove(m.o.Node, t.ID)
			delete(m.faults, t.ID)
		}
	}
	m.assigned, m.reassign, m.recount = mine, false, true
	m.mu.Unlock()
	m.prober.SetTargets(mine)
}
