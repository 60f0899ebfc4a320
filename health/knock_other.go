//go:build !linux

package health

import (
	"errors"
	"net/netip"
	"time"
)

// knocker is for Linux alone.
type knocker struct{}

type knock struct{ reply *reply }

func newKnock(netip.AddrPort, *httpProbe, *job) *knock { return nil }

func newKnocker(chan<- answer, *budgeted) (*knocker, error) { return nil, errors.ErrUnsupported }

func (*knocker) run()                        {}
func (*knocker) close()                      {}
func (*knocker) start(*knock, time.Duration) {}
func (*knocker) giveUp(*knock)               {}
func (*knocker) release(*knock)              {}
func (*knocker) forget(*knock, bool) bool    { return false }
