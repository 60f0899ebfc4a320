package dns

import (
	"bytes"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/tracing"
)

// withOption adds an EDNS option of local use.
func withOption(code uint16, data []byte) func(*miekg.Msg) {
	return func(m *miekg.Msg) {
		if m.IsEdns0() == nil {
			m.SetEdns0(1232, false)
		}
		m.IsEdns0().Option = append(m.IsEdns0().Option, &miekg.EDNS0_LOCAL{Code: code, Data: data})
	}
}

// optionsOf returns the data of the TRACEPARENT options of a reply.
func optionsOf(t *testing.T, reply []byte) (found [][]byte) {
	t.Helper()
	m := unpack(t, reply)
	if m.IsEdns0() == nil {
		return nil
	}
	for _, o := range m.IsEdns0().Option {
		if l, ok := o.(*miekg.EDNS0_LOCAL); ok && l.Code == tracing.EDNSTraceParent {
			found = append(found, l.Data)
		}
	}
	return found
}

// following returns an answerer that follows traces from prefix and writes answer ids.
func following(t *testing.T, tracer TraceWorker, parents *tracing.Parents, ids *tracing.AnswerIDs) *answerer {
	t.Helper()
	a := newAnswerer(new(counters), tracer, DefaultMaxUDP, func(reason any, packet []byte) { t.Errorf("panic %v answering %x", reason, packet) })
	a.start = time.Unix(1_700_000_050, 0)
	a.follow = newFollower(parents, ids)
	return a
}

