package xds

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// The tests of this file speak the protocol octet by octet, for each fault that config
// servers are known to have. The same is tried with real clients:
//
//	fault                                        by octets                         grpc-go              Envoy, delta and sotw
//	P1 a request for less than there is          TestSubsetIsAnswered              TestGRPC             TestEnvoyWarming
//	P2 a changed cluster without its endpoints   TestChangedClusterGetsItsEndpoints TestGRPC            TestEnvoyWarming
//	P3 silence for a name that there is not      TestMissingNamesAreAnswered       TestGRPC             TestEnvoyWarming
//	P4 many types, and clients that read not     TestNobodyWaitsForAnother         TestGRPCInACrowd     TestEnvoyInACrowd
//	P5 versions of another run of the server     TestRestart                       TestGRPCRestart      TestEnvoyWarming, TestEnvoyKeepsServing
//	P6 a change sent to whom it does not concern TestOnlyWhatChangedIsSent         TestGRPCInACrowd     TestEnvoyInACrowd
//	P7 clusters that change with health          TestClusterHoldsNoHealth          (does not warm)      TestEnvoyWarming

// conn is a client that says what a test wants it to.
type conn struct {
	t      testing.TB
	node   *core.Node
	client discovery.AggregatedDiscoveryServiceClient
	ctx    context.Context
	close  func()
}

func dial(t testing.TB, s *Server, pool string) *conn {
	t.Helper()
	cc, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &conn{t: t, ctx: ctx, client: discovery.NewAggregatedDiscoveryServiceClient(cc), close: func() { cancel(); cc.Close() },
		node: &core.Node{Id: "test", Cluster: pool, UserAgentName: "envoy"}}
	t.Cleanup(c.close)
	return c
}

// within runs f and fails when that takes too long: what is tested is that an answer comes.
func within[T any](t testing.TB, what string, f func() (T, error)) T {
	t.Helper()
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() { v, err := f(); done <- result{v, err} }()
	select {
	case r := <-done:
		if r.err != nil {
			t.Fatalf("%s: %v", what, r.err)
		}
		return r.v
	case <-time.After(patience):
		t.Fatalf("%s: no answer in %v", what, patience)
		panic("unreachable")
	}
}

// deltaStream is a client of the incremental protocol.
type deltaStream struct {
	*conn
	st   discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	said bool
}

func (c *conn) delta() *deltaStream {
	c.t.Helper()
	st, err := c.client.DeltaAggregatedResources(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return &deltaStream{conn: c, st: st}
}

func (d *deltaStream) send(typ Type, req *discovery.DeltaDiscoveryRequest) {
	d.t.Helper()
	req.TypeUrl = typ.URL()
	if !d.said {
		req.Node, d.said = d.node, true
	}
	if err := d.st.Send(req); err != nil {
		d.t.Fatal(err)
	}
}

func (d *deltaStream) subscribe(typ Type, names ...string) {
	d.t.Helper()
	d.send(typ, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names})
}

// next receives the next response, wants it to be of that type and acknowledges it.
func (d *deltaStream) next(typ Type) *discovery.DeltaDiscoveryResponse {
	d.t.Helper()
	res := d.receive(typ)
	d.send(typ, &discovery.DeltaDiscoveryRequest{ResponseNonce: res.Nonce})
	return res
}

func (d *deltaStream) receive(typ Type) *discovery.DeltaDiscoveryResponse {
	d.t.Helper()
	res := within(d.t, typ.String(), d.st.Recv)
	if res.TypeUrl != typ.URL() {
		d.t.Fatalf("a response of %s, want %s", res.TypeUrl, typ.URL())
	}
	return res
}

// deltaText is a response as "name name -removed".
func deltaText(res *discovery.DeltaDiscoveryResponse) string {
	var out []string
	for _, r := range res.Resources {
		out = append(out, r.Name)
	}
	for _, r := range res.RemovedResources {
		out = append(out, "-"+r)
	}
	return strings.Join(out, " ")
}

