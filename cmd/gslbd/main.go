// Command gslbd is Meridian's daemon: an authoritative DNS server that steers users.
//
//	gslbd -config FILE           run one node
//	gslbd check -config FILE     report every fault of a configuration; exit 1 if there is one
//	gslbd demo                   three regions on loopback, in one process
//	gslbd app ROLE               one of the demo's services: frontend, backend, database
//	gslbd version
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/cmd/gslbd/app"
	"github.com/meridian-gslb/meridian/cmd/gslbd/demo"
	"github.com/meridian-gslb/meridian/cmd/gslbd/node"
)

const usage = `gslbd is Meridian's daemon: an authoritative DNS server that steers users.

  gslbd -config FILE           run one node
  gslbd check -config FILE     report every fault of a configuration; exit 1 if there is one
  gslbd demo                   three regions on loopback, in one process
  gslbd app ROLE               one of the demo's services: frontend, backend, database
  gslbd version

Flags of a node:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its surroundings as arguments; it returns the exit code: 0, 1 for a
// fault, 2 for words that it does not understand.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		switch args[0] {
		case "demo":
			return demo.Main(ctx, args[1:], version(), stdout, stderr)
		case "app":
			return app.Main(ctx, args[1:], stdout, stderr)
		case "check":
			return check(args[1:], stdout, stderr)
		case "version":
			fmt.Fprintln(stdout, "gslbd", version())
			return 0
		}
	}
	flags := flag.NewFlagSet("gslbd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "", "the configuration `file` (YAML)")
	level := flags.String("log-level", "info", "debug, info, warn or error")
	workers := flags.Int("workers", 0, "UDP workers per address; 0 is one per core")
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() > 0 || *path == "" {
		if flags.NArg() > 0 {
			fmt.Fprintf(stderr, "gslbd: unknown command %q\n\n", flags.Arg(0))
		}
		flags.Usage()
		return 2
	}
	var lv slog.Level
	if err := lv.UnmarshalText([]byte(*level)); err != nil {
		fmt.Fprintf(stderr, "gslbd: -log-level %q: expected debug, info, warn or error\n", *level)
		return 2
	}
	if *workers < 0 {
		fmt.Fprintf(stderr, "gslbd: -workers %d: expected a number from 1, or 0 for one per core\n", *workers)
		return 2
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: lv}))
	if err := serve(ctx, *path, *workers, log, stdout); err != nil {
		fmt.Fprintf(stderr, "gslbd: %v\n", err)
		return 1
	}
	return 0
}

// serve runs one node until ctx ends.
func serve(ctx context.Context, path string, workers int, log *slog.Logger, stdout io.Writer) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)  // from now on: one that comes before the node runs is not the end of it
	f, zones, _, err := node.Load(path) // what it warns of is logged by who serves it
	if err != nil {
		return err
	}
	n, err := node.New(node.Options{File: f, Path: path, Reload: hup, Zones: zones, Version: version(), Log: log, Workers: workers})
	if err != nil {
		return err
	}
	if err := n.Listen(); err != nil {
		return err
	}
	go func() {
		select {
		case <-n.Ready():
			var addrs []string
			for _, a := range n.DNSAddrs() {
				addrs = append(addrs, a.String())
			}
			fmt.Fprintf(stdout, "gslbd %s ready: node %s, site %s, dns %s, admin http://%s\n",
				version(), f.Node.Name, f.Node.Site, strings.Join(addrs, " "), n.AdminAddr())
		case <-ctx.Done():
		}
	}()
	return n.Run(ctx)
}

// check reports every fault of a configuration.
func check(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("gslbd check", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "", "the configuration `file` (YAML)")
	if err := flags.Parse(args); err != nil || *path == "" || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "usage: gslbd check -config FILE")
		return 2
	}
	warnings, err := node.Check(*path)
	for _, w := range warnings {
		fmt.Fprintln(stderr, "warning:", w)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	fmt.Fprintf(stdout, "%s: no faults\n", *path)
	return 0
}

// release is set by the linker for a release; version falls back to what Go knows.
var release string

func version() string {
	if release != "" {
		return release
	}
	return api.Version()
}
