// Command soak holds a node under mixed traffic while its zones are reloaded every second, and
// checks every answer: none may be wrong, nothing may be lost but what a socket's queue dropped,
// and memory must stay where it is.
//
//	go run ./testdata/bench/soak                 ten minutes
//	go run ./testdata/bench/soak -time 20s
//
// It builds gslbd and the load generator, runs them on loopback in a folder of its own, and ends
// with 0 if all was well. The load generator saturates the node; this command asks beside it, over
// UDP and TCP, and looks into the answers. It runs on Linux.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/testdata/bench/run"
)

func main() {
	length := flag.Duration("time", 10*time.Minute, "how long")
	port := flag.Int("port", 0, "of DNS; 0: one that is free")
	out := flag.String("out", "testdata/bench/results/soak.md", "file for the result; empty: none")
	flag.Parse()
	if err := hold(*length, *port, *out); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// world is what is asked for. Clients in 192.0.2.0/24 are in New York, those in 198.51.100.0/24 in
// Frankfurt. The zone's stamp is the number of its reloads.
const world = `
node: {name: soak, site: us, data: %s/data, dns: ["127.0.0.1:%d"], admin: "127.0.0.1:0", geo: {overrides: [
  {prefix: 192.0.2.0/24, site: us}, {prefix: 198.51.100.0/24, site: eu}, {prefix: 127.0.0.0/8, site: us}]}}
sites: {us: {lat: 40.71, lon: -74.01}, eu: {lat: 50.11, lon: 8.68}}
pools:
  us: {site: us, endpoints: [{address: 192.0.2.1}, {address: "2001:db8:1::1"}]}
  eu: {site: eu, endpoints: [{address: 198.51.100.1}, {address: "2001:db8:2::1"}]}
services:
  s0.example.com: {pools: {us: {}, eu: {}}, policy: [nearest]}
  s1.example.com: {pools: {us: {}, eu: {}}, policy: [nearest], https: {alpn: [h2]}}
zones: [{name: example.com, file: example.com.zone}]
`

const zone = `$TTL 300
@ SOA ns1 hostmaster %[1]d 7200 900 1209600 300
@ NS ns1
ns1 A 127.0.0.1
stamp TXT "%[1]d"
both TXT "%[1]d"
both A 10.%[2]d.%[3]d.%[4]d
alias CNAME s0
mx MX 10 s1
*.wild A 203.0.113.7
sub NS ns.sub
ns.sub A 203.0.113.8
`

// ask is one sort of question and what is right for it.
type ask struct {
	name  string
	qtype uint16
	ecs   string // "": none
	right func(m *dns.Msg, reloads uint32) bool
}

func has(want ...string) func(*dns.Msg, uint32) bool {
	return func(m *dns.Msg, _ uint32) bool {
		if m.Rcode != dns.RcodeSuccess || len(m.Answer) != len(want) {
			return false
		}
		for i, rr := range m.Answer {
			if !strings.HasSuffix(strings.Join(strings.Fields(rr.String()), " "), want[i]) {
				return false
			}
		}
		return true
	}
}

func denied(rcode int) func(*dns.Msg, uint32) bool {
	return func(m *dns.Msg, _ uint32) bool {
		return m.Rcode == rcode && len(m.Answer) == 0 && len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA
	}
}

var asks = []ask{
	{"s0.example.com.", dns.TypeA, "192.0.2.0/24", has("A 192.0.2.1")},
	{"S0.example.COM.", dns.TypeA, "198.51.100.0/24", has("A 198.51.100.1")},
	{"s1.example.com.", dns.TypeAAAA, "198.51.100.0/24", has("AAAA 2001:db8:2::1")},
	{"s1.example.com.", dns.TypeHTTPS, "198.51.100.0/24", has(`HTTPS 1 . alpn="h2" ipv4hint="198.51.100.1" ipv6hint="2001:db8:2::1"`)},
	{"alias.example.com.", dns.TypeA, "192.0.2.0/24", has("CNAME s0.example.com.", "A 192.0.2.1")},
	{"mx.example.com.", dns.TypeMX, "198.51.100.0/24", func(m *dns.Msg, _ uint32) bool {
		return m.Rcode == 0 && len(m.Answer) == 1 && len(m.Extra) == 3 && strings.Contains(m.Extra[0].String(), "198.51.100.1")
	}},
	{"stamp.example.com.", dns.TypeTXT, "", func(m *dns.Msg, reloads uint32) bool {
		n, ok := stamp(m)
		return ok && n <= reloads && n+30 >= reloads
	}},
	{"both.example.com.", dns.TypeA, "", func(m *dns.Msg, reloads uint32) bool {
		if m.Rcode != 0 || len(m.Answer) != 1 {
			return false
		}
		b := m.Answer[0].(*dns.A).A.To4()
		n := uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		return n <= reloads && n+30 >= reloads
	}},
	{"x.y.wild.example.com.", dns.TypeA, "", has("A 203.0.113.7")},
	{"gone.example.com.", dns.TypeA, "192.0.2.0/24", denied(dns.RcodeNameError)},
	{"s0.example.com.", dns.TypeMX, "", denied(dns.RcodeSuccess)},
	{"www.sub.example.com.", dns.TypeA, "", func(m *dns.Msg, _ uint32) bool {
		return m.Rcode == 0 && !m.Authoritative && len(m.Answer) == 0 && len(m.Ns) == 1 && len(m.Extra) >= 1
	}},
	{"example.org.", dns.TypeA, "", func(m *dns.Msg, _ uint32) bool { return m.Rcode == dns.RcodeRefused && len(m.Answer) == 0 }},
}

func stamp(m *dns.Msg) (n uint32, ok bool) {
	if m.Rcode != 0 || len(m.Answer) != 1 {
		return 0, false
	}
	v, err := strconv.ParseUint(m.Answer[0].(*dns.TXT).Txt[0], 10, 32)
	return uint32(v), err == nil
}

// pack returns the wire form of a's question with EDNS.
func (a *ask) pack() []byte {
	m := new(dns.Msg)
	m.SetQuestion(a.name, a.qtype)
	m.SetEdns0(1232, false)
	if a.ecs != "" {
		p := netip.MustParsePrefix(a.ecs)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: uint8(p.Bits()), Address: p.Addr().AsSlice()}}
	}
	pkt, err := m.Pack()
	if err != nil {
		panic(err) // asks are constants
	}
	return pkt
}

