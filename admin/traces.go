package admin

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/tracing"
)

// maxTraces bounds one answer; defaultTraces is what is given unasked.
const (
	maxTraces     = 1000
	defaultTraces = 20
)

// Traces is the memory of the node's traces; *tracing.Memory has it.
type Traces interface {
	Traces(tracing.Filter) []tracing.Summary
	Trace(tracing.TraceID) []tracing.Span
	Linked(tracing.TraceID) []tracing.Span
}

// traces answers the last traces that match, the newest first.
func (s *Server) traces(w http.ResponseWriter, r *http.Request) {
	if !s.remembers(w) {
		return
	}
	q := r.URL.Query()
	f := tracing.Filter{Name: q.Get("name"), Service: q.Get("service"), Pool: q.Get("pool"), Reason: q.Get("reason")}
	limit := defaultTraces
	var client netip.Prefix
	var ok bool
	if f.Errors, ok = flag(w, r, "errors"); !ok {
		return
	}
	for _, p := range []struct {
		name, expect string
		read         func(text string) error
	}{
		{"limit", "1..1000", func(text string) (err error) {
			if limit, err = strconv.Atoi(text); err == nil && (limit < 1 || limit > maxTraces) {
				err = strconv.ErrRange
			}
			return err
		}},
		{"client", "an address or a prefix", func(text string) error {
			c, err := parseClient(text)
			client = netip.PrefixFrom(c.Addr, int(c.Source))
			return err
		}},
		{"since", "a time such as 2006-01-02T15:04:05Z", func(text string) (err error) {
			f.Since, err = time.Parse(time.RFC3339, text)
			return err
		}},
		{"slower", "a duration such as 20ms", func(text string) (err error) {
			f.Slower, err = time.ParseDuration(text)
			return err
		}},
	} {
		if text := q.Get(p.name); text != "" && p.read(text) != nil {
			fail(w, http.StatusBadRequest, fmt.Sprintf("%s=%q", p.name, text), "give "+p.expect)
			return
		}
	}
	if !client.IsValid() {
		f.Limit = limit // otherwise the memory would stop before the client's traces
	}
	found := s.o.Traces.Traces(f)
	if client.IsValid() {
		found = slices.DeleteFunc(found, func(t tracing.Summary) bool {
			p, err := netip.ParsePrefix(t.Client)
			return err != nil || !p.Overlaps(client)
		})
	}
	out := api.Traces{Traces: found[:min(len(found), limit)]}
	if out.Traces == nil {
		out.Traces = []tracing.Summary{}
	}
	reply(w, out)
}

// treeWidth is how many columns the page has for a tree.
const treeWidth = 120

// trace answers the spans of one trace, and what it is linked to.
func (s *Server) trace(w http.ResponseWriter, r *http.Request) {
	if !s.remembers(w) {
		return
	}
	id, err := tracing.ParseTraceID(r.PathValue("id"))
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error(), "see api/v1/traces for the ids")
		return
	}
	spans := s.o.Traces.Trace(id)
	if len(spans) == 0 {
		fail(w, http.StatusNotFound, fmt.Sprintf("no trace %s in this node's memory", id), "it holds the last ones only, of what this node answered or was sent")
		return
	}
	linked := s.o.Traces.Linked(id)
	all := slices.Concat(spans, linked)
	reply(w, api.Trace{ID: id, Spans: spans, Linked: linked, Tree: tracing.Tree(all, tracing.TreeOptions{Width: treeWidth}), Rows: tracing.Rows(all)})
}

// remembers tells whether the node keeps traces; where it does not, that is answered here.
func (s *Server) remembers(w http.ResponseWriter) bool {
	if s.o.Traces == nil {
		fail(w, http.StatusNotFound, "this node keeps no traces", "")
	}
	return s.o.Traces != nil
}

// otlp hands spans from other processes to the receiver.
func (s *Server) otlp(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, api.MaxOTLP)
	s.o.OTLP.ServeHTTP(w, r)
}
