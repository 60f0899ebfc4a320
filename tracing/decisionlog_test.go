package tracing

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	dnstap "github.com/dnstap/golang-dnstap"
	framestream "github.com/farsightsec/golang-framestream"
	"google.golang.org/protobuf/proto"
)

// logged is a recorder with a decision log, both running.
type logged struct {
	*Recorder
	log  *DecisionLog
	end  func() // of both, in order; once
	rest int    // until the worker is to draw again
}

// startLog runs a recorder of one worker with a log of that configuration. Of the services s0, s1 …
// the decision is by the index of the record.
func startLog(t *testing.T, c DecisionLogConfig) *logged {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	l := NewDecisionLog("ns1", "eu", "1.2.3", quiet)
	if err := l.Configure(c); err != nil {
		t.Fatal(err)
	}
	r := New(Options{Log: l, Memory: -1, Logger: quiet, Describe: func(q *Query) Facts {
		return Facts{
			Service: fmt.Sprintf("s%d.example.com", q.Service), Pool: fmt.Sprintf("p%d", q.Pool), Reason: []string{"policy", "failover"}[q.Reason], Plan: "abc",
			Answers: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, Place: Place{Country: "DE", City: "Frankfurt", ASN: 64496},
			Rejected: []Rejection{{"p9", "health: 0 of 2"}},
		}
	}})
	first, endFirst := context.WithCancel(context.Background())
	second, endSecond := context.WithCancel(context.Background())
	var one, two sync.WaitGroup
	one.Go(func() { r.Run(first) })
	two.Go(func() { l.Run(second) })
	end := sync.OnceFunc(func() {
		endFirst()
		one.Wait()
		endSecond()
		two.Wait()
	})
	t.Cleanup(end)
	return &logged{Recorder: r, log: l, end: end}
}

const startNS = int64(1_700_000_000_123_456_789)

// decide records a decision as a worker of the DNS server does.
func (l *logged) decide(service, pool int32, reason uint8, tcp bool) {
	w := l.Worker(0)
	drawn := false
	if l.rest--; w.Changed() || l.rest < 0 {
		drawn, l.rest = w.Draw()
	}
	if !drawn && !w.All() && !w.Notable(service, pool, reason, 0, 0) {
		return
	}
	q := w.Begin(drawn)
	if q == nil {
		return
	}
	q.Start, q.Decided, q.End = startNS, 1000, 2500
	q.Service, q.Pool, q.Reason, q.Revision, q.TTL = service, pool, reason, 12, 30
	q.Client, q.Source, q.Scope, q.HasECS = netip.MustParseAddr("198.51.100.0").As16(), 24, 20, true
	q.Resolver, q.ResolverPort, q.TCP = netip.MustParseAddr("192.0.2.53").As16(), 40000, tcp
	q.Server, q.ServerPort = netip.MustParseAddr("203.0.113.5").As16(), 53
	q.Qtype = 1
	q.NameLen = uint8(copy(q.Name[:], "\x02s0\x07example\x03com\x00"))
	w.Keep([]byte("the query"), []byte("the reply"))
	w.Commit()
}

// lines returns the lines of JSON in a file.
func readLines(t *testing.T, file string) (all []map[string]any) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var m map[string]any
		if err := json.Unmarshal(s.Bytes(), &m); err != nil {
			t.Fatalf("line %q: %v", s.Text(), err)
		}
		all = append(all, m)
	}
	return all
}

const wantLine = `{"time":"2023-11-14T22:13:20.123456789Z","level":"INFO","msg":"decision","node":"ns1","service":"s0.example.com","name":"s0.example.com","type":"A",` +
	`"client":"198.51.100.0/24","ecs":true,"resolver":"192.0.2.53","transport":"udp","pool":"p1","reason":"failover","rcode":"NOERROR",` +
	`"answers":["192.0.2.1","2001:db8::1"],"ttl":30,"scope":20,"revision":12,"plan":"abc","micros":2.5,"sample":1,"country":"DE","city":"Frankfurt","asn":64496,` +
	`"rejected":["p9: health: 0 of 2"]}` + "\n"

// TestDecisionLine: a line has every field.
func TestDecisionLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "decisions.log")
	l := startLog(t, DecisionLogConfig{Sample: 1, File: file})
	l.decide(0, 1, 1, false)
	l.end()
	got, err := os.ReadFile(file)
	if err != nil || string(got) != wantLine {
		t.Errorf("got %s, %v\nwant %s", got, err, wantLine)
	}
	if st := l.log.Stats(); st.Taken != 1 || st.Filtered != 0 || st.Lines.Written != 1 || st.Lines.Fault != "" || st.Dnstap.Written != 0 {
		t.Errorf("stats %+v, want one line", st)
	}
}

