"""The verifier: does a model's answer denote the same mathematical object as the gold answer?

extract_answer -> read: rewrite -> expression, a tree -> meaning, a value -> equal -> grade. Numbers
are their values at five points of both signs (|x| is not x), to 158 digits. Of up to three readings
(x = 3 may be 3, x < 3 an interval, 50\\% 50 or 1/2, 5 cm 5) the plain one of either answer must be
one of the other's. `grade` alone rounds, to a decimal gold of 3 digits or more: 0.333 takes 1/3.
"""
import functools, json, mpmath, random, re, sys
from unicodedata import normalize
MAX_CHARS, MAX_TOKENS, BITS, TINY = 1000, 250, 525, 1e-150  # beyond these: text only
MP = mpmath.mp.clone()  # threads share it; its binomial may leave it more digits, never fewer
MP.dps = 200
FUNCTIONS = "sinh cosh tanh asin acos atan arcsin arccos arctan sin cos tan ln log fabs".split()
GROUPS = r"""* \times \cdot × · ⋅ ¦ / \div ÷ ¦ - − – ¦ < \lt ¦ > \gt ¦ <= \le \leq \leqslant ≤ ¦ >=
\ge \geq \geqslant ≥ ¦ != \ne \neq ≠ ¦ ≈ \approx ¦ ± \pm ¦ or \cup ∪ ¦ , ; & and ¦ ),( \\ ¦ π \pi pi
¦ ∞ \infty infinity ¦ ∅ \emptyset \varnothing ¦ ( \langle ¦ ) \rangle ¦ \sqrt √ sqrt ¦ e^ \exp exp
¦ \frac \dfrac \tfrac \cfrac ¦ \frac12 ½ ¦ \binom \dbinom ¦ | \mid \vert \lvert \rvert ¦ log \lg lg
¦ \frac1tan \cot cot ¦ \frac1cos \sec ¦ \frac1sin \csc ¦ % \% percent ¦ ° \circ ¦ ∈ \in ¦ ~ \left
\right \displaystyle \quad \qquad \( \) \[ \] \, \; \: \! $ \$ € £ " \boxed \mathbf \boldsymbol"""
ALIAS = {word: f" {head} " for head, *tail in map(str.split, GROUPS.split("¦")) for word in tail}
KNOWN, BRACED = "|".join([*FUNCTIONS, "or"]), r"(?:\{(?:[^{}]|\{[^{}]*\})*\}|\w)"
REWRITES = [(re.compile(pattern), new) for pattern, new in [
    (r"(?s)\A(?!.*(?<!\\)\\begin).*", lambda text: text[0].replace(r"\\", "\\")),  # ends no row
    (r"\{,\}|,\\! ?", ","), (r"(?<=[\d)}i])(?:\\[,;: ]|~) ?([CFKLVgms])\b", r" \\text{\1}"),
    ("[⁻⁰¹²³⁴-⁹]+", lambda sup: "^{" + normalize("NFKC", sup[0]) + "}"), (r"\\right ?\.", r"\\}"),
    (r"\\?[A-Za-z]+|\\.|[^\w\s]|½", lambda word: ALIAS.get(word[0], word[0])),  # its group's first
    (r"(?:\\?[\s~])+", " "), (r" ?([][{}()^_|/=<>≈∈]) ?", r"\1"), (r"^ |(?<!\.)[ .,:]{1,2}$", ""),
    (r"\\begin\{[pbB]?(?:matrix|array)\}(?:\{[\w|]+\})?", "(("), (r"(?:\),\()?\\end\{\w+\}", "))"),
    (r"\\(?:text\w*|mathrm|mbox|operatorname)\{([^{}]*)\}", r' "\1"'), (r"\^\{?°\}?", "°"),
    (rf'" ?({KNOWN}|,) ?"', r" \1 "), (r"\{([^{}]*)\\choose([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r'(?i)^[ "]*(?:the )?(?:final )?answer[ "]*(?:is)?[ "=:]*', ""), (r"([\d})π])≈[^,]*", r"\1"),
    ("≈", "="), (r"^\w∈", ""), (r"^\\\{\w[|:](.*)\\\}$", r"\1"), (r"\\\{\\\}", "∅"),  # {x | x > 1}
    (".*±.*", lambda s: " or ".join(s[0].replace("±", c) for c in "+-")), (r", *(?=,|or\b)", ""),
    (r'^[ "(]*([A-Z])[ ")]*$', r"\1"), (r"\\mathbb\{?R\}?|ℝ", "(-∞,∞)"), (r"_\{(\w)\}", r"_\1"),
    (rf"\\({KNOWN})(?![A-Za-z])", r" \1 "), (rf"log ?_({BRACED})", r"\\base\1 ln "),
    (r"(sin|cos|tan) ?\^\{-1\}", r"arc\1 "), (rf"(?<!o)({KNOWN}) ?\^({BRACED})", r"\\raise\2\1 "),
    (r"\|([^|]*)\|", r"{fabs{\1}}"), *2 * [(r"(\\frac(\{[^{}]*\})?) ?(\d)", r"\1{\3}")],  # \frac12
    (r"(?<![\w.^}])(\d+)(?: (\d+)/(\d+)(?![\d.])| ?\\frac\{(\d+)\}\{(\d+)\})", r"(\1+\2\4/\3\5)"),
    (r"(?<![\d.,])[1-9]\d{0,2}(?:[, ]\d{3})+(?!\d|,\d|[^(\[]*(?:[)\]]|\\\}))",  # 1,234, not (1,234)
     lambda n: re.sub(r"\D", "", n[0])), (r"\\sqrt(?!\[)", r"\\sqrt[2]"), (r"\\([{}])", r"\1")]]
