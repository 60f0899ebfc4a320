#!/usr/bin/env bash
# Puts what all name servers share into etcd, and writes the bootstrap file of each proxy to DIR.
#
#   setup.sh DIR
set -euo pipefail
ctl() { gslbctl --server "http://172.28.$1.11:8053" "${@:2}"; }

until ctl 1 apply --author setup -f /tour/objects.yaml; do sleep 0.5; done
n=0
for region in us eu ap; do
  n=$((n + 1))
  # Its own region's config server first, then the others.
  servers=172.28.$n.11:18000
  for m in 1 2 3; do [ $m = $n ] || servers=$servers,172.28.$m.11:18000; done
  for i in 1 2; do
    until ctl $n gfe bootstrap --pool "gfe-$region" --id "gfe-$region-$i" --server-address "$servers" --server-name xds \
      --ca /certs/ca.crt --cert "/certs/gfe-$region.crt" --key "/certs/gfe-$region.key" >"$1/.new"; do sleep 0.5; done
    mv "$1/.new" "$1/gfe-$region-$i.yaml"
  done
done
echo "setup: done"
