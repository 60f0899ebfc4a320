package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
)

// lastChangeKey holds who made the last change through Apply, and what it left. Every Apply
// writes it and compares it, so that two that touch different objects still go one after the
// other: each is checked as a whole against what the other left. It stands among the objects, so
// that it is read and watched at one revision with them.
const lastChangeKey = config.Root + "meta/last-change"

// lastChange is its value.
type lastChange struct {
	Author string         `json:"author"`
	Time   time.Time      `json:"time"`
	Keys   []Key          `json:"keys"`
	Left   map[string]int `json:"left"` // how many objects of each of vitalKinds there are after it
}

// vitalKinds are the kinds that answers depend on: where most of one goes at once, that is most
// likely a mistake.
var vitalKinds = []string{"zones", "pools", "services"}

// readLastChange decodes the value of lastChangeKey; nil when it is none.
func readLastChange(data []byte) *lastChange {
	l := &lastChange{}
	if json.Unmarshal(data, l) != nil {
		return nil
	}
	return l
}

// meant reports whether the objects of which count says how many there are of a kind are those
// that the last Apply left: it was asked whether that is meant. A nil l is no Apply.
func (l *lastChange) meant(count func(kind string) int) bool {
	return l != nil && !slices.ContainsFunc(vitalKinds, func(kind string) bool {
		left, ok := l.Left[kind]
		return !ok || left != count(kind)
	})
}

// keyOf returns the object that an etcd key under config.Root names. A key of another shape
// gives a kind or a name that config.DecodeObject refuses.
func keyOf(key []byte) Key {
	kind, name, _ := strings.Cut(strings.TrimPrefix(string(key), config.Root), "/")
	return Key{kind, name}
}

// path returns the etcd key of k.
func (k Key) path() string { return config.Root + k.Kind + "/" + k.Name }

// dial returns a client of etcd. It does not wait for a connection, except to log in.
func dial(ctx context.Context, e config.Etcd, endpoints []string) (*clientv3.Client, error) {
	c := clientv3.Config{
		Context:     ctx,
		Endpoints:   endpoints,
		DialTimeout: 5 * time.Second,
		// Of a connection with a stream, as etcd ends one that is pinged without: then gRPC pings all of them half as often,
		// and again, until a watch that is cut off is noticed after many minutes. It also refuses pings that come closer than 5 s.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		MaxCallSendMsgSize:   maxRequest,
		Username:             e.Username,
		Password:             e.Password,
		Logger:               zap.NewNop(), // its errors come back to us as well
		// An etcd that comes back is found at once; gRPC waits up to two minutes.
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		})},
	}
	if e.TLS != (config.TLSFiles{}) {
		t, err := tlsConfig(e.TLS)
		if err != nil {
			return nil, err
		}
		c.TLS = t
	}
	cli, err := clientv3.New(c)
	if err != nil {
		return nil, fmt.Errorf("etcd %s: %w", strings.Join(endpoints, ", "), err)
	}
	return cli, nil
}

// tlsConfig reads PEM files. It is called for each connection, so that a renewed
// certificate is taken up.
func tlsConfig(f config.TLSFiles) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("etcd tls ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd tls ca: %s: no certificate; expected PEM", f.CA)
		}
	}
	if f.Cert != "" {
		cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("etcd tls cert: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// listing is every key under config.Root at one revision.
type listing struct {
	cluster  uint64
	revision int64
	kvs      []*mvccpb.KeyValue // ordered by key
}

// list reads every object at one revision, in pages. Any error is an error of the whole:
// no part is returned.
func list(ctx context.Context, cli *clientv3.Client, timeout time.Duration) (*listing, error) {
	const page = 500
	l := &listing{}
	end := clientv3.GetPrefixRangeEnd(config.Root)
	for from := config.Root; ; {
		ops := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(page)}
		if l.revision != 0 {
			ops = append(ops, clientv3.WithRev(l.revision))
		}
		r, err := get(ctx, cli, timeout, from, ops...)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", config.Root, err)
		}
		if l.revision == 0 {
			l.cluster, l.revision = r.Header.ClusterId, r.Header.Revision
		}
		l.kvs = append(l.kvs, r.Kvs...)
		if !r.More || len(r.Kvs) == 0 {
			return l, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

func get(ctx context.Context, cli *clientv3.Client, timeout time.Duration, key string, ops ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer from %s in %v", strings.Join(cli.Endpoints(), ", "), timeout))
	defer cancel()
	r, err := cli.Get(ctx, key, ops...)
	if errors.Is(err, context.DeadlineExceeded) {
		err = context.Cause(ctx)
	}
	return r, err
}
