package zone

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// bigZone returns the text of a zone of n names with one A each, a delegation with glue for
// every tenth of them beside, and a wildcard.
func bigZone(n int) []byte {
	var b bytes.Buffer
	b.WriteString("$TTL 300\n@ SOA ns1 hostmaster 1 2h 15m 2w 5m\n NS ns1\nns1 A 192.0.2.53\n*.w TXT w\n")
	for i := range n {
		fmt.Fprintf(&b, "host%07d A 10.%d.%d.%d\n", i, i>>16&255, i>>8&255, i&255)
	}
	for i := range n / 10 {
		fmt.Fprintf(&b, "cut%d NS ns.cut%d\nns.cut%d A 192.0.2.1\n", i, i, i)
	}
	return b.Bytes()
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{0, 1_000, 1_000_000 * 10 / 12} {
		text := bigZone(n)
		b.Run(fmt.Sprintf("names=%d", n), func(b *testing.B) {
			var z *Zone
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			start := time.Now()
			for b.Loop() {
				var err error
				if z, _, err = Parse(bytes.NewReader(text), "", "example.com"); err != nil {
					b.Fatal(err)
				}
			}
			elapsed := time.Since(start)
			runtime.GC()
			runtime.ReadMemStats(&after)
			_, sets, _ := z.Size()
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(sets), "heap-B/RRset")
			b.ReportMetric(float64(elapsed.Nanoseconds())/float64(b.N)/float64(sets), "ns/RRset")
			runtime.KeepAlive(z)
		})
	}
}

func BenchmarkResolve(b *testing.B) {
	z, _, err := Parse(bytes.NewReader(bigZone(100_000)), "", "example.com")
	if err != nil {
		b.Fatal(err)
	}
	zones := []*Zone{z}
	for i := range 1000 {
		small, _, err := Parse(bytes.NewReader(bigZone(0)), "", fmt.Sprintf("zone%d.example.net", i))
		if err != nil {
			b.Fatal(err)
		}
		zones = append(zones, small)
	}
	set, err := NewSet(zones, map[string]int32{"www.example.com": 0})
	if err != nil {
		b.Fatal(err)
	}
	for _, bb := range []struct {
		name, format string
		qtype        uint16
	}{
		{"static", "host%07d.example.com", dns.TypeA},
		{"steered", "www.example.com", dns.TypeA},
		{"nxdomain", "nohost%d.example.com", dns.TypeA},
		{"referral", "www.cut%d.example.com", dns.TypeA},
		{"deep", "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x%d.example.com", dns.TypeA},
		{"notours", "www.example%d.org", dns.TypeA},
	} {
		b.Run(bb.name, func(b *testing.B) {
			names := make([][]byte, 8192)
			for i := range names {
				text := bb.format
				if bytes.ContainsRune([]byte(text), '%') {
					text = fmt.Sprintf(text, i)
				}
				names[i], _ = FromString(text)
			}
			var r Result
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				set.Resolve(names[i%len(names)], bb.qtype, &r)
				i++
			}
		})
	}
}
