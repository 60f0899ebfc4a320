package dns

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	miekg "github.com/miekg/dns"
)

var update = flag.Bool("update", false, "rewrite the answers in testdata/dialogues")

// TestDialogues asks what testdata/dialogues/*.txt ask and compares the answers with those that
// stand there; -update rewrites them, and the diff is to be reviewed. A file is made of blocks
// between empty lines: comments with #, "down POOL ADDRESS…" to have endpoints fail from there
// on, and one query with the answer below it.
//
// Every query goes through the fast path and the full path. Both must give the same octets, or
// the block says in what they differ.
func TestDialogues(t *testing.T) {
	files, err := filepath.Glob("../testdata/dialogues/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("dialogues: %d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			w := loadWorld(t)
			d := w.data(t)
			var out []string
			for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
				var kept []string
				var got string
				for line := range strings.SplitSeq(block, "\n") {
					f := strings.Fields(line)
					switch {
					case len(f) == 0:
					case strings.HasPrefix(f[0], "#"):
						kept = append(kept, line)
					case f[0] == "down":
						for _, addr := range f[2:] {
							w.fail(f[1], addr)
						}
						d = w.data(t)
						kept = append(kept, line)
					case f[0] == "query":
						kept = append(kept, line)
						got = converse(t, d, f[1:])
					}
				}
				want := block
				have := strings.TrimSpace(strings.Join(kept, "\n") + "\n" + got)
				out = append(out, have)
				if have != want && !*update {
					t.Errorf("got:\n%s\nwant:\n%s\n", have, want)
				}
			}
			if *update {
				if err := os.WriteFile(file, []byte(strings.Join(out, "\n\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// converse asks a dialogue's query on both paths and returns what it shows of the answer.
func converse(t *testing.T, d *Data, words []string) string {
	t.Helper()
	var from netip.Addr
	pkt := ask(t, words[0], words[1], func(m *miekg.Msg) {
		for _, word := range words[2:] {
			key, value, _ := strings.Cut(word, "=")
			if key == "from" {
				from = netip.MustParseAddr(value)
			} else if err := modify(m, key, value); err != nil {
				t.Fatalf("query %s: %v", words, err)
			}
		}
	})
	fast, full := testAnswerer(t), testAnswerer(t)
	reply := fast.serve(d, pkt, from, false, make([]byte, maxUDPBuffer))
	full.q.from, full.q.tcp = from, false
	slow := full.answerFull(d, pkt, make([]byte, maxUDPBuffer))

	b := new(strings.Builder)
	show(b, unpack(t, reply), len(reply))
	if fast.r.decided {
		pool := "none"
		if fast.d.Pool != nil {
			pool = fast.d.Pool.Name
		}
		fmt.Fprintf(b, "why pool=%s reason=%s\n", pool, fast.d.Reason)
	}
	fast.tally.publish()
	full.tally.publish()
	showCounts(b, fast.counters)
	if !bytes.Equal(reply, slow) {
		var s strings.Builder
		show(&s, unpack(t, slow), len(slow))
		fmt.Fprintf(b, "full path differs: %s\n", difference(b.String(), s.String(), len(reply), len(slow)))
	}
	if q, s := slices.Collect(counts(fast.counters)), slices.Collect(counts(full.counters)); !slices.Equal(q, s) {
		t.Errorf("query %s: counts of the fast path %v, of the full path %v", words, q, s)
	}
	return b.String()
}

// difference names in what the replies of the two paths differ.
func difference(fast, full string, fastLen, fullLen int) string {
	sections := func(s string) string { // without the header line, which has the size
		_, s, _ = strings.Cut(s, "\n")
		s, _, _ = strings.Cut(s+"\n", "\nwhy ")
		s, _, _ = strings.Cut(s, "\ncount ")
		return strings.TrimSpace(s)
	}
	if sections(fast) == sections(full) {
		return fmt.Sprintf("compression, %d octets and not %d", fullLen, fastLen)
	}
	return "\n" + full
}

// modify alters a query as a word of its line says.
func modify(m *miekg.Msg, key, value string) error {
	opt := func() *miekg.OPT {
		if m.IsEdns0() == nil {
			m.SetEdns0(DefaultMaxUDP, false)
		}
		return m.IsEdns0()
	}
	switch key {
	case "edns":
		opt()
	case "do":
		opt().SetDo()
	case "size":
		n, err := strconv.Atoi(value)
		opt().SetUDPSize(uint16(n))
		return err
	case "version":
		n, err := strconv.Atoi(value)
		opt().SetVersion(uint8(n))
		return err
	case "zflags":
		opt().Hdr.Ttl |= 0x7fff
	case "option":
		code, data, _ := strings.Cut(value, ":")
		n, err := strconv.Atoi(code)
		if err != nil {
			return err
		}
		raw, err := hex.DecodeString(data)
		opt().Option = append(opt().Option, &miekg.EDNS0_LOCAL{Code: uint16(n), Data: raw})
		return err
	case "ecs":
		if value == "none" { // as dig +subnet=0 has it: no family
			opt().Option = append(opt().Option, &miekg.EDNS0_LOCAL{Code: optionECS, Data: make([]byte, 4)})
			return nil
		}
		p, err := netip.ParsePrefix(value)
		opt().Option = append(opt().Option, ecsOption(p))
		return err
	case "rd":
		m.RecursionDesired = true
	case "ad":
		m.AuthenticatedData = true
	case "cd":
		m.CheckingDisabled = true
	case "class":
		m.Question[0].Qclass = miekg.StringToClass[value]
	case "opcode":
		m.Opcode = miekg.StringToOpcode[value]
	default:
		return fmt.Errorf("word %q: unknown", key)
	}
	return nil
}

// show writes a reply: rcode, flags, EDNS and size, and the RRs of each section.
func show(b *strings.Builder, m *miekg.Msg, size int) {
	words := []string{rcodeNames[m.Rcode]}
	for _, flag := range []struct {
		set  bool
		name string
	}{{m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.RecursionDesired, "rd"}, {m.RecursionAvailable, "ra"}, {m.Zero, "z"}, {m.AuthenticatedData, "ad"}, {m.CheckingDisabled, "cd"}} {
		if flag.set {
			words = append(words, flag.name)
		}
	}
	if len(m.Question) == 0 {
		words = append(words, "no-question")
	}
	if opt := m.IsEdns0(); opt != nil {
		words = append(words, fmt.Sprintf("edns=%d", opt.UDPSize()))
		if opt.Do() {
			words = append(words, "do")
		}
		if opt.Version() != 0 || opt.Z() != 0 {
			words = append(words, fmt.Sprintf("version=%d z=%d", opt.Version(), opt.Z()))
		}
		for _, o := range opt.Option {
			if e, ok := o.(*miekg.EDNS0_SUBNET); ok {
				words = append(words, fmt.Sprintf("ecs=%s/%d scope=%d", e.Address, e.SourceNetmask, e.SourceScope))
			} else {
				words = append(words, fmt.Sprintf("option=%d", o.Option()))
			}
		}
	}
	fmt.Fprintf(b, "%s octets=%d\n", strings.Join(words, " "), size)
	for i, section := range [][]miekg.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != miekg.TypeOPT {
				fmt.Fprintf(b, "%s %s\n", [...]string{"answer", "authority", "additional"}[i], strings.Join(strings.Fields(rr.String()), " "))
			}
		}
	}
}

// counts yields the counters that moved, as name=count.
func counts(c *counters) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		s := Stats{Rcodes: map[string]uint64{}, Outcomes: map[string]uint64{}, Reasons: map[string]uint64{}}
		pools := make(map[poolKey]uint64)
		c.addTo(&s, pools)
		var all []string
		add := func(name string, n uint64) {
			if n > 0 {
				all = append(all, strings.ReplaceAll(name, " ", "-")+"="+strconv.FormatUint(n, 10))
			}
		}
		for name, n := range s.Rcodes {
			add("rcode:"+name, n)
		}
		for name, n := range s.Outcomes {
			add("outcome:"+name, n)
		}
		for name, n := range s.Reasons {
			add("reason:"+name, n)
		}
		for key, n := range pools {
			add("pool:"+key.service+"/"+key.pool+"/"+key.reason.String(), n)
		}
		add("truncated", s.Truncated)
		add("malformed", s.Malformed)
		add("dropped", s.Dropped)
		slices.Sort(all)
		for _, s := range all {
			if !yield(s) {
				return
			}
		}
	}
}

func showCounts(b *strings.Builder, c *counters) {
	fmt.Fprintf(b, "count %s\n", strings.Join(slices.Collect(counts(c)), " "))
}
