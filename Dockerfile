# Restage on a CPU:
#   docker build -t restage .
#   docker run --rm --user "$(id -u)" -v "$PWD:/work" restage demo
FROM python:3.11-slim-bookworm
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Whoever runs it may have no home; kernels that numba compiles at first use are kept below it.
ENV PIP_NO_CACHE_DIR=1 HOME=/tmp
WORKDIR /source
COPY . .
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt ".[view,serve]" \
    && rm -rf /source
USER 1000
WORKDIR /work
ENTRYPOINT ["restage"]
CMD ["--help"]
