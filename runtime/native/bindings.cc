// qvit_runtime._native: the thin side. It copies a Program out of Python objects, hands arrays over as pointers and
// releases the GIL. Everything that can be wrong with a Program is found by check.cc, not here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <map>

#include "bindings_training.h"
#include "cpu.h"
#include "engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace qvit {
namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;

template <typename T>
std::vector<T> copy(const Array<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

template <typename T>
std::vector<int64_t> shape_of(const Array<T>& array) {
  std::vector<int64_t> shape;
  for (size_t i = 0; i < array.ndim(); ++i) shape.push_back(static_cast<int64_t>(array.shape(i)));
  return shape;
}

Kind kind_of(const std::string& name) {
  for (int k = 0; k < kKinds; ++k) {
    if (name == kind_name(static_cast<Kind>(k))) return static_cast<Kind>(k);
  }
  throw ProgramError("op kind '" + name + "' is unknown");
}

// Collects a Program piece by piece; every call returns the index of what it added.
class Builder {
 public:
  int values(std::vector<int64_t> shape) {
    program.buffers.push_back({std::move(shape), std::nullopt});
    return static_cast<int>(program.buffers.size()) - 1;
  }
  int codes(std::vector<int64_t> shape, std::vector<int> bits, bool is_signed, Array<float> scale, Array<float> offset,
            int axis) {
    program.buffers.push_back({std::move(shape), Grid{std::move(bits), is_signed, copy(scale), copy(offset), axis}});
    return static_cast<int>(program.buffers.size()) - 1;
  }
  int weight(Array<int8_t> codes, Array<int32_t> bits, Array<float> scale) {
    if (codes.ndim() != 2 || bits.ndim() != 2 || scale.ndim() != 2) throw ProgramError("weight: needs matrices");
    program.weights.push_back({static_cast<int64_t>(codes.shape(0)), static_cast<int64_t>(codes.shape(1)),
                               static_cast<int>(scale.shape(0)), static_cast<int>(scale.shape(1)), copy(codes),
                               copy(bits), copy(scale)});
    return static_cast<int>(program.weights.size()) - 1;
  }
  int constant(Array<float> values) {
    program.constants.push_back({shape_of(values), copy(values)});
    return static_cast<int>(program.constants.size()) - 1;
  }
  int integers(Array<int32_t> values) {
    program.integers.push_back({shape_of(values), copy(values)});
    return static_cast<int>(program.integers.size()) - 1;
  }
  void op(const std::string& kind, std::vector<int> inputs, int output, std::vector<int> tensors,
          std::vector<int64_t> integers, std::vector<double> reals) {
    program.ops.push_back(
        {kind_of(kind), std::move(inputs), output, std::move(tensors), std::move(integers), std::move(reals)});
  }

  Program program;
};

class PyEngine {
 public:
  PyEngine(Builder& builder, std::vector<int> inputs, std::vector<int> outputs, int threads, const std::string& path,
           bool fuse) {
    builder.program.inputs = std::move(inputs);
    builder.program.outputs = std::move(outputs);
    nb::gil_scoped_release release;
    engine_ = std::make_unique<Engine>(builder.program, choose_kernels(path), threads, fuse);
    builder.program = Program{};  // the plan holds packed copies
  }

  using Input = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;  // of any type: see match
  using Output = nb::ndarray<nb::c_contig, nb::device::cpu>;

  void run(int64_t batch, const std::vector<Input>& inputs, const std::vector<Output>& outputs) {
    call(batch, inputs, outputs, nullptr);
  }

  // [(name, ops, seconds summed over the threads)], one per step
  nb::list profile(int64_t batch, const std::vector<Input>& inputs, const std::vector<Output>& outputs) {
    std::vector<StepTime> times;
    call(batch, inputs, outputs, &times);
    nb::list result;
    for (const StepTime& t : times) result.append(nb::make_tuple(t.name, t.ops, t.seconds));
    return result;
  }

  nb::list steps() const {
    nb::list result;
    for (const auto& step : engine_->plan().steps) result.append(nb::make_tuple(step->name, step->ops));
    return result;
  }
  std::string path() const { return engine_->plan().kernels->name; }
  int threads() const { return engine_->plan().threads; }
  int64_t arena_bytes() const { return engine_->arena_bytes(); }

 private:
  template <typename AnyArray>
  static void match(const AnyArray& array, const Port& port, int64_t batch) {
    const bool values = !port.buffer.grid, narrow = port.buffer.narrow();
    const bool type = array.dtype() == (values   ? nb::dtype<float>()
                                        : narrow ? nb::dtype<int16_t>()
                                                 : nb::dtype<int32_t>());
    bool shape = array.ndim() == port.buffer.shape.size() + 1 && static_cast<int64_t>(array.shape(0)) == batch;
    for (size_t i = 0; shape && i < port.buffer.shape.size(); ++i) {
      shape = static_cast<int64_t>(array.shape(i + 1)) == port.buffer.shape[i];
    }
    if (!type || !shape) throw ProgramError("array does not have the shape and type of the program's buffer");
  }

  void call(int64_t batch, const std::vector<Input>& inputs, const std::vector<Output>& outputs,
            std::vector<StepTime>* times) {
    const Plan& plan = engine_->plan();
    if (inputs.size() != plan.inputs.size() || outputs.size() != plan.outputs.size()) {
      throw ProgramError("another number of arrays than the program has inputs and outputs");
    }
    std::vector<const void*> from;
    std::vector<void*> to;
    for (size_t i = 0; i < inputs.size(); ++i) {
      match(inputs[i], plan.inputs[i], batch);
      from.push_back(inputs[i].data());
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      match(outputs[i], plan.outputs[i], batch);
      to.push_back(outputs[i].data());
    }
    nb::gil_scoped_release release;
    engine_->run(batch, from, to, times);
  }

  std::unique_ptr<Engine> engine_;
};

// {name: (built, supported)}, best first
nb::dict paths() {
  nb::dict result;
  for (const KernelPath& path : kernel_paths()) result[path.name.c_str()] = nb::make_tuple(path.built, path.supported);
  return result;
}

}  // namespace
}  // namespace qvit

