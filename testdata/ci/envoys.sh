#!/usr/bin/env bash
# Runs every test with an Envoy with each of the binaries given, such as those of other versions:
#
#   testdata/ci/envoys.sh /opt/envoy-1.36/envoy /opt/envoy-1.39/envoy
set -euo pipefail
cd "$(dirname "$0")/../.."
failed=0
for envoy in "$@"; do
  printf '\n=== %s' "$("$envoy" --version)"
  ENVOY=$envoy REQUIRE_ALL=1 go test -count=1 ./xds -run '^(TestEnvoy|TestExample)' || failed=1
done
exit $failed
