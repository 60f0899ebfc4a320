package gslb

import (
	"cmp"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxLine is how long a line of an explanation may be, in octets: a character-string of DNS
// (RFC 1035, section 3.3).
const maxLine = 255

// Lines returns e in short lines of at most 255 octets, for where there is little room: DNS.
// Each begins with a number, the same for lines that belong together, so that they can be put in
// order again.
//
//	00 www.example.com for 198.51.100.0/24: Frankfurt DE EU 50.11,8.68
//	01 pools: gfe-ap, gfe-eu, gfe-us
//	02 health: gfe-eu (2 of 2 endpoints healthy), gfe-us (2 of 2 endpoints healthy)
//	02 health lost: gfe-ap (0 of 2 endpoints healthy)
//	03 nearest: gfe-eu (12 km), gfe-us (6512 km)
//	04 select: gfe-eu (2 of 2 IPv4, 1 of 1 IPv6)
//	04 select lost: gfe-us (behind gfe-eu)
//	05 answer: gfe-eu by policy: 192.0.2.11, 192.0.2.12, 2001:db8:2::11
//	06 ttl 30, scope 24, revision 12, plan 3f9ac01d22b1
func (e *Explanation) Lines() []string {
	var w lineWriter
	w.line("%s for %s: %s", e.Service, e.Client, e.where())
	for _, st := range e.Stages {
		w.next()
		if st.Note != "" {
			w.line("%s: %s", st.Stage, st.Note)
			continue
		}
		w.list(st.Stage+":", st.Kept)
		if len(st.Lost) > 0 {
			w.list(st.Stage+" lost:", st.Lost)
		}
	}
	w.next()
	var answers []CandidateTrace
	for _, a := range e.Answers {
		answers = append(answers, CandidateTrace{Pool: a.String()})
	}
	switch {
	case e.Flat:
		answers = append(answers, CandidateTrace{Pool: "those of " + e.CNAME})
	case e.CNAME != "":
		answers = append(answers, CandidateTrace{Pool: "CNAME " + e.CNAME})
	}
	w.list(fmt.Sprintf("answer: %s by %s:", cmp.Or(e.Pool, "no pool"), e.Reason), answers)
	if len(e.Targets) > 0 {
		w.line("targets: %s", strings.Join(e.Targets, ", "))
	}
	w.next()
	w.line("ttl %d, scope %d, revision %d, plan %.12s", e.TTL, e.Scope, e.Revision, e.Plan)
	return w.lines
}

// Brief returns e in one line of at most so many octets: what was chosen and why, and who else
// lost where.
//
//	gfe-eu by policy; ttl 30, scope 24, revision 12, plan 3f9ac01d22b1; health lost: gfe-ap (0 of 2 endpoints healthy); select lost: gfe-us (behind gfe-eu)
func (e *Explanation) Brief(most int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s by %s; ttl %d, scope %d, revision %d, plan %.12s", cmp.Or(e.Pool, cmp.Or(e.CNAME, "no pool")), e.Reason, e.TTL, e.Scope, e.Revision, e.Plan)
	for _, st := range e.Stages {
		for i, c := range st.Lost {
			if i == 0 {
				fmt.Fprintf(&b, "; %s lost: %s", st.Stage, c)
			} else {
				fmt.Fprintf(&b, ", %s", c)
			}
		}
	}
	return shorten(b.String(), most)
}

// String returns c as "gfe-eu (12 km)".
func (c CandidateTrace) String() string {
	if c.Note == "" {
		return c.Pool
	}
	return c.Pool + " (" + c.Note + ")"
}

// where says in a few words where the client is.
func (e *Explanation) where() string {
	p := &e.Place
	var words []string
	for _, word := range []string{p.City, p.Country, p.Continent} {
		if word != "" {
			words = append(words, word)
		}
	}
	if p.Located {
		words = append(words, fmt.Sprintf("%.2f,%.2f", p.Lat, p.Lon))
	}
	if p.ASN != 0 {
		words = append(words, fmt.Sprintf("AS%d", p.ASN))
	}
	if p.Site != "" {
		words = append(words, "site "+p.Site)
	}
	return cmp.Or(strings.Join(words, " "), "place unknown")
}

// lineWriter gathers the lines of Lines.
type lineWriter struct {
	lines []string
	n     int
}

// next begins what has the next number.
func (w *lineWriter) next() { w.n++ }

func (w *lineWriter) line(format string, args ...any) {
	w.lines = append(w.lines, shorten(fmt.Sprintf("%02d ", w.n)+fmt.Sprintf(format, args...), maxLine))
}

// list writes items after head, on as many lines as they need.
func (w *lineWriter) list(head string, items []CandidateTrace) {
	if len(items) == 0 {
		w.line("%s none", head)
		return
	}
	text := ""
	for _, c := range items {
		item := c.String()
		switch {
		case text == "":
			text = item
		case len("00 ")+len(head)+1+len(text)+2+len(item) > maxLine:
			w.line("%s %s", head, text)
			text = item
		default:
			text += ", " + item
		}
	}
	w.line("%s %s", head, text)
}

// shorten returns s without control characters, and as much of it as most octets hold.
func shorten(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= most {
		return s
	}
	n := most - len("...")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}
