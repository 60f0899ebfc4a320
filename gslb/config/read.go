package config

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"unicode/utf8"
)

// Root is the prefix of the keys that objects have in the store: Root/<kind>/<name>.
const Root = "/meridian/v1/"

// ReadFile reads and checks one configuration file as Parse does.
func ReadFile(name string) (*File, error) {
	data, err := readBounded(name)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return Parse(name, data)
}

// readBounded reads a file of at most maxSize octets. It does not wait for somebody to write into a
// pipe: one without a writer is empty.
func readBounded(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("%s: larger than %d octets", name, maxSize)
	}
	return data, nil
}

// Parse reads and checks a configuration file with that content. The error joins every
// Fault, by line (see Faults), and then the file is what could be read of it, to look for
// more faults in and for nothing else, or nil. name stands in the faults; names of files in
// the configuration are taken relative to its folder, and come back so.
func Parse(name string, data []byte) (*File, error) {
	d := newDecoder(name)
	f := &File{places: d.places}
	if root := d.parse(data); root != nil {
		d.value(root, reflect.ValueOf(f).Elem(), nil)
	} else if len(d.faults) > 0 {
		return nil, d.faults.err()
	}
	f.Objects.placeAll(d.places)
	all := append(append(d.faults, d.faults.unexplained(f.check())...), d.repeatedFaults()...)
	f.resolve(filepath.Dir(name))
	return f, all.err()
}

// ParseObjects reads objects alone, as "apply" takes them: YAML or JSON, with a node section
// or without. Each object is checked by itself; what it refers to may be in the store, so
// that references are for Validate on the merged whole. Errors are as Parse's.
func ParseObjects(name string, data []byte) (*Objects, error) {
	d := newDecoder(name)
	var f struct {
		Node    ignored `json:"node"`
		Objects `json:",inline"`
	}
	if root := d.parse(data); root != nil {
		d.value(root, reflect.ValueOf(&f).Elem(), nil)
	}
	o := &f.Objects
	o.placeAll(d.places)
	if all := append(append(d.faults, d.faults.unexplained(o.check(false))...), d.repeatedFaults()...); len(all) > 0 {
		return nil, all.err()
	}
	for name, z := range o.Zones {
		z.File = relativeTo(filepath.Dir(d.places.file), z.File)
		o.Zones[name] = z
	}
	return o, nil
}

// DecodeObject reads one value of the store, JSON as MarshalObject writes it, into the
// table of its kind. The object is checked by itself, not what it refers to. On a fault
// nothing is set, and the error joins every Fault; their file is the key in the store.
func DecodeObject(kind, name string, data []byte, into *Objects) error {
	d := newDecoder(Root + kind + "/" + name)
	p := path{kind, name}
	var one Objects
	table := one.table(kind)
	if !table.IsValid() {
		d.faults.add(fault{Fault: Fault{File: d.places.file, Msg: fmt.Sprintf("unknown kind; %s", expected(Kinds))}})
		return d.faults.err()
	}
	oneLine := !bytes.ContainsRune(data, '\n') // its number says nothing
	root := d.parse(data)
	if root == nil {
		if len(d.faults) == 0 {
			d.faults.add(fault{Fault: Fault{File: d.places.file, Msg: "empty; expected an object"}, path: p})
		}
		if oneLine {
			d.faults.dropLines()
		}
		return d.faults.err()
	}
	v := reflect.New(table.Type().Elem()).Elem()
	d.value(root, v, p)
	if z, ok := v.Addr().Interface().(*Zone); ok {
		if z.Name == "" {
			z.Name = name
		}
		if z.File != "" {
			d.fail(root, p.at("file"), "a file name; in the store a zone carries its records")
		}
	}
	table.Set(reflect.MakeMap(table.Type()))
	table.SetMapIndex(reflect.ValueOf(name), v)
	if oneLine {
		d.places.lines = nil
		d.faults.dropLines()
	}
	one.placeAll(d.places)
	if all := append(d.faults, d.faults.unexplained(one.check(false))...); len(all) > 0 {
		return all.err()
	}
	if err := into.Put(kind, name, v.Interface()); err != nil {
		return err
	}
	into.setPlaces(objectKey{kind, name}, d.places)
	return nil
}

func newDecoder(file string) *decoder {
	return &decoder{places: &places{file: file, lines: map[string]int{}}}
}

// placeAll remembers that every object of o was written in pl.
func (o *Objects) placeAll(pl *places) {
	for _, kind := range Kinds {
		for _, k := range o.table(kind).MapKeys() {
			o.setPlaces(objectKey{kind, k.String()}, pl)
		}
	}
}

// resolve takes the names of files in f relative to dir.
func (f *File) resolve(dir string) {
	for name, z := range f.Zones {
		z.File = relativeTo(dir, z.File)
		f.Zones[name] = z
	}
	for _, p := range f.Probes {
		p.relativeTo(dir)
	}
	n := &f.Node
	for _, s := range []*string{&n.Health.Exec, &n.Data, &n.Geo.City, &n.Geo.ASN, &n.Etcd.TLS.CA, &n.Etcd.TLS.Cert, &n.Etcd.TLS.Key,
		&n.XDS.TLS.CA, &n.XDS.TLS.Cert, &n.XDS.TLS.Key, &n.XDS.Certificates} {
		*s = relativeTo(dir, *s)
	}
	n.Decisions.relativeTo(dir)
}

func relativeTo(dir, name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}

// ResolveFiles returns o with every zone's File read into its Records, as the store keeps
// zones. o is not changed. The error joins a Fault for every file that cannot be read.
func ResolveFiles(o *Objects) (*Objects, error) {
	out := o.Clone()
	var faults faultList
	for _, name := range o.Names("zones") {
		z := o.Zones[name]
		if z.File == "" {
			continue
		}
		data, err := readBounded(z.File)
		if info, unseen := os.Stat(z.File); unseen == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s: expected a regular file", z.File) // as who serves the zone wants it
		}
		if err == nil && !utf8.Valid(data) {
			err = fmt.Errorf("%s: not UTF-8; expected other octets as \\DDD (RFC 1035, section 5.1)", z.File)
		}
		if err == nil && len(data) == 0 {
			err = fmt.Errorf("%s: empty; expected the records of a zone", z.File)
		}
		if err != nil {
			p := path{"zones", name, "file"}
			file, line := o.places[objectKey{"zones", name}].find(p)
			faults.add(fault{Fault: Fault{File: file, Line: line, Msg: err.Error()}, path: p})
			continue
		}
		z.File, z.Records = "", string(data)
		out.Zones[name] = z
	}
	if err := faults.err(); err != nil {
		return nil, err
	}
	return out, nil
}
