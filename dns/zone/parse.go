package zone

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/miekg/dns"
)

// limits bound what one zone may cost to read.
type limits struct {
	entry   int // octets of one entry; an RR of 65,535 octets needs 262,140 as \DDD
	rrs     int // RRs, those of $GENERATE included, and those that are ignored
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

// ParseFiles is Parse, and returns the files that $INCLUDE named, by their paths: each as it
// was when it was opened, or nil where it could not be. They are known with an error too.
func ParseFiles(r io.Reader, file, origin string) (*Zone, map[string]fs.FileInfo, []Warning, error) {
	return parseFiles(r, file, origin, defaultLimits)
}

// ReadFile returns the text of a master file. It is an error if that is no regular file: to read from
// a pipe or a device may never end.
func ReadFile(file string) (string, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(err, fmt.Errorf("%s: expected a regular file", file))
	}
	var text strings.Builder
	text.Grow(int(info.Size()))
	_, err = io.Copy(&text, f)
	return text.String(), err
}

func parse(r io.Reader, file, origin string, lim limits) (*Zone, []Warning, error) {
	z, _, warnings, err := parseFiles(r, file, origin, lim)
	return z, warnings, err
}

func parseFiles(r io.Reader, file, origin string, lim limits) (*Zone, map[string]fs.FileInfo, []Warning, error) {
	var rep report
	name, err := FromString(origin)
	if err != nil {
		rep.fault(file, 0, "zone's %v", err)
		warnings, err := rep.end(file)
		return nil, nil, warnings, err
	}
	p := &parser{
		report:   &rep,
		limits:   lim,
		builder:  newBuilder(&rep, name),
		included: map[string]fs.FileInfo{},
	}
	wire := wires.Get().(*[wireSize]byte)
	defer wires.Put(wire)
	p.wire = wire[:]
	if file != "" {
		p.folder = filepath.Dir(file)
	}
	p.file(r, file, context{origin: dns.Fqdn(origin), base: name, ttl: noTTL})
	if p.root != nil {
		p.root.Close()
	}
	z := p.builder.build(file)
	warnings, err := rep.end(file)
	if err != nil {
		z = nil
	}
	return z, p.included, warnings, err
}

// parser reads master files into a builder.
type parser struct {
	*report
	limits   limits
	builder  *builder
	folder   string                 // where $INCLUDE may read; empty: nowhere
	root     *os.Root               // folder, open since the first $INCLUDE
	depth    int                    // of $INCLUDE
	files    int                    // read for $INCLUDE
	included map[string]fs.FileInfo // those files; nil: it could not be opened
	read     int                    // RRs
	wire     []byte                 // scratch for one RR
}

// wireSize is the size of any RR, and room to see that a relative name made one too long.
const wireSize = 4*MaxName + 10 + math.MaxUint16

// wires holds the scratch of parsers: of many small zones each would else make its own.
var wires = sync.Pool{New: func() any { return new([wireSize]byte) }}

// context is what an entry takes from those before it.
type context struct {
	origin   string // absolute, presentation form
	base     []byte // origin in wire form; nil: it is too long to be a name
	owner    []byte // of the last entry, in wire form; nil: none yet
	lost     bool   // the last owner was not readable: what follows without an owner is dropped
	ttl      uint32 // for RRs without one
	explicit bool   // ttl is from $TTL, and not from the RR before (RFC 1035, section 5.1)
}

// setOwner takes an absolute name in presentation form as the owner.
func (c *context) setOwner(name string) {
	owner, err := FromString(name)
	if c.lost = err != nil; !c.lost {
		c.owner = owner
	}
}

// setOrigin takes an absolute name in presentation form as the origin.
func (c *context) setOrigin(name string) {
	if name != c.origin {
		c.origin = name
		c.base, _ = FromString(name) // the names that are then too long are reported one by one
	}
}

// noTTL stands for a TTL that is not known: no TTL can be over 2^31-1 (RFC 2181, section 8).
const (
	noTTL  = math.MaxUint32
	maxTTL = math.MaxInt32
)

// file reads one file, entry by entry. Each entry goes through a dns.ZoneParser of its own,
// so that a fault ends but that entry and its line is known.
func (p *parser) file(r io.Reader, file string, c context) {
	var e splitter
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, p.limits.entry)
	sc.Split(e.split)
	line := 1
	for sc.Scan() && !p.full() {
		next := line + bytes.Count(sc.Bytes(), []byte("\n"))
		p.entry(sc.Bytes(), e.open, file, line, &c)
		line = next
	}
	switch err := sc.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		p.fault(file, line, "an entry of more than %d octets; is a parenthesis left open?", p.limits.entry)
	case err != nil:
		p.fault(file, line, "%v", err)
	}
}

// splitter splits a master file into entries: lines, where newlines between parentheses do
// not count. A quoted string has to end with its line.
type splitter struct {
	open byte // what the last entry left open: '"', '(', or 0
}

