"""The verifier: does a model's answer denote the same mathematical object as the gold answer?

    extract_answer -> normalise -> tokens -> parse -> equal -> grade

An answer is parsed to its value: an exact Fraction where possible, else (roots, pi) a Decimal of
80 digits. Variables stand for fixed points of both signs: x(x+1) is x^2+x, x is not -x. Tuples,
lists and intervals keep their order, sets do not; `x = 3` stands for 3. What is not mathematics is
compared as text. Nothing is executed, and powers are bounded before they are made. Rounding, by
`grade` only: an exact gold wants an exact answer, 0.333 is wrong for 1/3; a decimal gold of two or
more significant digits takes what rounds to it, 1/3 is right for 0.333 and 2.54 for 2.5.
"""
import json
import random
import re
import sys
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

MAX_CHARS, MAX_DEPTH, MAX_BITS = 1000, 40, 2000  # beyond these: text only
UNREADABLE = (ArithmeticError, ValueError, TypeError, LookupError, RecursionError)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
SYMBOLS = {"\\" + name for name in "alpha beta gamma theta lambda mu phi omega infty".split()}
REWRITES = [(re.compile(pattern), new) for pattern, new in [
    (r"\\\\(?=[A-Za-z])", r"\\"), (r"\\?[$€£]|\\[()!]|\^ ?\{? ?\\circ ?\}?|°", ""),
    (r"\\(?:left|right|displaystyle|boxed)(?![a-z])|^(?:[Tt]he )?(?:final )?answer is:?", ""),
    (r"(?<=[\d)}]) ?\\(?:text|mathrm|mbox) ?\{[^{}]*\}$", ""),  # a unit
    (r"\\(?:text|textbf|mathrm|mathbf|mbox) ?\{([^{}]*)\}", r"\1"),
    (r"\\[dtc]frac", r"\\frac"), (r"\\(frac|sqrt) ?(\d)", r"\\\1{\2}"), ("−|–", "-"),
    (r"(\\frac ?\{[^{}]*\}) ?(\d)", r"\1{\2}"), (r"\\times|\\cdot|×|·", "*"), (r"\\div|÷", "/"),
    ("π", r"\\pi "), (r"√|(?<!\\)sqrt", r"\\sqrt "), (r"\\[,;: ]|~|\s+", " "),
    (r"(?<=\d)(?:\{,\}| )(?=\d{3}(?!\d))", ","), (r"^ +|[ .]*\\?%?[ .]*$", ""),
    (r"(?<![\d.^])(\d+) ?\\frac ?\{(\d+)\} ?\{(\d+)\}", r"(\1+\2/\3)"),  # mixed: 1\frac12
    (r"(?<![\d.])(\d+) (\d+) ?/ ?(\d+)", r"(\1+\2/\3)")]]
TOKEN = re.compile(r"\.?\d[\d. ]*(?:e[-+]?\d{1,2}(?!\w))?|\\?[a-z]{2,}|\\?\S", re.I)
OPERATORS = {"+": (1, lambda a, b: a - -b), "-": (1, lambda a, b: a - b),  # tuples refuse these
             "*": (2, lambda a, b: a * b), "/": (2, lambda a, b: a / b), "^": (4, pow)}
CLOSE = {"(": ")]", "[": ")]", "{": "}", r"\{": [r"\}"]}

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

def normalise(text: str) -> str:
    """One spelling for what LaTeX, Unicode and plain text write in many ways."""
    for pattern, new in REWRITES:
        text = pattern.sub(new, text)
    if not re.search(r"[(\[]|\\\{", text):  # inside brackets a comma separates
        text = re.sub(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])",
                      lambda thousands: thousands[0].replace(",", ""), text)
    return text.strip()

def apply(sign: str, a, b):
    """The operation on two Fractions, exactly; on Decimals where one of them is none."""
    exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    if sign == "^" and exact and b.denominator == 1:
        if abs(b) * max(abs(a.numerator), a.denominator).bit_length() > MAX_BITS:
            raise ValueError("a number too large")
    elif sign == "^" or not exact:
        a, b = (Decimal(x.numerator) / x.denominator if isinstance(x, Fraction) else x
                for x in (a, b))
    return OPERATORS[sign][1](a, b)

