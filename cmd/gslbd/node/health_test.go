package node

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

func TestSigningKey(t *testing.T) {
	dir := t.TempDir()
	one, err := signingKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	two, err := signingKey(dir)
	if err != nil || !one.Equal(two) {
		t.Errorf("another key at the second start: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "node-key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v, want a file for its owner alone", info, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "node-key.pem"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := signingKey(dir); err == nil {
		t.Error("junk is a key, want an error")
	}
	if a, err := signingKey(""); err != nil || a.Equal(one) {
		t.Errorf("without a folder: %v", err)
	}
}

func TestDemandIdle(t *testing.T) {
	pools := func(names ...string) config.Steering {
		s := config.Steering{Pools: map[string]config.PoolRef{}}
		for _, n := range names {
			s.Pools[n] = config.PoolRef{}
		}
		return s
	}
	o := &config.Objects{
		Pools:    map[string]config.Pool{"a": {}, "b": {}, "c": {}, "alone": {}},
		Services: map[string]config.Service{"www.test": {Steering: pools("a", "b")}, "api.test": {Steering: pools("b", "c")}},
	}
	d := demand{asked: map[string]time.Time{}, count: map[string]uint64{}}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		after    time.Duration
		www, api uint64
		want     []string
	}{
		{0, 0, 0, nil},
		{9 * time.Minute, 5, 0, nil},
		{11 * time.Minute, 5, 0, []string{"c"}},
		{20 * time.Minute, 5, 0, []string{"a", "b", "c"}},
		{21 * time.Minute, 5, 1, []string{"a"}},
	} {
		var got []string
		for pool := range d.idle(o, map[string]uint64{"www.test": tc.www, "api.test": tc.api}, start.Add(tc.after)) {
			got = append(got, pool)
		}
		slices.Sort(got)
		if !slices.Equal(got, tc.want) {
			t.Errorf("after %v: idle %v, want %v", tc.after, got, tc.want)
		}
	}
}
