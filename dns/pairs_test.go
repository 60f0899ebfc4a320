package dns

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// TestPairs asks what testdata/dialogues/pairs.table asks: of each two stages, what they do to a
// client together. -update rewrites the answers, and the diff is to be reviewed.
//
//	a + b: what of them is shown
//	policy [a, b]
//	  CLIENT [down=POOL[/ADDRESS],…] [load=POOL:LOAD,…] [rtt=PREFIX:POOL:MS,…]
//	    => ADDRESSES ttl=TTL scope=SCOPE POOL REASON: COUNTERS
func TestPairs(t *testing.T) {
	const path = "../testdata/dialogues/pairs.table"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	world, err := os.ReadFile("../testdata/dialogues/pairs.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w := parseWorld(t, string(world))
	var out []string
	asked := map[string]int{} // by pair
	var pair, question string
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		answer, answers := strings.CutPrefix(line, "    => ")
		if question != "" {
			want := w.pair(t, question)
			if !answers || answer != want {
				if !*update {
					t.Errorf("%s:%d: %s: %s\ngot  %s\nwant %s", path, i+1, pair, question, want, answer)
				}
			}
			out = append(out, "    => "+want)
			asked[pair]++
			question = ""
		}
		policy, sets := strings.CutPrefix(line, "policy ")
		switch {
		case answers:
			continue
		case sets:
			w.steer(t, policy)
		case strings.HasPrefix(line, "  "):
			question = strings.TrimSpace(line)
		case strings.Contains(line, ": ") && !strings.HasPrefix(line, "#"):
			pair, _, _ = strings.Cut(line, ":")
		}
		out = append(out, line)
	}
	if question != "" {
		out = append(out, "    => "+w.pair(t, question))
	}
	kinds := []string{"fence", "health", "failover", "nearest", "rtt", "trickle", "shed", "capacity", "weighted", "sticky", "select", "match", "chain"}
	for i, a := range kinds {
		for _, b := range kinds[i+1:] {
			if asked[a+" + "+b] == 0 {
				t.Errorf("%s + %s: nothing is asked of the pair", a, b)
			}
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(strings.Join(out, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// pairService is the service of which pairs.table speaks.
const pairService = "w.example.com"

// steer gives the service that policy.
func (w *world) steer(t *testing.T, policy string) {
	t.Helper()
	o, err := config.ParseObjects("policy", []byte("services: {w.example.com: {ttl: 30s, pools: {us: {}, eu: {}, uk: {}}, policy: "+policy+"}}"))
	if err != nil {
		t.Fatalf("%s: %v", policy, err)
	}
	w.file.Services[pairService] = o.Services[pairService]
	if err := config.Validate(&w.file.Objects); err != nil {
		t.Fatalf("%s: %v", policy, err)
	}
	w.prev = nil
}

// pair returns the answer to a question of pairs.table.
func (w *world) pair(t *testing.T, question string) string {
	t.Helper()
	words := strings.Fields(question)
	w.down, w.load = make(map[gslb.EndpointID]gslb.Verdict), make(map[string]float64)
	rtts := make(map[gslb.RTTKey]gslb.RTT)
	number := func(s string) float64 {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatalf("%s: %v", question, err)
		}
		return v
	}
	for _, word := range words[1:] {
		kind, list, _ := strings.Cut(word, "=")
		for item := range strings.SplitSeq(list, ",") {
			parts := strings.Split(item, ":")
			switch kind {
			case "down":
				pool, addr, one := strings.Cut(item, "/")
				for _, e := range w.file.Pools[pool].Endpoints {
					if !one || e.Address.String() == addr {
						w.fail(pool, e.Address.String())
					}
				}
			case "load":
				w.load[parts[0]] = number(parts[1])
			case "rtt":
				rtts[gslb.RTTKey{Prefix: netip.MustParsePrefix(parts[0]), Pool: parts[1]}] = gslb.RTT{Millis: number(parts[2]), Samples: 9, At: worldTime}
			default:
				t.Fatalf("%s: %q: unknown", question, word)
			}
		}
	}
	w.rtt = gslb.NewRTTTable(rtts)
	said := converse(t, w.data(t), []string{pairService + ".", "A", "from=192.0.2.53", "ecs=" + words[0]})

	var addrs []string
	var head, ttl, why, count string
	for line := range strings.SplitSeq(said, "\n") {
		f := strings.Fields(line)
		switch {
		case head == "":
			head = line
		case strings.HasPrefix(line, "answer "):
			ttl, addrs = f[2], append(addrs, f[5])
		case strings.HasPrefix(line, "why "):
			why = strings.TrimPrefix(f[1], "pool=") + " " + strings.TrimPrefix(f[2], "reason=")
		case strings.HasPrefix(line, "count "):
			count = strings.TrimPrefix(line, "count ")
		case line != "":
			t.Fatalf("%s: %s", question, line)
		}
	}
	_, scope, _ := strings.Cut(head, "scope=")
	scope, _, _ = strings.Cut(scope, " ")
	return fmt.Sprintf("%s ttl=%s scope=%s %s: %s", strings.Join(addrs, ","), ttl, scope, why, count)
}
