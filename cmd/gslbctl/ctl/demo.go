package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meridian-gslb/meridian/admin/api"
)

// demoCommand stops and starts parts of the demo.
func (a *app) demoCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "demo",
		Short: "Stop and start parts of a running demo, or overload a site of it",
	}
	for _, op := range []struct{ name, of, past, short, example string }{
		{"stop", "NAME", "stopped", "Stop a part of the demo, such as a pool", "gfe-eu"},
		{"start", "NAME", "started", "Start a part of the demo again", "gfe-eu"},
		{"overload", "SITE", "overloaded", "Ask a site of the demo for twice what its frontend takes, for a while", "eu-west"},
	} {
		c.AddCommand(&cobra.Command{
			Use:               op.name + " " + op.of,
			Short:             op.short,
			Example:           "  gslbctl demo " + op.name + " " + op.example,
			Args:              args(op.of),
			ValidArgsFunction: a.complete(completePools),
			RunE: func(c *cobra.Command, args []string) error {
				raw, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (json.RawMessage, error) {
					return c.Demo(ctx, op.name, args[0])
				})
				if e, ok := err.(*api.Error); ok && e.Status == http.StatusNotFound && strings.HasPrefix(e.Problem.Error, "no path") {
					return failure(errors.New("this node is no demo"), "start one with gslbd demo")
				}
				if err != nil {
					return err
				}
				if len(raw) == 0 {
					raw, _ = json.Marshal(map[string]string{"message": args[0] + " " + op.past})
				}
				return a.show(raw, func() {
					var v struct {
						Message string `json:"message"`
					}
					if json.Unmarshal(raw, &v) != nil || v.Message == "" {
						v.Message = args[0] + " " + op.past
					}
					fmt.Fprintln(a.out, clean(v.Message))
				})
			},
		})
	}
	return c
}
