#!/usr/bin/env bash
# Checks the spans of a node, and those that it passes on, against a real trace backend: Jaeger
# takes them over OTLP/HTTP and OTLP/gRPC and must tell the same of each as the node's own
# memory does: names, parents, links, kinds, times, every attribute.
#
#   JAEGER=path/to/jaeger testdata/ci/jaeger.sh
#
# Without JAEGER it is built from its module, which takes a core four minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
dir=$(mktemp -d /tmp/meridian-jaeger.XXXXXX)
pids=()
cleanup() {
  code=$?
  set +e
  for p in "${pids[@]}"; do kill "$p"; wait "$p"; done 2>/dev/null
  [ $code -eq 0 ] || { say "failed"; tail -n 20 "$dir"/*.log; }
  rm -rf "$dir"
  exit $code
}
trap cleanup EXIT

[ -n "${JAEGER:-}" ] || { say "Jaeger"; JAEGER=$(testdata/ci/standins.sh jaeger); }

# Ports of loopback that were free a moment ago.
read -r otlp_http otlp_grpc query query_grpc admin dns < <(python3 - <<'PY'
import socket
held = [socket.socket() for _ in range(6)]
for s in held: s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in held])
PY
)
cat >"$dir/jaeger.yaml" <<EOF
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines: {traces: {receivers: [otlp], processors: [], exporters: [jaeger_storage_exporter]}}
  telemetry: {metrics: {level: none}}
extensions:
  jaeger_storage: {backends: {memory: {memory: {max_traces: 1000}}}}
  jaeger_query: {storage: {traces: memory}, http: {endpoint: "127.0.0.1:$query"}, grpc: {endpoint: "127.0.0.1:$query_grpc"}}
receivers: {otlp: {protocols: {http: {endpoint: "127.0.0.1:$otlp_http"}, grpc: {endpoint: "127.0.0.1:$otlp_grpc"}}}}
exporters: {jaeger_storage_exporter: {trace_storage: memory}}
EOF
OTEL_TRACES_SAMPLER=always_off "$JAEGER" --config "$dir/jaeger.yaml" >"$dir/jaeger.log" 2>&1 &   # no spans of its own
pids+=($!)
go build -o "$dir/" ./cmd/gslbd

until_ok() { # SECONDS COMMAND…
  local limit=$1 end=$((SECONDS + $1)); shift
  while [ $SECONDS -lt $end ]; do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
  say "FAIL  not within $limit s: $*"
  return 1
}
until_ok 60 curl -sf "http://127.0.0.1:$query/api/services"

# What both say of a trace, a line for each span and each of its attributes.
of_node='[.spans[]?, .linked[]?] | .[] | select(.traceId == $id) | . as $s |
  "\(.spanId) \(.service) \(.name) \(.kind) parent=\(.parentId // "")",
  "\(.spanId) start=\(.start | .[:26] | gsub("[^0-9.:T-]"; "") | sub("\\.$"; ""))",
  (.links[]? | "\($s.spanId) link \(.traceId) \(.spanId)"),
  (.attributes // {} | to_entries[] | "\($s.spanId) \(.key)=\(.value | if type == "array" then tojson else tostring end)")'
of_jaeger='.data[0] as $t | $t.spans[] | . as $s |
  ([.tags[] | select(.key == "span.kind") | .value] | if length == 0 then "internal" else .[0] end) as $kind |
  "\(.spanID) \($t.processes[.processID].serviceName) \(.operationName) \($kind) parent=\([.references[] | select(.refType == "CHILD_OF" and .traceID == $s.traceID) | .spanID] | join(","))",
  "\(.spanID) start=\(.startTime as $us | ($us / 1000000 | floor | todate | .[:19]) + "." + ("000000" + ($us % 1000000 | tostring))[-6:])",
  (.references[] | select(.refType == "FOLLOWS_FROM") | "\($s.spanID) link \(.traceID) \(.spanID)"),
  (.tags[] | select(.key | IN("span.kind", "otel.scope.name", "otel.scope.version", "otel.status_code", "otel.status_description", "error", "internal.span.format", "span.flags") | not)
    | "\($s.spanID) \(.key)=\(.value | tostring)")'

# The node's times have nanoseconds, Jaeger's microseconds.
node_says() { curl -sf "http://127.0.0.1:$admin/api/v1/traces/$1" | jq -r --arg id "$1" "$of_node" | pad_micros | sort; }
jaeger_says() { curl -sf "http://127.0.0.1:$query/api/traces/$1" | jq -r "$of_jaeger" | sort; }
pad_micros() { awk '/ start=/ { if ($0 !~ /\./) $0 = $0 "."; split($0, p, "."); $0 = p[1] "." substr(p[2] "000000", 1, 6) } { print }'; }
same() { # WHAT TRACE LINES: at least so many
  local what=$1 id=$2 least=$3
  agree() { node_says "$id" >"$dir/node" && jaeger_says "$id" >"$dir/jaeger" && [ "$(wc -l <"$dir/node")" -ge "$least" ] && cmp -s "$dir/node" "$dir/jaeger"; }
  until_ok 60 agree || { diff "$dir/node" "$dir/jaeger" | head -n 20; return 1; }
  say "ok    $what: $(wc -l <"$dir/node") lines, all the same"
}

id() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

epoch=0
for endpoint in "http://127.0.0.1:$otlp_http" "grpc://127.0.0.1:$otlp_grpc"; do
  epoch=$((epoch + 1))
  cat >"$dir/gslb.yaml" <<EOF
node:
  name: ns1
  site: eu
  dns: ["127.0.0.1:$dns"]
  admin: 127.0.0.1:$admin
  otlp: {endpoint: "$endpoint", gzip: true, sample: 0}
  tracing: {answerIds: {keys: ["c2l4dGVlbiBvY3RldHMhIQ=="], epoch: 5${epoch}s}}   # another epoch, other ids
sites: {eu: {lat: 50, lon: 8}}
zones:
  - name: example.com
    records: |
      @ 60 IN SOA ns hostmaster 1 60 60 60 60
      @ 60 IN NS ns
      ns 60 IN A 192.0.2.53
pools:
  gfe-eu: {site: eu, answerIds: true, endpoints: [{address: "2001:db8:2::11"}, {address: 192.0.2.11}]}
  gfe-us: {site: eu, endpoints: [{address: 192.0.2.12}]}
services:
  www.example.com: {ttl: 30s, pools: {gfe-eu: {}, gfe-us: {standby: true}}, policy: [health]}
EOF
  "$dir/gslbd" -config "$dir/gslb.yaml" >"$dir/gslbd.log" 2>&1 &
  node=$!
  pids+=("$node")
  until_ok 60 curl -sf "http://127.0.0.1:$admin/readyz"

  # A query that belongs to a resolver's trace: 27 octets of EDNS option 65500.
  trace=$(id)
  vip=$(dig @127.0.0.1 -p "$dns" +short +ednsopt="65500:0000${trace}00f067aa0ba902b701" www.example.com AAAA +subnet=198.51.100.0/24)
  say "$endpoint: www.example.com AAAA is $vip"
  until_ok 60 curl -sf "http://127.0.0.1:$admin/api/v1/traces/$trace"
  same "the query over ${endpoint%%:*}" "$trace" 25
  decision=$(curl -sf "http://127.0.0.1:$admin/api/v1/traces/$trace" | jq -r '[.linked[] | select(.name == "gslb.decision")][0].traceId')
  same "its decision" "$decision" 8

  # The request that came of it, as a proxy exports it: the node adds the link.
  request=$(id)
  now=$(date +%s%N)
  curl -sf -H 'Content-Type: application/json' "http://127.0.0.1:$admin/v1/traces" -d '{"resourceSpans": [{
    "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "gfe"}}]},
    "scopeSpans": [{"spans": [{"traceId": "'"$request"'", "spanId": "00f067aa0ba902b8", "name": "GET", "kind": 2,
      "startTimeUnixNano": "'"$now"'", "endTimeUnixNano": "'"$((now + 5000000))"'",
      "attributes": [{"key": "gslb.vip", "value": {"stringValue": "'"$vip"'"}}, {"key": "http.response.status_code", "value": {"intValue": "200"}}]}]}]}]}' >/dev/null
  same "the request, with its link" "$request" 6
  grep -q "link $decision" "$dir/jaeger" && grep -q 'gslb.answer_age=' "$dir/jaeger" || { say "FAIL  no link to $decision, or no age:"; cat "$dir/jaeger"; exit 1; }

  kill "$node"
  wait "$node" 2>/dev/null || true
done
say "Jaeger tells of every span what the node does"
