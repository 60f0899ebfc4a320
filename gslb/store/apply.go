package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Apply checks what the objects would be after c, the file's among them, and writes the
// change in one transaction that holds only if nothing that it was checked against has
// moved; if something has, it is checked again. It returns the new revision once the view of
// it was handed on, or after some seconds, so that who changes something reads it here and may
// change it again; or the current revision when there is nothing to write.
//
// It refuses, with nothing written: a whole that is not valid (config.Faults gives the
// particulars); an object newer than c.At (ErrConflict); without c.Force a service that no
// endpoint could answer any more, or the removal of more than half of the pools, services or
// zones (ErrGuard); the deletion of what is not in the store (ErrNotFound); anything while
// the store is held (ErrHeld), not followed (ErrUnavailable) or a file (ErrReadOnly).
//
// A state in c without an author gets c.Author, and one without a beginning the present.
func (c *Client) Apply(ctx context.Context, ch Change) (int64, error) {
	cli, err := c.writable()
	if err != nil {
		return 0, err
	}
	put, touched, err := ch.prepare(time.Now())
	if err != nil {
		return 0, err
	}
	// Lost races are of people and scripts that write at the same moment. Each round one
	// of them wins.
	const rounds = 30
	for i := range rounds {
		rev, done, err := c.try(ctx, cli, ch, put, touched)
		if err != nil {
			return 0, c.cause(err)
		}
		if done {
			return rev, nil
		}
		wait(ctx, rand.N(time.Duration(1+min(i, 9))*5*time.Millisecond), nil)
		if err := ctx.Err(); err != nil {
			return 0, context.Cause(ctx)
		}
	}
	return 0, fmt.Errorf("%w: %d times while this change was checked; try again", ErrConflict, rounds)
}

// writable returns the client to write with.
func (c *Client) writable() (*clientv3.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mode == ModeFile:
		return nil, ErrReadOnly
	case c.status.Held != "":
		return nil, fmt.Errorf("%w: %s; confirm it first", ErrHeld, c.status.Held)
	case c.cli == nil && c.status.Error != "":
		return nil, fmt.Errorf("%w: %s", ErrUnavailable, c.status.Error)
	case c.cli == nil:
		return nil, fmt.Errorf("%w: not yet", ErrUnavailable)
	}
	return c.cli, nil
}

