package ctl

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/tracing"
)

// Times of a trace that the command makes itself.
const (
	probeTimeout = 5 * time.Second        // for the query, and for the request
	spanWait     = 4 * time.Second        // for spans to arrive: exporters send in batches
	spanPoll     = 150 * time.Millisecond // between two looks
	spanQuiet    = 900 * time.Millisecond // a trace that has not grown for so long is whole
	alsoWait     = time.Second            // for a further node to answer: one that hangs holds up what the others know
)

// traceFlags are the flags of trace.
type traceFlags struct {
	client, qtype, path, server string
	port                        uint16
	tls, noRequest, all         bool
	limit                       int
	also                        []string
}

// traceCommand shows traces, and makes one.
func (a *app) traceCommand() *cobra.Command {
	var f traceFlags
	c := &cobra.Command{
		Use:   "trace [ID | NAME --client ADDR[/LEN]]",
		Short: "List traces, draw one, or make one",
		Long: `Without an argument: list the last traces of the node. With an id: draw that trace.
With a name: ask the node's DNS for it as that client (EDNS client subnet), send an HTTP request
through the answer, and draw both, from the query to what is behind the proxies.`,
		Example: "  gslbctl trace\n  gslbctl trace 4bf92f3577b34da6a3ce929d0e0e4736\n  gslbctl trace www.example.com --client 198.51.100.7",
		Args:    args("[ID | NAME]"),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case len(f.also) > 0 && (len(args) == 0 || f.noRequest):
				return usage("--also: expected a trace id, or a name without --no-request: further nodes are asked for spans of a request")
			case len(args) == 0:
				return a.listTraces(c.Context(), &f)
			case isTraceID(args[0]):
				return a.drawTrace(c.Context(), args[0], &f)
			case f.client == "":
				return &exitError{code: ExitUsage, err: fmt.Errorf("trace %s: --client is missing", args[0]), hint: "give the address of a user: --client 198.51.100.7"}
			}
			return a.makeTrace(c.Context(), args[0], &f)
		},
		ValidArgsFunction: a.complete(completeServices),
	}
	fl := c.Flags()
	fl.StringVarP(&f.client, "client", "c", "", "address of a client, or prefix; without an argument, only its traces")
	fl.StringVarP(&f.qtype, "type", "t", "", "A or AAAA (default: of the client's family)")
	fl.StringVar(&f.server, "dns", "", "address of the node's DNS (default: from its status)")
	fl.StringVar(&f.path, "path", "/", "path of the request")
	fl.Uint16Var(&f.port, "port", 0, "port of the request (default: the pool's, else 80 or 443)")
	fl.BoolVar(&f.tls, "tls", false, "request with TLS, without checking the certificate")
	fl.BoolVar(&f.noRequest, "no-request", false, "only the DNS query")
	fl.BoolVar(&f.all, "all", false, "draw every attribute")
	fl.StringSliceVar(&f.also, "also", nil, "admin address of further nodes that remember spans of it, as those of another region do; may be repeated")
	fl.IntVarP(&f.limit, "limit", "n", 20, "how many traces to list")
	return c
}

// isTraceID tells whether text is a trace id rather than a name.
func isTraceID(text string) bool {
	_, err := tracing.ParseTraceID(text)
	return err == nil
}

// listTraces shows the last traces, a line each.
func (a *app) listTraces(ctx context.Context, f *traceFlags) error {
	t, err := ask(ctx, a, func(ctx context.Context, c *api.Client) (*api.Traces, error) {
		return c.Traces(ctx, api.TraceFilter{Client: f.client, Limit: f.limit})
	})
	if err != nil {
		return err
	}
	return a.show(t.Traces, func() {
		if len(t.Traces) == 0 {
			fmt.Fprintln(a.out, "the node remembers no such trace yet; make one with gslbctl trace NAME --client ADDR")
			return
		}
		tab := table{head: []string{"TIME", "TRACE", "WHAT", "CLIENT", "POOL", "REASON", ">SPANS", ">TOOK"}}
		for _, s := range t.Traces {
			colour := plain
			if s.Error {
				colour = red
			}
			tab.add(cell{text: s.Start.Local().Format("15:04:05.000")}, cell{s.TraceID.String(), cyan}, cell{s.Title, colour}, cell{text: s.Client},
				cell{text: s.Pool}, cell{s.Reason, reasonColourOrNone(s.Reason)}, cell{text: strconv.Itoa(s.Spans)}, cell{text: short(s.Duration)})
		}
		tab.write(a.out, a.style)
	})
}

