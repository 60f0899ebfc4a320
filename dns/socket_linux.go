package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// waitTime bounds how long a worker waits in the kernel, where Go's poller cannot: of packets that
// leave at all, thousands do in that time.
const waitTime = 100 * time.Millisecond

// socket is a UDP socket that Go's poller hears of only while somebody waits for a packet. Whoever
// waits at a socket is looked for by the kernel at each packet that leaves it, too, for room may
// have become free (sock_def_write_space), which costs a busy server 3 to 4 % of its time.
type socket struct {
	fd    int
	local netip.AddrPort

	epoll   int             // an epoll(7) for fd alone, which Go's poller knows
	watch   *os.File        // the same
	waiting syscall.RawConn // of watch
	watched bool            // fd is in watch

	patience time.Duration // of wait
}

// listenSocket binds a socket, after options set what is to be set before that.
func listenSocket(addr netip.AddrPort, options func(fd int) error) (*socket, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) { err = options(int(fd)) })
		return errors.Join(cerr, err)
	}}
	conn, err := lc.ListenPacket(context.Background(), network("udp", addr), addr.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close() // what stays is another descriptor of the socket
	s := &socket{fd: -1, local: conn.LocalAddr().(*net.UDPAddr).AddrPort(), patience: waitTime}
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) { s.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(cerr, os.NewSyscallError("fcntl", err)); err != nil {
		return nil, err
	}
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		unix.Close(s.fd)
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	_ = unix.SetNonblock(s.epoll, true) // so that Go's poller takes it
	s.watch = os.NewFile(uintptr(s.epoll), "epoll")
	s.waiting, err = s.watch.SyscallConn()
	if err := errors.Join(err, s.watch.SetReadDeadline(time.Time{})); err != nil { // it did not
		s.close()
		return nil, err
	}
	return s, nil
}

// read calls receive, whose argument says nothing, until that is true: at once, and when there may be
// something to read. Its error is that of wake.
func (s *socket) read(receive func(uintptr) bool) error {
	if !s.watched {
		if receive(0) {
			return nil
		}
		event := unix.EpollEvent{Events: unix.EPOLLIN}
		if unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, s.fd, &event) != nil { // the kernel has no memory for it
			s.wait(unix.POLLIN)
			return nil
		}
		s.watched = true
	}
	return s.waiting.Read(receive)
}

// busy says that there is something to read, time and again, so that nobody need wait.
func (s *socket) busy() {
	if s.watched {
		s.watched = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, s.fd, nil) != nil
	}
}

// wait waits for events of poll(2), for s.patience at most, and tells whether there are some. It
// holds a thread.
func (s *socket) wait(events int16) bool {
	for end := time.Now().Add(s.patience); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: events}}, int(max(time.Until(end).Milliseconds(), 0)))
		if err != unix.EINTR {
			return n > 0
		}
	}
}

// wake ends a read that waits, and those to come.
func (s *socket) wake() { _ = s.watch.SetReadDeadline(time.Now()) } // fails only once it is closed

func (s *socket) close() {
	s.watch.Close()
	unix.Close(s.fd)
}
