package health

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
	"unique"

	"github.com/hashicorp/memberlist"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// firstRoundLimit is how long a node waits at most for a result of every target before it
// answers queries.
const firstRoundLimit = 10 * time.Second

// Options are the settings of a Monitor.
type Options struct {
	Node   string        // unique in the fleet, 1 to 128 octets
	Site   string        // that the node's probes speak for, at most 128 octets
	Role   string        // config.RoleFull, the default, RoleProber or RoleAnswer, which probes nothing
	Gossip config.Gossip // zero: a node alone
	Logger *slog.Logger  // nil logs nothing

	Transport memberlist.Transport // in place of sockets at Gossip.Listen
	RootCAs   *x509.CertPool       // that endpoints' certificates are checked against; nil is the system's
	MaxProbes int                  // probes under way at once; default: see ProberOptions

	Key        ed25519.PrivateKey // that this node signs with; nil signs nothing
	References []string           // host:port that accept TCP while this node's network works
	Exec       string             // folder of the programs that exec probes may run; empty: none

	// Attempted, if not nil, is told of every attempt of a probe: of what, when it began and what
	// came of it. It is called by many goroutines at once and must not block.
	Attempted func(t Target, start time.Time, r Result)

	reference func(ctx context.Context, hostPort string) error // in place of the network, for tests
	probe     func(context.Context, Target) Result             // in place of the network, for tests
}

// Monitor probes targets, tells peers and hears them, and keeps the verdict of all. Its
// methods are safe for concurrent use.
type Monitor struct {
	o       Options
	log     *slog.Logger
	stats   *stats
	prober  *Prober
	gossip  *gossip       // nil: alone
	changed chan struct{} // capacity 1
	first   chan struct{} // closed after the first round
	wake    chan struct{} // capacity 1: there is something to say
	setting sync.Mutex    // serialises SetTargets

	mu         sync.Mutex // guards all below
	listening  bool
	running    bool
	self       Heading // of this node; Version is the last used
	table      Table
	targets    map[gslb.EndpointID]Target
	judged     map[gslb.EndpointID]judgement // of every target
	guard      *guard                        // nil: what is judged is served
	regional   map[string]*guard             // of each region, as its own vantages see it; nil: no policy asks
	regions    map[string]string             // of sites
	faults     map[gslb.EndpointID]string    // why this node's own probe of a target says nothing
	doubts     map[string]bool               // the vantages that are not believed, at doubtAt
	apart      bool                          // likewise: this node is on the smaller side of a partition
	lookedAt   time.Time                     // at them, last
	deafUntil  time.Time                     // this node was stopped, and is yet to hear what the others say
	doubtAt    time.Time
	refs       reach
	keys       map[string]ed25519.PublicKey // of nodes; empty: none is asked for a signature
	lists      lists
	owed       []owed                  // to be sent by the loop
	catching   budget                  // of digests to answer
	note       []byte                  // of this node; nil: none
	noteAt     time.Time               // when note was set
	words      int                     // that this node said
	told       int                     // how many of its results a round of beats has told
	assigned   []Target                // that this node probes; nil before the first
	colleagues []string                // among whom assigned was chosen, by name
	ranks      map[gslb.EndpointID]int // how many of them come before this node for a target
	reassign   bool                    // whatever is assigned is new
	shared     bool                    // a target wants only some vantages of a site
	counted    time.Time               // when countLocked was last
	recount    bool                    // what this node tests changed since
	tested     int                     // what it tests, and of that what fails: counted, and kept with each result
	failing    int
	anew       bool      // all is to be judged with the next beat
	unknown    int       // of judged: without a vote yet
	public     *verdicts // of judged; nil when out of date
	restored   map[gslb.EndpointID]gslb.Verdict
	news       map[gslb.EndpointID]bool // own observations to tell at once; true: Up turned
	flips      []flip                   // to be logged
	forgot     time.Time                // when the table was last told to forget
	warned     seldom
	faulty     seldom
	untrusted  seldom
}

