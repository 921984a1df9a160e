// Attention backward, element by element in double precision.
#include <tuple>
#include <vector>

#include "attention/cpu/attention.h"
#include "attention/cpu/plain.h"

namespace weft::attention::cpu {
namespace {

using namespace plain;

// The gradients of one sequence's keys and values, of one key head.
struct Sums {
  std::vector<double> dk, dv;
};

// One query; returns its share of dsinks.
double differentiate(const Backward& p, const Query& query, Sums& sums) {
  const auto [b, h, s] = std::tuple{query.b, query.h, query.s};
  const int64_t row = query.e.q_row + s,
                offset = query.lse_index() * static_cast<int64_t>(size_of(acc_of(p.q.dtype)));
  const double lse = read(static_cast<const char*>(p.lse) + offset, acc_of(p.q.dtype));
  const char* dout = p.dout.at(query.e.q_batch, row, h);
  double delta = p.dlse ? -read(static_cast<const char*>(p.dlse) + offset, acc_of(p.q.dtype)) : 0;
  for (int64_t d = 0; d < p.Dv; ++d)
    delta += element(p.dout, dout, d) * element(p.out, p.out.at(query.e.q_batch, row, h), d);

  std::vector<double> dq(static_cast<size_t>(p.D));
  for (int64_t t = 0; t < query.e.T; ++t) {
    double bent = 1;
    const double score = query.score(t, &bent);
    const double weight = score == -kInfinity || lse == -kInfinity ? 0 : std::exp(score - lse);
    double ds = 0;
    if (weight != 0) {
      const double keep = query.keep(t);
      double dp = 0;
      for (int64_t d = 0; d < p.Dv; ++d) {
        dp += keep * element(p.dout, dout, d) * query.value(p.v, Vectors{}, t, d);
        sums.dv[static_cast<size_t>(t * p.Dv + d)] += weight * keep * element(p.dout, dout, d);
      }
      ds = weight * (dp - delta);
      const double scaled = ds * bent * p.softmax_scale;
      for (int64_t d = 0; d < p.D; ++d) {
        dq[static_cast<size_t>(d)] += scaled * query.value(p.k, Vectors{}, t, d);
        sums.dk[static_cast<size_t>(t * p.D + d)] += scaled * element(p.q, query.row(), d);
      }
    }
    if (p.dbias) write(p.dbias.at(b, h, s, t), p.dbias.dtype, ds);
  }
  for (int64_t d = 0; d < p.D; ++d)
    set_element(p.dq, p.dq.at(query.e.q_batch, row, h), d, dq[static_cast<size_t>(d)]);
  return p.sinks && lse > -kInfinity ? -std::exp(p.sinks.at(b, 0, h) - lse) * delta : 0;
}

}  // namespace

int64_t workspace_bytes(const Backward&) { return 0; }

void backward(const Backward& p) {
  std::vector<double> dsinks(static_cast<size_t>(p.H));
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t key_head = 0; key_head < p.K; ++key_head) {
      const Problem::Extent e = p.extent(b);
      Sums sums = {std::vector<double>(static_cast<size_t>(e.T * p.D)),
                   std::vector<double>(static_cast<size_t>(e.T * p.Dv))};
      const int64_t group = p.H / p.K;
      for (int64_t h = key_head * group; h < (key_head + 1) * group; ++h)
        for (int64_t s = 0; s < e.S; ++s)
          dsinks[static_cast<size_t>(h)] += differentiate(p, {p, p.q, p.k, {}, b, h, s}, sums);
      for (int64_t t = 0; t < e.T; ++t) {
        for (int64_t d = 0; d < p.D; ++d)
          set_element(p.dk, p.dk.at(e.k_batch, e.k_row + t, key_head), d,
                      sums.dk[static_cast<size_t>(t * p.D + d)]);
        for (int64_t d = 0; d < p.Dv; ++d)
          set_element(p.dv, p.dv.at(e.k_batch, e.k_row + t, key_head), d,
                      sums.dv[static_cast<size_t>(t * p.Dv + d)]);
      }
    }
  if (p.dsinks)
    for (int64_t h = 0; h < p.H; ++h)
      p.dsinks[h] = static_cast<float>(dsinks[static_cast<size_t>(h)]);
}

}  // namespace weft::attention::cpu
