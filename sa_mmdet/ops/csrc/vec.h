// Vectors of a tensor's elements, in the type of computation.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

namespace sa_mmdet {

template <typename T>
using accumulate_t = at::opmath_type<T>;

// As many elements of T as fill one register: one vector of float or double, two vectors of float
// for the 16-bit types. A number of elements below kSize addresses a tail; a tail loads zeros.
template <typename T>
struct Pack {
  using acc_t = accumulate_t<T>;
  using Vec = at::vec::Vectorized<acc_t>;
  using Stored = at::vec::Vectorized<T>;
  static constexpr int kSize = Stored::size();
  static constexpr int kVecs = kSize / Vec::size();
  static constexpr bool kConverts = !std::is_same_v<T, acc_t>;
  static_assert(kVecs == (kConverts ? 2 : 1));

  Vec v[kVecs];

  Pack() = default;
  explicit Pack(acc_t value) {
    for (auto& vec : v) vec = Vec(value);
  }

  static Pack load(const T* from, int count = kSize) {
    Pack pack;
    if constexpr (kConverts) {
      std::tie(pack.v[0], pack.v[1]) = at::vec::convert_to_float<T>(Stored::loadu(from, count));
    } else {
      pack.v[0] = Stored::loadu(from, count);
    }
    return pack;
  }

  void store(T* to, int count = kSize) const {
    if constexpr (kConverts) {
      at::vec::convert_from_float<T>(v[0], v[1]).store(to, count);
    } else {
      v[0].store(to, count);
    }
  }

  // The lanes of an array in the type of computation.
  static Pack load_acc(const acc_t* from, int count = kSize) {
    Pack pack;
    for (int i = 0; i < kVecs; ++i)
      pack.v[i] = Vec::loadu(from + i * Vec::size(), vec_count(i, count));
    return pack;
  }

  void store_acc(acc_t* to, int count = kSize) const {
    for (int i = 0; i < kVecs; ++i) v[i].store(to + i * Vec::size(), vec_count(i, count));
  }

  // The first count lanes, zeros after them.
  Pack head(int count) const {
    if (count == kSize) return *this;
    Pack pack;
    for (int i = 0; i < kVecs; ++i) pack.v[i] = Vec::set(Vec(0), v[i], vec_count(i, count));
    return pack;
  }

  acc_t sum() const {
    acc_t lanes[kSize];
    store_acc(lanes);
    // halving keeps the rounding error that of log2(kSize) additions
    for (int width = kSize / 2; width; width /= 2)
      for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
  }

