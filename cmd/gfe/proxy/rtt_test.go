package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
)

// TestPassiveRTT: the kernel's round-trip time of a user's connection is taken once in a while, in
// the clear and over TLS.
func TestPassiveRTT(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("TCP_INFO is Linux's")
	}
	for _, secure := range []bool{false, true} {
		var p passive
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p.look(r, time.Unix(1_700_000_000, 0)) // all at one moment
		}))
		s.Config.ConnContext = withConn
		if secure {
			s.StartTLS()
		} else {
			s.Start()
		}
		for range 3 { // by one connection
			res, err := s.Client().Get(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		got := p.take()
		if len(got) != 1 || got[0].Client.String() != "127.0.0.0/24" || got[0].Samples != 1 || !(got[0].Millis > 0 && got[0].Millis < 10_000) {
			t.Errorf("TLS %v: got %+v, want one sample of 127.0.0.0/24", secure, got)
		}
		s.Close()
	}
}

// TestPassiveBounds: what is gathered and what is reported at once have bounds; nothing is lost
// by a report that fails.
func TestPassiveBounds(t *testing.T) {
	var p passive
	for i := range 2 * maxPrefixes {
		for range 1 + i%3 {
			p.add(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), sum{float64(i), 1})
		}
	}
	first := p.take()
	if len(first) != api.MaxRTTs || first[0].Samples != 3 || len(p.sums) != maxPrefixes-api.MaxRTTs {
		t.Fatalf("%d reported, %d left; want %d of three samples first", len(first), len(p.sums), api.MaxRTTs)
	}
	p.put(first)
	again := p.take()
	if fmt.Sprint(again) != fmt.Sprint(first) {
		t.Errorf("given back and taken again: got %v, want %v", again[:2], first[:2])
	}
	if ctx := withConn(context.Background(), &net.UDPConn{}); ctx == nil {
		t.Error("no context")
	}
}

// TestProxyReportsRTT: the reports of a proxy hold what its users' connections took.
func TestProxyReportsRTT(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("TCP_INFO is Linux's")
	}
	reports := make(chan api.Load, 64)
	p, err := New(Config{Pool: "gfe-eu", Listen: []string{"127.0.0.1:0"}, Report: 20 * time.Millisecond, Source: reporting(reports)})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	res, err := http.Get("http://" + p.Addrs()[0].String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	for limit := time.After(30 * time.Second); ; {
		select {
		case load := <-reports:
			if len(load.RTTs) == 1 && load.RTTs[0].Client.String() == "127.0.0.0/24" {
				return
			}
		case <-limit:
			t.Fatal("no report had a round-trip time")
		}
	}
}

// reporting is a source without assignments that takes reports.
type reporting chan api.Load

func (r reporting) Follow(ctx context.Context, _ string, _ func(Assignment)) error {
	<-ctx.Done()
	return ctx.Err()
}

func (r reporting) Report(_ context.Context, load api.Load) error {
	select {
	case r <- load:
	default:
	}
	return nil
}
