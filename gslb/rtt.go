package gslb

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/meridian-gslb/meridian/geo"
)

// RTT is the measured round-trip time between a client prefix and a pool.
type RTT struct {
	Millis  float64   `json:"ms"` // exponentially weighted moving average
	Samples int       `json:"samples"`
	At      time.Time `json:"at"` // of the last sample
}

// rttGain is the weight of a new sample in the average: 1/8, as RFC 6298 smooths the RTT of a
// connection.
const rttGain = 1.0 / 8

// Observe returns r with one more sample, taken at that time. A sample that is older than
// the last counts like any other; one that is no number over 0 does not count.
func (r RTT) Observe(ms float64, at time.Time) RTT {
	if !(ms > 0) || math.IsInf(ms, 0) {
		return r
	}
	if r.Samples == 0 {
		r.Millis = ms
	} else {
		r.Millis += rttGain * (ms - r.Millis)
	}
	r.Samples++
	if at.After(r.At) {
		r.At = at
	}
	return r
}

// RTTKey names a measurement: between the clients of a prefix, masked, and a pool.
type RTTKey struct {
	Prefix netip.Prefix
	Pool   string
}

// RTTTable holds measurements, whoever made them: probes, the passive TCP RTT of proxies, or
// beacons of users. It is immutable and safe for concurrent use.
type RTTTable struct {
	rows map[RTTKey]RTT
	keys []RTTKey // of rows, in order
}

// NewRTTTable returns a table of rows, which then belong to it.
func NewRTTTable(rows map[RTTKey]RTT) *RTTTable {
	t := &RTTTable{rows: rows, keys: slices.Collect(maps.Keys(rows))}
	slices.SortFunc(t.keys, func(a, b RTTKey) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Pool, b.Pool))
	})
	return t
}

// Len returns how many measurements t holds.
func (t *RTTTable) Len() int {
	if t == nil {
		return 0
	}
	return len(t.keys)
}

// between returns what was measured between a client and a pool: by the longest prefix that
// holds the client, or the IPv4 client inside (see RTTPrefix).
func (t *RTTTable) between(client netip.Addr, pool string) (r RTT, ok bool) {
	if t.Len() == 0 {
		return r, false
	}
	if v4, _, inside := geo.Embedded(client); inside {
		client = v4
	}
	for bits := client.BitLen(); bits >= 0 && !ok; bits-- {
		p, err := client.Prefix(bits)
		if err != nil {
			return r, false
		}
		r, ok = t.rows[RTTKey{p, pool}]
	}
	return r, ok
}

// rttRows are the measurements that count for one steering: by prefix, in ms by candidate;
// +Inf where there is none.
type rttRows struct {
	rows   map[netip.Prefix][]float64
	digest uint64
}

// count returns the rows that count for candidates, and when the first of them expires.
func (t *RTTTable) count(candidates []candidate, samples int, age time.Duration, now time.Time) (r rttRows, until time.Time) {
	r.rows = make(map[netip.Prefix][]float64)
	if t == nil {
		return r, until
	}
	index := make(map[string]int, len(candidates))
	for i, c := range candidates {
		index[c.pool.Name] = i
	}
	h := fnv.New64a()
	var word [8]byte
	for _, k := range t.keys {
		v := t.rows[k]
		i, ok := index[k.Pool]
		end := v.At.Add(age)
		if !ok || v.Samples < samples || !end.After(now) {
			continue
		}
		if until.IsZero() || end.Before(until) {
			until = end
		}
		row := r.rows[k.Prefix]
		if row == nil {
			row = make([]float64, len(candidates))
			for j := range row {
				row[j] = math.Inf(1)
			}
			r.rows[k.Prefix] = row
		}
		row[i] = v.Millis
		fmt.Fprint(h, k.Prefix, i)
		binary.BigEndian.PutUint64(word[:], math.Float64bits(v.Millis))
		h.Write(word[:])
	}
	r.digest = h.Sum64()
	return r, until
}

// at returns the row of the longest prefix that holds the client, or nil.
func (r *rttRows) at(l *locus) []float64 {
	if !l.prefix.IsValid() || len(r.rows) == 0 {
		return nil
	}
	for bits := l.prefix.Bits(); bits >= 0; bits-- {
		p, _ := l.prefix.Addr().Prefix(bits)
		if row := r.rows[p]; row != nil {
			return row
		}
	}
	return nil
}

// msPerKM estimates a round-trip time by distance: light in fibre does 100 km and back in a
// millisecond, and paths are about twice as long as the great circle.
const msPerKM = 0.02
