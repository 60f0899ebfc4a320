package node

import (
	"context"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/tracing"
)

// lookEvery is how often the configuration and zone files are looked at.
const lookEvery = time.Second

// lookAtMost is how many zone files are looked at every lookEvery, one after the other: a node of
// very many zones finds a change a little later, and need not look all the time. SIGHUP looks at
// all of them at once.
const lookAtMost = 2000

// follow reloads the node's configuration on a signal and when its file changed, and zones when
// theirs did, until ctx ends.
func (n *Node) follow(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var w watch
	w.start(n.file.Load())
	own := stampOf(n.opts.Path)
	for {
		hupped := false
		select {
		case <-ctx.Done():
			return nil
		case sig := <-n.opts.Reload:
			n.log.Info("reading the configuration again", "signal", sig)
			hupped = true
		case <-look.C:
			if stampOf(n.opts.Path) == own {
				w.include(n.build.included.Load())
				if w.changed(lookAtMost) {
					n.build.reread(false)
				}
				continue
			}
		}
		own = stampOf(n.opts.Path)
		n.reload(hupped)
		w.start(n.file.Load())
	}
}

// stamp tells whether a file changed.
type stamp struct {
	size int64
	mod  time.Time
}

// stampOf returns the stamp of a file; one that cannot be looked at has one of its own.
func stampOf(path string) stamp {
	fi, err := os.Stat(path)
	if err != nil {
		return stamp{size: -1}
	}
	return stamp{fi.Size(), fi.ModTime()}
}

// stampsOf returns the stamps of files as they were opened, or as they are if they could not be.
func stampsOf(files map[string]fs.FileInfo) map[string]stamp {
	m := make(map[string]stamp, len(files))
	for path, fi := range files {
		if fi == nil {
			m[path] = stampOf(path)
		} else {
			m[path] = stamp{fi.Size(), fi.ModTime()}
		}
	}
	return m
}

// same tells whether the files still are as they were.
func same(files map[string]stamp) bool {
	for path, was := range files {
		if stampOf(path) != was {
			return false
		}
	}
	return true
}

// watch looks at the zone files of a configuration in turn.
type watch struct {
	paths []string // of zones, and then of what they include
	seen  []stamp  // of paths
	next  int
	zones int // of paths
	parts *map[string]stamp
}

// start begins with the files of f as they are now.
func (w *watch) start(f *config.File) {
	*w = watch{}
	for _, z := range f.Objects.Zones {
		if z.File != "" {
			w.paths = append(w.paths, z.File)
			w.seen = append(w.seen, stampOf(z.File))
		}
	}
	w.zones = len(w.paths)
}

// include goes on with the files that the zones include, as they were read; nil is none.
func (w *watch) include(parts *map[string]stamp) {
	if parts == w.parts {
		return
	}
	w.parts, w.paths, w.seen = parts, w.paths[:w.zones], w.seen[:w.zones]
	for path, read := range *parts {
		w.paths, w.seen = append(w.paths, path), append(w.seen, read)
	}
	w.next %= max(1, len(w.paths))
}

// changed looks at the next files, at most so many, and tells whether one has changed.
func (w *watch) changed(most int) (found bool) {
	for range min(most, len(w.paths)) {
		i := w.next
		w.next = (w.next + 1) % len(w.paths)
		if now := stampOf(w.paths[i]); now != w.seen[i] {
			w.seen[i], found = now, true
		}
	}
	return found
}

// reload reads the configuration again, with forced also the zones that show no change. A faulty
// one changes nothing.
func (n *Node) reload(forced bool) {
	_, done := n.cold.work("config.reload", attribute.String(tracing.AttrFile, n.opts.Path))
	done(n.reread(forced))
}

// checkEngine reports what is wrong with f beyond its own text and its zones. It takes from what
// runs all that f leaves as it is: every reload reads a large database otherwise.
func (n *Node) checkEngine(f *config.File) error {
	m := n.places.Current()
	if !reflect.DeepEqual(geoConfig(n.file.Load()), geoConfig(f)) {
		var err error
		if m, err = geo.Open(geoConfig(f)); err != nil {
			return err
		}
	}
	var prev *gslb.Snapshot
	if d := n.data.Load(); d != nil {
		prev = d.Snapshot
	}
	s, err := gslb.Build(prev, gslb.Inputs{Revision: 1, Objects: &f.Objects, Geo: m, Now: time.Now()})
	if err != nil {
		return err
	}
	return checkProxies(f, s)
}

// reread is reload, and returns the fault, which was reported.
func (n *Node) reread(forced bool) error {
	f, err := config.ReadFile(n.opts.Path)
	if err == nil { // zones are read one by one: a faulty one is no reason to refuse the others
		err = n.checkEngine(f)
	}
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
	n.dns.SetExplainers(explainers(f.Node.Serve.Explain))
	n.build.report("decision log", "the old one stays", n.decisions.Configure(decisionLog(f.Node.Decisions)))
	if keys := needRestart(n.opts.File.Node, f.Node); len(keys) > 0 {
		n.log.Warn("some settings of the node only change with a restart", "file", n.opts.Path, "settings", keys)
	}
	n.build.report("configuration "+n.opts.Path, "", nil)
	n.build.reread(forced)
	n.log.Info("configuration read", "file", n.opts.Path)
	return nil
}

// needRestart returns the keys of node in which now differs from what runs, but for what a reload
// applies.
func needRestart(running, now config.Node) (keys []string) {
	for _, n := range []*config.Node{&running, &now} {
		n.Geo, n.Serve.Cookies, n.Serve.Explain = config.Geo{}, nil, config.Explain{}
		n.Gossip.Key, n.Gossip.Keys = "", nil
		n.Decisions = config.DecisionLog{}
	}
	a, b := reflect.ValueOf(running), reflect.ValueOf(now)
	for i := range a.NumField() {
		if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
			keys = append(keys, "node."+name)
		}
	}
	return keys
}
