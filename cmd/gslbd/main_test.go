package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb/store"
)

// example copies the example configuration to a folder of the test, with every port free,
// and returns the path of the file.
func example(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "example"), os.DirFS("../../testdata/example")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "geo"), os.DirFS("../../testdata/geo")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "example", "gslb.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	closed := refused(t).addr.Port()
	for _, r := range [][2]string{
		{"/tmp/meridian-example", filepath.Join(dir, "data")},
		{`"127.0.0.1:5300"`, `"127.0.0.1:0"`},
		{"admin: 127.0.0.1:8053", "admin: 127.0.0.1:0"},
		{"listen: 127.0.0.1:7946", "listen: 127.0.0.1:0"},
		{"listen: 127.0.0.1:18000", "listen: 127.0.0.1:0"},
		{"port: 8080", fmt.Sprintf("port: %d", closed)},
		{"port: 8081", fmt.Sprintf("port: %d", closed)},
	} {
		if !strings.Contains(string(text), r[0]) {
			t.Fatalf("the example has no %q", r[0])
		}
		text = []byte(strings.ReplaceAll(string(text), r[0], r[1]))
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestExample runs the example configuration, asks it for everything that it is an example
// of, and ends it. None of its endpoints is up, so that its services answer as allDown says.
func TestExample(t *testing.T) {
	t.Parallel()
	n := startNode(t, example(t))
	for _, tt := range []struct {
		name, subnet string
		qtype        uint16
		want         string
	}{
		{"www.example.com", "192.0.2.0/24", dns.TypeA, "A 127.0.1.1, A 127.0.1.2"},
		{"www.example.com", "198.51.100.0/24", dns.TypeA, "A 127.0.2.1, A 127.0.2.2"},
		{"www.example.com", "203.0.113.0/24", dns.TypeA, "A 127.0.3.1, A 127.0.3.2"},
		{"www.example.com", "2001:db8:1::/48", dns.TypeA, "A 127.0.1.1, A 127.0.1.2"},
		{"www.example.com", "192.0.2.0/24", dns.TypeAAAA, "AAAA 2001:db8:1::11"},
		{"www.example.com", "198.51.100.0/24", dns.TypeAAAA, "AAAA 2001:db8:2::11"},
		{"www.example.com", "2001:db8:3::/48", dns.TypeAAAA, "AAAA 2001:db8:3::11"},
		{"www.example.com", "10.1.2.0/24", dns.TypeA, "A 127.0.2.1, A 127.0.2.2"}, // an override
		{"www.example.com", "", dns.TypeTXT, `TXT "steered: addresses are chosen for each client"`},
		{"WWW.example.COM", "192.0.2.0/24", dns.TypeAAAA, "AAAA 2001:db8:1::11"},
		{"shop.example.com", "198.51.100.0/24", dns.TypeAAAA, "AAAA 2001:db8:2::11, CNAME www.example.com."},
		{"api.example.com", "", dns.TypeA, "A 127.0.9.1"}, // the standby, which has no probe
		{"api.example.com", "", dns.TypeAAAA, "NOERROR"},  // and no such address
		{"example.com", "", dns.TypeMX, "MX 10 mail.example.com., MX 20 mail.backup.example.net."},
		{"example.com", "", dns.TypeCAA, `CAA 0 issue "letsencrypt.org"`},
		{"_sip._tcp.example.com", "", dns.TypeSRV, "SRV 10 60 5060 sip.example.com., SRV 20 40 5060 sip.backup.example.net."},
		{"any.apps.example.com", "", dns.TypeA, "A 192.0.2.70"},
		{"53.2.0.192.in-addr.arpa", "", dns.TypePTR, "PTR ns1.example.com."},
		{"none.example.com", "", dns.TypeA, "NXDOMAIN"},
		{"host.sub.example.com", "", dns.TypeA, "NOERROR"}, // a referral
		{"example.net", "", dns.TypeA, "REFUSED"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(fmt.Sprintf("%s %s %s %s", network, tt.name, dns.TypeToString[tt.qtype], tt.subnet), func(t *testing.T) {
				m := n.ask(network, tt.name, tt.qtype, tt.subnet)
				if got := answers(m); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
			})
		}
	}
	m := n.ask("udp", "www.example.com", dns.TypeA, "198.51.100.0/24")
	if ecs, ok := m.IsEdns0().Option[0].(*dns.EDNS0_SUBNET); !ok || ecs.SourceScope == 0 || ecs.SourceScope > 24 {
		t.Errorf("client subnet: got %v, want a scope of 1 to 24", m.IsEdns0().Option)
	}
	st := n.status()
	if st.Node.Name != "ns1" || st.Node.Site != "eu-west" || st.State != api.StateDegraded || st.Store == nil || !st.Store.Connected {
		t.Errorf("status: got %+v with store %+v, want ns1 in eu-west, degraded for its endpoints alone, and its etcd", st, st.Store)
	}
	n.stop()
}

// small is a node that keeps its objects in its file. addrs are those of its only pool.
func small(addrs ...string) string {
	var b strings.Builder
	b.WriteString(`node: {name: ns1, site: eu, dns: ["127.0.0.1:0"], admin: "127.0.0.1:0"}
sites: {eu: {lat: 50, lon: 8}}
zones: [{name: example.com, file: example.com.zone}]
services:
  www.example.com: {pools: {web: {}}, policy: [health, nearest, {select: {answers: 8}}]}
pools:
  web:
    site: eu
    endpoints:
`)
	for _, a := range addrs {
		fmt.Fprintf(&b, "      - {address: %s}\n", a)
	}
	return b.String()
}

func zoneFile(txt string) string {
	return fmt.Sprintf("$TTL 300\n@ SOA ns hostmaster 1 7200 900 1209600 300\n@ NS ns\nns A 127.0.0.1\n@ TXT %q\n", txt)
}

func TestReload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "example.com.zone", zoneFile("one"))
	path := write(t, dir, "gslb.yaml", small("192.0.2.11", "192.0.2.12"))
	n := startNode(t, path)
	const before, after = "A 192.0.2.11, A 192.0.2.12", "A 192.0.2.21, A 192.0.2.22"
	if got := n.www(); got != before {
		t.Fatalf("got %s, want %s", got, before)
	}

	// Every answer is of the one configuration or of the other, and there always is one.
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for asked := 0; ; asked++ {
			m, err := n.tryAsk("udp", "www.example.com", dns.TypeA, "")
			if err != nil {
				t.Errorf("during a reload: %v", err)
				return
			}
			if got := answers(m); got != before && got != after {
				t.Errorf("during a reload: got %s, want %s or %s", got, before, after)
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})

	// The same size and time: only the signal tells.
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	next := write(t, dir, "next.yaml", small("192.0.2.21", "192.0.2.22"))
	if err := os.Chtimes(next, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	n.signal(syscall.SIGHUP)
	eventually(t, "after SIGHUP", after, n.www)

	// A changed file without a signal.
	write(t, dir, "gslb.yaml", small("192.0.2.12", "192.0.2.11"))
	eventually(t, "after the configuration changed", before, n.www)
	close(done)
	wg.Wait()
	write(t, dir, "example.com.zone", zoneFile("two, and longer"))
	txt := func() string { return answers(n.ask("udp", "example.com", dns.TypeTXT, "")) }
	eventually(t, "after the zone changed", `TXT "two, and longer"`, txt)
	if got := n.reasons(); got != "" {
		t.Errorf("reasons: got %q, want none", got)
	}

	// What is bad changes nothing, neither that in it which is good, and is named.
	for _, bad := range []struct{ name, file, text, want string }{
		{"unknown key", "gslb.yaml", small("192.0.2.31") + "poools: {}\n", `gslb.yaml:11: poools: unknown key`},
		{"half a file", "gslb.yaml", small("192.0.2.31")[:100], "gslb.yaml:"},
		{"zone", "example.com.zone", zoneFile("three") + "www CNAME\n", "example.com.zone:6"},
	} {
		t.Run(bad.name, func(t *testing.T) {
			good, err := os.ReadFile(filepath.Join(dir, bad.file))
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, bad.file, bad.text)
			eventually(t, "named in the status", "named", func() string {
				got := n.reasons()
				if strings.Contains(got, " stays") && strings.Contains(got, bad.want) {
					return "named"
				}
				return got
			})
			if !strings.Contains(n.log.String(), bad.want) {
				t.Errorf("log: got %q, want one with %q", n.log.String(), bad.want)
			}
			if got := n.www(); got != before {
				t.Errorf("answer: got %s, want %s", got, before)
			}
			if got := txt(); got != `TXT "two, and longer"` {
				t.Errorf("zone: got %s, want the running one", got)
			}
			write(t, dir, bad.file, string(good))
			eventually(t, "after the file is good again", "", n.reasons)
		})
	}
	n.stop()
}

