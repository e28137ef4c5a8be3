# Everything runs in .venv, which is built from requirements.lock when it is missing or older than the lock.
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
PYTHON ?= python3
INSTALLED := .venv/.installed

.PHONY: repro figures report sweep quality bench test chaos lint audit ui lock clean

repro: $(INSTALLED)
	@facevae mend
	dvc repro

figures: $(INSTALLED)
	dvc repro --force --single-item figures

report: $(INSTALLED)
	.venv/bin/python .ci/report.py $(if $(BASE),--base $(BASE))

sweep: $(INSTALLED)
	dvc exp run --queue --name sweep -S train.beta=0.5,1,2,4 -S model.latent_dim=16,32 \
		-S data.num_images=2000 -S train.epochs=8 -S train.kl_warmup_epochs=2 -S train.num_threads=1 \
		-S train.likelihood=squared_error -S train.average_decay=null -S train.learning_rate=0.003 \
		-S train.clip_gradient_norm=200 -S train.skip_gradient_norm=10000
	dvc exp run --run-all --jobs 2
	python benchmarks/rate_distortion.py sweep- docs/rate_distortion.png

# IMAGES is a folder with CelebA's img_align_celeba/ and list_attr_celeba.txt.
quality: $(INSTALLED)
	uv pip install --quiet --require-hashes --no-deps --requirement benchmarks/requirements.lock
	python benchmarks/quality.py $(IMAGES) .facevae/quality

# An hour, on an idle machine: what is measured is speed.
bench: $(INSTALLED)
	uv pip install --quiet --require-hashes --no-deps --requirement benchmarks/requirements.lock
	python benchmarks/bench.py $(IMAGES)

test: $(INSTALLED)
	pytest --numprocesses auto --dist loadgroup

# Two hours or more: forced runs in other surroundings, kills of a small pipeline, kills of the demo's training.
chaos: $(INSTALLED)
	rm -rf .facevae/trials
	python benchmarks/same_bytes.py .facevae/trials --runs 20
	python benchmarks/chaos.py .facevae/trials/kills --kills 200
	python benchmarks/chaos.py .facevae/trials/training --kills 20 --as-committed --stage train --within 60

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy

audit: $(INSTALLED)
	python .ci/audit.py

ui: $(INSTALLED)
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --backend-store-uri sqlite:///mlflow.db --workers 1 --host 127.0.0.1 --port 5000

lock:
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet uv
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--extra dev --extra dask --extra fid --output-file requirements.lock pyproject.toml
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-deps --output-file benchmarks/requirements.lock benchmarks/requirements.in

clean:
	rm -rf .venv .facevae/quality .facevae/trials .mypy_cache .pytest_cache .ruff_cache .hypothesis data/prepared.old data/prepared.partial
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv, itself taken from the lock with its hashes, installs everything else in a fraction of pip's time. Compiled now,
# while nothing waits, the packages need not be compiled by the first processes that import them.
$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear .venv
	awk '/^[^ #]/ {wanted = /^uv==/} wanted' requirements.lock > .venv/uv.lock
	pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
