package config

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite golden files")

const example = "../../testdata/example/gslb.yaml"

func TestExample(t *testing.T) {
	f, err := ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := f.Zones["example.com"].File, filepath.Join(filepath.Dir(example), "zones/example.com.zone"); got != want {
		t.Errorf("zone file %q, want %q", got, want)
	}
	if got, want := f.Node.Geo.City, filepath.Join(filepath.Dir(example), "../geo/demo.mmdb"); got != want {
		t.Errorf("city database %q, want %q", got, want)
	}
	if got, want := len(f.Services), 2; got != want {
		t.Errorf("%d services, want %d", got, want)
	}
	if _, err := ResolveFiles(&f.Objects); err != nil {
		t.Error(err)
	}
}

// TestExampleHasEveryKey keeps the example complete: each key of the model stands in it, in
// use or commented out.
func TestExampleHasEveryKey(t *testing.T) {
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	short := map[string]bool{"order": true, "mode": true} // of full forms that shorthands stand for
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(typ.Elem())
			return
		case reflect.Struct:
		default:
			return
		}
		if seen[typ] || typ.PkgPath() != reflect.TypeFor[File]().PkgPath() {
			return
		}
		seen[typ] = true
		fields := fieldsOf(typ)
		for _, name := range fields.names {
			if !short[name] && !strings.Contains(string(text), name+":") && typ != reflect.TypeFor[Stage]() {
				t.Errorf("key %s: of %s does not stand in %s", name, typ.Name(), example)
			}
			walk(typ.FieldByIndex(fields.index[name]).Type)
		}
	}
	walk(reflect.TypeFor[File]())
	if len(seen) < 15 {
		t.Errorf("walked %d types of the model, want all", len(seen))
	}
}

// TestFaults compares the faults of every testdata/faults/*.yaml with the .txt beside it.
func TestFaults(t *testing.T) {
	files, err := filepath.Glob("testdata/faults/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse("gslb.yaml", data)
			if err == nil {
				t.Fatal("no fault found")
			}
			got := err.Error() + "\n"
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("faults of %s:\n%s\nwant:\n%s", file, got, want)
			}
		})
	}
}

