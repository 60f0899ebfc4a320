package dns

import (
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime starts a measurement of the process's CPU time.
func cpuTime() (since func() time.Duration) {
	now := func() time.Duration {
		var u unix.Rusage
		if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
			return 0
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := now()
	return func() time.Duration { return now() - start }
}
