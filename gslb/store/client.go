package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Options say where the objects are.
type Options struct {
	Etcd config.Etcd     // the zero value: Base is all there is
	Data string          // folder for the last known good snapshot and the embedded etcd; "" keeps none
	Base *config.Objects // valid objects of the file, which those of etcd go before; may be nil
	Log  *slog.Logger    // nil: slog.Default()
}

// timing holds the durations of the protocol with etcd. Tests shorten them.
type timing struct {
	coalesce   time.Duration // events this close make one view
	progress   time.Duration // how often etcd is asked whether it is there
	silence    time.Duration // without a sign for so long, the client is built anew
	relist     time.Duration // how often everything is read again, whatever the watch said
	timeout    time.Duration // of one request
	settle     time.Duration // for a change of this node to come back in its own view
	grace      time.Duration // for etcd at the start, before the file's objects are served alone
	hold       time.Duration // how often a held store is read again
	save       time.Duration // for a snapshot to be on disk, before the status says that it is not
	backoffMin time.Duration
	backoffMax time.Duration
}

var defaultTiming = timing{
	coalesce:   20 * time.Millisecond,
	progress:   10 * time.Second,
	silence:    30 * time.Second,
	relist:     10 * time.Minute,
	timeout:    5 * time.Second,
	settle:     3 * time.Second,
	grace:      5 * time.Second,
	hold:       5 * time.Second,
	save:       5 * time.Second,
	backoffMin: 100 * time.Millisecond,
	backoffMax: 10 * time.Second,
}

// Client is the Store: of the file alone, or of etcd with the file below it and the disk
// behind it.
type Client struct {
	// Set at construction.
	etcd   config.Etcd
	data   string
	mode   string
	disk   disk
	log    *slog.Logger
	timing timing
	wake   chan struct{} // ends the wait of a held session
	rebase chan struct{} // the base was replaced
	accept chan struct{} // the operator takes the loss of most objects
	up     chan struct{} // the embedded etcd began to serve

	mu        sync.Mutex
	base      *config.Objects
	good      *config.Objects  // the store's objects of the current view: the last that were valid; nil before the first reading
	cli       *clientv3.Client // nil while etcd is not followed
	cluster   uint64           // that is followed; 0 before the first reading
	revision  int64            // that cluster was last read as a whole at
	confirmed bool             // the operator takes whatever etcd holds
	lost      string           // of which kinds etcd lost most objects, so that the view stays; "" when it did not
	broken    error            // the embedded etcd gave up for good
	status    Status
	saving    time.Time      // since when a snapshot is being written; zero while none is
	faults    map[Key]string // of objects that cannot be read
	whole     []string       // of the others together
	view      *View          // the current one
	handed    int64          // the revision of the last view that was handed on, and taken
	moved     chan struct{}  // closed when handed moves, and replaced
}

var _ Store = (*Client)(nil)

// Open returns the store that o describes. It starts nothing and reads nothing.
func Open(o Options) (*Client, error) {
	c := &Client{
		etcd: o.Etcd, data: o.Data, mode: ModeFile, disk: disk{dir: o.Data}, log: o.Log, timing: defaultTiming,
		wake: make(chan struct{}, 1), rebase: make(chan struct{}, 1), accept: make(chan struct{}, 1), up: make(chan struct{}, 1), moved: make(chan struct{}), base: o.Base,
	}
	if c.log == nil {
		c.log = slog.Default()
	}
	if c.base == nil {
		c.base = &config.Objects{}
	}
	if err := config.Validate(c.base); err != nil {
		return nil, fmt.Errorf("store: objects of the file: %w", err)
	}
	switch {
	case o.Etcd.Embedded && len(o.Etcd.Endpoints) > 0:
		return nil, errors.New("store: etcd both embedded and external; expected one of them")
	case o.Etcd.Embedded:
		c.mode = ModeEmbedded
		if _, err := c.newEmbed(); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
	case len(o.Etcd.Endpoints) > 0:
		c.mode = ModeExternal
	}
	c.status.Mode = c.mode
	return c, nil
}

func (c *Client) newEmbed() (*Embed, error) {
	if c.data == "" {
		return nil, errors.New("embedded etcd: no data folder")
	}
	return NewEmbed(filepath.Join(c.data, "etcd"), c.etcd.Listen, c.log)
}

// Run follows the store until ctx ends, and returns nil once its last goroutine has ended.
// It hands on, in this order: the last snapshot on disk; what etcd holds; every change.
// What cannot be read or is not valid changes nothing. Call it once.
func (c *Client) Run(ctx context.Context, update func(View)) error {
	f := &follower{c: c, update: update, entries: map[Key]entry{}}
	if c.mode == ModeFile {
		f.runFile(ctx)
		return nil
	}

	var wg sync.WaitGroup
	defer wg.Wait()
	saves := make(chan *snapshot, 1)
	defer close(saves)
	wg.Go(func() { c.saveAll(saves) })
	f.saves = saves

	// The server outlives its client, which would otherwise hold up its end.
	serve, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	if c.mode == ModeEmbedded {
		wg.Go(func() { c.serveEmbedded(serve) })
	}
	s := &session{c: c, listings: make(chan listingMsg), batches: make(chan batch)}
	ended := make(chan struct{})
	wg.Go(func() {
		defer close(ended)
		s.run(ctx)
	})
	f.boot()
	f.run(ctx, s)
	<-ended
	return nil
}

