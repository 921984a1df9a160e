// The GPU as weft's kernels see it: the one header that a kernel includes, and the words that it is
// written in. Each header below declares the words of one subject and says what they mean. What
// they are made of stands in ptx/ for nvcc, where all inline PTX of weft is, and in sim/ for the
// host compiler, which turns the same kernel into code for the simulator (docs/simulator.md).
//
// All of a kernel's accesses to global and shared memory go through these words, never through a
// bare pointer: the simulator checks each.
#pragma once

#include "gpu/async.h"
#include "gpu/base.h"
#include "gpu/convert.h"
#include "gpu/global.h"
#include "gpu/launch.h"
#include "gpu/layouts.h"
#include "gpu/math.h"
#include "gpu/mma.h"
#include "gpu/multimem.h"
#include "gpu/philox.h"
#include "gpu/shared.h"
#include "gpu/sync.h"
#include "gpu/tma.h"
#include "gpu/vec.h"
#include "gpu/warp.h"
#include "gpu/wgmma.h"

#ifdef __CUDACC__
#include "gpu/ptx/async.h"
#include "gpu/ptx/base.h"
#include "gpu/ptx/convert.h"
#include "gpu/ptx/global.h"
#include "gpu/ptx/launch.h"
#include "gpu/ptx/math.h"
#include "gpu/ptx/mma.h"
#include "gpu/ptx/multimem.h"
#include "gpu/ptx/shared.h"
#include "gpu/ptx/sync.h"
#include "gpu/ptx/tma.h"
#include "gpu/ptx/warp.h"
#include "gpu/ptx/wgmma.h"
#else
#include "gpu/sim/async.h"
#include "gpu/sim/base.h"
#include "gpu/sim/convert.h"
#include "gpu/sim/global.h"
#include "gpu/sim/launch.h"
#include "gpu/sim/math.h"
#include "gpu/sim/mma.h"
#include "gpu/sim/multimem.h"
#include "gpu/sim/shared.h"
#include "gpu/sim/sync.h"
#include "gpu/sim/tma.h"
#include "gpu/sim/warp.h"
#include "gpu/sim/wgmma.h"
#endif
