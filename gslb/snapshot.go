package gslb

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// Service returns the service of that owner name (lower case, no trailing dot), or nil.
func (s *Snapshot) Service(name string) *Service {
	i, ok := slices.BinarySearchFunc(s.Services, name, func(v *Service, name string) int { return strings.Compare(v.Name, name) })
	if !ok {
		return nil
	}
	return s.Services[i]
}

// Pool returns the pool of that name, or nil.
func (s *Snapshot) Pool(name string) *Pool {
	i, ok := slices.BinarySearchFunc(s.Pools, name, func(v *Pool, name string) int { return strings.Compare(v.Name, name) })
	if !ok {
		return nil
	}
	return s.Pools[i]
}

// outcome is what a choice means for one service in one snapshot.
type outcome struct {
	reason   Reason
	ttl      uint32  // seconds
	shares   []share // best group first; empty with ReasonFallback and ReasonServfail
	main     uint8   // the group that lost shares are of
	hashed   bool    // the share or the reason depends on the client's hash
	split    bool    // the share does
	merged   bool    // the answer is made of several pools, or of failure domains
	flags    Flags   // of all its clients
	shape    shape
	v4, v6   []netip.Addr
	fallback string
}

// share is a pool that some of an outcome's clients are sent to, or would be.
type share struct {
	pool   *Pool
	list   *endpoints // of pool: what to answer with
	host   string     // in place of list: a name
	gates  []gate     // that each let only some clients through
	mean   float64    // of its draws: 1/weight
	seed   uint64
	group  uint8
	reason Reason
	flags  Flags
	lost   bool // down, demoted or shut by a limit: its clients go to the others, for that reason
}

// gate lets through the clients whose hash under seed is below a number.
type gate struct {
	seed, below uint64
	limit       int // in steering.limits
}

// admits reports whether the client with that key passes every gate.
func (sh *share) admits(key uint64) bool {
	for _, g := range sh.gates {
		if mix(key^g.seed) >= g.below {
			return false
		}
	}
	return true
}

// endpoints are what a pool is answered with, by family.
type endpoints struct {
	index   []int // in Pool.Endpoints
	v4, v6  answers
	domains []domain // of all of them
}

// answers are addresses of one family, in the order of the configuration.
type answers struct {
	addrs   []netip.Addr
	means   []float64 // of their draws: 1/weight
	seeds   []uint64
	domains []uint16 // in endpoints.domains
	even    bool     // all means are equal
}

// domain is what fails together.
type domain struct {
	name string
	seed uint64
	mean float64 // of its draws: 1/weight of all in it
}

// Decide fills d with the decision for c on svc, a service of s. It does not allocate.
func (s *Snapshot) Decide(svc *Service, c Client, d *Decision) { s.DecideFor(IPv4|IPv6, svc, c, d) }

// DecideFor is Decide without the addresses of families that are not wanted, which takes less time.
// All else is the same: the scope is that of the decision, whoever asks for what.
func (s *Snapshot) DecideFor(want Families, svc *Service, c Client, d *Decision) {
	addr := c.Addr.Unmap()
	i, scope := svc.routing.lookup(addr)
	o := &svc.outcomes[i]
	d.Service, d.Outcome, d.Scope, d.TTL, d.Reason, d.Flags, d.Targets = svc, i, scope, o.ttl, o.reason, o.flags, nil
	if len(o.shares) == 0 {
		d.Pool, d.V4, d.V6, d.Fallback = nil, o.v4, o.v6, o.fallback
		return
	}
	sh := &o.shares[0]
	var key uint64
	var sticky uint8
	if o.hashed {
		key, sticky = o.hash(svc, addr)
		var first *share
		sh, first = o.pick(key)
		switch {
		case sh.reason != ReasonPolicy || first == sh:
			d.Reason = sh.reason
		case first.lost:
			d.Reason = first.reason
		default:
			d.Reason = ReasonOverflow
		}
		if o.split {
			d.Scope = max(d.Scope, sticky)
		}
	} else {
		d.Reason = sh.reason
	}
	d.Pool, d.Fallback = sh.pool, sh.host
	d.Flags |= sh.flags
	if sh.host != "" {
		d.V4, d.V6 = nil, nil
		o.target(svc, sh, key, d)
		return
	}
	d.V4, d.V6 = sh.list.v4.addrs, sh.list.v6.addrs
	n := int(o.shape.answers)
	if !o.merged && len(d.V4) <= n && len(d.V6) <= n {
		o.target(svc, sh, key, d)
		return
	}
	if !o.hashed {
		key, sticky = o.hash(svc, addr)
	}
	cut := true
	if o.merged {
		cut = o.merge(sh, key, d)
	} else {
		d.V4, d.V6 = nil, nil
		if want&IPv4 != 0 {
			d.V4 = sh.list.v4.top(n, key, d.buf[0][:], o.shape.listed)
		}
		if want&IPv6 != 0 {
			d.V6 = sh.list.v6.top(n, key, d.buf[1][:], o.shape.listed)
		}
	}
	if cut {
		d.Scope = max(d.Scope, sticky)
	}
	o.target(svc, sh, key, d)
}

