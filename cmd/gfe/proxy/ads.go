package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	eds "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	loadstats "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/xds"
)

// agent is this proxy's name to config servers.
const agent = "meridian-gfe"

// fastestReport bounds what a config server may ask for, as slowestReport does.
const fastestReport = 100 * time.Millisecond

// ADSConfig says who asks a config server.
type ADSConfig struct {
	Server string                           // host:port
	Creds  credentials.TransportCredentials // such as credentials/insecure's on loopback
	Name   string                           // of the proxy, unique in its pool
	Site   string                           // of the proxy; may be empty
	Also   Reporter                         // is told the load as well; may be nil
}

// ADS is the config server of a node as a source (xDS, incremental), and as a Reporter
// (LRS): what Envoy would be in the place of this proxy. It is safe for concurrent use.
type ADS struct {
	c    ADSConfig
	conn *grpc.ClientConn
	life context.Context
	end  context.CancelFunc

	localities sync.Map     // *core.Locality by pool, as the config server names it
	every      atomic.Int64 // nanoseconds between two reports, as the config server asks; 0: it has not

	mu     sync.Mutex
	report loadstats.LoadReportingService_StreamLoadStatsClient // guarded by mu; nil: none is open
	pool   string                                               // guarded by mu: whose load report carries
}

// NewADS returns the config server at c.Server as a source. It connects when it is followed.
func NewADS(c ADSConfig) (*ADS, error) {
	conn, err := grpc.NewClient(c.Server, grpc.WithTransportCredentials(c.Creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}))
	if err != nil {
		return nil, fmt.Errorf("config server %q: %w", c.Server, err)
	}
	a := &ADS{c: c, conn: conn}
	a.life, a.end = context.WithCancel(context.Background())
	return a, nil
}

// Close ends the connection, and with it what follows a.
func (a *ADS) Close() error {
	a.end()
	return a.conn.Close()
}

// node is who asks, for pool.
func (a *ADS) node(pool string) *core.Node {
	return &core.Node{
		Id: a.c.Name, Cluster: pool, UserAgentName: agent, UserAgentVersionType: &core.Node_UserAgentVersion{UserAgentVersion: api.Version()},
		Locality: &core.Locality{Zone: a.c.Site, SubZone: pool},
	}
}

