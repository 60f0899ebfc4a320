#!/bin/bash
# CPU time per query and queries per second of a steered A with client subnets, on one core:
# Meridian beside gdnsd (same pools, same database), Knot DNS with mod-geoip (same database, an
# address for each continent), a bare recvmmsg/sendmmsg loop and a bare miekg/dns handler. Every server runs on core 0, the client on core 1, and they are asked in
# turn, round after round, so that what else the machine does hits all of them alike.
#
#   testdata/bench/dns.sh                   prints the table and writes results/dns.md
#   ROUNDS=5 SECONDS_EACH=10 testdata/bench/dns.sh
#   OUT=/dev/null ROUNDS=1 SECONDS_EACH=1 NETWORKS=50000 testdata/bench/dns.sh
#
# It needs Linux with two cores, Go, taskset, and Debian's gdnsd, knot, knot-module-geoip and
# dnsperf; without one of these it says so and leaves it out, unless REQUIRE_ALL=1. Everything is on loopback,
# in a folder of its own; it ends only what it started.
set -euo pipefail
cd "$(dirname "$0")/../.."

ROUNDS=${ROUNDS:-3}
SECONDS_EACH=${SECONDS_EACH:-5}
TURNS=${TURNS:-5} # of client load in a round: the shorter they are, the more alike is what disturbs one server and the next
NETWORKS=${NETWORKS:-450000}
NAMES=${NAMES:-16}
OUT=${OUT:-testdata/bench/results/dns.md}
PORT=${PORT:-15300} # and the next five

say() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }
die() { say "dns.sh: $*"; exit 1; }
have() {
	command -v "$1" >/dev/null && return
	[[ ${REQUIRE_ALL:-} != 1 ]] || die "$1 is not installed and REQUIRE_ALL=1"
	say "without $1: not installed"
	return 1
}
PATH=$PATH:/usr/sbin
command -v taskset >/dev/null || die "taskset is not installed"
(($(nproc) >= 2)) || die "one core: server and client need one each"

