# Where an installed lquant lies and what lies beside it.
#
# `pip install .` (SKBUILD) puts the program into the environment's bin folder, whose wheels it then finds by relative paths;
# `cmake --install` may put it anywhere, and it goes on using the environment that it was built with.
if(DEFINED SKBUILD_SCRIPTS_DIR)
  set(LQUANT_INSTALL_BIN "${SKBUILD_SCRIPTS_DIR}")
  set(LQUANT_INSTALL_SHARE "${SKBUILD_DATA_DIR}/share/lquant")
else()
  set(LQUANT_INSTALL_BIN bin)
  set(LQUANT_INSTALL_SHARE share/lquant)
endif()
# The embedded model, for `lquant demo`.
install(DIRECTORY models/tiny DESTINATION "${LQUANT_INSTALL_SHARE}/models")

# `lquant.dwq` is `lquant dwq`: whoever comes from `mlx_lm.dwq` changes two letters. The build makes links; wheels cannot hold any, hence scripts.
set(LQUANT_LINKS auto awq convert dwq dynamic_quant evaluate generate gptq perplexity report upload)
foreach(command ${LQUANT_LINKS})
  set(script "${CMAKE_BINARY_DIR}/scripts/lquant.${command}")
  file(CONFIGURE OUTPUT "${script}" CONTENT "#!/bin/sh\nexec \"\${0%/*}/lquant\" ${command} \"\$@\"\n" @ONLY)
  install(PROGRAMS "${script}" DESTINATION "${LQUANT_INSTALL_BIN}")
endforeach()

# What every program (lquant, tests, benchmarks) needs: it finds libmlx, libdnnl and OpenBLAS in the environment it was built from and, once
# installed, in the one it lies in.
function(lquant_rpath target)
  lquant_precompiled(${target})
  if(APPLE)
    set(origin "@loader_path")
  else()
    set(origin "$ORIGIN")
  endif()
  file(RELATIVE_PATH site "${LQUANT_PYTHON_PREFIX}/bin" "${LQUANT_SITE_PACKAGES}")
  set(built "${CMAKE_BINARY_DIR}" "${MLX_LIBRARY_DIRS}" ${LQUANT_DNNL_LIBRARY_DIR} ${LQUANT_OPENBLAS_LIBRARY_DIR})
  set(installed "${origin}" "${origin}/${site}/mlx/lib" "${origin}/${site}/scipy_openblas32/lib" "${origin}/../lib")
  if(NOT DEFINED SKBUILD_SCRIPTS_DIR)  # the wheels of the environment that it was built with, and nothing of the build folder, which may go
    list(APPEND installed "${MLX_LIBRARY_DIRS}" ${LQUANT_DNNL_LIBRARY_DIR} ${LQUANT_OPENBLAS_LIBRARY_DIR})
  endif()
  set_target_properties(${target} PROPERTIES BUILD_RPATH "${built}" INSTALL_RPATH "${installed}")
endfunction()
