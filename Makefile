# Volley's few targets; `make` alone lists them.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN      := bin/volley
LINTER   := .tools/bin/golangci-lint
APP      := web/ui/dist/app.js
MODULES  := web/ui/node_modules/.package-lock.json
UI_FILES := $(shell find web/ui/src web/ui/static -type f 2>/dev/null) \
            $(wildcard web/ui/*.mjs web/ui/*.json)

# INPUT is what `make demo` processes: a file or a URL.
SAMPLE := demo/sample.mp4
INPUT  ?= $(SAMPLE)
export INPUT

# TESTFLAGS are further flags for go test: make test TESTFLAGS='-run Probe -v'.
TESTFLAGS ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/: volley, with the page where npm is there to build it, and what it starts
	@if command -v npm >/dev/null; then \
		$(MAKE) --no-print-directory $(APP); \
	elif [[ ! -s $(APP) ]]; then \
		echo 'npm is missing: building without the page (scripts/setup ui installs npm)' >&2; \
	fi
	mkdir -p bin
	go build -trimpath -o $(BIN) ./cmd/volley
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/volley-init ./cmd/volley-init
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/volley-cni ./cmd/volley-cni
	@if [[ $$(uname) == Linux ]] && command -v cc >/dev/null; then \
		cc -O2 -Wall -fPIC -shared -o bin/libvolley-address.so particle/preload/preload.c -ldl; fi
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/examples/echo/bootstrap ./examples/echo

.PHONY: ui
ui: ## build the page into web/ui/dist
	@scripts/setup ui
	@$(MAKE) --no-print-directory $(APP)

$(MODULES): web/ui/package.json web/ui/package-lock.json
	cd web/ui && npm ci --no-audit --no-fund
	@touch $@

$(APP): $(MODULES) $(UI_FILES)
	cd web/ui && npm run --silent build
	@touch $@

.PHONY: demo
demo: ## turn INPUT (a file or URL; default: a made-up clip) into greyscale, in demo/out
	@scripts/setup demo
	@$(MAKE) --no-print-directory build
	@if [[ $$INPUT == $(SAMPLE) ]]; then $(MAKE) --no-print-directory $(SAMPLE); fi
	$(BIN) run grayscale "$$INPUT" -o demo/out --force
	@printf '\nThe result is in demo/out. To watch it:\n\n  %s serve demo/out\n\n' $(BIN)

# Twenty seconds of a moving test picture with a tone. It gets its name only
# when it is whole.
$(SAMPLE):
	mkdir -p demo
	ffmpeg -hide_banner -loglevel error -nostdin -y \
		-f lavfi -i testsrc2=size=640x360:rate=24 \
		-f lavfi -i sine=frequency=330:beep_factor=4:sample_rate=48000 \
		-t 20 -c:v libx264 -preset veryfast -pix_fmt yuv420p -g 48 \
		-c:a aac -b:a 96k -movflags +faststart demo/sample.part.mp4
	mv demo/sample.part.mp4 $@

.PHONY: test
test: ## run every test; one on the must-run list that would be skipped fails
	@scripts/setup test
	@$(MAKE) --no-print-directory ui
	VOLLEY_MUST_RUN=1 go test -p 1 -timeout 25m $(TESTFLAGS) ./...

.PHONY: lint
lint: ## check formatting, layering, documentation, types, and builds for other machines
	@scripts/setup lint ui
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | while read -r f; do [[ ! -f $$f ]] || gofmt -l "$$f"; done); \
	if [[ -n $$unformatted ]]; then printf 'not formatted (run gofmt -w):\n%s\n' "$$unformatted" >&2; exit 1; fi
	go vet ./...
	$(LINTER) run
	GOOS=linux GOARCH=arm64 go build -o /dev/null ./...
	GOOS=darwin GOARCH=arm64 go build -o /dev/null ./...
	@$(MAKE) --no-print-directory $(MODULES)
	cd web/ui && npm run --silent check

.PHONY: generate
generate: ## write generated code anew
	go generate ./...

.PHONY: clean
clean: ## remove what build, ui and demo made
	rm -rf bin demo
	find web/ui/dist -mindepth 1 ! -name .gitkeep -delete 2>/dev/null || true
