// Package api is the HTTP API of a node as Go sees it: the values that travel as JSON, and
// a client. The paths are those of package admin.
//
// Explanations, health, objects and spans travel as the types of gslb, health, config and
// tracing themselves; here is what the API adds to them.
package api

import (
	"net/netip"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/health"
	"github.com/meridian-gslb/meridian/tracing"
)

// Limits of what a node reads.
const (
	MaxApply = 8 << 20  // octets of an apply: zone files travel in it
	MaxBody  = 64 << 10 // octets of any other body of ours
	MaxOTLP  = 4 << 20  // octets of one export of spans, as sent
)

// Body is what a node calls what it was sent where others name a file: in the faults of objects.
const Body = "body"

// Heartbeat is the longest silence on a stream of assignments: a reader that hears nothing
// for two of them should connect again.
const Heartbeat = 10 * time.Second

// Problem is the body of every answer that is not a success.
type Problem struct {
	Error  string   `json:"error"`            // what is wrong, with the offending value
	Hint   string   `json:"hint,omitempty"`   // what to do next
	Faults []string `json:"faults,omitempty"` // each fault of a configuration that was refused
}

// Node says which process answers.
type Node struct {
	Name    string           `json:"name"`
	Site    string           `json:"site"`
	Version string           `json:"version"`
	Started time.Time        `json:"started,omitzero"`
	DNS     []netip.AddrPort `json:"dns,omitempty"`
}

// The states of a node.
const (
	StateOK       = "ok"
	StateDegraded = "degraded"  // it answers, and someone should look: Status.Reasons
	StateNotReady = "not ready" // it does not answer for its services
)

// Status is how a node is.
type Status struct {
	Node     Node      `json:"node"`
	Time     time.Time `json:"time"` // the node's clock
	State    string    `json:"state"`
	Reasons  []string  `json:"reasons,omitempty"` // why State is not ok
	Revision uint64    `json:"revision"`          // of the snapshot; 0: none
	Plan     string    `json:"plan,omitempty"`
	Store    *Store    `json:"store,omitempty"` // nil: the file is all there is
	Services []Service `json:"services"`
	Pools    []Pool    `json:"pools"`
	Members  []Member  `json:"members,omitempty"` // of the gossip, this node included
	Traffic  *Counters `json:"traffic,omitempty"`
}

// Store says how the store of the objects is.
type Store struct {
	Mode        string    `json:"mode"`                // file, embedded or external
	Connected   bool      `json:"connected"`           // etcd is followed; false with the mode file
	Revision    int64     `json:"revision"`            // of the objects that are served; 0: from file
	FromDisk    bool      `json:"fromDisk,omitempty"`  // they are the last known good ones: etcd was not heard since the start
	LastChange  time.Time `json:"lastChange,omitzero"` // when they last changed
	LastContact time.Time `json:"lastContact,omitzero"`
	Held        string    `json:"held,omitempty"`      // why what etcd holds waits for a confirmation
	Error       string    `json:"error,omitempty"`     // the last one of etcd, until it is heard again
	DiskError   string    `json:"diskError,omitempty"` // the last one of the snapshot on disk
	Faults      []string  `json:"faults,omitempty"`    // objects that are not served, for they do not validate
}

// Service is a steered name.
type Service struct {
	Name  string   `json:"name"`
	Pools []string `json:"pools"` // ordered by name
}

// Pool is a pool in the snapshot that is served.
type Pool struct {
	Name      string     `json:"name"`
	Site      string     `json:"site"`
	Healthy   float64    `json:"healthy"` // share of endpoint weight that is usable, 0..1
	Degraded  bool       `json:"degraded,omitempty"`
	Drained   bool       `json:"drained,omitempty"`
	Drain     *Drain     `json:"drain,omitempty"`
	Endpoints []Endpoint `json:"endpoints"`
}

