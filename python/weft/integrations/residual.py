"""Fusing residual addition and norm inside modules that weft did not write.

Transformer blocks spell the same few lines in a hundred classes:

    hidden_states = self.dense(hidden_states)
    hidden_states = self.dropout(hidden_states)
    hidden_states = self.LayerNorm(hidden_states + input_tensor)

weft knows those lines instead of those classes: `rows` is the table of them. Where the source of a forward
has such lines, a subclass gets a forward that has one call of `add_norm` in their place and is otherwise the
same code, compiled against the original file and line numbers (so tracebacks, debuggers and torch.compile see
what they saw). `add_norm` computes exactly what the lines say: in one op where it can, else by calling the
very modules that they call, in their order.
"""

from __future__ import annotations

import ast
import copy
import dis
import functools
import inspect
import itertools
import textwrap
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from .. import nn as weft_nn
from ..ops.norm import layer_norm_fn
from ._swap import Derived, derive
from .norms import NormLike, Replacement

# ---------------------------------------------------------------------------------------------------------
# The table. In the sources below h, r, s and y are local variables, a, b and p any expressions, DROP is
# torch.nn.functional.dropout, and NORM, LINEAR and DROPOUT are submodules: a norm of weft's, an exact
# nn.Linear with bias, an exact nn.Dropout.
# ---------------------------------------------------------------------------------------------------------

# What may come first: (label, source, argument of add_norm).
LINEARS = (
    ("", "", ""),
    ("bias + ", "h = self.LINEAR(h)", "linear=self.LINEAR, "),
)
DROPOUTS = (
    ("", "", ""),
    ("dropout + ", "h = self.DROPOUT(h)", "dropout=self.DROPOUT, "),
    ("dropout + ", "h = DROP(h, p=p, training=self.training)", "dropout=p if self.training else 0.0, "),
)
# The addition and the norm, after any of the above: (source, replacement).
ADD_NORMS = (
    ("h = self.NORM(h + r)", "h = self._weft_add_norm(self.NORM, h, r, {options})"),
    ("h = h + r; h = self.NORM(h)", "h = self._weft_add_norm(self.NORM, h, r, {options})"),
    ("h = h + r; s = h; h = self.NORM(h)", "h, s = self._weft_add_norm(self.NORM, h, r, {options}prenorm=True)"),
)
# The addition of any two things, and the norm.
PLAIN_ADD_NORMS = (
    ("h = a + b; s = h; h = self.NORM(h)", "h, s = self._weft_add_norm(self.NORM, a, b, prenorm=True)"),
    ("h = a + b; h = self.NORM(h)", "h = self._weft_add_norm(self.NORM, a, b)"),
    ("s = a + b; y = self.NORM(s)", "y, s = self._weft_add_norm(self.NORM, a, b, prenorm=True)"),
)
# The same within an expression: (label, source, replacement).
EXPRESSIONS = (
    (
        "dropout + add + norm",
        "self.NORM(self.DROPOUT(a) + b)",
        "self._weft_add_norm(self.NORM, a, b, dropout=self.DROPOUT)",
    ),
    ("add + norm", "self.NORM(a + b)", "self._weft_add_norm(self.NORM, a, b)"),
)

VARIABLES = frozenset({"h", "r", "s", "y"})
ANYTHING = frozenset({"a", "b", "p"})
SLOTS = frozenset({"NORM", "LINEAR", "DROPOUT"})


class Row(NamedTuple):
    label: str
    before: list[ast.stmt]
    after: ast.stmt


class Expression(NamedTuple):
    label: str
    before: ast.expr
    after: ast.expr


@functools.cache
def rows() -> tuple[Row, ...]:
    """The table spelled out, the longest first."""
    table = []
    for (bias, linear, option), (dropped, dropout, rate) in itertools.product(LINEARS, DROPOUTS):
        if linear or dropout:
            table += [
                (f"{bias}{dropped}add + norm", f"{linear}\n{dropout}\n{before}", after.format(options=option + rate))
                for before, after in ADD_NORMS
            ]
    table += [("add + norm", before, after) for before, after in PLAIN_ADD_NORMS]
    # Both orders of the sum; plain sums of anything need but one.
    table += [(label, before.replace("h + r", "r + h"), after) for label, before, after in table]
    parsed = [Row(label, _parse(before), _parse(after)[0]) for label, before, after in table]
    return tuple(sorted(parsed, key=lambda row: -len(row.before)))


@functools.cache
def expressions() -> tuple[Expression, ...]:
    def parse(source: str) -> ast.expr:
        (statement,) = _parse(source)
        assert isinstance(statement, ast.Expr)
        return statement.value

    return tuple(Expression(label, parse(before), parse(after)) for label, before, after in EXPRESSIONS)


