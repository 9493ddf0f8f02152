"""Compares two recordings and prints every difference by its path.

A rule of `allowed.txt` is a path pattern (`*` is one step or a part of one, `**` any number of
steps) and a reason. Behind a `+` it allows only what the old recording does not have.
"""

import difflib
import fnmatch
import pathlib

ALLOWED = pathlib.Path(__file__).with_name("allowed.txt")
SHOWN_MAX = 160
# Scores and boxes are computed by several threads in any order, from frames that the camera's pace
# chooses.
TOLERANCE, TOLERANCE_RELATIVE = 0.01, 0.002


def differences(old, new, path=()):
    """Yields (path, old text, new text); a missing side is None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(it for it in new if it not in old)]:
            step = (*path, str(key).replace("/", "⁄"))
            if key not in new:
                yield step, show(old[key]), None
            elif key not in old:
                yield step, None, show(new[key])
            else:
                yield from differences(old[key], new[key], step)
    elif isinstance(old, list) and isinstance(new, list):
        yield from list_differences(old, new, path)
    elif not is_same(old, new):
        yield path, show(old), show(new)


def list_differences(old, new, path):
    """Of lists of one length place by place; else without what one of them has more."""
    if len(old) == len(new):
        for at, (before, after) in enumerate(zip(old, new)):
            yield from differences(before, after, (*path, str(at)))
        return
    texts = [[repr(it) for it in side] for side in (old, new)]
    for what, from_old, to_old, from_new, to_new in difflib.SequenceMatcher(
        None, *texts, autojunk=False
    ).get_opcodes():
        if what == "replace" and to_old - from_old == to_new - from_new:
            for at in range(to_old - from_old):
                step = (*path, str(from_new + at))
                yield from differences(old[from_old + at], new[from_new + at], step)
        elif what != "equal":
            for at in range(from_old, to_old):
                yield (*path, str(at)), show(old[at]), None
            for at in range(from_new, to_new):
                yield (*path, str(at)), None, show(new[at])


def is_same(old, new):
    if isinstance(old, float) and isinstance(new, float):
        return abs(old - new) <= max(TOLERANCE, TOLERANCE_RELATIVE * abs(old))
    return type(old) is type(new) and old == new


def show(value):
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}… ({len(text)} characters)"


def rules(path=ALLOWED):
    """Returns the rules of the file: (pattern, reason)."""
    found = []
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pattern, _, reason = line.partition("  ")
            if not reason.strip():
                raise SystemExit(f"{path.name}: {pattern!r} has no reason after two blanks")
            found.append((pattern.strip(), reason.strip()))
    return found


def applies(pattern, path, before):
    """Returns whether a rule allows a difference at `path`; `before` is what the old side has."""
    if pattern.startswith("+ "):
        return before is None and matches(pattern[2:].split("/"), path)
    return matches(pattern.split("/"), path)


def matches(pattern, path):
    """Returns whether the steps of a pattern match the steps of a path."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(matches(pattern[1:], path[at:]) for at in range(len(path) + 1))
    return (
        bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and matches(pattern[1:], path[1:])
    )


def compare(old, new, allowed=None, show_allowed=False):
    """Prints the differences; returns how many of them no rule allows."""
    allowed = rules() if allowed is None else allowed
    used, forbidden = {}, 0
    for path, before, after in differences(old, new):
        rule = next((it for it in allowed if applies(it[0], path, before)), None)
        if rule:
            used[rule] = used.get(rule, 0) + 1
        else:
            forbidden += 1
        if not rule or show_allowed:
            print(f"{'allowed ' if rule else ''}{'/'.join(path)}")
            print(f"  - {before or '(absent)'}\n  + {after or '(absent)'}")
    for (pattern, reason), count in used.items():
        print(f"{count} allowed by {pattern}: {reason}")
    print(
        f"{forbidden} differences that no rule allows"
        if forbidden
        else "no difference that is not allowed"
    )
    return forbidden