func TestShorthands(t *testing.T) {
	w := 2
	tests := []struct {
		name, text string
		got        func(*Objects) any
		want       any
	}{
		{"pools by null", "services: {x.test: {pools: {a: , b: {weight: 2}}}}",
			func(o *Objects) any { return o.Services["x.test"].Pools }, map[string]PoolRef{"a": {}, "b": {Weight: &w}}},
		{"bare stages", "services: {x.test: {pools: {a: {}}, policy: [health, nearest, weighted]}}",
			func(o *Objects) any { return o.Services["x.test"].Policy },
			[]Stage{{Health: &HealthStage{}}, {Nearest: &NearestStage{}}, {Weighted: &WeightedStage{}}}},
		{"stages in full", "services: {x.test: {pools: {a: {}}, policy: [{health: {}}, {nearest: }, {failover: {order: [[a]]}}]}}",
			func(o *Objects) any { return o.Services["x.test"].Policy },
			[]Stage{{Health: &HealthStage{}}, {Nearest: &NearestStage{}}, {Failover: &FailoverStage{Order: [][]string{{"a"}}}}}},
		{"failover ranks", "services: {x.test: {pools: {a: , b: , c: }, policy: [{failover: [a, [b, c]]}]}}",
			func(o *Objects) any { return o.Services["x.test"].Policy[0].Failover.Order }, [][]string{{"a"}, {"b", "c"}}},
		{"failover ranks in full", "services: {x.test: {pools: {a: , b: , c: }, policy: [{failover: {order: [a, [b, c]]}}]}}",
			func(o *Objects) any { return o.Services["x.test"].Policy[0].Failover.Order }, [][]string{{"a"}, {"b", "c"}}},
		{"select", "services: {x.test: {pools: {a: }, policy: [{select: {answers: 2}}]}}",
			func(o *Objects) any { return o.Services["x.test"].Policy[0].Select.Answers }, 2},
		{"allDown word", "services: {x.test: {pools: {a: }, allDown: servfail}}",
			func(o *Objects) any { return o.Services["x.test"].AllDown }, AllDown{Mode: "servfail"}},
		{"allDown fallback", "services: {x.test: {pools: {a: }, allDown: {fallback: [192.0.2.9]}}}",
			func(o *Objects) any { return o.Services["x.test"].AllDown }, AllDown{Mode: "fallback", Fallback: []string{"192.0.2.9"}}},
		{"allDown full", "services: {x.test: {pools: {a: }, allDown: {mode: fallback, fallback: [y.test]}}}",
			func(o *Objects) any { return o.Services["x.test"].AllDown }, AllDown{Mode: "fallback", Fallback: []string{"y.test"}}},
		{"upstream name", "pools: {a: {site: s, upstream: b}}",
			func(o *Objects) any { return o.Pools["a"].Upstream.Pools }, map[string]PoolRef{"b": {}}},
		{"upstream names", "pools: {a: {site: s, upstream: [b, c]}}",
			func(o *Objects) any { return o.Pools["a"].Upstream.Pools }, map[string]PoolRef{"b": {}, "c": {}}},
		{"upstream in full", "pools: {a: {site: s, upstream: {pools: {b: {weight: 2}}}}}",
			func(o *Objects) any { return o.Pools["a"].Upstream.Pools }, map[string]PoolRef{"b": {Weight: &w}}},
		{"zones by name", "zones: {Example.COM.: {records: x}}",
			func(o *Objects) any { return o.Zones }, map[string]Zone{"example.com": {Name: "example.com", Records: "x"}}},
		{"zones in a list", "zones: [{name: Example.COM., records: x}]",
			func(o *Objects) any { return o.Zones }, map[string]Zone{"example.com": {Name: "example.com", Records: "x"}}},
		{"service name is canonical", "services: {WWW.X.test.: {pools: {a: }}}",
			func(o *Objects) any { return o.Names("services") }, []string{"www.x.test"}},
		{"anchor, alias, merge", "probes: {a: &p {tcp: {port: 80}, rise: 3}, b: *p, c: {<<: *p, rise: 4}}",
			func(o *Objects) any { return [2]int{o.Probes["b"].Rise, o.Probes["c"].Rise} }, [2]int{3, 4}},
		{"text of digits", "states: {a: {pool: a, state: down, author: 42, reason: NO}}",
			func(o *Objects) any { return o.States["a"].Author + o.States["a"].Reason }, "42NO"},
		{"json", `{"node": {"anything": [1]}, "pools": {"a": {"site": "s", "endpoints": [{"address": "2001:db8::1"}]}}}`,
			func(o *Objects) any { return o.Pools["a"].Endpoints[0].Address }, netip.MustParseAddr("2001:db8::1")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, err := ParseObjects("x.yaml", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if got := tt.got(o); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestParseObjectsLeavesReferencesOpen(t *testing.T) {
	o, err := ParseObjects("x.yaml", []byte("\nservices:\n  www.example.com: {pools: {gfe-eu: }}\n"))
	if err != nil {
		t.Fatal(err)
	}
	faults := Faults(Validate(o))
	if len(faults) != 2 || faults[0].File != "x.yaml" || faults[0].Line != 3 {
		t.Errorf("faults %v, want the missing zone and pool at x.yaml:3", faults)
	}
}

// TestRelocated: what is wrong with a copy is said where the original stands.
func TestRelocated(t *testing.T) {
	o, err := ParseObjects("mine.yaml", []byte(`sites:
  eu: {lat: 1, lon: 2}
services:
  www.example.com:
    pools:
      a:
      b.c: {weight: 2}
    policy:
      - health
      - failover:
          order:
            - a
            - b.c
zones:
  - name: example.com
    records: "@ A 192.0.2.1"
`))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ fault, want string }{
		{"body:3: sites.eu.lat: far", "mine.yaml:2: sites.eu.lat: far"},
		{"body: sites.eu: nowhere", "mine.yaml:2: sites.eu: nowhere"},
		{"body:9: services.www.example.com.pools.b.c.weight: heavy", "mine.yaml:7: services.www.example.com.pools.b.c.weight: heavy"},
		{"body:9: services.www.example.com.policy[1].failover.order[1]: \"b.c\" is no pool: expected: a", "mine.yaml:13: services.www.example.com.policy[1].failover.order[1]: \"b.c\" is no pool: expected: a"},
		{"body:9: services.www.example.com.policy[1].failover.order[7].x: new", "mine.yaml:11: services.www.example.com.policy[1].failover.order[7].x: new"},
		{"body:9: zones.example.com.records: line 1", "mine.yaml:16: zones.example.com.records: line 1"},
		{"body:9: pools.other: not ours", "body:9: pools.other: not ours"},
		{"body:9: not YAML", "body:9: not YAML"},
		{"gslb.yaml:3: sites.eu.lat: of another", "gslb.yaml:3: sites.eu.lat: of another"},
		{"/meridian/v1/sites/eu: sites.eu.lat: of the store", "/meridian/v1/sites/eu: sites.eu.lat: of the store"},
	}
	for _, tt := range tests {
		if got := o.Relocated("body", []string{tt.fault})[0]; got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.fault, got, tt.want)
		}
	}
	got := o.Relocated("body", []string{"body:3: pools.other: late", "body:4: services.www.example.com.pools.a: two", "body:5: sites.eu.lat: one"})
	if want := []string{"mine.yaml:2: sites.eu.lat: one", "mine.yaml:6: services.www.example.com.pools.a: two", "body:3: pools.other: late"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q: by line, then what is not in the file", got, want)
	}
}

func TestDecodeObject(t *testing.T) {
	tests := []struct{ name, kind, obj, data, want string }{
		{"good", "pools", "gfe-eu", `{"site":"eu","endpoints":[{"address":"192.0.2.1"}]}`, ""},
		{"unknown key", "pools", "gfe-eu", `{"site":"eu","endponts":[]}`, "/meridian/v1/pools/gfe-eu: pools.gfe-eu.endponts: unknown key; did you mean endpoints?"},
		{"line", "pools", "gfe-eu", "{\n\"site\":\"eu\",\n\"endponts\":[]}", "/meridian/v1/pools/gfe-eu:3: pools.gfe-eu.endponts: unknown key; did you mean endpoints?"},
		{"range", "sites", "eu", `{"lat":91,"lon":0}`, "/meridian/v1/sites/eu: sites.eu.lat: 91; expected -90 to 90"},
		{"empty", "sites", "eu", ``, "/meridian/v1/sites/eu: sites.eu: empty; expected an object"},
		{"not an object", "sites", "eu", `[1]`, "/meridian/v1/sites/eu: sites.eu: found a list; expected a mapping with lat, lon, continent, country, subdivision, city, region"},
		{"unknown kind", "boats", "eu", `{}`, "/meridian/v1/boats/eu: unknown kind; expected one of sites, zones, probes, pools, chains, services, states, nodes"},
		{"name in other case", "services", "WWW.example.com", `{"pools":{"a":{}}}`, "/meridian/v1/services/WWW.example.com: services.WWW.example.com: expected www.example.com: lower case, without a trailing dot"},
		{"zone with a file", "zones", "example.com", `{"file":"/etc/passwd"}`, "/meridian/v1/zones/example.com: zones.example.com.file: a file name; in the store a zone carries its records"},
		{"zone", "zones", "example.com", `{"records":"@ A 192.0.2.1"}`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var o Objects
			err := DecodeObject(tt.kind, tt.obj, []byte(tt.data), &o)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("error %q, want %q", got, tt.want)
			}
			if _, ok := o.Object(tt.kind, tt.obj); ok != (tt.want == "") {
				t.Errorf("object set: %v, want %v", ok, tt.want == "")
			}
		})
	}
}

