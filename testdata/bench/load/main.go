// Command load asks a DNS server as fast as it answers, and measures it: queries per second,
// CPU time of the server's process per query, share answered, memory, time to the answer.
//
// Unlike dnsperf, which repeats one EDNS option, it draws name, client subnet (RFC 7871) and
// source port at random for every query, and it reads and writes in batches, so that one
// core of it keeps any server on one core busy.
//
//	load -server 127.0.0.1:5300 -pid 4711 -names 's%d.example.com' -n 16 -ecs 4 -time 5s
//
// It runs on Linux.
package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meridian-gslb/meridian/testdata/bench/run"
)

// options are the flags.
type options struct {
	server  netip.AddrPort
	pid     int
	names   []string
	qtype   uint16
	ecs     int // 0: no option; 4 or 6
	sockets int
	window  int
	rate    float64 // queries a second; 0: as many as are answered
	warm    time.Duration
	time    time.Duration
	check   bool
	tsv     bool
}

func main() {
	var o options
	server := flag.String("server", "127.0.0.1:5300", "`address` and port to ask")
	pattern := flag.String("names", "www.example.com", "owner name; a %d in it is replaced by 0 to n-1")
	n := flag.Int("n", 1, "number of names")
	aaaa := flag.Bool("aaaa", false, "ask for AAAA rather than A")
	flag.IntVar(&o.pid, "pid", 0, "the server's process, to measure its CPU time and memory")
	flag.IntVar(&o.ecs, "ecs", 4, "family of the client subnet option: 4 (/24), 6 (/56), or 0 for none")
	flag.IntVar(&o.sockets, "sockets", 16, "source ports")
	flag.IntVar(&o.window, "window", 12, "queries under way on each, 1 to 256")
	flag.Float64Var(&o.rate, "rate", 0, "queries a second at most, evenly spread; 0 for as many as are answered")
	flag.DurationVar(&o.warm, "warm", time.Second, "how long before it measures")
	flag.DurationVar(&o.time, "time", 5*time.Second, "how long it measures")
	flag.BoolVar(&o.check, "check", true, "an answer must be NOERROR with an answer record")
	flag.BoolVar(&o.tsv, "tsv", false, "print one line for scripts: qps, CPU µs per query, % answered, % wrong, RSS in KiB, p50, p99 and p99.9 in µs")
	flag.Parse()
	if err := start(o, *server, *pattern, *n, *aaaa); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func start(o options, server, pattern string, n int, aaaa bool) (err error) {
	if o.server, err = netip.ParseAddrPort(server); err != nil {
		return fmt.Errorf("-server: %w", err)
	}
	if o.window < 1 || o.window > maxWindow || o.sockets < 1 || n < 1 || o.time <= 0 {
		return fmt.Errorf("expected -window 1..%d, -sockets, -n and -time over 0", maxWindow)
	}
	if o.rate < 0 {
		return fmt.Errorf("-rate %v: expected 0 or more", o.rate)
	}
	if o.ecs != 0 && o.ecs != 4 && o.ecs != 6 {
		return fmt.Errorf("-ecs %d: expected 0, 4 or 6", o.ecs)
	}
	for i := range n {
		o.names = append(o.names, strings.ReplaceAll(pattern, "%d", fmt.Sprint(i)))
	}
	o.qtype = 1
	if aaaa {
		o.qtype = 28
	}
	result, err := measure(o)
	if err != nil {
		return err
	}
	result.print(o)
	return nil
}

// query returns a query for name as it goes over the wire. With a family the client subnet
// comes last, so that its prefix is the last octets.
func query(name string, qtype uint16, family int) ([]byte, error) {
	b := []byte{0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1} // id, flags, one question, one additional
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label == "" || len(label) > 63 {
			return nil, fmt.Errorf("name %q: label %q: expected 1 to 63 octets", name, label)
		}
		b = append(b, byte(len(label)))
		b = append(b, label...)
	}
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, qtype)
	b = append(b, 0, 1)                             // IN
	b = append(b, 0, 0, 41, 1232>>8, 1232&0xff)     // OPT (RFC 6891), payload size
	b = append(b, 0, 0, 0, 0)                       // extended rcode, version, flags
	octets := map[int]int{0: 0, 4: 3, 6: 7}[family] // of a /24, of a /56
	if family == 0 {
		return append(b, 0, 0), nil
	}
	b = binary.BigEndian.AppendUint16(b, uint16(8+octets))
	b = append(b, 0, 8) // client subnet (RFC 7871)
	b = binary.BigEndian.AppendUint16(b, uint16(4+octets))
	b = append(b, 0, map[int]byte{4: 1, 6: 2}[family], byte(8*octets), 0)
	return append(b, make([]byte, octets)...), nil
}

