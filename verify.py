"""The verifier: does an answer written by a model denote the same mathematical object as the gold?

    extract_answer -> normalise -> parse, from tokens to bounded values -> equal -> grade

Numbers have 160 digits and agree to 80, integers exactly; expressions with variables agree at fixed
points of both signs, so |x| is not x. Tuples, lists and matrices keep their order; sets, unions and
"or" do not. Relations agree when one is a multiple of the other; `x = 3` stands for 3, a < x <= b
for its interval. What cannot be read so is compared as text. Nothing is executed.

Rounding, by `grade` only and to the gold only: exact golds want exact answers, 0.333 is wrong for
1/3; a decimal gold of n >= 2 significant digits accepts what rounds to it, 1/3 is right for 0.333;
0.1 and 27.0 count as exact. A unit, degree or percent sign only one side states is not compared.
"""
import json
import operator
import random
import re
import sys
import threading
from collections import namedtuple
from functools import lru_cache

import mpmath

MAX_CHARS, MAX_TOKENS, MAX_DEPTH, MAX_BITS = 2000, 250, 40, 525   # beyond these only text compares
_UNREADABLE = (ArithmeticError, ValueError, TypeError, LookupError, RecursionError, MemoryError)
_ADJACENT = re.compile(r"(\\boxed ?\{(?:[^{}]|\{[^{}]*\})*)\}[\s$,;]*(?:\\text ?\{ ?)?(?:or|and)?"
                       r"[\s}$]*\\boxed ?\{")


def extract_answer(text: str) -> str | None:
    """Content of the last `\\boxed{...}` (of nested ones the inner), else what follows the last
    line-initial `Answer:`. None without either, or where that box is empty or never closed."""
    start, depth = text.rfind("\\boxed"), 0
    if start < 0:
        lines = re.findall(r"^[ \t]*Answer:(.*)$", text, re.M)
        return lines[-1].strip() or None if lines else None
    for brace in re.finditer(r"\\[\\{}]|[{}]", text[start:start + 10 * MAX_CHARS]):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth <= 0:
            return text[start:start + brace.start()].partition("{")[2].strip() or None
    return None


# ---- one spelling for what LaTeX, Unicode and plain text write in many ways

