// The AVX2 + FMA kernels. Compiled with their own flags; nothing here may leak: everything is in anonymous namespaces,
// and no template of the standard library is instantiated, because the linker may keep this file's copy of an inline
// function for the whole library and so crash on a processor without AVX2.
#include "avx2/gemm.h"
#include "avx2/integer_norm.h"
#include "avx2/layer_norm.h"
#include "avx2/pack.h"
#include "avx2/regions.h"
#include "avx2/rows.h"
#include "avx2/shiftmax.h"
#include "avx2/softmax.h"
#include "fake_quantize_loops.h"

namespace qvit {

namespace {

const IntegerKernels kIntegerKernels = {requantize, integer_layer_norm, shiftmax, quantize_regions};

}  // namespace

const Kernels kAvx2Kernels = {"avx2", gemm,      quantize,    layer_norm,      softmax,
                              gelu,   pack_keys, pack_values, &kIntegerKernels, &kTrainingKernels};

}  // namespace qvit