// cause makes an error of the connection an ErrUnavailable; refusals stay as they are.
func (c *Client) cause(err error) error {
	for _, refusal := range []error{ErrConflict, ErrGuard, ErrNotFound, ErrHeld, ErrUnavailable, context.Canceled} {
		if errors.Is(err, refusal) {
			return err
		}
	}
	if len(config.Faults(err)) > 0 {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// prepare returns the objects to write, with their stamps, and every key that ch touches.
func (ch Change) prepare(now time.Time) (put *config.Objects, touched []Key, err error) {
	put = ch.Put.Clone()
	for name, s := range put.States {
		if s.Author == "" {
			s.Author = ch.Author
		}
		if s.Since.IsZero() {
			s.Since = now.UTC().Truncate(time.Second)
		}
		put.States[name] = s
	}
	var errs []error
	for _, name := range put.Names("zones") {
		if put.Zones[name].File != "" {
			errs = append(errs, fmt.Errorf("zones/%s: names the file %s; expected its records, since the store keeps no files", name, put.Zones[name].File))
		}
	}
	for _, kind := range config.Kinds {
		for _, name := range put.Names(kind) {
			touched = append(touched, Key{kind, name})
		}
	}
	for _, k := range ch.Delete {
		if !slices.Contains(config.Kinds, k.Kind) {
			errs = append(errs, fmt.Errorf("%s: unknown kind; expected one of %s: %w", k, strings.Join(config.Kinds, ", "), ErrNotFound))
		}
		if slices.Contains(touched, k) {
			errs = append(errs, fmt.Errorf("%s: named twice in one change", k))
			continue
		}
		touched = append(touched, k)
	}
	return put, touched, errors.Join(errs...)
}

// try reads, checks and writes once; done is false when the race was lost.
func (c *Client) try(ctx context.Context, cli *clientv3.Client, ch Change, put *config.Objects, touched []Key) (rev int64, done bool, err error) {
	l, err := list(ctx, cli, c.timing.timeout)
	if err != nil {
		return 0, false, err
	}
	if err := c.sameHistory(l); err != nil {
		return 0, false, err
	}
	now := c.current(l)
	if err := ch.conflict(touched, now.mods, now.author, now.lastMod); err != nil {
		return 0, false, err
	}
	for _, k := range ch.Delete {
		if now.mods[k] == 0 {
			return 0, false, c.notInStore(k)
		}
	}
	if err := ch.check(now, put, touched); err != nil {
		return 0, false, err
	}

	mods, values := now.mods, now.values
	ifs := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(lastChangeKey), "=", now.lastMod)}
	var ops []clientv3.Op
	var written []Key
	for _, k := range touched {
		ifs = append(ifs, clientv3.Compare(clientv3.ModRevision(k.path()), "=", mods[k]))
		v, isPut := put.Object(k.Kind, k.Name)
		if !isPut {
			ops = append(ops, clientv3.OpDelete(k.path()))
			written = append(written, k)
			continue
		}
		data, err := config.MarshalObject(v)
		if err != nil {
			return 0, false, fmt.Errorf("%s: %w", k, err)
		}
		if mods[k] != 0 && values[k] == string(data) {
			continue
		}
		ops = append(ops, clientv3.OpPut(k.path(), string(data)))
		written = append(written, k)
	}
	if len(ops) == 0 {
		return l.revision, true, nil
	}
	note, err := json.Marshal(lastChange{ch.Author, time.Now().UTC().Truncate(time.Second), written, now.left(put, ch.Delete)})
	if err != nil {
		return 0, false, err
	}
	ops = append(ops, clientv3.OpPut(lastChangeKey, string(note)))

	ctx, cancel := context.WithTimeoutCause(ctx, c.timing.timeout, fmt.Errorf("no answer in %v: the change may or may not have been written", c.timing.timeout))
	defer cancel()
	r, err := cli.Txn(ctx).If(ifs...).Then(ops...).Commit()
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = context.Cause(ctx)
		}
		return 0, false, fmt.Errorf("write %d objects: %w", len(written), err)
	}
	if r.Succeeded {
		c.settled(ctx, r.Header.Revision)
	}
	return r.Header.Revision, r.Succeeded, nil
}

// sameHistory refuses an etcd that is not the one that is followed, or is behind it: it was
// replaced a moment ago, and the follower is about to hold it.
func (c *Client) sameHistory(l *listing) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cluster == 0:
	case l.cluster != c.cluster:
		return fmt.Errorf("%w: etcd is cluster %x; the one that is followed is %x", ErrHeld, l.cluster, c.cluster)
	case l.revision < c.revision:
		return fmt.Errorf("%w: etcd went back to revision %d; it is followed since %d", ErrHeld, l.revision, c.revision)
	}
	return nil
}

