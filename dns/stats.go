package dns

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/meridian-gslb/meridian/dns/zone"
	"github.com/meridian-gslb/meridian/gslb"
)

// Stats is what a server has done since it was made. Every count only grows, but for
// TCPOpen, also when the snapshot is replaced.
type Stats struct {
	UDP  uint64 // queries read
	TCP  uint64
	Full uint64 // of them, answered by the full path

	// Every name is there, also with 0, so that a rate can be told from the first event on.
	Rcodes   map[string]uint64 // replies, by the rcode's mnemonic
	Outcomes map[string]uint64 // queries that were resolved, by the zone.Outcome that it ended in
	Reasons  map[string]uint64 // decisions, by gslb.Reason

	Pools []PoolCount // decisions, by service, pool and reason; ordered by these

	Truncated uint64 // replies with TC
	Malformed uint64 // queries answered with FORMERR
	Dropped   uint64 // packets that got no reply: shorter than a header, or a response
	Unsent    uint64 // replies that the kernel did not take
	Limited   uint64 // replies over Limits: sent truncated, or not at all
	Panics    uint64 // queries whose answer panicked: a bug of ours

	TCPAccepted uint64 // connections
	TCPEvicted  uint64 // connections that made way for another, being idle for longest
	TCPRefused  uint64 // connections beyond the limit of their client
	TCPOpen     int    // connections now
}

// PoolCount counts the decisions for a service that ended in a pool for a reason. An empty Pool
// stands for those that ended in none: a fallback, or SERVFAIL. An empty Service stands for those
// that are gone, and those that a worker has no room for; see maxCells.
type PoolCount struct {
	Service, Pool, Reason string
	Decisions             uint64
}

// poolKey is what a PoolCount counts.
type poolKey struct {
	service, pool string
	reason        gslb.Reason
}

var rcodeNames = [...]string{
	rcodeNoError: "NOERROR", rcodeFormErr: "FORMERR", rcodeServFail: "SERVFAIL", rcodeNameError: "NXDOMAIN",
	rcodeNotImplemented: "NOTIMP", rcodeRefused: "REFUSED", rcodeYXDomain: "YXDOMAIN", rcodeNotAuth: "NOTAUTH", rcodeBadVers: "BADVERS",
}

// cacheLine is the room between what two CPUs write: two lines, because they are fetched in
// pairs.
const cacheLine = 128

// counters is what one worker counts, much of it in a tally first. Its worker alone adds to it, so that no
// cache line is shared; others read it.
type counters struct {
	_ [cacheLine]byte

	queries, full, dropped    atomic.Uint64
	truncated, unsent, panics atomic.Uint64
	limited                   atomic.Uint64
	replies                   [replyKinds]atomic.Uint64

	pools atomic.Pointer[poolTable]

	shared bool       // several goroutines add, which is set before they do: TCP's
	adding sync.Mutex // held while one of them adds decisions, so that nobody replaces pools meanwhile

	mu      sync.Mutex // held when pools is replaced, once a snapshot at most
	retired map[poolKey]uint64

	recent recent

	_ [cacheLine]byte
}

// replyKinds is how many kinds of replies there are: by the outcome, the first without one, and the rcode.
const replyKinds = (1 + outcomes) * len(rcodeNames)

// replyKind returns the kind of r.
func replyKind(r *reply) int {
	if !r.resolved {
		return r.rcode
	}
	return (1+int(r.outcome))*len(rcodeNames) + r.rcode
}

// add counts n decisions out of s.
func (c *counters) add(s *gslb.Snapshot, kind decisionKind, n uint32) {
	if c.shared {
		c.adding.Lock()
		defer c.adding.Unlock()
	}
	t := c.pools.Load()
	if t == nil || t.snapshot.Load() != s {
		t = c.follow(s)
	}
	t.row(kind.service(), kind.reason())[kind.pool()].Add(uint64(n))
}

// outcomes and reasons are how many there are.
const (
	outcomes = int(zone.Redirect) + 1
	reasons  = int(gslb.ReasonServfail) + 1
)

// maxCells bounds the counters of one worker's table, 8 octets each: with 100 pools, 1,900 services
// and reasons have some of their own.
const maxCells = 1 << 18

// rowApart is how many counters before a row and after it stay unused: another worker's may be there.
const rowApart = cacheLine / 8

// poolTable counts decisions by the service's and the pool's index in a snapshot, and by reason.
// Rows come with their first decision: few services of a large plan are asked for at one node, and
// few reasons occur. Once there are maxCells counters, what has none yet shares the last rows.
type poolTable struct {
	snapshot        atomic.Pointer[gslb.Snapshot] // whose indices are those of services and pools
	services, pools []string
	rows            []atomic.Pointer[[]atomic.Uint64] // by service and reason, the shared ones last; a row's last entry is for no pool
	cells           atomic.Int64                      // in rows
}

// row returns the counters of a service and a reason, by pool.
func (t *poolTable) row(service int, reason gslb.Reason) []atomic.Uint64 {
	i := service*reasons + int(reason)
	row := t.rows[i].Load()
	if row == nil {
		return t.newRow(i)
	}
	return *row
}

