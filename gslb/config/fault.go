package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Fault is one thing wrong with a configuration: where it stands and what was expected.
type Fault struct {
	File string // file name, or the key of an object of the store; "" when unknown
	Line int    // from 1; 0 when unknown
	Path string // of the value: pools.gfe-eu.endpoints[1].address; "" for the document
	Msg  string
}

// Error returns f as a compiler would: gslb.yaml:31: pools.gfe-eu.site: no such site.
func (f Fault) Error() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			b.WriteByte(':')
			b.WriteString(strconv.Itoa(f.Line))
		}
		b.WriteString(": ")
	}
	if f.Path != "" {
		b.WriteString(f.Path)
		b.WriteString(": ")
	}
	b.WriteString(f.Msg)
	return b.String()
}

// Faults returns every Fault in err, in its order; nil when there is none.
func Faults(err error) []Fault {
	if err == nil {
		return nil
	}
	if f, ok := err.(Fault); ok {
		return []Fault{f}
	}
	var out []Fault
	switch u := err.(type) {
	case interface{ Unwrap() []error }:
		for _, e := range u.Unwrap() {
			out = append(out, Faults(e)...)
		}
	case interface{ Unwrap() error }:
		out = Faults(u.Unwrap())
	}
	return out
}

// Fault returns what is wrong with the value that those keys of f lead to, and where it stands:
// for faults that are found by who uses f.
func (f *File) Fault(err error, keys ...string) Fault {
	p := path(keys)
	pl := f.places
	if len(p) >= 2 && f.Objects.places[objectKey{p[0], p[1]}] != nil {
		pl = f.Objects.places[objectKey{p[0], p[1]}]
	}
	file, line := pl.find(p)
	return Fault{File: file, Line: line, Path: p.String(), Msg: err.Error()}
}

// Relocated returns faults, as Fault.Error says them, that were found in a copy of o, by where o
// itself was written. sent is the file that they name: those of other files, or of what o does not
// hold, follow as they are.
func (o *Objects) Relocated(sent string, faults []string) []string {
	lines := map[string]Fault{} // by path
	for k, pl := range o.places {
		for key, line := range pl.lines {
			if p := path(strings.Split(key, "\x00")); len(p) >= 2 && p[0] == k.kind && p[1] == k.name {
				lines[p.String()] = Fault{File: pl.file, Line: line}
			}
		}
	}
	relocated := func(f string) (found Fault, ok bool) {
		place, rest, _ := strings.Cut(f, ": ")
		if file, _, _ := strings.Cut(place, ":"); file != sent {
			return found, false
		}
		path, msg, _ := strings.Cut(rest, ": ")
		for at := path; at != "" && !ok; at = at[:max(0, strings.LastIndexAny(at, ".["))] {
			found, ok = lines[at]
		}
		found.Path, found.Msg = path, msg
		return found, ok
	}
	var ours []Fault
	var others []string
	for _, f := range faults {
		if found, ok := relocated(f); ok {
			ours = append(ours, found)
		} else {
			others = append(others, f)
		}
	}
	slices.SortStableFunc(ours, compareFaults)
	out := make([]string, 0, len(faults))
	for _, f := range ours {
		out = append(out, f.Error())
	}
	return append(out, others...)
}

// compareFaults orders faults by where they stand.
func compareFaults(a, b Fault) int {
	return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Msg, b.Msg))
}

// path leads to a value: keys, and list indexes written as "[2]".
type path []string

// at returns p with one more step. It never shares p's storage.
func (p path) at(step string) path { return append(slices.Clip(p), step) }

// item returns p with the index of a list item.
func (p path) item(i int) path { return p.at("[" + strconv.Itoa(i) + "]") }

// String returns p as people read it: pools.gfe-eu.endpoints[1].
func (p path) String() string {
	var b strings.Builder
	for i, s := range p {
		if i > 0 && !strings.HasPrefix(s, "[") {
			b.WriteByte('.')
		}
		b.WriteString(s)
	}
	return b.String()
}

