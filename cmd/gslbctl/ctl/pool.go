package ctl

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// poolCommand holds what is done to pools.
func (a *app) poolCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "pool",
		Aliases: []string{"pools"},
		Short:   "List, drain, undrain and weigh pools",
	}
	c.AddCommand(a.poolListCommand(), a.poolDrainCommand(), a.poolUndrainCommand(), a.poolWeightCommand())
	return c
}

func (a *app) poolListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the pools with their health, weights and drains",
		Args:    args(),
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Status, error) { return c.Status(ctx) })
			if err != nil {
				return err
			}
			objects, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Objects, error) { return c.Objects(ctx) })
			if err != nil {
				return err
			}
			return a.show(st.Pools, func() {
				if len(st.Pools) == 0 {
					fmt.Fprintln(a.out, "there is no pool; add one with gslbctl apply -f FILE")
					return
				}
				a.printPools(st, weights(objects.Objects))
			})
		},
	}
}

// listedWeights is how many services a list of weights names: more is a line too long to read.
const listedWeights = 3

// weights says for each pool its weight in the services that name it: the bare figure where
// they agree, else the first few.
func weights(o *config.Objects) map[string]string {
	out := map[string]string{}
	if o == nil {
		return out
	}
	for pool := range o.Pools {
		var each []string
		same := true
		first := ""
		for _, name := range o.Names("services") {
			ref, ok := o.Services[name].Pools[pool]
			if !ok {
				continue
			}
			w := strconv.Itoa(ref.EffectiveWeight())
			if ref.Standby {
				w += " standby"
			}
			if first == "" {
				first = w
			}
			same = same && w == first
			each = append(each, name+" "+w)
		}
		switch {
		case same:
			out[pool] = first
		case len(each) <= listedWeights:
			out[pool] = strings.Join(each, ", ")
		default:
			out[pool] = strings.Join(each[:listedWeights-1], ", ") + fmt.Sprintf(", … %d more", len(each)-listedWeights+1)
		}
	}
	return out
}

// drainFlags are the flags of drain and undrain.
type drainFlags struct {
	author, reason, endpoint, until string
	duration                        time.Duration
	force                           bool
}

func (a *app) poolDrainCommand() *cobra.Command {
	var f drainFlags
	c := &cobra.Command{
		Use:   "drain POOL",
		Short: "Keep new answers away from a pool, or from one endpoint of it",
		Example: `  gslbctl pool drain gfe-eu --reason "kernel upgrade" --for 30m
  gslbctl pool drain gfe-eu --endpoint 192.0.2.11 --until 2026-01-02T15:00:00Z`,
		Args:              args("POOL"),
		ValidArgsFunction: a.complete(completePools),
		RunE: func(c *cobra.Command, args []string) error {
			req, done, err := f.send(c.Context(), a, args[0], (*api.Client).Drain)
			if err != nil {
				return err
			}
			d := &api.Drain{Author: req.Author, Reason: req.Reason, Until: req.Until}
			return a.show(done, func() {
				fmt.Fprintf(a.out, "%s is %s (revision %d)\n", config.StateName(args[0], req.Endpoint), clean(drainText("drained", d, a.now())), done.Revision)
				fmt.Fprintf(a.out, "new answers avoid it; those that resolvers hold run out with their TTL. To take it back: gslbctl pool undrain %s%s\n", args[0], endpointFlag(req.Endpoint))
			})
		},
	}
	f.register(c)
	c.Flags().StringVar(&f.reason, "reason", "", "why, for those who see it")
	c.Flags().DurationVar(&f.duration, "for", 0, "how long: 10m, 2h; left out, until it is taken back")
	c.Flags().StringVar(&f.until, "until", "", "until when: 15:04 (today or tomorrow, local time) or 2006-01-02T15:04:05Z")
	return c
}

func (a *app) poolUndrainCommand() *cobra.Command {
	var f drainFlags
	c := &cobra.Command{
		Use:               "undrain POOL",
		Short:             "Take a drain back",
		Args:              args("POOL"),
		ValidArgsFunction: a.complete(completePools),
		RunE: func(c *cobra.Command, args []string) error {
			req, done, err := f.send(c.Context(), a, args[0], (*api.Client).Undrain)
			if err != nil {
				return err
			}
			return a.show(done, func() {
				if len(done.Diff) == 0 {
					fmt.Fprintf(a.out, "%s was not drained\n", config.StateName(args[0], req.Endpoint))
					return
				}
				fmt.Fprintf(a.out, "%s takes new answers again (revision %d)\n", config.StateName(args[0], req.Endpoint), done.Revision)
			})
		},
	}
	f.register(c)
	return c
}

