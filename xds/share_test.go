package xds

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// sharing are servers that hear each other when told to, under one clock.
type sharing struct {
	t       *testing.T
	now     time.Time
	servers map[string]*Server
	last    map[string]Told
}

func newSharing(t *testing.T, w *World, names ...string) *sharing {
	s := &sharing{t: t, now: time.Unix(1e9, 0), servers: map[string]*Server{}, last: map[string]Told{}}
	for _, n := range names {
		s.servers[n] = New(Options{Now: func() time.Time { return s.now }})
		s.servers[n].Set(w)
	}
	return s
}

// report lets a proxy of pool gfe report a rate of requests to fe-eu1 to a server.
func (s *sharing) report(server string, r *reporter, rate float64) {
	s.servers[server].loads.take(r, map[sampleKey]sample{{"upstream", "fe-eu1", 0}: {rate: rate, seconds: 1}}, nil, s.now)
}

// exchange lets some servers tell, and all hear what was told last.
func (s *sharing) exchange(tellers ...string) {
	for _, n := range tellers {
		b, _ := s.servers[n].Share(1 << 20)
		if b != nil {
			s.last[n] = Told{n, s.now, b}
		}
	}
	for n, server := range s.servers {
		var all []Told
		for other, t := range s.last {
			if other != n {
				all = append(all, t)
			}
		}
		server.Hear(all)
	}
}

// want wants every server to see that load, of that many proxies, so many of them frozen.
func (s *sharing) want(what string, rate float64, proxies, frozen int) {
	s.t.Helper()
	for n, server := range s.servers {
		l := server.Loads()
		if len(l) != 1 || math.Abs(l[0].Rate-rate) > 1 || l[0].Proxies != proxies || l[0].Frozen != frozen || l[0].From != "gfe" || l[0].Site != "eu-1" {
			s.t.Errorf("%s: %s sees %+v, want %v/s of %d proxies, %d frozen", what, n, l, rate, proxies, frozen)
		}
	}
}

// TestSharedLoad follows the load of a fleet over two config servers and a node that has none,
// as proxies report, move and fall silent, and nodes with them.
func TestSharedLoad(t *testing.T) {
	s := newSharing(t, world(t, nil, fleet("[fe-eu1, fe-us]", ""), state{}), "a", "b", "dns")
	a, b := s.servers["a"], s.servers["b"]
	one, two := a.loads.join("gfe", "one", s.now), b.loads.join("gfe", "two", s.now)
	second := func() { s.now = s.now.Add(time.Second) }
	second()
	s.report("a", one, 100)
	s.report("b", two, 30)
	s.exchange("a", "b", "dns")
	s.want("each hears one, all see both", 130, 2, 0)

	// Proxy one goes to b, by its own choice: it counts once.
	a.loads.lose(one)
	one = b.loads.join("gfe", "one", s.now)
	second()
	s.report("b", one, 100)
	s.report("b", two, 30)
	s.exchange("a", "b") // a hears only by this that it is at b
	second()
	s.report("b", one, 100)
	s.report("b", two, 30)
	s.exchange("a", "b")
	s.want("a proxy moved", 130, 2, 0)

	// Node b falls silent with both: frozen, not zero.
	for range 20 {
		second()
		s.exchange("a")
	}
	for _, n := range []string{"a", "dns"} {
		if l := s.servers[n].Loads(); len(l) != 1 || math.Abs(l[0].Rate-130) > 1 || l[0].Frozen != 2 || l[0].Age < 20*time.Second {
			t.Errorf("b is silent: %s sees %+v, want 130/s, frozen, over 20 s old", n, l)
		}
	}
	// One of its proxies goes to a, and counts there.
	one = a.loads.join("gfe", "one", s.now)
	second()
	s.report("a", one, 80)
	s.exchange("a")
	if l := s.servers["dns"].Loads(); len(l) != 1 || math.Abs(l[0].Rate-(80+65)) > 1 || l[0].Proxies != 2 || l[0].Frozen != 1 {
		t.Errorf("one of b's proxies is at a: %+v, want 80/s and half of 130/s, one frozen", l)
	}
	// Users are elsewhere after a while.
	for range int(forgetAfter/time.Second) + 1 {
		second()
		s.report("a", one, 80)
	}
	s.exchange("a")
	if l := s.servers["dns"].Loads(); len(l) != 1 || math.Abs(l[0].Rate-80) > 1 || l[0].Frozen != 0 {
		t.Errorf("b is forgotten: %+v, want 80/s", l)
	}
}

