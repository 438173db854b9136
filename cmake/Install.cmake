# cmake --install: headers, libraries, the files that find_package and pkg-config read, licences.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/flash3)
install(TARGETS ${FLASH3_LIBRARIES} EXPORT flash3-targets)
install(EXPORT flash3-targets NAMESPACE flash3:: DESTINATION ${package_dir})
configure_package_config_file(cmake/flash3-config.cmake.in flash3-config.cmake INSTALL_DESTINATION ${package_dir})
set(compatibility SameMajorVersion)
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(compatibility SameMinorVersion)
endif()
write_basic_package_version_file(flash3-config-version.cmake COMPATIBILITY ${compatibility})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/flash3-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/flash3-config-version.cmake
  DESTINATION ${package_dir})

file(RELATIVE_PATH prefix_from_pkgconfig /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" prefix_from_pkgconfig ${prefix_from_pkgconfig})
configure_file(cmake/flash3.pc.in flash3.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/flash3.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(DIRECTORY include/flash3 DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(FILES LICENSE THIRD-PARTY.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
