// Package config holds Meridian's configuration: the objects that operators write, how
// they are read from YAML (or from etcd, where the same objects are JSON) and how they
// are checked. It does no I/O but reading the files that it is told to read.
//
// Every reader reports all of its faults together, each with file, line and what was
// expected; a configuration with a fault is never half-applied.
package config

import (
	"net/netip"
	"time"
)

// File is one configuration file: the node that reads it and the objects that it may
// hold beside those of the store.
type File struct {
	Node    Node `json:"node"`
	Objects `json:",inline"`

	places *places // where each value was written, for faults
}

// Objects are the shared objects, by kind and name. A name is unique in its kind.
// Treat a value as immutable once it was handed on.
type Objects struct {
	Sites    map[string]Site    `json:"sites,omitempty"`
	Zones    map[string]Zone    `json:"zones,omitempty"` // in YAML a list; keyed by Zone.Name here
	Probes   map[string]Probe   `json:"probes,omitempty"`
	Pools    map[string]Pool    `json:"pools,omitempty"`
	Chains   map[string]Chain   `json:"chains,omitempty"`   // in YAML a name and its list of stages
	Services map[string]Service `json:"services,omitempty"` // by owner name: lower case, no trailing dot
	States   map[string]State   `json:"states,omitempty"`
	Nodes    map[string]NodeKey `json:"nodes,omitempty"` // by name of the node; without any, none is asked for a signature

	places map[objectKey]*places // where each object was written, for faults; nil when it was not read
}

// Node configures this process. It is never kept in the store.
type Node struct {
	Name       string           `json:"name"`                 // unique in the fleet
	Site       string           `json:"site"`                 // the site that its probes speak for
	Data       string           `json:"data,omitempty"`       // folder for the last known good snapshot and the embedded etcd
	DNS        []netip.AddrPort `json:"dns,omitempty"`        // UDP and TCP
	Admin      netip.AddrPort   `json:"admin,omitzero"`       // HTTP API, metrics, OTLP receiver; default 127.0.0.1:8053
	AdminToken string           `json:"adminToken,omitempty"` // bearer token that a change must carry; required where admin is not on loopback
	Gossip     Gossip           `json:"gossip,omitzero"`
	Etcd       Etcd             `json:"etcd,omitzero"`
	Geo        Geo              `json:"geo,omitzero"`
	OTLP       OTLP             `json:"otlp,omitzero"`
	Tracing    Tracing          `json:"tracing,omitzero"`
	Serve      Serve            `json:"serve,omitzero"` // how DNS is answered
	Decisions  DecisionLog      `json:"decisionLog,omitzero"`
	RTT        NodeRTT          `json:"rtt,omitzero"`
	History    History          `json:"history,omitzero"`    // of snapshots, so that past decisions can be explained
	Resolvers  []netip.AddrPort `json:"resolvers,omitempty"` // that are asked for the hostnames of pools outside our zones; default the system's
	XDS        XDS              `json:"xds,omitzero"`
	Health     NodeHealth       `json:"health,omitzero"`
}

// History bounds the past snapshots that a node keeps.
type History struct {
	Snapshots int      `json:"snapshots,omitempty"` // most of them; default 1000
	Age       Duration `json:"age,omitempty"`       // of the oldest; default a day
}

// WithDefaults returns h with the defaults in place of what is zero.
func (h History) WithDefaults() History {
	if h.Snapshots == 0 {
		h.Snapshots = 1000
	}
	if h.Age == 0 {
		h.Age = Duration(24 * time.Hour)
	}
	return h
}

// Gossip configures the exchange of health between nodes. The zero value is a node alone.
type Gossip struct {
	Listen    netip.AddrPort `json:"listen,omitzero"`
	Advertise netip.AddrPort `json:"advertise,omitzero"` // what peers are told; default Listen
	Join      []string       `json:"join,omitempty"`     // host:port of some peers
	Key       string         `json:"key,omitempty"`      // 16, 24 or 32 octets in base64; required off loopback
	Keys      []string       `json:"keys,omitempty"`     // further keys that are understood, while one takes over from another
}

