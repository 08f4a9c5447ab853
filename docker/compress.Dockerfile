# The offline half: extra `compress`. The default wheel of torch for Linux brings CUDA: 6 GB of image.
# With an index of CPU-only builds it is under 2 GB (docs/adr/0007):
#   docker build -f docker/compress.Dockerfile --build-arg TORCH_INDEX_URL=... .
FROM python:3.13-slim-trixie
ENV PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY constraints/ constraints/
# A layer of its own: it is large and changes least. From an index named for torch, torch alone.
ARG TORCH_INDEX_URL=
RUN pip install --no-cache-dir -c constraints/dev.txt \
    ${TORCH_INDEX_URL:+--no-deps --index-url "$TORCH_INDEX_URL"} torch
COPY pyproject.toml setup.py README.md LICENSE ./
# Dependencies before code, so that a change of code reuses the layer.
RUN mkdir model_store service compress loadtest \
    && pip install --no-cache-dir -c constraints/dev.txt '.[compress]' \
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