class Parser:
    """Precedence climbing (Pratt) from the tokens of an answer to its value at sample `point`."""

    def __init__(self, text: str, point: int):
        self.tokens, self.point, self.depth = ["", *TOKEN.findall(text)[::-1]], point, 0

    def items(self, closers) -> tuple[list, str]:
        """What stands between commas up to a closing token ("" is the end), and that token."""
        found = [self.expression(0)]
        while (close := self.tokens.pop()) == ",":
            found.append(self.expression(0))
        if close not in closers:
            raise ValueError(f"{close!r} is not expected here")
        return found, close

    def expression(self, floor: int):
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        left = self.primary()
        while self.tokens[-1] not in {"", ",", ")", "]", "}", r"\}"}:
            sign = self.tokens[-1] if self.tokens[-1] in OPERATORS else "*"  # 2x is 2*x
            level = OPERATORS[sign][0]
            if level <= floor:
                break
            if self.tokens[-1] in OPERATORS:
                self.tokens.pop()
            left = apply(sign, left, self.expression(level - (sign == "^")))
        self.depth -= 1
        return left

    def primary(self):
        token = self.tokens.pop()
        if re.match(r"\.?\d", token):
            return Fraction(token)
        if token in ("+", "-"):
            return apply("*", Fraction(f"{token}1"), self.expression(3))
        if token in CLOSE:
            found, close = self.items(CLOSE[token])
            return found[0] if len(found) == 1 and token != r"\{" else (token + close, found)
        if token == r"\frac":
            return apply("/", self.primary(), self.primary())
        if token == r"\sqrt":
            degree = self.primary() if self.tokens[-1] == "[" else Fraction(2)
            return apply("^", self.primary(), apply("/", Fraction(1), degree))
        if token == r"\pi":
            return PI
        if token not in SYMBOLS and not (len(token) == 1 and token.isalpha()):
            raise ValueError(f"cannot read {token!r}")
        draw = random.Random(f"{token} {self.point}")
        return Fraction(draw.randint(100, 999), draw.randint(100, 999)) * (-1) ** self.point

@lru_cache(maxsize=256)  # K answers share a gold
def parse(text: str, point: int):
    """Value of a normalised text: Fraction, Decimal or (brackets, items). Raises UNREADABLE."""
    found, _ = Parser(text, point).items([""])
    return found[0] if len(found) == 1 else ("list", found)

def same(a, b, half_unit=None) -> bool:
    """Do two values agree: exactly, to 60 digits where one is a Decimal, or to `half_unit`?"""
    if isinstance(a, tuple) and isinstance(b, tuple):
        if a[0] == b[0] == r"\{\}":
            return all(any(same(x, y) for y in b[1]) for x in a[1]) and len(a[1]) == len(b[1])
        alike = a[0] == b[0] or {a[0], b[0]} == {"()", "list"}
        return alike and len(a[1]) == len(b[1]) and all(map(same, a[1], b[1]))
    if half_unit is None and isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    tolerance = half_unit or apply("*", max(abs(a), abs(b)), Fraction(1, 10**60))
    return apply("-", tolerance, abs(apply("-", a, b))) >= 0

def equal(a: str, b: str, rounding: bool = False) -> bool:
    """Do two answers denote the same mathematical object? With `rounding`, or `a` rounds to `b`?"""
    if max(len(a), len(b)) > MAX_CHARS:
        return a.strip() == b.strip()
    (x, a), (y, b) = (re.match(r"(?:([A-Za-z]) ?= ?)?(.*)", normalise(text)).groups()
                      for text in (a, b))
    if x and y and x != y:  # x = 3 stands for 3, but not for y = 3
        return False
    if a == b:
        return a != ""
    rounds = rounding and re.fullmatch(r"-?\d*\.\d*[1-9]\d*", b) and len(b.lstrip("-0.")) > 1
    half_unit = Fraction(1, 2 * 10 ** len(b.partition(".")[2])) if rounds else None
    try:
        with localcontext() as context:
            context.prec = 80
            return all(same(parse(a, k), parse(b, k), half_unit) for k in range(3))
    except UNREADABLE:
        return a.lower() == b.lower()

def grade(text: str, gold: str) -> bool:
    """Is the answer in `text` the gold? Never raises, whatever the text."""
    answer = extract_answer(text)
    return answer is not None and equal(answer, gold, rounding=True)

def check_gold(gold: str) -> None:
    """Raise ValueError with the reason if no answer can be compared with this gold."""
    if not isinstance(gold, str) or len(gold) > MAX_CHARS or not normalise(gold):
        raise ValueError(f"the gold answer is empty, too long or no text: {gold!r:.50}")
    braces = re.findall(r"(?<!\\)[{}]", gold)
    if braces.count("{") != braces.count("}") or gold.strip()[-1] in "+-*/^=(":
        raise ValueError(f"the gold answer {gold!r} is cut off")

def main(path: str) -> None:
    """Grade the rows of a .jsonl file; print the rows judged wrong and the accuracy."""
    n, wrong = 0, []
    try:
        for n, line in enumerate(open(path, encoding="utf-8"), 1):
            if not grade((row := json.loads(line))["response"], str(row["answer"])):
                wrong.append(f"row {n}: {extract_answer(row['response'])!a} for {row['answer']!a}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        sys.exit(f"{path}, row {n}: no JSON with a text `response` and an `answer` ({error!r})")
    print(*wrong, f"{n - len(wrong)} of {n} right", sep="\n")

if __name__ == "__main__":
    main(sys.argv[1]) if len(sys.argv) == 2 else sys.exit("usage: python verify.py FILE.jsonl")
