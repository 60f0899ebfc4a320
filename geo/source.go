package geo

import (
	"context"
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
	report  func(*Map, error)
	changed chan struct{}
	current atomic.Pointer[Map]

	mu     sync.Mutex // guards what follows
	config Config
	seen   [2]os.FileInfo // of config.City and config.ASN when they were last read; nil: not there
}

// NewSource opens the files of c and returns a source that has the map; its error is that
// of Open. report, which may be nil, is told of every later reading: of the map that is in
// use from then on, or of the error that left the old one in use. Nothing is started.
func NewSource(c Config, report func(*Map, error)) (*Source, error) {
	if report == nil {
		report = func(*Map, error) {}
	}
	s := &Source{report: report, changed: make(chan struct{}, 1)}
	if err := s.load(c); err != nil {
		return nil, err
	}
	return s, nil
}

// Current returns the newest map that was read without fault.
func (s *Source) Current() *Map { return s.current.Load() }

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
			if m, err, read := s.poll(); read {
				s.report(m, err)
			}
		}
	}
}

// poll reads the files if one has changed since they were read.
func (s *Source) poll() (m *Map, err error, read bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := stat(s.config)
	if same(now[0], s.seen[0]) && same(now[1], s.seen[1]) {
		return nil, nil, false
	}
	if err := s.load(s.config); err != nil {
		return nil, err, true
	}
	s.signal()
	return s.Current(), nil, true
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