dir=$(mktemp -d)
declare -A pid
finish() {
	local p
	for p in "${pid[@]}"; do kill "$p" 2>/dev/null || true; done
	for p in "${pid[@]}"; do wait "$p" 2>/dev/null || true; done
	rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

# ---- what is compared: eight sites, one pool and one address each, nearest by distance

sites=(us-east us-west eu-west eu-north ap-southeast ap-northeast sa-east oc-south)
coords=("38.95 -77.45" "37.37 -121.92" "50.11 8.68" "59.33 18.07" "1.35 103.82" "35.68 139.69" "-23.55 -46.63" "-33.87 151.21")

say "building"
CGO_ENABLED=0 go build -o "$dir/gslbd" ./cmd/gslbd
for part in load floor miekghandler; do go build -o "$dir/$part" "./testdata/bench/$part"; done
say "a world of $NETWORKS networks"
mkdir -p "$dir/gdnsd/zones" "$dir/gdnsd/geoip" "$dir/run" "$dir/state" "$dir/data"
go run ./testdata/geo/mkmmdb -synthetic "$NETWORKS" -seed 1 -type GeoIP2-City -o "$dir/gdnsd/geoip/city.mmdb"

{
	echo 'node:'
	echo '  name: bench'
	echo '  site: us-east'
	echo "  data: $dir/data"
	echo "  dns: [\"127.0.0.1:$PORT\"]"
	echo "  admin: 127.0.0.1:$((PORT + 4))"
	echo '  geo: {city: gdnsd/geoip/city.mmdb}'
	echo 'sites:'
	for i in "${!sites[@]}"; do read -r lat lon <<<"${coords[i]}"; echo "  ${sites[i]}: {lat: $lat, lon: $lon}"; done
	echo 'zones: [{name: example.com, file: example.com.zone}]'
	echo 'pools:'
	for i in "${!sites[@]}"; do echo "  gfe-${sites[i]}: {site: ${sites[i]}, endpoints: [{address: 192.0.2.$((i + 1))}]}"; done
	echo 'services:'
	for ((n = 0; n < NAMES; n++)); do
		printf '  s%d.example.com: {ttl: 30s, policy: [health, nearest], pools: {' $n
		for s in "${sites[@]}"; do printf 'gfe-%s: {}, ' "$s"; done
		echo '}}'
	done
} >"$dir/gslb.yaml"

zone='$TTL 300
@ SOA ns1.example.com. hostmaster.example.com. 1 7200 900 1209600 300
@ NS ns1.example.com.
ns1 A 127.0.0.1'
printf '$ORIGIN example.com.\n%s\n' "$zone" >"$dir/example.com.zone"
{
	echo "$zone"
	for ((n = 0; n < NAMES; n++)); do echo "s$n 30 DYNA geoip!www"; done
} >"$dir/gdnsd/zones/example.com"
{
	echo "options => { listen => [ 127.0.0.1:$((PORT + 1)) ], udp_threads => 1, tcp_threads => 1, udp_rcvbuf => 1048576,"
	echo "  run_dir => $dir/run, state_dir => $dir/state }"
	echo 'plugins => { geoip => {'
	printf ' maps => { m => { geoip2_db => city.mmdb, datacenters => ['
	printf '%s, ' "${sites[@]}" | sed 's/, $//'
	echo '], auto_dc_coords => {'
	for i in "${!sites[@]}"; do read -r lat lon <<<"${coords[i]}"; echo "   ${sites[i]} => [ $lat, $lon ]"; done
	echo ' } } }'
	echo ' resources => { www => { map => m, service_types => up, dcmap => {'
	for i in "${!sites[@]}"; do echo "   ${sites[i]} => 192.0.2.$((i + 1))"; done
	echo ' } } } } }'
} >"$dir/gdnsd/config"

mkdir -p "$dir/knot"
{
	echo "$zone"
	for ((n = 0; n < NAMES; n++)); do echo "s$n 30 A 192.0.2.9"; done # where the continent is not known
} >"$dir/knot/example.com.zone"
for ((n = 0; n < NAMES; n++)); do
	echo "s$n.example.com:"
	i=0
	for continent in NA SA EU AF AS OC AN; do printf '  - geo: "%s"\n    A: 192.0.2.%d\n' $continent $((++i)); done
done >"$dir/knot/geo.conf"
cat >"$dir/knot/knot.conf" <<EOF
server:
  rundir: $dir/knot
  pidfile: $dir/knot/pid
  listen: 127.0.0.1@$((PORT + 5))
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
  edns-client-subnet: on
database:
  storage: $dir/knot
mod-geoip:
  - id: geo
    config-file: $dir/knot/geo.conf
    ttl: 30
    mode: geodb
    geodb-file: $dir/gdnsd/geoip/city.mmdb
    geodb-key: continent/code
zone:
  - domain: example.com
    file: $dir/knot/example.com.zone
    zonefile-sync: -1
    journal-content: none
    zonefile-load: whole
    module: mod-geoip/geo
EOF

# ---- the servers

declare -A port=([meridian]=$PORT [gdnsd]=$((PORT + 1)) [floor]=$((PORT + 2)) [miekg/dns]=$((PORT + 3)) [knot]=$((PORT + 5)))
declare -A start_s
start() { # name, command …
	local name=$1 began; shift
	began=$(date +%s%N)
	taskset -c 0 "$@" >"$dir/${name//\//-}.log" 2>&1 &
	pid[$name]=$!
	local tries=0
	until "$dir/load" -server "127.0.0.1:${port[$name]}" -names 's%d.example.com' -check=false -sockets 1 -window 1 -warm 0 -time 50ms >/dev/null 2>&1 &&
		answers "$name"; do
		kill -0 "${pid[$name]}" 2>/dev/null || { cat "$dir/${name//\//-}.log" >&2; unset "pid[$name]"; die "$name ended"; }
		((++tries < 1200)) || { cat "$dir/${name//\//-}.log" >&2; die "$name does not answer"; }
		sleep 0.05
	done
	start_s[$name]=$(awk "BEGIN { printf \"%.1f\", ($(date +%s%N) - $began) / 1e9 }")
	say "$name answers after ${start_s[$name]} s (process ${pid[$name]})"
}
answers() { # it gives good answers, not only any
	local good
	good=$("$dir/load" -server "127.0.0.1:${port[$1]}" -names 's%d.example.com' -n "$NAMES" -check="$(checked "$1")" -tsv -sockets 1 -window 1 -warm 0 -time 50ms) || return 1
	awk '{ exit !($1 > 0 && $4 == 0) }' <<<"$good"
}
checked() { [[ $1 == floor ]] && echo false || echo true; } # its answers are no answers

servers=(meridian)
start meridian "$dir/gslbd" -config "$dir/gslb.yaml"
if have gdnsd; then
	servers+=(gdnsd)
	start gdnsd gdnsd -c "$dir/gdnsd" start
fi
if have knotd && { compgen -G "/usr/lib/*/knot/modules-*/geoip.so" >/dev/null || { say "without knot: no mod-geoip"; false; }; }; then
	servers+=(knot)
	start knot knotd -c "$dir/knot/knot.conf"
fi
start floor "$dir/floor" -listen "127.0.0.1:${port[floor]}"
start miekg/dns "$dir/miekghandler" -listen "127.0.0.1:${port[miekg/dns]}"
servers+=(floor miekg/dns)
clients=(load)
if have dnsperf; then clients+=(dnsperf); fi

# ---- the rounds: one line each of client, server, qps, CPU µs, % answered, % wrong, KiB, p50, p99, p99.9

for ((n = 0; n < NAMES; n++)); do echo "s$n.example.com A"; done >"$dir/queries"
cpu_ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }
rss_kib() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }
run_load() {
	taskset -c 1 "$dir/load" -server "127.0.0.1:${port[$1]}" -pid "${pid[$1]}" -names 's%d.example.com' -n "$NAMES" \
		-check="$(checked "$1")" -warm "$((1000 / TURNS))ms" -time "$((SECONDS_EACH * 1000 / TURNS))ms" -tsv
}
run_dnsperf() { # server, protocol, source ports; one client subnet for all, 198.51.100.0/24; CPU is that of the whole run
	local before
	before=$(cpu_ticks "${pid[$1]}")
	taskset -c 1 dnsperf -s 127.0.0.1 -p "${port[$1]}" -d "$dir/queries" -l "$SECONDS_EACH" -m "${2:-udp}" -c "${3:-16}" -T 1 -q 192 -e -E 8:00011800c63364 >"$dir/dnsperf.out" 2>&1
	awk -v ticks="$(($(cpu_ticks "${pid[$1]}") - before))" -v hz="$(getconf CLK_TCK)" -v rss="$(rss_kib "${pid[$1]}")" '
		/Queries completed:/ { done = $3; share = substr($4, 2) + 0 }
		/Queries per second:/ { qps = $4 }
		/Average Latency/ { mean = $4 * 1e6 }
		END { if (!done) exit 1; printf "%.0f\t%.3f\t%.3f\t0\t%d\t%.0f\t0\t0\n", qps, ticks / hz * 1e6 / done, share, rss, mean }
	' "$dir/dnsperf.out" || { cat "$dir/dnsperf.out" >&2; die "dnsperf against $1 said nothing to read"; }
}
: >"$dir/rounds"
for ((round = 1; round <= ROUNDS; round++)); do
	for client in "${clients[@]}"; do
		turns=1
		[[ $client == load ]] && turns=$TURNS
		for ((turn = 1; turn <= turns; turn++)); do
			for server in "${servers[@]}"; do
				line=$("run_$client" "$server")
				printf '%s\t%s\t%s\n' "$client" "$server" "$line" >>"$dir/rounds"
				((turn < turns)) || say "round $round/$ROUNDS: $client → $server: $(awk '{ printf "%d queries/s, %.2f µs, %.2f %% answered", $1, $2, $3 }' <<<"$line")"
			done
		done
	done
