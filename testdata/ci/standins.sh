#!/usr/bin/env bash
# Images for machines that can pull none: the images of docker-compose.yml under their own names, each made of the same
# program as this machine has it. What cannot be had here is left out, and said.
#
#   standins.sh roots     puts the programs and their libraries together in dist/: needs the network for Go modules
#   standins.sh images    builds the images from there
#   standins.sh           both
#   standins.sh jaeger    builds the trace backend from its Go module, once (four minutes of one core), and prints its path
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
export COMPOSE_DOCKER_CLI_BUILD=0 DOCKER_BUILDKIT=0   # its builder is an image, too

cache=${XDG_CACHE_HOME:-$HOME/.cache}/meridian-ci   # where .ci/run puts what is not in Debian

# root NAME PROGRAM…: dist/NAME with these programs and the libraries that they load, where this machine has them.
root() {
  local dir=dist/$1 p real lib; shift
  rm -rf "$dir"; mkdir -p "$dir/tmp" "$dir/etc"; chmod 1777 "$dir/tmp"
  printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$dir/etc/passwd"
  for p in "$@"; do
    real=$(readlink -f "$(type -P "$p")") || { echo "standins: no $p on this machine" >&2; exit 1; }
    install -D "$real" "$dir/usr/bin/${p##*/}"
    for lib in $(ldd "$real" 2>/dev/null | grep -oE '/[^ ]+'); do
      [ -e "$dir$lib" ] || install -D "$(readlink -f "$lib")" "$dir$lib"
    done
  done
}

# image NAME KEYWORD LINE…: the image of docker-compose.yml whose name has KEYWORD, of dist/NAME, and more lines for its Dockerfile.
image() {
  local name=$1 tag; tag=$(awk -v k="$2" '$1 == "image:" && index($2, k) { print $2; exit }' docker-compose.yml); shift 2
  { echo "FROM scratch"; echo "COPY . /"; echo "ENV PATH=/usr/bin:/bin"; printf '%s\n' "$@"; } | docker build -q -t "$tag" -f - "dist/$name" >/dev/null
  echo "standins: $tag"
}

roots() {
  root tools bash sh cat cp mkdir mv rm chmod touch sleep sort head tail seq wc tr date sed grep awk env cut timeout mktemp paste dig curl ip tc jq openssl unbound
  install -D /etc/ssl/openssl.cnf dist/tools/etc/ssl/openssl.cnf
  install -D /etc/ssl/openssl.cnf dist/tools/usr/lib/ssl/openssl.cnf
  ln -s usr/bin dist/tools/bin
  root envoy "${ENVOY:-$(type -P envoy || echo "$cache/envoy/_bin/envoy")}"
  root prometheus prometheus; mkdir -p dist/prometheus/prometheus
  mkdir -p dist/etcd/usr/bin
  CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o dist/etcd/usr/bin/etcd go.etcd.io/etcd/server/v3
  rm -rf dist/jaeger
  if [ -x "${JAEGER:-$jaeger}" ]; then root jaeger "${JAEGER:-$jaeger}"; fi
}

jaeger=$cache/jaeger-1.76.0-memory/jaeger   # its releases 2.x are versions 1.x of the module: 2.13.0

# jaeger_parts takes out of Jaeger's source, in this folder, what does not receive OTLP, store in memory or answer queries: the
# clients of databases and queues alone are two thirds of what there is to compile.
jaeger_parts() {
  local storage=cmd/jaeger/internal/extension/jaegerstorage
  sed -i -E '/(adaptivesampling|attributesprocessor|basicauth|expvar|filterprocessor|healthcheckv2|jaegerreceiver|kafka|pprof|prometheusexporter|remotesampling|remotestorage|sigv4auth|spanmetrics|storagecleaner|tailsampling|zipkin|zpages)/d' cmd/jaeger/internal/components.go
  sed -i '/docs/d; /mappings/d' cmd/jaeger/main.go
  sed -i '/^type InitArchiveStorageFn/,/^}/d; /v1\/factory"/d; /v1adapter"/d; /querysvc"/d' cmd/query/app/flags.go
  sed -i -E '/^\t([a-z]+ )?"(time|.*(promcfg|config|prometheus|badger|cassandra|elasticsearch|clickhouse|v2\/grpc|extensionauth))"$/d
    /^type PrometheusConfiguration/,/^}/d
    /^\t(Badger|GRPC|Cassandra|Elasticsearch|Opensearch|ClickHouse|Prometheus) +\*/d
    /^\tif conf.IsSet\("(badger|grpc|cassandra|elasticsearch|opensearch|prometheus)/,/^\t}/d
    /^func .*(get|resolve)Authenticator/,/^}/d
    /^\t\tcase cfg\.(Badger|Prometheus)/,/^\t\tdefault:/{/default:/!d}
    s/for metricStorageName, cfg :=/for metricStorageName :=/' "$storage/config.go" "$storage/extension.go"
}

jaeger() {
  local build
  if [ ! -x "$jaeger" ]; then
    build=$(mktemp -d)
    (
      cd "$build"
      go mod init standins && go get -tool github.com/jaegertracing/jaeger/cmd/jaeger@v1.76.0 &&
        cp -r "$(go list -m -f '{{.Dir}}' github.com/jaegertracing/jaeger)" source && chmod -R u+w source && (cd source && jaeger_parts) &&
        go mod edit -replace github.com/jaegertracing/jaeger=./source &&
        go build -trimpath -ldflags="-s -w" -o jaeger github.com/jaegertracing/jaeger/cmd/jaeger
    ) >"$build/log" 2>&1 || { tail -n 20 "$build/log" >&2; exit 1; }
    install -D "$build/jaeger" "$jaeger"
    rm -rf "$build"
  fi
  echo "$jaeger"
}

images() {
  image etcd etcd
  image envoy envoy
  image prometheus prometheus 'ENTRYPOINT ["prometheus"]'
  if [ -d dist/jaeger ]; then image jaeger jaeger 'ENTRYPOINT ["jaeger"]'; fi
}

case ${1:-all} in
  roots) roots ;;
  images) images ;;
  jaeger) jaeger ;;
  all) roots; images ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
