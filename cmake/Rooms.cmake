# One precompiled header for all rooms: MLX, nlohmann-json and fmt take half of the compiler's time in most files. A room still
# includes what it uses, which builds without this (the presets for sanitizers and lint) would tell.
option(LQUANT_PCH "Precompile the headers of the big libraries" OFF)
if(LQUANT_PCH)
  file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/lquant_pch.cpp" CONTENT "")
  add_library(lquant_pch OBJECT "${CMAKE_BINARY_DIR}/lquant_pch.cpp")
  target_precompile_headers(lquant_pch PRIVATE <mlx/mlx.h> <nlohmann/json.hpp> <fmt/format.h> <filesystem> <functional> <map> <optional> <string> <vector>)
  target_link_libraries(lquant_pch PRIVATE mlx nlohmann_json::nlohmann_json fmt::fmt)
  if(LQUANT_ONEDNN)
    target_compile_options(lquant_pch PRIVATE ${OpenMP_CXX_FLAGS})  # the compiler asks for the same on both sides
  endif()
endif()

function(lquant_precompiled target)
  if(LQUANT_PCH)
    target_precompile_headers(${target} REUSE_FROM lquant_pch)
    get_target_property(type ${target} TYPE)
    if(type STREQUAL "EXECUTABLE")  # would be -fPIE, and the header is -fPIC
      set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
      # Options, tests and loops of benchmarks compute nothing themselves.
      target_compile_options(${target} PRIVATE -fPIC $<$<CONFIG:Release>:-Og>)
    endif()
    target_include_directories(${target} SYSTEM PRIVATE ${MLX_INCLUDE_DIRS})
    if(LQUANT_ONEDNN)
      target_compile_options(${target} PRIVATE ${OpenMP_CXX_FLAGS})
    endif()
  endif()
endfunction()

# lquant_room(NAME [USES room...] [LINK target...]): one static library for src/NAME, allowed to use the named rooms.
function(lquant_room name)
  cmake_parse_arguments(ROOM "" "" "USES;LINK" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS src/${name}/*.cpp src/${name}/*/*.cpp)
  if(NOT LQUANT_ONEDNN)
    list(FILTER sources EXCLUDE REGEX "_cpu\\.cpp$")
  endif()
  set(scope PUBLIC)
  if(sources)
    add_library(lquant_${name} STATIC ${sources})
    target_compile_options(lquant_${name} PRIVATE -Wall -Wextra -Wno-unused-parameter)
    # These call the rooms that compute, and run no slower for it: -O1 compiles a fifth faster, and -Og another fifth where there is no loop over
    # weights or bytes at all.
    if(name MATCHES "^(base|checkpoint|text|model|evaluate)$")
      target_compile_options(lquant_${name} PRIVATE $<$<CONFIG:Release>:-O1>)
    elseif(NOT name MATCHES "^(kernels|codec)$")
      target_compile_options(lquant_${name} PRIVATE $<$<CONFIG:Release>:-Og>)
    endif()
    lquant_precompiled(lquant_${name})
    # Four files at a time where they only call others: what each would instantiate of the big libraries is made once, which halves the compiler's work.
    # Files of kernels and codec are compiled once per instruction set, and stay alone.
    # Who adds files to a room again and again names it in LQUANT_SINGLE (-DLQUANT_SINGLE=model): then a new file moves no other's place.
    if(LQUANT_PCH AND NOT name MATCHES "^(kernels|codec)$" AND NOT name IN_LIST LQUANT_SINGLE)
      set_target_properties(lquant_${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 4)
    endif()
  else()
    add_library(lquant_${name} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_include_directories(lquant_${name} ${scope} "${PROJECT_SOURCE_DIR}/src" "${PROJECT_SOURCE_DIR}/include")
  list(TRANSFORM ROOM_USES PREPEND lquant_)
  target_link_libraries(lquant_${name} ${scope} ${ROOM_USES} ${ROOM_LINK})
  if(LQUANT_ONEDNN AND name STREQUAL "kernels")
    target_link_libraries(lquant_${name} ${scope} DNNL::dnnl OpenBLAS::OpenBLAS hwy::hwy OpenMP::OpenMP_CXX)
    target_compile_definitions(lquant_${name} ${scope} LQUANT_ONEDNN=1)
  endif()
  if(LQUANT_SANITIZE)
    target_compile_options(lquant_${name} ${scope} -fsanitize=${LQUANT_SANITIZE} -fno-omit-frame-pointer -g)
    target_compile_definitions(lquant_${name} ${scope} LQUANT_SANITIZED)
    target_link_options(lquant_${name} ${scope} -fsanitize=${LQUANT_SANITIZE})
  endif()
  if(LQUANT_FUZZ)
    target_compile_options(lquant_${name} ${scope} -fsanitize=fuzzer-no-link)  # counts the branches that an input takes
  endif()
endfunction()

include(Install)
