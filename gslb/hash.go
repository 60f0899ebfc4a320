package gslb

import (
	"hash/fnv"
	"math"
	"math/bits"
	"net/netip"

	"github.com/meridian-gslb/meridian/geo"
)

// Shares are kept by weighted rendezvous hashing (Thaler and Ravishankar 1998; with weights,
// Mosko 2020): each candidate draws -ln(h)/w from its own hash h of the client, 0 < h < 1, and
// the smallest draw wins. The draws are exponential with rate w, so each wins in proportion
// to its weight, and one that leaves moves only its own clients.
//
// Every node must draw the same, on every architecture: hashes are of integers, and products
// are rounded before they are added, lest a compiler fuse them.

// mix is the finalizer of MurmurHash3: a bijection in which each bit of x changes every
// bit of the result with probability one half.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}

// seed returns the hash of names, which stand for a service, pool or endpoint.
func seed(names ...string) uint64 {
	h := fnv.New64a()
	for _, n := range names {
		h.Write([]byte(n))
		h.Write([]byte{0})
	}
	return mix(h.Sum64())
}

// draw returns the draw of the candidate with that seed and mean, which is 1/weight, for
// the client with that key. Smaller is better.
func draw(key, seed uint64, mean float64) float64 { return negLog2(mix(key^seed)) * mean }

// log2Bits is the precision of the table of logarithms: with linear interpolation its
// error is under 3e-6, which moves one client in a million.
const log2Bits = 8

// log2Table holds log2(1 + i/2^log2Bits).
var log2Table = func() (t [1<<log2Bits + 1]float64) {
	for i := range t {
		t[i] = math.Log2(1 + float64(i)/(1<<log2Bits))
	}
	return t
}()

// negLog2 returns -log2(h/2^64) for h > 0, a number in 0..64; h = 0 counts as 1.
func negLog2(h uint64) float64 {
	h |= 1
	zeros := bits.LeadingZeros64(h)
	m := h << zeros << 1 // the bits after the first: h = 2^(63-zeros) * (1 + m/2^64)
	i := m >> (64 - log2Bits)
	rest := float64(m<<log2Bits>>11) / (1 << 53) // where m is between two entries, 0..1
	low, high := log2Table[i], log2Table[i+1]
	return float64(zeros+1) - (low + float64(rest*(high-low)))
}

// hash returns what the draws of the client at addr are made of, its source prefix at the length of
// its family, and the scope of that. Who comes through NAT64 or 6to4 is hashed like the IPv4 address
// inside: by the prefix alone all of NAT64 would be one client.
func (svc *Service) hash(addr netip.Addr, length4, length6 uint8) (key uint64, scope uint8) {
	length, before := length4, uint8(0)
	if addr.Is6() {
		v4, n, inside := geo.Embedded(addr)
		if inside {
			addr, before = v4, n
		} else {
			length = length6
			scope = n // beside those that are inside
		}
	}
	return mix(prefix64(addr)&^(^uint64(0)>>length) ^ svc.seed), max(scope, before+length)
}

// prefix64 returns the first 64 bits of addr; an IPv4 address is followed by zeros.
func prefix64(addr netip.Addr) uint64 {
	if addr.Is4() {
		a := addr.As4()
		return uint64(a[0])<<56 | uint64(a[1])<<48 | uint64(a[2])<<40 | uint64(a[3])<<32
	}
	a := addr.As16()
	return uint64(a[0])<<56 | uint64(a[1])<<48 | uint64(a[2])<<40 | uint64(a[3])<<32 |
		uint64(a[4])<<24 | uint64(a[5])<<16 | uint64(a[6])<<8 | uint64(a[7])
}