_SPELLINGS = r"""* \times \cdot × · ⋅ ¦ / \div ÷ ¦ ^ ** ¦ < \lt ¦ > \gt ¦ <= \le \leq \leqslant ≤ ¦
>= \ge \geq \geqslant ≥ ¦ != \ne \neq ≠ ¦ \pm ± ¦ \cup ∪ ¦ , ; and ¦ or ¦ \pi π pi ¦
\infty ∞ infinity ¦ \sqrt √ sqrt ¦ \binom \dbinom \tbinom ¦
| \mid \vert \lvert \rvert ¦ \{ \lbrace ¦ \} \rbrace ¦ ( \langle ¦ ) \rangle ¦ % \% percent"""
_ALIAS = {word: group.split()[0] for group in _SPELLINGS.split("¦") for word in group.split()}
_DROP = set(r"""\left \right \big \Big \displaystyle \quad \qquad \( \) \[ \] € £ " \boxed \text
\textbf \mathbf \mathrm \boldsymbol \vec \large""".split())
_FUNCTIONS = {name: name for name in "sinh cosh tanh sin cos tan cot sec csc exp".split()}
_FUNCTIONS |= {arc + name: "a" + name for name in ("sin", "cos", "tan") for arc in ("arc", "a")}
_FUNCTIONS |= {"ln": "log", "log": "log10", "lg": "log10"}
_KNOWN = "|".join([*_FUNCTIONS, "sqrt", "pi", "or", "and", "infinity", "percent"]) + ")(?![a-z]"
_REWRITES = [(re.compile(pattern), new) for pattern, new in [
    (r"\s+", " "), (r"(?<=\d)(?:\{,\}|,\\!|\\[,!; ]|~) ?(?=\d{3}(?!\d))", ""),
    (r"(?<!\\)\\[,;:! ]|~", " "), (r"\\(?:text\w*|mathrm|mbox) ?\{ ?([^{}]*)\}", r' "\1" '),
    (r"\\(?:left|right)\.|\\?\$", ""), (r"\\operatorname ?\{(\w+)\}", r" \1 "),
    (r" ?\^ ?(?:\\circ|\{ ?\\circ ?\})", "°"), (r"&", ","), (r"\\[dtc]frac", r"\\frac"),
    (r"^\(?([A-Z])\)\.?$", r"\1"), (r"\\mathbb ?\{?R\}?", r"(-\\infty,\\infty)"),
    (r"\\(?:emptyset|varnothing)|∅", r"\\{\\}"), (r"([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", r"^{\1}"),
    (r"\\frac ?(\d)", r"\\frac{\1}"), (r"(\\frac ?\{[^{}]*\}) ?(\d)", r"\1{\2}"),   # \frac12
    (r"(?<![\d.^_])(\d+) ?\\frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}", r"(\1+\2/\3)"),    # mixed numbers
    (r"(?<![\d.])(\d+) (\d+) ?/ ?(\d+)", r"(\1+\2/\3)"),
    (r"(?: ?\\\\ ?)?\\end ?\{[pb]?(?:matrix|array)\}", "))"), (r"(?<!\.)[ .,;:] ?$", ""),
    (r"\\begin ?\{[pb]?(?:matrix|array)\}(?: ?\{\w+\})?", "(("), (r"\\\\", "),("),
    (r'^[ "]*(?:[Tt]he )?(?:[Ff]inal )?[Aa]nswer ?(?:is|=|:)[: "]*', ""),
    (r"^ ?(?:\\approx|≈|\w ?(?:\\in\b|∈))", ""), (r"((?:^|, ?)\w ?)(?:\\approx|≈)", r"\1="),
    (r"(?:\\approx|≈)[^,]*", ""), (r"^ ?\\\{ ?\w ?(?:\\mid|[|:])(.*)\\\}$", r"\1"),  # {x | x > 1}
    (r"(^|[-=,(\[{<>] ?)(\d+\.?\d*) ?(?:\\times|\\cdot|[*×·]) ?10 ?\^ ?\{? ?([-+−]?\d+)\b ?\}?",
     r"\1\2e\3")]]                                                                  # 3 \times 10^8
_CHARACTERS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−–\u00a0", "-0123456789-- ")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d,])")
_UNIT = re.compile(
    r'(?:(?<=[\d)}\]!])|(?<=\\pi)) ?(?:\\?%|°|percent|(?: ?[/*-]? ?'
    r'(?:"(?! *(?:e|i|or|and) *")[^"]*"|(?:[A-Za-z]{4,}|[ckm]?m(?:/[sh])?|k?g|ft|in|yd|mi|hr|lb|oz'
    r'|ml|min|mph|per)\b)(?: ?\^ ?\{? ?\d ?\}?)?)+)$')
_TOKEN = re.compile(r'[0-9][0-9A-F]*_(?:\d|\{\d+\})|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3}(?!\w))?'
                    rf'|\\[A-Za-z]+|\\.|\*\*|(?:{_KNOWN})|[<>!]=|\S')
_WORD = re.compile(rf"(?<![\\A-Za-z])(?!(?:{_KNOWN}))(?:[A-Za-z]{{3,}}|[Nn]o\b)")


@lru_cache(maxsize=64)                                      # K answers share a gold
def _normalise(text):
    if "\\begin" not in text or "\\\\begin" in text:
        text = text.replace("\\\\", "\\")
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = text.translate(_CHARACTERS).strip()
    if re.search(r"[(\[]|\\\{", text):                      # inside brackets a comma separates
        return text
    return _THOUSANDS.sub(lambda match: re.sub("[ ,]", "", match[0]), text)


# ---- values: a number is a list, of one mpmath value or of one for each sample point

class _Local(threading.local):
    """An mpmath context for each thread: the global one is not safe across threads."""

    def __init__(self):
        self.mp = mpmath.mp.clone()
        self.mp.dps = 160


