package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// snapshot is the last known good configuration as it lies on disk.
type snapshot struct {
	Saved    time.Time       `json:"saved"`
	Cluster  uint64          `json:"cluster,string"` // etcd's id of the cluster that Store was read from
	Revision int64           `json:"revision"`       // that Store was read at
	Base     *config.Objects `json:"base"`           // of the file at the time
	Store    *config.Objects `json:"store"`
}

// disk keeps the last snapshots in a folder as snapshot-<number>.json, the highest number
// the newest. A file is one line of header with the SHA-256 of the rest, and JSON. An empty
// dir keeps nothing.
type disk struct {
	dir  string
	sync func(*os.File) error // in place of the system's, for tests; nil is that
}

const (
	snapshotHeader = "meridian snapshot 1 sha256 "
	snapshotKeep   = 3
)

// save writes s so that a crash at any moment leaves either s or what was there.
func (d disk) save(s *snapshot) error {
	if d.dir == "" {
		return nil
	}
	body, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	names, err := d.names()
	if err != nil {
		return err
	}
	var last uint64
	if len(names) > 0 {
		last, _ = snapshotNumber(names[0])
	}
	sum := sha256.Sum256(body)
	data := append([]byte(snapshotHeader+hex.EncodeToString(sum[:])+"\n"), body...)
	if err := d.writeSynced(fmt.Sprintf("snapshot-%012d.json", last+1), data); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	for _, old := range names[min(len(names), snapshotKeep-1):] {
		if err := os.Remove(filepath.Join(d.dir, old)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("snapshot: %w", err)
		}
	}
	return nil
}

// writeSynced writes the file name by way of a temporary file, and returns once it is on disk.
func (d disk) writeSynced(name string, data []byte) (err error) {
	f, err := os.CreateTemp(d.dir, ".snapshot-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	sync := d.sync
	if sync == nil {
		sync = (*os.File).Sync
	}
	if err := sync(f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(d.dir, name)); err != nil {
		return err
	}
	parent, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer parent.Close()
	return parent.Sync()
}

// names returns the files of snapshots, newest first.
func (d disk) names() ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	var names []string
	for _, e := range entries {
		if _, ok := snapshotNumber(e.Name()); ok {
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		x, _ := snapshotNumber(a)
		y, _ := snapshotNumber(b)
		switch {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
	return names, nil
}

func snapshotNumber(name string) (n uint64, ok bool) {
	var tail string
	if _, err := fmt.Sscanf(name, "snapshot-%d%s", &n, &tail); err != nil || tail != ".json" {
		return 0, false
	}
	return n, true
}

// load returns the snapshots that are whole, newest first, and an error for each that is not.
func (d disk) load() (good []*snapshot, bad []error) {
	if d.dir == "" {
		return nil, nil
	}
	names, err := d.names()
	if err != nil {
		return nil, []error{err}
	}
	for _, name := range names {
		s, err := readSnapshot(filepath.Join(d.dir, name))
		if err != nil {
			bad = append(bad, err)
			continue
		}
		good = append(good, s)
	}
	return good, bad
}

func readSnapshot(name string) (*snapshot, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	head, body, ok := bytes.Cut(data, []byte("\n"))
	want, isSnapshot := strings.CutPrefix(string(head), snapshotHeader)
	if !ok || !isSnapshot {
		return nil, fmt.Errorf("snapshot %s: starts with %.40q; expected %q", name, head, snapshotHeader)
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != want {
		return nil, fmt.Errorf("snapshot %s: truncated or damaged: its content has SHA-256 %x; expected %.64q", name, sum, want)
	}
	s := &snapshot{}
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", name, err)
	}
	return s, nil
}
