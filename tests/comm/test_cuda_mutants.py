"""The collectives' real kernels lose a line each, and the simulator finds every loss.

A mutant is a copy of csrc/comm/cuda's channel.h and kernels.h in which a piece of text is another.
All are compiled into one program, mutants.cpp, which runs three ranks."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends import SIMULATED_OPS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "comm" / "cuda"
SIMULATOR = SIMULATED_OPS.with_name("libweft_simulator.a")
COMPILER = shutil.which("g++") or shutil.which("clang++")
SEEDS = range(4)  # 0: threads in turn

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine"),
    pytest.mark.skipif(
        not SIMULATOR.exists(), reason="the simulator is not built: make build/simulator/.built"
    ),
]

RACE = "race: .* not ordered with a (strong )?(read|write)"
EARLY = f"{RACE}|which has not been written"


@dataclass(frozen=True)
class Mutant:
    name: str
    text: str
    instead: str
    message: str
    """What the program then says."""
    case: str = "calls"
    kernel: str = "one_shot"
    file: str = "channel.h"


KERNELS = ("one_shot", "two_shot", "multicast", "int8", "reduce_scatter", "all_gather")
CASES = ("calls", "absent", "different", "closed")
MUTANTS = [
    # ---- order
    Mutant("no_wait", "good = await(r);", "", EARLY),
    Mutant(
        "early_wait",
        "static_cast<int32_t>(count - (event_ + 1)) >= 0",
        "static_cast<int32_t>(count - event_) >= 0",
        f"{EARLY}|has trouble mismatch",
    ),
    Mutant(
        "counters_do_not_wrap",
        "static_cast<int32_t>(count - (event_ + 1)) >= 0",
        "count >= event_ + 1",
        EARLY,
    ),
    Mutant(
        "relaxed_publication",
        "store_release<Scope::system>(&flag->published",
        "store_relaxed<Scope::system>(&flag->published",
        RACE,
    ),
    Mutant(
        "publication_to_the_gpu",
        "store_release<Scope::system>(&flag->published",
        "store_release<Scope::gpu>(&flag->published",
        RACE,
    ),
    Mutant(
        "relaxed_look",
        "load_acquire<Scope::system>(&state_->from[r].published)",
        "load_relaxed<Scope::system>(&state_->from[r].published)",
        RACE,
    ),
    Mutant(
        "look_within_the_gpu",
        "load_acquire<Scope::system>(&state_->from[r].published)",
        "load_acquire<Scope::gpu>(&state_->from[r].published)",
        RACE,
    ),
    Mutant(
        "no_barrier_before_publishing",
        "sync_block();  // the slot is written",
        "// the slot is written",
        EARLY,
    ),
    Mutant(
        "no_barrier_after_waiting",
        "if (!sync_block_and(good)) return false;",
        "if (!good) return false;",
        EARLY,
    ),
    # ---- slots
    Mutant(
        "one_slot",
        "group_.slot(block().x, event)",
        "group_.slot(block().x, 0)",
        RACE,
    ),
    Mutant(
        "slot_of_the_next_event",
        "return at<T>(group_.memory[r], event_ - 1);",
        "return at<T>(group_.memory[r], event_);",
        EARLY,
    ),
    Mutant(
        "one_exchange_in_two_shot",
        "    if (!channel.exchange()) return false;\n    for_vectors<T>(step,",
        "    for_vectors<T>(step,",
        "y is wrong, 0",
        kernel="two_shot",
        file="kernels.h",
    ),
    Mutant(
        "no_exchange_in_one_shot",
        "    if (!channel.exchange()) return false;\n    for_vectors<T>(count, [&](int64_t i) {\n"
        "      put(y + at + i, reduced<T>(call, channel, i,",
        "    for_vectors<T>(count, [&](int64_t i) {\n"
        "      put(y + at + i, reduced<T>(call, channel, i,",
        EARLY,
        file="kernels.h",
    ),
    Mutant(
        "no_exchange_in_int8",
        "    if (!channel.exchange()) return false;\n    for_vectors<T>(count, [&](int64_t i) {\n"
        "      Vec<int8_t, E> q[kMostRanks]",
        "    for_vectors<T>(count, [&](int64_t i) {\n      Vec<int8_t, E> q[kMostRanks]",
        EARLY,
        kernel="int8",
        file="kernels.h",
    ),
    Mutant(
        "no_exchange_in_reduce_scatter",
        "    if (!channel.exchange()) return false;\n    for_vectors<T>(count, [&](int64_t i) {\n"
        "      put(y + at + i, reduced<T>(call, channel, piece",
        "    for_vectors<T>(count, [&](int64_t i) {\n"
        "      put(y + at + i, reduced<T>(call, channel, piece",
        EARLY,
        kernel="reduce_scatter",
        file="kernels.h",
    ),
    Mutant(
        "no_exchange_in_all_gather",
        "    if (!channel.exchange()) return false;\n    for_vectors<T>(piece * world",
        "    for_vectors<T>(piece * world",
        EARLY,
        kernel="all_gather",
        file="kernels.h",
    ),
    # ---- multicast
    Mutant(
        "everyones_slot_of_the_last_event",
        "return at<T>(group_.multicast, event_);",
        "return at<T>(group_.multicast, event_ - 1);",
        EARLY,
        kernel="multicast",
    ),
    Mutant(
        "no_fence_before_the_switch_adds",
        "    fence_alias();\n    if (!channel.exchange()) return false;\n    fence_alias();\n"
        "    for_vectors<T>(min",
        "    if (!channel.exchange()) return false;\n    for_vectors<T>(min",
        "there is no fence_alias between them",
        kernel="multicast",
        file="kernels.h",
    ),
    Mutant(
        "no_fence_behind_the_switch",
        "    fence_alias();\n    if (!channel.exchange()) return false;\n    fence_alias();\n"
        "    for_vectors<T>(count",
        "    if (!channel.exchange()) return false;\n    for_vectors<T>(count",
        "there is no fence_alias between them",
        kernel="multicast",
        file="kernels.h",
    ),
    Mutant(
        "one_exchange_in_multicast",
        "    if (!channel.exchange()) return false;\n    fence_alias();\n    for_vectors<T>(count",
        "    for_vectors<T>(count",
        EARLY,
        kernel="multicast",
        file="kernels.h",
    ),
    # ---- from call to call
    Mutant(
        "events_are_not_kept",
        "store(&state_->event, event_);",
        "",
        f"{RACE}|y is wrong",
    ),
    Mutant("calls_are_not_kept", "store(&state_->call, call_ + 1);", "", RACE),
    Mutant(
        "one_word_of_signature",
        "&flag->signature[call_ % 2]",
        "&flag->signature[0]",
        "has trouble (mismatch|gave_up), expected none",
    ),
    Mutant("signature_with_each_event", "first_ = false;", "", RACE),
    # ---- ranks that do not come, differ, have closed
    Mutant("no_deadline", "waited < group_.timeout ||", "true ||", "deadlock", case="absent"),
    Mutant(
        "waits_for_those_who_gave_up",
        "if (told >= kGaveUp) return give_up(Trouble::gave_up, q, told - kGaveUp);\n      if",
        "if",
        "rank 1 has trouble late, expected gave_up",
        case="absent",
    ),
    Mutant(
        "joins_those_who_gave_up",
        "if (told >= kGaveUp) return give_up(Trouble::gave_up, q, told - kGaveUp);\n    }\n"
        "    return true;",
        "}\n    return true;",
        "rank 2 has trouble none, expected gave_up",
        case="absent",
    ),
    Mutant(
        "tells_nobody",
        "if (q != rank) store_relaxed<Scope::system>(&group_.header(q)->told[rank],"
        " kGaveUp + blamed);",
        "break;",
        "rank 1 has trouble late, expected gave_up",
        case="absent",
    ),
    Mutant(
        "all_threads_speak",
        "if (atomic_exchange(&group_.header(rank)->failed, 1u)) return false;",
        "store_relaxed<Scope::gpu>(&group_.header(rank)->failed, 1u);",
        RACE,
        case="different",
    ),
    Mutant(
        "failed_and_goes_on",
        "!sync_block_or(load_relaxed<Scope::gpu>(&group_.header(group_.rank)->failed) != 0)",
        "true",
        f"rank 0 has failed, and still writes|{RACE}",
        case="absent",
    ),
    Mutant(
        "signatures_unread",
        "theirs == signature_ ||",
        "true ||",
        "rank 0 has trouble none, expected gave_up",
        case="different",
    ),
    Mutant(
        "waits_for_those_who_closed",
        "if (told == kClosed && q == r && !has_published(r))"
        " return give_up(Trouble::closed, r, r);",
        "",
        "rank 0 has trouble late, expected closed",
        case="closed",
    ),
]


def copy(folder: Path, name: str, mutant: Mutant | None = None) -> None:
    """The headers with a mutant's text, in a namespace of this name."""
    (folder / name).mkdir()
    for file in ("channel.h", "kernels.h"):
        source = (SOURCES / file).read_text()
        changes = {"namespace weft::comm::cuda {": f"namespace weft::comm::cuda::{name} {{"}
        if file == "kernels.h":
            changes['#include "comm/cuda/channel.h"'] = '#include "channel.h"'
        if mutant is not None and mutant.file == file:
            changes[mutant.text] = mutant.instead
        for text, instead in changes.items():
            assert source.count(text) == 1, f"{file} has {source.count(text)} times {text!r}"
            source = source.replace(text, instead)
        (folder / name / file).write_text(source)


