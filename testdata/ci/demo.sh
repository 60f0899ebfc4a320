#!/usr/bin/env bash
# Runs the demo as the README says and tries the README's commands word for word: every line
# of its "Try it" part that is a command. Then it stops a GFE pool, sees the answers move
# within seconds and come back, ends the demo and sees that nothing is left.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
log=$(mktemp /tmp/meridian-demo-log.XXXXXX)
demo=
cleanup() {
  code=$?
  set +e
  [ $code -eq 0 ] || { say "failed; what the demo printed:"; tail -n 40 "$log"; }
  if [ -n "$demo" ]; then kill -INT "$demo" && wait "$demo"; fi 2>/dev/null
  rm -f "$log"
  exit $code
}
trap cleanup EXIT

left() { find "${TMPDIR:-/tmp}" -maxdepth 1 -name 'meridian-demo-[0-9]*' | wc -l; }
before=$(left)
say "go run ./cmd/gslbd demo"
go build -o /dev/null ./cmd/gslbd ./cmd/gslbctl   # so that the first start does not wait for the compiler
# "go run" hands a signal on to nobody: the program itself is built and run here.
bin=$(mktemp -d /tmp/meridian-demo-bin.XXXXXX)
go build -o "$bin/" ./cmd/gslbd
"$bin/gslbd" demo </dev/null >"$log" 2>&1 &
demo=$!
for _ in $(seq 120); do grep -q 'Five things to try' "$log" && break; kill -0 "$demo" || exit 1; sleep 0.25; done
cat "$log"

say "the README's commands"
sed -n '/^The demo prints/,/^The same as separate/p' README.md | grep '^    ' | sed 's/^    //; s/  *#.*//' >"$bin/commands"
n=0
while read -r command; do
  n=$((n + 1))
  case $command in *'demo stop'* | *'demo start'*) continue ;; esac   # checked below
  printf '\n$ %s\n' "$command"
  out=$(bash -o pipefail -c "$command" 2>&1) || { echo "$out"; say "FAIL  that command"; exit 1; }
  echo "$out"
done <"$bin/commands"
[ "$n" -ge 7 ] || { say "FAIL  found only $n commands in the README"; exit 1; }
ctl() { go run ./cmd/gslbctl "$@"; }
ctl pool undrain gfe-eu

ask() { dig @127.0.0."$1" -p 5300 +short +tries=1 +time=2 www.example.com +subnet="$2" | head -n 1; }
want() { # WHAT PATTERN SECONDS COMMAND…
  local what=$1 pattern=$2 limit=$3 out=; shift 3
  for _ in $(seq $((limit * 5))); do
    out=$("$@" || true)
    if [[ $out =~ $pattern ]]; then say "ok    $what: $out"; return; fi
    sleep 0.2
  done
  say "FAIL  $what: got '$out', expected $pattern"
  exit 1
}
for n in 1 2 3; do
  want "node $n sends New York to gfe-us" '^127\.0\.1\.1[12]$' 10 ask $n 192.0.2.0/24
  want "node $n sends Frankfurt to gfe-eu" '^127\.0\.2\.1[12]$' 10 ask $n 198.51.100.0/24
  want "node $n sends Singapore to gfe-ap" '^127\.0\.3\.1[12]$' 10 ask $n 203.0.113.0/24
done
ctl demo stop gfe-eu
for n in 1 2 3; do want "node $n moves Frankfurt away" '^127\.0\.[13]\.1[12]$' 10 ask $n 198.51.100.0/24; done
want "a request goes through" 'visit' 5 curl -fsS -H 'Host: www.example.com' "http://$(ask 1 198.51.100.0/24):8080/"
ctl demo start gfe-eu
for n in 1 2 3; do want "node $n sends Frankfurt back" '^127\.0\.2\.1[12]$' 15 ask $n 198.51.100.0/24; done

say "a second demo says which port is busy"
if out=$("$bin/gslbd" demo </dev/null 2>&1); then say "FAIL  it started"; exit 1; fi
grep -q -- '--dns-port' <<<"$out" || { say "FAIL  it said: $out"; exit 1; }

say "Ctrl-C"
kill -INT "$demo"
if wait "$demo"; then code=0; else code=$?; fi
demo=
[ $code -eq 0 ] || { say "FAIL  exit code $code"; tail -n 20 "$log"; exit 1; }
[ "$(left)" -le "$before" ] || { say "FAIL  a folder is left behind"; exit 1; }
rm -rf "$bin"
say "the demo works"