TOKEN = re.compile(rf"[^\W\d_]'+|(?:\d[\dA-F]*|[^\W\d_])_{BRACED}|\.?\d+(?:\.\d+)*(?:\.(?!\())?"
                   rf"(?:[eE][-+]?\d{{1,3}}(?!\w))?|!!+|[<>!]=|\\(?:[A-Za-z]+|.)|{KNOWN}|\S")
LABEL = re.compile(r"(^|,|or) ?(?:[^\W\d]+(?:_\w)?|\\\w+)?'*(?:\^\{-1\})?(?:\(\w(?:, ?\w)*\))?=")
NO = r"(?!(?i:\b(?:or|if|(?:hundred|thousand|[mbt]r?illion|dozen)s?|(?<![a-z] )(?:squar|cub)ed)\b))"
UNIT = re.compile(rf'(?<=[\d)}}\]!π°]) ?(%|(?:°|[ /*-]*{NO}(?:"(?:{NO}[^"\d,;])*"|\b(?:[ckm]?m|k?g'
                  r'|s|ft|in|m[il]|hr|lb|[ap]m|per|min|mph|[A-Za-z]{4,})\b)(?:\^\{?\d\}?)?)+) ?$')
WORD = re.compile(rf"(?i)(?<![\\a-z])(?!(?:{KNOWN})[a-z]?\b)(?:no\b|(?=[a-z]{{3}})[a-z]+[aeiou])")
ADJACENT = re.compile(rf"\\boxed ?{BRACED}(?:[\s$,;(){{}}[\]\\]|\b(?:text|q?quad|or|and)\b)*$")
LEVELS = r"""| ' . !! \prime \overline \dot \mod \bmod \pmod \to \subset \subseteq \setminus
: _ ) ] } \rfloor \rceil ¦ or ¦ , ¦ = < > <= >= != ¦ + - ¦ * / ¦ ¦ ^ ¦ ! % °"""  # loose to tight
LEVEL = {sign: level for level, signs in enumerate(LEVELS.split("¦")) for sign in signs.split()}
SIGNS, RELATIONS, LOOSE, NEAR, TIGHT = {*LEVEL}, "= < > <= >= !=".split(), 5, 6, 9  # 2*x, 2x, f(x)
OPEN, NUMERALS = [*"([{", r"\lfloor", r"\lceil"], "0123456789."
LEVEL |= dict.fromkeys([*OPEN, *FUNCTIONS, r"\raise"], LOOSE)  # these multiply what precedes
def expression(stack, floor=0):  # a Pratt parser: the tree up to a sign no tighter than the floor
    token = left = stack.pop()
    if token in FUNCTIONS or token in ("+", "-"):
        left = token, expression(stack, TIGHT if token.isalpha() and stack[-1] in OPEN else LOOSE)
    elif token in (r"\frac", r"\binom", r"\sqrt", r"\raise", r"\base"):
        left = token, expression(stack, TIGHT), expression(stack, TIGHT)
    elif token in OPEN:  # (1) is 1, {1,2} is 1 or 2
        inner, kind = expression(stack), (token + stack.pop()).replace("{}", "or")
        items = inner[1:] if inner[0] == "," else (inner,)
        left = inner if len(items) == 1 and kind in ("()", "[]", "or") else (kind, *items)
    while (token := stack[-1])[:1] not in NUMERALS and LEVEL.get(token, NEAR) > floor:
        sign, args = stack.pop() if token in SIGNS else "*", [left]
        args += [] if sign in "!%°" else [expression(stack, NEAR if sign in "^/" else LEVEL[sign])]
        left = (sign, *(part for arg in args for part in (arg[1:] if arg[:1] == (",",) else [arg])))
    return left
