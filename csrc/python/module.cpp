// weft._C: everything that is no tensor operation. Types and texts for people are in
// python/weft/_C.pyi and cli.py.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "comm/cpu/communicator.h"
#include "core/error.h"
#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/probes.h"

// From CMake. What a build does not know (an sdist has no git commit) is empty.
#ifndef WEFT_BUILD_TYPE
#define WEFT_BUILD_TYPE ""
#endif
#ifndef WEFT_GIT_COMMIT
#define WEFT_GIT_COMMIT ""
#endif
#ifndef WEFT_TORCH_VERSION
#define WEFT_TORCH_VERSION ""
#endif
#ifndef WEFT_TORCH_TARGET
#define WEFT_TORCH_TARGET ""
#endif

#if defined(__clang__)
#define WEFT_COMPILER "clang " __clang_version__
#else
#define WEFT_COMPILER "gcc " __VERSION__
#endif

namespace py = pybind11;
using namespace py::literals;

namespace weft {
namespace {

std::vector<cpu::Isa> all_levels() {
  std::vector<cpu::Isa> levels;
  for (int i = 0; i < cpu::kIsaCount; ++i) levels.push_back(static_cast<cpu::Isa>(i));
  return levels;
}

py::object or_none(std::string_view text) {
  return text.empty() ? py::object(py::none()) : py::str(text);
}

py::dict build_info() {
  py::list levels;
  for (cpu::Isa isa : all_levels()) {
    if (cpu::isa_compiled(isa)) levels.append(cpu::isa_name(isa));
  }
  return py::dict("version"_a = WEFT_VERSION, "git_commit"_a = or_none(WEFT_GIT_COMMIT),
                  "compiler"_a = WEFT_COMPILER, "build_type"_a = or_none(WEFT_BUILD_TYPE),
                  "torch_version"_a = or_none(WEFT_TORCH_VERSION),
                  "torch_target"_a = or_none(WEFT_TORCH_TARGET), "isa_levels"_a = levels);
}

py::dict isa_levels() {
  py::dict levels;
  for (cpu::Isa isa : all_levels()) levels[cpu::isa_name(isa)] = cpu::isa_available(isa);
  return levels;
}

std::string isa_why_not(const std::string& name) {
  const std::optional<cpu::Isa> isa = cpu::isa_from_name(name);
  if (!isa) throw py::value_error("weft: '" + name + "' is no level that weft knows");
  return cpu::isa_why_not(*isa);
}

py::dict cpu_features() {
  py::dict features;
  for (const cpu::CpuFeature& feature : cpu::cpu_features())
    features[feature.name] = feature.present;
  return features;
}

py::dict memory_bandwidth(int threads) {
  const cpu::MemoryBandwidth rates = [&] {
    const py::gil_scoped_release release;
    return cpu::measure_memory_bandwidth(threads);
  }();
  return py::dict("read"_a = rates.read, "copy"_a = rates.copy,
                  "touch_small_pages"_a = rates.touch_small_pages,
                  "touch_huge_pages"_a = rates.touch_huge_pages);
}

py::dict peaks(int threads) {
  const cpu::Peaks rates = [&] {
    const py::gil_scoped_release release;
    return cpu::measure_peaks(threads);
  }();
  return py::dict("fp32"_a = rates.fp32, "bf16"_a = rates.bf16, "int8"_a = rates.int8);
}

py::dict huge_pages() {
  const cpu::HugePages state = cpu::huge_pages();
  return py::dict("mode"_a = or_none(state.mode), "defrag"_a = or_none(state.defrag),
                  "page_bytes"_a = state.page_bytes, "process_bytes"_a = state.process_bytes);
}

using comm::cpu::Communicator;
using Table = std::vector<std::tuple<int64_t, bool, int64_t>>;

comm::cpu::Options options(double timeout, int cpus, const Table& table) {
  comm::cpu::Options options{timeout, cpus, {}};
  for (const auto& [bytes, two_shot, piece] : table)
    options.table.push_back({bytes, two_shot, piece});
  return options;
}

// name: empty as rank 0.
std::shared_ptr<Communicator> communicator(const std::string& name, int rank, int world,
                                           double timeout, int cpus, const Table& table) {
  const comm::cpu::Options chosen = options(timeout, cpus, table);
  const auto made = rank == 0 ? std::make_shared<Communicator>(world, chosen)
                              : std::make_shared<Communicator>(name, rank, world, chosen);
  Communicator::enter(made);
  return made;
}

Table default_table(int world, int cpus) {
  Table table;
  for (const comm::Choice& choice : comm::cpu::default_table(world, cpus))
    table.emplace_back(choice.bytes, choice.two_shot, choice.piece);
  return table;
}

// (call, op, phase, piece, begin, end) of what has been recorded.
using SpanTuple = std::tuple<uint64_t, const char*, const char*, int64_t, int64_t, int64_t>;
std::vector<SpanTuple> take_spans(Communicator& communicator) {
  constexpr const char* phases[] = {"call", "product", "put", "wait", "take"};
  std::vector<SpanTuple> spans;
  for (const comm::cpu::Span& s : communicator.take_spans())
    spans.emplace_back(s.call, comm::name_of(s.kind), phases[static_cast<int>(s.phase)], s.piece,
                       s.begin, s.end);
  return spans;
}

// A reduction of contiguous memory in place: what torch.ops.weft.all_reduce_ does, for those who
// have looked at the tensor already, past torch's dispatcher; and with columns and a bias, or 0, what
// torch.ops.weft.linear_all_reduce does behind a whole product. `self` is a communicator's owner, and
// the arguments are data, n, dtype, reduction, columns, bias: a plain function of CPython's, as
// pybind11's way to a method is a good part of what 1 KB takes.
PyObject* all_reduce_at(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 4 && count != 6) {
    PyErr_SetString(PyExc_TypeError,
                    "all_reduce_at: expected data, n, dtype, reduction and, of a product, columns "
                    "and bias");
    return nullptr;
  }
  void* const x = PyLong_AsVoidPtr(arguments[0]);
  const int64_t n = PyLong_AsLongLong(arguments[1]);
  const auto dtype = static_cast<DType>(PyLong_AsLong(arguments[2]));
  const auto reduction = static_cast<comm::Reduction>(PyLong_AsLong(arguments[3]));
  comm::Collective c{comm::Kind::all_reduce, reduction, dtype, n, 0, x, x};
  if (count == 6) {
    c.kind = comm::Kind::linear_all_reduce;
    c.columns = PyLong_AsLongLong(arguments[4]);
    c.bias = PyLong_AsVoidPtr(arguments[5]);
  }
  if (PyErr_Occurred()) return nullptr;
  using Owner = std::shared_ptr<Communicator>;
  Communicator& communicator = **static_cast<Owner*>(PyCapsule_GetPointer(self, nullptr));
  try {
    const py::gil_scoped_release unlocked;
    count == 6 ? communicator.run_behind(c) : communicator.run(c);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

py::object bound_all_reduce_at(const std::shared_ptr<Communicator>& communicator) {
  static PyMethodDef method = {
      "all_reduce_at", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&all_reduce_at)),
      METH_FASTCALL,
      "Reduces contiguous memory in place: data, n, dtype, reduction[, columns, bias]; see "
      "params.h."};
  using Owner = std::shared_ptr<Communicator>;
  const py::capsule owner(new Owner(communicator),
                          [](void* held) { delete static_cast<Owner*>(held); });
  return py::reinterpret_steal<py::object>(PyCFunction_New(&method, owner.ptr()));
}

// The same of reduce_scatter and all_gather, into memory that is given.
void into_at(Communicator& communicator, bool gather, uintptr_t x, uintptr_t y, int64_t n,
             int dtype, int reduction) {
  communicator.run({gather ? comm::Kind::all_gather : comm::Kind::reduce_scatter,
                    static_cast<comm::Reduction>(reduction), static_cast<DType>(dtype), n, 0,
                    reinterpret_cast<const void*>(x), reinterpret_cast<void*>(y)});
}

}  // namespace
}  // namespace weft

