# magi_cargo_library(<target> OUTPUT_DIR <dir> TARGET_DIR <dir> [FEATURES <list>])
#
# Makes the imported shared library <target>. Cargo builds libmagi_attn.so in TARGET_DIR; OUTPUT_DIR gets it under its
# full version with the two links that the dynamic loader and the linker look for.
function(magi_cargo_library target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "OUTPUT_DIR;TARGET_DIR;FEATURES" "")
  set(library "${arg_OUTPUT_DIR}/libmagi_attn.so.${PROJECT_VERSION}")
  set(features)
  if(arg_FEATURES)
    set(features --features "${arg_FEATURES}")
  endif()

  add_custom_target(
    ${target}_cargo ALL
    COMMAND "${CARGO}" build --release --locked ${features} --target-dir "${arg_TARGET_DIR}"
    COMMAND "${CMAKE_COMMAND}" -E make_directory "${arg_OUTPUT_DIR}"
    COMMAND "${CMAKE_COMMAND}" -E copy_if_different "${arg_TARGET_DIR}/release/libmagi_attn.so" "${library}"
    COMMAND "${CMAKE_COMMAND}" -E create_symlink libmagi_attn.so.${PROJECT_VERSION}
            "${arg_OUTPUT_DIR}/libmagi_attn.so.${MAGI_SOVERSION}"
    COMMAND "${CMAKE_COMMAND}" -E create_symlink libmagi_attn.so.${MAGI_SOVERSION} "${arg_OUTPUT_DIR}/libmagi_attn.so"
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
    BYPRODUCTS "${library}"
    COMMENT "cargo build --release ${arg_FEATURES}"
    USES_TERMINAL VERBATIM)

  add_library(${target} SHARED IMPORTED GLOBAL)
  set_target_properties(
    ${target}
    PROPERTIES IMPORTED_LOCATION "${library}"
               IMPORTED_SONAME libmagi_attn.so.${MAGI_SOVERSION}
               INTERFACE_INCLUDE_DIRECTORIES "${PROJECT_SOURCE_DIR}/include")
  add_dependencies(${target} ${target}_cargo)
endfunction()
