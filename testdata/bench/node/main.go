// Command node measures what a node costs that does nothing, and how soon it answers. See
// testdata/bench/node.sh.
package main

import (
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/testdata/bench/run"
)

var (
	starts = flag.Int("starts", 10, "starts of each kind")
	rest   = flag.Duration("rest", 20*time.Second, "how long a node rests before its memory is read")
	out    = flag.String("out", "", "`file` for the table")
)

func main() {
	flag.Parse()
	if err := measure(); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

// store is a way to keep the objects.
type store struct {
	name string
	etcd string // in place of "embedded: true"

	first, second     []time.Duration // from the start to the first answer
	resident, highest int             // KiB
	anonymous         int             // KiB
}

func measure() error {
	dir, err := os.MkdirTemp("", "meridian-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin, err := run.Build(dir)
	if err != nil {
		return err
	}
	size, err := os.Stat(bin)
	if err != nil {
		return err
	}
	stores := []*store{{name: "embedded etcd", etcd: "embedded: true"}, {name: "file alone", etcd: "embedded: false"}}
	for _, s := range stores {
		if err := s.measure(bin, filepath.Join(dir, strings.Fields(s.name)[0])); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}

	var b strings.Builder
	b.WriteString("# A node at rest, and its start\n\nWritten by `testdata/bench/node.sh`; run it to get these figures again.\n\n")
	fmt.Fprintf(&b, "Static binary (`CGO_ENABLED=0 go build -trimpath -ldflags=\"-s -w\"`): %.1f MiB.\n\n", float64(size.Size())/(1<<20))
	b.WriteString("| example configuration with | resident MiB | of it heap and stacks MiB | highest MiB | first start ms | second start ms |\n|---|--:|--:|--:|--:|--:|\n")
	for _, s := range stores {
		fmt.Fprintf(&b, "| %s | %.0f | %.0f | %.0f | %s | %s |\n", s.name, mib(s.resident), mib(s.anonymous), mib(s.highest), spread(s.first), spread(s.second))
	}
	fmt.Fprintf(&b, `
- Memory: VmRSS, RssAnon and VmHWM of the process, %v after its first answer, without queries. The rest of what
  is resident are pages of the binary and of the files that it maps.
- Start: from just before the process is made to its first answer for www.example.com A with a client subnet, asked
  every millisecond; median (least to most) of %d. The first start has no data folder, and so makes one, probes
  every endpoint once (all refuse), and with etcd makes a cluster; the second one knows the verdicts and objects.
`, *rest, *starts)
	b.WriteString(run.Machine())
	return run.Write(*out, b.String())
}

func mib(kib int) float64 { return float64(kib) / 1024 }

// spread is the median of some times, and their bounds, in ms.
func spread(ds []time.Duration) string {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%.0f (%.0f–%.0f)", ms(run.Median(ds)), ms(slices.Min(ds)), ms(slices.Max(ds)))
}

// measure starts nodes in dir.
func (s *store) measure(bin, dir string) error {
	for i := range *starts {
		config, server, err := example(filepath.Join(dir, fmt.Sprint(i)), s.etcd)
		if err != nil {
			return err
		}
		last := i == *starts-1
		first, err := s.start(bin, config, server, false)
		if err != nil {
			return err
		}
		second, err := s.start(bin, config, server, last)
		if err != nil {
			return err
		}
		s.first, s.second = append(s.first, first), append(s.second, second)
	}
	return nil
}

// start starts a node, waits for its first answer, and ends it, after a rest if idle.
func (s *store) start(bin, config, server string, idle bool) (time.Duration, error) {
	ask, err := run.NewAsker(server, "www.example.com", netip.MustParsePrefix("198.51.100.0/24"))
	if err != nil {
		return 0, err
	}
	defer ask.Close()
	n, err := run.Start(bin, config)
	if err != nil {
		return 0, err
	}
	took, err := firstAnswer(n, ask)
	if err == nil && idle {
		time.Sleep(*rest)
		for _, m := range []struct {
			key string
			to  *int
		}{{"VmRSS", &s.resident}, {"RssAnon", &s.anonymous}, {"VmHWM", &s.highest}} {
			if *m.to, err = n.Memory(m.key); err != nil {
				break
			}
		}
	}
	if stopped := n.Stop(); err == nil {
		err = stopped
	}
	return took, err
}

// firstAnswer asks until there is an answer, and returns the time since the start.
func firstAnswer(n *run.Node, ask *run.Asker) (time.Duration, error) {
	for {
		began := time.Now()
		if len(ask.Ask(5*time.Millisecond)) > 0 {
			return time.Since(n.Started), n.Ready(time.Second)
		}
		if time.Since(n.Started) > time.Minute {
			return 0, fmt.Errorf("no answer after a minute")
		}
		time.Sleep(time.Millisecond - time.Since(began))
	}
}

// example copies the example configuration to dir, with ports that are free, and returns the
// file and where DNS is answered.
func example(dir, etcd string) (config, server string, err error) {
	if err := os.CopyFS(filepath.Join(dir, "example"), os.DirFS("testdata/example")); err != nil {
		return "", "", err
	}
	if err := os.CopyFS(filepath.Join(dir, "geo"), os.DirFS("testdata/geo")); err != nil {
		return "", "", err
	}
	port, err := run.FreePort()
	if err != nil {
		return "", "", err
	}
	server = net.JoinHostPort("127.0.0.1", fmt.Sprint(port))
	config = filepath.Join(dir, "example", "gslb.yaml")
	text, err := os.ReadFile(config)
	if err != nil {
		return "", "", err
	}
	for _, r := range [][2]string{
		{"/tmp/meridian-example", filepath.Join(dir, "data")},
		{`"127.0.0.1:5300"`, fmt.Sprintf("%q", server)},
		{"admin: 127.0.0.1:8053", "admin: 127.0.0.1:0"},
		{"listen: 127.0.0.1:7946", "listen: 127.0.0.1:0"},
		{"embedded: true", etcd},
	} {
		if !strings.Contains(string(text), r[0]) {
			return "", "", fmt.Errorf("the example has no %q", r[0])
		}
		text = []byte(strings.ReplaceAll(string(text), r[0], r[1]))
	}
	return config, server, os.WriteFile(config, text, 0o600)
}
