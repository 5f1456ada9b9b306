# docker build -f launch/docker/gpu.Dockerfile -t lclm-gpu .
# CUDA and NCCL come with JAX's own wheels; the host needs NVIDIA's driver and container toolkit.
FROM python:3.12-slim
WORKDIR /opt/lclm
COPY pyproject.toml requirements.txt constraints-py312.txt README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints-py312.txt '.[cuda]'
COPY configs ./configs
WORKDIR /runs
ENTRYPOINT ["lclm"]
