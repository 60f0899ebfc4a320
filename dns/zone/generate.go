package zone

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

const (
	// maxGenerate bounds the length of a $GENERATE, in octets: it is read again for each of its RRs.
	maxGenerate = 2048

	// maxSteps bounds the numbers of a range: a digit too many is not to take all memory.
	maxSteps = 1 << 20

	// maxNumber bounds what one "$" becomes, in octets: as in BIND.
	maxNumber = 127
)

// generate reads BIND's $GENERATE range lhs [ttl] [class] type rhs, of which f are the fields: for each
// number of the range the RR at lhs whose rdata is rhs, with the number in the place of each "$" of both.
// What BIND refuses is refused, and more numbers than maxSteps are. Here rhs may be several words, which
// BIND wants in quotes.
func (p *parser) generate(f []string, file string, line int, c *context) {
	head := 3 // where type and rhs begin
	for head < len(f) && isTTLOrClass(f[head]) {
		head++
	}
	if len(f) < head+2 {
		p.fault(file, line, "$GENERATE: expected a range, an owner name, a type and its rdata")
		return
	}
	start, stop, step, ok := readRange(f[1])
	if !ok {
		p.fault(file, line, "$GENERATE: range %q: expected START-STOP or START-STOP/STEP, with 0 <= START <= STOP < 2^31 and STEP > 0", f[1])
		return
	}
	if steps := (stop-start)/step + 1; steps > maxSteps {
		p.fault(file, line, "$GENERATE: range %q of %d numbers: expected at most %d", f[1], steps, maxSteps)
		return
	}
	rhs := strings.Join(f[head+1:], " ")
	if len(f) == head+2 {
		rhs = unquote(rhs)
	}
	given := " " + strings.Join(f[3:head+1], " ") + " "
	made := *c
	for n := start; n <= stop && !p.full(); n += step {
		owner, err := expand(f[2], n)
		if err != nil {
			p.fault(file, line, "$GENERATE: %v", err)
			return
		}
		rdata, err := expand(rhs, n)
		if err != nil {
			p.fault(file, line, "$GENERATE: %v", err)
			return
		}
		if !p.generated([]byte(owner+given+rdata), file, line, &made) {
			return
		}
	}
	if !c.explicit { // as after any RR; but it is no owner for the entries after it
		c.ttl = made.ttl
	}
}

// generated reads an RR that a $GENERATE made, and is false if that has a fault: the next would be
// like it.
func (p *parser) generated(text []byte, file string, line int, c *context) bool {
	read, faults := p.read, len(p.faults)
	if !p.plain(text, file, line, c) && !p.rrs(file, line, c, 0, text) {
		return false
	}
	if p.read == read {
		p.fault(file, line, "$GENERATE: %q is no RR", text)
	}
	return len(p.faults) == faults
}

// isTTLOrClass tells whether a field of a $GENERATE is none of its type.
func isTTLOrClass(field string) bool {
	_, isClass := dns.StringToClass[strings.ToUpper(field)]
	return '0' <= field[0] && field[0] <= '9' || isClass
}

// readRange reads the range of a $GENERATE.
func readRange(s string) (start, stop, step int64, ok bool) {
	s, by, stepped := strings.Cut(s, "/")
	from, to, _ := strings.Cut(s, "-")
	if !stepped {
		by = "1"
	}
	start, err1 := strconv.ParseInt(from, 10, 32)
	stop, err2 := strconv.ParseInt(to, 10, 32)
	step, err3 := strconv.ParseInt(by, 10, 32)
	return start, stop, step, err1 == nil && err2 == nil && err3 == nil && 0 <= start && start <= stop && step > 0
}

// expand returns s with n in the place of each "$". "$$" and "\$" are a dollar sign.
func expand(s string, n int64) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			b.WriteString(s[i : i+2])
			i++
		case s[i] != '$':
			b.WriteByte(s[i])
		case strings.HasPrefix(s[i:], "$$"):
			b.WriteString(`\$`)
			i++
		case strings.HasPrefix(s[i:], "${"):
			end := strings.IndexByte(s[i:], '}')
			if end < 0 {
				return "", fmt.Errorf("%q: expected a closing brace", s[i:])
			}
			number, err := modified(s[i+2:i+end], n)
			if err != nil {
				return "", fmt.Errorf("%q: %w", s[i:i+end+1], err)
			}
			b.WriteString(number)
			i += end
		default:
			b.WriteString(strconv.FormatInt(n, 10))
		}
	}
	return b.String(), nil
}

// modified returns n as offset[,width[,base]] say. In bases n and N it is in hexadecimal digits, the
// lowest first, each a label; its width counts the dots.
func modified(modifier string, n int64) (string, error) {
	part := strings.Split(modifier, ",")
	base := "d"
	if len(part) == 3 {
		base = part[2]
	}
	offset, err := strconv.ParseInt(part[0], 10, 32)
	if err != nil || len(part) > 3 || len(base) != 1 || !strings.Contains("doxXnN", base) {
		return "", fmt.Errorf("expected ${OFFSET}, ${OFFSET,WIDTH} or ${OFFSET,WIDTH,BASE}, where BASE is one of d, o, x, X, n and N")
	}
	width := 0
	if len(part) > 1 {
		if width, err = strconv.Atoi(part[1]); err != nil || width < 0 || width > maxNumber {
			return "", fmt.Errorf("expected a width of 0 to %d", maxNumber)
		}
	}
	switch n += offset; {
	case n > math.MaxInt32:
		return "", fmt.Errorf("%d is over 2^31-1", n)
	case base == "d":
		return fmt.Sprintf("%0*d", width, n), nil
	case base == "n" && n >= 0:
		return nibbles(fmt.Sprintf("%x", n), width), nil
	case base == "N" && n >= 0:
		return nibbles(fmt.Sprintf("%X", n), width), nil
	case base == "n" || base == "N":
		return "", fmt.Errorf("%d has no nibbles: expected a number from 0", n)
	}
	return fmt.Sprintf("%0*"+base, width, uint32(n)), nil
}

// nibbles returns the digits of a number, last first, with a dot after each but the last, and as many
// zeros as fill the width; where that ends in a dot, so does what is returned.
func nibbles(digits string, width int) string {
	var b strings.Builder
	for i := len(digits) - 1; i >= 0 || b.Len() < width; i-- {
		digit := byte('0')
		if i >= 0 {
			digit = digits[i]
		}
		b.WriteByte(digit)
		if i > 0 || b.Len() < width {
			b.WriteByte('.')
		}
	}
	return b.String()
}