def build(folder: Path) -> None:
    copy(folder, "correct")
    for mutant in MUTANTS:
        copy(folder, mutant.name, mutant)
    names = ["correct", *(mutant.name for mutant in MUTANTS)]
    variants = [f"VARIANT(correct, {kernel})" for kernel in KERNELS]
    variants += [f"VARIANT({mutant.name}, {mutant.kernel})" for mutant in MUTANTS]
    lines = [*(f'#include "{name}/kernels.h"' for name in names), "#define VARIANTS \\"]
    (folder / "variants.h").write_text("\n".join(lines) + "\n" + " \\\n".join(variants) + "\n")
    source = Path(__file__).with_name("mutants.cpp")
    options = ["-std=c++20", "-O1", "-g1", "-w", f"-I{folder}", f"-I{ROOT / 'csrc'}"]
    command = [str(COMPILER), *options, source, SIMULATOR, "-ldl", "-o", folder / "mutants"]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Built once, by whichever of xdist's workers comes first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "comm_mutants"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "mutants").exists():
            folder.mkdir()
            build(folder)
    return folder / "mutants"


def outcome(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_fault(program: Path, seed: int):
    for kernel in KERNELS:
        for case in CASES:
            run = outcome(program, "correct", kernel, case, seed)
            assert run.returncode == 0, f"{kernel}, {case}: {run.stdout}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_fault_is_found(program: Path, mutant: Mutant):
    for seed in SEEDS:
        run = outcome(program, mutant.name, mutant.kernel, mutant.case, seed)
        assert run.returncode == 1, f"seed {seed}: {run.stdout}{run.stderr}"
        assert re.search(mutant.message, run.stdout), f"seed {seed}: {run.stdout}"
