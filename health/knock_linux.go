package health

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// knockTick is how often the knocker looks for knocks whose time is over, and so how late
// a time-out may come.
const knockTick = 20 * time.Millisecond

// knocker opens TCP connections only to see them open, or to ask one thing over HTTP and hear the
// reply, without a goroutine, a timer or an allocation for each. A socket connects, forgets the
// connection, and connects to the next, in three to five system calls; or it keeps the connection
// for whoever asked, and then one to write and one to read are all. All sockets wait in one epoll
// instance, which itself waits in the runtime's poller, so that no thread does.
type knocker struct {
	// set at construction
	file     *os.File
	epoll    int // the descriptor of file
	answers  chan<- answer
	maxSpare int       // lines of each family that wait for another knock: a quarter of what may be under way
	kept     *budgeted // room for connections that are kept

	mu      sync.Mutex
	next    uint64           // guarded by mu: a token for each line, since descriptors return
	lines   map[uint64]*line // guarded by mu, by token
	spare   map[int][]*line  // guarded by mu: the lines without a knock, by family
	under   []*knock         // guarded by mu: those under way, in no order
	ticking bool             // guarded by mu: run looks again within knockTick
	buf     [16 << 10]byte   // guarded by mu: what was read last
}

// line is a socket for one knock after another.
type line struct {
	fd     int // open as long as the line is in knocker.lines
	token  uint64
	family int // AF_INET or AF_INET6

	// guarded by knocker.mu
	knock    *knock // under way, or whose connection is kept; nil: spare
	starting int    // calls of start that may still use fd
	asked    int    // how often over this connection
	kept     bool   // it has its place in knocker.kept
}

// knock is what a knocker is asked to do, and does at most once at a time.
type knock struct {
	to   netip.AddrPort // set at construction; without a zone
	job  *job           // likewise: whose it is
	http *httpProbe     // likewise: what is asked once the connection is open; nil: nothing, and nothing is heard

	// guarded by knocker.mu
	line  *line     // nil: none is under way, and no connection is kept
	at    int       // one more than its place in knocker.under; 0: none is under way
	start time.Time // of the last
	until time.Time // zero: it was given up
	said  int       // octets of what is asked
	told  bool      // an answer was given, and whoever has it says what is next: forget

	reply *reply // guarded by knocker.mu, and whoever has the answer's while told; nil: nothing came
}

// newKnock returns how to knock at addr for j, and to make h if it is not nil, or nil if a knocker
// cannot.
func newKnock(addr netip.AddrPort, h *httpProbe, j *job) *knock {
	if addr.Addr().Zone() != "" {
		return nil
	}
	return &knock{to: addr, http: h, job: j}
}

// socket returns what a line to c's address is made and connected with.
func (c *knock) socket() (family int, to unix.Sockaddr) {
	if a := c.to.Addr(); a.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(c.to.Port()), Addr: a.As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(c.to.Port()), Addr: c.to.Addr().As16()}
}

// newKnocker returns a knocker that works as long as run does. It says on answers what came of
// each knock, and needs room there for all that are under way.
func newKnocker(answers chan<- answer, kept *budgeted) (*knocker, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // by which os lets the poller have it
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &knocker{file: os.NewFile(uintptr(fd), "epoll"), epoll: fd, answers: answers, maxSpare: max(1, cap(answers)/4), kept: kept,
		lines: make(map[uint64]*line), spare: make(map[int][]*line)}, nil
}

