// The part of qvit_runtime._native that training calls, several hundred times in a step. Tensors come as addresses: the
// exchange protocols of arrays cost several times what the call itself does. qvit/quantizers/fake_quantize_native.py is the only caller
// and answers for shapes, types and contiguity.
#include "bindings_training.h"

#include <nanobind/stl/tuple.h>

#include "cpu.h"
#include "fake_quantize.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace qvit {
namespace {

using Address = uintptr_t;  // 0: no tensor
using Tensor = std::tuple<Address, bool>;  // bool: bfloat16, not float32

const Kernels& kernels() {
  static const Kernels& best = choose_kernels("");
  return best;
}

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Real type_of(const Tensor& t) { return std::get<1>(t) ? Real::kBfloat16 : Real::kFloat32; }
ConstValues input(const Tensor& t) { return {pointer<const void>(std::get<0>(t)), type_of(t)}; }

// (before, groups, rest), and (scale, offset, rows, slots, widths, bit_groups, lowest, signed)
using PyShape = std::tuple<int64_t, int64_t, int64_t>;
using PyBank = std::tuple<Address, Address, int64_t, int64_t, Address, int64_t, int64_t, bool>;

GroupedShape shape_of(const PyShape& s) { return {std::get<0>(s), std::get<1>(s), std::get<2>(s)}; }

Bank bank_of(const PyBank& b) {
  return {pointer<const float>(std::get<0>(b)),
          pointer<const float>(std::get<1>(b)),
          std::get<2>(b),
          std::get<3>(b),
          pointer<const int64_t>(std::get<4>(b)),
          std::get<5>(b),
          std::get<6>(b),
          std::get<7>(b)};
}

void py_fake_quantize(const PyShape& shape, const PyBank& bank, const Tensor& x, const Tensor& out, int threads) {
  nb::gil_scoped_release release;
  fake_quantize(kernels(), shape_of(shape), bank_of(bank), input(x), {pointer<void>(std::get<0>(out)), type_of(out)},
                threads);
}

void py_gradient(const PyShape& shape, const PyBank& bank, const Tensor& x, const Tensor& d, Address dx,
                 double elements, Address scale, Address offset, Address bits, int threads) {
  nb::gil_scoped_release release;
  fake_quantize_gradient(kernels(), shape_of(shape), bank_of(bank), input(x), input(d), pointer<void>(dx), elements,
                         {pointer<float>(scale), pointer<float>(offset), pointer<float>(bits)}, threads);
}

}  // namespace

void bind_training(nb::module_& m) {
  m.def("fake_quantize", &py_fake_quantize, "shape"_a, "bank"_a, "x"_a, "out"_a, "threads"_a);
  m.def("fake_quantize_gradient", &py_gradient, "shape"_a, "bank"_a, "x"_a, "d"_a, "dx"_a, "elements"_a, "scale"_a,
        "offset"_a, "bits"_a, "threads"_a);
}

}  // namespace qvit
