package gslb

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Sample is a decision that was made: what a plan is tried on.
type Sample struct {
	Service string `json:"service"`
	Client  Client `json:"client"`
}

// Plan says what a change would do to decisions that were made.
type Plan struct {
	Samples int         `json:"samples"` // decisions that both snapshots could make
	Moved   float64     `json:"moved"`   // share of them that would be another pool's, 0..1
	Moves   []Move      `json:"moves"`   // largest first
	Pools   []PoolShift `json:"pools"`   // by name, those that any decision chose
	Km      [2]float64  `json:"km"`      // mean distance of the clients to their pool, before and after; of those whose place is known
	Far     [2]float64  `json:"far"`     // 95th percentile of it
	RTT     [2]float64  `json:"rtt"`     // mean round-trip time to their pool in ms, before and after; of those measured, 0 if none is
	Scope   [2]float64  `json:"scope"`   // mean scope in bits
	Entries [2]int      `json:"entries"` // different (service, scope prefix): what a resolver would keep
	Empty   int         `json:"empty"`   // decisions that would have no answer and had one
}

// Move is a share of the decisions that goes from one pool to another; "" is no pool.
type Move struct {
	From  string  `json:"from"`
	To    string  `json:"to"`
	Share float64 `json:"share"`
}

// PoolShift is what a change means for a pool.
type PoolShift struct {
	Pool     string  `json:"pool"`
	Before   float64 `json:"before"` // share of the decisions
	After    float64 `json:"after"`
	Load     float64 `json:"load,omitempty"`     // share of its capacity that is in use, or that the change supposes to be; 0 is not known
	Expected float64 `json:"expected,omitempty"` // and would be
	Over     bool    `json:"over,omitempty"`     // more than its capacity
}

// Compare decides samples in two snapshots. A sample whose service either does not have is
// left out.
func Compare(before, after *Snapshot, samples []Sample) *Plan {
	p := &Plan{Moves: []Move{}, Pools: []PoolShift{}}
	var sides [2]side
	for i, s := range []*Snapshot{before, after} {
		sides[i] = side{s: s, pools: map[string]int{}, entries: map[entry]struct{}{}}
	}
	moves := map[[2]string]int{}
	for _, sample := range samples {
		if before.Service(sample.Service) == nil || after.Service(sample.Service) == nil {
			continue
		}
		p.Samples++
		from, had := sides[0].decide(sample)
		to, has := sides[1].decide(sample)
		if from != to {
			moves[[2]string{from, to}]++
			p.Moved++
		}
		if had && !has {
			p.Empty++
		}
	}
	if p.Samples == 0 {
		return p
	}
	n := float64(p.Samples)
	p.Moved /= n
	for m, count := range moves {
		p.Moves = append(p.Moves, Move{m[0], m[1], float64(count) / n})
	}
	slices.SortFunc(p.Moves, func(a, b Move) int {
		return cmp.Or(cmp.Compare(b.Share, a.Share), strings.Compare(a.From, b.From), strings.Compare(a.To, b.To))
	})
	for i := range sides {
		x := &sides[i]
		p.Scope[i], p.Entries[i] = float64(x.bits)/n, len(x.entries)
		if x.measured > 0 {
			p.RTT[i] = x.ms / float64(x.measured)
		}
		if len(x.km) > 0 {
			slices.Sort(x.km)
			for _, km := range x.km {
				p.Km[i] += km / float64(len(x.km))
			}
			p.Far[i] = x.km[(len(x.km)*95+99)/100-1]
		}
	}
	p.shift(&sides, n)
	return p
}