// newRow returns row i, made if there is room for it, else that of its reason.
func (t *poolTable) newRow(i int) []atomic.Uint64 {
	last := len(t.rows) - reasons + i%reasons
	if i != last && t.cells.Load()+int64(len(t.pools)+2*rowApart) >= maxCells {
		if row := t.rows[last].Load(); row != nil {
			return *row
		}
		return t.newRow(last)
	}
	whole := make([]atomic.Uint64, rowApart+len(t.pools)+1+rowApart)
	fresh := whole[rowApart : len(whole)-rowApart]
	t.rows[i].Store(&fresh)
	t.cells.Add(int64(len(whole)))
	return fresh
}

// follow returns a table for s: the present one if services and pools are the same, as they
// are when only verdicts changed, else a new one. What the old one counted is kept by name.
func (c *counters) follow(s *gslb.Snapshot) *poolTable {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.pools.Load()
	if old != nil && old.fits(s) {
		old.snapshot.Store(s)
		return old
	}
	t := &poolTable{rows: make([]atomic.Pointer[[]atomic.Uint64], (len(s.Services)+1)*reasons)}
	for _, service := range s.Services {
		t.services = append(t.services, service.Name)
	}
	for _, pool := range s.Pools {
		t.pools = append(t.pools, pool.Name)
	}
	t.snapshot.Store(s)
	if old != nil {
		if c.retired == nil {
			c.retired = make(map[poolKey]uint64)
		}
		old.addTo(c.retired)
		c.forget(s)
	}
	c.pools.Store(t)
	return t
}

// forget counts what s does not have any more under no name, so that the kept ones do not grow
// with every change of the plan.
func (c *counters) forget(s *gslb.Snapshot) {
	for key, n := range c.retired {
		if s.Service(key.service) != nil && (key.pool == "" || s.Pool(key.pool) != nil) || key.service == "" && key.pool == "" {
			continue
		}
		delete(c.retired, key)
		c.retired[poolKey{reason: key.reason}] += n
	}
}

func (t *poolTable) fits(s *gslb.Snapshot) bool {
	return slices.EqualFunc(t.services, s.Services, func(name string, s *gslb.Service) bool { return name == s.Name }) &&
		slices.EqualFunc(t.pools, s.Pools, func(name string, p *gslb.Pool) bool { return name == p.Name })
}

// addTo adds t's counts to sums.
func (t *poolTable) addTo(sums map[poolKey]uint64) {
	for i := range t.rows {
		row := t.rows[i].Load()
		if row == nil {
			continue
		}
		for j := range *row {
			if n := (*row)[j].Load(); n > 0 {
				key := poolKey{reason: gslb.Reason(i % reasons)}
				if service := i / reasons; service < len(t.services) {
					key.service = t.services[service]
				}
				if j < len(t.pools) {
					key.pool = t.pools[j]
				}
				sums[key] += n
			}
		}
	}
}

// addTo adds c to s, and its decisions to pools.
func (c *counters) addTo(s *Stats, pools map[poolKey]uint64) {
	s.Full += c.full.Load()
	s.Dropped += c.dropped.Load()
	s.Truncated += c.truncated.Load()
	s.Unsent += c.unsent.Load()
	s.Panics += c.panics.Load()
	s.Limited += c.limited.Load()
	for rcode, name := range rcodeNames {
		for i := range 1 + outcomes {
			n := c.replies[i*len(rcodeNames)+rcode].Load()
			if i > 0 {
				s.Outcomes[zone.Outcome(i-1).String()] += n
			}
			if rcode == rcodeFormErr {
				s.Malformed += n
			}
			if name != "" {
				s.Rcodes[name] += n
			}
		}
	}
	decisions := make(map[poolKey]uint64)
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.Copy(decisions, c.retired)
	if t := c.pools.Load(); t != nil {
		t.addTo(decisions)
	}
	for reason := range gslb.Reason(reasons) {
		s.Reasons[reason.String()] += 0
	}
	for key, n := range decisions {
		s.Reasons[key.reason.String()] += n
		pools[key] += n
	}
}

// Stats returns what the server has done so far. It may be called at any time.
func (s *Server) Stats() Stats {
	st := Stats{Rcodes: map[string]uint64{}, Outcomes: map[string]uint64{}, Reasons: map[string]uint64{}}
	pools := make(map[poolKey]uint64)
	for i := range s.udpCounters {
		s.udpCounters[i].addTo(&st, pools)
		st.UDP += s.udpCounters[i].queries.Load()
	}
	s.tcp.counters.addTo(&st, pools)
	st.TCP = s.tcp.counters.queries.Load()
	st.TCPAccepted, st.TCPEvicted, st.TCPRefused = s.tcp.accepted.Load(), s.tcp.evicted.Load(), s.tcp.refused.Load()
	st.TCPOpen = s.tcp.open()
	for key, n := range pools {
		st.Pools = append(st.Pools, PoolCount{Service: key.service, Pool: key.pool, Reason: key.reason.String(), Decisions: n})
	}
	slices.SortFunc(st.Pools, func(a, b PoolCount) int {
		return cmp.Or(strings.Compare(a.Service, b.Service), strings.Compare(a.Pool, b.Pool), strings.Compare(a.Reason, b.Reason))
	})
	return st
}