_LOCAL = _Local()
_Many = namedtuple("_Many", "kind items label solved", defaults=["", None])
_OPERATIONS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "|": abs,
    r"\frac": operator.truediv, "^": lambda x, y: _power(x, y), "%": lambda x: x / 100,
    "_": lambda x, base: _LOCAL.mp.log(x) / _LOCAL.mp.log(base),
    "°": lambda x: x * _LOCAL.mp.pi / 180,
    "!": lambda n: _LOCAL.mp.factorial(n) if not n.imag and abs(n) < 150 else None,
    r"\binom": lambda n, k: _LOCAL.mp.binomial(int(n), int(k)),
    r"\lfloor": lambda x: _LOCAL.mp.floor(x + 1e-80),
    r"\lceil": lambda x: _LOCAL.mp.ceil(x - 1e-80)}
_GREEK = set("""alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho
sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell""".split())
_CONSTANTS = {r"\pi": "pi", "e": "e", "i": "j", r"\infty": "inf"}
_LEVEL = {r"\cup": 5, "+": 10, "-": 10, r"\pm": 10, "*": 20, "/": 20, "^": 40,
          "!": 50, "%": 50, "°": 50}
_RELATIONS = {"=", "<", ">", "<=", ">=", "!="}
_CLOSE = {"(": ")]", "[": ")]", "{": "}", r"\{": [r"\}"]}
_FENCE = {"|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_STOP = {"", ",", "or", ")", "]", "}", r"\}", r"\rfloor", r"\rceil", *_RELATIONS}
_LABEL = re.compile(r"\\?[A-Za-z]+( _ (\w|\{ [^{}]* \}))?( \^ \{ - 1 \})?( \( \w( , \w)* \))?"
                    r"|\( \w( , \w)* \)")


def _near(x, y):
    exact = _LOCAL.mp.isint(x) and _LOCAL.mp.isint(y)
    return x == y or not exact and abs(x - y) < 1e-80 * max(abs(x), abs(y))


def _power(base, exponent):
    for odd in (1, 3, 5, 7):                                # odd roots of negative numbers are real
        top = _LOCAL.mp.nint(exponent.real * odd)
        if not base.imag and base.real < 0 and _near(top, exponent * odd):
            return (-1) ** int(top) * (-base) ** exponent
    return base ** exponent


def _apply(name, *args):
    """The operation at each sample point; None where it is undefined or too large."""
    mp, values = _LOCAL.mp, []
    if any(isinstance(arg, _Many) for arg in args):
        raise ValueError("a list inside an expression")
    for point in range(max(map(len, args))):
        try:
            function = _OPERATIONS.get(name) or getattr(mp, _FUNCTIONS[name])
            value = function(*(arg[point % len(arg)] for arg in args))
            size = mp.mag(value) if value and not mp.isinf(value) else 0
            if size < -MAX_BITS / 2 and name not in ("*", "/", r"\frac", "^", "%", "exp"):
                value = mp.zero                             # the rest of a cancellation
            values.append(None if abs(size) > MAX_BITS and value else value)
        except (ArithmeticError, ValueError, TypeError, AttributeError):
            values.append(None)
    return values


def _variable(name):
    draw = random.Random(name)
    signs = (1, -1, *draw.choices((1, -1), k=3))
    return [_LOCAL.mp.mpf(sign * draw.uniform(0.5, 3)) for sign in signs]


