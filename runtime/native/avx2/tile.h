// The inner loops: up to 6 rows times one panel of 16 columns, in registers. Included by kernels_avx2.cc only.
//
//   ymm0..11  sums: row r holds columns 0..7 in ymm(2r) and 8..15 in ymm(2r+1)
//   ymm12,13  one quad of the panel        ymm14  four bytes of a row, broadcast        ymm15  a product
//
// One quad of six rows is 12 vpmaddubsw, 12 vpaddw and 8 loads: 384 multiply-adds in 6 cycles, where both the two
// multiply ports and the six-wide front end are nearly full. Every register is taken, and GCC, given intrinsics, spills
// accumulators into the loop (measured: 98 instead of 188 GMAC/s a core), so registers are named by hand.
//
// vpmaddubsw reads ymm14 as unsigned (activations) and the panel as signed; lanes are 16-bit sums of two products,
// exact for `run` quads (layout.h). At the end of a run vpmaddwd with ones adds the two lanes of a column into 32 bits.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "../layout.h"

namespace {

alignas(32) constexpr int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// clang-format off
#define QVIT_ZERO(i) "vpxor %%ymm" #i ",%%ymm" #i ",%%ymm" #i "\n\t"
#define QVIT_ZERO_1 QVIT_ZERO(0) QVIT_ZERO(1)
#define QVIT_ZERO_2 QVIT_ZERO_1 QVIT_ZERO(2) QVIT_ZERO(3)
#define QVIT_ZERO_3 QVIT_ZERO_2 QVIT_ZERO(4) QVIT_ZERO(5)
#define QVIT_ZERO_4 QVIT_ZERO_3 QVIT_ZERO(6) QVIT_ZERO(7)
#define QVIT_ZERO_5 QVIT_ZERO_4 QVIT_ZERO(8) QVIT_ZERO(9)
#define QVIT_ZERO_6 QVIT_ZERO_5 QVIT_ZERO(10) QVIT_ZERO(11)

// Rows 0..2 are addressed from `a`, rows 3..5 from `c` = a + 3 strides.
#define QVIT_ROWS_1(STEP, at) STEP(at, "(%[a])", 0, 1)
#define QVIT_ROWS_2(STEP, at) QVIT_ROWS_1(STEP, at) STEP(at, "(%[a],%[l])", 2, 3)
#define QVIT_ROWS_3(STEP, at) QVIT_ROWS_2(STEP, at) STEP(at, "(%[a],%[l],2)", 4, 5)
#define QVIT_ROWS_4(STEP, at) QVIT_ROWS_3(STEP, at) STEP(at, "(%[c])", 6, 7)
#define QVIT_ROWS_5(STEP, at) QVIT_ROWS_4(STEP, at) STEP(at, "(%[c],%[l])", 8, 9)
#define QVIT_ROWS_6(STEP, at) QVIT_ROWS_5(STEP, at) STEP(at, "(%[c],%[l],2)", 10, 11)

#define QVIT_NARROW_STEP(at, row, lo, hi)                  \
  "vpbroadcastd " #at row ", %%ymm14\n\t"                  \
  "vpmaddubsw %%ymm12, %%ymm14, %%ymm15\n\t"               \
  "vpmaddubsw %%ymm13, %%ymm14, %%ymm14\n\t"               \
  "vpaddw %%ymm15, %%ymm" #lo ", %%ymm" #lo "\n\t"         \
  "vpaddw %%ymm14, %%ymm" #hi ", %%ymm" #hi "\n\t"

#define QVIT_WIDE_STEP(at, row, lo, hi)                    \
  "vpbroadcastq " #at row ", %%ymm14\n\t"                  \
  "vpmaddwd %%ymm12, %%ymm14, %%ymm15\n\t"                 \
  "vpmaddwd %%ymm13, %%ymm14, %%ymm14\n\t"                 \
  "vpaddd %%ymm15, %%ymm" #lo ", %%ymm" #lo "\n\t"         \
  "vpaddd %%ymm14, %%ymm" #hi ", %%ymm" #hi "\n\t"

#define QVIT_PANEL(lo, hi) \
  "vmovdqa " #lo "(%[b]), %%ymm12\n\t" \
  "vmovdqa " #hi "(%[b]), %%ymm13\n\t"

// Ends of a run: the first stores its sums, later ones add to them.
#define QVIT_PUT(i, at) \
  "vpmaddwd %%ymm15,%%ymm" #i ",%%ymm" #i "\n\t" \
  "vmovdqa %%ymm" #i "," #at "(%[o])\n\t"
#define QVIT_ADD(i, at) \
  "vpmaddwd %%ymm15,%%ymm" #i ",%%ymm" #i "\n\t" \
  "vpaddd " #at "(%[o]),%%ymm" #i ",%%ymm" #i "\n\t" \
  "vmovdqa %%ymm" #i "," #at "(%[o])\n\t"
// Wide sums hold two lanes a column, (c0 c0 c1 c1 | c2 c2 c3 c3) and the next four columns: add neighbours, sort.
#define QVIT_PUT_WIDE(lo, hi, at)                           \
  "vphaddd %%ymm" #hi ",%%ymm" #lo ",%%ymm" #lo "\n\t"      \
  "vpermq $0xd8,%%ymm" #lo ",%%ymm" #lo "\n\t"              \
  "vmovdqa %%ymm" #lo "," #at "(%[o])\n\t"
#define QVIT_END_WIDE_1 QVIT_PUT_WIDE(0, 1, 0)
#define QVIT_END_WIDE_2 QVIT_END_WIDE_1 QVIT_PUT_WIDE(2, 3, 64)
#define QVIT_END_WIDE_3 QVIT_END_WIDE_2 QVIT_PUT_WIDE(4, 5, 128)
#define QVIT_END_WIDE_4 QVIT_END_WIDE_3 QVIT_PUT_WIDE(6, 7, 192)
#define QVIT_END_WIDE_5 QVIT_END_WIDE_4 QVIT_PUT_WIDE(8, 9, 256)
#define QVIT_END_WIDE_6 QVIT_END_WIDE_5 QVIT_PUT_WIDE(10, 11, 320)
#define QVIT_END_1(END) END(0, 0) END(1, 32)
#define QVIT_END_2(END) QVIT_END_1(END) END(2, 64) END(3, 96)
#define QVIT_END_3(END) QVIT_END_2(END) END(4, 128) END(5, 160)
#define QVIT_END_4(END) QVIT_END_3(END) END(6, 192) END(7, 224)
#define QVIT_END_5(END) QVIT_END_4(END) END(8, 256) END(9, 288)
#define QVIT_END_6(END) QVIT_END_5(END) END(10, 320) END(11, 352)

#define QVIT_CLOBBERS                                                                                       \
  "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",  \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

// One run of `quads` >= 1 quads of n rows.
#define QVIT_NARROW_RUN(n, END)                                                                             \
  asm volatile(QVIT_ZERO_##n                                                                                \
               "test $1, %[q]\n\t"                                                                          \
               "jz 1f\n\t"                                                                                  \
               QVIT_PANEL(0, 32) QVIT_ROWS_##n(QVIT_NARROW_STEP, 0)                                         \
               "add $4, %[a]\n\tadd $4, %[c]\n\tadd $64, %[b]\n\t"                                          \
               "1:\n\tshr $1, %[q]\n\t"                                                                     \
               "jz 3f\n\t"                                                                                  \
               ".p2align 5\n2:\n\t"                                                                         \
               QVIT_PANEL(0, 32) QVIT_ROWS_##n(QVIT_NARROW_STEP, 0)                                         \
               QVIT_PANEL(64, 96) QVIT_ROWS_##n(QVIT_NARROW_STEP, 4)                                        \
               "add $8, %[a]\n\tadd $8, %[c]\n\tsub $-128, %[b]\n\tdec %[q]\n\tjnz 2b\n\t"                  \
               "3:\n\tvmovdqa %[one], %%ymm15\n\t" QVIT_END_##n(END)                                        \
               : [a] "+r"(a), [c] "+r"(c), [b] "+r"(b), [q] "+r"(quads)                                     \
               : [l] "r"(stride), [o] "r"(out), [one] "m"(kOnes)                                            \
               : QVIT_CLOBBERS)

#define QVIT_WIDE_PANEL(lo, hi) "vpmovsxbw " #lo "(%[b]), %%ymm12\n\tvpmovsxbw " #hi "(%[b]), %%ymm13\n\t"

// All quads of n rows times 8 columns; `b` is one half of a panel, still 64 bytes from quad to quad.
#define QVIT_WIDE_RUN(n)                                                                                    \
  asm volatile(QVIT_ZERO_##n                                                                                \
               "test $1, %[q]\n\t"                                                                          \
               "jz 1f\n\t"                                                                                  \
               QVIT_WIDE_PANEL(0, 16) QVIT_ROWS_##n(QVIT_WIDE_STEP, 0)                                      \
               "add $8, %[a]\n\tadd $8, %[c]\n\tadd $64, %[b]\n\t"                                          \
               "1:\n\tshr $1, %[q]\n\t"                                                                     \
               "jz 3f\n\t"                                                                                  \
               ".p2align 5\n2:\n\t"                                                                        \
               QVIT_WIDE_PANEL(0, 16) QVIT_ROWS_##n(QVIT_WIDE_STEP, 0)                                      \
               QVIT_WIDE_PANEL(64, 80) QVIT_ROWS_##n(QVIT_WIDE_STEP, 8)                                     \
               "add $16, %[a]\n\tadd $16, %[c]\n\tsub $-128, %[b]\n\tdec %[q]\n\tjnz 2b\n\t"                \
               "3:\n\t" QVIT_END_WIDE_##n                                                                  \
               : [a] "+r"(a), [c] "+r"(c), [b] "+r"(b), [q] "+r"(quads)                                     \
               : [l] "r"(stride), [o] "r"(out)                                                              \
               : QVIT_CLOBBERS)
// clang-format on

#define QVIT_EACH_ROW_COUNT(DO, ...)                  \
  switch (rows) {                                     \
    case 1: DO(1 __VA_OPT__(, ) __VA_ARGS__); break;  \
    case 2: DO(2 __VA_OPT__(, ) __VA_ARGS__); break;  \
    case 3: DO(3 __VA_OPT__(, ) __VA_ARGS__); break;  \
    case 4: DO(4 __VA_OPT__(, ) __VA_ARGS__); break;  \
    case 5: DO(5 __VA_OPT__(, ) __VA_ARGS__); break;  \
    default: DO(6 __VA_OPT__(, ) __VA_ARGS__); break; \
  }

inline void first_run(const uint8_t* a, ptrdiff_t stride, int rows, const int8_t* b, int64_t quads, int32_t* out) {
  const uint8_t* c = a + 3 * stride;
  QVIT_EACH_ROW_COUNT(QVIT_NARROW_RUN, QVIT_PUT)
}

inline void next_run(const uint8_t* a, ptrdiff_t stride, int rows, const int8_t* b, int64_t quads, int32_t* out) {
  const uint8_t* c = a + 3 * stride;
  QVIT_EACH_ROW_COUNT(QVIT_NARROW_RUN, QVIT_ADD)
}

// rows x 16 sums of one block. out: int32 [6][16], 32-byte aligned.
inline void narrow_tile(const uint8_t* a, ptrdiff_t stride, int rows, const int8_t* b, int quads, int run,
                        int32_t* out) {
  if (quads <= run) {
    first_run(a, stride, rows, b, quads, out);
    return;
  }
  first_run(a, stride, rows, b, run, out);
  for (int q = run; q < quads; q += run) {
    const int now = quads - q < run ? quads - q : run;
    next_run(a + q * qvit::kQuad, stride, rows, b + q * qvit::kQuadBytes, now, out);
  }
}

// The same for 8 x 8 bits: 16-bit operands, 32-bit products, half the columns at a time. stride is in bytes.
inline void wide_half(const int16_t* wide, ptrdiff_t stride, int rows, const int8_t* b, int64_t quads, int32_t* out) {
  const char* a = reinterpret_cast<const char*>(wide);
  const char* c = a + 3 * stride;
  QVIT_EACH_ROW_COUNT(QVIT_WIDE_RUN)
}

inline void wide_tile(const int16_t* a, ptrdiff_t stride, int rows, const int8_t* b, int quads, int32_t* out) {
  wide_half(a, stride, rows, b, quads, out);
  wide_half(a, stride, rows, b + qvit::kQuadBytes / 2, quads, out + qvit::kPanel / 2);
}

}  // namespace