// Drain says who took a pool or an endpoint out of new answers, and why.
type Drain struct {
	State  string    `json:"state"` // drain, down or up
	Author string    `json:"author"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	Until  time.Time `json:"until,omitzero"` // zero: until it is taken back
}

// Endpoint is one address of a pool.
type Endpoint struct {
	Addr    netip.Addr `json:"addr"`
	Port    uint16     `json:"port,omitempty"`
	Weight  int        `json:"weight"`
	Verdict string     `json:"verdict"` // up, down, unknown
	Drained bool       `json:"drained,omitempty"`
	Forced  bool       `json:"forced,omitempty"` // the verdict was set by an operator
}

// Member is one node of the gossip.
type Member struct {
	Name  string `json:"name"`
	Site  string `json:"site,omitempty"`
	Addr  string `json:"addr,omitempty"`
	State string `json:"state"` // self, alive, silent (a member that is not heard) or gone

	Role     string `json:"role,omitempty"`     // full, prober or answer
	Plan     string `json:"plan,omitempty"`     // that it serves, as it says
	Abstains bool   `json:"abstains,omitempty"` // it is not believed: cut off, or most of what it tests fails
	Key      string `json:"key,omitempty"`      // of this node: what it signs with, for objects of nodes
}

// Counters is what the DNS server has counted since it started. Every figure only grows, so
// that two of them give a rate.
type Counters struct {
	Time       time.Time         `json:"time"`
	Queries    uint64            `json:"queries"`              // by every transport
	Transports map[string]uint64 `json:"transports,omitempty"` // queries: udp, tcp
	Rcodes     map[string]uint64 `json:"rcodes,omitempty"`     // replies: NOERROR, NXDOMAIN …
	Outcomes   map[string]uint64 `json:"outcomes,omitempty"`   // resolved queries: hit, steered, referral …
	Reasons    map[string]uint64 `json:"reasons,omitempty"`    // decisions: policy, failover …
	Dropped    map[string]uint64 `json:"dropped,omitempty"`    // queries without a reply, by cause
	Events     map[string]uint64 `json:"events,omitempty"`     // what else is worth counting: truncated, malformed …
	Answers    []Answers         `json:"answers"`              // decisions, ordered by service, pool and reason
}

// Answers counts the decisions of one service for one pool and one reason. An empty pool counts
// those that named none (fallback, SERVFAIL), an empty service those of what is gone, and what is
// too many to be counted by name.
type Answers struct {
	Service string `json:"service"`
	Pool    string `json:"pool"`
	Reason  string `json:"reason"`
	Count   uint64 `json:"count"`
}

// Explanation is a decision and all that led to it. Answers holds only the family of Type,
// and both when Type is empty.
type Explanation struct {
	gslb.Explanation
	Type string `json:"type,omitempty"` // A, AAAA or empty
}

// Objects are the objects that a node serves, and the store's revision that they were read at.
type Objects struct {
	Revision int64           `json:"revision"`
	Objects  *config.Objects `json:"objects"`
}

// ApplyOptions says how to apply objects.
type ApplyOptions struct {
	Author string // who, for the history; required by changes of states
	DryRun bool   // check and compare only
	Prune  bool   // delete what the new objects do not hold; states are never pruned
	Force  bool   // write even what would leave a service without any endpoint
	At     int64  // refuse when a touched object is newer than this revision of the store; 0: do not guard
}

// Applied is what a change did, or would do.
type Applied struct {
	Revision int64           `json:"revision"` // of the store, after the change; before it with DryRun or without a change
	DryRun   bool            `json:"dryRun,omitempty"`
	Diff     []config.Change `json:"diff"`              // Before and After are objects, or as JSON decodes them
	Refused  string          `json:"refused,omitempty"` // with DryRun: why it would be refused without force
}

// DrainRequest drains a pool, or one endpoint of it; undrain reads Author and Endpoint only.
type DrainRequest struct {
	Author   string     `json:"author"`
	Reason   string     `json:"reason,omitempty"`
	Endpoint netip.Addr `json:"endpoint,omitzero"` // zero: the whole pool
	Until    time.Time  `json:"until,omitzero"`    // zero: until it is taken back
	Force    bool       `json:"force,omitempty"`
}

// WeightRequest sets the weight of a pool in one service, or in every service that names it.
type WeightRequest struct {
	Author  string `json:"author"`
	Weight  int    `json:"weight"` // 0..65535; 0 is never
	Service string `json:"service,omitempty"`
	Force   bool   `json:"force,omitempty"`
}

// Health is what a node knows of endpoints and of its peers.
type Health struct {
	Endpoints []health.View `json:"endpoints"`
	Members   []Member      `json:"members,omitempty"`
}

// Assignment is one line of the stream of a pool's assignments: where its proxies send
// requests next. A line with Heartbeat set repeats nothing and changes nothing.
type Assignment struct {
	Heartbeat bool   `json:"heartbeat,omitempty"`
	Pool      string `json:"pool"`
	Revision  uint64 `json:"revision"` // of the snapshot
	Plan      string `json:"plan,omitempty"`
	Hops      []Hop  `json:"hops,omitempty"` // best group first; none: the pool has no upstream
}

// Hop is gslb.Hop as it travels: a group of endpoints, used only when those of a lower
// priority have nothing healthy left.
type Hop struct {
	Pool      string     `json:"pool"`
	Site      string     `json:"site"`
	Weight    int        `json:"weight"`
	Priority  int        `json:"priority"` // 0 is best; equal priorities share by weight
	Endpoints []Endpoint `json:"endpoints"`
}

// Load is what one proxy did in one interval: it counts, the node adds up.
type Load struct {
	Proxy     string         `json:"proxy"`   // unique in its pool
	Pool      string         `json:"pool"`    // the pool that the proxy belongs to
	Seconds   float64        `json:"seconds"` // length of the interval, over 0 and up to 3600
	Requests  uint64         `json:"requests"`
	Errors    uint64         `json:"errors"`   // answered 5xx by the proxy or by what is behind it; at most Requests
	InFlight  uint64         `json:"inFlight"` // at the end of the interval
	Upstreams []UpstreamLoad `json:"upstreams,omitempty"`
	RTTs      []RTTSample    `json:"rtts,omitempty"` // of the connections of users, by prefix; at most MaxRTTs
}

// MaxRTTs bounds the samples of one report.
const MaxRTTs = 500

// RTTSample is the mean round-trip time between the clients of a prefix and a pool.
type RTTSample struct {
	Client  netip.Prefix `json:"client"`  // counted under its /24 or /48 if it is longer
	Millis  float64      `json:"ms"`      // over 0, up to 60000
	Samples int          `json:"samples"` // that it is the mean of: 1..1000000
}

// RTTReport is what anybody but our own proxies reports of users' round-trip times.
type RTTReport struct {
	Pool string      `json:"pool"`
	RTTs []RTTSample `json:"rtts"` // at most MaxRTTs
}

// RTTs is what a node knows of round-trip times.
type RTTs struct {
	Used bool       `json:"used"` // a stage asks for them; otherwise they are only gathered
	Rows []RTTRow   `json:"rows"` // ordered by client, then pool
	Seen RTTSources `json:"seen"`
}

// RTTRow is one of them. Source is proxies, beacons, peers or probes; what several know is mixed.
type RTTRow struct {
	Client  netip.Prefix `json:"client"`
	Pool    string       `json:"pool"`
	Millis  float64      `json:"ms"`
	Samples int          `json:"samples"`
	Last    time.Time    `json:"last"` // of the last sample
	Source  string       `json:"source"`
}

// RTTSources counts the samples of each kind that were taken and refused since the start.
type RTTSources struct {
	Proxies uint64 `json:"proxies"`
	Beacons uint64 `json:"beacons"`
	Refused uint64 `json:"refused"` // beacons over the rate, or that make no sense
}

// UpstreamLoad is the part of a Load that went to one pool.
type UpstreamLoad struct {
	Pool     string `json:"pool"`
	Requests uint64 `json:"requests"`
	Errors   uint64 `json:"errors"`
	InFlight uint64 `json:"inFlight"`

	Metrics map[string]float64 `json:"-"` // what the endpoints say of themselves (ORCA); for load reports over LRS
}

// Loads are the last report of each proxy that still reports.
type Loads struct {
	Loads []ReceivedLoad `json:"loads"` // ordered by pool, then proxy
}

// ReceivedLoad is a Load and when it came.
type ReceivedLoad struct {
	Load
	Received time.Time `json:"received"`
}

// Traces are the last traces of a node, the newest first.
type Traces struct {
	Traces []tracing.Summary `json:"traces"`
}

// Trace is one trace: its spans in the order of their start, parents first.
type Trace struct {
	ID     tracing.TraceID `json:"id"`
	Spans  []tracing.Span  `json:"spans"`
	Linked []tracing.Span  `json:"linked,omitempty"` // of the traces that it is linked to, either way
	Tree   []string        `json:"tree,omitempty"`   // all of them as "gslbctl trace" draws them
	Rows   []tracing.Row   `json:"rows,omitempty"`   // the same, a line each
}

// TraceFilter selects traces. What is left out matches all.
type TraceFilter struct {
	Name   string    // the name asked for
	Client string    // address or prefix that the client's overlaps
	Since  time.Time // started then or later
	Limit  int       // at most so many, 1..1000; 0: 20
}
