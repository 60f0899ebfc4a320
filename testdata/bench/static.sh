#!/bin/bash
# CPU time per query of static answers on one core: A, NXDOMAIN and referral out of one zone of many
# RRsets and out of many zones, Meridian beside Knot DNS and NSD, asked in turn, round after round.
#
#   testdata/bench/static.sh                prints the table and writes results/static.md
#   ROUNDS=1 SECONDS_EACH=1 RRSETS=10000 ZONES=1000 OUT=/dev/null testdata/bench/static.sh
#
# It needs Linux with two cores, Go, taskset and Debian's knot and nsd; without one of the last two
# it says so and leaves it out, unless REQUIRE_ALL=1. It ends only what it started.
set -euo pipefail
cd "$(dirname "$0")/../.."

ROUNDS=${ROUNDS:-3}
SECONDS_EACH=${SECONDS_EACH:-2}
RRSETS=${RRSETS:-1000000}
ZONES=${ZONES:-100000}
ASKED=${ASKED:-50000} # different names
OUT=${OUT:-testdata/bench/results/static.md}
PORT=${PORT:-15400} # and some more

say() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }
die() { say "static.sh: $*"; exit 1; }
PATH=$PATH:/usr/sbin
have() {
	command -v "$1" >/dev/null && return
	[[ ${REQUIRE_ALL:-} != 1 ]] || die "$1 is not installed and REQUIRE_ALL=1"
	say "without $1: not installed"
	return 1
}
command -v taskset >/dev/null || die "taskset is not installed"

