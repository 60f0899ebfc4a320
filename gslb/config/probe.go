package config

import (
	"crypto/ed25519"
	"encoding/base64"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Probe says how to test an endpoint. Exactly one kind is set.
type Probe struct {
	HTTP       *HTTPProbe       `json:"http,omitempty"`
	TCP        *TCPProbe        `json:"tcp,omitempty"`
	TLS        *TLSProbe        `json:"tls,omitempty"`
	GRPC       *GRPCProbe       `json:"grpc,omitempty"`
	DNS        *DNSProbe        `json:"dns,omitempty"`
	ICMP       *ICMPProbe       `json:"icmp,omitempty"`
	UDP        *UDPProbe        `json:"udp,omitempty"`
	Postgres   *PostgresProbe   `json:"postgres,omitempty"`
	MySQL      *MySQLProbe      `json:"mysql,omitempty"`
	Redis      *RedisProbe      `json:"redis,omitempty"`
	Exec       *ExecProbe       `json:"exec,omitempty"`
	Import     *ImportProbe     `json:"import,omitempty"`
	Calculated *CalculatedProbe `json:"calculated,omitempty"`

	Interval Duration  `json:"interval,omitempty"` // default 5 s; 200 ms..1 h
	Timeout  Duration  `json:"timeout,omitempty"`  // default 2 s or the interval if that is shorter; never over it
	Jitter   *float64  `json:"jitter,omitempty"`   // share of the interval, 0..0.5; default 0.1
	Rise     int       `json:"rise,omitempty"`     // successes in a row that bring an endpoint up; default 2
	Fall     int       `json:"fall,omitempty"`     // failures in a row that bring it down; default 3
	Invert   bool      `json:"invert,omitempty"`   // failure is success; this node's own faults stay faults
	Brownout *Brownout `json:"brownout,omitempty"` // failures that do not come in a row
	Slow     *Slow     `json:"slow,omitempty"`     // successes that are too slow to be one
	Idle     float64   `json:"idle,omitempty"`     // the interval of what nobody asks for, as a multiple, 1..100; default 1
	Vantages int       `json:"vantages,omitempty"` // nodes of each site that probe an endpoint; default 0: all. Every node holds what all of them find, up to 262,144 findings: with many nodes and endpoints, say how many
	Quorum   *Quorum   `json:"quorum,omitempty"`   // how many vantages it takes
	Damping  *Damping  `json:"damping,omitempty"`  // what becomes of an endpoint that flaps
}

// Statuses is an HTTP status or a range of them: 200, 200-299.
type Statuses string

// Range returns the first and the last status of s; ok is false where s is neither form or
// leaves 100..599.
func (s Statuses) Range() (lo, hi int, ok bool) {
	from, to, isRange := strings.Cut(string(s), "-")
	lo, err := strconv.Atoi(from)
	if hi = lo; isRange && err == nil {
		hi, err = strconv.Atoi(to)
	}
	return lo, hi, err == nil && 100 <= lo && lo <= hi && hi <= 599
}

// HTTPProbe expects an HTTP status, and what it says of the first 64 KiB of the body.
// Redirects are not followed.
type HTTPProbe struct {
	Port       uint16            `json:"port,omitempty"` // default the endpoint's, else 80, or 443 with TLS
	TLS        bool              `json:"tls,omitempty"`
	HTTP2      bool              `json:"http2,omitempty"`      // HTTP/2: by ALPN with TLS, with prior knowledge without
	ServerName string            `json:"serverName,omitempty"` // SNI and the name that the certificate must hold; default Host
	SkipVerify bool              `json:"skipVerify,omitempty"`
	Files      TLSFiles          `json:"files,omitzero"`   // ca in place of the system's; cert and key of this client
	Host       string            `json:"host,omitempty"`   // default the endpoint's address
	Path       string            `json:"path,omitempty"`   // default /
	Method     string            `json:"method,omitempty"` // default GET
	Headers    map[string]string `json:"headers,omitempty"`
	Expect     []Statuses        `json:"expect,omitempty"`   // default [200]
	Contains   string            `json:"contains,omitempty"` // substring of the body
	Matches    string            `json:"matches,omitempty"`  // regular expression (RE2) that the body matches
	JSON       *JSONExpect       `json:"json,omitempty"`
	Reuse      int               `json:"reuse,omitempty"` // most probes over one connection of HTTP/1.1, 1..1000; default 10; 1 is a new one each time
}

// JSONExpect expects a value in a JSON body of at most 64 KiB.
type JSONExpect struct {
	Path   string `json:"path"`             // keys and indexes with dots between: checks.0.status; \. is a dot in a key, \\ a backslash
	Equals string `json:"equals,omitempty"` // the value as text; default: anything but false and null
}

// Keys returns the keys and indexes of the path, without backslashes.
func (e *JSONExpect) Keys() []string {
	keys := []string{""}
	for i := 0; i < len(e.Path); i++ {
		switch c := e.Path[i]; {
		case c == '.':
			keys = append(keys, "")
			continue
		case c == '\\' && i+1 < len(e.Path):
			i++
		}
		keys[len(keys)-1] += e.Path[i : i+1]
	}
	return keys
}

// TCPProbe expects a connection to be accepted, and an answer where it says so.
type TCPProbe struct {
	Port   uint16 `json:"port,omitempty"`   // default the endpoint's
	Send   string `json:"send,omitempty"`   // what to send first
	Expect string `json:"expect,omitempty"` // regular expression (RE2) that the first 64 KiB of the answer match
}

// TLSProbe expects a handshake with a certificate that is trusted, holds the name and lasts.
type TLSProbe struct {
	Port       uint16   `json:"port,omitempty"`       // default the endpoint's, else 443
	ServerName string   `json:"serverName,omitempty"` // SNI and the name that the certificate must hold; default the address
	SkipVerify bool     `json:"skipVerify,omitempty"` // of chain and name; days are still counted
	Files      TLSFiles `json:"files,omitzero"`
	Days       int      `json:"days,omitempty"` // least days that every certificate shown must last; default 0: it has not expired
}

// GRPCProbe expects SERVING of grpc.health.v1.Health/Check.
type GRPCProbe struct {
	Port       uint16   `json:"port,omitempty"`    // default the endpoint's
	Service    string   `json:"service,omitempty"` // default the server as a whole
	TLS        bool     `json:"tls,omitempty"`
	ServerName string   `json:"serverName,omitempty"` // SNI and authority; default the address
	SkipVerify bool     `json:"skipVerify,omitempty"`
	Files      TLSFiles `json:"files,omitzero"`
}

// DNSProbe expects an answer of a name server over UDP, or over TCP.
type DNSProbe struct {
	Port   uint16 `json:"port,omitempty"`   // default 53
	Name   string `json:"name"`             // to ask for
	Type   string `json:"type,omitempty"`   // default A
	TCP    bool   `json:"tcp,omitempty"`    // ask over TCP
	Rcode  string `json:"rcode,omitempty"`  // default NOERROR
	Answer string `json:"answer,omitempty"` // rdata that one record of the answer must have: 192.0.2.1
}

// ICMPProbe expects an echo reply.
type ICMPProbe struct{}

// UDPProbe expects an answer to a datagram.
type UDPProbe struct {
	Port   uint16 `json:"port,omitempty"` // default the endpoint's
	Send   string `json:"send"`
	Expect string `json:"expect,omitempty"` // regular expression (RE2) that the answer matches; default any answer
}

// PostgresProbe expects a PostgreSQL server to take a startup message: it may ask for a
// password or refuse the user, and is alive then.
type PostgresProbe struct {
	Port     uint16 `json:"port,omitempty"`     // default 5432
	User     string `json:"user,omitempty"`     // default meridian
	Database string `json:"database,omitempty"` // default postgres
}

// MySQLProbe expects the greeting of a MySQL server. With a user, that need not exist, the probe
// also logs in. Set one: a server counts connections that end with the greeting as errors of
// this host, and refuses the host for good after max_connect_errors of them (100) in a row.
type MySQLProbe struct {
	Port uint16 `json:"port,omitempty"` // default 3306
	User string `json:"user,omitempty"`
}

// RedisProbe expects PONG, or to be asked for a password.
type RedisProbe struct {
	Port     uint16 `json:"port,omitempty"` // default 6379
	Password string `json:"password,omitempty"`
}

// ExecProbe runs a program of the node's own folder (node.health.exec), which tells by its
// exit status: 0 is success. It ends with the timeout, and with it all that it started.
type ExecProbe struct {
	Command string   `json:"command"` // name of a file in the folder
	Args    []string `json:"args,omitempty"`
}

// ImportProbe takes over verdicts that others wrote: lines of "POOL/ADDRESS up" or "ADDRESS
// down", or a JSON object of the same. What is not in it says nothing.
type ImportProbe struct {
	File   string   `json:"file,omitempty"`
	URL    string   `json:"url,omitempty"`
	MaxAge Duration `json:"maxAge,omitempty"` // of the file, or since the last good answer of the URL; default 10 intervals
}

// CalculatedProbe derives health from that of others: from other probes of the same endpoint,
// or from pools.
type CalculatedProbe struct {
	Probes []string `json:"probes,omitempty"` // names of probes; none of them calculated
	Pools  []string `json:"pools,omitempty"`  // pools, up while an endpoint of theirs is; or endpoints, as POOL/ADDRESS
	Need   string   `json:"need,omitempty"`   // all (the default), any, quorum (more than half) or a number
}

// Brownout is a counter that every failure fills by one and every success drains: full, it
// brings the endpoint down, though no run of failures is long enough.
type Brownout struct {
	Limit int     `json:"limit"`           // 1..1000
	Drain float64 `json:"drain,omitempty"` // by each success, 0.01..1; default 0.25: a fifth of failures is borne
}

// Slow says when a success is too slow to be one.
type Slow struct {
	Latency  Duration `json:"latency,omitempty"`  // at least this is too slow
	Relative float64  `json:"relative,omitempty"` // so many times the median of the pool, as this vantage sees it; over 1
}

// Quorum says what it takes to call an endpoint down. Up takes only that it does not.
type Quorum struct {
	Share         *float64 `json:"share,omitempty"`         // more than this share of the vantages say down, 0..0.99; default 0.5
	Min           int      `json:"min,omitempty"`           // at least so many, if there are that many; default 2
	Sites         int      `json:"sites,omitempty"`         // in at least so many sites, if there are vantages in that many; default 2
	MustBeHealthy []string `json:"mustBeHealthy,omitempty"` // nodes or sites: one of these that says down is enough
	MonitorOnly   []string `json:"monitorOnly,omitempty"`   // nodes or sites that are shown, but do not count
}

// Damping keeps an endpoint that flaps out of answers for a while, as long as something is
// left in them.
type Damping struct {
	Off      bool     `json:"off,omitempty"`
	Suppress float64  `json:"suppress,omitempty"` // penalty over which it is kept out: each fall adds 1; default 3
	HalfLife Duration `json:"halfLife,omitempty"` // of the penalty; default 5 m
	Hold     Duration `json:"hold,omitempty"`     // longest after the last fall; default 30 m
}

// Guard bounds what health may take away from a service, by the capacity of its pools, or by
// their number where one declares none. What every vantage says is not bounded.
type Guard struct {
	Velocity *float64 `json:"velocity,omitempty"` // share of the capacity in a window, 0..1; default 0.34; 1 is off
	Window   Duration `json:"window,omitempty"`   // default 5 m
	Panic    *float64 `json:"panic,omitempty"`    // share of the capacity below which nothing more is taken, 0..1; default 0.5; 0 is off
}

// Target is a probe's address when it differs from the served one.
type Target struct {
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"`
}

// NodeKey is the key that a node signs its observations with.
type NodeKey struct {
	Key string `json:"key"` // ed25519 public key in base64
}

// The roles of a node.
const (
	RoleFull   = "full"   // probes and answers
	RoleProber = "prober" // probes; needs no DNS address
	RoleAnswer = "answer" // answers by what others probe
)

// NodeHealth configures what this node adds to the fleet's health.
type NodeHealth struct {
	Role       string   `json:"role,omitempty"`       // default full
	References []string `json:"references,omitempty"` // host:port that accept TCP while this node's network works
	Exec       string   `json:"exec,omitempty"`       // folder of the programs that exec probes may run; none without it
}

// probePort is the port of a kind of probe.
type probePort struct {
	set      uint16 // by the probe
	known    uint16 // by which its protocol is known
	apart    bool   // the endpoint's own port is not of this protocol
	required bool
}

func (p Probe) port() probePort {
	switch {
	case p.HTTP != nil && p.HTTP.TLS:
		return probePort{set: p.HTTP.Port, known: 443}
	case p.HTTP != nil:
		return probePort{set: p.HTTP.Port, known: 80}
	case p.TCP != nil:
		return probePort{set: p.TCP.Port, required: true}
	case p.TLS != nil:
		return probePort{set: p.TLS.Port, known: 443}
	case p.GRPC != nil:
		return probePort{set: p.GRPC.Port, required: true}
	case p.DNS != nil:
		return probePort{set: p.DNS.Port, known: 53, apart: true}
	case p.UDP != nil:
		return probePort{set: p.UDP.Port, required: true}
	case p.Postgres != nil:
		return probePort{set: p.Postgres.Port, known: 5432, apart: true}
	case p.MySQL != nil:
		return probePort{set: p.MySQL.Port, known: 3306, apart: true}
	case p.Redis != nil:
		return probePort{set: p.Redis.Port, known: 6379, apart: true}
	}
	return probePort{}
}

// PortRequired reports whether p cannot do without a port.
func (p Probe) PortRequired() bool { return p.port().required }

// Kind returns the name of the kind of p; "" without any, or with several.
func (p Probe) Kind() string {
	kind := ""
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"http", p.HTTP != nil}, {"tcp", p.TCP != nil}, {"tls", p.TLS != nil}, {"grpc", p.GRPC != nil}, {"dns", p.DNS != nil},
		{"icmp", p.ICMP != nil}, {"udp", p.UDP != nil}, {"postgres", p.Postgres != nil}, {"mysql", p.MySQL != nil},
		{"redis", p.Redis != nil}, {"exec", p.Exec != nil}, {"import", p.Import != nil}, {"calculated", p.Calculated != nil},
	} {
		switch {
		case !k.set:
		case kind != "":
			return ""
		default:
			kind = k.name
		}
	}
	return kind
}

