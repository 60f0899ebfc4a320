package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/gslb/store"
)

// asGslbd in the environment makes the test binary gslbd itself, so that the tests run real
// processes of the code under test, with the race detector where the tests have it.
const asGslbd = "GSLBD_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asGslbd) == "" {
		os.Exit(m.Run())
	}
	go func() { // the tests hold the other end: no process outlives them
		io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	main()
}

// patience bounds every wait: long, since it is only ever used up by a failure.
const patience = 60 * time.Second

// process is a gslbd.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   output        // standard error
	lines chan string   // standard output
	ended chan struct{} // closed after the end, and then all output is there

	// Of the ready line.
	dns   string
	admin *api.Client
}

// output gathers what a process writes.
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

// launch starts gslbd with args. It is killed at the end of the test if it still runs.
func launch(t *testing.T, args ...string) *process {
	t.Helper()
	return launchIn(t, nil, args...)
}

// launchIn is launch with more in the environment.
func launchIn(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(self, args...), lines: make(chan string, 16), ended: make(chan struct{})}
	p.cmd.Env = slices.Concat(os.Environ(), env, []string{asGslbd + "=1"})
	p.cmd.Stderr = &p.log
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			p.lines <- s.Text()
		}
		close(p.lines)
		p.cmd.Wait()
		stdin.Close()
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("gslbd %s:\n%s", strings.Join(args, " "), p.log.String())
		}
	})
	return p
}

var readyLine = regexp.MustCompile(`^gslbd \S+ ready: node (\S+), site \S+, dns (\S+)( \S+)*, admin (http://\S+)$`)

// startNode starts the node of that configuration file and returns once it says that it is ready.
func startNode(t *testing.T, path string) *process {
	t.Helper()
	p := launch(t, "-config", path)
	p.ready()
	return p
}

// ready waits for the ready line, and takes the addresses from it.
func (p *process) ready() {
	p.t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			<-p.ended
			p.t.Fatalf("ended before it was ready: %s", p.log.String())
		}
		m := readyLine.FindStringSubmatch(line)
		if m == nil {
			p.t.Fatalf("ready line: got %q, want %s", line, readyLine)
		}
		p.at(m[2], m[4])
	case <-time.After(patience):
		p.t.Fatalf("not ready after %v: %s", patience, p.log.String())
	}
}

// at says where the process is asked.
func (p *process) at(dns, admin string) {
	p.dns = dns
	p.admin = &api.Client{Server: admin, HTTP: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %v: %v", s, err)
	}
}

// wait waits for the end and returns the exit code; -1 is the end by a signal.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("still runs after %v: %s", patience, p.log.String())
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop ends the node as an operator does, which must go well.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if code := p.wait(); code != 0 {
		p.t.Errorf("exit code after SIGTERM: got %d, want 0: %s", code, p.log.String())
	}
}

// kill ends the process without a word, and returns when it is gone.
func (p *process) kill() {
	p.cmd.Process.Kill() // an error says that it has ended
	<-p.ended
}

// ask sends one query, with the client subnet unless it is empty.
func (p *process) ask(network, name string, qtype uint16, subnet string) *dns.Msg {
	p.t.Helper()
	m, err := p.tryAsk(network, name, qtype, subnet)
	if err != nil {
		p.t.Fatalf("%s %s over %s: %v", name, dns.TypeToString[qtype], network, err)
	}
	return m
}

func (p *process) tryAsk(network, name string, qtype uint16, subnet string) (*dns.Msg, error) {
	q := question(name, qtype, subnet)
	m, _, err := (&dns.Client{Net: network, Timeout: patience}).Exchange(q, p.dns)
	return m, err
}

func question(name string, qtype uint16, subnet string) *dns.Msg {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	q.RecursionDesired = false
	q.SetEdns0(1232, false)
	if subnet != "" {
		net := netip.MustParsePrefix(subnet)
		family := uint16(1)
		if net.Addr().Is6() {
			family = 2
		}
		q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{
			Code: dns.EDNS0SUBNET, Family: family, SourceNetmask: uint8(net.Bits()), Address: net.Addr().AsSlice(),
		}}
	}
	return q
}

