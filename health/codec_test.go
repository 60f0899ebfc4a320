package health

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
)

func sampleReport(n int) Report {
	r := Report{Node: "ns1", Heading: Heading{
		Version: Version{Epoch: 1_790_000_000_000_000, Seq: 1 << 20}, Site: "eu-west", Info: "plan 1f2e rev 12",
		Period: 2 * time.Second, At: epoch.Add(-3 * time.Millisecond), Failing: 7, List: 1 << 60, Abstains: n%2 == 1, Blind: n%3 == 1,
	}}
	for i := range n {
		o := Observation{
			ID:      gslb.EndpointID{Pool: "gfe-" + string(rune('a'+i/7%26)), Addr: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})},
			Version: Version{r.Heading.Version.Epoch, uint64(1<<20 - i)},
			Up:      i%2 == 0, Flipping: i%3 == 0, Class: Class(i % int(numClasses)),
			Latency: time.Duration(i) * time.Microsecond, Score: uint8(i % 101), At: epoch.Add(-time.Duration(i) * time.Millisecond),
		}
		if i%5 == 1 {
			o.ID.Addr = netip.MustParseAddr("2001:db8::1")
			o.Detail = "status 503, expected 200 or 204"
		}
		o.Told = o.Version
		r.Observations = append(r.Observations, o)
	}
	return r
}

func TestReportRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 2, 40, 700} {
		want := sampleReport(n)
		want.Heading.Leaving = n == 0
		messages := encodeReport(&want, epoch, maxPacket)
		got := Report{Node: want.Node, Heading: want.Heading}
		for _, m := range messages {
			if len(m) > maxPacket {
				t.Errorf("%d observations: a message of %d octets, want at most %d", n, len(m), maxPacket)
			}
			r, err := decodeMessage(m, epoch)
			if err != nil {
				t.Fatalf("%d observations: %v", n, err)
			}
			if r.Node != want.Node || r.Heading != want.Heading {
				t.Errorf("got heading %+v, want %+v", r.Heading, want.Heading)
			}
			got.Observations = append(got.Observations, r.Observations...)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d observations: got %+v\nwant %+v", n, got, want)
		}
	}
}

