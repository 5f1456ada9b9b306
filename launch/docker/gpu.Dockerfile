# docker build -f launch/docker/gpu.Dockerfile -t lclm-gpu .
#
# CUDA and NCCL come with JAX's own wheels; the host needs NVIDIA's driver (580 or newer) and container toolkit. Plugins of
# NCCL come from the platform: GKE mounts those of A3 and A4 (launch/gke/gpu.yaml), AWS and Azure have them on the machine
# (launch/setup). EXTRAS=cuda,ray is the image of a Ray cluster. BASE=python@sha256:... pins the base to its digest.
ARG BASE=python:3.12.12-slim-bookworm
FROM ${BASE}
ARG EXTRAS=cuda
# Without libibverbs and its drivers NCCL would fall back to TCP, without a word. wget: the probes of KubeRay.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libibverbs1 ibverbs-providers librdmacm1 libnuma1 wget \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/lclm
COPY pyproject.toml requirements.txt constraints-py312.txt README.md LICENSE ./
COPY launch/docker/constraints-cuda.txt ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints-py312.txt -c constraints-cuda.txt ".[${EXTRAS}]"
COPY configs ./configs
COPY launch/ray/ray_job.py ./launch/ray/
# Runs as this user unless told otherwise (docker run --user, pyxis: the user who submits; on GKE root, see gpu.yaml).
RUN useradd --uid 10001 --create-home lclm && install --directory --owner=lclm /runs
USER 10001
WORKDIR /runs
ENTRYPOINT ["lclm"]
