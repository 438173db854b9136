# Sanitizers, over everything that is built: our code, its tests, and what is built from source with them.
set(FLASH3_SANITIZE "" CACHE STRING "Sanitizers to build with, comma separated: address,undefined or thread")
if(FLASH3_SANITIZE)
  add_compile_options(-fsanitize=${FLASH3_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # With a sanitizer's checks between, g++ takes variables of its own standard library for uninitialised.
    add_compile_options(-Wno-maybe-uninitialized)
  endif()
  add_link_options(-fsanitize=${FLASH3_SANITIZE})
endif()