// files returns the TLS files of p that are there.
func (p Probe) files() []*TLSFiles {
	switch {
	case p.HTTP != nil:
		return []*TLSFiles{&p.HTTP.Files}
	case p.TLS != nil:
		return []*TLSFiles{&p.TLS.Files}
	case p.GRPC != nil:
		return []*TLSFiles{&p.GRPC.Files}
	}
	return nil
}

// relativeTo takes the names of files in p relative to dir.
func (p Probe) relativeTo(dir string) {
	for _, f := range p.files() {
		for _, s := range []*string{&f.CA, &f.Cert, &f.Key} {
			*s = relativeTo(dir, *s)
		}
	}
	if p.Import != nil {
		p.Import.File = relativeTo(dir, p.Import.File)
	}
}

func (c *checker) probe(p path, pr Probe) {
	c.name(p)
	if pr.Kind() == "" {
		c.missing(p.at("http"), "expected exactly one of http, tcp, tls, grpc, dns, icmp, udp, postgres, mysql, redis, exec, import and calculated")
	}
	interval := time.Duration(pr.WithDefaults().Interval)
	if pr.Interval != 0 {
		c.span(p.at("interval"), pr.Interval, 200*time.Millisecond, time.Hour)
	}
	if pr.Timeout != 0 && (pr.Timeout < Duration(time.Millisecond) || time.Duration(pr.Timeout) > interval) {
		c.fail(p.at("timeout"), "%v; expected 1ms to the interval, %v", pr.Timeout, interval)
	}
	if pr.Jitter != nil {
		between(c, p.at("jitter"), *pr.Jitter, 0, 0.5)
	}
	for _, n := range []struct {
		key string
		v   int
		max int
	}{{"rise", pr.Rise, 100}, {"fall", pr.Fall, 100}, {"vantages", pr.Vantages, 100}} {
		if n.v != 0 || n.key != "vantages" && c.written(p.at(n.key)) {
			between(c, p.at(n.key), n.v, 1, n.max)
		}
	}
	if pr.Idle != 0 {
		between(c, p.at("idle"), pr.Idle, 1, 100)
	}
	if pr.Brownout != nil {
		between(c, p.at("brownout").at("limit"), pr.Brownout.Limit, 1, 1000)
		if pr.Brownout.Drain != 0 {
			between(c, p.at("brownout").at("drain"), pr.Brownout.Drain, 0.01, 1)
		}
	}
	if s := pr.Slow; s != nil {
		if s.Latency == 0 && s.Relative == 0 {
			c.missing(p.at("slow"), "expected latency, relative or both")
		}
		if s.Latency != 0 {
			c.span(p.at("slow").at("latency"), s.Latency, time.Microsecond, time.Hour)
		}
		if s.Relative != 0 {
			between(c, p.at("slow").at("relative"), s.Relative, 1.1, 1000)
		}
	}
	if pr.Quorum != nil {
		c.quorum(p.at("quorum"), *pr.Quorum)
	}
	if d := pr.Damping; d != nil {
		at := p.at("damping")
		if d.Suppress != 0 {
			between(c, at.at("suppress"), d.Suppress, 1, 100)
		}
		if d.HalfLife != 0 {
			c.span(at.at("halfLife"), d.HalfLife, time.Second, 24*time.Hour)
		}
		if d.Hold != 0 {
			c.span(at.at("hold"), d.Hold, time.Second, 24*time.Hour)
		}
	}
	c.probeKind(p, pr)
}