// TestReloadBeforeReady: a SIGHUP while the node starts does not end it, and what it asks for is
// done once it runs. The configuration comes from a pipe, so that the start waits for the test.
func TestReloadBeforeReady(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "gslb.yaml")
	write(t, dir, "example.com.zone", zoneFile("one"))
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	n := launch(t, "-config", path)
	pipe, err := os.OpenFile(path, os.O_WRONLY, 0) // returns when the node reads
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(write(t, dir, "next.yaml", small("192.0.2.22")), path); err != nil {
		t.Fatal(err)
	}
	n.signal(syscall.SIGHUP)
	if _, err := pipe.WriteString(small("192.0.2.11")); err != nil {
		t.Fatal(err)
	}
	pipe.Close()
	n.ready()
	eventually(t, "what it was to read again", "A 192.0.2.22", n.www)
	n.stop()
}

// TestReloadIncluded: what a zone includes is followed like the zone, and SIGHUP reads it even
// if nothing shows that it changed.
func TestReloadIncluded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := write(t, dir, "gslb.yaml", small("192.0.2.11"))
	write(t, dir, "example.com.zone", zoneFile("one")+"$INCLUDE part.zone\n")
	part := write(t, dir, "part.zone", "part TXT one\n")
	n := startNode(t, path)
	txt := func() string { return answers(n.ask("udp", "part.example.com", dns.TypeTXT, "")) }
	if got := txt(); got != `TXT "one"` {
		t.Fatalf("got %s, want TXT one", got)
	}
	write(t, dir, "part.zone", "part TXT longer\n")
	eventually(t, "after what is included changed", `TXT "longer"`, txt)

	write(t, dir, "part.zone", "part TYPO x\n")
	eventually(t, "named in the status", "true", func() string {
		return strconv.FormatBool(strings.Contains(n.reasons(), "part.zone:1"))
	})
	if got := txt(); got != `TXT "longer"` {
		t.Errorf("with a fault in what is included: got %s, want the running one", got)
	}
	pipe := filepath.Join(dir, "pipe") // into which nobody writes
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(pipe, part); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pipe is named in the status", "true", func() string {
		return strconv.FormatBool(strings.Contains(n.reasons(), "expected a regular file"))
	})
	if err := os.Remove(part); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "part.zone", "part TXT good\n")
	eventually(t, "after it is good again", `TXT "good"`, txt)

	fi, err := os.Stat(part)
	if err != nil {
		t.Fatal(err)
	}
	next := write(t, dir, "next.zone", "part TXT evil\n")
	if err := os.Chtimes(next, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, part); err != nil {
		t.Fatal(err)
	}
	n.signal(syscall.SIGHUP)
	eventually(t, "after SIGHUP", `TXT "evil"`, txt)
	n.stop()
}

