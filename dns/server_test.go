package dns

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/tracing"
)

// patience bounds what tests wait for. Nothing takes that long but on a machine that hangs.
const patience = 30 * time.Second

// running is the number of test servers that run: goroutines are looked for when it falls to 0,
// while none can start.
var (
	starting sync.Mutex
	running  int // guarded by starting
)

var loopback = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("[::1]:0")}

// testServer is a running server.
type testServer struct {
	*Server
	data   *atomic.Pointer[Data]
	cancel context.CancelFunc
	ended  chan error
}

// serve starts a server of the dialogues' world, and checks at the end that it ends whole.
func serve(t *testing.T, opts Options) *testServer {
	t.Helper()
	s := prepare(t, opts)
	s.run()
	return s
}

// prepare is serve without the start: the sockets are bound.
func prepare(t *testing.T, opts Options) *testServer {
	t.Helper()
	if opts.Addrs == nil {
		opts.Addrs = loopback
	}
	opts.Workers = 2
	opts.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	if opts.Data == nil {
		opts.Data = new(atomic.Pointer[Data])
		opts.Data.Store(loadWorld(t).data(t))
	}
	s := &testServer{Server: New(opts), data: opts.Data, ended: make(chan error, 1)}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *testServer) run() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.runUntil(ctx)
}

func (s *testServer) runUntil(ctx context.Context) {
	starting.Lock()
	defer starting.Unlock()
	running++
	go func() { s.ended <- s.Run(ctx) }()
}

// stop ends the server and checks that it ended whole.
func (s *testServer) stop(t *testing.T) {
	t.Helper()
	s.cancel()
	select {
	case err := <-s.ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Run: got %v, want %v", err, context.Canceled)
		}
	case <-time.After(patience):
		t.Fatal("Run has not returned")
	}
	starting.Lock()
	defer starting.Unlock()
	if running--; running == 0 {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for _, name := range []string{"(*udpWorker)", "(*tcpServer)", "(*tcpConn)"} {
			if bytes.Contains(stacks, []byte("meridian/dns."+name)) {
				t.Errorf("a goroutine of %s is left after Run:\n%s", name, stacks)
			}
		}
	}
	if n := s.Stats().TCPOpen; n != 0 {
		t.Errorf("got %d connections after Run, want 0", n)
	}
}