// judgement is what the table says of one target.
type judgement struct {
	Judgement
	until   time.Time       // no sooner does time alone change it
	known   bool            // there was a vote since the target was set
	since   time.Time       // the verdict
	regions map[string]vote // by region of vantages, where not all of them say what the verdict is
}

// flip is a change of a verdict, for the log.
type flip struct {
	id       gslb.EndpointID
	from, to gslb.Verdict
	why      string
}

// verdicts are what others get to see; immutable.
type verdicts struct {
	verdicts map[gslb.EndpointID]gslb.Verdict
	flipping map[gslb.EndpointID]bool
	regional map[string]map[gslb.EndpointID]gslb.Verdict
}

// New returns a monitor without targets. It starts nothing.
func New(o Options) *Monitor {
	o.Role, o.Site = cmp.Or(o.Role, "full"), unique.Make(o.Site).Value()
	m := &Monitor{
		o: o, log: discardIfNil(o.Logger), stats: new(stats),
		changed: make(chan struct{}, 1), first: make(chan struct{}), wake: make(chan struct{}, 1),
		targets: make(map[gslb.EndpointID]Target), judged: make(map[gslb.EndpointID]judgement),
		news:   make(map[gslb.EndpointID]bool),
		faults: make(map[gslb.EndpointID]string),
		// The clock gives an epoch that no earlier life of this node had. Where it was set
		// back, peers tell this node of its earlier life, and it starts a later one.
		self: Heading{Version: Version{Epoch: uint64(max(1, time.Now().UnixMicro()))}, Site: o.Site, Period: heartbeat,
			Blind: o.Role == config.RoleAnswer},
	}
	m.self.List = m.lists.add(nil)
	m.prober = NewProber(ProberOptions{
		Report: m.observe, Fault: m.fault, MaxInFlight: o.MaxProbes, RootCAs: o.RootCAs,
		Exec: o.Exec, Logger: m.log, stats: m.stats, probe: o.probe, attempted: o.Attempted,
	})
	if o.Gossip.Listen.IsValid() || o.Transport != nil {
		m.gossip = newGossip(o.Node, o.Site, o.Role, o.Gossip, o.Transport, m.log, m.stats)
		m.gossip.hear, m.gossip.state, m.gossip.lost = m.hear, m.state, m.lost
	}
	return m
}

// Listen checks the options and binds the gossip address. Its errors name the key of the
// configuration. Run calls it if nobody did; after a Listen without a Run call Close.
func (m *Monitor) Listen() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.listening:
		return nil
	case m.o.Node == "" || len(m.o.Node) > maxName:
		return fmt.Errorf("node.name %q: expected 1 to %d octets", m.o.Node, maxName)
	case len(m.o.Site) > maxSite:
		return fmt.Errorf("node.site %q: expected at most %d octets", m.o.Site, maxSite)
	}
	if m.gossip != nil {
		if _, err := gossipKey(m.o.Gossip.Key); err != nil {
			return err
		}
		if err := m.gossip.listen(); err != nil {
			return err
		}
	}
	m.listening = true
	return nil
}

// Close releases what Listen bound. It is for a monitor that never ran: Run leaves nothing.
func (m *Monitor) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.listening && !m.running && m.gossip != nil {
		m.gossip.close()
		m.listening = false
	}
}

// GossipAddr returns the address that Listen bound; invalid without one.
func (m *Monitor) GossipAddr() netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.listening || m.gossip == nil {
		return netip.AddrPort{}
	}
	addr, _ := m.gossip.address()
	return addr
}

