package ctl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// getCommand shows objects.
func (a *app) getCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "get KIND [NAME]",
		Short:   "Show the objects that the node serves",
		Long:    "Show the objects that the node serves: sites, zones, probes, pools, services, states, or all.\nWhat is shown can be given to apply again.",
		Example: "  gslbctl get pools\n  gslbctl get pool gfe-eu\n  gslbctl get all > backup.yaml",
		Args:    args("KIND", "[NAME]"),
		ValidArgsFunction: func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			names, directive := a.completeObjects(c, args, word)
			if len(args) == 0 {
				names = append([]string{"all"}, names...)
			}
			return names, directive
		},
		RunE: func(c *cobra.Command, args []string) error {
			kind, ok := kindOf(args[0])
			switch {
			case args[0] == "all" && len(args) == 1:
				return a.getAll(c.Context())
			case !ok:
				return noKind(args[0], " and all")
			}
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			raw, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (json.RawMessage, error) {
				return c.Object(ctx, kind, name)
			})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.show(raw, nil)
			}
			objects, err := decodeObjects(kind, name, raw)
			if err != nil {
				return err
			}
			return a.printObjects(objects)
		},
	}
}

// getAll shows every object.
func (a *app) getAll(ctx context.Context) error {
	o, err := ask(ctx, a, func(ctx context.Context, c *api.Client) (*api.Objects, error) { return c.Objects(ctx) })
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.show(o.Objects, nil)
	}
	return a.printObjects(o.Objects)
}

// printObjects writes objects as a configuration file holds them.
func (a *app) printObjects(o *config.Objects) error {
	if o.Len() == 0 {
		fmt.Fprintln(a.out, "# none")
		return nil
	}
	text, err := config.MarshalYAML(o)
	if err != nil {
		return err
	}
	_, err = a.out.Write(text)
	return err
}

// decodeObjects reads one object, or with an empty name the objects of a kind by name.
func decodeObjects(kind, name string, raw json.RawMessage) (*config.Objects, error) {
	each := map[string]json.RawMessage{}
	if name != "" {
		each[name] = raw
	} else if err := json.Unmarshal(raw, &each); err != nil {
		return nil, fmt.Errorf("%s: the answer is not what a Meridian node sends: %w", kind, err)
	}
	var o config.Objects
	for name, one := range each {
		if err := config.DecodeObject(kind, name, one, &o); err != nil {
			return nil, fmt.Errorf("the node holds an object that this gslbctl cannot read: %w", err)
		}
	}
	return &o, nil
}

// kindOf is the kind that a word names, in singular or plural.
func kindOf(word string) (kind string, ok bool) {
	for _, kind := range config.Kinds {
		if word == kind || word+"s" == kind {
			return kind, true
		}
	}
	return "", false
}

// applyFlags are the flags of apply and diff.
type applyFlags struct {
	file string
	api.ApplyOptions
}

func (f *applyFlags) register(c *cobra.Command) {
	c.Flags().StringVarP(&f.file, "file", "f", "", "objects in YAML or JSON; - is the standard input")
	c.Flags().BoolVar(&f.Prune, "prune", false, "also delete what the file does not hold (never states)")
	_ = c.MarkFlagFilename("file", "yaml", "yml", "json")
}

// objects reads the file of the flags, and returns what it holds, and how that is sent: with the
// zones' own files put in their places, for the node cannot read them.
func (a *app) objects(f *applyFlags) (o *config.Objects, data []byte, err error) {
	name := f.file
	switch name {
	case "":
		return nil, nil, usage("-f FILE is missing")
	case "-":
		name = "stdin"
		data, err = io.ReadAll(io.LimitReader(a.in, api.MaxApply+1))
	default:
		data, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, nil, err
	}
	o, err = config.ParseObjects(name, data)
	if err == nil {
		o, err = config.ResolveFiles(o)
	}
	if err != nil {
		return nil, nil, faulty(name, err)
	}
	data, err = config.MarshalYAML(o)
	if err == nil && len(data) > api.MaxApply {
		err = fmt.Errorf("%s: with its zones %d octets; a node takes up to %d at once", name, len(data), api.MaxApply)
	}
	return o, data, err
}

// located has err, the node's answer to objects, say the faults where they stand in the file that o
// was read from.
func located(o *config.Objects, err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok && o != nil {
		e.Faults = o.Relocated(api.Body, e.Faults)
	}
	return err
}

// faulty says the faults of a file as the node would say them.
func faulty(name string, err error) error {
	faults := config.Faults(err)
	if len(faults) == 0 {
		return err
	}
	e := &api.Error{}
	e.Problem.Error = fmt.Sprintf("%s has %s", name, count(len(faults), "fault"))
	e.Hint = "nothing was sent"
	for _, f := range faults {
		e.Faults = append(e.Faults, f.Error())
	}
	return e
}

