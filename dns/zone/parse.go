package zone

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// limits bound what one zone may cost to read.
type limits struct {
	entry   int // octets of one entry; an RR of 65,535 octets needs 262,140 as \DDD
	rrs     int // RRs, those of $GENERATE included
	include int // depth of $INCLUDE
	files   int // read for $INCLUDE, counted each time; a record holds 16 bits of it
}

var defaultLimits = limits{entry: 1 << 20, rrs: 1 << 24, include: 7, files: 10_000}

// Parse reads the zone named origin (presentation form, the trailing dot may be left out)
// from r, a master file (RFC 1035, section 5) with $ORIGIN, $TTL (RFC 2308, section 4),
// $INCLUDE and BIND's $GENERATE. file is the name that faults give; $INCLUDE reads only
// from its folder and those below, symbolic links counted by where they lead, and not at
// all if file is empty.
//
// The error joins every Fault; there is no Zone then. Data outside the zone, RRs given
// twice, RRsets whose TTLs differ (the lowest is taken: RFC 2181, section 5.2), names that
// lack an address and data hidden below a zone cut are warnings.
func Parse(r io.Reader, file, origin string) (*Zone, []Warning, error) {
	return parse(r, file, origin, defaultLimits)
}

func parse(r io.Reader, file, origin string, lim limits) (*Zone, []Warning, error) {
	var rep report
	name, err := FromString(origin)
	if err != nil {
		rep.fault(file, 0, "zone's %v", err)
		warnings, err := rep.end(file)
		return nil, warnings, err
	}
	p := &parser{
		report:  &rep,
		limits:  lim,
		builder: newBuilder(&rep, name),
		wire:    make([]byte, MaxName+10+math.MaxUint16),
	}
	if file != "" {
		p.folder = filepath.Dir(file)
	}
	p.file(r, file, context{origin: dns.Fqdn(origin), ttl: noTTL})
	if p.root != nil {
		p.root.Close()
	}
	z := p.builder.build(file)
	warnings, err := rep.end(file)
	if err != nil {
		return nil, warnings, err
	}
	return z, warnings, nil
}

// parser reads master files into a builder.
type parser struct {
	*report
	limits  limits
	builder *builder
	folder  string   // where $INCLUDE may read; empty: nowhere
	root    *os.Root // folder, open since the first $INCLUDE
	depth   int      // of $INCLUDE
	files   int      // read for $INCLUDE
	wire    []byte   // scratch for one RR
}

// context is what an entry takes from those before it.
type context struct {
	origin   string // absolute, presentation form
	owner    string // of the last entry; empty: none yet
	lost     bool   // the last owner was not readable: what follows without an owner is dropped
	ttl      uint32 // for RRs without one
	explicit bool   // ttl is from $TTL, and not from the RR before (RFC 1035, section 5.1)
}

// noTTL stands for a TTL that is not known: no TTL can be over 2^31-1 (RFC 2181, section 8).
const (
	noTTL  = math.MaxUint32
	maxTTL = math.MaxInt32
)

// file reads one file, entry by entry. Each entry goes through a dns.ZoneParser of its own,
// so that a fault ends but that entry and its line is known.
func (p *parser) file(r io.Reader, file string, c context) {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, min(64<<10, p.limits.entry)), p.limits.entry)
	sc.Split(splitEntry)
	line := 1
	for sc.Scan() && !p.full() {
		entry := sc.Bytes()
		next := line + bytes.Count(entry, []byte("\n"))
		p.entry(entry, file, line, &c)
		line = next
	}
	switch err := sc.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		p.fault(file, line, "an entry of more than %d octets; is a parenthesis left open?", p.limits.entry)
	case err != nil:
		p.fault(file, line, "%v", err)
	}
}

