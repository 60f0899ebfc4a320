package dns

import (
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"time"
)

// Limits bound the replies over UDP to clients that did not prove their address by a cookie, so
// that the server is of no use for reflecting floods. The zero value has no limit.
type Limits struct {
	// Rate is replies a second to one IPv4 address or IPv6 /128; wider prefixes have a multiple of
	// it as in Knot DNS: 32 for a /24, 256 for a /20, 768 for an /18; 2 for an IPv6 /64, 3 for a
	// /56, 4 for a /48, 64 for a /32. 0: no limit. Every worker allows its share of it, as the
	// kernel spreads source ports over them.
	Rate float64

	Burst float64 // replies at once, in the same multiples; default 2.5 × Rate
	Slip  int     // every so manieth reply over the limit is sent truncated, so that a client that is real comes by TCP; default 1, below 0 none

	// Allow are clients that are never limited. On Linux they have a queue of their own, so that a
	// flood from elsewhere does not push out what they ask.
	Allow []netip.Prefix

	// Amplify bounds the length of a reply in lengths of its query; a longer one is truncated.
	// 0: no bound.
	Amplify int
}

// widths are the prefix lengths that are limited, the widest first, with their share of the rate.
var widths4, widths6 = [...]width{{18, 768}, {20, 256}, {24, 32}, {32, 1}}, [...]width{{32, 64}, {48, 4}, {56, 3}, {64, 2}, {128, 1}}

type width struct {
	bits  uint8
	times float32
}

// limiterSlots is how many prefixes a worker remembers: 1 MiB. Of two that want a place the one
// closer to its limit stays.
const limiterSlots = 1 << 16

// limiter is one worker's part of Limits: leaky buckets in a table of fixed size. One goroutine
// uses it.
type limiter struct {
	rate, burst float32 // per ms; replies
	slip        int
	allow       []netip.Prefix
	slipped     int
	keys        [3]uint64 // secret: nobody can aim at slots
	slots       []bucket

	_ [cacheLine]byte
}

// bucket is the level of one prefix.
type bucket struct {
	tag   uint64 // hash of the prefix
	level float32
	at    uint32 // ms since some time, when level was right
}

// newLimiter returns the limiter of one of so many workers, or nil where there is no limit.
func newLimiter(l Limits, workers int) *limiter {
	if l.Rate <= 0 {
		return nil
	}
	if l.Burst <= 0 {
		l.Burst = 2.5 * l.Rate
	}
	if l.Slip == 0 {
		l.Slip = 1
	}
	share := float32(workers)
	t := &limiter{
		rate: float32(l.Rate) / 1000 / share, burst: max(float32(l.Burst)/share, 1),
		slip: l.Slip, allow: l.Allow, slots: make([]bucket, limiterSlots),
	}
	for i := range t.keys {
		t.keys[i] = rand.Uint64() | 1
	}
	return t
}

// verdict is what becomes of a reply.
type verdict uint8

const (
	send verdict = iota
	truncate
	drop
)

// take counts a reply to from, and says what becomes of it.
func (t *limiter) take(from netip.Addr, at time.Time) verdict {
	widths := widths4[:]
	if !from.Is4() {
		widths = widths6[:]
	}
	a := from.As16()
	hi, lo := be64(a[:8]), be64(a[8:])
	if from.Is4() {
		hi, lo = lo<<32, 1
	}
	now := uint32(at.UnixMilli())
	over := false
	for _, w := range widths {
		if !t.fill(t.tag(hi, lo, w.bits, from.Is4()), now, w.times) {
			over = true
			break // what is refused does not fill the narrower prefixes
		}
	}
	if !over {
		return send
	}
	for _, p := range t.allow {
		if p.Contains(from) {
			return send
		}
	}
	if t.slip > 0 {
		if t.slipped++; t.slipped >= t.slip {
			t.slipped = 0
			return truncate
		}
	}
	return drop
}

// fill adds one reply to a prefix, unless that is full.
func (t *limiter) fill(tag uint64, now uint32, times float32) bool {
	i := tag >> 1 % limiterSlots
	b, other := &t.slots[i], &t.slots[i^1]
	if b.tag != tag && other.tag == tag {
		b = other
	}
	if b.tag != tag {
		if other.leaked(now, t.rate*times) < b.leaked(now, t.rate*times) {
			b = other
		}
		*b = bucket{tag: tag, at: now}
	}
	level := b.leaked(now, t.rate*times)
	if level+1 > t.burst*times {
		return false
	}
	b.level, b.at = level+1, now
	return true
}

// leaked returns the level at now.
func (b *bucket) leaked(now uint32, rate float32) float32 {
	return max(b.level-float32(max(int32(now-b.at), 0))*rate, 0) // the wall clock may step back
}

// tag returns the hash of a prefix, never that of an empty slot.
func (t *limiter) tag(hi, lo uint64, length uint8, v4 bool) uint64 {
	if v4 || length <= 64 {
		hi &^= ^uint64(0) >> length
	}
	if !v4 && length <= 64 {
		lo = 0
	}
	upper, lower := bits.Mul64(hi^t.keys[0], lo^uint64(length)*t.keys[2]^t.keys[1])
	return upper ^ lower | 1
}