// applyCommand writes objects.
func (a *app) applyCommand() *cobra.Command {
	f := applyFlags{}
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Write objects to the store, all or none",
		Long: `Write the objects of a file to the store in one transaction, all or none. The differences are
shown first, and what changes between looking and writing is a conflict that writes nothing. The
node section of a configuration file is left out; zone files are sent along.`,
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			o, data, err := a.objects(&f)
			if err != nil {
				return err
			}
			look := f.ApplyOptions
			look.DryRun = true
			seen, err := a.apply(c.Context(), data, look)
			if err != nil {
				return located(o, err)
			}
			if len(seen.Diff) == 0 {
				return a.show(seen, func() { a.printSummary(seen) })
			}
			if a.output == "table" {
				a.printDiff(seen.Diff)
				if p, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Plan, error) {
					return c.Plan(ctx, data, nil, f.Prune)
				}); err == nil && p.Samples > 0 { // what it does to the users is no reason not to write it
					a.printPlan(p)
				}
			}
			if f.DryRun {
				if err := a.show(seen, func() { a.printSummary(seen) }); err != nil || seen.Refused == "" {
					return err
				}
				return failure(errors.New(seen.Refused), "if that is meant, say so: --force")
			}
			f.At = seen.Revision
			done, err := a.apply(c.Context(), data, f.ApplyOptions)
			if err != nil {
				return located(o, err)
			}
			return a.show(done, func() { a.printSummary(done) })
		},
	}
	f.register(c)
	c.Flags().StringVar(&f.Author, "author", author(), "who, for the history")
	c.Flags().BoolVar(&f.DryRun, "dry-run", false, "only check and show the differences")
	c.Flags().BoolVar(&f.Force, "force", false, "even if a service is left without an endpoint")
	return c
}

// deleteCommand takes one object out of the store.
func (a *app) deleteCommand() *cobra.Command {
	var o api.ApplyOptions
	c := &cobra.Command{
		Use:   "delete KIND NAME",
		Short: "Delete an object of the store",
		Long: `Delete an object of the store: also one that is not served, since it is not valid, and a state
that forces a pool or an endpoint. What others refer to is refused.`,
		Example:           "  gslbctl delete state gfe-eu\n  gslbctl delete pool gfe-old",
		Args:              args("KIND", "NAME"),
		ValidArgsFunction: a.completeObjects,
		RunE: func(c *cobra.Command, args []string) error {
			kind, ok := kindOf(args[0])
			if !ok {
				return noKind(args[0], "")
			}
			done, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Applied, error) {
				return c.Delete(ctx, kind, args[1], o)
			})
			if err != nil {
				return err
			}
			return a.show(done, func() { a.printDiff(done.Diff); a.printSummary(done) })
		},
	}
	c.Flags().StringVar(&o.Author, "author", author(), "who, for the history")
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "only check and show the difference")
	c.Flags().BoolVar(&o.Force, "force", false, "even if a service is left without an endpoint")
	return c
}

// noKind is a fault of the command line; all names what is allowed beside the kinds.
func noKind(word, all string) error {
	return &exitError{code: ExitUsage, err: fmt.Errorf("no kind %q", word), hint: "there are: " + strings.Join(config.Kinds, ", ") + all}
}

// completeObjects offers kinds, and then the names of the objects of one.
func (a *app) completeObjects(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return config.Kinds, cobra.ShellCompDirectiveNoFileComp
	case 1:
		o, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Objects, error) { return c.Objects(ctx) })
		if kind, ok := kindOf(args[0]); err == nil && ok {
			return o.Objects.Names(kind), cobra.ShellCompDirectiveNoFileComp
		}
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// confirmCommand takes what the store holds.
func (a *app) confirmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "confirm",
		Short: "Take what a held store holds",
		Long:  "Take what the store holds although it went back in time, is another cluster or lost most\nobjects: the node held it back, and status says why.",
		Args:  args(),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (any, error) { return nil, c.Confirm(ctx) })
			if err != nil {
				return err
			}
			return a.show(map[string]bool{"confirmed": true}, func() { fmt.Fprintln(a.out, "confirmed; see gslbctl status") })
		},
	}
}