def _parse(source: str) -> list[ast.stmt]:
    tree = ast.parse(source)
    for node in ast.walk(tree):  # lines are those of the code that a pattern is filled into
        for place in ("lineno", "col_offset", "end_lineno", "end_col_offset"):
            node.__dict__.pop(place, None)
    return tree.body


# ---------------------------------------------------------------------------------------------------------
# Matching and rewriting.
# ---------------------------------------------------------------------------------------------------------


class Slots(NamedTuple):
    """The names of a module's children that may stand for NORM, LINEAR and DROPOUT."""

    NORM: tuple[str, ...]
    LINEAR: tuple[str, ...]
    DROPOUT: tuple[str, ...]


def slots(module: nn.Module) -> Slots:
    """Reads them off an instance whose norms have been swapped."""
    kinds = {name: kind(child) for name, child in module.named_children()}
    return Slots(*(tuple(sorted(n for n, k in kinds.items() if k == slot)) for slot in Slots._fields))


def kind(child: nn.Module) -> str | None:
    """The slot of the table that `child` may fill."""
    if type(child) is nn.Linear:
        return None if child.bias is None else "LINEAR"
    if type(child) is nn.Dropout:
        return "DROPOUT"
    return "NORM" if _is_norm(child) else None


class Matcher:
    """Matches patterns of the table against the source of one forward."""

    def __init__(self, slots: Slots, scope: dict[str, Any]) -> None:
        self.slots = slots
        self.scope = scope  # the globals of that forward

    def __call__(self, pattern: Any, node: Any, bound: dict[str, Any]) -> bool:
        """Whether `node` is an instance of `pattern`; fills `bound` with what the placeholders stand for."""
        if isinstance(pattern, ast.Name) and pattern.id in VARIABLES:
            return isinstance(node, ast.Name) and self._bind(pattern.id, node, bound)
        if isinstance(pattern, ast.Name) and pattern.id in ANYTHING:
            return isinstance(node, ast.expr) and self._bind(pattern.id, node, bound)
        if isinstance(pattern, ast.Name) and pattern.id == "DROP":
            return self._evaluate(node) is F.dropout
        if type(pattern) is not type(node):
            return False
        if isinstance(pattern, ast.Attribute) and pattern.attr in SLOTS:
            known = node.attr in getattr(self.slots, pattern.attr)
            return known and self(pattern.value, node.value, bound) and self._bind(pattern.attr, node, bound)
        if isinstance(pattern, list):
            return len(pattern) == len(node) and all(self(p, n, bound) for p, n in zip(pattern, node, strict=True))
        if isinstance(pattern, ast.AST):
            fields = (name for name in pattern._fields if name not in ("ctx", "type_comment"))
            return all(self(getattr(pattern, name), getattr(node, name), bound) for name in fields)
        return bool(pattern == node)

    @staticmethod
    def _bind(name: str, node: ast.expr, bound: dict[str, Any]) -> bool:
        earlier = bound.setdefault(name, node)
        return ast.unparse(earlier) == ast.unparse(node)

    def _evaluate(self, node: ast.expr) -> object:
        """The global function that a dotted name stands for."""
        if isinstance(node, ast.Name):
            return self.scope.get(node.id)
        return getattr(self._evaluate(node.value), node.attr, None) if isinstance(node, ast.Attribute) else None

    def statements(self, row: Row, body: list[ast.stmt]) -> dict[str, Any] | None:
        """What the placeholders of `row` stand for in `body`, whose first statements it may be."""
        bound: dict[str, Any] = {}
        if not self(row.before, body[: len(row.before)], bound):
            return None
        names = [bound[v].id for v in ("h", "s", "y") if v in bound]
        # The new values of h, s and y must not be one variable, and a sum must not feed on itself as r.
        distinct = len(set(names)) == len(names) and not ("r" in bound and bound["r"].id == bound["h"].id)
        return bound if distinct else None


class Fill(ast.NodeTransformer):
    """A replacement with its placeholders filled in."""

    def __init__(self, bound: dict[str, Any]) -> None:
        self.bound = bound

    def visit_Name(self, node: ast.Name) -> ast.expr:
        filled: ast.expr = self.bound.get(node.id, node)
        return ast.Name(filled.id, node.ctx) if isinstance(filled, ast.Name) else filled

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        filled: ast.expr = self.bound[node.attr] if node.attr in self.bound else self.generic_visit(node)  # type: ignore[assignment]
        return filled


def fill(pattern: ast.AST, bound: dict[str, Any], where: ast.AST) -> Any:
    """A copy of `pattern` with its placeholders filled in, at the lines of `where`."""
    filled = Fill(bound).visit(copy.deepcopy(pattern))
    return ast.fix_missing_locations(ast.copy_location(filled, where))


