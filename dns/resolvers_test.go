//go:build linux

package dns

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/dns/zone"
)

// internet is a small one of our own on loopback: a root server that delegates to a server of the
// zones below, both on port 53, where resolvers look for them.
type internet struct {
	root, ours netip.Addr
	server     *testServer
	asked      func() uint64 // queries that came to ours
}

const internetWorld = `
node:
  name: ns1
  site: eu
  data: unused
  dns: ["127.0.0.1:0"]
  geo:
    overrides:
      - {prefix: 192.0.2.0/24, site: us}
      - {prefix: 198.51.100.0/25, site: eu}
      - {prefix: 198.51.100.128/25, site: us}
      - {prefix: 127.0.0.0/8, site: us}
sites:
  us: {lat: 40.71, lon: -74.01}
  eu: {lat: 50.11, lon: 8.68}
pools:
  us: {site: us, endpoints: [{address: 192.0.2.1}, {address: "2001:db8:1::1"}]}
  eu: {site: eu, hostname: eu.gfe.example.net, endpoints: [{address: 198.51.100.1}, {address: "2001:db8:2::1"}]}
  eu4: {site: eu, endpoints: [{address: 198.51.100.4}]}
services:
  www.example.com:  {ttl: 5m, pools: {us: {}, eu: {}}, policy: [nearest], https: {alpn: [h2]}}
  one.example.com:  {ttl: 5m, pools: {eu4: {}}}
  example.net:      {ttl: 5m, pools: {us: {}, eu: {}}, policy: [nearest]}
  "*.app.example.com": {ttl: 5m, pools: {us: {}, eu: {}}, policy: [nearest]}
zones:
  - name: example.com
    records: |
      $TTL 3600
      @       SOA ns1 hostmaster 1 7200 900 1209600 300
      @       NS  ns1
      ns1     A   OURS
      static  A   203.0.113.7
      alias   CNAME www
      across  CNAME alias.example.net.
      mail    MX  10 www
      *.wild  TXT "wild"
      a.b.c   TXT "ent"
      old     DNAME new
      h.new   A   203.0.113.8
      $GENERATE 1-30 big TXT "$-3456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"
      child   NS  ns1
  - name: child.example.com
    records: |
      $TTL 3600
      @       SOA ns1.example.com. hostmaster 1 7200 900 1209600 300
      @       NS  ns1.example.com.
      host    A   203.0.113.9
  - name: example.net
    records: |
      $TTL 3600
      @       SOA ns1.example.com. hostmaster.example.com. 1 7200 900 1209600 300
      @       NS  ns1.example.com.
      @       MX  10 mail
      mail    A   203.0.113.10
      alias   CNAME alias.example.com.
`

// newInternet starts both servers, or skips where port 53 on loopback is not to be had.
func newInternet(t *testing.T) *internet {
	t.Helper()
	n := byte(rand.IntN(250) + 1)
	in := &internet{root: netip.AddrFrom4([4]byte{127, 77, n, 1}), ours: netip.AddrFrom4([4]byte{127, 77, n, 2})}
	probe, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(in.root, 53)))
	needs(t, err == nil, fmt.Sprintf("port 53 on loopback (%v)", err))
	probe.Close()

	text := fmt.Sprintf("$TTL 3600\n. SOA a.root. hostmaster.root. 1 7200 900 1209600 300\n. NS a.root.\na.root. A %s\n", in.root)
	for _, z := range []string{"example.com.", "example.net."} {
		text += z + " NS ns1.example.com.\n"
	}
	text += fmt.Sprintf("ns1.example.com. A %s\n", in.ours)
	rootZone, _, err := zone.Parse(strings.NewReader(text), "root", ".")
	if err != nil {
		t.Fatal(err)
	}
	set, err := zone.NewSet([]*zone.Zone{rootZone}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := parseWorld(t, strings.ReplaceAll(internetWorld, "OURS", in.ours.String()))
	data := w.data(t)
	start := func(addr netip.Addr, d *Data) *testServer {
		p := new(atomic.Pointer[Data])
		p.Store(d)
		s := serve(t, Options{Addrs: []netip.AddrPort{netip.AddrPortFrom(addr, 53)}, Data: p})
		t.Cleanup(func() { s.stop(t) })
		return s
	}
	start(in.root, &Data{Snapshot: data.Snapshot, Zones: set})
	in.server = start(in.ours, data)
	in.asked = func() uint64 { st := in.server.Stats(); return st.UDP + st.TCP }
	return in
}

