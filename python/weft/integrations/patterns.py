"""The lines that add a residual and normalise the sum, as a table, and the search for them.

Transformer blocks spell the same few lines in hundreds of classes, such as

    hidden_states = self.dropout(hidden_states)
    hidden_states = self.LayerNorm(hidden_states + input_tensor)

The table has such lines on the left and one call of `add_norm` on the right. Placeholders:

    h, r, s, y                 local variables
    a, b, p                    any expressions
    DROP                       torch.nn.functional.dropout, under any name
    NORM, DROPOUT              submodules: a norm of weft's, an exact nn.Dropout

The bias of a linear layer before them stays with the layer: a matrix product adds it for nothing,
the fused op would not (measured on BERT's shapes).
"""

from __future__ import annotations

import ast
import copy
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch.nn import functional as F

# What may come first: (source, argument of add_norm).
DROPOUTS = (
    ("h = self.DROPOUT(h)", "dropout=self.DROPOUT"),
    ("h = DROP(h, p=p, training=self.training)", "dropout=p if self.training else 0.0"),
)
# The addition and the norm, after one of the above: (source, replacement).
ADD_NORMS = (
    ("h = self.NORM(h + r)", "h = self._weft_add_norm(self.NORM, h, r, {dropout})"),
    ("h = h + r; h = self.NORM(h)", "h = self._weft_add_norm(self.NORM, h, r, {dropout})"),
    (
        "h = h + r; s = h; h = self.NORM(h)",
        "h, s = self._weft_add_norm(self.NORM, h, r, {dropout}, prenorm=True)",
    ),
)
# The addition of any two things, and the norm.
PLAIN_ADD_NORMS = (
    (
        "h = a + b; s = h; h = self.NORM(h)",
        "h, s = self._weft_add_norm(self.NORM, a, b, prenorm=True)",
    ),
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
SLOTS = frozenset({"NORM", "DROPOUT"})


class Slots(NamedTuple):
    """The names of a module's children that may stand for NORM and DROPOUT."""

    NORM: tuple[str, ...]
    DROPOUT: tuple[str, ...]


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
    table = [
        ("dropout + add + norm", f"{dropped}; {before}", after.format(dropout=argument))
        for dropped, argument in DROPOUTS
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

    return tuple(
        Expression(label, parse(before), parse(after)) for label, before, after in EXPRESSIONS
    )


def _parse(source: str) -> list[ast.stmt]:
    tree = ast.parse(source)
    for node in ast.walk(tree):  # lines are those of the code that a pattern is filled into
        for place in ("lineno", "col_offset", "end_lineno", "end_col_offset"):
            node.__dict__.pop(place, None)
    return tree.body


class Matcher:
    """Matches patterns of the table against the source of one forward."""

    def __init__(self, slots: Slots, scope: dict[str, Any]) -> None:
        self.slots = slots
        self.scope = scope  # the globals of that forward

    def __call__(self, pattern: Any, node: Any, bound: dict[str, Any]) -> bool:
        """Whether `node` is as `pattern` says; notes in `bound` what placeholders stand for."""
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
            return (
                known
                and self(pattern.value, node.value, bound)
                and self._bind(pattern.attr, node, bound)
            )
        if isinstance(pattern, list):
            return len(pattern) == len(node) and all(
                self(p, n, bound) for p, n in zip(pattern, node, strict=True)
            )
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
        if isinstance(node, ast.Attribute):
            return getattr(self._evaluate(node.value), node.attr, None)
        return None

    def statements(self, row: Row, body: list[ast.stmt]) -> dict[str, Any] | None:
        """What the placeholders of `row` stand for in `body`, whose first statements it may be."""
        bound: dict[str, Any] = {}
        if not self(row.before, body[: len(row.before)], bound):
            return None
        names = [bound[v].id for v in ("h", "s", "y") if v in bound]
        if len(set(names)) < len(names):  # what is assigned must not be one variable
            return None
        if "r" in bound and bound["r"].id == bound["h"].id:  # a sum that feeds on itself
            return None
        return bound


class Fill(ast.NodeTransformer):
    """A replacement with its placeholders filled in."""

    def __init__(self, bound: dict[str, Any]) -> None:
        self.bound = bound

    def visit_Name(self, node: ast.Name) -> ast.expr:
        filled: ast.expr = self.bound.get(node.id, node)
        return ast.Name(filled.id, node.ctx) if isinstance(filled, ast.Name) else filled

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        filled: Any = self.bound.get(node.attr) or self.generic_visit(node)
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
