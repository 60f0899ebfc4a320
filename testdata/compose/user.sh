#!/usr/bin/env bash
# A user of www.example.com, who can be in any of three cities: he asks the resolver, and takes the answer. Beside him sits
# whoever wants to know why: "map" and "why" ask the name servers.
#
#   user.sh stay                  what the container runs
#   user.sh ask CITY [NAME]       the addresses that the resolver has for NAME (www.example.com) in newyork, frankfurt or singapore
#   user.sh visit CITY            a request through the answer: the way that it took, and its time
#   user.sh why CITY [NAME]       the pool, the reason, and what the engine says of it
#   user.sh map                   who is up, and who is sent where
#   user.sh load CITY RATE SECONDS        RATE requests a second for so long; prints which frontends answered how many
#   user.sh split NAME N          how many of N networks are sent to which pool
#   user.sh want SECONDS WHAT PATTERN COMMAND…   "user.sh COMMAND…" prints what matches PATTERN within so long
set -uo pipefail

resolver=172.28.8.53 port=8080 name=www.example.com
nodes=(172.28.1.11 172.28.2.11 172.28.3.11)
keys=(us eu ap) regions=(us-east eu-west ap-southeast)
cities=(newyork frankfurt singapore)

address() {
  case $1 in
    newyork) echo 172.28.9.10 ;; frankfurt) echo 172.28.10.10 ;; singapore) echo 172.28.11.10 ;;
    *) echo "user.sh: no city $1; expected newyork, frankfurt or singapore" >&2; exit 2 ;;
  esac
}
called() { case $1 in newyork) echo "New York" ;; frankfurt) echo Frankfurt ;; singapore) echo Singapore ;; esac; }

# ctl ARGUMENTS…: gslbctl at the first node that answers.
ctl() {
  local n
  for n in "${nodes[@]}"; do
    timeout 3 gslbctl --server "http://$n:8053" "$@" 2>/dev/null
    case $? in 0 | 4) return ;; esac   # 4: it answers, and is degraded
  done
  return 1
}

# instance ADDRESS prints the name of what is there: gfe-eu-1 for 172.28.2.21.
instance() {
  local key=${keys[$(($(echo "$1" | cut -d. -f3) - 1))]} last=${1##*.}
  case $last in
    2?) echo "gfe-$key-$((last - 20))" ;; 3?) echo "fe-$key-$((last - 30))" ;; 4?) echo "be-$key-$((last - 40))" ;; *) echo db ;;
  esac
}

ask() { dig +short +tries=1 +time=3 -b "$(address "$1")" "@$resolver" "${2:-$name}" A 2>/dev/null | grep -E '^[0-9.]+$' | sort; }

visit() {
  local to out
  to=$(ask "$1" | tr '\n' ',')
  [ -n "$to" ] || { echo "no answer from the resolver"; return 1; }
  out=$(curl -sS --max-time 8 --interface "$(address "$1")" -H 'Accept: application/json' -w '\n%{http_code} %{remote_ip} %{time_total}' \
    --resolve "$name:$port:${to%,}" "http://$name:$port/" 2>&1) || { echo "${out%%$'\n'*}"; return 1; }
  read -r code ip took <<<"${out##*$'\n'}"
  [ "$code" = 200 ] || { echo "status $code: ${out%%$'\n'*}"; return 1; }
  jq -r --arg gfe "$(instance "$ip")" --arg ms "$(awk -v t="$took" 'BEGIN { printf "%.0f ms", t * 1000 }')" \
    '"\($gfe) > \(.frontend.name) > \(.backend.name) > \(.database.name)   visit \(.visit), \($ms)"' <<<"${out%$'\n'*}"
}