done

# ---- at half load: how long an answer takes when the server has time. Ours also while it reads its
# configuration anew every second, so that garbage is made and collected.

say "half load"
half=$(awk -F'\t' '$1 == "load" && $2 == "meridian" { print $3 / 2 }' "$dir/rounds" | sort -g | awk '{ v[NR] = $1 } END { printf "%d", v[int((NR + 1) / 2)] }')
paced=(meridian meridian-reloading)
for server in gdnsd knot; do [[ " ${servers[*]} " == *" $server "* ]] && paced+=("$server"); done
for ((round = 1; round <= ROUNDS; round++)); do
	for server in "${paced[@]}"; do
		of=${server%-reloading}
		if [[ $server != "$of" ]]; then
			(while sleep 1; do kill -HUP "${pid[$of]}"; done) &
			pid[reloads]=$!
		fi
		line=$(taskset -c 1 "$dir/load" -server "127.0.0.1:${port[$of]}" -pid "${pid[$of]}" -names 's%d.example.com' -n "$NAMES" -rate "$half" -time "${SECONDS_EACH}s" -tsv)
		if [[ $server != "$of" ]]; then
			kill "${pid[reloads]}"
			wait "${pid[reloads]}" 2>/dev/null || true
			unset "pid[reloads]"
		fi
		printf 'half\t%s\t%s\n' "$server" "$line" >>"$dir/rounds"
	done
