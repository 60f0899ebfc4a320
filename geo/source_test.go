package geo_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	demogeo "github.com/meridian-gslb/meridian/testdata/geo"
	"github.com/meridian-gslb/meridian/testdata/geo/makedb"
)

// TestSourceReloads replaces the file under a source in the ways that happen: renamed in
// place, written in place, cut short, taken away.
func TestSourceReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "city.mmdb")
		write(t, path, demogeo.City)
		s, err := geo.NewSource(geo.Config{City: path}, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()

		// city says where the test's client is after the next poll; changed, whether the
		// source said that the map changed.
		settle := func() (city string, changed bool) {
			time.Sleep(5 * time.Second)
			synctest.Wait()
			select {
			case <-s.Changed():
				changed = true
			default:
			}
			p, _ := s.Current().Lookup(netip.MustParseAddr("192.0.2.1"))
			return p.City, changed
		}
		check := func(step, wantCity string, wantChanged bool, wantErr string) {
			t.Helper()
			city, changed := settle()
			if city != wantCity || changed != wantChanged {
				t.Fatalf("%s: city %q, changed %v; want %q, %v", step, city, changed, wantCity, wantChanged)
			}
			switch err := s.Err(); {
			case (err == nil) != (wantErr == ""):
				t.Fatalf("%s: Err() = %v, want %q", step, err, wantErr)
			case err != nil && !strings.Contains(err.Error(), wantErr):
				t.Fatalf("%s: Err() = %v, want it to say %q", step, err, wantErr)
			}
		}
		check("nothing happens", "New York", false, "")

		moved := relocate(t, "New York", "Boston")
		write(t, path+".new", moved)
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		check("another file renamed to its place", "Boston", true, "")

		write(t, path, moved[:len(moved)/2])
		check("cut short", "Boston", false, "cut short")
		check("still cut short", "Boston", false, "cut short")

		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		check("taken away", "Boston", false, "no such file")

		write(t, path, relocate(t, "New York", "Philadelphia"))
		check("written in place", "Philadelphia", true, "")

		if err := s.Reconfigure(geo.Config{City: path + ".none"}); err == nil {
			t.Error("Reconfigure with a missing file: no error")
		}
		check("a bad configuration changes nothing", "Philadelphia", false, "")
		if err := s.Reconfigure(geo.Config{}); err != nil {
			t.Error(err)
		}
		check("no files at all", "", true, "")

		why := errors.New("enough")
		stop(why)
		if got := <-ended; got != why {
			t.Errorf("Run = %v, want %v", got, why)
		}
	})
}

// TestNewSourceFails checks that a source does not start without its files.
func TestNewSourceFails(t *testing.T) {
	s, err := geo.NewSource(geo.Config{City: "none.mmdb"}, nil)
	if err == nil || !strings.Contains(err.Error(), "none.mmdb") {
		t.Errorf("NewSource = %v, %v; want an error that names the file", s, err)
	}
}

// relocate makes the demo's database with one city under another name.
func relocate(t *testing.T, from, to string) []byte {
	t.Helper()
	b, err := makedb.FromTable(strings.NewReader(strings.ReplaceAll(demogeo.Table, from, to)))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(b, demogeo.City) {
		t.Fatalf("no %q in the demo's table", from)
	}
	return b
}
