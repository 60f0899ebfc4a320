package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"
)

// session talks to etcd: list, then watch from there, again and again. What it reads it
// hands to the follower, which owns the state.
type session struct {
	c        *Client
	listings chan listingMsg
	batches  chan batch
}

// listingMsg is a listing on its way to the follower, which answers whether it was applied;
// false: it is held.
type listingMsg struct {
	*listing
	cli     *clientv3.Client // that changes may use from now on
	applied chan bool        // one slot
}

// batch is the events of one watch response: all of a revision, never a part.
type batch struct {
	revision int64
	events   []*clientv3.Event
}

// errRelist ends a watch that is to start from a new listing at once.
var errRelist = errors.New("list again")

// run follows etcd until ctx ends. After an error it waits, longer each time, and builds
// the client anew: that heals connections that hang as well as those that broke.
func (s *session) run(ctx context.Context) {
	b := backoff{min: s.c.timing.backoffMin, max: s.c.timing.backoffMax}
	if s.c.mode == ModeEmbedded {
		wait(ctx, s.c.timing.timeout, s.c.up)
	}
	for ctx.Err() == nil {
		err := s.connect(ctx, b.reset)
		if ctx.Err() != nil {
			return
		}
		s.c.fault(err)
		b.wait(ctx, s.c.up)
	}
}

// connect follows etcd with one client until an error. It calls healthy when etcd answers.
func (s *session) connect(ctx context.Context, healthy func()) error {
	endpoints := s.c.etcd.Endpoints
	if s.c.mode == ModeEmbedded {
		e, err := s.c.newEmbed()
		if err != nil {
			return err
		}
		endpoints = []string{e.Endpoint()}
	}
	cli, err := dial(ctx, s.c.etcd, endpoints)
	if err != nil {
		return err
	}
	defer cli.Close()
	defer s.c.connect(nil)
	for {
		l, err := list(ctx, cli, s.c.timing.timeout)
		if err != nil {
			return err
		}
		healthy()
		s.c.contact()
		msg := listingMsg{l, cli, make(chan bool, 1)}
		select {
		case s.listings <- msg:
		case <-ctx.Done():
			return ctx.Err()
		}
		if applied := <-msg.applied; !applied {
			wait(ctx, s.c.timing.hold, s.c.wake)
			continue
		}
		if err := s.watch(ctx, cli, l); !errors.Is(err, errRelist) {
			return err
		}
	}
}

// watch hands on what changes after l. It ends with errRelist when the history is gone
// (compaction) or it is time to read everything again; any other end, an orderly one of the
// channel included, is an error.
func (s *session) watch(ctx context.Context, cli *clientv3.Client, l *listing) error {
	ctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	defer cancel(nil)
	// Behind a partition the client's own calls hang without end, Watch itself included;
	// so the clock runs beside them.
	silence := s.c.timing.silence
	watchdog := time.AfterFunc(silence, func() { cancel(fmt.Errorf("watch: no sign of etcd for %v", silence)) })
	defer watchdog.Stop()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		whenLost(ctx, cli.ActiveConnection(), cancel)
	}()
	defer func() { cancel(nil); <-stopped }()
	// From the listing's own revision, not from the one after it: etcd tells the progress of
	// no watch that begins in the future, and on a quiet day would seem to be gone. What it
	// repeats of that revision is known and left out.
	responses := cli.Watch(ctx, config.Root, clientv3.WithPrefix(), clientv3.WithRev(l.revision), clientv3.WithProgressNotify())

	relist := time.NewTimer(jitter(s.c.timing.relist))
	defer relist.Stop()
	progress := time.NewTicker(s.c.timing.progress)
	defer progress.Stop()
	for {
		select {
		case r, ok := <-responses:
			if !ok {
				if err := context.Cause(ctx); err != nil {
					return err
				}
				return errors.New("watch: ended by the client")
			}
			if err := r.Err(); err != nil {
				if errors.Is(err, rpctypes.ErrCompacted) {
					return errRelist
				}
				return fmt.Errorf("watch: %w", err)
			}
			if id := r.Header.ClusterId; id != l.cluster {
				return fmt.Errorf("watch: cluster %x; expected %x", id, l.cluster)
			}
			watchdog.Reset(silence)
			s.c.contact()
			if len(r.Events) == 0 {
				continue
			}
			select {
			case s.batches <- batch{r.Events[len(r.Events)-1].Kv.ModRevision, r.Events}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case <-progress.C:
			// The answer comes as a response. An error here is followed by silence.
			_ = cli.RequestProgress(ctx)
		case <-relist.C:
			return errRelist
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// connection is what whenLost reads of a grpc.ClientConn.
type connection interface {
	GetState() connectivity.State
	WaitForStateChange(ctx context.Context, from connectivity.State) bool
}

// whenLost waits until conn leads to no server any more, which it tells lost, or ctx ends. A
// watch alone does not tell: its client goes on trying in silence. A connection that was just
// made may have served a call before it says that it is ready.
func whenLost(ctx context.Context, conn connection, lost context.CancelCauseFunc) {
	for ready := false; ; {
		state := conn.GetState()
		ready = ready || state == connectivity.Ready
		if state != connectivity.Ready && (ready || state != connectivity.Connecting) {
			lost(errors.New("watch: the connection to etcd is lost"))
			return
		}
		if !conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// backoff is an exponential wait with full jitter.
type backoff struct {
	min, max time.Duration
	next     time.Duration
}

func (b *backoff) reset() { b.next = 0 }

// wait waits for a random part of the next step, or until ctx ends or something is sent on
// wake, which may be nil.
func (b *backoff) wait(ctx context.Context, wake <-chan struct{}) {
	b.next = min(max(b.min, 2*b.next), b.max)
	wait(ctx, b.next/2+rand.N(b.next/2+1), wake)
}

// jitter returns d, longer by up to a tenth: nodes that started together do not all read at once.
func jitter(d time.Duration) time.Duration { return d + rand.N(d/10+1) }

func wait(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
	}
}
