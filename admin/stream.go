package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
)

// stream writes lines of JSON (NDJSON) to one client until it goes or the server ends.
type stream struct {
	w    http.ResponseWriter
	rc   *http.ResponseController
	gone <-chan struct{} // the client's
	done <-chan struct{} // the server's
}

// open starts a stream. Where there are too many it answers so, and ok is false; otherwise
// the caller must call closed.
func (s *Server) open(w http.ResponseWriter, r *http.Request) (st *stream, closed func(), ok bool) {
	closed = func() { s.streams.Add(-1) }
	if s.streams.Add(1) > maxStreams {
		closed()
		w.Header().Set("Retry-After", "10")
		fail(w, http.StatusServiceUnavailable, fmt.Sprintf("%d streams are open", maxStreams), "try again later, or follow another node")
		return nil, nil, false
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // the server's would end the request's context
	return &stream{w: w, rc: rc, gone: r.Context().Done(), done: s.done}, closed, true
}

// line writes v and tells whether the client took it. A client that does not read for
// writeTimeout is gone.
func (st *stream) line(v any) bool {
	b, err := json.Marshal(v)
	if err != nil {
		return false
	}
	// Without deadlines (a recorder in a test) a stream works all the same.
	_ = st.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := st.w.Write(append(b, '\n')); err != nil {
		return false
	}
	return st.rc.Flush() == nil
}

// top answers the counters, once or as a stream.
func (s *Server) top(w http.ResponseWriter, r *http.Request) {
	if s.o.Counters == nil {
		fail(w, http.StatusNotFound, "this node counts no queries", "")
		return
	}
	follow, ok := flag(w, r, "stream")
	if !ok {
		return
	}
	if !follow {
		reply(w, s.o.Counters())
		return
	}
	interval, err := interval(r.URL.Query().Get("interval"))
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error(), "give interval=1s; from 200ms to 1h")
		return
	}
	st, closed, ok := s.open(w, r)
	if !ok {
		return
	}
	defer closed()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for st.line(s.o.Counters()) {
		select {
		case <-tick.C:
		case <-st.gone:
			return
		case <-st.done:
			return
		}
	}
}

// interval reads the time between two lines: default 1 s, kept within 200 ms..1 h.
func interval(text string) (time.Duration, error) {
	if text == "" {
		return time.Second, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("interval %q", text)
	}
	return min(max(d, 200*time.Millisecond), time.Hour), nil
}

// assignments streams where the proxies of a pool send requests: a line at once, one for
// each change, and a heartbeat where nothing changes. A pool that is gone ends the stream.
func (s *Server) assignments(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("pool")
	updated := s.next() // before the snapshot, so that no change falls between
	snap, ok := s.snapshot(w)
	if !ok {
		return
	}
	if snap.Pool(name) == nil {
		unknown(w, "pool", name, poolNames(snap))
		return
	}
	st, closed, ok := s.open(w, r)
	if !ok {
		return
	}
	defer closed()

	beat := time.NewTicker(api.Heartbeat)
	defer beat.Stop()
	last := assignment(snap, name)
	for line := last; st.line(line); {
		select {
		case <-updated:
		case <-beat.C:
		case <-st.gone:
			return
		case <-st.done:
			return
		}
		updated = s.next()
		if snap = s.o.Snapshot(); snap == nil || snap.Pool(name) == nil {
			return
		}
		line = assignment(snap, name)
		if reflect.DeepEqual(line.Hops, last.Hops) {
			line.Heartbeat, line.Hops = true, nil
			continue
		}
		last = line
	}
}

// assignment is what a snapshot says to the proxies of one of its pools.
func assignment(snap *gslb.Snapshot, pool string) api.Assignment {
	a := api.Assignment{Pool: pool, Revision: snap.Revision, Plan: snap.Plan}
	for _, h := range snap.Assign(snap.Pool(pool)) {
		a.Hops = append(a.Hops, api.Hop{
			Pool:      h.Pool,
			Site:      h.Site,
			Weight:    h.Weight,
			Priority:  h.Priority,
			Endpoints: endpoints(h.Endpoints),
		})
	}
	return a
}
