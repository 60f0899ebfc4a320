// Package gslb is the engine: it compiles configuration, geography and state to one
// immutable Snapshot, and decides from it which pool a client should reach. It is pure: it
// has no clock, socket, goroutine or lock, and takes all that changes as plain values.
package gslb

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// Verdict is what the fleet believes of an endpoint.
type Verdict uint8

// The verdicts. Unknown counts as healthy.
const (
	Unknown Verdict = iota
	Up
	Down
)

var verdictNames = [...]string{Unknown: "unknown", Up: "up", Down: "down"}

// String returns "unknown", "up" or "down".
func (v Verdict) String() string { return verdictNames[v] }

// MarshalText writes v as String does.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (v *Verdict) UnmarshalText(b []byte) error {
	i := slices.Index(verdictNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("verdict %q: expected unknown, up or down", b)
	}
	*v = Verdict(i)
	return nil
}

// EndpointID names an endpoint: a pool and the address served.
type EndpointID struct {
	Pool string
	Addr netip.Addr
}

// Client is who asks, for the engine: an address and how much of it is known.
type Client struct {
	Addr   netip.Addr // of the ECS option, or of the resolver; never IPv4-mapped
	Source uint8      // source prefix length in bits (RFC 7871); all bits for a resolver's address
}

// Families are those of addresses, of which an answer mostly wants one.
type Families uint8

// The families.
const (
	IPv4 Families = 1 << iota
	IPv6
)

// Inputs is all that a snapshot is made of. Its maps and what they hold belong to the snapshot
// and stay as they are.
type Inputs struct {
	Revision uint64          // of the snapshot to build; the caller lets it only grow
	Objects  *config.Objects // valid: config.Validate found no fault
	Geo      *geo.Map        // nil: nothing is known of any address
	Verdicts map[EndpointID]Verdict
	Regional map[string]map[EndpointID]Verdict // by region of sites: what its own vantages say, where that is not in Verdicts
	Flipping map[EndpointID]bool               // endpoints whose verdict is about to change: they shorten the TTL
	FlipAt   map[EndpointID]time.Time          // when such a verdict may change at the earliest; missing: not known
	Since    map[EndpointID]time.Time          // when a verdict turned from up to down or back; missing: it never did
	Load     map[string]float64                // by pool: the share of its capacity that is in use, 0..; missing: not known
	Shares   map[string]map[string]float64     // by service, then by pool: what a plan lets the pool take of the clients that would be its own, 0..1
	RTT      *RTTTable                         // measured round-trip times; nil: none
	Names    map[string][]netip.Addr           // what the hostnames of pools resolve to, for a service at the apex of a zone
	Now      time.Time                         // for states that end; see Snapshot.Next
}

// Snapshot is one immutable state of the world, and decides from it. It is safe for
// concurrent use.
type Snapshot struct {
	Revision uint64    // grows with every snapshot of a node
	Plan     string    // content hash of the objects in hex: nodes that agree on it serve the same plan
	Next     time.Time // when a new snapshot is due, for a state ends or is so near its end that TTLs shorten; zero for never
	Geo      *geo.Map

	Services []*Service // ordered by name
	Pools    []*Pool    // ordered by name

	in       Inputs
	states   []orderedState      // of operators that hold now, the strongest last
	worlds   map[string]*world   // geography as the stages see it, by the prefixes that they name
	routings map[string]*routing // by what they depend on, for the next Build to share
	spare    map[string]*routing // those of snapshots before that no service uses now
	refined  map[string]*routing // those that services made of routings, by how

	identify sync.Once // fills id when it is asked for
	id       string
}

