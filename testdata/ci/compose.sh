#!/usr/bin/env bash
# Runs docker-compose.yml from the binaries in dist/, and its tour: real Envoys, etcd, unbound and Prometheus in stand-in images
# under the images' names, as none is pulled. The Docker engine is one of its own, in a network namespace of its
# own: nothing gets out, and nothing beside it is in the way. Sees that it fits into 4 GiB and that nothing is left of it.
#
#   make dist && testdata/ci/compose.sh [STEP…]     steps of testdata/compose/tour.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
say() { printf '%s  %s\n' "$(date +%T)" "$*"; }

if [ "${1:-}" != --inside ]; then
  [ "$(id -u)" = 0 ] || { echo "compose.sh: only root can start a Docker engine" >&2; exit 1; }
  say "the programs of the images"
  testdata/ci/standins.sh roots
  exec unshare --net "$0" --inside "$@"
fi
shift

work=$(mktemp -d /tmp/meridian-compose.XXXXXX)
export DOCKER_HOST=unix://$work/docker.sock COMPOSE_PROJECT_NAME=meridianci MERIDIAN_TARGET=prebuilt COMPOSE_DOCKER_CLI_BUILD=0 DOCKER_BUILDKIT=0
engine= up=
if docker compose version >/dev/null 2>&1; then compose() { docker compose "$@"; }; else compose() { docker-compose "$@"; }; fi
cleanup() {
  code=$?
  set +e
  if [ $code -ne 0 ] && [ -n "$up" ]; then
    say "failed; the last lines of every container:"
    compose logs --no-color --tail=10 2>&1 | tail -n 200
  fi
  [ -n "$up" ] && compose down -v --remove-orphans >"$work/down.log" 2>&1
  if [ -n "$engine" ]; then kill "$engine" && wait "$engine" 2>/dev/null; fi
  rm -rf "$work"
  exit $code
}
trap cleanup EXIT

say "a Docker engine"
ip link set lo up
dockerd --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" -H "$DOCKER_HOST" >"$work/dockerd.log" 2>&1 &
engine=$!
for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
docker info >/dev/null 2>&1 || { tail -n 20 "$work/dockerd.log" >&2; echo "the Docker engine did not start" >&2; exit 1; }

say "the images"
testdata/ci/standins.sh images 2>"$work/images.log" || { cat "$work/images.log" >&2; exit 1; }

say "docker compose build"
# One service of each image: an older Compose builds an image again for every service that has it.
compose build ns-us wan >"$work/build.log" 2>&1 || { tail -n 50 "$work/build.log" >&2; exit 1; }

say "docker compose up"
services=()
for s in $(compose config --services 2>/dev/null); do
  case $s in
    grafana) say "left out: $s, there is no program for it here" ;;
    traces) if [ -d dist/jaeger ]; then services+=("$s"); else say "left out: $s, there is no program for it here"; fi ;;
    *) services+=("$s") ;;
  esac
done
up=1
compose up -d --no-build "${services[@]}" >"$work/up.log" 2>&1 || { tail -n 50 "$work/up.log" >&2; exit 1; }

say "the tour"
testdata/compose/tour.sh "$@" | tee dist/tour.txt
if [ $# = 0 ] && [ -d dist/jaeger ]; then testdata/ci/tour-in-readme.sh dist/tour.txt; fi

used=$(docker stats --no-stream --format '{{.MemUsage}}' | awk '{ f = 1; if ($1 ~ /GiB/) f = 1024; if ($1 ~ /[0-9]KiB/) f = 1 / 1024; sum += $1 * f } END { printf "%.0f", sum }')
say "all containers together hold $used MiB"
[ "$used" -lt 4096 ] || { say "FAIL  that is over 4 GiB"; exit 1; }

say "docker compose down -v"
compose down -v >"$work/down.log" 2>&1
up=
left=$(docker ps -aq; docker volume ls -q; docker network ls --format '{{.Name}}' | grep -vE '^(bridge|host|none)$' || true)
[ -z "$left" ] || { say "FAIL  it left: $left"; exit 1; }
say "the tour went through, and nothing is left of it"