// hash returns what the draws of the client at addr are made of, and the scope of that.
func (o *outcome) hash(svc *Service, addr netip.Addr) (key uint64, scope uint8) {
	if o.shape.sticky4 == 0 {
		return svc.hash(addr, svc.sticky4, svc.sticky6)
	}
	return svc.hash(addr, o.shape.sticky4, o.shape.sticky6)
}

// pick returns the share of the client with that key, and the one that it would have if none were
// lost and each took all that comes.
func (o *outcome) pick(key uint64) (mine, first *share) {
	shares := o.shares
	for len(shares) > 0 {
		n := 1
		for n < len(shares) && shares[n].group == shares[0].group {
			n++
		}
		if mine, first = winner(shares[:n], key, true); mine != nil {
			return mine, first
		}
		shares = shares[n:]
	}
	// Nobody takes this client, so the first choice must: never an empty answer.
	start := slices.IndexFunc(o.shares, func(sh share) bool { return sh.group == o.main })
	n := start + 1
	for n < len(o.shares) && o.shares[n].group == o.main {
		n++
	}
	return winner(o.shares[start:n], key, false)
}

// winner returns the share of one group for the client with that key, nil if none admits it;
// and the one that it would have if none were lost and each admitted it.
func winner(shares []share, key uint64, gated bool) (mine, first *share) {
	var best, least float64 // draws: of mine and of first
	for i := range shares {
		sh := &shares[i]
		d := draw(key, sh.seed, sh.mean)
		if first == nil || d < least {
			least, first = d, sh
		}
		if sh.lost || gated && len(sh.gates) > 0 && !sh.admits(key) {
			continue
		}
		if mine == nil || d < best {
			best, mine = d, sh
		}
	}
	return mine, first
}

// among is which pools may come after the client's own.
type among uint8

const (
	anyPool    among = iota
	itsGroup         // those that would have done as well
	namedPools       // those with a hostname
)

// admits tells whether sh may come after mine.
func (a among) admits(sh, mine *share) bool {
	switch a {
	case itsGroup:
		return sh.group == mine.group
	case namedPools:
		return sh.pool.Hostname != ""
	default:
		return true
	}
}

// ranked returns up to n different pools for the client with that key in its order, its own
// first, in buf.
func (o *outcome) ranked(mine *share, key uint64, n int, from among, buf *[MaxAnswers]*share) []*share {
	buf[0] = mine
	found := 1
	n = min(n, MaxAnswers)
	for start := 0; start < len(o.shares) && found < n; {
		end := start + 1
		for end < len(o.shares) && o.shares[end].group == o.shares[start].group {
			end++
		}
		var draws [MaxAnswers]float64
		first := found
		for i := start; i < end; i++ {
			sh := &o.shares[i]
			if sh.lost || !from.admits(sh, mine) || sh.group < o.main || holds(buf[:first], sh.pool) || len(sh.gates) > 0 && !sh.admits(key) {
				continue
			}
			d := 0.0
			if end-start > 1 {
				d = draw(key, sh.seed, sh.mean)
			}
			at := found
			for at > first && d < draws[at-1] {
				at--
			}
			if at == n {
				continue
			}
			found = min(found+1, n)
			copy(draws[at+1:found], draws[at:])
			copy(buf[at+1:found], buf[at:])
			draws[at], buf[at] = d, sh
		}
		start = end
	}
	return buf[:found]
}

