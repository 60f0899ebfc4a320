package xds

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"
)

// tau is the time constant of the averages: a step in the load is seen by two thirds after
// it. Short, since what reacts to it works from the demand and cannot oscillate. A rate that
// grows is believed sooner, and one that grows by more than chance explains at once: an overload
// is worse than a moment of room.
const (
	tau     = 3 * time.Second
	tauRise = time.Second
	surge   = 3.0 // standard deviations of requests that come at random
)

// forgetAfter is how long the last load of a proxy that is gone stays: frozen, since silence
// says nothing of the load; but its users are elsewhere after a while.
const forgetAfter = 2 * time.Minute

// maxReporters bounds how many proxies' loads are kept.
const maxReporters = 8192

// maxFaulty bounds the different faults kept of one proxy.
const maxFaulty = 16

// Load is what the proxies of one pool ask of another, in averages.
type Load struct {
	From       string             `json:"from"`     // pool of the proxies
	Upstream   string             `json:"upstream"` // by which upstream of theirs
	To         string             `json:"to"`       // pool of the endpoints
	Site       string             `json:"site,omitempty"`
	Proxies    int                `json:"proxies"`
	Frozen     int                `json:"frozen,omitempty"` // of them: silent, with their last load
	Rate       float64            `json:"rate"`             // requests per second
	Errors     float64            `json:"errors"`           // per second
	Dropped    float64            `json:"dropped"`          // per second, by drop_overloads
	InProgress float64            `json:"inProgress"`
	Metrics    map[string]float64 `json:"metrics,omitempty"` // what endpoints say of themselves, mean by requests
	Age        time.Duration      `json:"age"`               // of the oldest report in it, in nanoseconds
	Nodes      int                `json:"nodes"`             // other nodes that told a part of it
}

// LoadFault is what a proxy reported and was not believed.
type LoadFault struct {
	Proxy string    `json:"proxy"`
	Pool  string    `json:"pool"`
	What  string    `json:"what"`
	Last  time.Time `json:"last"`
}

// loads keeps the load of every proxy.
type loads struct {
	interval time.Duration // that proxies are asked to report in

	mu        sync.Mutex
	reporters map[reporterKey]*reporter
	reports   uint64
	ignored   uint64
}

type reporterKey struct{ pool, id string }

// reporter is one proxy. Guarded by loads.mu but for its names.
type reporter struct {
	pool, id string

	connected bool
	last      time.Time // of the last report, or when it joined
	averages  map[sampleKey]*average
	faults    map[string]time.Time
	order     []string // of faults: the oldest first
	untimely  int      // reports in a row whose interval is not the one that was asked for
}

// average is the exponentially weighted mean of samples.
type average struct {
	rate, errors, dropped, inProgress float64
	metrics                           map[string]float64
	weight                            float64 // of all samples so far, 0..1: what the means are short of
}

func newLoads(interval time.Duration) *loads {
	return &loads{interval: interval, reporters: map[reporterKey]*reporter{}}
}

// join notes that a proxy reports. One that comes back goes on where it was.
func (t *loads) join(pool, id string, now time.Time) *reporter {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked(now)
	key := reporterKey{pool, id}
	old := t.reporters[key]
	r := &reporter{pool: pool, id: id, connected: true, last: now, averages: map[sampleKey]*average{}, faults: map[string]time.Time{}}
	if old != nil {
		r.averages, r.faults, r.order = old.averages, old.faults, old.order
		old.averages, old.faults = map[sampleKey]*average{}, map[string]time.Time{} // a stream that is still open has no say any more
	}
	if old != nil || len(t.reporters) < maxReporters {
		t.reporters[key] = r
	}
	return r
}

// lose notes that the stream of r ended: its load is frozen.
func (t *loads) lose(r *reporter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r.connected = false
}

// take adds the samples of one report, and says whether the load of some pool grew. What r
// reported before and this report does not name has no load now.
func (t *loads) take(r *reporter, samples map[sampleKey]sample, faults []string, now time.Time) (grew bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reports++
	t.ignored += uint64(len(faults))
	if last := t.reporters[reporterKey{r.pool, r.id}]; last != nil && last != r {
		t.ignored++
		last.fault("another proxy reports under the same node.id: of those only the one that came last counts", now)
		return false
	}
	for _, f := range faults {
		r.fault(f, now)
	}
	seconds := now.Sub(r.last).Seconds()
	for _, s := range samples {
		seconds = s.seconds
		if asked := t.interval.Seconds(); seconds > asked/2 && seconds < 2*asked {
			r.untimely = 0
		} else if r.untimely++; r.untimely >= untimelyAfter {
			r.fault(untimely(seconds, t.interval), now)
		}
		break
	}
	r.last = now
	for key, a := range r.averages {
		if _, ok := samples[key]; !ok {
			a.add(sample{seconds: seconds})
			if a.rate < tiny && a.inProgress < tiny {
				delete(r.averages, key)
			}
		}
	}
	for key, s := range samples {
		a := r.averages[key]
		if a == nil {
			a = &average{}
			r.averages[key] = a
		}
		before := a.rate + a.dropped
		a.add(s)
		grew = grew || a.rate+a.dropped > before
	}
	return grew
}

// untimelyAfter is how many reports in a row must be off for that to be no accident.
const untimelyAfter = 3

