// Command floor is the least that a DNS server over the kernel's UDP can do: it reads and
// writes in batches as package dns does, waits in the kernel, looks at nothing, and answers every
// query with itself and one A record. What a server takes above it is its own.
package main

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batch  = 32   // as package dns,
	buffer = 4288 // and its slots, in octets
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
	if !addr.Addr().Is4() {
		return fmt.Errorf("%v: expected an IPv4 address", addr)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)                   // what the kernel gives
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE) // as package dns
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
		return os.NewSyscallError("bind", err)
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
	fmt.Println("floor ready on", addr)
	for {
		for i := range in {
			in[i].hdr.Namelen = unix.SizeofSockaddrInet6
		}
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&in[0])), batch, unix.MSG_WAITFORONE, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return os.NewSyscallError("recvmmsg", errno)
		}
		replies := 0
		for i := range int(n) {
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
		for sent := 0; sent < replies; {
			n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&out[sent])), uintptr(replies-sent), 0, 0, 0)
			switch errno {
			case 0:
				sent += int(n)
			case unix.EINTR:
			default:
				sent++ // this one cannot be sent
			}
		}
	}
}
