# Sanitizers, over everything that is built: our code, its tests, and what is built from source with them.
set(FLASH3_SANITIZE "" CACHE STRING "Sanitizers to build with, comma separated: address,undefined or thread")
if(FLASH3_SANITIZE)
  add_compile_options(-fsanitize=${FLASH3_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${FLASH3_SANITIZE})
endif()
