# Both programs and the demo, on Debian 12. From the repository's root:
#
#   docker build -t fedtune .
#
# compiles from source. Programs that are built already go in with deploy/image-from-programs.sh, which is why the stage
# without them comes first. Nothing here needs BuildKit.

FROM debian:bookworm-slim AS runtime
# Volumes mounted on these folders start with their owner.
RUN groupadd --gid 10001 fedtune \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin fedtune \
    && install -d -o fedtune -g fedtune -m 0750 /federation /sites /results
COPY config/demo /usr/share/fedtune/demo
COPY deploy/compose /usr/share/fedtune/compose
USER 10001:10001
CMD ["fedtune-server", "--help"]

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package fedtune-server --package fedtune-client --bins

FROM runtime
COPY --from=build /src/target/release/fedtune-server /src/target/release/fedtune-client /usr/local/bin/