// TestValidateNamesTheStore: a fault found in a merged whole still says which of the file
// and the store it came from.
func TestValidateNamesTheStore(t *testing.T) {
	base, err := ParseObjects("gslb.yaml", []byte("sites: {eu: {lat: 0, lon: 0}}\npools: {a: {site: eu}}"))
	if err != nil {
		t.Fatal(err)
	}
	over := &Objects{}
	if err := DecodeObject("pools", "a", []byte(`{"site":"us"}`), over); err != nil {
		t.Fatal(err)
	}
	if err := Validate(base); err != nil {
		t.Fatalf("base: %v", err)
	}
	got := fmt.Sprint(Validate(Merge(base, over)))
	if want := "/meridian/v1/pools/a: pools.a.site: no such site; expected eu"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := Validate(base); err != nil {
		t.Errorf("Merge changed its base: %v", err)
	}
}

func TestBounds(t *testing.T) {
	laughs := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'i'; c++ {
		laughs += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1)
	}
	deepAlias := "probes: {p: {http: {headers: &h {a: *h}}}}"
	tests := []struct{ name, text, want string }{
		{"billion laughs", "pools: {p: {site: s, upstream: {policy: [{failover: {order: [[*i]]}}]}}}\n" + laughs, "unknown anchor"},
		{"billion laughs in use", laughs + "pools: {p: {site: s, upstream: [*i]}}\n", "expected"},
		{"alias of itself", deepAlias, "found a mapping; expected a text"},
		{"deep flow", "pools: " + strings.Repeat("[", 20000), "not YAML"},
		{"deep block", strings.Repeat("- ", 20000) + "x", "not YAML"},
		{"deep in the model", "pools: {p: {upstream: " + strings.Repeat("{pools: ", 40) + strings.Repeat("}", 42), ""},
		{"too large", strings.Repeat("#", maxSize+1), "expected at most"},
		{"too many values", "a: [" + strings.Repeat("x,", maxMarks) + "]", "more than"},
		{"two documents", "pools: {}\n---\npools: {}\n", "a second document"},
		{"tag", "pools: !!python/object {}", "expected none"},
		{"not a mapping", "- 1", "found a list; expected a mapping with node, sites"},
		{"long key under many", "pools: {? " + strings.Repeat("k", 1<<20) + " : {endpoints: [" + strings.Repeat("{},", 10000) + "]}}", "expected at most 255"},
		{"binary", "\x00\x01\xff", "not YAML"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseObjects("x.yaml", []byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %.300v, want one with %q", err, tt.want)
			}
			if n := len(Faults(err)); n > maxFaults {
				t.Errorf("%d faults, want at most %d", n, maxFaults)
			}
		})
	}
}