// untimely says that a proxy reports in another interval than it was asked for. What it says
// counts all the same, by its own interval. The text is the same for about the same interval.
func untimely(seconds float64, asked time.Duration) string {
	every := asked.Seconds() * math.Exp2(math.Round(math.Log2(seconds/asked.Seconds())))
	return fmt.Sprintf("reports every %v, about: expected every %v, as it was asked to", time.Duration(every*float64(time.Second)).Round(time.Millisecond), asked)
}

// fault notes what r reported and is not believed. loads.mu is held.
func (r *reporter) fault(what string, now time.Time) {
	if _, known := r.faults[what]; !known {
		if len(r.order) >= maxFaulty {
			delete(r.faults, r.order[0])
			r.order = r.order[1:]
		}
		r.order = append(r.order, what)
	}
	r.faults[what] = now
}

// add moves the average towards s, by how long s is. The first samples count in full, so
// that a new proxy's load is not taken for a small one.
func (a *average) add(s sample) {
	k := 1 - math.Exp(-s.seconds/tau.Seconds())
	a.weight += k * (1 - a.weight)
	step := k / max(a.weight, k)
	move := func(v *float64, to float64) { *v += step * (to - *v) }
	switch grown := (s.rate - a.rate) * s.seconds; {
	case grown > surge*math.Sqrt(a.rate*s.seconds+1):
		a.rate = s.rate
	case grown > 0:
		a.rate += max(step, 1-math.Exp(-s.seconds/tauRise.Seconds())) * (s.rate - a.rate)
	default:
		move(&a.rate, s.rate)
	}
	move(&a.errors, s.errors)
	move(&a.dropped, s.dropped)
	move(&a.inProgress, s.inProgress)
	for name, v := range s.metrics { // no request, no word: what was said last stays
		if a.metrics == nil {
			a.metrics = map[string]float64{}
		}
		old, known := a.metrics[name]
		switch {
		case known:
			a.metrics[name] = old + step*(v-old)
		case len(a.metrics) < maxMetrics:
			a.metrics[name] = v
		}
	}
}

func (t *loads) expireLocked(now time.Time) {
	maps.DeleteFunc(t.reporters, func(_ reporterKey, r *reporter) bool {
		return !r.connected && now.Sub(r.last) > forgetAfter
	})
}

// silentAfter is how many intervals without a report freeze a proxy's load although its
// stream is open.
const silentAfter = 3

// list returns the load by pool of proxies, upstream and pool of endpoints, in that order.
func (t *loads) list(now time.Time) []Load {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked(now)
	type key struct{ upstream, to string }
	type sum struct {
		Load
		last *reporter // that was added: it may have several priorities
	}
	pools := map[string]map[key]*sum{}
	for _, r := range t.reporters {
		sums := pools[r.pool]
		if sums == nil {
			sums = map[key]*sum{}
			pools[r.pool] = sums
		}
		age, frozen := now.Sub(r.last), t.frozen(r, now)
		for k, a := range r.averages {
			l := sums[key{k.upstream, k.to}]
			if l == nil {
				l = &sum{Load: Load{From: r.pool, Upstream: k.upstream, To: k.to}}
				sums[key{k.upstream, k.to}] = l
			}
			if l.last != r {
				l.last = r
				l.Proxies++
				if frozen {
					l.Frozen++
				}
			}
			l.Age = max(l.Age, age)
			l.mix(a.metrics, a.rate)
			l.Rate += a.rate
			l.Errors += a.errors
			l.Dropped += a.dropped
			l.InProgress += a.inProgress
		}
	}
	out := []Load{}
	for _, sums := range pools {
		for _, l := range sums {
			out = append(out, l.Load)
		}
	}
	slices.SortFunc(out, compareLoads)
	return out
}

// rates returns the requests per second that each proxy sends, by pool and name.
func (t *loads) rates() map[reporterKey]float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[reporterKey]float64{}
	for k, r := range t.reporters {
		sum := 0.0
		for _, a := range r.averages {
			sum += a.rate
		}
		out[k] = sum
	}
	return out
}

func (t *loads) faults() []LoadFault {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []LoadFault{}
	for _, r := range t.reporters {
		for what, at := range r.faults {
			out = append(out, LoadFault{Proxy: r.id, Pool: r.pool, What: what, Last: at})
		}
	}
	slices.SortFunc(out, func(a, b LoadFault) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Proxy, b.Proxy), cmp.Compare(a.What, b.What))
	})
	return out
}

func (t *loads) counts() (reports, ignored uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reports, t.ignored
}

// Loads returns the load of the fleet by pool of proxies, upstream and pool of endpoints: of
// what is reported here, and of what other nodes told.
func (s *Server) Loads() []Load {
	out := s.addHeard(s.loads.list(s.o.Now()))
	if w := s.world.Load(); w != nil && w.objects != nil {
		for i := range out {
			out[i].Site = w.objects.Pools[out[i].To].Site
		}
	}
	return out
}

// LoadFaults returns what proxies reported, or other nodes told, and was not believed, each
// with when last.
func (s *Server) LoadFaults() []LoadFault { return append(s.loads.faults(), s.heardFaults()...) }

// PoolLoads returns the rates of Loads, as Inputs takes them.
func (s *Server) PoolLoads() []PoolLoad {
	list := s.Loads()
	out := make([]PoolLoad, len(list))
	for i, l := range list {
		out[i] = PoolLoad{From: l.From, Upstream: l.Upstream, To: l.To, Rate: l.Rate + l.Dropped}
	}
	return out
}
