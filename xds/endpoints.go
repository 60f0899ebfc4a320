package xds

import (
	"math"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// weightSum is what the weights of one priority add up to, about: they are quantised to
// thousandths, so that noise changes nothing.
const weightSum = 1000

// dropStep quantises what is shed: per cent.
const dropStep = 100

// overprovisioning keeps a priority's whole traffic in it while one endpoint of a thousand
// is healthy: whether that is enough was decided by the engine, which has put what is
// degraded last. Envoy's default, 140, would move part of the traffic as soon as two in
// seven are down, where DNS does not.
const overprovisioning = 100 * 1000

// DropCategory is the category of requests that proxies drop because every pool is full.
const DropCategory = "gslb-overload"

// target is a pool that requests may be sent to.
type target struct {
	hop      gslb.Hop
	pool     *gslb.Pool
	region   string
	class    class   // how willing the plan is to use it
	capacity float64 // requests per second that its healthy endpoints take; 0: not declared
	size     float64 // sum of the weights of its usable endpoints
}

// class orders targets whatever the mode: a worse one is used when no better one is left.
type class uint8

const (
	classDegraded class = 1 << iota
	classStandby
	classDrained
)

// group are targets that share a priority.
type group struct {
	targets []*target
	weights []float64 // of targets, over 0
}

// groups arranges where the proxies of pool send requests by upstream u: the best first.
func groups(in *Inputs, pool *gslb.Pool, name string, u *config.Upstream) []group {
	hops := in.Snapshot.AssignTo(pool, name)
	open := true // all is down: what there is is used in the order of the policy
	targets := make([]*target, len(hops))
	for i, h := range hops {
		t := &target{hop: h, pool: in.Snapshot.Pool(h.Pool), region: in.Objects.Sites[h.Site].EffectiveRegion(h.Site)}
		drained := true
		for _, e := range h.Endpoints {
			t.size += float64(e.Weight)
			open = open && e.Verdict == gslb.Down
			drained = drained && e.Drained
		}
		if t.pool.Drained || drained {
			t.class |= classDrained
		}
		if u.Pools[h.Pool].Standby {
			t.class |= classStandby
		}
		if t.pool.Degraded {
			t.class |= classDegraded
		}
		t.capacity = in.Objects.Pools[h.Pool].Capacity * t.pool.Healthy
		targets[i] = t
	}
	var out []group
	for _, ts := range arrange(targets, u, open) {
		out = append(out, weigh(ts))
	}
	return out
}

// arrange splits targets, which are in the order of the policy, into priorities.
func arrange(targets []*target, u *config.Upstream, open bool) [][]*target {
	if open || !u.ByDistance() {
		return chunk(targets, func(a, b *target) bool { return a.hop.Priority == b.hop.Priority })
	}
	// The rank of a region is that of its nearest site, in each class.
	type key struct {
		class
		region string
	}
	rank := map[key]int{}
	for i, t := range targets {
		if _, ok := rank[key{t.class, t.region}]; !ok {
			rank[key{t.class, t.region}] = i
		}
	}
	targets = slices.Clone(targets)
	slices.SortStableFunc(targets, func(a, b *target) int {
		if a.class != b.class {
			return int(a.class) - int(b.class)
		}
		return rank[key{a.class, a.region}] - rank[key{b.class, b.region}]
	})
	switch u.Mode {
	case config.WaterfallByZone:
		return chunk(targets, func(a, b *target) bool { return a.class == b.class && a.hop.Site == b.hop.Site })
	case config.SprayToWorld:
		return chunk(targets, func(a, b *target) bool { return a.class == b.class })
	}
	return chunk(targets, func(a, b *target) bool { return a.class == b.class && a.region == b.region })
}

// chunk splits list where neighbours are not the same.
func chunk(list []*target, same func(a, b *target) bool) (out [][]*target) {
	for i, t := range list {
		if i == 0 || !same(list[i-1], t) {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], t)
	}
	return out
}

// weigh gives targets their weights. What the policy itself holds for equal is shared by the
// configured weights, as DNS does; what a mode has put together, by weight and capacity.
func weigh(ts []*target) group {
	g := group{targets: ts}
	equal, declared := true, true
	for _, t := range ts {
		equal = equal && t.hop.Priority == ts[0].hop.Priority
		declared = declared && t.capacity > 0
	}
	for _, t := range ts {
		w := float64(t.hop.Weight)
		switch {
		case equal:
		case declared:
			w *= t.capacity
		default:
			w *= t.size
		}
		g.weights = append(g.weights, w)
	}
	return g
}

// assignment makes the endpoints of one upstream as this pool's proxies see them.
func (b *builder) assignment(name string, u config.Upstream) *endpoint.ClusterLoadAssignment {
	plan := b.spill.plan(b.pool, name)
	cla := &endpoint.ClusterLoadAssignment{
		ClusterName: b.service(name),
		Policy:      &endpoint.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(overprovisioning)},
	}
	if drop := uint32(math.Round(plan.drop * dropStep)); drop > 0 && u.DropOverloads {
		cla.Policy.DropOverloads = []*endpoint.ClusterLoadAssignment_Policy_DropOverload{{
			Category:       DropCategory,
			DropPercentage: &envoytype.FractionalPercent{Numerator: drop, Denominator: envoytype.FractionalPercent_HUNDRED},
		}}
	}
	for priority, g := range plan.groups {
		sum := 0.0
		for _, w := range g.weights {
			sum += w
		}
		for i, t := range g.targets {
			weight := max(1, uint32(math.Round(g.weights[i]/sum*weightSum)))
			cla.Endpoints = append(cla.Endpoints, locality(t, uint32(priority), weight))
		}
	}
	return cla
}

// localityOf is where a pool is: its region, its site, and itself as the sub-zone, so that
// load reports are by pool.
func localityOf(o *config.Objects, pool string) *core.Locality {
	site := o.Pools[pool].Site
	return &core.Locality{Region: o.Sites[site].EffectiveRegion(site), Zone: site, SubZone: pool}
}

// locality makes the endpoints of one pool.
func locality(t *target, priority, weight uint32) *endpoint.LocalityLbEndpoints {
	usable := map[string]bool{}
	for _, e := range t.hop.Endpoints {
		usable[e.Addr.String()] = true
	}
	l := &endpoint.LocalityLbEndpoints{
		Locality:            &core.Locality{Region: t.region, Zone: t.hop.Site, SubZone: t.hop.Pool},
		LoadBalancingWeight: wrapperspb.UInt32(weight),
		Priority:            priority,
	}
	for _, e := range t.pool.Endpoints {
		if e.Weight == 0 {
			continue
		}
		addr := e.Addr.String()
		health := core.HealthStatus_HEALTHY
		switch {
		case usable[addr]: // even where it is down: then all is, and requests go out rather than fail
		case e.Drained:
			health = core.HealthStatus_DRAINING
		default:
			health = core.HealthStatus_UNHEALTHY
		}
		l.LbEndpoints = append(l.LbEndpoints, &endpoint.LbEndpoint{
			HostIdentifier:      &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: address(addr, port(e))}},
			HealthStatus:        health,
			LoadBalancingWeight: wrapperspb.UInt32(uint32(e.Weight)),
		})
	}
	return l
}

func address(host string, port uint32) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: port},
	}}}
}
