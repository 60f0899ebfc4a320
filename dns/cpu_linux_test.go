package dns

import (
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime starts a measurement of the CPU time of who, as in getrusage(2).
func cpuTime(who int) (since func() time.Duration) {
	now := func() time.Duration {
		var u unix.Rusage
		if unix.Getrusage(who, &u) != nil {
			return 0
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := now()
	return func() time.Duration { return now() - start }
}
