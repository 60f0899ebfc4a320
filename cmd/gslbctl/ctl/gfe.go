package ctl

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/xds/bootstrap"
)

// gfeCommand holds what is done to proxies.
func (a *app) gfeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "gfe",
		Aliases: []string{"gfes", "proxy", "proxies"},
		Short:   "Bootstrap and list the proxies that ask the node's config server",
	}
	c.AddCommand(a.gfeBootstrapCommand(), a.gfeListCommand())
	return c
}

func (a *app) gfeBootstrapCommand() *cobra.Command {
	var p bootstrap.Proxy
	var grpc, secrets bool
	c := &cobra.Command{
		Use:   "bootstrap",
		Short: "Print the bootstrap of a new proxy",
		Long: `Print the bootstrap file of an Envoy that joins a pool: who it is, and whom to ask. All else it asks of the
config server. With --grpc, that of a gRPC client: its targets are xds:///upstream, or another upstream's name.`,
		Example: "  gslbctl gfe bootstrap --site eu-west > envoy.yaml && envoy -c envoy.yaml\n" +
			"  gslbctl gfe bootstrap --site eu-west --ca ca.pem --cert gfe.crt --key gfe.key --print-sds > sds.yaml\n" +
			"  gslbctl gfe bootstrap --site eu-west --ca ca.pem --cert gfe.crt --key gfe.key --sds sds.yaml > envoy.yaml\n" +
			"  gslbctl gfe bootstrap --pool fe-eu --grpc > grpc.json && GRPC_XDS_BOOTSTRAP=grpc.json ./frontend",
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			if p.Pool == "" && p.Site == "" {
				return usage("--site or --pool is missing: where is the proxy?")
			}
			got, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Objects, error) { return c.Objects(ctx) })
			if err != nil {
				return err
			}
			o := cmp.Or(got.Objects, &config.Objects{})
			if err := complete(&p, o); err != nil {
				return failure(err, "gslbctl get pools shows what there is")
			}
			if len(p.Servers) == 0 {
				st, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Proxies, error) { return c.Proxies(ctx) })
				if err != nil {
					return err
				}
				if st.Listen == "" {
					return failure(fmt.Errorf("the node has no config server"), "set node.xds.listen in its configuration, or --server-address to that of another")
				}
				p.Servers = []string{st.Listen}
			}
			text, err := "", error(nil)
			switch {
			case secrets:
				text, err = p.Secret()
			case grpc:
				text, err = p.GRPC()
			default:
				text, err = p.YAML()
			}
			if err != nil {
				return usage("%w", err)
			}
			fmt.Fprint(a.out, text)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&p.Site, "site", "", "where the proxy is: it joins the pool there that users reach")
	f.StringVar(&p.Pool, "pool", "", "the pool that it joins, where a site has more than one")
	f.StringVar(&p.ID, "id", "", "its name, unique in the pool (default the pool's name and the host's)")
	f.StringSliceVar(&p.Servers, "server-address", nil, "host:port of config servers, the best first (default that of the node asked)")
	f.StringVar(&p.Admin, "admin-address", "127.0.0.1:9901", "host:port of Envoy's own admin interface; empty: none")
	f.StringVar(&p.CA, "ca", "", "PEM file, on the proxy's host, with who signs the config servers' certificates; empty: no TLS")
	f.StringVar(&p.Cert, "cert", "", "PEM file, there, with the proxy's certificate: for the DNS name that is its pool's")
	f.StringVar(&p.Key, "key", "", "PEM file, there, with its key")
	f.StringVar(&p.Name, "server-name", "", "name that the config servers' certificates hold (default the host of the first)")
	f.StringVar(&p.SDS, "sds", "", "file, there, with what --print-sds prints: Envoy reads its certificate by it, and a renewed one without a restart")
	f.BoolVar(&secrets, "print-sds", false, "print that file, rather than the bootstrap")
	f.BoolVar(&grpc, "grpc", false, "the bootstrap of a gRPC client, as JSON")
	return c
}