class Rewriter(ast.NodeTransformer):
    """Rewrites a forward by the table and notes which rows it used."""

    def __init__(self, match: Matcher) -> None:
        self.match = match
        self.labels: list[str] = []

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for field in ("body", "orelse", "finalbody"):
            if isinstance(body := getattr(node, field, None), list):
                setattr(node, field, list(self._rewritten(body)))
        return super().generic_visit(node)

    def _rewritten(self, body: list[ast.stmt]) -> Iterator[ast.stmt]:
        while body:
            for row in rows():
                if (bound := self.match.statements(row, body)) is not None:
                    self.labels.append(row.label)
                    yield fill(row.after, bound, body[0])
                    body = body[len(row.before) :]
                    break
            else:
                yield body[0]
                body = body[1:]

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        for label, before, after in expressions():
            bound: dict[str, Any] = {}
            if self.match(before, node, bound):
                self.labels.append(label)
                return fill(after, bound, node)
        return node


def is_block(module: nn.Module) -> bool:
    """Whether `module` has a norm of weft's for a child and adds things up."""
    return any(_is_norm(child) for child in module.children()) and _adds(type(module))


@functools.cache
def _adds(cls: type[nn.Module]) -> bool:
    """Whether the source of a forward adds something to a variable, as to a residual."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(cls.forward))))
    except (OSError, TypeError, SyntaxError):
        return False
    sums = (node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add))
    return any(isinstance(side, ast.Name) for node in sums for side in (node.left, node.right))


def replacement(module: nn.Module) -> Replacement | str:
    """What takes the place of a block, or the reason why nothing does."""
    try:
        cls = fused_class(type(module), slots(module))
    except NotKnown as reason:
        return str(reason)
    return Replacement(cls, {}, cls._weft_label)  # type: ignore[attr-defined]


def _operations(function: types.FunctionType) -> list[object]:
    """What a function's bytecode does with which names and constants.

    The instructions themselves will not do for a comparison: how a method is called depends on whether the
    compiler saw its module being imported.
    """
    kinds = {*dis.hasname, *dis.hasconst, *dis.haslocal}
    return [
        getattr(i.argval, "co_name", i.argval) if i.opcode in kinds else (i.opname, i.arg)
        for i in dis.get_instructions(function)
        if i.opcode in kinds or i.opname.startswith("BINARY")
    ]


class NotKnown(Exception):
    """Why a class stays as it is."""


def rewrite(base: type[nn.Module], slots: Slots) -> tuple[types.FunctionType, tuple[str, ...]]:
    """The forward of `base` with add + norm fused, and the labels of the rows used; or NotKnown."""
    forward = _plain_forward(base)
    try:
        lines, first = inspect.getsourcelines(forward)
    except (OSError, TypeError) as error:
        raise NotKnown("the source of its forward is not at hand") from error
    tree = ast.parse("if True:\n" + "".join(lines))  # the `if` stands for the class's indentation
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
    function.args.defaults = [ast.copy_location(ast.Constant(None), d) for d in function.args.defaults]
    function.args.kw_defaults = [d and ast.copy_location(ast.Constant(None), d) for d in function.args.kw_defaults]

    if _operations(_compile(function, base, forward)) != _operations(forward):
        raise NotKnown("the source of its forward is not what was loaded")

    rewriter = Rewriter(Matcher(slots, forward.__globals__))
    rewriter.visit(function)
    if not rewriter.labels:
        raise NotKnown("its forward has no add + norm in a form that weft knows")
    new = _compile(ast.fix_missing_locations(function), base, forward)
    new.__defaults__, new.__kwdefaults__ = forward.__defaults__, forward.__kwdefaults__
    new.__annotations__, new.__doc__ = forward.__annotations__, forward.__doc__
    new.__qualname__, new.__module__ = forward.__qualname__, forward.__module__
    return new, tuple(rewriter.labels)


def _plain_forward(base: type[nn.Module]) -> types.FunctionType:
    """The function that a subclass has to override, without wrappers that it gets again by itself."""
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


def _compile(function: ast.FunctionDef, base: type[nn.Module], original: types.FunctionType) -> types.FunctionType:
    """Compiles a method in the place of `original`: its file, its globals, its class's private names."""
    cls = ast.ClassDef(base.__name__, [], [], [function], [])
    if "type_params" in ast.ClassDef._fields:
        cls.type_params = []  # type: ignore[attr-defined]
    tree = ast.fix_missing_locations(ast.Module([ast.copy_location(cls, function)], []))
    namespace: dict[str, Any] = {}
    exec(compile(tree, original.__code__.co_filename, "exec", dont_inherit=True), original.__globals__, namespace)
    compiled: types.FunctionType = namespace[base.__name__].__dict__[function.name]
    return compiled


