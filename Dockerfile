# One image for every process of esl_pipeline/deploy/processes.py; what a container is, its command says. compose.yaml
# and deploy/kubernetes have the commands. Without more, it is the receiver of webhooks.
#
# The base is named by version. Whoever makes the first real build pins its digest in both FROM lines
# (python:3.13-slim-bookworm@sha256:…): this file was written where no image could be pulled, and has never been built.
FROM python:3.13-slim-bookworm AS built

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/esl-pipeline
WORKDIR /src
# The production lock (requirements.lock) and what runs on other machines need: Celery, pods, S3, Google Cloud Storage.
COPY requirements-workers.lock ./
RUN /opt/esl-pipeline/bin/pip install --require-hashes --no-deps --only-binary :all: -r requirements-workers.lock
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY esl_pipeline esl_pipeline
RUN /opt/esl-pipeline/bin/pip install --no-deps --no-build-isolation .

FROM python:3.13-slim-bookworm

RUN groupadd --gid 10001 esl \
    && useradd --uid 10001 --gid esl --no-create-home --home-dir /var/lib/esl-pipeline --shell /usr/sbin/nologin esl \
    && install -d -o esl -g esl -m 0750 /var/lib/esl-pipeline /var/lib/esl-pipeline/frames \
        /var/lib/esl-pipeline/dagster /var/lib/esl-pipeline/dagster/storage
COPY --from=built /opt/esl-pipeline /opt/esl-pipeline
COPY esl_pipeline/local/dagster.yaml deploy/compose/workspace.yaml /var/lib/esl-pipeline/dagster/

ENV PATH=/opt/esl-pipeline/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    APP_ENVIRONMENT=production \
    ESL_HOME=/var/lib/esl-pipeline \
    DAGSTER_HOME=/var/lib/esl-pipeline/dagster
USER 10001:10001
WORKDIR /var/lib/esl-pipeline
EXPOSE 8000
# Of the receiver; compose.yaml says it for each process.
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 \
    CMD ["esl-pipeline", "health", "receiver", "--json"]
CMD ["esl-pipeline", "receiver", "--only", "webhooks", "--host", "0.0.0.0", "--port", "8000"]
