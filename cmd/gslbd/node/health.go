package node

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/health"
)

// healthOptions returns what the node's monitor is made of.
func (n *Node) healthOptions() (health.Options, error) {
	nc := n.opts.File.Node
	key, err := signingKey(nc.Data)
	if err != nil {
		return health.Options{}, fmt.Errorf("node.data: %w", err)
	}
	if nc.Gossip.Listen.IsValid() {
		n.log.Info("what this node finds is signed", "key", base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey)))
	}
	return health.Options{
		Node: nc.Name, Site: nc.Site, Role: nc.Health.Role, Gossip: nc.Gossip, Logger: n.log,
		Key: key, References: nc.Health.References, Exec: nc.Health.Exec,
		Attempted: n.cold.probed,
	}, nil
}

// signingKey returns the key of the folder, made if there is none; without a folder a new one
// each time.
func signingKey(folder string) (ed25519.PrivateKey, error) {
	_, fresh, err := ed25519.GenerateKey(nil)
	if err != nil || folder == "" {
		return fresh, err
	}
	path := filepath.Join(folder, "node-key.pem")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		der, err := x509.MarshalPKCS8PrivateKey(fresh)
		if err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		return fresh, errors.Join(pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der}), f.Sync(), f.Close())
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s: not PEM; expected an ed25519 key", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := k.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("%s: expected an ed25519 key in PKCS 8", path)
	}
	return key, nil
}

const (
	// demandEvery is how often the node looks which pools are asked for, and idleAfter how long
	// nobody must ask for one until its probes may go slower.
	demandEvery = 5 * time.Second
	idleAfter   = 10 * time.Minute
)

// watchDemand tells the monitor which pools nobody asks for, until ctx ends.
func (n *Node) watchDemand(ctx context.Context) error {
	d := demand{asked: make(map[string]time.Time), count: make(map[string]uint64)}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(demandEvery):
		}
		v := n.build.lastView()
		if v == nil {
			continue
		}
		counts := make(map[string]uint64)
		for _, p := range n.dns.Stats().Pools {
			counts[p.Service] += p.Decisions
		}
		n.health.SetIdle(d.idle(v.Objects, counts, time.Now()))
	}
}

// demand is what is asked for of each service.
type demand struct {
	asked map[string]time.Time // when it was asked for last, or first known
	count map[string]uint64
}

// idle returns the pools of which no service was asked for in a while, given the decisions of
// each. A pool that proxies use, or of no service, is never idle.
func (d *demand) idle(o *config.Objects, counts map[string]uint64, now time.Time) map[string]bool {
	idle := make(map[string]bool)
	busy := make(map[string]bool)
	for name, p := range o.Pools {
		busy[name] = busy[name] || p.Upstream != nil
		for _, up := range p.Upstreams() {
			for pool := range up.Pools {
				busy[pool] = true
			}
		}
	}
	for name, s := range o.Services {
		if last, ok := d.asked[name]; !ok || counts[name] != d.count[name] {
			d.asked[name], d.count[name] = now, counts[name]
		} else if now.Sub(last) >= idleAfter {
			for pool := range s.Pools {
				idle[pool] = true
			}
			continue
		}
		for pool := range s.Pools {
			busy[pool] = true
		}
	}
	for pool := range busy {
		if busy[pool] {
			delete(idle, pool)
		}
	}
	return idle
}
