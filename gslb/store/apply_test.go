package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

func isErr(err, target error) bool { return errors.Is(err, target) }

func objects(t *testing.T, text string) *config.Objects {
	t.Helper()
	o, err := config.ParseObjects("change.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestApply(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	first := e.put(world...)
	o := external(e.listen, "")
	o.Base = &config.Objects{Sites: map[string]config.Site{"file": {}}}
	r := start(t, o, nil)
	r.view("the world", hasPool("a"))

	tests := []struct {
		name   string
		change Change
		want   error  // nil: it is written
		text   string // in the error
	}{
		{"dangling", Change{Put: objects(t, "services: {x.example.com: {pools: {gone: }}}")}, nil, "change.yaml:1: services.x.example.com.pools.gone: no such pool"},
		{"delete what is in use", Change{Delete: []Key{{"pools", "a"}}}, nil, "services.www.example.com.pools.a: no such pool"},
		{"no such object", Change{Delete: []Key{{"pools", "x"}}}, ErrNotFound, "pools/x: no such object"},
		{"no such kind", Change{Delete: []Key{{"boats", "x"}}}, ErrNotFound, "expected one of sites"},
		{"of the file", Change{Delete: []Key{{"sites", "file"}}}, ErrNotFound, "it stands in the configuration file"},
		{"twice", Change{Delete: []Key{{"pools", "a"}}, Put: objects(t, "pools: {a: {site: eu}}")}, nil, "named twice"},
		{"zone with a file", Change{Put: objects(t, "zones: [{name: example.org, file: x.zone}]")}, nil, "the store keeps no files"},
		{"no endpoint left", Change{Put: objects(t, "pools: {a: {site: eu}, b: {site: eu}}")}, ErrGuard, "services.www.example.com.pools: no endpoint could ever answer"},
		{"everything", Change{Delete: keysOf(world)}, ErrGuard, "removes 1 of 1 zones"},
		{"newer", Change{At: first - 1, Put: objects(t, "pools: {a: {site: eu}}")}, ErrConflict, "pools/a was changed at revision"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rev, err := r.Apply(t.Context(), tt.change)
			if err == nil {
				t.Fatalf("written at %d, want an error with %q", rev, tt.text)
			}
			if tt.want != nil && !isErr(err, tt.want) {
				t.Errorf("error %v, want a %v", err, tt.want)
			}
			if !strings.Contains(err.Error(), tt.text) || isErr(err, ErrUnavailable) {
				t.Errorf("error %q, want one with %q", err, tt.text)
			}
		})
	}
	if v, _ := r.Latest(); v.Revision != first {
		t.Errorf("revision %d after refusals, want %d: nothing written", v.Revision, first)
	}

	// What is refused for caution alone goes through with force.
	rev, err := r.Apply(t.Context(), Change{Force: true, Author: "ann", Put: objects(t, "pools: {a: {site: eu}, b: {site: eu}}")})
	if err != nil {
		t.Fatal(err)
	}
	r.view("the forced change", func(v View) bool { return v.Revision == rev && len(v.Objects.Pools["a"].Endpoints) == 0 })
	again, err := r.Apply(t.Context(), Change{Author: "bob", Put: objects(t, "pools: {a: {site: eu}, b: {site: eu}}")})
	if err != nil || again != rev {
		t.Errorf("a change that changes nothing: revision %d, %v; want %d and nothing written", again, err, rev)
	}
	_, err = r.Apply(t.Context(), Change{At: rev - 1, Put: objects(t, "pools: {a: {site: eu, capacity: 1}}")})
	var conflict *ConflictError
	if !errors.As(err, &conflict) || conflict.Author != "ann" || conflict.Revision != rev || conflict.Key != (Key{"pools", "a"}) {
		t.Errorf("conflict %v, want pools/a at %d by ann", err, rev)
	}
	if _, err = r.Apply(t.Context(), Change{At: rev, Put: objects(t, "pools: {a: {site: eu, capacity: 1}}")}); err != nil {
		t.Errorf("at the current revision: %v", err)
	}

	// Everything at once, in one transaction.
	rev, err = r.Apply(t.Context(), Change{Force: true, Delete: keysOf(world)})
	if err != nil {
		t.Fatal(err)
	}
	if v := r.view("nothing but the file", func(v View) bool { return v.Objects.Len() == 1 }); v.Revision != rev {
		t.Errorf("revision %d, want %d", v.Revision, rev)
	}
}

// TestApplyIsReadBack: a change is in the view once Apply returns, so that the next one may be
// made for it.
func TestApplyIsReadBack(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(world...)
	r := start(t, external(e.listen, ""), nil)
	r.view("the world", hasPool("a"))
	for i := range 5 {
		v, _ := r.Latest()
		rev, err := r.Apply(t.Context(), Change{At: v.Revision, Put: &config.Objects{Pools: map[string]config.Pool{"c": {Site: "eu", Capacity: float64(i + 1)}}}})
		if err != nil {
			t.Fatal(err)
		}
		if v, _ = r.Latest(); v.Revision != rev || v.Objects.Pools["c"].Capacity != float64(i+1) {
			t.Errorf("view of revision %d with pool c %+v after Apply at %d", v.Revision, v.Objects.Pools["c"], rev)
		}
	}
}

