// Package run starts gslbd for measures, asks it, and says on what machine that was.
package run

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// Build builds the static, stripped gslbd into dir and returns its path. The present folder
// must be in the module.
func Build(dir string) (string, error) {
	bin := filepath.Join(dir, "gslbd")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "github.com/meridian-gslb/meridian/cmd/gslbd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return bin, nil
}

// Node is a gslbd process.
type Node struct {
	Started time.Time // just before the process was

	cmd   *exec.Cmd
	log   bytes.Buffer // standard error; whole after the end
	ready chan struct{}
	ended chan struct{}
}

// Start starts bin with that configuration file.
func Start(bin, config string) (*Node, error) {
	n := &Node{cmd: exec.Command(bin, "-config", config), ready: make(chan struct{}), ended: make(chan struct{})}
	n.cmd.Stderr = &n.log
	stdout, err := n.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	n.Started = time.Now()
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(n.ended)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			if strings.Contains(s.Text(), " ready: ") {
				close(n.ready)
			}
		}
		n.cmd.Wait() // how it ended is in ProcessState
	}()
	return n, nil
}

// Ready waits until the node says that it is ready.
func (n *Node) Ready(limit time.Duration) error {
	select {
	case <-n.ready:
		return nil
	case <-n.ended:
		return fmt.Errorf("gslbd ended (%v): %s", n.cmd.ProcessState, n.log.String())
	case <-time.After(limit):
		return fmt.Errorf("gslbd is not ready after %v", limit)
	}
}

// Stop ends the node with SIGTERM, which must go well.
func (n *Node) Stop() error {
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-n.ended:
	case <-time.After(30 * time.Second):
		n.cmd.Process.Kill() // it is ours, and may be gone by now
		<-n.ended
	}
	if code := n.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("gslbd: exit code %d: %s", code, n.log.String())
	}
	return nil
}

// PID returns the process.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Memory returns a line of the process's /proc/PID/status in KiB: VmRSS, VmHWM, RssAnon.
func (n *Node) Memory(key string) (kib int, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strconv.Atoi(strings.Fields(value)[0])
		}
	}
	return 0, fmt.Errorf("/proc/%d/status: no %s", n.cmd.Process.Pid, key)
}

// Usage returns the CPU time that a process has used, user and system, with its threads that
// have ended, and its resident memory in octets. Process 0 has used nothing.
func Usage(pid int) (cpu time.Duration, rss int64, err error) {
	if pid == 0 {
		return 0, 0, nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:]) // proc_pid_stat(5), from the third field on
	if len(f) < 22 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %d fields, expected 24 or more", pid, len(f)+2)
	}
	var user, system, pages int64
	for i, v := range map[int]*int64{11: &user, 12: &system, 21: &pages} {
		if _, err := fmt.Sscan(f[i], v); err != nil {
			return 0, 0, fmt.Errorf("/proc/%d/stat: field %d: %w", pid, i+3, err)
		}
	}
	const tick = time.Second / 100 // USER_HZ, of every architecture that Go runs on
	return time.Duration(user+system) * tick, pages * int64(syscall.Getpagesize()), nil
}

// Asker asks one server the same question.
type Asker struct {
	conn  net.Conn
	query []byte
	buf   [4096]byte
}

// NewAsker returns an asker of server for the addresses (A) of name, for a user in subnet.
func NewAsker(server, name string, subnet netip.Prefix) (*Asker, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	q.SetEdns0(1232, false)
	q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{
		Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: uint8(subnet.Bits()), Address: subnet.Addr().AsSlice(),
	}}
	a := &Asker{}
	var err error
	if a.query, err = q.Pack(); err != nil {
		return nil, err
	}
	a.conn, err = net.Dial("udp", server)
	return a, err
}

// Close closes the socket.
func (a *Asker) Close() { a.conn.Close() }

// Ask returns the addresses that the server answers within the limit; none when it does not
// answer, refuses, or has none.
func (a *Asker) Ask(limit time.Duration) []string {
	if _, err := a.conn.Write(a.query); err != nil {
		return nil // what an earlier query met: nobody listens there yet
	}
	a.conn.SetReadDeadline(time.Now().Add(limit))
	n, err := a.conn.Read(a.buf[:])
	if err != nil {
		return nil
	}
	var m dns.Msg
	if m.Unpack(a.buf[:n]) != nil {
		return nil
	}
	var out []string
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			out = append(out, a.A.String())
		}
	}
	return out
}

// FreePort returns a port of 127.0.0.1 that is free for TCP and UDP.
func FreePort() (int, error) {
	for {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		c, err := net.ListenPacket("udp", ln.Addr().String())
		ln.Close()
		if err != nil {
			continue
		}
		c.Close()
		return ln.Addr().(*net.TCPAddr).Port, nil
	}
}

// Median returns the median of ds, which it does not change; of an even number the mean of
// the two in the middle. There must be one.
func Median(ds []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(ds))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// Machine says on what was measured: a line for a list in Markdown.
func Machine() string {
	field := func(path, key string) string {
		data, _ := os.ReadFile(path) // absent where there is no /proc
		for line := range strings.Lines(string(data)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
				return strings.TrimSpace(v)
			}
		}
		return "?"
	}
	memory := "?"
	if kib, err := strconv.Atoi(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		memory = fmt.Sprintf("%.1f GiB", float64(kib)/(1<<20))
	}
	output := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).Output()
		if err != nil {
			return "?"
		}
		return strings.TrimSpace(string(out))
	}
	load, _, _ := strings.Cut(output("cat", "/proc/loadavg"), " ")
	return fmt.Sprintf("- Machine: %d cores, %s, %s, %s %s, %s; load at the end (1 min) %s.\n- Versions: %s; Meridian %s.\n",
		runtime.NumCPU(), field("/proc/cpuinfo", "model name"), memory, output("uname", "-s"), output("uname", "-r"), output("uname", "-m"), load,
		runtime.Version(), output("git", "describe", "--always", "--dirty"))
}

// Write prints text, and writes it to the file of that name unless it is empty.
func Write(name, text string) error {
	fmt.Print(text)
	if name == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(text), 0o644)
}
