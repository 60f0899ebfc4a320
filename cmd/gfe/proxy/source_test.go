package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
	"github.com/meridian-gslb/meridian/gslb"
)

func TestRead(t *testing.T) {
	for _, test := range []struct{ name, line, err string }{
		{"an assignment", `{"pool":"gfe-eu","hops":[{"pool":"x","weight":1,"endpoints":[{"addr":"192.0.2.1","weight":3,"verdict":"up"},{"addr":"2001:db8::1","verdict":"down"}]}]}`, ""},
		{"verdict", `{"pool":"gfe-eu","hops":[{"pool":"x","endpoints":[{"addr":"192.0.2.1","verdict":"fine"}]}]}`, `endpoint 192.0.2.1: verdict "fine"`},
		{"no upstream", `{"pool":"gfe-eu","revision":8}`, ""},
		{"another pool", `{"pool":"gfe-us"}`, `pool "gfe-us": asked for "gfe-eu"`},
		{"no pool", `{}`, `pool ""`},
		{"hop without pool", `{"pool":"gfe-eu","hops":[{"weight":1}]}`, "hop without a pool"},
		{"weight of a hop", `{"pool":"gfe-eu","hops":[{"pool":"x","weight":-1}]}`, "weight -1: expected 0.."},
		{"weight of an endpoint", `{"pool":"gfe-eu","hops":[{"pool":"x","endpoints":[{"addr":"192.0.2.1","weight":9999999,"verdict":"up"}]}]}`, "weight 9999999: expected 0.."},
		{"no address", `{"pool":"gfe-eu","hops":[{"pool":"x","endpoints":[{"weight":1,"verdict":"up"}]}]}`, "without an address"},
		{"endpoints", `{"pool":"gfe-eu","hops":[{"pool":"x","endpoints":[` + strings.Repeat(`{"addr":"192.0.2.1","verdict":"unknown"},`, maxEndpoints) + `{"addr":"192.0.2.1","verdict":"unknown"}]}]}`, "over 65536 endpoints"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var a api.Assignment
			if err := json.Unmarshal([]byte(test.line), &a); err != nil {
				t.Fatal(err)
			}
			_, err := read(&a, "gfe-eu")
			if (err != nil) != (test.err != "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("got %v, want %q", err, test.err)
			}
		})
	}
}