// TestDrain sends queries and SIGTERM right after: every one is answered.
func TestDrain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "example.com.zone", zoneFile("one"))
	n := startNode(t, write(t, dir, "gslb.yaml", small("192.0.2.11")))
	const queries = 200
	conns := map[string]*dns.Conn{}
	for _, network := range []string{"udp", "tcp"} {
		c, err := net.Dial(network, n.dns)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		conns[network] = &dns.Conn{Conn: c}
	}
	// The server has accepted the connection once it answered on it.
	for network, c := range conns {
		if err := c.WriteMsg(question("www.example.com", dns.TypeA, "")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadMsg(); err != nil {
			t.Fatalf("%s: %v", network, err)
		}
	}
	for _, c := range conns {
		for id := range queries {
			q := question("www.example.com", dns.TypeA, "")
			q.Id = uint16(id)
			if err := c.WriteMsg(q); err != nil {
				t.Fatal(err)
			}
		}
	}
	n.signal(syscall.SIGTERM)
	for network, c := range conns {
		got := map[uint16]bool{}
		for range queries {
			m, err := c.ReadMsg()
			if err != nil {
				t.Errorf("%s: %d of %d answered, then %v", network, len(got), queries, err)
				break
			}
			got[m.Id] = true
		}
		if len(got) != queries {
			t.Errorf("%s: got %d answers, want %d", network, len(got), queries)
		}
	}
	if code := n.wait(); code != 0 {
		t.Errorf("exit code: got %d, want 0", code)
	}
}

