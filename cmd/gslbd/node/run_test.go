package node

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// runNode runs a node of those options, of which File is needed, until the end of the test, and
// returns once it answers queries. It says nothing and has one UDP worker.
func runNode(t *testing.T, opts Options) *Node {
	t.Helper()
	opts.Log, opts.Workers = slog.New(slog.DiscardHandler), 1
	n, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-n.Ready():
	case <-time.After(patience):
		t.Fatal("the node is not ready")
	}
	return n
}

// parse returns the configuration that text is.
func parse(t *testing.T, text string) *config.File {
	t.Helper()
	f, err := config.Parse("gslb.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}