done

# ---- TCP on 20 kept connections

if [[ " ${clients[*]} " == *" dnsperf "* ]]; then
	say "TCP"
	for ((round = 1; round <= ROUNDS; round++)); do
		for server in "${servers[@]}"; do
			case $server in floor | miekg/dns) continue ;; esac # they have UDP alone
			line=$(run_dnsperf "$server" tcp 20)
			printf 'tcp\t%s\t%s\n' "$server" "$line" >>"$dir/rounds"
		done
	done
fi

# ---- the tables

median() { # client, server, column of the values
	awk -F'\t' -v c="$1" -v s="$2" -v col="$3" '$1 == c && $2 == s { print $(col + 2) }' "$dir/rounds" | sort -g |
		awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}
# The CPU time of one turn over that of the peer in the same turn: what disturbs a turn
# disturbs both, so that the median of these is steadier than the ratio of the medians. With enough
# turns the 95 % interval of the median (by order statistics) stands beside it.
ratio() { # client, server, peer, and the column of the line if it is not CPU time
	paste <(awk -F'\t' -v c="$1" -v s="$2" -v col="${4:-4}" '$1 == c && $2 == s { print $col }' "$dir/rounds") \
		<(awk -F'\t' -v c="$1" -v s="$3" -v col="${4:-4}" '$1 == c && $2 == s { print $col }' "$dir/rounds") |
		awk '$2 > 0 { print $1 / $2 }' | sort -g | awk '
			{ v[NR] = $1 }
			END {
				printf "%.2f", NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
				away = int(0.98 * sqrt(NR) + 1)
				if (NR >= 20 && v[NR] != v[1]) printf " (%.2f–%.2f)", v[int((NR + 1) / 2) - away], v[int(NR / 2) + 1 + away]
			}'
}
table() {
	local client server peer=${servers[1]}
	for client in "${clients[@]}"; do
		echo
		[[ $client == load ]] && echo "Client \`testdata/bench/load\`: name, client subnet and source port vary." ||
			echo "Client dnsperf: one client subnet for all queries; its latency is the mean."
		echo
		echo "| server | CPU µs/query | × $peer | queries/s | answered % | wrong % | RSS MiB | p50 µs | p99 µs | p99.9 µs |"
		echo "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
		for server in "${servers[@]}"; do
			printf '| %s | %.2f | %s | %.0f | %.2f | %.2f | %.0f | %.0f | %s | %s |\n' "$server" "$(median "$client" "$server" 2)" "$(ratio "$client" "$server" "$peer")" \
				"$(median "$client" "$server" 1)" "$(median "$client" "$server" 3)" "$(median "$client" "$server" 4)" \
				"$(awk "BEGIN { print $(median "$client" "$server" 5) / 1024 }")" "$(median "$client" "$server" 6)" \
				"$([[ $client == load ]] && median "$client" "$server" 7 || echo –)" "$([[ $client == load ]] && median "$client" "$server" 8 || echo –)"
		done
	done
}
half_table() {
	local server
	echo
	echo "At half load, $half queries/s of client \`load\` to each: how long an answer takes, p99.9 beside gdnsd's in the same round."
	echo "\`meridian-reloading\` reads its configuration and zones anew every second on that one core, and makes a snapshot of them."
	echo
	echo "| server | answered % | p50 µs | p99 µs | p99.9 µs | × gdnsd |"
	echo "|---|--:|--:|--:|--:|--:|"
	for server in "${paced[@]}"; do
		printf '| %s | %.2f | %.0f | %.0f | %.0f | %s |\n' "$server" "$(median half "$server" 3)" "$(median half "$server" 6)" "$(median half "$server" 7)" "$(median half "$server" 8)" "$(ratio half "$server" gdnsd 10)"
	done
}
tcp_table() {
	local server
	echo
	echo "TCP, dnsperf on 20 kept connections, 192 queries under way:"
	echo
	echo "| server | CPU µs/query | queries/s | × gdnsd | answered % |"
	echo "|---|--:|--:|--:|--:|"
	for server in "${servers[@]}"; do
		case $server in floor | miekg/dns) continue ;; esac
		printf '| %s | %.2f | %.0f | %s | %.2f |\n' "$server" "$(median tcp "$server" 2)" "$(median tcp "$server" 1)" "$(ratio tcp "$server" gdnsd 3)" "$(median tcp "$server" 3)"
	done
}
version() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null || echo '?'; }
module() { go list -m -f '{{.Version}}' "$1"; }
{
	echo "# Steered A with client subnets, one core"
	echo
	echo "Written by \`testdata/bench/dns.sh\`; run it to get these figures again. Medians of $ROUNDS rounds"
	echo "of $SECONDS_EACH s, every server in turn in each round, to client \`load\` in $TURNS turns; the server on core 0, the client on core 1."
	echo "CPU is user and system time of the server's process. \`×\` compares within a turn, with the 95 % interval of the median."
	echo "Queries/s is what the server can do only where it had its core to itself: CPU µs × queries/s near a million."
	table
	half_table
	if [[ " ${clients[*]} " == *" dnsperf "* ]]; then tcp_table; fi
	echo
	echo "- $NAMES names, ${#sites[@]} pools of one address, nearest by great-circle distance, $NETWORKS networks (\`mkmmdb -synthetic $NETWORKS -seed 1\`)."
	echo "- From start to the first good answer: $(for s in "${servers[@]}"; do printf '%s %s s; ' "$s" "${start_s[$s]}"; done | sed 's/; $//')."
	echo "- floor: a bare recvmmsg/sendmmsg loop. miekg/dns: a handler that always answers the same."
	echo "- Machine: $(nproc) cores, $(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo), $(awk '/^MemTotal/ { printf "%.1f GiB", $2 / 1048576 }' /proc/meminfo), Linux $(uname -r), $(uname -m)."
	echo "- Load of the machine at the end (1 min): $(cut -d' ' -f1 /proc/loadavg)."
	echo "- Versions: $(go env GOVERSION), miekg/dns $(module github.com/miekg/dns), gdnsd $(version gdnsd), knot $(version knot), dnsperf $(version dnsperf); Meridian $(git describe --always --dirty 2>/dev/null || echo '?')."
} >"$dir/dns.md"
cat "$dir/dns.md"
if [[ $OUT != /dev/null ]]; then
	mkdir -p "$(dirname "$OUT")"
	cp "$dir/dns.md" "$OUT"
	say "written to $OUT"
fi
