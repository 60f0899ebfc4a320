package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
)

// What a document may cost. They bound memory whatever the document says: a node of the
// YAML tree takes some 150 octets, and every node but the first needs a mark to be told
// from the one before it.
const (
	maxSize   = 16 << 20 // octets of a document, and of a zone file
	maxMarks  = 1 << 20  // octets of , : [ { - ? and newline
	maxVisits = 1 << 20  // nodes read, those behind an alias each time that it is used
	maxDepth  = 32       // levels of nesting; the model has 9
	maxKey    = 255      // octets of a key, and of each step of a path
)

// decoder reads one YAML document (or JSON, which is YAML) into the model. It collects
// faults and never stops at the first.
type decoder struct {
	faults faultList
	places *places
	visits int
	again  []repeated
}

// repeated is an object that is given once more: it is not used, but its faults are told.
type repeated struct {
	path path
	node *yaml.Node
}

// repeatedFaults returns what is wrong with the objects that are given once more.
func (d *decoder) repeatedFaults() (faults faultList) {
	for _, r := range d.again {
		one := newDecoder(d.places.file)
		one.visits = d.visits
		var o Objects
		table := o.table(r.path[0])
		v := reflect.New(table.Type().Elem()).Elem()
		one.value(r.node, v, r.path)
		d.visits = one.visits
		table.Set(reflect.MakeMap(table.Type()))
		table.SetMapIndex(reflect.ValueOf(r.path[1]), v)
		o.placeAll(one.places)
		faults = append(faults, append(one.faults, one.faults.unexplained(o.check(false))...)...)
	}
	return faults
}

// parse returns the root of the document in data; nil when it is empty or has a fault that
// leaves nothing to read.
func (d *decoder) parse(data []byte) (root *yaml.Node) {
	fail := func(line int, format string, args ...any) {
		root = nil
		d.faults.add(fault{Fault: Fault{File: d.places.file, Line: line, Msg: fmt.Sprintf(format, args...)}})
	}
	if len(data) > maxSize {
		fail(0, "%d octets long; expected at most %d", len(data), maxSize)
		return nil
	}
	marks := 0
	for _, c := range data {
		switch c {
		case ',', ':', '[', '{', '-', '?', '\n':
			marks++
		}
	}
	if marks > maxMarks {
		fail(0, "more than %d values", maxMarks)
		return nil
	}
	// The bytes come from outside and the parser is large: a bug in it must cost this
	// document, not the process.
	defer func() {
		if r := recover(); r != nil {
			fail(0, "the YAML parser gave up: %v", r)
		}
	}()

	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		fail(syntaxFault(err))
		return nil
	}
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		fail(syntaxFault(err))
		return nil
	default:
		fail(second.Line, "a second document; expected one")
		return nil
	}
	if len(doc.Content) != 1 || isNull(doc.Content[0]) {
		return nil
	}
	return doc.Content[0]
}

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntaxFault takes the line out of an error of the YAML parser.
func syntaxFault(err error) (line int, format, msg string) {
	m := yamlError.FindStringSubmatch(err.Error())
	if m == nil {
		return 0, "not YAML: %s", err.Error()
	}
	line, _ = strconv.Atoi(m[1])
	return line, "not YAML: %s", m[2]
}

// fail records a fault at n.
func (d *decoder) fail(n *yaml.Node, p path, format string, args ...any) {
	d.faults.add(fault{
		Fault: Fault{File: d.places.file, Line: n.Line, Msg: fmt.Sprintf(format, args...)},
		path:  p,
	})
}

// enter remembers where p stands and returns the node behind an alias; nil when the
// document is too deep or too large to go on.
func (d *decoder) enter(n *yaml.Node, p path) *yaml.Node {
	if k := p.key(); d.places.lines[k] == 0 {
		d.places.lines[k] = n.Line
	}
	d.visits++
	switch {
	case d.visits == maxVisits:
		d.fail(n, p, "more than %d values, with those behind aliases", maxVisits)
		return nil
	case d.visits > maxVisits:
		return nil
	case len(p) > maxDepth:
		d.fail(n, p[:4], "nested more than %d deep", maxDepth)
		return nil
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias // never itself an alias
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.fail(n, p, "tag %s; expected none", n.Tag)
		return nil
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// describe says what n is, for "found X; expected Y".
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "no value"
	case len(n.Value) > 64:
		return fmt.Sprintf("%.64q…", n.Value)
	}
	return strconv.Quote(n.Value)
}

