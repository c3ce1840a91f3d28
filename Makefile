# `make` lists what there is to do. Everything runs in .venv, which is made and kept up to date on the way.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# make train
NFE ?= 4
TEACHER ?= fmnist
OUT ?= runs
ARGS ?=

# make sweep: how many NFEs at a time
PROCESSES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

# make bench
BENCH ?= sampling

# make test
WORKERS ?= 2
PYTEST_ARGS ?=

.PHONY: help train sweep results test lint types format check notebooks pytest slow package lab app solvers teacher card pictures export readme docs outputs bench hooks clean

help: ## list the targets
	@echo "usage: make TARGET [NAME=value ...]"
	@echo
	@grep -hE '^[.a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  %-8s %s\n", $$1, $$2}'
	@echo
	@echo "for example: make train NFE=6 TEACHER=digits ARGS='-p seed 1'"

.venv: $(STAMP) ## make the virtual environment with the tested versions (PYTHON=python3.12 picks another Python)

$(STAMP): settings.ini constraints.txt setup.py pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is not installed. gas_nb needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gas_nb needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The README's papermill command, with its parameters spelt out. What the notebook prints, the stages of its run and
# their progress, shows here; the executed notebook ends up beside the results.
train: export GAS_NB_EVERY ?= 2
train: $(STAMP) ## distil a solver with nbs/03_train_gas.ipynb (NFE=4 TEACHER=fmnist OUT=runs ARGS='-p name value')
	@mkdir -p "$(OUT)"
	@$(BIN)/papermill nbs/03_train_gas.ipynb "$(OUT)/out.ipynb" --no-progress-bar --log-level ERROR \
	  --stdout-file - --stderr-file - -p nfe $(NFE) -p teacher "$(TEACHER)" -p output_dir "$(OUT)" $(ARGS)
	@echo "The executed notebook, with the figures, is $(OUT)/out.ipynb."

# Trains and measures what is not there yet. Options go through ARGS: ARGS='-p n_samples 10000 -p repeats 5'.
sweep: $(STAMP) ## GS and GAS for NFE 4 to 10 against every training-free solver (TEACHER=fmnist OUT=runs PROCESSES=2)
	@mkdir -p "$(OUT)"
	$(BIN)/papermill nbs/04_evaluate.ipynb "$(OUT)/sweep-$(notdir $(TEACHER)).ipynb" --log-output --no-progress-bar \
	  -p train True -p processes $(PROCESSES) -p teacher "$(TEACHER)" -p output_dir "$(OUT)" $(ARGS)
	@echo
	@echo "The table is $(OUT)/sweep-$(notdir $(TEACHER))/table.md, all rows are in results.csv and results.json beside it."

results: $(STAMP) ## put the tables of the sweeps in OUT=runs into nbs/results/, the front page and README.md
	$(BIN)/python tools/publish_results.py "$(OUT)" $(ARGS)
	$(BIN)/python tools/make_readme.py

# One after the other whatever -j says, pytest last: its closing line ends the log.
test: ## everything that CI runs: lint, types, notebooks in step, every notebook, then pytest
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory notebooks
	@$(MAKE) --no-print-directory pytest

# Nothing in the tests needs a network.
check notebooks pytest slow: export HF_HUB_OFFLINE = 1
# One thread per process: workers and kernels share the cores, and waiting OpenMP threads would spin against each other.
notebooks pytest slow: export OMP_NUM_THREADS = 1
notebooks pytest slow: export GRADIO_ANALYTICS_ENABLED = False

# What ruff formats; the exported modules follow from the notebooks.
FORMATTED := $(wildcard nbs examples tests benchmarks tools docs setup.py)

lint: $(STAMP) ## ruff: errors, names that an exported module lacks, and the format
	$(BIN)/ruff check gas_nb $(FORMATTED)
	$(BIN)/ruff format --check --quiet $(FORMATTED) || { echo "ruff would format these otherwise: make format" >&2; exit 1; }

types: $(STAMP) ## mypy on the solver story, data, teachers and the front door
	$(BIN)/mypy

format: $(STAMP) ## let ruff format notebooks, tests and tools, then export
	$(BIN)/ruff format --quiet $(FORMATTED)
	$(BIN)/python tools/export.py

