package xds

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// TestEnvoySpills asks a site for twice its capacity, through a real Envoy: what is over the
// capacity goes to the next site within a few reports, no request fails, and it all comes
// back when the load does.
func TestEnvoySpills(t *testing.T) {
	envoyBinary(t)
	const capacity = 10.0 // so little that the slowest machine can ask for twice of it
	const report = 500 * time.Millisecond
	s := serve(t, Options{Report: report})
	eu, us := runBackend(t, "eu", "127.0.0.2:0", nil), runBackend(t, "us", "127.0.0.3:0", nil)
	port := freePort(t)
	text := sites + fmt.Sprintf(`
pools:
  gfe: {site: eu-1, port: %d, endpoints: [{address: 127.0.0.1}], upstream: [fe-eu, fe-us], proxy: {listen: "127.0.0.1:%d"}}
  fe-eu: {site: eu-1, probe: accept, capacity: %g, endpoints: [%s]}
  fe-us: {site: us, probe: accept, capacity: 10000, endpoints: [%s]}
`, port, port, capacity, eu.endpointYAML(), us.endpointYAML())
	w := world(t, nil, text, state{})
	s.Set(w)
	runEnvoy(t, gfeBootstrap(s))
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	answered(t, url, "", "eu")

	// As a node does: a world whenever the load may have changed.
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(report / 2)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			w = world(t, w, text, state{loads: s.PoolLoads()})
			s.Set(w)
		}
	})
	defer wg.Wait()
	defer close(end)

	// offer sends at a rate, whatever becomes of the answers, until stop is called.
	var failed []error
	var mu sync.Mutex
	offer := func(rate float64) (stop func()) {
		done := make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() {
			client := &http.Client{Timeout: 10 * time.Second}
			defer client.CloseIdleConnections()
			tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				all.Go(func() {
					if _, err := get(client, url, ""); err != nil {
						mu.Lock()
						failed = append(failed, err)
						mu.Unlock()
					}
				})
			}
		})
		return sync.OnceFunc(func() { close(done); all.Wait() })
	}
	// rates measures who is asked for how much over two seconds.
	rates := func() (atEU, atUS float64) {
		a, b, start := eu.hits.Load(), us.hits.Load(), time.Now()
		time.Sleep(2 * time.Second) // the interval that is measured
		took := time.Since(start).Seconds()
		return float64(eu.hits.Load()-a) / took, float64(us.hits.Load()-b) / took
	}
	stop := offer(2 * capacity)
	defer stop()
	started := time.Now()
	eventually(t, 2*patience, func() string {
		atEU, atUS := rates()
		if atEU > capacity*1.2 || atUS < capacity/2 {
			return fmt.Sprintf("eu is asked for %.0f/s and us for %.0f/s; want eu at its capacity, %.0f/s", atEU, atUS, capacity)
		}
		return ""
	})
	t.Logf("within capacity %v after twice of it was asked for, the two seconds that were measured included", time.Since(started).Round(100*time.Millisecond))
	stop()
	stop = offer(capacity / 2)
	defer stop()
	eventually(t, 2*patience, func() string {
		if atEU, atUS := rates(); atUS > 0 || atEU < capacity/4 {
			return fmt.Sprintf("eu is asked for %.0f/s and us for %.0f/s; want all at eu again", atEU, atUS)
		}
		return ""
	})
	stop()
	if len(failed) > 0 {
		t.Errorf("%d requests failed, the first: %v", len(failed), failed[0])
	}
}