func exchange(t *testing.T, network string, server netip.AddrPort, query []byte) *miekg.Msg {
	t.Helper()
	c, err := net.Dial(network, server.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return unpack(t, converseOn(t, c, query))
}

// converseOn sends a query on a connection and returns the reply. Over UDP it asks again now
// and then: what floods the machine's loopback beside the test may cost a datagram.
func converseOn(t *testing.T, c net.Conn, query []byte) []byte {
	t.Helper()
	tries := 5
	if _, ok := c.(*net.TCPConn); ok {
		tries = 1
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	for {
		c.SetDeadline(time.Now().Add(patience / time.Duration(tries)))
		if _, err := c.Write(query); err != nil {
			t.Fatal(err)
		}
		reply, err := receive(c)
		if err == nil {
			return reply
		}
		if tries--; tries == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
}

// receive reads one reply.
func receive(c net.Conn) ([]byte, error) {
	if _, ok := c.(*net.TCPConn); !ok {
		b := make([]byte, maxMessage)
		n, err := c.Read(b)
		return b[:n], err
	}
	var l [2]byte
	if _, err := io.ReadFull(c, l[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(l[:]))
	_, err := io.ReadFull(c, b)
	return b, err
}

func dialTCP(t *testing.T, server netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(server))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// TestServer asks over UDP and TCP, IPv4 and IPv6.
func TestServer(t *testing.T) {
	s := serve(t, Options{})
	for _, addr := range s.Addrs() {
		if addr.Port() == 0 {
			t.Fatalf("Addrs: got %s, want its port", addr)
		}
		for _, network := range []string{"udp", "tcp"} {
			m := exchange(t, network, addr, ask(t, "www.example.com", "A", withECS("198.51.100.0/24")))
			if len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), "198.51.100.1") {
				t.Errorf("%s %s: got %v, want 198.51.100.1", network, addr, m)
			}
			if ecs, ok := m.IsEdns0().Option[0].(*miekg.EDNS0_SUBNET); !ok || ecs.SourceScope != 25 {
				t.Errorf("%s %s: got %v, want scope 25", network, addr, m.IsEdns0())
			}
		}
	}
	s.stop(t)
	st := s.Stats()
	if st.UDP != 2 || st.TCP != 2 || st.Full != 0 || st.Rcodes["NOERROR"] != 4 || st.Reasons["policy"] != 4 || st.TCPAccepted != 2 {
		t.Errorf("got %+v, want 2 queries on each of UDP and TCP", st)
	}
	if want := []PoolCount{{"www.example.com", "eu", "policy", 4}}; len(st.Pools) != 1 || st.Pools[0] != want[0] {
		t.Errorf("got %v, want %v", st.Pools, want)
	}
}

// TestReplacedData asks before and after the data are replaced, from nothing at all on.
func TestReplacedData(t *testing.T) {
	w := loadWorld(t)
	data := new(atomic.Pointer[Data])
	s := serve(t, Options{Data: data})
	defer s.stop(t)
	query := ask(t, "www.example.com", "A", withECS("198.51.100.0/24"))
	want := func(rcode int, addr string) {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			m := exchange(t, network, s.Addrs()[0], query)
			if m.Rcode != rcode || addr != "" && (len(m.Answer) == 0 || m.Answer[0].(*miekg.A).A.String() != addr) {
				t.Errorf("%s: got %v, want %s %s", network, m, rcodeNames[rcode], addr)
			}
		}
	}
	want(rcodeRefused, "")
	data.Store(w.data(t))
	want(rcodeNoError, "198.51.100.1")
	w.fail("eu", "198.51.100.1")
	w.fail("eu", "2001:db8:2::1")
	data.Store(w.data(t))
	want(rcodeNoError, "192.0.2.1")
	data.Store(nil)
	want(rcodeRefused, "")
}

// TestTools asks with the tools that operators have.
func TestTools(t *testing.T) {
	s := serve(t, Options{})
	defer s.stop(t)
	server := s.Addrs()[0]
	for _, tt := range []struct {
		name, tool, args string
		want             []string
	}{
		{"subnet", "dig", "www.example.com A +subnet=198.51.100.0/24", []string{"198.51.100.1", "CLIENT-SUBNET: 198.51.100.0/24/25", "status: NOERROR", "flags: qr aa rd"}},
		{"subnet IPv6", "dig", "www.example.com AAAA +subnet=2001:db8:1::/56", []string{"2001:db8:1::1", "CLIENT-SUBNET: 2001:db8:1::/56/48"}},
		{"no subnet", "dig", "www.example.com A +subnet=0", []string{"status: NOERROR", "CLIENT-SUBNET: 0.0.0.0/0/0"}},
		{"over TCP", "dig", "www.example.com A +tcp +subnet=198.51.100.0/24", []string{"198.51.100.1", "/24/25", "(TCP)"}},
		{"two over one connection", "dig", "+tcp +keepopen www.example.com A ns1.example.com A", []string{"192.0.2.53"}},
		{"name error", "dig", "nowhere.example.com A", []string{"status: NXDOMAIN", "SOA"}},
		{"truncated, then over TCP", "dig", "big.example.com TXT +bufsize=512", []string{"6-34567", "(TCP)", "ANSWER: 6"}},
		{"truncated", "dig", "big.example.com TXT +bufsize=512 +ignore", []string{"flags: qr aa tc rd"}},
		{"EDNS version 1", "dig", "www.example.com +edns=1 +noednsnegotiation", []string{"status: BADVERS", "version: 0"}},
		{"EDNS flags", "dig", "www.example.com +ednsflags=0x7fff", []string{"status: NOERROR", "flags:;"}},
		{"cookie", "dig", "www.example.com +cookie", []string{"status: NOERROR"}},
		{"any", "dig", "example.com ANY +notcp", []string{"status: NOERROR", "ANSWER: 2"}},
		{"transfer", "dig", "example.com AXFR", []string{"Transfer failed"}},
		{"class", "dig", "version.bind TXT CH", []string{"status: REFUSED"}},
		{"opcode", "dig", "www.example.com +opcode=15", []string{"status: NOTIMP"}},
		{"no OPT", "dig", "www.example.com +noedns", []string{"status: NOERROR", "ADDITIONAL: 0"}},
		{"subnet", "kdig", "www.example.com A +subnet=198.51.100.0/24", []string{"198.51.100.1", "198.51.100.0/24/25", "status: NOERROR"}},
		{"over TCP", "kdig", "www.example.com A +tcp +subnet=192.0.2.0/24", []string{"192.0.2.1", "192.0.2.2", "(TCP)"}},
		{"padding and NSID", "kdig", "www.example.com A +nsid +padding=128", []string{"status: NOERROR"}},
	} {
		t.Run(tt.tool+" "+tt.name, func(t *testing.T) {
			path, err := exec.LookPath(tt.tool)
			needs(t, err == nil, tt.tool)
			args := append([]string{"@" + server.Addr().String(), "-p", fmt.Sprint(server.Port())}, strings.Fields(tt.args)...)
			out, _ := exec.Command(path, args...).CombinedOutput() // the tool's text says more than its exit code
			for _, want := range tt.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("got\n%s\nwant it to contain %q", out, want)
				}
			}
		})
	}
}