// TestAliasVisitsAreBounded reads a list that aliases multiply: small as text, far too much
// to build.
func TestAliasVisitsAreBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("pools:\n  p0: &p0 {site: s, endpoints: &e [")
	for i := range 2000 {
		fmt.Fprintf(&b, "{address: 10.0.%d.%d},", i/250, 1+i%250)
	}
	b.WriteString("]}\n")
	for i := 1; i < 5000; i++ {
		fmt.Fprintf(&b, "  p%d: *p0\n", i)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := ParseObjects("x.yaml", []byte(b.String()))
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "with those behind aliases") {
		t.Errorf("error %.200v, want that there are too many values", err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 2<<30 {
		t.Errorf("%d MB allocated on the way", got>>20)
	}
}

func TestRoundTrip(t *testing.T) {
	f, err := ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	o, err := ResolveFiles(&f.Objects)
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, o)

	text, err := MarshalYAML(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"us-east: {lat: 38.95, lon: -77.45, continent: NA, country: US}\n",
		"policy: [health, nearest, {select: {answers: 2}}]\n",
		"policy: [health, {failover: [[gfe-eu, gfe-us], gfe-ap]}, weighted]\n",
		"upstream: web-us\n",
		"records: |\n",
		"allDown: {fallback: [sorry.example.com]}\n",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("YAML lacks %q:\n%s", want, text)
		}
	}
}

