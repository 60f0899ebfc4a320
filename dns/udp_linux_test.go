package dns

import (
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testWorker returns a worker with the world of the tests on a socket of its own, and a client of it.
func testWorker(t testing.TB) (*udpWorker, net.Conn) {
	t.Helper()
	data := new(atomic.Pointer[Data])
	data.Store(loadWorld(t).data(t))
	w, err := newUDPWorker(netip.MustParseAddrPort("127.0.0.1:0"), data, testAnswerer(t), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.close() })
	client, err := net.Dial("udp", w.socket.local.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return w, client
}

// TestBatchAllocations runs the worker's own loop over real sockets: a batch in, a batch out, and
// no allocation.
func TestBatchAllocations(t *testing.T) {
	for _, wildcard := range []bool{false, true} {
		w, c := testWorker(t)
		if wildcard { // the way of a wildcard's socket, without one
			w.pktinfo = true
			if err := w.options(w.socket.fd, 1<<20); err != nil {
				t.Fatal(err)
			}
			for i := range w.in {
				w.in[i].hdr.Control = &w.control[i][0]
			}
			w.rearm(batch)
		}
		c.SetDeadline(time.Now().Add(patience))
		var queries [][]byte
		for range 4 {
			for _, query := range hotQueries(t) {
				if len(query) > headerLen+2 { // those that are answered with more than a header
					queries = append(queries, query)
				}
			}
		}
		buf := make([]byte, 4096)
		allocs := testing.AllocsPerRun(50, func() {
			for _, query := range queries {
				if _, err := c.Write(query); err != nil {
					t.Fatal(err)
				}
			}
			for replies := 0; replies < len(queries); {
				if err := w.socket.read(w.receive); err != nil {
					t.Fatal(err)
				}
				w.answer()
				replies += w.replies
				if w.sent != w.replies {
					t.Fatalf("sent %d of %d replies", w.sent, w.replies)
				}
			}
			for range queries {
				if _, err := c.Read(buf); err != nil {
					t.Fatal(err)
				}
			}
		})
		if allocs != 0 {
			t.Errorf("wildcard %t: got %v allocations for %d queries, want 0", wildcard, allocs, len(queries))
		}
	}
}

// TestForesee: what is guessed of a packet before it is read is either the client that its reading
// finds, or nothing; and a worker whose answerer panicked in the batch before has no service to
// guess with.
func TestForesee(t *testing.T) {
	guessed := 0
	for _, query := range hotQueries(t) {
		addr, ok := lastOptionECS(query)
		if !ok {
			continue
		}
		guessed++
		a := testAnswerer(t)
		if how := a.q.read(query, &a.r); how != wellFormed || a.q.edns.ecs.addr != addr {
			t.Errorf("guessed %v, read %v (%d)", addr, a.q.edns.ecs.addr, how)
		}
	}
	if guessed == 0 {
		t.Error("no query of the dialogues ends with a usual ECS option")
	}
	for n := range headerLen + 12 {
		if addr, ok := lastOptionECS(make([]byte, n)); ok {
			t.Errorf("%d zero octets: guessed %v", n, addr)
		}
	}
	w, _ := testWorker(t)
	w.steered, w.n = true, 2
	w.answer()
	if w.replies != 0 {
		t.Errorf("%d replies to empty packets", w.replies)
	}
}

// TestWildcard serves the wildcard addresses, in a network of its own: replies leave from the
// address that was asked, whichever that is.
func TestWildcard(t *testing.T) {
	ip, err := exec.LookPath("ip")
	needs(t, err == nil, "ip")
	// The test's thread is not unlocked, so that it ends with the test and takes the namespace along.
	runtime.LockOSThread()
	err = unix.Unshare(unix.CLONE_NEWNET)
	needs(t, err != unix.EPERM, "leave to make a network namespace")
	if err != nil {
		t.Fatalf("unshare: %v", err)
	}
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"-6", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad"}, {"-6", "addr", "add", "2001:db8::2/128", "dev", "lo", "nodad"}} {
		if out, err := exec.Command(ip, args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	s := New(Options{Addrs: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:5300"), netip.MustParseAddrPort("[::]:5300")}, Data: new(atomic.Pointer[Data]), Workers: 2})
	s.opts.Data.Store(loadWorld(t).data(t))
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ts := &testServer{Server: s, ended: make(chan error, 1)}
	ts.run()
	defer ts.stop(t)
	for _, addr := range []string{"127.0.0.1", "127.0.0.9", "127.1.2.3", "::1", "2001:db8::1", "2001:db8::2"} {
		for _, network := range []string{"udp", "tcp"} {
			// A connected socket takes replies from the address alone that it is connected to.
			c, err := net.Dial(network, netip.AddrPortFrom(netip.MustParseAddr(addr), 5300).String())
			if err != nil {
				t.Fatal(err)
			}
			if m := unpack(t, converseOn(t, c, ask(t, "ns1.example.com", "A"))); len(m.Answer) != 1 {
				t.Errorf("%s %s: got %v", network, addr, m)
			}
			c.Close()
		}
	}
}

// BenchmarkLoop is the worker's loop over real sockets, with a client in the same goroutine, in
// time and, for machines that are busy, processor time per query. "bare" sends queries back as they came: what the others take longer is what an
// answer costs where it is used, caches included.
func BenchmarkLoop(b *testing.B) {
	for _, name := range []string{"bare", "Steered", "Static", "NXDOMAIN"} {
		b.Run(name, func(b *testing.B) {
			w, c := testWorker(b)
			query := hotQueries(b)["Steered"]
			if name != "bare" {
				query = hotQueries(b)[name]
			}
			buf := make([]byte, 4096)
			b.ReportAllocs()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			spent := cpuTime(unix.RUSAGE_THREAD)
			for n := 0; n < b.N; n += batch {
				for range batch {
					if _, err := c.Write(query); err != nil {
						b.Fatal(err)
					}
				}
				for replies := 0; replies < batch; replies += w.replies {
					if err := w.socket.read(w.receive); err != nil {
						b.Fatal(err)
					}
					if name == "bare" {
						w.echo(b)
					} else {
						w.answer()
					}
				}
				for range batch {
					if _, err := c.Read(buf); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(spent())/float64(b.N), "cpu-ns/op")
		})
	}
}

// echo is answer without an answer.
func (w *udpWorker) echo(b *testing.B) {
	for i := range w.n {
		w.iovOut[i].Base = &w.bufIn[i][0]
		w.iovOut[i].SetLen(int(w.in[i].len))
		w.out[i].hdr.Name, w.out[i].hdr.Namelen = w.in[i].hdr.Name, w.in[i].hdr.Namelen
	}
	w.replies, w.sent = w.n, 0
	w.sendmmsg()
}