// send asks the node to change pool as the flags say, with Client.Drain or Client.Undrain.
func (f *drainFlags) send(ctx context.Context, a *app, pool string, change func(*api.Client, context.Context, string, api.DrainRequest) (*api.Applied, error)) (api.DrainRequest, *api.Applied, error) {
	req, err := f.request(a.now())
	if err != nil {
		return req, nil, err
	}
	done, err := ask(ctx, a, func(ctx context.Context, c *api.Client) (*api.Applied, error) {
		return change(c, ctx, pool, req)
	})
	return req, done, err
}

func (f *drainFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.author, "author", author(), "who")
	c.Flags().StringVar(&f.endpoint, "endpoint", "", "only this address of the pool")
	c.Flags().BoolVar(&f.force, "force", false, "even if a service is left without an endpoint")
}

// request reads the flags.
func (f *drainFlags) request(now time.Time) (api.DrainRequest, error) {
	req := api.DrainRequest{Author: f.author, Reason: f.reason, Force: f.force}
	var err error
	if f.endpoint != "" {
		if req.Endpoint, err = netip.ParseAddr(f.endpoint); err != nil {
			return req, usage("--endpoint %q: expected an address", f.endpoint)
		}
	}
	switch {
	case f.duration != 0 && f.until != "":
		return req, usage("--for and --until say the same twice")
	case f.duration < 0:
		return req, usage("--for %s: expected a time over 0", f.duration)
	case f.duration > 0:
		req.Until = now.Add(f.duration).UTC().Truncate(time.Second)
	case f.until != "":
		req.Until, err = parseUntil(f.until, now)
	}
	return req, err
}

// parseUntil reads a time to come: RFC 3339, or the next such time of day.
func parseUntil(text string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t.UTC(), nil
	}
	for _, layout := range []string{"15:04", "15:04:05"} {
		t, err := time.ParseInLocation(layout, text, now.Location())
		if err != nil {
			continue
		}
		y, m, d := now.Date()
		at := time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, now.Location())
		if !at.After(now) {
			at = time.Date(y, m, d+1, t.Hour(), t.Minute(), t.Second(), 0, now.Location())
		}
		return at.UTC(), nil
	}
	return time.Time{}, usage("--until %q: expected 15:04 or 2006-01-02T15:04:05Z", text)
}

func endpointFlag(e netip.Addr) string {
	if !e.IsValid() {
		return ""
	}
	return " --endpoint " + e.String()
}

func (a *app) poolWeightCommand() *cobra.Command {
	var req api.WeightRequest
	c := &cobra.Command{
		Use:               "weight POOL WEIGHT",
		Short:             "Set the weight of a pool in its services",
		Long:              "Set the weight of a pool, 0..65535, in every service that names it or in one. 0 is never.",
		Example:           "  gslbctl pool weight gfe-eu 50\n  gslbctl pool weight gfe-eu 0 --service www.example.com",
		Args:              args("POOL", "WEIGHT"),
		ValidArgsFunction: a.complete(completePools),
		RunE: func(c *cobra.Command, args []string) error {
			w, err := strconv.Atoi(args[1])
			if err != nil || w < 0 || w > 65535 {
				return usage("weight %q: expected 0..65535", args[1])
			}
			req.Weight = w
			done, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Applied, error) {
				return c.Weight(ctx, args[0], req)
			})
			if err != nil {
				return err
			}
			return a.show(done, func() {
				if len(done.Diff) == 0 {
					fmt.Fprintf(a.out, "%s has weight %d already\n", args[0], w)
					return
				}
				var names []string
				for _, d := range done.Diff {
					names = append(names, d.Name)
				}
				fmt.Fprintf(a.out, "%s has weight %d in %s (revision %d)\n", args[0], w, strings.Join(names, ", "), done.Revision)
			})
		},
	}
	c.Flags().StringVar(&req.Service, "service", "", "only in this service")
	c.Flags().StringVar(&req.Author, "author", author(), "who")
	c.Flags().BoolVar(&req.Force, "force", false, "even if a service is left without an endpoint")
	return c
}
