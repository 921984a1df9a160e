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

// Parts lie as [splits, B, queries, H, Dv], Dv made even, their lse as [splits, B, queries, H]. Results
// that are int8, or whose rows are odd, are made of parts, too, even if it is one.
WEFT_INLINE int64_t part_columns(const Forward& p) { return p.Dv + p.Dv % 2; }
WEFT_INLINE int64_t part_rows(const ForwardCall& call) {  // of a split
  return call.p.B * call.plan.queries * call.p.H;
}
WEFT_INLINE float* part_out(const ForwardCall& call) {
  return static_cast<float*>(call.p.workspace);
}
WEFT_INLINE float* part_lse(const ForwardCall& call) {
  return part_out(call) + call.plan.splits * part_rows(call) * part_columns(call.p);
}

// A row of the result in X, or of a part.
template <class X>
class FinishedRow {
 public:
  WEFT_DEVICE FinishedRow(const ForwardCall& call, const Sequence& e, int64_t b, int64_t split,
                          const Row& row)
      : Dv_(call.p.Dv) {
    const Forward& p = call.p;
    if (call.plan.parts) {
      const int64_t at = split * part_rows(call) + (b * call.plan.queries + row.i) * p.H + row.h;
      part_ = part_out(call) + at * part_columns(p);
      lse_ = part_lse(call) + at;
    } else {
      out_ = static_cast<X*>(p.out.data) + out_index(p, e, row.h, row.i);
      if (p.lse) lse_ = static_cast<float*>(p.lse) + lse_index(p, e, b, row.h, row.i);
    }
  }

  WEFT_DEVICE void store_lse(float lse) const {
    if (lse_) store(lse_, lse);
  }
  // Elements d, which is even, and d + 1.
  WEFT_DEVICE void store_pair(int64_t d, float x, float y) const {
    if (d >= Dv_) return;
    const Vec<float, 2> pair = {{x, y}};
    if (part_)
      store(part_ + d, pair);
    else
      store(out_ + d, convert<X>(pair));
  }

 private:
  int64_t Dv_;
  X* out_ = nullptr;
  float *part_ = nullptr, *lse_ = nullptr;
};

}  // namespace weft::attention::cuda