// answers returns the records of the answer section as "TYPE RDATA", sorted, or the rcode
// when there are none.
func answers(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		h := rr.Header()
		out = append(out, dns.TypeToString[h.Rrtype]+" "+strings.TrimPrefix(rr.String(), h.String()))
	}
	slices.Sort(out)
	return cmp.Or(strings.Join(out, ", "), dns.RcodeToString[m.Rcode])
}

// www is what the node answers a user for www.example.com A.
func (p *process) www() string {
	p.t.Helper()
	return answers(p.ask("udp", "www.example.com", dns.TypeA, ""))
}

// eventually polls until got returns want.
func eventually(t *testing.T, what, want string, got func() string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; <-tick.C {
		g := got()
		if g == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: got %q after %v, want %q", what, g, patience, want)
		}
	}
}

// reasons is why the node is not well, in its own words.
func (p *process) reasons() string { return strings.Join(p.status().Reasons, "\n") }

func (p *process) status() *api.Status {
	p.t.Helper()
	st, err := p.admin.Status(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return st
}

// member returns the state of another node as this one sees it.
func (p *process) member(name string) string {
	p.t.Helper()
	for _, m := range p.status().Members {
		if m.Name == name {
			return m.State
		}
	}
	return "unknown"
}

// gossip is where the node's gossip listens.
func (p *process) gossip() string {
	p.t.Helper()
	for _, m := range p.status().Members {
		if m.State == "self" {
			return m.Addr
		}
	}
	p.t.Fatal("the node is not a member of its own gossip")
	return ""
}

// write writes a file of a test's folder and returns its path.
func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// site is an HTTP endpoint that can die and return.
type site struct {
	t     *testing.T
	addr  netip.AddrPort
	serve http.HandlerFunc

	server *http.Server
}

// newSite returns a running endpoint of loopback that answers with serve, or 200.
func newSite(t *testing.T, serve http.HandlerFunc) *site {
	t.Helper()
	if serve == nil {
		serve = func(http.ResponseWriter, *http.Request) {}
	}
	s := &site{t: t, serve: serve, addr: netip.MustParseAddrPort("127.0.0.1:0")}
	s.start()
	t.Cleanup(s.die)
	return s
}

func (s *site) start() {
	s.t.Helper()
	ln, err := net.Listen("tcp", s.addr.String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.addr = netip.MustParseAddrPort(ln.Addr().String())
	server := &http.Server{Handler: s.serve}
	s.server = server
	go func() {
		if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.t.Errorf("endpoint %s: %v", s.addr, err)
		}
	}()
}

// die closes the endpoint and its connections: probes are refused.
func (s *site) die() { s.server.Close() }

// endpoint writes an endpoint whose address is answered and whose probe goes to s.
func (s *site) endpoint(answered string) string {
	return fmt.Sprintf("{address: %s, probe: {address: %s, port: %d}}", answered, s.addr.Addr(), s.addr.Port())
}

// refused is the address of an endpoint that refuses connections.
func refused(t *testing.T) *site {
	addr, _ := gfetest.Refusing(t)
	return &site{t: t, addr: addr}
}

func configEtcd(endpoint string) config.Etcd { return config.Etcd{Endpoints: []string{endpoint}} }

// apply puts objects into the store before any node follows it.
func apply(t *testing.T, s *store.Client, objects string) {
	t.Helper()
	o, err := config.ParseObjects("objects.yaml", []byte(objects))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan struct{})
	seen := sync.OnceFunc(func() { close(first) })
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.Run(ctx, func(store.View) { seen() }) })
	select {
	case <-first: // it follows etcd, and so can write to it
	case <-time.After(patience):
		t.Fatalf("etcd is not heard after %v", patience)
	}
	if _, err := s.Apply(ctx, store.Change{Put: o, Author: "test"}); err != nil {
		t.Fatal(err)
	}
}

// freeAddr returns an address of loopback, one that nothing else here asks for, with a port
// that is free.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 83, byte(os.Getpid() >> 8), byte(os.Getpid())}), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// socketDir returns a folder whose name is short enough for a socket in it.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gslbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
