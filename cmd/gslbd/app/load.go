package app

import (
	"runtime"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/orca"
)

// loadPath is below which gRPC calls ask a service for its load (ORCA, out of band).
const loadPath = "/xds.service.orca.v3.OpenRcaService/"

// loadService returns what serves loadPath: the CPU utilization of the process, at once and
// then at most every 30 s.
func loadService() *grpc.Server {
	g := grpc.NewServer()
	if err := orca.Register(g, orca.ServiceOptions{ServerMetricsProvider: newUsage()}); err != nil {
		panic("app: " + err.Error()) // of options that are ours
	}
	return g
}

// minUsage is the least time that a utilization is the mean of.
const minUsage = time.Second

// usage measures the CPU utilization of this process between the questions for it: 1 is every
// CPU that it may use.
type usage struct {
	mu    sync.Mutex
	at    time.Time     // guarded by mu: of the last measurement
	cpu   time.Duration // guarded by mu: used until then
	share float64       // guarded by mu
}

func newUsage() *usage { return &usage{at: time.Now(), cpu: cpuTime()} }

// ServerMetrics returns the utilization since the question before.
func (u *usage) ServerMetrics() *orca.ServerMetrics {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := time.Now(); now.Sub(u.at) >= minUsage {
		cpu := cpuTime()
		u.share = float64(cpu-u.cpu) / float64(now.Sub(u.at)) / float64(runtime.GOMAXPROCS(0))
		u.at, u.cpu = now, cpu
	}
	return &orca.ServerMetrics{CPUUtilization: u.share, MemUtilization: -1, AppUtilization: -1, QPS: -1, EPS: -1}
}

// cpuTime is what this process has used of CPUs.
func cpuTime() time.Duration {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