// probeKind checks the settings of the kind.
func (c *checker) probeKind(p path, pr Probe) {
	if h := pr.HTTP; h != nil {
		c.httpProbe(p.at("http"), h)
		c.tlsSide(p.at("http"), h.TLS, h.ServerName, h.SkipVerify, h.Files)
	}
	if t := pr.TCP; t != nil {
		c.regexp(p.at("tcp").at("expect"), t.Expect)
	}
	if t := pr.TLS; t != nil {
		c.tlsSide(p.at("tls"), true, t.ServerName, t.SkipVerify, t.Files)
		between(c, p.at("tls").at("days"), t.Days, 0, 3650)
	}
	if g := pr.GRPC; g != nil {
		c.tlsSide(p.at("grpc"), g.TLS, g.ServerName, g.SkipVerify, g.Files)
	}
	if d := pr.DNS; d != nil {
		c.domain(p.at("dns").at("name"), CanonicalName(d.Name))
		if _, ok := dns.StringToType[d.Type]; !ok && d.Type != "" {
			c.fail(p.at("dns").at("type"), "%q; expected a type such as A or SOA", d.Type)
		}
		if _, ok := dns.StringToRcode[d.Rcode]; !ok && d.Rcode != "" {
			c.fail(p.at("dns").at("rcode"), "%q; expected an rcode such as NOERROR or NXDOMAIN", d.Rcode)
		}
	}
	if u := pr.UDP; u != nil {
		if u.Send == "" {
			c.missing(p.at("udp").at("send"), "no value; expected what to send")
		}
		c.regexp(p.at("udp").at("expect"), u.Expect)
	}
	if e := pr.Exec; e != nil {
		if msg := checkName(e.Command); msg != "" {
			c.fail(p.at("exec").at("command"), "%q: %s; expected the name of a file in node.health.exec", e.Command, msg)
		}
	}
	if i := pr.Import; i != nil {
		at := p.at("import")
		if (i.File == "") == (i.URL == "") {
			c.missing(at.at("file"), "expected exactly one of file and url")
		}
		if u, err := url.Parse(i.URL); i.URL != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			c.fail(at.at("url"), "%q; expected an http or https URL", i.URL)
		}
		if i.MaxAge != 0 {
			c.span(at.at("maxAge"), i.MaxAge, time.Second, 30*24*time.Hour)
		}
	}
	if k := pr.Calculated; k != nil {
		c.calculated(p.at("calculated"), k)
	}
}

