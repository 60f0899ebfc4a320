package gslb

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// Archive keeps past snapshots, so that a decision can be repeated. The latest stay as they
// are; of those before it keeps what they were made of, each as its difference from the next
// (as RCS keeps the revisions of a file), and builds them again when one is asked for. It is
// safe for concurrent use.
type Archive struct {
	count int
	age   time.Duration

	mu    sync.Mutex
	all   []archived // oldest first; the last liveSnapshots have their snapshot
	again *Snapshot  // that was built last, for who asks about it
}

// archived is one snapshot of an archive: whole, or what it was made of.
type archived struct {
	revision uint64
	id       string    // "" as long as it is whole
	built    time.Time // Inputs.Now
	s        *Snapshot // nil: it is made of the next one's inputs by
	objects  *config.Objects
	geo      *geo.Map
	shares   map[string]map[string]float64
	names    map[string][]netip.Addr
	regional map[string]map[EndpointID]Verdict
	verdicts delta[EndpointID, Verdict]
	flipping delta[EndpointID, bool]
	flipAt   delta[EndpointID, time.Time]
	since    delta[EndpointID, time.Time]
	load     delta[string, float64]
	rtt      delta[RTTKey, RTT]
	measured bool // there is a table of RTTs
}

// liveSnapshots is how many snapshots stay whole: a burst of changes is described by those
// that answered meanwhile. Two that follow each other share what did not change.
const liveSnapshots = 16

// NewArchive returns an archive of up to count snapshots, 1 <= count, that are no older than
// age, but for the latest.
func NewArchive(count int, age time.Duration) *Archive { return &Archive{count: count, age: age} }

// Put adds s, whose revision is higher than those before, and forgets what is too old.
func (a *Archive) Put(s *Snapshot) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, archived{revision: s.Revision, built: s.in.Now, s: s})
	if i := len(a.all) - 1 - liveSnapshots; i >= 0 && a.all[i].s != nil {
		a.all[i].retire(a.all[i+1].s)
	}
	n := max(0, len(a.all)-a.count)
	for n < len(a.all)-1 && s.in.Now.Sub(a.all[n].built) > a.age {
		n++
	}
	a.all = slices.Delete(a.all, 0, n)
}

// retire lets go of a whole snapshot; next is the one after it.
func (x *archived) retire(next *Snapshot) {
	was, is := &x.s.in, &next.in
	x.id = x.s.ID()
	x.objects, x.geo, x.shares, x.names, x.regional = was.Objects, was.Geo, was.Shares, was.Names, was.Regional
	if maps.EqualFunc(was.Regional, is.Regional, maps.Equal) {
		x.regional = is.Regional // there once
	}
	x.verdicts, x.flipping = deltaOf(was.Verdicts, is.Verdicts), deltaOf(was.Flipping, is.Flipping)
	x.flipAt, x.since = deltaOf(was.FlipAt, is.FlipAt), deltaOf(was.Since, is.Since)
	x.load = deltaOf(was.Load, is.Load)
	if x.measured = was.RTT != nil; was.RTT != is.RTT {
		x.rtt = deltaOf(was.RTT.all(), is.RTT.all())
	}
	x.s = nil
}

// Live returns the snapshot of that revision if it is one of the latest, which stay whole;
// else nil.
func (a *Archive) Live(revision uint64) *Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i, ok := a.find(revision); ok {
		return a.all[i].s
	}
	return nil
}

// At returns the snapshot of that revision in decimal, or the latest with that ID; nil when
// none is kept. What it decides and explains is what it did then.
func (a *Archive) At(name string) (*Snapshot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := -1
	if revision, err := strconv.ParseUint(name, 10, 64); err == nil {
		if n, ok := a.find(revision); ok {
			i = n
		}
	} else {
		for n := len(a.all) - 1; n >= 0 && i < 0; n-- {
			if x := &a.all[n]; x.s != nil && x.s.ID() == name || x.id == name {
				i = n
			}
		}
	}
	switch {
	case i < 0:
		return nil, nil
	case a.all[i].s != nil:
		return a.all[i].s, nil
	case a.again != nil && a.again.Revision == a.all[i].revision:
		return a.again, nil
	}
	s, err := Build(a.all[len(a.all)-1].s, a.inputs(i))
	if err == nil {
		a.again = s
	}
	return s, err
}

// Span returns how many snapshots are kept, and the lowest revision of them.
func (a *Archive) Span() (n int, first uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.all) > 0 {
		first = a.all[0].revision
	}
	return len(a.all), first
}

func (a *Archive) find(revision uint64) (int, bool) {
	return slices.BinarySearchFunc(a.all, revision, func(x archived, r uint64) int {
		switch {
		case x.revision < r:
			return -1
		case x.revision > r:
			return 1
		}
		return 0
	})
}

