// Package health tests endpoints and tells the engine what to believe of them: probes with
// rise and fall, gossip that carries each node's states, and the verdict of the majority of
// fresh vantages.
package health

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// Class is the kind of a probe's result.
type Class uint8

// The classes of results.
const (
	OK          Class = iota
	Timeout           // nothing, or not all, in time
	Refused           // connection refused
	Reset             // connection reset or closed early
	Unreachable       // no way to the host
	TLSFault          // handshake or certificate
	WrongStatus       // HTTP status not expected, or what is like it: an rcode, NOT_SERVING, an exit status
	Protocol          // not what the protocol says
	Local             // this node's own fault (no file descriptor, no port, no route, no CPU): says nothing of the endpoint
	WrongBody         // the content is not what is expected
	Slow              // a success, but too late to be one
	numClasses
)

var classNames = [numClasses]string{"ok", "timeout", "refused", "reset", "unreachable", "tls", "status", "protocol", "local", "body", "slow"}

// String returns c in one lower-case word, or a number for what is no class.
func (c Class) String() string {
	if c < numClasses {
		return classNames[c]
	}
	return "class " + strconv.Itoa(int(c))
}

// Result is one outcome of a probe.
type Result struct {
	Class   Class
	Latency time.Duration
	Detail  string // for people: "status 503, expected 200"
	Score   uint8  // 0..100, from the share of failures and the latency beside the pool's; set by a Prober
}

// Target is one endpoint to be probed, with its probe's settings and every default filled in.
type Target struct {
	ID    gslb.EndpointID
	Addr  netip.AddrPort // where to probe; may differ from the served address
	Probe config.Probe
	Of    []Target // with a probe calculated from others: the same endpoint with each of those
}

// View is what a node knows of one endpoint, for people.
type View struct {
	Pool     string     `json:"pool"`
	Endpoint netip.Addr `json:"endpoint"`
	Verdict  string     `json:"verdict"`           // that is served: up, down, unknown
	Unknown  bool       `json:"unknown,omitempty"` // no vantage that counts speaks, or those that abstain would decide: Verdict is the last one
	Since    time.Time  `json:"since"`
	Why      string     `json:"why,omitempty"`
	Vantages []Vantage  `json:"vantages"`

	Fault string `json:"fault,omitempty"` // why this node's own probe says nothing of the endpoint

	Regions map[string]string `json:"regions,omitempty"` // verdicts of the vantages of one region, where it is another
}

// Vantage is what one node says of an endpoint.
type Vantage struct {
	Node    string        `json:"node"`
	Site    string        `json:"site"`
	Up      bool          `json:"up"`
	Class   string        `json:"class"`
	Detail  string        `json:"detail,omitempty"`
	Latency time.Duration `json:"latency"`
	Age     time.Duration `json:"age"` // since it was last heard, by this node's clock
	Fresh   bool          `json:"fresh"`

	Since    time.Time       `json:"since,omitzero"`     // that it says so, as heard by this node
	Counts   bool            `json:"counts"`             // it is fresh, and its word counts
	Abstains bool            `json:"abstains,omitempty"` // it is not believed: cut off, or most of what it tests fails
	Score    uint8           `json:"score"`              // 0..100, by failures and latency beside the pool's
	Trend    []time.Duration `json:"trend,omitempty"`    // the last latencies that were heard, oldest first; 0 is a failure
}