// run answers knocks until close; what is then under way has no answer.
func (k *knocker) run() {
	raw, err := k.file.SyscallConn()
	for err == nil {
		if err = raw.Read(k.listen); errors.Is(err, os.ErrDeadlineExceeded) {
			err = k.tick()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.lines {
		if l.starting == 0 {
			k.dropLocked(l)
		}
	}
	k.lines = nil
}

// close ends run. What is started later has no answer.
func (k *knocker) close() { _ = k.file.Close() }

// start begins c, of which nothing is under way: over the connection that is kept for it, or else
// a new one. It answers by limit and a knockTick at the latest.
func (k *knocker) start(c *knock, limit time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lines == nil { // run is over
		return
	}
	now := time.Now()
	c.start, c.until, c.said, c.told = now, now.Add(limit), 0, false
	k.under = append(k.under, c)
	c.at = len(k.under)
	if !k.ticking {
		_ = k.tickLocked(now)
	}
	if c.line != nil {
		c.line.asked++
		k.askLocked(c, now)
		return
	}
	family, to := c.socket()
	l, err := k.lineLocked(family)
	if err != nil {
		k.answerLocked(c, now, err)
		return
	}
	l.knock, c.line = c, l
	l.starting++
	k.mu.Unlock()
	if c.http != nil { // the request is soon to say what the last packet of the handshake would (tcp(7))
		_ = unix.SetsockoptInt(l.fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	}
	err = unix.Connect(l.fd, to)
	k.mu.Lock()
	l.starting--
	switch {
	case k.lines == nil:
		k.dropLocked(l)
	case err != nil && err != unix.EINPROGRESS && l.knock == c:
		k.answerLocked(c, time.Now(), err)
	}
}

// giveUp lets c, if it is under way, be answered soon.
func (k *knocker) giveUp(c *knock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c.at != 0 {
		c.until = time.Time{}
		_ = k.file.SetReadDeadline(time.Unix(1, 0))
	}
}

// release lets go of the connection that is kept for c, if any. Nothing of c is under way.
func (k *knocker) release(c *knock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lines != nil && c.line != nil {
		k.freeLocked(c.line, true)
	}
}

// lineLocked returns a line that is spare, or a new one.
func (k *knocker) lineLocked(family int) (*line, error) {
	if spare := k.spare[family]; len(spare) > 0 {
		l := spare[len(spare)-1]
		k.spare[family] = spare[:len(spare)-1]
		return l, nil
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, err
	}
	k.next++
	l := &line{fd: fd, token: k.next, family: family}
	event := unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(uint32(l.token)), Pad: int32(uint32(l.token >> 32))}
	if err := unix.EpollCtl(k.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	k.lines[l.token] = l
	return l, nil
}

// listen takes what there is to hear of all lines. It returns false when there is no more, to be
// called again once there is.
func (k *knocker) listen(uintptr) (done bool) {
	var events [128]unix.EpollEvent
	for {
		n, err := unix.EpollWait(k.epoll, events[:], 0)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			return err != nil
		}
		now := time.Now()
		k.mu.Lock()
		for _, e := range events[:n] {
			l := k.lines[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]
			if l != nil && l.knock != nil {
				k.hearLocked(l, e.Events, now)
			}
		}
		k.mu.Unlock()
	}
}

// hearLocked takes what epoll says of a line that is not spare.
func (k *knocker) hearLocked(l *line, events uint32, now time.Time) {
	c := l.knock
	failed := events&(unix.EPOLLERR|unix.EPOLLHUP) != 0
	switch {
	case c.told: // forget looks for itself
	case c.at == 0: // nobody was asked
		if !silent(l.fd) {
			k.dropLocked(l)
		}
	case l.asked > 0:
		if events&unix.EPOLLOUT != 0 && c.said < len(c.http.wire) {
			k.askLocked(c, now)
		}
		if c.at != 0 && events&^unix.EPOLLOUT != 0 {
			k.readLocked(c, now)
		}
	case failed:
		switch errno, err := unix.GetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_ERROR); {
		case err != nil:
			k.answerLocked(c, now, err)
		case errno != 0:
			k.answerLocked(c, now, syscall.Errno(errno))
		} // else the line was not connected when epoll looked at it, and now it is about to be
	case c.http == nil:
		k.answerLocked(c, now, nil)
	case events&unix.EPOLLOUT != 0:
		l.asked = 1
		k.askLocked(c, now)
		if c.at != 0 && events&unix.EPOLLIN != 0 { // it speaks first
			k.readLocked(c, now)
		}
	}
}

// askLocked says what is yet to be said of c's request, as far as there is room.
func (k *knocker) askLocked(c *knock, now time.Time) {
	for c.said < len(c.http.wire) {
		switch n, err := unix.Write(c.line.fd, c.http.wire[c.said:]); err {
		case nil:
			c.said += n
		case unix.EINTR:
		case unix.EAGAIN: // epoll says when there is room
			return
		default:
			k.failLocked(c, now, err)
			return
		}
	}
}

// readLocked takes in what there is of the reply to c, and says so if it is enough.
func (k *knocker) readLocked(c *knock, now time.Time) {
	if c.reply == nil {
		c.reply = borrowReply(c.http)
	}
	for done := false; !done; {
		n, err := unix.Read(c.line.fd, k.buf[:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN: // epoll says when there is more
			return
		case err == nil && n > 0:
			done, err = k.feed(c.reply, k.buf[:n])
		case err == nil:
			done, err = true, c.reply.end(io.EOF)
		}
		if err != nil {
			k.failLocked(c, now, err)
			return
		}
	}
	c.told = true
	k.answers <- answer{job: c.job, start: c.start, took: now.Sub(c.start)}
}

// feed is reply's, of which a panic is an error.
func (k *knocker) feed(r *reply, b []byte) (done bool, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicked{v, debug.Stack()}
		}
	}()
	return r.feed(b)
}