func holds(shares []*share, p *Pool) bool {
	for _, sh := range shares {
		if sh.pool == p {
			return true
		}
	}
	return false
}

// merge fills the answers of d from several pools or failure domains, and reports whether
// that took draws.
func (o *outcome) merge(mine *share, key uint64, d *Decision) (cut bool) {
	n := int(o.shape.answers)
	switch o.shape.mode {
	case groupedSingle, groupedMulti:
		l, single := mine.list, o.shape.mode == groupedSingle
		d.V4, d.V6 = l.grouped(&l.v4, single, n, key, d.buf[0][:]), l.grouped(&l.v6, single, n, key, d.buf[1][:])
		return len(d.V4) < len(l.v4.addrs) || len(d.V6) < len(l.v6.addrs)
	}
	var buf [MaxAnswers]*share
	most, pools := int(o.shape.pools), anyPool
	if o.shape.mode == several && most == 1 {
		most, pools = MaxAnswers, itsGroup
	}
	from := o.ranked(mine, key, most, pools, &buf)
	for _, sh := range from {
		d.Flags |= sh.flags
	}
	var c4, c6 bool
	d.V4, c4 = o.collect(from, key, n, false, d.buf[0][:])
	d.V6, c6 = o.collect(from, key, n, true, d.buf[1][:])
	return c4 || c6
}

// collect takes up to n addresses of one family from shares, as many from each as go round,
// best first, into buf; and reports whether some were left out.
func (o *outcome) collect(from []*share, key uint64, n int, six bool, buf []netip.Addr) (out []netip.Addr, cut bool) {
	var quota [MaxAnswers]int
	family := func(sh *share) *answers {
		if six {
			return &sh.list.v6
		}
		return &sh.list.v4
	}
	for total, more := 0, true; more && total < n; {
		more = false
		for i, sh := range from {
			if sh.host != "" || quota[i] >= len(family(sh).addrs) || total == n {
				continue
			}
			if k := int(o.shape.perSite); k > 0 {
				site := 0
				for j, other := range from {
					if other.pool.Site == sh.pool.Site {
						site += quota[j]
					}
				}
				if site >= k {
					continue
				}
			}
			quota[i]++
			total++
			more = true
		}
	}
	found := 0
	for i, sh := range from {
		if sh.host != "" {
			continue
		}
		l := family(sh)
		cut = cut || quota[i] < len(l.addrs)
		found += copy(buf[found:], l.top(quota[i], key, buf[found:], o.shape.listed))
	}
	return buf[:found], cut
}

// target fills d.Targets for answers that name several pools. The owner name stands for the client's
// own pool, so that those after it need a name: whoever is sent to a name connects to its A and AAAA,
// whatever the hints (RFC 9460, section 7.3).
func (o *outcome) target(svc *Service, mine *share, key uint64, d *Decision) {
	if svc.steering.targets == 0 {
		return
	}
	var buf [MaxAnswers]*share
	list := o.ranked(mine, key, svc.steering.targets, namedPools, &buf)
	for i, sh := range list {
		t := &d.targets[i]
		*t = Target{Pool: sh.pool, Priority: uint16(i + 1), Name: sh.pool.Hostname, Port: sh.pool.Port}
		if sh.host == "" {
			t.V4, t.V6 = sh.list.v4.addrs, sh.list.v6.addrs
		}
	}
	d.Targets = d.targets[:len(list)]
}

// domain returns which of the failure domains that have some of those answers the client with that
// key is answered with.
func (l *endpoints) domain(a *answers, key uint64) (best uint16) {
	var least float64
	for i, k := range a.domains {
		if v := draw(key, l.domains[k].seed, l.domains[k].mean); i == 0 || v < least {
			best, least = k, v
		}
	}
	return best
}

// grouped returns up to n of l's answers of a family for the client with that key, best first,
// in buf: those of a single failure domain, or one of each.
func (l *endpoints) grouped(a *answers, single bool, n int, key uint64, buf []netip.Addr) []netip.Addr {
	var b best
	mine := uint16(0)
	if single {
		mine = l.domain(a, key)
	}
	for i, of := range a.domains {
		d := draw(key, a.seeds[i], a.means[i])
		switch {
		case single && of != mine:
			continue
		case !single:
			j := slices.IndexFunc(b.index[:b.found], func(k int32) bool { return a.domains[k] == of })
			if j >= 0 && d >= b.draws[j] {
				continue
			}
			if j >= 0 {
				b.remove(j)
			}
		}
		b.offer(n, int32(i), d)
	}
	return b.addrs(a, buf)
}

