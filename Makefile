# rollcall. Two commands: `make demo` and `make test`; each does all set-up it needs, and needs no network the second time.

CARGO ?= cargo
ARCH  ?= $(shell uname -m)
KEEP  ?=

RUNTIME := .cache/onnxruntime/$(ARCH)/libonnxruntime.so
PHOTOS  := .cache/photos/complete
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

.PHONY: help demo test setup build lint check fp32 bench evaluate compare clean

help: ## this list
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):[^#]*## /  make \1|/' | column -t -s '|'

demo: setup $(PHOTOS) ## the main job before your eyes: enrol by MQTT, visitors pass, attendance recorded (KEEP=1: goes on)
	$(CARGO) build --release
	./target/release/rollcall demo $(if $(KEEP),--keep)

test: setup $(PHOTOS) ## all tests, with a real mosquitto broker (Debian: apt install mosquitto mosquitto-clients)
	@command -v mosquitto >/dev/null || test -x /usr/sbin/mosquitto || \
		{ echo "the tests need mosquitto: apt install mosquitto mosquitto-clients"; exit 1; }
ifdef NEXTEST
	$(CARGO) nextest run
else
	$(CARGO) test
endif

setup: $(RUNTIME) ## fetch the ONNX Runtime library (pinned package, checked by sha256)

$(RUNTIME):
	models/fetch.sh runtime $(ARCH)

$(PHOTOS):
	models/fetch.sh photos

build: setup ## the release binary, target/release/rollcall
	$(CARGO) build --release

lint: ## formatting and lints, as CI runs them
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

fp32: ## make the fp32 twins of the networks, for measurements (needs npm)
	models/build/build.sh --fp32-only

bench: build ## speed and memory on this machine
	./target/release/rollcall bench

compare: build ## side by side with the same networks driven from Python
	benches/compare.sh

clean: ## remove what was built; what was fetched stays in .cache
	$(CARGO) clean
