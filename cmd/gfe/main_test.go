package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/cmd/gfe/gfetest"
	"github.com/meridian-gslb/meridian/cmd/gfe/proxy"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/xds"
)

// TestCommand runs the command against the stream of a node, from the flags to a user's
// answer and the end.
func TestCommand(t *testing.T) {
	gfetest.Leaks(t)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }))
	defer upstream.Close()
	at := netip.MustParseAddrPort(upstream.Listener.Addr().String())
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if r.Method == http.MethodGet {
			json.NewEncoder(w).Encode(map[string]any{"pool": "gfe-eu", "revision": 1, "hops": []gslb.Hop{{Pool: "fe-eu", Weight: 1,
				Endpoints: []gslb.Endpoint{{Addr: at.Addr(), Port: at.Port(), Weight: 1, Verdict: gslb.Up}}}}})
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}))
	defer admin.Close()
	t.Setenv("MERIDIAN_TOKEN", "secret")

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	out, in := io.Pipe()
	cmd := command(in, io.Discard)
	cmd.SetArgs([]string{"--pool", "gfe-eu", "--name", "gfe-eu-1", "--admin", admin.URL, "--listen", "127.0.0.1:0"})
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()

	ready, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`^gfe gfe-eu-1 ready: pool gfe-eu on \[(.*)\]\n$`).FindStringSubmatch(ready)
	if m == nil {
		t.Fatalf("ready line: got %q", ready)
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	gfetest.Eventually(t, "the upstream answers through the proxy", func() bool {
		res, err := client.Get("http://" + m[1])
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode == http.StatusOK && string(b) == "hello"
	})
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("end: got %v, want nil", err)
	}
}

func TestCommandRefuses(t *testing.T) {
	for _, test := range []struct{ name, args, want string }{
		{"nothing", "", "--pool and --listen are needed"},
		{"admin", "--pool p --listen 127.0.0.1:0 --admin ftp://x", `--admin: server "ftp://x": expected http://host:port`},
		{"listen", "--pool p --listen nowhere", `listen "nowhere"`},
		{"key", "--pool p --listen 127.0.0.1:0 --tls-cert c.pem", "a certificate needs its key"},
		{"more", "--pool p --listen 127.0.0.1:0 word", `unknown command "word"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := command(io.Discard, io.Discard)
			cmd.SetArgs(strings.Fields(test.args))
			if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestRenewedCertificate connects to a config server by a certificate, and again to one that
// trusts only the certificate that has come in its place since.
func TestRenewedCertificate(t *testing.T) {
	gfetest.Leaks(t)
	serverCert, serverKey, _ := gfetest.Certificate(t)
	cert, key, _ := gfetest.Certificate(t, "gfe-eu")
	nextCert, nextKey, _ := gfetest.Certificate(t, "gfe-eu")
	// serve runs a config server that trusts that certificate, and waits for the proxy there.
	var address string
	serve := func(trusted string) (stop func()) {
		s := xds.New(xds.Options{Addr: cmp.Or(address, "127.0.0.1:0"), TLS: xds.TLS{Cert: serverCert, Key: serverKey, CA: trusted}})
		if err := s.Listen(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		if address == "" {
			address = s.Addr().String()
			c := proxy.Config{Name: "one", Cert: cert, Key: key, Log: slog.New(slog.DiscardHandler)}
			ads, err := fromConfigServer(&c, address, serverCert, nil)
			if err != nil {
				t.Fatal(err)
			}
			following := make(chan struct{})
			go func() {
				defer close(following)
				for t.Context().Err() == nil {
					ads.Follow(t.Context(), "gfe-eu", func(proxy.Assignment) {}) // ends with each server
					time.Sleep(10 * time.Millisecond)                            // between two attempts; nothing depends on how long
				}
			}()
			t.Cleanup(func() {
				ads.Close()
				<-following
			})
		}
		gfetest.Eventually(t, "the proxy is connected", func() bool {
			list := s.Clients()
			return len(list) == 1 && list[0].ID == "one"
		})
		return func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	serve(cert)()
	for from, to := range map[string]string{nextCert: cert, nextKey: key} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	serve(cert)()
}

func TestLinkerKeys(t *testing.T) {
	const key = "c2l4dGVlbiBvY3RldHMhIQ==" // 16 octets
	for _, tc := range []struct {
		name, text string
		wrong      string // in the error; "": there is none
	}{
		{"one key", key + "\n", ""},
		{"two, and words", "# new\n" + key + "\n\n# old\n" + key, ""},
		{"none", "# nothing\n", "at least one key"},
		{"not base64", key + "\nsecret!\n", "line 2"},
		{"short", "YWJj\n", "16, 24 or 32"},
	} {
		file := filepath.Join(t.TempDir(), "keys")
		if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := linker(file, time.Minute, time.Minute)
		if tc.wrong == "" && (err != nil || l == nil) || tc.wrong != "" && (err == nil || !strings.Contains(err.Error(), tc.wrong) || strings.Contains(err.Error(), "secret!")) {
			t.Errorf("%s: %v, %v, want error %q, without the line", tc.name, l, err, tc.wrong)
		}
	}
	if _, err := linker("/nonexistent", time.Minute, time.Minute); err == nil {
		t.Error("no file: no error")
	}
}

// TestUsage: a fault of the command line has an exit code of its own.
func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"", 2, "--pool and --listen are needed"},
		{"--pool x", 2, "--pool and --listen are needed"},
		{"--wat", 2, "unknown flag"},
		{"--pool x --listen 127.0.0.1:0 more", 2, "unknown command"},
		{"--pool x --listen 127.0.0.1:0 --admin ftp://x", 1, "--admin"},
	} {
		cmd := command(io.Discard, io.Discard)
		cmd.SetArgs(strings.Fields(tt.args))
		err := cmd.ExecuteContext(t.Context())
		if err == nil || code(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("gfe %s: got %v; want %q and exit code %d", tt.args, err, tt.want, tt.code)
		}
	}
}