// TestDecisionFilters: each filter lets through what it names, and nothing else.
func TestDecisionFilters(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    DecisionLogConfig
		want int // of s0..s3 × p0, p1 × policy, failover
	}{
		{"all", DecisionLogConfig{}, 16},
		{"services", DecisionLogConfig{Services: []string{"s1.example.com", "s2.*"}}, 8},
		{"pools", DecisionLogConfig{Pools: []string{"p1"}}, 8},
		{"reasons", DecisionLogConfig{Reasons: []string{"failover"}}, 8},
		{"together", DecisionLogConfig{Services: []string{"s3*"}, Pools: []string{"p0"}, Reasons: []string{"policy", "failover"}}, 2},
		{"none", DecisionLogConfig{Services: []string{"other"}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "decisions.log")
			tt.c.Sample, tt.c.File = 1, file
			l := startLog(t, tt.c)
			for i := range 16 {
				l.decide(int32(i/4), int32(i/2%2), uint8(i%2), i%3 == 0)
			}
			l.end()
			if got := len(readLines(t, file)); got != tt.want {
				t.Errorf("%d lines, want %d", got, tt.want)
			}
			if st := l.log.Stats(); st.Taken != 16 || st.Filtered != uint64(16-tt.want) || st.Lines.Written != uint64(tt.want) {
				t.Errorf("stats %+v", st)
			}
		})
	}
}

// TestDecisionSample: the share of the decisions that are written is the sample, whatever else
// has them recorded; and with 0 there are none.
func TestDecisionSample(t *testing.T) {
	const n = 8000
	for _, sample := range []float64{0, 0.1, 1} {
		file := filepath.Join(t.TempDir(), "decisions.log")
		l := startLog(t, DecisionLogConfig{Sample: sample, File: file})
		for i := range n {
			before := l.Worker(0).full.Load()
			l.decide(0, 0, uint8(i%2), false) // half of them are notable
			for l.Worker(0).full.Load() != before {
				before = l.Worker(0).full.Load()
				time.Sleep(time.Millisecond) // until the drain has been there
				l.decide(0, 0, uint8(i%2), false)
			}
		}
		l.end()
		st := l.log.Stats()
		// Five standard deviations of a binomial distribution, and what was tried again.
		if got, want := float64(st.Taken), sample*n; got < want-5*40-1 || got > want+5*40+100 || sample == 0 && got != 0 {
			t.Errorf("sample %v: %v of %d decisions, want about %v", sample, got, n, want)
		}
		if kept := st.Lines.Written + st.Lines.Dropped[DropQueueFull]; kept != st.Taken || uint64(len(readLines(t, file))) != st.Lines.Written {
			t.Errorf("sample %v: %+v do not add up", sample, st)
		}
	}
}

// TestDecisionDnstap: the library's own reader understands the stream, and finds every field.
func TestDecisionDnstap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tap.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan []*dnstap.Dnstap, 1)
	go func() {
		defer close(got)
		c, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		r, err := dnstap.NewReader(c, &dnstap.ReaderOptions{Bidirectional: true, Timeout: 30 * time.Second})
		if err != nil {
			t.Error(err)
			return
		}
		var all []*dnstap.Dnstap
		for d := dnstap.NewDecoder(r, 1<<16); ; {
			m := new(dnstap.Dnstap)
			if d.Decode(m) != nil { // the end of the stream
				break
			}
			all = append(all, m)
		}
		got <- all
	}()
	l := startLog(t, DecisionLogConfig{Sample: 1, Dnstap: "unix:" + path})
	l.decide(0, 1, 1, false)
	l.decide(0, 1, 1, true)
	l.end()
	all := <-got
	if len(all) != 2 {
		t.Fatalf("got %d messages, want 2; %+v", len(all), l.log.Stats())
	}
	for i, protocol := range []dnstap.SocketProtocol{dnstap.SocketProtocol_UDP, dnstap.SocketProtocol_TCP} {
		extra := strings.Replace(strings.TrimSpace(wantLine), `"time":"2023-11-14T22:13:20.123456789Z","level":"INFO","msg":"decision","node":"ns1",`, "", 1)
		if protocol == dnstap.SocketProtocol_TCP {
			extra = strings.Replace(extra, "udp", "tcp", 1)
		}
		want := &dnstap.Dnstap{
			Type: dnstap.Dnstap_MESSAGE.Enum(), Identity: []byte("ns1"), Version: []byte("meridian 1.2.3"), Extra: []byte(extra),
			Message: &dnstap.Message{
				Type: dnstap.Message_AUTH_RESPONSE.Enum(), SocketFamily: dnstap.SocketFamily_INET.Enum(), SocketProtocol: protocol.Enum(),
				QueryAddress: []byte{192, 0, 2, 53}, QueryPort: proto.Uint32(40000), ResponseAddress: []byte{203, 0, 113, 5}, ResponsePort: proto.Uint32(53),
				QueryTimeSec: proto.Uint64(1_700_000_000), QueryTimeNsec: proto.Uint32(123_456_789), QueryMessage: []byte("the query"),
				ResponseTimeSec: proto.Uint64(1_700_000_000), ResponseTimeNsec: proto.Uint32(123_459_289), ResponseMessage: []byte("the reply"),
			},
		}
		if !proto.Equal(all[i], want) {
			t.Errorf("got %v\nwant %v", all[i], want)
		}
	}
	if st := l.log.Stats(); st.Dnstap.Written != 2 || st.Dnstap.Fault != "" {
		t.Errorf("stats %+v, want two messages", st)
	}
}

