#!/usr/bin/env bash
# A walk through Meridian in three regions, for whoever sees it for the first time. It breaks things, shows what becomes of the users,
# mends them, and checks each step itself: the first that does not do what it says ends the tour with exit code 1.
#
#   docker compose up --build -d
#   testdata/compose/tour.sh             waits for Enter between the steps on a terminal
#   testdata/compose/tour.sh STEP…       only these: map kill drain weight cut overload etcd trace metrics
set -euo pipefail
cd "$(dirname "$0")/../.."

if docker compose version >/dev/null 2>&1; then compose() { docker compose "$@"; }; else compose() { docker-compose "$@"; }; fi
client=$(compose ps -q client)
[ -n "$client" ] && [ "$(docker inspect -f '{{.State.Running}}' "$client")" = true ] || { echo "the tour's containers do not run; docker compose up --build -d starts them" >&2; exit 1; }

bold= off=
[ -t 1 ] && bold=$'\e[1m' off=$'\e[0m'
user() { docker exec ${bold:+-e COLOUR=1} "$client" /tour/user.sh "$@"; }
at_desk() { docker exec "$client" "$@"; }
typed() { for word; do [[ $word == *' '* ]] && word="'$word'"; printf ' %s' "$word"; done; }
ctl() { echo "  \$ gslbctl$(typed "$@")"; docker exec "$client" gslbctl --server http://172.28.1.11:8053 "$@" 2>&1 | indent; }
indent() { sed 's/^./  &/'; }
run() { echo "  \$ docker compose $*"; compose "$@" >"$out" 2>&1 || { cat "$out" >&2; exit 1; }; }
wan() { echo "  \$ docker compose exec wan /tour/wan.sh $*"; docker exec "$(compose ps -q wan)" /tour/wan.sh "$@"; }
want() { user want "$@"; }
picture() { user map; echo; }
out=$(mktemp)
finish() {
  local code=$?
  rm -f "$out"
  [ $code = 0 ] || echo "The tour ended amid a step: docker compose down -v, then docker compose up -d begins anew." >&2
}
trap finish EXIT

first=1
step() {
  if [ -z "$first" ] && [ -t 0 ] && [ -t 1 ]; then read -rp $'\n  Enter goes on … ' _; fi
  first=
  printf '\n%s== %s%s\n\n' "$bold" "$1" "$off"
  shift
  printf '  %s\n' "$@"
  echo
}

# at_home: everybody is sent to the nearest GFEs, and reaches the database through his region.
at_home() {
  want 60 "New York is sent to gfe-us" '^172\.28\.1\.21 172\.28\.1\.22$' ask newyork
  want 30 "Frankfurt is sent to gfe-eu" '^172\.28\.2\.21 172\.28\.2\.22$' ask frankfurt
  want 30 "Singapore is sent to gfe-ap" '^172\.28\.3\.21 172\.28\.3\.22$' ask singapore
}

# alone shows what the name server of eu-west says inside its region, where no tool but its own reaches it.
alone() {
  echo "  \$ docker compose exec ns-eu gslbctl explain www.example.com --client 172.28.10.10"
  docker exec "$(compose ps -q ns-eu)" gslbctl explain www.example.com --client 172.28.10.10 >"$out"
  indent <"$out"
  grep -q '^answer  *gfe-eu' "$out" || { echo "  ✗ expected it to answer gfe-eu"; exit 1; }
  echo "  ✓ ns-eu answers gfe-eu"
}

step_map() {
  step "Who is sent where, and why" \
    "Three users ask the same resolver for www.example.com. It finds the three name servers by their delegation from the root," \
    "tells them its user's network, and gets the nearest GFEs. A GFE is an Envoy that knows only what the name servers tell it." \
    "Latency between the regions: $(docker exec "$(compose ps -q wan)" /tour/wan.sh latency)"
  want 60 "every endpoint is up" '^18 of 18$' up
  at_home
  want 10 "the zone is delegated to three name servers" '^ns-ap.example.com. ns-eu.example.com. ns-us.example.com.$' ask_ns
  want 20 "a visit from New York stays in us-east" '^gfe-us-. > fe-us-. > be-us-. > db ' visit newyork
  want 20 "a visit from Frankfurt stays in eu-west" '^gfe-eu-. > fe-eu-. > be-eu-. > db ' visit frankfurt
  want 20 "a visit from Singapore stays in ap-southeast" '^gfe-ap-. > fe-ap-. > be-ap-. > db ' visit singapore
  user map
}

step_kill() {
  step "A pool dies" "Both GFEs of eu-west are killed. All three name servers probe them; when most say down, nobody is sent there."
  run kill gfe-eu-1 gfe-eu-2
  want 30 "Frankfurt is sent to the next nearest" '^172\.28\.1\.21 172\.28\.1\.22$' ask frankfurt
  want 10 "and why" '^gfe-us failover.*gfe-eu 0 of 2 endpoints healthy' why frankfurt
  want 20 "a visit works" '^gfe-us-. > fe-us-. ' visit frankfurt
  picture
  echo "  They are started again, ask for their configuration, and are used once two probes in a row succeeded."
  run start gfe-eu-1 gfe-eu-2
  at_home
}

step_drain() {
  step "A pool is drained" "An operator wants gfe-ap empty, says why and for how long. New answers avoid it, its users' connections go on."
  ctl pool drain gfe-ap --reason 'kernel upgrade' --for 10m
  want 30 "Singapore is sent elsewhere" '^172\.28\.[12]\.21 172\.28\.[12]\.22$' ask singapore
  want 10 "and why" 'gfe-ap drained by .*kernel upgrade' why singapore
  want 10 "gfe-ap itself still serves whoever is there" '^200$' direct 172.28.3.21
  picture
  ctl pool undrain gfe-ap
  at_home
}

step_weight() {
  step "A weight changes" "split.example.com shares its users between gfe-us and gfe-eu by weight; each keeps his pool. Forty networks ask."
  want 20 "1 to 1" '^gfe-us (1[2-9]|2[0-8]), gfe-eu (1[2-9]|2[0-8])$' split split.example.com 40
  ctl pool weight gfe-eu 4 --service split.example.com
  want 20 "1 to 4" '^gfe-us ([1-9]|1[0-4]), gfe-eu (2[6-9]|3[0-9])$' split split.example.com 40
  ctl pool weight gfe-eu 0 --service split.example.com
  want 20 "0 is never" '^gfe-us 40$' split split.example.com 40
  ctl pool weight gfe-eu 1 --service split.example.com
}

step_cut() {
  step "A region is cut off" "Nothing goes to eu-west or comes from it, and nobody is told: its name server, its GFEs and its etcd are silent."
  wan cut eu-west
  want 40 "the resolver asks the others, and Frankfurt is sent on" '^172\.28\.1\.21 172\.28\.1\.22$' ask frankfurt
  want 20 "a visit works" '^gfe-us-. > fe-us-. > be-us-. > db ' visit frankfurt
  echo "  In eu-west the name server is alone. Nobody confirms what it sees; it goes on answering from its last snapshot:"
  alone
  picture
  wan join eu-west
  at_home
}

step_overload() {
  step "A pool is overloaded" "fe-eu takes 20 requests a second. Frankfurt sends 40: what is too much goes to the next nearest frontends," \
    "by what the proxies report of their load. DNS answers as before."
  user load frankfurt 40 25 >"$out" &
  local load=$!
  want 25 "the name server of eu-west moves what is too much" '^gfe-eu to .*fe-eu [12][0-9], fe-us [1-9]' spill
  sleep 4
  echo "  \$ gslbctl gfe list"
  at_desk gslbctl --server http://172.28.2.11:8053 gfe list | indent
  wait $load
  echo "  Who answered Frankfurt in these 25 seconds:"
  cat "$out"
  awk '{ n += $2; if ($1 ~ /^fe-us/) us += $2; if ($1 ~ /^fe-eu/) eu += $2 } END { exit !(n >= 500 && us >= n / 10 && eu >= n / 4) }' "$out" ||
    { echo "  ✗ expected at least 500 answers, a tenth of them from us-east, and a quarter from eu-west"; exit 1; }
  echo "  ✓ the load was shared"
  want 60 "the load is gone, and all is as before" '^nothing spills$' spill
}

step_etcd() {
  step "etcd stops" "First one of the three, then all. The name servers answer from their snapshots, and the proxies keep what they know."
  run stop -t 3 etcd-ap
  ctl pool weight gfe-ap 2 --service www.example.com
  echo "  ✓ with two of three a change is still made"
  run stop -t 3 etcd-us etcd-eu
  if ctl pool weight gfe-ap 3 --service www.example.com; then echo "  ✗ a change was made without etcd"; exit 1; fi
  echo "  ✓ without etcd there are no changes"
  want 60 "the status says so" '^degraded$' state
  run kill gfe-us-1
  want 30 "health still counts: New York is sent to the GFE that is left" '^172\.28\.1\.22$' ask newyork
  want 10 "a visit works" '^gfe-us-2 > ' visit newyork
  picture
  run start gfe-us-1
  want 30 "a proxy that starts gets its configuration all the same" '^172\.28\.1\.21 172\.28\.1\.22$' ask newyork
  run start etcd-us etcd-eu etcd-ap
  want 90 "changes are made again" 'revision' change
  want 60 "and all is well" '^ok$' state
  at_home
}

step_trace() {
  step "One trace, from the question to the database" \
    "The name server traced its decision; the GFE, the frontend and the backend what they did for the request, and handed that to the name" \
    "server of their region; the database, which is in us-east, to the one there. --also asks that, too."
  local words=(--server http://172.28.2.11:8053 trace www.example.com --client 172.28.10.10 --also http://172.28.1.11:8053)
  local hop missing
  for _ in 1 2 3 4 5; do   # services hand their spans on within seconds; one that was late is there the next time
    at_desk gslbctl "${words[@]}" >"$out" || { cat "$out"; exit 1; }
    missing=
    for hop in 'dns.query www' 'gslb.decide gfe-eu' 'GET / .* gfe ' ' frontend fe-eu-' ' backend be-eu-' ' database db '; do
      grep -q "$hop" "$out" || missing=$hop
    done
    [ -n "$missing" ] || break
  done
  echo "  \$ gslbctl ${words[*]}"
  indent <"$out"
  [ -z "$missing" ] || { echo "  ✗ no span of '$missing'"; exit 1; }
  echo "  ✓ from the question by way of GFE, frontend and backend to the database"
  local query request
  query=$(grep -oE -m 1 '[0-9a-f]{32}' "$out")
  want 20 "the page of ns-eu shows the same" '^backend database frontend gfe gslbctl gslbd$' remembered "$query"
  echo "  http://127.0.0.1:8052/#trace=$query"
  [ -n "$(compose ps -q traces)" ] || { echo "  The trace backend is left out here: there is no program for it."; return 0; }
  request=$(user request "$query")
  want 60 "the trace backend has the decision" '^gslbd: .*dns.query.*gslb.decide' traced "$query"
  want 60 "and the request that came of it" '^backend database frontend gfe( gslbctl)?:' traced "$request"
  echo "  http://127.0.0.1:16686/trace/$request"
}

step_metrics() {
  step "What is measured" "Prometheus asks the three name servers. Grafana at http://127.0.0.1:3000 shows it; each query of its dashboard must find something."
  want 60 "Prometheus reaches all three" '^ns-ap ns-eu ns-us$' scraped
  local title query
  while IFS=$'\t' read -r title query; do
    want 60 "$title" '^[1-9][0-9]* series' series "$query"
  done < <(at_desk jq -r '.panels[] | . as $p | .targets[]? | $p.title + (if ($p.targets | length) > 1 then " (" + (.legendFormat | gsub("[{}]"; "")) + ")" else "" end) + "\t" + .expr' /tour/grafana/dashboards/meridian.json)
}

steps=("${@:-}")
[ -n "${steps[0]}" ] || steps=(map kill drain weight cut overload etcd trace metrics)
for s in "${steps[@]}"; do
  declare -F "step_$s" >/dev/null || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
  "step_$s"
done
printf '\n%sThat was the tour.%s docker compose down -v leaves nothing behind.\n' "$bold" "$off"
