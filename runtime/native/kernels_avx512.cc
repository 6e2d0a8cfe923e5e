// The AVX-512 VNNI kernels. Like kernels_avx2.cc: own flags, anonymous namespaces, no templates of the standard
// library. Packing, GELU, quantization and the row kernels on integers are those of avx2/, which this file's flags
// compile anew.
#include "avx2/integer_norm.h"
#include "avx2/pack.h"
#include "avx2/regions.h"
#include "avx2/rows.h"
#include "avx2/shiftmax.h"
#include "avx512/gemm.h"
#include "avx512/layer_norm.h"
#include "avx512/softmax.h"
#include "fake_quantize_loops.h"

namespace qvit {

namespace {

const IntegerKernels kIntegerKernels = {requantize, integer_layer_norm, shiftmax, quantize_regions};

}  // namespace

const Kernels kAvx512Kernels = {"avx512vnni", gemm,      quantize,    layer_norm,      softmax,
                                gelu,         pack_keys, pack_values, &kIntegerKernels, &kTrainingKernels};

}  // namespace qvit