 private:
  static constexpr int vec_count(int i, int count) {
    return std::clamp<int>(count - i * Vec::size(), 0, Vec::size());
  }
};

template <typename T, typename F, typename... Packs>
inline Pack<T> map(F f, const Packs&... packs) {
  Pack<T> out;
  for (int i = 0; i < Pack<T>::kVecs; ++i) out.v[i] = f(packs.v[i]...);
  return out;
}

template <typename T>
inline Pack<T> operator+(const Pack<T>& a, const Pack<T>& b) {
  return map<T>([](auto a, auto b) { return a + b; }, a, b);
}

template <typename T>
inline Pack<T> operator-(const Pack<T>& a, const Pack<T>& b) {
  return map<T>([](auto a, auto b) { return a - b; }, a, b);
}

template <typename T>
inline Pack<T> operator*(const Pack<T>& a, const Pack<T>& b) {
  return map<T>([](auto a, auto b) { return a * b; }, a, b);
}

// a * b + c
template <typename T>
inline Pack<T> fmadd(const Pack<T>& a, const Pack<T>& b, const Pack<T>& c) {
  return map<T>([](auto a, auto b, auto c) { return at::vec::fmadd(a, b, c); }, a, b, c);
}

// x = k ln 2 + r with |r| <= ln(2) / 2; a polynomial for exp(r), an exponent for 2^k. Adding
// 1.5 * 2^23 rounds to an integer, which is then in the low bits of the float; 127 more is the
// bias of the exponent. Relative error below 1.2e-7 for |x| < 87; x beyond is taken as +-87.
inline at::vec::Vectorized<float> exp(at::vec::Vectorized<float> x) {
  using Vec = at::vec::Vectorized<float>;
  using at::vec::fmadd;
  const Vec rounder(12582912.f + 127.f);
  x = at::vec::clamp(x, Vec(-87.f), Vec(87.f));
  const Vec shifted = fmadd(x, Vec(1.44269504f), rounder);
  const Vec k = shifted - rounder;
  Vec r = fmadd(k, Vec(-0.693359375f), x);  // ln 2 in two parts: k times the first one is exact
  r = fmadd(k, Vec(2.12194440e-4f), r);
  Vec q(1.381453999e-3f);
  q = fmadd(q, r, Vec(8.368745116e-3f));
  q = fmadd(q, r, Vec(4.166839079e-2f));
  q = fmadd(q, r, Vec(1.666652040e-1f));
  q = fmadd(q, r, Vec(4.999999343e-1f));
  const Vec exp_r = fmadd(q, r * r, r) + Vec(1.f);
  const auto exponent = at::vec::cast<int32_t>(shifted) << at::vec::Vectorized<int32_t>(23);
  return exp_r * at::vec::cast<float>(exponent);
}

inline at::vec::Vectorized<double> exp(const at::vec::Vectorized<double>& x) {
  using Vec = at::vec::Vectorized<double>;
  return at::vec::clamp(x, Vec(-700.), Vec(700.)).map(std::exp);
}

// sigmoid(z), and 1 - sigmoid(z) without the cancellation.
template <typename T>
struct Sigmoid {
  Pack<T> value, complement;
};

template <typename T>
inline Sigmoid<T> sigmoid(const Pack<T>& z) {
  Sigmoid<T> s;
  for (int i = 0; i < Pack<T>::kVecs; ++i) {
    const typename Pack<T>::Vec one(1);
    const auto e = exp(z.v[i].neg());
    s.value.v[i] = one / (one + e);
    s.complement.v[i] = e * s.value.v[i];
  }
  return s;
}

// The first 2 kSize of a0 b0 a1 b1 ..., or the first 2 count.
template <typename T>
inline void store_interleaved(
    T* to, const Pack<T>& a, const Pack<T>& b, int count = Pack<T>::kSize) {
  constexpr int kSize = Pack<T>::kSize, kVecs = Pack<T>::kVecs;
  typename Pack<T>::Vec vecs[2 * kVecs];
  for (int i = 0; i < kVecs; ++i)
    std::tie(vecs[2 * i], vecs[2 * i + 1]) = at::vec::interleave2(a.v[i], b.v[i]);
  for (int half = 0; half < 2; ++half) {
    Pack<T> pack;
    for (int i = 0; i < kVecs; ++i) pack.v[i] = vecs[half * kVecs + i];
    const int rest = std::clamp(2 * count - half * kSize, 0, kSize);
    if (rest) pack.store(to + half * kSize, rest);
  }
}

template <typename T>
inline std::pair<Pack<T>, Pack<T>> load_interleaved(
    const T* from, int count = Pack<T>::kSize) {
  constexpr int kSize = Pack<T>::kSize, kVecs = Pack<T>::kVecs;
  typename Pack<T>::Vec vecs[2 * kVecs];
  for (int half = 0; half < 2; ++half) {
    const int rest = std::clamp(2 * count - half * kSize, 0, kSize);
    const auto pack = rest ? Pack<T>::load(from + half * kSize, rest) : Pack<T>(0);
    for (int i = 0; i < kVecs; ++i) vecs[half * kVecs + i] = pack.v[i];
  }
  std::pair<Pack<T>, Pack<T>> packs;
  for (int i = 0; i < kVecs; ++i)
    std::tie(packs.first.v[i], packs.second.v[i]) =
        at::vec::deinterleave2(vecs[2 * i], vecs[2 * i + 1]);
  return packs;
}

// f(i, count) over [begin, end) in packs; count is a compile-time constant except for the last one.
template <typename T, typename F>
inline void for_each_pack(int64_t begin, int64_t end, F f) {
  constexpr int kSize = Pack<T>::kSize;
  int64_t i = begin;
  for (; i + kSize <= end; i += kSize) f(i, std::integral_constant<int, kSize>{});
  if (i < end) f(i, static_cast<int>(end - i));
}

// The same with f(i, count, slot) for reductions, which keep a sum for each slot: one sum alone
// would wait for its last addition every time.
constexpr int kSlots = 4;

template <typename T, typename F>
inline void for_each_pack_in_slots(int64_t begin, int64_t end, F f) {
  constexpr int kSize = Pack<T>::kSize;
  const std::integral_constant<int, kSize> full{};
  int64_t i = begin;
  for (; i + kSlots * kSize <= end; i += kSlots * kSize) {
    f(i, full, std::integral_constant<int, 0>{});
    f(i + kSize, full, std::integral_constant<int, 1>{});
    f(i + 2 * kSize, full, std::integral_constant<int, 2>{});
    f(i + 3 * kSize, full, std::integral_constant<int, 3>{});
  }
  for_each_pack<T>(i, end, [&](int64_t j, auto count) {
    f(j, count, std::integral_constant<int, 0>{});
  });
}

template <typename T>
struct SlotSum {
  Pack<T> slots[kSlots] = {Pack<T>(0), Pack<T>(0), Pack<T>(0), Pack<T>(0)};

  double total() const {
    return ((slots[0] + slots[1]) + (slots[2] + slots[3])).sum();
  }
};

}  // namespace sa_mmdet
