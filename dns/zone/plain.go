package zone

import (
	"bytes"
	"encoding/binary"
	"math"
	"net/netip"

	"github.com/miekg/dns"
)

// plain reads an entry of the kind that large zones are made of: [owner] [TTL] [IN] type rdata in
// one line, without escapes, of a type that appendPlain knows. It takes from it what rrs would, at a
// fraction of the cost. Where an entry is anything else, or wrong, it is false and has done nothing.
func (p *parser) plain(text []byte, file string, line int, c *context) bool {
	if p.read == p.limits.rrs {
		return false
	}
	w := words{text}
	owner, wire, ok := c.owner, p.wire[:0], true
	if !isBlank(text[0]) {
		if wire, ok = appendName(wire, w.next(), c.base); !ok {
			return false
		}
		owner = wire
	} else if owner == nil || c.lost {
		return false
	}
	ttl, given, class, rtype := c.ttl, false, false, uint16(0)
	for rtype == 0 {
		word := w.next()
		if n, ok := number(word, maxTTL); ok && !given {
			ttl, given = n, true
		} else if !class && bytes.EqualFold(word, []byte("IN")) {
			class = true
		} else if rtype = plainType(word); rtype == 0 {
			return false
		}
	}
	start := len(wire)
	if wire, ok = appendPlain(wire, rtype, &w, c.base); !ok || !w.ended() || ttl == noTTL {
		return false
	}
	p.read++
	if c.lost = false; !c.explicit {
		c.ttl = ttl
	}
	c.owner = p.builder.add(owner, rtype, ttl, wire[start:], file, line)
	return true
}

// plainType returns the type of that mnemonic if it is one that appendPlain knows, or 0.
func plainType(word []byte) uint16 {
	var upper [5]byte
	if len(word) > len(upper) {
		return 0
	}
	switch string(bytes.ToUpper(append(upper[:0], word...))) {
	case "A":
		return dns.TypeA
	case "AAAA":
		return dns.TypeAAAA
	case "NS":
		return dns.TypeNS
	case "CNAME":
		return dns.TypeCNAME
	case "DNAME":
		return dns.TypeDNAME
	case "PTR":
		return dns.TypePTR
	case "MX":
		return dns.TypeMX
	case "SRV":
		return dns.TypeSRV
	case "TXT":
		return dns.TypeTXT
	}
	return 0
}

// appendPlain appends the rdata of that type that w goes on with, if it is plain.
func appendPlain(b []byte, rtype uint16, w *words, origin []byte) (out []byte, ok bool) {
	numbers := 0
	switch rtype {
	case dns.TypeA:
		return appendIPv4(b, w.next())
	case dns.TypeAAAA:
		addr, err := netip.ParseAddr(string(w.next()))
		octets := addr.As16()
		return append(b, octets[:]...), err == nil && addr.Is6() && addr.Zone() == ""
	case dns.TypeTXT:
		return appendStrings(b, w)
	case dns.TypeMX:
		numbers = 1
	case dns.TypeSRV:
		numbers = 3
	}
	for range numbers {
		n, ok := number(w.next(), math.MaxUint16)
		if !ok {
			return b, false
		}
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	}
	return appendName(b, w.next(), origin)
}

// appendName appends the wire form of a name without escapes. A relative one is below origin; with
// origin nil there is none.
func appendName(b, text, origin []byte) (out []byte, ok bool) {
	start, label := len(b), len(b) // label: where its length is to stand
	switch {
	case len(text) == 0:
		return b, false
	case string(text) == ".":
		return append(b, 0), true
	case string(text) == "@":
		return append(b, origin...), origin != nil
	}
	b = append(b, 0)
	for _, c := range text {
		if c != '.' {
			b = append(b, c)
			continue
		}
		if b[label] = byte(len(b) - label - 1); b[label] == 0 || len(b)-label-1 > maxLabel {
			return b, false
		}
		label = len(b)
		b = append(b, 0)
	}
	if n := len(b) - label - 1; n > 0 {
		if b[label] = byte(n); n > maxLabel || origin == nil {
			return b, false
		}
		b = append(b, origin...)
	}
	return b, len(b)-start <= MaxName
}

const maxLabel = 63 // octets: RFC 1035, section 2.3.4

// appendIPv4 appends the octets of an address in dotted decimals.
func appendIPv4(b, text []byte) (out []byte, ok bool) {
	for i := range 4 {
		part, rest, more := bytes.Cut(text, []byte("."))
		n, ok := number(part, math.MaxUint8)
		if !ok || len(part) > 1 && part[0] == '0' || more != (i < 3) {
			return b, false
		}
		b, text = append(b, byte(n)), rest
	}
	return b, true
}

// appendStrings appends the character strings that end an entry.
func appendStrings(b []byte, w *words) (out []byte, ok bool) {
	start := len(b)
	for !w.ended() {
		s := w.next()
		if len(s) == 0 {
			s = w.quoted()
		}
		if len(s) == 0 || len(s) > math.MaxUint8 {
			return b, false
		}
		b = append(append(b, byte(len(s))), s...)
	}
	return b, len(b) > start && len(b)-start <= math.MaxUint16
}

// number returns the decimal number that word is, of most at most.
func number(word []byte, most uint32) (n uint32, ok bool) {
	if len(word) == 0 || len(word) > len("4294967295") {
		return 0, false
	}
	sum := uint64(0)
	for _, c := range word {
		if c < '0' || c > '9' {
			return 0, false
		}
		sum = 10*sum + uint64(c-'0')
	}
	return uint32(sum), sum <= uint64(most)
}

// words reads an entry word by word.
type words struct{ rest []byte }

// next returns the next word of printable ASCII that means itself; nothing where something else
// comes.
func (w *words) next() []byte {
	w.skip()
	n := 0
	for n < len(w.rest) && isPlain[w.rest[n]] {
		n++
	}
	word := w.rest[:n]
	w.rest = w.rest[n:]
	return word
}

// quoted returns what is in the quotes that come next, with a blank or the end after them; nothing
// where something else comes.
func (w *words) quoted() []byte {
	if w.skip(); len(w.rest) == 0 || w.rest[0] != '"' {
		return nil
	}
	n := bytes.IndexAny(w.rest[1:], "\"\\\r\n") // which neither escapes nor ends the line
	if n < 0 || w.rest[1+n] != '"' {
		return nil
	}
	text := w.rest[1:][:n]
	if w.rest = w.rest[2+n:]; len(w.rest) > 0 && isPlain[w.rest[0]] || len(w.rest) > 0 && w.rest[0] == '"' {
		return nil
	}
	return text
}

// ended tells whether nothing comes but the end of the line, perhaps after a comment.
func (w *words) ended() bool {
	w.skip()
	return len(w.rest) == 0 || w.rest[0] == ';' || string(w.rest) == "\n" || string(w.rest) == "\r\n"
}

func (w *words) skip() {
	for len(w.rest) > 0 && isBlank(w.rest[0]) {
		w.rest = w.rest[1:]
	}
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// isPlain are the octets of words: those of printable ASCII that have no meaning of their own in a
// master file (RFC 1035, section 5.1). "@" has one only where it stands alone.
var isPlain = func() (is [256]bool) {
	for c := '!'; c <= '~'; c++ {
		is[c] = !bytes.ContainsRune([]byte("\"();\\"), c)
	}
	return is
}()
