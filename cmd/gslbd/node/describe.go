package node

import (
	"github.com/meridian-gslb/meridian/dns"
	"github.com/meridian-gslb/meridian/tracing"
)

// describe says what a record stands for, by the snapshot that decided; nothing if that is gone.
// Only sampled records come here.
func (b *builder) describe(q *tracing.Query) tracing.Facts {
	if s := b.archive.Live(q.Revision); s != nil {
		return dns.Describe(s, q)
	}
	return tracing.Facts{}
}

// brief is describe without the engine's reasons. Only the goroutine of the recorder calls it.
func (b *builder) brief(q *tracing.Query) tracing.Facts {
	if s := b.archive.Live(q.Revision); s != nil {
		return dns.DescribeBriefly(s, q, &b.again)
	}
	return tracing.Facts{}
}
