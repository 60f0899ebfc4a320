package health

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
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
	First int
	Marks []byte // one each
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

// decodeBits reads what follows the heading.
func decodeBits(d *decoder) (*Bits, error) {
	bits := &Bits{First: int(d.uint(maxRegisters))}
	n := int(d.uint(maxRegisters))
	if octets := d.take(uint64(n+1) / 2); d.err == nil {
		bits.Marks = make([]byte, n)
		for i := range bits.Marks {
			m := octets[i/2] >> (4 * (i % 2)) & 0xf
			if m == 0 { // most of them, where targets are shared among many
				continue
			}
			if m&^marksKnown != 0 || m&markKnown == 0 {
				return nil, fmt.Errorf("mark %#x", m)
			}
			bits.Marks[i] = m
		}
		if n%2 == 1 && octets[n/2]>>4 != 0 {
			return nil, errors.New("a mark after the last")
		}
	}
	if d.err == nil && len(d.b) > 0 {
		return nil, errors.New("octets after the marks")
	}
	return bits, d.err
}

// markOf returns what o says in a bitmap.
func markOf(o Observation) byte {
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
func (r *Report) observations(list []gslb.EndpointID, had map[gslb.EndpointID]Observation) []Observation {
	marks := r.Bits.Marks[:max(0, min(len(r.Bits.Marks), len(list)-r.Bits.First))]
	var out []Observation
	again := 0 // of those in had
	for i, m := range marks {
		if m == 0 {
			continue
		}
		id := list[r.Bits.First+i]
		out = append(out, Observation{ID: id, Version: r.Heading.Version, At: r.Heading.At, Up: m&markUp != 0, Flipping: m&markFlipping != 0})
		if _, ok := had[id]; ok {
			again++
		}
	}
	if again == len(had) {
		return out
	}
	for i, m := range marks {
		if m != 0 {
			continue
		}
		if id := list[r.Bits.First+i]; had[id].ID == id {
			out = append(out, Observation{ID: id, Version: r.Heading.Version, At: r.Heading.At, Silent: true})
		}
	}
	return out
}
