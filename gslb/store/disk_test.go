package store

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

func snap(rev int64) *snapshot {
	w := 0
	return &snapshot{
		Saved: time.Unix(1e9, 0).UTC(), Cluster: 1<<63 + 5, Revision: rev,
		Base: &config.Objects{Sites: map[string]config.Site{"eu": {Lat: 50}}},
		Store: &config.Objects{Services: map[string]config.Service{"www.example.com": {Steering: config.Steering{
			Pools:  map[string]config.PoolRef{"a": {Weight: &w}},
			Policy: []config.Stage{{Health: &config.HealthStage{}}, {Failover: &config.FailoverStage{Order: [][]string{{"a"}}}}},
		}, AllDown: config.AllDown{Mode: "servfail"}}}},
	}
}

func TestDiskKeepsTheLast(t *testing.T) {
	d := disk{dir: filepath.Join(t.TempDir(), "made", "here")}
	if good, bad := d.load(); len(good) != 0 || len(bad) != 0 {
		t.Fatalf("an empty folder: %v, %v", good, bad)
	}
	for rev := range int64(12) {
		if err := d.save(snap(rev)); err != nil {
			t.Fatal(err)
		}
	}
	good, bad := d.load()
	var revs []int64
	for _, s := range good {
		revs = append(revs, s.Revision)
	}
	if !slices.Equal(revs, []int64{11, 10, 9}) || len(bad) != 0 {
		t.Errorf("revisions %v, faults %v; want 11 10 9 and none", revs, bad)
	}
	if s := good[0]; s.Cluster != 1<<63+5 || len(config.Diff(s.Store, snap(0).Store)) != 0 || len(config.Diff(s.Base, snap(0).Base)) != 0 {
		t.Errorf("read back %+v", s)
	}
	entries, _ := os.ReadDir(d.dir)
	if len(entries) != 3 {
		t.Errorf("%d files, want 3: %v", len(entries), entries)
	}
}

// TestDiskDamage: whichever octet of the newest snapshot is lost or wrong, the one before is
// found and the damage is told.
func TestDiskDamage(t *testing.T) {
	d := disk{dir: t.TempDir()}
	for rev := range int64(2) {
		if err := d.save(snap(rev + 1)); err != nil {
			t.Fatal(err)
		}
	}
	names, err := d.names()
	if err != nil {
		t.Fatal(err)
	}
	newest := filepath.Join(d.dir, names[0])
	whole, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	damage := map[string][]byte{"empty": {}, "no header": []byte("{}"), "zeros": make([]byte, len(whole)), "longer": append(slices.Clone(whole), 'x')}
	for i := 0; i < len(whole); i += 7 {
		cut, flip := slices.Clone(whole[:i]), slices.Clone(whole)
		flip[i] ^= 1 << rng.IntN(8)
		damage["cut"+string(rune(i))], damage["flip"+string(rune(i))] = cut, flip
	}
	for name, data := range damage {
		if err := os.WriteFile(newest, data, 0o600); err != nil {
			t.Fatal(err)
		}
		good, bad := d.load()
		if len(good) != 1 || good[0].Revision != 1 || len(bad) != 1 {
			t.Fatalf("%s: %d good, faults %v; want the one before and one fault", name, len(good), bad)
		}
	}
}

func TestDiskUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(world...)
	r := start(t, external(e.listen, file), nil)
	r.view("the world, whatever the disk does", hasPool("a"))
	r.status("the disk's error", func(s Status) bool { return s.DiskError != "" })
}

func FuzzSnapshot(f *testing.F) {
	d := disk{dir: f.TempDir()}
	if err := d.save(snap(1)); err != nil {
		f.Fatal(err)
	}
	names, _ := d.names()
	data, err := os.ReadFile(filepath.Join(d.dir, names[0]))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(snapshotHeader + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(t.TempDir(), "snapshot-1.json")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := readSnapshot(name); (s == nil) == (err == nil) {
			t.Errorf("snapshot %v, error %v; want exactly one", s, err)
		}
	})
}

// TestDiskSlow wants a disk that takes long to hold up nothing but itself, and the status to say
// so (F27).
func TestDiskSlow(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(world...)
	o := external(e.listen, t.TempDir())
	o.Log = testLog(t)
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	c.disk.sync = func(f *os.File) error { <-ready; return f.Sync() }
	c.timing = fastTiming
	c.timing.save = time.Millisecond
	r := run(t, c)
	release := sync.OnceFunc(func() { close(ready) })
	t.Cleanup(release) // before the client is stopped
	r.view("the world, while it is being saved", hasPool("a"))
	for _, name := range []string{"c", "d", "e"} { // more than may wait to be saved
		e.put("pools/"+name, `{"site":"eu"}`)
		r.view("pool "+name, hasPool(name))
	}
	if s := r.status("a slow disk", func(s Status) bool { return s.DiskError != "" }); !strings.Contains(s.DiskError, "still being written") {
		t.Errorf("disk error %q", s.DiskError)
	}
	release()
	r.status("a snapshot", func(s Status) bool { return s.DiskError == "" && !s.DiskSavedAt.IsZero() })
}