// shift fills p.Pools.
func (p *Plan) shift(sides *[2]side, n float64) {
	var names []string
	for i := range sides {
		for name := range sides[i].pools {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		b, a := sides[0].pools[name], sides[1].pools[name]
		shift := PoolShift{Pool: name, Before: float64(b) / n, After: float64(a) / n, Load: p.load(sides, name)}
		switch {
		case shift.Load > 0 && b > 0:
			shift.Expected = shift.Load * float64(a) / float64(b)
		case a > 0: // its load is not known by itself, but what all pools carry may be
			shift.Expected = p.foreseen(sides, name, float64(a))
		}
		shift.Over = shift.Expected > 1
		p.Pools = append(p.Pools, shift)
	}
}

// load returns the share of a pool's capacity that is in use, as the change supposes it if it
// does.
func (p *Plan) load(sides *[2]side, name string) float64 {
	if load, ok := sides[1].s.in.Load[name]; ok {
		return load
	}
	return sides[0].s.in.Load[name]
}

// foreseen estimates the load of a pool that had no decision before, from what a decision is
// worth elsewhere; 0 is not known.
func (p *Plan) foreseen(sides *[2]side, name string, decisions float64) float64 {
	var requests, counted float64
	for other, n := range sides[0].pools {
		pool := sides[0].s.Pool(other)
		if load := p.load(sides, other); pool != nil && load > 0 && pool.Capacity > 0 {
			requests += load * pool.Capacity
			counted += float64(n)
		}
	}
	pool := sides[1].s.Pool(name)
	if counted == 0 || pool == nil || pool.Capacity == 0 {
		return 0
	}
	return decisions * requests / counted / pool.Capacity
}

// entry is what a resolver keeps one answer under.
type entry struct {
	service string
	prefix  netip.Prefix
}

// side is one of the snapshots of a plan, and what it decided.
type side struct {
	s       *Snapshot
	pools   map[string]int
	entries map[entry]struct{}
	km      []float64
	ms      float64 // sum of the RTTs of measured decisions
	bits    int
	d       Decision

	measured int
}

// decide decides a sample; answered says that there is something to answer.
func (x *side) decide(sample Sample) (pool string, answered bool) {
	svc := x.s.Service(sample.Service)
	x.s.Decide(svc, sample.Client, &x.d)
	x.bits += int(x.d.Scope)
	addr := sample.Client.Addr.Unmap()
	if prefix, err := addr.Prefix(min(int(x.d.Scope), addr.BitLen())); err == nil {
		x.entries[entry{sample.Service, prefix}] = struct{}{}
	}
	answered = len(x.d.V4)+len(x.d.V6) > 0 || x.d.Fallback != ""
	if x.d.Pool == nil {
		return "", answered
	}
	x.pools[x.d.Pool.Name]++
	if rtt, ok := x.s.in.RTT.between(addr, x.d.Pool.Name); ok {
		x.ms += rtt.Millis
		x.measured++
	}
	if x.s.Geo != nil {
		p, _ := x.s.Geo.Lookup(addr)
		if at := spotOf(p, x.s.in.Objects.Sites); at.known {
			x.km = append(x.km, at.km(&x.d.Pool.at.spot))
		}
	}
	return x.d.Pool.Name, answered
}

// Reservoir keeps a fair picture of the latest decisions: every decision of a window is as
// likely to be in it as any other (Vitter 1985, algorithm R), and the window before is kept
// until this one is full. The zero value is not usable; see NewReservoir. One goroutine at a
// time may use it.
type Reservoir struct {
	slots, past []Sample
	seen        uint64 // of this window
	window      uint64 // decisions
	seed        uint64
}

// NewReservoir returns a reservoir of size samples, over windows of that many decisions.
func NewReservoir(size int, window uint64) *Reservoir {
	return &Reservoir{slots: make([]Sample, 0, size), past: make([]Sample, 0, size), window: max(window, uint64(size)), seed: 1}
}

// Add offers a decision. It does not allocate.
func (r *Reservoir) Add(service string, c Client) {
	if r.seen == r.window {
		r.slots, r.past, r.seen = r.past[:0], r.slots, 0
	}
	r.seen++
	if len(r.slots) < cap(r.slots) {
		r.slots = append(r.slots, Sample{service, c})
		return
	}
	r.seed = mix(r.seed + 0x9e3779b97f4a7c15)
	if i := r.seed % r.seen; i < uint64(len(r.slots)) {
		r.slots[i] = Sample{service, c}
	}
}

// Samples returns the latest samples, no more than the size: those of this window, and of the
// one before as many as there is room for.
func (r *Reservoir) Samples() []Sample {
	out := slices.Clone(r.slots)
	return append(out, r.past[:min(len(r.past), cap(r.slots)-len(r.slots))]...)
}
