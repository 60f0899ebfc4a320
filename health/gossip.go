package health

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

const (
	// gossipLabel keeps a cluster of another program apart that found our port.
	gossipLabel = "meridian"
	// heartbeat is how often a node says all it knows, whether or not anything changed: the
	// same work in calm and in storm.
	heartbeat = time.Second
	// sendBudget bounds the packets of one heartbeat: 256 KiB. Larger fleets hear each node
	// less often, and are told so by the heading's period.
	sendBudget = 256
	// maxBroadcasts bounds the flips that wait for memberlist to spread them.
	maxBroadcasts = 1024
	// Joining is tried again soon while a seed is missing, and now and then for ever, since a
	// partition longer than memberlist's memory of the dead heals in no other way.
	rejoinFirst = 250 * time.Millisecond
	rejoinSoon  = 5 * time.Second
	rejoinIdle  = time.Minute
)

// gossip is this node's membership and its way to peers, over memberlist. It knows nothing
// of what messages say.
type gossip struct {
	// set at construction
	name, site, role string
	conf             config.Gossip
	log              *slog.Logger
	stats            *stats
	hear             func(message []byte)   // a message of a peer, which is the callee's to keep
	state            func(join bool) []byte // what this node has to say to one that it exchanges states with
	lost             func(peer string)      // a peer died or left
	conflict, alone  seldom

	transport memberlist.Transport                            // set by listen
	list      *memberlist.Memberlist                          // set by start
	post      func(to *memberlist.Node, message []byte) error // set by start: sends one packet
	queue     *memberlist.TransmitLimitedQueue                // set at construction

	mu    sync.Mutex
	peers map[string]memberlist.Node // guarded by mu; copies, since memberlist changes its own under its own lock
	order []memberlist.Node          // guarded by mu: the peers by name; immutable; nil when out of date
	dead  map[string]deadPeer        // guarded by mu; peers that died not long ago, or are on the other side of a partition
	again chan struct{}              // capacity 1: one of the dead was heard
	ring  *memberlist.Keyring        // guarded by mu; nil: no key
	next  int                        // guarded by mu: the peer that the next heartbeat starts with
	noted int                        // guarded by mu: the peer that the next note starts with
}

func newGossip(name, site, role string, conf config.Gossip, transport memberlist.Transport, log *slog.Logger, s *stats) *gossip {
	g := &gossip{name: name, site: site, role: role, conf: conf, transport: transport, log: log, stats: s,
		peers: make(map[string]memberlist.Node), dead: make(map[string]deadPeer), again: make(chan struct{}, 1)}
	g.queue = &memberlist.TransmitLimitedQueue{RetransmitMult: 4, NumNodes: func() int { return g.size() + 1 }}
	return g
}

// listen binds the address of the configuration.
func (g *gossip) listen() error {
	if g.transport != nil {
		return nil
	}
	listen := g.conf.Listen
	if a := listen.Addr(); a.Is6() && a.IsUnspecified() && !g.conf.Advertise.IsValid() {
		return fmt.Errorf("gossip.listen %v: expected gossip.advertise with it, an address that peers can reach", listen)
	}
	t, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{listen.Addr().String()}, BindPort: int(listen.Port()), Logger: g.logger(),
	})
	if err != nil {
		return fmt.Errorf("gossip.listen %v: %w", listen, err)
	}
	g.transport = &transport{NetTransport: t, ctx: context.Background()}
	return nil
}

// address is where listen is bound, and whether it is.
func (g *gossip) address() (netip.AddrPort, bool) {
	t, ok := g.transport.(*transport)
	if !ok {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(g.conf.Listen.Addr(), uint16(t.GetAutoBindPort())), true
}

// close undoes a listen that no start followed. What arrived meanwhile is thrown away: the
// transport's own goroutines hold it, and end only without it.
func (g *gossip) close() {
	if g.transport == nil {
		return
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-g.transport.PacketCh():
			case c := <-g.transport.StreamCh():
				_ = c.Close()
			case <-done:
				return
			}
		}
	})
	_ = g.transport.Shutdown()
	close(done)
	wg.Wait()
}