# ---------------------------------------------------------------------------------------------------------
# What the rewritten forwards call.
# ---------------------------------------------------------------------------------------------------------


class Fused(Derived):
    """Somebody's block with `add_norm` in its forward."""

    @staticmethod
    def _weft_add_norm(norm: Any, x: Any, residual: Any, **options: Any) -> Any:
        return add_norm(norm, x, residual, **options)


@functools.cache
def fused_class(base: type[nn.Module], slots: Slots) -> type[nn.Module]:
    """`base` with add + norm fused in its forward; NotKnown where there is nothing to fuse."""
    forward, labels = rewrite(base, slots)
    label = "; ".join(dict.fromkeys(labels))
    return derive(base, Fused, (fused_class, (base, slots)), forward=forward, _weft_label=label)


def add_norm(
    norm: nn.Module,
    x: Tensor,
    residual: Tensor,
    *,
    linear: nn.Module | None = None,
    dropout: nn.Module | float = 0.0,
    prenorm: bool = False,
) -> Any:
    """y = norm(z) with z = dropout(linear(x)) + residual; (y, z) if `prenorm`.

    One op computes dropout, addition and norm, and adds the bias of `linear`, where all of them are what
    they seem: exactly nn.Linear, exactly nn.Dropout and a norm of weft's, with no hooks and no forward of
    their own, and x and residual of one shape and dtype outside autocast. All this is looked up at every
    call, as hooks and adapters come and go. Where it does not hold, the modules are called one by one.

    x, residual: [..., C]; with `linear` x: [..., in_features of it]. `dropout`: a module, or a probability
    that holds regardless of mode.
    """
    if linear is not None and not _is_exactly(nn.Linear, linear):
        x, linear = linear(x), None
    if not (_fits(norm, x, residual, linear) and _can_drop(dropout)):
        z = x if linear is None else linear(x)
        z = (dropout(z) if isinstance(dropout, nn.Module) else F.dropout(z, dropout)) + residual
        return (norm(z), z) if prenorm else norm(z)
    x_bias = None
    if linear is not None and linear.bias is not None:
        x, x_bias = F.linear(x, linear.weight), linear.bias
    elif linear is not None:
        x = linear(x)
    if isinstance(dropout, nn.Module):
        dropout = dropout.p if dropout.training else 0.0
    eps, is_rms_norm, zero_centered_weight = _settings(norm)
    return layer_norm_fn(
        x,
        norm.weight,
        getattr(norm, "bias", None),
        residual=residual,
        eps=eps,
        dropout_p=dropout,
        prenorm=prenorm,
        is_rms_norm=is_rms_norm,
        zero_centered_weight=zero_centered_weight,
        x_bias=x_bias,
    )


def _is_norm(module: nn.Module) -> bool:
    return type(module) in (weft_nn.LayerNorm, weft_nn.RMSNorm) or isinstance(module, NormLike)


def _settings(norm: Any) -> tuple[float | None, bool, bool]:
    """eps, is_rms_norm and zero_centered_weight of a norm of weft's."""
    if isinstance(norm, NormLike):
        form = norm._weft_form
        return getattr(norm, form.eps_name), form.is_rms_norm, form.zero_centered_weight
    return norm.eps, isinstance(norm, nn.RMSNorm), norm.zero_centered_weight


def _fits(norm: Any, x: Any, residual: Any, linear: Any) -> bool:
    """Whether one op can add `residual` to x, or to what `linear` makes of it, and apply `norm`."""
    if not (type(x) is Tensor and type(residual) is Tensor and x.dim() > 0 and x.dtype == residual.dtype):
        return False
    width = x.shape[-1] if linear is None else linear.out_features
    if residual.shape != (*x.shape[:-1], width) or torch.is_autocast_enabled(x.device.type):
        return False
    if not _is_norm(norm) or _is_touched(norm):
        return False
    if isinstance(norm, NormLike):  # y may need a wider dtype than x has
        return not norm._weft_form.promotes or norm.weight is None or norm.weight.dtype == x.dtype
    return len(norm.normalized_shape) == 1 and norm.eps is not None and not norm.memory_efficient


def _can_drop(dropout: nn.Module | float) -> bool:
    """Whether the fused op can draw this dropout. Dropping everything is a special case that it lacks."""
    if isinstance(dropout, nn.Module):
        return _is_exactly(nn.Dropout, dropout) and dropout.p < 1
    return dropout < 1


def _is_exactly(cls: type[nn.Module], module: nn.Module) -> bool:
    return type(module) is cls and not _is_touched(module)


def _is_touched(module: nn.Module) -> bool:
    """Whether a call of `module` runs more than the forward of its class: a hook, or another forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or torch_module._has_any_global_hook()
    )
