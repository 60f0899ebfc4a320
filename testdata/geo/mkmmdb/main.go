// Command mkmmdb makes a MaxMind City database: of a readable table, or of a random world
// for benchmarks.
//
//	go run ./testdata/geo/mkmmdb -table testdata/geo/demo.csv -o testdata/geo/demo.mmdb
//	go run ./testdata/geo/mkmmdb -synthetic 450000 -seed 1 -o /tmp/city.mmdb
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/meridian-gslb/meridian/testdata/geo/makedb"
)

func main() {
	table := flag.String("table", "", "make the database of this `file`: lines of network, city, subdivision, country, continent, latitude, longitude")
	synthetic := flag.Int("synthetic", 0, "make a random world of `n` networks")
	seed := flag.Uint64("seed", 1, "seed of the random world")
	kind := flag.String("type", makedb.DefaultType, "database type, for readers that want MaxMind's own name (GeoIP2-City)")
	out := flag.String("o", "", "`file` to write")
	flag.Parse()
	if err := run(*table, *synthetic, *seed, *kind, *out); err != nil {
		fmt.Fprintln(os.Stderr, "mkmmdb:", err)
		os.Exit(1)
	}
}

func run(table string, synthetic int, seed uint64, kind, out string) (err error) {
	if (table == "") == (synthetic <= 0) || out == "" || flag.NArg() > 0 {
		return errors.New("expected -o FILE and either -table FILE or -synthetic N; see -help")
	}
	networks := []makedb.Network(nil)
	if table != "" {
		f, err := os.Open(table)
		if err != nil {
			return err
		}
		defer f.Close()
		if networks, err = makedb.Read(f); err != nil {
			return fmt.Errorf("%s: %w", table, err)
		}
	} else {
		networks = makedb.Synthetic(synthetic, seed)
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	if err := makedb.Write(w, kind, networks); err != nil {
		return err
	}
	return w.Flush()
}
