package admin

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"
)

// TestBeacon: what makes sense is taken, what does not is refused, and who may name another client
// is who is trusted.
func TestBeacon(t *testing.T) {
	type report struct {
		client, pool string
		ms           float64
	}
	var got []report
	b := NewBeacon(BeaconOptions{
		Rate: 1000, Trust: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		Pool:    func(name string) bool { return name == "eu" },
		Observe: func(c netip.Prefix, pool string, ms float64) { got = append(got, report{c.String(), pool, ms}) },
	})
	for _, tt := range []struct {
		name, method, from, query string
		status                    int
	}{
		{"get", "GET", "198.51.100.7:1", "pool=eu&ms=42.5", 204},
		{"post", "POST", "[2001:db8:1:2::3]:1", "pool=eu&ms=1", 204},
		{"for another", "GET", "10.1.2.3:1", "pool=eu&ms=3&client=203.0.113.9", 204},
		{"for another, not trusted", "GET", "198.51.101.7:1", "pool=eu&ms=3&client=203.0.113.9", 400},
		{"no such pool", "GET", "198.51.101.7:1", "pool=us&ms=3", 400},
		{"no time", "GET", "198.51.101.7:1", "pool=eu", 400},
		{"not a time", "GET", "198.51.101.7:1", "pool=eu&ms=NaN", 400},
		{"less than none", "GET", "198.51.101.7:1", "pool=eu&ms=-1", 400},
		{"too long", "GET", "198.51.101.7:1", "pool=eu&ms=60001", 400},
		{"no client", "GET", "10.1.2.3:1", "pool=eu&ms=3&client=224.0.0.1", 400},
		{"preflight", "OPTIONS", "198.51.101.7:1", "", 204},
		{"another method", "PUT", "198.51.101.7:1", "pool=eu&ms=3", 405},
	} {
		r := httptest.NewRequest(tt.method, BeaconPath+"?"+tt.query, nil)
		r.RemoteAddr = tt.from
		w := httptest.NewRecorder()
		b.ServeHTTP(w, r)
		if w.Code != tt.status || w.Header().Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: status %d, want %d, for every origin: %v %s", tt.name, w.Code, tt.status, w.Header(), w.Body)
		}
	}
	want := []report{{"198.51.100.0/24", "eu", 42.5}, {"2001:db8:1::/48", "eu", 1}, {"203.0.113.0/24", "eu", 3}}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("got %v, want %v", got, want)
	}
	if taken, refused := b.Stats(); taken != 3 || refused != 7 {
		t.Errorf("%d taken, %d refused; want 3 and 7", taken, refused)
	}
}

// TestBeaconRate: one report a second of a prefix, and no more than the rate of all.
func TestBeaconRate(t *testing.T) {
	b := NewBeacon(BeaconOptions{Rate: 10})
	at := time.Unix(1_700_000_000, 0)
	for second := range 3 {
		taken := 0
		for i := range 100 {
			client := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 2), 0}), 24)
			if b.admit(client, at.Add(time.Duration(second)*time.Second+time.Duration(i)*time.Millisecond)) {
				taken++
			}
		}
		if taken != 10 || len(b.heard) > 10 {
			t.Errorf("second %d: %d taken, %d remembered; want 10", second, taken, len(b.heard))
		}
	}
	one := netip.MustParsePrefix("10.0.0.0/24")
	if at = at.Add(time.Hour); !b.admit(one, at) || b.admit(one, at) || !b.admit(one, at.Add(time.Second)) {
		t.Error("of one prefix more or less than one a second is taken")
	}
}

// TestBeaconRun serves on a socket, and ends.
func TestBeaconRun(t *testing.T) {
	observed := make(chan string, 1)
	b := NewBeacon(BeaconOptions{
		Addr: "127.0.0.1:0", Rate: 10, Pool: func(string) bool { return true },
		Observe: func(c netip.Prefix, pool string, ms float64) { observed <- c.String() },
	})
	if err := b.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	r, err := http.Get("http://" + b.Addr().String() + BeaconPath + "?pool=eu&ms=5")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if got := <-observed; r.StatusCode != 204 || got != "127.0.0.0/24" {
		t.Errorf("status %d, client %s", r.StatusCode, got)
	}
	if r, err := http.Get("http://" + b.Addr().String() + "/metrics"); err != nil || r.StatusCode != 404 {
		t.Errorf("another path: %v, %v; want 404: nothing else is there", r, err)
	}
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("Run: %v", err)
	}
}
