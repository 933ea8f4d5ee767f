# Two commands matter: `make demo` and `make test`. Both install what they need into .venv first, and no more than that.
PYTHON ?= python3
VENV ?= .venv
ROBOSUITE_VENV ?= .venv-robosuite
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
PROCESSES ?= auto

# Debian keeps ldconfig off the path of users.
export PATH := $(PATH):/usr/sbin:/sbin

.NOTPARALLEL:
.PHONY: demo test test-robosuite lint docs install clean

# The simulator draws on two system libraries, through OpenCV; DeepMind Control draws without a display through EGL.
PUSHT_LIBRARIES := libGL.so.1 libglib-2.0.so.0
PUSHT_PACKAGES := libgl1 libglib2.0-0
ALL_LIBRARIES := $(PUSHT_LIBRARIES) libEGL.so.1 libEGL_.*[.]so[.]0
ALL_PACKAGES := $(PUSHT_PACKAGES) libegl1 libegl-mesa0 libgl1-mesa-dri

demo: $(VENV)/.demo
	$(BIN)/foreact demo
	@echo "$(VENV), $$(du -sm $(VENV) | cut -f1) MB, was installed in $$(cat $(VENV)/.torch) s (torch) and $$(cat $(VENV)/.demo) s (the rest)."

# A process for every core, each with one thread: the shapes are tiny, and pools of threads would only wait for one
# another. A file's tests stay together, so that what they share is made once, and the
# files go out in the order of collection, the long ones first.
test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not robosuite"

# robosuite needs NumPy 1, so it has an environment of its own.
test-robosuite: $(ROBOSUITE_VENV)/.all
	OMP_NUM_THREADS=1 $(ROBOSUITE_VENV)/bin/python -m pytest -m robosuite $$(grep -rl mark.robosuite tests --include='test_*.py')

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site, in build/site; a broken link is an error.
docs: $(VENV)/.docs
	$(BIN)/zensical build --strict --clean

install: $(VENV)/.all

# torch comes first and alone: with it in place pip keeps it, whichever build the machine offers. Each of the three files
# holds the seconds that its step took.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Foreact needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@begin=$$(date +%s); set -x; \
	$(PYTHON) -m venv $(VENV) && $(PIP) $(TORCH) && echo $$(($$(date +%s) - begin)) > $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	@$(call system,$(PUSHT_LIBRARIES),$(PUSHT_PACKAGES))
	@begin=$$(date +%s); set -x; \
	$(PIP) -c constraints.txt -e ".[pusht]" && echo $$(($$(date +%s) - begin)) > $@

$(VENV)/.all: pyproject.toml $(VENV)/.torch
	@$(call system,$(ALL_LIBRARIES),$(ALL_PACKAGES))
	@begin=$$(date +%s); set -x; \
	$(PIP) -c constraints.txt -e ".[dev]" && echo $$(($$(date +%s) - begin)) > $@

$(ROBOSUITE_VENV)/.all: pyproject.toml constraints-robosuite.txt
	@$(call system,$(ALL_LIBRARIES),$(ALL_PACKAGES))
	$(PYTHON) -m venv $(ROBOSUITE_VENV)
	$(ROBOSUITE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(ROBOSUITE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-robosuite.txt -e ".[robosuite]" pytest pytest-timeout hypothesis
	touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.torch
	$(PIP) -c constraints.txt -e ".[docs]" && touch $@

# $(call system,libraries,packages): install the packages where a library is missing and we may, else name them.
define system
missing=; for library in $(1); do ldconfig -p | grep -q "$$library" || missing="$$missing $$library"; done; \
test -z "$$missing" || \
  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
    apt-get update -qq && apt-get install -y -qq --no-install-recommends $(2); } || \
  { echo "Foreact's simulators need$$missing: sudo apt-get install $(2)"; exit 1; }
endef

clean:
	rm -rf $(VENV) $(ROBOSUITE_VENV) build dist *.egg-info .pytest_cache .ruff_cache
