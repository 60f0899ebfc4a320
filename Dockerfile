# One image for every role: gslbd, gslbctl and gfe, static, on an empty base, run by a user
# without rights.
#
#   docker compose up --build                          builds the binaries in the image (the last stage)
#   make dist && MERIDIAN_TARGET=prebuilt docker compose up --build
#                                                      takes them from dist/: no image is pulled for it

# prebuilt comes first, so that a builder that walks the stages in order does not need golang's image for it.
FROM scratch AS prebuilt
COPY dist/bin/ /usr/local/bin/
COPY --chown=65532:65532 dist/data/ /data/
ENV PATH=/usr/local/bin
USER 65532:65532
WORKDIR /data
ENTRYPOINT ["gslbd"]

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
