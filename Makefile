# What CI runs is "make check"; each part can be run alone.
#
#   make build    the three binaries in bin/
#   make check    all that CI checks, but the tour
#   make compose  three regions in containers, and the tour through them (needs docker, docker-compose and the programs of their images)
#   make profile  the profile of the query path that gslbd is compiled by
#   make bench    the tables of testdata/bench (needs gdnsd, dnsperf)

SHELL := /bin/bash
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Bugs (SA), what can be simpler (S1), what nobody uses (U1000), and how errors read. Without
# SA1019: HTTP/2 with prior knowledge on one connection needs x/net's transport for now.
LINTS := SA*,-SA1019,S1*,U1000,ST1005,ST1016,ST1019,ST1023
# Counted, not timed: a deadline that ends amid an input would be reported as a failure.
FUZZTIME := 5000x
# "./..." leaves testdata out; what is written in Go there is checked as well.
PKGS := ./... ./testdata/bench/... ./testdata/geo/...

build:
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/gslbd ./cmd/gslbctl ./cmd/gfe

# Go compiles gslbd by cmd/gslbd/default.pgo, wherever it is built; a query costs 4 to 6 % less. The path need not
# be as it was when the profile was made, so make it anew once much has changed.
profile:
	go test ./dns -run '^$$' -bench '^BenchmarkAnswer(Steered|Static|NXDOMAIN|Referral)$$|^BenchmarkTraced$$/^sample=0.01$$|^BenchmarkLoop$$' -benchtime 3s -cpuprofile cmd/gslbd/default.pgo -o /dev/null

# What is not measured goes without: all that gslbd imports would be compiled twice.
vet lint test sim bench-once fuzz demo: export GOFLAGS += -pgo=off

check: format vet lint test sim bench-once fuzz demo

format:
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "gofmt these:"; echo "$$bad"; exit 1; fi

vet:
	go vet $(PKGS)

lint:
	go run $(STATICCHECK) -checks '$(LINTS)' $(PKGS)

test:
	go test -race $(PKGS)

# Gossip among many nodes, for which the race detector is too slow.
sim:
	go test -run '^TestSim(Scale|SlowNodes|Flip|Soak)$$' ./health

# Every benchmark once, so that none rots.
bench-once:
	go test -run '^$$' -bench . -benchtime 1x $(PKGS)

# Every fuzz target for a moment, from its seeds. Their names are read from the source: to ask each package for its own
# would compile and link them all.
fuzz:
	@set -e; grep -roE --include='*_test.go' '^func Fuzz\w+' . | sort | while IFS=: read -r file f; do \
	  pkg=$$(dirname "$$file"); f=$${f#func }; \
	  echo "fuzz $$pkg $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null; \
	done

demo:
	testdata/ci/demo.sh

# The static binaries that the image's "prebuilt" target takes.
dist:
	mkdir -p dist/bin dist/data
	CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o dist/bin/ ./cmd/gslbd ./cmd/gslbctl ./cmd/gfe

compose: dist
	testdata/ci/compose.sh

bench:
	testdata/bench/dns.sh
	testdata/bench/node.sh
	go run ./testdata/bench/detect -out testdata/bench/results/detect.md
	go run ./testdata/bench/tracing -out testdata/bench/results/tracing.md

.PHONY: build profile check format vet lint test sim bench-once fuzz demo dist compose bench