// soak is a run.
type soak struct {
	server  string
	port    int // its own
	packets [][]byte
	reloads atomic.Uint32

	asked, wrong, lost atomic.Uint64
	complaints         atomic.Int32
}

// judge checks a reply to ask i; complaints are few.
func (s *soak) judge(i int, reply []byte) {
	m := new(dns.Msg)
	if err := m.Unpack(reply); err == nil && m.Response && len(m.Question) == 1 && m.Question[0].Name == asks[i].name && asks[i].right(m, s.reloads.Load()) {
		return
	}
	s.wrong.Add(1)
	if s.complaints.Add(1) <= 5 {
		fmt.Fprintf(os.Stderr, "wrong answer to %s %s: %v\n", asks[i].name, dns.TypeToString[asks[i].qtype], m)
	}
}

// window is how many queries a sender has under way.
const window = 16

// udp asks in windows until ctx ends. What is not answered within two seconds is lost.
func (s *soak) udp(ctx context.Context) error {
	c, err := net.Dial("udp", s.server)
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 4096)
	id := uint16(rand.Uint32())
	for ctx.Err() == nil {
		open := make(map[uint16]int, window)
		for range window {
			i := rand.IntN(len(asks))
			id++
			binary.BigEndian.PutUint16(buf, id)
			n := copy(buf[2:], s.packets[i][2:]) + 2
			if _, err := c.Write(buf[:n]); err != nil {
				return err
			}
			open[id] = i
		}
		s.asked.Add(window)
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second)) // fails only on a closed socket
		for len(open) > 0 {
			n, err := c.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
			if i, ok := open[binary.BigEndian.Uint16(buf)]; n >= 12 && ok {
				delete(open, binary.BigEndian.Uint16(buf))
				s.judge(i, buf[:n])
			}
		}
		s.lost.Add(uint64(len(open)))
	}
	return nil
}

// tcp asks in pipelined windows over one connection after the other; nothing may be lost.
func (s *soak) tcp(ctx context.Context) error {
	buf := make([]byte, 65535)
	for ctx.Err() == nil {
		c, err := net.Dial("tcp", s.server)
		if err != nil {
			return err
		}
		in := bufio.NewReader(c)
		for range 20 {
			var out []byte
			var sent []int
			for range window {
				i := rand.IntN(len(asks))
				out = append(binary.BigEndian.AppendUint16(out, uint16(len(s.packets[i]))), s.packets[i]...)
				sent = append(sent, i)
			}
			_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // fails only on a closed connection
			if _, err := c.Write(out); err != nil {
				return err
			}
			s.asked.Add(window)
			for _, i := range sent {
				if _, err := io.ReadFull(in, buf[:2]); err != nil {
					return err
				}
				reply := buf[2:][:binary.BigEndian.Uint16(buf)]
				if _, err := io.ReadFull(in, reply); err != nil {
					return err
				}
				s.judge(i, reply)
			}
		}
		c.Close()
	}
	return nil
}

// noise sends what is no query, and must not matter.
func (s *soak) noise(ctx context.Context) error {
	c, err := net.Dial("udp", s.server)
	if err != nil {
		return err
	}
	defer c.Close()
	for ctx.Err() == nil {
		b := bytes.Clone(s.packets[rand.IntN(len(s.packets))])
		for range rand.IntN(4) {
			b[rand.IntN(len(b))] = byte(rand.Uint32())
		}
		_, _ = c.Write(b[:rand.IntN(len(b)+1)]) // an answer is not read
		time.Sleep(time.Millisecond)
	}
	return nil
}

// write writes the zone for the next reload, whole.
func (s *soak) write(dir string, n uint32) error {
	file := filepath.Join(dir, "example.com.zone")
	text := fmt.Sprintf(zone, n, byte(n>>16), byte(n>>8), byte(n))
	if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
		return err
	}
	s.reloads.Store(n)
	return os.Rename(file+".new", file)
}