class _Parser:
    """Precedence climbing over the tokens of one answer; `sign` is what \\pm stands for."""

    def __init__(self, found, sign):
        self.tokens, self.sign, self.names, self.half_units = ["", *found[::-1]], sign, set(), {}
        self.depth = self.bars = 0

    def items(self, *closers):
        """What stands between commas up to a closing token: a list, or a set where "or" stands."""
        items, kind = [], "list"
        while self.tokens[-1] not in closers:
            items.append(self.relation())
            if self.tokens[-1] not in (",", "or", *closers):
                raise ValueError(f"{self.tokens[-1] or 'the end'!r} is not expected here")
            if self.tokens[-1] not in closers and self.tokens.pop() == "or":
                kind = "set"
        solved = [isinstance(item, _Many) and item.label and item.solved for item in items]
        if len(items) > 1 and all(solved):
            kind = "set"                                    # x = 1, y = 2 in any order
        return kind, items, self.tokens.pop()

    def relation(self):
        before, signs, sides = list(self.tokens), [], [self.expression(0)]
        label = " ".join(before[len(self.tokens):][::-1])
        while self.tokens[-1] in _RELATIONS:
            signs.append(self.tokens.pop())
            sides.append(self.expression(0))
        if not signs:
            return sides[0]
        listed = any(isinstance(side, _Many) for side in sides)      # as in (x, y) = (1, 2)
        gaps = [[None]] if listed else [_related(*pair) for pair in zip(signs, sides, sides[1:])]
        if set(signs) != {"="}:
            gaps = gaps[::-1] if ">" in signs[0] else gaps
            return _Many("chain", gaps, min(self.names) if len(self.names) == 1 else "")
        label = label if _LABEL.fullmatch(label) else ""
        values = sides[1:] if label else sides
        agree = all(_alike(value, values[-1]) and (label or len(value) == 1) for value in values)
        if listed and not (label and agree):
            raise ValueError("a relation of lists")
        return _Many("chain", gaps, label, values[-1] if agree else None)

    def expression(self, floor):
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        left = self.primary()
        while True:
            token = self.tokens[-1]
            stop = token in _STOP or token[0].isdigit() or token == "|" and self.bars
            level = _LEVEL.get(token, 0 if stop else 20)
            bare = floor == 19 and (token in {"*", "/", *_CLOSE} or token[1:] in _FUNCTIONS)
            if level <= floor or bare:                      # 19: the argument of sin 2x cos x
                break
            operation = self.tokens.pop() if token in _LEVEL else "*"
            operation = "+-"[self.sign < 0] if operation == r"\pm" else operation
            right = [self.expression(level - (operation == "^"))] if level < 50 else []
            if operation == r"\cup":
                left = _Many("set", _members(left) + _members(*right))
            else:
                left = _apply(operation, left, *right)
        self.depth -= 1
        return left

    def primary(self):
        token = self.tokens.pop()
        name = token.strip("\\")
        if token[:1].isdigit() or token[:1] == ".":
            return self.number(token)
        if token in ("-", "+", r"\pm"):
            sign = {"-": -1, "+": 1, r"\pm": self.sign}[token]
            return _apply("*", [_LOCAL.mp.mpf(sign)], self.expression(25))
        if token in _CLOSE:
            outside, self.bars = self.bars, 0
            kind, items, close = self.items(*_CLOSE[token])
            self.bars = outside
            if len(items) == 1 and token != r"\{":
                return items[0]
            return _Many({"{": kind, r"\{": "set"}.get(token, token + close), items)
        if token in _FENCE:
            self.bars += token == "|"
            (inside,) = self.items(_FENCE[token])[1]
            self.bars -= token == "|"
            return _apply(token, inside)
        if token in (r"\frac", r"\binom"):
            return _apply(token, self.primary(), self.primary())
        if token == r"\sqrt":
            degree = self.primary() if self.tokens[-1] == "[" else [_LOCAL.mp.mpf(2)]
            return _apply("^", self.primary(), _apply("/", [_LOCAL.mp.one], degree))
        if name in _FUNCTIONS:
            return self.function(name)
        if token in _CONSTANTS:
            return [+getattr(_LOCAL.mp, _CONSTANTS[token])]
        if name not in _GREEK and not (token == name and len(name) == 1 and name.isalpha()):
            raise ValueError(f"cannot read {token or 'the end'!r}")
        if self.tokens[-1] == "_":
            before = list(self.tokens)
            self.tokens.pop()
            self.primary()
            name += "".join(before[len(self.tokens):][::-1]).replace("{", "").replace("}", "")
        self.names.add(name)
        return _variable(name)

    def number(self, token):
        if "_" in token:
            digits, base = token.rstrip("}").replace("{", "").split("_")
            return [_LOCAL.mp.mpf(int(digits, int(base)))]
        mantissa, _, exponent = token.lower().partition("e")
        value = _apply("+", [_LOCAL.mp.mpf(token)], [0])    # None if it is too large
        decimals = mantissa.partition(".")[2]
        if decimals.strip("0") and len(mantissa.replace(".", "").lstrip("0")) > 1:
            half_unit = _LOCAL.mp.mpf(10) ** (int(exponent or 0) - len(decimals)) / 2
            self.half_units |= {value[0]: half_unit, -value[0]: half_unit}
        return value

    def function(self, name):
        scripts = {}
        while self.tokens[-1] in ("^", "_"):
            script = self.tokens.pop()
            scripts[script] = self.primary()
        inside = self.primary() if self.tokens[-1] in {**_CLOSE, **_FENCE} else self.expression(19)
        if scripts.get("^") == [-1]:
            return _apply("arc" + name, inside)
        value = _apply("_", inside, scripts["_"]) if "_" in scripts else _apply(name, inside)
        return _apply("^", value, scripts["^"]) if "^" in scripts else value


