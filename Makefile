# The front door. `make demo` and `make test` do all their set-up themselves.
.PHONY: all build hub demo test test-shared test-gpu families bench bench-gpu install format lint asan ubsan fuzz fuzz-mutations setup clean
CMAKE ?= cmake
# The environment's tools are found first, so that a machine's other pythons play no part.
export PATH := $(CURDIR)/.venv/bin:$(PATH):$(HOME)/.cargo/bin

all: build

setup:
	@scripts/setup

# Only the program. Tests are configured but not built, so that going from `make demo` to `make test` builds nothing twice.
build: setup
	@$(CMAKE) --preset release --log-level=WARNING
	@$(CMAKE) --build --preset release --target lquant

# What reaches the Hugging Face hub and reads Parquet: some 350 Rust crates, so only when it is asked for.
hub: setup
	@scripts/setup hub
	@$(CMAKE) --preset release --log-level=WARNING
	@$(CMAKE) --build --preset release --target hub

demo: build
	@./build/lquant demo

# Items of ctest run side by side (ctest -N lists them, ctest -L awq runs one subject), the longest first: one a core and one more, for many
# wait for files or work in one thread, and no more than four, for each may hold a model.
JOBS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 4 ? cores + 1 : 4)))
test:
	@scripts/setup test
	@$(CMAKE) --preset release --log-level=WARNING
	@$(CMAKE) --build --preset release --target lquant_tests
	@ctest --test-dir build --output-on-failure -j $(JOBS)

# docs/families.md and the README's number of model types, from a run of the tests that they tell of.
families: build
	@scripts/setup test
	@LQUANT=$(CURDIR)/build/lquant python -m pytest -q --families-page tests/model tests/cli/test_convert.py \
	  tests/cli/test_awq.py tests/cli/test_gptq.py tests/cli/test_dwq.py tests/cli/test_dynamic.py -k 'model or recipes_are or stays_dense or op_and_topology'

# What needs measured models and texts that a clone lacks: make test-shared SHARED=folder
test-shared: build
	@scripts/setup test
	@test -d "$(SHARED)" || { echo "make test-shared SHARED=folder: the folder with the models and texts" >&2; exit 2; }
	@LQUANT=$(CURDIR)/build/lquant LQUANT_SHARED=$(abspath $(SHARED)) python -m pytest -q tests/shared

# The rooms' tests on the default GPU, with f32 products in f32: what the tests derive holds for those, not for factors of 11 bits.
GPU_ROOMS = kernels codec model calibration quantize evaluate pipeline
test-gpu:
	@scripts/setup test
	@python -c 'import sys, mlx.core as mx; sys.exit(mx.default_device() != mx.gpu)' || { echo "make test-gpu: MLX has no GPU here; on NVIDIA's, put mlx[cuda13] in the place of mlx[cpu] in .venv (README)" >&2; exit 2; }
	@$(CMAKE) --preset release --log-level=WARNING
	@$(CMAKE) --build --preset release --target $(GPU_ROOMS:%=test_%)
	@MLX_ENABLE_TF32=0 ctest --test-dir build --output-on-failure -R '^($(shell echo $(GPU_ROOMS) | tr ' ' '|'))$$'

# The kernels, gradients, codecs, file readers and the forward pass once more under the sanitizers. MLX itself is not instrumented.
SANITIZED = base checkpoint text kernels codec model
asan ubsan:
	@scripts/setup test
	@$(CMAKE) --preset $@ --log-level=WARNING
	@$(CMAKE) --build --preset $@ --target $(SANITIZED:%=test_%)
	@ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ctest --test-dir build-$@ --output-on-failure -R '^($(shell echo $(SANITIZED) | tr ' ' '|'))$$'

# Hostile files, half a minute for each reader (FUZZ_SECONDS=3600 for a long run). Inputs that found something new are kept.
FUZZ_SECONDS ?= 30
fuzz:
	@scripts/setup fuzz
	@$(CMAKE) --preset fuzz --log-level=WARNING
	@$(CMAKE) --build --preset fuzz --target lquant_fuzz
	@for program in build-fuzz/tests/fuzz/fuzz_*; do corpus=build-fuzz/corpus/$$(basename $$program); mkdir -p $$corpus; \
	  ASAN_OPTIONS=detect_leaks=0 $$program -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -print_final_stats=1 $$corpus || exit 1; done

# Damaged configs, tokenizers, templates, rows, plans, run folders: what the program says to each.
COUNT = 5000
fuzz-mutations: build
	@scripts/setup test
	@LQUANT=$(CURDIR)/build/lquant python tests/fuzz/mutate.py --count $(COUNT)

# Ratios to mlx_lm and to this machine's own matrix products, as a table; BENCH_ARGS="--model folder --json file" for more.
bench:
	@scripts/setup test
	@$(CMAKE) --preset release -DLQUANT_BENCHMARKS=ON --log-level=WARNING
	@$(CMAKE) --build --preset release --target lquant_benchmarks
	@python benchmarks/bench.py --build build $(BENCH_ARGS)

# On a GPU, models of random weights in published shapes: lquant and mlx_lm in one run; BENCH_ARGS="--shape llama-3.1-8b --methods gptq" for others.
bench-gpu: build
	@scripts/setup test
	@python benchmarks/gpu.py --build build $(BENCH_ARGS)

install:
	@python3 -m pip install .

format:
	@scripts/setup lint
	@git ls-files '*.cpp' '*.h' | xargs clang-format -i

lint:
	@scripts/setup lint
	@git ls-files '*.cpp' '*.h' | xargs clang-format --dry-run --Werror
	@$(CMAKE) --preset lint --log-level=WARNING
	@sed -n 's|.*"file": "\($(CURDIR)/src/[^"]*\)".*|\1|p' build-lint/compile_commands.json | xargs -n 4 -P $$(getconf _NPROCESSORS_ONLN) clang-tidy -p build-lint --quiet

clean:
	@rm -rf build build-debug build-asan build-ubsan build-fuzz build-lint target