// serveEmbedded keeps an embedded etcd running until ctx ends.
func (c *Client) serveEmbedded(ctx context.Context) {
	b := backoff{min: c.timing.backoffMin, max: c.timing.backoffMax}
	for ctx.Err() == nil {
		e, err := c.newEmbed()
		if err == nil {
			start := time.Now()
			err = c.serveOne(ctx, e)
			if time.Since(start) > c.timing.backoffMax {
				b.reset()
			}
		}
		if ctx.Err() != nil {
			return
		}
		c.fault(err)
		if errors.Is(err, ErrBroken) {
			c.mu.Lock()
			c.broken = err
			c.mu.Unlock()
			return
		}
		b.wait(ctx, nil)
	}
}

// serveOne runs e and wakes the session once it serves.
func (c *Client) serveOne(ctx context.Context, e *Embed) error {
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	select {
	case <-e.Ready():
		poke(c.up)
		return <-ended
	case err := <-ended:
		return err
	}
}

// saveAll writes the snapshots that come, until the channel closes.
func (c *Client) saveAll(saves <-chan *snapshot) {
	for s := range saves {
		c.mu.Lock()
		c.saving = time.Now()
		c.mu.Unlock()
		err := c.disk.save(s)
		c.mu.Lock()
		c.saving = time.Time{}
		was := c.status.DiskError
		c.status.DiskError = ""
		if err != nil {
			c.status.DiskError = err.Error()
		} else {
			c.status.DiskSavedAt = s.Saved
		}
		c.mu.Unlock()
		if err != nil && err.Error() != was {
			c.log.Error("last known good snapshot not written", "error", err)
		}
	}
}

// SetBase replaces the objects of the file, after a reload. It refuses objects that are not
// valid together with those of the store, and then the ones before stay.
func (c *Client) SetBase(base *config.Objects) error {
	if base == nil {
		base = &config.Objects{}
	}
	c.mu.Lock()
	good := c.good
	c.mu.Unlock()
	if err := config.Validate(base); err != nil {
		return fmt.Errorf("objects of the file: %w", err)
	}
	if err := config.Validate(config.Merge(base, good)); err != nil {
		return fmt.Errorf("objects of the file with those of the store over them: %w", err)
	}
	c.mu.Lock()
	c.base = base
	c.mu.Unlock()
	poke(c.rebase)
	return nil
}

// Confirm takes what etcd holds although it went back, is another cluster or lost most objects:
// see Status.Held. It does nothing to a store that is not held.
func (c *Client) Confirm() {
	c.mu.Lock()
	c.confirmed = c.status.Held != ""
	lost := c.lost != ""
	c.mu.Unlock()
	poke(c.wake)
	if lost {
		poke(c.accept)
	}
}

// poke sends on a channel of one slot unless it is full.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Status says how the store is.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Held = cmp.Or(s.Held, c.lost)
	s.Faults = append(faultTexts(c.faults), c.whole...)
	if since := time.Since(c.saving); !c.saving.IsZero() && since > c.timing.save {
		s.DiskError = fmt.Sprintf("snapshot: still being written after %v", since.Round(time.Second))
	}
	return s
}

// Latest returns the current view; ok is false before the first.
func (c *Client) Latest() (v View, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view == nil {
		return View{}, false
	}
	return *c.view, true
}

// faultTexts returns the faults of objects ordered by key.
func faultTexts(faults map[Key]string) []string {
	out := make([]string, 0, len(faults))
	for _, text := range faults {
		out = append(out, text) // each begins with its key
	}
	slices.Sort(out)
	return out
}

// fault records that etcd failed, and logs it when it is news.
func (c *Client) fault(err error) {
	c.mu.Lock()
	if c.broken != nil {
		err = c.broken // of which the session's errors are but the consequence
	}
	news := c.status.Error != err.Error()
	c.status.Error = err.Error()
	c.mu.Unlock()
	if news {
		c.log.Warn("etcd is not followed; the configuration stays as it is", "error", err)
	}
}

// contact records that etcd was heard.
func (c *Client) contact() {
	c.mu.Lock()
	c.status.LastContact = time.Now()
	c.mu.Unlock()
}

// connect records the client that changes may use; nil ends that.
func (c *Client) connect(cli *clientv3.Client) {
	c.mu.Lock()
	again := c.status.Error != "" && cli != nil
	c.cli = cli
	c.status.Connected = cli != nil
	if cli != nil {
		c.status.Error = ""
	}
	c.mu.Unlock()
	if again {
		c.log.Info("etcd is followed again")
	}
}