// Etcd configures the store. The zero value is no store: the file is all there is.
type Etcd struct {
	Embedded  bool     `json:"embedded,omitempty"`
	Listen    string   `json:"listen,omitempty"`    // embedded: client URL to serve; default a unix socket in Data
	Endpoints []string `json:"endpoints,omitempty"` // external
	Username  string   `json:"username,omitempty"`
	Password  string   `json:"password,omitempty"`
	TLS       TLSFiles `json:"tls,omitzero"`
}

// TLSFiles names PEM files.
type TLSFiles struct {
	CA   string `json:"ca,omitempty"`
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
}

// Geo names the databases that place addresses. All are optional.
type Geo struct {
	City      string        `json:"city,omitempty"` // MaxMind City or Country database
	ASN       string        `json:"asn,omitempty"`
	Overrides []GeoOverride `json:"overrides,omitempty"` // the longest match beats the databases
}

// GeoOverride places a prefix by hand: at a site, or at coordinates.
type GeoOverride struct {
	Prefix      netip.Prefix `json:"prefix"`
	Site        string       `json:"site,omitempty"`
	Lat         *float64     `json:"lat,omitempty"`
	Lon         *float64     `json:"lon,omitempty"`
	Country     string       `json:"country,omitempty"`     // ISO 3166-1 alpha-2
	Subdivision string       `json:"subdivision,omitempty"` // ISO 3166-2: US-VA
	Continent   string       `json:"continent,omitempty"`   // two letters
	City        string       `json:"city,omitempty"`
	ASN         int          `json:"asn,omitempty"`
}

// OTLP says where spans go. An empty endpoint keeps them in the node's memory only.
type OTLP struct {
	Endpoint string            `json:"endpoint,omitempty"` // http:// or https:// base URL, /v1/traces is appended; grpc:// or grpcs:// for OTLP/gRPC
	Gzip     bool              `json:"gzip,omitempty"`     // compress what is sent
	Headers  map[string]string `json:"headers,omitempty"`  // of every request: a token, say
	Sample   *float64          `json:"sample,omitempty"`   // share of plain decisions exported, 0..1; default 0.01. Interesting ones always are
}

// Site is a place with coordinates in degrees.
type Site struct {
	Lat         float64 `json:"lat"`
	Lon         float64 `json:"lon"`
	Continent   string  `json:"continent,omitempty"`   // two letters: AF AN AS EU NA OC SA
	Country     string  `json:"country,omitempty"`     // ISO 3166-1 alpha-2
	Subdivision string  `json:"subdivision,omitempty"` // ISO 3166-2: US-VA
	City        string  `json:"city,omitempty"`        // English name, as the City database has it
	Region      string  `json:"region,omitempty"`      // sites of one region stand in for each other first; default: a region of its own
}

// Zone is a zone that this fleet is authoritative for. Exactly one of File and Records is set.
type Zone struct {
	Name    string `json:"name"`
	File    string `json:"file,omitempty"`    // RFC 1035 master file, relative to the configuration file
	Records string `json:"records,omitempty"` // the same text in place; what apply stores for a File
}

