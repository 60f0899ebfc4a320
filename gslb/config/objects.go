package config

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// Kinds names the kinds of objects in the order in which people read them: first what
// others refer to.
var Kinds = []string{"sites", "zones", "probes", "pools", "chains", "services", "states", "nodes"}

// objectKey names an object.
type objectKey struct{ kind, name string }

// table returns the map of o that holds the objects of that kind; the zero Value when there
// is no such kind.
func (o *Objects) table(kind string) reflect.Value {
	switch kind {
	case "sites":
		return reflect.ValueOf(&o.Sites).Elem()
	case "zones":
		return reflect.ValueOf(&o.Zones).Elem()
	case "probes":
		return reflect.ValueOf(&o.Probes).Elem()
	case "pools":
		return reflect.ValueOf(&o.Pools).Elem()
	case "chains":
		return reflect.ValueOf(&o.Chains).Elem()
	case "services":
		return reflect.ValueOf(&o.Services).Elem()
	case "states":
		return reflect.ValueOf(&o.States).Elem()
	case "nodes":
		return reflect.ValueOf(&o.Nodes).Elem()
	}
	return reflect.Value{}
}

// Names returns the names of the objects of one of Kinds, sorted.
func (o *Objects) Names(kind string) []string {
	var names []string
	if t := o.table(kind); t.IsValid() {
		for _, k := range t.MapKeys() {
			names = append(names, k.String())
		}
	}
	slices.Sort(names)
	return names
}

// Object returns one object (a Site, Zone, Probe, Pool, Service, State or NodeKey) and whether it
// is there.
func (o *Objects) Object(kind, name string) (any, bool) {
	t := o.table(kind)
	if !t.IsValid() {
		return nil, false
	}
	v := t.MapIndex(reflect.ValueOf(name))
	if !v.IsValid() {
		return nil, false
	}
	return v.Interface(), true
}

// Len returns how many objects o holds.
func (o *Objects) Len() int {
	return len(o.Sites) + len(o.Zones) + len(o.Probes) + len(o.Pools) + len(o.Chains) + len(o.Services) + len(o.States) + len(o.Nodes)
}

// Clone returns a copy of o whose tables may be changed without changing o's. The objects
// themselves are shared.
func (o *Objects) Clone() *Objects {
	if o == nil {
		return &Objects{}
	}
	return &Objects{
		Sites: maps.Clone(o.Sites), Zones: maps.Clone(o.Zones), Probes: maps.Clone(o.Probes),
		Pools: maps.Clone(o.Pools), Chains: maps.Clone(o.Chains), Services: maps.Clone(o.Services), States: maps.Clone(o.States), Nodes: maps.Clone(o.Nodes),
		places: maps.Clone(o.places),
	}
}

// Put sets one object: v is a Site for "sites", and so on. It changes o, so that it is for
// objects that were not yet handed on. An unknown kind or another type is an error.
func (o *Objects) Put(kind, name string, v any) error {
	t := o.table(kind)
	if !t.IsValid() {
		return fmt.Errorf("kind %q: %s", kind, expected(Kinds))
	}
	val := reflect.ValueOf(v)
	if !val.IsValid() || val.Type() != t.Type().Elem() {
		return fmt.Errorf("%s/%s: a %T; expected a %s", kind, name, v, t.Type().Elem().Name())
	}
	if t.IsNil() {
		t.Set(reflect.MakeMap(t.Type()))
	}
	t.SetMapIndex(reflect.ValueOf(name), val)
	delete(o.places, objectKey{kind, name})
	return nil
}

// Take sets one object to that of from, with the memory of where it was written, and reports
// whether from has it. It changes o, so that it is for objects that were not yet handed on.
func (o *Objects) Take(from *Objects, kind, name string) bool {
	v, ok := from.Object(kind, name)
	if !ok || o.Put(kind, name, v) != nil {
		return false
	}
	k := objectKey{kind, name}
	o.setPlaces(k, from.places[k])
	return true
}

// Delete removes one object and reports whether it was there. It changes o, so that it is
// for objects that were not yet handed on.
func (o *Objects) Delete(kind, name string) bool {
	if _, ok := o.Object(kind, name); !ok {
		return false
	}
	o.table(kind).SetMapIndex(reflect.ValueOf(name), reflect.Value{})
	delete(o.places, objectKey{kind, name})
	return true
}

// Merge returns base overlaid by over: an object of over replaces the one of base with the
// same kind and name, as a whole. Either may be nil; neither is changed.
func Merge(base, over *Objects) *Objects {
	out := base.Clone()
	if over == nil {
		return out
	}
	for _, kind := range Kinds {
		from, to := over.table(kind), out.table(kind)
		if from.Len() > 0 && to.IsNil() {
			to.Set(reflect.MakeMap(to.Type()))
		}
		for it := from.MapRange(); it.Next(); {
			to.SetMapIndex(it.Key(), it.Value())
			out.setPlaces(objectKey{kind, it.Key().String()}, over.places[objectKey{kind, it.Key().String()}])
		}
	}
	return out
}

// setPlaces remembers where an object was written; nil forgets it.
func (o *Objects) setPlaces(k objectKey, pl *places) {
	if pl == nil {
		delete(o.places, k)
		return
	}
	if o.places == nil {
		o.places = map[objectKey]*places{}
	}
	o.places[k] = pl
}

// The operations of a Change.
const (
	OpAdd    = "add"
	OpChange = "change"
	OpDelete = "delete"
)

// Change is the difference that one object makes.
type Change struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Op     string `json:"op"`               // OpAdd, OpChange or OpDelete
	Before any    `json:"before,omitempty"` // nil with OpAdd; otherwise as Objects.Object returns it
	After  any    `json:"after,omitempty"`  // nil with OpDelete
}

// Diff returns what turns a to b, by the order of Kinds and then by name. Either may be nil.
// Objects whose canonical JSON is the same do not differ.
func Diff(a, b *Objects) []Change {
	if a == nil {
		a = &Objects{}
	}
	if b == nil {
		b = &Objects{}
	}
	var out []Change
	for _, kind := range Kinds {
		names := append(a.Names(kind), b.Names(kind)...)
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			before, was := a.Object(kind, name)
			after, is := b.Object(kind, name)
			c := Change{Kind: kind, Name: name, Op: OpChange, Before: before, After: after}
			switch {
			case !was:
				c.Op = OpAdd
			case !is:
				c.Op = OpDelete
			case Equal(before, after):
				continue
			}
			out = append(out, c)
		}
	}
	return out
}

// Equal reports whether two objects of one kind have the same canonical JSON.
func Equal(a, b any) bool {
	x, errX := MarshalObject(a)
	y, errY := MarshalObject(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