// ignored is a value that is not read.
type ignored struct{}

// value reads n into v. Types with a shorthand or a text form come first; the rest goes by
// its kind.
func (d *decoder) value(n *yaml.Node, v reflect.Value, p path) {
	if n = d.enter(n, p); n == nil {
		return
	}
	switch x := v.Addr().Interface().(type) {
	case *ignored:
		return
	case *map[string]Zone:
		d.zones(n, x, p)
		return
	case *map[string]Service:
		d.mapping(n, v, p, CanonicalName)
		return
	case *Stage:
		d.stage(n, x, p)
		return
	case *FailoverStage:
		d.failover(n, x, p)
		return
	case *[][]string:
		d.ranks(n, x, p)
		return
	case *FenceStage:
		d.orList(n, v, p, "rules")
		return
	case *Chain:
		d.orList(n, v, p, "policy")
		return
	case *MatchStage:
		d.orList(n, v, p, "cases")
		return
	case *[]Stage:
		d.stages(n, v, p)
		return
	case *Upstream:
		d.upstream(n, x, p)
		return
	case *Raw:
		d.raw(n, x, p)
		return
	case *AllDown:
		d.allDown(n, x, p)
		return
	case *Duration:
		text(d, n, p, x, "a duration such as 30s or 1500ms", func(s string) (Duration, error) {
			t, err := time.ParseDuration(s)
			return Duration(t), err
		})
		return
	case *netip.Addr:
		text(d, n, p, x, "an IP address", netip.ParseAddr)
		return
	case *netip.AddrPort:
		text(d, n, p, x, "an address and port such as 127.0.0.1:5300", netip.ParseAddrPort)
		return
	case *netip.Prefix:
		text(d, n, p, x, "a prefix such as 192.0.2.0/24", netip.ParsePrefix)
		return
	case *time.Time:
		text(d, n, p, x, "a time such as 2026-01-31T14:00:00Z", func(s string) (time.Time, error) {
			return time.Parse(time.RFC3339, s)
		})
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if isNull(n) {
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		d.visits-- // the same node once more
		d.value(n, v.Elem(), p)
	case reflect.Struct:
		d.structure(n, v, p)
	case reflect.Map:
		d.mapping(n, v, p, func(s string) string { return s })
	case reflect.Slice:
		d.list(n, v, p)
	default:
		d.scalar(n, v, p)
	}
}

// text reads a scalar in a text form.
func text[T any](d *decoder, n *yaml.Node, p path, into *T, want string, parse func(string) (T, error)) {
	if n.Kind == yaml.ScalarNode && !isNull(n) {
		if v, err := parse(n.Value); err == nil {
			*into = v
			return
		}
	}
	d.fail(n, p, "found %s; expected %s", describe(n), want)
}

// scalar reads strings, booleans and numbers. A string takes the text of any plain scalar,
// so that a password of digits needs no quotes; the others want their own type.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, p path) {
	var want string
	ok := n.Kind == yaml.ScalarNode && !isNull(n)
	switch v.Kind() {
	case reflect.String:
		want = "a text"
		if ok {
			v.SetString(n.Value)
		}
	case reflect.Bool:
		want = "true or false"
		b, err := strconv.ParseBool(n.Value)
		if ok = ok && n.Tag == "!!bool" && err == nil; ok {
			v.SetBool(b)
		}
	case reflect.Int:
		want = "a whole number"
		i, err := strconv.ParseInt(n.Value, 10, 64)
		if ok = ok && n.Tag == "!!int" && err == nil && !v.OverflowInt(i); ok {
			v.SetInt(i)
		}
	case reflect.Uint16:
		want = "a whole number, 0 to 65535"
		u, err := strconv.ParseUint(n.Value, 10, 16)
		if ok = ok && n.Tag == "!!int" && err == nil; ok {
			v.SetUint(u)
		}
	case reflect.Float64:
		want = "a number"
		f, err := strconv.ParseFloat(n.Value, 64)
		if ok = ok && (n.Tag == "!!int" || n.Tag == "!!float") && err == nil && !math.IsInf(f, 0) && !math.IsNaN(f); ok {
			v.SetFloat(f)
		}
	default:
		panic(fmt.Sprintf("config: no reader for %s, the type of %s", v.Type(), p))
	}
	if !ok {
		d.fail(n, p, "found %s; expected %s", describe(n), want)
	}
}

