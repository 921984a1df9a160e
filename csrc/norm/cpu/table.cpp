// One level's table of norm kernels (compiled once per level).
#include "norm/cpu/row.h"

namespace weft::norm::cpu::WEFT_CPU_LEVEL {

void forward_rows(const Forward&, int64_t, int64_t, void*);
void forward_gather(const Forward&, int64_t, int64_t, int64_t, void*, void*, Moments*);
void forward_range(const Forward&, int64_t, int64_t, int64_t, void*, Moments, Range*);
void forward_finish(const Forward&, int64_t, int64_t, int64_t, void*, Moments, Range);
void backward_rows(const Backward&, int64_t, int64_t, void*, void*);
void backward_gather(const Backward&, int64_t, int64_t, int64_t, double*, double*);
void backward_finish(const Backward&, int64_t, int64_t, const double*, const double*, void*, void*);
void backward_reduce(const Backward&, int64_t, int64_t, int64_t, const void*);
void dropout_mask(Dropout, int64_t, int64_t, int, bool*);

extern const Kernels kernels = {forward_rows,    forward_gather,  forward_range,
                                forward_finish,  backward_rows,   backward_gather,
                                backward_finish, backward_reduce, dropout_mask};

}  // namespace weft::norm::cpu::WEFT_CPU_LEVEL
