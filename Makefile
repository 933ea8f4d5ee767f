# Two commands matter: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)

.PHONY: demo test lint install system clean

demo: install
	$(BIN)/foreact demo

# One thread: the shapes are tiny, and several processes with a thread pool each would only wait for one another.
test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

install: $(VENV)/.installed

# torch comes first and alone: with it in place pip keeps it, whichever build the machine offers.
$(VENV)/.installed: pyproject.toml constraints.txt | system
	$(PYTHON) -c 'import sys; sys.exit("Foreact needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# OpenCV, which the PushT simulator imports, links libGL and glib; DeepMind Control draws without a display through EGL.
PACKAGES := libgl1 libglib2.0-0 libegl1 libegl-mesa0 libgl1-mesa-dri
system:
	@missing=; for library in libGL.so.1 libglib-2.0.so.0 libEGL.so.1 "libEGL_.*\.so\.0"; do \
	  ldconfig -p | grep -q "$$library" || missing="$$missing $$library"; done; \
	test -z "$$missing" || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends $(PACKAGES); } || \
	  { echo "Foreact's simulators need$$missing: sudo apt-get install $(PACKAGES)"; exit 1; }

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