func (c *checker) regexp(p path, s string) {
	if _, err := regexp.Compile(s); err != nil {
		c.fail(p, "%v; expected a regular expression (RE2)", err)
	}
}

func (c *checker) tlsSide(p path, tls bool, name string, skip bool, files TLSFiles) {
	if name != "" {
		if _, err := netip.ParseAddr(name); err != nil {
			c.domain(p.at("serverName"), name)
		}
	}
	if !tls && (name != "" || skip || files != TLSFiles{}) {
		c.fail(p, "serverName, skipVerify and files are for TLS; expected tls: true beside them")
	}
	if (files.Cert == "") != (files.Key == "") {
		c.missing(p.at("files").at("cert"), "expected cert and key together")
	}
}

func (c *checker) httpProbe(p path, h *HTTPProbe) {
	if h.Path != "" && (h.Path[0] != '/' || strings.ContainsFunc(h.Path, isSpaceOrControl)) {
		c.fail(p.at("path"), "%q; expected / and no spaces", h.Path)
	}
	if h.Reuse != 0 {
		between(c, p.at("reuse"), h.Reuse, 1, 1000)
	}
	if h.Method != "" && !isToken(h.Method) {
		c.fail(p.at("method"), "%q; expected a method such as GET", h.Method)
	}
	if strings.ContainsFunc(h.Host, isSpaceOrControl) || strings.ContainsAny(h.Host, "/@") {
		c.fail(p.at("host"), "%q; expected a host name, with a port if need be", h.Host)
	}
	for _, k := range slices.Sorted(maps.Keys(h.Headers)) {
		if !isToken(k) {
			c.fail(p.at("headers").at(k), "%q; expected the name of a header", k)
		}
		if strings.ContainsFunc(h.Headers[k], func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			c.fail(p.at("headers").at(k), "%q; expected no control characters", h.Headers[k])
		}
	}
	for i, s := range h.Expect {
		if _, _, ok := s.Range(); !ok {
			c.fail(p.at("expect").item(i), "%q; expected a status or a range, such as 200 or 200-299", string(s))
		}
	}
	c.regexp(p.at("matches"), h.Matches)
	if h.JSON != nil && h.JSON.Path == "" {
		c.missing(p.at("json").at("path"), "no value; expected keys with dots between, such as checks.0.status")
	}
}

