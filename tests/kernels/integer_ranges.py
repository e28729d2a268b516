"""The ranges of a kernel's integers, by interval arithmetic on Triton's intermediate code.

Arguments are what one launch gives, so that a range is of all programs of it at once.
"""

import re

VALUE = re.compile(r"%[\w#]+")
RESULT = re.compile(r"^\s*(%[\w]+)(?::\d+)? = (?:\"?)([\w.]+)(?:\"?)(.*)$")
LOCATION = re.compile(r" ?loc\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
FORWARDED = {
    "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "ttg.convert_layout",
    "arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast",
}  # fmt: skip


def overflows(ttir, name, arguments, programs):
    """Return the lines of integer arithmetic whose results may leave the integers' type."""
    known, found = {}, []
    for argument, value in arguments.items():
        if isinstance(value, int):
            known[f"%{argument}"] = (value, value)
    for line in LOCATION.sub("", ttir).splitlines():
        parsed = RESULT.match(line)
        if not parsed:
            continue
        result, operation, rest = parsed.groups()
        if operation == "scf.for":
            counter, bounds = rest.split("=", 1)
            low, high = (known[v] for v in VALUE.findall(bounds)[:2])
            known[VALUE.findall(counter)[0]] = (low[0], max(low[0], high[1] - 1))
            continue
        bits = re.search(r"(?:x|\b)i(8|16|32|64)>?$", line)
        if not bits or operation == "arith.cmpi":
            continue
        operands = [v for v in VALUE.findall(rest.split(" : ")[0])]
        range_of = _range(operation, rest, [known.get(v) for v in operands], programs)
        if range_of is None:
            continue
        limit = 2 ** (int(bits[1]) - 1)
        if -limit <= range_of[0] and range_of[1] < limit:
            known[result] = range_of
        else:
            found.append(f"{name}: {line.strip()} in {range_of}")
    return found


def _range(operation, rest, operands, programs):
    """Return (least, greatest) of an operation's result; None where it is not an integer we know.

    What is computed from what is not known is not known: no load here gives an integer.
    """
    if operation == "arith.constant":
        number = re.match(r" (?:dense<)?(-?\d+)>? :", rest)
        return number and (int(number[1]), int(number[1]))
    if operation == "tt.get_program_id":
        return 0, programs - 1
    if operation == "tt.get_num_programs":
        return programs, programs
    if operation == "tt.make_range":
        end, start = (int(re.search(rf"{key} = (\d+)", rest)[1]) for key in ("end", "start"))
        return start, end - 1
    if operation == "arith.select":
        operands = operands[1:]
    if not operands or None in operands:
        return None
    a, b = operands[0], operands[-1]
    if operation in FORWARDED:
        return a
    if operation == "arith.select":
        return min(a[0], b[0]), max(a[1], b[1])
    return _arithmetic(operation, a, b)


def _arithmetic(operation, a, b):
    if operation == "arith.addi":
        return a[0] + b[0], a[1] + b[1]
    if operation == "arith.subi":
        return a[0] - b[1], a[1] - b[0]
    if operation == "arith.muli":
        corners = [x * y for x in a for y in b]
        return min(corners), max(corners)
    if operation in ("arith.minsi", "arith.maxsi"):
        pick = min if operation == "arith.minsi" else max
        return pick(a[0], b[0]), pick(a[1], b[1])
    if operation == "arith.divsi":
        assert b[0] > 0, "divides by what may be 0"
        corners = [-(-x // y) if x < 0 else x // y for x in a for y in b]  # towards 0
        return min(corners), max(corners)
    if operation == "arith.remsi":
        assert b[0] > 0, "divides by what may be 0"
        most = b[1] - 1
        return (0 if a[0] >= 0 else -most), min(max(a[1], 0), most)
    raise AssertionError(f"{operation} has no rule here")