// inputs returns what snapshot i, which is not whole, was made of.
func (a *Archive) inputs(i int) Inputs {
	from := i
	for a.all[from].s == nil {
		from++
	}
	in := a.all[from].s.in
	in.Verdicts, in.Flipping, in.FlipAt = own(in.Verdicts), own(in.Flipping), own(in.FlipAt)
	in.Since, in.Load = own(in.Since), own(in.Load)
	rtt := own(in.RTT.all())
	for n := from - 1; n >= i; n-- {
		x := &a.all[n]
		x.verdicts.undo(in.Verdicts)
		x.flipping.undo(in.Flipping)
		x.flipAt.undo(in.FlipAt)
		x.since.undo(in.Since)
		x.load.undo(in.Load)
		x.rtt.undo(rtt)
	}
	x := &a.all[i]
	in.Revision, in.Now, in.Objects, in.Geo, in.RTT = x.revision, x.built, x.objects, x.geo, nil
	in.Shares, in.Names, in.Regional = x.shares, x.names, x.regional
	if x.measured {
		in.RTT = NewRTTTable(rtt)
	}
	return in
}

// own returns a copy of m that can be written to.
func own[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// delta is what makes the map before of the map after.
type delta[K, V comparable] struct {
	put  map[K]V
	drop []K
}

func deltaOf[K, V comparable](before, after map[K]V) (d delta[K, V]) {
	for k, v := range before {
		if w, ok := after[k]; !ok || w != v {
			if d.put == nil {
				d.put = map[K]V{}
			}
			d.put[k] = v
		}
	}
	for k := range after {
		if _, ok := before[k]; !ok {
			d.drop = append(d.drop, k)
		}
	}
	return d
}

// undo makes m, which is the map after, the map before.
func (d *delta[K, V]) undo(m map[K]V) {
	maps.Copy(m, d.put)
	for _, k := range d.drop {
		delete(m, k)
	}
}

// all returns the rows of t; they belong to it.
func (t *RTTTable) all() map[RTTKey]RTT {
	if t == nil {
		return nil
	}
	return t.rows
}

// ID returns the address of what s decides: a hash of all that its decisions depend on, so not
// of its revision, nor of the time where that changes nothing. Snapshots with equal ones, of
// whatever node, decide alike. It is "s" and twelve hex digits.
func (s *Snapshot) ID() string {
	s.identify.Do(func() { s.id = s.sum() })
	return s.id
}

func (s *Snapshot) sum() string {
	h := sha256.New()
	in, reads := &s.in, s.reads()
	last := slices.ContainsFunc(s.Services, func(svc *Service) bool { return svc.steering.lastGood })
	fmt.Fprintln(h, s.Plan, in.Geo.Digest())
	sum(h, in.Verdicts, func(id EndpointID, v Verdict) string { return said(v != Unknown, id.Pool, id.Addr, v) })
	sum(h, in.Flipping, func(id EndpointID, f bool) string { return said(f, id.Pool, id.Addr) })
	sum(h, in.FlipAt, func(id EndpointID, t time.Time) string {
		return said(in.Flipping[id] && !t.IsZero(), id.Pool, id.Addr, t.UnixNano())
	})
	sum(h, in.Since, func(id EndpointID, t time.Time) string {
		delay := in.Objects.Pools[id.Pool].Delay != config.Returning{}
		return said((delay || last) && !t.IsZero(), id.Pool, id.Addr, t.UnixNano())
	})
	sum(h, in.Load, func(pool string, v float64) string { return said(reads&readsLoad != 0, pool, math.Float64bits(v)) })
	sum(h, in.RTT.all(), func(k RTTKey, v RTT) string {
		return said(reads&readsRTT != 0, k.Prefix, k.Pool, math.Float64bits(v.Millis), v.Samples, v.At.UnixNano())
	})
	if reads&readsRegions != 0 {
		for _, region := range slices.Sorted(maps.Keys(in.Regional)) {
			fmt.Fprintln(h, region)
			sum(h, in.Regional[region], func(id EndpointID, v Verdict) string { return said(true, id.Pool, id.Addr, v) })
		}
	}
	parts := []any{in.Names} // what maps hold is in order as JSON
	if reads&readsShares != 0 {
		parts = append(parts, in.Shares)
	}
	for _, v := range parts {
		if err := json.NewEncoder(h).Encode(v); err != nil {
			panic(err) // they are of strings, numbers and addresses
		}
	}
	if !s.Next.IsZero() {
		fmt.Fprintln(h, in.Now.UnixNano())
	}
	return "s" + hex.EncodeToString(h.Sum(nil)[:6])
}

// reads returns what any policy of s reads beside pools and clients.
func (s *Snapshot) reads() (r reading) {
	for _, svc := range s.Services {
		r |= svc.steering.reads
	}
	for _, p := range s.Pools {
		for _, u := range p.upstreams {
			r |= u.reads
		}
	}
	return r
}

// said returns words as one text; "" is that there is nothing to say.
func said(anything bool, words ...any) string {
	if !anything {
		return ""
	}
	return strings.TrimSpace(fmt.Sprintln(words...))
}

// sum writes the sum of the hashes of what the entries of m say, which does not depend on
// their order.
func sum[K comparable, V any](h hash.Hash, m map[K]V, say func(K, V) string) {
	var total [4]uint64
	for k, v := range m {
		if text := say(k, v); text != "" {
			one := sha256.Sum256([]byte(text))
			for i := range total {
				total[i] += binary.BigEndian.Uint64(one[8*i:])
			}
		}
	}
	fmt.Fprintln(h, total)
}
