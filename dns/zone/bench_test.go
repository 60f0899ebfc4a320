package zone

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"syscall"
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

// cpuTime returns the CPU time of the process so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkParse reads zones of 3, about 1,000 and about 1,000,000 RRsets. The CPU time has that of
// the garbage collector in it, and holds on a machine that has other work.
func BenchmarkParse(b *testing.B) {
	for _, n := range []int{0, 1_000, 1_000_000 * 10 / 12} {
		text := bigZone(n)
		b.Run(fmt.Sprintf("names=%d", n), func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&before)
			var z *Zone
			cpu := cpuTime(b)
			for b.Loop() {
				z = parseBig(b, text, "example.com")
			}
			cpu = cpuTime(b) - cpu
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&after)
			_, sets, _ := z.Size()
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(sets), "heap-B/RRset")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(sets), "ns/RRset")
			b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N)/float64(sets), "cpu-ns/RRset")
			runtime.KeepAlive(text)
		})
	}
}

func parseBig(b *testing.B, text []byte, origin string) *Zone {
	b.Helper()
	z, _, err := Parse(bytes.NewReader(text), "", origin)
	if err != nil {
		b.Fatal(err)
	}
	return z
}

// BenchmarkNewSet puts 100,000 zones of 4 RRsets together, and gives them other services.
func BenchmarkNewSet(b *testing.B) {
	text := bigZone(0)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	zones := make([]*Zone, 100_000)
	for i := range zones {
		zones[i] = parseBig(b, text, fmt.Sprintf("zone%d.example", i))
	}
	set := mustSet(b, zones, nil)
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.Run("zones=100000", func(b *testing.B) {
		for b.Loop() {
			mustSet(b, zones, nil)
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(len(zones)), "heap-B/zone")
	})
	b.Run("services=1000", func(b *testing.B) {
		services := make(map[string]int32)
		for i := range int32(1000) {
			services[fmt.Sprintf("www.zone%d.example", i*7)] = i
		}
		for b.Loop() {
			if _, err := set.WithServices(services); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("resolve", func(b *testing.B) {
		names := make([][]byte, 1<<13)
		for i := range names {
			names[i] = wire(b, fmt.Sprintf("ns1.zone%d.example", i*11))
		}
		var r Result
		i := 0
		for b.Loop() {
			if set.Resolve(names[i%len(names)], dns.TypeA, &r); r.Outcome != Hit {
				b.Fatal(describe(&r))
			}
			i++
		}
	})
}

// BenchmarkResolve asks one zone of 110,000 names and 120,000 RRsets. The best case is a name
// that is steered, the worst a miss of many labels.
func BenchmarkResolve(b *testing.B) {
	set := mustSet(b, []*Zone{parseBig(b, bigZone(100_000), "example.com")}, map[string]int32{"www.example.com": 0})
	for _, bb := range []struct {
		name, format string
		want         Outcome
	}{
		{"steered", "www.example.com", Steered},
		{"static", "host%07d.example.com", Hit},
		{"nxdomain", "nohost%d.example.com", NameError},
		{"referral", "www.cut%d.example.com", Referral},
		{"nxdomain-deep", "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x%d.example.com", NameError},
		{"not-ours", "www.example%d.org", NotOurs},
	} {
		b.Run(bb.name, func(b *testing.B) {
			names := make([][]byte, 1<<13)
			for i := range names {
				names[i] = wire(b, strings.ReplaceAll(bb.format, "%07d", fmt.Sprintf("%07d", i)))
				if strings.Contains(bb.format, "%d") {
					names[i] = wire(b, fmt.Sprintf(bb.format, i))
				}
			}
			var r Result
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				if set.Resolve(names[i%len(names)], dns.TypeA, &r); r.Outcome != bb.want {
					b.Fatal(describe(&r))
				}
				i++
			}
		})
	}
}