// splitEntry is a bufio.SplitFunc for the entries of a master file: lines, where newlines
// between parentheses do not count. A quoted string ends with its line at the latest.
func splitEntry(data []byte, atEOF bool) (advance int, token []byte, err error) {
	depth, quote, comment := 0, false, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case c == '\n':
			quote, comment = false, false
			if depth <= 0 {
				return i + 1, data[:i+1], nil
			}
		case comment:
		case c == '\\':
			if i+1 < len(data) && data[i+1] != '\n' {
				i++
			}
		case c == '"':
			quote = !quote
		case quote:
		case c == ';':
			comment = true
		case c == '(':
			depth++
		case c == ')':
			depth--
		}
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// entry reads one entry, which begins at line of file.
func (p *parser) entry(text []byte, file string, line int, c *context) {
	trimmed := bytes.TrimLeft(text, " \t\r\n")
	if len(trimmed) == 0 || trimmed[0] == ';' && bytes.IndexByte(trimmed, '\n') >= len(trimmed)-1 {
		return
	}
	if text[0] == '$' {
		p.directive(text, file, line, c)
		return
	}
	if blank := len(trimmed) < len(text); blank {
		if c.lost {
			return
		}
		if c.owner == "" {
			p.fault(file, line, "an RR without an owner name, and none before it")
			return
		}
		p.rrs(file, line, c, []byte(c.owner), text)
		return
	}
	if !p.rrs(file, line, c, text) {
		// Entries that follow without an owner belong to the owner of this one.
		token, _, _ := bytes.Cut(text, []byte(" "))
		token, _, _ = bytes.Cut(token, []byte("\t"))
		probe, err := p.probe(c, "", string(bytes.TrimSpace(token)))
		if c.lost = err != nil; !c.lost {
			c.owner = probe.Name
		}
	}
}

// directive reads one control entry.
func (p *parser) directive(text []byte, file string, line int, c *context) {
	f := fields(string(text))
	switch name := strings.ToUpper(f[0]); name {
	case "$ORIGIN", "$TTL":
		probe, err := p.probe(c, string(text), "@")
		if err != nil {
			p.fault(file, line, "%v", syntax(err, 1))
			return
		}
		if name == "$TTL" {
			c.ttl, c.explicit = p.ttl(probe.Ttl, file, line), true
		}
		c.origin = probe.Name
	case "$INCLUDE":
		p.include(f[1:], file, line, *c)
	case "$GENERATE":
		p.rrs(file, line, c, []byte(generateTTL(f, c.ttl)))
	default:
		p.fault(file, line, "directive %q: expected $ORIGIN, $TTL, $INCLUDE or $GENERATE", f[0])
	}
}

// probe returns owner, class and TTL of an RR at owner that is read after a directive.
func (p *parser) probe(c *context, directive, owner string) (dns.RR_Header, error) {
	zp := dns.NewZoneParser(strings.NewReader(strings.TrimRight(directive, "\r\n")+"\n"+owner+" NULL \\# 0\n"), c.origin, "")
	zp.SetDefaultTTL(c.ttl)
	rr, ok := zp.Next()
	if !ok {
		if err := zp.Err(); err != nil {
			return dns.RR_Header{}, err
		}
		return dns.RR_Header{}, errors.New("syntax error")
	}
	return *rr.Header(), nil
}

// include reads another file in the place of the $INCLUDE whose arguments are args.
func (p *parser) include(args []string, file string, line int, c context) {
	switch {
	case len(args) < 1 || len(args) > 2:
		p.fault(file, line, "$INCLUDE: expected a file and perhaps an origin, and nothing else")
		return
	case p.folder == "":
		p.fault(file, line, "$INCLUDE %q: a zone that is not a file has no folder to include from", args[0])
		return
	case p.depth == p.limits.include:
		p.fault(file, line, "$INCLUDE %q: more than %d files deep", args[0], p.limits.include)
		return
	case p.files == p.limits.files:
		p.fault(file, line, "$INCLUDE %q: more than %d files in all", args[0], p.limits.files)
		p.moreFaults++ // enough: nothing more is read
		return
	}
	p.files++
	if len(args) == 2 {
		probe, err := p.probe(&c, "$ORIGIN "+args[1], "@")
		if err != nil {
			p.fault(file, line, "$INCLUDE %q: %v", args[0], syntax(err, 1))
			return
		}
		c.origin = probe.Name
	}
	if p.root == nil {
		root, err := os.OpenRoot(p.folder)
		if err != nil {
			p.fault(file, line, "$INCLUDE %q: %v", args[0], err)
			return
		}
		p.root = root
	}
	// A relative path is relative to the file that includes (and that is in p.folder).
	path, err := args[0], error(nil)
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(file), path)
	}
	inside, err := filepath.Rel(p.folder, path)
	if err != nil {
		p.fault(file, line, "$INCLUDE %q: %v", args[0], err)
		return
	}
	f, err := p.root.Open(inside)
	if err != nil {
		p.fault(file, line, "$INCLUDE %q: %v; expected a file in %q", args[0], errors.Unwrap(err), p.folder)
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		p.fault(file, line, "$INCLUDE %q: expected a regular file", args[0])
		return
	}
	p.depth++
	p.file(f, path, c)
	p.depth--
}