# why prints "POOL REASON: what the last stage that spoke of it said; who was passed over, and why".
why() {
  ctl explain "${2:-$name}" --client "$(address "$1")" --output json | jq -r '
    .pool as $p
    | ([.stages[] | select(.stage == "nearest") | .kept[]? | select(.pool == $p) | .note] | last) as $near
    | [.stages[] | (.kept + (.lost // []))[] | select(.pool != $p and ((.note // "") | test("^(drained by|0 of|down)")))] as $passed
    | "\($p) \(.reason)" + (if $near then ", \($near) away" else "" end)
      + ($passed | unique_by(.pool) | map("; \(.pool) \(.note)") | add // "")'
}

map() { picture | sed 's/ *$//'; }
picture() {
  local green= red= yellow= dim= off= line i n r a label last status=
  if [ -n "${COLOUR:-}" ]; then green=$'\e[32m' red=$'\e[31m' yellow=$'\e[33m' dim=$'\e[2m' off=$'\e[0m'; fi
  declare -A mark
  status=$(ctl status --output json)
  while read -r a verdict; do
    case $verdict in up) mark[$a]="$green●$off" ;; down) mark[$a]="$red✗$off" ;; drained) mark[$a]="$yellow◌$off" ;; *) mark[$a]="?" ;; esac
  done < <(jq -r '.pools[] | .drained as $d | .endpoints[] | "\(.addr) \(if $d or .drained then "drained" else .verdict end)"' <<<"$status")
  for i in 0 1 2; do
    a=172.28.$((i + 1))
    for last in "11 8053/readyz" "12 2379/health" "51 8083/healthz"; do
      read -r last path <<<"$last"
      [ "$last" = 51 ] && [ $i != 0 ] && continue
      if curl -fs -o /dev/null --max-time 1.5 "http://$a.$last:$path"; then mark[$a.$last]="$green●$off"; else mark[$a.$last]="$red✗$off"; fi
    done
  done
  printf '\n  %-14s' ''; for r in "${regions[@]}"; do printf '%-26s' "$r"; done; echo
  for label in "name server:11" "etcd:12" "GFE:21 22" "frontend:31 32" "backend:41 42" "database:51"; do
    printf '  %s%-14s%s' "$dim" "${label%%:*}" "$off"
    for i in 0 1 2; do
      n=0
      for last in ${label#*:}; do
        a=172.28.$((i + 1)).$last
        case $last in
          11) line=ns-${keys[$i]} ;; 12) line=etcd-${keys[$i]} ;; 51) [ $i = 0 ] || continue; line=db ;; *) line=$(instance "$a") ;;
        esac
        printf '%s %s  ' "${mark[$a]:-?}" "$line"
        n=$((n + ${#line} + 4))
      done
      printf '%*s' $((26 - n)) ''
    done
    echo
  done
  echo
  local city answer
  for city in "${cities[@]}"; do
    answer=$(ask "$city" | tr '\n' ' ')
    printf '  %-10s %-24s %s\n' "$(called "$city")" "${answer:-no answer}" "$(why "$city")"
    printf '  %-10s %s%s%s\n' '' "$dim" "$(visit "$city")" "$off"
  done
}

# load runs ten requesters, so that slow answers hold none of the others up.
load() {
  local to per i list dir; dir=$(mktemp -d)
  to=$(ask "$1"); list=($to)
  per=$(($2 * 60 / 10))
  for i in 0 1 2 3 4 5 6 7 8 9; do
    curl -s --max-time $(($3 + 10)) --interface "$(address "$1")" --rate "$per/m" -H "Host: $name" -H 'Accept: text/plain' \
      "http://${list[$((i % ${#list[@]}))]}:$port/?[1-$((per * $3 / 60))]" >"$dir/$i" 2>/dev/null &
  done
  wait
  cat "$dir"/* | awk '$1 == "frontend" { n[$2]++ } END { for (f in n) print "  " f, n[f] }' | sort
  rm -rf "$dir"
}

# split asks a node directly: each network is a user of its own.
split() {
  local i n=("${nodes[@]}")
  for i in $(seq "$2"); do
    dig +short +tries=2 +time=2 "@${n[$((i % 3))]}" "$1" A +subnet="192.0.$((i % 256)).0/24" | head -n 1
  done | awk -F. '{ c[$3]++ } END { split("us eu ap", k, " "); for (i = 1; i <= 3; i++) if (c[i]) printf "%sgfe-%s %d", (n++ ? ", " : ""), k[i], c[i]; print "" }'
}

# What the tour asks for besides.
ask_ns() { dig +short +tries=1 +time=3 "@$resolver" example.com NS | sort; }
direct() { curl -s -o /dev/null -w '%{http_code}' --max-time 5 -H "Host: $name" "http://$1:$port/"; }
up() { ctl status --output json | jq -r '[.pools[].endpoints[].verdict] | "\(map(select(. == "up")) | length) of \(length)"'; }
state() { ctl status --output json | jq -r .state; }
change() { timeout 5 gslbctl --server http://172.28.1.11:8053 pool weight gfe-ap 1 --service "$name" 2>&1; }
spill() {
  timeout 3 gslbctl --server http://172.28.2.11:8053 gfe list --output json | jq -r '
    [.spills[]? | select(.from == "gfe-eu")][0] | if . == null then "nothing spills" else
    "\(.from) to " + ([.placed | to_entries | sort_by(.key)[] | select(.value >= 1) | "\(.key) \(.value | round)"] | join(", ")) end'
}
# What the name server of eu-west remembers of a trace and what it links to: its services, and the request that came of a query.
remembered() { curl -s --max-time 5 "http://172.28.2.11:8053/api/v1/traces/$1" | jq -r '[.spans[]?, .linked[]? | .service] | unique | join(" ")'; }
request() { curl -s --max-time 5 "http://172.28.2.11:8053/api/v1/traces/$1" | jq -r '.linked[] | select(.service == "gslbctl") | .traceId'; }
traced() {   # "services: spans" of a trace, as the trace backend has it
  curl -s --max-time 5 "http://172.28.8.20:16686/api/traces/$1" | jq -r '.data[0] // empty
    | . as $t | ([.spans[] | $t.processes[.processID].serviceName] | unique | join(" ")) + ": " + ([.spans[].operationName] | sort | join(", "))'
}
prometheus() { curl -s --max-time 5 -G "http://172.28.8.21:9090/api/v1/query" --data-urlencode "query=$1"; }
scraped() { prometheus 'up == 1' | jq -r '[.data.result[].metric.node] | sort | .[]'; }
series() { prometheus "$1" | jq -r 'if .status == "success" then "\(.data.result | length) series" else .error end'; }

want() {
  local limit=$1 what=$2 pattern=$3 out= end; shift 3
  end=$((SECONDS + limit))
  while :; do
    out=$("$@" 2>&1 | tr '\n' ' ')
    out=${out% }
    if [[ $out =~ $pattern ]]; then echo "  ✓ $what: $out"; return; fi
    [ $SECONDS -lt $end ] || break
    sleep 0.3
  done
  echo "  ✗ $what: got '$out', expected $pattern"
  return 1
}

case ${1:-} in
  stay)
    for city in "${cities[@]}"; do ip addr replace "$(address "$city")/22" dev eth0; done
    exec sleep infinity
    ;;
  ask | visit | why | map | load | split | want | spill | request) "$@" ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
