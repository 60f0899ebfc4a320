package zone

import "github.com/miekg/dns"

// Outcome is what RFC 1034, section 4.3.2, step 3 ends in.
type Outcome uint8

// The outcomes.
const (
	NotOurs   Outcome = iota // no zone of the set holds the name
	Hit                      // an RRset of the type is there: Node, RRset
	Alias                    // a CNAME is there and another type was asked: Node, RRset is the CNAME
	Steered                  // a service answers for this name and type (A, AAAA): Node.Service
	Referral                 // at or below a zone cut: Node is the cut, RRset its NS
	NoData                   // the name is there, the type is not
	NameError                // the name is not there
	Redirect                 // below a DNAME (RFC 6672): Node is its owner, RRset the DNAME
)

// String returns the outcome's name as it stands here, in lower case.
func (o Outcome) String() string {
	return [...]string{"not ours", "hit", "alias", "steered", "referral", "nodata", "name error", "redirect"}[o]
}

// Result is where a name leads.
type Result struct {
	Outcome  Outcome
	Zone     *Zone  // nil with NotOurs
	Node     *Node  // the node that answers: the name's own, the wildcard's, the cut or the DNAME's owner; nil with NotOurs and NameError
	RRset    *RRset // with Hit, Alias, Referral and Redirect
	Wildcard bool   // Node is a wildcard (RFC 4592): the answer's owner is the name asked
}

// Resolve finds where name (wire form, ASCII letters in lower case) leads for qtype, and
// fills r. It does not allocate. With qtype ANY (255) and data at the name, the outcome is
// Hit and RRset is the first of Node.RRsets (RFC 8482, section 4.1); at a name with a service
// and nothing else it is NoData.
//
// The deepest zone of the set that holds name answers; only for DS at a zone's apex it is
// the parent zone, if that is in the set (RFC 4035, section 3.1.4.1).
func (s *Set) Resolve(name []byte, qtype uint16, r *Result) {
	*r = Result{}
	var off offsets
	n := labels(name, &off)
	i := s.enclosing(name, &off, n)
	if i < 0 {
		return
	}
	if qtype == dns.TypeDS && s.zones[i].labels == n {
		if parent := s.above(name, &off, n, n-1); parent >= 0 {
			i = parent
		}
	}
	sv := served{s.zones[i], s.services[i]}
	sv.resolve(name, &off, n, qtype, r)
}

// served is a zone and the services in it, if there are any.
type served struct {
	zone     *Zone
	services *index
}

// resolve does what Resolve does for a name of n labels that is in the zone.
func (sv served) resolve(name []byte, off *offsets, n int, qtype uint16, r *Result) {
	r.Zone = sv.zone
	node := sv.find(name)
	if node == nil {
		sv.missing(name, off, n, qtype, r)
		return
	}
	if cut, delegation := sv.zone.cutOf(node); cut != nil {
		atCut := len(cut.Owner) == len(name)
		// The parent's side answers DS at the cut, and a DNAME rules only what is below it.
		if !atCut || delegation && qtype != dns.TypeDS {
			r.leave(cut, delegation)
			return
		}
	}
	r.answer(node, qtype)
}

// missing ends the search for a name that is not there: at the cut or DNAME above it, at a
// wildcard, or in a name error.
func (sv served) missing(name []byte, off *offsets, n int, qtype uint16, r *Result) {
	// The closest encloser (RFC 4592, section 3.3.1) has from apex to n-1 labels. As every
	// ancestor of a name that is there is there too, it can be searched by halves.
	encloser, there, gone := &sv.zone.names.nodes[0], sv.zone.labels, min(n, sv.depth()+1)
	for there+1 < gone {
		d := (there + gone) / 2
		if node := sv.find(name[off[n-d]:]); node != nil {
			encloser, there = node, d
		} else {
			gone = d
		}
	}
	if cut, delegation := sv.zone.cutOf(encloser); cut != nil {
		r.leave(cut, delegation)
		return
	}
	var source [MaxName]byte // of synthesis: "*" and the closest encloser
	source[0], source[1] = 1, '*'
	end := 2 + copy(source[2:], name[off[n-there]:])
	if node := sv.find(source[:end]); node != nil {
		r.Wildcard = true
		r.answer(node, qtype)
		return
	}
	r.Outcome = NameError
}

// depth returns the most labels of any name in the zone.
func (sv served) depth() int {
	if sv.services != nil {
		return max(sv.services.depth, sv.zone.names.depth)
	}
	return sv.zone.names.depth
}

// find returns the node of a name, a service's first, or nil.
func (sv served) find(name []byte) *Node {
	h := hash(name)
	if sv.services != nil {
		if n := sv.services.find(h, name); n != nil {
			return n
		}
	}
	return sv.zone.names.find(h, name)
}

// leave ends at a cut or a DNAME.
func (r *Result) leave(cut *Node, delegation bool) {
	r.Node = cut
	if delegation {
		r.Outcome, r.RRset = Referral, cut.RRset(dns.TypeNS)
	} else {
		r.Outcome, r.RRset = Redirect, cut.RRset(dns.TypeDNAME)
	}
}

// answer ends at a node that answers.
func (r *Result) answer(n *Node, qtype uint16) {
	r.Node = n
	if n.Service >= 0 && (qtype == dns.TypeA || qtype == dns.TypeAAAA) {
		r.Outcome = Steered
		return
	}
	for i := range n.RRsets {
		set := &n.RRsets[i]
		if set.Type == qtype || qtype == dns.TypeANY {
			r.Outcome, r.RRset = Hit, set
			return
		}
		if set.Type == dns.TypeCNAME {
			r.Outcome, r.RRset = Alias, set // unless the type asked follows
		}
	}
	if r.RRset == nil {
		r.Outcome = NoData
	}
}

// Node returns the node that name (wire form, in any case) leads to for the additional section:
// that of a service or of authoritative data, its own or the wildcard's that covers it, or glue
// below a zone cut; nil where there is none, or only what a DNAME hides. It does not allocate.
func (s *Set) Node(name []byte) *Node {
	var buf [MaxName]byte
	low := AppendLower(buf[:0], name)
	var off offsets
	labels := labels(low, &off)
	i := s.enclosing(low, &off, labels)
	if i < 0 {
		return nil
	}
	sv := served{s.zones[i], s.services[i]}
	n := sv.find(low)
	if n == nil {
		var r Result
		if sv.missing(low, &off, labels, dns.TypeANY, &r); r.Wildcard {
			return r.Node
		}
		return nil
	}
	if cut, delegation := sv.zone.cutOf(n); cut != nil && !delegation && len(cut.Owner) != len(low) {
		return nil
	}
	return n
}