// Service is a compiled service.
type Service struct {
	Name  string
	Index int     // in Snapshot.Services
	Pools []*Pool // that it may choose, ordered by name

	HTTPS  *config.HTTPS // how SVCB and HTTPS are answered; nil: from the zone
	SRV    *config.SRV   // how SRV is; nil: from the zone
	V4, V6 bool          // some client gets an address of that family in this snapshot, or a name
	Names  bool          // some client gets a name

	steering steering
	routing  *routing  // from the client's place to the index of an outcome
	outcomes []outcome // what routing's choices mean in this snapshot
	seed     uint64    // of this service's hashes
	sticky4  uint8     // bits of the source prefix that are hashed
	sticky6  uint8
}

// Pool is a compiled pool, with the state of its endpoints in this snapshot.
type Pool struct {
	Name      string
	Index     int // in Snapshot.Pools
	Site      string
	Healthy   float64 // share of endpoint weight that is usable, 0..1
	Degraded  bool    // Healthy is under minHealthy
	Hostname  string  // its name, in answers that want one
	Port      uint16  // of its endpoints by default; 0 when none is declared
	Capacity  float64 // requests per second; 0 is not declared
	Drained   bool
	AnswerIDs bool       // its AAAA answers carry ids
	Endpoints []Endpoint // all, in the order of the configuration

	at               locus     // where it stands
	views            [2]view   // what health says, by what an unknown verdict counts as
	open, last, flat endpoints // to answer with: when all is down; what was healthy until last; what its hostname resolves to
	minHealth        float64
	ramp             float64              // slow start: the share of its clients that it takes, 0..1
	downAt           time.Time            // when its last healthy endpoint went down; zero: not known, or it is not down
	upstreams        map[string]*steering // by name; that of the pool itself is config.DefaultUpstream
	flipping         bool                 // the verdict of an endpoint is about to change
	flipAt           time.Time            // when at the earliest; zero: not known
	ends             time.Time            // when the first state or delay of it or of an endpoint does; zero for never
	steps            time.Time            // when the next step of its slow start comes; zero for never
	none             bool                 // no endpoint has a weight: never answered
	shut             bool                 // an operator forced every endpoint down
	notes            poolNotes            // for people
}

// Endpoint is one address of a pool.
type Endpoint struct {
	Addr    netip.Addr `json:"addr"`
	Port    uint16     `json:"port,omitempty"` // of proxies and probes; 0 when none is declared
	Weight  int        `json:"weight"`         // 0 is never
	Verdict Verdict    `json:"verdict"`
	Drained bool       `json:"drained,omitempty"` // itself; see Pool.Drained for all of them
	Forced  bool       `json:"forced,omitempty"`  // Verdict was set by an operator
}

// Reason says why a decision chose what it chose.
type Reason uint8

// The reasons, in the order in which a reader should worry.
const (
	ReasonPolicy   Reason = iota // the first choice of the policy
	ReasonTrickle                // a trickle: this client is of the share that goes elsewhere
	ReasonOverflow               // the first choice takes only a share of its clients, and not this one
	ReasonFailover               // the first choice was down or drained
	ReasonDegraded               // every pool left is under minHealthy
	ReasonStandby                // nothing but standby pools was left
	ReasonDrained                // nothing but drained pools was left
	ReasonAllDown                // nothing was left: open, by policy order
	ReasonFallback               // nothing was left: the service's fallback
	ReasonServfail               // nothing was left, and the service wants SERVFAIL or fences leave this client nothing
)

var reasonNames = [...]string{
	ReasonPolicy: "policy", ReasonTrickle: "trickle", ReasonOverflow: "overflow", ReasonFailover: "failover", ReasonDegraded: "degraded", ReasonStandby: "standby", ReasonDrained: "drained",
	ReasonAllDown: "all-down", ReasonFallback: "fallback", ReasonServfail: "servfail",
}

// String returns the reason in one word, as logs, metrics and Explanation have it.
func (r Reason) String() string { return reasonNames[r] }

// Flags say what else than its policy's order made a decision, whatever its reason.
type Flags uint8