// pair is one entry of a mapping.
type pair struct {
	key   string
	line  int
	value *yaml.Node
}

// pairs returns the entries of a mapping with its merge keys (<<) resolved: what stands in
// the mapping itself comes first and wins. A key that is given twice is a fault.
func (d *decoder) pairs(n *yaml.Node, p path) []pair {
	var out []pair
	first := map[string]int{}
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind == yaml.AliasNode {
			k = k.Alias
		}
		switch {
		case k.Kind == yaml.ScalarNode && k.Tag == "!!merge":
			merges = append(merges, v)
			continue
		case k.Kind != yaml.ScalarNode || isNull(k) || k.Style&yaml.TaggedStyle != 0:
			d.fail(k, p, "found %s as a key; expected a text", describe(k))
			continue
		case len(k.Value) > maxKey:
			d.fail(k, p, "key %s is %d octets long; expected at most %d", describe(k), len(k.Value), maxKey)
			continue
		case first[k.Value] != 0:
			d.fail(k, p.at(k.Value), "given twice; first on line %d", first[k.Value])
			if len(p) == 1 && slices.Contains(Kinds, p[0]) {
				d.again = append(d.again, repeated{p.at(k.Value), v})
			}
			continue
		}
		first[k.Value] = max(1, k.Line)
		out = append(out, pair{k.Value, k.Line, v})
	}
	for len(merges) > 0 {
		m := d.enter(merges[0], p)
		merges = merges[1:]
		switch {
		case m == nil:
			return out
		case m.Kind == yaml.SequenceNode:
			merges = append(slices.Clone(m.Content), merges...)
		case m.Kind == yaml.MappingNode:
			for i := 0; i+1 < len(m.Content); i += 2 {
				d.visits++
				k, v := m.Content[i], m.Content[i+1]
				if k.Tag == "!!merge" {
					merges = append(merges, v)
				} else if k.Kind == yaml.ScalarNode && len(k.Value) <= maxKey && first[k.Value] == 0 {
					first[k.Value] = max(1, k.Line)
					out = append(out, pair{k.Value, k.Line, v})
				}
			}
		default:
			d.fail(m, p, "found %s to merge; expected a mapping", describe(m))
		}
		if d.visits > maxVisits {
			return out
		}
	}
	return out
}

// isMapping reports whether n is a mapping, and calls anything else but no value a fault.
func (d *decoder) isMapping(n *yaml.Node, p path, want string) bool {
	if n.Kind != yaml.MappingNode && !isNull(n) {
		d.fail(n, p, "found %s; expected %s", describe(n), want)
	}
	return n.Kind == yaml.MappingNode
}

// structure reads a mapping whose keys are the fields of v.
func (d *decoder) structure(n *yaml.Node, v reflect.Value, p path) {
	fields := fieldsOf(v.Type())
	if !d.isMapping(n, p, "a mapping with "+strings.Join(fields.names, ", ")) {
		return
	}
	for _, e := range d.pairs(n, p) {
		index, ok := fields.index[e.key]
		d.places.lines[p.at(e.key).key()] = e.line
		if !ok {
			d.unknown(e, fields.names, p)
			continue
		}
		d.value(e.value, v.FieldByIndex(index), p.at(e.key))
	}
}

// unknown says that a key is none of those expected.
func (d *decoder) unknown(e pair, names []string, p path) {
	hint := "expected one of " + strings.Join(names, ", ")
	if len(names) == 0 {
		hint = "expected none"
	} else if n := closest(e.key, names); n != "" {
		hint = "did you mean " + n + "?"
	}
	d.fail(&yaml.Node{Line: e.line}, p.at(e.key), "unknown key; %s", hint)
}

// mapping reads a mapping from names to values of one type. Names are kept as canon
// returns them; two that are the same then are a fault.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, p path, canon func(string) string) {
	if !d.isMapping(n, p, "a mapping by name") {
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	for _, e := range d.pairs(n, p) {
		name := canon(e.key)
		at := p.at(name)
		if v.MapIndex(reflect.ValueOf(name)).IsValid() {
			d.fail(&yaml.Node{Line: e.line}, p.at(e.key), "the same name as on line %d", d.places.lines[at.key()])
			continue
		}
		d.places.lines[at.key()] = e.line
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(e.value, item, at)
		v.SetMapIndex(reflect.ValueOf(name), item)
	}
}

