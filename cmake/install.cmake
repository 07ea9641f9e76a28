# What `cmake --install` puts down: the library and its two links, the headers, the pkg-config file and the package
# that find_package(magi_attn) finds. Everything finds its neighbours by relative paths, so that the tree may be moved.

set(magi_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/magi_attn")
set(magi_library "${PROJECT_BINARY_DIR}/lib/libmagi_attn.so")

install(PROGRAMS "${magi_library}.${PROJECT_VERSION}" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES "${magi_library}.${MAGI_SOVERSION}" "${magi_library}" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY include/ DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")

file(RELATIVE_PATH magi_pc_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file(cmake/magi_attn.pc.in magi_attn.pc @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/magi_attn.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

configure_package_config_file(
  cmake/magi_attnConfig.cmake.in magi_attnConfig.cmake
  INSTALL_DESTINATION "${magi_package_dir}"
  PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR
  NO_CHECK_REQUIRED_COMPONENTS_MACRO)
# With major version 0 a new minor version may change the ABI.
write_basic_package_version_file(magi_attnConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/magi_attnConfig.cmake" "${PROJECT_BINARY_DIR}/magi_attnConfigVersion.cmake"
        DESTINATION "${magi_package_dir}")
