#!/usr/bin/env bash
# The router between the regions. It holds the default gateway of each network and gives what it sends on the latency of
# the distance, where the kernel has netem.
#
#   wan.sh up            what the container runs
#   wan.sh cut REGION    nothing goes to the region or comes from it any more: us-east, eu-west or ap-southeast
#   wan.sh join REGION   it does again
#   wan.sh latency       prints what latency there is
#
# NETEM is what tc is told in place of "netem delay …", to try this file where netem is not.
set -euo pipefail

# What lies at a place: its region, and the users in its city.
us="172.28.1.0/24 172.28.9.0/24"
eu="172.28.2.0/24 172.28.10.0/24"
ap="172.28.3.0/24 172.28.11.0/24"
# One way, in ms. Between a region and its city 1 ms; the resolver and the operator's desk (172.28.8.0/24) are near everybody.
us_eu=40 eu_ap=80 us_ap=110 near=1

# device NETWORK prints the interface in it.
device() { ip -o -4 addr show | awk -v net="$1" 'index($4, net) == 1 { print $2; exit }'; }

region() {
  case $1 in
    us-east) echo 172.28.1. ;; eu-west) echo 172.28.2. ;; ap-southeast) echo 172.28.3. ;;
    *) echo "wan.sh: no region $1; expected us-east, eu-west or ap-southeast" >&2; exit 2 ;;
  esac
}

# pair DEVICE A B CLASS: what goes from a place to another, either way, takes that class.
pair() {
  local a b
  for a in $2; do for b in $3; do
    tc filter add dev "$1" parent 1: protocol ip prio 1 u32 match ip src "$a" match ip dst "$b" flowid "1:$4"
    tc filter add dev "$1" parent 1: protocol ip prio 1 u32 match ip src "$b" match ip dst "$a" flowid "1:$4"
  done; done
}

# shape DEVICE adds the latency to what leaves by it.
shape() {
  local class=1 delay
  tc qdisc del dev "$1" root 2>/dev/null || true
  tc qdisc add dev "$1" root handle 1: htb default 9
  for delay in 0 $near $us_eu $eu_ap $us_ap; do
    [ "$delay" = 0 ] && class=9
    tc class add dev "$1" parent 1: classid "1:$class" htb rate 10gbit burst 256k cburst 256k quantum 60000
    if [ "$delay" = 0 ]; then class=1; continue; fi
    tc qdisc add dev "$1" parent "1:$class" handle "1$class:" ${NETEM:-netem delay ${delay}ms limit 10000}
    class=$((class + 1))
  done
  pair "$1" "${us% *}" "${us#* }" 1; pair "$1" "${eu% *}" "${eu#* }" 1; pair "$1" "${ap% *}" "${ap#* }" 1
  pair "$1" "$us" "$eu" 2
  pair "$1" "$eu" "$ap" 3
  pair "$1" "$us" "$ap" 4
}

case ${1:-} in
  up)
    ip route del default 2>/dev/null || true
    latency="us-east to eu-west $((2 * us_eu)) ms, eu-west to ap-southeast $((2 * eu_ap)) ms, us-east to ap-southeast $((2 * us_ap)) ms, there and back"
    for gateway in 172.28.8.254/22 172.28.1.254/24 172.28.2.254/24 172.28.3.254/24; do
      dev=$(device "${gateway%.*}.")
      ip addr replace "$gateway" dev "$dev"
      # What goes to a region that is cut off is lost on the way, and nobody is told.
      [ "${gateway#*/}" = 22 ] || ip route replace blackhole "${gateway%.*}.0/24" metric 1000
      if ! "$0" shape "$dev" 2>/tmp/tc; then   # a process of its own, which ends at the first fault
        latency="none here: tc says '$(grep -m 1 -v '^$' /tmp/tc)'; it takes a kernel with sch_htb and sch_netem"
        tc qdisc del dev "$dev" root 2>/dev/null || true
      fi
    done
    echo "$latency" >/tmp/latency
    echo "wan: latency between the regions: $latency"
    exec sleep infinity
    ;;
  shape) shape "$2" ;;
  cut) ip link set "$(device "$(region "$2")")" down ;;
  join) ip link set "$(device "$(region "$2")")" up ;;
  latency) cat /tmp/latency ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