PYBIND11_MODULE(_C, m) {
  m.doc() = "weft's control plane: the build, the machine, its limits.";
  m.def("build_info", &weft::build_info,
        "What this build is: version, commit, compiler, torch, levels.");
  m.def("isa_levels", &weft::isa_levels,
        "Every instruction-set level, weakest first, and whether it can run here.");
  m.def("isa_why_not", &weft::isa_why_not, "name"_a,
        "Why a level cannot run here; empty if it can.");
  m.def(
      "isa_level", [] { return weft::cpu::isa_name(weft::cpu::isa_current()); },
      "The level that CPU kernels run at. RuntimeError if WEFT_CPU_ISA asks for one that cannot "
      "run here.");
  m.def(
      "force_isa", [](const std::string& name) { weft::cpu::isa_force(std::string_view(name)); },
      "name"_a, "Run CPU kernels at this level from now on. RuntimeError if it cannot run here.");
  m.def("cpu_features", &weft::cpu_features,
        "The CPU features that some level needs, and whether the CPU has them.");
  m.def("memory_bandwidth", &weft::memory_bandwidth, "threads"_a,
        "Measures bytes per second, in about a second.");
  m.def("peaks", &weft::peaks, "threads"_a,
        "Measures arithmetic operations per second, at the current level. 0: no such instruction.");
  m.def(
      "stream_copy",
      [](uintptr_t to, uintptr_t from, size_t bytes, int threads) {
        weft::cpu::stream_copy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from),
                               bytes, threads);
      },
      "to"_a, "from_"_a, "bytes"_a, "threads"_a, py::call_guard<py::gil_scoped_release>(),
      "Copies past the caches, as memory_bandwidth does. Addresses and bytes: multiples of 4096.");
  m.def(
      "stream_read",
      [](uintptr_t from, size_t bytes, int threads) {
        weft::cpu::stream_read(reinterpret_cast<const void*>(from), bytes, threads);
      },
      "from_"_a, "bytes"_a, "threads"_a, py::call_guard<py::gil_scoped_release>(),
      "Reads as memory_bandwidth does. Address and bytes: multiples of 4096.");
  m.def("run_operations", &weft::cpu::run_operations, "kind"_a, "operations"_a, "threads"_a,
        py::call_guard<py::gil_scoped_release>(),
        "Computes as peaks does: at least so many operations of fp32, bf16 or int8.");
  m.def("fork_join", &weft::cpu::measure_fork_join, "threads"_a,
        py::call_guard<py::gil_scoped_release>(), "Measures seconds to start and join threads.");
  m.def("reuse_memory", &weft::cpu::reuse_memory, "on"_a, "See weft.reuse_memory.");
  m.def("reusing_memory", &weft::cpu::reusing_memory, "Whether reuse_memory is on.");
  m.def("huge_pages", &weft::huge_pages,
        "The system's settings for transparent huge pages, and this process's use.");

  using weft::Communicator;
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  py::class_<Communicator, std::shared_ptr<Communicator>>(
      m, "Communicator", "This process's rank in a group that shares memory.")
      .def(py::init(&weft::communicator), "name"_a, "rank"_a, "world"_a, "timeout"_a, "cpus"_a,
           "table"_a)
      .def_property_readonly("name", &Communicator::name)
      .def_property_readonly("handle", &Communicator::handle)
      .def_property_readonly("failure", &Communicator::failure)
      .def("all_here", &Communicator::all_here, "All ranks have opened it: its name can go.")
      .def("queue", &Communicator::queue, "pending"_a, "So many calls stand in a queue.")
      .def("serve", &Communicator::serve, "on"_a,
           "This thread empties the queue, a call of it now.")
      .def("record", &Communicator::record, "on"_a, unlocked, "Keep what calls do from now on.")
      .def("take_spans", &weft::take_spans,
           "What has been kept, as (call, op, phase, piece, begin, end) in nanoseconds.")
      .def("close", &Communicator::close, unlocked)
      .def_property_readonly("all_reduce_at", &weft::bound_all_reduce_at)
      .def("into_at", &weft::into_at, "gather"_a, "x"_a, "y"_a, "n"_a, "dtype"_a, "reduction"_a,
           unlocked, "Gathers, or else reduces and scatters, contiguous memory; n as in params.h.");
  m.def(
      "communicator_world",
      [](int64_t handle) {
        const auto found = Communicator::find(handle);
        weft::check(found != nullptr, "weft: ", handle, " is no communicator");
        return found->world();
      },
      "handle"_a, "How many ranks the communicator has that ops know by this handle.");
  m.attr("WHOLE_BYTES") = Communicator::kWholeBytes;
  m.def("default_table", &weft::default_table, "world"_a, "cpus"_a,
        "Rows of (bytes, two_shot, piece): see csrc/comm/params.h.");
}
