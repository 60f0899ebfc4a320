package store

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"
)

func TestFollow(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	rev := e.put(world...)
	r := start(t, external(e.listen, t.TempDir()), nil)

	v := r.view("the world", hasPool("a"))
	if v.Revision != rev || names(v, "pools") != "a b" || len(v.Faults) != 0 {
		t.Errorf("first view: revision %d, pools %s, faults %q; want %d, a b, none", v.Revision, names(v, "pools"), v.Faults, rev)
	}
	rev = e.put("pools/c", `{"site":"eu"}`)
	if v = r.view("pool c", hasPool("c")); v.Revision != rev {
		t.Errorf("revision %d, want %d", v.Revision, rev)
	}
	e.put("pools/c", `{"site":"eu","capacity":7}`)
	r.view("pool c changed", func(v View) bool { return v.Objects.Pools["c"].Capacity == 7 })
	e.put("pools/c", "")
	v = r.view("pool c gone", func(v View) bool { return !hasPool("c")(v) })
	if got := names(v, "pools"); got != "a b" {
		t.Errorf("pools %s, want a b", got)
	}
	s := r.Status()
	if s.Mode != ModeExternal || !s.Connected || s.FromDisk || s.Held != "" || s.Error != "" || s.LastContact.IsZero() || s.Revision != v.Revision {
		t.Errorf("status %+v", s)
	}
}

// TestEmbedded runs the store with its own server, twice on the same data.
func TestEmbedded(t *testing.T) {
	o := Options{Etcd: config.Etcd{Embedded: true}, Data: t.TempDir(), Base: &config.Objects{
		Sites: map[string]config.Site{"eu": {Lat: 50, Lon: 8}},
	}}
	r := start(t, o, nil)
	r.view("the file's site", func(v View) bool { return len(v.Objects.Sites) == 1 })
	rev, err := r.Apply(t.Context(), Change{Author: "ann", Put: &config.Objects{Pools: map[string]config.Pool{"a": {Site: "eu"}}}})
	if err != nil {
		t.Fatal(err)
	}
	if v := r.view("pool a", hasPool("a")); v.Revision != rev {
		t.Errorf("revision %d, want that of Apply: %d", v.Revision, rev)
	}
	r.stop()

	r = start(t, o, nil)
	r.view("pool a, from disk", hasPool("a"))
	s := r.status("etcd heard, and what it has", func(s Status) bool { return s.Connected && !s.FromDisk })
	if s.Mode != ModeEmbedded || s.Held != "" || s.Revision != rev {
		t.Errorf("status %+v", s)
	}
}

func TestRestartOfEtcd(t *testing.T) {
	dir, listen := t.TempDir(), socket(t)
	e := startEtcd(t, dir, listen)
	e.put(world...)
	r := start(t, external(listen, ""), nil)
	r.view("the world", hasPool("a"))
	e.stop()
	n := r.count()
	e = startEtcd(t, dir, listen)
	e.put("pools/c", `{"site":"eu"}`)
	v := r.view("pool c", hasPool("c"))
	if got := names(v, "pools"); got != "a b c" {
		t.Errorf("pools %s, want a b c", got)
	}
	if got := r.count(); got != 0 || n != 0 {
		t.Errorf("%d and %d views beside the two expected, want none", n, got)
	}
}

// TestCompaction: what changed while we were away is compacted, so that the watch cannot go
// on from where it was.
func TestCompaction(t *testing.T) {
	dir, listen := t.TempDir(), socket(t)
	e := startEtcd(t, dir, listen)
	e.put(world...)
	r := start(t, external(listen, ""), nil)
	r.view("the world", hasPool("a"))
	r.status("a watch", func(s Status) bool { return s.Connected })
	e.stop()

	e = startEtcd(t, dir, socket(t))
	e.put("pools/c", `{"site":"eu"}`)
	e.put("services/www.example.com", `{"pools":{"a":{}}}`, "pools/b", "")
	rev := e.put("pools/d", `{"site":"eu"}`)
	if _, err := e.raw.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	e.stop()

	e = startEtcd(t, dir, listen)
	v := r.view("pool d", hasPool("d"))
	if got := names(v, "pools"); got != "a c d" {
		t.Errorf("pools %s, want a c d: no update lost", got)
	}
	e.put("pools/e", `{"site":"eu"}`)
	r.view("pool e, by watch", hasPool("e"))
}

