// Command flood holds a node under floods, one after the other, while resolvers ask it: one that
// is listed in node.serve.limits.allow, one that has a DNS Cookie, and one that comes over TCP.
// It measures what share of their answers they get, and the node's CPU and memory.
//
//	go run ./testdata/bench/flood               ten seconds each; writes results/flood.md
//	go run ./testdata/bench/flood -time 2s -out ""
//
// It builds gslbd and runs it on loopback in a folder of its own. The floods come from many
// addresses of 127.0.0.0/8, as fast as one core of this command sends, and end by themselves. It
// ends with 0 if the listed resolver got 99 % of its answers at the first try, the others got them
// at one of three, and memory stayed where it was. It runs on Linux.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"

	"github.com/meridian-gslb/meridian/testdata/bench/run"
)

func main() {
	o := options{most: 1 << 40, patience: time.Second}
	flag.DurationVar(&o.each, "time", 10*time.Second, "how long each flood lasts")
	flag.StringVar(&o.out, "out", "testdata/bench/results/flood.md", "file for the result; empty: none")
	flag.Parse()
	rows, err := measure(o)
	if err == nil {
		err = errors.Join(run.Write(o.out, report(o, rows)), judge(rows))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
}

type options struct {
	each     time.Duration // of a flood
	most     int64         // packets, or connections, of a flood
	patience time.Duration // of a resolver at each try
	out      string
}

// world is what is asked for. Clients in 192.0.2.0/24 are in New York, those in 198.51.100.0/24 in
// Frankfurt.
const world = `
node:
  name: flood
  site: us
  data: %s/data
  dns: ["127.0.0.1:%d"]
  admin: 127.0.0.1:0
  serve: {limits: {rate: 50, slip: 2, amplify: 10, allow: [127.0.0.53/32]}}
  geo: {overrides: [{prefix: 192.0.2.0/24, site: us}, {prefix: 198.51.100.0/24, site: eu}]}
sites: {us: {lat: 40.71, lon: -74.01}, eu: {lat: 50.11, lon: 8.68}}
pools:
  us: {site: us, endpoints: [{address: 192.0.2.1}]}
  eu: {site: eu, endpoints: [{address: 198.51.100.1}]}
services:
  www.example.com: {pools: {us: {}, eu: {}}, policy: [nearest]}
zones:
  - name: example.com
    records: |
      $TTL 300
      @ SOA ns1 hostmaster 1 7200 900 1209600 300
      @ NS ns1
      @ MX 10 mail
      @ TXT "v=spf1 -all"
      ns1 A 127.0.0.1
      mail A 192.0.2.25
`

// flood is one sort of it.
type flood struct {
	name string
	next func(m *dns.Msg) // makes the next question of m; nil: none is sent, or the flood is over TCP
	tcp  bool
}

var floods = []flood{
	{"none", nil, false},
	{"random subdomains", func(m *dns.Msg) { m.SetQuestion(fmt.Sprintf("%x.example.com.", rand.Uint64()), dns.TypeA) }, false},
	{"ANY", func(m *dns.Msg) { m.SetQuestion("example.com.", dns.TypeANY).SetEdns0(4096, true) }, false},
	{"client subnets", func(m *dns.Msg) {
		m.SetQuestion("www.example.com.", dns.TypeA)
		m.Extra = []dns.RR{subnet(net.IPv4(byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32()), 0))}
	}, false},
	{"TCP connections", nil, true},
}

func subnet(addr net.IP) *dns.OPT {
	return &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT, Class: 1232}, Option: []dns.EDNS0{
		&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: addr}}}
}

// row is what was measured of one flood.
type row struct {
	flood     string
	sent      int64 // packets or connections
	took      time.Duration
	cpu       time.Duration
	memory    int64 // most octets, resident
	resolvers [3]score
}

// score is what a resolver got.
type score struct {
	asked, first, answered int // questions; those answered at the first try; at one of tries
}

func (s score) share(n int) float64 { return 100 * float64(n) / float64(max(s.asked, 1)) }