// subnet draws a client subnet into the last octets of a query.
func subnet(q []byte, family int, random *rand.Rand) {
	r := random.Uint64()
	switch family {
	case 4: // unicast, neither of a /8 that is not on the Internet
		p := q[len(q)-3:]
		p[0] = byte(1 + r%223)
		if p[0] == 10 || p[0] == 127 {
			p[0]++
		}
		p[1], p[2] = byte(r>>8), byte(r>>16)
	case 6: // 2400::/6, where much of the Internet is
		p := q[len(q)-7:]
		p[0] = 0x24 + byte(r%7)
		for i := 1; i < 7; i++ {
			p[i] = byte(r >> (8 * i))
		}
	}
}

// maxWindow is the most queries under way on one socket: the low octet of an ID is a slot.
const maxWindow = 256

const (
	maxQuery = 512
	maxReply = 1500
	lostIn   = time.Second // a query without an answer by then
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// slot is a query under way.
type slot struct {
	id   uint16
	busy bool
	sent time.Time
}

// socket is one source port with its queries under way. Arrays are set up once for the kernel.
type socket struct {
	fd       int
	slots    []slot
	out, in  []mmsghdr
	iov, iiv []unix.Iovec
	bufs     [][maxQuery]byte
	replies  [][maxReply]byte
	free     []int // slots
}

// count is what was measured.
type count struct {
	answered, wrong, lost uint64
	latency               histogram
}

type client struct {
	o       options
	sockets []*socket
	fds     []unix.PollFd
	queries [][]byte
	random  *rand.Rand
	budget  int // queries that may be sent now; with a rate
	count
}

// result is a measurement.
type result struct {
	count
	elapsed time.Duration
	cpu     time.Duration // of the server
	rss     int64         // octets
}

func measure(o options) (*result, error) {
	c := &client{o: o, random: rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))}
	for _, name := range o.names {
		q, err := query(name, o.qtype, o.ecs)
		if err != nil {
			return nil, err
		}
		c.queries = append(c.queries, q)
	}
	defer func() {
		for _, s := range c.sockets {
			unix.Close(s.fd)
		}
	}()
	for range o.sockets {
		s, err := open(o.server, o.window)
		if err != nil {
			return nil, err
		}
		c.sockets = append(c.sockets, s)
		c.fds = append(c.fds, unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN})
	}
	if _, err := c.runUntil(time.Now().Add(o.warm)); err != nil {
		return nil, err
	}
	c.count = count{}
	before, _, err := run.Usage(o.pid)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	end, err := c.runUntil(start.Add(o.time))
	if err != nil {
		return nil, err
	}
	after, rss, err := run.Usage(o.pid)
	if err != nil {
		return nil, err
	}
	return &result{count: c.count, elapsed: end.Sub(start), cpu: after - before, rss: rss}, nil
}

// open makes a socket whose peer is the server: the kernel gives each its own source port.
func open(server netip.AddrPort, window int) (*socket, error) {
	family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(server.Port()), Addr: as4(server.Addr())})
	if server.Addr().Unmap().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(server.Port()), Addr: server.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	s := &socket{
		fd: fd, slots: make([]slot, window), free: make([]int, 0, window),
		out: make([]mmsghdr, window), in: make([]mmsghdr, window),
		iov: make([]unix.Iovec, window), iiv: make([]unix.Iovec, window),
		bufs: make([][maxQuery]byte, window), replies: make([][maxReply]byte, window),
	}
	for i := range window {
		s.slots[i].id = uint16(i)
		s.free = append(s.free, i)
		s.iov[i].Base = &s.bufs[i][0]
		s.out[i].hdr.Iov = &s.iov[i]
		s.out[i].hdr.SetIovlen(1)
		s.iiv[i].Base = &s.replies[i][0]
		s.iiv[i].SetLen(maxReply)
		s.in[i].hdr.Iov = &s.iiv[i]
		s.in[i].hdr.SetIovlen(1)
	}
	return s, nil
}

// maxBudget bounds the burst that follows a moment in which the client did not run.
const maxBudget = 64

// sweepEvery is how often lost queries are looked for.
const sweepEvery = 50 * time.Millisecond

// runUntil keeps every window full until then.
func (c *client) runUntil(until time.Time) (end time.Time, err error) {
	sweep := time.Now().Add(sweepEvery)
	start, paid := time.Now(), 0
	for {
		now := time.Now()
		if !now.Before(until) {
			return now, nil
		}
		if c.o.rate > 0 {
			due := int(c.o.rate * now.Sub(start).Seconds())
			c.budget, paid = min(c.budget+due-paid, maxBudget), due
		}
		got := 0
		for _, s := range c.sockets {
			n, err := c.receive(s, now)
			if err != nil {
				return now, err
			}
			got += n
			if err := c.send(s); err != nil {
				return now, err
			}
		}
		if now.After(sweep) {
			c.sweep(now)
			sweep = now.Add(sweepEvery)
		}
		if got == 0 && c.o.rate == 0 { // with one, the clock is waited for
			if _, err := unix.Poll(c.fds, 10); err != nil && !errors.Is(err, unix.EINTR) {
				return now, os.NewSyscallError("poll", err)
			}
		}
	}
}

