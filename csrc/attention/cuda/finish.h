// The end of forward: a row's o and lse into the result, or into the part that one of several splits
// leaves.
#pragma once

#include "attention/cuda/plan.h"
#include "attention/cuda/scores.h"

namespace weft::attention::cuda {

struct ForwardCall {
  Forward p;
  ForwardPlan plan;
  Scoring scoring;
};

// Element d of a row of the result.
WEFT_DEVICE void store_out(const Forward& p, int64_t at, int64_t h, int64_t d, float o) {
  if (p.out.dtype == DType::f32) return store(static_cast<float*>(p.out.data) + at + d, o);
  if (p.out.dtype == DType::bf16) return store(static_cast<bf16*>(p.out.data) + at + d, to_bf16(o));
  if (p.out.dtype == DType::f16) return store(static_cast<f16*>(p.out.data) + at + d, to_f16(o));
  if (p.out_shift) o -= load(p.out_shift + h * p.Dv + d);
  if (p.out_smooth) o /= load(p.out_smooth + h * p.Dv + d);
  store(static_cast<int8_t*>(p.out.data) + at + d, to_i8(o / load(p.out_scale)));
}

// Where a row of the result is, in elements.
WEFT_DEVICE int64_t out_index(const Forward& p, const Sequence& e, int64_t h, int64_t i) {
  return e.q_batch * p.out.batch + (e.q_row + i) * p.out.row + h * p.out.head;
}

// Parts lie as [splits, B, S, H, Dv], their lse as [splits, B, S, H].
WEFT_INLINE int64_t part_row(const Forward& p, int64_t split, int64_t b, int64_t i, int64_t h) {
  return ((split * p.B + b) * p.S + i) * p.H + h;
}
WEFT_INLINE float* part_out(const ForwardCall& call) {
  return static_cast<float*>(call.p.workspace);
}
WEFT_INLINE float* part_lse(const ForwardCall& call) {
  const Forward& p = call.p;
  return part_out(call) + call.plan.splits * p.B * p.S * p.H * p.Dv;
}

// A row of a split, or of all: its place.
class FinishedRow {
 public:
  WEFT_DEVICE FinishedRow(const ForwardCall& call, const Sequence& e, int64_t b, int64_t split,
                          const Row& row)
      : p_(call.p), h_(row.h) {
    if (call.plan.splits > 1) {
      const int64_t at = part_row(p_, split, b, row.i, row.h);
      part_ = part_out(call) + at * p_.Dv;
      lse_ = part_lse(call) + at;
    } else {
      at_ = out_index(p_, e, row.h, row.i);
      lse_ = static_cast<float*>(p_.lse) + lse_index(p_, e, b, row.h, row.i);
    }
  }

  WEFT_DEVICE void store_lse(float lse) const { store(lse_, lse); }
  // Elements d, which is even, and d + 1, as far as there are any.
  WEFT_DEVICE void store_pair(int64_t d, float x, float y) const {
    if (p_.Dv % 2 == 0 && d < p_.Dv) {
      if (part_) return store(part_ + d, Vec<float, 2>{{x, y}});
      if (p_.out.dtype == DType::bf16)
        return store(static_cast<bf16*>(p_.out.data) + at_ + d, to_bf16(x, y));
      if (p_.out.dtype == DType::f16)
        return store(static_cast<f16*>(p_.out.data) + at_ + d, to_f16(x, y));
    }
    if (d < p_.Dv) store_one(d, x);
    if (d + 1 < p_.Dv) store_one(d + 1, y);
  }

 private:
  WEFT_DEVICE void store_one(int64_t d, float x) const {
    if (part_)
      store(part_ + d, x);
    else
      store_out(p_, at_, h_, d, x);
  }

  const Forward& p_;
  int64_t h_, at_ = 0;
  float *part_ = nullptr, *lse_;
};

}  // namespace weft::attention::cuda