// TestSilence: a connection that hangs is given up, whatever TCP and the watch think of it.
func TestSilence(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(world...)
	front := socket(t)
	relay := newRelay(t, front, e.listen)
	r := start(t, external(front, ""), func(tm *timing) {
		tm.progress, tm.silence, tm.timeout = 50*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond
	})
	r.view("the world", hasPool("a"))
	relay.freeze(true)
	e.put("pools/c", `{"site":"eu"}`)
	s := r.status("an error", func(s Status) bool { return s.Error != "" })
	if s.Connected {
		t.Errorf("status %+v, want not connected", s)
	}
	if v, _ := r.Latest(); names(v, "pools") != "a b" {
		t.Errorf("pools %s while cut off, want a b", names(v, "pools"))
	}
	relay.freeze(false)
	r.view("pool c", hasPool("c"))
	r.status("no error", func(s Status) bool { return s.Connected && s.Error == "" })
}

// TestConnectionLost: an etcd that closes its connections is known to be gone at once, not when
// it has been silent for long.
func TestConnectionLost(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(world...)
	r := start(t, external(e.listen, ""), func(tm *timing) { tm.progress, tm.silence = time.Hour, time.Hour })
	r.view("the world", hasPool("a"))
	r.status("a watch", func(s Status) bool { return s.Connected })
	e.stop()
	if s := r.status("an error", func(s Status) bool { return !s.Connected && s.Error != "" }); s.Held != "" || s.FromDisk {
		t.Errorf("status %+v", s)
	}
}

