package health

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// knockTick is how often the knocker looks for knocks whose time is over, and so how late
	// a time-out may come.
	knockTick = 20 * time.Millisecond
	// maxSpareLines is how many sockets of each family wait for another knock. At 10,000 knocks
	// a second of 5 ms each 50 are under way, and more after a pause of the scheduler's.
	maxSpareLines = 256
	// maxHeard is how much of an answer a knock hears, and in how many parts: for all but a few
	// probes one part of some hundred octets is the whole.
	maxHeard      = 4 << 10
	maxHeardParts = 4
)

// knocker opens TCP connections only to see them open, or to ask one thing and hear the answer,
// with three to five system calls and without a goroutine, a timer or an allocation for each: a
// socket connects, forgets the connection, and connects to the next. All sockets wait in one epoll instance, which itself waits in the
// runtime's poller, so that no thread does.
type knocker struct {
	// set at construction
	file    *os.File
	epoll   int // the descriptor of file
	answers chan<- answer

	mu      sync.Mutex
	next    uint64           // guarded by mu: a token for each line, since descriptors return
	lines   map[uint64]*line // guarded by mu, by token
	spare   map[int][]*line  // guarded by mu: the lines without a knock, by family
	ticking bool             // guarded by mu: run looks again within knockTick
}

// line is a socket for one knock after another.
type line struct {
	fd     int // open as long as the line is in knocker.lines
	token  uint64
	family int // AF_INET or AF_INET6

	// guarded by knocker.mu
	knock    *knock // under way; nil: spare
	starting int    // calls of start that may still use fd
}

// knock is what a knocker is asked to do, and does at most once at a time.
type knock struct {
	to  netip.AddrPort // set at construction; without a zone
	job *job           // likewise: whose it is
	ask []byte         // likewise: what is said once the connection is open; nil: nothing, and nothing is heard

	// guarded by knocker.mu
	line  *line     // nil: none is under way
	start time.Time // of the last
	until time.Time // zero: it was given up
	asked bool
	told  bool // an answer was given, and whoever has it says what is next: hear or forget

	// guarded by knocker.mu, and whoever has the answer's while told
	heard *[maxHeard]byte // nil: nothing
	n     int             // octets of heard
	parts int             // in which they came
	end   error           // what followed them; nil: more may
}

// newKnock returns how to knock at addr for j, and say ask, or nil if a knocker cannot.
func newKnock(addr netip.AddrPort, ask []byte, j *job) *knock {
	if addr.Addr().Zone() != "" {
		return nil
	}
	return &knock{to: addr, ask: ask, job: j}
}

// text is what c heard, and what followed it.
func (c *knock) text() ([]byte, error) {
	if c.heard == nil {
		return nil, c.end
	}
	return c.heard[:c.n], c.end
}

var heards = sync.Pool{New: func() any { return new([maxHeard]byte) }}

// socket returns what a line to c's address is made and connected with.
func (c *knock) socket() (family int, to unix.Sockaddr) {
	if a := c.to.Addr(); a.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(c.to.Port()), Addr: a.As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(c.to.Port()), Addr: c.to.Addr().As16()}
}

// newKnocker returns a knocker that works as long as run does. It says on answers what came of
// each knock, and needs room there for all that are under way.
func newKnocker(answers chan<- answer) (*knocker, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // by which os lets the poller have it
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &knocker{file: os.NewFile(uintptr(fd), "epoll"), epoll: fd, answers: answers,
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
		if l.knock = nil; l.starting == 0 {
			k.dropLocked(l)
		}
	}
	k.lines = nil
}

// close ends run. What is started later has no answer.
func (k *knocker) close() { _ = k.file.Close() }