// TestApplyBesideFaults: what someone wrote past Apply and is not valid can be written over or
// deleted, and stands in the way of no other change.
func TestApplyBesideFaults(t *testing.T) {
	for _, bad := range []struct{ name, value string }{
		{"cannot be read", "{{"},
		{"refers to nothing", `{"site":"nowhere"}`},
	} {
		t.Run(bad.name, func(t *testing.T) {
			e := startEtcd(t, t.TempDir(), socket(t))
			e.put(world...)
			r := start(t, external(e.listen, ""), nil)
			good := r.view("the world", hasPool("a")).Objects.Pools["a"]
			e.put("pools/a", bad.value, "pools/bad", bad.value)
			v := r.view("the faults", func(v View) bool { return len(v.Faults) == 2 })

			put := &config.Objects{States: map[string]config.State{"b": {Pool: "b", State: "drain"}}}
			if _, err := r.Apply(t.Context(), Change{At: v.Revision, Author: "ann", Put: put}); err != nil {
				t.Errorf("drain of another pool: %v", err)
			}
			_, err := r.Apply(t.Context(), Change{Put: objects(t, "services: {x.example.com: {pools: {bad: }}}")})
			if fs := config.Faults(err); len(fs) == 0 || !strings.Contains(err.Error(), "pools.bad") {
				t.Errorf("a service on what is left out: %v, want a fault with pools.bad", err)
			}
			v = r.view("the drain", func(v View) bool { return len(v.Objects.States) == 1 })
			if _, err := r.Apply(t.Context(), Change{At: v.Revision, Put: &config.Objects{Pools: map[string]config.Pool{"a": good}}}); err != nil {
				t.Errorf("writing over it: %v", err)
			}
			if _, err := r.Apply(t.Context(), Change{Delete: []Key{{"pools", "bad"}}}); err != nil {
				t.Errorf("deleting it: %v", err)
			}
			r.view("no faults", func(v View) bool { return len(v.Faults) == 0 && v.Stored.Pools["a"].Site == "eu" })
		})
	}
}

func TestSound(t *testing.T) {
	const head = "sites: {s: {lat: 0, lon: 0}}\nzones: [{name: x, records: y}]\n"
	tests := []struct{ name, good, next, pools, held string }{
		{"valid", "pools: {a: {site: s}}", "pools: {b: {site: s}}", "b", ""},
		{"one of two", "pools: {a: {site: s}}", "pools: {a: {site: gone}, b: {site: s}}", "a b", "[pools/a]"},
		{"a new one", "", "pools: {a: {site: gone}, b: {site: s}}", "b", "[pools/a]"},
		{"what leads to it", "", "pools: {a: {site: gone}, b: {site: s}}\nservices: {www.x: {pools: {a: }}, api.x: {pools: {b: }}}", "b", "[pools/a services/www.x]"},
		{"deleted in use", "pools: {a: {site: s}, b: {site: s}}\nservices: {www.x: {pools: {a: }}}", "services: {www.x: {pools: {a: }}}", "a", "[pools/a]"},
		{"deleted with its user, beside a fault", "pools: {a: {site: s}, b: {site: s}}\nservices: {www.x: {pools: {a: }}}", "pools: {b: {site: gone}}", "b", "[pools/b]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, held, fault := sound(objects(t, head), objects(t, head+tt.good), objects(t, head+tt.next))
			if got := strings.Join(out.Names("pools"), " "); got != tt.pools {
				t.Errorf("pools %s, want %s", got, tt.pools)
			}
			if got := fmt.Sprint(held); (fault != nil || tt.held != "") && got != tt.held {
				t.Errorf("held %s, want %s", got, tt.held)
			}
			if err := config.Validate(config.Merge(objects(t, head), out)); err != nil {
				t.Errorf("not valid: %v", err)
			}
		})
	}
	if out, _, fault := sound(nil, nil, objects(t, "pools: {a: {site: gone}}")); out != nil || fault == nil {
		t.Errorf("with nothing to stand on: %+v, %v; want nothing and the fault", out, fault)
	}
}

func keysOf(kvs []string) (out []Key) {
	for i := 0; i < len(kvs); i += 2 {
		kind, name, _ := strings.Cut(kvs[i], "/")
		out = append(out, Key{kind, name})
	}
	return out
}

