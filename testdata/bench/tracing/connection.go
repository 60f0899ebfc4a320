package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	batchOctets = 256 << 10 // of spans, as the recorder sends them
	bulkRate    = 20 << 20  // octets of spans a second: about 70,000 spans
	pushOctets  = 2 << 10   // of configuration
	pushEvery   = 10 * time.Millisecond
	slowRate    = 24 << 20 // octets a second that the narrow path takes of each connection
)

// connection measures how long a push of configuration takes while spans are exported, on
// the same HTTP/2 connection and on one of their own.
func (b *bench) connection() error {
	fmt.Fprintf(b.out, "\n## A separate connection or a shared one\n\nA push of %d octets every %v, over gRPC, beside exports of spans, %d MiB a second in batches of %d KiB. "+
		"\"narrow\": each TCP connection carries %d MiB a second.\n\n| path | spans go | push p50 µs | push p99 µs | slowest µs | CPU ms/MiB | exported MiB/s |\n|---|---|--:|--:|--:|--:|--:|\n",
		pushOctets, pushEvery, bulkRate>>20, batchOctets>>10, slowRate>>20)
	type row struct{ narrow, shared, bulk bool }
	rows := []row{{false, false, false}, {false, false, true}, {false, true, true}, {true, false, false}, {true, false, true}, {true, true, true}}
	all := make([][]pushFigures, len(rows))
	for range b.rounds {
		for i, r := range rows {
			f, err := pushes(r.narrow, r.shared, r.bulk, b.time)
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "%+v: %+v\n", r, f)
			all[i] = append(all[i], f)
		}
	}
	for i, r := range rows {
		path, where := "loopback", "on their own connection"
		if r.narrow {
			path = "narrow"
		}
		if r.shared {
			where = "on the push's connection"
		}
		if !r.bulk {
			where = "nowhere"
		}
		middle := func(of func(pushFigures) float64) float64 {
			var v []float64
			for _, f := range all[i] {
				v = append(v, of(f))
			}
			slices.Sort(v)
			return v[len(v)/2]
		}
		cpu := "–"
		if r.bulk {
			cpu = fmt.Sprintf("%.2f", middle(func(f pushFigures) float64 { return f.cpu }))
		}
		fmt.Fprintf(b.out, "| %s | %s | %.0f | %.0f | %.0f | %s | %.1f |\n", path, where, middle(func(f pushFigures) float64 { return f.p50 }),
			middle(func(f pushFigures) float64 { return f.p99 }), middle(func(f pushFigures) float64 { return f.max }), cpu, middle(func(f pushFigures) float64 { return f.rate }))
	}
	return nil
}

// pushFigures: times in µs, CPU in ms a MiB exported, rate in MiB a second.
type pushFigures struct{ p50, p99, max, cpu, rate float64 }

// pushes measures pushes for a while.
func pushes(narrow, shared, bulk bool, d time.Duration) (f pushFigures, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return f, err
	}
	if narrow {
		l = &narrowListener{l}
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(4<<20), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if err := stream.RecvMsg(new(wrapperspb.BytesValue)); err != nil {
			return err
		}
		return stream.SendMsg(new(wrapperspb.BytesValue))
	}))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() { s.Stop(); err = errors.Join(err, <-served) }()
	dial := func() (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	push, err := dial()
	if err != nil {
		return f, err
	}
	defer push.Close()
	export := push
	if !shared {
		if export, err = dial(); err != nil {
			return f, err
		}
		defer export.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	before, start := cpuTime(), time.Now()
	var wg sync.WaitGroup
	sent := 0
	if bulk {
		wg.Go(func() {
			body := &wrapperspb.BytesValue{Value: make([]byte, batchOctets)}
			tick := time.NewTicker(time.Second * batchOctets / bulkRate)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				if export.Invoke(ctx, "/bench/Export", body, new(wrapperspb.BytesValue)) == nil {
					sent += batchOctets
				}
			}
		})
	}
	var took []float64
	body := &wrapperspb.BytesValue{Value: make([]byte, pushOctets)}
	tick := time.NewTicker(pushEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		<-tick.C
		at := time.Now()
		if push.Invoke(ctx, "/bench/Push", body, new(wrapperspb.BytesValue)) == nil {
			took = append(took, float64(time.Since(at).Microseconds()))
		}
	}
	wg.Wait()
	if len(took) == 0 {
		return f, errors.New("no push went through")
	}
	slices.Sort(took)
	mib := float64(sent) / (1 << 20)
	f = pushFigures{p50: took[len(took)/2], p99: took[len(took)*99/100], max: took[len(took)-1], rate: mib / time.Since(start).Seconds()}
	if mib > 0 {
		f.cpu = float64((cpuTime() - before).Microseconds()) / 1000 / mib
	}
	return f, nil
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// narrowListener accepts connections that read no more than slowRate, with a small buffer in
// the kernel: a path with little room.
type narrowListener struct{ net.Listener }

func (l *narrowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if err := c.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		return nil, err
	}
	return &narrowConn{Conn: c}, nil
}

type narrowConn struct {
	net.Conn
	free time.Time // when the path has carried what was read
}

func (c *narrowConn) Read(b []byte) (int, error) {
	time.Sleep(time.Until(c.free))
	n, err := c.Conn.Read(b[:min(len(b), 16<<10)])
	if now := time.Now(); c.free.Before(now) {
		c.free = now
	}
	c.free = c.free.Add(time.Duration(n) * time.Second / slowRate)
	if errors.Is(err, io.EOF) {
		return n, io.EOF
	}
	return n, err
}
