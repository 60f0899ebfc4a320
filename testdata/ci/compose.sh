#!/usr/bin/env bash
# Runs docker-compose.yml from the binaries in dist/ and checks it: dig in each region, kill
# a region's GFEs, the answers move, start them, the answers return. Starts a Docker engine
# of its own where none runs. No image is pulled: etcd's is built here from its own module.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
work=$(mktemp -d /tmp/meridian-compose.XXXXXX)
engine=
cleanup() {
  code=$?
  set +e
  if [ $code -ne 0 ] && [ -n "${up:-}" ]; then
    say "failed; the last lines of every container:"
    compose logs --tail=15 2>&1 | tail -n 150
  fi
  [ -n "${up:-}" ] && compose down -v --remove-orphans >"$work/down.log" 2>&1
  if [ -n "$engine" ]; then
    kill "$engine" && wait "$engine" 2>/dev/null
  fi
  rm -rf "$work"
  exit $code
}
trap cleanup EXIT

if ! docker info >/dev/null 2>&1; then
  [ "$(id -u)" = 0 ] || { echo "no Docker engine runs, and only root can start one" >&2; exit 1; }
  say "starting a Docker engine"
  export DOCKER_HOST=unix://$work/docker.sock
  dockerd --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" -H "$DOCKER_HOST" >"$work/dockerd.log" 2>&1 &
  engine=$!
  for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
  docker info >/dev/null 2>&1 || { tail -n 20 "$work/dockerd.log" >&2; echo "the Docker engine did not start" >&2; exit 1; }
fi

if docker compose version >/dev/null 2>&1; then
  compose() { docker compose -p meridianci "$@"; }
else
  compose() { docker-compose -p meridianci "$@"; }
fi

say "an image of etcd, from its own module"
mkdir -p "$work/etcd"
CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o "$work/etcd/etcd" go.etcd.io/etcd/server/v3
printf 'FROM scratch\nCOPY etcd /usr/local/bin/etcd\nENV PATH=/usr/local/bin\nVOLUME /etcd-data\n' >"$work/etcd/Dockerfile"
export ETCD_IMAGE=meridian-ci/etcd:local MERIDIAN_TARGET=prebuilt COMPOSE_DOCKER_CLI_BUILD=0 DOCKER_BUILDKIT=0
docker build -q -t "$ETCD_IMAGE" "$work/etcd" >/dev/null

say "docker compose up --build"
docker build -q -t meridian:local --target prebuilt . >/dev/null
up=1
compose up -d --build >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; exit 1; }

# ask REGION-ADDRESS SUBNET prints the first address answered, sorted, or nothing.
ask() { dig +short +tries=1 +time=2 @"$1" www.example.com A +subnet="$2" 2>/dev/null | grep -E '^[0-9.]+$' | sort | head -n 1; }

# want WHAT PATTERN SECONDS COMMAND…: the command's output matches within that time.
want() {
  local what=$1 pattern=$2 limit=$3 out=; shift 3
  for _ in $(seq $((limit * 4))); do
    out=$("$@" || true)
    if [[ $out =~ $pattern ]]; then say "ok    $what: $out"; return; fi
    sleep 0.25
  done
  say "FAIL  $what: got '$out', expected $pattern"
  exit 1
}

us=192.0.2.0/24 eu=198.51.100.0/24 ap=203.0.113.0/24
for ns in 172.28.0.11 172.28.0.12 172.28.0.13; do
  want "$ns sends New York to gfe-us" '^172\.28\.0\.2[12]$' 60 ask $ns $us
  want "$ns sends Frankfurt to gfe-eu" '^172\.28\.0\.3[12]$' 20 ask $ns $eu
  want "$ns sends Singapore to gfe-ap" '^172\.28\.0\.4[12]$' 20 ask $ns $ap
done
visit() { curl -fsS --max-time 5 -H 'Host: www.example.com' "http://$(ask 172.28.0.12 "$1"):8080/?format=text" | tr '\n' ' '; }
want "a request through the answer reaches the database" 'visit' 20 visit $eu

say "stopping the GFEs of eu-west"
compose stop -t 2 gfe-eu-1 gfe-eu-2 >/dev/null 2>&1
for ns in 172.28.0.11 172.28.0.12 172.28.0.13; do
  want "$ns moves Frankfurt away" '^172\.28\.0\.(2|4)[12]$' 20 ask $ns $eu
done
want "a request still works" 'visit' 20 visit $eu

say "starting them"
compose start gfe-eu-1 gfe-eu-2 >/dev/null 2>&1
for ns in 172.28.0.11 172.28.0.12 172.28.0.13; do
  want "$ns sends Frankfurt back to gfe-eu" '^172\.28\.0\.3[12]$' 30 ask $ns $eu
done
compose exec -T ns-eu gslbctl explain www.example.com --client 198.51.100.7
say "the compose demo works"
