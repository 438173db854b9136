/// \file
/// FLASH3_EXPORT marks what the shared library makes visible.
#pragma once

#if defined(_WIN32)
#ifdef FLASH3_BUILDING
#define FLASH3_EXPORT __declspec(dllexport)
#else
#define FLASH3_EXPORT __declspec(dllimport)
#endif
#else
#define FLASH3_EXPORT __attribute__((visibility("default")))
#endif