// list reads a list of values of one type.
func (d *decoder) list(n *yaml.Node, v reflect.Value, p path) {
	if n.Kind != yaml.SequenceNode {
		if !isNull(n) {
			d.fail(n, p, "found %s; expected a list", describe(n))
		}
		return
	}
	if len(p) > 0 && p[0] == "node" { // where "nobody" is not the same as the default; objects lose it in the store
		v.Set(reflect.MakeSlice(v.Type(), 0, len(n.Content)))
	}
	for i, c := range n.Content {
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(c, item, p.item(i))
		v.Set(reflect.Append(v, item))
	}
}

// zones reads zones from a list of them, or from a mapping by name (as JSON has it).
func (d *decoder) zones(n *yaml.Node, into *map[string]Zone, p path) {
	if n.Kind == yaml.MappingNode {
		d.mapping(n, reflect.ValueOf(into).Elem(), p, CanonicalName)
		for name, z := range *into {
			if z.Name == "" || CanonicalName(z.Name) == name {
				z.Name = name
				(*into)[name] = z
			}
		}
		return
	}
	if n.Kind != yaml.SequenceNode {
		if !isNull(n) {
			d.fail(n, p, "found %s; expected a list of zones", describe(n))
		}
		return
	}
	for i, c := range n.Content {
		var z Zone
		at := p.item(i)
		if name := zoneName(c); name != "" {
			at = p.at(name)
			if line, ok := d.places.lines[at.key()]; ok {
				d.fail(c, at, "the same name as on line %d", line)
				continue
			}
		}
		d.value(c, reflect.ValueOf(&z).Elem(), at)
		z.Name = CanonicalName(z.Name)
		if z.Name == "" {
			if c.Kind == yaml.MappingNode {
				d.fail(c, at.at("name"), "no value; expected a domain name")
			}
			continue
		}
		if *into == nil {
			*into = map[string]Zone{}
		}
		(*into)[z.Name] = z
	}
}

// zoneName looks ahead for the name of a zone; "" when it has none.
func zoneName(n *yaml.Node) string {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if v := n.Content[i+1]; n.Content[i].Value == "name" && v.Kind == yaml.ScalarNode && !isNull(v) && len(v.Value) <= maxKey {
			return CanonicalName(v.Value)
		}
	}
	return ""
}

// stage reads a stage: a bare name, or a mapping of one name to its settings.
func (d *decoder) stage(n *yaml.Node, into *Stage, p path) {
	v := reflect.ValueOf(into).Elem()
	fields := fieldsOf(v.Type())
	want := "one of " + strings.Join(fields.names, ", ")
	switch {
	case n.Kind == yaml.MappingNode:
		pairs := d.pairs(n, p)
		if len(pairs) != 1 {
			d.fail(n, p, "%d keys; expected one stage, %s", len(pairs), want)
			return
		}
		e := pairs[0]
		index, ok := fields.index[e.key]
		if !ok {
			d.unknown(e, fields.names, p)
			return
		}
		f := v.FieldByIndex(index)
		f.Set(reflect.New(f.Type().Elem()))
		if isNull(e.value) && bareStage(f) != "" {
			d.fail(e.value, p.at(e.key), "no value; expected settings, such as %s", bareStage(f))
			return
		}
		d.value(e.value, f.Elem(), p.at(e.key))
	case n.Kind == yaml.ScalarNode && !isNull(n):
		index, ok := fields.index[n.Value]
		if !ok {
			hint := "expected " + want
			if s := closest(n.Value, fields.names); s != "" {
				hint = "did you mean " + s + "?"
			}
			d.fail(n, p, "found %s; %s", describe(n), hint)
			return
		}
		f := v.FieldByIndex(index)
		f.Set(reflect.New(f.Type().Elem()))
		if s := bareStage(f); s != "" {
			d.fail(n, p, "%s needs settings, such as %s", n.Value, s)
		}
	default:
		d.fail(n, p, "found %s; expected a stage, %s", describe(n), want)
	}
}

// bareStage returns an example of the settings of a stage that cannot do without; "" for
// the others.
func bareStage(f reflect.Value) string {
	switch f.Interface().(type) {
	case *FailoverStage:
		return "{failover: [pool-a, [pool-b, pool-c]]}"
	case *SelectStage:
		return "{select: {answers: 2}}"
	case *FenceStage:
		return "{fence: {within: continent}}"
	case *TrickleStage:
		return "{trickle: {to: [pool-b], share: 0.05}}"
	case *ShedStage:
		return "{shed: {low: 0.8, high: 1}}"
	case *MatchStage:
		return "{match: [{if: {continent: [EU]}, then: chain-a}]}"
	case *ChainStage:
		return "{chain: chain-a}"
	}
	return ""
}

