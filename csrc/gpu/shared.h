// Shared memory. A kernel's shared memory is one dynamic allocation per block, cut up by a
// SharedLayout, which runs in the same way in the kernel and on the host:
//
//   struct Tiles {
//     SharedLayout layout;
//     Shared<float> partial = layout.take<float>(32);
//     Shared<bf16> x = layout.take<bf16>(64 * 128, 1024);  // aligned to 1024 bytes
//   };
//   Tiles smem;                                                        in the kernel
//   launch<kernel>({…, .shared_bytes = Tiles().layout.bytes()}, …);    on the host
//
// Tiles(), as g++ 12 makes the members of Tiles{} twice, but where it folds them.
//
// Shared<T> is an address and, for the simulator, a length. smem.x[i] reads and writes one element,
// load<N> and store move up to 16 bytes at once; Remote<T> is the same array in another block of
// the cluster. The base of all is aligned to 1024 bytes.
#pragma once

#include "gpu/global.h"
#include "gpu/vec.h"

namespace weft::gpu {

constexpr uint32_t kSharedAlignment = 1024;

namespace detail {
// The two accesses to shared memory, at a byte offset from the block's base; V is at most 16 bytes.
template <class V>
WEFT_DEVICE V shared_load(uint32_t offset);
template <class V>
WEFT_DEVICE void shared_store(uint32_t offset, const V& v);
// The same in the block of that rank.
template <class V>
WEFT_DEVICE V remote_load(uint32_t offset, uint32_t rank);
template <class V>
WEFT_DEVICE void remote_store(uint32_t offset, uint32_t rank, const V& v);
// Are elements [i, i + n) within a view of `count`? Checked by the simulator alone.
WEFT_DEVICE void check_view(uint64_t i, uint32_t n, uint32_t count, uint32_t element_bytes);
}  // namespace detail

template <class T>
class Remote;

template <class T>
class Shared {
 public:
  using Element = T;

  // One element, to be read or assigned at once: `float a = x[i]`, not `auto a = x[i]`.
  class Reference {
   public:
    WEFT_DEVICE explicit Reference(uint32_t offset) : offset_(offset) {}
    Reference(const Reference&) = delete;
    WEFT_DEVICE operator T() && { return detail::shared_load<T>(offset_); }
    WEFT_DEVICE void operator=(T v) && { detail::shared_store(offset_, v); }
    WEFT_DEVICE void operator+=(T v) && {
      detail::shared_store<T>(offset_, detail::shared_load<T>(offset_) + v);
    }

   private:
    uint32_t offset_;
  };

  Shared() = default;
  WEFT_INLINE constexpr Shared(uint32_t offset, uint32_t count) : offset_(offset), count_(count) {}

  WEFT_DEVICE Reference operator[](uint32_t i) const {
    detail::check_view(i, 1, count_, sizeof(T));
    return Reference(at(i));
  }

  template <int N>
  WEFT_DEVICE Vec<T, N> load(uint32_t i) const;
  template <int N>
  WEFT_DEVICE void store(uint32_t i, const Vec<T, N>& v) const;

  // The view from element i on, of `count` elements or of all that are left.
  WEFT_DEVICE Shared from(uint32_t i) const {
    detail::check_view(i, 0, count_, sizeof(T));
    return {at(i), count_ - i};
  }
  WEFT_DEVICE Shared from(uint32_t i, uint32_t count) const {
    detail::check_view(i, count, count_, sizeof(T));
    return {at(i), count};
  }

  // The same bytes as elements of another type.
  template <class U>
  WEFT_INLINE constexpr Shared<U> as() const {
    return {offset_, static_cast<uint32_t>(count_ * sizeof(T) / sizeof(U))};
  }

  // The same array in the block of that rank in the cluster.
  WEFT_DEVICE Remote<T> in_block(uint32_t rank) const;

  WEFT_INLINE constexpr uint32_t offset() const { return offset_; }  // bytes from the block's base
  WEFT_INLINE constexpr uint32_t count() const { return count_; }
  WEFT_INLINE constexpr uint32_t bytes() const { return static_cast<uint32_t>(count_ * sizeof(T)); }

  // The address as instructions take it, in the shared window.
  WEFT_DEVICE uint32_t address() const;