func reasonColourOrNone(reason string) string {
	if reason == "" {
		return plain
	}
	return reasonColour(reason)
}

// drawTrace draws one trace.
func (a *app) drawTrace(ctx context.Context, id string, f *traceFlags) error {
	also, err := f.others()
	if err != nil {
		return err
	}
	t, err := ask(ctx, a, func(ctx context.Context, c *api.Client) (gathered, error) { return traceOf(ctx, c, also, id) })
	if err != nil {
		if len(t.Missing) > 0 {
			a.sayMissing(t.Missing[1:]) // the first is err
		}
		return err
	}
	return a.show(t, func() {
		a.draw(slices.Concat(t.Spans, t.Linked), f)
		a.sayMissing(t.Missing)
		a.sayPage(t.ID.String())
	})
}

// others are the clients of the further nodes.
func (f *traceFlags) others() ([]*api.Client, error) {
	var out []*api.Client
	for _, server := range f.also {
		c, err := api.NewClient(server, os.Getenv("MERIDIAN_TOKEN"))
		if err != nil {
			return nil, &exitError{code: ExitUsage, err: fmt.Errorf("--also: %w", err)}
		}
		out = append(out, c)
	}
	return out, nil
}

// gathered is a trace as several nodes remember it, and who had nothing to add.
type gathered struct {
	*api.Trace
	Missing []missing `json:"missing,omitempty"` // what they know is not in the trace

	far []tracing.Span // that the first node does not remember
}

// missing is a node that was asked for a trace in vain, and why.
type missing struct {
	Server string `json:"server"`
	Error  string `json:"error"`
}

// sayMissing says whose spans are not drawn, beside the tree and not in it.
func (a *app) sayMissing(nodes []missing) {
	for _, m := range nodes {
		fmt.Fprintln(a.err, clean(fmt.Sprintf("nothing from %s: %s", m.Server, m.Error)))
	}
}

// traceOf asks a node for a trace, and others for their spans of it: each service hands its
// spans to the node of its own region. All are asked at once, and the others have alsoWait to answer,
// so that one that hangs takes no time from the rest. It fails, for the reason of the first, where no
// node knows the trace.
func traceOf(ctx context.Context, c *api.Client, also []*api.Client, id string) (gathered, error) {
	nodes := append([]*api.Client{c}, also...)
	traces, errs := make([]*api.Trace, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, c := range nodes {
		wg.Go(func() {
			ctx := ctx
			if i > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, alsoWait)
				defer cancel()
			}
			traces[i], errs[i] = c.Trace(ctx, id)
		})
	}
	wg.Wait()
	var g gathered
	for i, t := range traces {
		switch {
		case errs[i] != nil:
			g.Missing = append(g.Missing, missing{nodes[i].Server, errs[i].Error()})
		case g.Trace == nil:
			if g.Trace = t; i > 0 {
				g.far = t.Spans
			}
		default:
			before := len(g.Spans)
			g.Spans = join(g.Spans, t.Spans)
			g.far = append(g.far, g.Spans[before:]...)
			g.Linked = join(g.Linked, t.Linked)
			g.Tree, g.Rows = nil, nil // they were drawn without these
		}
	}
	if g.Trace == nil {
		return g, errs[0]
	}
	return g, nil
}

// join adds those of more to spans that are not among them.
func join(spans, more []tracing.Span) []tracing.Span {
	for _, s := range more {
		if !slices.ContainsFunc(spans, func(have tracing.Span) bool { return have.TraceID == s.TraceID && have.SpanID == s.SpanID }) {
			spans = append(spans, s)
		}
	}
	return spans
}

func (a *app) draw(spans []tracing.Span, f *traceFlags) {
	width := a.style.width
	if width == 0 {
		width = 100
	}
	for _, line := range tracing.Tree(spans, tracing.TreeOptions{Width: width, Color: a.style.colour, All: f.all}) {
		fmt.Fprintln(a.out, line)
	}
}

// madeTrace is what the command did and what came of it.
type madeTrace struct {
	Question string         `json:"question"`
	Client   string         `json:"client"`
	Server   string         `json:"server"`
	Rcode    string         `json:"rcode"`
	Answers  []netip.Addr   `json:"answers"`
	TTL      uint32         `json:"ttl"`
	Scope    *uint8         `json:"scope,omitempty"`  // of the answer's ECS option
	URL      string         `json:"url,omitempty"`    // of the request
	Status   string         `json:"status,omitempty"` // of its answer, or why there was none
	Traces   []string       `json:"traces"`           // the query's, then the request's
	Spans    []tracing.Span `json:"spans"`
	Missing  []missing      `json:"missing,omitempty"` // nodes that had no span of the request

	client netip.Prefix
	also   []*api.Client
	far    []tracing.Span  // of the request, that the node itself does not remember
	told   tracing.TraceID // of the query, where the node said it; zero: to be searched for
}

