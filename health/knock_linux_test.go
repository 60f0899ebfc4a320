package health

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fullPort returns an address of loopback that answers nobody: its queue is full.
func fullPort(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	c, err := net.Dial("tcp", addr.String()) // takes the one place there is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return addr
}

// TestKnock knocks at what listens, refuses and says nothing, many at once, and wants nothing
// left behind.
func TestKnock(t *testing.T) {
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	open, closed, full := make([]netip.AddrPort, 0, 2), closedPort(t), fullPort(t)
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Logf("without %s: %v", at, err)
			continue
		}
		defer func() { _ = l.Close() }()
		open = append(open, l.Addr().(*net.TCPAddr).AddrPort())
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
	}
	before := files()
	k, err := newKnocker()
	if err != nil {
		t.Fatal(err)
	}
	var polling sync.WaitGroup
	polling.Go(k.run)
	ctx, cancel := context.WithTimeout(t.Context(), ample)
	defer cancel()
	var wg sync.WaitGroup
	var good atomic.Int32
	const each = 200
	for range each {
		for _, addr := range open {
			wg.Go(func() {
				if err := k.knock(ctx, addr); err != nil {
					t.Errorf("%v: %v", addr, err)
					return
				}
				good.Add(1)
			})
		}
		wg.Go(func() {
			if err := k.knock(ctx, closed); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%v: got %v, want refused", closed, err)
			}
		})
	}
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if err := k.knock(short, full); classify(err, Protocol) != Timeout {
		t.Errorf("%v: got %v, want a time-out", full, err)
	}
	wg.Wait()
	if got, want := int(good.Load()), each*len(open); got != want {
		t.Errorf("%d of %d were open", got, want)
	}
	if n := len(k.waiting); n != 0 {
		t.Errorf("%d still wait", n)
	}
	k.close()
	polling.Wait()
	eventually(t, "all is closed", func() bool { return files() <= before })
}
