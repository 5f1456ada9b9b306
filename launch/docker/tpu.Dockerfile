# docker build -f launch/docker/tpu.Dockerfile -t lclm-tpu .
FROM python:3.12-slim
WORKDIR /opt/lclm
COPY pyproject.toml requirements.txt constraints-py312.txt README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints-py312.txt '.[tpu]'
COPY configs ./configs
WORKDIR /runs
ENTRYPOINT ["lclm"]