// Pool is a set of endpoints at one site that share a purpose.
type Pool struct {
	Site      string     `json:"site"`
	Capacity  float64    `json:"capacity,omitempty"`   // requests per second; 0 is not declared
	Probe     string     `json:"probe,omitempty"`      // empty: its endpoints are always healthy
	Port      uint16     `json:"port,omitempty"`       // default port of its endpoints, for probes and for proxies
	MinHealth *float64   `json:"minHealthy,omitempty"` // share of endpoint weight, 0..1; default 0.5. Below it the pool is degraded
	Endpoints []Endpoint `json:"endpoints"`
	Hostname  string     `json:"hostname,omitempty"` // without endpoints: answered with this name, by CNAME. With them: the pool's name in SVCB, HTTPS and SRV
	Delay     Returning  `json:"delay,omitzero"`
	Upstream  *Upstream  `json:"upstream,omitempty"`  // where its proxies send requests next
	AnswerIDs bool       `json:"answerIds,omitempty"` // AAAA answers carry an id in their last 64 bits: the whole /64 of each address must lead to it
	DependsOn []string   `json:"dependsOn,omitempty"` // pools without which this one is down
	Proxy     *Proxy     `json:"proxy,omitempty"`     // what else its proxies are told, where they ask the config server
}

// Endpoint is one address in a pool.
type Endpoint struct {
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"`
	Weight  *int       `json:"weight,omitempty"` // default 1; 0 is never
	Domain  string     `json:"domain,omitempty"` // what fails with it, a rack say: grouped answers; default by itself
	Probe   *Target    `json:"probe,omitempty"`  // where to probe when not at Address (NAT, VIP)
}

// Steering says which pools may be chosen, and how. Services (users are steered) and
// upstreams (proxies are steered) share it.
type Steering struct {
	Pools  map[string]PoolRef `json:"pools"`
	Policy []Stage            `json:"policy,omitempty"` // in order; default [health, nearest]
}

// Service is a steered owner name.
type Service struct {
	Steering `json:",inline"`
	TTL      Duration `json:"ttl,omitempty"`    // default 30 s; 1 s..1 day, whole seconds
	MinTTL   Duration `json:"minTTL,omitempty"` // floor of shortened TTLs; default 5 s, never over TTL
	AllDown  AllDown  `json:"allDown,omitzero"` // default open
	HTTPS    *HTTPS   `json:"https,omitempty"`  // answers SVCB and HTTPS
	SRV      *SRV     `json:"srv,omitempty"`    // answers SRV
	Sticky   Sticky   `json:"sticky,omitzero"`
	Guard    *Guard   `json:"guard,omitempty"` // how much health may take away
}

// Sticky gives the lengths in bits of the source prefixes that hashing stages keep together.
type Sticky struct {
	IPv4 int `json:"ipv4,omitempty"` // default 24; 8..32
	IPv6 int `json:"ipv6,omitempty"` // default 56; 16..64
}

// PoolRef is a pool in a steering.
type PoolRef struct {
	Weight  *int `json:"weight,omitempty"`  // default 1; 0 is never; up to 65535
	Standby bool `json:"standby,omitempty"` // only when nothing else is left
}

// AllDown says what a service answers when no pool is left. In YAML the word open, last or
// servfail, or a mapping {fallback: [...]}.
type AllDown struct {
	Mode     string   `json:"mode,omitempty"`     // "" is open; "open", "last" (known good), "servfail", "fallback"
	Fallback []string `json:"fallback,omitempty"` // addresses, or exactly one name
}

// State is what an operator set on a pool or an endpoint, with its author and reason.
type State struct {
	Match    string     `json:"match,omitempty"` // in place of Pool: globs service/pool/endpoint, the last parts may be missing
	Order    int        `json:"order,omitempty"` // of states with Match: a later one goes before, then the later name; states without go before all
	Pool     string     `json:"pool,omitempty"`
	Endpoint netip.Addr `json:"endpoint,omitzero"` // of Pool; zero is the whole pool
	State    string     `json:"state"`             // "drain", "down", "up", or "auto": neither drained nor forced
	Author   string     `json:"author"`
	Reason   string     `json:"reason,omitempty"`
	Since    time.Time  `json:"since,omitzero"`
	Until    time.Time  `json:"until,omitzero"` // zero: until it is taken back
}

// Duration is a time.Duration written as in Go: 1500ms, 30s, 5m.
type Duration time.Duration

// Std returns d as a time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String returns d as Go writes it.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes d as Go does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}
