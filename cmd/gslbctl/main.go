// Command gslbctl is the operator's command: it asks a running node through its admin API,
// and changes what it serves.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/meridian-gslb/meridian/cmd/gslbctl/ctl"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := ctl.RunContext(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