// complete fills in what p leaves to the objects of the node.
func complete(p *bootstrap.Proxy, o *config.Objects) error {
	if p.Pool == "" {
		pool, err := bootstrap.EdgePool(o, p.Site)
		if err != nil {
			return err
		}
		p.Pool = pool
	}
	pool, ok := o.Pools[p.Pool]
	switch {
	case !ok:
		return fmt.Errorf("pool %q: no such pool; expected one of %s", p.Pool, strings.Join(o.Names("pools"), ", "))
	case p.Site != "" && pool.Site != p.Site:
		return fmt.Errorf("pool %s is at site %s; expected one at %s", p.Pool, pool.Site, p.Site)
	case len(pool.Upstreams()) == 0:
		return fmt.Errorf("pool %s has no upstream; expected one whose proxies send requests on", p.Pool)
	}
	p.Site = pool.Site
	p.Region = o.Sites[p.Site].EffectiveRegion(p.Site)
	if p.ID == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("the host's name: %w; expected --id", err)
		}
		p.ID = p.Pool + "-" + host
	}
	return nil
}

func (a *app) gfeListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the proxies that are connected, their revision and load, and what they refused",
		Args:    args(),
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := ask(c.Context(), a, func(ctx context.Context, c *api.Client) (*api.Proxies, error) { return c.Proxies(ctx) })
			if err != nil {
				return err
			}
			return a.show(st, func() { a.printProxies(st) })
		},
	}
}

func (a *app) printProxies(st *api.Proxies) {
	switch {
	case st.Listen == "":
		fmt.Fprintln(a.out, "the node has no config server; set node.xds.listen in its configuration")
		return
	case len(st.Proxies) == 0:
		fmt.Fprintf(a.out, "no proxy is connected to %s; gslbctl gfe bootstrap --site SITE makes the file for one\n", st.Listen)
	default:
		t := table{head: []string{"PROXY", "POOL", "SITE", "AGENT", ">REVISION", ">REQ/S", "STATE"}}
		for _, p := range st.Proxies {
			state, colour := "current", green
			switch {
			case p.Unknown:
				state, colour = "no such pool: it is told nothing", red
			case slices.ContainsFunc(p.Types, func(r api.ProxyResource) bool { return r.Rejected != nil }):
				state, colour = "refused", red
			case p.Behind:
				state, colour = "on its way", yellow
			}
			agent := strings.TrimSpace(p.Agent + " " + p.Version)
			t.add(cell{p.ID, bold}, cell{p.Pool, plain}, cell{p.Site, plain}, cell{agent, plain},
				cell{fmt.Sprint(p.Revision), plain}, cell{fmt.Sprintf("%.1f", p.Rate), plain}, cell{state, colour})
		}
		t.write(a.out, a.style)
		for _, p := range st.Proxies {
			for _, r := range p.Types {
				if r.Rejected != nil {
					fmt.Fprintf(a.out, "! %s refused %s at version %s and keeps the last good ones: %s\n", clean(p.ID), r.Type, clean(r.Rejected.Version), clean(r.Rejected.Reason))
				}
			}
		}
	}
	if len(st.Loads) > 0 {
		fmt.Fprintln(a.out)
		t := table{head: []string{"FROM", "UPSTREAM", "TO", "SITE", ">REQ/S", ">CAPACITY", ">ERR/S", ">DROP/S", ">OPEN", ">PROXIES", ">AGE"}}
		for _, l := range st.Loads {
			capacity := "-"
			if l.Capacity > 0 {
				capacity = fmt.Sprintf("%.0f", l.Capacity)
			}
			proxies := fmt.Sprint(l.Proxies)
			if l.Frozen > 0 {
				proxies += fmt.Sprintf(" (%d silent)", l.Frozen)
			}
			t.add(row(l.From, l.Upstream, l.To, l.Site, fmt.Sprintf("%.1f", l.Rate), capacity, fmt.Sprintf("%.1f", l.Errors),
				fmt.Sprintf("%.1f", l.Dropped), fmt.Sprintf("%.0f", l.InProgress), proxies, fmt.Sprintf("%.1fs", l.Age))...)
		}
		t.write(a.out, a.style)
	}
	for _, s := range st.Spills {
		fmt.Fprintln(a.out, "! "+clean(s.String()))
	}
	for _, f := range st.Faults {
		fmt.Fprintf(a.out, "! load reports of %s of %s: %s\n", clean(f.Proxy), clean(f.Pool), clean(f.What))
	}
}