// TestCheck: every fault at once, each with its line.
func TestCheck(t *testing.T) {
	t.Parallel()
	good := example(t)
	dir := t.TempDir()
	write(t, dir, "bad.zone", "$TTL 300\n@ SOA ns hostmaster 1 7200 900 1209600 300\n@ NS ns\nns A 192.0.2.500\nx TYPO y\n")
	many := write(t, dir, "many.yaml", `node: {name: ns1, site: nowhere, dns: ["127.0.0.1:0"], geo: {city: missing.mmdb}, colour: red}
sites: {eu: {lat: 500, lon: 8}}
zones:
  - {name: example.com, file: bad.zone}
  - {name: example.org, file: missing.zone}
pools:
  web: {site: uk, probe: https, endpoints: [{address: 192.0.2.1}, {address: 192.0.2.1}]}
services:
  www.example.com: {pools: {wbe: {}}, ttl: fast}
`)
	deep := write(t, dir, "deep.yaml", `node: {name: ns1, site: eu, dns: ["127.0.0.1:0"], geo: {city: missing.mmdb}}
sites: {eu: {lat: 50, lon: 8}}
zones:
  - {name: example.com, file: bad.zone}
  - {name: example.org, file: missing.zone}
`)
	write(t, dir, "example.com.zone", zoneFile("one"))
	both := write(t, dir, "both.yaml", strings.Replace(small("192.0.2.1"), "services:\n", "services:\n  ns.example.com: {pools: {web: {}}}\n", 1))
	for _, tt := range []struct {
		name, path string
		code       int
		want       []string // each in a line of its own
	}{
		{"good", good, 0, []string{good + ": no faults"}},
		{"many", many, 1, []string{
			`many.yaml:1: node.site: no such site`, `many.yaml:1: node.colour: unknown key`,
			`many.yaml:2: sites.eu.lat: 500`, `many.yaml:7: pools.web.site: no such site`,
			`many.yaml:7: pools.web.probe: no such probe`, `many.yaml:7: pools.web.endpoints[1].address: `,
			`many.yaml:9: services.www.example.com.pools.wbe: no such pool`, `many.yaml:9: services.www.example.com.ttl: `,
			`bad.zone:4: `, `bad.zone:5: `, `many.yaml:5: zones.example.org.file: `, `many.yaml:1: node.geo.city: `,
		}},
		{"zones and databases", deep, 1, []string{
			`bad.zone:4: `, `bad.zone:5: `, `deep.yaml:5: zones.example.org.file: `, `deep.yaml:1: node.geo.city: `,
		}},
		{"a service where the zone has addresses", both, 1, []string{`both.yaml:5: services.ns.example.com: zone example.com has A at `}},
		{"no file", filepath.Join(dir, "none.yaml"), 1, []string{"none.yaml: no such file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := launch(t, "check", "-config", tt.path)
			code := p.wait()
			var lines []string
			for line := range p.lines {
				lines = append(lines, line)
			}
			lines = append(lines, strings.Split(p.log.String(), "\n")...)
			if code != tt.code {
				t.Errorf("exit code: got %d, want %d", code, tt.code)
			}
			for _, want := range tt.want {
				i := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, want) })
				if i < 0 {
					t.Errorf("got %q, want a line with %q", lines, want)
					continue
				}
				lines = slices.Delete(lines, i, i+1)
			}
		})
	}
}

