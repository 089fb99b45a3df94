# Everything a person or CI does with this checkout. `make help` lists it.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 4
RERUNS ?= 15
FORGES ?= 2
CLUSTERS ?= 3
N ?= 200
OLDER ?= @anthropic-ai/claude-code@2.1.240 @openai/codex@0.159.3

.PHONY: help tools demo dist test test-spread test-user test-slow test-forge gitea test-kubernetes kubernetes test-image images krew check install agents agents-latest versions kills budget-kills request-kills faults redis-faults redispatches home-kills webhook-kills posting-kills notify-kills bench coherence docs screens pictures clean fmt host-faults operator-kills kubernetes-faults kubernetes-scale manifests

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: .venv/.demo ## a real agent is killed in the middle of a tool call, and continues (AGENT=codex, REAL=1)
	PATH="$(CURDIR)/agents/node_modules/.bin:$$PATH" XDG_CACHE_HOME="$(CURDIR)/agents/cache" \
	  $(BIN)/perdure demo $(if $(AGENT),--agent $(AGENT)) $(if $(filter 1,$(REAL)),--real)

test: tools install agents ## the suite, on the real agent CLIs; what fails is rerun once, alone (RERUNS=0: never)
	scratch=$$(bash .ci/scratch); trap 'rm -rf "$$scratch"' EXIT; \
	  env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m tests.suite --reruns $(RERUNS) -n $(JOBS) --dist worksteal $${scratch:+--basetemp=$$scratch/t} \
	  -o faulthandler_timeout=700 -m "not slow and not forge and not kubernetes and not image"

test-spread: tools install agents ## a part of the suite with repository, root, state and homes on different file systems (PART: of these, those paths)
	$(BIN)/python -m tests.spread --reruns $(RERUNS) -n $(JOBS) --dist worksteal -m "not slow" $(PART)

test-user: tools install agents ## the suite as another user than root, as in a hardened container: root read-only, no capabilities (PART: only those paths)
	scratch=$$(bash .ci/scratch); scratch=$${scratch:-$$(mktemp --directory)}; chmod 711 "$$scratch"; trap 'rm -rf "$$scratch"' EXIT; \
	  TMPDIR="$$scratch" $(BIN)/python -m tests.user --reruns $(RERUNS) -n $(JOBS) --dist worksteal \
	  -o faulthandler_timeout=700 -m "not slow and not forge and not kubernetes and not image" $(PART)

test-slow: tools install agents ## the rest: all journeys and conformance tests on Gemini CLI, OpenCode and over ACP
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow

test-forge: tools install agents gitea ## the tests on a real Gitea, with the agents that it sets to work
	$(BIN)/python -m pytest -n $(FORGES) --dist loadfile -m forge

gitea: tools install ## Gitea from its Go module, once a version, into ~/.cache/perdure-tests
	$(BIN)/python -m tests.servers.gitea.build

test-kubernetes: tools install agents ## the tests on a real Kubernetes control plane with two nodes, built if need be; as root
	$(BIN)/python -m tests.servers.kubernetes.able
	$(BIN)/python -m tests.servers.kubernetes.build control
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test-kubernetes]'
	$(BIN)/python -m pytest -n $(CLUSTERS) --dist loadfile -m kubernetes

test-image: tools install agents ## the tests on both container images, built with buildah on a Debian of debootstrap; as root
	$(BIN)/python -m tests.servers.image.build
	$(BIN)/python -m pytest -m image tests/image

images: install ## both images, built and pushed: REGISTRY=registry.example.com/team BASE=docker.io/library/debian:trixie-slim@sha256:... (ENGINE=buildah, PLATFORMS=linux/amd64)
	$(BIN)/python packaging/images.py --registry "$(REGISTRY)" --base "$(BASE)" $(if $(ENGINE),--engine $(ENGINE)) $(if $(PLATFORMS),--platforms $(PLATFORMS))

krew: install ## kubectl perdure as one program for this machine, below dist/krew; ADDRESS=https://...: Krew's manifest of all archives there
	$(BIN)/python packaging/krew.py $(if $(ADDRESS),manifest "$(ADDRESS)",build)

kubernetes: tools install ## the control plane (and kwok) from their Go modules, once a version, into ~/.cache/perdure-tests
	$(BIN)/python -m tests.servers.kubernetes.build

check: install ## format, lint, types, import floors, docs, subjects of new commits
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/check.py
	$(BIN)/python -m pytest -q tests/pure/test_plain_code.py
	$(BIN)/zensical build --strict
	@! git log --since="2026-11-23 17:00 +0000" --no-merges --format='%h %s' 2>/dev/null | grep -E '^[0-9a-f]+ ([^A-Z]|.{73}|.*\.$$)' \
	  || { echo "The subject of a commit begins with a capital, has no full stop and at most 72 characters: reword these commits."; exit 1; }

docs: install ## the documents as a site, below site/
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict

screens: tools install agents ## the photographs of the terminal in docs/images, made again
	$(BIN)/python docs/screens.py
	$(BIN)/python docs/film.py

pictures: tools install ## the photographs of the dashboard in docs/images, made again
	$(BIN)/python docs/pictures.py

