package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
	"github.com/meridian-gslb/meridian/cmd/gslbd/app"
	"github.com/meridian-gslb/meridian/tracing"
)

// patience bounds every wait: long, since it is only ever used up by a failure.
const patience = 60 * time.Second

// output gathers what the demo prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// freePorts returns ports that are free on every address of the demo.
func freePorts(t *testing.T) ports {
	t.Helper()
	var err error
	for range 100 {
		base := 20000 + rand.IntN(1200)*10 // below what the system gives to others
		p := ports{dns: base, admin: base + 1, gossip: base + 2, http: base + 3, xds: base + 7}
		if err = p.free(); err == nil {
			return p
		}
	}
	t.Fatalf("no free ports: %v", err)
	return ports{}
}

// start runs a demo until end is called, whose frontends are said to take so many requests a
// second, and waits until it is up.
func start(t *testing.T, capacity float64) (d *Demo, out *output, end func()) {
	t.Helper()
	out = &output{}
	d = &Demo{ports: freePorts(t), version: "test", capacity: capacity, console: newConsole(out), log: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelError}))}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("end of the demo: %v", err)
			}
		case <-time.After(patience):
			t.Errorf("the demo still runs %v after its end", patience)
		}
		if t.Failed() {
			t.Logf("the demo printed:\n%s", out.String())
		}
	})
	t.Cleanup(end)
	gfetest.Eventually(t, "the banner", func() bool { return strings.Contains(out.String(), "Break something") })
	return d, out, end
}

// TestDemo runs the demo and does what it tells a person to try; in the end nothing is left.
func TestDemo(t *testing.T) {
	gfetest.Leaks(t)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	d, out, end := start(t, defaultCapacity)
	p := d.ports

	for i, r := range regions {
		for _, asked := range regions {
			for _, client := range []netip.Prefix{asked.client, asked.clientV6} {
				want := []string{asked.gfe(0).String(), asked.gfe(1).String()}
				if got := ask(t, p, r, client, dns.TypeA); !slices.Equal(got, want) {
					t.Errorf("node %d, %s A: got %s, want %s", i+1, client, got, want)
				}
				want = []string{asked.served[0].String(), asked.served[1].String()}
				if got := ask(t, p, r, client, dns.TypeAAAA); !slices.Equal(got, want) {
					t.Errorf("node %d, %s AAAA: got %s, want %s", i+1, client, got, want)
				}
			}
		}
	}

	// A request through each answer goes through that region, and counts in one database.
	var visits uint64
	for _, r := range regions {
		page := visit(t, p, ask(t, p, r, r.client, dns.TypeA)[0])
		if page.Visit != visits+1 {
			t.Errorf("visit from %s: got number %d, want %d", r.city, page.Visit, visits+1)
		}
		visits = page.Visit
		got := []app.Instance{page.GFE, page.Frontend, page.Backend}
		for tier, name := range []string{"gfe", "fe", "be"} {
			if got[tier].Name != r.pool(name) || got[tier].Site != r.name {
				t.Errorf("visit from %s: %s is %v, want %s in %s", r.city, name, got[tier], r.pool(name), r.name)
			}
		}
		if page.Trace == "" {
			t.Errorf("visit from %s: no trace", r.city)
		} else {
			wantTrace(t, p, page.Trace)
		}
	}

	wantDocumented(t, p)

	// The pool in Frankfurt stops, and starts again. Either way every node says so.
	eu := regions[1]
	ctl := client(p)
	home := []string{eu.gfe(0).String(), eu.gfe(1).String()}
	moved := func() bool {
		return !slices.ContainsFunc(regions, func(r region) bool {
			a := ask(t, p, r, eu.client, dns.TypeA)
			return len(a) == 0 || slices.ContainsFunc(a, func(s string) bool { return slices.Contains(home, s) })
		})
	}
	back := func() bool {
		return !slices.ContainsFunc(regions, func(r region) bool { return !slices.Equal(ask(t, p, r, eu.client, dns.TypeA), home) })
	}
	for range 2 { // once more than needed: to stop what is stopped is no error
		if _, err := ctl.Demo(t.Context(), "stop", "gfe-eu"); err != nil {
			t.Fatal(err)
		}
	}
	gfetest.Eventually(t, "the answers move from Frankfurt", moved)
	if page := visit(t, p, ask(t, p, eu, eu.client, dns.TypeA)[0]); page.Visit != visits+1 || page.GFE.Name == "gfe-eu" {
		t.Errorf("visit while gfe-eu is stopped: got number %d through %s, want %d through another", page.Visit, page.GFE.Name, visits+1)
	}
	for range 2 {
		if _, err := ctl.Demo(t.Context(), "start", "gfe-eu"); err != nil {
			t.Fatal(err)
		}
	}
	gfetest.Eventually(t, "the answers return to Frankfurt", back)
	if _, err := ctl.Demo(t.Context(), "stop", "gfe-mars"); err == nil || !strings.Contains(err.Error(), `no GFE pool "gfe-mars"`) {
		t.Errorf("stop of a pool that is not there: got %v, want one that names it", err)
	}

	// A drain moves them too, on the other nodes as well.
	if _, err := ctl.Drain(t.Context(), "gfe-eu", api.DrainRequest{Author: "ann", Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	gfetest.Eventually(t, "the answers move from what is drained", moved)
	if _, err := ctl.Undrain(t.Context(), "gfe-eu", api.DrainRequest{Author: "ann"}); err != nil {
		t.Fatal(err)
	}
	gfetest.Eventually(t, "the answers return after the drain", back)

	// The console tells what happened.
	for _, want := range []string{"gfe-eu stopped", "gfe-eu runs", "(Frankfurt): gfe-eu → ", "→ gfe-eu\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("console: got %q, want a line with %q", out.String(), want)
		}
	}

	// What is busy now is named with its flag.
	var said output
	if code := Main(t.Context(), flagsOf(p), "test", io.Discard, &said); code != 1 {
		t.Errorf("a second demo: got code %d, want 1", code)
	}
	if got := strings.Count(strings.TrimSpace(said.String()), "\n") + 1; got > 5 {
		t.Errorf("a second demo: got %d lines, want one for each flag at most:\n%s", got, said.String())
	}
	for _, want := range []string{"--dns-port", "--admin-port", "--gossip-port", "--http-port", netip.AddrPortFrom(host, uint16(p.dns)).String()} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("a second demo: got %q, want one that names %s", said.String(), want)
		}
	}

	end()
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files: got %v, %v; want none left", left, err)
	}
	if err := p.free(); err != nil {
		t.Errorf("ports: %v; want all free", err)
	}
	if got := out.String(); !strings.HasSuffix(got, "ending …\n") {
		t.Errorf("console: got %q last, want nothing after the end", got[max(0, len(got)-200):])
	}
}

