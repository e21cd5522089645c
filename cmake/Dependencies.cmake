# Where the libraries come from: MLX and oneDNN from wheels in a Python environment, the rest from the system.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
# The folders of the environment in which the program will run, and those where the wheels' files are now: `pip install` builds in
# an environment of its own, laid over the first, and there the two differ.
execute_process(
  COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/wheels.py"
  OUTPUT_VARIABLE LQUANT_WHEELS OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE "\n" ";" LQUANT_WHEELS "${LQUANT_WHEELS}")
list(GET LQUANT_WHEELS 0 LQUANT_SITE_PACKAGES)
list(GET LQUANT_WHEELS 1 LQUANT_PYTHON_PREFIX)
list(GET LQUANT_WHEELS 2 LQUANT_MLX_CMAKE)
list(GET LQUANT_WHEELS 3 LQUANT_DNNL_CMAKE)
list(GET LQUANT_WHEELS 4 LQUANT_OPENBLAS_CMAKE)

find_package(MLX CONFIG REQUIRED HINTS "${LQUANT_MLX_CMAKE}")
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)

# oneDNN, OpenBLAS (for LAPACK) and Highway serve the CPU kernels, which are for x86-64 Linux; elsewhere the same functions run on MLX.
set(LQUANT_ONEDNN OFF)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64" AND NOT LQUANT_FUZZ)
  find_package(dnnl CONFIG REQUIRED HINTS "${LQUANT_DNNL_CMAKE}")
  find_package(OpenBLAS CONFIG REQUIRED HINTS "${LQUANT_OPENBLAS_CMAKE}")
  find_package(hwy REQUIRED)
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  set(LQUANT_ONEDNN ON)
  get_target_property(dnnl_file DNNL::dnnl IMPORTED_LOCATION_RELEASE)
  cmake_path(GET dnnl_file PARENT_PATH LQUANT_DNNL_LIBRARY_DIR)
  get_target_property(openblas_file OpenBLAS::OpenBLAS IMPORTED_LOCATION)
  cmake_path(GET openblas_file PARENT_PATH LQUANT_OPENBLAS_LIBRARY_DIR)
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

# The Rust crate over `hf-hub` and `parquet`, a shared library that the program opens when it first needs it. Hundreds of crates that take minutes: an own
# target (`make hub`), which neither the program nor the demo waits for.
set(LQUANT_HUB_LIB "${CMAKE_SHARED_LIBRARY_PREFIX}lquant_hub${CMAKE_SHARED_LIBRARY_SUFFIX}")
file(GLOB_RECURSE LQUANT_HUB_SOURCES CONFIGURE_DEPENDS rust/hub/src/*.rs)
add_custom_command(OUTPUT "${CMAKE_BINARY_DIR}/${LQUANT_HUB_LIB}"
  COMMAND ${CARGO} build --release --locked --quiet --manifest-path rust/hub/Cargo.toml
          --target-dir "${CMAKE_CURRENT_SOURCE_DIR}/target"
  COMMAND ${CMAKE_COMMAND} -E copy "${CMAKE_CURRENT_SOURCE_DIR}/target/release/${LQUANT_HUB_LIB}" "${CMAKE_BINARY_DIR}/${LQUANT_HUB_LIB}"
  DEPENDS ${LQUANT_HUB_SOURCES} rust/hub/Cargo.toml rust/hub/Cargo.lock
  WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}"
  COMMENT "Building the library for the Hugging Face hub (Rust)" USES_TERMINAL)
add_custom_target(hub DEPENDS "${CMAKE_BINARY_DIR}/${LQUANT_HUB_LIB}")
add_library(lquant_hub_face INTERFACE)
target_include_directories(lquant_hub_face INTERFACE rust/hub/include)
target_link_libraries(lquant_hub_face INTERFACE ${CMAKE_DL_LIBS})
