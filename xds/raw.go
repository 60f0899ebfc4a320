package xds

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// atLine is where a fault is in the text that mergeRaw makes, which nobody sees.
var atLine = regexp.MustCompile(`\(line \d+:\d+\): `)

// mergeRaw merges the raw fields into m and checks the result as Envoy would. Mappings are
// merged, all else is replaced. where says whose they are, for faults. m may be half changed
// when it fails.
func mergeRaw(m proto.Message, raw config.Raw, where string) error {
	if len(raw) == 0 {
		return nil
	}
	fail := func(err error) error {
		// protojson varies the space after its prefix from build to build, on purpose.
		text := strings.TrimLeft(strings.TrimPrefix(err.Error(), "proto:"), " \u00a0")
		return fmt.Errorf("%s: %s", where, atLine.ReplaceAllString(text, ""))
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return fail(err)
	}
	var base map[string]any
	if err := json.Unmarshal(text, &base); err != nil {
		return fail(err)
	}
	overlay(base, protoNames(m.ProtoReflect().Descriptor(), raw))
	if text, err = json.Marshal(base); err != nil {
		return fail(err)
	}
	proto.Reset(m)
	if err := protojson.Unmarshal(text, m); err != nil {
		return fail(err)
	}
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return fail(err)
		}
	}
	return nil
}

// Check reports what proxies cannot be told of the pools that differ in next: raw fields that
// Envoy has not, or would refuse. Certificates are not looked at: they are the node's own.
func Check(before, next *config.Objects) error {
	var faults []error
	for _, name := range next.Names("pools") {
		c := next.Pools[name]
		if reflect.DeepEqual(c, before.Pools[name]) {
			continue
		}
		b := builder{in: Inputs{Objects: next}, pool: &gslb.Pool{Name: name, Site: c.Site}, config: c}
		upstreams := c.Upstreams()
		for _, u := range slices.Sorted(maps.Keys(upstreams)) {
			if _, err := b.cluster(u, upstreams[u], Envoy); err != nil {
				faults = append(faults, fmt.Errorf("pool %s: %w", name, err))
			}
		}
		if _, _, err := b.ingress(upstreams); err != nil {
			faults = append(faults, fmt.Errorf("pool %s: %w", name, err))
		}
	}
	return errors.Join(faults...)
}

// overlay merges over into base.
func overlay(base, over map[string]any) {
	for k, v := range over {
		a, isMap := base[k].(map[string]any)
		if b, ok := v.(map[string]any); ok && isMap {
			overlay(a, b)
			continue
		}
		base[k] = v
	}
}

// protoNames returns raw with the keys of messages as the proto files spell them: people
// write perTryTimeout or per_try_timeout, and both must meet what is there already.
func protoNames(d protoreflect.MessageDescriptor, raw map[string]any) map[string]any {
	if url, ok := raw["@type"].(string); ok {
		t, err := protoregistry.GlobalTypes.FindMessageByURL(url)
		if err != nil {
			return raw // what reads it says so
		}
		d = t.Descriptor()
	}
	if strings.HasPrefix(string(d.FullName()), "google.protobuf.") {
		return raw // a JSON form of its own
	}
	out := make(map[string]any, len(raw))
	for k, v := range raw {
		f := d.Fields().ByName(protoreflect.Name(k))
		if f == nil {
			f = d.Fields().ByJSONName(k)
		}
		if f == nil {
			out[k] = v
			continue
		}
		out[string(f.Name())] = protoNamesOf(f, v)
	}
	return out
}

func protoNamesOf(f protoreflect.FieldDescriptor, v any) any {
	if f.IsMap() {
		m, ok := v.(map[string]any)
		if !ok || f.MapValue().Message() == nil {
			return v
		}
		m = maps.Clone(m)
		for k, item := range m {
			if sub, ok := item.(map[string]any); ok {
				m[k] = protoNames(f.MapValue().Message(), sub)
			}
		}
		return m
	}
	if f.Message() == nil {
		return v
	}
	switch v := v.(type) {
	case map[string]any:
		return protoNames(f.Message(), v)
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = item
			if sub, ok := item.(map[string]any); ok {
				out[i] = protoNames(f.Message(), sub)
			}
		}
		return out
	}
	return v
}
