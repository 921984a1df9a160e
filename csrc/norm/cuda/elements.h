// Elements whose dtype is known at run time, in float, and the dropout masks.
#pragma once

#include "gpu/gpu.h"
#include "norm/params.h"

namespace weft::norm::cuda {

using namespace ::weft::gpu;

template <class X>
constexpr DType kDType = std::is_same_v<X, bf16>  ? DType::bf16
                         : std::is_same_v<X, f16> ? DType::f16
                                                  : DType::f32;

// Elements i … i + N - 1 of a dtype that is float, X or, unless promised otherwise, any.
template <class X, int N, bool kCommon = false, Cache kCache = Cache::normal>
WEFT_DEVICE Vec<float, N> load_as(const void* data, DType dtype, int64_t i) {
  if (dtype == kDType<X>) return convert<float>(load<N, kCache>(static_cast<const X*>(data) + i));
  if (kCommon || dtype == DType::f32) return load<N, kCache>(static_cast<const float*>(data) + i);
  if (dtype == DType::bf16)
    return convert<float>(load<N, kCache>(static_cast<const bf16*>(data) + i));
  return convert<float>(load<N, kCache>(static_cast<const f16*>(data) + i));
}

template <int N>
WEFT_DEVICE void store_as(void* data, DType dtype, int64_t i, const Vec<float, N>& v) {
  if (dtype == DType::f32)
    store(static_cast<float*>(data) + i, v);
  else if (dtype == DType::bf16)
    store(static_cast<bf16*>(data) + i, convert<bf16>(v));
  else
    store(static_cast<f16*>(data) + i, convert<f16>(v));
}

// v as a tensor of that dtype holds it.
template <int N>
WEFT_DEVICE Vec<float, N> rounded(DType dtype, const Vec<float, N>& v) {
  if (dtype == DType::bf16) return convert<float>(convert<bf16>(v));
  if (dtype == DType::f16) return convert<float>(convert<f16>(v));
  return v;
}

// One row of a tensor, or a vector over the channels as that row sees it; absent where the tensor
// is.
struct Line {
  char* data = nullptr;
  DType dtype = DType::f32;

  Line() = default;
  WEFT_DEVICE Line(const Rows& rows, int64_t n)
      : data(rows ? rows.row(n) : nullptr), dtype(rows.dtype) {}
  WEFT_DEVICE Line(const Channels& c, int64_t n, int64_t C)
      : data(static_cast<char*>(c.data)), dtype(c.dtype) {
    if (c.heads > 1) data += n % c.heads * C * static_cast<int64_t>(size_of(dtype));
  }
  WEFT_DEVICE explicit operator bool() const { return data != nullptr; }

  // kCommon promises X or float32.
  template <class X, int N, bool kCommon = false>
  WEFT_DEVICE Vec<float, N> load(int64_t i) const {
    return load_as<X, N, kCommon>(data, dtype, i);
  }
  template <int N>
  WEFT_DEVICE void store(int64_t i, const Vec<float, N>& v) const {
    store_as(data, dtype, i, v);
  }
};

WEFT_DEVICE float read_scalar(const PerRow& v, int64_t n, float absent) {
  return v ? load_as<float, 1>(v.data, v.dtype, n)[0] : absent;
}

// f applied element by element.
template <int N, class F>
WEFT_DEVICE Vec<float, N> each(const F& f) {
  Vec<float, N> v;
  for (int i = 0; i < N; ++i) v[i] = f(i);
  return v;
}

// The first `count` elements from i on, and zeros.
template <int N>
WEFT_DEVICE Vec<float, N> load_first(const Shared<float>& from, uint32_t i, int64_t count) {
  if (count >= N) return from.load<N>(i);
  return each<N>([&](int k) { return k < count ? float{from[i + k]} : 0.0f; });
}

// Dropout as kernels want it.
struct Draw {
  const int64_t* state = nullptr;
  uint64_t threshold = 0;
  float scale = 0;  // of what is kept
  bool on = false;

  Draw() = default;
  explicit Draw(const Dropout& d)
      : state(d.state),
        threshold(dropout_threshold(d.p)),
        scale(d.p < 1 ? static_cast<float>(1 / (1 - d.p)) : 0.0f),
        on(d.p != 0) {}

  // Of elements e … e + N - 1: is each kept? N is 1, or divides e and is a multiple of 4.
  template <int N>
  WEFT_DEVICE Vec<uint8_t, N> mask(int64_t e, int stream) const {
    const uint64_t block =
        static_cast<uint64_t>(e) / 4 + static_cast<uint64_t>(stream) * kPhiloxStream;
    const PhiloxKey key = philox_key(state);
    Vec<uint8_t, N> kept;
    if constexpr (N == 1) {
      const Vec<uint32_t, 4> words = philox(key, block);
      const int i = static_cast<int>(e % 4);
      kept[0] = (i == 0 ? words[0] : i == 1 ? words[1] : i == 2 ? words[2] : words[3]) >= threshold;
    } else {
      for (int b = 0; b < N / 4; ++b) {
        const Vec<uint32_t, 4> words = philox(key, block + static_cast<uint64_t>(b));
        for (int i = 0; i < 4; ++i) kept[4 * b + i] = words[i] >= threshold;
      }
    }
    return kept;
  }

  // 1 / (1 - p) where kept, else 0.
  template <int N>
  WEFT_DEVICE Vec<float, N> factors(const Vec<uint8_t, N>& kept) const {
    return each<N>([&](int i) { return kept[i] ? scale : 0.0f; });
  }
};

}  // namespace weft::norm::cuda