// sotwStream is a client of the state-of-the-world protocol.
type sotwStream struct {
	*conn
	st   discovery.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	said bool
	last [numTypes]*discovery.DiscoveryResponse
}

func (c *conn) sotw() *sotwStream {
	c.t.Helper()
	st, err := c.client.StreamAggregatedResources(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return &sotwStream{conn: c, st: st}
}

func (d *sotwStream) ask(typ Type, names ...string) {
	d.t.Helper()
	req := &discovery.DiscoveryRequest{TypeUrl: typ.URL(), ResourceNames: names}
	if last := d.last[typ]; last != nil {
		req.ResponseNonce, req.VersionInfo = last.Nonce, last.VersionInfo
	}
	if !d.said {
		req.Node, d.said = d.node, true
	}
	if err := d.st.Send(req); err != nil {
		d.t.Fatal(err)
	}
}

// next receives the next response, wants it to be of that type and acknowledges it with
// those names.
func (d *sotwStream) next(typ Type, names ...string) string {
	d.t.Helper()
	res := within(d.t, typ.String(), d.st.Recv)
	if res.TypeUrl != typ.URL() {
		d.t.Fatalf("a response of %s, want %s", res.TypeUrl, typ.URL())
	}
	d.last[typ] = res
	d.ask(typ, names...)
	var out []string
	for _, a := range res.Resources {
		m, err := a.UnmarshalNew()
		if err != nil {
			d.t.Fatal(err)
		}
		switch m := m.(type) {
		case interface{ GetClusterName() string }:
			out = append(out, m.GetClusterName())
		case interface{ GetName() string }:
			out = append(out, m.GetName())
		}
	}
	return strings.Join(out, " ")
}

func expect(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// three is a pool with three upstreams.
func three(weight int, extra string) string {
	return sites + fmt.Sprintf(`
pools:
  gfe: {site: eu-1, port: 80, endpoints: [{address: 192.0.2.1}], upstream: {pools: {be: {}}%s}, proxy: {upstreams: {a: be, b: {pools: {be: {}, be2: {}}}}}}
  be: {site: eu-1, port: 81, endpoints: [{address: 10.0.0.1, weight: %d}]}
  be2: {site: us, port: 81, endpoints: [{address: 10.0.0.2}]}
`, extra, weight)
}

// P1: a request that names fewer resources than there are is answered, and what it named is
// followed.
func TestSubsetIsAnswered(t *testing.T) {
	s := serve(t, Options{})
	w := world(t, nil, three(1, ""), state{})
	s.Set(w)
	t.Run("sotw", func(t *testing.T) {
		c := dial(t, s, "gfe").sotw()
		c.ask(Endpoints, "a@gfe", "b@gfe")
		expect(t, "both", c.next(Endpoints, "a@gfe"), "a@gfe b@gfe") // and from now on fewer
		c.ask(Routes, "routes")
		c.next(Routes, "routes") // so that the server has read what came before
		s.Set(world(t, w, three(2, ""), state{}))
		expect(t, "the one left", c.next(Endpoints, "a@gfe"), "a@gfe")
		c.ask(Endpoints, "a@gfe", "upstream@gfe") // more again
		expect(t, "the new one", c.next(Endpoints, "a@gfe", "upstream@gfe"), "upstream@gfe")
		c.ask(Clusters, "a")
		expect(t, "a cluster by name", c.next(Clusters, "a"), "a")
		c.ask(Clusters, "a", "b")
		expect(t, "clusters are sent whole", c.next(Clusters, "a", "b"), "a b")
	})
	t.Run("delta", func(t *testing.T) {
		s.Set(w)
		c := dial(t, s, "gfe").delta()
		c.subscribe(Endpoints, "a@gfe", "b@gfe")
		expect(t, "both", deltaText(c.next(Endpoints)), "a@gfe b@gfe")
		c.send(Endpoints, &discovery.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"b@gfe"}})
		c.subscribe(Clusters, "a")
		c.next(Clusters) // so that the server has read what came before
		s.Set(world(t, w, three(3, ""), state{}))
		expect(t, "the one left", deltaText(c.next(Endpoints)), "a@gfe")
		c.subscribe(Endpoints, "a@gfe")
		expect(t, "asked again", deltaText(c.next(Endpoints)), "a@gfe")
	})
}