// generateTTL returns a $GENERATE of those fields, with ttl if it has none of its own:
// dns.ZoneParser does not hand the default on.
func generateTTL(f []string, ttl uint32) string {
	at := min(3, len(f)) // $GENERATE range lhs [ttl] [class] type rhs
	for _, s := range f[at:] {
		if s != "" && '0' <= s[0] && s[0] <= '9' {
			return strings.Join(f, " ") + "\n"
		}
		if _, isClass := dns.StringToClass[strings.ToUpper(s)]; !isClass {
			break
		}
	}
	return strings.Join(f[:at], " ") + " " + strconv.FormatUint(uint64(ttl), 10) + " " + strings.Join(f[at:], " ") + "\n"
}

// fields splits an entry at spaces outside quoted strings, and ends at a comment. There is
// at least one. A field that is one quoted string loses its quotes.
func fields(text string) []string {
	var f []string
	for i := 0; i < len(text); {
		if strings.IndexByte(" \t\r\n", text[i]) >= 0 {
			i++
			continue
		}
		if text[i] == ';' {
			break
		}
		start, quote := i, false
		for ; i < len(text) && (quote || strings.IndexByte(" \t\r\n;", text[i]) < 0); i++ {
			switch text[i] {
			case '"':
				quote = !quote
			case '\\':
				i++
			}
		}
		s := text[start:min(i, len(text))]
		if len(s) >= 2 && s[0] == '"' && strings.IndexByte(s[1:], '"') == len(s)-2 {
			s = s[1 : len(s)-1]
		}
		f = append(f, s)
	}
	return f
}

// rrs reads the RRs of one entry, given in parts, and hands them to the builder. It returns
// false where the entry cannot be read.
func (p *parser) rrs(file string, line int, c *context, parts ...[]byte) bool {
	zp := dns.NewZoneParser(&partsReader{parts: parts}, c.origin, "")
	zp.SetDefaultTTL(c.ttl)
	for rr, ok := zp.Next(); ok; rr, ok = zp.Next() {
		h := rr.Header()
		c.owner, c.lost = h.Name, false
		p.rr(rr, file, line, c)
		if p.full() {
			return true
		}
	}
	if err := zp.Err(); err != nil {
		p.fault(file, line, "%v", syntax(err, line))
		return false
	}
	return true
}

