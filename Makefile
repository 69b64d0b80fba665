# make demo: grade the example submissions. make test: everything that must hold. Both do their own set-up, once.
PYTHON ?= $(shell for p in python3.11 python3 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
DEMO := out/demo
JOBS ?= 2

.PHONY: demo test lint lecture setup clean

demo: setup
	@rm -rf $(DEMO)
	@$(BIN)/python -m tests.submissions $(DEMO)/class
	@$(BIN)/grader grade $(DEMO)/class -o $(DEMO) --profile smoke --jobs $(JOBS)

# those that are slow grade whole classes by several processes already
test: lint
	@$(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow"
	@$(BIN)/pytest -m slow

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/grader release --check

# make lecture TEXT=timemachine.txt EPOCHS=20: the lecture's networks, from a copy of its text, for a while only
lecture: setup
	@$(BIN)/python -m reference.lecture $(if $(TEXT),--text "$(TEXT)") $(if $(EPOCHS),--epochs "$(EPOCHS)")

setup: .venv/.ready .venv/.system

.venv/.ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.10 or 3.11 was not found: install python3.11, or name it by PYTHON=..." >&2; exit 2; }
	@echo "Setting up .venv (once; about 700 MB)"
	@$(PYTHON) -m venv --without-pip .venv
	@$(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python install -q --require-hashes -r requirements.lock
	@$(BIN)/python -m pip --disable-pip-version-check install -q --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q grader  # pip does so for what it installs, but for this
	@touch $@

# bubblewrap is the sandbox; the other two are libraries that MXNet loads
.venv/.system: .venv/.ready
	@missing=""; command -v bwrap >/dev/null || missing="bubblewrap"; \
	for lib in gomp.so.1=libgomp1 quadmath.so.0=libquadmath0; do \
	  $(BIN)/python -c "import ctypes; ctypes.CDLL('lib$${lib%%=*}')" 2>/dev/null || missing="$$missing $${lib#*=}"; done; \
	test -z "$$missing" || { \
	  root=""; test "$$(id -u)" = 0 || root="sudo -n"; \
	  { $$root apt-get update -qq && $$root apt-get install -y -qq --no-install-recommends $$missing; } >/dev/null 2>&1 \
	  || { echo "Not installed, and not installable by this user: $$missing. Ask an administrator to run: apt-get install $$missing" >&2; exit 3; }; }
	@touch $@

clean:
	rm -rf out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