// P2: a cluster that changes is warmed anew and waits for its endpoints, so that they are
// sent again.
func TestChangedClusterGetsItsEndpoints(t *testing.T) {
	a, b := three(1, ""), three(1, ", connectTimeout: 5s")
	t.Run("delta", func(t *testing.T) {
		s := serve(t, Options{})
		w := world(t, nil, a, state{})
		s.Set(w)
		c := dial(t, s, "gfe").delta()
		c.subscribe(Clusters)
		expect(t, "clusters", deltaText(c.next(Clusters)), "a b upstream")
		c.subscribe(Endpoints, "a@gfe", "upstream@gfe")
		expect(t, "endpoints", deltaText(c.next(Endpoints)), "a@gfe upstream@gfe")
		s.Set(world(t, w, b, state{}))
		expect(t, "the changed cluster", deltaText(c.next(Clusters)), "upstream")
		expect(t, "its endpoints", deltaText(c.next(Endpoints)), "upstream@gfe")
	})
	t.Run("sotw", func(t *testing.T) {
		s := serve(t, Options{})
		w := world(t, nil, a, state{})
		s.Set(w)
		c := dial(t, s, "gfe").sotw()
		c.ask(Clusters)
		expect(t, "clusters", c.next(Clusters), "a b upstream")
		c.ask(Endpoints, "a@gfe", "upstream@gfe")
		expect(t, "endpoints", c.next(Endpoints, "a@gfe", "upstream@gfe"), "a@gfe upstream@gfe")
		s.Set(world(t, w, b, state{}))
		expect(t, "all clusters", c.next(Clusters), "a b upstream")
		expect(t, "the changed one's endpoints", c.next(Endpoints, "a@gfe", "upstream@gfe"), "upstream@gfe")
	})
}

// P3: a name that there is nothing of is answered: endpoints with none, which ends the
// warming of the cluster that waits for them, all else as removed.
func TestMissingNamesAreAnswered(t *testing.T) {
	s := serve(t, Options{})
	s.Set(world(t, nil, three(1, ""), state{}))
	t.Run("delta", func(t *testing.T) {
		c := dial(t, s, "gfe").delta()
		c.subscribe(Endpoints, "nobody", "a@gfe")
		res := c.next(Endpoints)
		expect(t, "endpoints", deltaText(res), "a@gfe nobody")
		var cla endpoint.ClusterLoadAssignment
		if err := res.Resources[1].Resource.UnmarshalTo(&cla); err != nil || len(cla.Endpoints) != 0 || cla.ClusterName != "nobody" {
			t.Errorf("nobody has %v, %v; want an assignment without endpoints", &cla, err)
		}
		for _, typ := range []Type{Runtimes, Clusters, Routes, Secrets, Listeners} {
			c.subscribe(typ, "nobody")
			expect(t, typ.String(), deltaText(c.next(typ)), "-nobody")
		}
	})
	t.Run("sotw", func(t *testing.T) {
		c := dial(t, s, "gfe").sotw()
		c.ask(Endpoints, "nobody")
		expect(t, "endpoints", c.next(Endpoints, "nobody"), "nobody")
		c.ask(Listeners, "nobody")
		expect(t, "listeners are sent whole", c.next(Listeners, "nobody"), "")
	})
}