// resolverProcess is a resolver that is started for a test.
type resolverProcess struct {
	name, program string
	ecs           bool
	config        func(in *internet, dir string, port uint16) map[string]string // files
	args          func(dir string) []string
}

var resolvers = []resolverProcess{
	{"unbound", "unbound", false, func(in *internet, dir string, port uint16) map[string]string {
		return map[string]string{"unbound.conf": unboundConf(in, dir, port, "iterator", "")}
	}, func(dir string) []string { return []string{"-d", "-d", "-c", dir + "/unbound.conf"} }},
	{"unbound with ECS", "unbound", true, func(in *internet, dir string, port uint16) map[string]string {
		return map[string]string{"unbound.conf": unboundConf(in, dir, port, "subnetcache iterator",
			fmt.Sprintf("send-client-subnet: %s\nclient-subnet-always-forward: yes\nmax-client-subnet-ipv4: 32\n", in.ours))}
	}, func(dir string) []string { return []string{"-d", "-d", "-c", dir + "/unbound.conf"} }},
	{"bind", "named", false, func(in *internet, dir string, port uint16) map[string]string {
		return map[string]string{
			"named.conf": fmt.Sprintf(`options { directory %q; pid-file none; session-keyfile none; managed-keys-directory %q; listen-on port %d { 127.0.0.1; }; listen-on-v6 { none; };
recursion yes; allow-recursion { any; }; dnssec-validation no; notify no; empty-zones-enable no; minimal-responses no; };
controls { };
zone "." { type hint; file "root.hints"; };
`, dir, dir, port), "root.hints": hints(in)}
	}, func(dir string) []string { return []string{"-g", "-n", "1", "-c", dir + "/named.conf"} }},
	{"knot resolver", "kresd", false, func(in *internet, dir string, port uint16) map[string]string {
		return map[string]string{"kresd.conf": fmt.Sprintf(`net.ipv6 = false
net.listen('127.0.0.1', %d, { kind = 'dns' })
modules = { 'hints > iterate' }
modules.unload('ta_update') modules.unload('ta_signal_query') modules.unload('priming') modules.unload('detect_time_skew')
trust_anchors.remove('.')
hints.root({ ['a.root.'] = %q })
cache.size = 10 * MB
`, port, in.root)}
	}, func(dir string) []string { return []string{"-n", "-c", dir + "/kresd.conf", dir} }},
	{"pdns recursor", "pdns_recursor", true, func(in *internet, dir string, port uint16) map[string]string {
		return map[string]string{"recursor.conf": fmt.Sprintf(`local-address=127.0.0.1
local-port=%d
socket-dir=%s
daemon=no
disable-syslog=yes
hint-file=%s/root.hints
dnssec=off
dont-query=
query-local-address=0.0.0.0
security-poll-suffix=
threads=1
export-etc-hosts=no
edns-subnet-allow-list=%s
use-incoming-edns-subnet=yes
ecs-ipv4-bits=32
ecs-ipv4-cache-bits=32
`, port, dir, dir, in.ours), "root.hints": hints(in)}
	}, func(dir string) []string { return []string{"--config-dir=" + dir} }},
}

func unboundConf(in *internet, dir string, port uint16, modules, more string) string {
	return fmt.Sprintf(`server:
verbosity: 1
use-syslog: no
username: ""
chroot: ""
directory: %q
pidfile: ""
interface: 127.0.0.1@%d
do-ip6: no
do-not-query-localhost: no
access-control: 0.0.0.0/0 allow
num-threads: 1
root-hints: %q
module-config: %q
aggressive-nsec: no
%sremote-control:
control-enable: no
`, dir, port, dir+"/root.hints", modules, more)
}

