package gslb

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/testdata/geo/makedb"
)

// benchMap is a random world of 1,000,000 networks.
var benchMap = sync.OnceValues(func() (*geo.Map, error) {
	dir, err := os.MkdirTemp("", "meridian-bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "city.mmdb")
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := makedb.Write(f, makedb.DefaultType, makedb.Synthetic(1_000_000, 1)); err != nil {
		return nil, err
	}
	return geo.Open(geo.Config{City: path})
})

// benchInputs are 50 pools of three endpoints at sites around the world, and one service
// with that policy.
func benchInputs(b *testing.B, policy ...config.Stage) Inputs {
	b.Helper()
	m, err := benchMap()
	if err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	o := &config.Objects{
		Sites: map[string]config.Site{}, Pools: map[string]config.Pool{}, Services: map[string]config.Service{},
		Probes: map[string]config.Probe{"t": {TCP: &config.TCPProbe{Port: 80}}},
	}
	svc := config.Service{Steering: config.Steering{Pools: map[string]config.PoolRef{}, Policy: policy}}
	for i := range 50 {
		name := fmt.Sprintf("pool-%02d", i)
		o.Sites[name] = config.Site{Lat: rng.Float64()*120 - 60, Lon: rng.Float64()*360 - 180}
		p := config.Pool{Site: name, Probe: "t"}
		for j := range 3 {
			p.Endpoints = append(p.Endpoints,
				config.Endpoint{Address: netip.AddrFrom4([4]byte{10, 0, byte(i), byte(j)})},
				config.Endpoint{Address: netip.AddrFrom16([16]byte{0xfd, 14: byte(i), 15: byte(j)})})
		}
		o.Pools[name] = p
		svc.Pools[name] = config.PoolRef{}
	}
	o.Services["www.example.com"] = svc
	return Inputs{Revision: 1, Objects: o, Geo: m, Verdicts: map[EndpointID]Verdict{}, Now: now}
}

// benchClients are random addresses of the world; one in five is IPv6.
func benchClients(m *geo.Map) []Client {
	rng := rand.New(rand.NewPCG(3, 4))
	var all []Client
	for p := range m.All() {
		if p.Bits() >= 8 && !p.Addr().Is4In6() {
			all = append(all, Client{p.Addr(), uint8(min(p.Addr().BitLen(), 56))})
		}
	}
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:1<<16]
}

var (
	health   = config.Stage{Health: &config.HealthStage{}}
	nearest  = config.Stage{Nearest: &config.NearestStage{}}
	weighted = config.Stage{Weighted: &config.WeightedStage{}}
	select2  = config.Stage{Select: &config.SelectStage{Answers: 2}}
)

// cpuPerOp adds the CPU time of an operation to a benchmark's figures: it holds on a machine
// that others use too. Call what it returns after the loop.
func cpuPerOp(b *testing.B) (end func()) {
	runtime.GC()
	start := cpuUsed(b)
	return func() { b.ReportMetric(float64((cpuUsed(b)-start).Nanoseconds())/float64(b.N), "cpu-ns/op") }
}