// start opens the membership with this node alone in it. Dialing ends with ctx.
func (g *gossip) start(ctx context.Context) error {
	keys, err := gossipKeys(g.conf.Key, g.conf.Keys)
	if err != nil {
		return err
	}
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label = g.name, gossipLabel
	c.Transport, c.Logger = g.transport, g.logger()
	c.Delegate, c.Events, c.Conflict = (*delegate)(g), (*events)(g), (*events)(g)
	c.GossipInterval, c.GossipNodes = 100*time.Millisecond, 4 // p99 0.6 s at 1,000 nodes, 0.1 kB/s when idle
	c.PushPullInterval = 10 * time.Second
	c.TCPTimeout = 5 * time.Second
	c.DeadNodeReclaimTime = 10 * time.Second // a container comes back with another address
	c.EnableCompression = false              // our messages are dense already
	if bound, ok := g.address(); ok {
		g.transport.(*transport).ctx = ctx
		c.BindAddr, c.BindPort = bound.Addr().String(), int(bound.Port())
	}
	if a := g.conf.Advertise; a.IsValid() {
		c.AdvertiseAddr, c.AdvertisePort = a.Addr().String(), int(a.Port())
	}
	if len(keys) > 0 {
		if c.Keyring, err = memberlist.NewKeyring(keys, keys[0]); err != nil {
			return fmt.Errorf("gossip.key: %w", err)
		}
	}
	g.mu.Lock()
	g.ring = c.Keyring
	g.mu.Unlock()
	if g.list, err = memberlist.Create(c); err != nil {
		g.close()
		return fmt.Errorf("gossip.listen %v: %w", g.conf.Listen, err)
	}
	g.post = g.list.SendBestEffort
	return nil
}

// gossipKey reads the key of a configuration: nil for none.
func gossipKey(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	key, err := base64.StdEncoding.DecodeString(text)
	switch {
	case err != nil:
		return nil, fmt.Errorf("gossip.key: %w, expected base64", err)
	case len(key) != 16 && len(key) != 24 && len(key) != 32:
		return nil, fmt.Errorf("gossip.key: %d octets, expected 16, 24 or 32", len(key))
	}
	return key, nil
}

// gossipKeys reads the key that is used, first, and those that are understood beside it.
func gossipKeys(key string, more []string) ([][]byte, error) {
	var keys [][]byte
	for _, text := range append([]string{key}, more...) {
		k, err := gossipKey(text)
		if err != nil {
			return nil, err
		}
		if k != nil {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// setKeys changes the keys of a membership that has some.
func (g *gossip) setKeys(key string, more []string) error {
	keys, err := gossipKeys(key, more)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.ring == nil && len(keys) == 0:
		return nil
	case g.ring == nil || len(keys) == 0:
		return errors.New("gossip.key: a gossip with a key stays one, and one without too: restart the node")
	}
	for _, k := range keys {
		if err := g.ring.AddKey(k); err != nil {
			return fmt.Errorf("gossip.key: %w", err)
		}
	}
	if err := g.ring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("gossip.key: %w", err)
	}
	for _, old := range g.ring.GetKeys() {
		if !slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, old) }) {
			if err := g.ring.RemoveKey(old); err != nil {
				return fmt.Errorf("gossip.key: %w", err)
			}
		}
	}
	return nil
}

// join looks for peers until ctx ends: soon again while a seed is missing, and now and then
// for ever.
func (g *gossip) join(ctx context.Context) {
	for wait := rejoinFirst; ; {
		pause := rejoinIdle
		if !g.joinOnce(ctx) {
			pause, wait = wait, min(2*wait, rejoinSoon)
			if wait == rejoinSoon && g.size() == 0 && g.alone.pass() {
				g.log.Warn("no gossip peer answers, verdicts are this node's own", "join", g.conf.Join)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration((0.5 + rand.Float64()) * float64(pause))):
		case <-g.again:
			select { // not all of one side at once
			case <-ctx.Done():
				return
			case <-time.After(time.Duration(rand.Float64() * float64(rejoinFirst))):
			}
			g.reunite()
		}
	}
}

