package health

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// knocker opens TCP connections only to see them open, with no more than the system calls that
// this takes: a net.Conn costs as much again. All of them wait in one epoll instance, which
// itself waits in the runtime's poller, so that no thread does.
type knocker struct {
	// set at construction
	file  *os.File
	epoll int // the descriptor of file

	mu      sync.Mutex
	next    uint64                   // guarded by mu: a token for each attempt, since descriptors return
	waiting map[uint64]chan struct{} // guarded by mu, by token
}

// newKnocker returns a knocker that works as long as run does.
func newKnocker() (*knocker, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // by which os lets the poller have it
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &knocker{file: os.NewFile(uintptr(fd), "epoll"), epoll: fd, waiting: make(map[uint64]chan struct{})}, nil
}

// run wakes those whose connection is open or refused, until close.
func (k *knocker) run() {
	raw, err := k.file.SyscallConn()
	if err != nil {
		return // closed
	}
	events := make([]unix.EpollEvent, 128)
	_ = raw.Read(func(fd uintptr) (done bool) {
		for {
			n, err := unix.EpollWait(int(fd), events, 0)
			if err == unix.EINTR {
				continue
			}
			if n <= 0 {
				return err != nil
			}
			k.mu.Lock()
			for _, e := range events[:n] {
				if c := k.waiting[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]; c != nil {
					nudge(c)
				}
			}
			k.mu.Unlock()
		}
	})
}

// close ends run. Nobody knocks any more.
func (k *knocker) close() { _ = k.file.Close() }

// knock connects to addr, which has no zone, and hangs up. Its errors are those of the system
// and of ctx.
func (k *knocker) knock(ctx context.Context, addr netip.AddrPort) error {
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()})
	if addr.Addr().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	// Hang up with a reset: nothing was said, and neither side need remember the connection.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.Connect(fd, to); err != unix.EINPROGRESS {
		return err
	}
	c := make(chan struct{}, 1)
	k.mu.Lock()
	k.next++
	token := k.next
	k.waiting[token] = c
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.waiting, token)
		k.mu.Unlock()
	}()
	event := unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLONESHOT, Fd: int32(uint32(token)), Pad: int32(uint32(token >> 32))}
	if err := unix.EpollCtl(k.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return err
	}
	select {
	case <-c:
	case <-ctx.Done():
		return ctx.Err()
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return err
	case errno != 0:
		return syscall.Errno(errno)
	}
	return nil
}
