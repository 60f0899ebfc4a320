package config

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Validate checks f as Parse does, for those that build one in code: the node, the objects
// as a whole, and that every service could answer.
func (f *File) Validate() error { return f.check().err() }

func (f *File) check() faultList {
	faults := f.Objects.check(true)
	c := checker{o: &f.Objects, places: f.places}
	c.node(path{"node"}, f.Node)
	faults = append(faults, c.faults...)
	if len(faults) == 0 {
		for _, x := range Unanswerable(&f.Objects) {
			faults = append(faults, fault{Fault: x})
		}
	}
	return faults
}

// node checks the section of this process. Its sites may be in the store, so that they are
// looked up only when the file has sites, or when there is no store.
func (c *checker) node(p path, n Node) {
	store := n.Etcd.Embedded || len(n.Etcd.Endpoints) > 0
	c.refs = len(c.o.Sites) > 0 || !store

	if n.Name == "" {
		c.missing(p.at("name"), "no value; expected a name that is unique in the fleet")
	} else if msg := checkName(n.Name); msg != "" {
		c.fail(p.at("name"), "%s", msg)
	}
	if n.Site == "" {
		c.missing(p.at("site"), "no value; expected the site that this node is at")
	} else {
		c.ref(p.at("site"), "sites", n.Site)
	}
	c.nodeHealth(p.at("health"), n.Health)
	if len(n.DNS) == 0 && n.Health.Role != RoleProber {
		c.missing(p.at("dns"), "no value; expected addresses to answer on, such as [\"127.0.0.1:5300\"]")
	}
	if store && n.Data == "" {
		c.missing(p.at("data"), "no value; expected a folder for what is known of the store")
	}

	// The same address twice: DNS is on UDP and TCP, gossip too, the API on TCP.
	first := map[netip.AddrPort]path{}
	listen := func(p path, a netip.AddrPort) {
		if a.Addr().Is4In6() {
			c.fail(p, "%s; expected %s", a, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
		}
		if other, ok := first[a]; ok && a.Port() != 0 {
			c.fail(p, "%s is already %s", a, other)
		}
		first[a] = p
	}
	for i, a := range n.DNS {
		listen(p.at("dns").item(i), a)
	}
	listen(p.at("admin"), n.EffectiveAdmin())
	if !n.EffectiveAdmin().Addr().IsLoopback() && n.AdminToken == "" {
		c.missing(p.at("adminToken"), "no value; expected a token, since admin is not on loopback: %s", n.Admin)
	}
	if strings.ContainsFunc(n.AdminToken, isSpaceOrControl) {
		c.fail(p.at("adminToken"), "expected no spaces or control characters")
	}
	if n.Gossip.Listen.IsValid() {
		listen(p.at("gossip").at("listen"), n.Gossip.Listen)
	}
	if n.RTT.Beacon.Listen.IsValid() {
		listen(p.at("rtt").at("beacon").at("listen"), n.RTT.Beacon.Listen)
	}
	if n.XDS.Listen.IsValid() {
		listen(p.at("xds").at("listen"), n.XDS.Listen)
	}
	c.gossip(p.at("gossip"), n.Gossip)
	c.xds(p.at("xds"), n.XDS)
	c.etcd(p.at("etcd"), n.Etcd)
	c.geo(p.at("geo"), n.Geo)
	if n.OTLP.Endpoint != "" {
		if msg := checkURL(n.OTLP.Endpoint, "http", "https", "grpc", "grpcs"); msg != "" {
			c.fail(p.at("otlp").at("endpoint"), "%q: %s", n.OTLP.Endpoint, msg)
		}
	}
	c.tracing(p.at("tracing"), n.Tracing)
	c.serve(p.at("serve"), n.Serve)
	c.decisionLog(p.at("decisionLog"), n.Decisions)
	c.rtt(p.at("rtt"), n.RTT)
	h := n.History.WithDefaults()
	between(c, p.at("history").at("snapshots"), h.Snapshots, 1, 100_000)
	c.span(p.at("history").at("age"), h.Age, time.Second, 366*24*time.Hour)
	for i, r := range n.Resolvers {
		if r.Addr().IsUnspecified() || r.Port() == 0 {
			c.fail(p.at("resolvers").item(i), "%s; expected the address and port of a resolver", r)
		}
	}
	if n.OTLP.Sample != nil {
		between(c, p.at("otlp").at("sample"), *n.OTLP.Sample, 0, 1)
	}
}

// checkURL says what is wrong with s as the base URL of a server, or "".
func checkURL(s string, schemes ...string) string {
	u, err := url.Parse(s)
	want := "expected a URL such as " + schemes[0] + "://127.0.0.1:4318"
	switch {
	case err != nil:
		return want
	case !slices.Contains(schemes, u.Scheme):
		return fmt.Sprintf("scheme %q; expected one of %s", u.Scheme, strings.Join(schemes, ", "))
	case u.Scheme == "unix":
		if u.Path == "" {
			return "expected unix:///path/to/socket"
		}
	case u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "":
		return want
	}
	return ""
}

// checkHostPort says what is wrong with s as host:port, or "".
func checkHostPort(s string) string {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return "expected host:port"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Sprintf("port %q; expected 1 to 65535", port)
	}
	if _, err := netip.ParseAddr(host); err != nil {
		if msg := checkDomain(CanonicalName(host)); msg != "" {
			return "expected host:port"
		}
	}
	return ""
}