func hints(in *internet) string {
	return fmt.Sprintf(". 3600000 NS a.root.\na.root. 3600000 A %s\n", in.root)
}

// start starts the resolver and returns where it answers.
func (r *resolverProcess) start(t *testing.T, in *internet) netip.AddrPort {
	t.Helper()
	path, err := exec.LookPath(r.program)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + r.program)
	}
	needs(t, err == nil, r.program)
	dir := t.TempDir()
	ln, err := net.Listen("tcp4", "127.0.0.1:0") // a port that is free
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	ln.Close()
	for name, text := range r.config(in, dir, port) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if r.program == "unbound" {
		if err := os.WriteFile(filepath.Join(dir, "root.hints"), []byte(hints(in)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	cmd := exec.Command(path, r.args(dir)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &log, &log
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-ended
		if t.Failed() {
			t.Logf("%s said:\n%s", r.program, log.String())
		}
	})
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	waitFor(t, r.program+" to answer", func() bool {
		m, err := askResolver(at, "static.example.com", "A", "")
		if err != nil || m.Rcode != miekg.RcodeSuccess || len(m.Answer) != 1 {
			return false
		}
		c, err := net.Dial("tcp4", at.String())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return at
}

// askResolver asks for name as a client in subnet, or in none.
func askResolver(at netip.AddrPort, name, qtype, subnet string) (*miekg.Msg, error) {
	m := new(miekg.Msg)
	m.SetQuestion(miekg.Fqdn(name), miekg.StringToType[qtype])
	m.SetEdns0(1232, false)
	if subnet != "" {
		m.IsEdns0().Option = append(m.IsEdns0().Option, ecsOption(netip.MustParsePrefix(subnet)))
	}
	client := miekg.Client{Timeout: 2 * time.Second}
	reply, _, err := client.Exchange(m, at.String())
	if err == nil && reply.Truncated {
		client.Net = "tcp"
		reply, _, err = client.Exchange(m, at.String())
	}
	return reply, err
}

// TestResolvers has real resolvers find us by a root of our own: they understand every sort of
// answer, and their caches do what our scopes say.
func TestResolvers(t *testing.T) {
	for i := range resolvers {
		r := &resolvers[i]
		t.Run(r.name, func(t *testing.T) {
			in := newInternet(t)
			at := r.start(t, in)
			ask := func(name, qtype, subnet string) *miekg.Msg {
				t.Helper()
				m, err := askResolver(at, name, qtype, subnet)
				for range 2 {
					if err == nil && m.Rcode != miekg.RcodeServerFailure {
						break
					}
					m, err = askResolver(at, name, qtype, subnet) // a loaded machine
				}
				if err != nil {
					t.Fatalf("%s %s: %v", name, qtype, err)
				}
				return m
			}
			for _, tt := range []struct{ name, qtype, want string }{
				{"static.example.com", "A", "NOERROR 203.0.113.7"},
				{"STATIC.Example.com", "A", "NOERROR 203.0.113.7"},
				{"static.example.com", "AAAA", "NOERROR"},
				{"nowhere.example.com", "A", "NXDOMAIN"},
				{"b.c.example.com", "A", "NOERROR"}, // an empty non-terminal
				{"x.y.wild.example.com", "TXT", "NOERROR wild"},
				{"alias.example.com", "A", "NOERROR 192.0.2.1 www.example.com."},
				{"across.example.com", "AAAA", "NOERROR 2001:db8:1::1 alias.example.com. alias.example.net. www.example.com."},
				{"mail.example.com", "MX", "NOERROR www.example.com."},
				{"h.old.example.com", "A", "NOERROR 203.0.113.8 h.new.example.com. new.example.com."},
				{"host.child.example.com", "A", "NOERROR 203.0.113.9"},
				{"child.example.com", "DS", "NOERROR"},
				{"big.example.com", "TXT", "NOERROR 30 RRs"},
				{"example.net", "A", "NOERROR 192.0.2.1"},
				{"example.net", "MX", "NOERROR mail.example.net."},
				{"one.example.com", "AAAA", "NOERROR"},
				{"x.app.example.com", "A", "NOERROR 192.0.2.1"},
				{"www.example.com", "HTTPS", "NOERROR HTTPS HTTPS"},
			} {
				if got := summary(ask(tt.name, tt.qtype, "")); got != tt.want {
					t.Errorf("%s %s: got %s, want %s", tt.name, tt.qtype, got, tt.want)
				}
			}
			if !r.ecs {
				return
			}
			for _, step := range []struct {
				name, qtype, subnet, want string
				asks                      bool // we are asked; else the cache knows
			}{
				{"www.example.com", "A", "198.51.100.0/26", "NOERROR 198.51.100.1", true},
				{"www.example.com", "A", "198.51.100.0/26", "NOERROR 198.51.100.1", false},
				{"www.example.com", "A", "198.51.100.64/26", "NOERROR 198.51.100.1", false}, // scope 25
				{"www.example.com", "A", "198.51.100.192/26", "NOERROR 192.0.2.1", true},
				{"www.example.com", "A", "192.0.2.0/24", "NOERROR 192.0.2.1", true},
				{"www.example.com", "A", "198.51.100.0/26", "NOERROR 198.51.100.1", false},
				{"www.example.com", "AAAA", "198.51.100.0/26", "NOERROR 2001:db8:2::1", true},
				{"y.app.example.com", "A", "203.0.113.0/24", "NOERROR 192.0.2.1", true},     // the default, as nobody knows where that is
				{"y.app.example.com", "A", "198.51.100.0/26", "NOERROR 198.51.100.1", true}, // which it does not hide
				{"y.app.example.com", "A", "203.0.113.0/24", "NOERROR 192.0.2.1", false},
				{"y.app.example.com", "A", "198.51.100.0/26", "NOERROR 198.51.100.1", false},
				{"static.example.com", "MX", "198.51.100.0/24", "NOERROR", true},
				{"static.example.com", "MX", "192.0.2.0/24", "NOERROR", false}, // scope 0: for all
				{"gone.example.com", "A", "198.51.100.0/24", "NXDOMAIN", true},
				{"gone.example.com", "A", "192.0.2.0/24", "NXDOMAIN", false},
				{"one.example.com", "A", "198.51.100.0/24", "NOERROR 198.51.100.4", true},
				{"one.example.com", "A", "192.0.2.0/24", "NOERROR 198.51.100.4", false},
				{"alias.example.com", "A", "198.51.100.0/26", "NOERROR 198.51.100.1 www.example.com.", true},
				{"alias.example.com", "A", "192.0.2.0/24", "NOERROR 192.0.2.1 www.example.com.", true},
			} {
				before := in.asked()
				got := summary(ask(step.name, step.qtype, step.subnet))
				if got != step.want {
					t.Errorf("%s %s for %s: got %s, want %s", step.name, step.qtype, step.subnet, got, step.want)
				}
				// An alias costs a resolver a second question or not, as it likes.
				if asked := in.asked() > before; asked != step.asks && !strings.HasPrefix(step.name, "alias") {
					t.Errorf("%s %s for %s: asked us %t, want %t", step.name, step.qtype, step.subnet, asked, step.asks)
				}
			}
		})
	}
}

// summary returns the rcode of a reply and what its answers say, those of a large RRset by number.
func summary(m *miekg.Msg) string {
	var words []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *miekg.A:
			words = append(words, rr.A.String())
		case *miekg.AAAA:
			words = append(words, rr.AAAA.String())
		case *miekg.CNAME:
			words = append(words, rr.Target)
		case *miekg.DNAME:
			words = append(words, rr.Target)
		case *miekg.MX:
			words = append(words, rr.Mx)
		case *miekg.TXT:
			words = append(words, rr.Txt...)
		default:
			words = append(words, miekg.TypeToString[rr.Header().Rrtype])
		}
	}
	rcode := miekg.RcodeToString[m.Rcode]
	if len(words) > 8 {
		return fmt.Sprintf("%s %d RRs", rcode, len(words))
	}
	slices.Sort(words) // some send them in random order
	return strings.Join(append([]string{rcode}, words...), " ")
}
