package health

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
)

// A bitmap says all that a node finds in half an octet per target, and so takes the same
// octets in calm and in storm. It names no target: which they are is agreed by the list that
// both have from the same configuration, and that the heading names by its hash.
//
//	bits = heading first count *octet     ; a mark in each half octet, the low one first
const (
	markKnown    = 1 << 0 // else nothing is said of the target
	markUp       = 1 << 1
	markFlipping = 1 << 2
	marksKnown   = markKnown | markUp | markFlipping

	maxPages = 64 // of bitmaps that are kept of one node, to be passed on
)

// Bits are marks of targets in a row of a list.
type Bits struct {
	First, Count int
	Octets       []byte // of two marks each, as they travel
}

// all yields the marks that say something, by their targets' places in a list of that length.
func (b *Bits) all(length int) iter.Seq2[int, byte] {
	return func(yield func(int, byte) bool) {
		for i, octet := range b.Octets {
			for at := b.First + 2*i; octet != 0 && at < length; at, octet = at+1, octet>>4 {
				if m := octet & 0xf; m != 0 && !yield(at, m) {
					return
				}
			}
		}
	}
}

// listOf returns the hash that names a list of targets in order.
func listOf(ids []gslb.EndpointID) uint64 {
	h := fnv.New64a()
	for _, id := range ids {
		fmt.Fprintf(h, "%s/%s\n", id.Pool, id.Addr)
	}
	return h.Sum64()
}

// encodeBits returns the marks under r's heading, in messages of at most limit octets each.
func encodeBits(r *Report, marks []byte, now time.Time, limit int) [][]byte {
	head := appendHeading([]byte{wireVersion, kindBits}, r, now)
	page := max(2, 2*(limit-len(head)-2*binary.MaxVarintLen32))
	var messages [][]byte
	for first := 0; first < len(marks); first += page {
		part := marks[first:min(len(marks), first+page)]
		b := binary.AppendUvarint(append([]byte(nil), head...), uint64(first))
		b = binary.AppendUvarint(b, uint64(len(part)))
		for i := 0; i < len(part); i += 2 {
			octet := part[i]
			if i+1 < len(part) {
				octet |= part[i+1] << 4
			}
			b = append(b, octet)
		}
		messages = append(messages, b)
	}
	return messages
}

// decodeBits reads what follows the heading. It shares d's octets.
func decodeBits(d *decoder) (*Bits, error) {
	bits := &Bits{First: int(d.uint(maxRegisters)), Count: int(d.uint(maxRegisters))}
	bits.Octets = d.take(uint64(bits.Count+1) / 2)
	for _, octet := range bits.Octets {
		for ; octet != 0; octet >>= 4 { // most say nothing, where targets are shared among many
			if m := octet & 0xf; m != 0 && (m&^marksKnown != 0 || m&markKnown == 0) {
				return nil, fmt.Errorf("mark %#x", m)
			}
		}
	}
	switch n := len(bits.Octets); {
	case d.err == nil && bits.Count%2 == 1 && bits.Octets[n-1]>>4 != 0:
		return nil, errors.New("a mark after the last")
	case d.err == nil && len(d.b) > 0:
		return nil, errors.New("octets after the marks")
	}
	return bits, d.err
}

// markOf returns what o says in a bitmap.
func markOf(o *Observation) byte {
	m := byte(markKnown)
	if o.Up {
		m |= markUp
	}
	if o.Flipping {
		m |= markFlipping
	}
	return m
}

// observations returns what r's bitmap says of the targets in list: its votes, and that there is
// none any more where had has one. Of most targets a node says nothing, and never did.
func (r *Report) observations(list []gslb.EndpointID, had map[gslb.EndpointID]*register) []Observation {
	var out []Observation
	again := 0 // of those in had
	for at, m := range r.Bits.all(len(list)) {
		id := list[at]
		out = append(out, Observation{ID: id, Version: r.Heading.Version, At: r.Heading.At, Up: m&markUp != 0, Flipping: m&markFlipping != 0})
		if had[id] != nil {
			again++
		}
	}
	if again == len(had) {
		return out
	}
	for i := range r.Bits.Count {
		at := r.Bits.First + i
		if at >= len(list) {
			break
		}
		if r.Bits.Octets[i/2]>>(4*(i%2))&0xf == 0 && had[list[at]] != nil {
			out = append(out, Observation{ID: list[at], Version: r.Heading.Version, At: r.Heading.At, Silent: true})
		}
	}
	return out
}
