# The package with its locked dependencies, for KubeRay and for `docker.image` of cluster/*.yaml.
#
#   docker build -t af_pipeline .
#   docker run --rm --shm-size=2g -v PHOTOS:/in:ro -v OUT:/out af_pipeline \
#     python jobs/index.py --config configs/index/aerial.yaml \
#     --set source.uri=/in --set output.uri=/out      # --gpus all where there are GPUs
#
# OUT must be writable for user id 1000. On python:3.11-slim rather than rayproject/ray: the lock file
# already has Ray, and torch's wheels their CUDA libraries, so the base needs Python alone and every
# node gets exactly the locked packages. The host needs the NVIDIA driver, 580 or newer.
FROM python:3.11-slim-bookworm

# wget: KubeRay's health probes. rsync and ssh: Ray's cluster launcher copies files with them.
# procps: `ray stop` and people look for processes.
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash ray

ENV PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    HOME=/home/ray

# Not af_pipeline: from /home/ray, Python would take a folder of that name for the package.
WORKDIR /home/ray/app

# Into /usr/local, which login shells have on their PATH as well. Its own layer: rarely changes.
COPY requirements.lock ./
RUN pip install -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY af_pipeline af_pipeline
COPY jobs jobs
COPY configs configs
COPY checkpoints checkpoints
RUN pip install --no-deps --no-build-isolation -e . && chown -R ray:ray /home/ray

USER ray
CMD ["python", "jobs/index.py", "--help"]