// TestApplyToAnother: between two looks of the follower etcd was replaced. Nothing is written
// to what took its place.
func TestApplyToAnother(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(world...)
	r := start(t, external(e.listen, ""), nil)
	r.view("the world", hasPool("a"))
	other := startEtcd(t, t.TempDir(), socket(t))
	put, touched, err := (Change{Put: objects(t, "sites: {us: {lat: 1, lon: 1}}")}).prepare(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.try(t.Context(), other.raw, Change{Put: put}, put, touched); !isErr(err, ErrHeld) || !strings.Contains(err.Error(), "etcd is cluster") {
		t.Errorf("written to another cluster: %v, want ErrHeld", err)
	}
}

// states are those of a connection, one after the other; after the last it stays.
type states []connectivity.State

func (s *states) GetState() connectivity.State { return (*s)[0] }

func (s *states) WaitForStateChange(context.Context, connectivity.State) bool {
	*s = (*s)[1:]
	return len(*s) > 0
}

// TestWhenLost: a connection that is not ready yet is not lost, and one that was is.
func TestWhenLost(t *testing.T) {
	const connecting, ready, idle, failed = connectivity.Connecting, connectivity.Ready, connectivity.Idle, connectivity.TransientFailure
	for _, tt := range []struct {
		conn states
		want bool
	}{
		{states{ready}, false}, {states{connecting, ready}, false}, {states{idle}, true}, {states{failed}, true},
		{states{connecting, failed}, true}, {states{ready, idle}, true}, {states{ready, connecting}, true}, {states{connecting, ready, connecting}, true},
	} {
		lost, conn := false, slices.Clone(tt.conn)
		whenLost(t.Context(), &conn, func(error) { lost = true })
		if lost != tt.want {
			t.Errorf("%v: lost is %t, want %t", tt.conn, lost, tt.want)
		}
	}
}

// TestQuiet: an etcd in which nothing happens is heard all the same, and not taken for gone.
func TestQuiet(t *testing.T) {
	var log bytes.Buffer
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(world...)
	o := external(e.listen, "")
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	r := start(t, o, func(tm *timing) { tm.progress = 100 * time.Millisecond })
	r.view("the world", hasPool("a"))
	connected := r.status("a watch", func(s Status) bool { return s.Connected })
	r.status("five signs of etcd", func() func(Status) bool {
		signs, last := 0, connected.LastContact
		return func(s Status) bool {
			if !s.LastContact.Equal(last) {
				signs, last = signs+1, s.LastContact
			}
			return signs == 5
		}
	}())
	r.stop()
	if r.count() != 0 || log.Len() != 0 {
		t.Errorf("%d views and log %q, want none", r.count(), &log)
	}
}

func TestBadObjects(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(append(world, "pools/bad", `{"site":`, "boats/x", `{}`, "stray", "1")...)
	r := start(t, external(e.listen, ""), nil)
	v := r.view("the world", hasPool("a"))
	if len(v.Faults) != 3 || !strings.Contains(v.Faults[1], "/meridian/v1/pools/bad: not YAML") || !strings.Contains(v.Faults[1], "(left out)") || names(v, "pools") != "a b" {
		t.Errorf("faults %q, pools %s; want boats, pools/bad and the stray key left out", v.Faults, names(v, "pools"))
	}
	e.put("boats/x", "", "stray", "", "pools/bad", "")
	r.view("no faults", func(v View) bool { return len(v.Faults) == 0 })

	// A bad version of a good object leaves the last good one.
	e.put("pools/a", `{"site":"eu","capacity":-1}`)
	v = r.view("a fault", func(v View) bool { return len(v.Faults) == 1 })
	if !strings.Contains(v.Faults[0], "pools.a.capacity: -1; expected requests per second") || len(v.Objects.Pools["a"].Endpoints) != 1 {
		t.Errorf("faults %q, pool a %+v; want its last good version", v.Faults, v.Objects.Pools["a"])
	}

	// Objects that are not valid among the others are left out, or stay at their last version
	// that was; the others go on.
	e.put("services/x.example.com", `{"pools":{"gone":{}}}`, "pools/b", `{"site":"nowhere"}`)
	rev := e.put("pools/c", `{"site":"eu"}`)
	v = r.view("pool c", hasPool("c"))
	if len(v.Faults) != 3 || !strings.Contains(strings.Join(v.Faults, "\n"), "services.x.example.com.pools.gone: no such pool") || len(r.Status().Faults) != 3 {
		t.Errorf("faults %q, status %q; want those of pools a and b and of service x", v.Faults, r.Status().Faults)
	}
	if got := names(v, "services"); v.Revision != rev || got != "www.example.com" || v.Objects.Pools["b"].Site != "eu" {
		t.Errorf("revision %d, services %s, pool b %+v; want %d, www.example.com, the last good b", v.Revision, got, v.Objects.Pools["b"], rev)
	}
	if _, ok := v.Stored.Services["x.example.com"]; !ok || v.Stored.Pools["b"].Site != "nowhere" {
		t.Errorf("stored %+v, want it as it stands in etcd", v.Stored)
	}

	// What could be read and was not valid is not the last good version.
	e.put("pools/b", "no object")
	v = r.view("the fault of b", func(v View) bool { return strings.Contains(strings.Join(v.Faults, "\n"), "pools/b: pools.b") })
	if v.Objects.Pools["b"].Site != "eu" {
		t.Errorf("pool b %+v, want the version that was served", v.Objects.Pools["b"])
	}

	// What others need stays when it is deleted.
	e.put("services/x.example.com", "", "pools/a", world[5], "pools/b", world[7], "sites/eu", "")
	v = r.view("a site that stays", func(v View) bool { return len(v.Faults) == 3 && len(v.Stored.Sites) == 0 })
	if got := names(v, "sites"); got != "eu" {
		t.Errorf("sites %s, want eu", got)
	}
	e.put(world[:2]...)
	v = r.view("no faults again", func(v View) bool { return len(v.Faults) == 0 })
	if len(r.Status().Faults) != 0 {
		t.Errorf("status %q; want no faults", r.Status().Faults)
	}
}

// TestDisk: with etcd gone the node starts again from its last snapshot, and from the one
// before when that is damaged.
func TestDisk(t *testing.T) {
	dir, listen, data := t.TempDir(), socket(t), t.TempDir()
	e := startEtcd(t, dir, listen)
	e.put(world...)
	r := start(t, external(listen, data), nil)
	r.view("the world", hasPool("a"))
	r.status("a snapshot", func(s Status) bool { return !s.DiskSavedAt.IsZero() })
	rev := e.put("pools/c", `{"site":"eu"}`)
	r.view("pool c", hasPool("c"))
	e.stop()
	r.stop()

	r = start(t, external(listen, data), nil)
	v := r.view("pool c from disk", hasPool("c"))
	if s := r.Status(); v.Revision != rev || !s.FromDisk || s.Connected || s.Revision != rev {
		t.Errorf("revision %d, status %+v; want %d from disk", v.Revision, s, rev)
	}
	if _, err := r.Apply(t.Context(), Change{}); !isErr(err, ErrUnavailable) {
		t.Errorf("Apply without etcd: %v, want ErrUnavailable", err)
	}
	r.stop()

	files, _ := filepath.Glob(filepath.Join(data, "snapshot-*.json"))
	newest := files[len(files)-1]
	info, err := os.Stat(newest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(newest, info.Size()-1); err != nil {
		t.Fatal(err)
	}
	r = start(t, external(listen, data), nil)
	v = r.view("the snapshot before", hasPool("a"))
	if got := names(v, "pools"); got != "a b" {
		t.Errorf("pools %s, want a b: of the snapshot before", got)
	}
	startEtcd(t, dir, listen)
	r.view("pool c from etcd", hasPool("c"))
	if s := r.Status(); s.FromDisk || s.Held != "" {
		t.Errorf("status %+v, want that of etcd", s)
	}
}

// TestDiskUnderAnotherFile: the file changed while the node was down and no longer fits the
// snapshot. What was served then is served again.
func TestDiskUnderAnotherFile(t *testing.T) {
	data := t.TempDir()
	base := &config.Objects{Sites: map[string]config.Site{"eu": {}}}
	saved := &snapshot{Cluster: 1, Revision: 9, Base: base, Store: &config.Objects{Pools: map[string]config.Pool{"a": {Site: "eu"}}}}
	if err := (disk{dir: data}).save(saved); err != nil {
		t.Fatal(err)
	}
	o := external(socket(t), data)
	o.Base = &config.Objects{Sites: map[string]config.Site{"us": {}}}
	r := start(t, o, nil)
	v := r.view("pool a", hasPool("a"))
	if got := names(v, "sites"); got != "eu" {
		t.Errorf("sites %s, want eu, of the file then", got)
	}
	r.status("the fault", func(s Status) bool {
		return s.FromDisk && len(s.Faults) == 1 && strings.Contains(s.Faults[0], "pools.a.site: no such site")
	})
}

func TestGrace(t *testing.T) {
	o := external(socket(t), t.TempDir())
	o.Base = &config.Objects{Sites: map[string]config.Site{"eu": {}}}
	r := start(t, o, func(tm *timing) { tm.grace = 10 * time.Millisecond })
	if v := r.view("the file's objects", func(View) bool { return true }); v.Revision != 0 || names(v, "sites") != "eu" {
		t.Errorf("revision %d, sites %s; want 0, eu", v.Revision, names(v, "sites"))
	}
	if s := r.Status(); s.Connected || s.FromDisk {
		t.Errorf("status %+v", s)
	}

	// With nothing known, nothing is handed on: no answer from etcd is not "no objects".
	r = start(t, external(socket(t), t.TempDir()), func(tm *timing) { tm.grace, tm.timeout = time.Millisecond, 100*time.Millisecond })
	r.status("an error", func(s Status) bool { return s.Error != "" })
	if v, ok := r.Latest(); ok {
		t.Errorf("view %+v, want none", v)
	}
}

// TestHeldOtherCluster: etcd was wiped. What it has, nothing, is not taken for the truth.
func TestHeldOtherCluster(t *testing.T) {
	listen := socket(t)
	e := startEtcd(t, t.TempDir(), listen)
	e.put(world...)
	r := start(t, external(listen, t.TempDir()), func(tm *timing) { tm.silence = time.Second })
	r.view("the world", hasPool("a"))
	e.stop()

	e = startEtcd(t, t.TempDir(), listen)
	s := r.status("held", func(s Status) bool { return s.Held != "" })
	if !strings.Contains(s.Held, "etcd is cluster") {
		t.Errorf("held: %q", s.Held)
	}
	if v, _ := r.Latest(); names(v, "pools") != "a b" || r.count() != 0 {
		t.Errorf("pools %s, %d more views; want a b and none", names(v, "pools"), r.count())
	}
	if _, err := r.Apply(t.Context(), Change{}); !isErr(err, ErrHeld) {
		t.Errorf("Apply while held: %v, want ErrHeld", err)
	}
	e.put("sites/us", `{"lat":1,"lon":1}`)
	r.Confirm()
	v := r.view("the new world", func(v View) bool { return len(v.Objects.Sites) == 1 && len(v.Objects.Pools) == 0 })
	if got := names(v, "sites"); got != "us" {
		t.Errorf("sites %s, want us", got)
	}
	if s := r.Status(); s.Held != "" {
		t.Errorf("still held: %q", s.Held)
	}
}

// TestHeldLoss: most objects were deleted in etcd itself. The view stays until they are back, by
// whatever way, or the operator confirms.
func TestHeldLoss(t *testing.T) {
	var gone []string
	for i := 0; i < len(world); i += 2 {
		gone = append(gone, world[i], "")
	}
	all := objects(t, `{sites: {eu: {lat: 50, lon: 8}}, zones: [{name: example.com, records: "@ SOA"}],
pools: {a: {site: eu, endpoints: [{address: 192.0.2.1}]}, b: {site: eu, endpoints: [{address: 192.0.2.2}]}}, services: {www.example.com: {pools: {a: , b: }}}}`)
	for _, tt := range []struct {
		name    string
		release func(*etcd, *running)
		pools   string
	}{
		{"confirmed", func(_ *etcd, r *running) { r.Confirm() }, ""},
		{"written back past Apply", func(e *etcd, _ *running) { e.put(append(world, "sites/us", `{"lat":1,"lon":1}`)...) }, "a b"},
		{"written back by Apply", func(_ *etcd, r *running) {
			if _, err := r.Apply(t.Context(), Change{Put: all}); err != nil {
				t.Error(err)
			}
		}, "a b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := startEtcd(t, t.TempDir(), socket(t))
			r := start(t, external(e.listen, ""), nil)
			r.view("nothing", func(v View) bool { return true })
			if _, err := r.Apply(t.Context(), Change{Author: "ann", Put: all}); err != nil {
				t.Fatal(err)
			}
			r.view("the world", hasPool("a"))
			e.put(append(gone, "meta/last-change", "")...)
			s := r.status("held", func(s Status) bool { return s.Held != "" })
			if want := "etcd lost 1 of 1 zones and 2 of 2 pools and 1 of 1 services at revision"; !strings.Contains(s.Held, want) {
				t.Errorf("held: %q, want %q", s.Held, want)
			}
			if v, _ := r.Latest(); names(v, "pools") != "a b" || r.count() != 0 {
				t.Errorf("pools %s, %d more views; want a b and none", names(v, "pools"), r.count())
			}
			for _, force := range []bool{false, true} {
				if _, err := r.Apply(t.Context(), Change{Force: force, Put: objects(t, "sites: {us: {lat: 1, lon: 1}}")}); !isErr(err, ErrHeld) {
					t.Errorf("something else, force %v: %v, want ErrHeld", force, err)
				}
			}
			tt.release(e, r)
			v := r.view("what is taken", func(View) bool { return true })
			if got := names(v, "pools"); got != tt.pools {
				t.Errorf("pools %q, want %q", got, tt.pools)
			}
			if s := r.Status(); s.Held != "" {
				t.Errorf("still held: %q", s.Held)
			}
		})
	}
}

// TestLossThatIsMeant: another node, and one that was away meanwhile, take what a forced change
// left, and hold what was deleted after it.
func TestLossThatIsMeant(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(world...)
	data := t.TempDir()
	away := start(t, external(e.listen, data), nil)
	away.view("the world", hasPool("a"))
	away.status("a snapshot", func(s Status) bool { return !s.DiskSavedAt.IsZero() })
	away.stop()
	one, other := start(t, external(e.listen, ""), nil), start(t, external(e.listen, ""), nil)
	one.view("the world", hasPool("a"))
	other.view("the world", hasPool("a"))
	if _, err := one.Apply(t.Context(), Change{Force: true, Delete: []Key{{"services", "www.example.com"}, {"pools", "a"}, {"pools", "b"}}}); err != nil {
		t.Fatal(err)
	}
	empty := func(v View) bool { return len(v.Objects.Pools) == 0 && len(v.Objects.Services) == 0 }
	one.view("what is left, here", empty)
	other.view("what is left, there", empty)
	away = start(t, external(e.listen, data), nil)
	away.view("the world, from disk", hasPool("a"))
	away.view("what is left, after a while", empty)
	e.put("zones/example.com", "")
	other.status("held", func(s Status) bool { return strings.Contains(s.Held, "1 of 1 zones") })
}

// TestHeldBackup: etcd was restored from a backup and lacks the last changes.
func TestHeldBackup(t *testing.T) {
	dir, backup, listen, data := t.TempDir(), t.TempDir(), socket(t), t.TempDir()
	e := startEtcd(t, dir, listen)
	e.put(world...)
	e.stop()
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	e = startEtcd(t, dir, listen)
	e.put("pools/c", `{"site":"eu"}`)
	r := start(t, external(listen, data), nil)
	r.view("pool c", hasPool("c"))
	r.stop()
	e.stop()

	e = startEtcd(t, backup, listen)
	r = start(t, external(listen, data), nil)
	r.view("pool c from disk", hasPool("c"))
	s := r.status("held", func(s Status) bool { return s.Held != "" })
	if !strings.Contains(s.Held, "went back to revision") || !s.FromDisk {
		t.Errorf("status %+v", s)
	}
	e.put("pools/d", `{"site":"eu"}`)
	e.put("pools/e", `{"site":"eu"}`)
	v := r.view("pool e: the revision has passed what is known", hasPool("e"))
	if got := names(v, "pools"); got != "a b d e" {
		t.Errorf("pools %s, want a b d e", got)
	}
}

func TestFileOnly(t *testing.T) {
	base := &config.Objects{Sites: map[string]config.Site{"eu": {}}}
	r := start(t, Options{Base: base}, nil)
	r.view("site eu", func(v View) bool { return names(v, "sites") == "eu" })
	if _, err := r.Apply(t.Context(), Change{}); !isErr(err, ErrReadOnly) {
		t.Errorf("Apply: %v, want ErrReadOnly", err)
	}
	if err := r.SetBase(&config.Objects{Pools: map[string]config.Pool{"a": {Site: "gone"}}}); err == nil {
		t.Error("SetBase took objects that are not valid")
	}
	if err := r.SetBase(&config.Objects{Sites: map[string]config.Site{"us": {}}}); err != nil {
		t.Fatal(err)
	}
	r.view("site us", func(v View) bool { return names(v, "sites") == "us" })
	if s := r.Status(); s.Mode != ModeFile || s.Connected || s.Error != "" {
		t.Errorf("status %+v", s)
	}
	if _, err := Open(Options{Base: &config.Objects{Pools: map[string]config.Pool{"a": {Site: "gone"}}}}); err == nil {
		t.Error("Open took objects that are not valid")
	}
}

func TestSetBaseUnderStore(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put("pools/a", `{"site":"eu"}`)
	o := external(e.listen, "")
	o.Base = &config.Objects{Sites: map[string]config.Site{"eu": {Lat: 1}}, Pools: map[string]config.Pool{"a": {Site: "eu", Capacity: 3}, "z": {Site: "eu"}}}
	r := start(t, o, nil)
	v := r.view("both", hasPool("a"))
	if v.Objects.Pools["a"].Capacity != 0 || names(v, "pools") != "a z" {
		t.Errorf("pools %+v, want the store's a over the file's, and z", v.Objects.Pools)
	}
	if err := r.SetBase(&config.Objects{Sites: map[string]config.Site{"us": {}}}); err == nil || !strings.Contains(err.Error(), "pools.a.site: no such site; expected us") {
		t.Errorf("SetBase: %v, want that pool a lacks its site", err)
	}
	if err := r.SetBase(&config.Objects{Sites: map[string]config.Site{"eu": {Lat: 2}}}); err != nil {
		t.Fatal(err)
	}
	v = r.view("the new base", func(v View) bool { return v.Objects.Sites["eu"].Lat == 2 })
	if got := names(v, "pools"); got != "a" {
		t.Errorf("pools %s, want a", got)
	}
}

// TestCoalesce feeds the follower by hand, on a clock of its own: events that come close
// together make one view.
func TestCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := Open(Options{Etcd: config.Etcd{Endpoints: []string{"unused:1"}}, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		var views []View
		f := &follower{c: c, update: func(v View) { views = append(views, v) }, entries: map[Key]entry{}, saves: make(chan *snapshot, 1)}
		s := &session{c: c, listings: make(chan listingMsg), batches: make(chan batch)}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); f.run(ctx, s) }()

		s.listings <- listingMsg{&listing{cluster: 1, revision: 1}, nil, make(chan bool, 1)}
		site := func(rev int64) batch {
			kv := &mvccpb.KeyValue{Key: []byte(config.Root + "sites/eu"), Value: []byte(`{"lat":1,"lon":1}`), ModRevision: rev}
			return batch{rev, []*clientv3.Event{{Type: mvccpb.PUT, Kv: kv}}}
		}
		for rev := int64(2); rev < 30; rev++ {
			s.batches <- site(rev)
			time.Sleep(500 * time.Microsecond)
		}
		time.Sleep(time.Second)
		s.batches <- site(30)
		time.Sleep(time.Second)
		cancel()
		<-ended
		var revs []int64
		for _, v := range views {
			revs = append(revs, v.Revision)
		}
		if len(revs) != 3 || revs[0] != 1 || revs[1] != 29 || revs[2] != 30 {
			t.Errorf("views at revisions %v, want 1 29 30", revs)
		}
	})
}