def _related(sign, left, right):
    """A relation as the ratios of its gap at the sample points: the same for all its multiples."""
    if ">" in sign:
        sign, left, right = sign.replace(">", "<"), right, left
    gap = _apply("-", left, right)
    scale = _apply("|", gap[:1]) if "<" in sign else gap[:1]
    return _Many(sign, [_apply("/", gap, scale)])


def _members(value):
    return value.items if isinstance(value, _Many) and value.kind == "set" else [value]


def _towards(value, other):
    """The value in terms of the other: an equation's answer, a set's member, an interval's ends."""
    if not isinstance(value, _Many):
        return value
    kind, label = (other.kind, other.label) if isinstance(other, _Many) else ("number", "")
    if value.solved and (kind != "chain" or value.label == label and other.solved):
        return value.solved
    if kind == "number" and value.kind == "set" and len(value.items) == 1:
        return value.items[0]
    if kind != "chain" or other.solved or value.kind[1:] not in (")", "]") or len(value.items) != 2:
        return value
    (low, high), x = value.items, _variable(label)
    signs = ["<=" if bracket in "[]" else "<" for bracket in value.kind]
    ends = [(signs[0], low, x)] if low != [-_LOCAL.mp.inf] else []
    ends += [(signs[1], x, high)] if high != [_LOCAL.mp.inf] else []
    return _Many("chain", [_related(*end) for end in ends])


def _alike(a, b, half_units=()):
    """Do two values agree? `half_units`: how far `a` may be off each decimal of the gold `b`."""
    a, b = _towards(a, b), _towards(b, a)
    if not isinstance(a, _Many) and not isinstance(b, _Many):
        points = max(len(a), len(b))
        pairs = [(a[k % len(a)], b[k % len(b)]) for k in range(points)]
        pairs = [(x, y) for x, y in pairs if x is not None and y is not None]
        if points == len(pairs) == 1 and b[0] in half_units and not a[0].imag:
            return abs(a[0] - b[0]) <= half_units[b[0]] * (1 + 1e-9)
        return len(pairs) >= min(points, 3) and all(_near(*pair) for pair in pairs)
    if not isinstance(a, _Many) or not isinstance(b, _Many) or len(a.items) != len(b.items):
        return False
    kinds, rest = {a.kind, b.kind}, list(b.items)
    if kinds <= {"list", "()"} or len(kinds) == 1 and kinds != {"set"}:
        return all(_alike(x, y, half_units) for x, y in zip(a.items, b.items))
    if not kinds <= {"set", "list"} or len(rest) > 24:
        return False
    for item in a.items:
        match = [k for k, other in enumerate(rest) if _alike(item, other, half_units)][:1]
        if not match:
            return False
        rest.pop(*match)
    return True


# ---- the answer and the gold

