package dns

import (
	"context"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meridian-gslb/meridian/gslb"
)

const (
	// batch is the number of packets that one system call reads or writes. Beyond 32 the
	// call's own cost no longer shows, and the packets crowd each other out of the core's caches.
	batch = 32

	// maxUDPBuffer is the longest packet that is read or written, in octets. No query comes
	// near it.
	maxUDPBuffer = 4096

	// drainTime bounds how long a worker goes on answering what its socket has received when
	// it stops: under a flood there is no end to it.
	drainTime = time.Second

	// slotLen is the room that a packet has. As a multiple of 4 KiB it would have every packet
	// of a batch begin in the same few sets of the first-level cache, which then evict each other.
	slotLen = maxUDPBuffer + 3*64

	// controlLen has room for one in6_pktinfo or in_pktinfo.
	controlLen = 64
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// udpWorker answers the queries of one socket, of which its address has as many as workers.
// Queries come in and replies go out in batches; each query is parsed where the kernel put it,
// and its reply is written where the kernel takes it from.
type udpWorker struct {
	addr    netip.AddrPort
	socket  *socket
	data    *atomic.Pointer[Data]
	a       *answerer
	pktinfo bool // the socket is bound to a wildcard: replies name the address they leave from

	// Set up once for the kernel; in[i], out[i] and the arrays below are of one slot.
	in, out []mmsghdr
	iovIn   []unix.Iovec
	iovOut  []unix.Iovec
	names   []unix.RawSockaddrInet6 // also holds the shorter unix.RawSockaddrInet4
	control [][controlLen]byte
	bufIn   [][slotLen]byte
	bufOut  [][slotLen]byte

	// Of the batch that is being worked on.
	n       int // packets read
	replies int // to them, in out
	sent    int // of the replies, or given up
	errno   syscall.Errno

	steered bool // most queries of the batch before were answered by a decision

	receive func(uintptr) bool // recvmmsg, made once: a method value would be allocated at every call

	_ [cacheLine]byte
}

func newUDPWorker(addr netip.AddrPort, data *atomic.Pointer[Data], a *answerer, receiveBuffer int) (*udpWorker, error) {
	w := &udpWorker{addr: addr, data: data, a: a, pktinfo: addr.Addr().IsUnspecified()}
	socket, err := listenSocket(addr, func(fd int) error { return w.options(fd, receiveBuffer) })
	if err != nil {
		return nil, err
	}
	w.socket, a.local = socket, addr
	w.in, w.out = make([]mmsghdr, batch), make([]mmsghdr, batch)
	w.iovIn, w.iovOut = make([]unix.Iovec, batch), make([]unix.Iovec, batch)
	w.names = make([]unix.RawSockaddrInet6, batch)
	w.control = make([][controlLen]byte, batch)
	w.bufIn, w.bufOut = make([][slotLen]byte, batch), make([][slotLen]byte, batch)
	for i := range batch {
		w.iovIn[i].Base = &w.bufIn[i][0]
		w.iovIn[i].SetLen(maxUDPBuffer)
		h := &w.in[i].hdr
		h.Name, h.Iov = (*byte)(unsafe.Pointer(&w.names[i])), &w.iovIn[i]
		h.SetIovlen(1)
		if w.pktinfo {
			h.Control = &w.control[i][0]
		}
		h = &w.out[i].hdr
		h.Iov = &w.iovOut[i]
		h.SetIovlen(1)
	}
	w.rearm(batch)
	w.receive = w.recvmmsg
	return w, nil
}

// options sets the socket's options before it is bound.
func (w *udpWorker) options(fd, receiveBuffer int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
	}
	// A larger queue is welcome, not needed: the kernel gives what net.core.rmem_max allows to
	// those who may not force it.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	level, pktinfo, discover := unix.IPPROTO_IP, unix.IP_PKTINFO, unix.IP_MTU_DISCOVER
	probe, omit := unix.IP_PMTUDISC_PROBE, unix.IP_PMTUDISC_OMIT
	if !w.addr.Addr().Is4() {
		level, pktinfo, discover = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, unix.IPV6_MTU_DISCOVER
		probe, omit = unix.IPV6_PMTUDISC_PROBE, unix.IPV6_PMTUDISC_OMIT
	}
	// A forged "fragmentation needed" must not have our packets fragmented, so the path MTU is
	// not believed. What fits every path goes with DF (RFC 9715, section 3.1), which also spares
	// the kernel an identification for each packet; what was allowed to be longer may be
	// fragmented on its way out. A kernel without the option serves as well.
	if w.a.maxUDP > DefaultMaxUDP {
		probe = omit
	}
	_ = unix.SetsockoptInt(fd, level, discover, probe)
	if w.pktinfo {
		if err := unix.SetsockoptInt(fd, level, pktinfo, 1); err != nil {
			return os.NewSyscallError("setsockopt PKTINFO", err)
		}
	}
	return nil
}

// run answers until stop is called, and then what the socket has received by then.
func (w *udpWorker) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := w.socket.read(w.receive); err != nil {
			if ctx.Err() != nil {
				break
			}
			return err
		}
		if err := w.failed(); err != nil {
			return err
		}
		if w.n == batch {
			w.socket.busy()
		}
		w.answer()
	}
	for end := time.Now().Add(drainTime); time.Now().Before(end) && w.recvmmsg(0) && w.n > 0; {
		w.answer()
	}
	w.a.tally.publish()
	return nil
}

// stop makes run end, once its context has.
func (w *udpWorker) stop() { w.socket.wake() }

func (w *udpWorker) close() { w.socket.close() }

