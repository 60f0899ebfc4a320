package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/meridian-gslb/meridian/admin/api"
)

// reply writes v as JSON, indented: people read it with curl.
func reply(w http.ResponseWriter, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil { // a value of ours that JSON cannot hold: NaN from a broken part
		fail(w, http.StatusInternalServerError, "cannot write the answer: "+err.Error(), "")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, '\n'))
}

// fail writes a problem.
func fail(w http.ResponseWriter, status int, problem, hint string) {
	failWith(w, status, api.Problem{Error: problem, Hint: hint})
}

// failWith writes p.
func failWith(w http.ResponseWriter, status int, p api.Problem) {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		panic(err) // strings only
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n'))
}

// unknown answers 404 for a name of a kind that is not there, with the closest one that is.
func unknown(w http.ResponseWriter, kind, name string, known []string) {
	p := api.Problem{Error: fmt.Sprintf("no %s %q", kind, clip(name))}
	switch closest := suggest(name, known); {
	case closest != "":
		p.Hint = fmt.Sprintf("did you mean %q?", closest)
	case len(known) == 0:
		p.Hint = "there is none"
	default:
		p.Hint = "there are: " + strings.Join(known[:min(len(known), 8)], ", ")
		if len(known) > 8 {
			p.Hint += fmt.Sprintf(" and %d more", len(known)-8)
		}
	}
	failWith(w, http.StatusNotFound, p)
}

// body reads the body of r up to limit octets. A longer one is answered here, and ok is false.
func body(w http.ResponseWriter, r *http.Request, limit int64) (b []byte, ok bool) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		return b, true
	}
	if _, over := errors.AsType[*http.MaxBytesError](err); over {
		fail(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is over %d octets", limit), "send less at once")
	} else {
		fail(w, http.StatusBadRequest, "reading the body: "+err.Error(), "")
	}
	return nil, false
}

// decode reads a small JSON body into v, strictly. What is wrong is answered here, and ok is
// false. An empty body leaves v as it is.
func decode(w http.ResponseWriter, r *http.Request, v any) (ok bool) {
	b, ok := body(w, r, api.MaxBody)
	if !ok || len(b) == 0 {
		return ok
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "the body is not what was expected: "+strings.TrimPrefix(err.Error(), "json: "), "")
		return false
	}
	return true
}

// flag reads a boolean of the query: absent, 0 or false; empty, 1 or true. What else it may
// be is answered here, and ok is false.
func flag(w http.ResponseWriter, r *http.Request, name string) (on, ok bool) {
	if !r.URL.Query().Has(name) {
		return false, true
	}
	switch v := r.URL.Query().Get(name); v {
	case "", "1", "true":
		return true, true
	case "0", "false":
		return false, true
	default:
		fail(w, http.StatusBadRequest, fmt.Sprintf("%s=%q", name, v), "give 1 or 0")
		return false, false
	}
}

// maxSuggest bounds the names that suggest compares, in octets: its time grows with their
// product, and anyone may ask.
const maxSuggest = 64

// suggest returns the name of known that name most likely was meant to be: the one at the
// least edit distance, up to a third of its length, or the only one that starts with name;
// empty when none is close.
func suggest(name string, known []string) string {
	if len(name) > maxSuggest {
		return ""
	}
	best, least := "", len(name)/3+1
	for _, k := range known {
		if len(k) > maxSuggest || max(len(k)-len(name), len(name)-len(k)) >= least {
			continue
		}
		if d := distance(name, k); d < least {
			best, least = k, d
		}
	}
	if best != "" || name == "" {
		return best
	}
	for _, k := range known {
		if strings.HasPrefix(k, name) {
			if best != "" {
				return ""
			}
			best = k
		}
	}
	return best
}

// distance is how many octets to insert, delete, replace or swap with a neighbour to turn a
// to b (optimal string alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := last[j]
			if a[i] != b[j] {
				cost = 1 + min(last[j], last[j+1], row[j])
			}
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				cost = min(cost, before[j-1]+1)
			}
			row[j+1] = cost
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