// A query's trace context goes into its record, on both paths; whoever asks for the ids is
// answered with those of the record, and nobody else with any option.
func TestTraceParent(t *testing.T) {
	d := loadWorld(t).data(t)
	trace, span := tracing.TraceID{1, 15: 2}, tracing.SpanID{3}
	full := tracing.AppendTraceParent(nil, trace, span)
	for _, tc := range []struct {
		name    string
		options [][]byte
		from    string
		want    tracing.Ask
		tell    bool
		counted tracing.ParentStats
	}{
		{"none", nil, "192.0.2.53", tracing.AskNothing, false, tracing.ParentStats{}},
		{"child", [][]byte{full}, "192.0.2.53", tracing.AskTrace, false, tracing.ParentStats{Taken: 1}},
		{"not sampled", [][]byte{append(bytes.Clone(full[:26]), 0)}, "192.0.2.53", tracing.AskNone, false, tracing.ParentStats{Taken: 1}},
		{"tell me", [][]byte{{}}, "192.0.2.53", tracing.AskTrace, true, tracing.ParentStats{Taken: 1}},
		{"the first of two", [][]byte{full, {}}, "192.0.2.53", tracing.AskTrace, false, tracing.ParentStats{Taken: 1}},
		{"malformed", [][]byte{full[:5]}, "192.0.2.53", tracing.AskNothing, false, tracing.ParentStats{Malformed: 1}},
		{"may not ask", [][]byte{{}}, "203.0.113.9", tracing.AskNothing, false, tracing.ParentStats{Refused: 1}},
	} {
		for _, path := range []string{"fast", "full"} {
			t.Run(tc.name+", "+path, func(t *testing.T) {
				tracer, parents := &ring{room: 1}, tracing.NewParents([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
				a := following(t, tracer, parents, nil)
				changes := []func(*miekg.Msg){withECS("198.51.100.0/24")}
				for _, o := range tc.options {
					changes = append(changes, withOption(tracing.EDNSTraceParent, o))
				}
				reply := a.serve(d, ask(t, "www.example.com", "A", changes...), netip.MustParseAddr(tc.from), path == "full", make([]byte, maxMessage))
				if parents.Stats() != tc.counted {
					t.Errorf("counted %+v, want %+v", parents.Stats(), tc.counted)
				}
				got := tracer.records[0]
				if got.Asked != tc.want {
					t.Errorf("asked %v, want %v", got.Asked, tc.want)
				}
				told := optionsOf(t, reply)
				switch {
				case tc.tell:
					if len(told) != 1 || got.Trace.IsZero() || !bytes.Equal(told[0], tracing.AppendTraceParent(nil, got.Trace, got.Span)) {
						t.Errorf("told %x, want the ids %v %v of the record", told, got.Trace, got.Span)
					}
				case len(told) > 0:
					t.Errorf("told %x, want no option", told)
				case tc.want != tracing.AskNothing && (got.Trace != trace || got.Parent != span || !got.Span.IsZero()):
					t.Errorf("trace %v, parent %v, span %v, want %v, %v, none", got.Trace, got.Parent, got.Span, trace, span)
				case tc.want == tracing.AskNothing && !got.Trace.IsZero():
					t.Errorf("trace %v, want none", got.Trace)
				}
				m := unpack(t, reply)
				if m.Rcode != miekg.RcodeSuccess || len(m.Answer) != 1 {
					t.Errorf("answer %v, want it as without the option", m)
				}
			})
		}
	}
}

// The next query on the same answerer has nothing of the last one's trace.
func TestTraceParentIsForgotten(t *testing.T) {
	d := loadWorld(t).data(t)
	tracer := &ring{room: 2}
	a := following(t, tracer, tracing.NewParents([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}), nil)
	buf := make([]byte, maxUDPBuffer)
	a.serve(d, ask(t, "www.example.com", "A", withOption(tracing.EDNSTraceParent, nil)), resolver, false, buf)
	reply := a.serve(d, ask(t, "www.example.com", "A", func(m *miekg.Msg) { m.SetEdns0(1232, false) }), resolver, false, buf)
	if got := tracer.records[1]; got.Asked != tracing.AskNothing || !got.Trace.IsZero() || len(optionsOf(t, reply)) != 0 {
		t.Errorf("record %+v, told %x, want nothing of the query before", got, optionsOf(t, reply))
	}
}

// The option is never what makes a reply too long without TC: its room is kept.
func TestTraceParentFits(t *testing.T) {
	d := loadWorld(t).data(t)
	a := following(t, &ring{room: 1}, tracing.NewParents([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}), nil)
	for size := uint16(512); size < 530; size++ {
		reply := a.serve(d, ask(t, "www.example.com", "A", func(m *miekg.Msg) { m.SetEdns0(size, false) },
			withOption(tracing.EDNSTraceParent, nil)), resolver, false, make([]byte, maxUDPBuffer))
		if len(reply) > int(size) || len(optionsOf(t, reply)) != 1 {
			t.Fatalf("reply of %d octets to a client of %d, options %x", len(reply), size, optionsOf(t, reply))
		}
	}
}

// AAAA answers of a pool that wants ids carry them, the same for everybody of an epoch; A
// answers stay as they are, and the record knows both.
func TestAnswerIDs(t *testing.T) {
	w := loadWorld(t)
	for name, p := range w.file.Pools {
		p.AnswerIDs = true
		w.file.Pools[name] = p
	}
	d := w.data(t)
	ids, err := tracing.NewAnswerIDs(time.Minute, []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	signer := ids.Signer()
	tracer := &ring{room: 100}
	a := following(t, tracer, nil, ids)
	answer := func(qtype, ecs string) []netip.Addr {
		t.Helper()
		var out []netip.Addr
		m := unpack(t, a.serve(d, ask(t, "www.example.com", qtype, withECS(ecs)), resolver, false, make([]byte, maxUDPBuffer)))
		for _, rr := range m.Answer {
			switch rr := rr.(type) {
			case *miekg.A:
				addr, _ := netip.AddrFromSlice(rr.A.To4())
				out = append(out, addr)
			case *miekg.AAAA:
				addr, _ := netip.AddrFromSlice(rr.AAAA)
				out = append(out, addr)
			}
		}
		return out
	}
	first := answer("AAAA", "198.51.100.0/24")
	if len(first) == 0 {
		t.Fatal("no AAAA answer: the world has none to test with")
	}
	id, _, v := signer.Read(first[0])
	if v != tracing.Genuine || tracer.records[0].Decision != id {
		t.Fatalf("%v carries %v (%v), recorded %v, want the same", first[0], id, v, tracer.records[0].Decision)
	}
	plain := d.Snapshot.Pools[tracer.records[0].Pool].Endpoints
	for _, addr := range first {
		found := false
		for _, e := range plain {
			found = found || e.Addr.Is6() && netip.PrefixFrom(e.Addr, 64).Masked().Contains(addr)
		}
		if !found {
			t.Errorf("%v is in the /64 of no endpoint of %v", addr, plain)
		}
	}
	if again := answer("AAAA", "198.51.100.64/26"); again[0] != first[0] {
		t.Errorf("another client of the same answer: %v, want %v", again, first)
	}
	v4 := answer("A", "198.51.100.0/24")
	got := tracer.records[2]
	if len(v4) == 0 || !v4[0].Is4() || got.Decision != id || int(got.GivenLen) != min(len(v4), len(got.Given)) || got.Given[0] != v4[0].As4() {
		t.Errorf("A answer %v, recorded %v %v, want the id %v and the addresses", v4, got.Decision, got.Given[:got.GivenLen], id)
	}
	a.start = a.start.Add(time.Minute)
	if next := answer("AAAA", "198.51.100.0/24"); next[0] == first[0] {
		t.Errorf("an epoch later: %v, want another address", next)
	}

	for name, p := range w.file.Pools {
		p.AnswerIDs = false
		w.file.Pools[name] = p
	}
	w.prev = nil // it was built from what is altered here
	d = w.data(t)
	for _, addr := range answer("AAAA", "198.51.100.0/24") {
		if _, _, v := signer.Read(addr); v != tracing.Plain {
			t.Errorf("%v of a pool that wants no ids: %v, want as configured", addr, v)
		}
	}
}

// Addresses of one /64 become one answer.
func TestAnswerIDsOfOneNetwork(t *testing.T) {
	text := `
node: {name: n, site: eu, dns: ["127.0.0.1:5300"]}
sites: {eu: {lat: 50, lon: 8}}
zones:
  - name: example.com
    records: |
      @ 60 IN SOA ns hostmaster 1 60 60 60 60
      @ 60 IN NS ns
      ns 60 IN A 192.0.2.1
pools:
  p: {site: eu, answerIds: true, endpoints: [{address: "2001:db8:2::1"}, {address: "2001:db8:2::2"}, {address: "2001:db8:3::1"}]}
services:
  www.example.com: {ttl: 30s, pools: {p: {}}, policy: [health]}
`
	d := parseWorld(t, text).data(t)
	ids, err := tracing.NewAnswerIDs(time.Minute, []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	a := following(t, &ring{room: 9}, nil, ids)
	m := unpack(t, a.serve(d, ask(t, "www.example.com", "AAAA"), resolver, false, make([]byte, maxUDPBuffer)))
	if len(m.Answer) != 2 || strings.HasSuffix(m.Answer[0].String(), "::1") {
		t.Errorf("answers %v, want one of each /64, with an id", m.Answer)
	}
}

// Following traces and writing ids allocates nothing.
func TestFollowerDoesNotAllocate(t *testing.T) {
	w := loadWorld(t)
	for name, p := range w.file.Pools {
		p.AnswerIDs = true
		w.file.Pools[name] = p
	}
	d := w.data(t)
	ids, err := tracing.NewAnswerIDs(time.Minute, []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	a := following(t, tracing.New(tracing.Options{}).Worker(0), tracing.NewParents([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}), ids)
	pkt, buf := ask(t, "www.example.com", "AAAA", withECS("198.51.100.0/24"), withOption(tracing.EDNSTraceParent, nil)), make([]byte, maxUDPBuffer)
	if n := testing.AllocsPerRun(200, func() { a.serve(d, pkt, resolver, false, buf) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// dig can have a query traced, as the documentation shows.
func TestDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	needs(t, err == nil, "dig")
	r := tracing.New(tracing.Options{Workers: 5, Interesting: -1})
	parents := tracing.NewParents(tracing.Loopback)
	s := serve(t, Options{Trace: func(i int) TraceWorker { return r.Worker(i) }, Parents: parents})
	defer s.stop(t)
	ask := func(option string) string {
		t.Helper()
		at := s.Addrs()[0]
		out, err := exec.Command(dig, "@"+at.Addr().String(), "-p", strconv.Itoa(int(at.Port())), "www.example.com", "+ednsopt="+option).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "status: NOERROR") {
			t.Fatalf("dig +ednsopt=%s: %v\n%s", option, err, out)
		}
		return string(out)
	}
	if out := ask("65500:00004bf92f3577b34da6a3ce929d0e0e473600f067aa0ba902b701"); strings.Contains(out, "OPT=65500") {
		t.Errorf("dig with a context:\n%s\nwant no option in the answer", out)
	}
	if out := ask("65500"); !regexp.MustCompile(`OPT=65500: 00 00 ([0-9a-f]{2} ){24}01`).MatchString(out) {
		t.Errorf("dig with an empty option:\n%s\nwant the ids of the trace", out)
	}
	ask("65500:0102")
	if got := parents.Stats(); got != (tracing.ParentStats{Taken: 2, Malformed: 1}) {
		t.Errorf("counted %+v, want two followed and one malformed", got)
	}
}
