package admin

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
)

// Bounds of what a proxy may claim. Beyond them a report is a fault, not load.
const (
	maxInterval  = 3600 // seconds
	maxRate      = 1e7  // requests per second of one proxy
	maxInFlight  = 10_000_000
	maxUpstreams = 256
	maxName      = 253 // octets of a proxy's name
)

// checkLoad says what is wrong with l, for the pools of snap.
func checkLoad(l *api.Load, snap *gslb.Snapshot) error {
	switch {
	case l.Proxy == "" || len(l.Proxy) > maxName:
		return fmt.Errorf("proxy %q: expected a name of 1..%d octets", clip(l.Proxy), maxName)
	case !(l.Seconds > 0 && l.Seconds <= maxInterval):
		return fmt.Errorf("seconds %v: expected over 0, up to %d", l.Seconds, maxInterval)
	case len(l.Upstreams) > maxUpstreams:
		return fmt.Errorf("%d upstreams: expected up to %d", len(l.Upstreams), maxUpstreams)
	}
	if err := checkCounts("", l.Requests, l.Errors, l.InFlight, l.Seconds); err != nil {
		return err
	}
	if err := CheckRTTs(l.RTTs); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, u := range l.Upstreams {
		if snap.Pool(u.Pool) == nil || seen[u.Pool] {
			return fmt.Errorf("upstream %q: expected each a pool, once", clip(u.Pool))
		}
		seen[u.Pool] = true
		if err := checkCounts("upstream "+u.Pool+": ", u.Requests, u.Errors, u.InFlight, l.Seconds); err != nil {
			return err
		}
	}
	return nil
}

func checkCounts(where string, requests, errors, inFlight uint64, seconds float64) error {
	switch {
	case float64(requests) > maxRate*max(seconds, 1):
		return fmt.Errorf("%srequests %d in %v s: expected up to %.0f a second", where, requests, seconds, maxRate)
	case errors > requests:
		return fmt.Errorf("%serrors %d: expected at most the %d requests", where, errors, requests)
	case inFlight > maxInFlight:
		return fmt.Errorf("%sinFlight %d: expected up to %d", where, inFlight, maxInFlight)
	}
	return nil
}

// Bounds of round-trip times that are believed.
const (
	maxRTT        = 60_000 // ms
	maxRTTSamples = 1_000_000
)

// CheckRTTs says what is wrong with the round-trip times of a report.
func CheckRTTs(rtts []api.RTTSample) error {
	if len(rtts) > api.MaxRTTs {
		return fmt.Errorf("%d round-trip times: expected up to %d", len(rtts), api.MaxRTTs)
	}
	for _, r := range rtts {
		if _, ok := gslb.RTTPrefix(r.Client); !ok {
			return fmt.Errorf("rtt of client %q: expected a prefix such as 198.51.100.0/24", r.Client)
		}
		if !(r.Millis > 0 && r.Millis <= maxRTT) || r.Samples < 1 || r.Samples > maxRTTSamples {
			return fmt.Errorf("rtt of client %s: %v ms of %d samples: expected over 0, up to %d ms, of 1..%d samples", r.Client, r.Millis, r.Samples, maxRTT, maxRTTSamples)
		}
	}
	return nil
}

// clip cuts text from outside for a message.
func clip(s string) string { return s[:min(len(s), 255)] }

// load takes the report of a proxy.
func (s *Server) load(w http.ResponseWriter, r *http.Request) {
	var l api.Load
	if !decode(w, r, &l) {
		return
	}
	snap, ok := s.snapshot(w)
	if !ok {
		return
	}
	if snap.Pool(l.Pool) == nil {
		unknown(w, "pool", clip(l.Pool), poolNames(snap))
		return
	}
	if err := checkLoad(&l, snap); err != nil {
		fail(w, http.StatusBadRequest, "load report: "+err.Error(), "")
		return
	}
	rtts := l.RTTs
	l.RTTs = nil // they are no load to be kept
	if !s.loads.put(l, s.o.Now()) {
		fail(w, http.StatusServiceUnavailable, fmt.Sprintf("%d proxies report here already", maxLoads), "report to another node")
		return
	}
	if s.o.OnLoad != nil {
		s.o.OnLoad(l)
	}
	if s.o.OnRTTs != nil && len(rtts) > 0 {
		s.o.OnRTTs(l.Pool, rtts)
	}
	w.WriteHeader(http.StatusNoContent)
}

// reportRTTs takes round-trip times from who is no proxy of ours.
func (s *Server) reportRTTs(w http.ResponseWriter, r *http.Request) {
	var report api.RTTReport
	if !decode(w, r, &report) {
		return
	}
	snap, ok := s.snapshot(w)
	if !ok {
		return
	}
	if snap.Pool(report.Pool) == nil {
		unknown(w, "pool", clip(report.Pool), poolNames(snap))
		return
	}
	if err := CheckRTTs(report.RTTs); err != nil {
		fail(w, http.StatusBadRequest, err.Error(), "")
		return
	}
	if s.o.OnRTTs != nil && len(report.RTTs) > 0 {
		s.o.OnRTTs(report.Pool, report.RTTs)
	}
	w.WriteHeader(http.StatusNoContent)
}

// showRTTs answers what is known of round-trip times.
func (s *Server) showRTTs(w http.ResponseWriter, _ *http.Request) {
	out := api.RTTs{}
	if s.o.RTTs != nil {
		out = s.o.RTTs()
	}
	if out.Rows == nil {
		out.Rows = []api.RTTRow{}
	}
	reply(w, out)
}

// showLoads answers the last report of each proxy.
func (s *Server) showLoads(w http.ResponseWriter, _ *http.Request) {
	reply(w, api.Loads{Loads: s.loads.list(s.o.Now())})
}

// loads keeps the last report of each proxy for a while.
type loads struct {
	limit int
	age   time.Duration

	mu   sync.Mutex
	last map[loadKey]api.ReceivedLoad
}

type loadKey struct{ pool, proxy string }

func newLoads(limit int, age time.Duration) *loads {
	return &loads{limit: limit, age: age, last: map[loadKey]api.ReceivedLoad{}}
}

// put keeps l in the place of its proxy's last report, and tells whether there was room.
func (t *loads) put(l api.Load, now time.Time) bool {
	key := loadKey{l.Pool, l.Proxy}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.last[key]; !known && len(t.last) >= t.limit {
		t.expireLocked(now)
		if len(t.last) >= t.limit {
			return false
		}
	}
	t.last[key] = api.ReceivedLoad{Load: l, Received: now}
	return true
}

// list returns what is not too old, ordered by pool, then proxy.
func (t *loads) list(now time.Time) []api.ReceivedLoad {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked(now)
	out := make([]api.ReceivedLoad, 0, len(t.last))
	for _, l := range t.last {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b api.ReceivedLoad) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Proxy, b.Proxy))
	})
	return out
}

func (t *loads) expireLocked(now time.Time) {
	for key, l := range t.last {
		if now.Sub(l.Received) > t.age {
			delete(t.last, key)
		}
	}
}