// roundTrip writes o in every form and reads it back.
func roundTrip(t *testing.T, o *Objects) {
	t.Helper()
	text, err := MarshalYAML(o)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseObjects("x.yaml", text)
	if err != nil {
		t.Fatalf("%v\nin:\n%s", err, text)
	}
	if d := Diff(o, back); len(d) > 0 {
		t.Fatalf("after YAML: %+v\nin:\n%s", d, text)
	}
	again := &Objects{}
	for _, kind := range Kinds {
		for _, name := range o.Names(kind) {
			v, _ := o.Object(kind, name)
			data, err := MarshalObject(v)
			if err != nil {
				t.Fatal(err)
			}
			if err := DecodeObject(kind, name, data, again); err != nil {
				t.Fatalf("%v\nin: %s", err, data)
			}
			v2, _ := again.Object(kind, name)
			if data2, _ := MarshalObject(v2); string(data2) != string(data) {
				t.Fatalf("%s after JSON, want %s", data2, data)
			}
		}
	}
	if d := Diff(o, again); len(d) > 0 {
		t.Fatalf("after JSON: %+v", d)
	}
}

// TestRoundTripRandom: any objects that are well formed by themselves survive both forms.
func TestRoundTripRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		roundTrip(t, randomObjects(rng))
	}
}

func randomObjects(r *rand.Rand) *Objects {
	texts := []string{"", "true", "null", "~", "1", "1.0", "a: b", "- x", "x #y", "'q'", "\"", "line\nbreak\n", "tab\tx", " lead", "trail ",
		"\u0085\u0090\u007f\ufeff\u2028", "€ 𝄞", "<&>", "0x1f", "2026-01-01", "=", "<<", "*a", "&a", "{", "|", "a\n\n  b\n", "\n", "yes", "::1"}
	text := func() string { return texts[r.IntN(len(texts))] }
	pick := func(n int) bool { return r.IntN(n) == 0 }
	o := &Objects{}
	put := func(kind, name string, v any) {
		if err := o.Put(kind, name, v); err != nil {
			panic(err)
		}
	}
	put("sites", "eu", Site{Lat: r.Float64()*180 - 90, Lon: float64(r.IntN(180)), Country: "NO"})
	put("zones", "example.com", Zone{Name: "example.com", Records: "x" + text()})
	j := r.Float64() / 2
	put("probes", "true", Probe{HTTP: &HTTPProbe{Port: uint16(r.Uint32()), Expect: []Statuses{Statuses(fmt.Sprint(200 + r.IntN(100)))},
		Headers: map[string]string{"X-A": "null", "null": "1"}}, Interval: Duration(time.Second), Jitter: &j, Rise: r.IntN(3)})
	put("probes", "1", Probe{TCP: &TCPProbe{}})
	w := r.IntN(3)
	pool := Pool{Site: "eu", Capacity: float64(r.IntN(1e6)) * 1e18, Endpoints: []Endpoint{
		{Address: netip.AddrFrom4([4]byte{10, byte(r.Uint32()), byte(r.Uint32()), 1}), Weight: &w},
		{Address: netip.MustParseAddr("2001:db8::1"), Probe: &Target{Address: netip.MustParseAddr("::1"), Port: 1}},
		{Address: netip.MustParseAddr("2001:db8::")},
	}}
	if pick(2) {
		pool.Upstream = &Upstream{Steering: Steering{Pools: map[string]PoolRef{"a": {}, "null": {Standby: pick(2)}}}}
	}
	put("pools", "null", pool)
	put("pools", "3.0", Pool{Site: "no", Upstream: &Upstream{Steering: Steering{Pools: map[string]PoolRef{"true": {}}}}})
	stages := []Stage{{Health: &HealthStage{}}, {Nearest: &NearestStage{}}, {Weighted: &WeightedStage{}},
		{Select: &SelectStage{Answers: 1 + r.IntN(16)}}, {Failover: &FailoverStage{Order: [][]string{{"a"}, {"b", "null"}}}},
		{Fence: &FenceStage{Within: "country", Rules: []FenceRule{{When: Condition{Country: []string{"NO"}, ASN: []int{1 + r.IntN(9)}}, Deny: []string{"a"}}}}},
		{RTT: &RTTStage{Within: r.Float64()}}, {Trickle: &TrickleStage{To: []string{"null"}, Share: r.Float64()}},
		{Shed: &ShedStage{Low: r.Float64(), High: 2}}, {Capacity: &CapacityStage{Shares: map[string]float64{"null": 0.5}}},
		{Sticky: &StickyStage{Sticky{IPv4: 8 + r.IntN(24)}}}, {Chain: new(ChainStage)},
		{Match: &MatchStage{Cases: []MatchCase{{If: Condition{Time: &Window{Days: []string{"sat"}, From: "08:00"}, Prefix: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}},
			Then: []Stage{{Chain: new(ChainStage)}}}}, Else: []Stage{{Health: &HealthStage{Unknown: "down"}}, {Nearest: &NearestStage{}}}}}}
	for i := range stages {
		if c := stages[i].Chain; c != nil {
			*c = "null"
		}
		if m := stages[i].Match; m != nil {
			*m.Cases[0].Then[0].Chain = "1"
		}
	}
	one := ChainStage("null")
	put("chains", "of-one", Chain{Policy: []Stage{{Chain: &one}}})
	put("chains", "null", Chain{Policy: []Stage{{Nearest: &NearestStage{Bias: map[string]float64{"a": -99 + r.Float64()}}}}})
	r.Shuffle(len(stages), func(i, j int) { stages[i], stages[j] = stages[j], stages[i] })
	downs := []AllDown{{}, {Mode: "open"}, {Mode: "servfail"}, {Mode: "fallback", Fallback: []string{"2001:db8::1", "192.0.2.1"}}, {Mode: "fallback", Fallback: []string{"x.test"}}}
	put("services", "*.example.com", Service{
		Steering: Steering{Pools: map[string]PoolRef{"a": {Weight: &w}, "b": {}, "null": {}}, Policy: stages[:r.IntN(len(stages))]},
		TTL:      Duration(time.Duration(r.IntN(9)) * time.Second), AllDown: downs[r.IntN(len(downs))], Sticky: Sticky{IPv4: 8 + r.IntN(24)},
	})
	put("states", "null/2001:db8::1", State{Pool: "null", Endpoint: netip.MustParseAddr("2001:db8::1"), State: "drain",
		Author: "a" + text(), Reason: text(), Since: time.Unix(int64(r.Uint32()), int64(r.IntN(1e9))).UTC()})
	return o
}

