package dns

import (
	"encoding/binary"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Listed clients (Limits.Allow) have a queue of their own: a flood that fills the sockets of the
// workers leaves theirs alone. The kernel chooses the socket by a classic BPF program over the
// packet's source (SO_ATTACH_REUSEPORT_CBPF, socket(7)), which allocates nothing and needs no
// privilege.

const ownQueue = true

// maxChoice is how many instructions the kernel takes (BPF_MAXINSNS).
const maxChoice = 4096

// Where the headers are, as the kernel counts in a filter: SKF_NET_OFF and the place in the header.
const (
	networkHeader = 0xfff00000
	source4       = networkHeader + 12
	source6       = networkHeader + 8
)

// chooseQueue has the sockets that share w's address take what clients send: the first workers of
// them from anybody, the one after them from those in listed.
func (w *udpWorker) chooseQueue(workers int, listed []netip.Prefix) error {
	program, err := bpf.Assemble(choice(workers, w.addr.Addr().Is4(), listed))
	if err != nil {
		return err
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	return os.NewSyscallError("setsockopt SO_ATTACH_REUSEPORT_CBPF", unix.SetsockoptSockFprog(w.socket.fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &filter))
}

// choice is the program: it returns workers for a source that is listed, else a number below that
// by a hash of the source's address and port, as the kernel would by itself. Prefixes that the
// kernel has no room for share the workers.
func choice(workers int, v4 bool, listed []netip.Prefix) []bpf.Instruction {
	ports, source := uint32(networkHeader+20), uint32(source4)
	if !v4 {
		ports, source = networkHeader+40, source6+12
	}
	hash := []bpf.Instruction{
		bpf.LoadAbsolute{Off: ports, Size: 4},
		bpf.TAX{},
		bpf.LoadAbsolute{Off: source, Size: 4},
		bpf.ALUOpX{Op: bpf.ALUOpXor},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 2654435761}, // Knuth, The Art of Computer Programming, volume 3, section 6.4
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
		bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(workers)},
		bpf.RetA{},
	}
	var out []bpf.Instruction
	for _, p := range listed {
		if p.Addr().Is4() != v4 {
			continue
		}
		one := append(within(p), bpf.RetConstant{Val: uint32(workers)})
		if len(out)+len(one)+len(hash) > maxChoice {
			break
		}
		out = append(out, one...)
	}
	return append(out, hash...)
}

// within goes on where a source in p leads, and skips one instruction more for any other.
func within(p netip.Prefix) (out []bpf.Instruction) {
	const step = 3 // instructions for each 32 bits
	addr, at := p.Masked().Addr().AsSlice(), uint32(source4)
	if len(addr) == 16 {
		at = source6
	}
	words := (p.Bits() + 31) / 32
	for i := range words {
		mask := ^uint32(0)
		if rest := p.Bits() - 32*i; rest < 32 {
			mask <<= 32 - rest
		}
		out = append(out,
			bpf.LoadAbsolute{Off: at + uint32(4*i), Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(addr[4*i:]), SkipFalse: uint8(step*(words-1-i) + 1)},
		)
	}
	return out
}