// TestBusyPort has an address that another socket holds: the error names it and says so, and
// what was bound before is free again.
func TestBusyPort(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			var busy netip.AddrPort
			if network == "udp" {
				c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				busy = c.LocalAddr().(*net.UDPAddr).AddrPort()
			} else {
				l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				busy = l.Addr().(*net.TCPAddr).AddrPort()
			}
			busy = netip.AddrPortFrom(busy.Addr().Unmap(), busy.Port())
			s := New(Options{Addrs: []netip.AddrPort{loopback[1], busy}, Data: new(atomic.Pointer[Data])})
			err := s.Listen()
			if want := fmt.Sprintf("dns %s: address already in use", busy); err == nil || err.Error() != want || !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("Listen: got %v, want %s", err, want)
			}
			if len(s.udp) != 0 || len(s.tcp.listeners) != 0 || s.Addrs() != nil {
				t.Errorf("Listen left %d UDP sockets, %d TCP sockets, addresses %v", len(s.udp), len(s.tcp.listeners), s.Addrs())
			}
			if err := s.Run(t.Context()); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("Run: got %v, want %v", err, syscall.EADDRINUSE)
			}
		})
	}
}

// TestSecondServer wants a port that a server of ours holds, whose UDP sockets share it.
func TestSecondServer(t *testing.T) {
	s := serve(t, Options{})
	defer s.stop(t)
	if err := New(Options{Addrs: s.Addrs()[:1], Data: s.data}).Listen(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v, want %v", err, syscall.EADDRINUSE)
	}
}

