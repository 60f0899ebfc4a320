# Two images: one for every role of Meridian (gslbd, gslbctl and gfe, static, on an empty base, run by a user without
# rights), and one with the tools of the tour: gslbctl, a resolver, a shell, dig, curl.
#
#   docker compose up --build                          builds the binaries in the image: targets run and run-tools
#   MERIDIAN_TARGET=prebuilt docker compose up --build takes the binaries from dist/ ("make dist"), and the tools from dist/tools
#                                                      ("testdata/ci/standins.sh roots"): no image is pulled for these two

# The prebuilt ones come first, so that a builder that walks the stages in order needs nobody's image for them.
FROM scratch AS prebuilt
COPY dist/bin/ /usr/local/bin/
COPY --chown=65532:65532 dist/data/ /data/
ENV PATH=/usr/local/bin
USER 65532:65532
WORKDIR /data
ENTRYPOINT ["gslbd"]

FROM scratch AS prebuilt-tools
COPY dist/tools/ /
COPY dist/bin/gslbctl /usr/local/bin/
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /out/bin/ ./cmd/gslbd ./cmd/gslbctl ./cmd/gfe && mkdir /out/data

FROM scratch AS run
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/bin/ /usr/local/bin/
COPY --from=build --chown=65532:65532 /out/data/ /data/
ENV PATH=/usr/local/bin
USER 65532:65532
WORKDIR /data
ENTRYPOINT ["gslbd"]

FROM debian:13-slim AS run-tools
RUN apt-get update && apt-get install -y --no-install-recommends bind9-dnsutils curl iproute2 jq openssl unbound && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/bin/gslbctl /usr/local/bin/
