package xds

import (
	"bytes"
	"cmp"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math"
	"slices"
	"time"
)

// A proxy reports to one config server. So that every node sees the load of the fleet, each
// tells the others what it hears; how that travels is not the business of this package.

// Bounds of what nodes tell each other.
const (
	shareVersion   = 1
	maxShare       = 4 << 20 // octets of a share before it is compressed
	maxShareFlows  = 4096
	maxSharePools  = 1024
	sharedProxies  = 4096 // proxies that are named: the others count, but are not found elsewhere
	maxSharedOwner = 256  // octets of a name
)

// Told is what another node said that it hears.
type Told struct {
	Node string
	At   time.Time // when it said so, by this node's clock
	Data []byte    // what its Share returned; must not change
}

// share is the load that one node hears of, as JSON.
type share struct {
	Version int                  `json:"v"`
	Pools   map[string]sharePool `json:"p"`
}

type sharePool struct {
	Proxies []byte      `json:"p,omitempty"` // four octets for each that reports now: its hash
	Flows   []shareFlow `json:"f,omitempty"`
}

type shareFlow struct {
	Upstream   string             `json:"u"`
	To         string             `json:"t"`
	Proxies    int                `json:"n"`
	Frozen     int                `json:"z,omitempty"`
	AgeMS      int64              `json:"a"`
	Rate       float64            `json:"r"`
	Errors     float64            `json:"e,omitempty"`
	Dropped    float64            `json:"d,omitempty"`
	InProgress float64            `json:"i,omitempty"`
	Metrics    map[string]float64 `json:"m,omitempty"`
}

// heard is the share of another node, read.
type heard struct {
	at    time.Time
	share share
	fault string // why it was not believed; then share is empty
}

// Share returns what this server hears, for others to Hear, in at most limit octets: flows
// with the least load are left out first, and left says how many were. It is nil while no
// proxy ever reported here.
func (s *Server) Share(limit int) (b []byte, left int) {
	if reports, _ := s.loads.counts(); reports == 0 {
		return nil, 0
	}
	loads := s.loads.list(s.o.Now())
	slices.SortStableFunc(loads, func(a, b Load) int { return cmp.Compare(b.Rate+b.Dropped, a.Rate+a.Dropped) })
	proxies := s.loads.reporting(s.o.Now())
	for n := min(len(loads), maxShareFlows); ; n = n * 3 / 4 {
		sh := share{Version: shareVersion, Pools: map[string]sharePool{}}
		for pool, hashes := range proxies {
			sh.Pools[pool] = sharePool{Proxies: hashes}
		}
		for _, l := range loads[:n] {
			p := sh.Pools[l.From]
			p.Flows = append(p.Flows, shareFlow{
				Upstream: l.Upstream, To: l.To, Proxies: l.Proxies, Frozen: l.Frozen, AgeMS: l.Age.Milliseconds(),
				Rate: grain(l.Rate), Errors: grain(l.Errors), Dropped: grain(l.Dropped), InProgress: grain(l.InProgress), Metrics: l.Metrics,
			})
			sh.Pools[l.From] = p
		}
		if b = sh.encode(); len(b) <= limit || n == 0 && proxies == nil {
			return b, len(loads) - n
		}
		if n == 0 {
			proxies = nil
		}
	}
}

// grain rounds to thousandths, which are shorter to write.
func grain(v float64) float64 { return math.Round(v*1000) / 1000 }

func (sh *share) encode() []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	if err == nil {
		err = json.NewEncoder(w).Encode(sh)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(fmt.Sprintf("xds: a share that is not JSON: %v", err)) // ours, always
	}
	return b.Bytes()
}