// makeTrace asks DNS, sends a request through the answer, and draws what the node saw.
func (a *app) makeTrace(ctx context.Context, name string, f *traceFlags) error {
	m := &madeTrace{Question: strings.TrimSuffix(name, "."), Answers: []netip.Addr{}, Traces: []string{}, Spans: []tracing.Span{}}
	var err error
	if m.client, err = clientPrefix(f.client); err != nil {
		return err
	}
	if m.also, err = f.others(); err != nil {
		return err
	}
	m.Client = m.client.String()
	st, err := ask(ctx, a, func(ctx context.Context, c *api.Client) (*api.Status, error) { return c.Status(ctx) })
	if err != nil {
		return err
	}
	if m.Server, err = a.dnsServer(f.server, st); err != nil {
		return err
	}
	if err := m.query(ctx, f.qtype); err != nil {
		return err
	}
	if a.output == "table" {
		a.printAnswer(m)
	}

	query := a.await(ctx, 0, func(ctx context.Context, c *api.Client) []tracing.Span {
		if !m.told.IsZero() {
			trace, err := c.Trace(ctx, m.told.String())
			if err != nil {
				return nil
			}
			return trace.Spans
		}
		t, err := c.Traces(ctx, api.TraceFilter{Name: m.Question, Client: m.Client, Since: st.Time.Add(-time.Second), Limit: 1})
		if err != nil || len(t.Traces) == 0 {
			return nil
		}
		trace, err := c.Trace(ctx, t.Traces[0].TraceID.String())
		if err != nil {
			return nil
		}
		return trace.Spans
	})
	m.keep(query)
	if len(query) == 0 && a.output == "table" {
		fmt.Fprintln(a.out, untraced)
	}
	if !f.noRequest && len(m.Answers) > 0 {
		if err := a.request(ctx, m, f, query); err != nil {
			return err
		}
	}
	return a.show(m, func() {
		if len(m.Spans) == 0 {
			return
		}
		fmt.Fprintln(a.out)
		a.draw(m.Spans, f)
		if len(m.also) > 0 { // of one node alone it was said above
			a.sayMissing(m.Missing)
		}
		a.sayPage(m.Traces[len(m.Traces)-1])
	})
}

// untraced is said of a query of which the node has no span.
const untraced = "the node remembers no span of the query: it traces on demand only for those in its node.tracing.allow, and of others a share; gslbctl explain says why the answer is what it is"

// sayPage says where a browser shows the trace, to a person.
func (a *app) sayPage(id string) {
	if c, err := a.client(); err == nil && a.style.colour {
		fmt.Fprintf(a.out, "\nin a browser: %s/#trace=%s\n", strings.TrimSuffix(c.Server, "/"), id)
	}
}

func (m *madeTrace) keep(spans []tracing.Span) {
	if len(spans) > 0 {
		m.Traces = append(m.Traces, spans[0].TraceID.String())
		m.Spans = append(m.Spans, spans...)
	}
}

// clientPrefix reads an address or a prefix; an address stands for itself as resolvers send
// it: /24 or /56 (RFC 7871, section 11.1).
func clientPrefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked(), nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Prefix{}, usage("--client %q: expected an address or a prefix", text)
	}
	addr = addr.Unmap()
	bits := 24
	if addr.Is6() {
		bits = 56
	}
	p, _ := addr.Prefix(bits)
	return p, nil
}

// dnsServer is where to ask: what was given, or the first address of the node's status. One
// that says "every address" is asked at the host of the admin API.
func (a *app) dnsServer(given string, st *api.Status) (string, error) {
	if given != "" {
		if _, _, err := net.SplitHostPort(given); err != nil {
			given = net.JoinHostPort(strings.Trim(given, "[]"), "53")
		}
		return given, nil
	}
	if len(st.Node.DNS) == 0 {
		return "", &exitError{code: ExitError, err: errors.New("the node's status names no DNS address"), hint: "give one with --dns"}
	}
	at := st.Node.DNS[0]
	if !at.Addr().IsUnspecified() {
		return at.String(), nil
	}
	c, err := a.client()
	if err != nil {
		return "", err
	}
	u, err := url.Parse(c.Server)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(u.Hostname(), strconv.Itoa(int(at.Port()))), nil
}