// TestStale wants what comes late, twice or out of order to change nothing: what is known of etcd
// only grows (F11).
func TestStale(t *testing.T) {
	c, err := Open(external("unix:///nowhere", ""))
	if err != nil {
		t.Fatal(err)
	}
	c.log = testLog(t)
	var revisions []int64
	f := &follower{c: c, entries: map[Key]entry{}, saves: make(chan *snapshot, 1), update: func(v View) { revisions = append(revisions, v.Revision) }}
	kv := func(revision int64, lat int) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte(config.Root + "sites/eu"), Value: fmt.Appendf(nil, `{"lat":%d,"lon":8}`, lat), ModRevision: revision}
	}
	events := func(revision int64, kvs ...*mvccpb.KeyValue) batch {
		b := batch{revision: revision}
		for _, kv := range kvs {
			b.events = append(b.events, &clientv3.Event{Type: mvccpb.PUT, Kv: kv})
		}
		return b
	}
	hear := func(b batch) {
		if f.apply(b) {
			f.publish(false)
		}
	}
	if !f.take(&listing{cluster: 1, revision: 10, kvs: []*mvccpb.KeyValue{kv(10, 10)}}) {
		t.Fatal("the first listing is no news")
	}
	f.publish(false)
	hear(events(12, kv(12, 12)))
	hear(events(11, kv(11, 11)))           // late
	hear(events(12, kv(12, 12)))           // twice
	hear(events(12, kv(10, 10), kv(9, 9))) // of old
	hear(events(13, kv(11, 11), kv(13, 13)))
	if why := f.hold(&listing{cluster: 1, revision: 12, kvs: []*mvccpb.KeyValue{kv(12, 12)}}); !strings.Contains(why, "went back to revision 12") {
		t.Errorf("an older listing is held with %q", why)
	}
	if v, _ := c.Latest(); v.Objects.Sites["eu"].Lat != 13 || !slices.Equal(revisions, []int64{10, 12, 13}) {
		t.Errorf("latitude %v by the revisions %v, want 13 by 10, 12, 13", v.Objects.Sites["eu"].Lat, revisions)
	}
}