// TestReportAges wants an age to survive relays between clocks that are a day apart.
func TestReportAges(t *testing.T) {
	r := sampleReport(1)
	r.Observations[0].At = epoch.Add(-7 * time.Second)
	r2, err := decodeMessage(encodeReport(&r, epoch, maxPacket)[0], epoch.Add(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r2.Observations[0].At, epoch.Add(24*time.Hour-7*time.Second); !got.Equal(want) {
		t.Errorf("got made at %v, want %v", got, want)
	}
}

// TestEncodeOutOfBounds wants what is too long to be cut, and what cannot be said left out.
func TestEncodeOutOfBounds(t *testing.T) {
	long := strings.Repeat("ä", 300)
	r := Report{Node: long, Heading: Heading{Site: long, Info: long, Period: time.Hour, Version: Version{Epoch: 1}, At: epoch.Add(time.Hour)}}
	r.Observations = []Observation{
		{ID: gslb.EndpointID{Pool: strings.Repeat("p", 256), Addr: idA.Addr}, Version: Version{Epoch: 1}},
		{ID: gslb.EndpointID{Pool: "p", Addr: netip.MustParseAddr("fe80::1%eth0")}, Version: Version{Epoch: 1}},
		{ID: idA, Version: Version{Epoch: 1}, Detail: "a\x1b[31m" + long + "\xff", Latency: 100 * time.Hour, At: epoch.Add(time.Hour)},
	}
	r2, err := decodeMessage(encodeReport(&r, epoch, maxPacket)[0], epoch)
	if err != nil || len(r2.Observations) != 1 {
		t.Fatalf("got %+v, %v, want one observation", r2, err)
	}
	got := r2
	if want := strings.Repeat("ä", 64); got.Node != want || got.Heading.Site != want || got.Heading.Info != want {
		t.Errorf("got %q, %q, %q, want %q", got.Node, got.Heading.Site, got.Heading.Info, want)
	}
	if got.Heading.Period != maxPeriod || !got.Heading.At.Equal(epoch) || got.Observations[0].Latency != time.Hour {
		t.Errorf("got %+v", got)
	}
	if d := got.Observations[0].Detail; len(d) > maxDetail || !strings.HasPrefix(d, "a [31mä") {
		t.Errorf("got detail %q", d)
	}
}

func TestDecodeFaults(t *testing.T) {
	r := sampleReport(3)
	good := encodeReport(&r, epoch, maxPacket)[0]
	mutate := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for _, tc := range []struct {
		name string
		in   []byte
		want error // nil: any
	}{
		{"empty", nil, errTruncated},
		{"one octet", []byte{wireVersion}, errTruncated},
		{"later version", mutate(func(b []byte) []byte { b[0]++; return b }), errVersion},
		{"unknown kind", mutate(func(b []byte) []byte { b[1] = 9; return b }), errVersion},
		{"cut", good[:len(good)-1], errTruncated},
		{"unknown flags of a report", []byte{wireVersion, kindReport, 0x80, 1, 'n', 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, nil},
		{"no node", mutate(func(b []byte) []byte { return append([]byte{wireVersion, kindReport, 0, 0}, b[7:]...) }), nil},
		{"node over its bound", append([]byte{wireVersion, kindReport, 0, maxName + 1}, bytes.Repeat([]byte("n"), 200)...), errOversize},
		{"not UTF-8", []byte{wireVersion, kindReport, 0, 1, 0xff, 0, 0, 0, 0, 0, 0}, nil},
		{"epoch over its bound", []byte{wireVersion, kindReport, 0, 1, 'n', 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0}, errOversize},
		{"endless integer", append([]byte{wireVersion, kindReport, 0, 1, 'n', 0, 0}, bytes.Repeat([]byte{0xff}, 20)...), errOversize},
		{"unknown flags", []byte{wireVersion, kindReport, 0, 1, 'n', 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80}, nil},
		{"no pool", []byte{wireVersion, kindReport, 0, 1, 'n', 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1, 0, 0, 0, 0}, nil},
		{"empty pool", []byte{wireVersion, kindReport, 0, 1, 'n', 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, flagPool, 0, 192, 0, 2, 1, 0, 0, 0, 0}, nil},
		{"unknown class", []byte{wireVersion, kindReport, 0, 1, 'n', 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, flagPool, 1, 'p', 192, 0, 2, 1, 99, 0, 0, 0, 0}, nil},
		{"older than the first", []byte{wireVersion, kindReport, 0, 1, 'n', 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, flagPool, 1, 'p', 192, 0, 2, 1, 0, 0, 2, 0, 0}, errOversize},
		{"message over its bound", append(bytes.Clone(good), make([]byte, maxMessage)...), errOversize},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r2, err := decodeMessage(tc.in, epoch)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if !reflect.DeepEqual(r2, Report{}) {
				t.Errorf("got %+v with an error, want nothing", r2)
			}
		})
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for _, n := range []int{0, 1, 5, 60} {
		r := sampleReport(n)
		for _, m := range encodeReport(&r, epoch, maxPacket) {
			f.Add(m)
		}
		for _, m := range encodeBits(&r, bytes.Repeat([]byte{markKnown | markUp}, n), epoch, maxPacket) {
			f.Add(m)
		}
		for _, m := range encodeNote(&r, bytes.Repeat([]byte("note"), 100*n+1), epoch, epoch, maxPacket) {
			f.Add(m)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeMessage(b, epoch)
		if err != nil {
			return
		}
		if r.Node == "" || len(r.Node) > maxName {
			t.Errorf("node %q", r.Node)
		}
		new(Table).Merge(r)
		// What was read can be said again, and is the same then.
		messages := encodeReport(&r, epoch, maxPacket)
		if r.Part != nil {
			var n notes
			n.take(r.Heading.Version, r.Part)
			if r.Part.Count == 1 && !bytes.Equal(n.whole, r.Part.Data) {
				t.Fatalf("got note %q, want %q", n.whole, r.Part.Data)
			}
		}
		if r.Bits != nil {
			messages = encodeBits(&r, append(make([]byte, r.Bits.First), r.Bits.marks()...), epoch, maxMessage+r.Bits.First)
		}
		var again []Observation
		for _, m := range messages {
			got, err := decodeMessage(m, epoch)
			if err != nil {
				t.Fatalf("own message: %v", err)
			}
			if got.Heading != r.Heading {
				t.Fatalf("got heading %+v, want %+v", got.Heading, r.Heading)
			}
			again = append(again, got.Observations...)
			if r.Bits != nil && !bytes.Equal(got.Bits.marks()[r.Bits.First:], r.Bits.marks()) {
				t.Fatalf("got marks %v, want %v", got.Bits.marks(), r.Bits.marks())
			}
		}
		if !reflect.DeepEqual(again, r.Observations) {
			t.Fatalf("got %+v, want %+v", again, r.Observations)
		}
	})
}

func FuzzHear(f *testing.F) {
	r := sampleReport(4)
	for _, b := range encodeReport(&r, epoch, maxPacket) {
		e := seal(nil, b)
		f.Add(e.append(nil))
		bundle, _ := appendBundle(nil, e.append(nil), maxState)
		f.Add(bundle)
	}
	f.Add(appendDigest(nil, "ns1", []known{{"ns2", Version{1, 2}, time.Second}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := New(Options{Node: "ns9"})
		m.SetTargets([]Target{fakeTarget(0)})
		m.hear(b)
		if n := len(m.table.Names()); n > 1+len(b)/64 {
			t.Errorf("%d nodes of %d octets", n, len(b))
		}
	})
}

func FuzzReadMeta(f *testing.F) {
	f.Add((&delegate{site: "eu-west", role: "full"}).NodeMeta(512))
	f.Add([]byte{1, 200})
	f.Fuzz(func(t *testing.T, b []byte) {
		if site, role := readMeta(b); len(site) > maxSite || len(role) > maxSite {
			t.Errorf("got %q, %q", site, role)
		}
	})
}

func BenchmarkDecodeReport(b *testing.B) {
	r := sampleReport(60)
	m := encodeReport(&r, epoch, maxPacket)[0]
	b.SetBytes(int64(len(m)))
	for b.Loop() {
		if _, err := decodeMessage(m, epoch); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVotes(b *testing.B) { // 20 vantages of one endpoint
	var table Table
	for i := range 20 {
		r := sampleReport(50)
		r.Node = string(rune('a' + i))
		table.Merge(r)
	}
	id := sampleReport(1).Observations[0].ID
	last := gslb.Unknown
	for b.Loop() {
		votes, _ := table.Votes(id, time.Second, epoch)
		last = Judge(defaultRule, last, votes).Verdict
	}
	if last != gslb.Up {
		b.Fatalf("got %v, want up", last)
	}
}