// TestInterrupted: an end before the demo is up is an end like any other.
func TestInterrupted(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(fmt.Errorf("interrupt signal received"))
	var out output
	if code := Main(ctx, flagsOf(freePorts(t)), "test", &out, &out); code != 0 {
		t.Errorf("got code %d and %q, want 0", code, out.String())
	}
	if strings.Contains(out.String(), "to try") {
		t.Errorf("got %q, want no banner", out.String())
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("temporary files: got %v, %v; want none left", left, err)
	}
}

// TestBusyPort: each flag is the one of the port that is busy.
func TestBusyPort(t *testing.T) {
	p := freePorts(t)
	ap := regions[2]
	for _, tt := range []struct {
		flag string
		at   netip.AddrPort
	}{
		{"dns-port", netip.AddrPortFrom(ap.node(), uint16(p.dns))},
		{"admin-port", netip.AddrPortFrom(ap.node(), uint16(p.admin))},
		{"gossip-port", netip.AddrPortFrom(ap.node(), uint16(p.gossip))},
		{"http-port", netip.AddrPortFrom(ap.gfe(1), uint16(p.http))},
		{"http-port", netip.AddrPortFrom(ap.frontend(), uint16(p.frontend()))},
		{"http-port", netip.AddrPortFrom(ap.backend(), uint16(p.backend()))},
		{"http-port", netip.AddrPortFrom(host, uint16(p.database()))},
	} {
		t.Run(tt.at.String(), func(t *testing.T) {
			ln, err := net.Listen("tcp", tt.at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			err = p.free()
			if err == nil || !strings.Contains(err.Error(), tt.at.String()) || !strings.Contains(err.Error(), "--"+tt.flag) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one fault: %s, to be changed with --%s", err, tt.at, tt.flag)
			}
		})
	}
	c, err := net.ListenPacket("udp", netip.AddrPortFrom(ap.node(), uint16(p.dns)).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := p.free(); err == nil || !strings.Contains(err.Error(), "--dns-port") {
		t.Errorf("busy for UDP alone: got %v, want one that names --dns-port", err)
	}
}

// TestOverload asks a region for far more than its frontend takes, until requests go elsewhere,
// DNS has moved a user, and the region's node names both as one event. No request fails. The
// capacity is so small that the slowest machine can overload it.
func TestOverload(t *testing.T) {
	gfetest.Leaks(t)
	t.Setenv("TMPDIR", t.TempDir())
	d, _, _ := start(t, 0.5)
	r := regions[1]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type result struct {
		out *Overload
		err error
	}
	ended := make(chan result, 1)
	go func() {
		out, err := d.overload(ctx, r, 10, 10*patience)
		ended <- result{out, err}
	}()
	n := d.nodes[slices.IndexFunc(regions, func(o region) bool { return o.name == r.name })]
	gfetest.Eventually(t, "one event that names requests and answers", func() bool {
		for _, s := range n.Overloads() {
			if s.Site == r.name && s.Placed[r.pool("fe")] > 0 && len(s.Placed) > 1 && len(s.DNS) > 0 && s.DNS[0].Service == "www.example.com" && s.DNS[0].Keeps < 1 {
				return true
			}
		}
		return false
	})
	gfetest.Eventually(t, "another frontend takes a part", func() bool { return d.issued()[regions[0].pool("fe")] > 5 })
	gfetest.Eventually(t, "DNS moves a user", func() bool {
		for i := range overloadUsers {
			a := r.users.As4()
			if got := ask(t, d.ports, r, netip.PrefixFrom(netip.AddrFrom4([4]byte{a[0], a[1], a[2] + byte(i), 0}), 24), dns.TypeA); len(got) > 0 && !r.holds(netip.MustParseAddr(got[0])) {
				return true
			}
		}
		return false
	})
	cancel()
	switch got := <-ended; {
	case got.err != nil:
		t.Errorf("overload: %v", got.err)
	case got.out.Failed > 0 || got.out.Requests == 0:
		t.Errorf("overload: %d of %d requests failed", got.out.Failed, got.out.Requests)
	default:
		t.Logf("overload of %s", got.out)
	}
	if _, err := client(d.ports).Demo(t.Context(), "overload", "mars"); err == nil || !strings.Contains(err.Error(), `no site "mars"`) {
		t.Errorf("overload of a site that is not there: got %v, want one that names it", err)
	}
}

func flagsOf(p ports) []string {
	return strings.Fields(fmt.Sprintf("--dns-port %d --admin-port %d --gossip-port %d --http-port %d", p.dns, p.admin, p.gossip, p.http))
}

// client is of the first node's API.
func client(p ports) *api.Client {
	return &api.Client{
		Server: fmt.Sprintf("http://%s:%d", host, p.admin),
		HTTP:   &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience},
	}
}

