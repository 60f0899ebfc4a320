#!/usr/bin/env bash
# Makes what name servers and proxies show each other, in the folder DIR: a CA, a certificate of the config servers, and one for the
# name of each pool of proxies. For the tour: its keys can be read by everybody in the containers.
#
#   certs.sh DIR
set -euo pipefail
cd "$1"
[ ! -e done ] || exit 0
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
key ca
openssl req -x509 -new -key ca.key -days 3650 -subj "/CN=Meridian's tour" -out ca.crt
for name in xds gfe-us gfe-eu gfe-ap; do
  key "$name"
  openssl req -new -key "$name.key" -subj "/CN=$name" -out "$name.csr"
  openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -extfile <(echo "subjectAltName=DNS:$name") -out "$name.crt" 2>/dev/null
done
rm -f ca.key ./*.csr
chmod 644 ./*
touch done
echo "certs: made"