dist: install ## the distribution as it is published, below dist/, and whether an index takes it
	rm -rf dist
	PERDURE_SHIM=none $(BIN)/python -m build
	PERDURE_SHIM=x86_64 $(BIN)/python -m build --wheel
	PERDURE_SHIM=aarch64 $(BIN)/python -m build --wheel
	$(BIN)/python -m twine check --strict dist/*

bench: install agents ## the ratios of docs/performance.md (20 minutes on a quiet machine)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m bench

budget-kills: install agents ## N random kills under a budget over Claude Code and Codex (N=200): spent by the model server's record, and by perdure's (RECORD=FILE: kept, and gone on from)
	$(BIN)/python -m tests.journeys.budget_kills $(N) $(if $(RECORD),--record $(RECORD))

request-kills: install agents ## N random kills between a question to a person, the answer and the call (N=100), over Claude Code, Codex, OpenCode and ACP (RECORD=FILE: kept, and gone on from)
	$(BIN)/python -m tests.journeys.request_kills $(or $(N),100) $(if $(RECORD),--record $(RECORD))

kills: install agents ## N random kills of a two-turn task (N=200), with the counts (WARM=1: of agents that are kept; PERDURE_HOST=portable: as on other systems than Linux)
	$(BIN)/python -m tests.journeys.kills $(N) $(if $(WARM),--warm)

webhook-kills: install agents ## perdure serve killed N times under webhook load (N=200), a storm of 500 deliveries 20 times each; N kills with agents at work
	$(BIN)/python -m tests.web.kills $(N)
	$(BIN)/python -m tests.web.working $(N)

posting-kills: install agents ## who tells a forge of a run is killed at each of his requests (some minutes)
	$(BIN)/python -m tests.posting.kills

notify-kills: install ## who tells people of runs is killed N times; nothing is lost (a second for each)
	$(BIN)/python -m tests.notices.kills $(or $(N),200)

home-kills: install ## the moving of homes killed before every single change it makes (some minutes)
	d=$$(mktemp -d) && unshare --user --map-root-user --mount $(BIN)/python -m tests.homes.killing $$d 1 1; rmdir $$d

coherence: install agents ## whether later files of a plan use the names of earlier ones: three arms, two languages, two CLIs, a table
	$(BIN)/python -m bench.coherence

faults: install agents ## N full disks and N/4 power cuts (N=200; 40 for a pull request), with the counts; Linux, cuts as root
	$(BIN)/python -m tests.faults all $(N)

redis-faults: tools install ## Redis restarted, emptied, expired, evicted and stalled at N points (N=200), with the counts
	$(BIN)/python -m tests.sessions.losing $(N)

redispatches: tools install agents ## N re-dispatches with kills, expiries, losses and restarts of PostgreSQL and Redis (N=200)
	$(BIN)/python -m tests.journeys.redispatches $(N)

host-faults: tools install ## several hosts on one PostgreSQL: N/2 troubles of the server, N of the host that holds a lease (N=200)
	$(BIN)/python -m tests.hosts all $(N)

manifests: install ## packaging/kubernetes/perdure.yaml from the Helm chart
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test-kubernetes]'
	$(BIN)/python packaging/manifests.py

operator-kills: tools install kubernetes ## perdure operator killed N times over 20 runs and more on a real control plane (N=100), with the counts; as root
	$(BIN)/python -m tests.kubernetes.kills $(N)

kubernetes-faults: tools install agents kubernetes ## N trials of what may happen to an operator, by kind (N=100): API server, operators, pods, nodes; as root
	$(BIN)/python -m tests.kubernetes.trials $(N)

kubernetes-scale: tools install kubernetes ## 1,000 TaskRuns, 100 at once, with pods that kwok plays: requests, memory, times; a table
	$(BIN)/python -m tests.kubernetes.scale

.venv/.demo: pyproject.toml src/perdure/host/shim.c
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -e .venv/.done || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

install: .venv/.done ## the package, its tests and checks, into .venv

.venv/.done: pyproject.toml src/perdure/host/shim.c
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,check]'
	touch $@

tools: ## the programs that the tests use (strace, tmux, openssl, zstd), if they are missing
	bash .ci/tools

agents: agents/node_modules/.done ## the pinned agent CLIs of agents/package.json, below agents/

agents/node_modules/.done: agents/package.json
	cd agents && npm install --no-package-lock --no-audit --no-fund --loglevel=error
	touch $@

agents-latest: install ## the suite on the newest agent CLIs (a nightly target); pins stay as they are
	rm -rf agents/latest && mkdir -p agents/latest
	cd agents/latest && npm init -y >/dev/null && npm install --no-package-lock --no-audit --no-fund --loglevel=error \
	  $$($(PYTHON) -c 'import json; print(*(name + "@latest" for name in json.load(open("../package.json"))["dependencies"]))')
	PERDURE_TEST_AGENTS=$(CURDIR)/agents/latest/node_modules $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/drivers tests/journeys

versions: install agents ## capsules between the pinned Claude Code and Codex and OLDER ones, both ways, with a table
	mkdir -p agents/older
	cd agents/older && npm init -y >/dev/null && npm install --no-package-lock --no-audit --no-fund --loglevel=error $(OLDER)
	$(BIN)/python -m tests.journeys.versions agents/older/node_modules

fmt: install ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## what was installed and built here
	rm -rf .venv agents/node_modules agents/latest agents/older agents/cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
