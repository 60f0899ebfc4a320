package zone

import (
	"os"
	"testing"
)

func TestExample(t *testing.T) {
	f, err := os.Open("../../testdata/zones/example.com.zone")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, warnings, err := Parse(f, f.Name(), "example.com")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		t.Error(w)
	}
	t.Log(z.Size())
	s, err := NewSet([]*Zone{z}, map[string]int32{"www.example.com": 3, "*.a.b.example.com": 4})
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{"www.example.com", "shop.example.com", "x.a.b.example.com", "b.example.com", "x.b.example.com", "x.lab.example.com", "a.old.example.com", "x.pages.example.com", "nope.example.com", "org"} {
		name, _ := FromString(q)
		var r Result
		s.Resolve(name, 1, &r)
		t.Log(q, r.Outcome, r.Wildcard)
	}
}
