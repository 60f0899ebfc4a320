package gslb

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// The lengths in bits of the prefixes that round-trip times are gathered by: what resolvers send
// as client subnets.
const (
	rttPrefix4 = 24
	rttPrefix6 = 48
)

// RTTPrefix returns the prefix that a client's round-trip times are gathered under: a /24 or a /48,
// or p itself if it is shorter. Who comes through NAT64 or 6to4 is the IPv4 client inside, as stages
// have it. ok is false for what is no client: an invalid prefix, an unspecified or a multicast
// address, or all addresses at once.
func RTTPrefix(p netip.Prefix) (out netip.Prefix, ok bool) {
	if !p.IsValid() {
		return netip.Prefix{}, false
	}
	addr, bits := p.Addr(), p.Bits()
	if addr.Is4In6() {
		addr, bits = addr.Unmap(), bits-96
	} else if v4, before, inside := geo.Embedded(addr); inside {
		addr, bits = v4, bits-int(before)
	}
	most := rttPrefix4
	if addr.Is6() {
		most = rttPrefix6
	}
	if bits <= 0 || addr.IsUnspecified() || addr.IsMulticast() {
		return netip.Prefix{}, false
	}
	out, err := addr.Prefix(min(bits, most))
	return out, err == nil
}

// RTTs gathers round-trip times from one kind of source, within a bound. It is not safe for
// concurrent use.
type RTTs struct {
	rows map[RTTKey]RTT
	most int
}

// NewRTTs returns one that keeps at most so many rows.
func NewRTTs(most int) *RTTs { return &RTTs{rows: make(map[RTTKey]RTT), most: max(most, 16)} }

// burst bounds the samples of one report that move the average: 16 in a row leave an eighth of
// what was before.
const burst = 16

// Observe takes the mean of n samples that were taken at that time. Where there is no room, the
// rows that have not been heard of for longest make way.
func (r *RTTs) Observe(key RTTKey, ms float64, n int, at time.Time) {
	row, known := r.rows[key]
	if n < 1 || !(ms > 0) || math.IsInf(ms, 0) {
		return
	}
	if !known && len(r.rows) >= r.most {
		r.evict()
	}
	for range min(n, burst) {
		row = row.Observe(ms, at)
	}
	row.Samples += n - min(n, burst)
	r.rows[key] = row
}

// evict drops the sixteenth of the rows that is oldest.
func (r *RTTs) evict() {
	keys := slices.SortedFunc(maps.Keys(r.rows), func(a, b RTTKey) int {
		return cmp.Or(r.rows[a].At.Compare(r.rows[b].At), compareKeys(a, b))
	})
	for _, k := range keys[:(len(keys)+15)/16] {
		delete(r.rows, k)
	}
}

func compareKeys(a, b RTTKey) int {
	return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Pool, b.Pool))
}

// Expire drops what was not heard of since then, and every pool that keep does not want.
func (r *RTTs) Expire(since time.Time, keep func(pool string) bool) {
	maps.DeleteFunc(r.rows, func(k RTTKey, v RTT) bool { return v.At.Before(since) || !keep(k.Pool) })
}

// Len returns how many rows there are.
func (r *RTTs) Len() int { return len(r.rows) }

// Rows returns a copy of the rows.
func (r *RTTs) Rows() map[RTTKey]RTT { return maps.Clone(r.rows) }

// MergeRTTs returns what several kinds of sources know together: where more than one knows
// something of a client and a pool, their mean by samples. What only weak ones know, those of the
// last argument, is taken where none of the others knows anything.
func MergeRTTs(weak map[RTTKey]RTT, strong ...map[RTTKey]RTT) map[RTTKey]RTT {
	out := make(map[RTTKey]RTT)
	for _, rows := range strong {
		for k, v := range rows {
			old := out[k]
			n := old.Samples + v.Samples
			if n <= 0 {
				continue
			}
			v.Millis = (old.Millis*float64(old.Samples) + v.Millis*float64(v.Samples)) / float64(n)
			if v.Samples = n; old.At.After(v.At) {
				v.At = old.At
			}
			out[k] = v
		}
	}
	for k, v := range weak {
		if _, known := out[k]; !known {
			out[k] = v
		}
	}
	return out
}

// Settled returns rows as a snapshot should have them: rounded so far that it takes a change worth
// a new snapshot to change them. Times are whole milliseconds (tenths below ten), and the moment of
// the last sample is moved on in steps of a sixteenth of maxAge, the time after which it is worth
// nothing.
func Settled(rows map[RTTKey]RTT, maxAge time.Duration) map[RTTKey]RTT {
	out := make(map[RTTKey]RTT, len(rows))
	for k, v := range rows {
		if v.Millis < 10 {
			v.Millis = max(math.Round(v.Millis*10)/10, 0.1)
		} else {
			v.Millis = math.Round(v.Millis)
		}
		v.Samples = min(v.Samples, 1000)
		v.At = v.At.Truncate(max(maxAge/16, time.Second))
		out[k] = v
	}
	return out
}

// Same tells whether two tables hold the same.
func (t *RTTTable) Same(other *RTTTable) bool {
	if t.Len() != other.Len() {
		return false
	}
	return t.Len() == 0 || maps.EqualFunc(t.rows, other.rows, func(a, b RTT) bool {
		return a.Millis == b.Millis && a.Samples == b.Samples && a.At.Equal(b.At)
	})
}

// ProbedRTT is what probes from one site find of a pool.
type ProbedRTT struct {
	Site, Pool string
	Millis     float64
	Samples    int
}

// nearKm is how near a site clients must be for what is measured there to hold for them: within it
// paths differ by some ms at most.
const nearKm = 300

// NearRTTs returns what probed says of clients: each has the times that were measured at the site
// that it is pinned to, or at the nearest within 300 km. There are no more than most rows.
func NearRTTs(probed []ProbedRTT, sites map[string]config.Site, m *geo.Map, clients []netip.Prefix, now time.Time, most int) map[RTTKey]RTT {
	out := make(map[RTTKey]RTT)
	if m == nil {
		return out
	}
	at := make(map[string][]ProbedRTT)
	for _, p := range probed {
		if _, known := sites[p.Site]; known && p.Millis > 0 {
			at[p.Site] = append(at[p.Site], p)
		}
	}
	names := slices.Sorted(maps.Keys(at))
	for _, c := range clients {
		place, _ := m.Lookup(c.Addr())
		near := ""
		if _, ok := at[place.Site]; ok {
			near = place.Site
		} else if from := spotOf(place, sites); from.known {
			best := float64(nearKm)
			for _, name := range names {
				to := spotAt(sites[name].Lat, sites[name].Lon)
				if km := from.km(&to); km <= best {
					near, best = name, km
				}
			}
		}
		for _, p := range at[near] {
			if len(out) >= most {
				return out
			}
			out[RTTKey{c, p.Pool}] = RTT{Millis: p.Millis, Samples: max(p.Samples, 1), At: now}
		}
	}
	return out
}
