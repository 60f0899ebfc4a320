// Command floor is the least that a DNS server over the kernel's UDP can do: it reads and
// writes in batches as package dns does, looks at nothing, and answers every query with
// itself and one A record. What a server takes above it is its own.
package main

import (
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batch  = 64   // as package dns
	buffer = 4096 // octets
)

// record is an A record for the name of the question, to go behind everything else.
var record = [...]byte{0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 1}

type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

func main() {
	listen := flag.String("listen", "127.0.0.1:5302", "`address` and port")
	flag.Parse()
	fmt.Fprintln(os.Stderr, "floor:", serve(*listen))
	os.Exit(1)
}

func serve(listen string) error {
	addr, err := netip.ParseAddrPort(listen)
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) // what the kernel gives
	}); err != nil {
		return err
	}
	var in, out [batch]mmsghdr
	var iovIn, iovOut [batch]unix.Iovec
	var names [batch]unix.RawSockaddrInet6
	bufs := make([][buffer]byte, batch)
	for i := range batch {
		iovIn[i].Base, iovOut[i].Base = &bufs[i][0], &bufs[i][0]
		iovIn[i].SetLen(buffer - len(record))
		in[i].hdr.Name, in[i].hdr.Iov = (*byte)(unsafe.Pointer(&names[i])), &iovIn[i]
		out[i].hdr.Name, out[i].hdr.Iov = (*byte)(unsafe.Pointer(&names[i])), &iovOut[i]
		in[i].hdr.SetIovlen(1)
		out[i].hdr.SetIovlen(1)
		in[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	var n, sent, replies int
	var errno unix.Errno
	receive := func(fd uintptr) bool {
		for i := range n {
			in[i].hdr.Namelen = unix.SizeofSockaddrInet6
		}
		var r uintptr
		r, _, errno = unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&in[0])), batch, 0, 0, 0)
		if errno != 0 {
			n = 0
			return errno != unix.EAGAIN && errno != unix.EINTR
		}
		n = int(r)
		return true
	}
	send := func(fd uintptr) bool {
		for sent < replies {
			r, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&out[sent])), uintptr(replies-sent), 0, 0, 0)
			switch errno {
			case 0:
				sent += int(r)
			case unix.EAGAIN:
				return false
			case unix.EINTR:
			default:
				sent++ // this one cannot be sent
			}
		}
		return true
	}
	fmt.Println("floor ready on", conn.LocalAddr())
	for {
		if err := raw.Read(receive); err != nil {
			return err
		}
		sent, replies = 0, 0
		for i := range n {
			b := bufs[i][:]
			size := int(in[i].len)
			if size < 12 {
				continue
			}
			b[2] |= 0x84 // QR, AA
			b[11]++      // ARCOUNT: a record behind the others is an additional one
			size += copy(b[size:], record[:])
			iovOut[replies].Base = &b[0]
			iovOut[replies].SetLen(size)
			out[replies].hdr.Name, out[replies].hdr.Namelen = in[i].hdr.Name, in[i].hdr.Namelen
			replies++
		}
		if err := raw.Write(send); err != nil {
			return err
		}
	}
}
