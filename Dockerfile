# syntax=docker/dockerfile:1
# An image of the server and of `leapfrog bench`. Without arguments it serves the built-in model:
#
#   docker build -t leapfrog .
#   docker run --rm -p 8080:8080 -v leapfrog-models:/models leapfrog [--model ORG/NAME]
#
# With kernels for NVIDIA GPUs, whose driver the container runtime brings along:
#
#   docker build -t leapfrog-cuda --build-arg FEATURES=cuda --build-arg CUDA_ARCHS="90" .
#   docker run --rm --gpus all -p 8080:8080 -v leapfrog-models:/models leapfrog-cuda --device cuda [--model ORG/NAME]

ARG RUST_VERSION=1.95.0

FROM rust:${RUST_VERSION}-bookworm AS build
# The image's own toolchain, whatever rust-toolchain.toml names.
ARG RUST_VERSION
ENV RUSTUP_TOOLCHAIN=${RUST_VERSION}
ARG FEATURES=""
ARG CUDA_ARCHS="75;80;86;89;90"
ENV LEAPFROG_CUDA_ARCHS=${CUDA_ARCHS}
# For the CUDA compiler, which `fetch-nvcc` takes from PyPI. The newest is the right one, so no version.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
WORKDIR /src
COPY . .
# Registry and target folder outlive the build, so a change compiles only what it touches. The target folder is not
# part of the layer, hence the copy.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    if [ "$FEATURES" = cuda ]; then eval "$(kernels/scripts/fetch-nvcc)"; fi \
    && cargo build --release --locked --package leapfrog --package leapfrog-bench --features "$FEATURES" \
    && cp target/release/leapfrog target/release/leapfrog-bench /usr/local/bin/

FROM debian:bookworm-slim
# The certificates are for downloads from the Hugging Face Hub; the newest are the right ones, so no version.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=10001 --group=10001 /models
COPY --from=build /usr/local/bin/leapfrog /usr/local/bin/leapfrog-bench /usr/local/bin/
COPY LICENSE /usr/share/doc/leapfrog/LICENSE
USER 10001:10001
# A container has its own network, so listening on all addresses exposes nothing that is not published.
# The last two ask NVIDIA's container runtime for the driver; nothing else reads them.
ENV LEAPFROG_HOST=0.0.0.0 \
    HF_HOME=/models \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /models
WORKDIR /models
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=6s --start-period=30s CMD ["leapfrog", "health"]
ENTRYPOINT ["leapfrog"]
