package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// guard admits requests. A browser is somebody else's program on the operator's machine, so
// beside the token it is checked that no foreign page is behind a request:
//
//   - on loopback the Host must be an address or localhost, for a name may be a foreign
//     page's own, bound again to 127.0.0.1 (DNS rebinding);
//   - a write must not come from another origin (Sec-Fetch-Site, Origin), and its body must
//     be of a type that a plain HTML form cannot send;
//   - a write needs the bearer token where one is set, and loopback where none is.
//
// What machines probe and scrape (/healthz, /readyz, /metrics) is free of the first.
func (s *Server) guard(next http.Handler) http.Handler {
	origin := http.NewCrossOriginProtection()
	token := sha256.Sum256([]byte(s.o.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")

		loopback := onLoopback(r)
		if loopback && !probed(r.URL.Path) && !localHost(r.Host) {
			fail(w, http.StatusForbidden, fmt.Sprintf("host %q on a loopback address", r.Host), "use an address or localhost: a name may be another site's")
			return
		}
		if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions {
			next.ServeHTTP(w, r)
			return
		}
		if err := origin.Check(r); err != nil {
			fail(w, http.StatusForbidden, "a write from another site: "+err.Error(), "use gslbctl")
			return
		}
		if r.ContentLength != 0 && !plainType(r.Header.Get("Content-Type")) {
			fail(w, http.StatusUnsupportedMediaType, fmt.Sprintf("content type %q", r.Header.Get("Content-Type")), "send application/json or application/yaml")
			return
		}
		switch {
		case r.URL.Path == "/v1/traces": // spans change nothing; exporters carry no token of ours
		case s.o.Token == "" && !loopback:
			fail(w, http.StatusForbidden, "changes are taken on loopback only, for this node has no token", "set node.adminToken in its configuration")
			return
		case s.o.Token != "":
			given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			sum := sha256.Sum256([]byte(given))
			if !ok || subtle.ConstantTimeCompare(sum[:], token[:]) != 1 {
				h.Set("WWW-Authenticate", `Bearer realm="meridian"`)
				fail(w, http.StatusUnauthorized, "a change needs this node's token", "set MERIDIAN_TOKEN to its node.adminToken")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// onLoopback tells whether r came to a loopback address of this machine.
func onLoopback(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local == nil {
		return false
	}
	ap, err := netip.ParseAddrPort(local.String())
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// probed tells whether machines probe or scrape path by any name.
func probed(path string) bool {
	return path == "/healthz" || path == "/readyz" || path == "/metrics"
}

// localHost tells whether the Host of a request is an address or localhost.
func localHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// plainType tells whether a body of this type cannot come from an HTML form.
func plainType(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false
	}
	switch t {
	case "application/json", "application/yaml", "application/x-yaml", "text/yaml", "application/x-protobuf":
		return true
	}
	return false
}