 private:
  WEFT_INLINE constexpr uint32_t at(uint32_t i) const {
    return offset_ + i * static_cast<uint32_t>(sizeof(T));
  }

  uint32_t offset_ = 0, count_ = 0;
};

// An array in the shared memory of a block of the cluster. sm_90.
template <class T>
class Remote {
 public:
  WEFT_DEVICE Remote(Shared<T> local, uint32_t rank) : local_(local), rank_(rank) {}

  WEFT_DEVICE T load(uint32_t i) const {
    detail::check_view(i, 1, local_.count(), sizeof(T));
    return detail::remote_load<T>(local_.offset() + i * sizeof(T), rank_);
  }
  WEFT_DEVICE void store(uint32_t i, T v) const {
    detail::check_view(i, 1, local_.count(), sizeof(T));
    detail::remote_store(local_.offset() + i * static_cast<uint32_t>(sizeof(T)), rank_, v);
  }
  template <int N>
  WEFT_DEVICE Vec<T, N> load(uint32_t i) const {
    static_assert(sizeof(Vec<T, N>) <= kVectorBytes);
    detail::check_view(i, N, local_.count(), sizeof(T));
    return detail::remote_load<Vec<T, N>>(local_.offset() + i * sizeof(T), rank_);
  }
  template <int N>
  WEFT_DEVICE void store(uint32_t i, const Vec<T, N>& v) const {
    static_assert(sizeof(Vec<T, N>) <= kVectorBytes);
    detail::check_view(i, N, local_.count(), sizeof(T));
    detail::remote_store(local_.offset() + i * static_cast<uint32_t>(sizeof(T)), rank_, v);
  }

  WEFT_DEVICE const Shared<T>& local() const { return local_; }
  WEFT_DEVICE uint32_t rank() const { return rank_; }

 private:
  Shared<T> local_;
  uint32_t rank_;
};

// Cuts shared memory up, from its base on.
class SharedLayout {
 public:
  // `count` elements, aligned to `alignment` bytes, or so that vectors of 16 bytes can be accessed.
  template <class T>
  WEFT_INLINE constexpr Shared<T> take(uint32_t count, uint32_t alignment = kVectorBytes) {
    bytes_ = (bytes_ + alignment - 1) / alignment * alignment;
    const Shared<T> taken(bytes_, count);
    bytes_ += taken.bytes();
    return taken;
  }
  WEFT_INLINE constexpr uint32_t bytes() const { return bytes_; }

 private:
  uint32_t bytes_ = 0;
};

// ---- atomics on shared memory, for the threads of the block. T: uint32_t, int32_t, float.
template <class T>
WEFT_DEVICE T atomic_add(Shared<T> x, uint32_t i, T v);
template <class T>
WEFT_DEVICE T atomic_max(Shared<T> x, uint32_t i, T v);

// ----------------------------------------------------------------------------------------- bodies

template <class T>
template <int N>
WEFT_DEVICE Vec<T, N> Shared<T>::load(uint32_t i) const {
  detail::check_view(i, N, count_, sizeof(T));
  using P = Piece<T, N>;
  if constexpr (P::kSize == N) {
    return detail::shared_load<P>(at(i));
  } else {
    Vec<T, N> v;
    for (int k = 0; k < N; k += P::kSize) {
      const P piece = detail::shared_load<P>(at(i + k));
      for (int j = 0; j < P::kSize; ++j) v[k + j] = piece[j];
    }
    return v;
  }
}

template <class T>
template <int N>
WEFT_DEVICE void Shared<T>::store(uint32_t i, const Vec<T, N>& v) const {
  detail::check_view(i, N, count_, sizeof(T));
  using P = Piece<T, N>;
  if constexpr (P::kSize == N) {
    detail::shared_store(at(i), v);
  } else {
    for (int k = 0; k < N; k += P::kSize) {
      P piece;
      for (int j = 0; j < P::kSize; ++j) piece[j] = v[k + j];
      detail::shared_store(at(i + k), piece);
    }
  }
}

template <class T>
WEFT_DEVICE Remote<T> Shared<T>::in_block(uint32_t rank) const {
  return Remote<T>(*this, rank);
}

}  // namespace weft::gpu
