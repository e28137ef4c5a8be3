# Everything runs in .venv, which is built from requirements.lock when it is missing or older than the lock.
# Recipes name .venv/bin/..., since make 3.81 (macOS) does not search an exported PATH. DVC finds `python` by PATH.
BIN := .venv/bin
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
PYTHON ?= python3
INSTALLED := .venv/.installed

.PHONY: repro figures report sweep quality record bench test test-all chaos portable lint audit ui edit serve lock kernel clean

repro: $(INSTALLED)
	@$(BIN)/facevae mend
	@$(BIN)/facevae check
	$(BIN)/dvc repro

figures: $(INSTALLED)
	$(BIN)/dvc repro --force --single-item figures

report: $(INSTALLED)
	$(BIN)/python .ci/report.py $(if $(BASE),--base $(BASE))

sweep: $(INSTALLED)
	$(BIN)/dvc exp run --queue --name sweep -S train.beta=0.5,1,2,4 -S model.latent_dim=16,32 \
		-S data.num_images=2000 -S train.epochs=8 -S train.kl_warmup_epochs=2 -S train.num_threads=1 \
		-S train.optimizer=adam -S train.muon_learning_rate=null -S train.momentum=null \
		-S train.likelihood=squared_error -S train.average_decay=null -S train.learning_rate=0.003 \
		-S train.clip_gradient_norm=200 -S train.skip_gradient_norm=10000
	$(BIN)/dvc exp run --run-all --jobs 2
	$(BIN)/python benchmarks/rate_distortion.py sweep- docs/rate_distortion.png

# IMAGES is a folder with CelebA's img_align_celeba/ and list_attr_celeba.txt.
quality: $(INSTALLED)
	$(BIN)/uv pip install --quiet --require-hashes --no-deps --requirement benchmarks/requirements.lock
	$(BIN)/python benchmarks/quality.py $(IMAGES) .facevae/quality

# Needs the demo's prepared set, and an idle machine.
record: $(INSTALLED)
	$(BIN)/python benchmarks/record.py $(IMAGES) .facevae/quality

# Takes an hour. Run it on an idle machine, since it measures speed.
bench: $(INSTALLED)
	$(BIN)/uv pip install --quiet --require-hashes --no-deps --requirement benchmarks/requirements.lock
	$(BIN)/python benchmarks/bench.py $(IMAGES)

# All tests that need no pipeline run by DVC, no server, no browser and no second process.
test: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto --dist loadgroup -m "not slow"

test-all: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto --dist loadgroup

# Takes two hours or more: forced runs in other environments, kills of a small pipeline, kills of the demo's training.
chaos: $(INSTALLED)
	rm -rf .facevae/trials
	$(BIN)/python benchmarks/same_bytes.py .facevae/trials --runs 20
	$(BIN)/python benchmarks/chaos.py .facevae/trials/kills --kills 200
	$(BIN)/python benchmarks/chaos.py .facevae/trials/training --kills 20 --as-committed --stage train --within 60

# Needs qemu-user. Each emulated processor takes about eight minutes of a core; JOBS of them run at a time.
portable: $(INSTALLED)
	rm -rf .facevae/portable
	$(BIN)/python benchmarks/portable.py .facevae/portable --jobs $(or $(JOBS),1)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(INSTALLED)
	$(BIN)/python .ci/audit.py

ui: $(INSTALLED)
	@$(BIN)/facevae pages --wait &
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --workers 1 --host 127.0.0.1 --port 5000

edit: $(INSTALLED)
	@$(BIN)/facevae editor

# The work tree's model, until Ctrl-C. docs/experiments.md shows a request.
serve: $(INSTALLED)
	@$(BIN)/facevae publish --alias served --name facevae
	MLFLOW_TRACKING_URI=$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false \
		$(BIN)/mlflow models serve --model-uri models:/facevae@served --env-manager local --port 5001

lock:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--extra dev --extra dask --extra fid --extra search --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-deps --output-file benchmarks/requirements.lock benchmarks/requirements.in

# The face editor's arithmetic, from its text.
kernel: $(INSTALLED)
	$(BIN)/python -c "import sys, wasmtime; sys.stdout.buffer.write(wasmtime.wat2wasm(sys.stdin.read()))" \
		< src/facevae/editor/gather_matmul.wat > src/facevae/editor/gather_matmul.wasm

clean:
	rm -rf .venv .facevae/quality .facevae/trials .facevae/portable .mypy_cache .pytest_cache .ruff_cache .hypothesis data/prepared.old data/prepared.partial
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip installs uv from the lock, with its hashes; uv installs everything else in a fraction of pip's time. The packages
# are compiled now, so that the first processes that import them need not do it.
$(INSTALLED): requirements.lock pyproject.toml
	@case "$$PWD" in *[\"\`\$$:#?{}]* | *[[:cntrl:]]*) echo "error: the path of this folder, $$PWD, has one of" \
		'" ` $$ : # ? { } or an invisible character, which Python, DVC or Git cannot handle: rename the folder' >&2; \
		exit 1;; esac
	$(PYTHON) -m venv --clear .venv
	awk '/^[^ #]/ {wanted = /^uv==/} wanted' requirements.lock > .venv/uv.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