// reunite exchanges states with one of the dead, whose side of a partition tells of the rest.
func (g *gossip) reunite() {
	g.mu.Lock()
	var addr string
	for _, d := range g.dead { // any
		addr = d.Address()
		break
	}
	g.mu.Unlock()
	if addr == "" {
		return
	}
	if _, err := g.list.Join([]string{addr}); err != nil {
		g.log.Debug("a peer that died does not answer yet", "address", addr, "error", err)
	}
}

// joinOnce exchanges state with every seed that is no peer yet, and reports whether none is
// missing. A seed that is a black hole delays no other.
func (g *gossip) joinOnce(ctx context.Context) bool {
	known := make(map[string]bool)
	for _, p := range g.members() {
		known[p.Address()] = true
	}
	var missing atomic.Bool
	var wg sync.WaitGroup
	for _, seed := range g.conf.Join {
		wg.Go(func() {
			addrs, err := resolve(ctx, seed)
			if err == nil {
				addrs = slices.DeleteFunc(addrs, func(a string) bool { return known[a] || g.isSelf(a) })
				if len(addrs) == 0 || ctx.Err() != nil {
					return
				}
				_, err = g.list.Join(addrs)
			}
			if err != nil {
				missing.Store(true)
				g.log.Debug("gossip seed does not answer", "seed", seed, "error", err)
			}
		})
	}
	wg.Wait()
	return !missing.Load()
}

func (g *gossip) isSelf(addr string) bool {
	a, err := netip.ParseAddrPort(addr)
	bound, ok := g.address()
	return err == nil && (a == g.conf.Advertise || ok && a == bound)
}

// resolve returns the addresses of a host and port.
func resolve(ctx context.Context, hostPort string) ([]string, error) {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	addrs := make([]string, len(ips))
	for i, ip := range ips {
		addrs[i] = net.JoinHostPort(ip.Unmap().String(), port)
	}
	return addrs, nil
}

// stop tells the peers that this node leaves, and closes the membership. What memberlist
// still has running ends by itself within its own time-outs.
func (g *gossip) stop() {
	if err := g.list.Leave(time.Second); err != nil {
		g.log.Debug("gossip leave", "error", err)
	}
	_ = g.list.Shutdown()
}

// members returns the peers in order of name, without this node. The caller must not change them.
func (g *gossip) members() []memberlist.Node {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.order == nil {
		g.order = slices.SortedFunc(maps.Values(g.peers), func(a, b memberlist.Node) int { return strings.Compare(a.Name, b.Name) })
	}
	return g.order
}

func (g *gossip) size() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.peers)
}

// deadPeer is a member that was lost.
type deadPeer struct {
	memberlist.Node
	at time.Time
}

// targets returns whom a beat is for: the peers, and those that died not long ago. If they
// only were on the other side of a partition, they hear at once that it has healed.
func (g *gossip) targets() []memberlist.Node {
	peers := slices.Clip(g.members())
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(g.dead)) {
		if d := g.dead[name]; time.Since(d.at) < forgetAfter {
			peers = append(peers, d.Node)
		} else {
			delete(g.dead, name)
		}
	}
	return peers
}

// heard says that a message of a node came: one of the dead is a reason to join it.
func (g *gossip) heard(node string) {
	g.mu.Lock()
	_, was := g.dead[node]
	g.mu.Unlock()
	if was {
		nudge(g.again)
	}
}

// period returns how long a round over all peers takes with so many messages a heartbeat.
func (g *gossip) period(messages int) time.Duration {
	rounds := (g.size()*messages + sendBudget - 1) / sendBudget
	return time.Duration(max(1, rounds)) * heartbeat
}