// diffCommand compares objects with those that the node serves.
func (a *app) diffCommand() *cobra.Command {
	f := applyFlags{ApplyOptions: api.ApplyOptions{DryRun: true}}
	c := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what apply would change",
		Long:  "Show what apply would change. The exit code is 0 when nothing differs, 1 when something does.",
		Args:  args(),
		RunE: func(c *cobra.Command, _ []string) error {
			o, data, err := a.objects(&f)
			if err != nil {
				return err
			}
			seen, err := a.apply(c.Context(), data, f.ApplyOptions)
			if err != nil {
				return located(o, err)
			}
			if err := a.show(seen.Diff, func() { a.printDiff(seen.Diff) }); err != nil {
				return err
			}
			if len(seen.Diff) > 0 {
				return &exitError{code: ExitError}
			}
			return nil
		},
	}
	f.register(c)
	return c
}

func (a *app) apply(ctx context.Context, data []byte, o api.ApplyOptions) (*api.Applied, error) {
	return ask(ctx, a, func(ctx context.Context, c *api.Client) (*api.Applied, error) { return c.Apply(ctx, data, o) })
}

// printSummary says what a change did.
func (a *app) printSummary(done *api.Applied) {
	n := map[string]int{}
	for _, d := range done.Diff {
		n[d.Op]++
	}
	what := fmt.Sprintf("%d added, %d changed, %d deleted", n[config.OpAdd], n[config.OpChange], n[config.OpDelete])
	switch {
	case len(done.Diff) == 0:
		fmt.Fprintf(a.out, "nothing differs from revision %d\n", done.Revision)
	case done.DryRun:
		fmt.Fprintf(a.out, "dry run against revision %d: %s; nothing was written\n", done.Revision, what)
	default:
		fmt.Fprintf(a.out, "revision %d: %s\n", done.Revision, what)
	}
}

// printDiff writes each changed object with its lines.
func (a *app) printDiff(diff []config.Change) {
	marks := map[string]cell{config.OpAdd: {"+", green}, config.OpChange: {"~", yellow}, config.OpDelete: {"-", red}}
	for _, d := range diff {
		m := marks[d.Op]
		fmt.Fprintln(a.out, a.style.paint(m.colour, cmp.Or(m.text, "?")+" "+clean(d.Kind+"/"+d.Name)))
		for _, l := range lineDiff(objectLines(d.Kind, d.Name, d.Before), objectLines(d.Kind, d.Name, d.After), 2) {
			colour := map[byte]string{'+': green, '-': red, '@': dim}[l[0]]
			if l[0] == '@' {
				l = "  …"
			}
			fmt.Fprintln(a.out, "    "+a.style.paint(colour, clean(l)))
		}
	}
}

// objectLines is an object in YAML, in the order of the model, by lines.
func objectLines(kind, name string, v any) []string {
	if v == nil {
		return nil
	}
	if b, err := json.Marshal(v); err == nil {
		var o config.Objects
		if config.DecodeObject(kind, name, b, &o) == nil {
			v, _ = o.Object(kind, name)
		}
	}
	text, err := yamlOf(v)
	if err != nil {
		return []string{err.Error()}
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// maxCells bounds the table of lineDiff; beyond it the changed middle is shown as a whole.
const maxCells = 4 << 20

// lineDiff returns the lines that turn a to b: each with "+ ", "- " or "  " before it, and
// "@" for a run of equal lines that is left out. context equal lines stay around a change.
func lineDiff(a, b []string, context int) []string {
	head := 0
	for head < min(len(a), len(b)) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < min(len(a), len(b))-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	var all []string
	for _, l := range a[:head] {
		all = append(all, "  "+l)
	}
	all = append(all, middle(a[head:len(a)-tail], b[head:len(b)-tail])...)
	for _, l := range a[len(a)-tail:] {
		all = append(all, "  "+l)
	}

	near := make([]bool, len(all)) // within context of a change
	for i, l := range all {
		if l[0] != ' ' {
			for j := max(0, i-context); j <= min(len(all)-1, i+context); j++ {
				near[j] = true
			}
		}
	}
	var out []string
	for i, l := range all {
		switch {
		case near[i]:
			out = append(out, l)
		case len(out) == 0 || out[len(out)-1] != "@":
			out = append(out, "@")
		}
	}
	return out
}

// middle is the shortest edit of a to b, by the longest common subsequence.
func middle(a, b []string) []string {
	var out []string
	if len(a)*len(b) > maxCells {
		for _, l := range a {
			out = append(out, "- "+l)
		}
		for _, l := range b {
			out = append(out, "+ "+l)
		}
		return out
	}
	// common[i][j] is the length of the longest common subsequence of a[i:] and b[j:].
	common := make([][]int32, len(a)+1)
	for i := range common {
		common[i] = make([]int32, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			out = append(out, "  "+a[i])
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			out = append(out, "- "+a[i])
			i++
		default:
			out = append(out, "+ "+b[j])
			j++
		}
	}
	return out
}
