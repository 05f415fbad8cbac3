# What the network would have, as make.sh fetched it: packages that apt installs, Go, an npm cache, and npm.
FROM debian AS index
WORKDIR /made
RUN --mount=type=bind,source=archives,target=/archives <<EOT
cd /archives
for deb in *.deb; do
  dpkg-deb --field "$deb"
  sum=$(sha256sum < "$deb")
  printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$deb" "$(stat -c %s "$deb")" "${sum%% *}"
done > /made/Packages
EOT

FROM scratch AS packages
COPY --from=index /made/Packages /
COPY archives/*.deb /

FROM scratch AS golang-packages
COPY golang/*.deb /

FROM debian AS unpacked
WORKDIR /unpacked
ADD npm-*.tgz ./
RUN mkdir -p lib/node_modules bin && mv package lib/node_modules/npm \
    && for name in npm npx; do ln -s ../lib/node_modules/npm/bin/$name-cli.js bin/$name; done

FROM scratch AS npm
COPY --from=unpacked /unpacked /usr/local
COPY npm-cache /cache
