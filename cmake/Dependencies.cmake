# Where the libraries come from: MLX and oneDNN from wheels in a Python environment, the rest from the system.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND "${Python3_EXECUTABLE}" -c
          "import sysconfig,os;p=sysconfig.get_paths();print(p['purelib']);print(p['platlib']);print(p['data'])"
  OUTPUT_VARIABLE LQUANT_PYTHON_PATHS OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE "\n" ";" LQUANT_PYTHON_PATHS "${LQUANT_PYTHON_PATHS}")
list(GET LQUANT_PYTHON_PATHS 1 LQUANT_SITE_PACKAGES)
list(GET LQUANT_PYTHON_PATHS 2 LQUANT_PYTHON_PREFIX)

find_package(MLX CONFIG REQUIRED HINTS "${LQUANT_SITE_PACKAGES}/mlx/share/cmake/MLX")
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)

# oneDNN and Highway serve the CPU kernels, which are for x86-64 Linux; elsewhere the same functions run on MLX.
set(LQUANT_ONEDNN OFF)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  find_package(dnnl CONFIG REQUIRED HINTS "${LQUANT_PYTHON_PREFIX}/lib/cmake/dnnl")
  find_package(hwy REQUIRED)
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  set(LQUANT_ONEDNN ON)
endif()

# The Rust shim over `tokenizers` and `minijinja`, as one static library with a C ABI.
find_program(CARGO cargo REQUIRED HINTS "$ENV{HOME}/.cargo/bin")
set(LQUANT_TEXT_LIB "${CMAKE_CURRENT_SOURCE_DIR}/target/release/liblquant_text.a")
file(GLOB_RECURSE LQUANT_TEXT_SOURCES CONFIGURE_DEPENDS rust/text/src/*.rs)
add_custom_command(OUTPUT "${LQUANT_TEXT_LIB}"
  COMMAND ${CARGO} build --release --locked --quiet --manifest-path rust/text/Cargo.toml
          --target-dir "${CMAKE_CURRENT_SOURCE_DIR}/target"
  DEPENDS ${LQUANT_TEXT_SOURCES} rust/text/Cargo.toml rust/text/Cargo.lock
  WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}"
  COMMENT "Building the tokenizer library (Rust)" USES_TERMINAL)
add_custom_target(lquant_text_build DEPENDS "${LQUANT_TEXT_LIB}")
add_library(lquant_text_shim INTERFACE)
add_dependencies(lquant_text_shim lquant_text_build)
find_package(Threads REQUIRED)
target_include_directories(lquant_text_shim INTERFACE rust/text/include)
target_link_libraries(lquant_text_shim INTERFACE "${LQUANT_TEXT_LIB}" Threads::Threads ${CMAKE_DL_LIBS} m)

# `pip install .` puts the binary in the environment's bin folder, beside which the wheels' libraries are found.
if(DEFINED SKBUILD_SCRIPTS_DIR)
  set(LQUANT_INSTALL_BIN "${SKBUILD_SCRIPTS_DIR}")
else()
  set(LQUANT_INSTALL_BIN bin)
endif()