// decodeShare reads what encode wrote. Everything in it is within its bounds.
func decodeShare(b []byte) (share, error) {
	var sh share
	text, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), maxShare+1))
	if err != nil {
		return share{}, err
	}
	if len(text) > maxShare {
		return share{}, fmt.Errorf("over %d octets", maxShare)
	}
	if err := json.Unmarshal(text, &sh); err != nil {
		return share{}, err
	}
	if sh.Version != shareVersion {
		return share{}, fmt.Errorf("version %d; expected %d", sh.Version, shareVersion)
	}
	if len(sh.Pools) > maxSharePools {
		return share{}, fmt.Errorf("%d pools; expected at most %d", len(sh.Pools), maxSharePools)
	}
	flows := 0
	for name, p := range sh.Pools {
		if len(p.Proxies)%4 != 0 || len(p.Proxies) > 4*maxReporters {
			return share{}, fmt.Errorf("pool %.64q: %d octets of proxies", name, len(p.Proxies))
		}
		for _, f := range p.Flows {
			if flows++; flows > maxShareFlows {
				return share{}, fmt.Errorf("over %d flows", maxShareFlows)
			}
			if err := f.check(); err != nil {
				return share{}, fmt.Errorf("pool %.64q, upstream %.64q to %.64q: %w", name, f.Upstream, f.To, err)
			}
		}
	}
	return sh, nil
}

func (f *shareFlow) check() error {
	if f.Proxies < 0 || f.Proxies > maxReporters || f.Frozen < 0 || f.Frozen > f.Proxies || f.AgeMS < 0 || f.AgeMS > forgetAfter.Milliseconds()*2 {
		return fmt.Errorf("%d proxies, %d frozen, %d ms old", f.Proxies, f.Frozen, f.AgeMS)
	}
	if len(f.Metrics) > maxMetrics {
		return errors.New("too many metrics")
	}
	most := float64(max(1, f.Proxies))
	for what, v := range map[string]float64{"rate": f.Rate / maxRate, "errors": f.Errors / maxRate, "dropped": f.Dropped / maxRate, "in progress": f.InProgress / maxInProgress} {
		if !(v >= 0 && v <= most*1.001) {
			return fmt.Errorf("%s out of bounds", what)
		}
	}
	for name, v := range f.Metrics {
		if len(name) > maxSharedOwner || !(v >= 0 && v <= maxMetric) {
			return fmt.Errorf("metric %.64q out of bounds", name)
		}
	}
	return nil
}

// proxyHash names a proxy in a share.
func proxyHash(k reporterKey) uint32 {
	h := fnv.New32a()
	io.WriteString(h, k.pool)
	h.Write([]byte{0})
	io.WriteString(h, k.id)
	return h.Sum32()
}

// Hear takes what all other nodes told, in place of what it heard before. A proxy that has
// gone from here to another node counts there.
func (s *Server) Hear(all []Told) {
	s.heardMu.Lock()
	defer s.heardMu.Unlock()
	now := map[string]heard{}
	for _, t := range all {
		h, ok := s.heard[t.Node]
		if !ok || !h.at.Equal(t.At) {
			h = heard{at: t.At}
			var err error
			if h.share, err = decodeShare(t.Data); err != nil {
				h.fault = err.Error()
			}
		}
		now[t.Node] = h
	}
	s.heard = now
	s.loads.release(s.elsewhereLocked(""), s.o.Now())
}

// elsewhereLocked returns the proxies that report now to other nodes than that one, as they
// say.
func (s *Server) elsewhereLocked(than string) map[uint32]bool {
	out := map[uint32]bool{}
	for name, h := range s.heard {
		if name == than || s.silent(h.at) {
			continue
		}
		for _, p := range h.share.Pools {
			for i := 0; i+4 <= len(p.Proxies); i += 4 {
				out[binary.BigEndian.Uint32(p.Proxies[i:])] = true
			}
		}
	}
	return out
}

// silent reports whether who spoke last at that time is silent. Notes travel with a
// heartbeat, so they are given one interval more than proxies.
func (s *Server) silent(at time.Time) bool {
	return s.o.Now().Sub(at) > (silentAfter+1)*s.loads.interval
}