// failed returns the error of a read that nothing can be done about. A socket reports errors
// of packets that it sent earlier (an unreachable port, say) on its next read: no reason to stop.
func (w *udpWorker) failed() error {
	switch w.errno {
	case unix.EBADF, unix.EFAULT, unix.EINVAL, unix.ENOTSOCK, unix.ENOSYS:
		return os.NewSyscallError("recvmmsg", w.errno)
	}
	return nil
}

// recvmmsg reads a batch; it is false when there is nothing to read yet.
func (w *udpWorker) recvmmsg(uintptr) bool {
	w.rearm(w.n)
	for {
		// The call never blocks, so that the scheduler need not hear of it.
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(w.socket.fd), uintptr(unsafe.Pointer(&w.in[0])), batch, 0, 0, 0)
		switch errno {
		case 0:
			w.n, w.errno = int(n), 0
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			w.n, w.errno = 0, 0
			w.a.tally.publish()
			return false
		default:
			w.n, w.errno = 0, errno
			return true
		}
	}
}

// rearm gives back the room in the first n slots that the kernel took for addresses.
func (w *udpWorker) rearm(n int) {
	for i := range w.in[:n] {
		w.in[i].hdr.Namelen = unix.SizeofSockaddrInet6
		if w.pktinfo {
			w.in[i].hdr.SetControllen(controlLen)
		}
	}
}

// answer answers the batch that was read, out of one Data.
func (w *udpWorker) answer() {
	data := w.data.Load()
	w.a.begin(time.Now())
	w.a.counters.queries.Add(uint64(w.n))
	w.replies, w.sent = 0, 0
	if last := w.a.d.Service; w.steered && last != nil && w.n > 1 {
		w.foresee(last)
	}
	made := w.a.made
	for i := range w.n {
		in := &w.in[i]
		if in.hdr.Flags&unix.MSG_TRUNC != 0 { // longer than any query
			w.a.counters.dropped.Add(1)
			continue
		}
		w.a.port = be16((*[2]byte)(unsafe.Pointer(&w.names[i].Port))[:]) // at the same place in both families
		reply := w.a.serve(data, w.bufIn[i][:in.len], w.client(i), false, w.bufOut[w.replies][:maxUDPBuffer])
		if len(reply) == 0 {
			continue
		}
		w.iovOut[w.replies].Base = &reply[0]
		w.iovOut[w.replies].SetLen(len(reply))
		out := &w.out[w.replies].hdr
		out.Name, out.Namelen = in.hdr.Name, in.hdr.Namelen
		if w.pktinfo {
			w.replyFrom(in, out)
		}
		w.replies++
	}
	w.steered = 2*int(w.a.made-made) > w.n
	if w.n < batch || w.a.tally.n >= publishAfter { // before they go: who has a reply finds it counted
		w.a.tally.publish()
	}
	w.sendmmsg()
}

// foresee reads for each packet what a decision reads of the map, by the client that the packet
// seems to have and a service that it may well ask for. A decision waits for memory there; these
// lookups depend on nothing before them, so that a core waits for several at a time, and the
// decisions find what they need in its cache. A wrong guess costs the lookup and changes nothing.
func (w *udpWorker) foresee(service *gslb.Service) {
	for i := range w.n {
		client, ok := lastOptionECS(w.bufIn[i][:w.in[i].len])
		if !ok {
			client = w.client(i)
		}
		service.Touch(client)
	}
}

// client returns the address that packet i of the batch came from.
func (w *udpWorker) client(i int) netip.Addr {
	if w.names[i].Family == unix.AF_INET {
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&w.names[i])).Addr)
	}
	return netip.AddrFrom16(w.names[i].Addr).Unmap()
}

// replyFrom has the reply leave from the address that the query went to: the control message
// of the query, with its interface only where the address means nothing without.
func (w *udpWorker) replyFrom(in *mmsghdr, out *unix.Msghdr) {
	out.Control, out.Controllen = in.hdr.Control, in.hdr.Controllen
	if out.Controllen < unix.SizeofCmsghdr {
		out.Control, out.Controllen = nil, 0
		return
	}
	c := (*unix.Cmsghdr)(unsafe.Pointer(in.hdr.Control))
	data := unsafe.Add(unsafe.Pointer(c), unix.CmsgLen(0))
	switch {
	case c.Level == unix.IPPROTO_IP && c.Type == unix.IP_PKTINFO:
		info := (*unix.Inet4Pktinfo)(data)
		info.Ifindex = 0
		info.Spec_dst = info.Addr
	case c.Level == unix.IPPROTO_IPV6 && c.Type == unix.IPV6_PKTINFO:
		info := (*unix.Inet6Pktinfo)(data)
		if !netip.AddrFrom16(info.Addr).IsLinkLocalUnicast() {
			info.Ifindex = 0
		}
	default:
		out.Control, out.Controllen = nil, 0
	}
}

// sendmmsg writes the replies. One that the kernel refuses is counted and left out, and so is the
// rest of a batch when the socket has had no room for a while.
func (w *udpWorker) sendmmsg() {
	for w.sent < w.replies {
		rest := w.replies - w.sent
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(w.socket.fd), uintptr(unsafe.Pointer(&w.out[w.sent])), uintptr(rest), 0, 0, 0)
		switch errno {
		case 0:
			w.sent += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			if !w.socket.wait(unix.POLLOUT) {
				w.a.counters.unsent.Add(uint64(rest))
				return
			}
		default: // of the first message: ENOBUFS, EPERM of a packet filter, no route …
			w.a.counters.unsent.Add(1)
			w.sent++
		}
	}
}