// Run probes and gossips until ctx ends; then it leaves the membership. It returns an error
// of Listen, or the cause of ctx. Call it once.
func (m *Monitor) Run(ctx context.Context) error {
	if err := m.Listen(); err != nil {
		return err
	}
	m.mu.Lock()
	m.running = true
	m.mu.Unlock()
	var wg sync.WaitGroup
	if m.gossip != nil {
		if err := m.gossip.start(ctx); err != nil {
			return err
		}
		wg.Go(func() { m.gossip.join(ctx) })
	}
	wg.Go(func() { _ = m.prober.Run(ctx) })
	if len(m.o.References) > 0 {
		wg.Go(func() { m.watchReferences(ctx) })
	}
	m.loop(ctx)
	wg.Wait()
	if m.gossip != nil {
		m.leave()
		m.gossip.stop()
	}
	return context.Cause(ctx)
}

// loop tells what is new, beats, and lets what is old stop counting.
func (m *Monitor) loop(ctx context.Context) {
	limit := time.NewTimer(firstRoundLimit)
	defer limit.Stop()
	beat := time.NewTimer(0)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-limit.C:
			m.mu.Lock()
			m.endFirstRound()
			m.mu.Unlock()
		case <-m.wake:
			m.speak()
		case <-beat.C:
			m.age()
			m.beat()
			beat.Reset(heartbeat - time.Duration(rand.Int64N(int64(heartbeat/10)))) // never later than promised
		}
	}
}

// Configure replaces what is probed and judged, and how, by valid objects. What stays keeps
// its state.
func (m *Monitor) Configure(o *config.Objects) {
	targets := Targets(o)
	m.mu.Lock()
	m.guard = newGuard(o, m.guard)
	m.regions = make(map[string]string, len(o.Sites))
	for name, s := range o.Sites {
		m.regions[name] = cmp.Or(s.Region, name)
	}
	m.regional = regionalGuards(o, m.regions, m.regional)
	m.keys = keysOf(o)
	m.public = nil // whoever configures asks for the verdicts next
	m.mu.Unlock()
	m.setTargets(targets)
	m.assign() // after the monitor knows whose results come
}

// SetTargets replaces what is probed and judged. Targets that stay keep their state. It is
// Configure without services, regions and what is derived.
func (m *Monitor) SetTargets(targets []Target) {
	m.setTargets(targets)
	m.assign() // after the monitor knows whose results come
}

func (m *Monitor) setTargets(targets []Target) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	next := make(map[gslb.EndpointID]Target, len(targets))
	for _, t := range targets {
		if _, ok := next[t.ID]; ok {
			continue
		}
		next[t.ID] = t
		if _, ok := m.judged[t.ID]; !ok {
			m.judged[t.ID] = judgement{Judgement: Judgement{Verdict: m.restored[t.ID], Silent: true}, since: now}
			m.unknown++
			m.changeLocked()
		}
	}
	for id := range m.targets {
		if _, ok := next[id]; ok {
			continue
		}
		if !m.judged[id].known {
			m.unknown--
		}
		delete(m.judged, id)
		delete(m.faults, id)
		m.table.Remove(m.o.Node, id)
		for _, v := range m.table.voters[id] {
			v.said.seen = nil
		}
		m.changeLocked()
	}
	m.targets, m.recount = next, true
	m.shared = false
	for _, t := range targets {
		m.shared = m.shared || t.Probe.Vantages > 0
	}
	m.self.List = m.lists.add(next)
	m.reassign = true
	m.judgeLocked(now, maps.Keys(next))
}

// Restore gives verdicts of an earlier life of this node, which hold until there are votes,
// and which rise and fall then start from. Call it before SetTargets.
func (m *Monitor) Restore(last map[gslb.EndpointID]gslb.Verdict) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restored = maps.Clone(last)
	m.prober.Restore(last)
}

// SetGossipKeys replaces the keys of the gossip while it runs: key is used, and those of more
// are understood beside it. All are in base64.
func (m *Monitor) SetGossipKeys(key string, more []string) error {
	if m.gossip == nil {
		return nil
	}
	return m.gossip.setKeys(key, more)
}