// beat sends the messages to as many peers as the budget allows, and to the others with the
// next beats. Nobody waits and nothing is repeated: the next beat says it all again.
func (g *gossip) beat(messages [][]byte) { g.round(g.targets(), messages, sendBudget, &g.next) }

// spread is beat for a note, with a budget of its own.
func (g *gossip) spread(note [][]byte) {
	if len(note) > 0 {
		g.round(g.members(), note, noteBudget, &g.noted)
	}
}

// round sends the messages to as many peers as the budget allows, at least one, from next on.
func (g *gossip) round(peers []memberlist.Node, messages [][]byte, budget int, next *int) {
	n := min(len(peers), max(1, budget/max(1, len(messages))))
	g.mu.Lock()
	first := *next
	*next += n
	g.mu.Unlock()
	for i := range n {
		g.send(&peers[(first+i)%len(peers)], messages)
	}
}

// tell sends the messages at once to every peer that the budget allows.
func (g *gossip) tell(messages [][]byte) {
	peers := slices.Clone(g.members())
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	for i := range peers[:min(len(peers), sendBudget)] {
		g.send(&peers[i], messages)
	}
}

func (g *gossip) send(peer *memberlist.Node, messages [][]byte) {
	for _, m := range messages {
		if err := g.post(peer, m); err != nil {
			g.stats.dropped[dropSend].Add(1)
			continue
		}
		g.stats.gossipOut.Add(1)
	}
}

// sendTo sends packets to the peer of that name, and reports whether it is one.
func (g *gossip) sendTo(peer string, packets [][]byte) bool {
	g.mu.Lock()
	p, ok := g.peers[peer]
	g.mu.Unlock()
	if ok {
		g.send(&p, packets)
	}
	return ok
}

// hasRoom reports whether a broadcast may wait to be spread; if not, that is counted.
func (g *gossip) hasRoom() bool {
	if g.queue.NumQueued() >= maxBroadcasts {
		g.stats.dropped[dropQueue].Add(1)
		return false
	}
	return true
}

// broadcast lets memberlist spread a message from node to node, which reaches those that
// this node cannot. A message replaces one that waits about the same vantage and endpoint.
func (g *gossip) broadcast(node string, id gslb.EndpointID, message []byte) {
	if g.size() == 0 {
		return
	}
	if !g.hasRoom() {
		return
	}
	g.queue.QueueBroadcast(&broadcast{name: node + "\x00" + id.Pool + "\x00" + id.Addr.String(), message: message})
}

// broadcast is one message in memberlist's queue.
type broadcast struct {
	name    string
	message []byte
}

func (b *broadcast) Name() string    { return b.name }
func (b *broadcast) Message() []byte { return b.message }
func (b *broadcast) Finished()       {}
func (b *broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(*broadcast)
	return ok && o.name == b.name
}

// delegate is the side of a gossip that memberlist asks and tells about messages.
type delegate gossip

func (d *delegate) NodeMeta(limit int) []byte {
	b := appendString(appendString([]byte{wireVersion}, d.site, maxSite), d.role, maxSite)
	return b[:min(limit, len(b))]
}

// readMeta is the other end of NodeMeta. What is not of our version is of no site.
func readMeta(b []byte) (site, role string) {
	d := decoder{b: b}
	if d.byte() != wireVersion {
		return "", ""
	}
	site, role = d.string(maxSite), d.string(maxSite)
	if d.err != nil {
		return "", ""
	}
	return site, role
}

func (d *delegate) NotifyMsg(b []byte) { d.hear(slices.Clone(b)) } // memberlist may use it again

func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.queue.GetBroadcasts(overhead, limit)
}

func (d *delegate) LocalState(join bool) []byte { return d.state(join) }

func (d *delegate) MergeRemoteState(b []byte, _ bool) { d.hear(b) }