// The flags.
const (
	// Fenced: a fence dropped a pool that stands no later in the policy's order than the first
	// choice of those left, whether it was healthy or not.
	Fenced Flags = 1 << iota
	// Overridden: a pool answered with, or one of its endpoints, is in an operator's state
	// (forced up or down, drained); or an override of the map pinned the client to a site, and
	// the policy reads where clients are. A pool that was passed over for its state gives
	// ReasonFailover instead.
	Overridden
)

// MaxAnswers bounds the endpoints of one decision.
const MaxAnswers = 16

// Decision is what the engine says to one client. Reuse one: Decide allocates nothing.
type Decision struct {
	Service  *Service
	Pool     *Pool // nil with ReasonFallback and ReasonServfail
	Reason   Reason
	Flags    Flags
	Scope    uint8        // bits of the client's address that the decision depends on (RFC 7871)
	TTL      uint32       // seconds
	Outcome  uint32       // index of the compiled outcome in the service: what explains a recorded decision
	V4, V6   []netip.Addr // the answers by family, those that are wanted; valid until the next decision into d
	Fallback string       // a name to answer with CNAME: with ReasonFallback, and for a pool that is a hostname
	Targets  []Target     // the pools that SVCB, HTTPS and SRV answer with, best first; empty where the service has none of them

	buf     [2][MaxAnswers]netip.Addr // of V4 and V6, when the answers are a selection
	targets [maxTargets]Target
}

// Target is one pool in an answer that names several: SVCB and HTTPS (RFC 9460), SRV (RFC
// 2782).
type Target struct {
	Pool     *Pool
	Priority uint16       // from 1: SvcPriority, or SRV's priority
	Name     string       // canonical; "" is the owner name itself, for Decision.Pool alone
	Port     uint16       // the pool's; 0 when none is declared
	V4, V6   []netip.Addr // its healthy endpoints: hints, or glue
}

// maxTargets bounds Decision.Targets, as config.Validate does.
const maxTargets = 8

// Explanation is a decision with everything that led to it.
type Explanation struct {
	Service  string       `json:"service"`
	Client   netip.Prefix `json:"client"`
	Revision uint64       `json:"revision"`
	Plan     string       `json:"plan"`
	Snapshot string       `json:"snapshot"` // Snapshot.ID: the same inputs have the same
	Place    geo.Place    `json:"place"`
	Stages   []StageTrace `json:"stages"`
	Pool     string       `json:"pool,omitempty"`
	Reason   string       `json:"reason"`
	Answers  []netip.Addr `json:"answers"` // both families
	CNAME    string       `json:"cname,omitempty"`
	Flat     bool         `json:"flat,omitempty"`    // the service is the apex of a zone: not CNAME itself is answered, but its addresses
	Targets  []string     `json:"targets,omitempty"` // pools of SVCB, HTTPS and SRV, best first
	TTL      uint32       `json:"ttl"`
	Scope    uint8        `json:"scope"`
}

// StageTrace is what one stage did: the candidates that it left, in order, and those that it
// dropped or demoted, with the reason and the figure behind it.
type StageTrace struct {
	Stage string           `json:"stage"`
	Note  string           `json:"note,omitempty"` // what it found of the client: the case of a match
	Kept  []CandidateTrace `json:"kept"`
	Lost  []CandidateTrace `json:"lost,omitempty"`
}

// CandidateTrace is one pool at one stage.
type CandidateTrace struct {
	Pool string `json:"pool"`
	Note string `json:"note,omitempty"` // "312 km", "weight 2 of 5", "0 of 2 endpoints healthy", "drained by ann: upgrade, until 14:00Z"
}

// Hop is where a proxy sends requests next, best group first: every group is used only when
// those before it have nothing healthy left.
type Hop struct {
	Pool      string     `json:"pool"`
	Site      string     `json:"site"`
	Weight    int        `json:"weight"`
	Priority  int        `json:"priority"` // 0 is best; equal priorities share by weight
	Endpoints []Endpoint `json:"endpoints"`
}