// SetInfo sets what this node tells of itself in Members of every node, such as its plan and
// revision: at most 128 octets, of which the rest is cut.
func (m *Monitor) SetInfo(info string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.self.Info = printable(info, maxInfo)
}

// Verdicts returns the verdict of every target. The map is immutable: the caller must not
// change it, and a later call returns another.
func (m *Monitor) Verdicts() map[gslb.EndpointID]gslb.Verdict { return m.publish().verdicts }

// Flipping returns the targets whose verdict may be about to change: it would if every
// vantage whose last result contradicts what it says changed its mind. The map is immutable.
func (m *Monitor) Flipping() map[gslb.EndpointID]bool { return m.publish().flipping }

// Regional returns the verdicts by region of vantages, where they are others than Verdicts
// has: what is down as seen from there alone, or up. A region is that of a site, or the site.
// The maps are immutable.
func (m *Monitor) Regional() map[string]map[gslb.EndpointID]gslb.Verdict { return m.publish().regional }

// SetIdle says which pools nobody asks for: probes that say so go slower for them.
func (m *Monitor) SetIdle(pools map[string]bool) {
	m.prober.SetIdle(pools)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.anew = true // votes last longer or shorter now
}

// Changed returns a channel that receives after Verdicts or Flipping changed: once for all
// changes since the last receive. There is one channel, for one reader.
func (m *Monitor) Changed() <-chan struct{} { return m.changed }

// FirstRound returns a channel that is closed once each target has a vote, of this node or of
// a peer, or ten seconds after Run began.
func (m *Monitor) FirstRound() <-chan struct{} { return m.first }

// observe takes one result of the prober.
func (m *Monitor) observe(t Target, r Result, s State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now, ok := m.targets[t.ID]; !ok || now.Addr != t.Addr {
		return // removed meanwhile
	}
	now := time.Now()
	delete(m.faults, t.ID)
	m.tallyLocked(t.ID, s.Verdict == gslb.Up)
	changed, refused := m.sayLocked(now, Observation{
		ID: t.ID, Up: s.Verdict == gslb.Up, Flipping: s.Flipping(),
		Class: r.Class, Latency: r.Latency, Score: r.Score, Detail: r.Detail, At: now,
	})
	m.stats.dropped[dropFull].Add(uint64(refused))
	if v := m.table.nodes[m.o.Node]; v != nil {
		m.seeLocked(v, t.ID, now, r.Latency)
		m.turnLocked(v, changed, now)
	}
	if len(changed) > 0 {
		for _, c := range changed {
			m.news[c.ID] = m.news[c.ID] || c.Flip
		}
		m.judgeLocked(now, idsOf(changed))
		nudge(m.wake)
	}
}

// fault takes a result that says nothing of its target.
func (m *Monitor) fault(t Target, r Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now, ok := m.targets[t.ID]; !ok || now.Addr != t.Addr {
		return // removed meanwhile
	}
	m.faults[t.ID] = r.Detail
	if m.faulty.pass() {
		m.log.Warn("a probe says nothing of its endpoint, by this node's own fault", "pool", t.ID.Pool, "endpoint", t.ID.Addr,
			"fault", r.Detail, "endpoints", len(m.faults))
	}
}

// sayLocked writes this node's registers: its heading, and the observations in its newest version.
func (m *Monitor) sayLocked(now time.Time, obs ...Observation) (changed []Change, refused int) {
	m.self.Version.Seq++
	m.self.At = now
	m.self.Abstains = m.cutOffLocked(now)
	for i := range obs {
		obs[i].Version, obs[i].Told = m.self.Version, m.self.Version
	}
	return m.table.Merge(Report{Node: m.o.Node, Heading: m.self, Observations: obs})
}

