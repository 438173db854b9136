# The warnings that our own code is compiled with.
option(FLASH3_WERROR "Treat warnings as errors" OFF)
add_library(flash3_warnings INTERFACE)
target_compile_options(flash3_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual>
  $<$<COMPILE_LANGUAGE:C>:-Wall -Wextra -Wpedantic -Wshadow>
  $<$<AND:$<BOOL:${FLASH3_WERROR}>,$<COMPILE_LANGUAGE:CXX,C>>:-Werror>)
