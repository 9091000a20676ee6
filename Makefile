# Everything runs in .venv, which the first target makes and later ones find ready.
# Another interpreter: make test PYTHON=python3.12    Another place: make test VENV=/tmp/venv

PYTHON      ?= python3
VENV        ?= .venv
VENV_ARVIZ1 ?= .venv-arviz1
WORKERS     ?= 2
ARGS        ?=

PY    := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
RUN   := PYTHONPATH=. OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 MPLBACKEND=Agg $(PY)

# Python 3.12 for the ArviZ 1 leg: on the path, or among pyenv's versions.
PYTHON312 ?= $(shell for p in python3.12 "$$(pyenv root 2>/dev/null)"/versions/3.12*/bin/python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && echo "$$p" && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup demo examples test test-shapes test-slow test-arviz1 test-wheel test-versions lint format types docs notebooks dist bench clean distclean

help:
	@echo 'make demo         fit two real posteriors and write numbers and pictures (sets everything up)'
	@echo 'make test         the fast tests and doctests (sets everything up)'
	@echo 'make test-slow    the tests marked slow'
	@echo 'make test-shapes  the shapes in annotations, checked while the laws of flows run'
	@echo 'make test-arviz1  the conversion under ArviZ 1 and Python 3.12'
	@echo 'make test-wheel   the built wheel outside of the checkout, with the versions of .venv'
	@echo 'make test-versions  the same with the lowest and the newest versions too (gigabytes)'
	@echo 'make dist         build and examine what is published'
	@echo 'make lint types docs examples bench clean'

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 15) else \
	  "pyro_nfvi needs Python 3.10 to 3.14; $(PYTHON) is %d.%d. Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" % v)' \
	  || { echo 'No usable Python: set PYTHON=... on the command line of make.' >&2; exit 1; }
	@echo '== setting up $(VENV) (once; PyTorch is large, so this takes some minutes)'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

demo: $(STAMP)
	$(RUN) examples/demo.py $(ARGS)

examples: $(STAMP)
	@set -e; for script in examples/*.py; do \
	  case $$script in */_*) continue;; esac; \
	  echo "== $$script --smoke"; $(RUN) $$script --smoke; done

test: $(STAMP)
	$(RUN) -m pytest -m 'not slow' -n $(WORKERS) --dist worksteal -q $(ARGS)

# Shapes in annotations, checked at every call in the tests of flows, transformers, objectives and
# guides' densities (tests/shapes.py); bad input has errors of its own to raise.
test-shapes: $(STAMP)
	$(subst PYTHONPATH=.,PYTHONPATH=.:tests,$(RUN)) -m pytest -p shapes -m 'not slow and not compile' \
		-k 'not bad_input and not another_schedule and not jit' -q \
		tests/flows/test_laws.py tests/flows/test_shapes.py tests/flows/test_spline.py \
		tests/flows/test_tail_transform.py tests/objectives tests/guides/test_auto_mixture.py $(ARGS)

test-slow: $(STAMP)
	$(RUN) -m pytest -m slow -q --timeout 3600 $(ARGS)

# torch need not exist for Python 3.12 here: the draws are made in .venv and converted, as plain
# arrays, by the part of pyro_nfvi/arviz.py that needs neither torch nor Pyro.
test-arviz1: $(STAMP)
ifeq ($(strip $(PYTHON312)),)
	@echo '!! test-arviz1 SKIPPED: ArviZ 1 needs Python 3.12, and no python3.12 was found.'
	@test -n "$(CI)" || { echo '!! Install Python 3.12, or name it: make test-arviz1 PYTHON312=...'; exit 1; }
else
	@$(MAKE) --no-print-directory $(VENV_ARVIZ1)/.stamp
	$(RUN) tests/arviz1/make_draws.py out/arviz1
	NFVI_DRAWS=out/arviz1 MPLBACKEND=Agg $(VENV_ARVIZ1)/bin/python -m pytest -q -p no:cacheprovider \
	  -c /dev/null --rootdir . tests/arviz1 $(ARGS)
endif

$(VENV_ARVIZ1)/.stamp: constraints-arviz1.txt
	$(PYTHON312) -m venv --clear $(VENV_ARVIZ1)
	$(VENV_ARVIZ1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< \
	  'arviz>=1' h5netcdf h5py matplotlib pytest
	@touch $@

# The built wheel, run from outside of the checkout. Obligatory before a release: test-versions, which
# keeps its environments (.venv-lowest, .venv-newest) for the next time.
test-wheel: $(STAMP)
	$(PY) tests/versions/try_wheel.py pinned --quick $(ARGS)

test-versions: $(STAMP)
	$(PY) tests/versions/try_wheel.py pinned lowest newest $(ARGS)

# What is published, in dist/: both archives, built from a copy and examined (docs/releasing.md).
dist: $(STAMP)
	$(PY) release/dist.py $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(STAMP)
	$(VENV)/bin/mypy

docs: $(STAMP)
	$(RUN) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo 'Wrote docs/_build/html/index.html'

notebooks: $(STAMP)
	$(RUN) docs/_ext/notebooks.py docs/_build/notebooks $(ARGS)

bench: $(STAMP)
	@set -e; for script in benchmarks/*.py benchmarks/vae/*.py; do \
	  case $$script in */_*) continue;; esac; \
	  echo "== $$script $(ARGS)"; $(RUN) $$script $(ARGS); done

clean:
	rm -rf build dist *.egg-info out docs/_build docs/api/generated .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(VENV_ARVIZ1) .venv-lowest .venv-newest