// speak logs what changed, and tells peers at once what changed here.
func (m *Monitor) speak() {
	m.mu.Lock()
	flips := m.flips
	m.flips = nil
	news := m.news
	m.news = make(map[gslb.EndpointID]bool)
	now := time.Now()
	var report Report
	if len(news) > 0 {
		m.sayLocked(now) // a newer heading, that peers see this node is alive
		report = m.table.Report(m.o.Node, slices.Collect(maps.Keys(news))...)
	}
	m.mu.Unlock()
	for _, f := range flips {
		m.log.Info("endpoint is "+verdictName(f.to), "pool", f.id.Pool, "endpoint", f.id.Addr,
			"was", verdictName(f.from), "why", f.why)
	}
	if m.gossip != nil {
		m.pay()
	}
	if m.gossip == nil || len(report.Observations) == 0 {
		return
	}
	m.gossip.tell(m.sealAll(encodeReport(&report, now, maxPacket)))
	// Memberlist carries flips from node to node, so that they also reach those that this node
	// cannot: each in a message of its own, which others pass on as it is.
	for _, o := range report.Observations {
		if news[o.ID] && m.gossip.hasRoom() {
			one := Report{Node: report.Node, Heading: report.Heading, Observations: []Observation{o}}
			m.gossip.broadcast(report.Node, o.ID, m.sealAll(encodeReport(&one, now, maxPacket))[0])
		}
	}
}

// beat tells peers everything.
func (m *Monitor) beat() {
	m.assign()
	if m.gossip == nil {
		return
	}
	m.mu.Lock()
	now := time.Now()
	m.sayLocked(now)
	messages := m.ownLocked(now, !m.agreedLocked(now))
	note := m.noteLocked(now)
	m.mu.Unlock()
	m.gossip.beat(messages)
	m.gossip.spread(note)
	m.pay()
	m.mu.Lock()
	m.self.Period = m.gossip.period(len(messages))
	m.mu.Unlock()
}

// leave tells peers this node's last word, which outlasts what of it is still under way.
func (m *Monitor) leave() {
	m.mu.Lock()
	now := time.Now()
	m.self.Leaving = true
	m.sayLocked(now)
	report := Report{Node: m.o.Node, Heading: m.self}
	m.mu.Unlock()
	m.gossip.tell(m.sealAll(encodeReport(&report, now, maxPacket)))
}

// age judges anew what time alone may have changed, since votes go stale without a word.
func (m *Monitor) age() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.doubtAt = time.Time{}
	if m.recount || now.Sub(m.counted) >= staleFloor {
		m.countLocked(now)
	}
	m.sayLocked(now) // a node is heard by itself
	if now.Sub(m.forgot) >= time.Minute {
		m.table.Forget(now)
		m.forgot = now
	}
	m.reviewLocked(now)
	if m.settleLocked(now) { // time alone ends what is held or kept out
		m.changeLocked()
	}
}

// reviewLocked judges what time may have changed: that of which a vantage says something that is
// alive and believed and was not at the last time, or the other way round, and what has votes
// whose own time has come.
func (m *Monitor) reviewLocked(now time.Time) {
	due, all := m.table.Turned(m.doubtsLocked(now), now), m.anew
	m.anew = false
	m.judgeLocked(now, func(yield func(gslb.EndpointID) bool) {
		for id, j := range m.judged {
			if (all || due[id] || now.After(j.until)) && !yield(id) {
				return
			}
		}
	})
}

func idsOf(changes []Change) iter.Seq[gslb.EndpointID] {
	return func(yield func(gslb.EndpointID) bool) {
		for _, c := range changes {
			if !yield(c.ID) {
				return
			}
		}
	}
}

// supersedeLocked hears of this node's own registers. If they are newer than what it wrote,
// they are of an earlier life with a clock ahead, or of another node with our name: this
// node starts a life after that one and says everything again.
func (m *Monitor) supersedeLocked(v Version, now time.Time) {
	if v.Compare(m.self.Version) <= 0 {
		return
	}
	m.stats.dropped[dropConflict].Add(1)
	if m.warned.pass() {
		m.log.Warn("gossip knows a later life of this node: the clock was set back, or another node has its name", "name", m.o.Node)
	}
	m.self.Version = Version{Epoch: min(v.Epoch+1, maxEpoch)}
	m.sayLocked(now, m.table.Report(m.o.Node).Observations...)
}