// query asks DNS as the client, over UDP and again over TCP where the answer is cut.
func (m *madeTrace) query(ctx context.Context, qtype string) error {
	types := map[string]uint16{"A": dns.TypeA, "AAAA": dns.TypeAAAA}
	if qtype = strings.ToUpper(qtype); qtype == "" {
		qtype = "A"
		if m.client.Addr().Is6() {
			qtype = "AAAA"
		}
	}
	if types[qtype] == 0 {
		return usage("--type %q: expected A or AAAA", qtype)
	}
	if _, ok := dns.IsDomainName(m.Question); !ok {
		return usage("%q is neither a trace id nor a domain name", m.Question)
	}
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(m.Question), types[qtype])
	q.RecursionDesired = false
	q.SetEdns0(1232, false)
	subnet := &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: uint8(m.client.Bits()), Address: m.client.Addr().AsSlice()}
	if m.client.Addr().Is6() {
		subnet.Family = 2
	}
	// Empty: "trace this, and tell me the id".
	q.IsEdns0().Option = append(q.IsEdns0().Option, subnet, &dns.EDNS0_LOCAL{Code: tracing.EDNSTraceParent})

	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	r, _, err := (&dns.Client{}).ExchangeContext(ctx, q, m.Server)
	if err == nil && r.Truncated {
		r, _, err = (&dns.Client{Net: "tcp"}).ExchangeContext(ctx, q, m.Server)
	}
	if err != nil {
		return failure(fmt.Errorf("asking %s for %s %s: %w", m.Server, m.Question, qtype, err), "is that the node's DNS? set --dns")
	}
	m.Rcode = dns.RcodeToString[r.Rcode]
	m.read(r)
	return nil
}

// read takes the addresses, the TTL and the scope of an answer.
func (m *madeTrace) read(r *dns.Msg) {
	for _, rr := range r.Answer {
		m.TTL = rr.Header().Ttl
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if addr, ok := netip.AddrFromSlice(ip); ok {
			m.Answers = append(m.Answers, addr.Unmap())
		}
	}
	if opt := r.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if s, ok := o.(*dns.EDNS0_SUBNET); ok {
				m.Scope = &s.SourceScope
			}
			if l, ok := o.(*dns.EDNS0_LOCAL); ok && l.Code == tracing.EDNSTraceParent {
				if p, ok := tracing.ParseTraceParent(l.Data); ok {
					m.told = p.TraceID
				}
			}
		}
	}
}

// printAnswer says what DNS answered.
func (a *app) printAnswer(m *madeTrace) {
	var addrs []string
	for _, x := range m.Answers {
		addrs = append(addrs, x.String())
	}
	line := fmt.Sprintf("%s for %s from %s: ", m.Question, m.Client, m.Server)
	if len(addrs) == 0 {
		line += m.Rcode + " without an address"
	} else {
		line += fmt.Sprintf("%s, TTL %d s", a.style.paint(bold, strings.Join(addrs, " ")), m.TTL)
	}
	if m.Scope != nil {
		line += fmt.Sprintf(", scope /%d", *m.Scope)
	}
	fmt.Fprintln(a.out, line)
}