// alone is how long TestAlone has no etcd. A day, as docs/faults.md has it, is
//
//	go test ./gslb/store -run TestAlone -store.alone 24h
var alone = flag.Duration("store.alone", time.Hour, "virtual time of TestAlone")

// TestAlone wants a node that starts without etcd, and has none for long, to go on by its disk,
// to say so, and to try again all the time without growing (F1).
func TestAlone(t *testing.T) {
	data := t.TempDir()
	saved := &snapshot{Cluster: 1, Revision: 7, Base: &config.Objects{Sites: map[string]config.Site{"eu": {}}}, Store: &config.Objects{Pools: map[string]config.Pool{"a": {Site: "eu"}}}}
	if err := (disk{dir: data}).save(saved); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		o := external(socket(t), data) // where nobody listens
		o.Log = slog.New(slog.DiscardHandler)
		c, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		views := 0
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx, func(View) { views++ }) }()
		time.Sleep(time.Minute)
		before := runtime.NumGoroutine()
		for range 24 {
			time.Sleep(*alone / 24)
			v, ok := c.Latest()
			s := c.Status()
			if !ok || v.Revision != 7 || !hasPool("a")(v) || s.Connected || !s.FromDisk || s.Error == "" {
				t.Fatalf("view %v of revision %d, status %+v; want that of the disk and an error", ok, v.Revision, s)
			}
		}
		if after := runtime.NumGoroutine(); views != 1 || after > before+10 {
			t.Errorf("%d views, %d goroutines after it and %d before; want 1, and no more", views, after, before)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