// crowd connects clients of every type that read nothing, and that acknowledge nothing.
func crowd(t testing.TB, s *Server, pool string) {
	t.Helper()
	deaf, mute := dial(t, s, pool).delta(), dial(t, s, pool).delta()
	for typ := range numTypes {
		names := map[Type][]string{Endpoints: {"a@" + pool}, Routes: {"routes"}, Secrets: {"none"}}[typ]
		deaf.subscribe(typ, names...)
		mute.subscribe(typ, names...)
	}
	for range numTypes { // in any order: each type is answered although none is acknowledged
		within(t, "mute", mute.st.Recv)
	}
}

// P4: a client that reads nothing, and one that acknowledges nothing, hold up nobody: not
// the writer of worlds, not other clients, not their own other types.
func TestNobodyWaitsForAnother(t *testing.T) {
	s := serve(t, Options{Coalesce: -1})
	w := world(t, nil, three(1, ""), state{})
	s.Set(w)
	crowd(t, s, "gfe")
	done := make(chan *World)
	go func() {
		for i := range 200 {
			w = world(t, w, three(i%9+1, ""), state{})
			s.Set(w)
		}
		done <- w
	}()
	select {
	case w = <-done:
	case <-time.After(patience):
		t.Fatal("Set is stuck")
	}
	c := dial(t, s, "gfe").delta()
	c.subscribe(Endpoints, "a@gfe")
	expect(t, "another client", c.next(Endpoints).Resources[0].Version, w.View("gfe").Resource(Envoy, Endpoints, "a@gfe").Version)
}

// P5: versions mean nothing across runs of a server. A state-of-the-world client that says
// that it is current is answered all the same; an incremental one is sent what it lacks,
// and nothing else.
func TestRestart(t *testing.T) {
	first := world(t, nil, three(1, ""), state{revision: 5})
	a := serve(t, Options{})
	a.Set(first)
	have := map[string]string{}
	c := dial(t, a, "gfe").delta()
	c.subscribe(Clusters)
	for _, r := range c.next(Clusters).Resources {
		have[r.Name] = r.Version
	}
	old := dial(t, a, "gfe").sotw()
	old.ask(Clusters)
	old.next(Clusters)

	b := serve(t, Options{}) // as after a restart: nothing is known, revisions start anew
	b.Set(world(t, nil, three(1, ", connectTimeout: 7s"), state{revision: 5}))
	t.Run("sotw", func(t *testing.T) {
		again := dial(t, b, "gfe").sotw()
		again.last[Clusters] = &discovery.DiscoveryResponse{VersionInfo: old.last[Clusters].VersionInfo}
		again.ask(Clusters)
		expect(t, "clusters", again.next(Clusters), "a b upstream")
	})
	t.Run("delta", func(t *testing.T) {
		have["gone"] = "5-1234"
		again := dial(t, b, "gfe").delta()
		again.send(Clusters, &discovery.DeltaDiscoveryRequest{InitialResourceVersions: have})
		expect(t, "what has changed", deltaText(again.next(Clusters)), "upstream -gone")
	})
}

// P6: a change is sent to those who asked for it, and nothing else with it.
func TestOnlyWhatChangedIsSent(t *testing.T) {
	s := serve(t, Options{})
	text := three(1, "")
	w := world(t, nil, text, state{})
	s.Set(w)
	both, other := dial(t, s, "gfe").delta(), dial(t, s, "gfe").delta()
	both.subscribe(Endpoints, "a@gfe", "b@gfe")
	both.next(Endpoints)
	other.subscribe(Endpoints, "a@gfe")
	other.next(Endpoints)
	before := s.Stats().Pushes
	drained := text + "states:\n  s: {pool: be2, state: drain, author: ann}\n"
	s.Set(world(t, w, drained, state{revision: 2})) // a drain of the last: nothing changes for "a"
	s.Set(world(t, w, strings.Replace(text, "10.0.0.2", "10.0.0.3", 1), state{revision: 3}))
	expect(t, "endpoints", deltaText(both.next(Endpoints)), "b@gfe")
	eventually(t, 10*time.Second, func() string { // the other has looked at the world, and is sent nothing
		for _, c := range s.Clients() {
			if c.Revision != 3 {
				return fmt.Sprintf("client %+v is not at revision 3", c)
			}
		}
		return ""
	})
	if n := s.Stats().Pushes - before; n != 1 {
		t.Errorf("%d pushes, want 1", n)
	}
}

