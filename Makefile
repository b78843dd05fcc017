# Two commands do everything: `make report` and `make test`. Both set up first; a second call skips that.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: report test test-fast stress lint fmt bench weights constraints clean

report: $(READY)  ## run the notebooks on the embedded images and weights and write reports/index.html
	$(RUN) -m t2t_analysis report

test: $(READY)  ## run all tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist worksteal

test-fast: $(READY)  ## what can be known within a minute
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist worksteal --fast tests

stress: $(READY)  ## broken, strange and hostile input, and killed commands, by the thousand, with counts
	T2T_ANALYSIS_STRESS=$(or $(ROUNDS),200) OMP_NUM_THREADS=1 $(RUN) -m pytest -q -rP tests/test_stress.py tests/test_any_input.py tests/test_interrupted.py

lint: $(READY)  ## what a reviewer need not look for
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

fmt: $(READY)  ## format code and strip notebooks
	$(RUN) -m ruff check --fix -q . || true
	$(RUN) -m ruff format -q .
	$(VENV)/bin/nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info.version" notebooks/*.ipynb

bench: $(READY)  ## speed and memory, as ratios measured in one run
	$(RUN) -m t2t_analysis bench

weights: $(READY)  ## train the bundled four again (about two hours of one core)
	OMP_NUM_THREADS=1 $(RUN) -m t2t_analysis study --cells corner --seeds 0 --fractions 1 --epochs 24 --devices cpu \
		--out study_again --runs study_again/runs
	cd study_again/runs && for run in small_*__e24__s0__*; do for kind in safetensors json; do \
		cp "$$run/weights.$$kind" "../../data/weights/$${run%%__*}.$$kind"; done; done

constraints: $(READY)  ## write constraints.txt from what is installed, for every platform
	$(RUN) -m pip freeze --exclude-editable | grep -ivE '^(nvidia|cuda|triton)|@|^pip==|^setuptools==' > constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, %s is %d.%d; try: make PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	@echo "Setting up $(VENV): some minutes, and up to 6 GB on Linux, where PyTorch brings CUDA along"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:  ## remove what commands wrote, but neither the environment nor the released reports
	rm -rf build dist *.egg-info runs
	find reports -mindepth 1 -maxdepth 1 ! -name README.md ! -name released -exec rm -rf {} +
