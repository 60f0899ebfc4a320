package proxy

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/tracing"
)

// Figures are what was asked of something since the proxy started, and how it went.
// Issued = Success + Error + InProgress.
type Figures struct {
	Issued     uint64  `json:"issued"`
	Success    uint64  `json:"success"`
	Error      uint64  `json:"error"` // no answer, a broken one or a status of 5xx
	InProgress uint64  `json:"inProgress"`
	RPS        float64 `json:"rps"` // issued a second, over the last report interval
}

// PeerLoad is the load that a proxy puts on one endpoint of an upstream pool.
type PeerLoad struct {
	Pool    string         `json:"pool"`
	Site    string         `json:"site,omitempty"`
	Addr    netip.AddrPort `json:"addr"`
	Ejected bool           `json:"ejected,omitempty"`
	Figures
}

// PoolLoad is the load that a proxy puts on one upstream pool, with the endpoints that it
// has no more.
type PoolLoad struct {
	Pool    string             `json:"pool"`
	Site    string             `json:"site,omitempty"`    // the locality of every endpoint of the pool
	Metrics map[string]float64 `json:"metrics,omitempty"` // what endpoints say of themselves out of band, mean by endpoints
	Figures

	said map[string]tally // in answers, since the proxy started
}

// Load is what a proxy has done since Since.
type Load struct {
	Pool     string    `json:"pool"` // whose proxy it is
	Proxy    string    `json:"proxy"`
	Site     string    `json:"site,omitempty"`
	Since    time.Time `json:"since"`
	Revision uint64    `json:"revision"` // of the assignment in use; 0: none
	Plan     string    `json:"plan,omitempty"`
	Source   string    `json:"source"` // "ok", or why assignments do not come
	Draining bool      `json:"draining,omitempty"`

	Requests  Figures    `json:"requests"` // of users
	Pools     []PoolLoad `json:"pools"`    // ordered by name
	Endpoints []PeerLoad `json:"endpoints"`

	Links *tracing.LinkStats `json:"links,omitempty"` // of requests to answers; nil: they are not linked
}

// rate is a figure per second, as of the last time that it was measured. Only one goroutine
// measures; any may read.
type rate struct {
	last uint64 // of the counter, at the last measurement
	bits atomic.Uint64
}

func (r *rate) measure(count uint64, elapsed time.Duration) {
	r.bits.Store(math.Float64bits(float64(count-r.last) / elapsed.Seconds()))
	r.last = count
}

func (r *rate) value() float64 { return math.Float64frombits(r.bits.Load()) }

func figures(c *counts, r *rate) Figures {
	f := Figures{Success: c.success.Load(), Error: c.errors.Load(), RPS: r.value()}
	f.Issued = c.issued.Load() // last, so that nothing is done before it was issued
	f.InProgress = f.Issued - f.Success - f.Error
	return f
}

// since is what the next report says: the difference of now to what the last one that was
// taken had said. A request counts in the interval in which it ended, so that there are
// never more errors than requests.
func since(taken, now Load, elapsed time.Duration) api.Load {
	out := api.Load{
		Proxy:    now.Proxy,
		Pool:     now.Pool,
		Seconds:  min(elapsed.Seconds(), 3600), // the most that a node takes
		Requests: now.Requests.done() - taken.Requests.done(),
		Errors:   now.Requests.Error - taken.Requests.Error,
		InFlight: now.Requests.InProgress,
	}
	for _, p := range now.Pools {
		var before PoolLoad
		if i, ok := slices.BinarySearchFunc(taken.Pools, p.Pool, comparePool); ok {
			before = taken.Pools[i]
		}
		metrics := p.Metrics // out of band, where that is asked for
		if metrics == nil {
			metrics = meansSince(before.said, p.said)
		}
		out.Upstreams = append(out.Upstreams, api.UpstreamLoad{
			Pool:     p.Pool,
			Requests: p.done() - before.done(),
			Errors:   p.Error - before.Error,
			InFlight: p.InProgress,
			Metrics:  metrics,
		})
	}
	return out
}

func (f Figures) done() uint64 { return f.Success + f.Error }

func comparePool(p PoolLoad, name string) int { return cmp.Compare(p.Pool, name) }
