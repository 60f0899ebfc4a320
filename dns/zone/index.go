package zone

import (
	"bytes"
	"hash/maphash"
	"math/bits"
)

var seed = maphash.MakeSeed() // one for all, so that a name is hashed once for many indexes

// hash hashes a name in lower case.
func hash(name []byte) uint64 { return maphash.Bytes(seed, name) }

// index finds nodes by name: open addressing with linear probing, at 12 octets a name and
// no pointers for the garbage collector to follow.
type index struct {
	nodes []Node
	slots []slot // half again as many as nodes, so that some are always empty
	depth int    // most labels of any node
}

type slot struct {
	tag  uint32 // low bits of the hash
	node uint32 // index into nodes, plus one; 0: empty
}

// newIndex indexes nodes, whose names differ.
func newIndex(nodes []Node) index {
	x := index{nodes: nodes, slots: make([]slot, len(nodes)+len(nodes)/2+1)}
	var low [MaxName]byte
	for i := range nodes {
		name := AppendLower(low[:0], nodes[i].Owner)
		x.insert(hash(name), i)
		x.depth = max(x.depth, countLabels(name))
	}
	return x
}

func (x *index) insert(h uint64, node int) {
	i := x.home(h)
	for x.slots[i].node != 0 {
		if i++; i == len(x.slots) {
			i = 0
		}
	}
	x.slots[i] = slot{tag: uint32(h), node: uint32(node) + 1}
}

// home is the slot where a search for h begins: h scaled to the number of slots by its
// high bits (Lemire, "A fast alternative to the modulo reduction").
func (x *index) home(h uint64) int {
	hi, _ := bits.Mul64(h, uint64(len(x.slots)))
	return int(hi)
}

// find returns the node of a name in lower case and its hash, or nil.
func (x *index) find(h uint64, name []byte) *Node {
	if i := x.search(h, name); i >= 0 {
		return &x.nodes[i]
	}
	return nil
}

// search returns the position in nodes of a name in lower case and its hash, or -1.
func (x *index) search(h uint64, name []byte) int {
	i := x.home(h)
	for {
		s := x.slots[i]
		if s.node == 0 {
			return -1
		}
		if s.tag == uint32(h) {
			owner := x.nodes[s.node-1].Owner
			if bytes.Equal(owner, name) || equalFold(owner, name) {
				return int(s.node - 1)
			}
		}
		if i++; i == len(x.slots) {
			i = 0
		}
	}
}
