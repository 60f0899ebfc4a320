package api

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// Proxies is what the config server of a node knows of the proxies that ask it.
type Proxies struct {
	Listen   string      `json:"listen,omitempty"`   // address of the config server; empty: it has none
	Revision uint64      `json:"revision,omitempty"` // of the snapshot that is handed out; 0: none yet
	Proxies  []Proxy     `json:"proxies"`
	Loads    []PoolLoad  `json:"loads"`            // ordered by pool of the proxies, upstream, pool of the endpoints
	Spills   []Spill     `json:"spills,omitempty"` // where load over a pool's capacity goes elsewhere
	Faults   []LoadFault `json:"faults,omitempty"` // what was reported and not believed
}

// Spill is one overload: the proxies of one pool ask an upstream for more than the pools that
// they prefer have capacity for. It says what comes of it for requests, at once, and for the
// answers of DNS, at the pace of their TTL.
type Spill struct {
	From     string             `json:"from"`
	Site     string             `json:"site"`     // of From
	Since    time.Time          `json:"since"`    // it is so, by this node
	Revision uint64             `json:"revision"` // of the snapshot that both come from
	Upstream string             `json:"upstream"`
	Demand   float64            `json:"demand"` // requests per second
	Placed   map[string]float64 `json:"placed"` // of them, by pool
	Over     float64            `json:"over"`   // of them, what no pool has capacity for
	Load     float64            `json:"load"`   // of the preferred pools: 1 is their capacity
	DNS      []Shed             `json:"dns"`    // the services that hand on clients of From under load; empty: none does
}

// String says the overload in one sentence: both what requests do, and what answers do.
func (s Spill) String() string {
	var to []string
	for _, pool := range slices.Sorted(maps.Keys(s.Placed)) {
		if s.Placed[pool] >= 0.5 {
			to = append(to, fmt.Sprintf("%s %.0f", pool, s.Placed[pool]))
		}
	}
	by := ""
	if s.Upstream != config.DefaultUpstream {
		by = " by upstream " + s.Upstream
	}
	text := fmt.Sprintf("site %s is over its capacity: proxies of %s ask%s for %.0f requests a second, which go to %s", s.Site, s.From, by, s.Demand, strings.Join(to, ", "))
	if s.Over >= 0.5 {
		text += fmt.Sprintf(", %.0f of them beyond what all have capacity for", s.Over)
	}
	var dns []string
	for _, d := range s.DNS {
		dns = append(dns, fmt.Sprintf("%s leaves it %.0f %% of its clients, within a TTL of %.0f s", d.Service, 100*d.Keeps, d.TTL))
	}
	if len(dns) == 0 {
		return text + "; no service hands on its clients under load (stage shed)"
	}
	return text + "; DNS: " + strings.Join(dns, ", ")
}

// Shed is what answers of a service do under the load of a pool.
type Shed struct {
	Service string  `json:"service"`
	Keeps   float64 `json:"keeps"` // share of its clients that the pool keeps, 0..1
	TTL     float64 `json:"ttl"`   // of the answers, in seconds: the pace at which clients move
}

// Proxy is one proxy that is connected to the config server.
type Proxy struct {
	ID        string          `json:"id"`
	Pool      string          `json:"pool"`
	Site      string          `json:"site,omitempty"`
	Addr      string          `json:"addr"`
	Agent     string          `json:"agent,omitempty"` // envoy, gRPC Go, …
	Version   string          `json:"version,omitempty"`
	Protocol  string          `json:"protocol"` // delta or sotw
	Connected time.Time       `json:"connected"`
	Revision  uint64          `json:"revision"`          // of the newest snapshot that it accepted all of
	Behind    bool            `json:"behind,omitempty"`  // something is on its way, or was refused
	Unknown   bool            `json:"unknown,omitempty"` // there is no such pool: it is told nothing
	Rate      float64         `json:"rate"`              // requests per second that it sends on, as it reports
	Types     []ProxyResource `json:"types,omitempty"`
}

// ProxyResource is what a proxy has of one type of resources.
type ProxyResource struct {
	Type      string     `json:"type"` // clusters, endpoints, secrets, listeners, routes
	Resources int        `json:"resources"`
	Sent      string     `json:"sent,omitempty"`  // version sent last
	Acked     string     `json:"acked,omitempty"` // version accepted last
	Rejected  *Rejection `json:"rejected,omitempty"`
}

// Rejection is what a proxy refused: it keeps what it had.
type Rejection struct {
	Version   string    `json:"version"`
	Resources []string  `json:"resources,omitempty"` // that were in the response
	Reason    string    `json:"reason"`              // in the proxy's words
	At        time.Time `json:"at"`
}

// PoolLoad is what the proxies of one pool ask of another, in averages over some seconds.
type PoolLoad struct {
	From       string             `json:"from"`
	Upstream   string             `json:"upstream"`
	To         string             `json:"to"`
	Site       string             `json:"site,omitempty"` // of To
	Proxies    int                `json:"proxies"`
	Frozen     int                `json:"frozen,omitempty"` // of them: silent, with their last load
	Nodes      int                `json:"nodes,omitempty"`  // other nodes that told a part of it
	Rate       float64            `json:"rate"`             // requests per second
	Errors     float64            `json:"errors"`           // per second
	Dropped    float64            `json:"dropped"`          // per second: shed by the proxies
	InProgress float64            `json:"inProgress"`
	Metrics    map[string]float64 `json:"metrics,omitempty"`  // what endpoints say of themselves (ORCA)
	Age        float64            `json:"age"`                // seconds, of the oldest report in it
	Capacity   float64            `json:"capacity,omitempty"` // of To, requests per second; 0: not declared
}

// LoadFault is what a proxy reported and was not believed.
type LoadFault struct {
	Proxy string    `json:"proxy"`
	Pool  string    `json:"pool"`
	What  string    `json:"what"`
	Last  time.Time `json:"last"`
}

// ProxiesPath is where a node says which proxies ask its config server.
const ProxiesPath = "/api/v1/proxies"

// Proxies returns the proxies that ask the node's config server, and their load.
func (c *Client) Proxies(ctx context.Context) (*Proxies, error) {
	return get[Proxies](ctx, c, ProxiesPath, nil)
}

// RTTPath is where a node tells what it knows of round-trip times, and takes reports of them.
const RTTPath = "/api/v1/rtt"

// RTTs returns what the node knows of round-trip times.
func (c *Client) RTTs(ctx context.Context) (*RTTs, error) { return get[RTTs](ctx, c, RTTPath, nil) }
