# docker build -f launch/docker/tpu.Dockerfile -t lclm-tpu .
#
# It runs as root: the devices of a TPU (/dev/vfio, /dev/accel) belong to it. EXTRAS=tpu,ray is the image of a Ray cluster.
# BASE=python@sha256:... pins the base to its digest.
ARG BASE=python:3.12.12-slim-bookworm
FROM ${BASE}
ARG EXTRAS=tpu
RUN apt-get update \
 && apt-get install -y --no-install-recommends wget \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/lclm
COPY pyproject.toml requirements.txt constraints-py312.txt README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints-py312.txt ".[${EXTRAS}]"
COPY configs ./configs
COPY launch/ray/ray_job.py ./launch/ray/
WORKDIR /runs
ENTRYPOINT ["lclm"]
