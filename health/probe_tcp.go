package health

import (
	"context"
	"time"
)

// probeTCP expects t to accept a connection within its timeout, and closes it.
func probeTCP(ctx context.Context, t Target) Result {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(t.Probe.Timeout))
	defer cancel()
	start := time.Now()
	c, err := connect(ctx, t)
	if err != nil {
		return failure(start, err, Protocol)
	}
	latency := time.Since(start)
	_ = c.Close()
	return Result{Latency: latency}
}