// events is the side of a gossip that memberlist tells about members. It holds its lock of
// nodes meanwhile, so nothing here may call it back.
type events gossip

func (e *events) NotifyJoin(n *memberlist.Node) {
	if e.put(n) {
		site, _ := readMeta(n.Meta)
		e.log.Info("gossip peer joined", "peer", n.Name, "site", site, "address", n.Address())
	}
}

func (e *events) NotifyUpdate(n *memberlist.Node) { e.put(n) }

func (e *events) put(n *memberlist.Node) bool {
	if n.Name == e.name {
		return false
	}
	peer := *n
	peer.Addr, peer.Meta = slices.Clone(n.Addr), bytes.Clone(n.Meta)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.peers[n.Name], e.order = peer, nil
	delete(e.dead, n.Name)
	return true
}

func (e *events) NotifyLeave(n *memberlist.Node) {
	if n.Name == e.name {
		return
	}
	e.mu.Lock()
	if p, ok := e.peers[n.Name]; ok && n.State != memberlist.StateLeft && len(e.dead) < maxNodes {
		e.dead[n.Name] = deadPeer{p, time.Now()}
	}
	delete(e.peers, n.Name)
	e.order = nil
	e.mu.Unlock()
	verb := "died"
	if n.State == memberlist.StateLeft {
		verb = "left"
	}
	e.log.Info("gossip peer "+verb, "peer", n.Name)
	e.lost(n.Name)
}

func (e *events) NotifyConflict(existing, other *memberlist.Node) {
	e.stats.dropped[dropConflict].Add(1)
	if e.conflict.pass() {
		e.log.Warn("two gossip nodes have one name", "name", existing.Name, "address", existing.Address(), "other", other.Address())
	}
}

// transport is memberlist's over sockets, with dialing that ends when ctx does.
type transport struct {
	*memberlist.NetTransport
	ctx context.Context
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	return d.DialContext(t.ctx, "tcp", a.Addr)
}

// logger returns memberlist's way to log.
func (g *gossip) logger() *log.Logger {
	return log.New(&logBridge{log: g.log, stats: g.stats}, "", 0)
}

// logBridge takes memberlist's log lines. Most are for developers and go to debug, as many as
// one can read. Those that say that a stranger was refused are counted, and told once a
// minute: memberlist has no other way to tell.
type logBridge struct {
	log     *slog.Logger
	stats   *stats
	refused seldom

	mu     sync.Mutex
	second int64 // guarded by mu
	lines  int   // guarded by mu: in that second
}

// refusals are the words by which to know memberlist's lines about messages that it refused
// for their key, label or framing.
var refusals = [][]byte{
	[]byte("Decrypt packet failed"), []byte("could decrypt"), []byte("not encrypted"), []byte("is encrypted"),
	[]byte("unacceptable label"), []byte("cannot decode label"), []byte("label header"),
	[]byte("larger than limit"), []byte("exceeds limit"), []byte("not supported"), []byte("invalid msgType"),
}

const maxLinesASecond = 20

func (l *logBridge) Write(line []byte) (int, error) {
	text := func() string { return printable(strings.TrimSpace(string(line)), 300) }
	for _, words := range refusals {
		// A line about our own attempt to reach a seed is not about a stranger.
		if bytes.Contains(line, words) && !bytes.Contains(line, []byte("failed to join")) {
			l.stats.dropped[dropRefused].Add(1)
			if l.refused.pass() {
				l.log.Warn("gossip from a stranger refused", "cause", text(), "refused", l.stats.dropped[dropRefused].Load())
			}
			return len(line), nil
		}
	}
	if l.log.Enabled(context.Background(), slog.LevelDebug) && l.room() {
		l.log.Debug(text())
	}
	return len(line), nil
}

func (l *logBridge) room() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now().Unix(); now != l.second {
		l.second, l.lines = now, 0
	}
	l.lines++
	return l.lines <= maxLinesASecond
}
