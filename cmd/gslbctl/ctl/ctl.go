// Package ctl is the command gslbctl as a function, so that tests and the demo can run it
// in process.
package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meridian-gslb/meridian/admin/api"
)

// The exit codes.
const (
	ExitOK          = 0
	ExitError       = 1 // refused, not found, or different (diff)
	ExitUsage       = 2 // the command line is wrong
	ExitUnreachable = 3 // no answer from the node
	ExitNotOK       = 4 // status: the node is degraded or not ready
)

// defaultServer is where a node listens unless its configuration says otherwise.
const defaultServer = "http://127.0.0.1:8053"

// requestTimeout bounds every request but the streams.
const requestTimeout = 15 * time.Second

// Run runs gslbctl with args, which do not hold the program's name, and returns its exit
// code. It reads the environment (MERIDIAN_SERVER, MERIDIAN_TOKEN, NO_COLOR, USER).
func Run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return RunContext(context.Background(), args, stdin, stdout, stderr)
}

// RunContext is Run until ctx ends, which ends what follows a stream (top) without a fault.
func RunContext(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return newApp(stdin, stdout, stderr).run(ctx, args)
}

// app is one run of the command.
type app struct {
	in    io.Reader
	out   *sink
	err   io.Writer
	style style
	now   func() time.Time

	// Set by the global flags.
	server string
	output string // table, json or yaml
}

func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	return &app{in: stdin, out: &sink{w: stdout}, err: stderr, style: styleFor(stdout), now: time.Now}
}

// run runs the command once and returns its exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = a.out.err
	}
	return a.exit(err)
}

// sink remembers the first fault of writing, so that no command has to look.
type sink struct {
	w   io.Writer
	err error
}

// Write writes p, or nothing once a write has failed.
func (s *sink) Write(p []byte) (int, error) {
	if s.err == nil {
		_, s.err = s.w.Write(p)
	}
	return len(p), s.err
}

// exitError ends the command with a code; a nil err was said already.
type exitError struct {
	code int
	err  error
	hint string
}

// Error returns what is wrong.
func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

// usage is a fault of the command line.
func usage(format string, args ...any) error {
	return &exitError{code: ExitUsage, err: fmt.Errorf(format, args...), hint: "see gslbctl --help"}
}

// failure is an error with what to do next.
func failure(err error, hint string) error {
	return &exitError{code: ExitError, err: err, hint: hint}
}

// exit says err, and what to do next, and returns the code for it.
func (a *app) exit(err error) int {
	if err == nil {
		return ExitOK
	}
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	code, hint, faults := ExitError, "", []string(nil)
	if e, ok := errors.AsType[*exitError](err); ok {
		if e.err == nil {
			return e.code
		}
		code, hint = e.code, e.hint
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		hint, faults = cmp.Or(hint, e.Hint), e.Faults
	}
	if _, ok := errors.AsType[*api.Unreachable](err); ok {
		code, hint = ExitUnreachable, "is gslbd running? set --server or MERIDIAN_SERVER"
	}
	text := "gslbctl: " + err.Error()
	if hint != "" && len(faults) == 0 {
		text += "; " + hint
	}
	fmt.Fprintln(a.err, clean(text))
	for _, f := range faults {
		fmt.Fprintln(a.err, "  "+clean(f))
	}
	if hint != "" && len(faults) > 0 {
		fmt.Fprintln(a.err, clean(hint))
	}
	return code
}