// TestMakeBeforeBreak removes an upstream and its route: the cluster goes only after the
// route was taken, and its endpoints stay until then.
func TestMakeBeforeBreak(t *testing.T) {
	with := strings.Replace(three(1, ""), "b: {pools", "c: be, b: {pools", 1)
	with = strings.Replace(with, "proxy: {", "proxy: {routes: [{domains: [c.test], upstream: c}], ", 1)
	s := serve(t, Options{})
	w := world(t, nil, with, state{})
	s.Set(w)
	c := dial(t, s, "gfe").delta()
	c.subscribe(Clusters)
	expect(t, "clusters", deltaText(c.next(Clusters)), "a b c upstream")
	c.subscribe(Endpoints, "c@gfe")
	expect(t, "endpoints", deltaText(c.next(Endpoints)), "c@gfe")
	c.subscribe(Routes, "routes")
	expect(t, "routes", deltaText(c.next(Routes)), "routes")
	s.Set(world(t, w, three(1, ""), state{}))
	res := c.receive(Routes)
	expect(t, "first the routes", deltaText(res), "routes")
	c.send(Routes, &discovery.DeltaDiscoveryRequest{ResponseNonce: res.Nonce})
	expect(t, "then the cluster", deltaText(c.next(Clusters)), "-c")
}

// TestRejection shows a refused response in the status, keeps serving, and does not send it
// again and again.
func TestRejection(t *testing.T) {
	s := serve(t, Options{})
	w := world(t, nil, three(1, ""), state{})
	s.Set(w)
	c := dial(t, s, "gfe").delta()
	c.subscribe(Clusters)
	res := c.receive(Clusters)
	c.send(Clusters, &discovery.DeltaDiscoveryRequest{ResponseNonce: res.Nonce, ErrorDetail: &status.Status{Code: 3, Message: "no such filter"}})
	c.subscribe(Endpoints, "a@gfe")
	expect(t, "another type", deltaText(c.next(Endpoints)), "a@gfe")
	eventually(t, 10*time.Second, func() string {
		cs := s.Clients()
		for _, ts := range cs[0].Types {
			if r := ts.Rejected; r != nil && r.Reason == "no such filter" && slices.Contains(r.Resources, "upstream") && ts.Type == "clusters" && cs[0].Behind {
				return ""
			}
		}
		return fmt.Sprintf("clients %+v; want the refused clusters", cs)
	})
	if n := s.Stats().Rejections; n != 1 {
		t.Errorf("%d rejections, want 1", n)
	}
	s.Set(world(t, w, three(1, ", connectTimeout: 2s"), state{}))
	expect(t, "a new version", deltaText(c.next(Clusters)), "upstream")
	if cs := s.Clients(); !cs[0].Behind {
		t.Error("current, although it has not asked for the endpoints of its clusters")
	}
	c.subscribe(Endpoints, "b@gfe", "upstream@gfe")
	expect(t, "the rest", deltaText(c.next(Endpoints)), "b@gfe upstream@gfe")
	eventually(t, 10*time.Second, func() string {
		if cs := s.Clients(); cs[0].Behind || cs[0].Revision == 0 {
			return fmt.Sprintf("clients %+v; want it current", cs)
		}
		return ""
	})
}

