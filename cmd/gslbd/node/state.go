package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
)

// state is what a node believed last. It lets a node that starts again answer at once, and
// keeps its revisions growing.
type state struct {
	Revision uint64         `json:"revision"`
	Verdicts []savedVerdict `json:"verdicts"`
}

type savedVerdict struct {
	Pool     string     `json:"pool"`
	Endpoint netip.Addr `json:"endpoint"`
	Up       bool       `json:"up"`
}

// boot is the room that revisions leave between two starts: more than could be built in the
// time that the state file may lag behind.
const boot = 1000

// restore takes over the state file, and says whether it held a verdict.
func (b *builder) restore() (known bool) {
	st, err := readState(b.n.statePath())
	if err != nil {
		b.n.log.Warn("the last known verdicts are not used; the first round of probes is waited for", "err", err)
	}
	b.revision = (st.Revision + boot) / boot * boot
	// Kept before the first is used: a node that is killed at once does not use them again.
	if path := b.n.statePath(); path != "" {
		if err := writeState(path, state{Revision: b.revision, Verdicts: st.Verdicts}); err != nil {
			b.n.log.Warn("the block of revisions could not be kept", "err", err)
		}
	}
	verdicts := map[gslb.EndpointID]gslb.Verdict{}
	for _, v := range st.Verdicts {
		verdict := gslb.Down
		if v.Up {
			verdict = gslb.Up
		}
		verdicts[gslb.EndpointID{Pool: v.Pool, Addr: v.Endpoint}] = verdict
	}
	b.n.health.Restore(verdicts)
	return len(verdicts) > 0
}

// state returns what s was built from, to be kept.
func (b *builder) state(s *gslb.Snapshot) state {
	st := state{Revision: s.Revision}
	for id, v := range b.n.health.Verdicts() {
		if v != gslb.Unknown {
			st.Verdicts = append(st.Verdicts, savedVerdict{id.Pool, id.Addr, v == gslb.Up})
		}
	}
	return st
}

// readState reads a state file. A missing one is the zero state.
func readState(path string) (state, error) {
	var st state
	if path == "" {
		return st, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return state{}, fmt.Errorf("%s: %w", path, err)
	}
	return st, nil
}

// saver writes the state file a moment after a change, and at the end. A disk that is full
// or slow delays nothing but itself: it is only ever tried again.
type saver struct {
	path string
	log  *slog.Logger
	due  *time.Timer // nil: nothing to write
	st   state
}

// saveDelay bounds how often the state file is written.
const saveDelay = time.Second

func newSaver(path string, log *slog.Logger) *saver { return &saver{path: path, log: log} }

func (s *saver) put(st state) {
	s.st = st
	if s.due == nil && s.path != "" {
		s.due = time.NewTimer(saveDelay)
	}
}

func (s *saver) flush() {
	if s.due == nil {
		return
	}
	s.due.Stop()
	s.due = nil
	if err := writeState(s.path, s.st); err != nil {
		s.log.Warn("the last known verdicts could not be kept", "err", err)
	}
}

// writeState replaces the file at path as a whole.
func writeState(path string, st state) error {
	data, err := json.MarshalIndent(st, "", " ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".state-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