// failLocked says that c's connection failed, or had ended before c began.
func (k *knocker) failLocked(c *knock, now time.Time, err error) {
	if c.line.asked > 1 && (c.reply == nil || c.reply.untouched()) && classify(err, Protocol) == Reset {
		err = errEnded
	}
	k.answerLocked(c, now, err)
}

// forget ends c, whose reply was judged. With keep its connection is kept for the next time, if
// the server wants it too and there is room. It reports whether c was given up meanwhile.
func (k *knocker) forget(c *knock, keep bool) (over bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lines == nil { // run is over
		return c.until.IsZero()
	}
	l := c.line
	keep = keep && c.reply.goesOn() && l.asked < c.http.conf.Reuse && silent(l.fd)
	k.endLocked(c)
	if keep && (l.kept || k.kept.take()) {
		l.kept = true
	} else {
		k.freeLocked(l, true)
	}
	return c.until.IsZero()
}

// tick answers the knocks whose time is over.
func (k *knocker) tick() error {
	k.listen(0) // what came in time counts, however late it is looked at
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	for i := len(k.under) - 1; i >= 0; i-- { // from the end, since who ends gives its place to the last
		switch c := k.under[i]; {
		case c.line.starting > 0 || c.told || now.Before(c.until):
		case c.until.IsZero():
			k.answerLocked(c, now, context.Canceled)
		default:
			k.answerLocked(c, now, context.DeadlineExceeded)
		}
	}
	if k.ticking = len(k.under) > 0; !k.ticking {
		return k.file.SetReadDeadline(time.Time{})
	}
	return k.tickLocked(now)
}

// tickLocked lets run look at the time knockTick after now.
func (k *knocker) tickLocked(now time.Time) error {
	k.ticking = true
	return k.file.SetReadDeadline(now.Add(knockTick))
}

// answerLocked says what came of c in the end, and lets its line, if it has one, forget it.
func (k *knocker) answerLocked(c *knock, now time.Time, err error) {
	k.answers <- answer{job: c.job, start: c.start, took: now.Sub(c.start), err: err}
	k.endLocked(c)
	if c.line != nil {
		k.freeLocked(c.line, err == nil)
	}
}

// endLocked makes c one that is not under way.
func (k *knocker) endLocked(c *knock) {
	if c.reply != nil {
		giveBack(c.reply)
		c.reply = nil
	}
	last := len(k.under) - 1
	k.under[c.at-1] = k.under[last]
	k.under[c.at-1].at = c.at
	k.under[last] = nil
	k.under = k.under[:last]
	c.told, c.at = false, 0
}

// freeLocked lets l forget its knock, none of which is under way; it is for another one if it is well.
func (k *knocker) freeLocked(l *line, well bool) {
	if !well || len(k.spare[l.family]) >= k.maxSpare || disconnect(l.fd) != nil {
		k.dropLocked(l)
		return
	}
	k.clearLocked(l)
	k.spare[l.family] = append(k.spare[l.family], l)
}

// dropLocked closes l.
func (k *knocker) dropLocked(l *line) {
	k.clearLocked(l)
	delete(k.lines, l.token)
	_ = disconnect(l.fd)
	_ = unix.Close(l.fd)
}

// clearLocked makes l one without a knock or a connection.
func (k *knocker) clearLocked(l *line) {
	if l.kept {
		k.kept.give()
	}
	if l.knock != nil {
		l.knock.line = nil
	}
	l.knock, l.asked, l.kept = nil, 0, false
}

// silent reports whether the connection of a socket goes on, and there is nothing to hear.
func silent(fd int) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
	n, err := unix.Poll(fds[:], 0)
	return n == 0 && err == nil
}

// disconnect ends the connection of a socket with a reset, since nothing was said and neither
// side need remember it, and makes the socket as good as new (connect(2)).
func disconnect(fd int) error {
	to := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to)); errno != 0 {
		return errno
	}
	_, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) // takes the error that the reset leaves
	return err
}
