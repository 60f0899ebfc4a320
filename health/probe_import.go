package health

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// maxImport is how many octets of outside verdicts are read.
const maxImport = 8 << 20

// imports keeps what was read from files and URLs, each once for all endpoints that it
// speaks of. Its methods are safe for concurrent use.
type imports struct {
	mu      sync.Mutex
	sources map[string]*imported // guarded by mu, by file or URL
}

// imported is one source.
type imported struct {
	turn  chan struct{} // capacity 1: holds a token while nobody reads
	first chan struct{} // closed after the first reading

	mu       sync.Mutex        // guards all below
	looked   time.Time         // when the last reading ended
	written  time.Time         // by the file's own word
	good     time.Time         // when what is there was written or answered
	verdicts map[string]string // by POOL/ADDRESS or ADDRESS, in lower case: up or down
	err      error
}

// source returns what there is of a file or URL.
func (i *imports) source(name string) *imported {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.sources[name]
	if s == nil {
		if i.sources == nil {
			i.sources = make(map[string]*imported)
		}
		s = &imported{turn: make(chan struct{}, 1), first: make(chan struct{})}
		s.turn <- struct{}{}
		i.sources[name] = s
	}
	return s
}

// probeImport looks t up in its source, which is read again once it is half an interval old.
// While one reads, the others take what is known: a source may hang. Only for the first reading
// all wait, but not beyond their time.
func (i *imports) probeImport(ctx context.Context, t Target) Result {
	conf, start := t.Probe.Import, time.Now()
	name := conf.File + conf.URL
	s := i.source(name)
	select {
	case <-s.turn:
		s.refresh(ctx, conf, time.Duration(t.Probe.Interval)/2)
		s.turn <- struct{}{}
	default:
		select {
		case <-s.first:
		case <-ctx.Done():
			return Result{Class: Local, Latency: time.Since(start), Detail: printable(name+": still being read", maxDetail)}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := Result{Latency: time.Since(start)}
	maxAge := time.Duration(conf.MaxAge)
	if maxAge == 0 {
		maxAge = 10 * time.Duration(t.Probe.Interval)
	}
	verdict, ok := s.verdicts[strings.ToLower(t.ID.Pool+"/"+t.ID.Addr.String())]
	if !ok {
		verdict, ok = s.verdicts[t.ID.Addr.String()]
	}
	switch age := time.Since(s.good); {
	case s.err != nil && (s.good.IsZero() || age > maxAge):
		r.Class, r.Detail = Local, printable(s.err.Error(), maxDetail)
	case age > maxAge:
		r.Class, r.Detail = Local, fmt.Sprintf("outside verdicts are %v old", age.Round(time.Second))
	case !ok:
		r.Class, r.Detail = Local, "not among the outside verdicts"
	case verdict == "down":
		r.Class, r.Detail = WrongStatus, "down by the outside verdict"
	}
	return r
}

// refresh reads the source if the last reading is at least so long ago. One that cannot be read
// keeps what it said, for its time. It is for whoever has the turn.
func (s *imported) refresh(ctx context.Context, conf *config.ImportProbe, age time.Duration) {
	s.mu.Lock()
	looked := s.looked
	s.mu.Unlock()
	if !looked.IsZero() && time.Since(looked) < age {
		return
	}
	var data []byte
	var written time.Time
	var err error
	if conf.File != "" {
		data, written, err = readFile(conf.File, maxImport)
	} else {
		data, err = fetchImport(ctx, conf.URL)
	}
	var verdicts map[string]string
	if err == nil {
		verdicts, err = parseImport(data)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.looked.IsZero() {
		defer close(s.first)
	}
	s.looked = time.Now()
	if s.err = err; err != nil {
		return
	}
	s.verdicts = verdicts
	if written.IsZero() || !written.Equal(s.written) {
		// A file of the future, by a clock that is wrong, is as old as our knowledge of it.
		s.good = s.looked
		if written.Before(s.looked) && !written.IsZero() {
			s.good = written
		}
		s.written = written
	}
}

// readFile reads a regular file of at most limit octets, of which one more is returned, and says
// when it was written. It does not wait for what is no file: a pipe may have nobody at its
// other end.
func readFile(name string, limit int64) ([]byte, time.Time, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, time.Time{}, err
	case !info.Mode().IsRegular():
		return nil, time.Time{}, fmt.Errorf("%s: not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	return data, info.ModTime(), err
}

// importClient follows no redirects and keeps no connection.
var importClient = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func fetchImport(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := importClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d, expected 200", url, resp.StatusCode)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxImport+1))
}

// parseImport reads lines of a name and up or down, with comments after #, or a JSON object
// from names to up or down. One bad line makes all of it bad: half of it is no verdict.
func parseImport(data []byte) (map[string]string, error) {
	if len(data) > maxImport {
		return nil, fmt.Errorf("outside verdicts over %d octets", maxImport)
	}
	out := make(map[string]string)
	put := func(line int, name, verdict string) error {
		if verdict != "up" && verdict != "down" {
			return fmt.Errorf("outside verdicts: line %d: %q, expected up or down", line, clip(verdict, 32))
		}
		out[strings.ToLower(name)] = verdict
		return nil
	}
	if text := bytes.TrimSpace(data); len(text) > 0 && text[0] == '{' {
		var m map[string]string
		if err := json.Unmarshal(text, &m); err != nil {
			return nil, fmt.Errorf("outside verdicts: %w", err)
		}
		for name, verdict := range m {
			if err := put(1, name, verdict); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		switch f := strings.Fields(text); {
		case len(f) == 0:
		case len(f) != 2:
			return nil, fmt.Errorf("outside verdicts: line %d: %d words, expected a name and up or down", n, len(f))
		default:
			if err := put(n, f[0], f[1]); err != nil {
				return nil, err
			}
		}
	}
	return out, lines.Err()
}
