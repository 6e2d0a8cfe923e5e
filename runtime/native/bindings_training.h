#pragma once

#include <nanobind/nanobind.h>

namespace qvit {

void bind_training(nanobind::module_& m);

}  // namespace qvit