// TestCheckAgrees: what check refuses does not start either, and says the same.
func TestCheckAgrees(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "example.com.zone", zoneFile("one")+"a A 192.0.2.500\nb TYPO x\nc A\n")
	for _, tt := range []struct{ name, text string }{
		{"objects", "node: {name: ns1}\npools: {web: {site: eu}}\n"},
		{"zone", small("192.0.2.1")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, dir, tt.name+".yaml", tt.text)
			check, start := launch(t, "check", "-config", path), launch(t, "-config", path)
			if c, s := check.wait(), start.wait(); c != 1 || s != 1 {
				t.Errorf("exit codes: got %d of check, %d of the start; want 1 and 1", c, s)
			}
			if c, s := check.log.String(), strings.TrimPrefix(start.log.String(), "gslbd: "); c != s || strings.Count(c, "\n") < 3 {
				t.Errorf("faults: got %q of check, %q of the start; want the same three and more", c, s)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		name, args string
		code       int
		want       string // in what is printed
	}{
		{"nothing", "", 2, "gslbd -config FILE"},
		{"help", "-h", 0, "gslbd check -config FILE"},
		{"unknown flag", "-colour red", 2, "flag provided but not defined: -colour"},
		{"unknown command", "run", 2, `unknown command "run"`},
		{"word after the flags", "-config x.yaml more", 2, `unknown command "more"`},
		{"log level", "-config x.yaml -log-level loud", 2, `-log-level "loud": expected debug, info, warn or error`},
		{"workers", "-config x.yaml -workers many", 2, `invalid value "many"`},
		{"negative workers", "-config x.yaml -workers -1", 2, `-workers -1: expected`},
		{"no such file", "-config none.yaml", 1, "none.yaml: no such file"},
		{"check without a file", "check", 2, "usage: gslbd check -config FILE"},
		{"check unknown flag", "check -colour red", 2, "flag provided but not defined: -colour"},
		{"demo unknown flag", "demo -colour red", 2, "flag provided but not defined: -colour"},
		{"demo word", "demo now", 2, `unexpected "now"`},
		{"demo port", "demo --dns-port 70000", 2, "--dns-port 70000: expected 1 to"},
		{"demo ports", "demo --dns-port 5311 --admin-port 5311", 2, "--admin-port 5311: port 5311 is also that of --dns-port"},
		{"demo xds port", "demo --xds-port 70000", 2, "--xds-port 70000: expected 1 to 65535"},
		{"demo xds port of another", "demo --gossip-port 5311 --xds-port 5311", 2, "--xds-port 5311: port 5311 is also that of --gossip-port"},
		{"demo log level", "demo --log-level loud", 2, `--log-level "loud": expected debug, info, warn or error`},
		{"version", "version", 0, "gslbd "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out output
			code := run(t.Context(), strings.Fields(tt.args), &out, &out)
			if code != tt.code || !strings.Contains(out.String(), tt.want) {
				t.Errorf("got code %d and %q, want %d and %q in it", code, out.String(), tt.code, tt.want)
			}
		})
	}
}

func TestBusyPort(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "example.com.zone", zoneFile("one"))
	for _, tt := range []struct{ name, from, to string }{
		{"dns", `dns: ["127.0.0.1:0"]`, `dns: ["%s"]`},
		{"admin", `admin: "127.0.0.1:0"`, `admin: "%s"`},
		{"gossip", `site: eu,`, `site: eu, gossip: {listen: "%s"},`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			text := strings.Replace(small("192.0.2.1"), tt.from, fmt.Sprintf(tt.to, ln.Addr()), 1)
			p := launch(t, "-config", write(t, dir, tt.name+".yaml", text))
			code, said := p.wait(), p.log.String()
			if code != 1 || !strings.Contains(said, ln.Addr().String()) || !strings.Contains(said, "address already in use") || !strings.Contains(said, tt.name) {
				t.Errorf("got code %d and %q, want 1 and that %s %s is in use", code, said, tt.name, ln.Addr())
			}
		})
	}
}

// fleet is what nodes that share a store or a file have: two pools, the second of which is
// only answered when the first is down.
func fleet(first, second *site) string {
	return fmt.Sprintf(`
sites: {eu: {lat: 50, lon: 8}, us: {lat: 38, lon: -77}}
zones:
  - name: example.com
    records: |
      $TTL 300
      @ SOA ns hostmaster 1 7200 900 1209600 300
      @ NS ns
      ns A 127.0.0.1
probes:
  # A node of a busy machine may not answer its own probe for long, and that is not what these
  # tests are about: so the time-out is generous, and what fails seldom is not kept out.
  web: {http: {path: /healthz}, interval: 1s, timeout: 1s, rise: 1, fall: 2, damping: {off: true}}
pools:
  first: {site: eu, probe: web, endpoints: [%s]}
  second: {site: us, probe: web, endpoints: [%s]}
services:
  www.example.com: {ttl: 5s, pools: {first: {}, second: {}}, policy: [health, {failover: [first, second]}]}
`, first.endpoint("192.0.2.1"), second.endpoint("192.0.2.2"))
}

// TestFirstAnswer: a node that knows nothing yet answers no query before it has probed, so
// that not even its first answer names what is down, wherever its objects come from.
func TestFirstAnswer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, etcd string }{{"file", "{}"}, {"etcd", "{embedded: true}"}} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := write(t, dir, "gslb.yaml", fmt.Sprintf(
				"node: {name: ns1, site: eu, data: data, dns: [\"127.0.0.1:0\"], admin: \"127.0.0.1:0\", etcd: %s}", tt.etcd)+
				fleet(refused(t), newSite(t, nil)))
			n := startNode(t, path)
			if got := n.www(); got != "A 192.0.2.2" {
				t.Errorf("first answer: got %s, want A 192.0.2.2", got)
			}
			n.stop()

			// The second start knows what the first one found out, and need not probe.
			n = startNode(t, path)
			if got := n.www(); got != "A 192.0.2.2" {
				t.Errorf("first answer of the second start: got %s, want A 192.0.2.2", got)
			}
			n.stop()
		})
	}
}