// top returns n of the answers, chosen by weight for the client with that key, in buf; or all
// of them if there are no more than n. They stand best first, or as the pool lists them.
func (a *answers) top(n int, key uint64, buf []netip.Addr, listed bool) []netip.Addr {
	if len(a.addrs) <= n {
		return a.addrs
	}
	var b best
	if len(a.seeds) <= maxRanked {
		b.rank(n, a, key)
	} else {
		for i, seed := range a.seeds {
			b.offer(n, int32(i), draw(key, seed, a.means[i]))
		}
	}
	if listed {
		slices.Sort(b.index[:b.found])
	}
	return b.addrs(a, buf)
}

// best are the answers with the least draws of those offered, in that order; of equal ones
// those offered first.
type best struct {
	found int
	draws [MaxAnswers]float64
	index [MaxAnswers]int32 // in the answers
}

// offer takes answer i if its draw is among the n least so far.
func (b *best) offer(n int, i int32, draw float64) {
	at := b.found
	if at < n {
		b.found++
	} else if at--; at < 0 || draw >= b.draws[at] {
		return
	}
	for ; at > 0 && draw < b.draws[at-1]; at-- {
		b.draws[at], b.index[at] = b.draws[at-1], b.index[at-1]
	}
	b.draws[at], b.index[at] = draw, i
}

// maxRanked is up to how many answers it takes less to compare all with all than to keep the best
// in order, which the processor cannot foretell.
const maxRanked = 8

// rank takes the n best of a for the client with that key, as if all had been offered.
func (b *best) rank(n int, a *answers, key uint64) {
	var rank [maxRanked]uint32 // how many are better
	var draws [maxRanked]uint64
	for i, seed := range a.seeds {
		d := ^mix(key^seed) >> 1 // as draw orders those of equal weight
		if !a.even {
			d = math.Float64bits(draw(key, seed, a.means[i])) // positive: in the order of the draws
		}
		draws[i] = d
		for j, o := range draws[:i] {
			better := uint32((d - o) >> 63)
			rank[j] += better
			rank[i] += 1 - better
		}
	}
	for i := range a.seeds {
		b.index[rank[i]] = int32(i)
	}
	b.found = n
}

// remove takes back what stands at j.
func (b *best) remove(j int) {
	b.found--
	copy(b.draws[j:b.found], b.draws[j+1:])
	copy(b.index[j:b.found], b.index[j+1:])
}

// addrs puts them into buf.
func (b *best) addrs(a *answers, buf []netip.Addr) []netip.Addr {
	for k, i := range b.index[:b.found] {
		buf[k] = a.addrs[i]
	}
	return buf[:b.found]
}

// signature returns a text by which two outcomes of a service are equal if they lead to the
// same answers for every client.
func (o *outcome) signature(svc *Service) string {
	if len(o.shares) == 0 {
		return fmt.Sprint(o.reason, o.v4, o.v6, o.fallback)
	}
	drawn := o.split || o.merged
	first := slices.IndexFunc(o.shares, func(sh share) bool { return !sh.lost })
	if l := o.shares[first].list; !drawn && o.shares[first].host == "" {
		drawn = max(len(l.v4.addrs), len(l.v6.addrs)) > int(o.shape.answers)
	}
	var b []byte
	if !drawn { // every client has the same
		var buf [MaxAnswers]*share
		for _, sh := range o.ranked(&o.shares[first], 0, max(1, svc.steering.targets), namedPools, &buf) {
			b = fmt.Append(b, " ", sh.pool.Index, sh.host, sh.list.index)
		}
		return string(b)
	}
	for i := range o.shares {
		sh := &o.shares[i]
		if sh.lost {
			continue
		}
		b = fmt.Append(b, " ", sh.pool.Index, sh.host, sh.list.index, sh.gates, i > 0 && sh.group != o.shares[i-1].group)
	}
	s := o.shape
	s.splitted, s.strict = false, false
	if s.sticky4 == 0 {
		s.sticky4, s.sticky6 = svc.sticky4, svc.sticky6
	}
	return string(fmt.Append(b, s))
}