NB_MODULE(_native, m) {
  using namespace qvit;
  m.doc() = "Native engine of qvit_runtime; use qvit_runtime.Engine.";
  m.def("paths", &paths);
  nb::class_<Builder>(m, "Builder")
      .def(nb::init<>())
      .def("values", &Builder::values, "shape"_a)
      .def("codes", &Builder::codes, "shape"_a, "bits"_a, "signed"_a, "scale"_a, "offset"_a, "axis"_a)
      .def("weight", &Builder::weight, "codes"_a, "bits"_a, "scale"_a)
      .def("constant", &Builder::constant, "values"_a)
      .def("integers", &Builder::integers, "values"_a)
      .def("op", &Builder::op, "kind"_a, "inputs"_a, "output"_a, "tensors"_a, "integers"_a, "reals"_a);
  nb::class_<PyEngine>(m, "Engine")
      .def(nb::init<Builder&, std::vector<int>, std::vector<int>, int, const std::string&, bool>(), "builder"_a,
           "inputs"_a, "outputs"_a, "threads"_a, "path"_a, "fuse"_a)
      .def("run", &PyEngine::run, "batch"_a, "inputs"_a, "outputs"_a)
      .def("profile", &PyEngine::profile, "batch"_a, "inputs"_a, "outputs"_a)
      .def_prop_ro("steps", &PyEngine::steps)
      .def_prop_ro("path", &PyEngine::path)
      .def_prop_ro("threads", &PyEngine::threads)
      .def_prop_ro("arena_bytes", &PyEngine::arena_bytes);
  bind_training(m);
}
