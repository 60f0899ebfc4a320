package proxy

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
	"github.com/meridian-gslb/meridian/tracing"
)

// network moves the goroutine into a network of its own, where every address of prefix is
// local: what AnyIP is at an edge. Sockets that it opens, and what it runs, are there.
func network(t *testing.T, prefix string) {
	t.Helper()
	need := func(err error, what string) {
		if err == nil {
			return
		}
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatalf("%s: %v", what, err)
		}
		t.Skipf("%s: %v", what, err)
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	need(unix.Unshare(unix.CLONE_NEWNET), "a network of its own")
	for _, args := range []string{"link set lo up", "-6 route add local " + prefix + " dev lo"} {
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		need(err, "ip "+args)
	}
}

// A request to an address with an answer id, over real sockets, has a span that links to the
// decision; a forged address is counted, and its request served like any other.
func TestLinkByAddress(t *testing.T) {
	gfetest.Leaks(t)
	ids, err := tracing.NewAnswerIDs(time.Minute, []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	signer := ids.Signer()
	began := time.Now().Truncate(time.Minute)
	id := signer.ID(began, "www.example.com", "gfe-eu", "1f2e", 0)
	genuine := signer.Addr(id, netip.MustParseAddr("2001:db8:6f::"))
	decision, decided := signer.Context(id, 0)
	linker := tracing.NewLinker(ids, nil)
	good, _ := upstream(t, func(http.ResponseWriter, *http.Request) {})
	tp, out := spans()
	f := newFeed()

	done := make(chan struct{})
	go func() { // its thread is thrown away
		defer close(done)
		network(t, "2001:db8:6f::/64")
		p, err := New(Config{Pool: "gfe-eu", Name: "gfe-eu-1", Source: f, Tracer: tp, Linker: linker, Listen: []string{"[::]:0"}})
		if err != nil {
			t.Error(err)
			return
		}
		if err := p.Listen(); err != nil {
			t.Error(err)
			return
		}
		run(t, p.Run)
		f.set(to(42, good))
		gfetest.Eventually(t, "an assignment", func() bool { return p.Upstream().Ready() == nil })
		for _, tc := range []struct {
			name, addr string
			linked     bool
			forged     uint64
		}{
			{"genuine", genuine.String(), true, 0},
			{"plain", "2001:db8:6f::11", false, 0},
			{"forged", "2001:db8:6f:0:1234:5678:9abc:def0", false, 1},
		} {
			before := linker.Stats().Forged
			out.Reset()
			if err := getAt(netip.AddrPortFrom(netip.MustParseAddr(tc.addr), p.Addrs()[0].Port())); err != nil {
				t.Errorf("%s: %v", tc.name, err)
				continue
			}
			var span *tracetest.SpanStub
			gfetest.Eventually(t, "the server's span", func() bool {
				for _, s := range out.GetSpans() {
					if s.SpanKind == trace.SpanKindServer {
						span = &s
					}
				}
				return span != nil
			})
			checkAttributes(t, *span, map[string]string{tracing.AttrVIP: netip.MustParseAddr(tc.addr).String()})
			if got := linker.Stats().Forged - before; got != tc.forged {
				t.Errorf("%s: %d forged, want %d", tc.name, got, tc.forged)
			}
			if !tc.linked {
				if len(span.Links) != 0 {
					t.Errorf("%s: links %v, want none", tc.name, span.Links)
				}
				continue
			}
			if len(span.Links) != 1 || tracing.TraceID(span.Links[0].SpanContext.TraceID()) != decision || tracing.SpanID(span.Links[0].SpanContext.SpanID()) != decided {
				t.Errorf("%s: links %v, want one to %v %v", tc.name, span.Links, decision, decided)
			}
			checkAttributes(t, *span, map[string]string{tracing.AttrDecisionID: id.String()})
			attrs := attribute.NewSet(span.Attributes...)
			age, _ := attrs.Value(tracing.AttrAnswerAge)
			if least := time.Since(began).Seconds(); age.AsFloat64() < 0 || age.AsFloat64() > least {
				t.Errorf("%s: age %v, want that of the epoch, at most %v s", tc.name, age.AsFloat64(), least)
			}
		}
	}()
	<-done
}

// getAt asks for / at an address, from the network of the goroutine's own thread.
func getAt(addr netip.AddrPort) error {
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s, want 200", res.Status)
	}
	return nil
}

// Where nothing is known of answers, the span says where the request came in, so that a
// relay can link it.
func TestAddressInSpan(t *testing.T) {
	gfetest.Leaks(t)
	good, _ := upstream(t, func(http.ResponseWriter, *http.Request) {})
	tp, out := spans()
	f := newFeed()
	_, base := start(t, Config{Source: f, Tracer: tp})
	f.set(to(42, good))
	check(t, get(t, base+"/"), http.StatusOK)
	gfetest.Eventually(t, "two spans", func() bool { return len(out.GetSpans()) == 2 })
	for _, s := range out.GetSpans() {
		if s.SpanKind == trace.SpanKindServer {
			checkAttributes(t, s, map[string]string{tracing.AttrVIP: "127.0.0.1"})
		}
	}
}
