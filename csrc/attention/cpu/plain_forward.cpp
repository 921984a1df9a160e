// Attention forward, element by element in double precision.
#include <algorithm>
#include <tuple>
#include <vector>

#include "attention/cpu/cpu.h"
#include "attention/cpu/plain.h"
#include "cpu/threads.h"

namespace weft::attention::cpu {
namespace {

using namespace plain;

void attend(const Forward& p, const Query& query) {
  const auto [b, h, s] = std::tuple{query.b, query.h, query.s};
  std::vector<double> scores(static_cast<size_t>(query.e.T));
  double most = p.sinks ? p.sinks.at(b, 0, h) : -kInfinity, total = 0;
  for (int64_t t = 0; t < query.e.T; ++t) {
    scores[static_cast<size_t>(t)] = query.score(t);
    most = std::max(most, scores[static_cast<size_t>(t)]);
  }
  std::vector<double> o(static_cast<size_t>(p.Dv));
  if (most > -kInfinity || most != most) {
    if (p.sinks) total = std::exp(p.sinks.at(b, 0, h) - most);
    for (int64_t t = 0; t < query.e.T; ++t) {
      if (scores[static_cast<size_t>(t)] == -kInfinity) continue;
      const double weight = std::exp(scores[static_cast<size_t>(t)] - most);
      total += weight;
      const double keep = query.keep(t);
      if (keep == 0) continue;
      for (int64_t d = 0; d < p.Dv; ++d)
        o[static_cast<size_t>(d)] += weight * keep * query.value(p.v, p.v_scale, t, d);
    }
  }
  write(static_cast<char*>(p.lse) +
            query.lse_index() * static_cast<int64_t>(size_of(acc_of(p.q.dtype))),
        acc_of(p.q.dtype), total > 0 || total != total ? most + std::log(total) : -kInfinity);
  char* row = p.out.at(query.e.q_batch, query.e.q_row + s, h);
  for (int64_t d = 0; d < p.Dv; ++d) {
    double x = total == 0 ? 0 : o[static_cast<size_t>(d)] / total;
    if (p.out_scale) {
      const int64_t channel = h * p.Dv + d;
      if (p.out_shift) x -= p.out_shift[channel];
      if (p.out_smooth) x /= p.out_smooth[channel];
      x /= *p.out_scale;
    }
    set_element(p.out, row, d, x);
  }
}

}  // namespace

int64_t workspace_bytes(const Forward&) { return 0; }

void forward(const Forward& p) {
  ::weft::cpu::parallel_for(p.B * p.H, [&](int64_t task) {
    const int64_t b = task / p.H, S = p.extent(b).S;
    for (int64_t s = 0; s < S; ++s) attend(p, {p, p.q, p.k, p.k_scale, b, task % p.H, s});
  });
}

}  // namespace weft::attention::cpu