// TestStrangers are told what is wrong, or nothing: never someone else's resources.
func TestStrangers(t *testing.T) {
	s := serve(t, Options{})
	s.Set(world(t, nil, three(1, ""), state{}))
	t.Run("no node", func(t *testing.T) {
		c := dial(t, s, "").delta()
		c.subscribe(Clusters)
		if _, err := c.st.Recv(); err == nil || !strings.Contains(err.Error(), "node.cluster is empty") {
			t.Errorf("error %v, want one that names node.cluster", err)
		}
	})
	t.Run("unknown pool", func(t *testing.T) {
		c := dial(t, s, "nope").delta()
		c.subscribe(Clusters)
		eventually(t, 10*time.Second, func() string {
			for _, st := range s.Clients() {
				if st.Pool == "nope" && st.Unknown {
					return ""
				}
			}
			return "it is not shown as unknown"
		})
	})
	t.Run("a pool that goes keeps what it has", func(t *testing.T) {
		c := dial(t, s, "gfe").delta()
		c.subscribe(Clusters)
		c.next(Clusters)
		before := s.Stats().Pushes
		s.Set(world(t, nil, sites+"pools:\n  be: {site: eu-1, endpoints: [{address: 10.0.0.1}]}\n", state{revision: 9}))
		eventually(t, 10*time.Second, func() string {
			for _, st := range s.Clients() {
				if !st.Unknown {
					return fmt.Sprintf("%+v is known", st)
				}
			}
			return ""
		})
		if n := s.Stats().Pushes - before; n != 0 {
			t.Errorf("%d pushes, want none", n)
		}
	})
}

// TestSessionAgreesWithTwin drives both variants with random requests and worlds, and
// compares what the client ends with to what a slow obvious rule says: for each name that it
// asks for, what the newest world has.
func TestSessionAgreesWithTwin(t *testing.T) {
	var worlds []*World
	var w *World
	for i := range 12 {
		extra := ""
		if i%3 == 1 {
			extra = ", connectTimeout: 9s"
		}
		text := three(i%4+1, extra)
		if i%5 == 4 {
			text = strings.Replace(text, "a: be, ", "", 1)
		}
		w = world(t, w, text, state{})
		worlds = append(worlds, w)
	}
	for seed := range 500 {
		r := newRand(uint64(seed))
		s := &session{sotw: seed%2 == 1}
		has := [numTypes]map[string]string{} // what the client has: hashes by name
		for typ := range numTypes {
			has[typ] = map[string]string{}
		}
		asked := map[string]bool{}
		all := []string{"a@gfe", "b@gfe", "upstream@gfe", "nobody"}
		nonces := [numTypes]string{}
		step := func(v *View) bool {
			moved := false
			for typ := range numTypes {
				if s.watches[typ].waiting {
					continue
				}
				u := s.pending(v, typ)
				if !sameUpdate(u, slowly(s, v, typ)) {
					t.Fatalf("seed %d: %s: %+v, want %+v", seed, typ, u, slowly(s, v, typ))
				}
				if u.empty() {
					continue
				}
				moved = true
				nonces[typ] = s.record(typ, u, "v")
				for _, res := range u.resources {
					has[typ][res.Name] = hash(res.Version)
				}
				for _, n := range u.removed {
					delete(has[typ], n)
				}
				switch {
				case !s.sotw:
					s.deltaRequest(&discovery.DeltaDiscoveryRequest{TypeUrl: typ.URL(), ResponseNonce: nonces[typ]}, time.Time{})
				case typ == Endpoints:
					s.sotwRequest(&discovery.DiscoveryRequest{TypeUrl: typ.URL(), ResponseNonce: nonces[typ], ResourceNames: slices.Sorted(maps.Keys(asked))}, time.Time{})
				default:
					s.sotwRequest(&discovery.DiscoveryRequest{TypeUrl: typ.URL(), ResponseNonce: nonces[typ]}, time.Time{})
				}
			}
			return moved
		}
		v, at := worlds[0].View("gfe"), 0
		if s.sotw {
			s.sotwRequest(&discovery.DiscoveryRequest{TypeUrl: Clusters.URL()}, time.Time{})
		} else {
			s.deltaRequest(&discovery.DeltaDiscoveryRequest{TypeUrl: Clusters.URL()}, time.Time{})
		}
		for range 40 {
			name := all[r.IntN(len(all))]
			if r.IntN(3) == 0 {
				delete(asked, name)
			} else {
				asked[name] = true
			}
			if s.sotw {
				s.sotwRequest(&discovery.DiscoveryRequest{TypeUrl: Endpoints.URL(), ResponseNonce: nonces[Endpoints], ResourceNames: slices.Sorted(maps.Keys(asked))}, time.Time{})
				if len(asked) == 0 { // a client that asks for nothing has nothing
					clear(has[Endpoints])
				}
			} else if asked[name] {
				s.deltaRequest(&discovery.DeltaDiscoveryRequest{TypeUrl: Endpoints.URL(), ResourceNamesSubscribe: []string{name}}, time.Time{})
			} else {
				s.deltaRequest(&discovery.DeltaDiscoveryRequest{TypeUrl: Endpoints.URL(), ResourceNamesSubscribe: all[:0:0], ResourceNamesUnsubscribe: []string{name}}, time.Time{})
			}
			s.watches[Endpoints].all = false // an empty first request would mean everything
			maps.DeleteFunc(has[Endpoints], func(n string, _ string) bool { return !asked[n] })
			if r.IntN(2) == 0 {
				at = (at + []int{1, 1, 1, r.IntN(len(worlds))}[r.IntN(4)]) % len(worlds) // mostly the next
				v = worlds[at].View("gfe")
			}
			for n := 0; step(v); n++ {
				if n > 10 {
					t.Fatalf("seed %d: it never ends", seed)
				}
			}
			for _, n := range v.Names(Envoy, Clusters) {
				if got := has[Clusters][n]; got != hash(v.Resource(Envoy, Clusters, n).Version) {
					t.Fatalf("seed %d: cluster %s: %s", seed, n, got)
				}
			}
			for n := range asked {
				res := v.Resource(Envoy, Endpoints, n)
				got, ok := has[Endpoints][n]
				switch {
				case !ok:
					t.Fatalf("seed %d: asked for %s, got no answer", seed, n)
				case res != nil && got != hash(res.Version):
					t.Fatalf("seed %d: %s: got %s, want %s", seed, n, got, hash(res.Version))
				}
			}
		}
	}
}

