// Command gfe is a small frontend proxy: the edge of a pool where Envoy is not installed. It
// asks a node of the GSLB where to send requests, and tells it the load.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/attribute"

	"github.com/meridian-gslb/meridian/cmd/gfe/proxy"
	"github.com/meridian-gslb/meridian/cmd/gfe/serve"
	"github.com/meridian-gslb/meridian/tracing"
)

func main() {
	ctx, stop := serve.Signals(context.Background())
	defer stop()
	if err := command(os.Stdout, os.Stderr).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "gfe:", err)
		os.Exit(1)
	}
}

// command returns the command line. It prints the ready line to out and logs to logs.
func command(out, logs io.Writer) *cobra.Command {
	var c proxy.Config
	var admin, token, otlp string
	var sample float64
	cmd := &cobra.Command{
		Use:   "gfe --pool NAME --admin URL --listen ADDRESS",
		Short: "Proxy users' requests to where the GSLB says",
		Example: `  gfe --pool gfe-eu --admin http://127.0.0.1:8053 --listen 127.0.2.11:8080
  gfe --pool gfe-eu --admin http://127.0.0.1:8053 --listen http://:80 --listen https://:443 --tls-cert cert.pem --tls-key key.pem`,
		Args:          cobra.NoArgs,
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
			return run(cmd.Context(), c, otlp, sample, out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Pool, "pool", "", "the `NAME` of the pool that this proxy belongs to")
	f.StringVar(&c.Name, "name", "", "the `NAME` of this proxy, unique in its pool (default that of the host)")
	f.StringVar(&c.Site, "site", "", "the `SITE` of this proxy, for the header x-gslb-site")
	f.StringVar(&admin, "admin", "http://127.0.0.1:8053", "`URL` of the admin API of a node")
	f.StringVar(&token, "admin-token", "", "bearer `TOKEN` for it (default $MERIDIAN_TOKEN)")
	f.StringArrayVar(&c.Listen, "listen", nil, "`ADDRESS` to serve: [http://|https://]host:port; may be repeated")
	f.StringVar(&c.Cert, "tls-cert", "", "PEM `FILE` with the certificate; listeners without a scheme then speak TLS")
	f.StringVar(&c.Key, "tls-key", "", "PEM `FILE` with its key")
	f.StringVar(&otlp, "otlp", "", "`URL` of an OTLP/HTTP collector for spans")
	f.Float64Var(&sample, "sample", 1, "share of requests traced whose caller did not decide, 0..1")
	f.BoolVar(&c.H2C, "upstream-h2c", false, "speak HTTP/2 in the clear to upstreams")
	f.DurationVar(&c.Connect, "connect-timeout", 0, "to reach an upstream (default 2s)")
	f.DurationVar(&c.Header, "header-timeout", 0, "for an upstream to start its answer (default 15s)")
	f.DurationVar(&c.Eject, "eject", 0, "how long an upstream that refused is avoided (default 5s)")
	f.DurationVar(&c.Lame, "lame", 0, "how long to serve on after SIGTERM with the health check failing")
	f.DurationVar(&c.Grace, "grace", 10*time.Second, "how long requests under way may take after that")
	cobra.CheckErr(cmd.MarkFlagRequired("pool"))
	cobra.CheckErr(cmd.MarkFlagRequired("listen"))
	return cmd
}

// run serves until ctx ends.
func run(ctx context.Context, c proxy.Config, otlp string, sample float64, out io.Writer) (err error) {
	if c.Name == "" {
		if c.Name, err = os.Hostname(); err != nil {
			return fmt.Errorf("--name: no default: %w", err)
		}
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
