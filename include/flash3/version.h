/// \file
/// The version, for C and C++; the build reads it from here.
#pragma once

#define FLASH3_VERSION_MAJOR 0
#define FLASH3_VERSION_MINOR 1
#define FLASH3_VERSION_PATCH 0