// calculated checks what a probe is calculated from.
func (c *checker) calculated(p path, k *CalculatedProbe) {
	if (len(k.Probes) == 0) == (len(k.Pools) == 0) {
		c.missing(p.at("probes"), "expected exactly one of probes and pools")
	}
	for i, name := range k.Probes {
		at := p.at("probes").item(i)
		c.ref(at, "probes", name)
		if other := c.o.Probes[name]; other.Calculated != nil {
			c.fail(at, "%s is calculated itself; expected a probe that is not", name)
		} else if other.Import != nil {
			c.fail(at, "%s imports verdicts; expected a probe that tests", name)
		}
	}
	for i, name := range k.Pools {
		pool, addr, one := strings.Cut(name, "/")
		at := p.at("pools").item(i)
		c.ref(at, "pools", pool)
		if !one {
			continue
		}
		a, err := netip.ParseAddr(addr)
		if of, ok := c.o.Pools[pool]; err != nil || c.refs && ok && !slices.ContainsFunc(of.Endpoints, func(e Endpoint) bool { return e.Address == a }) {
			c.fail(at, "%s is no endpoint of pool %s", addr, pool)
		}
	}
	switch n, err := strconv.Atoi(k.Need); {
	case k.Need == "" || k.Need == "all" || k.Need == "any" || k.Need == "quorum":
	case err != nil || n < 1 || n > max(len(k.Probes), len(k.Pools)):
		c.fail(p.at("need"), "%q; expected all, any, quorum or 1 to %d", k.Need, max(len(k.Probes), len(k.Pools)))
	}
}

