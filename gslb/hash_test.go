package gslb

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestNegLog2(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		h := rng.Uint64() >> rng.IntN(64)
		want := 64 - math.Log2(float64(h|1))
		if got := negLog2(h); math.Abs(got-want) > 3e-6 {
			t.Fatalf("negLog2(%d) = %v, want %v", h, got, want)
		}
	}
	for _, tt := range []struct {
		h    uint64
		want float64
	}{{0, 64}, {1, 64}, {1 << 63, 1}, {3 << 62, 2 - math.Log2(3)}} {
		if got := negLog2(tt.h); math.Abs(got-tt.want) > 3e-6 {
			t.Errorf("negLog2(%d) = %v, want %v", tt.h, got, tt.want)
		}
	}
}

// TestHashesStay pins hashes: nodes of two versions must send a client to one pool.
func TestHashesStay(t *testing.T) {
	svc := &Service{seed: seed("service", "www.example.com"), sticky4: 24, sticky6: 56}
	tests := []struct {
		client string
		want   uint64
		scope  uint8
	}{
		{"192.0.2.1", 0x1aae2a654d1b017a, 24},
		{"192.0.2.255", 0x1aae2a654d1b017a, 24},
		{"192.0.3.1", 0xa8a69bb9259f6829, 24},
		{"2001:db8:1:2::1", 0x62869eb4995a4cab, 56},
		{"2001:db8:1:2ff::1", 0xc0fb5a4369bea255, 56},
		{"64:ff9b::192.0.2.1", 0x1aae2a654d1b017a, 96 + 24}, // as the IPv4 address inside
		{"64:ff9b::192.0.3.1", 0xa8a69bb9259f6829, 96 + 24},
		{"2002:c000:201::1", 0x1aae2a654d1b017a, 16 + 24},
		{"64:ff9b:0:0:1::", 0x383238038e920247, 80}, // beside them: as long as it takes to tell
	}
	for _, tt := range tests {
		if got, scope := svc.hash(netip.MustParseAddr(tt.client), svc.sticky4, svc.sticky6); got != tt.want || scope != tt.scope {
			t.Errorf("hash(%s) = %#x, scope %d; want %#x, %d", tt.client, got, scope, tt.want, tt.scope)
		}
	}
	if got, want := draw(1, seed("pool", "gfe-eu"), 1.0/3), 1.0820046883697587; got != want {
		t.Errorf("draw = %v, want %v", got, want)
	}
}

// sharesOf returns shares with those weights.
func sharesOf(weights ...float64) []share {
	var out []share
	for i, w := range weights {
		out = append(out, share{pool: &Pool{Index: i}, mean: 1 / w, seed: seed("pool", fmt.Sprint("p", i))})
	}
	return out
}

// picks returns whose each of so many clients is.
func picks(shares []share, clients int) []uint8 {
	out := make([]uint8, clients)
	for i := range out {
		mine, _ := winner(shares, mix(uint64(i)<<40^seed("service", "w.example")), true)
		out[i] = uint8(mine.pool.Index)
	}
	return out
}

// TestPickSplitsByWeight checks that a million source prefixes are split as the weights
// say, within half a percent.
func TestPickSplitsByWeight(t *testing.T) {
	const clients = 1_000_000
	for _, weights := range [][]float64{{1, 2, 3, 5}, {1, 99}, {65535, 65535, 1}} {
		total, counts := 0.0, make([]float64, len(weights))
		for _, w := range weights {
			total += w
		}
		for _, p := range picks(sharesOf(weights...), clients) {
			counts[p]++
		}
		for i, w := range weights {
			if got, want := counts[i]/clients, w/total; math.Abs(got-want) > 0.005 {
				t.Errorf("weights %v: pool %d has %.4f of the clients, want %.4f", weights, i, got, want)
			}
		}
	}
}

// TestPickMovesOnlyItsOwn checks that a pool that leaves, for good or because it is lost,
// moves its own clients alone, and that one that joins takes no more than its share.
func TestPickMovesOnlyItsOwn(t *testing.T) {
	const clients = 100_000
	all := sharesOf(1, 2, 3, 4)
	before := picks(all, clients)
	for gone := range all {
		var rest []share
		lost := append([]share(nil), all...)
		for i, sh := range all {
			if i != gone {
				rest = append(rest, sh)
			}
		}
		lost[gone].lost = true
		after, without := picks(rest, clients), picks(lost, clients)
		joined := 0
		for i := range before {
			if before[i] != uint8(gone) && after[i] != before[i] {
				t.Fatalf("client %d moved from pool %d to %d as pool %d left", i, before[i], after[i], gone)
			}
			if after[i] != without[i] {
				t.Fatalf("client %d: pool %d without pool %d, but %d with it lost", i, after[i], gone, without[i])
			}
			if before[i] != after[i] {
				joined++ // reading it backwards: the pool joins
			}
		}
		if got, want := float64(joined)/clients, 1/all[gone].mean/10; got > want+0.01 {
			t.Errorf("pool %d took %.4f of the clients as it joined, want at most %.4f", gone, got, want+0.01)
		}
	}
}

// TestPickSaysWhoMoved checks that exactly the clients of a lost share are said to have moved.
func TestPickSaysWhoMoved(t *testing.T) {
	all := sharesOf(1, 2, 3)
	lost := append([]share(nil), all...)
	lost[1].lost = true
	for i := range uint64(10_000) {
		key := mix(i)
		was, _ := winner(all, key, true)
		is, first := winner(lost, key, true)
		if moved := first != is; moved != (was.pool.Index == 1) || is.pool.Index == 1 {
			t.Fatalf("client %d: pool %d was %d, but for the lost one %d", i, is.pool.Index, was.pool.Index, first.pool.Index)
		}
	}
}