// start runs a node in dir, which answers to a soak.
func start(dir string, port int) (s *soak, node *run.Node, err error) {
	bin, err := run.Build(dir)
	if err != nil {
		return nil, nil, err
	}
	if port == 0 {
		if port, err = run.FreePort(); err != nil {
			return nil, nil, err
		}
	}
	s = &soak{server: fmt.Sprintf("127.0.0.1:%d", port), port: port}
	for i := range asks {
		s.packets = append(s.packets, asks[i].pack())
	}
	if err := s.write(dir, 1); err != nil {
		return nil, nil, err
	}
	config := filepath.Join(dir, "gslb.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, world, dir, port), 0o644); err != nil {
		return nil, nil, err
	}
	if node, err = run.Start(bin, config); err != nil {
		return nil, nil, err
	}
	if err := node.Ready(time.Minute); err != nil {
		return nil, nil, errors.Join(err, node.Stop())
	}
	return s, node, nil
}

func hold(length time.Duration, port int, out string) (err error) {
	dir, err := os.MkdirTemp("", "soak")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir+"/", "./testdata/bench/load")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build load: %w", err)
	}
	s, node, err := start(dir, port)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop()) }()

	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	saturate := exec.CommandContext(ctx, filepath.Join(dir, "load"), "-server", s.server, "-pid", strconv.Itoa(node.PID()),
		"-names", "s%d.example.com", "-n", "2", "-time", (length - 2*time.Second).String(), "-tsv")
	saturated := make(chan []byte, 1)
	go func() {
		out, _ := saturate.Output() // what it says is read below
		saturated <- out
	}()
	var wg sync.WaitGroup
	failed := make(chan error, 16)
	for _, f := range []func(context.Context) error{s.udp, s.udp, s.udp, s.tcp, s.tcp, s.noise} {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				failed <- err
				cancel()
			}
		})
	}
	var memory []int64
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := uint32(2); ctx.Err() == nil; n++ {
		select {
		case <-ctx.Done():
		case <-tick.C:
			if err := s.write(dir, n); err != nil {
				return err
			}
			if err := syscall.Kill(node.PID(), syscall.SIGHUP); err != nil {
				return err
			}
			_, rss, err := run.Usage(node.PID())
			if err != nil {
				return err
			}
			memory = append(memory, rss)
		}
	}
	wg.Wait()
	load := strings.Fields(string(<-saturated))
	drops := dropped(s.port)
	final, err := dns.Exchange(new(dns.Msg).SetQuestion("stamp.example.com.", dns.TypeTXT), s.server)
	if err != nil {
		return fmt.Errorf("after the soak: %w", err)
	}
	served, _ := stamp(final)
	half := memory[len(memory)/2:]
	early, late := highest(memory[:len(memory)/2]), highest(half)
	var b strings.Builder
	fmt.Fprintf(&b, "# Soak\n\nWritten by `go run ./testdata/bench/soak -time %s`; run it to get these figures again.\n\n", length)
	fmt.Fprintf(&b, "- %d checked answers over UDP and TCP: %d wrong, %d lost (queues of sockets dropped %d packets).\n", s.asked.Load(), s.wrong.Load(), s.lost.Load(), drops)
	fmt.Fprintf(&b, "- %d reloads; the last one served is %d.\n", s.reloads.Load(), served)
	if len(load) >= 5 {
		fmt.Fprintf(&b, "- Beside them %s queries/s of one client that saturates the node: %s %% answered, %s %% wrong, %s µs of CPU each.\n", load[0], load[2], load[3], load[1])
	}
	fmt.Fprintf(&b, "- Memory: at most %d MiB in the first half, %d MiB in the second.\n%s", early>>20, late>>20, run.Machine())
	if err := run.Write(out, b.String()); err != nil {
		return err
	}
	var faults []error
	select {
	case err := <-failed:
		faults = append(faults, err)
	default:
	}
	if s.wrong.Load() > 0 || len(load) >= 5 && load[3] != "0.000" && load[3] != "0" {
		faults = append(faults, errors.New("wrong answers"))
	}
	if s.lost.Load() > drops {
		faults = append(faults, errors.New("more lost than sockets dropped"))
	}
	if served+5 < s.reloads.Load() {
		faults = append(faults, errors.New("reloads lag behind"))
	}
	if late > early+early/5+16<<20 {
		faults = append(faults, errors.New("memory grows"))
	}
	return errors.Join(faults...)
}

func highest(v []int64) (most int64) {
	for _, n := range v {
		most = max(most, n)
	}
	return most
}

// dropped returns what the queues of the sockets of that port, and of those connected to it, had no
// room for. Of sockets that are closed it is not known any more.
func dropped(port int) (n uint64) {
	text, err := os.ReadFile("/proc/net/udp")
	if err != nil {
		return 0
	}
	suffix := fmt.Sprintf(":%04X", port)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 13 && strings.HasSuffix(f[1], suffix) {
			d, _ := strconv.ParseUint(f[12], 10, 64) // the kernel writes numbers
			n += d
		}
	}
	return n
}