// root builds the tree of commands.
func (a *app) root() *cobra.Command {
	root := group(&cobra.Command{
		Use:   "gslbctl",
		Short: "Ask and steer a Meridian node",
		Long: `gslbctl asks a running Meridian node why it answers what it answers, and changes what it serves.

Environment: MERIDIAN_SERVER (default ` + defaultServer + `), MERIDIAN_TOKEN (for changes,
where the node has an adminToken), NO_COLOR.
Exit codes: 0 ok, 1 error or different, 2 usage, 3 node not reachable, 4 node degraded or not ready.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains(outputs, a.output) {
				return usage("--output %q: expected %s", a.output, strings.Join(outputs, ", "))
			}
			return nil
		},
	})
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%w", err) })
	f := root.PersistentFlags()
	f.StringVarP(&a.server, "server", "s", "", "admin address of the node (default $MERIDIAN_SERVER, else "+defaultServer+")")
	f.StringVarP(&a.output, "output", "o", "table", "output: table, json or yaml")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(
		a.statusCommand(),
		a.explainCommand(),
		a.planCommand(),
		a.poolCommand(),
		a.getCommand(),
		a.applyCommand(),
		a.diffCommand(),
		a.deleteCommand(),
		a.confirmCommand(),
		a.healthCommand(),
		a.traceCommand(),
		a.topCommand(),
		a.gfeCommand(),
		a.demoCommand(),
		a.versionCommand(),
	)
	for _, c := range root.Commands() {
		if c.HasSubCommands() {
			group(c)
		}
	}
	return root
}

// outputs are the values of --output.
var outputs = []string{"table", "json", "yaml"}

// group makes a command of commands: alone it shows its help, and a word that is no command
// is a fault with the closest one.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		err := fmt.Errorf("no command %q in %s", args[0], c.CommandPath())
		hint := "see " + c.CommandPath() + " --help"
		if closest := c.SuggestionsFor(args[0]); len(closest) > 0 {
			hint = fmt.Sprintf("did you mean %q?", closest[0])
		}
		return &exitError{code: ExitUsage, err: err, hint: hint}
	}
	c.SuggestionsMinimumDistance = 2
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return c
}

// args wants the named arguments; those in brackets may be left out.
func args(names ...string) cobra.PositionalArgs {
	least := 0
	for _, n := range names {
		if !strings.HasPrefix(n, "[") {
			least++
		}
	}
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return &exitError{code: ExitUsage, err: fmt.Errorf("%s: %s is missing", c.CommandPath(), names[len(args)]), hint: "usage: " + c.UseLine()}
		case len(args) > len(names):
			return &exitError{code: ExitUsage, err: fmt.Errorf("%s: %q is one argument too many", c.CommandPath(), args[len(names)]), hint: "usage: " + c.UseLine()}
		}
		return nil
	}
}

// client returns the client of the node.
func (a *app) client() (*api.Client, error) {
	c, err := api.NewClient(cmp.Or(a.server, os.Getenv("MERIDIAN_SERVER"), defaultServer), os.Getenv("MERIDIAN_TOKEN"))
	if err != nil {
		return nil, &exitError{code: ExitUsage, err: err, hint: "set --server or MERIDIAN_SERVER"}
	}
	return c, nil
}

// ask does one request to the node within requestTimeout.
func ask[T any](ctx context.Context, a *app, do func(ctx context.Context, c *api.Client) (T, error)) (T, error) {
	var zero T
	c, err := a.client()
	if err != nil {
		return zero, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return do(ctx, c)
}

// author is who works here, for the history: $USER, or who the system says.
func author() string {
	if name := os.Getenv("USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}

// complete offers the names that list gets from the node for the first argument.
func (a *app) complete(list func(*api.Status) []string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		client, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ctx, cancel := context.WithTimeout(c.Context(), time.Second) // somebody holds the tab key
		defer cancel()
		st, err := client.Status(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return list(st), cobra.ShellCompDirectiveNoFileComp
	}
}

func completePools(st *api.Status) (names []string) {
	for _, p := range st.Pools {
		names = append(names, p.Name)
	}
	return names
}

func completeServices(st *api.Status) (names []string) {
	for _, s := range st.Services {
		names = append(names, s.Name)
	}
	return names
}

// versionCommand says which gslbctl this is.
func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which gslbctl this is",
		Args:  args(),
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": api.Version()}
			return a.show(v, func() { fmt.Fprintln(a.out, "gslbctl "+v["version"]) })
		},
	}
}
