package health

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// A note is what a node tells the others beside its health: octets that mean nothing here,
// such as the load that it hears of. Each new one replaces the one before. It goes out with
// the heartbeat, signed like all that the node says, in parts that fit a packet; it counts
// once all parts of it have come, and until then the one before stays.
//
//	part = heading index count age-ms *octet    ; the age is that of the note
const (
	// MaxNote is the octets of a note. With it a node's note is at most 64 packets.
	MaxNote      = 40 << 10
	maxNoteParts = 64
	// noteBudget bounds the packets of notes of one heartbeat: they must not slow down what is
	// said of health.
	noteBudget = 64
)

// Note is what a node of the fleet told last.
type Note struct {
	Node string
	At   time.Time // when it was written, by this node's clock; no later than that
	Data []byte    // immutable
}

// Part is one part of a note.
type Part struct {
	Index, Count int       // 0 <= Index < Count
	At           time.Time // when the note was written
	Data         []byte
}

// notes are those of one node: the last whole one, and the parts of a newer one.
type notes struct {
	whole   []byte // nil: none
	at      time.Time
	version Version // of parts, or of whole where there are none
	parts   [][]byte
	missing int
}

// SetNote sets this node's note, which goes out with every heartbeat until it is replaced; an
// empty one tells nothing more, and what was told ages. It reports whether the note fits. The caller must not change b
// afterwards.
func (m *Monitor) SetNote(b []byte) bool {
	if len(b) > MaxNote {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note, m.noteAt = b, time.Now()
	return true
}

// Notes returns the last note of every other node that is known, in order of their names: also
// of nodes that are silent or have left, whose notes are as old as At says.
func (m *Monitor) Notes() []Note {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Note
	for _, name := range m.table.Names() {
		if n := m.table.nodes[name].notes; len(n.whole) > 0 && name != m.o.Node {
			out = append(out, Note{Node: name, At: n.at, Data: n.whole})
		}
	}
	return out
}

// noteLocked returns the messages of this node's note; none without one.
func (m *Monitor) noteLocked(now time.Time) [][]byte {
	if len(m.note) == 0 {
		return nil
	}
	report := Report{Node: m.o.Node, Heading: m.self}
	return m.sealAll(encodeNote(&report, m.note, m.noteAt, now, maxPacket))
}

// encodeNote returns the note that was written at that time under r's heading, in messages of
// about limit octets each.
func encodeNote(r *Report, note []byte, at, now time.Time, limit int) [][]byte {
	head := appendHeading([]byte{wireVersion, kindPart}, r, now)
	size := max(MaxNote/maxNoteParts, limit-len(head)-2*binary.MaxVarintLen16-binary.MaxVarintLen32)
	parts := slices.Collect(slices.Chunk(note, size))
	messages := make([][]byte, len(parts))
	for i, part := range parts {
		b := binary.AppendUvarint(slices.Clone(head), uint64(i))
		b = binary.AppendUvarint(b, uint64(len(parts)))
		b = appendDuration(b, now.Sub(at), time.Millisecond, maxAge)
		messages[i] = append(b, part...)
	}
	return messages
}

// decodePart reads what follows the heading.
func decodePart(d *decoder, now time.Time) (*Part, error) {
	p := &Part{Index: int(d.uint(maxNoteParts)), Count: int(d.uint(maxNoteParts))}
	p.At = now.Add(-d.duration(time.Millisecond, maxAge))
	switch {
	case d.err != nil:
		return nil, d.err
	case p.Index >= p.Count:
		return nil, fmt.Errorf("part %d of %d", p.Index, p.Count)
	case len(d.b) > maxPacket:
		return nil, fmt.Errorf("part of %d octets: %w", len(d.b), errOversize)
	}
	p.Data = slices.Clone(d.b)
	return p, nil
}

// take takes one part of the note in version v.
func (n *notes) take(v Version, p *Part) {
	switch c := v.Compare(n.version); {
	case c < 0, c == 0 && (n.parts == nil || len(n.parts) != p.Count):
		return // known, or of nobody's making
	case c > 0:
		n.version, n.parts, n.missing = v, make([][]byte, p.Count), p.Count
	}
	if n.parts[p.Index] == nil {
		n.parts[p.Index] = append([]byte{}, p.Data...)
		n.missing--
	}
	if n.missing == 0 {
		n.whole, n.at, n.parts = slices.Concat(n.parts...), p.At, nil
	}
}
