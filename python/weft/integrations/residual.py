"""Fusing residual addition and norm inside modules that weft did not write.

Where the source of a forward has lines of the table in `patterns`, a subclass gets a forward that
has one call of `add_norm` in their place and is otherwise the same code, compiled against the
original file and line numbers, so that tracebacks, debuggers and torch.compile see what they saw
before. What `add_norm` computes is exactly what the lines say, whatever the modules they call
have become in the meantime.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
import types
from typing import Any

from torch import nn

from ._swap import Derived, derive
from .add_norm import add_norm, is_norm
from .norms import Replacement
from .patterns import Matcher, Rewriter, Slots


def is_block(module: nn.Module) -> bool:
    """Whether `module` has a norm of weft's and adds, in a form that weft knows or not."""
    if not any(is_norm(child) for child in module.children()):
        return False
    cls: Any = type(module)
    return _adds(cls) or isinstance(replacement(module), Replacement)


@functools.cache
def _adds(cls: type[nn.Module]) -> bool:
    """Whether a forward adds variables, or what its submodules return: perhaps a residual."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(cls.forward))))
    except (OSError, TypeError, SyntaxError):
        return False
    sums = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
    )
    return any(all(_is_value(side) for side in (node.left, node.right)) for node in sums)


def _is_value(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) or (
        isinstance(node, ast.Call) and ast.unparse(node).startswith("self.")
    )


def replacement(module: nn.Module) -> Replacement | str:
    """What takes the place of a block, or the reason why nothing does."""
    cls: Any = type(module)
    try:
        fused: Any = fused_class(cls, slots(module))
    except NotKnown as reason:
        return str(reason)
    return Replacement(fused, {}, fused._weft_label)


def slots(module: nn.Module) -> Slots:
    """Reads them off an instance whose norms have been swapped."""
    kinds = {name: kind(child) for name, child in module.named_children()}
    return Slots(
        *(tuple(sorted(n for n, k in kinds.items() if k == slot)) for slot in Slots._fields)
    )


def kind(child: nn.Module) -> str | None:
    """The slot of the table that `child` may fill."""
    if type(child) is nn.Dropout:
        return "DROPOUT"
    return "NORM" if is_norm(child) else None


class Fused(Derived):
    """Somebody's block with `add_norm` in its forward."""

    _weft_add_norm = staticmethod(add_norm)


@functools.cache
def fused_class(base: type[nn.Module], slots: Slots) -> type[nn.Module]:
    """`base` with add + norm fused in its forward; NotKnown where there is nothing to fuse."""
    forward, labels = rewrite(base, slots)
    label = "; ".join(dict.fromkeys(labels))
    return derive(base, Fused, (fused_class, (base, slots)), forward=forward, _weft_label=label)


class NotKnown(Exception):
    """Why a class stays as it is."""


def rewrite(base: type[nn.Module], slots: Slots) -> tuple[types.FunctionType, tuple[str, ...]]:
    """The forward of `base` with add + norm fused, and the labels of the rows used; or NotKnown."""
    forward = _plain_forward(base)
    try:
        lines, first = inspect.getsourcelines(forward)
        tree = ast.parse("if True:\n" + "".join(lines))  # in place of the class it is indented for
    except (OSError, TypeError, SyntaxError) as error:
        raise NotKnown("the source of its forward is not at hand") from error
    ast.increment_lineno(tree, first - 2)
    function = tree.body[0].body[0]  # type: ignore[attr-defined]
    if not isinstance(function, ast.FunctionDef) or function.decorator_list:
        raise NotKnown("its forward is decorated")
    if not function.args.args or function.args.args[0].arg != "self":
        raise NotKnown("its forward has no argument `self`")
    function.returns = None
    for argument in ast.walk(function.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    function.args.defaults = [
        ast.copy_location(ast.Constant(None), d) for d in function.args.defaults
    ]
    function.args.kw_defaults = [
        d and ast.copy_location(ast.Constant(None), d) for d in function.args.kw_defaults
    ]

    if _operations(_compile(function, base, forward)) != _operations(forward):
        raise NotKnown("the source of its forward is not what was loaded")

    rewriter = Rewriter(Matcher(slots, forward.__globals__))
    rewriter.visit(function)
    if not rewriter.labels:
        raise NotKnown("its forward has no add + norm in a form that weft knows")
    new = _compile(ast.fix_missing_locations(function), base, forward)
    new.__defaults__, new.__kwdefaults__ = forward.__defaults__, forward.__kwdefaults__
    functools.update_wrapper(new, forward, updated=())
    del new.__wrapped__  # type: ignore[attr-defined]
    return new, tuple(rewriter.labels)


def _plain_forward(base: type[nn.Module]) -> types.FunctionType:
    """The function to override, without the wrappers that every subclass gets by itself."""
    forward: Any = base.forward
    while hasattr(forward, "__wrapped__"):
        # transformers' GradientCheckpointingLayer wraps the forward of every subclass, ours too.
        if forward.__code__.co_name != "forward_with_checkpointing":
            raise NotKnown("its forward is decorated")
        forward = forward.__wrapped__
    if not isinstance(forward, types.FunctionType):
        raise NotKnown("its forward is no Python function")
    if forward.__closure__:
        raise NotKnown("its forward uses super() or a closure")
    return forward


def _compile(
    function: ast.FunctionDef, base: type[nn.Module], original: types.FunctionType
) -> types.FunctionType:
    """Compiles a method in place of `original`: in its file, its globals and its class's name."""
    owner = next(cls for cls in base.__mro__ if "forward" in cls.__dict__)  # private names have it
    cls = ast.ClassDef(owner.__name__, [], [], [function], [])
    if "type_params" in ast.ClassDef._fields:
        cls.type_params = []  # type: ignore[attr-defined]
    tree = ast.fix_missing_locations(ast.Module([ast.copy_location(cls, function)], []))
    namespace: dict[str, Any] = {}
    exec(
        compile(tree, original.__code__.co_filename, "exec", dont_inherit=True),
        original.__globals__,
        namespace,
    )
    compiled: types.FunctionType = namespace[owner.__name__].__dict__[function.name]
    return compiled


def _operations(function: types.FunctionType) -> list[object]:
    """What a function's bytecode does with which names and constants.

    The instructions themselves will not do for a comparison: how a method is called depends on
    whether the compiler saw its module being imported.
    """
    kinds = {*dis.hasname, *dis.hasconst, *dis.haslocal}
    return [
        getattr(i.argval, "co_name", i.argval) if i.opcode in kinds else (i.opname, i.arg)
        for i in dis.get_instructions(function)
        if i.opcode in kinds or i.opname.startswith("BINARY")
    ]