// split is a bufio.SplitFunc.
func (e *splitter) split(data []byte, atEOF bool) (advance int, entry []byte, err error) {
	depth, quote, comment := 0, false, false
	e.open = 0
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case c == '\n':
			if quote {
				e.open = '"'
			}
			if quote, comment = false, false; depth <= 0 {
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
	if !atEOF || len(data) == 0 {
		return 0, nil, nil // more is needed
	}
	if quote {
		e.open = '"'
	} else if depth > 0 {
		e.open = '('
	}
	return len(data), data, nil
}

// entry reads one entry, which begins at line of file and leaves open what it says.
func (p *parser) entry(text []byte, open byte, file string, line int, c *context) {
	trimmed := bytes.TrimLeft(text, " \t\r\n")
	switch {
	case len(trimmed) == 0 || trimmed[0] == ';' && bytes.IndexByte(trimmed, '\n') >= len(trimmed)-1:
	case text[0] == '$' && open == 0:
		p.directive(text, file, line, c)
	case open == 0 && p.plain(text, file, line, c):
	case len(trimmed) == len(text):
		if !p.rrs(file, line, c, open, text) {
			p.ownerOf(text, c)
		}
	case c.lost: // the fault was reported with the owner
	case c.owner == nil:
		p.fault(file, line, "an RR without an owner name, and none before it")
	default:
		p.rrs(file, line, c, open, []byte(dns.Fqdn(ToString(c.owner))), text)
	}
}

// ownerOf takes the owner name from an entry that cannot be read: it is that of the entries
// after it which have none.
func (p *parser) ownerOf(text []byte, c *context) {
	token, _, _ := bytes.Cut(text, []byte(" "))
	token, _, _ = bytes.Cut(token, []byte("\t"))
	probe, err := p.probe(c, "", string(bytes.TrimSpace(token)))
	if c.lost = err != nil; !c.lost {
		c.setOwner(probe.Name)
	}
}

// directive reads one control entry.
func (p *parser) directive(text []byte, file string, line int, c *context) {
	f := fields(string(text))
	switch name := strings.ToUpper(f[0]); name {
	case "$ORIGIN", "$TTL":
		probe, err := p.probe(c, string(text), "@")
		if err != nil {
			p.fault(file, line, "%s: %s", name, syntax(err, 0))
			return
		}
		if name == "$TTL" {
			c.ttl, c.explicit = p.ttl(probe.Ttl, file, line), true
		}
		c.setOrigin(probe.Name)
	case "$INCLUDE":
		args := f[1:]
		for i := range args {
			args[i] = unquote(args[i])
		}
		p.include(args, file, line, *c)
	case "$GENERATE":
		if len(text) > maxGenerate {
			p.fault(file, line, "$GENERATE: expected %d octets at most", maxGenerate)
			return
		}
		p.generate(f, file, line, c)
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
		p.stop(file, line, "$INCLUDE %q: more than %d files in all", args[0], p.limits.files)
		return
	}
	p.files++
	if len(args) == 2 {
		probe, err := p.probe(&c, "$ORIGIN "+args[1], "@")
		if err != nil {
			p.fault(file, line, "$INCLUDE %q: %s", args[0], syntax(err, 0))
			return
		}
		c.setOrigin(probe.Name)
	}
	// A relative path is relative to the file that includes, which is in the folder.
	path := args[0]
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(file), path)
	}
	p.included[path] = nil
	f, err := p.open(path)
	if err != nil {
		p.fault(file, line, "$INCLUDE %q: %v; expected a file in %s", args[0], err, p.folder)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		p.included[path] = info
	}
	if err != nil || !info.Mode().IsRegular() {
		p.fault(file, line, "$INCLUDE %q: expected a regular file", args[0])
		return
	}
	p.depth++
	p.file(f, path, c)
	p.depth--
}