// addHeard adds what other nodes told to own, of flows that the configuration has. What a
// silent node heard is frozen, but for the proxies that report to another node by now.
func (s *Server) addHeard(own []Load) []Load {
	s.heardMu.Lock()
	defer s.heardMu.Unlock()
	w := s.world.Load()
	if len(s.heard) == 0 || w == nil || w.objects == nil {
		return own
	}
	type key struct{ from, upstream, to string }
	sums := map[key]*Load{}
	for i := range own {
		sums[key{own[i].From, own[i].Upstream, own[i].To}] = &own[i]
	}
	here := s.loads.reporting(s.o.Now())
	for _, name := range slices.Sorted(maps.Keys(s.heard)) {
		h := s.heard[name]
		age := s.o.Now().Sub(h.at)
		if age > forgetAfter {
			continue
		}
		silent := s.silent(h.at)
		var elsewhere map[uint32]bool
		if silent {
			elsewhere = s.elsewhereLocked(name)
			for _, hashes := range here {
				for i := 0; i+4 <= len(hashes); i += 4 {
					elsewhere[binary.BigEndian.Uint32(hashes[i:])] = true
				}
			}
		}
		for from, p := range h.share.Pools {
			left := 1.0 // of the pool's proxies: those that are nowhere else
			if silent && len(p.Proxies) > 0 {
				gone := 0
				for i := 0; i+4 <= len(p.Proxies); i += 4 {
					if elsewhere[binary.BigEndian.Uint32(p.Proxies[i:])] {
						gone++
					}
				}
				left = 1 - float64(gone)/float64(len(p.Proxies)/4)
			}
			upstreams := w.objects.Pools[from].Upstreams()
			for _, f := range p.Flows {
				if _, ok := upstreams[f.Upstream].Pools[f.To]; !ok || left == 0 {
					continue
				}
				k := key{from, f.Upstream, f.To}
				l := sums[k]
				if l == nil {
					l = &Load{From: from, Upstream: f.Upstream, To: f.To}
					sums[k] = l
				}
				n := int(math.Round(float64(f.Proxies) * left))
				l.Proxies += n
				if silent {
					l.Frozen += n
				} else {
					l.Frozen += f.Frozen
				}
				l.mix(f.Metrics, f.Rate*left)
				l.Rate += f.Rate * left
				l.Errors += f.Errors * left
				l.Dropped += f.Dropped * left
				l.InProgress += f.InProgress * left
				l.Age = max(l.Age, age+time.Duration(f.AgeMS)*time.Millisecond)
				l.Nodes++
			}
		}
	}
	out := make([]Load, 0, len(sums))
	for _, l := range sums {
		out = append(out, *l)
	}
	slices.SortFunc(out, compareLoads)
	return out
}

// mix adds what endpoints say of themselves, mean over requests, before the rate that it is
// of is added.
func (l *Load) mix(metrics map[string]float64, rate float64) {
	for name, v := range metrics {
		old, known := l.Metrics[name]
		if !known && len(l.Metrics) >= maxMetrics {
			continue
		}
		if l.Metrics == nil {
			l.Metrics = map[string]float64{}
		}
		if total := l.Rate + rate; total > 0 {
			l.Metrics[name] = (old*l.Rate + v*rate) / total
		} else {
			l.Metrics[name] = max(old, v)
		}
	}
}

func compareLoads(a, b Load) int {
	return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.Upstream, b.Upstream), cmp.Compare(a.To, b.To))
}

// heardFaults says which other nodes were not believed.
func (s *Server) heardFaults() []LoadFault {
	s.heardMu.Lock()
	defer s.heardMu.Unlock()
	var out []LoadFault
	for _, name := range slices.Sorted(maps.Keys(s.heard)) {
		if h := s.heard[name]; h.fault != "" {
			out = append(out, LoadFault{Proxy: "node " + name, What: h.fault, Last: h.at})
		}
	}
	return out
}

// reporting returns the hashes of the proxies that report now, by pool.
func (t *loads) reporting(now time.Time) map[string][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string][]byte{}
	n := 0
	for k, r := range t.reporters {
		if t.frozen(r, now) {
			continue
		}
		if n++; n > sharedProxies {
			break
		}
		out[k.pool] = binary.BigEndian.AppendUint32(out[k.pool], proxyHash(k))
	}
	return out
}

// release forgets the load of proxies that are silent here and report elsewhere.
func (t *loads) release(elsewhere map[uint32]bool, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, r := range t.reporters {
		if t.frozen(r, now) && len(r.averages) > 0 && elsewhere[proxyHash(k)] {
			r.averages = map[sampleKey]*average{}
		}
	}
}

// frozen reports whether r is silent, so that what it said last stays.
func (t *loads) frozen(r *reporter, now time.Time) bool {
	return !r.connected || now.Sub(r.last) > silentAfter*t.interval
}
