// Is this Program well formed? Everything later code relies on is established here, once, before anything is
// allocated for running: indices, ranks, sizes, grids, group divisions, finite constants.
#pragma once

#include "program.h"

namespace qvit {

// Throws ProgramError with one line naming the op (or buffer, weight, constant) and what is wrong.
void check(const Program& program);

}  // namespace qvit
