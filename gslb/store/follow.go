package store

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// follower turns what is read to views. Its fields belong to the goroutine of Client.Run.
type follower struct {
	c      *Client
	update func(View)
	saves  chan *snapshot // one slot: a newer snapshot replaces one that still waits

	// What is known of etcd: nothing while cluster is 0.
	cluster  uint64
	revision int64
	latest   *config.Objects // as they stand there, valid together or not; those that cannot be read are left out
	good     *config.Objects // those of the current view: the last that were valid as a whole
	entries  map[Key]entry   // of every key, good or not
	last     *lastChange     // the last change through Apply; nil when there was none
	accept   bool            // the loss of most objects is taken: the operator said so
	reported string          // what was last logged as wrong with the whole
}

// entry is what is known of one key.
type entry struct {
	mod   int64  // etcd's revision of it
	fault string // why its value cannot be read; "" when it can
}

// runFile hands on the file's objects, and again when they are replaced.
func (f *follower) runFile(ctx context.Context) {
	f.latest = &config.Objects{}
	for {
		f.publish(false)
		select {
		case <-f.c.rebase:
		case <-ctx.Done():
			return
		}
	}
}

// boot hands on the newest snapshot on disk that can be used: under the file's objects of
// now, or under those of then when the file's no longer fit.
func (f *follower) boot() {
	snapshots, bad := f.c.disk.load()
	for _, err := range bad {
		f.c.log.Warn("snapshot on disk is not used", "error", err)
	}
	f.c.mu.Lock()
	base := f.c.base
	f.c.mu.Unlock()
	for _, s := range snapshots {
		merged := config.Merge(base, s.Store)
		err := config.Validate(merged)
		unfit := err
		if err != nil {
			f.c.log.Warn("the file's objects do not fit those of the snapshot on disk; the file's of then are used", "error", err)
			merged = config.Merge(s.Base, s.Store)
			err = config.Validate(merged)
		}
		if err != nil {
			f.c.log.Warn("snapshot on disk is not used", "revision", s.Revision, "error", err)
			continue
		}
		f.cluster, f.revision = s.Cluster, s.Revision
		f.latest = s.Store.Clone()
		f.hand(f.latest, merged, true)
		if unfit != nil {
			f.c.setWhole(unfit)
		}
		f.c.log.Info("configuration from disk", "revision", s.Revision, "saved", s.Saved)
		return
	}
}

// run takes what the session reads until ctx ends.
func (f *follower) run(ctx context.Context, s *session) {
	grace := time.After(f.c.timing.grace)
	var coalesce <-chan time.Time // not nil: there is something to publish
	for {
		select {
		case l := <-s.listings:
			held := f.hold(l.listing)
			f.c.connect(l.cli) // before the view: who sees it may write
			if held == "" && f.take(l.listing) {
				coalesce = nil
				f.publish(true)
			}
			f.accept = false
			l.applied <- held == ""
		case b := <-s.batches:
			if f.apply(b) && coalesce == nil {
				coalesce = time.After(f.c.timing.coalesce)
			}
		case <-coalesce:
			coalesce = nil
			f.publish(true)
		case <-f.c.accept:
			f.accept = true
			f.publish(true)
			f.accept = false
		case <-f.c.rebase:
			// Before the first reading, what etcd holds is not known: wait for it.
			if f.latest != nil {
				f.publish(f.cluster != 0)
			}
		case <-grace:
			f.serveBase()
		case <-ctx.Done():
			return
		}
	}
}

// serveBase hands on the file's objects alone when nothing else was heard in time.
func (f *follower) serveBase() {
	f.c.mu.Lock()
	base := f.c.base
	f.c.mu.Unlock()
	if f.latest != nil || base.Len() == 0 {
		return
	}
	f.c.log.Warn("nothing from etcd or disk; the file's objects are served alone")
	f.hand(nil, base, false)
}

