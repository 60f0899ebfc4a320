package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/attribute"

	"github.com/meridian-gslb/meridian/cmd/gfe/proxy"
	"github.com/meridian-gslb/meridian/cmd/gfe/serve"
	"github.com/meridian-gslb/meridian/tracing"
)

// Main runs one service as a process until ctx ends and returns its exit code: 2 for words
// that it does not understand. args are those after "app": the service, then its flags.
func Main(ctx context.Context, args []string, out, errs io.Writer) int {
	cmd := Command(out, errs)
	if c, _, err := cmd.Find(args); err != nil || c == cmd && !slices.Contains(args, "--help") {
		if err != nil {
			fmt.Fprintln(errs, "app:", err)
		}
		fmt.Fprintln(errs, "usage: gslbd app frontend|backend|database [flags]; --help of each says more")
		return 2
	}
	cmd.SetArgs(args)
	cmd.SilenceErrors = true
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(errs, "app:", err)
		return 1
	}
	return 0
}

// Command returns the command line of the services. They print their ready line to out, log
// to logs and run until the context ends.
func Command(out, logs io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use:          "app",
		Short:        "Run a service of the demo's application",
		SilenceUsage: true,
	}
	cmd.SetOut(out)
	cmd.SetErr(logs)
	cmd.AddCommand(frontendCommand(out, logs), backendCommand(out, logs), databaseCommand(out, logs))
	return cmd
}

// service is what the three have in common.
type service interface {
	Listen() error
	Addrs() []netip.AddrPort
	Run(ctx context.Context) error
}

// process are the flags that every service has.
type process struct {
	Config
	kind   string
	otlp   string
	sample float64
	out    io.Writer
}

// command makes the command of a service that build makes.
func command(kind, short string, out, logs io.Writer, build func(*process) (service, error)) (*cobra.Command, *process) {
	p := &process{kind: kind, out: out}
	cmd := &cobra.Command{
		Use:   kind,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p.Log = slog.New(slog.NewTextHandler(logs, nil))
			return p.run(cmd.Context(), build)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&p.Listen, "listen", nil, "`ADDRESS` to serve: host:port; may be repeated")
	f.StringVar(&p.Name, "name", "", "the `NAME` of this instance (default that of the host)")
	f.StringVar(&p.Site, "site", "", "the `SITE` of this instance")
	f.StringVar(&p.otlp, "otlp", "", "`URL` of an OTLP/HTTP collector for spans")
	f.Float64Var(&p.sample, "sample", 1, "share of requests traced whose caller did not decide, 0..1")
	f.DurationVar(&p.Lame, "lame", 0, "how long to serve on after SIGTERM with the health check failing")
	f.DurationVar(&p.Grace, "grace", 10*time.Second, "how long requests under way may take after that")
	cobra.CheckErr(cmd.MarkFlagRequired("listen"))
	return cmd, p
}

// run serves until ctx ends.
func (p *process) run(ctx context.Context, build func(*process) (service, error)) (err error) {
	if p.Name == "" {
		if p.Name, err = os.Hostname(); err != nil {
			return fmt.Errorf("--name: no default: %w", err)
		}
	}
	if p.otlp != "" {
		tp, shutdown, err := tracing.SDK(ctx, p.kind, p.otlp, p.sample,
			attribute.String("service.instance.id", p.Name), attribute.String("gslb.site", p.Site))
		if err != nil {
			return fmt.Errorf("--otlp: %w", err)
		}
		defer serve.Flush(p.Log, shutdown)
		p.Tracer = tp
	}
	s, err := build(p)
	if err != nil {
		return err
	}
	if err := s.Listen(); err != nil {
		return err
	}
	fmt.Fprintf(p.out, "%s %s ready on %v\n", p.kind, p.Name, s.Addrs())
	return s.Run(ctx)
}

func frontendCommand(out, logs io.Writer) *cobra.Command {
	var backends []string
	var admin, token, pool string
	cmd, _ := command("frontend", "Render a page for each visit", out, logs, func(p *process) (service, error) {
		var source proxy.Source
		var err error
		switch {
		case (admin == "") == (len(backends) == 0):
			return nil, errors.New("expected either --backend, or --admin with --pool")
		case admin == "":
			pool = "frontend"
			for i, b := range backends {
				backends[i] = strings.TrimSuffix(strings.TrimPrefix(b, "http://"), "/")
			}
			source, err = proxy.Static("backend", backends...)
		case pool == "":
			return nil, errors.New("--admin needs --pool: the pool that this frontend belongs to")
		default:
			if token == "" {
				token = os.Getenv("MERIDIAN_TOKEN")
			}
			source, err = proxy.NewHTTP(admin, token)
		}
		if err != nil {
			return nil, err
		}
		return NewFrontend(p.Config, pool, source)
	})
	cmd.Example = `  gslbd app frontend --listen 127.0.3.11:8080 --backend 127.0.4.11:8080
  gslbd app frontend --listen 127.0.3.11:8080 --pool fe-eu --admin http://127.0.0.1:8053`
	cmd.Flags().StringArrayVar(&backends, "backend", nil, "`ADDRESS` of a backend: [http://]host:port; may be repeated")
	cmd.Flags().StringVar(&admin, "admin", "", "`URL` of the admin API of a node that assigns the backends")
	cmd.Flags().StringVar(&token, "admin-token", "", "bearer `TOKEN` for it (default $MERIDIAN_TOKEN)")
	cmd.Flags().StringVar(&pool, "pool", "", "with --admin: the `POOL` that this frontend belongs to")
	return cmd
}

func backendCommand(out, logs io.Writer) *cobra.Command {
	var database string
	cmd, _ := command("backend", "Keep the count of visits in a database", out, logs, func(p *process) (service, error) {
		return NewBackend(p.Config, database)
	})
	cmd.Example = "  gslbd app backend --listen 127.0.4.11:8080 --database http://127.0.5.11:8080"
	cmd.Flags().StringVar(&database, "database", "", "`URL` of the database")
	cobra.CheckErr(cmd.MarkFlagRequired("database"))
	return cmd
}

func databaseCommand(out, logs io.Writer) *cobra.Command {
	var path string
	cmd, _ := command("database", "Keep counters in a file", out, logs, func(p *process) (service, error) {
		return NewDatabase(p.Config, path)
	})
	cmd.Example = "  gslbd app database --listen 127.0.5.11:8080 --file /var/lib/meridian/app.db"
	cmd.Flags().StringVar(&path, "file", "", "the `FILE` to keep counters in; made if it is not there")
	cobra.CheckErr(cmd.MarkFlagRequired("file"))
	return cmd
}
