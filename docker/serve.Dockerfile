# The service alone: extra `serve`, no torch, no compiler, no pip in what runs. The target `loadtest` adds the
# load generator, which shares none of the service's code but lives in the same distribution.
FROM python:3.13-slim-trixie AS base
ENV PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

FROM base AS build
WORKDIR /src
# For service/_kernels.c. A Debian python, unlike the official image's, has its headers apart.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev $(python -c "\
import sysconfig, os; \
print('' if os.path.exists(sysconfig.get_path('include') + '/Python.h') else 'python3-dev')") \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv --without-pip /opt/venv
# Dependencies before code, so that a change of code reuses the layer. The build reads the package
# list from the code's folders: empty ones do for the dependencies.
COPY pyproject.toml setup.py README.md LICENSE ./
COPY constraints/ constraints/
RUN mkdir model_store service compress loadtest \
    && pip --python /opt/venv/bin/python install --no-cache-dir -c constraints/serve.txt '.[serve]' \
    && pip --python /opt/venv/bin/python uninstall --yes slimrank
COPY model_store/ model_store/
COPY service/ service/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps . \
    && (cd / && /opt/venv/bin/python -c "from service import _kernels") \
    && /opt/venv/bin/python -m compileall -q /opt/venv/lib

FROM build AS build-loadtest
COPY loadtest/ loadtest/
RUN pip --python /opt/venv/bin/python install --no-cache-dir -c constraints/dev.txt '.[loadtest]' \
    && pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --force-reinstall .

FROM base AS runtime
# A home to write to: bundles of a store behind a URL are kept in its .cache.
RUN useradd --system --uid 10001 --create-home slimrank \
    && install -d -o slimrank -g slimrank /srv/store
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
WORKDIR /srv
USER slimrank

FROM runtime AS loadtest
COPY --from=build-loadtest /opt/venv /opt/venv
COPY loadtest/locustfile.py /srv/locustfile.py
ENV HOME=/tmp MPLCONFIGDIR=/tmp

FROM runtime AS serve
COPY --from=build /opt/venv /opt/venv
# The delay is longer than the interval of the HEALTHCHECK below, which is to see it.
ENV SLIMRANK_HOST=0.0.0.0 SLIMRANK_PORT=8000 SLIMRANK_STORE=/srv/store SLIMRANK_DRAIN_DELAY_S=6
EXPOSE 8000
# /readyz, not /livez: "healthy" is to mean that /rank answers.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
CMD ["python", "-m", "service"]
