# make demo, make lm and make test do all the set-up: they make .venv with the versions of constraints.txt. Nothing outside
# this folder is touched. PYTHON=python3.13 chooses the interpreter; another one than before makes .venv anew.

VENV := .venv
PYTEST_ARGS ?=
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python

# Caches stay in the checkout; a user's own Python settings stay out.
export HF_HUB_OFFLINE := 1
export HF_HOME := $(CURDIR)/.cache/huggingface
export IPYTHONDIR := $(CURDIR)/.cache/ipython
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.cache/jax
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export XDG_CACHE_HOME := $(CURDIR)/.cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_CACHE_DIR := 1
export TOKENIZERS_PARALLELISM := false
export JAX_PLATFORMS ?= cpu
unexport PYTHONPATH PYTHONHOME

# An environment is made anew unless its installation was finished, in this place (it was not moved with the
# checkout), its interpreter still runs, and it is of the version that PYTHON=... asks for.
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
ifneq ($(origin PYTHON),undefined)
WANTED := $(shell "$(PYTHON)" -c '$(VERSION)' 2>/dev/null || echo none)
endif
PYTHON ?= python3
FOUND := $(shell "$(RUN)" -c '$(VERSION)' 2>/dev/null)
ifneq ($(CURDIR) $(or $(WANTED),$(FOUND)),$(shell cat $(STAMP) 2>/dev/null) $(FOUND))
.PHONY: $(STAMP)
endif

.PHONY: help demo lm test test-long test-pod lint docs docs-packages newcomer notebooks peers throughput clean

help:
	@echo "make demo    four methods learn the built-in tasks; table and plot in runs/demo"
	@echo "make lm      a pretrained language model of 135M parameters learns problems, in about 25 minutes; runs/lm"
	@echo "make test    the tests; PYTEST_ARGS='-k budget' passes arguments to pytest"
	@echo "make test-long  the tests that make test leaves out: many kills, notebooks at full size"
	@echo "make test-pod  the slow tests: the 4B configs compiled for TPU slices, runs of several processes (an hour)"
	@echo "make lint    the linter"
	@echo "make docs    the documentation as a site, in .cache/site; a broken link is an error"
	@echo "make newcomer  a first hour in a fresh clone and environment: docs/first_hour.md, in ten minutes"
	@echo "make notebooks  runs notebooks/ and keeps their outputs"
	@echo "make throughput  rollouts and updates, timed in about a minute; make peers: what they are compared with"
	@echo "make clean   removes $(VENV), caches and build products; never runs/"

demo: $(STAMP)
	"$(RUN)" -m experiments.demo.run

lm: $(STAMP)
	"$(RUN)" -m pip install -q --no-build-isolation -c constraints.txt -e ".[gguf,reasoning-gym]"
	"$(RUN)" -m experiments.lm.run

test: $(STAMP)
	@mkdir -p .cache
	"$(RUN)" -m pytest -n 2 --dist worksteal --basetemp=.cache/pytest-tmp $(PYTEST_ARGS)

test-long: $(STAMP)
	"$(RUN)" -m pytest -n 2 --dist worksteal -m long --basetemp=.cache/pytest-tmp $(PYTEST_ARGS)

# TPUs' compiler comes with the tpu extra and runs on any Linux machine.
test-pod: $(STAMP)
	"$(RUN)" -m pip install -q -c constraints.txt -e ".[tpu]"
	@mkdir -p .cache
	"$(RUN)" -m pytest -m pod --basetemp=.cache/pytest-tmp $(PYTEST_ARGS)

lint: $(STAMP)
	"$(RUN)" -m ruff check .
	"$(RUN)" -m ruff format --check .

docs: docs-packages
	NO_MKDOCS_2_WARNING=1 "$(RUN)" -m mkdocs build --strict

docs-packages: $(STAMP)
	@"$(RUN)" -c "import material, mkdocstrings_handlers.python" 2>/dev/null || \
	  "$(RUN)" -m pip install -q --no-build-isolation -c constraints.txt -e ".[docs]"

newcomer:
	"$(PYTHON)" -m tests.newcomer

notebooks: $(STAMP)
	"$(RUN)" -m notebooks.execute

throughput: $(STAMP)
	"$(RUN)" -m experiments.throughput.run --quick

# Environments of their own: what the peers need does not go together with what this package needs, nor with each other.
PEERS := .cache/peers
peers: $(PEERS)/torch/.installed $(PEERS)/tunix/.installed

$(PEERS)/%/.installed: experiments/throughput/peers/%.txt
	rm -rf "$(PEERS)/$*"
	@if "$(PYTHON)" -c 'import ensurepip' 2>/dev/null; \
	  then "$(PYTHON)" -m venv "$(PEERS)/$*"; else "$(PYTHON)" -m venv --without-pip "$(PEERS)/$*"; fi
	"$(PYTHON)" -m pip --python "$(PEERS)/$*/bin/python" install -q -r "$<"
	@touch "$@"

clean:
	rm -rf "$(VENV)" .cache build dist v05_jax.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# Some systems ship Python without ensurepip: there the interpreter's own pip fills the environment.
$(STAMP): setup.py constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "$(PYTHON) was not found; name a Python of version 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, " + \
	  "$(PYTHON) is %d.%d; name another: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "making $(VENV): the first time takes a few minutes"
	@rm -rf "$(VENV)"
	@if "$(PYTHON)" -c 'import ensurepip' 2>/dev/null; \
	  then "$(PYTHON)" -m venv "$(VENV)"; \
	  else "$(PYTHON)" -m venv --without-pip "$(VENV)" && \
	    "$(PYTHON)" -m pip --python "$(RUN)" install -q -c constraints.txt pip; fi
	@"$(RUN)" -m pip install -q -c constraints.txt setuptools
	"$(RUN)" -m pip install -q -c constraints.txt --no-build-isolation -e ".[test,plots]"
	@echo "$(CURDIR)" > "$@"