func (c *checker) gossip(p path, g Gossip) {
	if g.Key != "" {
		key, err := base64.StdEncoding.DecodeString(g.Key)
		if n := len(key); err != nil || n != 16 && n != 24 && n != 32 {
			c.fail(p.at("key"), "expected 16, 24 or 32 octets in base64; \"openssl rand -base64 32\" makes one")
		}
	}
	for i, k := range g.Keys {
		key, err := base64.StdEncoding.DecodeString(k)
		if n := len(key); err != nil || n != 16 && n != 24 && n != 32 {
			c.fail(p.at("keys").item(i), "expected 16, 24 or 32 octets in base64")
		}
	}
	if len(g.Keys) > 0 && g.Key == "" {
		c.missing(p.at("key"), "no value; expected the key that is used, since keys are understood beside it")
	}
	for i, peer := range g.Join {
		if msg := checkHostPort(peer); msg != "" {
			c.fail(p.at("join").item(i), "%q: %s", peer, msg)
		}
	}
	switch {
	case !g.Listen.IsValid():
		if g.Advertise.IsValid() || len(g.Join) > 0 || g.Key != "" {
			c.missing(p.at("listen"), "no value; expected the address to gossip on")
		}
	case !g.Listen.Addr().IsLoopback() && g.Key == "":
		c.missing(p.at("key"), "no value; expected a key, since gossip is not on loopback: %s", g.Listen)
	case g.Listen.Addr().IsUnspecified() && !g.Advertise.IsValid():
		c.missing(p.at("advertise"), "no value; expected what to tell peers, since listen is %s", g.Listen)
	}
	if g.Advertise.IsValid() && g.Advertise.Addr().IsUnspecified() {
		c.fail(p.at("advertise"), "%s; expected an address that peers can reach", g.Advertise)
	}
}

func (c *checker) etcd(p path, e Etcd) {
	external := len(e.Endpoints) > 0
	if e.Embedded && external {
		c.fail(p.at("endpoints"), "given with embedded; expected one of them")
	}
	if e.Listen != "" {
		c.etcdListen(p.at("listen"), e)
	}
	schemes := map[string]bool{}
	for i, s := range e.Endpoints {
		msg := ""
		if scheme, _, ok := strings.Cut(s, "://"); ok {
			schemes[scheme] = true
			msg = checkURL(s, "http", "https", "unix")
		} else {
			msg = checkHostPort(s)
		}
		if msg != "" {
			c.fail(p.at("endpoints").item(i), "%q: %s", s, msg)
		}
	}
	if (e.Username == "") != (e.Password == "") {
		c.fail(p, "expected username and password together")
	}
	if !external && (e.Username != "" || e.TLS != TLSFiles{}) {
		c.fail(p, "username and tls are for an external etcd; expected endpoints beside them")
	}
	if (e.TLS.Cert == "") != (e.TLS.Key == "") {
		c.fail(p.at("tls"), "expected cert and key together")
	}
	if external && e.TLS != (TLSFiles{}) && (schemes["http"] || schemes["unix"]) {
		c.fail(p.at("tls"), "given with endpoints without TLS; expected https:// endpoints")
	}
}

// etcdListen checks where an embedded etcd, which has no users or TLS, is served.
func (c *checker) etcdListen(p path, e Etcd) {
	if !e.Embedded {
		c.fail(p, "given without embedded; expected embedded: true beside it")
	}
	if msg := checkURL(e.Listen, "http", "unix"); msg != "" {
		c.fail(p, "%q: %s", e.Listen, msg)
		return
	}
	u, _ := url.Parse(e.Listen) // checked above
	if addr, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && (err != nil || !addr.IsLoopback() || u.Port() == "") {
		c.fail(p, "%q: expected a loopback address and a port: the embedded etcd asks nobody for a password", e.Listen)
	}
}

func (c *checker) geo(p path, g Geo) {
	first := map[netip.Prefix]int{}
	for i, o := range g.Overrides {
		at := p.at("overrides").item(i)
		switch {
		case !o.Prefix.IsValid():
			c.missing(at.at("prefix"), "no value; expected a prefix such as 192.0.2.0/24")
		case o.Prefix.Addr().Is4In6():
			c.fail(at.at("prefix"), "%s; expected an IPv4 prefix", o.Prefix)
		case o.Prefix != o.Prefix.Masked():
			c.fail(at.at("prefix"), "%s has bits past its length; expected %s", o.Prefix, o.Prefix.Masked())
		default:
			if j, ok := first[o.Prefix]; ok {
				c.fail(at.at("prefix"), "%s is already override [%d]", o.Prefix, j)
			} else {
				first[o.Prefix] = i
			}
		}
		if (o.Lat == nil) != (o.Lon == nil) {
			c.missing(at.at("lat"), "expected lat and lon together")
		}
		if (o.Site == "") == (o.Lat == nil && o.Lon == nil) {
			c.missing(at.at("site"), "expected exactly one of site and lat with lon")
		}
		if o.Site != "" {
			c.ref(at.at("site"), "sites", o.Site)
		}
		if o.Lat != nil {
			between(c, at.at("lat"), *o.Lat, -90, 90)
		}
		if o.Lon != nil {
			between(c, at.at("lon"), *o.Lon, -180, 180)
		}
		c.country(at.at("country"), o.Country)
	}
}