// settled returns once the view of revision was handed on, timing.settle is over or ctx ends.
func (c *Client) settled(ctx context.Context, revision int64) {
	ctx, cancel := context.WithTimeout(ctx, c.timing.settle)
	defer cancel()
	for {
		c.mu.Lock()
		handed, moved := c.handed, c.moved
		c.mu.Unlock()
		if handed >= revision {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}

// present is what Apply found: the file's objects, and what etcd holds.
type present struct {
	base   *config.Objects
	good   *config.Objects // those of the current view; nil before there is one
	stored *config.Objects // of etcd; what cannot be read is at its last good version
	mods   map[Key]int64   // the revision of every key
	values map[Key]string
	lost   string // why the store is held, since most objects are gone; "" when it is not

	// Of the last change through Apply; zero when there was none.
	author  string
	lastMod int64
}

// left returns how many objects of vitalKinds there are once put is written and deleted are gone.
func (p present) left(put *config.Objects, deleted []Key) map[string]int {
	keys := map[Key]bool{}
	for k := range p.mods {
		keys[k] = true
	}
	n := map[string]int{}
	for _, kind := range vitalKinds {
		for _, name := range put.Names(kind) {
			keys[Key{kind, name}] = true
		}
		n[kind] = 0
	}
	for _, k := range deleted {
		delete(keys, k)
	}
	for k := range keys {
		if _, vital := n[k.Kind]; vital {
			n[k.Kind]++
		}
	}
	return n
}

// current decodes a listing for Apply.
func (c *Client) current(l *listing) present {
	c.mu.Lock()
	p := present{base: c.base, good: c.good, lost: c.lost, stored: &config.Objects{}, mods: map[Key]int64{}, values: map[Key]string{}}
	c.mu.Unlock()
	for _, kv := range l.kvs {
		if string(kv.Key) == lastChangeKey {
			p.lastMod = kv.ModRevision
			if last := readLastChange(kv.Value); last != nil {
				p.author = last.Author
			}
			continue
		}
		k := keyOf(kv.Key)
		p.mods[k], p.values[k] = kv.ModRevision, string(kv.Value)
		if err := config.DecodeObject(k.Kind, k.Name, kv.Value, p.stored); err != nil && p.good != nil {
			p.stored.Take(p.good, k.Kind, k.Name)
		}
	}
	return p
}

// check refuses ch when an object that it touches would not be served as it says, or, without
// ch.Force, when Guard does. Objects of others that are not valid do not stand in the way:
// they are kept at their last good version, as in the view.
func (ch Change) check(now present, put *config.Objects, touched []Key) error {
	before, _, faultBefore := sound(now.base, now.good, now.stored)
	next := config.Merge(now.stored, put)
	for _, k := range ch.Delete {
		next.Delete(k.Kind, k.Name)
	}
	after, kept, fault := sound(now.base, before, next)
	if after == nil {
		return fault
	}
	if slices.ContainsFunc(kept, func(k Key) bool { return slices.Contains(touched, k) }) {
		return news(faultBefore, fault)
	}
	if gone := mostGone(config.Merge(now.base, now.good), config.Merge(now.base, after)); now.lost != "" && len(gone) > 0 {
		return fmt.Errorf("%w: %s; write them again, or confirm it first", ErrHeld, now.lost)
	}
	if ch.Force {
		return nil
	}
	return Guard(config.Merge(now.base, before), config.Merge(now.base, after))
}

// news returns the faults of after that are not in before: those that a change makes. Where
// there are none it returns after.
func news(before, after error) error {
	known := config.Faults(before)
	var errs []error
	for _, f := range config.Faults(after) {
		if !slices.Contains(known, f) {
			errs = append(errs, f)
		}
	}
	if len(errs) == 0 {
		return after
	}
	return errors.Join(errs...)
}

// conflict returns a ConflictError for the first touched object that is newer than ch.At.
func (ch Change) conflict(touched []Key, mods map[Key]int64, lastAuthor string, lastMod int64) error {
	if ch.At == 0 {
		return nil
	}
	for _, k := range touched {
		if mods[k] > ch.At {
			e := &ConflictError{Key: k, Revision: mods[k], At: ch.At}
			if mods[k] == lastMod {
				e.Author = lastAuthor
			}
			return e
		}
	}
	return nil
}

// notInStore says that k cannot be deleted, and why.
func (c *Client) notInStore(k Key) error {
	c.mu.Lock()
	_, inFile := c.base.Object(k.Kind, k.Name)
	c.mu.Unlock()
	if inFile {
		return fmt.Errorf("%s: %w in the store: it stands in the configuration file; delete it there", k, ErrNotFound)
	}
	return fmt.Errorf("%s: %w", k, ErrNotFound)
}

// Guard refuses with ErrGuard a change from before to after that is valid and yet most likely a
// mistake: a service loses its last endpoint, or more than half of a kind that answers depend on goes.
func Guard(before, after *config.Objects) error {
	bare := map[string]bool{}
	for _, f := range config.Unanswerable(before) {
		bare[f.Path] = true
	}
	var errs []error
	for _, f := range config.Unanswerable(after) {
		if !bare[f.Path] {
			errs = append(errs, fmt.Errorf("%s: %s", f.Path, f.Msg))
		}
	}
	for _, gone := range mostGone(before, after) {
		errs = append(errs, errors.New("removes "+gone))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrGuard, errors.Join(errs...))
}

// mostGone says of which of vitalKinds more than half of the objects of before are not in after:
// 3 of 5 pools.
func mostGone(before, after *config.Objects) (out []string) {
	for _, kind := range vitalKinds {
		names := before.Names(kind)
		gone := 0
		for _, name := range names {
			if _, ok := after.Object(kind, name); !ok {
				gone++
			}
		}
		if 2*gone > len(names) {
			out = append(out, fmt.Sprintf("%d of %d %s", gone, len(names), kind))
		}
	}
	return out
}