// failover reads the ranks alone, or the full form.
func (d *decoder) failover(n *yaml.Node, into *FailoverStage, p path) {
	if n.Kind != yaml.SequenceNode {
		d.structure(n, reflect.ValueOf(into).Elem(), p)
		return
	}
	d.ranks(n, &into.Order, p)
}

// ranks reads a list of names, or of lists of names that share a rank.
func (d *decoder) ranks(n *yaml.Node, into *[][]string, p path) {
	if n.Kind != yaml.SequenceNode {
		d.list(n, reflect.ValueOf(into).Elem(), p) // which says that it is none
		return
	}
	for i, c := range n.Content {
		var rank []string
		at := p.item(i)
		if c.Kind == yaml.SequenceNode || c.Kind == yaml.AliasNode {
			d.value(c, reflect.ValueOf(&rank).Elem(), at)
		} else {
			var name string
			d.value(c, reflect.ValueOf(&name).Elem(), at)
			rank = []string{name}
		}
		*into = append(*into, rank)
	}
}

// orList reads a list in place of a mapping of which it is one key, or the full form.
func (d *decoder) orList(n *yaml.Node, v reflect.Value, p path, key string) {
	if n.Kind != yaml.SequenceNode {
		d.structure(n, v, p)
		return
	}
	d.value(n, v.FieldByIndex(fieldsOf(v.Type()).index[key]), p.at(key))
}

// stages reads a list of stages, or the name of one chain.
func (d *decoder) stages(n *yaml.Node, v reflect.Value, p path) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		d.list(n, v, p)
		return
	}
	var name ChainStage
	d.value(n, reflect.ValueOf(&name).Elem(), p)
	v.Set(reflect.ValueOf([]Stage{{Chain: &name}}))
}

// upstream reads the name of a pool, a list of names, or the full form.
func (d *decoder) upstream(n *yaml.Node, into *Upstream, p path) {
	var names []string
	switch {
	case n.Kind == yaml.ScalarNode && !isNull(n):
		names = []string{n.Value}
	case n.Kind == yaml.SequenceNode:
		d.list(n, reflect.ValueOf(&names).Elem(), p)
	default:
		d.structure(n, reflect.ValueOf(into).Elem(), p)
		return
	}
	into.Pools = map[string]PoolRef{}
	for i, name := range names {
		if _, ok := into.Pools[name]; ok {
			d.fail(n.Content[i], p.item(i), "pool %s is named twice", name)
		}
		into.Pools[name] = PoolRef{}
	}
}

// allDown reads the word open or servfail, {fallback: […]}, or the full form.
func (d *decoder) allDown(n *yaml.Node, into *AllDown, p path) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		d.structure(n, reflect.ValueOf(into).Elem(), p)
		if into.Mode == "" && d.places.lines[p.at("fallback").key()] != 0 {
			into.Mode = "fallback"
		}
		return
	}
	if n.Value != "open" && n.Value != "last" && n.Value != "servfail" {
		d.fail(n, p, "found %s; expected open, last, servfail or {fallback: [addresses or one name]}", describe(n))
		return
	}
	into.Mode = n.Value
}

// structFields are the keys of a struct in a document.
type structFields struct {
	names []string          // in the order of the struct
	index map[string][]int  // for reflect.Value.FieldByIndex
	opts  map[string]string // of the json tag: omitempty, omitzero
}

var fieldCache sync.Map // reflect.Type → *structFields

// fieldsOf returns the keys of t by its json tags; embedded structs count as their fields.
func fieldsOf(t reflect.Type) *structFields {
	if f, ok := fieldCache.Load(t); ok {
		return f.(*structFields)
	}
	f := &structFields{index: map[string][]int{}, opts: map[string]string{}}
	for _, sf := range reflect.VisibleFields(t) {
		name, opts, _ := strings.Cut(sf.Tag.Get("json"), ",")
		if sf.Anonymous || !sf.IsExported() || name == "" {
			continue
		}
		f.names = append(f.names, name)
		f.index[name] = sf.Index
		f.opts[name] = opts
	}
	fieldCache.Store(t, f)
	return f
}
