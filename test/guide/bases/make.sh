#!/bin/sh
# make.sh: makes the base images that the Dockerfiles of the guide name, of packages of Debian and npm, by `./berth build`
# on the Berth of BERTH_URL and BERTH_API_KEY. With a directory it leaves what it fetched there.
set -eu
bases=$(dirname "$(realpath "$0")")
berth=$bases/../../../berth
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# apt fetches what the base image `debian` lacks of these and of what they need.
debian='python3-venv python3-pip python-is-python3 python3-gunicorn gcc libpq-dev curl git wget nginx busybox-static netbase tzdata'
"$berth" run --image debian -- cat /var/lib/dpkg/status > "$work/status"
fetch() {
  into=$1; shift
  mkdir -p "$work/$into"
  apt-get install -q -y --no-install-recommends --download-only -o Debug::NoLocking=1 -o APT::Sandbox::User=root \
    -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/$into" "$@" >&2
  rm -rf "$work/$into/partial"
}
# Lists that are older than the mirror name what it has no more.
# shellcheck disable=SC2086
fetch archives $debian || { apt-get -q update >&2; fetch archives $debian; }
fetch golang golang-go
npm cache add ms@2.1.3 --cache "$work/npm-cache" --loglevel error
rm -rf "$work/npm-cache/_logs"
npm pack npm@10.8.2 --pack-destination "$work" --loglevel error >&2

build() { "$berth" build --progress=plain "$@" > /dev/null; }
made() { build --target "$1" -t "$2" "$bases"; }
fetched() { build --target "$1" -t "$1" -f "$bases/packages.Dockerfile" "$work"; }
fetched packages
made debian-slim debian-slim
(
  set -e
  made python python:3.11-slim
  made python python:latest
  made wheels wheels
  made python-alpine python:3.11-alpine
) &
python=$!
fetched npm
fetched golang-packages
made node node:18
made alpine alpine:3.18
made node-alpine node:18-alpine
made golang-alpine golang:1.21-alpine
made distroless gcr.io/distroless/base-debian11
wait "$python"