dir=$(mktemp -d)
declare -A pid port start_s rss
finish() {
	local p
	for p in "${pid[@]}"; do kill "$p" 2>/dev/null || true; done
	for p in "${pid[@]}"; do wait "$p" 2>/dev/null || true; done
	rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

say "building"
CGO_ENABLED=0 go build -o "$dir/gslbd" ./cmd/gslbd
go build -o "$dir/load" ./testdata/bench/load
mkdir -p "$dir/many" "$dir/knot" "$dir/nsd" "$dir/data"
head='$TTL 300
@ SOA ns1.example.net. hostmaster.example.net. 1 7200 900 1209600 300
@ NS ns1.example.net.'
say "one zone of $RRSETS RRsets, $ZONES zones"
{
	echo "$head"
	# nine hosts to a delegation with glue
	awk -v n="$RRSETS" 'BEGIN { for (i = 0; i < n * 9 / 11; i++) print "h" i " A 192.0.2." i % 256; for (i = 0; i < n / 11; i++) { print "d" i " NS ns.d" i; print "ns.d" i " A 198.51.100." i % 256 } }'
} >"$dir/large.test.zone"
for ((i = 0; i < ZONES; i++)); do printf '%s\nwww A 192.0.2.1\nsub NS ns.sub\nns.sub A 192.0.2.2\n' "$head" >"$dir/many/z$i.test.zone"; done

config() { # which of one and many
	case $1 in
	one)
		printf 'node: {name: bench, site: here, data: %s, dns: ["127.0.0.1:%d"], admin: "127.0.0.1:%d"}\nsites: {here: {lat: 0, lon: 0}}\nzones:\n  - {name: large.test, file: large.test.zone}\n' "$dir/data/one" "$PORT" "$((PORT + 1))" >"$dir/one.yaml"
		printf 'zone:\n  - domain: large.test\n    file: %s/large.test.zone\n' "$dir" >"$dir/zones.knot"
		printf 'zone:\n name: large.test\n zonefile: %s/large.test.zone\n' "$dir" >"$dir/zones.nsd"
		;;
	many)
		{
			printf 'node: {name: bench, site: here, data: %s, dns: ["127.0.0.1:%d"], admin: "127.0.0.1:%d"}\nsites: {here: {lat: 0, lon: 0}}\nzones:\n' "$dir/data/many" "$PORT" "$((PORT + 1))"
			for ((i = 0; i < ZONES; i++)); do printf '  - {name: z%d.test, file: many/z%d.test.zone}\n' $i $i; done
		} >"$dir/many.yaml"
		{ echo 'zone:'; for ((i = 0; i < ZONES; i++)); do printf '  - domain: z%d.test\n    file: %s/many/z%d.test.zone\n' $i "$dir" $i; done; } >"$dir/zones.knot"
		for ((i = 0; i < ZONES; i++)); do printf 'zone:\n name: z%d.test\n zonefile: %s/many/z%d.test.zone\n' $i "$dir" $i; done >"$dir/zones.nsd"
		;;
	esac
	{
		printf 'server:\n  rundir: %s/knot\n  pidfile: %s/knot/pid\n  listen: 127.0.0.1@%d\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n' "$dir" "$dir" $((PORT + 2))
		printf 'database:\n  storage: %s/knot\ntemplate:\n  - id: default\n    zonefile-sync: -1\n    journal-content: none\n    zonefile-load: whole\n    semantic-checks: off\n' "$dir"
		cat "$dir/zones.knot"
	} >"$dir/knot.conf"
	{
		printf 'server:\n server-count: 1\n ip-address: 127.0.0.1@%d\n username: ""\n chroot: ""\n pidfile: ""\n database: ""\n zonelistfile: %s/nsd/zones\n xfrdfile: %s/nsd/xfrd\n xfrdir: %s/nsd\n rrl-ratelimit: 0\nremote-control:\n control-enable: no\n' $((PORT + 3)) "$dir" "$dir" "$dir"
		cat "$dir/zones.nsd"
	} >"$dir/nsd.conf"
}
family() { # a process and what it started
	local p
	echo "$1"
	for p in $(cat "/proc/$1/task/$1/children"); do family "$p"; done
}
cpu_ticks() { # of a process and what it started
	local p total=0
	for p in $(family "$1"); do total=$((total + $(sed 's/.*) //' "/proc/$p/stat" | awk '{ print $12 + $13 }'))); done
	echo $total
}
memory() { local p total=0; for p in $(family "$1"); do total=$((total + $(awk '/^Pss:/ { print $2 }' "/proc/$p/smaps_rollup"))); done; echo $((total / 1024)); }
start() { # name, port, a name that answers, command …
	local name=$1 began tries=0; port[$1]=$2; local good=$3; shift 3
	began=$(date +%s%N)
	taskset -c 0 "$@" >"$dir/$name.log" 2>&1 &
	pid[$name]=$!
	until "$dir/load" -server "127.0.0.1:${port[$name]}" -names "$good" -ecs 0 -tsv -sockets 1 -window 1 -warm 0 -time 50ms 2>/dev/null | awk '{ exit !($1 > 0 && $4 == 0) }'; do
		kill -0 "${pid[$name]}" 2>/dev/null || { cat "$dir/$name.log" >&2; unset "pid[$name]"; die "$name ended"; }
		((++tries < 2400)) || { tail "$dir/$name.log" >&2; die "$name does not answer"; }
		sleep 0.05
	done
	start_s[$name]=$(awk "BEGIN { printf \"%.1f\", ($(date +%s%N) - $began) / 1e9 }")
	rss[$name]=$(memory "${pid[$name]}")
	say "$name answers after ${start_s[$name]} s with ${rss[$name]} MiB"
}
servers=(meridian)
if have knotd; then servers+=(knot); fi
if have nsd; then servers+=(nsd); fi

