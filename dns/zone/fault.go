package zone

import (
	"errors"
	"fmt"
)

// Fault is one reason to refuse a zone, and where it is.
type Fault struct {
	File   string // empty where the zone has no file
	Line   int    // from 1; where the entry begins. 0: the zone as a whole
	Reason string
}

// Error returns "file:line: reason".
func (f *Fault) Error() string { return place(f.File, f.Line) + f.Reason }

// Warning is something in a zone that is served all the same but is hardly meant, and where
// it is; it is read as a Fault.
type Warning struct {
	File   string
	Line   int
	Reason string
	Host   string // what has no address in the zone, as Zone.Name has names; a service may give it one. Empty: another warning
}

// String returns "file:line: reason".
func (w Warning) String() string { return place(w.File, w.Line) + w.Reason }

func place(file string, line int) string {
	switch {
	case file == "" && line == 0:
		return ""
	case file == "":
		return fmt.Sprintf("line %d: ", line)
	case line == 0:
		return file + ": "
	}
	return fmt.Sprintf("%s:%d: ", file, line)
}

// report gathers faults and warnings, up to a bound that a person may still read.
type report struct {
	faults     []error
	warnings   []Warning
	moreFaults int
	moreWarns  int
	stopped    bool // a bound was met: nothing more is read
}

const maxReported = 100 // of faults, and of warnings

func (r *report) fault(file string, line int, format string, args ...any) {
	if len(r.faults) == maxReported {
		r.moreFaults++
		return
	}
	r.faults = append(r.faults, &Fault{file, line, fmt.Sprintf(format, args...)})
}

func (r *report) warn(file string, line int, format string, args ...any) {
	if len(r.warnings) == maxReported {
		r.moreWarns++
		return
	}
	r.warnings = append(r.warnings, Warning{File: file, Line: line, Reason: fmt.Sprintf(format, args...)})
}

// stop reports a fault after which nothing more is read.
func (r *report) stop(file string, line int, format string, args ...any) {
	r.fault(file, line, format, args...)
	r.stopped = true
}

// full tells whether to read no further: there are more faults than anybody wants to see.
func (r *report) full() bool { return r.stopped || r.moreFaults > 0 }

// end returns everything reported about file.
func (r *report) end(file string) ([]Warning, error) {
	if r.moreWarns > 0 {
		r.warnings = append(r.warnings, Warning{File: file, Reason: fmt.Sprintf("%d more warnings", r.moreWarns)})
	}
	if r.moreFaults > 0 {
		r.faults = append(r.faults, &Fault{file, 0, "more faults than are shown"})
	}
	return r.warnings, errors.Join(r.faults...)
}