// request sends a request to the first address of the answer, with a trace context of its
// own, and adds its spans. The span of the request itself is ours: it links to the query, so
// that both are drawn as one tree.
func (a *app) request(ctx context.Context, m *madeTrace, f *traceFlags, query []tracing.Span) error {
	port, err := a.requestPort(ctx, m, f)
	if err != nil {
		return err
	}
	scheme := "http"
	if f.tls {
		scheme = "https"
	}
	at := netip.AddrPortFrom(m.Answers[0], port)
	m.URL = fmt.Sprintf("%s://%s%s", scheme, at, "/"+strings.TrimPrefix(f.path, "/"))

	span := tracing.Span{
		Name:       http.MethodGet,
		Kind:       tracing.KindClient,
		Service:    "gslbctl",
		Attributes: map[string]any{"url.full": m.URL, "server.address": m.Answers[0].String()},
	}
	rand.Read(span.TraceID[:]) // never fails
	rand.Read(span.SpanID[:])
	if len(query) > 0 {
		span.Links = []tracing.Link{{TraceID: query[0].TraceID, SpanID: query[0].SpanID}}
	}
	span.Start = time.Now()
	status, err := send(ctx, m, span.TraceID, span.SpanID)
	span.End = time.Now()
	switch {
	case err != nil:
		m.Status = err.Error()
		span.Status = tracing.Status{Code: tracing.StatusError, Message: m.Status}
	default:
		m.Status = strconv.Itoa(status) + " " + http.StatusText(status)
		span.Attributes["http.response.status_code"] = int64(status)
		if status >= 500 {
			span.Status.Code = tracing.StatusError
		}
	}
	if a.output == "table" {
		fmt.Fprintf(a.out, "GET %s: %s\n", m.URL, clean(m.Status))
	}
	var behind []tracing.Span
	if err == nil {
		behind = a.await(ctx, spanQuiet, func(ctx context.Context, c *api.Client) []tracing.Span {
			t, err := traceOf(ctx, c, m.also, span.TraceID.String())
			m.Missing, m.far = t.Missing, t.far
			if err != nil {
				return nil
			}
			return t.Spans
		})
		if len(behind) == 0 && a.output == "table" {
			fmt.Fprintf(a.out, "no span of the request came to this node; name the node that its proxies report to: gslbctl trace %s --also http://…\n", span.TraceID)
		}
	}
	m.keep(append([]tracing.Span{span}, behind...))
	a.tell(ctx, span, m.far)
	return nil
}

// tell hands our own span to the node, and those that only others remember, so that its page draws the
// same tree. These its collector has from elsewhere. A node that takes no spans goes without.
func (a *app) tell(ctx context.Context, span tracing.Span, far []tracing.Span) {
	c, err := a.client()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_ = c.Export(ctx, tracing.ExportRequest(span), true)
	if len(far) > 0 {
		_ = c.Export(ctx, tracing.ExportRequest(far...), false)
	}
}

// requestPort is the port of the pool that holds the answer, unless one was given.
func (a *app) requestPort(ctx context.Context, m *madeTrace, f *traceFlags) (uint16, error) {
	if f.port != 0 {
		return f.port, nil
	}
	fallback := uint16(80)
	if f.tls {
		fallback = 443
	}
	o, err := ask(ctx, a, func(ctx context.Context, c *api.Client) (*api.Objects, error) { return c.Objects(ctx) })
	if err != nil {
		return 0, err
	}
	return portOf(o.Objects, m, fallback), nil
}

// portOf is the port of the pool that has m's first answer, or fallback.
func portOf(o *config.Objects, m *madeTrace, fallback uint16) uint16 {
	svc := o.Services[strings.ToLower(m.Question)]
	for name := range svc.Pools {
		p := o.Pools[name]
		for _, e := range p.Endpoints {
			if e.Address == m.Answers[0] || p.AnswerIDs && sameNetwork(e.Address, m.Answers[0]) {
				return cmp.Or(p.EndpointPort(e), fallback)
			}
		}
	}
	return fallback
}

// sameNetwork tells whether two addresses are of one IPv6 /64, in which an answer with an id differs
// from its endpoint.
func sameNetwork(a, b netip.Addr) bool {
	network, err := a.Prefix(64) // fails for IPv4, which has no ids
	return err == nil && network.Contains(b)
}

// send does the request and returns the status of its answer.
func send(ctx context.Context, m *madeTrace, trace tracing.TraceID, span tracing.SpanID) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.URL, nil)
	if err != nil {
		return 0, err
	}
	req.Host = m.Question
	req.Header.Set("User-Agent", "gslbctl")
	req.Header.Set("Traceparent", fmt.Sprintf("00-%s-%s-01", trace, span)) // W3C Trace Context, section 3.2
	req.Header.Set("X-Client-Trace-Id", trace.String())                    // for Envoy, which draws for itself whom it traces unless the client asks
	transport := &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{ServerName: m.Question, InsecureSkipVerify: true}, // a look at the path, not at its content
	}
	res, err := (&http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}).Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, err
}

// await looks for spans until they are there and have not grown for quiet, or spanWait is
// over.
func (a *app) await(ctx context.Context, quiet time.Duration, look func(context.Context, *api.Client) []tracing.Span) []tracing.Span {
	c, err := a.client()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, spanWait)
	defer cancel()
	var spans []tracing.Span
	grown := time.Now()
	for {
		if now := look(ctx, c); len(now) > len(spans) {
			spans, grown = now, time.Now()
		}
		if len(spans) > 0 && time.Since(grown) >= quiet {
			return spans
		}
		select {
		case <-ctx.Done():
			return spans
		case <-time.After(spanPoll):
		}
	}
}