func TestMergeAndDiff(t *testing.T) {
	w := 3
	base := &Objects{
		Sites: map[string]Site{"eu": {Lat: 1}, "us": {Lat: 2}},
		Pools: map[string]Pool{"a": {Site: "eu", Capacity: 5}},
	}
	over := &Objects{
		Sites:    map[string]Site{"us": {Lat: 3}},
		Pools:    map[string]Pool{"a": {Site: "us"}, "b": {Site: "eu", Endpoints: []Endpoint{}}},
		Services: map[string]Service{"x": {Steering: Steering{Pools: map[string]PoolRef{"a": {Weight: &w}}}}},
	}
	m := Merge(base, over)
	if got, want := m.Pools["a"], (Pool{Site: "us"}); !reflect.DeepEqual(got, want) {
		t.Errorf("merged pool %+v, want the overlay's as a whole: %+v", got, want)
	}
	if base.Sites["us"].Lat != 2 || len(base.Pools) != 1 {
		t.Errorf("Merge changed its base: %+v", base)
	}
	var got []string
	for _, c := range Diff(base, m) {
		got = append(got, c.Op+" "+c.Kind+"/"+c.Name)
	}
	want := []string{"change sites/us", "change pools/a", "add pools/b", "add services/x"}
	if !slices.Equal(got, want) {
		t.Errorf("diff %q, want %q", got, want)
	}
	if got := Diff(m, base); len(got) != 4 || got[3].Op != OpDelete || got[3].After != nil || got[3].Before == nil {
		t.Errorf("diff back: %+v", got)
	}
	if got := Diff(m, Merge(m, nil)); got != nil {
		t.Errorf("diff with itself: %+v", got)
	}
	if got := Diff(nil, nil); got != nil {
		t.Errorf("diff of nothing: %+v", got)
	}
}

