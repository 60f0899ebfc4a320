package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// resolver is a name server on loopback that answers what it is told.
func resolver(t *testing.T, answer func(q miekg.Question, m *miekg.Msg)) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &miekg.Server{PacketConn: pc, Handler: miekg.HandlerFunc(func(w miekg.ResponseWriter, q *miekg.Msg) {
		m := new(miekg.Msg)
		m.SetReply(q)
		answer(q.Question[0], m)
		w.WriteMsg(m)
	})}
	ended := make(chan error, 1)
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	go func() { ended <- s.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		s.Shutdown()
		<-ended
	})
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

func rr(t *testing.T, text string) miekg.RR {
	t.Helper()
	rr, err := miekg.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

// TestLookUp: aliases are followed, the shortest TTL holds, a resolver that fails is passed over;
// no address is an error.
func TestLookUp(t *testing.T) {
	good := resolver(t, func(q miekg.Question, m *miekg.Msg) {
		switch {
		case q.Name == "gone.example.net.":
			m.Rcode = miekg.RcodeNameError
		case q.Name == "empty.example.net.":
		case q.Qtype == miekg.TypeA:
			m.Answer = []miekg.RR{rr(t, "cdn.example.net. 20 CNAME edge.example.org."), rr(t, "edge.example.org. 300 A 192.0.2.9"), rr(t, "edge.example.org. 300 A 192.0.2.1"), rr(t, "edge.example.org. 300 A 0.0.0.0")}
		default:
			m.Answer = []miekg.RR{rr(t, "cdn.example.net. 60 AAAA 2001:db8::1")}
		}
	})
	bad := resolver(t, func(_ miekg.Question, m *miekg.Msg) { m.Rcode = miekg.RcodeServerFailure })
	ctx := context.Background()
	servers := []string{bad.String(), good.String()}
	addrs, ttl, err := lookUp(ctx, servers, "cdn.example.net")
	want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::1")}
	if err != nil || !slices.Equal(addrs, want) || ttl != 20*time.Second {
		t.Errorf("got %v for %s, %v; want %v for 20s", addrs, ttl, err, want)
	}
	for name, want := range map[string]string{"gone.example.net": "no such name", "empty.example.net": "no address"} {
		if _, _, err := lookUp(ctx, servers, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	if _, _, err := lookUp(ctx, servers[:1], "cdn.example.net"); err == nil || !strings.Contains(err.Error(), "SERVFAIL") {
		t.Errorf("of the bad one alone: got %v", err)
	}
}

// TestNames: names are looked up when they are due and not before, keep their addresses when they
// fail, ever less often, and are forgotten with their pool.
func TestNames(t *testing.T) {
	pool := func(host string) config.Pool { return config.Pool{Hostname: host} }
	o := &config.Objects{
		Zones: map[string]config.Zone{"example.com": {}},
		Pools: map[string]config.Pool{
			"a": pool("cdn.example.net"), "b": pool("CDN.example.net"), "in": pool("www.example.com"), "none": {},
			"both": {Hostname: "x.example.net", Endpoints: []config.Endpoint{{}}}, "alias": pool("y.example.net"),
		},
	}
	ref := func(pools ...string) config.Service {
		s := config.Service{}
		s.Pools = map[string]config.PoolRef{}
		for _, p := range pools {
			s.Pools[p] = config.PoolRef{}
		}
		return s
	}
	o.Services = map[string]config.Service{"example.com": ref("a", "b", "in", "none", "both"), "www.example.com": ref("a", "alias")}
	n := &Node{log: slog.New(slog.DiscardHandler)}
	n.build = newBuilder(n, config.History{}.WithDefaults(), Zones{})
	x := newNames(n, nil)
	now := time.Unix(1_700_000_000, 0)
	const name = "cdn.example.net"
	if got := x.due(o, now); !slices.Equal(got, []string{name}) {
		t.Fatalf("due: %v, want %s alone", got, name)
	}
	if got := x.due(o, now.Add(time.Hour)); len(got) != 0 {
		t.Errorf("due while it is looked up: %v", got)
	}
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	x.learn(name, addrs, time.Second, nil, now) // held for five
	if got := x.all()[name]; !slices.Equal(got, addrs) {
		t.Errorf("got %v, want %v", got, addrs)
	}
	if early, late := x.due(o, now.Add(nameLeast-1)), x.due(o, now.Add(nameLeast)); len(early) != 0 || len(late) != 1 {
		t.Errorf("due %v before its time and %v at it", early, late)
	}
	now = now.Add(nameLeast)
	var pauses []time.Duration
	for range 12 {
		x.learn(name, nil, 0, errors.New("no route"), now)
		next := x.known[name].next
		pauses = append(pauses, next.Sub(now))
		now = next
		if len(x.due(o, now)) != 1 {
			t.Fatal("not due after its pause")
		}
	}
	if pauses[0] > nameLeast || pauses[0] < nameLeast*3/4 || pauses[11] < nameRetry*3/4 || pauses[11] > nameRetry {
		t.Errorf("pauses %v, want from 5 s to 5 m", pauses)
	}
	if got := x.all()[name]; !slices.Equal(got, addrs) {
		t.Errorf("after failures: got %v, want the last good ones", got)
	}
	if got := x.faults(); len(got) != 1 || !strings.Contains(got[0], "its last addresses stay: no route") {
		t.Errorf("faults %q", got)
	}
	delete(o.Pools, "a")
	delete(o.Pools, "b")
	if x.due(o, now); len(x.all()) != 0 || len(x.faults()) != 0 {
		t.Errorf("without a pool: %v", x.all())
	}
	x.learn(name, addrs, time.Minute, nil, now) // comes late, and is nothing
	if len(x.all()) != 0 {
		t.Errorf("got %v", x.all())
	}
}

// TestNodeFlattens asks a node for the apex of a zone, whose pool is a name elsewhere: SERVFAIL
// until it resolves, then its addresses, and new ones once they changed.
func TestNodeFlattens(t *testing.T) {
	var addr atomic.Pointer[string]
	server := resolver(t, func(q miekg.Question, m *miekg.Msg) {
		if a := addr.Load(); a == nil {
			m.Rcode = miekg.RcodeServerFailure
		} else if q.Qtype == miekg.TypeA {
			m.Answer = []miekg.RR{rr(t, q.Name+" 1 A "+*a)}
		}
	})
	const text = `
node: {name: n1, site: s, dns: ["127.0.0.1:0"], admin: "127.0.0.1:0", resolvers: ["SERVER"]}
sites: {s: {lat: 0, lon: 0}}
zones: [{name: example.com, records: "@ 60 SOA ns. h. 1 2 3 4 5\n@ 60 NS ns.\n"}]
pools: {cdn: {site: s, hostname: cdn.example.net}}
services: {example.com: {pools: {cdn: {}}}, www.example.com: {pools: {cdn: {}}}}
`
	n := runNode(t, Options{File: parse(t, strings.Replace(text, "SERVER", server.String(), 1))})
	ask := func(name string, qtype uint16) *miekg.Msg {
		t.Helper()
		q := new(miekg.Msg)
		q.SetQuestion(name, qtype)
		m, _, err := (&miekg.Client{Timeout: patience}).Exchange(q, n.DNSAddrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := ask("example.com.", miekg.TypeA); m.Rcode != miekg.RcodeServerFailure {
		t.Errorf("before it resolves: got %s, want SERVFAIL", m)
	}
	waitFor(t, "the fault in the status", func() bool {
		return strings.Contains(strings.Join(n.partFaults(), "\n"), "hostname cdn.example.net does not resolve: resolver "+server.String()+": SERVFAIL")
	})
	for _, a := range []string{"192.0.2.1", "192.0.2.2"} {
		addr.Store(&a)
		waitFor(t, a, func() bool {
			m := ask("example.com.", miekg.TypeA)
			return len(m.Answer) == 1 && m.Answer[0].Header().Name == "example.com." && strings.HasSuffix(m.Answer[0].String(), a)
		})
	}
	if m := ask("example.com.", miekg.TypeAAAA); m.Rcode != miekg.RcodeSuccess || len(m.Answer) != 0 {
		t.Errorf("AAAA: got %s, want NODATA", m)
	}
	if m := ask("www.example.com.", miekg.TypeA); len(m.Answer) != 1 || m.Answer[0].Header().Rrtype != miekg.TypeCNAME {
		t.Errorf("where an alias can stand: got %s, want CNAME", m)
	}
	addr.Store(nil) // gone: the last addresses stay
	waitFor(t, "the fault in the status", func() bool { return strings.Contains(strings.Join(n.partFaults(), "\n"), "its last addresses stay") })
	if m := ask("example.com.", miekg.TypeA); len(m.Answer) != 1 {
		t.Errorf("while it does not resolve: got %s, want the last address", m)
	}
}