// TestShareIsBounded wants a share to fit, with what matters most in it.
func TestShareIsBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := New(Options{Now: func() time.Time { return now }})
	for i := range 3000 {
		r := s.loads.join(fmt.Sprint("gfe-", i%10), fmt.Sprint("proxy-", i), now)
		s.loads.take(r, map[sampleKey]sample{{fmt.Sprint("upstream-", i), "fe", 0}: {rate: float64(i), seconds: 1}}, nil, now)
	}
	b, left := s.Share(24 << 10)
	if len(b) > 24<<10 || left == 0 {
		t.Fatalf("%d octets with %d left out; want at most 24 KiB, and that some are", len(b), left)
	}
	sh, err := decodeShare(b)
	if err != nil {
		t.Fatal(err)
	}
	least, flows := math.Inf(1), 0
	for _, p := range sh.Pools {
		for _, f := range p.Flows {
			least, flows = min(least, f.Rate), flows+1
		}
	}
	if flows+left != 3000 || least != float64(left) {
		t.Errorf("%d flows from %v/s on with %d left out; want the greatest of 3000", flows, least, left)
	}
}

// TestSharesThatLie are named, and change nothing.
func TestSharesThatLie(t *testing.T) {
	s := newSharing(t, world(t, nil, fleet("[fe-eu1, fe-us]", ""), state{}), "a")
	packed := func(text string) []byte {
		var b bytes.Buffer
		w, _ := flate.NewWriter(&b, 1)
		w.Write([]byte(text))
		w.Close()
		return b.Bytes()
	}
	flow := func(fields string) []byte {
		return packed(`{"v":1,"p":{"gfe":{"f":[{"u":"upstream","t":"fe-eu1",` + fields + `}]}}}`)
	}
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"not compressed", []byte("\x07{}"), "flate"},
		{"cut", flow(`"n":1,"r":5`)[:20], "EOF"},
		{"another version", packed(`{"v":2}`), "version 2"},
		{"negative", flow(`"n":1,"r":-1`), "rate out of bounds"},
		{"absurd", flow(`"n":1,"r":1e9`), "rate out of bounds"},
		{"no number", flow(`"n":1,"r":NaN`), "invalid character"},
		{"more frozen than there are", flow(`"n":1,"z":2`), "2 frozen"},
		{"in progress", flow(`"n":1,"i":1e12`), "in progress out of bounds"},
		{"metric", flow(`"n":1,"m":{"x":-1}`), `metric "x" out of bounds`},
		{"proxies", packed(`{"v":1,"p":{"gfe":{"p":"AAA="}}}`), "octets of proxies"},
		{"a bomb", packed(`{"v":1,"p":{"` + strings.Repeat("x", maxShare) + `":{}}}`), "over"},
	} {
		s.servers["a"].Hear([]Told{{"liar", s.now, tt.data}})
		f := s.servers["a"].LoadFaults()
		if len(f) != 1 || f[0].Proxy != "node liar" || !strings.Contains(f[0].What, tt.want) {
			t.Errorf("%s: faults %+v, want %q", tt.name, f, tt.want)
		}
		if l := s.servers["a"].Loads(); len(l) != 0 {
			t.Errorf("%s: loads %+v, want none", tt.name, l)
		}
		s.servers["a"].Hear(nil)
	}
	// What the configuration has not is nobody's load.
	s.servers["a"].Hear([]Told{{"b", s.now, packed(`{"v":1,"p":{"mars":{"f":[{"u":"upstream","t":"fe-eu1","n":1,"r":5}]},"gfe":{"f":[{"u":"no","t":"fe-eu1","n":1,"r":5}]}}}`)}})
	if l := s.servers["a"].Loads(); len(l) != 0 {
		t.Errorf("loads %+v of what there is not, want none", l)
	}
}

func FuzzShare(f *testing.F) {
	f.Add([]byte(`{"v":1,"p":{"gfe":{"p":"AAAAAA==","f":[{"u":"upstream","t":"fe","n":1,"a":5,"r":5,"m":{"x":1}}]}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var b bytes.Buffer
		w, _ := flate.NewWriter(&b, 1)
		w.Write(text)
		w.Close()
		sh, err := decodeShare(b.Bytes())
		if err != nil {
			return
		}
		for _, p := range sh.Pools {
			for _, fl := range p.Flows {
				if !(fl.Rate >= 0 && fl.Rate <= maxRate*maxReporters*1.01) {
					t.Errorf("rate %v", fl.Rate)
				}
			}
		}
		if _, err := json.Marshal(sh); err != nil {
			t.Error(err)
		}
	})
}