// Follow asks for the pool's own upstream, and then for its endpoints. An assignment that
// cannot be used is refused, so that the one before stays and the node says why.
func (a *ADS) Follow(ctx context.Context, pool string, update func(Assignment)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := discovery.NewAggregatedDiscoveryServiceClient(a.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	if err := st.Send(&discovery.DeltaDiscoveryRequest{
		Node: a.node(pool), TypeUrl: xds.Clusters.URL(), ResourceNamesSubscribe: []string{config.DefaultUpstream},
	}); err != nil {
		return err
	}
	var now upstreamSpec
	var last *Assignment // of now.service; nil: none yet
	for {
		res, err := st.Recv()
		if err != nil {
			return err
		}
		answer := &discovery.DeltaDiscoveryRequest{TypeUrl: res.TypeUrl, ResponseNonce: res.Nonce}
		switch res.TypeUrl {
		case xds.Clusters.URL():
			next, err := readCluster(res)
			if err != nil {
				answer.ErrorDetail = refusal(err)
				break
			}
			if len(res.RemovedResources) > 0 { // the pool has no upstream
				update(readVersion(res.SystemVersionInfo))
			}
			before := now
			now = next
			if next.service == before.service {
				if last != nil && !next.oob.equal(before.oob) {
					last.OutOfBand = next.oob
					update(*last)
				}
				break
			}
			last = nil
			subscribe := &discovery.DeltaDiscoveryRequest{TypeUrl: xds.Endpoints.URL()}
			if next.service != "" {
				subscribe.ResourceNamesSubscribe = []string{next.service}
			}
			if before.service != "" {
				subscribe.ResourceNamesUnsubscribe = []string{before.service}
			}
			if err := st.Send(subscribe); err != nil {
				return err
			}
		case xds.Endpoints.URL():
			asg, cla, err := readEndpoints(res, now.service)
			if err != nil {
				answer.ErrorDetail = refusal(err)
			} else if cla != nil {
				for _, l := range cla.GetEndpoints() {
					a.localities.Store(l.GetLocality().GetSubZone(), l.GetLocality())
				}
				asg.OutOfBand = now.oob
				last = &asg
				update(asg)
			}
		}
		if err := st.Send(answer); err != nil {
			return err
		}
	}
}

func refusal(err error) *rpcstatus.Status {
	return &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
}

// upstreamSpec is what a proxy needs of a cluster.
type upstreamSpec struct {
	service string // name of the endpoints; "": there is no cluster
	oob     OutOfBand
}

// readCluster returns the cluster in res, of which one was asked for.
func readCluster(res *discovery.DeltaDiscoveryResponse) (upstreamSpec, error) {
	if len(res.Resources) == 0 {
		return upstreamSpec{}, nil
	}
	r := res.Resources[0]
	var c cluster.Cluster
	if err := r.Resource.UnmarshalTo(&c); err != nil {
		return upstreamSpec{}, fmt.Errorf("cluster %s: %w", r.Name, err)
	}
	name := c.GetEdsClusterConfig().GetServiceName()
	if name == "" {
		return upstreamSpec{}, fmt.Errorf("cluster %s: no eds_cluster_config.service_name", r.Name)
	}
	return upstreamSpec{name, OutOfBand{xds.OutOfBandPeriod(&c), c.LrsReportEndpointMetrics}}, nil
}

// readVersion reads "<revision> plan <plan>".
func readVersion(version string) Assignment {
	revision, plan, _ := strings.Cut(version, " plan ")
	n, _ := strconv.ParseUint(revision, 10, 64) // 0: not from a node of ours
	return Assignment{Revision: n, Plan: plan}
}

// readEndpoints returns the assignment of service in res, and as it came; nil if it is not there.
func readEndpoints(res *discovery.DeltaDiscoveryResponse, service string) (a Assignment, as *eds.ClusterLoadAssignment, err error) {
	for _, r := range res.Resources {
		if r.Name != service {
			continue
		}
		var cla eds.ClusterLoadAssignment
		if err := r.Resource.UnmarshalTo(&cla); err != nil {
			return a, nil, fmt.Errorf("endpoints %s: %w", r.Name, err)
		}
		a, err = readAssignment(&cla)
		v := readVersion(res.SystemVersionInfo)
		a.Revision, a.Plan = v.Revision, v.Plan
		return a, &cla, err
	}
	return a, nil, nil
}

// readAssignment checks an assignment from outside. The sub-zone of a locality is its pool.
func readAssignment(cla *eds.ClusterLoadAssignment) (Assignment, error) {
	var a Assignment
	total := 0
	for _, l := range cla.GetEndpoints() {
		hop := gslb.Hop{
			Pool: l.GetLocality().GetSubZone(), Site: l.GetLocality().GetZone(),
			Weight: int(l.GetLoadBalancingWeight().GetValue()), Priority: int(l.GetPriority()),
		}
		if hop.Pool == "" {
			return Assignment{}, errors.New("locality without a sub-zone: expected the name of a pool")
		}
		if hop.Weight > maxWeight {
			return Assignment{}, fmt.Errorf("pool %s: weight %d: expected 0..%d", hop.Pool, hop.Weight, maxWeight)
		}
		for _, e := range l.GetLbEndpoints() {
			at := e.GetEndpoint().GetAddress().GetSocketAddress()
			addr, err := netip.ParseAddr(at.GetAddress())
			if err != nil || at.GetPortValue() > 65535 {
				return Assignment{}, fmt.Errorf("pool %s: endpoint %.64q port %d: expected an address and a port", hop.Pool, at.GetAddress(), at.GetPortValue())
			}
			out := gslb.Endpoint{Addr: addr.Unmap(), Port: uint16(at.GetPortValue()), Weight: 1, Verdict: gslb.Up}
			if w := e.GetLoadBalancingWeight(); w != nil {
				out.Weight = int(w.GetValue())
			}
			if out.Weight > maxWeight {
				return Assignment{}, fmt.Errorf("pool %s: endpoint %s: weight %d: expected 0..%d", hop.Pool, addr, out.Weight, maxWeight)
			}
			switch e.GetHealthStatus() {
			case core.HealthStatus_DRAINING:
				out.Drained = true
			case core.HealthStatus_UNHEALTHY, core.HealthStatus_TIMEOUT:
				out.Verdict = gslb.Down
			}
			hop.Endpoints = append(hop.Endpoints, out)
		}
		if total += len(hop.Endpoints); total > maxEndpoints {
			return Assignment{}, fmt.Errorf("over %d endpoints", maxEndpoints)
		}
		a.Hops = append(a.Hops, hop)
	}
	return a, nil
}

// Report sends load over one stream, which it opens when there is none.
func (a *ADS) Report(ctx context.Context, load api.Load) error {
	var also error
	if a.c.Also != nil {
		also = a.c.Also.Report(ctx, load)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.report == nil || a.pool != load.Pool {
		if err := a.openLocked(ctx, load.Pool); err != nil {
			return errors.Join(also, fmt.Errorf("load reports: %w", err))
		}
	}
	stats := &eds.ClusterStats{
		ClusterName:        config.DefaultUpstream,
		LoadReportInterval: durationpb.New(time.Duration(load.Seconds * float64(time.Second))),
	}
	for _, u := range load.Upstreams {
		var metrics []*eds.EndpointLoadMetricStats
		for name, v := range u.Metrics {
			metrics = append(metrics, &eds.EndpointLoadMetricStats{MetricName: name, NumRequestsFinishedWithMetric: 1, TotalMetricValue: v})
		}
		stats.UpstreamLocalityStats = append(stats.UpstreamLocalityStats, &eds.UpstreamLocalityStats{
			LoadMetricStats:         metrics,
			Locality:                a.locality(u.Pool),
			TotalIssuedRequests:     u.Requests,
			TotalErrorRequests:      u.Errors,
			TotalSuccessfulRequests: u.Requests - min(u.Errors, u.Requests),
			TotalRequestsInProgress: u.InFlight,
		})
	}
	err := a.report.Send(&loadstats.LoadStatsRequest{ClusterStats: []*eds.ClusterStats{stats}})
	if err != nil {
		if errors.Is(err, io.EOF) { // the server ended the stream: it says why
			_, err = a.report.Recv()
		}
		a.report = nil
		return errors.Join(also, fmt.Errorf("load reports: %w", err))
	}
	return also
}

// locality is where a pool is, in the words of the config server.
func (a *ADS) locality(pool string) *core.Locality {
	if l, ok := a.localities.Load(pool); ok {
		return l.(*core.Locality)
	}
	return &core.Locality{SubZone: pool}
}

// Every returns the time between two reports that the config server asked for; 0 if it has not
// yet.
func (a *ADS) Every() time.Duration { return time.Duration(a.every.Load()) }

// openLocked opens the stream of load reports and waits until ctx ends for its first answer.
func (a *ADS) openLocked(ctx context.Context, pool string) error {
	life, end := context.WithCancel(a.life)
	stop := context.AfterFunc(ctx, end)
	st, err := loadstats.NewLoadReportingServiceClient(a.conn).StreamLoadStats(life)
	if err == nil {
		err = st.Send(&loadstats.LoadStatsRequest{Node: a.node(pool)})
	}
	var asked *loadstats.LoadStatsResponse
	if err == nil || errors.Is(err, io.EOF) {
		asked, err = st.Recv()
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		end()
		return err
	}
	a.report, a.pool = st, pool
	if every := asked.GetLoadReportingInterval(); every.CheckValid() == nil {
		a.every.Store(int64(min(max(every.AsDuration(), fastestReport), slowestReport)))
	}
	return nil
}