// hold decides whether l may be applied. It may not when etcd went back or is another
// cluster: it was restored from an older backup, wiped, or is the wrong one. Then the
// reason stands in the status until etcd has passed what is known, or the operator confirms.
func (f *follower) hold(l *listing) (why string) {
	switch {
	case f.cluster == 0: // nothing to compare with
	case l.cluster != f.cluster:
		why = fmt.Sprintf("etcd is cluster %x; the configuration in use is of cluster %x, revision %d", l.cluster, f.cluster, f.revision)
	case l.revision < f.revision:
		why = fmt.Sprintf("etcd went back to revision %d; the configuration in use is of revision %d", l.revision, f.revision)
	}
	c := f.c
	c.mu.Lock()
	was := c.status.Held
	if why != "" && c.confirmed {
		why = ""
		clear(f.entries) // their revisions are of another history
		f.accept = true
	}
	c.confirmed = false
	c.status.Held = why
	c.mu.Unlock()
	if why != was {
		if why != "" {
			c.log.Error("store is held: what etcd has is not applied until it is confirmed", "reason", why)
		} else {
			c.log.Info("store is no longer held")
		}
	}
	return why
}

// take replaces everything by l and reports whether anything is different.
func (f *follower) take(l *listing) (changed bool) {
	next := &config.Objects{}
	entries := make(map[Key]entry, len(l.kvs))
	f.last = nil
	for _, kv := range l.kvs {
		f.read(kv, next, entries)
	}
	changed = f.latest == nil || f.c.viewRevision() == 0 || len(config.Diff(f.latest, next)) > 0 || !maps.Equal(faultsOf(f.entries), faultsOf(entries))
	f.latest, f.entries, f.cluster, f.revision = next, entries, l.cluster, l.revision
	f.c.setFaults(faultsOf(entries), !changed)
	f.c.setHistory(l.cluster, l.revision)
	return changed
}

// apply takes the events of b that are news, and reports whether there were any.
func (f *follower) apply(b batch) bool {
	next, news := f.latest.Clone(), false
	for _, ev := range b.events {
		if ev.Kv.ModRevision <= f.revision {
			continue
		}
		news = true
		key := keyOf(ev.Kv.Key)
		if ev.Type == mvccpb.DELETE {
			if string(ev.Kv.Key) == lastChangeKey {
				f.last = nil
			}
			next.Delete(key.Kind, key.Name)
			delete(f.entries, key)
			continue
		}
		f.read(ev.Kv, next, f.entries)
	}
	if news {
		f.latest, f.revision = next, b.revision
		f.c.setFaults(faultsOf(f.entries), false)
	}
	return news
}

// read decodes kv into next and entries. What was read before at the same revision is
// reused; what cannot be read is in neither table of objects.
func (f *follower) read(kv *mvccpb.KeyValue, next *config.Objects, entries map[Key]entry) {
	if string(kv.Key) == lastChangeKey {
		f.last = readLastChange(kv.Value)
		return
	}
	key := keyOf(kv.Key)
	before, known := f.entries[key]
	if known && before.mod == kv.ModRevision {
		entries[key] = before
		if before.fault == "" {
			next.Take(f.latest, key.Kind, key.Name)
		}
		return
	}
	e := entry{mod: kv.ModRevision}
	next.Delete(key.Kind, key.Name)
	if err := config.DecodeObject(key.Kind, key.Name, kv.Value, next); err != nil {
		e.fault = strings.ReplaceAll(err.Error(), "\n", "; ") + " (left out)"
		if f.good != nil {
			if _, ok := f.good.Object(key.Kind, key.Name); ok {
				e.fault = strings.TrimSuffix(e.fault, " (left out)") + " (the last good version stays)"
			}
		}
		f.c.log.Warn("object in etcd is not valid", "key", string(kv.Key), "revision", kv.ModRevision, "fault", e.fault)
	}
	entries[key] = e
}

// faultsOf returns the faults among entries.
func faultsOf(entries map[Key]entry) map[Key]string {
	faults := map[Key]string{}
	for k, e := range entries {
		if e.fault != "" {
			faults[k] = e.fault
		}
	}
	return faults
}

