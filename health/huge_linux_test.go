package health

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// The memory is had once, said to be for huge pages, and given back to Go's heap, which takes the
// next of there. The kernel gives the pages when they are first used.
func init() {
	hugePages = func(octets int) {
		b := make([]byte, octets)
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
		b = nil
		runtime.GC()
	}
}