// open opens a file in the folder of the zone.
func (p *parser) open(path string) (*os.File, error) {
	if p.root == nil {
		root, err := os.OpenRoot(p.folder)
		if err != nil {
			return nil, err
		}
		p.root = root
	}
	folder, err := filepath.Abs(p.folder)
	if err != nil {
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	if path, err = filepath.Rel(folder, path); err != nil {
		return nil, err
	}
	f, err := p.root.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // does not wait at a pipe
	if pathErr := new(os.PathError); errors.As(err, &pathErr) {
		err = pathErr.Err // the path is in the fault already
	}
	return f, err
}

// fields splits an entry at spaces outside quoted strings, and leaves out comments. There is at least
// one.
func fields(text string) []string {
	var f []string
	for i := 0; i < len(text); {
		if strings.IndexByte(" \t\r\n", text[i]) >= 0 {
			i++
			continue
		}
		if text[i] == ';' {
			for i < len(text) && text[i] != '\n' {
				i++
			}
			continue
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
		f = append(f, text[start:min(i, len(text))])
	}
	return f
}

// unquote returns a field without its quotes if it is one quoted string.
func unquote(field string) string {
	if len(field) < 2 || field[0] != '"' {
		return field
	}
	var b strings.Builder
	for i := 1; i < len(field); i++ {
		switch c := field[i]; {
		case c == '"' && i == len(field)-1:
			return b.String()
		case c == '"':
			return field
		case c == '\\' && i+1 < len(field):
			if i++; field[i] != '"' {
				b.WriteByte(c)
			}
			fallthrough
		default:
			b.WriteByte(field[i])
		}
	}
	return field
}

// rrs reads the RRs of one entry, given in parts, and hands them to the builder. It returns
// false where the entry cannot be read.
func (p *parser) rrs(file string, line int, c *context, open byte, parts ...[]byte) bool {
	switch open {
	case '"':
		p.fault(file, line, "a quoted string does not end in its line")
		return false
	case '(':
		p.fault(file, line, "a parenthesis is left open")
		return false
	}
	for _, part := range parts {
		if escape := badEscape(part); escape != "" {
			p.fault(file, line, "escape %q: expected three digits, from 000 to 255 (RFC 1035, section 5.1)", escape)
			return false
		}
	}
	zp := dns.NewZoneParser(&partsReader{parts: parts}, c.origin, "")
	zp.SetDefaultTTL(c.ttl)
	for rr, ok := zp.Next(); ok; rr, ok = zp.Next() {
		if p.read++; p.read > p.limits.rrs {
			p.stop(file, line, "more than %d RRs", p.limits.rrs)
			return true
		}
		if rr.Header().Name == "" { // a last line with an owner name alone that reads like a type is taken for an RR
			p.fault(file, line, "expected rdata: end of line")
			return false
		}
		c.setOwner(rr.Header().Name)
		p.rr(rr, file, line, c)
		if p.full() {
			return true
		}
	}
	if err := zp.Err(); err != nil {
		p.fault(file, line, "%s", syntax(err, line))
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
	case h.Ttl == noTTL && t == dns.TypeSOA:
		h.Ttl = rr.(*dns.SOA).Minttl
		c.ttl, c.explicit = h.Ttl, true
		p.warn(file, line, "%s: SOA without a TTL, and no $TTL: its MINIMUM, %d, is taken as if $TTL said so", show(h.Name), h.Ttl)
	case h.Ttl == noTTL:
		p.fault(file, line, "%s: %s without a TTL: expected one, a $TTL, or one in an RR before", show(h.Name), dns.Type(t))
		return
	}
	h.Ttl = p.ttl(h.Ttl, file, line)
	if !c.explicit {
		c.ttl = h.Ttl
	}
	given := int(h.Rdlength) // in the form of RFC 3597, else 0
	n, err := dns.PackRR(rr, p.wire, 0, nil, false)
	if err != nil {
		p.fault(file, line, "%s: %s: %s", show(h.Name), dns.Type(h.Rrtype), strings.ReplaceAll(err.Error(), "dns: ", ""))
		return
	}
	owner := nameLen(p.wire)
	rdata := p.wire[owner+10 : n] // after TYPE, CLASS, TTL and RDLENGTH
	if owner > MaxName {
		p.fault(file, line, "%s: an owner name of %d octets: expected at most %d", show(h.Name), owner, MaxName)
		return
	}
	if reason := badRData(rr, given, rdata); reason != "" {
		p.fault(file, line, "%s: %s: %s", show(h.Name), dns.Type(h.Rrtype), reason)
		return
	}
	p.builder.add(p.wire[:owner], h.Rrtype, h.Ttl, rdata, file, line)
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

var (
	syntaxPlace = regexp.MustCompile(` at line: (\d+):(\d+)$`)
	badField    = regexp.MustCompile(`^bad ([A-Z0-9]+) (\w+): `)
)

// syntax words an error of dns.ZoneParser as faults here are worded. The line that it is at
// is added if it is not that where the entry begins, line; line 0 has no such lines.
func syntax(err error, line int) string {
	s := strings.TrimPrefix(err.Error(), "dns: ")
	at := ""
	if m := syntaxPlace.FindStringSubmatch(s); m != nil {
		s = strings.TrimSuffix(s, m[0])
		if n, _ := strconv.Atoi(m[1]); n > 1 && line > 0 {
			at = " in line " + strconv.Itoa(line+n-1)
		}
	}
	if strings.HasPrefix(s, ": ") { // of a parameter of SVCB
		s = "bad parameter" + s
	}
	s = badField.ReplaceAllString(s, "$1: bad rdata, field $2: ")
	s = strings.Replace(s, "not a TTL: ", "expected a TTL, a class or a type that is known: ", 1)
	s = strings.Replace(s, "unexpected newline: ", "expected rdata: ", 1)
	s = strings.Replace(s, ", not this...: ", ": ", 1)
	s = strings.Replace(s, `"\n"`, "end of line", 1)
	s = strings.Replace(s, "extra closing brace", "extra closing parenthesis", 1)
	return s + at
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