// slowly is what pending says without what is known of the set before.
func slowly(s *session, v *View, t Type) update {
	w := &s.watches[t]
	clean := w.clean
	defer func() { w.clean = clean }()
	if clean != v.sets[s.client][t].version {
		w.clean = ""
	}
	return s.pending(v, t)
}

func sameUpdate(a, b update) bool {
	same := func(x, y *Resource) bool { return x.Name == y.Name && hash(x.Version) == hash(y.Version) }
	return slices.EqualFunc(a.resources, b.resources, same) && slices.Equal(a.removed, b.removed) && a.forced == b.forced
}

// TestStreamsEnd counts goroutines: none is left of streams whose clients went, nor of a
// server that ended while clients were connected.
func TestStreamsEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	s := New(Options{Addr: "127.0.0.1:0"})
	stop := start(t, s)
	w := world(t, nil, three(1, ""), state{})
	s.Set(w)
	for range 20 {
		c := dial(t, s, "gfe")
		d := c.delta()
		d.subscribe(Clusters)
		d.next(Clusters)
		c.close()
	}
	eventually(t, 20*time.Second, func() string {
		if n := len(s.Clients()); n != 0 {
			return fmt.Sprintf("%d clients are left", n)
		}
		return ""
	})
	for range 20 {
		d := dial(t, s, "gfe").delta()
		d.subscribe(Clusters)
		d.next(Clusters)
		defer d.close()
	}
	stop()
	if n := len(s.Clients()); n != 0 {
		t.Errorf("Run has returned, and %d streams are left", n)
	}
	eventually(t, 20*time.Second, func() string {
		// Those of the clients, which still try to connect, are not ours: 20 connections with
		// at most four each.
		if n := runtime.NumGoroutine(); n > before+20*4 {
			return fmt.Sprintf("%d goroutines, %d before", n, before)
		}
		return ""
	})
}