// receive takes what has come, and frees its slots.
func (c *client) receive(s *socket, now time.Time) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.in[0])), uintptr(len(s.in)), 0, 0, 0)
	switch errno {
	case 0:
	case unix.EAGAIN, unix.EINTR:
		return 0, nil
	case unix.ECONNREFUSED:
		return 0, fmt.Errorf("%s: nobody listens", c.o.server)
	default:
		return 0, os.NewSyscallError("recvmmsg", errno)
	}
	for i := range int(n) {
		b := s.replies[i][:min(int(s.in[i].len), maxReply)]
		if len(b) < 12 {
			c.wrong++
			continue
		}
		id := binary.BigEndian.Uint16(b)
		k := int(id & 0xff)
		if k >= len(s.slots) || !s.slots[k].busy || s.slots[k].id != id {
			continue // too late: it was counted as lost
		}
		c.answered++
		if c.o.check && (b[2]&0x80 == 0 || b[3]&0x0f != 0 || b[6]|b[7] == 0) { // QR, rcode, answers
			c.wrong++
		}
		c.latency.add(now.Sub(s.slots[k].sent))
		s.slots[k].busy = false
		s.free = append(s.free, k)
	}
	return int(n), nil
}

// send asks something new in every free slot.
func (c *client) send(s *socket) error {
	most := len(s.free)
	if c.o.rate > 0 {
		most = min(most, c.budget)
	}
	if most == 0 {
		return nil
	}
	for i, k := range s.free[:most] {
		q := c.queries[c.random.IntN(len(c.queries))]
		b := s.bufs[i][:copy(s.bufs[i][:], q)]
		id := s.slots[k].id + 1<<8 // the slot stays, its generation grows
		s.slots[k].id = id
		binary.BigEndian.PutUint16(b, id)
		subnet(b, c.o.ecs, c.random)
		s.iov[i].SetLen(len(b))
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.out[0])), uintptr(most), 0, 0, 0)
	switch errno {
	case 0:
	case unix.EAGAIN, unix.EINTR, unix.ENOBUFS:
		return nil
	case unix.ECONNREFUSED:
		return fmt.Errorf("%s: nobody listens", c.o.server)
	default:
		return os.NewSyscallError("sendmmsg", errno)
	}
	now := time.Now()
	for _, k := range s.free[:n] {
		s.slots[k].busy, s.slots[k].sent = true, now
	}
	s.free = s.free[:copy(s.free, s.free[n:])]
	c.budget -= int(n)
	return nil
}

// sweep gives up what is not answered.
func (c *client) sweep(now time.Time) {
	for _, s := range c.sockets {
		for k := range s.slots {
			if s.slots[k].busy && now.Sub(s.slots[k].sent) > lostIn {
				s.slots[k].busy = false
				s.free = append(s.free, k)
				c.lost++
			}
		}
	}
}

// histogram counts durations in buckets of an eighth of a power of two.
type histogram [64 * 8]uint64

func (h *histogram) add(d time.Duration) {
	v := uint64(max(d, 8))
	top := bits.Len64(v) - 1
	h[top*8+int(v>>(top-3)&7)]++
}

// quantile returns a bound that a share q of the durations does not pass.
func (h *histogram) quantile(q float64) time.Duration {
	var total, sum uint64
	for _, n := range h {
		total += n
	}
	for i, n := range h {
		if sum += n; float64(sum) >= q*float64(total) && n > 0 {
			return time.Duration((8 + uint64(i%8) + 1) << (i / 8) >> 3)
		}
	}
	return 0
}

func (r *result) print(o options) {
	qps := float64(r.answered) / r.elapsed.Seconds()
	share := func(n uint64) float64 { return 100 * float64(n) / float64(max(1, r.answered+r.lost)) }
	cpu := float64(r.cpu.Microseconds()) / float64(max(1, r.answered))
	µs := func(q float64) float64 { return float64(r.latency.quantile(q)) / 1000 }
	if o.tsv {
		fmt.Printf("%.0f\t%.3f\t%.3f\t%.3f\t%d\t%.0f\t%.0f\t%.0f\n", qps, cpu, share(r.answered), share(r.wrong), r.rss>>10, µs(0.5), µs(0.99), µs(0.999))
		return
	}
	fmt.Printf("queries/s   %.0f\nanswered    %.3f %%, of them wrong %.3f %%\nlatency     p50 %.0f µs, p99 %.0f µs, p99.9 %.0f µs\n",
		qps, share(r.answered), share(r.wrong), µs(0.5), µs(0.99), µs(0.999))
	if o.pid != 0 {
		fmt.Printf("server      %.3f µs of CPU a query, %d KiB resident\n", cpu, r.rss>>10)
	}
}

// as4 is the IPv4 address of addr, or zero for IPv6.
func as4(addr netip.Addr) [4]byte {
	if addr = addr.Unmap(); addr.Is4() {
		return addr.As4()
	}
	return [4]byte{}
}