func TestUnanswerable(t *testing.T) {
	fence := func(rules string) string {
		return "pools: {a: {site: s, endpoints: [{address: 192.0.2.1}]}, b: {site: s, endpoints: [{address: 192.0.2.2}]}}\nservices: {x: {pools: {a: , b: }, policy: [fence: [" + rules + "]]}}"
	}
	tests := []struct {
		name, text string
		bare       bool
	}{
		{"an endpoint", "pools: {a: {site: s, endpoints: [{address: 192.0.2.1}]}}\nservices: {x: {pools: {a: }}}", false},
		{"no endpoint", "pools: {a: {site: s}}\nservices: {x: {pools: {a: }}}", true},
		{"pool of weight 0", "pools: {a: {site: s, endpoints: [{address: 192.0.2.1}]}}\nservices: {x: {pools: {a: {weight: 0}}}}", true},
		{"endpoint of weight 0", "pools: {a: {site: s, endpoints: [{address: 192.0.2.1, weight: 0}]}}\nservices: {x: {pools: {a: }}}", true},
		{"the other pool", "pools: {a: {site: s}, b: {site: s, endpoints: [{address: 192.0.2.1}]}}\nservices: {x: {pools: {a: , b: {standby: true}}}}", false},
		{"a fence for everybody", fence("{deny: ['*']}"), true},
		{"fences that leave nothing", fence("{allow: [a]}, {deny: ['site:s']}"), true},
		{"fences that leave the other", fence("{deny: [a]}, {allow: [b]}"), false},
		{"a fence for some", fence("{when: {country: [DE]}, deny: ['*']}"), false},
		{"a fence in a chain", "chains: {c: [fence: [{deny: ['*']}]]}\n" + "pools: {a: {site: s, endpoints: [{address: 192.0.2.1}]}}\nservices: {x: {pools: {a: }, policy: [chain: c]}}", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, err := ParseObjects("x.yaml", []byte("sites: {s: {lat: 0, lon: 0}}\nzones: [{name: x, records: y}]\n"+tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if err := Validate(o); err != nil {
				t.Fatalf("not valid: %v", err)
			}
			got := Unanswerable(o)
			if (len(got) > 0) != tt.bare {
				t.Errorf("unanswerable %v, want %v", got, tt.bare)
			}
			if want := 3 + strings.Count(tt.text, "\n"); tt.bare && got[0].Line != want {
				t.Errorf("line %d, want %d", got[0].Line, want)
			}
		})
	}
}

func TestDefaultsDoNotMutate(t *testing.T) {
	p := Probe{HTTP: &HTTPProbe{}, Interval: Duration(time.Second)}
	d := p.WithDefaults()
	if d.Timeout != Duration(time.Second) || d.Rise != 2 || d.Fall != 3 || *d.Jitter != 0.1 || d.HTTP.Path != "/" || d.HTTP.Method != "GET" || d.HTTP.Expect[0] != "200" {
		t.Errorf("defaults %+v, http %+v", d, d.HTTP)
	}
	if !reflect.DeepEqual(p, Probe{HTTP: &HTTPProbe{}, Interval: Duration(time.Second)}) {
		t.Errorf("the probe itself changed: %+v", p)
	}
}

// TestShortProbes wants each kind of probe to do with the keys that have no default.
func TestShortProbes(t *testing.T) {
	for _, probe := range []string{
		"{http: {}}", "{http: {json: {path: a}}}", "{tcp: {port: 1}}", "{tls: {}}", "{grpc: {port: 1}}", "{dns: {name: a.example}}", "{icmp: {}}", "{udp: {port: 1, send: x}}",
		"{postgres: {}}", "{mysql: {}}", "{redis: {}}", "{exec: {command: x}}", "{import: {file: x}}", "{import: {url: 'http://192.0.2.1/'}}",
		"{calculated: {pools: [p]}}", "{calculated: {probes: [q]}}", "{http: {}, brownout: {limit: 2}, slow: {relative: 3}, quorum: {}, damping: {}}",
	} {
		_, err := Parse("x.yaml", []byte(`
node: {name: n, site: s, dns: ["127.0.0.1:53"], health: {exec: x}}
sites: {s: {lat: 0, lon: 0}}
probes: {q: {icmp: {}}, x: `+probe+`}
pools: {p: {site: s, probe: q, endpoints: [{address: 192.0.2.1}]}, x: {site: s, probe: x, endpoints: [{address: 192.0.2.2}]}}
`))
		if err != nil {
			t.Errorf("%s: %v", probe, err)
		}
	}
}

func TestProbeAddr(t *testing.T) {
	addr, elsewhere := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1")
	https := Probe{HTTP: &HTTPProbe{TLS: true}}
	tests := []struct {
		name  string
		pool  Pool
		probe Probe
		e     Endpoint
		want  string
	}{
		{"default of https", Pool{}, https, Endpoint{Address: addr}, "192.0.2.1:443"},
		{"default of http", Pool{}, Probe{HTTP: &HTTPProbe{}}, Endpoint{Address: addr}, "192.0.2.1:80"},
		{"no default of tcp", Pool{}, Probe{TCP: &TCPProbe{}}, Endpoint{Address: addr}, "192.0.2.1:0"},
		{"of the pool", Pool{Port: 1}, https, Endpoint{Address: addr}, "192.0.2.1:1"},
		{"of the endpoint", Pool{Port: 1}, https, Endpoint{Address: addr, Port: 2}, "192.0.2.1:2"},
		{"of the probe", Pool{Port: 1}, Probe{TCP: &TCPProbe{Port: 3}}, Endpoint{Address: addr, Port: 2}, "192.0.2.1:3"},
		{"of the target", Pool{Port: 1}, Probe{TCP: &TCPProbe{Port: 3}}, Endpoint{Address: addr, Probe: &Target{elsewhere, 4}}, "127.0.0.1:4"},
		{"target without port", Pool{Port: 1}, https, Endpoint{Address: addr, Probe: &Target{Address: elsewhere}}, "127.0.0.1:1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.pool.ProbeAddr(tt.probe, tt.e).String(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestCheckDomain(t *testing.T) {
	tests := []struct {
		name string
		ok   bool
	}{
		{"example.com", true}, {"*.example.com", true}, {"_sip._tcp.example.com", true}, {".", true}, {"a", true},
		{strings.Repeat("a", 63) + ".com", true}, {strings.Repeat("a", 64) + ".com", false},
		{strings.TrimSuffix(strings.Repeat("abcdefghi.", 26), ".")[:253], true}, {strings.Repeat("abcdefghi.", 26) + "x", false},
		{"", false}, {"example.com.", false}, {"Example.com", false}, {"a..b", false}, {".a", false}, {"a.*.b", false}, {"a b", false}, {"é", false},
	}
	for _, tt := range tests {
		if got := checkDomain(tt.name); (got == "") != tt.ok {
			t.Errorf("%q: %q, want ok=%v", tt.name, got, tt.ok)
		}
	}
}

func TestResolveFilesFaults(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "latin1.zone"), []byte("a TXT \xe9"), 0o644); err != nil {
		t.Fatal(err)
	}
	o, err := ParseObjects(filepath.Join(dir, "x.yaml"), []byte("zones:\n- {name: a, file: absent.zone}\n- {name: b, file: latin1.zone}\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = ResolveFiles(o)
	faults := Faults(err)
	if len(faults) != 2 || faults[0].Line != 2 || !strings.Contains(faults[1].Msg, "not UTF-8") {
		t.Errorf("faults %v, want the absent file on line 2 and the octets on line 3", faults)
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/faults/*.yaml")
	for _, name := range append(files, example) {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"pools":{"a":{"site":"s","endpoints":[{"address":"192.0.2.1"}]}}}`))
	f.Add([]byte("a: &a [*a]\n<<: *a"))
	f.Add([]byte("probes: {a: &p {tcp: }, b: {<<: [*p, *p]}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if file, err := Parse("x.yaml", data); err == nil {
			if err := file.Validate(); err != nil {
				t.Errorf("parsed, then not valid: %v", err)
			}
		} else if len(Faults(err)) == 0 {
			t.Errorf("an error without faults: %v", err)
		}
		if o, err := ParseObjects("x.yaml", data); err == nil {
			for name, z := range o.Zones {
				if z.File != "" { // the store takes no files
					o.Zones[name] = Zone{Name: z.Name, Records: z.File}
				}
			}
			roundTrip(t, o)
		}
		for _, kind := range Kinds {
			_ = DecodeObject(kind, "x", data, &Objects{})
		}
	})
}