func measure(o options) (rows []row, err error) {
	dir, err := os.MkdirTemp("", "flood")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	bin, err := run.Build(dir)
	if err != nil {
		return nil, err
	}
	port, err := run.FreePort()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "gslb.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, world, dir, port), 0o644); err != nil {
		return nil, err
	}
	node, err := run.Start(bin, config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, node.Stop()) }()
	if err := node.Ready(time.Minute); err != nil {
		return nil, err
	}
	for _, f := range floods {
		r, err := f.measure(o, node.PID(), port)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// measure floods the node while the resolvers ask.
func (f flood) measure(o options, pid, port int) (row, error) {
	r := row{flood: f.name}
	ctx, cancel := context.WithTimeout(context.Background(), o.each)
	defer cancel()
	before, _, err := run.Usage(pid)
	if err != nil {
		return r, err
	}
	start := time.Now()
	var sent atomic.Int64
	var wg sync.WaitGroup
	failed := make(chan error, 8)
	try := func(g func() error) {
		wg.Go(func() {
			if err := g(); err != nil {
				failed <- err
				cancel()
			}
		})
	}
	for i, ask := range []func(context.Context, resolver) (score, error){askListed, askWithCookie, askOverTCP} {
		try(func() (err error) {
			r.resolvers[i], err = ask(ctx, resolver{port, o.patience})
			return err
		})
	}
	switch {
	case f.tcp:
		for range connectors {
			try(func() error { return connect(ctx, port, &sent, o.most) })
		}
	case f.next != nil:
		try(func() error { return f.send(ctx, port, &sent, o.most) })
	}
	try(func() error { // watches the memory
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			_, rss, err := run.Usage(pid)
			if err != nil {
				return err
			}
			r.memory = max(r.memory, rss)
			select {
			case <-ctx.Done():
				tick.Stop()
				return nil
			case <-tick.C:
			}
		}
	})
	wg.Wait()
	r.took, r.sent = time.Since(start), sent.Load()
	after, _, err := run.Usage(pid)
	r.cpu = after - before
	select {
	case first := <-failed:
		err = errors.Join(first, err)
	default:
	}
	return r, err
}

// source returns an address of loopback that no resolver has.
func source() net.IP {
	return net.IPv4(127, byte(64+rand.IntN(128)), byte(rand.Uint32()), byte(1+rand.IntN(254)))
}

const (
	sources = 256 // of a flood, addresses
	batch   = 64  // packets in one system call
)

// send sends most packets from many addresses, batch by batch, until ctx ends. Nobody reads the replies.
func (f flood) send(ctx context.Context, port int, sent *atomic.Int64, most int64) error {
	var conns [sources]*ipv4.PacketConn
	for i := range conns {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: source()}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			return err
		}
		defer c.Close()
		conns[i] = ipv4.NewPacketConn(c)
	}
	// A thousand batches made before: making a question takes longer than answering it.
	stock := make([][]ipv4.Message, 1000)
	for i := range stock {
		for range batch {
			m := new(dns.Msg)
			f.next(m)
			pkt, err := m.Pack()
			if err != nil {
				return err
			}
			stock[i] = append(stock[i], ipv4.Message{Buffers: [][]byte{pkt}})
		}
	}
	for i := 0; ctx.Err() == nil && sent.Load() < most; i++ {
		n, err := conns[i%sources].WriteBatch(stock[i%len(stock)], 0)
		if err != nil && !errors.Is(err, syscall.ENOBUFS) && !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		sent.Add(int64(max(n, 0)))
	}
	return nil
}

const (
	connectors = 16
	held       = 100 // connections that each holds: together more than a node has room for
)

// connect opens most connections from many addresses, asks half a question on each, and lets go of
// the oldest of those it holds.
func connect(ctx context.Context, port int, opened *atomic.Int64, most int64) error {
	var open [held]net.Conn
	defer func() {
		for _, c := range open {
			if c != nil {
				c.Close()
			}
		}
	}()
	for i := 0; ctx.Err() == nil && opened.Add(1) <= most; i++ {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: source()}, Timeout: time.Second}
		c, err := d.DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue // the node's queue of connections is full, as is to be expected, or the time is up
		}
		_ = c.(*net.TCPConn).SetLinger(0) // no port is left behind
		_, _ = c.Write([]byte{0, 40, 1, 2, 3})
		if old := open[i%held]; old != nil {
			old.Close()
		}
		open[i%held] = c
	}
	return nil
}

// resolver is one that asks a port of loopback, and asks again what was not answered in patience.
type resolver struct {
	port     int
	patience time.Duration
}

const (
	pace  = 5 * time.Millisecond // of its questions
	tries = 3                    // for each
)

// ask asks until ctx ends, by exchange, which gives up after patience.
func ask(ctx context.Context, exchange func(m *dns.Msg) (*dns.Msg, error)) (s score, err error) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return s, nil
		case <-tick.C:
		}
		m := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
		client, want := net.IPv4(192, 0, 2, 0), "192.0.2.1"
		if rand.IntN(2) == 1 {
			client, want = net.IPv4(198, 51, 100, 0), "198.51.100.1"
		}
		m.Extra = []dns.RR{subnet(client)}
		s.asked++
		for try := range tries {
			reply, err := exchange(m)
			if err != nil || len(reply.Answer) != 1 { // limited, or lost
				continue
			}
			if a, ok := reply.Answer[0].(*dns.A); !ok || a.A.String() != want {
				return s, fmt.Errorf("a wrong answer: %v", reply)
			}
			if s.answered++; try == 0 {
				s.first++
			}
			break
		}
	}
}