// cpuUsed returns the CPU time that the process has used.
func cpuUsed(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func halfOfPools() (names []string) {
	for i := range 25 {
		names = append(names, fmt.Sprintf("pool-%02d", i))
	}
	return names
}

// busy returns as many clients, drawn from all as the queries of resolvers are: the k-th asks in
// proportion to 1/k.
func busy(all []Client) []Client {
	rng := rand.New(rand.NewPCG(5, 6))
	z := rand.NewZipf(rng, 1.01, 1, uint64(len(all)-1))
	out := make([]Client, len(all))
	for i := range out {
		out[i] = all[z.Uint64()]
	}
	return out
}

// BenchmarkDecide decides for random clients among 50 pools over 1,000,000 networks: every network
// is as likely as any other, which no cache likes. They ask for A; those named both for hints of
// both families. Best is a service that does not depend on the client; worst is a split over all 50
// pools. Those named zipf have some clients that ask more often than others.
func BenchmarkDecide(b *testing.B) {
	for _, bm := range []struct {
		name   string
		policy []config.Stage
	}{
		{"nearest", []config.Stage{health, nearest}},
		{"nearest+select", []config.Stage{health, nearest, select2}},
		{"failover/best", []config.Stage{health, {Failover: &config.FailoverStage{Order: [][]string{{"pool-07"}}}}}},
		{"weighted50/worst", []config.Stage{health, weighted}},
		{"six", []config.Stage{
			{Fence: &config.FenceStage{Rules: []config.FenceRule{{When: config.Condition{Country: []string{"DE"}}, Deny: []string{"pool-01"}}}}},
			health, {Shed: &config.ShedStage{Low: 0.8, High: 1}}, {Failover: &config.FailoverStage{Order: [][]string{halfOfPools()}}}, nearest, select2,
		}},
		{"six+sticky", []config.Stage{
			{Fence: &config.FenceStage{Rules: []config.FenceRule{{When: config.Condition{Country: []string{"DE"}}, Deny: []string{"pool-01"}}}}},
			health, {Shed: &config.ShedStage{Low: 0.8, High: 1}}, {Match: &config.MatchStage{Cases: []config.MatchCase{{If: config.Condition{Continent: []string{"EU"}},
				Then: []config.Stage{{Failover: &config.FailoverStage{Order: [][]string{{"pool-03", "pool-04"}}}}}}}, Else: []config.Stage{{Failover: &config.FailoverStage{Order: [][]string{{"pool-05", "pool-06"}}}}}}},
			{Sticky: &config.StickyStage{}}, select2,
		}},
	} {
		run := func(name string, want Families, draw func([]Client) []Client) {
			b.Run(name, func(b *testing.B) {
				in := benchInputs(b, bm.policy...)
				s, err := Build(nil, in)
				if err != nil {
					b.Fatal(err)
				}
				clients := draw(benchClients(in.Geo))
				svc := s.Service("www.example.com")
				var d Decision
				i := 0
				b.ReportAllocs()
				end := cpuPerOp(b)
				for b.Loop() {
					s.DecideFor(want, svc, clients[i&(1<<16-1)], &d)
					i++
				}
				end()
			})
		}
		all := func(all []Client) []Client { return all }
		run(bm.name, IPv4, all)
		if strings.HasPrefix(bm.name, "six") {
			run(bm.name+"/zipf", IPv4, busy)
			run(bm.name+"/both", IPv4|IPv6, all)
		}
	}
}

// BenchmarkBuild builds the snapshot anew, again with nothing changed, and after the
// verdicts of one pool flipped, with the last one to share from.
func BenchmarkBuild(b *testing.B) {
	in := benchInputs(b, health, nearest, select2)
	first, err := Build(nil, in)
	if err != nil {
		b.Fatal(err)
	}
	flipped := in
	flipped.Verdicts = map[EndpointID]Verdict{}
	for _, e := range in.Objects.Pools["pool-07"].Endpoints {
		flipped.Verdicts[EndpointID{"pool-07", e.Address}] = Down
	}
	for _, bm := range []struct {
		name string
		prev *Snapshot
		in   Inputs
	}{{"new", nil, in}, {"same", first, in}, {"flip", first, flipped}} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			end := cpuPerOp(b)
			for b.Loop() {
				s, err := Build(bm.prev, bm.in)
				if err != nil {
					b.Fatal(err)
				}
				if v4, v6 := s.Services[0].routing.table.Len(); v4+v6 < 100_000 {
					b.Fatalf("%d prefixes, want a real table", v4+v6)
				}
			}
			end()
		})
	}
	v4, v6 := first.Services[0].routing.table.Len()
	b.Logf("%d places, %d outcomes, %d+%d prefixes", len(in.Geo.Places()), len(first.Services[0].outcomes), v4, v6)
}
