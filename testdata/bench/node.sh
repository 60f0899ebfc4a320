#!/bin/bash
# What a node costs that does nothing: memory at rest with the example configuration, size of
# the static binary, and time from the start to the first answer.
#
#   testdata/bench/node.sh                     prints the table and writes results/node.md
#   testdata/bench/node.sh -starts 3 -rest 2s -out ""
#
# It needs Linux and Go. Everything is on loopback, in a folder of its own; it ends only what
# it started.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec go run ./testdata/bench/node -out testdata/bench/results/node.md "$@"
