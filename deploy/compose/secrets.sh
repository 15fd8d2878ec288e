#!/bin/sh
# Makes ./secrets, which compose.yaml reads: a password for each login and its address. Nothing is made anew.
# Beside them belong, from outside: shopify_api_key, shopify_api_secret, shopify_webhook_secret, hipoink_api_secret.
set -eu
umask 077
mkdir -p secrets
cd secrets

made() { # a random word of its own, in a file
    [ -s "$1" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$1"
}
address() { # file, scheme, login, file of its password; the network is the containers' own
    [ -s "$1" ] || printf '%s://%s:%s@postgres:5432/esl?sslmode=disable' "$2" "$3" "$(cat "$4")" >"$1"
}

for name in postgres owner receiver admin pipeline dagster; do made "${name}_password"; done
made admin_token
for name in owner receiver admin pipeline; do
    address "${name}_database_url" postgresql "shelf_$name" "${name}_password"
done
address dagster_database_url postgresql+psycopg2 dagster dagster_password
# The containers' user is another than yours: the files are open, the folder is not.
chmod 0444 ./*
chmod 0700 .
