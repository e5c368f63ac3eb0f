# The harness in a container, on a CPU by default.
#   docker build -t anomaly-bench .
#   docker build -t anomaly-bench:cuda --build-arg BASE=nvidia/cuda:13.0.2-base-ubuntu24.04 .
#   docker run --rm -v "$PWD/data:/app/data" -v "$PWD/results:/app/results" anomaly-bench demo
#   docker run --rm --gpus all --shm-size 8g -v ... anomaly-bench:cuda run --methods patchcore --datasets mvtec_ad
# With PyTorch's index of CPU wheels as --build-arg PIP_EXTRA_INDEX_URL=... the first image is several GB smaller.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

# git names the commit in each record; the versions of both do not move a figure
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends git python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && git config --system --add safe.directory /app

ARG PIP_EXTRA_INDEX_URL
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
COPY requirements.txt requirements.lock ./
RUN python -m pip install --no-cache-dir -r requirements.txt -c requirements.lock
COPY . .

ENTRYPOINT ["python", "run_benchmark.py"]
CMD ["--help"]
