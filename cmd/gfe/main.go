// Command gfe is a small frontend proxy: the edge of a pool where Envoy is not installed. It
// asks a node of the GSLB where to send requests, and tells it the load.
package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/attribute"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/meridian-gslb/meridian/cmd/gfe/proxy"
	"github.com/meridian-gslb/meridian/cmd/gfe/serve"
	"github.com/meridian-gslb/meridian/tracing"
	"github.com/meridian-gslb/meridian/xds/certs"
)

func main() {
	ctx, stop := serve.Signals(context.Background())
	defer stop()
	if err := command(os.Stdout, os.Stderr).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "gfe:", err)
		os.Exit(code(err))
	}
}

// usageError is a fault of the command line.
type usageError struct{ error }

// code returns the exit code for err: 2 for a fault of the command line, 1 for any other.
func code(err error) int {
	if _, ok := errors.AsType[usageError](err); ok {
		return 2
	}
	return 1
}

// command returns the command line. It prints the ready line to out and logs to logs.
func command(out, logs io.Writer) *cobra.Command {
	var c proxy.Config
	var admin, token, otlp, configServer, ca, keys string
	var epoch, ttl time.Duration
	var sample float64
	cmd := &cobra.Command{
		Use:   "gfe --pool NAME --admin URL --listen ADDRESS",
		Short: "Proxy users' requests to where the GSLB says",
		Example: `  gfe --pool gfe-eu --admin http://127.0.0.1:8053 --listen 127.0.2.11:8080
  gfe --pool gfe-eu --admin http://127.0.0.1:8053 --listen http://:80 --listen https://:443 --tls-cert cert.pem --tls-key key.pem`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.NoArgs(cmd, args); err != nil {
				return usageError{err}
			}
			if c.Pool == "" || len(c.Listen) == 0 {
				return usageError{errors.New("--pool and --listen are needed; see gfe --help")}
			}
			return nil
		},
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Log = slog.New(slog.NewTextHandler(logs, nil))
			if token == "" {
				token = os.Getenv("MERIDIAN_TOKEN")
			}
			source, err := proxy.NewHTTP(admin, token)
			if err != nil {
				return fmt.Errorf("--admin: %w", err)
			}
			c.Source = source
			if configServer != "" {
				ads, err := fromConfigServer(&c, configServer, ca, source)
				if err != nil {
					return fmt.Errorf("--xds: %w", err)
				}
				defer ads.Close()
			}
			if keys != "" {
				if c.Linker, err = linker(keys, epoch, ttl); err != nil {
					return fmt.Errorf("--answer-keys: %w", err)
				}
			}
			return run(cmd.Context(), c, otlp, sample, out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Pool, "pool", "", "the `NAME` of the pool that this proxy belongs to")
	f.StringVar(&c.Name, "name", "", "the `NAME` of this proxy, unique in its pool (default that of the host)")
	f.StringVar(&c.Site, "site", "", "the `SITE` of this proxy, for the header x-gslb-site")
	f.StringVar(&admin, "admin", "http://127.0.0.1:8053", "`URL` of the admin API of a node")
	f.StringVar(&configServer, "xds", "", "host:port of a node's config server: asked in place of the admin API, which is told the load all the same")
	f.StringVar(&ca, "xds-ca", "", "PEM `FILE` with who signs the config server's certificate (default no TLS); --tls-cert is shown to it")
	f.StringVar(&token, "admin-token", "", "bearer `TOKEN` for it (default $MERIDIAN_TOKEN)")
	f.StringArrayVar(&c.Listen, "listen", nil, "`ADDRESS` to serve: [http://|https://]host:port; may be repeated")
	f.StringVar(&c.Cert, "tls-cert", "", "PEM `FILE` with the certificate; listeners without a scheme then speak TLS")
	f.StringVar(&c.Key, "tls-key", "", "PEM `FILE` with its key")
	f.StringVar(&otlp, "otlp", "", "`URL` of an OTLP/HTTP collector for spans")
	f.Float64Var(&sample, "sample", 1, "share of requests traced whose caller did not decide, 0..1")
	f.StringVar(&keys, "answer-keys", "", "`FILE` with the keys of node.tracing.answerIds, one a line: requests are linked to the answers that led to them")
	f.DurationVar(&epoch, "answer-epoch", tracing.DefaultEpoch, "the epoch of node.tracing.answerIds")
	f.DurationVar(&ttl, "answer-ttl", tracing.DefaultLinkTTL, "the longest TTL of the services with answerIds: requests much later are linked with less confidence, then not at all")
	f.BoolVar(&c.H2C, "upstream-h2c", false, "speak HTTP/2 in the clear to upstreams")
	f.DurationVar(&c.Connect, "connect-timeout", 0, "to reach an upstream (default 2s)")
	f.DurationVar(&c.Header, "header-timeout", 0, "for an upstream to start its answer (default 15s)")
	f.DurationVar(&c.Eject, "eject", 0, "how long an upstream that refused is avoided (default 5s)")
	f.DurationVar(&c.Lame, "lame", 0, "how long to serve on after SIGTERM with the health check failing")
	f.DurationVar(&c.Grace, "grace", 10*time.Second, "how long requests under way may take after that")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	return cmd
}

// linker returns what links requests to answers, with the keys in a file, in base64, one a
// line; lines that begin with # say nothing.
func linker(file string, epoch, ttl time.Duration) (*tracing.Linker, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	for n, line := range strings.Split(string(text), "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil { // the line may be secret
			return nil, fmt.Errorf("%s: line %d: expected 16, 24 or 32 octets in base64", file, n+1)
		}
		keys = append(keys, key)
	}
	ids, err := tracing.NewAnswerIDs(epoch, keys...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	l := tracing.NewLinker(ids, nil)
	l.SetTTL(ttl)
	return l, nil
}

// fromConfigServer makes a config server the source of c. The load is told to also as well.
func fromConfigServer(c *proxy.Config, server, ca string, also proxy.Reporter) (*proxy.ADS, error) {
	if err := name(c); err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if ca != "" {
		files, err := certs.Read(c.Cert, c.Key, ca, c.Log)
		if err != nil {
			return nil, err
		}
		creds = certs.Client(files)
	}
	ads, err := proxy.NewADS(proxy.ADSConfig{Server: server, Creds: creds, Name: c.Name, Site: c.Site, Also: also})
	if err == nil {
		c.Source = ads
	}
	return ads, err
}

// name gives the proxy its host's name where it has none.
func name(c *proxy.Config) (err error) {
	if c.Name == "" {
		if c.Name, err = os.Hostname(); err != nil {
			return fmt.Errorf("--name: no default: %w", err)
		}
	}
	return nil
}

// run serves until ctx ends.
func run(ctx context.Context, c proxy.Config, otlp string, sample float64, out io.Writer) (err error) {
	if err := name(&c); err != nil {
		return err
	}
	if otlp != "" {
		tp, shutdown, err := tracing.SDK(ctx, "gfe", otlp, sample,
			attribute.String("service.instance.id", c.Name), attribute.String("gslb.pool", c.Pool), attribute.String("gslb.site", c.Site))
		if err != nil {
			return fmt.Errorf("--otlp: %w", err)
		}
		defer serve.Flush(c.Log, shutdown)
		c.Tracer = tp
	}
	p, err := proxy.New(c)
	if err != nil {
		return err
	}
	if err := p.Listen(); err != nil {
		return err
	}
	fmt.Fprintf(out, "gfe %s ready: pool %s on %v\n", c.Name, c.Pool, p.Addrs())
	err = p.Run(ctx)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}