def power(x, y):
    whole = MP.nint(105 * y.real)
    flip = not x.imag and x.real < 0 and abs(105 * y - whole) < TINY  # its odd roots are real
    result = (-x if flip else x) ** y * (-1) ** int(flip * whole % 2) if MP.mag(y) < 64 else MP.inf
    return result if not result or MP.mag(result) > -BITS else MP.inf
CONSTANTS = {"π": +MP.pi, "e": +MP.e, "i": MP.j, "∞": MP.inf}
OPERATIONS = {word: getattr(MP, word.replace("arc", "a")) for word in FUNCTIONS} | {
    "+": lambda *xs: sum(xs), "-": lambda x, *y: x - y[0] if y else -x, "*": MP.fmul, "/": MP.fdiv,
    "^": power, r"\raise": lambda y, x: power(x, y), r"\sqrt": lambda n, x: power(x, 1 / n),
    "log": MP.log10, r"\base": lambda b, x: x / MP.ln(b), r"\frac": MP.fdiv, r"\binom": MP.binomial,
    r"\lfloor\rfloor": lambda x: MP.floor(x + TINY), r"\lceil\rceil": lambda x: MP.ceil(x - TINY),
    "!": lambda x: MP.factorial(MP.mpf(x)), "%": lambda x: x / 100, "°": MP.radians}