func (c *checker) quorum(p path, q Quorum) {
	if q.Share != nil {
		between(c, p.at("share"), *q.Share, 0, 0.99)
	}
	if q.Min != 0 {
		between(c, p.at("min"), q.Min, 1, 100)
	}
	if q.Sites != 0 {
		between(c, p.at("sites"), q.Sites, 1, 100)
	}
	for i, name := range q.MustBeHealthy {
		if slices.Contains(q.MonitorOnly, name) {
			c.fail(p.at("mustBeHealthy").item(i), "%s is also in monitorOnly", name)
		}
	}
}

func (c *checker) guard(p path, g Guard) {
	if g.Velocity != nil {
		between(c, p.at("velocity"), *g.Velocity, 0, 1)
	}
	if g.Window != 0 {
		c.span(p.at("window"), g.Window, time.Second, 24*time.Hour)
	}
	if g.Panic != nil {
		between(c, p.at("panic"), *g.Panic, 0, 1)
	}
}

func (c *checker) nodeKey(p path, k NodeKey) {
	c.name(p)
	if b, err := base64.StdEncoding.DecodeString(k.Key); err != nil || len(b) != ed25519.PublicKeySize {
		c.fail(p.at("key"), "%q; expected an ed25519 public key: %d octets in base64", k.Key, ed25519.PublicKeySize)
	}
}

