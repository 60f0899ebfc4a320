package admin

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
)

func TestLoad(t *testing.T) {
	var seen []api.Load
	n := newNode(t, func(o *Options) { o.OnLoad = func(l api.Load) { seen = append(seen, l) } })
	good := `{"proxy":"p1","pool":"gfe-eu","seconds":1,"requests":10,"errors":1,"inFlight":2,"upstreams":[{"pool":"fe-eu","requests":9,"errors":0,"inFlight":1}]}`
	with := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%s is not in the report", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	runRows(t, n, []requestRow{
		{"good", "POST", "/api/v1/load", good, 204, ""},
		{"unknown pool", "POST", "/api/v1/load", with(`"gfe-eu"`, `"gfe-ue"`), 404, "did you mean"},
		{"no proxy", "POST", "/api/v1/load", with(`"p1"`, `""`), 400, "1..253 octets"},
		{"long proxy", "POST", "/api/v1/load", with(`"p1"`, `"`+strings.Repeat("p", 254)+`"`), 400, "1..253 octets"},
		{"no interval", "POST", "/api/v1/load", with(`"seconds":1`, `"seconds":0`), 400, "seconds 0"},
		{"negative interval", "POST", "/api/v1/load", with(`"seconds":1`, `"seconds":-1`), 400, "seconds -1"},
		{"long interval", "POST", "/api/v1/load", with(`"seconds":1`, `"seconds":3601`), 400, "seconds 3601"},
		{"negative count", "POST", "/api/v1/load", with(`"requests":10`, `"requests":-1`), 400, "the body is not"},
		{"absurd count", "POST", "/api/v1/load", with(`"requests":10`, `"requests":10000001`), 400, "a second"},
		{"more errors than requests", "POST", "/api/v1/load", with(`"errors":1`, `"errors":11`), 400, "at most the 10 requests"},
		{"absurd in flight", "POST", "/api/v1/load", with(`"inFlight":2`, `"inFlight":10000001`), 400, "inFlight"},
		{"unknown upstream", "POST", "/api/v1/load", with(`"fe-eu"`, `"fe-us"`), 400, `upstream \"fe-us\"`},
		{"upstream twice", "POST", "/api/v1/load", with(`"upstreams":[`, `"upstreams":[{"pool":"fe-eu"},`), 400, `upstream \"fe-eu\"`},
		{"upstream's errors", "POST", "/api/v1/load", with(`"errors":0`, `"errors":10`), 400, "upstream fe-eu: errors 10"},
		{"unknown key", "POST", "/api/v1/load", with(`"seconds"`, `"secs"`), 400, "unknown field"},
	})
	if len(seen) != 1 || seen[0].Requests != 10 {
		t.Errorf("handed on %+v; want the good one", seen)
	}
	got := decodeTo[api.Loads](t, n.call("GET", "/api/v1/load", ""))
	if len(got.Loads) != 1 || got.Loads[0].Proxy != "p1" || !got.Loads[0].Received.Equal(at) {
		t.Errorf("got %+v", got)
	}
}

func TestLoads(t *testing.T) {
	tab := newLoads(2, time.Minute)
	put := func(proxy string, requests uint64, after time.Duration) bool {
		return tab.put(api.Load{Pool: "p", Proxy: proxy, Requests: requests}, at.Add(after))
	}
	for i, r := range []struct {
		proxy string
		after time.Duration
		want  bool
	}{
		{"b", 0, true},
		{"a", 30 * time.Second, true},
		{"c", 40 * time.Second, false}, // full
		{"a", 50 * time.Second, true},  // known
		{"c", 61 * time.Second, true},  // b is forgotten
	} {
		if got := put(r.proxy, uint64(i), r.after); got != r.want {
			t.Errorf("put %d of %s: got %v, want %v", i, r.proxy, got, r.want)
		}
	}
	var got []string
	for _, l := range tab.list(at.Add(70 * time.Second)) {
		got = append(got, fmt.Sprint(l.Proxy, l.Requests))
	}
	if want := "a3 c4"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if got := tab.list(at.Add(time.Hour)); len(got) != 0 {
		t.Errorf("after an hour: got %v, want none", got)
	}
}

// FuzzLoad holds that whatever is accepted is within the bounds.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		`{"proxy":"p","pool":"gfe-eu","seconds":1,"requests":10,"errors":1,"inFlight":2,"upstreams":[{"pool":"fe-eu","requests":9}]}`,
		`{"proxy":"p","pool":"gfe-eu","seconds":1e308,"requests":18446744073709551615}`,
		`{"proxy":"p","pool":"gfe-eu","seconds":1e-320,"requests":1}`,
		`{"upstreams":[{},{}]}`, `[]`, `null`, ``,
	} {
		f.Add(s)
	}
	snap := newNode(f, nil).snapshot.Load()
	f.Fuzz(func(t *testing.T, text string) {
		var l api.Load
		if json.Unmarshal([]byte(text), &l) != nil || checkLoad(&l, snap) != nil {
			return
		}
		if !(l.Seconds > 0 && l.Seconds <= maxInterval) || l.Errors > l.Requests || float64(l.Requests) > maxRate*maxInterval || len(l.Upstreams) > maxUpstreams {
			t.Errorf("%s: accepted %+v", text, l)
		}
	})
}
