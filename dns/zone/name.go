package zone

import (
	"bytes"
	"fmt"

	"github.com/miekg/dns"
)

// MaxName is the most octets of a name in wire form (RFC 1035, section 2.3.4).
const MaxName = 255

// AppendLower appends name, in wire form, to dst with its ASCII letters in lower case
// (RFC 4343). Labels may hold any octet: the octets that count them are under 'A'.
func AppendLower(dst, name []byte) []byte {
	for _, c := range name {
		dst = append(dst, lower(c))
	}
	return dst
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// FromString returns the wire form of a name in presentation form (RFC 1035, section 5.1,
// with its escapes), in the case it has. The trailing dot may be left out; "." is the root.
func FromString(s string) ([]byte, error) {
	if s == "" {
		return nil, fmt.Errorf("name %q: empty, expected a domain name", s)
	}
	if _, ok := dns.IsDomainName(s); !ok {
		return nil, fmt.Errorf("name %q: expected labels of 1..63 octets and at most %d octets in all", s, MaxName)
	}
	var wire [MaxName]byte
	n, err := dns.PackDomainName(dns.Fqdn(s), wire[:], 0, nil, false)
	if err != nil {
		return nil, fmt.Errorf("name %q: expected labels of 1..63 octets and at most %d octets in all", s, MaxName)
	}
	return bytes.Clone(wire[:n]), nil
}

// ToString returns the presentation form of a name in wire form, in the case it has and
// without a trailing dot; "." is the root. What is no name comes out in hexadecimal.
func ToString(name []byte) string {
	s, _, err := dns.UnpackDomainName(name, 0)
	switch {
	case err != nil:
		return fmt.Sprintf("%#x", name)
	case s == ".":
		return s
	}
	return s[:len(s)-1]
}

// equalFold tells whether owner, in any case, is name, in lower case.
func equalFold(owner, name []byte) bool {
	if len(owner) != len(name) {
		return false
	}
	for i, c := range owner {
		if c != name[i] && lower(c) != name[i] {
			return false
		}
	}
	return true
}

// offsets says where the labels of a name begin, from the left; the last is the root's.
type offsets [MaxName/2 + 1]uint8

// labels fills off for name and returns how many labels it has, the root not counted.
func labels(name []byte, off *offsets) int {
	n, i := 0, 0
	for name[i] != 0 {
		off[n] = uint8(i)
		i += 1 + int(name[i])
		n++
	}
	off[n] = uint8(i)
	return n
}

// countLabels returns how many labels name has, the root not counted.
func countLabels(name []byte) int {
	var off offsets
	return labels(name, &off)
}

// nameLen returns the length of the name at the start of b.
func nameLen(b []byte) int {
	i := 0
	for b[i] != 0 {
		i += 1 + int(b[i])
	}
	return i + 1
}

// under tells whether name is ancestor or below it; both are in lower case.
func under(name, ancestor []byte) bool {
	for len(name) > len(ancestor) {
		name = name[1+name[0]:]
	}
	return bytes.Equal(name, ancestor)
}

// isWildcard tells whether the first label of name is "*" (RFC 4592, section 2.1.1).
func isWildcard(name []byte) bool { return len(name) >= 2 && name[0] == 1 && name[1] == '*' }
