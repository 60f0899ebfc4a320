package gslb

import (
	"hash/fnv"
	"math"
	"net/netip"
	"testing"
)

// TestSplitBesideOthers measures how a weighted service splits a million clients, and who
// moves when a pool leaves or comes, beside the two ways that others hash: modulo the
// number of pools, and Maglev's table (Eisenbud and others, NSDI 2016, section 3.4).
func TestSplitBesideOthers(t *testing.T) {
	const pools, clients = 10, 1_000_000
	svc := &Service{seed: seed("service", "w.example"), sticky4: 24, sticky6: 56}
	weights := make([]float64, pools+1)
	total := 0.0
	for i := range weights {
		weights[i] = float64(1 + i%3)
		if i < pools {
			total += weights[i]
		}
	}
	all := sharesOf(weights...)
	key := func(i int) uint64 {
		k, _ := svc.hash(netip.AddrFrom4([4]byte{byte(i>>16) + 1, byte(i >> 8), byte(i), 1}), svc.sticky4, svc.sticky6)
		return k
	}
	rendezvous := func(n, without int) func(uint64) int {
		var set []share
		for i := range n {
			if i != without {
				set = append(set, all[i])
			}
		}
		return func(k uint64) int { mine, _ := winner(set, k, true); return mine.pool.Index }
	}
	modulo := func(n, without int) func(uint64) int {
		var set []int
		for i := range n {
			if i != without {
				set = append(set, i)
			}
		}
		return func(k uint64) int { return set[k%uint64(len(set))] }
	}
	maglev := func(n, without int) func(uint64) int {
		table := maglevTable(n, without)
		return func(k uint64) int { return table[k%uint64(len(table))] }
	}
	type figures struct{ worst, removal, addition float64 }
	measure := func(make func(n, without int) func(uint64) int, weighted bool) (f figures) {
		full, less, more := make(pools, -1), make(pools, 4), make(pools+1, -1)
		count := [pools + 1]float64{}
		for i := range clients {
			k := key(i)
			was := full(k)
			count[was]++
			if is := less(k); was != 4 && is != was {
				f.removal++
			}
			if more(k) != was {
				f.addition++
			}
		}
		for i := range pools {
			want := 1.0 / pools
			if weighted {
				want = weights[i] / total
			}
			f.worst = max(f.worst, math.Abs(count[i]/clients-want))
		}
		f.removal /= clients
		f.addition /= clients
		return f
	}
	ours := measure(rendezvous, true)
	mod, mag := measure(modulo, false), measure(maglev, false)
	t.Logf("rendezvous: off by %.4f at most; others' clients moved by a removal %.4f; moved by an addition %.4f", ours.worst, ours.removal, ours.addition)
	t.Logf("modulo:     off by %.4f; %.4f; %.4f", mod.worst, mod.removal, mod.addition)
	t.Logf("maglev:     off by %.4f; %.4f; %.4f", mag.worst, mag.removal, mag.addition)
	if ours.worst > 0.005 {
		t.Errorf("a pool's share is off by %.4f, want at most 0.005", ours.worst)
	}
	if ours.removal != 0 {
		t.Errorf("a removal moved %.4f of the clients of other pools, want none", ours.removal)
	}
	if want := weights[pools] / (total + weights[pools]); ours.addition > want+0.01 {
		t.Errorf("an addition moved %.4f of the clients, want at most its share %.4f + 0.01", ours.addition, want)
	}
	if mod.removal < 0.5 || mag.removal == 0 || mag.removal > 0.1 {
		t.Errorf("modulo moved %.4f and Maglev %.4f by a removal; the twins are wrong", mod.removal, mag.removal)
	}
}

// maglevTable fills Maglev's lookup table for pools 0..n-1 but one.
func maglevTable(n, without int) []int {
	const size = 65537
	hash := func(i int, salt byte) uint64 {
		h := fnv.New64a()
		h.Write([]byte{byte(i), salt})
		return mix(h.Sum64())
	}
	table := make([]int, size)
	for i := range table {
		table[i] = -1
	}
	next := make([]uint64, n)
	for filled := 0; ; {
		for i := range n {
			if i == without {
				continue
			}
			for {
				at := (hash(i, 1)%size + next[i]*(hash(i, 2)%(size-1)+1)) % size
				next[i]++
				if table[at] < 0 {
					table[at] = i
					filled++
					break
				}
			}
			if filled == size {
				return table
			}
		}
	}
}
