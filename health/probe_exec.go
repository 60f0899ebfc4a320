package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxPrograms bounds the programs that exec probes run at once.
	maxPrograms = 8
	// maxOutput is what a program may write; more ends it.
	maxOutput = 64 << 10
)

var programRuns atomic.Uint64 // by this process

// probeExec runs a program of folder. It has the timeout of the probe to end, alone with
// whatever it starts, and an environment that says what to test.
func probeExec(ctx context.Context, folder string, t Target) Result {
	if folder == "" {
		return Result{Class: Local, Detail: "node.health.exec is not set: no program may run"}
	}
	e, start, run := t.Probe.Exec, time.Now(), strconv.FormatUint(programRuns.Add(1), 10)
	folder, err := filepath.Abs(folder) // the program starts there
	if err != nil {
		return Result{Class: Local, Detail: detail(err)}
	}
	adopt()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &bounded{over: cancel}
	c := exec.CommandContext(ctx, filepath.Join(folder, filepath.Base(e.Command)), e.Args...)
	c.Stdout, c.Stderr, c.Dir = out, out, folder
	c.Env = []string{
		"PATH=" + os.Getenv("PATH"), "MERIDIAN_POOL=" + t.ID.Pool, "MERIDIAN_ENDPOINT=" + t.ID.Addr.String(),
		"MERIDIAN_ADDRESS=" + t.Addr.Addr().String(), fmt.Sprintf("MERIDIAN_PORT=%d", t.Addr.Port()),
		"MERIDIAN_TIMEOUT=" + t.Probe.Timeout.String(), runEnv + run,
	}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 200 * time.Millisecond // for a child that kept the output open
	err = c.Run()
	if c.Process != nil {
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) // what it left behind
		bury(run, c.Process.Pid)
	}
	r := Result{Latency: time.Since(start), Detail: printable(strings.TrimSpace(out.text.String()), maxDetail)}
	var status *exec.ExitError
	switch {
	case out.full:
		r.Class, r.Detail = Protocol, fmt.Sprintf("output over %d octets", maxOutput)
	case ctx.Err() != nil:
		r.Class, r.Detail = Timeout, fmt.Sprintf("no end within %v", r.Latency.Round(time.Millisecond))
	case errors.As(err, &status):
		r.Class = WrongStatus
		if r.Detail == "" {
			r.Detail = status.Error()
		}
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		r.Class, r.Detail = Local, detail(err)
	default:
		r.Detail = ""
	}
	return r
}

// bounded keeps the first words that are written to it, and calls over after maxOutput.
type bounded struct {
	text strings.Builder
	n    int
	full bool
	over func()
}

func (b *bounded) Write(p []byte) (int, error) {
	if room := maxDetail - b.text.Len(); room > 0 {
		b.text.Write(p[:min(room, len(p))])
	}
	if b.n += len(p); b.n > maxOutput && !b.full {
		b.full = true
		b.over()
	}
	return len(p), nil
}
