// GELU for processors that look up 32 floats in one instruction: x Phi(x) = x / 2 + |x| (Phi(|x|) - 1/2), and the
// bracket as a cubic on each of 32 segments.
//
//   t = min(|x| * kGeluSteps, 31)      i = rint(t)      r = t - i, in [-1/2, 1/2]
//   Phi(|x|) - 1/2 = c0[i] + r (c1[i] + r (c2[i] + r c3[i]))        error below 2e-7
//
// No division and no polynomial of high degree: a sixth less time than the rational function in avx2/math.h.
#pragma once

namespace qvit {

inline constexpr int kGeluSegments = 32;
inline constexpr float kGeluSteps = 31.0f / 5.5f;  // Phi(5.5) is 1 to within 2e-8

// [coefficient][segment], filled on first use.
const float* gelu_table();

}  // namespace qvit