@functools.lru_cache(maxsize=4096)
def number(tree):  # its values at the sample points, or the one value where nothing varies
    if isinstance(tree, tuple):
        args = [number(part) for part in tree[1:]]
        values = [*map(OPERATIONS[tree[0]], *(x * (max(map(len, args)) // len(x)) for x in args))]
    elif tree in CONSTANTS or tree[0] in NUMERALS:
        n, _, base = tree.partition("_")
        values = [CONSTANTS.get(tree) or MP.mpf(int(n, int(base.strip("{}"))) if base else n)]
    else:
        draw = random.Random(tree + "4997")  # by which x, y, z, t, or a to d... differ in sign
        values = [MP.mpf(x * draw.uniform(1, 1.1)) for x in draw.sample([-6.4, -.6, .6, 3, 6.4], 5)]
    if tree in LEVEL or not MP.mag(sum(map(abs, values))) < BITS * len(values) and "∞" not in tree:
        raise OverflowError("undefined or too large")
    return values[:1] if len(set(values)) == 1 else values
def rounded(xs, digits=0):  # without the last digits, all errors, or to those of a decimal gold
    xs = tuple(MP.fmul(MP.chop(x, TINY), 1, prec=530) for x in xs)
    xs = xs[:1] if len(set(xs)) == 1 else xs
    exact = len(xs) > 1 or digits + (abs(xs[0]) < 1) < 3 or xs[0].imag or MP.isint(xs[0])
    return xs if exact else (MP.mpf(MP.nstr(xs[0], digits)),)
def meaning(tree, mode, digits):  # a rounded number, a tuple that starts with its kind, a frozenset
    if tree[0] in (",", "or", "()", "[]", "(]", "[)"):
        values = [meaning(part, mode, digits) for part in tree[1:]]
        equations = mode == 0 and all(part[0] in RELATIONS for part in tree[1:])
        if tree[0] == "or" or tree[0] == "," and (mode == 2 or equations):
            return frozenset().union(*(v if isinstance(v, frozenset) else [v] for v in values))
        return (tree[0].replace(",", "()"), *values)
    if tree[0] not in RELATIONS:
        return rounded(number(tree), digits)
    signs, sides, ratios, kind, ends = [], [tree], set(), ["(", ")"], [("-", "∞"), "∞"]
    while sides[0][0] in RELATIONS:
        signs[:0], sides[:1] = sides[0][:1], sides[0][1:]
    if mode and set(signs) == {"="}:  # 1 + 1 = 2 may be 2
        (value,) = {meaning(side, mode, digits) for side in sides}
        return value
    for sign, *pair in zip(signs, sides, sides[1:]):
        sign, pair = (sign.replace(">", "<"), pair[::-1]) if ">" in sign else (sign, pair)
        if mode:  # x < 3 may be an interval
            end = 1 - [isinstance(side, str) and len(number(side)) > 1 for side in pair].index(True)
            ends[end], kind[end] = pair[end], {"<": "()", "<=": "[]"}[sign][end]
        else:  # the ratios of its gap, as of all its multiples; 41 = 42, without names, has none
            gap = number(("-", *pair))
            ratios |= {(sign, rounded([g / (abs(gap[1]) if "<" in sign else gap[1]) for g in gap]))}
    return meaning(("".join(kind), *ends), 0, digits) if mode else ("and", frozenset(ratios))
@functools.lru_cache(maxsize=256)
def read(text, digits=0):  # the text to compare, and the readings, or errors in their place
    for pattern, new in REWRITES:
        text = pattern.sub(new, text)
    (bare, *unit), found, key = UNIT.split(text), [], re.sub(r'"| (?!\d)|(?<!\d) ', "", text)
    for mode, part in enumerate((bare, LABEL.sub(r"\1", bare), LABEL.sub(r"\1", text))):
        stack = ["", *reversed(TOKEN.findall(part.replace('"', " ")))]
        try:
            tree = expression(stack) if len(stack) < MAX_TOKENS and not WORD.search(part) else None
            value = meaning(tree if stack == [""] else None, mode, digits)
            found.append(value if mode or not unit else (value, re.sub('[ "{}]|s"?$', "", unit[0])))
        except Exception as error:  # it is no mathematics, then
            found.append(error)
    return key.lower() if WORD.search(key) else key, found
def extract_answer(text: str) -> str | None:
    """What the last `\\boxed{}` (of nested ones the inner) or else the last line `Answer:` says."""
    (_, box, rest), depth = text.rpartition("\\boxed"), 0
    if not box:
        return (re.findall(r"^[ \t]*Answer:(.*)$", text, re.M) or [""])[-1].strip() or None
    for brace in re.finditer(r"\\[\\{}]|[{}]", rest[:10 * MAX_CHARS]):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth <= 0:
            return rest.lstrip()[:1] == "{" and rest[:brace.start()].lstrip()[1:].strip() or None
def equal(a: str, b: str, rounding: bool = False) -> bool:
    """Do two answers denote the same object? With `rounding`, or does `a` round to `b`?"""
    if a == b or max(len(a), len(b)) > MAX_CHARS or a.isdecimal() and b.isdecimal():
        return a.strip().lstrip("0") == b.strip().lstrip("0") and a.strip() != ""
    decimal = rounding and re.search(r"^(?!.*(?:\\(?:sqrt|pi|l[no])|[π√])).*?(\d*\.\d*[1-9]\d*)", b)
    digits = len(decimal[1].replace(".", "").lstrip("0")) if decimal else 0
    (words, ours), (gold_words, golds) = read(a, digits), read(b, digits)
    return words == gold_words != "" or ours[0] in golds or golds[0] in ours
def grade(text: str, gold: str) -> bool:
    """Is the answer in `text` the gold? Never raises. Boxes side by side, 41 or 42, are one."""
    head, answers = text.rpartition("\\boxed")[0][-200:], [extract_answer(text)]
    while other := ADJACENT.search(head):
        head, answers = head[:other.start()], [*answers, extract_answer(other[0])]
    return None not in answers and equal(" or ".join(dict.fromkeys(answers)), gold, rounding=True)
def check_gold(gold: str) -> None:
    """Raise ValueError with the reason if no answer can be compared with this gold."""
    words, found = read(gold) if isinstance(gold, str) and len(gold) <= MAX_CHARS else ("", [])
    reasons = {IndexError: "cut off", ZeroDivisionError: "undefined"}
    if reason := reasons.get(type(found[1])) if words else "empty, too long or no string":
        raise ValueError(f"the gold answer {gold!r:.80} is {reason}")
def main(path: str) -> None:
    """Grade the rows of a .jsonl file; print the rows judged wrong and the accuracy."""
    right = []
    try:
        for row in map(json.loads, open(path, encoding="utf-8")):
            right.append(grade(row["response"], str(row["answer"])) and not row.get("cut"))
            if not right[-1]:
                print(f"line {len(right)}:", extract_answer(row["response"]), "!=", row["answer"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        sys.exit(f"{path}, line {len(right) + 1}: no JSON of `response` and `answer` ({error})")
    print(f"{sum(right)} of {len(right)} right")
if __name__ == "__main__":
    main(sys.argv[1]) if len(sys.argv) == 2 else sys.exit("usage: python verify.py FILE.jsonl")
