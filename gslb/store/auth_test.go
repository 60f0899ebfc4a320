package store

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// TestAuthEnds: what a node may read etcd by ends, and then its connection. It goes on with what
// it knows, says so, and follows again once it is let in.
func TestAuthEnds(t *testing.T) {
	listen := socket(t)
	embedded, err := NewEmbed(t.TempDir(), listen, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	c := embedded.config()
	c.BcryptCost = 4 // or the race detector makes a password take seconds
	server, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { embedded.muted.Store(true); server.Close() }()
	<-server.Server.ReadyNotify()
	e := &etcd{t: t, listen: listen}
	if e.raw, err = dial(t.Context(), config.Etcd{}, []string{listen}); err != nil {
		t.Fatal(err)
	}
	defer e.raw.Close()
	e.put(world...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	do := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	user := func(c *clientv3.Client, name, password, role string) {
		t.Helper()
		_, err := c.RoleAdd(ctx, role)
		_, err2 := c.UserAdd(ctx, name, password)
		_, err3 := c.UserGrantRole(ctx, name, role)
		do(err, err2, err3)
	}
	user(e.raw, "root", "of-root", "root")
	user(e.raw, "node", "first", "meridian")
	_, err = e.raw.RoleGrantPermission(ctx, "meridian", config.Root, clientv3.GetPrefixRangeEnd(config.Root), clientv3.PermissionType(clientv3.PermReadWrite))
	_, err2 := e.raw.AuthEnable(ctx)
	do(err, err2)
	root, err := dial(ctx, config.Etcd{Username: "root", Password: "of-root"}, []string{e.listen})
	do(err)
	defer root.Close()

	front := socket(t)
	relay := newRelay(t, front, e.listen)
	o := external(front, "")
	o.Etcd.Username, o.Etcd.Password = "node", "first"
	r := start(t, o, func(tm *timing) {
		tm.progress, tm.silence, tm.timeout = 50*time.Millisecond, time.Second, 2*time.Second
	})
	r.view("the world", hasPool("a"))
	r.status("a watch", func(s Status) bool { return s.Connected })

	_, err = root.UserChangePassword(ctx, "node", "second")
	do(err)
	relay.freeze(true)
	r.status("an error", func(s Status) bool { return !s.Connected && s.Error != "" })
	relay.freeze(false)
	r.status("that it is not let in", func(s Status) bool { return !s.Connected && strings.Contains(s.Error, "authentication failed") })
	_, err = root.Put(ctx, config.Root+"pools/c", `{"site":"eu"}`)
	do(err)
	if v, ok := r.Latest(); !ok || names(v, "pools") != "a b" {
		t.Errorf("pools %s while not let in, want a b", names(v, "pools"))
	}
	_, err = root.UserChangePassword(ctx, "node", "first")
	do(err)
	r.view("what came meanwhile", hasPool("c"))
	r.status("no error", func(s Status) bool { return s.Connected && s.Error == "" })
}
