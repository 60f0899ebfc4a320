//go:build !linux

package health

import (
	"context"
	"errors"
	"net/netip"
)

// knocker is for Linux alone.
type knocker struct{}

func newKnocker() (*knocker, error) { return nil, errors.ErrUnsupported }

func (*knocker) run()   {}
func (*knocker) close() {}

func (*knocker) knock(context.Context, netip.AddrPort) error { return errors.ErrUnsupported }