// TestPipelining sends many queries at once, cut where it hurts, and wants every reply in order
// (RFC 7766, section 6.2.1).
func TestPipelining(t *testing.T) {
	s := serve(t, Options{})
	defer s.stop(t)
	const n = 1000
	var stream []byte
	for id := range n {
		name := [...]string{"www", "nowhere", "big", "ns1"}[id%4]
		query := ask(t, name+".example.com", "TXT", func(m *miekg.Msg) { m.Id = uint16(id) })
		stream = append(binary.BigEndian.AppendUint16(stream, uint16(len(query))), query...)
	}
	c := dialTCP(t, s.Addrs()[0])
	c.SetNoDelay(true)
	done := make(chan error, 1)
	go func() {
		for size := 1; len(stream) > 0; size = size*2%8191 + 1 {
			n, err := c.Write(stream[:min(size, len(stream))])
			if err != nil {
				done <- err
				return
			}
			stream = stream[n:]
		}
		done <- c.CloseWrite()
	}()
	for id := range n {
		reply, err := receive(c)
		if err != nil {
			t.Fatalf("reply %d: %v", id, err)
		}
		if m := unpack(t, reply); int(m.Id) != id || (m.Rcode == rcodeNameError) != (id%4 == 1) {
			t.Fatalf("reply %d: got id %d, %s", id, m.Id, rcodeNames[m.Rcode])
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := receive(c); err != io.EOF {
		t.Errorf("after the last query: got %v, want %v", err, io.EOF)
	}
}

// TestSlowClients holds connections open in every way, and none for longer than allowed.
func TestSlowClients(t *testing.T) {
	query := ask(t, "www.example.com", "A")
	framed := append([]byte{0, byte(len(query))}, query...)
	for _, tt := range []struct {
		name string
		act  func(c *net.TCPConn) error // until the server closes
	}{
		{"silent", func(c *net.TCPConn) error { return untilClosed(c) }},
		{"half a length", func(c *net.TCPConn) error {
			_, err := c.Write([]byte{0})
			return errors.Join(err, untilClosed(c))
		}},
		{"half a query", func(c *net.TCPConn) error {
			_, err := c.Write(framed[:20])
			return errors.Join(err, untilClosed(c))
		}},
		{"octet by octet", func(c *net.TCPConn) error {
			// As long as a query may be: if each octet gave more time, it would take minutes.
			for next := binary.BigEndian.AppendUint16(nil, maxTCPQuery); ; next = []byte{0} {
				if _, err := c.Write(next); errors.Is(err, os.ErrDeadlineExceeded) {
					return err
				} else if err != nil {
					return nil // closed by the server
				}
				time.Sleep(50 * time.Millisecond) // that is what the client is like
			}
		}},
		{"a response", func(c *net.TCPConn) error {
			_, err := c.Write(packet(0, 12, header(flagQR, 0, 0, 0, 0)))
			return errors.Join(err, untilClosed(c))
		}},
		{"an empty message", func(c *net.TCPConn) error {
			_, err := c.Write([]byte{0, 0})
			return errors.Join(err, untilClosed(c))
		}},
		{"a message longer than any query", func(c *net.TCPConn) error {
			_, err := c.Write([]byte{0xff, 0xff})
			return errors.Join(err, untilClosed(c))
		}},
		{"takes no replies", func(c *net.TCPConn) error {
			big := ask(t, "big.example.com", "TXT")
			framed := bytes.Repeat(append([]byte{0, byte(len(big))}, big...), 1000)
			for {
				if _, err := c.Write(framed); err != nil {
					if errors.Is(err, os.ErrDeadlineExceeded) {
						return err
					}
					return nil // closed by the server
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, Options{TCPIdle: time.Second})
			defer s.stop(t)
			c := dialTCP(t, s.Addrs()[0])
			if err := tt.act(c); err != nil {
				t.Error(err)
			}
			// Others are served as ever. On a busy machine they may themselves be slow: they try again.
			waitFor(t, "an answer to another client", func() bool {
				c, err := net.Dial("tcp", s.Addrs()[0].String())
				if err != nil {
					return false
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				if _, err := c.Write(framed); err != nil {
					return false
				}
				reply, err := receive(c)
				return err == nil && unpack(t, reply).Rcode == rcodeNoError
			})
		})
	}
}

// untilClosed reads until the server closes c.
func untilClosed(c net.Conn) error {
	n, err := io.Copy(io.Discard, c)
	if n > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("got %d octets and %v, want the end of the connection", n, err)
	}
	return nil
}

// TestTCPLimits opens more connections than there may be: the longest idle makes way.
func TestTCPLimits(t *testing.T) {
	query := ask(t, "ns1.example.com", "A")
	t.Run("of all", func(t *testing.T) {
		s := serve(t, Options{TCPConns: 3})
		defer s.stop(t)
		var conns []*net.TCPConn
		for range 3 {
			c := dialTCP(t, s.Addrs()[0])
			converseOn(t, c, query)
			conns = append(conns, c)
		}
		converseOn(t, conns[0], query) // the second is idle for longest now
		converseOn(t, dialTCP(t, s.Addrs()[0]), query)
		if err := untilClosed(conns[1]); err != nil {
			t.Errorf("the longest idle connection: %v", err)
		}
		converseOn(t, conns[0], query)
		converseOn(t, conns[2], query)
		if st := s.Stats(); st.TCPEvicted != 1 || st.TCPOpen != 3 {
			t.Errorf("got %d evicted and %d open, want 1 and 3", st.TCPEvicted, st.TCPOpen)
		}
	})
	t.Run("of one client", func(t *testing.T) {
		s := serve(t, Options{TCPPerClient: 2})
		defer s.stop(t)
		first := dialTCP(t, s.Addrs()[0])
		converseOn(t, first, query)
		converseOn(t, dialTCP(t, s.Addrs()[0]), query)
		if err := untilClosed(dialTCP(t, s.Addrs()[0])); err != nil {
			t.Errorf("the third connection: %v", err)
		}
		other := dialTCP(t, s.Addrs()[1]) // another client: ::1
		converseOn(t, other, query)
		first.Close()
		waitFor(t, "the first connection to be gone", func() bool { return s.Stats().TCPOpen == 2 })
		converseOn(t, dialTCP(t, s.Addrs()[0]), query)
		if st := s.Stats(); st.TCPRefused != 1 {
			t.Errorf("got %d refused, want 1", st.TCPRefused)
		}
	})
}

// waitFor waits for what another goroutine is about to do.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestShutdownLosesNothing stops a server that has queries waiting in its sockets: each is
// answered.
func TestShutdownLosesNothing(t *testing.T) {
	const n = 300
	query := ask(t, "www.example.com", "A")
	s := prepare(t, Options{})
	c, err := net.Dial("udp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.(*net.UDPConn).SetReadBuffer(1 << 20)
	for range n { // nobody reads yet
		if _, err := c.Write(query); err != nil {
			t.Fatal(err)
		}
	}
	s.run()
	tcp := dialTCP(t, s.Addrs()[0])
	converseOn(t, tcp, query)
	var stream []byte
	for range 50 {
		stream = append(append(stream, 0, byte(len(query))), query...)
	}
	if _, err := tcp.Write(stream); err != nil {
		t.Fatal(err)
	}
	s.stop(t)
	for i := range 50 {
		if _, err := receive(tcp); err != nil {
			t.Fatalf("TCP reply %d of 50: %v", i, err)
		}
	}
	if got := answers(t, c); got != n {
		t.Errorf("got %d replies over UDP, want %d", got, n)
	}

	// The same for a server that is told to stop before it reads anything.
	s = prepare(t, Options{})
	c, err = net.Dial("udp", s.Addrs()[1].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.(*net.UDPConn).SetReadBuffer(1 << 20)
	for range n {
		if _, err := c.Write(query); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.cancel = cancel
	s.runUntil(ctx)
	s.stop(t)
	if got := answers(t, c); got != n {
		t.Errorf("stopped at once: got %d replies over UDP, want %d", got, n)
	}
}

// answers counts the replies that c has received; its server has ended.
func answers(t *testing.T, c net.Conn) (n int) {
	t.Helper()
	for b := make([]byte, 4096); ; n++ {
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := c.Read(b); err != nil {
			return n
		}
	}
}

// TestShutdownUnderLoad stops a server in the midst of queries: what it read, it answered.
func TestShutdownUnderLoad(t *testing.T) {
	s := serve(t, Options{})
	query := ask(t, "www.example.com", "A", withECS("198.51.100.0/24"))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		c, err := net.Dial([]string{"udp", "tcp"}[i%2], s.Addrs()[i/2].String())
		if err != nil {
			t.Fatal(err)
		}
		out := query
		if i%2 == 1 {
			out = append([]byte{0, byte(len(query))}, query...)
		}
		wg.Go(func() { _, _ = io.Copy(io.Discard, bufio.NewReaderSize(c, 1<<16)) })
		wg.Go(func() {
			defer c.Close()
			for {
				select {
				case <-stop:
					return
				default:
					if _, err := c.Write(out); err != nil && i%2 == 1 {
						return
					}
				}
			}
		})
	}
	waitFor(t, "load", func() bool { st := s.Stats(); return st.UDP > 1000 && st.TCP > 1000 })
	s.stop(t)
	close(stop)
	wg.Wait()
	st := s.Stats()
	if replied := st.Rcodes["NOERROR"]; replied != st.UDP+st.TCP || st.Reasons["policy"] != replied {
		t.Errorf("got %d replies to %d + %d queries, %d decisions", replied, st.UDP, st.TCP, st.Reasons["policy"])
	}
}

// TestCountsSurvive swaps snapshots with other services and pools under a count: what was
// counted stays, by name for as long as the name does.
func TestCountsSurvive(t *testing.T) {
	const text = `
node: {name: n, site: eu, data: unused, dns: ["127.0.0.1:0"]}
sites: {eu: {lat: 1, lon: 1}}
pools: {%s}
services: {%s}
zones: [{name: example.com, records: "@ 60 SOA ns h 1 2 3 4 5\n@ 60 NS ns\nns 60 A 192.0.2.1\n"}]
`
	pool := func(name string) string { return name + ": {site: eu, endpoints: [{address: 192.0.2.9}]}, " }
	service := func(name, pool string) string { return name + ".example.com: {pools: {" + pool + ": {}}}, " }
	one := parseWorld(t, fmt.Sprintf(text, pool("p"), service("a", "p"))).data(t)
	same := parseWorld(t, fmt.Sprintf(text, pool("p"), service("a", "p"))).data(t)
	two := parseWorld(t, fmt.Sprintf(text, pool("o")+pool("p"), service("0", "o")+service("a", "p"))).data(t)
	a := testAnswerer(t)
	query := func(d *Data, name string, n int) {
		for range n {
			a.serve(d, ask(t, name+".example.com", "A"), resolver, false, make([]byte, maxUDPBuffer))
		}
	}
	query(one, "a", 3)
	query(same, "a", 2)
	query(two, "a", 4)
	query(two, "0", 1)
	query(one, "a", 5)
	a.tally.publish()
	pools := make(map[poolKey]uint64)
	a.counters.addTo(&Stats{Rcodes: map[string]uint64{}, Outcomes: map[string]uint64{}, Reasons: map[string]uint64{}}, pools)
	if a, gone := pools[poolKey{"a.example.com", "p", gslb.ReasonPolicy}], pools[poolKey{}]; a != 14 || gone != 1 || len(pools) != 2 {
		t.Errorf("got %v, want 14 for a and 1 for what is gone", pools)
	}
}

// TestCountsBounded: beyond the counters that a worker may have, services share some, and nothing
// is lost.
func TestCountsBounded(t *testing.T) {
	const pools, services = 400, 1000
	s := &gslb.Snapshot{}
	for i := range pools {
		s.Pools = append(s.Pools, &gslb.Pool{Name: fmt.Sprintf("p%03d", i), Index: i})
	}
	for i := range services {
		s.Services = append(s.Services, &gslb.Service{Name: fmt.Sprintf("s%03d", i), Index: i})
	}
	c := new(counters)
	counted := &tally{counters: c}
	for round := range 3 {
		for i := range services { // of most kinds one pushes out another
			counted.countDecision(s, &gslb.Decision{Service: s.Services[i], Pool: s.Pools[i%pools], Reason: gslb.Reason(round)})
		}
	}
	counted.publish()
	sums := make(map[poolKey]uint64)
	c.addTo(&Stats{Rcodes: map[string]uint64{}, Outcomes: map[string]uint64{}, Reasons: map[string]uint64{}}, sums)
	var all, shared uint64
	for key, n := range sums {
		if all += n; key.service == "" {
			shared += n
		}
	}
	if cells := c.pools.Load().cells.Load(); all != 3*services || shared == 0 || shared == all || cells > maxCells+pools*int64(reasons) {
		t.Errorf("got %d decisions, %d of them without a name, in %d counters; want %d in about %d", all, shared, cells, 3*services, maxCells)
	}
}

// order is a TraceWorker that keeps the clients' ports, in the order of their answers.
type order struct {
	slot  tracing.Query
	ports []uint16
}

func (o *order) All() bool                                      { return true }
func (o *order) Draw() (drawn bool, rest int)                   { return true, 0 }
func (o *order) Changed() bool                                  { return false }
func (o *order) Notable(int32, int32, uint8, uint8, uint8) bool { return true }
func (o *order) Keep(query, reply []byte)                       {}
func (o *order) Commit()                                        { o.ports = append(o.ports, o.slot.ResolverPort) }
func (o *order) Begin(bool) *tracing.Query {
	o.slot = tracing.Query{}
	return &o.slot
}

// TestTCPTurns: connections that have sent much take turns, so that one with a single query has not to
// wait until they are done. What is counted is answers, not time.
func TestTCPTurns(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // turns are only taken of the same core
	const conns, queries = 20, 2000
	var answered order
	s := prepare(t, Options{Trace: func(int) TraceWorker { return &answered }, TCPPerClient: conns})
	query := ask(t, "www.example.org", "A")
	query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	var one *net.TCPConn
	for i := range conns { // all is sent, and waits in the kernel, before the server starts
		c, n := dialTCP(t, s.Addrs()[0]), queries
		if i == conns-2 { // Go lets the goroutine that it made last run first
			one, n = c, 1
		}
		if _, err := c.Write(bytes.Repeat(query, n)); err != nil {
			t.Fatal(err)
		}
	}
	s.run()
	if _, err := receive(one); err != nil {
		t.Fatal(err)
	}
	s.stop(t)

	port := one.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	at := slices.Index(answered.ports, port)
	row, longest := 0, 0
	for i, p := range answered.ports[:at] {
		if i > 0 && p != answered.ports[i-1] {
			row = 0
		}
		row++
		longest = max(longest, row)
	}
	if most := 2 * (2 + maxTCPQuery) / len(query); longest > most { // one turn, or two that meet
		t.Errorf("got %d answers in a row to one connection, want at most %d: two times what is read at once", longest, most)
	}
	t.Logf("%d answers before that of the connection with one query, of %d in all", at, len(answered.ports))
}