func (c *checker) nodeHealth(p path, h NodeHealth) {
	roles := []string{RoleFull, RoleProber, RoleAnswer}
	if h.Role != "" && !slices.Contains(roles, h.Role) {
		c.fail(p.at("role"), "%q; %s", h.Role, expected(roles))
	}
	for i, r := range h.References {
		if msg := checkHostPort(r); msg != "" {
			c.fail(p.at("references").item(i), "%q: %s", r, msg)
		}
	}
}

// dependencies checks what pool depends on.
func (c *checker) dependencies(p path, pool Pool) {
	for i, name := range pool.DependsOn {
		c.ref(p.at("dependsOn").item(i), "pools", name)
	}
}

// healthLoops finds pools whose health depends on itself. Each loop is reported once, at its
// first pool by name.
func (c *checker) healthLoops() {
	done := map[string]bool{}
	var way []string
	var visit func(string)
	visit = func(name string) {
		if i := slices.Index(way, name); i >= 0 {
			c.fail(path{"pools", way[i], "dependsOn"}, "health depends on itself: %s", strings.Join(append(slices.Clone(way[i:]), name), " → "))
			return
		}
		if done[name] {
			return
		}
		way = append(way, name)
		for _, next := range c.o.HealthOf(name) {
			visit(next)
		}
		way = way[:len(way)-1]
		done[name] = true
	}
	for _, name := range c.o.Names("pools") {
		visit(name)
	}
}

// UsesRegions reports whether a policy asks for what the vantages of a region say.
func (o *Objects) UsesRegions() (uses bool) {
	o.eachStage(func(s *Stage) { uses = uses || s.Health != nil && s.Health.By == "region" })
	return uses
}

// HealthOf returns the pools that the health of a pool is derived from: those it depends on,
// and those its probe is calculated from.
func (o *Objects) HealthOf(pool string) []string {
	p := o.Pools[pool]
	out := slices.Clone(p.DependsOn)
	if k := o.Probes[p.Probe].Calculated; k != nil {
		for _, name := range k.Pools {
			name, _, _ = strings.Cut(name, "/")
			out = append(out, name)
		}
	}
	return out
}