// TestWithoutEtcd: a node goes on when its etcd goes, and starts again without it.
func TestWithoutEtcd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	etcd := func() (endpoint string, stop func()) {
		e, err := store.NewEmbed(filepath.Join(dir, "etcd"), "", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx) }()
		stop = sync.OnceFunc(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("etcd: %v", err)
			}
		})
		t.Cleanup(stop)
		select {
		case <-e.Ready():
		case <-time.After(patience):
			t.Fatalf("etcd is not ready after %v", patience)
		}
		return e.Endpoint(), stop
	}
	endpoint, stop := etcd()
	up := newSite(t, nil)
	path := write(t, dir, "gslb.yaml", fmt.Sprintf(
		"node: {name: ns1, site: eu, data: data, dns: [\"127.0.0.1:0\"], admin: \"127.0.0.1:0\", etcd: {endpoints: [%q]}}\n", endpoint))
	seed, err := store.Open(store.Options{Etcd: configEtcd(endpoint)})
	if err != nil {
		t.Fatal(err)
	}
	apply(t, seed, fleet(refused(t), up))

	n := startNode(t, path)
	eventually(t, "with etcd", "A 192.0.2.2", n.www)
	stop()
	eventually(t, "the status when etcd is gone", "degraded", func() string {
		if st := n.status(); !st.Store.Connected && strings.Contains(n.reasons(), "answering from the last known objects") {
			return st.State
		}
		return "connected"
	})
	if got := n.www(); got != "A 192.0.2.2" {
		t.Errorf("without etcd: got %s, want A 192.0.2.2", got)
	}
	// Nothing that it tests answers either: it goes on, open, by the order of the policy.
	up.die()
	eventually(t, "without etcd and any pool", "A 192.0.2.1", n.www)
	up.start()
	eventually(t, "without etcd, when the pool is back", "A 192.0.2.2", n.www)
	revision := n.status().Revision
	n.kill()

	n = startNode(t, path)
	// Soon, not at once: it was killed, and the verdicts on its disk may be those of a moment before.
	eventually(t, "started without etcd", "A 192.0.2.2", n.www)
	st := n.status()
	if !st.Store.FromDisk || st.Store.Connected || st.Revision <= revision {
		t.Errorf("started without etcd: store %+v at revision %d, want the disk's, and a revision over %d", st.Store, st.Revision, revision)
	}

	etcd()
	eventually(t, "etcd is back", "connected", func() string {
		if st := n.status().Store; st.Connected && !st.FromDisk {
			return "connected"
		}
		return "not connected"
	})
	if _, err := n.admin.Apply(t.Context(), []byte(strings.Replace(fleet(refused(t), up), "192.0.2.2", "192.0.2.3", 1)), api.ApplyOptions{Author: "ann"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a change after etcd is back", "A 192.0.2.3", n.www)
	n.stop()
}

// TestTwoNodes: two processes that share an etcd and gossip. What dies is answered by
// neither, and what returns by both.
func TestTwoNodes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second := newSite(t, nil), newSite(t, nil)
	socket := "unix://" + filepath.Join(socketDir(t), "etcd.sock")
	const key = `key: "kq0zzBY2wCkgEJYs4WTD2w=="`
	at, admin := freeAddr(t), freeAddr(t)
	a := launch(t, "-config", write(t, dir, "a.yaml", fmt.Sprintf(`node:
  name: ns-a
  site: eu
  data: a
  dns: [%q]
  admin: %q
  gossip: {listen: "127.0.0.1:0", %s}
  etcd: {embedded: true, listen: %q}
`, at, admin, key, socket)))
	a.at(at, "http://"+admin)
	eventually(t, "ns-a while nothing is known", "not ready, REFUSED", func() string {
		st, err := a.admin.Status(t.Context())
		if err != nil { // it does not listen yet
			return err.Error()
		}
		return st.State + ", " + a.www()
	})
	eventually(t, "the objects are applied", "applied", func() string {
		_, err := a.admin.Apply(t.Context(), []byte(fleet(first, second)), api.ApplyOptions{Author: "ann"})
		if err != nil { // etcd has not begun yet
			return err.Error()
		}
		return "applied"
	})
	a.ready()
	b := startNode(t, write(t, dir, "b.yaml", fmt.Sprintf(`node:
  name: ns-b
  site: us
  data: b
  dns: ["127.0.0.1:0"]
  admin: "127.0.0.1:0"
  gossip: {listen: "127.0.0.1:0", join: [%q], %s}
  etcd: {endpoints: [%q]}
`, a.gossip(), key, socket)))
	eventually(t, "ns-a knows ns-b", "alive", func() string { return a.member("ns-b") })
	eventually(t, "ns-b knows ns-a", "alive", func() string { return b.member("ns-a") })

	both := func(what, want string) {
		t.Helper()
		eventually(t, "ns-a "+what, want, a.www)
		eventually(t, "ns-b "+what, want, b.www)
	}
	both("at first", "A 192.0.2.1")
	for _, n := range []*process{a, b} {
		if views, err := n.admin.Health(t.Context(), "first"); err != nil || len(views.Endpoints) != 1 {
			t.Errorf("health: got %+v, %v; want one endpoint", views, err)
		}
	}
	for range 2 {
		first.die()
		both("after the endpoint died", "A 192.0.2.2")
		first.start()
		both("after the endpoint returned", "A 192.0.2.1")
	}

	// A drain through one is obeyed by the other.
	if _, err := b.admin.Drain(t.Context(), "first", api.DrainRequest{Author: "ann", Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	both("after the drain", "A 192.0.2.2")
	b.stop()
	if got := a.www(); got != "A 192.0.2.2" {
		t.Errorf("ns-a after ns-b left: got %s, want A 192.0.2.2", got)
	}
	a.stop()
}

// TestKilledVantage: an endpoint answers one of two vantages and not the other, which is
// even, and so it is up; when the one that it answers is killed, it is down.
func TestKilledVantage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Vantage") == "a" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	second := newSite(t, nil)
	text := func(name, join string) string {
		return fmt.Sprintf("node: {name: ns-%s, site: eu, dns: [\"127.0.0.1:0\"], admin: \"127.0.0.1:0\", gossip: {listen: \"127.0.0.1:0\", join: [%s]}}", name, join) +
			strings.Replace(fleet(first, second), "path: /healthz", "headers: {Vantage: "+name+"}", 1)
	}
	b := startNode(t, write(t, dir, "b.yaml", text("b", "")))
	eventually(t, "ns-b alone", "A 192.0.2.1", b.www)
	a := startNode(t, write(t, dir, "a.yaml", text("a", b.gossip())))
	eventually(t, "ns-a with ns-b", "A 192.0.2.1", a.www)
	vantages := func() string {
		h, err := a.admin.Health(t.Context(), "first")
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, v := range h.Endpoints[0].Vantages {
			if v.Fresh {
				out = append(out, fmt.Sprintf("%s %v", v.Node, v.Up))
			}
		}
		return strings.Join(out, ", ")
	}
	eventually(t, "vantages", "ns-a false, ns-b true", vantages)
	eventually(t, "one against one", "A 192.0.2.1", a.www)
	b.kill()
	eventually(t, "ns-a without ns-b", "A 192.0.2.2", a.www)
	eventually(t, "vantages without ns-b", "ns-a false", vantages)
	eventually(t, "ns-a of ns-b", "not heard", func() string {
		if s := a.member("ns-b"); s != "silent" && s != "gone" {
			return s
		}
		return "not heard"
	})
	a.stop()
}

// TestRegion: an endpoint answers the vantage of one region and not that of the other. For the
// fleet it is up; the clients of the other region alone are sent elsewhere, by both nodes, which
// say why.
func TestRegion(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Vantage") == "eu" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	second := newSite(t, nil)
	objects := strings.Replace(fleet(first, second), "policy: [health,", "policy: [{health: {by: region}},", 1)
	text := func(site, join string) string {
		return fmt.Sprintf(`node:
  name: ns-%[1]s
  site: %[1]s
  dns: ["127.0.0.1:0"]
  admin: "127.0.0.1:0"
  gossip: {listen: "127.0.0.1:0", join: [%[2]s]}
  geo: {overrides: [{prefix: 198.51.100.0/24, site: eu}, {prefix: 203.0.113.0/24, site: us}]}
`, site, join) + strings.Replace(objects, "path: /healthz", "headers: {Vantage: "+site+"}", 1)
	}
	us := startNode(t, write(t, dir, "us.yaml", text("us", "")))
	eu := startNode(t, write(t, dir, "eu.yaml", text("eu", us.gossip())))
	for _, n := range []*process{us, eu} {
		eventually(t, "both regions", "eu: A 192.0.2.2, us: A 192.0.2.1", func() string {
			return "eu: " + answers(n.ask("udp", "www.example.com", dns.TypeA, "198.51.100.0/24")) +
				", us: " + answers(n.ask("udp", "www.example.com", dns.TypeA, "203.0.113.0/24"))
		})
	}
	first.die()
	eventually(t, "when it is down for all", "A 192.0.2.2", func() string {
		return answers(us.ask("udp", "www.example.com", dns.TypeA, "203.0.113.0/24"))
	})
	us.stop()
	eu.stop()
}

// TestReplaced: of two nodes now the one, now the other is replaced, by SIGTERM and by SIGKILL
// in turn, as fast as they come up, while a resolver that knows both asks all the time. It
// always gets an answer, the right one.
func TestReplaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var paths, addrs [2]string
	var nodes [2]*process
	for i := range nodes {
		addrs[i] = freeAddr(t)
		paths[i] = write(t, dir, fmt.Sprintf("%d.yaml", i), fmt.Sprintf(`
node: {name: ns%d, site: eu, data: data%d, dns: [%q], admin: "127.0.0.1:0"}
sites: {eu: {lat: 50, lon: 8}}
zones: [{name: example.com, records: "$TTL 300\n@ SOA ns hostmaster 1 7200 900 1209600 300\n@ NS ns\nns A 127.0.0.1\n"}]
pools: {first: {site: eu, endpoints: [{address: 192.0.2.1}]}}
services: {www.example.com: {pools: {first: {}}}}
`, i, i, addrs[i]))
		nodes[i] = startNode(t, paths[i])
	}
	done, ended := make(chan struct{}), make(chan int)
	go func() {
		asked := 0
		defer func() { ended <- asked }()
		for {
			select {
			case <-done:
				return
			default:
			}
			// A node that is gone says nothing, and one that knows nothing yet is REFUSED: then a
			// resolver asks the other.
			var got string
			for try := 0; try < 4 && got != "A 192.0.2.1"; try++ {
				m, _, err := (&dns.Client{Timeout: 2 * time.Second}).Exchange(question("www.example.com", dns.TypeA, ""), addrs[(asked+try)%2])
				if err != nil {
					got = err.Error()
					continue
				}
				if got = answers(m); got != "A 192.0.2.1" && got != "REFUSED" {
					break
				}
			}
			if asked++; got != "A 192.0.2.1" {
				t.Errorf("query %d: got %s, want A 192.0.2.1", asked, got)
				return
			}
		}
	}()
	for round := range 8 {
		i := round % 2
		if round/2%2 == 0 {
			nodes[i].stop()
		} else {
			nodes[i].kill()
		}
		nodes[i] = startNode(t, paths[i])
	}
	close(done)
	t.Logf("%d queries answered meanwhile", <-ended)
	for _, n := range nodes {
		n.stop()
	}
}

