# The two commands of the README: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REPORT := diffusion-report.html

.PHONY: demo test nightly test-cpu paired selftest mutants corruptions lowest lowest-env newest lint typed docs site versions wheel picture axe peers bench clean

demo: $(STAMP)
	$(BIN)/python -m pytest --diffusion-model=demo --diffusion-report=$(CURDIR)/$(REPORT) examples/release_gate
	@echo "The report is at $(CURDIR)/$(REPORT)"

# Two workers with one thread each, in one run that goes on to its end and closes with one summary.
test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=25 tests

# The scheduler checks once more as another processor computes: the last bits differ. A landing takes the classes in their defaults and
# those that are written from scratch: what other bits may cause is a false alarm.
SCHEDULERS ?= tests/conformance
test-cpu: $(STAMP)
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE \
	  $(BIN)/python -m pytest -n 2 --dist worksteal $(SCHEDULERS)

# Nightly: every test, those too that a landing leaves out; about twice as long.
nightly: $(STAMP)
	OMP_NUM_THREADS=1 NIGHTLY=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

# Nightly: what changes in the code do the tests notice? Goes on where it stopped; docs/testing.md explains it.
mutants: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation --jobs 2

# Nightly: 10,000 random corruptions of a cache; `make test` has 1,000.
corruptions: $(STAMP)
	OMP_NUM_THREADS=1 CORRUPTIONS=10000 $(BIN)/python -m pytest -n 2 tests/samples/test_corruption.py

# Writes the pages of checks, of their examples and of public names from their declarations; tests hold them equal.
docs: $(STAMP)
	$(BIN)/python -m docs.checks_page
	$(BIN)/python -m docs.examples_page
	$(BIN)/python -m docs.api_page

# The documentation as a site, in build/site: a broken link or a missing reference fails.
site: $(STAMP)
	mkdir -p build
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict > build/site.log 2>&1 || { cat build/site.log; exit 1; }
	! grep "excluded from the built site" build/site.log

# This version's documentation beside those of earlier ones, as a commit on the branch gh-pages of this clone; VERSIONS_OPTIONS=--push sends it.
DOCS_VERSION = $$($(BIN)/python -c "from pytest_diffusion.config.versions import *; print(short_version(version(OURS)))")
versions: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mike deploy --update-aliases $(VERSIONS_OPTIONS) $(DOCS_VERSION) latest
	$(BIN)/mike set-default $(VERSIONS_OPTIONS) latest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint examples/ci/Dockerfile

# The README's picture of the report; needs a Chromium.
picture: demo
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1 \
	  --window-size=1100,1500 --screenshot=$(CURDIR)/docs/images/report.png file://$(CURDIR)/$(REPORT)

# What axe-core finds in the demo's report; needs Chromium and npm.
axe: demo
	$(BIN)/python -m benchmarks.accessibility $(REPORT)

# The peers live in an environment of their own, on top of ours: torch-fidelity's metrics want a working torchvision,
# and with torch-fidelity installed and no torchvision torchmetrics cannot be imported.
PEERS := build/peers
peers: $(PEERS)/.installed
$(PEERS)/.installed: $(STAMP)
	$(PYTHON) -m venv $(PEERS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  $$($(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/ours.pth
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torch-fidelity==0.4.0 prdc==0.2
	touch $@

bench: peers
	$(PEERS)/bin/python -m benchmarks.metrics
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.attention
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.scale

# The lowest versions of all that is declared, on this Python, and the newest on another one; torch is that of
# constraints.txt, since another build costs gigabytes. Old versions warn of what is newer than they are.
VERSIONS := tests/verdicts tests/plugin/test_hooks.py
lowest-env:
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --quiet uv $$(grep "^torch==" constraints.txt)
	grep "^torch==" constraints.txt > build/torch.txt
	build/lowest/bin/uv pip install --quiet --python build/lowest/bin/python --resolution lowest-direct --override build/torch.txt \
	  . "pytest-xdist>=3.6" "torchsde>=0.2.6"
lowest: lowest-env
	OMP_NUM_THREADS=1 build/lowest/bin/python -m pytest -p no:cacheprovider -o filterwarnings=default -n 2 --dist loadfile $(VERSIONS)

# Nightly: 5 GB where torch has no build for the processor alone. make newest NEWEST=/path/to/python3.13
NEWEST ?= python3.13
newest:
	$(NEWEST) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --upgrade . pytest-xdist torchsde peft
	OMP_NUM_THREADS=1 build/newest/bin/python -m pytest -p no:cacheprovider -o filterwarnings=default -n 2 --dist loadfile $(VERSIONS)

# Nightly: what the comparison with a baseline catches and lets pass, over seeds, and its error rates by simulation. Hours; the first one
# goes on where it stopped.
paired: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.paired --seeds 20 --results build/paired.jsonl
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.attribution --seeds 20 --results build/attribution.jsonl
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.forgetting --results build/forgetting.jsonl
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.history --results build/history.jsonl
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.looks

# Nightly: what the demo's gate catches, with five seeds and the absolute checks; hours.
selftest: $(STAMP)
	$(BIN)/python -m pytest --diffusion-model=demo --diffusion-selftest=full --diffusion-report=$(CURDIR)/build/selftest.html \
	  --diffusion-selftest-require=denoiser_noise,few_bits,channels_swapped diffusion::selftest

wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" $$($(PYTHON) .ci/torch_index.py)
	touch $@

clean:
	rm -rf $(VENV) dist build