// ask asks the node of r what www.example.com is for client, and returns the addresses in
// order.
func ask(t *testing.T, p ports, r region, client netip.Prefix, qtype uint16) []string {
	t.Helper()
	q := new(dns.Msg).SetQuestion("www.example.com.", qtype)
	q.SetEdns0(1232, false)
	family := uint16(1)
	if client.Addr().Is6() {
		family = 2
	}
	q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{
		Code: dns.EDNS0SUBNET, Family: family, SourceNetmask: uint8(client.Bits()), Address: client.Addr().AsSlice(),
	}}
	m, _, err := (&dns.Client{Timeout: patience}).Exchange(q, netip.AddrPortFrom(r.node(), uint16(p.dns)).String())
	if err != nil {
		t.Fatalf("%s: %v", r.name, err)
	}
	var out []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			out = append(out, rr.A.String())
		case *dns.AAAA:
			out = append(out, rr.AAAA.String())
		}
	}
	slices.Sort(out)
	return out
}

// visit requests the page at the proxy of that address.
func visit(t *testing.T, p ports, addr string) (page app.Page) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s:%d/", addr, p.http), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "www.example.com"
	req.Header.Set("Accept", "application/json")
	res, err := client(p).HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&page); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d, %v", req.URL, res.StatusCode, err)
	}
	return page
}

// wantDocumented wants every attribute of the spans of all services to be in the documentation, and a
// proxy's among them.
func wantDocumented(t *testing.T, p ports) {
	t.Helper()
	list, err := client(p).Traces(t.Context(), api.TraceFilter{Limit: 200})
	if err != nil {
		t.Fatal(err)
	}
	sent := make(map[string]string)
	for _, s := range list.Traces {
		if tr, err := client(p).Trace(t.Context(), s.TraceID.String()); err == nil { // it may be forgotten
			gfetest.Sent(sent, tr.Spans...)
		}
	}
	table, text := gfetest.Attributes(t)
	for name, span := range sent {
		if !table[name] && !text[name] {
			t.Errorf("%s of span %q: not documented", name, span)
		}
	}
	for _, name := range []string{tracing.AttrUpstreamPool, tracing.AttrUpstreamSite, tracing.AttrServiceVersion} {
		if sent[name] == "" {
			t.Errorf("%s: documented, and not sent", name)
		}
	}
}

// wantTrace waits for a trace with a span of every tier down to the database.
func wantTrace(t *testing.T, p ports, id string) {
	t.Helper()
	gfetest.Eventually(t, "trace "+id+" of gfe, frontend, backend and database", func() bool {
		tr, err := client(p).Trace(t.Context(), id)
		if err != nil {
			return false
		}
		tiers := map[string]bool{}
		for _, s := range tr.Spans {
			tiers[s.Service] = true
		}
		return tiers["gfe"] && tiers["frontend"] && tiers["backend"] && tiers["database"]
	})
}