// publish hands on the store's objects over the file's, and saves them when they are from
// etcd. Those that cannot be read or are not valid among the others stay at their last good
// version; where there is none to stand on, the last view stays as a whole.
func (f *follower) publish(save bool) {
	c := f.c
	c.mu.Lock()
	base := c.base
	c.mu.Unlock()
	next := f.latest.Clone()
	if f.good != nil {
		for key, e := range f.entries {
			if e.fault != "" {
				next.Take(f.good, key.Kind, key.Name)
			}
		}
	}
	next, kept, err := sound(base, f.good, next)
	c.setWhole(err)
	reported := ""
	if err != nil {
		reported = err.Error()
		if reported != f.reported {
			c.log.Error("the objects are not valid together; those stay as they were", "revision", f.revision, "objects", kept, "error", err)
		}
	}
	f.reported = reported
	if next == nil {
		return
	}
	merged := config.Merge(base, next)
	if f.loses(base, merged) {
		return
	}
	f.hand(next, merged, false)
	if save && c.disk.dir != "" {
		s := &snapshot{Saved: time.Now().UTC(), Cluster: f.cluster, Revision: f.revision, Base: base, Store: f.good}
		select {
		case <-f.saves: // an older one that still waits
		default:
		}
		f.saves <- s // the only sender, into a free slot
	}
}

// loses reports whether most of what answers depend on would go with the view of merged, though
// no Apply left it so: someone deleted it in etcd itself, or restored half. Then the reason stands
// in the status until the objects are back, or the operator confirms.
func (f *follower) loses(base, merged *config.Objects) bool {
	var gone []string
	if f.good != nil && !f.accept && !f.last.meant(f.count) {
		gone = mostGone(config.Merge(base, f.good), merged)
	}
	why := ""
	if len(gone) > 0 {
		why = fmt.Sprintf("etcd lost %s at revision %d, and no apply did that", strings.Join(gone, " and "), f.revision)
	}
	c := f.c
	c.mu.Lock()
	was := c.lost
	c.lost = why
	c.mu.Unlock()
	switch {
	case why != "" && was == "":
		c.log.Error("store is held: what etcd has is not applied until it is confirmed or the objects are back", "reason", why)
	case why == "" && was != "":
		c.log.Info("store is no longer held")
	}
	return why != ""
}

// count returns how many keys of a kind etcd holds.
func (f *follower) count(kind string) (n int) {
	for k := range f.entries {
		if k.Kind == kind {
			n++
		}
	}
	return n
}

// hand makes merged, of which good are the store's, the current view and hands it on.
func (f *follower) hand(good, merged *config.Objects, fromDisk bool) {
	c := f.c
	f.good = good
	c.mu.Lock()
	v := View{Revision: f.revision, Objects: merged, Stored: f.latest, Faults: append(faultTexts(c.faults), c.whole...)}
	if c.mode == ModeFile {
		v.Stored = nil
	}
	c.view = &v
	c.good = good
	c.status.Revision = v.Revision
	c.status.LastChange = time.Now()
	c.status.FromDisk = fromDisk
	c.mu.Unlock()
	f.update(v)
	c.mu.Lock()
	c.handed = v.Revision
	close(c.moved)
	c.moved = make(chan struct{})
	c.mu.Unlock()
}

// setFaults records which objects cannot be read; same says that etcd holds what the current
// view was made of.
func (c *Client) setFaults(faults map[Key]string, same bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = faults
	if same && c.lost == "" {
		c.status.FromDisk = false
	}
}

// setHistory records which cluster is followed, and up to where.
func (c *Client) setHistory(cluster uint64, revision int64) {
	c.mu.Lock()
	c.cluster, c.revision = cluster, revision
	c.mu.Unlock()
}

// setWhole records what is wrong with the objects together; nil: nothing.
func (c *Client) setWhole(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.whole = nil
	if err != nil {
		c.whole = strings.Split(err.Error(), "\n")
	}
}

// viewRevision returns the revision of the current view; 0 before the first from the store.
func (c *Client) viewRevision() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view == nil {
		return 0
	}
	return c.view.Revision
}
