package config

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MarshalObject returns the canonical JSON of one object (a Site, Zone, Probe, Pool,
// Service or State): on one line, keys of structs in the order of the model, other keys
// sorted. Two objects that mean the same to the reader but are written differently (a
// default spelt out) have different JSON. DecodeObject reads it back.
func MarshalObject(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("%T: %w", v, err)
	}
	return escapeControls(bytes.TrimSuffix(b.Bytes(), []byte("\n"))), nil
}

// escapeControls writes the characters that JSON allows in a string and YAML does not
// (YAML 1.2, section 5.1: DEL, C1 and the non-characters) as \uXXXX. Outside of strings JSON
// has none of them.
func escapeControls(b []byte) []byte {
	bad := func(r rune) bool {
		return r >= 0x7f && r <= 0x9f || r == 0xfeff || r == 0xfffe || r == 0xffff
	}
	if bytes.IndexFunc(b, bad) < 0 {
		return b
	}
	var out bytes.Buffer
	for _, r := range string(b) {
		if bad(r) {
			fmt.Fprintf(&out, `\u%04x`, r)
		} else {
			out.WriteRune(r)
		}
	}
	return out.Bytes()
}

// MarshalYAML returns o as a person would write it: shorthands where the reader knows them,
// short mappings on one line, zone records as a block. ParseObjects reads it back.
func MarshalYAML(o *Objects) ([]byte, error) {
	n, err := yamlNode(reflect.ValueOf(*o))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return nil, fmt.Errorf("objects: %w", err)
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("objects: %w", err)
	}
	return b.Bytes(), nil
}

// yamlNode returns v as YAML: the decoder's shorthands first, then by kind.
func yamlNode(v reflect.Value) (*yaml.Node, error) {
	switch x := v.Interface().(type) {
	case map[string]Zone:
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for _, name := range sortedKeys(v) {
			n, err := yamlNode(reflect.ValueOf(x[name]))
			if err != nil {
				return nil, err
			}
			list.Content = append(list.Content, n)
		}
		return list, nil
	case Stage:
		if name := x.Name(); name != "" && x.bare() {
			return yamlNode(reflect.ValueOf(name))
		}
	case []Stage:
		if len(x) == 1 && x[0].Chain != nil {
			return yamlNode(reflect.ValueOf(string(*x[0].Chain)))
		}
	case Chain:
		if len(x.Policy) > 0 { // a list, even of one chain
			stages := make([]any, len(x.Policy))
			for i, s := range x.Policy {
				stages[i] = s
			}
			return yamlNode(reflect.ValueOf(stages))
		}
	case FailoverStage:
		order := make([]any, len(x.Order))
		for i, rank := range x.Order {
			if order[i] = rank; len(rank) == 1 {
				order[i] = rank[0]
			}
		}
		return yamlNode(reflect.ValueOf(order))
	case Upstream:
		if names := sortedKeys(reflect.ValueOf(x.Pools)); x.isDefault() && len(x.Policy) == 0 && len(names) > 0 &&
			!slices.ContainsFunc(names, func(n string) bool { return x.Pools[n] != PoolRef{} }) {
			if len(names) == 1 {
				return yamlNode(reflect.ValueOf(names[0]))
			}
			return yamlNode(reflect.ValueOf(names))
		}
	case AllDown:
		if x.Mode != "fallback" && x.Mode != "" && x.Fallback == nil {
			return yamlNode(reflect.ValueOf(x.Mode))
		}
		if x.Mode == "fallback" && x.Fallback != nil {
			return yamlNode(reflect.ValueOf(map[string][]string{"fallback": x.Fallback}))
		}
	case encoding.TextMarshaler:
		t, err := x.MarshalText()
		if err != nil {
			return nil, fmt.Errorf("%T: %w", x, err)
		}
		n := &yaml.Node{Kind: yaml.ScalarNode, Value: string(t)}
		if strings.Contains(n.Value, ": ") || strings.HasSuffix(n.Value, ":") || strings.HasPrefix(n.Value, ":") {
			n.Style = yaml.DoubleQuotedStyle // an IPv6 address such as ::1
		}
		return n, nil
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return yamlNode(v.Elem())
	case reflect.Struct:
		m := &yaml.Node{Kind: yaml.MappingNode}
		fields := fieldsOf(v.Type())
		for _, name := range fields.names {
			f := v.FieldByIndex(fields.index[name])
			if omitted(f, fields.opts[name]) {
				continue
			}
			if err := addPair(m, name, f); err != nil {
				return nil, err
			}
		}
		return compact(m), nil
	case reflect.Map:
		m := &yaml.Node{Kind: yaml.MappingNode}
		for _, name := range sortedKeys(v) {
			if err := addPair(m, name, v.MapIndex(reflect.ValueOf(name))); err != nil {
				return nil, err
			}
		}
		return compact(m), nil
	case reflect.Slice:
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n, err := yamlNode(v.Index(i))
			if err != nil {
				return nil, err
			}
			list.Content = append(list.Content, n)
		}
		return compact(list), nil
	}
	n := &yaml.Node{}
	if err := n.Encode(v.Interface()); err != nil {
		return nil, err
	}
	return n, nil
}

// addPair adds an entry to a mapping.
func addPair(m *yaml.Node, name string, v reflect.Value) error {
	key := &yaml.Node{}
	if err := key.Encode(name); err != nil {
		return err
	}
	n, err := yamlNode(v)
	if err != nil {
		return err
	}
	m.Content = append(m.Content, key, n)
	return nil
}

// omitted reports whether encoding/json would leave a field with these options out.
func omitted(f reflect.Value, opts string) bool {
	switch {
	case strings.Contains(opts, "omitempty"):
		switch f.Kind() {
		case reflect.Map, reflect.Slice:
			return f.Len() == 0
		case reflect.Struct:
			return false
		}
		return f.IsZero()
	case strings.Contains(opts, "omitzero"):
		if z, ok := f.Interface().(interface{ IsZero() bool }); ok {
			return z.IsZero()
		}
		return f.IsZero()
	}
	return false
}

func sortedKeys(v reflect.Value) []string {
	keys := make([]string, 0, v.Len())
	for _, k := range v.MapKeys() {
		keys = append(keys, k.String())
	}
	slices.Sort(keys)
	return keys
}

// compact puts n on one line when it and all in it are short.
func compact(n *yaml.Node) *yaml.Node {
	const most = 72
	width := 2
	for _, c := range n.Content {
		if c.Kind != yaml.ScalarNode && c.Style&yaml.FlowStyle == 0 || strings.Contains(c.Value, "\n") {
			return n
		}
		width += flowWidth(c) + 2
	}
	if width <= most {
		n.Style |= yaml.FlowStyle
	}
	return n
}

// flowWidth returns about how wide n is on one line.
func flowWidth(n *yaml.Node) int {
	width := len(n.Value)
	if n.Kind != yaml.ScalarNode {
		width = 2
	}
	for _, c := range n.Content {
		width += flowWidth(c) + 2
	}
	return width
}