check: $(STAMP)
	$(BIN)/python tools/export.py --check

notebooks: $(STAMP)
	$(BIN)/nbdev_test --n_workers $(WORKERS) --timing

pytest: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

slow: $(STAMP) ## the tests marked slow, which `make test` leaves out (CI runs both)
	$(BIN)/python -m pytest --run-slow -m slow -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

package: $(STAMP) ## build wheel and sdist, install them into an environment of their own and use them there
	$(BIN)/python tools/check_package.py $(ARGS)

lab: $(STAMP) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" nbs/index.ipynb $(ARGS)

app: $(STAMP) ## start the Gradio app
	$(BIN)/python -m gas_nb.app $(ARGS)

solvers: $(STAMP) ## distil the solvers that ship with the package (ARGS='--nfe 4 6 --teacher digits')
	$(BIN)/python tools/make_solvers.py $(ARGS)

# The recipe on a CPU: two trainings, one after the other. A stopped one goes on where it was.
teacher: $(STAMP) ## train a teacher like fmnist, into OUT/fmnist-guided/weights (hours on a CPU; ARGS='-p device cuda')
	@mkdir -p "$(OUT)"
	$(BIN)/papermill nbs/examples/fmnist_teacher/train.ipynb "$(OUT)/fmnist.ipynb" --log-output --no-progress-bar -p precision bfloat16 $(ARGS) \
	  -p output_dir "$(OUT)/fmnist"
	$(BIN)/papermill nbs/examples/fmnist_teacher/train.ipynb "$(OUT)/fmnist-guided.ipynb" --log-output --no-progress-bar -p precision float32 $(ARGS) \
	  -p start_from "$(OUT)/fmnist/weights" -p output_dir "$(OUT)/fmnist-guided" -p seed 1 \
	  -p guidance_scale 1.5 -p steps 800 -p decay_steps 800 -p warmup_steps 50 -p lr 2e-3 -p vector_lr 1e-3

# Measures what is not there yet for the present weights.
card: $(STAMP) ## measure the fmnist teacher anew and write its model card (up to an hour on two cores)
	@mkdir -p "$(OUT)/card"
	$(BIN)/papermill nbs/examples/fmnist_teacher/card.ipynb "$(OUT)/card/out.ipynb" --log-output --no-progress-bar -p output_dir "$(OUT)/card" $(ARGS)
	cp "$(OUT)"/card/README.md "$(OUT)"/card/card.json "$(OUT)"/card/*.png gas_nb/weights/fmnist/

pictures: $(STAMP) ## photograph anew what the front page shows (Chromium; takes the newest `make train` of fmnist, NFE 4)
	$(BIN)/python tools/make_pictures.py --runs "$(OUT)" $(ARGS)

export: $(STAMP) ## notebooks -> gas_nb/, cleaned, README.md written anew
	$(BIN)/python tools/export.py

readme: $(STAMP) ## nbs/index.ipynb -> README.md
	$(BIN)/python tools/make_readme.py

# Sphinx takes what is stored in the notebooks; every link of the result is followed.
docs: $(STAMP) ## the notebooks, the guides by task and the API as a static site in _docs/
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tools/make_docs.py $(ARGS)

outputs: $(STAMP) ## run chapters and store what they print and draw (ARGS=nbs/foundations/classic.ipynb)
	$(BIN)/python tools/store_outputs.py $(ARGS)
	$(BIN)/python tools/export.py

bench: $(STAMP) ## run a benchmark (BENCH=sampling, distillation, high_nfe, teacher_ablation, app_load or scale; ARGS='...')
	$(BIN)/python "benchmarks/$(BENCH).py" $(ARGS)

hooks: $(STAMP) ## let git merge notebooks cell by cell in this clone
	git config merge.nbdev-merge.name "merge notebooks cell by cell"
	git config merge.nbdev-merge.driver '"$(abspath $(BIN))/nbdev_merge" %O %A %B %P'

clean: ## delete caches and builds; .venv and runs/ stay
	rm -rf build dist _proc _docs .pytest_cache .ruff_cache ./*.egg-info nbs/.last_checked
	find $(wildcard gas_nb nbs examples tests tools benchmarks) -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