// lost hears that membership lost a peer. What follows is judged with the next beat: many are
// lost at once when a network parts, and memberlist holds its lock meanwhile.
func (m *Monitor) lost(peer string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.table.Gone(peer)
}

// judgeLocked judges the targets of ids at now.
func (m *Monitor) judgeLocked(now time.Time, ids iter.Seq[gslb.EndpointID]) {
	for id := range ids {
		t, ok := m.targets[id]
		if !ok {
			continue
		}
		doubts := m.doubtsLocked(now) // counted once for all
		old := m.judged[id]
		votes, until := m.table.Votes(id, paceOf(&t.Probe, m.prober.isIdle(id.Pool)), now)
		for i := range votes {
			v := &votes[i]
			v.Abstains = doubts[v.Node]
			v.CutOff = v.CutOff || m.apart
		}
		rule := ruleOf(t.Probe.Quorum)
		j := judgement{Judgement: Judge(rule, old.Verdict, votes), until: until, known: old.known, since: old.since}
		j.regions = m.regionalLocked(rule, j.Verdict, votes)
		if !old.known && len(votes) > 0 {
			j.known = true
			m.unknown--
		}
		if j.Verdict != old.Verdict {
			j.since = now
			m.flipLocked(id, old.Verdict, j)
		}
		m.judged[id] = j
		if j.Verdict != old.Verdict || j.Flipping != old.Flipping || !maps.Equal(j.regions, old.regions) ||
			m.guard != nil && j.Unanimous != old.Unanimous {
			m.changeLocked()
		}
	}
	if m.running && m.unknown == 0 {
		m.endFirstRound()
	}
}

// flipLocked counts a change of verdict, and leaves it to the loop to log.
func (m *Monitor) flipLocked(id gslb.EndpointID, from gslb.Verdict, j judgement) {
	if from != gslb.Unknown {
		m.stats.flips.Add(1)
	}
	if len(m.flips) < maxBroadcasts {
		m.flips = append(m.flips, flip{id: id, from: from, to: j.Verdict, why: j.Why()})
	}
	nudge(m.wake)
}

// changeLocked says that what publish returned last is out of date.
func (m *Monitor) changeLocked() {
	m.public = nil
	nudge(m.changed)
}

func (m *Monitor) publish() *verdicts {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.public != nil {
		return m.public
	}
	v := &verdicts{make(map[gslb.EndpointID]gslb.Verdict, len(m.judged)), make(map[gslb.EndpointID]bool),
		make(map[string]map[gslb.EndpointID]gslb.Verdict)}
	for id, j := range m.judged {
		v.verdicts[id] = j.Verdict
		if j.Flipping {
			v.flipping[id] = true
		}
	}
	m.settleLocked(time.Now())
	if m.guard != nil {
		for id, e := range m.guard.ends {
			if m.guard.serves(id) {
				v.verdicts[id] = e.verdict
			}
		}
	}
	m.dissentLocked(func(region string, id gslb.EndpointID, verdict gslb.Verdict) {
		if v.regional[region] == nil {
			v.regional[region] = make(map[gslb.EndpointID]gslb.Verdict)
		}
		v.regional[region][id] = verdict
	})
	m.public = v
	return v
}

func (m *Monitor) endFirstRound() {
	select {
	case <-m.first:
	default:
		close(m.first)
	}
}

func causeOf(err error) dropCause {
	switch {
	case errors.Is(err, errVersion):
		return dropVersion
	case errors.Is(err, errOversize):
		return dropOversize
	case errors.Is(err, errUnsigned):
		return dropUnsigned
	case errors.Is(err, errForged):
		return dropForged
	case errors.Is(err, errFlood):
		return dropFlood
	default:
		return dropMalformed
	}
}
