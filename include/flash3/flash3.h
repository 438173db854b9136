/// \file
/// All of flash3's C++ interface.
#pragma once

#include "flash3/attention.h"
#include "flash3/check.h"
#include "flash3/error.h"
#include "flash3/merge.h"
#include "flash3/plan.h"
#include "flash3/tensor.h"
#include "flash3/version.h"
