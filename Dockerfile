# Two images from one file: `operator` (the controller) and `postgres` (PostgreSQL 15 under Patroni, with medianest-dbctl).
# A machine whose package proxy has its own certificate authority mounts it at /run/host-ca.crt; elsewhere nothing is there.
# A release names its base by digest: --build-arg BASE=debian:bookworm-slim@sha256:...
ARG BASE=debian:bookworm-slim
FROM ${BASE} AS tools
SHELL ["/bin/sh", "-eu", "-c"]
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv python3-pip ca-certificates
WORKDIR /src
COPY requirements-build.lock ./
RUN if [ -f /run/host-ca.crt ]; then export PIP_CERT=/run/host-ca.crt; fi; \
    python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.lock

FROM tools AS wheel
COPY pyproject.toml ./
COPY operator operator
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-cache-dir -w /wheels .

FROM tools AS operator-venv
COPY requirements.lock ./
RUN if [ -f /run/host-ca.crt ]; then export PIP_CERT=/run/host-ca.crt; fi; \
    python3 -m venv /opt/medianest && /opt/medianest/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements.lock
COPY --from=wheel /wheels /wheels
RUN /opt/medianest/bin/pip install --no-cache-dir --no-compile --no-deps /wheels/*.whl \
 && /opt/medianest/bin/pip uninstall -y -q setuptools pip \
 && find /opt/medianest -name tests -type d -prune -exec rm -rf {} + \
# The controller calls the API server itself; of `kubernetes` it uses the loader of configurations, not the generated
# clients, which are half of the image.
 && cd /opt/medianest/lib/python3.11/site-packages/kubernetes \
 && rm -rf aio && find client/api client/models -name '*.py' ! -name __init__.py -delete \
# Without docstrings, and not compiled at each start: that takes two seconds, and memory that is never given back.
 && python3 -OO -m compileall -q /opt/medianest/lib

FROM tools AS postgres-venv
COPY requirements-postgres.lock ./
RUN if [ -f /run/host-ca.crt ]; then export PIP_CERT=/run/host-ca.crt; fi; \
    python3 -m venv /opt/medianest && /opt/medianest/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements-postgres.lock
COPY --from=wheel /wheels /wheels
RUN /opt/medianest/bin/pip install --no-cache-dir --no-compile --no-deps /wheels/*.whl \
 && /opt/medianest/bin/pip uninstall -y -q setuptools pip \
 && find /opt/medianest -name tests -type d -prune -exec rm -rf {} + \
 && python3 -m compileall -q /opt/medianest/lib

FROM ${BASE} AS operator
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 ca-certificates \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/* \
# Debian compiles its library for another level than the one that is used here.
 && find /usr/lib/python3.11 -name __pycache__ -prune -exec rm -rf {} + \
 && python3 -OO -m compileall -q /usr/lib/python3.11 \
 && groupadd -g 65532 medianest && useradd -u 65532 -g 65532 -M -d /tmp -s /usr/sbin/nologin medianest
COPY --from=operator-venv /opt/medianest /opt/medianest
LABEL org.opencontainers.image.title="medianest-operator" \
      org.opencontainers.image.description="Controller of MediaNestDatabase objects" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONOPTIMIZE=2 PATH=/opt/medianest/bin:/usr/bin:/bin
USER 65532:65532
ENTRYPOINT ["/opt/medianest/bin/medianest-operator"]

FROM ${BASE} AS postgres
SHELL ["/bin/sh", "-eu", "-c"]
# The package's just-in-time compiler is left out (jit = off): LLVM alone is larger than PostgreSQL, and MediaNest's queries are short.
RUN groupadd -g 999 postgres && useradd -u 999 -g 999 -M -d /var/lib/postgresql -s /bin/bash postgres \
 && apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql-common \
 && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql-15 python3 ca-certificates tini \
 && rm -rf /usr/lib/postgresql/15/lib/bitcode /usr/lib/postgresql/15/lib/llvmjit* /usr/lib/llvm-* /usr/lib/*/libLLVM* /usr/lib/*/libz3* \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/* /usr/share/postgresql/15/man /var/lib/postgresql/15
COPY --from=postgres-venv /opt/medianest /opt/medianest
COPY tools/patient_pg_isready tools/roomy_postgres /opt/medianest/bin/
LABEL org.opencontainers.image.title="medianest-postgres" \
      org.opencontainers.image.description="PostgreSQL 15 under Patroni for MediaNestDatabase objects" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/medianest/bin:/usr/lib/postgresql/15/bin:/usr/bin:/bin LANG=C.UTF-8 \
    PATRONI_POSTGRESQL_BIN_PG_ISREADY=/opt/medianest/bin/patient_pg_isready \
    PATRONI_POSTGRESQL_BIN_POSTGRES=/opt/medianest/bin/roomy_postgres
# What throwaway servers begin with: they are made by each Job that rehearses or verifies.
RUN install -d -o 999 -g 999 /var/lib/medianest
USER 999:999
RUN /opt/medianest/bin/medianest-dbctl blank-cluster /var/lib/medianest/blank
ENV MEDIANEST_BLANK_CLUSTER=/var/lib/medianest/blank
# Linux keeps from a PID 1 what it doesn't handle yet: Patroni itself would miss the signal to stop in its first second.
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["/opt/medianest/bin/patroni", "/etc/medianest/patroni.yml"]