// key returns p as a map key; unlike String it keeps steps with dots in them apart.
func (p path) key() string { return strings.Join(p, "\x00") }

// places says on which line each value of one document stands.
type places struct {
	file  string
	lines map[string]int // by path.key
}

// find returns the file and the line of p, or of the closest value above it that has one.
// A nil receiver knows nothing.
func (pl *places) find(p path) (file string, line int) {
	if pl == nil {
		return "", 0
	}
	for ; len(p) > 0; p = p[:len(p)-1] {
		if n, ok := pl.lines[p.key()]; ok {
			return pl.file, n
		}
	}
	return pl.file, 0
}

// fault is a Fault on its way: with its path in steps.
type fault struct {
	Fault
	path   path
	absent bool // says that path is missing, which a misspelt key beside it explains
}

// faultList collects the faults of one reading.
type faultList []fault

// What is reported of one document at most.
const (
	maxFaults = 1000
	maxMsg    = 1000 // octets of one fault
)

func (l *faultList) add(f fault) {
	f.Path = f.path.String()
	if len(f.Msg) > maxMsg {
		f.Msg = strings.ToValidUTF8(f.Msg[:maxMsg], "") + "…"
	}
	if len(*l) < maxFaults {
		*l = append(*l, f)
	}
}

// dropLines forgets the lines.
func (l faultList) dropLines() {
	for i := range l {
		l[i].Line = 0
	}
}

// unexplained returns the faults of found that no fault of l explains: a value that could
// not be read is not also called missing or out of range.
func (l faultList) unexplained(found faultList) faultList {
	exact := map[string]bool{}  // could not be read
	at := map[string]bool{}     // that, or something in it
	beside := map[string]bool{} // holds a key with a fault
	for _, f := range l {
		exact[f.path.key()] = len(f.path) > 0
		for p := f.path; len(p) > 0; p = p[:len(p)-1] {
			at[p.key()] = true
		}
		if len(f.path) > 0 {
			beside[f.path[:len(f.path)-1].key()] = true
		}
	}
	var out faultList
	for _, f := range found {
		explained := at[f.path.key()]
		for p := f.path; len(p) > 0; p = p[:len(p)-1] {
			explained = explained || exact[p.key()]
		}
		if f.absent && len(f.path) > 0 {
			explained = explained || beside[f.path[:len(f.path)-1].key()]
		}
		if !explained {
			out = append(out, f)
		}
	}
	return out
}

// err returns the faults as one error, sorted by file and line, each once; nil for none.
func (l faultList) err() error {
	if len(l) == 0 {
		return nil
	}
	all := make([]Fault, len(l))
	for i, f := range l {
		all[i] = f.Fault
	}
	slices.SortStableFunc(all, compareFaults)
	all = slices.Compact(all)
	errs := make([]error, len(all))
	for i, f := range all {
		errs[i] = f
	}
	return errors.Join(errs...)
}

// expected returns "expected one of a, b", or that there is none, for a reference that
// leads nowhere. names are sorted.
func expected(names []string) string {
	const most = 12
	switch {
	case len(names) == 0:
		return "there is none"
	case len(names) == 1:
		return "expected " + names[0]
	case len(names) > most:
		return fmt.Sprintf("expected one of %s, … (%d)", strings.Join(names[:most], ", "), len(names))
	}
	return "expected one of " + strings.Join(names, ", ")
}

// closest returns the name that s is probably a misspelling of, or "".
func closest(s string, names []string) string {
	best, dist := "", 1+max(1, len(s)/3)
	for _, n := range names {
		if len(s) >= 3 && strings.HasPrefix(n, s) {
			return n
		}
		if d := editDistance(strings.ToLower(s), strings.ToLower(n)); d < dist {
			best, dist = n, d
		}
	}
	return best
}

// editDistance returns how many octets to insert, delete, replace or swap with a neighbour
// to turn a into b (optimal string alignment). Names over 64 octets are infinitely far.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 1 << 20
	}
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}