// rr hands one RR to the builder.
func (p *parser) rr(rr dns.RR, file string, line int, c *context) {
	h := rr.Header()
	switch t := h.Rrtype; {
	case h.Class != dns.ClassINET:
		p.fault(file, line, "%s: class %s: expected IN", show(h.Name), dns.Class(h.Class))
		return
	case t == 0 || t == dns.TypeOPT || 128 <= t && t <= 255:
		p.fault(file, line, "%s: %s: a meta-type cannot be in a zone", show(h.Name), dns.Type(t))
		return
	case h.Ttl == noTTL && rr.Header().Rrtype == dns.TypeSOA:
		h.Ttl = rr.(*dns.SOA).Minttl
		p.warn(file, line, "%s: SOA without a TTL, and no $TTL: its MINIMUM, %d, is taken", show(h.Name), h.Ttl)
	case h.Ttl == noTTL:
		p.fault(file, line, "%s: %s without a TTL: expected one, a $TTL, or one in an RR before", show(h.Name), dns.Type(t))
		return
	}
	h.Ttl = p.ttl(h.Ttl, file, line)
	if !c.explicit {
		c.ttl = h.Ttl
	}
	n, err := dns.PackRR(rr, p.wire, 0, nil, false)
	if err != nil {
		p.fault(file, line, "%s: %s: %v", show(h.Name), dns.Type(h.Rrtype), strings.TrimPrefix(err.Error(), "dns: "))
		return
	}
	owner := nameLen(p.wire)
	rdata := p.wire[owner+10 : n] // after TYPE, CLASS, TTL and RDLENGTH
	if owner > MaxName {
		p.fault(file, line, "%s: an owner name of %d octets: expected at most %d", show(h.Name), owner, MaxName)
		return
	}
	if reason := badRData(*h, rdata); reason != "" {
		p.fault(file, line, "%s: %s: %s", show(h.Name), dns.Type(h.Rrtype), reason)
		return
	}
	if p.builder.count() == p.limits.rrs {
		p.fault(file, line, "more than %d RRs", p.limits.rrs)
		p.moreFaults++ // enough: nothing more is read
		return
	}
	p.builder.add(p.wire[:owner], h.Rrtype, h.Ttl, rdata, file, line)
}

// badRData says what is wrong with rdata that dns.PackRR has let pass, or nothing.
func badRData(h dns.RR_Header, rdata []byte) string {
	if len(rdata) == 0 && dns.TypeToRR[h.Rrtype] != nil && h.Rrtype != dns.TypeNULL && h.Rrtype != dns.TypeAPL {
		return "no rdata"
	}
	if len(rdata) > MaxName { // only then may a name in it be too long
		h.Rdlength = uint16(len(rdata))
		if _, _, err := dns.UnpackRRWithHeader(h, rdata, 0); err != nil {
			return strings.TrimPrefix(err.Error(), "dns: ")
		}
	}
	return ""
}

// ttl returns ttl, or 0 in the place of one that is over 2^31-1 (RFC 2181, section 8).
func (p *parser) ttl(ttl uint32, file string, line int) uint32 {
	if ttl <= maxTTL {
		return ttl
	}
	p.warn(file, line, "TTL %d is over %d: 0 is taken", ttl, uint32(maxTTL))
	return 0
}

// show returns a name in presentation form as faults show it: without the trailing dot.
func show(name string) string {
	if name == "." {
		return name
	}
	return strings.TrimSuffix(name, ".")
}

var syntaxPlace = regexp.MustCompile(` at line: (\d+):(\d+)$`)

// syntax words an error of dns.ZoneParser about an entry that begins at line: without its
// prefix, and with the line only if it is another.
func syntax(err error, line int) string {
	s := strings.TrimPrefix(err.Error(), "dns: ")
	m := syntaxPlace.FindStringSubmatch(s)
	if m == nil {
		return s
	}
	s = strings.TrimSuffix(s, m[0])
	if n, _ := strconv.Atoi(m[1]); n > 1 {
		s += " in line " + strconv.Itoa(line+n-1)
	}
	return s
}

// partsReader reads parts one after the other, and a newline after the last.
type partsReader struct {
	parts [][]byte
	ended bool
}

// ReadByte is all that dns.ZoneParser uses.
func (r *partsReader) ReadByte() (byte, error) {
	for len(r.parts) > 0 {
		if part := r.parts[0]; len(part) > 0 {
			r.parts[0] = part[1:]
			return part[0], nil
		}
		r.parts = r.parts[1:]
	}
	if r.ended {
		return 0, io.EOF
	}
	r.ended = true
	return '\n', nil
}

// Read reads what ReadByte does.
func (r *partsReader) Read(b []byte) (int, error) {
	for i := range b {
		c, err := r.ReadByte()
		if err != nil {
			return i, err
		}
		b[i] = c
	}
	return len(b), nil
}
