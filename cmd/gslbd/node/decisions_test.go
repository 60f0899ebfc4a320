package node

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dnstap "github.com/dnstap/golang-dnstap"
	miekg "github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// patience bounds what tests wait for. Nothing takes that long but on a machine that hangs.
const patience = 30 * time.Second

const decisionsConfig = `
node:
  name: n1
  site: s
  dns: ["127.0.0.1:0"]
  admin: "127.0.0.1:0"
  decisionLog: {file: decisions.log, dnstap: "unix:tap.sock", services: [www.example.com]}
sites: {s: {lat: 0, lon: 0}}
zones: [{name: example.com, records: "@ 60 SOA ns. h. 1 2 3 4 5\n@ 60 NS ns.\n"}]
pools: {gfe: {site: s, endpoints: [{address: 192.0.2.1}]}}
services: {www.example.com: {pools: {gfe: {}}}, api.example.com: {pools: {gfe: {}}}}
`

// TestNodeWritesDecisions asks a node and reads what it wrote down: lines, and dnstap messages
// with the packets themselves; a reload takes other filters.
func TestNodeWritesDecisions(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "n1.yaml")
	if err := os.WriteFile(path, []byte(decisionsConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "tap.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tapped := make(chan *dnstap.Dnstap, 16)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r, err := dnstap.NewReader(c, &dnstap.ReaderOptions{Bidirectional: true, Timeout: patience})
		if err != nil {
			t.Error(err)
			return
		}
		for d := dnstap.NewDecoder(r, 1<<16); ; {
			m := new(dnstap.Dnstap)
			if d.Decode(m) != nil {
				return
			}
			tapped <- m
		}
	}()
	f, _, _, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	n := runNode(t, Options{File: f, Path: path})
	server := n.DNSAddrs()[0]
	ask := func(network, name string) {
		t.Helper()
		q := new(miekg.Msg)
		q.SetQuestion(name, miekg.TypeA)
		c := &miekg.Client{Net: network, Timeout: patience}
		if _, _, err := c.Exchange(q, server.String()); err != nil {
			t.Fatal(err)
		}
	}
	ask("udp", "www.example.com.")
	ask("tcp", "www.example.com.")
	ask("udp", "api.example.com.")
	protocols := map[string]bool{}
	for range 2 {
		select {
		case m := <-tapped:
			x := m.Message
			protocols[x.SocketProtocol.String()] = true
			var query, reply miekg.Msg
			if query.Unpack(x.QueryMessage) != nil || reply.Unpack(x.ResponseMessage) != nil || query.Id != reply.Id || len(reply.Answer) != 1 || query.Question[0].Name != "www.example.com." {
				t.Errorf("packets: got %v and %v", &query, &reply)
			}
			if x.GetQueryPort() == 0 || uint16(x.GetResponsePort()) != server.Port() || net.IP(x.ResponseAddress).String() != "127.0.0.1" || net.IP(x.QueryAddress).String() != "127.0.0.1" {
				t.Errorf("addresses: got %v", x)
			}
			if string(m.Identity) != "n1" || !bytes.Contains(m.Extra, []byte(`"service":"www.example.com"`)) {
				t.Errorf("got %v", m)
			}
		case <-time.After(patience):
			t.Fatal("no dnstap message")
		}
	}
	if len(protocols) != 2 {
		t.Errorf("got %v, want UDP and TCP", protocols)
	}
	lines := func() (all []map[string]any) {
		text, err := os.ReadFile(filepath.Join(dir, "decisions.log"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var m map[string]any
			if json.Unmarshal([]byte(line), &m) == nil {
				all = append(all, m)
			}
		}
		return all
	}
	waitFor(t, "two lines", func() bool { return len(lines()) == 2 })
	if l := lines()[0]; l["service"] != "www.example.com" || l["pool"] != "gfe" || l["reason"] != "policy" || l["client"] != "127.0.0.1/32" {
		t.Errorf("line %v", l)
	}

	if err := os.WriteFile(path, []byte(strings.Replace(decisionsConfig, "services: [www.example.com]", "services: [api.example.com]", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	n.reload(false)
	ask("udp", "www.example.com.")
	ask("udp", "api.example.com.")
	waitFor(t, "a third line", func() bool { return len(lines()) == 3 })
	if l := lines()[2]; l["service"] != "api.example.com" {
		t.Errorf("after the reload: line %v", l)
	}
	page := get(t, "http://"+n.AdminAddr().String()+"/metrics")
	for _, want := range []string{`meridian_decision_log_written_total{sink="lines"} 3`, `meridian_decision_log_filtered_total 2`, `meridian_decision_log_dropped_total{cause="queue_full",sink="dnstap"} 0`} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
}

// TestDecisionReasons: the configuration knows every reason that the engine has.
func TestDecisionReasons(t *testing.T) {
	for i, name := range config.DecisionReasons {
		if got := gslb.Reason(i).String(); got != name {
			t.Errorf("reason %d: the configuration says %s, the engine %s", i, name, got)
		}
	}
	if n := int(gslb.ReasonServfail) + 1; n != len(config.DecisionReasons) {
		t.Errorf("the configuration knows %d reasons, the engine %d", len(config.DecisionReasons), n)
	}
}

// waitFor waits until ok.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// get returns the page at url.
func get(t *testing.T, url string) string {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
