package zone

import (
	"bytes"
	"hash/maphash"
	"math/bits"
)

var seed = maphash.MakeSeed() // one for all, so that a name is hashed once for many indexes

// hash hashes a name in lower case.
func hash(name []byte) uint64 { return maphash.Bytes(seed, name) }

// slots finds things by the hash of their name: open addressing with linear probing, at 12
// octets a thing and without a pointer for the garbage collector to follow.
type slots []slot

type slot struct {
	tag   uint32 // low bits of the hash
	thing uint32 // its number, plus one; 0: empty
}

// newSlots returns slots for n things: half again as many, so that some are always empty.
func newSlots(n int) slots { return make(slots, n+n/2+1) }

// insert adds thing i, whose name is not there yet.
func (t slots) insert(h uint64, i int) {
	at := t.home(h)
	for t[at].thing != 0 {
		if at++; at == len(t) {
			at = 0
		}
	}
	t[at] = slot{tag: uint32(h), thing: uint32(i) + 1}
}

// search returns the thing of that hash whose name it is, or -1.
func (t slots) search(h uint64, is func(i int) bool) int {
	at := t.home(h)
	for {
		s := t[at]
		if s.thing == 0 {
			return -1
		}
		if s.tag == uint32(h) && is(int(s.thing-1)) {
			return int(s.thing - 1)
		}
		if at++; at == len(t) {
			at = 0
		}
	}
}

// home is the slot where a search for h begins: h scaled to the number of slots by its
// high bits (Lemire, "A fast alternative to the modulo reduction").
func (t slots) home(h uint64) int {
	hi, _ := bits.Mul64(h, uint64(len(t)))
	return int(hi)
}

// index finds nodes by name.
type index struct {
	nodes []Node
	slots slots
	depth int // most labels of any node
}

// newIndex indexes nodes, whose names differ and have those hashes.
func newIndex(nodes []Node, hashes []uint64) index {
	x := index{nodes: nodes, slots: newSlots(len(nodes))}
	for i := range nodes {
		x.slots.insert(hashes[i], i)
		x.depth = max(x.depth, countLabels(nodes[i].Owner))
	}
	return x
}

// find returns the node of a name in lower case and its hash, or nil.
func (x *index) find(h uint64, name []byte) *Node {
	i := x.slots.search(h, func(i int) bool { return sameName(x.nodes[i].Owner, name) })
	if i < 0 {
		return nil
	}
	return &x.nodes[i]
}

// sameName tells whether owner, in any case, is name, in lower case.
func sameName(owner, name []byte) bool { return bytes.Equal(owner, name) || equalFold(owner, name) }
