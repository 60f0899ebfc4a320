package gslb

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/testdata/geo/makedb"
)

// syntheticMap is a random world of that many networks.
func syntheticMap(tb testing.TB, networks int) *geo.Map {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "city.mmdb")
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if err := makedb.Write(f, makedb.DefaultType, makedb.Synthetic(networks, 1)); err != nil {
		tb.Fatal(err)
	}
	m, err := geo.Open(geo.Config{City: path})
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// fleet is a plan of services over pools around the world: a third of the services take all
// pools, the others one of eight regional subsets, and policies differ in what is shared.
func fleet(services, pools int) Inputs {
	rng := rand.New(rand.NewPCG(1, 2))
	o := &config.Objects{
		Sites: map[string]config.Site{}, Pools: map[string]config.Pool{}, Services: map[string]config.Service{},
		Probes: map[string]config.Probe{"t": {TCP: &config.TCPProbe{Port: 80}}},
	}
	in := Inputs{Revision: 1, Objects: o, Verdicts: map[EndpointID]Verdict{}, Now: now}
	var names []string
	for i := range pools {
		name := fmt.Sprintf("pool-%03d", i)
		names = append(names, name)
		o.Sites[name] = config.Site{Lat: rng.Float64()*120 - 60, Lon: rng.Float64()*360 - 180, Continent: []string{"EU", "NA", "AS"}[i%3]}
		p := config.Pool{Site: name, Probe: "t"}
		for j := range 2 {
			a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(j + 1)})
			p.Endpoints = append(p.Endpoints, config.Endpoint{Address: a})
			in.Verdicts[EndpointID{name, a}] = Up
		}
		o.Pools[name] = p
	}
	for i := range services {
		svc := config.Service{Steering: config.Steering{Pools: map[string]config.PoolRef{}}}
		for j, name := range names {
			if i%3 == 0 || j%8 == i%8 {
				svc.Pools[name] = config.PoolRef{}
			}
		}
		svc.Policy = []config.Stage{health, nearest, {Select: &config.SelectStage{Answers: 1 + i%4}}}
		o.Services[fmt.Sprintf("s%04d.example.com", i)] = svc
	}
	return in
}

// BenchmarkScale compiles fleets, and again after one verdict flips: how time and memory
// grow with services, pools and networks. The first row is the largest of each.
func BenchmarkScale(b *testing.B) {
	type size struct{ services, pools, networks int }
	rows := []size{
		{1000, 100, 1_000_000},
		{1000, 100, 300_000}, {1000, 100, 100_000},
		{1000, 30, 300_000}, {1000, 10, 300_000},
		{300, 100, 300_000}, {100, 100, 300_000},
	}
	worlds := map[int]*geo.Map{}
	for _, r := range rows {
		b.Run(fmt.Sprintf("services=%d/pools=%d/networks=%d", r.services, r.pools, r.networks), func(b *testing.B) {
			m := worlds[r.networks]
			if m == nil {
				m = syntheticMap(b, r.networks)
				worlds[r.networks] = m
			}
			in := fleet(r.services, r.pools)
			in.Geo = m
			var compile, flip, cpu, flipCPU time.Duration
			var held uint64
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				start, used := time.Now(), cpuUsed(b)
				s, err := Build(nil, in)
				if err != nil {
					b.Fatal(err)
				}
				compile += time.Since(start)
				cpu += cpuUsed(b) - used
				runtime.GC()
				runtime.ReadMemStats(&after)
				held += after.HeapAlloc - min(before.HeapAlloc, after.HeapAlloc)
				next := in
				next.Verdicts = map[EndpointID]Verdict{}
				for id, v := range in.Verdicts {
					next.Verdicts[id] = v
					if id.Pool == "pool-003" {
						next.Verdicts[id] = Down
					}
				}
				start, used = time.Now(), cpuUsed(b)
				if _, err := Build(s, next); err != nil {
					b.Fatal(err)
				}
				flip += time.Since(start)
				flipCPU += cpuUsed(b) - used
				runtime.KeepAlive(s)
			}
			n := float64(b.N)
			b.ReportMetric(compile.Seconds()*1000/n, "compile-ms")
			b.ReportMetric(cpu.Seconds()*1000/n, "compile-cpu-ms")
			b.ReportMetric(flipCPU.Seconds()*1000/n, "flip-cpu-ms")
			b.ReportMetric(flip.Seconds()*1000/n, "flip-ms")
			b.ReportMetric(float64(held)/n/(1<<20), "MiB")
		})
	}
}

// BenchmarkFlip builds the snapshot after one pool of a hundred goes down, and after it comes
// back to a node that does not remember how it was before, with 1,000 services and 1,000,000
// networks: each time another pool. Wall time includes what other processes take.
func BenchmarkFlip(b *testing.B) {
	up := fleet(1000, 100)
	up.Geo = syntheticMap(b, 1_000_000)
	without := func(pool int) Inputs {
		in := up
		in.Verdicts = maps.Clone(up.Verdicts)
		name := fmt.Sprintf("pool-%03d", pool)
		for _, e := range up.Objects.Pools[name].Endpoints {
			in.Verdicts[EndpointID{name, e.Address}] = Down
		}
		return in
	}
	must := func(s *Snapshot, err error) *Snapshot {
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	all := must(Build(nil, up))
	var less [4]*Snapshot // a pool is down in
	for i := range less {
		less[i] = must(Build(nil, without(25*i)))
	}
	for _, bm := range []struct {
		name string
		flip func(i int) func() *Snapshot
	}{
		{"down", func(i int) func() *Snapshot {
			in := without(i % 100)
			return func() *Snapshot { return must(Build(all, in)) }
		}},
		{"up", func(i int) func() *Snapshot {
			return func() *Snapshot { return must(Build(less[i%len(less)], up)) }
		}},
	} {
		b.Run(bm.name, func(b *testing.B) {
			var wall, worst, cpu time.Duration
			for i := 0; b.Loop(); i++ {
				flip := bm.flip(i)
				start, used := time.Now(), cpuUsed(b)
				flip()
				took := time.Since(start)
				wall, worst, cpu = wall+took, max(worst, took), cpu+cpuUsed(b)-used
			}
			b.ReportMetric(wall.Seconds()*1000/float64(b.N), "flip-ms")
			b.ReportMetric(worst.Seconds()*1000, "worst-ms")
			b.ReportMetric(cpu.Seconds()*1000/float64(b.N), "flip-cpu-ms")
		})
	}
}