// start begins c, of which nothing is under way. It answers by limit and a knockTick at the latest.
func (k *knocker) start(c *knock, limit time.Duration) {
	family, to := c.socket()
	k.mu.Lock()
	if k.lines == nil { // run is over
		k.mu.Unlock()
		return
	}
	c.asked, c.told, c.n, c.parts, c.end = false, false, 0, 0, nil
	c.start = time.Now()
	c.until = c.start.Add(limit)
	l, err := k.lineLocked(family)
	if err != nil {
		k.answerLocked(c, c.start, err)
		k.mu.Unlock()
		return
	}
	l.knock, c.line = c, l
	l.starting++
	if !k.ticking {
		_ = k.tickLocked(c.start)
	}
	k.mu.Unlock()
	err = unix.Connect(l.fd, to)
	k.mu.Lock()
	defer k.mu.Unlock()
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
	if c.line != nil {
		c.until = time.Time{}
		_ = k.file.SetReadDeadline(time.Unix(1, 0))
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

// listen answers the knocks whose connection is open or refused. It returns false when there
// are no more, to be called again once there are.
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

// hearLocked takes what epoll says of a line whose knock is under way.
func (k *knocker) hearLocked(l *line, events uint32, now time.Time) {
	c := l.knock
	switch {
	case c.told: // hear looks for itself
		return
	case c.asked:
		k.readLocked(c, now)
		return
	case events&(unix.EPOLLERR|unix.EPOLLHUP) == 0 && c.ask == nil:
		k.answerLocked(c, now, nil)
		return
	case events&(unix.EPOLLERR|unix.EPOLLHUP) == 0 && events&unix.EPOLLOUT != 0:
		c.asked = true
		if n, err := unix.Write(l.fd, c.ask); err != nil {
			k.answerLocked(c, now, err)
		} else if n < len(c.ask) {
			k.answerLocked(c, now, errLong)
		} else if events&unix.EPOLLIN != 0 { // it speaks first
			k.readLocked(c, now)
		}
		return
	case events&(unix.EPOLLERR|unix.EPOLLHUP) == 0:
		return
	}
	switch errno, err := unix.GetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_ERROR); {
	case err != nil:
		k.answerLocked(l.knock, now, err)
	case errno != 0:
		k.answerLocked(l.knock, now, syscall.Errno(errno))
	} // else the line was not connected when epoll looked at it, and now it is about to be
}

// readLocked tells what there is to hear for c, if anything.
func (k *knocker) readLocked(c *knock, now time.Time) {
	if c.heard == nil {
		c.heard = heards.Get().(*[maxHeard]byte)
	}
	n, err := unix.Read(c.line.fd, c.heard[c.n:])
	for err == unix.EINTR {
		n, err = unix.Read(c.line.fd, c.heard[c.n:])
	}
	switch {
	case err == unix.EAGAIN: // epoll says when there is
		return
	case err != nil:
		c.end = err
	case n == 0:
		c.end = io.EOF
	default:
		c.n += n
	}
	c.told = true
	c.parts++
	k.answers <- answer{job: c.job, start: c.start, took: now.Sub(c.start)}
}

// hear says that what c heard is not the whole: it is told more, or errLong.
func (k *knocker) hear(c *knock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lines == nil { // run is over
		return
	}
	c.told = false
	switch now := time.Now(); {
	case c.until.IsZero():
		k.answerLocked(c, now, context.Canceled)
	case c.parts >= maxHeardParts || c.n == maxHeard:
		k.answerLocked(c, now, errLong)
	default:
		k.readLocked(c, now)
	}
}

// forget says that what c heard is enough. It reports whether c was given up meanwhile.
func (k *knocker) forget(c *knock) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lines != nil {
		k.releaseLocked(c, c.end == nil || c.end == io.EOF)
	}
	return c.until.IsZero()
}

// tick answers the knocks whose time is over.
func (k *knocker) tick() error {
	k.listen(0) // what came in time counts, however late it is looked at
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	k.ticking = false
	for _, l := range k.lines {
		switch c := l.knock; {
		case c == nil:
		case l.starting > 0 || c.told || now.Before(c.until):
			k.ticking = true
		case c.until.IsZero():
			k.answerLocked(c, now, context.Canceled)
		default:
			k.answerLocked(c, now, context.DeadlineExceeded)
		}
	}
	if !k.ticking {
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
	k.releaseLocked(c, err == nil)
}

// releaseLocked lets c's line, if it has one, forget it; it is for another knock if it is well.
func (k *knocker) releaseLocked(c *knock, well bool) {
	if c.heard != nil {
		heards.Put(c.heard)
		c.heard = nil
	}
	l := c.line
	if l == nil {
		return
	}
	l.knock, c.line = nil, nil
	if well && len(k.spare[l.family]) < maxSpareLines && disconnect(l.fd) == nil {
		k.spare[l.family] = append(k.spare[l.family], l)
		return
	}
	k.dropLocked(l)
}

// dropLocked closes l.
func (k *knocker) dropLocked(l *line) {
	delete(k.lines, l.token)
	_ = disconnect(l.fd)
	_ = unix.Close(l.fd)
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