func TestApplyStampsStates(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(world...)
	r := start(t, external(e.listen, ""), nil)
	r.view("the world", hasPool("a"))
	before := time.Now().Add(-2 * time.Second)
	put := &config.Objects{States: map[string]config.State{"a": {Pool: "a", State: "drain", Reason: "upgrade"}}}
	if _, err := r.Apply(t.Context(), Change{Author: "ann", Put: put}); err != nil {
		t.Fatal(err)
	}
	if put.States["a"].Author != "" {
		t.Error("Apply changed its argument")
	}
	s := r.view("the state", func(v View) bool { return len(v.Objects.States) == 1 }).Objects.States["a"]
	if s.Author != "ann" || s.Since.Before(before) || s.Since.After(time.Now()) {
		t.Errorf("state %+v, want ann's, since now", s)
	}
	if _, err := r.Apply(t.Context(), Change{Put: &config.Objects{States: map[string]config.State{"b": {Pool: "b", State: "drain"}}}}); err == nil {
		t.Error("a state without an author was written")
	}
}

// TestApplyAtOnce: writers of different objects all get through, and never make a whole
// that is not valid of two changes that are each valid alone.
func TestApplyAtOnce(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	e.put(world...)
	r := start(t, external(e.listen, ""), nil)
	r.view("the world", hasPool("a"))
	const writers = 6
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			put := &config.Objects{Pools: map[string]config.Pool{fmt.Sprintf("p%d", i): {Site: "eu"}}}
			if _, err := r.Apply(context.Background(), Change{Author: "ann", Put: put}); err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	r.view("every pool", func(v View) bool { return len(v.Objects.Pools) == 2+writers })

	for i := range writers {
		name := fmt.Sprintf("p%d", i)
		var used, deleted error
		wg.Go(func() {
			_, used = r.Apply(context.Background(), Change{Put: objects(t, fmt.Sprintf("services: {s%d.example.com: {pools: {a: , %s: }}}", i, name))})
		})
		wg.Go(func() { _, deleted = r.Apply(context.Background(), Change{Delete: []Key{{"pools", name}}}) })
		wg.Wait()
		if (used == nil) == (deleted == nil) {
			t.Errorf("pool %s: used %v, deleted %v; want exactly one to go through", name, used, deleted)
		}
	}
	if s := r.Status(); len(s.Faults) != 0 {
		t.Errorf("faults %q, want none", s.Faults)
	}
}

// TestApplyMany writes more than one page of a listing in one transaction, and lists it
// again and again: what did not change makes no view.
func TestApplyMany(t *testing.T) {
	e := startEtcd(t, t.TempDir(), socket(t))
	r := start(t, external(e.listen, ""), func(tm *timing) { tm.relist, tm.timeout = 20*time.Millisecond, time.Minute })
	r.view("nothing", func(View) bool { return true })
	put := &config.Objects{Sites: map[string]config.Site{}}
	for i := range 1203 {
		put.Sites[fmt.Sprintf("s%d", i)] = config.Site{Lat: float64(i % 90)}
	}
	rev, err := r.Apply(t.Context(), Change{Put: put})
	if err != nil {
		t.Fatal(err)
	}
	v := r.view("every site", func(v View) bool { return v.Revision == rev })
	if d := config.Diff(v.Objects, put); len(d) != 0 {
		t.Errorf("%d of %d sites differ", len(d), len(put.Sites))
	}
	last := r.Status().LastContact
	for range 5 {
		last = r.status("another listing", func(s Status) bool { return s.LastContact.After(last) }).LastContact
	}
	if n := r.count(); n != 0 {
		t.Errorf("%d more views of the same", n)
	}
}

func TestGuard(t *testing.T) {
	const head = "sites: {s: {lat: 0, lon: 0}}\nzones: [{name: x, records: y}]\n"
	five := "pools: {a: {site: s, endpoints: [{address: 192.0.2.1}]}, b: {site: s}, c: {site: s}, d: {site: s}, e: {site: s}}\n"
	tests := []struct{ name, before, after, want string }{
		{"nothing", five, five, ""},
		{"from nothing", "", five, ""},
		{"two of five pools", five, "pools: {a: {site: s}, b: {site: s}, c: {site: s}}", ""},
		{"three of five pools", five, "pools: {a: {site: s}, f: {site: s}, c: {site: s}}", "removes 3 of 5 pools"},
		{"the last endpoint", five + "services: {www.x: {pools: {a: }}}", "pools: {a: {site: s}, b: {site: s}, c: {site: s}}\nservices: {www.x: {pools: {a: }}}", "services.www.x.pools: no endpoint"},
		{"weight 0", five + "services: {www.x: {pools: {a: }}}", five + "services: {www.x: {pools: {a: {weight: 0}}}}", "services.www.x.pools: no endpoint"},
		{"was without before", five + "services: {www.x: {pools: {b: }}}", five + "services: {www.x: {pools: {b: , c: }}}", ""},
		{"a new one without", five, five + "services: {www.x: {pools: {b: }}}", "services.www.x.pools: no endpoint"},
		{"the only service", five + "services: {www.x: {pools: {a: }}}", five, "removes 1 of 1 services"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Guard(objects(t, head+tt.before), objects(t, head+tt.after))
			if tt.want == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if tt.want != "" && (!isErr(err, ErrGuard) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}
