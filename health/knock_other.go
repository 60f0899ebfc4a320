//go:build !linux

package health

import (
	"errors"
	"net/netip"
	"time"
)

// knocker is for Linux alone.
type knocker struct{}

type knock struct{}

func newKnock(netip.AddrPort, []byte, *job) *knock { return nil }

func (*knock) text() ([]byte, error) { return nil, nil }

func newKnocker(chan<- answer) (*knocker, error) { return nil, errors.ErrUnsupported }

func (*knocker) run()                        {}
func (*knocker) close()                      {}
func (*knocker) start(*knock, time.Duration) {}
func (*knocker) giveUp(*knock)               {}
func (*knocker) hear(*knock)                 {}
func (*knocker) forget(*knock) bool          { return false }