// TestReadKeepsAll: nothing of what the API sends gets lost.
func TestReadKeepsAll(t *testing.T) {
	want := Assignment{Revision: 7, Plan: "ab", Hops: []gslb.Hop{{Pool: "fe-eu", Site: "eu-west", Weight: 2, Priority: 1, Endpoints: []gslb.Endpoint{
		{Addr: addr("192.0.2.1"), Port: 8080, Weight: 3, Verdict: gslb.Up, Forced: true},
		{Addr: addr("2001:db8::1"), Weight: 1, Verdict: gslb.Down, Drained: true},
	}}}}
	line, err := json.Marshal(want) // an Assignment of ours is one of the API's but for the pool
	if err != nil {
		t.Fatal(err)
	}
	in := api.Assignment{Pool: "gfe-eu"}
	if err := json.Unmarshal(line, &in); err != nil {
		t.Fatal(err)
	}
	if got, err := read(&in, "gfe-eu"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

// FuzzAssignment: whatever is let in can be chosen from.
func FuzzAssignment(f *testing.F) {
	f.Add([]byte(`{"pool":"gfe-eu","revision":7,"hops":[{"pool":"fe-eu","site":"eu-west","weight":2,"priority":1,"endpoints":[{"addr":"192.0.2.1","port":8080,"weight":3,"verdict":"up"}]}]}`))
	f.Add([]byte(`{"heartbeat":true}`))
	f.Add([]byte(`{"pool":"gfe-eu","hops":[{"pool":"x","weight":1,"endpoints":[{"addr":"::ffff:192.0.2.1%1","weight":1,"verdict":"down","drained":true}]}]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var in api.Assignment
		if json.Unmarshal(line, &in) != nil {
			return
		}
		a, err := read(&in, "gfe-eu")
		if err != nil {
			return
		}
		peerOf, _ := peersByID()
		s := slots(a, peerOf)
		for _, s := range s {
			if !(s.weight > 0) || math.IsInf(s.weight, 0) || !s.addr.IsValid() || s.addr.Port() == 0 {
				t.Errorf("slot %+v of %s", s, line)
			}
		}
		if p := choose(s, nil, now, rand.Float64); (p == nil) != (len(s) == 0) {
			t.Errorf("of %d slots: got %v chosen", len(s), p)
		}
	})
}

// server answers with handler until the test ends, whatever it still writes.
func server(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func newHTTP(t *testing.T, base string) *HTTP {
	t.Helper()
	h, err := NewHTTP(base, "secret")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.transport.CloseIdleConnections)
	return h
}

func TestHTTPFollow(t *testing.T) {
	gfetest.Leaks(t)
	admin := server(t, func(w http.ResponseWriter, r *http.Request) {
		if got, want := r.URL.Path, "/api/v1/assignments/gfe-eu"; got != want {
			t.Errorf("path: got %s, want %s", got, want)
		}
		if got, want := r.Header.Get("Authorization"), "Bearer secret"; got != want {
			t.Errorf("authorization: got %q, want %q", got, want)
		}
		fmt.Fprintln(w, `{"pool":"gfe-eu","revision":1}`)
		fmt.Fprintln(w, `{"pool":"gfe-eu","heartbeat":true}`)
		fmt.Fprintln(w, `{"pool":"gfe-eu","revision":2}`)
	})
	var got []uint64
	err := newHTTP(t, admin.URL).Follow(t.Context(), "gfe-eu", func(a Assignment) { got = append(got, a.Revision) })
	if want := []uint64{1, 2}; !reflect.DeepEqual(got, want) {
		t.Errorf("revisions: got %v, want %v", got, want)
	}
	if err == nil || !strings.Contains(err.Error(), "unexpected EOF") && !strings.Contains(err.Error(), "cannot reach") {
		t.Errorf("a stream that ended: got error %v, want that the node is out of reach", err)
	}
}

func TestHTTPFollowFails(t *testing.T) {
	gfetest.Leaks(t)
	admin := server(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/unknown"):
			w.WriteHeader(http.StatusNotFound)
			json.NewEncoder(w).Encode(api.Problem{Error: `no pool "unknown"`})
		case strings.HasSuffix(r.URL.Path, "/teapot"):
			w.WriteHeader(http.StatusTeapot)
		case strings.HasSuffix(r.URL.Path, "/broken"):
			fmt.Fprintln(w, "{")
		default: // silent
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	})
	for _, test := range []struct{ pool, want string }{
		{"unknown", `no pool "unknown"`},
		{"teapot", "418 I'm a teapot"},
		{"broken", "unexpected end"},
		{"silent", "not a word for two heartbeats"},
	} {
		t.Run(test.pool, func(t *testing.T) {
			h := newHTTP(t, admin.URL)
			if test.pool == "silent" {
				h.silence = time.Millisecond
			}
			err := h.Follow(t.Context(), test.pool, func(a Assignment) { t.Errorf("assignment: got %+v, want none", a) })
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error: got %v, want %q", err, test.want)
			}
		})
	}
}

func TestNewHTTP(t *testing.T) {
	for _, base := range []string{"", "ftp://x", "http://", "http://[::1"} {
		if _, err := NewHTTP(base, ""); err == nil {
			t.Errorf("%q: got no error", base)
		}
	}
}

func TestStatic(t *testing.T) {
	for _, test := range []struct{ name, hostport, want string }{
		{"no port", "192.0.2.1", "expected host:port"},
		{"port 0", "192.0.2.1:0", "expected host:port"},
		{"port", "192.0.2.1:http", "expected host:port"},
		{"no host", ":80", "expected host:port"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := Static("be", test.hostport); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	if _, err := Static("be"); err == nil {
		t.Error("without an endpoint: got no error")
	}
	synctest.Test(t, func(t *testing.T) {
		source, err := Static("be", "192.0.2.1:80", "[2001:db8::1]:81")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var got []Assignment
		err = source.Follow(ctx, "fe", func(a Assignment) { got = append(got, a) })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error: got %v, want the context's", err)
		}
		want := []Assignment{{Hops: []gslb.Hop{hop("be", 0, 1,
			gslb.Endpoint{Addr: addr("192.0.2.1"), Port: 80, Weight: 1}, gslb.Endpoint{Addr: addr("2001:db8::1"), Port: 81, Weight: 1})}}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("in an hour: got %+v, want %+v", got, want)
		}
	})
}
