package geo

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// pollInterval is how often the files are looked at: a file that was replaced is in use
// within it. Databases are published twice a week, so this is about people who wait.
const pollInterval = 2 * time.Second

// Source keeps a Map up to date with its files. It is safe for concurrent use.
type Source struct {
	log     *slog.Logger
	changed chan struct{}
	current atomic.Pointer[Map]

	mu     sync.Mutex // guards what follows
	config Config
	seen   [2]os.FileInfo // of config.City and config.ASN when they were last read; nil: not there
	err    error          // of the last reading
}

// NewSource opens the files of c and returns a source that has the map; its error is that
// of Open. log, which may be nil, is told of every later reading. Nothing is started.
func NewSource(c Config, log *slog.Logger) (*Source, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Source{log: log, changed: make(chan struct{}, 1)}
	if err := s.load(c); err != nil {
		return nil, err
	}
	return s, nil
}

// Current returns the newest map that was read without fault.
func (s *Source) Current() *Map { return s.current.Load() }

// Err returns what is wrong with the files now, so that Current is older than they are; nil
// if nothing is.
func (s *Source) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Changed has a value when Current has become another map since the last receive.
func (s *Source) Changed() <-chan struct{} { return s.changed }

// Reconfigure replaces what the map is made of. With an error, which is that of Open,
// nothing has changed.
func (s *Source) Reconfigure(c Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(c); err != nil {
		return err
	}
	s.err = nil
	s.signal()
	return nil
}

// Run looks at the files until ctx ends and reads them when one has changed: it was
// written, or another was renamed to its place. A file at fault is read again only after
// it has changed again. Run returns the cause of ctx's end.
func (s *Source) Run(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			s.poll()
		}
	}
}

// poll reads the files if one has changed since they were read.
func (s *Source) poll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := stat(s.config)
	if same(now[0], s.seen[0]) && same(now[1], s.seen[1]) {
		return
	}
	if s.err = s.load(s.config); s.err != nil {
		s.log.Error("geo databases changed but cannot be used; the old ones stay in use", "err", s.err)
		return
	}
	v4, v6 := s.Current().Len()
	s.log.Info("geo databases changed and are in use", "databases", s.Current().Databases(), "prefixes4", v4, "prefixes6", v6)
	s.signal()
}

// load reads the map of c. The files are looked at before they are read, so that a change
// in between is seen by the next poll. Call it with mu held, or before anybody else can.
func (s *Source) load(c Config) error {
	seen := stat(c)
	m, err := Open(c)
	if err != nil {
		if c.City == s.config.City && c.ASN == s.config.ASN {
			s.seen = seen
		}
		return err
	}
	s.config, s.seen = c, seen
	s.current.Store(m)
	return nil
}

func (s *Source) signal() {
	select {
	case s.changed <- struct{}{}:
	default: // the last change was not taken yet; it will find this one
	}
}

// stat looks at the files of c.
func stat(c Config) (seen [2]os.FileInfo) {
	for i, path := range []string{c.City, c.ASN} {
		if path != "" {
			seen[i], _ = os.Stat(path) // not there is nil, and reading it will say why
		}
	}
	return seen
}

// same reports whether two looks at a path found the same content, as far as they can tell.
func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