// TestDemoInterrupted: Ctrl-C ends the demo well at any moment, and leaves no file behind.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	for i, until := range []string{"starting etcd", "Break something"} {
		t.Run("at "+until, func(t *testing.T) {
			tmp := socketDir(t)
			port := 12000 + 100*i + rand.IntN(10)*10 + os.Getpid()%200*40
			p := launchIn(t, []string{"TMPDIR=" + tmp}, "demo", "--dns-port", strconv.Itoa(port), "--admin-port", strconv.Itoa(port+1),
				"--gossip-port", strconv.Itoa(port+2), "--http-port", strconv.Itoa(port+3), "--xds-port", strconv.Itoa(port+7))
			for line := range p.lines {
				if strings.Contains(line, until) {
					break
				}
			}
			p.signal(syscall.SIGINT)
			for range p.lines {
			}
			if code, said := p.wait(), p.log.String(); code != 0 || said != "" {
				t.Errorf("got code %d and %q on standard error, want 0 and nothing", code, said)
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
				t.Errorf("temporary files: got %v, %v; want none left", left, err)
			}
		})
	}
}

// TestVersion: the version is one word, of those that scripts compare.
func TestVersion(t *testing.T) {
	if v := version(); !regexp.MustCompile(`^\S+$`).MatchString(v) {
		t.Errorf("version: got %q, want one word", v)
	}
}