// TestDecisionDnstapFile: a file holds a stream of one direction; one that was there is kept.
func TestDecisionDnstapFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tap")
	if err := os.WriteFile(file, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := DecisionLogConfig{Sample: 1, Dnstap: "file:" + file}
	l := startLog(t, c)
	l.decide(0, 1, 0, false)
	if err := l.log.Configure(c); err != nil { // a reload goes on with the same file
		t.Fatal(err)
	}
	l.end()
	if old, err := os.ReadFile(file + ".1"); err != nil || string(old) != "older" {
		t.Errorf("got %q, %v; want the file that was there", old, err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := framestream.NewReader(f, &framestream.ReaderOptions{ContentTypes: [][]byte{dnstap.FSContentType}})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	n, err := r.ReadFrame(b)
	var m dnstap.Dnstap
	if err != nil || proto.Unmarshal(b[:n], &m) != nil || !bytes.Contains(m.Extra, []byte(`"reason":"policy"`)) {
		t.Errorf("got %v, %v", &m, err)
	}
	if _, err := r.ReadFrame(b); err == nil || err.Error() != "EOF" {
		t.Errorf("got %v after it, want the end of the stream", err)
	}
}

// TestDecisionNobodyListens: a socket without a reader costs decisions, which are counted, and
// nothing else; nor does a reader that does not read.
func TestDecisionNobodyListens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tap.sock")
	l := startLog(t, DecisionLogConfig{Sample: 1, Dnstap: "unix:" + path})
	for range 100 {
		l.decide(0, 0, 0, false)
	}
	l.end()
	st := l.log.Stats().Dnstap
	if st.Written != 0 || st.Dropped[DropNotConnected] != 100 || !strings.Contains(st.Fault, "no such file") {
		t.Errorf("nobody listens: got %+v", st)
	}

	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // never accepts: the handshake times out
	l = startLog(t, DecisionLogConfig{Sample: 1, Dnstap: "unix:" + path})
	const n = decisionQueue * 2
	for i := 0; i < n; i++ {
		before := l.Worker(0).full.Load()
		if l.decide(0, 0, 0, false); l.Worker(0).full.Load() != before {
			time.Sleep(time.Millisecond) // until the drain has been there
			i--
		}
	}
	l.end()
	st = l.log.Stats().Dnstap
	if sum := st.Dropped[DropNotConnected] + st.Dropped[DropQueueFull]; st.Written != 0 || sum != n {
		t.Errorf("nobody reads: got %+v, want %d dropped", st, n)
	}
}

// TestDecisionConfigure: a new configuration takes over without a loss; a file that was moved
// away is made anew; one that cannot be opened changes nothing.
func TestDecisionConfigure(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	c := DecisionLogConfig{Sample: 1, File: one}
	l := startLog(t, c)
	drained := func() {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); l.Stats().Waiting > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the ring is not drained")
			}
		}
	}
	l.decide(0, 0, 0, false)
	drained()
	if err := os.Rename(one, one+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.log.Configure(c); err != nil {
		t.Fatal(err)
	}
	l.decide(0, 1, 0, false)
	drained()
	for _, bad := range []DecisionLogConfig{{Sample: 1, File: filepath.Join(dir, "no", "such")}, {Sample: 1, File: two, Dnstap: "tcp:127.0.0.1"}, {Sample: 1, Dnstap: "file:" + filepath.Join(dir, "no", "such")}} {
		if err := l.log.Configure(bad); err == nil {
			t.Errorf("%+v: no error", bad)
		}
	}
	l.decide(0, 2, 0, false)
	drained()
	if err := l.log.Configure(DecisionLogConfig{}); err != nil {
		t.Fatal(err)
	}
	l.decide(0, 3, 0, false)
	drained()
	l.end()
	if got := readLines(t, one+".1"); len(got) != 1 || got[0]["pool"] != "p0" {
		t.Errorf("before it was moved: got %v", got)
	}
	if got := readLines(t, one); len(got) != 2 || got[0]["pool"] != "p1" || got[1]["pool"] != "p2" {
		t.Errorf("after: got %v, want p1 and p2", got)
	}
	if err := l.log.Configure(c); err == nil {
		t.Error("configured after its end: no error")
	}
}

// TestDecisionAllocs: the worker's side allocates nothing once its slots have room.
func TestDecisionAllocs(t *testing.T) {
	l := NewDecisionLog("", "", "", nil)
	l.bound.Store(1 << 63)
	l.wires.Store(true)
	r := New(Options{Log: l, RingSize: 16, Memory: -1})
	h := &logged{Recorder: r, log: l}
	w := r.Worker(0)
	for range 64 {
		h.decide(0, 0, 0, false)
		w.drain(func(*Query, *packets) {})
	}
	n := testing.AllocsPerRun(100, func() {
		h.decide(0, 0, 0, false)
		w.drain(func(q *Query, p *packets) {
			if query, reply := p.kept(); string(query) != "the query" || string(reply) != "the reply" || !q.Logged {
				t.Errorf("kept %q, %q", query, reply)
			}
		})
	})
	if n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
