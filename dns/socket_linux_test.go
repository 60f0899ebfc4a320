package dns

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestIdleAndBusy has a worker go from idle to busy and back: what comes in one by one is answered,
// and so is what fills batches, and stop ends it in either state.
func TestIdleAndBusy(t *testing.T) {
	for _, full := range []bool{false, true} {
		w, c := testWorker(t)
		c.SetDeadline(time.Now().Add(patience))
		query, buf := ask(t, "ns1.example.com", "A"), make([]byte, 4096)
		say := func(n int) {
			for range n {
				if _, err := c.Write(query); err != nil {
					t.Fatal(err)
				}
			}
		}
		hear := func(n int) {
			for i := range n {
				if _, err := c.Read(buf); err != nil {
					t.Fatalf("reply %d of %d: %v", i+1, n, err)
				}
			}
		}
		if full {
			say(2 * batch)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.run(ctx) }()
		if full {
			hear(2 * batch)
		}
		for range 3 {
			say(1)
			hear(1)
			say(2*batch + 1)
			hear(2*batch + 1)
		}
		cancel()
		w.stop()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Fatal("run goes on after stop")
		}
	}
}

// TestSocketWatch: a socket is watched once somebody has waited at it, until it is busy, and then
// anew.
func TestSocketWatch(t *testing.T) {
	w, c := testWorker(t)
	s := w.socket
	for range 3 {
		got := make(chan error, 1)
		nothing := make(chan struct{}, 8)
		go func() {
			got <- s.read(func(uintptr) bool {
				there := w.recvmmsg(0)
				if !there {
					nothing <- struct{}{}
				}
				return there
			})
		}()
		<-nothing // unwatched,
		<-nothing // and watched
		if _, err := c.Write([]byte("packet")); err != nil {
			t.Fatal(err)
		}
		if err := <-got; err != nil || w.n != 1 || !s.watched {
			t.Fatalf("read: %d packets, watched %t, %v", w.n, s.watched, err)
		}
		s.busy()
		if s.watched {
			t.Fatal("a busy socket is watched")
		}
		if _, err := c.Write([]byte("packet")); err != nil {
			t.Fatal(err)
		}
		if err := s.read(w.receive); err != nil || w.n != 1 {
			t.Fatalf("read while busy: %d packets, %v", w.n, err)
		}
	}
	s.wake()
	if err := s.read(w.receive); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after wake: got %v, want a deadline", err)
	}
}

// TestNoRoomToSend has a worker write where there is no room: replies wait until there is, and are
// counted as unsent if there never is.
func TestNoRoomToSend(t *testing.T) {
	for _, taken := range []bool{true, false} {
		w, _ := testWorker(t)
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = unix.Write(pair[0], []byte("full"))
		}
		if err != unix.EAGAIN {
			t.Fatalf("filling a socket: %v", err)
		}
		w.socket = &socket{fd: pair[0], patience: waitTime}
		if taken {
			w.socket.patience = patience
		}
		for i := range 3 {
			w.out[i].hdr = unix.Msghdr{Iov: &unix.Iovec{Base: unsafe.StringData("reply"), Len: 5}, Iovlen: 1}
		}
		w.replies, w.sent = 3, 0
		took := make(chan int, 1)
		go func() {
			n := 0
			for taken && n < 3 {
				var buf [8]byte
				if got, err := unix.Read(pair[1], buf[:]); err != nil && err != unix.EAGAIN {
					break
				} else if string(buf[:max(got, 0)]) == "reply" {
					n++
				}
			}
			took <- n
		}()
		w.sendmmsg()
		unsent := w.a.counters.unsent.Load()
		if taken && (unsent != 0 || <-took != 3) || !taken && unsent != 3 {
			t.Errorf("taken %t: %d replies unsent", taken, unsent)
		}
		unix.Close(pair[0])
		unix.Close(pair[1])
	}
}

// TestSocketListens: what is bound is what was asked for, and what cannot be leaves nothing open.
func TestSocketListens(t *testing.T) {
	s, err := listenSocket(netip.MustParseAddrPort("127.0.0.1:0"), func(int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if s.local.Addr() != netip.MustParseAddr("127.0.0.1") || s.local.Port() == 0 {
		t.Errorf("bound to %v", s.local)
	}
	if _, err := listenSocket(s.local, func(int) error { return nil }); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("bound twice: got %v", err)
	}
	refused := errors.New("no")
	if _, err := listenSocket(netip.MustParseAddrPort("127.0.0.1:0"), func(int) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("options that fail: got %v", err)
	}
}
