package main

import (
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestAsks asks a node once what the soak asks it for minutes: what it takes for right is right.
func TestAsks(t *testing.T) {
	s, node, err := start(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := node.Stop(); err != nil {
			t.Error(err)
		}
	}()
	c, err := dns.DialTimeout("tcp", s.server, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	reply := make([]byte, dns.MaxMsgSize)
	for i, packet := range s.packets {
		if _, err := c.Write(packet); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(reply)
		if err != nil {
			t.Fatal(err)
		}
		s.judge(i, reply[:n])
	}
	if n := s.wrong.Load(); n > 0 {
		t.Errorf("%d of %d answers are wrong", n, len(asks))
	}
}