// askListed asks from the address that the node lists.
func askListed(ctx context.Context, r resolver) (score, error) {
	c, err := from("127.0.0.53", r.port)
	if err != nil {
		return score{}, err
	}
	defer c.Close()
	return ask(ctx, func(m *dns.Msg) (*dns.Msg, error) { return r.converse(c, m) })
}

// askWithCookie asks with the cookie that the node gave.
func askWithCookie(ctx context.Context, r resolver) (score, error) {
	c, err := from("127.0.0.54", r.port)
	if err != nil {
		return score{}, err
	}
	defer c.Close()
	cookie := fmt.Sprintf("%016x", rand.Uint64())
	return ask(ctx, func(m *dns.Msg) (*dns.Msg, error) {
		opt := m.IsEdns0()
		opt.Option = append(opt.Option[:1:1], &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie})
		reply, err := r.converse(c, m)
		if err == nil && reply.IsEdns0() != nil {
			for _, o := range reply.IsEdns0().Option {
				if o, ok := o.(*dns.EDNS0_COOKIE); ok {
					cookie = o.Cookie
				}
			}
		}
		return reply, err
	})
}

func from(addr string, port int) (*net.UDPConn, error) {
	return net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(addr)}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
}

// converse asks on c and waits for the reply of that id.
func (r resolver) converse(c net.Conn, m *dns.Msg) (*dns.Msg, error) {
	pkt, err := m.Pack()
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(r.patience)); err != nil {
		return nil, err
	}
	if _, err := c.Write(pkt); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if reply := new(dns.Msg); reply.Unpack(buf[:n]) == nil && reply.Id == m.Id {
			return reply, nil
		}
	}
}

// askOverTCP asks over a connection for each question.
func askOverTCP(ctx context.Context, r resolver) (score, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 55)}, Timeout: r.patience}
	return ask(ctx, func(m *dns.Msg) (*dns.Msg, error) {
		c, err := d.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", r.port))
		if err != nil {
			return nil, err
		}
		defer c.Close()
		_ = c.(*net.TCPConn).SetLinger(0) // no port is left behind
		pkt, err := m.Pack()
		if err != nil {
			return nil, err
		}
		_ = c.SetDeadline(time.Now().Add(r.patience)) // fails only on a closed connection
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(pkt))), pkt...)); err != nil {
			return nil, err
		}
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return nil, err
		}
		b := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return nil, err
		}
		reply := new(dns.Msg)
		return reply, reply.Unpack(b)
	})
}

// memoryRoom is what a flood may add to the node's memory, in octets: connections and the
// goroutines that serve them, tables of fixed size when they are used first, and what waits for
// the garbage collector.
const memoryRoom = 64 << 20

// judge returns what is not as it should be.
func judge(rows []row) error {
	var faults []error
	for _, r := range rows {
		for i, s := range r.resolvers {
			name, got := [...]string{"listed", "with a cookie", "over TCP"}[i], s.answered
			if i == 0 {
				got = s.first
			}
			if s.asked == 0 || s.share(got) < 99 {
				faults = append(faults, fmt.Errorf("%s: the resolver %s got %d of %d answers", r.flood, name, got, s.asked))
			}
		}
		if r.memory > rows[0].memory+memoryRoom {
			faults = append(faults, fmt.Errorf("%s: %d MiB, and %d without a flood", r.flood, r.memory>>20, rows[0].memory>>20))
		}
	}
	return errors.Join(faults...)
}

func report(o options, rows []row) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Floods\n\nWritten by `go run ./testdata/bench/flood -time %s`; run it to get these figures again. A whole node on\n", o.each)
	fmt.Fprintf(&b, "loopback, flooded from %d addresses (or by connections of more), as fast as the sender can; both share the machine.\n", sources)
	b.WriteString("Shares are of a resolver's answers that came at the first try, and within three of a second each.\n\n")
	b.WriteString("| flood | per second | node's CPU, cores | memory MiB | listed % | with a cookie % | over TCP % |\n|---|--:|--:|--:|--:|--:|--:|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %.0f | %.2f | %d |", r.flood, float64(r.sent)/r.took.Seconds(), r.cpu.Seconds()/r.took.Seconds(), r.memory>>20)
		for _, s := range r.resolvers {
			fmt.Fprintf(&b, " %.2f, %.2f |", s.share(s.first), s.share(s.answered))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "\n%s", run.Machine())
	return b.String()
}
