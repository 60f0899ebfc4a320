package node

import (
	"context"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"reflect"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/tracing"
)

// lookEvery is how often the configuration and zone files are looked at.
const lookEvery = time.Second

// follow reloads the node's configuration on SIGHUP and when one of its files changed,
// until ctx ends.
func (n *Node) follow(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	seen := n.stamps()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			n.log.Info("SIGHUP: reading the configuration again")
		case <-look.C:
			now := n.stamps()
			if maps.Equal(now, seen) {
				continue
			}
		}
		seen = n.stamps()
		n.reload()
	}
}

// stamp tells whether a file changed.
type stamp struct {
	size int64
	mod  time.Time
}

// stamps returns the stamps of the files that the configuration is made of.
func (n *Node) stamps() map[string]stamp {
	paths := []string{n.opts.Path}
	for _, z := range n.file.Load().Objects.Zones {
		if z.File != "" {
			paths = append(paths, z.File)
		}
	}
	m := map[string]stamp{}
	for _, p := range paths {
		var fi fs.FileInfo
		fi, err := os.Stat(p)
		if err != nil {
			m[p] = stamp{size: -1}
			continue
		}
		m[p] = stamp{fi.Size(), fi.ModTime()}
	}
	return m
}

// reload reads the configuration again. A faulty one changes nothing.
func (n *Node) reload() {
	_, done := n.cold.work("config.reload", attribute.String(tracing.AttrFile, n.opts.Path))
	done(n.reread())
}

// reread is reload, and returns the fault, which was reported.
func (n *Node) reread() error {
	warnings, err := Check(n.opts.Path)
	if err != nil {
		n.build.report("configuration "+n.opts.Path, "the running one stays", err)
		return err
	}
	for _, w := range warnings {
		n.log.Warn(w)
	}
	f, err := config.ReadFile(n.opts.Path)
	if err != nil {
		n.build.report("configuration "+n.opts.Path, "the running one stays", err)
		return err
	}
	if err := n.store.SetBase(&f.Objects); err != nil {
		n.build.report("configuration "+n.opts.Path, "the running one stays", err)
		return err
	}
	old := n.file.Swap(f)
	if !reflect.DeepEqual(geoConfig(old), geoConfig(f)) {
		if err := n.places.Reconfigure(geoConfig(f)); err != nil {
			n.log.Error("places not changed", "err", err)
		}
	}
	if err := n.health.SetGossipKeys(f.Node.Gossip.Key, f.Node.Gossip.Keys); err != nil {
		n.log.Error("gossip keys not changed", "err", err)
	}
	if secrets := f.Node.Serve.Secrets(); len(secrets) > 0 {
		if err := n.dns.SetCookieSecrets(secrets); err != nil {
			n.log.Error("cookie secrets not changed", "err", err)
		}
	}
	running, now := n.opts.File.Node, f.Node
	running.Geo, now.Geo = config.Geo{}, config.Geo{}
	running.Serve.Cookies, now.Serve.Cookies = nil, nil
	if !reflect.DeepEqual(running, now) {
		n.log.Warn("node: some settings changed that only a restart applies", "file", n.opts.Path)
	}
	n.build.report("configuration "+n.opts.Path, "", nil)
	n.build.reread()
	n.log.Info("configuration read", "file", n.opts.Path)
	return nil
}
