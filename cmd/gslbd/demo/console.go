package demo

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meridian-gslb/meridian/gslb"
)

// console is what the person before the demo sees: what runs, what to try, and then a line
// whenever an answer changes.
type console struct {
	mu    sync.Mutex
	out   io.Writer
	color bool
	told  bool              // the banner is out, and events may follow it
	last  map[string]string // by region: the answer seen last; only watch
}

func newConsole(out io.Writer) *console {
	c := &console{out: out, last: map[string]string{}}
	if f, ok := out.(*os.File); ok && os.Getenv("NO_COLOR") == "" {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		c.color = err == nil
	}
	return c
}

// paint wraps s in an SGR code on a terminal.
func (c *console) paint(code, s string) string {
	if !c.color {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (c *console) printf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.out, format, args...)
}

// say prints one line of what happens, with the time.
func (c *console) say(format string, args ...any) {
	c.printf("%s  %s\n", c.paint("2", time.Now().Format("15:04:05")), fmt.Sprintf(format, args...))
}

// event says what happens, once the banner is out: what happens before is the start.
func (c *console) event(format string, args ...any) {
	c.mu.Lock()
	told := c.told
	c.mu.Unlock()
	if told {
		c.say(format, args...)
	}
}

// quiet ends the events.
func (c *console) quiet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = false
}

// banner tells what runs and what to try.
func (c *console) banner(p ports, keys bool) {
	var b strings.Builder
	head := func(s string) { fmt.Fprintf(&b, "\n%s\n", c.paint("1", s)) }
	cmd := func(s, note string) { fmt.Fprintf(&b, "  %s\n      %s\n", c.paint("36", s), c.paint("2", note)) }

	head("Meridian: three regions in one process")
	fmt.Fprintf(&b, "  %-13s %-15s %-22s %-31s %-12s %s\n", "region", "DNS", "admin", "GFE pool", "frontend", "backend")
	for _, r := range regions {
		fmt.Fprintf(&b, "  %-13s %-15s %-22s %-31s %-12s %s\n", r.name,
			netip.AddrPortFrom(r.node(), uint16(p.dns)),
			fmt.Sprintf("http://%s:%d", r.node(), p.admin),
			fmt.Sprintf("%s: %s and .%d, :%d", r.pool("gfe"), r.gfe(0), r.gfe(1).As4()[3], p.http),
			r.frontend(), r.backend())
	}
	fmt.Fprintf(&b, "  and one etcd (a unix socket) and one database (bbolt, http://%s:%d)\n", host, p.database())

	dig := fmt.Sprintf("dig @%s -p %d www.example.com", host, p.dns)
	ctl := "go run ./cmd/gslbctl"
	if p.admin != defaultPorts.admin {
		ctl += fmt.Sprintf(" --server http://%s:%d", host, p.admin)
	}
	head("Five things to try, in another terminal")
	for _, r := range regions { // one thing, from three places
		fmt.Fprintf(&b, "  %s  %s\n", c.paint("36", fmt.Sprintf("%s +subnet=%-16s", dig, r.client)), c.paint("2", "a user in "+r.city))
	}
	fmt.Fprintf(&b, "      %s\n", c.paint("2", "each gets the nearest pool; the scope is behind the / in CLIENT-SUBNET"))
	eu := regions[1]
	cmd(fmt.Sprintf("curl -H 'Host: www.example.com' http://$(%s +short +subnet=%s | head -1):%d/", dig, eu.client, p.http),
		"a request through the answer: GFE, frontend, backend, database")
	cmd(fmt.Sprintf("%s explain www.example.com --client %s", ctl, eu.client.Addr().Next()), "why that pool")
	cmd(fmt.Sprintf("%s pool drain gfe-eu --reason 'trying it' --for 1m", ctl), "an operator takes a pool out; undrain brings it back")
	cmd(fmt.Sprintf("%s trace www.example.com --client %s", ctl, eu.client.Addr().Next()), "one query and one request, traced to the database")

	head("Break something")
	cmd(fmt.Sprintf("%s demo stop gfe-eu", ctl), "its proxies end; the answers move within seconds, and come back with: demo start gfe-eu")
	cmd(fmt.Sprintf("%s demo overload eu-west", ctl), "twice of what its frontend takes, for 40 s: requests move at once, users as their answers expire")
	if keys {
		fmt.Fprintf(&b, "  or press %s, %s or %s here to stop and start the GFEs of us, eu or ap; %s to end\n",
			c.paint("1", "1"), c.paint("1", "2"), c.paint("1", "3"), c.paint("1", "q"))
	}
	b.WriteString("\n" + c.paint("2", "IPv6 answers are documentation addresses: nobody listens there. Ctrl-C ends everything and leaves nothing behind.") + "\n\n")
	c.mu.Lock()
	defer c.mu.Unlock()
	io.WriteString(c.out, b.String())
	c.told = true
}

// watch tells which answers for the sample clients changed with s.
func (c *console) watch(s *gslb.Snapshot) {
	for _, r := range regions {
		e := sampleDecision(s, r)
		now := e.Pool
		if e.Reason != gslb.ReasonPolicy.String() {
			now += " (" + e.Reason + ")"
		}
		before := c.last[r.name]
		c.last[r.name] = now
		if before != now {
			c.event("www.example.com for %s (%s): %s → %s", r.client, r.city, before, c.paint("1", now))
		}
	}
}

// sampleDecision is what s decides for the sample client of r.
func sampleDecision(s *gslb.Snapshot, r region) gslb.Explanation {
	svc := s.Service("www.example.com")
	if svc == nil {
		return gslb.Explanation{}
	}
	return *s.Explain(svc, gslb.Client{Addr: r.client.Addr(), Source: uint8(r.client.Bits())})
}

// keys calls press with each key typed on the terminal f until stop is closed, and says
// whether f is a terminal at all, and ours: the kernel stops who reads it in the background. Call restore at the end: the terminal is as it was, after.
func keys(f *os.File, press func(byte)) (restore func(), ok bool) {
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}, false
	}
	if front, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil || front != unix.Getpgrp() {
		return func() {}, false
	}
	// One key at a time and unseen; Ctrl-C still is a signal.
	t := *old
	t.Lflag &^= unix.ICANON | unix.ECHO
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 0, 1 // a read waits a tenth of a second
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &t); err != nil {
		return func() {}, false
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		var b [1]byte
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, err := unix.Read(fd, b[:])
			if err != nil && err != unix.EINTR && err != unix.EAGAIN {
				return
			}
			if n == 1 {
				press(b[0])
			}
		}
	})
	return func() {
		close(stop)
		wg.Wait()
		unix.IoctlSetTermios(fd, unix.TCSETS, old)
	}, true
}
