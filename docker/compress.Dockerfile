# The offline half, for the CPU. torch comes from Debian: its build is CPU-only and ten times smaller
# than the default wheel on Linux, which brings CUDA (docs/adr/0007). For a GPU, install the extra
# `compress` in a CUDA image or on the host.
FROM python:3.13-slim-trixie
ENV PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-torch python3-venv \
    && rm -rf /var/lib/apt/lists/*
# Debian's own interpreter: the one that its torch was built for.
RUN /usr/bin/python3 -m venv --system-site-packages /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY constraints/ constraints/
# Every pin but those of torch and of the one package that torch pins itself, which are Debian's here.
# Dependencies before code, for the layer cache.
RUN mkdir model_store service compress loadtest \
    && grep -vE '^(torch|sympy)==' constraints/dev.txt > /tmp/pins.txt \
    && python -c 'from importlib.metadata import version as v; print("torch==" + v("torch"))' >> /tmp/pins.txt \
    && pip install --no-cache-dir -c /tmp/pins.txt '.[compress]' \
    && pip uninstall --yes slimrank
COPY model_store/ model_store/
COPY compress/ compress/
RUN pip install --no-cache-dir --no-deps . && rm -rf /src/*
RUN useradd --system --uid 10001 --no-create-home slimrank \
    && install -d -o slimrank -g slimrank /srv/store /srv/runs
ENV HOME=/tmp MPLCONFIGDIR=/tmp PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
WORKDIR /srv
USER slimrank
ENTRYPOINT ["python", "-m", "compress"]