@lru_cache(maxsize=64)
def _parse(text):
    """The value of a text and the half units of its decimals; ValueError where it is not maths."""
    found = [_ALIAS.get(token, token) for token in _TOKEN.findall(text) if token not in _DROP]
    if len(found) > MAX_TOKENS or _WORD.search(text):
        raise ValueError("not mathematics")
    parser = _Parser(found, 1)
    kind, items, _ = parser.items("")
    if r"\pm" in found:
        kind, items = "set", [member for item in items for member in _members(item)][:20]
        for item in _Parser(found, -1).items("")[1][:20]:
            items += [new for new in _members(item) if not any(_alike(new, old) for old in items)]
    return items[0] if len(items) == 1 else _Many(kind, items), parser.half_units


def equal(a: str, b: str, rounding: bool = False) -> bool:
    """Do the two answers denote the same mathematical object? Symmetric, unless with `rounding`
    decimals of the gold `b` accept what rounds to them."""
    if max(len(a), len(b)) > MAX_CHARS or a.isdecimal() and b.isdecimal() and (a + b).isascii():
        return a.strip().lstrip("0") == b.strip().lstrip("0")
    a, b = _normalise(a), _normalise(b)
    texts = [re.sub(r'"|\s(?!\d)|(?<!\d)\s', "", text) for text in (a, b)]
    words = _WORD.search(a)
    if not all(texts) or texts[0] == texts[1] or words and texts[0].lower() == texts[1].lower():
        return all(texts)
    units = [_UNIT.search(text) for text in (a, b)]
    names = [unit and re.sub(r'[\s"\\]|s\b', "", unit[0]).replace("percent", "%") for unit in units]
    if all(names) and names[0] != names[1]:
        return False
    bare = [text[:unit.start()] if unit else text for text, unit in zip((a, b), units)]
    for pair in [bare, (a, b)][:1 + any(names)]:
        try:
            (value, _), (gold, half_units) = map(_parse, pair)
            if _alike(value, gold, half_units if rounding else ()):
                return True
        except _UNREADABLE:
            continue
    return False


def grade(text: str, gold: str) -> bool:
    """Is the answer in `text` the gold? Never raises, whatever the text. Boxes side by side, as in
    "\\boxed{41} or \\boxed{42}", are one answer."""
    start = text.rfind("\\boxed")
    window = text[max(0, start - MAX_CHARS):start + 10 * MAX_CHARS] if start >= 0 else text
    for _ in range(3):
        window = _ADJACENT.sub(r"\1 or ", window)
    answer = extract_answer(window)
    return answer is not None and equal(answer, gold, rounding=True)


def check_gold(gold: str) -> None:
    """Raise ValueError with the reason if no answer can be compared with this gold."""
    if not isinstance(gold, str):
        raise ValueError(f"the gold answer is not a string but {gold!r}")
    if len(gold) > MAX_CHARS or not _normalise(gold):
        raise ValueError(f"the gold answer is {'too long' if gold.strip() else 'empty'}")
    braces = re.findall(r"(?<!\\)[{}]", gold)
    if braces.count("{") != braces.count("}") or gold.strip()[-1] in "+-*/^=<(":
        raise ValueError(f"the gold answer {gold!r} is cut off")
    try:
        value, _ = _parse(_normalise(gold))
    except _UNREADABLE:
        return                                              # text, which equals itself
    if isinstance(value, list) and not _alike(value, value):
        raise ValueError(f"the gold answer {gold!r} is undefined or too large")


def main(path: str) -> None:
    """Grade the rows of a .jsonl file; print the accuracy and the rows judged wrong."""
    line, wrong = 0, []
    try:
        with open(path, encoding="utf-8") as file:
            for line, row in enumerate(file, 1):
                row = json.loads(row)
                if not grade(row["response"], str(row["answer"])):
                    answer = str(extract_answer(row["response"]))[:80]
                    wrong.append(f"line {line}: {answer} is not {row['answer']}")
    except OSError as error:
        sys.exit(f"cannot read {path}: {error.strerror}")
    except (ValueError, LookupError, TypeError, AttributeError):
        sys.exit(f"{path}, line {line}: not a JSON row with a text `response` and an `answer`")
    print(*wrong, f"{line - len(wrong)} of {line} right", sep="\n")


if __name__ == "__main__":
    main(sys.argv[1]) if len(sys.argv) == 2 else sys.exit("usage: python verify.py FILE.jsonl")
