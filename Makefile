# The two commands of the README: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REPORT := diffusion-report.html

.PHONY: demo test lint wheel picture clean

demo: $(STAMP)
	$(BIN)/python -m pytest --diffusion-model=demo --diffusion-report=$(CURDIR)/$(REPORT) examples/release_gate
	@echo "The report is at $(CURDIR)/$(REPORT)"

test: $(STAMP) lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The README's picture of the report; needs a Chromium.
picture: demo
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1 \
	  --window-size=1100,1500 --screenshot=$(CURDIR)/docs/images/report.png file://$(CURDIR)/$(REPORT)

wheel: $(STAMP)
	$(BIN)/python -m build

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) dist build