: >"$dir/rounds"
row() { # zones, kind, names, number
	local round server before after line
	for ((round = 1; round <= ROUNDS; round++)); do
		for server in "${servers[@]}"; do
			before=$(cpu_ticks "${pid[$server]}")
			line=$(taskset -c 1 "$dir/load" -server "127.0.0.1:${port[$server]}" -names "$3" -n "$4" -ecs 0 -check=false -warm 0 -time "${SECONDS_EACH}s" -tsv)
			after=$(cpu_ticks "${pid[$server]}")
			awk -v z="$1" -v k="$2" -v s="$server" -v t=$((after - before)) -v hz="$(getconf CLK_TCK)" -v sec="$SECONDS_EACH" \
				'{ printf "%s\t%s\t%s\t%.3f\t%.0f\t%s\n", z, k, s, t / hz * 1e6 / ($1 * sec), $1, $8 }' <<<"$line" >>"$dir/rounds"
		done
	done
	say "$1: $2"
}
for world in one many; do
	say "$world"
	config $world
	if [[ $world == one ]]; then good=h0.large.test; else good=www.z$((ZONES - 1)).test; fi
	start meridian "$PORT" $good "$dir/gslbd" -config "$dir/$world.yaml"
	if [[ " ${servers[*]} " == *" knot "* ]]; then start knot $((PORT + 2)) $good knotd -c "$dir/knot.conf"; fi
	if [[ " ${servers[*]} " == *" nsd "* ]]; then start nsd $((PORT + 3)) $good nsd -d -c "$dir/nsd.conf"; fi
	if [[ $world == one ]]; then
		row one A 'h%d.large.test' "$((ASKED < RRSETS / 2 ? ASKED : RRSETS / 2))"
		row one NXDOMAIN 'x%d.large.test' "$ASKED"
		row one referral 'www.d%d.large.test' "$((ASKED < RRSETS / 11 ? ASKED : RRSETS / 11))"
	else
		row many A 'www.z%d.test' "$((ASKED < ZONES ? ASKED : ZONES))"
		row many NXDOMAIN 'x.z%d.test' "$((ASKED < ZONES ? ASKED : ZONES))"
		row many referral 'www.sub.z%d.test' "$((ASKED < ZONES ? ASKED : ZONES))"
	fi
	for s in "${servers[@]}"; do
		printf '%s\t%s\t%s\t%s\n' "$world" "$s" "${start_s[$s]}" "${rss[$s]}" >>"$dir/starts"
		kill "${pid[$s]}"; wait "${pid[$s]}" 2>/dev/null || true; unset "pid[$s]"
	done
done
middle() { sort -g | awk '{ v[NR] = $1 } END { printf "%.2f", NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
figure() { awk -F'\t' -v z="$1" -v k="$2" -v s="$3" -v c="$4" '$1 == z && $2 == k && $3 == s { print $c }' "$dir/rounds" | middle; }
{
	echo "# Static answers, one core"
	echo
	echo "Written by \`testdata/bench/static.sh\`; run it to get these figures again. Medians of $ROUNDS rounds of"
	echo "$SECONDS_EACH s, every server in turn; the server on core 0, the client on core 1. CPU is user and system"
	echo "time of the server's processes, in µs per query. One zone of $RRSETS RRsets (\`one\`), $ZONES zones (\`many\`)."
	echo
	printf '| zones | answer |'; printf ' %s |' "${servers[@]}"; echo ' × knot |'
	printf '|---|---|'; for s in "${servers[@]}"; do printf -- '--:|'; done; echo '--:|'
	for z in one many; do
		for k in A NXDOMAIN referral; do
			printf '| %s | %s |' $z $k
			for s in "${servers[@]}"; do printf ' %s |' "$(figure $z $k "$s" 4)"; done
			[[ " ${servers[*]} " == *" knot "* ]] && awk "BEGIN { printf \" %.2f |\n\", $(figure $z $k meridian 4) / $(figure $z $k knot 4) }" || echo ' – |'
		done
	done
	echo
	echo "| zones | server | start to first answer s | memory MiB |"
	echo "|---|---|--:|--:|"
	awk -F'\t' '{ printf "| %s | %s | %s | %s |\n", $1, $2, $3, $4 }' "$dir/starts"
	echo
	echo "- Machine: $(nproc) cores, $(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo), Linux $(uname -r); load at the end (1 min): $(cut -d' ' -f1 /proc/loadavg)."
	echo "- Versions: $(go env GOVERSION), knot $(dpkg-query -W -f '${Version}' knot 2>/dev/null || echo '?'), nsd $(dpkg-query -W -f '${Version}' nsd 2>/dev/null || echo '?'); Meridian $(git describe --always --dirty 2>/dev/null || echo '?')."
} >"$dir/static.md"
cat "$dir/static.md"
if [[ $OUT != /dev/null ]]; then mkdir -p "$(dirname "$OUT")"; cp "$dir/static.md" "$OUT"; fi
